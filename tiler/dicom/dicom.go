// Package dicom indexes whole-slide images in DICOM: which files of a folder belong to one slide, which
// of them are levels, and where each frame lies. Labels and pictures of the glass are left out.
//
// It reads through a tiff.RangeReader, so a slide may lie on a disk or behind HTTP, reads no pixels
// beyond the head of one frame a file, and never believes a number that the size of the file rules
// out. It decodes nothing (tiler/jpeg, tiler/vips) and does not decide how large a pixel is (tiler).
//
// Sources: DICOM PS3.3 C.8.12.4 (VL Whole Slide Microscopy), C.7.6.16 (functional groups), C.7.6.17
// (frame order), PS3.5 chapter 7 (data sets) and annex A.4 (encapsulated frames), PS3.10 chapter 7
// (the file). The parser is our own because the Go library for DICOM (suyashkumar/dicom) reads from
// front to end, allocates what a length claims, and does not tell where in the file a frame lies.
package dicom

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"coverslip"
	"coverslip/tiler/tiff"
)

// NamedReader is one file of a slide and what people call it.
type NamedReader struct {
	Name string
	tiff.RangeReader
}

// Series is the index of one slide: the images of one DICOM series that are levels. It is not changed
// after Open, so any number of goroutines may use it.
type Series struct {
	UID    string
	Levels []*Level // finest first
	// MPPX and MPPY are PixelSpacing at level 0 in µm, as written; 0 when absent.
	MPPX, MPPY     float64
	ObjectivePower float64 // 0 when absent
}

// Level is one resolution: a grid of frames, all of one size and coding.
type Level struct {
	coverslip.Level
	TileWidth, TileHeight int // pixels of a frame; those at the right and lower edge reach beyond the level
	Coding                Coding
	YCbCr                 bool // of JPEG: the components are YCbCr; else they are RGB
	Planar                bool // of Native: all red samples of a frame come first, then green, then blue

	columns, rows int    // of the grid
	cells         []cell // by place in the grid, row by row; frames left out are not there
	full          bool   // no frame may be left out
	spacing       [2]float64
	names         []string // of its files
}

// Coding is how the frames of a level are compressed.
type Coding string

// The codings Coverslip decodes.
const (
	Native   Coding = "uncompressed"
	JPEG     Coding = "JPEG"
	JPEG2000 Coding = "JPEG 2000"
	RLE      Coding = "RLE"
)

// cell says where the frame at a place of the grid lies.
type cell struct {
	at   int64 // row*columns+column
	file int
	place
}

// place is a range of a file, bytes.
type place struct{ off, n int64 }

// Limits no slide comes near; beyond them a file is made to do harm or is no slide.
const (
	maxEdge   = 1<<31 - 1 // pixels, of a level
	maxFrames = 1 << 22   // of a slide: 4 million of 256 pixels are a square of 500,000
	maxTile   = 64 << 20  // bytes of a decoded frame: it is decoded whole, so its size is memory
	maxRatio  = 1 << 16   // raw to packed bytes, as for TIFF: beyond it are pixels that nobody scanned
)

// Open indexes the files of one slide, in any order; labels, overviews and thumbnails among them are
// left out. What it is given is either
//   - no DICOM whole-slide image in colour, or one with several focal planes, optical paths or
//     pyramids, or a coding without decoder here: Unsupported;
//   - cut off, contradicting itself, or with frames missing: Invalid;
//   - indexed, and every frame lies within its file.
//
// Errors name the file in Path. Errors of a reader keep their kind.
func Open(ctx context.Context, files []NamedReader) (*Series, error) {
	s := &Series{}
	seen := map[string]string{} // instance → file
	var base *image
	left := maxFrames
	for i, r := range files {
		im, err := readImage(ctx, r, tagPixelData)
		if err != nil {
			return nil, coverslip.At(r.Name, err)
		}
		if s.UID != "" && s.UID != im.series {
			return nil, coverslip.At(r.Name, inOp("gather levels", invalid("name the files of one series", "it belongs to series %s, files before it to %s", im.series, s.UID)))
		}
		s.UID = im.series
		if !im.volume() {
			continue
		}
		if other := seen[im.instance]; other != "" && im.instance != "" {
			return nil, coverslip.At(r.Name, inOp("gather levels", invalid("remove one of the two", "it is the same image as %s", other)))
		}
		seen[im.instance] = r.Name
		if err := im.check(&left); err != nil {
			return nil, coverslip.At(r.Name, err)
		}
		if err := s.add(ctx, im, i, r.Name); err != nil {
			return nil, coverslip.At(r.Name, err)
		}
		if base == nil || im.width > base.width {
			base = im
		}
	}
	if base == nil {
		err := inOp("look for levels", unsupported("name the files with the scan itself", "none of the %d files holds the scan (VOLUME): they are labels, overviews or thumbnails", len(files)))
		if len(files) > 0 {
			err = coverslip.At(files[0].Name, err)
		}
		return nil, err
	}
	if err := s.finish(); err != nil {
		return nil, err
	}
	s.MPPX, s.MPPY, s.ObjectivePower = base.spacing[1]*1000, base.spacing[0]*1000, base.objective
	return s, nil
}

// Frame returns where the frame at a place of the grid lies: the n bytes at off of the file with that
// index in the list given to Open. Payload makes of them what a decoder takes. ok is false for a frame
// that the scanner left out: empty glass. It panics when there is no such place.
func (l *Level) Frame(column, row int) (file int, off, n int64, ok bool) {
	if column < 0 || column >= l.columns || row < 0 || row >= l.rows {
		panic("dicom: no such frame")
	}
	at := int64(row)*int64(l.columns) + int64(column)
	i, ok := slices.BinarySearchFunc(l.cells, at, func(c cell, at int64) int { return cmp.Compare(c.at, at) })
	if !ok {
		return 0, 0, 0, false
	}
	c := l.cells[i]
	return c.file, c.off, c.n, true
}

// FrameCount returns how many columns and rows of frames there are.
func (l *Level) FrameCount() (columns, rows int) { return l.columns, l.rows }

// Payload returns the codestream or samples in the bytes of a frame, which it may change: a compressed
// frame comes in one or more fragments with a header each (PS3.5 A.4).
func (l *Level) Payload(data []byte) ([]byte, error) {
	if l.Coding == Native {
		return data, nil
	}
	rest, out := data, data[:0]
	for len(rest) >= 8 {
		t, n := tag(rest), length(rest[4:])
		if t == tagSequenceEnd {
			break
		}
		rest = rest[8:]
		if t != tagItem || n < 0 || n > int64(len(rest))+1 { // an extended offset table does not count the last byte of padding
			return nil, inOp("read frame", invalid(hintDamaged, "no fragment stands where the file says"))
		}
		n = min(n, int64(len(rest)))
		if len(out) == 0 {
			out = rest[:n]
		} else {
			out = append(out, rest[:n]...)
		}
		rest = rest[n:]
	}
	if len(out) == 0 {
		return nil, inOp("read frame", invalid(hintDamaged, "it has no bytes"))
	}
	return out, nil
}

// add puts the frames of an image into its level.
func (s *Series) add(ctx context.Context, im *image, file int, name string) error {
	frames, err := im.frames(ctx)
	if err != nil {
		return err
	}
	l := &Level{Level: coverslip.Level{Width: im.width, Height: im.height}, TileWidth: im.columns, TileHeight: im.rows,
		Coding: im.coding, Planar: im.planar && im.coding == Native,
		spacing: im.spacing, columns: ceilDiv(im.width, im.columns), rows: ceilDiv(im.height, im.rows)}
	if l.YCbCr, err = im.head(ctx, frames[0]); err != nil {
		return inOp("read the first frame", err)
	}
	op := fmt.Sprintf("place the frames of %d×%d pixels", im.width, im.height)
	if i := slices.IndexFunc(s.Levels, func(o *Level) bool { return o.Width == l.Width && o.Height == l.Height }); i < 0 {
		s.Levels = append(s.Levels, l)
	} else {
		o := s.Levels[i]
		if o.TileWidth != l.TileWidth || o.TileHeight != l.TileHeight || o.Coding != l.Coding || o.YCbCr != l.YCbCr || o.Planar != l.Planar {
			return inOp(op, unsupported("export the slide again", "they differ in size or coding from those in %s", o.names[0]))
		}
		l = o
	}
	l.names = append(l.names, name)
	total := int64(l.columns) * int64(l.rows)
	for i, f := range frames {
		at := im.first + int64(i)
		if im.positions != nil {
			x, y := int64(im.positions[i].x)-1, int64(im.positions[i].y)-1
			if x < 0 || y < 0 || x >= int64(im.width) || y >= int64(im.height) {
				return inOp(op, invalid(hintDamaged, "frame %d lies at %d,%d, outside", i+1, x, y))
			}
			if x%int64(im.columns) != 0 || y%int64(im.rows) != 0 {
				return inOp(op, unsupported("export the slide with frames side by side", "frame %d lies at %d,%d, off the grid", i+1, x, y))
			}
			at = y/int64(im.rows)*int64(l.columns) + x/int64(im.columns)
		}
		if at >= total {
			return inOp(op, invalid(hintDamaged, "frame %d is one more than the %d × %d there is room for", at+1, l.columns, l.rows))
		}
		l.cells = append(l.cells, cell{at, file, f})
	}
	l.full = l.full || im.positions == nil
	return nil
}

// finish sorts frames and levels and looks for what is missing or there twice.
func (s *Series) finish() error {
	slices.SortFunc(s.Levels, func(a, b *Level) int {
		return cmp.Or(cmp.Compare(b.Width, a.Width), cmp.Compare(b.Height, a.Height))
	})
	base := s.Levels[0]
	for _, l := range s.Levels {
		slices.SortFunc(l.cells, func(a, b cell) int { return cmp.Compare(a.at, b.at) })
		if err := l.check(); err != nil {
			return coverslip.At(l.names[0], inOp(fmt.Sprintf("check the level of %d×%d pixels", l.Width, l.Height), err))
		}
		w, h, w0, h0 := float64(l.Width), float64(l.Height), float64(base.Width), float64(base.Height)
		if math.Abs(w*h0-h*w0) > w0+h0 { // more than a pixel
			return coverslip.At(l.names[0], inOp("gather levels", unsupported("keep each pyramid in a folder of its own",
				"the series shows several things: %d×%d pixels here are not %d×%d of %s made smaller", l.Width, l.Height, base.Width, base.Height, base.names[0])))
		}
		l.Downsample = (w0/w + h0/h) / 2
		// Sizes are cut to whole pixels; the spacing, where it agrees with them, is not.
		if r := l.spacing[1] / base.spacing[1]; math.Abs(w0/r-w) < 1 && math.Abs(h0/r-h) < 1 {
			l.Downsample = max(r, 1)
		}
	}
	return nil
}

// check looks for frames that are missing or there twice, and for more pixels than the bytes can hold.
func (l *Level) check() error {
	var packed float64
	for i, c := range l.cells {
		if i > 0 && c.at == l.cells[i-1].at {
			return unsupported("Coverslip reads slides with one focal plane and one optical path", "two frames lie at column %d, row %d", c.at%int64(l.columns), c.at/int64(l.columns))
		}
		packed += float64(c.n)
	}
	if total := int64(l.columns) * int64(l.rows); l.full && int64(len(l.cells)) != total {
		return invalid("a file of this level may be missing; copy the whole series", "%d of its %d frames are there", len(l.cells), total)
	}
	raw := max(float64(l.Width)*float64(l.Height), float64(len(l.cells))*float64(l.TileWidth)*float64(l.TileHeight)) * 3
	if raw > maxRatio*packed {
		return invalid(hintDamaged, "it claims %d×%d pixels in %.0f bytes", l.Width, l.Height, packed)
	}
	return nil
}

func ceilDiv(a, b int) int { return (a-1)/b + 1 }

const (
	hintEndsEarly = "the file ends early; copy or upload it again"
	hintDamaged   = "the file is damaged; export it from the scanner or upload it again"
)

var errEndsEarly = errors.New("lies beyond the end of the file")

func invalid(hint, format string, args ...any) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Err: fmt.Errorf(format, args...), Hint: hint}
}

func unsupported(hint, format string, args ...any) error {
	return &coverslip.Error{Kind: coverslip.Unsupported, Err: fmt.Errorf(format, args...), Hint: hint}
}

// inOp says what was being done when err happened.
func inOp(op string, err error) error {
	var known *coverslip.Error
	if errors.Is(err, errEndsEarly) && !errors.As(err, &known) {
		err = invalid(hintEndsEarly, "%w", err)
	}
	return coverslip.Doing(op, err)
}
