package bagfile

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"coverslip"
)

const (
	// maxHeader is far above what a bag needs. The format itself allows 100 MB.
	maxHeader = 1 << 20
	// maxRead is the most that is asked for at once: enough for an S3 request to be worth it.
	maxRead = 4 << 20
)

// Reader reads ranges of one bag. It may be used from many goroutines at once.
type Reader struct {
	r        io.ReaderAt
	meta     Metadata
	views    int // 0: the file holds no views
	rows     int // of all views
	dim      int
	coords   int64 // where they begin in the file
	features int64
}

// Open reads the head of a bag file of size bytes and checks that everything it announces is there.
// A file that breaks the format is Invalid; one that keeps it and holds no float32 bag is
// Unsupported. So is a bag of views, which OpenViews opens.
func Open(r io.ReaderAt, size int64) (*Reader, error) {
	b, err := open(r, size)
	if err == nil && b.views > 0 {
		return nil, unsupported("it is a bag of %d views; tiles as they are were asked for", b.views)
	}
	return b, err
}

func open(r io.ReaderAt, size int64) (*Reader, error) {
	if size < 8 {
		return nil, broken("%d bytes hold no header", size)
	}
	var length [8]byte
	if err := readAt(r, length[:], 0); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(length[:])
	if n > maxHeader || int64(n) > size-8 {
		return nil, broken("a header of %d bytes in a file of %d", n, size)
	}
	text := make([]byte, n)
	if err := readAt(r, text, 8); err != nil {
		return nil, err
	}
	h, err := parseHeader(text)
	if err != nil {
		return nil, err
	}
	data := 8 + int64(n)
	if err := h.checkLayout(size - data); err != nil {
		return nil, err
	}
	c, f := h.tensors["coords"], h.tensors["features"]
	switch {
	case c == nil || f == nil:
		return nil, unsupported("no tensors coords and features")
	case c.dtype != "I64" || f.dtype != "F32":
		return nil, unsupported("coords are %s and features %s; I64 and F32 are read", c.dtype, f.dtype)
	case len(c.shape) != len(f.shape) || len(f.shape) != 2 && len(f.shape) != 3:
		return nil, unsupported("coords of shape %v, features of shape %v; [N,2] and [N,D], or [V,N,2] and [V,N,D], are read", c.shape, f.shape)
	}
	last := len(f.shape) - 1
	if c.shape[last] != 2 || !slices.Equal(f.shape[:last], c.shape[:last]) || f.shape[last] < 1 || f.shape[last] > maxDim {
		return nil, broken("coords of shape %v, features of shape %v", c.shape, f.shape)
	}
	b := &Reader{r: r, rows: int(f.shape[0]), dim: int(f.shape[last]), coords: data + c.begin, features: data + f.begin}
	if last == 2 {
		if f.shape[0] < 1 || f.shape[0] > maxViews {
			return nil, broken("features of shape %v", f.shape)
		}
		b.views, b.rows = b.rows, b.rows*int(f.shape[1]) // fits: the file holds them, or there are none
	}
	return b, b.meta.parse(h.metadata)
}

// Len is the number of rows, N.
func (b *Reader) Len() int { return b.rows }

// Dim is the length of an instance, D.
func (b *Reader) Dim() int { return b.dim }

// Metadata says what the bag was made from. What the file does not say is zero.
func (b *Reader) Metadata() Metadata { return b.meta }

// Pitch is the distance from one tile of the grid to the next, in level-0 pixels; 0 where the file does not
// say what it takes.
func (b *Reader) Pitch() float64 {
	m := b.meta
	if !(m.SlideMPP > 0) || !(m.MPP > 0) || m.TileSize <= m.Overlap {
		return 0
	}
	return float64(m.TileSize-m.Overlap) * m.MPP / m.SlideMPP
}

// Coords reads x, y of n rows from row from on into dst, [n,2].
func (b *Reader) Coords(dst []int64, from, n int) error {
	b.check(len(dst), from, n, 2)
	return b.chunks(b.coords+int64(from)*16, len(dst), 8, func(i int, p []byte) {
		dst[i] = int64(binary.LittleEndian.Uint64(p)) //nolint:gosec // two's complement, as int64 is stored
	})
}

// Features reads n rows from row from on into dst, [n,D].
func (b *Reader) Features(dst []float32, from, n int) error {
	b.check(len(dst), from, n, b.dim)
	return b.chunks(b.features+int64(from)*int64(b.dim)*4, len(dst), 4, func(i int, p []byte) {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(p))
	})
}

func (b *Reader) check(length, from, n, width int) {
	if from < 0 || n < 0 || n > b.rows-from || length != n*width {
		panic("bagfile: rows out of range, or dst of another length")
	}
}

// chunks reads count values of the given width in bytes and hands over each.
func (b *Reader) chunks(off int64, count, width int, set func(i int, p []byte)) error {
	buf := make([]byte, min(count*width, maxRead))
	for i := 0; i < count; {
		p := buf[:min(len(buf), (count-i)*width)]
		if err := readAt(b.r, p, off); err != nil {
			return err
		}
		off += int64(len(p))
		for ; len(p) > 0; p = p[width:] {
			set(i, p)
			i++
		}
	}
	return nil
}

// head is the header as the file has it.
type head struct {
	metadata map[string]string
	tensors  map[string]*tensor
}

type tensor struct {
	dtype      string
	shape      []int64
	begin, end int64 // from the end of the header
}

// parseHeader reads the JSON. It refuses names that come twice, of which a lenient reader would
// silently drop one.
func parseHeader(text []byte) (*head, error) {
	if len(text) == 0 || text[0] != '{' {
		return nil, broken("the header is no JSON object")
	}
	h := &head{metadata: map[string]string{}, tensors: map[string]*tensor{}}
	dec := json.NewDecoder(bytes.NewReader(text))
	err := object(dec, func(name string) error {
		if name == "__metadata__" {
			return object(dec, func(name string) error {
				s, err := decode[string](dec)
				h.metadata[name] = s
				return err
			})
		}
		t := &tensor{}
		h.tensors[name] = t
		var offsets []int64
		err := object(dec, func(field string) (err error) {
			switch field {
			case "dtype":
				t.dtype, err = decode[string](dec)
			case "shape":
				t.shape, err = decode[[]int64](dec)
			case "data_offsets":
				offsets, err = decode[[]int64](dec)
			default:
				err = fmt.Errorf("unknown field %q", field)
			}
			return err
		})
		if err == nil && (len(offsets) != 2 || t.shape == nil) {
			err = errors.New("shape or data_offsets are missing")
		}
		if err != nil {
			return fmt.Errorf("tensor %.80q: %w", name, err)
		}
		t.begin, t.end = offsets[0], offsets[1]
		return nil
	})
	if err == nil && len(bytes.Trim(text[dec.InputOffset():], " \t\r\n")) > 0 {
		err = errors.New("something follows the object")
	}
	if err != nil {
		return nil, broken("header: %w", err)
	}
	return h, nil
}

// object reads a JSON object and calls value for each name in it, at its value.
func object(dec *json.Decoder, value func(name string) error) error {
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(errors.New("an object is missing"), err)
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		name, ok := t.(string)
		if !ok || seen[name] {
			return fmt.Errorf("name %.80q comes twice", name)
		}
		seen[name] = true
		if err := value(name); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}

func decode[T any](dec *json.Decoder) (T, error) {
	var v *T // stays nil for null, which no field may be
	err := dec.Decode(&v)
	if err != nil || v == nil {
		var zero T
		return zero, errors.Join(errors.New("a value of another type"), err)
	}
	return *v, nil
}

var sizes = map[string]int64{
	"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
	"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}

// checkLayout asks that the tensors fill the data, of the given length, from end to end without
// holes or overlaps, as the format says, and that each is as long as its shape.
func (h *head) checkLayout(length int64) error {
	names := make([]string, 0, len(h.tensors))
	for name, t := range h.tensors {
		names = append(names, name)
		want := sizes[t.dtype]
		if want == 0 {
			return broken("tensor %.80q: unknown dtype %.20q", name, t.dtype)
		}
		for _, n := range t.shape {
			if n < 0 || (n > 0 && want > math.MaxInt64/n) {
				return broken("tensor %.80q: shape %v", name, t.shape)
			}
			want *= n
		}
		if t.begin < 0 || t.end < t.begin || t.end > length || t.end-t.begin != want {
			return broken("tensor %.80q: bytes %d to %d of %d for shape %v of %s", name, t.begin, t.end, length, t.shape, t.dtype)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		s, t := h.tensors[a], h.tensors[b]
		return cmp.Or(cmp.Compare(s.begin, t.begin), cmp.Compare(s.end, t.end))
	})
	at := int64(0)
	for _, name := range names {
		if t := h.tensors[name]; t.begin != at {
			return broken("tensor %.80q begins at byte %d, not at %d", name, t.begin, at)
		}
		at = h.tensors[name].end
	}
	if at != length {
		return broken("%d bytes follow the last tensor", length-at)
	}
	return nil
}

func readAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return broken("the file ends at byte %d", off+int64(n))
	}
	return failed("read bag", err)
}

func broken(format string, args ...any) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "read bag", Err: fmt.Errorf(format, args...),
		Hint: "encode the slide again"}
}

func unsupported(format string, args ...any) error {
	return &coverslip.Error{Kind: coverslip.Unsupported, Op: "read bag", Err: fmt.Errorf(format, args...),
		Hint: "use a bag that Coverslip wrote"}
}

// failed leaves an error that says what went wrong as it is, and nil nil.
func failed(op string, err error) error {
	var ours *coverslip.Error
	if err == nil || errors.As(err, &ours) {
		return err
	}
	return &coverslip.Error{Kind: coverslip.KindOf(err), Op: op, Err: err}
}
