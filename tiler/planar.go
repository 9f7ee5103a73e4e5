package tiler

import (
	"context"
	"encoding/binary"
	"io"

	"coverslip/tiler/jpeg"
	"coverslip/tiler/remote"
	"coverslip/tiler/tiff"
	"coverslip/tiler/vips"
)

// planarPixels lays together a level whose red, green and blue lie in tiles of their own, as raw2ometiff
// --rgb writes them. Each of the three is read as a grey level.
type planarPixels [3]levelPixels

// planar opens the three. libvips reads no such tiles itself.
func planar(path string, r tiff.RangeReader, d *tiff.Dir, cache *tileCache, sparse bool) (p planarPixels, err error) {
	for i := range p {
		if p[i], err = plane(path, r, d.Plane(i), cache, sparse); err != nil {
			p.close()
			return p, err
		}
	}
	return p, nil
}

func plane(path string, r tiff.RangeReader, d *tiff.Dir, cache *tileCache, sparse bool) (levelPixels, error) {
	if d.Compression == tiff.JPEG {
		codec, err := newJPEGTiles(jpeg.Stream{Tables: d.JPEGTables, Color: jpeg.Grey, Width: d.TileWidth, Height: d.TileHeight})
		if err != nil {
			return nil, err
		}
		return newTiledPixels(r, d, codec, cache, sparse), nil
	}
	head := greyTIFF(d)
	im, err := vips.OpenTIFFAt(behind{head, readerAt(r)}, int64(len(head))+r.Size(), remote.Shown(path), 0, -1)
	if err != nil {
		return nil, err
	}
	return vipsPixels{im: im, tiles: true}, nil
}

func (p planarPixels) readRegion(ctx context.Context, dst []byte, shrink, x, y, w, h int) error {
	grey := make([]byte, w*h*3)
	for i, plane := range p {
		if err := plane.readRegion(ctx, grey, shrink, x, y, w, h); err != nil {
			return err
		}
		for at := i; at < len(dst); at += 3 {
			dst[at] = grey[at]
		}
	}
	return nil
}

func (p planarPixels) shrinks() int { return p[0].shrinks() }

func (p planarPixels) grain() (w, h int) { return p[0].grain() }

func (p planarPixels) close() {
	for _, plane := range p {
		if plane != nil {
			plane.close()
		}
	}
}

// greyTIFF is the front of a BigTIFF of which the file that d is in is the rest: its one directory says
// of d's tiles, where they are then, that they are a grey picture.
func greyTIFF(d *tiff.Dir) []byte {
	const (
		short, long8 = 3, 16
		fields       = 11
		header       = 16
		directory    = 8 + fields*20 + 8
	)
	columns, rows := d.TileCount()
	n := uint64(columns * rows) //nolint:gosec // there are so many
	length := header + directory + 16*n
	le := binary.LittleEndian
	out := le.AppendUint64(le.AppendUint64([]byte("II+\x00\x08\x00\x00\x00"), header), fields)
	field := func(tag, kind uint16, count, value uint64) {
		out = le.AppendUint16(le.AppendUint16(out, tag), kind)
		out = le.AppendUint64(le.AppendUint64(out, count), value)
	}
	one := func(tag uint16, value int) { field(tag, long8, 1, uint64(value)) } //nolint:gosec // sizes
	places := func(tag uint16, at uint64, of func(column, row int) int64) {
		if n == 1 { // it stands in the field itself
			at = uint64(of(0, 0)) //nolint:gosec // within the file
		}
		field(tag, long8, n, at)
	}
	offset := func(column, row int) int64 { off, _ := d.Tile(column, row); return off + int64(length) } //nolint:gosec // a front of some megabytes
	count := func(column, row int) int64 { _, n := d.Tile(column, row); return n }
	one(256, d.Width)
	one(257, d.Height)
	field(258, short, 1, 8)
	field(259, short, 1, uint64(d.Compression)) //nolint:gosec // one that is known
	field(262, short, 1, uint64(tiff.BlackIsZero))
	field(277, short, 1, 1)
	field(317, short, 1, uint64(max(d.Predictor, 1)))
	one(322, d.TileWidth)
	one(323, d.TileHeight)
	places(324, header+directory, offset)
	places(325, header+directory+8*n, count)
	out = le.AppendUint64(out, 0)
	for _, of := range []func(column, row int) int64{offset, count} {
		for row := range rows {
			for column := range columns {
				out = le.AppendUint64(out, uint64(of(column, row))) //nolint:gosec // within the file
			}
		}
	}
	return out
}

// behind is a file with something before it.
type behind struct {
	head []byte
	file io.ReaderAt
}

func (b behind) ReadAt(p []byte, off int64) (n int, err error) {
	if off < int64(len(b.head)) {
		if n = copy(p, b.head[off:]); n == len(p) {
			return n, nil
		}
		off = int64(len(b.head))
	}
	m, err := b.file.ReadAt(p[n:], off-int64(len(b.head)))
	return n + m, err
}

// readerAt is for decoders that ask for small pieces all over the place.
func readerAt(r tiff.RangeReader) io.ReaderAt {
	if at, ok := r.(io.ReaderAt); ok {
		return at
	}
	return rangeAt{r}
}

type rangeAt struct{ tiff.RangeReader }

func (r rangeAt) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), max(r.Size()-off, 0))
	if err := r.ReadRange(context.Background(), p[:n], off); err != nil { // libvips has no context
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
