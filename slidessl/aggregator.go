// Package slidessl turns a bag into a slide embedding, and learns how to without labels.
//
// Mean and MeanSD are fixed rules: the baselines that every trained aggregator must beat. Train learns an
// aggregator (architecture.go) from views of slides (view) for an objective (objective), and Learned is one
// at work. Bags and stored views come through narrow doors (Bag, Source): nothing here knows files of bags,
// databases or encoders.
package slidessl

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"

	"coverslip"
)

// Bag is what an aggregator sees of a slide: the instances, in plan order.
type Bag interface {
	Len() int // rows, N
	Dim() int // columns, D
	// Features writes rows from to from+n into dst, [n*Dim].
	Features(dst []float32, from, n int) error
}

// Aggregator maps a bag to a slide embedding.
type Aggregator interface {
	Model() coverslip.Model
	// Embed returns the embedding, [D'], with L2 norm 1. An empty bag is an error of kind Invalid: a
	// slide without tissue has no embedding. Equal bags give equal bytes. It may be called concurrently.
	Embed(ctx context.Context, bag Bag) ([]float32, error)
}

// Mean is the mean of the instances, L2-normalised.
type Mean struct{}

// MeanSD is the mean of the instances and, beside it, their standard deviation (over all of them, not n-1),
// together L2-normalised: [2·D]. The deviation says how mixed a slide is, which the mean hides.
type MeanSD struct{}

// Rules stand where a trained aggregator has a file: change the arithmetic and they must change.
const (
	meanRule   = "mean of instances in float64, in plan order; divided by its L2 norm; rounded to float32"
	meanSDRule = "mean and standard deviation of instances in float64, in plan order, by two passes; both divided by their common L2 norm; rounded to float32"
)

// Model names the rule.
func (Mean) Model() coverslip.Model { return ruled("mean", meanRule) }

// Model names the rule.
func (MeanSD) Model() coverslip.Model { return ruled("mean+sd", meanSDRule) }

func ruled(name, rule string) coverslip.Model {
	sum := sha256.Sum256([]byte(rule))
	return coverslip.Model{Kind: coverslip.AggregatorModel, Name: name, SHA256: hex.EncodeToString(sum[:]), Source: rule}
}

// chunk is how many instances are read at a time: 2.5 MB of 1280 float32.
const chunk = 512

// Embed sums in float64 and in plan order, so that neither the number of workers that encoded the
// bag nor its length costs a bit.
func (Mean) Embed(ctx context.Context, bag Bag) ([]float32, error) {
	mean, err := meanOf(ctx, bag)
	if err != nil {
		return nil, err
	}
	return unit(mean, bag.Len())
}

// Embed goes over the bag twice, so that deviations that are small beside the mean are not lost.
func (MeanSD) Embed(ctx context.Context, bag Bag) ([]float32, error) {
	mean, err := meanOf(ctx, bag)
	if err != nil {
		return nil, err
	}
	d := bag.Dim()
	both := append(mean, make([]float64, d)...)
	if err := rows(ctx, bag, func(row []float32) {
		for k, v := range row {
			both[d+k] += (float64(v) - both[k]) * (float64(v) - both[k])
		}
	}); err != nil {
		return nil, err
	}
	for k := d; k < 2*d; k++ {
		both[k] = math.Sqrt(both[k] / float64(bag.Len()))
	}
	return unit(both, bag.Len())
}

func meanOf(ctx context.Context, bag Bag) ([]float64, error) {
	if bag.Len() == 0 {
		return nil, invalid(errors.New("the bag is empty"), "the slide has no tissue; lower --min-tissue if it should have")
	}
	mean := make([]float64, bag.Dim())
	err := rows(ctx, bag, func(row []float32) {
		for k, v := range row {
			mean[k] += float64(v)
		}
	})
	for k := range mean {
		mean[k] /= float64(bag.Len())
	}
	return mean, err
}

// rows calls f with each instance, in plan order.
func rows(ctx context.Context, bag Bag, f func([]float32)) error {
	n, d := bag.Len(), bag.Dim()
	buffer := make([]float32, min(n, chunk)*d)
	for from := 0; from < n; from += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		m := min(chunk, n-from)
		if err := bag.Features(buffer[:m*d], from, m); err != nil {
			return err
		}
		for i := range m {
			f(buffer[i*d : (i+1)*d])
		}
	}
	return nil
}

// unit divides by the L2 norm, of a bag of n instances.
func unit(v []float64, n int) ([]float32, error) {
	var square float64
	for _, x := range v {
		square += x * x
	}
	norm := math.Sqrt(square)
	if !(norm > 0) || math.IsInf(norm, 0) {
		return nil, invalid(fmt.Errorf("the mean of %d instances has norm %g", n, norm), "the encoder gave zeros, NaN or infinities; encode the slide again")
	}
	out := make([]float32, len(v))
	for k, x := range v {
		out[k] = float32(x / norm)
	}
	return out, nil
}

func invalid(err error, hint string) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "aggregate by mean", Err: err, Hint: hint}
}
