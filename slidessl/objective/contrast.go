package objective

import (
	"math/rand/v2"

	"coverslip/internal/nn"
)

// simCLR is Chen et al.'s (arXiv 2002.05709): views of a slide attract each other, and repel all other views
// of the batch. With z the projections at length 1, for row i and its partner p(i)
//
//	l(i) = -log( e^(z_i·z_p(i)/τ) / Σ_{j≠i} e^(z_i·z_j/τ) )
//
// and the loss is its mean over the 2·Slides rows; of more than two views, its mean over the pairs. τ is
// Giga-SSL's 0.05 (Lazard et al., arXiv 2212.03273). All views pass the norms together, as in both papers.
type simCLR struct {
	base
	temperature float64
}

func newSimCLR(dim int, o Options, rng *rand.Rand) Objective {
	return &simCLR{newBase(dim, o, rng), o.Temperature}
}

func (s *simCLR) Loss(h, _ *nn.Node, b Batch) *nn.Node {
	b.check(h)
	z := b.through(s.projector, h, b.Views, together)
	if b.Views == 2 {
		return nn.NTXent(z, s.temperature)
	}
	var losses []*nn.Node
	for _, p := range b.unordered() {
		losses = append(losses, nn.NTXent(nn.Rows(z, append(b.view(p[0]), b.view(p[1])...)), s.temperature))
	}
	return mean(losses)
}
