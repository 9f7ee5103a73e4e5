package main

import (
	"context"
	"errors"
	"io"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"coverslip"
	"coverslip/api"
	"coverslip/internal/ingest"
	"coverslip/tiler/remote"
)

// uploadFlags bound what a server takes in.
type uploadFlags struct {
	MaxUpload    int64    `name:"max-upload" default:"100" env:"COVERSLIP_MAX_UPLOAD" placeholder:"GIB" group:"What may be sent" help:"Largest slide, in GiB (${default})."`
	MaxUploads   int      `name:"max-uploads" default:"1000" env:"COVERSLIP_MAX_UPLOADS" placeholder:"N" group:"What may be sent" help:"Unfinished uploads at once (${default}); they are dropped after a week without a byte."`
	SlidesFolder []string `name:"slides-folder" type:"path" env:"COVERSLIP_SLIDES_FOLDER" placeholder:"DIR" group:"What may be sent" help:"Let clients register slides that lie in this folder of the server. May be given several times."`
}

// uploads opens what keeps uploads that come in pieces.
func (f uploadFlags) uploads(p *platform, in *ingest.Ingest) (*ingest.Uploads, error) {
	return ingest.OpenUploads(in, filepath.Join(p.dir, "uploads"), ingest.UploadLimits{Unfinished: f.MaxUploads, Age: 7 * 24 * time.Hour})
}

// resumable fills the API's door of that name.
type resumable struct{ u *ingest.Uploads }

func (r resumable) Begin(ctx context.Context, up api.Arriving) (api.Arriving, error) {
	out, err := r.u.Begin(ctx, ingest.Upload(up))
	return api.Arriving(out), err
}

func (r resumable) Find(ctx context.Context, id string) (api.Arriving, error) {
	up, err := r.u.Find(ctx, id)
	return api.Arriving(up), err
}

func (r resumable) List(_ context.Context, sha256 string) ([]api.Arriving, error) {
	found, err := r.u.List(sha256)
	out := make([]api.Arriving, len(found))
	for i, up := range found {
		out[i] = api.Arriving(up)
	}
	return out, err
}

func (r resumable) Append(ctx context.Context, id string, offset int64, body io.Reader) (int64, error) {
	return r.u.Append(ctx, id, offset, body)
}

func (r resumable) Finish(ctx context.Context, id string) (coverslip.Slide, bool, error) {
	out, err := r.u.Finish(ctx, id)
	return out.Slide, out.Created, err
}

func (r resumable) Drop(ctx context.Context, id string) error { return r.u.Drop(ctx, id) }

// presigner fills the API's door of that name.
type presigner struct{ p *ingest.Presigned }

func (s presigner) Presign(ctx context.Context, up api.Arriving) (api.Presigned, error) {
	out, err := s.p.Begin(ctx, ingest.Upload(up))
	return api.Presigned(out), err
}

func (s presigner) Complete(ctx context.Context, id string, etags []string) (coverslip.Slide, bool, error) {
	out, err := s.p.Complete(ctx, id, etags)
	return out.Slide, out.Created, err
}

func (s presigner) Abort(ctx context.Context, id string) error { return s.p.Abort(ctx, id) }

// registrar lets clients register what lies in buckets of the server's own S3, and in folders that were
// opened to them.
type registrar struct {
	in      *ingest.Ingest
	s3      url.Values // how that S3 is reached; nil where there is none
	folders []string
}

// newRegistrar takes the S3 of the blob store, or Amazon's.
func newRegistrar(in *ingest.Ingest, blobs string, folders []string) registrar {
	r := registrar{in: in, s3: url.Values{}, folders: folders}
	if u, err := url.Parse(blobs); err == nil && u.Scheme == "s3" {
		r.s3 = u.Query()
	}
	return r
}

func (r registrar) Register(ctx context.Context, place string, mppOfSlide float64) (coverslip.Slide, bool, error) {
	place, err := r.allowed(place)
	if err != nil {
		return coverslip.Slide{}, false, err
	}
	out, err := r.in.Register(ctx, place, mppOfSlide)
	return out.Slide, out.Created, err
}

// allowed refuses what a client has no business reading: the server's other files, and other servers
// that only this one can reach. It completes the address of an object.
func (r registrar) allowed(place string) (string, error) {
	const op = "register slide"
	if strings.HasPrefix(place, "s3://") {
		u, err := url.Parse(place)
		if err != nil || u.Fragment != "" {
			return "", &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: remote.Shown(place), Err: errors.New("it is no address"), Hint: "write s3://bucket/key"}
		}
		if u.RawQuery != "" && u.Query().Encode() != r.s3.Encode() {
			return "", &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: remote.Shown(place), Err: errors.New("a client may not choose the S3 server"), Hint: "leave out what follows the question mark: the server's own S3 is used"}
		}
		u.RawQuery = r.s3.Encode()
		return u.String(), nil
	}
	if remote.Is(place) {
		return place, nil // Register says why it is not taken
	}
	resolved, err := filepath.EvalSymlinks(place)
	if err == nil && filepath.IsAbs(place) {
		for _, folder := range r.folders {
			if root, err := filepath.EvalSymlinks(folder); err == nil && strings.HasPrefix(resolved, root+string(filepath.Separator)) {
				return place, nil
			}
		}
	}
	return "", &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: place, Err: errors.New("it is in no folder that was opened to clients"), Hint: "start the server with --slides-folder DIR, or upload the slide"}
}
