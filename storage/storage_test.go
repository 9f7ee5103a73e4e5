package storage_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"coverslip"
	"coverslip/migrations"
	"coverslip/storage"
	"coverslip/storage/storagetest"
)

func TestMain(m *testing.M) { os.Exit(storagetest.Main(m)) }

func TestRegister(t *testing.T) {
	db := storagetest.New(t)

	t.Run("KeepsEveryField", func(t *testing.T) {
		want := slide("all")
		want.Format, want.Width, want.Height, want.ObjectivePower = "aperio", 2220, 2967, 20
		want.Levels = []coverslip.Level{{Width: 2220, Height: 2967, Downsample: 1}}
		want.MPP = coverslip.MPP{Value: 0.499, Source: coverslip.MPPAperio, Doubt: "none"}
		want.State, want.Reason = coverslip.AwaitingMPP, "say --mpp-of-slide"
		stored, created, err := db.Register(t.Context(), want)
		fatal(t, err)
		if !created || stored.Registered.IsZero() || stored.Changed.IsZero() {
			t.Errorf("created %v, registered %v", created, stored.Registered)
		}
		got, err := db.Slide(t.Context(), want.ID)
		fatal(t, err)
		if !reflect.DeepEqual(got, stored) {
			t.Errorf("read %+v, stored %+v", got, stored)
		}
		want.Registered, want.Changed = got.Registered, got.Changed
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})

	t.Run("TheFirstRowStays", func(t *testing.T) {
		first := slide("again")
		register(t, db, first)
		second := first
		second.Name = "other.svs"
		got, created, err := db.Register(t.Context(), second)
		fatal(t, err)
		if created || got.Name != first.Name {
			t.Errorf("created %v, name %q", created, got.Name)
		}
	})

	t.Run("NonsenseIsInvalid", func(t *testing.T) {
		for name, spoil := range map[string]func(*coverslip.Slide){
			"id":           func(s *coverslip.Slide) { s.ID = "XYZ" },
			"no name":      func(s *coverslip.Slide) { s.Name = "" },
			"NUL in name":  func(s *coverslip.Slide) { s.Name = "a\x00b" },
			"bad UTF-8":    func(s *coverslip.Slide) { s.Name = "\xff" },
			"bytes":        func(s *coverslip.Slide) { s.Bytes = -1 },
			"mpp":          func(s *coverslip.Slide) { s.MPP.Value = -0.5 },
			"mpp from air": func(s *coverslip.Slide) { s.MPP.Value = 0.5 },
			"state":        func(s *coverslip.Slide) { s.State = "lost" },
		} {
			s := slide(name)
			spoil(&s)
			_, _, err := db.Register(t.Context(), s)
			if coverslip.KindOf(err) != coverslip.Invalid {
				t.Errorf("%s: %v", name, err)
			}
		}
	})

	t.Run("RolledBackWithItsTransaction", func(t *testing.T) {
		s := slide("rolled back")
		sorry := errors.New("sorry")
		err := db.InTx(t.Context(), func(tx *storage.Tx) error {
			if _, _, err := tx.Register(t.Context(), s); err != nil {
				return err
			}
			return sorry
		})
		if !errors.Is(err, sorry) {
			t.Errorf("got %v", err)
		}
		_, err = db.Slide(t.Context(), s.ID)
		wantKind(t, err, coverslip.NotFound)
	})
}

func TestSlideByPrefix(t *testing.T) {
	db := storagetest.New(t)
	a, b, c := slide("a"), slide("b"), slide("c")
	a.ID = "abcdef0" + a.ID[7:]
	b.ID = "abcdef1" + b.ID[7:]
	c.ID = "ffffff" + c.ID[6:]
	for _, s := range []coverslip.Slide{a, b, c} {
		register(t, db, s)
	}
	for prefix, want := range map[string]coverslip.SlideID{"abcdef0": a.ID, "abcdef1": b.ID, "ffffff": c.ID, string(b.ID): b.ID} {
		got, err := db.SlideByPrefix(t.Context(), prefix)
		fatal(t, err)
		if got.ID != want {
			t.Errorf("%s gives %s", prefix, got.ID)
		}
	}
	for prefix, want := range map[string]coverslip.Kind{
		"abcdef": coverslip.Conflict, "0123456": coverslip.NotFound,
		"abcde": coverslip.Invalid, "ABCDEF": coverslip.Invalid, "abcde%": coverslip.Invalid, "": coverslip.Invalid,
	} {
		_, err := db.SlideByPrefix(t.Context(), prefix)
		wantKind(t, err, want)
	}
}

// Pages are read while slides are added and change state: all that were there come once, in order.
func TestPagesAreStable(t *testing.T) {
	db := storagetest.New(t)
	var want []coverslip.SlideID
	err := db.InTx(t.Context(), func(tx *storage.Tx) error { // one transaction: all have the same time
		want = nil
		for i := range 10 {
			s, _, err := tx.Register(t.Context(), slide(fmt.Sprint("same", i)))
			if err != nil {
				return err
			}
			want = append(want, s.ID)
		}
		return nil
	})
	fatal(t, err)
	slices.Sort(want)
	for i := range 5 {
		want = append(want, register(t, db, slide(fmt.Sprint("later", i))).ID)
	}
	var got []coverslip.SlideID
	f := storage.SlideFilter{Limit: 4}
	for {
		page, err := db.Slides(t.Context(), f)
		fatal(t, err)
		if len(page) == 0 {
			break
		}
		for _, s := range page {
			got = append(got, s.ID)
		}
		if len(got) <= 8 {
			register(t, db, slide(fmt.Sprint("meanwhile", len(got))))
			fatal(t, db.SetState(t.Context(), got[0], coverslip.Failed, errors.New("x")))
		}
		f.After = storage.CursorAt(page[len(page)-1])
	}
	if !slices.Equal(got[:15], want) || len(got) != 17 {
		t.Errorf("got  %v\nwant %v and two more", got, want)
	}
}

func TestSlidesByStateAndCohort(t *testing.T) {
	db := storagetest.New(t)
	a, b := register(t, db, slide("a")), register(t, db, slide("b"))
	fatal(t, db.SetState(t.Context(), b.ID, coverslip.Failed, errors.New("broken")))
	fatal(t, db.AddToCohort(t.Context(), "crc", coverslip.Member{Slide: a.ID, Patient: "p1", Labels: map[string]any{"msi": "1", "grade": 2.0}}))
	fatal(t, db.AddToCohort(t.Context(), "crc", coverslip.Member{Slide: a.ID, Site: "s1", Labels: map[string]any{"grade": 3.0}}))

	for name, c := range map[string]struct {
		filter storage.SlideFilter
		want   []coverslip.SlideID
	}{
		"all":           {storage.SlideFilter{}, []coverslip.SlideID{a.ID, b.ID}},
		"failed":        {storage.SlideFilter{State: coverslip.Failed}, []coverslip.SlideID{b.ID}},
		"cohort":        {storage.SlideFilter{Cohort: "crc"}, []coverslip.SlideID{a.ID}},
		"both":          {storage.SlideFilter{State: coverslip.Failed, Cohort: "crc"}, nil},
		"no such group": {storage.SlideFilter{Cohort: "x"}, nil},
	} {
		slides, err := db.Slides(t.Context(), c.filter)
		fatal(t, err)
		var got []coverslip.SlideID
		for _, s := range slides {
			got = append(got, s.ID)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	var patient, site, msi, grade string
	fatal(t, db.Pool().QueryRow(t.Context(), `select patient, site, labels->>'msi', labels->>'grade' from cohort_slides`).Scan(&patient, &site, &msi, &grade))
	if patient != "p1" || site != "s1" || msi != "1" || grade != "3" {
		t.Errorf("got %q %q %q %q", patient, site, msi, grade)
	}
	err := db.AddToCohort(t.Context(), "new", coverslip.Member{Slide: a.ID}, coverslip.Member{Slide: slide("unknown").ID})
	wantKind(t, err, coverslip.NotFound)
	if left, _ := db.Slides(t.Context(), storage.SlideFilter{Cohort: "new"}); len(left) != 0 {
		t.Errorf("half a cohort: %v", left)
	}
}

func TestUpdatesOfUnknownSlides(t *testing.T) {
	db := storagetest.New(t)
	id := slide("unknown").ID
	wantKind(t, db.SetState(t.Context(), id, coverslip.Failed, nil), coverslip.NotFound)
	wantKind(t, db.SetMPP(t.Context(), id, coverslip.MPP{Value: 0.5, Source: coverslip.MPPUser}), coverslip.NotFound)
	wantKind(t, db.PutBag(t.Context(), bag(id)), coverslip.NotFound)
	_, err := db.Bag(t.Context(), hash("no bag"))
	wantKind(t, err, coverslip.NotFound)
}

func TestSetMPP(t *testing.T) {
	db := storagetest.New(t)
	s := register(t, db, slide("s"))
	want := coverslip.MPP{Value: 0.25, Source: coverslip.MPPUser}
	fatal(t, db.SetMPP(t.Context(), s.ID, want))
	got, err := db.Slide(t.Context(), s.ID)
	fatal(t, err)
	if got.MPP != want {
		t.Errorf("got %+v", got.MPP)
	}
}

func TestBagAndEmbedding(t *testing.T) {
	db := storagetest.New(t)
	s := register(t, db, slide("s"))
	b := bag(s.ID)
	b.Timings = []coverslip.StageTime{{Stage: "encode", Seconds: 1.5}}
	fatal(t, db.PutBag(t.Context(), b))
	fatal(t, db.PutBag(t.Context(), b))
	got, err := db.Bag(t.Context(), b.Key)
	fatal(t, err)
	b.Created = got.Created
	if !reflect.DeepEqual(got, b) {
		t.Errorf("got %+v, want %+v", got, b)
	}

	e := coverslip.Embedding{Slide: s.ID, Bag: b.Key, Encoder: "e", Aggregator: "mean", Vector: []float32{0.6, 0.8}}
	fatal(t, db.PutEmbedding(t.Context(), e))
	version := versionOf(t, db)
	fatal(t, db.PutEmbedding(t.Context(), e)) // the same again
	if versionOf(t, db) != version {
		t.Error("writing the same took a version")
	}
	e.Vector = []float32{1, 0}
	fatal(t, db.PutEmbedding(t.Context(), e))
	if versionOf(t, db) <= version {
		t.Error("writing another vector took no version")
	}
	read, err := db.Embedding(t.Context(), s.ID, "e", "mean")
	fatal(t, err)
	e.Created = read.Created
	if !reflect.DeepEqual(read, e) {
		t.Errorf("got %+v, want %+v", read, e)
	}
	_, err = db.Embedding(t.Context(), s.ID, "e", "other")
	wantKind(t, err, coverslip.NotFound)

	for name, vector := range map[string][]float32{"none": nil, "empty": {}, "NaN": {1, nan()}, "infinite": {1, 1 / zero()}} {
		e.Vector = vector
		if err := db.PutEmbedding(t.Context(), e); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := coverslip.Model{Kind: coverslip.EncoderModel, Name: "e", SHA256: hash("e"), Dim: 2, TileSize: 256, TileMPP: 0.5}
	fatal(t, db.PutModel(t.Context(), m))
	fatal(t, db.PutModel(t.Context(), m))
}

func TestEmbeddingsForExport(t *testing.T) {
	db := storagetest.New(t)
	var ids []coverslip.SlideID
	for i := range 3 {
		s := register(t, db, slide(fmt.Sprint(i)))
		ids = append(ids, s.ID)
		putEmbedding(t, db, s.ID, float32(i+1))
	}
	fatal(t, db.AddToCohort(t.Context(), "two", coverslip.Member{Slide: ids[0]}, coverslip.Member{Slide: ids[2]}))
	slices.Sort(ids)

	var got []coverslip.SlideID
	for e, err := range db.Embeddings(t.Context(), storage.EmbeddingFilter{Encoder: "e", Aggregator: "mean"}) {
		fatal(t, err)
		if e.Name == "" || len(e.Vector) != 2 {
			t.Errorf("got %+v", e)
		}
		got = append(got, e.Slide)
	}
	if !slices.Equal(got, ids) {
		t.Errorf("got %v, want %v", got, ids)
	}
	n := 0
	for _, err := range db.Embeddings(t.Context(), storage.EmbeddingFilter{Cohort: "two"}) {
		fatal(t, err)
		n++
	}
	if n != 2 {
		t.Errorf("%d in the cohort, want 2", n)
	}
	for _, err := range db.Embeddings(t.Context(), storage.EmbeddingFilter{}) {
		fatal(t, err)
		break // gives its connection back, or Close hangs
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range db.Embeddings(ctx, storage.EmbeddingFilter{}) {
		if coverslip.KindOf(err) != coverslip.Canceled {
			t.Errorf("got %v", err)
		}
	}
}

func TestDeadlockIsRunAgain(t *testing.T) {
	db := storagetest.New(t)
	a, b := register(t, db, slide("a")), register(t, db, slide("b"))
	var both, done sync.WaitGroup
	both.Add(2)
	for _, order := range [][2]coverslip.SlideID{{a.ID, b.ID}, {b.ID, a.ID}} {
		done.Go(func() {
			first := true
			err := db.InTx(t.Context(), func(tx *storage.Tx) error {
				if err := tx.SetState(t.Context(), order[0], coverslip.Failed, errors.New("x")); err != nil {
					return err
				}
				if first { // hold one lock each before asking for the other's
					first = false
					both.Done()
					both.Wait()
				}
				return tx.SetState(t.Context(), order[1], coverslip.Failed, errors.New("x"))
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
}

func TestSchema(t *testing.T) {
	t.Run("OlderThenMigrated", func(t *testing.T) {
		db, err := storage.Open(t.Context(), storagetest.Empty(t))
		fatal(t, err)
		defer db.Close()
		wantKind(t, db.CheckSchema(t.Context()), coverslip.Conflict)
		_, err = db.Slides(t.Context(), storage.SlideFilter{})
		wantKind(t, err, coverslip.Conflict)
		fatal(t, db.Migrate(t.Context()))
		fatal(t, db.Migrate(t.Context()))
		fatal(t, db.CheckSchema(t.Context()))
	})

	t.Run("ManyAtOnce", func(t *testing.T) {
		url := storagetest.Empty(t)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				db, err := storage.Open(t.Context(), url)
				if err == nil {
					defer db.Close()
					err = db.Migrate(t.Context())
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})

	t.Run("NewerIsLeftAlone", func(t *testing.T) {
		db := storagetest.New(t)
		_, err := db.Pool().Exec(t.Context(), `insert into goose_db_version (version_id, is_applied) values (999, true)`)
		fatal(t, err)
		wantKind(t, db.CheckSchema(t.Context()), coverslip.Conflict)
		wantKind(t, db.Migrate(t.Context()), coverslip.Conflict)
	})

	t.Run("DownAndUpAgain", func(t *testing.T) {
		db := storagetest.New(t)
		std := stdlib.OpenDBFromPool(db.Pool())
		defer func() { _ = std.Close() }()
		p, err := goose.NewProvider(goose.DialectPostgres, std, migrations.FS)
		fatal(t, err)
		_, err = p.DownTo(t.Context(), 0)
		fatal(t, err)
		var left []string
		rows, _ := db.Pool().Query(t.Context(), `select relname::text from pg_class where relnamespace = 'public'::regnamespace
			and relname not like 'river%' and relname not like 'goose%' union all
			select proname::text from pg_proc where pronamespace = 'public'::regnamespace and proname not like 'river%'`)
		left, err = pgx.CollectRows(rows, pgx.RowTo[string])
		fatal(t, err)
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		fatal(t, db.Migrate(t.Context()))
		register(t, db, slide("after"))
	})
}

func TestNoDatabase(t *testing.T) {
	for address, want := range map[string]coverslip.Kind{
		"postgres://nobody@127.0.0.1:1/x?connect_timeout=1": coverslip.Unavailable,
		"postgres:///x?host=/nowhere":                       coverslip.Unavailable,
		"postgres://%":                                      coverslip.Environment,
	} {
		_, err := storage.Open(t.Context(), address)
		wantKind(t, err, want)
	}
	_, err := storage.Open(t.Context(), storagetest.Empty(t)+"&dbname=missing")
	wantKind(t, err, coverslip.Environment)
}

func slide(name string) coverslip.Slide {
	return coverslip.Slide{ID: coverslip.SlideID(hash(name)), Name: name + ".svs", Location: "/slides/" + name + ".svs", Bytes: 1,
		State: coverslip.Queued, Levels: []coverslip.Level{}}
}

func bag(id coverslip.SlideID) coverslip.Bag {
	return coverslip.Bag{Key: hash("bag of " + string(id)), Slide: id, Encoder: "e", Tiles: 3, Dim: 2, Bytes: 100,
		Plan: coverslip.PlanParams{MPP: 0.5, Size: 256}, Timings: []coverslip.StageTime{}}
}

func putEmbedding(t *testing.T, db interface {
	PutBag(context.Context, coverslip.Bag) error
	PutEmbedding(context.Context, coverslip.Embedding) error
}, id coverslip.SlideID, x float32) {
	t.Helper()
	b := bag(id)
	fatal(t, db.PutBag(t.Context(), b))
	fatal(t, db.PutEmbedding(t.Context(), coverslip.Embedding{Slide: id, Bag: b.Key, Encoder: "e", Aggregator: "mean", Vector: []float32{x, 0}}))
}

func register(t *testing.T, db *storage.DB, s coverslip.Slide) coverslip.Slide {
	t.Helper()
	stored, _, err := db.Register(t.Context(), s)
	fatal(t, err)
	return stored
}

func versionOf(t *testing.T, db *storage.DB) (v int64) {
	t.Helper()
	fatal(t, db.Pool().QueryRow(t.Context(), "select max(version) from embeddings").Scan(&v))
	return v
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func zero() float32 { return float32(len(os.Args)) - float32(len(os.Args)) }
func nan() float32  { return zero() / zero() }

func wantKind(t *testing.T, err error, kind coverslip.Kind) {
	t.Helper()
	var e *coverslip.Error
	if !errors.As(err, &e) || e.Kind != kind || e.Op == "" {
		t.Fatalf("got %v (%s), want %s", err, coverslip.KindOf(err), kind)
	}
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// within fails the test if nothing comes out of ch in a time that no working machine needs.
func within[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(60 * time.Second):
		t.Fatal("waited in vain for " + what)
		panic("unreachable")
	}
}
