package onnx

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"coverslip"
	"coverslip/encoder"
)

// File is an ONNX file as it lies on disk: hashes of it and, by name, of the files of weights beside
// it, and how large they are together.
type File struct {
	SHA256 string
	Data   map[string]string
	Bytes  int64
}

// Inspect reads the ONNX file at path, checks it as Open would, without ONNX Runtime, and hashes it
// and the files it keeps its weights in. A file that must not be loaded is Invalid.
func Inspect(path string) (File, error) {
	f, _, _, err := inspect(path)
	return f, coverslip.At(path, err)
}

// maxFile is what protobuf can hold; larger models keep their weights in files beside it.
const maxFile = 2 << 30

func inspect(path string) (f File, raw []byte, g graph, err error) {
	const op = "check the ONNX file"
	fail := func(kind coverslip.Kind, err error, hint string) (File, []byte, graph, error) {
		return File{}, nil, graph{}, &coverslip.Error{Kind: kind, Op: op, Err: err, Hint: hint}
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail(coverslip.NotFound, fs.ErrNotExist, "")
	case err != nil:
		return fail(coverslip.Environment, err, "")
	case !info.Mode().IsRegular():
		return fail(coverslip.Invalid, errors.New("it is no regular file"), "")
	case info.Size() > maxFile:
		return fail(coverslip.TooLarge, fmt.Errorf("it has %d bytes, more than ONNX allows", info.Size()), "export it with its weights in a file of their own; docs/ENCODERS.md says how")
	}
	if raw, err = os.ReadFile(path); err != nil {
		return fail(coverslip.Environment, err, "")
	}
	if g, err = readGraph(raw); err != nil {
		return fail(coverslip.Invalid, err, graphHint)
	}
	f = File{SHA256: fileHash(raw), Bytes: int64(len(raw))}
	if len(g.external) == 0 {
		return f, raw, g, nil
	}
	// A root keeps every access inside the folder, whatever its entries point at.
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return fail(coverslip.Environment, err, "")
	}
	defer root.Close()
	f.Data = map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(g.external)) {
		sum, size, err := hashData(root, name, g.external[name])
		if err != nil {
			return fail(coverslip.Invalid, err, "its weights must lie beside it, as they were exported")
		}
		f.Data[name] = sum
		f.Bytes += size
	}
	return f, raw, g, nil
}

// hashData hashes a file of weights, which must be a plain one with at least so many bytes.
func hashData(root *os.Root, name string, least int64) (sum string, size int64, err error) {
	info, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0, fmt.Errorf("its weights lie in %s, which is not there", name)
	}
	if err != nil {
		return "", 0, err
	}
	if !info.Mode().IsRegular() {
		return "", 0, fmt.Errorf("its weights lie in %s, which is no regular file (a link leads elsewhere)", name)
	}
	if info.Size() < least {
		return "", 0, fmt.Errorf("its weights lie in %s, which ends early: it has %d bytes of %d", name, info.Size(), least)
	}
	in, err := root.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer in.Close()
	h := sha256.New()
	if size, err = io.Copy(h, in); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}

func fileHash(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// checkAgainst holds the hashes against those of a specification.
func (f File) checkAgainst(spec encoder.Spec) error {
	err := checkHash(f.SHA256, spec.SHA256)
	for _, name := range spec.DataNames() {
		if err == nil && f.Data[name] != spec.Data[name] {
			err = fmt.Errorf("%s has SHA-256 %s, its specification says %s", name, f.Data[name], spec.Data[name])
		}
	}
	if err == nil && len(f.Data) != len(spec.Data) {
		err = fmt.Errorf("it keeps weights in %d files, its specification lists %d", len(f.Data), len(spec.Data))
	}
	if err != nil {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "check the SHA-256", Err: err, Hint: hashHint}
	}
	return nil
}

func checkHash(got, want string) error {
	if want == "" {
		return errors.New("its specification has no SHA-256: add it with coverslip models add")
	}
	if got != want {
		return fmt.Errorf("the file has SHA-256 %s, its specification says %s", got, want)
	}
	return nil
}

// checkPorts holds the inputs and outputs the file declares against its specification: all taps, not
// only those in use.
func (g graph) checkPorts(spec encoder.Spec) error {
	in := spec.Input
	side := int64(in.Size)
	element, shape := int64(floatElement), []int64{-1, side, side, 3}
	switch in.Layout {
	case encoder.NHWCUint8:
		element = uint8Element
	case encoder.NCHWFloat32:
		shape = []int64{-1, 3, side, side}
	}
	want := port{in.Tensor, element, shape}
	if len(g.inputs) != 1 || !g.inputs[0].takes(want) {
		err := fmt.Errorf("the file has input %s; its specification asks for %s", list(g.inputs), want)
		if len(g.inputs) == 1 && len(g.inputs[0].shape) == 4 && g.inputs[0].shape[0] > 0 {
			return fmt.Errorf("%w (it takes batches of %d only: export it with a free first dimension)", err, g.inputs[0].shape[0])
		}
		return err
	}
	for _, tap := range spec.Taps {
		i := slices.IndexFunc(g.outputs, func(p port) bool { return p.name == tap.Output })
		if i < 0 {
			return fmt.Errorf("the file has output %s; tap %s asks for %s", list(g.outputs), tap.Name, tap.Output)
		}
		if out := g.outputs[i]; out.element != floatElement || out.shape != nil && !fits(out.shape, tap, -1) {
			return fmt.Errorf("the file has output %s; tap %s asks for %s %s", out, tap.Name, tap.Output, wanted(tap))
		}
	}
	return nil
}

// takes reports whether p is as want, or leaves open what want says.
func (p port) takes(want port) bool {
	if p.name != want.name || p.element != want.element {
		return false
	}
	return p.shape == nil || slices.EqualFunc(p.shape, want.shape, func(have, want int64) bool { return have == want || have == -1 })
}

// wanted is the shape that a tap pools.
func wanted(tap encoder.Tap) string {
	switch tap.Pooling {
	case encoder.GAP:
		return fmt.Sprintf("float32 [N %d H W]", tap.Dim)
	case encoder.Class:
		return fmt.Sprintf("float32 [N T %d]", tap.Dim)
	case encoder.Mean:
		return fmt.Sprintf("float32 [N T %d] with more than %d tokens", tap.Dim, *tap.Skip)
	case encoder.ClassAndMean:
		return fmt.Sprintf("float32 [N T %d] with more than %d tokens", tap.Dim/2, *tap.Skip)
	}
	return fmt.Sprintf("float32 [N %d]", tap.Dim)
}

func list(ports []port) string {
	var all []string
	for _, p := range ports {
		all = append(all, p.String())
	}
	return strings.Join(all, " and ")
}
