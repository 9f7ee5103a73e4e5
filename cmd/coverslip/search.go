package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"coverslip"
	"coverslip/api"
	"coverslip/encoder/onnx"
	"coverslip/internal/ingest"
	"coverslip/internal/search"
	"coverslip/storage/vector"
)

type searchCmd struct {
	Slide       string   `xor:"query" required:"" placeholder:"ID" help:"Neighbours of a slide that has its embedding: its id, or the first 6 digits of it."`
	File        string   `xor:"query" required:"" type:"existingfile" placeholder:"SLIDE" help:"Neighbours of a slide that is not registered; it leaves no trace."`
	K           int      `short:"k" default:"10" help:"How many (${default})."`
	Cohort      string   `placeholder:"NAME" help:"Search only this cohort."`
	Where       []string `placeholder:"COLUMN=VALUE" help:"Search only slides with this value: site=3L, patient=TCGA-3L-AA1B, or a label column of their cohort. May be given several times: for one site or patient several times means any of them."`
	SamePatient bool     `name:"exclude-same-patient" help:"Leave out slides of the patient of --slide."`
	Aggregator  string   `default:"mean" placeholder:"NAME" help:"Compare embeddings by this aggregator (${default}; coverslip embed makes others)."`
	Vote        string   `placeholder:"LABEL" help:"Say what most of the answers are labelled."`
	MPPOfSlide  mppValue `name:"mpp-of-slide" help:"Resolution of --file, µm per pixel, where it does not say it."`
	encoderFlags
	dataFlags
}

// Help is shown by coverslip search --help.
func (searchCmd) Help() string {
	return `Examples:
  coverslip search --slide ed92d5a9f2e8 -k 5
  coverslip search --file biopsy.svs --cohort brca
  coverslip search --slide ed92d5a9f2e8 --cohort brca --where site=3L --exclude-same-patient --vote subtype

Exact: every embedding is compared, under any filter. Similarity is the cosine, 1 for equal.`
}

// Run finds the nearest slides.
func (c *searchCmd) Run(e *env) error {
	if c.K < 1 {
		return &usageError{"-k must be at least 1"}
	}
	where, err := parseWhere(c.Cohort, c.Where)
	if err != nil {
		return err
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
	if in.Aggregator, err = p.aggregator(e, c.Aggregator); err != nil {
		return err
	}
	return c.search(e, p, in, where)
}

// parseWhere reads COLUMN=VALUE.
func parseWhere(cohort string, pairs []string) (search.Where, error) {
	w := search.Where{Cohort: cohort, Labels: map[string]string{}}
	for _, pair := range pairs {
		column, value, ok := strings.Cut(pair, "=")
		if !ok || column == "" {
			return w, &usageError{fmt.Sprintf("--where %s: write COLUMN=VALUE", pair)}
		}
		switch before, twice := w.Labels[column]; {
		case column == "site":
			w.Sites = append(w.Sites, value)
		case column == "patient":
			w.Patients = append(w.Patients, value)
		case twice && before != value:
			return w, &usageError{fmt.Sprintf("--where %s: nothing is both %s and %s", column, before, value)}
		default:
			w.Labels[column] = value
		}
	}
	return w, nil
}

func (c *searchCmd) search(e *env, p *platform, in *ingest.Ingest, where search.Where) error {
	query, self, err := c.query(e, p, in)
	if err != nil {
		return err
	}
	model := search.Model{Encoder: in.Model.Name, Aggregator: in.Aggregator.Model().Name}
	engine := search.New(p.DB, search.Options{Memory: freeMemory() / 2, Log: e.log})
	if err := engine.Load(e, model); err != nil {
		return err
	}
	found, err := engine.Search(e, search.Query{Vector: query, Model: model, Slide: self, Where: where, ExcludeSamePatient: c.SamePatient, K: c.K, Vote: c.Vote})
	if err != nil {
		return err
	}
	rows := []string{"similarity\tslide\tpatient\tsite\tname"}
	for _, h := range found.Hits {
		if e.json {
			if err := e.emit(struct {
				coverslip.Neighbour
				Patient string         `json:"patient,omitempty"`
				Site    string         `json:"site,omitempty"`
				Labels  map[string]any `json:"labels,omitempty"`
			}{h.Neighbour, h.Member.Patient, h.Member.Site, h.Member.Labels}); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, fmt.Sprintf("%.4f\t%s\t%s\t%s\t%s", h.Similarity, h.Slide.Short(), h.Member.Patient, h.Member.Site, h.Name))
	}
	switch {
	case e.json && found.Vote != nil:
		return e.emit(map[string]any{"vote": found.Vote.Label, "value": found.Vote.Value, "votes": found.Vote.Votes, "of": found.Vote.Of})
	case e.json:
	case len(found.Hits) == 0 && len(c.Where) > 0 || c.Cohort != "" && len(found.Hits) == 0:
		e.printf("no other slide that fits has an embedding\n")
	case len(found.Hits) == 0:
		e.printf("no other slide has an embedding yet; coverslip ingest SLIDE --wait makes some\n")
	default:
		e.table(rows...)
		if v := found.Vote; v != nil {
			e.printf("%s: %s (%d of %d)\n", v.Label, v.Value, v.Votes, v.Of)
		}
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

// searcher answers the API from the matrices in memory.
type searcher struct {
	in     *ingest.Ingest
	engine *search.Engine
}

// Search fills in what the query leaves to the server.
func (s searcher) Search(ctx context.Context, q api.SearchQuery) (api.SearchAnswer, error) {
	model := search.Model{Encoder: q.Encoder, Aggregator: q.Aggregator}
	if model.Encoder == "" {
		model.Encoder = s.in.Model.Name
	}
	if model.Aggregator == "" {
		model.Aggregator = s.in.Aggregator.Model().Name
	}
	out := api.SearchAnswer{Encoder: model.Encoder, Aggregator: model.Aggregator}
	if q.Vector == nil {
		e, err := s.in.DB.Embedding(ctx, q.Slide, model.Encoder, model.Aggregator)
		if err != nil {
			return out, err
		}
		q.Vector = e.Vector
	}
	query := search.Query{Vector: q.Vector, Model: model, Slide: q.Slide, Where: search.Where{Cohort: q.Cohort, Sites: q.Sites, Patients: q.Patients, Labels: q.Labels},
		ExcludeSamePatient: q.ExcludeSamePatient, ExcludePatients: q.ExcludePatients, K: q.K, Vote: q.Vote}
	if q.After != nil {
		query.After = &vector.Hit{ID: string(q.After.Slide), Similarity: q.After.Similarity}
	}
	found, err := s.engine.Search(ctx, query)
	if err != nil {
		return out, err
	}
	for _, h := range found.Hits {
		out.Hits = append(out.Hits, api.SearchHit{Neighbour: h.Neighbour, Member: h.Member})
	}
	if found.Last != nil {
		out.Next = &api.SearchPlace{Slide: coverslip.SlideID(found.Last.ID), Similarity: found.Last.Similarity}
	}
	if v := found.Vote; v != nil {
		out.Label, out.Value, out.Votes, out.Of = v.Label, v.Value, v.Votes, v.Of
	}
	return out, nil
}

// embedder makes embeddings for the API, one at a time: the encoder takes every core for one. It is loaded
// with the first.
type embedder struct {
	p  *platform
	in *ingest.Ingest

	turn    chan struct{} // holds one while an embedding is made
	session *onnx.Session
}

func newEmbedder(p *platform, in *ingest.Ingest) *embedder {
	return &embedder{p: p, in: in, turn: make(chan struct{}, 1)}
}

// enter waits for its turn and gives an Ingest that encodes.
func (m *embedder) enter(ctx context.Context) (in *ingest.Ingest, leave func(), err error) {
	select {
	case m.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	leave = func() { <-m.turn }
	if m.session == nil {
		if m.session, err = m.p.openEncoder(ctx, m.p.encoder, m.p.on); err != nil {
			leave()
			return nil, nil, err
		}
	}
	own := *m.in
	own.Encoder, own.Progress = m.session, nil
	return &own, leave, nil
}

func (m *embedder) close() {
	m.turn <- struct{}{}
	if m.session != nil {
		_ = m.session.Close() // the process ends
	}
}

func (m *embedder) EmbedRegion(ctx context.Context, id coverslip.SlideID, x, y, width, height int64) ([]float32, error) {
	slide, err := m.in.DB.Slide(ctx, id)
	if err != nil {
		return nil, err
	}
	in, leave, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	v, err := in.RegionVector(ctx, slide, ingest.Region{X: x, Y: y, Width: width, Height: height})
	if coverslip.KindOf(err) == coverslip.NotFound { // the slide is known
		err = &coverslip.Error{Kind: coverslip.Conflict, Op: "open slide", Path: slide.Name, Err: errors.New("its bytes are no longer where they were registered"), Hint: "put them back, or register the slide where they are now"}
	}
	return v, err
}

func (m *embedder) EmbedFile(ctx context.Context, name string, mppOfSlide float64, body io.Reader) (encoder, aggregator string, v []float32, err error) {
	spool, err := os.CreateTemp(m.in.Spool, "slide-*")
	if err != nil {
		return "", "", nil, diskError("make room for the slide", m.in.Spool, err)
	}
	defer os.Remove(spool.Name()) //nolint:errcheck // swept at the next start
	defer spool.Close()
	if _, err := io.Copy(spool, body); err != nil {
		return "", "", nil, diskError("keep the slide for a moment", m.in.Spool, err)
	}
	in, leave, err := m.enter(ctx)
	if err != nil {
		return "", "", nil, err
	}
	defer leave()
	v, err = in.Vector(ctx, spool.Name(), mppOfSlide)
	var known *coverslip.Error
	if errors.As(err, &known) {
		named := *known
		named.Path = name
		err = &named
	}
	return in.Model.Name, in.Aggregator.Model().Name, v, err
}
