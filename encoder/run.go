package encoder

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"coverslip"
)

// BatchSize is the number of tiles encoded in one call. Eight run as fast as thirty-two on a CPU
// core, with less memory.
const BatchSize = 8

// readersPerWorker is how many tiles are being read for each worker that encodes. Readers of a
// local slide mostly wait for a free buffer; readers of a distant one wait for the network, and
// with several of them the core has work meanwhile.
const readersPerWorker = 4

// batchesPerWorker bounds memory: one batch being encoded, one ready, one being read or waiting
// for an earlier one to be delivered.
const batchesPerWorker = 3

// TileReader gives the pixels of the tiles of a plan.
//
// ReadTile fills dst, [S, S, 3] RGB rows of uint8, with tile i. Concurrent calls are safe. An
// error ends the run; retrying what may pass is the reader's own business.
type TileReader interface {
	ReadTile(ctx context.Context, dst []uint8, i int) error
}

// Timings are wall times added up over the goroutines of a run; reading and encoding overlap, so
// that their sum may exceed the clock.
type Timings struct {
	ReadSeconds   float64
	EncodeSeconds float64
}

// Run encodes tiles 0 to n-1 of src and hands their features to sink in that order: features is
// [m, D] for tiles first to first+m-1 and is reused after sink returns. sink and progress, which
// is told how many tiles are delivered and may be nil, are never called concurrently.
//
// Batch b holds tiles 8b to 8b+7 whatever the number of workers, so that equal input gives equal
// features. workers encode at once, one per core if it is not positive, while readers fill the
// next batches; memory is that of 3 batches per worker. The first error stops everything, names
// its tile, and no goroutine is left when Run returns.
func Run(ctx context.Context, enc Encoder, src TileReader, n, workers int,
	sink func(first int, features []float32) error, progress func(done int)) (Timings, error) {
	if n <= 0 {
		return Timings{}, nil
	}
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	model := enc.Model()
	r := run{
		enc:       enc,
		src:       src,
		tiles:     n,
		batches:   (n + BatchSize - 1) / BatchSize,
		tileBytes: model.TileSize * model.TileSize * 3,
		dim:       model.Dim,
	}
	workers = min(workers, r.batches)
	r.window = min(workers*batchesPerWorker, r.batches)
	r.free = make(chan *batch, r.window)
	r.tasks = make(chan task)
	r.read = make(chan *batch, r.window)
	r.encoded = make(chan *batch, r.window)
	for range r.window {
		r.free <- &batch{
			pixels:   make([]uint8, BatchSize*r.tileBytes),
			features: make([]float32, BatchSize*r.dim),
		}
	}

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.plan(gctx) })
	for range workers * readersPerWorker {
		g.Go(func() error { return r.readTiles(gctx) })
	}
	for range workers {
		g.Go(func() error { return r.encodeBatches(gctx) })
	}
	g.Go(func() error { return r.deliver(gctx, sink, progress) })
	err := g.Wait()
	timings := Timings{
		ReadSeconds:   time.Duration(r.readTime.Load()).Seconds(),
		EncodeSeconds: time.Duration(r.encodeTime.Load()).Seconds(),
	}
	if err != nil && ctx.Err() != nil { // what failed, failed because of that
		err = &coverslip.Error{Kind: coverslip.Canceled, Op: "encode tiles", Err: context.Cause(ctx)}
	}
	return timings, err
}

// run is a ring of four stages: plan takes a free batch and lists its tiles, readTiles fill it,
// encodeBatches turn it into features, deliver puts batches back in order, empties them into the
// sink and frees them. Batches get their buffers in plan order, so the next one to deliver always
// has one and the ring cannot lock.
type run struct {
	enc       Encoder
	src       TileReader
	tiles     int
	batches   int
	window    int // batches that exist
	tileBytes int
	dim       int

	free    chan *batch
	tasks   chan task
	read    chan *batch
	encoded chan *batch

	batchesRead    atomic.Int64
	batchesEncoded atomic.Int64
	readTime       atomic.Int64 // nanoseconds
	encodeTime     atomic.Int64
}

type batch struct {
	index    int // position in the plan: tiles index*BatchSize and on
	size     int
	missing  atomic.Int64 // tiles not read yet
	pixels   []uint8
	features []float32
}

// task is one tile to read: row of batch.
type task struct {
	batch *batch
	row   int
}

func (r *run) plan(ctx context.Context) error {
	defer close(r.tasks)
	for index := range r.batches {
		b, err := receive(ctx, r.free)
		if err != nil {
			return err
		}
		b.index = index
		b.size = min(BatchSize, r.tiles-index*BatchSize)
		b.missing.Store(int64(b.size))
		for row := range b.size {
			select {
			case r.tasks <- task{b, row}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

func (r *run) readTiles(ctx context.Context) error {
	for t := range r.tasks {
		if err := ctx.Err(); err != nil {
			return err
		}
		tile := t.batch.index*BatchSize + t.row
		began := time.Now()
		err := r.src.ReadTile(ctx, t.batch.pixels[t.row*r.tileBytes:][:r.tileBytes], tile)
		r.readTime.Add(int64(time.Since(began)))
		if err != nil {
			return coverslip.Doing(fmt.Sprintf("read tile %d", tile), err)
		}
		if t.batch.missing.Add(-1) == 0 {
			r.read <- t.batch // has room for every batch there is
			if r.batchesRead.Add(1) == int64(r.batches) {
				close(r.read)
			}
		}
	}
	return nil
}

func (r *run) encodeBatches(ctx context.Context) error {
	for {
		b, err := receive(ctx, r.read)
		if err != nil || b == nil {
			return err
		}
		began := time.Now()
		err = r.enc.Encode(ctx, b.features[:b.size*r.dim], b.pixels[:b.size*r.tileBytes], b.size)
		r.encodeTime.Add(int64(time.Since(began)))
		if err != nil {
			return coverslip.Doing(where(b, err), err)
		}
		r.encoded <- b // has room for every batch there is
		if r.batchesEncoded.Add(1) == int64(r.batches) {
			close(r.encoded)
		}
	}
}

func (r *run) deliver(ctx context.Context, sink func(int, []float32) error, progress func(int)) error {
	early := make([]*batch, r.window) // encoded before their turn, by index modulo window
	next := 0
	for next < r.batches {
		b, err := receive(ctx, r.encoded)
		if err != nil {
			return err
		}
		early[b.index%r.window] = b
		for b = early[next%r.window]; b != nil; b = early[next%r.window] {
			early[next%r.window] = nil
			first := b.index * BatchSize
			last := first + b.size - 1
			if err := sink(first, b.features[:b.size*r.dim]); err != nil {
				return coverslip.Doing(fmt.Sprintf("keep features of tiles %d to %d", first, last), err)
			}
			if progress != nil {
				progress(last + 1)
			}
			next++
			r.free <- b
		}
	}
	return nil
}

// receive takes the next batch, nil once c is closed.
func receive(ctx context.Context, c <-chan *batch) (*batch, error) {
	select {
	case b := <-c:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// where names the tile that could not be encoded, or the tiles where the encoder does not say.
func where(b *batch, err error) string {
	first := b.index * BatchSize
	var row *RowError
	if errors.As(err, &row) {
		return fmt.Sprintf("encode tile %d", first+row.Row)
	}
	return fmt.Sprintf("encode tiles %d to %d", first, first+b.size-1)
}
