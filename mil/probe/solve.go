package probe

import (
	"math"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/lapack/lapack64"
)

// solver fits several models on the same rows in step, so that one pass over the rows serves all of them, by
// L-BFGS (Liu and Nocedal 1989). Each minimises loss + λ/2·‖w‖², intercepts free. What is known of the
// curvature before the first step is a Gram matrix of all models together, weighed as the loss bends where
// they stood when it was made: with it a few steps do where plain L-BFGS takes dozens.
//
// A row of parameters is [D+1], the intercept last.
type solver struct {
	x      matrix
	models []*model
	// tol is the largest derivative by a parameter, per unit of weight, that counts as 0. It is what
	// scikit-learn calls tol.
	tol      float64
	maxSteps int

	gram, factor []float64 // [D+1,D+1]; the factor is that of gram + λ
	bend         []float64 // what gram was weighed with
}

// model is one of them: what it is to fit, and where it stands.
type model struct {
	loss        loss
	mean, scale []float64 // its features are (x − mean)/scale; nil: x
	outputs     int

	lambda    float64
	w, g      []float64 // parameters and their gradient, [K,D+1]
	margins   []float64 // [K,N]
	r         []float64 // the loss's gradient by margins, [K,N]
	steps     int       // of the last solve
	converged bool

	dir, dirMargins, trial, before []float64
	past                           []pair
}

// pair is a step and how the gradient changed over it.
type pair struct {
	s, y []float64
	rho  float64
}

const memory = 8 // pairs kept

func newSolver(x matrix, tol float64, maxSteps int, models ...*model) *solver {
	n, d := x.size()
	s := &solver{x: x, models: models, tol: tol, maxSteps: maxSteps, gram: make([]float64, (d+1)*(d+1)), factor: make([]float64, (d+1)*(d+1))}
	for _, m := range models {
		m.outputs = m.loss.outputs()
		for _, v := range []*[]float64{&m.w, &m.g, &m.dir, &m.before} {
			*v = make([]float64, m.outputs*(d+1))
		}
		for _, v := range []*[]float64{&m.margins, &m.r, &m.dirMargins, &m.trial} {
			*v = make([]float64, m.outputs*n)
		}
		m.loss.gradient(m.r, m.margins)
	}
	s.gradients(models)
	return s
}

// on goes on with other arithmetic over the same rows.
func (s *solver) on(x matrix) {
	s.x = x
	s.forward(s.models, func(m *model) (w, margins []float64) { return m.w, m.margins })
	for _, m := range s.models {
		m.loss.gradient(m.r, m.margins)
		m.past = m.past[:0]
	}
	s.gradients(s.models)
}

// solve brings all models to the minimum for λ, from where they stand.
func (s *solver) solve(lambda float64) {
	_, d := s.x.size()
	for _, m := range s.models {
		for k := range m.outputs {
			floats.AddScaled(m.g[k*(d+1):k*(d+1)+d], lambda-m.lambda, m.w[k*(d+1):k*(d+1)+d])
		}
		m.lambda, m.past, m.steps = lambda, m.past[:0], 0
	}
	prepared := false
	for step := 0; ; step++ {
		var active []*model
		for _, m := range s.models {
			m.converged = floats.Norm(m.g, math.Inf(1)) <= s.tol*m.loss.weight()
			if !m.converged && m.steps == step && step < s.maxSteps {
				active = append(active, m)
			}
		}
		if active == nil {
			return
		}
		if !prepared || step%10 == 0 {
			fresh := s.precondition(lambda)
			if fresh {
				for _, m := range active {
					m.past = m.past[:0]
				}
			}
			prepared = true
		}
		s.directions(active)
		s.forward(active, func(m *model) (w, margins []float64) { return m.dir, m.dirMargins })
		var moved []*model
		for _, m := range active {
			if m.search(d) {
				m.steps = step + 1
				moved = append(moved, m)
			}
		}
		if moved == nil {
			continue
		}
		s.gradients(moved)
		for _, m := range moved {
			m.remember()
		}
	}
}

// forward puts the margins of parameters, of all rows, where they belong.
func (s *solver) forward(models []*model, of func(*model) (w, margins []float64)) {
	n, d := s.x.size()
	var w, free []float64
	for _, m := range models {
		p, _ := of(m)
		for k := range m.outputs {
			row := p[k*(d+1) : (k+1)*(d+1)]
			b, at := row[d], len(w)
			w = append(w, row[:d]...)
			if m.scale != nil {
				floats.Div(w[at:], m.scale)
				b -= floats.Dot(w[at:], m.mean)
			}
			free = append(free, b)
		}
	}
	out := make([]float64, len(free)*n)
	s.x.forward(out, w)
	at := 0
	for _, m := range models {
		_, margins := of(m)
		for k := range m.outputs {
			for i, v := range out[at*n : (at+1)*n] {
				margins[k*n+i] = v + free[at]
			}
			at++
		}
	}
}

// gradients computes g from r.
func (s *solver) gradients(models []*model) {
	n, d := s.x.size()
	var r []float64
	for _, m := range models {
		r = append(r, m.r...)
	}
	out := make([]float64, len(r)/n*d)
	s.x.backward(out, r)
	at := 0
	for _, m := range models {
		for k := range m.outputs {
			g, sum := m.g[k*(d+1):(k+1)*(d+1)], total(m.r[k*n:(k+1)*n])
			copy(g, out[at*d:(at+1)*d])
			if m.scale != nil {
				floats.AddScaled(g[:d], -sum, m.mean)
				floats.Div(g[:d], m.scale)
			}
			floats.AddScaled(g[:d], m.lambda, m.w[k*(d+1):k*(d+1)+d])
			g[d] = sum
			at++
		}
	}
}

// precondition factors gram + λ, and makes the Gram matrix anew where the losses bend otherwise than when it
// was made.
func (s *solver) precondition(lambda float64) (fresh bool) {
	n, d := s.x.size()
	bend := make([]float64, n)
	for _, m := range s.models {
		m.loss.curvature(bend, m.margins)
	}
	floats.Scale(1/float64(len(s.models)), bend)
	if s.bend == nil || floats.Distance(bend, s.bend, 1) > staleBend*total(s.bend) {
		s.bend, fresh = bend, true
		s.x.gram(s.gram, bend)
	}
	e := d + 1
	trace := 0.0
	for i := range e {
		trace += s.gram[i*e+i]
	}
	for jitter := 1e-7 * trace / float64(e); ; jitter *= 10 { // float32 is no more exact than that
		copy(s.factor, s.gram)
		for i := range e {
			s.factor[i*e+i] += jitter
			if i < d {
				s.factor[i*e+i] += lambda
			}
		}
		if _, ok := lapack64.Potrf(blas64.Symmetric{Uplo: blas.Upper, N: e, Stride: e, Data: s.factor}); ok {
			return fresh
		}
	}
}

const staleBend = 0.3 // share of the curvature that may be wrong before another Gram matrix pays

// directions puts −H·g into dir, for all models at once where that is cheaper.
func (s *solver) directions(models []*model) {
	_, d := s.x.size()
	e, cols := d+1, 0
	for _, m := range models {
		cols += m.outputs
	}
	rhs := blas64.General{Rows: e, Cols: cols, Stride: cols, Data: make([]float64, e*cols)}
	alpha := make([][]float64, len(models))
	at := 0
	for i, m := range models {
		copy(m.dir, m.g)
		alpha[i] = make([]float64, len(m.past))
		for j := len(m.past) - 1; j >= 0; j-- {
			p := m.past[j]
			alpha[i][j] = p.rho * floats.Dot(p.s, m.dir)
			floats.AddScaled(m.dir, -alpha[i][j], p.y)
		}
		for k := range m.outputs {
			for j, v := range m.dir[k*e : (k+1)*e] {
				rhs.Data[j*cols+at] = v
			}
			at++
		}
	}
	lapack64.Potrs(blas64.Triangular{Uplo: blas.Upper, Diag: blas.NonUnit, N: e, Stride: e, Data: s.factor}, rhs)
	at = 0
	for i, m := range models {
		for k := range m.outputs {
			for j := range e {
				m.dir[k*e+j] = rhs.Data[j*cols+at]
			}
			at++
		}
		for j, p := range m.past {
			floats.AddScaled(m.dir, alpha[i][j]-p.rho*floats.Dot(p.y, m.dir), p.s)
		}
		floats.Scale(-1, m.dir)
	}
}

// search goes along dir to where the slope is small beside that at the start. The function is convex, so its
// slope rises along the way, and no values are needed. false: rounding errors are all that is left.
func (m *model) search(d int) bool {
	e := d + 1
	var ww, dd float64 // penalty: its slope is λ(w·dir + t·dir·dir)
	for k := range m.outputs {
		dir := m.dir[k*e : k*e+d]
		ww += floats.Dot(m.w[k*e:k*e+d], dir)
		dd += floats.Dot(dir, dir)
	}
	slope := func(t float64) float64 {
		for i, v := range m.margins {
			m.trial[i] = v + t*m.dirMargins[i]
		}
		m.loss.gradient(m.r, m.trial)
		return floats.Dot(m.r, m.dirMargins) + m.lambda*(ww+t*dd)
	}
	start := floats.Dot(m.g, m.dir)
	if !(start < 0) {
		return false
	}
	low, atLow, high, atHigh := 0.0, start, math.Inf(1), 0.0
	t := 1.0
	for range 40 {
		at := slope(t)
		if math.Abs(at) <= 0.5*-start {
			break
		}
		if at < 0 {
			low, atLow = t, at
		} else {
			high, atHigh = t, at
		}
		if math.IsInf(high, 1) {
			t *= 3
			continue
		}
		// The secant, kept off the ends.
		t = low + (high-low)*min(max(atLow/(atLow-atHigh), 0.1), 0.9)
	}
	copy(m.before, m.g)
	floats.AddScaled(m.w, t, m.dir)
	m.margins, m.trial = m.trial, m.margins
	floats.Scale(t, m.dir) // the step
	return true
}

// remember keeps the last step, whose gradient is now known.
func (m *model) remember() {
	p := pair{s: append([]float64(nil), m.dir...), y: make([]float64, len(m.g))}
	floats.SubTo(p.y, m.g, m.before)
	curve := floats.Dot(p.s, p.y)
	if !(curve > 0) {
		return
	}
	p.rho = 1 / curve
	if len(m.past) == memory {
		m.past = append(m.past[:0], m.past[1:]...)
	}
	m.past = append(m.past, p)
}
