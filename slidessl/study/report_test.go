package study

import (
	"fmt"
	"strings"
	"testing"
)

func found(t *testing.T) Report {
	t.Helper()
	p, r := three(t, 0.05, 0.001)
	delete(r, p.Runs[0].Evaluations[0])
	f, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	f.Question = "Does <b>anything</b> | help?"
	outcomes := []Outcome{{Key: p.Runs[0].Evaluations[0], Kind: "evaluation", Fate: Failed, Reason: "the loss is NaN"}}
	return Report{File: f, Text: good, Plan: p, Results: r, Outcomes: outcomes, Versions: map[string]string{"coverslip": "v1", "efficientnet-lite0": "sha256 1234"},
		Command: "coverslip study run objectives.yaml", Made: "2026-11-27", Draws: 300}
}

func TestAReportHasWhatItTakesToMakeItAgain(t *testing.T) {
	r := found(t)
	html, err := r.HTML()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"html": string(html), "markdown": r.Markdown()} {
		for _, want := range []string{"Study objectives", "2026-11-27", "12 runs", "coverslip study run objectives.yaml", "sha256 1234", "the loss is NaN", "1 missing",
			"probe: auc, n=25", "jitter alone", "98.75", "Bonferroni", "view.tiles: 16", "Kang et al."} {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
	}
	if strings.Contains(string(html), "<b>anything") || strings.Contains(string(html), "http") || !strings.Contains(string(html), "<svg") {
		t.Error("the page is not whole and safe")
	}
	for _, s := range r.Plan.Stages {
		if !strings.Contains(string(html), s.Key) {
			t.Errorf("no key of %s", s.Kind)
		}
	}
	again, err := r.HTML()
	if err != nil || string(again) != string(html) {
		t.Errorf("another page of the same study: %v", err)
	}
}

func TestWhatIsClearIsMarked(t *testing.T) {
	text := found(t).Markdown()
	var objective, stain string
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "| train.objective | vicreg | simclr |") && objective == "" {
			objective = line
		}
		if strings.HasPrefix(line, "| stain | jitter alone | all |") && stain == "" {
			stain = line
		}
	}
	if !strings.Contains(objective, "**+0.0") || strings.Contains(stain, "**") || stain == "" {
		t.Errorf("%s\n%s", objective, stain)
	}
}

func TestAStudyOfOneRunIsReported(t *testing.T) {
	text := "name: one\nfixed: {cohort: idc}\nevaluations: [{kind: geometry}]\n"
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p := plan(t, text, false)
	r := Report{File: f, Text: text, Plan: p, Results: Results{p.Runs[0].Evaluations[0]: {{Name: "uniformity", Value: -3.25}}}}
	html, err := r.HTML()
	if err != nil || !strings.Contains(string(html), "-3.25") || !strings.Contains(r.Markdown(), "| -3.25 | 1 |") {
		t.Errorf("%v\n%s", err, r.Markdown())
	}
	if r.Results = nil; !strings.Contains(r.Markdown(), "1 runs") { // nothing was made yet
		t.Error(fmt.Sprint(r.Markdown()))
	}
}

func TestOnePairHasNoInterval(t *testing.T) {
	text := "name: two\nfixed: {cohort: idc}\nfactors: [{setting: train.epochs, values: [5, 6]}]\nevaluations: [{kind: geometry}]\n"
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p := plan(t, text, false)
	r := Report{File: f, Text: text, Plan: p, Results: Results{p.Runs[0].Evaluations[0]: {{Name: "uniformity", Value: -3}}, p.Runs[1].Evaluations[0]: {{Name: "uniformity", Value: -2}}}}
	html, err := r.HTML()
	if md := r.Markdown(); err != nil || !strings.Contains(md, "| +1 [not known] | 1 |") || strings.Contains(string(html), "<strong>+1") {
		t.Errorf("%v\n%s", err, md)
	}
}
