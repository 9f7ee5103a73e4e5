package api_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3filter"

	"coverslip"
	"coverslip/api"
)

func init() { openapi3filter.RegisterBodyDecoder("text/event-stream", openapi3filter.FileBodyDecoder) }

// board is cohorts and jobs in memory.
type board struct {
	m        *memory
	mu       sync.Mutex
	progress coverslip.Progress
	paused   bool
}

const cohortName = "brca"

func (b *board) known(name string) error {
	if b.m.fail != nil {
		return b.m.fail
	}
	if !strings.HasPrefix(name, cohortName) {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "look up the cohort", Path: name, Err: errors.New("there is none"), Hint: "list them"}
	}
	return nil
}

func (b *board) change(name string) error {
	if err := b.known(name); err != nil {
		return err
	}
	if strings.Contains(name, "@") {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "change the cohort", Path: name, Err: errors.New("versions do not change"), Hint: "change the cohort"}
	}
	return nil
}

func (b *board) Cohorts(context.Context) ([]coverslip.Cohort, error) {
	return []coverslip.Cohort{{Name: cohortName, Labels: []coverslip.LabelColumn{}, Created: epoch}}, b.m.fail
}

func (b *board) Cohort(_ context.Context, name string) (coverslip.Cohort, error) {
	return coverslip.Cohort{Name: name, Slides: 3, Labels: []coverslip.LabelColumn{{Name: "age", Kind: coverslip.NumberLabel, Slides: 1}}, Created: epoch}, b.known(name)
}

func (b *board) MembersAfter(_ context.Context, name string, after coverslip.SlideID, limit int) (out []coverslip.Member, err error) {
	for _, id := range []string{idA, idB, idC} {
		if coverslip.SlideID(id) > after && len(out) < limit {
			out = append(out, coverslip.Member{Slide: coverslip.SlideID(id), Name: "x", Labels: map[string]any{"age": 61.5, "old": true, "kind": "IDC"}})
		}
	}
	return out, b.known(name)
}

func (b *board) Progress(_ context.Context, name string) (coverslip.Progress, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.progress, b.known(name)
}

func (b *board) Freeze(_ context.Context, name string) (string, error) {
	return name + "@1", b.change(name)
}

func (b *board) Label(_ context.Context, name string, table io.Reader, _ bool) ([]string, error) {
	_, _ = io.ReadAll(table)
	return nil, b.change(name)
}

func (b *board) ImportManifest(_ context.Context, name string, _ io.Reader, _ string) (int, error) {
	return 2, b.change(name)
}

func (b *board) Encode(_ context.Context, name string, _ int) (int, error) { return 2, b.known(name) }

var aJob = api.Job{ID: 17, Slide: coverslip.SlideID(idA), Queue: "embed", Encoder: "e", Priority: 2, State: "available", MaxAttempts: 5, Created: epoch, Scheduled: epoch}

func (b *board) Jobs(_ context.Context, q api.JobQuery) (out []api.Job, err error) {
	for id := int64(5); id > 0 && len(out) < q.Limit; id-- {
		if j := aJob; q.Before == 0 || id < q.Before {
			j.ID = id
			out = append(out, j)
		}
	}
	return out, b.m.fail
}

func (b *board) one(id int64) (api.Job, error) {
	if b.m.fail == nil && id != aJob.ID {
		return api.Job{}, &coverslip.Error{Kind: coverslip.NotFound, Op: "look up the job", Err: errors.New("there is none"), Hint: "list them"}
	}
	return aJob, b.m.fail
}

func (b *board) Retry(_ context.Context, id int64) (api.Job, error)  { return b.one(id) }
func (b *board) Cancel(_ context.Context, id int64) (api.Job, error) { return b.one(id) }

func (b *board) RetryFailed(context.Context, string, coverslip.Kind) (int, error) {
	return 3, b.m.fail
}
func (b *board) CancelAll(context.Context, string) (int, error) { return 3, b.m.fail }

func (b *board) Queues(context.Context) ([]api.JobQueue, error) {
	return []api.JobQueue{{Queue: "embed", Paused: b.paused, Waiting: 2}}, b.m.fail
}

func (b *board) Pause(context.Context, string) error {
	b.paused = true
	return b.m.fail
}

func (b *board) Resume(context.Context, string) error {
	b.paused = false
	return b.m.fail
}

// cohortAnswers meets every answer that the contract promises of cohorts and jobs.
func (s *site) cohortAnswers(statuses map[coverslip.Kind]int) {
	type route struct{ method, target, body, contentType string }
	const at = "/v1/cohorts/brca"
	table := route{"POST", at + "/labels", "slide\nx\n", "text/csv"}
	manifest := route{"POST", at + "/manifest", "id\n", "text/tab-separated-values"}
	ofOne := []route{{"GET", at, "", ""}, {"GET", at + "/slides", "", ""}, {"GET", at + "/progress", "", ""}, {"GET", at + "/events", "", ""},
		{"POST", at + "/versions", "", ""}, table, manifest, {"POST", at + "/encode", "", ""}, {"POST", "/v1/jobs/17/retry", "", ""}, {"POST", "/v1/jobs/17/cancel", "", ""}}
	others := []route{{"GET", "/v1/cohorts", "", ""}, {"GET", "/v1/jobs", "", ""}, {"GET", "/v1/queues", "", ""}, {"POST", "/v1/jobs/retry", "", ""},
		{"POST", "/v1/jobs/cancel?cohort=brca", "", ""}, {"POST", "/v1/queues/embed/pause", "", ""}, {"POST", "/v1/queues/embed/resume", "", ""}}
	call := func(status int, r route, more string, header ...string) answer {
		s.t.Helper()
		if r.contentType != "" {
			header = append(header, "Content-Type", r.contentType)
		}
		target := r.target
		if more != "" && strings.Contains(target, "?") {
			more = "&" + more[1:]
		}
		return s.want(status, r.method, target+more, strings.NewReader(r.body), header...)
	}
	s.fail = nil
	for _, r := range append(ofOne, others...) {
		status := http.StatusOK
		if strings.HasSuffix(r.target, "/versions") {
			status = http.StatusCreated
		}
		call(status, r, "")
		call(422, r, "?nonsense=1")
		if r.method == "POST" {
			call(403, r, "", "Sec-Fetch-Site", "cross-site")
		}
	}
	for _, r := range ofOne {
		r.target = strings.NewReplacer("brca", "nowhere", "17", "18").Replace(r.target)
		call(404, r, "")
	}
	for _, r := range []route{{"POST", at + "@1/versions", "", ""}, {"POST", at + "@1/labels", table.body, table.contentType}, {"POST", at + "@1/manifest", manifest.body, manifest.contentType}} {
		call(409, r, "")
	}
	long := strings.Repeat("x", 64<<20+1)
	for _, r := range []route{table, manifest} {
		r.body = long
		call(413, r, "")
	}
	for kind, status := range statuses {
		if !slices.Contains([]coverslip.Kind{coverslip.Unavailable, coverslip.Environment, coverslip.Canceled, coverslip.Internal}, kind) {
			continue
		}
		s.fail = &coverslip.Error{Kind: kind, Op: "try", Err: errors.New("it is made to fail"), Hint: "do not"}
		for _, r := range append(ofOne, others...) {
			call(status, r, "")
		}
	}
	s.fail = &coverslip.Error{Kind: coverslip.Canceled, Op: "read", Err: io.ErrUnexpectedEOF, Hint: "again"}
	for _, r := range append(ofOne, others...) {
		call(499, r, "")
	}
	s.fail = &coverslip.Error{Kind: coverslip.Unsupported, Op: "register", Err: errors.New("web addresses come and go"), Hint: "name a bucket"}
	call(415, manifest, "")
	s.fail = nil
}

func TestPagesOfMembersAndJobs(t *testing.T) {
	s := newSite(t)
	type page struct {
		Slides []coverslip.Member
		Jobs   []struct{ ID int64 }
		Next   string
	}
	for target, want := range map[string]int{"/v1/cohorts/brca/slides": 3, "/v1/jobs": 5} {
		n, pages := 0, 0
		for cursor := ""; ; pages++ {
			var p page
			decodeSome(t, s.want(200, "GET", target+"?limit=2"+cursor, nil), &p)
			n += len(p.Slides) + len(p.Jobs)
			if p.Next == "" {
				break
			}
			cursor = "&cursor=" + p.Next
		}
		if n != want || pages != (want-1)/2 {
			t.Errorf("%s: %d on %d pages", target, n, pages+1)
		}
	}
	var first page
	decodeSome(t, s.want(200, "GET", "/v1/cohorts/brca/slides?limit=1", nil), &first)
	if l := first.Slides[0].Labels; l["age"] != 61.5 || l["old"] != true || l["kind"] != "IDC" {
		t.Errorf("%+v", l)
	}
	s.wantKind(coverslip.Invalid, 422, "GET", "/v1/cohorts/brca/slides?cursor=nonsense", nil)
	s.want(422, "GET", "/v1/jobs?cursor=nonsense", nil)
}

func TestEventsUntilNothingWaits(t *testing.T) {
	b := &board{progress: coverslip.Progress{Cohort: "brca", Slides: 2, States: map[coverslip.State]int{coverslip.Queued: 2}}}
	s := newSite(t, func(c *api.Config) { c.Cohorts, c.Jobs = b, b })
	b.m = s.memory
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r := s.request("GET", "/v1/cohorts/brca/events", nil).WithContext(ctx)
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%v", resp.Header)
	}
	lines := bufio.NewScanner(resp.Body)
	event := func() (name, data string) {
		for lines.Scan() {
			switch kind, rest, _ := strings.Cut(lines.Text(), ": "); kind {
			case "event":
				name = rest
			case "data":
				return name, rest
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return "", ""
	}
	set := func(states map[coverslip.State]int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.progress.States = states
	}
	if name, data := event(); name != "progress" || !strings.Contains(data, `"queued":2`) {
		t.Errorf("%s %s", name, data)
	}
	set(map[coverslip.State]int{coverslip.Queued: 1, coverslip.Embedded: 1})
	if name, data := event(); name != "progress" || !strings.Contains(data, `"embedded":1`) {
		t.Errorf("%s %s", name, data)
	}
	set(map[coverslip.State]int{coverslip.Embedded: 2})
	if name, data := event(); name != "done" || !strings.Contains(data, `"embedded":2`) {
		t.Errorf("%s %s", name, data)
	}
	for lines.Scan() { // the end of the last event
		if lines.Text() != "" {
			t.Errorf("it goes on: %q", lines.Text())
		}
	}
}

func TestEventsEndWithTheServer(t *testing.T) {
	b := &board{progress: coverslip.Progress{Cohort: "brca", Slides: 1, States: map[coverslip.State]int{coverslip.Queued: 1}}}
	stopping := make(chan struct{})
	s := newSite(t, func(c *api.Config) { c.Cohorts, c.Jobs, c.Stopping = b, b, stopping })
	b.m = s.memory
	resp, err := http.DefaultTransport.RoundTrip(s.request("GET", "/v1/cohorts/brca/events", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	close(stopping)
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Error(err)
	}
}
