package tiler

import (
	"cmp"
	"math/bits"
	"slices"

	"coverslip"
)

// Spread returns the tiles in an order that any first n of are spread evenly over all: sorted along a
// Hilbert curve, then drawn by a van der Corput sequence, scrambled. Tiles next to each other look alike, so
// such a sample of n says more of the slide than n independent draws (He and Owen, Extensible grids: uniform
// sampling on a space filling curve, JRSS B 78, 2016). Scrambled, the first 2^k are one random tile from
// each of 2^k equal stretches of the curve, which is never worse than independent draws, whatever repeats
// on the slide; only shifted, they would be every so many-th. Equal seeds give equal orders; the order of
// the given tiles does not count.
func Spread(tiles []coverslip.Tile, seed uint64) []coverslip.Tile {
	n := len(tiles)
	if n < 2 {
		return slices.Clone(tiles)
	}
	along := AlongCurve(tiles)
	digits := bits.Len(uint(n - 1)) // 2^digits ≥ n, so that every place on the curve is met
	key := mix(seed)
	out := make([]coverslip.Tile, 0, n)
	taken := make([]bool, n)
	for i := range uint64(1) << digits {
		place := int(scrambled(bits.Reverse64(i)>>(64-digits), digits, key) * uint64(n) >> digits) //nolint:gosec // below n
		if !taken[place] {
			taken[place] = true
			out = append(out, tiles[along[place]])
		}
	}
	return out
}

// scrambled flips each bit of v at random, but alike for all numbers with the same bits before it (Owen,
// Randomly permuted (t,m,s)-nets and (t,s)-sequences, 1995).
func scrambled(v uint64, digits int, key uint64) (out uint64) {
	for b := digits - 1; b >= 0; b-- {
		before := v>>(b+1) | 1<<(digits-1-b) // the one in front tells their number
		out |= (v>>b&1 ^ mix(key^before)>>63) << b
	}
	return out
}

// mix is the hash of SplitMix64 (Steele, Lea and Flood 2014).
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
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
