package objective

import (
	"math/rand/v2"
	"testing"

	"coverslip"
)

func TestWrongOptionsAreRefusedWithARemedy(t *testing.T) {
	for name, c := range map[string]struct {
		objective string
		o         Options
	}{
		"unknown":                {"simsiam", Options{}},
		"temperature below zero": {"simclr", Options{Temperature: -1}},
		"what it does not have":  {"simclr", Options{Queue: 512}},
		"layers below none":      {"simclr", Options{Layers: -2}},
		"width of no projector":  {"simclr", Options{Layers: NoProjector, Hidden: 5}},
		"batch of one":           {"simclr", Options{Batch: 1}},
	} {
		_, err := New(c.objective, 8, c.o, rand.New(rand.NewPCG(1, 2)))
		if coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
