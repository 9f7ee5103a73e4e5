package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/go-chi/httprate"
)

// Scope is what somebody may do; each includes those before it.
type Scope string

// The scopes, the least first.
const (
	Read  Scope = "read"
	Write Scope = "write"
	Admin Scope = "admin"
)

func (s Scope) covers(other Scope) bool {
	rank := map[Scope]int{Read: 1, Write: 2, Admin: 3}
	return rank[s] >= rank[other]
}

// Identity is who asks.
type Identity struct {
	Name  string
	Scope Scope
}

// Gate says whose a credential is: an API key or a token. One that is unknown, revoked or expired is
// NotFound.
type Gate interface {
	Identify(ctx context.Context, credential string) (Identity, error)
}

// Auditor writes down who changed what.
type Auditor interface {
	Audit(ctx context.Context, e AuditEntry) error
}

// AuditEntry is one write.
type AuditEntry struct {
	At        time.Time
	Who       string // "" where nobody is asked
	Action    string // method and route
	Path      string
	Slide     coverslip.SlideID
	Status    int
	Remote    string
	RequestID string
}

// Repeats remembers the answers to requests that came with an Idempotency-Key, for a day.
type Repeats interface {
	// Claim takes a key for a request. A key that was answered gives its answer; one of another request, and
	// one that is being answered now, are Conflict.
	Claim(ctx context.Context, who, key string, request [32]byte) (answer *Answer, err error)
	// Settle keeps the answer; nil gives the key back.
	Settle(ctx context.Context, who, key string, answer *Answer) error
}

// Answer is what a client was told.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// keyCookie carries the key of somebody who signed in with a browser.
const keyCookie = "coverslip_key"

type identityKey struct{}

// identityOf is who a request comes from; zero where nobody is asked.
func identityOf(ctx context.Context) Identity {
	who, _ := ctx.Value(identityKey{}).(Identity)
	return who
}

// open are the addresses for which nobody is asked.
func open(path string) bool {
	return path == "/healthz" || path == "/readyz" || path == "/openapi.json" || path == "/sign-in" || strings.HasPrefix(path, "/web/")
}

// needs is what a request takes. Searching changes nothing.
func needs(r *http.Request) Scope {
	if administers(r.URL.Path) {
		return Admin
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions || strings.HasPrefix(r.URL.Path, "/v1/embeddings/") {
		return Read
	}
	return Write
}

// admit lets through who may do what is asked.
func admit(gate Gate) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		if gate == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if open(r.URL.Path) {
				next.ServeHTTP(w, r)
				return
			}
			credential, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			if c, err := r.Cookie(keyCookie); !ok && err == nil {
				credential, ok = c.Value, true
			}
			refuse := func(status int, err error) {
				p := problemOf(r.Context(), err)
				p.Status, p.Title = status, title(status)
				if status == http.StatusUnauthorized {
					w.Header().Set("WWW-Authenticate", `Bearer realm="coverslip"`)
				}
				p.write(w)
			}
			const op = "check who asks"
			if !ok {
				if r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html") {
					http.Redirect(w, r, "/sign-in?to="+url.QueryEscape(r.URL.Path), http.StatusSeeOther)
					return
				}
				refuse(http.StatusUnauthorized, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: errors.New("the request has no key"), Hint: "send Authorization: Bearer KEY; coverslip keys add makes one"})
				return
			}
			who, err := gate.Identify(r.Context(), credential)
			switch {
			case coverslip.KindOf(err) == coverslip.NotFound:
				refuse(http.StatusUnauthorized, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: errors.New("the key or token is unknown, revoked or expired"), Hint: "ask whoever runs the server for another"})
			case err != nil:
				problemOf(r.Context(), err).write(w)
			case !who.Scope.covers(needs(r)):
				refuse(http.StatusForbidden, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf("the key %s may %s, and this takes %s", who.Name, who.Scope, needs(r)), Hint: "use a key of that scope"})
			default:
				recordOf(r.Context()).who = who.Name
				next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, who)))
			}
		})
	}
}

// limitRate refuses who asks more than so many times a minute.
func limitRate(perMinute int) func(http.Handler) http.Handler {
	if perMinute <= 0 {
		return func(next http.Handler) http.Handler { return next }
	}
	return httprate.LimitBy(perMinute, time.Minute,
		func(r *http.Request) (string, error) {
			if who := identityOf(r.Context()); who.Name != "" {
				return "key " + who.Name, nil
			}
			host, _, err := net.SplitHostPort(r.RemoteAddr)
			return host, err
		},
		httprate.WithLimitHandler(func(w http.ResponseWriter, r *http.Request) {
			p := problemOf(r.Context(), &coverslip.Error{Kind: coverslip.TooLarge, Op: "count requests", Err: fmt.Errorf("more than %d in a minute", perMinute), Hint: "wait as long as Retry-After says"})
			p.Status, p.Title = http.StatusTooManyRequests, title(http.StatusTooManyRequests)
			p.write(w)
		}))
}

// audit writes down every request that may have changed something.
func audit(s *server) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		if s.cfg.Auditor == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if needs(r) == Read || r.Method == http.MethodGet || r.Method == http.MethodHead {
				next.ServeHTTP(w, r)
				return
			}
			ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
			next.ServeHTTP(ww, r)
			rec := recordOf(r.Context())
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Second)
			defer cancel()
			if err := s.cfg.Auditor.Audit(ctx, AuditEntry{Who: identityOf(r.Context()).Name, Action: r.Method + " " + chi.RouteContext(r.Context()).RoutePattern(), Path: r.URL.Path,
				Slide: rec.slide, Status: ww.Status(), Remote: r.RemoteAddr, RequestID: rec.id}); err != nil {
				s.cfg.Log.Error("a write is not in the audit log", "request_id", rec.id, "err", err)
			}
		})
	}
}

// repeatable is the longest body of a request that may carry an Idempotency-Key, in bytes. Slides need none:
// the same bytes are the same slide.
const repeatable = 1 << 20

// repeats answers a POST with the Idempotency-Key of an earlier one as that one was answered; but no answer with
// a secret is kept.
func repeats(s *server) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		if s.cfg.Repeats == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			key := r.Header.Get("Idempotency-Key")
			if key == "" || r.Method != http.MethodPost || r.URL.Path == keysPath || r.ContentLength < 0 || r.ContentLength > repeatable || r.Header.Get("Content-Type") == octets {
				next.ServeHTTP(w, r)
				return
			}
			if len(key) > 200 {
				problemOf(r.Context(), &coverslip.Error{Kind: coverslip.Invalid, Op: "read Idempotency-Key", Err: errors.New("it is longer than 200 bytes"), Hint: "send a UUID"}).write(w)
				return
			}
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, repeatable))
			if err != nil {
				problemOf(r.Context(), &coverslip.Error{Kind: coverslip.Canceled, Op: "read the request", Err: fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err), Hint: "send it again"}).write(w)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			who := identityOf(r.Context()).Name
			request := sha256.Sum256(fmt.Appendf(nil, "%s %s\n%s", r.Method, r.URL.RequestURI(), body))
			before, err := s.cfg.Repeats.Claim(r.Context(), who, key, request)
			if err != nil {
				problemOf(r.Context(), err).write(w)
				return
			}
			if before != nil {
				for name, values := range before.Header {
					w.Header()[name] = values
				}
				w.Header().Set("Idempotency-Replayed", "true")
				w.WriteHeader(before.Status)
				_, _ = w.Write(before.Body) //nolint:gosec // our own answer to the same client; one that has gone needs none
				return
			}
			ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
			var said bytes.Buffer
			ww.Tee(&said)
			var answer *Answer
			defer func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Second)
				defer cancel()
				if err := s.cfg.Repeats.Settle(ctx, who, key, answer); err != nil {
					s.cfg.Log.Warn("an answer is not remembered", "request_id", recordOf(r.Context()).id, "err", err)
				}
			}()
			next.ServeHTTP(ww, r)
			if ww.Status() < http.StatusInternalServerError && ww.Status() != statusClientGone && ww.Status() != http.StatusTooManyRequests {
				answer = &Answer{Status: ww.Status(), Header: http.Header{}, Body: said.Bytes()}
				for _, name := range []string{"Content-Type", "Location"} {
					if v := ww.Header().Values(name); len(v) > 0 {
						answer.Header[name] = v
					}
				}
			}
		})
	}
}

// documentAccess adds to every operation of the contract what stands before it.
func documentAccess(api huma.API, gate Gate) {
	doc := api.OpenAPI()
	doc.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"bearer": {Type: "http", Scheme: "bearer",
		Description: "An API key (`coverslip keys add`) or an OpenID Connect token. Asked for wherever the server listens beyond this machine. A key may read; read and write; or administer."}}
	for path, item := range doc.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Head, item.Post, item.Patch, item.Put, item.Delete} {
			if op == nil {
				continue
			}
			if op.Responses["429"] == nil {
				documentProblem(api, op, http.StatusTooManyRequests, coverslip.TooLarge, "More requests in a minute than one client may make.")
			}
			if open(path) {
				continue
			}
			if gate != nil {
				op.Security = []map[string][]string{{"bearer": {}}}
			}
			documentProblem(api, op, http.StatusUnauthorized, coverslip.Invalid, "No key, or one that is unknown, revoked or expired.")
			if administers(path) {
				documentProblem(api, op, http.StatusForbidden, coverslip.Invalid, "The key is not of scope admin.")
			}
			for _, p := range op.Responses {
				if p.Headers == nil {
					p.Headers = map[string]*huma.Param{}
				}
				p.Headers["X-Request-Id"] = &huma.Header{Description: "Finds this request in the server's log", Schema: &huma.Schema{Type: "string"}}
			}
		}
	}
}

// signIn is where somebody with a browser gives a key.
func (s *server) signIn(router chi.Router) {
	const form = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Coverslip: sign in</title><link rel="stylesheet" href="/web/page.css">
<main class="narrow"><h1>Coverslip</h1><form method="post"><label>API key <input type="password" name="key" autofocus required></label><button>Sign in</button></form><p class="quiet">Whoever runs the server makes one with <code>coverslip keys add</code>.</p>%s</main></html>`
	show := func(w http.ResponseWriter, status int, note string) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", pagePolicy)
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, form, note) // a client that has gone needs no answer
	}
	router.Get("/sign-in", func(w http.ResponseWriter, _ *http.Request) { show(w, http.StatusOK, "") })
	router.Post("/sign-in", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 10_000)
		key := r.PostFormValue("key")
		if s.cfg.Gate != nil {
			if _, err := s.cfg.Gate.Identify(r.Context(), key); err != nil {
				show(w, http.StatusUnauthorized, `<p role="alert">This key is unknown, revoked or expired.</p>`)
				return
			}
		}
		http.SetCookie(w, &http.Cookie{Name: keyCookie, Value: key, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil, MaxAge: 7 * 24 * 3600}) //nolint:gosec // Secure where there is TLS; behind a proxy that ends it, or on loopback, there is none
		to := r.URL.Query().Get("to")
		if !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.Contains(to, `\`) {
			to = "/"
		}
		http.Redirect(w, r, to, http.StatusSeeOther) //nolint:gosec // a path of this server, as was just seen to
	})
}
