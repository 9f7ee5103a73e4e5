package api_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"coverslip"
	"coverslip/api"
)

// doors is a gate, an audit log and remembered answers in memory.
type doors struct {
	mu      sync.Mutex
	log     []api.AuditEntry
	answers map[string]*api.Answer
	asked   map[string][32]byte
}

func (d *doors) Identify(_ context.Context, key string) (api.Identity, error) {
	switch key {
	case "reader":
		return api.Identity{Name: "r", Scope: api.Read}, nil
	case "writer":
		return api.Identity{Name: "w", Scope: api.Write}, nil
	case "admin":
		return api.Identity{Name: "a", Scope: api.Admin}, nil
	}
	return api.Identity{}, missing("key")
}

func (d *doors) Audit(_ context.Context, e api.AuditEntry) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, e)
	return nil
}

func (d *doors) Claim(_ context.Context, who, key string, request [32]byte) (*api.Answer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if before, ok := d.asked[who+key]; ok && before != request {
		return nil, &coverslip.Error{Kind: coverslip.Conflict, Op: "claim", Err: errors.New("another request"), Hint: "another key"}
	}
	d.asked[who+key] = request
	return d.answers[who+key], nil
}

func (d *doors) Settle(_ context.Context, who, key string, a *api.Answer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a == nil {
		delete(d.asked, who+key)
		return nil
	}
	d.answers[who+key] = a
	return nil
}

func newDoors() *doors {
	return &doors{answers: map[string]*api.Answer{}, asked: map[string][32]byte{}}
}

func TestNobodyGetsInWithoutAKey(t *testing.T) {
	d := newDoors()
	s := newSite(t, func(c *api.Config) { c.Gate, c.Auditor = d, d })
	s.add(idA, coverslip.Embedded, 1, 0)
	fill := strings.NewReplacer("{id}", idA, "{upload}", strings.Repeat("a", 26), "{level}", "9", "{tile}", "0_0.jpeg", "{name}", "brca", "{cohort}", "brca", "{job}", "7")
	n := 0
	for path, item := range s.contract.Paths.Map() {
		for method, op := range item.Operations() {
			target := fill.Replace(path)
			if op.Responses.Value("401") == nil {
				if a := s.raw(method, target, nil); a.StatusCode == 401 {
					t.Errorf("%s %s asks for a key, and does not say so", method, path)
				}
				continue
			}
			n++
			for _, header := range [][]string{nil, {"Authorization", "Bearer stolen"}, {"Authorization", "Basic cmVhZGVy"}, {"Cookie", "coverslip_key=stolen"}} {
				a := s.want(401, method, target, nil, header...)
				if method != http.MethodHead && (a.problem.Hint == "" || a.Header.Get("WWW-Authenticate") == "") {
					t.Errorf("%s %s: %s", method, path, a.body)
				}
			}
			if strings.HasPrefix(path, "/v1/keys") || path == "/v1/audit" {
				s.want(403, method, target, nil, "Authorization", "Bearer writer")
				if a := s.raw(method, target, nil, "Authorization", "Bearer admin"); a.StatusCode == 401 || a.StatusCode == 403 {
					t.Errorf("%s %s refuses an admin: %s", method, path, a.body)
				}
				continue
			}
			if writes := method != "GET" && method != "HEAD" && !strings.HasPrefix(path, "/v1/embeddings/"); writes {
				s.want(403, method, target, nil, "Authorization", "Bearer reader")
			} else if a := s.raw(method, target, nil, "Authorization", "Bearer reader"); a.StatusCode == 401 || a.StatusCode == 403 {
				t.Errorf("%s %s refuses a reader: %s", method, path, a.body)
			}
		}
	}
	if n < 15 {
		t.Errorf("only %d operations ask for a key", n)
	}
	for _, path := range []string{"/healthz", "/readyz", "/openapi.json", "/sign-in"} {
		if a := s.raw("GET", path, nil); a.StatusCode != 200 {
			t.Errorf("%s: %d", path, a.StatusCode)
		}
	}
	if a := s.raw("GET", "/", nil, "Accept", "text/html"); a.StatusCode != 303 || a.Header.Get("Location") != "/sign-in?to=%2F" {
		t.Errorf("a browser is sent to %d %s", a.StatusCode, a.Header.Get("Location"))
	}
	s.raw("GET", "/v1/slides", nil, "Cookie", "coverslip_key=reader")
	d.log = nil
	s.want(201, "POST", "/v1/slides?name=x.svs", strings.NewReader("a slide"), "Authorization", "Bearer writer")
	if len(d.log) != 1 || d.log[0].Who != "w" || d.log[0].Action != "POST /v1/slides" || d.log[0].Status != 201 || d.log[0].Slide == "" || d.log[0].RequestID == "" {
		t.Errorf("the audit log says %+v", d.log)
	}
	s.stop()
	for _, secret := range []string{"stolen", "reader", "writer", "cmVhZGVy"} {
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
	if !strings.Contains(s.log.String(), `"who":"w"`) {
		t.Error("the log does not say who")
	}
}

func TestSigningInWithABrowser(t *testing.T) {
	d := newDoors()
	s := newSite(t, func(c *api.Config) { c.Gate = d })
	if a := s.raw("POST", "/sign-in", strings.NewReader("key=stolen"), "Content-Type", "application/x-www-form-urlencoded"); a.StatusCode != 401 || a.Header.Get("Set-Cookie") != "" {
		t.Errorf("%d %s", a.StatusCode, a.Header.Get("Set-Cookie"))
	}
	for to, want := range map[string]string{"": "/", "/slides/x": "/slides/x", "//evil.example": "/", "https://evil.example": "/", `/\evil.example`: "/"} {
		a := s.raw("POST", "/sign-in?to="+to, strings.NewReader("key=reader"), "Content-Type", "application/x-www-form-urlencoded")
		cookie := a.Header.Get("Set-Cookie")
		if a.StatusCode != 303 || a.Header.Get("Location") != want || !strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=Strict") {
			t.Errorf("%q: %d to %s, %s", to, a.StatusCode, a.Header.Get("Location"), cookie)
		}
	}
}

func TestWhoAsksTooOftenWaits(t *testing.T) {
	d := newDoors()
	s := newSite(t, func(c *api.Config) { c.Gate, c.Rate = d, 5 })
	as := []string{"Authorization", "Bearer reader"}
	for range 5 {
		s.want(200, "GET", "/v1/slides", nil, as...)
	}
	a := s.want(429, "GET", "/v1/slides", nil, as...)
	if a.problem.Kind != coverslip.TooLarge || a.Header.Get("Retry-After") == "" {
		t.Errorf("%s, Retry-After %q", a.body, a.Header.Get("Retry-After"))
	}
	s.want(200, "GET", "/v1/slides", nil, "Authorization", "Bearer writer") // somebody else
}

func TestSameIdempotencyKeyIsTheSameAnswer(t *testing.T) {
	d := newDoors()
	s := newSite(t, func(c *api.Config) { c.Repeats = d })
	ask := func(status int, place, key string) answer {
		t.Helper()
		return s.want(status, "POST", "/v1/slides/register", strings.NewReader(`{"location":"`+place+`"}`), "Content-Type", "application/json", "Idempotency-Key", key)
	}
	first := ask(201, "s3://b/a.svs", "k")
	again := ask(201, "s3://b/a.svs", "k")
	if string(first.body) != string(again.body) || again.Header.Get("Idempotency-Replayed") != "true" || again.Header.Get("Location") != first.Header.Get("Location") {
		t.Errorf("first %s, again %s", first.body, again.body)
	}
	ask(200, "s3://b/a.svs", "other")
	ask(409, "s3://b/b.svs", "k")
	s.fail = &coverslip.Error{Kind: coverslip.Unavailable, Op: "try", Err: errors.New("no"), Hint: "again"}
	ask(503, "s3://b/c.svs", "later")
	s.fail = nil
	ask(201, "s3://b/c.svs", "later") // a failure is not remembered
}
