package slidessl

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"

	"coverslip"
	"coverslip/internal/nn"
	"coverslip/slidessl/sparse"
	"coverslip/slidessl/view"
)

// Architecture is the shape of an aggregator that learns.
//
//	features [n,Input] → centred, scaled → stem [n,Stem] → body → readout over tiles or sites → [bags,Dim]
//
// The stem is linear and starts as the features that vary most, as they are, and the blocks of mlp, local and
// attention start as the identity: learning begins at mean (or mean+sd) pooling and moves away from it.
type Architecture struct {
	// Kind is the body:
	//   - prototypes: which of Prototypes kinds of tissue a tile is like, soft and learned, beside the tile itself and the
	//     mean of its place and the eight around it. Tiles are compared after the mean of their slide was taken off, so
	//     that stain and scanner, which all tiles of a slide share, do not decide (see prototypes);
	//   - sparse: two blocks of sparse convolutions over the map of tiles (Giga-SSL, arXiv 2212.03273);
	//   - mlp: residual blocks h + W·ReLU(BN(V·h)) on each tile for itself, no map;
	//   - local: the same on each tile beside the mean of its place and the eight around it, which has an eighth of
	//     Width: how tissue is arranged shows in how that mean varies. What goes into the blocks is read out beside
	//     what comes out, so that nothing is lost that pooling knows: twice as many numbers;
	//   - attention: as mlp, and a readout weighted by gated attention (Ilse et al., arXiv 1802.04712).
	Kind  string `json:"kind" yaml:"kind"`
	Input int    `json:"input" yaml:"input,omitempty"` // length of the encoder's features
	// Stem is the width behind the stem of sparse; 0 leaves features as they are. That of the others is Width.
	Stem   int `json:"stem,omitempty" yaml:"stem,omitempty"`
	Width  int `json:"width" yaml:"width"`
	Blocks int `json:"blocks,omitempty" yaml:"blocks,omitempty"` // of mlp and attention
	Heads  int `json:"heads,omitempty" yaml:"heads,omitempty"`   // of attention
	// Prototypes is how many there are, of prototypes.
	Prototypes int    `json:"prototypes,omitempty" yaml:"prototypes,omitempty"`
	Readout    string `json:"readout" yaml:"readout"` // mean, or mean+sd
}

// DefaultArchitecture is the published one of sparse, and for the others what did best on small cohorts
// (docs/PRETRAIN.md), for features of this length. All give 512 numbers.
func DefaultArchitecture(kind string, input int) Architecture {
	a := Architecture{Kind: kind, Input: input, Width: 256, Readout: "mean+sd"}
	switch kind {
	case "prototypes":
		a.Width, a.Prototypes = 128, 128
	case "sparse":
		a.Width, a.Readout = 512, "mean"
		if input != 256 {
			a.Stem = 256
		}
	case "mlp":
		a.Blocks = 1
	case "local":
		a.Blocks, a.Width = 1, 128
	case "attention":
		a.Blocks, a.Heads = 1, 4
	}
	return a
}

// Kinds and readouts there are.
var (
	Kinds    = []string{"prototypes", "mlp", "local", "attention", "sparse"}
	Readouts = []string{"mean", "mean+sd"}
)

// Check says what is wrong with an architecture.
func (a Architecture) Check() error {
	bad := func(why string, args ...any) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "read the architecture", Err: fmt.Errorf(why, args...), Hint: "docs/PRETRAIN.md lists the settings"}
	}
	switch {
	case !slices.Contains(Kinds, a.Kind):
		return bad("there is no aggregator %q, only %v", a.Kind, Kinds)
	case !slices.Contains(Readouts, a.Readout):
		return bad("there is no readout %q, only %v", a.Readout, Readouts)
	case a.Input < 1 || a.Input > 1<<16 || a.Stem < 0 || a.Stem > 1<<14 || a.Width < 1 || a.Width > 1<<14:
		return bad("widths of %d, %d and %d", a.Input, a.Stem, a.Width)
	case a.Kind != "sparse" && (a.Blocks < 0 || a.Blocks > 64):
		return bad("%d blocks", a.Blocks)
	case a.Kind == "prototypes" && (a.Prototypes < 2 || a.Prototypes > 1<<14 || a.Blocks > 0):
		return bad("%d prototypes and %d blocks, of which it has none", a.Prototypes, a.Blocks)
	case (a.Kind == "local" || a.Kind == "prototypes") && a.Width < 2:
		return bad("a width of %d, of which nothing is left for a tile itself", a.Width)
	case a.Kind == "attention" && (a.Heads < 1 || a.Heads > 256 || a.Heads > a.Width):
		return bad("%d heads", a.Heads)
	}
	return nil
}

// Dim is the length of what it gives.
func (a Architecture) Dim() int {
	d := a.Width
	if a.Kind == "attention" {
		d = a.Width / a.Heads * a.Heads
	}
	switch a.Kind {
	case "local":
		d *= 2
	case "prototypes":
		d += a.Prototypes
	}
	if a.Readout == "mean+sd" {
		d *= 2
	}
	return d
}

// weights is how many numbers its matrices have.
func (a Architecture) weights() int {
	in, n := a.Input, 0
	if to := a.stem(); to > 0 {
		in, n = to, a.Input*to
	}
	switch a.Kind {
	case "sparse":
		return n + (10*in+27*a.Width)*a.Width
	case "prototypes":
		return n + in*a.Prototypes
	}
	return n + 4*a.Blocks*a.Width*a.Width
}

// Network is an aggregator of some architecture with its weights.
type Network struct {
	Architecture Architecture

	mean, scale       *nn.Param // of the encoder's features, fixed
	outMean, outScale *nn.Param // of what it gives for whole slides, fixed: see standardise
	stem              *nn.Dense // nil without one
	stemOnce          sync.Once
	stemTakes         []int // see chosen
	sparse            *sparse.Network
	blocks            []mlpBlock
	prototypes        *nn.Dense
	gate              *nn.Dense // [width, 2·hidden]
	heads             *nn.Dense
}

type mlpBlock struct {
	in, out *nn.Dense
	norm    *nn.BatchNorm
}

// stem is the width behind the stem, 0 without one.
func (a Architecture) stem() int {
	switch a.Kind {
	case "sparse":
		return a.Stem
	case "local":
		return a.Width - a.around()
	case "prototypes":
		return 2 * a.Width
	}
	return a.Width
}

// around is how much of the width of local and prototypes is of the places around.
func (a Architecture) around() int { return max(a.Width/8, 1) }

// NewNetwork draws the weights of an architecture that was checked.
func NewNetwork(a Architecture, rng *rand.Rand) *Network {
	n := &Network{Architecture: a, mean: nn.NewParam("input.mean", 1, a.Input), scale: nn.NewParam("input.scale", 1, a.Input)}
	n.outMean, n.outScale = nn.NewParam("output.mean", 1, a.Dim()), nn.NewParam("output.scale", 1, a.Dim())
	for _, p := range []*nn.Param{n.mean, n.scale, n.outMean, n.outScale} {
		p.Fixed = true
	}
	for _, p := range []*nn.Param{n.scale, n.outScale} {
		for i := range p.Value {
			p.Value[i] = 1
		}
	}
	in := a.Input
	if to := a.stem(); to > 0 {
		n.stem = nn.NewDense("stem", in, to, true, rng)
		in = to
	}
	switch a.Kind {
	case "sparse":
		n.sparse = sparse.New(in, a.Width, rng)
		return n
	case "prototypes":
		n.stem.W.Fixed, n.stem.B.Fixed = true, true
		n.prototypes = nn.NewDense("prototypes", in, a.Prototypes, true, rng)
		return n
	}
	for i := range a.Blocks {
		name := fmt.Sprintf("block%d", i+1)
		b := mlpBlock{in: nn.NewDense(name+".in", a.Width, 2*a.Width, false, rng), out: nn.NewDense(name+".out", 2*a.Width, a.Width, false, rng), norm: nn.NewBatchNorm(name+".norm", 2*a.Width)}
		clear(b.out.W.Value) // a block starts as the identity
		n.blocks = append(n.blocks, b)
	}
	if a.Kind == "attention" {
		const hidden = 128
		n.gate = nn.NewDense("gate", a.Width, 2*hidden, true, rng)
		n.heads = nn.NewDense("heads", hidden, a.Heads, false, rng)
	}
	return n
}

// Params are all of them, in order.
func (n *Network) Params() []*nn.Param {
	all := []*nn.Param{n.mean, n.scale, n.outMean, n.outScale}
	if n.stem != nil {
		all = append(all, n.stem.Params()...)
	}
	switch {
	case n.sparse != nil:
		return append(all, n.sparse.Params()...)
	case n.prototypes != nil:
		return append(all, n.prototypes.Params()...)
	}
	for _, b := range n.blocks {
		all = append(append(append(all, b.in.Params()...), b.norm.Params()...), b.out.Params()...)
	}
	if n.gate != nil {
		all = append(append(all, n.gate.Params()...), n.heads.Params()...)
	}
	return all
}

// Forward puts the network into a graph: [bags,Dim].
func (n *Network) Forward(g *nn.Graph, b view.Batch) *nn.Node {
	chosen := n.chosen()
	if chosen != nil && b.Dim == n.Architecture.Input { // else these are they
		b.X, b.Dim = columns(b.X, b.Dim, chosen), len(chosen)
	}
	x, bags := b.X, b.Bags
	var sites []nn.Site
	if slices.Contains([]string{"sparse", "local", "prototypes"}, n.Architecture.Kind) {
		x, sites = sparse.Merge(b)
		bags = nn.BagsOf(sites, len(b.Bags)-1)
	}
	h := n.enter(g, x, chosen)
	if n.sparse != nil {
		h, bags = n.sparse.Forward(h, sites, len(b.Bags)-1)
		return n.read(h, bags)
	}
	switch n.Architecture.Kind {
	case "prototypes":
		return n.read(nn.Beside(n.beside(nn.Columns(h, 0, n.Architecture.Width-n.Architecture.around()), sites), n.likeness(h, bags, b.Means, chosen)), bags)
	case "local":
		h = n.beside(h, sites)
	}
	in := h
	for _, b := range n.blocks {
		h = nn.Add(h, b.out.Apply(b.norm.Apply(b.in.Apply(h), nil, true)))
	}
	switch n.Architecture.Kind {
	case "local":
		return n.read(nn.Beside(in, h), bags)
	case "attention":
		return n.attend(h, bags)
	}
	return n.read(h, bags)
}

// beside puts the mean of the first features over the places around beside what tiles have.
func (n *Network) beside(h *nn.Node, sites []nn.Site) *nn.Node {
	return nn.Beside(h, sparse.Around(nn.Columns(h, 0, n.Architecture.around()), sites))
}

// chosen are the features that the stem takes as they are, in its order, where they are fewer than there are, it does
// nothing else and is not learned: then the others need not be looked at, and the result has the same bits. It is nil
// otherwise.
func (n *Network) chosen() []int {
	if n.stem == nil || !n.stem.W.Fixed {
		return nil
	}
	n.stemOnce.Do(func() { n.stemTakes = n.taken() })
	return n.stemTakes
}

func (n *Network) taken() []int {
	to := n.Architecture.stem()
	if to >= n.Architecture.Input {
		return nil
	}
	chosen := make([]int, to)
	found := 0
	for i, w := range n.stem.W.Value {
		if w == 0 {
			continue
		}
		if w != 1 || chosen[i%to] != 0 {
			return nil
		}
		chosen[i%to] = i/to + 1
		found++
	}
	if found < to || slices.ContainsFunc(n.stem.B.Value, func(v float32) bool { return v != 0 }) {
		return nil
	}
	for j := range chosen {
		chosen[j]--
	}
	return chosen
}

// columns are some of the columns of x [n,d], in the given order.
func columns(x []float32, d int, chosen []int) []float32 {
	n, to := len(x)/d, len(chosen)
	out := make([]float32, n*to)
	nn.ParallelRows(n, to, func(from, end int) {
		for i := from; i < end; i++ {
			row, dst := x[i*d:(i+1)*d], out[i*to:(i+1)*to]
			for j, k := range chosen {
				dst[j] = row[k]
			}
		}
	})
	return out
}

// enter takes features into the network: less their mean, divided by what the scale says, through the stem. They are
// the chosen ones, if any were.
func (n *Network) enter(g *nn.Graph, x []float32, chosen []int) *nn.Node {
	mean, scale := n.mean.Value, n.scale.Value
	if chosen != nil {
		mean, scale = columns(mean, len(mean), chosen), columns(scale, len(scale), chosen)
	}
	d := len(mean)
	out := make([]float32, len(x))
	nn.ParallelRows(len(x)/d, 2*d, func(from, to int) {
		for i := from; i < to; i++ {
			for k, v := range x[i*d : (i+1)*d] {
				out[i*d+k] = (v - mean[k]) * scale[k]
			}
		}
	})
	h := g.Constant(len(x)/d, d, out)
	if n.stem == nil || chosen != nil {
		return h
	}
	return n.stem.Apply(h)
}

func (n *Network) read(h *nn.Node, bags nn.Segments) *nn.Node {
	if n.Architecture.Readout == "mean+sd" {
		return nn.SegmentMeanSD(h, bags)
	}
	return nn.SegmentMean(h, bags)
}

// attend weighs tiles by gated attention. Each head reads its own part of the width.
func (n *Network) attend(h *nn.Node, bags nn.Segments) *nn.Node {
	weights := nn.SegmentSoftmax(n.heads.Apply(nn.Gate(n.gate.Apply(h))), bags)
	part := n.Architecture.Width / n.Architecture.Heads
	var means, squares []*nn.Node
	for k := range n.Architecture.Heads {
		w, x := nn.Columns(weights, k, k+1), nn.Columns(h, k*part, (k+1)*part)
		means = append(means, nn.SegmentWeighted(x, w, bags))
		if n.Architecture.Readout == "mean+sd" {
			squares = append(squares, nn.SegmentWeighted(nn.Mul(x, x), w, bags))
		}
	}
	mean := nn.Beside(means...)
	if squares == nil {
		return mean
	}
	return nn.Beside(mean, nn.SD(mean, nn.Beside(squares...)))
}

// Fit sets what the network knows of the encoder's features before it learns: their mean and spread, as the
// stem's start those that vary most, and prototypes. Principal components were no better a start: brought to equal
// spread, as embeddings are, many small ones are noise, and single features are not. sample is [n,Input], of which
// slides says which rows are of one slide.
func (n *Network) Fit(sample []float32, slides nn.Segments, rng *rand.Rand) {
	d := n.Architecture.Input
	rows := float64(len(sample) / d)
	mean, variance := make([]float64, d), make([]float64, d)
	for i, v := range sample {
		mean[i%d] += float64(v) / rows
	}
	for i, v := range sample {
		variance[i%d] += (float64(v) - mean[i%d]) * (float64(v) - mean[i%d]) / rows
	}
	var total float64
	order := make([]int, d)
	for k := range order {
		order[k] = k
		total += variance[k]
		n.mean.Value[k] = float32(mean[k])
	}
	// One scale for all: what varies little should not be made to.
	scale := 1 / math.Sqrt(max(total/float64(d), 1e-12))
	for k := range n.scale.Value {
		n.scale.Value[k] = float32(scale)
	}
	if n.stem == nil {
		return
	}
	if n.prototypes != nil {
		if inside := within(sample, d, slides); slices.Max(inside) > 0 { // else slides have one tile each
			variance = inside
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(variance[b], variance[a]) })
	clear(n.stem.W.Value)
	clear(n.stem.B.Value)
	n.stemOnce = sync.Once{}
	to := n.Architecture.stem()
	order = order[:min(to, d)]
	for j, k := range order {
		n.stem.W.Value[k*to+j] = 1
	}
	if n.prototypes != nil {
		n.findPrototypes(sample, slides, order, scale, rng)
	}
}
