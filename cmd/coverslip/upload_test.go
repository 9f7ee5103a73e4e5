package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"coverslip"
	"coverslip/storage/blob"
	"coverslip/storage/blob/s3test"
)

// badLine passes connections on to a server and cuts each after some bytes.
type badLine struct {
	url string
	mu  sync.Mutex
	to  string
	cut func() int64     // bytes after which the next connection ends; below 0 never
	saw func(l *badLine) // called after each cut
}

func newBadLine(t *testing.T, to string, cut func() int64, saw func(l *badLine)) *badLine {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line := &badLine{url: "http://" + ln.Addr().String(), to: to, cut: cut, saw: saw}
	var conns sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { line.pass(client.(*net.TCPConn)) })
		}
	})
	return line
}

func (l *badLine) pass(client *net.TCPConn) {
	defer client.Close()
	l.mu.Lock()
	to, n := l.to, l.cut()
	l.mu.Unlock()
	server, err := net.Dial("tcp", strings.TrimPrefix(to, "http://"))
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	}()
	if n < 0 {
		_, _ = io.Copy(server, client)
		return
	}
	if sent, _ := io.CopyN(server, client, n); sent == n {
		_ = client.SetLinger(0)
		l.saw(l)
	}
}

// padded is the bundled slide with bytes behind it, of n MiB in all, in a file.
func padded(t *testing.T, n int, seed int64) string {
	t.Helper()
	whole, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, n<<20-len(whole))
	rand.New(rand.NewSource(seed)).Read(rest)
	path := filepath.Join(t.TempDir(), "padded.svs")
	if err := os.WriteFile(path, append(whole, rest...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Fault 14: `coverslip upload` over a line that is cut at random bytes, to a server that is killed in the
// middle and started again, ends with the slide.
func TestFault14UploadOverABadLine(t *testing.T) {
	needsRuntime(t)
	data, path := dataFolder(t), padded(t, 40, 14)
	p := up(t, data)
	random := rand.New(rand.NewSource(14))
	cuts := 0
	line := newBadLine(t, p.url, func() int64 {
		if cuts >= 6 {
			return -1
		}
		return 1000 + random.Int63n(12<<20)
	}, func(line *badLine) {
		line.mu.Lock()
		defer line.mu.Unlock()
		if cuts++; cuts == 3 {
			p.kill()
			p = up(t, data)
			line.to = p.url
		}
	})
	code, out, stderr := coverslipRun(t, "upload", path, "--server", line.url, "--json")
	line.mu.Lock() // its connections may still be ending
	server, cut := p, cuts
	line.mu.Unlock()
	r := results(t, out)
	if code != 0 || len(r) != 1 || r[0].Name != "padded.svs" {
		t.Fatalf("exit %d, %s%s", code, out, stderr)
	}
	if cut < 6 {
		t.Errorf("the line was cut %d times", cut)
	}
	stored, err := os.ReadFile(filepath.Join(data, "blobs", "slides", string(r[0].Slide)))
	if err != nil {
		t.Fatal(err)
	}
	if sent, err := os.ReadFile(path); err != nil || !bytes.Equal(sent, stored) {
		t.Errorf("%d bytes were stored of %d, %v", len(stored), len(sent), err)
	}
	// Known now: nothing is sent.
	code, out, _ = coverslipRun(t, "upload", path, bundled, "README.md", "--server", server.url)
	if code != 1 || !strings.Contains(out, "the server has it already") || !strings.Contains(out, "uploaded: 1.9 MB") {
		t.Errorf("exit %d, %s", code, out)
	}
	if _, err := server.embedding(t.Context(), r[0].Slide); err != nil {
		t.Error(err)
	}
}

func TestUploadSaysWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"NoServer":   {[]string{"upload", bundled, "--server", "http://127.0.0.1:1", "--patience", "1ms"}, 1, "see that the server runs at http://127.0.0.1:1"},
		"NoAddress":  {[]string{"upload", bundled, "--server", "archive"}, 2, "write http://host:port"},
		"NoFile":     {[]string{"upload", "absent.svs", "--server", "http://127.0.0.1:1"}, 1, "absent.svs"},
		"NoSlide":    {[]string{"upload", "../../README.md", "--server", "http://127.0.0.1:1"}, 1, "it is no slide"},
		"NotNothing": {[]string{"upload"}, 2, "expected"},
	} {
		t.Run(name, func(t *testing.T) {
			if code, _, stderr := coverslipRun(t, c.args...); code != c.code || !strings.Contains(stderr, c.says) {
				t.Errorf("exit %d, %s", code, stderr)
			}
		})
	}
}

// A slide of several files travels as one archive, which is the same each time.
func TestUploadOfAFolder(t *testing.T) {
	needsRuntime(t)
	folder := shared(t, "wsi", "dicom", "cmu-1-small-region")
	p := up(t, dataFolder(t))
	code, out, stderr := coverslipRun(t, "upload", folder, "--server", p.url, "--mpp-of-slide", "1", "--json")
	r := results(t, out)
	if code != 0 || len(r) != 1 || r[0].Name != "cmu-1-small-region.zip" {
		t.Fatalf("exit %d, %s%s", code, out, stderr)
	}
	if _, err := p.embedding(t.Context(), r[0].Slide); err != nil {
		t.Error(err)
	}
	if _, out, _ := coverslipRun(t, "upload", folder, "--server", p.url); !strings.Contains(out, "has it already") {
		t.Errorf("the second time: %s", out)
	}
}

// Slides that lie in the server's bucket, or in a folder that it was told of, are registered where they
// are; clients cannot make it read anything else. With a bucket, clients may put slides there themselves.
func TestInPlaceAndStraightToTheBucket(t *testing.T) {
	needsRuntime(t)
	blobs := s3test.Start(t)
	database(t)
	t.Setenv("BLOB_URL", blobs)
	whole, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	store, err := blob.Open(t.Context(), blobs)
	if err != nil {
		t.Fatal(err)
	}
	put(t, store, "archive/cmu.svs", bundled)
	opened, closed := t.TempDir(), t.TempDir()
	for _, dir := range []string{opened, closed} {
		if err := os.WriteFile(filepath.Join(dir, "a.svs"), whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(closed, filepath.Join(opened, "out")); err != nil {
		t.Fatal(err)
	}
	p := listening(t, "serve", "--json", "--addr", "127.0.0.1:0", "--data", t.TempDir(), "--slides-folder", opened)
	post := func(path, body string) (status int, answer map[string]any) {
		t.Helper()
		resp, err := http.Post(p.url+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, answer
	}
	for i, c := range []struct {
		place string
		want  int
	}{
		{"s3://coverslip/archive/cmu.svs", 201}, {filepath.Join(opened, "a.svs"), 200},
		{filepath.Join(closed, "a.svs"), 422}, {filepath.Join(opened, "out", "a.svs"), 422}, {filepath.Join(opened, "..", filepath.Base(closed), "a.svs"), 422},
		{"/etc/passwd", 422}, {"a.svs", 422}, {opened, 422}, {"s3://coverslip/absent.svs", 404}, {"s3://other/x.svs", 404},
		{"s3://coverslip/archive/cmu.svs?endpoint=http://169.254.169.254", 422}, {"http://169.254.169.254/x.svs", 415}, {"file:///etc/passwd", 422},
	} {
		body, _ := json.Marshal(map[string]string{"location": c.place})
		if status, answer := post("/v1/slides/register", string(body)); status != c.want {
			t.Errorf("%d %s: %d %v", i, c.place, status, answer)
		}
	}
	n := 0
	for _, err := range store.List(t.Context(), "slides/") {
		if n++; err != nil {
			t.Fatal(err)
		}
	}
	if n > 0 {
		t.Errorf("%d blobs were made", n)
	}

	// Straight to the bucket, with nothing but an HTTP client.
	other, err := os.ReadFile(padded(t, 20, 15))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := json.Marshal(map[string]any{"name": "other.svs", "bytes": len(other)})
	status, to := post("/v1/uploads/presigned", string(body))
	if status != 201 {
		t.Fatalf("%d %v", status, to)
	}
	var etags []string
	size := int(to["part_bytes"].(float64))
	for i, part := range to["parts"].([]any) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, part.(map[string]any)["url"].(string), bytes.NewReader(other[i*size:min((i+1)*size, len(other))]))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v %v", resp, err)
		}
		_ = resp.Body.Close()
		etags = append(etags, resp.Header.Get("ETag"))
	}
	body, _ = json.Marshal(map[string]any{"etags": etags})
	if status, answer := post("/v1/uploads/presigned/"+to["id"].(string)+"/complete", string(body)); status != 201 || answer["state"] != string(coverslip.Queued) {
		t.Errorf("%d %v", status, answer)
	}
}
