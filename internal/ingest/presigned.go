package ingest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/blob"
	"coverslip/tiler"
)

// Presigned keeps uploads that clients put straight into the bucket. Safe for concurrent use, from many
// processes.
type Presigned struct {
	in    *Ingest
	store *blob.S3
	limit int // unfinished at once
}

// lasting is how long the addresses work.
const lasting = 24 * time.Hour

// NewPresigned returns nil where the store is no bucket.
func NewPresigned(in *Ingest, limit int) *Presigned {
	store, ok := in.Blobs.(*blob.S3)
	if !ok {
		return nil
	}
	return &Presigned{in, store, limit}
}

// Addresses are where a client puts the parts of an upload.
type Addresses struct {
	ID        string
	PartBytes int64 // of each part but the last
	URLs      []string
	Expires   time.Time
}

// partBytes is the length of the parts of a slide: few addresses for a large one, at least blob.PartSize.
func partBytes(size int64) int64 {
	const most = 1000
	n := int64(blob.PartSize)
	for size > n*most {
		n *= 2
	}
	return n
}

// Begin signs the addresses for an upload of a name and a length.
func (p *Presigned) Begin(ctx context.Context, up Upload) (Addresses, error) {
	const op = "begin upload"
	if up.MPPOfSlide != 0 {
		if err := tiler.CheckMPP(up.MPPOfSlide); err != nil {
			return Addresses{}, err
		}
	}
	if err := p.sweep(ctx); err != nil {
		return Addresses{}, err
	}
	switch n, err := p.in.DB.CountPresignedUploads(ctx); {
	case err != nil:
		return Addresses{}, err
	case n >= p.limit:
		return Addresses{}, &coverslip.Error{Kind: coverslip.TooLarge, Op: op, Path: up.Name, Err: fmt.Errorf("%d uploads are unfinished already", n), Hint: "finish or delete some, or raise the server's limit"}
	}
	id := strings.ToLower(rand.Text())
	parts, err := p.store.Begin(ctx, "slides/"+id)
	if err != nil {
		return Addresses{}, err
	}
	out := Addresses{ID: id, PartBytes: partBytes(up.Bytes), Expires: time.Now().Add(lasting).UTC()}
	for n := int64(0); n*out.PartBytes < up.Bytes && err == nil; n++ {
		u, uerr := parts.URL(ctx, int(n)+1, lasting)
		if err = uerr; err == nil {
			out.URLs = append(out.URLs, u.String())
		}
	}
	if err == nil {
		err = p.in.DB.PutPresignedUpload(ctx, storage.PresignedUpload{ID: id, Parts: parts.ID(), Name: up.Name, Bytes: up.Bytes, MPPOfSlide: up.MPPOfSlide, SHA256: up.SHA256})
	}
	if err != nil {
		return out, errors.Join(err, parts.Abort(context.WithoutCancel(ctx)))
	}
	return out, nil
}

// Complete publishes what was put and makes a slide of it, as Ingest.Upload does; asked again, it says
// the same again. Parts that are missing are Invalid, and can still be put. What is no slide, or not what
// was announced, is refused and gone.
func (p *Presigned) Complete(ctx context.Context, id string, etags []string) (Outcome, error) {
	const op = "complete upload"
	up, err := p.in.DB.PresignedUpload(ctx, id)
	if err != nil {
		return Outcome{}, err
	}
	if up.Slide != "" {
		s, err := p.in.DB.Slide(ctx, up.Slide)
		return Outcome{Slide: s}, err
	}
	key := "slides/" + id
	if _, err := p.store.Stat(ctx, key); coverslip.KindOf(err) == coverslip.NotFound {
		size := partBytes(up.Bytes)
		if want := int((up.Bytes + size - 1) / size); len(etags) != want {
			return Outcome{}, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: up.Name, Err: fmt.Errorf("%d ETags for %d parts", len(etags), want), Hint: "put every part, and send the ETag of each in order"}
		}
		parts := p.store.Resume(key, up.Parts)
		for i, etag := range etags {
			parts.Sent(i+1, etag)
		}
		if err := parts.Complete(ctx); err != nil {
			return Outcome{}, renamed(err, up.Name)
		}
	} else if err != nil {
		return Outcome{}, err
	}
	out, err := p.register(ctx, up, key)
	if err != nil && !coverslip.KindOf(err).Retryable() {
		return out, errors.Join(err, p.store.Delete(ctx, key), p.in.DB.ForgetPresignedUpload(ctx, id))
	}
	if err == nil {
		err = p.in.DB.FinishPresignedUpload(ctx, id, out.Slide.ID)
	}
	return out, err
}

// register reads what was put, once, into the spool, where it is looked at.
func (p *Presigned) register(ctx context.Context, up storage.PresignedUpload, key string) (Outcome, error) {
	const op = "complete upload"
	in := p.in
	src, err := in.Blobs.Open(ctx, key)
	if err != nil {
		return Outcome{}, err
	}
	defer src.Close()
	if src.Size() != up.Bytes {
		return Outcome{}, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: up.Name, Err: fmt.Errorf("%d bytes were put, %d were announced", src.Size(), up.Bytes), Hint: "begin again with the right length"}
	}
	head := make([]byte, min(tiler.HeadSize, up.Bytes))
	if _, err := src.ReadAt(head, 0); err != nil {
		return Outcome{}, err
	}
	if err := tiler.CheckHead(head, up.Name); err != nil {
		return Outcome{}, err
	}
	spool, err := os.CreateTemp(in.Spool, "slide-*")
	if err != nil {
		return Outcome{}, diskError("make room for the slide", in.Spool, err)
	}
	defer os.Remove(spool.Name()) //nolint:errcheck // swept at the next start
	defer spool.Close()
	id, _, err := digest(ctx, io.NewSectionReader(src, 0, src.Size()), spool)
	if err != nil {
		return Outcome{}, renamed(err, up.Name)
	}
	if up.SHA256 != "" && string(id) != up.SHA256 {
		return Outcome{}, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: up.Name, Err: fmt.Errorf("its SHA-256 is %s, announced was %s", id, up.SHA256), Hint: "the file changed on the way or while it was sent; send it again"}
	}
	slide, err := describe(ctx, up.Name, []string{spool.Name()})
	if err != nil {
		return Outcome{}, renamed(err, up.Name)
	}
	slide.ID, slide.Bytes, slide.Name, slide.Location = id, up.Bytes, up.Name, "blob:"+key
	return in.registerBlob(ctx, slide, up.MPPOfSlide)
}

// Abort drops what was put and forgets the upload.
func (p *Presigned) Abort(ctx context.Context, id string) error {
	up, err := p.in.DB.PresignedUpload(ctx, id)
	if err != nil {
		return err
	}
	return p.drop(ctx, up)
}

func (p *Presigned) drop(ctx context.Context, up storage.PresignedUpload) error {
	if up.Slide == "" {
		key := "slides/" + up.ID
		if err := p.store.Resume(key, up.Parts).Abort(ctx); err != nil {
			return err
		}
		if err := p.store.Delete(ctx, key); err != nil { // completed, but refused to be registered
			return err
		}
	}
	return p.in.DB.ForgetPresignedUpload(ctx, up.ID)
}

// sweep drops what expired a day ago.
func (p *Presigned) sweep(ctx context.Context) error {
	old, err := p.in.DB.PresignedUploadsBefore(ctx, time.Now().Add(-2*lasting))
	for _, up := range old {
		err = errors.Join(err, p.drop(ctx, up))
	}
	return err
}
