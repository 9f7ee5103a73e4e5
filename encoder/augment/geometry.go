package augment

import (
	"fmt"
	"math/rand/v2"
)

// Axis is the way a tile is flipped.
type Axis string

// Left becomes right, or top becomes bottom.
const (
	Horizontal Axis = "horizontal"
	Vertical   Axis = "vertical"
)

// Flip mirrors all tiles of a view.
type Flip struct {
	Axis Axis `json:"axis" yaml:"axis"`
}

func (f *Flip) check() error {
	if f.Axis != Horizontal && f.Axis != Vertical {
		return fmt.Errorf("flip: axis %q: it is %s or %s", f.Axis, Horizontal, Vertical)
	}
	return nil
}

func (f *Flip) draw(*rand.Rand) action { return f.Axis }

func (a Axis) apply(pixels []uint8, size int, c *env) {
	row := size * 3
	if a == Vertical {
		c.s.tile = grow(c.s.tile, row)
		for y := range size / 2 {
			top, bottom := pixels[y*row:][:row], pixels[(size-1-y)*row:][:row]
			copy(c.s.tile, top)
			copy(top, bottom)
			copy(bottom, c.s.tile)
		}
		return
	}
	for y := range size {
		p := pixels[y*row:][:row]
		for i, j := 0, row-3; i < j; i, j = i+3, j-3 {
			p[i], p[j] = p[j], p[i]
			p[i+1], p[j+1] = p[j+1], p[i+1]
			p[i+2], p[j+2] = p[j+2], p[i+2]
		}
	}
}

// Turn turns all tiles of a view by none, one, two or three right angles, each as likely.
type Turn struct{}

func (*Turn) check() error               { return nil }
func (*Turn) draw(rng *rand.Rand) action { return quarters(rng.IntN(4)) }

// quarters are right angles, counter-clockwise.
type quarters int

func (q quarters) apply(pixels []uint8, size int, c *env) {
	if q == 0 {
		return
	}
	src := grow(c.s.tile, len(pixels))
	c.s.tile = src
	copy(src, pixels)
	// The source of pixel (x, y) is at start + x·right + y·down.
	row, last := size*3, size-1
	var start, right, down int
	switch q {
	case 1:
		start, right, down = last*3, row, -3
	case 2:
		start, right, down = last*row+last*3, -3, -row
	default:
		start, right, down = last*row, -row, 3
	}
	for y := range size {
		from := start + y*down
		out := pixels[y*row:][:row]
		for len(out) >= 3 {
			p := src[from:][:3:3]
			out[0], out[1], out[2] = p[0], p[1], p[2]
			out = out[3:]
			from += right
		}
	}
}
