package tissue

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// Plain versions of what tissue.go and bits.go do fast. Tests hold the two together.

// closingPlain is dilation then erosion by a (2r+1)-pixel square, separable into rows and columns.
// Outside the picture counts as the neutral value of each, so borders are not eaten.
func closingPlain(src []bool, width, height, r int) []bool {
	out := append([]bool(nil), src...)
	for _, grow := range []bool{true, false} {
		for y := range height {
			spread(out[y*width:(y+1)*width], 1, width, r, grow)
		}
		for x := range width {
			spread(out[x:], width, height, r, grow)
		}
	}
	return out
}

// spread gives the value `of` to every element of a strided line within r of one that has it.
func spread(line []bool, stride, n, r int, of bool) {
	last := -r - 1 // nearest element to the left that had the value
	had := make([]bool, n)
	for i := range n {
		had[i] = line[i*stride] == of
	}
	next := -1
	for i := range n {
		if had[i] {
			last = i
		}
		if next < i {
			next = i
			for next < n && !had[next] {
				next++
			}
		}
		if i-last <= r || (next < n && next-i <= r) {
			line[i*stride] = of
		}
	}
}

// flipPlain inverts every 4-connected piece of the given value that has fewer than least pixels.
// A hole that touches the border is open and stays.
func flipPlain(mask []bool, width, height int, value bool, least int) {
	if least <= 1 {
		return
	}
	seen := make([]bool, len(mask))
	var piece []int
	for start := range mask {
		if seen[start] || mask[start] != value {
			continue
		}
		piece = append(piece[:0], start)
		seen[start] = true
		open := false
		for i := 0; i < len(piece); i++ {
			p := piece[i]
			x, y := p%width, p/width
			if x == 0 || y == 0 || x == width-1 || y == height-1 {
				open = true
			}
			for _, d := range [4][2]int{{-1, 0}, {1, 0}, {0, -1}, {0, 1}} {
				u, v := x+d[0], y+d[1]
				q := v*width + u
				if u < 0 || v < 0 || u >= width || v >= height || seen[q] || mask[q] != value {
					continue
				}
				seen[q] = true
				piece = append(piece, q)
			}
		}
		if len(piece) < least && (value || !open) {
			for _, p := range piece {
				mask[p] = !value
			}
		}
	}
}

// pack makes a bitmap of one value a pixel.
func pack(m []bool, width, height int) *bitmap {
	v := make([]uint8, len(m))
	for i, on := range m {
		if on {
			v[i] = 1
		}
	}
	return above(v, width, height, 0)
}

func TestBitmapsEqualThePlainWay(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, size := range [][2]int{{1, 1}, {1, 40}, {40, 1}, {63, 20}, {64, 20}, {65, 20}, {130, 33}, {257, 64}} {
		w, h := size[0], size[1]
		for _, share := range []float64{0.05, 0.3, 0.5, 0.7, 0.95} {
			m := make([]bool, w*h)
			for i := range m {
				m[i] = rng.Float64() < share
			}
			got := make([]bool, w*h)
			for _, r := range []int{0, 1, 2, 5, 70} {
				b := pack(m, w, h)
				b.closing(r)
				if b.unpack(got); !slices.Equal(got, closingPlain(m, w, h, r)) {
					t.Errorf("%d×%d, %g set: closing by %d differs", w, h, share, r)
				}
			}
			for _, least := range []int{0, 2, 5, 40, 1000} {
				for _, value := range []bool{true, false} {
					b, want := pack(m, w, h), slices.Clone(m)
					b.flip(value, least)
					flipPlain(want, w, h, value, least)
					if b.unpack(got); !slices.Equal(got, want) {
						t.Errorf("%d×%d, %g set: flip of %t below %d differs", w, h, share, value, least)
					}
				}
			}
		}
	}
}
