package mil

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coverslip"
	"coverslip/internal/nn"
	"coverslip/internal/nn/nntest"
)

// small is a configuration whose networks are small, without anything random.
func small(m Model) Config {
	c := Defaults(m)
	c.Hidden, c.Attend, c.Dropout, c.Epochs, c.Patience, c.Cosine, c.LR, c.Balance = []int{8}, 6, 0, 12, 0, false, 5e-3, NoBalance
	c.Cluster, c.Landmarks, c.Heads, c.ResidualWidth = 2, 4, 2, 5
	return c
}

// bagsOf are bags whose class is whether one of their tiles has a large first feature.
func bagsOf(n, rows, dim int, seed uint64) (HeldBags, []int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	bags, y := make(HeldBags, n), make([]int, n)
	for i := range bags {
		h := &Held{Name: fmt.Sprintf("bag %d", i), D: dim}
		k := 1 + rng.IntN(rows)
		for r := range k {
			h.XY = append(h.XY, int64(r%4)*224, int64(r/4)*224)
		}
		for range k * dim {
			h.Rows = append(h.Rows, float32(rng.NormFloat64()))
		}
		if y[i] = i % 2; y[i] == 1 {
			h.Rows[rng.IntN(k)*dim] = 6
		}
		bags[i] = h
	}
	return bags, y
}

func numbers(n int) []int {
	v := make([]int, n)
	for i := range v {
		v[i] = i
	}
	return v
}

// TestGradientsOfNetworks asks that a small step along each parameter's gradient changes the loss by its length.
func TestGradientsOfNetworks(t *testing.T) {
	const n, dim, classes = 13, 5, 3
	rng := rand.New(rand.NewPCG(4, 4))
	x, coords := make([]float32, n*dim), make([]int64, 2*n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	for i := range n {
		coords[2*i], coords[2*i+1] = int64(i%5)*100, int64(i/5)*100
	}
	mem := nn.NewMemory()
	defer mem.Free()
	for _, m := range Models() {
		for _, exclusive := range []bool{false, true} {
			c := small(m)
			c.Exclusive = exclusive
			net := newNetwork(&c, dim, classes, rng)
			value := func(gradient bool) float64 {
				g := newGraph(&c, mem, len(x), true)
				defer g.Close()
				s := &step{coords: coords, class: 1}
				r := net.forward(s, g.Constant(n, dim, x))
				loss := r.lossOf(1)
				if gradient {
					l, err := g.Backward(loss)
					if err != nil {
						t.Fatal(m, err)
					}
					return l
				}
				if err := g.Forward(loss); err != nil {
					t.Fatal(m, err)
				}
				return float64(loss.Value()[0])
			}
			value(true)
			for _, p := range net.params() {
				if p.Fixed {
					continue
				}
				length := math.Sqrt(nn.Dot(p.Grad, p.Grad))
				if length < 1e-3 || c.clam() && strings.HasPrefix(p.Name, "attention") { // a step may change who is in a cluster
					continue
				}
				old := slices.Clone(p.Value)
				move := func(by float64) float64 {
					for i := range p.Value {
						p.Value[i] = old[i] + float32(by/length)*p.Grad[i]
					}
					return value(false)
				}
				const h = 5e-4
				slope := (8*(move(h)-move(-h)) - (move(2*h) - move(-2*h))) / (12 * h)
				copy(p.Value, old)
				if math.Abs(slope-length) > 0.05*length+1e-4 {
					t.Errorf("%s: %s has slope %g, its gradient length %g", m, p.Name, slope, length)
				}
			}
		}
	}
}

func TestKernelsMeetCentralDifferences(t *testing.T) {
	nntest.Gradient(t, branches[float64](3, 2), 2, 6, 6, 2)
	nntest.Gradient(t, oneKernel[float64](2), 98, 98, 50, 18)
	nntest.Gradient(t, addRows[float64](3), 12, 12, 3, 3, 3)
	nntest.Gradient(t, perHead[float64](3, 2, 2), 12, 6)
	nntest.Single(t, branches[float32](3, 2), branches[float64](3, 2), 1e-5, 2, 6, 6, 2)
	for _, o := range []clustering{{width: 3, classes: 2, class: 1, k: 2}, {width: 3, classes: 3, class: 0, k: 2, branches: true, exclusive: true, svm: true}} {
		heads := 1
		if o.branches {
			heads = o.classes
		}
		a := make([]float64, 7*heads) // ranks must not change by a small step
		for i := range a {
			a[i] = float64((i * 5) % (7 * heads))
		}
		rng := rand.New(rand.NewPCG(1, 1))
		draw := func(n int) []float64 {
			v := make([]float64, n)
			for i := range v {
				v[i] = rng.NormFloat64()
			}
			return v
		}
		nntest.GradientAt(t, clusters[float64](o), 1, [][]float64{a, draw(21), draw(6 * o.classes), draw(2 * o.classes)}, nil)
	}
}

func TestAllModelsLearnAndExplain(t *testing.T) {
	bags, y := bagsOf(60, 9, 6, 1)
	for _, m := range Models() {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			c := small(m)
			c.Epochs, c.Hidden = 60, []int{16}
			k, report, err := Train(t.Context(), bags, y, 2, numbers(60), nil, c, TrainOptions{})
			if err != nil {
				t.Fatal(err)
			}
			hit := 0
			for i := range bags {
				p, err := k.Predict(t.Context(), bags[i], true)
				if err != nil {
					t.Fatal(err)
				}
				if math.Abs(p.P[0]+p.P[1]-1) > 1e-6 {
					t.Fatalf("probabilities %v", p.P)
				}
				if (p.P[1] > 0.5) == (y[i] == 1) {
					hit++
				}
				if p.Attention == nil && p.Evidence == nil {
					t.Fatal("nothing is explained")
				}
				if p.Attention != nil && m != TransMIL {
					for h := range p.Heads {
						var sum float64
						for r := range bags[i].Len() {
							sum += float64(p.Attention[r*p.Heads+h])
						}
						if math.Abs(sum-1) > 1e-4 {
							t.Fatalf("attention sums to %g", sum)
						}
					}
				}
			}
			if hit < 50 {
				t.Errorf("%d of 60 are told apart; losses %v … %v", hit, report.Epochs[0].Loss, report.Epochs[59].Loss)
			}
		})
	}
}

// TestBagsInPieces asks that bags of more rows than are in memory at once give the gradients and the predictions of
// a single graph.
func TestBagsInPieces(t *testing.T) {
	const n, dim, classes = 2*pieceRows + 777, 5, 3
	rng := rand.New(rand.NewPCG(4, 4))
	bag := &Held{Name: "large", D: dim, Rows: make([]float32, n*dim)}
	for i := range bag.Rows {
		bag.Rows[i] = float32(rng.NormFloat64())
	}
	for _, m := range Models() {
		for _, exclusive := range []bool{false, true} {
			c := small(m)
			c.Dropout, c.Exclusive, c.DropInstance = 0.3, exclusive, 0.2
			net, ok := newNetwork(&c, dim, classes, rng).(*pooled)
			if !ok || exclusive && !c.clam() {
				continue
			}
			tr := &trainer{data: HeldBags{bag}, y: []int{2}, classes: classes, c: c, dim: dim, net: net, scale: newScale(dim), mem: nn.NewMemory(), weight: []float64{1, 1, 0.7}}
			rows := tr.some(n, rand.New(rand.NewPCG(1, 1)))
			got, err := tr.stream(t.Context(), net, bag, 2, rows, 99)
			if err != nil {
				t.Fatal(m, err)
			}
			var grads [][]float32
			for _, p := range net.params() {
				grads = append(grads, slices.Clone(p.Grad))
			}
			in, err := readBag(t.Context(), bag, tr.scale, rows)
			if err != nil {
				t.Fatal(err)
			}
			g := nn.NewGraph(tr.mem, true)
			r := net.forward(&step{seed: 99, rows: rows, class: 2}, g.Constant(len(rows), dim, in.x))
			want, err := g.Backward(nn.Scale(0.7, r.lossOf(2)))
			if err != nil {
				t.Fatal(err)
			}
			g.Close()
			if math.Abs(got-want) > 1e-5*want {
				t.Errorf("%s: loss %g, want %g", m, got, want)
			}
			for k, p := range net.params() {
				length := math.Sqrt(nn.Dot(p.Grad, p.Grad))
				for i, v := range p.Grad {
					if math.Abs(float64(grads[k][i]-v)) > 1e-4*length+1e-6 {
						t.Fatalf("%s: the gradient of %s at %d is %g, want %g", m, p.Name, i, grads[k][i], v)
					}
				}
			}

			k := &Classifier{Config: c, Dim: dim, Classes: classes, net: net, scale: tr.scale}
			piecewise, err := k.Predict(t.Context(), bag, true)
			if err != nil {
				t.Fatal(err)
			}
			whole, err := readBag(t.Context(), bag, tr.scale, nil)
			if err != nil {
				t.Fatal(err)
			}
			once, err := k.predict(tr.mem, whole, true)
			if err != nil {
				t.Fatal(err)
			}
			near(t, m, "probability", piecewise.P, once.P, 1e-5)
			near(t, m, "attention", piecewise.Attention, once.Attention, 1e-5)
			near(t, m, "evidence", piecewise.Evidence, once.Evidence, 1e-5)
			tr.mem.Free()
		}
	}
}

func near[T nn.Float](t *testing.T, m Model, what string, got, want []T, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d numbers of %s, want %d", m, len(got), what, len(want))
		return
	}
	largest := 1e-2 // gradients that are none but for rounding
	for _, v := range want {
		largest = math.Max(largest, math.Abs(float64(v)))
	}
	for i := range want {
		if !(math.Abs(float64(got[i]-want[i])) <= tolerance*largest) {
			t.Errorf("%s: %s %d is %g, want %g", m, what, i, got[i], want[i])
			return
		}
	}
}

func TestEqualSeedsGiveEqualBytes(t *testing.T) {
	bags, y := bagsOf(20, 12, 6, 2)
	for _, m := range Models() {
		c := small(m)
		c.Dropout, c.DropInstance, c.MaxTiles, c.Balance, c.Batch, c.Epochs, c.Seed = 0.2, 0.3, 7, Sampling, 3, 4, 9
		var first []byte
		for run, workers := range []int{1, 4} {
			nn.SetWorkers(workers)
			k, _, err := Train(t.Context(), bags, y, 2, numbers(16), []int{16, 17, 18, 19}, c, TrainOptions{})
			if err != nil {
				t.Fatal(m, err)
			}
			path := filepath.Join(t.TempDir(), "m.safetensors")
			if err := k.Save(path); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if run == 0 {
				first = raw
			} else if !bytes.Equal(first, raw) {
				t.Errorf("%s: two trainings of one seed differ", m)
			}
			again, err := Load(path)
			if err != nil {
				t.Fatal(err)
			}
			a, err1 := k.Predict(t.Context(), bags[3], true)
			b, err2 := again.Predict(t.Context(), bags[3], true)
			if err1 != nil || err2 != nil || fmt.Sprint(a) != fmt.Sprint(b) {
				t.Errorf("%s: what was saved predicts otherwise: %v %v", m, err1, err2)
			}
		}
	}
}

func TestTrainingGoesOnToTheSameBits(t *testing.T) {
	bags, y := bagsOf(20, 12, 6, 2)
	c := small(Gated)
	c.Dropout, c.Epochs, c.Patience = 0.2, 10, 5
	train := func(path string, ctx context.Context, progress func(Epoch)) (*Classifier, Report, error) {
		return Train(ctx, bags, y, 2, numbers(16), []int{16, 17, 18, 19}, c, TrainOptions{Checkpoint: path, Progress: progress})
	}
	whole, want, err := train("", t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "c.safetensors")
	ctx, stop := context.WithCancel(t.Context())
	_, _, err = train(path, ctx, func(e Epoch) {
		if e.Epoch == 4 {
			stop()
		}
	})
	if coverslip.KindOf(err) != coverslip.Canceled {
		t.Fatalf("stopped: %v", err)
	}
	again, got, err := train(path, t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	for i, p := range whole.net.params() {
		if !slices.Equal(p.Value, again.net.params()[i].Value) {
			t.Fatalf("%s differs", p.Name)
		}
	}
	c.LR *= 2
	if _, _, err := train(path, t.Context(), nil); coverslip.KindOf(err) != coverslip.Conflict {
		t.Errorf("another training went on from it: %v", err)
	}
}

func TestBadBagsAreRefusedByName(t *testing.T) {
	good, y := bagsOf(8, 5, 4, 3)
	all := numbers(8)
	c := small(ABMIL)
	nan := slices.Clone(good)
	nan[5] = &Held{Name: "sick", D: 4, Rows: []float32{1, 2, float32(math.NaN()), 4}}
	empty := slices.Clone(good)
	empty[5] = &Held{Name: "bare", D: 4}
	wide := slices.Clone(good)
	wide[5] = &Held{Name: "wide", D: 5, Rows: make([]float32, 5)}
	for name, bags := range map[string]HeldBags{"sick": nan, "bare": empty, "wide": wide} {
		_, _, err := Train(t.Context(), bags, y, 2, all, nil, c, TrainOptions{})
		var e *coverslip.Error
		if coverslip.KindOf(err) != coverslip.Invalid || !errors.As(err, &e) || e.Path != name {
			t.Errorf("%s: %v", name, err)
		}
		left, err := Unusable(t.Context(), bags)
		if err != nil || len(left) != 1 || left[0].Name != name || left[0].Reason == "" {
			t.Errorf("%s: left out %v, %v", name, left, err)
		}
	}
	if _, _, err := Train(t.Context(), good, make([]int, 8), 2, all, nil, c, TrainOptions{}); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("a single class: %v", err)
	}
	if _, _, err := Train(t.Context(), good, make([]int, 8), 1, all, nil, c, TrainOptions{}); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("a single class: %v", err)
	}
	c.LR = math.NaN()
	if _, _, err := Train(t.Context(), good, y, 2, all, nil, c, TrainOptions{}); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("a rate of NaN: %v", err)
	}
}

func TestBagsOfOneTile(t *testing.T) {
	bags, y := bagsOf(12, 1, 4, 3)
	for _, m := range Models() {
		k, _, err := Train(t.Context(), bags, y, 2, numbers(12), nil, small(m), TrainOptions{})
		if err != nil {
			t.Errorf("%s: %v", m, err)
			continue
		}
		if _, err := k.Predict(t.Context(), bags[0], true); err != nil {
			t.Errorf("%s: %v", m, err)
		}
	}
}
