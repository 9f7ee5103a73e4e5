package augment

import (
	"errors"
	"math"
	"math/rand/v2"
)

// Crop is RandomResizedCrop of torchvision: a box with Scale of the tile's area and Ratio of width to
// height, anywhere in the tile, brought to size. One box serves all tiles of a view.
type Crop struct {
	Scale Range `json:"scale" yaml:"scale,flow"` // share of the tile's area, above 0, at most 1
	Ratio Range `json:"ratio" yaml:"ratio,flow"` // drawn uniformly in its logarithm
}

func (c *Crop) check() error {
	if !c.Scale.within(1e-3, 1) || !c.Ratio.within(0.01, 100) {
		return errors.New("crop: scale is two shares of the area from 0.001 to 1, ratio two from 0.01 to 100, the lesser first")
	}
	return nil
}

// draw tries ten boxes and then takes the largest that fits in the middle, as torchvision does.
func (c *Crop) draw(rng *rand.Rand) action {
	for range 10 {
		area := c.Scale.draw(rng)
		ratio := math.Exp(Range{math.Log(c.Ratio[0]), math.Log(c.Ratio[1])}.draw(rng))
		if w, h := math.Sqrt(area*ratio), math.Sqrt(area/ratio); w <= 1 && h <= 1 {
			return box{w: w, h: h, x: rng.Float64(), y: rng.Float64()}
		}
	}
	w, h := 1.0, 1.0
	if ratio := min(max(1, c.Ratio[0]), c.Ratio[1]); ratio > 1 {
		h = 1 / ratio
	} else {
		w = ratio
	}
	return box{w: w, h: h, x: 0.5, y: 0.5}
}

// box is a crop in shares: w and h of the tile's edge, x and y of the room that is left, below 1.
type box struct{ w, h, x, y float64 }

var whole = box{w: 1, h: 1}

// pixels is the box in a tile of this edge.
func (b box) pixels(size int) (x, y, w, h int) {
	w = max(1, int(math.Round(b.w*float64(size))))
	h = max(1, int(math.Round(b.h*float64(size))))
	return int(b.x * float64(size-w+1)), int(b.y * float64(size-h+1)), w, h
}

// apply is for the interface alone: Apply itself crops, on the way from the tile to dst.
func (box) apply([]uint8, int, *env) {}

// Resolution brings a tile to Factor of its edge and back, as if it had been scanned coarser.
type Resolution struct {
	Factor Range `json:"factor" yaml:"factor,flow"` // 0.01 to 1
}

func (r *Resolution) check() error {
	if !r.Factor.within(0.01, 1) {
		return errors.New("resolution: factor is two shares of the edge from 0.01 to 1, the lesser first")
	}
	return nil
}

func (r *Resolution) draw(rng *rand.Rand) action { return shrink(r.Factor.draw(rng)) }

type shrink float64

func (f shrink) apply(pixels []uint8, size int, c *env) {
	s := c.s
	small := max(1, int(math.Round(float64(f)*float64(size))))
	s.tile = grow(s.tile, small*small*3)
	resize(s.tile, small, small, pixels, size, 0, 0, size, size, s)
	resize(pixels, size, size, s.tile, small, 0, 0, small, small, s)
}

// resize brings the box (x, y, w, h) of src, rows of stride pixels, to dst, [dh, dw, 3]: the bilinear
// filter of Pillow and of torchvision with antialias, whose support grows with the factor when it
// makes smaller. Within 1 of Pillow, which rounds to whole values between its two passes.
func resize(dst []uint8, dw, dh int, src []uint8, stride, x, y, w, h int, s *Scratch) {
	if dw == w && dh == h {
		for row := range h {
			copy(dst[row*dw*3:][:dw*3], src[((y+row)*stride+x)*3:])
		}
		return
	}
	across, down := &s.taps[0], &s.taps[1]
	across.bilinear(w, dw, firstBits)
	down.bilinear(h, dh, secondBits)
	s.packed = grow(s.packed, w)
	s.rows = grow(s.rows, down.n*dw) // a ring of the rows the second pass needs at once
	next := 0
	for row := range dh {
		first := down.start[row]
		for ; next < first+down.n; next++ {
			pack(s.packed, src[((y+next)*stride+x)*3:])
			across.gather(s.rows[next%down.n*dw:][:dw], s.packed)
		}
		weights := down.weight[row*down.n:][:down.n]
		out := dst[row*dw*3:][:dw*3]
		if down.n == 2 { // to no smaller size: nearly always
			combine2(out, s.rows[first%2*dw:][:dw], s.rows[(first+1)%2*dw:][:dw], weights[0], weights[1])
			continue
		}
		for i := range dw {
			sum := secondHalf
			for k, weight := range weights {
				sum += weight * s.rows[(first+k)%down.n*dw+i]
			}
			unpack(out[i*3:], sum)
		}
	}
}

// A pixel's three channels stand in one word, 21 bits each, so that one multiplication serves all
// three. The first pass of a filter multiplies 8 bits by weights of 13 and keeps 10; the second
// multiplies those by weights of 11 and keeps 8. Sums stay below 2^21 as weights add up to one.
const (
	lane       = 21
	firstBits  = 13
	firstDrop  = firstBits - 2
	secondBits = 11
	secondDrop = secondBits + 2

	ones              = 1 | 1<<lane | 1<<(2*lane)
	firstHalf  uint64 = ones << (firstDrop - 1)
	firstMask  uint64 = ones * 0x3ff
	secondHalf uint64 = ones << (secondDrop - 1)
)

func pack(dst []uint64, src []uint8) {
	for i := range dst {
		p := src[i*3:][:3:3]
		dst[i] = uint64(p[0]) | uint64(p[1])<<lane | uint64(p[2])<<(2*lane)
	}
}

func unpack(dst []uint8, sum uint64) {
	_ = dst[2]
	dst[0] = uint8(sum >> secondDrop & 0xff)
	dst[1] = uint8(sum >> (secondDrop + lane) & 0xff)
	dst[2] = uint8(sum >> (secondDrop + 2*lane) & 0xff)
}

func combine2(dst []uint8, a, b []uint64, wa, wb uint64) {
	b = b[:len(a)]
	for i, p := range a {
		unpack(dst[i*3:][:3:3], p*wa+b[i]*wb+secondHalf)
	}
}

// taps say for each output which inputs it is made of: n from start on, with their weights.
type taps struct {
	n      int
	start  []int
	weight []uint64 // [outputs, n]
	exact  []float64
}

// bilinear computes the triangle filter that brings in values to out.
func (t *taps) bilinear(in, out int, bits uint) {
	scale := float64(in) / float64(out)
	support := max(scale, 1)
	t.n = min(int(math.Ceil(support))*2, in)
	t.start = grow(t.start, out)
	t.weight = grow(t.weight, out*t.n)
	t.exact = grow(t.exact, t.n)
	for i := range out {
		centre := (float64(i) + 0.5) * scale
		first := max(0, int(centre-support+0.5))
		last := min(in, int(centre+support+0.5))
		t.start[i] = min(first, in-t.n)
		total := 0.0
		for k := range t.n {
			t.exact[k] = 0
			if j := t.start[i] + k; j >= first && j < last {
				t.exact[k] = max(0, 1-math.Abs(float64(j)+0.5-centre)/support)
			}
			total += t.exact[k]
		}
		fixed(t.weight[i*t.n:][:t.n], t.exact, total, bits)
	}
}

// fixed rounds weights/total to whole numbers that add up to 1<<bits; the largest takes what is left.
func fixed(dst []uint64, weights []float64, total float64, bits uint) {
	left, largest := uint64(1)<<bits, 0
	for k, w := range weights {
		dst[k] = uint64(w/total*float64(uint64(1)<<bits) + 0.5)
		left -= dst[k] // may wrap below zero, and back when it is added
		if w > weights[largest] {
			largest = k
		}
	}
	dst[largest] += left
}

// gather is the first pass: each of dst is a weighted sum of its inputs.
func (t *taps) gather(dst, src []uint64) {
	if t.n == 2 {
		for i, first := range t.start {
			p, w := src[first:][:2:2], t.weight[i*2:][:2:2]
			dst[i] = (p[0]*w[0] + p[1]*w[1] + firstHalf) >> firstDrop & firstMask
		}
		return
	}
	for i, first := range t.start {
		sum := firstHalf
		for k, w := range t.weight[i*t.n:][:t.n] {
			sum += w * src[first+k]
		}
		dst[i] = sum >> firstDrop & firstMask
	}
}
