// Package vector finds the nearest of many vectors, exactly, in memory.
//
// Exact search over a matrix beats an approximate index up to several 100,000 vectors, and stays
// right under any filter. Where the vectors come from, and how the index keeps in step with a
// table, is left to whoever feeds it.
package vector

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"coverslip"
)

// Index holds vectors of one length under ids. It may be used from many goroutines at once:
// searches run side by side, and each sees every change either whole or not at all.
type Index struct {
	dim    int
	stride int // dim, rounded up to whole steps of dot4

	mu   sync.RWMutex
	rows []float32      // [N,stride], zero beyond dim
	ids  []string       // [N]
	code []code         // [N]; nil where rows have none
	ints []int8         // [N,stride], the rows' codes
	mean []float32      // [stride], that they are from
	last int            // how many rows it was the mean of
	row  map[string]int // of each id
}

// Hit is one answer of a search.
type Hit struct {
	ID         string
	Similarity float32 // cosine, -1 to 1
}

// New makes an empty index for vectors of dim values.
func New(dim int) *Index {
	if dim < 1 {
		panic("vector: dimension below 1")
	}
	stride := (dim + step - 1) / step * step
	return &Index{dim: dim, stride: stride, row: map[string]int{}, mean: make([]float32, stride)}
}

// Len is the number of vectors.
func (x *Index) Len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.ids)
}

// Dim is the length of its vectors.
func (x *Index) Dim() int { return x.dim }

// Check refuses what Find would: a q that Upsert would refuse and a k below 1 are Invalid.
func (x *Index) Check(q []float32, k int) error {
	_, err := x.asked(q, k)
	return err
}

// asked is the q of a search, of length 1.
func (x *Index) asked(q []float32, k int) ([]float32, error) {
	const op = "search"
	unit, err := x.normalised(op, q)
	if err == nil && k < 1 {
		err = &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf("%d answers were asked for", k), Hint: "ask for 1 or more"}
	}
	return unit, err
}

// Upsert puts a copy of v, brought to L2 norm 1, under id, in place of what was there. A vector of
// another length than the index holds, without a direction, or with values that are not finite is
// Invalid.
func (x *Index) Upsert(id string, v []float32) error {
	const op = "index vector"
	unit, err := x.normalised(op, v)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	i, there := x.row[id]
	if !there {
		i = len(x.ids)
		x.row[id] = i
		x.ids = append(x.ids, id)
		x.rows = append(x.rows, unit...)
		if x.coded() {
			x.code, x.ints = append(x.code, code{}), append(x.ints, make([]int8, x.stride)...)
		}
	}
	copy(x.at(i), unit)
	if x.coded() {
		x.code[i] = encode(x.intsAt(i), unit, x.mean)
		if len(x.ids) >= 2*x.last+64 {
			x.recode()
		}
	}
	return nil
}

// Remove takes out the vector under id. One that is not there counts as removed.
func (x *Index) Remove(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i, there := x.row[id]
	if !there {
		return
	}
	last := len(x.ids) - 1
	copy(x.at(i), x.at(last))
	x.ids[i] = x.ids[last]
	x.row[x.ids[i]] = i
	delete(x.row, id)
	x.ids[last] = ""
	x.ids, x.rows = x.ids[:last], x.rows[:last*x.stride]
	if x.coded() {
		copy(x.intsAt(i), x.intsAt(last))
		x.code[i] = x.code[last]
		x.code, x.ints = x.code[:last], x.ints[:last*x.stride]
	}
}

// recode takes codes from the mean of the rows there are now. It is called whenever they have doubled.
func (x *Index) recode() {
	sum := make([]float64, x.stride)
	for i := range x.ids {
		for j, v := range x.at(i) {
			sum[j] += float64(v)
		}
	}
	for j, s := range sum {
		x.mean[j] = float32(s / float64(len(x.ids)))
	}
	for i := range x.ids {
		x.code[i] = encode(x.intsAt(i), x.at(i), x.mean)
	}
	x.last = len(x.ids)
}

// coded reports whether rows have codes: where products of integers are fast, and fit.
func (x *Index) coded() bool { return wide && x.stride <= mostCoded }

func (x *Index) intsAt(i int) []int8 { return x.ints[i*x.stride : (i+1)*x.stride] }

func (x *Index) at(i int) []float32 { return x.rows[i*x.stride : (i+1)*x.stride] }

// Search returns the k vectors most similar to q among those that keep accepts (nil accepts all), the
// most similar first and equals in the order of their ids. There are fewer than k only if fewer are
// accepted. keep is asked about the ids that could be among the answers, from several goroutines at
// once, and must not use the index.
//
// A q that Upsert would refuse and a k below 1 are Invalid.
func (x *Index) Search(ctx context.Context, q []float32, k int, keep func(id string) bool) ([]Hit, error) {
	return x.Find(ctx, q, k, Among{Keep: keep})
}

// Among says which vectors may be answers. Zero fields let all be.
type Among struct {
	IDs   []string             // only these, each once, those that are there; nil: all. Worth it for a small part.
	Keep  func(id string) bool // only those; see Search
	After *Hit                 // only those behind this hit of an earlier search for the same vector
}

// Find is Search among some of the vectors. Pages read by After have no vector twice and skip none, as long
// as the index does not change.
func (x *Index) Find(ctx context.Context, q []float32, k int, among Among) ([]Hit, error) {
	const op = "search"
	unit, err := x.asked(q, k)
	if err != nil {
		return nil, err
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	rows := func(i int) int { return i }
	n := len(x.ids)
	if among.IDs != nil {
		some := make([]int, 0, len(among.IDs))
		for _, id := range among.IDs {
			if i, there := x.row[id]; there {
				some = append(some, i)
			}
		}
		slices.Sort(some) // as they lie in memory
		rows, n = func(i int) int { return some[i] }, len(some)
	}
	var ints queryCode
	if x.coded() {
		ints = encodeQuery(unit, x.mean)
	}
	blocks := (n + block - 1) / block
	best := make([]top, max(1, min(runtime.GOMAXPROCS(0), blocks)))
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range best {
		best[w].k = k
		wg.Go(func() {
			for ctx.Err() == nil {
				b := int(next.Add(1)) - 1
				if b >= blocks {
					return
				}
				x.scan(&best[w], unit, ints, b*block, min((b+1)*block, n), rows, among)
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Canceled, Op: op, Err: err}
	}
	var hits []Hit
	for _, t := range best {
		hits = append(hits, t.hits...)
	}
	slices.SortFunc(hits, compare)
	return hits[:min(k, len(hits))], nil
}

// block is how many rows a worker takes at a time: enough to be worth taking, few enough to share
// out evenly and to notice that the search was cancelled.
const block = 1024

// scan offers the rows from up to to of those that row names.
func (x *Index) scan(best *top, q []float32, ints queryCode, from, to int, row func(int) int, among Among) {
	offer := func(i int, similarity float32) {
		if len(best.hits) == best.k && similarity < best.hits[0].Similarity { // nearly all of them
			return
		}
		similarity = min(1, max(-1, similarity)) // unit vectors are of length 1 but for rounding
		if h := (Hit{x.ids[i], similarity}); best.wants(h) && (among.After == nil || compare(h, *among.After) > 0) && (among.Keep == nil || among.Keep(h.ID)) {
			best.add(h)
		}
	}
	i := from
	for ; i+4 <= to; i += 4 {
		a, b, c, d := row(i), row(i+1), row(i+2), row(i+3)
		if ints.values != nil && len(best.hits) == best.k { // who is not among the best by its code is not read
			s0, s1, s2, s3 := codes4(ints.values, x.intsAt(a), x.intsAt(b), x.intsAt(c), x.intsAt(d))
			least := best.hits[0].Similarity
			if ints.atMost(s0, x.code[a]) < least && ints.atMost(s1, x.code[b]) < least && ints.atMost(s2, x.code[c]) < least && ints.atMost(s3, x.code[d]) < least {
				continue
			}
		}
		s0, s1, s2, s3 := dot4(q, x.at(a), x.at(b), x.at(c), x.at(d))
		offer(a, s0)
		offer(b, s1)
		offer(c, s2)
		offer(d, s3)
	}
	for ; i < to; i++ {
		r := x.at(row(i))
		s, _, _, _ := dot4(q, r, r, r, r)
		offer(row(i), s)
	}
}

// normalised is v at norm 1, padded with zeros to whole steps of dot4.
func (x *Index) normalised(op string, v []float32) ([]float32, error) {
	if len(v) != x.dim {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf("a vector of %d values among vectors of %d", len(v), x.dim),
			Hint: "compare embeddings of one encoder and one aggregator"}
	}
	var square float64
	for _, f := range v {
		square += float64(f) * float64(f)
	}
	norm := math.Sqrt(square)
	if norm == 0 || math.IsNaN(norm) || math.IsInf(norm, 0) {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf("the vector has norm %v", norm),
			Hint: "give an embedding, which has a direction and finite values"}
	}
	unit := make([]float32, x.stride)
	for i, f := range v {
		unit[i] = float32(float64(f) / norm)
	}
	return unit, nil
}

// compare puts the better hit first.
func compare(a, b Hit) int {
	if c := cmp.Compare(b.Similarity, a.Similarity); c != 0 {
		return c
	}
	return cmp.Compare(a.ID, b.ID)
}

// top keeps the k best hits it is given: a heap with the worst at its root.
type top struct {
	k    int
	hits []Hit
}

func (t *top) wants(h Hit) bool { return len(t.hits) < t.k || compare(h, t.hits[0]) < 0 }

func (t *top) add(h Hit) {
	if len(t.hits) < t.k {
		t.hits = append(t.hits, h)
		for i := len(t.hits) - 1; i > 0; {
			parent := (i - 1) / 2
			if compare(t.hits[i], t.hits[parent]) < 0 {
				return
			}
			t.hits[i], t.hits[parent] = t.hits[parent], t.hits[i]
			i = parent
		}
		return
	}
	t.hits[0] = h
	for i := 0; ; {
		worst := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(t.hits); c++ {
			if compare(t.hits[c], t.hits[worst]) > 0 {
				worst = c
			}
		}
		if worst == i {
			return
		}
		t.hits[i], t.hits[worst] = t.hits[worst], t.hits[i]
		i = worst
	}
}
