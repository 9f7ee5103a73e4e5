package studies

import (
	"context"
	"sync"

	"coverslip"
	"coverslip/mil"
)

// abmil is gated attention (Ilse et al., arXiv 1802.04712) learned from labels alone: the baseline that Brigato et al.
// (arXiv 2108.13122) ask to be tuned (study.Learner).
type abmil struct {
	ctx  context.Context
	of   *slides
	seed uint64
	mu   sync.Mutex
}

// The grid of abmil, and the rest: narrow and short, for few labels and many draws of them.
var (
	abmilRates  = []float64{3e-4, 2e-3}
	abmilDecays = []float64{1e-2, 1}
)

const abmilWidth, abmilEpochs = 64, 30

// Choices is the size of the grid.
func (a *abmil) Choices() int { return len(abmilRates) * len(abmilDecays) }

// Learn trains one and predicts.
func (a *abmil) Learn(choice int, train, y []int, classes int, test []int) (p []float64, err error) {
	c := mil.Defaults(mil.Gated)
	c.Hidden, c.Attend, c.Epochs = []int{abmilWidth}, abmilWidth, abmilEpochs
	c.LR, c.WeightDecay, c.Seed = abmilRates[choice%len(abmilRates)], abmilDecays[choice/len(abmilRates)], a.seed
	of := make([]int, a.Len())
	for i, slide := range train {
		of[slide] = y[i]
	}
	learned, _, err := mil.Train(a.ctx, a, of, classes, train, nil, c, mil.TrainOptions{})
	if err != nil {
		return nil, err
	}
	for _, i := range test {
		bag, err := a.Open(a.ctx, i)
		if err != nil {
			return nil, err
		}
		predicted, err := learned.Predict(a.ctx, bag, false)
		if err != nil {
			return nil, coverslip.At(a.Name(i), err)
		}
		p = append(p, predicted.P...)
	}
	return p, nil
}

// Len is the number of slides.
func (a *abmil) Len() int { return a.of.Len() }

// Name is the slide's.
func (a *abmil) Name(i int) string { return a.of.Name(i) }

// Open reads the bag of tiles as they are. One slide is read at a time, for a cohort's bags are open while no other is read.
func (a *abmil) Open(_ context.Context, i int) (mil.Bag, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	bag, err := a.of.bag(i)
	if err != nil {
		return nil, err
	}
	held := &mil.Held{Name: a.Name(i), Rows: make([]float32, bag.Len()*bag.Dim()), D: bag.Dim()}
	return held, coverslip.At(held.Name, bag.Features(held.Rows, 0, bag.Len()))
}
