package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coverslip"
)

// A bag goes out in every layout and comes back elsewhere, bit by bit what it was.
func TestBagsGoOutAndComeBack(t *testing.T) {
	needsRuntime(t)
	data, elsewhere, out := dataFolder(t), dataFolder(t), t.TempDir()
	done := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := coverslipRun(t, args...)
		if code != 0 {
			t.Fatalf("%v: exit %d\n%s%s", args, code, stdout, stderr)
		}
		return stdout
	}
	exported := func(data string, args ...string) []byte {
		t.Helper()
		dir := t.TempDir()
		done(append([]string{"export", "--what", "bags", "--format", "safetensors", "-o", dir, "--data", data}, args...)...)
		raw, err := os.ReadFile(filepath.Join(dir, "CMU-1-Small-Region.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	done("ingest", bundled, "--wait", "--data", data)
	for _, layout := range []string{"trident", "clam", "stamp"} {
		done("export", "--what", "bags", "--layout", layout, "-o", filepath.Join(out, layout), "--data", data)
	}
	done("export", "--what", "bags", "--format", "npz", "-o", filepath.Join(out, "npz"), "--data", data)
	want := exported(data)
	for _, layout := range []string{"trident", "clam", "stamp", "npz"} {
		t.Run(layout, func(t *testing.T) {
			done("import", "bags", filepath.Join(out, layout), "--format", layout, "--encoder", "from-"+layout, "--data", elsewhere)
			got := exported(elsewhere, "--encoder", "from-"+layout)
			if !bytes.Equal(tensors(got), tensors(want)) {
				t.Error("the tensors differ")
			}
			if text := done("import", "bags", filepath.Join(out, layout), "--format", layout, "--data", data); !strings.Contains(text, "was there already") {
				t.Errorf("where it came from: %s", text)
			}
		})
	}
	t.Run("ItsFileIsShownLater", func(t *testing.T) {
		done("ingest", bundled, "--wait", "--data", elsewhere)
		var s coverslip.Slide
		if err := json.Unmarshal([]byte(done("slides", "--json", "--data", elsewhere)), &s); err != nil || s.Width != 2220 || s.Name != "CMU-1-Small-Region.svs" || s.MPP.Value != 0.499 {
			t.Errorf("%+v, %v", s, err)
		}
		if !bytes.Equal(exported(elsewhere), want) {
			t.Error("encoded there, the bag differs")
		}
	})
	t.Run("EmbeddingsAsSlideFeatures", func(t *testing.T) {
		dir := t.TempDir()
		done("export", "--format", "h5", "-o", dir, "--data", data)
		if _, err := os.Stat(filepath.Join(dir, "20x_224px_0px_overlap", "slide_features_mean-efficientnet-lite0", "CMU-1-Small-Region.h5")); err != nil {
			t.Error(err)
		}
		if code, stdout, stderr := coverslipRun(t, "export", "--what", "bags", "--format", "csv", "--data", data); code != exitUsage {
			t.Errorf("bags as csv: exit %d, %s%s", code, stdout, stderr)
		}
	})
}

// tensors is a safetensors file after its head.
func tensors(file []byte) []byte { return file[8+binary.LittleEndian.Uint64(file):] }

// Features that h5py wrote: each file on its own, slides found again, and nothing half there.
func TestImportsFeaturesOfOtherTools(t *testing.T) {
	python := os.Getenv("COVERSLIP_TEST_PYTHON")
	if python == "" {
		t.Skip("needs COVERSLIP_TEST_PYTHON, which make test sets")
	}
	data, dir := dataFolder(t), t.TempDir()
	out, err := exec.Command(python, "-c", `import os, sys, h5py, numpy as np
os.chdir(sys.argv[1])
for folder, dim, dtype in ("uni", 8, np.float16), ("conch", 6, np.float32), ("other", 8, np.float32):
    os.mkdir(folder)
    for k, name in enumerate(["a.1", "b", "c", "empty", "nan", "cut", "CMU-1-Small-Region"]):
        n = 0 if name == "empty" else 20 + k
        with h5py.File(f"{folder}/{name}.h5", "w") as f:
            f["features"] = np.random.default_rng([k, dim, folder == "other"]).normal(size=(n, dim)).astype(dtype)
            f["coords"] = np.stack([np.arange(n), np.arange(n) * 2], 1).reshape(n, 2) * 16
            f["coords"].attrs.update(patch_size=256, patch_size_level0=256, level0_magnification=20, target_magnification=20, overlap=0)
            if name == "nan": f["features"][3, 2] = np.nan
            if name == "cut": del f["coords"].attrs["patch_size"]
os.mkdir("slides")
`, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	raw, err := os.ReadFile(bundled)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "slides", "CMU-1-Small-Region.svs"), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	bring := func(folder, encoder string, args ...string) (code int, all map[string]imported) {
		t.Helper()
		code, stdout, stderr := coverslipRun(t, append([]string{"import", "bags", filepath.Join(dir, folder), "--format", "trident", "--encoder", encoder, "--json", "--data", data}, args...)...)
		all = map[string]imported{}
		for line := range strings.Lines(stdout) {
			var r imported
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			all[strings.TrimSuffix(filepath.Base(r.Path), ".h5")] = r
		}
		if len(all) == 0 {
			t.Logf("exit %d: %s", code, stderr)
		}
		return code, all
	}
	slides := filepath.Join(dir, "slides")
	code, first := bring("uni", "uni", "--cohort", "x", "--slides", slides)
	t.Run("FileByFile", func(t *testing.T) {
		if code != exitFailed || len(first) != 7 {
			t.Fatalf("exit %d, %d files", code, len(first))
		}
		for _, name := range []string{"a.1", "b", "c", "CMU-1-Small-Region"} {
			if r := first[name]; r.State != coverslip.Embedded || r.Work != "done" || r.Dim != 8 || r.Encoder != "uni" {
				t.Errorf("%s: %+v", name, r)
			}
		}
		if r := first["empty"]; r.State != coverslip.NoTissue || r.Tiles != 0 || r.Dim != 8 {
			t.Errorf("empty: %+v", r)
		}
		if r := first["nan"]; r.Kind != coverslip.Invalid || !strings.Contains(r.Reason, "nan.h5") || !strings.Contains(r.Reason, "feature 2 of row 3 is NaN") {
			t.Errorf("nan: %+v", r)
		}
		if r := first["cut"]; r.Kind != coverslip.NotFound || !strings.Contains(r.Reason, `dataset coords: it has no attribute "patch_size"`) {
			t.Errorf("cut: %+v", r)
		}
		if r := first["CMU-1-Small-Region"]; r.Slide != "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7" || r.Name != "CMU-1-Small-Region.svs" {
			t.Errorf("a slide whose file is there: %+v", r)
		}
	})
	t.Run("TwiceDoesTheWorkOnce", func(t *testing.T) {
		_, again := bring("uni", "uni", "--cohort", "x", "--slides", slides)
		for name, r := range again {
			if r.Work != "none" || r.Slide != first[name].Slide {
				t.Errorf("%s: %+v", name, r)
			}
		}
	})
	t.Run("AnotherEncodersFeaturesAreOfTheSameSlides", func(t *testing.T) {
		_, conch := bring("conch", "conch", "--cohort", "x")
		for name, r := range conch {
			if r.Slide != first[name].Slide || r.State != coverslip.Failed && r.Dim != 6 {
				t.Errorf("%s: %+v, not %s", name, r, first[name].Slide)
			}
		}
	})
	t.Run("OtherFeaturesOfTheSameNameAreAConflict", func(t *testing.T) {
		code, r := bring("other/b.h5", "uni", "--cohort", "x")
		if code != exitFailed || r["b"].Kind != coverslip.Conflict || !strings.Contains(r["b"].Reason, "--replace") {
			t.Errorf("exit %d, %+v", code, r)
		}
		if code, r = bring("other/b.h5", "uni", "--cohort", "x", "--replace"); code != 0 || r["b"].Work != "done" || r["b"].Slide != first["b"].Slide {
			t.Errorf("exit %d, %+v", code, r)
		}
	})
	t.Run("FeaturesOfAnotherLengthAreRefused", func(t *testing.T) {
		if code, r := bring("conch/c.h5", "uni"); code != exitFailed || r["c"].Kind != coverslip.Invalid || !strings.Contains(r["c"].Reason, "6 numbers") {
			t.Errorf("exit %d, %+v", code, r)
		}
	})
	t.Run("SearchFindsThem", func(t *testing.T) {
		code, stdout, stderr := coverslipRun(t, "search", "--slide", string(first["b"].Slide), "--encoder", "uni", "--json", "--data", data)
		if found := strings.Count(stdout, "\n"); code != 0 || found != 3 {
			t.Errorf("exit %d, %d found: %s%s", code, found, stdout, stderr)
		}
		code, stdout, stderr = coverslipRun(t, "search", "--slide", string(first["b"].Slide), "--encoder", "never-heard-of", "--data", data)
		if code != exitFailed {
			t.Errorf("an unknown encoder: exit %d, %s%s", code, stdout, stderr)
		}
	})
	t.Run("TheyGoOutAgain", func(t *testing.T) {
		to := t.TempDir()
		code, stdout, stderr := coverslipRun(t, "export", "--what", "bags", "--encoder", "uni", "--cohort", "x", "-o", to, "--data", data)
		if code != 0 {
			t.Fatalf("exit %d, %s%s", code, stdout, stderr)
		}
		var names []string
		files, _ := filepath.Glob(filepath.Join(to, "20x_256px_0px_overlap", "features_uni", "*"))
		for _, f := range files {
			names = append(names, filepath.Base(f))
		}
		if !slices.Equal(names, []string{"CMU-1-Small-Region.h5", "a.1.h5", "b.h5", "c.h5", "empty.h5"}) {
			t.Errorf("%q", names)
		}
	})
	t.Run("BadNamesAndFoldersAreUsageOrNotFound", func(t *testing.T) {
		if code, _ := bring("uni", "../up"); code != exitFailed {
			t.Errorf("a name that leads out: exit %d", code)
		}
		if code, _ := bring("nowhere", "uni"); code != exitFailed {
			t.Errorf("no folder: exit %d", code)
		}
		if code, _ := bring("slides", "uni"); code != exitFailed {
			t.Errorf("no file: exit %d", code)
		}
	})
}
