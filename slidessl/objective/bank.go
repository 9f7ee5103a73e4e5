package objective

import (
	"math"
	"math/rand/v2"

	"coverslip/internal/nn"
)

// bank keeps the keys of the last steps, and what each is of: a slide, or a class; -1 where that is not known.
type bank struct {
	keys *nn.Param // [n,d]
	of   *nn.Param // [1,n]
	at   *nn.Param // [1,1], where the next key goes

	waiting []float32 // this step's keys
	ids     []int
}

func newBank(n, d int) *bank {
	b := &bank{keys: nn.NewParam("queue.keys", n, d), of: nn.NewParam("queue.of", 1, n), at: nn.NewParam("queue.at", 1, 1)}
	for i := range b.of.Value {
		b.of.Value[i] = -1
	}
	for _, p := range b.params() {
		p.Fixed = true
	}
	return b
}

func (b *bank) params() []*nn.Param { return []*nn.Param{b.keys, b.of, b.at} }

// next says which keys push will add; ids may be nil. Numbers up to 2²⁴ are told apart.
func (b *bank) next(keys []float32, ids []int) {
	b.waiting = append(b.waiting[:0], keys...)
	b.ids = append(b.ids[:0], ids...)
}

func (b *bank) push() {
	d := b.keys.Cols
	for i := range len(b.waiting) / d {
		at := int(b.at.Value[0])
		copy(b.keys.Value[at*d:(at+1)*d], b.waiting[i*d:(i+1)*d])
		b.of.Value[at] = -1
		if len(b.ids) > 0 {
			b.of.Value[at] = float32(b.ids[i])
		}
		b.at.Value[0] = float32((at + 1) % b.keys.Rows)
	}
	b.waiting = b.waiting[:0]
}

// unit brings rows of d numbers to length 1.
func unit(x []float32, d int) {
	for from := 0; from < len(x); from += d {
		row := x[from : from+d]
		by := float32(1 / math.Max(math.Sqrt(nn.Dot(row, row)), 1e-12))
		for i := range row {
			row[i] *= by
		}
	}
}

// tReX is the supervised training of Sariyildiz et al. (arXiv 2206.15369, equation 2, "online class means"):
// projections of the averaged network (m = 0.999) of slides with a label fill a memory of 8,192, or of the cohort's
// size; a class' prototype w is their mean, and
//
//	-log( e^(z·w_y/τ) / Σ_c e^(z·w_c/τ) ), all at length 1, τ = 0.1
//
// is averaged over the views of labelled slides whose class is in the memory. What a batch adds to it serves the
// steps after; the first step learns nothing. The projector's input is brought to length 1, as in the authors'
// code; the prototypes being of its output, it can be thrown away, and that is why embeddings transfer. Views of one
// size pass the norms together.
type tReX struct {
	base
	temperature float64
	memory      *bank
}

func newTReX(dim int, o Options, rng *rand.Rand) Objective {
	t := &tReX{base: newBase(dim, o, rng), temperature: o.Temperature}
	t.projector.unit = true
	t.follow(o.Momentum, false)
	t.memory = newBank(o.Queue, t.out(dim))
	t.kept = append(t.kept, t.memory.params()...)
	return t
}

func (t *tReX) Labelled() bool { return true }

func (t *tReX) Loss(h, target *nn.Node, b Batch) *nn.Node {
	b.check(h)
	z := nn.Normalise(b.through(t.projector, h, b.Views, together))
	k := b.through(t.target, target, b.Global, together)
	prototypes, place := t.prototypes()
	var rows []int32
	var targets []int
	var seen []int32 // rows of the first view with a label
	var classes []int
	for i := range h.Rows {
		label := -1
		if b.Labels != nil {
			label = b.Labels[i%b.Slides]
		}
		if label >= 0 && i < b.Slides {
			seen, classes = append(seen, int32(i)), append(classes, label)
		}
		if c, there := place[label]; there {
			rows, targets = append(rows, int32(i)), append(targets, c)
		}
	}
	loss := nn.Scale(0, nn.Mean(z))
	if len(rows) > 0 {
		w := h.Graph().Constant(len(place), z.Cols, prototypes)
		loss = nn.CrossEntropy(nn.Scale(1/t.temperature, nn.MatMul(nn.Rows(z, rows), w, false, true)), targets, nil)
	}
	if len(seen) == 0 {
		return loss
	}
	return watch(loss, nn.Rows(k, seen), func(k []float32) { t.memory.next(k, classes) })
}

// prototypes are the mean keys of the classes in the memory, at length 1, in the order in which they stand there,
// and which class is where.
func (t *tReX) prototypes() ([]float32, map[int]int) {
	d := t.memory.keys.Cols
	var sums []float64
	place := map[int]int{}
	for i, class := range t.memory.of.Value {
		if class < 0 {
			continue
		}
		c, there := place[int(class)]
		if !there {
			c = len(place)
			place[int(class)] = c
			sums = append(sums, make([]float64, d)...)
		}
		for j, v := range t.memory.keys.Value[i*d : (i+1)*d] {
			sums[c*d+j] += float64(v)
		}
	}
	w := make([]float32, len(sums))
	for c := range len(place) {
		var square float64
		for _, v := range sums[c*d : (c+1)*d] {
			square += v * v
		}
		for j, v := range sums[c*d : (c+1)*d] {
			w[c*d+j] = float32(v / math.Max(math.Sqrt(square), 1e-12))
		}
	}
	return w, place
}

func (t *tReX) Stepped(b Batch) {
	t.base.Stepped(b)
	t.memory.push()
}
