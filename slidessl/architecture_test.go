package slidessl

import (
	"math"
	"math/rand/v2"
	"testing"

	"coverslip/internal/nn"
	"coverslip/slidessl/objective"
	"coverslip/slidessl/view"
)

// TestLearningStartsAtPoolingOfWhatVariesMost computes by hand what an aggregator that has not learned makes of a bag.
func TestLearningStartsAtPoolingOfWhatVariesMost(t *testing.T) {
	n := NewNetwork(Architecture{Kind: "local", Input: 3, Width: 3, Blocks: 1, Readout: "mean+sd"}, rand.New(rand.NewPCG(1, 1)))
	// Means 2, 5, 1 and variances 1, 9, 0: all are divided by √(10/3), and the second feature comes first.
	n.Fit([]float32{1, 2, 1, 3, 8, 1}, nn.Segments{0, 2}, nil)
	g := nn.NewGraph(nn.NewMemory(), false)
	defer g.Close()
	// Two tiles side by side and one far off: the mean around is 5, 5 and 11, in feature 2.
	h := n.Forward(g, view.Batch{X: []float32{2, 2, 1, 2, 8, 1, 5, 11, 1}, Dim: 3, At: []view.Place{{X: 0}, {X: 1}, {X: 9}}, Bags: nn.Segments{0, 3}})
	if err := g.Forward(h); err != nil {
		t.Fatal(err)
	}
	scale := math.Sqrt(3. / 10)
	var want []float64
	mean := []float64{2 * scale, 1 * scale, 2 * scale} // feature 2, feature 1, feature 2 around
	sd := []float64{math.Sqrt(14) * scale, math.Sqrt(2) * scale, math.Sqrt(8) * scale}
	for _, v := range [][]float64{mean, mean, sd, sd} { // what goes into the block, and what comes out
		want = append(want, v...)
	}
	near(t, "the start", h.Value(), want, 1e-5)
}

// lengths is a source of one slide whose tiles have one feature, in a row.
type lengths []float32

func (l lengths) Len() int        { return 1 }
func (l lengths) Dim() int        { return 1 }
func (l lengths) Stored(int) int  { return 1 }
func (l lengths) Label(int) int   { return -1 }
func (l lengths) Name(int) string { return "row" }
func (l lengths) Places(int, int) ([]view.Place, error) {
	places := make([]view.Place, len(l))
	for i := range places {
		places[i].X = float64(i)
	}
	return places, nil
}

func (l lengths) Read(dst []float32, _, _ int, tiles []int) error {
	for i, t := range tiles {
		dst[i] = l[t]
	}
	return nil
}

// TestEveryTileIsReadOnce holds a slide of more tiles than one view takes to the mean of them all.
func TestEveryTileIsReadOnce(t *testing.T) {
	s := DefaultSettings("mlp", "simclr", 1)
	s.Architecture.Width, s.Architecture.Readout = 1, "mean"
	rng := rand.New(rand.NewPCG(1, 1))
	o, err := objective.New("simclr", s.Architecture.Dim(), objective.Options{}, rng)
	if err != nil {
		t.Fatal(err)
	}
	trained := &Trained{Network: NewNetwork(s.Architecture, rng), Objective: o, Settings: s}
	trained.Network.Fit([]float32{-1, 1}, nn.Segments{0, 2}, nil) // mean 0 and spread 1: nothing is changed
	row, want := make(lengths, 2*wholeTiles+100), 0.0
	for i := range row {
		row[i] = rng.Float32()
		if i >= 2*wholeTiles { // the last piece counts by its tiles
			row[i] += 50
		}
		want += float64(row[i]) / float64(len(row))
	}
	mem := nn.NewMemory()
	defer mem.Free()
	got, err := trained.read(t.Context(), mem, row, 0, s.Reading(), "")
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(got[0]-want) > 1e-4 {
		t.Errorf("got %g, want %g", got[0], want)
	}
}
