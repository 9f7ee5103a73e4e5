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
	"coverslip/storage/bagfile"
	"coverslip/storage/blob"
	"coverslip/storage/queue"
	"coverslip/tiler"
	"coverslip/tiler/remote"
)

// Work is what a worker of the queue does for a job: it takes the slide to its embedding, or to the
// state that says why there is none. That it waits or is being encoded is written by the queue.
func (in *Ingest) Work(ctx context.Context, job queue.Job, attempt queue.Attempt) error {
	slide, err := in.DB.Slide(ctx, job.Slide)
	if err != nil {
		return err
	}
	if job.SkipBadTiles {
		tolerant := *in
		tolerant.Plan.SkipBadTiles = true
		in = &tolerant
	}
	if job.Views != nil {
		return in.makeViews(ctx, slide, *job.Views)
	}
	state, err := in.embed(ctx, slide, job.Budget)
	switch kind := coverslip.KindOf(err); {
	case err == nil:
		return in.DB.SetState(ctx, slide.ID, state, "")
	case kind == coverslip.NeedsMPP:
		return in.DB.SetState(ctx, slide.ID, coverslip.AwaitingMPP, err.Error())
	case ctx.Err() != nil, kind.Retryable() && !attempt.Last: // the queue takes it back
		return err
	default:
		in.Log.Warn("slide failed", "slide", slide.ID, "name", slide.Name, "kind", kind, "err", err)
		return errors.Join(err, in.DB.SetState(ctx, slide.ID, coverslip.Failed, err.Error()))
	}
}

// embed makes sure of the bag, then of the embedding.
func (in *Ingest) embed(ctx context.Context, slide coverslip.Slide, budget coverslip.Budget) (coverslip.State, error) {
	bag, err := in.bag(ctx, slide, budget)
	if there, err := found(err); err != nil {
		return "", err
	} else if !there {
		if bag, err = in.makeBag(ctx, slide, budget); err != nil {
			return "", err
		}
	}
	if bag.Tiles == 0 {
		return coverslip.NoTissue, nil
	}
	file, err := in.Blobs.Open(ctx, BagBlob(bag.Key))
	if err != nil {
		return "", err
	}
	defer file.Close()
	vector, err := in.aggregate(ctx, file, file.Size())
	if err != nil {
		return "", coverslip.At(slide.Name, err)
	}
	return coverslip.Embedded, in.DB.PutEmbedding(ctx, coverslip.Embedding{Slide: slide.ID, Bag: bag.Key,
		Encoder: in.Model.Name, Aggregator: in.Aggregator.Model().Name, Vector: vector})
}

// aggregate is the pure part of an embedding: a bag file in, the vector out.
func (in *Ingest) aggregate(ctx context.Context, file io.ReaderAt, size int64) ([]float32, error) {
	bag, err := bagfile.Open(file, size)
	if err != nil {
		return nil, err
	}
	return in.Aggregator.Embed(ctx, bag)
}

// Vector is the embedding of a slide that is not registered and leaves no trace: what its bytes at
// path would be embedded as.
func (in *Ingest) Vector(ctx context.Context, path string, mppOfSlide float64) ([]float32, error) {
	spool, err := os.CreateTemp(in.Spool, "bag-*")
	if err != nil {
		return nil, diskError("make room for the bag", in.Spool, err)
	}
	defer os.Remove(spool.Name()) //nolint:errcheck // swept at the next start
	defer spool.Close()
	row := coverslip.Slide{Name: path}
	if mppOfSlide != 0 {
		row.MPP = coverslip.MPP{Value: mppOfSlide, Source: coverslip.MPPUser}
	}
	progress := func(done, total int) {
		if in.Progress != nil {
			in.Progress("", done, total)
		}
	}
	files, err := tiler.Files(ctx, path)
	if err != nil {
		return nil, err
	}
	job := reading{row: row, files: files, plan: in.planOf(row, in.Plan.Budget), progress: progress}
	if _, _, err := in.encode(ctx, job, spool); err != nil {
		return nil, err
	}
	size, err := spool.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, diskError("read the bag back", spool.Name(), err)
	}
	v, err := in.aggregate(ctx, spool, size)
	return v, coverslip.At(path, err)
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
	if err := unchanged(ctx, slide, files); err != nil {
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
	job := reading{row: slide, files: files, plan: plan, earlier: earlier, kept: &checkpoints{in.Blobs, key, in.Model.Dim, in.checkpointRows()},
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
		in.Log.Warn("checkpoints were left behind", "slide", slide.ID, "err", err)
	}
	return bag, nil
}

// publish puts the bag in the spool into the blob store, then its row into the database.
func (in *Ingest) publish(ctx context.Context, bag coverslip.Bag, spool *os.File) (coverslip.Bag, error) {
	started := time.Now()
	size, err := spool.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = spool.Seek(0, io.SeekStart)
	}
	if err != nil {
		return bag, diskError("read the bag back", spool.Name(), err)
	}
	if err := in.Blobs.Put(ctx, BagBlob(bag.Key), spool, size); err != nil {
		return bag, err
	}
	bag.Bytes = size
	bag.Timings = append(bag.Timings, coverslip.StageTime{Stage: "publish", Seconds: time.Since(started).Seconds()})
	return bag, in.DB.PutBag(ctx, bag)
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
	_, _, err = hash(ctx, io.NewSectionReader(src, 0, src.Size()), f)
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
		id, _, _, err := identify(ctx, files)
		if err != nil {
			return err
		}
		same = id == slide.ID
	}
	if !same {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Path: remote.Shown(slide.Location), Err: fmt.Errorf("its bytes changed since it was registered as %s", slide.ID.Short()), Hint: "ingest it again, as a new slide"}
	}
	return nil
}
