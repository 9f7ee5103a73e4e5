package mil

import (
	"math/rand/v2"

	"coverslip/internal/nn"
)

// network is what is trained: from the instances of a bag to its class.
type network interface {
	params() []*nn.Param
	forward(s *step, x *nn.Node) result
}

// step is one bag, or a piece of one, in one graph.
type step struct {
	seed   uint32
	rows   []int32 // which rows of the bag these are, for dropout; nil: all
	coords []int64 // [n,2]
	class  int     // the truth, or -1 where nothing is learned
	masks  uint32  // drawn so far
}

// mask is the next dropout of this step. Pieces of a bag draw the same.
func (s *step) mask(p float64) nn.Mask {
	s.masks++
	return nn.Mask{P: p, Seed: s.seed ^ s.masks*0x9e3779b9, Rows: s.rows}
}

// result is what a network makes of a bag.
type result struct {
	logits *nn.Node // [1,C]: their softmax is the prediction
	loss   *nn.Node // where it is not the cross-entropy of the logits
	keep   []*nn.Node
	// explain, after the graph has run, gives each tile's weight, [n,K], and what it says for each class, [n,C];
	// either may be nil.
	explain func() (attention, evidence []float32)
}

func (r *result) lossOf(class int) *nn.Node {
	if r.loss != nil {
		return r.loss
	}
	return nn.CrossEntropy(r.logits, []int{class}, nil)
}

// newNetwork draws the parameters of a network for features of length dim.
func newNetwork(c *Config, dim, classes int, rng *rand.Rand) network {
	switch c.Model {
	case DSMIL:
		return newDSMIL(c, dim, classes, rng)
	case TransMIL:
		return newTransMIL(c, dim, classes, rng)
	case Sparse:
		return newSparse(c, dim, classes, rng)
	}
	return newPooled(c, dim, classes, rng)
}

// layers are those before pooling.
type layers struct {
	dense   []*nn.Dense
	dropout float64
	width   int // of what they make
}

func newLayers(c *Config, dim int, rng *rand.Rand) layers {
	l := layers{dropout: c.Dropout, width: dim}
	for i, w := range c.Hidden {
		l.dense = append(l.dense, nn.NewDense("hidden."+string(rune('0'+i%10)), l.width, w, true, rng))
		l.width = w
	}
	return l
}

func (l layers) params() (all []*nn.Param) {
	for _, d := range l.dense {
		all = append(all, d.Params()...)
	}
	return all
}

func (l layers) apply(s *step, x *nn.Node) *nn.Node {
	for _, d := range l.dense {
		x = nn.ReLUDrop(d.Apply(x), s.mask(l.dropout))
	}
	return x
}

func whole(n int) nn.Segments { return nn.Segments{0, n} }
