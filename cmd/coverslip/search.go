package main

import (
	"context"
	"fmt"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/storage"
	"coverslip/storage/vector"
)

type searchCmd struct {
	Slide      string   `xor:"query" required:"" placeholder:"ID" help:"Neighbours of a slide that has its embedding: its id, or the first 6 digits of it."`
	File       string   `xor:"query" required:"" type:"existingfile" placeholder:"SLIDE" help:"Neighbours of a slide that is not registered; it leaves no trace."`
	K          int      `short:"k" default:"10" help:"How many (${default})."`
	Cohort     string   `placeholder:"NAME" help:"Search only this cohort."`
	MPPOfSlide mppValue `name:"mpp-of-slide" help:"Resolution of --file, µm per pixel, where it does not say it."`
	encoderFlags
	dataFlags
}

// Help is shown by coverslip search --help.
func (searchCmd) Help() string {
	return `Examples:
  coverslip search --slide ed92d5a9f2e8 -k 5
  coverslip search --file biopsy.svs --cohort brca

Exact: every embedding is compared. Similarity is the cosine, 1 for equal.`
}

// Run finds the nearest slides.
func (c *searchCmd) Run(e *env) error {
	if c.K < 1 {
		return &usageError{"-k must be at least 1"}
	}
	find := (*platform).registrar
	if c.Slide != "" { // nothing is encoded
		find = (*platform).finder
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	in, err := find(p, e, c.encoderFlags)
	if err != nil {
		return err
	}
	return c.search(e, p, in)
}

func (c *searchCmd) search(e *env, p *platform, in *ingest.Ingest) error {
	query, self, err := c.query(e, p, in)
	if err != nil {
		return err
	}
	index, names := vector.New(in.Dim()), map[string]string{}
	filter := storage.EmbeddingFilter{Encoder: in.Model.Name, Aggregator: in.Aggregator.Model().Name, Cohort: c.Cohort}
	for n, err := range p.DB.Embeddings(e, filter) {
		if err != nil {
			return err
		}
		names[string(n.Slide)] = n.Name
		if err := index.Upsert(string(n.Slide), n.Vector); err != nil {
			return err
		}
	}
	hits, err := index.Search(e, query, c.K, func(id string) bool { return id != string(self) })
	if err != nil {
		return err
	}
	rows := []string{"similarity\tslide\tname"}
	for _, h := range hits {
		n := coverslip.Neighbour{Slide: coverslip.SlideID(h.ID), Name: names[h.ID], Similarity: float64(h.Similarity)}
		if e.json {
			if err := e.emit(n); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, fmt.Sprintf("%.4f\t%s\t%s", n.Similarity, n.Slide.Short(), n.Name))
	}
	switch {
	case e.json:
	case len(hits) == 0:
		e.printf("no other slide has an embedding yet; coverslip ingest SLIDE --wait makes some\n")
	default:
		e.table(rows...)
	}
	return nil
}

func (c *searchCmd) query(e *env, p *platform, in *ingest.Ingest) (v []float32, self coverslip.SlideID, err error) {
	if c.Slide != "" {
		slide, err := p.findSlide(e, c.Slide)
		if err != nil {
			return nil, "", err
		}
		found, err := in.Embedding(e, slide.ID)
		if coverslip.KindOf(err) == coverslip.NotFound {
			return nil, "", &coverslip.Error{Kind: coverslip.NotFound, Op: "look up the embedding", Path: slide.Name, Err: fmt.Errorf("it has none: it is %s", slide.State), Hint: "coverslip slides " + slide.ID.Short() + " says why"}
		}
		return found.Vector, slide.ID, err
	}
	if in.Encoder, err = p.openEncoder(e, p.encoder, p.on); err != nil {
		return nil, "", err
	}
	var show func(int)
	in.Progress = func(_ coverslip.SlideID, done, total int) {
		if show == nil {
			show = e.progress("encoding "+c.File, total)
		}
		show(done)
	}
	v, err = in.Vector(e, c.File, float64(c.MPPOfSlide))
	return v, "", err
}

// searcher answers the API from a matrix in memory.
type searcher struct {
	in    *ingest.Ingest
	index *vector.Index
}

// follow keeps the matrix in step with the table until ctx ends.
func follow(ctx context.Context, db *storage.DB, in *ingest.Ingest, index *vector.Index) error {
	return db.Follow(ctx, func(batch []coverslip.Embedding, _ bool) error {
		for _, e := range batch {
			if e.Encoder != in.Model.Name || e.Aggregator != in.Aggregator.Model().Name {
				continue
			}
			if err := index.Upsert(string(e.Slide), e.Vector); err != nil {
				return err
			}
		}
		return nil
	})
}

// Similar finds the k slides nearest to one.
func (s searcher) Similar(ctx context.Context, id coverslip.SlideID, k int) ([]coverslip.Neighbour, error) {
	e, err := s.in.Embedding(ctx, id)
	if err != nil {
		return nil, err
	}
	hits, err := s.index.Search(ctx, e.Vector, k, func(other string) bool { return other != string(id) })
	if err != nil {
		return nil, err
	}
	out := make([]coverslip.Neighbour, 0, len(hits))
	for _, h := range hits {
		slide, err := s.in.DB.Slide(ctx, coverslip.SlideID(h.ID))
		if err != nil {
			return nil, err
		}
		out = append(out, coverslip.Neighbour{Slide: slide.ID, Name: slide.Name, Similarity: float64(h.Similarity)})
	}
	return out, nil
}
