package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

// taskAnswer is what the API says of a task.
type taskAnswer struct {
	ID       int64             `json:"id"`
	Job      int64             `json:"job"`
	State    string            `json:"state"`
	Progress string            `json:"progress"`
	Error    string            `json:"error"`
	Result   []json.RawMessage `json:"result"`
	Files    []struct {
		Name  string `json:"name"`
		Bytes int    `json:"bytes"`
		URL   string `json:"url"`
	} `json:"files"`
}

// task asks for a verb and waits for its end.
func (p *program) task(t *testing.T, verb, settings string) (a taskAnswer) {
	t.Helper()
	if err := p.call(t.Context(), "POST", "/v1/tasks/"+verb, strings.NewReader(settings), &a); err != nil {
		t.Fatal(verb, err)
	}
	for a.State == "queued" || a.State == "running" {
		if err := p.call(t.Context(), "GET", fmt.Sprintf("/v1/tasks/%d?wait=9", a.ID), nil, &a); err != nil {
			t.Fatal(verb, err)
		}
	}
	return a
}

// done is task for one that must end well.
func (p *program) done(t *testing.T, verb, settings string) taskAnswer {
	t.Helper()
	a := p.task(t, verb, settings)
	if a.State != "done" {
		t.Fatalf("%s %s: %s: %s %s", verb, settings, a.State, a.Error, a.Result)
	}
	return a
}

func (a taskAnswer) names() (names []string) {
	for _, f := range a.Files {
		names = append(names, f.Name)
	}
	return names
}

// What the command line can do is asked for over HTTP, one verb after the other, each with what the one before made.
func TestTasks(t *testing.T) {
	needsRuntime(t)
	data := dataFolder(t)
	milCohort(t, data, 72)
	p := up(t, data)

	splits := p.done(t, "splits-make", `{"file": {"text": "`+strings.ReplaceAll(cohortTable(t, p), "\n", `\n`)+`"}, "label": "tumour type", "k": 3}`)
	if !slices.Equal(splits.names(), []string{"splits"}) || len(splits.Result) == 0 {
		t.Fatalf("%+v", splits)
	}
	probe := p.done(t, "probe", fmt.Sprintf(`{"cohort": "some", "label": "tumour type", "encoder": "tiny", "bootstraps": 50, "splits": {"task": %d, "name": "splits"}}`, splits.ID))
	if !slices.Contains(probe.names(), "report.html") || !strings.Contains(string(probe.Result[0]), `"auc"`) {
		t.Fatalf("%+v", probe)
	}
	page, err := http.Get(p.url + probe.Files[slices.Index(probe.names(), "report.html")].URL)
	if err != nil {
		t.Fatal(err)
	}
	defer page.Body.Close()
	if body, _ := io.ReadAll(page.Body); page.StatusCode != 200 || !strings.Contains(page.Header.Get("Content-Type"), "text/html") || !strings.Contains(string(body), "tumour type") ||
		!strings.Contains(page.Header.Get("Content-Security-Policy"), "sandbox") {
		t.Error(page.Status, page.Header)
	}

	trained := p.done(t, "mil-train", `{"cohort": "some", "label": "tumour type", "encoder": "tiny", "model": ["abmil"], "epochs": 2, "k": 2, "bootstraps": 50, "save": true}`)
	if !slices.Contains(trained.names(), "classifier.safetensors") {
		t.Fatal(trained.names())
	}
	predicted := p.done(t, "mil-predict", fmt.Sprintf(`{"classifier": {"task": %d, "name": "classifier.safetensors"}, "cohort": "new", "bootstraps": 50}`, trained.ID))
	if !slices.Equal(predicted.names(), []string{"predictions.csv"}) {
		t.Error(predicted.names())
	}
	p.done(t, "pretrain", `{"cohort": "new", "out": "learned", "encoder": "tiny", "epochs": 2, "batch": 8, "width": 8}`)
	p.done(t, "embed", `{"cohort": "new", "aggregator": "learned", "encoder": "tiny"}`)
	exported := p.done(t, "export", `{"cohort": "new", "aggregator": "learned", "encoder": "tiny", "format": "csv"}`)
	if !slices.Equal(exported.names(), []string{"embeddings.csv"}) || exported.Files[0].Bytes == 0 {
		t.Errorf("%+v", exported)
	}
	if table := p.done(t, "cohorts-export", `{"name": "some"}`); !slices.Equal(table.names(), []string{"cohort.csv"}) || len(table.Result) != 0 {
		t.Errorf("%+v", table)
	}

	// Files that are sent are what other verbs read: weights lie beside their ONNX file.
	file, specFile := writeEncoder(t, 1, 2)
	var sent taskAnswer
	for i, name := range []string{"weights.bin", "tiny.onnx"} {
		f, err := os.Open(filepath.Join(filepath.Dir(file), name))
		if err != nil {
			t.Fatal(err)
		}
		beside := ""
		if i > 0 {
			beside = fmt.Sprintf("&task=%d", sent.ID)
		}
		if err := p.call(t.Context(), "POST", "/v1/tasks/files?name="+name+beside, f, &sent); err != nil {
			t.Fatal(err)
		}
	}
	spec, err := os.ReadFile(specFile)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(string(spec))
	added := p.done(t, "models-add", fmt.Sprintf(`{"kind": "encoder", "file": {"task": %d, "name": "tiny.onnx"}, "spec": {"text": %s}}`, sent.ID, text))
	if len(sent.Files) != 2 || !strings.Contains(string(added.Result[0]), "mean-colour") {
		t.Errorf("%+v %+v", sent, added)
	}
	p.done(t, "models-verify", `{"name": ["mean-colour"]}`)
	bags := p.done(t, "export", `{"cohort": "new", "encoder": "tiny", "what": "bags", "format": "npz"}`)
	if len(bags.Files) != 12 || strings.Contains(string(bags.Result[0]), os.TempDir()) {
		t.Errorf("%v %s", bags.names(), bags.Result)
	}

	t.Run("WhatIsWrongIsToldAtOnce", func(t *testing.T) {
		for body, says := range map[string]string{
			`{"label": "x"}`: "cohort",
			`{"cohort": "some", "label": "tumour type", "protocol": "guess"}`:                                  "protocol",
			`{"cohort": "some", "label": "tumour type", "out": "/etc"}`:                                        "out",
			`{"cohort": "some", "label": "tumour type", "splits": "/etc/passwd"}`:                              "splits",
			`{"cohort": "some", "label": "tumour type", "splits": {"task": 999, "name": "a"}}`:                 "task 999",
			`{"cohort": "some", "label": "tumour type", "splits": {"task": 1, "name": "../../slides"}}`:        "no file",
			`{"cohort": "some", "label": "tumour type", "splits": {"text": "a", "task": 1, "name": "splits"}}`: "splits",
			`{"cohort": "some", "label": "tumour type", "k": null}`:                                            "null",
			`{"cohort": "some", "label": "tumour type", "data": "/tmp"}`:                                       "data",
			`{"cohort": "some", "label": "tumour type", "k": -1, "few_shot": ["three"]}`:                       "few_shot",
		} {
			if err := p.call(t.Context(), "POST", "/v1/tasks/probe", strings.NewReader(body), nil); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v", body, err)
			}
		}
	})
	t.Run("NothingIsWrittenWhereAClientSays", func(t *testing.T) {
		for _, v := range taskVerbs {
			node := mustFind(t, v.path)
			for _, s := range v.settings(node) {
				for _, word := range []string{"DIR", "FILE", "PATH"} {
					if holder := placeholderOf(node, s.flag); s.Type != "file" && strings.Contains(holder, word) && !slices.Contains(v.places, s.flag) {
						t.Errorf("%s takes %s, which is a %s of the server", v.path, s.Name, holder)
					}
				}
			}
		}
		for _, verb := range []string{"export", "cohorts-export", "probe", "splits-make"} {
			if err := p.call(t.Context(), "POST", "/v1/tasks/"+verb, strings.NewReader(`{"name": "some", "out": "/tmp/mine"}`), nil); err == nil || !strings.Contains(err.Error(), "body.out") {
				t.Errorf("%s: %v", verb, err)
			}
		}
	})
	t.Run("WhatFailsSaysWhy", func(t *testing.T) {
		a := p.task(t, "probe", `{"cohort": "nobody", "label": "x"}`)
		if a.State != "failed" || !strings.Contains(a.Error, "nobody") || strings.Contains(a.Error, "/tmp") {
			t.Errorf("%+v", a)
		}
		var again struct {
			State string `json:"state"`
		}
		if err := p.call(t.Context(), "POST", fmt.Sprintf("/v1/jobs/%d/retry", a.Job), nil, &again); err != nil {
			t.Fatal(err)
		}
		var b taskAnswer
		for b.State == "" || b.State == "queued" || b.State == "running" {
			if err := p.call(t.Context(), "GET", fmt.Sprintf("/v1/tasks/%d?wait=9", a.ID), nil, &b); err != nil {
				t.Fatal(err)
			}
		}
		if b.State != "failed" {
			t.Errorf("%+v", b)
		}
	})
	t.Run("CancelledAndRemoved", func(t *testing.T) {
		var a taskAnswer
		if err := p.call(t.Context(), "POST", "/v1/tasks/pretrain", strings.NewReader(`{"cohort": "new", "out": "long", "encoder": "tiny", "epochs": 1000000, "batch": 8, "width": 8}`), &a); err != nil {
			t.Fatal(err)
		}
		one := fmt.Sprintf("/v1/tasks/%d", a.ID)
		deadline := time.Now().Add(time.Minute)
		for a.State != "running" && time.Now().Before(deadline) {
			time.Sleep(50 * time.Millisecond)
			if err := p.call(t.Context(), "GET", one, nil, &a); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.call(t.Context(), "DELETE", one, nil, nil); err == nil {
			t.Error("a task that runs was removed")
		}
		if err := p.call(t.Context(), "POST", one+"/cancel", nil, &a); err != nil {
			t.Fatal(err)
		}
		for a.State == "running" || a.State == "queued" {
			if err := p.call(t.Context(), "GET", one+"?wait=9", nil, &a); err != nil {
				t.Fatal(err)
			}
		}
		if a.State != "cancelled" {
			t.Fatalf("%+v", a)
		}
		if err := p.call(t.Context(), "DELETE", one, nil, nil); err != nil {
			t.Fatal(err)
		}
		if err := p.call(t.Context(), "GET", one, nil, nil); err == nil {
			t.Error("it is still there")
		}
	})
	t.Run("AWorkerThatIsKilled", func(t *testing.T) {
		var a taskAnswer
		if err := p.call(t.Context(), "POST", "/v1/tasks/pretrain", strings.NewReader(`{"cohort": "new", "out": "again", "encoder": "tiny", "epochs": 100, "batch": 8, "width": 8}`), &a); err != nil {
			t.Fatal(err)
		}
		one := fmt.Sprintf("/v1/tasks/%d", a.ID)
		for deadline := time.Now().Add(time.Minute); a.State != "running" && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if err := p.call(t.Context(), "GET", one, nil, &a); err != nil {
				t.Fatal(err)
			}
		}
		p.kill()
		p = up(t, data)
		for a.State == "queued" || a.State == "running" {
			if err := p.call(t.Context(), "GET", one+"?wait=9", nil, &a); err != nil {
				t.Fatal(err)
			}
		}
		if a.State != "done" {
			t.Errorf("%+v", a)
		}
	})
}

func mustFind(t *testing.T, path string) *kong.Node {
	t.Helper()
	k, err := grammar()
	if err != nil {
		t.Fatal(err)
	}
	return nodeOf(k, path)
}

// placeholderOf is what the help shows for a flag's value, or an argument's.
func placeholderOf(node *kong.Node, name string) string {
	for _, group := range node.AllFlags(false) {
		for _, f := range group {
			if f.Name == name {
				return f.PlaceHolder
			}
		}
	}
	return ""
}

// cohortTable is a table of slides for splits make.
func cohortTable(t *testing.T, p *program) string {
	t.Helper()
	var members struct {
		Slides []struct {
			Name    string         `json:"name"`
			Patient string         `json:"patient"`
			Labels  map[string]any `json:"labels"`
		} `json:"slides"`
	}
	if err := p.call(t.Context(), "GET", "/v1/cohorts/some/slides?limit=1000", nil, &members); err != nil {
		t.Fatal(err)
	}
	table := "slide_id,case_id,tumour type\n"
	for _, m := range members.Slides {
		if m.Labels["tumour type"] != nil {
			table += fmt.Sprintf("%s,%s,%s\n", m.Name, m.Patient, m.Labels["tumour type"])
		}
	}
	return table
}
