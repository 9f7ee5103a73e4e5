package slidessl_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"coverslip/slidessl"
)

func TestPrecisionByHand(t *testing.T) {
	p := slidessl.NewPrecision(8, 2)
	if p.Error() != 1 {
		t.Error("an error before there is anything")
	}
	// Along the curve: (1,0), (3,0), (3,4). Steps 4 + 16; mean (7/3, 4/3), length² 65/9.
	p.Add(5, []float32{3, 4})
	p.Add(1, []float32{1, 0})
	p.Add(3, []float32{3, 0})
	want := math.Sqrt(20. / 4 / 3 * (5. / 8) / (65. / 9))
	if got := p.Error(); math.Abs(got-want) > 1e-12 {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPrecisionOfAllIsWhole(t *testing.T) {
	p := slidessl.NewPrecision(2, 1)
	p.Add(0, []float32{1})
	p.Add(1, []float32{2})
	if p.Error() != 0 {
		t.Errorf("got %v", p.Error())
	}
}

// TestPrecisionIsTheErrorMade: over many draws of every k-th instance of a smooth row, the estimate
// agrees with the error really made, which the variance over n overstates many times.
func TestPrecisionIsTheErrorMade(t *testing.T) {
	const all, n, draws = 6400, 64, 300
	rng := rand.New(rand.NewPCG(1, 1))
	value := make([]float32, all)
	var mean float64
	for i := range value {
		value[i] = float32(3 + 2*math.Sin(float64(i)/500) + 0.4*rng.NormFloat64())
		mean += float64(value[i]) / all
	}
	var made, said float64
	for range draws {
		p := slidessl.NewPrecision(all, 1)
		var got float64
		for k := range n {
			i := k*(all/n) + rng.IntN(all/n)
			p.Add(i, value[i:i+1])
			got += float64(value[i]) / n
		}
		made += (got - mean) * (got - mean) / (mean * mean) / draws
		said += p.Error() * p.Error() / draws
	}
	if ratio := math.Sqrt(said / made); ratio < 0.8 || ratio > 1.4 {
		t.Errorf("said %.4f, made %.4f", math.Sqrt(said), math.Sqrt(made))
	}
}
