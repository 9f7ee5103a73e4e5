package slidessl

import (
	"cmp"
	"math"
	"slices"
)

// Precision follows how well the mean of a slide's instances is known while they are drawn in an order
// that is spread evenly over the slide (tiler.Spread).
//
// The error of such a sample is smaller than its variance over n, because neighbours on the slide are
// alike: it is estimated from the differences of neighbours along the curve (Wolter, An investigation
// of some estimators of variance for systematic sampling, JASA 79, 1984, estimator v2), less the share
// of the slide that is in the sample already.
type Precision struct {
	dim   int
	all   int // instances the slide has
	drawn []drawnInstance
}

type drawnInstance struct {
	place    int // along the curve
	features []float32
}

// NewPrecision follows a slide of all instances of dim values.
func NewPrecision(all, dim int) *Precision { return &Precision{dim: dim, all: all} }

// Add takes the next instance, [D], and its place along the curve. It keeps a copy.
func (p *Precision) Add(place int, features []float32) {
	if len(features) != p.dim {
		panic("slidessl: an instance of another length")
	}
	p.drawn = append(p.drawn, drawnInstance{place, slices.Clone(features)})
}

// Error is the standard error of the mean as a share of the mean's length: the angle, in radians, by
// which the embedding may be off. It is 1 before there are two instances, and 0 when all are there.
func (p *Precision) Error() float64 {
	n := len(p.drawn)
	switch {
	case n >= p.all:
		return 0
	case n < 2:
		return 1
	}
	slices.SortFunc(p.drawn, func(a, b drawnInstance) int { return cmp.Compare(a.place, b.place) })
	sum := make([]float64, p.dim)
	var steps float64
	for i, x := range p.drawn {
		for k, v := range x.features {
			sum[k] += float64(v)
			if i > 0 {
				d := float64(v) - float64(p.drawn[i-1].features[k])
				steps += d * d
			}
		}
	}
	var length float64
	for _, v := range sum {
		length += v / float64(n) * v / float64(n)
	}
	if !(length > 0) {
		return 1
	}
	left := 1 - float64(n)/float64(p.all)
	variance := steps / float64(2*(n-1)) / float64(n) * left
	return min(math.Sqrt(variance/length), 1)
}
