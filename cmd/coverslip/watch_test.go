package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"coverslip"
)

// receiver takes traces as a collector of OpenTelemetry does: OTLP over HTTP, in protobuf.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex
	spans []*trace.Span
	came  chan struct{}
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{came: make(chan struct{}, 1)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var batch collector.ExportTraceServiceRequest
		raw, err := io.ReadAll(req.Body)
		if err == nil {
			err = proto.Unmarshal(raw, &batch)
		}
		if err != nil || req.URL.Path != "/v1/traces" || req.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s %s (%s): %v", req.Method, req.URL, req.Header.Get("Content-Type"), err)
		}
		r.mu.Lock()
		for _, of := range batch.ResourceSpans {
			for _, scope := range of.ScopeSpans {
				r.spans = append(r.spans, scope.Spans...)
			}
		}
		r.mu.Unlock()
		select {
		case r.came <- struct{}{}:
		default:
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// of waits for the span of that name about that slide, and returns all of its trace by their names.
func (r *receiver) of(t *testing.T, name string, slide coverslip.SlideID) map[string]*trace.Span {
	t.Helper()
	for {
		var all map[string]*trace.Span
		r.mu.Lock()
		for _, s := range r.spans {
			if s.Name == name && slices.ContainsFunc(s.Attributes, func(a *common.KeyValue) bool {
				return a.Key == "coverslip.slide" && a.Value.GetStringValue() == string(slide)
			}) {
				all = map[string]*trace.Span{}
				for _, other := range r.spans {
					if bytes.Equal(other.TraceId, s.TraceId) {
						all[other.Name] = other
					}
				}
			}
		}
		r.mu.Unlock()
		if all != nil {
			return all
		}
		select {
		case <-r.came:
		case <-t.Context().Done():
			t.Fatalf("no span %q of slide %s came", name, slide.Short())
		case <-time.After(time.Minute):
			t.Fatalf("no span %q of slide %s came in a minute", name, slide.Short())
		}
	}
}

var metricName = regexp.MustCompile(`\b(coverslip|process|go)_[a-z0-9_]+`)

// scrape is the names of what is shown for Prometheus, and the samples.
func scrape(t *testing.T, url string) (names map[string]bool, text string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v\n%s", url, res.Status, err, raw)
	}
	names = map[string]bool{}
	for line := range strings.Lines(string(raw)) {
		if !strings.HasPrefix(line, "#") {
			names[metricName.FindString(line)] = true
		}
	}
	return names, string(raw)
}

// From an upload to its embedding: one trace, a log in which every line about the slide or its job names both,
// and the numbers the dashboard asks for.
func TestOneSlideCanBeWatched(t *testing.T) {
	needsRuntime(t)
	traces := newReceiver(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", traces.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	p := up(t, dataFolder(t))

	whole, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	var slide coverslip.Slide
	if err := p.call(t.Context(), http.MethodPost, "/v1/slides?name=a.svs", bytes.NewReader(whole), &slide); err != nil {
		t.Fatal(err)
	}
	if _, err := p.embedding(t.Context(), slide.ID); err != nil {
		t.Fatal(err)
	}
	resumable := variants(t, bundled, 2)[1]
	code, out, stderr := coverslipRun(t, "upload", resumable, "--server", p.url, "--json")
	if code != 0 {
		t.Fatalf("exit %d, %s", code, stderr)
	}
	var sent struct{ Slide coverslip.SlideID }
	if err := json.Unmarshal([]byte(out), &sent); err != nil || sent.Slide == "" {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := p.embedding(t.Context(), sent.Slide); err != nil {
		t.Fatal(err)
	}

	for request, id := range map[string]coverslip.SlideID{"POST /v1/slides": slide.ID, "PATCH /v1/uploads/{upload}": sent.Slide} {
		spans := traces.of(t, "embed_slide", id)
		for name, parent := range map[string]string{request: "", "register": request, "embed_slide": "register", "open": "embed_slide",
			"mask and plan": "embed_slide", "read and encode": "embed_slide", "publish": "embed_slide", "aggregate": "embed_slide"} {
			s, above := spans[name], spans[parent]
			switch {
			case s == nil:
				t.Errorf("%s: no span %q among %d", request, name, len(spans))
			case parent == "" && len(s.ParentSpanId) > 0, parent != "" && (above == nil || !bytes.Equal(s.ParentSpanId, above.SpanId)):
				t.Errorf("%s: %q does not stand below %q: trace %s", request, name, parent, hex.EncodeToString(s.TraceId))
			case s.EndTimeUnixNano < s.StartTimeUnixNano:
				t.Errorf("%s: %q ends before it begins", request, name)
			}
		}
	}

	broken, err := os.ReadFile(damaged(t))
	if err != nil {
		t.Fatal(err)
	}
	var bad coverslip.Slide
	if err := p.call(t.Context(), http.MethodPost, "/v1/slides?name=damaged.svs", bytes.NewReader(broken), &bad); err != nil {
		t.Fatal(err)
	}
	if _, err := p.embedding(t.Context(), bad.ID); err == nil {
		t.Error("a damaged slide was embedded")
	}
	if failed := traces.of(t, "embed_slide", bad.ID)["embed_slide"]; failed.Status.Code != trace.Status_STATUS_CODE_ERROR {
		t.Errorf("its trace says %v", failed.Status)
	}

	names, text := scrape(t, p.url+"/metrics")
	t.Run("TheDashboardAsksForWhatThereIs", func(t *testing.T) {
		var dashboard struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		raw, err := os.ReadFile(filepath.Join("..", "..", "docs", "grafana", "coverslip.json"))
		if err == nil {
			err = json.Unmarshal(raw, &dashboard)
		}
		if err != nil || len(dashboard.Panels) == 0 {
			t.Fatalf("%d panels, %v", len(dashboard.Panels), err)
		}
		shown := map[string]bool{}
		for _, panel := range dashboard.Panels {
			for _, target := range panel.Targets {
				asked := metricName.FindAllString(target.Expr, -1)
				for _, name := range asked {
					if shown[name] = true; !names[name] {
						t.Errorf("%s: there is no %s", panel.Title, name)
					}
				}
				if len(asked) == 0 {
					t.Errorf("%s asks for nothing of ours: %s", panel.Title, target.Expr)
				}
			}
		}
		for _, name := range []string{"coverslip_tiles_total", "coverslip_stage_seconds_total", "coverslip_queue_jobs", "coverslip_failures_total", "coverslip_store_seconds_bucket"} {
			if !shown[name] {
				t.Errorf("nothing shows %s", name)
			}
		}
	})
	for _, sample := range []string{`coverslip_slides{state="embedded"} 2`, `coverslip_jobs_ended_total{state="embedded"} 2`, `coverslip_failures_total{kind="invalid"} 1`, `coverslip_slides_failed{kind="invalid"} 1`,
		`coverslip_queue_jobs{queue="embed",state="waiting"} 0`} {
		if !strings.Contains(text, sample+"\n") {
			t.Errorf("there is no %s", sample)
		}
	}

	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, p.log)
	}
	done := 0
	lines := bufio.NewScanner(strings.NewReader(p.log.String()))
	for lines.Scan() {
		var line map[string]any
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Errorf("no JSON: %s", lines.Text())
			continue
		}
		_, job := line["job"]
		if slide, _ := line["slide"].(string); job && len(slide) != 64 {
			t.Errorf("no slide: %s", lines.Text())
		}
		if line["msg"] == "slide done" && job {
			done++
		}
	}
	if done != 2 {
		t.Errorf("%d lines say that a slide is done, with its job", done)
	}
}

func TestAWorkerShowsItsNumbers(t *testing.T) {
	f := newFleet(t)
	ids := f.ingest(variants(t, bundled, 1)...)
	p := listening(t, "work", "--json", "--metrics", "127.0.0.1:0", "--data", t.TempDir())
	f.state(ids[0], coverslip.Embedded)
	names, text := scrape(t, p.url)
	if !names["coverslip_tiles_total"] || !strings.Contains(text, `coverslip_jobs_ended_total{state="embedded"} 1`) || names["coverslip_slides"] {
		t.Errorf("it shows\n%s", text)
	}
}
