package main

import (
	"cmp"
	"errors"
	"time"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/internal/nn"
	"coverslip/slidessl"
	"coverslip/slidessl/foreign"
)

type embedCmd struct {
	Cohort     string `placeholder:"NAME" help:"The slides of this cohort (all)."`
	Aggregator string `required:"" placeholder:"NAME[:LAYER]" help:"mean, mean+sd, or one of coverslip models list (trained here or added); of a trained one a layer of its projector, as in brca-ssl:projector.1."`
	From       string `enum:"auto,views,tiles" default:"auto" help:"What a trained aggregator reads: stored views, tiles as they are, or auto: what it learned from (${default})."`
	Views      int    `placeholder:"R" help:"Views whose mean is the embedding (100 of what learned from stored views; else every tile is read once)."`
	Tiles      int    `placeholder:"N" help:"Tiles of each (as in training)."`
	AllTiles   bool   `help:"Read every tile once, as one view."`
	Seed       uint64 `default:"1" help:"Of the views (${default})."`
	Workers    int    `placeholder:"N" help:"Cores to use (all). It changes no result."`
	encoderFlags
	dataFlags
}

// Help is shown by coverslip embed --help.
func (embedCmd) Help() string {
	return `Examples:
  coverslip embed --cohort brca --aggregator brca-ssl
  coverslip embed --aggregator mean+sd
  coverslip search --slide ed92d5 --aggregator brca-ssl

The slides must have been encoded. Doing it again does nothing; an embedding of the same name that came
out differently is replaced.`
}

// embedResult is what the verb prints with --json.
type embedResult struct {
	Cohort     string  `json:"cohort"`
	Encoder    string  `json:"encoder"`
	Aggregator string  `json:"aggregator"`
	SHA256     string  `json:"sha256"`
	Slides     int     `json:"slides"`
	Changed    int     `json:"changed"`
	NoTissue   int     `json:"no_tissue"`
	Dim        int     `json:"dim"`
	Bytes      int     `json:"bytes"` // of the vectors, float32
	Seconds    float64 `json:"seconds"`
}

// Run embeds the cohort.
func (c *embedCmd) Run(e *env) error {
	if c.Views < 0 || c.Tiles < 0 || c.AllTiles && c.Views > 0 {
		return &usageError{"give --views 1 or more, or --all-tiles"}
	}
	if c.Workers != 0 {
		nn.SetWorkers(c.Workers)
	}
	return c.withFound(e, c.encoderFlags, func(p *platform, in *ingest.Ingest) error {
		a, err := p.aggregator(e, c.Aggregator)
		if err != nil {
			return err
		}
		if a, ok := a.(*foreign.Aggregator); ok {
			if err := a.Spec.Takes(in.Model.Name); err != nil {
				return errors.Join(err, a.Close())
			}
		}
		return errors.Join(c.embed(e, p, in, a), closeAggregator(a))
	})
}

// embedBatch is how many embeddings are written at once.
const embedBatch = 1000

func (c *embedCmd) embed(e *env, p *platform, in *ingest.Ingest, a slidessl.Aggregator) error {
	started := time.Now()
	learned, _ := a.(*slidessl.Learned)
	plain := c.From == "tiles" || learned == nil || c.From == "auto" && learned.Card.Settings.View.Plain
	if learned == nil && (c.Views > 0 || c.From == "views") {
		return &usageError{"--views and --from are for trained aggregators; " + c.Aggregator + " reads every tile"}
	}
	src, err := in.FindBags(e, c.Cohort, plain, "")
	if err != nil {
		return err
	}
	defer src.Close()
	if err := p.DB.PutModel(e, a.Model()); err != nil {
		return err
	}
	r := embedResult{Cohort: c.Cohort, Encoder: in.Model.Name, Aggregator: a.Model().Name, SHA256: a.Model().SHA256, NoTissue: len(src.Without)}
	show := e.progressOf("embedding", "slides", src.Len())
	var batch []coverslip.Embedding
	write := func() error {
		n, err := p.DB.PutEmbeddings(e, batch)
		r.Changed += n
		batch = batch[:0]
		return err
	}
	for i := range src.Len() {
		vector, err := c.vector(e, src, i, a, learned)
		if err != nil {
			return err
		}
		r.Slides, r.Dim, r.Bytes = r.Slides+1, len(vector), r.Bytes+4*len(vector)
		batch = append(batch, coverslip.Embedding{Slide: src.Members[i].Slide, Bag: src.Bags[i].Key, Encoder: in.Model.Name, Aggregator: a.Model().Name, Vector: vector})
		if len(batch) == embedBatch || i == src.Len()-1 {
			if err := write(); err != nil {
				return err
			}
		}
		show(i + 1)
	}
	r.Seconds = time.Since(started).Seconds()
	if e.json {
		return e.emit(r)
	}
	e.printf("%d slides embedded by %s, %d numbers each: %.1f MB; %d new or changed", r.Slides, r.Aggregator, r.Dim, float64(r.Bytes)/1e6, r.Changed)
	if r.NoTissue > 0 {
		e.printf("; %d without tissue left out", r.NoTissue)
	}
	e.printf("; %.1f s\n", r.Seconds)
	return nil
}

func (c *embedCmd) vector(e *env, src *ingest.Stored, i int, a slidessl.Aggregator, learned *slidessl.Learned) ([]float32, error) {
	if learned == nil {
		bag, err := src.Bag(i)
		if err != nil {
			return nil, err
		}
		v, err := a.Embed(e, bag)
		return v, coverslip.At(src.Name(i), err)
	}
	r := learned.Card.Reading
	r.Seed = c.Seed
	switch {
	case c.AllTiles:
		r.Views = 0
	case c.Views > 0:
		r.Views = c.Views
	}
	if c.Tiles > 0 && !c.AllTiles {
		r.View.Tiles, r.Views = c.Tiles, cmp.Or(r.Views, 100)
	}
	r.View.Plain = c.From == "tiles" || r.View.Plain
	return learned.EmbedFrom(e, src, i, r)
}
