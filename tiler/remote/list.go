package remote

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"

	"coverslip"
)

// maxList is the most objects one folder of a slide may hold.
const maxList = 10_000

// IsFolder reports whether an address is a folder of a bucket: s3://bucket/prefix/[?…].
func IsFolder(address string) bool {
	path, _, _ := strings.Cut(strings.TrimSuffix(address, publicMark), "?")
	return strings.HasPrefix(address, "s3://") && strings.HasSuffix(path, "/")
}

// List returns the addresses of the objects that lie directly in a folder of a bucket, sorted.
func List(ctx context.Context, address string) ([]string, error) {
	const op = "list folder"
	o := &Object{name: Shown(address)}
	public := strings.HasSuffix(address, publicMark)
	u, err := url.Parse(strings.TrimSuffix(address, publicMark))
	if err != nil || u.Host == "" || !IsFolder(address) {
		return nil, o.broken("it is no folder of a bucket")
	}
	core, err := newCore(u, public)
	if err != nil {
		return nil, o.broken(err.Error())
	}
	o.store = &s3{core: core}
	ctx, stop := context.WithCancel(ctx)
	defer stop() // the listing that is not read to its end
	prefix := strings.TrimPrefix(u.Path, "/")
	var out []string
	for object := range core.Client.ListObjects(ctx, u.Host, minio.ListObjectsOptions{Prefix: prefix}) {
		if object.Err != nil {
			return nil, o.failed(ctx, op, object.Err)
		}
		if strings.HasSuffix(object.Key, "/") { // a folder within, or the mark of this one
			continue
		}
		if len(out) == maxList {
			return nil, &coverslip.Error{Kind: coverslip.TooLarge, Op: op, Path: o.name, Err: fmt.Errorf("more than %d objects", maxList), Hint: "name the folder of one slide"}
		}
		one := *u
		one.Path = "/" + object.Key
		place := one.String()
		if public {
			place = Public(place)
		}
		out = append(out, place)
	}
	if len(out) == 0 {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: o.name, Err: errors.New("there is nothing in it"), Hint: "check the bucket and the prefix"}
	}
	return out, nil
}
