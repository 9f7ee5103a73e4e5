package openslide

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"coverslip"
	"coverslip/tiler/tiff"
)

const bundled = "../../testdata/CMU-1-Small-Region.svs"

// TestMain makes the test binary a decode process too: of OpenSlide, or one that goes wrong.
func TestMain(m *testing.M) {
	if len(os.Args) > 4 && os.Args[1] == mode && strings.HasPrefix(os.Args[4], faultyPath) {
		os.Exit(serve(os.Args[2:], openFaulty))
	}
	Main()
	os.Exit(m.Run())
}

// need is openslidetest.Need, which cannot be imported from here.
func need(tb testing.TB) {
	tb.Helper()
	if os.Getenv(LibraryVariable) != "" {
		return
	}
	found, err := filepath.Glob("../../lib/libopenslide.so.[1-9]*")
	switch {
	case err != nil:
		tb.Fatal(err)
	case len(found) == 0 && os.Getenv("CI") == "true":
		tb.Fatal("no lib/libopenslide.so.*: `make setup` did not run")
	case len(found) == 0:
		tb.Skip("no lib/libopenslide.so.*: run `make setup`")
	}
	path, err := filepath.Abs(found[len(found)-1])
	if err == nil {
		err = os.Setenv(LibraryVariable, path)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func mustOpen(tb testing.TB, path string) *Slide {
	tb.Helper()
	need(tb)
	path, err := filepath.Abs(path)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := Open(context.Background(), path, []string{path})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

func TestLibraryHasVersion(t *testing.T) {
	need(t)
	path, version, err := Library(t.Context())
	if err != nil || path != os.Getenv(LibraryVariable) || !strings.HasPrefix(version, "4.") {
		t.Errorf("%q, version %q, %v", path, version, err)
	}
}

func TestWithoutLibraryTheRemedyIsNamed(t *testing.T) {
	path, err := filepath.Abs(bundled)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(LibraryVariable, path) // no library
	_, err = Open(t.Context(), path, []string{path})
	if coverslip.KindOf(err) != coverslip.Environment || !strings.Contains(fmt.Sprint(err), "load OpenSlide") || !strings.Contains(coverslip.HintOf(err), "make setup") {
		t.Errorf("got %v", err)
	}
}

func TestDescription(t *testing.T) {
	s := mustOpen(t, bundled)
	if s.Vendor != "aperio" || !strings.HasPrefix(s.MPPX, "0.499") || s.ObjectivePower != "20" || len(s.Levels) != 1 || s.Levels[0] != (Level{2220, 2967, 1}) {
		t.Errorf("got %+v", s.Description)
	}
}

// Pixels are those of openslide-python on white, to the last bit; see testdata/golden.py.
func TestPixelsAreOpenSlides(t *testing.T) {
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden []struct {
		File              string
		Level, X, Y, W, H int
		SHA256            string
	}
	if err := json.Unmarshal(data, &golden); err != nil || len(golden) == 0 {
		t.Fatal(err)
	}
	open := map[string]*Slide{}
	for _, g := range golden {
		t.Run(fmt.Sprintf("%s/%d/%d,%d+%dx%d", filepath.Base(g.File), g.Level, g.X, g.Y, g.W, g.H), func(t *testing.T) {
			if _, err := os.Stat(g.File); err != nil {
				t.Skipf("%s is not here: it may not be passed on", g.File)
			}
			if open[g.File] == nil {
				need(t)
				path, err := filepath.Abs(g.File)
				if err != nil {
					t.Fatal(err)
				}
				if open[g.File], err = Open(context.Background(), path, []string{path}); err != nil {
					t.Fatal(err)
				}
			}
			dst := make([]byte, g.W*g.H*3)
			if err := open[g.File].ReadRegion(t.Context(), dst, g.Level, g.X, g.Y, g.W, g.H); err != nil {
				t.Fatal(err)
			}
			if sum := sha256.Sum256(dst); hex.EncodeToString(sum[:]) != g.SHA256 {
				t.Errorf("got %x", sum)
			}
		})
	}
	for _, s := range open {
		s.Close()
	}
}

// Regions larger than a slot are read in parts, and many at once.
func TestManyReadAtOnce(t *testing.T) {
	s := mustOpen(t, bundled)
	w, h := 1500, 1100
	whole := make([]byte, w*h*3)
	if err := s.ReadRegion(t.Context(), whole, 0, 300, 400, w, h); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for i := range 8 {
		readers.Go(func() {
			rng := rand.New(rand.NewSource(int64(i)))
			for range 30 {
				pw, ph := 1+rng.Intn(400), 1+rng.Intn(400)
				x, y := rng.Intn(w-pw), rng.Intn(h-ph)
				part := make([]byte, pw*ph*3)
				if err := s.ReadRegion(t.Context(), part, 0, 300+x, 400+y, pw, ph); err != nil {
					t.Error(err)
					return
				}
				for row := range ph {
					if !bytes.Equal(part[row*pw*3:][:pw*3], whole[((y+row)*w+x)*3:][:pw*3]) {
						t.Errorf("%d × %d at %d,%d differ in row %d", pw, ph, x, y, row)
						return
					}
				}
			}
		})
	}
	readers.Wait()
}

func TestWhatIsNoSlideIsUnsupported(t *testing.T) {
	need(t)
	path := filepath.Join(t.TempDir(), "text.ndpi")
	if err := os.WriteFile(path, []byte("no slide"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), path, []string{path})
	if coverslip.KindOf(err) != coverslip.Unsupported || coverslip.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
}

// Fault 2: one bad tile. OpenSlide then gives nothing more of the slide; a fresh handle does.
func TestFault2OneBadTileLeavesTheOthers(t *testing.T) {
	data, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	index, err := tiff.Read(t.Context(), tiff.NewReaderAt(bytes.NewReader(data), int64(len(data))))
	if err != nil {
		t.Fatal(err)
	}
	dir := index.Levels[0].Dir
	off, n := dir.Tile(3, 4)
	clear(data[off : off+n])
	path := filepath.Join(t.TempDir(), "bad.svs")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	good, bad := mustOpen(t, bundled), mustOpen(t, path)
	want, got := make([]byte, 240*240*3), make([]byte, 240*240*3)
	var readers sync.WaitGroup
	for row := range 8 {
		for column := range 8 {
			readers.Go(func() {
				got := make([]byte, 240*240*3)
				err := bad.ReadRegion(t.Context(), got, 0, column*240, row*240, 240, 240)
				if row == 4 && column == 3 {
					if coverslip.KindOf(err) != coverslip.Invalid || errors.Is(err, ErrEnded) {
						t.Errorf("the bad tile: %v", err)
					}
				} else if err != nil {
					t.Errorf("tile %d,%d: %v", column, row, err)
				}
			})
		}
	}
	readers.Wait()
	for _, s := range []struct {
		*Slide
		dst []byte
	}{{good, want}, {bad, got}} {
		if err := s.ReadRegion(t.Context(), s.dst, 0, 720, 720, 240, 240); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("a good tile changed")
	}
}

func TestComposeLaysPixelsOverTheBackground(t *testing.T) {
	for _, c := range []struct {
		bgra       [4]byte // as OpenSlide writes them on a little-endian machine
		background [3]byte
		want       [3]byte
	}{
		{[4]byte{30, 20, 10, 255}, [3]byte{255, 255, 255}, [3]byte{10, 20, 30}},
		{[4]byte{0, 0, 0, 0}, [3]byte{1, 2, 3}, [3]byte{1, 2, 3}},
		{[4]byte{0, 0, 128, 128}, [3]byte{255, 255, 255}, [3]byte{255, 127, 127}}, // half-covered red
		{[4]byte{255, 255, 255, 0}, [3]byte{255, 255, 255}, [3]byte{255, 255, 255}},
	} {
		var got [3]byte
		compose(got[:], c.bgra[:], c.background)
		if got != c.want {
			t.Errorf("%v over %v is %v, want %v", c.bgra, c.background, got, c.want)
		}
	}
	if colour("0a0b0c") != [3]byte{10, 11, 12} || colour("") != [3]byte{255, 255, 255} || colour("#12") != [3]byte{255, 255, 255} {
		t.Error("colour")
	}
}

// BenchmarkReadRegion reads 256-pixel tiles of a real slide through the process, and the same by calls
// within this one.
func BenchmarkReadRegion(b *testing.B) {
	s := mustOpen(b, bundled)
	path, err := filepath.Abs(bundled)
	if err != nil {
		b.Fatal(err)
	}
	direct, err := openImage(os.Getenv(LibraryVariable), path, func() error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	dst, argb := make([]byte, 256*256*3), make([]byte, 256*256*4)
	for name, read := range map[string]func(x, y int) error{
		"process": func(x, y int) error { return s.ReadRegion(b.Context(), dst, 0, x, y, 256, 256) },
		"direct":  func(x, y int) error { return direct.read(argb, request{x: int64(x), y: int64(y), w: 256, h: 256}) },
	} {
		b.Run(name, func(b *testing.B) {
			for i := range b.N {
				if err := read(i%8*256, i/8%11*256); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpen opens and closes a slide in a process.
func BenchmarkOpen(b *testing.B) {
	need(b)
	path, err := filepath.Abs(bundled)
	if err != nil {
		b.Fatal(err)
	}
	for range b.N {
		s, err := Open(b.Context(), path, []string{path})
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}
