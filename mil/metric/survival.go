package metric

import (
	"cmp"
	"math"
	"slices"
	"sort"
)

// Concordance is Harrell's C: of all pairs of patients of whom it is known who had the event first, the
// share where that one has the higher risk; equal risks count a half. time is until the event or, where
// event is false, until the patient was last seen. At equal times, one with an event comes before one
// without, and two events are no pair. NaN if there is no pair at all. O(n log n).
func Concordance(time []float64, event []bool, risk []float64) float64 {
	sameLength(len(time), len(event))
	sameLength(len(time), len(risk))
	order := latestFirst(time)
	level := slices.Clone(risk) // the different risks, rising
	slices.Sort(level)
	level = slices.Compact(level)
	later := make(counts, len(level)) // patients known to outlive those that come now
	at := func(i int) int { return sort.SearchFloat64s(level, risk[i]) }
	n, pairs, twice := 0, 0, 0
	for len(order) > 0 {
		same := 1
		for same < len(order) && time[order[same]] == time[order[0]] {
			same++
		}
		for _, i := range order[:same] {
			if math.IsNaN(time[i]) || math.IsNaN(risk[i]) {
				return math.NaN()
			}
			if !event[i] {
				later.add(at(i))
				n++
			}
		}
		for _, i := range order[:same] {
			if event[i] {
				twice += later.below(at(i)) + later.below(at(i)+1)
				pairs += n
			}
		}
		for _, i := range order[:same] {
			if event[i] {
				later.add(at(i))
				n++
			}
		}
		order = order[same:]
	}
	return float64(twice) / 2 / float64(pairs)
}

func latestFirst(time []float64) []int {
	order := make([]int, len(time))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Or(cmp.Compare(time[b], time[a]), a-b) })
	return order
}

// counts is a Fenwick tree: how many of each level there are, summed from the bottom in O(log n).
type counts []int

func (c counts) add(level int) {
	for i := level + 1; i <= len(c); i += i & -i {
		c[i-1]++
	}
}

// below counts those of lower levels.
func (c counts) below(level int) (n int) {
	for i := level; i > 0; i -= i & -i {
		n += c[i-1]
	}
	return n
}

// ConcordanceTD is the time-dependent concordance of Antolini et al. 2005, for predictions whose order
// changes with time: survival is [N,T], the probability of each patient to be without event at the rising
// times of grid, a step from each to the next and 1 before the first. A pair is as in Concordance, and
// in order if the one who has the event was, at that time, less likely to be without it than the other.
// Where the curves do not cross it is Harrell's C. O(n · events).
func ConcordanceTD(time []float64, event []bool, grid, survival []float64) float64 {
	n, steps := len(time), len(grid)
	sameLength(n, len(event))
	sameLength(len(survival), n*steps)
	if !slices.IsSorted(grid) {
		panic("metric: the times of a survival curve do not rise")
	}
	if slices.ContainsFunc(survival, math.IsNaN) || slices.ContainsFunc(time, math.IsNaN) {
		return math.NaN()
	}
	order := latestFirst(time)
	pairs, twice := 0, 0
	for place, i := range order {
		// The last step not after the event; before the first all are equal.
		step := sort.Search(steps, func(s int) bool { return grid[s] > time[i] }) - 1
		if !event[i] {
			continue
		}
		for q := 0; q < n && (q < place || time[order[q]] == time[i]); q++ {
			j := order[q]
			if time[j] == time[i] && event[j] {
				continue
			}
			pairs++
			switch {
			case step < 0 || survival[i*steps+step] == survival[j*steps+step]:
				twice++
			case survival[i*steps+step] < survival[j*steps+step]:
				twice += 2
			}
		}
	}
	return float64(twice) / 2 / float64(pairs)
}
