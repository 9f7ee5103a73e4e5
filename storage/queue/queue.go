// Package queue is the list of slides to encode: River on the same Postgres as the slides, so that a
// slide and its job commit together. One slide a job.
//
// A job may run twice: its worker can die after its work is written and before the job is marked
// done. So what Work does must come out the same when it is done again, and is written under the job's
// lease (lease.go), so that a worker that was stopped writes nothing over what another one did. The
// slide's state follows its job by itself, in the database (migrations/00010): `encoding` while a worker
// has it, `queued` before and between, `failed` when the job is given up. Work writes only how it ended.
package queue

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
	"go.opentelemetry.io/otel/codes"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// Job asks for a slide's bag under an encoder, and for its embedding under an aggregator; or, with
// Views, for a bag of views and no embedding.
type Job struct {
	Slide      coverslip.SlideID `json:"slide"`
	Encoder    string            `json:"encoder"`
	Aggregator string            `json:"aggregator,omitempty"`
	Budget     coverslip.Budget  `json:"budget,omitzero"`
	Views      *coverslip.Views  `json:"views,omitempty"`
	// SkipBadTiles is coverslip.PlanParams', of this slide.
	SkipBadTiles bool `json:"skip_bad_tiles,omitempty"`
	// Stage asks for a stage of a study instead, and for no slide.
	Stage *Stage `json:"stage,omitempty"`
	// Task asks for a verb of the command line instead (storage.Task).
	Task *Task `json:"task,omitempty"`

	// Priority is 1 for what comes first to 4 for what comes last; 0 is Usual. It is no part of what makes
	// a job the same as another.
	Priority int `json:"-"`
}

// Stage is one of a study that is kept (storage.Study).
type Stage struct {
	Study string `json:"study"`
	Quick bool   `json:"quick,omitempty"`
	Key   string `json:"key"`
	Tiles string `json:"tiles,omitempty"` // folder of the cohorts that the study makes of tiles, the same for all workers
}

// Task is one that is kept.
type Task struct {
	ID   int64  `json:"id"`
	Verb string `json:"verb"`
}

// Usual is the priority of what nobody gave one.
const Usual = 2

// The queues, which are paused and worked on each by itself.
const (
	Embeds = "embed" // jobs that end with an embedding
	Views  = "views" // jobs that end with a bag of views
	Stages = "study" // stages of studies
	Tasks  = "task"  // verbs of the command line that were asked for over the API
)

// Names are those of all queues.
var Names = []string{Embeds, Views, Stages, Tasks}

// Kind is River's name for the job; the triggers in migrations/00010 go by it too.
func (Job) Kind() string { return "embed_slide" }

// InsertOpts makes a job unique while it waits or runs. Once it has ended, well or not, the same may
// be asked again.
func (Job) InsertOpts() river.InsertOpts {
	return river.InsertOpts{
		MaxAttempts: MaxAttempts,
		Queue:       Embeds,
		UniqueOpts: river.UniqueOpts{ByArgs: true, ByState: []rivertype.JobState{
			rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRunning,
			rivertype.JobStateRetryable, rivertype.JobStateScheduled,
		}},
	}
}

// viewsJob is a Job with Views. Its kind is its own, because a slide's state does not follow it: the
// slide has its embedding, or not, whatever becomes of its views.
type viewsJob Job

func (viewsJob) Kind() string { return "encode_views" }

func (viewsJob) InsertOpts() river.InsertOpts {
	opts := Job{}.InsertOpts()
	opts.Queue = Views
	return opts
}

// stageJob is a Job with a Stage.
type stageJob Job

func (stageJob) Kind() string { return "study_stage" }

func (stageJob) InsertOpts() river.InsertOpts {
	opts := Job{}.InsertOpts()
	opts.Queue = Stages
	return opts
}

// taskJob is a Job with a Task.
type taskJob Job

func (taskJob) Kind() string { return "run_task" }

func (taskJob) InsertOpts() river.InsertOpts {
	opts := Job{}.InsertOpts()
	opts.Queue = Tasks
	return opts
}

// MaxAttempts is how often a job is tried before it is given up, after 3 s, 15 s, 75 s and 6 min:
// long enough for a store or a database to come back.
const MaxAttempts = 5

// MaxDeaths is how often whatever works on a job may die before it is given up, counted from when it last
// got further (Attempt.Kept). Deaths are not attempts: most often the slide is not to blame.
const MaxDeaths = 5

// Attempt is which run of a job this is.
type Attempt struct {
	Job    int64 // its number, as `coverslip jobs` shows it
	Number int   // 1 is the first
	Last   bool  // after a failure there is no other

	lease *held
}

// Kept tells the queue that so much of the work is kept, and need not be done again by whoever takes the
// job over.
func (a Attempt) Kept(n int) {
	if a.lease != nil {
		a.lease.kept.Store(int64(n))
	}
}

// Config is how a process works on jobs.
type Config struct {
	Embeds  int           // jobs of that queue at once; 0 is 1, less is none
	Views   int           // jobs of that queue at once; 0 is 1, less is none
	Stages  int           // jobs of that queue at once; 0 is none, unlike the others
	Tasks   int           // jobs of that queue at once; 0 is none
	Timeout time.Duration // the longest a job may run; 0 is a day
	// Patience is how long a worker may be silent before its jobs are taken away; 0 is DefaultPatience. It
	// should be the same in all processes.
	Patience time.Duration
	// Work does one job, in several goroutines at once. It returns soon after ctx ends; when that is
	// because the process stops, the job goes back and this run is not counted. An error whose kind
	// may pass (coverslip.Kind.Retryable) is tried again, any other ends the job. Nil makes a queue
	// that takes jobs but works on none.
	Work   func(ctx context.Context, job Job, attempt Attempt) error
	Logger *slog.Logger // nil says nothing
}

// Queue enqueues jobs, works on them, and lists them. Safe for concurrent use.
type Queue struct {
	pool   *pgxpool.Pool
	client *river.Client[pgx.Tx]
	log    *slog.Logger
	works  bool

	patience time.Duration
	holder   holder
	resign   func() // ends the holder's care for leases, and waits for that
}

// New makes a queue over the pool. Nothing runs before Start.
func New(pool *pgxpool.Pool, c Config) (*Queue, error) {
	q := &Queue{pool: pool, log: cmp.Or(c.Logger, slog.New(slog.DiscardHandler)), works: c.Work != nil, patience: cmp.Or(c.Patience, DefaultPatience)}
	q.holder = holder{q: q, has: map[int64]*held{}}
	config := &river.Config{
		Logger:            slog.New(riverLog{q.log.Handler(), &q.holder}),
		JobTimeout:        cmp.Or(c.Timeout, 24*time.Hour),
		JobStuckThreshold: time.Minute,
		// River would hand the same job to another worker while the first may live: leases see to that.
		RescueStuckJobsAfter: 10 * 365 * 24 * time.Hour,
		RetryPolicy:          backoff{},
		// River notifies at most once a cooldown and looks by itself once a poll: together they bound
		// how long a new job waits for a free worker.
		FetchCooldown:               20 * time.Millisecond,
		FetchPollInterval:           time.Second,
		CancelledJobRetentionPeriod: 7 * 24 * time.Hour, // a failure, so as long as River keeps the discarded
	}
	if c.Work != nil {
		config.Workers = river.NewWorkers()
		config.Queues = map[string]river.QueueConfig{}
		for name, most := range map[string]int{Embeds: c.Embeds, Views: c.Views, Stages: cmp.Or(c.Stages, -1), Tasks: cmp.Or(c.Tasks, -1)} {
			if most >= 0 {
				config.Queues[name] = river.QueueConfig{MaxWorkers: max(most, 1)}
			}
		}
		err := errors.Join(
			river.AddWorkerSafely(config.Workers, river.WorkFunc(func(ctx context.Context, job *river.Job[Job]) error {
				return q.do(ctx, c.Work, job.JobRow, job.Args)
			})),
			river.AddWorkerSafely(config.Workers, river.WorkFunc(func(ctx context.Context, job *river.Job[viewsJob]) error {
				return q.do(ctx, c.Work, job.JobRow, Job(job.Args))
			})),
			river.AddWorkerSafely(config.Workers, river.WorkFunc(func(ctx context.Context, job *river.Job[stageJob]) error {
				return q.do(ctx, c.Work, job.JobRow, Job(job.Args))
			})),
			river.AddWorkerSafely(config.Workers, river.WorkFunc(func(ctx context.Context, job *river.Job[taskJob]) error {
				return q.do(ctx, c.Work, job.JobRow, Job(job.Args))
			})))
		if err != nil {
			return nil, pgerr.Wrap("set up the queue", err)
		}
	}
	var err error
	if q.client, err = river.NewClient(riverpgxv5.New(pool), config); err != nil {
		return nil, pgerr.Wrap("set up the queue", err)
	}
	return q, nil
}

// Start begins to work on jobs; ctx bounds only the start itself. End it with Stop.
func (q *Queue) Start(ctx context.Context) error {
	if err := ctx.Err(); err != nil || !q.works {
		return pgerr.Wrap("start the queue", err)
	}
	caring, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.holder.run(caring)
	}()
	q.resign = func() {
		stop()
		<-done
	}
	if err := q.client.Start(context.WithoutCancel(ctx)); err != nil {
		q.resign()
		return pgerr.Wrap("start the queue", err)
	}
	return nil
}

// Stop takes no more jobs and waits for those that run. When ctx ends first, it cancels them, and they
// go back to the queue as if this run had not been.
func (q *Queue) Stop(ctx context.Context) error {
	if q.resign == nil { // it was never started
		return nil
	}
	defer q.resign()
	if q.client.Stop(ctx) == nil {
		return nil
	}
	const patience = 15 * time.Second
	hard, done := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer done()
	if err := q.client.StopAndCancel(hard); err != nil {
		return &coverslip.Error{Kind: coverslip.Internal, Op: "stop the queue",
			Err: fmt.Errorf("jobs still run %v after they were cancelled", patience)}
	}
	return nil
}

// Enqueued says what became of a job that was added.
type Enqueued struct {
	ID    int64 // the job's number
	Added bool  // false: the same job waited or ran already
}

// Enqueue adds jobs in the caller's transaction, and says of each in turn what became of it. Where the same
// job waits already, it moves up to the priority that is asked for.
func (q *Queue) Enqueue(ctx context.Context, tx pgx.Tx, jobs ...Job) ([]Enqueued, error) {
	const op = "enqueue slides"
	metadata := traced(ctx)
	first := map[string]int{} // of equal jobs, which is inserted
	place := make([]int, len(jobs))
	var params []river.InsertManyParams
	for i, job := range jobs {
		key, err := json.Marshal(job)
		if err != nil {
			return nil, pgerr.OfSlide(job.Slide, op, err)
		}
		if _, there := first[string(key)]; !there {
			first[string(key)] = len(params)
			var args river.JobArgs = job
			switch {
			case job.Stage != nil:
				args = stageJob(job)
			case job.Task != nil:
				args = taskJob(job)
			case job.Views != nil:
				args = viewsJob(job)
			}
			params = append(params, river.InsertManyParams{Args: args, InsertOpts: &river.InsertOpts{Priority: cmp.Or(job.Priority, Usual), Metadata: metadata}})
		}
		place[i] = first[string(key)]
	}
	out := make([]Enqueued, len(jobs))
	inserted := make([]Enqueued, 0, len(params))
	var waiting []int64 // that were there already
	var priorities []int
	for some := range slices.Chunk(params, 4000) { // as many as go into one statement without trouble
		results, err := q.client.InsertManyTx(ctx, tx, some)
		if err != nil {
			return nil, pgerr.Wrap(op, err)
		}
		for i, r := range results {
			inserted = append(inserted, Enqueued{r.Job.ID, !r.UniqueSkippedAsDuplicate})
			if wanted := some[i].InsertOpts.Priority; r.UniqueSkippedAsDuplicate && r.Job.Priority > wanted {
				waiting, priorities = append(waiting, r.Job.ID), append(priorities, wanted)
			}
		}
	}
	if len(waiting) > 0 {
		if _, err := tx.Exec(ctx, `update river_job j set priority = p.priority from unnest($1::bigint[], $2::int[]) p (id, priority)
			where j.id = p.id and j.state <> 'running'`, waiting, priorities); err != nil {
			return nil, pgerr.Wrap(op, err)
		}
	}
	for i := range jobs {
		out[i] = inserted[place[i]]
	}
	return out, nil
}

// Wait returns once the job has ended, well or not, or the one that goes on with it; see Status.State.
func (q *Queue) Wait(ctx context.Context, id int64) (Status, error) {
	look := time.NewTicker(250 * time.Millisecond)
	defer look.Stop()
	for {
		row, err := q.client.JobGet(ctx, id)
		s, err := one(id, "wait for the job")(row, err)
		if err == nil && s.Finished != nil {
			if next := continuedAs(row); next > 0 {
				id = next
				continue
			}
		}
		if err != nil || s.Finished != nil {
			return s, err
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return s, pgerr.Wrap("wait for the job", ctx.Err())
		}
	}
}

// continuedAs is the number of the job that goes on with one that was taken away; 0: none does.
func continuedAs(row *rivertype.JobRow) int64 {
	var m struct {
		ContinuedAs int64 `json:"continued_as"`
	}
	_ = json.Unmarshal(row.Metadata, &m) // it is River's, and valid
	return m.ContinuedAs
}

// Release takes every job that is marked running from its worker at once, and returns how many there were.
// Call it before Start, where this process alone owns the database: then whoever ran them is dead.
func (q *Queue) Release(ctx context.Context) (released int, err error) {
	const op = "release the jobs of a dead process"
	err = pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, `select id from river_job where state = 'running'`)
		jobs, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err == nil && len(jobs) > 0 {
			released, err = takeAway(ctx, tx, jobs)
		}
		if err != nil {
			return err
		}
		// The dead process may have been the one that moves retries along; its claim lasts 15 s.
		_, err = tx.Exec(ctx, `delete from river_leader`)
		return err
	})
	return released, pgerr.Wrap(op, err)
}

// backoff waits 3 s after the first failure, and five times as long after each further one.
type backoff struct{}

func (backoff) NextRetry(job *rivertype.JobRow) time.Time {
	wait := 3 * time.Second
	for range min(len(job.Errors), 6) {
		wait *= 5
	}
	return time.Now().Add(wait)
}

// do works on one job and tells River, in its terms, how that ended.
func (q *Queue) do(ctx context.Context, work func(context.Context, Job, Attempt) error, row *rivertype.JobRow, job Job) error {
	ctx, span := begin(ctx, row, job)
	defer span.End()
	working, lease := q.holder.take(ctx, row.ID, job.Slide)
	defer q.holder.release(row.ID)
	attempt := Attempt{Job: row.ID, Number: row.Attempt, Last: row.Attempt >= row.MaxAttempts, lease: lease}
	err := q.guarded(func() error { return work(working, job, attempt) }, row.ID, job.Slide)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	switch {
	case err == nil:
		return nil
	case !coverslip.KindOf(err).Retryable():
		return final{err}
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%w (%w)", err, context.Canceled) // by which River knows a stop from a failure
	}
	return err
}

// guarded makes an error of a panic, which one slide must not bring over the others.
func (q *Queue) guarded(work func() error, job int64, slide coverslip.SlideID) (err error) {
	defer func() {
		if v := recover(); v != nil {
			q.log.Error("panic", "job", job, "slide", slide, "panic", v, "stack", string(debug.Stack()))
			err = &coverslip.Error{Kind: coverslip.Internal, Op: "work on the job", Slide: slide, Err: fmt.Errorf("panic: %v", v)}
		}
	}()
	return work()
}

// final ends a job. It reads as the error it holds, which becomes the slide's reason.
type final struct{ error }

func (f final) Unwrap() []error { return []error{f.error, river.JobCancel(f.error)} }

// Status is a job as `coverslip jobs` shows it.
type Status struct {
	ID          int64      `json:"id"`
	Job                    // what it asks for
	Queue       string     `json:"queue"`
	Priority    int        `json:"priority"`
	State       string     `json:"state"` // available, running, retryable, scheduled, completed, cancelled, discarded
	Attempt     int        `json:"attempt"`
	MaxAttempts int        `json:"max_attempts"`
	Created     time.Time  `json:"created"`
	Scheduled   time.Time  `json:"scheduled"` // when it runs, or was to run
	Finished    *time.Time `json:"finished,omitempty"`
	Error       string     `json:"error,omitempty"` // of the last attempt that failed
}

// Filter picks jobs. Zero fields pick all.
type Filter struct {
	States []string
	Before int64 // only those with smaller numbers: the last one of the page before
	Limit  int   // at most so many; 0 is 100, the most is 10,000
}

// List returns jobs, the newest first. Jobs that ended well are kept for a day, others for a week.
func (q *Queue) List(ctx context.Context, f Filter) ([]Status, error) {
	const op = "list jobs"
	params := river.NewJobListParams().Kinds(Job{}.Kind(), viewsJob{}.Kind(), stageJob{}.Kind(), taskJob{}.Kind()).OrderBy(river.JobListOrderByID, river.SortOrderDesc).
		First(min(cmp.Or(f.Limit, 100), 10_000)).
		Where("not jsonb_exists(metadata, 'continued_as')") // of what goes on, only where it does
	if len(f.States) > 0 {
		states := make([]rivertype.JobState, len(f.States))
		for i, s := range f.States {
			states[i] = rivertype.JobState(s)
		}
		params = params.States(states...)
	}
	if f.Before > 0 {
		params = params.Where("id < @before", river.NamedArgs{"before": f.Before})
	}
	page, err := q.client.JobList(ctx, params)
	if err != nil {
		return nil, pgerr.Wrap(op, err)
	}
	list := make([]Status, len(page.Jobs))
	for i, row := range page.Jobs {
		if list[i], err = status(row); err != nil {
			return nil, pgerr.Wrap(op, err)
		}
	}
	return list, nil
}

// Retry makes a job that waits or has ended available at once. One that runs is left alone.
func (q *Queue) Retry(ctx context.Context, id int64) (Status, error) {
	return one(id, "retry the job")(q.client.JobRetry(ctx, id))
}

// Cancel ends a job: at once if it waits, else when its worker notices. One that has ended is left
// alone.
func (q *Queue) Cancel(ctx context.Context, id int64) (Status, error) {
	return one(id, "cancel the job")(q.client.JobCancel(ctx, id))
}

// one turns River's answer about one job into ours.
func one(id int64, op string) func(*rivertype.JobRow, error) (Status, error) {
	return func(row *rivertype.JobRow, err error) (Status, error) {
		name := fmt.Sprintf("job %d", id)
		if errors.Is(err, rivertype.ErrNotFound) {
			return Status{}, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: name, Err: errors.New("no job has this number"),
				Hint: "list them: coverslip jobs list"}
		}
		if err != nil {
			return Status{}, coverslip.At(name, pgerr.Wrap(op, err))
		}
		s, err := status(row)
		return s, coverslip.At(name, pgerr.Wrap(op, err))
	}
}

func status(row *rivertype.JobRow) (Status, error) {
	s := Status{ID: row.ID, Queue: row.Queue, Priority: row.Priority, State: string(row.State), Attempt: row.Attempt, MaxAttempts: row.MaxAttempts,
		Created: row.CreatedAt.UTC(), Scheduled: row.ScheduledAt.UTC(), Finished: row.FinalizedAt}
	if n := len(row.Errors); n > 0 {
		s.Error = row.Errors[n-1].Error
	}
	return s, json.Unmarshal(row.EncodedArgs, &s.Job)
}
