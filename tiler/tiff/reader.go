package tiff

import (
	"context"
	"errors"
	"fmt"
	"io"

	"coverslip"
)

// RangeReader is where the bytes of a slide come from.
//
// ReadRange fills the whole of dst with the bytes that start at off, or fails: it never returns a
// short read as success, and what dst holds after an error means nothing. It retries what its
// store calls transient, stops when ctx ends, and may be called from many goroutines at once.
// Errors are *coverslip.Error: Invalid when the bytes are not there, Unavailable when trying
// again may help, Conflict when the slide changed since it was opened.
//
// Size is the length of the slide in bytes and does not change.
type RangeReader interface {
	ReadRange(ctx context.Context, dst []byte, off int64) error
	Size() int64
}

// Expecter is a RangeReader that may begin to fetch bytes before they are asked for. Expect says that
// the n bytes at off will be, soon; it does not wait, and nothing depends on it.
type Expecter interface {
	Expect(off, n int64)
}

// ReaderAt is a RangeReader over an io.ReaderAt, such as an *os.File.
type ReaderAt struct {
	r    io.ReaderAt
	size int64
}

// NewReaderAt returns a RangeReader over the first size bytes of r. It does not close r.
func NewReaderAt(r io.ReaderAt, size int64) *ReaderAt { return &ReaderAt{r, size} }

// Size returns the length in bytes given to NewReaderAt.
func (r *ReaderAt) Size() int64 { return r.size }

// ReadRange fills dst with the bytes that start at off.
func (r *ReaderAt) ReadRange(ctx context.Context, dst []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 || off > r.size-int64(len(dst)) {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: rangeOp(dst, off),
			Err: fmt.Errorf("%w of %d bytes", errEndsEarly, r.size), Hint: hintEndsEarly}
	}
	n, err := r.r.ReadAt(dst, off)
	switch {
	case n == len(dst): // ReadAt may report io.EOF together with the last byte
		return nil
	case errors.Is(err, io.EOF):
		return &coverslip.Error{Kind: coverslip.Invalid, Op: rangeOp(dst, off),
			Err: io.ErrUnexpectedEOF, Hint: "the file became shorter while it was read; upload it again"}
	default:
		return &coverslip.Error{Kind: coverslip.Unavailable, Op: rangeOp(dst, off),
			Err: err, Hint: "check the disk or share that holds the file, then try again"}
	}
}

func rangeOp(dst []byte, off int64) string {
	return fmt.Sprintf("read %d bytes at %d", len(dst), off)
}

// source reads small pieces of a file in few requests: a directory and the values it points to
// lie close together in every file a known writer made.
type source struct {
	r       RangeReader
	size    int64
	budget  int64 // bytes the index may still take
	windows [4]window
	oldest  int
}

type window struct {
	off  int64
	data []byte
}

const (
	windowSize = 64 << 10
	maxExpect  = 2 << 20
)

// read returns the n bytes at off, n ≤ rangeMax. They belong to the source and must not be changed.
func (s *source) read(ctx context.Context, off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || n > s.size || off > s.size-n {
		return nil, fmt.Errorf("bytes %d to %d: %w, which has %d", off, uint64(off)+uint64(n), errEndsEarly, s.size) //nolint:gosec // for the message
	}
	if data := s.known(off, n); data != nil {
		return data, nil
	}
	if n > windowSize {
		data := make([]byte, n)
		return data, s.r.ReadRange(ctx, data, off)
	}
	w := window{off: s.windowAt(off), data: make([]byte, min(windowSize, s.size))}
	s.expectWindow(off) // what lies beside it is often wanted too, and not by this package alone
	if err := s.r.ReadRange(ctx, w.data, w.off); err != nil {
		return nil, err
	}
	s.windows[s.oldest] = w
	s.oldest = (s.oldest + 1) % len(s.windows)
	return w.data[off-w.off:][:n], nil
}

// known returns what has been read already of the n bytes at off; nil if some are missing.
func (s *source) known(off, n int64) []byte {
	for _, w := range s.windows {
		if off >= w.off && off+n <= w.off+int64(len(w.data)) {
			return w.data[off-w.off:][:n]
		}
	}
	return nil
}

// windowAt is where the window begins that is read for the bytes at off.
func (s *source) windowAt(off int64) int64 { return max(0, min(off, s.size-windowSize)) }

// expect says that n bytes at off will be read in a moment. Few files have more than maxExpect in one place.
func (s *source) expect(off, n int64) {
	if e, ok := s.r.(Expecter); ok && off > 0 && n > 0 && off < s.size {
		e.Expect(off, min(n, s.size-off, maxExpect))
	}
}

// expectWindow says the same of a directory.
func (s *source) expectWindow(off int64) {
	if off > 0 && off < s.size {
		s.expect(s.windowAt(off), windowSize)
	}
}

// spend refuses a file whose index would take more memory than any slide's.
func (s *source) spend(n int64) error {
	if s.budget -= n; s.budget < 0 {
		return unsupported("no slide needs that much; if this one does, report it",
			"its index would take more than %d MiB", maxIndex>>20)
	}
	return nil
}
