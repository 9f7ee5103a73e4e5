package main

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/storage"
	"coverslip/storage/blob"
	"coverslip/storage/postgres"
	"coverslip/storage/queue"
	"coverslip/storage/storagetest"
)

// fleet is a database and a folder of blobs, for workers in processes of their own.
type fleet struct {
	t     *testing.T
	db    *storage.DB
	blobs string
}

// lease is how long workers of the tests wait for silent ones.
const lease = 4 * time.Second

func newFleet(t *testing.T) *fleet {
	t.Helper()
	needsRuntime(t)
	return fleetOn(t, storagetest.URL(t))
}

// fleetOn is a fleet on a migrated database.
func fleetOn(t *testing.T, url string) *fleet {
	t.Helper()
	f := &fleet{t: t, blobs: t.TempDir()}
	t.Setenv("DATABASE_URL", url)
	t.Setenv("BLOB_URL", f.blobs)
	var err error
	if f.db, err = storage.Open(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.db.Close)
	return f
}

// worker starts one more process that works.
func (f *fleet) worker(args ...string) *program {
	f.t.Helper()
	p := launch(f.t, append([]string{"work", "--data", f.t.TempDir(), "--lease", lease.String()}, args...)...)
	if err := p.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	return p
}

// ingest registers and queues slides.
func (f *fleet) ingest(paths ...string) (ids []coverslip.SlideID) {
	f.t.Helper()
	code, out, stderr := coverslipRun(f.t, append([]string{"ingest", "--json", "--data", f.t.TempDir()}, paths...)...)
	if code != 0 {
		f.t.Fatal(stderr)
	}
	for _, r := range results(f.t, out) {
		ids = append(ids, r.Slide)
	}
	return ids
}

// variants are slides with the bundled one's pixels and bytes of their own.
func variants(t *testing.T, slide string, n int) (paths []string) {
	t.Helper()
	whole, err := os.ReadFile(slide)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("variant%d.svs", i))
		if err := os.WriteFile(path, strconv.AppendInt(slices.Clone(whole), int64(i), 10), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

// until looks until ok, for two minutes.
func (f *fleet) until(what string, ok func(context.Context) bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*time.Minute)
	defer cancel()
	for !ok(ctx) {
		select {
		case <-ctx.Done():
			f.t.Fatalf("waited in vain: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (f *fleet) state(id coverslip.SlideID, want coverslip.State) {
	f.t.Helper()
	f.until(fmt.Sprintf("%s is %s", id.Short(), want), func(ctx context.Context) bool {
		s, err := f.db.Slide(ctx, id)
		if err == nil && s.State != want && s.State == coverslip.Failed {
			f.t.Fatalf("it failed: %s", s.Reason)
		}
		return err == nil && s.State == want
	})
}

func (f *fleet) vector(id coverslip.SlideID) []float32 {
	f.t.Helper()
	e, err := f.db.Embedding(f.t.Context(), id, "efficientnet-lite0", "mean")
	if err != nil {
		f.t.Fatal(err)
	}
	return e.Vector
}

func (f *fleet) number(sql string, args ...any) (n int) {
	f.t.Helper()
	if err := f.db.Pool().QueryRow(f.t.Context(), sql, args...).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

func send(t *testing.T, p *program, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// large is a slide of nearly a thousand tiles: one checkpoint, and time enough after it for a heartbeat to
// tell of it before the slide is done.
func large(t *testing.T) string {
	t.Helper()
	path, err := replicated(t.Context(), bundled, 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(path) })
	return path
}

func TestFault19ADeadWorkersSlideGoesOnElsewhere(t *testing.T) {
	f := newFleet(t)
	both := f.ingest(variants(t, large(t), 2)...)
	first := f.worker()
	f.state(both[0], coverslip.Embedded)
	f.until("a checkpoint of the second slide is told", func(ctx context.Context) bool {
		// The first slide is embedded before its job ends: its lease may still be there.
		return f.number(`select count(*) from leases l join river_job j on j.id = l.job where l.kept >= 512 and j.args->>'slide' = $1`, string(both[1])) == 1
	})
	send(t, first, syscall.SIGKILL)
	killed := time.Now()
	second := f.worker()
	f.until("another worker has it", func(ctx context.Context) bool {
		return f.number(`select count(*) from river_job where state = 'running' and metadata ? 'deaths'`) == 1
	})
	t.Logf("taken over after %v, with a lease of %v", time.Since(killed), lease)
	if time.Since(killed) > lease*3/2+10*time.Second {
		t.Errorf("taken over after %v, with a lease of %v", time.Since(killed), lease)
	}
	f.state(both[1], coverslip.Embedded)
	if !slices.Equal(f.vector(both[0]), f.vector(both[1])) {
		t.Error("the embedding differs from that of an undisturbed run")
	}
	if n := f.number(`select count(*) from river_job where state = 'discarded' and (metadata->>'kept')::int >= 512 and metadata ? 'continued_as'`); n != 1 {
		t.Errorf("what was kept is not written down\n%s", second.log)
	}
	if code, out, stderr := coverslipRun(t, "jobs", "--json"); code != 0 || strings.Count(out, "\n") != 2 {
		t.Errorf("two slides are two jobs: exit %d\n%s%s", code, out, stderr)
	}
}

// Holding a lock on the table stops every worker at the moment between the blob and the row.
func (f *fleet) betweenBlobAndRow() (release func(), blobs func() int) {
	f.t.Helper()
	tx, err := f.db.Pool().Begin(f.t.Context())
	if err == nil {
		_, err = tx.Exec(f.t.Context(), `lock table bags in exclusive mode`)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	blobs = func() (n int) {
		_ = filepath.WalkDir(filepath.Join(f.blobs, "bags"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.HasSuffix(path, ".safetensors") {
				n++
			}
			return nil
		})
		return n
	}
	return func() { _ = tx.Rollback(context.Background()) }, blobs
}

func TestFault20KilledBetweenBlobAndRow(t *testing.T) {
	f := newFleet(t)
	id := f.ingest(bundled)[0]
	release, blobs := f.betweenBlobAndRow()
	defer release()
	first := f.worker()
	f.until("the blob is there and the row waits for the lock", func(ctx context.Context) bool {
		return blobs() == 1 && f.number(`select count(*) from pg_locks where relation = 'bags'::regclass and not granted`) == 1
	})
	send(t, first, syscall.SIGKILL)
	_ = first.cmd.Wait()
	f.until("its transaction is gone", func(ctx context.Context) bool {
		_, err := f.db.Pool().Exec(ctx, `select pg_terminate_backend(pid) from pg_locks where relation = 'bags'::regclass and not granted`)
		return err == nil && f.number(`select count(*) from pg_locks where relation = 'bags'::regclass and not granted`) == 0
	})
	release()
	if n := f.number(`select count(*) from bags`); n != 0 || blobs() != 1 {
		t.Fatalf("%d rows, %d blobs: this is not the moment that was meant", n, blobs())
	}
	store, err := blob.Open(t.Context(), f.blobs)
	if err != nil {
		t.Fatal(err)
	}
	in := &ingest.Ingest{DB: f.db, Blobs: store}
	if n, err := in.SweepBlobs(t.Context(), time.Now().Add(-time.Hour)); err != nil || n != 0 {
		t.Errorf("a young blob was swept: %d, %v", n, err)
	}
	if n, err := in.SweepBlobs(t.Context(), time.Now().Add(time.Hour)); err != nil || n != 1 || blobs() != 0 {
		t.Errorf("swept %d, %d left, %v", n, blobs(), err)
	}
	f.worker()
	f.state(id, coverslip.Embedded)
	if n := f.number(`select count(*) from bags`); n != 1 || blobs() != 1 {
		t.Errorf("%d rows, %d blobs", n, blobs())
	}
	if n, err := in.SweepBlobs(t.Context(), time.Now().Add(time.Hour)); err != nil || n != 0 || blobs() != 1 {
		t.Errorf("a bag that has its row was swept: %d, %v", n, err)
	}
}

func TestFault21PostgresAwayUnderWorkers(t *testing.T) {
	needsRuntime(t)
	pg := dataFolder(t)
	server, err := postgres.Start(t.Context(), pg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	f := fleetOn(t, server.URL())
	pause := 2 * lease
	if os.Getenv("COVERSLIP_FULL") == "1" {
		pause = 30 * time.Second
	}
	ids := f.ingest(variants(t, bundled, 16)...)
	workers := []*program{f.worker(), f.worker()}
	done := func() int { return f.number(`select count(*) from slides where state = 'embedded'`) }
	reach := func(n int) {
		t.Helper()
		f.until(fmt.Sprintf("%d slides are done", n), func(context.Context) bool { return done() >= n })
	}

	reach(2)
	for range 3 { // whatever is under way is cut
		if _, err := f.db.Pool().Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'coverslip' and pid <> pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
	}
	reach(5)
	resume := freeze(t, pg)
	time.Sleep(pause) // this is what is tested
	resume()
	reach(8)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if server, err = postgres.Start(t.Context(), pg); err != nil {
		t.Fatal(err)
	}
	f.db.Pool().Reset()
	for _, id := range ids {
		f.state(id, coverslip.Embedded)
		if !slices.Equal(f.vector(id), f.vector(ids[0])) {
			t.Errorf("slide %s has another embedding", id.Short())
		}
	}
	f.until("every job has ended", func(context.Context) bool {
		return f.number(`select count(*) from river_job where state not in ('completed', 'discarded')`) == 0
	})
	for what, sql := range map[string]string{
		"bags":       `select count(*) from bags`,
		"embeddings": `select count(*) from embeddings`,
		"jobs":       `select count(*) from river_job where state = 'completed'`,
	} {
		if n := f.number(sql); n != len(ids) {
			t.Errorf("%d %s of %d slides\n%s%s", n, what, len(ids), workers[0].log, workers[1].log)
		}
	}
	if n := f.number(`select count(*) from river_job where state = 'discarded' and not metadata ? 'continued_as'`); n > 0 {
		t.Errorf("%d jobs were given up", n)
	}
	if n := f.number(`select count(*) from leases`); n > 0 {
		t.Errorf("%d leases of jobs that have ended", n)
	}
}

// freeze stops every process of the Postgres in a folder.
func freeze(t *testing.T, pg string) (resume func()) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(pg, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	master, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	var stopped []int
	stop := func(pid int) {
		if syscall.Kill(pid, syscall.SIGSTOP) == nil {
			stopped = append(stopped, pid)
		}
	}
	stop(master) // it makes no more of them
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		after := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(after) > 1 && after[1] == first {
			stop(pid)
		}
	}
	if len(stopped) < 3 {
		t.Fatalf("only %d processes of Postgres were found", len(stopped))
	}
	resume = func() {
		for _, pid := range stopped {
			_ = syscall.Kill(pid, syscall.SIGCONT) // one may have gone
		}
		stopped = nil
	}
	t.Cleanup(resume)
	return resume
}

// A worker is stopped at the worst moment, in the transaction that writes its bag, past its lease; another
// does the slide; then the first wakes up.
func TestFault22StoppedPastItsLease(t *testing.T) {
	f := newFleet(t)
	id := f.ingest(bundled)[0]
	release, blobs := f.betweenBlobAndRow()
	defer release()
	first := f.worker("--verbose")
	f.until("the first is about to write the row", func(context.Context) bool {
		return blobs() == 1 && f.number(`select count(*) from pg_locks where relation = 'bags'::regclass and not granted`) == 1
	})
	send(t, first, syscall.SIGSTOP)
	release()
	second := f.worker("--verbose")
	f.state(id, coverslip.Embedded)
	version := f.number(`select version from embeddings`)
	other := f.ingest(variants(t, bundled, 1)...)[0]
	f.state(other, coverslip.Embedded)
	send(t, second, syscall.SIGTERM)
	_ = second.cmd.Wait()

	send(t, first, syscall.SIGCONT)
	last := f.ingest(variants(t, bundled, 3)[2])[0]
	f.state(last, coverslip.Embedded) // by the first, so it has woken up and is over the refusal
	send(t, first, syscall.SIGTERM)
	if err := first.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(first.log.String(), "taken away") && !strings.Contains(first.log.String(), "taken over") {
		t.Errorf("the first does not say that it lost its job:\n%s", first.log)
	}
	if n := f.number(`select count(*) from embeddings where slide = $1 and version = $2`, id, version); n != 1 {
		t.Error("the late write came through")
	}
	for state, want := range map[string]int{"completed": 3, "discarded": 1} {
		if n := f.number(`select count(*) from river_job where state::text = $1`, state); n != want {
			t.Errorf("%d jobs are %s, want %d", n, state, want)
		}
	}
	if !slices.Equal(f.vector(id), f.vector(last)) {
		t.Error("the embedding differs")
	}
}

// Whatever works on one of three slides dies. The kill comes from outside, as the kernel's would.
func TestFault23APoisonSlideIsSetAside(t *testing.T) {
	f := newFleet(t)
	ids := f.ingest(variants(t, bundled, 3)...)
	poison := ids[0]
	deaths, last := 0, 0
	for p := f.worker("--lease", "1s"); ; p = f.worker("--lease", "1s") {
		over := false
		f.until("somebody works on it, or it is set aside", func(ctx context.Context) bool {
			s, err := f.db.Slide(ctx, poison)
			if over = err == nil && s.State == coverslip.Failed; over {
				return true
			}
			job := f.number(`select coalesce(max(id), 0) from river_job where state = 'running' and args->>'slide' = $1`, poison)
			fresh := job > last
			last = max(last, job)
			return fresh
		})
		send(t, p, syscall.SIGKILL)
		_ = p.cmd.Wait()
		if over {
			break
		}
		deaths++
	}
	if deaths != queue.MaxDeaths {
		t.Errorf("set aside after %d deaths, want %d", deaths, queue.MaxDeaths)
	}
	f.worker()
	for _, id := range ids[1:] {
		f.state(id, coverslip.Embedded)
	}
	s, err := f.db.Slide(t.Context(), poison)
	if err != nil || s.State != coverslip.Failed || s.Kind != coverslip.Internal || !strings.Contains(s.Reason, "set aside") || !strings.Contains(s.Reason, "coverslip jobs retry") {
		t.Errorf("%+v, %v", s, err)
	}
	if code, out, stderr := coverslipRun(t, "jobs", "retry", "--kind", "internal"); code != 0 || !strings.Contains(out, "1 job put back") {
		t.Errorf("exit %d, %s%s", code, out, stderr)
	}
	f.state(poison, coverslip.Embedded) // nobody kills it any more
}

func TestFault24SIGTERM(t *testing.T) {
	f := newFleet(t)
	id := f.ingest(large(t))[0]
	const grace = time.Second / 2
	p := f.worker("--grace", grace.String())
	rng := rand.New(rand.NewPCG(24, 1))
	f.until("it is being encoded", func(ctx context.Context) bool {
		return f.number(`select count(*) from river_job where state = 'running'`) == 1
	})
	time.Sleep(time.Duration(rng.Int64N(int64(time.Second)))) // some moment of it
	send(t, p, syscall.SIGTERM)
	told := time.Now()
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, p.log)
	}
	t.Logf("ended %v after it was told, with %v of grace", time.Since(told), grace)
	if took := time.Since(told); took > grace+10*time.Second {
		t.Errorf("it took %v", took)
	}
	if n := f.number(`select count(*) from river_job where state = 'available' and attempt = 0`); n != 1 {
		t.Error("the job is not back in the queue as it was")
	}
	if s, err := f.db.Slide(t.Context(), id); err != nil || s.State != coverslip.Queued {
		t.Errorf("%+v, %v", s, err)
	}
	if n := f.number(`select count(*) from leases`); n != 0 {
		t.Errorf("%d leases", n)
	}
	f.worker()
	f.state(id, coverslip.Embedded)
}
