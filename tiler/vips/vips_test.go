package vips_test

import (
	"bytes"
	"image/jpeg"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"coverslip"
	"coverslip/tiler/vips"
)

const bundled = "../../testdata/CMU-1-Small-Region.svs"

func noise(w, h int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	rgb := make([]byte, w*h*3)
	for i := range rgb {
		rgb[i] = byte(rng.IntN(256))
	}
	return rgb
}

func TestEncode(t *testing.T) {
	rgb := noise(31, 17)
	t.Run("PNGIsLossless", func(t *testing.T) {
		data, err := vips.Encode(rgb, 31, 17, ".png")
		if err != nil {
			t.Fatal(err)
		}
		im, err := png.Decode(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 31 * 17 {
			r, g, b, _ := im.At(i%31, i/31).RGBA()
			if got := [3]byte{byte(r >> 8), byte(g >> 8), byte(b >> 8)}; got != [3]byte(rgb[3*i:]) {
				t.Fatalf("pixel %d is %v, was %v", i, got, rgb[3*i:3*i+3])
			}
		}
	})
	t.Run("JPEGIsOne", func(t *testing.T) {
		data, err := vips.Encode(rgb, 31, 17, ".jpg[Q=90]")
		if err != nil {
			t.Fatal(err)
		}
		if c, err := jpeg.DecodeConfig(bytes.NewReader(data)); err != nil || c.Width != 31 || c.Height != 17 {
			t.Errorf("%+v, %v", c, err)
		}
	})
	t.Run("UnknownFormatIsAnError", func(t *testing.T) {
		if _, err := vips.Encode(rgb, 31, 17, ".nonsense"); err == nil {
			t.Error("no error")
		}
	})
}

func TestRegionsOfOneImageFromManyGoroutines(t *testing.T) {
	im, err := vips.OpenTIFF(bundled, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if im.Width != 2220 || im.Height != 2967 {
		t.Fatalf("%d × %d", im.Width, im.Height)
	}
	whole := make([]byte, 600*400*3)
	if err := im.ReadRegion(whole, 900, 1200, 600, 400); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			x, y := i%6*100, i/6*100
			part := make([]byte, 100*100*3)
			if err := im.ReadRegion(part, 900+x, 1200+y, 100, 100); err != nil {
				t.Error(err)
			}
			for row := range 100 {
				if !bytes.Equal(part[row*300:(row+1)*300], whole[((y+row)*600+x)*3:][:300]) {
					t.Errorf("part %d differs from the whole in row %d", i, row)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestSaveTIFFIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tif")
	flat := bytes.Repeat([]byte{200, 120, 160}, 600*500)
	if err := vips.SaveTIFF(path, flat, 600, 500, 0.25); err != nil {
		t.Fatal(err)
	}
	im, err := vips.OpenTIFF(path, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if im.Width != 600 || im.Height != 500 {
		t.Fatalf("%d × %d", im.Width, im.Height)
	}
	got := make([]byte, 512*256*3) // the tiles that are full: others ring at the picture's edge
	if err := im.ReadRegion(got, 0, 0, 512, 256); err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		if d := int(v) - int(flat[i]); d < -2 || d > 2 {
			t.Fatalf("byte %d is %d, was %d", i, v, flat[i])
		}
	}
}

func TestWhatCannotBeOpened(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text.tif")
	if err := os.WriteFile(text, []byte("no picture"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func() error{
		"Missing":    func() error { _, err := vips.OpenTIFF("/nowhere.tif", 0, -1); return err },
		"Text":       func() error { _, err := vips.OpenTIFF(text, 0, -1); return err },
		"PageBeyond": func() error { _, err := vips.OpenTIFF(bundled, 99, -1); return err },
		"NoJPEG2000": func() error { return vips.DecodeJPEG2000(make([]byte, 12), []byte("no codestream"), 2, 2) },
		"NoBytes":    func() error { return vips.DecodeJPEG2000(make([]byte, 12), nil, 2, 2) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := open(); coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" {
				t.Errorf("%v (%s)", err, coverslip.KindOf(err))
			}
		})
	}
}
