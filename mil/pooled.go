package mil

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"

	"coverslip/internal/nn"
)

// pooled is all models that embed instances one by one, weigh them and classify what the weighted sum gives:
// mean, max, attention, CLAM; and those that classify instances and pool their classes.
type pooled struct {
	c       *Config
	classes int
	layers  layers
	gate    *nn.Dense // inside the attention
	score   *nn.Dense // its logits, one column a head
	out     *nn.Dense // width → classes
	cluster *nn.Dense // CLAM: width → in or out, for each class
}

func newPooled(c *Config, dim, classes int, rng *rand.Rand) *pooled {
	p := &pooled{c: c, classes: classes, layers: newLayers(c, dim, rng)}
	if c.attends() {
		inner, heads := c.Attend, 1
		if c.Model != ABMIL {
			inner *= 2 // tanh and sigmoid side by side
		}
		if c.Model == CLAMMB {
			heads = classes
		}
		p.gate = nn.NewDense("attention.gate", p.layers.width, inner, true, rng)
		p.score = nn.NewDense("attention.score", c.Attend, heads, true, rng)
	}
	p.out = nn.NewDense("classifier", p.layers.width, classes, true, rng)
	if c.clam() {
		p.cluster = nn.NewDense("cluster", p.layers.width, 2*classes, true, rng)
	}
	return p
}

func (p *pooled) params() []*nn.Param {
	all := p.layers.params()
	for _, d := range []*nn.Dense{p.gate, p.score, p.out, p.cluster} {
		if d != nil {
			all = append(all, d.Params()...)
		}
	}
	return all
}

// rows is what is done to each instance: its embedding and, of models with attention, its logits there.
func (p *pooled) rows(s *step, x *nn.Node) (h, a *nn.Node) {
	h = p.layers.apply(s, x)
	if p.gate == nil {
		return h, nil
	}
	a = p.gate.Apply(h)
	if p.c.Model == ABMIL {
		a = nn.Tanh(a)
	} else {
		a = nn.Gate(a)
	}
	if p.c.clam() { // it drops both factors of the gate
		a = nn.Drop(a, s.mask(1-(1-p.c.Dropout)*(1-p.c.Dropout)))
	}
	return h, p.score.Apply(a)
}

// pool makes one row of a bag, [1,heads·width].
func (p *pooled) pool(h, a *nn.Node) (z, w *nn.Node) {
	bag := whole(h.Rows)
	switch p.c.Model {
	case Mean:
		return nn.SegmentMean(h, bag), nil
	case Max:
		return nn.SegmentMax(h, bag), nil
	}
	w = nn.SegmentSoftmax(a, bag)
	return nn.SegmentWeighted(h, w, bag), w
}

// classify makes logits of a pooled row.
func (p *pooled) classify(z *nn.Node) *nn.Node {
	if p.c.Model != CLAMMB {
		return p.out.Apply(z)
	}
	g := z.Graph()
	return nn.Apply(branches[float32](p.layers.width, p.classes), 1, p.classes, z, g.Param(p.out.W), g.Param(p.out.B))
}

// poolClasses makes logits of those of instances.
func (p *pooled) poolClasses(c *nn.Node) *nn.Node {
	if p.c.Model == MaxInstance {
		return nn.SegmentMax(c, whole(c.Rows))
	}
	return nn.LogMeanSoftmax(c)
}

func (p *pooled) forward(s *step, x *nn.Node) result {
	h, a := p.rows(s, x)
	if p.c.instance() {
		c := p.out.Apply(h)
		return result{logits: p.poolClasses(c), keep: []*nn.Node{c}, explain: func() (_, e []float32) { return nil, c.Value() }}
	}
	z, w := p.pool(h, a)
	r := result{logits: p.classify(z), keep: []*nn.Node{h}}
	if w != nil {
		r.keep = append(r.keep, w)
	}
	r.explain = func() (attention, evidence []float32) {
		if w != nil {
			attention = w.Value()
		}
		return attention, p.evidence(h.Value(), attention, h.Rows, nil)
	}
	if p.cluster != nil && s.class >= 0 {
		if clusters := p.clusterLoss(s, h, a); clusters != nil {
			r.loss = nn.Combine(p.c.BagWeight, nn.CrossEntropy(r.logits, []int{s.class}, nil), 1-p.c.BagWeight, clusters)
		}
	}
	return r
}

// evidence is what each tile adds to the logits of each class: its weight times its embedding's product with the
// classifier. Without the intercept they sum to the logits. best are the rows that max pooling took, by column,
// where h is only a piece of the bag; else nil.
func (p *pooled) evidence(h, weights []float32, n int, total *int) []float32 {
	d, classes := p.layers.width, p.classes
	e := make([]float32, n*classes)
	count := n
	if total != nil {
		count = *total
	}
	if p.c.Model == Max {
		at := make([]int, d)
		for i := range n {
			for k := range d {
				if h[i*d+k] > h[at[k]*d+k] {
					at[k] = i
				}
			}
		}
		for k, i := range at {
			for c := range classes {
				e[i*classes+c] += h[i*d+k] * p.out.W.Value[k*classes+c]
			}
		}
		return e
	}
	nn.Gemm(false, false, n, classes, d, 1, h, d, p.out.W.Value, classes, 0, e, classes)
	for i := range n {
		for c := range classes {
			switch {
			case weights == nil:
				e[i*classes+c] /= float32(count)
			case p.c.Model == CLAMMB:
				e[i*classes+c] *= weights[i*classes+c]
			default:
				e[i*classes+c] *= weights[i]
			}
		}
	}
	return e
}

// branches gives class c the product of z's part c with the classifier's column c: CLAM-MB's classifiers.
func branches[T nn.Float](d, classes int) nn.Kernel[T] {
	return nn.Kernel[T]{Name: "branches", DropOut: true, DropIn: []bool{false, false, true},
		Forward: func(out []T, in [][]T) {
			for c := range classes {
				out[c] = in[2][c]
				for k := range d {
					out[c] += in[0][c*d+k] * in[1][k*classes+c]
				}
			}
		},
		Backward: func(din, in [][]T, _, dout []T) {
			for c := range classes {
				for k := range d {
					if din[0] != nil {
						din[0][c*d+k] = dout[c] * in[1][k*classes+c]
					}
					if din[1] != nil {
						din[1][k*classes+c] = dout[c] * in[0][c*d+k]
					}
				}
				if din[2] != nil {
					din[2][c] = dout[c]
				}
			}
		}}
}

// clusterLoss is CLAM's: the tiles attended most are of the class, those attended least are not. Nil for a bag
// of one tile, which cannot be both.
func (p *pooled) clusterLoss(s *step, h, a *nn.Node) *nn.Node {
	k := min(p.c.Cluster, h.Rows/2)
	if k == 0 {
		return nil
	}
	g := h.Graph()
	return nn.Apply(clusters[float32](p.clustering(s.class, k)), 1, 1, a, h, g.Param(p.cluster.W), g.Param(p.cluster.B))
}

func (p *pooled) clustering(class, k int) clustering {
	return clustering{width: p.layers.width, classes: p.classes, class: class, k: k, branches: p.c.Model == CLAMMB, exclusive: p.c.Exclusive, svm: p.c.SmoothSVM}
}

// clustering says how CLAM tells instances apart.
type clustering struct {
	width, classes, class, k int
	branches                 bool // each class has an attention of its own
	exclusive, svm           bool
}

// clusters is the loss of a bag's clusters: inputs attention logits [n,heads], embeddings [n,width], and a linear
// layer to 2·classes, of which class c has outputs 2c (out) and 2c+1 (in).
func clusters[T nn.Float](o clustering) nn.Kernel[T] {
	type member struct {
		row, class, in int
		by             float64
		g              [2]float64
	}
	var members []member
	heads := 1
	if o.branches {
		heads = o.classes
	}
	return nn.Kernel[T]{Name: "clusters", DropOut: true, DropIn: []bool{true, false, false, true},
		Forward: func(out []T, in [][]T) {
			members = members[:0]
			for c := range o.classes {
				if c != o.class && !o.exclusive {
					continue
				}
				order := byRank(in[0], heads, min(c, heads-1))
				by := 1.0
				if o.exclusive {
					by /= float64(o.classes)
				}
				if c != o.class { // what it attends to is none of class c
					for _, r := range order[:o.k] {
						members = append(members, member{row: r, class: c, in: 0, by: by / float64(o.k)})
					}
					continue
				}
				for i := range o.k {
					members = append(members, member{row: order[i], class: c, in: 1, by: by / float64(2*o.k)},
						member{row: order[len(order)-1-i], class: c, in: 0, by: by / float64(2*o.k)})
				}
			}
			var loss float64
			for i := range members {
				m := &members[i]
				var s [2]float64
				for j := range 2 {
					col := 2*m.class + j
					s[j] = float64(in[3][col])
					for k := range o.width {
						s[j] += float64(in[1][m.row*o.width+k]) * float64(in[2][k*2*o.classes+col])
					}
				}
				l, g := pairLoss(s, m.in, o.svm)
				loss += m.by * l
				m.g = [2]float64{m.by * g[0], m.by * g[1]}
			}
			out[0] = T(loss)
		},
		Backward: func(din, in [][]T, _, dout []T) {
			for _, d := range din {
				clear(d)
			}
			for _, m := range members {
				for j := range 2 {
					g, col := T(m.g[j])*dout[0], 2*m.class+j
					if din[3] != nil {
						din[3][col] += g
					}
					for k := range o.width {
						if din[1] != nil {
							din[1][m.row*o.width+k] += g * in[2][k*2*o.classes+col]
						}
						if din[2] != nil {
							din[2][k*2*o.classes+col] += g * in[1][m.row*o.width+k]
						}
					}
				}
			}
		}}
}

// byRank are the rows of a [n,heads] from the largest number of a column to the least; of equal ones the first first.
func byRank[T nn.Float](a []T, heads, column int) []int {
	order := make([]int, len(a)/heads)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return cmp.Compare(a[y*heads+column], a[x*heads+column]) })
	return order
}

// pairLoss is the loss of two scores of which the right one is named, and its gradient: log Σ e^(s+Δ) − s(right),
// with Δ 1 for the wrong one in the smooth top-1 SVM (temperature and margin 1), else 0.
func pairLoss(s [2]float64, right int, svm bool) (loss float64, g [2]float64) {
	gap := s[1-right] - s[right]
	if svm {
		gap++
	}
	g[1-right] = 1 / (1 + math.Exp(-gap))
	g[right] = -g[1-right]
	return max(gap, 0) + math.Log1p(math.Exp(-math.Abs(gap))), g
}
