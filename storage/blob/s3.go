package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"coverslip"
)

// partSize is what Put holds in memory and sends at once. S3 allows 10,000 parts, so this reaches
// 156 GiB, beyond any slide.
const partSize = 16 << 20

// S3 keeps each blob as an object of one bucket. Requests that fail for a passing reason are
// repeated ten times over a few seconds.
type S3 struct {
	Watched
	core     *minio.Core
	bucket   string
	prefix   string        // empty, or ends at a slash
	opened   url.URL       // the address it was opened at
	patience time.Duration // grace of a range request, on top of what slowest allows
}

// slowest is the rate in bytes per second below which a range request counts as stalled.
const slowest = 64 << 10

// openS3URL opens a bucket at an address as Open describes it. The bucket must exist.
func openS3URL(ctx context.Context, u *url.URL) (*S3, error) {
	const op = "open bucket"
	query := u.Query()
	for name := range query {
		if name != "endpoint" && name != "region" {
			return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: u.Redacted(),
				Err: fmt.Errorf("unknown parameter %q", name), Hint: "only endpoint and region can be set"}
		}
	}
	if err := s3utils.CheckValidBucketName(u.Host); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: u.Redacted(), Err: err}
	}
	// Trailing checksums stay off: not every server knows them (versitygw v1.8.0 refuses them).
	// The Content-MD5 that Put sends does the same on all.
	opts := minio.Options{Creds: credentials.NewEnvAWS(), Region: query.Get("region")}
	endpoint, err := url.Parse(query.Get("endpoint"))
	switch {
	case err == nil && *endpoint == (url.URL{}):
		endpoint, opts.Secure = &url.URL{Host: "s3.amazonaws.com"}, true
		if opts.Region == "" {
			opts.Region = os.Getenv("AWS_REGION")
		}
	case err == nil && (endpoint.Scheme == "http" || endpoint.Scheme == "https") && endpoint.Host != "" && strings.Trim(endpoint.Path, "/") == "":
		opts.Secure, opts.BucketLookup = endpoint.Scheme == "https", minio.BucketLookupPath
		if opts.Region == "" {
			opts.Region = "us-east-1" // what servers other than Amazon's expect when nothing is said
		}
	default:
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: u.Redacted(), Err: errors.New("endpoint is no address"),
			Hint: "write endpoint=http://host:port or endpoint=https://host"}
	}
	core, err := minio.NewCore(endpoint.Host, &opts)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: u.Redacted(), Err: err}
	}
	s := &S3{core: core, bucket: u.Host, opened: *u, patience: 30 * time.Second}
	if p := strings.Trim(u.Path, "/"); p != "" {
		if err := CheckKey(p); err != nil {
			return nil, err
		}
		s.prefix = p + "/"
	}
	who, err := opts.Creds.GetWithContext(core.CredContext())
	anonymous := err == nil && who.SignerType.IsAnonymous()
	found, err := core.BucketExists(ctx, s.bucket)
	switch {
	case err == nil && !found:
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: s.address(""), Err: errors.New("no such bucket"),
			Hint: "create it, or check its name and the endpoint"}
	case err != nil && (!anonymous || minio.ToErrorResponse(err).StatusCode != http.StatusForbidden):
		return nil, s.fail(ctx, op, "", err)
	}
	if anonymous {
		return s, nil // a public bucket lets nobody look for leftovers
	}
	return s, s.Sweep(ctx, time.Now().Add(-leftoverAge))
}

func (s *S3) address(key string) string { return "s3://" + s.bucket + "/" + s.prefix + key }

// Address is where a blob lies, for libraries that read slides in buckets themselves. It need not exist.
func (s *S3) Address(key string) string {
	u := s.opened
	u.Path = "/" + s.prefix + key
	return u.String()
}

// Put implements Store. It holds up to two parts of 16 MiB in memory.
func (s *S3) Put(ctx context.Context, key string, src io.Reader, size int64) (err error) {
	defer s.took("put", time.Now(), &err)
	if err := CheckKey(key); err != nil {
		return err
	}
	in := &source{ctx: ctx, src: src, size: size}
	// What is sent must be in memory, or a request that fails could not be repeated.
	var first bytes.Buffer
	if size >= 0 {
		first.Grow(int(min(size, partSize)) + bytes.MinRead)
	}
	_, err = io.CopyN(&first, in, partSize)
	opts := minio.PutObjectOptions{SendContentMd5: true, PartSize: partSize}
	switch {
	case errors.Is(err, io.EOF):
		_, err = s.core.Client.PutObject(ctx, s.bucket, s.prefix+key, bytes.NewReader(first.Bytes()), int64(first.Len()), opts)
	case err == nil:
		_, err = s.core.Client.PutObject(ctx, s.bucket, s.prefix+key, io.MultiReader(&first, in), -1, opts)
	}
	if in.err != nil {
		err = in.err
	}
	return s.fail(ctx, "write blob", key, err)
}

// Copy gives a blob's content a second key, without its bytes passing through this machine.
func (s *S3) Copy(ctx context.Context, from, to string) error {
	const op = "copy blob"
	if err := errors.Join(CheckKey(from), CheckKey(to)); err != nil {
		return err
	}
	_, err := s.core.ComposeObject(ctx, minio.CopyDestOptions{Bucket: s.bucket, Object: s.prefix + to}, minio.CopySrcOptions{Bucket: s.bucket, Object: s.prefix + from})
	return s.fail(ctx, op, from, err)
}

// Open implements Store. A bucket keeps no old versions: when the blob is replaced, ReadAt fails with
// kind Conflict.
func (s *S3) Open(ctx context.Context, key string) (_ Blob, err error) {
	defer s.took("open", time.Now(), &err)
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	info, err := s.core.StatObject(ctx, s.bucket, s.prefix+key, minio.StatObjectOptions{})
	if err != nil {
		return nil, s.fail(ctx, "open blob", key, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	return &s3Blob{store: s, ctx: ctx, cancel: cancel, key: key, etag: info.ETag, size: info.Size}, nil
}

type s3Blob struct {
	store  *S3
	ctx    context.Context // of Open: the blob's life
	cancel context.CancelFunc
	key    string
	etag   string // of the version that was opened
	size   int64
}

func (b *s3Blob) Size() int64 { return b.size }

func (b *s3Blob) Close() error {
	b.cancel()
	return nil
}

// errBroke says that an answer began well and did not come whole.
var errBroke = errors.New("the answer broke off")

// ReadAt asks for what is missing when an answer breaks off, three times in all.
func (b *s3Blob) ReadAt(p []byte, off int64) (n int, err error) {
	const op, attempts = "read blob", 3
	defer b.store.took("read", time.Now(), &err)
	if off < 0 {
		return 0, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: b.store.address(b.key), Err: fmt.Errorf("offset %d", off)}
	}
	want := int(min(int64(len(p)), max(b.size-off, 0)))
	for attempt := 1; n < want; attempt++ {
		got, err := b.read(p[n:want], off+int64(n))
		n += got
		if err != nil && (!errors.Is(err, errBroke) || attempt == attempts || b.ctx.Err() != nil) {
			return n, b.store.fail(b.ctx, op, b.key, err)
		}
	}
	if want < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// read makes one request for all of p. The time it may take grows with p, so that neither a server
// that falls silent nor one that sends a byte a second can hold a reader for ever.
func (b *s3Blob) read(p []byte, off int64) (int, error) {
	limit := b.store.patience + time.Duration(len(p))*time.Second/slowest
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	var opts minio.GetObjectOptions
	last := off + int64(len(p)) - 1
	if err := errors.Join(opts.SetRange(off, last), opts.SetMatchETag(b.etag)); err != nil {
		return 0, err
	}
	body, _, header, err := b.store.core.GetObject(ctx, b.store.bucket, b.store.prefix+b.key, opts)
	if err != nil {
		return 0, err
	}
	defer func() { _ = body.Close() }() // everything wanted is read
	if got, want := header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", off, last, b.size); got != want {
		return 0, fmt.Errorf("asked for %s, the server sent %q", want, got)
	}
	n, err := io.ReadFull(body, p)
	if err != nil {
		return n, fmt.Errorf("%w after %d of %d bytes: %w", errBroke, n, len(p), err)
	}
	return n, nil
}

// Stat implements Store.
func (s *S3) Stat(ctx context.Context, key string) (_ Info, err error) {
	defer s.took("stat", time.Now(), &err)
	if err := CheckKey(key); err != nil {
		return Info{}, err
	}
	info, err := s.core.StatObject(ctx, s.bucket, s.prefix+key, minio.StatObjectOptions{})
	if err != nil {
		return Info{}, s.fail(ctx, "look at blob", key, err)
	}
	return Info{Key: key, Size: info.Size, Modified: info.LastModified}, nil
}

// Delete implements Store.
func (s *S3) Delete(ctx context.Context, key string) (err error) {
	defer s.took("delete", time.Now(), &err)
	if err := CheckKey(key); err != nil {
		return err
	}
	err = s.core.RemoveObject(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{})
	if err = s.fail(ctx, "delete blob", key, err); coverslip.KindOf(err) == coverslip.NotFound {
		return nil // some servers mind
	}
	return err
}

// List implements Store.
func (s *S3) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		err := checkPrefix(prefix)
		defer s.took("list", time.Now(), &err)
		if err != nil {
			yield(Info{}, err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // the client reads ahead in a goroutine
		opts := minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true}
		for o := range s.core.ListObjectsIter(ctx, s.bucket, opts) {
			if o.Err != nil {
				err = s.fail(ctx, "list blobs", prefix, o.Err)
				yield(Info{}, err)
				return
			}
			key := strings.TrimPrefix(o.Key, s.prefix)
			if CheckKey(key) == nil && !yield(Info{Key: key, Size: o.Size, Modified: o.LastModified}, nil) {
				return
			}
		}
		if err = s.fail(ctx, "list blobs", prefix, ctx.Err()); err != nil {
			yield(Info{}, err)
		}
	}
}

// Sweep drops the parts of uploads that were begun before the given time and never completed.
func (s *S3) Sweep(ctx context.Context, before time.Time) error {
	const op = "sweep unfinished uploads"
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the client reads ahead in a goroutine
	for u := range s.core.ListIncompleteUploads(ctx, s.bucket, s.prefix, true) {
		err := u.Err
		if err == nil && u.Initiated.Before(before) {
			err = s.core.AbortMultipartUpload(ctx, s.bucket, u.Key, u.UploadID)
		}
		if err = s.fail(ctx, op, "", err); err != nil && coverslip.KindOf(err) != coverslip.NotFound { // gone: another process sweeps too
			return err
		}
	}
	return s.fail(ctx, op, "", ctx.Err())
}

// fail names the blob and says what kind of thing went wrong with it, unless err does.
func (s *S3) fail(ctx context.Context, op, key string, err error) error {
	var ours *coverslip.Error
	if err == nil || errors.As(err, &ours) {
		return coverslip.At(s.address(key), err)
	}
	e := &coverslip.Error{Op: op, Path: s.address(key), Err: err}
	resp := minio.ToErrorResponse(err)
	switch status := resp.StatusCode; {
	case ctx.Err() != nil:
		e.Kind, e.Err = coverslip.Canceled, ctx.Err()
	case resp.Code == "NoSuchBucket":
		e.Kind, e.Hint = coverslip.NotFound, "create the bucket, or check its name and the endpoint"
	case status == http.StatusNotFound:
		e.Kind, e.Hint = coverslip.NotFound, "check the name"
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		e.Kind, e.Hint = coverslip.Environment, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may do this"
	case status == http.StatusConflict, status == http.StatusPreconditionFailed:
		e.Kind, e.Hint = coverslip.Conflict, "the blob changed meanwhile, or one key is the folder of another: try again"
	case status == http.StatusInsufficientStorage, resp.Code == "QuotaExceeded":
		e.Kind, e.Hint = coverslip.Full, "make room on the S3 server, then try again"
	case status >= 500, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status == 0:
		e.Kind, e.Hint = coverslip.Unavailable, "check that the S3 server answers, then try again"
	default:
		e.Kind = coverslip.Internal // a request S3 finds malformed is ours
	}
	return e
}
