package mil

import (
	"fmt"
	"math"
	"math/rand/v2"

	"coverslip/internal/nn"
)

// transMIL lets instances speak to each other (Shao et al.): a class token and the instances, filled up to a
// square, go through two layers of Nyström attention with a convolution of the square between them (PPEG), and
// the token is classified.
type transMIL struct {
	c       *Config
	classes int
	layers  layers
	token   *nn.Param // [1,width]
	first   *nystrom
	second  *nystrom
	ppeg    [3]*nn.Param // 7², 5² and 3² by width
	bias    [3]*nn.Param
	norm    normParams
	out     *nn.Dense
}

type normParams struct{ gamma, beta *nn.Param }

func newNormParams(name string, d int) normParams {
	n := normParams{nn.NewParam(name+".weight", 1, d), nn.NewParam(name+".bias", 1, d)}
	for i := range n.gamma.Value {
		n.gamma.Value[i] = 1
	}
	n.gamma.Plain, n.beta.Plain = true, true
	return n
}

func (n normParams) apply(x *nn.Node) *nn.Node {
	return nn.LayerNorm(x, x.Graph().Param(n.gamma), x.Graph().Param(n.beta))
}

var ppegSizes = [3]int{7, 5, 3}

func newTransMIL(c *Config, dim, classes int, rng *rand.Rand) *transMIL {
	t := &transMIL{c: c, classes: classes, layers: newLayers(c, dim, rng)}
	d := t.layers.width
	t.token = nn.NewParam("token", 1, d)
	nn.Normal(t.token, 1, rng)
	t.first, t.second = newNystrom("layer1", c, d, rng), newNystrom("layer2", c, d, rng)
	for i, k := range ppegSizes {
		t.ppeg[i], t.bias[i] = nn.NewParam(fmt.Sprintf("ppeg.%d.weight", k), k*k, d), nn.NewParam(fmt.Sprintf("ppeg.%d.bias", k), 1, d)
		nn.Uniform(t.ppeg[i], 1/float64(k), rng) // as PyTorch: by the square root of what one place sees
		nn.Uniform(t.bias[i], 1/float64(k), rng)
		t.bias[i].Plain = true
	}
	t.norm = newNormParams("norm", d)
	t.out = nn.NewDense("classifier", d, classes, true, rng)
	return t
}

func (t *transMIL) params() []*nn.Param {
	all := append(t.layers.params(), t.token)
	all = append(all, t.first.params()...)
	for i := range ppegSizes {
		all = append(all, t.ppeg[i], t.bias[i])
	}
	all = append(all, t.second.params()...)
	all = append(all, t.norm.gamma, t.norm.beta)
	return append(all, t.out.Params()...)
}

func (t *transMIL) forward(s *step, x *nn.Node) result {
	g, n := x.Graph(), x.Rows
	h := t.layers.apply(s, x)
	side := int(math.Ceil(math.Sqrt(float64(n))))
	if side*side != n { // the first ones again, as its authors do
		at := make([]int32, side*side)
		for i := range at {
			at[i] = int32(i % n) //nolint:gosec // a number of rows, or of epochs
		}
		h = nn.Rows(h, at)
	}
	h = nn.Above(g.Param(t.token), h)
	h, _ = t.first.apply(s, h)

	tiles := make([]int32, side*side)
	for i := range tiles {
		tiles[i] = int32(i + 1)
	}
	taps := nn.Apply(oneKernel[float32](t.layers.width), 49, t.layers.width, g.Param(t.ppeg[0]), g.Param(t.ppeg[1]), g.Param(t.ppeg[2]))
	seen := nn.Depthwise(nn.Rows(h, tiles), taps, side, side, 7, 7)
	seen = nn.Apply(addRows[float32](t.layers.width), seen.Rows, seen.Cols, seen, g.Param(t.bias[0]), g.Param(t.bias[1]), g.Param(t.bias[2]))
	h = nn.Above(nn.Rows(h, []int32{0}), seen)

	h, weights := t.second.apply(s, h)
	token := t.norm.apply(nn.Rows(h, []int32{0}))
	return result{logits: t.out.Apply(token), keep: weights.keep, explain: func() (attention, _ []float32) {
		return weights.ofFirst(n), nil
	}}
}

// nystrom is x + attention(norm(x)), where attention goes by way of landmarks, means of stretches of the sequence
// (Xiong et al., arXiv 2102.03902), and a convolution of the values along it is added.
type nystrom struct {
	name string
	c    *Config
	d    int
	norm normParams
	qkv  *nn.Dense // no bias
	conv *nn.Param // [ResidualWidth,heads]
	out  *nn.Dense
}

func newNystrom(name string, c *Config, d int, rng *rand.Rand) *nystrom {
	a := &nystrom{name: name, c: c, d: d, norm: newNormParams(name+".norm", d)}
	a.qkv = nn.NewDense(name+".qkv", d, 3*d, false, rng)
	a.conv = nn.NewParam(name+".conv", c.ResidualWidth, c.Heads)
	nn.Uniform(a.conv, 1/math.Sqrt(float64(c.ResidualWidth)), rng)
	a.out = nn.NewDense(name+".out", d, d, true, rng)
	return a
}

func (a *nystrom) params() []*nn.Param {
	all := append([]*nn.Param{a.norm.gamma, a.norm.beta}, a.qkv.Params()...)
	return append(append(all, a.conv), a.out.Params()...)
}

const nystromDropout = 0.1

func (a *nystrom) apply(s *step, x *nn.Node) (*nn.Node, weights) {
	g, heads, width := x.Graph(), a.c.Heads, a.d/a.c.Heads
	h := a.norm.apply(x)
	// A landmark stands for two places at least: its authors fill shorter sequences up with zeros, which then are
	// attended to like tiles.
	m := min(a.c.Landmarks, (x.Rows+1)/2)
	stretch := (x.Rows + m - 1) / m
	pad := m*stretch - x.Rows
	if pad > 0 { // zeros in front
		h = nn.Above(g.Constant(pad, a.d, make([]float32, pad*a.d)), h)
	}
	n := h.Rows
	qkv := a.qkv.Apply(h)
	q := nn.Scale(1/math.Sqrt(float64(width)), nn.Columns(qkv, 0, a.d))
	k, v := nn.Columns(qkv, a.d, 2*a.d), nn.Columns(qkv, 2*a.d, 3*a.d)
	cuts := make(nn.Segments, m+1)
	for i := range cuts {
		cuts[i] = i * stretch
	}
	ql, kl := nn.SegmentMean(q, cuts), nn.SegmentMean(k, cuts)
	head := func(x *nn.Node, i int) *nn.Node { return nn.Columns(x, i*width, (i+1)*width) }

	among := make([]*nn.Node, heads)
	for i := range among {
		among[i] = nn.Softmax(nn.MatMul(head(ql, i), head(kl, i), false, true))
	}
	inverses := nn.PseudoInverse(nn.Above(among...), a.c.PinvSteps)
	w := weights{pad: pad, n: n, m: m}
	parts := make([]*nn.Node, heads)
	for i := range parts {
		at := make([]int32, m)
		for j := range at {
			at[j] = int32(i*m + j) //nolint:gosec // a number of rows, or of epochs
		}
		to := nn.Softmax(nn.MatMul(head(q, i), head(kl, i), false, true))   // [n,m]
		from := nn.Softmax(nn.MatMul(head(ql, i), head(k, i), false, true)) // [m,n]
		inverse := nn.Rows(inverses, at)
		parts[i] = nn.MatMul(nn.MatMul(to, inverse, false, false), nn.MatMul(from, head(v, i), false, false), false, false)
		w.keep = append(w.keep, to, inverse, from)
	}
	y := nn.Beside(parts...)
	taps := nn.Apply(perHead[float32](a.c.ResidualWidth, heads, width), a.c.ResidualWidth, a.d, g.Param(a.conv))
	y = a.out.Apply(nn.Add(y, nn.Depthwise(v, taps, n, 1, a.c.ResidualWidth, 1)))
	if pad > 0 {
		at := make([]int32, x.Rows)
		for i := range at {
			at[i] = int32(pad + i) //nolint:gosec // a number of rows, or of epochs
		}
		y = nn.Rows(y, at)
	}
	return nn.Add(x, nn.Drop(y, s.mask(nystromDropout))), w
}

// weights are the factors of an attention.
type weights struct {
	pad, n, m int
	keep      []*nn.Node // of each head: to, inverse, from
}

// ofFirst is how much the first of the sequence attends to each of the n behind it, the mean over heads. The
// approximation makes some of them negative.
func (w weights) ofFirst(n int) []float32 {
	sum, heads := make([]float32, w.n), len(w.keep)/3
	for i := range heads {
		to, inverse, from := w.keep[3*i].Value(), w.keep[3*i+1].Value(), w.keep[3*i+2].Value()
		by := make([]float32, w.m)
		nn.Gemm(false, false, 1, w.m, w.m, 1, to[w.pad*w.m:(w.pad+1)*w.m], w.m, inverse, w.m, 0, by, w.m)
		nn.Gemm(false, false, 1, w.n, w.m, 1/float32(heads), by, w.m, from, w.n, 1, sum, w.n)
	}
	return sum[w.pad+1 : w.pad+1+n]
}

// oneKernel adds up the 7², 5² and 3² kernels around one centre, and the identity: PPEG is one convolution.
func oneKernel[T nn.Float](d int) nn.Kernel[T] {
	place := func(size, tap int) int {
		off := (7 - size) / 2
		return (tap/size+off)*7 + tap%size + off
	}
	return nn.Kernel[T]{Name: "one kernel", DropOut: true, DropIn: []bool{true, true, true},
		Forward: func(out []T, in [][]T) {
			clear(out)
			for k := range d {
				out[24*d+k] = 1
			}
			for i, size := range ppegSizes {
				for tap := range size * size {
					for k := range d {
						out[place(size, tap)*d+k] += in[i][tap*d+k]
					}
				}
			}
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			for i, size := range ppegSizes {
				for tap := range size * size {
					at := place(size, tap)
					copy(din[i][tap*d:(tap+1)*d], dout[at*d:(at+1)*d])
				}
			}
		}}
}

// addRows adds rows [1,d] to every row.
func addRows[T nn.Float](d int) nn.Kernel[T] {
	return nn.Kernel[T]{Name: "add rows", DropOut: true, DropIn: []bool{true, true, true, true},
		Forward: func(out []T, in [][]T) {
			for i, v := range in[0] {
				out[i] = v + in[1][i%d] + in[2][i%d] + in[3][i%d]
			}
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			if din[0] != nil {
				copy(din[0], dout)
			}
			sums := make([]float64, d)
			for i, g := range dout {
				sums[i%d] += float64(g)
			}
			for _, b := range din[1:] {
				for k := range b {
					b[k] = T(sums[k])
				}
			}
		}}
}

// perHead repeats each head's column for all numbers of that head.
func perHead[T nn.Float](rows, heads, width int) nn.Kernel[T] {
	return nn.Kernel[T]{Name: "per head", DropOut: true, DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			for i := range out {
				out[i] = in[0][i/width]
			}
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			clear(din[0])
			for i, g := range dout {
				din[0][i/width] += g
			}
		}}
}
