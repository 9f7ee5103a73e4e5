package storage

import (
	"context"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// Progress is how far the slides of a cohort are.
type Progress struct {
	Cohort string                  `json:"cohort"`
	Slides int                     `json:"slides"`
	States map[coverslip.State]int `json:"states"` // only those that have any
	Failed []Failures              `json:"failed"` // by kind, the most frequent first
	// PerHour is how many slides were done in an hour, of late; 0 where too few were to say.
	PerHour float64 `json:"per_hour"`
	// SecondsLeft is how long the slides that wait will take at that rate; 0 where it is not known.
	SecondsLeft float64 `json:"seconds_left"`
}

// Failures are the slides that failed in one way.
type Failures struct {
	Kind    coverslip.Kind `json:"kind"`
	Slides  int            `json:"slides"`
	Example string         `json:"example"` // the reason of one
}

// Waiting is how many slides are still to be done.
func (p Progress) Waiting() int { return p.States[coverslip.Queued] + p.States[coverslip.Encoding] }

// Done is how many have their embedding, or no tissue.
func (p Progress) Done() int { return p.States[coverslip.Embedded] + p.States[coverslip.NoTissue] }

// rateOver is the time over which the rate is measured.
const rateOver = 15 * time.Minute

// Progress says how far the slides of a cohort are; NotFound where there is none of this name. An empty name
// is all slides.
func (q queries) Progress(ctx context.Context, cohort string) (Progress, error) {
	const op = "look at the progress"
	p := Progress{Cohort: cohort, States: map[coverslip.State]int{}, Failed: []Failures{}}
	wrap := func(err error) (Progress, error) { return p, coverslip.At("cohort "+cohort, pgerr.Wrap(op, err)) }
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
			p.Failed = append(p.Failed, Failures{kind, n, example})
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
