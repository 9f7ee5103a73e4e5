package tiler

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"sync"

	"coverslip"
	"coverslip/tiler/tiff"
)

// deflateTiles decodes RGB tiles in zlib's format (TIFF Technical Note 1, Adobe Photoshop), which end
// with a checksum. libtiff stops at the last pixel and never looks at it: of 60 damages it told 35.
type deflateTiles struct {
	width, height int
	predictor     bool      // each sample is the difference to the pixel on its left (TIFF 6.0, 14)
	inflaters     sync.Pool // *inflater
}

type inflater struct {
	src bytes.Reader
	z   io.ReadCloser
	rgb []byte
}

// deflated returns the codec for a directory's tiles, if it is for them.
func deflated(d *tiff.Dir) (*deflateTiles, bool) {
	ok := (d.Compression == tiff.Deflate || d.Compression == tiff.OldDeflate) && d.Tiled &&
		d.SamplesPerPixel == 3 && d.Photometric == tiff.RGB && d.SampleFormat == 1 && (d.Predictor == 1 || d.Predictor == 2)
	return &deflateTiles{width: d.TileWidth, height: d.TileHeight, predictor: d.Predictor == 2}, ok
}

func (t *deflateTiles) shrinks() int { return 1 }

func (t *deflateTiles) decode(dst []byte, stride, rows, _ int, data []byte) error {
	in, _ := t.inflaters.Get().(*inflater)
	if in == nil {
		in = &inflater{rgb: make([]byte, t.width*t.height*3)}
	}
	defer t.inflaters.Put(in)
	if err := in.inflate(data); err != nil {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "decode deflate", Err: err}
	}
	line := t.width * 3
	for y := range rows {
		from := in.rgb[y*line : (y+1)*line]
		if t.predictor {
			for i := 3; i < line; i++ {
				from[i] += from[i-3]
			}
		}
		copy(dst[y*stride:], from)
	}
	return nil
}

// inflate fills rgb and holds it against the checksum. A tile of any other length is refused, and
// nothing beyond that length is written: a bomb costs no more than a tile.
func (in *inflater) inflate(data []byte) (err error) {
	in.src.Reset(data)
	if in.z == nil {
		in.z, err = zlib.NewReader(&in.src)
	} else {
		resetter, _ := in.z.(zlib.Resetter)
		err = resetter.Reset(&in.src, nil)
	}
	if err != nil {
		return err
	}
	if n, err := io.ReadFull(in.z, in.rgb); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, len(in.rgb), err)
	}
	var more [1]byte
	switch n, err := in.z.Read(more[:]); {
	case n > 0:
		return errors.New("it has more pixels than the tile")
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

func (t *deflateTiles) close() {}
