package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"
)

// s3 is an object of a bucket.
type s3 struct {
	core        *minio.Core
	bucket, key string
}

const amazon = "s3.amazonaws.com"

// newS3 reads the same addresses as storage/blob does, of an object instead of a bucket.
func newS3(u *url.URL, public bool) (*s3, error) {
	core, err := newCore(u, public)
	if err != nil {
		return nil, err
	}
	key := strings.TrimPrefix(u.Path, "/")
	if key == "" || strings.HasSuffix(key, "/") {
		return nil, errors.New("it names no object: name one slide file")
	}
	return &s3{core, u.Host, key}, nil
}

// newCore is the client for the bucket an address is in; see Public.
func newCore(u *url.URL, public bool) (*minio.Core, error) {
	query := u.Query()
	for name := range query {
		if name != "endpoint" && name != "region" {
			return nil, fmt.Errorf("unknown parameter %q: only endpoint and region can be set", name)
		}
	}
	if err := s3utils.CheckValidBucketName(u.Host); err != nil {
		return nil, err
	}
	// One try: repeating is done by Object, for both kinds of server.
	opts := minio.Options{Creds: credentials.NewEnvAWS(), Region: query.Get("region"), Transport: transportOf(public), MaxRetries: 1}
	endpoint, err := url.Parse(query.Get("endpoint"))
	switch {
	case err == nil && *endpoint == (url.URL{}):
		endpoint, opts.Secure = &url.URL{Host: amazon}, true
		if opts.Region == "" {
			opts.Region = os.Getenv("AWS_REGION")
		}
	case err == nil && (endpoint.Scheme == "http" || endpoint.Scheme == "https") && endpoint.Host != "" && strings.Trim(endpoint.Path, "/") == "":
		opts.Secure, opts.BucketLookup = endpoint.Scheme == "https", minio.BucketLookupPath
		if opts.Region == "" {
			opts.Region = "us-east-1" // what servers other than Amazon's expect when nothing is said
		}
	default:
		return nil, errors.New("endpoint is no address: write endpoint=http://host:port or endpoint=https://host")
	}
	if public && query.Get("endpoint") != "" {
		opts.Creds = nil // somebody else's server gets to see nothing of ours
	}
	return minio.NewCore(endpoint.Host, &opts)
}

func (s *s3) get(ctx context.Context, first, last int64, v version) (io.ReadCloser, http.Header, error) {
	var opts minio.GetObjectOptions
	if err := opts.SetRange(first, last); err != nil {
		return nil, nil, err
	}
	if name, value := v.condition(); value != "" {
		opts.Set(name, value)
	}
	body, _, header, err := s.core.GetObject(ctx, s.bucket, s.key, opts)
	if err != nil {
		if r := minio.ToErrorResponse(err); r.StatusCode != 0 {
			return nil, nil, &refusal{r.StatusCode, r.Code}
		}
		return nil, nil, withoutAddress(err)
	}
	if header.Get("Content-Range") == "" {
		_ = body.Close() // the whole object, which nobody asked for
		return nil, nil, &refusal{status: http.StatusOK}
	}
	return body, header, nil
}
