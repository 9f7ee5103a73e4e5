package api_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"coverslip"
	"coverslip/api"
)

// memory keeps slides for as long as the test runs and behaves as the real parts do: ids are
// hashes, prefixes may be ambiguous, an upload is kept whole or not at all.
type memory struct {
	mu         sync.Mutex
	slides     map[coverslip.SlideID]coverslip.Slide
	bags       map[coverslip.SlideID]coverslip.Bag
	embeddings map[coverslip.SlideID]coverslip.Embedding
	fail       error      // what every call ends in
	crash      any        // what every call panics with
	mpp        float64    // what the last upload said
	drawn      int        // thumbnails and tiles
	ended      chan error // how each body ended, where somebody listens
	uploads    map[string]*arriving
	endsIn     error // what Append ends in
}

// arriving is an upload that comes in pieces.
type arriving struct {
	api.Arriving
	content bytes.Buffer
}

func newMemory() *memory {
	return &memory{slides: map[coverslip.SlideID]coverslip.Slide{}, bags: map[coverslip.SlideID]coverslip.Bag{}, embeddings: map[coverslip.SlideID]coverslip.Embedding{}, uploads: map[string]*arriving{}}
}

var epoch = time.Date(2026, 5, 4, 9, 30, 0, 123456000, time.UTC)

// add registers a slide by id; later ones are registered later.
func (m *memory) add(id string, state coverslip.State, vector ...float32) coverslip.Slide {
	at := epoch.Add(time.Duration(len(m.slides)) * time.Second)
	s := coverslip.Slide{ID: coverslip.SlideID(id), Name: id[:6] + ".svs", Location: "/secret/place", Bytes: 10, Format: "aperio", Width: 640, Height: 480,
		Levels: []coverslip.Level{{Width: 640, Height: 480, Downsample: 1}}, MPP: coverslip.MPP{Value: 0.5, Source: coverslip.MPPAperio},
		State: state, Registered: at, Changed: at}
	m.slides[s.ID] = s
	if state == coverslip.Embedded {
		m.bags[s.ID] = coverslip.Bag{Key: strings.Repeat("0", 64), Slide: s.ID, Encoder: "test", Tiles: 3, Dim: len(vector),
			Timings: []coverslip.StageTime{{Stage: "encode", Seconds: 1.5}}, Created: at}
		m.embeddings[s.ID] = coverslip.Embedding{Slide: s.ID, Bag: strings.Repeat("0", 64), Encoder: "test", Aggregator: "mean", Vector: vector, Created: at}
	}
	return s
}

func (m *memory) enter() (func(), error) {
	m.mu.Lock()
	if m.crash != nil {
		defer m.mu.Unlock()
		panic(m.crash)
	}
	return m.mu.Unlock, m.fail
}

func (m *memory) Slide(_ context.Context, prefix string) (coverslip.Slide, error) {
	leave, err := m.enter()
	defer leave()
	if err != nil {
		return coverslip.Slide{}, err
	}
	var found []coverslip.Slide
	for id, s := range m.slides {
		if strings.HasPrefix(string(id), prefix) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		return coverslip.Slide{}, missing(prefix)
	case 1:
		return found[0], nil
	}
	return coverslip.Slide{}, &coverslip.Error{Kind: coverslip.Conflict, Op: "find slide", Path: prefix, Err: errors.New("several slides begin so"), Hint: "give more digits"}
}

func missing(what string) error {
	return &coverslip.Error{Kind: coverslip.NotFound, Op: "find", Path: what, Err: errors.New("there is none"), Hint: "list what is there"}
}

func (m *memory) Slides(_ context.Context, q api.Query) ([]coverslip.Slide, error) {
	leave, err := m.enter()
	defer leave()
	if err != nil {
		return nil, err
	}
	order := func(at time.Time, id coverslip.SlideID, bt time.Time, bid coverslip.SlideID) int {
		return cmp.Or(at.Compare(bt), cmp.Compare(id, bid))
	}
	var page []coverslip.Slide
	for _, s := range m.slides {
		if (q.State == "" || s.State == q.State) && (q.After.ID == "" || order(s.Registered, s.ID, q.After.Registered, q.After.ID) > 0) {
			page = append(page, s)
		}
	}
	slices.SortFunc(page, func(a, b coverslip.Slide) int { return order(a.Registered, a.ID, b.Registered, b.ID) })
	return page[:min(len(page), q.Limit)], nil
}

func (m *memory) Bag(_ context.Context, id coverslip.SlideID) (coverslip.Bag, error) {
	leave, err := m.enter()
	defer leave()
	if err != nil {
		return coverslip.Bag{}, err
	}
	b, ok := m.bags[id]
	if !ok {
		return b, missing("bag")
	}
	return b, nil
}

func (m *memory) Embedding(_ context.Context, id coverslip.SlideID) (coverslip.Embedding, error) {
	leave, err := m.enter()
	defer leave()
	if err != nil {
		return coverslip.Embedding{}, err
	}
	e, ok := m.embeddings[id]
	if !ok {
		return e, missing("embedding")
	}
	return e, nil
}

func (m *memory) Search(_ context.Context, q api.SearchQuery) (api.SearchAnswer, error) {
	leave, err := m.enter()
	defer leave()
	if err != nil {
		return api.SearchAnswer{}, err
	}
	if q.Cohort == "absent" {
		return api.SearchAnswer{}, missing("cohort")
	}
	if q.Vector == nil {
		query, ok := m.embeddings[q.Slide]
		if !ok {
			return api.SearchAnswer{}, missing("embedding")
		}
		q.Vector = query.Vector
	}
	out := api.SearchAnswer{Encoder: "test", Aggregator: "mean"}
	for other, e := range m.embeddings {
		if other == q.Slide {
			continue
		}
		if len(e.Vector) != len(q.Vector) {
			return out, &coverslip.Error{Kind: coverslip.Invalid, Op: "search", Err: errors.New("another length"), Hint: "give another"}
		}
		var dot float64
		for i, v := range e.Vector {
			dot += float64(v) * float64(q.Vector[i])
		}
		if q.After != nil && (dot > float64(q.After.Similarity) || dot == float64(q.After.Similarity) && other <= q.After.Slide) {
			continue
		}
		out.Hits = append(out.Hits, api.SearchHit{Neighbour: coverslip.Neighbour{Slide: other, Name: m.slides[other].Name, Similarity: dot},
			Member: coverslip.Member{Patient: "p", Labels: map[string]any{"grade": 2.0, "kind": "x"}}})
	}
	slices.SortFunc(out.Hits, func(a, b api.SearchHit) int {
		return cmp.Or(cmp.Compare(b.Similarity, a.Similarity), cmp.Compare(a.Slide, b.Slide))
	})
	if len(out.Hits) > q.K {
		out.Hits = out.Hits[:q.K]
		last := out.Hits[q.K-1]
		out.Next = &api.SearchPlace{Slide: last.Slide, Similarity: float32(last.Similarity)}
	}
	if q.Vote != "" {
		out.Label, out.Value, out.Votes, out.Of = q.Vote, "2", len(out.Hits), len(out.Hits)
	}
	return out, nil
}

func (m *memory) EmbedRegion(_ context.Context, id coverslip.SlideID, x, _, _, _ int64) ([]float32, error) {
	leave, err := m.enter()
	defer leave()
	return []float32{float32(x), 1}, err
}

func (m *memory) EmbedFile(_ context.Context, name string, _ float64, body io.Reader) (encoder, aggregator string, vector []float32, err error) {
	n, err := io.Copy(io.Discard, body)
	leave, failed := m.enter()
	defer leave()
	return "test", "mean", []float32{float32(n), 1}, errors.Join(err, failed)
}

// Upload hashes the body and keeps the hash. It wraps a failed read as a store would.
func (m *memory) Upload(_ context.Context, name string, mppOfSlide float64, body io.Reader) (coverslip.Slide, bool, error) {
	h := sha256.New()
	n, err := io.Copy(h, body)
	if m.ended != nil {
		m.ended <- err
	}
	if err != nil {
		return coverslip.Slide{}, false, &coverslip.Error{Kind: coverslip.Internal, Op: "write blob", Err: fmt.Errorf("copy: %w", err)}
	}
	leave, err := m.enter()
	defer leave()
	if err != nil {
		return coverslip.Slide{}, false, err
	}
	m.mpp = mppOfSlide
	id := coverslip.SlideID(hex.EncodeToString(h.Sum(nil)))
	if known, ok := m.slides[id]; ok {
		return known, false, nil
	}
	s := coverslip.Slide{ID: id, Name: name, Bytes: n, State: coverslip.Queued, Registered: epoch, Changed: epoch}
	m.slides[id] = s
	return s, true, nil
}

func (m *memory) Thumbnail(_ context.Context, _ coverslip.SlideID, maxEdge int) ([]byte, error) {
	leave, err := m.enter()
	defer leave()
	if err != nil {
		return nil, err
	}
	m.drawn++
	var out bytes.Buffer
	err = jpeg.Encode(&out, image.NewGray(image.Rect(0, 0, maxEdge, maxEdge*3/4)), nil)
	return out.Bytes(), err
}

func (m *memory) Descriptor(s coverslip.Slide) []byte {
	return fmt.Appendf(nil, "<Image Width=%q/>", fmt.Sprint(s.Width))
}

// Tile has one on each level.
func (m *memory) Tile(_ context.Context, _ coverslip.Slide, level, column, row int) ([]byte, error) {
	leave, err := m.enter()
	defer leave()
	if err != nil {
		return nil, err
	}
	if column+row > 0 {
		return nil, missing("tile")
	}
	m.drawn++
	var out bytes.Buffer
	err = jpeg.Encode(&out, image.NewGray(image.Rect(0, 0, level+1, 1)), nil)
	return out.Bytes(), err
}

func (m *memory) Ready(context.Context) []api.Check {
	leave, err := m.enter()
	defer leave()
	return []api.Check{{Name: "memory", Err: err}, {Name: "clock"}}
}

func (m *memory) Begin(_ context.Context, up api.Arriving) (api.Arriving, error) {
	leave, err := m.enter()
	defer leave()
	if err != nil {
		return up, err
	}
	up.ID = strings.Repeat("a", 25) + string(rune('b'+len(m.uploads)))
	up.Created = epoch
	m.uploads[up.ID] = &arriving{Arriving: up}
	return up, nil
}

func (m *memory) find(id string) (*arriving, error) {
	if up := m.uploads[id]; up != nil {
		return up, nil
	}
	return nil, missing("upload " + id)
}

func (m *memory) Find(_ context.Context, id string) (api.Arriving, error) {
	leave, err := m.enter()
	defer leave()
	if err != nil {
		return api.Arriving{}, err
	}
	up, err := m.find(id)
	if err != nil {
		return api.Arriving{}, err
	}
	return up.Arriving, nil
}

func (m *memory) List(_ context.Context, sha256 string) ([]api.Arriving, error) {
	leave, err := m.enter()
	defer leave()
	var found []api.Arriving
	for _, up := range m.uploads {
		if up.Slide == "" && (sha256 == "" || up.SHA256 == sha256) {
			found = append(found, up.Arriving)
		}
	}
	return found, err
}

// Append reads without holding the lock, as a real one would.
func (m *memory) Append(_ context.Context, id string, offset int64, body io.Reader) (int64, error) {
	m.mu.Lock()
	up, err := m.find(id)
	if err == nil {
		err = m.fail
	}
	m.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(writeFunc(func(p []byte) (int, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		return up.content.Write(p)
	}), body)
	m.mu.Lock()
	defer m.mu.Unlock()
	up.Received += n
	if m.endsIn != nil {
		err = m.endsIn
	}
	return n, err
}

func (m *memory) Finish(ctx context.Context, id string) (coverslip.Slide, bool, error) {
	leave, err := m.enter()
	var up *arriving
	if err == nil {
		up, err = m.find(id)
	}
	leave()
	if err != nil {
		return coverslip.Slide{}, false, err
	}
	s, created, err := m.Upload(ctx, up.Name, up.MPPOfSlide, bytes.NewReader(up.content.Bytes()))
	up.Slide = s.ID
	return s, created, err
}

func (m *memory) Drop(_ context.Context, id string) error {
	leave, err := m.enter()
	defer leave()
	if err == nil {
		_, err = m.find(id)
	}
	delete(m.uploads, id)
	return err
}

func (m *memory) Presign(ctx context.Context, up api.Arriving) (api.Presigned, error) {
	up, err := m.Begin(ctx, up)
	return api.Presigned{ID: up.ID, PartBytes: 5, URLs: []string{"http://bucket/1", "http://bucket/2"}, Expires: epoch}, err
}

func (m *memory) Complete(ctx context.Context, id string, etags []string) (coverslip.Slide, bool, error) {
	if len(etags) != 2 {
		return coverslip.Slide{}, false, &coverslip.Error{Kind: coverslip.Invalid, Op: "complete", Err: errors.New("a part is missing"), Hint: "put it"}
	}
	return m.Finish(ctx, id)
}

func (m *memory) Abort(ctx context.Context, id string) error { return m.Drop(ctx, id) }

func (m *memory) Register(ctx context.Context, place string, mppOfSlide float64) (coverslip.Slide, bool, error) {
	return m.Upload(ctx, place[strings.LastIndex(place, "/")+1:], mppOfSlide, strings.NewReader(place))
}

type writeFunc func([]byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }

// A memory has one run.
var runA = coverslip.Run{ID: strings.Repeat("3f", 32), Kind: coverslip.ProbeModel, Cohort: "brca", Label: "subtype", Classes: []string{"IDC", "ILC"},
	Settings: []byte(`{"protocol":"kfold"}`), Methods: []coverslip.Method{{Name: "mean"}, {Name: "majority class", Baseline: true}}, Splits: "slide\tfold_0\n",
	LeftOut: []coverslip.LeftOut{{Slide: "b.svs", Reason: "no embedding"}}, Created: time.Unix(1, 0).UTC()}

func (m *memory) Runs(context.Context) ([]coverslip.Run, error) { return []coverslip.Run{runA}, m.fail }

func (m *memory) RunByPrefix(_ context.Context, prefix string) (coverslip.Run, error) {
	switch {
	case m.fail != nil:
		return coverslip.Run{}, m.fail
	case prefix == "aaaaaa":
		return coverslip.Run{}, &coverslip.Error{Kind: coverslip.Conflict, Op: "find the run", Err: errors.New("several begin so"), Hint: "give more digits"}
	case !strings.HasPrefix(runA.ID, prefix):
		return coverslip.Run{}, &coverslip.Error{Kind: coverslip.NotFound, Op: "find the run", Err: errors.New("none begins so"), Hint: "list them"}
	}
	return runA, nil
}

func (m *memory) Predictions(context.Context, string) ([]coverslip.Prediction, error) {
	return []coverslip.Prediction{{Method: "mean", Split: "0", Slide: coverslip.SlideID(idA), Patient: "P", P: []float64{0.75, 0.25}}}, m.fail
}
