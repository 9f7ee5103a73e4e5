package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"coverslip"
	"coverslip/encoder/onnx"
	"coverslip/internal/ingest"
	"coverslip/internal/nn"
	"coverslip/internal/studies"
	"coverslip/slidessl/study"
	"coverslip/storage"
	"coverslip/storage/interop"
	"coverslip/storage/queue"
)

type studyCmd struct {
	Run    studyRunCmd    `cmd:"" help:"Run a study that a file declares; goes on where it was after any interruption."`
	Show   studyShowCmd   `cmd:"" help:"Show the figures of one that was run, or list all."`
	Report studyReportCmd `cmd:"" help:"Write the page of one, its figures as CSV and parquet, and the file that makes it again."`
}

type studyRunCmd struct {
	File     string `arg:"" type:"path" help:"The study; docs/studies has examples."`
	DryRun   bool   `help:"Check it, say what it would do and how long that takes, and leave. Needs neither database nor cohorts."`
	Quick    bool   `help:"The smaller study of the same question that the file describes."`
	Tiles    string `type:"path" placeholder:"DIR" help:"Folder of the cohorts that the file makes of tiles."`
	Jobs     int    `default:"0" placeholder:"N" help:"Stages made at once (one per core)."`
	Fleet    bool   `help:"Let the workers of the queue make the stages (coverslip up, coverslip work), instead of this process."`
	Replace  bool   `help:"Forget a study of this name that said something else."`
	Provider string `env:"COVERSLIP_PROVIDER" enum:"cpu,cuda,tensorrt" default:"cpu" group:"Encoder" help:"What ONNX Runtime computes on: cpu, cuda or tensorrt (${default})."`
	dataFlags
}

// Help is shown by coverslip study run --help.
func (studyRunCmd) Help() string {
	return `Examples:
  coverslip study run docs/studies/map.yaml --dry-run
  coverslip study run docs/studies/map.yaml --quick --tiles ../shared/data
  coverslip study report map --quick --out report/
  coverslip study run docs/studies/map.yaml --fleet    # DATABASE_URL, BLOB_URL: workers anywhere make the stages

The file says what is fixed, what is varied and how embeddings are judged: docs/studies/README.md. Runs share
whatever is the same, and what an earlier study made is found. Stopped at any point, the same command goes on.
A run that diverges is reported, and the others go on.`
}

// studyPlanned is what --dry-run prints with --json.
type studyPlanned struct {
	Study   string        `json:"study"`
	Runs    int           `json:"runs"`
	Stages  []study.Count `json:"stages"`
	Seconds float64       `json:"seconds"`
	Cores   int           `json:"cores"`
	Bytes   int64         `json:"bytes"`
	Assumed []string      `json:"assumed"`
}

// Run plans the study, and makes what is missing.
func (c *studyRunCmd) Run(e *env) error {
	raw, err := os.ReadFile(c.File)
	if err != nil {
		return diskError("read the study", c.File, err)
	}
	f, err := study.Parse(raw)
	if err != nil {
		return coverslip.At(c.File, err)
	}
	m := &studies.Maker{File: f, Tiles: c.Tiles}
	if c.DryRun && c.Data == "" && c.DatabaseURL == "" {
		m.Assume = true
		return c.describe(e, m)
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	c.equip(e, p, m)
	if c.DryRun {
		return c.describe(e, m)
	}
	return c.run(e, p, m, string(raw))
}

func (c *studyRunCmd) describe(e *env, m *studies.Maker) error {
	plan, err := m.File.Plan(e, m, c.Quick, study.DefaultRates)
	if err != nil {
		return err
	}
	out := studyPlanned{Study: plan.Name, Runs: len(plan.Runs), Stages: plan.Counts(), Cores: c.jobs(), Assumed: m.Assumed}
	for _, n := range out.Stages {
		out.Seconds, out.Bytes = out.Seconds+n.Seconds/float64(out.Cores), out.Bytes+n.Bytes
	}
	if e.json {
		return e.emit(out)
	}
	e.printf("%s", plan.Describe(out.Cores))
	for _, a := range m.Assumed {
		e.printf("%s\n", a)
	}
	return nil
}

func (c *studyRunCmd) jobs() int {
	if c.Jobs > 0 {
		return c.Jobs
	}
	return runtime.GOMAXPROCS(0)
}

// equip gives the maker what it needs of the platform.
func (c *studyRunCmd) equip(e *env, p *platform, m *studies.Maker) {
	m.DB, m.Blobs = p.DB, p.Blobs
	flags := func(name string) encoderFlags { return encoderFlags{Encoder: name, Provider: c.Provider} }
	m.Ingest = func(_ context.Context, name string) (*ingest.Ingest, error) {
		in, err := p.finder(e, flags(name))
		if err != nil {
			return nil, err
		}
		in.Spool, err = p.spool()
		return in, err
	}
	m.Open = func(ctx context.Context, name string) (*onnx.Session, error) {
		spec, err := p.spec(ctx, name)
		if err != nil {
			return nil, err
		}
		return p.openEncoder(ctx, spec, onnx.Provider(c.Provider))
	}
	var one sync.Mutex // workers of the queue are started once at a time
	m.Encode = func(ctx context.Context, in *ingest.Ingest, slides []coverslip.Slide, views *coverslip.Views) (err error) {
		one.Lock()
		defer one.Unlock()
		if p.encoder, err = p.spec(ctx, in.Model.Name); err != nil {
			return err
		}
		quiet := *e
		quiet.Context, quiet.out, quiet.json = ctx, e.err, false
		err = (&encodeCmd{Wait: true, Priority: 2}).encode(&quiet, p, in, slides, views)
		var failed *someFailed
		if errors.As(err, &failed) {
			return &coverslip.Error{Kind: coverslip.Invalid, Op: "encode the cohort", Err: fmt.Errorf("%s failed", count(failed.n, "slide")), Hint: "the lines above say why; leave those slides out of the cohort, or mend them"}
		}
		return err
	}
}

func (c *studyRunCmd) run(e *env, p *platform, m *studies.Maker, text string) error {
	started := time.Now()
	name := m.File.Name
	if c.Fleet && p.owner() {
		return &usageError{"--fleet: nobody else works on this folder; start workers with coverslip up, or leave it out"}
	}
	release, err := p.DB.LockStudy(e, name)
	if err != nil {
		return err
	}
	defer release()
	if m.Dir, err = stageFolder(p); err != nil {
		return err
	}
	plan, err := m.File.Plan(e, m, c.Quick, study.DefaultRates)
	if err != nil {
		return err
	}
	kept := storage.Study{Name: name, Quick: c.Quick, Text: text, Command: c.command(), Versions: c.versions(e, m, plan, text)}
	if kept.Plan, err = json.Marshal(plan); err != nil {
		return err
	}
	if err := p.DB.PutStudy(e, kept, studyRuns(plan), c.Replace); err != nil {
		return err
	}
	e.say("%s", plan.Describe(c.jobs()))
	nn.SetWorkers(max(runtime.GOMAXPROCS(0)/c.jobs(), 1)) // stages at once take the cores, which changes no result
	show := newStudyProgress(e, plan)
	m.Progress = show.within
	var maker study.Maker = m
	jobs := c.jobs()
	if c.Fleet {
		q, err := queue.New(p.DB.Pool(), queue.Config{Logger: e.log})
		if err != nil {
			return err
		}
		maker, jobs = fleetMaker{p.DB, q, queue.Stage{Study: name, Quick: c.Quick, Tiles: c.Tiles}}, stagesAtOnce
	}
	outcomes, failed := plan.Execute(e, maker, jobs, show.stage)
	written, err := json.Marshal(outcomes)
	if err == nil {
		err = p.DB.SetStudyOutcomes(context.WithoutCancel(e), name, c.Quick, written)
	}
	if err := errors.Join(failed, err); err != nil {
		return err
	}
	return c.conclude(e, plan, outcomes, time.Since(started))
}

// stageFolder is where stages on their way lie.
func stageFolder(p *platform) (string, error) {
	dir := filepath.Join(p.dir, "studies")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", diskError("make room for the study", dir, err)
	}
	return dir, nil
}

func (c *studyRunCmd) command() string {
	line := "coverslip study run " + filepath.Base(c.File)
	if c.Quick {
		line += " --quick"
	}
	if c.Tiles != "" {
		line += " --tiles DIR"
	}
	return line
}

// versions are what a figure depends on beside the file.
func (c *studyRunCmd) versions(e *env, m *studies.Maker, plan *study.Plan, text string) map[string]string {
	v := map[string]string{"coverslip": coverslip.Version, "go": runtime.Version(), "linear algebra": nn.BLAS(), "machine": machine(), "file": fmt.Sprintf("sha256 %x", sha256.Sum256([]byte(text)))}
	for _, s := range plan.Stages {
		if in, err := m.Ingest(e, s.Settings.Encoder); err == nil { // the plan has asked for it: it is there
			v["encoder "+s.Settings.Encoder] = "sha256 " + in.Model.SHA256
		}
		for _, cohort := range []string{s.Settings.Cohort, s.Settings.Embed.Cohort} {
			if known, err := m.Cohort(e, cohort); err == nil {
				v["cohort "+cohort] = fmt.Sprintf("%s, hash %s", count(known.Slides, "slide"), study.Hash([]string{known.Members, known.Labels}))
			}
		}
	}
	return v
}

// studyRuns are the plan's runs as they are kept.
func studyRuns(plan *study.Plan) (rows []storage.StudyRun) {
	names := map[string]string{}
	for _, s := range plan.Stages {
		if s.Evaluation != nil {
			names[s.Key] = s.Evaluation.Name
		}
	}
	for i, r := range plan.Runs {
		levels := map[string]string{}
		for k, f := range plan.Factors {
			levels[f] = r.Levels[k]
		}
		for _, key := range r.Evaluations {
			rows = append(rows, storage.StudyRun{Run: i + 1, Levels: levels, Seed: r.Seed, Evaluation: names[key], Key: key})
		}
	}
	return rows
}

// slowStage is after how long a stage says how far it is.
const slowStage = 10 * time.Second

// studyProgress tells people how far a study is, line by line: stages are made several at once.
type studyProgress struct {
	e       *env
	mu      sync.Mutex
	started time.Time
	next    time.Time
	guess   map[string]float64 // seconds by key, of stages that are not settled
	left    float64            // all of these
	made    float64            // what was guessed of those that were made
}

func newStudyProgress(e *env, plan *study.Plan) *studyProgress {
	now := time.Now()
	p := &studyProgress{e: e, started: now, next: now.Add(slowStage), guess: map[string]float64{}}
	for _, s := range plan.Stages {
		p.guess[s.Key] = s.Seconds
		p.left += s.Seconds
	}
	return p
}

func (p *studyProgress) stage(done, all int, o study.Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	guess := p.guess[o.Key]
	delete(p.guess, o.Key)
	p.left -= guess
	switch {
	case o.Fate == study.Kept || o.Fate == study.Left:
		return
	case o.Reason != "":
		p.e.say("%d of %d: %s %s %s: %s\n", done, all, o.Kind, o.Key[:8], o.Fate, o.Reason)
	default:
		p.made += guess
		p.e.say("%d of %d: %s %s %s%s\n", done, all, o.Kind, o.Key[:8], o.Fate, p.ahead(time.Since(p.started)))
	}
	p.next = time.Now().Add(slowStage)
}

// ahead says how long the rest will take, at the pace of what was made so far.
func (p *studyProgress) ahead(took time.Duration) string {
	if took < slowStage || p.made == 0 || p.left <= 0 {
		return ""
	}
	left := time.Duration(float64(took) * p.left / p.made)
	if left > 5*time.Minute {
		return fmt.Sprintf(", about %s left", strings.TrimSuffix(left.Round(time.Minute).String(), "0s"))
	}
	return fmt.Sprintf(", about %s left", left.Round(time.Second))
}

func (p *studyProgress) within(s study.Stage, done, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.After(p.next) && done < total {
		p.next = now.Add(slowStage)
		p.e.say("%s %s: %d of %d\n", s.Kind, s.Key[:8], done, total)
	}
}

// studyDone is what a run came to, as printed with --json.
type studyDone struct {
	Study   string          `json:"study"`
	Quick   bool            `json:"quick"`
	Runs    int             `json:"runs"`
	Kept    int             `json:"kept"` // stages that were there
	Made    int             `json:"made"`
	Failed  []study.Outcome `json:"failed"`
	Left    int             `json:"left"` // that stand on what failed
	Seconds float64         `json:"seconds"`
}

func (c *studyRunCmd) conclude(e *env, plan *study.Plan, outcomes []study.Outcome, took time.Duration) error {
	d := studyDone{Study: plan.Name, Quick: c.Quick, Runs: len(plan.Runs), Failed: []study.Outcome{}, Seconds: took.Seconds()}
	for _, o := range outcomes {
		switch o.Fate {
		case study.Kept:
			d.Kept++
		case study.Made:
			d.Made++
		case study.Failed:
			d.Failed = append(d.Failed, o)
		case study.Left:
			d.Left++
		}
	}
	if e.json {
		if err := e.emit(d); err != nil {
			return err
		}
	} else {
		quick := ""
		if c.Quick {
			quick = " --quick"
		}
		e.printf("study %s: %s, %s made and %d there already, in %s\n", d.Study, count(d.Runs, "run"), count(d.Made, "stage"), d.Kept, took.Round(time.Second))
		for _, o := range d.Failed {
			e.printf("failed: %s %s: %s\n", o.Kind, o.Key[:8], o.Reason)
		}
		if d.Left > 0 {
			e.printf("%s of what stands on them were left\n", count(d.Left, "stage"))
		}
		e.printf("see it: coverslip study show %s%s\nthe page: coverslip study report %s%s --out DIR\n", d.Study, quick, d.Study, quick)
	}
	if len(d.Failed) > 0 {
		return &someFailed{len(d.Failed)}
	}
	return nil
}

// keptStudy is a study with its figures, read back.
type keptStudy struct {
	storage.Study
	file     *study.File
	plan     *study.Plan
	outcomes []study.Outcome
	rows     []storage.StudyResult
	results  study.Results
}

func readStudy(e *env, p *platform, name string, quick bool) (*keptStudy, error) {
	s, err := p.DB.Study(e, name, quick)
	if coverslip.KindOf(err) == coverslip.NotFound {
		if _, other := p.DB.Study(e, name, !quick); other == nil {
			how := "with --quick alone: add --quick"
			if quick {
				how = "without --quick alone: leave it out"
			}
			err = &coverslip.Error{Kind: coverslip.NotFound, Op: "look up the study", Path: "study " + name, Err: errors.New("it was run " + how)}
		}
	}
	if err != nil {
		return nil, err
	}
	k := &keptStudy{Study: s, plan: new(study.Plan), results: study.Results{}}
	if k.file, err = study.Parse([]byte(s.Text)); err == nil {
		err = errors.Join(json.Unmarshal(s.Plan, k.plan), json.Unmarshal(s.Outcomes, &k.outcomes))
	}
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Conflict, Op: "read the study", Path: "study " + name, Err: err, Hint: "another version of coverslip wrote it: run it again with --replace"}
	}
	if k.rows, err = p.DB.StudyResults(e, name, quick); err != nil {
		return nil, err
	}
	first := map[string]int{} // runs share evaluations
	for _, r := range k.rows {
		if _, there := first[r.Key]; !there {
			first[r.Key] = r.Run
		}
		if first[r.Key] == r.Run {
			k.results[r.Key] = append(k.results[r.Key], study.Figure{Name: r.Figure, Group: r.Training, Split: r.Fold, Value: r.Value})
		}
	}
	return k, nil
}

type studyShowCmd struct {
	Name  string `arg:"" optional:"" help:"Its name. None: list all."`
	Quick bool   `help:"The one that was run with --quick."`
	dataFlags
}

// Help is shown by coverslip study show --help.
func (studyShowCmd) Help() string {
	return `Examples:
  coverslip study show
  coverslip study show map --quick

Figures are means over seeds, with their deviation; of each seed the mean over splits. coverslip study report
has the differences with their intervals. It may be asked while the study runs.`
}

// studyLine is a row of the table with --json, where numbers that are not there are null.
type studyLine struct {
	Levels     map[string]string `json:"levels"`
	Evaluation string            `json:"evaluation"`
	Figure     string            `json:"figure"`
	Training   string            `json:"training,omitempty"`
	Mean       *float64          `json:"mean"`
	SD         *float64          `json:"sd"`
	Seeds      int               `json:"seeds"`
	Missing    int               `json:"missing,omitempty"`
}

// Run shows one study, or all.
func (c *studyShowCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	if c.Name == "" {
		return c.list(e, p)
	}
	k, err := readStudy(e, p, c.Name, c.Quick)
	if err != nil {
		return err
	}
	lines := k.plan.Table(k.results)
	if !e.json {
		e.printf("study %s: %s; last changed %s\n", k.Name, count(len(k.plan.Runs), "run"), k.Changed.Format("2006-01-02 15:04"))
		if q := k.file.Question; q != "" {
			e.printf("%s\n", q)
		}
		e.printf("\n")
	}
	rows := []string{strings.Join(append(slices.Clone(k.plan.Factors), "evaluation", "figure", "training", "mean ± sd", "seeds"), "\t")}
	for _, l := range lines {
		if e.json {
			out := studyLine{Levels: map[string]string{}, Evaluation: l.Evaluation, Figure: l.Figure, Training: l.Group, Mean: number(l.Mean), SD: number(l.SD), Seeds: l.Seeds, Missing: l.Missing}
			for i, f := range k.plan.Factors {
				out.Levels[f] = l.Levels[i]
			}
			if err := e.emit(out); err != nil {
				return err
			}
			continue
		}
		seeds := fmt.Sprint(l.Seeds)
		if l.Missing > 0 {
			seeds += fmt.Sprintf(" (%d missing)", l.Missing)
		}
		rows = append(rows, strings.Join(append(slices.Clone(l.Levels), l.Evaluation, l.Figure, l.Group, study.MeanSD(l), seeds), "\t"))
	}
	if e.json {
		return nil
	}
	if len(lines) == 0 {
		e.printf("no figures yet\n")
		return nil
	}
	e.table(rows...)
	for _, o := range k.outcomes {
		if o.Fate == study.Failed {
			e.printf("failed: %s %s: %s\n", o.Kind, o.Key[:8], o.Reason)
		}
	}
	return nil
}

// number is a pointer to v, nil where it is none.
func number(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

func (c *studyShowCmd) list(e *env, p *platform) error {
	all, err := p.DB.Studies(e)
	if err != nil {
		return err
	}
	rows := []string{"study\t\tchanged"}
	for _, s := range all {
		if e.json {
			if err := e.emit(map[string]any{"study": s.Name, "quick": s.Quick, "created": s.Created, "changed": s.Changed, "command": s.Command}); err != nil {
				return err
			}
		}
		quick := ""
		if s.Quick {
			quick = "--quick"
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s", s.Name, quick, s.Changed.Format("2006-01-02 15:04")))
	}
	switch {
	case e.json:
	case len(all) == 0:
		e.printf("no studies; coverslip study run FILE runs one\n")
	default:
		e.table(rows...)
	}
	return nil
}

type studyReportCmd struct {
	Name  string `arg:"" help:"Its name; coverslip study show lists them."`
	Out   string `type:"path" required:"" placeholder:"DIR" help:"Write report.html, report.md, results.csv, results.parquet and study.yaml there."`
	Quick bool   `help:"The one that was run with --quick."`
	Draws int    `default:"2000" help:"For the intervals (${default})."`
	dataFlags
}

// Help is shown by coverslip study report --help.
func (studyReportCmd) Help() string {
	return `Example:
  coverslip study report map --quick --out report/

The page needs nothing else: tables, differences with intervals that are wide enough for their number, plots,
the file, versions and hashes, and the command that makes it again.`
}

// Run writes the files.
func (c *studyReportCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	k, err := readStudy(e, p, c.Name, c.Quick)
	if err != nil {
		return err
	}
	if len(k.rows) == 0 {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "report", Path: "study " + c.Name, Err: errors.New("it has no figures yet"), Hint: "run it: " + k.Command}
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil { //nolint:gosec // results for everybody, like any program's
		return diskError("write the report", c.Out, err)
	}
	r := study.Report{File: k.file, Text: k.Text, Plan: k.plan, Results: k.results, Outcomes: k.outcomes, Versions: k.Versions, Command: k.Command,
		Made: "Run " + k.Changed.Format("2006-01-02"), Draws: c.Draws}
	page, err := r.HTML()
	if err != nil {
		return err
	}
	table := &interop.Results{Study: k.Name, Factors: k.plan.Factors, Rows: k.rows}
	written := func(text []byte) func(io.Writer) error {
		return func(w io.Writer) error { _, err := w.Write(text); return err }
	}
	for name, write := range map[string]func(io.Writer) error{"report.html": written(page), "report.md": written([]byte(r.Markdown())), "study.yaml": written([]byte(k.Text)),
		"results.csv": table.WriteCSV, "results.parquet": table.WriteParquet} {
		if err := publish(filepath.Join(c.Out, name), write); err != nil {
			return err
		}
	}
	if e.json {
		return e.emit(map[string]any{"study": k.Name, "quick": k.Quick, "report": filepath.Join(c.Out, "report.html"), "results": len(k.rows)})
	}
	e.printf("wrote %s: %s\n", filepath.Join(c.Out, "report.html"), count(len(k.rows), "result"))
	return nil
}
