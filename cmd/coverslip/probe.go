package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"

	"coverslip"
	"coverslip/mil/probe"
	"coverslip/mil/report"
	"coverslip/mil/split"
	"coverslip/slidessl"
)

type probeCmd struct {
	Aggregator  string  `default:"mean" placeholder:"NAME" help:"Whose embeddings (${default})."`
	Protocol    string  `enum:"kfold,site,fewshot,gigassl,titan,pathobench" default:"kfold" help:"How to judge: kfold, site, fewshot, gigassl, titan or pathobench, as below (${default})."`
	Classifier  string  `enum:"logistic,ridge,knn,means,cox" default:"logistic" help:"What is fitted: logistic regression, ridge, knn (nearest neighbours), means (nearest class mean), or cox for survival (${default})."`
	C           float64 `placeholder:"C" help:"Inverse strength of the penalty, instead of choosing it."`
	Balanced    bool    `help:"Weigh slides so that all classes count alike."`
	Standardise bool    `help:"Scale each feature over the training side."`
	Neighbours  int     `default:"20" help:"Of knn (${default})."`
	Event       string  `placeholder:"COLUMN" help:"Of cox: the label column that says whether the event was seen; --label is the time until it, or until the patient was last seen."`
	evaluationFlags
	encoderFlags
}

// Help is shown by coverslip probe --help.
func (probeCmd) Help() string {
	return `Examples:
  coverslip probe --cohort brca --label subtype --aggregator mean
  coverslip probe --cohort brca --label subtype --aggregator gigassl --protocol fewshot --out report/
  coverslip probe --cohort brca --label subtype --splits brca_histotypes.csv --protocol gigassl
  coverslip probe --cohort brca --classifier cox --label days --event died

Protocols:
  kfold       5 folds; C of 45 values, 1e-5 to 1e6, chosen by folds inside each training side,
              or by the validation side where the splits have one
  site        the same over whole sites whose classes are most even
  fewshot     1, 2, 4, 8 and 16 slides of each class, 50 draws each; C 0.5, classes balanced
  gigassl     10 folds, C 10, classes balanced (Lazard et al. 2023)
  titan       5 folds, a fifth of each training side to choose C of 45 by log-loss (Ding et al. 2024)
  pathobench  5 folds, C 0.5, classes balanced (Zhang et al. 2025)

Folds never part a patient's slides. Mean pooling and the majority class stand beside what was asked
for; intervals are of patients drawn anew. coverslip runs show ID shows it again. docs/EVALUATION.md
says what figures are worth.`
}

// probeSpec is how one probe is fitted.
type probeSpec struct {
	Classifier  string  `json:"classifier"`
	C           float64 `json:"c,omitempty"` // 0: chosen
	Balanced    bool    `json:"balanced,omitempty"`
	Standardise bool    `json:"standardise,omitempty"`
	Neighbours  int     `json:"neighbours,omitempty"`
	MaxSteps    int     `json:"max_steps,omitempty"`
}

// Run judges a probe.
func (c *probeCmd) Run(e *env) error {
	spec, err := c.protocol()
	if err != nil {
		return err
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	asked, err := embeddings(e, p, c.Cohort, c.Encoder, c.Aggregator)
	if err != nil {
		return err
	}
	ev, err := c.evaluate(e, p, c.Encoder, c.Event, func(m coverslip.Member) string {
		if asked[m.Slide] == nil {
			return fmt.Sprintf("no embedding under encoder %s and aggregator %s", c.Encoder, c.Aggregator)
		}
		return ""
	})
	if err != nil {
		return err
	}
	ev.baseline = spec
	settings := struct {
		Protocol   string `json:"protocol"`
		Aggregator string `json:"aggregator"`
		Encoder    string `json:"encoder"`
		Seed       uint64 `json:"seed"`
		probeSpec
	}{c.Protocol, c.Aggregator, c.Encoder, c.Seed, spec}
	name := c.Aggregator
	if name == (slidessl.Mean{}).Model().Name {
		name = report.MeanPooling
	}
	var vectors [][]float32
	for _, id := range ev.slides {
		vectors = append(vectors, asked[id])
	}
	predictions, note, err := ev.probe(e, name, spec, vectors)
	if err != nil {
		return err
	}
	return ev.finish(e, p, coverslip.ProbeModel, settings, []coverslip.Method{{Name: name, Note: note}}, predictions)
}

// protocol fills in what the named one says, where the user does not.
func (c *probeCmd) protocol() (probeSpec, error) {
	s := probeSpec{Classifier: c.Classifier, C: c.C, Balanced: c.Balanced, Standardise: c.Standardise}
	fixed := func(value float64) { s.C, s.Balanced = cmp.Or(s.C, value), true }
	folds := func(k int) {
		if c.Splits == "" {
			c.K = cmp.Or(c.K, k)
		}
	}
	switch c.Protocol {
	case "site":
		c.PreserveSites = c.Splits == ""
	case "fewshot":
		fixed(0.5)
		if len(c.FewShot)+len(c.FewSlides) == 0 {
			c.FewShot = []int{1, 2, 4, 8, 16}
		}
	case "gigassl":
		fixed(10)
		folds(10)
	case "titan":
		s.MaxSteps = 500
		if c.Splits == "" {
			c.Val = cmp.Or(c.Val, 0.2)
		}
	case "pathobench":
		fixed(0.5)
	}
	if c.Classifier == "knn" {
		s.Neighbours = c.Neighbours
	}
	switch {
	case c.C < 0:
		return s, &usageError{"--C must be above 0"}
	case (c.Classifier == "cox") != (c.Event != ""):
		return s, &usageError{"--classifier cox and --event go together"}
	case c.Protocol != "kfold" && c.Protocol != "site" && c.Classifier == "cox":
		return s, &usageError{"--protocol " + c.Protocol + " is for classes, not for survival"}
	}
	return s, nil
}

// probe fits and judges one on every split. The note says what was chosen.
func (ev *evaluation) probe(e *env, name string, spec probeSpec, vectors [][]float32) ([]coverslip.Prediction, string, error) {
	if len(vectors) > 0 && slices.ContainsFunc(vectors, func(v []float32) bool { return len(v) != len(vectors[0]) }) {
		return nil, "", &coverslip.Error{Kind: coverslip.Conflict, Op: "read the embeddings", Path: "cohort " + ev.flags.Cohort, Err: fmt.Errorf("those of %s have different lengths", name), Hint: "embed or import the cohort again with one encoder"}
	}
	f := fitting{ev: ev, spec: spec, vectors: vectors}
	show := e.progressOf("probing "+name, "splits", len(ev.splits))
	predictions, err := ev.judge(e, name, runtime.GOMAXPROCS(0), func(s split.Split) ([]float64, error) {
		p, err := f.split(s)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.done++
		show(f.done)
		return p, err
	})
	return predictions, f.note(), err
}

// fitting is a probe over the splits of an evaluation.
type fitting struct {
	ev      *evaluation
	spec    probeSpec
	vectors [][]float32

	mu         sync.Mutex
	done       int
	chosen     []float64
	atEdge     int
	unfinished int
	tooFew     int // splits with too few slides to choose by
}

// withoutChoice is C where too few slides are there to choose it.
const withoutChoice = 1

// split fits on the training side and predicts the test side.
func (f *fitting) split(s split.Split) ([]float64, error) {
	train, test := s.Rows(split.Train), s.Rows(split.Test)
	x, xTest := f.features(train), f.features(test)
	y := pickInts(f.ev.y, train)
	classes, dim := len(f.ev.classes), len(f.vectors[0])
	o := probe.Options{Balanced: f.spec.Balanced, Standardise: f.spec.Standardise, MaxSteps: f.spec.MaxSteps}
	if f.spec.Classifier == "cox" {
		return f.cox(s, x, xTest, train, o)
	}
	if missing := slices.IndexFunc(f.ev.classes, func(c string) bool {
		return !slices.ContainsFunc(train, func(r int) bool { return f.ev.rows[r].Label == c })
	}); missing >= 0 {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "fit a probe", Err: fmt.Errorf("no training slide is of class %q", f.ev.classes[missing]), Hint: "use fewer folds, or splits that spread the classes"}
	}
	var m probe.Classifier
	var err error
	switch f.spec.Classifier {
	case "knn":
		m, err = probe.FitNeighbours(x, dim, y, classes, min(f.spec.Neighbours, len(train)))
	case "means":
		m, err = probe.FitMeans(x, dim, y, classes)
	case "ridge":
		m, err = probe.FitRidgeClassifier(x, dim, y, classes, cmp.Or(f.spec.C, withoutChoice), o)
	default:
		var c float64
		if c, err = f.strength(s, train, o); err != nil {
			return nil, err
		}
		var l *probe.Linear
		if l, err = probe.FitLogistic(x, dim, y, classes, c, o); err == nil && !l.Converged {
			f.mu.Lock()
			f.unfinished++
			f.mu.Unlock()
		}
		m = l
	}
	if err != nil {
		return nil, err
	}
	p := make([]float64, len(test)*classes)
	m.Predict(p, xTest)
	return p, nil
}

// strength is the C that is given, or chosen by the validation side, or by folds inside the training side.
func (f *fitting) strength(s split.Split, train []int, o probe.Options) (float64, error) {
	if f.spec.C > 0 {
		return f.spec.C, nil
	}
	folds, all, err := f.inside(s, train)
	if err != nil || folds == nil {
		f.mu.Lock()
		f.tooFew++
		f.mu.Unlock()
		return withoutChoice, err
	}
	ch, err := probe.Choose(f.features(all), len(f.vectors[0]), pickInts(f.ev.y, all), len(f.ev.classes), folds, probe.Strengths(), o)
	f.mu.Lock()
	f.chosen = append(f.chosen, ch.C)
	f.unfinished += ch.Unfinished
	if ch.AtEdge {
		f.atEdge++
	}
	f.mu.Unlock()
	return ch.C, err
}

// innerFolds are those that C is chosen by, fewer where a class has fewer patients.
const innerFolds = 5

// inside are the folds to choose by, which number the rows of all; nil where a class has a single patient.
func (f *fitting) inside(s split.Split, train []int) (folds []probe.Fold, all []int, err error) {
	sides := []split.Split{s}
	if len(s.Rows(split.Val)) == 0 {
		k := innerFolds
		for _, n := range split.PatientsOf(f.ev.rows, s) {
			k = min(k, n)
		}
		if k < 2 {
			return nil, nil, nil
		}
		by := split.ByPatient
		if f.ev.flags.By == "none" {
			by = split.BySlide
		}
		rows := slices.Clone(f.ev.rows)
		for i := range rows { // somebody's splits may do without patients
			rows[i].Patient = cmp.Or(rows[i].Patient, "slide "+rows[i].Slide)
		}
		if sides, _, err = split.Inner(rows, s, k, by, rand.New(rand.NewPCG(f.ev.flags.Seed, 1))); err != nil {
			return nil, nil, err
		}
	}
	all = append(slices.Clone(train), s.Rows(split.Val)...)
	place := map[int]int{}
	for i, r := range all {
		place[r] = i
	}
	for _, inner := range sides {
		var fold probe.Fold
		for _, r := range inner.Rows(split.Train) {
			fold.Train = append(fold.Train, place[r])
		}
		for _, r := range inner.Rows(split.Val) {
			fold.Val = append(fold.Val, place[r])
		}
		folds = append(folds, fold)
	}
	return folds, all, nil
}

func (f *fitting) features(rows []int) []float32 {
	x := make([]float32, 0, len(rows)*len(f.vectors[0]))
	for _, r := range rows {
		x = append(x, f.vectors[r]...)
	}
	return x
}

func pickInts(v, rows []int) []int {
	out := make([]int, len(rows))
	for i, r := range rows {
		out[i] = v[r]
	}
	return out
}

func (f *fitting) note() string {
	note := map[string]string{"logistic": "logistic regression", "ridge": "ridge", "knn": fmt.Sprintf("%d nearest neighbours", f.spec.Neighbours), "means": "nearest class mean", "cox": "Cox regression"}[f.spec.Classifier]
	switch {
	case f.spec.C > 0:
		note += fmt.Sprintf(", C %g", f.spec.C)
	case len(f.chosen) > 0:
		slices.Sort(f.chosen)
		note += fmt.Sprintf(", C chosen in each split: %.2g to %.2g, median %.2g", f.chosen[0], f.chosen[len(f.chosen)-1], median(f.chosen))
	}
	if f.tooFew > 0 {
		note += fmt.Sprintf("; C %d in %s with too few patients to choose by", withoutChoice, count(f.tooFew, "split"))
	}
	if f.atEdge > 0 {
		note += fmt.Sprintf("; at an end of the 45 values in %s", count(f.atEdge, "split"))
	}
	if f.unfinished > 0 {
		note += fmt.Sprintf("; %s ended before the tolerance", count(f.unfinished, "fit"))
	}
	return note
}
