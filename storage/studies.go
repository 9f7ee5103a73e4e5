package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// Study is one that was run, as it is kept.
type Study struct {
	Name     string            `json:"name"`
	Quick    bool              `json:"quick"`
	Text     string            `json:"text"`    // the file
	Command  string            `json:"command"` // that runs it again
	Plan     json.RawMessage   `json:"plan"`
	Versions map[string]string `json:"versions"`
	Outcomes json.RawMessage   `json:"outcomes"` // of stages
	Created  time.Time         `json:"created"`
	Changed  time.Time         `json:"changed"`
}

// StudyRun is an evaluation of one of its runs.
type StudyRun struct {
	Run        int               `json:"run"` // from 1
	Levels     map[string]string `json:"levels"`
	Seed       uint64            `json:"seed"` // at most MaxInt64
	Evaluation string            `json:"evaluation"`
	Key        string            `json:"key"` // of its figures
}

// StudyFigure is a number of an evaluation.
type StudyFigure struct {
	Figure, Training, Fold string
	Value                  float64
}

// StudyResult is a figure of a run.
type StudyResult struct {
	StudyRun
	StudyFigure
}

// PutStudy writes a study with its runs. One of this name that asked something else is a Conflict, unless replace.
func (db *DB) PutStudy(ctx context.Context, s Study, runs []StudyRun, replace bool) error {
	err := db.InTx(ctx, func(tx *Tx) error {
		var text string
		err := tx.tx.QueryRow(ctx, `select text from studies where name = $1 and quick = $2 for update`, s.Name, s.Quick).Scan(&text)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
		case err != nil:
			return err
		case text != s.Text && !replace:
			return &coverslip.Error{Kind: coverslip.Conflict, Op: "keep the study", Path: "study " + s.Name, Err: errors.New("another study of this name is there, whose file says something else"),
				Hint: "give this one another name, or --replace that one: what both share is kept"}
		}
		if _, err := tx.tx.Exec(ctx, `insert into studies (name, quick, text, command, plan, versions) values ($1, $2, $3, $4, $5, $6)
			on conflict (name, quick) do update set text = $3, command = $4, plan = $5, versions = $6, outcomes = '[]', changed = now()`,
			s.Name, s.Quick, s.Text, s.Command, s.Plan, s.Versions); err != nil {
			return err
		}
		if _, err := tx.tx.Exec(ctx, `delete from study_runs where study = $1 and quick = $2`, s.Name, s.Quick); err != nil {
			return err
		}
		_, err = tx.tx.CopyFrom(ctx, pgx.Identifier{"study_runs"}, []string{"study", "quick", "run", "levels", "seed", "evaluation", "key"},
			pgx.CopyFromSlice(len(runs), func(i int) ([]any, error) {
				r := runs[i]
				return []any{s.Name, s.Quick, r.Run, r.Levels, int64(r.Seed), r.Evaluation, r.Key}, nil //nolint:gosec // checked when it was read
			}))
		return err
	})
	return coverslip.At("study "+s.Name, pgerr.Wrap("keep the study", err))
}

// SetStudyOutcomes writes down what became of a study's stages.
func (q queries) SetStudyOutcomes(ctx context.Context, name string, quick bool, outcomes json.RawMessage) error {
	_, err := q.q.Exec(ctx, `update studies set outcomes = $3, changed = now() where name = $1 and quick = $2`, name, quick, outcomes)
	return coverslip.At("study "+name, pgerr.Wrap("keep what became of the study", err))
}

// PutFigures writes the figures of an evaluation, all or none. Those of a key that is there stay.
func (db *DB) PutFigures(ctx context.Context, key string, figures []StudyFigure) error {
	err := db.InTx(ctx, func(tx *Tx) error {
		tag, err := tx.tx.Exec(ctx, `insert into study_evaluations (key) values ($1) on conflict do nothing`, key)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		_, err = tx.tx.CopyFrom(ctx, pgx.Identifier{"study_figures"}, []string{"key", "figure", "training", "fold", "value"},
			pgx.CopyFromSlice(len(figures), func(i int) ([]any, error) {
				f := figures[i]
				return []any{key, f.Figure, f.Training, f.Fold, f.Value}, nil
			}))
		return err
	})
	return pgerr.Wrap("keep the figures "+key, err)
}

// EvaluationsAmong reports which of these evaluations have their figures.
func (q queries) EvaluationsAmong(ctx context.Context, keys []string) (map[string]bool, error) {
	rows, _ := q.q.Query(ctx, `select key from study_evaluations where key = any($1)`, keys) // CollectRows returns the error
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	there := make(map[string]bool, len(found))
	for _, k := range found {
		there[k] = true
	}
	return there, pgerr.Wrap("look for figures", err)
}

// Studies lists those that were run, the one that changed last first.
func (q queries) Studies(ctx context.Context) ([]Study, error) {
	rows, _ := q.q.Query(ctx, selectStudy+` order by changed desc, name, quick`) // CollectRows returns the error
	all, err := pgx.CollectRows(rows, scanStudy)
	return all, pgerr.Wrap("list studies", err)
}

// Study returns one by name, or NotFound.
func (q queries) Study(ctx context.Context, name string, quick bool) (Study, error) {
	const op = "look up the study"
	rows, _ := q.q.Query(ctx, selectStudy+` where name = $1 and quick = $2`, name, quick) // the same
	s, err := pgx.CollectExactlyOneRow(rows, scanStudy)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: "study " + name, Err: errors.New("none of this name was run"), Hint: "coverslip study show lists those that were; coverslip study run FILE runs one"}
	}
	return s, pgerr.Wrap(op, err)
}

const selectStudy = `select name, quick, text, command, plan, versions, outcomes, created, changed from studies`

func scanStudy(row pgx.CollectableRow) (s Study, err error) {
	err = row.Scan(&s.Name, &s.Quick, &s.Text, &s.Command, &s.Plan, &s.Versions, &s.Outcomes, &s.Created, &s.Changed)
	s.Created, s.Changed = s.Created.UTC(), s.Changed.UTC()
	return s, err
}

// StudyResults are the figures of a study, by run, evaluation, figure, training and fold, n=5 before n=25.
func (q queries) StudyResults(ctx context.Context, name string, quick bool) ([]StudyResult, error) {
	rows, _ := q.q.Query(ctx, `select run, levels, seed, evaluation, key, figure, training, fold, value
		from study_runs join study_figures using (key) where study = $1 and quick = $2
		order by run, evaluation, figure, length(training), training, length(fold), fold`, name, quick) // the same
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r StudyResult, err error) {
		var seed int64
		err = row.Scan(&r.Run, &r.Levels, &seed, &r.Evaluation, &r.Key, &r.Figure, &r.Training, &r.Fold, &r.Value)
		r.Seed = uint64(seed) //nolint:gosec // not below zero
		return r, err
	})
	return all, coverslip.At("study "+name, pgerr.Wrap("read the results", err))
}

// LockStudy keeps other processes from running a study of this name until release is called, or this process dies. Where
// one does, it is a Conflict.
func (db *DB) LockStudy(ctx context.Context, name string) (release func(), err error) {
	const op = "start the study"
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return nil, pgerr.Wrap(op, err)
	}
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "study %s", name)
	id := int64(h.Sum64()) //nolint:gosec // a number that only has to differ
	var got bool
	if err := conn.QueryRow(ctx, `select pg_try_advisory_lock($1)`, id).Scan(&got); err != nil || !got {
		conn.Release()
		if err == nil {
			err = &coverslip.Error{Kind: coverslip.Conflict, Op: op, Path: "study " + name, Err: errors.New("another process runs it"), Hint: "wait for it: coverslip study show " + name}
		}
		return nil, pgerr.Wrap(op, err)
	}
	return func() {
		_, _ = conn.Exec(context.WithoutCancel(ctx), `select pg_advisory_unlock($1)`, id) // given up with the connection, too
		conn.Release()
	}, nil
}
