package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// Task is a verb of the command line that somebody asked for over the API. It follows its job: queued,
// running, then done, failed or cancelled.
type Task struct {
	ID       int64
	Verb     string          // as on the command line: "mil train"
	Settings json.RawMessage // an object
	Job      int64
	State    string
	Progress string          // the last line that told how far it is, or what it warned of
	Result   json.RawMessage // an array of what the verb printed
	Error    string
	Files    []TaskFile
	Created  time.Time
	Started  *time.Time
	Finished *time.Time
}

// TaskFile is one that a task wrote; it lies in the blob store.
type TaskFile struct {
	Name  string `json:"name"` // a path with slashes
	Bytes int64  `json:"bytes"`
}

// Has reports whether it has a file of this name.
func (t Task) Has(name string) bool {
	return slices.ContainsFunc(t.Files, func(f TaskFile) bool { return f.Name == name })
}

// TaskFilter picks tasks. Zero fields pick all.
type TaskFilter struct {
	State  string
	Before int64 // only those with smaller numbers
	Limit  int   // at most so many; 0 is no limit
}

// AddTask writes down a task whose job is enqueued in the same transaction, by enqueue, which is told its number.
func (db *DB) AddTask(ctx context.Context, verb string, settings json.RawMessage, enqueue func(tx *Tx, id int64) (job int64, err error)) (t Task, err error) {
	err = db.InTx(ctx, func(tx *Tx) error {
		var id int64
		if err := tx.tx.QueryRow(ctx, `insert into tasks (verb, settings) values ($1, $2) returning id`, verb, settings).Scan(&id); err != nil {
			return err
		}
		job, err := enqueue(tx, id)
		if err == nil {
			_, err = tx.tx.Exec(ctx, `update tasks set job = $2 where id = $1`, id, job)
		}
		if err == nil {
			t, err = tx.Task(ctx, id)
		}
		return err
	})
	return t, pgerr.Wrap("keep the task", err)
}

const selectTask = `select id, verb, settings, coalesce(job, 0), state, progress, result, error, files, created, started, finished from tasks`

func scanTask(row pgx.CollectableRow) (t Task, err error) {
	err = row.Scan(&t.ID, &t.Verb, &t.Settings, &t.Job, &t.State, &t.Progress, &t.Result, &t.Error, &t.Files, &t.Created, &t.Started, &t.Finished)
	return t, err
}

// Task returns the one with this number, or NotFound.
func (q queries) Task(ctx context.Context, id int64) (Task, error) {
	const op = "look up the task"
	rows, _ := q.q.Query(ctx, selectTask+` where id = $1`, id) // CollectExactlyOneRow returns the error
	t, err := pgx.CollectExactlyOneRow(rows, scanTask)
	if errors.Is(err, pgx.ErrNoRows) {
		return t, noTask(op, id)
	}
	return t, pgerr.Wrap(op, err)
}

func noTask(op string, id int64) error {
	return &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: fmt.Sprintf("task %d", id), Err: errors.New("no task has this number"), Hint: "GET /v1/tasks lists them"}
}

// Tasks lists them, the newest first.
func (q queries) Tasks(ctx context.Context, f TaskFilter) ([]Task, error) {
	rows, _ := q.q.Query(ctx, selectTask+` where ($1 = '' or state = $1) and ($2::bigint = 0 or id < $2) order by id desc limit nullif($3::bigint, 0)`, f.State, f.Before, f.Limit) // CollectRows returns the error
	all, err := pgx.CollectRows(rows, scanTask)
	return all, pgerr.Wrap("list tasks", err)
}

// SetTaskProgress writes down how far a task is.
func (q queries) SetTaskProgress(ctx context.Context, id int64, line string) error {
	_, err := q.q.Exec(ctx, `update tasks set progress = $2 where id = $1 and state = 'running'`, id, line)
	return pgerr.Wrap("tell how far the task is", err)
}

// EndTask writes down how a task that runs ended: done, or failed where failure is not empty.
func (q queries) EndTask(ctx context.Context, id int64, result json.RawMessage, files []TaskFile, failure string) error {
	if files == nil {
		files = []TaskFile{}
	}
	_, err := q.q.Exec(ctx, `update tasks set state = case when $4 = '' then 'done' else 'failed' end, result = $2, files = $3, error = $4, finished = now()
		where id = $1 and state = 'running'`, id, result, files, failure)
	return pgerr.Wrap("keep the task's result", err)
}

// RemoveTask forgets a task that has ended and returns it. One that has not is a Conflict.
func (db *DB) RemoveTask(ctx context.Context, id int64) (t Task, err error) {
	const op = "remove the task"
	err = db.InTx(ctx, func(tx *Tx) error {
		if t, err = tx.Task(ctx, id); err != nil {
			return err
		}
		if t.Finished == nil {
			return &coverslip.Error{Kind: coverslip.Conflict, Op: op, Path: fmt.Sprintf("task %d", id), Err: fmt.Errorf("it is %s", t.State), Hint: "cancel it first, or wait for its end"}
		}
		_, err := tx.tx.Exec(ctx, `delete from tasks where id = $1`, id)
		return err
	})
	return t, pgerr.Wrap(op, err)
}

// NextTask is the number of a task that is to come.
func (q queries) NextTask(ctx context.Context) (id int64, err error) {
	err = q.q.QueryRow(ctx, `select nextval(pg_get_serial_sequence('tasks', 'id'))`).Scan(&id)
	return id, pgerr.Wrap("number the task", err)
}

// PutTaskFile writes down a file of a task of the verb `files`, which is done; in place of one of its name. It makes
// the task where there is none of this number, and returns it.
func (q queries) PutTaskFile(ctx context.Context, id int64, f TaskFile) (Task, error) {
	_, err := q.q.Exec(ctx, `insert into tasks as t (id, verb, settings, state, files, started, finished) overriding system value
		values ($1, 'files', '{}', 'done', jsonb_build_array($2::jsonb), now(), now())
		on conflict (id) do update set files = jsonb_path_query_array(t.files, '$[*] ? (@.name != $name)', jsonb_build_object('name', $2::jsonb->'name')) || excluded.files`, id, f)
	if err != nil {
		return Task{}, pgerr.Wrap("keep the file", err)
	}
	return q.Task(ctx, id)
}

// TasksAmong says which of these numbers are of tasks that are there.
func (q queries) TasksAmong(ctx context.Context, ids []string) (map[string]bool, error) {
	rows, _ := q.q.Query(ctx, `select id::text from tasks where id::text = any($1)`, ids) // CollectRows returns the error
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	there := make(map[string]bool, len(found))
	for _, id := range found {
		there[id] = true
	}
	return there, pgerr.Wrap("look for tasks", err)
}
