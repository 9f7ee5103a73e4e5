package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// Tasks are verbs of the command line that workers do.
type Tasks interface {
	// Verbs are those that may be asked for.
	Verbs() []Verb
	// Ask queues one. Settings that the verb does not take as they are, are Invalid; a file of a task that is
	// not there is NotFound.
	Ask(ctx context.Context, verb string, settings map[string]any) (Task, error)
	// Task returns one, or NotFound.
	Task(ctx context.Context, id int64) (Task, error)
	// Tasks returns at most q.Limit, the newest first.
	Tasks(ctx context.Context, q TaskQuery) ([]Task, error)
	// Cancel ends one: at once if it waits, else when its worker notices.
	Cancel(ctx context.Context, id int64) (Task, error)
	// Remove forgets one that has ended, with its files. One that has not is a Conflict.
	Remove(ctx context.Context, id int64) error
	// File opens a file of a task.
	File(ctx context.Context, id int64, name string) (io.ReadCloser, error)
	// Keep takes a file for tasks to read, of so many bytes, as one of a task of the verb `files` that is done: a new
	// one, or that of the number beside, if it is not 0.
	Keep(ctx context.Context, beside int64, name string, size int64, body io.Reader) (Task, error)
}

// Verb is what can be asked for.
type Verb struct {
	Name     string // as in its address: mil-train
	Summary  string // one sentence
	Help     string
	Settings []Setting
	Example  map[string]any
}

// Setting is one of a verb.
type Setting struct {
	Name     string // as in JSON
	Doc      string
	Type     string // string, integer, number, boolean, or file
	Many     bool   // an array of those
	Required bool
	Enum     []string
	Default  string // as it is written on the command line
}

// Task is one that was asked for.
type Task struct {
	ID       int64
	Verb     string // as Verb.Name
	Settings map[string]any
	Job      int64
	State    string // queued, running, done, failed, cancelled
	Progress string
	Result   []json.RawMessage
	Error    string
	Files    []TaskFile
	Created  time.Time
	Started  *time.Time
	Finished *time.Time
}

// TaskFile is one that a task wrote.
type TaskFile struct {
	Name  string
	Bytes int64
}

// TaskQuery asks for one page of tasks.
type TaskQuery struct {
	State  string // only in this state; empty for all
	Before int64  // only with smaller numbers; 0 for the first page
	Limit  int    // at most so many
}

const (
	maxTaskSettings = 8 << 20 // bytes; settings may hold tables
	filesPath       = "/v1/tasks/files"
)

func (s *server) taskRoutes() {
	op := func(method, path, id, summary, description string) huma.Operation {
		return huma.Operation{Method: method, Path: path, OperationID: id, Tags: []string{"tasks"}, Summary: summary, Description: description}
	}
	find := slices.Concat([]coverslip.Kind{coverslip.NotFound}, stumbles)
	const one = "/v1/tasks/{task}"
	for _, v := range s.cfg.Tasks.Verbs() {
		ask := op(http.MethodPost, "/v1/tasks/"+v.Name, "task-"+v.Name, v.Summary, v.Help)
		ask.DefaultStatus, ask.MaxBodyBytes = http.StatusAccepted, maxTaskSettings
		ask.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: v.schema(), Example: v.Example}}}
		example := exampleTask
		example.Verb, example.Settings, example.State, example.Progress, example.Result, example.Files, example.Started, example.Finished = v.Name, v.Example, "queued", "", nil, nil, nil, nil
		register(s.api, ask, example, slices.Concat(find, []coverslip.Kind{coverslip.TooLarge, coverslip.Conflict}), func(ctx context.Context, in *askInput) (*askOutput, error) {
			t, err := s.cfg.Tasks.Ask(ctx, v.Name, in.Body)
			return &askOutput{Location: "/v1/tasks/" + strconv.FormatInt(t.ID, 10), Body: viewTask(t)}, err
		})
	}
	register(s.api, op(http.MethodGet, "/v1/tasks", "list-tasks", "List tasks", "The newest first, without what they printed."), taskList{Tasks: []taskView{exampleTask}}, stumbles, s.listTasks)
	register(s.api, op(http.MethodGet, one, "show-task", "Show a task", "With what it printed, each line of the verb's JSON as one member of `result`, and its files. With `wait` the answer comes when it has ended, or after so many seconds."), exampleTask, find, s.showTask)
	register(s.api, op(http.MethodPost, one+"/cancel", "cancel-task", "End a task", "At once if it waits, else when its worker notices. One that has ended is left alone."), exampleTask, find, s.cancelTask)
	remove := op(http.MethodDelete, one, "remove-task", "Forget a task that has ended", "With its files. What it kept elsewhere (embeddings, models, runs) stays.")
	remove.DefaultStatus = http.StatusNoContent
	register(s.api, remove, nil, slices.Concat(find, []coverslip.Kind{coverslip.Conflict}), s.removeTask)
	send := op(http.MethodPost, filesPath, "send-file", "Send a file for tasks to read",
		"An ONNX file for models-add, say, or features for import-bags. The body is the file. It becomes a file of a task that is done, by whose number others name it; `task` puts it beside those of an earlier one.")
	send.DefaultStatus = http.StatusCreated
	send.RequestBody = &huma.RequestBody{Required: true, Description: "The file as it is.", Content: map[string]*huma.MediaType{octets: {Schema: &huma.Schema{Type: "string", Format: "binary"}}}}
	sent := exampleTask
	sent.Verb, sent.Settings, sent.Progress, sent.Job, sent.Result, sent.Files = "files", map[string]any{}, "", 0, nil, []taskFileView{{"uni.onnx", 1_213_400_000, fileAddress(3, "uni.onnx")}}
	register(s.api, send, sent, slices.Concat(find, []coverslip.Kind{coverslip.Conflict, coverslip.Unsupported, coverslip.TooLarge, coverslip.Full}), s.sendFile)
	file := op(http.MethodGet, one+"/file", "task-file", "Get a file that a task wrote", "")
	file.Responses = map[string]*huma.Response{"200": {Description: "The file.", Content: map[string]*huma.MediaType{"*/*": picture}}}
	register(s.api, file, nil, find, s.taskFile)
}

// schema is that of a verb's settings.
func (v Verb) schema() *huma.Schema {
	s := &huma.Schema{Type: huma.TypeObject, AdditionalProperties: false, Properties: map[string]*huma.Schema{}}
	for _, setting := range v.Settings {
		p := &huma.Schema{Type: setting.Type, MaxLength: new(maxText)}
		switch setting.Type {
		case "file":
			p = fileSchema()
		case huma.TypeString:
			for _, e := range setting.Enum {
				p.Enum = append(p.Enum, e)
			}
		default:
			p.MaxLength = nil
		}
		if setting.Many {
			p = &huma.Schema{Type: huma.TypeArray, Items: p, MaxItems: new(1000)}
		} else {
			p.Default = defaultOf(setting)
		}
		p.Description = setting.Doc
		s.Properties[setting.Name] = p
		if setting.Required {
			s.Required = append(s.Required, setting.Name)
		}
	}
	slices.Sort(s.Required)
	return s
}

// maxText is the length of a string among settings.
const maxText = 2000

// defaultOf is the value that a setting has where it is left out, as JSON has it; nil where that is said in words.
func defaultOf(s Setting) any {
	switch {
	case s.Default == "":
	case s.Type == huma.TypeString:
		return s.Default
	case s.Type == huma.TypeInteger:
		if v, err := strconv.ParseInt(s.Default, 10, 64); err == nil {
			return v
		}
	case s.Type == huma.TypeNumber:
		if v, err := strconv.ParseFloat(s.Default, 64); err == nil {
			return v
		}
	}
	return nil
}

// fileSchema is that of a file among settings: its text, or one that another task wrote.
func fileSchema() *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: false, Properties: map[string]*huma.Schema{
		"text": {Type: huma.TypeString, Description: "What stands in it"},
		"task": {Type: huma.TypeInteger, Minimum: new(1.0), Description: "Instead: the number of a task that wrote it"},
		"name": {Type: huma.TypeString, MaxLength: new(maxText), Description: "With task: which of its files; without it, all of them as a folder"},
	}}
}

type askInput struct {
	Body map[string]any
}

type askOutput struct {
	Location string `header:"Location" doc:"Where to ask how far it is"`
	Body     taskView
}

type taskView struct {
	ID       int64             `json:"id" doc:"The task's number"`
	Verb     string            `json:"verb" doc:"What was asked for"`
	Settings map[string]any    `json:"settings" doc:"With what"`
	Job      int64             `json:"job" doc:"Number of the job that does it"`
	State    string            `json:"state" enum:"queued,running,done,failed,cancelled" doc:"Where it stands"`
	Progress string            `json:"progress,omitempty" doc:"The last line that it told"`
	Result   []json.RawMessage `json:"result,omitempty" doc:"What it printed, as coverslip --json does"`
	Error    string            `json:"error,omitempty" doc:"Why it failed"`
	Files    []taskFileView    `json:"files,omitempty" doc:"What it wrote"`
	Created  time.Time         `json:"created" doc:"When it was asked for"`
	Started  *time.Time        `json:"started,omitempty" doc:"When a worker took it"`
	Finished *time.Time        `json:"finished,omitempty" doc:"When it ended"`
}

type taskFileView struct {
	Name  string `json:"name" doc:"Its name"`
	Bytes int64  `json:"bytes" doc:"Its length"`
	URL   string `json:"url" doc:"Where it is"`
}

func viewTask(t Task) taskView {
	v := taskView{ID: t.ID, Verb: t.Verb, Settings: t.Settings, Job: t.Job, State: t.State, Progress: t.Progress, Result: t.Result, Error: t.Error, Created: t.Created, Started: t.Started, Finished: t.Finished}
	for _, f := range t.Files {
		v.Files = append(v.Files, taskFileView{f.Name, f.Bytes, fileAddress(t.ID, f.Name)})
	}
	return v
}

func fileAddress(id int64, name string) string {
	return "/v1/tasks/" + strconv.FormatInt(id, 10) + "/file?name=" + url.QueryEscape(name)
}

type tasksInput struct {
	State  string `query:"state" doc:"Only tasks in this state" enum:"queued,running,done,failed,cancelled"`
	Limit  int    `query:"limit" doc:"Tasks on a page" minimum:"1" maximum:"1000" default:"100"`
	Cursor string `query:"cursor" doc:"The next member of the page before" pattern:"^[0-9]{1,18}$"`
}

type taskList struct {
	Tasks []taskView `json:"tasks" nullable:"false" doc:"One page"`
	Next  string     `json:"next,omitempty" doc:"Cursor of the next page; absent on the last"`
}

type taskListOutput struct{ Body taskList }

func (s *server) listTasks(ctx context.Context, in *tasksInput) (*taskListOutput, error) {
	before, _ := strconv.ParseInt(in.Cursor, 10, 64) // the pattern was checked
	found, err := s.cfg.Tasks.Tasks(ctx, TaskQuery{State: in.State, Before: before, Limit: in.Limit + 1})
	if err != nil {
		return nil, err
	}
	out := &taskListOutput{}
	if len(found) > in.Limit {
		found = found[:in.Limit]
		out.Body.Next = strconv.FormatInt(found[in.Limit-1].ID, 10)
	}
	out.Body.Tasks = each(found, func(t Task) taskView {
		t.Result, t.Settings = nil, withoutFiles(t.Settings)
		return viewTask(t)
	})
	return out, nil
}

// withoutFiles leaves out the text of files, which a list would repeat.
func withoutFiles(settings map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range settings {
		if f, ok := v.(map[string]any); ok && f["text"] != nil {
			v = map[string]any{}
		}
		out[k] = v
	}
	return out
}

// OneTask is the number in the address of every route below a task.
type OneTask struct {
	ID int64 `path:"task" doc:"The task's number" minimum:"1" example:"3"`
}

type showTaskInput struct {
	OneTask
	Wait int `query:"wait" minimum:"0" maximum:"9" doc:"Seconds to wait for its end"`
}

type taskOutput struct{ Body taskView }

func (s *server) showTask(ctx context.Context, in *showTaskInput) (*taskOutput, error) {
	end := time.NewTimer(time.Duration(in.Wait) * time.Second)
	defer end.Stop()
	look := time.NewTicker(taskLook)
	defer look.Stop()
	for {
		t, err := s.cfg.Tasks.Task(ctx, in.ID)
		if err != nil || t.Finished != nil {
			return &taskOutput{viewTask(t)}, err
		}
		select {
		case <-look.C:
			continue
		case <-end.C:
		case <-s.cfg.Stopping:
		case <-ctx.Done():
		}
		return &taskOutput{viewTask(t)}, nil
	}
}

// taskLook is how often a task that somebody waits for is looked at.
const taskLook = 250 * time.Millisecond

func (s *server) cancelTask(ctx context.Context, in *OneTask) (*taskOutput, error) {
	t, err := s.cfg.Tasks.Cancel(ctx, in.ID)
	return &taskOutput{viewTask(t)}, err
}

func (s *server) removeTask(ctx context.Context, in *OneTask) (*struct{}, error) {
	return nil, s.cfg.Tasks.Remove(ctx, in.ID)
}

type sendFileInput struct {
	Name string `query:"name" required:"true" maxLength:"1024" doc:"What to call it" example:"uni.onnx"`
	Task int64  `query:"task" minimum:"1" doc:"Put it beside the files of this task"`
	octetsInput
}

func (s *server) sendFile(ctx context.Context, in *sendFileInput) (*askOutput, error) {
	const remedy = "add ?name=FILE with a plain file name"
	name, err := plainName(in.Name, remedy)
	if err == nil && strings.HasPrefix(name, ".") {
		err = &coverslip.Error{Kind: coverslip.Invalid, Op: "receive the file", Path: name, Err: errors.New("its name begins with a dot"), Hint: remedy}
	}
	if err == nil {
		err = in.check(s.cfg.MaxUpload)
	}
	if err == nil && in.request.ContentLength < 0 {
		err = &coverslip.Error{Kind: coverslip.Invalid, Op: "receive the file", Err: errors.New("nobody said how long it is"), Hint: "send Content-Length"}
	}
	if err != nil {
		return nil, coverslip.At(name, err)
	}
	body := &uploadBody{r: http.MaxBytesReader(nil, in.request.Body, s.cfg.MaxUpload), name: name, received: s.metrics.uploaded}
	t, err := s.cfg.Tasks.Keep(ctx, in.Task, name, in.request.ContentLength, body)
	if body.err != nil {
		err = body.err
	}
	return &askOutput{Location: "/v1/tasks/" + strconv.FormatInt(t.ID, 10), Body: viewTask(t)}, err
}

type taskFileInput struct {
	OneTask
	Name string `query:"name" required:"true" minLength:"1" maxLength:"2000" doc:"One of its files" example:"report.html"`
}

func (s *server) taskFile(ctx context.Context, in *taskFileInput) (*huma.StreamResponse, error) {
	r, err := s.cfg.Tasks.File(ctx, in.ID, in.Name)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		defer r.Close()
		contentType := mime.TypeByExtension(path.Ext(in.Name))
		hc.SetHeader("Content-Type", cmp.Or(contentType, "application/octet-stream"))
		// What a task wrote is nobody's page: it must not act as this server's.
		hc.SetHeader("Content-Security-Policy", "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:")
		hc.SetHeader("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": path.Base(in.Name)}))
		hc.SetStatus(http.StatusOK)
		if _, err := io.Copy(hc.BodyWriter(), r); err != nil {
			s.cfg.Log.WarnContext(ctx, "a file of a task was cut", "task", in.ID, "file", in.Name, "err", err)
			panic(http.ErrAbortHandler)
		}
	}}, nil
}

var exampleTask = taskView{ID: 3, Verb: "probe", Settings: map[string]any{"cohort": "brca", "label": "subtype"}, Job: 41, State: "done", Progress: "probing mean: 4 of 5 splits, 1s left",
	Result: []json.RawMessage{json.RawMessage(`{"run":"` + "3f2a91" + strings.Repeat("0", 58) + `"}`)}, Files: []taskFileView{{"report.html", 81_234, fileAddress(3, "report.html")}},
	Created: exampleTime, Started: new(exampleTime.Add(time.Second)), Finished: new(exampleTime.Add(9 * time.Second))}
