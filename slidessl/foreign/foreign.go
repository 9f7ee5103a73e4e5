// Package foreign runs aggregators that were trained elsewhere and exported to ONNX: FEATHER, CHIEF, PRISM,
// TITAN, GigaPath's slide encoder, or anybody's own. Features of a bag go in, where the tiles lie if it asks,
// and a slide embedding comes out. The weights stay the user's to fetch; files are held to the same hash and
// safety rules as those of encoders (package encoder/onnx).
package foreign

import (
	"context"
	"errors"
	"fmt"
	"math"

	"coverslip"
	"coverslip/encoder/onnx"
	"coverslip/slidessl"
	"coverslip/slidessl/view"
)

// Aggregator is one at work. It is safe for concurrent use.
type Aggregator struct {
	Spec Spec
	file *onnx.Function
}

var _ slidessl.Aggregator = (*Aggregator)(nil)

// Open loads the ONNX file at path, with the files of weights beside it, which must have the hashes of the
// specification and its inputs and output.
func Open(path string, spec Spec, on onnx.Provider) (*Aggregator, error) {
	f, err := onnx.OpenFunction(path, spec.Files(), spec.signature(), on)
	if err != nil {
		return nil, err
	}
	return &Aggregator{spec, f}, nil
}

// Close waits for running calls and frees the file's session.
func (a *Aggregator) Close() error { return a.file.Close() }

// Model is what it is known by.
func (a *Aggregator) Model() coverslip.Model { return a.Spec.Model() }

func (s Spec) signature() onnx.Signature {
	batched := func(batch bool, shape ...int64) []int64 {
		if batch {
			return append([]int64{1}, shape...)
		}
		return shape
	}
	sig := onnx.Signature{Output: s.Output, Inputs: []onnx.Port{{Name: s.Features.Tensor, Shape: batched(s.Features.Batch, -1, int64(s.Features.Dim))}}}
	if c := s.Coords; c != nil {
		sig.Inputs = append(sig.Inputs, onnx.Port{Name: c.Tensor, Int64: c.Type == Int64, Shape: batched(c.Batch, -1, 2)})
	}
	if p := s.Pitch; p != nil {
		shape := []int64{1}
		if p.Scalar {
			shape = []int64{}
		}
		sig.Inputs = append(sig.Inputs, onnx.Port{Name: p.Tensor, Int64: p.Type == Int64, Shape: shape})
	}
	return sig
}

// Embed runs a bag through the file and brings what comes out to length one. An empty bag, features of
// another width, and an output of another length or that is not finite are Invalid.
func (a *Aggregator) Embed(ctx context.Context, bag slidessl.Bag) ([]float32, error) {
	s := a.Spec
	bad := func(err error, hint string) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "embed by aggregator " + s.Name, Err: err, Hint: hint}
	}
	switch {
	case bag.Len() == 0:
		return nil, bad(errors.New("the bag is empty"), "the slide has no tissue; lower --min-tissue if it should have")
	case bag.Dim() != s.Features.Dim:
		return nil, bad(fmt.Errorf("its features have %d numbers, and it takes %d", bag.Dim(), s.Features.Dim), "encode the slides with the encoder it was trained on"+ifAny(": ", s.Encoder))
	}
	inputs, err := s.inputs(bag)
	if err != nil {
		return nil, err
	}
	out, shape, err := a.file.Run(ctx, inputs)
	if err != nil {
		return nil, err
	}
	if len(out) != s.Dim {
		return nil, bad(fmt.Errorf("output %s has the shape %v, and its specification says %d numbers", s.Output, shape, s.Dim), "export it so, or correct its specification")
	}
	var square float64
	for _, v := range out {
		square += float64(v) * float64(v)
	}
	if !(square > 0) || math.IsInf(square, 0) {
		return nil, bad(fmt.Errorf("the embedding of %d tiles has length %g", bag.Len(), math.Sqrt(square)), "features or weights hold NaN, infinities or zeros; coverslip models verify")
	}
	for k := range out {
		out[k] = float32(float64(out[k]) / math.Sqrt(square))
	}
	return out, nil
}

func ifAny(before, s string) string {
	if s == "" {
		return ""
	}
	return before + s
}

// inputs are the tensors of a bag, in the order of the signature.
func (s Spec) inputs(bag slidessl.Bag) ([]onnx.Tensor, error) {
	n, d := bag.Len(), bag.Dim()
	rows := make([]int, n)
	for i := range rows {
		rows[i] = i
	}
	if s.MaxTiles > 0 && n > s.MaxTiles {
		rows = rows[:s.MaxTiles]
		for i := range rows {
			rows[i] = i * n / s.MaxTiles
		}
	}
	features := make([]float32, len(rows)*d)
	if len(rows) == n {
		if err := bag.Features(features, 0, n); err != nil {
			return nil, err
		}
	} else {
		for i, r := range rows {
			if err := bag.Features(features[i*d:(i+1)*d], r, 1); err != nil {
				return nil, err
			}
		}
	}
	batched := func(batch bool, shape ...int64) []int64 {
		if batch {
			return append([]int64{1}, shape...)
		}
		return shape
	}
	in := []onnx.Tensor{{Shape: batched(s.Features.Batch, int64(len(rows)), int64(d)), Floats: features}}
	if s.Coords == nil && s.Pitch == nil {
		return in, nil
	}
	placed, ok := bag.(slidessl.Placed)
	if !ok {
		return nil, &coverslip.Error{Kind: coverslip.Unsupported, Op: "embed by aggregator " + s.Name, Err: errors.New("the bag does not say where its tiles lie")}
	}
	corners := make([]int64, 2*n)
	if err := placed.Coords(corners, 0, n); err != nil {
		return nil, err
	}
	pitch := placed.Pitch()
	if !(pitch > 0) {
		pitch = view.Pitch(corners)
	}
	if c := s.Coords; c != nil {
		t := onnx.Tensor{Shape: batched(c.Batch, int64(len(rows)), 2)}
		scale := c.Scale
		if scale == 0 {
			scale = 1
		}
		if c.Unit == Tiles {
			scale /= pitch
		}
		for _, r := range rows {
			for _, v := range corners[2*r : 2*r+2] {
				if c.Type == Int64 {
					t.Ints = append(t.Ints, int64(math.Floor(float64(v)*scale)))
				} else {
					t.Floats = append(t.Floats, float32(float64(v)*scale))
				}
			}
		}
		in = append(in, t)
	}
	if p := s.Pitch; p != nil {
		t := onnx.Tensor{Shape: []int64{1}}
		if p.Scalar {
			t.Shape = nil
		}
		if p.Type == Int64 {
			t.Ints = []int64{int64(math.Round(pitch))}
		} else {
			t.Floats = []float32{float32(pitch)}
		}
		in = append(in, t)
	}
	return in, nil
}
