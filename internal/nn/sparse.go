package nn

// Site is an active place of one map of a batch.
type Site struct {
	Map  int32
	X, Y int32 // not negative
}

// Rulebook says, for each offset of a convolution's kernel, which input row meets it for which output row
// (Graham et al., arXiv 1711.10275). It is built once for the maps of a batch and serves every layer that
// convolves them alike.
type Rulebook struct {
	In    int    // input rows
	Sites []Site // of the output rows
	Rules []Rule // of each offset of the kernel, row by row
}

// Rule pairs input rows with output rows; within one rule no row stands twice on the same side.
type Rule struct {
	In, Out []int32
	whole   bool // every row with itself
}

// Submanifold is a 3 × 3 convolution whose active output sites are its input's. Sites must differ.
func Submanifold(sites []Site) *Rulebook {
	places := newPlaces(sites)
	b := &Rulebook{In: len(sites), Sites: sites, Rules: make([]Rule, 9)}
	for dy := int32(-1); dy <= 1; dy++ {
		for dx := int32(-1); dx <= 1; dx++ {
			r := &b.Rules[(dy+1)*3+dx+1]
			if dx == 0 && dy == 0 {
				r.whole = true
				continue
			}
			for o, s := range sites {
				if i, there := places.at(Site{s.Map, s.X + dx, s.Y + dy}); there {
					r.In, r.Out = append(r.In, int32(i)), append(r.Out, int32(o)) //nolint:gosec // rows of a batch are few
				}
			}
		}
	}
	return b
}

// Strided is a 3 × 3 convolution with stride 2 and no padding: output (x,y) sees inputs 2x to 2x+2 and 2y to
// 2y+2 and is active where one of them is. The outputs of a map are those of a map of odd size with an odd
// half, at least 5, that holds its sites: what the published aggregator gives SparseConvNet for one slide.
func Strided(sites []Site) *Rulebook {
	b := &Rulebook{In: len(sites), Rules: make([]Rule, 9)}
	type edge struct{ x, y int32 }
	edges := map[int32]edge{}
	for _, s := range sites {
		e := edges[s.Map]
		edges[s.Map] = edge{max(e.x, s.X), max(e.y, s.Y)}
	}
	for m, e := range edges {
		edges[m] = edge{outputs(e.x), outputs(e.y)}
	}
	places := newPlaces(nil)
	for i, s := range sites {
		e := edges[s.Map]
		for dy := s.Y % 2; dy <= 2; dy += 2 {
			for dx := s.X % 2; dx <= 2; dx += 2 {
				o := Site{s.Map, (s.X - dx) / 2, (s.Y - dy) / 2}
				if dx > s.X || dy > s.Y || o.X >= e.x || o.Y >= e.y {
					continue
				}
				at, there := places.at(o)
				if !there {
					at = len(b.Sites)
					b.Sites = append(b.Sites, o)
					places.put(o, at)
				}
				r := &b.Rules[dy*3+dx]
				r.In, r.Out = append(r.In, int32(i)), append(r.Out, int32(at)) //nolint:gosec // rows of a batch are few
			}
		}
	}
	return b
}

// outputs is how many places a strided convolution has along an axis whose last site is at last.
func outputs(last int32) int32 {
	size := max(last+1, 5)
	if size%2 == 0 {
		size++
	}
	if size/2%2 == 0 {
		size += 2
	}
	return (size-3)/2 + 1
}

// Bags are the rows of each map of a batch of n; the sites must be grouped by map, and every map have one.
func (b *Rulebook) Bags(n int) Segments { return BagsOf(b.Sites, n) }

// BagsOf are the rows of each of n maps whose sites are grouped by map.
func BagsOf(sites []Site, n int) Segments {
	s := make(Segments, n+1)
	for _, site := range sites {
		s[site.Map+1]++
	}
	for i := range n {
		s[i+1] += s[i]
	}
	return s
}

// places finds sites: a hash table with open addressing.
type places struct {
	keys []Site
	rows []int32 // -1: empty
	n    int
}

func newPlaces(sites []Site) *places {
	size := 16
	for size < 2*len(sites) {
		size *= 2
	}
	p := &places{keys: make([]Site, size), rows: make([]int32, size)}
	for i := range p.rows {
		p.rows[i] = -1
	}
	for i, s := range sites {
		p.put(s, i)
	}
	return p
}

func (p *places) slot(s Site) int {
	h := (uint64(uint32(s.Map))*0x9e3779b97f4a7c15 ^ uint64(uint32(s.X))*0xc2b2ae3d27d4eb4f ^ uint64(uint32(s.Y))*0x165667b19e3779f9) //nolint:gosec // any bits will do
	h ^= h >> 29
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 32
	mask := len(p.rows) - 1                                // a power of two less one
	for i := int(h & uint64(mask)); ; i = (i + 1) & mask { //nolint:gosec // no larger than the mask
		if p.rows[i] < 0 || p.keys[i] == s {
			return i
		}
	}
}

func (p *places) at(s Site) (int, bool) {
	i := p.slot(s)
	return int(p.rows[i]), p.rows[i] >= 0
}

func (p *places) put(s Site, row int) {
	if 2*(p.n+1) > len(p.rows) {
		old := *p
		*p = places{keys: make([]Site, 2*len(old.rows)), rows: make([]int32, 2*len(old.rows))}
		for i := range p.rows {
			p.rows[i] = -1
		}
		for i, r := range old.rows {
			if r >= 0 {
				p.put(old.keys[i], int(r))
			}
		}
	}
	i := p.slot(s)
	if p.rows[i] < 0 {
		p.n++
	}
	p.keys[i], p.rows[i] = s, int32(row) //nolint:gosec // rows of a batch are few
}

// SparseConv convolves x [sites,in] by a rulebook, without bias: w is [9·in,out], one matrix an offset of
// the kernel, row by row. The result is [output sites,out].
func SparseConv(x, w *Node, b *Rulebook) *Node {
	if x.Rows != b.In || w.Rows != len(b.Rules)*x.Cols {
		panic("nn: a convolution's shapes do not fit")
	}
	return Apply(sparseConv[float32](x.Cols, w.Cols, b), len(b.Sites), w.Cols, x, w)
}

const convPiece = 512 // pairs that one worker gathers and multiplies at once

func sparseConv[T Float](cin, cout int, b *Rulebook) Kernel[T] {
	weights := func(w []T, k int) []T { return w[k*cin*cout : (k+1)*cin*cout] }
	return Kernel[T]{Name: "sparse convolution", DropOut: true,
		Forward: func(out []T, in [][]T) {
			product(b, out, in[0], cin, cout, false, func(k int) []T { return weights(in[1], k) })
		},
		Backward: func(din, in [][]T, _, dout []T) {
			if din[0] != nil {
				product(b, din[0], dout, cout, cin, true, func(k int) []T { return weights(in[1], k) })
			}
			if din[1] == nil {
				return
			}
			const chunk = 4 * convPiece
			longest := 0
			for _, r := range b.Rules {
				longest = max(longest, min(len(r.In), chunk))
			}
			xs, gs := make([]T, longest*cin), make([]T, longest*cout)
			for k, r := range b.Rules {
				dw := weights(din[1], k)
				if r.whole {
					Gemm(true, false, cin, cout, b.In, 1, in[0], cin, dout, cout, 0, dw, cout)
					continue
				}
				if len(r.In) == 0 {
					clear(dw)
				}
				for from := 0; from < len(r.In); from += chunk {
					n := min(chunk, len(r.In)-from)
					gatherRows(xs, in[0], r.In[from:from+n], cin)
					gatherRows(gs, dout, r.Out[from:from+n], cout)
					Gemm(true, false, cin, cout, n, 1, xs, cin, gs, cout, T(min(from, 1)), dw, cout)
				}
			}
		}}
}

// product writes into dst, for each rule, the rows of x it pairs, times w(rule): from inputs to outputs, or,
// back, from outputs to inputs with w transposed. x is [.,cx], dst [.,cd].
func product[T Float](b *Rulebook, dst, x []T, cx, cd int, back bool, w func(int) []T) {
	ldw := cd
	if back {
		ldw = cx
	}
	written := false
	for k, r := range b.Rules {
		if r.whole { // first, so that the others add to it
			Gemm(false, back, b.In, cd, cx, 1, x, cx, w(k), ldw, 0, dst, cd)
			written = true
		}
	}
	if !written {
		clear(dst)
	}
	for k, r := range b.Rules {
		from, to := r.In, r.Out
		if back {
			from, to = to, from
		}
		Parallel((len(from)+convPiece-1)/convPiece, func(i int) {
			n := min(convPiece, len(from)-i*convPiece)
			buffer := make([]T, n*(cx+cd))
			rows, product := buffer[:n*cx], buffer[n*cx:]
			gatherRows(rows, x, from[i*convPiece:i*convPiece+n], cx)
			gemm(false, back, n, cd, cx, 1, rows, cx, w(k), ldw, 0, product, cd)
			scatterRows(dst, product, to[i*convPiece:i*convPiece+n], cd)
		})
	}
}

// SparsePool averages x over each output's 3 × 3 inputs, absent ones counted as zeros: [output sites,d].
func SparsePool(x *Node, b *Rulebook) *Node {
	if x.Rows != b.In {
		panic("nn: a pooling's shapes do not fit")
	}
	return Apply(sparsePool[float32](x.Cols, b), len(b.Sites), x.Cols, x)
}

func sparsePool[T Float](d int, b *Rulebook) Kernel[T] {
	spread := func(dst, x []T, from, to func(Rule) []int32) {
		clear(dst)
		by := 1 / T(len(b.Rules))
		for _, r := range b.Rules {
			f, t := from(r), to(r)
			for i := range f {
				axpy(by, x[int(f[i])*d:(int(f[i])+1)*d], dst[int(t[i])*d:(int(t[i])+1)*d])
			}
			if r.whole {
				axpy(by, x, dst)
			}
		}
	}
	in, out := func(r Rule) []int32 { return r.In }, func(r Rule) []int32 { return r.Out }
	return Kernel[T]{Name: "sparse pooling", DropOut: true, DropIn: []bool{true},
		Forward:  func(o []T, i [][]T) { spread(o, i[0], in, out) },
		Backward: func(din, _ [][]T, _, dout []T) { spread(din[0], dout, out, in) }}
}

// Pairs is how many pairs of rows a rule has, in a book of so many input rows.
func (r Rule) Pairs(in int) int {
	if r.whole {
		return in
	}
	return len(r.In)
}

// Rows are the pairs of a rule, in a book of so many input rows.
func (r Rule) Rows(in int) (ins, outs []int32) {
	if !r.whole {
		return append([]int32{}, r.In...), append([]int32{}, r.Out...)
	}
	ins = make([]int32, in)
	for i := range ins {
		ins[i] = int32(i)
	}
	return ins, ins
}
