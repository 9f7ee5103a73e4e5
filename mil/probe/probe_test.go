package probe

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"coverslip"
)

// Central differences of the value find the same derivatives, with ties, weights and rows left out.
func TestGradientsAreThoseOfFiniteDifferences(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	const n = 12
	y2, y3, w, target := make([]int, n), make([]int, n), make([]float64, n), make([]float64, 2*n)
	time, event := make([]float64, n), make([]bool, n)
	for i := range n {
		y2[i], y3[i], w[i] = rng.IntN(2), rng.IntN(3), 0.5+rng.Float64()
		target[i], target[n+i] = rng.NormFloat64(), rng.NormFloat64()
		time[i], event[i] = float64(1+rng.IntN(5)), rng.IntN(3) > 0
	}
	w[3] = 0
	for name, l := range map[string]loss{"logistic": logistic{y2, w}, "multinomial": multinomial{y3, w, 3}, "squares": squares{target, w}, "cox": newCox(time, event)} {
		m := make([]float64, l.outputs()*n)
		for i := range m {
			m[i] = 2 * rng.NormFloat64()
		}
		g := make([]float64, len(m))
		l.gradient(g, m)
		const h = 1e-5
		for i := range m {
			at := m[i]
			m[i] = at + h
			up := l.value(m)
			m[i] = at - h
			down := l.value(m)
			m[i] = at
			if want := (up - down) / (2 * h); math.Abs(g[i]-want) > 1e-6 {
				t.Errorf("%s: derivative %d is %g, want %g", name, i, g[i], want)
			}
		}
	}
}

// Two rows, one feature of ±1, C 1: w solves w = 2/(1+eʷ), whose root is 0.6748.
func TestByHand(t *testing.T) {
	m, err := FitLogistic([]float32{-1, 1}, 1, []int{0, 1}, 2, 1, Options{Tolerance: 1e-10})
	if err != nil {
		t.Fatal(err)
	}
	w := m.Weight[0]
	if math.Abs(w-2/(1+math.Exp(w))) > 1e-8 || math.Abs(w-0.6748) > 1e-4 || math.Abs(m.Intercept[0]) > 1e-8 {
		t.Errorf("w = %g, b = %g", w, m.Intercept[0])
	}
}

// Float32 sums lead to where float64 sums say that the gradient is as small as was asked.
func TestFoldsInStepEndWhereEachAloneDoes(t *testing.T) {
	const n, dim, classes = 600, 40, 3
	for _, o := range []Options{{}, {Balanced: true, Standardise: true}} {
		x, y := embeddings(n, dim, classes)
		for i := range x {
			x[i] = x[i]*float32(1+i%dim) + 5
		}
		folds := make([]Fold, 3)
		for i := range n {
			for f := range folds {
				if i%3 == f {
					folds[f].Val = append(folds[f].Val, i)
				} else {
					folds[f].Train = append(folds[f].Train, i)
				}
			}
		}
		grid := []float64{1e-4, 1e-2, 1}
		o.Tolerance = 1e-9
		ch, err := Choose(x, dim, y, classes, folds, grid, o)
		if err != nil {
			t.Fatal(err)
		}
		for place, c := range grid {
			loss := 0.0
			for _, f := range folds {
				var xs []float32
				for _, r := range f.Train {
					xs = append(xs, x[r*dim:(r+1)*dim]...)
				}
				m, err := FitLogistic(xs, dim, at(y, f.Train), classes, c, o)
				if err != nil || !m.Converged {
					t.Fatal(err)
				}
				for _, r := range f.Val {
					p := make([]float64, classes)
					m.Predict(p, x[r*dim:(r+1)*dim])
					loss -= math.Log(p[y[r]]) / n
				}
			}
			if math.Abs(loss-ch.LogLoss[place]) > 1e-6 {
				t.Errorf("%+v, C %g: log-loss %g in step, %g alone", o, c, ch.LogLoss[place], loss)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	nan := float32(math.NaN())
	for says, fit := range map[string]func() error{
		"feature 1 of row 2 is NaN": func() error {
			_, err := FitLogistic([]float32{1, 2, 3, 4, 5, nan}, 2, []int{0, 1, 1}, 2, 1, Options{})
			return err
		},
		"class 1 has no training row": func() error { _, err := FitLogistic([]float32{1, 2}, 1, []int{0, 0}, 2, 1, Options{}); return err },
		"nothing to tell apart":       func() error { _, err := FitLogistic([]float32{1, 2}, 1, []int{0, 0}, 1, 1, Options{}); return err },
		"no validation rows": func() error {
			_, err := Choose([]float32{1, 2}, 1, []int{0, 1}, 2, []Fold{{Train: []int{0, 1}}}, Strengths(), Options{})
			return err
		},
		"no row has an event": func() error {
			_, err := FitCox([]float32{1, 2}, 1, []float64{1, 2}, []bool{false, false}, 1, Options{})
			return err
		},
		"the time NaN": func() error {
			_, err := FitCox([]float32{1, 2}, 1, []float64{1, math.NaN()}, []bool{true, false}, 1, Options{})
			return err
		},
		"3 neighbours of 2": func() error { _, err := FitNeighbours([]float32{1, 2}, 1, []int{0, 1}, 2, 3); return err },
	} {
		if err := fit(); coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", says, err)
		}
	}
}

// A feature that is the same everywhere, and one given twice, are no trouble.
func TestFeaturesThatDoNotVary(t *testing.T) {
	x, y := embeddings(60, 4, 2)
	for i := range 60 {
		x[i*4+1], x[i*4+2] = 7, x[i*4]
	}
	for _, o := range []Options{{Tolerance: 1e-9}, {Standardise: true, Tolerance: 1e-9}} {
		m, err := FitLogistic(x, 4, y, 2, 1e3, o)
		if err != nil || !m.Converged {
			t.Fatalf("%v, %+v", err, m)
		}
		if math.Abs(m.Weight[1]) > 1e-6 || math.Abs(m.Weight[0]-m.Weight[2]) > 1e-4 {
			t.Errorf("weights %v", m.Weight)
		}
	}
}
