package metric

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"
)

// Interval is a figure and the range that holds its true value with the probability Level. In JSON, what
// is NaN is null.
type Interval struct {
	Value, Low, High float64
	Level            float64
	Draws            int // of a bootstrap that have the figure
	Undefined        int // draws without it: they came out with a single class
}

// MarshalJSON writes value, low, high, level and, of a bootstrap, draws and undefined_draws.
func (v Interval) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Value     *float64 `json:"value"`
		Low       *float64 `json:"low"`
		High      *float64 `json:"high"`
		Level     float64  `json:"level"`
		Draws     int      `json:"draws,omitempty"`
		Undefined int      `json:"undefined_draws,omitempty"`
	}{number(v.Value), number(v.Low), number(v.High), v.Level, v.Draws, v.Undefined})
}

func number(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

// Bootstrap draws as many patients as there are, with replacement and each with all of its rows, and
// takes the percentiles of a figure over the draws (Efron 1979; the cluster bootstrap of Field and Welsh
// 2007). patient names the patient of each row; figure is given how often each row counts and must not
// keep that slice. Draws where the figure is NaN are left out and counted. Equal generators give equal
// intervals.
//
// It asks how the figure would vary over other patients for the model as it is. It does not cover how
// the model would vary with other training slides.
func Bootstrap(patient []string, draws int, level float64, rng *rand.Rand, figure func(times []int) float64) Interval {
	values := make([]float64, 0, draws)
	value := math.NaN()
	Draw(patient, draws, rng, func(n int, times []int) {
		if n < 0 {
			value = figure(times)
		} else {
			values = append(values, figure(times))
		}
	})
	return Percentiles(value, values, level)
}

// Draw makes the draws of Bootstrap for those who take several figures of each: each is called with −1 and
// every row once, then with the number of each draw and how often it counts each row. It must not keep times.
func Draw(patient []string, draws int, rng *rand.Rand, each func(draw int, times []int)) {
	index := make(map[string]int, len(patient))
	of := make([]int, len(patient))
	for i, p := range patient {
		n, ok := index[p]
		if !ok {
			n = len(index)
			index[p] = n
		}
		of[i] = n
	}
	times, drawn := make([]int, len(patient)), make([]int, len(index))
	for i := range times {
		times[i] = 1
	}
	each(-1, times)
	for draw := range draws {
		clear(drawn)
		for range drawn {
			drawn[rng.IntN(len(drawn))]++
		}
		for i, p := range of {
			times[i] = drawn[p]
		}
		each(draw, times)
	}
}

// Percentiles is the interval of a figure whose values over the draws are given, in any order.
func Percentiles(value float64, drawn []float64, level float64) Interval {
	values := slices.Clone(drawn)
	values = slices.DeleteFunc(values, math.IsNaN)
	slices.Sort(values)
	return Interval{Value: value, Level: level, Draws: len(values), Undefined: len(drawn) - len(values),
		Low: quantile(values, (1-level)/2), High: quantile(values, (1+level)/2)}
}

// quantile interpolates between the two nearest of sorted values, as numpy does.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// Repeat appends to dst the index of each row as often as times says: the drawn sample, for figures that
// take rows and not counts.
func Repeat(dst, times []int) []int {
	for i, n := range times {
		for range n {
			dst = append(dst, i)
		}
	}
	return dst
}

// DeLong is the AUC with the interval of DeLong, DeLong and Clarke-Pearson 1988, cut to [0,1], in
// O(n log n) by the midranks of Sun and Xu 2014. Rows count as independent, so it is for one slide a
// patient; Bootstrap knows patients. It needs two rows of each class, else the limits are NaN. Where
// every positive scores above every negative it has no width, which is not certainty: there were too few rows
// to see a mistake.
func DeLong(y []int, score []float64, level float64) Interval {
	auc, cov := delong(y, score)
	v := Interval{Value: auc[0], Level: level, Low: math.NaN(), High: math.NaN()}
	if half := normalQuantile(level) * math.Sqrt(cov[0]); !math.IsNaN(half) {
		v.Low, v.High = max(0, v.Value-half), min(1, v.Value+half)
	}
	return v
}

// DeLongDifference is the AUC of score a less that of b on the same rows, its interval, and the
// probability p of one at least as far from 0 if both were equally good (two-sided). p is 1 where the
// two never differ.
func DeLongDifference(y []int, a, b []float64, level float64) (v Interval, p float64) {
	auc, cov := delong(y, a, b)
	v = Interval{Value: auc[0] - auc[1], Level: level}
	sd := math.Sqrt(max(0, cov[0]+cov[3]-2*cov[1]))
	if math.IsNaN(cov[0]) || math.IsNaN(cov[3]) {
		sd = math.NaN()
	}
	half := normalQuantile(level) * sd
	v.Low, v.High = v.Value-half, v.Value+half
	if v.Value == 0 && sd == 0 {
		return v, 1
	}
	return v, 2 * distuv.UnitNormal.Survival(math.Abs(v.Value)/sd)
}

func normalQuantile(level float64) float64 { return distuv.UnitNormal.Quantile((1 + level) / 2) }

// delong gives the AUC of each score, [S], and their covariance, [S,S].
func delong(y []int, scores ...[]float64) (auc, cov []float64) {
	s := len(scores)
	auc, cov = make([]float64, s), make([]float64, s*s)
	// placed[s][i] is the share of the other class that row i is on the right side of.
	placed := make([][]float64, s)
	var n [2]int
	for i, score := range scores {
		placed[i], n = placements(y, score)
		for r, v := range placed[i] {
			if y[r] == 1 {
				auc[i] += v / float64(n[1])
			}
		}
		if n[0] == 0 {
			auc[i] = math.NaN()
		}
		if n[1] == 0 {
			auc[i] = math.NaN()
		}
	}
	for a := range s {
		for b := range s {
			var sum [2]float64
			for r, c := range y {
				sum[c] += (placed[a][r] - auc[a]) * (placed[b][r] - auc[b])
			}
			for c := range sum {
				// With a single row this is 0/0: nothing says how such rows vary.
				cov[a*s+b] += sum[c] / float64(n[c]-1) / float64(n[c])
			}
		}
	}
	return auc, cov
}

// placements is what DeLong calls structural components: for a positive the share of negatives below it,
// for a negative the share of positives above it, ties a half.
func placements(y []int, score []float64) (placed []float64, n [2]int) {
	r := rank(y, score)
	placed = make([]float64, len(y))
	for _, c := range r.class {
		n[c]++
	}
	var below [2]int
	for i := 0; i < len(r.row); {
		var tie [2]int
		end := r.end[i]
		for _, c := range r.class[i:end] {
			tie[c]++
		}
		for ; i < end; i++ {
			half := float64(tie[1-r.class[i]]) / 2
			v := (float64(below[1-r.class[i]]) + half) / float64(n[1-r.class[i]])
			if r.class[i] == 0 {
				v = 1 - v
			}
			if r.nan {
				v = math.NaN()
			}
			placed[r.row[i]] = v
		}
		below[0] += tie[0]
		below[1] += tie[1]
	}
	return placed, n
}
