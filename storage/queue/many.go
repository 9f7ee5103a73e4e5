package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// Which picks jobs by the slides they are of. Zero fields pick all.
type Which struct {
	Cohort string
	Kind   coverslip.Kind // of the error the slide failed with
}

// RetryFailed puts back the newest failed job of each kind of each slide, with all its attempts, and returns
// how many there were. Jobs that ended more than a week ago are no longer known.
func (q *Queue) RetryFailed(ctx context.Context, w Which) (int, error) {
	tag, err := q.pool.Exec(ctx, `
		with failed as (
			select distinct on (j.unique_key) j.id from river_job j join slides s on s.id = j.args->>'slide'
			where j.state in ('cancelled', 'discarded') and not j.metadata ? 'continued_as'
			  and (j.kind = 'embed_slide' and s.state = 'failed' and ($2 = '' or s.kind = $2) or j.kind = 'encode_views' and $2 = '')
			  and ($1 = '' or s.id in (select slide from cohort_slides where cohort = $1))
			  and not exists (select from river_job o where o.unique_key = j.unique_key and o.state not in ('cancelled', 'discarded', 'completed'))
			order by j.unique_key, j.id desc)
		update river_job j set state = 'available', finalized_at = null, scheduled_at = now(), max_attempts = attempt + $3,
			metadata = metadata - 'cancel_attempted_at' - 'deaths'
		from failed where j.id = failed.id`, w.Cohort, w.Kind, MaxAttempts)
	return int(tag.RowsAffected()), pgerr.Wrap("retry failed jobs", err)
}

// CancelAll ends the jobs of a cohort's slides, of all slides where cohort is empty: those that wait at once,
// those that run when their workers notice. It returns how many there were.
func (q *Queue) CancelAll(ctx context.Context, cohort string) (int, error) {
	const op = "cancel jobs"
	const of = ` ($1 = '' or args->>'slide' in (select slide from cohort_slides where cohort = $1)) `
	tag, err := q.pool.Exec(ctx, `update river_job set state = 'cancelled', finalized_at = now(), metadata = metadata || jsonb_build_object('cancel_attempted_at', now())
		where state in ('available', 'pending', 'retryable', 'scheduled') and`+of, cohort)
	if err != nil {
		return 0, pgerr.Wrap(op, err)
	}
	n := int(tag.RowsAffected())
	rows, _ := q.pool.Query(ctx, `select id from river_job where state = 'running' and`+of, cohort) // CollectRows returns the error
	running, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return n, pgerr.Wrap(op, err)
	}
	for _, id := range running {
		if _, err := q.Cancel(ctx, id); err != nil && coverslip.KindOf(err) != coverslip.NotFound {
			return n, err
		}
		n++
	}
	return n, nil
}

// Depth is how a queue stands.
type Depth struct {
	Queue   string `json:"queue"`
	Paused  bool   `json:"paused"`
	Waiting int    `json:"waiting"` // for a worker, or for the time of the next attempt
	Running int    `json:"running"`
}

// Depths says how each queue stands.
func (q *Queue) Depths(ctx context.Context) ([]Depth, error) {
	rows, _ := q.pool.Query(ctx, `select n.name, coalesce((select paused_at is not null from river_queue r where r.name = n.name), false),
			count(*) filter (where j.state <> 'running'), count(*) filter (where j.state = 'running')
		from unnest($1::text[]) n(name) left join river_job j on j.queue = n.name and j.state in ('available', 'pending', 'retryable', 'scheduled', 'running')
		group by n.name order by n.name`, Names) // CollectRows returns the error
	depths, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Depth])
	return depths, pgerr.Wrap("look at the queues", err)
}

// Pause keeps workers from starting jobs of a queue, and Resume lets them again. Jobs that run go on.
func (q *Queue) Pause(ctx context.Context, name string) error {
	return q.control(ctx, "pause the queue", name, func(tx pgx.Tx) error { return q.client.QueuePauseTx(ctx, tx, name, nil) })
}

// Resume is described at Pause.
func (q *Queue) Resume(ctx context.Context, name string) error {
	return q.control(ctx, "resume the queue", name, func(tx pgx.Tx) error { return q.client.QueueResumeTx(ctx, tx, name, nil) })
}

func (q *Queue) control(ctx context.Context, op, name string, do func(pgx.Tx) error) error {
	if !slices.Contains(Names, name) {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: fmt.Sprintf("%.40q", name), Err: errors.New("there is no such queue"), Hint: "name one of " + strings.Join(Names, ", ")}
	}
	err := pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		// River knows a queue once somebody has worked on it.
		if _, err := tx.Exec(ctx, `insert into river_queue (name, updated_at) values ($1, now()) on conflict (name) do update set updated_at = now()`, name); err != nil {
			return err
		}
		return do(tx)
	})
	return pgerr.Wrap(op, err)
}
