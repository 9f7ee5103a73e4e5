package augment

import (
	"errors"
	"math"
	"math/rand/v2"
)

// Blur is a Gaussian of Kernel × Kernel pixels, the picture mirrored at its edges without repeating
// the edge itself, as torchvision's.
type Blur struct {
	Kernel int   `json:"kernel" yaml:"kernel"` // odd, 3 to 31
	Sigma  Range `json:"sigma" yaml:"sigma,flow"`
}

func (b *Blur) check() error {
	if b.Kernel < 3 || b.Kernel > 31 || b.Kernel%2 == 0 || !b.Sigma.within(0.01, 100) {
		return errors.New("blur: kernel is odd, 3 to 31 pixels; sigma is two from 0.01 to 100 pixels, the lesser first")
	}
	return nil
}

func (b *Blur) draw(rng *rand.Rand) action { return newGaussian(b.Kernel, b.Sigma.draw(rng)) }

// gaussian holds the weights of both passes, from the first to the last.
type gaussian struct{ first, second []uint64 }

func newGaussian(kernel int, sigma float64) gaussian {
	exact, total := make([]float64, kernel), 0.0
	for k := range exact {
		d := float64(k-kernel/2) / sigma
		exact[k] = math.Exp(-d * d / 2)
		total += exact[k]
	}
	g := gaussian{make([]uint64, kernel), make([]uint64, kernel)}
	fixed(g.first, exact, total, firstBits)
	fixed(g.second, exact, total, secondBits)
	return g
}

// apply filters in place: a row is written once all rows that need it went through the first pass.
func (g gaussian) apply(pixels []uint8, size int, c *env) {
	s, n := c.s, len(g.first)
	half := n / 2
	s.packed = grow(s.packed, size+2*half)
	s.rows = grow(s.rows, n*size)
	var rows [31][]uint64
	next := 0
	for y := range size {
		for ; next <= min(y+half, size-1); next++ {
			pack(s.packed[half:][:size], pixels[next*size*3:])
			for k := 1; k <= half; k++ {
				s.packed[half-k] = s.packed[half+mirror(-k, size)]
				s.packed[half+size-1+k] = s.packed[half+mirror(size-1+k, size)]
			}
			across(s.rows[next%n*size:][:size], s.packed, g.first)
		}
		for k := range n {
			rows[k] = s.rows[mirror(y+k-half, size)%n*size:][:size]
		}
		down(pixels[y*size*3:][:size*3], rows[:n], g.second)
	}
}

// mirror is the index that stands for i outside of 0 to n-1.
func mirror(i, n int) int {
	if n == 1 {
		return 0
	}
	for i < 0 || i >= n {
		if i < 0 {
			i = -i
		} else {
			i = 2*(n-1) - i
		}
	}
	return i
}

// across is the first pass over one row with its margins.
func across(dst, src, weights []uint64) {
	if len(weights) == 5 {
		edge, near, mid := weights[0], weights[1], weights[2]
		for i := range dst {
			p := src[i:][:5:5]
			dst[i] = ((p[0]+p[4])*edge + (p[1]+p[3])*near + p[2]*mid + firstHalf) >> firstDrop & firstMask
		}
		return
	}
	for i := range dst {
		sum := firstHalf
		for k, w := range weights {
			sum += w * src[i+k]
		}
		dst[i] = sum >> firstDrop & firstMask
	}
}

// down is the second pass: one row from the len(weights) around it.
func down(dst []uint8, rows [][]uint64, weights []uint64) {
	if len(weights) == 5 {
		edge, near, mid := weights[0], weights[1], weights[2]
		a, e := rows[0], rows[4][:len(rows[0])]
		b, d, m := rows[1][:len(a)], rows[3][:len(a)], rows[2][:len(a)]
		for i := range a {
			unpack(dst[i*3:][:3:3], (a[i]+e[i])*edge+(b[i]+d[i])*near+m[i]*mid+secondHalf)
		}
		return
	}
	for i := range rows[0] {
		sum := secondHalf
		for k, w := range weights {
			sum += w * rows[k][i]
		}
		unpack(dst[i*3:], sum)
	}
}
