package tiler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
)

func TestOpenFacts(t *testing.T) {
	const userless = "which no slide scanner has"
	for _, c := range []struct {
		path          string
		format        string
		width, height int
		downsamples   []float64
		mpp           float64
		source        coverslip.MPPSource
		doubt         string
		objective     float64
	}{
		{cmu, "aperio", 2220, 2967, []float64{1}, 0.499, coverslip.MPPAperio, "", 20},
		{"svs/small-openslide.svs", "aperio", 16, 16, []float64{1}, 0.499, coverslip.MPPAperio, "", 20},
		{"svs/TCGA-CR-7395-01A-01-TS1.svs", "aperio", 4443, 3567, []float64{1, 2}, 0, "", "", 0},
		{"tiff/crc-section.tif", "generic-tiff", 11008, 17152, []float64{1, 2, 4, 8, 16, 32, 64, 128}, 0.5, coverslip.MPPTIFF, "", 0},
		{"tiff/boxes.tiff", "generic-tiff", 300, 250, []float64{1, 2, 4, 8}, 0, "", userless, 0},
		{"tiff/yb10kx5k.zstd.tiff", "generic-tiff", 10000, 5000, []float64{1, 2, 4, 8, 16}, 0, "", userless, 0},
		{"tiff/kidney-48-5.tif", "generic-tiff", 1493, 901, []float64{1}, 0, "", "", 0},
		{"tiff/test_orient1.tif", "generic-tiff", 120, 180, []float64{1, 2, 4}, 0, "", userless, 0},
		{"tiff/test_orient6.tif", "generic-tiff", 180, 120, []float64{1, 2, 4}, 0, "", userless, 0},
	} {
		t.Run(filepath.Base(c.path), func(t *testing.T) {
			path := c.path
			if path != cmu {
				path = shared(t, c.path)
			}
			s := mustOpen(t, path)
			if s.Path != path || s.Format != c.format || s.Width != c.width || s.Height != c.height || !strings.HasPrefix(s.Reader, Reader) {
				t.Errorf("got %+v", s.Info)
			}
			if len(s.Levels) != len(c.downsamples) {
				t.Fatalf("levels %+v", s.Levels)
			}
			for i, l := range s.Levels {
				down := c.downsamples[i]
				if l.Downsample != down || math.Abs(float64(l.Width)-float64(c.width)/down) >= 1 || math.Abs(float64(l.Height)-float64(c.height)/down) >= 1 {
					t.Errorf("level %d is %+v, want a downsample of %g", i, l, down)
				}
			}
			if math.Abs(s.MPP.Value-c.mpp) > 1e-4 || s.MPP.Source != c.source || s.ObjectivePower != c.objective {
				t.Errorf("mpp %+v, objective %g", s.MPP, s.ObjectivePower)
			}
			if (c.doubt == "") != (s.MPP.Doubt == "") || !strings.Contains(s.MPP.Doubt, c.doubt) {
				t.Errorf("doubt %q, want %q", s.MPP.Doubt, c.doubt)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name, path string
		kind       coverslip.Kind
	}{
		{"NoFile", filepath.Join(dir, "absent.svs"), coverslip.NotFound},
		{"Folder", dir, coverslip.Unsupported},
		{"Empty", write("empty.svs", nil), coverslip.Invalid},
		{"OneByte", write("one.svs", []byte("I")), coverslip.Unsupported},
		{"HeaderOnly", write("header.svs", []byte("II*\x00")), coverslip.Invalid},
		{"PNGNamedSVS", write("picture.svs", []byte("\x89PNG\r\n\x1a\n and so on")), coverslip.Unsupported},
		{"Program", write("program.svs", []byte("\x7fELF and so on")), coverslip.Unsupported},
		{"PictureBesideASlide", "tiff/boxes.png", coverslip.Unsupported},
		{"Broken", "broken/broken.svs", coverslip.Unsupported},
		{"UnknownCompression", "broken/unopenable.tiff", coverslip.Unsupported},
		{"NoisePixels", "broken/unreadable.svs", coverslip.Invalid},
		{"Microscopy", "not-slides/4D-series.ome.tiff", coverslip.Unsupported},
		{"Text", "not-slides/notanimage.txt", coverslip.Unsupported},
		{"Radiology", "not-slides/radiology-liver.dcm", coverslip.Unsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.path
			if !filepath.IsAbs(path) {
				path = shared(t, path)
			}
			s, err := Open(context.Background(), path)
			if err == nil {
				_ = s.Close()
			}
			refused(t, err, c.kind, path)
		})
	}
}

// refused checks that err names the file and the remedy.
func refused(t *testing.T, err error, kind coverslip.Kind, path string) {
	t.Helper()
	var e *coverslip.Error
	if !errors.As(err, &e) || e.Kind != kind || e.Path != path || e.Op == "" || e.Hint == "" || e.Err == nil {
		t.Errorf("got %#v (%v), want kind %s with path, operation, cause and hint", err, err, kind)
	}
}

// Fault 1: every slide cut short.
func TestFault1Truncated(t *testing.T) {
	for _, name := range []string{cmu, "svs/TCGA-CR-7395-01A-01-TS1.svs", "svs/small-openslide.svs", "tiff/crc-section.tif", "tiff/boxes.tiff",
		"tiff/yb10kx5k.zstd.tiff", "tiff/kidney-48-5.tif", "tiff/test_orient6.tif", "ndpi/test3-DAPI.ndpi"} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			path := name
			if name != cmu {
				path = shared(t, name)
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for at, n := range map[string]int{"Nothing": 0, "1KiB": 1024, "Quarter": len(data) / 4, "Half": len(data) / 2, "99Percent": len(data) * 99 / 100} {
				cut := filepath.Join(t.TempDir(), "cut"+filepath.Ext(path))
				if err := os.WriteFile(cut, data[:n], 0o600); err != nil {
					t.Fatal(err)
				}
				s, err := Open(context.Background(), cut)
				if err == nil {
					_ = s.Close()
					t.Errorf("%s: %d of %d bytes opened", at, n, len(data))
					continue
				}
				refused(t, err, coverslip.Invalid, cut)
			}
		})
	}
}

func TestOpenStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Open(ctx, cmu); coverslip.KindOf(err) != coverslip.Canceled {
		t.Errorf("Open: %v", err)
	}
	s := mustOpen(t, cmu)
	if err := s.Region(ctx, make([]byte, 3), 0, 0, 0, 1, 1); coverslip.KindOf(err) != coverslip.Canceled {
		t.Errorf("Region: %v", err)
	}
	if _, err := s.Thumbnail(ctx, 100); coverslip.KindOf(err) != coverslip.Canceled {
		t.Errorf("Thumbnail: %v", err)
	}
}

func TestBoxesEqualTheirPicture(t *testing.T) {
	s := mustOpen(t, shared(t, "tiff/boxes.tiff"))
	want := readPNG(t, shared(t, "tiff/boxes.png"), s.Width, s.Height)
	if most, _ := far(region(t, s, 0, 0, 0, s.Width, s.Height), want); most != 0 {
		t.Errorf("level 0 differs from its picture by %d at most", most)
	}
}

func readPNG(t *testing.T, path string, w, h int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	if m.Bounds().Dx() != w || m.Bounds().Dy() != h {
		t.Fatalf("the picture is %v, the slide %d × %d", m.Bounds(), w, h)
	}
	rgb := make([]byte, 0, w*h*3)
	for i := range w * h {
		r, g, b, _ := m.At(i%w, i/w).RGBA()
		rgb = append(rgb, byte(r>>8), byte(g>>8), byte(b>>8))
	}
	return rgb
}

// The nine files hold the same pixels and differ in what is said of their orientation.
func TestOrientation(t *testing.T) {
	plain := mustOpen(t, shared(t, "tiff/test_orient1.tif"))
	for level, l := range plain.Levels {
		w, h := l.Width, l.Height
		src := region(t, plain, level, 0, 0, w, h)
		// where pixel (x, y) of the shown picture lies in the stored one (TIFF 6.0, Orientation)
		from := map[int]func(x, y int) (int, int){
			0: func(x, y int) (int, int) { return x, y },
			2: func(x, y int) (int, int) { return w - 1 - x, y },
			3: func(x, y int) (int, int) { return w - 1 - x, h - 1 - y },
			4: func(x, y int) (int, int) { return x, h - 1 - y },
			5: func(x, y int) (int, int) { return y, x },
			6: func(x, y int) (int, int) { return y, h - 1 - x },
			7: func(x, y int) (int, int) { return w - 1 - y, h - 1 - x },
			8: func(x, y int) (int, int) { return w - 1 - y, x },
		}
		for orientation, at := range from {
			s := mustOpen(t, shared(t, fmt.Sprintf("tiff/test_orient%d.tif", orientation)))
			sw, sh := w, h
			if orientation >= 5 {
				sw, sh = h, w
			}
			want := make([]byte, 0, sw*sh*3)
			for i := range sw * sh {
				x, y := at(i%sw, i/sw)
				want = append(want, src[(y*w+x)*3:(y*w+x)*3+3]...)
			}
			if most, _ := far(region(t, s, level, 0, 0, sw, sh), want); most > 0 {
				t.Errorf("orientation %d, level %d: differs by %d at most", orientation, level, most)
			}
		}
	}
}

func TestRegionOutsideTheSlideIsWhite(t *testing.T) {
	s := mustOpen(t, cmu)
	white := bytes.Repeat([]byte{255}, 50*40*3)
	for _, at := range [][2]int{{-50, 0}, {0, -40}, {s.Width, 0}, {0, s.Height}, {s.Width + 1000, -1000}} {
		if !bytes.Equal(region(t, s, 0, at[0], at[1], 50, 40), white) {
			t.Errorf("50 × 40 at %v is not white", at)
		}
	}
	for _, at := range [][2]int{{-20, -10}, {s.Width - 30, s.Height - 15}, {-20, 1000}} {
		got := region(t, s, 0, at[0], at[1], 50, 40)
		x0, y0 := max(at[0], 0), max(at[1], 0)
		x1, y1 := min(at[0]+50, s.Width), min(at[1]+40, s.Height)
		inner := region(t, s, 0, x0, y0, x1-x0, y1-y0)
		for i := range 50 * 40 {
			x, y := at[0]+i%50, at[1]+i/50
			want := white[:3]
			if x >= x0 && x < x1 && y >= y0 && y < y1 {
				want = inner[((y-y0)*(x1-x0)+x-x0)*3:][:3]
			}
			if !bytes.Equal(got[3*i:3*i+3], want) {
				t.Fatalf("50 × 40 at %v: pixel %d,%d is %v, want %v", at, x, y, got[3*i:3*i+3], want)
			}
		}
	}
}

func TestThumbnail(t *testing.T) {
	for _, name := range []string{cmu, "tiff/crc-section.tif", "svs/TCGA-CR-7395-01A-01-TS1.svs", "svs/small-openslide.svs"} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			path := name
			if name != cmu {
				path = shared(t, name)
			}
			s := mustOpen(t, path)
			long := float64(max(s.Width, s.Height))
			var colour float64 // of the largest thumbnail
			for _, edge := range []int{1024, 500, 64, 7, 1} {
				p, err := s.Thumbnail(context.Background(), edge)
				if err != nil {
					t.Fatal(err)
				}
				if want := int(min(float64(edge), long)); max(p.Width, p.Height) != want || len(p.RGB) != p.Width*p.Height*3 {
					t.Errorf("asked for %d: %d × %d", edge, p.Width, p.Height)
				}
				// the other edge to within a pixel, and the scale to within one in the longer edge
				scale := long / float64(max(p.Width, p.Height))
				if math.Abs(float64(min(p.Width, p.Height))-float64(min(s.Width, s.Height))/scale) > 1 || math.Abs(p.Scale/scale-1) > 1.5/float64(max(p.Width, p.Height)) {
					t.Errorf("asked for %d: %d × %d at scale %.3f of %d × %d", edge, p.Width, p.Height, p.Scale, s.Width, s.Height)
				}
				var sum float64
				for _, v := range p.RGB {
					sum += float64(v)
				}
				if sum /= float64(len(p.RGB)); colour == 0 {
					colour = sum
				} else if math.Abs(sum-colour) > 2 {
					t.Errorf("asked for %d: %.1f bright on average, a larger one %.1f", edge, sum, colour)
				}
			}
		})
	}
}
