package study

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"coverslip"
	"coverslip/mil/metric"
	"coverslip/mil/probe"
	"coverslip/mil/split"
	"coverslip/slidessl/measure"
)

// Embedded are the slides of a cohort with their embeddings.
type Embedded struct {
	X    []float32 // [n,Dim]
	Dim  int
	Rows []split.Row // Label is the class of the evaluation's label, "" where unknown
	// Columns are values of other columns, one a slide, that the evaluation reads (Evaluation.Columns).
	Columns map[string][]string
	// Again are embeddings of the same slides from other views, [n,Dim]: alignment is of these pairs. Nil: none.
	Again []float32
	// Learner, if set, takes the place of embeddings and of the probe on them.
	Learner Learner
}

// Learner learns slides' classes from their bags. Equal arguments give equal predictions.
type Learner interface {
	// Choices is how many settings it may be trained with; the first is that where nothing can be chosen by.
	Choices() int
	// Learn trains on the slides train, numbered as Embedded's, of the classes y, and gives the probability of each class
	// for the slides test, [len(test),classes].
	Learn(choice int, train, y []int, classes int, test []int) ([]float64, error)
}

// Figure is one number of an evaluation: what was measured, on which split.
type Figure struct {
	Name string `json:"name"` // auc, balanced_accuracy, alignment, …
	// Group is how many slides were learned from: "all", "n=50", "k=4"; "" where nothing is learned.
	Group string `json:"group,omitempty"`
	// Split is the same for all runs of a study that judge the same slides, so that figures compare in pairs.
	Split string  `json:"split,omitempty"`
	Value float64 `json:"value"` // NaN where a test side has one class
}

// Judge measures embeddings as an evaluation says. Equal arguments give equal figures.
func Judge(e Evaluation, d Embedded) ([]Figure, error) {
	if len(d.X) != len(d.Rows)*d.Dim || d.Again != nil && len(d.Again) != len(d.X) {
		panic("study: one embedding a slide")
	}
	if e.Where != "" {
		if d = d.only(d.meets(e.Where)); len(d.Rows) < 2 {
			return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "judge embeddings", Err: fmt.Errorf("%d slides have %s", len(d.Rows), e.Where), Hint: "look at the cohort's columns"}
		}
	}
	switch e.Kind {
	case "geometry":
		return geometry(d), nil
	case "graph":
		return graph(e, d)
	case "ood":
		return strange(e, d)
	}
	var keep []int
	var classes []string
	for i, r := range d.Rows {
		if r.Label != "" {
			keep = append(keep, i)
			classes = append(classes, r.Label)
		}
	}
	slices.Sort(classes)
	classes = slices.Compact(classes)
	if len(classes) < 2 {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "judge embeddings by " + e.Label, Err: fmt.Errorf("%d slides have %d classes of it", len(keep), len(classes)), Hint: "give slides of both"}
	}
	j := judge{Evaluation: e, dim: d.Dim, classes: len(classes), learner: d.Learner}
	for _, i := range keep {
		j.rows, j.at = append(j.rows, d.Rows[i]), append(j.at, i)
		j.x = append(j.x, d.X[i*d.Dim:(i+1)*d.Dim]...)
		j.y = append(j.y, slices.Index(classes, d.Rows[i].Label))
	}
	if e.Kind == "collapse" {
		return j.collapse()
	}
	return j.learn(d)
}

// meets lists the slides with a value of a column.
func (d Embedded) meets(condition string) (at []int) {
	column, value, _ := strings.Cut(condition, "=")
	for i, v := range d.Columns[column] {
		if v == value {
			at = append(at, i)
		}
	}
	return at
}

// only is some of the slides.
func (d Embedded) only(at []int) Embedded {
	some := Embedded{X: d.take(at), Dim: d.Dim, Columns: map[string][]string{}}
	for _, i := range at {
		some.Rows = append(some.Rows, d.Rows[i])
		for column, values := range d.Columns {
			some.Columns[column] = append(some.Columns[column], values[i])
		}
		if d.Again != nil {
			some.Again = append(some.Again, d.Again[i*d.Dim:(i+1)*d.Dim]...)
		}
	}
	return some
}

// take are the embeddings of some slides.
func (d Embedded) take(at []int) (x []float32) {
	for _, i := range at {
		x = append(x, d.X[i*d.Dim:(i+1)*d.Dim]...)
	}
	return x
}

func geometry(d Embedded) []Figure {
	figures := []Figure{{Name: "uniformity", Value: measure.Uniformity(d.X, d.Dim)}, {Name: "effective_rank", Value: measure.EffectiveRank(d.X, d.Dim)}}
	if d.Again != nil {
		figures = append(figures, Figure{Name: "alignment", Value: measure.Alignment(d.X, d.Again, d.Dim)})
	}
	return figures
}

// graph looks at the graph of non-negative kernel regression.
func graph(e Evaluation, d Embedded) ([]Figure, error) {
	if len(d.Rows) <= e.K {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "look at neighbours", Err: fmt.Errorf("%d slides have no %d neighbours each", len(d.Rows), e.K), Hint: "lower k"}
	}
	m := measure.NeighbourGraph(d.X, d.Again, d.Dim, e.K)
	figures := []Figure{{Name: "neighbours", Value: m.Neighbours}, {Name: "diameter", Value: m.Diameter}, {Name: "affinity", Value: m.Affinity}}
	if d.Again != nil {
		figures = append(figures, Figure{Name: "equivariance", Value: m.Equivariance})
	}
	return figures, nil
}

// strangeShare is the variance that components of usual embeddings hold, and strangePass the usual ones that a gate lets
// pass.
const strangeShare, strangePass = 0.9, 0.95

// strange fits scores to the embeddings of usual slides, and asks how well they tell other usual ones from strange ones:
// those of each other value of the label.
func strange(e Evaluation, d Embedded) (figures []Figure, err error) {
	fit, usual := d.meets(e.Train), d.meets(e.Test)
	kinds := map[string][]int{}
	for i, r := range d.Rows {
		if r.Label != "" && !slices.Contains(fit, i) && !slices.Contains(usual, i) {
			kinds[r.Label] = append(kinds[r.Label], i)
		}
	}
	if len(fit) <= e.K || len(usual) == 0 || len(kinds) == 0 {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "look for strange slides", Err: fmt.Errorf("there are %d usual slides to learn from, %d others and %d kinds of strange ones", len(fit), len(usual), len(kinds)), Hint: "look at the cohort's columns"}
	}
	score, err := scorers(e, d, fit)
	if err != nil {
		return nil, err
	}
	for _, s := range score {
		normal := s.of(d.take(usual))
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			odd := s.of(d.take(kinds[kind]))
			group := s.name + ", " + kind
			figures = append(figures, Figure{"auroc", group, "", metric.AUC(append(make([]int, len(normal)), ones(len(odd))...), append(slices.Clone(normal), odd...))},
				Figure{"fpr95", group, "", measure.Passed(normal, odd, strangePass)})
		}
	}
	return figures, nil
}

func ones(n int) []int {
	v := make([]int, n)
	for i := range v {
		v[i] = 1
	}
	return v
}

// scoring is one score of strangeness.
type scoring struct {
	name string
	of   func(x []float32) []float64
}

// scorers are fitted to some slides; those that need a classifier are there where the evaluation names its classes.
func scorers(e Evaluation, d Embedded, fit []int) (all []scoring, err error) {
	x := d.take(fit)
	add := func(name string, s measure.Scorer) {
		all = append(all, scoring{name, func(x []float32) []float64 {
			scores := make([]float64, len(x)/d.Dim)
			s.Score(scores, x)
			return scores
		}})
	}
	mahalanobis, err := measure.FitMahalanobis(x, d.Dim, nil)
	if err != nil {
		return nil, err
	}
	residual, err := measure.FitResidual(x, d.Dim, strangeShare)
	if err != nil {
		return nil, err
	}
	add("mahalanobis", mahalanobis)
	add("nearest", measure.FitNearest(x, d.Dim, e.K))
	add("pca residual", residual)
	if e.Classes == "" {
		return all, nil
	}
	var classes, texts []string
	for _, i := range fit {
		texts = append(texts, d.Columns[e.Classes][i])
	}
	classes = slices.Compact(slices.Sorted(slices.Values(texts)))
	y := make([]int, len(texts))
	for i, t := range texts {
		y[i] = slices.Index(classes, t)
	}
	l, err := probe.FitLogistic(x, d.Dim, y, len(classes), withoutChoice, probe.Options{Balanced: true, Standardise: true})
	if err != nil {
		return nil, err
	}
	odds := func(x []float32) (p []float64) {
		p = make([]float64, len(x)/d.Dim*len(classes))
		l.Predict(p, x)
		return p
	}
	return append(all, scoring{"max softmax", func(x []float32) []float64 {
		scores := make([]float64, len(x)/d.Dim)
		measure.Unsure(scores, odds(x), len(classes))
		return scores
	}}, scoring{"energy", func(x []float32) []float64 {
		scores := make([]float64, len(x)/d.Dim)
		measure.Energy(scores, logits(l, x), len(classes))
		return scores
	}}), nil
}

// logits are those of each class, whose softmax is what l predicts: of two classes half the margin against and for.
func logits(l *probe.Linear, x []float32) []float64 {
	k := len(l.Intercept)
	margins := make([]float64, len(x)/(len(l.Weight)/k)*k)
	l.Margins(margins, x)
	if k > 1 {
		return margins
	}
	both := make([]float64, 0, 2*len(margins))
	for _, m := range margins {
		both = append(both, -m/2, m/2)
	}
	return both
}

type judge struct {
	Evaluation
	dim, classes int
	rows         []split.Row
	at           []int // of Embedded
	x            []float32
	y            []int
	learner      Learner
}

// collapse has a linear classifier on all slides for NC3 and NC4, with little penalty, as the measures are of a network
// that was trained to the end.
func (j judge) collapse() ([]Figure, error) {
	l, err := probe.FitLogistic(j.x, j.dim, j.y, j.classes, 1, probe.Options{Balanced: true})
	if err != nil {
		return nil, err
	}
	weight, bias := l.Weight, l.Intercept
	if j.classes == 2 && len(bias) == 1 { // one row for the second class: half of it against half of its opposite
		weight, bias = make([]float64, 2*j.dim), []float64{-l.Intercept[0] / 2, l.Intercept[0] / 2}
		for k, v := range l.Weight {
			weight[k], weight[j.dim+k] = -v/2, v/2
		}
	}
	c := measure.NeuralCollapse(j.x, j.dim, j.y, weight, bias)
	return []Figure{{Name: "nc1", Value: c.Within}, {Name: "nc2_norms", Value: c.Norms}, {Name: "nc2_angles", Value: c.Angles},
		{Name: "nc3", Value: c.Duality}, {Name: "nc4", Value: c.Disagreement}}, nil
}

// sides are the folds, or the one split that columns say.
func (j judge) sides(d Embedded, by split.By, rng *rand.Rand) ([]split.Split, error) {
	if j.Train == "" {
		folds, _, err := split.KFold(j.rows, j.Folds, 1, split.Options{By: by}, rng)
		return folds, err
	}
	s := split.Split{Name: "0", Side: make([]split.Side, len(j.rows))}
	train, test := d.meets(j.Train), d.meets(j.Test)
	for i, at := range j.at {
		switch {
		case slices.Contains(train, at):
			s.Side[i] = split.Train
		case slices.Contains(test, at):
			s.Side[i] = split.Test
		}
	}
	for side, condition := range map[split.Side]string{split.Train: j.Train, split.Test: j.Test} {
		if len(s.Rows(side)) == 0 {
			return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "divide the slides", Err: fmt.Errorf("none with a %s has %s", j.Label, condition), Hint: "look at the cohort's columns"}
		}
	}
	return []split.Split{s}, nil
}

// uneven draws n training slides, each of another patient, of which the class with more patients has ratio times those of
// the other.
func (j judge) uneven(outer split.Split, n int, ratio float64, rng *rand.Rand) (split.Split, error) {
	s := split.Split{Side: slices.Clone(outer.Side)}
	few := max(int(math.Round(float64(n)/(1+ratio))), 1)
	have := split.PatientsOf(j.rows, outer)
	rare := "" // the first of two that are as many
	for _, label := range slices.Sorted(maps.Keys(have)) {
		if rare == "" || have[label] < have[rare] {
			rare = label
		}
	}
	want := map[string]int{}
	for label := range have {
		want[label] = n - few
	}
	want[rare] = few
	taken := map[string]bool{}
	train := outer.Rows(split.Train)
	rng.Shuffle(len(train), func(i, k int) { train[i], train[k] = train[k], train[i] })
	for _, r := range train {
		s.Side[r] = split.Out
		patient, label := j.rows[r].Patient, j.rows[r].Label
		if want[label] > 0 && !taken[patient] {
			s.Side[r], taken[patient] = split.Train, true
			want[label]--
		}
	}
	for label, missing := range want {
		if missing > 0 {
			return s, &coverslip.Error{Kind: coverslip.Invalid, Op: "draw uneven classes", Err: fmt.Errorf("%d slides at 1:%g: %d patients of %s %s are missing", n, ratio, missing, j.Label, label), Hint: "take fewer slides"}
		}
	}
	return s, nil
}

// learn fits on the training sides, and judges on the test sides.
func (j judge) learn(d Embedded) (figures []Figure, err error) {
	by := map[string]split.By{"": split.ByPatient, "patient": split.ByPatient, "site": split.BySite, "none": split.BySlide}[j.By]
	rng := rand.New(rand.NewPCG(j.Seed, 0))
	folds, err := j.sides(d, by, rng)
	if err != nil {
		return nil, err
	}
	one := func(group string, s split.Split) error {
		auc, accuracy, err := j.fit(s, by)
		if err != nil {
			return coverslip.Doing(fmt.Sprintf("judge embeddings by %s, %s, split %s", j.Label, group, s.Name), err)
		}
		figures = append(figures, Figure{"auc", group, s.Name, auc}, Figure{"balanced_accuracy", group, s.Name, accuracy})
		return nil
	}
	draw := func(group string, n int, from func([]split.Row, split.Split, int, *rand.Rand) (split.Split, error)) error {
		for d := range j.Draws {
			s, err := from(j.rows, folds[d%len(folds)], n, rng)
			if err != nil {
				return err
			}
			s.Name = strconv.Itoa(d)
			if err := one(group, s); err != nil {
				return err
			}
		}
		return nil
	}
	for _, n := range j.Slides {
		for _, ratio := range j.Imbalance {
			if err := draw(fmt.Sprintf("n=%d, 1:%g", n, ratio), n, func(_ []split.Row, outer split.Split, n int, rng *rand.Rand) (split.Split, error) {
				return j.uneven(outer, n, ratio, rng)
			}); err != nil {
				return nil, err
			}
		}
		if len(j.Imbalance) > 0 {
			continue
		}
		if err := draw(fmt.Sprintf("n=%d", n), n, split.Few); err != nil {
			return nil, err
		}
	}
	for _, k := range j.Shots {
		if err := draw(fmt.Sprintf("k=%d", k), k, split.FewShot); err != nil {
			return nil, err
		}
	}
	if len(j.Slides)+len(j.Shots) == 0 {
		for _, s := range folds {
			if err := one("all", s); err != nil {
				return nil, err
			}
		}
	}
	return figures, nil
}

func (j judge) pick(rows []int) (x []float32, y []int) {
	for _, r := range rows {
		x = append(x, j.x[r*j.dim:(r+1)*j.dim]...)
		y = append(y, j.y[r])
	}
	return x, y
}

// fit learns on one split and judges: AUC (of several classes the mean of each against the rest), balanced accuracy.
func (j judge) fit(s split.Split, by split.By) (auc, accuracy float64, err error) {
	predict := j.probed
	if j.learner != nil {
		predict = j.supervised
	}
	p, err := predict(s, by)
	if err != nil {
		return 0, 0, err
	}
	_, truth := j.pick(s.Rows(split.Test))
	predicted := make([]int, len(truth))
	second := make([]float64, len(truth))
	for i := range truth {
		row := p[i*j.classes : (i+1)*j.classes]
		second[i] = row[1]
		for c, v := range row {
			if v > row[predicted[i]] {
				predicted[i] = c
			}
		}
	}
	if j.classes == 2 {
		auc = metric.AUC(truth, second)
	} else {
		auc = metric.AUCOneVsRest(make([]float64, j.classes), truth, p)
	}
	for c := range j.classes {
		if !slices.Contains(truth, c) {
			return auc, math.NaN(), nil
		}
	}
	return auc, metric.BalancedAccuracy(truth, predicted, j.classes), nil
}

// probed are the probabilities that a probe gives the test side, [n,classes].
func (j judge) probed(s split.Split, by split.By) ([]float64, error) {
	x, y := j.pick(s.Rows(split.Train))
	var m probe.Classifier
	var err error
	if j.Kind == "knn" {
		m, err = probe.FitNeighbours(x, j.dim, y, j.classes, min(j.K, len(y)))
	} else {
		c := j.C
		if c == 0 {
			if c, err = j.strength(s, by); err != nil {
				return nil, err
			}
		}
		m, err = probe.FitLogistic(x, j.dim, y, j.classes, c, j.options())
	}
	if err != nil {
		return nil, err
	}
	test, truth := j.pick(s.Rows(split.Test))
	p := make([]float64, len(truth)*j.classes)
	m.Predict(p, test)
	return p, nil
}

func (j judge) options() probe.Options {
	return probe.Options{Balanced: true, Standardise: j.Standardise}
}

// withoutChoice is C where a class has a single patient, and none can be chosen.
const withoutChoice = 1

// innerFolds are those that a probe is chosen by, and learnerFolds those of learners, which take longer.
const innerFolds, learnerFolds = 5, 3

// inner are up to k folds inside the training side; none where a class has a single patient.
func (j judge) inner(s split.Split, by split.By, k int) ([]split.Split, error) {
	for _, n := range split.PatientsOf(j.rows, s) {
		k = min(k, n)
	}
	if k < 2 {
		return nil, nil
	}
	if by == split.BySite {
		by = split.ByPatient // inside, sites may be too few
	}
	folds, _, err := split.Inner(j.rows, s, k, by, rand.New(rand.NewPCG(j.Seed, 1)))
	return folds, err
}

// strength is C, chosen inside the training side.
func (j judge) strength(s split.Split, by split.By) (float64, error) {
	inner, err := j.inner(s, by, innerFolds)
	if err != nil || inner == nil {
		return withoutChoice, err
	}
	train := s.Rows(split.Train)
	place := map[int]int{}
	for i, r := range train {
		place[r] = i
	}
	var folds []probe.Fold
	for _, in := range inner {
		var f probe.Fold
		for _, r := range in.Rows(split.Train) {
			f.Train = append(f.Train, place[r])
		}
		for _, r := range in.Rows(split.Val) {
			f.Val = append(f.Val, place[r])
		}
		folds = append(folds, f)
	}
	x, y := j.pick(train)
	choice, err := probe.Choose(x, j.dim, y, j.classes, folds, probe.Strengths(), j.options())
	return choice.C, err
}

// supervised are the probabilities that the learner gives the test side, with the choice that has the least log-loss inside
// the training side.
func (j judge) supervised(s split.Split, by split.By) ([]float64, error) {
	learn := func(choice int, s split.Split, side split.Side) ([]float64, []int, error) {
		train, test := s.Rows(split.Train), s.Rows(side)
		_, y := j.pick(train)
		_, truth := j.pick(test)
		p, err := j.learner.Learn(choice, j.slides(train), y, j.classes, j.slides(test))
		return p, truth, err
	}
	inner, err := j.inner(s, by, learnerFolds)
	if err != nil {
		return nil, err
	}
	best, least := 0, math.Inf(1)
	for choice := range j.learner.Choices() {
		loss := 0.0
		for _, in := range inner {
			p, truth, err := learn(choice, in, split.Val)
			if err != nil {
				return nil, err
			}
			for i, c := range truth {
				loss -= math.Log(max(p[i*j.classes+c], 1e-12))
			}
		}
		if loss < least {
			best, least = choice, loss
		}
	}
	p, _, err := learn(best, s, split.Test)
	return p, err
}

// slides are rows as Embedded numbers them.
func (j judge) slides(rows []int) (at []int) {
	for _, r := range rows {
		at = append(at, j.at[r])
	}
	return at
}
