package main

import (
	"archive/tar"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coverslip"
	"coverslip/tiler/tissue"
)

var qualityColumns = []string{"glass", "blur", "fold", "bubble", "green_pen", "blue_pen", "red_pen", "black_pen"}

// tilesPlan is what coverslip tiles --plan --json prints.
type tilesPlan struct {
	N int `json:"n_tiles"`
	coverslip.Plan
	Quality []tissue.Scores `json:"quality"`
}

func tilesOK(t *testing.T, args ...string) string {
	t.Helper()
	code, out, stderr := coverslipRun(t, append([]string{"tiles"}, args...)...)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	return out
}

func planOf(t *testing.T, args ...string) (p tilesPlan) {
	t.Helper()
	if err := json.Unmarshal([]byte(tilesOK(t, append(args, "--plan", "--json")...)), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTilesAsTar(t *testing.T) {
	plan := planOf(t, bundled, "--mpp", "2", "--size", "128", "--quality")
	magic := map[string]string{"png": "\x89PNG", "jpg": "\xff\xd8\xff", "webp": "RIFF"}
	for format, head := range magic {
		t.Run(format, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "deep", "tiles.tar")
			args := []string{bundled, "--mpp", "2", "--size", "128", "--format", format, "--out"}
			tilesOK(t, append(args, file)...)
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			archive := tar.NewReader(bytes.NewReader(raw))
			for i, tile := range plan.Tiles {
				name := fmt.Sprintf("%d_%d.", tile.X, tile.Y)
				picture, err := archive.Next()
				if err != nil || picture.Name != name+format {
					t.Fatalf("tile %d: %+v, %v", i, picture, err)
				}
				if data, err := io.ReadAll(archive); err != nil || !strings.HasPrefix(string(data), head) {
					t.Fatalf("tile %d: %.8q, %v", i, data, err)
				}
				about, err := archive.Next()
				if err != nil || about.Name != name+"json" {
					t.Fatalf("tile %d: %+v, %v", i, about, err)
				}
				var got struct {
					coverslip.Tile
					Quality tissue.Scores
				}
				if err := json.NewDecoder(archive).Decode(&got); err != nil || got.Tile != tile || got.Quality != plan.Quality[i] {
					t.Fatalf("tile %d: %+v, %v; want %+v, %+v", i, got, err, tile, plan.Quality[i])
				}
			}
			if more, err := archive.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("after the last tile: %+v, %v", more, err)
			}
			again := filepath.Join(filepath.Dir(file), "again.tar")
			tilesOK(t, append(args, again)...)
			if second, err := os.ReadFile(again); err != nil || !bytes.Equal(raw, second) {
				t.Errorf("written again it differs (%v)", err)
			}
			if code, _, stderr := coverslipRun(t, append([]string{"tiles"}, append(args, file)...)...); code != 1 || !strings.Contains(stderr, "tiles.tar") {
				t.Errorf("over a file: exit %d, %s", code, stderr)
			}
			if left, _ := os.ReadDir(filepath.Dir(file)); len(left) != 2 {
				t.Errorf("it left %v", left)
			}
		})
	}
}

// Noise in the middle of the pixels is found only when the tiles there are read.
func TestTilesThatCannotBeReadLeaveNothing(t *testing.T) {
	data, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	middle := len(data) / 2
	copy(data[middle:], bytes.Repeat([]byte{0xff, 0x00, 0x5a}, 20_000))
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken.svs")
	if err := os.WriteFile(broken, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{"tiles", "tiles.tar"} {
		code, stdout, stderr := coverslipRun(t, "tiles", broken, "--min-tissue", "0", "--out", filepath.Join(dir, out))
		if code != 1 || !strings.Contains(stderr, "broken.svs") {
			t.Errorf("%s: exit %d: %s%s", out, code, stdout, stderr)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("it left %v", left)
	}
}

func TestTilesQuality(t *testing.T) {
	table := func(t *testing.T, r io.Reader) [][]string {
		t.Helper()
		rows, err := csv.NewReader(r).ReadAll()
		if err != nil || len(rows) < 5 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		return rows
	}
	t.Run("PlanWithIt", func(t *testing.T) {
		rows := table(t, strings.NewReader(tilesOK(t, bundled, "--plan", "--quality")))
		if !slices.Equal(rows[0], append([]string{"x", "y", "tissue"}, qualityColumns...)) {
			t.Errorf("%v", rows[0])
		}
	})
	t.Run("FolderHasIt", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "tiles")
		tilesOK(t, bundled, "--mpp", "1", "--format", "webp", "--out", dir)
		f, err := os.Open(filepath.Join(dir, "tiles.csv"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		rows := table(t, f)
		if !slices.Equal(rows[0], append([]string{"x", "y", "tissue", "file"}, qualityColumns...)) {
			t.Errorf("%v", rows[0])
		}
		for _, row := range rows[1:] {
			if _, err := os.Stat(filepath.Join(dir, row[3])); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("AloneItIsAMistake", func(t *testing.T) {
		if code, _, stderr := coverslipRun(t, "tiles", bundled, "--quality"); code != exitUsage || !strings.Contains(stderr, "--plan") {
			t.Errorf("exit %d: %s", code, stderr)
		}
	})
	// Of the section's tiles a few at the lower left have green ink on them that the mask left in.
	t.Run("GreenInkOfTheSection", func(t *testing.T) {
		section := shared(t, "wsi", "tiff", "crc-section.tif")
		if plan := planOf(t, section, "--mpp", "0.5", "--size", "256", "--min-tissue", "0.25"); plan.N < 1170 || plan.N >= 1183 { // 1183 with the ink
			t.Errorf("%d tiles", plan.N)
		}
		plan := planOf(t, section, "--mpp", "1", "--size", "256", "--min-tissue", "0.25", "--quality")
		if len(plan.Quality) != plan.N || plan.N < 290 || plan.N > 320 {
			t.Fatalf("%d scores of %d tiles", len(plan.Quality), plan.N)
		}
		inked := 0
		for i, q := range plan.Quality {
			if q.RedPen > 0 || q.Blur < 0.1 || q.Blur > 0.5 {
				t.Errorf("%+v: %+v", plan.Tiles[i], q)
			}
			if q.GreenPen > 0.02 {
				if inked++; plan.Tiles[i].Y < 11_000 || plan.Tiles[i].X > 5500 {
					t.Errorf("green ink at %+v: %+v", plan.Tiles[i], q)
				}
			}
		}
		if inked < 10 || inked > 25 {
			t.Errorf("%d tiles have green ink", inked)
		}
	})
}

func TestTilesGeoJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tissue.geojson")
	if out := tilesOK(t, bundled, "--geojson", file); strings.Contains(out, "--plan lists") {
		t.Errorf("%s", out)
	}
	raw, err := os.ReadFile(file)
	var got struct {
		Type     string
		Features []struct {
			Geometry struct{ Coordinates [][][2]float64 }
		}
	}
	if err == nil {
		err = json.Unmarshal(raw, &got)
	}
	if err != nil || got.Type != "FeatureCollection" || len(got.Features) == 0 {
		t.Fatalf("%v: %.200s", err, raw)
	}
	for _, f := range got.Features {
		for _, ring := range f.Geometry.Coordinates {
			for _, at := range ring {
				if at[0] < 0 || at[1] < 0 || at[0] > 2220 || at[1] > 2967 {
					t.Fatalf("%v is outside of the slide", at)
				}
			}
		}
	}
}

// Programs read every line as JSON, whatever else was asked for.
func TestTilesJSONIsAllJSON(t *testing.T) {
	out := filepath.Join(t.TempDir(), "tiles")
	code, stdout, stderr := coverslipRun(t, "tiles", bundled, "--mpp", "4", "--size", "128", "--out", out, "--json")
	var said struct {
		N int `json:"n_tiles"`
	}
	if err := json.Unmarshal([]byte(stdout), &said); code != 0 || err != nil || said.N == 0 {
		t.Errorf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
}
