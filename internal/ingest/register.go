package ingest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/queue"
	"coverslip/tiler"
	"coverslip/tiler/remote"
)

// Outcome says what registering a slide led to.
type Outcome struct {
	Slide   coverslip.Slide
	Created bool // it was not known before
	Queued  bool // a job was put in the queue for it; false: it is done or under way already
}

// Register makes a slide known that stays where it is, at a path or an s3:// address, and queues it
// unless its embedding is there already. Its bytes are read once, for its id; a slide that cannot be
// opened is refused and leaves nothing behind. mppOfSlide, when not 0, is the user's word for the
// resolution.
func (in *Ingest) Register(ctx context.Context, place string, mppOfSlide float64) (Outcome, error) {
	return in.RegisterWith(ctx, place, func(coverslip.SlideID) float64 { return mppOfSlide })
}

// RegisterWith is Register where the resolution is looked up by the slide's id.
func (in *Ingest) RegisterWith(ctx context.Context, place string, mppOfSlide func(coverslip.SlideID) float64) (Outcome, error) {
	var err error
	switch {
	case strings.HasPrefix(place, "s3://"):
	case remote.Is(place):
		return Outcome{}, &coverslip.Error{Kind: coverslip.Unsupported, Op: "register slide", Path: remote.Shown(place), Err: errors.New("web addresses come and go"), Hint: "upload it, or name its s3:// address or a path"}
	default:
		if place, err = filepath.Abs(place); err != nil {
			return Outcome{}, err
		}
	}
	files, err := tiler.Files(ctx, place)
	if err != nil {
		return Outcome{}, err
	}
	slide, err := describe(ctx, remote.Shown(place), files)
	if err != nil {
		return Outcome{}, err
	}
	is, err := identify(ctx, files, nil)
	if err != nil {
		return Outcome{}, coverslip.At(remote.Shown(place), err)
	}
	slide.ID, slide.Bytes, slide.Name, slide.Location = is.id, is.bytes, tiler.Name(place), place+is.version
	return in.register(ctx, slide, mppOfSlide(slide.ID))
}

// describe opens a slide for what it says of itself.
func describe(ctx context.Context, name string, files []string) (coverslip.Slide, error) {
	opened, err := tiler.OpenFiles(ctx, name, files)
	if err != nil {
		return coverslip.Slide{}, err
	}
	defer opened.Close()
	return coverslip.Slide{Format: opened.Format, Width: opened.Width, Height: opened.Height, Levels: opened.Levels,
		MPP: opened.MPP, ObjectivePower: opened.ObjectivePower, State: coverslip.Queued}, nil
}

// identity is what a slide's bytes say of which they are.
type identity struct {
	id      coverslip.SlideID // the SHA-256 of its file, or, of several, that over their sorted sums, so that neither names nor order count
	bytes   int64
	md5     string // of one file, where it was asked for
	version string // what its place in the bucket is followed by, for later reads to see that it is still the same
}

// identify reads a slide's files from the first byte to the last; weak, if not nil, is for the MD5.
func identify(ctx context.Context, files []string, weak hash.Hash) (is identity, err error) {
	var sums, versions []string
	for _, file := range files {
		src, err := source(ctx, file)
		if err != nil {
			return is, err
		}
		var all io.Reader = src
		if weak != nil {
			all = io.TeeReader(src, weak)
		}
		sum, n, err := digest(ctx, all, nil)
		_ = src.Close() // only read
		if err != nil {
			return is, coverslip.At(file, err)
		}
		if object, ok := src.(*objectReader); ok {
			versions = append(versions, object.Version())
		}
		sums, is.bytes = append(sums, string(sum)), is.bytes+n
	}
	if len(versions) > 0 {
		is.version = versionMark + versionOf(versions)
	}
	if len(sums) == 1 {
		if is.id = coverslip.SlideID(sums[0]); weak != nil {
			is.md5 = hex.EncodeToString(weak.Sum(nil))
		}
		return is, nil
	}
	slices.Sort(sums)
	of := sha256.Sum256([]byte(strings.Join(sums, "\n")))
	is.id = coverslip.SlideID(hex.EncodeToString(of[:]))
	return is, nil
}

// versionOf is the version of a slide in a bucket, of those of its objects in their order.
func versionOf(versions []string) string {
	if len(versions) == 1 {
		return versions[0]
	}
	of := sha256.Sum256([]byte(strings.Join(versions, "\n")))
	return hex.EncodeToString(of[:])
}

// versionMark stands between an address and the version that was registered.
const versionMark = "#version="

func source(ctx context.Context, file string) (io.ReadCloser, error) {
	if remote.Is(file) {
		object, err := remote.Open(ctx, file)
		if err != nil {
			return nil, err
		}
		return newObjectReader(ctx, object), nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "read slide", Path: file, Err: err, Hint: "check the path, and that it can be read"}
	}
	return f, nil
}

// objectReader reads a remote object from its first byte to its last, a few pieces at once: one connection
// to a bucket is slower than the line.
type objectReader struct {
	*remote.Object
	ctx   context.Context // of the one who reads it to its end; Close ends it
	close context.CancelFunc

	next   int64 // where the next piece begins
	coming []chan piece
	left   []byte // of the piece at hand
}

type piece struct {
	bytes []byte
	err   error
}

const (
	pieceSize    = 4 << 20
	piecesAtOnce = 4
)

func newObjectReader(ctx context.Context, object *remote.Object) *objectReader {
	r := &objectReader{Object: object}
	r.ctx, r.close = context.WithCancel(ctx)
	return r
}

func (r *objectReader) Read(p []byte) (int, error) {
	for len(r.coming) < piecesAtOnce && r.next < r.Size() {
		buf, at, come := make([]byte, min(pieceSize, r.Size()-r.next)), r.next, make(chan piece, 1)
		go func() { come <- piece{buf, r.ReadRange(r.ctx, buf, at)} }() // ends with r.ctx
		r.coming, r.next = append(r.coming, come), r.next+int64(len(buf))
	}
	if len(r.left) == 0 {
		if len(r.coming) == 0 {
			return 0, io.EOF
		}
		got := <-r.coming[0]
		r.coming = r.coming[1:]
		if got.err != nil {
			return 0, got.err
		}
		r.left = got.bytes
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

// Close waits for what is still coming.
func (r *objectReader) Close() error {
	r.close()
	for _, come := range r.coming {
		<-come
	}
	r.coming = nil
	return nil
}

// register writes the row and, in the same transaction, the job.
func (in *Ingest) register(ctx context.Context, slide coverslip.Slide, mppOfSlide float64) (Outcome, error) {
	if mppOfSlide != 0 {
		if err := tiler.CheckMPP(mppOfSlide); err != nil {
			return Outcome{}, err
		}
		slide.MPP = coverslip.MPP{Value: mppOfSlide, Source: coverslip.MPPUser}
	}
	ctx, span := tracer.Start(ctx, "register", trace.WithAttributes(attribute.String("coverslip.slide", string(slide.ID))))
	defer span.End()
	var out Outcome
	var job int64
	err := in.DB.InTx(ctx, func(tx *storage.Tx) error {
		var err error
		if out.Slide, out.Created, err = tx.Register(ctx, slide); err != nil {
			return err
		}
		if old := out.Slide.Location; strings.HasPrefix(old, importedMark) {
			if err := tx.Describe(ctx, slide); err != nil {
				return err
			}
		} else if old != slide.Location && !lies(old) {
			if err := tx.SetLocation(ctx, slide.ID, slide.Location); err != nil {
				return err
			}
		}
		if mppOfSlide != 0 && out.Slide.MPP != slide.MPP {
			if err := tx.SetMPP(ctx, slide.ID, slide.MPP); err != nil {
				return err
			}
			out.Slide.MPP = slide.MPP
		}
		if done, err := in.embedded(ctx, out.Slide); err != nil || done {
			return err
		}
		// The slide's state follows its job.
		queued, err := in.Queue.Enqueue(ctx, tx.Pgx(), in.job(slide.ID))
		if err != nil {
			return err
		}
		out.Queued, job = queued[0].Added, queued[0].ID
		out.Slide, err = tx.Slide(ctx, slide.ID)
		return err
	})
	if err == nil && out.Queued {
		in.Log.Info("slide queued", "slide", slide.ID, "job", job, "name", slide.Name)
	}
	return out, err
}

// job takes a slide to its embedding.
func (in *Ingest) job(id coverslip.SlideID) queue.Job {
	return queue.Job{Slide: id, Encoder: in.Model.Name, Aggregator: in.Aggregator.Model().Name, Budget: in.Plan.Budget,
		SkipBadTiles: in.Plan.SkipBadTiles}
}

// lies reports whether a slide's bytes are still where they were registered. Blobs and what is in
// buckets are not moved.
func lies(location string) bool {
	if strings.HasPrefix(location, "blob:") || remote.Is(location) {
		return true
	}
	_, err := os.Stat(location)
	return err == nil
}

// digest reads src to its end for the SHA-256 and length of its bytes, and writes them to dst if that
// is not nil.
func digest(ctx context.Context, src io.Reader, dst *os.File) (coverslip.SlideID, int64, error) {
	sum := sha256.New()
	buf := make([]byte, 4<<20)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return "", 0, &coverslip.Error{Kind: coverslip.Canceled, Op: "read slide", Err: err}
		}
		got, err := src.Read(buf)
		sum.Write(buf[:got])
		n += int64(got)
		if dst != nil {
			if _, err := dst.Write(buf[:got]); err != nil {
				return "", 0, diskError("keep the upload", filepath.Dir(dst.Name()), err)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return coverslip.SlideID(hex.EncodeToString(sum.Sum(nil))), n, nil
		case err != nil:
			var known *coverslip.Error
			if errors.As(err, &known) {
				return "", 0, err
			}
			return "", 0, &coverslip.Error{Kind: coverslip.Invalid, Op: "read slide", Err: fmt.Errorf("after %d bytes: %w", n, err), Hint: "send it again"}
		}
	}
}

func diskError(op, path string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &coverslip.Error{Kind: coverslip.Full, Op: op, Path: path, Err: err, Hint: "free some space on that disk and try again"}
	}
	return &coverslip.Error{Kind: coverslip.Environment, Op: op, Path: path, Err: err, Hint: "check that the folder exists and can be written"}
}

// renamed gives an error the name the user knows the slide by, in place of the spool file's.
func renamed(err error, name string) error {
	var e *coverslip.Error
	if !errors.As(err, &e) {
		return err
	}
	out := *e
	out.Path = name
	return &out
}

// Sweep removes what processes that were killed left in the spool: whatever was last written before
// the given time. Who shares the folder with others gives a time that none of them still writes from.
func Sweep(spool string, before time.Time) error {
	entries, err := os.ReadDir(spool)
	if err != nil {
		return diskError("clean the spool", spool, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.ModTime().Before(before) {
			if err := os.Remove(filepath.Join(spool, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return diskError("clean the spool", spool, err)
			}
		}
	}
	return nil
}
