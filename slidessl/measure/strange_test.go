package measure_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"

	"coverslip"
	"coverslip/slidessl/measure"
)

func TestScoresMeetScikitLearn(t *testing.T) {
	raw, err := os.ReadFile("testdata/strange.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		D                                   int
		Class                               []int
		X, Y                                []float32
		Share, Shrinkage, Passed            float64
		K, Kept                             int
		Mahalanobis, Near, Residual, Energy []float64
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		m, err := measure.FitMahalanobis(c.X, c.D, c.Class)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "shrinkage", m.Shrinkage, c.Shrinkage, 1e-9)
		r, err := measure.FitResidual(c.X, c.D, c.Share)
		if err != nil {
			t.Fatal(err)
		}
		if r.Components() != c.Kept {
			t.Errorf("%d components, scikit-learn keeps %d", r.Components(), c.Kept)
		}
		got := make([]float64, len(c.Mahalanobis))
		for name, s := range map[string]struct {
			scorer measure.Scorer
			want   []float64
			off    float64
		}{"Mahalanobis": {m, c.Mahalanobis, 1e-9}, "nearest": {measure.FitNearest(c.X, c.D, c.K), c.Near, 1e-5}, "residual": {r, c.Residual, 1e-9}} {
			s.scorer.Score(got, c.Y)
			for j, want := range s.want {
				near(t, fmt.Sprintf("case %d, %s of row %d", i, name, j), got[j], want, s.off*math.Max(1, want))
			}
		}
		wide := make([]float64, len(c.Y))
		for j, v := range c.Y {
			wide[j] = float64(v)
		}
		measure.Energy(got, wide, c.D)
		for j, want := range c.Energy {
			near(t, "energy", got[j], want, 1e-12*math.Max(1, math.Abs(want)))
		}
		near(t, "passed at 0.8", measure.Passed(c.Mahalanobis[:10], c.Mahalanobis[10:], 0.8), c.Passed, 1e-12)
	}
}

func TestScoresByHand(t *testing.T) {
	// Four rows around the origin, at 2 along x and 1 along y: variances 2 and 0.5.
	x := []float32{2, 0, -2, 0, 0, 1, 0, -1}
	m, err := measure.FitMahalanobis(x, 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Σ(Σz²)² = 16+16+1+1; noise = (34/4 - 4.25)/4/2, away = (4.25 - 2·1.25²)/2.
	shrunk := math.Min((34.0/4-4.25)/8, (4.25-3.125)/2) / ((4.25 - 3.125) / 2)
	near(t, "shrinkage", m.Shrinkage, shrunk, 1e-12)
	got := make([]float64, 1)
	m.Score(got, []float32{3, 4})
	vx, vy := (1-shrunk)*2+shrunk*1.25, (1-shrunk)*0.5+shrunk*1.25
	near(t, "Mahalanobis", got[0], 9/vx+16/vy, 1e-9)

	n := measure.FitNearest(x, 2, 2)
	n.Score(got, []float32{5, 5}) // at 45° of (1,0) and (0,1)
	near(t, "second nearest", got[0], math.Sqrt(2-math.Sqrt2), 1e-6)

	r, err := measure.FitResidual(x, 2, 0.8)
	if err != nil {
		t.Fatal(err)
	}
	r.Score(got, []float32{7, 3}) // the first component is x, with 8 of 10
	if near(t, "residual", got[0], 9, 1e-9); r.Components() != 1 {
		t.Errorf("%d components", r.Components())
	}

	measure.Unsure(got, []float64{0.2, 0.7, 0.1}, 3)
	near(t, "unsure", got[0], 0.3, 1e-12)
	measure.Energy(got, []float64{1, 1}, 2)
	near(t, "energy", got[0], -1-math.Ln2, 1e-12)
	measure.Energy(got, []float64{1000, 0}, 2)
	near(t, "energy of large numbers", got[0], -1000, 1e-9)
}

func TestAGateLetsItsSharePass(t *testing.T) {
	usual := []float64{5, 1, 4, 2, 3}
	for share, want := range map[float64]float64{0.2: 1, 0.5: 3, 0.8: 4, 0.95: 5, 1: 5} {
		if got := measure.Threshold(usual, share); got != want {
			t.Errorf("%g of them pass %g, want %g", share, got, want)
		}
	}
	near(t, "passed", measure.Passed(usual, []float64{0, 4, 4.5, 9}, 0.8), 0.5, 0)
}

func TestEqualEmbeddingsTeachNothing(t *testing.T) {
	if _, err := measure.FitMahalanobis([]float32{1, 2, 1, 2}, 2, nil); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("%v", err)
	}
	nan := float32(math.NaN())
	if _, err := measure.FitMahalanobis([]float32{1, 2, nan, 2}, 2, nil); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("NaN: %v", err)
	}
}

func TestAStrangeNaNIsStrange(t *testing.T) {
	x, nan := []float32{2, 0, -2, 0, 0, 1, 0, -1}, []float32{1, float32(math.NaN())}
	m, err := measure.FitMahalanobis(x, 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := measure.FitResidual(x, 2, 0.5)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []measure.Scorer{m, r, measure.FitNearest(x, 2, 1)} {
		got := []float64{0}
		if s.Score(got, nan); got[0] == got[0] {
			t.Errorf("%T: %g", s, got[0])
		}
	}
}
