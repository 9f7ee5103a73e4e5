package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coverslip"
)

func TestImportCSV(t *testing.T) {
	needsRuntime(t)
	data := dataFolder(t)
	whole, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var paths []string
	for i, name := range []string{"TCGA-A7-A6VV-01Z-00-DX1.2B5A.svs", "two.svs", "three.svs"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, append(slices.Clone(whole), byte(i)), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	if code, _, stderr := coverslipRun(t, append([]string{"ingest", "--data", data}, paths...)...); code != 0 {
		t.Fatal(stderr)
	}
	table := func(text string) string {
		path := filepath.Join(t.TempDir(), "labels.csv")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := func(args ...string) (int, string, string) { return coverslipRun(t, append(args, "--data", data)...) }

	labels := table("slide,patient,subtype,age,relapse\nTCGA-A7-A6VV-01Z-00-DX1,,IDC,61,yes\n" + paths[1] + ",p2,ILC,,no\n")
	code, out, stderr := run("import", "csv", labels, "--cohort", "brca", "--json")
	var got struct {
		Rows   int
		Cohort coverslip.Cohort
	}
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || got.Rows != 2 || got.Cohort.Slides != 2 || len(got.Cohort.Labels) != 3 {
		t.Fatalf("exit %d, %v, %s%s", code, err, out, stderr)
	}

	t.Run("MissingSlidesAreNamedAndNothingIsWritten", func(t *testing.T) {
		bad := table("slide,subtype\nthree.svs,IDC\nnowhere.svs,IDC\n")
		if code, _, stderr := run("import", "csv", bad, "--cohort", "brca"); code != 1 || !strings.Contains(stderr, "nowhere.svs") || !strings.Contains(stderr, "--skip-missing") {
			t.Errorf("exit %d, %s", code, stderr)
		}
		if _, out, _ := run("cohorts", "show", "brca"); !strings.Contains(out, "brca: 2 slides") {
			t.Error(out)
		}
		if code, _, stderr := run("import", "csv", bad, "--cohort", "brca", "--skip-missing"); code != 0 || !strings.Contains(stderr, "nowhere.svs") {
			t.Errorf("exit %d, %s", code, stderr)
		}
	})
	t.Run("TwiceNamed", func(t *testing.T) {
		bad := table("slide,subtype\nthree,IDC\nthree.svs,ILC\n")
		if code, _, stderr := run("import", "csv", bad, "--cohort", "brca"); code != 1 || !strings.Contains(stderr, "line 3: three.svs: the slide stands in line 2 already") {
			t.Errorf("exit %d, %s", code, stderr)
		}
	})
	t.Run("AColumnKeepsItsKind", func(t *testing.T) {
		bad := table("slide,age\nthree,old\n")
		if code, _, stderr := run("import", "csv", bad, "--cohort", "brca"); code != 1 || !strings.Contains(stderr, `line 2: column age: "old" is no number`) {
			t.Errorf("exit %d, %s", code, stderr)
		}
	})
	t.Run("ExportComesHome", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "out.csv")
		if code, _, stderr := run("cohorts", "export", "brca", "-o", file); code != 0 {
			t.Fatal(stderr)
		}
		if code, _, stderr := run("import", "csv", file, "--cohort", "copy"); code != 0 {
			t.Fatal(stderr)
		}
		_, first, _ := run("cohorts", "export", "brca")
		_, second, _ := run("cohorts", "export", "copy")
		if first != second || !strings.Contains(first, "TCGA-A7-A6VV,A7,61,true,IDC\n") || !strings.HasPrefix(first, "slide,name,patient,site,age,relapse,subtype\n") {
			t.Errorf("%s\n%s", first, second)
		}
	})
	t.Run("Frozen", func(t *testing.T) {
		if code, out, stderr := run("cohorts", "freeze", "brca"); code != 0 || !strings.Contains(out, "brca@1: 3 slides") {
			t.Errorf("exit %d, %s%s", code, out, stderr)
		}
		if code, _, stderr := run("import", "csv", labels, "--cohort", "brca@1"); code != 1 || !strings.Contains(stderr, "do not change") {
			t.Errorf("exit %d, %s", code, stderr)
		}
		if code, out, _ := run("slides", "--cohort", "brca@1"); code != 0 || strings.Count(out, "\n") != 4 {
			t.Errorf("exit %d, %s", code, out)
		}
	})
	t.Run("SlidesThatHaveOnlyAnImportedBag", func(t *testing.T) {
		elsewhere, features := dataFolder(t), filepath.Join(t.TempDir(), "npz")
		for _, args := range [][]string{{"ingest", bundled, "--wait", "--data", elsewhere}, {"export", "--what", "bags", "--format", "npz", "-o", features, "--data", elsewhere},
			{"import", "bags", features, "--format", "npz", "--encoder", "other", "--data", data}} {
			if code, _, stderr := coverslipRun(t, args...); code != 0 {
				t.Fatal(stderr)
			}
		}
		if code, out, stderr := run("import", "csv", table("slide,grade\nCMU-1-Small-Region.svs,3\n"), "--cohort", "features"); code != 0 || !strings.Contains(out, "features: 1 slide") {
			t.Errorf("exit %d, %s%s", code, out, stderr)
		}
	})
}
