// Package blob keeps named sequences of bytes, slides and bags, in a folder or in an S3 bucket.
//
// It gives whole blobs in, ranges out, and publication at one moment. What the bytes mean, which
// keys there are and which rows point at them is left to its callers.
package blob

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"coverslip"
)

// Store keeps blobs by key. Every method may be called from many goroutines and processes at once.
//
// Every error but io.EOF is a *coverslip.Error that names the blob: NotFound (no such blob), Invalid
// (a bad key; a source shorter or longer than announced), Full (no room), Conflict (the key is a
// folder of other keys; the blob changed while it was being read), Unavailable (the server did not
// answer, after retries), Environment (not allowed), Canceled.
type Store interface {
	// Put publishes what src holds, up to its end, under key: whole and durable when Put returns
	// nil, not at all when it does not (what was there before stays). Readers see the old content
	// or the new one, never a mixture; of several writers the last one wins. Running Put again is
	// harmless. size is the length of src in bytes, or -1 if unknown. Cancelling ctx stops Put at
	// the next read of src, which it cannot interrupt.
	Put(ctx context.Context, key string, src io.Reader, size int64) error

	// Open opens a blob for reading in ranges, for as long as ctx lives. The caller closes it.
	Open(ctx context.Context, key string) (Blob, error)

	// Stat describes a blob without opening it.
	Stat(ctx context.Context, key string) (Info, error)

	// Delete removes a blob. A blob that is not there counts as removed.
	Delete(ctx context.Context, key string) error

	// List yields the blobs whose key starts with prefix, which need not end at a slash, in byte
	// order of their keys. An error ends the list. Keys that CheckKey refuses are left out.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]
}

// Blob is an open blob: one version of its content, however often the key is written meanwhile.
// ReadAt follows io.ReaderAt and may be called from many goroutines at once. Where a store does not
// keep the old version of a blob that was replaced, ReadAt fails with kind Conflict.
type Blob interface {
	io.ReaderAt
	io.Closer
	Size() int64 // bytes
}

// Watched is embedded in the stores: it tells somebody how long each operation took.
type Watched struct {
	tell func(op string, took time.Duration, err error)
}

// Operations are what stores tell of; part is a part of a blob on its way to a bucket.
var Operations = []string{"put", "part", "open", "read", "stat", "delete", "list"}

// Watch has tell called after each operation, from many goroutines at once. Call it before the store is used.
func (w *Watched) Watch(tell func(op string, took time.Duration, err error)) { w.tell = tell }

// took is deferred by an operation. The end of a blob is no failure.
func (w *Watched) took(op string, began time.Time, err *error) {
	if w.tell == nil {
		return
	}
	failed := *err
	if errors.Is(failed, io.EOF) {
		failed = nil
	}
	w.tell(op, time.Since(began), failed)
}

// Info describes a blob.
type Info struct {
	Key      string
	Size     int64 // bytes
	Modified time.Time
}

// leftoverAge is the age from which an unfinished write is taken for abandoned.
const leftoverAge = 24 * time.Hour

// Open opens the store at address: a folder (made if missing), file:///folder, or
//
//	s3://bucket[/prefix][?endpoint=http://127.0.0.1:7070][&region=us-east-1]
//
// with credentials from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or anonymous without them.
// What writers that died more than a day ago left behind is removed on the way.
func Open(ctx context.Context, address string) (Store, error) {
	const op = "open blob store"
	if !strings.Contains(address, "://") {
		return opened(OpenFolder(address))
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: address, Err: err,
			Hint: "write a folder, or s3://bucket/prefix?endpoint=http://host:port"}
	}
	switch {
	case u.Scheme == "s3":
		return opened(openS3URL(ctx, u))
	case u.Scheme == "file" && u.Host == "":
		return opened(OpenFolder(u.Path))
	default:
		return nil, &coverslip.Error{Kind: coverslip.Unsupported, Op: op, Path: address,
			Err:  fmt.Errorf("no store for %s://%s", u.Scheme, u.Host),
			Hint: "use a folder, file:///folder or s3://bucket"}
	}
}

// opened keeps a nil *Folder or *S3 from becoming a Store that is not nil.
func opened[S Store](s S, err error) (Store, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// CheckKey refuses, with kind Invalid, a key that some store could not hold. A key is made of parts
// of 1 to 255 bytes, joined by slashes, 1,024 bytes at most (the limit of S3); it is valid UTF-8
// without control characters; and no part starts with a dot, which keeps out "." and ".." and
// leaves room for the stores' own folders.
func CheckKey(key string) error {
	bad := func(why string) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "check blob key", Path: fmt.Sprintf("%.80q", key),
			Err: errors.New(why), Hint: "use a relative key such as slides/ab12"}
	}
	if len(key) > 1024 {
		return bad("longer than 1024 bytes")
	}
	if !utf8.ValidString(key) || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return bad("not UTF-8, or holds control characters")
	}
	for part := range strings.SplitSeq(key, "/") {
		switch {
		case part == "":
			return bad("empty, or holds an empty part")
		case part[0] == '.':
			return bad("a part starts with a dot")
		case len(part) > 255:
			return bad("a part is longer than 255 bytes")
		}
	}
	return nil
}

// checkPrefix holds the folders of a prefix to what CheckKey asks; its last part may be cut short.
func checkPrefix(prefix string) error {
	i := strings.LastIndexByte(prefix, '/')
	if i < 0 {
		return nil
	}
	return CheckKey(prefix[:i])
}

// source is the content of a Put. It checks the announced size, stops when ctx ends, and keeps the
// error of reading apart from those of writing.
type source struct {
	ctx  context.Context // of one Put
	src  io.Reader
	size int64 // -1 if unknown
	n    int64 // bytes read so far
	err  error // why reading stopped before the end; a *coverslip.Error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err = cmp.Or(s.err, sourceError(s.ctx.Err())); s.err != nil {
		return 0, s.err
	}
	n, err := s.src.Read(p)
	s.n += int64(n)
	ended := errors.Is(err, io.EOF)
	switch {
	case s.size >= 0 && s.n > s.size:
		s.err = &coverslip.Error{Kind: coverslip.Invalid, Op: "read source",
			Err: fmt.Errorf("longer than the %d bytes announced", s.size), Hint: "send it again with its right size"}
	case ended && s.n < s.size, errors.Is(err, io.ErrUnexpectedEOF):
		s.err = &coverslip.Error{Kind: coverslip.Invalid, Op: "read source",
			Err: fmt.Errorf("broke off after %d bytes: %w", s.n, io.ErrUnexpectedEOF), Hint: "send it again"}
	case !ended:
		s.err = sourceError(err)
	}
	return n, cmp.Or(s.err, err)
}

// sourceError leaves an error that says what went wrong as it is, and nil nil.
func sourceError(err error) error {
	var ours *coverslip.Error
	if err == nil || errors.As(err, &ours) {
		return err
	}
	return &coverslip.Error{Kind: coverslip.KindOf(err), Op: "read source", Err: err}
}
