package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strings"

	"coverslip"
	"coverslip/slidessl"
)

// rules are the aggregators that need no file.
var rules = []slidessl.Aggregator{slidessl.Mean{}, slidessl.MeanSD{}}

// aggregatorBlob is where a trained aggregator's file lies in the blob store.
func aggregatorBlob(sha256 string) string { return "models/" + sha256 + "/aggregator.safetensors" }

// maxAggregator bounds the file of an aggregator that is read into memory.
const maxAggregator = 4 << 30

// aggregator finds one by name: a rule, or one that was trained or added, with ":" and a layer of its
// projector where that is asked for.
func (p *platform) aggregator(ctx context.Context, name string) (slidessl.Aggregator, error) {
	for _, a := range rules {
		if a.Model().Name == name {
			return a, nil
		}
	}
	known, _, _ := strings.Cut(name, ":")
	m, err := p.DB.AddedModel(ctx, coverslip.AggregatorModel, known)
	if err != nil {
		return nil, err
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
