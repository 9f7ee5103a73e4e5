package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"coverslip"
	"coverslip/mil/report"
	"coverslip/mil/split"
	"coverslip/slidessl"
	"coverslip/storage"
)

// evaluationFlags say on which slides, label and splits something is judged.
type evaluationFlags struct {
	Cohort        string   `required:"" placeholder:"NAME" help:"The slides, with their patients, sites and labels."`
	Label         string   `required:"" placeholder:"COLUMN" help:"The label column with the classes."`
	Splits        string   `type:"path" placeholder:"FILE" group:"Splits" help:"Use the splits of this file (or CLAM's folder), whoever made it; what it does not say of patients is in the cohort."`
	Column        string   `placeholder:"NAME" group:"Splits" help:"The column of --splits with the folds, where there are several."`
	K             int      `short:"k" placeholder:"N" group:"Splits" help:"Folds, by patient and stratified (5, or the protocol's)."`
	Repeats       int      `default:"1" group:"Splits" help:"Other folds, so many times in all."`
	Val           float64  `default:"0" group:"Splits" help:"Share of the training side set apart for choosing."`
	By            string   `enum:"patient,site,none" default:"patient" group:"Splits" help:"What must not stand on two sides: patient, site or none (${default})."`
	PreserveSites bool     `group:"Splits" help:"Whole sites in the folds whose classes are most even."`
	FewShot       []int    `sep:"," placeholder:"K,…" group:"Splits" help:"Train on K slides of each class, --draws times each."`
	FewSlides     []string `sep:"," placeholder:"N,…" group:"Splits" help:"Train on N slides, --draws times each; all is every slide of the folds."`
	Draws         int      `default:"50" group:"Splits" help:"Draws for each K and N, from the training sides of the folds in turn (${default})."`
	Seed          uint64   `default:"0" group:"Splits" help:"Equal seeds give equal results (${default})."`
	Bootstraps    int      `default:"1000" help:"Draws of patients for the intervals (${default})."`
	Out           string   `type:"path" placeholder:"DIR" help:"Write the page with the plots, the figures and the split file there, too."`
	dataFlags
}

// evaluation is labelled slides and the splits that something is judged on. Rows of all slices are the same.
type evaluation struct {
	flags   *evaluationFlags
	encoder string
	slides  []coverslip.SlideID
	rows    []split.Row
	y       []int
	classes []string
	times   []float64 // of survival, which has no classes
	events  []bool
	event   string      // its column
	mean    [][]float32 // embeddings of mean pooling, of the baseline
	splits  []split.Split
	left    []coverslip.LeftOut
	notes   []string
	// baseline is how mean pooling is probed beside what was asked for.
	baseline probeSpec
}

// evaluate finds the slides and makes the splits. event names the column of a survival's events; empty, the
// label is a class. lacks says what else a slide needs and has not, or "".
//
// Whoever judges something then calls judge for each method, and finish, which adds the baselines:
//
//	ev, err := c.evaluate(e, p, c.Encoder, "", lacks)
//	predictions, err := ev.judge(e, "abmil", 1, func(s split.Split) ([]float64, error) { … })
//	err = ev.finish(e, p, coverslip.MILModel, settings, []coverslip.Method{{Name: "abmil"}}, predictions)
func (f *evaluationFlags) evaluate(e *env, p *platform, encoder, event string, lacks func(coverslip.Member) string) (*evaluation, error) {
	ev := &evaluation{flags: f, encoder: encoder, event: event, baseline: probeSpec{Classifier: "logistic"}}
	if err := f.check(); err != nil {
		return nil, err
	}
	if err := ev.gather(e, p, lacks); err != nil {
		return nil, err
	}
	if err := ev.divide(); err != nil {
		return nil, err
	}
	return ev, ev.audit()
}

// class is that of a slide, or what it lacks for having one.
func (ev *evaluation) class(labels map[string]any) (class, lacks string) {
	if ev.event != "" {
		return ev.survival(labels)
	}
	if class = strings.TrimSpace(coverslip.LabelText(labels[ev.flags.Label])); class == "" {
		return "", "no label"
	}
	return class, ""
}

func (f *evaluationFlags) check() error {
	switch {
	case f.Splits != "" && (f.K > 0 || f.Repeats > 1 || f.Val > 0 || f.PreserveSites || f.By != "patient"):
		return &usageError{"--splits brings its own folds: leave out -k, --repeats, --val, --by and --preserve-sites"}
	case f.PreserveSites && (f.Repeats > 1 || f.By == "none"):
		return &usageError{"--preserve-sites keeps sites together in one arrangement: it goes with neither --repeats nor --by none"}
	case f.Draws < 1 || f.Bootstraps < 0 || f.K < 0:
		return &usageError{"--draws, -k and --bootstraps are numbers of times"}
	}
	return nil
}

// gather takes the labelled slides of the cohort, and says which were left out.
func (ev *evaluation) gather(e *env, p *platform, lacks func(coverslip.Member) string) error {
	f := ev.flags
	members, err := p.DB.Members(e, f.Cohort)
	if err != nil {
		return err
	}
	kinds, err := p.DB.LabelKinds(e, f.Cohort)
	if err != nil {
		return err
	}
	if _, ok := kinds[f.Label]; !ok {
		hint := "it has none: coverslip import csv FILE --cohort " + f.Cohort
		if len(kinds) > 0 {
			hint = "its columns are " + strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")
		}
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "read the labels", Path: "cohort " + f.Cohort, Err: fmt.Errorf("there is no label column %q", f.Label), Hint: hint}
	}
	mean, err := embeddings(e, p, f.Cohort, ev.encoder, slidessl.Mean{}.Model().Name)
	if err != nil {
		return err
	}
	called := map[string]int{}
	for _, m := range members {
		called[split.Key(m.Name)]++
	}
	var classes []string
	for _, m := range members {
		name := m.Name
		if called[split.Key(name)] > 1 { // two slides of one name
			name = string(m.Slide)
		}
		class, why := ev.class(m.Labels)
		if why == "" && mean[m.Slide] == nil {
			why = fmt.Sprintf("no embedding under encoder %s and mean pooling, the baseline", ev.encoder)
		}
		if why == "" {
			why = lacks(m)
		}
		if why != "" {
			ev.left = append(ev.left, coverslip.LeftOut{Slide: name, Reason: why})
			continue
		}
		ev.slides, ev.mean = append(ev.slides, m.Slide), append(ev.mean, mean[m.Slide])
		ev.rows = append(ev.rows, split.Row{Slide: name, Patient: m.Patient, Site: m.Site, Label: class})
		classes = append(classes, class)
		if ev.event != "" {
			seen, _ := happened(m.Labels[ev.event])
			time, _ := m.Labels[f.Label].(float64)
			ev.times, ev.events = append(ev.times, time), append(ev.events, seen)
		}
	}
	if len(ev.rows) == 0 {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "read the labels", Path: "cohort " + f.Cohort,
			Err:  fmt.Errorf("none of %s can be used: %s", count(len(members), "slide"), reasons(ev.left)),
			Hint: "coverslip cohorts " + f.Cohort + " shows labels, coverslip slides --cohort " + f.Cohort + " where slides stand"}
	}
	split.FromNames(ev.rows)
	ev.classes = classOrder(classes)
	if len(ev.classes) == 1 {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "read the labels", Path: "cohort " + f.Cohort, Err: fmt.Errorf("all %s are of one class of %s, %q", count(len(ev.rows), "slide"), f.Label, ev.classes[0]), Hint: "there is nothing to tell apart"}
	}
	for _, r := range ev.rows {
		ev.y = append(ev.y, slices.Index(ev.classes, r.Label))
	}
	return nil
}

// reasons counts them, the commonest first.
func reasons(left []coverslip.LeftOut) string {
	n := map[string]int{}
	for _, l := range left {
		n[l.Reason]++
	}
	all := slices.SortedFunc(maps.Keys(n), func(a, b string) int { return cmp.Or(n[b]-n[a], strings.Compare(a, b)) })
	for i, r := range all {
		all[i] = fmt.Sprintf("%d with %s", n[r], r)
	}
	return strings.Join(all, ", ")
}

// classOrder is the different classes: numbers by size, others by letters.
func classOrder(labels []string) []string {
	all := slices.Clone(labels)
	slices.SortFunc(all, func(a, b string) int {
		x, errX := strconv.ParseFloat(a, 64)
		y, errY := strconv.ParseFloat(b, 64)
		if errX == nil && errY == nil && x != y {
			return cmp.Compare(x, y)
		}
		return strings.Compare(a, b)
	})
	return slices.Compact(all)
}

// embeddings are those of a cohort under one encoder and aggregator.
func embeddings(e *env, p *platform, cohort, encoder, aggregator string) (map[coverslip.SlideID][]float32, error) {
	all := map[coverslip.SlideID][]float32{}
	for n, err := range p.DB.Embeddings(e, storage.EmbeddingFilter{Encoder: encoder, Aggregator: aggregator, Cohort: cohort}) {
		if err != nil {
			return nil, err
		}
		all[n.Slide] = n.Vector
	}
	return all, nil
}

// divide makes the splits, or reads them.
func (ev *evaluation) divide() error {
	f := ev.flags
	rng := rand.New(rand.NewPCG(f.Seed, 0))
	var left split.Report
	if f.Splits != "" {
		file, err := split.Read(f.Splits, split.ReadOptions{Column: f.Column})
		if err != nil {
			return err
		}
		if ev.splits, left, err = file.For(ev.rows); err != nil {
			return coverslip.At(f.Splits, err)
		}
	} else {
		by := map[string]split.By{"patient": split.ByPatient, "site": split.BySite, "none": split.BySlide}[f.By]
		if f.PreserveSites {
			by = split.BySitePreserved
		}
		var err error
		ev.splits, left, err = split.KFold(ev.rows, cmp.Or(f.K, 5), f.Repeats, split.Options{By: by, Val: f.Val}, rng)
		if err != nil {
			return coverslip.At("cohort "+f.Cohort, err)
		}
	}
	for _, l := range left.Left {
		ev.left = append(ev.left, coverslip.LeftOut(l))
	}
	ev.notes = append(ev.notes, left.Notes...)
	if b := left.Balance; b != nil {
		ev.notes = append(ev.notes, fmt.Sprintf("classes of whole sites are %.2f patients off an equal share (root mean square); criterion %d, no arrangement is below %d", b.OffEven, b.Criterion, b.Least))
	}
	return ev.few(rng)
}

// few draws small training sides, where that is asked for.
func (ev *evaluation) few(rng *rand.Rand) error {
	f := ev.flags
	if len(f.FewShot)+len(f.FewSlides) == 0 {
		return nil
	}
	folds := ev.splits
	ev.splits = nil
	draw := func(group string, n int, from func([]split.Row, split.Split, int, *rand.Rand) (split.Split, error)) error {
		for d := range f.Draws {
			s, err := from(ev.rows, folds[d%len(folds)], n, rng)
			if err != nil {
				return coverslip.At("cohort "+f.Cohort, err)
			}
			s.Name = fmt.Sprintf("%s/%d", group, d)
			ev.splits = append(ev.splits, s)
		}
		return nil
	}
	for _, k := range f.FewShot {
		if err := draw(fmt.Sprintf("k=%d", k), k, split.FewShot); err != nil {
			return err
		}
	}
	for _, text := range f.FewSlides {
		if text == "all" {
			for i, s := range folds {
				s.Name = fmt.Sprintf("all/%d", i)
				ev.splits = append(ev.splits, s)
			}
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return &usageError{fmt.Sprintf("--few-slides %s: a number of slides, or all", text)}
		}
		if err := draw("n="+text, n, split.Few); err != nil {
			return err
		}
	}
	return nil
}

// audit notes who stands on both sides.
func (ev *evaluation) audit() error {
	a, err := split.Examine(&split.File{Rows: ev.rows, Splits: ev.splits})
	switch {
	case err != nil && (ev.flags.By == "none" || ev.flags.Splits != ""):
		ev.notes = append(ev.notes, "patients are unknown: each slide counts as one, and figures are too good if some have several")
		return nil
	case err != nil:
		return coverslip.At("cohort "+ev.flags.Cohort, err)
	}
	ev.notes = append(ev.notes, a.Verdict())
	return nil
}

// judge predicts the test side of every split, several at once. predict returns probabilities, [T,C], of the
// rows of its test side in order.
func (ev *evaluation) judge(e *env, method string, workers int, predict func(split.Split) ([]float64, error)) ([]coverslip.Prediction, error) {
	of := make([][]coverslip.Prediction, len(ev.splits))
	g, ctx := errgroup.WithContext(e)
	g.SetLimit(workers)
	for n, s := range ev.splits {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			p, err := predict(s)
			if err != nil {
				return coverslip.Doing(fmt.Sprintf("judge %s on split %s", method, s.Name), err)
			}
			test := s.Rows(split.Test)
			width := len(p) / len(test)
			for i, r := range test {
				said := coverslip.Prediction{Method: method, Split: s.Name, Slide: ev.slides[r], Patient: ev.rows[r].Patient, P: p[i*width : (i+1)*width], Truth: ev.y[r]}
				if ev.event != "" {
					said.Time, said.Event = ev.times[r], ev.events[r]
				}
				of[n] = append(of[n], said)
			}
			return nil
		})
	}
	err := g.Wait()
	return slices.Concat(of...), err
}

// majority predicts the classes as frequent as they are on the training side.
func (ev *evaluation) majority(s split.Split) ([]float64, error) {
	if ev.event != "" {
		return make([]float64, len(s.Rows(split.Test))), nil // all alike
	}
	share := make([]float64, len(ev.classes))
	train := s.Rows(split.Train)
	for _, r := range train {
		share[ev.y[r]] += 1 / float64(len(train))
	}
	var p []float64
	for range s.Rows(split.Test) {
		p = append(p, share...)
	}
	return p, nil
}

// finish adds the baselines that are not among the methods, keeps the run and shows it.
func (ev *evaluation) finish(e *env, p *platform, kind coverslip.ModelKind, settings any, methods []coverslip.Method, predictions []coverslip.Prediction) error {
	methods, predictions, err := ev.baselines(e, methods, predictions)
	if err != nil {
		return err
	}
	return ev.keep(e, p, kind, settings, methods, predictions)
}

// baselines adds those that are not among the methods.
func (ev *evaluation) baselines(e *env, methods []coverslip.Method, predictions []coverslip.Prediction) ([]coverslip.Method, []coverslip.Prediction, error) {
	has := func(name string) bool {
		return slices.ContainsFunc(methods, func(m coverslip.Method) bool { return m.Name == name })
	}
	if !has(report.MeanPooling) {
		more, note, err := ev.probe(e, report.MeanPooling, ev.baseline, ev.mean)
		if err != nil {
			return nil, nil, err
		}
		methods = append(methods, coverslip.Method{Name: report.MeanPooling, Baseline: true, Note: note})
		predictions = append(predictions, more...)
	}
	if !has(report.MajorityClass) {
		more, err := ev.judge(e, report.MajorityClass, 1, ev.majority)
		if err != nil {
			return nil, nil, err
		}
		methods = append(methods, coverslip.Method{Name: report.MajorityClass, Baseline: true})
		predictions = append(predictions, more...)
	}
	return methods, predictions, nil
}

// keep writes the run and shows it.
func (ev *evaluation) keep(e *env, p *platform, kind coverslip.ModelKind, settings any, methods []coverslip.Method, predictions []coverslip.Prediction) error {
	run := coverslip.Run{Kind: kind, Cohort: ev.flags.Cohort, Label: ev.flags.Label, Classes: ev.classes, Methods: methods, LeftOut: ev.left, Notes: ev.notes}
	if ev.event != "" {
		run.Classes = nil
	}
	var err error
	if run.Settings, err = json.Marshal(settings); err != nil {
		return err
	}
	var file bytes.Buffer
	if err := split.WriteSides(&file, ev.rows, ev.splits, ev.flags.Label); err != nil {
		return err
	}
	run.Splits = file.String()
	if run.ID, err = report.Identify(run, predictions); err != nil {
		return err
	}
	if _, err := p.DB.PutRun(e, run, predictions); err != nil {
		return err
	}
	if run, err = p.DB.RunByPrefix(e, run.ID); err != nil {
		return err
	}
	return e.showRun(run, predictions, report.Options{Draws: ev.flags.Bootstraps, Seed: ev.flags.Seed}, ev.flags.Out)
}
