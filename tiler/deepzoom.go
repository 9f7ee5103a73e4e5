package tiler

import (
	"context"
	"fmt"
	"image"
	"math"
	"math/bits"

	"coverslip"
)

// DeepZoom is how a slide is cut for viewers in a browser: a pyramid of halvings, from level 0 of one
// pixel to the slide itself, each cut into square tiles from the top left. Sizes are rounded up. It is
// the geometry of OpenSlide's DeepZoomGenerator, which is that of Microsoft's Deep Zoom file format
// (Image schema of 2008). Mind that its levels count the other way than those of a slide, and that where
// rounding adds a part of a pixel, the last tiles are stretched over it: that is how viewers place them.
type DeepZoom struct {
	Width, Height int // of the slide, pixels
	TileSize      int // pixels that belong to no other tile
	Overlap       int // pixels of each neighbour that a tile shows as well
}

// Levels is how many there are.
func (z DeepZoom) Levels() int { return bits.Len(uint(max(z.Width, z.Height)-1)) + 1 }

// Size is that of a level, pixels.
func (z DeepZoom) Size(level int) (width, height int) {
	down := z.downsample(level)
	return ceilDiv(z.Width, down), ceilDiv(z.Height, down)
}

// downsample is how many pixels of the slide lie along one of a level.
func (z DeepZoom) downsample(level int) int { return 1 << (z.Levels() - 1 - level) }

// Tile is where a tile lies in its level, pixels. One that does not exist is NotFound.
func (z DeepZoom) Tile(level, column, row int) (image.Rectangle, error) {
	if level >= 0 && level < z.Levels() && column >= 0 && row >= 0 {
		w, h := z.Size(level)
		if column < ceilDiv(w, z.TileSize) && row < ceilDiv(h, z.TileSize) {
			own := image.Rect(column, row, column+1, row+1)
			own.Min, own.Max = own.Min.Mul(z.TileSize), own.Max.Mul(z.TileSize)
			return own.Inset(-z.Overlap).Intersect(image.Rect(0, 0, w, h)), nil
		}
	}
	return image.Rectangle{}, &coverslip.Error{Kind: coverslip.NotFound, Op: "find deep zoom tile",
		Err: fmt.Errorf("level %d has no tile %d_%d", level, column, row), Hint: "the descriptor says which there are"}
}

// Descriptor is the XML that tells viewers all this, for tiles in the format their names end in.
func (z DeepZoom) Descriptor(format string) []byte {
	return fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>
<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="%s" Overlap="%d" TileSize="%d"><Size Height="%d" Width="%d"/></Image>
`, format, z.Overlap, z.TileSize, z.Height, z.Width)
}

// DeepZoomTile reads one tile, from the coarsest level of the slide that is not coarser than it, by
// averaging areas. Memory does not grow with the slide, whatever levels it has.
func (s *Slide) DeepZoomTile(ctx context.Context, z DeepZoom, level, column, row int) (*Picture, error) {
	if z.Width != s.Width || z.Height != s.Height {
		panic("tiler: the deep zoom is that of another slide")
	}
	at, err := z.Tile(level, column, row)
	if err != nil {
		return nil, coverslip.At(s.Path, err)
	}
	out := &Picture{Width: at.Dx(), Height: at.Dy(), Scale: float64(z.downsample(level))}
	out.RGB = make([]byte, out.Width*out.Height*3)
	from := s.zoomLevel(z.downsample(level), min(
		stretch(at.Min.X, at.Max.X, out.Scale, float64(s.Width)).scale, stretch(at.Min.Y, at.Max.Y, out.Scale, float64(s.Height)).scale))
	if from.scale < 2 || max(z.Size(level+1)) > z.TileSize {
		return out, s.zoom(ctx, out, from, at)
	}
	finer, err := s.DeepZoomTile(ctx, z, level+1, 0, 0)
	if err != nil {
		return nil, err
	}
	area(out, finer, axis{0, float64(finer.Width) / float64(out.Width)}, axis{0, float64(finer.Height) / float64(out.Height)})
	return out, nil
}

// zoomSource is a level of a slide, decoded smaller, to make tiles from.
type zoomSource struct {
	level, shrink int
	scale         float64 // its pixels per pixel of the tile
}

// zoomLevel finds where to read a tile from that is down times as coarse as the slide, and stretched to
// no less than least: what is not coarser than that. Decoding smaller must divide evenly: shrinking twice
// by unrelated factors blurs, and so does enlarging a little.
func (s *Slide) zoomLevel(down int, least float64) zoomSource {
	const slack = 1e-3 // of scales that were rounded: some scanners' levels are 2.0002 times as coarse
	best := zoomSource{0, 1, float64(down)}
	for i, l := range s.Levels {
		for shrink := 1; shrink <= s.pixels.Shrinks(i); shrink *= 2 {
			d := l.Downsample * float64(shrink)
			scale := float64(down) / d
			even := scale == math.Trunc(scale)
			nearer := scale < best.scale || scale == best.scale && shrink < best.shrink
			if d <= least*(1+slack) && nearer && (shrink == 1 || even) {
				best = zoomSource{i, shrink, scale}
			}
		}
	}
	return best
}

// zoom makes the tile that lies at a place of its level, in pieces for which no more than about
// zoomEdge × zoomEdge pixels are read at a time: the slide may have no level as small.
func (s *Slide) zoom(ctx context.Context, out *Picture, from zoomSource, at image.Rectangle) error {
	width, height := s.size(from.level, from.shrink)
	whole := image.Rect(0, 0, width, height)
	if from.scale == 1 && at.In(whole) {
		return s.region(ctx, out.RGB, from.level, from.shrink, at.Min.X, at.Min.Y, out.Width, out.Height)
	}
	l := s.Levels[from.level]
	across := stretch(at.Min.X, at.Max.X, from.scale, float64(l.Width)/float64(from.shrink))
	down := stretch(at.Min.Y, at.Max.Y, from.scale, float64(l.Height)/float64(from.shrink))
	source := func(part image.Rectangle) (r image.Rectangle) {
		r.Min.X, r.Max.X = across.span(part.Min.X, part.Max.X, width)
		r.Min.Y, r.Max.Y = down.span(part.Min.Y, part.Max.Y, height)
		return r
	}
	parts := pieces(image.Rect(0, 0, out.Width, out.Height), max(int(zoomEdge/from.scale), 1))
	if len(parts) > 1 {
		s.announce(from.level, from.shrink, func(yield func(int, image.Rectangle) bool) {
			for i, part := range parts {
				if !yield(i, source(part)) {
					return
				}
			}
		})
	}
	for _, part := range parts {
		r := source(part)
		p := &Picture{Width: r.Dx(), Height: r.Dy(), RGB: make([]byte, r.Dx()*r.Dy()*3)}
		if err := s.region(ctx, p.RGB, from.level, from.shrink, r.Min.X, r.Min.Y, p.Width, p.Height); err != nil {
			return err
		}
		small := &Picture{Width: part.Dx(), Height: part.Dy(), RGB: make([]byte, part.Dx()*part.Dy()*3)}
		area(small, p, axis{across.at(part.Min.X) - float64(r.Min.X), across.scale}, axis{down.at(part.Min.Y) - float64(r.Min.Y), down.scale})
		for y := range small.Height {
			copy(out.RGB[((part.Min.Y+y)*out.Width+part.Min.X)*3:], small.RGB[y*small.Width*3:(y+1)*small.Width*3])
		}
	}
	return nil
}

// axis says where the pixels of a picture lie along one edge of the one it is made from.
type axis struct{ first, scale float64 }

// stretch is the axis of pixels from to to of a level, whose source, scale times as fine, is size long.
func stretch(from, to int, scale, size float64) axis {
	first := float64(from) * scale
	return axis{first, (min(float64(to)*scale, size) - first) / float64(to-from)}
}

func (a axis) at(pixel int) float64 { return a.first + float64(pixel)*a.scale }

// span is what pixels from to to are made from, of size that there are.
func (a axis) span(from, to, size int) (int, int) {
	beside := 0
	if a.scale < 1 { // enlarging looks at neighbours
		beside = 1
	}
	first := min(max(int(a.at(from))-beside, 0), size-1)
	return first, max(min(int(a.at(to))+1+beside, size), first+1)
}

// area resamples src into dst.
func area(dst, src *Picture, across, down axis) {
	r := resampler{across: filter(dst.Width, src.Width, across.first, across.scale), down: filter(dst.Height, src.Height, down.first, down.scale), srcW: src.Width, srcH: src.Height}
	r.apply(dst.RGB, src.RGB, nil)
}

// pieces cuts a rectangle into squares of an edge, and what is left over.
func pieces(r image.Rectangle, edge int) (out []image.Rectangle) {
	for y := r.Min.Y; y < r.Max.Y; y += edge {
		for x := r.Min.X; x < r.Max.X; x += edge {
			out = append(out, image.Rect(x, y, x+edge, y+edge).Intersect(r))
		}
	}
	return out
}

// zoomEdge bounds what is read at once, pixels: 12 MB.
const zoomEdge = 2048
