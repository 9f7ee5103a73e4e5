package onnx

import (
	"errors"
	"fmt"
	"strings"

	ort "github.com/yalue/onnxruntime_go"

	"coverslip"
)

// Provider is what ONNX Runtime computes on. The zero value is the CPU.
type Provider string

const (
	CPU      Provider = "cpu"
	CUDA     Provider = "cuda"
	TensorRT Provider = "tensorrt"
)

// options are those of a session whose calls run on one thread each, because workers keep the cores
// busy already, and with no thread that spins while it waits. The memory arena stays on: without it
// every batch fetches its memory from the kernel anew, and a quarter of the speed is gone.
//
// A provider that the library does not have is an Environment error.
func (p Provider) options() (*ort.SessionOptions, error) {
	o, err := ort.NewSessionOptions()
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "start ONNX Runtime", Err: err}
	}
	err = errors.Join(
		o.SetIntraOpNumThreads(1),
		o.SetInterOpNumThreads(1),
		o.SetGraphOptimizationLevel(ort.GraphOptimizationLevelEnableAll),
		o.AddSessionConfigEntry("session.intra_op.allow_spinning", "0"),
	)
	if err == nil {
		err = p.addTo(o)
	}
	if err != nil {
		_ = o.Destroy() // fails for options that are not there only
		return nil, &coverslip.Error{
			Kind: coverslip.Environment, Op: fmt.Sprintf("use provider %s of ONNX Runtime", p), Path: library.path, Err: firstLine(err),
			Hint: "set " + LibraryVariable + " to a libonnxruntime.so that has it (from the wheel onnxruntime-gpu, for CUDA and TensorRT), or leave out --provider",
		}
	}
	return o, nil
}

func (p Provider) addTo(o *ort.SessionOptions) error {
	switch p {
	case CPU, "":
		return nil
	case CUDA:
		cuda, err := ort.NewCUDAProviderOptions()
		if err != nil {
			return err
		}
		return errors.Join(o.AppendExecutionProviderCUDA(cuda), cuda.Destroy())
	case TensorRT: // what it cannot run goes to CUDA
		rt, err := ort.NewTensorRTProviderOptions()
		if err != nil {
			return err
		}
		return errors.Join(o.AppendExecutionProviderTensorRT(rt), rt.Destroy(), CUDA.addTo(o))
	}
	return fmt.Errorf("there is no such provider: it is one of %s, %s, %s", CPU, CUDA, TensorRT)
}

// firstLine leaves out what ONNX Runtime adds for those who build it.
func firstLine(err error) error {
	text, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(text)
}
