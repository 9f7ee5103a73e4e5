package objective

import (
	"math"
	"math/rand/v2"
	"slices"

	"coverslip/internal/nn"
)

// byol is Bootstrap your own latent (Grill et al., arXiv 2006.07733): a predictor (linear, norm, ReLU, linear)
// behind the projector guesses the averaged network's projection of another view. With p the guess of one view
// and t the target of a large one, at length 1, the loss of a pair is 2 - 2·p·t; it is added over both directions
// (of more than two views: twice the mean over the ordered pairs). The average's share grows from 0.996 to 1.
// Views pass the norms apart, as in the authors' code. Predictor's width: the projector's.
type byol struct {
	base
	predictor *mlp
}

func newBYOL(dim int, o Options, rng *rand.Rand) Objective {
	y := &byol{base: newBase(dim, o, rng)}
	out := y.out(dim)
	y.predictor = newMLP("predictor", true, rng, out, o.Predictor, out)
	y.beside = y.predictor.params()
	y.follow(o.Momentum, true)
	return y
}

func (y *byol) Loss(h, target *nn.Node, b Batch) *nn.Node {
	b.check(h)
	z := b.through(y.projector, h, b.Views, apart)
	p, t := nn.Normalise(b.through(y.predictor, z, b.Views, apart)), nn.Normalise(b.through(y.target, target, b.Global, apart))
	pairs := b.ordered()
	p, t = nn.Rows(p, b.rows(pairs, 0)), nn.Rows(t, b.rows(pairs, 1))
	return nn.Scale(2, nn.Apply(cosines[float32](p.Rows, p.Cols), 1, 1, p, t))
}

// swav is Swapping assignments between views (Caron et al., arXiv 2006.09882): a view's scores at prototypes
// must predict to which of them another view was assigned. With z and the prototypes c at length 1:
//
//	mean over pairs (w,v), v large, and slides of -Σ_k q(v)_k · log softmax(z(w)·c/τ)_k, τ = 0.1
//
// where the codes q of a large view come from its scores by three rounds of Sinkhorn's algorithm (ε = 0.05),
// which shares a view's slides out evenly. 3,000 prototypes, or one a slide of a smaller cohort; they are brought
// back to length 1 after every step, and stay as drawn for the first hundredth of the steps (the paper: one epoch).
// The queue that the paper adds for small batches is not kept. Views of one size pass the norms together.
type swav struct {
	base
	prototypes           *nn.Param
	temperature, epsilon float64
}

const sinkhornRounds = 3

func newSwAV(dim int, o Options, rng *rand.Rand) Objective {
	s := &swav{base: newBase(dim, o, rng), temperature: o.Temperature, epsilon: o.TargetTemperature}
	s.prototypes = newPrototypes(o.Prototypes, s.out(dim), rng)
	s.beside = []*nn.Param{s.prototypes}
	return s
}

func newPrototypes(k, d int, rng *rand.Rand) *nn.Param {
	p := nn.NewParam("prototypes", k, d)
	nn.Normal(p, 1, rng)
	unit(p.Value, d)
	return p
}

func (s *swav) Loss(h, _ *nn.Node, b Batch) *nn.Node {
	b.check(h)
	z := nn.Normalise(b.through(s.projector, h, b.Views, together))
	scores := nn.MatMul(z, atFirst(z.Graph(), s.prototypes, b), false, true)
	return nn.Apply(distilled(b, scores.Cols, s.temperature, 1, func(dst, x []float32) {
		for v := range b.Global {
			from, to := v*b.Slides*scores.Cols, (v+1)*b.Slides*scores.Cols
			sinkhorn(dst[from:to], x[from:to], scores.Cols, s.epsilon, sinkhornRounds)
		}
	}), 1, 1, scores)
}

func (s *swav) Stepped(b Batch) {
	s.base.Stepped(b)
	unit(s.prototypes.Value, s.prototypes.Cols)
}

// atFirst puts a parameter into the graph as a constant for the first hundredth of the steps.
func atFirst(g *nn.Graph, p *nn.Param, b Batch) *nn.Node {
	n := g.Param(p) // its gradient is zeros where it is not used
	if 100*b.Step < b.Steps {
		return g.Constant(p.Rows, p.Cols, p.Value)
	}
	return n
}

// sinkhorn writes codes of scores [n,k]: e^(score/ε), whose columns and then rows are brought to equal sums,
// several times over (Cuturi, arXiv 1306.0895). Rows sum to one.
func sinkhorn[T nn.Float](dst, scores []T, k int, epsilon float64, rounds int) {
	n, top := len(scores)/k, float64(slices.Max(scores))
	q, sums := make([]float64, n*k), make([]float64, k)
	nn.ParallelRows(n, 16*k, func(from, to int) {
		for i := from * k; i < to*k; i++ {
			q[i] = math.Exp((float64(scores[i]) - top) / epsilon)
		}
	})
	for range rounds {
		clear(sums)
		for i := range n {
			for j, v := range q[i*k : (i+1)*k] {
				sums[j] += v
			}
		}
		for j, s := range sums {
			if sums[j] = 1 / s; s == 0 { // a prototype that is infinitely far from all takes none
				sums[j] = 0
			}
		}
		nn.ParallelRows(n, 2*k, func(from, to int) {
			for i := from; i < to; i++ {
				row, s := q[i*k:(i+1)*k], 0.0
				for j, v := range row {
					row[j] = v * sums[j]
					s += row[j]
				}
				for j := range row {
					row[j] /= s
				}
			}
		})
	}
	for i, v := range q {
		dst[i] = T(v)
	}
}

// dino is self-distillation without labels (Caron et al., arXiv 2104.14294): the averaged network (0.996, growing
// to 1) is a teacher that sees large views. Both end in a layer of unit weights behind projections at length 1,
// and with scores g and t of student and teacher
//
//	mean over pairs (w,v), v large, and slides of -Σ_k softmax((t(v)-c)/τt)_k · log softmax(g(w)/τs)_k
//
// c is the centre, the running mean of the teacher's scores (0.9 of it stays), τs = 0.1, and τt grows from 0.04 to
// 0.07 in the first tenth of the steps (the paper: 30 of 300 epochs). 65,536 scores, or one a slide of a smaller
// cohort; their weights stay as drawn for the first hundredth of the steps (the paper: one epoch). Views of one
// size pass the norms together.
type dino struct {
	base
	prototypes, average *nn.Param
	centre              *nn.Param
	mean                []float32 // of this step's teacher
	student, teacher    float64
}

const (
	dinoFirst  = 0.04 // the teacher's temperature before its warm-up
	dinoCentre = 0.9
)

func newDINO(dim int, o Options, rng *rand.Rand) Objective {
	d := &dino{base: newBase(dim, o, rng), student: o.Temperature, teacher: o.TargetTemperature}
	d.prototypes = newPrototypes(o.Prototypes, d.out(dim), rng)
	d.beside = []*nn.Param{d.prototypes}
	d.average = d.follow(o.Momentum, true, d.prototypes)[0]
	d.centre = nn.NewParam("centre", 1, o.Prototypes)
	d.centre.Fixed = true
	d.kept = append(d.kept, d.centre)
	return d
}

// sharpness is the teacher's temperature.
func (d *dino) sharpness(b Batch) float64 {
	if warm := b.Steps / 10; b.Step < warm && d.teacher > dinoFirst {
		return dinoFirst + (d.teacher-dinoFirst)*float64(b.Step)/float64(warm)
	}
	return d.teacher
}

func (d *dino) Loss(h, target *nn.Node, b Batch) *nn.Node {
	b.check(h)
	g := h.Graph()
	scores := func(m *mlp, h *nn.Node, views int, p *nn.Node) *nn.Node {
		return nn.MatMul(nn.Normalise(b.through(m, h, views, together)), nn.Normalise(p), false, true)
	}
	student := scores(d.projector, h, b.Views, atFirst(g, d.prototypes, b))
	teacher := scores(d.target, target, b.Global, g.Param(d.average))
	k, sharp := student.Cols, d.sharpness(b)
	loss := nn.Apply(distilled(b, k, d.student, 2, func(dst, x []float32) { centred(dst, x, d.centre.Value, sharp) }), 1, 1, student, teacher)
	return watch(loss, teacher, func(t []float32) { d.mean = columnMeans(t, k) })
}

// centred writes softmax((x-c)/τ) of each row.
func centred[T nn.Float](dst, x, centre []T, temperature float64) {
	k := len(centre)
	nn.ParallelRows(len(x)/k, 8*k, func(from, to int) {
		for r := from; r < to; r++ {
			row := dst[r*k : (r+1)*k]
			for i, v := range x[r*k : (r+1)*k] {
				row[i] = (v - centre[i]) * T(1/temperature)
			}
			softmaxTo(row, row)
		}
	})
}

func columnMeans(x []float32, k int) []float32 {
	sums := make([]float64, k)
	for i, v := range x {
		sums[i%k] += float64(v)
	}
	means := make([]float32, k)
	for i, s := range sums {
		means[i] = float32(s / float64(len(x)/k))
	}
	return means
}

func (d *dino) Stepped(b Batch) {
	d.base.Stepped(b)
	for i, v := range d.mean {
		d.centre.Value[i] = dinoCentre*d.centre.Value[i] + (1-dinoCentre)*v
	}
	d.mean = nil
}
