package objective

import (
	"math/rand/v2"
	"testing"

	"coverslip/internal/nn"
)

// BenchmarkStep is an objective's part of a training step: 256 slides of a cohort of 2,000, two views, embeddings of 512.
func BenchmarkStep(b *testing.B) {
	for _, name := range Names() {
		b.Run(name, func(b *testing.B) {
			o := Options{Batch: 256, Cohort: 2000}
			if methods[name].labelled {
				o.Classes = 4
			}
			rng := rand.New(rand.NewPCG(1, 2))
			made, err := New(name, 512, o, rng)
			if err != nil {
				b.Fatal(err)
			}
			mem := nn.NewMemory()
			defer mem.Free()
			h := nn.NewParam("h", 512, 512)
			nn.Normal(h, 1, rng)
			batch := Batch{Slides: 256, Views: 2, Global: 2, Step: 50, Steps: 100, Labels: make([]int, 256)}
			for i := range batch.Labels {
				batch.Labels[i] = i % 4
			}
			for b.Loop() {
				g := nn.NewGraph(mem, true)
				var target *nn.Node
				if _, average := made.Momentum(50, 100); average {
					target = g.Constant(512, 512, append([]float32(nil), h.Value...))
				}
				if _, err := g.Backward(made.Loss(g.Param(h), target, batch)); err != nil {
					b.Fatal(err)
				}
				g.Close()
				made.Stepped(batch)
			}
		})
	}
}
