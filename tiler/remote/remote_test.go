package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coverslip"
)

// content is larger than what opening reads.
var content = func() []byte {
	p := make([]byte, 300_000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}()

// serve starts a server; every request after the first goes to trouble, which returns false when the
// answer is to be the right one.
func serve(t *testing.T, trouble func(w http.ResponseWriter, r *http.Request, n int64) bool) (address string, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		if n := requests.Add(1) - 1; n > 0 && trouble(w, r, n) {
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(s.Close)
	return s.URL + "/slide.svs", requests
}

func mustOpen(t *testing.T, address string) *Object {
	t.Helper()
	o, err := open(t.Context(), address, 500*time.Millisecond, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// cut answers with the first n bytes of a range and then ends the connection.
func cut(w http.ResponseWriter, r *http.Request, n int) {
	var first, last int
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(content)))
	w.Header().Set("Content-Length", fmt.Sprint(last-first+1))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(content[first : first+n])
	_ = http.NewResponseController(w).Flush()
}

func TestFault25And26TroubleThatPassesIsWaitedFor(t *testing.T) {
	status := func(code int) func(http.ResponseWriter, *http.Request, int64) bool {
		return func(w http.ResponseWriter, _ *http.Request, n int64) bool {
			if n < tries {
				w.WriteHeader(code)
			}
			return n < tries
		}
	}
	for name, trouble := range map[string]func(http.ResponseWriter, *http.Request, int64) bool{
		"500": status(500), "503": status(503), "429": status(429),
		"ResetBeforeAnAnswer": func(_ http.ResponseWriter, _ *http.Request, n int64) bool {
			if n < 3 {
				panic(http.ErrAbortHandler)
			}
			return false
		},
		"ResetMidBody": func(w http.ResponseWriter, r *http.Request, n int64) bool {
			if n < 3 {
				cut(w, r, 1000)
				panic(http.ErrAbortHandler)
			}
			return false
		},
		"SilentBeforeAnAnswer": func(_ http.ResponseWriter, r *http.Request, n int64) bool {
			if n == 1 {
				<-r.Context().Done()
			}
			return n == 1
		},
		"SilentMidBody": func(w http.ResponseWriter, r *http.Request, n int64) bool {
			if n == 1 {
				cut(w, r, 70_000)
				<-r.Context().Done()
			}
			return n == 1
		},
		"AByteAtATime": func(w http.ResponseWriter, r *http.Request, n int64) bool {
			if n != 1 {
				return false
			}
			cut(w, r, 1)
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for at := 100_001; ; at++ {
				select {
				case <-tick.C:
					_, _ = w.Write(content[at : at+1])
					_ = http.NewResponseController(w).Flush()
				case <-r.Context().Done():
					return true
				}
			}
		},
		"ShortBody": func(w http.ResponseWriter, r *http.Request, n int64) bool {
			if n == 1 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 100000-299999/%d", len(content)))
				w.Header().Set("Content-Length", "10")
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(content[100_000:100_010])
			}
			return n == 1
		},
		"AnotherRange": func(w http.ResponseWriter, r *http.Request, n int64) bool {
			if n == 1 {
				r.Header.Set("Range", "bytes=0-199999")
			}
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address, requests := serve(t, trouble)
			o := mustOpen(t, address)
			got := make([]byte, 200_000)
			err := o.ReadRange(t.Context(), got, 100_000)
			if err != nil || !bytes.Equal(got, content[100_000:]) {
				t.Errorf("right bytes: %v, error %v, after %d requests", bytes.Equal(got, content[100_000:]), err, requests.Load())
			}
			if requests.Load() < 3 {
				t.Errorf("%d requests", requests.Load())
			}
		})
	}
}

func TestFault25And26TroubleThatStaysIsNamed(t *testing.T) {
	status := func(code int) func(http.ResponseWriter, *http.Request, int64) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ int64) bool { w.WriteHeader(code); return true }
	}
	for name, c := range map[string]struct {
		trouble  func(http.ResponseWriter, *http.Request, int64) bool
		kind     coverslip.Kind
		says     string
		requests int64
	}{
		"503":   {status(503), coverslip.Unavailable, "503 Service Unavailable", 1 + tries},
		"404":   {status(404), coverslip.NotFound, "check the address", 2},
		"403":   {status(403), coverslip.Environment, "403", 2},
		"412":   {status(412), coverslip.Conflict, "changed while it was read", 2},
		"416":   {status(416), coverslip.Conflict, "changed while it was read", 2},
		"Whole": {status(200), coverslip.Unsupported, "only whole files", 2},
		"Silent": {func(_ http.ResponseWriter, r *http.Request, _ int64) bool {
			<-r.Context().Done()
			return true
		}, coverslip.Unavailable, "fell silent", 1 + tries},
		"ChangedETag": {func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			w.Header().Set("ETag", `"two"`)
			return false // the real server sees If-Match
		}, coverslip.Conflict, "changed while it was read", 2},
		"ChangedETagWithoutConditions": {func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			w.Header().Set("ETag", `"two"`)
			r.Header.Del("If-Match")
			return false
		}, coverslip.Conflict, "changed while it was read", 2},
		"ChangedSize": {func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content[:299_999]))
			return true
		}, coverslip.Conflict, "changed while it was read", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address, requests := serve(t, c.trouble)
			o := mustOpen(t, address+"?signature=secret")
			err := o.ReadRange(t.Context(), make([]byte, 100_000), 100_000)
			if coverslip.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) || coverslip.HintOf(err) == "" ||
				!strings.Contains(err.Error(), address) || strings.Contains(err.Error(), "secret") {
				t.Errorf("kind %s: %v", coverslip.KindOf(err), err)
			}
			if n := requests.Load(); n != c.requests {
				t.Errorf("%d requests, want %d", n, c.requests)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	server := func(answer http.HandlerFunc) string {
		s := httptest.NewServer(answer)
		t.Cleanup(s.Close)
		return s.URL
	}
	whole := server(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT") // the S3 client insists on it
		_, _ = w.Write(content)
	})
	empty := server(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusRequestedRangeNotSatisfiable) })
	anonymous := server(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	})
	forbidden := server(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	absent := server(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`<?xml version="1.0"?><Error><Code>NoSuchBucket</Code></Error>`))
	})
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for address, want := range map[string]struct {
		kind coverslip.Kind
		says string
	}{
		whole:                                   {coverslip.Unsupported, "only whole files"},
		empty:                                   {coverslip.Invalid, "empty"},
		anonymous:                               {coverslip.Unsupported, "neither ETag nor Last-Modified"},
		forbidden:                               {coverslip.Environment, "signed"},
		absent:                                  {coverslip.NotFound, "check the address"},
		gone.URL:                                {coverslip.Unavailable, "connection refused"},
		"http://":                               {coverslip.Invalid, "no address"},
		"https://host/100%.svs":                 {coverslip.Invalid, "%25"},
		"https://host/a#b.svs":                  {coverslip.Invalid, "%23"},
		"s3://bucket":                           {coverslip.Invalid, "names no object"},
		"s3://bucket/folder/":                   {coverslip.Invalid, "names no object"},
		"s3://B/key":                            {coverslip.Invalid, "ucket"},
		"s3://bucket/key?endpoing":              {coverslip.Invalid, "endpoing"},
		"s3://bucket/key?endpoint=host:1":       {coverslip.Invalid, "endpoint"},
		"s3://bucket/key?endpoint=" + forbidden: {coverslip.Environment, "AWS_ACCESS_KEY_ID"},
		"s3://bucket/key?endpoint=" + absent:    {coverslip.NotFound, "bucket"},
		"s3://bucket/key?region=eu&endpoint=" + whole:    {coverslip.Unsupported, "only whole files"},
		"s3://bucket/key?region=eu&endpoint=" + gone.URL: {coverslip.Unavailable, "connection refused"},
	} {
		_, err := open(t.Context(), address, time.Second, time.Millisecond)
		if coverslip.KindOf(err) != want.kind || !strings.Contains(err.Error(), want.says) || coverslip.HintOf(err) == "" && want.kind != coverslip.Invalid {
			t.Errorf("%s: kind %s: %v", address, coverslip.KindOf(err), err)
		}
	}
}

func TestShownAddressesHoldNoSecrets(t *testing.T) {
	for address, want := range map[string]string{
		"https://u:secret@host:1/a%20b.svs?x=secret": "https://host:1/a%20b.svs",
		"s3://bucket/a%20b.svs?endpoint=http://x":    "s3://bucket/a b.svs",
		"http://host/100%.svs?secret":                "http://host/100%.svs",
		"a?b.svs":                                    "a?b.svs",
	} {
		if got := Shown(address); got != want {
			t.Errorf("%s is shown as %s", address, got)
		}
	}
}

func TestReadingStopsWithItsContext(t *testing.T) {
	for name, trouble := range map[string]func(http.ResponseWriter, *http.Request, int64) bool{
		"UnderWay": func(_ http.ResponseWriter, r *http.Request, _ int64) bool { <-r.Context().Done(); return true },
		"BetweenTries": func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			address, _ := serve(t, func(w http.ResponseWriter, r *http.Request, n int64) bool {
				cancel()
				return trouble(w, r, n)
			})
			o, err := open(t.Context(), address, time.Hour, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if err := o.ReadRange(ctx, make([]byte, 100), 100_000); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRangesOutsideAreInvalid(t *testing.T) {
	address, requests := serve(t, func(http.ResponseWriter, *http.Request, int64) bool { return false })
	o := mustOpen(t, address)
	for _, off := range []int64{-1, 299_950, 1 << 62} {
		if err := o.ReadRange(t.Context(), make([]byte, 100), off); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("at %d: %v", off, err)
		}
	}
	if requests.Load() != 1 {
		t.Errorf("%d requests", requests.Load())
	}
}

func TestAtMostSixteenRequestsAtOnce(t *testing.T) {
	var now, most atomic.Int64
	full := make(chan struct{})
	address, _ := serve(t, func(_ http.ResponseWriter, _ *http.Request, n int64) bool {
		for v := now.Add(1); ; {
			old := most.Load()
			if v <= old || most.CompareAndSwap(old, v) {
				break
			}
		}
		if n == maxFlights {
			close(full)
		}
		<-full
		now.Add(-1)
		return false
	})
	o, err := Open(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range int64(64) {
		wg.Go(func() {
			got := make([]byte, 1000)
			if err := o.ReadRange(t.Context(), got, 100_000+i*1000); err != nil || !bytes.Equal(got, content[100_000+i*1000:][:1000]) {
				t.Errorf("range %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if most.Load() > maxFlights {
		t.Errorf("%d requests at once", most.Load())
	}
}

// versitygw over files that nobody uploaded gives no ETag, and holds the time of If-Unmodified-Since, whole
// seconds, against a file's own, which has parts of one.
func TestOnlyTheTimeOfTheLastChange(t *testing.T) {
	var changed atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-Unmodified-Since") != "" {
			w.WriteHeader(http.StatusPreconditionFailed)
			return
		}
		at := time.Date(2026, 11, 27, 1, 2, 3, 0, time.UTC)
		if changed.Load() {
			at = at.Add(time.Second)
		}
		http.ServeContent(w, r, "", at, bytes.NewReader(content))
	}))
	t.Cleanup(s.Close)
	o := mustOpen(t, s.URL+"/slide.svs")
	got := make([]byte, 1000)
	if err := o.ReadRange(t.Context(), got, 100_000); err != nil || !bytes.Equal(got, content[100_000:101_000]) {
		t.Errorf("unchanged: %v", err)
	}
	changed.Store(true)
	if err := o.ReadRange(t.Context(), got, 100_000); coverslip.KindOf(err) != coverslip.Conflict {
		t.Errorf("changed: %v", err)
	}
}
