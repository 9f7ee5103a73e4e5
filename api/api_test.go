package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/jpeg"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"coverslip"
	"coverslip/api"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"github.com/prometheus/client_golang/prometheus"
)

// site is a running API over memory, and a client that holds every answer to the contract.
type site struct {
	*memory
	t        *testing.T
	url      string
	log      *bytes.Buffer // read it only after stop
	stop     func()
	contract *openapi3.T
	router   routers.Router
	seen     map[string]bool // "GET /v1/slides 200"
	again    bool            // what is read is asked for again, by its ETag
}

// contracts that were read, by their text, and what finds routes in them: to check one takes seconds.
var (
	contracts = map[string]*openapi3.T{}
	routes    = map[string]routers.Router{}
)

func newSite(t *testing.T, edit ...func(*api.Config)) *site {
	t.Helper()
	s := &site{memory: newMemory(), t: t, log: &bytes.Buffer{}, seen: map[string]bool{}}
	cfg := api.Config{Slides: s.memory, Searcher: s.memory, Uploader: s.memory, Thumbnailer: s.memory, DeepZoomer: s.memory, Ready: s.Ready,
		Resumable: s.memory, Registrar: s.memory, Embedder: s.memory, Presigner: s.memory,
		Log: slog.New(slog.NewJSONHandler(s.log, nil))}
	board := &board{m: s.memory, progress: coverslip.Progress{Cohort: "brca", States: map[coverslip.State]int{coverslip.Embedded: 3}}}
	cfg.Cohorts, cfg.Jobs, cfg.Runs, cfg.Exporter, cfg.Tasks, cfg.Keys = board, board, s.memory, s.memory, taskBoard{s.memory}, keyRing{s.memory}
	for _, e := range edit {
		e(&cfg)
	}
	h, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	s.url, s.stop = srv.URL, srv.Close
	t.Cleanup(srv.Close)
	spec := string(s.raw("GET", "/openapi.json", nil).body)
	if _, read := routes[spec]; !read {
		if contracts[spec], err = openapi3.NewLoader().LoadFromData([]byte(spec)); err != nil {
			t.Fatal(err)
		}
		router, err := legacy.NewRouter(contracts[spec])
		if err != nil {
			t.Fatalf("the contract is not valid OpenAPI: %v", err)
		}
		routes[spec] = router
	}
	s.contract, s.router = contracts[spec], routes[spec]
	return s
}

type answer struct {
	*http.Response
	body    []byte
	problem problem
}

type problem struct {
	Title, Detail, Hint string
	Status              int
	Kind                coverslip.Kind
	State               coverslip.State
	RequestID           string `json:"request_id"`
	Errors              []struct{ Location string }
}

// raw sends a request without looking at the contract.
func (s *site) raw(method, target string, body io.Reader, header ...string) answer {
	s.t.Helper()
	return s.send(s.request(method, target, body, header...))
}

func (s *site) request(method, target string, body io.Reader, header ...string) *http.Request {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.url+target, body)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func (s *site) send(r *http.Request) answer {
	s.t.Helper()
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		s.t.Fatal(err)
	}
	a := answer{Response: resp}
	a.body, err = io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		s.t.Fatal(err)
	}
	if resp.Header.Get("X-Request-Id") == "" {
		s.t.Errorf("%s %s: no request id", r.Method, r.URL)
	}
	if resp.StatusCode >= 400 && resp.Header.Get("Content-Type") == "application/problem+json" && r.Method != http.MethodHead {
		dec := json.NewDecoder(bytes.NewReader(a.body))
		dec.DisallowUnknownFields()
		var errs json.RawMessage // its members are huma's
		full := struct {
			problem
			Errors *json.RawMessage `json:"errors"`
		}{Errors: &errs}
		if err := dec.Decode(&full); err != nil {
			s.t.Errorf("%s %s: %v in %s", r.Method, r.URL, err, a.body)
		}
		a.problem = full.problem
		if len(errs) > 0 {
			if err := json.Unmarshal(errs, &a.problem.Errors); err != nil {
				s.t.Error(err)
			}
		}
		if p := a.problem; p.Status != resp.StatusCode || p.Title == "" || p.Detail == "" || p.Kind == "" || p.RequestID != resp.Header.Get("X-Request-Id") {
			s.t.Errorf("%s %s: incomplete problem %s", r.Method, r.URL, a.body)
		}
	}
	return a
}

// want sends a request, holds the answer to the contract and to a status.
func (s *site) want(status int, method, target string, body io.Reader, header ...string) answer {
	s.t.Helper()
	a := s.raw(method, target, body, header...)
	if a.StatusCode != status {
		s.t.Fatalf("%s %.200s: status %d, want %d: %s", method, target, a.StatusCode, status, a.body)
	}
	r := a.Request.Clone(s.t.Context())
	route, params, err := s.router.FindRoute(r)
	if err != nil && r.Method == http.MethodHead {
		r.Method = http.MethodGet // the contract is that of GET
		route, params, err = s.router.FindRoute(r)
	}
	if err != nil {
		s.t.Fatalf("%s %s is not in the contract: %v", method, target, err)
	}
	s.seen[fmt.Sprint(route.Method, " ", route.Path, " ", status)] = true
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route},
		Status:                 a.StatusCode, Header: a.Header, Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}
	if in.SetBodyBytes(a.body); r.Method == http.MethodHead {
		in.Options.ExcludeResponseBody = true
	}
	if err := openapi3filter.ValidateResponse(context.Background(), in); err != nil {
		s.t.Errorf("%s %s: the answer breaks the contract: %v", method, target, err)
	}
	if tag := a.Header.Get("ETag"); s.again && status == http.StatusOK && method == http.MethodGet && tag != "" {
		if same := s.want(http.StatusNotModified, method, target, nil, append(header, "If-None-Match", tag)...); len(same.body) > 0 || same.Header.Get("ETag") != tag {
			s.t.Errorf("%s %s again: %d bytes, ETag %q after %q", method, target, len(same.body), same.Header.Get("ETag"), tag)
		}
		if other := s.raw(method, target, nil, append(header, "If-None-Match", `"another"`)...); other.StatusCode != http.StatusOK {
			s.t.Errorf("%s %s with another ETag: %s", method, target, other.Status)
		}
	}
	return a
}

func (s *site) wantKind(kind coverslip.Kind, status int, method, target string, body io.Reader, header ...string) problem {
	s.t.Helper()
	a := s.want(status, method, target, body, header...)
	if a.problem.Kind != kind || a.problem.Hint == "" {
		s.t.Errorf("%s %.200s: kind %q, want %q, with a hint: %s", method, target, a.problem.Kind, kind, a.body)
	}
	return a.problem
}

// decodeSome decodes what the test looks at.
func decodeSome(t *testing.T, a answer, into any) {
	t.Helper()
	if err := json.Unmarshal(a.body, into); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
}

func decode[T any](t *testing.T, a answer) T {
	t.Helper()
	var v T
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
	return v
}

var (
	idA = "aaaaaa11" + strings.Repeat("1", 56)
	idB = "aaaaaa22" + strings.Repeat("2", 56)
	idC = "cccccc33" + strings.Repeat("3", 56)
	idD = "dddddd44" + strings.Repeat("4", 56)
)

// TestEveryAnswerOfTheContract meets each operation in each status that the contract promises,
// and fails when the contract promises one that nothing here has seen.
func TestEveryAnswerOfTheContract(t *testing.T) {
	s := newSite(t, func(c *api.Config) { c.MaxUpload = 1000 })
	s.again = true
	s.add(idA, coverslip.Embedded, 1, 0)
	s.add(idB, coverslip.Embedded, 0, 1)
	post := func() io.Reader { return strings.NewReader("a slide") }

	for _, target := range []string{"/healthz", "/readyz", "/metrics", "/v1/slides", "/v1/slides/" + idA,
		"/v1/slides/" + idA + "/thumbnail", "/v1/slides/" + idA + "/embedding", "/v1/slides/" + idA + "/similar",
		"/v1/slides/" + idA + "/dzi", "/v1/slides/" + idA + "/dzi_files/9/0_0.jpeg"} {
		s.want(200, "GET", target, nil)
		if target != "/metrics" {
			s.wantKind(coverslip.Invalid, 422, "GET", target+"?nonsense=1", nil)
		}
	}
	s.want(201, "POST", "/v1/slides?name=x.svs", post())
	s.want(200, "POST", "/v1/slides?name=x.svs", post())
	for _, part := range []string{"/thumbnail", "/dzi", "/dzi_files/9/0_0.jpeg"} {
		etag := s.want(200, "HEAD", "/v1/slides/"+idA+part, nil).Header.Get("ETag")
		s.want(304, "GET", "/v1/slides/"+idA+part, nil, "If-None-Match", etag)
	}
	s.want(403, "POST", "/v1/slides?name=x.svs", post(), "Sec-Fetch-Site", "cross-site")

	statuses := map[coverslip.Kind]int{
		coverslip.Invalid: 422, coverslip.NeedsMPP: 422, coverslip.Unsupported: 415, coverslip.NotFound: 404, coverslip.Conflict: 409, coverslip.TooLarge: 413,
		coverslip.Full: 507, coverslip.Unavailable: 503, coverslip.Environment: 503, coverslip.Canceled: 503, coverslip.Internal: 500,
	}
	for _, kind := range []coverslip.Kind{coverslip.Unavailable, coverslip.Environment, coverslip.Canceled, coverslip.Internal} {
		s.fail = &coverslip.Error{Kind: kind, Op: "try", Err: errors.New("it is made to fail"), Hint: "do not"}
		for _, target := range []string{"", "/" + idA, "/" + idA + "/thumbnail", "/" + idA + "/embedding", "/" + idA + "/similar", "/" + idA + "/dzi", "/" + idA + "/dzi_files/9/0_0.jpeg"} {
			s.wantKind(kind, statuses[kind], "GET", "/v1/slides"+target, nil)
		}
	}
	for kind, status := range statuses {
		if kind == coverslip.NotFound {
			continue // an upload looks for nothing
		}
		s.fail = &coverslip.Error{Kind: kind, Op: "try", Err: errors.New("it is made to fail"), Hint: "do not"}
		a := s.want(status, "POST", "/v1/slides?name=x.svs", post())
		if a.problem.Kind != kind {
			t.Errorf("kind %s became %s", kind, a.problem.Kind)
		}
		if (status == 503) != (a.Header.Get("Retry-After") != "") {
			t.Errorf("%d with Retry-After %q", status, a.Header.Get("Retry-After"))
		}
	}
	s.fail = &coverslip.Error{Kind: coverslip.Canceled, Op: "read", Err: io.ErrUnexpectedEOF, Hint: "again"}
	s.want(499, "POST", "/v1/slides?name=x.svs", post())
	for _, target := range []string{"", "/" + idA, "/" + idA + "/thumbnail", "/" + idA + "/embedding", "/" + idA + "/similar", "/" + idA + "/dzi", "/" + idA + "/dzi_files/9/0_0.jpeg"} {
		s.want(499, "GET", "/v1/slides"+target, nil)
	}
	s.fail = &coverslip.Error{Kind: coverslip.Unsupported, Op: "draw", Err: errors.New("no reader"), Hint: "convert it"}
	for _, part := range []string{"/thumbnail", "/dzi_files/9/0_0.jpeg"} {
		s.wantKind(coverslip.Unsupported, 415, "GET", "/v1/slides/"+idA+part, nil)
	}
	s.fail = &coverslip.Error{Kind: coverslip.TooLarge, Op: "draw", Err: errors.New("too large"), Hint: "convert it"}
	s.wantKind(coverslip.TooLarge, 413, "GET", "/v1/slides/"+idA+"/dzi_files/9/0_0.jpeg", nil)
	s.uploadAnswers(statuses)
	s.cohortAnswers(statuses)
	s.runAnswers(statuses)
	s.taskAnswers(statuses)
	s.keyAnswers(statuses)
	s.exportAnswers(statuses)
	s.searchAnswers(statuses)
	s.fail = nil
	for _, part := range []string{"", "/thumbnail", "/embedding", "/similar", "/dzi", "/dzi_files/9/0_0.jpeg"} {
		s.wantKind(coverslip.NotFound, 404, "GET", "/v1/slides/0123456789"+part, nil)
		s.wantKind(coverslip.Conflict, 409, "GET", "/v1/slides/aaaaaa"+part, nil)
	}
	s.fail = errors.New("no answer")
	s.want(503, "GET", "/readyz", nil)
	s.fail, s.crash = nil, "made to crash"
	s.want(500, "GET", "/readyz", nil)

	for path, item := range s.contract.Paths.Map() {
		for method, op := range item.Operations() {
			if op.Summary == "" || op.OperationID == "" {
				t.Errorf("%s %s has no summary", method, path)
			}
			for status, resp := range op.Responses.Map() {
				if status == "401" || status == "429" || status == "403" && method == "GET" { // TestNobodyGetsInWithoutAKey, TestWhoAsksTooOftenWaits
					continue
				}
				if !s.seen[method+" "+path+" "+status] {
					t.Errorf("the contract promises %s %s %s, which nothing made happen", method, path, status)
				}
				for _, media := range resp.Value.Content {
					if media.Example == nil && media.Examples == nil && (media.Schema == nil || media.Schema.Value.Format != "binary") {
						t.Errorf("%s %s %s has no example", method, path, status)
					}
				}
			}
		}
	}
}

func TestContractIsValidAndItsExamplesFitIt(t *testing.T) {
	s := newSite(t)
	if s.contract.OpenAPI != "3.1.0" {
		t.Errorf("OpenAPI %s", s.contract.OpenAPI)
	}
	if err := s.contract.Validate(t.Context(), openapi3.EnableExamplesValidation()); err != nil {
		t.Error(err)
	}
	for name, schema := range s.contract.Components.Schemas {
		for field, f := range schema.Value.Properties {
			if f.Value.Description == "" && name != "ErrorDetail" {
				t.Errorf("%s.%s is not described", name, field)
			}
		}
	}
	if strings.Contains(fmt.Sprint(s.contract.Components.Schemas), "location") && s.contract.Components.Schemas["Slide"].Value.Properties["location"] != nil {
		t.Error("the contract shows where the server keeps slides")
	}
}

func TestShowGivesTheSlideAndItsBag(t *testing.T) {
	s := newSite(t)
	want := s.add(idA, coverslip.Embedded, 1, 0)
	queued := s.add(idB, coverslip.Queued)

	got := decode[struct {
		coverslip.Slide
		Bag coverslip.Bag `json:"bag"`
	}](t, s.want(200, "GET", "/v1/slides/aaaaaa1", nil))
	want.Location = "" // the server's own business
	if !reflect.DeepEqual(got.Slide, want) || !reflect.DeepEqual(got.Bag, s.bags[want.ID]) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if a := s.want(200, "GET", "/v1/slides/"+string(queued.ID), nil); bytes.Contains(a.body, []byte(`"bag"`)) || bytes.Contains(a.body, []byte("secret")) {
		t.Errorf("%s", a.body)
	}
	for _, id := range []string{"aaaaa", "AAAAAA1", "zzzzzz", strings.Repeat("a", 65), "%00%00%00%00%00%00"} {
		s.wantKind(coverslip.Invalid, 422, "GET", "/v1/slides/"+id, nil)
	}
	if a := s.raw("GET", "/v1/slides/..%2f..%2fx", nil); a.StatusCode != 422 {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

func TestListPagesMeetEverySlideOnce(t *testing.T) {
	s := newSite(t)
	for i := range 7 {
		state := coverslip.Queued
		if i%2 == 0 {
			state = coverslip.Failed
		}
		s.add(fmt.Sprintf("%064x", 7-i), state)
	}
	type list struct {
		Slides []coverslip.Slide `json:"slides"`
		Next   string            `json:"next"`
	}
	pages := func(query string) (ids []string, n int) {
		next := ""
		for {
			target := "/v1/slides?" + query
			if next != "" {
				target += "&cursor=" + next
			}
			l := decode[list](t, s.want(200, "GET", target, nil))
			for _, sl := range l.Slides {
				ids = append(ids, strings.TrimLeft(string(sl.ID), "0"))
			}
			if n++; l.Next == "" {
				return ids, n
			}
			next = l.Next
		}
	}
	if ids, n := pages("limit=3"); !slices.Equal(ids, []string{"7", "6", "5", "4", "3", "2", "1"}) || n != 3 {
		t.Errorf("%v in %d pages", ids, n)
	}
	if ids, n := pages("limit=7"); len(ids) != 7 || n != 1 {
		t.Errorf("a full last page names another: %v in %d pages", ids, n)
	}
	if ids, _ := pages("limit=1&state=failed"); !slices.Equal(ids, []string{"7", "5", "3", "1"}) {
		t.Errorf("failed: %v", ids)
	}
	if a := s.want(200, "GET", "/v1/slides?state=no_tissue", nil); !bytes.Contains(a.body, []byte(`"slides":[]`)) {
		t.Errorf("an empty page is %s", a.body)
	}
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "state=lost", "cursor=!", "cursor=AAAA", "cursor=" + strings.Repeat("A", 300),
		"cursor=MjAyNi0wNS0wNFQwOTozMDowMFogeA", "cursor=%zz"} {
		s.wantKind(coverslip.Invalid, 422, "GET", "/v1/slides?"+query, nil)
	}
}

func TestThumbnailIsDrawnOnceForAClientThatKeepsIt(t *testing.T) {
	s := newSite(t)
	s.add(idA, coverslip.Queued)
	target := "/v1/slides/" + idA + "/thumbnail"
	for query, edge := range map[string]int{"": 512, "?size=16": 16, "?size=2048": 2048} {
		a := s.want(200, "GET", target+query, nil)
		img, err := jpeg.DecodeConfig(bytes.NewReader(a.body))
		if err != nil || img.Width != edge || a.Header.Get("Content-Type") != "image/jpeg" {
			t.Errorf("%s: %v %+v", query, err, img)
		}
		drawn := s.drawn
		for _, tag := range []string{a.Header.Get("ETag"), `"x", W/` + a.Header.Get("ETag"), "*"} {
			if same := s.want(304, "GET", target+query, nil, "If-None-Match", tag); len(same.body) != 0 || same.Header.Get("ETag") != a.Header.Get("ETag") {
				t.Errorf("304 with %d bytes", len(same.body))
			}
		}
		if s.drawn != drawn {
			t.Error("drawn again for a client that has it")
		}
		s.want(200, "GET", target+"?size=100", nil, "If-None-Match", a.Header.Get("ETag"))
	}
	for _, size := range []string{"15", "2049", "-1", "big", "1e3"} {
		s.wantKind(coverslip.Invalid, 422, "GET", target+"?size="+size, nil)
	}
}

func TestMissingEmbeddingSaysTheState(t *testing.T) {
	s := newSite(t)
	want := s.add(idA, coverslip.Embedded, 0.6, -0.8)
	if got := decode[coverslip.Embedding](t, s.want(200, "GET", "/v1/slides/"+idA[:8]+"/embedding", nil)); !reflect.DeepEqual(got, s.embeddings[want.ID]) {
		t.Errorf("%+v", got)
	}
	for _, state := range []coverslip.State{coverslip.Queued, coverslip.Encoding, coverslip.NoTissue, coverslip.AwaitingMPP, coverslip.Failed} {
		broken := s.add(idD, state)
		broken.Reason = "read level 0: the file ends early (upload it again)"
		s.slides[broken.ID] = broken
		for _, part := range []string{"/embedding", "/similar"} {
			if p := s.wantKind(coverslip.NotFound, 404, "GET", "/v1/slides/"+idD+part, nil); p.State != state || !strings.Contains(p.Detail, string(state)) {
				t.Errorf("%s: %+v", state, p)
			}
		}
	}
}

func TestSimilarIsBestFirst(t *testing.T) {
	s := newSite(t)
	s.add(idA, coverslip.Embedded, 1, 0)
	s.add(idB, coverslip.Embedded, 0, 1)
	s.add(idC, coverslip.Embedded, 0.8, 0.6)
	type list struct {
		Slide      coverslip.SlideID     `json:"slide"`
		Neighbours []coverslip.Neighbour `json:"neighbours"`
	}
	got := decode[list](t, s.want(200, "GET", "/v1/slides/"+idA+"/similar", nil))
	if len(got.Neighbours) != 2 || got.Neighbours[0].Slide != coverslip.SlideID(idC) || got.Neighbours[0].Name != "cccccc.svs" || got.Slide != coverslip.SlideID(idA) {
		t.Errorf("%+v", got)
	}
	if got := decode[list](t, s.want(200, "GET", "/v1/slides/"+idA+"/similar?k=1", nil)); len(got.Neighbours) != 1 {
		t.Errorf("k=1: %+v", got)
	}
	for _, k := range []string{"0", "101", "all"} {
		s.wantKind(coverslip.Invalid, 422, "GET", "/v1/slides/"+idA+"/similar?k="+k, nil)
	}
}

func TestReadyNamesThePartThatFails(t *testing.T) {
	s := newSite(t)
	type ready struct {
		OK     bool `json:"ok"`
		Checks []struct {
			Name, Detail, Hint string
			OK                 bool
		} `json:"checks"`
	}
	if got := decode[ready](t, s.want(200, "GET", "/readyz", nil)); !got.OK || len(got.Checks) != 2 {
		t.Errorf("%+v", got)
	}
	s.fail = &coverslip.Error{Kind: coverslip.Unavailable, Op: "ping", Err: errors.New("refused"), Hint: "start it"}
	got := decode[ready](t, s.want(503, "GET", "/readyz", nil))
	if got.OK || got.Checks[0].OK || got.Checks[0].Hint != "start it" || !strings.Contains(got.Checks[0].Detail, "refused") || !got.Checks[1].OK {
		t.Errorf("%+v", got)
	}
	s.want(200, "GET", "/healthz", nil) // alive all the same
}

func TestRouterAnswersWithProblems(t *testing.T) {
	s := newSite(t)
	if a := s.raw("GET", "/v2/nothing", nil); a.StatusCode != 404 || a.problem.Kind != coverslip.NotFound {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	for _, method := range []string{"DELETE", "PUT", "OPTIONS", "BREW"} {
		a := s.raw(method, "/v1/slides", nil)
		if allow := strings.Join(a.Header.Values("Allow"), " "); a.StatusCode != 405 || a.problem.Kind != coverslip.Invalid || allow != "GET HEAD POST" {
			t.Errorf("%s: %d, Allow %q, %s", method, a.StatusCode, allow, a.body)
		}
	}
	if a := s.raw("GET", "/", nil); a.StatusCode != 200 || !bytes.Contains(a.body, []byte("/openapi.json")) {
		t.Errorf("%s", a.body)
	}
	if a := s.raw("HEAD", "/v1/slides", nil); a.StatusCode != 200 || len(a.body) != 0 {
		t.Errorf("HEAD: %d %s", a.StatusCode, a.body)
	}
}

func TestInternalCauseStaysInTheLog(t *testing.T) {
	s := newSite(t)
	s.fail = errors.New("password is hunter2")
	failed := s.want(500, "GET", "/v1/slides", nil, "X-Request-Id", "mine-1")
	s.fail, s.crash = nil, "hunter3 crashed"
	crashed := s.want(500, "GET", "/v1/slides/"+idA, nil, "X-Request-Id", "bad id; no")
	s.stop()
	if bytes.Contains(append(failed.body, crashed.body...), []byte("hunter")) {
		t.Errorf("the cause got out: %s %s", failed.body, crashed.body)
	}
	if failed.problem.RequestID != "mine-1" || crashed.problem.RequestID == "bad id; no" {
		t.Errorf("request ids %q, %q", failed.problem.RequestID, crashed.problem.RequestID)
	}
	for _, want := range []string{"hunter2", "hunter3", `"request_id":"mine-1"`, `"level":"ERROR"`, "api_test.(*memory).Slide" /* the stack */} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("%s is not in the log:\n%s", want, s.log)
		}
	}
}

func TestLogNamesTheSlide(t *testing.T) {
	s := newSite(t)
	s.add(idA, coverslip.Embedded, 1, 0)
	s.want(200, "GET", "/v1/slides/aaaaaa/embedding", nil)
	s.want(200, "GET", "/healthz", nil)
	s.stop()
	if !strings.Contains(s.log.String(), `"slide":"`+idA+`"`) || strings.Contains(s.log.String(), "/healthz") {
		t.Errorf("%s", s.log)
	}
}

func TestMetricsCountByRouteNotByAddress(t *testing.T) {
	extra := prometheus.NewGauge(prometheus.GaugeOpts{Name: "coverslip_extra", Help: "Handed in."})
	s := newSite(t, func(c *api.Config) { c.Collectors = []prometheus.Collector{extra} })
	s.add(idA, coverslip.Queued)
	s.want(200, "GET", "/v1/slides/"+idA, nil)
	s.want(404, "GET", "/v1/slides/"+idB, nil)
	s.want(201, "POST", "/v1/slides?name=x", strings.NewReader("12345"))
	s.raw("GET", "/made/up", nil)
	s.raw("BREW", "/v1/slides", nil)
	text := string(s.want(200, "GET", "/metrics", nil).body)
	for _, want := range []string{
		`coverslip_http_requests_total{code="200",method="GET",route="/v1/slides/{id}"} 1`,
		`coverslip_http_requests_total{code="404",method="GET",route="/v1/slides/{id}"} 1`,
		`coverslip_http_requests_total{code="404",method="any",route="none"} 1`,
		`coverslip_http_requests_total{code="405",method="any",route="none"} 1`,
		`coverslip_http_uploaded_bytes_total 5`, `coverslip_http_requests_in_flight 1`, `coverslip_extra 0`,
		`coverslip_http_request_duration_seconds_count{method="POST",route="/v1/slides"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(text, "aaaaaa") || strings.Contains(text, "made") || strings.Contains(text, "BREW") {
		t.Error("a client can make up labels")
	}
}

func TestIncompleteConfigIsRefused(t *testing.T) {
	m := newMemory()
	full := api.Config{Slides: m, Searcher: m, Uploader: m, Thumbnailer: m, DeepZoomer: m, Ready: m.Ready, Resumable: m, Registrar: m, Embedder: m}
	if _, err := api.New(full); err != nil {
		t.Error(err)
	}
	full.Collectors = []prometheus.Collector{prometheus.NewGauge(prometheus.GaugeOpts{Name: "x", Help: "x"}), prometheus.NewGauge(prometheus.GaugeOpts{Name: "x", Help: "x"})}
	if _, err := api.New(full); err == nil {
		t.Error("two collectors of one name")
	}
	if _, err := api.New(api.Config{Slides: m}); err == nil {
		t.Error("no uploader")
	}
}

// FuzzRequest holds the API to fault 31: whatever the request, it is the client's fault or fine.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{"/v1/slides?cursor=AAAA&limit=3", "/v1/slides/aaaaaa/similar?k=NaN", "/v1/slides/%00/thumbnail?size=9999999999999999999",
		"/v1/slides/aaaaaa/thumbnail?size", "/v1/slides?state=%ff", "/v1/slides//", "//", "/v1/slides/aaaaaa%2fembedding", "/?=&=&;", "/v1/slides/aaaaaa?%zz",
		"/v1/slides/aaaaaa/dzi_files/9/0_0.jpeg", "/v1/slides/aaaaaa/dzi_files/-9/99999999999_0.jpeg", "/slides/%2e%2e/view", "/web/..%2fviewer.html"} {
		f.Add("GET", seed, "x")
	}
	for _, seed := range []string{"/v1/slides?name=x&mpp_of_slide=NaN", "/v1/slides?name=x&mpp_of_slide=-Inf", "/v1/slides?name=x&mpp_of_slide=1e999", "/v1/slides?name=%00", "/v1/slides"} {
		f.Add("POST", seed, "attachment; filename*=UTF-8''%e2%82")
	}
	m := newMemory()
	m.add(idA, coverslip.Embedded, 1, 0)
	h, err := api.New(api.Config{Slides: m, Searcher: m, Uploader: m, Thumbnailer: m, DeepZoomer: m, Ready: m.Ready, Resumable: m, Registrar: m, Embedder: m, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, target, header string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Host != "" {
			return // net/http does not let it in
		}
		r := httptest.NewRequest("GET", "/", strings.NewReader("a slide"))
		r.Method, r.URL, r.RequestURI = method, u, target
		r.Header.Set("Content-Disposition", header)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Errorf("%s %q: %d %s", method, target, w.Code, w.Body)
		}
		if w.Code >= 400 && w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %q: %d as %s", method, target, w.Code, w.Header().Get("Content-Type"))
		}
	})
}
