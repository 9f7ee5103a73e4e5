package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"coverslip"
	"coverslip/api"
)

var taskA = api.Task{ID: 3, Verb: "probe", Settings: map[string]any{"cohort": "brca", "splits": map[string]any{"text": "slide,fold\n"}}, Job: 41, State: "done",
	Result: []json.RawMessage{json.RawMessage(`{"auc":0.9}`)}, Files: []api.TaskFile{{Name: "plots/a b.html", Bytes: 5}}, Created: time.Unix(1, 0).UTC(), Finished: new(time.Unix(2, 0).UTC())}

// taskBoard does nothing that it is asked for.
type taskBoard struct{ m *memory }

func (taskBoard) Verbs() []api.Verb {
	return []api.Verb{{Name: "probe", Summary: "Judge embeddings", Example: map[string]any{"cohort": "brca"}, Settings: []api.Setting{
		{Name: "cohort", Type: "string", Required: true}, {Name: "k", Type: "integer", Default: "5"}, {Name: "c", Type: "number", Default: "0.5"}, {Name: "by", Type: "string", Enum: []string{"patient", "site"}, Default: "patient"},
		{Name: "few_shot", Type: "integer", Many: true}, {Name: "splits", Type: "file"}, {Name: "balanced", Type: "boolean"}}}}
}

func (b taskBoard) Ask(_ context.Context, verb string, settings map[string]any) (api.Task, error) {
	switch settings["cohort"] {
	case "nobody":
		return api.Task{}, &coverslip.Error{Kind: coverslip.NotFound, Op: "ask", Err: errors.New("no such file"), Hint: "list them"}
	case "busy":
		return api.Task{}, &coverslip.Error{Kind: coverslip.Conflict, Op: "ask", Err: errors.New("in the way"), Hint: "wait"}
	case "odd":
		return api.Task{}, &coverslip.Error{Kind: coverslip.Invalid, Op: "ask", Err: errors.New("it is odd"), Hint: "read the contract"}
	}
	return api.Task{ID: 4, Verb: verb, Settings: settings, Job: 42, State: "queued", Created: time.Unix(1, 0).UTC()}, b.m.fail
}

func (b taskBoard) Task(_ context.Context, id int64) (api.Task, error) {
	if b.m.fail == nil && id != 3 && id != 4 {
		return api.Task{}, &coverslip.Error{Kind: coverslip.NotFound, Op: "look up the task", Err: errors.New("none"), Hint: "list them"}
	}
	t := taskA
	if id == 4 {
		t.ID, t.State, t.Finished = 4, "running", nil
	}
	return t, b.m.fail
}

func (b taskBoard) Tasks(_ context.Context, q api.TaskQuery) (all []api.Task, err error) {
	for id := int64(3); id > 0 && len(all) < q.Limit; id-- {
		if t := taskA; q.Before == 0 || id < q.Before {
			t.ID = id
			all = append(all, t)
		}
	}
	return all, b.m.fail
}

func (b taskBoard) Cancel(ctx context.Context, id int64) (api.Task, error) { return b.Task(ctx, id) }

func (b taskBoard) Remove(ctx context.Context, id int64) error {
	t, err := b.Task(ctx, id)
	if err == nil && t.Finished == nil {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "remove the task", Err: errors.New("it runs"), Hint: "cancel it"}
	}
	return err
}

func (b taskBoard) File(ctx context.Context, id int64, name string) (io.ReadCloser, error) {
	if _, err := b.Task(ctx, id); err != nil {
		return nil, err
	}
	if name != "plots/a b.html" {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "open a file", Err: errors.New("none"), Hint: "list them"}
	}
	return io.NopCloser(strings.NewReader("<p>hi")), nil
}

func (b taskBoard) Keep(_ context.Context, beside int64, name string, size int64, body io.Reader) (api.Task, error) {
	switch beside {
	case 3:
		return api.Task{}, &coverslip.Error{Kind: coverslip.Conflict, Op: "keep", Err: errors.New("it wrote its own"), Hint: "none"}
	case 9:
		return api.Task{}, missing("task")
	}
	if b.m.fail != nil {
		return api.Task{}, b.m.fail
	}
	raw, err := io.ReadAll(body)
	if err == nil && int64(len(raw)) != size {
		err = errors.New("it is of another length")
	}
	return api.Task{ID: 5, Verb: "files", Settings: map[string]any{}, State: "done", Files: []api.TaskFile{{Name: name, Bytes: size}}, Created: taskA.Created, Finished: taskA.Finished}, err
}

const jsonType = "application/json"

// taskAnswers meets every answer that the contract promises of tasks.
func (s *site) taskAnswers(statuses map[coverslip.Kind]int) {
	ask := func(status int, body string) answer {
		return s.want(status, "POST", "/v1/tasks/probe", strings.NewReader(body), "Content-Type", jsonType)
	}
	routes := map[string][]string{"GET": {"/v1/tasks", "/v1/tasks/3", "/v1/tasks/3/file?name=plots/a+b.html"}, "POST": {"/v1/tasks/3/cancel", "/v1/tasks/probe"}, "DELETE": {"/v1/tasks/3"}}
	for method, targets := range routes {
		for _, target := range targets {
			body := func() io.Reader {
				if target == "/v1/tasks/probe" {
					return strings.NewReader(`{"cohort": "brca"}`)
				}
				return nil
			}
			s.fail = nil
			status := map[string]int{"GET": 200, "POST": 200, "DELETE": 204}[method]
			if target == "/v1/tasks/probe" {
				status = 202
			}
			s.want(status, method, target, body(), "Content-Type", jsonType)
			for _, kind := range []coverslip.Kind{coverslip.Unavailable, coverslip.Environment, coverslip.Canceled, coverslip.Internal} {
				s.fail = &coverslip.Error{Kind: kind, Op: "try", Hint: "do not"}
				s.wantKind(kind, statuses[kind], method, target, body(), "Content-Type", jsonType)
			}
			s.fail = &coverslip.Error{Kind: coverslip.Canceled, Op: "read", Err: io.ErrUnexpectedEOF, Hint: "again"}
			s.want(499, method, target, body(), "Content-Type", jsonType)
			s.fail = nil
			if method != "GET" {
				s.want(403, method, target, body(), "Content-Type", jsonType, "Origin", "http://evil.example")
			}
		}
	}
	for method, target := range map[string]string{"GET": "/v1/tasks/9", "POST": "/v1/tasks/9/cancel", "DELETE": "/v1/tasks/9"} {
		s.wantKind(coverslip.NotFound, 404, method, target, nil)
		s.want(422, method, target+"?nonsense=1", nil)
	}
	s.wantKind(coverslip.NotFound, 404, "GET", "/v1/tasks/3/file?name=b", nil)
	s.want(422, "GET", "/v1/tasks/3/file", nil)
	s.want(422, "GET", "/v1/tasks?state=lazy", nil)
	s.wantKind(coverslip.Conflict, 409, "DELETE", "/v1/tasks/4", nil)
	const send = "/v1/tasks/files?name=uni.onnx"
	file := func() io.Reader { return strings.NewReader("weights") }
	for _, kind := range []coverslip.Kind{coverslip.Full, coverslip.Unavailable, coverslip.Environment, coverslip.Canceled, coverslip.Internal} {
		s.fail = &coverslip.Error{Kind: kind, Op: "try", Hint: "do not"}
		s.wantKind(kind, statuses[kind], "POST", send, file(), "Content-Type", "application/octet-stream")
	}
	s.fail = &coverslip.Error{Kind: coverslip.Canceled, Op: "read", Err: io.ErrUnexpectedEOF, Hint: "again"}
	s.want(499, "POST", send, file(), "Content-Type", "application/octet-stream")
	s.fail = nil
	s.want(201, "POST", send, file(), "Content-Type", "application/octet-stream")
	s.want(403, "POST", send, file(), "Content-Type", "application/octet-stream", "Origin", "http://evil.example")
	s.want(404, "POST", send+"&task=9", file(), "Content-Type", "application/octet-stream")
	s.want(409, "POST", send+"&task=3", file(), "Content-Type", "application/octet-stream")
	s.want(415, "POST", send, file(), "Content-Type", "text/csv")
	for _, name := range []string{"", "a/", "..", ".hidden", "a%00b"} {
		s.want(422, "POST", "/v1/tasks/files?name="+name, file(), "Content-Type", "application/octet-stream")
	}
	s.want(413, "POST", send, strings.NewReader(strings.Repeat("x", 1001)), "Content-Type", "application/octet-stream")
	s.want(422, "POST", send, strings.NewReader(""), "Content-Type", "application/octet-stream")
	s.want(422, "POST", send, struct{ io.Reader }{file()}, "Content-Type", "application/octet-stream") // of unknown length
	ask(404, `{"cohort": "nobody"}`)
	ask(409, `{"cohort": "busy"}`)
	for _, bad := range []string{`{}`, `{"cohort": "odd"}`, `{"cohort": 5}`, `{"cohort": "a", "by": "guess"}`, `{"cohort": "a", "cohorts": "b"}`, `{"cohort": "a", "splits": "/etc/passwd"}`, `{"cohort": "a", "few_shot": 3}`} {
		ask(422, bad)
	}
	ask(413, `{"cohort": "a", "splits": {"text": "`+strings.Repeat("x", 9<<20)+`"}}`)
}

func TestTasksAreAskedForAndShown(t *testing.T) {
	s := newSite(t)
	asked := s.want(http.StatusAccepted, "POST", "/v1/tasks/probe", strings.NewReader(`{"cohort": "brca", "few_shot": [1, 2], "c": 0.1, "splits": {"text": "a"}}`), "Content-Type", jsonType)
	if asked.Header.Get("Location") != "/v1/tasks/4" || !strings.Contains(string(asked.body), `"few_shot":[1,2]`) {
		t.Errorf("%s %s", asked.Header, asked.body)
	}
	one := string(s.want(200, "GET", "/v1/tasks/3", nil).body)
	for _, part := range []string{`"result":[{"auc":0.9}]`, `"url":"/v1/tasks/3/file?name=plots%2Fa+b.html"`, `"text":"slide,fold\n"`} {
		if !strings.Contains(one, part) {
			t.Errorf("no %s in %s", part, one)
		}
	}
	file := s.want(200, "GET", "/v1/tasks/3/file?name=plots%2Fa+b.html", nil)
	if string(file.body) != "<p>hi" || !strings.HasPrefix(file.Header.Get("Content-Type"), "text/html") || !strings.Contains(file.Header.Get("Content-Security-Policy"), "sandbox") ||
		!strings.Contains(file.Header.Get("Content-Disposition"), "a b.html") {
		t.Errorf("%v %s", file.Header, file.body)
	}
	var list struct {
		Tasks []struct {
			ID     int64
			Result []any
		}
		Next string
	}
	decodeSome(t, s.want(200, "GET", "/v1/tasks?limit=2", nil), &list)
	if len(list.Tasks) != 2 || list.Tasks[0].ID != 3 || list.Tasks[0].Result != nil || list.Next != "2" {
		t.Errorf("%+v", list)
	}
	rest := s.want(200, "GET", "/v1/tasks?limit=2&cursor="+list.Next, nil)
	if strings.Contains(string(rest.body), "next") || strings.Contains(string(rest.body), "slide,fold") {
		t.Errorf("%s", rest.body)
	}
	began := time.Now()
	s.want(200, "GET", "/v1/tasks/4?wait=1", nil)
	if took := time.Since(began); took < time.Second || took > 30*time.Second {
		t.Errorf("it waited %v", took)
	}
	if a := s.raw("GET", "/v1/tasks/probe", nil); a.StatusCode != 405 {
		t.Error(a.Status)
	}
}
