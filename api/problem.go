package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
)

// statusClientGone is what logs and metrics say of a request whose client went away before the
// answer (nginx's number; HTTP has none).
const statusClientGone = 499

// answers is the one place where a kind of error becomes an HTTP status, with what the contract
// says of it.
var answers = map[coverslip.Kind]struct {
	status int
	means  string
}{
	coverslip.Invalid:     {http.StatusUnprocessableEntity, "The request or the bytes sent are broken; the same again fails again."},
	coverslip.NeedsMPP:    {http.StatusUnprocessableEntity, "The slide does not say its resolution; `mpp_of_slide` can."},
	coverslip.Unsupported: {http.StatusUnsupportedMediaType, "Nothing Coverslip reads. Files are judged by content, not by name."},
	coverslip.NotFound:    {http.StatusNotFound, "No such thing, or not yet."},
	coverslip.Conflict:    {http.StatusConflict, "More than one slide is meant, or another process is in the way."},
	coverslip.TooLarge:    {http.StatusRequestEntityTooLarge, "Over a limit that is a setting of the server."},
	coverslip.Full:        {http.StatusInsufficientStorage, "No room left to keep it; nothing was kept."},
	coverslip.Unavailable: {http.StatusServiceUnavailable, "A part of the server does not answer now; try again after `Retry-After` seconds."},
	coverslip.Environment: {http.StatusServiceUnavailable, "Something is missing on the server's machine."},
	coverslip.Canceled:    {statusClientGone, "The client went away before the answer; seen in logs and by clients that only half closed."},
	coverslip.Internal:    {http.StatusInternalServerError, "A fault of Coverslip's own. The log has the cause under the request id."},
}

// retryAfter is the pause asked for with each 503, in seconds.
const retryAfter = 5

// problem is the body of every error (RFC 9457, application/problem+json).
type problem struct {
	Title     string              `json:"title" doc:"The status in words" example:"Not Found"`
	Status    int                 `json:"status" doc:"The HTTP status" example:"404"`
	Detail    string              `json:"detail" doc:"What went wrong, with what, doing what" example:"slide 5a1b6d: look up: no such slide"`
	Kind      coverslip.Kind      `json:"kind" doc:"What sort of thing went wrong; programs should decide by it" enum:"invalid,unsupported,needs_mpp,not_found,conflict,too_large,full,unavailable,environment,canceled,internal" example:"not_found"`
	Hint      string              `json:"hint,omitempty" doc:"What to do about it" example:"GET /v1/slides lists what is there"`
	State     coverslip.State     `json:"state,omitempty" doc:"Where the slide stands, when that is why the answer is missing" enum:"registered,queued,encoding,embedded,no_tissue,needs_mpp,failed" example:"queued"`
	RequestID string              `json:"request_id,omitempty" doc:"Find this request in the server's log" example:"MFRGGZDFMZTWQ2LK"`
	Errors    []*huma.ErrorDetail `json:"errors,omitempty" nullable:"false" doc:"Each parameter that was refused"`
}

// problemOf is the answer to err. The cause of an internal error stays in the log.
func problemOf(ctx context.Context, err error) *problem {
	rec := recordOf(ctx)
	rec.err = err
	p := &problem{Kind: coverslip.KindOf(err), Hint: coverslip.HintOf(err), RequestID: rec.id}
	p.Status = answers[p.Kind].status
	p.Detail = strings.TrimSuffix(err.Error(), " ("+p.Hint+")")
	switch {
	case p.Kind == coverslip.Internal:
		p.Detail, p.Hint = "the server failed", "look for the request id in the server's log"
	case p.Kind == coverslip.Canceled && ctx.Err() == nil && !errors.Is(err, io.ErrUnexpectedEOF):
		p.Status = http.StatusServiceUnavailable // the server stopped it, not the client
	}
	var of *stateError
	if errors.As(err, &of) {
		p.State = of.state
	}
	p.Title = title(p.Status)
	return p
}

func title(status int) string {
	if status == statusClientGone {
		return "Client Closed Request"
	}
	return http.StatusText(status)
}

func (p *problem) Error() string { return p.Detail }

// GetStatus, ContentType and GetHeaders are how huma asks an error for them.
func (p *problem) GetStatus() int { return p.Status }

// ContentType makes JSON problem+json.
func (p *problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders returns Retry-After where trying again is the remedy.
func (p *problem) GetHeaders() http.Header {
	if p.Status != http.StatusServiceUnavailable {
		return nil
	}
	return http.Header{"Retry-After": {strconv.Itoa(retryAfter)}}
}

// write sends the problem from outside huma: the router, a panic, a middleware.
func (p *problem) write(w http.ResponseWriter) {
	for k, v := range p.GetHeaders() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a client that has gone needs no answer
}

// init makes huma's own errors (a parameter out of bounds) the same problems. huma keeps both
// hooks as variables of its package, the first for the contract, the second for answers.
func init() {
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return requestProblem(&record{}, status, msg, errs)
	}
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		return requestProblem(recordOf(ctx.Context()), status, msg, errs)
	}
}

// requestProblem is the answer to a request that never reached a handler.
func requestProblem(rec *record, status int, msg string, errs []error) *problem {
	if status == http.StatusBadRequest { // a body that is no JSON; every other fault of a request is a 422
		status = http.StatusUnprocessableEntity
	}
	p := &problem{Title: title(status), Status: status, Detail: msg, Kind: coverslip.Invalid, RequestID: rec.id,
		Hint: "compare the request with /openapi.json"}
	if status >= http.StatusInternalServerError {
		p.Kind, p.Hint = coverslip.Internal, "look for the request id in the server's log"
		rec.err = errors.Join(errs...)
		return p
	}
	for _, err := range errs {
		detail := &huma.ErrorDetail{Message: err.Error()}
		if e := (huma.ErrorDetailer)(nil); errors.As(err, &e) {
			detail = e.ErrorDetail()
		}
		if detail.Value != nil { // as text, because JSON has no infinity, and no longer than needed to know it again
			detail.Value = strings.ToValidUTF8(fmt.Sprintf("%.100v", detail.Value), "")
		}
		p.Detail += ": " + strings.TrimSpace(detail.Location+" "+detail.Message)
		p.Errors = append(p.Errors, detail)
	}
	return p
}

func noRoute(w http.ResponseWriter, r *http.Request) {
	problemOf(r.Context(), &coverslip.Error{Kind: coverslip.NotFound, Op: "find the route", Err: errors.New("nothing is at this address"),
		Hint: "/openapi.json lists what there is"}).write(w)
}

func wrongMethod(routes chi.Routes) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		allowed, fewest := map[string]string{}, math.MaxInt // the pattern by the method; the least general counts
		for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete} {
			match := chi.NewRouteContext()
			if routes.Match(match, m, r.URL.Path) {
				allowed[m] = match.RoutePattern()
				fewest = min(fewest, strings.Count(allowed[m], "{"))
			}
		}
		for _, m := range slices.Sorted(maps.Keys(allowed)) {
			if strings.Count(allowed[m], "{") > fewest {
				continue
			}
			w.Header().Add("Allow", m)
			if m == http.MethodGet {
				w.Header().Add("Allow", http.MethodHead)
			}
		}
		refuseMethod(w, r)
	}
}

func refuseMethod(w http.ResponseWriter, r *http.Request) {
	p := problemOf(r.Context(), &coverslip.Error{Kind: coverslip.Invalid, Op: "find the route", Err: errors.New("this address does not take that method"),
		Hint: "the Allow header says which it takes"})
	p.Status, p.Title = http.StatusMethodNotAllowed, title(http.StatusMethodNotAllowed)
	p.write(w)
}

func onlyPost(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Allow", http.MethodPost)
	refuseMethod(w, r)
}
