package openslide

import (
	"bytes"
	pictures "image"
	"image/color"
	"image/jpeg"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
	"coverslip/tiler/tilertest"
)

// Whatever a file holds, the decode process ends with an answer or alone, and the answer is of a kind that
// ends the slide, not the service. Under AddressSanitizer (make asan) it also shows what OpenSlide, libtiff
// and libjpeg write or copy beyond what they allocated.
func FuzzFault13DecodeProcess(f *testing.F) {
	need(f)
	picture := pictures.NewRGBA(pictures.Rect(0, 0, 64, 64))
	for i := range 64 * 64 {
		picture.SetRGBA(i%64, i/64, color.RGBA{byte(i), byte(i / 64), 90, 255})
	}
	var tile bytes.Buffer
	if err := jpeg.Encode(&tile, picture, nil); err != nil {
		f.Fatal(err)
	}
	f.Add(tilertest.OneTile(64, 7, tile.Bytes()))
	f.Add(tilertest.OneTile(64, 1, make([]byte, 64*64*3)))
	f.Add(tilertest.OneTile(64, 8, tilertest.DeflateBomb(1<<20)))
	f.Add(tilertest.OneTile(64, 33005, tilertest.JPEG2000(64, 64)))
	f.Add(tilertest.TIFF(8, tilertest.Tag{256, tilertest.Long, 1, 1 << 31}))
	f.Add([]byte("[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=x.jpg\nMapFile=../../etc/passwd\n"))
	f.Add(append([]byte("ZISRAWFILE\x00\x00\x00\x00\x00\x00"), make([]byte, 528)...))
	f.Add(append(make([]byte, 128), "DICM\x02\x00\x00\x00UL\x04\x00\xff\xff\xff\xff"...))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "slide")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), path, []string{path})
		if err == nil {
			defer s.Close()
			err = s.ReadRegion(t.Context(), make([]byte, 32*32*3), 0, 0, 0, 32, 32)
		}
		switch kind := coverslip.KindOf(err); {
		case err == nil, kind == coverslip.Invalid, kind == coverslip.Unsupported:
		default:
			t.Errorf("%v of kind %v", err, kind)
		}
		if err != nil && (strings.Contains(err.Error(), "Sanitizer") || strings.Contains(err.Error(), "====")) {
			t.Error(err)
		}
	})
}
