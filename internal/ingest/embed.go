package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"coverslip"
	"coverslip/slidessl"
	"coverslip/storage"
	"coverslip/storage/bagfile"
	"coverslip/storage/blob"
	"coverslip/storage/queue"
	"coverslip/tiler"
	"coverslip/tiler/remote"
)

// Work is what a worker of the queue does for a job: it takes the slide to its embedding, or to the
// state that says why there is none. That it waits or is being encoded is written by the queue.
func (in *Ingest) Work(ctx context.Context, job queue.Job, attempt queue.Attempt) error {
	of := *in
	of.attempt = attempt
	of.Plan.SkipBadTiles = of.Plan.SkipBadTiles || job.SkipBadTiles
	return of.work(ctx, job)
}

func (in *Ingest) work(ctx context.Context, job queue.Job) error {
	began, log := time.Now(), in.Log.With("job", in.attempt.Job, "attempt", in.attempt.Number)
	in.Log = log.With("slide", job.Slide)
	slide, err := in.DB.Slide(ctx, job.Slide)
	if err != nil {
		return in.again(err)
	}
	var embeddings []coverslip.Embedding
	state := coverslip.Failed
	if slide.Provisional {
		clock := in.stopwatch(ctx)
		if slide, err = in.identify(ctx, slide); err == nil {
			clock.lap("identify")
			in.Log = log.With("slide", slide.ID)
		}
	}
	switch {
	case err != nil:
	case job.Views != nil:
		if err := in.makeViews(ctx, slide, *job.Views); err != nil {
			return in.again(err)
		}
		in.Meter.end("views", nil)
		in.Log.Info("views made", "name", slide.Name, "took", time.Since(began))
		return nil
	default:
		state, embeddings, err = in.embed(ctx, slide, job)
	}
	switch kind := coverslip.KindOf(err); {
	case err == nil:
	case kind == coverslip.NeedsMPP:
		state = coverslip.AwaitingMPP
	case ctx.Err() != nil, kind.Retryable() && !in.attempt.Last: // the queue takes it back
		return in.again(err)
	default:
		state = coverslip.Failed
		in.Log.Warn("slide failed", "name", slide.Name, "kind", kind, "err", err)
	}
	wrote := in.write(ctx, func(tx *storage.Tx) error {
		for _, embedding := range embeddings {
			if err := tx.PutEmbedding(ctx, embedding); err != nil {
				return err
			}
		}
		return tx.SetState(ctx, slide.ID, state, err)
	})
	if wrote != nil {
		return in.again(errors.Join(err, wrote))
	}
	in.Meter.end(string(state), err)
	if state != coverslip.Failed {
		in.Log.Info("slide done", "name", slide.Name, "state", state, "took", time.Since(began))
	}
	if state == coverslip.AwaitingMPP {
		return nil // the job did what it could
	}
	return err
}

// again says that an attempt ended without a result.
func (in *Ingest) again(err error) error {
	in.Meter.end("retried", err)
	in.Log.Warn("attempt failed", "kind", coverslip.KindOf(err), "last", in.attempt.Last, "err", err)
	return err
}

// write runs do in a transaction that holds the job: what a worker was stopped over for too long is refused.
// A database that does not answer is waited for, a minute at most, because what there is to write took long.
func (in *Ingest) write(ctx context.Context, do func(*storage.Tx) error) error {
	pause := time.Second / 4
	for give := time.Now().Add(time.Minute); ; pause = min(2*pause, 5*time.Second) {
		err := in.DB.InTx(ctx, func(tx *storage.Tx) error {
			if err := in.hold(ctx, tx); err != nil {
				return err
			}
			return do(tx)
		})
		if coverslip.KindOf(err) != coverslip.Unavailable || time.Now().After(give) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func (in *Ingest) hold(ctx context.Context, tx *storage.Tx) error {
	if in.attempt.Job == 0 {
		return nil
	}
	return in.Queue.Hold(ctx, tx.Pgx(), in.attempt.Job)
}

// embed makes sure of the bag, then computes the embeddings: by the mean, which every slide gets, and by the
// aggregator that the job asks for.
func (in *Ingest) embed(ctx context.Context, slide coverslip.Slide, job queue.Job) (coverslip.State, []coverslip.Embedding, error) {
	asked, err := in.aggregator(ctx, job.Aggregator)
	if err != nil {
		return "", nil, err
	}
	bag, err := in.bag(ctx, slide, job.Budget)
	if there, err := found(err); err != nil {
		return "", nil, err
	} else if !there {
		if bag, err = in.makeBag(ctx, slide, job.Budget); err != nil {
			return "", nil, err
		}
	}
	if bag.Tiles == 0 {
		return coverslip.NoTissue, nil, nil
	}
	file, err := in.Blobs.Open(ctx, BagBlob(bag.Key))
	if err != nil {
		return "", nil, err
	}
	defer file.Close()
	clock := in.stopwatch(ctx)
	aggregators := []slidessl.Aggregator{slidessl.Mean{}}
	if asked.Model().Name != aggregators[0].Model().Name {
		aggregators = append(aggregators, asked)
	}
	var embeddings []coverslip.Embedding
	for _, a := range aggregators {
		vector, err := aggregate(ctx, a, file, file.Size())
		if err != nil {
			return "", nil, coverslip.At(slide.Name, err)
		}
		embeddings = append(embeddings, coverslip.Embedding{Slide: slide.ID, Bag: bag.Key, Encoder: in.Model.Name, Aggregator: a.Model().Name, Vector: vector})
	}
	clock.lap("aggregate")
	return coverslip.Embedded, embeddings, nil
}

// aggregator is the one a job asks for by name.
func (in *Ingest) aggregator(ctx context.Context, name string) (slidessl.Aggregator, error) {
	switch {
	case name == "" || name == in.Aggregator.Model().Name:
		return in.Aggregator, nil
	case name == (slidessl.Mean{}).Model().Name:
		return slidessl.Mean{}, nil
	case in.FindAggregator == nil:
		return nil, &coverslip.Error{Kind: coverslip.Unsupported, Op: "embed", Path: "aggregator " + name, Err: errors.New("this worker knows the mean alone"), Hint: "start a worker of this version: coverslip work"}
	}
	return in.FindAggregator(ctx, name)
}

// aggregate is the pure part of an embedding: a bag file in, the vector out.
func aggregate(ctx context.Context, a slidessl.Aggregator, file io.ReaderAt, size int64) ([]float32, error) {
	bag, err := bagfile.Open(file, size)
	if err != nil {
		return nil, err
	}
	return a.Embed(ctx, bag)
}

// Vector is the embedding of a slide that is not registered and leaves no trace: what its bytes at
// path would be embedded as.
func (in *Ingest) Vector(ctx context.Context, path string, mppOfSlide float64) ([]float32, error) {
	row := coverslip.Slide{Name: path}
	if mppOfSlide != 0 {
		row.MPP = coverslip.MPP{Value: mppOfSlide, Source: coverslip.MPPUser}
	}
	files, err := tiler.Files(ctx, path)
	if err != nil {
		return nil, err
	}
	return in.vector(ctx, row, files, nil)
}

// Region is a part of a slide, in level-0 pixels.
type Region struct{ X, Y, Width, Height int64 }

// of are the tiles of a plan whose middle lies in the region.
func (r Region) of(plan coverslip.Plan) (tiles []coverslip.Tile) {
	half := int64(plan.Span / 2)
	for _, t := range plan.Tiles {
		if x, y := t.X+half-r.X, t.Y+half-r.Y; x >= 0 && y >= 0 && x < r.Width && y < r.Height {
			tiles = append(tiles, t)
		}
	}
	return tiles
}

// RegionVector is the embedding of a part of a registered slide; it leaves no trace. A part without tissue
// is Invalid.
func (in *Ingest) RegionVector(ctx context.Context, slide coverslip.Slide, within Region) ([]float32, error) {
	files, release, err := in.Local(ctx, slide)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := unchanged(ctx, slide, files); err != nil {
		return nil, err
	}
	v, err := in.vector(ctx, slide, files, &within)
	return v, renamed(err, slide.Name)
}

// vector is the embedding of a slide, or of a part of it, from a bag that nobody else sees.
func (in *Ingest) vector(ctx context.Context, row coverslip.Slide, files []string, within *Region) ([]float32, error) {
	spool, err := os.CreateTemp(in.Spool, "bag-*")
	if err != nil {
		return nil, diskError("make room for the bag", in.Spool, err)
	}
	defer os.Remove(spool.Name()) //nolint:errcheck // swept at the next start
	defer spool.Close()
	progress := func(done, total int) {
		if in.Progress != nil {
			in.Progress("", done, total)
		}
	}
	job := reading{row: row, files: files, plan: in.planOf(row, in.Plan.Budget), within: within, progress: progress}
	plan, _, err := in.encode(ctx, job, spool)
	if err != nil {
		return nil, err
	}
	if len(plan.Tiles) == 0 {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "embed", Path: row.Name, Err: errors.New("there is no tissue on it"), Hint: "look at it: coverslip tiles SLIDE --overview tissue.png"}
	}
	size, err := spool.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, diskError("read the bag back", spool.Name(), err)
	}
	v, err := aggregate(ctx, in.Aggregator, spool, size)
	return v, coverslip.At(row.Name, err)
}

// makeBag encodes a slide and publishes its bag: first the file, then the row. Tiles that are in an
// earlier bag of the slide, under another budget, or were encoded by a process that died, are not
// encoded again.
func (in *Ingest) makeBag(ctx context.Context, slide coverslip.Slide, budget coverslip.Budget) (coverslip.Bag, error) {
	files, release, err := in.Local(ctx, slide)
	if err != nil {
		return coverslip.Bag{}, err
	}
	defer release()
	if err := in.unchanged(ctx, slide, files); err != nil {
		return coverslip.Bag{}, err
	}
	spool, err := os.CreateTemp(in.Spool, "bag-*")
	if err != nil {
		return coverslip.Bag{}, diskError("make room for the bag", in.Spool, err)
	}
	defer os.Remove(spool.Name()) //nolint:errcheck // swept at the next start
	defer spool.Close()

	plan := in.planOf(slide, budget)
	key := BagKey(slide.ID, plan, in.Mask, in.Model, nil)
	earlier, err := in.earlier(ctx, slide, plan)
	if err != nil {
		return coverslip.Bag{}, err
	}
	defer earlier.Close()
	job := reading{row: slide, files: files, plan: plan, earlier: earlier, kept: &checkpoints{in.Blobs, key, in.Model.Dim, in.checkpointRows(), in.attempt.Kept},
		progress: func(done, total int) {
			if in.Progress != nil {
				in.Progress(slide.ID, done, total)
			}
		}}
	made, timings, err := in.encode(ctx, job, spool)
	if err != nil {
		return coverslip.Bag{}, renamed(err, slide.Name)
	}
	bag := coverslip.Bag{Key: key, Slide: slide.ID, Encoder: in.Model.Name, Tiles: len(made.Tiles), Dim: in.Model.Dim,
		Plan: made.PlanParams, Timings: timings}
	if bag, err = in.publish(ctx, bag, spool); err != nil {
		return bag, err
	}
	if err := job.kept.remove(ctx); err != nil { // nobody reads them any more
		in.Log.Warn("checkpoints were left behind", "err", err)
	}
	return bag, nil
}

// publish puts the bag in the spool into the blob store, then its row into the database.
func (in *Ingest) publish(ctx context.Context, bag coverslip.Bag, spool *os.File) (coverslip.Bag, error) {
	clock := in.stopwatch(ctx)
	size, err := spool.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = spool.Seek(0, io.SeekStart)
	}
	if err != nil {
		return bag, diskError("read the bag back", spool.Name(), err)
	}
	// Whoever was stopped for too long leaves the blob of the one who took over as it is, too.
	if err := in.write(ctx, func(*storage.Tx) error { return nil }); err != nil {
		return bag, err
	}
	if err := in.putBag(ctx, bag.Key, spool, size); err != nil {
		return bag, err
	}
	bag.Bytes = size
	clock.lap("publish")
	bag.Timings = append(bag.Timings, clock.times...)
	return bag, in.write(ctx, func(tx *storage.Tx) error { return tx.PutBag(ctx, bag) })
}

// putBag keeps a bag's file. One that is there has equal bytes, by its key: who is first wins, where the store
// can tell.
func (in *Ingest) putBag(ctx context.Context, key string, spool *os.File, size int64) error {
	store, ok := in.Blobs.(interface {
		Create(ctx context.Context, key string, file *os.File, size int64) error
	})
	if !ok {
		return in.Blobs.Put(ctx, BagBlob(key), spool, size)
	}
	err := store.Create(ctx, BagBlob(key), spool, size)
	switch coverslip.KindOf(err) {
	case coverslip.Conflict:
		there, err := in.Blobs.Stat(ctx, BagBlob(key))
		if err == nil && there.Size == size || err != nil && coverslip.KindOf(err) != coverslip.NotFound {
			return err
		}
	case coverslip.Unsupported:
	default:
		return err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return diskError("read the bag back", spool.Name(), err)
	}
	return in.Blobs.Put(ctx, BagBlob(key), spool, size)
}

// Local gives paths to the slide's files. A blob in a folder has one; any other is copied first. The
// caller calls release when it is done with them.
func (in *Ingest) Local(ctx context.Context, slide coverslip.Slide) (files []string, release func(), err error) {
	release = func() {}
	key, isBlob := strings.CutPrefix(slide.Location, "blob:")
	if !isBlob {
		place, _, _ := strings.Cut(slide.Location, versionMark)
		files, err = tiler.Files(ctx, place)
		return files, release, err
	}
	if folder, ok := in.Blobs.(interface {
		Path(key string) (string, error)
	}); ok {
		path, err := folder.Path(key)
		return []string{path}, release, err
	}
	src, err := in.Blobs.Open(ctx, key)
	if err != nil {
		return nil, nil, err
	}
	defer src.Close()
	path, release, err := stage(ctx, src, in.Spool)
	return []string{path}, release, err
}

func stage(ctx context.Context, src blob.Blob, spool string) (path string, release func(), err error) {
	f, err := os.CreateTemp(spool, "slide-*")
	if err != nil {
		return "", nil, diskError("make room for the slide", spool, err)
	}
	release = func() { os.Remove(f.Name()) } //nolint:errcheck,gosec // swept at the next start
	_, _, err = digest(ctx, io.NewSectionReader(src, 0, src.Size()), f)
	if e := f.Close(); err == nil && e != nil {
		err = diskError("copy the slide", spool, e)
	}
	if err != nil {
		release()
		return "", nil, err
	}
	return f.Name(), release, nil
}

// unchanged refuses a slide outside the blob store that is no longer the one that was registered: its
// embedding would carry another slide's id. A file is read again; a bucket tells versions apart.
func (in *Ingest) unchanged(ctx context.Context, slide coverslip.Slide, files []string) error {
	if in.read {
		return nil
	}
	return unchanged(ctx, slide, files)
}

func unchanged(ctx context.Context, slide coverslip.Slide, files []string) error {
	if strings.HasPrefix(slide.Location, "blob:") {
		return nil
	}
	same := false
	if place, version, _ := strings.Cut(slide.Location, versionMark); remote.Is(place) {
		var versions []string
		for _, address := range files {
			object, err := remote.Open(ctx, address)
			if err != nil {
				return err
			}
			versions = append(versions, object.Version())
		}
		same = versionOf(versions) == version
	} else {
		is, err := identify(ctx, files, nil)
		if err != nil {
			return err
		}
		same = is.id == slide.ID
	}
	if !same {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Path: remote.Shown(slide.Location), Err: fmt.Errorf("its bytes changed since it was registered as %s", slide.ID.Short()), Hint: "ingest it again, as a new slide"}
	}
	return nil
}
