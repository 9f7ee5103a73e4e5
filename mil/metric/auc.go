package metric

import (
	"math"
	"slices"
)

// AUC is the area under the ROC curve of a score for class 1 against class 0: how probable it is that a
// random positive scores above a random negative, where a tie counts a half (Hanley and McNeil 1982).
// NaN if one of the classes is missing. O(n log n).
func AUC(y []int, score []float64) float64 { return CountedAUC(y, score)(nil) }

// CountedAUC sorts once and returns the AUC as a function of how often each row counts; nil counts each
// once. It is what Bootstrap takes; each call is one walk through the rows.
func CountedAUC(y []int, score []float64) func(times []int) float64 {
	r := rank(y, score)
	return func(times []int) float64 {
		if r.nan {
			return math.NaN()
		}
		if times != nil {
			sameLength(len(times), len(y))
		}
		var below, positives, twice int // negatives below; all positives; twice the pairs in order
		for i := 0; i < len(r.row); {
			var tie [2]int // negatives and positives of equal score
			for end := r.end[i]; i < end; i++ {
				n := 1
				if times != nil {
					n = times[r.row[i]]
				}
				tie[r.class[i]] += n
			}
			twice += tie[1] * (2*below + tie[0])
			below += tie[0]
			positives += tie[1]
		}
		return float64(twice) / 2 / float64(below) / float64(positives)
	}
}

// ranking is the rows of two classes by rising score.
type ranking struct {
	row   []int  // place → row
	class []byte // place → 0 or 1
	end   []int  // place → end of the run of equal scores it is in
	nan   bool   // some score is NaN, so there is no order
}

func rank(y []int, score []float64) ranking {
	sameLength(len(y), len(score))
	n := len(y)
	r := ranking{row: make([]int, n), class: make([]byte, n), end: make([]int, n)}
	for i := range n {
		r.row[i] = i
		r.nan = r.nan || math.IsNaN(score[i])
		if y[i] != 0 && y[i] != 1 {
			panic("metric: a class is out of range")
		}
	}
	slices.SortFunc(r.row, func(a, b int) int {
		switch {
		case score[a] < score[b]:
			return -1
		case score[a] > score[b]:
			return 1
		}
		return a - b
	})
	for i := n - 1; i >= 0; i-- {
		if y[r.row[i]] == 1 {
			r.class[i] = 1
		}
		r.end[i] = i + 1
		if i+1 < n && score[r.row[i]] == score[r.row[i+1]] {
			r.end[i] = r.end[i+1]
		}
	}
	return r
}

// AUCOneVsRest puts the AUC of each class against all others by its probability, p [N,C], into dst, [C],
// and returns their mean. It is NaN if a class is missing: a mean over fewer classes would be another
// figure.
func AUCOneVsRest(dst []float64, y []int, p []float64) float64 {
	classes, sum := len(dst), 0.0
	is, score := make([]int, len(y)), make([]float64, len(y))
	for c := range classes {
		i := 0
		each(y, p, classes, func(class int, row []float64) {
			is[i], score[i] = 0, row[c]
			if class == c {
				is[i] = 1
			}
			i++
		})
		dst[c] = AUC(is, score)
		sum += dst[c]
	}
	return sum / float64(classes)
}

// AUCOneVsOne is the mean over all pairs of classes of how well each is told from the other by its own
// probability, p [N,C] (Hand and Till 2001). Unlike one-vs-rest it does not depend on how frequent the
// classes are. NaN if a class is missing.
func AUCOneVsOne(y []int, p []float64, classes int) float64 {
	sum, pairs := 0.0, 0
	for a := range classes {
		for b := range classes {
			if a == b {
				continue
			}
			var is []int
			var score []float64
			each(y, p, classes, func(class int, row []float64) {
				switch class {
				case a:
					is, score = append(is, 1), append(score, row[a])
				case b:
					is, score = append(is, 0), append(score, row[a])
				}
			})
			sum += AUC(is, score)
			pairs++
		}
	}
	return sum / float64(pairs)
}

// AveragePrecision is the sum of the precision at each threshold times the recall gained there, without
// interpolation. NaN without positives. By chance it is the share of positives, not a half.
func AveragePrecision(y []int, score []float64) float64 {
	return CountedAveragePrecision(y, score)(nil)
}

// CountedAveragePrecision is to AveragePrecision what CountedAUC is to AUC.
func CountedAveragePrecision(y []int, score []float64) func(times []int) float64 {
	r := rank(y, score)
	return func(times []int) float64 {
		if r.nan {
			return math.NaN()
		}
		found, called, sum := 0, 0, 0.0
		for i := len(r.row); i > 0; {
			start := i - 1
			for start > 0 && r.end[start-1] == i {
				start--
			}
			gained := 0
			for at, c := range r.class[start:i] {
				n := 1
				if times != nil {
					n = times[r.row[start+at]]
				}
				called += n
				gained += n * int(c)
			}
			if gained > 0 {
				found += gained
				sum += float64(gained) * float64(found) / float64(called)
			}
			i = start
		}
		return sum / float64(found)
	}
}

// Point is a place on an ROC curve: what is reached when scores of Threshold and above are called positive.
type Point struct{ Threshold, FalsePositiveRate, TruePositiveRate float64 }

// ROC is the curve from (0,0) at an infinite threshold to (1,1), one point for each different score. It is
// nil where the AUC is NaN.
func ROC(y []int, score []float64) []Point {
	r := rank(y, score)
	n := [2]int{}
	for _, c := range r.class {
		n[c]++
	}
	if r.nan || n[0] == 0 || n[1] == 0 {
		return nil
	}
	curve, seen := []Point{{Threshold: math.Inf(1)}}, [2]int{}
	for i := len(r.row) - 1; i >= 0; i-- {
		seen[r.class[i]]++
		if i == 0 || r.end[i-1] == i {
			curve = append(curve, Point{score[r.row[i]], float64(seen[0]) / float64(n[0]), float64(seen[1]) / float64(n[1])})
		}
	}
	return curve
}
