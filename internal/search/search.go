// Package search answers which slides are alike. It keeps the embeddings in memory, one matrix for each
// encoder and aggregator, in step with the database, beside what the cohorts say of each slide; every
// answer is exact, under any filter. A matrix that outgrows memory is left to the database, where that has
// pgvector, with the same answers.
//
// The arithmetic is storage/vector's, the tables are storage's.
package search

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/vector"
)

// Model is what embeddings must share to be compared.
type Model struct{ Encoder, Aggregator string }

// index is a collection that is searched: vector.Index, or database.
type index interface {
	Len() int
	Upsert(id string, v []float32) error
	Remove(id string)
	Find(ctx context.Context, q []float32, k int, among vector.Among) ([]vector.Hit, error)
}

// Options are those of an engine.
type Options struct {
	// Memory is how many bytes of embeddings are kept, about. What goes beyond is left to pgvector, the largest
	// collection first; without pgvector it is kept, and the log says so. 0 is no limit.
	Memory int64
	Log    *slog.Logger // nil says nothing
}

// Engine answers queries. Safe for concurrent use.
type Engine struct {
	db *storage.DB
	o  Options

	mu      sync.RWMutex
	indexes map[Model]index

	places sync.Mutex
	stale  bool
	known  *knowledge
}

// knowledge is what the cohorts say of slides, as of one moment. It does not change.
type knowledge struct {
	places  map[coverslip.SlideID][]place
	cohorts map[string]bool
	labels  map[string]bool

	mu   sync.Mutex
	sets map[string]*set // by the filter that makes them
}

// set is the slides that a filter lets through.
type set struct {
	ids []string
	has map[string]bool
}

// place is a slide's place in one cohort.
type place struct {
	cohort string
	coverslip.Member
}

// New makes an engine that knows nothing yet; see Follow.
func New(db *storage.DB, o Options) *Engine {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Engine{db: db, o: o, indexes: map[Model]index{}, stale: true}
}

// Follow keeps the engine in step with the database until ctx ends or the database refuses for good.
func (e *Engine) Follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var cohorts sync.WaitGroup
	cohorts.Go(func() {
		if err := e.db.FollowCohorts(ctx, e.forget); err != nil && ctx.Err() == nil {
			cancel(err)
		}
	})
	err := e.db.Follow(ctx, func(batch []coverslip.Embedding, _ bool) error { return e.take(ctx, batch) })
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(nil)
	cohorts.Wait()
	return err
}

// Load reads everything once, for a process that asks one question.
func (e *Engine) Load(ctx context.Context, m Model) error {
	for n, err := range e.db.Embeddings(ctx, storage.EmbeddingFilter{Encoder: m.Encoder, Aggregator: m.Aggregator}) {
		if err == nil {
			err = e.take(ctx, []coverslip.Embedding{n.Embedding})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) take(ctx context.Context, batch []coverslip.Embedding) error {
	for _, one := range batch {
		if err := e.index(Model{one.Encoder, one.Aggregator}, len(one.Vector)).Upsert(string(one.Slide), one.Vector); err != nil {
			return err
		}
	}
	e.fit(ctx)
	return nil
}

// perValue is what a value of an embedding takes in memory: a float32 and its code; perRow is its id.
const (
	perValue = 5
	perRow   = 250
)

// fit leaves the largest matrices to the database, until the others fit into memory.
func (e *Engine) fit(ctx context.Context) {
	if e.o.Memory == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		var total, most int64
		var largest Model
		for m, x := range e.indexes {
			if held, ok := x.(*vector.Index); ok {
				bytes := int64(held.Len()) * (perRow + perValue*int64(held.Dim()))
				if total += bytes; bytes > most {
					most, largest = bytes, m
				}
			}
		}
		if total <= e.o.Memory {
			return
		}
		there, err := e.db.Extended(ctx)
		if err != nil {
			e.o.Log.Warn("nobody knows whether the database has pgvector; it is asked again", "err", err)
			return
		}
		if !there {
			e.o.Log.Warn("embeddings take more memory than they may, and the database has no pgvector to search them with", "bytes", total, "may", e.o.Memory)
			e.o.Memory = 0 // once is enough
			return
		}
		held := e.indexes[largest].(*vector.Index) //nolint:forcetypeassert // as above
		d := &database{db: e.db, model: largest, like: vector.New(held.Dim())}
		d.n.Store(int64(held.Len()))
		e.indexes[largest] = d
		e.o.Log.Info("embeddings are searched in the database, because they take more memory than they may", "encoder", largest.Encoder, "aggregator", largest.Aggregator, "embeddings", d.Len())
	}
}

// index is the collection of a model, made where there is none and dim is not 0.
func (e *Engine) index(m Model, dim int) index {
	e.mu.RLock()
	x := e.indexes[m]
	e.mu.RUnlock()
	if x != nil || dim == 0 {
		return x
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.indexes[m] == nil {
		e.indexes[m] = vector.New(dim)
	}
	return e.indexes[m]
}

// forget makes the next query read the cohorts again.
func (e *Engine) forget() {
	e.places.Lock()
	defer e.places.Unlock()
	e.stale = true
}

// knowing is what the cohorts say now.
func (e *Engine) knowing(ctx context.Context) (*knowledge, error) {
	e.places.Lock()
	defer e.places.Unlock()
	if !e.stale {
		return e.known, nil
	}
	k := &knowledge{places: map[coverslip.SlideID][]place{}, cohorts: map[string]bool{}, labels: map[string]bool{}, sets: map[string]*set{}}
	for cohort, err := range e.db.AllMembers(ctx) {
		if err != nil {
			return nil, err
		}
		k.cohorts[cohort.Cohort] = true
		if cohort.Slide == "" { // of an empty cohort
			continue
		}
		k.places[cohort.Slide] = append(k.places[cohort.Slide], place{cohort.Cohort, cohort.Member})
		for label := range cohort.Labels {
			k.labels[label] = true
		}
	}
	e.known, e.stale = k, false
	return k, nil
}

// Where picks slides: those of which one place in a cohort fits all that is set. Zero fields fit all.
type Where struct {
	Cohort   string
	Sites    []string          // one of these
	Patients []string          // one of these
	Labels   map[string]string // each as it stands in a file
}

// Query asks for the slides most like a vector.
type Query struct {
	Vector             []float32
	Model              Model
	Slide              coverslip.SlideID // it is this one's, which is left out; "" is none
	Where              Where
	ExcludeSamePatient bool     // leave out slides of Slide's patients,
	ExcludePatients    []string // and of these
	K                  int
	After              *vector.Hit // only what comes behind it; nil is the start
	Vote               string      // a label to count among the answers; "" is none
}

// Hit is a slide that is alike, with what its cohort says of it: that of Where, or else the first that says
// anything.
type Hit struct {
	coverslip.Neighbour
	Member coverslip.Member
}

// Answer is what came of a query.
type Answer struct {
	Hits []Hit
	Last *vector.Hit // for the next page; nil where there is none
	Vote *Vote       // nil where none was asked for
}

// Vote is what most of the answers are labelled. Of several with as many votes it is the one whose slides
// are more similar in sum.
type Vote struct {
	Label, Value string // Value is "" where no answer has the label
	Votes, Of    int    // of so many answers with the label
}

// Search answers a query from every embedding under its model.
func (e *Engine) Search(ctx context.Context, q Query) (Answer, error) {
	const op = "search"
	know, err := e.knowing(ctx)
	if err != nil {
		return Answer{}, err
	}
	if err := know.check(q); err != nil {
		return Answer{}, err
	}
	index := e.index(q.Model, 0)
	if index == nil {
		return Answer{}, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Err: fmt.Errorf("no slide has an embedding under encoder %s and aggregator %s", q.Model.Encoder, q.Model.Aggregator), Hint: "see which there are: coverslip models list"}
	}
	among := know.among(q, index.Len())
	for {
		hits, err := index.Find(ctx, q.Vector, q.K+1, among) // one more tells whether there is a next page
		if err != nil {
			return Answer{}, err
		}
		var out Answer
		if len(hits) > q.K {
			hits = hits[:q.K]
			out.Last = &hits[q.K-1]
		}
		gone, err := e.describe(ctx, know, q, hits, &out)
		if err != nil {
			return Answer{}, err
		}
		if len(gone) == 0 {
			if q.Vote != "" {
				out.Vote = vote(q.Vote, out.Hits)
			}
			return out, nil
		}
		for _, id := range gone { // their slides were removed since
			index.Remove(id)
		}
	}
}

// describe fills in what is known of the hits, and says which slides are gone.
func (e *Engine) describe(ctx context.Context, know *knowledge, q Query, hits []vector.Hit, out *Answer) (gone []string, err error) {
	ids := make([]coverslip.SlideID, len(hits))
	for i, h := range hits {
		ids[i] = coverslip.SlideID(h.ID)
	}
	names, err := e.db.SlideNames(ctx, ids)
	if err != nil {
		return nil, err
	}
	out.Hits = make([]Hit, 0, len(hits))
	for i, h := range hits {
		name, there := names[ids[i]]
		if !there {
			gone = append(gone, h.ID)
			continue
		}
		hit := Hit{Neighbour: coverslip.Neighbour{Slide: ids[i], Name: name, Similarity: float64(h.Similarity)}}
		for _, p := range know.places[ids[i]] {
			if q.Where.fits(p) {
				hit.Member = p.Member
				break
			}
		}
		out.Hits = append(out.Hits, hit)
	}
	return gone, nil
}

// check refuses what nobody can have meant.
func (k *knowledge) check(q Query) error {
	const op = "search"
	if c := q.Where.Cohort; c != "" && !k.cohorts[c] {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: "cohort " + c, Err: errors.New("there is none of this name"), Hint: "list them: coverslip cohorts"}
	}
	for _, label := range append(slices.Sorted(maps.Keys(q.Where.Labels)), q.Vote) {
		if label != "" && !k.labels[label] {
			return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf("no cohort has a label column %q", label), Hint: "see which there are: coverslip cohorts show NAME"}
		}
	}
	if q.K < 1 {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf("%d answers were asked for", q.K), Hint: "ask for 1 or more"}
	}
	return nil
}

// any reports whether it lets all through.
func (w Where) any() bool {
	return w.Cohort == "" && len(w.Sites) == 0 && len(w.Patients) == 0 && len(w.Labels) == 0
}

func (w Where) fits(p place) bool {
	if w.Cohort != "" && p.cohort != w.Cohort || len(w.Sites) > 0 && !slices.Contains(w.Sites, p.Site) || len(w.Patients) > 0 && !slices.Contains(w.Patients, p.Patient) {
		return false
	}
	for label, want := range w.Labels {
		if v, ok := p.Labels[label]; !ok || coverslip.LabelText(v) != want {
			return false
		}
	}
	return true
}

// key tells filters apart.
func (w Where) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %q", w.Cohort, slices.Sorted(slices.Values(w.Sites)), slices.Sorted(slices.Values(w.Patients)))
	for _, label := range slices.Sorted(maps.Keys(w.Labels)) {
		fmt.Fprintf(&b, " %q=%q", label, w.Labels[label])
	}
	return b.String()
}

// among is the filter of a query over n vectors.
func (k *knowledge) among(q Query, n int) vector.Among {
	out := vector.Among{After: q.After}
	var only *set
	if !q.Where.any() {
		if only = k.set(q.Where); 4*len(only.ids) < n {
			out.IDs, only = only.ids, nil
		}
	}
	patients := map[string]bool{}
	for _, p := range q.ExcludePatients {
		patients[p] = true
	}
	if q.ExcludeSamePatient {
		for _, p := range k.places[q.Slide] {
			if q.Where.Cohort == "" || p.cohort == q.Where.Cohort {
				patients[p.Patient] = true
			}
		}
	}
	delete(patients, "") // nobody knows whose they are
	self := string(q.Slide)
	if only == nil && len(patients) == 0 && self == "" {
		return out
	}
	out.Keep = func(id string) bool {
		return id != self && (only == nil || only.has[id]) &&
			(len(patients) == 0 || !slices.ContainsFunc(k.places[coverslip.SlideID(id)], func(p place) bool { return patients[p.Patient] }))
	}
	return out
}

// set is the slides a filter lets through, remembered for the next query like it.
func (k *knowledge) set(w Where) *set {
	const remembered = 100
	key := w.key()
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.sets[key]; s != nil {
		return s
	}
	s := &set{ids: []string{}, has: map[string]bool{}}
	for id, places := range k.places {
		if slices.ContainsFunc(places, w.fits) {
			s.ids, s.has[string(id)] = append(s.ids, string(id)), true
		}
	}
	if len(k.sets) >= remembered {
		clear(k.sets)
	}
	k.sets[key] = s
	return s
}

func vote(label string, hits []Hit) *Vote {
	type count struct {
		votes int
		sum   float64
	}
	counts := map[string]count{}
	out := &Vote{Label: label}
	for _, h := range hits {
		if v, ok := h.Member.Labels[label]; ok {
			text := coverslip.LabelText(v)
			c := counts[text]
			counts[text] = count{c.votes + 1, c.sum + h.Similarity}
			out.Of++
		}
	}
	for _, value := range slices.Sorted(maps.Keys(counts)) {
		c, best := counts[value], counts[out.Value]
		if out.Votes == 0 || cmp.Or(cmp.Compare(c.votes, best.votes), cmp.Compare(c.sum, best.sum)) > 0 {
			out.Value, out.Votes = value, c.votes
		}
	}
	return out
}
