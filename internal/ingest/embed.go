package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"coverslip"
	"coverslip/encoder"
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
	state, err := in.embed(ctx, slide)
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
func (in *Ingest) embed(ctx context.Context, slide coverslip.Slide) (coverslip.State, error) {
	bag, err := in.Bag(ctx, slide)
	if there, err := found(err); err != nil {
		return "", err
	} else if !there {
		if bag, err = in.makeBag(ctx, slide); err != nil {
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
	if _, _, err := in.encode(ctx, row, files, spool, progress); err != nil {
		return nil, err
	}
	size, err := spool.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, diskError("read the bag back", spool.Name(), err)
	}
	v, err := in.aggregate(ctx, spool, size)
	return v, coverslip.At(path, err)
}

// makeBag encodes a slide and publishes its bag: first the file, then the row.
func (in *Ingest) makeBag(ctx context.Context, slide coverslip.Slide) (coverslip.Bag, error) {
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

	progress := func(done, total int) {
		if in.Progress != nil {
			in.Progress(slide.ID, done, total)
		}
	}
	plan, timings, err := in.encode(ctx, slide, files, spool, progress)
	if err != nil {
		return coverslip.Bag{}, renamed(err, slide.Name)
	}
	started := time.Now()
	size, err := spool.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = spool.Seek(0, io.SeekStart)
	}
	if err != nil {
		return coverslip.Bag{}, diskError("read the bag back", spool.Name(), err)
	}
	key := BagKey(slide.ID, in.planOf(slide), in.Mask, in.Model)
	if err := in.Blobs.Put(ctx, BagBlob(key), spool, size); err != nil {
		return coverslip.Bag{}, err
	}
	bag := coverslip.Bag{Key: key, Slide: slide.ID, Encoder: in.Model.Name, Tiles: len(plan.Tiles), Dim: in.Model.Dim, Bytes: size,
		Plan: plan.PlanParams, Timings: append(timings, coverslip.StageTime{Stage: "publish", Seconds: time.Since(started).Seconds()})}
	return bag, in.DB.PutBag(ctx, bag)
}

// encode is the pure part: the slide's files in, a bag file out.
func (in *Ingest) encode(ctx context.Context, row coverslip.Slide, files []string, out io.Writer, progress func(done, total int)) (coverslip.Plan, []coverslip.StageTime, error) {
	var times []coverslip.StageTime
	clock := time.Now()
	lap := func(stage string) {
		times = append(times, coverslip.StageTime{Stage: stage, Seconds: time.Since(clock).Seconds()})
		clock = time.Now()
	}
	slide, err := tiler.OpenFiles(ctx, row.Name, files)
	if err != nil {
		return coverslip.Plan{}, nil, err
	}
	defer slide.Close()
	lap("open")
	plan, _, err := slide.Plan(ctx, in.planOf(row), in.Mask)
	if err != nil {
		return plan, nil, err
	}
	lap("mask and plan")
	w, err := bagfile.NewWriter(out, in.metadata(row, slide, plan), plan.Tiles, in.Model.Dim)
	if err != nil {
		return plan, nil, err
	}
	spent, err := encoder.Run(ctx, in.Encoder, slide.Tiles(plan), len(plan.Tiles), in.Workers,
		func(_ int, features []float32) error { return w.Append(features) },
		func(done int) { progress(done, len(plan.Tiles)) })
	if err != nil {
		return plan, nil, err
	}
	lap("read and encode")
	times = append(times,
		coverslip.StageTime{Stage: "read, summed over workers", Seconds: spent.ReadSeconds},
		coverslip.StageTime{Stage: "encode, summed over workers", Seconds: spent.EncodeSeconds})
	return plan, times, w.Close()
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
		object, err := remote.Open(ctx, place)
		if err != nil {
			return err
		}
		same = object.Version() == version
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

func (in *Ingest) metadata(row coverslip.Slide, slide *tiler.Slide, plan coverslip.Plan) bagfile.Metadata {
	mask, err := json.Marshal(in.Mask)
	if err != nil {
		panic("ingest: mask parameters: " + err.Error()) // plain numbers and texts always marshal
	}
	return bagfile.Metadata{Slide: row.ID, SlideMPP: plan.SlideMPP.Value, SlideMPPSource: plan.SlideMPP.Source,
		Reader: tiler.Reader + "+" + tiler.Resampler, ReaderVersion: slide.Reader,
		Level: plan.Level, MPP: plan.MPP, TileSize: plan.Size, Overlap: plan.Overlap, MinTissue: plan.MinTissue, Mask: string(mask),
		Encoder: in.Model.Name, EncoderSHA256: in.Model.SHA256, Version: coverslip.Version}
}
