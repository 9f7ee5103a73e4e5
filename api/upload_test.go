package api_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coverslip"
	"coverslip/api"
)

func TestUploadRegistersOnceAndSaysWhere(t *testing.T) {
	s := newSite(t)
	a := s.want(201, "POST", "/v1/slides?name=a.svs&mpp_of_slide=0.25", strings.NewReader("a slide"), "Content-Type", "application/octet-stream")
	first := decode[coverslip.Slide](t, a)
	if first.Name != "a.svs" || first.Bytes != 7 || a.Header.Get("Location") != "/v1/slides/"+string(first.ID) || s.mpp != 0.25 {
		t.Errorf("%+v at %s, mpp %v", first, a.Header.Get("Location"), s.mpp)
	}
	s.want(200, "GET", a.Header.Get("Location"), nil)
	again := s.want(200, "POST", "/v1/slides?name=b.svs", strings.NewReader("a slide"))
	if got := decode[coverslip.Slide](t, again); got.ID != first.ID || again.Header.Get("Location") != a.Header.Get("Location") {
		t.Errorf("%+v", got)
	}
}

func TestTwentyClientsOfOneSlideMakeOne(t *testing.T) {
	s := newSite(t)
	content := bytes.Repeat([]byte("slide"), 200_000)
	var created, known atomic.Int32
	var clients sync.WaitGroup
	for i := range 20 {
		clients.Go(func() {
			resp, err := http.Post(fmt.Sprintf("%s/v1/slides?name=%d.svs", s.url, i), "application/octet-stream", bytes.NewReader(content))
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = resp.Body.Close() }()
			switch resp.StatusCode {
			case http.StatusCreated:
				created.Add(1)
			case http.StatusOK:
				known.Add(1)
			}
		})
	}
	clients.Wait()
	if created.Load() != 1 || known.Load() != 19 || len(s.slides) != 1 {
		t.Errorf("%d created, %d known, %d slides", created.Load(), known.Load(), len(s.slides))
	}
}

func TestNamesAreReducedOrRefused(t *testing.T) {
	s := newSite(t)
	for given, want := range map[string]string{
		"slide.svs": "slide.svs", "../../x": "x", `..\..\x`: "x", "/etc/passwd": "passwd", `C:\scans\Übersicht 1.svs`: "Übersicht 1.svs",
		"…/本.tiff": "本.tiff", strings.Repeat("d/", 400) + "x": "x", strings.Repeat("a", 255): strings.Repeat("a", 255),
	} {
		a := s.want(201, "POST", "/v1/slides?name="+url.QueryEscape(given), strings.NewReader(given))
		if got := decode[coverslip.Slide](t, a); got.Name != want {
			t.Errorf("%q became %q, want %q", given, got.Name, want)
		}
	}
	for header, want := range map[string]string{
		`attachment; filename="../../a.svs"`: "a.svs", `attachment; filename*=UTF-8''%e6%9c%ac.svs`: "本.svs",
	} {
		a := s.want(201, "POST", "/v1/slides", strings.NewReader(header), "Content-Disposition", header)
		if got := decode[coverslip.Slide](t, a); got.Name != want {
			t.Errorf("%s became %q, want %q", header, got.Name, want)
		}
	}
	kept := len(s.slides)
	for _, bad := range []string{"", "..", "a/..", ".", "a/", "x\x00y", "x\ny", "gpj.\u202esvs", "\xff\xfe", strings.Repeat("本", 1365), strings.Repeat("a", 256)} {
		s.wantKind(coverslip.Invalid, 422, "POST", "/v1/slides?name="+url.QueryEscape(bad), strings.NewReader("y"))
	}
	s.wantKind(coverslip.Invalid, 422, "POST", "/v1/slides", strings.NewReader("y"), "Content-Disposition", "attachment; filename=;;")
	if len(s.slides) != kept {
		t.Error("a refused upload was kept")
	}
}

func TestResolutionOfTheUserIsANumberInRange(t *testing.T) {
	s := newSite(t)
	for _, bad := range []string{"0", "-1", "NaN", "Inf", "-Inf", "1e999", "101", "0,5", "half", "%zz"} {
		s.wantKind(coverslip.Invalid, 422, "POST", "/v1/slides?name=x&mpp_of_slide="+bad, strings.NewReader("y"))
	}
	s.wantKind(coverslip.Invalid, 422, "POST", "/v1/slides?name=x&mpp=0.5", strings.NewReader("y")) // misspelt
	if len(s.slides) != 0 {
		t.Error("a refused upload was kept")
	}
}

func TestWrappedAndForgottenBodiesAreRefused(t *testing.T) {
	s := newSite(t)
	for _, header := range [][2]string{{"Content-Encoding", "gzip"}, {"Content-Encoding", "identity, gzip"}, {"Content-Type", "multipart/form-data; boundary=x"},
		{"Content-Type", "application/x-www-form-urlencoded"}, {"Content-Type", ";;"}} {
		p := s.wantKind(coverslip.Unsupported, 415, "POST", "/v1/slides?name=x.svs", strings.NewReader("y"), header[0], header[1])
		if !strings.Contains(p.Detail, "x.svs") {
			t.Errorf("it does not name the file: %s", p.Detail)
		}
	}
	s.wantKind(coverslip.Invalid, 422, "POST", "/v1/slides?name=x.svs", nil) // forgotten
	if len(s.slides) != 0 {
		t.Error("a refused upload was kept")
	}
	s.want(201, "POST", "/v1/slides?name=x.svs", strings.NewReader("y"), "Content-Encoding", "identity")
}

// zeros is an endless body that costs nothing to make; only its length is unknown to the client.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestUploadOverTheLimitKeepsNothing(t *testing.T) {
	s := newSite(t, func(c *api.Config) { c.MaxUpload = 1 << 20 })
	exact := io.LimitReader(zeros{}, 1<<20)
	s.want(201, "POST", "/v1/slides?name=exact", exact)
	s.ended = make(chan error, 1)
	s.wantKind(coverslip.TooLarge, 413, "POST", "/v1/slides?name=x", io.LimitReader(zeros{}, 1<<20+1)) // chunked: found out on the way
	if err := <-s.ended; coverslip.KindOf(err) != coverslip.TooLarge {
		t.Errorf("the uploader saw %v", err)
	}
	if len(s.slides) != 1 {
		t.Error("kept")
	}
}

func TestHugeContentLengthIsRefusedUnread(t *testing.T) {
	s := newSite(t)
	for _, length := range []string{"107374182401", "9223372036854775807"} {
		conn := s.dial("Content-Length: " + length + "\r\nExpect: 100-continue\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusRequestEntityTooLarge { // and not 100 first
			t.Errorf("Content-Length %s: %s", length, resp.Status)
		}
		_ = resp.Body.Close()
	}
}

func TestExpectContinueIsAnsweredBeforeTheBody(t *testing.T) {
	s := newSite(t)
	conn := s.dial("Content-Length: 7\r\nExpect: 100-continue\r\n")
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	if _, err := in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "a slide"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("%v %v", resp, err)
	}
	_ = resp.Body.Close()
}

func TestCutUploadKeepsNothing(t *testing.T) {
	for name, cut := range map[string]struct {
		header, sent string
		end          func(*net.TCPConn) error
	}{
		"FIN":          {"Content-Length: 1000000\r\n", "half", (*net.TCPConn).Close},
		"RST":          {"Content-Length: 1000000\r\n", "half", func(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) }},
		"ChunkedFIN":   {"Transfer-Encoding: chunked\r\n", "ff\r\nhalf", (*net.TCPConn).Close},
		"ChunkMissing": {"Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n", (*net.TCPConn).Close},
		"NoChunk":      {"Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\nnonsense\r\n", func(*net.TCPConn) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.ended = make(chan error, 1)
			conn := s.dial(cut.header)
			if _, err := io.WriteString(conn, cut.sent); err != nil {
				t.Fatal(err)
			}
			if err := cut.end(conn); err != nil {
				t.Fatal(err)
			}
			if err := <-s.ended; !errors.Is(err, io.ErrUnexpectedEOF) || coverslip.KindOf(err) != coverslip.Canceled {
				t.Errorf("the uploader saw %v", err)
			}
			s.stop()
			if len(s.slides) != 0 || !strings.Contains(s.log.String(), `"status":499`) {
				t.Errorf("%d kept; %s", len(s.slides), s.log)
			}
		})
	}
}

// A client that only half closes can still read why.
func TestHalfClosedClientReadsTheProblem(t *testing.T) {
	s := newSite(t)
	conn := s.dial("Content-Length: 1000000\r\n")
	if _, err := io.WriteString(conn, "half"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != 499 || !strings.Contains(string(body), "x.svs: receive upload: the connection ended early") {
		t.Errorf("%v %s %s", err, resp.Status, body)
	}
}

// dial sends the head of an upload and leaves the body to the test.
func (s *site) dial(header string) *net.TCPConn {
	s.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil { // a test that hangs says where
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "POST /v1/slides?name=x.svs HTTP/1.1\r\nHost: test\r\n"+header+"\r\n"); err != nil {
		s.t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// Half a gigabyte passes through while client and server together allocate less than a hundredth
// of it, so nothing on the way holds the body.
func TestUploadStreamsInFlatMemory(t *testing.T) {
	const size = 512 << 20
	s := newSite(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s.want(201, "POST", "/v1/slides?name=large.svs", io.LimitReader(zeros{}, size))
	runtime.ReadMemStats(&after)
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > size/100 {
		t.Errorf("%d MiB allocated", allocated>>20)
	}
	for _, slide := range s.slides {
		if slide.Bytes != size {
			t.Errorf("%d bytes arrived", slide.Bytes)
		}
	}
}
