package nn

import (
	"math"
	"math/rand/v2"
)

// Dense are the parameters of a linear layer.
type Dense struct {
	W, B *Param // [in,out]; [1,out] or nil
}

// NewDense draws a linear layer as PyTorch does: uniform in ±1/√in, weights and biases.
func NewDense(name string, in, out int, bias bool, rng *rand.Rand) *Dense {
	d := &Dense{W: NewParam(name+".weight", in, out)}
	Uniform(d.W, 1/math.Sqrt(float64(in)), rng)
	if bias {
		d.B = NewParam(name+".bias", 1, out)
		d.B.Plain = true
		Uniform(d.B, 1/math.Sqrt(float64(in)), rng)
	}
	return d
}

// Apply is x·W + B.
func (d *Dense) Apply(x *Node) *Node {
	if d.B == nil {
		return Linear(x, x.graph.Param(d.W), nil)
	}
	return Linear(x, x.graph.Param(d.W), x.graph.Param(d.B))
}

// Params are its weight and its bias.
func (d *Dense) Params() []*Param {
	if d.B == nil {
		return []*Param{d.W}
	}
	return []*Param{d.W, d.B}
}

// Uniform draws every number between -bound and bound.
func Uniform(p *Param, bound float64, rng *rand.Rand) {
	for i := range p.Value {
		p.Value[i] = float32(bound * (2*rng.Float64() - 1))
	}
}

// Normal draws every number from a normal distribution around 0.
func Normal(p *Param, sd float64, rng *rand.Rand) {
	for i := range p.Value {
		p.Value[i] = float32(sd * rng.NormFloat64())
	}
}
