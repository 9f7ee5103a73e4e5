package measure_test

import (
	"encoding/json"
	"math"
	"os"
	"testing"

	"coverslip/slidessl/measure"
)

func TestGraphMeetsSciPy(t *testing.T) {
	raw, err := os.ReadFile("testdata/graph.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		D, K                                         int
		X, Y                                         []float32
		Neighbours, Diameter, Affinity, Equivariance float64
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		g := measure.NeighbourGraph(c.X, c.Y, c.D, c.K)
		near(t, "neighbours", g.Neighbours, c.Neighbours, 1e-12)
		near(t, "diameter", g.Diameter, c.Diameter, 1e-5)
		near(t, "affinity", g.Affinity, c.Affinity, 1e-4)
		near(t, "equivariance", g.Equivariance, c.Equivariance, 1e-5)
	}
}

func TestGraphByHand(t *testing.T) {
	// Twelve points evenly on a circle: what lies behind a neighbour gets no weight, so that each has two, 30° to either
	// side; they are 60° apart, which is 1, and all directions lie in one plane.
	var x, turned []float32
	for i := range 12 {
		for far, v := range map[float64]*[]float32{0: &x, 0.02: &turned} {
			sin, cos := math.Sincos(2*math.Pi*float64(i)/12 + far)
			*v = append(*v, float32(cos), float32(sin))
		}
	}
	g := measure.NeighbourGraph(x, turned, 2, 6)
	near(t, "neighbours", g.Neighbours, 2, 0)
	near(t, "diameter", g.Diameter, 1, 1e-6)
	near(t, "affinity", g.Affinity, 1, 1e-6)
	// Turning all by an angle moves neighbours in directions that are 30° apart.
	near(t, "equivariance", g.Equivariance, math.Cos(math.Pi/6), 1e-3)
	if g := measure.NeighbourGraph(x, nil, 2, 6); !math.IsNaN(g.Equivariance) {
		t.Error(g.Equivariance)
	}
	// Points that are all equal have no directions, and nothing fails.
	same := measure.NeighbourGraph([]float32{1, 1, 1, 1, 1, 1, 1, 1}, nil, 2, 3)
	if same.Diameter != 0 || same.Neighbours != 1 || !math.IsNaN(same.Affinity) {
		t.Errorf("%+v", same)
	}
}
