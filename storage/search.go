package storage

import (
	"context"
	"iter"
	"math"

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

// Extended makes pgvector ready in this database where the server has it, and says whether it is.
func (db *DB) Extended(ctx context.Context) (bool, error) {
	const op = "look for pgvector"
	var available, there bool
	err := db.pool.QueryRow(ctx, `select count(*) > 0, coalesce(bool_or(installed_version is not null), false) from pg_available_extensions where name = 'vector'`).Scan(&available, &there)
	if err != nil || there || !available {
		return there, pgerr.Wrap(op, err)
	}
	// It may be that only somebody else is allowed to; then there is none for us.
	_, err = db.pool.Exec(ctx, `create extension if not exists vector`)
	return err == nil, ctx.Err()
}

// NearestFilter picks embeddings that may be near. Zero fields pick all.
type NearestFilter struct {
	Slides []coverslip.SlideID // only of these; nil is all
	After  *Near               // only what comes behind it
	Limit  int                 // at most so many
}

// Near is a slide whose embedding is near.
type Near struct {
	Slide      coverslip.SlideID
	Similarity float32 // cosine
}

// Nearest returns the slides whose embeddings under an encoder and an aggregator are most like v, the most
// similar first and equals in the order of their ids: exactly, by a scan of all of them through pgvector
// (DB.Extended). A v of another length than theirs is Invalid.
func (q queries) Nearest(ctx context.Context, encoder, aggregator string, v []float32, f NearestFilter) ([]Near, error) {
	const op = "search the database"
	after := Near{Similarity: math.MaxFloat32}
	if f.After != nil {
		after = *f.After
	}
	rows, _ := q.q.Query(ctx, `select slide, similarity from (
			select slide, least(1, greatest(-1, 1 - (vector::vector <=> $3::real[]::vector)))::real as similarity
			from embeddings where encoder = $1 and aggregator = $2 and ($4::text[] is null or slide = any($4))) e
		where similarity < $5 or similarity = $5 and slide > $6 order by similarity desc, slide limit $7`,
		encoder, aggregator, v, f.Slides, after.Similarity, after.Slide, f.Limit) // CollectRows returns the error
	near, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Near])
	return near, pgerr.Wrap(op, err)
}
