// Package weights holds the files of the encoders that ship with the product: EfficientNet-Lite0 with
// ImageNet weights (Tan and Le, 2019, https://arxiv.org/abs/1905.11946, without
// squeeze-and-excitation and with ReLU6) in float32 and in int8. export.py and quantize.py make them;
// the specifications, with their SHA-256, lie in encoder/specs. Running them is left to encoder/onnx.
package weights

import _ "embed" // the files

//go:embed efficientnet-lite0.onnx
var efficientNetLite0 []byte

//go:embed efficientnet-lite0-int8.onnx
var efficientNetLite0Int8 []byte

// Files are the ONNX files by the name of their encoder. Input "pixels", uint8 RGB [N,224,224,3], with
// its normalisation, (x-127)/128, in the graph; outputs of float32, each averaged over space: "stage3"
// [N,40], "stage5" [N,112] and "stage7" [N,320] after the last block of a stage, "features" [N,1280]
// after the head convolution. The bytes are shared: read them only.
func Files() map[string][]byte {
	return map[string][]byte{
		"efficientnet-lite0":      efficientNetLite0,
		"efficientnet-lite0-int8": efficientNetLite0Int8,
	}
}
