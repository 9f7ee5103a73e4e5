package objective

import (
	"math/rand/v2"

	"coverslip/internal/nn"
)

// quarterTurns are the classes of rotation.
const quarterTurns = 4

// rotation is RotNet (Gidaris et al., arXiv 1803.07728) on the map of a slide, a pretext that contrasts nothing: every view's
// map is turned by none to three quarters, and a linear layer behind the projector says by how many,
//
//	mean over views of -log softmax(head(z))[turn]
//
// Chance is log 4. It teaches what tells up from down, so views must not be turned or mirrored otherwise; a network that
// does not see where tiles lie learns nothing.
type rotation struct {
	base
	head *nn.Dense
}

func newRotation(dim int, o Options, rng *rand.Rand) Objective {
	r := &rotation{base: newBase(dim, o, rng)}
	r.head = nn.NewDense("head", r.out(dim), quarterTurns, true, rng)
	r.beside = r.head.Params()
	return r
}

func (r *rotation) Loss(h, _ *nn.Node, b Batch) *nn.Node {
	b.check(h)
	if len(b.Turns) != h.Rows {
		panic("objective: one turn a view")
	}
	return nn.CrossEntropy(r.head.Apply(b.through(r.projector, h, b.Views, together)), b.Turns, nil)
}

// Turned reports whether an objective of this name wants the map of every view turned by quarters (Batch.Turns).
func Turned(name string) bool { return name == "rotation" }
