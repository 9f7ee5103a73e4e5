package foreign

import (
	"coverslip/encoder/onnx"
	"coverslip/slidessl"
)

// Inputs are the tensors of a bag.
func Inputs(s Spec, bag slidessl.Bag) ([]onnx.Tensor, error) { return s.inputs(bag) }
