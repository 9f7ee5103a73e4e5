package onnxtest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"

	pw "google.golang.org/protobuf/encoding/protowire"

	"coverslip"
)

// Model is a tiny encoder: pixels, uint8 [N,Size,Size,3] → Cast → mean over the tile → × Weights →
// features, float32 [N,Dim]. Feature d is the mean red, green and blue of the tile times
// Weights[0][d], Weights[1][d], Weights[2][d].
type Model struct {
	Size    int
	Weights [3][]float32
}

// Spec is the specification of File.
func (m Model) Spec() coverslip.Model {
	sum := sha256.Sum256(m.File())
	return coverslip.Model{
		Kind:     coverslip.EncoderModel,
		Name:     "mean-colour",
		SHA256:   hex.EncodeToString(sum[:]),
		Dim:      len(m.Weights[0]),
		TileSize: m.Size,
		TileMPP:  0.5,
	}
}

// File is the ONNX file. Field numbers are those of onnx.proto
// (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
func (m Model) File() []byte {
	const uint8Type, floatType = 2, 1 // TensorProto.DataType
	size, dim := int64(m.Size), int64(len(m.Weights[0]))
	var weights []byte
	for _, row := range m.Weights {
		for _, w := range row {
			weights = binary.LittleEndian.AppendUint32(weights, math.Float32bits(w))
		}
	}
	graph := join(
		// GraphProto: node, name, initializer, input, output
		bytes(1, node("Cast", []string{"pixels"}, "float", number("to", floatType))),
		bytes(1, node("ReduceMean", []string{"float"}, "colour", numbers("axes", 1, 2), number("keepdims", 0))),
		bytes(1, node("MatMul", []string{"colour", "weights"}, "features")),
		text(2, "mean-colour"),
		// TensorProto: dims, data_type, name, raw_data
		bytes(5, join(varint(1, 3), varint(1, dim), varint(2, floatType), text(8, "weights"), bytes(9, weights))),
		bytes(11, port("pixels", uint8Type, size, size, 3)),
		bytes(12, port("features", floatType, dim)),
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
