package sparse_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"coverslip/internal/nn"
	"coverslip/slidessl/sparse"
	"coverslip/slidessl/view"
)

func TestTilesBecomeSites(t *testing.T) {
	at := []view.Place{{X: -1.5, Y: 2}, {X: -0.6, Y: 2.2}, {X: -0.4, Y: 3.9}, {X: 7, Y: 7}, {X: 9.2, Y: 7}}
	sites, rows := sparse.Sites(at, nn.Segments{0, 3, 5})
	// The first bag begins at (-1.5, 2): its tiles lie 0, 0.9 and 1.1 to the right, 0, 0.2 and 1.9 below.
	want := []nn.Site{{Map: 0, X: 0, Y: 0}, {Map: 0, X: 1, Y: 1}, {Map: 1, X: 0, Y: 0}, {Map: 1, X: 2, Y: 0}}
	if !slices.Equal(sites, want) {
		t.Errorf("sites %v", sites)
	}
	for i, list := range [][]int32{{0, 1}, {2}, {3}, {4}} {
		if !slices.Equal(rows[i], list) {
			t.Errorf("site %d: tiles %v", i, rows[i])
		}
	}
	x, _ := sparse.Merge(view.Batch{X: []float32{1, 3, 5, 7, 9}, Dim: 1, At: at, Bags: nn.Segments{0, 3, 5}})
	if !slices.Equal(x, []float32{2, 5, 7, 9}) {
		t.Errorf("merged %v", x)
	}
}

func TestAroundIsTheMeanOfNeighboursThatAreThere(t *testing.T) {
	mem := nn.NewMemory()
	defer mem.Free()
	g := nn.NewGraph(mem, false)
	defer g.Close()
	// Three in a row, and one alone.
	sites := []nn.Site{{X: 0}, {X: 1}, {X: 2}, {X: 9, Y: 9}}
	y := sparse.Around(g.Constant(4, 1, []float32{3, 6, 12, 5}), sites)
	if err := g.Forward(y); err != nil {
		t.Fatal(err)
	}
	for i, want := range []float32{4.5, 7, 9, 5} {
		if d := y.Value()[i] - want; d > 1e-6 || d < -1e-6 {
			t.Errorf("site %d: %g, want %g", i, y.Value()[i], want)
		}
	}
}

func TestEveryBagHasAnOutput(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	net := sparse.New(2, 3, rng)
	mem := nn.NewMemory()
	defer mem.Free()
	var at []view.Place
	bags := nn.Segments{0}
	for n := range 200 { // lone tiles, pairs and more, at any place
		for range 1 + n%4 {
			at = append(at, view.Place{X: 40 * rng.Float64(), Y: 40 * rng.Float64()})
		}
		bags = append(bags, len(at))
	}
	x, sites := sparse.Merge(view.Batch{X: make([]float32, 2*len(at)), Dim: 2, At: at, Bags: bags})
	g := nn.NewGraph(mem, true)
	defer g.Close()
	h, out := net.Forward(g.Constant(len(sites), 2, x), sites, len(bags)-1)
	pooled := nn.SegmentMean(h, out) // panics where a bag has none
	if err := g.Forward(pooled); err != nil || pooled.Rows != 200 {
		t.Fatal(err)
	}
}
