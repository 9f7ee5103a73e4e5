package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"coverslip"
	"coverslip/encoder/onnx"
	"coverslip/internal/ingest"
	"coverslip/slidessl"
	"coverslip/slidessl/foreign"
	"coverslip/storage"
)

// rules are the aggregators that need no file.
var rules = []slidessl.Aggregator{slidessl.Mean{}, slidessl.MeanSD{}}

// aggregatorBlob is where a trained aggregator's file lies in the blob store.
func aggregatorBlob(sha256 string) string { return "models/" + sha256 + "/aggregator.safetensors" }

// maxAggregator bounds the file of an aggregator that is read into memory.
const maxAggregator = 4 << 30

// aggregator finds one by name: a rule, or one that was trained or added; of a trained one with ":" and a layer
// of its projector where that is asked for. closeAggregator frees what it holds.
func (p *platform) aggregator(ctx context.Context, name string) (slidessl.Aggregator, error) {
	for _, a := range rules {
		if a.Model().Name == name {
			return a, nil
		}
	}
	known, _, _ := strings.Cut(name, ":")
	m, err := p.DB.AddedModel(ctx, coverslip.AggregatorModel, known)
	if coverslip.KindOf(err) == coverslip.NotFound {
		if _, ok := foreign.Shipped(known); ok {
			return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "look up the aggregator", Path: known, Err: errors.New("its file is yours to bring"), Hint: fmt.Sprintf("coverslip models add aggregator FILE --spec %s; docs/PRETRAIN.md says how to export it", known)}
		}
	}
	if err != nil {
		return nil, err
	}
	if isForeign(m) {
		return p.foreign(ctx, name, m)
	}
	b, err := p.Blobs.Open(ctx, aggregatorBlob(m.SHA256))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.Size() > maxAggregator {
		return nil, &coverslip.Error{Kind: coverslip.TooLarge, Op: "load the aggregator", Path: name, Err: errors.New("its file has more than 4 GB")}
	}
	raw, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	if err := sameHash("aggregator "+known, hex.EncodeToString(sum[:]), m.SHA256); err != nil {
		return nil, err
	}
	return slidessl.ParseLearned(name, raw)
}

// aggregatorFlag says by what slides are embedded when they are encoded.
type aggregatorFlag struct {
	Aggregator string `env:"COVERSLIP_AGGREGATOR" default:"mean" placeholder:"NAME" help:"Embed slides by this aggregator, too, as soon as they are encoded (${default}, which every slide gets)."`
}

// use makes jobs ask for the aggregator, once it is there and fits the encoder.
func (f aggregatorFlag) use(e *env, p *platform, in *ingest.Ingest) error {
	a, err := p.aggregator(e, f.Aggregator)
	if err != nil {
		return err
	}
	in.Aggregator = a
	return fitsTiles(a, in.Model)
}

// fitsTiles reports whether an aggregator can read the tiles of an encoder as they are.
func fitsTiles(a slidessl.Aggregator, encoder coverslip.Model) error {
	switch a := a.(type) {
	case *foreign.Aggregator:
		return a.Spec.Takes(encoder.Name)
	case *slidessl.Learned:
		bad := func(err error, hint string) error {
			return &coverslip.Error{Kind: coverslip.Invalid, Op: "embed", Path: "aggregator " + a.Model().Name, Err: err, Hint: hint}
		}
		if d := a.Card.Settings.Architecture.Input; d != encoder.Dim {
			return bad(fmt.Errorf("it takes features of %d numbers, and those of encoder %s have %d", d, encoder.Name, encoder.Dim), "use the encoder it was trained on: "+a.Card.Data.Encoder)
		}
		if !a.Card.Settings.View.Plain {
			return bad(errors.New("it learned from stored views, and reads those"), "encode the slides first, and their views; then coverslip embed --aggregator "+a.Model().Name)
		}
	}
	return nil
}

// closeAggregator frees an aggregator that holds a session of ONNX Runtime.
func closeAggregator(a slidessl.Aggregator) error {
	if c, ok := a.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// isForeign reports whether an aggregator is a file of ONNX: its specification is YAML, and that of a trained
// one is its card, in JSON.
func isForeign(m storage.AddedModel) bool { return !strings.HasPrefix(m.Spec, "{") }

// foreign opens an aggregator that was added.
func (p *platform) foreign(ctx context.Context, name string, m storage.AddedModel) (slidessl.Aggregator, error) {
	spec, err := foreign.ParseSpec([]byte(m.Spec))
	if err != nil {
		return nil, coverslip.At("aggregator "+m.Name, err)
	}
	if name != m.Name {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "load the aggregator", Path: "aggregator " + name, Err: errors.New("it was trained elsewhere, and has no layers by name")}
	}
	path, err := p.localModel(ctx, spec.Files())
	if err != nil {
		return nil, err
	}
	a, err := foreign.Open(path, spec, onnx.CPU)
	if err != nil {
		return nil, err // and no nil *Aggregator inside an interface
	}
	return a, nil
}

// verifyAggregator hashes the files of an aggregator again.
func (p *platform) verifyAggregator(ctx context.Context, m storage.AddedModel) error {
	if !isForeign(m) {
		_, err := p.aggregator(ctx, m.Name) // it compares the file's hash
		return err
	}
	spec, err := foreign.ParseSpec([]byte(m.Spec))
	if err != nil {
		return coverslip.At("aggregator "+m.Name, err)
	}
	return p.verify(ctx, spec.Files())
}

// addAggregator checks an aggregator from elsewhere and keeps it.
func (c *modelsAddCmd) addAggregator(e *env) error {
	const op = "add the aggregator"
	spec, ships := foreign.Shipped(c.Spec)
	if !ships {
		raw, err := os.ReadFile(c.Spec)
		if errors.Is(err, os.ErrNotExist) {
			var names []string
			for _, s := range foreign.ShippedSpecs() {
				names = append(names, s.Name)
			}
			return &coverslip.Error{Kind: coverslip.NotFound, Op: "read the specification", Path: c.Spec, Err: os.ErrNotExist, Hint: "name a YAML file, or one of " + strings.Join(names, ", ")}
		}
		if err != nil {
			return diskError("read the specification", c.Spec, err)
		}
		if spec, err = foreign.ParseSpec(raw); err != nil {
			return coverslip.At(c.Spec, err)
		}
	}
	if c.Name != "" {
		spec.Name = c.Name
		if _, err := foreign.ParseSpec(spec.YAML()); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(rules, func(a slidessl.Aggregator) bool { return a.Model().Name == spec.Name }) {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: op, Path: spec.Name, Err: errors.New("an aggregator of this name ships with Coverslip"), Hint: "name it otherwise: --name NAME"}
	}
	file, err := onnx.Inspect(c.File)
	if err != nil {
		return err
	}
	// What the specification leaves open is written down now; what it says is held against the file
	// when it is opened.
	if spec.SHA256 == "" {
		spec.SHA256, spec.Data = file.SHA256, file.Data
	} else if spec.Data == nil && len(file.Data) > 0 {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: c.File, Err: errors.New("its specification has its SHA-256, but none of the files of weights beside it"), Hint: "list them under data, or leave out sha256"}
	}
	a, err := foreign.Open(c.File, spec, onnx.CPU)
	if err != nil {
		return err
	}
	_, err = a.Embed(e, sampleBag{dim: spec.Features.Dim})
	if err := errors.Join(err, a.Close()); err != nil {
		return coverslip.At(c.File, err)
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	for name, from := range modelFiles(spec.Files(), c.File) {
		if err := keepFile(e, p.Blobs, modelBlob(spec.Files(), name), from); err != nil {
			return err
		}
	}
	model := spec.Model()
	if err := p.DB.AddModel(e, model, spec.YAML()); err != nil {
		return err
	}
	if e.json {
		return e.emit(modelLine{Model: model, State: "added", Bytes: file.Bytes})
	}
	from := fmt.Sprintf("%d numbers a tile", spec.Features.Dim)
	encoderFlag := ""
	if spec.Encoder != "" {
		from, encoderFlag = from+" of encoder "+spec.Encoder, " --encoder "+spec.Encoder
	}
	e.printf("%s: bags of %s to %d numbers, %.1f MB\nsha256 %s\n", model.Name, from, model.Dim, float64(file.Bytes)/1e6, spec.SHA256)
	for _, name := range spec.Files().DataNames() {
		e.printf("sha256 %s  %s\n", spec.Data[name], name)
	}
	e.printf("use it: coverslip embed --cohort COHORT%s --aggregator %s\n", encoderFlag, model.Name)
	return nil
}

// sampleBag is ten tiles in a row, to try an aggregator on.
type sampleBag struct{ dim int }

func (sampleBag) Len() int       { return 10 }
func (b sampleBag) Dim() int     { return b.dim }
func (sampleBag) Pitch() float64 { return 512 }

// Features are numbers of which no two tiles have the same.
func (b sampleBag) Features(dst []float32, from, n int) error {
	for i := range n * b.dim {
		dst[i] = float32((i+from*b.dim)%97)/97 - 0.5
	}
	return nil
}

// Coords are the corners of the row.
func (sampleBag) Coords(dst []int64, from, n int) error {
	for i := range n {
		dst[2*i], dst[2*i+1] = int64(512*(from+i)), 0
	}
	return nil
}
