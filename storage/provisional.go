package storage

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// RegisterProvisional writes slides down whose bytes nobody has read (ingest.Provisional makes their ids).
// It returns the ids under which they are known, in turn: of one that was read since, the SHA-256 of its
// bytes. created is how many were not known before.
func (q queries) RegisterProvisional(ctx context.Context, all []coverslip.Slide) (ids []coverslip.SlideID, created int, err error) {
	const op = "register slides"
	for some := range slices.Chunk(all, 5000) {
		given, names, locations, md5s, sizes := make([]string, len(some)), make([]string, len(some)), make([]string, len(some)), make([]string, len(some)), make([]int64, len(some))
		for i, s := range some {
			given[i], names[i], locations[i], md5s[i], sizes[i] = string(s.ID), s.Name, s.Location, s.MD5, s.Bytes
		}
		// Ordered, so that two who register the same slides at once do not wait for each other in a circle.
		tag, err := q.q.Exec(ctx, `insert into slides (id, name, location, md5, bytes, provisional, state)
			select m.*, true, 'registered' from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[]) m(id, name, location, md5, bytes)
			where not exists (select from slide_aliases a where a.alias = m.id) order by m.id on conflict (id) do nothing`, given, names, locations, md5s, sizes)
		if err != nil {
			return nil, 0, pgerr.Wrap(op, err)
		}
		created += int(tag.RowsAffected())
		rows, _ := q.q.Query(ctx, `select coalesce(a.slide, m.id) from unnest($1::text[]) with ordinality m(id, place)
			left join slide_aliases a on a.alias = m.id order by m.place`, given) // CollectRows returns the error
		known, err := pgx.CollectRows(rows, pgx.RowTo[coverslip.SlideID])
		if err != nil {
			return nil, 0, pgerr.Wrap(op, err)
		}
		ids = append(ids, known...)
	}
	return ids, created, nil
}

// Identify gives a provisional slide the id of its bytes, which have been read, and writes down what the file
// says of itself. Where those bytes are registered already, the two become one: what the provisional slide
// had (its places in cohorts, imported bags, its jobs) becomes the other's, which keeps what it has. From
// then on the provisional id is another name of the slide. hold is called first, in the same transaction.
func (db *DB) Identify(ctx context.Context, provisional coverslip.SlideID, s coverslip.Slide, hold func(*Tx) error) (coverslip.Slide, error) {
	const op = "give the slide the id of its bytes"
	var stored coverslip.Slide
	for try := 1; ; try++ {
		err := db.InTx(ctx, func(tx *Tx) (err error) {
			if err := hold(tx); err != nil {
				return err
			}
			stored, err = tx.identify(ctx, provisional, s)
			return err
		})
		// Somebody may have registered the same bytes between our look and our write.
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "23505" && try < 3 {
			continue
		}
		return stored, ofSlide(provisional, op, err)
	}
}

func (q queries) identify(ctx context.Context, provisional coverslip.SlideID, s coverslip.Slide) (coverslip.Slide, error) {
	var state coverslip.State
	err := q.q.QueryRow(ctx, `select state from slides where id = $1 and provisional for update`, provisional).Scan(&state)
	if errors.Is(err, pgx.ErrNoRows) { // another worker did it
		return q.Slide(ctx, provisional)
	}
	if err != nil {
		return s, err
	}
	tag, err := q.q.Exec(ctx, `update slides set state = case when state = 'encoding' then state else $2 end, changed = now() where id = $1`, s.ID, state)
	if err != nil {
		return s, err
	}
	steps := []string{`update slides set id = $2, provisional = false where id = $1`} // what refers to it follows
	if tag.RowsAffected() > 0 {
		steps = []string{
			`insert into cohort_slides as old (cohort, slide, patient, site, labels) select cohort, $2, patient, site, labels from cohort_slides where slide = $1
				on conflict (cohort, slide) do update set patient = coalesce(nullif(old.patient, ''), excluded.patient),
					site = coalesce(nullif(old.site, ''), excluded.site), labels = excluded.labels || old.labels`,
			`update bags set slide = $2 where slide = $1`,
			`update embeddings e set slide = $2 where slide = $1
				and not exists (select from embeddings o where o.slide = $2 and o.encoder = e.encoder and o.aggregator = e.aggregator)`,
			`update slide_aliases set slide = $2 where slide = $1`,
			`delete from slides where id = $1 and id <> $2`,
		}
	}
	steps = append(steps, `insert into slide_aliases (alias, slide) values ($1, $2)`,
		`update river_job set args = jsonb_set(args, '{slide}', to_jsonb($2::text)) where args @> jsonb_build_object('slide', $1::text)`)
	for _, sql := range steps {
		if _, err := q.q.Exec(ctx, sql, provisional, s.ID); err != nil {
			return s, err
		}
	}
	if tag.RowsAffected() == 0 {
		if err := q.Describe(ctx, s); err != nil {
			return s, err
		}
		if _, err := q.q.Exec(ctx, `update slides set md5 = $2 where id = $1`, s.ID, s.MD5); err != nil {
			return s, err
		}
	}
	return q.Slide(ctx, s.ID)
}
