package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"coverslip"
)

// file is a large file of which byte i is i/1000, and counts what is read of it.
type file struct {
	size            int64
	requests, bytes atomic.Int64
	gate            chan struct{} // when not nil, each request waits for a token
	fail            atomic.Bool
}

func (f *file) Size() int64 { return f.size }

func (f *file) ReadRange(ctx context.Context, dst []byte, off int64) error {
	f.requests.Add(1)
	f.bytes.Add(int64(len(dst)))
	if f.gate != nil {
		select {
		case <-f.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if f.fail.Load() {
		return &coverslip.Error{Kind: coverslip.Unavailable, Op: "read"}
	}
	fill(dst, off)
	return nil
}

func fill(dst []byte, off int64) {
	for i := range dst {
		dst[i] = byte((off + int64(i)) / 1000)
	}
}

func (a *Ahead) mustRead(t *testing.T, r Range) {
	t.Helper()
	got, want := make([]byte, r.N), make([]byte, r.N)
	fill(want, r.Off)
	if err := a.ReadRange(t.Context(), got, r.Off); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%+v: right bytes %v, error %v", r, bytes.Equal(got, want), err)
	}
}

func newAhead(t *testing.T, f *file) *Ahead {
	a := NewAhead(f)
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func TestAnnouncedRangesAreMerged(t *testing.T) {
	f := &file{size: 1 << 30}
	a := newAhead(t, f)
	const k = 1 << 10
	group := []Range{{5000 * k, 10 * k}, {0, 10 * k}, {10 * k, 10 * k}, {80 * k, 4 * k}, {149 * k, 4 * k}, {0, 10 * k}}
	a.Announce([][]Range{group, {{10 * k, 5 * k}}})
	for _, r := range group {
		a.mustRead(t, r)
	}
	a.mustRead(t, Range{10 * k, 5 * k})
	// 0 to 84 KiB with a gap of 60, 149 to 153 after one of 65, and the far one.
	if f.requests.Load() != 3 || f.bytes.Load() != (84+4+10)*k {
		t.Errorf("%d requests of %d KiB", f.requests.Load(), f.bytes.Load()>>10)
	}
	a.mustRead(t, Range{3000 * k, 7})
	if f.requests.Load() != 4 {
		t.Error("a range that nobody announced is read by itself")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	f := &file{size: 1 << 40, gate: make(chan struct{}, 10_000)}
	a := newAhead(t, f)
	var rows [][]Range
	for row := range int64(40) {
		var group []Range
		for i := range int64(100) {
			group = append(group, Range{row*100<<16 + i<<16, 1 << 16})
		}
		rows = append(rows, group)
	}
	a.Announce(rows)
	for range cap(f.gate) {
		f.gate <- struct{}{}
	}
	var readers sync.WaitGroup
	turn := make(chan Range)
	for range 8 {
		readers.Go(func() {
			for r := range turn {
				a.mustRead(t, r)
				a.mu.Lock()
				if a.held > maxAhead+8*maxBlock || a.kept > maxSpent {
					t.Errorf("%d bytes ahead, %d behind", a.held, a.kept)
				}
				a.mu.Unlock()
			}
		})
	}
	for _, group := range rows {
		for _, r := range group {
			turn <- r
		}
	}
	close(turn)
	readers.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held != 0 {
		t.Errorf("%d bytes held after all was read", a.held)
	}
	if need := int64(40 * 100 << 16); f.bytes.Load() != need {
		t.Errorf("%d bytes read of %d", f.bytes.Load(), need)
	}
}

func TestReadingInAnotherOrderIsRightAndBounded(t *testing.T) {
	f := &file{size: 1 << 40}
	a := newAhead(t, f)
	var rows [][]Range
	for row := range int64(100) {
		rows = append(rows, []Range{{row << 20, 1000}, {row<<20 + 500_000, 1000}, {row<<20 + 1_000_000, 1000}})
	}
	for i := range rows {
		for j := range rows[i] {
			rows[i][j].N = 1 << 16 // nearly all gaps are too wide to merge
		}
	}
	a.Announce(rows)
	for i := len(rows) - 1; i >= 0; i-- {
		a.mustRead(t, rows[i][1])
		a.mu.Lock()
		if a.held > maxAhead+maxBlock {
			t.Errorf("%d bytes held", a.held)
		}
		a.mu.Unlock()
	}
	for i := range rows {
		a.mustRead(t, rows[i][0])
	}
}

func TestAFailureIsTheReadersAndPasses(t *testing.T) {
	f := &file{size: 1 << 20}
	f.fail.Store(true)
	a := newAhead(t, f)
	r := Range{1000, 1000}
	a.Announce([][]Range{{r}})
	if err := a.ReadRange(t.Context(), make([]byte, r.N), r.Off); coverslip.KindOf(err) != coverslip.Unavailable {
		t.Errorf("got %v", err)
	}
	f.fail.Store(false)
	a.mustRead(t, r)
}

func TestAReaderThatStopsLeavesTheRestAlone(t *testing.T) {
	f := &file{size: 1 << 20, gate: make(chan struct{})}
	a := newAhead(t, f)
	r := Range{1000, 1000}
	a.Announce([][]Range{{r, r}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.ReadRange(ctx, make([]byte, r.N), r.Off); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(f.gate)
	a.mustRead(t, r)
	if f.requests.Load() != 1 {
		t.Errorf("%d requests", f.requests.Load())
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	f := &file{size: 1 << 40, gate: make(chan struct{})} // never opens
	a := NewAhead(f)
	var group []Range
	for i := range int64(100) {
		group = append(group, Range{i << 20, 1 << 20})
	}
	a.Announce([][]Range{group})
	if err := a.Close(); err != nil { // returns once no request is left
		t.Fatal(err)
	}
	if f.requests.Load() > flights {
		t.Errorf("%d requests", f.requests.Load())
	}
}

func TestReadAtReadsPages(t *testing.T) {
	f := &file{size: 3<<20 + 500}
	a := newAhead(t, f)
	whole := make([]byte, f.size)
	n, err := io.ReadFull(io.NewSectionReader(a, 0, f.size), whole)
	want := make([]byte, f.size)
	fill(want, 0)
	if err != nil || int64(n) != f.size || !bytes.Equal(whole, want) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	small := make([]byte, 1000)
	if n, err := a.ReadAt(small, f.size-10); n != 10 || !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v at the end", n, err)
	}
	if f.requests.Load() != 4 {
		t.Errorf("%d requests for four pages", f.requests.Load())
	}
}

func TestWhatIsExpectedIsFetchedOnceAndServesItsParts(t *testing.T) {
	f := &file{size: 1 << 30}
	a := newAhead(t, f)
	a.Expect(1_000_000, 100_000)
	a.Expect(1_000_100, 50) // is on its way
	a.mustRead(t, Range{1_000_000, 10})
	a.mustRead(t, Range{1_099_000, 1000})
	a.Announce([][]Range{{{1_050_000, 1000}}})
	a.mustRead(t, Range{1_050_000, 1000})
	if n := f.requests.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
	a.mustRead(t, Range{1_099_000, 1001})
	if n := f.requests.Load(); n != 2 {
		t.Errorf("%d requests: what reaches beyond is read by itself", n)
	}
}

func TestWhatIsExpectedIsBounded(t *testing.T) {
	f := &file{size: 1 << 40}
	a := newAhead(t, f)
	for i := range int64(100) {
		a.Expect(i<<20, 1<<20)
		a.mustRead(t, Range{i << 20, 1 << 10})
		a.mu.Lock()
		var held int64
		for _, b := range a.expected {
			held += b.N
		}
		if held > maxKnown {
			t.Errorf("%d bytes held", held)
		}
		a.mu.Unlock()
	}
	a.Expect(0, 1<<30)
	if n := f.requests.Load(); n != 100 {
		t.Errorf("%d requests: too much at once is none", n)
	}
}

func TestWhatIsExpectedAndFailsIsReadAgain(t *testing.T) {
	f := &file{size: 1 << 20}
	f.fail.Store(true)
	a := newAhead(t, f)
	a.Expect(0, 1000)
	if err := a.ReadRange(t.Context(), make([]byte, 10), 0); coverslip.KindOf(err) != coverslip.Unavailable {
		t.Errorf("got %v", err)
	}
	f.fail.Store(false)
	a.mustRead(t, Range{0, 10})
}

func TestFewBytesAreReadThatNobodyWants(t *testing.T) {
	f := &file{size: 1 << 40}
	a := newAhead(t, f)
	const k = 1 << 10
	var group []Range
	var wanted int64
	for i := range int64(400) {
		group = append(group, Range{i * 100 * k, 60 * k}) // gaps of 40 KiB: all of them would be two thirds more
		wanted += 60 * k
	}
	a.Announce([][]Range{group})
	for _, r := range group {
		a.mustRead(t, r)
	}
	if read := f.bytes.Load(); read > wanted+wanted/waste+maxGap {
		t.Errorf("%d bytes read for %d", read, wanted)
	}
}
