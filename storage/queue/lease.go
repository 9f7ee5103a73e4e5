package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// A lease says that somebody is at a job that runs. It is a row that comes and goes with the state
// `running` (migrations/00010), and whose beat grows while its worker lives. Any process that works on jobs
// also sweeps: where a beat has not grown for Config.Patience, the job is taken away. It is closed, and another
// job with a number of its own goes on where it was. So a job's number is the fencing token: whoever was
// stopped and wakes up finds its job closed, Hold refuses its writes, and what it tells River of the job
// changes nothing.
//
// How long a beat has been silent is measured by one clock, the database's, and only over times in which
// sweeps went on: after the database was away, everybody gets the time to beat again.

// DefaultPatience is how long a lease may be silent. There are four beats and sweeps in that time, so a dead
// worker's job is available again after half as long once more.
const DefaultPatience = 20 * time.Second

// errTaken is why a job is stopped that was taken away.
var errTaken = errors.New("another worker has taken over, because this one was silent for too long")

// Hold locks a job's lease for the rest of the transaction, so that what is written in it is written by
// the one worker that has the job. A job that is no longer the caller's is a Conflict.
func (q *Queue) Hold(ctx context.Context, tx pgx.Tx, job int64) error {
	const op = "write down the job's result"
	var running bool
	err := tx.QueryRow(ctx, `select state = 'running' from river_job where id = $1 for share`, job).Scan(&running)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && !running {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: op, Path: fmt.Sprintf("job %d", job), Err: errTaken}
	}
	return pgerr.Wrap(op, err)
}

// holder keeps the leases of a process's jobs alive and sweeps those of others.
type holder struct {
	q   *Queue
	mu  sync.Mutex
	has map[int64]*held
}

type held struct {
	slide coverslip.SlideID
	kept  atomic.Int64 // see Attempt.Kept
	lost  context.CancelCauseFunc
}

// take notes that this process has the job, until release. The context ends when the job is taken away.
func (h *holder) take(ctx context.Context, job int64, slide coverslip.SlideID) (context.Context, *held) {
	ctx, lost := context.WithCancelCause(ctx)
	one := &held{slide: slide, lost: lost}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.has[job] = one
	return ctx, one
}

func (h *holder) release(job int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.has[job].lost(nil)
	delete(h.has, job)
}

// run beats and sweeps until ctx ends. What fails is tried again the next time.
func (h *holder) run(ctx context.Context) {
	tick := time.NewTicker(h.q.patience / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, do := range []func(context.Context) error{h.beat, h.sweep} {
			once, done := context.WithTimeout(ctx, h.q.patience/2)
			if err := do(once); err != nil && ctx.Err() == nil {
				h.q.log.Warn("leases are not looked after", "err", err)
			}
			done()
		}
	}
}

// beat makes the beats of this process's jobs grow, and stops those that were taken away.
func (h *holder) beat(ctx context.Context) error {
	h.mu.Lock()
	had := make(map[int64]*held, len(h.has))
	var jobs []int64
	var kept []int64
	for job, one := range h.has {
		had[job] = one
		jobs, kept = append(jobs, job), append(kept, one.kept.Load())
	}
	h.mu.Unlock()
	if len(jobs) == 0 {
		return nil
	}
	rows, _ := h.q.pool.Query(ctx, `update leases l set beat = beat + 1, kept = m.kept
		from unnest($1::bigint[], $2::int[]) m (job, kept) where l.job = m.job returning l.job`, jobs, kept)
	still, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return pgerr.Wrap("beat", err)
	}
	for _, job := range still {
		delete(had, job)
	}
	for job, one := range had {
		one.lost(errTaken) // or it has ended in this moment, and nobody listens
		h.q.log.Warn("a job was taken away", "job", job, "slide", one.slide)
	}
	return nil
}

// sweep takes jobs from silent workers, unless somebody else has just swept.
func (h *holder) sweep(ctx context.Context) error {
	type lost struct {
		Job   int64
		Slide coverslip.SlideID
	}
	var silent []lost
	err := pgx.BeginFunc(ctx, h.q.pool, func(tx pgx.Tx) error {
		// Of those who sweep at once, the first updates the row and the others find it updated.
		var pause time.Duration
		err := tx.QueryRow(ctx, `update lease_sweeps s set at = clock_timestamp() from (select at from lease_sweeps for update) old
			where old.at < clock_timestamp() - $1::interval
			returning case when isfinite(old.at) then s.at - old.at else interval '1 day' end`, h.q.patience/5).Scan(&pause)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `update leases set seen_beat = beat, seen = clock_timestamp() where beat <> seen_beat or $1`, pause > h.q.patience/2); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, `select l.job, coalesce(j.args->>'slide', '') from leases l left join river_job j on j.id = l.job
			where l.seen < clock_timestamp() - $1::interval for update of l skip locked`, h.q.patience)
		if silent, err = pgx.CollectRows(rows, pgx.RowToStructByPos[lost]); err != nil || len(silent) == 0 {
			return err
		}
		jobs := make([]int64, len(silent))
		for i, one := range silent {
			jobs[i] = one.Job
		}
		_, err = takeAway(ctx, tx, jobs)
		return err
	})
	if err == nil {
		for _, one := range silent {
			h.q.log.Warn("a job was taken from a worker that is silent", "job", one.Job, "slide", one.Slide)
		}
	}
	return pgerr.Wrap("sweep", err)
}

// takeAway closes jobs that run and lets new ones go on with them. A job keeps its place in the queue for
// the first deaths of its workers, then goes behind the others, so that a slide that takes processes down
// does not keep them from their turn; after MaxDeaths, with nothing kept in between, it is given up.
func takeAway(ctx context.Context, tx pgx.Tx, jobs []int64) (int, error) {
	tag, err := tx.Exec(ctx, `
		with dead as (
			select j.id, j.metadata ? 'cancel_attempted_at' as cancelled, greatest(l.kept, coalesce((j.metadata->>'kept')::int, 0)) as kept,
				case when l.kept > coalesce((j.metadata->>'kept')::int, 0) then 1 else coalesce((j.metadata->>'deaths')::int, 0) + 1 end as deaths
			from river_job j left join leases l on l.job = j.id where j.id = any($1) and j.state = 'running' for update of j skip locked)
		update river_job j set
			state        = (case when cancelled then 'cancelled' else 'discarded' end)::river_job_state,
			finalized_at = now(),
			metadata     = metadata || jsonb_build_object('deaths', deaths, 'kept', kept) || case when cancelled or deaths >= $2 then '{}'
				else jsonb_build_object('continued_as', nextval('river_job_id_seq')) end,
			errors       = case when deaths >= $2 then array_append(errors, jsonb_build_object('at', now(), 'attempt', attempt, 'trace', '',
				'error', format('it was set aside, because whatever worked on it died, %s times without getting further (coverslip jobs retry %s)', deaths, j.id))) else errors end
		from dead where j.id = dead.id`, jobs, MaxDeaths)
	if err != nil {
		return 0, err
	}
	_, err = tx.Exec(ctx, `insert into river_job (id, args, kind, queue, priority, max_attempts, attempt, errors, metadata, tags,
			created_at, scheduled_at, unique_key, unique_states)
		select (metadata->>'continued_as')::bigint, args, kind, queue, priority, max_attempts, greatest(attempt - 1, 0), errors, metadata - 'continued_as', tags,
			created_at, case when (metadata->>'deaths')::int > 3 then now() else scheduled_at end, unique_key, unique_states
		from river_job where id = any($1) and state = 'discarded' and metadata ? 'continued_as'`, jobs)
	return int(tag.RowsAffected()), err
}
