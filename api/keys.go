package api

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// Keys are those that let requests in, and what was done with them.
type Keys interface {
	// Keys returns all, the newest first.
	Keys(ctx context.Context) ([]Key, error)
	// AddKey makes one and returns it with its secret, which is not kept.
	AddKey(ctx context.Context, name string, scope Scope, expires *time.Time) (k Key, secret string, err error)
	// RevokeKey ends one; NotFound where there is none that works.
	RevokeKey(ctx context.Context, id string) error
	// AuditLog returns the latest entries, the newest first.
	AuditLog(ctx context.Context, limit int) ([]AuditEntry, error)
}

// Key is what is known of one.
type Key struct {
	ID      string
	Name    string
	Scope   Scope
	Created time.Time
	Expires *time.Time
	Used    *time.Time
	Revoked *time.Time
}

const (
	keysPath  = "/v1/keys"
	auditPath = "/v1/audit"
)

// administers reports whether a route is for those who run the server.
func administers(path string) bool {
	return path == keysPath || strings.HasPrefix(path, keysPath+"/") || path == auditPath
}

func (s *server) keyRoutes() {
	op := func(method, path, id, summary, description string) huma.Operation {
		return huma.Operation{Method: method, Path: path, OperationID: id, Tags: []string{"server"}, Summary: summary, Description: description + " Takes a key of scope admin where keys are asked for."}
	}
	register(s.api, op(http.MethodGet, keysPath, "list-keys", "List API keys", "The newest first, without their secrets."), keyList{[]keyView{exampleKey}}, stumbles, s.listKeys)
	add := op(http.MethodPost, keysPath, "add-key", "Make an API key", "The answer is the only time its secret is shown; an Idempotency-Key is passed over.")
	add.DefaultStatus = http.StatusCreated
	register(s.api, add, exampleNewKey, stumbles, s.addKey)
	revoke := op(http.MethodDelete, keysPath+"/{key}", "revoke-key", "End an API key", "At once.")
	revoke.DefaultStatus = http.StatusNoContent
	register(s.api, revoke, nil, slices.Concat([]coverslip.Kind{coverslip.NotFound}, stumbles), s.revokeKey)
	register(s.api, op(http.MethodGet, auditPath, "audit-log", "Who changed what", "The newest first."), auditList{[]auditView{exampleAudit}}, stumbles, s.listAudit)
}

type keyView struct {
	ID      string     `json:"id" doc:"Names it; no secret"`
	Name    string     `json:"name" doc:"Whose it is, or what for"`
	Scope   Scope      `json:"scope" enum:"read,write,admin" doc:"What it may do"`
	Created time.Time  `json:"created" doc:"When it was made"`
	Expires *time.Time `json:"expires,omitempty" doc:"Until when it works"`
	Used    *time.Time `json:"used,omitempty" doc:"When it was last used, to the minute"`
	Revoked *time.Time `json:"revoked,omitempty" doc:"When it was ended"`
	Key     string     `json:"key,omitempty" doc:"What to send as Authorization: Bearer; only in the answer that makes it"`
}

func viewKey(k Key) keyView {
	return keyView{ID: k.ID, Name: k.Name, Scope: k.Scope, Created: k.Created, Expires: k.Expires, Used: k.Used, Revoked: k.Revoked}
}

type keyList struct {
	Keys []keyView `json:"keys" nullable:"false" doc:"All of them"`
}

type auditView struct {
	At        time.Time         `json:"at" doc:"When"`
	Who       string            `json:"who" doc:"Name of the key or token; empty where none was asked for"`
	Action    string            `json:"action" doc:"Method and route"`
	Path      string            `json:"path" doc:"The address"`
	Slide     coverslip.SlideID `json:"slide,omitempty" doc:"Of which slide, where it is of one"`
	Status    int               `json:"status" doc:"How it was answered"`
	Remote    string            `json:"remote" doc:"From where"`
	RequestID string            `json:"request_id" doc:"Finds the request in the server's log"`
}

type auditList struct {
	Entries []auditView `json:"entries" nullable:"false" doc:"The latest"`
}

type keysOutput struct{ Body keyList }

func (s *server) listKeys(ctx context.Context, _ *struct{}) (*keysOutput, error) {
	all, err := s.cfg.Keys.Keys(ctx)
	return &keysOutput{keyList{each(all, viewKey)}}, err
}

type addKeyInput struct {
	Body struct {
		Name    string     `json:"name" minLength:"1" maxLength:"200" doc:"Whose it is, or what for; the audit log says it" example:"scanner-room"`
		Scope   Scope      `json:"scope,omitempty" enum:"read,write,admin" default:"read" doc:"What it may do; each includes those before it"`
		Expires *time.Time `json:"expires,omitempty" nullable:"true" doc:"Until when it works; without it, until it is revoked"`
	}
}

type newKeyOutput struct{ Body keyView }

func (s *server) addKey(ctx context.Context, in *addKeyInput) (*newKeyOutput, error) {
	k, secret, err := s.cfg.Keys.AddKey(ctx, in.Body.Name, in.Body.Scope, in.Body.Expires)
	out := &newKeyOutput{viewKey(k)}
	out.Body.Key = secret
	return out, err
}

type oneKey struct {
	ID string `path:"key" pattern:"^[a-z2-7]{1,40}$" doc:"The key's id" example:"3k7qzj2a"`
}

func (s *server) revokeKey(ctx context.Context, in *oneKey) (*struct{}, error) {
	return nil, s.cfg.Keys.RevokeKey(ctx, in.ID)
}

type auditInput struct {
	Limit int `query:"limit" minimum:"1" maximum:"10000" default:"100" doc:"At most so many"`
}

type auditOutput struct{ Body auditList }

func (s *server) listAudit(ctx context.Context, in *auditInput) (*auditOutput, error) {
	all, err := s.cfg.Keys.AuditLog(ctx, in.Limit)
	return &auditOutput{auditList{each(all, func(e AuditEntry) auditView { return auditView(e) })}}, err
}

var (
	exampleKey    = keyView{ID: "3k7qzj2a", Name: "scanner-room", Scope: Write, Created: exampleTime}
	exampleNewKey = func() keyView {
		k := exampleKey
		k.Key = "coverslip_3k7qzj2a_" + strings.Repeat("A2", 26)
		return k
	}()
	exampleAudit = auditView{At: exampleTime, Who: "scanner-room", Action: "POST /v1/slides", Path: "/v1/slides", Slide: exampleSlide.ID, Status: 201, Remote: "10.0.0.7:50312", RequestID: "LZC5XGMSWRQ4DHTJ2EQ6SVOH7A"}
)
