package report

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"coverslip"
)

// A cohort as large as TCGA: 12,000 slides in five folds, two methods, every figure with its interval.
func BenchmarkReport12000(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	run := coverslip.Run{Classes: []string{"a", "b"}, Methods: []coverslip.Method{{Name: "m"}, {Name: MeanPooling}}}
	var all []coverslip.Prediction
	for i := range 12000 {
		for _, m := range run.Methods {
			p := rng.Float64()
			all = append(all, coverslip.Prediction{Method: m.Name, Split: fmt.Sprint(i % 5), Slide: coverslip.SlideID(fmt.Sprintf("%064d", i)), Patient: fmt.Sprint(i * 2 / 3), Truth: i % 2, P: []float64{1 - p, p}})
		}
	}
	for b.Loop() {
		Of(run, all, Options{Draws: 1000})
	}
}
