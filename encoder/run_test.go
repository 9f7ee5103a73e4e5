package encoder_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coverslip"
	"coverslip/encoder"
)

func TestEveryTileOnceInPlanOrder(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 100} {
		for _, workers := range []int{0, 1, 4, 50} {
			var got []float32
			next, told := 0, 0
			timings, err := encoder.Run(context.Background(), &sum{}, numbers{}, n, workers,
				func(first int, features []float32) error {
					if first != next || first%encoder.BatchSize != 0 {
						t.Errorf("%d tiles, %d workers: tiles from %d delivered after %d", n, workers, first, next)
					}
					next += len(features) / 2
					got = append(got, features...)
					return nil
				},
				func(done int) {
					if done <= told {
						t.Errorf("progress went from %d to %d", told, done)
					}
					told = done
				})
			if err != nil {
				t.Fatal(err)
			}
			var want []float32
			for i := range n {
				want = append(want, float32(i), float32(2*i))
			}
			if !slices.Equal(got, want) || told != n {
				t.Errorf("%d tiles, %d workers: got %v, progress %d", n, workers, got, told)
			}
			if n > 0 && (timings.ReadSeconds <= 0 || timings.EncodeSeconds <= 0) {
				t.Errorf("no time spent: %+v", timings)
			}
		}
	}
}

// Batch 0 is held back until every other batch the window allows is encoded.
func TestLateBatchKeepsOrder(t *testing.T) {
	const n, workers = 200, 2
	others := make(chan struct{})
	var started atomic.Int64
	enc := &sum{before: func(_ context.Context, pixels []uint8) {
		if pixels[0] == 0 { // tile 0
			<-others
		} else if started.Add(1) == 3*workers-1 {
			close(others)
		}
	}}
	next := 0
	if _, err := encoder.Run(context.Background(), enc, numbers{}, n, workers, func(first int, features []float32) error {
		if first != next || features[0] != float32(first) {
			t.Errorf("got tile %v at %d, want %d", features[0], first, next)
		}
		next += encoder.BatchSize
		return nil
	}, nil); err != nil {
		t.Fatal(err)
	}
}

// With the sink stuck, reading stops at three batches per worker.
func TestSlowSinkBoundsMemory(t *testing.T) {
	const n, workers = 1000, 2
	const limit = 3 * workers * encoder.BatchSize
	var reads atomic.Int64
	full := make(chan struct{})
	src := reader(func(_ context.Context, dst []uint8, i int) error {
		if reads.Add(1) == limit {
			close(full)
		}
		return numbers{}.ReadTile(context.Background(), dst, i)
	})
	_, err := encoder.Run(context.Background(), &sum{}, src, n, workers, func(first int, _ []float32) error {
		if first == 0 {
			<-full
			for range 1000 { // let readers that are not held back run on
				runtime.Gosched()
			}
			if got := reads.Load(); got != limit {
				t.Errorf("%d tiles read, the bound is %d", got, limit)
			}
		}
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// A read that waits for the network does not keep the others waiting: four per worker are under
// way at once, and while a batch is encoded too.
func TestReadsOverlapEachOtherAndEncoding(t *testing.T) {
	const workers = 2
	var waiting sync.WaitGroup
	waiting.Add(4*workers + 1)
	meet := func() { waiting.Done(); waiting.Wait() }
	var once sync.Once
	src := reader(func(ctx context.Context, dst []uint8, i int) error {
		if 8 <= i && i < 8+4*workers {
			meet()
		}
		return numbers{}.ReadTile(ctx, dst, i)
	})
	enc := &sum{before: func(context.Context, []uint8) { once.Do(meet) }}
	if _, err := encoder.Run(context.Background(), enc, src, 64, workers, func(int, []float32) error { return nil }, nil); err != nil {
		t.Fatal(err)
	}
}

func TestErrorNamesTile(t *testing.T) {
	cause := &coverslip.Error{Kind: coverslip.Invalid, Op: "read level 2", Path: "a.svs", Err: errors.New("the file ends early"), Hint: "upload it again"}
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		src  encoder.TileReader
		enc  encoder.Encoder
		sink func(int, []float32) error
		want string
		kind coverslip.Kind
		is   error
	}{
		"read": {
			src:  failing(13, cause),
			want: "a.svs: read tile 13: read level 2: the file ends early (upload it again)",
			kind: coverslip.Invalid, is: cause.Err,
		},
		"read, foreign": {
			src:  failing(13, broken),
			want: "read tile 13: broken",
			kind: coverslip.Internal, is: broken,
		},
		"encode a row": {
			enc:  &sum{fail: from(8, &coverslip.Error{Kind: coverslip.Invalid, Op: "run it", Err: &encoder.RowError{Row: 5, Err: broken}})},
			want: "encode tile 13: run it: row 5: broken",
			kind: coverslip.Invalid, is: broken,
		},
		"encode a batch": {
			enc:  &sum{fail: from(16, broken)},
			want: "encode tiles 16 to 19: broken",
			kind: coverslip.Internal, is: broken,
		},
		"sink": {
			sink: func(first int, _ []float32) error { return from(8, broken)(first) },
			want: "keep features of tiles 8 to 15: broken",
			kind: coverslip.Internal, is: broken,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var src encoder.TileReader = numbers{}
			if c.src != nil {
				src = c.src
			}
			var enc encoder.Encoder = &sum{}
			if c.enc != nil {
				enc = c.enc
			}
			sink := func(int, []float32) error { return nil }
			if c.sink != nil {
				sink = c.sink
			}
			before := runtime.NumGoroutine()
			_, err := encoder.Run(context.Background(), enc, src, 20, 2, sink, nil)
			if fmt.Sprint(err) != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if coverslip.KindOf(err) != c.kind || !errors.Is(err, c.is) {
				t.Errorf("kind %s or cause lost in %#v", coverslip.KindOf(err), err)
			}
			// A goroutine that a WaitGroup has seen the end of is counted until it
			// has run its last instructions.
			for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
				}
			}
		})
	}
}

func TestCancelEndsRun(t *testing.T) {
	why := errors.New("the user pressed ^C")
	stages := map[string]func(cancel func()) (encoder.Encoder, encoder.TileReader, func(int, []float32) error){
		"while reading": func(cancel func()) (encoder.Encoder, encoder.TileReader, func(int, []float32) error) {
			return &sum{}, reader(func(ctx context.Context, _ []uint8, i int) error {
				if i == 20 {
					cancel()
				}
				if i >= 20 {
					<-ctx.Done()
					return fmt.Errorf("tile %d: %w", i, ctx.Err())
				}
				return nil
			}), func(int, []float32) error { return nil }
		},
		"while encoding": func(cancel func()) (encoder.Encoder, encoder.TileReader, func(int, []float32) error) {
			return &sum{before: func(ctx context.Context, _ []uint8) { cancel(); <-ctx.Done() }}, numbers{},
				func(int, []float32) error { return nil }
		},
		"while delivering": func(cancel func()) (encoder.Encoder, encoder.TileReader, func(int, []float32) error) {
			return &sum{}, numbers{}, func(int, []float32) error { cancel(); return nil }
		},
	}
	for name, stage := range stages {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			enc, src, sink := stage(func() { cancel(why) })
			_, err := encoder.Run(ctx, enc, src, 10000, 2, sink, nil)
			if coverslip.KindOf(err) != coverslip.Canceled || !errors.Is(err, why) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCallerMayNameTheFile(t *testing.T) {
	_, err := encoder.Run(context.Background(), &sum{},
		failing(0, &coverslip.Error{Kind: coverslip.Unavailable, Op: "fetch", Hint: "try again"}), 1, 1,
		func(int, []float32) error { return nil }, nil)
	if !strings.Contains(fmt.Sprint(coverslip.At("s3://b/a.svs", err)), "s3://b/a.svs: read tile 0: fetch (try again)") {
		t.Error(err)
	}
}

// --- what the tests stand on ---

// numbers gives tile i, one pixel, as i mod 200 in red and i/200 in green.
type numbers struct{}

func (numbers) ReadTile(_ context.Context, dst []uint8, i int) error {
	dst[0], dst[1], dst[2] = uint8(i%200), uint8(i/200), 7
	return nil
}

type reader func(ctx context.Context, dst []uint8, i int) error

func (r reader) ReadTile(ctx context.Context, dst []uint8, i int) error { return r(ctx, dst, i) }

func failing(tile int, err error) encoder.TileReader {
	return reader(func(ctx context.Context, dst []uint8, i int) error {
		if i == tile {
			return err
		}
		return numbers{}.ReadTile(ctx, dst, i)
	})
}

// from fails with err for the batch whose first tile is tile.
func from(tile int, err error) func(first int) error {
	return func(first int) error {
		if first == tile {
			return err
		}
		return nil
	}
}

// sum undoes numbers: the features of tile i are i and 2i.
type sum struct {
	before func(ctx context.Context, pixels []uint8)
	fail   func(first int) error
}

func (*sum) Model() coverslip.Model { return coverslip.Model{TileSize: 1, Dim: 2} }

func (s *sum) Encode(ctx context.Context, dst []float32, pixels []uint8, n int) error {
	if s.before != nil {
		s.before(ctx, pixels)
	}
	if len(pixels) != n*3 || len(dst) != n*2 {
		return fmt.Errorf("%d tiles with %d pixels and %d features", n, len(pixels), len(dst))
	}
	for i := range n {
		v := float32(pixels[i*3]) + 200*float32(pixels[i*3+1])
		dst[2*i], dst[2*i+1] = v, 2*v
	}
	if s.fail != nil {
		return s.fail(int(dst[0]))
	}
	return nil
}
