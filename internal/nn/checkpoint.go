package nn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"syscall"

	"github.com/nlpodyssey/safetensors"

	"coverslip"
)

// Save writes parameters to a safetensors file, whole or not at all: the file that was there stays until
// the new one is on the disk. text goes into the file's metadata. Equal inputs give equal bytes.
func Save(path string, params []*Param, text map[string]string) (err error) {
	const op = "save the network"
	tensors := make(map[string]safetensors.TensorView, len(params))
	for _, p := range params {
		raw := make([]byte, 4*len(p.Value))
		for i, v := range p.Value {
			binary.LittleEndian.PutUint32(raw[4*i:], math.Float32bits(v))
		}
		view, err := safetensors.NewTensorView(safetensors.F32, []uint64{uint64(p.Rows), uint64(p.Cols)}, raw) //nolint:gosec // not negative
		if err != nil {
			return fault(op, err)
		}
		if _, twice := tensors[p.Name]; twice {
			panic("nn: two parameters are called " + p.Name)
		}
		tensors[p.Name] = view
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".partial-*")
	if err != nil {
		return diskError(op, path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name()) // a partial file that nobody sees
			err = diskError(op, path, err)
		}
	}()
	if err = safetensors.SerializeToWriter(tensors, text, f); err != nil {
		return err
	}
	if err = errors.Join(f.Chmod(0o644), f.Sync()); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func diskError(op, path string, err error) error {
	e := &coverslip.Error{Kind: coverslip.Environment, Op: op, Path: path, Err: err, Hint: "check the folder and who may write to it"}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		e.Kind, e.Hint = coverslip.Full, "free some space and go on with --resume; what was saved before is whole"
	case errors.Is(err, fs.ErrNotExist):
		e.Kind, e.Hint = coverslip.NotFound, "check the path"
	}
	return e
}

// File is a network that was saved.
type File struct {
	Text   map[string]string
	Params map[string]*Param
}

// Load reads what Save wrote, or any safetensors file of float32 matrices. Broken and foreign files are
// errors of kind Invalid.
func Load(path string) (*File, error) {
	const op = "read the network"
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, diskError(op, path, err)
	}
	f, err := Parse(raw)
	return f, coverslip.At(path, coverslip.Doing(op, err))
}

// Parse reads the bytes of such a file.
func Parse(raw []byte) (*File, error) {
	bad := func(err error) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "parse safetensors", Err: err, Hint: "the file is damaged or is none; get it again"}
	}
	tensors, err := safetensors.Deserialize(raw)
	if err != nil {
		return nil, bad(err)
	}
	_, header, err := safetensors.ReadMetadata(raw)
	if err != nil {
		return nil, bad(err)
	}
	f := &File{Text: header.Metadata(), Params: map[string]*Param{}}
	for _, t := range tensors.Tensors() {
		shape := t.TensorView.Shape()
		if t.TensorView.DType() != safetensors.F32 || len(shape) != 2 {
			return nil, bad(fmt.Errorf("%s is %v of %v, not a matrix of float32", t.Name, shape, t.TensorView.DType()))
		}
		data := t.TensorView.Data()
		p := &Param{Name: t.Name, Rows: int(shape[0]), Cols: int(shape[1]), Value: make([]float32, len(data)/4)} //nolint:gosec // held against the length below
		if uint64(len(p.Value)) != shape[0]*shape[1] {
			return nil, bad(fmt.Errorf("%s has another length than its shape", t.Name))
		}
		for i := range p.Value {
			p.Value[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
		}
		f.Params[t.Name] = p
	}
	return f, nil
}

// Fill copies the file's numbers into params, by name. All of them must be there, of the same shape and
// finite; the file may hold more.
func (f *File) Fill(params []*Param) error {
	for _, p := range params {
		from, there := f.Params[p.Name]
		var err error
		switch {
		case !there:
			err = fmt.Errorf("it has no %s", p.Name)
		case from.Rows != p.Rows || from.Cols != p.Cols:
			err = fmt.Errorf("its %s is %d × %d, not %d × %d", p.Name, from.Rows, from.Cols, p.Rows, p.Cols)
		case !allFinite(from.Value):
			err = fmt.Errorf("its %s is not finite", p.Name)
		}
		if err != nil {
			return &coverslip.Error{Kind: coverslip.Invalid, Op: "take over the network", Err: err, Hint: "the file belongs to another network, or another version of this one"}
		}
	}
	for _, p := range params {
		copy(p.Value, f.Params[p.Name].Value)
	}
	return nil
}
