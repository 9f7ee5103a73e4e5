package objective

import (
	"math"
	"math/rand/v2"
	"testing"

	"coverslip/internal/nn"
	"coverslip/internal/nn/nntest"
)

// tested is a kernel with the lengths of its inputs, and which of them are differentiated.
type tested[T nn.Float] struct {
	kernel nn.Kernel[T]
	in     []int
}

// all kernels, each in every way it is used.
func all[T nn.Float]() []tested[T] {
	two, crops := Batch{Slides: 3, Views: 2, Global: 2}, Batch{Slides: 3, Views: 4, Global: 2}
	centre := []T{0.1, -0.2, 0.3, 0, 0.05}
	taught := func(dst, x []T) { centred(dst, x, centre, 0.5) }
	return []tested[T]{
		{cosines[T](4, 3), []int{12, 12}},
		{queued[T](4, 3, 7, 0.5, nil, nil), []int{12, 12, 21}},
		{queued[T](4, 3, 7, 0.5, []int{0, 1, -1, 6}, []float32{6, 1, 1, 2, -1, 0, 5}), []int{12, 12, 21}},
		{queued[T](130, 2, 5, 0.5, nil, nil), []int{260, 260, 10}}, // more rows than a piece
		{classes[T]([]int{0, 1, 0, 1, 1, -3, 0, -3, 7}, 4, 0.7), []int{36}},
		{invariant[T](5, 3, 0.6, 2), []int{15, 15}},
		{distilled(two, 5, 0.4, 2, taught), []int{30, 30}},
		{distilled(crops, 5, 0.4, 2, taught), []int{60, 60}},
		{redundant[T](4, 0.3), []int{16}},
		{spread[T](6, 4, 25, 1), []int{24}},
	}
}

func TestGradientsMeetCentralDifferences(t *testing.T) {
	for _, c := range all[float64]() {
		wanted := make([]bool, len(c.in))
		wanted[0] = true
		in := make([][]float64, len(c.in))
		rng := rand.New(rand.NewPCG(1, uint64(c.in[0])))
		for i, n := range c.in {
			in[i] = make([]float64, n)
			for j := range in[i] {
				in[i][j] = 0.7 * rng.NormFloat64() // columns' deviations on both sides of VICReg's hinge
			}
		}
		if c.kernel.Name == "invariant" {
			held(&c.kernel, in, 5, 3, 0.6, 2)
		}
		nntest.GradientAt(t, c.kernel, 1, in, wanted)
	}
}

// held puts a plain loss in the place of ReLIC's, whose p in the second term stays what it is at the start.
func held(k *nn.Kernel[float64], start [][]float64, n, d int, temperature, weight float64) {
	forward := k.Forward
	rows := func(a, b []float64) []float64 {
		p := make([]float64, n*n)
		for i := range n {
			var s float64
			for j := range n {
				p[i*n+j] = math.Exp(nn.Dot(a[i*d:(i+1)*d], b[j*d:(j+1)*d]) / temperature)
				s += p[i*n+j]
			}
			for j := range n {
				p[i*n+j] /= s
			}
		}
		return p
	}
	constant := rows(start[0], start[1])
	k.Forward = func(out []float64, in [][]float64) {
		forward(out, in) // the gradient is written here
		p, q := rows(in[0], in[1]), rows(in[1], in[0])
		out[0] = 0
		for i := range n {
			out[0] -= math.Log(p[i*n+i]) / float64(n)
			for j := range n {
				c := constant[i*n+j]
				out[0] += weight * c * math.Log(c/q[i*n+j]) / float64(n)
			}
		}
	}
}

// The codes of SwAV come from the scores themselves, and are constants all the same: the gradient is that of
// codes held still.
func TestAssignmentsAreNotDifferentiated(t *testing.T) {
	b, k := Batch{Slides: 3, Views: 3, Global: 2}, 4
	codes := func(dst, x []float64) {
		for v := range b.Global {
			sinkhorn(dst[v*b.Slides*k:(v+1)*b.Slides*k], x[v*b.Slides*k:(v+1)*b.Slides*k], k, 0.3, sinkhornRounds)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	x := make([]float64, b.Slides*b.Views*k)
	for i := range x {
		x[i] = rng.NormFloat64()
	}
	held := make([]float64, b.Slides*b.Global*k)
	codes(held, x[:len(held)])
	gradient := func(f func(dst, x []float64)) (out, grad []float64) {
		kernel := distilled(b, k, 0.4, 1, f)
		out, grad = make([]float64, 1), make([]float64, len(x))
		kernel.Forward(out, [][]float64{x})
		kernel.Backward([][]float64{grad}, [][]float64{x}, out, []float64{1})
		return out, grad
	}
	_, got := gradient(codes)
	_, want := gradient(func(dst, _ []float64) { copy(dst, held) })
	for i, w := range want {
		if got[i] != w {
			t.Fatalf("number %d: %g, want %g", i, got[i], w)
		}
	}
	nntest.GradientAt(t, distilled(b, k, 0.4, 1, func(dst, _ []float64) { copy(dst, held) }), 1, [][]float64{x}, nil)
}

func TestFloat32MeetsFloat64(t *testing.T) {
	double := all[float64]()
	for i, c := range all[float32]() {
		k, k64 := c.kernel, double[i].kernel
		only(&k)
		only(&k64)
		nntest.Single(t, k, k64, 2e-5, 1, c.in...)
	}
}

// only asks a kernel for the gradient by its first input, and says of the others that it is zero.
func only[T nn.Float](k *nn.Kernel[T]) {
	whole := k.Backward
	k.Backward = func(din, in [][]T, out, dout []T) {
		first := make([][]T, len(din))
		first[0] = din[0]
		whole(first, in, out, dout)
		for _, d := range din[1:] {
			clear(d)
		}
	}
}

func value(k nn.Kernel[float64], in ...[]float64) float64 {
	out := []float64{math.NaN()}
	k.Forward(out, in)
	return out[0]
}

func TestLossesByHand(t *testing.T) {
	e, log := math.Exp, math.Log
	// Rows (1,0) and (0,1), as units.
	x := []float64{1, 0, 0, 1}
	half := Batch{Slides: 2, Views: 2, Global: 2}
	for name, c := range map[string]struct{ got, want float64 }{
		// The first guess is right, the second at a right angle.
		"byol": {value(cosines[float64](2, 2), x, []float64{1, 0, 1, 0}), (0 + 2) / 2.0},
		// Keys are (1,0) and (1,0); the queue has (0,1) twice, τ = 1/2: positives 2 and 0, negatives 0 and 2.
		"moco": {value(queued[float64](2, 2, 2, 0.5, nil, nil), x, []float64{1, 0, 1, 0}, []float64{0, 1, 0, 1}),
			(log(e(2)+2) - 2 + log(1+2*e(2))) / 2},
		// The same, but the second key of the queue is the second slide's own.
		"moco without own keys": {value(queued[float64](2, 2, 2, 0.5, []int{3, 8}, []float32{5, 8}), x, []float64{1, 0, 1, 0}, []float64{0, 1, 0, 1}),
			(log(e(2)+2) - 2 + log(1+e(2))) / 2},
		// Two classes at right angles, two rows each, τ = 1/2.
		"supcon": {value(classes[float64]([]int{0, 1, 0, 1}, 2, 0.5), []float64{1, 0, 0, 1, 1, 0, 0, 1}), log(e(2)+2) - 2},
		// Three rows of one class and one alone, which has nobody to be near: all at one point, τ = 1.
		"supcon alone": {value(classes[float64]([]int{0, 0, 0, 1}, 2, 1), []float64{1, 0, 1, 0, 1, 0, 1, 0}), 3 * log(3) / 4},
		// s is the identity over τ = 1/2: p and q agree, and only the contrast is left.
		"relic": {value(invariant[float64](2, 2, 0.5, 5), x, x), log(e(2)+1) - 2},
		// Both targets are (1,0), τ = 1: s = [1 1; 0 0]. Rows of p are even; q of both slides is (e,1)/(e+1).
		"relic torn": {value(invariant[float64](2, 2, 1, 3), x, []float64{1, 0, 1, 0}),
			log(2) + 3*(-log(2)-0.5*(1-log(e(1)+1))-0.5*(0-log(e(1)+1)))},
		// The teacher is sure of 0 for slide 0 and of 1 for slide 1 in both views; the student has scores 1 and 0, τ = 1.
		"dino": {value(distilled(half, 2, 1, 2, func(dst, x []float64) { copy(dst, x) }), []float64{1, 0, 1, 0, 1, 0, 1, 0}, []float64{1, 0, 0, 1, 1, 0, 0, 1}),
			(log(e(1)+1) - 1 + log(e(1)+1)) / 2},
		"barlow":           {value(redundant[float64](2, 0.5), []float64{1, 0.5, -0.5, 0}), 1 + 0.5*0.5},
		"barlow, identity": {value(redundant[float64](2, 0.5), []float64{1, 0, 0, 1}), 0},
		// Columns (1,-1) and (0.1,-0.1): variances 2 and 0.02, covariance 0.2 twice.
		"vicreg": {value(spread[float64](2, 2, 25, 1), []float64{1, 0.1, -1, -0.1}), 25/2.0*(1-math.Sqrt(0.0201))/2 + 2*0.04/2},
	} {
		if !(math.Abs(c.got-c.want) < 1e-12) {
			t.Errorf("%s: %.15g, want %.15g", name, c.got, c.want)
		}
	}
}

func TestSinkhornSharesSlidesOut(t *testing.T) {
	// Three slides like prototype 0 best, the third of them least; one likes 1. Shared out evenly, each prototype takes
	// two, and the third goes to 1.
	scores := []float64{2, 0, 2, 0, 1.2, 1, 0, 1.5}
	q := make([]float64, len(scores))
	sinkhorn(q, scores, 2, 0.05, 200)
	for i, want := range []float64{1, 0, 1, 0, 0, 1, 0, 1} {
		if math.Abs(q[i]-want) > 1e-3 {
			t.Fatalf("%v", q)
		}
	}
	// One prototype takes all of everybody.
	sinkhorn(q[:4], []float64{1, 7, -3, 0}, 1, 0.05, 3)
	for _, v := range q[:4] {
		if v != 1 {
			t.Fatalf("%v", q[:4])
		}
	}
}

func TestATeacherIsCentredAndSharp(t *testing.T) {
	p := make([]float64, 4)
	centred(p, []float64{1, 2, 3, 2}, []float64{0, 1}, 0.5)
	if want := 1 / (1 + math.Exp(-4)); p[0] != 0.5 || p[1] != 0.5 || math.Abs(p[2]-want) > 1e-12 {
		t.Errorf("%v", p)
	}
}

func TestNaNIsNotLost(t *testing.T) {
	for _, c := range all[float64]() {
		in := make([][]float64, len(c.in))
		for i, n := range c.in {
			in[i] = make([]float64, n)
			for j := range in[i] {
				in[i][j] = 0.1 * float64(j%7)
			}
		}
		in[0][1] = math.NaN()
		if v := value(c.kernel, in...); v == v {
			t.Errorf("%s: the loss is %g", c.kernel.Name, v)
		}
	}
}

func TestWorkersDoNotChangeLargeLosses(t *testing.T) {
	defer nn.SetWorkers(2)
	b := Batch{Slides: 150, Views: 3, Global: 2}
	class := make([]int, 500)
	for i := range class {
		class[i] = i % 7
	}
	for _, c := range []tested[float32]{
		{queued[float32](150, 16, 3000, 0.2, nil, nil), []int{150 * 16, 150 * 16, 3000 * 16}},
		{classes[float32](class, 16, 0.1), []int{500 * 16}},
		{invariant[float32](400, 16, 0.3, 5), []int{400 * 16, 400 * 16}},
		{distilled(b, 300, 0.1, 2, func(dst, x []float32) { centred(dst, x, make([]float32, 300), 0.04) }), []int{450 * 300, 300 * 300}},
		{redundant[float32](256, 0.005), []int{256 * 256}},
		{spread[float32](300, 256, 25, 1), []int{300 * 256}},
	} {
		in := make([][]float32, len(c.in))
		rng := rand.New(rand.NewPCG(1, 2))
		for i, n := range c.in {
			in[i] = make([]float32, n)
			for j := range in[i] {
				in[i][j] = float32(rng.NormFloat64())
			}
		}
		var first []float32
		for _, workers := range []int{1, 2, 7} {
			nn.SetWorkers(workers)
			out, din := make([]float32, 1), make([][]float32, len(in))
			din[0] = make([]float32, c.in[0])
			c.kernel.Forward(out, in)
			c.kernel.Backward(din, in, out, []float32{1})
			got := append(out, din[0]...)
			if first == nil {
				first = got
			}
			for i, v := range got {
				if v != first[i] {
					t.Fatalf("%s: %d workers change number %d", c.kernel.Name, workers, i)
				}
			}
		}
	}
}
