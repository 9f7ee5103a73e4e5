package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"coverslip"
	"coverslip/api"
	"coverslip/storage"
	"coverslip/storage/blob"
	"coverslip/storage/queue"
)

// A task is a verb of the command line that somebody asks for over the API. Its settings are the verb's flags
// and arguments; a worker runs this program with them, as a process of its own, and keeps what it prints and
// writes.

// taskVerb is one that may be asked for.
type taskVerb struct {
	path    string                                             // as on the command line
	files   []string                                           // flags and arguments that are files to read
	leave   []string                                           // flags that are nothing to others
	places  []string                                           // flags and arguments that are places, which a server opens to clients, or not
	writes  func(dir string, settings map[string]any) []string // what tells it to write there
	prints  string                                             // the file that it prints, where that is no JSON
	example map[string]any
}

func (v taskVerb) name() string { return strings.ReplaceAll(v.path, " ", "-") }

// into tells a verb to write its page and tables.
func into(name string) func(string, map[string]any) []string {
	return func(dir string, _ map[string]any) []string { return []string{"--out=" + filepath.Join(dir, name)} }
}

var taskVerbs = []taskVerb{
	{path: "encode", leave: []string{"wait", "augment"}, example: map[string]any{"cohort": "brca", "budget": "auto"}},
	{path: "import s3", places: []string{"prefix"}, example: map[string]any{"prefix": "s3://slides/brca/", "cohort": "brca"}},
	{path: "cohorts export", prints: "cohort.csv", example: map[string]any{"name": "brca"}},
	{path: "models add", files: []string{"file", "spec"}, example: map[string]any{"kind": "encoder", "file": map[string]any{"task": 3.0, "name": "uni.onnx"}, "spec": map[string]any{"text": "name: uni\n…"}}},
	{path: "import bags", files: []string{"dir"}, example: map[string]any{"dir": map[string]any{"task": 3.0}, "format": "trident", "cohort": "brca"}},
	{path: "models show", example: map[string]any{"name": "uni"}},
	{path: "models verify", example: map[string]any{"name": []any{"uni"}}},
	{path: "pretrain", files: []string{"settings"}, leave: []string{"print-settings", "resume"}, example: map[string]any{"cohort": "brca", "out": "brca-ssl", "epochs": 100.0}},
	{path: "embed", example: map[string]any{"cohort": "brca", "aggregator": "brca-ssl"}},
	{path: "export", writes: exportInto, example: map[string]any{"what": "bags", "cohort": "brca"}},
	{path: "probe", files: []string{"splits"}, writes: into(""), example: map[string]any{"cohort": "brca", "label": "subtype"}},
	{path: "runs show", leave: []string{"splits"}, writes: into(""), example: map[string]any{"id": "3f2a91"}},
	{path: "mil train", files: []string{"splits"}, leave: []string{"resume"}, writes: milTrainInto, example: map[string]any{"cohort": "brca", "label": "subtype", "model": []any{"gated"}, "save": true}},
	{path: "mil predict", files: []string{"classifier"}, writes: into("predictions.csv"), example: map[string]any{"classifier": map[string]any{"task": 7.0, "name": "classifier.safetensors"}, "cohort": "brca"}},
	{path: "mil heatmap", files: []string{"model", "values"}, writes: into(""), example: map[string]any{"model": map[string]any{"task": 7.0, "name": "classifier.safetensors"}, "slide": "ed92d5"}},
	{path: "study run", files: []string{"file"}, places: []string{"tiles"}, leave: []string{"jobs"}, example: map[string]any{"file": map[string]any{"text": "name: tiles\n…"}, "quick": true}},
	{path: "study show", example: map[string]any{"name": "tiles"}},
	{path: "study report", writes: into(""), example: map[string]any{"name": "tiles"}},
	{path: "gate fit", example: map[string]any{"cohort": "brca", "out": "usual"}},
	{path: "gate check", example: map[string]any{"name": "usual", "cohort": "new"}},
	{path: "splits make", files: []string{"file"}, writes: into("splits"), example: map[string]any{"file": map[string]any{"text": "slide_id,case_id,subtype\n…"}, "label": "subtype"}},
	{path: "splits audit", files: []string{"file", "slides"}, example: map[string]any{"file": map[string]any{"text": "slide_id,case_id,fold\n…"}}},
}

func exportInto(dir string, settings map[string]any) []string {
	format, _ := settings["format"].(string)
	if settings["what"] != "bags" && format != "h5" {
		dir = filepath.Join(dir, "embeddings."+cmp.Or(format, "npz"))
	}
	return []string{"--out=" + dir}
}

func milTrainInto(dir string, settings map[string]any) []string {
	args := []string{"--out=" + dir}
	if settings["save"] == true {
		args = append(args, "--save="+filepath.Join(dir, "classifier.safetensors"))
	}
	return args
}

// taskSetting is a flag or an argument of a verb.
type taskSetting struct {
	api.Setting
	argument int // from 1; 0 is a flag
	flag     string
}

// notForTasks are flags that every verb has, or that say what is this server's affair.
var notForTasks = []string{"help", "json", "verbose", "log-format", "version", "data", "database-url", "blob-url", "provider", "workers"}

// settings are those of the verb, as the command line defines them.
func (v taskVerb) settings(node *kong.Node) (all []taskSetting) {
	add := func(value *kong.Value, argument int) {
		name := value.Name
		isFile, isPlace := slices.Contains(v.files, name), slices.Contains(v.places, name)
		// A path that is no file to send, and no place, is where a verb writes.
		aPath := value.Tag.Type == "path" || value.Tag.Type == "existingfile" || name == "out" && (v.writes != nil || v.prints != "")
		if slices.Contains(notForTasks, name) || slices.Contains(v.leave, name) || aPath && !isFile && !isPlace {
			return
		}
		s := taskSetting{api.Setting{Name: strings.ReplaceAll(name, "-", "_"), Doc: value.Help, Required: value.Required, Default: value.Default}, argument, name}
		of := value.Target.Type()
		if s.Many = of.Kind() == reflect.Slice; s.Many {
			of = of.Elem()
		}
		if of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		switch of.Kind() {
		case reflect.Bool:
			s.Type = "boolean"
		case reflect.Int, reflect.Int64, reflect.Uint64:
			s.Type = "integer"
			if of == reflect.TypeFor[time.Duration]() {
				s.Type = "string"
			}
		case reflect.Float64:
			s.Type = "number"
		default:
			s.Type = "string"
		}
		if isFile {
			s.Type, s.Default = "file", ""
		}
		if value.Enum != "" {
			s.Enum = value.EnumSlice()
		}
		all = append(all, s)
	}
	for i, p := range node.Positional {
		add(p, i+1)
	}
	for _, group := range node.AllFlags(false) {
		for _, f := range group {
			add(f.Value, 0)
		}
	}
	if v.path == "mil train" {
		all = append(all, taskSetting{api.Setting{Name: "save", Type: "boolean", Doc: "Train the first model on all labelled slides, too, and keep it as the file classifier.safetensors, for mil-predict and mil-heatmap."}, 0, ""})
	}
	slices.SortStableFunc(all, func(a, b taskSetting) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// grammar is the command line.
func grammar() (*kong.Kong, error) {
	return kong.New(&cli{}, kong.Name("coverslip"), words, kong.Writers(io.Discard, io.Discard), kong.Exit(func(int) {}))
}

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

// nodeOf is a verb that is there.
func nodeOf(k *kong.Kong, path string) *kong.Node {
	node := k.Model.Node
	for word := range strings.FieldsSeq(path) {
		node = node.Children[slices.IndexFunc(node.Children, func(n *kong.Node) bool { return n.Name == word })]
	}
	return node
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

// task does one as a job of the queue.
func (w *worker) task(ctx context.Context, of queue.Task, job int64) error {
	t, err := newTasks(w.p, w.queue, registrar{})
	if err != nil {
		return err
	}
	kept, err := w.p.DB.Task(ctx, of.ID)
	if err != nil {
		return err
	}
	var settings map[string]any
	if err := json.Unmarshal(kept.Settings, &settings); err != nil {
		return err
	}
	v, there := t.verbs[strings.ReplaceAll(kept.Verb, " ", "-")]
	if !there {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "do the task", Path: kept.Verb, Err: errors.New("this worker does not know the verb"), Hint: "run workers of the server's version"}
	}
	dir, err := os.MkdirTemp("", "coverslip-task-")
	if err != nil {
		return diskError("make the task's folder", os.TempDir(), err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	args, err := t.arguments(ctx, v, settings, dir, true)
	if err != nil {
		return err
	}
	printed, failure, err := w.p.runTask(ctx, args, func(line string) { _ = w.p.DB.SetTaskProgress(ctx, of.ID, strings.ReplaceAll(line, dir+"/", "")) })
	if err != nil {
		return err
	}
	out := filepath.Join(dir, "out")
	if v.prints != "" && failure == "" {
		if err := write(filepath.Join(out, v.prints), bytes.NewReader(printed)); err != nil {
			return err
		}
		printed = nil
	}
	files, err := t.keep(ctx, of.ID, out) // also of one that failed for some slides
	if err != nil {
		return err
	}
	hide := func(text string) string {
		return strings.ReplaceAll(strings.ReplaceAll(text, out+"/", ""), dir+"/", "")
	}
	return w.endTask(ctx, job, of.ID, []byte(hide(string(printed))), files, hide(failure))
}

// endTask writes down how a task ended, unless another worker has taken it over.
func (w *worker) endTask(ctx context.Context, job, id int64, printed []byte, files []storage.TaskFile, failure string) error {
	result, err := json.Marshal(jsonLines(printed))
	if err != nil {
		return err
	}
	return w.p.DB.InTx(ctx, func(tx *storage.Tx) error {
		if err := w.queue.Hold(ctx, tx.Pgx(), job); err != nil {
			return err
		}
		return tx.EndTask(ctx, id, result, files, failure)
	})
}

// jsonLines are the values of lines; what is no JSON is text.
func jsonLines(printed []byte) []json.RawMessage {
	all := []json.RawMessage{}
	for line := range bytes.Lines(printed) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if !json.Valid(line) {
			line, _ = json.Marshal(string(line)) // a string can always be written
		}
		all = append(all, json.RawMessage(line))
	}
	return all
}

// keep puts the files below dir into the store.
func (t *tasks) keep(ctx context.Context, id int64, dir string) (files []storage.TaskFile, err error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		f, err := os.Open(path) //nolint:gosec // in a folder that this process made for the task
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := t.blobs.Put(ctx, taskKey(id, name), f, info.Size()); err != nil {
			return err
		}
		files = append(files, storage.TaskFile{Name: name, Bytes: info.Size()})
		return nil
	})
	return files, coverslip.Doing("keep the task's files", err)
}

// What a task prints and tells is kept up to so many bytes.
const (
	mostPrinted  = 64 << 20
	mostTold     = 1 << 20
	taskPatience = 20 * time.Second // for a verb that is told to stop
	tellEvery    = time.Second
)

// runTask runs this program with args over this platform's database and store. failure is the reason a verb gave;
// err is why it could not be run, or was stopped.
func (p *platform) runTask(ctx context.Context, args []string, tell func(line string)) (printed []byte, failure string, err error) {
	const op = "run the task"
	self, err := os.Executable()
	if err != nil {
		return nil, "", &coverslip.Error{Kind: coverslip.Environment, Op: op, Err: err}
	}
	cmd := exec.CommandContext(ctx, self, args...) //nolint:gosec // this program, with flags that were checked
	cmd.Env = append(os.Environ(), "COVERSLIP_DATA="+p.dir, "BLOB_URL="+p.blobs, "DATABASE_URL="+p.url, "COVERSLIP_LOG_FORMAT=text")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // it does not outlive the worker
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = taskPatience
	out := &atMost{most: mostPrinted}
	cmd.Stdout = out
	told := &teller{tell: tell}
	cmd.Stderr = told
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, "", &coverslip.Error{Kind: coverslip.Canceled, Op: op, Err: context.Cause(ctx)}
	case errors.As(err, &exit):
		return out.Bytes(), cmp.Or(told.last(), "it failed for some; the result says for which"), nil
	case err != nil:
		return nil, "", &coverslip.Error{Kind: coverslip.Environment, Op: op, Err: err}
	case out.cut:
		return nil, fmt.Sprintf("it printed more than %d MB", mostPrinted>>20), nil
	}
	return out.Bytes(), "", nil
}

// atMost is a buffer that keeps no more than so many bytes.
type atMost struct {
	bytes.Buffer
	most int
	cut  bool
}

// Write takes everything, and keeps what fits.
func (b *atMost) Write(p []byte) (int, error) {
	if room := b.most - b.Len(); len(p) > room {
		b.cut = true
		b.Buffer.Write(p[:room])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}

// teller passes on the last of lines, now and then.
type teller struct {
	tell func(string)

	mu   sync.Mutex
	rest []byte // a line that has not ended
	line string
	told time.Time
}

// Write takes part of a stream of lines.
func (t *teller) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest = append(t.rest, p...)
	end := bytes.LastIndexByte(t.rest, '\n') + 1
	for line := range bytes.Lines(t.rest[:end]) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			t.line = string(line)
		}
	}
	if t.rest = t.rest[end:]; len(t.rest) > mostTold {
		t.rest = nil
	}
	if now := time.Now(); t.line != "" && now.Sub(t.told) > tellEvery {
		t.told = now
		t.tell(t.line)
	}
	return len(p), nil
}

// last is the last line.
func (t *teller) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return cmp.Or(strings.TrimSpace(string(t.rest)), t.line)
}
