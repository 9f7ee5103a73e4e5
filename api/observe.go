package api

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// observe gives each request an id, counts and times it, writes its line in the log, and turns a
// panic into a problem.
func observe(log *slog.Logger, m *metrics) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			rec := &record{id: requestID(r)}
			ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
			ww.Header().Set("X-Request-Id", rec.id)
			ww.Header().Set("X-Content-Type-Options", "nosniff")
			ctx := context.WithValue(r.Context(), recordKey{}, rec)
			span := trace.SpanFromContext(ctx)
			if !probe(r.URL.Path) {
				ctx, span = tracer.Start(traceContext.Extract(ctx, propagation.HeaderCarrier(r.Header)), r.Method, trace.WithSpanKind(trace.SpanKindServer))
				defer span.End()
			}
			r = r.WithContext(ctx)
			m.inFlight.Inc()
			defer m.inFlight.Dec()

			aborted := serve(next, ww, r)

			route, method := chi.RouteContext(r.Context()).RoutePattern(), r.Method
			if route == "" || ww.Status() == http.StatusMethodNotAllowed {
				route, method = "none", "any" // what a client makes up must not become a label
			}
			took := time.Since(start)
			trail(span, rec, r, route, ww.Status())
			m.requests.WithLabelValues(method, route, strconv.Itoa(ww.Status())).Inc()
			m.duration.WithLabelValues(method, route).Observe(took.Seconds())

			log.LogAttrs(r.Context(), level(route, ww.Status()), "http request", rec.attrs(
				slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", ww.Status()),
				slog.Int("bytes", ww.BytesWritten()), slog.Duration("took", took), slog.String("remote", r.RemoteAddr))...)
			if aborted {
				panic(http.ErrAbortHandler) // net/http then cuts the connection, so that half an answer is not taken for a whole one
			}
		})
	}
}

// One trace goes from a request to whatever comes of it; where nobody receives traces, spans cost nothing.
var (
	tracer       = otel.Tracer("coverslip/api")
	traceContext = propagation.TraceContext{}
)

// trail says in a request's span what came of it, by the names of OpenTelemetry's conventions.
func trail(span trace.Span, rec *record, r *http.Request, route string, status int) {
	if !span.IsRecording() {
		return
	}
	span.SetName(r.Method + " " + route)
	span.SetAttributes(attribute.String("http.request.method", r.Method), attribute.String("http.route", route), attribute.String("url.path", r.URL.Path),
		attribute.Int("http.response.status_code", status), attribute.String("coverslip.request_id", rec.id))
	if rec.slide != "" {
		span.SetAttributes(attribute.String("coverslip.slide", string(rec.slide)))
	}
	if status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, http.StatusText(status))
	}
}

// serve runs next and answers its panic with a problem. It reports true when the answer had
// already begun and cannot be taken back.
func serve(next http.Handler, w middleware.WrapResponseWriter, r *http.Request) (aborted bool) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			aborted = true
			return
		}
		p := problemOf(r.Context(), fmt.Errorf("panic: %v\n%s", v, debug.Stack()))
		if aborted = w.Status() != 0; !aborted {
			p.write(w)
		}
	}()
	next.ServeHTTP(w, r)
	return false
}

// record is what a request's line in the log will say beyond the request itself.
type record struct {
	id    string
	slide coverslip.SlideID
	who   string // the name of a key or token, never itself
	err   error
}

type recordKey struct{}

// recordOf returns the record of a request's context. Outside a request it is a fresh one.
func recordOf(ctx context.Context) *record {
	if rec, ok := ctx.Value(recordKey{}).(*record); ok {
		return rec
	}
	return &record{}
}

func (rec *record) attrs(attrs ...slog.Attr) []slog.Attr {
	attrs = append(attrs, slog.String("request_id", rec.id))
	if rec.slide != "" {
		attrs = append(attrs, slog.String("slide", string(rec.slide)))
	}
	if rec.who != "" {
		attrs = append(attrs, slog.String("who", rec.who))
	}
	if rec.err != nil {
		attrs = append(attrs, slog.String("err", rec.err.Error()))
	}
	return attrs
}

// level keeps probes out of a log people read.
func level(route string, status int) slog.Level {
	switch {
	case status == http.StatusInternalServerError:
		return slog.LevelError
	case status > http.StatusInternalServerError:
		return slog.LevelWarn
	case probe(route):
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// probe is what machines ask every few seconds.
func probe(path string) bool { return path == "/healthz" || path == "/readyz" || path == "/metrics" }

var wantedID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// requestID is the caller's X-Request-Id where that is fit for a log, else a new one.
func requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); wantedID.MatchString(id) {
		return id
	}
	return rand.Text()
}

// sameOrigin refuses what a page of another site makes a visitor's browser send: a server on
// loopback has no other guard against it. Programs that are no browsers pass.
func sameOrigin(next http.Handler) http.Handler {
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := problemOf(r.Context(), &coverslip.Error{Kind: coverslip.Invalid, Op: "check the origin", Err: errors.New("the request comes from a page of another site"),
			Hint: "use the page of this server, or a program that is no browser"})
		p.Status, p.Title = http.StatusForbidden, title(http.StatusForbidden)
		p.write(w)
	}))
	return guard.Handler(next)
}

// wellFormedQuery refuses a query that cannot be decoded, because huma would read the parameter
// as absent and a resolution would be lost without a word.
func wellFormedQuery(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query, err := url.ParseQuery(r.URL.RawQuery)
		for name, values := range query { // huma takes an empty one for absent
			if err == nil && slices.Contains(values, "") && strings.HasPrefix(r.URL.Path, "/v1/") {
				err = fmt.Errorf("%.100q is empty", name)
			}
		}
		if err != nil {
			problemOf(r.Context(), &coverslip.Error{Kind: coverslip.Invalid, Op: "read the query", Err: err,
				Hint: "percent-encode the parameters, and leave out those without a value"}).write(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// metrics are the API's own numbers in a registry of its own, so that two servers in one process
// (a test) do not meet.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	uploaded prometheus.Counter
}

func newMetrics(others []prometheus.Collector) (*metrics, error) {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coverslip_http_requests_total", Help: "Requests answered, by route and status."}, []string{"method", "route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "coverslip_http_request_duration_seconds", Help: "Time from the first byte of a request to the last of its answer.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60, 600}}, []string{"method", "route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "coverslip_http_requests_in_flight", Help: "Requests being answered now."}),
		uploaded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coverslip_http_uploaded_bytes_total", Help: "Bytes of slides received, kept or not."}),
	}
	own := []prometheus.Collector{m.requests, m.duration, m.inFlight, m.uploaded,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})}
	for _, c := range append(own, others...) {
		if err := m.registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// metricsRoute stands outside huma because promhttp writes the answer itself.
func (s *server) metricsRoute(router chi.Router) {
	router.Method(http.MethodGet, "/metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	s.api.OpenAPI().AddOperation(&huma.Operation{
		Method: http.MethodGet, Path: "/metrics", OperationID: "metrics", Tags: []string{"server"},
		Summary: "Numbers for Prometheus",
		Responses: map[string]*huma.Response{"200": {
			Description: "Prometheus text format.",
			Content:     map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: "string"}, Example: "coverslip_http_requests_in_flight 1\n"}},
		}},
	})
}
