package slidessl

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"coverslip/internal/nn"
	"coverslip/slidessl/objective"
	"coverslip/slidessl/view"
)

// TestParityWithPyTorch holds forward, gradients and ten steps to bench/reference/aggregator.py.
func TestParityWithPyTorch(t *testing.T) {
	raw, err := os.ReadFile("testdata/aggregator.json")
	if err != nil {
		t.Fatal(err)
	}
	type matrix struct {
		Rows, Cols int
		Value      []float32
	}
	var golden struct {
		Temperature, Rate, Eps float64
		Cases                  []struct {
			Kind, Readout string
			X             []float32
			Places        []float64
			Bags          []int
			Params        map[string]matrix
			H             []float64
			Grads         map[string][]float64
			Losses        []float64
			After         map[string][]float64
			HAfter        []float64 `json:"h_after"`
		}
	}
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}
	for _, c := range golden.Cases {
		t.Run(c.Kind+" "+c.Readout, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 1))
			a := Architecture{Kind: c.Kind, Input: 5, Stem: 4, Width: 6, Blocks: 1, Heads: 2, Prototypes: 4, Readout: c.Readout}
			net := NewNetwork(a, rng)
			o, err := objective.New("simclr", a.Dim(), objective.Options{Temperature: golden.Temperature, Hidden: 4, Out: 3}, rng)
			if err != nil {
				t.Fatal(err)
			}
			params := append(net.Params()[4:], o.Params()...) // but for means and scales
			f := nn.File{Params: map[string]*nn.Param{}}
			for name, m := range c.Params {
				f.Params[name] = &nn.Param{Name: name, Rows: m.Rows, Cols: m.Cols, Value: m.Value}
			}
			if len(params) != len(f.Params) {
				t.Errorf("%d parameters, PyTorch has %d", len(params), len(f.Params))
			}
			if err := f.Fill(params); err != nil {
				t.Fatal(err)
			}
			b := view.Batch{X: c.X, Dim: 5, Bags: c.Bags}
			for i := 0; i < len(c.Places); i += 2 {
				b.At = append(b.At, view.Place{X: c.Places[i], Y: c.Places[i+1]})
			}
			mem, opt := nn.NewMemory(), nn.NewAdam(0)
			defer mem.Free()
			opt.Eps = golden.Eps
			for step, want := range c.Losses {
				g := nn.NewGraph(mem, true)
				h := net.Forward(g, b)
				loss, err := g.Backward(o.Loss(h, nil, objective.Batch{Slides: 6, Views: 2, Global: 2}), h)
				if err != nil {
					t.Fatal(err)
				}
				if math.Abs(loss-want) > 1e-3*want {
					t.Errorf("loss of step %d is %g, want %g", step, loss, want)
				}
				if step == 0 {
					near(t, "embeddings", h.Value(), c.H, 1e-4)
					for _, p := range params {
						if !p.Fixed {
							near(t, "gradient of "+p.Name, p.Grad, c.Grads[p.Name], 1e-3)
						}
					}
				}
				g.Close()
				opt.Step(params, golden.Rate)
			}
			for _, p := range params {
				near(t, p.Name+" after ten steps", p.Value, c.After[p.Name], 1e-3)
			}
			g := nn.NewGraph(mem, false)
			defer g.Close()
			h := net.Forward(g, b)
			if err := g.Forward(h); err != nil {
				t.Fatal(err)
			}
			near(t, "embeddings after ten steps", h.Value(), c.HAfter, 1e-3)
		})
	}
}

// near compares to the largest number.
func near(t *testing.T, what string, got []float32, want []float64, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d numbers, want %d", what, len(got), len(want))
	}
	largest, worst := 1e-2, 0.0 // biases before a batch norm have gradients of rounding alone
	for i, w := range want {
		largest = math.Max(largest, math.Abs(w))
		if d := math.Abs(float64(got[i]) - w); !(d <= worst) {
			worst = d
		}
	}
	if !(worst <= tolerance*largest) {
		t.Errorf("%s: %g off, of %g", what, worst, largest)
	}
}
