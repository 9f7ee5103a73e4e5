// Package tiler turns a slide into tiles: it opens the file, finds the levels and the resolution,
// finds tissue, plans which tiles to read, and reads them in any order.
//
//	slide, err := tiler.Open(ctx, "section.svs")
//	plan, overview, err := slide.Plan(ctx, params)
//	tiles := slide.Tiles(plan)
//	err = tiles.ReadTile(ctx, pixels, 0)
//
// Rooms below: remote reads slides that are not on this machine, tiff and dicom index files, jpeg and
// vips decode, tissue makes the mask. What is done with the pixels, and where anything is kept, is not
// its business.
package tiler

import (
	"context"
	"errors"
	"fmt"
	"image"
	"io"
	"iter"

	"coverslip"
)

// Info is what a slide says of itself.
type Info struct {
	Path           string // as opened, without what may be secret in an address
	Format         string // "aperio", "generic-tiff", …
	Width, Height  int    // level 0, pixels
	Levels         []coverslip.Level
	MPP            coverslip.MPP // as the file says
	ObjectivePower float64       // 20 for 20×; 0 when the file does not say
	Reader         string        // what decodes the pixels, with its version
}

// Pixels is the door to a slide's pixels, behind which any reader can stand.
type Pixels interface {
	// ReadRegion decodes a level, shrunk by 1 or by what Shrinks allows: the w×h pixels whose top-left
	// is (x, y) go into dst, [h*w*3] RGB row by row. Coordinates are those of the shrunk level, which
	// has ⌈Width/shrink⌉ × ⌈Height/shrink⌉ pixels and holds the region. It is safe for concurrent use.
	// An error of kind Unavailable may go away when tried again; any other stays.
	ReadRegion(ctx context.Context, dst []byte, level, shrink, x, y, w, h int) error
	// Shrinks is the most a level can be decoded smaller by for less work than all of its pixels:
	// 1, 2, 4 or 8. The powers of two below it can be had too.
	Shrinks(level int) int
	// Grain is the size of the pieces a level is stored in, pixels: regions made of whole ones cost least.
	Grain(level int) (w, h int)
	Close() error
}

// Slide is an open slide. Its methods are safe for concurrent use, except Close.
type Slide struct {
	Info
	pixels Pixels
	file   io.Closer
}

// Close lets go of the file. No call may be under way.
func (s *Slide) Close() error { return errors.Join(s.pixels.Close(), s.file.Close()) }

// Region reads the w×h pixels of a level whose top-left is (x, y), in that level's pixels, into dst,
// [h*w*3] RGB row by row. What lies outside the level is white, as empty glass is.
func (s *Slide) Region(ctx context.Context, dst []byte, level, x, y, w, h int) error {
	return s.region(ctx, dst, level, 1, x, y, w, h)
}

// region is Region of a level that is decoded smaller; coordinates are those of the shrunk level.
func (s *Slide) region(ctx context.Context, dst []byte, level, shrink, x, y, w, h int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(dst) != w*h*3 {
		panic("tiler: dst and region do not match")
	}
	width, height := s.size(level, shrink)
	x0, y0 := max(x, 0), max(y, 0)
	x1, y1 := min(x+w, width), min(y+h, height)
	if x0 == x && y0 == y && x1 == x+w && y1 == y+h {
		return coverslip.At(s.Path, s.pixels.ReadRegion(ctx, dst, level, shrink, x, y, w, h))
	}
	for i := range dst {
		dst[i] = 255
	}
	if x0 >= x1 || y0 >= y1 {
		return nil
	}
	inner := make([]byte, (x1-x0)*(y1-y0)*3)
	if err := s.pixels.ReadRegion(ctx, inner, level, shrink, x0, y0, x1-x0, y1-y0); err != nil {
		return coverslip.At(s.Path, err)
	}
	for row := y0; row < y1; row++ {
		copy(dst[((row-y)*w+x0-x)*3:], inner[(row-y0)*(x1-x0)*3:(row-y0+1)*(x1-x0)*3])
	}
	return nil
}

// announcer is a Pixels that gains from knowing what will be read, which it may fetch beforehand:
// regions of a level decoded smaller, which may reach beyond it, each with the number of the group it
// is in. Groups come in order.
type announcer interface {
	announce(level, shrink int, regions iter.Seq2[int, image.Rectangle])
}

func (s *Slide) announce(level, shrink int, regions iter.Seq2[int, image.Rectangle]) {
	if p, ok := s.pixels.(announcer); ok {
		p.announce(level, shrink, regions)
	}
}

// size is that of a level decoded smaller, pixels.
func (s *Slide) size(level, shrink int) (width, height int) {
	l := s.Levels[level]
	return (l.Width + shrink - 1) / shrink, (l.Height + shrink - 1) / shrink
}

// Picture is a small RGB image of a whole slide.
type Picture struct {
	RGB           []byte // [Height*Width*3]
	Width, Height int
	Scale         float64 // level-0 pixels per pixel of the picture
}

// Thumbnail is a picture of the slide whose longer edge is at most maxEdge pixels.
func (s *Slide) Thumbnail(ctx context.Context, maxEdge int) (*Picture, error) {
	long := max(s.Width, s.Height)
	if maxEdge >= long {
		return s.shrunk(ctx, 0, 1, false)
	}
	level := 0
	for i, l := range s.Levels {
		if max(l.Width, l.Height) >= maxEdge {
			level = i
		}
	}
	l := s.Levels[level]
	factor := max(l.Width, l.Height) / maxEdge
	p, err := s.shrunk(ctx, level, factor, false)
	if err != nil || max(p.Width, p.Height) <= maxEdge {
		return p, err
	}
	// What of p is slide: its last column and row may stand for a part of a pixel only.
	w, h := float64(l.Width)/float64(factor), float64(l.Height)/float64(factor)
	scale := max(w, h) / float64(maxEdge)
	small := &Picture{Width: max(int(w/scale+0.5), 1), Height: max(int(h/scale+0.5), 1), Scale: p.Scale * scale}
	small.RGB = make([]byte, small.Width*small.Height*3)
	r := resampler{srcW: p.Width, srcH: p.Height,
		across: filter(small.Width, p.Width, 0, w/float64(small.Width)),
		down:   filter(small.Height, p.Height, 0, h/float64(small.Height))}
	r.apply(small.RGB, p.RGB, nil)
	return small, nil
}

// Level is a picture of a whole level. One of more than 2²⁷ pixels is Unsupported.
func (s *Slide) Level(ctx context.Context, level int) (*Picture, error) {
	if level < 0 || level >= len(s.Levels) {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read the level", Path: s.Path, Err: fmt.Errorf("there is no level %d; it has %d, from 0", level, len(s.Levels))}
	}
	return s.shrunk(ctx, level, 1, false)
}

// shrunk reads a whole level, each factor×factor block averaged to one pixel, in pieces of a few
// megabytes. Damage is an error, or, if tolerant, filled in; see patchwork.
func (s *Slide) shrunk(ctx context.Context, level, factor int, tolerant bool) (*Picture, error) {
	l := s.Levels[level]
	factor = max(factor, 1)
	out := &Picture{Width: (l.Width + factor - 1) / factor, Height: (l.Height + factor - 1) / factor, Scale: l.Downsample * float64(factor)}
	if pixels := int64(out.Width) * int64(out.Height); pixels > 1<<27 {
		return nil, &coverslip.Error{Kind: coverslip.Unsupported, Op: "read overview", Path: s.Path, Err: fmt.Errorf("%d × %d pixels", out.Width, out.Height), Hint: "the slide is too large for one without a pyramid; add one, for example with vips tiffsave --pyramid"}
	}
	out.RGB = make([]byte, out.Width*out.Height*3)
	shrink := s.pixels.Shrinks(level)
	for factor%shrink != 0 {
		shrink /= 2
	}
	width, height := s.size(level, shrink)
	factor /= shrink
	// A piece is square, or flat where the level is stored in strips as wide as itself.
	const edge = 2048 // pixels
	grainW, grainH := s.pixels.Grain(level)
	across := roundUp(max(edge, grainW/shrink), factor)
	down := roundUp(max(edge*edge/across, grainH/shrink), factor)
	s.announce(level, shrink, func(yield func(int, image.Rectangle) bool) {
		group := 0
		for y := 0; y < height; y += down {
			for x := 0; x < width; x += across {
				if !yield(group, image.Rect(x, y, x+across, y+down)) {
					return
				}
				group++
			}
		}
	})
	block := make([]byte, min(across, width)*min(down, height)*3)
	for y := 0; y < height; y += down {
		for x := 0; x < width; x += across {
			w, h := min(across, width-x), min(down, height-y)
			err := s.region(ctx, block[:w*h*3], level, shrink, x, y, w, h)
			if tolerant && isDamage(err) {
				err = s.patchwork(ctx, block[:w*h*3], level, shrink, image.Rect(x, y, x+w, y+h))
			}
			if err != nil {
				return nil, err
			}
			average(out, block[:w*h*3], x/factor, y/factor, w, h, factor)
		}
	}
	return out, nil
}

func roundUp(n, unit int) int { return ceilDiv(n, unit) * unit }

// average writes the means of factor×factor blocks of src, [h*w*3], into dst from (left, top). Blocks
// cut off by the edge average what there is.
func average(dst *Picture, src []byte, left, top, w, h, factor int) {
	for y := 0; y < h; y += factor {
		for x := 0; x < w; x += factor {
			bw, bh := min(factor, w-x), min(factor, h-y)
			var r, g, b int
			for row := y; row < y+bh; row++ {
				p := src[(row*w+x)*3 : (row*w+x+bw)*3]
				for i := 0; i+2 < len(p); i += 3 {
					r, g, b = r+int(p[i]), g+int(p[i+1]), b+int(p[i+2])
				}
			}
			n := bw * bh
			o := dst.RGB[((top+y/factor)*dst.Width+left+x/factor)*3:]
			o[0], o[1], o[2] = byte((r+n/2)/n), byte((g+n/2)/n), byte((b+n/2)/n) //nolint:gosec // means of bytes
		}
	}
}
