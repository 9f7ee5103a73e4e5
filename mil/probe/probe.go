// Package probe fits small models to slide embeddings: logistic regression along a path of strengths, ridge,
// Cox regression, nearest neighbours and nearest class mean. They show what an embedding holds: none has
// more to fit than a number a feature and class.
//
// Features are float32, [N,D] row after row; labels are classes from 0. Whatever is fitted, scaling too,
// is fitted on the training rows alone. Which rows those are is for mil/split to say, how good the
// predictions are for mil/metric.
package probe

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"coverslip"
	"coverslip/internal/nn"
)

// Classifier gives the probability of each class. Those of ridge, neighbours and class means are scores that
// rank rows and add up to 1, not more.
type Classifier interface {
	// Predict puts the probabilities of rows x, [N,D], into dst, [N,C].
	Predict(dst []float64, x []float32)
}

// Options of linear models. The zero value fits as scikit-learn does by default.
type Options struct {
	Balanced    bool    // rows weigh N / (classes · rows of their class), so that classes count alike
	Standardise bool    // each feature is scaled to mean 0 and standard deviation 1
	Tolerance   float64 // largest derivative of the mean loss by a parameter that counts as 0; 0 is 1e-4
	MaxSteps    int     // of L-BFGS for one strength; 0 is 1000
}

func (o Options) tolerance() float64 {
	if o.Tolerance == 0 {
		return 1e-4
	}
	return o.Tolerance
}

// Strengths are the 45 values of C, the inverse strength of the penalty, that TITAN and Patho-Bench choose
// from: 1e-5 to 1e6, evenly by logarithm.
func Strengths() []float64 {
	grid := make([]float64, 45)
	for i := range grid {
		grid[i] = math.Pow(10, -5+11*float64(i)/float64(len(grid)-1))
	}
	return grid
}

// FitLogistic minimises ½‖w‖² + c · Σ loss, as scikit-learn's LogisticRegression does: the logistic loss with
// two classes, the multinomial one with more. Intercepts are free.
func FitLogistic(x []float32, dim int, y []int, classes int, c float64, o Options) (*Linear, error) {
	p, err := classification(x, dim, y, classes, o)
	if err != nil {
		return nil, err
	}
	var fitted *Linear
	err = p.path([]Fold{{Train: all(len(y))}}, []float64{c}, func(at standing) { fitted = at.linear() })
	return fitted, err
}

// Fold is rows to fit on and rows to choose by.
type Fold struct{ Train, Val []int }

// Choice is what a search along a path of strengths found.
type Choice struct {
	C          float64   `json:"c"`                    // that of the least log-loss
	Grid       []float64 `json:"grid"`                 // rising
	LogLoss    []float64 `json:"log_loss"`             // of all validation rows, for each of the grid
	AtEdge     bool      `json:"at_edge"`              // C is at an end of the grid: a wider one may hold a better
	Unfinished int       `json:"unfinished,omitempty"` // fits that MaxSteps ended
}

// Choose fits logistic regression on the training rows of each fold for every C of the grid, weak penalties from
// where stronger ones ended, and takes the C whose mean log-loss on the validation rows is least (of equal
// ones the smallest). Several folds inside one training side are a nested cross-validation.
func Choose(x []float32, dim int, y []int, classes int, folds []Fold, grid []float64, o Options) (Choice, error) {
	ch := Choice{Grid: slices.Sorted(slices.Values(grid)), LogLoss: make([]float64, len(grid))}
	p, err := classification(x, dim, y, classes, o)
	if err != nil {
		return ch, err
	}
	rows, losses, unfinished := 0, make([][]float64, len(folds)), make([]int, len(folds))
	for i, f := range folds {
		rows += len(f.Val)
		losses[i] = make([]float64, len(grid))
	}
	if rows == 0 || len(grid) == 0 {
		return ch, invalid(errors.New("there are no validation rows to choose C by"), "name C, or set a validation side apart")
	}
	err = p.path(folds, ch.Grid, func(at standing) { // folds at once, each its own
		losses[at.fold][at.place] = logLoss(at.val(), y, folds[at.fold].Val, classes)
		if !at.model.converged {
			unfinished[at.fold]++
		}
	})
	if err != nil {
		return ch, err
	}
	best := 0
	for i := range ch.Grid {
		for f := range folds {
			ch.LogLoss[i] += losses[f][i] / float64(rows)
		}
		if ch.LogLoss[i] < ch.LogLoss[best] {
			best = i
		}
	}
	for _, n := range unfinished {
		ch.Unfinished += n
	}
	ch.C, ch.AtEdge = ch.Grid[best], best == 0 || best == len(grid)-1
	return ch, nil
}

// logLoss sums it over rows whose margins, [K,V], are given.
func logLoss(margins []float64, y, rows []int, classes int) float64 {
	own, ones := make([]int, len(rows)), make([]float64, len(rows))
	for i, r := range rows {
		own[i], ones[i] = y[r], 1
	}
	if classes == 2 {
		return logistic{own, ones}.value(margins)
	}
	return multinomial{own, ones, classes}.value(margins)
}

// FitRidge minimises ½‖w‖² + c · Σ ½(x·w + b − target)²: scikit-learn's Ridge with alpha = 1/c.
func FitRidge(x []float32, dim int, target []float64, c float64, o Options) (*Linear, error) {
	p, err := newProblem(x, dim, len(target), o)
	if err != nil {
		return nil, err
	}
	p.loss = func([]int) (loss, error) { return squares{target, ones(len(target))}, nil }
	p.o.Tolerance = tight(o.Tolerance)
	var fitted *Linear
	err = p.path([]Fold{{Train: all(len(target))}}, []float64{c}, func(at standing) { fitted = at.linear() })
	return fitted, err
}

// FitRidgeClassifier is ridge regression to 1 for a row's class and −1 for the others, the highest of which wins,
// as scikit-learn's RidgeClassifier.
func FitRidgeClassifier(x []float32, dim int, y []int, classes int, c float64, o Options) (*Linear, error) {
	p, err := classification(x, dim, y, classes, o)
	if err != nil {
		return nil, err
	}
	outputs := outputsOf(classes)
	target := make([]float64, outputs*len(y))
	for i, class := range y {
		for k := range outputs {
			target[k*len(y)+i] = -1
			if outputs == 1 && class == 1 || outputs > 1 && class == k {
				target[k*len(y)+i] = 1
			}
		}
	}
	p.loss = func(train []int) (loss, error) {
		w, err := p.weights(y, classes, train)
		return squares{target, w}, err
	}
	p.o.Tolerance = tight(o.Tolerance)
	var fitted *Linear
	err = p.path([]Fold{{Train: all(len(y))}}, []float64{c}, func(at standing) { fitted = at.linear() })
	return fitted, err
}

// FitCox minimises ½‖w‖² + c · the negative partial log-likelihood of proportional hazards, ties by Efron.
// time is until the event or, where event is false, until a row was last seen. The margin is the log
// hazard; its intercept is 0.
func FitCox(x []float32, dim int, time []float64, event []bool, c float64, o Options) (*Linear, error) {
	p, err := newProblem(x, dim, len(time), o)
	if err != nil {
		return nil, err
	}
	for i, t := range time {
		if !(t >= 0) || math.IsInf(t, 1) {
			return nil, invalid(fmt.Errorf("row %d has the time %g", i, t), "times are 0 or more")
		}
	}
	if !slices.Contains(event, true) {
		return nil, invalid(errors.New("no row has an event"), "there is nothing to tell apart")
	}
	p.loss = func([]int) (loss, error) { return newCox(time, event), nil }
	p.o.Tolerance = tight(o.Tolerance)
	var fitted *Linear
	err = p.path([]Fold{{Train: all(len(time))}}, []float64{c}, func(at standing) { fitted = at.linear() })
	if fitted != nil {
		fitted.Intercept[0] = 0 // the likelihood does not know it
	}
	return fitted, err
}

// tight is the default of what is solved at once or is small.
func tight(tolerance float64) float64 {
	if tolerance == 0 {
		return 1e-8
	}
	return tolerance
}

// Linear is a fitted linear model: its margins are x·Wᵀ + b.
type Linear struct {
	Classes   int       // 0 of a regression
	Weight    []float64 // [K,D], of features as they were given; K is 1 with two classes
	Intercept []float64 // [K]
	Steps     int       // of L-BFGS
	Converged bool
}

// Margins puts those of rows x, [N,D], into dst, [N,K].
func (l *Linear) Margins(dst []float64, x []float32) {
	k := len(l.Intercept)
	d := len(l.Weight) / k
	for i := range len(x) / d {
		for c := range k {
			dst[i*k+c] = dot(x[i*d:(i+1)*d], l.Weight[c*d:(c+1)*d]) + l.Intercept[c]
		}
	}
}

// Predict puts the probabilities of rows x, [N,D], into dst, [N,C].
func (l *Linear) Predict(dst []float64, x []float32) {
	k := len(l.Intercept)
	n := len(x) / (len(l.Weight) / k)
	if k > 1 {
		l.Margins(dst, x)
		for i := range n {
			softmaxAt(dst[i*k:(i+1)*k], slices.Clone(dst[i*k:(i+1)*k]), 0)
		}
		return
	}
	margins := make([]float64, n)
	l.Margins(margins, x)
	for i, m := range margins {
		dst[2*i], dst[2*i+1] = sigmoid(-m), sigmoid(m)
	}
}

// problem is data and a loss, for any training rows.
type problem struct {
	x       []float32
	n, dim  int
	classes int
	o       Options
	// loss is over all rows, and counts those in train.
	loss func(train []int) (loss, error)
}

func newProblem(x []float32, dim, n int, o Options) (*problem, error) {
	if dim < 1 || len(x) != n*dim {
		panic("probe: features are not [N,D]")
	}
	if n == 0 {
		return nil, invalid(errors.New("there are no rows"), "")
	}
	nn.BLAS() // gives gonum's blas32 and blas64 the fastest there is
	if i := slices.IndexFunc(x, func(v float32) bool { return v-v != 0 }); i >= 0 {
		return nil, invalid(fmt.Errorf("feature %d of row %d is %g", i%dim, i/dim, x[i]), "leave the slide out, or compute its features again")
	}
	return &problem{x: x, n: n, dim: dim, o: o}, nil
}

func classification(x []float32, dim int, y []int, classes int, o Options) (*problem, error) {
	p, err := newProblem(x, dim, len(y), o)
	if err != nil {
		return nil, err
	}
	if classes < 2 {
		return nil, invalid(fmt.Errorf("%d class", classes), "there is nothing to tell apart")
	}
	p.classes = classes
	p.loss = func(train []int) (loss, error) {
		w, err := p.weights(y, classes, train)
		if classes == 2 {
			return logistic{y, w}, err
		}
		return multinomial{y, w, classes}, err
	}
	return p, nil
}

// weights are those of all rows: 0 of those not in train.
func (p *problem) weights(y []int, classes int, train []int) ([]float64, error) {
	count := make([]int, classes)
	for _, i := range train {
		if y[i] < 0 || y[i] >= classes {
			panic("probe: a class is out of range")
		}
		count[y[i]]++
	}
	if c := slices.Index(count, 0); c >= 0 {
		return nil, invalid(fmt.Errorf("class %d has no training row", c), "use fewer folds, or leave the class out")
	}
	w := make([]float64, len(y))
	for _, i := range train {
		w[i] = 1
		if p.o.Balanced {
			w[i] = float64(len(train)) / float64(classes*count[y[i]])
		}
	}
	return w, nil
}

// path fits for each C, rising, on each fold, and calls each after every fit: of one fold in order, of
// different folds at the same time perhaps.
func (p *problem) path(folds []Fold, grid []float64, each func(standing)) error {
	wide := false // fewer rows than features in some fold
	for _, f := range folds {
		if len(f.Train) == 0 {
			return invalid(errors.New("a fold has no training rows"), "")
		}
		wide = wide || len(f.Train) < p.dim
	}
	if !wide {
		return p.together(folds, grid, each)
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, f := range folds {
		g.Go(func() error { return p.rotated(i, f, grid, each) })
	}
	return g.Wait()
}

// together fits all folds in step on one matrix of all rows.
func (p *problem) together(folds []Fold, grid []float64, each func(standing)) error {
	// Features are centred, and brought to one scale where the penalty is to see them so, to keep numbers small:
	// that the rows of all folds have a say in it changes no result, since each model has moments of its own.
	centre, unit := moments(p.x, p.dim, all(p.n))
	if !p.o.Standardise {
		unit = ones(p.dim)
	}
	x := make([]float32, len(p.x))
	for i, v := range p.x {
		x[i] = float32((float64(v) - centre[i%p.dim]) / unit[i%p.dim])
	}
	var models []*model
	for _, f := range folds {
		l, err := p.loss(f.Train)
		if err != nil {
			return err
		}
		m := &model{loss: l}
		if p.o.Standardise {
			m.mean, m.scale = moments(x, p.dim, f.Train)
		}
		models = append(models, m)
	}
	s := p.solver(single{x, p.n, p.dim}, models...)
	for place, c := range grid {
		p.run(s, double[float32]{x, p.n, p.dim}, 1/c)
		for fold, m := range models {
			each(standing{fold: fold, place: place, model: m,
				val: func() []float64 { return pick(m.margins, p.n, folds[fold].Val) },
				linear: func() *Linear {
					l := p.unscaled(m, p.dim, m.w, m.mean, m.scale)
					for i := range l.Weight {
						l.Weight[i] /= unit[i%p.dim]
						l.Intercept[i/p.dim] -= l.Weight[i] * centre[i%p.dim]
					}
					return l
				}})
		}
	}
	return nil
}

// rotated fits one fold that has fewer rows than features.
func (p *problem) rotated(fold int, f Fold, grid []float64, each func(standing)) error {
	n := len(f.Train)
	l, err := p.loss(f.Train)
	if err != nil {
		return err
	}
	mean, scale := moments(p.x, p.dim, f.Train)
	if !p.o.Standardise {
		for j := range scale {
			scale[j] = 1
		}
	}
	rows := make([]float64, n*p.dim)
	for i, r := range f.Train {
		for j, v := range p.x[r*p.dim : (r+1)*p.dim] {
			rows[i*p.dim+j] = (float64(v) - mean[j]) / scale[j]
		}
	}
	var z double[float64]
	var q rotation
	if n < p.dim {
		z, q = rotate(rows, n, p.dim)
	} else {
		z = double[float64]{rows, n, p.dim}
	}
	m := &model{loss: only(l, f.Train)}
	s := p.solver(z, m)
	for place, c := range grid {
		p.run(s, z, 1/c)
		linear := func() *Linear {
			w := m.w
			if n < p.dim {
				w = make([]float64, m.outputs*(p.dim+1))
				for k := range m.outputs {
					q.back(w[k*(p.dim+1):k*(p.dim+1)+p.dim], m.w[k*(n+1):k*(n+1)+n])
					w[k*(p.dim+1)+p.dim] = m.w[k*(n+1)+n]
				}
			}
			return p.unscaled(m, p.dim, w, mean, scale)
		}
		each(standing{fold: fold, place: place, model: m, linear: linear, val: func() []float64 {
			l, k := linear(), m.outputs
			out, row := make([]float64, k*len(f.Val)), make([]float64, k)
			for i, r := range f.Val {
				l.Margins(row, p.x[r*p.dim:(r+1)*p.dim])
				for c, v := range row {
					out[c*len(f.Val)+i] = v
				}
			}
			return out
		}})
	}
	return nil
}

// standing is a model at one place of its path.
type standing struct {
	fold, place int
	model       *model
	val         func() []float64 // margins of the validation rows, [K,V]
	linear      func() *Linear
}

const singleIsEnough = 1e-5 // tolerances that float32 sums can be trusted with

func (p *problem) solver(x matrix, models ...*model) *solver {
	steps := p.o.MaxSteps
	if steps == 0 {
		steps = 1000
	}
	return newSolver(x, p.o.tolerance(), steps, models...)
}

// run solves for λ: in float32 as far as that goes, and the rest in float64.
func (p *problem) run(s *solver, exact matrix, lambda float64) {
	fast, ok := s.x.(single)
	if !ok || s.tol >= singleIsEnough {
		s.solve(lambda)
		return
	}
	tol := s.tol
	s.tol = singleIsEnough
	s.solve(lambda)
	s.tol = tol
	s.on(exact)
	s.solve(lambda)
	s.x = fast
}

// unscaled is the model in terms of features that are not (x − mean)/scale.
func (p *problem) unscaled(m *model, d int, w, mean, scale []float64) *Linear {
	l := &Linear{Classes: p.classes, Weight: make([]float64, 0, m.outputs*d), Steps: m.steps, Converged: m.converged}
	for k := range m.outputs {
		row, b := w[k*(d+1):k*(d+1)+d], w[k*(d+1)+d]
		for j, v := range row {
			if scale != nil {
				v /= scale[j]
				b -= v * mean[j]
			}
			l.Weight = append(l.Weight, v)
		}
		l.Intercept = append(l.Intercept, b)
	}
	return l
}

// moments are the mean and the standard deviation (by n, as scikit-learn's) of each feature over some rows; a
// feature that does not vary has deviation 1.
func moments(x []float32, d int, rows []int) (mean, deviation []float64) {
	mean, deviation = make([]float64, d), make([]float64, d)
	for _, i := range rows {
		for j, v := range x[i*d : (i+1)*d] {
			mean[j] += float64(v) / float64(len(rows))
		}
	}
	for _, i := range rows {
		for j, v := range x[i*d : (i+1)*d] {
			off := float64(v) - mean[j]
			deviation[j] += off * off / float64(len(rows))
		}
	}
	for j, v := range deviation {
		deviation[j] = math.Sqrt(v)
		if deviation[j] <= 1e-7*math.Abs(mean[j]) { // float32 rounding
			deviation[j] = 1
		}
	}
	return mean, deviation
}

// only is a loss of some of the rows.
func only(l loss, rows []int) loss {
	switch l := l.(type) {
	case logistic:
		return logistic{at(l.y, rows), at(l.w, rows)}
	case multinomial:
		return multinomial{at(l.y, rows), at(l.w, rows), l.classes}
	case squares:
		return squares{pick(l.target, len(l.w), rows), at(l.w, rows)}
	}
	return l // Cox: fitted on all there are
}

func at[T any](v []T, rows []int) []T {
	out := make([]T, len(rows))
	for i, r := range rows {
		out[i] = v[r]
	}
	return out
}

// pick takes rows of [K,N].
func pick(v []float64, n int, rows []int) []float64 {
	var out []float64
	for from := 0; from < len(v); from += n {
		out = append(out, at(v[from:from+n], rows)...)
	}
	return out
}

func outputsOf(classes int) int {
	if classes == 2 {
		return 1
	}
	return classes
}

func all(n int) []int {
	rows := make([]int, n)
	for i := range rows {
		rows[i] = i
	}
	return rows
}

func ones(n int) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = 1
	}
	return v
}

func invalid(err error, hint string) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "fit a probe", Err: err, Hint: hint}
}
