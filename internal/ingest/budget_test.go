package ingest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"coverslip"
	"coverslip/encoder"
	"coverslip/internal/ingest"
	"coverslip/storage/bagfile"
	"coverslip/storage/queue"
)

// counting counts the tiles an encoder encodes, and ends the run when it has encoded so many.
type counting struct {
	encoder.Encoder
	tiles atomic.Int64
	after int64  // 0: never
	stop  func() // then
}

func (c *counting) Encode(ctx context.Context, dst []float32, pixels []uint8, n int) error {
	if c.after > 0 && c.tiles.Load() >= c.after {
		c.stop()
		return ctx.Err()
	}
	c.tiles.Add(int64(n))
	return c.Encoder.Encode(ctx, dst, pixels, n)
}

// bagUnder does the job of the bundled slide under a budget, and returns its bag, the bytes of that,
// and how many tiles were encoded for it.
func (b *bench) bagUnder(t *testing.T, budget coverslip.Budget) (coverslip.Bag, []byte, int) {
	t.Helper()
	b.Plan.Budget = budget
	out, err := b.Register(t.Context(), bundled, 0)
	if err != nil {
		t.Fatal(err)
	}
	count := &counting{Encoder: b.Encoder}
	b.Encoder = count
	defer func() { b.Encoder = count.Encoder }()
	if err := b.Work(t.Context(), queue.Job{Slide: out.Slide.ID, Budget: budget}, queue.Attempt{Number: 1, Last: true}); err != nil {
		t.Fatal(err)
	}
	bag, err := b.Bag(t.Context(), out.Slide)
	if err != nil {
		t.Fatal(err)
	}
	return bag, b.file(t, bag), int(count.tiles.Load())
}

func (b *bench) file(t *testing.T, bag coverslip.Bag) []byte {
	t.Helper()
	f, err := b.Blobs.Open(t.Context(), ingest.BagBlob(bag.Key))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestBudgetIsContinuedWithoutEncodingAgain(t *testing.T) {
	whole, wholeFile, n := newBench(t).bagUnder(t, coverslip.Budget{})
	b := newBench(t)
	first, firstFile, encoded := b.bagUnder(t, coverslip.Budget{Tiles: 16, Seed: 3})
	if first.Tiles != 16 || encoded != 16 {
		t.Fatalf("a budget of 16 gives %d tiles, %d encoded", first.Tiles, encoded)
	}
	second, secondFile, encoded := b.bagUnder(t, coverslip.Budget{Tiles: 40, Seed: 3})
	if second.Tiles != 40 || encoded != 24 {
		t.Fatalf("a budget of 40 after that of 16: %d tiles, %d encoded", second.Tiles, encoded)
	}
	short, long := openBag(t, firstFile), openBag(t, secondFile)
	if f, g := features(t, short, 16), features(t, long, 16); !bytes.Equal(f, g) {
		t.Error("the longer bag does not begin with the shorter")
	}
	if m := long.Metadata(); m.Found != whole.Tiles || m.Budget != `{"tiles":40,"seed":3}` {
		t.Errorf("the bag says %d tiles were found, budget %s", m.Found, m.Budget)
	}
	all, allFile, encoded := b.bagUnder(t, coverslip.Budget{})
	if all.Tiles != n || encoded != n-40 {
		t.Errorf("all of %d after 40: %d tiles, %d encoded", n, all.Tiles, encoded)
	}
	if !bytes.Equal(allFile, wholeFile) {
		t.Error("the bag that was continued is not the one made at once")
	}
	if bag, _, encoded := b.bagUnder(t, coverslip.Budget{Tiles: 8, Seed: 99}); encoded != 0 || bag.Key != all.Key {
		t.Errorf("where all tiles are encoded, a budget gives a bag of %d, %d encoded", bag.Tiles, encoded)
	}
}

func TestBudgetStopsWhenTheEmbeddingIsKnown(t *testing.T) {
	b := newBench(t)
	b.Plan.Size, b.Plan.MPP = 224, 0.25 // more tiles
	loose, looseFile, _ := b.bagUnder(t, coverslip.Budget{Tolerance: 0.9})
	if loose.Tiles != 64 {
		t.Errorf("a tolerance that anything meets takes %d tiles, not the least there are", loose.Tiles)
	}
	tight, tightFile, encoded := b.bagUnder(t, coverslip.Budget{Tolerance: 0.004})
	if tight.Tiles <= 64 || tight.Tiles >= openBag(t, tightFile).Metadata().Found || encoded != tight.Tiles-64 {
		t.Errorf("a tight tolerance takes %d tiles of %d, %d encoded anew", tight.Tiles, openBag(t, tightFile).Metadata().Found, encoded)
	}
	if !bytes.Equal(features(t, openBag(t, looseFile), 64), features(t, openBag(t, tightFile), 64)) {
		t.Error("the longer bag does not begin with the shorter")
	}
	one := newBench(t)
	one.Plan.Size, one.Plan.MPP, one.Workers = 224, 0.25, 1
	if _, file, _ := one.bagUnder(t, coverslip.Budget{Tolerance: 0.004}); !bytes.Equal(file, tightFile) {
		t.Error("the number of workers changes where it stops")
	}
}

func TestFault19AtMostOneCheckpointIsEncodedAgain(t *testing.T) {
	_, want, n := newBench(t).bagUnder(t, coverslip.Budget{})
	b := newBench(t)
	// Of one worker at most three batches, 24 tiles, are encoded and not handed over yet when it stops.
	b.Checkpoint, b.Workers = 16, 1
	out, err := b.Register(t.Context(), bundled, 0)
	if err != nil {
		t.Fatal(err)
	}
	whole := b.Encoder
	ctx, cancel := context.WithCancel(t.Context())
	b.Encoder = &counting{Encoder: whole, after: 48, stop: cancel}
	if err := b.Work(ctx, queue.Job{Slide: out.Slide.ID}, queue.Attempt{Number: 1}); !errors.Is(err, context.Canceled) {
		t.Fatalf("the worker did not stop: %v", err)
	}
	kept := len(b.blobs(t))
	if kept == 0 {
		t.Fatal("no checkpoint was kept")
	}
	last := &counting{Encoder: whole}
	b.Encoder = last
	if err := b.Work(t.Context(), queue.Job{Slide: out.Slide.ID}, queue.Attempt{Number: 2, Last: true}); err != nil {
		t.Fatal(err)
	}
	if got := int(last.tiles.Load()); got != n-16*kept {
		t.Errorf("%d of %d tiles encoded after %d checkpoints of 16", got, n, kept)
	}
	bag, err := b.Bag(t.Context(), out.Slide)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.file(t, bag), want) {
		t.Error("the bag is not that of a run without a stop")
	}
	if left := b.blobs(t); len(left) != 1 {
		t.Errorf("left in the store: %v", left)
	}
}

func openBag(t *testing.T, file []byte) *bagfile.Reader {
	t.Helper()
	r, err := bagfile.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// features are the first n rows of a bag, with their places, as bytes.
func features(t *testing.T, r *bagfile.Reader, n int) []byte {
	t.Helper()
	f, c := make([]float32, n*r.Dim()), make([]int64, 2*n)
	if err := errors.Join(r.Features(f, 0, n), r.Coords(c, 0, n)); err != nil {
		t.Fatal(err)
	}
	return fmt.Append(nil, c, f)
}
