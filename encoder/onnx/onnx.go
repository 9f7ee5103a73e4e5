// Package onnx runs encoders with ONNX Runtime on the CPU. It is the only place of the encoder
// that stands on cgo. It finds and loads the shared library, checks a model against its
// specification, and runs batches; reading tiles and ordering batches is left to package encoder.
package onnx

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"

	ort "github.com/yalue/onnxruntime_go"

	"coverslip"
	"coverslip/encoder"
)

// Names of the one input and the one output of an encoder's graph.
const (
	inputName  = "pixels"   // uint8 [N, S, S, 3], RGB; normalisation is part of the graph
	outputName = "features" // float32 [N, D]
)

// Session is an encoder in memory, shared by all workers: each call of Encode runs on the thread
// that makes it, on one core.
type Session struct {
	spec coverslip.Model
	ort  *ort.DynamicAdvancedSession

	mu     sync.RWMutex // held for reading while a batch runs, so that Close waits for it
	closed bool
}

var _ encoder.Encoder = (*Session)(nil)

// Open loads model, the bytes of an ONNX file with one input "pixels", uint8 [N, S, S, 3], and one
// output "features", float32 [N, D], for any N. The bytes must have the SHA-256 of spec, and S and
// D must be its TileSize and Dim; the model is not kept. Close frees the session.
func Open(model []byte, spec coverslip.Model) (*Session, error) {
	op := "load encoder " + spec.Name
	sum := sha256.Sum256(model)
	if got := hex.EncodeToString(sum[:]); got != spec.SHA256 {
		return nil, &coverslip.Error{
			Kind: coverslip.Invalid, Op: op,
			Err:  fmt.Errorf("the file has SHA-256 %s, its specification says %s", got, spec.SHA256),
			Hint: "the file was changed or cut on its way; get it again",
		}
	}
	if err := load(); err != nil {
		return nil, err
	}
	session, err := newSession(model)
	if err != nil {
		return nil, &coverslip.Error{
			Kind: coverslip.Invalid, Op: op, Err: err,
			Hint: "ONNX Runtime cannot use the model; export it again",
		}
	}
	if err := checkGraph(model, spec); err != nil {
		return nil, errors.Join(&coverslip.Error{
			Kind: coverslip.Invalid, Op: op, Err: err,
			Hint: "export it so, or correct tile_size and dim of its specification",
		}, session.Destroy())
	}
	return &Session{spec: spec, ort: session}, nil
}

// Model is the specification the session was opened with.
func (s *Session) Model() coverslip.Model { return s.spec }

// Close waits for running batches and frees the session. Encode fails afterwards.
func (s *Session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.ort.Destroy(); err != nil {
		return &coverslip.Error{Kind: coverslip.Internal, Op: "free encoder " + s.spec.Name, Err: err}
	}
	return nil
}

// Encode implements encoder.Encoder. ONNX Runtime reads pixels and writes dst in place.
func (s *Session) Encode(ctx context.Context, dst []float32, pixels []uint8, n int) error {
	size, dim := s.spec.TileSize, s.spec.Dim
	if n < 1 || len(pixels) != n*size*size*3 || len(dst) != n*dim {
		panic("onnx: Encode needs pixels [n,S,S,3] and dst [n,D]")
	}
	op := "run encoder " + s.spec.Name
	if ctx.Err() != nil {
		return &coverslip.Error{Kind: coverslip.Canceled, Op: op, Err: context.Cause(ctx)}
	}
	if err := s.run(ctx, dst, pixels, n); err != nil {
		if ctx.Err() != nil {
			return &coverslip.Error{Kind: coverslip.Canceled, Op: op, Err: context.Cause(ctx)}
		}
		return &coverslip.Error{Kind: coverslip.Internal, Op: op, Err: err}
	}
	if err := checkFinite(dst, dim); err != nil {
		return &coverslip.Error{
			Kind: coverslip.Invalid, Op: op, Err: err,
			Hint: "the encoder's weights or its normalisation overflow; use another encoder",
		}
	}
	return nil
}

func (s *Session) run(ctx context.Context, dst []float32, pixels []uint8, n int) (err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return errors.New("the encoder is closed")
	}
	// ONNX Runtime holds on to both buffers from one call into C to the next.
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&pixels[0])
	pin.Pin(&dst[0])

	side := int64(s.spec.TileSize)
	in, err := ort.NewTensor(ort.NewShape(int64(n), side, side, 3), pixels)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Destroy()) }()
	out, err := ort.NewTensor(ort.NewShape(int64(n), int64(s.spec.Dim)), dst)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Destroy()) }()
	options, err := ort.NewRunOptions()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, options.Destroy()) }()

	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = options.Terminate() // ends the run at the next node; without it the run ends by itself
		close(told)
	})
	err = s.ort.RunWithOptions([]ort.Value{in}, []ort.Value{out}, options)
	if !stop() {
		<-told // options must outlive the call
	}
	return err
}

// checkFinite returns a RowError for the first of the rows of dst, [n, dim], that holds a NaN or
// an infinity.
func checkFinite(dst []float32, dim int) error {
	const exponent = 0x7f800000 // all ones in NaN and infinity only (IEEE 754)
	for i, v := range dst {
		if math.Float32bits(v)&exponent == exponent {
			return &encoder.RowError{Row: i / dim, Err: fmt.Errorf("feature %d is %v", i%dim, v)}
		}
	}
	return nil
}

// newSession loads a model for calls that run on one thread each, because workers keep the cores
// busy already, and with no thread that spins while it waits. The memory arena stays on: without it
// every batch fetches its memory from the kernel anew, and a quarter of the speed is gone.
func newSession(model []byte) (*ort.DynamicAdvancedSession, error) {
	o, err := ort.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	defer func() { _ = o.Destroy() }() // fails for options that are not there only
	err = errors.Join(
		o.SetIntraOpNumThreads(1),
		o.SetInterOpNumThreads(1),
		o.SetGraphOptimizationLevel(ort.GraphOptimizationLevelEnableAll),
		o.AddSessionConfigEntry("session.intra_op.allow_spinning", "0"),
	)
	if err != nil {
		return nil, err
	}
	return ort.NewDynamicAdvancedSessionWithONNXData(model, []string{inputName}, []string{outputName}, o)
}

// checkGraph holds the inputs and outputs the file declares against what Encode will give it.
func checkGraph(model []byte, spec coverslip.Model) error {
	inputs, outputs, err := ort.GetInputOutputInfoWithONNXData(model)
	if err != nil {
		return err
	}
	got := "input " + ports(inputs) + ", output " + ports(outputs)
	want := fmt.Sprintf("input %s uint8 [N %d %d 3], output %s float32 [N %d]",
		inputName, spec.TileSize, spec.TileSize, outputName, spec.Dim)
	if got != want {
		return fmt.Errorf("the model has %s; its specification asks for %s", got, want)
	}
	return nil
}

func ports(infos []ort.InputOutputInfo) string {
	var all []string
	for _, p := range infos {
		element := p.DataType.String()
		switch p.DataType {
		case ort.TensorElementDataTypeUint8:
			element = "uint8"
		case ort.TensorElementDataTypeFloat:
			element = "float32"
		}
		shape := strings.ReplaceAll(fmt.Sprint([]int64(p.Dimensions)), "-1", "N") // -1: any number
		all = append(all, fmt.Sprintf("%s %s %s", p.Name, element, shape))
	}
	return strings.Join(all, " and ")
}
