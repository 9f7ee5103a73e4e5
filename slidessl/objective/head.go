package objective

import (
	"math"
	"math/rand/v2"
	"strconv"

	"coverslip/internal/nn"
)

// mlp are linear layers with a nonlinearity and a batch norm between them: ReLU then norm, as in Giga-SSL's
// projector, or norm then ReLU, as in BYOL's predictor.
type mlp struct {
	name      string
	linear    []*nn.Dense
	norm      []*nn.BatchNorm // one fewer
	normFirst bool
	unit      bool // the input's rows are brought to length 1
}

func newMLP(name string, normFirst bool, rng *rand.Rand, widths ...int) *mlp {
	m := &mlp{name: name, normFirst: normFirst}
	for i := 1; i < len(widths); i++ {
		layer := name + "." + strconv.Itoa(i)
		m.linear = append(m.linear, nn.NewDense(layer, widths[i-1], widths[i], true, rng))
		if i < len(widths)-1 {
			m.norm = append(m.norm, nn.NewBatchNorm(layer+".norm", widths[i]))
		}
	}
	return m
}

// apply runs the first layers of it.
func (m *mlp) apply(x *nn.Node, layers int) *nn.Node {
	if m.unit && layers > 0 {
		x = nn.Normalise(x)
	}
	for i := range layers {
		x = m.linear[i].Apply(x)
		switch {
		case i == len(m.norm):
		case m.normFirst:
			x = m.norm[i].Apply(x, nil, true)
		default:
			x = m.norm[i].Apply(nn.ReLU(x), nil, false)
		}
	}
	return x
}

func (m *mlp) params() (all []*nn.Param) {
	for i, l := range m.linear {
		all = append(all, l.Params()...)
		if i < len(m.norm) {
			all = append(all, m.norm[i].Params()...)
		}
	}
	return all
}

// average is a copy that nothing is learned of. Its norms keep running statistics of their own.
func (m *mlp) average() *mlp {
	a := &mlp{name: "average." + m.name, normFirst: m.normFirst, unit: m.unit}
	for _, l := range m.linear {
		a.linear = append(a.linear, &nn.Dense{W: averaged(l.W), B: averaged(l.B)})
	}
	for _, n := range m.norm {
		a.norm = append(a.norm, &nn.BatchNorm{Gamma: averaged(n.Gamma), Beta: averaged(n.Beta), Mean: averaged(n.Mean), Var: averaged(n.Var),
			Momentum: n.Momentum, Eps: n.Eps})
	}
	return a
}

func averaged(p *nn.Param) *nn.Param {
	a := nn.NewParam("average."+p.Name, p.Rows, p.Cols)
	copy(a.Value, p.Value)
	a.Plain, a.Fixed = p.Plain, true
	return a
}

// base is what objectives have in common: the projector, and averages of what is learned where the method
// keeps them.
type base struct {
	projector *mlp
	beside    []*nn.Param // learned, besides the projector

	target *mlp // the projector's average; nil without
	kept   []*nn.Param
	// follows are learned parameters with their averages.
	follows  [][2]*nn.Param
	momentum float64
	grows    bool // to 1 along half a cosine
}

func newBase(dim int, o Options, rng *rand.Rand) base {
	if o.Layers == NoProjector {
		return base{projector: newMLP("projector", false, rng, dim)}
	}
	widths := []int{dim}
	for range o.Layers - 1 {
		widths = append(widths, o.Hidden)
	}
	return base{projector: newMLP("projector", false, rng, append(widths, o.Out)...)}
}

// out is the width behind the projector.
func (b *base) out(dim int) int {
	if l := b.projector.linear; len(l) > 0 {
		return l[len(l)-1].W.Cols
	}
	return dim
}

// follow keeps averages of the projector and of more.
func (b *base) follow(momentum float64, grows bool, more ...*nn.Param) (averages []*nn.Param) {
	b.momentum, b.grows, b.target = momentum, grows, b.projector.average()
	learned, average := b.projector.params(), b.target.params()
	b.kept = append(b.kept, average...)
	for i, p := range learned {
		if !p.Fixed { // running statistics are those of the average's own batches
			b.follows = append(b.follows, [2]*nn.Param{p, average[i]})
		}
	}
	for _, p := range more {
		a := averaged(p)
		averages, b.kept = append(averages, a), append(b.kept, a)
		b.follows = append(b.follows, [2]*nn.Param{p, a})
	}
	return averages
}

// Params are the objective's.
func (b *base) Params() []*nn.Param { return append(b.projector.params(), b.beside...) }

// State is what the objective keeps.
func (b *base) State() []*nn.Param { return b.kept }

// Momentum is constant, or 1-(1-m)·(cos(π·step/steps)+1)/2 (Grill et al., arXiv 2006.07733).
func (b *base) Momentum(step, steps int) (float64, bool) {
	if b.target == nil {
		return 0, false
	}
	if !b.grows || steps < 1 {
		return b.momentum, true
	}
	return 1 - (1-b.momentum)*(math.Cos(math.Pi*float64(step)/float64(steps))+1)/2, true
}

// Stepped moves the averages.
func (b *base) Stepped(batch Batch) {
	m, _ := b.Momentum(batch.Step, batch.Steps)
	for _, f := range b.follows {
		for i, v := range f[0].Value {
			f[1].Value[i] = float32(m*float64(f[1].Value[i]) + (1-m)*float64(v))
		}
	}
}

// Labelled is false.
func (b *base) Labelled() bool { return false }

// Taps are the projector's layers.
func (b *base) Taps() (taps []string) {
	for i := range b.projector.linear {
		taps = append(taps, "projector."+strconv.Itoa(i+1))
	}
	return taps
}

// Tap is the output of one of them.
func (b *base) Tap(h *nn.Node, name string) *nn.Node {
	for i, tap := range b.Taps() {
		if tap == name {
			return b.projector.apply(h, i+1)
		}
	}
	panic("objective: no layer " + name)
}

// Which rows share a batch norm's statistics is part of a method: all views of one size at once (together),
// or each view by itself (apart).
type norms bool

const (
	together norms = false
	apart    norms = true
)

// through applies layers to the first views of h and keeps the order of its rows.
func (b Batch) through(m *mlp, h *nn.Node, views int, how norms) *nn.Node {
	ends := []int{min(b.Global, views), views}
	if how == apart {
		ends = ends[:0]
		for v := range views {
			ends = append(ends, v+1)
		}
	}
	var parts []*nn.Node
	from := 0
	for _, to := range ends {
		if to > from {
			part := h
			if from > 0 || to*b.Slides != h.Rows {
				part = nn.Rows(h, span(from*b.Slides, to*b.Slides))
			}
			parts = append(parts, m.apply(part, len(m.linear)))
			from = to
		}
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return nn.Above(parts...)
}

// mean is the mean of losses.
func mean(losses []*nn.Node) *nn.Node {
	sum := losses[0]
	for _, l := range losses[1:] {
		sum = nn.Add(sum, l)
	}
	if len(losses) == 1 {
		return sum
	}
	return nn.Scale(1/float64(len(losses)), sum)
}

// watch is loss, and shows see the value of x when the graph runs.
func watch(loss, x *nn.Node, see func(x []float32)) *nn.Node {
	return nn.Apply(nn.Kernel[float32]{Name: "watch", DropOut: true, DropIn: []bool{true, true},
		Forward:  func(out []float32, in [][]float32) { copy(out, in[0]); see(in[1]) },
		Backward: func(din, _ [][]float32, _, dout []float32) { copy(din[0], dout) }}, 1, 1, loss, x)
}
