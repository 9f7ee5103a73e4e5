package storage

import (
	"context"
	"iter"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// CohortMember is a slide's place in a cohort of that name. Of an empty cohort there is one without a slide.
type CohortMember struct {
	Cohort string
	coverslip.Member
}

// AllMembers yields the places of all cohorts. It stops after the first error it yields.
func (q queries) AllMembers(ctx context.Context) iter.Seq2[CohortMember, error] {
	return func(yield func(CohortMember, error) bool) {
		rows, err := q.q.Query(ctx, `select c.name, coalesce(s.slide, ''), coalesce(s.patient, ''), coalesce(s.site, ''), coalesce(s.labels, '{}')
			from cohorts c left join cohort_slides s on s.cohort = c.name order by c.name, s.slide`)
		if err == nil {
			defer rows.Close()
			for rows.Next() {
				var m CohortMember
				if err = rows.Scan(&m.Cohort, &m.Slide, &m.Patient, &m.Site, &m.Labels); err != nil {
					break
				}
				if !yield(m, nil) {
					return
				}
			}
			if err == nil {
				err = rows.Err()
			}
		}
		if err != nil {
			yield(CohortMember{}, pgerr.Wrap("read the cohorts", err))
		}
	}
}

// SlideNames returns the names of those of the slides that are there.
func (q queries) SlideNames(ctx context.Context, ids []coverslip.SlideID) (map[coverslip.SlideID]string, error) {
	const op = "look up slides"
	rows, err := q.q.Query(ctx, `select id, name from slides where id = any($1)`, ids)
	if err != nil {
		return nil, pgerr.Wrap(op, err)
	}
	names := make(map[coverslip.SlideID]string, len(ids))
	var id coverslip.SlideID
	var name string
	_, err = pgx.ForEachRow(rows, []any{&id, &name}, func() error {
		names[id] = name
		return nil
	})
	return names, pgerr.Wrap(op, err)
}

// FollowCohorts calls changed whenever a cohort may have changed, and once at the start, until ctx ends.
// A lost database is waited for.
func (db *DB) FollowCohorts(ctx context.Context, changed func()) error {
	return db.listen(ctx, "coverslip_cohorts", func(_ string, missed missed) error {
		if missed != some {
			changed()
		}
		return nil
	})
}
