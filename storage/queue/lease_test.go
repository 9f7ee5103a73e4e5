package queue_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/queue"
	"coverslip/storage/storagetest"
)

// otherWorker is a worker in another process, which never finishes a job; it says the slide of one it gets.
func otherWorker(t *testing.T, url string) (*os.Process, coverslip.SlideID) {
	t.Helper()
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), "COVERSLIP_TEST_WORKER="+url)
	other.Stderr = os.Stderr
	out, err := other.StdoutPipe()
	fatal(t, err)
	fatal(t, other.Start())
	t.Cleanup(func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	})
	said := make([]byte, 64)
	_, err = out.Read(said)
	fatal(t, err)
	return other.Process, coverslip.SlideID(said)
}

func TestAStoppedWorkerHoldsItsJobNoLonger(t *testing.T) {
	url := storagetest.URL(t)
	db, err := storage.Open(t.Context(), url)
	fatal(t, err)
	t.Cleanup(db.Close)
	b := &bench{t, db, newQueue(t, db, queue.Config{})}
	id := b.add("s")
	process, said := otherWorker(t, url)
	if said != id {
		t.Fatalf("it works on %s", said)
	}
	job := b.only().ID
	hold := func() error {
		return pgx.BeginFunc(t.Context(), db.Pool(), func(tx pgx.Tx) error { return b.q.Hold(t.Context(), tx, job) })
	}
	fatal(t, hold())
	fatal(t, process.Signal(syscall.SIGSTOP))

	var attempt queue.Attempt
	second := newQueue(t, db, queue.Config{Patience: time.Second, Work: func(ctx context.Context, j queue.Job, a queue.Attempt) error {
		attempt = a
		return db.SetState(ctx, j.Slide, coverslip.Embedded, nil)
	}})
	fatal(t, second.Start(t.Context()))
	b.until(id, is(coverslip.Embedded))
	if err := hold(); coverslip.KindOf(err) != coverslip.Conflict {
		t.Errorf("the first still holds it: %v", err)
	}
	if attempt.Number != 1 || attempt.Job == job {
		t.Errorf("%+v after job %d", attempt, job)
	}
	if s, err := b.q.Wait(t.Context(), job); err != nil || s.ID != attempt.Job || s.State != "completed" {
		t.Errorf("who waits for the first job learns of %+v, %v", s, err)
	}
	if s := b.only(); s.ID != attempt.Job {
		t.Errorf("listed: %+v", s)
	}
	// What River says of the first job when its worker wakes up changes nothing.
	fatal(t, process.Signal(syscall.SIGCONT))
	fatal(t, process.Signal(syscall.SIGTERM))
	_, _ = process.Wait()
	b.wantState(id, coverslip.Embedded, "")
}

func TestALivingWorkerKeepsItsJob(t *testing.T) {
	working, finish := make(chan bool, 10), make(chan bool)
	var b *bench
	b = newBench(t, queue.Config{Patience: time.Second, Work: func(ctx context.Context, j queue.Job, _ queue.Attempt) error {
		working <- true
		select {
		case <-finish:
			return b.db.SetState(ctx, j.Slide, coverslip.Embedded, nil)
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	id := b.add("s")
	job := b.only().ID
	fatal(t, b.q.Start(t.Context()))
	within(t, working, "the job")
	beats := func() (n int) {
		fatal(t, b.db.Pool().QueryRow(t.Context(), `select beat from leases where job = $1`, job).Scan(&n))
		return n
	}
	for n := beats(); n < 12; n = beats() { // three times its patience
		runtime.Gosched()
	}
	close(finish)
	b.until(id, is(coverslip.Embedded))
	if s := b.only(); s.ID != job {
		t.Errorf("%+v, want job %d", s, job)
	}
}

func TestBatch(t *testing.T) {
	b := newBench(t, queue.Config{})
	jobs := make([]queue.Job, 5000)
	for i := range jobs {
		jobs[i] = queue.Job{Slide: coverslip.SlideID(fmt.Sprintf("%064x", i)), Encoder: "e", Aggregator: "mean", Priority: 3}
	}
	jobs[4999] = jobs[0] // the same twice
	enqueue := func(jobs ...queue.Job) (out []queue.Enqueued) {
		fatal(t, b.db.InTx(t.Context(), func(tx *storage.Tx) (err error) {
			out, err = b.q.Enqueue(t.Context(), tx.Pgx(), jobs...)
			return err
		}))
		return out
	}
	first := enqueue(jobs...)
	if first[0] != first[4999] || !first[0].Added || first[1].ID == first[2].ID {
		t.Errorf("%+v %+v", first[:3], first[4999])
	}
	again := enqueue(jobs...)
	for i, e := range again {
		if e.Added || e.ID != first[i].ID {
			t.Fatalf("%d: %+v, before %+v", i, e, first[i])
		}
	}
	jobs[7].Priority = 1
	enqueue(jobs[7], jobs[8])
	var priority, waiting int
	fatal(t, b.db.Pool().QueryRow(t.Context(), `select (select priority from river_job where id = $1), count(*) from river_job where state = 'available'`, first[7].ID).Scan(&priority, &waiting))
	if priority != 1 || waiting != 4999 {
		t.Errorf("priority %d, %d wait", priority, waiting)
	}
}

func TestPause(t *testing.T) {
	worked := make(chan coverslip.SlideID, 10)
	var b *bench
	b = newBench(t, queue.Config{Work: func(ctx context.Context, j queue.Job, _ queue.Attempt) error {
		worked <- j.Slide
		return b.db.SetState(ctx, j.Slide, coverslip.Embedded, nil)
	}})
	fatal(t, b.q.Pause(t.Context(), queue.Embeds)) // before anybody has worked on it
	id := b.add("s")
	fatal(t, b.q.Start(t.Context()))
	view := queue.Job{Slide: id, Encoder: "e", Views: &coverslip.Views{Count: 1, Tiles: 1}}
	fatal(t, b.db.InTx(t.Context(), func(tx *storage.Tx) error {
		_, err := b.q.Enqueue(t.Context(), tx.Pgx(), view)
		return err
	}))
	within(t, worked, "the other queue") // so workers work
	depths, err := b.q.Depths(t.Context())
	fatal(t, err)
	if len(depths) != len(queue.Names) || depths[0] != (queue.Depth{Queue: queue.Embeds, Paused: true, Waiting: 1}) || depths[1].Paused {
		t.Errorf("%+v", depths)
	}
	fatal(t, b.q.Resume(t.Context(), queue.Embeds))
	within(t, worked, "the queue that was paused")
	if err := b.q.Pause(t.Context(), "nonsense"); coverslip.KindOf(err) != coverslip.NotFound {
		t.Error(err)
	}
}

func TestPriorities(t *testing.T) {
	worked := make(chan coverslip.SlideID, 10)
	var b *bench
	b = newBench(t, queue.Config{Work: func(ctx context.Context, j queue.Job, _ queue.Attempt) error {
		worked <- j.Slide
		return b.db.SetState(ctx, j.Slide, coverslip.Embedded, nil)
	}})
	var ids []coverslip.SlideID
	for i, priority := range []int{4, 0, 1} {
		id := b.register(fmt.Sprint(i))
		ids = append(ids, id)
		fatal(t, b.db.InTx(t.Context(), func(tx *storage.Tx) error {
			_, err := b.q.Enqueue(t.Context(), tx.Pgx(), queue.Job{Slide: id, Encoder: "e", Aggregator: "mean", Priority: priority})
			return err
		}))
	}
	fatal(t, b.q.Start(t.Context()))
	for i := range ids {
		if got := within(t, worked, "a job"); got != ids[len(ids)-1-i] {
			t.Errorf("%d: not the one that comes first", i)
		}
	}
}

func TestRetryByReasonAndCancelOfACohort(t *testing.T) {
	var b *bench
	b = newBench(t, queue.Config{Work: func(ctx context.Context, j queue.Job, _ queue.Attempt) error {
		kind := coverslip.Invalid
		if s, err := b.db.Slide(ctx, j.Slide); err == nil && s.Name == "away" {
			kind = coverslip.NotFound
		}
		err := &coverslip.Error{Kind: kind, Op: "read", Slide: j.Slide}
		if e := b.db.SetState(ctx, j.Slide, coverslip.Failed, err); e != nil {
			return e
		}
		return err
	}})
	broken, away, other := b.add("broken"), b.add("away"), b.add("other")
	fatal(t, b.db.AddToCohort(t.Context(), "c", coverslip.Member{Slide: broken}, coverslip.Member{Slide: away}))
	fatal(t, b.q.Start(t.Context()))
	for _, id := range []coverslip.SlideID{broken, away, other} {
		b.until(id, is(coverslip.Failed))
	}
	fatal(t, b.q.Stop(t.Context()))

	p, err := b.db.Progress(t.Context(), "c")
	fatal(t, err)
	if p.Slides != 2 || p.States[coverslip.Failed] != 2 || len(p.Failed) != 2 || p.Waiting() != 0 || p.Failed[0].Slides != 1 {
		t.Errorf("%+v", p)
	}
	n, err := b.q.RetryFailed(t.Context(), queue.Which{Cohort: "c", Kind: coverslip.NotFound})
	fatal(t, err)
	b.wantState(away, coverslip.Queued, "")
	b.wantState(broken, coverslip.Failed, "read")
	b.wantState(other, coverslip.Failed, "read")
	if again, err := b.q.RetryFailed(t.Context(), queue.Which{Cohort: "c", Kind: coverslip.NotFound}); n != 1 || again != 0 || err != nil {
		t.Errorf("%d, then %d, %v", n, again, err)
	}
	if n, err := b.q.CancelAll(t.Context(), "c"); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if s, err := b.db.Slide(t.Context(), away); err != nil || s.State != coverslip.Failed || s.Kind != coverslip.Canceled {
		t.Errorf("%+v, %v", s, err)
	}
	if n, err := b.q.RetryFailed(t.Context(), queue.Which{}); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	second := newQueue(t, b.db, queue.Config{Work: func(ctx context.Context, j queue.Job, _ queue.Attempt) error {
		return b.db.SetState(ctx, j.Slide, coverslip.Embedded, nil)
	}})
	fatal(t, second.Start(t.Context()))
	for _, id := range []coverslip.SlideID{broken, away, other} {
		b.until(id, is(coverslip.Embedded))
	}
	if _, err := b.db.Progress(t.Context(), "none"); coverslip.KindOf(err) != coverslip.NotFound {
		t.Error(err)
	}
}
