package bagfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"coverslip"
)

// A bag of views holds V augmented views of a slide, of N tiles each:
//
//	features  [V,N,D] float32
//	coords    [V,N,2] int64
//
// Its rows are numbered through: row v·N+n is tile n of view v.

// maxViews is far above what anybody makes of a slide.
const maxViews = 1 << 20

// ViewWriter writes a bag of views, row by row in any order: tiles are read once and given to every
// view that holds them. It holds one bit a row.
type ViewWriter struct {
	w       io.WriterAt
	dim     int
	rows    int
	at      int64 // where features begin
	there   []uint64
	missing int
	scratch []byte
	err     error // the first one; every later call returns it
}

// NewViewWriter writes the head of a bag of len(views) views to w, which is empty. Each view lists
// its tiles; all have the same number.
func NewViewWriter(w io.WriterAt, m Metadata, views [][]coverslip.Tile, dim int) (*ViewWriter, error) {
	if len(views) == 0 {
		panic("bagfile: no views")
	}
	n := len(views[0])
	head, err := header(m, []int{len(views), n}, dim)
	if err != nil {
		return nil, err
	}
	for _, tiles := range views {
		if len(tiles) != n {
			panic("bagfile: views of different lengths")
		}
		for _, t := range tiles {
			head = binary.LittleEndian.AppendUint64(head, uint64(t.X)) //nolint:gosec // two's complement, as int64 is stored
			head = binary.LittleEndian.AppendUint64(head, uint64(t.Y)) //nolint:gosec // the same
		}
	}
	rows := len(views) * n
	b := &ViewWriter{w: w, dim: dim, rows: rows, at: int64(len(head)), there: make([]uint64, (rows+63)/64), missing: rows}
	_, err = w.WriteAt(head, 0)
	b.err = failed("write bag", err)
	return b, b.err
}

// Put writes one row, [D]. A value that is not finite is refused. Writing a row again replaces it.
func (b *ViewWriter) Put(row int, features []float32) error {
	if row < 0 || row >= b.rows || len(features) != b.dim {
		panic("bagfile: row out of range, or features of another length")
	}
	if b.err != nil {
		return b.err
	}
	if b.scratch, b.err = appendRow(b.scratch[:0], features, row); b.err != nil {
		return b.err
	}
	if _, err := b.w.WriteAt(b.scratch, b.at+int64(row)*int64(4*b.dim)); err != nil {
		b.err = failed("write bag", err)
		return b.err
	}
	if bit := uint64(1) << (row % 64); b.there[row/64]&bit == 0 {
		b.there[row/64] |= bit
		b.missing--
	}
	return nil
}

// Close fails when rows are missing: what was written is no bag then.
func (b *ViewWriter) Close() error {
	if b.err == nil && b.missing > 0 {
		b.err = &coverslip.Error{Kind: coverslip.Internal, Op: "write bag", Err: fmt.Errorf("%d of %d rows are missing", b.missing, b.rows)}
	}
	return b.err
}

// ViewReader reads ranges of a bag of views. It may be used from many goroutines at once.
type ViewReader struct {
	Reader // of all rows, numbered through
}

// OpenViews opens a bag of views; see Open.
func OpenViews(r io.ReaderAt, size int64) (*ViewReader, error) {
	b, err := open(r, size)
	if err != nil {
		return nil, err
	}
	if b.views == 0 {
		return nil, unsupported("it is a bag of tiles as they are, not of views (%w)", errors.New("encode the slide with --views"))
	}
	return &ViewReader{*b}, nil
}

// Views is the number of views, V.
func (b *ViewReader) Views() int { return b.views }

// Tiles is the number of tiles of each view, N.
func (b *ViewReader) Tiles() int { return b.rows / b.views }
