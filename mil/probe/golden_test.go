package probe

import (
	"encoding/json"
	"math"
	"os"
	"testing"
)

// Values of scikit-learn and scikit-survival; bench/reference/probe.py says how they were made.
type golden struct {
	Logistic []struct {
		Name         string
		Dim, Classes int
		X            []float32
		Y            []int
		Cases        []struct {
			C                 float64
			Balanced, Scaled  bool
			Weight, Intercept []float64
			P                 []float64
		}
	}
	Choice []struct {
		Dim, Folds int
		X          []float32
		Y          []int
		Grid, Loss []float64
		C          float64
	}
	Regression []struct {
		Dim    int
		X      []float32
		Y      []int
		Target []float64
		Cases  []struct {
			C                 float64
			Weight, Intercept []float64
			ClassWeight       []float64 `json:"class_weight"`
			ClassIntercept    []float64 `json:"class_intercept"`
			TwoWeight         []float64 `json:"two_weight"`
			TwoIntercept      []float64 `json:"two_intercept"`
		}
	}
	Cox []struct {
		Name  string
		Dim   int
		X     []float32
		Time  []float64
		Event []bool
		Cases []struct {
			C      float64
			Weight []float64
		}
	}
	Near struct {
		Dim, K, Train int
		X             []float32
		Y             []int
		P, Means      []float64
	}
}

func readGolden(t *testing.T) (g golden) {
	t.Helper()
	raw, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

// far is the largest difference.
func far(got, want []float64) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	worst := 0.0
	for i := range got {
		if d := math.Abs(got[i] - want[i]); !(d <= worst) {
			worst = d
		}
	}
	return worst
}

const golds = 1e-4 // what is asked of coefficients

func TestCoefficientsAreThoseOfScikitLearn(t *testing.T) {
	for _, g := range readGolden(t).Logistic {
		for _, c := range g.Cases {
			o := Options{Balanced: c.Balanced, Standardise: c.Scaled, Tolerance: 1e-11}
			m, err := FitLogistic(g.X, g.Dim, g.Y, g.Classes, c.C, o)
			if err != nil {
				t.Fatal(err)
			}
			p := make([]float64, len(c.P))
			m.Predict(p, g.X)
			w, b, q := far(m.Weight, c.Weight), far(m.Intercept, c.Intercept), far(p, c.P)
			t.Logf("%s, C %g, balanced %v, scaled %v: weights %.1g, intercepts %.1g, probabilities %.1g, %d steps", g.Name, c.C, c.Balanced, c.Scaled, w, b, q, m.Steps)
			if !m.Converged || w > golds || b > golds || q > golds {
				t.Errorf("%s, C %g, balanced %v, scaled %v: weights %.1g, intercepts %.1g, probabilities %.1g off; converged %v", g.Name, c.C, c.Balanced, c.Scaled, w, b, q, m.Converged)
			}
		}
	}
}

func TestChoiceIsThatOfScikitLearn(t *testing.T) {
	for _, g := range readGolden(t).Choice {
		folds := make([]Fold, g.Folds)
		for i := range g.Y {
			for f := range folds {
				if i%g.Folds == f {
					folds[f].Val = append(folds[f].Val, i)
				} else {
					folds[f].Train = append(folds[f].Train, i)
				}
			}
		}
		for i, c := range Strengths() {
			if math.Abs(c/g.Grid[i]-1) > 1e-9 {
				t.Errorf("strength %d is %g, want %g", i, c, g.Grid[i])
			}
		}
		ch, err := Choose(g.X, g.Dim, g.Y, 2, folds, Strengths(), Options{Tolerance: 1e-13})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range g.Loss {
			if d := math.Abs(ch.LogLoss[i] - want); !(d < 1e-6*(1+want)) {
				t.Errorf("%d features, C %.3g: log-loss %g, want %g", g.Dim, ch.Grid[i], ch.LogLoss[i], want)
			}
		}
		if math.Abs(ch.C/g.C-1) > 1e-9 || ch.Unfinished != 0 {
			t.Errorf("%d features: C %g, want %g; %d unfinished", g.Dim, ch.C, g.C, ch.Unfinished)
		}
	}
}

func TestRidgeIsThatOfScikitLearn(t *testing.T) {
	for _, g := range readGolden(t).Regression {
		two := make([]int, len(g.Y))
		for i, y := range g.Y {
			if y == 1 {
				two[i] = 1
			}
		}
		for _, c := range g.Cases {
			check := func(what string, m *Linear, err error, weight, intercept []float64) {
				if err != nil {
					t.Fatal(err)
				}
				if w, b := far(m.Weight, weight), far(m.Intercept, intercept); w > golds || b > golds {
					t.Errorf("%s, %d features, C %g: weights %.1g, intercepts %.1g off in %d steps", what, g.Dim, c.C, w, b, m.Steps)
				}
			}
			m, err := FitRidge(g.X, g.Dim, g.Target, c.C, Options{})
			check("regression", m, err, c.Weight, c.Intercept)
			m, err = FitRidgeClassifier(g.X, g.Dim, g.Y, 3, c.C, Options{})
			check("three classes", m, err, c.ClassWeight, c.ClassIntercept)
			m, err = FitRidgeClassifier(g.X, g.Dim, two, 2, c.C, Options{Balanced: true})
			check("two classes", m, err, c.TwoWeight, c.TwoIntercept)
		}
	}
}

func TestCoxIsThatOfScikitSurvival(t *testing.T) {
	for _, g := range readGolden(t).Cox {
		for _, c := range g.Cases {
			m, err := FitCox(g.X, g.Dim, g.Time, g.Event, c.C, Options{Tolerance: 1e-11})
			if err != nil {
				t.Fatal(err)
			}
			if w := far(m.Weight, c.Weight); w > golds {
				t.Errorf("%s, C %g: weights %.1g off in %d steps: %v, want %v", g.Name, c.C, w, m.Steps, m.Weight, c.Weight)
			}
		}
	}
}

func TestNearIsThatOfScikitLearn(t *testing.T) {
	g := readGolden(t).Near
	at := g.Train * g.Dim
	k, err := FitNeighbours(g.X[:at], g.Dim, g.Y[:g.Train], 3, g.K)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]float64, len(g.P))
	k.Predict(p, g.X[at:])
	if d := far(p, g.P); d > 1e-9 {
		t.Errorf("neighbours: %g off", d)
	}
	m, err := FitMeans(g.X[:at], g.Dim, g.Y[:g.Train], 3)
	if err != nil {
		t.Fatal(err)
	}
	m.Predict(p, g.X[at:])
	if d := far(p, g.Means); d > 1e-6 {
		t.Errorf("class means: %g off", d)
	}
}
