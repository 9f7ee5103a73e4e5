package nn

/*
#include "kernels.h"
*/
import "C"

import (
	"math"
)

// Optimizer changes parameters by their gradients. Its state goes with the model's into a checkpoint, so
// that a run that goes on after a stop comes to the same bits.
type Optimizer interface {
	// Step moves every parameter that is not fixed against its Grad.
	Step(params []*Param, lr float64)
	// State are the numbers it keeps of these parameters, as parameters of their own that a checkpoint can
	// hold and fill. Before the first Step they are zeros.
	State(params []*Param) []*Param
}

// Adam is Kingma and Ba's (arXiv 1412.6980), and AdamW with Decoupled (Loshchilov and Hutter, arXiv
// 1711.05101). Without it weight decay is an L2 term in the gradient, as in PyTorch's Adam.
type Adam struct {
	Beta1, Beta2, Eps float64 // 0.9, 0.999, 1e-8
	WeightDecay       float64 // of parameters that are not Plain
	Decoupled         bool

	slots
}

// NewAdam has the paper's constants.
func NewAdam(weightDecay float64) *Adam {
	return &Adam{Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, WeightDecay: weightDecay}
}

// NewAdamW has the paper's constants.
func NewAdamW(weightDecay float64) *Adam {
	a := NewAdam(weightDecay)
	a.Decoupled = true
	return a
}

// Step is Optimizer's.
func (a *Adam) Step(params []*Param, lr float64) {
	t := a.next(params)
	c1, c2 := 1/(1-math.Pow(a.Beta1, t)), 1/(1-math.Pow(a.Beta2, t))
	for _, p := range params {
		if p.Fixed {
			continue
		}
		m, v := a.of("m", p).Value, a.of("v", p).Value
		decay := 1.0
		if a.WeightDecay != 0 && !p.Plain {
			if a.Decoupled {
				decay = 1 - lr*a.WeightDecay
			} else {
				axpy(float32(a.WeightDecay), p.Value, p.Grad)
			}
		}
		ParallelRows(len(p.Value), 8, func(from, to int) {
			C.nn_adam(C.long(to-from), C.float(lr), C.float(a.Beta1), C.float(a.Beta2), C.float(c1), C.float(c2), C.float(a.Eps), C.float(decay),
				ptr(p.Grad[from:to]), ptr(m[from:to]), ptr(v[from:to]), ptr(p.Value[from:to]))
		})
	}
}

// State is Optimizer's.
func (a *Adam) State(params []*Param) []*Param { return a.state(params, "m", "v") }

// SGD is stochastic gradient descent with momentum, as in PyTorch: v = μ·v + g, p = p - lr·v. With Trust it
// is LARS (You et al., arXiv 1708.03888): each matrix' step is scaled by Trust·|p| / |g + λ·p|.
type SGD struct {
	Momentum    float64
	WeightDecay float64 // of parameters that are not Plain
	Trust       float64 // 0.001 in LARS; 0: plain SGD

	slots
}

// NewSGD is plain SGD with momentum.
func NewSGD(momentum, weightDecay float64) *SGD {
	return &SGD{Momentum: momentum, WeightDecay: weightDecay}
}

// NewLARS is LARS with the paper's trust coefficient and momentum 0.9.
func NewLARS(weightDecay float64) *SGD {
	return &SGD{Momentum: 0.9, WeightDecay: weightDecay, Trust: 0.001}
}

// Step is Optimizer's.
func (s *SGD) Step(params []*Param, lr float64) {
	s.next(params)
	for _, p := range params {
		if p.Fixed {
			continue
		}
		v := s.of("v", p).Value
		decay, scale := 0.0, 1.0
		if !p.Plain {
			decay = s.WeightDecay
		}
		if s.Trust > 0 && !p.Plain {
			if decay != 0 { // the trust ratio sees it
				axpy(float32(decay), p.Value, p.Grad)
				decay = 0
			}
			if long, grad := math.Sqrt(Dot(p.Value, p.Value)), math.Sqrt(Dot(p.Grad, p.Grad)); long > 0 && grad > 0 {
				scale = s.Trust * long / grad
			}
		}
		ParallelRows(len(p.Value), 4, func(from, to int) {
			C.nn_sgd(C.long(to-from), C.float(lr), C.float(s.Momentum), C.float(decay), C.float(scale), ptr(p.Grad[from:to]), ptr(v[from:to]), ptr(p.Value[from:to]))
		})
	}
}

// State is Optimizer's.
func (s *SGD) State(params []*Param) []*Param { return s.state(params, "v") }

// slots are the numbers an optimiser keeps beside each parameter, and how often it has stepped.
type slots struct {
	steps *Param
	kept  map[slot]*Param
}

type slot struct {
	of   *Param
	name string
}

func (s *slots) of(name string, p *Param) *Param {
	if s.kept == nil {
		s.kept = map[slot]*Param{}
	}
	k, there := s.kept[slot{p, name}]
	if !there {
		k = NewParam("optimizer."+name+"/"+p.Name, p.Rows, p.Cols)
		s.kept[slot{p, name}] = k
	}
	return k
}

func (s *slots) counter() *Param {
	if s.steps == nil {
		s.steps = NewParam("optimizer.steps", 1, 1)
	}
	return s.steps
}

// next checks the gradients and returns the number of this step; the first is 1.
func (s *slots) next(params []*Param) float64 {
	for _, p := range params {
		if !p.Fixed && len(p.Grad) != len(p.Value) {
			panic("nn: a step without a gradient of " + p.Name)
		}
	}
	c := s.counter()
	c.Value[0]++
	return float64(c.Value[0])
}

func (s *slots) state(params []*Param, names ...string) []*Param {
	all := []*Param{s.counter()}
	for _, p := range params {
		if !p.Fixed {
			for _, name := range names {
				all = append(all, s.of(name, p))
			}
		}
	}
	return all
}

// Cosine is the learning rate of a step out of total: from 0 up to peak in warmup steps, then down to 0
// along half a cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts).
func Cosine(step, warmup, total int, peak float64) float64 {
	if step < warmup {
		return peak * float64(step+1) / float64(warmup)
	}
	if total <= warmup {
		return peak
	}
	return peak * 0.5 * (1 + math.Cos(math.Pi*float64(step-warmup)/float64(total-warmup)))
}

// ClipNorm scales all gradients so that their common length is at most limit, and returns what it was.
func ClipNorm(params []*Param, limit float64) float64 {
	var square float64
	for _, p := range params {
		if !p.Fixed {
			square += Dot(p.Grad, p.Grad)
		}
	}
	length := math.Sqrt(square)
	if length > limit {
		for _, p := range params {
			if !p.Fixed {
				scale(float32(limit/length), p.Grad)
			}
		}
	}
	return length
}
