package augment

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"math/rand/v2"
)

// Noise adds a normal deviate to every value, its deviation Sigma (of 0 to 255) one for the view; the
// deviates are each tile's own.
type Noise struct {
	Sigma Range `json:"sigma" yaml:"sigma,flow"`
}

func (n *Noise) check() error {
	if !n.Sigma.within(0, 255) {
		return errors.New("noise: sigma is two from 0 to 255, the lesser first")
	}
	return nil
}

func (n *Noise) draw(rng *rand.Rand) action { return noise(n.Sigma.draw(rng)) }

type noise float64

func (sigma noise) apply(pixels []uint8, _ int, c *env) {
	rng := rand.New(c.s.random(c.key, c.tile))
	for i, v := range pixels {
		pixels[i] = round(float64(v) + float64(sigma)*rng.NormFloat64())
	}
}

// round is v cut to 0 to 255, to the nearest whole number.
func round(v float64) uint8 { return uint8(min(max(v+0.5, 0), 255)) }

// JPEG codes tiles as JPEG (4:2:0) and decodes them again.
type JPEG struct {
	Quality [2]int `json:"quality" yaml:"quality,flow"` // 1 to 100, as libjpeg counts
}

func (j *JPEG) check() error {
	if j.Quality[0] < 1 || j.Quality[0] > j.Quality[1] || j.Quality[1] > 100 {
		return errors.New("jpeg: quality is two from 1 to 100, the lesser first")
	}
	return nil
}

func (j *JPEG) draw(rng *rand.Rand) action {
	return recode(j.Quality[0] + rng.IntN(j.Quality[1]-j.Quality[0]+1))
}

// recode is a quality. The standard library's coder takes its memory anew for each tile.
type recode int

func (q recode) apply(pixels []uint8, size int, c *env) {
	s := c.s
	s.rgba.Pix = grow(s.rgba.Pix, size*size*4)
	s.rgba.Stride, s.rgba.Rect = size*4, image.Rect(0, 0, size, size)
	for i := range size * size {
		p, o := pixels[i*3:][:3:3], s.rgba.Pix[i*4:][:4:4]
		o[0], o[1], o[2], o[3] = p[0], p[1], p[2], 255
	}
	s.jpeg.Reset()
	if err := jpeg.Encode(&s.jpeg, &s.rgba, &jpeg.Options{Quality: int(q)}); err != nil {
		panic("augment: code a tile as JPEG: " + err.Error()) // a picture over 65535 pixels wide
	}
	decoded, err := jpeg.Decode(&s.jpeg)
	if err != nil {
		panic("augment: decode a tile just coded: " + err.Error())
	}
	planes := decoded.(*image.YCbCr)
	for y := range size {
		out := pixels[y*size*3:][:size*3]
		for x := range size {
			luma, chroma := planes.YOffset(x, y), planes.COffset(x, y)
			out[x*3], out[x*3+1], out[x*3+2] = color.YCbCrToRGB(planes.Y[luma], planes.Cb[chroma], planes.Cr[chroma])
		}
	}
}

// Fill is what stands in place of the background.
type Fill string

// What the background may become.
const (
	White Fill = "white"
	Mean  Fill = "mean"  // the mean colour of the tile's tissue
	Grain Fill = "noise" // values from 0 to 255, each as likely, each tile's own
	Other Fill = "tile"  // the background of another tile; where that has tissue, its mean background
)

// Background replaces what is no tissue: where the tile's mask says so or, without a mask, where
// 255·(max-min)/max of a pixel is below Saturation. It is applied to the tile as it was read, before
// the crop.
type Background struct {
	Fill       Fill `json:"fill" yaml:"fill"`
	Saturation int  `json:"saturation" yaml:"saturation"` // 1 to 255
}

func (b *Background) check() error {
	switch {
	case b.Fill != White && b.Fill != Mean && b.Fill != Grain && b.Fill != Other:
		return fmt.Errorf("background: fill %q: it is %s, %s, %s or %s", b.Fill, White, Mean, Grain, Other)
	case b.Saturation < 1 || b.Saturation > 255:
		return fmt.Errorf("background: saturation %d: it is 1 to 255", b.Saturation)
	}
	return nil
}

func (b *Background) draw(*rand.Rand) action { return fill{with: b.Fill, saturation: b.Saturation} }

type fill struct {
	with       Fill
	saturation int
	key        [3]uint64
}

// apply is for the interface alone: Apply itself replaces, because a mask is needed.
func (fill) apply([]uint8, int, *env) {}

// replace writes t with its background replaced to dst.
func (f fill) replace(dst []uint8, t Tile, s *Scratch) {
	copy(dst, t.Pixels)
	glass := func(i int) bool {
		if t.Tissue != nil {
			return !t.Tissue[i]
		}
		return f.pale(dst[i*3:])
	}
	if t.Tissue != nil && len(t.Tissue) != t.Size*t.Size || t.Other != nil && len(t.Other) != len(t.Pixels) {
		panic("augment: a tile and its mask, or the tile that lends its background, disagree in size")
	}
	flat := [3]uint8{255, 255, 255}
	var rng *rand.PCG
	switch {
	case f.with == Mean:
		flat = meanOf(dst, flat, func(i int) bool { return !glass(i) })
	case f.with == Grain:
		rng = s.random(f.key, t.Index)
	case f.with == Other && t.Other != nil:
		flat = meanOf(t.Other, flat, func(i int) bool { return f.pale(t.Other[i*3:]) })
	}
	for i := range t.Size * t.Size {
		switch {
		case !glass(i):
		case rng != nil:
			bits := rng.Uint64()
			dst[i*3], dst[i*3+1], dst[i*3+2] = uint8(bits), uint8(bits>>8), uint8(bits>>16) //nolint:gosec // three of its bytes
		case f.with == Other && t.Other != nil && f.pale(t.Other[i*3:]):
			copy(dst[i*3:][:3], t.Other[i*3:])
		default:
			copy(dst[i*3:][:3], flat[:])
		}
	}
}

func (f fill) pale(p []uint8) bool {
	hi, lo := int(max(p[0], p[1], p[2])), int(min(p[0], p[1], p[2]))
	return 255*(hi-lo) < f.saturation*hi || hi == 0
}

// meanOf is the mean colour of the pixels that belong, and none where none does.
func meanOf(pixels []uint8, none [3]uint8, belongs func(i int) bool) [3]uint8 {
	var sum [3]int
	n := 0
	for i := range len(pixels) / 3 {
		if belongs(i) {
			n++
			for c := range sum {
				sum[c] += int(pixels[i*3+c])
			}
		}
	}
	if n == 0 {
		return none
	}
	for c := range sum {
		none[c] = uint8((sum[c] + n/2) / n) //nolint:gosec // a mean of bytes
	}
	return none
}
