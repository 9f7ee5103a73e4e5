package slidessl_test

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"

	"coverslip"
	"coverslip/slidessl"
)

// rows is a bag in memory.
type rows [][]float32

func (r rows) Len() int { return len(r) }
func (r rows) Dim() int {
	if len(r) == 0 {
		return 0
	}
	return len(r[0])
}
func (r rows) Features(dst []float32, from, n int) error {
	for i := range n {
		copy(dst[i*r.Dim():], r[from+i])
	}
	return nil
}

func TestMean(t *testing.T) {
	t.Run("HandComputed", func(t *testing.T) {
		// mean (3, 4), norm 5
		got, err := slidessl.Mean{}.Embed(t.Context(), rows{{1, 8}, {5, 0}})
		if err != nil {
			t.Fatal(err)
		}
		if got[0] != 0.6 || got[1] != 0.8 {
			t.Errorf("got %v, want [0.6 0.8]", got)
		}
	})
	t.Run("LongBagIsReadInPiecesAndHasNormOne", func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		bag := make(rows, 1500)
		sum := make([]float64, 7)
		for i := range bag {
			bag[i] = make([]float32, 7)
			for k := range bag[i] {
				bag[i][k] = rng.Float32() - 0.3
				sum[k] += float64(bag[i][k])
			}
		}
		got, err := slidessl.Mean{}.Embed(t.Context(), bag)
		if err != nil {
			t.Fatal(err)
		}
		var norm, want float64
		for _, v := range sum {
			want += v * v
		}
		for k, v := range got {
			norm += float64(v) * float64(v)
			if d := math.Abs(float64(v) - sum[k]/math.Sqrt(want)); d > 1e-6 {
				t.Errorf("component %d is %g off", k, d)
			}
		}
		if math.Abs(norm-1) > 1e-6 {
			t.Errorf("squared norm %g", norm)
		}
	})
	for name, bag := range map[string]rows{
		"Empty":     {},
		"AllZero":   {{0, 0}, {0, 0}},
		"NaN":       {{1, 2}, {float32(math.NaN()), 1}},
		"Cancels":   {{1, -2}, {-1, 2}},
		"Infinites": {{float32(math.Inf(1)), 0}},
	} {
		t.Run("Refuses"+name, func(t *testing.T) {
			if v, err := (slidessl.Mean{}).Embed(t.Context(), bag); coverslip.KindOf(err) != coverslip.Invalid {
				t.Errorf("got %v, %v; want an error of kind invalid", v, err)
			}
		})
	}
	t.Run("StopsWhenCancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := (slidessl.Mean{}).Embed(ctx, rows{{1}}); coverslip.KindOf(err) != coverslip.Canceled {
			t.Errorf("got %v", err)
		}
	})
}
