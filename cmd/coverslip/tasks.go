package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"

	"coverslip"
	"coverslip/api"
	"coverslip/storage"
	"coverslip/storage/blob"
	"coverslip/storage/queue"
)

// tasks fills the API's door of that name.
type tasks struct {
	db     *storage.DB
	queue  *queue.Queue
	blobs  blob.Store
	places registrar
	nodes  map[string]*kong.Node // by path
	verbs  map[string]taskVerb   // by name
}

func newTasks(p *platform, q *queue.Queue, places registrar) (*tasks, error) {
	k, err := grammar()
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "read the command line's grammar", Err: err}
	}
	t := &tasks{p.DB, q, p.Blobs, places, map[string]*kong.Node{}, map[string]taskVerb{}}
	for _, v := range taskVerbs {
		t.nodes[v.path], t.verbs[v.name()] = nodeOf(k, v.path), v
	}
	return t, nil
}

// Verbs implements api.Tasks.
func (t *tasks) Verbs() (all []api.Verb) {
	for _, v := range taskVerbs {
		node := t.nodes[v.path]
		verb := api.Verb{Name: v.name(), Summary: strings.TrimSuffix(node.Help, "."), Help: "What `coverslip " + v.path + "` does; its settings are that verb's.", Example: v.example}
		for _, s := range v.settings(node) {
			verb.Settings = append(verb.Settings, s.Setting)
		}
		all = append(all, verb)
	}
	return all
}

// Ask implements api.Tasks.
func (t *tasks) Ask(ctx context.Context, name string, settings map[string]any) (api.Task, error) {
	v := t.verbs[name]
	dir, err := os.MkdirTemp("", "coverslip-task-")
	if err != nil {
		return api.Task{}, diskError("look at the settings", os.TempDir(), err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for setting, value := range settings {
		of, _ := value.(map[string]any)
		if value == nil || slices.Contains(slices.Collect(maps.Values(of)), nil) {
			return api.Task{}, &coverslip.Error{Kind: coverslip.Invalid, Op: "read the settings", Path: setting, Err: errors.New("it is null"), Hint: "leave it out"}
		}
	}
	if err := t.places.open(v, settings); err != nil {
		return api.Task{}, err
	}
	args, err := t.arguments(ctx, v, settings, dir, false)
	if err != nil {
		return api.Task{}, err
	}
	k, err := grammar()
	if err != nil {
		return api.Task{}, err
	}
	if _, err := parse(k, args); err != nil {
		return api.Task{}, &coverslip.Error{Kind: coverslip.Invalid, Op: "ask for " + name, Err: errors.New(strings.ReplaceAll(err.Error(), dir+"/", "")), Hint: "the contract at /openapi.json lists its settings; coverslip " + v.path + " --help explains them"}
	}
	raw, err := json.Marshal(settings)
	if err != nil {
		return api.Task{}, err
	}
	return t.shown(t.db.AddTask(ctx, v.path, raw, func(tx *storage.Tx, id int64) (int64, error) {
		queued, err := t.queue.Enqueue(ctx, tx.Pgx(), queue.Job{Task: &queue.Task{ID: id, Verb: v.path}})
		if err != nil {
			return 0, err
		}
		return queued[0].ID, nil
	}))
}

// open completes the places among settings, or refuses those that clients may not read.
func (r registrar) open(v taskVerb, settings map[string]any) error {
	for _, name := range v.places {
		if place, ok := settings[name].(string); ok {
			allowed, err := r.allowed(place)
			if err != nil {
				return err
			}
			settings[name] = allowed
		}
	}
	return nil
}

// arguments are the command line of a task; dir is where its files are put and written. Without fetch, files
// of other tasks are only looked for.
func (t *tasks) arguments(ctx context.Context, v taskVerb, settings map[string]any, dir string, fetch bool) ([]string, error) {
	args := append(strings.Fields(v.path), "--json")
	if v.prints != "" {
		args = args[:len(args)-1]
	}
	var positional [][]string
	for _, s := range v.settings(t.nodes[v.path]) {
		value, there := settings[s.Name]
		if !there || value == nil || s.flag == "" {
			continue
		}
		values, many := value.([]any)
		if !many {
			values = []any{value}
		}
		var words []string
		for i, one := range values {
			if s.Type == "file" {
				of, _ := one.(map[string]any)
				path := filepath.Join(dir, fmt.Sprintf("%s-%d", s.flag, i))
				at, err := t.file(ctx, s.Name, of, path, fetch)
				if err != nil {
					return nil, err
				}
				one = at
			}
			words = append(words, wordOf(one))
		}
		if s.argument > 0 {
			for len(positional) < s.argument {
				positional = append(positional, nil)
			}
			positional[s.argument-1] = words
			continue
		}
		for _, w := range words {
			args = append(args, "--"+s.flag+"="+w)
		}
	}
	if v.writes != nil {
		out := filepath.Join(dir, "out")
		if err := os.MkdirAll(out, 0o700); err != nil {
			return nil, diskError("make the task's folder", out, err)
		}
		args = append(args, v.writes(out, settings)...)
	}
	return append(append(args, "--"), slices.Concat(positional...)...), nil
}

// wordOf is a JSON value on the command line.
func wordOf(v any) string {
	if f, ok := v.(float64); ok {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

// file puts what a setting says of a file at path or, with others, below it, and returns where it is.
func (t *tasks) file(ctx context.Context, setting string, of map[string]any, path string, fetch bool) (string, error) {
	text, isText := of["text"].(string)
	id, isTask := of["task"].(float64)
	name, _ := of["name"].(string)
	if isText == isTask || isText && name != "" {
		return "", &coverslip.Error{Kind: coverslip.Invalid, Op: "read the settings", Path: setting, Err: errors.New("a file is given by its text, or by the task that wrote it and its name"),
			Hint: `write {"text": "…"}, or {"task": 3, "name": "classifier.safetensors"}`}
	}
	if isText {
		return path, write(path, strings.NewReader(text))
	}
	kept, err := t.db.Task(ctx, int64(id))
	if err != nil {
		return "", err
	}
	if name != "" && !kept.Has(name) {
		return "", noFile(kept.ID, name)
	}
	for _, f := range kept.Files {
		// Files that were sent together may belong together, as weights lie beside an ONNX file.
		if name != "" && f.Name != name && kept.Verb != filesVerb {
			continue
		}
		content := io.NopCloser(strings.NewReader(""))
		if fetch {
			if content, err = t.File(ctx, kept.ID, f.Name); err != nil {
				return "", err
			}
		}
		err := write(filepath.Join(path, filepath.FromSlash(f.Name)), content)
		if err = errors.Join(err, content.Close()); err != nil {
			return "", err
		}
	}
	return filepath.Join(path, filepath.FromSlash(name)), nil
}

// filesVerb is that of tasks which hold files that were sent.
const filesVerb = "files"

func noFile(id int64, name string) error {
	return &coverslip.Error{Kind: coverslip.NotFound, Op: "open a file of the task", Path: fmt.Sprintf("task %d", id), Err: fmt.Errorf("it has no file %.80q", name), Hint: fmt.Sprintf("GET /v1/tasks/%d lists its files", id)}
}

func write(path string, content io.Reader) error {
	const op = "write the task's file"
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return diskError(op, path, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return diskError(op, path, err)
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Close()); err != nil {
		return diskError(op, path, err)
	}
	return nil
}

// Keep implements api.Tasks.
func (t *tasks) Keep(ctx context.Context, beside int64, name string, size int64, body io.Reader) (api.Task, error) {
	id := beside
	if beside > 0 {
		kept, err := t.db.Task(ctx, beside)
		if err == nil && kept.Verb != filesVerb {
			err = &coverslip.Error{Kind: coverslip.Conflict, Op: "keep the file", Path: fmt.Sprintf("task %d", beside), Err: errors.New("its files are what it wrote"), Hint: "leave out task, and the file gets one of its own"}
		}
		if err != nil {
			return api.Task{}, err
		}
	} else {
		var err error
		if id, err = t.db.NextTask(ctx); err != nil {
			return api.Task{}, err
		}
	}
	if err := t.blobs.Put(ctx, taskKey(id, name), body, size); err != nil {
		return api.Task{}, err
	}
	return t.shown(t.db.PutTaskFile(ctx, id, storage.TaskFile{Name: name, Bytes: size}))
}

func (t *tasks) shown(s storage.Task, err error) (api.Task, error) {
	if err != nil {
		return api.Task{}, err
	}
	out := api.Task{ID: s.ID, Verb: strings.ReplaceAll(s.Verb, " ", "-"), Job: s.Job, State: s.State, Progress: s.Progress, Error: s.Error, Created: s.Created.UTC(), Started: s.Started, Finished: s.Finished}
	for _, f := range s.Files {
		out.Files = append(out.Files, api.TaskFile(f))
	}
	return out, errors.Join(json.Unmarshal(s.Settings, &out.Settings), json.Unmarshal(s.Result, &out.Result))
}

// Task implements api.Tasks.
func (t *tasks) Task(ctx context.Context, id int64) (api.Task, error) {
	return t.shown(t.db.Task(ctx, id))
}

// Tasks implements api.Tasks.
func (t *tasks) Tasks(ctx context.Context, q api.TaskQuery) (out []api.Task, err error) {
	found, err := t.db.Tasks(ctx, storage.TaskFilter(q))
	for _, s := range found {
		one, err := t.shown(s, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, err
}

// Cancel implements api.Tasks.
func (t *tasks) Cancel(ctx context.Context, id int64) (api.Task, error) {
	s, err := t.db.Task(ctx, id)
	if err != nil || s.Finished != nil {
		return t.shown(s, err)
	}
	if _, err := t.queue.Cancel(ctx, s.Job); err != nil && coverslip.KindOf(err) != coverslip.NotFound {
		return api.Task{}, err
	}
	return t.Task(ctx, id)
}

// Remove implements api.Tasks. Files go after the row, so that none is named that is not there; what is left behind
// where that is interrupted is swept.
func (t *tasks) Remove(ctx context.Context, id int64) error {
	gone, err := t.db.RemoveTask(ctx, id)
	if err != nil {
		return err
	}
	for _, f := range gone.Files {
		if err := t.blobs.Delete(ctx, taskKey(id, f.Name)); err != nil {
			return err
		}
	}
	return nil
}

// File implements api.Tasks.
func (t *tasks) File(ctx context.Context, id int64, name string) (io.ReadCloser, error) {
	s, err := t.db.Task(ctx, id)
	if err != nil {
		return nil, err
	}
	if !s.Has(name) {
		return nil, noFile(id, name)
	}
	b, err := t.blobs.Open(ctx, taskKey(id, name))
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(b, 0, b.Size()), b}, nil
}

func taskKey(id int64, name string) string { return fmt.Sprintf("tasks/%d/%s", id, name) }
