package slidessl_test

import (
	"math/rand/v2"
	"testing"

	"coverslip/internal/nn"
	"coverslip/slidessl"
	"coverslip/slidessl/slidessltest"
	"coverslip/slidessl/view"
)

// BenchmarkEpoch is what an epoch of pretrain takes by default: 200 slides of 64 tiles, features of four taps.
func BenchmarkEpoch(b *testing.B) {
	const dim, tiles = 1752, 64
	rng := rand.New(rand.NewPCG(1, 2))
	e := &slidessltest.Encoded{Dim: dim, Tiles: 200 * tiles, Views: [][]float32{make([]float32, 200*tiles*dim)}}
	for i := range e.Views[0] {
		e.Views[0][i] = float32(rng.NormFloat64())
	}
	c := &slidessltest.Cohort{Looks: []*slidessltest.Encoded{e}}
	for n := range 200 {
		var s slidessltest.Slide
		for k := range tiles {
			s.Tiles, s.Places = append(s.Tiles, n*tiles+k), append(s.Places, view.Place{X: float64(k % 8), Y: float64(k / 8)})
		}
		c.Slides = append(c.Slides, s)
	}
	nn.SetWorkers(1)
	defer nn.SetWorkers(2)
	for _, kind := range slidessl.Kinds {
		b.Run(kind, func(b *testing.B) {
			s := slidessl.DefaultSettings(kind, "simclr", dim)
			s.Batch, s.Epochs, s.Warmup = 200, b.N, 0
			if _, err := slidessl.Train(b.Context(), s, c, slidessl.Run{Progress: func(p slidessl.Point) {
				if p.Epoch == 0 || p.Epoch == 1 {
					b.ResetTimer() // what comes before is for once
				}
			}}); err != nil {
				b.Fatal(err)
			}
		})
	}
}
