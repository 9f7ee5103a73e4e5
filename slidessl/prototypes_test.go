package slidessl

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"coverslip/internal/nn"
	"coverslip/slidessl/objective"
	"coverslip/slidessl/view"
)

// tissues is slides of two kinds of tile, of which share tells how many are of the second; each slide has a stain of its own,
// which is added to all of its tiles.
func tissues(shares, stains []float64, tiles int, rng *rand.Rand) (x []float32, slides nn.Segments) {
	slides = nn.Segments{0}
	for s, share := range shares {
		for i := range tiles {
			kind := -1.0
			if float64(i) < share*float64(tiles) {
				kind = 1
			}
			x = append(x, float32(kind+0.05*rng.NormFloat64()), float32(2*kind+0.05*rng.NormFloat64()), float32(stains[s]))
		}
		slides = append(slides, len(x)/3)
	}
	return x, slides
}

// TestPrototypesDoNotSeeTheStain holds likeness to kinds of tissue: it tells how much of a slide is of each, whatever is
// added to all of its tiles.
func TestPrototypesDoNotSeeTheStain(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	x, slides := tissues([]float64{0.5, 0.5, 0.5, 0.5}, []float64{0, 9, -9, 4}, 50, rng)
	n := NewNetwork(Architecture{Kind: "prototypes", Input: 3, Width: 2, Prototypes: 2, Readout: "mean"}, rng)
	n.Fit(x, slides, rng)
	if got := n.stem.W.Value; got[1*4+0] != 1 || got[0*4+1] != 1 { // feature 1 varies most within slides, then feature 0
		t.Errorf("the stem is %v", got)
	}
	read := func(x []float32, means []float32) []float32 {
		g := nn.NewGraph(nn.NewMemory(), false)
		defer g.Close()
		h := n.Forward(g, view.Batch{X: x, Dim: 3, At: places(len(x) / 3), Bags: nn.Segments{0, len(x) / 3}, Means: means})
		if err := g.Forward(h); err != nil {
			t.Fatal(err)
		}
		return append([]float32(nil), h.Value()...)
	}
	one, _ := tissues([]float64{0.5}, []float64{0}, 40, rng)
	stained := append([]float32(nil), one...)
	for i := range stained {
		stained[i] += 3
	}
	a, b := read(one, nil), read(stained, nil)
	for k := 2; k < 4; k++ { // behind the features
		if math.Abs(float64(a[k])-math.Sqrt2/2) > 0.02 {
			t.Errorf("likeness %d is %g of √2", k, a[k])
		}
		if math.Abs(float64(a[k]-b[k])) > 1e-4 {
			t.Errorf("likeness %d is %g, with a stain %g", k, a[k], b[k])
		}
	}
	if math.Abs(float64(a[0]-b[0])) < 0.1 {
		t.Error("features do not see the stain, either")
	}
	// A piece of one kind of tissue is compared with the slide it is of, where that is said.
	piece, _ := tissues([]float64{1}, []float64{0}, 40, rng)
	if own, whole := read(piece, nil), read(piece, []float32{0, 0, 0}); math.Abs(float64(whole[2]-whole[3])) < 1.3 || math.Abs(float64(own[2]-own[3])) > 0.7 {
		t.Errorf("a piece is read as %v, relative to its slide as %v", own, whole)
	}
}

func places(n int) []view.Place {
	at := make([]view.Place, n)
	for i := range at {
		at[i] = view.Place{X: float64(i % 10 * 5), Y: float64(i / 10 * 5)} // none beside another
	}
	return at
}

// TestCentresAreThoseOfKMeans finds four heaps, and does not fall over where there are fewer rows than centres.
func TestCentresAreThoseOfKMeans(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var x []float32
	for i := range 400 {
		x = append(x, float32(i%4%2*10)+0.1*float32(rng.NormFloat64()), float32(i%4/2*10)+0.1*float32(rng.NormFloat64()))
	}
	got := centres(x, 2, 4, rng)
	found := map[[2]int]bool{}
	for _, c := range got {
		found[[2]int{int(math.Round(float64(c[0]))), int(math.Round(float64(c[1])))}] = true
	}
	for _, want := range [][2]int{{0, 0}, {10, 0}, {0, 10}, {10, 10}} {
		if !found[want] {
			t.Errorf("no centre at %v: %v", want, got)
		}
	}
	for _, c := range centres([]float32{1, 2, 1, 2}, 2, 5, rng) {
		if c[0] != 1 || c[1] != 2 {
			t.Errorf("of equal rows a centre is %v", c)
		}
	}
}

// TestPiecesOfALargeSlideShareItsMean holds a slide of several pieces to the same slide read as one bag.
func TestPiecesOfALargeSlideShareItsMean(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	s := DefaultSettings("prototypes", "simclr", 1)
	s.Architecture.Width, s.Architecture.Prototypes, s.Architecture.Readout = 2, 3, "mean"
	o, err := objective.New("simclr", s.Architecture.Dim(), objective.Options{}, rng)
	if err != nil {
		t.Fatal(err)
	}
	trained := &Trained{Network: NewNetwork(s.Architecture, rng), Objective: o, Settings: s}
	row := make(lengths, wholeTiles+1000)
	for i := range row {
		row[i] = float32(i*3/len(row)) + 0.1*rng.Float32() // three bands, so that no piece is like the whole
	}
	trained.Network.Fit(row[:], nn.Segments{0, len(row)}, rng)
	mem := nn.NewMemory()
	defer mem.Free()
	got, err := trained.read(t.Context(), mem, row, 0, s.Reading(), "")
	if err != nil {
		t.Fatal(err)
	}
	places, err := row.Places(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	want, _, err := trained.forward(mem, view.Batch{X: row, Dim: 1, At: places, Bags: nn.Segments{0, len(row)}}, "")
	if err != nil {
		t.Fatal(err)
	}
	for k := 2; k < len(want); k++ {
		if math.Abs(got[k]-float64(want[k])) > 1e-3 {
			t.Errorf("likeness %d is %g in pieces, %g in one", k, got[k], want[k])
		}
	}
}

// TestAStemThatChoosesIsNotMultipliedBy compares the short way through a stem that takes features as they are with the
// product, bit for bit; and a stem that does anything else goes the long way.
func TestAStemThatChoosesIsNotMultipliedBy(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	const input, tiles = 20, 30
	x := make([]float32, 4*tiles*input)
	for i := range x {
		x[i] = float32(rng.NormFloat64() * float64(i%input+1))
	}
	slides := nn.Segments{0, tiles, 2 * tiles, 3 * tiles, 4 * tiles}
	at := places(4 * tiles)
	at[1] = at[0] // two tiles of one place
	run := func(n *Network, means []float32) ([]float32, []float32) {
		n.prototypes.W.Grad = nil
		g := nn.NewGraph(nn.NewMemory(), true)
		defer g.Close()
		h := n.Forward(g, view.Batch{X: x, Dim: input, At: at, Bags: slides, Means: means})
		if _, err := g.Backward(nn.Mean(nn.Mul(h, h))); err != nil {
			t.Fatal(err)
		}
		return append([]float32(nil), h.Value()...), append([]float32(nil), n.prototypes.W.Grad...)
	}
	means := make([]float32, 4*input)
	for i := range means {
		means[i] = float32(i % 3)
	}
	for _, means := range [][]float32{nil, means} {
		n := NewNetwork(Architecture{Kind: "prototypes", Input: input, Width: 8, Prototypes: 3, Readout: "mean+sd"}, rng)
		n.Fit(x, slides, rng)
		if len(n.chosen()) != 16 {
			t.Fatalf("%v is chosen", n.chosen())
		}
		short, shortGrad := run(n, means)
		n.stemTakes = nil
		long, longGrad := run(n, means)
		if !slices.Equal(short, long) || !slices.Equal(shortGrad, longGrad) {
			t.Error("the short way gives other bits")
		}
	}
	for what, change := range map[string]func(n *Network){
		"a weight of two":          func(n *Network) { n.stem.W.Value[n.chosen()[0]*16] = 2 },
		"a sum of two features":    func(n *Network) { n.stem.W.Value[(n.chosen()[0]+1)%input*16] = 1 },
		"a bias":                   func(n *Network) { n.stem.B.Value[3] = 1 },
		"a column of nothing":      func(n *Network) { n.stem.W.Value[n.chosen()[0]*16] = 0 },
		"weights that are learned": func(n *Network) { n.stem.W.Fixed = false },
	} {
		n := NewNetwork(Architecture{Kind: "prototypes", Input: input, Width: 8, Prototypes: 3, Readout: "mean"}, rng)
		n.Fit(x, slides, rng)
		change(n)
		n.stemOnce = sync.Once{}
		if n.chosen() != nil {
			t.Errorf("%s: %v is chosen", what, n.chosen())
		}
	}
}
