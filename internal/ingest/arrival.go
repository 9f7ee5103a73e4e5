package ingest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"coverslip"
	"coverslip/storage/blob"
	"coverslip/tiler"
)

// fileKeeper is a store that takes a file without reading it into memory.
type fileKeeper interface {
	PutFile(ctx context.Context, key string, file *os.File, size int64) error
}

// partKeeper is a store that takes a blob in parts while the rest is still on its way.
type partKeeper interface {
	Begin(ctx context.Context, key string) (*blob.Parts, error)
}

// arrival is a slide on its way in: a file that grows, the hash of what is in it, and, where the store
// takes parts, those that went there already. The file is what counts: whatever is wrong with the rest
// is made good from it. It is for one goroutine.
type arrival struct {
	in     *Ingest
	key    string // where the store keeps it
	file   *os.File
	size   int64 // bytes in the file
	sum    hash.Hash
	hashed int64 // bytes that sum has seen, from the first
	ship   *shipment
}

// arriving takes up a file that holds size bytes already.
func (in *Ingest) arriving(ctx context.Context, key string, file *os.File, size int64) *arrival {
	a := &arrival{in: in, key: key, file: file, size: size, sum: sha256.New()}
	if store, ok := in.Blobs.(partKeeper); ok {
		a.ship = newShipment(ctx, store, key, file)
	}
	return a
}

// close lets go of everything but the file's name. What was sent in parts and not published is dropped.
func (a *arrival) close() error {
	if a.ship != nil {
		a.ship.drop()
	}
	return a.file.Close()
}

// received is how much is read before it is written: little, because many arrive at once.
const received = 64 << 10

// What all arrivals of this process may do side by side, whatever their number: send parts to the store,
// and look into slides.
var (
	sending = make(chan struct{}, 8)
	looking = make(chan struct{}, runtime.GOMAXPROCS(0))
)

// write appends body to the file, up to its end, and says how much was kept, whatever ended it early.
func (a *arrival) write(ctx context.Context, body io.Reader) (n int64, err error) {
	buf := make([]byte, received)
	for {
		if err := ctx.Err(); err != nil {
			return n, &coverslip.Error{Kind: coverslip.Canceled, Op: "receive slide", Err: err}
		}
		got, err := fill(buf, body) // fewer, larger writes
		wrote, werr := a.file.WriteAt(buf[:got], a.size)
		if a.hashed == a.size {
			a.sum.Write(buf[:wrote])
			a.hashed += int64(wrote)
		}
		a.size, n = a.size+int64(wrote), n+int64(wrote)
		if werr != nil {
			return n, diskError("keep the upload", filepath.Dir(a.file.Name()), werr)
		}
		if a.ship != nil {
			a.ship.advance(a.size)
		}
		var known *coverslip.Error
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return n, nil
		case errors.As(err, &known):
			return n, err
		default:
			return n, &coverslip.Error{Kind: coverslip.Invalid, Op: "read slide", Err: fmt.Errorf("after %d bytes: %w", n, err), Hint: "send it again"}
		}
	}
}

// fill reads until buf is full or src ends. Unlike io.ReadFull it leaves the error as src gave it, which
// tells a body that ended from one that was cut.
func fill(buf []byte, src io.Reader) (n int, err error) {
	for n < len(buf) && err == nil {
		var got int
		got, err = src.Read(buf[n:])
		n += got
	}
	return n, err
}

// id is the SHA-256 of the file. It reads what was there before this process.
func (a *arrival) id() (coverslip.SlideID, error) {
	if a.hashed < a.size {
		buf := make([]byte, received)
		n, err := io.CopyBuffer(struct{ io.Writer }{a.sum}, io.NewSectionReader(a.file, a.hashed, a.size-a.hashed), buf)
		a.hashed += n
		if err != nil {
			return "", diskError("read the upload back", a.file.Name(), err)
		}
	}
	return coverslip.SlideID(hex.EncodeToString(a.sum.Sum(nil))), nil
}

// keep publishes the slide in the store and registers it, with a job. Equal bytes are kept once, whoever
// sends them how often at once. A file that is no slide is refused and leaves nothing in the store.
func (a *arrival) keep(ctx context.Context, name string, mppOfSlide float64) (Outcome, error) {
	in := a.in
	id, err := a.id()
	if err != nil {
		return Outcome{}, err
	}
	looking <- struct{}{}
	slide, err := describe(ctx, name, []string{a.file.Name()})
	<-looking
	if err != nil {
		return Outcome{}, renamed(err, name)
	}
	slide.ID, slide.Bytes, slide.Name, slide.Location = id, a.size, name, "blob:"+a.key
	if a.key == "" {
		slide.Location = "blob:" + slideBlob(id)
	}
	if there, location, err := in.kept(ctx, id); err != nil {
		return Outcome{}, err
	} else if there {
		slide.Location = location
		return in.register(ctx, slide, mppOfSlide)
	}
	if err := a.publish(ctx, strings.TrimPrefix(slide.Location, "blob:")); err != nil {
		return Outcome{}, coverslip.At(name, err)
	}
	return in.registerBlob(ctx, slide, mppOfSlide)
}

// kept reports whether a slide's bytes are where they were registered.
func (in *Ingest) kept(ctx context.Context, id coverslip.SlideID) (there bool, location string, err error) {
	known, err := in.DB.Slide(ctx, id)
	if isKnown, err := found(err); !isKnown {
		return false, "", err
	}
	there, err = in.there(ctx, known.Location)
	return there, known.Location, err
}

// registerBlob registers a slide whose bytes are in the store now. Where somebody else's were first, the
// second copy goes.
func (in *Ingest) registerBlob(ctx context.Context, slide coverslip.Slide, mppOfSlide float64) (Outcome, error) {
	there, location, err := in.kept(ctx, slide.ID)
	if err == nil && !there && strings.HasPrefix(location, "blob:") && location != slide.Location { // what it names is gone
		err = in.DB.SetLocation(ctx, slide.ID, slide.Location)
	}
	if err != nil {
		return Outcome{}, err
	}
	out, err := in.register(ctx, slide, mppOfSlide)
	if err != nil {
		return out, err
	}
	if there, location, err = in.kept(ctx, slide.ID); err == nil && there && location != slide.Location {
		key := strings.TrimPrefix(slide.Location, "blob:")
		if err := in.Blobs.Delete(ctx, key); err != nil {
			in.Log.Warn("a second copy of a slide was left behind", "slide", slide.ID, "blob", key, "err", err)
		}
	}
	return out, err
}

// publish sees the whole file into the store.
func (a *arrival) publish(ctx context.Context, key string) error {
	if a.ship != nil {
		shipped, err := a.ship.complete(ctx, a.size)
		if shipped || ctx.Err() != nil {
			return err
		}
	}
	if store, ok := a.in.Blobs.(fileKeeper); ok {
		sending <- struct{}{}
		defer func() { <-sending }()
		return store.PutFile(ctx, key, a.file, a.size)
	}
	return a.in.Blobs.Put(ctx, key, io.NewSectionReader(a.file, 0, a.size), a.size)
}

// there reports whether a slide's bytes are where they were registered.
func (in *Ingest) there(ctx context.Context, location string) (bool, error) {
	if key, ok := strings.CutPrefix(location, "blob:"); ok {
		_, err := in.Blobs.Stat(ctx, key)
		return found(err)
	}
	return !strings.HasPrefix(location, importedMark) && lies(location), nil
}

// shipment sends a growing file to the store, part by part. Its first error ends it: then the file is
// sent whole at the end.
type shipment struct {
	store  partKeeper
	key    string
	file   *os.File
	ctx    context.Context // the arrival's, which outlives the request that began it
	cancel context.CancelFunc
	parts  *blob.Parts // nil until the first part is whole
	group  *errgroup.Group
	sent   int64 // bytes that were given to group
	failed bool
}

func newShipment(ctx context.Context, store partKeeper, key string, file *os.File) *shipment {
	s := &shipment{store: store, key: key, file: file}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.group, s.ctx = errgroup.WithContext(ctx)
	s.group.SetLimit(2) // then who writes waits: the store sets the pace
	return s
}

// advance sends the parts that are whole, now that the file holds size bytes.
func (s *shipment) advance(size int64) {
	for size-s.sent >= blob.PartSize && !s.failed && s.ctx.Err() == nil {
		s.send(blob.PartSize)
	}
}

func (s *shipment) send(size int64) {
	if s.parts == nil {
		if s.parts, _ = s.store.Begin(s.ctx, s.key); s.parts == nil {
			s.failed = true
			return
		}
	}
	n, off := int(s.sent/blob.PartSize)+1, s.sent
	s.sent += size
	s.group.Go(func() error {
		sending <- struct{}{}
		defer func() { <-sending }()
		return s.parts.Send(s.ctx, n, s.file, off, size)
	})
}

// complete sends the rest of a file of size bytes and publishes it; shipped is false where it has to be
// sent whole.
func (s *shipment) complete(ctx context.Context, size int64) (shipped bool, err error) {
	stop := context.AfterFunc(ctx, s.cancel)
	defer stop()
	if s.parts == nil {
		return false, nil
	}
	s.advance(size)
	if rest := size - s.sent; rest > 0 && !s.failed {
		s.send(rest)
	}
	if s.group.Wait() != nil || s.failed || s.parts.Complete(ctx) != nil {
		s.drop()
		return false, ctx.Err()
	}
	s.parts = nil
	return true, nil
}

// drop ends what is under way and forgets what was sent.
func (s *shipment) drop() {
	s.cancel()
	_ = s.group.Wait() // it was told to stop
	if s.parts != nil {
		_ = s.parts.Abort(context.WithoutCancel(s.ctx)) // should this fail, a later sweep does it
		s.parts = nil
	}
	s.failed = true
}

// Upload makes a slide known whose bytes come from body, keeps them in the blob store, and queues it
// like Register. Memory does not grow with the slide. Equal bytes are kept once, whoever sends them
// how often at once. When body fails, or is no slide, nothing is kept.
func (in *Ingest) Upload(ctx context.Context, name string, mppOfSlide float64, body io.Reader) (Outcome, error) {
	if mppOfSlide != 0 {
		if err := tiler.CheckMPP(mppOfSlide); err != nil {
			return Outcome{}, err
		}
	}
	spool, err := os.CreateTemp(in.Spool, "upload-*")
	if err != nil {
		return Outcome{}, diskError("make room for the upload", in.Spool, err)
	}
	defer os.Remove(spool.Name()) //nolint:errcheck // swept at the next start
	a := in.arriving(ctx, in.newKey(), spool, 0)
	defer a.close() //nolint:errcheck // what was to be kept is in the store
	if _, err := a.write(ctx, body); err != nil {
		return Outcome{}, coverslip.At(name, err)
	}
	return a.keep(ctx, name, mppOfSlide)
}

// newKey is where a slide will lie whose hash is not known yet; "" where the store takes no parts, and
// it lies under its hash.
func (in *Ingest) newKey() string {
	if _, ok := in.Blobs.(partKeeper); !ok {
		return ""
	}
	return "slides/" + strings.ToLower(rand.Text())
}
