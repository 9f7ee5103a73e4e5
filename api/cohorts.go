package api

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// Cohorts is where the API finds and changes cohorts. A cohort that is not there is NotFound, except where
// it is made.
type Cohorts interface {
	Cohorts(ctx context.Context) ([]coverslip.Cohort, error)
	Cohort(ctx context.Context, name string) (coverslip.Cohort, error)
	// MembersAfter returns at most limit members in the order of their ids, behind the slide after.
	MembersAfter(ctx context.Context, name string, after coverslip.SlideID, limit int) ([]coverslip.Member, error)
	Progress(ctx context.Context, name string) (coverslip.Progress, error)
	// Freeze makes a version of a cohort, and returns its name.
	Freeze(ctx context.Context, name string) (version string, err error)
	// Label puts the slides of a table into a cohort, which it makes if it is new; all or none.
	Label(ctx context.Context, name string, table io.Reader, leaveOutMissing bool) (missing []string, err error)
	// ImportManifest registers the slides of a GDC manifest, which lie at source, and puts them into a cohort,
	// which it makes if it is new; all or none.
	ImportManifest(ctx context.Context, name string, manifest io.Reader, source string) (created int, err error)
	// Encode queues the slides of a cohort that have no embedding yet, and returns how many were added.
	Encode(ctx context.Context, name string, priority int) (queued int, err error)
}

// maxTable bounds the body of a manifest or a table, in bytes.
const maxTable = 64 << 20

// watchEvery is how often progress is looked at for those who watch it.
const watchEvery = time.Second

func (s *server) cohortRoutes() {
	op := func(method, path, id, summary, description string) huma.Operation {
		return huma.Operation{Method: method, Path: path, OperationID: id, Tags: []string{"cohorts"}, Summary: summary, Description: description}
	}
	const one = "/v1/cohorts/{cohort}"
	find := slices.Concat([]coverslip.Kind{coverslip.NotFound}, stumbles)
	change := slices.Concat([]coverslip.Kind{coverslip.NotFound, coverslip.Conflict}, stumbles)
	register(s.api, op(http.MethodGet, "/v1/cohorts", "list-cohorts", "List cohorts", "By name, without their label columns."), cohortList{[]cohortView{exampleCohort}}, stumbles, s.listCohorts)
	register(s.api, op(http.MethodGet, one, "show-cohort", "Show a cohort", "With its label columns and what they hold."), exampleCohort, find, s.showCohort)
	register(s.api, op(http.MethodGet, one+"/slides", "list-cohort-slides", "List the slides of a cohort", "With patient, site and labels, in the order of their ids."), exampleMembers, find, s.listMembers)
	register(s.api, op(http.MethodGet, one+"/progress", "cohort-progress", "How far a cohort is", "Slides by state, failures by kind, rate and time left."), exampleProgress, find, s.progress)
	register(s.api, withEvents(s.api, op(http.MethodGet, one+"/events", "watch-cohort", "Watch how far a cohort is",
		"Server-sent events: `progress`, with what `/progress` answers, at once and whenever it changes; `done` when nothing waits any more, which ends the stream.")),
		nil, find, s.watch)
	freeze := op(http.MethodPost, one+"/versions", "freeze-cohort", "Make a version of a cohort", "A cohort of its own, `NAME@1`, `NAME@2` …, that does not change any more.")
	freeze.DefaultStatus = http.StatusCreated
	register(s.api, freeze, exampleVersion, change, s.freeze)
	labels := op(http.MethodPost, one+"/labels", "label-cohort", "Put slides into a cohort, with labels",
		"The body is a table with a heading, in CSV or TSV: a column `slide` (name, path or id), `patient`, `site`, and labels, which are all others. What is wrong is named by its line, and nothing is kept.")
	labels.MaxBodyBytes = maxTable
	register(s.api, labels, labelled{Cohort: exampleCohort, Missing: []string{}}, slices.Concat(change, []coverslip.Kind{coverslip.TooLarge}), s.label)
	manifest := op(http.MethodPost, one+"/manifest", "import-manifest", "Register the slides of a GDC manifest",
		"The body is the manifest. The files lie at `source` as `<id>/<filename>`, in a bucket of the server's S3 or a folder that was opened to clients. Nothing is copied or read: a slide's size and MD5 are held against the manifest by the worker that encodes it.")
	manifest.MaxBodyBytes = maxTable
	register(s.api, manifest, imported{Cohort: exampleCohort, Created: 2}, slices.Concat(change, []coverslip.Kind{coverslip.TooLarge, coverslip.Unsupported}), s.importManifest)
	register(s.api, op(http.MethodPost, one+"/encode", "encode-cohort", "Encode the slides of a cohort", "Queues those that have no embedding yet under the server's encoder. Asking twice queues once."),
		queuedView{2}, find, s.encodeCohort)
}

// withEvents says that the answer is a stream of events.
func withEvents(api huma.API, op huma.Operation) huma.Operation {
	op.Responses = map[string]*huma.Response{"200": {Description: "A stream of events.",
		Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: "string"},
			Example: "event: progress\ndata: {\"cohort\":\"brca\",\"slides\":2,\"states\":{\"embedded\":1,\"queued\":1},\"failed\":[],\"per_hour\":0,\"seconds_left\":0}\n\n"}}}}
	return op
}

type cohortView struct {
	Name      string      `json:"name" doc:"Its name"`
	VersionOf string      `json:"version_of,omitempty" doc:"The cohort that this is a version of; it does not change"`
	Slides    int         `json:"slides" doc:"How many it has"`
	Patients  int         `json:"patients" doc:"Different ones, where they are known"`
	Sites     int         `json:"sites" doc:"Different ones, where they are known"`
	Labels    []labelView `json:"labels" nullable:"false" doc:"Its label columns, by name; empty in the list of cohorts"`
	Created   time.Time   `json:"created" doc:"When it was made"`
}

type labelView struct {
	Name   string              `json:"name" doc:"Name of the column"`
	Kind   coverslip.LabelKind `json:"kind" doc:"What it holds" enum:"number,category,bool"`
	Slides int                 `json:"slides" doc:"Slides that have a value"`
}

func viewCohort(c coverslip.Cohort) cohortView {
	return cohortView{Name: c.Name, VersionOf: c.VersionOf, Slides: c.Slides, Patients: c.Patients, Sites: c.Sites,
		Labels: each(c.Labels, func(l coverslip.LabelColumn) labelView { return labelView(l) }), Created: c.Created}
}

type cohortList struct {
	Cohorts []cohortView `json:"cohorts" nullable:"false" doc:"All of them"`
}

type cohortsOutput struct{ Body cohortList }

func (s *server) listCohorts(ctx context.Context, _ *struct{}) (*cohortsOutput, error) {
	all, err := s.cfg.Cohorts.Cohorts(ctx)
	return &cohortsOutput{cohortList{each(all, viewCohort)}}, err
}

// OneCohort is the name in the address of every route below a cohort.
type OneCohort struct {
	Name string `path:"cohort" doc:"The cohort's name" minLength:"1" maxLength:"200" example:"brca"`
}

type cohortOutput struct{ Body cohortView }

func (s *server) showCohort(ctx context.Context, in *OneCohort) (*cohortOutput, error) {
	c, err := s.cfg.Cohorts.Cohort(ctx, in.Name)
	return &cohortOutput{viewCohort(c)}, err
}

type membersInput struct {
	OneCohort
	Limit  int    `query:"limit" doc:"Slides on a page" minimum:"1" maximum:"10000" default:"1000"`
	Cursor string `query:"cursor" doc:"The next member of the page before" maxLength:"200"`
}

type memberView struct {
	Slide   coverslip.SlideID `json:"slide" doc:"The slide's id"`
	Name    string            `json:"name" doc:"The slide's name"`
	Patient string            `json:"patient,omitempty" doc:"Absent when unknown"`
	Site    string            `json:"site,omitempty" doc:"Absent when unknown"`
	Labels  map[string]any    `json:"labels" doc:"Numbers, texts and booleans by column; what is not known is absent"`
}

type memberList struct {
	Slides []memberView `json:"slides" nullable:"false" doc:"One page"`
	Next   string       `json:"next,omitempty" doc:"Cursor of the next page; absent on the last"`
}

type membersOutput struct{ Body memberList }

func (s *server) listMembers(ctx context.Context, in *membersInput) (*membersOutput, error) {
	after := coverslip.SlideID("")
	if in.Cursor != "" {
		raw, err := base64.RawURLEncoding.DecodeString(in.Cursor)
		if err == nil {
			after, err = coverslip.ParseSlideID(string(raw))
		}
		if err != nil {
			return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read cursor", Err: errors.New("it is of another list"), Hint: "send the next member of the page before as it is, or no cursor for the first page"}
		}
	}
	members, err := s.cfg.Cohorts.MembersAfter(ctx, in.Name, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	out := &membersOutput{}
	if len(members) > in.Limit {
		members = members[:in.Limit]
		out.Body.Next = base64.RawURLEncoding.EncodeToString([]byte(members[in.Limit-1].Slide))
	}
	out.Body.Slides = each(members, func(m coverslip.Member) memberView {
		if m.Labels == nil {
			m.Labels = map[string]any{}
		}
		return memberView(m)
	})
	return out, nil
}

type progressView struct {
	Cohort      string         `json:"cohort" doc:"The cohort's name"`
	Slides      int            `json:"slides" doc:"How many it has"`
	States      map[string]int `json:"states" doc:"Slides by state; states without any are absent"`
	Failed      []failuresView `json:"failed" nullable:"false" doc:"Slides that failed or lack a resolution, by kind of error"`
	PerHour     float64        `json:"per_hour" doc:"Slides done in an hour, of late; 0 when too few were to say"`
	SecondsLeft float64        `json:"seconds_left" doc:"What the slides that wait will take at that rate; 0 when it is not known"`
}

type failuresView struct {
	Kind    coverslip.Kind `json:"kind" doc:"Kind of the error"`
	Slides  int            `json:"slides" doc:"How many failed so"`
	Example string         `json:"example" doc:"The reason of one"`
}

func viewProgress(p coverslip.Progress) progressView {
	v := progressView{Cohort: p.Cohort, Slides: p.Slides, States: map[string]int{}, PerHour: p.PerHour, SecondsLeft: p.SecondsLeft,
		Failed: each(p.Failed, func(f coverslip.Failures) failuresView { return failuresView(f) })}
	for state, n := range p.States {
		v.States[string(state)] = n
	}
	return v
}

type progressOutput struct{ Body progressView }

func (s *server) progress(ctx context.Context, in *OneCohort) (*progressOutput, error) {
	p, err := s.cfg.Cohorts.Progress(ctx, in.Name)
	return &progressOutput{viewProgress(p)}, err
}

// watch sends events until nothing waits or the client goes. A look that fails in between is passed over:
// the next may not.
func (s *server) watch(ctx context.Context, in *OneCohort) (*huma.StreamResponse, error) {
	first, err := s.cfg.Cohorts.Progress(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", "text/event-stream")
		hc.SetHeader("Cache-Control", "no-store")
		hc.SetStatus(http.StatusOK)
		w := hc.BodyWriter()
		send := func(event string, p coverslip.Progress) bool {
			raw, err := json.Marshal(viewProgress(p))
			if err == nil {
				_, err = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, raw)
			}
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
			return err == nil
		}
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		last, quiet := "", 0
		for p := first; ; {
			if p.Waiting() == 0 {
				send("done", p)
				return
			}
			// The rate alone is no news.
			if now := fmt.Sprint(p.Slides, p.States, p.Failed); now != last {
				if last, quiet = now, 0; !send("progress", p) {
					return
				}
			} else if quiet++; quiet%15 == 0 {
				if _, err := io.WriteString(w, ": nothing new\n\n"); err != nil { // keeps proxies from hanging up
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-s.cfg.Stopping:
				return
			case <-tick.C:
			}
			if again, err := s.cfg.Cohorts.Progress(ctx, in.Name); err == nil {
				p = again
			}
		}
	}}, nil
}

func (s *server) freeze(ctx context.Context, in *OneCohort) (*cohortOutput, error) {
	version, err := s.cfg.Cohorts.Freeze(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return s.showCohort(ctx, &OneCohort{version})
}

type labelInput struct {
	OneCohort
	SkipMissing bool   `query:"skip_missing" doc:"Leave out slides that are not registered; without it, one refuses the table"`
	RawBody     []byte `contentType:"text/csv"`
}

type labelled struct {
	Cohort  cohortView `json:"cohort" doc:"The cohort as it is now"`
	Missing []string   `json:"missing" nullable:"false" doc:"What was left out"`
}

type labelledOutput struct{ Body labelled }

func (s *server) label(ctx context.Context, in *labelInput) (*labelledOutput, error) {
	missing, err := s.cfg.Cohorts.Label(ctx, in.Name, bytes.NewReader(in.RawBody), in.SkipMissing)
	if err != nil {
		return nil, err
	}
	c, err := s.cfg.Cohorts.Cohort(ctx, in.Name)
	return &labelledOutput{labelled{viewCohort(c), each(missing, func(s string) string { return s })}}, err
}

type manifestInput struct {
	OneCohort
	Source  string `query:"source" doc:"Where the files lie: s3://bucket/prefix, or a folder" maxLength:"1024" default:"s3://tcga-2-open"`
	RawBody []byte `contentType:"text/tab-separated-values"`
}

type imported struct {
	Cohort  cohortView `json:"cohort" doc:"The cohort as it is now"`
	Created int        `json:"created" doc:"Slides that were not known before"`
}

type importedOutput struct{ Body imported }

func (s *server) importManifest(ctx context.Context, in *manifestInput) (*importedOutput, error) {
	created, err := s.cfg.Cohorts.ImportManifest(ctx, in.Name, bytes.NewReader(in.RawBody), in.Source)
	if err != nil {
		return nil, err
	}
	c, err := s.cfg.Cohorts.Cohort(ctx, in.Name)
	return &importedOutput{imported{viewCohort(c), created}}, err
}

type encodeInput struct {
	OneCohort
	Priority int `query:"priority" doc:"1 comes before what others asked for, 4 after it" minimum:"1" maximum:"4" default:"2"`
}

type queuedView struct {
	Queued int `json:"queued" doc:"Jobs that were added"`
}

type queuedOutput struct{ Body queuedView }

func (s *server) encodeCohort(ctx context.Context, in *encodeInput) (*queuedOutput, error) {
	n, err := s.cfg.Cohorts.Encode(ctx, in.Name, in.Priority)
	return &queuedOutput{queuedView{n}}, err
}
