package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// slideTable is 60 patients of two slides at six sites, one slide without a label and one listed twice.
func slideTable(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("slide_id,case_id,site,tumour type\n")
	for p := range 60 {
		for s := range 2 {
			fmt.Fprintf(&b, "p%d-%d,p%d,site %d,%s\n", p, s, p, p%6, []string{"clear cell", "papillary"}[p/6%2])
		}
	}
	b.WriteString("p0-0,p0,site 0,clear cell\nx,px,site 0,\n")
	path := filepath.Join(t.TempDir(), "slides.csv")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

type auditLine struct {
	Patients            int
	Splits              int
	PatientsOnBothSides *int `json:"patients_on_both_sides"`
	SitesOnBothSides    int  `json:"sites_on_both_sides"`
	LeakingPatients     []struct {
		Name           string
		Splits, Slides []string
	} `json:"leaking_patients"`
}

func auditOf(t *testing.T, args ...string) (a auditLine) {
	t.Helper()
	code, out, stderr := coverslipRun(t, append([]string{"splits", "audit", "--json"}, args...)...)
	if code != exitDone {
		t.Fatal(stderr)
	}
	if err := json.Unmarshal([]byte(out), &a); err != nil || a.PatientsOnBothSides == nil {
		t.Fatalf("%v: %s", err, out)
	}
	return a
}

func TestSplitsMadeAreClean(t *testing.T) {
	slides, dir := slideTable(t), t.TempDir()
	for what, c := range map[string]struct {
		args   []string
		files  []string
		splits int
		sites  bool // must be clean, too
	}{
		"folds":     {nil, []string{"a.csv"}, 5, false},
		"repeats":   {[]string{"--repeats", "3", "--val", "0.2"}, []string{"b.tsv"}, 15, false},
		"random":    {[]string{"--monte-carlo", "7"}, []string{"c.tsv"}, 7, false},
		"sites":     {[]string{"--by", "site", "-k", "3"}, []string{"d.csv"}, 3, true},
		"preserved": {[]string{"--preserve-sites", "-k", "3"}, []string{"e.csv"}, 3, true},
		"clam":      {[]string{"--form", "clam", "-k", "3"}, []string{"f/splits_0.csv", "f/splits_2.csv"}, 1, false},
		"few":       {[]string{"--few-shot", "1,4", "--few-slides", "10", "--draws", "6"}, []string{"g/k=1.tsv", "g/k=4.tsv", "g/n=10.tsv"}, 6, false},
	} {
		out := filepath.Join(dir, strings.Split(c.files[0], "/")[0])
		args := append([]string{"splits", "make", slides, "--label", "tumour type", "--seed", "3", "--out", out, "--json"}, c.args...)
		code, stdout, stderr := coverslipRun(t, args...)
		if code != exitDone {
			t.Errorf("%s: %s", what, stderr)
			continue
		}
		if !strings.Contains(stdout, `{"slide":"p0-0","reason":"listed twice"}`) || !strings.Contains(stdout, `{"slide":"x","reason":"no label"}`) {
			t.Errorf("%s does not say what it left out: %s", what, stdout)
		}
		for _, f := range c.files {
			a := auditOf(t, filepath.Join(dir, f), "--slides", slides)
			if *a.PatientsOnBothSides != 0 || a.Splits != c.splits || c.sites && a.SitesOnBothSides != 0 {
				t.Errorf("%s: %s: %+v, %d patients on both sides", what, f, a, *a.PatientsOnBothSides)
			}
		}
		before, err := os.ReadFile(filepath.Join(dir, c.files[0]))
		if err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := coverslipRun(t, args...); code != exitDone {
			t.Fatal(stderr)
		}
		if after, _ := os.ReadFile(filepath.Join(dir, c.files[0])); string(after) != string(before) {
			t.Errorf("%s: equal seeds, other files", what)
		}
	}
	out := filepath.Join(dir, "leaky.csv")
	if code, _, stderr := coverslipRun(t, "splits", "make", slides, "--label", "tumour type", "--by", "none", "--out", out); code != exitDone {
		t.Fatal(stderr)
	}
	if a := auditOf(t, out); *a.PatientsOnBothSides < 20 || len(a.LeakingPatients) != *a.PatientsOnBothSides || len(a.LeakingPatients[0].Slides) != 2 {
		t.Errorf("two slides of a patient at random: %+v", a)
	}
	code, text, _ := coverslipRun(t, "splits", "audit", out)
	if code != exitDone || !strings.Contains(text, "LEAKS: ") || !strings.Contains(text, "patient on both sides") {
		t.Error(text)
	}
}

func TestSplitsRefuseWithAWord(t *testing.T) {
	slides, out := slideTable(t), filepath.Join(t.TempDir(), "out.csv")
	for says, c := range map[string]struct {
		code int
		args []string
	}{
		`there is no column "stage"`: {exitFailed, []string{"make", slides, "--label", "stage", "--out", out}},
		"has 30 patients":            {exitFailed, []string{"make", slides, "--label", "tumour type", "-k", "40", "--out", out}},
		"with --monte-carlo":         {exitUsage, []string{"make", slides, "--label", "tumour type", "--preserve-sites", "--monte-carlo", "3", "--out", out}},
		"not exist":                  {exitFailed, []string{"audit", "nowhere.csv"}},
		"no column says which fold":  {exitFailed, []string{"audit", slides}},
	} {
		code, _, stderr := coverslipRun(t, append([]string{"splits"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, says) {
			t.Errorf("%v: %d %s", c.args, code, stderr)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a refused split left a file")
	}
}
