package objective

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"coverslip"
	"coverslip/internal/nn"
)

func TestWrongOptionsAreRefusedWithARemedy(t *testing.T) {
	for name, c := range map[string]struct {
		objective string
		o         Options
	}{
		"unknown":                {"simsiam", Options{}},
		"temperature below zero": {"simclr", Options{Temperature: -1}},
		"what it does not have":  {"simclr", Options{Queue: 512}},
		"layers below none":      {"simclr", Options{Layers: -2}},
		"width of no projector":  {"simclr", Options{Layers: NoProjector, Hidden: 5}},
		"batch of one":           {"simclr", Options{Batch: 1}},
		"queue between batches":  {"moco", Options{Queue: 1000, Batch: 256}},
		"no labels":              {"supcon", Options{}},
		"one class":              {"trex", Options{Classes: 1}},
		"an average that stays":  {"byol", Options{Momentum: 1}},
		"one prototype":          {"swav", Options{Prototypes: 1}},
		"not a number":           {"barlow", Options{Covariance: math.NaN()}},
	} {
		_, err := New(c.objective, 8, c.o, rand.New(rand.NewPCG(1, 2)))
		if coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPapersSizesAreNoLargerThanTheCohort(t *testing.T) {
	for _, c := range []struct {
		objective string
		o         Options
		want      Options
	}{
		{"moco", Options{}, Options{Queue: 65536}},
		{"moco", Options{Batch: 256}, Options{Queue: 65536}},
		{"moco", Options{Batch: 100}, Options{Queue: 65500}},
		{"moco", Options{Batch: 64, Cohort: 200}, Options{Queue: 192}},
		{"moco", Options{Batch: 64, Cohort: 200, Queue: 640}, Options{Queue: 640}},
		{"trex", Options{Batch: 64, Cohort: 20, Classes: 2}, Options{Queue: 64}},
		{"swav", Options{Cohort: 200}, Options{Prototypes: 200}},
		{"dino", Options{}, Options{Prototypes: 65536}},
	} {
		got, err := Defaults(c.objective, c.o)
		if err != nil || got.Queue != c.want.Queue || got.Prototypes != c.want.Prototypes {
			t.Errorf("%s %+v: %+v, %v", c.objective, c.o, got, err)
		}
	}
}

const slides, dim, steps = 16, 8, 60

// run is a small training: an aggregator of one layer over noisy views of slides of three kinds.
type run struct {
	aggregator, average *nn.Dense
	objective           Objective
	optimizer           nn.Optimizer
	views               int
}

func newRun(t *testing.T, name string, views int) *run {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, 8))
	o := Options{Hidden: 12, Out: 8, Batch: slides, Cohort: 2 * slides}
	if methods[name].labelled {
		o.Classes = 3
	}
	if name == "byol" {
		o.Predictor = 12
	}
	r := &run{aggregator: nn.NewDense("aggregator", dim, dim, true, rng), optimizer: nn.NewAdam(0), views: views}
	made, err := New(name, dim, o, rng)
	if err != nil {
		t.Fatal(err)
	}
	r.objective = made
	r.average = &nn.Dense{W: averaged(r.aggregator.W), B: averaged(r.aggregator.B)}
	return r
}

func (r *run) learned() []*nn.Param { return append(r.aggregator.Params(), r.objective.Params()...) }

// kept is all that a checkpoint holds.
func (r *run) kept() []*nn.Param {
	all := append(r.learned(), r.average.Params()...)
	return append(append(all, r.objective.State()...), r.optimizer.State(r.learned())...)
}

// train runs steps from ≤ step < to and returns the losses.
func (r *run) train(t *testing.T, from, to int) (losses []float64) {
	t.Helper()
	mem := nn.NewMemory()
	defer mem.Free()
	centres := rand.New(rand.NewPCG(1, 1))
	centre := make([]float64, 2*slides*dim)
	for i := range centre {
		centre[i] = centres.NormFloat64()
	}
	for step := from; step < to; step++ {
		rng := rand.New(rand.NewPCG(9, uint64(step)))
		b := Batch{Slides: slides, Views: r.views, Global: 2, Step: step, Steps: steps}
		for _, id := range rng.Perm(2 * slides)[:slides] {
			b.IDs = append(b.IDs, id)
			if r.objective.Labelled() {
				b.Labels = append(b.Labels, id%4-1) // a quarter unknown
			}
		}
		x := make([]float32, b.Views*slides*dim)
		for i := range x {
			x[i] = float32(centre[b.IDs[i/dim%slides]*dim+i%dim] + 0.3*rng.NormFloat64())
		}
		for row := range b.Views * slides {
			if _, turned := r.objective.(*rotation); turned {
				b.Turns = append(b.Turns, rng.IntN(quarterTurns))
				x[row*dim+b.Turns[row]] += 3
			}
		}
		g := nn.NewGraph(mem, true)
		in := g.Constant(b.Views*slides, dim, x)
		var target *nn.Node
		m, average := r.objective.Momentum(step, b.Steps)
		if average {
			target = r.average.Apply(in)
		}
		loss, err := g.Backward(r.objective.Loss(r.aggregator.Apply(in), target, b))
		if err != nil {
			t.Fatal(err)
		}
		g.Close()
		r.optimizer.Step(r.learned(), 3e-3)
		if average {
			for i, p := range r.aggregator.Params() {
				for j, v := range p.Value {
					a := r.average.Params()[i].Value
					a[j] = float32(m*float64(a[j]) + (1-m)*float64(v))
				}
			}
		}
		r.objective.Stepped(b)
		losses = append(losses, loss)
	}
	return losses
}

func TestEveryObjectiveLearns(t *testing.T) {
	crops := map[string]int{"swav": 2, "dino": 2, "relic": 2, "trex": 2} // made with multi-crop
	for _, name := range Names() {
		views := 2 + crops[name]
		losses := newRun(t, name, views).train(t, 0, steps)
		mean := func(x []float64) float64 { return sum(x) / float64(len(x)) }
		// MoCo's loss rises while keys take the place of random rows; T-ReX' first steps have no classes.
		first, last := mean(losses[5:15]), mean(losses[steps-10:])
		t.Logf("%s, %d views: %.3f to %.3f", name, views, first, last)
		if !(last < 0.97*first) {
			t.Errorf("%s, %d views: the loss goes from %g to %g", name, views, first, last)
		}
	}
}

func TestWorkersDoNotChangeBits(t *testing.T) {
	defer nn.SetWorkers(2)
	for _, name := range Names() {
		nn.SetWorkers(1)
		one := newRun(t, name, 3)
		one.train(t, 0, 3)
		nn.SetWorkers(5)
		five := newRun(t, name, 3)
		five.train(t, 0, 3)
		same(t, name, five.kept(), one.kept())
	}
}

func TestCheckpointsGoOnToTheSameBits(t *testing.T) {
	for _, name := range Names() {
		path := filepath.Join(t.TempDir(), "c.safetensors")
		whole := newRun(t, name, 3)
		whole.train(t, 0, 5)
		if err := nn.Save(path, whole.kept(), nil); err != nil {
			t.Fatal(err)
		}
		whole.train(t, 5, 9)
		again := newRun(t, name, 3)
		again.train(t, 0, 1) // whatever it was before
		f, err := nn.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Fill(again.kept()); err != nil {
			t.Fatal(err)
		}
		again.train(t, 5, 9)
		same(t, name, again.kept(), whole.kept())
	}
}

func same(t *testing.T, what string, got, want []*nn.Param) {
	t.Helper()
	for i, p := range want {
		for j, v := range p.Value {
			if got[i].Value[j] != v {
				t.Errorf("%s: %s differs", what, p.Name)
				return
			}
		}
	}
}

func TestPrototypesStayAsDrawnAtFirst(t *testing.T) {
	for _, name := range []string{"swav", "dino"} {
		made, err := New(name, 6, Options{Hidden: 7, Out: 5, Prototypes: 8}, rand.New(rand.NewPCG(1, 2)))
		if err != nil {
			t.Fatal(err)
		}
		mem := nn.NewMemory()
		defer mem.Free()
		for step, learned := range map[int]bool{0: false, 1: false, 2: true} {
			g := nn.NewGraph(mem, true)
			h := nn.NewParam("h", 8, 6)
			nn.Normal(h, 1, rand.New(rand.NewPCG(3, 4)))
			var target *nn.Node
			if _, average := made.Momentum(0, 200); average {
				target = g.Constant(8, 6, append([]float32(nil), h.Value...))
			}
			if _, err := g.Backward(made.Loss(g.Param(h), target, Batch{Slides: 4, Views: 2, Global: 2, Step: step, Steps: 200})); err != nil {
				t.Fatal(err)
			}
			g.Close()
			for _, p := range made.Params() {
				if p.Name == "prototypes" && (len(p.Grad) != len(p.Value) || largest(p.Grad) > 0 != learned) {
					t.Errorf("%s, step %d: the largest gradient is %g", name, step, largest(p.Grad))
				}
			}
		}
	}
}

func TestTheTeacherWarmsUp(t *testing.T) {
	d := &dino{teacher: 0.07}
	for step, want := range map[int]float64{0: 0.04, 10: 0.055, 20: 0.07, 199: 0.07} {
		if got := d.sharpness(Batch{Step: step, Steps: 200}); math.Abs(got-want) > 1e-12 {
			t.Errorf("step %d: %g, want %g", step, got, want)
		}
	}
}

func TestAveragesMoveLessAndLess(t *testing.T) {
	for _, c := range []struct {
		name string
		step int
		want float64
	}{{"byol", 0, 0.996}, {"byol", 50, 0.998}, {"byol", 100, 1}, {"moco", 50, 0.999}, {"simclr", 50, 0}} {
		made, err := New(c.name, 6, Options{Cohort: 8}, rand.New(rand.NewPCG(1, 2)))
		if err != nil {
			t.Fatal(err)
		}
		if got, kept := made.Momentum(c.step, 100); math.Abs(got-c.want) > 1e-12 || kept != (c.want > 0) {
			t.Errorf("%s, step %d: %g, %v", c.name, c.step, got, kept)
		}
	}
}

func TestEveryLayerCanBeTapped(t *testing.T) {
	mem := nn.NewMemory()
	defer mem.Free()
	for layers, want := range map[int][]string{NoProjector: nil, 1: {"projector.1"}, 0: {"projector.1", "projector.2", "projector.3"}} {
		made, err := New("simclr", 6, Options{Layers: layers}, rand.New(rand.NewPCG(1, 2)))
		if err != nil {
			t.Fatal(err)
		}
		taps := made.Taps()
		if len(taps) != len(want) {
			t.Fatalf("%d layers: %v", layers, taps)
		}
		g := nn.NewGraph(mem, false)
		h := g.Constant(1, 6, []float32{1, 2, 3, 4, 5, 6})
		var out []*nn.Node
		for i, tap := range taps {
			if tap != want[i] {
				t.Errorf("%v", taps)
			}
			out = append(out, made.Tap(h, tap))
		}
		if len(out) > 0 {
			if err := g.Forward(out...); err != nil {
				t.Fatal(err)
			}
		}
		for i, n := range out {
			// A hidden layer is a ReLU behind which the norm of no statistics does nothing; the last has both signs.
			below := false
			for _, v := range n.Value() {
				below = below || v < 0
			}
			if wide := map[bool]int{true: 512, false: 256}[i < len(out)-1]; n.Cols != wide || below != (i == len(out)-1) {
				t.Errorf("%s is %d wide, below zero %v", taps[i], n.Cols, below)
			}
		}
		g.Close()
	}
}

func TestASlideIsNoNegativeOfItself(t *testing.T) {
	b := newBank(4, 1)
	b.next([]float32{1, 2, 3}, []int{7, 8, 9})
	b.push()
	b.push() // nothing waits
	b.next([]float32{4, 5}, nil)
	b.push()
	for i, want := range []float32{5, 2, 3, 4} {
		if of := []float32{-1, 8, 9, -1}[i]; b.keys.Value[i] != want || b.of.Value[i] != of {
			t.Errorf("place %d holds %g of %g", i, b.keys.Value[i], b.of.Value[i])
		}
	}
	if b.at.Value[0] != 1 {
		t.Errorf("the next goes to %g", b.at.Value[0])
	}
}

func TestLabelsThatAreUnknownTeachNothing(t *testing.T) {
	made, err := New("trex", 6, Options{Hidden: 7, Out: 5, Queue: 4, Classes: 2}, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	mem := nn.NewMemory()
	defer mem.Free()
	for range 2 {
		g := nn.NewGraph(mem, true)
		h := nn.NewParam("h", 8, 6)
		nn.Normal(h, 1, rand.New(rand.NewPCG(3, 4)))
		b := Batch{Slides: 4, Views: 2, Global: 2, Labels: []int{-1, -1, -1, -1}, Steps: 10}
		loss, err := g.Backward(made.Loss(g.Param(h), g.Constant(8, 6, append([]float32(nil), h.Value...)), b))
		if err != nil || loss != 0 || largest(h.Grad) != 0 {
			t.Errorf("loss %g, gradient %g, %v", loss, largest(h.Grad), err)
		}
		g.Close()
		made.Stepped(b)
	}
}

// once makes a step of an objective without a projector and returns the loss and the gradient by the embeddings.
func once(t *testing.T, made Objective, b Batch, h []float32, d int) (float64, []float32) {
	t.Helper()
	mem := nn.NewMemory()
	defer mem.Free()
	g := nn.NewGraph(mem, true)
	defer g.Close()
	p := nn.NewParam("h", len(h)/d, d)
	copy(p.Value, h)
	var target *nn.Node
	if _, average := made.Momentum(b.Step, b.Steps); average {
		target = g.Constant(len(h)/d, d, append([]float32(nil), h...))
	}
	loss, err := g.Backward(made.Loss(g.Param(p), target, b))
	if err != nil {
		t.Fatal(err)
	}
	return loss, p.Grad
}

func TestPrototypesOfClassesByHand(t *testing.T) {
	made, err := New("trex", 2, Options{Layers: NoProjector, Temperature: 1, Queue: 4, Classes: 2}, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	b := Batch{Slides: 3, Views: 2, Global: 2, Labels: []int{5, 2, -1}, Steps: 10}
	// Keys of the first view: class 5 at (2,0), class 2 at (0,3). The third slide is of no class.
	if loss, _ := once(t, made, b, []float32{2, 0, 0, 3, 7, 7, 1, 0, 0, 1, 1, 0}, 2); loss != 0 {
		t.Errorf("an empty memory teaches %g", loss)
	}
	made.Stepped(b)
	// Now both labelled slides lie at (1,0): of class 5 that is right, of class 2 it is not.
	loss, grad := once(t, made, b, []float32{1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1}, 2)
	if want := math.Log(math.E+1) - 0.5; math.Abs(loss-want) > 1e-6 {
		t.Errorf("loss %g, want %g", loss, want)
	}
	for _, i := range []int{4, 5, 10, 11} {
		if grad[i] != 0 {
			t.Errorf("a slide without a label has gradient %g", grad[i])
		}
	}
	// Towards (0,1), for class 2: the gradient by the second number is (p-1)/4, with p = 1/(1+e).
	if want := (1/(1+math.E) - 1) / 4; math.Abs(float64(grad[3])-want) > 1e-6 {
		t.Errorf("gradient %g, want %g", grad[3], want)
	}
}

func TestEveryObjectiveDoesWithoutAProjector(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	h := make([]float32, 8*6)
	for i := range h {
		h[i] = float32(rng.NormFloat64())
	}
	for _, name := range Names() {
		o := Options{Layers: NoProjector, Cohort: 8}
		if methods[name].labelled {
			o.Classes = 2
		}
		made, err := New(name, 6, o, rng)
		if err != nil {
			t.Fatal(err)
		}
		b := Batch{Slides: 4, Views: 2, Global: 2, Labels: []int{0, 1, 1, 0}, Turns: []int{0, 1, 2, 3, 3, 0, 2, 1}, Step: 5, Steps: 10}
		for range 2 { // T-ReX begins with nothing
			loss, grad := once(t, made, b, h, 6)
			made.Stepped(b)
			if b.Step++; b.Step == 7 && !(loss > 0 && largest(grad) > 0) {
				t.Errorf("%s: loss %g, gradient %g", name, loss, largest(grad))
			}
		}
	}
}

func TestTurnsByHand(t *testing.T) {
	made, err := New("rotation", 2, Options{Layers: NoProjector}, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	// A head whose logits are 0, x, y and x+y.
	copy(made.Params()[0].Value, []float32{0, 1, 0, 1, 0, 0, 1, 1})
	clear(made.Params()[1].Value)
	h := []float32{0, 0, 1, 0, 0, 2, 1, 1}
	b := Batch{Slides: 2, Views: 2, Global: 2, Turns: []int{0, 1, 2, 3}}
	loss, _ := once(t, made, b, h, 2)
	want := 0.0
	for i, turn := range b.Turns {
		x, y := float64(h[2*i]), float64(h[2*i+1])
		logits := []float64{0, x, y, x + y}
		total := 0.0
		for _, v := range logits {
			total += math.Exp(v)
		}
		want += (math.Log(total) - logits[turn]) / 4
	}
	if math.Abs(loss-want) > 1e-6 {
		t.Errorf("loss %g, by hand %g", loss, want)
	}
}
