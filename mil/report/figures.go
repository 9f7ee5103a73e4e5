package report

import (
	"math"
	"strconv"

	"coverslip"
	"coverslip/mil/metric"
)

// definition is a figure of one test side, as a function of how often each of its rows counts.
type definition struct {
	name string
	of   func(rows []coverslip.Prediction, classes int) func(times []int) float64
}

// figuresOf are those of a run, the one that methods are compared by first.
func figuresOf(run coverslip.Run) []definition {
	switch len(run.Classes) {
	case 0:
		return []definition{{"concordance", concordance}}
	case 2:
		return append([]definition{{"auc", binary(metric.CountedAUC)}, {"average_precision", binary(metric.CountedAveragePrecision)}}, named()...)
	default:
		all := append([]definition{{"auc_one_vs_rest", oneVsRest}, {"auc_one_vs_one", oneVsOne}}, named()...)
		for _, c := range run.Classes {
			if _, err := strconv.ParseFloat(c, 64); err != nil {
				return all
			}
		}
		return append(all, definition{"quadratic_kappa", confusion(metric.Confusion.QuadraticKappa)}) // grades
	}
}

// named are the figures of any classes.
func named() []definition {
	return []definition{
		{"accuracy", confusion(metric.Confusion.Accuracy)},
		{"balanced_accuracy", confusion(metric.Confusion.BalancedAccuracy)},
		{"f1", confusion(func(m metric.Confusion) float64 { return m.F1(make([]float64, m.Classes)) })},
		{"log_loss", mean(metric.LogLoss)},
		{"brier", mean(metric.Brier)},
		{"calibration_error", calibrationError},
	}
}

func binary(counted func(y []int, score []float64) func([]int) float64) func([]coverslip.Prediction, int) func([]int) float64 {
	return func(rows []coverslip.Prediction, _ int) func([]int) float64 {
		y, p := oneAgainst(rows, 1)
		return counted(y, p)
	}
}

// oneAgainst makes a class the positive one.
func oneAgainst(rows []coverslip.Prediction, class int) (y []int, p []float64) {
	y, p = make([]int, len(rows)), make([]float64, len(rows))
	for i, r := range rows {
		p[i] = r.P[class]
		if r.Truth == class {
			y[i] = 1
		}
	}
	return y, p
}

func oneVsRest(rows []coverslip.Prediction, classes int) func([]int) float64 {
	each := make([]func([]int) float64, classes)
	for c := range classes {
		each[c] = metric.CountedAUC(oneAgainst(rows, c))
	}
	return average(each)
}

func oneVsOne(rows []coverslip.Prediction, classes int) func([]int) float64 {
	var each []func([]int) float64
	for a := range classes {
		for b := range classes {
			if a == b {
				continue
			}
			var at, y []int
			var p []float64
			for i, r := range rows {
				if r.Truth == a || r.Truth == b {
					at, p = append(at, i), append(p, r.P[a])
					y = append(y, 0)
					if r.Truth == a {
						y[len(y)-1] = 1
					}
				}
			}
			auc, some := metric.CountedAUC(y, p), make([]int, len(at))
			each = append(each, func(times []int) float64 {
				for i, r := range at {
					some[i] = times[r]
				}
				return auc(some)
			})
		}
	}
	return average(each)
}

// average is NaN where one of them is.
func average(each []func([]int) float64) func([]int) float64 {
	return func(times []int) float64 {
		sum := 0.0
		for _, f := range each {
			sum += f(times)
		}
		return sum / float64(len(each))
	}
}

func confusion(figure func(metric.Confusion) float64) func([]coverslip.Prediction, int) func([]int) float64 {
	return func(rows []coverslip.Prediction, classes int) func([]int) float64 {
		y, predicted := make([]int, len(rows)), make([]int, len(rows))
		for i, r := range rows {
			y[i] = r.Truth
			for c, p := range r.P {
				if p > r.P[predicted[i]] {
					predicted[i] = c
				}
			}
		}
		return func(times []int) float64 { return figure(metric.Confuse(y, predicted, classes, times)) }
	}
}

// mean is a figure that is the mean of one of each row.
func mean(figure func(y []int, p []float64, classes int) float64) func([]coverslip.Prediction, int) func([]int) float64 {
	return func(rows []coverslip.Prediction, classes int) func([]int) float64 {
		cost := make([]float64, len(rows))
		for i, r := range rows {
			cost[i] = figure([]int{r.Truth}, r.P, classes)
		}
		return func(times []int) float64 {
			sum, n := 0.0, 0
			for i, c := range cost {
				sum += float64(times[i]) * c
				n += times[i]
			}
			return sum / float64(n)
		}
	}
}

// bins of a calibration plot and its error.
const bins = 10

func calibrationError(rows []coverslip.Prediction, classes int) func([]int) float64 {
	y, p := confidences(rows, classes)
	return func(times []int) float64 { return metric.CalibrationError(metric.Calibration(y, p, bins, times)) }
}

// confidences are those of class 1, or of the most probable of several classes.
func confidences(rows []coverslip.Prediction, classes int) (y []int, p []float64) {
	if classes == 2 {
		return oneAgainst(rows, 1)
	}
	var truth []int
	var all []float64
	for _, r := range rows {
		truth, all = append(truth, r.Truth), append(all, r.P...)
	}
	y, p = metric.TopLabel(truth, all, classes)
	for i := range p {
		p[i] = math.Min(p[i], 1) // a softmax may round above
	}
	return y, p
}

func concordance(rows []coverslip.Prediction, _ int) func([]int) float64 {
	var drawn []int
	return func(times []int) float64 {
		drawn = metric.Repeat(drawn[:0], times)
		time, event, risk := make([]float64, len(drawn)), make([]bool, len(drawn)), make([]float64, len(drawn))
		for i, r := range drawn {
			time[i], event[i], risk[i] = rows[r].Time, rows[r].Event, rows[r].P[0]
		}
		return metric.Concordance(time, event, risk)
	}
}
