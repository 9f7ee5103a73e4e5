package tiler

import (
	"cmp"
	"math/bits"
	"slices"

	"coverslip"
)

// Spread returns the tiles in an order that any first n of are spread evenly over all: sorted along a
// Hilbert curve, then drawn by a van der Corput sequence with a random digital shift. Tiles next to
// each other look alike, so such a sample of n says more of the slide than n independent draws (He
// and Owen, Extensible grids: uniform sampling on a space filling curve, JRSS B 78, 2016). Equal
// seeds give equal orders; the order of the given tiles does not count.
func Spread(tiles []coverslip.Tile, seed uint64) []coverslip.Tile {
	n := len(tiles)
	if n < 2 {
		return slices.Clone(tiles)
	}
	along := AlongCurve(tiles)
	digits := bits.Len(uint(n - 1)) // 2^digits ≥ n, so that every place on the curve is met
	shift := seed * 0x9e3779b97f4a7c15 >> (64 - digits)
	out := make([]coverslip.Tile, 0, n)
	taken := make([]bool, n)
	for i := range uint64(1) << digits {
		place := int((bits.Reverse64(i)>>(64-digits) ^ shift) * uint64(n) >> digits) //nolint:gosec // below n
		if !taken[place] {
			taken[place] = true
			out = append(out, tiles[along[place]])
		}
	}
	return out
}

// AlongCurve returns the indices of tiles in their order along a Hilbert curve: neighbours in it are
// near each other on the slide.
func AlongCurve(tiles []coverslip.Tile) []int {
	var far int64
	for _, t := range tiles {
		far = max(far, t.X, t.Y)
	}
	order := bits.Len64(uint64(max(far, 0)))
	place := make([]uint64, len(tiles))
	index := make([]int, len(tiles))
	for i, t := range tiles {
		place[i], index[i] = hilbert(uint64(max(t.X, 0)), uint64(max(t.Y, 0)), order), i
	}
	slices.SortStableFunc(index, func(a, b int) int { return cmp.Compare(place[a], place[b]) })
	return index
}

// hilbert is how far along the curve through a square of 2^order points the point (x, y) lies.
func hilbert(x, y uint64, order int) (d uint64) {
	for s := uint64(1) << order >> 1; s > 0; s >>= 1 {
		var rx, ry uint64
		if x&s != 0 {
			rx = 1
		}
		if y&s != 0 {
			ry = 1
		}
		d += s * s * (3*rx ^ ry)
		if ry == 0 { // turn the quarter, so that its ends meet its neighbours'
			if rx == 1 {
				x, y = s-1-(x&(s-1)), s-1-(y&(s-1))
			}
			x, y = y, x
		}
	}
	return d
}
