package main

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
	"coverslip/storage/bagfile"
	"coverslip/tiler/tiff"
	"coverslip/tiler/tilertest"
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

// What comes over HTTP is judged by its content, and the service goes on answering.
func TestFault5And6And11OfUploads(t *testing.T) {
	needsRuntime(t)
	p := up(t, dataFolder(t))
	whole, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	zipped := func(fill func(z *zip.Writer) error) []byte {
		var out bytes.Buffer
		z := zip.NewWriter(&out)
		if err := errors.Join(fill(z), z.Close()); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	holding := func(name string, data []byte) []byte {
		return zipped(func(z *zip.Writer) error {
			w, err := z.Create(name)
			if err == nil {
				_, err = w.Write(data)
			}
			return err
		})
	}
	link := zipped(func(z *zip.Writer) error {
		h := &zip.FileHeader{Name: "slide.svs"}
		h.SetMode(fs.ModeSymlink | 0o777)
		w, err := z.CreateHeader(h)
		if err == nil {
			_, err = w.Write([]byte("/etc/passwd"))
		}
		return err
	})
	bomb := zipped(func(z *zip.Writer) error {
		deflated := tilertest.DeflateBomb(300 << 20)
		deflated = deflated[2 : len(deflated)-4] // without zlib's frame
		w, err := z.CreateRaw(&zip.FileHeader{Name: "slide.svs", Method: zip.Deflate, CompressedSize64: uint64(len(deflated)), UncompressedSize64: 300 << 20})
		if err == nil {
			_, err = w.Write(deflated)
		}
		return err
	})
	const created, invalid, wrongType, tooLarge = http.StatusCreated, http.StatusUnprocessableEntity, http.StatusUnsupportedMediaType, http.StatusRequestEntityTooLarge
	for _, c := range []struct {
		name string
		body []byte
		want int
	}{
		{"program.svs", []byte("\x7fELF\x02\x01\x01 and so on"), wrongType},
		{"picture.svs", []byte("\x89PNG\r\n\x1a\n and so on"), wrongType},
		{"page.svs", []byte("<html><script>alert(1)</script>"), wrongType},
		{"jpeg-and-zip.svs", append([]byte("\xff\xd8\xff\xe0"), holding("a.svs", whole)...), wrongType},
		{"pdf-and-tiff.svs", append([]byte("%PDF-1.7\n"), whole...), wrongType},
		{"tiff-and-zip.zip", append(tilertest.TIFF(0), holding("a.svs", whole)...), invalid},
		{"slide.png", whole, created},
		{"slide.zip", holding("folder/slide.svs", whole), created},
		{"bomb.zip", bomb, tooLarge},
		{"link.zip", link, invalid},
		{"text.zip", holding("notes.txt", []byte("no slide")), wrongType},
		{"claims.tif", tilertest.TIFF(0, tilertest.Tag{256, tilertest.Long, 1, 1 << 31}, tilertest.Tag{257, tilertest.Long, 1, 1 << 31}), invalid},
		{"bomb.tif", tilertest.OneTile(256, 8, tilertest.DeflateBomb(64<<20)), created}, // its tile is looked at by a worker
		{"jpeg2000.tif", tilertest.OneTile(256, 33005, tilertest.JPEG2000(60000, 60000)), created},
	} {
		resp, err := http.Post(p.url+"/v1/slides?mpp_of_slide=0.5&name="+c.name, "application/octet-stream", bytes.NewReader(c.body))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		text, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s: %d, want %d: %.300s", c.name, resp.StatusCode, c.want, text)
		}
		if strings.Contains(string(text), "coverslip-zip") {
			t.Errorf("%s: it shows where it was unpacked: %s", c.name, text)
		}
		if strings.HasSuffix(c.name, ".tif") && c.want == created {
			var s coverslip.Slide
			if err := json.Unmarshal(text, &s); err != nil {
				t.Fatal(err)
			}
			if _, err := p.embedding(t.Context(), s.ID); err == nil || !strings.Contains(err.Error(), "it is failed") {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
	if resp, err := http.Get(p.url + "/v1/slides"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the service is gone: %v", err)
	} else {
		_ = resp.Body.Close()
	}
}
