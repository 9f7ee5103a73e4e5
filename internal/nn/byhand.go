package nn

import "strconv"

// ByHand is one training step of the sparse aggregator with projector and NT-Xent written out, without a
// graph: what the graph's time and memory are measured against. Its buffers live from step to step, and
// gradients that are dead are written over.
type ByHand struct {
	Convs  [4]*Param     // block1.conv1, block1.conv2, block2.conv1, block2.conv2: [9·in,out]
	Norms  [4]*BatchNorm // behind each
	Short  *Param        // [in,out]
	Norm   *BatchNorm
	Layers [3]*Dense    // of the projector
	Heads  []*BatchNorm // behind the first two
	Tau    float64

	buffers map[string][]float32
	bytes   int64
}

// Params are all that it learns.
func (b *ByHand) Params() []*Param {
	all := []*Param{b.Short}
	for i := range b.Convs {
		all = append(append(all, b.Convs[i]), b.Norms[i].Params()...)
	}
	all = append(all, b.Norm.Params()...)
	for _, l := range b.Layers {
		all = append(all, l.Params()...)
	}
	for _, n := range b.Heads {
		all = append(all, n.Params()...)
	}
	return all
}

// Bytes is what its buffers take.
func (b *ByHand) Bytes() int64 { return b.bytes }

func (b *ByHand) buffer(name string, n int) []float32 {
	x := b.buffers[name]
	if cap(x) < n {
		if b.buffers == nil {
			b.buffers = map[string][]float32{}
		}
		b.bytes += 4 * int64(class(n)-cap(x))
		x = make([]float32, class(n))
		b.buffers[name] = x
	}
	return x[:n]
}

func gradOf(p *Param) []float32 {
	if p.Grad == nil {
		p.Grad = make([]float32, len(p.Value))
	}
	return p.Grad
}

func (b *ByHand) norm(n *BatchNorm, rows int, relu bool) Kernel[float32] {
	d := n.Gamma.Cols
	k := norm[float32]{rows: rows, cols: d, eps: n.Eps, relu: relu, train: true, mean: make([]float32, d), variance: make([]float32, d)}
	return k.kernel()
}

// Step computes the loss of x [sites,in] and all gradients. half halves the maps, same keeps them, and bags
// are the rows of each map behind them.
func (b *ByHand) Step(x []float32, half, same *Rulebook, bags Segments) float64 {
	w := b.Convs[0].Cols
	in := b.Short.Rows
	n := len(half.Sites)
	books := [4]*Rulebook{half, same, same, same}
	widths := [4]int{in, w, w, w}
	var convs, norms [4]Kernel[float32]
	for i := range convs {
		convs[i], norms[i] = sparseConv[float32](widths[i], w, books[i]), b.norm(b.Norms[i], n, true)
	}
	pool, short, normShort := sparsePool[float32](in, half), linear[float32](n, in, w), b.norm(b.Norm, n, false)
	buf := func(name string) []float32 { return b.buffer(name, n*w) }

	// Forward.
	pooled, s0, s1 := b.buffer("pooled", n*in), buf("s0"), buf("s1")
	pool.Forward(pooled, [][]float32{x})
	short.Forward(s0, [][]float32{pooled, b.Short.Value})
	normShort.Forward(s1, [][]float32{s0, b.Norm.Gamma.Value, b.Norm.Beta.Value})
	a := [4][]float32{buf("a0"), buf("a1"), buf("a2"), buf("a3")}
	y := [4][]float32{buf("y0"), buf("y1"), buf("y2"), buf("y3")}
	from := x
	for i := range convs {
		convs[i].Forward(a[i], [][]float32{from, b.Convs[i].Value})
		args := [][]float32{a[i], b.Norms[i].Gamma.Value, b.Norms[i].Beta.Value}
		switch i {
		case 1:
			args = append(args, s1)
		case 3:
			args = append(args, y[1])
		}
		norms[i].Forward(y[i], args)
		from = y[i]
	}
	rows := len(bags) - 1
	mean := segmentMean[float32](w, bags)
	h := b.buffer("h", rows*w)
	mean.Forward(h, [][]float32{y[3]})
	z, acts := h, [][]float32{h}
	var lins [3]Kernel[float32]
	apply := func(i int) []float32 { // a linear layer
		l := b.Layers[i]
		lins[i] = linear[float32](rows, l.W.Rows, l.W.Cols)
		out := b.buffer("l"+strconv.Itoa(i), rows*l.W.Cols)
		lins[i].Forward(out, [][]float32{z, l.W.Value, l.B.Value})
		return out
	}
	var heads []Kernel[float32]
	var rs [][]float32
	for i, head := range b.Heads {
		out := apply(i)
		r := b.buffer("r"+strconv.Itoa(i), len(out))
		act := relu[float32]()
		act.Forward(r, [][]float32{out})
		k := b.norm(head, rows, false)
		z = b.buffer("n"+strconv.Itoa(i), len(out))
		k.Forward(z, [][]float32{r, head.Gamma.Value, head.Beta.Value})
		heads, rs, acts = append(heads, k), append(rs, r), append(acts, z)
	}
	z = apply(2)
	loss := [1]float32{}
	lossKernel := ntxent[float32](rows, b.Layers[2].W.Cols, b.Tau)
	lossKernel.Forward(loss[:], [][]float32{z})

	// Backward.
	g := b.buffer("gz", len(z))
	lossKernel.Backward([][]float32{g}, nil, nil, []float32{1})
	for i := 2; i >= 0; i-- {
		l := b.Layers[i]
		to := b.buffer("gl"+strconv.Itoa(i), rows*l.W.Rows)
		lins[i].Backward([][]float32{to, gradOf(l.W), gradOf(l.B)}, [][]float32{acts[i], l.W.Value, nil}, nil, g)
		g = to
		if i > 0 {
			k := i - 1
			gr := b.buffer("gr"+strconv.Itoa(k), len(g))
			heads[k].Backward([][]float32{gr, gradOf(b.Heads[k].Gamma), gradOf(b.Heads[k].Beta)}, [][]float32{rs[k], b.Heads[k].Gamma.Value, nil}, nil, g)
			reluBack(g, rs[k], gr)
		}
	}
	g1, g2, residual, residual2 := buf("g1"), buf("g2"), buf("residual"), buf("residual2")
	mean.Backward([][]float32{g1}, nil, nil, g)
	for i := 3; i >= 0; i-- {
		din := [][]float32{g2, gradOf(b.Norms[i].Gamma), gradOf(b.Norms[i].Beta)}
		switch i {
		case 3:
			din = append(din, residual)
		case 1:
			din = append(din, residual2)
		}
		norms[i].Backward(din, [][]float32{a[i], b.Norms[i].Gamma.Value, nil, nil}, y[i], g1)
		input, dx := x, []float32(nil)
		if i > 0 {
			input, dx = y[i-1], g1
		}
		convs[i].Backward([][]float32{dx, gradOf(b.Convs[i])}, [][]float32{input, b.Convs[i].Value}, nil, g2)
		if i == 2 {
			axpy(1, residual, g1)
		}
	}
	normShort.Backward([][]float32{g2, gradOf(b.Norm.Gamma), gradOf(b.Norm.Beta)}, [][]float32{s0, b.Norm.Gamma.Value, nil}, nil, residual2)
	short.Backward([][]float32{nil, gradOf(b.Short)}, [][]float32{pooled, b.Short.Value}, nil, g2)
	return float64(loss[0])
}
