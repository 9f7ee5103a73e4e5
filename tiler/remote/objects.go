package remote

import (
	"context"
	"errors"
	"iter"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"

	"coverslip"
)

// Listed is an object of a bucket, of which nothing was read.
type Listed struct {
	Address string
	Name    string // the last part of its key
	Bytes   int64
	ETag    string
}

// Objects yields the objects of a bucket whose keys begin with a prefix, s3://bucket/prefix?…, at any
// depth, in the order of their keys. It stops after the first error it yields.
func Objects(ctx context.Context, address string) iter.Seq2[Listed, error] {
	const op = "list bucket"
	return func(yield func(Listed, error) bool) {
		o := &Object{name: Shown(address)}
		u, core, err := bucketOf(address)
		if err != nil {
			yield(Listed{}, o.broken(err.Error()))
			return
		}
		o.store = &s3{core: core}
		ctx, stop := context.WithCancel(ctx)
		defer stop() // a listing that is not read to its end
		for object := range core.Client.ListObjects(ctx, u.Host, minio.ListObjectsOptions{Prefix: strings.TrimPrefix(u.Path, "/"), Recursive: true}) {
			if object.Err != nil {
				yield(Listed{}, o.failed(ctx, op, object.Err))
				return
			}
			if strings.HasSuffix(object.Key, "/") {
				continue
			}
			one := *u
			one.Path, one.RawPath = "/"+object.Key, ""
			place := one.String()
			if strings.HasSuffix(address, publicMark) {
				place = Public(place)
			}
			if !yield(Listed{place, object.Key[strings.LastIndexByte(object.Key, '/')+1:], object.Size, object.ETag}, nil) {
				return
			}
		}
	}
}

// Reachable asks a server whether an object is there and may be read, without reading it. Why not is an
// error as Open's.
func Reachable(ctx context.Context, address string) error {
	o := &Object{name: Shown(address)}
	u, core, err := bucketOf(address)
	if err != nil {
		return o.broken(err.Error())
	}
	o.store = &s3{core: core}
	if _, err := core.StatObject(ctx, u.Host, strings.TrimPrefix(u.Path, "/"), minio.StatObjectOptions{}); err != nil {
		err = o.failed(ctx, "look for the slide", err)
		if coverslip.KindOf(err) != coverslip.NotFound {
			return err
		}
		// The answer to HEAD has no words: a bucket that is not there looks like an object that is not.
		if there, e := core.BucketExists(ctx, u.Host); e == nil && !there {
			return &coverslip.Error{Kind: coverslip.NotFound, Op: "look for the bucket", Path: "s3://" + u.Host, Err: errNoBucket, Hint: "check the name of the bucket, and the endpoint"}
		}
		return err
	}
	return nil
}

var errNoBucket = errors.New("there is no such bucket")

// IsNoBucket reports whether err says that a whole bucket is not there.
func IsNoBucket(err error) bool { return errors.Is(err, errNoBucket) }

func bucketOf(address string) (*url.URL, *minio.Core, error) {
	public := strings.HasSuffix(address, publicMark)
	u, err := url.Parse(strings.TrimSuffix(address, publicMark))
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.Fragment != "" {
		return nil, nil, errors.New("it is no address in a bucket")
	}
	core, err := newCore(u, public)
	return u, core, err
}

// failed is what went wrong with a request that minio-go made by itself.
func (o *Object) failed(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if r := minio.ToErrorResponse(err); r.StatusCode != 0 {
		return o.fail(op, &refusal{r.StatusCode, r.Code})
	}
	return o.fail(op, withoutAddress(err))
}
