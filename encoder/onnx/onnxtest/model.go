package onnxtest

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"

	pw "google.golang.org/protobuf/encoding/protowire"

	"coverslip/encoder"
)

// Model is a tiny encoder. Of its input x, tiles in its Layout, it gives
//
//	features [N,Dim]         mean over the tile × Weights
//	map      [N,3,Size,Size] x
//	tokens   [N,Size·Size,3] x
//
// so that feature d is the mean red, green and blue of the tile times Weights[0][d], Weights[1][d],
// Weights[2][d].
type Model struct {
	Size     int
	Weights  [3][]float32
	Layout   encoder.Layout // "" is encoder.NHWCUint8
	External string         // the file its weights lie in; "" is the ONNX file itself
}

// Spec is the specification of File: its taps are features, the mean of map, and of tokens the
// first, the mean of all but five, and both.
func (m Model) Spec() encoder.Spec {
	sum := sha256.Sum256(m.File())
	dim, skip := len(m.Weights[0]), 5
	s := encoder.Spec{
		Name:   "mean-colour",
		SHA256: hex.EncodeToString(sum[:]),
		Input:  encoder.Input{Tensor: "pixels", Size: m.Size, MPP: 0.5, Layout: m.layout()},
		Taps: []encoder.Tap{
			{Name: "features", Output: "features", Dim: dim, Pooling: encoder.None},
			{Name: "map", Output: "map", Dim: 3, Pooling: encoder.GAP},
			{Name: "class", Output: "tokens", Dim: 3, Pooling: encoder.Class},
			{Name: "mean", Output: "tokens", Dim: 3, Pooling: encoder.Mean, Skip: &skip},
			{Name: "both", Output: "tokens", Dim: 6, Pooling: encoder.ClassAndMean, Skip: &skip},
		},
	}
	if m.layout() != encoder.NHWCUint8 {
		s.Input.Mean, s.Input.Std = []float64{0.485, 0.456, 0.406}, []float64{0.229, 0.224, 0.225}
	}
	if m.External != "" {
		sum := sha256.Sum256(m.Data())
		s.Data = map[string]string{m.External: hex.EncodeToString(sum[:])}
	}
	return s
}

func (m Model) layout() encoder.Layout { return cmp.Or(m.Layout, encoder.NHWCUint8) }

// Data is the content of the file External.
func (m Model) Data() []byte {
	var weights []byte
	for _, row := range m.Weights {
		for _, w := range row {
			weights = binary.LittleEndian.AppendUint32(weights, math.Float32bits(w))
		}
	}
	return weights
}

// File is the ONNX file. Field numbers are those of onnx.proto
// (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
func (m Model) File() []byte {
	const uint8Type, floatType, int64Type = 2, 1, 7 // TensorProto.DataType
	size, dim := int64(m.Size), int64(len(m.Weights[0]))
	// TensorProto: dims, data_type, name, then raw_data, or external_data and data_location
	weights := join(varint(1, 3), varint(1, dim), varint(2, floatType), text(8, "weights"))
	if m.External == "" {
		weights = join(weights, bytes(9, m.Data()))
	} else {
		weights = join(weights, bytes(13, join(text(1, "location"), text(2, m.External))), varint(14, 1))
	}
	shape := join(varint(1, 3), varint(2, int64Type), text(8, "shape"), varint(7, 0), varint(7, size*size), varint(7, 3))

	in := port("pixels", floatType, size, size, 3)
	last := "float" // [N,Size,Size,3] of float
	var first []byte
	switch m.layout() {
	case encoder.NHWCUint8:
		in = port("pixels", uint8Type, size, size, 3)
		first = node("Cast", []string{"pixels"}, "float", number("to", floatType))
	case encoder.NCHWFloat32:
		in = port("pixels", floatType, 3, size, size)
		first = node("Transpose", []string{"pixels"}, "float", numbers("perm", 0, 2, 3, 1))
	default:
		last = "pixels"
	}
	nodes := [][]byte{
		node("ReduceMean", []string{last}, "colour", numbers("axes", 1, 2), number("keepdims", 0)),
		node("MatMul", []string{"colour", "weights"}, "features"),
		node("Transpose", []string{last}, "map", numbers("perm", 0, 3, 1, 2)),
		node("Reshape", []string{last, "shape"}, "tokens"),
	}
	if first != nil {
		nodes = append([][]byte{first}, nodes...)
	}
	var graph []byte // GraphProto: node, name, initializer, input, output
	for _, n := range nodes {
		graph = append(graph, bytes(1, n)...)
	}
	graph = join(graph,
		text(2, "mean-colour"),
		bytes(5, weights),
		bytes(5, shape),
		bytes(11, in),
		bytes(12, port("features", floatType, dim)),
		bytes(12, port("map", floatType, 3, size, size)),
		bytes(12, port("tokens", floatType, size*size, 3)),
	)
	// ModelProto: ir_version, graph, opset_import (version 17: the last with axes as an attribute)
	return join(varint(1, 8), bytes(7, graph), bytes(8, varint(2, 17)))
}

// node is a NodeProto: input, output, op_type, attribute.
func node(op string, inputs []string, output string, attributes ...[]byte) []byte {
	var b []byte
	for _, in := range inputs {
		b = append(b, text(1, in)...)
	}
	b = append(b, join(text(2, output), text(4, op))...)
	for _, a := range attributes {
		b = append(b, bytes(5, a)...)
	}
	return b
}

// number and numbers are AttributeProtos: name, i or ints, type (INT 2, INTS 7).
func number(name string, v int64) []byte { return join(text(1, name), varint(3, v), varint(20, 2)) }

func numbers(name string, vs ...int64) []byte {
	b := text(1, name)
	for _, v := range vs {
		b = append(b, varint(8, v)...)
	}
	return append(b, varint(20, 7)...)
}

// port is a ValueInfoProto: name, type.tensor_type{elem_type, shape.dim[]}; the first dimension is
// the free N.
func port(name string, element int64, dims ...int64) []byte {
	shape := bytes(1, text(2, "N"))
	for _, d := range dims {
		shape = append(shape, bytes(1, varint(1, d))...)
	}
	return join(text(1, name), bytes(2, bytes(1, join(varint(1, element), bytes(2, shape)))))
}

func varint(field pw.Number, v int64) []byte {
	return pw.AppendVarint(pw.AppendTag(nil, field, pw.VarintType), uint64(v)) //nolint:gosec // two's complement is protobuf's int64
}

func bytes(field pw.Number, v []byte) []byte {
	return pw.AppendBytes(pw.AppendTag(nil, field, pw.BytesType), v)
}

func text(field pw.Number, v string) []byte { return bytes(field, []byte(v)) }

func join(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}
