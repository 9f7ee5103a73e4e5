package bagfile

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"

	"coverslip"
)

// maxDim is the longest instance, far above what any encoder gives. It keeps sizes from overflowing.
const maxDim = 1 << 20

// Writer writes one bag. It holds a small buffer, however long the bag is.
type Writer struct {
	w       *bufio.Writer
	dim     int
	rows    int // announced
	written int
	err     error // the first one; every later call returns it
	scratch []byte
}

// NewWriter writes the head of a bag of len(tiles) rows of dim values to w. The rows follow by
// Append, in the order of tiles, and Close ends the bag.
func NewWriter(w io.Writer, m Metadata, tiles []coverslip.Tile, dim int) (*Writer, error) {
	head, err := header(m, []int{len(tiles)}, dim)
	if err != nil {
		return nil, err
	}
	b := &Writer{w: bufio.NewWriterSize(w, 1<<16), dim: dim, rows: len(tiles)}
	b.write(head)
	var coords [16]byte
	for _, t := range tiles {
		binary.LittleEndian.PutUint64(coords[:8], uint64(t.X)) //nolint:gosec // two's complement, as int64 is stored
		binary.LittleEndian.PutUint64(coords[8:], uint64(t.Y)) //nolint:gosec // the same
		b.write(coords[:])
	}
	return b, b.err
}

// Size is the length in bytes of the file a Writer makes.
func Size(m Metadata, rows, dim int) (int64, error) {
	head, err := header(m, []int{rows}, dim)
	return int64(len(head)) + int64(rows)*(16+4*int64(dim)), err
}

// Append writes the next rows, [k,dim] for any k. A value that is not finite is refused: it would
// spoil whatever is computed from the bag.
func (b *Writer) Append(features []float32) error {
	if len(features)%b.dim != 0 {
		panic("bagfile: features are not whole rows")
	}
	if n := len(features) / b.dim; b.err == nil && n > b.rows-b.written {
		b.err = &coverslip.Error{Kind: coverslip.Internal, Op: "write bag", Err: fmt.Errorf("more than the %d rows announced", b.rows)}
	}
	for len(features) > 0 && b.err == nil {
		b.scratch, b.err = appendRow(b.scratch[:0], features[:b.dim], b.written)
		if b.err == nil {
			b.write(b.scratch)
			b.written++
		}
		features = features[b.dim:]
	}
	return b.err
}

// appendRow appends the features of a row as they stand in the file.
func appendRow(dst []byte, features []float32, row int) ([]byte, error) {
	for i, v := range features {
		bits := math.Float32bits(v)
		if bits&0x7f800000 == 0x7f800000 { // all of the exponent: infinite or no number
			return dst, &coverslip.Error{Kind: coverslip.Invalid, Op: "write bag",
				Err: fmt.Errorf("feature %d of tile %d is %v", i, row, v), Hint: "check the encoder with coverslip models verify"}
		}
		dst = binary.LittleEndian.AppendUint32(dst, bits)
	}
	return dst, nil
}

// Close writes out what is buffered. It fails when rows are missing: what was written is no bag
// then. It does not close the underlying writer.
func (b *Writer) Close() error {
	if b.err == nil && b.written != b.rows {
		b.err = &coverslip.Error{Kind: coverslip.Internal, Op: "write bag", Err: fmt.Errorf("%d of %d rows are there", b.written, b.rows)}
	}
	if b.err == nil {
		b.err = failed("write bag", b.w.Flush())
	}
	return b.err
}

func (b *Writer) write(p []byte) {
	if b.err == nil {
		_, err := b.w.Write(p)
		b.err = failed("write bag", err)
	}
}

// header is the file up to its tensors: the length of the JSON that follows, and the JSON, filled
// up with spaces so that the tensors begin at a multiple of 8. shape is [N], or [V,N] of views.
func header(m Metadata, shape []int, dim int) ([]byte, error) {
	if dim < 1 || dim > maxDim {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "write bag", Err: fmt.Errorf("instances of %d values", dim),
			Hint: fmt.Sprintf("use an encoder of 1 to %d outputs", maxDim)}
	}
	type tensor struct {
		DType   string   `json:"dtype"`
		Shape   []int    `json:"shape"`
		Offsets [2]int64 `json:"data_offsets"`
	}
	n, d := int64(1), int64(dim)
	for _, k := range shape {
		n *= int64(k)
	}
	text, err := json.Marshal(struct {
		Metadata map[string]string `json:"__metadata__"` // written in the order of its keys
		Coords   tensor            `json:"coords"`
		Features tensor            `json:"features"`
	}{
		m.text(),
		tensor{"I64", append(slices.Clone(shape), 2), [2]int64{0, 16 * n}},
		tensor{"F32", append(slices.Clone(shape), dim), [2]int64{16 * n, 16*n + 4*n*d}},
	})
	if err != nil {
		return nil, failed("write bag", err)
	}
	text = append(text, bytes.Repeat([]byte(" "), -len(text)&7)...)
	if len(text) > maxHeader {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "write bag", Err: fmt.Errorf("metadata of %d bytes", len(text)),
			Hint: "shorten the names of slide and encoder"}
	}
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...), nil
}
