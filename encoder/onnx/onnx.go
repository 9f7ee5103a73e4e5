// Package onnx runs encoders with ONNX Runtime. It is the only place of the encoder that stands on
// cgo. It finds and loads the shared library, checks a model's file and holds it against its
// specification before ONNX Runtime sees it, and runs batches; reading tiles and ordering batches is
// left to package encoder.
package onnx

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"sync"

	ort "github.com/yalue/onnxruntime_go"

	"coverslip"
	"coverslip/encoder"
)

// Session is an encoder in memory, shared by all workers: each call of Encode runs on the thread
// that makes it, on one core.
type Session struct {
	model coverslip.Model
	spec  encoder.Spec
	taps  []encoder.Tap
	table *[3][256]float32 // of values 0 to 255 of red, green and blue; nil: the graph takes them as they are
	ort   *ort.DynamicAdvancedSession
	input sync.Pool // of *[]float32

	mu     sync.RWMutex // held for reading while a batch runs, so that Close waits for it
	closed bool
}

var _ encoder.Encoder = (*Session)(nil)

// Open loads an encoder from the bytes of its ONNX file, which must have the SHA-256 of spec and
// hold all weights; they are not kept. Close frees the session.
func Open(file []byte, spec encoder.Spec, on Provider) (*Session, error) {
	op := "load encoder " + spec.Name
	if err := checkHash(fileHash(file), spec.SHA256); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: err, Hint: hashHint}
	}
	g, err := readGraph(file)
	if err == nil && len(g.external) > 0 {
		err = errors.New("its weights lie in other files")
	}
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: err, Hint: graphHint}
	}
	return openBytes(file, spec, on, g)
}

// OpenFile loads an encoder from its ONNX file at path and, where it has any, the files of weights
// in the same folder. All must have the SHA-256 that spec says; whoever can write to the folder
// while they are loaded is trusted.
func OpenFile(path string, spec encoder.Spec, on Provider) (*Session, error) {
	f, raw, g, err := inspect(path)
	if err == nil {
		err = f.checkAgainst(spec)
	}
	if err != nil {
		return nil, coverslip.At(path, coverslip.Doing("load encoder "+spec.Name, err))
	}
	if len(g.external) == 0 {
		s, err := openBytes(raw, spec, on, g)
		return s, coverslip.At(path, err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: "load encoder " + spec.Name, Path: path, Err: err}
	}
	s, err := open(spec, on, g, func(o *ort.SessionOptions, outputs []string) (*ort.DynamicAdvancedSession, error) {
		return ort.NewDynamicAdvancedSession(abs, []string{spec.Input.Tensor}, outputs, o)
	})
	return s, coverslip.At(path, err)
}

func openBytes(file []byte, spec encoder.Spec, on Provider, g graph) (*Session, error) {
	return open(spec, on, g, func(o *ort.SessionOptions, outputs []string) (*ort.DynamicAdvancedSession, error) {
		return ort.NewDynamicAdvancedSessionWithONNXData(file, []string{spec.Input.Tensor}, outputs, o)
	})
}

const (
	hashHint  = "the file was changed or cut on its way; get it again"
	graphHint = "export it to ONNX again; docs/ENCODERS.md says how"
)

func open(spec encoder.Spec, on Provider, g graph, load func(*ort.SessionOptions, []string) (*ort.DynamicAdvancedSession, error)) (*Session, error) {
	op := "load encoder " + spec.Name
	s := &Session{model: spec.Model(), spec: spec, taps: spec.InUse()}
	if err := g.checkPorts(spec); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: err, Hint: "export it so, or correct its specification"}
	}
	if spec.Input.Layout != encoder.NHWCUint8 {
		s.table = normalisation(spec.Input)
		floats := spec.Input.Size * spec.Input.Size * 3
		s.input.New = func() any { return new(make([]float32, 0, encoder.BatchSize*floats)) }
	}
	if err := loadLibrary(); err != nil {
		return nil, err
	}
	options, err := on.options()
	if err != nil {
		return nil, err
	}
	defer func() { _ = options.Destroy() }() // fails for options that are not there only
	var outputs []string
	for _, t := range s.taps {
		outputs = append(outputs, t.Output)
	}
	if s.ort, err = load(options, outputs); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: err, Hint: "ONNX Runtime cannot use the model; " + graphHint}
	}
	return s, nil
}

// Model is what is known of the encoder, with the taps it was opened with.
func (s *Session) Model() coverslip.Model { return s.model }

// Close waits for running batches and frees the session. Encode fails afterwards.
func (s *Session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.ort.Destroy(); err != nil {
		return &coverslip.Error{Kind: coverslip.Internal, Op: "free encoder " + s.model.Name, Err: err}
	}
	return nil
}

// Encode implements encoder.Encoder. Where the file takes pixels as they are and gives the features
// as they are, ONNX Runtime reads pixels and writes dst in place.
func (s *Session) Encode(ctx context.Context, dst []float32, pixels []uint8, n int) error {
	size, dim := s.model.TileSize, s.model.Dim
	if n < 1 || len(pixels) != n*size*size*3 || len(dst) != n*dim {
		panic("onnx: Encode needs pixels [n,S,S,3] and dst [n,D]")
	}
	op := "run encoder " + s.model.Name
	if ctx.Err() != nil {
		return &coverslip.Error{Kind: coverslip.Canceled, Op: op, Err: context.Cause(ctx)}
	}
	if err := s.run(ctx, dst, pixels, n); err != nil {
		if ctx.Err() != nil {
			return &coverslip.Error{Kind: coverslip.Canceled, Op: op, Err: context.Cause(ctx)}
		}
		if coverslip.KindOf(err) == coverslip.Invalid {
			return coverslip.Doing(op, err)
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
	// ONNX Runtime holds on to buffers from one call into C to the next.
	var pin runtime.Pinner
	defer pin.Unpin()

	in, release, err := s.tensor(pixels, n, &pin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Destroy()); release() }()
	outputs := make([]ort.Value, len(s.taps))
	defer func() {
		for _, out := range outputs {
			if out != nil {
				err = errors.Join(err, out.Destroy())
			}
		}
	}()
	inPlace := len(s.taps) == 1 && s.taps[0].Pooling == encoder.None
	if inPlace {
		pin.Pin(&dst[0])
		if outputs[0], err = tensor(ort.NewTensor(ort.NewShape(int64(n), int64(s.model.Dim)), dst)); err != nil {
			return err
		}
	}
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
	err = s.ort.RunWithOptions([]ort.Value{in}, outputs, options)
	if !stop() {
		<-told // options must outlive the call
	}
	if err != nil || inPlace {
		return err
	}
	return s.pool(dst, outputs, n)
}

// tensor is the input for n tiles: pixels themselves, or their normalised values in a buffer that
// release gives back.
func (s *Session) tensor(pixels []uint8, n int, pin *runtime.Pinner) (in ort.Value, release func(), err error) {
	side := int64(s.model.TileSize)
	if s.table == nil {
		pin.Pin(&pixels[0])
		in, err = tensor(ort.NewTensor(ort.NewShape(int64(n), side, side, 3), pixels))
		return in, func() {}, err
	}
	buffer := s.input.Get().(*[]float32)
	release = func() { s.input.Put(buffer) }
	if cap(*buffer) < len(pixels) {
		*buffer = make([]float32, len(pixels))
	}
	*buffer = (*buffer)[:len(pixels)]
	pin.Pin(&(*buffer)[0])
	shape := ort.NewShape(int64(n), side, side, 3)
	if s.spec.Input.Layout == encoder.NCHWFloat32 {
		shape = ort.NewShape(int64(n), 3, side, side)
		planes(*buffer, pixels, n, s.table)
	} else {
		interleaved(*buffer, pixels, s.table)
	}
	if in, err = tensor(ort.NewTensor(shape, *buffer)); err != nil {
		release()
	}
	return in, release, err
}

// tensor keeps a nil *Tensor from becoming a Value that is not nil.
func tensor[T ort.TensorData](t *ort.Tensor[T], err error) (ort.Value, error) {
	if err != nil {
		return nil, err
	}
	return t, nil
}

// pool turns the outputs for n tiles into dst, [n, D], tap by tap.
func (s *Session) pool(dst []float32, outputs []ort.Value, n int) error {
	first := 0
	for i, tap := range s.taps {
		out, ok := outputs[i].(*ort.Tensor[float32])
		if !ok {
			return &coverslip.Error{Kind: coverslip.Invalid, Err: fmt.Errorf("output %s is not of float32", tap.Output), Hint: graphHint}
		}
		shape := out.GetShape()
		if !fits(shape, tap, n) {
			return &coverslip.Error{Kind: coverslip.Invalid, Err: fmt.Errorf("output %s has the shape %v for %d tiles; tap %s asks for %s", tap.Output, shape, n, tap.Name, wanted(tap)),
				Hint: "export it so, or correct its specification"}
		}
		pool(dst[first:], s.model.Dim, out.GetData(), shape, tap)
		first += tap.Dim
	}
	return nil
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
