package measure_test

import (
	"math/rand/v2"
	"testing"

	"coverslip"
	"coverslip/slidessl/measure"
)

func TestAGateLetsTheUsualPass(t *testing.T) {
	const d = 12
	draw := func(n int, rng *rand.Rand, shift float64) (x []float32) {
		for i := range n * d {
			v := rng.NormFloat64() / float64(1+i%d)
			if i%d == d-1 {
				v += shift // where the usual vary least
			}
			x = append(x, float32(v+1))
		}
		return x
	}
	rng := rand.New(rand.NewPCG(1, 2))
	x := draw(200, rng, 0)
	for _, score := range measure.Scores {
		g, err := measure.FitGate(x, d, score, 0.9, rand.New(rand.NewPCG(3, 4)))
		if err != nil {
			t.Fatal(err)
		}
		passed := func(x []float32) (n int) {
			for i := range len(x) / d {
				s, err := g.Strangeness(x[i*d : (i+1)*d])
				if err != nil {
					t.Fatal(err)
				}
				if s <= g.Threshold {
					n++
				}
			}
			return n
		}
		usual, strange := passed(draw(200, rng, 0)), passed(draw(200, rng, 2))
		if usual < 164 || usual > 194 || strange > 10 {
			t.Errorf("%s: %d of 200 usual and %d of 200 strange ones pass", score, usual, strange)
		}
		if _, err := g.Strangeness(make([]float32, d+1)); coverslip.KindOf(err) != coverslip.Invalid {
			t.Error(err)
		}
	}
	for name, c := range map[string]struct {
		n     int
		score string
		pass  float64
	}{"too few": {19, "nearest", 0.9}, "no such score": {50, "vibes", 0.9}, "nobody passes": {50, "nearest", 0}, "all pass": {50, "nearest", 1}} {
		if _, err := measure.FitGate(x[:c.n*d], d, c.score, c.pass, rng); coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
