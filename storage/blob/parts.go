package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"coverslip"
)

// PartSize is how much of a blob goes to S3 in one request, in bytes. S3 allows 10,000 parts, so this
// reaches 156 GiB, beyond any slide.
const PartSize = partSize

// partsAtOnce is how many parts of one file are sent side by side.
const partsAtOnce = 2

// Parts is a blob on its way to a bucket in parts, which nobody sees before Complete. Parts may be sent
// side by side and in any order; each is read from its source when it is sent, never held in memory, and
// carries its SHA-256, which the server checks.
type Parts struct {
	s    *S3
	key  string
	id   string
	opts minio.PutObjectOptions // of Complete
	mu   sync.Mutex
	sent map[int]minio.CompletePart
}

// Begin opens a blob for parts. Whoever calls it calls Complete or Abort; what neither was called for is
// swept after a day.
func (s *S3) Begin(ctx context.Context, key string) (*Parts, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	id, err := s.core.NewMultipartUpload(ctx, s.bucket, s.prefix+key, minio.PutObjectOptions{})
	if err != nil {
		return nil, s.fail(ctx, "begin blob", key, err)
	}
	return s.Resume(key, id), nil
}

// Resume takes up parts that were begun earlier, perhaps by another process, under the id it was given.
func (s *S3) Resume(key, id string) *Parts {
	return &Parts{s: s, key: key, id: id, sent: map[int]minio.CompletePart{}}
}

// ID is what Resume takes.
func (p *Parts) ID() string { return p.id }

// Send sends size bytes of src from off as part number n, counted from 1. Each but the last holds 5 MiB
// or more. Sending a part again replaces it.
func (p *Parts) Send(ctx context.Context, n int, src io.ReaderAt, off, size int64) (err error) {
	const op = "write part of blob"
	defer p.s.took("part", time.Now(), &err)
	sum, err := sumOf(src, off, size)
	if err != nil {
		return coverslip.At(p.s.address(p.key), err)
	}
	part, err := p.s.core.PutObjectPart(ctx, p.s.bucket, p.s.prefix+p.key, p.id, n, io.NewSectionReader(src, off, size), size,
		minio.PutObjectPartOptions{Sha256Hex: sum, DisableContentSha256: true})
	if err != nil {
		return p.s.fail(ctx, op, p.key, err)
	}
	p.Sent(n, part.ETag)
	return nil
}

// Sent notes a part that somebody else sent, by the ETag the server gave it.
func (p *Parts) Sent(n int, etag string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent[n] = minio.CompletePart{PartNumber: n, ETag: etag}
}

// Complete publishes the blob. A part that is missing, or is not the one the server has, is Invalid.
func (p *Parts) Complete(ctx context.Context) error {
	const op = "complete blob"
	p.mu.Lock()
	parts := make([]minio.CompletePart, 0, len(p.sent))
	for n := 1; n <= len(p.sent); n++ {
		part, ok := p.sent[n]
		if !ok {
			p.mu.Unlock()
			return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: p.s.address(p.key), Err: fmt.Errorf("part %d is missing", n), Hint: "send that part, then complete it again"}
		}
		parts = append(parts, part)
	}
	p.mu.Unlock()
	_, err := p.s.core.CompleteMultipartUpload(ctx, p.s.bucket, p.s.prefix+p.key, p.id, parts, p.opts)
	switch resp := minio.ToErrorResponse(err); {
	case err == nil:
		return nil
	case resp.Code == "InvalidPart", resp.Code == "InvalidPartOrder", resp.Code == "EntityTooSmall":
		return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: p.s.address(p.key), Err: err, Hint: "send the parts again as they were asked for, and complete with the ETags of the answers"}
	case resp.Code == "NoSuchUpload":
		return &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: p.s.address(p.key), Err: errors.New("no such upload: it was completed, dropped, or is over a day old"), Hint: "begin it again"}
	}
	return p.s.fail(ctx, op, p.key, err)
}

// Abort drops what was sent. What is gone already counts as dropped.
func (p *Parts) Abort(ctx context.Context) error {
	err := p.s.core.AbortMultipartUpload(ctx, p.s.bucket, p.s.prefix+p.key, p.id)
	if err = p.s.fail(ctx, "drop parts of blob", p.key, err); coverslip.KindOf(err) == coverslip.NotFound {
		return nil
	}
	return err
}

// URL is an address at which whoever has it may put part n, without credentials, until it expires.
func (p *Parts) URL(ctx context.Context, n int, lasts time.Duration) (*url.URL, error) {
	u, err := p.s.core.Presign(ctx, http.MethodPut, p.s.bucket, p.s.prefix+p.key, lasts,
		url.Values{"uploadId": {p.id}, "partNumber": {strconv.Itoa(n)}})
	return u, p.s.fail(ctx, "sign the address of a part", p.key, err)
}

// PutFile is Put of the first size bytes of a file, which must not change meanwhile. Memory does not grow
// with it: what is sent is read from the file, again where a request is repeated.
func (s *S3) PutFile(ctx context.Context, key string, file *os.File, size int64) error {
	return s.putFile(ctx, key, file, size, minio.PutObjectOptions{})
}

// Create is PutFile of a blob that is not there yet: of several writers the first one wins, and for the others
// it is a Conflict. The server decides (If-None-Match: *); one that cannot is Unsupported.
func (s *S3) Create(ctx context.Context, key string, file *os.File, size int64) error {
	opts := minio.PutObjectOptions{}
	opts.SetMatchETagExcept("*")
	err := s.putFile(ctx, key, file, size, opts)
	var e *coverslip.Error
	if errors.As(err, &e) && minio.ToErrorResponse(e.Err).StatusCode == http.StatusNotImplemented {
		return &coverslip.Error{Kind: coverslip.Unsupported, Op: "create blob", Path: s.address(key), Err: err, Hint: "this S3 server knows no conditional writes"}
	}
	return err
}

func (s *S3) putFile(ctx context.Context, key string, file *os.File, size int64, opts minio.PutObjectOptions) (err error) {
	defer s.took("put", time.Now(), &err)
	if err := CheckKey(key); err != nil {
		return err
	}
	if size <= partSize {
		opts.DisableContentSha256 = true
		sum, err := sumOf(file, 0, size)
		if err != nil {
			return coverslip.At(s.address(key), err)
		}
		_, err = s.core.PutObject(ctx, s.bucket, s.prefix+key, io.NewSectionReader(file, 0, size), size, "", sum, opts)
		return s.fail(ctx, "write blob", key, err)
	}
	parts, err := s.Begin(ctx, key)
	if err != nil {
		return err
	}
	parts.opts = opts
	group, sending := errgroup.WithContext(ctx)
	group.SetLimit(partsAtOnce)
	for n := int64(0); n*partSize < size; n++ {
		group.Go(func() error {
			return parts.Send(sending, int(n)+1, file, n*partSize, min(partSize, size-n*partSize))
		})
	}
	if err = group.Wait(); err == nil {
		err = parts.Complete(ctx)
	}
	if err != nil {
		// Should this fail too, a later sweep does it.
		_ = parts.Abort(context.WithoutCancel(ctx))
	}
	return err
}

// sumOf is the SHA-256 of a range.
func sumOf(src io.ReaderAt, off, size int64) (string, error) {
	sum := sha256.New()
	got, err := io.Copy(sum, io.NewSectionReader(src, off, size))
	if err == nil && got < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return "", &coverslip.Error{Kind: coverslip.Invalid, Op: "read source", Err: fmt.Errorf("broke off after %d bytes: %w", got, err), Hint: "send it again"}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
