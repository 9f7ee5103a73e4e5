// Package metric says how good predictions are, and how sure that is: figures for two and for several
// classes, for survival, and intervals that know which slides are of one patient.
//
// Labels y are classes from 0; with two classes, 1 is the positive one. Probabilities of several classes
// are [N,C], row after row. A figure that the data do not define (an AUC where all labels are equal) is
// NaN and never a made-up 0 or 0.5, and so is one of a score that is NaN; Across leaves such folds out
// of a mean and counts them. Slices of different lengths and labels out of range panic: they are faults
// of the caller.
//
// Definitions are those of scikit-learn 1.9 and lifelines 0.30, and tests hold them to their values,
// except that scikit-learn gives some undefined figures a number.
package metric

import (
	"math"
)

// Accuracy is the share of rows whose class was predicted.
func Accuracy(y, predicted []int) float64 {
	sameLength(len(y), len(predicted))
	hit := 0
	for i := range y {
		if y[i] == predicted[i] {
			hit++
		}
	}
	return float64(hit) / float64(len(y)) // 0/0 is NaN
}

// Confusion counts how often each class, a row of N [C,C], was predicted as each class, a column.
type Confusion struct {
	Classes int
	N       []int
}

// Confuse counts rows, each as often as times says; nil counts each once.
func Confuse(y, predicted []int, classes int, times []int) Confusion {
	sameLength(len(y), len(predicted))
	m := Confusion{classes, make([]int, classes*classes)}
	for i := range y {
		if y[i] < 0 || y[i] >= classes || predicted[i] < 0 || predicted[i] >= classes {
			panic("metric: a class is out of range")
		}
		n := 1
		if times != nil {
			n = times[i]
		}
		m.N[y[i]*classes+predicted[i]] += n
	}
	return m
}

// Accuracy is the share of rows whose class was predicted.
func (m Confusion) Accuracy() float64 {
	hit := 0
	for c := range m.Classes {
		hit += m.N[c*m.Classes+c]
	}
	return float64(hit) / float64(total(m.N))
}

// BalancedAccuracy is the mean recall of the classes that occur in y. With fewer than two of them it is
// NaN: naming the only class there is shows nothing.
func BalancedAccuracy(y, predicted []int, classes int) float64 {
	return Confuse(y, predicted, classes, nil).BalancedAccuracy()
}

// BalancedAccuracy is the function of this name.
func (m Confusion) BalancedAccuracy() float64 {
	sum, present := 0.0, 0
	for c := range m.Classes {
		if n := total(m.N[c*m.Classes : (c+1)*m.Classes]); n > 0 {
			sum += float64(m.N[c*m.Classes+c]) / float64(n)
			present++
		}
	}
	if present < 2 {
		return math.NaN()
	}
	return sum / float64(present)
}

// F1 puts the harmonic mean of precision and recall of each class into dst, [C], and returns their mean.
// A class that occurs neither in y nor among the predictions is NaN and not part of the mean.
func F1(dst []float64, y, predicted []int) float64 {
	return Confuse(y, predicted, len(dst), nil).F1(dst)
}

// F1 is the function of this name.
func (m Confusion) F1(dst []float64) float64 {
	sum, n := 0.0, 0
	for c := range m.Classes {
		both := total(m.N[c*m.Classes : (c+1)*m.Classes]) // labels and predictions of c
		for r := range m.Classes {
			both += m.N[r*m.Classes+c]
		}
		dst[c] = 2 * float64(m.N[c*m.Classes+c]) / float64(both)
		if both > 0 {
			sum += dst[c]
			n++
		}
	}
	return sum / float64(n)
}

// QuadraticKappa is Cohen's kappa of ordered classes, where a disagreement by two classes weighs four
// times one by a single class (Cohen 1968). It is NaN where labels and predictions are all of one class.
func QuadraticKappa(y, predicted []int, classes int) float64 {
	return Confuse(y, predicted, classes, nil).QuadraticKappa()
}

// QuadraticKappa is the function of this name.
func (m Confusion) QuadraticKappa() float64 {
	rows, cols := make([]int, m.Classes), make([]int, m.Classes)
	for r := range m.Classes {
		for c := range m.Classes {
			rows[r] += m.N[r*m.Classes+c]
			cols[c] += m.N[r*m.Classes+c]
		}
	}
	seen, expected := 0.0, 0.0
	for r := range m.Classes {
		for c := range m.Classes {
			w := float64((r - c) * (r - c))
			seen += w * float64(m.N[r*m.Classes+c])
			expected += w * float64(rows[r]) * float64(cols[c]) / float64(total(m.N))
		}
	}
	return 1 - seen/expected
}

// LogLoss is the mean of −ln of the probability, [N,C], that a row's class was given. Probabilities are
// held to 2⁻⁵² from 0 and 1, so that one certain mistake costs 36 and not infinity.
func LogLoss(y []int, p []float64, classes int) float64 {
	sum := 0.0
	each(y, p, classes, func(class int, row []float64) {
		sum -= math.Log(min(max(row[class], epsilon), 1-epsilon))
	})
	return sum / float64(len(y))
}

const epsilon = 0x1p-52

// Brier is the mean squared distance of the probabilities, [N,C], from the truth: 0 to 2, and with two
// classes half of that, 0 to 1, as is the custom (Brier 1950).
func Brier(y []int, p []float64, classes int) float64 {
	sum := 0.0
	each(y, p, classes, func(class int, row []float64) {
		for c, v := range row {
			if c == class {
				v = 1 - v
			}
			sum += v * v
		}
	})
	if classes == 2 {
		sum /= 2
	}
	return sum / float64(len(y))
}

func each(y []int, p []float64, classes int, f func(class int, row []float64)) {
	sameLength(len(p), len(y)*classes)
	for i, c := range y {
		if c < 0 || c >= classes {
			panic("metric: a class is out of range")
		}
		f(c, p[i*classes:(i+1)*classes])
	}
}

// Mean is a figure over folds.
type Mean struct {
	Value     float64 // mean of the folds that have the figure; NaN without any
	SD        float64 // their standard deviation (n−1); NaN for fewer than two
	Folds     int     // how many have it
	Undefined int     // how many do not: their test side has a single class
}

// Across averages a figure over folds, leaving out those where it is NaN, and counts both. The standard
// deviation says how much folds differ; it is no standard error, because folds share training slides
// (Bengio and Grandvalet 2004).
func Across(folds []float64) Mean {
	m := Mean{}
	sum := 0.0
	for _, v := range folds {
		if math.IsNaN(v) {
			m.Undefined++
			continue
		}
		m.Folds++
		sum += v
	}
	m.Value = sum / float64(m.Folds)
	square := 0.0
	for _, v := range folds {
		if !math.IsNaN(v) {
			square += (v - m.Value) * (v - m.Value)
		}
	}
	m.SD = math.NaN()
	if m.Folds > 1 {
		m.SD = math.Sqrt(square / float64(m.Folds-1))
	}
	return m
}

func total(n []int) (sum int) {
	for _, v := range n {
		sum += v
	}
	return sum
}

func sameLength(a, b int) {
	if a != b {
		panic("metric: slices differ in length")
	}
}
