package nn

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestVectorFunctionsAreExact(t *testing.T) {
	var x, y []float32
	for v := -95.0; v < 95; v += 0.0137 {
		x = append(x, float32(v))
	}
	for v := -1.0; v < 1; v += 0.000173 {
		x = append(x, float32(v))
	}
	x = append(x, 0, float32(math.Inf(1)), float32(math.Inf(-1)))
	y = make([]float32, len(x))
	for _, f := range []struct {
		name string
		to   func(dst, x []float32)
		want func(float64) float64
	}{
		{"tanh", tanhTo[float32], math.Tanh},
		{"sigmoid", sigmoidTo[float32], func(v float64) float64 { return 1 / (1 + math.Exp(-v)) }},
		{"exp", func(dst, x []float32) { expTo(dst, x, 0) }, func(v float64) float64 {
			if v < -87 || v > 88 { // clamped: softmax never asks
				return math.NaN()
			}
			return math.Exp(v)
		}},
	} {
		f.to(y, x)
		for i, v := range x {
			want := f.want(float64(v))
			if math.IsNaN(want) {
				continue
			}
			if d := math.Abs(float64(y[i])-want) / math.Max(math.Abs(want), 1e-30); !(d < 4e-7) {
				t.Fatalf("%s(%g) = %g, want %g", f.name, v, y[i], want)
			}
		}
	}
	nan := []float32{float32(math.NaN())}
	for _, f := range []func(dst, x []float32){tanhTo[float32], sigmoidTo[float32], func(dst, x []float32) { expTo(dst, x, 0) }} {
		out := []float32{0}
		if f(out, nan); out[0] == out[0] {
			t.Error("NaN is lost")
		}
	}
}

func TestSparseConvolutionIsTheDenseOneWhereSitesAre(t *testing.T) {
	const cin, cout, size = 3, 4, 9
	rng := rand.New(rand.NewPCG(8, 9))
	var sites []Site
	for y := range int32(size) {
		for x := range int32(size) {
			if rng.IntN(3) > 0 || x == size-1 && y == size-1 {
				sites = append(sites, Site{0, x, y})
			}
		}
	}
	x := make([]float64, len(sites)*cin)
	w := make([]float64, 9*cin*cout)
	for i := range x {
		x[i] = rng.NormFloat64()
	}
	for i := range w {
		w[i] = rng.NormFloat64()
	}
	dense := func(px, py int32, stride, pad int32) []float64 {
		out := make([]float64, cout)
		for i, s := range sites {
			kx, ky := s.X-(px*stride-pad), s.Y-(py*stride-pad)
			if kx < 0 || kx > 2 || ky < 0 || ky > 2 {
				continue
			}
			for a := range cin {
				for b := range cout {
					out[b] += x[i*cin+a] * w[(int(ky*3+kx)*cin+a)*cout+b]
				}
			}
		}
		return out
	}
	for _, c := range []struct {
		name        string
		book        *Rulebook
		stride, pad int32
	}{{"submanifold", Submanifold(sites), 1, 1}, {"strided", Strided(sites), 2, 0}} {
		out := make([]float64, len(c.book.Sites)*cout)
		sparseConv[float64](cin, cout, c.book).Forward(out, [][]float64{x, w})
		for i, s := range c.book.Sites {
			for b, want := range dense(s.X, s.Y, c.stride, c.pad) {
				if math.Abs(out[i*cout+b]-want) > 1e-12 {
					t.Fatalf("%s at %v: %g, want %g", c.name, s, out[i*cout+b], want)
				}
			}
		}
		// A map of 9 × 9 becomes one of 5 × 5: its size is made 11, whose half is odd.
		if c.stride == 2 && len(c.book.Sites) != 5*5 {
			t.Errorf("%d output sites", len(c.book.Sites))
		}
	}
}

func TestALoneSiteIsConvolvedAlone(t *testing.T) {
	// (2,4): x is even and meets outputs 1 and 0, y meets 2 and 1; the map is made 7 wide and high, so 3 places.
	b := Strided([]Site{{0, 2, 4}})
	got := map[Site]bool{}
	for _, s := range b.Sites {
		got[s] = true
	}
	if len(got) != 4 || !got[Site{0, 1, 2}] || !got[Site{0, 0, 2}] || !got[Site{0, 1, 1}] || !got[Site{0, 0, 1}] {
		t.Errorf("%v", b.Sites)
	}
	for k, r := range Submanifold([]Site{{0, 2, 4}}).Rules {
		if r.whole != (k == 4) || len(r.In) > 0 {
			t.Errorf("rule %d: %+v", k, r)
		}
	}
}

func TestNTXentByHand(t *testing.T) {
	// Two pairs; every view of the first is (1,0), of the second (0,1): s = 1/τ with itself and its pair, 0 with the rest.
	z := []float64{1, 0, 0, 2, 3, 0, 0, 1}
	out := []float64{0}
	ntxent[float64](4, 2, 0.5).Forward(out, [][]float64{z})
	want := -2 + math.Log(math.Exp(2)+2)
	if math.Abs(out[0]-want) > 1e-12 {
		t.Errorf("%g, want %g", out[0], want)
	}
}

func TestWorkersDoNotChangeBits(t *testing.T) {
	defer SetWorkers(2)
	rng := rand.New(rand.NewPCG(1, 1))
	m, n, k := 700, 130, 300
	a, b := make([]float32, m*k), make([]float32, k*n)
	for i := range a {
		a[i] = rng.Float32() - 0.5
	}
	for i := range b {
		b[i] = rng.Float32() - 0.5
	}
	var first []float32
	for _, w := range []int{1, 2, 3, 16} {
		SetWorkers(w)
		c := make([]float32, m*n)
		Gemm(false, false, m, n, k, 1, a, k, b, n, 0, c, n)
		if first == nil {
			first = c
		}
		for i := range c {
			if c[i] != first[i] {
				t.Fatalf("%d workers change number %d", w, i)
			}
		}
	}
}

func TestGemmInPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct{ m, n, k int }{{1, 1, 1}, {5, 7, 3}, {700, 31, 90}, {3000, 64, 64}, {7, 5, 0}} {
		for _, ta := range []bool{false, true} {
			for _, tb := range []bool{false, true} {
				a, b := make([]float32, c.m*c.k), make([]float32, c.k*c.n)
				for i := range a {
					a[i] = rng.Float32()
				}
				for i := range b {
					b[i] = rng.Float32()
				}
				lda, ldb := c.k, c.n
				if ta {
					lda = c.m
				}
				if tb {
					ldb = c.k
				}
				got := make([]float32, c.m*c.n)
				for i := range got {
					got[i] = 1
				}
				Gemm(ta, tb, c.m, c.n, c.k, 2, a, max(lda, 1), b, max(ldb, 1), 0.5, got, c.n)
				for _, at := range []int{0, len(got) / 2, len(got) - 1} {
					i, j := at/c.n, at%c.n
					want := 0.5
					for l := range c.k {
						x, y := i*lda+l, l*ldb+j
						if ta {
							x = l*lda + i
						}
						if tb {
							y = j*ldb + l
						}
						want += 2 * float64(a[x]) * float64(b[y])
					}
					if math.Abs(float64(got[at])-want) > 1e-3*math.Max(1, want) {
						t.Fatalf("%+v %v %v at %d: %g, want %g", c, ta, tb, at, got[at], want)
					}
				}
			}
		}
	}
}

func TestPseudoInverseInvertsAndIsDifferentiated(t *testing.T) {
	const blocks, m = 2, 4
	rng := rand.New(rand.NewPCG(3, 3))
	x := make([]float64, blocks*m*m)
	for i := range x {
		x[i] = rng.Float64() * 0.2
		if i/m%m == i%m {
			x[i]++
		}
	}
	z, product := make([]float64, len(x)), make([]float64, m*m)
	pseudoInverse[float64](blocks, m, 8).Forward(z, [][]float64{x})
	for b := range blocks {
		Gemm(false, false, m, m, m, 1, x[b*m*m:(b+1)*m*m], m, z[b*m*m:(b+1)*m*m], m, 0, product, m)
		for i, v := range product {
			if want := float64(min(max(1-(i/m-i%m)*(i/m-i%m), 0), 1)); math.Abs(v-want) > 1e-6 {
				t.Fatalf("block %d: the product with the inverse has %g at %d", b, v, i)
			}
		}
	}
	PseudoInverseGradient(t, pseudoInverse[float64](blocks, m, 3), x)
}

func TestMasksDropTheSameInPieces(t *testing.T) {
	const rows, cols, p = 500, 16, 0.3
	x := make([]float32, rows*cols)
	for i := range x {
		x[i] = 1
	}
	whole, piece := make([]float32, len(x)), make([]float32, 100*cols)
	drop[float32](cols, Mask{P: p, Seed: 5}, false).Forward(whole, [][]float32{x})
	at := make([]int32, 100)
	for i := range at {
		at[i] = int32(3*i + 40)
	}
	drop[float32](cols, Mask{P: p, Seed: 5, Rows: at}, false).Forward(piece, [][]float32{x[:len(piece)]})
	dropped := 0
	for i := range piece {
		if piece[i] != whole[int(at[i/cols])*cols+i%cols] {
			t.Fatalf("row %d is dropped otherwise", at[i/cols])
		}
	}
	for _, v := range whole {
		if v == 0 {
			dropped++
		}
	}
	// 8,000 numbers: five standard deviations are 0.026
	if share := float64(dropped) / (rows * cols); math.Abs(share-p) > 0.026 {
		t.Errorf("%g are dropped, not %g", share, p)
	}
}
