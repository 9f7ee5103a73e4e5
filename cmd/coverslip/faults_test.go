package main

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
	"coverslip/storage/bagfile"
	"coverslip/tiler/tiff"
)

// damaged is the bundled slide with one tile of level 0 that is no JPEG.
func damaged(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	index, err := tiff.Read(t.Context(), tiff.NewReaderAt(bytes.NewReader(data), int64(len(data))))
	if err != nil {
		t.Fatal(err)
	}
	off, _ := index.Levels[0].Dir.Tile(3, 5)
	copy(data[off:], "this is no picture")
	path := filepath.Join(t.TempDir(), "damaged.svs")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFault2BadTileOfTiles(t *testing.T) {
	slide := damaged(t)
	type plan struct {
		N       int                     `json:"n_tiles"`
		Tiles   []coverslip.Tile        `json:"tiles"`
		Skipped []coverslip.SkippedTile `json:"skipped"`
		Quality []any                   `json:"quality"`
	}
	var clean plan
	if err := json.Unmarshal([]byte(tilesOK(t, bundled, "--json")), &clean); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := coverslipRun(t, "tiles", slide, "--plan", "--quality"); code != 1 || !strings.Contains(stderr, "file tile 3,5") || !strings.Contains(stderr, "--skip-bad-tiles") {
		t.Errorf("by default: exit %d, %s", code, stderr)
	}
	for name, args := range map[string][]string{"Listed": {"--json"}, "Folder": {"--json", "--out", filepath.Join(t.TempDir(), "tiles")}} {
		code, out, stderr := coverslipRun(t, append([]string{"tiles", slide, "--skip-bad-tiles"}, args...)...)
		var got plan
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
			t.Fatalf("%s: exit %d, %v, %s", name, code, err, stderr)
		}
		if n := strings.Count(stderr, "bad tile at"); len(got.Skipped) == 0 || n != len(got.Skipped) || got.N >= clean.N || got.N+n < clean.N {
			t.Errorf("%s: %d tiles and %+v of %d; it says %s", name, got.N, got.Skipped, clean.N, stderr)
		}
		if name == "Folder" {
			raw, err := os.ReadFile(filepath.Join(args[2], "plan.json"))
			if err := json.Unmarshal(raw, &got); err != nil || len(got.Quality) != got.N || len(got.Tiles) != got.N {
				t.Errorf("plan.json has %d tiles, %d scores, %v", len(got.Tiles), len(got.Quality), err)
			}
			if files, _ := filepath.Glob(filepath.Join(args[2], "*.png")); err != nil || len(files) != got.N {
				t.Errorf("%d files of %d tiles, %v", len(files), got.N, err)
			}
		}
	}
}

func TestFault2And7OfIngest(t *testing.T) {
	needsRuntime(t)
	data, slide := dataFolder(t), damaged(t)
	code, out, _ := coverslipRun(t, "ingest", slide, "--wait", "--json", "--data", data)
	if r := results(t, out); code != 1 || len(r) != 1 || r[0].State != coverslip.Failed {
		t.Fatalf("by default: exit %d, %s", code, out)
	}
	table := filepath.Join(t.TempDir(), "mpp.csv")
	if err := os.WriteFile(table, []byte("slide;mpp\ndamaged;0,4990\nspare.svs;0,25\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := coverslipRun(t, "ingest", slide, "--skip-bad-tiles", "--mpp-csv", table, "--wait", "--json", "--data", data)
	r := results(t, out)
	if code != 0 || len(r) != 1 || r[0].State != coverslip.Embedded || !strings.Contains(stderr, "spare.svs") || !strings.Contains(stderr, "bad tile left out") {
		t.Fatalf("exit %d, %s%s", code, out, stderr)
	}
	bags, _ := filepath.Glob(filepath.Join(data, "blobs", "bags", "*"))
	if len(bags) != 1 {
		t.Fatalf("%d bags", len(bags))
	}
	f, err := os.Open(bags[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	bag, err := bagfile.Open(f, stat.Size())
	if err != nil {
		t.Fatal(err)
	}
	var skipped [][2]int64
	if m := bag.Metadata(); json.Unmarshal([]byte(m.Skipped), &skipped) != nil || len(skipped) == 0 || m.SlideMPP != 0.499 || m.SlideMPPSource != coverslip.MPPUser {
		t.Errorf("%+v", m)
	}
	if n := r[0].Tiles; n+len(skipped) < 40 {
		t.Errorf("%d tiles and %d left out", n, len(skipped))
	}
}

func TestFault11ZipIsIngested(t *testing.T) {
	needsRuntime(t)
	data, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	z := zip.NewWriter(&archive)
	w, err := z.Create("folder/cmu.svs")
	if err == nil {
		_, err = w.Write(data)
	}
	if err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "slide.zip")
	if err := os.WriteFile(path, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := coverslipRun(t, "ingest", path, "--wait", "--json", "--data", dataFolder(t))
	sum := sha256.Sum256(archive.Bytes())
	if r := results(t, out); code != 0 || len(r) != 1 || r[0].State != coverslip.Embedded || r[0].Tiles == 0 || string(r[0].Slide) != hex.EncodeToString(sum[:]) {
		t.Errorf("exit %d, %s%s", code, out, stderr)
	}
}
