package queue_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/queue"
	"coverslip/storage/storagetest"
)

// TestMain lets the test binary be a worker in another process: it says the slide of each job it
// gets and never finishes one.
func TestMain(m *testing.M) {
	url := os.Getenv("COVERSLIP_TEST_WORKER")
	if url == "" {
		os.Exit(storagetest.Main(m))
	}
	ctx := context.Background()
	db, err := storage.Open(ctx, url)
	if err == nil {
		var q *queue.Queue
		q, err = queue.New(db.Pool(), queue.Config{Work: func(ctx context.Context, j queue.Job, _ queue.Attempt) error {
			fmt.Println(j.Slide)
			<-ctx.Done()
			return ctx.Err()
		}})
		if err == nil {
			err = q.Start(ctx)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}

// bench is a database and a queue over it.
type bench struct {
	t  *testing.T
	db *storage.DB
	q  *queue.Queue
}

func newBench(t *testing.T, c queue.Config) *bench {
	t.Helper()
	db := storagetest.New(t)
	return &bench{t, db, newQueue(t, db, c)}
}

func newQueue(t *testing.T, db *storage.DB, c queue.Config) *queue.Queue {
	t.Helper()
	q, err := queue.New(db.Pool(), c)
	fatal(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // at once
		if err := q.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return q
}

// add registers a slide and enqueues its job, as one.
func (b *bench) add(name string) coverslip.SlideID {
	b.t.Helper()
	id, added, err := b.tryAdd(name)
	fatal(b.t, err)
	if !added {
		b.t.Fatalf("%s is in the queue already", name)
	}
	return id
}

// register registers a slide without a job.
func (b *bench) register(name string) coverslip.SlideID {
	b.t.Helper()
	sum := sha256.Sum256([]byte(name))
	s, _, err := b.db.Register(b.t.Context(), coverslip.Slide{ID: coverslip.SlideID(hex.EncodeToString(sum[:])), Name: name, Location: "/" + name})
	fatal(b.t, err)
	return s.ID
}

func (b *bench) tryAdd(name string) (id coverslip.SlideID, added bool, err error) {
	sum := sha256.Sum256([]byte(name))
	id = coverslip.SlideID(hex.EncodeToString(sum[:]))
	err = b.db.InTx(b.t.Context(), func(tx *storage.Tx) error {
		if _, _, err := tx.Register(b.t.Context(), coverslip.Slide{ID: id, Name: name, Location: "/" + name}); err != nil {
			return err
		}
		job, err := b.q.Enqueue(b.t.Context(), tx.Pgx(), queue.Job{Slide: id, Encoder: "e", Aggregator: "mean"})
		added = err == nil && job[0].Added
		return err
	})
	return id, added, err
}

func (b *bench) wantState(id coverslip.SlideID, state coverslip.State, reason string) {
	b.t.Helper()
	s, err := b.db.Slide(b.t.Context(), id)
	fatal(b.t, err)
	if s.State != state || !strings.Contains(s.Reason, reason) {
		b.t.Errorf("slide is %s (%s), want %s (%s)", s.State, s.Reason, state, reason)
	}
}

// only returns the one job there is.
func (b *bench) only() queue.Status {
	b.t.Helper()
	list, err := b.q.List(b.t.Context(), queue.Filter{})
	fatal(b.t, err)
	if len(list) != 1 {
		b.t.Fatalf("%d jobs, want 1", len(list))
	}
	return list[0]
}

// until looks at the slide whenever its state changes, until ok.
func (b *bench) until(id coverslip.SlideID, ok func(coverslip.Slide) bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	met := false
	err := b.db.WaitDone(ctx, []coverslip.SlideID{id}, func(s coverslip.Slide) {
		if ok(s) {
			met = true
			cancel()
		}
	})
	if !met {
		b.t.Fatalf("never came to it: %v", err)
	}
}

func is(state coverslip.State) func(coverslip.Slide) bool {
	return func(s coverslip.Slide) bool { return s.State == state }
}

func TestWorksOnANewJobSoon(t *testing.T) {
	began := make(chan time.Time, 1)
	var b *bench
	b = newBench(t, queue.Config{Work: func(ctx context.Context, j queue.Job, a queue.Attempt) error {
		began <- time.Now()
		if j.Encoder != "e" || j.Aggregator != "mean" || a.Number != 1 || a.Last {
			t.Errorf("job %+v, attempt %+v", j, a)
		}
		s, err := b.db.Slide(ctx, j.Slide)
		if err != nil || s.State != coverslip.Encoding {
			t.Errorf("while it runs the slide is %s (%v)", s.State, err)
		}
		return b.db.SetState(ctx, j.Slide, coverslip.Embedded, nil)
	}})
	fatal(t, b.q.Start(t.Context()))
	var waits []time.Duration
	for i := range 10 {
		at := time.Now()
		id := b.add(fmt.Sprint(i))
		waits = append(waits, within(t, began, "the job").Sub(at))
		b.until(id, is(coverslip.Embedded))
	}
	t.Log("from the call that enqueues to the work:", waits)
	soon := 0
	for _, w := range waits {
		if w < 400*time.Millisecond { // below the poll, so by notification
			soon++
		}
	}
	if soon < 5 {
		t.Errorf("waited %v", waits)
	}
}

func TestOneRowOneJob(t *testing.T) {
	b := newBench(t, queue.Config{})
	var added atomic.Int64
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			_, is, err := b.tryAdd("the same")
			if err != nil {
				t.Error(err)
			}
			if is {
				added.Add(1)
			}
		})
	}
	all.Wait()
	slides, err := b.db.Slides(t.Context(), storage.SlideFilter{})
	fatal(t, err)
	if len(slides) != 1 || added.Load() != 1 {
		t.Errorf("%d rows, %d told that theirs was added", len(slides), added.Load())
	}
	b.only()
}

func TestRolledBackWithTheSlide(t *testing.T) {
	b := newBench(t, queue.Config{})
	sorry := errors.New("sorry")
	err := b.db.InTx(t.Context(), func(tx *storage.Tx) error {
		_, err := b.q.Enqueue(t.Context(), tx.Pgx(), queue.Job{Slide: "x"})
		fatal(t, err)
		return sorry
	})
	if !errors.Is(err, sorry) {
		t.Error(err)
	}
	if list, err := b.q.List(t.Context(), queue.Filter{}); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestAskedAgainAfterItEnded(t *testing.T) {
	var b *bench
	b = newBench(t, queue.Config{Work: func(ctx context.Context, j queue.Job, _ queue.Attempt) error {
		return b.db.SetState(ctx, j.Slide, coverslip.Embedded, nil)
	}})
	id := b.add("s")
	fatal(t, b.q.Start(t.Context()))
	b.until(id, is(coverslip.Embedded))
	fatal(t, b.q.Stop(t.Context())) // marks it completed
	if s := b.only(); s.State != "completed" || s.Finished == nil {
		t.Fatalf("%+v", s)
	}
	b.add("s")
	b.wantState(id, coverslip.Queued, "")
}

func TestAnErrorThatStaysEndsTheJob(t *testing.T) {
	b := newBench(t, queue.Config{Work: func(_ context.Context, j queue.Job, _ queue.Attempt) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "read level 2", Slide: j.Slide, Hint: "upload it again"}
	}})
	id := b.add("s")
	fatal(t, b.q.Start(t.Context()))
	b.until(id, is(coverslip.Failed))
	if s := b.only(); s.State != "cancelled" || s.Attempt != 1 {
		t.Errorf("%+v", s)
	}
	want := "slide " + id.Short() + ": read level 2 (upload it again)"
	b.wantState(id, coverslip.Failed, want)
	if s, _ := b.db.Slide(t.Context(), id); s.Reason != want {
		t.Errorf("reason %q, want %q", s.Reason, want)
	}
}

// The worker's own word on how it ended stays.
func TestTheWorkersReasonStays(t *testing.T) {
	var b *bench
	b = newBench(t, queue.Config{Work: func(ctx context.Context, j queue.Job, _ queue.Attempt) error {
		if err := b.db.SetState(ctx, j.Slide, coverslip.AwaitingMPP, errors.New("say --mpp-of-slide")); err != nil {
			return err
		}
		return &coverslip.Error{Kind: coverslip.NeedsMPP, Op: "plan", Slide: j.Slide}
	}})
	id := b.add("s")
	fatal(t, b.q.Start(t.Context()))
	b.until(id, is(coverslip.AwaitingMPP))
	fatal(t, b.q.Stop(t.Context()))
	b.wantState(id, coverslip.AwaitingMPP, "say --mpp-of-slide")
}

func TestRetriedThenGivenUp(t *testing.T) {
	type attempt struct {
		queue.Attempt
		began time.Time
	}
	attempts := make(chan attempt, queue.MaxAttempts)
	b := newBench(t, queue.Config{Work: func(_ context.Context, _ queue.Job, a queue.Attempt) error {
		attempts <- attempt{a, time.Now()}
		return &coverslip.Error{Kind: coverslip.Unavailable, Op: fmt.Sprintf("fetch for the %d. time", a.Number)}
	}})
	id := b.add("s")
	fatal(t, b.q.Start(t.Context()))
	for n := 1; n <= queue.MaxAttempts; n++ {
		a := within(t, attempts, "an attempt")
		if a.Number != n || a.Last != (n == queue.MaxAttempts) {
			t.Errorf("%+v, want number %d", a, n)
		}
		if n == queue.MaxAttempts {
			break
		}
		b.until(id, is(coverslip.Queued))
		s := b.only()
		if wait := s.Scheduled.Sub(a.began); wait < time.Duration(n)*time.Second {
			t.Errorf("attempt %d is followed by the next in %v", n, wait)
		}
		_, err := b.q.Retry(t.Context(), s.ID) // rather than wait
		fatal(t, err)
	}
	b.until(id, is(coverslip.Failed))
	if s := b.only(); s.State != "discarded" || s.Attempt != queue.MaxAttempts || s.Error != "fetch for the 5. time" {
		t.Errorf("%+v", s)
	}
	b.wantState(id, coverslip.Failed, "fetch for the 5. time")
}

func TestPanicIsAFailure(t *testing.T) {
	b := newBench(t, queue.Config{Work: func(_ context.Context, _ queue.Job, a queue.Attempt) error {
		panic("slipped")
	}})
	id := b.add("s")
	fatal(t, b.q.Start(t.Context()))
	b.until(id, is(coverslip.Encoding))
	b.until(id, is(coverslip.Queued))
	if s := b.only(); !strings.Contains(s.Error, "slipped") {
		t.Errorf("%+v", s)
	}
}

func TestStopHandsJobsBack(t *testing.T) {
	running := make(chan bool, 1)
	b := newBench(t, queue.Config{Work: func(ctx context.Context, _ queue.Job, _ queue.Attempt) error {
		running <- true
		<-ctx.Done()
		return &coverslip.Error{Kind: coverslip.Canceled, Op: "encode", Err: ctx.Err()}
	}})
	id := b.add("s")
	fatal(t, b.q.Start(t.Context()))
	within(t, running, "the job")
	now, cancel := context.WithCancel(t.Context())
	cancel()
	fatal(t, b.q.Stop(now))
	if s := b.only(); s.State != "available" || s.Attempt != 0 || s.Error != "" {
		t.Errorf("%+v", s)
	}
	b.wantState(id, coverslip.Queued, "")

	second := newQueue(t, b.db, queue.Config{Work: func(ctx context.Context, j queue.Job, _ queue.Attempt) error {
		return b.db.SetState(ctx, j.Slide, coverslip.Embedded, nil)
	}})
	fatal(t, second.Start(t.Context()))
	b.until(id, is(coverslip.Embedded))
}

func TestStopWaitsForJobs(t *testing.T) {
	running, finish := make(chan bool, 1), make(chan bool)
	var b *bench
	b = newBench(t, queue.Config{Work: func(ctx context.Context, j queue.Job, _ queue.Attempt) error {
		running <- true
		<-finish
		return b.db.SetState(ctx, j.Slide, coverslip.Embedded, nil)
	}})
	id := b.add("s")
	fatal(t, b.q.Start(t.Context()))
	within(t, running, "the job")
	stopped := make(chan error, 1)
	go func() { stopped <- b.q.Stop(t.Context()) }()
	finish <- true
	fatal(t, within(t, stopped, "the stop"))
	b.wantState(id, coverslip.Embedded, "")
}

// A worker in another process is killed in mid-job; the next process takes the job up at once.
func TestReleasedAfterADeath(t *testing.T) {
	url := storagetest.URL(t)
	db, err := storage.Open(t.Context(), url)
	fatal(t, err)
	t.Cleanup(db.Close)
	var b *bench
	b = &bench{t, db, newQueue(t, db, queue.Config{Work: func(ctx context.Context, j queue.Job, a queue.Attempt) error {
		if a.Number != 1 {
			t.Errorf("the death counts as an attempt: %+v", a)
		}
		return b.db.SetState(ctx, j.Slide, coverslip.Embedded, nil)
	}})}
	id := b.add("s")

	process, said := otherWorker(t, url)
	fatal(t, process.Kill())
	_, _ = process.Wait()
	if said != id {
		t.Fatalf("it worked on %s", said)
	}
	b.wantState(id, coverslip.Encoding, "")

	began := time.Now()
	n, err := b.q.Release(t.Context())
	fatal(t, err)
	if n != 1 {
		t.Errorf("released %d", n)
	}
	b.wantState(id, coverslip.Queued, "")
	fatal(t, b.q.Start(t.Context()))
	b.until(id, is(coverslip.Embedded))
	t.Log("done again after", time.Since(began))
}

func TestGivenUpAfterManyDeaths(t *testing.T) {
	b := newBench(t, queue.Config{})
	bad := b.add("bad")
	job := b.only().ID
	good := b.add("good")
	die := func() { // and leave the job to another, which has a number of its own
		t.Helper()
		_, err := b.db.Pool().Exec(t.Context(), `update river_job set state = 'running', attempt = attempt + 1, attempted_at = now() where id = $1`, job)
		fatal(t, err)
		b.wantState(bad, coverslip.Encoding, "")
		_, err = b.q.Release(t.Context())
		fatal(t, err)
		fatal(t, b.db.Pool().QueryRow(t.Context(), `select coalesce((metadata->>'continued_as')::bigint, id) from river_job where id = $1`, job).Scan(&job))
	}
	first := func() (id int64) {
		t.Helper()
		fatal(t, b.db.Pool().QueryRow(t.Context(), `select id from river_job where state = 'available' order by priority, scheduled_at, id limit 1`).Scan(&id))
		return id
	}
	for n := 1; n < queue.MaxDeaths; n++ {
		die()
		b.wantState(bad, coverslip.Queued, "")
		if (first() == job) != (n <= 3) {
			t.Errorf("after %d deaths, first in the queue is %d", n, first())
		}
	}
	die()
	b.wantState(bad, coverslip.Failed, "died, 5 times without")
	b.wantState(good, coverslip.Queued, "")
	list, err := b.q.List(t.Context(), queue.Filter{States: []string{"discarded"}})
	fatal(t, err)
	if len(list) != 1 || list[0].ID != job {
		t.Errorf("%+v", list)
	}
}

func TestCancel(t *testing.T) {
	running := make(chan bool, 1)
	b := newBench(t, queue.Config{Work: func(ctx context.Context, _ queue.Job, _ queue.Attempt) error {
		running <- true
		<-ctx.Done()
		return ctx.Err()
	}})
	t.Run("Waiting", func(t *testing.T) {
		id := b.add("waiting")
		s, err := b.q.Cancel(t.Context(), b.only().ID)
		fatal(t, err)
		if s.State != "cancelled" || s.Slide != id {
			t.Errorf("%+v", s)
		}
		b.wantState(id, coverslip.Failed, "coverslip jobs retry")
	})
	t.Run("Running", func(t *testing.T) {
		fatal(t, b.q.Start(t.Context()))
		id := b.add("running")
		within(t, running, "the job")
		list, err := b.q.List(t.Context(), queue.Filter{Limit: 1})
		fatal(t, err)
		_, err = b.q.Cancel(t.Context(), list[0].ID)
		fatal(t, err)
		b.until(id, is(coverslip.Failed))
		b.wantState(id, coverslip.Failed, "cancelled")

		_, err = b.q.Retry(t.Context(), list[0].ID)
		fatal(t, err)
		within(t, running, "the job that was tried again")
	})
	t.Run("Unknown", func(t *testing.T) {
		_, err := b.q.Cancel(t.Context(), 1<<40)
		if coverslip.KindOf(err) != coverslip.NotFound {
			t.Error(err)
		}
		_, err = b.q.Retry(t.Context(), 1<<40)
		if coverslip.KindOf(err) != coverslip.NotFound {
			t.Error(err)
		}
	})
}

func TestListPageByPage(t *testing.T) {
	b := newBench(t, queue.Config{})
	for i := range 5 {
		b.add(fmt.Sprint(i))
	}
	var got []int64
	f := queue.Filter{Limit: 2}
	for {
		page, err := b.q.List(t.Context(), f)
		fatal(t, err)
		if len(page) == 0 {
			break
		}
		for _, s := range page {
			got = append(got, s.ID)
		}
		f.Before = got[len(got)-1]
	}
	if len(got) != 5 || got[0] < got[4] {
		t.Errorf("got %v", got)
	}
}

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

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
