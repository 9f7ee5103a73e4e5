package main

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip/encoder/onnx/onnxtest"
	"coverslip/slidessl"
	"coverslip/slidessl/slidessltest"
	"coverslip/slidessl/view"
)

// TestAnAggregatorFromElsewhere adds one with its weights in a file beside it, embeds a cohort with it, and
// finds out when the file is changed.
func TestAnAggregatorFromElsewhere(t *testing.T) {
	onnxtest.Need(t)
	data, dir := database(t), t.TempDir()
	milCohort(t, data, 72)
	call := func(args ...string) (int, string, string) {
		var out, errs strings.Builder
		code := run(t.Context(), append(args, "--data", data), &out, &errs)
		return code, out.String(), errs.String()
	}
	file, err := filepath.Abs("../../slidessl/foreign/testdata/abmil.onnx")
	if err != nil {
		t.Fatal(err)
	}
	spec := filepath.Join(dir, "spec.yaml")
	write := func(text string) {
		if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const good = "name: theirs\nencoder: tiny\nfeatures: {tensor: features, dim: 6, batch: true}\noutput: embedding\ndim: 16\n"
	for text, says := range map[string]string{
		good + "sha256: " + strings.Repeat("0", 64) + "\ndata: {abmil.onnx.data: " + strings.Repeat("0", 64) + "}\n": "has SHA-256",
		strings.Replace(good, "dim: 6", "dim: 5", 1):                                                                 "asks for features float32 [1 N 5]",
		strings.Replace(good, "dim: 16", "dim: 15", 1):                                                               "says 15 numbers",
		strings.Replace(good, "theirs", "mean", 1):                                                                   "--name NAME",
		strings.Replace(good, "output", "out", 1):                                                                    "field out",
		strings.Replace(good, "output: embedding", "", 1):                                                            "output is missing",
	} {
		write(text)
		if code, _, errs := call("models", "add", "aggregator", file, "--spec", spec); code != exitFailed || !strings.Contains(errs, says) {
			t.Errorf("%q: %d %s", says, code, errs)
		}
	}
	if code, _, errs := call("embed", "--cohort", "new", "--encoder", "tiny", "--aggregator", "titan"); code != exitFailed || !strings.Contains(errs, "models add aggregator FILE --spec titan") {
		t.Errorf("one that is yours to bring: %d %s", code, errs)
	}
	write(good)
	for range 2 { // again changes nothing
		if code, out, errs := call("models", "add", "aggregator", file, "--spec", spec); code != 0 || !strings.Contains(out, "bags of 6 numbers a tile of encoder tiny to 16 numbers") || !strings.Contains(out, "abmil.onnx.data") {
			t.Fatalf("%d %s%s", code, out, errs)
		}
	}
	if code, out, errs := call("models", "list"); code != 0 || !strings.Contains(out, "theirs") || !strings.Contains(out, "titan") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	if code, out, errs := call("models", "show", "theirs"); code != 0 || !strings.Contains(out, "encoder: tiny") || !strings.Contains(out, "sha256:") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	if code, out, errs := call("models", "show", "titan"); code != 0 || !strings.Contains(out, "conch-v1.5") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	for n, changed := range []int{12, 0} {
		code, out, errs := call("embed", "--cohort", "new", "--encoder", "tiny", "--aggregator", "theirs", "--json")
		var r embedResult
		if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil || r.Dim != 16 || r.Slides != 12 || r.Changed != changed {
			t.Errorf("%d: %d %s%s", n, code, out, errs)
		}
	}
	if code, _, errs := call("embed", "--cohort", "new", "--aggregator", "theirs"); code != exitFailed || !strings.Contains(errs, "takes features of encoder tiny") {
		t.Errorf("another encoder: %d %s", code, errs)
	}
	if code, _, errs := call("embed", "--cohort", "new", "--encoder", "tiny", "--aggregator", "theirs:projector.1"); code != exitFailed || !strings.Contains(errs, "no layers by name") {
		t.Errorf("a layer: %d %s", code, errs)
	}
	exported := filepath.Join(dir, "e.csv")
	if code, out, errs := call("export", "--format", "csv", "--cohort", "new", "--encoder", "tiny", "--aggregator", "theirs", "-o", exported); code != 0 {
		t.Errorf("%d %s%s", code, out, errs)
	}
	if raw, err := os.ReadFile(exported); err != nil || strings.Count(string(raw), "\n") != 13 {
		t.Errorf("%v %s", err, raw)
	}
	if code, out, errs := call("models", "verify", "theirs"); code != 0 {
		t.Errorf("%d %s%s", code, out, errs)
	}
	weights, err := filepath.Glob(filepath.Join(data, "blobs", "models", "*", "abmil.onnx.data"))
	if err != nil || len(weights) != 1 {
		t.Fatal(weights, err)
	}
	if err := os.Truncate(weights[0], 1000); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := call("models", "verify", "theirs"); code != exitFailed || !strings.Contains(out, "SHA-256") {
		t.Errorf("changed weights: %d %s", code, out)
	}
	if code, _, errs := call("embed", "--cohort", "new", "--encoder", "tiny", "--aggregator", "theirs"); code != exitFailed || !strings.Contains(errs, "abmil.onnx.data") {
		t.Errorf("changed weights: %d %s", code, errs)
	}
}

// trainedOnNumbers keeps an aggregator that learned from slides of random features of so many numbers.
func trainedOnNumbers(t *testing.T, data, name string, dim int, plain bool) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	cohort := &slidessltest.Cohort{Looks: []*slidessltest.Encoded{{Tiles: 60, Dim: dim, Views: [][]float32{make([]float32, 60*dim)}}}}
	for k := range cohort.Looks[0].Views[0] {
		cohort.Looks[0].Views[0][k] = float32(rng.NormFloat64())
	}
	for i := range 6 {
		s := slidessltest.Slide{}
		for k := range 10 {
			s.Tiles, s.Places = append(s.Tiles, 10*i+k), append(s.Places, view.Place{X: float64(k)})
		}
		cohort.Slides = append(cohort.Slides, s)
	}
	settings := slidessl.DefaultSettings("mlp", "simclr", dim)
	settings.Architecture.Width, settings.Batch, settings.Epochs, settings.Warmup, settings.View.Tiles, settings.View.Plain = 8, 6, 1, 0, 4, plain
	trained, err := slidessl.Train(t.Context(), settings, cohort, slidessl.Run{})
	if err != nil {
		t.Fatal(err)
	}
	p := connected(t, data)
	defer p.Close()
	card := slidessl.Card{Name: name, Reading: slidessl.Reading{Views: 10, View: settings.View, Seed: 1}, Data: slidessl.CardData{Encoder: "efficientnet-lite0"}}
	if _, err := keepAggregator(&env{Context: t.Context(), out: os.Stdout, err: os.Stderr}, p, trained, card, t.TempDir()); err != nil {
		t.Fatal(err)
	}
}

// TestIngestEmbedsByAnAggregator encodes a slide once: by the mean first, then by one that was trained, which
// takes no encoding, and which coverslip embed finds as it would make it.
func TestIngestEmbedsByAnAggregator(t *testing.T) {
	needsRuntime(t)
	data := dataFolder(t)
	slide := "../../testdata/CMU-1-Small-Region.svs"
	ingested := func(args ...string) result {
		t.Helper()
		code, out, errs := coverslipRun(t, append([]string{"--json", "ingest", slide, "--wait", "--cohort", "some", "--data", data}, args...)...)
		if code != exitDone {
			t.Fatalf("exit %d: %s", code, errs)
		}
		return results(t, out)[0]
	}
	if r := ingested(); r.Work != "done" {
		t.Errorf("%+v", r)
	}
	trainedOnNumbers(t, data, "ours", 1280, true)
	trainedOnNumbers(t, data, "narrow", 12, true)
	trainedOnNumbers(t, data, "views", 1280, false)
	if r := ingested("--aggregator", "ours"); r.Work != "done" {
		t.Errorf("%+v", r)
	}
	if r := ingested("--aggregator", "ours"); r.Work != "none" {
		t.Errorf("again: %+v", r)
	}
	if r := ingested(); r.Work != "none" {
		t.Errorf("the mean's is gone: %+v", r)
	}
	code, out, errs := coverslipRun(t, "--json", "embed", "--cohort", "some", "--aggregator", "ours", "--views", "10", "--data", data)
	var r embedResult
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitDone || r.Slides != 1 || r.Changed != 0 {
		t.Errorf("embed makes another: %d %s%s", code, out, errs)
	}
	for name, says := range map[string]string{
		"theirs": "none of this name",
		"narrow": "it takes features of 12 numbers, and those of encoder efficientnet-lite0 have 1280",
		"views":  "it learned from stored views",
		"titan":  "its file is yours to bring",
	} {
		if code, _, errs := coverslipRun(t, "ingest", slide, "--wait", "--aggregator", name, "--data", data); code != exitFailed || !strings.Contains(errs, says) {
			t.Errorf("%s: exit %d: %s", name, code, errs)
		}
	}
}
