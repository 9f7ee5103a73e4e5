package mil

import (
	"context"
	"math"
	"slices"

	"coverslip/internal/nn"
)

// pieceRows is how many instances are in memory at once of a bag that is worked through in pieces.
const pieceRows = 8192

// pooling is the pooled row of a bag that is read in pieces, and what its gradient needs of the whole.
type pooling struct {
	n      int
	heads  int
	z      []float32 // [heads·width], or of models that classify instances all of their logits, [n,C]
	top    []float64 // of each head's logits
	sum    []float64 // of e^(logit-top)
	logits []float32 // [n,heads]
	best   []int32   // of max pooling: the row each column comes from
}

// stream is the forward and backward pass over a bag of more rows than pieceRows, whole or some of it. The bag is read
// twice: once for what is pooled, which the classifier's gradient is taken at, and once to carry that gradient
// back through each piece. It is exact: the gradient of a weighted sum by a row needs only the sum itself.
func (t *trainer) stream(ctx context.Context, p *pooled, bag Bag, class int, rows []int32, seed uint32) (float64, error) {
	pool, err := p.streamForward(ctx, t.mem, bag, t.scale, rows, seed, true)
	if err != nil {
		return 0, err
	}
	params := t.net.params()
	weight := t.weight[class]
	if p.c.Model == Max { // only the rows that were taken have a gradient
		in, err := rowsOf(ctx, bag, t.scale, unique(pool.best))
		if err != nil {
			return 0, err
		}
		g := newGraph(&t.c, t.mem, len(in.x), true)
		defer g.Close()
		r := p.forward(&step{seed: seed, rows: unique(pool.best), class: class}, g.Constant(len(in.x)/t.dim, t.dim, in.x))
		zero(params)
		return g.Backward(nn.Scale(weight, r.lossOf(class)))
	}

	// The classifier, on what was pooled.
	z := nn.NewParam("pooled", len(pool.z)/pool.width(p), pool.width(p))
	z.Value = pool.z
	g := newGraph(&t.c, t.mem, len(z.Value), true)
	var logits *nn.Node
	if p.c.instance() {
		logits = p.poolClasses(g.Param(z))
	} else {
		logits = p.classify(g.Param(z))
	}
	bagWeight := weight
	if p.c.clam() {
		bagWeight *= p.c.BagWeight
	}
	zero(params)
	loss, err := g.Backward(nn.Scale(bagWeight, nn.CrossEntropy(logits, []int{class}, nil)))
	g.Close()
	if err != nil {
		return 0, err
	}
	t.gather(params, 0, 1, false)
	if p.c.clam() {
		zero(params)
		more, err := t.streamClusters(ctx, p, pool, bag, class, rows, seed, weight*(1-p.c.BagWeight))
		if err != nil {
			return 0, err
		}
		loss += more
		t.gather(params, 1, 1, false)
	}
	if len(p.layers.dense) == 0 && p.gate == nil && !p.c.instance() { // nothing is learned before pooling
		t.gather(params, 2, 0, true)
		return loss, nil
	}

	d := p.layers.width
	dot := make([]float64, pool.heads) // z·dz of each head
	for h := range dot {
		if !p.c.instance() {
			dot[h] = nn.Dot(pool.z[h*d:(h+1)*d], z.Grad[h*d:(h+1)*d])
		}
	}
	err = pieces(ctx, bag, t.scale, rows, func(from int, at []int32, x []float32) error {
		g := newGraph(&t.c, t.mem, len(x), true)
		defer g.Close()
		n := len(x) / t.dim
		h, a := p.rows(&step{seed: seed, rows: at, class: class}, g.Constant(n, t.dim, x))
		var carried *nn.Node
		switch {
		case p.c.instance():
			carried = nn.Apply(inject(z.Grad[from*p.classes:(from+n)*p.classes]), 1, 1, p.out.Apply(h))
		case a == nil:
			carried = nn.Apply(injectMean(z.Grad, pool.n), 1, 1, h)
		default:
			carried = nn.Apply(injectWeighted(pool, z.Grad, dot, d), 1, 1, h, a)
		}
		zero(params)
		if _, err := g.Backward(carried); err != nil {
			return err
		}
		t.gather(params, 2+from, 1, from+n == pool.n)
		return nil
	})
	return loss, err
}

// zero clears gradients of parameters that the next graph may not hold.
func zero(params []*nn.Param) {
	for _, p := range params {
		if !p.Fixed {
			if len(p.Grad) != len(p.Value) {
				p.Grad = make([]float32, len(p.Value))
			}
			clear(p.Grad)
		}
	}
}

func (l *pooling) width(p *pooled) int {
	if p.c.instance() {
		return p.classes
	}
	return len(l.z)
}

// streamForward pools a bag in pieces.
func (p *pooled) streamForward(ctx context.Context, mem *nn.Memory, bag Bag, s scale, rows []int32, seed uint32, train bool) (*pooling, error) {
	d := p.layers.width
	l := &pooling{n: bag.Len(), heads: 1}
	if rows != nil {
		l.n = len(rows)
	}
	if p.c.Model == CLAMMB {
		l.heads = p.classes
	}
	sums := make([]float64, l.heads*d)
	l.top, l.sum = make([]float64, l.heads), make([]float64, l.heads)
	for h := range l.top {
		l.top[h] = math.Inf(-1)
	}
	if p.c.Model == Max {
		l.z, l.best = make([]float32, d), make([]int32, d)
	}
	err := pieces(ctx, bag, s, rows, func(from int, at []int32, x []float32) error {
		g := newGraph(p.c, mem, len(x), train)
		defer g.Close()
		n := len(x) / bag.Dim()
		h, a := p.rows(&step{seed: seed, rows: at, class: -1}, g.Constant(n, bag.Dim(), x))
		keep := []*nn.Node{h}
		if p.c.instance() {
			keep = []*nn.Node{p.out.Apply(h)}
		}
		if a != nil {
			keep = append(keep, a)
		}
		if err := g.Forward(keep...); err != nil {
			return err
		}
		values := keep[0].Value()
		switch {
		case p.c.instance():
			l.z = append(l.z, values...)
		case p.c.Model == Max:
			for i := range n {
				for k, v := range values[i*d : (i+1)*d] {
					if from+i == 0 || v > l.z[k] {
						l.z[k], l.best[k] = v, at[i]
					}
				}
			}
		case a == nil:
			for i, v := range values {
				sums[i%d] += float64(v)
			}
		default:
			l.add(sums, values, a.Value(), d)
		}
		return nil
	})
	switch {
	case p.c.Model == Max || p.c.instance():
	case l.logits == nil:
		l.z = scaled(sums, func(int) float64 { return float64(l.n) })
	default:
		l.z = scaled(sums, func(i int) float64 { return l.sum[i/d] })
	}
	return l, err
}

func scaled(sums []float64, by func(i int) float64) []float32 {
	z := make([]float32, len(sums))
	for i, v := range sums {
		z[i] = float32(v / by(i))
	}
	return z
}

// add takes a piece into the weighted sums, whose weights are e^(logit-top): a higher top scales what is there down.
func (l *pooling) add(sums []float64, h, a []float32, d int) {
	n := len(h) / d
	l.logits = append(l.logits, a...)
	w := make([]float32, n*l.heads)
	for k := range l.heads {
		top := l.top[k]
		for i := range n {
			top = math.Max(top, float64(a[i*l.heads+k]))
		}
		if top > l.top[k] {
			by := math.Exp(l.top[k] - top)
			l.sum[k] *= by
			for j := range d {
				sums[k*d+j] *= by
			}
			l.top[k] = top
		}
		for i := range n {
			e := math.Exp(float64(a[i*l.heads+k]) - top)
			w[i*l.heads+k] = float32(e)
			l.sum[k] += e
		}
	}
	part := make([]float32, l.heads*d)
	nn.Gemm(true, false, l.heads, d, n, 1, w, l.heads, h, d, 0, part, d)
	for i, v := range part {
		sums[i] += float64(v)
	}
}

// weights are those of all rows, [n,heads].
func (l *pooling) weights() []float32 {
	w := make([]float32, len(l.logits))
	for i, a := range l.logits {
		k := i % l.heads
		w[i] = float32(math.Exp(float64(a)-l.top[k]) / l.sum[k])
	}
	return w
}

// pieces reads rows of a bag, scaled, with their numbers; from counts among those read.
func pieces(ctx context.Context, bag Bag, s scale, rows []int32, f func(from int, at []int32, x []float32) error) error {
	var buffer []float32
	done := 0
	return eachOf(ctx, bag, &buffer, func(from int, x []float32) error {
		n, d := len(x)/bag.Dim(), bag.Dim()
		at := make([]int32, 0, n)
		if rows == nil {
			for i := range n {
				at = append(at, int32(from+i)) //nolint:gosec // a number of rows, or of epochs
			}
		} else {
			first, _ := slices.BinarySearch(rows, int32(from))  //nolint:gosec // a number of rows, or of epochs
			last, _ := slices.BinarySearch(rows, int32(from+n)) //nolint:gosec // a number of rows, or of epochs
			at = rows[first:last]
			for k, r := range at {
				copy(x[k*d:(k+1)*d], x[(int(r)-from)*d:(int(r)-from+1)*d])
			}
			x = x[:len(at)*d]
		}
		if len(at) == 0 {
			return nil
		}
		s.apply(x)
		err := f(done, at, x)
		done += len(at)
		return err
	})
}

func unique(rows []int32) []int32 { return slices.Compact(slices.Sorted(slices.Values(rows))) }

// rowsOf reads the rows named, rising, one by one.
func rowsOf(ctx context.Context, bag Bag, s scale, rows []int32) (*instances, error) {
	d := bag.Dim()
	in := &instances{x: make([]float32, len(rows)*d)}
	for k, r := range rows {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := bag.Features(in.x[k*d:(k+1)*d], int(r), 1); err != nil {
			return nil, err
		}
	}
	s.apply(in.x)
	return in, nil
}

// streamClusters does CLAM's clusters on the rows that are in them.
func (t *trainer) streamClusters(ctx context.Context, p *pooled, l *pooling, bag Bag, class int, rows []int32, seed uint32, by float64) (float64, error) {
	k := min(p.c.Cluster, l.n/2)
	var members []int32
	for c := range p.classes {
		if c == class || p.c.Exclusive {
			order := byRank(l.logits, l.heads, min(c, l.heads-1))
			for i := range k {
				members = append(members, int32(order[i]), int32(order[len(order)-1-i])) //nolint:gosec // a number of rows, or of epochs
			}
		}
	}
	members = unique(members)
	logits, at := make([]float32, 0, len(members)*l.heads), make([]int32, len(members))
	for i, m := range members {
		logits = append(logits, l.logits[int(m)*l.heads:(int(m)+1)*l.heads]...)
		at[i] = m
		if rows != nil {
			at[i] = rows[m]
		}
	}
	in, err := rowsOf(ctx, bag, t.scale, at)
	if err != nil {
		return 0, err
	}
	g := newGraph(&t.c, t.mem, len(in.x), true)
	defer g.Close()
	h := p.layers.apply(&step{seed: seed, rows: at, class: class}, g.Constant(len(at), t.dim, in.x))
	a := g.Constant(len(at), l.heads, logits)
	loss, err := g.Backward(nn.Scale(by, nn.Apply(clusters[float32](p.clustering(class, k)), 1, 1, a, h, g.Param(p.cluster.W), g.Param(p.cluster.B))))
	return loss, err
}

// inject hands a known gradient on to its input; its value is no loss.
func inject(gradient []float32) nn.Kernel[float32] {
	return nn.Kernel[float32]{Name: "inject", DropOut: true, DropIn: []bool{true},
		Forward:  func(out []float32, _ [][]float32) { out[0] = 0 },
		Backward: func(din, _ [][]float32, _, _ []float32) { copy(din[0], gradient) }}
}

// injectMean is the gradient by the rows of a piece, dz that by the mean of n rows.
func injectMean(dz []float32, n int) nn.Kernel[float32] {
	return nn.Kernel[float32]{Name: "inject mean", DropOut: true, DropIn: []bool{true},
		Forward: func(out []float32, _ [][]float32) { out[0] = 0 },
		Backward: func(din, _ [][]float32, _, _ []float32) {
			for i := range din[0] {
				din[0][i] = dz[i%len(dz)] / float32(n)
			}
		}}
}

// injectWeighted is the gradient by the rows of a piece, [n,d], and by their attention logits, [n,heads], where dz is
// that by z = Σ w·h with w the softmax over the whole bag: w·dz, and w·(h·dz − z·dz).
func injectWeighted(l *pooling, dz []float32, dot []float64, d int) nn.Kernel[float32] {
	return nn.Kernel[float32]{Name: "inject weighted", DropOut: true,
		Forward: func(out []float32, _ [][]float32) { out[0] = 0 },
		Backward: func(din, in [][]float32, _, _ []float32) {
			h, a := in[0], in[1]
			n := len(h) / d
			w := make([]float32, n*l.heads)
			for i := range w {
				k := i % l.heads
				w[i] = float32(math.Exp(float64(a[i])-l.top[k]) / l.sum[k])
			}
			nn.Gemm(false, true, n, l.heads, d, 1, h, d, dz, d, 0, din[1], l.heads)
			for i := range w {
				din[1][i] = w[i] * (din[1][i] - float32(dot[i%l.heads]))
			}
			if din[0] != nil {
				nn.Gemm(false, false, n, d, l.heads, 1, w, l.heads, dz, d, 0, din[0], d)
			}
		}}
}
