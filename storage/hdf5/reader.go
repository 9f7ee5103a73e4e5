package hdf5

import (
	"errors"
	"fmt"
	"os"
	"strings"

	h5 "gonum.org/v1/hdf5"

	"coverslip"
)

const (
	// mostDeflated is what one byte of deflate can hold, rounded up
	// (https://www.zlib.net/zlib_tech.html: 1032:1).
	mostDeflated = 1040
	// largestChunk is what a file may ask us to unpack at once, in bytes.
	largestChunk = 512 << 20
	// largestDim keeps products of two from overflowing.
	largestDim = 1 << 31
)

// File is an HDF5 file open for reading. It may be used from many goroutines; they wait for each other.
type File struct {
	object
	file *h5.File
	size uint64 // bytes
}

// Open opens a file. What is no HDF5 file, or a cut one, is Invalid.
func Open(path string) (*File, error) {
	defer enter()()
	info, err := os.Stat(path)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: opRead, Path: path, Err: err, Hint: "check the path"}
	}
	if !info.Mode().IsRegular() {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: opRead, Path: path, Err: errors.New("it is no file"), Hint: "name a file"}
	}
	if strings.ContainsRune(path, 0) || !h5.IsHDF5(path) {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: opRead, Path: path, Err: errors.New("it is no HDF5 file"), Hint: "check that it was copied whole and is the file you meant"}
	}
	file, err := h5.OpenFile(path, h5.F_ACC_RDONLY)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: opRead, Path: path, Err: reason(), Hint: "copy it again"}
	}
	return &File{object{path, "the file", file.ID()}, file, uint64(info.Size())}, nil //nolint:gosec // a file's size is not negative
}

// Close lets go of the file. Its datasets are closed before.
func (f *File) Close() error {
	defer enter()()
	return f.file.Close()
}

// Dataset opens the dataset of this name under the root and checks that all of it is in the file: of one
// or two dimensions, of IEEE floats of 16, 32 or 64 bits or of integers. NotFound where there is none.
func (f *File) Dataset(name string) (*Dataset, error) {
	defer enter()()
	switch linkKind(f.id, name) {
	case linkDataset:
	case linkNone:
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: opRead, Path: f.path, Err: fmt.Errorf("it has no dataset %q", name), Hint: "check which tool wrote it"}
	case linkAway:
		return nil, f.refuse(coverslip.Unsupported, fmt.Errorf("dataset %q is a link", name), "write the data itself into the file")
	default:
		return nil, f.refuse(coverslip.Invalid, fmt.Errorf("%q is no dataset", name), "check which tool wrote it")
	}
	raw, err := f.file.OpenDataset(name)
	if err != nil {
		return nil, f.refuse(coverslip.Invalid, fmt.Errorf("dataset %q: %w", name, reason()), "copy the file again")
	}
	d := &Dataset{object: object{f.path, "dataset " + name, raw.ID()}, raw: raw}
	if err := d.check(f.size); err != nil {
		_ = raw.Close() // only read
		return nil, err
	}
	return d, nil
}

// Type is what the elements of a dataset are.
type Type string

// The types that are read.
const (
	Float16 Type = "float16"
	Float32 Type = "float32"
	Float64 Type = "float64"
	Integer Type = "integer" // of 8 to 64 bits
)

// Dataset is an array of numbers in a file.
type Dataset struct {
	object
	raw   *h5.Dataset
	Type  Type
	Shape []int // one or two dimensions
}

// check fills in type and shape, and refuses what could not be read whole.
func (d *Dataset) check(fileSize uint64) error {
	f, err := look(d.id)
	if err != nil {
		return d.refuse(coverslip.Invalid, err, "copy the file again")
	}
	if f.rank != 1 && f.rank != 2 {
		return d.refuse(coverslip.Unsupported, fmt.Errorf("it has %d dimensions; 1 or 2 are read", f.rank), "check which tool wrote it")
	}
	switch {
	case f.class == classInteger && f.size <= 8:
		d.Type = Integer
	case f.class == classFloat && f.size == 2 && f.exponent == 5 && f.fraction == 10:
		d.Type = Float16
	case f.class == classFloat && f.size == 4 && f.exponent == 8 && f.fraction == 23:
		d.Type = Float32
	case f.class == classFloat && f.size == 8 && f.exponent == 11 && f.fraction == 52:
		d.Type = Float64
	default:
		return d.refuse(coverslip.Unsupported, errors.New("its elements are no integers and no floats of 16, 32 or 64 bits"), "convert it, for example to float32")
	}
	want, wantChunks, chunk := uint64(f.size), uint64(1), uint64(f.size) //nolint:gosec // 1 to 8
	for i := range f.rank {
		if f.dims[i] > largestDim || want > 0 && f.dims[i] > 0 && want > 1<<62/f.dims[i] {
			return d.refuse(coverslip.Invalid, fmt.Errorf("a dimension of %d", f.dims[i]), "copy the file again")
		}
		d.Shape = append(d.Shape, int(f.dims[i]))
		want *= f.dims[i]
		if f.layout == chunked {
			if f.chunk[i] == 0 || f.chunk[i] > largestChunk {
				return d.refuse(coverslip.TooLarge, fmt.Errorf("chunks of %d rows or columns", f.chunk[i]), "write it in smaller chunks")
			}
			wantChunks *= (f.dims[i] + f.chunk[i] - 1) / f.chunk[i]
			chunk *= f.chunk[i]
		}
	}
	switch {
	case f.external != 0:
		return d.refuse(coverslip.Unsupported, errors.New("its data lie in other files"), "write them into this one")
	case f.layout != contiguous && f.layout != compact && f.layout != chunked:
		return d.refuse(coverslip.Unsupported, errors.New("it is virtual: its data lie in other datasets"), "write them into this one")
	case f.missingFilter != 0:
		return d.refuse(coverslip.Unsupported, fmt.Errorf("it is compressed with filter %d, which is not part of HDF5", f.missingFilter), "write it with gzip or uncompressed")
	case want == 0:
		return nil
	case f.stored > fileSize, f.layout != chunked && f.stored != want:
		return d.refuse(coverslip.Invalid, fmt.Errorf("%d bytes are stored of %d, in a file of %d", f.stored, want, fileSize), "copy the file again, or write it again")
	case f.layout == chunked && chunk > largestChunk:
		return d.refuse(coverslip.TooLarge, fmt.Errorf("chunks of %d bytes; at most %d are read", chunk, largestChunk), "write it in smaller chunks")
	case f.layout == chunked && f.chunks != wantChunks:
		return d.refuse(coverslip.Invalid, fmt.Errorf("%d of its %d chunks are there", f.chunks, wantChunks), "write the file again: its writer was interrupted")
	case f.layout == chunked && want/mostDeflated > f.stored:
		return d.refuse(coverslip.Invalid, fmt.Errorf("%d bytes claim to hold %d", f.stored, want), "write the file again")
	}
	return nil
}

// Close lets go of the dataset.
func (d *Dataset) Close() error {
	defer enter()()
	return d.raw.Close()
}

// Float32s reads n rows from row from on into dst, n times the length of a row. Any type of float is
// converted, float16 exactly; integers are refused as Unsupported.
func (d *Dataset) Float32s(dst []float32, from, n int) error {
	return read(d, dst, from, n, d.Type != Integer)
}

// Float64s is Float32s for every type.
func (d *Dataset) Float64s(dst []float64, from, n int) error { return read(d, dst, from, n, true) }

// Int64s reads integers; floats are refused as Unsupported.
func (d *Dataset) Int64s(dst []int64, from, n int) error {
	return read(d, dst, from, n, d.Type == Integer)
}

func read[T float32 | float64 | int64](d *Dataset, dst []T, from, n int, fits bool) error {
	width := 1
	if len(d.Shape) == 2 {
		width = d.Shape[1]
	}
	if from < 0 || n < 0 || n > d.Shape[0]-from || len(dst) != n*width {
		panic("hdf5: rows out of range, or dst of another length")
	}
	if !fits {
		return d.refuse(coverslip.Unsupported, fmt.Errorf("its elements are of type %s", d.Type), "convert them")
	}
	if len(dst) == 0 {
		return nil
	}
	defer enter()()
	if err := readRows(d.id, len(d.Shape), from, n, width, dst); err != nil {
		return d.refuse(coverslip.Invalid, fmt.Errorf("rows %d to %d: %w", from, from+n-1, err), "copy the file again")
	}
	return nil
}

// object is what attributes stand on: the file's root, or a dataset.
type object struct {
	path, what string // what: "the file", "dataset coords"
	id         int64
}

// Text reads an attribute of text, of fixed or variable length.
func (o object) Text(name string) (string, error) {
	v, err := o.attribute(name)
	if err == nil && v.class != classText {
		err = o.refuse(coverslip.Invalid, fmt.Errorf("attribute %q is no text", name), "write it again")
	}
	return v.text, err
}

// Number reads an attribute of one number.
func (o object) Number(name string) (float64, error) {
	v, err := o.attribute(name)
	switch {
	case err != nil:
		return 0, err
	case v.class == classInteger:
		return float64(v.int), nil
	case v.class != classFloat:
		return 0, o.refuse(coverslip.Invalid, fmt.Errorf("attribute %q is no number", name), "write it again")
	}
	return v.real, nil
}

// attribute is NotFound where there is none.
func (o object) attribute(name string) (value, error) {
	defer enter()()
	v, there, err := readAttribute(o.id, name)
	switch {
	case err != nil:
		err = o.refuse(coverslip.Invalid, fmt.Errorf("attribute %q: %w", name, err), "write it again")
	case !there:
		err = o.refuse(coverslip.NotFound, fmt.Errorf("it has no attribute %q", name), "write the file again with it")
	}
	return v, err
}

const opRead = "read h5"

func (o object) refuse(kind coverslip.Kind, err error, hint string) error {
	op := opRead
	if o.what != "the file" {
		op += ": " + o.what
	}
	return &coverslip.Error{Kind: kind, Op: op, Path: o.path, Err: err, Hint: hint}
}
