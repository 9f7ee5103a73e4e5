package metric

import "math"

// Bin is the rows whose probability lies in one of several equal parts of [0,1].
type Bin struct {
	Rows      int
	Predicted float64 // their mean probability; NaN without rows
	Observed  float64 // the share of them that is positive; NaN without rows
}

// Calibration sorts rows by their probability of class 1 into bins of equal width, as a calibration plot
// shows them; a value on an edge belongs to the lower bin. times says how often each row counts; nil counts
// each once. NaN and what is not in [0,1] panics.
func Calibration(y []int, p []float64, bins int, times []int) []Bin {
	sameLength(len(y), len(p))
	all := make([]Bin, bins)
	for i, v := range p {
		if !(v >= 0 && v <= 1) {
			panic("metric: a probability is not in [0,1]")
		}
		b := &all[max(0, int(math.Ceil(v*float64(bins)))-1)]
		n := 1
		if times != nil {
			n = times[i]
		}
		b.Rows += n
		b.Predicted += float64(n) * v
		b.Observed += float64(n * y[i])
	}
	for i := range all {
		all[i].Predicted /= float64(all[i].Rows)
		all[i].Observed /= float64(all[i].Rows)
	}
	return all
}

// CalibrationError is the expected calibration error: the mean distance between what was predicted and
// what was observed, each bin weighed by its rows (Naeini et al. 2015). It depends on the number of bins
// and is biased upwards on small sets.
func CalibrationError(bins []Bin) float64 {
	sum, rows := 0.0, 0
	for _, b := range bins {
		if b.Rows > 0 {
			sum += float64(b.Rows) * math.Abs(b.Predicted-b.Observed)
			rows += b.Rows
		}
	}
	return sum / float64(rows)
}

// TopLabel turns several classes into what Calibration takes: was the most probable class right, and how
// probable was it said to be (Guo et al. 2017)? p is [N,C]; of equal ones the first wins.
func TopLabel(y []int, p []float64, classes int) (right []int, confidence []float64) {
	each(y, p, classes, func(class int, row []float64) {
		top := 0
		for c, v := range row {
			if v > row[top] {
				top = c
			}
		}
		hit := 0
		if top == class {
			hit = 1
		}
		right, confidence = append(right, hit), append(confidence, row[top])
	})
	return right, confidence
}
