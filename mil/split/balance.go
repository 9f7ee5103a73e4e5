package split

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Balance says how even the classes of site-preserved folds are.
type Balance struct {
	// Criterion is the sum over folds and classes of (k · patients in the fold − patients in all)²,
	// which Howard et al. 2021 (Nature Communications 12, 4423) minimise by quadratic programming.
	Criterion int `json:"criterion"`
	// Least is what no arrangement can go below.
	Least int `json:"least_possible"`
	// Best says that no arrangement is better. Without it there may be one, down to Least.
	Best bool `json:"best"`
	// OffEven is how many patients of a class a fold is away from an equal share (root mean square).
	OffEven float64 `json:"off_even_patients"`
}

// assign spreads units over parts of these shares (they sum to 1), each class in proportion. Large units
// choose first, equal ones in random order; each goes where the classes then are nearest to their share
// (χ²), of equal parts to the one with the fewest rows for its share, then at random. With one class to
// a unit and equal shares, no class differs by more than one patient between parts.
func assign(units []unit, shares []float64, rng *rand.Rand) []int {
	part := make([]int, len(units))
	if len(units) == 0 {
		return part
	}
	order := rng.Perm(len(units))
	slices.SortStableFunc(order, func(a, b int) int { return units[b].patients() - units[a].patients() })
	classes := len(units[0].count)
	total := make([]float64, classes)
	for _, u := range units {
		for c, n := range u.count {
			total[c] += float64(n)
		}
	}
	count, rows := make([]float64, len(shares)*classes), make([]float64, len(shares))
	for _, u := range order {
		best, least, fewest := -1, 0.0, 0.0
		for _, p := range rng.Perm(len(shares)) {
			worse := 0.0
			for c, n := range units[u].count {
				if n > 0 {
					even := shares[p] * total[c]
					worse += float64(n) * (2*(count[p*classes+c]-even) + float64(n)) / even
				}
			}
			filled := rows[p] / shares[p]
			if best < 0 || worse < least || worse == least && filled < fewest {
				best, least, fewest = p, worse, filled
			}
		}
		part[u] = best
		rows[best] += float64(len(units[u].rows))
		for c, n := range units[u].count {
			count[best*classes+c] += float64(n)
		}
	}
	return part
}

// preserve finds the folds of whole sites whose classes are most even by the criterion of Howard et al.: a
// short search that moves and swaps units from many starts, a branch and bound that proves its result
// or finds the best, as far as its limit of nodes allows, and where it does not a long search. What is
// proven is said.
func preserve(units []unit, k int, rng *rand.Rand) ([]int, Balance) {
	s := newFolding(units, k)
	b := Balance{Least: s.bound()}
	best := s.search(nil, shortSearch, b.Least, rng)
	if s.cost(best) > b.Least {
		proven := false
		if best, proven = s.prove(best, s.cost(best)); proven {
			b.Least = s.cost(best)
		} else {
			best = s.search(best, longSearch, b.Least, rng)
		}
	}
	b.Criterion = s.cost(best)
	b.Best = b.Criterion == b.Least
	b.OffEven = math.Sqrt(float64(b.Criterion)/float64(k*len(s.total))) / float64(k)
	return best, b
}

// folding is a problem of site-preserved folds.
type folding struct {
	k     int
	count [][]int // unit → class → patients
	total []int   // class → patients
}

func newFolding(units []unit, k int) *folding {
	s := &folding{k: k, total: make([]int, len(units[0].count))}
	for _, u := range units {
		s.count = append(s.count, u.count)
		for c, n := range u.count {
			s.total[c] += n
		}
	}
	return s
}

// in counts patients by fold and class, [k,C].
func (s *folding) in(fold []int) []int {
	n := make([]int, s.k*len(s.total))
	for u, f := range fold {
		for c, v := range s.count[u] {
			n[f*len(s.total)+c] += v
		}
	}
	return n
}

func (s *folding) cost(fold []int) (sum int) {
	for i, n := range s.in(fold) {
		d := s.k*n - s.total[i%len(s.total)]
		sum += d * d
	}
	return sum
}

const (
	shortSearch = 200_000    // trials of a move or swap
	longSearch  = 30_000_000 // the same; about a second
	proveNodes  = 500_000    // partial arrangements looked at
)

// search climbs from arrangements made by assign and from disturbed copies of the best so far, until one
// is as good as the bound or its steps are used up.
func (s *folding) search(best []int, limit, bound int, rng *rand.Rand) []int {
	units := make([]unit, len(s.count))
	for u := range units {
		units[u].count = s.count[u]
	}
	lowest := math.MaxInt
	if best != nil {
		lowest = s.cost(best)
	}
	for steps, try := 0, 0; steps < limit && lowest > bound; try++ {
		fold := slices.Clone(best)
		if try%4 == 0 {
			fold = assign(units, equalShares(s.k), rng)
		} else {
			for range 2 + rng.IntN(4) {
				fold[rng.IntN(len(fold))] = rng.IntN(s.k)
			}
		}
		steps += s.climb(fold, rng)
		if c := s.cost(fold); c < lowest {
			best, lowest = fold, c
		}
	}
	return best
}

// climb moves single units and swaps pairs as long as that helps, and says how often it tried.
func (s *folding) climb(fold []int, rng *rand.Rand) (steps int) {
	in, classes := s.in(fold), len(s.total)
	// gain is by how much the cost falls when fold a loses and fold b gains v−w of each class.
	gain := func(a, b int, v, w []int) (sum int) {
		steps++
		for c := range classes {
			n := v[c]
			if w != nil {
				n -= w[c]
			}
			// (kx)² − (k(x−n))² with x from the even share, for both folds.
			sum += 2 * s.k * s.k * n * (in[a*classes+c] - in[b*classes+c] - n)
		}
		return sum
	}
	shift := func(u, to int) {
		for c, n := range s.count[u] {
			in[fold[u]*classes+c] -= n
			in[to*classes+c] += n
		}
		fold[u] = to
	}
	for improved := true; improved; {
		improved = false
		order := rng.Perm(len(fold))
		for i, u := range order {
			for to := range s.k {
				if to != fold[u] && gain(fold[u], to, s.count[u], nil) > 0 {
					shift(u, to)
					improved = true
				}
			}
			for _, v := range order[:i] {
				if a, b := fold[u], fold[v]; a != b && gain(a, b, s.count[u], s.count[v]) > 0 {
					shift(u, b)
					shift(v, a)
					improved = true
				}
			}
		}
	}
	return steps
}

// bound is a cost that no arrangement is below. For each class by itself: its j largest units lie in at
// most j folds, so the j fullest folds hold at least as much as they. The most even sums of whole
// patients under that are: a unit larger than an equal share of what is left has a fold alone, and the
// rest is even.
func (s *folding) bound() (sum int) {
	for c, total := range s.total {
		sizes := make([]int, len(s.count))
		for u := range s.count {
			sizes[u] = s.count[u][c]
		}
		slices.Sort(sizes)
		left, folds := total, s.k
		for i := len(sizes) - 1; i >= 0 && folds > 1 && sizes[i]*folds > left; i-- {
			d := s.k*sizes[i] - total
			sum += d * d
			left -= sizes[i]
			folds--
		}
		sum += even(left, folds, s.k, total)
	}
	return sum
}

// even is the cost of n patients spread over folds as evenly as whole ones can be.
func even(n, folds, k, total int) int {
	low, more := n/folds, n%folds
	a, b := k*low-total, k*(low+1)-total
	return (folds-more)*a*a + more*b*b
}

// prove looks through all arrangements, leaving out those that cannot be better than the best known. It
// returns the best, and whether it came to the end.
func (s *folding) prove(best []int, cost int) ([]int, bool) {
	classes := len(s.total)
	order := make([]int, len(s.count))
	size := func(u int) int { return unit{count: s.count[u]}.patients() }
	for u := range order {
		order[u] = u
	}
	slices.SortStableFunc(order, func(a, b int) int { return size(b) - size(a) })
	// left is what units from a place in order on still bring, by class.
	left := make([][]int, len(order)+1)
	left[len(order)] = make([]int, classes)
	for i := len(order) - 1; i >= 0; i-- {
		left[i] = slices.Clone(left[i+1])
		for c, n := range s.count[order[i]] {
			left[i][c] += n
		}
	}
	fold, in, sorted := make([]int, len(order)), make([]int, s.k*classes), make([]int, s.k)
	nodes := 0
	// least fills the emptiest folds up with what is left, each class by itself.
	least := func(place int) (sum int) {
		for c, total := range s.total {
			for f := range s.k {
				sorted[f] = in[f*classes+c]
			}
			slices.Sort(sorted)
			pool, folds := left[place][c], 0
			for folds < s.k && (folds == 0 || pool > folds*sorted[folds]) {
				pool += sorted[folds]
				folds++
			}
			sum += even(pool, folds, s.k, total)
			for _, n := range sorted[folds:] {
				sum += (s.k*n - total) * (s.k*n - total)
			}
		}
		return sum
	}
	var down func(place, used int) bool
	down = func(place, used int) bool {
		if nodes++; nodes > proveNodes {
			return false
		}
		if least(place) >= cost {
			return true
		}
		if place == len(order) { // least is its cost, and lower than the best
			cost = least(place)
			best = slices.Clone(fold)
			return true
		}
		u := order[place]
		for f := range min(used+1, s.k) { // folds without a unit are all alike
			fold[u] = f
			for c, n := range s.count[u] {
				in[f*classes+c] += n
			}
			done := down(place+1, max(used, f+1))
			for c, n := range s.count[u] {
				in[f*classes+c] -= n
			}
			if !done {
				return false
			}
		}
		return true
	}
	done := down(0, 0)
	return best, done
}
