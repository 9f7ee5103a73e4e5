package probe

import (
	"math"
	"math/rand/v2"
	"testing"
)

// embeddings are n rows that a few dozen factors make, as those of slides are, and noisy labels.
func embeddings(n, dim, classes int) (x []float32, y []int) {
	rng := rand.New(rand.NewPCG(1, 2))
	const factors = 64
	mix := make([]float64, factors*dim)
	for k := range factors {
		for j := range dim {
			mix[k*dim+j] = rng.NormFloat64() / math.Sqrt(float64(k+1))
		}
	}
	speaks := make([]float64, classes*factors)
	for i := range speaks {
		speaks[i] = 0.4 * rng.NormFloat64()
	}
	x, y = make([]float32, n*dim), make([]int, n)
	z := make([]float64, factors)
	for i := range n {
		for k := range z {
			z[k] = rng.NormFloat64()
		}
		for j := range dim {
			v := 0.5 * rng.NormFloat64()
			for k, a := range z {
				v += a * mix[k*dim+j]
			}
			x[i*dim+j] = float32(v)
		}
		best := math.Inf(-1)
		for c := range classes {
			m := -math.Log(rng.ExpFloat64())
			for k, a := range z {
				m += a * speaks[c*factors+k]
			}
			if m > best {
				best, y[i] = m, c
			}
		}
	}
	return x, y
}

func BenchmarkPath12000x512(b *testing.B) {
	const n, dim = 12000, 512
	x, y := embeddings(n, dim, 2)
	folds := make([]Fold, 5)
	for i := range n {
		for f := range folds {
			if i%5 == f {
				folds[f].Val = append(folds[f].Val, i)
			} else {
				folds[f].Train = append(folds[f].Train, i)
			}
		}
	}
	for b.Loop() {
		ch, err := Choose(x, dim, y, 2, folds, Strengths(), Options{})
		if err != nil || ch.Unfinished > 0 {
			b.Fatal(ch.Unfinished, err)
		}
		b.ReportMetric(ch.C, "C")
	}
}
