package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"coverslip"
	"coverslip/encoder/onnx/onnxtest"
	"coverslip/storage/storagetest"
	"coverslip/tiler/openslide"
)

// The test binary is also the program, so that tests can kill it.
const asProgram = "COVERSLIP_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	openslide.Main()
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(storagetest.Main(m))
}

const bundled = "../../testdata/CMU-1-Small-Region.svs"

// shared returns a file of the folder beside the checkout, or skips.
func shared(t *testing.T, parts ...string) string {
	t.Helper()
	path := filepath.Join(append([]string{"..", "..", "..", "shared", "data"}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs ../shared/data: %v", err)
	}
	return path
}

// newFolder is where a data folder with a Postgres of its own can be made.
func newFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "coverslip-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // the postgres user must enter when root runs this
		t.Fatal(err)
	}
	return filepath.Join(dir, "data")
}

// dataFolder is a data folder that was used before: the first start, which takes seconds, is over.
func dataFolder(t *testing.T) string {
	t.Helper()
	data := newFolder(t)
	storagetest.Folder(t, data)
	return data
}

// database gives the program a database on the server that all tests share, by the environment, and returns a
// folder for the rest: no command has a Postgres to start.
func database(t *testing.T) (data string) {
	t.Helper()
	unset(t)
	t.Setenv("DATABASE_URL", storagetest.URL(t))
	return t.TempDir()
}

// connected is what commands stand on there, or in a data folder, until close.
func connected(t *testing.T, data string) *platform {
	t.Helper()
	e := &env{Context: t.Context(), out: os.Stdout, err: os.Stderr}
	p, err := (&dataFlags{Data: data, DatabaseURL: os.Getenv("DATABASE_URL"), BlobURL: os.Getenv("BLOB_URL")}).connect(e)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// unset lets nothing but flags say where things are kept.
func unset(t *testing.T) {
	t.Helper()
	for _, name := range []string{"DATABASE_URL", "BLOB_URL", "COVERSLIP_DATA"} {
		t.Setenv(name, "")
		_ = os.Unsetenv(name)
	}
}

// needsRuntime lets the program find ONNX Runtime, or skips.
func needsRuntime(t *testing.T) {
	t.Helper()
	onnxtest.Need(t)
	unset(t)
}

// coverslipRun runs the program in this process.
func coverslipRun(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, &out, &err)
	return code, out.String(), err.String()
}

func results(t *testing.T, stdout string) (all []result) {
	t.Helper()
	for line := range strings.Lines(stdout) {
		var r result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		all = append(all, r)
	}
	return all
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--help"}, 0, "whole-slide"},
		{[]string{"--version"}, 0, coverslip.Version},
		{[]string{"tiles", "--help"}, 0, "Examples:"},
		{[]string{"nonsense"}, 2, "nonsense"},
		{[]string{}, 2, "--help"},
		{[]string{"tiles"}, 2, "slide"},
		{[]string{"tiles", "x.svs", "--mpp", "thick"}, 2, "thick"},
		{[]string{"tiles", "x.svs", "--plan", "--out", "d"}, 2, "plan"},
		{[]string{"search"}, 2, "slide"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			code, out, err := coverslipRun(t, c.args...)
			if code != c.code || !strings.Contains(out+err, c.says) {
				t.Errorf("exit %d, want %d, and %q in:\n%s%s", code, c.code, c.says, out, err)
			}
		})
	}
	t.Run("EveryVerbHasAnExample", func(t *testing.T) {
		for _, verb := range []string{"up", "serve", "work", "migrate", "tiles", "ingest", "slides", "models add", "models list", "models show", "models verify", "jobs list", "jobs retry", "jobs cancel", "search", "export", "import bags", "import csv", "cohorts list", "cohorts show", "cohorts export", "cohorts freeze", "cohorts progress", "import gdc", "import s3", "jobs status", "jobs pause", "jobs resume", "doctor", "bench encode", "study run", "study show", "study report", "gate fit", "gate check"} {
			code, out, _ := coverslipRun(t, append(strings.Fields(verb), "--help")...)
			if code != 0 || !strings.Contains(out, "Example") || !strings.Contains(out, "coverslip "+strings.Fields(verb)[0]) {
				t.Errorf("%s --help: exit %d\n%s", verb, code, out)
			}
		}
	})
}

func TestTiles(t *testing.T) {
	t.Run("PlanListsTilesAsCSV", func(t *testing.T) {
		code, out, stderr := coverslipRun(t, "tiles", bundled, "--plan")
		if code != 0 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
		if err != nil || len(rows) < 30 || !slices.Equal(rows[0], []string{"x", "y", "tissue"}) {
			t.Errorf("%d rows, %v: %.200s", len(rows), err, out)
		}
		if !strings.Contains(stderr, "tiles:") {
			t.Errorf("no summary on standard error: %s", stderr)
		}
	})
	t.Run("OutHoldsWhatThePlanLists", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "deep", "tiles")
		code, _, stderr := coverslipRun(t, "tiles", bundled, "--mpp", "2", "--size", "128", "--out", dir)
		if code != 0 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		raw, err := os.ReadFile(filepath.Join(dir, "plan.json"))
		var plan coverslip.Plan
		if err == nil {
			err = json.Unmarshal(raw, &plan)
		}
		if err != nil || len(plan.Tiles) == 0 {
			t.Fatalf("%d tiles, %v", len(plan.Tiles), err)
		}
		pictures, _ := filepath.Glob(filepath.Join(dir, "*.png"))
		if len(pictures) != len(plan.Tiles) {
			t.Errorf("%d pictures of %d tiles", len(pictures), len(plan.Tiles))
		}
		if code, _, stderr := coverslipRun(t, "tiles", bundled, "--out", dir); code != 1 || !strings.Contains(stderr, "not empty") {
			t.Errorf("a full folder: exit %d, %s", code, stderr)
		}
	})
	t.Run("OverviewIsAPicture", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "o.png")
		if code, _, stderr := coverslipRun(t, "tiles", bundled, "--overview", file); code != 0 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		if raw, err := os.ReadFile(file); err != nil || !bytes.HasPrefix(raw, []byte("\x89PNG")) {
			t.Errorf("%v, %.10q", err, raw)
		}
	})
	t.Run("SectionHasTheTissueAPersonWouldMark", func(t *testing.T) {
		code, out, stderr := coverslipRun(t, "tiles", shared(t, "wsi", "tiff", "crc-section.tif"), "--mpp", "0.5", "--size", "256", "--min-tissue", "0.25", "--plan", "--json")
		var plan struct {
			N int `json:"n_tiles"`
			coverslip.Plan
		}
		if err := json.Unmarshal([]byte(out), &plan); code != 0 || err != nil {
			t.Fatalf("exit %d, %v: %s", code, err, stderr)
		}
		if plan.N != len(plan.Tiles) || plan.N < 950 || plan.N > 1300 {
			t.Errorf("%d tiles, want 950 to 1300", plan.N)
		}
	})
}

// Faults 1 and 6, and the bad input of the command line: refused by name, with a word, nothing left.
func TestBadSlides(t *testing.T) {
	dir := t.TempDir()
	whole, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"Missing":   filepath.Join(dir, "missing.svs"),
		"Directory": dir,
	}
	put := func(name, file string, data []byte) {
		files[name] = filepath.Join(dir, file)
		if err := os.WriteFile(files[name], data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("Empty", "empty.svs", nil)
	put("PictureNamedSVS", "picture.svs", []byte("\x89PNG\r\n\x1a\n0000000000000000"))
	put("Program", "elf.svs", []byte("\x7fELF000000000000000000000"))
	put("Text", "text.tif", []byte("this is no slide"))
	for _, percent := range []int{1, 25, 50, 75, 99} {
		put(fmt.Sprintf("TruncatedAt%dPercent", percent), fmt.Sprintf("cut%d.svs", percent), whole[:len(whole)*percent/100])
	}
	for _, folder := range []string{"broken", "not-slides"} {
		found, _ := filepath.Glob(filepath.Join("..", "..", "..", "shared", "data", "wsi", folder, "*"))
		for _, f := range found {
			files["Shared/"+filepath.Base(f)] = f
		}
	}
	for name, file := range files {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			started := time.Now()
			code, stdout, stderr := coverslipRun(t, "tiles", file, "--mpp-of-slide", "0.5", "--out", out)
			if code != 1 || !strings.Contains(stderr, filepath.Base(file)) || !strings.Contains(stderr, "(") {
				t.Errorf("exit %d, want 1 and an error with the file's name and a remedy; it says:\n%s%s", code, stdout, stderr)
			}
			if left, _ := os.ReadDir(filepath.Dir(out)); len(left) != 0 {
				t.Errorf("it left %v behind", left)
			}
			if took := time.Since(started); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestIngest(t *testing.T) {
	needsRuntime(t)
	data := newFolder(t)
	ingest := func(args ...string) (int, []result, string) {
		code, out, stderr := coverslipRun(t, append([]string{"ingest", "--wait", "--json", "--data", data}, args...)...)
		return code, results(t, out), stderr
	}

	code, got, stderr := ingest(bundled, filepath.Join(t.TempDir(), "missing.svs"))
	if code != 1 || len(got) != 2 {
		t.Fatalf("exit %d, %d results, %s", code, len(got), stderr)
	}
	bad, good := got[0], got[1]
	if bad.State != coverslip.Failed || bad.Kind != coverslip.NotFound {
		t.Errorf("the missing slide: %+v", bad)
	}
	if good.State != coverslip.Embedded || good.Work != "done" || good.Tiles < 30 {
		t.Fatalf("the good slide: %+v", good)
	}

	t.Run("AgainDoesNoWorkAndSaysSo", func(t *testing.T) {
		code, got, stderr := ingest(bundled)
		if code != 0 || len(got) != 1 || got[0].Work != "none" || got[0].State != coverslip.Embedded || !strings.Contains(got[0].Message, "no work") {
			t.Errorf("exit %d, %+v, %s", code, got, stderr)
		}
	})
	t.Run("CopyOfItIsTheSameSlide", func(t *testing.T) {
		raw, err := os.ReadFile(bundled)
		if err != nil {
			t.Fatal(err)
		}
		other := filepath.Join(t.TempDir(), "copy.svs")
		if err := os.WriteFile(other, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		code, got, stderr := ingest(other)
		if code != 0 || got[0].Slide != good.Slide || got[0].Work != "none" {
			t.Errorf("exit %d, %+v, %s", code, got, stderr)
		}
	})
	t.Run("OtherResolutionIsAnotherBag", func(t *testing.T) {
		code, got, stderr := ingest(bundled, "--mpp-of-slide", "0,7")
		if code != 0 || got[0].Work != "done" || got[0].Tiles <= good.Tiles {
			t.Errorf("exit %d, %+v after %d tiles, %s", code, got, good.Tiles, stderr)
		}
	})
	t.Run("BadFilesLeaveNoRow", func(t *testing.T) {
		empty := filepath.Join(t.TempDir(), "empty.svs")
		if err := os.WriteFile(empty, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if code, got, _ := ingest(empty); code != 1 || got[0].Kind != coverslip.Invalid {
			t.Errorf("exit %d, %+v", code, got)
		}
		_, out, _ := coverslipRun(t, "slides", "--json", "--data", data)
		if n := strings.Count(out, "\n"); n != 1 {
			t.Errorf("%d slides, want 1:\n%s", n, out)
		}
	})
	t.Run("SmallSlideWithoutTissue", func(t *testing.T) {
		code, got, stderr := ingest(shared(t, "wsi", "svs", "small-openslide.svs"))
		if code != 0 || got[0].State != coverslip.NoTissue || got[0].Tiles != 0 {
			t.Errorf("exit %d, %+v, %s", code, got, stderr)
		}
		if code, got, _ := ingest(shared(t, "wsi", "svs", "small-openslide.svs")); code != 0 || got[0].Work != "none" {
			t.Errorf("again: exit %d, %+v", code, got)
		}
	})
	t.Run("SlideWithoutMPPWaitsForIt", func(t *testing.T) {
		slide := shared(t, "wsi", "svs", "TCGA-CR-7395-01A-01-TS1.svs")
		if code, got, stderr := ingest(slide); code != 1 || got[0].State != coverslip.AwaitingMPP || !strings.Contains(got[0].Reason, "--mpp-of-slide") {
			t.Errorf("exit %d, %+v, %s", code, got, stderr)
		}
		if code, got, stderr := ingest(slide, "--mpp-of-slide", "0.5"); code != 0 || got[0].State != coverslip.Embedded {
			t.Errorf("exit %d, %+v, %s", code, got, stderr)
		}
	})
	t.Run("SearchFindsItself", func(t *testing.T) {
		code, out, stderr := coverslipRun(t, "search", "--file", bundled, "--mpp-of-slide", "0.7", "-k", "1", "--json", "--data", data)
		var n coverslip.Neighbour
		if err := json.Unmarshal([]byte(out), &n); code != 0 || err != nil || n.Slide != good.Slide || n.Similarity < 0.999999 {
			t.Errorf("exit %d, %+v, %v, %s", code, n, err, stderr)
		}
	})
	t.Run("ExportIsReadByNumpy", func(t *testing.T) {
		python := os.Getenv("COVERSLIP_TEST_PYTHON")
		if python == "" {
			t.Skip("needs COVERSLIP_TEST_PYTHON, which make test sets")
		}
		file := filepath.Join(t.TempDir(), "e.npz")
		if code, _, stderr := coverslipRun(t, "export", "--format", "npz", "-o", file, "--data", data); code != 0 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		out, err := exec.Command(python, "-c", `import numpy as np, sys
f = np.load(sys.argv[1], allow_pickle=False)
e = f["embeddings"]
assert e.dtype == np.float32 and e.ndim == 2 and e.shape[1] == 1280, (e.dtype, e.shape)
assert np.allclose(np.linalg.norm(e, axis=1), 1, atol=1e-6)
assert len(f["slides"]) == len(f["names"]) == len(e)
print(f["slides"][list(f["names"]).index("CMU-1-Small-Region.svs")])`, file).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != string(good.Slide) {
			t.Errorf("%v: %s", err, out)
		}
		code, text, _ := coverslipRun(t, "export", "--format", "csv", "-o", "-", "--data", data)
		rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
		if code != 0 || err != nil || len(rows) < 2 || len(rows[1]) != 2+1280 {
			t.Errorf("csv: exit %d, %v, %d rows", code, err, len(rows))
		}
	})
	t.Run("SlidesShowsOne", func(t *testing.T) {
		code, out, _ := coverslipRun(t, "slides", string(good.Slide[:8]), "--data", data)
		if code != 0 || !strings.Contains(out, "1280 numbers, norm 1.0000") {
			t.Errorf("exit %d:\n%s", code, out)
		}
	})
	t.Run("JobsListsWhatWasDone", func(t *testing.T) {
		code, out, _ := coverslipRun(t, "jobs", "--data", data)
		if code != 0 || !strings.Contains(out, "completed") {
			t.Errorf("exit %d:\n%s", code, out)
		}
	})
}

// program is `coverslip up` in a process of its own.
type program struct {
	cmd *exec.Cmd
	url string
	log *sharedLog
}

func up(t *testing.T, data string) *program {
	t.Helper()
	return listening(t, "up", "--json", "--addr", "127.0.0.1:0", "--data", data)
}

// launch runs the program in a process of its own, which ends with the test.
func launch(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(os.Args[0], args...), log: &sharedLog{}}
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	p.cmd.Stderr = p.log
	t.Cleanup(p.kill)
	return p
}

// listening launches a verb that prints where it listens, and waits for that.
func listening(t *testing.T, args ...string) *program {
	t.Helper()
	p := launch(t, args...)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said struct{ URL string }
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &said)
	}
	if err != nil {
		p.kill()
		t.Fatalf("coverslip %s did not start: %v\n%s", args[0], err, p.log)
	}
	go io.Copy(io.Discard, out) //nolint:errcheck // ends with the process
	p.url = said.URL
	return p
}

// kill ends it as a power cut would.
func (p *program) kill() {
	if p.cmd.Process != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

func (p *program) call(ctx context.Context, method, path string, body io.Reader, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, body)
	if err != nil {
		return err
	}
	if f, ok := body.(*os.File); ok {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		req.ContentLength = info.Size()
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	if strings.HasPrefix(path, "/v1/tasks/") && !strings.HasPrefix(path, "/v1/tasks/files") {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, raw)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(raw, into)
}

// embedding waits for a slide and returns its vector.
func (p *program) embedding(ctx context.Context, id coverslip.SlideID) ([]float32, error) {
	for {
		var s coverslip.Slide
		if err := p.call(ctx, http.MethodGet, "/v1/slides/"+string(id), nil, &s); err != nil {
			return nil, err
		}
		switch {
		case s.State == coverslip.Embedded:
			var e coverslip.Embedding
			err := p.call(ctx, http.MethodGet, "/v1/slides/"+string(id)+"/embedding", nil, &e)
			return e.Vector, err
		case s.State.Done():
			return nil, fmt.Errorf("it is %s: %s", s.State, s.Reason)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Fault 19: a process killed at random moments of an ingest, and started again, ends with the
// embedding of an undisturbed run, bit for bit, and one row.
func TestFault19KilledTheEmbeddingIsTheSame(t *testing.T) {
	needsRuntime(t)
	whole, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	kills, most := 10, 5*time.Minute
	if os.Getenv("COVERSLIP_FULL") == "1" {
		kills, most = 100, time.Hour
	}
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	data := newFolder(t)
	p := up(t, data)

	// Bytes behind the last directory change a slide's id and none of its pixels.
	variant := func(i int) []byte { return append(slices.Clone(whole), byte(i)) }
	upload := func(i int) (s coverslip.Slide, err error) {
		err = p.call(ctx, http.MethodPost, fmt.Sprintf("/v1/slides?name=variant%d.svs", i), bytes.NewReader(variant(i)), &s)
		return s, err
	}

	started := time.Now()
	s, err := upload(0)
	if err != nil {
		t.Fatal(err)
	}
	want, err := p.embedding(ctx, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	undisturbed := time.Since(started)

	rng := rand.New(rand.NewPCG(19, 1))
	interrupted := 0
	for i := 1; i <= kills; i++ {
		moment := time.Duration(rng.Float64() * float64(undisturbed))
		killed := make(chan struct{})
		time.AfterFunc(moment, func() { defer close(killed); _ = p.cmd.Process.Kill() })
		s, uploadErr := upload(i) // the kill may come in the middle of it
		<-killed
		p.kill()
		p = up(t, data)
		if uploadErr != nil {
			if s, err = upload(i); err != nil {
				t.Fatal(err)
			}
		} else {
			var now coverslip.Slide
			if err := p.call(ctx, http.MethodGet, "/v1/slides/"+string(s.ID), nil, &now); err != nil {
				t.Fatalf("kill %d after %v: an upload that was acknowledged is gone: %v", i, moment, err)
			}
			if !now.State.Done() {
				interrupted++
			}
		}
		got, err := p.embedding(ctx, s.ID)
		if err != nil {
			t.Fatalf("kill %d after %v: %v\n%s", i, moment, err, p.log)
		}
		if !slices.Equal(got, want) {
			t.Errorf("kill %d after %v: the embedding differs", i, moment)
		}
	}
	if interrupted == 0 {
		t.Error("no kill met a slide on its way: the test proves nothing")
	}
	var list struct{ Slides []coverslip.Slide }
	if err := p.call(ctx, http.MethodGet, "/v1/slides?limit=1000", nil, &list); err != nil || len(list.Slides) != kills+1 {
		t.Errorf("%d slides of %d, %v", len(list.Slides), kills+1, err)
	}
	if spool, err := os.ReadDir(filepath.Join(data, "spool")); err != nil || len(spool) != 0 {
		t.Errorf("the spool holds %v, %v", spool, err)
	}

	t.Run("IngestUsesTheServerThatRuns", func(t *testing.T) {
		code, out, stderr := coverslipRun(t, "ingest", bundled, "--wait", "--json", "--data", data)
		if r := results(t, out); code != 0 || len(r) != 1 || r[0].State != coverslip.Embedded || r[0].Work != "done" {
			t.Errorf("exit %d, %s%s", code, out, stderr)
		}
		if code, _, stderr := coverslipRun(t, "up", "--addr", "127.0.0.1:0", "--data", data); code != 1 || !strings.Contains(stderr, "another process") {
			t.Errorf("a second up: exit %d, %s", code, stderr)
		}
	})
	t.Run("SIGTERMStopsItCleanly", func(t *testing.T) {
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, p.log)
		}
	})
}
