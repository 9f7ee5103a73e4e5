package tiler_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"coverslip"
	"coverslip/tiler"
)

// grid is w×h tiles of 100 pixels, less those outside a disc, so that rows differ in length.
func grid(w, h int) (tiles []coverslip.Tile) {
	for y := range h {
		for x := range w {
			if math.Hypot(float64(x)/float64(w)-.5, float64(y)/float64(h)-.5) < .5 {
				tiles = append(tiles, coverslip.Tile{X: int64(x * 100), Y: int64(y * 100)})
			}
		}
	}
	return tiles
}

func TestSpreadIsAPermutation(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 7, 8, 9, 100, 1000, 1181} {
		tiles := grid(60, 40)[:n]
		for seed := range uint64(5) {
			got := tiler.Spread(tiles, seed)
			sorted := slices.Clone(got)
			slices.SortFunc(sorted, func(a, b coverslip.Tile) int {
				if a.Y != b.Y {
					return int(a.Y - b.Y)
				}
				return int(a.X - b.X)
			})
			if !slices.Equal(sorted, tiles) {
				t.Fatalf("%d tiles, seed %d: not the same tiles", n, seed)
			}
			shuffled := slices.Clone(tiles)
			rand.New(rand.NewPCG(seed, 1)).Shuffle(n, func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			if !slices.Equal(tiler.Spread(shuffled, seed), got) {
				t.Fatalf("%d tiles, seed %d: the order of the given tiles counts", n, seed)
			}
		}
	}
	if a, b := tiler.Spread(grid(20, 20), 1), tiler.Spread(grid(20, 20), 2); slices.Equal(a, b) {
		t.Error("two seeds give one order")
	}
}

// TestCurveHasNoJumps: on a square whose side is a power of two, a Hilbert curve only ever steps to a
// neighbour.
func TestCurveHasNoJumps(t *testing.T) {
	var tiles []coverslip.Tile
	for i := range 256 {
		tiles = append(tiles, coverslip.Tile{X: int64(i % 16), Y: int64(i / 16)})
	}
	along := tiler.AlongCurve(tiles)
	for i := 1; i < len(along); i++ {
		a, b := tiles[along[i-1]], tiles[along[i]]
		if abs(a.X-b.X)+abs(a.Y-b.Y) != 1 {
			t.Fatalf("step %d goes from %v to %v", i, a, b)
		}
	}
}

func abs(v int64) int64 { return max(v, -v) }

// TestFirstTilesAreAFairSample: over many seeds the mean of a smooth function over the first n tiles
// is unbiased, and nearer to its mean over all than that of n independent draws.
func TestFirstTilesAreAFairSample(t *testing.T) {
	tiles := grid(50, 30)
	value := func(t coverslip.Tile) float64 { return math.Sin(float64(t.X)/900) + math.Cos(float64(t.Y)/700) }
	var all float64
	for _, x := range tiles {
		all += value(x) / float64(len(tiles))
	}
	const seeds = 200
	for _, n := range []int{16, 24, 64, 100, 128, 300, 512} {
		var bias, spread, independent float64
		for seed := range uint64(seeds) {
			var mean, other float64
			rng := rand.New(rand.NewPCG(seed, 7))
			drawn := rng.Perm(len(tiles))
			for i, x := range tiler.Spread(tiles, rng.Uint64())[:n] {
				mean += value(x) / float64(n)
				other += value(tiles[drawn[i]]) / float64(n)
			}
			bias += (mean - all) / seeds
			spread += (mean - all) * (mean - all) / seeds
			independent += (other - all) * (other - all) / seeds
		}
		if spread > independent/2 {
			t.Errorf("first %d: mean square error %.2g, independent draws %.2g", n, spread, independent)
		}
		if math.Abs(bias) > 4*math.Sqrt(independent/seeds) {
			t.Errorf("first %d: off by %.2g on average", n, bias)
		}
	}
}
