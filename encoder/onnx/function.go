package onnx

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	ort "github.com/yalue/onnxruntime_go"

	"coverslip"
	"coverslip/encoder"
)

// Function is an ONNX file that is run on tensors by name, whatever they mean: an aggregator that somebody
// else trained is one. It is safe for concurrent use; each call runs on the thread that makes it.
type Function struct {
	name string
	sig  Signature
	ort  *ort.DynamicAdvancedSession

	mu     sync.RWMutex // held for reading while it runs, so that Close waits for it
	closed bool
}

// Signature is what a Function takes and gives.
type Signature struct {
	Inputs []Port
	Output string // of float32
}

// Port is an input: its name in the file, whether it is of int64 (else float32), and its shape, with -1 for
// sizes that are free.
type Port struct {
	Name  string
	Int64 bool
	Shape []int64
}

// Tensor is the value of an input: one of Floats and Ints, with as many elements as the shape says.
type Tensor struct {
	Shape  []int64
	Floats []float32
	Ints   []int64
}

// OpenFunction loads the ONNX file at path, with the files of weights in the same folder. It holds both
// against the hashes of files, of which only name, SHA256 and Data count, and its inputs and output against
// sig. What must not be loaded is Invalid, as for encoders.
func OpenFunction(path string, files encoder.Spec, sig Signature, on Provider) (*Function, error) {
	op := "load " + files.Name
	f, raw, g, err := inspect(path)
	if err == nil {
		err = f.checkAgainst(files)
	}
	if err == nil {
		if err = g.checkSignature(sig); err != nil {
			err = &coverslip.Error{Kind: coverslip.Invalid, Err: err, Hint: "export it so, or correct its specification"}
		}
	}
	if err == nil {
		err = loadLibrary()
	}
	if err != nil {
		return nil, coverslip.At(path, coverslip.Doing(op, err))
	}
	options, err := on.options()
	if err != nil {
		return nil, err
	}
	defer func() { _ = options.Destroy() }() // fails for options that are not there only
	out := &Function{name: files.Name, sig: sig}
	var inputs []string
	for _, in := range sig.Inputs {
		inputs = append(inputs, in.Name)
	}
	if len(g.external) == 0 {
		out.ort, err = ort.NewDynamicAdvancedSessionWithONNXData(raw, inputs, []string{sig.Output}, options)
	} else {
		var abs string
		if abs, err = filepath.Abs(path); err == nil {
			out.ort, err = ort.NewDynamicAdvancedSession(abs, inputs, []string{sig.Output}, options)
		}
	}
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: path, Err: err, Hint: "ONNX Runtime cannot use the model; " + graphHint}
	}
	return out, nil
}

// checkSignature holds the inputs and outputs that the file declares against those that are asked for.
func (g graph) checkSignature(sig Signature) error {
	var wanted []port
	for _, in := range sig.Inputs {
		element := int64(floatElement)
		if in.Int64 {
			element = int64Element
		}
		wanted = append(wanted, port{in.Name, element, in.Shape})
	}
	fits := len(wanted) == len(g.inputs)
	for _, w := range wanted {
		fits = fits && slices.ContainsFunc(g.inputs, func(p port) bool { return p.takes(w) })
	}
	if !fits {
		return fmt.Errorf("the file has input %s; its specification asks for %s", list(g.inputs), list(wanted))
	}
	if !slices.ContainsFunc(g.outputs, func(p port) bool { return p.name == sig.Output && p.element == floatElement }) {
		return fmt.Errorf("the file has output %s; its specification asks for %s of float32", list(g.outputs), sig.Output)
	}
	return nil
}

// Run gives the output for inputs in the order of the signature, with its shape.
func (f *Function) Run(ctx context.Context, inputs []Tensor) (out []float32, shape []int64, err error) {
	op := "run " + f.name
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return nil, nil, &coverslip.Error{Kind: coverslip.Internal, Op: op, Err: errors.New("it is closed")}
	}
	// ONNX Runtime holds on to buffers from one call into C to the next.
	var pin runtime.Pinner
	defer pin.Unpin()
	values, outputs := make([]ort.Value, len(inputs)), make([]ort.Value, 1)
	defer func() {
		for _, v := range append(values, outputs...) {
			if v != nil {
				err = errors.Join(err, v.Destroy())
			}
		}
	}()
	for i, in := range inputs {
		if f.sig.Inputs[i].Int64 {
			pin.Pin(&in.Ints[0])
			values[i], err = tensor(ort.NewTensor(ort.NewShape(in.Shape...), in.Ints))
		} else {
			pin.Pin(&in.Floats[0])
			values[i], err = tensor(ort.NewTensor(ort.NewShape(in.Shape...), in.Floats))
		}
		if err != nil {
			return nil, nil, &coverslip.Error{Kind: coverslip.Internal, Op: op, Err: err}
		}
	}
	options, err := ort.NewRunOptions()
	if err != nil {
		return nil, nil, &coverslip.Error{Kind: coverslip.Internal, Op: op, Err: err}
	}
	defer func() { err = errors.Join(err, options.Destroy()) }()
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = options.Terminate() // ends the run at the next node; without it the run ends by itself
		close(told)
	})
	err = f.ort.RunWithOptions(values, outputs, options)
	if !stop() {
		<-told // options must outlive the call
	}
	switch {
	case ctx.Err() != nil:
		return nil, nil, &coverslip.Error{Kind: coverslip.Canceled, Op: op, Err: context.Cause(ctx)}
	case err != nil: // it is the user's file that does not take what its own signature says
		return nil, nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: firstLine(err), Hint: graphHint}
	}
	t, ok := outputs[0].(*ort.Tensor[float32])
	if !ok {
		return nil, nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf("output %s is not of float32", f.sig.Output), Hint: graphHint}
	}
	return slices.Clone(t.GetData()), t.GetShape(), nil
}

// Close waits for running calls and frees the session. Run fails afterwards.
func (f *Function) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	if err := f.ort.Destroy(); err != nil {
		return &coverslip.Error{Kind: coverslip.Internal, Op: "free " + f.name, Err: err}
	}
	return nil
}
