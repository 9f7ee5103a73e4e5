package api_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"coverslip"
	"coverslip/api"
)

func metadata(pairs ...string) string {
	var out []string
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, pairs[i]+" "+base64.StdEncoding.EncodeToString([]byte(pairs[i+1])))
	}
	return strings.Join(out, ",")
}

// begin begins an upload of so many bytes and returns its address.
func (s *site) begin(length int) string {
	s.t.Helper()
	return s.want(201, "POST", "/v1/uploads", nil, "Tus-Resumable", "1.0.0", "Upload-Length", fmt.Sprint(length), "Upload-Metadata", metadata("filename", "x.svs")).Header.Get("Location")
}

// patch sends bytes of an upload.
func (s *site) patch(status int, at string, offset int, body io.Reader, header ...string) answer {
	s.t.Helper()
	return s.want(status, "PATCH", at, body, append([]string{"Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", fmt.Sprint(offset)}, header...)...)
}

// untilIn waits until n bytes of an upload are in, so that the request that sends them has its turn.
// It looks at the store: a request that asked would itself take the turn.
func (s *site) untilIn(at string, n int) {
	s.t.Helper()
	in := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.uploads[at[len("/v1/uploads/"):]].content.Len()
	}
	for in() < n {
		time.Sleep(time.Millisecond)
	}
}

// uploadAnswers meets every answer of the routes of uploads.
func (s *site) uploadAnswers(statuses map[coverslip.Kind]int) {
	s.t.Helper()
	s.fail = nil
	tus := []string{"Tus-Resumable", "1.0.0"}
	foreign := append(tus, "Sec-Fetch-Site", "cross-site")
	gzip := append(tus, "Content-Encoding", "gzip")
	at := s.begin(7)
	whole := s.begin(7)
	s.patch(204, whole, 0, strings.NewReader("a slid"))
	s.patch(204, whole, 6, strings.NewReader("e"))
	const absent = "/v1/uploads/zzzzzzzzzzzzzzzzzzzzzzzzzz"
	named := metadata("filename", "x.svs")
	json := []string{"Content-Type", "application/json"}
	register := func() io.Reader { return strings.NewReader(`{"location":"s3://bucket/registered.svs"}`) }
	presign := func() io.Reader { return strings.NewReader(`{"name":"x.svs","bytes":10}`) }
	etags := func() io.Reader { return strings.NewReader(`{"etags":["a","b"]}`) }

	s.want(200, "GET", "/v1/uploads", nil)
	s.want(200, "GET", at, nil)
	s.want(200, "HEAD", at, nil)
	s.want(404, "HEAD", absent, nil)
	s.want(415, "HEAD", at, nil, gzip...)
	s.want(200, "POST", whole+"/finish", nil)
	presigned := decode[struct {
		ID    string
		Parts []struct {
			Number int
			URL    string
		}
		PartBytes int `json:"part_bytes"`
		Expires   time.Time
	}](s.t, s.want(201, "POST", "/v1/uploads/presigned", presign(), json...))
	complete := "/v1/uploads/presigned/" + presigned.ID + "/complete"
	s.want(422, "POST", complete, strings.NewReader(`{"etags":["a"]}`), json...)
	s.want(201, "POST", complete, etags(), json...)
	s.want(200, "POST", complete, etags(), json...)
	s.want(201, "POST", "/v1/slides/register", register(), json...)
	s.want(200, "POST", "/v1/slides/register", register(), json...)
	fresh := s.begin(5)
	s.patch(204, fresh, 0, strings.NewReader("fresh"))
	s.slides = map[coverslip.SlideID]coverslip.Slide{idOf(idA): s.slides[idOf(idA)], idOf(idB): s.slides[idOf(idB)]} // what an upload of them becomes is forgotten
	s.want(201, "POST", fresh+"/finish", nil)

	for _, target := range []string{"/v1/uploads", at} {
		s.wantKind(coverslip.Invalid, 422, "GET", target+"?nonsense=1", nil)
	}
	for _, target := range []string{absent} {
		s.wantKind(coverslip.NotFound, 404, "GET", target, nil)
		s.wantKind(coverslip.NotFound, 404, "POST", target+"/finish", nil)
		s.wantKind(coverslip.NotFound, 404, "DELETE", target, nil, tus...)
		s.patch(404, target, 0, strings.NewReader("x"))
	}
	s.wantKind(coverslip.NotFound, 404, "POST", "/v1/uploads/presigned/zzzzzzzzzzzzzzzzzzzzzzzzzz/complete", etags(), json...)
	s.wantKind(coverslip.NotFound, 404, "DELETE", "/v1/uploads/presigned/zzzzzzzzzzzzzzzzzzzzzzzzzz", nil)

	s.wantKind(coverslip.Invalid, 422, "POST", at+"/finish?nonsense=1", nil)
	s.wantKind(coverslip.Invalid, 422, "POST", "/v1/uploads/presigned", strings.NewReader(`{"name":"x"}`), json...)
	s.wantKind(coverslip.Invalid, 422, "DELETE", "/v1/uploads/presigned/UPPER", nil)
	s.wantKind(coverslip.Invalid, 422, "POST", "/v1/slides/register", strings.NewReader(`{}`), json...)
	for _, target := range []string{at + "/finish", "/v1/uploads/presigned", complete, "/v1/slides/register", "/v1/uploads"} {
		s.want(403, "POST", target, nil, foreign...)
	}
	s.want(403, "DELETE", at, nil, foreign...)
	s.want(403, "DELETE", "/v1/uploads/presigned/"+presigned.ID, nil, foreign...)
	s.patch(403, at, 0, strings.NewReader("x"), "Sec-Fetch-Site", "cross-site")

	// tus by itself.
	s.wantKind(coverslip.Invalid, 412, "POST", "/v1/uploads", nil, "Upload-Length", "7", "Upload-Metadata", named)
	s.wantKind(coverslip.Invalid, 412, "DELETE", at, nil)
	s.patch(412, at, 0, strings.NewReader("x"), "Tus-Resumable", "0.2.2")
	for _, length := range []string{"", "-1", "many", "1e3"} {
		s.wantKind(coverslip.Invalid, 400, "POST", "/v1/uploads", nil, "Tus-Resumable", "1.0.0", "Upload-Length", length, "Upload-Metadata", named)
	}
	s.wantKind(coverslip.Invalid, 400, "POST", "/v1/uploads", nil, "Tus-Resumable", "1.0.0", "Upload-Defer-Length", "1", "Upload-Metadata", named)
	s.wantKind(coverslip.TooLarge, 413, "POST", "/v1/uploads", nil, "Tus-Resumable", "1.0.0", "Upload-Length", "1001", "Upload-Metadata", named)
	for _, bad := range []string{"", "filename", "nonsense !!", metadata("filename", ".."), metadata("filename", "a\x00"), metadata("filename", "x", "mpp_of_slide", "NaN"), metadata("filename", "x", "mpp_of_slide", "0")} {
		s.wantKind(coverslip.Invalid, 422, "POST", "/v1/uploads", nil, "Tus-Resumable", "1.0.0", "Upload-Length", "7", "Upload-Metadata", bad)
	}
	s.wantKind(coverslip.Unsupported, 415, "POST", "/v1/uploads", nil, append(gzip, "Upload-Length", "7", "Upload-Metadata", named)...)
	s.wantKind(coverslip.Unsupported, 415, "DELETE", at, nil, gzip...)
	s.patch(415, at, 0, strings.NewReader("x"), "Content-Type", "text/plain")
	s.patch(400, at, 0, strings.NewReader("x"), "Upload-Offset", "many")
	s.patch(409, at, 3, strings.NewReader("x"))
	s.patch(413, at, 0, strings.NewReader("more than seven"))

	// While somebody sends it, others wait their turn.
	held, hold := io.Pipe()
	sent := make(chan answer, 1)
	r := s.request("PATCH", at, held, "Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", "0")
	go func() { sent <- s.send(r) }()
	if _, err := io.WriteString(hold, "a"); err != nil {
		s.t.Fatal(err)
	}
	s.untilIn(at, 1)
	s.wantKind(coverslip.Conflict, 423, "PATCH", at, strings.NewReader("b"), "Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", "1")
	s.wantKind(coverslip.Conflict, 423, "DELETE", at, nil, tus...)
	s.want(423, "HEAD", at, nil)
	if err := hold.Close(); err != nil {
		s.t.Fatal(err)
	}
	if a := <-sent; a.StatusCode != 204 || a.Header.Get("Upload-Offset") != "1" {
		s.t.Errorf("%d, at %s", a.StatusCode, a.Header.Get("Upload-Offset"))
	}

	for kind, status := range statuses {
		s.fail = &coverslip.Error{Kind: kind, Op: "try", Err: errors.New("it is made to fail"), Hint: "do not"}
		if kind != coverslip.NeedsMPP {
			s.want(status, "POST", at+"/finish", nil)
			s.want(status, "POST", complete, etags(), json...)
			s.want(status, "POST", "/v1/slides/register", register(), json...)
		}
		switch kind {
		case coverslip.Unavailable, coverslip.Environment, coverslip.Canceled, coverslip.Internal:
			s.want(status, "GET", "/v1/uploads", nil)
			s.want(status, "GET", at, nil)
			s.want(status, "DELETE", "/v1/uploads/presigned/"+presigned.ID, nil)
			s.want(status, "POST", "/v1/uploads/presigned", presign(), json...)
		case coverslip.Unsupported, coverslip.TooLarge:
			s.want(status, "POST", "/v1/uploads/presigned", presign(), json...)
			if kind == coverslip.Unsupported {
				s.want(status, "DELETE", "/v1/uploads/presigned/"+presigned.ID, nil)
			}
		}
		switch kind {
		case coverslip.Full, coverslip.Internal:
			s.want(status, "POST", "/v1/uploads", nil, "Tus-Resumable", "1.0.0", "Upload-Length", "7", "Upload-Metadata", named)
		}
	}
	s.fail = &coverslip.Error{Kind: coverslip.Canceled, Op: "read", Err: io.ErrUnexpectedEOF, Hint: "again"}
	for _, target := range []string{at + "/finish", complete, "/v1/slides/register", "/v1/uploads/presigned"} {
		body := map[string]func() io.Reader{complete: etags, "/v1/slides/register": register, "/v1/uploads/presigned": presign}[target]
		if body == nil {
			body = func() io.Reader { return nil }
		}
		s.want(499, "POST", target, body(), json...)
	}
	s.want(499, "GET", "/v1/uploads", nil)
	s.want(499, "GET", at, nil)
	s.want(499, "DELETE", "/v1/uploads/presigned/"+presigned.ID, nil)
	s.fail = nil

	// What goes wrong with the bytes themselves.
	for kind, status := range map[coverslip.Kind]int{coverslip.Invalid: 422, coverslip.Internal: 500, coverslip.Unavailable: 503, coverslip.Full: 507} {
		one := s.begin(1)
		s.endsIn = &coverslip.Error{Kind: kind, Op: "try", Err: errors.New("it is made to fail"), Hint: "do not"}
		s.patch(status, one, 0, strings.NewReader("x"))
		s.endsIn = nil
	}
	s.want(204, "DELETE", s.begin(1), nil, tus...)
	s.want(204, "DELETE", "/v1/uploads/presigned/"+s.begin(1)[len("/v1/uploads/"):], nil)

	// A client that goes away in the middle, and one that falls silent, are met in tests of their own.
	s.seen["PATCH /v1/uploads/{upload} 499"], s.seen["PATCH /v1/uploads/{upload} 408"] = true, true
}

func idOf(s string) coverslip.SlideID { return coverslip.SlideID(s) }

// Fault 14: wherever the line is cut, what HEAD says was kept is a prefix of what was sent, and going on
// from there ends with the whole.
func TestFault14CutAnywhereGoesOnWhereItWas(t *testing.T) {
	for name, cut := range map[string]func(*net.TCPConn) error{
		"FIN": (*net.TCPConn).Close,
		"RST": func(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			random := rand.New(rand.NewSource(14))
			content := make([]byte, 3_000_000)
			random.Read(content)
			at := s.begin(len(content))
			sent := 0
			for round, offset := 0, 0; offset < len(content); round++ {
				n := random.Intn(min(700_000, len(content)-offset+1))
				if round > 20 { // it must end
					n = len(content) - offset
				}
				sent = max(sent, offset+n)
				conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\nUpload-Offset: %d\r\nContent-Length: %d\r\n\r\n%s",
					at, offset, len(content)-offset, content[offset:offset+n]); err != nil {
					t.Fatal(err)
				}
				if n == len(content)-offset { // whole: hear what became of it
					resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						t.Fatal(err)
					}
					_ = resp.Body.Close()
				}
				if err := cut(conn.(*net.TCPConn)); err != nil {
					t.Fatal(err)
				}
				var head answer
				for head = s.raw("HEAD", at, nil); head.StatusCode == 423; head = s.raw("HEAD", at, nil) { // until the server has seen the cut
					runtime.Gosched()
				}
				if _, err := fmt.Sscan(head.Header.Get("Upload-Offset"), &offset); err != nil || offset > sent {
					t.Fatalf("it stands at %q of %d sent", head.Header.Get("Upload-Offset"), sent)
				}
				s.mu.Lock()
				kept := bytes.Clone(s.uploads[at[len("/v1/uploads/"):]].content.Bytes())
				s.mu.Unlock()
				if len(kept) < offset || !bytes.Equal(kept[:offset], content[:offset]) {
					t.Fatalf("what is kept is not what was sent, at %d", offset)
				}
			}
			done := s.want(200, "POST", at+"/finish", nil)
			if got := decode[coverslip.Slide](t, done); got.Bytes != int64(len(content)) {
				t.Errorf("%+v", got)
			}
		})
	}
}

// Fault 15.
func TestFault15WrongOffsetTooLongTwoWriters(t *testing.T) {
	s := newSite(t)
	at := s.begin(10)
	s.patch(204, at, 0, strings.NewReader("12345"))
	for _, offset := range []int{0, 4, 6, 10, 100} {
		if a := s.patch(409, at, offset, strings.NewReader("x")); a.problem.Kind != coverslip.Conflict {
			t.Errorf("%s", a.body)
		}
	}
	s.patch(413, at, 5, strings.NewReader("678901"))
	chunked := struct{ io.Reader }{strings.NewReader("678901")} // of unknown length
	if a := s.raw("PATCH", at, chunked, "Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", "5"); a.StatusCode != 413 {
		t.Errorf("chunked and too long: %d %s", a.StatusCode, a.body)
	}
	if up := s.uploads[at[len("/v1/uploads/"):]]; up.Received > 10 {
		t.Errorf("%d bytes were kept", up.Received)
	}
	at = s.begin(10)
	first, hold := io.Pipe()
	sent := make(chan answer, 1)
	r := s.request("PATCH", at, first, "Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", "0")
	go func() { sent <- s.send(r) }()
	if _, err := io.WriteString(hold, "first"); err != nil {
		t.Fatal(err)
	}
	s.untilIn(at, 5)
	for range 5 {
		s.patch(423, at, 0, strings.NewReader("second"))
	}
	if _, err := io.WriteString(hold, "first"); err != nil {
		t.Fatal(err)
	}
	_ = hold.Close()
	if a := <-sent; a.StatusCode != 204 || a.Header.Get("Content-Location") == "" {
		t.Errorf("the first ends with %d %s", a.StatusCode, a.body)
	}
	if kept := s.uploads[at[len("/v1/uploads/"):]].content.String(); kept != "firstfirst" {
		t.Errorf("%q was kept", kept)
	}
}

// A client that fell silent loses its turn to one that comes back.
func TestFault14StalledClientLosesItsTurn(t *testing.T) {
	s := newSite(t, func(c *api.Config) { c.Quiet = time.Millisecond })
	at := s.begin(10)
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\nUpload-Offset: 0\r\nContent-Length: 10\r\n\r\n12345", at)
	s.untilIn(at, 5)
	time.Sleep(2 * time.Millisecond) // longer than Quiet
	if offset := s.raw("HEAD", at, nil).Header.Get("Upload-Offset"); offset != "5" {
		t.Fatalf("it stands at %q", offset)
	}
	s.patch(204, at, 5, strings.NewReader("67890"))
	if kept := s.uploads[at[len("/v1/uploads/"):]].content.String(); kept != "1234567890" {
		t.Errorf("%q was kept", kept)
	}
	if answer, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || answer.StatusCode != 423 {
		t.Errorf("the first was told %v, %v", answer, err)
	} else {
		_ = answer.Body.Close()
	}
}
