package tiler

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"image"
	"image/jpeg"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"coverslip"
	"coverslip/tiler/remote"
	"coverslip/tiler/tiff"
)

// separate writes an RGB picture as a TIFF with tiles of 64 pixels, red ones before green before blue.
func separate(rgb []byte, w, h int, compression uint16, pack func(grey []byte) []byte) []byte {
	const edge = 64
	le := binary.LittleEndian
	file := []byte("II*\x00\x00\x00\x00\x00\x08\x00\x08\x00\x08\x00\x00\x00")
	var offsets, counts []byte
	for plane := range 3 {
		for y := 0; y < h; y += edge {
			for x := 0; x < w; x += edge {
				tile := make([]byte, edge*edge)
				for i := range tile {
					if tx, ty := x+i%edge, y+i/edge; tx < w && ty < h {
						tile[i] = rgb[(ty*w+tx)*3+plane]
					}
				}
				packed := pack(tile)
				offsets = le.AppendUint32(offsets, uint32(len(file)))
				counts = le.AppendUint32(counts, uint32(len(packed)))
				file = append(file, packed...)
			}
		}
	}
	file = append(file, make([]byte, len(file)%2)...)
	at := uint32(len(file))
	file = append(append(file, offsets...), counts...)
	le.PutUint32(file[4:], uint32(len(file)))
	n := uint32(len(offsets) / 4)
	tags := [][4]uint32{{256, 4, 1, uint32(w)}, {257, 4, 1, uint32(h)}, {258, 3, 3, 8}, {259, 3, 1, uint32(compression)}, {262, 3, 1, 2}, {277, 3, 1, 3},
		{284, 3, 1, 2}, {322, 4, 1, edge}, {323, 4, 1, edge}, {324, 4, n, at}, {325, 4, n, at + 4*n}}
	file = le.AppendUint16(file, uint16(len(tags)))
	for _, t := range tags {
		file = le.AppendUint16(le.AppendUint16(file, uint16(t[0])), uint16(t[1]))
		file = le.AppendUint32(le.AppendUint32(file, t[2]), t[3])
	}
	return le.AppendUint32(file, 0)
}

func deflate(p []byte) []byte {
	var out bytes.Buffer
	z := zlib.NewWriter(&out)
	_, _ = z.Write(p)
	_ = z.Close()
	return out.Bytes()
}

func TestFault8ColoursInTilesOfTheirOwn(t *testing.T) {
	const w, h = 300, 200
	rgb := region(t, mustOpen(t, cmu), 0, 900, 500, w, h)
	for name, c := range map[string]struct {
		compression uint16
		pack        func(grey []byte) []byte
		most        int
	}{
		"Uncompressed": {1, func(p []byte) []byte { return p }, 0},
		"Deflate":      {8, deflate, 0},
		"PackBits": {32773, func(p []byte) (out []byte) {
			for line := range slices.Chunk(p, 64) {
				out = append(append(out, 63), line...)
			}
			return out
		}, 0},
		"JPEG": {7, func(p []byte) []byte {
			var out bytes.Buffer
			_ = jpeg.Encode(&out, &image.Gray{Pix: p, Stride: 64, Rect: image.Rect(0, 0, 64, 64)}, &jpeg.Options{Quality: 100})
			return out.Bytes()
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "planar.tif")
			if err := os.WriteFile(path, separate(rgb, w, h, c.compression, c.pack), 0o600); err != nil {
				t.Fatal(err)
			}
			s := mustOpen(t, path)
			if most, _ := far(region(t, s, 0, 0, 0, w, h), rgb); most > c.most {
				t.Errorf("differs by %d", most)
			}
			r, index := indexed(t, path)
			ahead := remote.NewAhead(r)
			t.Cleanup(func() { _ = ahead.Close() })
			pixels, err := decoder(path, ahead, index, s.Levels)
			if err != nil {
				t.Fatal(err)
			}
			defer pixels.Close()
			part := make([]byte, 70*90*3)
			if err := pixels.ReadRegion(t.Context(), part, 0, 1, 50, 60, 70, 90); err != nil || !bytes.Equal(part, region(t, s, 0, 50, 60, 70, 90)) {
				t.Errorf("not the same where it is read in ranges: %v", err)
			}
		})
	}
}

func TestFault2DamageInOneColour(t *testing.T) {
	const w, h = 300, 200
	path := filepath.Join(t.TempDir(), "planar.tif")
	if err := os.WriteFile(path, separate(region(t, mustOpen(t, cmu), 0, 900, 500, w, h), w, h, 8, deflate), 0o600); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, index := indexed(t, path)
	off, n := index.Dirs[0].Plane(2).Tile(1, 1)
	clear(raw[off+n/4 : off+n])
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, path)
	got := make([]byte, 64*64*3)
	if err := s.Region(t.Context(), got, 0, 64, 64, 64, 64); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("the damaged tile: %v", err)
	}
	if err := s.Region(t.Context(), got, 0, 0, 0, 64, 64); err != nil {
		t.Errorf("the tile beside it: %v", err)
	}
}

func TestWhatIsNoBrightFieldColour(t *testing.T) {
	dir := func(change func(d *tiff.Dir)) *tiff.File {
		d := &tiff.Dir{BitsPerSample: 8, SampleFormat: 1, SamplesPerPixel: 3, Photometric: tiff.RGB, Tiled: true, Orientation: 1}
		f := &tiff.File{Dirs: []*tiff.Dir{d}}
		change(d)
		return f
	}
	for name, c := range map[string]struct {
		f       *tiff.File
		refused bool
	}{
		"RGB":         {dir(func(*tiff.Dir) {}), false},
		"Lab":         {dir(func(d *tiff.Dir) { d.Photometric = 8 }), true},
		"CMYK":        {dir(func(d *tiff.Dir) { d.Photometric, d.SamplesPerPixel = tiff.CMYK, 4 }), true},
		"YCbCrInLZW":  {dir(func(d *tiff.Dir) { d.Photometric, d.Compression = tiff.YCbCr, tiff.LZW }), true},
		"YCbCrInJPEG": {dir(func(d *tiff.Dir) { d.Photometric, d.Compression = tiff.YCbCr, tiff.JPEG }), false},
		"PlanarRGBA":  {dir(func(d *tiff.Dir) { d.Planar, d.SamplesPerPixel = true, 4 }), true},
		"PlanarRGB":   {dir(func(d *tiff.Dir) { d.Planar = true }), false},
	} {
		if err := brightfield(c.f); (coverslip.KindOf(err) == coverslip.Unsupported) != c.refused {
			t.Errorf("%s: %v", name, err)
		}
	}
	channels := dir(func(d *tiff.Dir) { d.SamplesPerPixel, d.Photometric = 1, tiff.BlackIsZero })
	channels.OME = &tiff.OME{Images: []tiff.OMEImage{{SizeC: 3}}}
	if err := brightfield(channels); coverslip.KindOf(err) != coverslip.Unsupported {
		t.Errorf("three channels of one sample: %v", err)
	}
}
