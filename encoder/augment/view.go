package augment

import (
	"bytes"
	"errors"
	"image"
	"math/rand/v2"
)

// View is the parameters of one view: what is done to each of its tiles. It is read only and may be
// shared by goroutines.
type View struct {
	background *fill
	crop       box
	rest       []keyed
}

// Tile is a tile to make a tile of a view from. Its pixels are read only.
type Tile struct {
	Pixels []uint8 // [Size, Size, 3] RGB
	Size   int
	Index  uint64 // tells a view's tiles apart: what is random in each of them, as noise is, comes from it
	// Tissue is the tile's mask, [Size, Size], for Background; nil has it found by saturation.
	Tissue []bool
	// Other is a tile of the same size whose background Background may lend; nil lends white.
	Other []uint8
}

// Slide is what transforms know of the slide a tile is of. The zero Slide looks like the reference:
// normalising it changes little.
type Slide struct {
	Stain  *Stain  // for Normalise; nil is Reference
	Colour *Colour // for RandStain; nil is the mean of the statistics in use
}

// Measure finds what the transforms of s need to know of a slide, from pixels, [n, 3] RGB, sampled over
// its tissue; some hundred thousand suffice. Where the pixels do not show it, the error wraps
// ErrNoStain and the slide that is returned is usable: it stands for the reference.
func (s Spec) Measure(pixels []uint8) (Slide, error) {
	var slide Slide
	var failed error
	for _, step := range s {
		switch {
		case step.Normalise != nil && slide.Stain == nil:
			estimate := EstimateMacenko
			if step.Normalise.Method == Vahadane {
				estimate = EstimateVahadane
			}
			stain, err := estimate(pixels)
			slide.Stain, failed = &stain, errors.Join(failed, err)
		case step.RandStain != nil && slide.Colour == nil:
			colour, err := MeasureColour(pixels)
			if err == nil {
				slide.Colour = &colour
			}
			failed = errors.Join(failed, err)
		}
	}
	return slide, failed
}

// Draw picks the parameters of view number view. Step i of it takes them from a PCG of its own,
// seeded with a hash of (seed, view, i), so that equal arguments give equal views and a step's
// parameters do not change with the steps before it. Views of the same number and seed are equal on
// all slides: where that is not wanted, the caller makes seed depend on the slide.
func (s Spec) Draw(seed uint64, view int) View {
	v := View{crop: whole}
	for i, step := range s {
		key := [3]uint64{seed, uint64(view), uint64(i)} //nolint:gosec // numbers that only have to differ
		rng := rand.New(rand.NewPCG(streamSeeds(key[:]...)))
		if rng.Float64() >= step.P {
			continue
		}
		switch a := step.transform().draw(rng).(type) {
		case fill:
			a.key = key
			v.background = &a
		case box:
			v.crop = a
		default:
			v.rest = append(v.rest, keyed{a, key})
		}
	}
	return v
}

// Apply makes dst, [size, size, 3] RGB, from a tile: its background is replaced, the crop (or the
// whole tile) is brought to size, and the other transforms change it in place. Equal arguments give
// equal bytes. dst must not overlap the tile.
func (v View) Apply(dst []uint8, size int, t Tile, slide Slide, s *Scratch) {
	if size < 1 || t.Size < 1 || len(dst) != size*size*3 || len(t.Pixels) != t.Size*t.Size*3 {
		panic("augment: a tile and its size disagree")
	}
	src := t.Pixels
	if v.background != nil {
		s.tile = grow(s.tile, len(src))
		v.background.replace(s.tile, t, s)
		src = s.tile
	}
	x, y, w, h := v.crop.pixels(t.Size)
	resize(dst, size, size, src, t.Size, x, y, w, h, s)
	for _, a := range v.rest {
		a.apply(dst, size, &env{slide: slide, key: a.key, tile: t.Index, s: s})
	}
}

// Scratch holds the buffers of one goroutine that applies views. The zero Scratch is ready; it grows
// to the largest tile it met. It must not be shared.
type Scratch struct {
	tile   []uint8  // a picture beside the one being made
	packed []uint64 // pixels, three channels in one word
	rows   []uint64 // what a filter keeps between its two passes
	taps   [2]taps
	pcg    *rand.PCG
	rgba   image.RGBA
	jpeg   bytes.Buffer
}

// action is a transform with its parameters drawn. apply changes pixels, [size, size, 3], in place.
type action interface {
	apply(pixels []uint8, size int, c *env)
}

type keyed struct {
	action
	key [3]uint64 // seed, view, step
}

// env is what an action may need beside its parameters and the pixels.
type env struct {
	slide Slide
	key   [3]uint64
	tile  uint64
	s     *Scratch
}

// random is the stream of this step in this tile alone.
func (s *Scratch) random(key [3]uint64, tile uint64) *rand.PCG {
	if s.pcg == nil {
		s.pcg = new(rand.PCG)
	}
	s.pcg.Seed(streamSeeds(key[0], key[1], key[2], tile))
	return s.pcg
}

// grow is b with length n, and any content.
func grow[T any](b []T, n int) []T {
	if cap(b) < n {
		return make([]T, n)
	}
	return b[:n]
}
