package tiler

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"coverslip"
	"coverslip/tiler/tissue"
)

// server serves the file at path in ranges, each answer late by delay, and counts what it does.
type server struct {
	*httptest.Server
	requests, bytes atomic.Int64
	broken          atomic.Bool // answers are 500
}

func serve(t *testing.T, path string, delay time.Duration) *server {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		if s.broken.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		if delay > 0 {
			<-time.After(delay)
		}
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		n, _ := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
		s.bytes.Add(n)
	}))
	t.Cleanup(s.Close)
	return s
}

// readAll reads all tiles of a plan in its order, eight at a time, as the encoder does.
func readAll(ctx context.Context, s *Slide, plan coverslip.Plan) ([][]byte, error) {
	tiles := s.Tiles(plan)
	out := make([][]byte, len(plan.Tiles))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range out {
		g.Go(func() error {
			out[i] = make([]byte, plan.Size*plan.Size*3)
			return tiles.ReadTile(ctx, out[i], i)
		})
	}
	return out, g.Wait()
}

func TestRemoteSlideIsTheLocalOneInFewRequests(t *testing.T) {
	for _, c := range []struct {
		path     string
		mpp      float64
		overlap  int
		requests int64 // for opening, planning and reading all tiles
		over     float64
	}{
		{cmu, 0.5, 0, 12, 0},
		{cmu, 0.8, 16, 12, 0},
		{"tiff/crc-section.tif", 0.5, 0, 60, 1.15},
		{"tiff/crc-section.tif", 1, 0, 60, 1.15},
		{"tiff/crc-section.tif", 2.8, 32, 60, 1.15},
		{"tiff/yb10kx5k.zstd.tiff", 0, 0, 40, 0},
		{"tiff/test_orient6.tif", 0, 0, 10, 0},
		{"tiff/kidney-48-5.tif", 0, 0, 12, 0},
	} {
		t.Run(filepath.Base(c.path)+" "+strconv.FormatFloat(c.mpp, 'g', -1, 64), func(t *testing.T) {
			path := c.path
			if path != cmu {
				path = shared(t, c.path)
			}
			params := coverslip.PlanParams{MPP: c.mpp, Size: 256, Overlap: c.overlap, MinTissue: 0.25}
			if c.mpp == 0 {
				params.MPP, params.MPPOfSlide, params.MinTissue = 0.5, 0.5, 0
			}
			local := mustOpen(t, path)
			plan, _, err := local.Plan(t.Context(), params, tissue.Default())
			if err != nil {
				t.Fatal(err)
			}
			want, err := readAll(t.Context(), local, plan)
			if err != nil {
				t.Fatal(err)
			}

			srv := serve(t, path, 0)
			far := mustOpen(t, srv.URL+"/slide?signature=1")
			opened := srv.requests.Load()
			farPlan, _, err := far.Plan(t.Context(), params, tissue.Default())
			if err != nil {
				t.Fatal(err)
			}
			planned, before := srv.requests.Load(), srv.bytes.Load()
			got, err := readAll(t.Context(), far, farPlan)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(want) {
				t.Fatalf("%d tiles, want %d", len(got), len(want))
			}
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Fatalf("tile %d differs", i)
				}
			}
			t.Logf("requests: open %d, plan %d, %d tiles %d; bytes of tiles %d", opened, planned-opened, len(got), srv.requests.Load()-planned, srv.bytes.Load()-before)
			if n := srv.requests.Load(); n > c.requests {
				t.Errorf("%d requests, want at most %d", n, c.requests)
			}
			if c.over > 0 {
				need := needed(far, farPlan)
				if ratio := float64(srv.bytes.Load()-before) / float64(need); ratio > c.over {
					t.Errorf("%.3f times the bytes needed", ratio)
				} else {
					t.Logf("%.3f times the bytes needed", ratio)
				}
			}
		})
	}
}

// needed is how many bytes the tiles of a plan have in the file.
func needed(s *Slide, plan coverslip.Plan) (n int64) {
	pixels, _ := s.pixels.(*mixedPixels)
	level, _ := pixels.levels[plan.Level].(*tiledPixels)
	tiles := s.Tiles(plan)
	for _, group := range level.grid.ranges(plan.Shrink, tiles.areas) {
		for _, r := range group {
			n += r.N
		}
	}
	return n
}

func TestRemoteReadingThatFailsSaysSo(t *testing.T) {
	for _, name := range []string{cmu, "tiff/kidney-48-5.tif"} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			path := name
			if path != cmu {
				path = shared(t, name)
			}
			srv := serve(t, path, 0)
			s := mustOpen(t, srv.URL+"/slide")
			srv.broken.Store(true)
			pixels := make([]byte, 512*512*3)
			err := s.Region(t.Context(), pixels, 0, 700, 300, 512, 512)
			if coverslip.KindOf(err) != coverslip.Unavailable || !strings.Contains(err.Error(), "500") || !strings.Contains(err.Error(), srv.URL) {
				t.Fatalf("got %v", err)
			}
			srv.broken.Store(false)
			if err := s.Region(t.Context(), pixels, 0, 700, 300, 512, 512); err != nil {
				t.Errorf("the server is back: %v", err)
			}
		})
	}
}

func TestRemoteReadingStopsWithItsContext(t *testing.T) {
	srv := serve(t, cmu, 0)
	s := mustOpen(t, srv.URL)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Region(ctx, make([]byte, 256*256*3), 0, 0, 0, 256, 256); coverslip.KindOf(err) != coverslip.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestRemoteDICOMFileIsTheLocalOne(t *testing.T) {
	found, err := filepath.Glob(filepath.Join(shared(t, "dicom"), "*", "level-0-*.dcm"))
	if err != nil || len(found) != 1 {
		t.Fatalf("level 0: %v, %v", found, err)
	}
	near, err := OpenFiles(t.Context(), "near", found)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	srv := serve(t, found[0], 0)
	far := mustOpen(t, srv.URL+"/level.dcm")
	if far.MPP != near.MPP || len(far.Levels) != 1 || far.Levels[0] != near.Levels[0] {
		t.Errorf("%+v, want %+v", far.Info, near.Info)
	}
	opened := srv.requests.Load()
	want, err := near.shrunk(t.Context(), 0, 1, false)
	if err != nil {
		t.Fatal(err)
	}
	got, err := far.shrunk(t.Context(), 0, 1, false)
	if err != nil || !bytes.Equal(got.RGB, want.RGB) {
		t.Errorf("the same pixels: %v", err)
	}
	if n := srv.requests.Load() - opened; n > 3 {
		t.Errorf("%d requests for a megabyte", n)
	}
}
