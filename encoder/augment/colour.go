package augment

import (
	"errors"
	"math/rand/v2"
)

// Jitter is ColorJitter of torchvision: brightness, contrast and saturation times a factor of
// max(0, 1-v) to 1+v each, hue turned by -v to v of the circle, in an order drawn for the view. As
// there, each rounds down to whole values before the next.
type Jitter struct {
	Brightness float64 `json:"brightness" yaml:"brightness"`
	Contrast   float64 `json:"contrast" yaml:"contrast"`
	Saturation float64 `json:"saturation" yaml:"saturation"`
	Hue        float64 `json:"hue" yaml:"hue"` // at most 0.5
}

func (j *Jitter) check() error {
	for _, v := range []float64{j.Brightness, j.Contrast, j.Saturation} {
		if !(v >= 0 && v <= 10) {
			return errors.New("jitter: brightness, contrast and saturation are 0 to 10")
		}
	}
	if !(j.Hue >= 0 && j.Hue <= 0.5) {
		return errors.New("jitter: hue is 0 to 0.5 of the circle")
	}
	return nil
}

func (j *Jitter) draw(rng *rand.Rand) action {
	var d jitter
	for i, v := range []float64{j.Brightness, j.Contrast, j.Saturation} {
		d.by[i] = Range{max(0, 1-v), 1 + v}.draw(rng)
	}
	d.by[hue] = Range{-j.Hue, j.Hue}.draw(rng)
	d.order = [4]int(rng.Perm(4))
	return d
}

// The four changes of a jitter, by which its parameters are indexed.
const (
	brightness = iota
	contrast
	saturation
	hue
)

type jitter struct {
	by    [4]float64
	order [4]int
}

// apply looks values up in a table as long as the changes are of single values; the table is applied
// where a change needs the pixel as a whole.
func (j jitter) apply(pixels []uint8, _ int, _ *env) {
	var t table
	pending := false
	for _, change := range j.order {
		f := j.by[change]
		switch {
		case change == hue && f == 0 || change != hue && f == 1:
			continue
		case change == brightness && !pending:
			t, pending = blendTable(f, 0), true
			continue
		case change == brightness:
			t = t.then(blendTable(f, 0))
			continue
		}
		if pending {
			t.apply(pixels)
			pending = false
		}
		switch change {
		case contrast:
			t, pending = blendTable(f, meanGray(pixels)), true
		case saturation:
			saturate(pixels, f)
		case hue:
			turnHue(pixels, f)
		}
	}
	if pending {
		t.apply(pixels)
	}
}

// table maps each value of a channel to another.
type table [256]uint8

// blendTable is f·v + (1-f)·other, cut to 0 to 255 and rounded down.
func blendTable(f float64, other float32) table {
	var t table
	for v := range t {
		t[v] = cut(float32(f)*float32(v) + float32(1-f)*other)
	}
	return t
}

func (t table) then(next table) table {
	for v := range t {
		t[v] = next[t[v]]
	}
	return t
}

func (t *table) apply(pixels []uint8) {
	for len(pixels) >= 8 {
		p := pixels[:8:8]
		p[0], p[1], p[2], p[3] = t[p[0]], t[p[1]], t[p[2]], t[p[3]]
		p[4], p[5], p[6], p[7] = t[p[4]], t[p[5]], t[p[6]], t[p[7]]
		pixels = pixels[8:]
	}
	for i, v := range pixels {
		pixels[i] = t[v]
	}
}

// gray is the luma of ITU-R BT.601 with torchvision's four digits, rounded down.
func gray(r, g, b uint8) uint8 {
	return uint8((2989*uint32(r) + 5870*uint32(g) + 1140*uint32(b)) / 10000) //nolint:gosec // at most 254
}

func meanGray(pixels []uint8) float32 {
	sum := uint64(0)
	for p := pixels; len(p) >= 3; p = p[3:] {
		sum += uint64(gray(p[0], p[1], p[2]))
	}
	return float32(float64(sum) / float64(len(pixels)/3))
}

// saturate blends each pixel with its gray, f to 1-f, cut and rounded down as in blendTable.
func saturate(pixels []uint8, f float64) {
	var mine, other [256]float32
	for v := range mine {
		mine[v], other[v] = float32(f)*float32(v), float32(1-f)*float32(v)
	}
	for p := pixels; len(p) >= 3; p = p[3:] {
		r, g, b := p[0], p[1], p[2]
		y := other[gray(r, g, b)]
		p[0], p[1], p[2] = cut(mine[r]+y), cut(mine[g]+y), cut(mine[b]+y)
	}
}

// cut is v rounded down, and 0 or 255 where it is below or above.
func cut(v float32) uint8 {
	i := int32(v)
	if i == i&255 {
		return uint8(i & 255)
	}
	return uint8(^i >> 31) //nolint:gosec // 0 where i is negative
}

// Grayscale gives all three channels the pixel's gray.
type Grayscale struct{}

func (*Grayscale) check() error           { return nil }
func (*Grayscale) draw(*rand.Rand) action { return toGray{} }

type toGray struct{}

func (toGray) apply(pixels []uint8, _ int, _ *env) {
	for p := pixels; len(p) >= 3; p = p[3:] {
		y := gray(p[0], p[1], p[2])
		p[0], p[1], p[2] = y, y, y
	}
}

// turnHue turns the hue of HSV by f of the circle. Largest and smallest value of a pixel stay; what
// the hue, in six parts of the circle, says is which channels they are and where the third stands.
func turnHue(pixels []uint8, f float64) {
	turn := float32(f * 6)
	if turn < 0 {
		turn += 6
	}
	for p := pixels; len(p) >= 3; p = p[3:] {
		r, g, b := int32(p[0]), int32(p[1]), int32(p[2])
		hi, lo := max(r, g, b), min(r, g, b)
		if hi == lo {
			continue
		}
		h := hueOf(r, g, b, hi, lo)
		h += turn
		if h < 0 {
			h += 6
		}
		if h >= 6 {
			h -= 6
		}
		sector := int32(h)
		part := h - float32(sector)
		if sector&1 == 1 {
			part = 1 - part
		}
		// torchvision's way from 0–1 back to bytes: times just under 256, rounded down.
		mid := uint8((float32(lo) + part*float32(hi-lo)) * (255.999 / 255))
		v := [3]uint8{uint8(hi), mid, uint8(lo)} //nolint:gosec // bytes
		o := &places[sector%6]
		p[0], p[1], p[2] = v[o[0]], v[o[1]], v[o[2]]
	}
}

// hueOf is the hue in sixths of the circle, -1 to 5, of a pixel whose largest value hi is above its
// smallest, lo.
func hueOf(r, g, b, hi, lo int32) float32 {
	over := reciprocal[hi-lo]
	switch hi {
	case r:
		return float32(g-b) * over
	case g:
		return 2 + float32(b-r)*over
	default:
		return 4 + float32(r-g)*over
	}
}

// places says, for each sixth of the circle, whether red, green and blue are the largest value (0),
// the middle one (1) or the smallest (2).
var places = [6][3]uint8{{0, 1, 2}, {1, 0, 2}, {2, 0, 1}, {2, 1, 0}, {1, 2, 0}, {0, 2, 1}}

var reciprocal = func() (t [256]float32) {
	for i := 1; i < 256; i++ {
		t[i] = 1 / float32(i)
	}
	return t
}()
