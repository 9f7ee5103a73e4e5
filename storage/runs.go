package storage

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// PutRun writes a run and its predictions, all or nothing. An id says what a run holds, so the same one again
// changes nothing, and created is false.
func (db *DB) PutRun(ctx context.Context, r coverslip.Run, predictions []coverslip.Prediction) (created bool, err error) {
	err = db.InTx(ctx, func(tx *Tx) error {
		tag, err := tx.tx.Exec(ctx, `insert into runs (id, kind, cohort, label, classes, settings, methods, splits, left_out, notes)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict do nothing`,
			r.ID, r.Kind, r.Cohort, r.Label, filled(r.Classes), r.Settings, r.Methods, r.Splits, filled(r.LeftOut), filled(r.Notes))
		if created = err == nil && tag.RowsAffected() > 0; !created {
			return err
		}
		_, err = tx.tx.CopyFrom(ctx, pgx.Identifier{"predictions"},
			[]string{"run", "method", "split", "slide", "patient", "p", "truth", "time", "event"},
			pgx.CopyFromSlice(len(predictions), func(i int) ([]any, error) {
				p := predictions[i]
				return []any{r.ID, p.Method, p.Split, string(p.Slide), p.Patient, p.P, p.Truth, p.Time, p.Event}, nil
			}))
		return err
	})
	return created, coverslip.At("run "+r.ID, pgerr.Wrap("keep the run", err))
}

// filled is v, and not null where it is empty.
func filled[T any](v []T) []T {
	if v == nil {
		return []T{}
	}
	return v
}

// Runs lists all runs, the newest first.
func (q queries) Runs(ctx context.Context) ([]coverslip.Run, error) {
	rows, _ := q.q.Query(ctx, selectRun+` order by created desc, id`) // CollectRows returns the error
	runs, err := pgx.CollectRows(rows, scanRun)
	return runs, pgerr.Wrap("list runs", err)
}

// RunByPrefix returns the one run whose id starts with prefix, 6 lower-case hexadecimal digits at least, else
// Invalid. None is NotFound, several are a Conflict.
func (q queries) RunByPrefix(ctx context.Context, prefix string) (coverslip.Run, error) {
	e := &coverslip.Error{Kind: coverslip.Invalid, Op: "look up the run", Path: fmt.Sprintf("%.64s", prefix)}
	if len(prefix) < 6 || len(prefix) > 64 || !isHex(prefix) {
		e.Err, e.Hint = errors.New("not the start of a run's id"), "give at least 6 digits; coverslip runs list shows them"
		return coverslip.Run{}, e
	}
	// 'g' is the first byte after the digits and letters of an id.
	rows, _ := q.q.Query(ctx, selectRun+` where id >= $1 and id < $1 || 'g' order by id limit 2`, prefix)
	found, err := pgx.CollectRows(rows, scanRun)
	switch {
	case err != nil:
		return coverslip.Run{}, pgerr.Wrap(e.Op, err)
	case len(found) == 0:
		e.Kind, e.Err, e.Hint = coverslip.NotFound, errors.New("no run has this id"), "list them: coverslip runs list"
		return coverslip.Run{}, e
	case len(found) > 1:
		e.Kind, e.Err, e.Hint = coverslip.Conflict, errors.New("several runs begin like this"), "give more digits"
		return coverslip.Run{}, e
	}
	return found[0], nil
}

// Predictions returns those of a run, by method, split and slide.
func (q queries) Predictions(ctx context.Context, run string) ([]coverslip.Prediction, error) {
	rows, _ := q.q.Query(ctx, `select method, split, slide, patient, p, truth, time, event from predictions where run = $1
		order by method, split, slide`, run) // CollectRows returns the error
	p, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p coverslip.Prediction, err error) {
		err = row.Scan(&p.Method, &p.Split, &p.Slide, &p.Patient, &p.P, &p.Truth, &p.Time, &p.Event)
		return p, err
	})
	return p, coverslip.At("run "+run, pgerr.Wrap("read the predictions", err))
}

const selectRun = `select id, kind, cohort, label, classes, settings, methods, splits, left_out, notes, created from runs`

func scanRun(row pgx.CollectableRow) (r coverslip.Run, err error) {
	err = row.Scan(&r.ID, &r.Kind, &r.Cohort, &r.Label, &r.Classes, &r.Settings, &r.Methods, &r.Splits, &r.LeftOut, &r.Notes, &r.Created)
	r.Created = r.Created.UTC()
	return r, err
}
