package hdf5

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	h5 "gonum.org/v1/hdf5"

	"coverslip"
)

// Write makes a file at path of what fill writes. It is written beside and renamed at the end, so that
// a file of that name is always whole; when fill fails, nothing is left.
func Write(path string, fill func(w *Writer) error) error {
	beside, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return writeError(path, err)
	}
	name := beside.Name()
	defer os.Remove(name) //nolint:errcheck // gone after the rename
	if err := errors.Join(beside.Chmod(0o644), beside.Close()); err != nil {
		return writeError(path, err)
	}
	w, err := create(path, name)
	if err != nil {
		return err
	}
	err = fill(w)
	if e := w.close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := os.Rename(name, path); err != nil {
		return writeError(path, err)
	}
	return nil
}

// Writer is a file that is being written.
type Writer struct {
	path string // as it will be called
	file *h5.File
}

func create(path, name string) (*Writer, error) {
	defer enter()()
	file, err := h5.CreateFile(name, h5.F_ACC_TRUNC)
	if err != nil {
		return nil, writeError(path, reason())
	}
	return &Writer{path, file}, nil
}

func (w *Writer) close() error {
	defer enter()()
	if err := w.file.Close(); err != nil {
		return writeError(w.path, reason())
	}
	return nil
}

// Attribute writes an attribute of the file: a string, int64, float64, []int64 or []float64, as h5py
// writes a str, an int, a float and a tuple of them.
func (w *Writer) Attribute(name string, v any) error { return attribute(w.path, w.file.ID(), name, v) }

func attribute(path string, id int64, name string, v any) error {
	if s, ok := v.(string); ok && strings.ContainsRune(s, 0) {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: opWrite, Path: path, Err: fmt.Errorf("attribute %q holds a zero byte", name)}
	}
	defer enter()()
	if err := writeAttribute(id, name, v); err != nil {
		return writeError(path, fmt.Errorf("attribute %q: %w", name, err))
	}
	return nil
}

// Rows is a dataset that is being written, row by row.
type Rows[T float32 | int32 | int64] struct {
	path    string
	raw     *h5.Dataset
	shape   []int
	written int
}

// chunkBytes is how much of a dataset that can grow is stored together, at most, in pieces of like size.
const chunkBytes = 256 << 10

// Create begins a dataset of one or two dimensions. One that can grow along the first is what tools
// that append to a file expect.
func Create[T float32 | int32 | int64](w *Writer, name string, grows bool, shape ...int) (*Rows[T], error) {
	defer enter()()
	var element *h5.Datatype
	size := 4
	switch any(T(0)).(type) {
	case float32:
		element = h5.T_NATIVE_FLOAT
	case int32:
		element = h5.T_NATIVE_INT32
	case int64:
		element, size = h5.T_NATIVE_INT64, 8
	}
	raw, err := createDataset(w.file, name, element, size, grows, shape)
	if err != nil {
		return nil, writeError(w.path, fmt.Errorf("dataset %q: %w: %w", name, err, reason()))
	}
	return &Rows[T]{path: w.path, raw: raw, shape: shape}, nil
}

func createDataset(file *h5.File, name string, element *h5.Datatype, size int, grows bool, shape []int) (*h5.Dataset, error) {
	dims := make([]uint, len(shape))
	for i, n := range shape {
		dims[i] = uint(n)
	}
	if !grows {
		space, err := h5.CreateSimpleDataspace(dims, nil)
		if err != nil {
			return nil, err
		}
		defer space.Close()
		return file.CreateDataset(name, element, space)
	}
	most, chunk := append([]uint(nil), dims...), append([]uint(nil), dims...)
	most[0] = ^uint(0) // H5S_UNLIMITED
	row := size * width(shape)
	pieces := 1 + row*shape[0]/chunkBytes
	chunk[0] = uint(max(1, (shape[0]+pieces-1)/pieces))
	space, err := h5.CreateSimpleDataspace(dims, most)
	if err != nil {
		return nil, err
	}
	defer space.Close()
	properties, err := h5.NewPropList(h5.P_DATASET_CREATE)
	if err != nil {
		return nil, err
	}
	defer properties.Close()
	if err := properties.SetChunk(chunk); err != nil {
		return nil, err
	}
	return file.CreateDatasetWith(name, element, space, properties)
}

func width(shape []int) int {
	if len(shape) == 2 {
		return shape[1]
	}
	return 1
}

// Append writes the next rows. Rows beyond the shape are a fault of the caller's and panic.
func (r *Rows[T]) Append(values []T) error {
	w := width(r.shape)
	n := len(values) / w
	if len(values)%w != 0 || n > r.shape[0]-r.written {
		panic("hdf5: no whole rows, or more than the shape has")
	}
	if n == 0 {
		return nil
	}
	defer enter()()
	count, from := []uint{uint(n)}, []uint{uint(r.written)}
	if len(r.shape) == 2 {
		count, from = append(count, uint(w)), append(from, 0)
	}
	if err := writeRows(r.raw, values, from, count); err != nil {
		return writeError(r.path, fmt.Errorf("%w: %w", err, reason()))
	}
	r.written += n
	return nil
}

func writeRows[T any](raw *h5.Dataset, values []T, from, count []uint) error {
	memory, err := h5.CreateSimpleDataspace(count, nil)
	if err != nil {
		return err
	}
	defer memory.Close()
	file := raw.Space()
	if file == nil {
		return errors.New("no dataspace")
	}
	defer file.Close()
	if err := file.SelectHyperslab(from, nil, count, nil); err != nil {
		return err
	}
	return raw.WriteSubset(&values, memory, file)
}

// Attribute is Writer.Attribute, of the dataset.
func (r *Rows[T]) Attribute(name string, v any) error { return attribute(r.path, r.raw.ID(), name, v) }

// Close ends the dataset. It fails when rows are missing.
func (r *Rows[T]) Close() error {
	defer enter()()
	if err := r.raw.Close(); err != nil {
		return writeError(r.path, reason())
	}
	if r.written != r.shape[0] {
		return &coverslip.Error{Kind: coverslip.Internal, Op: opWrite, Path: r.path, Err: fmt.Errorf("%d of %d rows were written", r.written, r.shape[0])}
	}
	return nil
}

const opWrite = "write h5"

func writeError(path string, err error) error {
	return &coverslip.Error{Kind: coverslip.Full, Op: opWrite, Path: path, Err: err, Hint: "check that the folder can be written and the disk has room"}
}
