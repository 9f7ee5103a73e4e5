package storage_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/postgres"
	"coverslip/storage/storagetest"
)

// mirror is a copy in memory, kept in step by Follow.
type mirror struct {
	t      *testing.T
	mu     sync.Mutex
	rows   map[coverslip.SlideID]float32
	given  int
	change chan struct{} // gets a value after each batch that caught up, if nobody has taken the last
	end    chan error
}

func follow(t *testing.T, ctx context.Context, db *storage.DB) *mirror {
	m := &mirror{t: t, rows: map[coverslip.SlideID]float32{}, change: make(chan struct{}, 1), end: make(chan error, 1)}
	go func() {
		m.end <- db.Follow(ctx, func(batch []coverslip.Embedding, caughtUp bool) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, e := range batch {
				m.rows[e.Slide] = e.Vector[0]
				m.given++
			}
			if caughtUp {
				select {
				case m.change <- struct{}{}:
				default:
				}
			}
			return nil
		})
	}()
	return m
}

func (m *mirror) waitFor(what string, ok func() bool) {
	m.t.Helper()
	late := time.After(60 * time.Second)
	for {
		m.mu.Lock()
		is := ok()
		m.mu.Unlock()
		if is {
			return
		}
		select {
		case <-m.change:
		case <-late:
			m.t.Fatal("waited in vain for " + what)
		}
	}
}

func TestFollow(t *testing.T) {
	t.Run("GivesWhatIsThereThenWhatComes", func(t *testing.T) {
		db := storagetest.New(t)
		var ids []coverslip.SlideID
		for i := range 300 { // more than a batch
			s := register(t, db, slide(fmt.Sprint(i)))
			ids = append(ids, s.ID)
			putEmbedding(t, db, s.ID, float32(i))
		}
		ctx, cancel := context.WithCancel(t.Context())
		m := follow(t, ctx, db)
		m.waitFor("the first 300", func() bool { return len(m.rows) == 300 })
		if m.given != 300 {
			t.Errorf("given %d, want each once", m.given)
		}
		putEmbedding(t, db, ids[7], 1000)
		m.waitFor("the change", func() bool { return m.rows[ids[7]] == 1000 })
		if m.given != 301 {
			t.Errorf("given %d, want the change alone", m.given)
		}
		cancel()
		if err := within(t, m.end, "the end"); coverslip.KindOf(err) != coverslip.Canceled {
			t.Errorf("ended with %v", err)
		}
	})

	t.Run("NothingThereIsCaughtUp", func(t *testing.T) {
		db := storagetest.New(t)
		m := follow(t, t.Context(), db)
		within(t, m.change, "being caught up")
	})

	// Transaction 1 takes its versions first and commits last. Others commit before, between and after.
	t.Run("OutOfOrderCommits", func(t *testing.T) {
		db := storagetest.New(t)
		var s []coverslip.SlideID
		for i := range 5 {
			s = append(s, register(t, db, slide(fmt.Sprint(i))).ID)
		}
		m := follow(t, t.Context(), db)
		within(t, m.change, "the start")

		slow, err := db.Pool().Begin(t.Context())
		fatal(t, err)
		defer func() { _ = slow.Rollback(context.Background()) }()
		write := func(i int) {
			b := bag(s[i])
			_, err := slow.Exec(t.Context(), `insert into bags (key, slide, encoder, tiles, dim, bytes, plan) values ($1, $2, 'e', 1, 2, 1, '{}')`, b.Key, s[i])
			fatal(t, err)
			_, err = slow.Exec(t.Context(), `insert into embeddings (slide, encoder, aggregator, bag, vector) values ($1, 'e', 'mean', $2, '{1,0}')`, s[i], b.Key)
			fatal(t, err)
		}
		write(0)
		putEmbedding(t, db, s[1], 1) // a later version, given while the earlier one is not there yet
		m.waitFor("the overtaker", func() bool { return len(m.rows) == 1 })
		write(2)
		putEmbedding(t, db, s[3], 1)
		m.waitFor("the next overtaker", func() bool { return len(m.rows) == 2 })
		fatal(t, slow.Commit(t.Context()))
		m.waitFor("the overtaken", func() bool { return len(m.rows) == 4 })
		putEmbedding(t, db, s[4], 1)
		m.waitFor("the last", func() bool { return len(m.rows) == 5 })
		if m.given != 5 {
			t.Errorf("given %d, want each once", m.given)
		}
	})

	t.Run("EndsWithTheErrorOfApply", func(t *testing.T) {
		db := storagetest.New(t)
		sorry := errors.New("sorry")
		err := db.Follow(t.Context(), func([]coverslip.Embedding, bool) error { return sorry })
		if !errors.Is(err, sorry) {
			t.Errorf("got %v", err)
		}
	})

	t.Run("ConnectionsCut", func(t *testing.T) {
		db := storagetest.New(t)
		s := register(t, db, slide("s"))
		m := follow(t, t.Context(), db)
		within(t, m.change, "the start")
		for i := range 3 {
			_, err := db.Pool().Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
				where datname = current_database() and pid <> pg_backend_pid()`)
			fatal(t, err)
			// The pool may hand out one of the connections that were cut.
			for {
				err := db.PutBag(t.Context(), bag(s.ID))
				if err == nil {
					break
				}
				if coverslip.KindOf(err) != coverslip.Unavailable {
					t.Fatal(err)
				}
			}
			putEmbedding(t, db, s.ID, float32(i+1))
			m.waitFor("the write after the cut", func() bool { return m.rows[s.ID] == float32(i+1) })
		}
	})
}

// Postgres is stopped under a follower and a waiter and started again: neither notices.
func TestPostgresRestarted(t *testing.T) {
	if _, err := postgres.Find(); err != nil {
		storagetest.New(t) // skips or fails
	}
	base, err := os.MkdirTemp("", "restart")
	fatal(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	fatal(t, os.Chmod(base, 0o711))
	dir := filepath.Join(base, "pg")
	server, err := postgres.Start(t.Context(), dir)
	fatal(t, err)
	t.Cleanup(func() { _ = server.Stop() })
	db, err := storage.Open(t.Context(), server.URL())
	fatal(t, err)
	t.Cleanup(db.Close)
	fatal(t, db.Migrate(t.Context()))
	a, b := register(t, db, slide("a")), register(t, db, slide("b"))
	putEmbedding(t, db, a.ID, 1)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m := follow(t, ctx, db)
	m.waitFor("the first", func() bool { return len(m.rows) == 1 })
	waited := make(chan error, 1)
	first := make(chan struct{}, 1)
	go func() {
		waited <- db.WaitDone(ctx, []coverslip.SlideID{b.ID}, func(s coverslip.Slide) {
			if s.State == coverslip.Queued {
				first <- struct{}{}
			}
		})
	}()
	within(t, first, "the waiter")

	fatal(t, server.Stop())
	_, err = db.Slide(t.Context(), a.ID)
	wantKind(t, err, coverslip.Unavailable)
	server, err = postgres.Start(t.Context(), dir)
	fatal(t, err)
	t.Cleanup(func() { _ = server.Stop() })

	for { // the pool drops its dead connections one by one
		err := db.SetState(t.Context(), b.ID, coverslip.Embedded, nil)
		if err == nil {
			break
		}
		if coverslip.KindOf(err) != coverslip.Unavailable {
			t.Fatal(err)
		}
	}
	putEmbedding(t, db, b.ID, 1)
	m.waitFor("what was written after the restart", func() bool { return len(m.rows) == 2 })
	fatal(t, within(t, waited, "the waiter's end"))
}

func TestWaitDone(t *testing.T) {
	db := storagetest.New(t)
	a, b := register(t, db, slide("a")), register(t, db, slide("b"))
	fatal(t, db.SetState(t.Context(), b.ID, coverslip.NoTissue, nil)) // done before anybody waits

	seen := make(chan coverslip.Slide, 10)
	end := make(chan error, 1)
	go func() {
		end <- db.WaitDone(t.Context(), []coverslip.SlideID{a.ID, b.ID}, func(s coverslip.Slide) { seen <- s })
	}()
	var states []coverslip.State
	for range 2 {
		states = append(states, within(t, seen, "the slides as they stand").State)
	}
	slices.Sort(states)
	if !slices.Equal(states, []coverslip.State{coverslip.NoTissue, coverslip.Queued}) {
		t.Errorf("at first %v", states)
	}
	for _, state := range []coverslip.State{coverslip.Encoding, coverslip.Embedded} {
		fatal(t, db.SetState(t.Context(), a.ID, state, nil))
		if s := within(t, seen, string(state)); s.ID != a.ID || s.State != state {
			t.Errorf("got %s %s, want %s", s.ID.Short(), s.State, state)
		}
	}
	fatal(t, within(t, end, "the end"))

	wantKind(t, db.WaitDone(t.Context(), []coverslip.SlideID{slide("unknown").ID}, func(coverslip.Slide) {}), coverslip.NotFound)
	fatal(t, db.WaitDone(t.Context(), nil, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantKind(t, db.WaitDone(ctx, []coverslip.SlideID{a.ID}, func(coverslip.Slide) {}), coverslip.Canceled)
}
