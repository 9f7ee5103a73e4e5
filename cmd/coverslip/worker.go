package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"coverslip"
	"coverslip/encoder/onnx"
	"coverslip/internal/ingest"
	"coverslip/slidessl"
	"coverslip/storage/queue"
)

// workFlags say how much a process takes on.
type workFlags struct {
	Slides int           `default:"0" placeholder:"N" group:"Work" help:"Slides encoded at once; 0 is as many as fit memory and cores (${default})."`
	Views  int           `default:"1" placeholder:"N" group:"Work" help:"Slides of which views are made at once; 0 leaves them to others (${default})."`
	Stages int           `default:"1" placeholder:"N" group:"Work" help:"Stages of studies made at once; 0 leaves them to others (${default})."`
	Tasks  int           `default:"1" placeholder:"N" group:"Work" help:"Tasks that were asked for over the API (/v1/tasks) done at once; 0 leaves them to others (${default})."`
	Lease  time.Duration `default:"20s" group:"Work" help:"Take the slides of workers that were silent for so long; the same for the whole fleet (${default})."`
	Grace  time.Duration `default:"20s" group:"Work" help:"When told to stop, finish the slides at hand for so long; then they go back to the queue (${default})."`
}

// atHand is how a verb works that waits for its own slides.
var atHand = workFlags{Views: 1, Grace: 20 * time.Second}

// A slide keeps about this many cores busy. Beyond them reading, planning and publishing one slide leaves
// cores idle that another can use.
const coresPerSlide = 8

// What a slide takes while it is encoded, and a process beside them (docs/SCALE.md has the measurements).
const (
	bytesPerSlide = 600 << 20
	bytesToBegin  = 300 << 20
)

// slidesThatFit is how many slides this machine encodes at once, at least one.
func slidesThatFit(cores int, memory int64, on onnx.Provider) int {
	if on != onnx.CPU {
		return 2 // one on the device, one being read
	}
	return max(1, min(cores/coresPerSlide, int((memory-bytesToBegin)/bytesPerSlide)))
}

// freeMemory is what this process may still use, in bytes: what the machine has free, or the limit of its
// control group.
func freeMemory() int64 {
	var free int64 = 1 << 40
	if raw, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
				if kib, err := strconv.ParseInt(f[1], 10, 64); err == nil {
					free = kib << 10
				}
			}
		}
	}
	if raw, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil {
			free = min(free, limit)
		}
	}
	return free
}

// work starts the workers of the queue on in. The function it returns stops them: jobs under way that do not
// end in time are handed back and start again elsewhere, or here the next time.
func (p *platform) work(e *env, in *ingest.Ingest, flags workFlags) (stop func(), err error) {
	if p.joined {
		return nil, &coverslip.Error{Kind: coverslip.Conflict, Op: "start workers", Path: p.dir, Err: errors.New("another process works on this folder"), Hint: "stop it first, or use another --data"}
	}
	session, err := p.openEncoder(e, p.encoder, p.on) // before the first job: what is missing here shows at once
	if err != nil {
		return nil, err
	}
	if flags.Lease != 0 && flags.Lease < time.Second {
		return nil, &usageError{"--lease is a second or more"}
	}
	slides := flags.Slides
	if slides <= 0 {
		slides = slidesThatFit(runtime.GOMAXPROCS(0), freeMemory(), p.on)
	}
	in.Encoder = session
	if in.Workers == 0 {
		in.Workers = max(1, runtime.GOMAXPROCS(0)/slides)
	}
	w := &worker{e: e, p: p, in: in, session: session, aggregators: map[string]slidessl.Aggregator{}}
	in.FindAggregator = w.aggregator
	views := flags.Views
	if views == 0 {
		views = -1
	}
	q, err := queue.New(p.DB.Pool(), queue.Config{Embeds: slides, Views: views, Stages: flags.Stages, Tasks: flags.Tasks, Work: w.work, Patience: flags.Lease, Logger: e.log})
	if err != nil {
		return nil, err
	}
	if p.owner() {
		n, err := q.Release(e)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			e.log.Info("going on where a process was stopped", "jobs", n)
		}
	}
	in.Queue, w.queue = q, q
	if err := q.Start(e); err != nil {
		return nil, err
	}
	stopSweeping := p.sweepNowAndThen(e, in)
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(e.Context), flags.Grace)
		defer cancel()
		stopSweeping()
		if err := q.Stop(ctx); err != nil {
			e.log.Warn("workers did not stop in time", "err", err)
		}
	}, nil
}

// orphanAge is the age from which a blob without a row is taken for left behind.
const orphanAge = 24 * time.Hour

// sweepNowAndThen removes, once a day, what workers that were killed left in the blob store.
func (p *platform) sweepNowAndThen(e *env, in *ingest.Ingest) (stop func()) {
	ctx, cancel := context.WithCancel(e.Context)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			n, err := in.SweepBlobs(ctx, time.Now().Add(-orphanAge))
			if n > 0 || err != nil && ctx.Err() == nil {
				e.log.Info("blobs that nothing refers to were removed", "blobs", n, "err", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(orphanAge):
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// worker does jobs of any encoder there is.
type worker struct {
	e     *env
	p     *platform
	queue *queue.Queue

	mu      sync.RWMutex // read while a job runs, written while the encoder changes
	in      *ingest.Ingest
	session *onnx.Session // of in

	loading     sync.Mutex // held while an aggregator is looked up or loaded
	aggregators map[string]slidessl.Aggregator
}

// aggregator loads those that jobs ask for, each once: they are small beside an encoder.
func (w *worker) aggregator(ctx context.Context, name string) (slidessl.Aggregator, error) {
	w.loading.Lock()
	defer w.loading.Unlock()
	if a, there := w.aggregators[name]; there {
		return a, nil
	}
	a, err := w.p.aggregator(ctx, name)
	if err == nil {
		err = w.p.DB.PutModel(ctx, a.Model())
	}
	if err != nil {
		return nil, err
	}
	w.aggregators[name] = a
	return a, nil
}

// work does a job with the encoder it asks for. Only one stays in memory, since the large ones need
// gigabytes; jobs come in the order they were asked for, so it seldom changes.
func (w *worker) work(ctx context.Context, job queue.Job, attempt queue.Attempt) error {
	if job.Stage != nil {
		return w.stage(ctx, *job.Stage)
	}
	if job.Task != nil {
		return w.task(ctx, *job.Task, attempt.Job)
	}
	for {
		w.mu.RLock()
		if job.Encoder == "" || job.Encoder == w.in.Model.Name {
			defer w.mu.RUnlock()
			return w.in.Work(ctx, job, attempt)
		}
		w.mu.RUnlock()
		if err := w.use(ctx, job.Encoder); err != nil {
			return err
		}
	}
}

// use changes the encoder, once the jobs with the one before are done.
func (w *worker) use(ctx context.Context, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if name == w.in.Model.Name {
		return nil
	}
	spec, err := w.p.spec(ctx, name)
	if err != nil {
		return err
	}
	session, err := w.p.openEncoder(ctx, spec, w.p.on)
	if err != nil {
		return err
	}
	other := *w.in
	other.Encoder, other.Model = session, session.Model()
	other.Plan.MPP, other.Plan.Size = other.Model.TileMPP, other.Model.TileSize
	if err := w.p.DB.PutModel(ctx, other.Model); err != nil {
		return errors.Join(err, session.Close())
	}
	if err := w.session.Close(); err != nil {
		return errors.Join(err, session.Close())
	}
	w.in, w.session = &other, session
	return nil
}
