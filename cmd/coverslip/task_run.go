package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/queue"
)

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
