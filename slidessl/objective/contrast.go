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

// moCo is MoCo v2 (Chen et al., arXiv 2003.04297; He et al., arXiv 1911.05722): a view is the query q, another
// by the averaged network (m = 0.999) its key k, and keys of earlier steps wait in a queue to be repelled:
//
//	-log( e^(q·k/τ) / (e^(q·k/τ) + Σ_queue e^(q·k'/τ)) ), all at length 1, τ = 0.2
//
// The paper takes one view as query and the other as key. Here both networks have seen both, so the loss is
// the mean over the ordered pairs, whose expectation is the same; keys of the first view are queued. A slide's
// own earlier keys are left out where Batch.IDs tells them: of a million images they do not matter, of
// hundreds they would. Views pass the norms apart, as in the paper (its shuffling is for several GPUs).
type moCo struct {
	base
	temperature float64
	queue       *bank
}

func newMoCo(dim int, o Options, rng *rand.Rand) Objective {
	m := &moCo{base: newBase(dim, o, rng), temperature: o.Temperature}
	m.follow(o.Momentum, false)
	m.queue = newBank(o.Queue, m.out(dim))
	nn.Normal(m.queue.keys, 1, rng) // as in the authors' code: repelled, until all are keys
	unit(m.queue.keys.Value, m.queue.keys.Cols)
	m.kept = append(m.kept, m.queue.params()...)
	return m
}

func (m *moCo) Loss(h, target *nn.Node, b Batch) *nn.Node {
	b.check(h)
	g, pairs := h.Graph(), b.ordered()
	q := nn.Normalise(b.through(m.projector, h, b.Views, apart))
	k := nn.Normalise(b.through(m.target, target, b.Global, apart))
	q, positive := nn.Rows(q, b.rows(pairs, 0)), nn.Rows(k, b.rows(pairs, 1))
	var of []int
	if b.IDs != nil {
		for range pairs {
			of = append(of, b.IDs...)
		}
	}
	loss := nn.Apply(queued[float32](q.Rows, q.Cols, m.queue.keys.Rows, m.temperature, of, m.queue.of.Value), 1, 1, q, positive, g.Param(m.queue.keys))
	return watch(loss, k, func(k []float32) { m.queue.next(k[:b.Slides*q.Cols], b.IDs) })
}

func (m *moCo) Stepped(b Batch) {
	m.base.Stepped(b)
	m.queue.push()
}

// supCon is supervised contrastive learning (Khosla et al., arXiv 2004.11362, equation 2): all views of all
// slides of a class attract each other,
//
//	mean over i of -1/|P(i)| Σ_{p∈P(i)} log( e^(z_i·z_p/τ) / Σ_{j≠i} e^(z_i·z_j/τ) ), τ = 0.1
//
// with P(i) the other rows of i's class and z at length 1. A slide without a label is a class of its own: with
// no labels at all this is SimCLR. All views pass the norms together, as in the authors' code.
type supCon struct {
	base
	temperature float64
}

func newSupCon(dim int, o Options, rng *rand.Rand) Objective {
	return &supCon{newBase(dim, o, rng), o.Temperature}
}

func (s *supCon) Labelled() bool { return true }

func (s *supCon) Loss(h, _ *nn.Node, b Batch) *nn.Node {
	b.check(h)
	z := nn.Normalise(b.through(s.projector, h, b.Views, together))
	class := make([]int, h.Rows)
	for i := range class {
		if class[i] = -1 - i%b.Slides; b.Labels != nil && b.Labels[i%b.Slides] >= 0 {
			class[i] = b.Labels[i%b.Slides]
		}
	}
	return nn.Apply(classes[float32](class, z.Cols, s.temperature), 1, 1, z)
}

// reLIC is ReLIC v2 (Tomašev et al., arXiv 2201.05119; Mitrovic et al., arXiv 2010.07922): contrast against
// targets of the averaged network (0.996, growing to 1), and the similarities of a view to the batch must be
// those that the batch has to the view. For online projections o of one view and targets t of a large one, at
// length 1, s = o·tᵀ/τ, p the softmax of its rows and q that of its columns:
//
//	mean over i of -log p(i,i) + β·KL( sg[p(i,·)] ‖ q(·,i) ), τ = 0.3, β = 5
//
// averaged over all pairs of a view and a large one, the same view twice among them, as in the paper's
// pseudo-code. The paper contrasts with 10 negatives drawn from a batch of 4096; here it is all others, for
// batches are small. Saliency masks are an augmentation (slidessl/view). Views pass the norms apart, as in
// BYOL, from whose code the authors' comes.
type reLIC struct {
	base
	temperature, weight float64
}

func newReLIC(dim int, o Options, rng *rand.Rand) Objective {
	r := &reLIC{base: newBase(dim, o, rng), temperature: o.Temperature, weight: o.Invariance}
	r.follow(o.Momentum, true)
	return r
}

func (r *reLIC) Loss(h, target *nn.Node, b Batch) *nn.Node {
	b.check(h)
	o := nn.Normalise(b.through(r.projector, h, b.Views, apart))
	t := nn.Normalise(b.through(r.target, target, b.Global, apart))
	var losses []*nn.Node
	for w := range b.Views {
		for v := range b.Global {
			losses = append(losses, nn.Apply(invariant[float32](b.Slides, o.Cols, r.temperature, r.weight), 1, 1, nn.Rows(o, b.view(w)), nn.Rows(t, b.view(v))))
		}
	}
	return mean(losses)
}
