package slidessl

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"coverslip"
	"coverslip/internal/nn"
	"coverslip/slidessl/view"
)

// Reading says how a trained aggregator reads a slide: the mean of its output over views drawn as in
// training, brought to length one (Giga-SSL: 100 views of 5 tiles). With Views 0 every tile is read once,
// with its neighbours on the map: all tiles as one view, or as several where there are more than wholeTiles.
type Reading struct {
	Views int       `json:"views" yaml:"views"`
	View  view.Spec `json:"view" yaml:"view"` // of which only the large views are drawn
	Seed  uint64    `json:"seed" yaml:"seed"`
}

// Embed is the embedding of a slide of src, [Dim], of length one. Equal arguments give equal bits.
func (t *Trained) Embed(ctx context.Context, mem *nn.Memory, src Source, slide int, r Reading, tap string) ([]float32, error) {
	out, err := t.read(ctx, mem, src, slide, r, tap)
	if err != nil {
		return nil, err
	}
	return t.finish(out, src.Name(slide), tap)
}

// wholeTiles is how many tiles, in plan order, a view of all tiles has at most: 30 MB of 1752 numbers each.
const wholeTiles = 4096

// Reading is how slides are read by default: stored views by 100 draws, as published; tiles as they are each once,
// but by convolutions, which know only maps as thin as those that they learned from.
func (s Settings) Reading() Reading {
	r := Reading{Views: 100, View: s.View, Seed: 1}
	if s.View.Plain && s.Architecture.Kind != "sparse" {
		r.Views = 0
	}
	return r
}

// standardSlides and standardViews bound what the output's mean and deviation are found from.
const standardSlides, standardViews = 2048, 20

// Standardise brings embeddings to mean 0 and deviation 1 over slides of src as they are read by r, where that is another
// way than Settings.Reading, by which Train does it.
func (t *Trained) Standardise(ctx context.Context, src Source, r Reading) error {
	slides, err := withTissue(src)
	if err != nil {
		return err
	}
	mem := nn.NewMemory()
	defer mem.Free()
	return t.standardise(ctx, mem, src, slides, r)
}

// standardise finds the mean and deviation of each number of the output over slides that were trained on, so
// that embeddings can be brought to mean 0 and deviation 1: else the few directions in which slides differ
// most drown what a probe or a search could use. Labels are not needed for it.
func (t *Trained) standardise(ctx context.Context, mem *nn.Memory, src Source, slides []int, r Reading) error {
	d := t.Settings.Architecture.Dim()
	mean, square := make([]float64, d), make([]float64, d)
	slides = slides[:min(len(slides), standardSlides)]
	r.Views, r.Seed = min(r.Views, standardViews), 2
	for _, slide := range slides {
		out, err := t.read(ctx, mem, src, slide, r, "")
		if err != nil {
			return err
		}
		for k, v := range out {
			mean[k] += v / float64(len(slides))
			square[k] += v * v / float64(len(slides))
		}
	}
	var typical float64
	for k := range mean {
		square[k] = max(square[k]-mean[k]*mean[k], 0)
		typical += square[k] / float64(d)
	}
	for k := range mean { // what hardly varies is not blown up
		t.Network.outMean.Value[k] = float32(mean[k])
		t.Network.outScale.Value[k] = float32(1 / math.Sqrt(max(square[k], typical/1000, 1e-12)))
	}
	return nil
}

// read is the mean output over the views of a slide. Pieces of a view of all tiles count by their tiles.
func (t *Trained) read(ctx context.Context, mem *nn.Memory, src Source, slide int, r Reading, tap string) ([]float64, error) {
	rng := rand.New(rand.NewPCG(r.Seed, 0))
	d := src.Dim()
	b := view.Batch{Dim: d, Bags: nn.Segments{0}}
	var mean []float64
	var count float64
	flush := func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		rows, dim, err := t.forward(mem, b, tap)
		if err != nil {
			return err
		}
		if mean == nil {
			mean = make([]float64, dim)
		}
		for i, v := range rows {
			bag := i / dim
			mean[i%dim] += float64(v) * float64(b.Bags[bag+1]-b.Bags[bag])
		}
		count += float64(len(b.At))
		b.X, b.At, b.Bags, b.Means = b.X[:0], b.At[:0], b.Bags[:1], nil
		return nil
	}
	add := func(stored int, tiles []int, at []view.Place) error {
		from := len(b.X)
		b.X = append(b.X, make([]float32, len(tiles)*d)...)
		b.At = append(b.At, at...)
		b.Bags = append(b.Bags, len(b.At))
		if err := src.Read(b.X[from:], slide, stored, tiles); err != nil {
			return err
		}
		if len(b.At) < 512 {
			return nil
		}
		return flush()
	}
	empty := func(err error) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "embed", Path: src.Name(slide), Err: err, Hint: "the slide has no tissue; lower --min-tissue if it should have"}
	}
	if r.Views == 0 {
		places, err := src.Places(slide, 0)
		if err != nil {
			return nil, err
		}
		if len(places) == 0 {
			return nil, empty(view.ErrEmpty)
		}
		var whole []float32
		if len(places) > wholeTiles && t.Settings.Architecture.Kind == "prototypes" {
			if whole, err = wholeMean(src, slide, places); err != nil {
				return nil, err
			}
		}
		for from := 0; from < len(places); from += wholeTiles {
			b.Means = append(b.Means, whole...)
			to := min(from+wholeTiles, len(places))
			tiles := make([]int, to-from)
			for i := range tiles {
				tiles[i] = from + i
			}
			if err := add(0, tiles, places[from:to]); err != nil {
				return nil, err
			}
		}
	}
	for range r.Views {
		stored := 0
		if !r.View.Plain {
			stored = rng.IntN(src.Stored(slide))
		}
		places, err := src.Places(slide, stored)
		if err != nil {
			return nil, err
		}
		tiles, at, err := r.View.Draw(rng, 0, places)
		if err != nil {
			return nil, empty(err)
		}
		if err := add(stored, tiles, at); err != nil {
			return nil, err
		}
	}
	if len(b.At) > 0 {
		if err := flush(); err != nil {
			return nil, err
		}
	}
	for k := range mean {
		mean[k] /= count
	}
	return mean, nil
}

// finish makes the embedding of a slide's mean output: as the training slides' has mean 0 and deviation
// 1 in every number where it is the aggregator's own, brought to length one.
func (t *Trained) finish(mean []float64, name, tap string) ([]float32, error) {
	out := make([]float32, len(mean))
	var square float64
	for k := range mean {
		if tap == "" || tap == Backbone {
			mean[k] = (mean[k] - float64(t.Network.outMean.Value[k])) * float64(t.Network.outScale.Value[k])
		}
		square += mean[k] * mean[k]
	}
	if !(square > 0) || math.IsInf(square, 0) {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "embed", Path: name, Err: fmt.Errorf("the embedding has length %g", math.Sqrt(square)),
			Hint: "the features or the aggregator hold NaN, infinities or zeros; coverslip models verify"}
	}
	for k, v := range mean {
		out[k] = float32(v / math.Sqrt(square))
	}
	return out, nil
}

// forward runs a batch, up to a layer of the projector where tap names one.
func (t *Trained) forward(mem *nn.Memory, b view.Batch, tap string) ([]float32, int, error) {
	g := nn.NewGraph(mem, false)
	defer g.Close()
	h := t.Network.Forward(g, b)
	if tap != "" && tap != Backbone {
		h = t.Objective.Tap(h, tap)
	}
	if err := g.Forward(h); err != nil {
		return nil, 0, err
	}
	return append([]float32(nil), h.Value()...), h.Cols, nil
}

// Backbone is the tap before the projector: the aggregator's own output.
const Backbone = "backbone"

// Taps are the layers whose output may serve as an embedding.
func (t *Trained) Taps() []string {
	if t.Objective == nil {
		return []string{Backbone}
	}
	return append([]string{Backbone}, t.Objective.Taps()...)
}
