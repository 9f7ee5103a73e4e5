package api_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"coverslip"
	"coverslip/api"
)

// keyRing is one key and one entry of the audit log.
type keyRing struct{ m *memory }

var keyA = api.Key{ID: "abc234", Name: "scanner", Scope: api.Write, Created: time.Unix(1, 0).UTC()}

func (r keyRing) Keys(context.Context) ([]api.Key, error) { return []api.Key{keyA}, r.m.fail }

func (r keyRing) AddKey(_ context.Context, name string, scope api.Scope, expires *time.Time) (api.Key, string, error) {
	return api.Key{ID: "def567", Name: name, Scope: scope, Created: keyA.Created, Expires: expires}, "coverslip_def567_SECRET", r.m.fail
}

func (r keyRing) RevokeKey(_ context.Context, id string) error {
	if r.m.fail == nil && id != keyA.ID {
		return missing("key")
	}
	return r.m.fail
}

func (r keyRing) AuditLog(_ context.Context, limit int) ([]api.AuditEntry, error) {
	return []api.AuditEntry{{At: keyA.Created, Who: "scanner", Action: "POST /v1/slides", Path: "/v1/slides", Status: 201}}[:min(limit, 1)], r.m.fail
}

// keyAnswers meets every answer that the contract promises of keys.
func (s *site) keyAnswers(statuses map[coverslip.Kind]int) {
	for _, r := range []struct {
		method, target string
		status         int
		body           string
	}{{"GET", "/v1/keys", 200, ""}, {"POST", "/v1/keys", 201, `{"name": "a"}`}, {"DELETE", "/v1/keys/abc234", 204, ""}, {"GET", "/v1/audit", 200, ""}} {
		body := func() io.Reader {
			if r.body == "" {
				return nil
			}
			return strings.NewReader(r.body)
		}
		s.fail = nil
		s.want(r.status, r.method, r.target, body(), "Content-Type", jsonType)
		s.want(422, r.method, r.target+"?nonsense=1", body(), "Content-Type", jsonType)
		for _, kind := range []coverslip.Kind{coverslip.Unavailable, coverslip.Environment, coverslip.Canceled, coverslip.Internal} {
			s.fail = &coverslip.Error{Kind: kind, Op: "try", Hint: "do not"}
			s.wantKind(kind, statuses[kind], r.method, r.target, body(), "Content-Type", jsonType)
		}
		s.fail = &coverslip.Error{Kind: coverslip.Canceled, Op: "read", Err: io.ErrUnexpectedEOF, Hint: "again"}
		s.want(499, r.method, r.target, body(), "Content-Type", jsonType)
		s.fail = nil
		if r.method != "GET" {
			s.want(403, r.method, r.target, body(), "Content-Type", jsonType, "Origin", "http://evil.example")
		}
	}
	s.wantKind(coverslip.NotFound, 404, "DELETE", "/v1/keys/zzz", nil)
	for _, bad := range []string{`{}`, `{"name": ""}`, `{"name": "a", "scope": "root"}`, `{"name": "a", "expires": "soon"}`} {
		s.want(422, "POST", "/v1/keys", strings.NewReader(bad), "Content-Type", jsonType)
	}
}

func TestKeysAreMadeListedAndEnded(t *testing.T) {
	d := newDoors()
	s := newSite(t, func(c *api.Config) { c.Gate, c.Auditor, c.Repeats = d, d, d })
	add := func() answer {
		return s.want(201, "POST", "/v1/keys", strings.NewReader(`{"name": "new", "expires": "2030-01-02T03:04:05Z"}`), "Content-Type", jsonType, "Authorization", "Bearer admin", "Idempotency-Key", "one")
	}
	first, again := add(), add()
	if !strings.Contains(string(first.body), `"key":"coverslip_def567_SECRET"`) || !strings.Contains(string(first.body), `"scope":"read"`) || !strings.Contains(string(first.body), "2030-01-02T03:04:05Z") {
		t.Errorf("%s", first.body)
	}
	if again.Header.Get("Idempotency-Replayed") != "" || len(d.answers) != 0 {
		t.Error("an answer with a secret was kept")
	}
	if list := s.want(200, "GET", "/v1/keys", nil, "Authorization", "Bearer admin"); strings.Contains(string(list.body), "SECRET") || !strings.Contains(string(list.body), keyA.ID) {
		t.Errorf("%s", list.body)
	}
	s.want(204, "DELETE", "/v1/keys/abc234", nil, "Authorization", "Bearer admin")
	var who []string
	for _, e := range d.log {
		who = append(who, e.Who+" "+e.Action)
	}
	if got := strings.Join(who, ", "); got != "a POST /v1/keys, a POST /v1/keys, a DELETE /v1/keys/{key}" {
		t.Error(got)
	}
}
