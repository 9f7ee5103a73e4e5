package objective

import (
	"math/rand/v2"

	"coverslip/internal/nn"
)

// barlow is Barlow Twins (Zbontar et al., arXiv 2103.03230): with the columns of two views' projections brought to
// mean 0 and variance 1 over the batch, c = aᵀ·b/Slides is to be the identity:
//
//	Σ_i (1-c_ii)² + λ·Σ_{i≠j} c_ij², λ = 0.005
//
// Of more than two views it is the mean over the pairs. Views pass the norms apart, as in the authors' code.
type barlow struct {
	base
	weight float64
}

func newBarlow(dim int, o Options, rng *rand.Rand) Objective {
	return &barlow{newBase(dim, o, rng), o.Covariance}
}

func (t *barlow) Loss(h, _ *nn.Node, b Batch) *nn.Node {
	b.check(h)
	z := b.through(t.projector, h, b.Views, apart)
	views := make([]*nn.Node, b.Views)
	for v := range views {
		views[v] = nn.Standardise(nn.Rows(z, b.view(v)))
	}
	var losses []*nn.Node
	for _, p := range b.unordered() {
		c := nn.Scale(1/float64(b.Slides), nn.MatMul(views[p[0]], views[p[1]], true, false))
		losses = append(losses, nn.Apply(redundant[float32](c.Cols, t.weight), 1, 1, c))
	}
	return mean(losses)
}

// vicReg is variance-invariance-covariance regularisation (Bardes et al., arXiv 2105.04906): of two views a and b
//
//	λ·s(a,b) + μ·(v(a)+v(b))/2 + ν·(c(a)+c(b)), λ = μ = 25, ν = 1
//
// s is the mean squared difference of their numbers, v the mean over columns of max(0, 1-√(var+1e-4)), and c the
// sum of the squared covariances of different columns, divided by their number. This is the authors' code; their
// text has no half before μ, and divides s by the batch alone. Of more than two views it is the mean over the pairs.
// Views pass the norms apart.
type vicReg struct {
	base
	invariance, variance, covariance float64
}

func newVICReg(dim int, o Options, rng *rand.Rand) Objective {
	return &vicReg{newBase(dim, o, rng), o.Invariance, o.Variance, o.Covariance}
}

func (r *vicReg) Loss(h, _ *nn.Node, b Batch) *nn.Node {
	b.check(h)
	z := b.through(r.projector, h, b.Views, apart)
	views, spreads := make([]*nn.Node, b.Views), make([]*nn.Node, b.Views)
	for v := range views {
		views[v] = nn.Rows(z, b.view(v))
		spreads[v] = nn.Apply(spread[float32](b.Slides, z.Cols, r.variance, r.covariance), 1, 1, views[v])
	}
	var losses []*nn.Node
	for _, p := range b.unordered() {
		d := nn.Combine(1, views[p[0]], -1, views[p[1]])
		losses = append(losses, nn.Combine(r.invariance, nn.Mean(nn.Mul(d, d)), 1, nn.Add(spreads[p[0]], spreads[p[1]])))
	}
	return mean(losses)
}
