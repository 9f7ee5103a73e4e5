// Package slidessl turns a bag into a slide embedding.
//
// Today it holds the mean, the baseline every trained aggregator must beat. It reads bags through
// a narrow door and knows nothing of files, databases or encoders.
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

// rule stands where a trained aggregator has a file: change the arithmetic and it must change.
const rule = "mean of instances in float64, in plan order; divided by its L2 norm; rounded to float32"

// Model names the rule.
func (Mean) Model() coverslip.Model {
	sum := sha256.Sum256([]byte(rule))
	return coverslip.Model{Kind: coverslip.AggregatorModel, Name: "mean", SHA256: hex.EncodeToString(sum[:]), Source: rule}
}

// chunk is how many instances are read at a time: 2.5 MB of 1280 float32.
const chunk = 512

// Embed sums in float64 and in plan order, so that neither the number of workers that encoded the
// bag nor its length costs a bit.
func (Mean) Embed(ctx context.Context, bag Bag) ([]float32, error) {
	n, d := bag.Len(), bag.Dim()
	if n == 0 {
		return nil, invalid(errors.New("the bag is empty"), "the slide has no tissue; lower --min-tissue if it should have")
	}
	sum := make([]float64, d)
	rows := make([]float32, min(n, chunk)*d)
	for from := 0; from < n; from += chunk {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m := min(chunk, n-from)
		if err := bag.Features(rows[:m*d], from, m); err != nil {
			return nil, err
		}
		for i := range m {
			for k, v := range rows[i*d : (i+1)*d] {
				sum[k] += float64(v)
			}
		}
	}
	var square float64
	for k := range sum {
		sum[k] /= float64(n)
		square += sum[k] * sum[k]
	}
	norm := math.Sqrt(square)
	if !(norm > 0) || math.IsInf(norm, 0) {
		return nil, invalid(fmt.Errorf("the mean of %d instances has norm %g", n, norm), "the encoder gave zeros, NaN or infinities; encode the slide again")
	}
	out := make([]float32, d)
	for k, v := range sum {
		out[k] = float32(v / norm)
	}
	return out, nil
}

func invalid(err error, hint string) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "aggregate by mean", Err: err, Hint: hint}
}
