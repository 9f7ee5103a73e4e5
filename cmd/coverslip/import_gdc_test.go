package main

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
)

// gdc is what the GDC has: slides in a bucket or a folder, and a manifest of them.
type gdc struct {
	manifest string
	ids      []coverslip.SlideID // SHA-256 of the slides
	uuids    []string
	names    []string
	paths    []string
}

// publishGDC makes n slides and their manifest; put stores one.
func publishGDC(t *testing.T, n int, put func(key, path string)) gdc {
	t.Helper()
	g := gdc{manifest: filepath.Join(t.TempDir(), "manifest.txt")}
	lines := "id\tfilename\tmd5\tsize\tstate\r\n"
	for i, path := range variants(t, bundled, n) {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		uuid := fmt.Sprintf("%08x-0000-4000-8000-000000000000", i)
		name := fmt.Sprintf("TCGA-A%d-%04d-01Z-00-DX1.%s.svs", i%3, i, strings.ToUpper(uuid))
		put(uuid+"/"+name, path)
		weak, strong := md5.Sum(whole), sha256.Sum256(whole)
		lines += fmt.Sprintf("%s\t%s\t%s\t%d\treleased\r\n", uuid, name, hex.EncodeToString(weak[:]), len(whole))
		g.ids = append(g.ids, coverslip.SlideID(hex.EncodeToString(strong[:])))
		g.uuids, g.names, g.paths = append(g.uuids, uuid), append(g.names, name), append(g.paths, path)
	}
	if err := os.WriteFile(g.manifest, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

// but is the manifest with one text in place of another.
func (g gdc) but(t *testing.T, before, after string) string {
	t.Helper()
	raw, err := os.ReadFile(g.manifest)
	if err != nil || !strings.Contains(string(raw), before) {
		t.Fatalf("%q, %v", before, err)
	}
	path := filepath.Join(t.TempDir(), "other.txt")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(raw), before, after)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestImportGDC(t *testing.T) {
	needsRuntime(t)
	source := t.TempDir()
	copyTo := func(key, path string) {
		raw, err := os.ReadFile(path)
		if err == nil {
			err = os.MkdirAll(filepath.Join(source, filepath.Dir(key)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(source, key), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	testImportGDC(t, publishGDC(t, 4, copyTo), source, copyTo)
}

func TestImportGDCFromABucket(t *testing.T) {
	needsRuntime(t)
	store, address, requests := bucket(t)
	source := address("mirror")
	keep := func(key, path string) { put(t, store, "mirror/"+key, path) }
	g := publishGDC(t, 4, keep)
	requests.Store(0)
	data := dataFolder(t)
	if code, _, stderr := coverslipRun(t, "import", "gdc", g.manifest, "--source", source, "--cohort", "c", "--data", data); code != 0 || requests.Load() > 1 {
		t.Errorf("exit %d, %d requests of the bucket, %s", code, requests.Load(), stderr)
	}
	t.Run("ABucketThatIsNotThere", func(t *testing.T) {
		elsewhere := strings.Replace(source, "//coverslip/", "//nowhere/", 1)
		if code, _, stderr := coverslipRun(t, "import", "gdc", g.manifest, "--source", elsewhere, "--cohort", "c", "--data", data); code != 1 || !strings.Contains(stderr, "no such bucket") {
			t.Errorf("exit %d, %s", code, stderr)
		}
	})
	t.Run("ABucketThatDeniesAccess", func(t *testing.T) {
		denied := dataFolder(t)
		for _, secret := range []string{"wrong", ""} {
			t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
			if secret == "" {
				t.Setenv("AWS_ACCESS_KEY_ID", "")
			}
			for _, args := range [][]string{{"gdc", g.manifest, "--source", source}, {"s3", source}} {
				code, _, stderr := coverslipRun(t, append(append([]string{"import"}, args...), "--cohort", "c", "--data", denied)...)
				if code != exitEnvironment || !strings.Contains(stderr, "403") || !strings.Contains(stderr, "AWS_ACCESS_KEY_ID") {
					t.Errorf("%q %v: exit %d, %s", secret, args, code, stderr)
				}
			}
		}
		if _, out, _ := coverslipRun(t, "slides", "--data", denied); !strings.HasPrefix(out, "no slides") {
			t.Error(out)
		}
	})
	t.Run("ImportS3", func(t *testing.T) {
		keep("notes/readme.txt", "main.go")
		keep("notes/empty.svs", os.DevNull)
		requests.Store(0)
		listed := dataFolder(t)
		var r referred
		code, out, stderr := coverslipRun(t, "import", "s3", source, "--cohort", "c", "--json", "--data", listed)
		if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil || r.Slides != 4 || r.Created != 4 || r.Others != 2 || requests.Load() > 2 {
			t.Errorf("exit %d, %+v, %v, %d requests, %s", code, r, err, requests.Load(), stderr)
		}
		if code, out, stderr = coverslipRun(t, "encode", "--cohort", "c", "--wait", "--json", "--data", listed); code != 0 || strings.Count(out, `"work":"done"`) != 4 {
			t.Errorf("exit %d, %s%s", code, out, stderr)
		}
		if code, out, _ := coverslipRun(t, "slides", string(g.ids[0]), "--data", listed); code != 0 || !strings.Contains(out, g.names[0]) {
			t.Errorf("exit %d, %s", code, out)
		}
		if code, _, stderr := coverslipRun(t, "import", "s3", address("nothing/"), "--cohort", "c", "--data", listed); code != 1 || !strings.Contains(stderr, "no slide is among its 0 objects") {
			t.Errorf("exit %d, %s", code, stderr)
		}
	})
	testImportGDC(t, g, source, keep)
}

func testImportGDC(t *testing.T, g gdc, source string, put func(key, path string)) {
	data := dataFolder(t)
	run := func(args ...string) (int, string, string) { return coverslipRun(t, append(args, "--data", data)...) }
	imported := func(manifest, cohort string) (r referred) {
		t.Helper()
		code, out, stderr := run("import", "gdc", manifest, "--source", source, "--cohort", cohort, "--json")
		if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
			t.Fatalf("exit %d, %v, %s", code, err, stderr)
		}
		return r
	}
	slides := func(cohort string) (all []coverslip.Slide) {
		t.Helper()
		_, out, stderr := run("slides", "--json", "--cohort", cohort)
		for line := range strings.Lines(out) {
			var s coverslip.Slide
			if err := json.Unmarshal([]byte(line), &s); err != nil {
				t.Fatalf("%v, %s", err, stderr)
			}
			all = append(all, s)
		}
		return all
	}

	if code, _, stderr := run("ingest", g.paths[3]); code != 0 { // known by its bytes before
		t.Fatal(stderr)
	}
	if r := imported(g.manifest, "tcga"); r.Slides != 4 || r.Created != 4 || r.NoMD5 != 0 {
		t.Errorf("%+v", r)
	}
	if r := imported(g.manifest, "tcga"); r.Slides != 4 || r.Created != 0 {
		t.Errorf("again: %+v", r)
	}
	provisional := slides("tcga")
	for _, s := range provisional {
		if !s.Provisional || s.State != coverslip.Registered || s.ID == g.ids[0] {
			t.Errorf("%+v", s)
		}
	}

	code, out, stderr := run("encode", "--cohort", "tcga", "--wait", "--json")
	if code != 0 || strings.Count(out, `"work":"done"`) != 4 {
		t.Fatalf("exit %d, %s%s", code, out, stderr)
	}
	known := map[coverslip.SlideID]coverslip.Slide{}
	for _, s := range slides("tcga") {
		known[s.ID] = s
	}
	for i, id := range g.ids {
		s, there := known[id]
		if !there || s.Provisional || s.State != coverslip.Embedded || s.Width != 2220 || i < 3 && s.Name != g.names[i] {
			t.Errorf("%d: %+v", i, s)
		}
	}
	if len(known) != 4 || len(slides("")) != 4 {
		t.Errorf("%d slides in the cohort, %d in all, of 4", len(known), len(slides("")))
	}
	if code, out, stderr := run("slides", string(provisional[0].ID)); code != 0 || !strings.Contains(out, "embedded") {
		t.Errorf("by its provisional id: exit %d, %s%s", code, out, stderr)
	}
	if _, out, _ := run("cohorts", "export", "tcga"); !strings.Contains(out, string(g.ids[0])+","+g.names[0]+",TCGA-A0-0000,A0\n") {
		t.Error(out)
	}
	if r := imported(g.manifest, "again"); r.Created != 0 {
		t.Errorf("after they are known: %+v", r)
	}
	if code, out, _ := run("encode", "--cohort", "again", "--json"); code != 0 || strings.Count(out, `"work":"none"`) != 4 {
		t.Errorf("exit %d, %s", code, out)
	}

	t.Run("WhatIsWrongIsFoundWhenItIsRead", func(t *testing.T) {
		weak := func(i int) string {
			raw, err := os.ReadFile(g.paths[i])
			if err != nil {
				t.Fatal(err)
			}
			sum := md5.Sum(raw)
			return hex.EncodeToString(sum[:])
		}
		manifest := g.but(t, weak(0), strings.Repeat("0", 32))
		g2 := g
		g2.manifest = manifest
		g2.manifest = g2.but(t, weak(1), "") // nothing is said: what is there counts
		imported(g2.but(t, g.uuids[2], "ffffffff-0000-4000-8000-000000000000"), "wrong")
		missing := g.but(t, weak(2), strings.Repeat("1", 32))
		g2.manifest = missing
		imported(g2.but(t, g.uuids[2], "eeeeeeee-0000-4000-8000-000000000000"), "missing")
		if code, out, stderr := run("encode", "--cohort", "wrong", "--wait", "--json"); code != 1 || !strings.Contains(out, "the MD5 of") || strings.Count(out, `"work":"failed"`) != 1 {
			t.Errorf("exit %d, %s%s", code, out, stderr)
		}
		if code, out, stderr := run("encode", "--cohort", "missing", "--wait", "--json"); code != 1 || strings.Count(out, `"work":"failed"`) != 1 {
			t.Errorf("exit %d, %s%s", code, out, stderr)
		}
		if code, out, stderr := run("cohorts", "progress", "missing"); code != 1 || !strings.Contains(out, "3 of 4 slides done") || !strings.Contains(out, "not_found") {
			t.Errorf("exit %d, %s%s", code, out, stderr)
		}
		whole, err := os.ReadFile(g.paths[2])
		if err != nil {
			t.Fatal(err)
		}
		const now = "eeeeeeee-0000-4000-8000-000000000000"
		put(now+"/"+strings.Replace(g.names[2], g.uuids[2], now, 1), g.paths[2])
		if code, out, stderr := run("jobs", "retry", "--cohort", "missing", "--kind", "not_found"); code != 0 || !strings.Contains(out, "1 job put back") {
			t.Errorf("exit %d, %s%s", code, out, stderr)
		}
		// It is there now, and it is not what the manifest says.
		if code, out, _ := run("encode", "--cohort", "missing", "--wait", "--json"); code != 1 || !strings.Contains(out, fmt.Sprintf("%x", md5.Sum(whole))) {
			t.Errorf("exit %d, %s", code, out)
		}
	})
}
