// Package remote reads slides where they are, in ranges: objects of an S3 bucket and files behind
// HTTP. Object gets bytes and deals with what goes wrong on the way; Ahead fetches what will be
// wanted before it is asked for. What the bytes mean is left to tiler/tiff and tiler/dicom.
//
// Sources: RFC 9110 (ranges, validators, conditions), the Amazon S3 API (GetObject).
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"coverslip"
)

const (
	maxFlights = 32               // requests of an object at once
	headSize   = 64 << 10         // bytes that opening reads and keeps: a header, often the whole index
	tries      = 5                // of a request, before it counts as failed
	firstPause = time.Second / 5  // before the second try; doubled before each one after it
	patience   = 10 * time.Second // for an answer to begin, and for each piece of it
	piece      = 64 << 10         // bytes
)

// Is reports whether a slide's name is an address for Open and not a path.
func Is(name string) bool {
	for _, scheme := range []string{"s3://", "http://", "https://"} {
		if strings.HasPrefix(name, scheme) {
			return true
		}
	}
	return false
}

// Shown is an address as it may be shown to people and written to logs: without what may be a
// password or a signature. Anything but an address comes back as it is.
func Shown(address string) string {
	u, err := url.Parse(address)
	switch {
	case !Is(address):
		return address
	case err != nil:
		before, _, _ := strings.Cut(address, "?")
		return before
	case u.Scheme == "s3":
		return "s3://" + u.Host + u.Path
	}
	return u.Scheme + "://" + u.Host + u.EscapedPath()
}

// Object is one version of a remote file. It implements tiff.RangeReader: it may be read from many
// goroutines, which share 32 requests. A request that fails for a passing reason, or of which 64 KiB
// take longer than ten seconds, is made again for what is missing: five tries over some seconds. An
// object that is no longer what was opened fails with kind Conflict.
type Object struct {
	name    string // for people
	store   store
	version version
	size    int64
	head    []byte        // its first bytes
	flights chan struct{} // holds one for each request under way

	patience, pause time.Duration
}

// store asks a server for bytes first to last of one object, on condition that it is still of that
// version. An answer other than 206 is a *refusal.
type store interface {
	get(ctx context.Context, first, last int64, v version) (io.ReadCloser, http.Header, error)
}

// version is what tells two states of an object apart, as the server puts it.
type version struct{ etag, modified string }

// condition returns the header that makes a server refuse when the object is another one, where there is
// one to rely on: a weak ETag never matches, and If-Unmodified-Since knows whole seconds, which servers
// hold against parts of one. What comes is held against the version all the same.
func (v version) condition() (name, value string) {
	if v.etag == "" || strings.HasPrefix(v.etag, "W/") {
		return "", ""
	}
	return "If-Match", v.etag
}

// refusal is an answer without the bytes asked for.
type refusal struct {
	status int
	code   string // S3's word for it
}

func (r *refusal) Error() string {
	text := fmt.Sprintf("the server answered %d %s", r.status, http.StatusText(r.status))
	if r.code != "" {
		text += ", " + r.code
	}
	return strings.TrimSpace(text)
}

var (
	errChanged = errors.New("the slide changed while it was read")
	errStalled = errors.New("the server fell silent")
	errBroke   = errors.New("the answer broke off")
)

// Open finds the object at
//
//	https://host/path
//	s3://bucket/key[?endpoint=http://127.0.0.1:7070][&region=us-east-1]
//
// with the credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3, or anonymously without
// them. Servers that do not give ranges, or nothing to tell versions apart by, are Unsupported. It
// makes one request; ctx is for that.
func Open(ctx context.Context, address string) (*Object, error) {
	return open(ctx, address, patience, firstPause)
}

func open(ctx context.Context, address string, patience, pause time.Duration) (*Object, error) {
	o := &Object{name: Shown(address), flights: make(chan struct{}, maxFlights), patience: patience, pause: pause}
	public := strings.HasSuffix(address, publicMark)
	u, err := url.Parse(strings.TrimSuffix(address, publicMark))
	if err != nil || u.Host == "" || u.Fragment != "" {
		return nil, o.broken("it is no address: write % as %25, # as %23 and ? as %3F")
	}
	if u.Scheme == "s3" {
		o.store, err = newS3(u, public)
	} else {
		o.store = &web{u.String(), transportOf(public)}
	}
	if err != nil {
		return nil, o.broken(err.Error())
	}
	err = o.again(ctx, "open slide", func() error {
		head := make([]byte, headSize)
		n, err := o.try(ctx, head, 0)
		o.head = head[:n]
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// Size is the length of the object in bytes.
func (o *Object) Size() int64 { return o.size }

// Version is what the server tells this state of the object by: equal for equal bytes.
func (o *Object) Version() string { return o.version.etag + o.version.modified }

// ReadRange fills dst with the bytes that start at off; see tiff.RangeReader.
func (o *Object) ReadRange(ctx context.Context, dst []byte, off int64) error {
	op := fmt.Sprintf("read %d bytes at %d", len(dst), off)
	if off < 0 || off > o.size-int64(len(dst)) {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: o.name,
			Err: fmt.Errorf("lies beyond the end of the file of %d bytes", o.size), Hint: "the file ends early; upload it again"}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if off+int64(len(dst)) <= int64(len(o.head)) {
		copy(dst, o.head[off:])
		return nil
	}
	got := 0
	return o.again(ctx, op, func() error {
		n, err := o.try(ctx, dst[got:], off+int64(got))
		got += n
		return err
	})
}

// again repeats do while what fails may pass, with pauses that double and differ between callers.
func (o *Object) again(ctx context.Context, op string, do func() error) error {
	pause := o.pause
	for try := 1; ; try++ {
		err := do()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case try == tries || !passing(err):
			return o.fail(op, err)
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause *= 2
	}
}

// passing reports whether the same request may go well in a moment: when the server is overloaded
// or the connection failed.
func passing(err error) bool {
	var r *refusal
	if errors.As(err, &r) {
		return r.status >= 500 || r.status == http.StatusTooManyRequests || r.status == http.StatusRequestTimeout
	}
	var decided *coverslip.Error
	return !errors.As(err, &decided) && !errors.Is(err, errChanged)
}

// try makes one request for the bytes at off and returns how many arrived. While the object's size
// is not known it learns that and the version, and dst need not become full.
func (o *Object) try(ctx context.Context, dst []byte, off int64) (int, error) {
	select {
	case o.flights <- struct{}{}:
		defer func() { <-o.flights }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(o.patience, func() { cancel(errStalled) })
	defer watch.Stop()

	body, header, err := o.store.get(ctx, off, off+int64(len(dst))-1, o.version)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return 0, err
	}
	defer func() { _ = body.Close() }() // everything wanted is read
	want, err := o.check(header, off, int64(len(dst)))
	if err != nil {
		return 0, err
	}
	got := 0
	for got < want {
		n, err := io.ReadFull(body, dst[got:min(got+piece, want)])
		got += n
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return got, fmt.Errorf("%w after %d of %d bytes: %w", errBroke, got, want, err)
		}
		watch.Reset(o.patience)
	}
	return got, nil
}

// check holds an answer against what was asked for and returns how many bytes it brings.
func (o *Object) check(header http.Header, off, n int64) (int, error) {
	var first, last, size int64
	if _, err := fmt.Sscanf(header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); err != nil {
		return 0, &coverslip.Error{Kind: coverslip.Unsupported, Op: "read range", Path: o.name,
			Err: fmt.Errorf("the server describes the range as %.60q", header.Get("Content-Range")), Hint: hintRanges}
	}
	v := version{header.Get("ETag"), header.Get("Last-Modified")}
	switch {
	case o.size == 0:
		if v == (version{}) {
			return 0, &coverslip.Error{Kind: coverslip.Unsupported, Op: "open slide", Path: o.name,
				Err: errors.New("the server says neither ETag nor Last-Modified, so a change of the slide could not be seen"), Hint: hintRanges}
		}
		o.version, o.size = v, size
	case size != o.size, o.version.etag != "" && v.etag != o.version.etag, o.version.etag == "" && v.modified != o.version.modified:
		return 0, errChanged
	}
	if want := min(n, o.size-off); first != off || last != off+want-1 {
		return 0, fmt.Errorf("asked for %d bytes at %d, the server sent %q", want, off, header.Get("Content-Range"))
	}
	return int(min(n, o.size-off)), nil
}

const hintRanges = "copy the slide to this machine, or serve it from S3 or a web server that gives ranges"

// fail says what kind of thing went wrong, and what to do about it.
func (o *Object) fail(op string, err error) error {
	var ours *coverslip.Error
	if errors.As(err, &ours) {
		return coverslip.At(o.name, ours)
	}
	e := &coverslip.Error{Kind: coverslip.Unavailable, Op: op, Path: o.name, Err: err, Hint: "check that the server answers, then try again"}
	if s, ok := o.store.(*s3); ok && s.core.EndpointURL().Host == amazon {
		e.Hint = "check that the server answers; where it is not Amazon's, add ?endpoint=http://host:port to the address"
	}
	var r *refusal
	switch {
	case errors.Is(err, errChanged):
		e.Kind, e.Hint = coverslip.Conflict, hintChanged
	case !errors.As(err, &r), passing(err):
	case r.status == http.StatusNotFound, r.status == http.StatusGone:
		e.Kind, e.Hint = coverslip.NotFound, "check the address"
		if r.code == "NoSuchBucket" {
			e.Hint = "check the name of the bucket, and the endpoint"
		}
	case r.status == http.StatusUnauthorized, r.status == http.StatusForbidden:
		e.Kind, e.Hint = coverslip.Environment, "use an address that holds what the server asks for, such as a signed one"
		if _, ok := o.store.(*s3); ok {
			e.Hint = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, that they may read this, and the region"
		}
	case r.status == http.StatusPreconditionFailed:
		e.Kind, e.Err, e.Hint = coverslip.Conflict, errChanged, hintChanged
	case r.status == http.StatusRequestedRangeNotSatisfiable && o.size == 0:
		e.Kind, e.Err, e.Hint = coverslip.Invalid, errors.New("it is empty"), "copy or upload it again"
	case r.status == http.StatusRequestedRangeNotSatisfiable:
		e.Kind, e.Err, e.Hint = coverslip.Conflict, errChanged, hintChanged
	case r.status == http.StatusOK:
		e.Kind, e.Err, e.Hint = coverslip.Unsupported, errors.New("the server sends only whole files"), hintRanges
	default:
		e.Kind, e.Hint = coverslip.Invalid, "check the address"
	}
	return e
}

const hintChanged = "start again when nobody writes it any more"

func (o *Object) broken(why string) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Path: o.name, Err: errors.New(why),
		Hint: "write https://host/path, or s3://bucket/key?endpoint=http://host:port"}
}

// transport is shared, so that slides of one server share connections.
var transport = sync.OnceValue(func() *http.Transport {
	t, _ := http.DefaultTransport.(*http.Transport)
	t = t.Clone()
	t.MaxIdleConnsPerHost = maxFlights
	t.DisableCompression = true // ranges are of the bytes as they are
	return t
})

// transportOf is the transport of addresses that may lead anywhere, or only to public ones.
func transportOf(public bool) *http.Transport {
	if public {
		return publicTransport()
	}
	return transport()
}

// web is a file behind HTTP.
type web struct {
	address   string
	transport *http.Transport
}

func (w *web) get(ctx context.Context, first, last int64, v version) (io.ReadCloser, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.address, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Range", "bytes="+strconv.FormatInt(first, 10)+"-"+strconv.FormatInt(last, 10))
	if name, value := v.condition(); value != "" {
		req.Header.Set(name, value)
	}
	resp, err := (&http.Client{Transport: w.transport}).Do(req)
	if err != nil {
		return nil, nil, withoutAddress(err)
	}
	if resp.StatusCode != http.StatusPartialContent {
		_ = resp.Body.Close() // what it says in words is for people with a browser
		return nil, nil, &refusal{status: resp.StatusCode}
	}
	return resp.Body, resp.Header, nil
}

// withoutAddress drops the address from an error: it may hold a password or a signature.
func withoutAddress(err error) error {
	var with *url.Error
	if errors.As(err, &with) {
		return with.Err
	}
	return err
}
