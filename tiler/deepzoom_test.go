package tiler

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"image"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"coverslip"
)

// Sizes of levels and tiles, and the descriptor, are those of OpenSlide's generator.
func TestDeepZoomGeometry(t *testing.T) {
	raw, err := os.ReadFile("testdata/deepzoom/geometry.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		TileSize   int `json:"tile_size"`
		Overlap    int
		Descriptor string
		Levels     []struct {
			Size            [2]int
			Widths, Heights []int
		}
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%d+%d", c.TileSize, c.Overlap), func(t *testing.T) {
			z := DeepZoom{Width: 2220, Height: 2967, TileSize: c.TileSize, Overlap: c.Overlap}
			if z.Levels() != len(c.Levels) {
				t.Fatalf("%d levels, want %d", z.Levels(), len(c.Levels))
			}
			for level, want := range c.Levels {
				if w, h := z.Size(level); [2]int{w, h} != want.Size {
					t.Errorf("level %d is %d × %d, want %v", level, w, h, want.Size)
				}
				for column, w := range want.Widths {
					for row, h := range want.Heights {
						at, err := z.Tile(level, column, row)
						if err != nil || at.Dx() != w || at.Dy() != h {
							t.Errorf("tile %d/%d_%d is %v, %v; want %d × %d", level, column, row, at, err, w, h)
						}
					}
				}
				for _, out := range []image.Point{{len(want.Widths), 0}, {0, len(want.Heights)}, {-1, 0}, {0, -1}} {
					if _, err := z.Tile(level, out.X, out.Y); coverslip.KindOf(err) != coverslip.NotFound {
						t.Errorf("level %d has a tile %v: %v", level, out, err)
					}
				}
			}
			for _, level := range []int{-1, z.Levels(), 1000} {
				if _, err := z.Tile(level, 0, 0); coverslip.KindOf(err) != coverslip.NotFound {
					t.Errorf("there is a level %d: %v", level, err)
				}
			}
			type descriptor struct {
				XMLName                   xml.Name `xml:"http://schemas.microsoft.com/deepzoom/2008 Image"`
				TileSize, Overlap, Format string   `xml:",attr"`
				Size                      struct {
					Width, Height int `xml:",attr"`
				}
			}
			parse := func(text string) (d descriptor) {
				if err := xml.Unmarshal([]byte(text), &d); err != nil {
					t.Fatalf("%v in %s", err, text)
				}
				return d
			}
			if got, want := parse(string(z.Descriptor("jpeg"))), parse(c.Descriptor); !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
	t.Run("SmallestSlides", func(t *testing.T) {
		for edge, levels := range map[int]int{1: 1, 2: 2, 3: 3, 4: 3, 5: 4} {
			if got := (DeepZoom{Width: edge, Height: 1, TileSize: 254}).Levels(); got != levels {
				t.Errorf("%d pixels: %d levels, want %d", edge, got, levels)
			}
		}
	})
}

func deepZoom(s *Slide) DeepZoom {
	return DeepZoom{Width: s.Width, Height: s.Height, TileSize: 254, Overlap: 1}
}

func zoomTile(t *testing.T, s *Slide, level, column, row int) *Picture {
	t.Helper()
	p, err := s.DeepZoomTile(context.Background(), deepZoom(s), level, column, row)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Pixels are those of OpenSlide's generator: at the slide's own resolution just so, elsewhere as near
// as decoding smaller comes to averaging (its own filter was replaced by that, see make.py).
func TestDeepZoomPixelsAgainstOpenSlide(t *testing.T) {
	s := mustOpen(t, cmu)
	files, err := filepath.Glob("testdata/deepzoom/*.png")
	if err != nil || len(files) == 0 {
		t.Fatal("no pictures to compare with", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".png")
		t.Run(name, func(t *testing.T) {
			var level, column, row int
			if _, err := fmt.Sscanf(name, "%d_%d_%d", &level, &column, &row); err != nil {
				t.Fatal(err)
			}
			got := zoomTile(t, s, level, column, row)
			want := readPNG(t, file, got.Width, got.Height)
			if level == deepZoom(s).Levels()-1 {
				if most, mean := far(got.RGB, want); most > 2 || mean > 0.05 {
					t.Errorf("differs by %d at most, %g on average", most, mean)
				}
				return
			}
			db := psnr(got.RGB, want)
			t.Logf("%.1f dB", db)
			if db < 35 {
				t.Errorf("%.1f dB, want 35", db)
			}
		})
	}
}

// Where the slide has the level, tiles are cut out of it; and tiles of any level, less their overlap,
// lie together without a seam.
func TestDeepZoomOfAPyramid(t *testing.T) {
	s := mustOpen(t, shared(t, "tiff/crc-section.tif"))
	z := deepZoom(s)
	met := 0
	for level := range z.Levels() {
		for i, l := range s.Levels {
			if l.Downsample != float64(z.downsample(level)) {
				continue
			}
			met++
			at, err := z.Tile(level, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got := zoomTile(t, s, level, 0, 0); !bytes.Equal(got.RGB, region(t, s, i, 0, 0, at.Dx(), at.Dy())) {
				t.Errorf("level %d is not level %d of the slide", level, i)
			}
		}
	}
	if met < 2 {
		t.Fatalf("the slide has %d levels of the pyramid: this shows nothing", met)
	}
	for level := z.Levels() - 5; level < z.Levels(); level++ {
		left, right := zoomTile(t, s, level, 0, 0), zoomTile(t, s, level, 1, 0)
		for y := range left.Height {
			for x := range 2 * z.Overlap { // the columns that both show
				a, b := left.RGB[(y*left.Width+left.Width-2*z.Overlap+x)*3:][:3], right.RGB[(y*right.Width+x)*3:][:3]
				if !bytes.Equal(a, b) {
					t.Fatalf("level %d: neighbours differ in row %d: %v, %v", level, y, a, b)
				}
			}
		}
	}
}

// A slide without a pyramid is read in pieces: no tile takes memory for all of it, and what small
// levels show is the mean of everything.
func TestDeepZoomWithoutAPyramid(t *testing.T) {
	p := &ramp{width: 6001, height: 1203}
	s := &Slide{pixels: p, Info: Info{Width: p.width, Height: p.height, Levels: []coverslip.Level{{Width: p.width, Height: p.height, Downsample: 1}}}}
	z := deepZoom(s)
	for level := range z.Levels() {
		w, h := z.Size(level)
		at, err := z.Tile(level, (w-1)/z.TileSize, (h-1)/z.TileSize)
		if err != nil {
			t.Fatal(err)
		}
		got := zoomTile(t, s, level, (w-1)/z.TileSize, (h-1)/z.TileSize)
		left := float64(at.Min.X * z.downsample(level))
		scale := (float64(p.width) - left) / float64(got.Width)
		for _, x := range []int{0, got.Width - 1} {
			mean := (left + (float64(x)+0.5)*scale) / float64(p.width) * 250
			slack := 1.5 + 25/float64(w) // the smallest are made of the ones above them
			if v := float64(got.RGB[x*3]); v < mean-slack || v > mean+slack {
				t.Errorf("level %d, pixel %d: %g, want %g", level, x, v, mean)
			}
		}
	}
	if p.most > 2200*2200 {
		t.Errorf("%d pixels were read at once", p.most)
	}
}

// ramp is a level that gets brighter from left to right, from 0 to 250.
type ramp struct{ width, height, most int }

func (p *ramp) ReadRegion(_ context.Context, dst []byte, _, _, x, _, w, h int) error {
	p.most = max(p.most, w*h)
	for i := range w {
		v := byte((float64(x+i) + 0.5) / float64(p.width) * 250)
		dst[3*i], dst[3*i+1], dst[3*i+2] = v, v, v
	}
	for y := 1; y < h; y++ {
		copy(dst[3*w*y:], dst[:3*w])
	}
	return nil
}
func (p *ramp) Shrinks(int) int      { return 1 }
func (p *ramp) Grain(int) (w, h int) { return 256, 256 }
func (p *ramp) Close() error         { return nil }

// Every pixel of every tile is of the slide, down to the corners of those whose levels were cut to
// whole pixels: none is the white that lies beside it.
func TestDeepZoomEdges(t *testing.T) {
	p := &ramp{width: 4443, height: 3001}
	half := coverslip.Level{Width: 2221, Height: 1500, Downsample: 2}
	s := &Slide{pixels: p, Info: Info{Width: p.width, Height: p.height, Levels: []coverslip.Level{{Width: p.width, Height: p.height, Downsample: 1}, half}}}
	z := deepZoom(s)
	for level := range z.Levels() {
		w, h := z.Size(level)
		got := zoomTile(t, s, level, (w-1)/z.TileSize, (h-1)/z.TileSize)
		for i, v := range got.RGB {
			if v > 250 {
				t.Fatalf("level %d: byte %d of %d × %d is %d", level, i, got.Width, got.Height, v)
			}
		}
	}
}
