package mil

import (
	"math"
	"math/rand/v2"
	"slices"

	"coverslip/internal/nn"
)

// sparse lays embedded tiles on the map of the slide and convolves it where there is tissue: two residual blocks
// of sparse 3 × 3 convolutions, the first with stride 2, as in the aggregators of slidessl, then the mean over
// active places and a linear classifier. Each place is normalised by itself (layer norm): the batch norm of those
// aggregators, over a step's single map, would take away what tells one bag from another.
type sparse struct {
	c        *Config
	classes  int
	layers   layers
	conv     [4]*nn.Param // [9·width,width]
	norms    [5]normParams
	shortcut *nn.Dense
	out      *nn.Dense
}

func newSparse(c *Config, dim, classes int, rng *rand.Rand) *sparse {
	p := &sparse{c: c, classes: classes, layers: newLayers(c, dim, rng)}
	d := p.layers.width
	names := [4]string{"block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2"}
	for i := range p.conv {
		p.conv[i] = nn.NewParam(names[i]+".weight", 9*d, d)
		nn.Normal(p.conv[i], math.Sqrt(2/float64(9*d)), rng) // He et al., arXiv 1502.01852
		p.norms[i] = newNormParams(names[i]+".norm", d)
	}
	p.shortcut = nn.NewDense("block1.shortcut", d, d, false, rng)
	p.norms[4] = newNormParams("block1.shortcut.norm", d)
	p.out = nn.NewDense("classifier", d, classes, true, rng)
	return p
}

func (p *sparse) params() []*nn.Param {
	all := p.layers.params()
	for i := range p.norms {
		if i < len(p.conv) {
			all = append(all, p.conv[i])
		}
		all = append(all, p.norms[i].gamma, p.norms[i].beta)
	}
	return append(append(all, p.shortcut.Params()...), p.out.Params()...)
}

func (p *sparse) forward(s *step, x *nn.Node) result {
	g := x.Graph()
	h := p.layers.apply(s, x)
	m := lay(s.coords, x.Rows)
	h = nn.SegmentMean(nn.Rows(h, m.order), m.cuts)

	down := nn.Strided(m.sites)
	same := nn.Submanifold(down.Sites)
	conv := func(i int, x *nn.Node, b *nn.Rulebook) *nn.Node { return nn.SparseConv(x, g.Param(p.conv[i]), b) }
	short := p.norms[4].apply(p.shortcut.Apply(nn.SparsePool(h, down)))
	y := nn.ReLU(p.norms[0].apply(conv(0, h, down)))
	y = nn.ReLU(nn.Add(p.norms[1].apply(conv(1, y, same)), short))
	z := nn.ReLU(p.norms[2].apply(conv(2, y, same)))
	y = nn.ReLU(nn.Add(p.norms[3].apply(conv(3, z, same)), y))
	pooled := nn.SegmentMean(y, whole(y.Rows))

	return result{logits: p.out.Apply(pooled), keep: []*nn.Node{y}, explain: func() (_, evidence []float32) {
		// What each place adds to the logits, shared among the tiles it has seen.
		d, classes := p.layers.width, p.classes
		of := make([]float32, y.Rows*classes)
		nn.Gemm(false, false, y.Rows, classes, d, 1/float32(y.Rows), y.Value(), d, p.out.W.Value, classes, 0, of, classes)
		seen := make([]int, y.Rows)
		for _, r := range down.Rules {
			for i, site := range r.In {
				seen[r.Out[i]] += m.cuts[site+1] - m.cuts[site]
			}
		}
		evidence = make([]float32, x.Rows*classes)
		for _, r := range down.Rules {
			for i, site := range r.In {
				for _, tile := range m.order[m.cuts[site]:m.cuts[site+1]] {
					for c := range classes {
						evidence[int(tile)*classes+c] += of[int(r.Out[i])*classes+c] / float32(seen[r.Out[i]])
					}
				}
			}
		}
		return nil, evidence
	}}
}

// layout is where tiles lie on a map whose places are one tile apart.
type layout struct {
	sites []nn.Site
	order []int32     // tiles, those of a place beside each other
	cuts  nn.Segments // of order, by place
}

// lay puts tiles on places of the smallest distance that two of them have along an axis.
func lay(coords []int64, n int) layout {
	if coords == nil {
		coords = make([]int64, 2*n)
	}
	var pitch, least [2]int64
	for axis := range 2 {
		v := make([]int64, n)
		for i := range v {
			v[i] = coords[2*i+axis]
		}
		slices.Sort(v)
		least[axis] = v[0]
		for i := 1; i < n; i++ {
			if d := v[i] - v[i-1]; d > 0 && (pitch[axis] == 0 || d < pitch[axis]) {
				pitch[axis] = d
			}
		}
	}
	// One pitch for both axes: tiles are square, and one axis may have a single place.
	p := max(pitch[0], pitch[1], 1)
	if pitch[0] > 0 && pitch[1] > 0 {
		p = min(pitch[0], pitch[1])
	}
	at := func(i int32) nn.Site {
		return nn.Site{X: int32((coords[2*i] - least[0]) / p), Y: int32((coords[2*i+1] - least[1]) / p)} //nolint:gosec // a number of rows, or of epochs
	}
	l := layout{order: make([]int32, n), cuts: nn.Segments{0}}
	for i := range l.order {
		l.order[i] = int32(i)
	}
	slices.SortStableFunc(l.order, func(a, b int32) int {
		x, y := at(a), at(b)
		if x.Y != y.Y {
			return int(x.Y - y.Y)
		}
		return int(x.X - y.X)
	})
	for k, i := range l.order {
		s := at(i)
		if len(l.sites) == 0 || l.sites[len(l.sites)-1] != s {
			if k > 0 {
				l.cuts = append(l.cuts, k)
			}
			l.sites = append(l.sites, s)
		}
	}
	l.cuts = append(l.cuts, n)
	return l
}
