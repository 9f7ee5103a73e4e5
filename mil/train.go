package mil

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"coverslip"
	"coverslip/internal/nn"
)

// TrainOptions are what does not change the classifier.
type TrainOptions struct {
	// Checkpoint is a file that holds the state after every epoch; where it is there already and belongs to the
	// same training, that goes on from it, to the same bits. Empty: none is kept.
	Checkpoint string
	// Progress is called after every epoch.
	Progress func(Epoch)
}

// Epoch is what one pass over the training bags came to.
type Epoch struct {
	Epoch int     `json:"epoch"` // from 1
	Loss  float64 `json:"loss"`  // mean over its steps
	Val   float64 `json:"val"`   // log-loss of the validation bags; NaN without any
}

// Report is how training went.
type Report struct {
	Epochs []Epoch
	Best   int // the epoch whose classifier it is
}

// Train fits a classifier to the bags numbered in train, of which bag i is of class y[i]. Where val is not empty, the
// classifier is that of the epoch with the least log-loss on it, and training ends when that does not fall for
// c.Patience epochs. Rows must not stand in both; mil/split sees to patients.
//
// Invalid are: a class without a training bag, an empty bag, a bag of another length of features, features that are
// no numbers (Unusable finds these before), settings that are impossible, and a loss that becomes so.
func Train(ctx context.Context, data Dataset, y []int, classes int, train, val []int, c Config, o TrainOptions) (*Classifier, Report, error) {
	if err := c.check(classes); err != nil {
		return nil, Report{}, err
	}
	if err := populated(y, classes, train); err != nil {
		return nil, Report{}, err
	}
	t, err := newTrainer(ctx, data, y, classes, train, val, c)
	if err != nil {
		return nil, Report{}, err
	}
	defer t.mem.Free()
	state, err := t.resume(o.Checkpoint)
	if err != nil {
		return nil, Report{}, err
	}
	for state.epoch < c.Epochs && !state.finished(c.Patience) {
		e, err := t.epoch(ctx, state.epoch)
		if err != nil {
			return nil, Report{}, coverslip.Doing(fmt.Sprintf("train %s, epoch %d", c.Model, state.epoch+1), err)
		}
		state.epoch++
		state.report.Epochs = append(state.report.Epochs, e)
		if len(val) == 0 || e.Val < state.least {
			state.least, state.report.Best = e.Val, state.epoch
			keep(state.best, t.net.params())
		}
		if o.Checkpoint != "" {
			if err := t.save(o.Checkpoint, state); err != nil {
				return nil, Report{}, err
			}
		}
		if o.Progress != nil {
			o.Progress(e)
		}
	}
	keep(t.net.params(), state.best)
	return &Classifier{Config: c, Dim: t.dim, Classes: classes, net: t.net, scale: t.scale}, state.report, nil
}

func populated(y []int, classes int, train []int) error {
	n := make([]int, classes)
	for _, i := range train {
		if y[i] < 0 || y[i] >= classes {
			panic("mil: a class is out of range")
		}
		n[y[i]]++
	}
	if c := slices.Index(n, 0); c >= 0 {
		return invalid(fmt.Errorf("class %d has no training bag", c), "use fewer folds, or leave the class out")
	}
	return nil
}

func keep(dst, src []*nn.Param) {
	for i, p := range src {
		copy(dst[i].Value, p.Value)
	}
}

// trainer is one training under way.
type trainer struct {
	data       Dataset
	y          []int
	classes    int
	train, val []int
	c          Config
	dim        int

	net    network
	scale  scale
	opt    nn.Optimizer
	mem    *nn.Memory
	weight []float64 // of a bag, by class
	cache  map[int]*instances
	sum    []*nn.Param // gradients of a batch, or of the pieces of a bag
}

// instances are some rows of a bag, scaled.
type instances struct {
	x      []float32 // [n,D]
	coords []int64   // [n,2]
}

const maxCache = 64 << 20 // numbers of instances that are kept in memory: 256 MB

func newTrainer(ctx context.Context, data Dataset, y []int, classes int, train, val []int, c Config) (*trainer, error) {
	t := &trainer{data: data, y: y, classes: classes, train: train, val: val, c: c, mem: nn.NewMemory(), cache: map[int]*instances{}, weight: make([]float64, classes)}
	total := 0
	for _, i := range slices.Concat(train, val) {
		bag, err := data.Open(ctx, i)
		if err != nil {
			return nil, coverslip.At(data.Name(i), err)
		}
		n, d := bag.Len(), bag.Dim()
		if err := bag.Close(); err != nil {
			return nil, coverslip.At(data.Name(i), err)
		}
		total += n * d
		switch {
		case n == 0:
			return nil, coverslip.At(data.Name(i), invalid(errNoTiles, "leave the slide out"))
		case t.dim == 0:
			t.dim = d
		case d != t.dim:
			return nil, coverslip.At(data.Name(i), invalid(fmt.Errorf("its instances are of %d numbers, others of %d", d, t.dim), "use bags of one encoder"))
		}
	}
	count := make([]int, classes)
	for _, i := range train {
		count[y[i]]++
	}
	for k := range t.weight {
		t.weight[k] = 1
		if c.Balance == Weights {
			t.weight[k] = float64(len(train)) / float64(classes*count[k])
		}
	}
	t.scale = newScale(t.dim)
	if c.Standardise {
		if err := t.fitScale(ctx); err != nil {
			return nil, err
		}
	}
	if total > maxCache {
		t.cache = nil
	}
	t.net = newNetwork(&t.c, t.dim, classes, rand.New(rand.NewPCG(c.Seed, 0)))
	switch c.Optimizer {
	case "sgd":
		t.opt = nn.NewSGD(0.9, c.WeightDecay)
	case "adam":
		t.opt = nn.NewAdam(c.WeightDecay)
	default:
		t.opt = nn.NewAdamW(c.WeightDecay)
	}
	return t, nil
}

// fitScale takes the moments of the training instances, each bag counted by its rows.
func (t *trainer) fitScale(ctx context.Context) error {
	sum, square := make([]float64, t.dim), make([]float64, t.dim)
	shift := make([]float64, t.dim) // the first row: squares of what is far from zero lose digits
	rows, buffer := 0, []float32(nil)
	for _, i := range t.train {
		err := each(ctx, t.data, i, &buffer, func(_ int, x []float32) error {
			for k, v := range x {
				j := k % t.dim
				if rows == 0 && k < t.dim {
					shift[j] = float64(v)
				}
				d := float64(v) - shift[j]
				sum[j] += d
				square[j] += d * d
			}
			rows += len(x) / t.dim
			return nil
		})
		if err != nil {
			return err
		}
	}
	for j := range t.dim {
		mean := sum[j] / float64(rows)
		sd := math.Sqrt(max(square[j]/float64(rows)-mean*mean, 0))
		t.scale.mean.Value[j] = float32(mean + shift[j])
		if sd > 1e-7*math.Abs(mean+shift[j]) && sd > 0 { // else it does not vary
			t.scale.by.Value[j] = float32(1 / sd)
		}
	}
	return nil
}

// each reads a bag piece by piece and refuses what is no number.
func each(ctx context.Context, data Dataset, i int, buffer *[]float32, f func(from int, x []float32) error) error {
	bag, err := data.Open(ctx, i)
	if err != nil {
		return coverslip.At(data.Name(i), err)
	}
	defer bag.Close()
	return coverslip.At(data.Name(i), eachOf(ctx, bag, buffer, f))
}

func eachOf(ctx context.Context, bag Bag, buffer *[]float32, f func(from int, x []float32) error) error {
	for from := 0; from < bag.Len(); from += pieceRows {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(pieceRows, bag.Len()-from)
		if cap(*buffer) < n*bag.Dim() {
			*buffer = make([]float32, n*bag.Dim())
		}
		x := (*buffer)[:n*bag.Dim()]
		if err := bag.Features(x, from, n); err != nil {
			return err
		}
		if at := notFinite(x); at >= 0 {
			return invalid(fmt.Errorf("feature %d of tile %d is %g", at%bag.Dim(), from+at/bag.Dim(), x[at]), "leave the slide out, or encode it again")
		}
		if err := f(from, x); err != nil {
			return err
		}
	}
	return nil
}

// scale brings features to one scale. It is kept with the network.
type scale struct{ mean, by *nn.Param }

func newScale(dim int) scale {
	s := scale{nn.NewParam("scale.mean", 1, dim), nn.NewParam("scale.by", 1, dim)}
	for i := range s.by.Value {
		s.by.Value[i] = 1
	}
	s.mean.Fixed, s.by.Fixed = true, true
	return s
}

func (s scale) apply(x []float32) {
	mean, by := s.mean.Value, s.by.Value
	for len(x) > 0 {
		for j, v := range x[:len(mean)] {
			x[j] = (v - mean[j]) * by[j]
		}
		x = x[len(mean):]
	}
}

// epoch goes once over the training bags.
func (t *trainer) epoch(ctx context.Context, epoch int) (Epoch, error) {
	rng := rand.New(rand.NewPCG(t.c.Seed, uint64(epoch)+1)) //nolint:gosec // a number of rows, or of epochs
	order := t.order(rng)
	steps := (len(order) + t.c.Batch - 1) / t.c.Batch
	params := t.net.params()
	var losses float64
	for k := range steps {
		batch := order[k*t.c.Batch : min((k+1)*t.c.Batch, len(order))]
		for n, i := range batch {
			loss, err := t.bag(ctx, i, rng)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return Epoch{}, coverslip.At(t.data.Name(i), err)
			}
			losses += loss / float64(len(order))
			if len(batch) > 1 {
				t.gather(params, n, 1/float64(len(batch)), n == len(batch)-1)
			}
		}
		lr := t.c.LR
		if t.c.Cosine {
			lr = nn.Cosine(epoch*steps+k, t.c.Warmup*steps, t.c.Epochs*steps, t.c.LR)
		}
		t.opt.Step(params, lr)
	}
	e := Epoch{Epoch: epoch + 1, Loss: losses, Val: math.NaN()}
	if len(t.val) > 0 {
		e.Val = 0
		for _, i := range t.val {
			p, err := t.predict(ctx, i)
			if err != nil {
				return e, coverslip.At(t.data.Name(i), err)
			}
			e.Val -= math.Log(max(p[t.y[i]], 1e-15)) / float64(len(t.val))
		}
	}
	return e, nil
}

// gather adds up gradients, part after part, and leaves their sum in the parameters at the last one.
func (t *trainer) gather(params []*nn.Param, part int, by float64, last bool) {
	if t.sum == nil {
		for _, p := range params {
			t.sum = append(t.sum, nn.NewParam(p.Name, p.Rows, p.Cols))
		}
	}
	for i, p := range params {
		if p.Fixed {
			continue
		}
		s := t.sum[i].Value
		for j, g := range p.Grad {
			if part == 0 {
				s[j] = 0
			}
			s[j] += float32(by) * g
		}
		if last {
			copy(p.Grad, s)
		}
	}
}

// order is the bags of an epoch in turn.
func (t *trainer) order(rng *rand.Rand) []int {
	if t.c.Balance != Sampling {
		order := slices.Clone(t.train)
		rng.Shuffle(len(order), func(a, b int) { order[a], order[b] = order[b], order[a] })
		return order
	}
	of := make([][]int, t.classes)
	for _, i := range t.train {
		of[t.y[i]] = append(of[t.y[i]], i)
	}
	order := make([]int, len(t.train))
	for k := range order {
		mates := of[rng.IntN(t.classes)]
		order[k] = mates[rng.IntN(len(mates))]
	}
	return order
}

// bag does one bag's forward and backward pass; its gradients stand in the parameters.
func (t *trainer) bag(ctx context.Context, i int, rng *rand.Rand) (float64, error) {
	seed := rng.Uint32()
	if p, ok := t.net.(*pooled); ok {
		bag, err := t.data.Open(ctx, i)
		if err != nil {
			return 0, err
		}
		n := bag.Len()
		if n > pieceRows && (t.c.MaxTiles == 0 || t.c.MaxTiles > pieceRows) {
			defer bag.Close()
			return t.stream(ctx, p, bag, t.y[i], t.some(n, rng), seed)
		}
		if err := bag.Close(); err != nil {
			return 0, err
		}
	}
	in, err := t.load(ctx, i, rng)
	if err != nil {
		return 0, err
	}
	if t.c.clam() { // a bag of one tile has no clusters
		zero(t.net.params())
	}
	g := t.graph(len(in.x), true)
	defer g.Close()
	s := &step{seed: seed, coords: in.coords, class: t.y[i]}
	r := t.net.forward(s, g.Constant(len(in.x)/t.dim, t.dim, in.x))
	loss := r.lossOf(s.class)
	if w := t.weight[s.class]; w != 1 {
		loss = nn.Scale(w, loss)
	}
	return g.Backward(loss)
}

// lightNumbers is how many numbers of instances a graph may begin with that Gorgonia is left out of.
const lightNumbers = 4 << 20

func (t *trainer) graph(numbers int, train bool) *nn.Graph {
	return newGraph(&t.c, t.mem, numbers, train)
}

func newGraph(c *Config, mem *nn.Memory, numbers int, train bool) *nn.Graph {
	if numbers <= lightNumbers && c.Model != TransMIL && c.Model != Sparse || numbers < 1<<16 {
		return nn.NewLightGraph(mem, train)
	}
	return nn.NewGraph(mem, train)
}

// some are the rows of a step that uses not all of a bag, rising; nil where it does.
func (t *trainer) some(n int, rng *rand.Rand) []int32 {
	most := n
	if t.c.DropInstance > 0 {
		most = max(1, int(math.Round(float64(n)*(1-t.c.DropInstance))))
	}
	if t.c.MaxTiles > 0 {
		most = min(most, t.c.MaxTiles)
	}
	if most == n {
		return nil
	}
	rows := make([]int32, 0, most)
	for i := range n { // Knuth's selection sampling
		if rng.IntN(n-i) < most-len(rows) {
			rows = append(rows, int32(i))
		}
	}
	return rows
}

// load reads the rows of a bag for one step.
func (t *trainer) load(ctx context.Context, i int, rng *rand.Rand) (*instances, error) {
	if t.cache == nil {
		bag, err := t.data.Open(ctx, i)
		if err != nil {
			return nil, err
		}
		defer bag.Close()
		return readBag(ctx, bag, t.scale, t.some(bag.Len(), rng))
	}
	all, err := t.whole(ctx, i)
	if err != nil {
		return nil, err
	}
	n := len(all.x) / t.dim
	rows := t.some(n, rng)
	if rows == nil {
		return all, nil
	}
	return all.some(rows, t.dim), nil
}

// some are the rows named.
func (in *instances) some(rows []int32, dim int) *instances {
	some := &instances{x: make([]float32, len(rows)*dim), coords: make([]int64, 2*len(rows))}
	for k, r := range rows {
		copy(some.x[k*dim:(k+1)*dim], in.x[int(r)*dim:])
		copy(some.coords[2*k:2*k+2], in.coords[2*r:])
	}
	return some
}

// whole is a bag of those kept in memory.
func (t *trainer) whole(ctx context.Context, i int) (*instances, error) {
	if in, there := t.cache[i]; there {
		return in, nil
	}
	bag, err := t.data.Open(ctx, i)
	if err != nil {
		return nil, err
	}
	defer bag.Close()
	in, err := readBag(ctx, bag, t.scale, nil)
	if err == nil {
		t.cache[i] = in
	}
	return in, err
}

// readBag reads the rows named, rising, or all.
func readBag(ctx context.Context, bag Bag, s scale, rows []int32) (*instances, error) {
	n, d := bag.Len(), bag.Dim()
	if rows != nil {
		n = len(rows)
	}
	in := &instances{x: make([]float32, n*d), coords: make([]int64, 2*n)}
	err := pieces(ctx, bag, s, rows, func(from int, _ []int32, x []float32) error {
		copy(in.x[from*d:], x)
		return nil
	})
	if err != nil {
		return nil, err
	}
	all := in.coords
	if rows != nil {
		all = make([]int64, 2*bag.Len())
	}
	if err := bag.Coords(all, 0, bag.Len()); err != nil {
		return nil, err
	}
	for k, r := range rows {
		copy(in.coords[2*k:2*k+2], all[2*r:])
	}
	return in, nil
}

// predict gives the probabilities of a validation bag.
func (t *trainer) predict(ctx context.Context, i int) ([]float64, error) {
	c := &Classifier{Config: t.c, Dim: t.dim, Classes: t.classes, net: t.net, scale: t.scale}
	if t.cache != nil {
		in, err := t.whole(ctx, i)
		if err != nil {
			return nil, err
		}
		p, err := c.parts(t.mem, in, false)
		return p.P, err
	}
	bag, err := t.data.Open(ctx, i)
	if err != nil {
		return nil, err
	}
	defer bag.Close()
	p, err := c.of(ctx, t.mem, bag, false)
	return p.P, err
}
