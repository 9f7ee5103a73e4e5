package objective

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"coverslip/internal/nn"
)

// golden is a case of bench/reference/objectives.py.
type golden struct {
	Objective             string
	Options               Options
	Slides, Views, Global int
	IDs, Labels           []int
	Step, Steps           int
	H, Target             []float32
	Params, State         map[string][]float32
	Loss                  float64
	Grads, After          map[string][]float32
}

func readGolden(t *testing.T) (all []golden) {
	t.Helper()
	raw, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func (c golden) batch() Batch {
	return Batch{Slides: c.Slides, Views: c.Views, Global: c.Global, IDs: c.IDs, Labels: c.Labels, Step: c.Step, Steps: c.Steps}
}

// load makes the objective of a case with its weights.
func (c golden) load(t *testing.T) Objective {
	t.Helper()
	o := c.Options
	if methods[c.Objective].labelled {
		o.Classes = 3
	}
	made, err := New(c.Objective, len(c.H)/c.Slides/c.Views, o, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range []struct {
		have []*nn.Param
		want map[string][]float32
	}{{made.Params(), c.Params}, {made.State(), c.State}} {
		if len(set.have) != len(set.want) {
			t.Fatalf("%d parameters, PyTorch has %d", len(set.have), len(set.want))
		}
		for _, p := range set.have {
			if len(set.want[p.Name]) != len(p.Value) {
				t.Fatalf("%s is %d × %d", p.Name, p.Rows, p.Cols)
			}
			copy(p.Value, set.want[p.Name])
		}
	}
	return made
}

// step runs the case and returns the loss and the gradient by the embeddings.
func (c golden) step(t *testing.T, made Objective) (float64, *nn.Param) {
	t.Helper()
	mem := nn.NewMemory()
	defer mem.Free()
	g := nn.NewGraph(mem, true)
	defer g.Close()
	b, d := c.batch(), len(c.H)/c.Slides/c.Views
	h := nn.NewParam("h", b.Slides*b.Views, d)
	copy(h.Value, c.H)
	var target *nn.Node
	if _, kept := made.Momentum(b.Step, b.Steps); kept {
		target = g.Constant(b.Slides*b.Views, d, append([]float32(nil), c.Target...))
	}
	loss, err := g.Backward(made.Loss(g.Param(h), target, b))
	if err != nil {
		t.Fatal(err)
	}
	return loss, h
}

func largest(x []float32) (m float64) {
	for _, v := range x {
		m = math.Max(m, math.Abs(float64(v)))
	}
	return m
}

func near(t *testing.T, what string, got, want []float32, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d numbers, PyTorch has %d", what, len(got), len(want))
		return
	}
	for i, w := range want {
		if d := math.Abs(float64(got[i]) - float64(w)); !(d <= tolerance) {
			t.Errorf("%s: number %d is %g, PyTorch's %g", what, i, got[i], w)
			return
		}
	}
}

func TestObjectivesMeetPyTorch(t *testing.T) {
	seen := map[string]bool{}
	for i, c := range readGolden(t) {
		seen[c.Objective] = true
		t.Run(c.Objective+" "+strconv.Itoa(i), func(t *testing.T) {
			made := c.load(t)
			loss, h := c.step(t, made)
			if d := math.Abs(loss - c.Loss); !(d <= 1e-5*math.Max(1, math.Abs(c.Loss))) {
				t.Errorf("loss %.9g, PyTorch's %.9g", loss, c.Loss)
			}
			t.Logf("loss %.7g, %.1e from PyTorch's", loss, math.Abs(loss-c.Loss))
			all := largest(c.Grads["h"])
			for _, p := range append(made.Params(), h) {
				if want := c.Grads[p.Name]; !p.Fixed {
					near(t, "gradient by "+p.Name, p.Grad, want, 1e-3*largest(want)+1e-6*all)
				}
			}
			made.Stepped(c.batch())
			for _, p := range append(made.Params(), made.State()...) {
				if want, there := c.After[p.Name]; there {
					near(t, p.Name+" after the step", p.Value, want, 1e-5*math.Max(1, largest(want)))
				}
			}
		})
	}
	for _, name := range Names() {
		if !seen[name] && name != "rotation" { // a cross-entropy, which internal/nn holds to PyTorch: TestTurnsByHand
			t.Errorf("%s is not held to PyTorch", name)
		}
	}
}
