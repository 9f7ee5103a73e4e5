package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"

	"coverslip"
	"coverslip/internal/nn"
	"coverslip/storage"
)

// tinyStudy is one of the cohort that bagCohort makes.
const tinyStudy = `name: tiny
question: Does training help?
fixed:
  cohort: some
  encoder: tiny
  train: {epochs: 3, batch: 8, view.tiles: 6, architecture.width: 16}
  embed.views: 4
factors:
  - {setting: aggregator, values: [mean, trained, untrained]}
seeds: 2
evaluations:
  - {kind: probe, label: kind, folds: 3, c: 1}
  - {kind: geometry}
`

func studyFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "study.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// ranStudy runs one that has to end well.
func ranStudy(t *testing.T, args ...string) (done studyDone) {
	t.Helper()
	code, out, stderr := coverslipRun(t, append([]string{"--json", "study", "run"}, args...)...)
	if code != exitDone {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if err := json.Unmarshal([]byte(out), &done); err != nil {
		t.Fatal(err, out)
	}
	return done
}

// figuresOf is the CSV file of a study.
func figuresOf(t *testing.T, data, name string) string {
	t.Helper()
	dir := t.TempDir()
	if code, _, stderr := coverslipRun(t, "study", "report", name, "--data", data, "--out", dir, "--draws", "50"); code != exitDone {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "results.csv"))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestStudyRunShowReport(t *testing.T) {
	data := database(t)
	bagCohort(t, data, 24)
	file := studyFile(t, tinyStudy)
	done := ranStudy(t, file, "--data", data)
	// One set of bags; two seeds of a trained and an untrained aggregator, and of mean none; their embeddings; two
	// evaluations of each.
	if done.Runs != 6 || done.Made != 1+4+5+10 || done.Kept != 0 || len(done.Failed) != 0 {
		t.Errorf("%+v", done)
	}
	if again := ranStudy(t, file, "--data", data); again.Made != 0 || again.Kept != 20 {
		t.Errorf("again: %+v", again)
	}
	t.Run("Show", func(t *testing.T) {
		code, out, stderr := coverslipRun(t, "study", "show", "tiny", "--data", data)
		if code != exitDone || !strings.Contains(out, "untrained") || !strings.Contains(out, "balanced_accuracy") || !strings.Contains(out, "±") {
			t.Errorf("exit %d: %s\n%s", code, stderr, out)
		}
		code, out, stderr = coverslipRun(t, "--json", "study", "show", "tiny", "--data", data)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		var first studyLine
		if err := json.Unmarshal([]byte(lines[0]), &first); code != exitDone || err != nil || first.Levels["aggregator"] != "mean" || *first.Mean < 0 || *first.Mean > 1 {
			t.Errorf("exit %d: %s %v\n%s", code, stderr, err, lines[0])
		}
		if code, out, _ := coverslipRun(t, "study", "show", "--data", data); code != exitDone || !strings.Contains(out, "tiny") {
			t.Errorf("exit %d: %s", code, out)
		}
	})
	t.Run("Report", func(t *testing.T) {
		dir := t.TempDir()
		if code, _, stderr := coverslipRun(t, "study", "report", "tiny", "--data", data, "--out", dir, "--draws", "50"); code != exitDone {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		for name, says := range map[string][]string{
			"report.html": {"<svg", "tiny", "coverslip study run study.yaml", "sha256 "}, "report.md": {"| aggregator |", "±", "sha256 "},
			"study.yaml": {"name: tiny"}, "results.csv": {"study,run,aggregator,seed,evaluation,figure,training,fold,value\ntiny,1,mean,1,geometry,"}} {
			raw, err := os.ReadFile(filepath.Join(dir, name))
			for _, want := range says {
				if err != nil || !strings.Contains(string(raw), want) {
					t.Errorf("%s has no %q: %v", name, want, err)
				}
			}
		}
		rows, err := parquet.ReadFile[struct {
			Run    int32             `parquet:"run"`
			Levels map[string]string `parquet:"levels"`
			Value  float64           `parquet:"value"`
		}](filepath.Join(dir, "results.parquet"))
		raw, _ := os.ReadFile(filepath.Join(dir, "results.csv"))
		if err != nil || len(rows) != strings.Count(string(raw), "\n")-1 || rows[0].Levels["aggregator"] != "mean" {
			t.Errorf("%d rows of parquet, %v", len(rows), err)
		}
	})
	t.Run("ASecondOfItsNameIsRefused", func(t *testing.T) {
		other := studyFile(t, strings.Replace(tinyStudy, "epochs: 3", "epochs: 4", 1))
		code, _, stderr := coverslipRun(t, "study", "run", other, "--data", data)
		if code != exitFailed || !strings.Contains(stderr, "another study of this name") || !strings.Contains(stderr, "--replace") {
			t.Errorf("exit %d: %s", code, stderr)
		}
		// Replaced, it makes what differs: the trained aggregators, and what stands on them.
		if done := ranStudy(t, other, "--data", data, "--replace"); done.Made != 2+2+4 || done.Kept != 12 {
			t.Errorf("%+v", done)
		}
	})
	t.Run("LabelsThatChangeAreJudgedAnew", func(t *testing.T) {
		code, out, stderr := coverslipRun(t, "--json", "slides", "list", "--data", data)
		var s struct{ Name string }
		if err := json.Unmarshal([]byte(strings.SplitN(out, "\n", 2)[0]), &s); code != exitDone || err != nil {
			t.Fatal(code, err, stderr)
		}
		table := filepath.Join(t.TempDir(), "labels.csv")
		if err := os.WriteFile(table, []byte("slide,kind\n"+s.Name+",b\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if code, out, stderr := coverslipRun(t, "import", "csv", table, "--cohort", "some", "--data", data); code != exitDone {
			t.Fatal(code, out, stderr)
		}
		other := studyFile(t, strings.Replace(tinyStudy, "name: tiny", "name: relabelled", 1))
		if done := ranStudy(t, other, "--data", data); done.Made != 10 || done.Kept != 10 {
			t.Errorf("%+v", done)
		}
	})
}

func TestAStudyKilledAtAnyPointGivesTheSameFigures(t *testing.T) {
	file := studyFile(t, tinyStudy)
	whole := database(t)
	bagCohort(t, whole, 16)
	ranStudy(t, file, "--data", whole, "--jobs", "1")
	want := figuresOf(t, whole, "tiny")

	broken := database(t)
	bagCohort(t, broken, 16)
	stops := 0
	for n := 0; ; n++ { // one, two or three stages further each time
		ctx, cancel := context.WithCancel(t.Context())
		code := run(ctx, []string{"study", "run", file, "--data", broken, "--jobs", "1"}, new(bytes.Buffer), &cancelAfter{n: 4 + n%3, cancel: cancel})
		cancel()
		if code == exitDone {
			break
		}
		if stops++; stops > 60 {
			t.Fatal("it never ends")
		}
	}
	if stops < 3 {
		t.Errorf("it was stopped %d times", stops)
	}
	if figuresOf(t, broken, "tiny") != want {
		t.Error("figures differ")
	}
}

func TestARunThatDivergesIsReportedAndTheOthersGoOn(t *testing.T) {
	data := database(t)
	bagCohort(t, data, 16)
	text := strings.Replace(tinyStudy, "{setting: aggregator, values: [mean, trained, untrained]}", "{setting: train.rate, values: [0.002, 1000]}", 1)
	text = strings.Replace(text, "epochs: 3,", "epochs: 8, optimizer: sgd, objective: vicreg, warmup: 0, architecture.kind: mlp,", 1)
	code, out, stderr := coverslipRun(t, "study", "run", studyFile(t, text), "--data", data)
	if code != exitFailed || !strings.Contains(out, "failed: aggregator") || !strings.Contains(out, "lower the learning rate") {
		t.Fatalf("exit %d: %s\n%s", code, out, stderr)
	}
	code, out, _ = coverslipRun(t, "study", "show", "tiny", "--data", data)
	if code != exitDone || !strings.Contains(out, "0.002") || strings.Contains(out, "1000  ") || !strings.Contains(out, "failed: aggregator") {
		t.Errorf("exit %d: %s", code, out)
	}
	dir := t.TempDir()
	if code, _, stderr := coverslipRun(t, "study", "report", "tiny", "--data", data, "--out", dir); code != exitDone {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if raw, err := os.ReadFile(filepath.Join(dir, "report.md")); err != nil || !strings.Contains(string(raw), "What failed") {
		t.Error("the report does not say so", err)
	}
}

// Where a study names nothing but its cohort, its encoder and how long it learns, its embeddings are those of coverslip pretrain and embed.
func TestAStudyThatNamesNothingDoesWhatPretrainAndEmbedDo(t *testing.T) {
	data := dataFolder(t)
	bagCohort(t, data, 8)
	for _, verb := range [][]string{{"pretrain", "--cohort", "some", "--out", "own", "--epochs", "5"}, {"embed", "--cohort", "some", "--aggregator", "own"}} {
		if code, _, stderr := coverslipRun(t, append(verb, "--encoder", "tiny", "--data", data)...); code != exitDone {
			t.Fatalf("%v: exit %d, %s", verb, code, stderr)
		}
	}
	ranStudy(t, studyFile(t, "name: bare\nfixed: {cohort: some, encoder: tiny, train.epochs: 5}\nevaluations: [{kind: geometry}]\n"), "--data", data)
	found, err := filepath.Glob(filepath.Join(data, "blobs", "studies", "embeddings", "*"))
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	f, err := nn.Load(found[0])
	if err != nil {
		t.Fatal(err)
	}
	var ids []coverslip.SlideID
	if err := json.Unmarshal([]byte(f.Text["slides"]), &ids); err != nil {
		t.Fatal(err)
	}
	x, kept := f.Params["embeddings"], vectorsOf(t, data, "own")
	if len(ids) != 8 || len(kept) != 8 {
		t.Errorf("%d and %d slides", len(ids), len(kept))
	}
	for i, id := range ids {
		if !slices.Equal(kept[id], x.Value[i*x.Cols:(i+1)*x.Cols]) {
			t.Errorf("the embedding of %s differs", id)
		}
	}
}

// vectorsOf are the embeddings of a cohort's slides under an aggregator.
func vectorsOf(t *testing.T, data, aggregator string) map[coverslip.SlideID][]float32 {
	t.Helper()
	e := &env{Context: t.Context(), out: os.Stdout, err: os.Stderr}
	p, err := (&dataFlags{Data: data}).connect(e)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	of := map[coverslip.SlideID][]float32{}
	for n, err := range p.DB.Embeddings(t.Context(), storage.EmbeddingFilter{Encoder: "tiny", Aggregator: aggregator}) {
		if err != nil {
			t.Fatal(err)
		}
		of[n.Slide] = n.Vector
	}
	return of
}

// Gated attention learned from labels is judged on the splits of probes, where these choose their strength.
func TestAbmilIsJudgedBesideProbes(t *testing.T) {
	data := dataFolder(t)
	bagCohort(t, data, 16)
	text := strings.Replace(tinyStudy, "[mean, trained, untrained]", "[mean, abmil]", 1)
	text = strings.Replace(text, "folds: 3, c: 1}", "folds: 3}", 1)
	if done := ranStudy(t, studyFile(t, text), "--data", data); done.Made != 1+1+2+2 || len(done.Failed) != 0 {
		t.Errorf("%+v", done)
	}
	places := map[string][]string{}
	for _, line := range strings.Split(figuresOf(t, data, "tiny"), "\n") {
		if f := strings.Split(line, ","); len(f) == 9 && f[5] == "auc" {
			places[f[2]+f[3]] = append(places[f[2]+f[3]], strings.Join(f[4:8], ","))
			if f[2] == "abmil" && f[8] < "0.5" { // classes lie two deviations apart in half of the features
				t.Errorf("abmil tells nothing apart: %s", line)
			}
		}
	}
	if want := places["mean1"]; len(want) != 3 || !slices.Equal(places["abmil1"], want) || !slices.Equal(places["abmil2"], want) {
		t.Errorf("%v", places)
	}
}

func TestStudiesThatCannotBeRun(t *testing.T) {
	data := database(t)
	bagCohort(t, data, 4)
	many := ""
	for i := range 20 {
		many += fmt.Sprintf("  - {name: f%d, levels: [{name: a, set: {}}, {name: b, set: {}}]}\n", i)
	}
	with := func(old, instead string) string { return strings.Replace(tinyStudy, old, instead, 1) }
	for name, c := range map[string]struct{ text, says string }{
		"UnknownFactor":       {with("setting: aggregator", "setting: agregator"), "did you mean aggregator?"},
		"FixedAndVaried":      {with("fixed:\n", "fixed:\n  aggregator: mean\n"), "which fixed sets, too"},
		"AGridOfAMillion":     {with("factors:\n", "factors:\n"+many), "limit"},
		"NoSuchLabel":         {with("label: kind", "label: grade"), "its labels are kind"},
		"NoSuchCohort":        {with("cohort: some", "cohort: none"), "none"},
		"NoSuchEncoder":       {with("encoder: tiny", "encoder: huge"), "huge"},
		"TilesThatNobodyGave": {with("name: tiny\n", "name: tiny\ncohorts: {some: {kind: patients, folder: tiles}}\n"), "--tiles DIR"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := coverslipRun(t, "study", "run", studyFile(t, c.text), "--data", data)
			if code != exitFailed || !strings.Contains(stderr, c.says) {
				t.Errorf("exit %d, no %q in %s", code, c.says, stderr)
			}
		})
	}
	if code, _, stderr := coverslipRun(t, "study", "run", filepath.Join(data, "none.yaml"), "--data", data); code == exitDone || !strings.Contains(stderr, "none.yaml") {
		t.Errorf("a file that is not there: exit %d, %s", code, stderr)
	}
	if code, out, _ := coverslipRun(t, "study", "show", "--data", data); code != exitDone || !strings.Contains(out, "no studies") {
		t.Errorf("something was kept: %s", out)
	}
	for _, verb := range [][]string{{"show", "tiny"}, {"report", "tiny", "--out", t.TempDir()}} {
		if code, _, stderr := coverslipRun(t, append(append([]string{"study"}, verb...), "--data", data)...); code != exitFailed || !strings.Contains(stderr, "coverslip study run FILE") {
			t.Errorf("%v: exit %d, %s", verb, code, stderr)
		}
	}
}

func TestADryRunNeedsNothing(t *testing.T) {
	unset(t)
	files, err := filepath.Glob("../../docs/studies/*.yaml")
	if err != nil || len(files) < 9 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		code, out, stderr := coverslipRun(t, "study", "run", file, "--dry-run")
		if code != exitDone || !strings.Contains(out, "aggregators to train") || !strings.Contains(out, "of disk") || !strings.Contains(out, "are assumed") {
			t.Errorf("%s: exit %d, %s%s", file, code, out, stderr)
		}
	}
	code, out, _ := coverslipRun(t, "--json", "study", "run", files[0], "--dry-run", "--quick")
	var planned studyPlanned
	if err := json.Unmarshal([]byte(out), &planned); code != exitDone || err != nil || planned.Runs < 2 || planned.Seconds <= 0 || len(planned.Assumed) == 0 {
		t.Errorf("exit %d: %s, %v", code, out, err)
	}
}

// A study whose stages are made by workers in processes of their own, one of which is killed while it has one, comes to the
// figures of one that was run alone.
func TestAStudyOnAFleet(t *testing.T) {
	alone := database(t)
	file := studyFile(t, tinyStudy)
	bagCohort(t, alone, 16)
	ranStudy(t, file, "--data", alone)
	want := figuresOf(t, alone, "tiny")

	f := newFleet(t)
	data := t.TempDir()
	bagCohort(t, data, 16)
	if code, _, stderr := coverslipRun(t, "study", "run", file, "--fleet", "--data", dataFolder(t), "--database-url", ""); code == exitDone {
		t.Errorf("where nobody works it ends: %s", stderr)
	}
	// The first worker is killed while it works on a stage, before another one is there to do so.
	first := f.worker("--stages", "1")
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for t.Context().Err() == nil {
			var running int
			if err := f.db.Pool().QueryRow(t.Context(), `select count(*) from river_job where kind = 'study_stage' and state = 'running'`).Scan(&running); err != nil || running > 0 {
				break
			}
		}
		_ = first.cmd.Process.Kill()
		_ = first.cmd.Wait()
		f.worker("--stages", "2")
	}()
	done := ranStudy(t, file, "--fleet", "--data", data)
	<-killed
	if done.Made != 20 || len(done.Failed) != 0 {
		t.Errorf("%+v", done)
	}
	if got := figuresOf(t, data, "tiny"); got != want {
		t.Error("figures differ")
	}
	// A stage that cannot be made is told as such.
	text := strings.Replace(tinyStudy, "{setting: aggregator, values: [mean, trained, untrained]}", "{setting: train.rate, values: [0.002, 1000]}", 1)
	text = strings.Replace(strings.Replace(text, "name: tiny", "name: diverges", 1), "epochs: 3,", "epochs: 8, optimizer: sgd, objective: vicreg, warmup: 0, architecture.kind: mlp,", 1)
	code, out, stderr := coverslipRun(t, "study", "run", studyFile(t, text), "--fleet", "--data", data)
	if code != exitFailed || !strings.Contains(out, "lower the learning rate") {
		t.Errorf("exit %d: %s\n%s", code, out, stderr)
	}
}

// A stage whose worker was killed goes on where the last checkpoint was, on another machine.
func TestAStageIsTakenOverWhereItWas(t *testing.T) {
	const epochs = 200
	text := strings.Replace(tinyStudy, "{setting: aggregator, values: [mean, trained, untrained]}", "{setting: embed.views, values: [2, 4]}", 1)
	text = strings.Replace(strings.Replace(text, "  embed.views: 4\n", "", 1), "epochs: 3,", fmt.Sprintf("epochs: %d,", epochs), 1)
	text = strings.Replace(text, "seeds: 2", "seeds: 1", 1)
	file := studyFile(t, text)
	alone := dataFolder(t)
	bagCohort(t, alone, 16)
	ranStudy(t, file, "--data", alone)
	want := figuresOf(t, alone, "tiny")

	f := newFleet(t)
	data := t.TempDir()
	bagCohort(t, data, 16)
	checkpoints := func() []string {
		found, err := filepath.Glob(filepath.Join(f.blobs, "studies", "checkpoint", "*.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	first := f.worker("--stages", "1")
	ended := make(chan string, 1)
	go func() {
		var log bytes.Buffer
		if code := run(t.Context(), []string{"study", "run", file, "--fleet", "--data", data}, &log, &log); code != exitDone {
			ended <- log.String()
		}
		close(ended)
	}()
	f.until("a checkpoint is in the store", func(context.Context) bool { return len(checkpoints()) > 0 })
	first.kill()
	second := f.worker("--stages", "1")
	if log := <-ended; log != "" {
		t.Fatal(log)
	}
	if got := figuresOf(t, data, "tiny"); got != want {
		t.Error("figures differ")
	}
	if left := checkpoints(); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	if log := second.log.String(); !regexp.MustCompile(`a stage is under way.*aggregator.*`).MatchString(log) || strings.Contains(log, "done=1 of="+strconv.Itoa(epochs)) {
		t.Errorf("it did not go on where it was:\n%s", log)
	}
}
