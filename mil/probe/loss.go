package probe

import (
	"cmp"
	"math"
	"slices"
)

// loss is a convex function of the margins of all rows, [K,N]: K outputs of N rows each.
type loss interface {
	outputs() int
	// weight is what the rows weigh together: tolerances are per unit of it.
	weight() float64
	value(margins []float64) float64
	// gradient puts the derivative by margins into dst, [K,N].
	gradient(dst, margins []float64)
	// curvature adds about the second derivative by the margins of each row to dst, [N].
	curvature(dst, margins []float64)
}

// logistic is −ln of the probability of the right of two classes; the margin speaks for class 1.
type logistic struct {
	y []int
	w []float64 // what each row counts; 0 leaves it out
}

func (l logistic) outputs() int    { return 1 }
func (l logistic) weight() float64 { return total(l.w) }

func (l logistic) value(margins []float64) float64 {
	sum := 0.0
	for i, m := range margins {
		if l.y[i] == 1 {
			m = -m
		}
		sum += l.w[i] * softplus(m)
	}
	return sum
}

// softplus is ln(1 + exp m), finite for every m.
func softplus(m float64) float64 { return max(m, 0) + math.Log1p(math.Exp(-math.Abs(m))) }

// sigmoid is 1/(1 + exp −m).
func sigmoid(m float64) float64 { return 1 / (1 + math.Exp(-m)) }

func (l logistic) gradient(dst, margins []float64) {
	for i, m := range margins {
		if w := l.w[i]; w != 0 {
			dst[i] = w * (sigmoid(m) - float64(l.y[i]))
		} else {
			dst[i] = 0
		}
	}
}

func (l logistic) curvature(dst, margins []float64) {
	for i, m := range margins {
		p := sigmoid(m)
		dst[i] += l.w[i] * p * (1 - p)
	}
}

// multinomial is −ln of the probability of the right of several classes, the softmax of the margins.
type multinomial struct {
	y       []int
	w       []float64
	classes int
}

func (l multinomial) outputs() int    { return l.classes }
func (l multinomial) weight() float64 { return total(l.w) }

func (l multinomial) value(margins []float64) float64 {
	p, sum := make([]float64, l.classes), 0.0
	for i, y := range l.y {
		if l.w[i] != 0 {
			sum += l.w[i] * (softmaxAt(p, margins, i) - margins[y*len(l.y)+i])
		}
	}
	return sum
}

func (l multinomial) gradient(dst, margins []float64) {
	p := make([]float64, l.classes)
	for i, y := range l.y {
		w := l.w[i]
		if w != 0 {
			softmaxAt(p, margins, i)
			p[y]--
		}
		for c, v := range p {
			dst[c*len(l.y)+i] = w * v
		}
	}
}

func (l multinomial) curvature(dst, margins []float64) {
	p := make([]float64, l.classes)
	for i, w := range l.w {
		if w != 0 {
			softmaxAt(p, margins, i)
			for _, v := range p {
				dst[i] += w * v * (1 - v) / float64(l.classes)
			}
		}
	}
}

// softmaxAt puts the probabilities of row i into p, and returns ln Σ exp of its margins, [K,N].
func softmaxAt(p, margins []float64, i int) float64 {
	n, top, sum := len(margins)/len(p), math.Inf(-1), 0.0
	for c := range p {
		top = max(top, margins[c*n+i])
	}
	for c := range p {
		p[c] = math.Exp(margins[c*n+i] - top)
		sum += p[c]
	}
	for c := range p {
		p[c] /= sum
	}
	return top + math.Log(sum)
}

// squares is half the squared distance of the margins from targets, [K,N].
type squares struct {
	target []float64
	w      []float64
}

func (l squares) outputs() int    { return len(l.target) / len(l.w) }
func (l squares) weight() float64 { return total(l.w) }

func (l squares) value(margins []float64) float64 {
	sum := 0.0
	for i, m := range margins {
		off := m - l.target[i]
		sum += l.w[i%len(l.w)] * off * off / 2
	}
	return sum
}

func (l squares) gradient(dst, margins []float64) {
	for i, m := range margins {
		dst[i] = l.w[i%len(l.w)] * (m - l.target[i])
	}
}

func (l squares) curvature(dst, _ []float64) {
	for i, w := range l.w {
		dst[i] += w
	}
}

// cox is the negative partial log-likelihood of proportional hazards (Cox 1972), with ties as Efron 1977
// has them. Margins are log hazards.
type cox struct {
	time  []float64
	event []bool
	order []int // by falling time
}

func newCox(time []float64, event []bool) cox {
	c := cox{time, event, make([]int, len(time))}
	for i := range c.order {
		c.order[i] = i
	}
	slices.SortStableFunc(c.order, func(a, b int) int { return cmp.Compare(time[b], time[a]) })
	return c
}

func (l cox) outputs() int    { return 1 }
func (l cox) weight() float64 { return float64(len(l.time)) }

func (l cox) value(margins []float64) float64 { return l.walk(margins, func(int, float64, float64) {}) }

func (l cox) gradient(dst, margins []float64) {
	l.walk(margins, func(i int, hazard, spared float64) {
		dst[i] = hazard
		if l.event[i] {
			dst[i] -= spared + 1
		}
	})
}

// curvature leaves out what rows share, so it is too large, which is the safe side.
func (l cox) curvature(dst, margins []float64) {
	l.walk(margins, func(i int, hazard, spared float64) {
		if l.event[i] {
			hazard -= spared
		}
		dst[i] += hazard
	})
}

// walk returns the value. each gets the hazard a row has met until its time, and what of it Efron spares a
// row that has its event together with others.
func (l cox) walk(margins []float64, each func(row int, hazard, spared float64)) float64 {
	top := slices.Max(margins) // hazards are relative; so exp stays finite
	e := make([]float64, len(margins))
	for i, m := range margins {
		e[i] = math.Exp(m - top)
	}
	type moment struct {
		rows         []int
		rise, spared float64
	}
	var moments []moment
	atRisk, value := 0.0, 0.0
	for left := l.order; len(left) > 0; {
		n, deaths, dying := 0, 0, 0.0
		for ; n < len(left) && l.time[left[n]] == l.time[left[0]]; n++ {
			i := left[n]
			atRisk += e[i]
			if l.event[i] {
				dying += e[i]
				deaths++
				value -= margins[i] - top
			}
		}
		now := moment{rows: left[:n]}
		for d := range deaths {
			gone := float64(d) / float64(deaths)
			value += math.Log(atRisk - gone*dying)
			now.rise += 1 / (atRisk - gone*dying)
			now.spared += gone / (atRisk - gone*dying)
		}
		moments, left = append(moments, now), left[n:]
	}
	hazard := 0.0
	for _, now := range slices.Backward(moments) {
		hazard += now.rise
		for _, i := range now.rows {
			each(i, e[i]*hazard, e[i]*now.spared)
		}
	}
	return value
}

func total(v []float64) (sum float64) {
	for _, x := range v {
		sum += x
	}
	return sum
}
