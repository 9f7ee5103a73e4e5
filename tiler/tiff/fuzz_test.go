package tiff_test

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"coverslip"
	"coverslip/tiler/tiff"
)

// FuzzRead holds that no bytes make Read or Check crash, run away, or accept a tile that is not
// in the file. The seeds are every layout and vendor; testdata/fuzz has what fuzzing found beyond.
func FuzzRead(f *testing.F) {
	subs := tiled(64, 48)
	subs.subIFDs = []image{reduced(tiled(32, 24))}
	jpeg := described(tiled(32, 16), "Aperio Image Library v1\n32x16|MPP = 0.5")
	jpeg.extra = append(jpeg.extra, short(259, 7), field{tag: 347, typ: undefinedT, values: letters("\xff\xd8\xff\xd9")})
	jpeg.data = []byte("\xff\xd8\xff\xc0\x00\x11\x08\x00\x10\x00\x10\x03\x00\x22\x00\x01\x11\x01\x02\x11\x01\xff\xda\x00\x08\x01\x00\x00\x00\x00\x00\xff\xd9")
	for _, l := range layouts {
		for _, im := range []image{
			jpeg, subs,
			described(tiled(16, 16), omeXML(`<Image><Pixels SizeX="16" PhysicalSizeX="1"><Channel/><TiffData IFD="0"/></Pixels></Image>`)),
			described(tiled(48, 96), leicaXML(1)),
		} {
			im.data = append([]byte(nil), im.data...)
			if len(im.data) == 0 {
				im.data = make([]byte, 16)
			}
			f.Add(build(l.order, l.big, im, reduced(image{w: 8, h: 8, data: make([]byte, 192), extra: []field{rational(282, 1, 2)}})))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := reader(data)
		file, err := tiff.Read(context.Background(), r)
		if err == nil {
			sound(t, file)
			err = file.Check(context.Background(), r)
			if err == nil {
				inside(t, file)
			}
		}
		var e *coverslip.Error
		if err != nil && (!errors.As(err, &e) || e.Op == "" || e.Err == nil || e.Hint == "" || e.Kind != coverslip.Invalid && e.Kind != coverslip.Unsupported) {
			t.Fatalf("not an error to show a user: %#v", err)
		}
	})
}

func sound(t *testing.T, f *tiff.File) {
	if f.ByteOrder != binary.LittleEndian && f.ByteOrder != binary.BigEndian || len(f.Dirs) == 0 {
		t.Fatalf("%+v", f)
	}
	for i, l := range f.Levels {
		if l.Width < 1 || l.Height < 1 || l.Width > l.Dir.Width || l.Height > l.Dir.Height || l.Downsample < 1 || l.Dir.Role != tiff.LevelImage {
			t.Fatalf("level %d: %+v", i, l)
		}
		if i > 0 && l.Downsample <= f.Levels[i-1].Downsample {
			t.Fatalf("level %d is not coarser than the one before: %v, %v", i, l, f.Levels[i-1])
		}
	}
}

func inside(t *testing.T, f *tiff.File) {
	for _, d := range f.Dirs {
		cols, rows := d.TileCount()
		for row := range rows {
			for col := range cols {
				if off, n := d.Tile(col, row); n != 0 && (off < 8 || n < 0 || off+n > f.Size) {
					t.Fatalf("tile %d,%d has %d bytes at %d of %d", col, row, n, off, f.Size)
				}
			}
		}
	}
}
