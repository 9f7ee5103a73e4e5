package study

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"

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
	// Again are embeddings of the same slides from other views, [n,Dim]: alignment is of these pairs. Nil: none.
	Again []float32
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
	if e.Kind == "geometry" {
		return geometry(d), nil
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
	j := judge{Evaluation: e, dim: d.Dim, classes: len(classes)}
	for _, i := range keep {
		j.rows = append(j.rows, d.Rows[i])
		j.x = append(j.x, d.X[i*d.Dim:(i+1)*d.Dim]...)
		j.y = append(j.y, slices.Index(classes, d.Rows[i].Label))
	}
	if e.Kind == "collapse" {
		return j.collapse()
	}
	return j.learn()
}

func geometry(d Embedded) []Figure {
	figures := []Figure{{Name: "uniformity", Value: measure.Uniformity(d.X, d.Dim)}, {Name: "effective_rank", Value: measure.EffectiveRank(d.X, d.Dim)}}
	if d.Again != nil {
		figures = append(figures, Figure{Name: "alignment", Value: measure.Alignment(d.X, d.Again, d.Dim)})
	}
	return figures
}

type judge struct {
	Evaluation
	dim, classes int
	rows         []split.Row
	x            []float32
	y            []int
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

// learn fits on the training sides, and judges on the test sides.
func (j judge) learn() (figures []Figure, err error) {
	by := map[string]split.By{"patient": split.ByPatient, "site": split.BySite, "none": split.BySlide}[j.By]
	rng := rand.New(rand.NewPCG(j.Seed, 0))
	folds, _, err := split.KFold(j.rows, j.Folds, 1, split.Options{By: by}, rng)
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
	x, y := j.pick(s.Rows(split.Train))
	var m probe.Classifier
	if j.Kind == "knn" {
		m, err = probe.FitNeighbours(x, j.dim, y, j.classes, min(j.K, len(y)))
	} else {
		c := j.C
		if c == 0 {
			if c, err = j.strength(s, by); err != nil {
				return 0, 0, err
			}
		}
		m, err = probe.FitLogistic(x, j.dim, y, j.classes, c, probe.Options{Balanced: true})
	}
	if err != nil {
		return 0, 0, err
	}
	test, truth := j.pick(s.Rows(split.Test))
	p := make([]float64, len(truth)*j.classes)
	m.Predict(p, test)
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

// withoutChoice is C where a class has a single patient, and none can be chosen.
const withoutChoice = 1

// strength is C, chosen by up to five folds inside the training side.
func (j judge) strength(s split.Split, by split.By) (float64, error) {
	k := 5
	for _, n := range split.PatientsOf(j.rows, s) {
		k = min(k, n)
	}
	if k < 2 {
		return withoutChoice, nil
	}
	if by == split.BySite {
		by = split.ByPatient // inside, sites may be too few
	}
	inner, _, err := split.Inner(j.rows, s, k, by, rand.New(rand.NewPCG(j.Seed, 1)))
	if err != nil {
		return 0, err
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
	choice, err := probe.Choose(x, j.dim, y, j.classes, folds, probe.Strengths(), probe.Options{Balanced: true})
	return choice.C, err
}
