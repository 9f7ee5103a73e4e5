// Package queue is the list of slides to encode: River on the same Postgres as the slides, so that a
// slide and its job commit together. One slide a job.
//
// A job may run twice: its worker can die after its work is written and before the job is marked
// done. So what Work does must come out the same when it is done again. The slide's state follows
// its job by itself, in the database (migrations/00002): `encoding` while a worker has it, `queued`
// before and between, `failed` when the job is given up. Work writes only how it ended.
package queue

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

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
}

// Kind is River's name for the job; the trigger in migrations/00002 goes by it too.
func (Job) Kind() string { return "embed_slide" }

// InsertOpts makes a job unique while it waits or runs. Once it has ended, well or not, the same may
// be asked again.
func (Job) InsertOpts() river.InsertOpts {
	return river.InsertOpts{
		MaxAttempts: MaxAttempts,
		UniqueOpts: river.UniqueOpts{ByArgs: true, ByState: []rivertype.JobState{
			rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRunning,
			rivertype.JobStateRetryable, rivertype.JobStateScheduled,
		}},
	}
}

// viewsJob is a Job with Views. Its kind is its own, because a slide's state does not follow it: the
// slide has its embedding, or not, whatever becomes of its views.
type viewsJob Job

func (viewsJob) Kind() string                 { return "encode_views" }
func (viewsJob) InsertOpts() river.InsertOpts { return Job{}.InsertOpts() }

// MaxAttempts is how often a job is tried before it is given up, after 3 s, 15 s, 75 s and 6 min:
// long enough for a store or a database to come back.
const MaxAttempts = 5

// MaxDeaths is how often a job may take its process down before it is given up. Deaths are not
// attempts: most often the slide is not to blame.
const MaxDeaths = 20

// Attempt is which run of a job this is.
type Attempt struct {
	Job    int64 // its number, as `coverslip jobs` shows it
	Number int   // 1 is the first
	Last   bool  // after a failure there is no other
}

// Config is how a process works on jobs.
type Config struct {
	Workers int           // jobs at once; 0 is 1
	Timeout time.Duration // the longest a job may run; 0 is one hour
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
	works  bool
}

// New makes a queue over the pool. Nothing runs before Start.
func New(pool *pgxpool.Pool, c Config) (*Queue, error) {
	timeout := cmp.Or(c.Timeout, time.Hour)
	config := &river.Config{
		Logger:            cmp.Or(c.Logger, slog.New(slog.DiscardHandler)),
		JobTimeout:        timeout,
		JobStuckThreshold: time.Minute,
		// A job still running so late has lost its worker: nothing else tells in a fleet.
		RescueStuckJobsAfter: timeout + 2*time.Minute,
		RetryPolicy:          backoff{},
		// River notifies at most once a cooldown and looks by itself once a poll: together they bound
		// how long a new job waits for a free worker.
		FetchCooldown:               20 * time.Millisecond,
		FetchPollInterval:           500 * time.Millisecond,
		CancelledJobRetentionPeriod: 7 * 24 * time.Hour, // a failure, so as long as River keeps the discarded
	}
	if c.Work != nil {
		config.Workers = river.NewWorkers()
		config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: max(c.Workers, 1)}}
		err := errors.Join(
			river.AddWorkerSafely(config.Workers, river.WorkFunc(func(ctx context.Context, job *river.Job[Job]) error {
				return do(ctx, c.Work, job.JobRow, job.Args)
			})),
			river.AddWorkerSafely(config.Workers, river.WorkFunc(func(ctx context.Context, job *river.Job[viewsJob]) error {
				return do(ctx, c.Work, job.JobRow, Job(job.Args))
			})))
		if err != nil {
			return nil, pgerr.Wrap("set up the queue", err)
		}
	}
	client, err := river.NewClient(riverpgxv5.New(pool), config)
	if err != nil {
		return nil, pgerr.Wrap("set up the queue", err)
	}
	return &Queue{pool, client, c.Work != nil}, nil
}

// Start begins to work on jobs; ctx bounds only the start itself. End it with Stop.
func (q *Queue) Start(ctx context.Context) error {
	if err := ctx.Err(); err != nil || !q.works {
		return pgerr.Wrap("start the queue", err)
	}
	return pgerr.Wrap("start the queue", q.client.Start(context.WithoutCancel(ctx)))
}

// Stop takes no more jobs and waits for those that run. When ctx ends first, it cancels them, and they
// go back to the queue as if this run had not been.
func (q *Queue) Stop(ctx context.Context) error {
	if !q.works {
		return nil
	}
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

// Enqueue adds a job in the caller's transaction. added is false, and nothing is added, when the same
// job waits or runs already; id is its number then.
func (q *Queue) Enqueue(ctx context.Context, tx pgx.Tx, job Job) (id int64, added bool, err error) {
	var args river.JobArgs = job
	if job.Views != nil {
		args = viewsJob(job)
	}
	r, err := q.client.InsertTx(ctx, tx, args, nil)
	if err != nil {
		return 0, false, pgerr.OfSlide(job.Slide, "enqueue the slide", err)
	}
	return r.Job.ID, !r.UniqueSkippedAsDuplicate, nil
}

// Wait returns once the job has ended, well or not; see Status.State.
func (q *Queue) Wait(ctx context.Context, id int64) (Status, error) {
	look := time.NewTicker(250 * time.Millisecond)
	defer look.Stop()
	for {
		s, err := one(id, "wait for the job")(q.client.JobGet(ctx, id))
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

// Release makes every job that is marked running available at once, and returns how many there were.
// Call it before Start, where this process alone owns the database: then whoever ran them is dead.
// A job keeps its place in the queue for its first deaths, then goes behind the others, so that a
// slide that takes the process down does not keep them from their turn; after MaxDeaths it is given up.
func (q *Queue) Release(ctx context.Context) (released int, err error) {
	const op = "release the jobs of a dead process"
	err = pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			with dead as (
				select id, coalesce((metadata->>'deaths')::int, 0) + 1 as deaths, metadata ? 'cancel_attempted_at' as cancelled
				from river_job where state = 'running' for update)
			update river_job j set
				state        = (case when cancelled then 'cancelled' when deaths >= $1 then 'discarded' else 'available' end)::river_job_state,
				finalized_at = case when cancelled or deaths >= $1 then now() end,
				attempt      = greatest(attempt - 1, 0),
				scheduled_at = case when deaths > 3 then now() else scheduled_at end,
				metadata     = jsonb_set(metadata, '{deaths}', to_jsonb(deaths)),
				errors       = case when deaths >= $1 then array_append(errors, jsonb_build_object('at', now(), 'attempt', attempt,
					'error', format('the process that worked on it died, for the %sth time', deaths), 'trace', '')) else errors end
			from dead where j.id = dead.id`, MaxDeaths)
		if err != nil {
			return err
		}
		released = int(tag.RowsAffected())
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
func do(ctx context.Context, work func(context.Context, Job, Attempt) error, row *rivertype.JobRow, job Job) error {
	err := work(ctx, job, Attempt{Job: row.ID, Number: row.Attempt, Last: row.Attempt >= row.MaxAttempts})
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

// final ends a job. It reads as the error it holds, which becomes the slide's reason.
type final struct{ error }

func (f final) Unwrap() []error { return []error{f.error, river.JobCancel(f.error)} }

// Status is a job as `coverslip jobs` shows it.
type Status struct {
	ID          int64      `json:"id"`
	Job                    // what it asks for
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
	params := river.NewJobListParams().Kinds(Job{}.Kind(), viewsJob{}.Kind()).OrderBy(river.JobListOrderByID, river.SortOrderDesc).
		First(min(cmp.Or(f.Limit, 100), 10_000))
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
	s := Status{ID: row.ID, State: string(row.State), Attempt: row.Attempt, MaxAttempts: row.MaxAttempts,
		Created: row.CreatedAt.UTC(), Scheduled: row.ScheduledAt.UTC(), Finished: row.FinalizedAt}
	if n := len(row.Errors); n > 0 {
		s.Error = row.Errors[n-1].Error
	}
	return s, json.Unmarshal(row.EncodedArgs, &s.Job)
}
