package nn_test

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"coverslip"
	"coverslip/internal/nn"
	"coverslip/internal/nn/nntest"
)

// net is a small network with everything that is particular to the graph: a parameter used twice, a
// residual, a batch norm, a constant input.
type net struct {
	a, b, shared *nn.Dense
	norm         *nn.BatchNorm
}

func newNet(rng *rand.Rand) *net {
	return &net{nn.NewDense("a", 6, 8, true, rng), nn.NewDense("b", 8, 4, true, rng), nn.NewDense("shared", 8, 8, false, rng), nn.NewBatchNorm("norm", 8)}
}

func (n *net) params() []*nn.Param {
	var all []*nn.Param
	for _, p := range [][]*nn.Param{n.a.Params(), n.b.Params(), n.shared.Params(), n.norm.Params()} {
		all = append(all, p...)
	}
	return all
}

func (n *net) loss(g *nn.Graph, x []float32) (loss, z *nn.Node) {
	h := n.a.Apply(g.Constant(len(x)/6, 6, x))
	h = n.norm.Apply(n.shared.Apply(h), h, true)
	h = nn.Add(n.shared.Apply(h), h)
	z = n.b.Apply(h)
	return nn.NTXent(z, 0.5), z
}

func inputs(rows int) []float32 {
	rng := rand.New(rand.NewPCG(3, 4))
	x := make([]float32, rows*6)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

func TestBackwardMeetsDifferences(t *testing.T) {
	n, x := newNet(rand.New(rand.NewPCG(1, 2))), inputs(16)
	mem := nn.NewMemory()
	defer mem.Free()
	value := func() float64 {
		g := nn.NewGraph(mem, true)
		defer g.Close()
		loss, _ := n.loss(g, x)
		if err := g.Forward(loss); err != nil {
			t.Fatal(err)
		}
		return float64(loss.Value()[0])
	}
	g := nn.NewGraph(mem, true)
	loss, _ := n.loss(g, x)
	got, err := g.Backward(loss)
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	if want := value(); got != want {
		t.Errorf("loss %g, forward alone %g", got, want)
	}
	// float32: a small step along the gradient changes the loss by its length, to 1 %.
	for _, p := range n.params() {
		if p.Fixed {
			continue
		}
		square, h := nn.Dot(p.Grad, p.Grad), 2e-3
		length := math.Sqrt(square)
		if length < 1e-4 { // a bias before a batch norm
			continue
		}
		old := append([]float32(nil), p.Value...)
		move := func(by float64) float64 {
			for i := range p.Value {
				p.Value[i] = old[i] + float32(by/length)*p.Grad[i]
			}
			return value()
		}
		slope := (8*(move(h)-move(-h)) - (move(2*h) - move(-2*h))) / (12 * h)
		copy(p.Value, old)
		if math.Abs(slope-length) > 0.01*length+1e-4 {
			t.Errorf("%s: slope %g, want %g", p.Name, slope, length)
		}
	}
}

func TestLightGraphsComputeTheSame(t *testing.T) {
	x := inputs(16)
	mem := nn.NewMemory()
	defer mem.Free()
	run := func(graph func(*nn.Memory, bool) *nn.Graph) (*net, []float32) {
		n, opt := newNet(rand.New(rand.NewPCG(1, 2))), nn.NewAdam(0.01)
		var losses []float32
		for range 5 {
			g := graph(mem, true)
			loss, z := n.loss(g, x)
			loss = nn.Add(loss, nn.Mean(nn.Mul(z, z))) // an input twice
			l, err := g.Backward(loss, z)
			if err != nil {
				t.Fatal(err)
			}
			losses = append(losses, float32(l), z.Value()[3])
			g.Close()
			opt.Step(n.params(), 1e-2)
		}
		return n, losses
	}
	heavy, a := run(nn.NewGraph)
	light, b := run(nn.NewLightGraph)
	for i := range a {
		if math.Abs(float64(a[i]-b[i])) > 1e-6*math.Abs(float64(a[i])) {
			t.Errorf("step %d: %g and %g", i/2, a[i], b[i])
		}
	}
	for i, p := range heavy.params() {
		for j, v := range p.Value {
			if math.Abs(float64(v-light.params()[i].Value[j])) > 1e-5 {
				t.Fatalf("%s: %g and %g", p.Name, v, light.params()[i].Value[j])
			}
		}
	}
}

func TestMemoryServesStepAfterStep(t *testing.T) {
	n, x := newNet(rand.New(rand.NewPCG(1, 2))), inputs(64)
	mem := nn.NewMemory()
	defer mem.Free()
	opt := nn.NewAdam(0)
	var after int64
	for step := range 50 {
		g := nn.NewGraph(mem, true)
		loss, z := n.loss(g, x)
		if _, err := g.Backward(loss, z); err != nil {
			t.Fatal(err)
		}
		for _, v := range z.Value() {
			if v != v {
				t.Fatal("a value that was kept is gone")
			}
		}
		g.Close()
		opt.Step(n.params(), 1e-3)
		if step == 1 {
			after = mem.Bytes()
		}
	}
	if mem.Bytes() != after {
		t.Errorf("%d bytes after two steps, %d after fifty", after, mem.Bytes())
	}
}

func TestEqualBitsForAnyNumberOfWorkers(t *testing.T) {
	defer nn.SetWorkers(2)
	run := func(workers int) []float32 {
		nn.SetWorkers(workers)
		n, x := newNet(rand.New(rand.NewPCG(1, 2))), inputs(4096)
		mem := nn.NewMemory()
		defer mem.Free()
		opt := nn.NewAdam(0)
		for range 3 {
			g := nn.NewGraph(mem, true)
			loss, _ := n.loss(g, x[:6*512])
			if _, err := g.Backward(loss); err != nil {
				t.Fatal(err)
			}
			g.Close()
			opt.Step(n.params(), 1e-2)
		}
		return n.a.W.Value
	}
	one := run(1)
	for _, w := range []int{2, 7} {
		for i, v := range run(w) {
			if v != one[i] {
				t.Fatalf("%d workers: number %d is %g, not %g", w, i, v, one[i])
			}
		}
	}
}

func TestNaNIsAnErrorThatNamesIt(t *testing.T) {
	n, x := newNet(rand.New(rand.NewPCG(1, 2))), inputs(16)
	x[7] = float32(math.NaN())
	mem := nn.NewMemory()
	defer mem.Free()
	g := nn.NewGraph(mem, true)
	defer g.Close()
	loss, _ := n.loss(g, x)
	if _, err := g.Backward(loss); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("%v", err)
	}
}

func TestParametersTheLossDoesNotReachGetZeros(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	used, unused := nn.NewDense("used", 6, 2, false, rng), nn.NewDense("unused", 6, 2, false, rng)
	mem := nn.NewMemory()
	defer mem.Free()
	g := nn.NewGraph(mem, true)
	defer g.Close()
	x := g.Constant(4, 6, inputs(4))
	unused.Apply(x)
	if _, err := g.Backward(nn.Mean(used.Apply(x))); err != nil {
		t.Fatal(err)
	}
	for i, v := range unused.W.Grad {
		if v != 0 || used.W.Grad[i] == 0 {
			t.Fatalf("gradients %g and %g", v, used.W.Grad[i])
		}
	}
}

func TestOptimizersByHand(t *testing.T) {
	step := func(o nn.Optimizer, plain bool) float64 {
		p := nn.NewParam("p", 1, 2)
		p.Value[0], p.Value[1], p.Plain = 3, 4, plain
		for range 2 {
			p.Grad = []float32{1, 0}
			o.Step([]*nn.Param{p}, 0.1)
		}
		return float64(p.Value[0])
	}
	for name, c := range map[string]struct{ got, want float64 }{
		"sgd":         {step(nn.NewSGD(0.9, 0), false), 3 - 0.1*1 - 0.1*1.9},
		"sgd decay":   {step(nn.NewSGD(0, 0.5), false), (3-0.1*2.5)*0.95 - 0.1},
		"adam":        {step(nn.NewAdam(0), false), 3 - 0.2}, // a constant gradient is a sign
		"adamw":       {step(nn.NewAdamW(0.5), false), (3*0.95-0.1)*0.95 - 0.1},
		"adamw plain": {step(nn.NewAdamW(0.5), true), 3 - 0.2},
		// |p| = 5, |g| = 1: the first step is 0.1·0.001·5
		"lars": {step(nn.NewLARS(0), false), 3 - 0.1*0.005 - 0.1*(0.9*0.005+0.001*math.Hypot(3-0.0005, 4))},
	} {
		if math.Abs(c.got-c.want) > 2e-6 {
			t.Errorf("%s: %g, want %g", name, c.got, c.want)
		}
	}
}

func TestCosine(t *testing.T) {
	for step, want := range map[int]float64{0: 0.1, 9: 1, 10: 1, 60: 0.5, 110: 0} {
		if got := nn.Cosine(step, 10, 110, 1); math.Abs(got-want) > 1e-12 {
			t.Errorf("step %d: %g, want %g", step, got, want)
		}
	}
}

func TestCheckpointsGoOnToTheSameBits(t *testing.T) {
	x, path := inputs(32), filepath.Join(t.TempDir(), "c.safetensors")
	train := func(n *net, opt nn.Optimizer, steps int) {
		mem := nn.NewMemory()
		defer mem.Free()
		for range steps {
			g := nn.NewGraph(mem, true)
			loss, _ := n.loss(g, x)
			if _, err := g.Backward(loss); err != nil {
				t.Fatal(err)
			}
			g.Close()
			opt.Step(n.params(), 1e-2)
		}
	}
	for name, optimizer := range map[string]func() nn.Optimizer{
		"adam": func() nn.Optimizer { return nn.NewAdamW(0.1) }, "lars": func() nn.Optimizer { return nn.NewLARS(0.1) },
	} {
		whole, opt := newNet(rand.New(rand.NewPCG(1, 2))), optimizer()
		train(whole, opt, 4)
		if err := nn.Save(path, append(whole.params(), opt.State(whole.params())...), map[string]string{"step": "4"}); err != nil {
			t.Fatal(err)
		}
		train(whole, opt, 4)

		again, opt := newNet(rand.New(rand.NewPCG(5, 6))), optimizer()
		f, err := nn.Load(path)
		if err != nil || f.Text["step"] != "4" {
			t.Fatal(err, f)
		}
		if err := f.Fill(append(again.params(), opt.State(again.params())...)); err != nil {
			t.Fatal(err)
		}
		train(again, opt, 4)
		for i, p := range whole.params() {
			for j, v := range p.Value {
				if again.params()[i].Value[j] != v {
					t.Fatalf("%s: %s differs", name, p.Name)
				}
			}
		}
	}
}

func TestBrokenNetworksAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.safetensors")
	p := nn.NewParam("p", 2, 3)
	if err := nn.Save(path, []*nn.Param{p}, nil); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"empty": {}, "cut": good[:len(good)-1], "header": good[:20], "pickle": []byte("\x80\x02}q\x00.        "),
		"overflow": append([]byte{255, 255, 255, 255, 255, 255, 255, 127}, good[8:]...)} {
		if _, err := nn.Parse(raw); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	f, err := nn.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	nan := nn.NewParam("p", 2, 3)
	f.Params["p"].Value[0] = float32(math.NaN())
	for _, want := range []*nn.Param{nn.NewParam("q", 2, 3), nn.NewParam("p", 3, 2), nan} {
		if err := f.Fill([]*nn.Param{want}); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("%s %d × %d: %v", want.Name, want.Rows, want.Cols, err)
		}
	}
}

func init() {
	nn.PseudoInverseGradient = func(t *testing.T, k nn.Kernel[float64], x []float64) {
		nntest.GradientAt(t, k, len(x), [][]float64{x}, nil)
	}
}

func TestGradientsMeetCentralDifferences(t *testing.T) {
	for _, c := range nn.Kernels64() {
		nntest.Gradient(t, c.Kernel, c.Out, c.In...)
	}
}

func TestFloat32MeetsPlainFloat64(t *testing.T) {
	double := nn.Kernels64()
	for i, c := range nn.Kernels32() {
		nntest.Single(t, c.Kernel, double[i].Kernel, 2e-5, c.Out, c.In...)
	}
}
