package interop

import (
	"archive/zip"
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// npz writes numpy's archive: a ZIP of .npy files, version 1.0 of
// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
type npz struct {
	zip *zip.Writer
	out io.Writer // the array that was begun last
	raw []byte
	err error // the first one
}

func newNPZ(w io.Writer) *npz { return &npz{zip: zip.NewWriter(w)} }

// array writes one whole.
func (z *npz) array(name, dtype string, shape []int, values any) {
	z.begin(name, dtype, shape)
	z.write(values)
}

// begin starts one, whose values follow by write.
func (z *npz) begin(name, dtype string, shape []int) {
	if z.err != nil {
		return
	}
	if z.out, z.err = z.zip.CreateHeader(&zip.FileHeader{Name: name + ".npy", Method: zip.Store}); z.err != nil {
		return
	}
	lengths := ""
	for _, n := range shape {
		lengths += strconv.Itoa(n) + ","
	}
	header := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", dtype, lengths)
	const fixed = 10 // magic, version, length
	header += strings.Repeat(" ", 63-(fixed+len(header))%64) + "\n"
	head := append([]byte("\x93NUMPY\x01\x00"), byte(len(header)), byte(len(header)>>8)) //nolint:gosec // a header has some hundred bytes
	_, z.err = z.out.Write(append(head, header...))
}

// write appends float32 or int64 values, or bytes as they are.
func (z *npz) write(values any) {
	if z.err != nil {
		return
	}
	if z.raw, z.err = binary.Append(z.raw[:0], binary.LittleEndian, values); z.err == nil {
		_, z.err = z.out.Write(z.raw)
	}
}

// texts writes texts as numpy keeps them: each as wide as the longest, filled with zeros. A shape of
// nil is one text alone.
func (z *npz) texts(name string, shape []int, texts ...string) {
	width := 1
	for _, s := range texts {
		width = max(width, utf8.RuneCountInString(s))
	}
	raw := make([]byte, 4*width*len(texts))
	for i, s := range texts {
		k := 4 * width * i
		for _, r := range s {
			binary.LittleEndian.PutUint32(raw[k:], uint32(r)) //nolint:gosec // a rune of a range loop is not negative
			k += 4
		}
	}
	z.array(name, fmt.Sprintf("<U%d", width), shape, raw)
}

func (z *npz) close() error {
	if z.err != nil {
		return z.err
	}
	return z.zip.Close()
}

// mostDeflated is what one byte of deflate can hold, rounded up (https://www.zlib.net/zlib_tech.html).
const mostDeflated = 1040

// npyArray is an array in an npz that is being read. It is read from front to back: a step back starts
// again.
type npyArray struct {
	file  *zip.File
	path  string
	kind  byte // f, i, u or U
	size  int  // bytes of an element; characters of a text
	order binary.ByteOrder
	shape []int
	start int // where values begin

	in io.ReadCloser
	r  *bufio.Reader
	at int // row that comes next
}

var (
	npyDType   = regexp.MustCompile(`'descr':\s*'([<>|=])([fiuU])(\d{1,7})'`)
	npyFortran = regexp.MustCompile(`'fortran_order':\s*False`)
	npyShape   = regexp.MustCompile(`'shape':\s*\(([\d\s,]*)\)`)
)

// openNPY reads the head of an array and holds it against the size of the file.
func openNPY(path string, file *zip.File) (*npyArray, error) {
	refuse := func(format string, args ...any) error {
		return invalid(opRead, path, fmt.Errorf("array %s: "+format, append([]any{strings.TrimSuffix(file.Name, ".npy")}, args...)...), "write it again with numpy.savez")
	}
	in, err := file.Open()
	if err != nil {
		return nil, refuse("%w", err)
	}
	defer in.Close()
	var head [12]byte
	if _, err := io.ReadFull(in, head[:10]); err != nil || string(head[:6]) != "\x93NUMPY" {
		return nil, refuse("it is no npy file")
	}
	length, start := int(binary.LittleEndian.Uint16(head[8:])), 10
	if head[6] > 1 {
		if _, err := io.ReadFull(in, head[10:]); err != nil {
			return nil, refuse("%w", err)
		}
		length, start = int(binary.LittleEndian.Uint32(head[8:])), 12
	}
	if length > 1<<16 {
		return nil, refuse("a header of %d bytes", length)
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(in, text); err != nil {
		return nil, refuse("%w", err)
	}
	dtype, shape := npyDType.FindSubmatch(text), npyShape.FindSubmatch(text)
	if dtype == nil || shape == nil || !npyFortran.Match(text) {
		return nil, refuse("%.100q is not read: numbers or texts in C order are", text)
	}
	a := &npyArray{file: file, path: path, kind: dtype[2][0], order: binary.LittleEndian, start: start + length, shape: []int{}}
	if dtype[1][0] == '>' {
		a.order = binary.BigEndian
	}
	a.size, _ = strconv.Atoi(string(dtype[3]))
	want := uint64(a.size) //nolint:gosec // digits
	if a.kind == 'U' {
		want *= 4
	}
	for n := range strings.SplitSeq(string(shape[1]), ",") {
		if n = strings.TrimSpace(n); n == "" {
			continue
		}
		v, err := strconv.ParseUint(n, 10, 31)
		if err != nil || v > 0 && want > 1<<62/v {
			return nil, refuse("shape (%s)", shape[1])
		}
		a.shape = append(a.shape, int(v))
		want *= v
	}
	if held := file.UncompressedSize64; held != want+uint64(a.start) || held/mostDeflated > file.CompressedSize64 { //nolint:gosec // not negative
		return nil, refuse("%d bytes for shape (%s) of %s%s", held, shape[1], dtype[2], dtype[3])
	}
	return a, nil
}

// text is an array that is one text alone.
func (a *npyArray) text() (string, error) {
	if a.kind != 'U' || len(a.shape) != 0 || a.size > 1<<20 {
		return "", a.refuse(errors.New("it is not one text"))
	}
	raw := make([]byte, 4*a.size)
	if err := a.seek(0); err != nil {
		return "", err
	}
	if _, err := io.ReadFull(a.r, raw); err != nil {
		return "", a.refuse(err)
	}
	var s strings.Builder
	for ; len(raw) > 0; raw = raw[4:] {
		if r := a.order.Uint32(raw); r != 0 {
			s.WriteRune(rune(r)) //nolint:gosec // what is no rune becomes the sign for that
		}
	}
	return s.String(), nil
}

// Float32s is hdf5.Dataset.Float32s.
func (a *npyArray) Float32s(dst []float32, from, n int) error {
	if a.kind != 'f' || a.size != 2 && a.size != 4 && a.size != 8 {
		return a.refuse(fmt.Errorf("its elements are %c%d; f2, f4 and f8 are read", a.kind, a.size))
	}
	return each(a, dst, from, n, func(p []byte) float32 {
		switch a.size {
		case 2:
			return float16(a.order.Uint16(p))
		case 4:
			return math.Float32frombits(a.order.Uint32(p))
		default:
			return float32(math.Float64frombits(a.order.Uint64(p)))
		}
	})
}

// Int64s is hdf5.Dataset.Int64s.
func (a *npyArray) Int64s(dst []int64, from, n int) error {
	if a.kind != 'i' && a.kind != 'u' || a.size != 4 && a.size != 8 {
		return a.refuse(fmt.Errorf("its elements are %c%d; integers of 4 and 8 bytes are read", a.kind, a.size))
	}
	return each(a, dst, from, n, func(p []byte) int64 {
		switch {
		case a.size == 8:
			return int64(a.order.Uint64(p)) //nolint:gosec // two's complement; what is too large becomes negative and is refused
		case a.kind == 'u':
			return int64(a.order.Uint32(p))
		default:
			return int64(int32(a.order.Uint32(p))) //nolint:gosec // two's complement
		}
	})
}

func each[T any](a *npyArray, dst []T, from, n int, value func([]byte) T) error {
	if from < 0 || n < 0 || n > a.shape[0]-from || len(dst) != n*a.width() {
		panic("interop: rows out of range, or dst of another length")
	}
	if err := a.seek(from); err != nil {
		return err
	}
	var p [8]byte
	for i := range dst {
		if _, err := io.ReadFull(a.r, p[:a.size]); err != nil {
			return a.refuse(err)
		}
		dst[i] = value(p[:])
	}
	a.at += n
	return nil
}

func (a *npyArray) width() int {
	if len(a.shape) == 2 {
		return a.shape[1]
	}
	return 1
}

// seek goes to a row.
func (a *npyArray) seek(row int) error {
	skip := int64(row-a.at) * int64(a.width()) * int64(a.size)
	if a.in == nil || skip < 0 {
		if err := a.Close(); err != nil {
			return err
		}
		in, err := a.file.Open()
		if err != nil {
			return a.refuse(err)
		}
		a.in, a.r = in, bufio.NewReaderSize(in, 1<<16)
		skip = int64(a.start) + int64(row)*int64(a.width())*int64(a.size)
	}
	if _, err := io.CopyN(io.Discard, a.r, skip); err != nil {
		return a.refuse(err)
	}
	a.at = row
	return nil
}

// Close lets go of the array.
func (a *npyArray) Close() error {
	if a.in == nil {
		return nil
	}
	err := a.in.Close()
	a.in = nil
	return err
}

func (a *npyArray) refuse(err error) error {
	return invalid(opRead, a.path, fmt.Errorf("array %s: %w", strings.TrimSuffix(a.file.Name, ".npy"), err), "write it again with numpy.savez")
}

// float16 is the value of an IEEE 754 half.
func float16(h uint16) float32 {
	sign, exponent, fraction := uint32(h>>15)<<31, uint32(h>>10&31), uint32(h&0x3ff)
	switch exponent {
	case 31:
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	case 0:
		return math.Float32frombits(sign | math.Float32bits(float32(fraction)/(1<<24)))
	}
	return math.Float32frombits(sign | (exponent+127-15)<<23 | fraction<<13)
}
