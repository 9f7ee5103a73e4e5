package slidessl

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
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

// TestWeightsAreCounted holds the count by which a file is judged before anything is made of it to the networks.
func TestWeightsAreCounted(t *testing.T) {
	for _, kind := range Kinds {
		a := DefaultArchitecture(kind, 40)
		got := 0
		for _, p := range NewNetwork(a, rand.New(rand.NewPCG(1, 1))).Params() {
			if p.Rows > 1 && kind != "attention" {
				got += len(p.Value)
			}
		}
		if kind != "attention" && got != a.weights() {
			t.Errorf("%s: %d weights, counted as %d", kind, got, a.weights())
		}
	}
}

// TestACardThatPromisesTooMuch reads a file of some bytes whose card speaks of gigabytes.
func TestACardThatPromisesTooMuch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bomb.safetensors")
	s := DefaultSettings("prototypes", "simclr", 1<<16)
	s.Architecture.Width, s.Architecture.Prototypes = 1<<13, 1<<14
	card, err := json.Marshal(Card{Settings: s, Reading: s.Reading()})
	if err != nil {
		t.Fatal(err)
	}
	if err := nn.Save(path, []*nn.Param{nn.NewParam("input.mean", 1, 4)}, map[string]string{"card": string(card), "format": fileFormat}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseLearned("bomb", raw); coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), "do not go into") {
		t.Errorf("got %v", err)
	}
}
