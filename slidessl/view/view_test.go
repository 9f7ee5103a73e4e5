package view_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"coverslip"
	"coverslip/slidessl/view"
)

func grid(n int) (places []view.Place) {
	for i := range n * n {
		places = append(places, view.Place{X: float64(i % n), Y: float64(i / n)})
	}
	return places
}

func TestEqualSeedsGiveEqualViews(t *testing.T) {
	s := view.Default()
	draw := func(seed uint64) ([]int, []view.Place) {
		tiles, at, err := s.Draw(rand.New(rand.NewPCG(seed, 1)), 0, grid(9))
		if err != nil {
			t.Fatal(err)
		}
		return tiles, at
	}
	tiles, at := draw(1)
	again, atAgain := draw(1)
	other, _ := draw(2)
	same := 0
	for i := range tiles {
		if tiles[i] != again[i] || at[i] != atAgain[i] {
			t.Fatal("equal seeds give different views")
		}
		if tiles[i] == other[i] {
			same++
		}
	}
	if len(tiles) != 5 || same == 5 {
		t.Errorf("%d tiles, %d the same under another seed", len(tiles), same)
	}
}

func TestMapsAreTurnedMirroredStretchedAndShifted(t *testing.T) {
	dist := func(a, b view.Place) float64 { return math.Hypot(a.X-b.X, a.Y-b.Y) }
	for name, c := range map[string]struct {
		spec view.Spec
		hold func(ratio float64, moved, mirrored bool) bool
	}{
		"Nothing": {view.Spec{Tiles: 40}, func(r float64, moved, mirrored bool) bool { return r == 1 && !moved && !mirrored }},
		"Rotate":  {view.Spec{Tiles: 40, Rotate: true}, func(r float64, moved, mirrored bool) bool { return math.Abs(r-1) < 1e-9 && moved && !mirrored }},
		"Flip":    {view.Spec{Tiles: 40, Flip: true}, func(r float64, _, _ bool) bool { return math.Abs(r-1) < 1e-9 }},
		"Scale":   {view.Spec{Tiles: 40, Scale: [2]float64{0.7, 1.3}}, func(r float64, moved, mirrored bool) bool { return r > 0.69 && r < 1.31 && moved && !mirrored }},
		"Shift":   {view.Spec{Tiles: 40, Shift: true}, func(r float64, _, mirrored bool) bool { return math.Abs(r-1) < 1e-9 && !mirrored }},
	} {
		t.Run(name, func(t *testing.T) {
			places := grid(9)
			mirroredOnce := false
			for seed := range uint64(20) {
				tiles, at, err := c.spec.Draw(rand.New(rand.NewPCG(seed, 3)), 0, places)
				if err != nil {
					t.Fatal(err)
				}
				a, b, third := 0, 1, 2
				for dist(places[tiles[a]], places[tiles[b]]) == 0 {
					b++
				}
				before := func(i int) view.Place { return places[tiles[i]] }
				cross := func(p, q, r view.Place) float64 { return (q.X-p.X)*(r.Y-p.Y) - (q.Y-p.Y)*(r.X-p.X) }
				for third < len(tiles)-1 && cross(before(a), before(b), before(third)) == 0 {
					third++
				}
				mirrored := cross(before(a), before(b), before(third))*cross(at[a], at[b], at[third]) < 0
				mirroredOnce = mirroredOnce || mirrored
				moved := at[a] != before(a) || at[b] != before(b)
				if !c.hold(dist(at[a], at[b])/dist(before(a), before(b)), moved, mirrored) {
					t.Fatalf("seed %d: %v and %v came to lie at %v and %v", seed, before(a), before(b), at[a], at[b])
				}
			}
			if mirroredOnce != (name == "Flip") {
				t.Errorf("mirrored: %v", mirroredOnce)
			}
		})
	}
}

func TestCropsDropsAndSmallViews(t *testing.T) {
	places := grid(20)
	s := view.Spec{Tiles: 60, Crop: 0.3, Drop: 0.5, Small: 2, SmallTiles: 3, SmallCrop: 0.1}
	if s.Views() != 4 {
		t.Errorf("%d views", s.Views())
	}
	for seed := range uint64(30) {
		for n, limits := range []struct {
			most int
			wide float64
		}{{60, 6.3}, {60, 6.3}, {3, 2.1}, {3, 2.1}} {
			tiles, _, err := s.Draw(rand.New(rand.NewPCG(seed, 1)), n, places)
			if err != nil {
				t.Fatal(err)
			}
			low, high := places[tiles[0]], places[tiles[0]]
			for _, i := range tiles {
				p := places[i]
				low, high = view.Place{X: min(low.X, p.X), Y: min(low.Y, p.Y)}, view.Place{X: max(high.X, p.X), Y: max(high.Y, p.Y)}
			}
			if len(tiles) < 1 || len(tiles) > limits.most || high.X-low.X > limits.wide || high.Y-low.Y > limits.wide {
				t.Fatalf("view %d: %d tiles from %v to %v", n, len(tiles), low, high)
			}
		}
	}
	// One tile is never lost.
	lone := view.Spec{Tiles: 1, Drop: 0.99}
	for seed := range uint64(50) {
		if tiles, _, err := lone.Draw(rand.New(rand.NewPCG(seed, 1)), 0, places); err != nil || len(tiles) != 1 {
			t.Fatal(tiles, err)
		}
	}
}

func TestASlideWithoutTiles(t *testing.T) {
	if _, _, err := view.Default().Draw(rand.New(rand.NewPCG(1, 1)), 0, nil); err == nil {
		t.Error("a view of nothing")
	}
}

func TestWrongSpecsAreRefused(t *testing.T) {
	if err := view.Default().Check(); err != nil {
		t.Error(err)
	}
	for name, s := range map[string]view.Spec{
		"NoTiles":       {},
		"ScaleBackward": {Tiles: 5, Scale: [2]float64{1.3, 0.7}},
		"ScaleNaN":      {Tiles: 5, Scale: [2]float64{math.NaN(), 1}},
		"CropTooLarge":  {Tiles: 5, Crop: 1.5},
		"DropAll":       {Tiles: 5, Drop: 1},
		"SmallOfNone":   {Tiles: 5, Small: 3},
	} {
		if err := s.Check(); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPitchIsTheLeastDistance(t *testing.T) {
	for _, c := range []struct {
		corners []int64
		want    float64
	}{{[]int64{0, 0, 448, 224, 224, 0}, 224}, {[]int64{5, 5}, 1}, {nil, 1}, {[]int64{3, 0, 3, 100}, 100}} {
		if got := view.Pitch(c.corners); got != c.want {
			t.Errorf("%v: %g, want %g", c.corners, got, c.want)
		}
	}
	if p := view.Places([]int64{448, 224}, 224); p[0] != (view.Place{X: 2, Y: 1}) {
		t.Errorf("%v", p)
	}
}

func TestPiecesOfTissueAreLeftOutWhole(t *testing.T) {
	// Two pieces, of which the second has a tile off the grid, and one tile alone.
	places := []view.Place{{0, 0}, {1, 1}, {2, 1}, {10, 10}, {11.4, 10}, {20, 0}}
	piece, n := view.Pieces(places)
	if !slices.Equal(piece, []int{0, 0, 0, 1, 1, 2}) || n != 3 {
		t.Fatal(piece, n)
	}
	s := view.Spec{Tiles: 40, Pieces: 0.9}
	rng := rand.New(rand.NewPCG(1, 2))
	met := map[int]int{} // by which pieces a view shows
	for range 300 {
		tiles, _, err := s.Draw(rng, 0, places)
		if err != nil {
			t.Fatal(err)
		}
		shown := 0
		for _, tile := range tiles {
			shown |= 1 << piece[tile]
		}
		met[shown]++
	}
	if met[0] > 0 || met[1] < 60 || met[2] < 40 || met[4] < 20 || met[1]+met[2]+met[4] < 240 || len(met) < 4 {
		t.Errorf("views of these pieces: %v", met)
	}
}

func TestQuartersTurnTheMap(t *testing.T) {
	at := []view.Place{{2, 1}, {0, 3}}
	view.Quarters(at, 1)
	if want := []view.Place{{-1, 2}, {-3, 0}}; !slices.Equal(at, want) {
		t.Errorf("%v", at)
	}
	view.Quarters(at, 3)
	if want := []view.Place{{2, 1}, {0, 3}}; !slices.Equal(at, want) {
		t.Errorf("%v after four quarters", at)
	}
}
