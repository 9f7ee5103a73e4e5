package mil

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"testing"

	"coverslip/internal/nn"
)

// TestModelsMeetPyTorch holds predictions, losses, attention and every gradient to PyTorch's; bench/reference/mil.py
// says how those were made.
func TestModelsMeetPyTorch(t *testing.T) {
	raw, err := os.ReadFile("testdata/models.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Dim, Width, Attend, Classes, Truth, Cluster, Landmarks, Heads, Pinv, Residual int
		Cases                                                                         []struct {
			Model             Model
			Exclusive, SVM    bool
			X                 []float32
			Coords            []int64
			Loss              float64
			P                 []float64
			Attention         []float32
			Params, Gradients map[string][]float32
		}
	}
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}
	mem := nn.NewMemory()
	defer mem.Free()
	seen := map[Model]bool{}
	for _, g := range golden.Cases {
		seen[g.Model] = true
		c := Defaults(g.Model)
		c.Hidden, c.Attend, c.Cluster, c.Landmarks, c.Heads, c.PinvSteps, c.ResidualWidth = []int{golden.Width}, golden.Attend, golden.Cluster, golden.Landmarks, golden.Heads, golden.Pinv, golden.Residual
		c.Exclusive, c.SmoothSVM = g.Exclusive, g.SVM
		net := newNetwork(&c, golden.Dim, golden.Classes, rand.New(rand.NewPCG(1, 1)))
		params := net.params()
		if len(params) != len(g.Params) {
			t.Errorf("%s: %d parameters, want %d", g.Model, len(params), len(g.Params))
		}
		for _, p := range params {
			if copy(p.Value, g.Params[p.Name]) != len(p.Value) {
				t.Fatalf("%s has no %s of its length", g.Model, p.Name)
			}
		}
		k := &Classifier{Config: c, Dim: golden.Dim, Classes: golden.Classes, net: net, scale: newScale(golden.Dim)}
		said, err := k.Predict(t.Context(), &Held{Rows: g.X, D: golden.Dim, XY: g.Coords}, true)
		if err != nil {
			t.Fatal(g.Model, err)
		}
		near(t, g.Model, "probability", said.P, g.P, 1e-5)
		if g.Attention != nil {
			near(t, g.Model, "attention", said.Attention, g.Attention, 1e-4)
		}
		for kind, graph := range map[string]*nn.Graph{"light": nn.NewLightGraph(mem, false), "Gorgonia's": nn.NewGraph(mem, false)} {
			zero(params)
			r := net.forward(&step{coords: g.Coords, class: golden.Truth}, graph.Constant(len(g.X)/golden.Dim, golden.Dim, g.X))
			loss, err := graph.Backward(r.lossOf(golden.Truth))
			if err != nil {
				t.Fatal(g.Model, err)
			}
			near(t, g.Model, kind+" loss", []float64{loss}, []float64{g.Loss}, 1e-5)
			for _, p := range params {
				near(t, g.Model, kind+" gradient of "+p.Name, p.Grad, g.Gradients[p.Name], 2e-4)
			}
			graph.Close()
		}
	}
	for _, m := range Models() {
		if !seen[m] {
			t.Errorf("%s was not compared", m)
		}
	}
}
