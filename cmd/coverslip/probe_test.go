package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
	"coverslip/storage"
)

// probeCohort makes a cohort of slides that have embeddings only, of two aggregators: mean says little of
// the label, sharp says much.
func probeCohort(t *testing.T, data string, n int, change func(i int, m *coverslip.Member)) {
	t.Helper()
	p := connected(t, data)
	defer p.Close()
	rng := rand.New(rand.NewPCG(3, 4))
	err := p.DB.InTx(t.Context(), func(tx *storage.Tx) error {
		for i := range n {
			id := coverslip.SlideID(fmt.Sprintf("%064x", i+1))
			name := fmt.Sprintf("slide %d.svs", i)
			if _, _, err := tx.Register(t.Context(), coverslip.Slide{ID: id, Name: name, Location: "/nowhere/" + name, State: coverslip.Embedded}); err != nil {
				return err
			}
			class := i / 2 % 2 // two slides a patient, of one class
			m := coverslip.Member{Slide: id, Patient: fmt.Sprintf("P%d", i/2), Site: fmt.Sprintf("S%d", i/2%7), Labels: map[string]any{"tumour type": []string{"lobular carcinoma", "ductal carcinoma"}[class]}}
			if change != nil {
				change(i, &m)
			}
			if err := tx.AddToCohort(t.Context(), "some", m); err != nil {
				return err
			}
			bag := coverslip.Bag{Key: fmt.Sprintf("%064x", 1000+i), Slide: id, Encoder: "tiny", Tiles: 1, Dim: 8}
			if err := tx.PutBag(t.Context(), bag); err != nil {
				return err
			}
			for k, aggregator := range []string{"mean", "sharp"} { // in order: each draws
				signal := []float64{0.3, 1.5}[k]
				v := make([]float32, 8)
				for j := range v {
					v[j] = float32(rng.NormFloat64())
				}
				v[0] += float32(signal * float64(2*class-1))
				if err := tx.PutEmbedding(t.Context(), coverslip.Embedding{Slide: id, Bag: bag.Key, Encoder: "tiny", Aggregator: aggregator, Vector: v}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

type reportLine struct {
	Run struct {
		ID      string
		Classes []string
		LeftOut []coverslip.LeftOut `json:"left_out"`
		Notes   []string
		Splits  string
	}
	Slides, Patients int
	Groups           []struct {
		Name    string
		Splits  int
		Methods []struct {
			Name     string
			Baseline bool
			Figures  []struct {
				Name             string
				Value, Low, High *float64
			}
			Gain *struct{ Value, Low, High float64 }
		}
	}
}

func probeJSON(t *testing.T, args ...string) (r reportLine) {
	t.Helper()
	code, out, stderr := coverslipRun(t, append([]string{"--json"}, args...)...)
	if code != exitDone {
		t.Fatalf("%v: exit %d, %s", args, code, stderr)
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err, out)
	}
	return r
}

func TestProbeShowsBaselinesAndIsKept(t *testing.T) {
	data := database(t)
	probeCohort(t, data, 80, nil)
	ask := []string{"probe", "--cohort", "some", "--label", "tumour type", "--encoder", "tiny", "--data", data}
	r := probeJSON(t, append(ask, "--aggregator", "sharp")...)
	if len(r.Groups) != 1 || r.Groups[0].Splits != 5 || r.Slides != 80 || r.Patients != 40 {
		t.Fatalf("%+v", r)
	}
	var names []string
	for _, m := range r.Groups[0].Methods {
		names = append(names, m.Name)
	}
	if strings.Join(names, ", ") != "sharp, mean pooling, majority class" {
		t.Errorf("methods %v", names)
	}
	sharp, mean, majority := r.Groups[0].Methods[0], r.Groups[0].Methods[1], r.Groups[0].Methods[2]
	if a := sharp.Figures[0]; a.Name != "auc" || *a.Value < 0.9 || !(*a.Low < *a.Value && *a.Value < *a.High) {
		t.Errorf("%+v", a)
	}
	if *majority.Figures[0].Value != 0.5 || *mean.Figures[0].Value > *sharp.Figures[0].Value || sharp.Gain == nil || sharp.Gain.Low < 0 || mean.Gain != nil {
		t.Errorf("sharp %+v, mean %+v, majority %+v", sharp, mean, majority)
	}
	if !strings.Contains(strings.Join(r.Run.Notes, "\n"), "no patient leaks") {
		t.Errorf("notes %v", r.Run.Notes)
	}

	// Again: the same run. Shown: the same figures, from what was kept.
	if again := probeJSON(t, append(ask, "--aggregator", "sharp")...); again.Run.ID != r.Run.ID {
		t.Error("equal runs have different ids")
	}
	dir := t.TempDir()
	shown := probeJSON(t, "runs", "show", r.Run.ID[:8], "--data", data, "--out", dir)
	for m := range shown.Groups[0].Methods {
		for i, f := range shown.Groups[0].Methods[m].Figures {
			if g := r.Groups[0].Methods[m].Figures[i]; *f.Value != *g.Value || *f.Low != *g.Low || *f.High != *g.High {
				t.Errorf("%s: shown %v, was %v", f.Name, *f.Value, *g.Value)
			}
		}
	}
	for _, f := range []string{"report.html", "figures.json", "predictions.csv", "splits.tsv", "roc.png", "calibration.png"} {
		if info, err := os.Stat(filepath.Join(dir, f)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", f, err)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, "report.html"))
	if err != nil || strings.Count(string(page), "data:image/png;base64,") != 2 || !strings.Contains(string(page), "majority class") {
		t.Errorf("the page: %v", err)
	}

	// Its split file is whole: what is judged on it is the same run.
	_, splits, _ := coverslipRun(t, "runs", "show", r.Run.ID[:8], "--data", data, "--splits")
	if splits != r.Run.Splits {
		t.Error("the split file differs")
	}
	same := probeJSON(t, append(ask, "--aggregator", "sharp", "--splits", filepath.Join(dir, "splits.tsv"))...)
	if same.Run.ID != r.Run.ID {
		t.Error("on its own split file it is another run")
	}
	code, text, _ := coverslipRun(t, "runs", "--data", data)
	if code != exitDone || strings.Count(text, "sharp") != 1 {
		t.Errorf("runs: %s", text)
	}

	// Mean pooling asked for is no baseline of itself.
	r = probeJSON(t, ask...)
	if len(r.Groups[0].Methods) != 2 || r.Groups[0].Methods[0].Baseline || r.Groups[0].Methods[0].Gain != nil {
		t.Errorf("%+v", r.Groups[0].Methods)
	}
}

func TestProbeProtocols(t *testing.T) {
	data := database(t)
	probeCohort(t, data, 120, func(i int, m *coverslip.Member) {
		m.Labels["grade"] = float64(i / 2 % 3)
		m.Labels["days"], m.Labels["died"] = float64(1000-200*(i/2%2)-i), i%3 > 0
	})
	ask := []string{"probe", "--cohort", "some", "--encoder", "tiny", "--aggregator", "sharp", "--data", data, "--bootstraps", "50"}
	for name, c := range map[string]struct {
		args   []string
		splits int
		groups string
		first  string
	}{
		"gigassl":    {[]string{"--label", "tumour type", "--protocol", "gigassl"}, 10, "", "auc"},
		"titan":      {[]string{"--label", "tumour type", "--protocol", "titan"}, 5, "", "auc"},
		"pathobench": {[]string{"--label", "tumour type", "--protocol", "pathobench"}, 5, "", "auc"},
		"site":       {[]string{"--label", "tumour type", "--protocol", "site", "-k", "3"}, 3, "", "auc"},
		"fewshot":    {[]string{"--label", "tumour type", "--protocol", "fewshot", "--draws", "4"}, 4, "k=1 k=2 k=4 k=8 k=16", "auc"},
		"few":        {[]string{"--label", "tumour type", "--few-slides", "10,all", "--draws", "4"}, 4, "n=10 all", "auc"},
		"three":      {[]string{"--label", "grade"}, 5, "", "auc_one_vs_rest"},
		"knn":        {[]string{"--label", "grade", "--classifier", "knn"}, 5, "", "auc_one_vs_rest"},
		"means":      {[]string{"--label", "tumour type", "--classifier", "means"}, 5, "", "auc"},
		"ridge":      {[]string{"--label", "grade", "--classifier", "ridge"}, 5, "", "auc_one_vs_rest"},
		"cox":        {[]string{"--label", "days", "--event", "died", "--classifier", "cox"}, 5, "", "concordance"},
	} {
		r := probeJSON(t, append(ask, c.args...)...)
		var groups []string
		for _, g := range r.Groups {
			groups = append(groups, g.Name)
		}
		if strings.Join(groups, " ") != c.groups || r.Groups[0].Splits != c.splits {
			t.Errorf("%s: groups %v of %d splits", name, groups, r.Groups[0].Splits)
		}
		f := r.Groups[len(r.Groups)-1].Methods[0].Figures[0]
		if f.Name != c.first || f.Value == nil {
			t.Errorf("%s: %s %v", name, f.Name, f.Value)
			continue
		}
		if (c.first == "auc" || name == "cox") && *f.Value < 0.7 {
			t.Errorf("%s: %s %v", name, f.Name, *f.Value)
		}
		t.Logf("%s: %s %.3f", name, f.Name, *f.Value)
	}
}

func TestProbeSaysWhatItLeavesOut(t *testing.T) {
	data := database(t)
	probeCohort(t, data, 80, func(i int, m *coverslip.Member) {
		switch i {
		case 0:
			m.Labels = map[string]any{"other": "x"} // no label
		case 3:
			m.Labels["tumour type"] = "lobular carcinoma" // the patient's other slide is ductal
		}
		m.Labels["constant"] = "same"
		m.Labels["rare"] = []string{"often", "seldom"}[max(0, min(1, 4-i))]
	})
	ask := []string{"probe", "--cohort", "some", "--encoder", "tiny", "--aggregator", "sharp", "--data", data, "--bootstraps", "20"}
	r := probeJSON(t, append(ask, "--label", "tumour type")...)
	if len(r.Run.LeftOut) != 1 || r.Run.LeftOut[0] != (coverslip.LeftOut{Slide: "slide 0.svs", Reason: "no label"}) || r.Slides != 79 {
		t.Errorf("left out %+v of %d", r.Run.LeftOut, r.Slides)
	}
	if !strings.Contains(strings.Join(r.Run.Notes, "\n"), "P1") {
		t.Errorf("a patient with two labels is not named: %v", r.Run.Notes)
	}

	folds := filepath.Join(t.TempDir(), "folds.csv")
	table := "slide_id,fold\nslide 0,0\nunknown slide,1\n"
	for i := 1; i < 60; i++ {
		table += fmt.Sprintf("slide %d,%d\n", i, i/2%3)
	}
	table += "slide 7,0\n" // again, on the same fold
	if err := os.WriteFile(folds, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	r = probeJSON(t, append(ask, "--label", "tumour type", "--splits", folds)...)
	reasons := map[string]int{}
	for _, l := range r.Run.LeftOut {
		reasons[l.Reason]++
	}
	if reasons["not in the split file"] != 20 || reasons["in the split file, but not among the slides"] != 2 || reasons["no label"] != 1 {
		t.Errorf("left out %v", reasons)
	}
	if !strings.Contains(strings.Join(r.Run.Notes, "\n"), "1 rows of the split file name a slide that another row names, too") {
		t.Errorf("notes %v", r.Run.Notes)
	}

	for says, args := range map[string][]string{
		`no label column "stage"`:           {"--label", "stage"},
		"of one class of constant":          {"--label", "constant"},
		`class "seldom" has 2 patients`:     {"--label", "rare"},
		"under encoder tiny and aggregator": {"--label", "tumour type", "--aggregator", "none"},
		"there is none of this name":        {"--label", "tumour type", "--cohort", "elsewhere"},
	} {
		code, _, stderr := coverslipRun(t, append(ask, args...)...)
		if code != exitFailed || !strings.Contains(stderr, says) {
			t.Errorf("%v: exit %d, %s", args, code, stderr)
		}
	}
	if code, _, stderr := coverslipRun(t, append(ask, "--label", "tumour type", "--splits", folds, "-k", "3")...); code != exitUsage {
		t.Errorf("--splits with -k: exit %d, %s", code, stderr)
	}
}

func TestProbeWithoutPatients(t *testing.T) {
	data := database(t)
	probeCohort(t, data, 40, func(_ int, m *coverslip.Member) { m.Patient = "" })
	ask := []string{"probe", "--cohort", "some", "--label", "tumour type", "--encoder", "tiny", "--data", data, "--bootstraps", "20"}
	if code, _, stderr := coverslipRun(t, ask...); code != exitFailed || !strings.Contains(stderr, "40 of 40 slides have no patient") {
		t.Errorf("exit %d, %s", code, stderr)
	}
	folds := filepath.Join(t.TempDir(), "folds.csv")
	table := "slide_id,fold\n"
	for i := range 40 {
		table += fmt.Sprintf("slide %d,%d\n", i, i/2%4)
	}
	if err := os.WriteFile(folds, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, more := range [][]string{{"--by", "none"}, {"--splits", folds}} {
		code, out, stderr := coverslipRun(t, append(ask, more...)...)
		if code != exitDone || !strings.Contains(out, "patients are unknown") {
			t.Errorf("%v: exit %d, %s%s", more, code, out, stderr)
		}
	}
}
