package storage

import (
	"context"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// rateOver is the time over which the rate is measured.
const rateOver = 15 * time.Minute

// Progress says how far the slides of a cohort are; NotFound where there is none of this name. An empty name
// is all slides.
func (q queries) Progress(ctx context.Context, cohort string) (coverslip.Progress, error) {
	const op = "look at the progress"
	p := coverslip.Progress{Cohort: cohort, States: map[coverslip.State]int{}, Failed: []coverslip.Failures{}}
	wrap := func(err error) (coverslip.Progress, error) {
		return p, coverslip.At("cohort "+cohort, pgerr.Wrap(op, err))
	}
	var state coverslip.State
	var kind coverslip.Kind
	var n, late int
	var example string
	var since *time.Duration
	rows, err := q.q.Query(ctx, `select state, kind, count(*), min(reason), count(*) filter (where changed > now() - $2::interval),
			now() - min(changed) filter (where changed > now() - $2::interval)
		from slides where $1 = '' or id in (select slide from cohort_slides where cohort = $1)
		group by state, kind order by count(*) desc, kind`, cohort, rateOver)
	if err != nil {
		return wrap(err)
	}
	done, over := 0, time.Duration(0)
	_, err = pgx.ForEachRow(rows, []any{&state, &kind, &n, &example, &late, &since}, func() error {
		p.Slides += n
		p.States[state] += n
		if state == coverslip.Failed || state == coverslip.AwaitingMPP {
			p.Failed = append(p.Failed, coverslip.Failures{Kind: kind, Slides: n, Example: example})
		}
		if since != nil && state.Done() && state != coverslip.Registered {
			done, over = done+late, max(over, *since)
		}
		return nil
	})
	if err == nil && p.Slides == 0 && cohort != "" {
		_, err = q.Cohort(ctx, cohort)
	}
	if done > 1 && over > 0 {
		p.PerHour = float64(done) / over.Hours()
		p.SecondsLeft = math.Round(float64(p.Waiting()) / p.PerHour * 3600)
	}
	return wrap(err)
}
