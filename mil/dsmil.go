package mil

import (
	"math"
	"math/rand/v2"

	"coverslip/internal/nn"
)

// dsmil has two streams: one classifies instances and takes the highest of each class, the other weighs instances
// by how near they are to that critical one (Li et al., equations 2 to 5). Both are learned alike, and the
// prediction is the mean of theirs.
type dsmil struct {
	c        *Config
	classes  int
	layers   layers
	instance *nn.Dense // width → classes
	q1, q2   *nn.Dense // width → Attend → Attend, with ReLU between and tanh behind
	out      *nn.Dense // classes·width → classes
}

func newDSMIL(c *Config, dim, classes int, rng *rand.Rand) *dsmil {
	d := &dsmil{c: c, classes: classes, layers: newLayers(c, dim, rng)}
	d.instance = nn.NewDense("instance", d.layers.width, classes, true, rng)
	d.q1 = nn.NewDense("query.0", d.layers.width, c.Attend, true, rng)
	d.q2 = nn.NewDense("query.1", c.Attend, c.Attend, true, rng)
	d.out = nn.NewDense("classifier", classes*d.layers.width, classes, true, rng)
	return d
}

func (d *dsmil) params() []*nn.Param {
	all := d.layers.params()
	for _, l := range []*nn.Dense{d.instance, d.q1, d.q2, d.out} {
		all = append(all, l.Params()...)
	}
	return all
}

func (d *dsmil) forward(s *step, x *nn.Node) result {
	h := d.layers.apply(s, x)
	bag := whole(h.Rows)
	c := d.instance.Apply(h)
	highest := nn.SegmentMax(c, bag)

	q := nn.Tanh(d.q2.Apply(nn.ReLU(d.q1.Apply(h))))
	near := nn.Scale(1/math.Sqrt(float64(d.c.Attend)), nn.MatMul(q, nn.RowsOfMax(q, c), false, true))
	w := nn.SegmentSoftmax(near, bag) // [n,classes]
	second := d.out.Apply(nn.SegmentWeighted(h, w, bag))

	r := result{logits: nn.LogMeanSoftmax(nn.Above(highest, second)), keep: []*nn.Node{c, w}}
	r.explain = func() (attention, evidence []float32) { return w.Value(), c.Value() }
	if s.class >= 0 {
		r.loss = nn.CrossEntropy(nn.Above(highest, second), []int{s.class, s.class}, nil)
	}
	return r
}
