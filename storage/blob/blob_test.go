package blob_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"coverslip"
	"coverslip/storage/blob"
	"coverslip/storage/blob/blobtest"
	"coverslip/storage/blob/s3test"
)

func TestFolder(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blobtest.Store { return openFolder(t, t.TempDir()) })
}

func TestS3(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blobtest.Store { return openS3(t, s3test.Start(t)) })
}

func TestS3UnderAPrefix(t *testing.T) {
	address := s3test.Start(t)
	whole := openS3(t, address)
	part := openS3(t, strings.Replace(address, "?", "/some/prefix?", 1))
	if err := part.Put(t.Context(), "k", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	for info, err := range part.List(t.Context(), "") {
		if err != nil || info.Key != "k" {
			t.Errorf("under the prefix: %+v, %v", info, err)
		}
	}
	for info, err := range whole.List(t.Context(), "") {
		if err != nil || info.Key != "some/prefix/k" {
			t.Errorf("in the bucket: %+v, %v", info, err)
		}
	}
}

func TestFolderLeavesNoUnfinishedFile(t *testing.T) {
	dir := t.TempDir()
	f := openFolder(t, dir)
	if err := f.Put(t.Context(), "k", strings.NewReader("x"), 2); coverslip.KindOf(err) != coverslip.Invalid {
		t.Fatal(err)
	}
	if left := unfinished(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestFolderSweepsOldUnfinishedFilesWhenOpened(t *testing.T) {
	dir := t.TempDir()
	openFolder(t, dir)
	for name, age := range map[string]time.Duration{"old": 25 * time.Hour, "new": time.Hour} {
		path := filepath.Join(dir, ".unfinished", name)
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	openFolder(t, dir)
	if left := unfinished(t, dir); len(left) != 1 || left[0] != "new" {
		t.Errorf("left: %v, want the new one", left)
	}
}

func TestFolderPath(t *testing.T) {
	dir := t.TempDir()
	f := openFolder(t, dir)
	if err := f.Put(t.Context(), "slides/s", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	path, err := f.Path("slides/s")
	if err != nil || path != filepath.Join(dir, "slides", "s") {
		t.Fatalf("Path = %q, %v", path, err)
	}
	if p, err := os.ReadFile(path); err != nil || string(p) != "x" {
		t.Errorf("the file holds %q, %v", p, err)
	}
	if _, err := f.Path("../etc/passwd"); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("Path out of the folder: %v", err)
	}
}

func TestFolderKeyThatIsAFolderOfAnother(t *testing.T) {
	f := openFolder(t, t.TempDir())
	for _, key := range []string{"a", "b/c"} {
		if err := f.Put(t.Context(), key, strings.NewReader("x"), 1); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"a/below", "b"} {
		if err := f.Put(t.Context(), key, strings.NewReader("x"), 1); coverslip.KindOf(err) != coverslip.Conflict {
			t.Errorf("Put(%s): %v", key, err)
		}
	}
}

func TestFolderStaysInside(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	f := openFolder(t, dir)
	if b, err := f.Open(t.Context(), "link/secret"); err == nil {
		t.Error("read through a link out of the folder", b.Close())
	}
	if err := f.Put(t.Context(), "link/new", strings.NewReader("x"), 1); err == nil {
		t.Error("wrote through a link out of the folder")
	}
}

func TestFolderOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("a small disk cannot be mounted here (it takes root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	f := openFolder(t, dir)
	if err := f.Put(t.Context(), "small", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	err := f.Put(t.Context(), "large", bytes.NewReader(make([]byte, 1<<20)), 1<<20)
	if coverslip.KindOf(err) != coverslip.Full || coverslip.HintOf(err) == "" || !strings.Contains(err.Error(), filepath.Join(dir, "large")) {
		t.Errorf("on a full disk: %v", err)
	}
	if _, err := f.Stat(t.Context(), "large"); coverslip.KindOf(err) != coverslip.NotFound {
		t.Errorf("something is visible: %v", err)
	}
	if left := unfinished(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if err := f.Put(t.Context(), "next", strings.NewReader("y"), 1); err != nil {
		t.Errorf("does not recover: %v", err)
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	for _, address := range []string{dir, "file://" + dir, filepath.Join(dir, "new", "folder")} {
		s, err := blob.Open(t.Context(), address)
		if _, ok := s.(*blob.Folder); !ok || err != nil {
			t.Errorf("Open(%s) = %T, %v", address, s, err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for address, kind := range map[string]coverslip.Kind{
		"gs://bucket":                          coverslip.Unsupported,
		"file://host/folder":                   coverslip.Unsupported,
		"s3://bucket?endpoit=http://x":         coverslip.Invalid,
		"s3://bucket?endpoint=127.0.0.1:1":     coverslip.Invalid,
		"s3://bucket?endpoint=http://x/y":      coverslip.Invalid,
		"s3://b?endpoint=http://127.0.0.1:1":   coverslip.Invalid, // too short a name
		"s3://bu/../ck?endpoint=http://x":      coverslip.Invalid,
		"s3://bucket/%zz?endpoint=http://x":    coverslip.Invalid,
		file:                                   coverslip.Conflict,
		filepath.Join(file, "below"):           coverslip.Conflict,
		"s3:///prefix?endpoint=http://x.local": coverslip.Invalid,
	} {
		s, err := blob.Open(t.Context(), address)
		if coverslip.KindOf(err) != kind || s != nil {
			t.Errorf("Open(%s) = %v, %v; want kind %s", address, s, err, kind)
		}
	}
}

func TestS3MissingBucket(t *testing.T) {
	address := strings.Replace(s3test.Start(t), s3test.Bucket, "nothing-here", 1)
	if _, err := blob.Open(t.Context(), address); coverslip.KindOf(err) != coverslip.NotFound || coverslip.HintOf(err) == "" {
		t.Errorf("Open: %v", err)
	}
}

func TestS3WrongCredentials(t *testing.T) {
	address := s3test.Start(t)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if _, err := blob.Open(t.Context(), address); coverslip.KindOf(err) != coverslip.Environment || coverslip.HintOf(err) == "" {
		t.Errorf("Open: %v", err)
	}
}

func TestS3SweepsAbandonedUploads(t *testing.T) {
	address := s3test.Start(t)
	fault := &faults{}
	s := openS3(t, fault.before(t, address))
	// The upload loses its server after the first part, and cannot even be aborted.
	ctx, cancel := context.WithCancel(t.Context())
	src := io.MultiReader(bytes.NewReader(make([]byte, 33<<20)), readFunc(func([]byte) (int, error) {
		fault.set(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusForbidden) })
		cancel()
		return 0, io.EOF
	}))
	if err := s.Put(ctx, "k", src, -1); coverslip.KindOf(err) != coverslip.Canceled {
		t.Fatal(err)
	}
	fault.set(nil)
	if err := s.Sweep(t.Context(), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := fault.deleted.Swap(0); n != 0 {
		t.Errorf("swept %d uploads younger than asked", n)
	}
	if err := s.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if n := fault.deleted.Swap(0); n != 1 {
		t.Errorf("swept %d uploads, want 1", n)
	}
	if err := s.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil || fault.deleted.Load() != 0 {
		t.Errorf("something was left to sweep: %v", err)
	}
}

func TestS3RepeatsWhatFailsForAMoment(t *testing.T) {
	fault := &faults{}
	s := openS3(t, fault.before(t, s3test.Start(t)))
	for name, call := range map[string]func() error{
		"Put":    func() error { return s.Put(t.Context(), "k", strings.NewReader("content"), -1) },
		"Stat":   func() error { _, err := s.Stat(t.Context(), "k"); return err },
		"Read":   func() error { _, err := read(t.Context(), s, "k"); return err },
		"Delete": func() error { return s.Delete(t.Context(), "k") },
		"List": func() error {
			for _, err := range s.List(t.Context(), "") {
				return err
			}
			return nil
		},
	} {
		if err := s.Put(t.Context(), "k", strings.NewReader("content"), -1); err != nil {
			t.Fatal(err)
		}
		fault.once(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusServiceUnavailable) })
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestS3ThatStaysDownIsUnavailable(t *testing.T) {
	fault := &faults{}
	s := openS3(t, fault.before(t, s3test.Start(t)))
	fault.set(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusInternalServerError) })
	err := s.Put(t.Context(), "k", strings.NewReader("x"), 1)
	if coverslip.KindOf(err) != coverslip.Unavailable || coverslip.HintOf(err) == "" {
		t.Errorf("Put: %v", err)
	}
}

// Each answer that breaks off is asked for again, from where it broke.
func TestS3AnswerThatBreaksOff(t *testing.T) {
	fault := &faults{}
	s := openS3(t, fault.before(t, s3test.Start(t)))
	want := strings.Repeat("0123456789", 10_000)
	if err := s.Put(t.Context(), "k", strings.NewReader(want), -1); err != nil {
		t.Fatal(err)
	}
	for name, broken := range map[string]http.HandlerFunc{
		"reset":       func(w http.ResponseWriter, r *http.Request) { fault.partly(w, r, 1000); panic(http.ErrAbortHandler) },
		"before body": func(w http.ResponseWriter, r *http.Request) { fault.partly(w, r, 0); panic(http.ErrAbortHandler) },
	} {
		b, err := s.Open(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, len(want))
		fault.once(broken)
		if n, err := b.ReadAt(p, 0); err != nil || string(p[:n]) != want {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		fault.set(broken)
		if n, err := b.ReadAt(p, 0); coverslip.KindOf(err) != coverslip.Unavailable {
			t.Errorf("%s each time: %d bytes, %v", name, n, err)
		}
		fault.set(nil)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestS3AnswerThatStalls(t *testing.T) {
	fault := &faults{}
	s := openS3(t, fault.before(t, s3test.Start(t)))
	if err := s.Put(t.Context(), "k", strings.NewReader("0123456789"), -1); err != nil {
		t.Fatal(err)
	}
	s.SetPatience(50 * time.Millisecond)
	b, err := s.Open(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	for name, sent := range map[string]int{"before the body": 0, "within the body": 1} {
		fault.set(func(w http.ResponseWriter, r *http.Request) {
			fault.partly(w, r, sent)
			<-r.Context().Done()
		})
		if n, err := b.ReadAt(make([]byte, 10), 0); coverslip.KindOf(err) != coverslip.Unavailable {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
	fault.set(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	if _, err := b.ReadAt(make([]byte, 10), 0); coverslip.KindOf(err) != coverslip.Unavailable {
		t.Errorf("no answer at all: %v", err)
	}
}

// A server that knows no ranges must not pass for one that sent the right bytes.
func TestS3AnswerOfAnotherRange(t *testing.T) {
	fault := &faults{}
	s := openS3(t, fault.before(t, s3test.Start(t)))
	if err := s.Put(t.Context(), "k", strings.NewReader("0123456789"), -1); err != nil {
		t.Fatal(err)
	}
	b, err := s.Open(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	fault.set(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Range", "bytes=0-3")
		fault.proxy.ServeHTTP(w, r)
	})
	if n, err := b.ReadAt(make([]byte, 4), 5); err == nil {
		t.Errorf("took %d bytes from elsewhere", n)
	}
}

// faults stands before an S3 server and answers in its stead.
type faults struct {
	proxy   *httputil.ReverseProxy
	handler atomic.Pointer[http.HandlerFunc]
	deleted atomic.Int64 // requests to abort an upload that reached the server
}

// before starts the proxy and returns the bucket's address through it.
func (f *faults) before(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	target, err := url.Parse(q.Get("endpoint"))
	if err != nil {
		t.Fatal(err)
	}
	f.proxy = &httputil.ReverseProxy{
		Rewrite:  func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host }, // Host stays: it is signed
		ErrorLog: nil,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := f.handler.Load(); h != nil {
			(*h)(w, r)
			return
		}
		if r.Method == http.MethodDelete && r.URL.Query().Has("uploadId") {
			f.deleted.Add(1)
		}
		f.proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	q.Set("endpoint", server.URL)
	u.RawQuery = q.Encode()
	return u.String()
}

// set answers every request with h; nil lets them pass.
func (f *faults) set(h http.HandlerFunc) {
	if h == nil {
		f.handler.Store(nil)
		return
	}
	f.handler.Store(&h)
}

// once answers the next request with h.
func (f *faults) once(h http.HandlerFunc) {
	f.set(func(w http.ResponseWriter, r *http.Request) {
		f.set(nil)
		h(w, r)
	})
}

// partly passes the server's answer on, with n bytes of its body.
func (f *faults) partly(w http.ResponseWriter, r *http.Request, n int) {
	rec := httptest.NewRecorder()
	f.proxy.ServeHTTP(rec, r)
	for name, values := range rec.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes()[:n])
	_ = http.NewResponseController(w).Flush()
}

func openFolder(t *testing.T, dir string) *blob.Folder {
	t.Helper()
	f, err := blob.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func openS3(t *testing.T, address string) *blob.S3 {
	t.Helper()
	s, err := blob.Open(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	return s.(*blob.S3)
}

func read(ctx context.Context, s blob.Store, key string) (p []byte, err error) {
	b, err := s.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	p = make([]byte, b.Size())
	_, err = b.ReadAt(p, 0)
	return p, err
}

func unfinished(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, ".unfinished"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
