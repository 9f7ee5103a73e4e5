package tiler

import (
	"context"

	"coverslip"
	"coverslip/tiler/dicom"
	"coverslip/tiler/jpeg"
	"coverslip/tiler/tiff"
	"coverslip/tiler/vips"
)

// openDICOM opens the slide that consists of these files.
func openDICOM(ctx context.Context, files []dicom.NamedReader) (*Slide, error) {
	series, err := dicom.Open(ctx, files)
	if err != nil {
		return nil, err
	}
	s := &Slide{Info: Info{Format: "dicom", Reader: Reader + " (libjpeg-turbo " + jpeg.Version() + ", libvips " + vips.Version() + ")"}}
	out := &mixedPixels{}
	if len(files) == 1 {
		out.ahead = asAhead(files[0].RangeReader)
	}
	cache := newTileCache(cacheBytes)
	for i, l := range series.Levels {
		codec, err := frameCodec(l)
		if err != nil {
			_ = out.Close()
			return nil, inLevel(i, err)
		}
		grid := &tileGrid{l.Width, l.Height, l.TileWidth, l.TileHeight, func(column, row int) (tiff.RangeReader, int64, int64) {
			file, off, n, ok := l.Frame(column, row)
			if !ok {
				return nil, 0, 0
			}
			return files[file], off, n
		}, l.Payload, true}
		out.levels = append(out.levels, tiled(grid, codec, cache))
		s.Levels = append(s.Levels, l.Level)
	}
	s.pixels = out
	s.Width, s.Height = s.Levels[0].Width, s.Levels[0].Height
	wholeDownsamples(s.Levels)
	s.ObjectivePower = series.ObjectivePower
	s.MPP = decideMPP([]claim{{coverslip.MPPDICOM, series.MPPX, series.MPPY, ""}}, s.ObjectivePower)
	return s, nil
}

func frameCodec(l *dicom.Level) (tileCodec, error) {
	switch l.Coding {
	case dicom.JPEG:
		c := jpeg.RGB
		if l.YCbCr {
			c = jpeg.YCbCr
		}
		return newJPEGTiles(jpeg.Stream{Color: c, Width: l.TileWidth, Height: l.TileHeight})
	case dicom.JPEG2000:
		return jpeg2000Tiles{l.TileWidth, l.TileHeight}, nil
	case dicom.RLE:
		return rleTiles{l.TileWidth, l.TileHeight}, nil
	default:
		return nativeTiles{l.TileWidth, l.TileHeight, l.Planar}, nil
	}
}

// nativeTiles lays out samples that are not compressed.
type nativeTiles struct {
	width, height int
	planar        bool // all red samples come first
}

func (t nativeTiles) shrinks() int { return 1 }

func (t nativeTiles) decode(dst []byte, stride, rows, _ int, data []byte) error {
	for y := range rows {
		line := dst[y*stride:][:t.width*3]
		if !t.planar {
			copy(line, data[y*t.width*3:])
			continue
		}
		for x := range t.width {
			at := y*t.width + x
			line[3*x], line[3*x+1], line[3*x+2] = data[at], data[t.width*t.height+at], data[2*t.width*t.height+at]
		}
	}
	return nil
}

func (t nativeTiles) close() {}
