package main

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	"coverslip"
	"coverslip/tiler"
)

type uploadCmd struct {
	Files      []string      `arg:"" name:"file" help:"Slides: files, or folders with the files of one slide (DICOM), or MRXS and VMS files with what belongs to them."`
	Server     string        `default:"http://127.0.0.1:8080" env:"COVERSLIP_SERVER" placeholder:"URL" help:"The server (${default})."`
	Key        string        `env:"COVERSLIP_KEY" placeholder:"KEY" help:"API key, where the server asks for one. Better set COVERSLIP_KEY: command lines are seen by others."`
	MPPOfSlide mppValue      `name:"mpp-of-slide" help:"Resolution of the slides, µm per pixel, where the files do not say it."`
	Patience   time.Duration `default:"10m" help:"How long to go on trying without getting further (${default})."`
}

// Help is shown by coverslip upload --help.
func (uploadCmd) Help() string {
	return `Examples:
  coverslip upload section.svs --server http://archive:8080
  coverslip upload /scans/*.svs --server https://archive.example.org
  coverslip upload dicom-folder/ --server http://archive:8080

Whatever interrupts it, do the same again: it goes on where it was. A slide the server knows is not sent
twice. A slide of several files travels as one ZIP archive.`
}

// Run uploads each slide in turn.
func (c *uploadCmd) Run(e *env) error {
	base, err := url.Parse(c.Server)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return &usageError{fmt.Sprintf("--server %s is no address; write http://host:port", c.Server)}
	}
	up := &uploadClient{e: e, base: strings.TrimSuffix(c.Server, "/"), key: c.Key, patience: c.Patience, pause: time.Second / 2, http: &http.Client{}}
	failed := 0
	for _, path := range c.Files {
		r, err := up.upload(path, float64(c.MPPOfSlide))
		if e.Err() != nil {
			return &coverslip.Error{Kind: coverslip.Canceled, Op: "upload", Path: path, Err: e.Err(), Hint: "do the same again: it goes on where it was"}
		}
		if err != nil {
			failed++
			r = refused(path, coverslip.At(path, err))
		}
		if err := c.print(e, r); err != nil {
			return err
		}
	}
	if !e.json && len(c.Files) > 1 {
		e.printf("%d of %d slides are there, %d failed\n", len(c.Files)-failed, len(c.Files), failed)
	}
	if failed > 0 {
		return &someFailed{failed}
	}
	return nil
}

func (c *uploadCmd) print(e *env, r result) error {
	switch {
	case e.json:
		return e.emit(r)
	case r.Slide == "":
		e.say("failed: %s\n", r.Reason)
	default:
		e.printf("%s  %s  %s\n", r.Slide.Short(), r.Name, r.Message)
	}
	return nil
}

// uploadClient sends slides to a server by the tus protocol. It keeps nothing on this machine: an upload
// is found again by the SHA-256 of its slide.
type uploadClient struct {
	e        *env
	base     string
	key      string
	patience time.Duration
	pause    time.Duration // before the first new try; doubled up to tenfold
	http     *http.Client
}

// upload sends one slide and says what became of it.
func (c *uploadClient) upload(path string, mpp float64) (result, error) {
	src, err := c.open(path)
	if err != nil {
		return result{}, err
	}
	started := time.Now()
	done := func(s coverslip.Slide, message string) (result, error) {
		return result{Slide: s.ID, Path: path, Name: s.Name, State: s.State, Reason: s.Reason, Work: "done", Seconds: time.Since(started).Seconds(), Message: message}, nil
	}
	var known coverslip.Slide
	switch err := c.retry(func() error { return c.call(http.MethodGet, "/v1/slides/"+src.sum, nil, nil, &known, nil) }); {
	case err == nil:
		return done(known, "the server has it already: "+string(known.State))
	case coverslip.KindOf(err) != coverslip.NotFound:
		return result{}, err
	}
	show := c.e.progressBytes("uploading "+src.name, src.size)
	defer show(-1)
	slide, err := c.send(src, mpp, show)
	if err != nil {
		return result{}, err
	}
	seconds := time.Since(started).Seconds()
	return done(slide, fmt.Sprintf("uploaded: %.1f MB in %.1f s, %s", float64(src.size)/1e6, seconds, slide.State))
}

// send sends the bytes, however often the line breaks, and returns the slide.
func (c *uploadClient) send(src *uploadSource, mpp float64, show func(int64)) (coverslip.Slide, error) {
	var slide coverslip.Slide
	at := "" // the upload's address
	best := int64(-1)
	began := time.Now() // of getting no further
	pause := c.pause
	for {
		err := c.step(src, mpp, &at, &slide, func(offset int64) {
			show(offset)
			if offset > best {
				best, began, pause = offset, time.Now(), c.pause
			}
		})
		switch kind := coverslip.KindOf(err); {
		case err == nil && slide.ID != "":
			return slide, nil
		case err == nil: // another step
			continue
		case kind == coverslip.NotFound && at != "": // it was dropped; from the beginning
			at = ""
		case kind != coverslip.Unavailable && kind != coverslip.Conflict && kind != coverslip.NotFound:
			return slide, err
		}
		if time.Since(began) > c.patience {
			return slide, err
		}
		var later *laterError
		wait := pause
		if errors.As(err, &later) {
			wait = later.after
		}
		c.e.say("%s: %v; trying again\n", src.name, err)
		select {
		case <-c.e.Done():
			return slide, c.e.Err()
		case <-time.After(wait):
		}
		pause = min(2*pause, 10*c.pause)
	}
}

// step does what is due: begin or find the upload, send what is missing, or ask for the slide.
func (c *uploadClient) step(src *uploadSource, mpp float64, at *string, slide *coverslip.Slide, progress func(int64)) error {
	if *at == "" {
		return c.begin(src, mpp, at)
	}
	var answer http.Header
	if err := c.call(http.MethodHead, *at, nil, nil, nil, &answer); err != nil {
		return err
	}
	offset, err := strconv.ParseInt(answer.Get("Upload-Offset"), 10, 64)
	if err != nil || offset < 0 || offset > src.size {
		return &coverslip.Error{Kind: coverslip.Internal, Op: "continue upload", Err: fmt.Errorf("the server says it stands at %q of %d", answer.Get("Upload-Offset"), src.size), Hint: "see that --server is a Coverslip of this version or later"}
	}
	progress(offset)
	if offset == src.size {
		return c.call(http.MethodPost, *at+"/finish", nil, nil, slide, nil)
	}
	content, err := src.open(offset)
	if err != nil {
		return err
	}
	defer content.Close()
	ctx, cancel := context.WithCancelCause(c.e)
	defer cancel(nil)
	body := watch(content, offset, progress, func() { cancel(errStalled) })
	defer body.stop()
	answer = nil
	err = c.callCtx(ctx, http.MethodPatch, *at, map[string]string{"Content-Type": "application/offset+octet-stream", "Upload-Offset": strconv.FormatInt(offset, 10)}, body, src.size-offset, nil, &answer)
	if err != nil {
		return err
	}
	if place := answer.Get("Content-Location"); place != "" {
		return c.retry(func() error { return c.call(http.MethodGet, place, nil, nil, slide, nil) })
	}
	return nil
}

var errStalled = errors.New("nothing moved for a minute")

// begin finds the upload that an earlier run began, or begins one.
func (c *uploadClient) begin(src *uploadSource, mpp float64, at *string) error {
	var unfinished struct {
		Uploads []struct {
			ID    string
			Bytes int64
		}
	}
	if err := c.call(http.MethodGet, "/v1/uploads?sha256="+src.sum, nil, nil, &unfinished, nil); err != nil {
		return err
	}
	for _, up := range unfinished.Uploads {
		if up.Bytes == src.size {
			*at = "/v1/uploads/" + up.ID
			return nil
		}
	}
	said := map[string]string{"filename": src.name, "sha256": src.sum}
	if mpp != 0 {
		said["mpp_of_slide"] = strconv.FormatFloat(mpp, 'g', -1, 64)
	}
	var pairs []string
	for key, value := range said {
		pairs = append(pairs, key+" "+base64.StdEncoding.EncodeToString([]byte(value)))
	}
	var answer http.Header
	err := c.call(http.MethodPost, "/v1/uploads", map[string]string{"Upload-Length": strconv.FormatInt(src.size, 10), "Upload-Metadata": strings.Join(pairs, ",")}, nil, nil, &answer)
	*at = answer.Get("Location")
	return err
}

// retry repeats a short request for a while in which the server does not answer: it may be starting, or
// its name may be mistyped.
func (c *uploadClient) retry(do func() error) error {
	const patience = 15 * time.Second
	began, pause := time.Now(), c.pause
	for {
		err := do()
		if coverslip.KindOf(err) != coverslip.Unavailable || time.Since(began) > min(patience, c.patience) {
			return err
		}
		select {
		case <-c.e.Done():
			return err
		case <-time.After(pause):
		}
		pause = min(2*pause, 10*c.pause)
	}
}

func (c *uploadClient) call(method, path string, header map[string]string, body io.Reader, into any, answer *http.Header) error {
	ctx, cancel := context.WithTimeout(c.e, time.Hour) // a slide of a slow store takes its time to finish
	defer cancel()
	return c.callCtx(ctx, method, path, header, body, 0, into, answer)
}

// laterError is a refusal that says when to come again.
type laterError struct{ after time.Duration }

func (e *laterError) Error() string { return "the server asks to wait " + e.after.String() }

// callCtx sends a request. What may pass is Unavailable, or a Conflict with another client; what the
// server says is wrong keeps its kind.
func (c *uploadClient) callCtx(ctx context.Context, method, path string, header map[string]string, body io.Reader, length int64, into any, answer *http.Header) error {
	const op = "upload"
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	req.ContentLength = length
	req.Header.Set("Tus-Resumable", "1.0.0")
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	res, err := c.http.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return &coverslip.Error{Kind: coverslip.Unavailable, Op: op, Err: err, Hint: "see that the server runs at " + c.base + ", then do the same again: it goes on where it was"}
	}
	defer res.Body.Close()
	if answer != nil {
		*answer = res.Header
	}
	if res.StatusCode < http.StatusMultipleChoices {
		if into == nil || res.StatusCode == http.StatusNoContent {
			return nil
		}
		return json.NewDecoder(res.Body).Decode(into)
	}
	var said struct {
		Detail, Hint string
		Kind         coverslip.Kind
	}
	_ = json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&said) // a proxy may answer otherwise
	out := &coverslip.Error{Kind: said.Kind, Op: op, Err: errors.New(said.Detail), Hint: said.Hint}
	switch {
	case res.StatusCode == http.StatusNotFound:
		out.Kind = coverslip.NotFound
	case res.StatusCode == http.StatusConflict, res.StatusCode == http.StatusLocked:
		out.Kind = coverslip.Conflict
	case res.StatusCode == http.StatusInsufficientStorage:
		out.Kind = coverslip.Full
	case res.StatusCode >= http.StatusInternalServerError, res.StatusCode == http.StatusTooManyRequests, res.StatusCode == http.StatusRequestTimeout:
		out.Kind = coverslip.Unavailable
	case out.Kind == "":
		out.Kind = coverslip.Invalid
	}
	if said.Detail == "" {
		out.Err = fmt.Errorf("the server answered %s", res.Status)
	}
	if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && seconds >= 0 {
		out.Err = errors.Join(out.Err, &laterError{time.Duration(min(seconds, 60)) * time.Second})
	}
	return out
}

// watched tells how far a body was read, and when that stops.
type watched struct {
	src    io.Reader
	at     int64
	tell   func(int64)
	stall  *time.Timer
	expire time.Duration
}

func watch(src io.Reader, at int64, tell func(int64), stalled func()) *watched {
	const minute = time.Minute
	return &watched{src: src, at: at, tell: tell, stall: time.AfterFunc(minute, stalled), expire: minute}
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.src.Read(p)
	w.at += int64(n)
	w.tell(w.at)
	if err != nil {
		w.stall.Stop() // the rest is the server's
	} else {
		w.stall.Reset(w.expire)
	}
	return n, err
}

func (w *watched) stop() { w.stall.Stop() }

// uploadSource is what is sent for a slide.
type uploadSource struct {
	name string
	size int64
	sum  string                                    // SHA-256
	open func(offset int64) (io.ReadCloser, error) // from there to the end; always the same bytes
}

// open reads what a slide consists of once, for its SHA-256.
func (c *uploadClient) open(path string) (*uploadSource, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	files, err := tiler.Files(c.e, path)
	if err != nil {
		return nil, err
	}
	src := &uploadSource{name: filepath.Base(path)}
	if len(files) == 1 && files[0] == path {
		src.open = func(offset int64) (io.ReadCloser, error) {
			f, err := os.Open(path)
			if err == nil {
				_, err = f.Seek(offset, io.SeekStart)
			}
			return f, err
		}
	} else {
		src.name += ".zip"
		src.open = func(offset int64) (io.ReadCloser, error) { return zipped(files, offset), nil }
	}
	content, err := src.open(0)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "read slide", Path: path, Err: err, Hint: "check the path, and that it can be read"}
	}
	defer content.Close()
	sum := sha256.New()
	head := &bytes.Buffer{}
	if _, err := io.CopyN(io.MultiWriter(sum, head), content, tiler.HeadSize); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := tiler.CheckHead(head.Bytes(), path); err != nil {
		return nil, err // before it is read whole
	}
	n, err := io.Copy(sum, content)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: "read slide", Path: path, Err: err, Hint: "check that it can be read"}
	}
	src.size, src.sum = int64(head.Len())+n, hex.EncodeToString(sum.Sum(nil))
	return src, c.e.Err()
}

// zipped is an archive of files as they are, named from the folder that holds them all, from an offset on.
func zipped(files []string, offset int64) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		z := zip.NewWriter(&skipWriter{w: w, skip: offset})
		err := writeZip(z, files)
		if err == nil {
			err = z.Close()
		}
		_ = w.CloseWithError(err) // never fails
	}()
	return r
}

func writeZip(z *zip.Writer, files []string) error {
	folder := filepath.Dir(files[0])
	for _, file := range files {
		for rel, err := filepath.Rel(folder, file); err != nil || strings.HasPrefix(rel, ".."); rel, err = filepath.Rel(folder, file) {
			folder = filepath.Dir(folder)
		}
	}
	for _, file := range files {
		name, err := filepath.Rel(folder, file)
		if err != nil {
			return err
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: filepath.ToSlash(name), Method: zip.Store}) // pixels are compressed already
		if err != nil {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// skipWriter passes on what follows the first skip bytes.
type skipWriter struct {
	w    io.Writer
	skip int64
}

func (s *skipWriter) Write(p []byte) (int, error) {
	drop := min(s.skip, int64(len(p)))
	s.skip -= drop
	if drop == int64(len(p)) {
		return len(p), nil
	}
	n, err := s.w.Write(p[drop:])
	return n + int(drop), err
}

// progressBytes shows how much of total was sent: a bar on a terminal, a line every few seconds elsewhere.
// A negative number ends it.
func (e *env) progressBytes(what string, total int64) func(done int64) {
	if e.terminal {
		bar := progressbar.NewOptions64(total, progressbar.OptionSetWriter(e.err), progressbar.OptionSetDescription(what),
			progressbar.OptionShowBytes(true), progressbar.OptionShowTotalBytes(true), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
		return func(done int64) {
			if done < 0 {
				_ = bar.Clear()
				return
			}
			_ = bar.Set64(done)
		}
	}
	const every = 5 * time.Second
	next := time.Now().Add(every)
	return func(done int64) {
		if now := time.Now(); now.After(next) && done >= 0 && done < total {
			next = now.Add(every)
			e.say("%s: %.0f of %.0f MB\n", what, float64(done)/1e6, float64(total)/1e6)
		}
	}
}
