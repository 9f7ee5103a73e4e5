package onnx

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	pw "google.golang.org/protobuf/encoding/protowire"

	"coverslip/encoder"
)

// graph is what an ONNX file says of itself, read without ONNX Runtime.
type graph struct {
	inputs, outputs []port
	external        map[string]int64 // files of weights beside it → bytes the file must have at least
}

// port is an input or output: its name, element type (TensorProto.DataType) and shape, -1 where any
// number will do; no shape where the file does not say it.
type port struct {
	name    string
	element int64
	shape   []int64
}

// Element types of onnx.proto (TensorProto.DataType) that models take and give.
const (
	floatElement = 1
	uint8Element = 2
	int64Element = 7 // of functions only
)

// readGraph reads an ONNX file (ModelProto of onnx.proto, https://github.com/onnx/onnx) and refuses
// what must not reach ONNX Runtime: what is no ONNX file or not whole, weights outside the model's
// folder or in sparse external form, operators from outside the standard, and operators that name
// files of their own. A file that passes may still be one that ONNX Runtime cannot run.
//
// Where protobuf merges fields that stand twice, both are looked at, so that nothing is hidden
// behind a second one.
func readGraph(file []byte) (graph, error) {
	if err := checkPickle(file); err != nil {
		return graph{}, err
	}
	r := reader{graph: graph{external: map[string]int64{}}, functions: map[string]bool{}, initialized: map[string]bool{}}
	opset := false
	err := eachField(file, func(n pw.Number, v value) error {
		switch n {
		case 7: // graph
			r.graphs++
			return r.readGraph(v.bytes, 0, true)
		case 8: // opset_import
			opset = true
		case 20: // training_info: initialisers and steps that no encoder has
			return errors.New("it holds a training graph")
		case 25: // functions
			return r.readFunction(v.bytes)
		}
		return nil
	})
	switch {
	case err != nil:
		return graph{}, err
	case r.graphs != 1:
		return graph{}, fmt.Errorf("it holds %d graphs, an ONNX file has one", r.graphs)
	case !opset:
		return graph{}, errors.New("it does not say which operators it uses: it ends early")
	}
	for _, o := range r.operators {
		if !slices.Contains(domains, o.domain) && !r.functions[o.domain+"\x00"+o.kind] {
			return graph{}, fmt.Errorf("it uses the operator %.80q of the domain %.80q, which is none of the standard's", o.kind, o.domain)
		}
		if o.kind == "EPContext" {
			return graph{}, errors.New("it uses the operator EPContext, which loads a file of its own")
		}
	}
	inputs := r.inputs[:0]
	for _, p := range r.inputs {
		if !r.initialized[p.name] { // before IR version 4 weights are listed as inputs too
			inputs = append(inputs, p)
		}
	}
	r.inputs = inputs
	return r.graph, nil
}

// domains are those of operators that ONNX Runtime itself brings: ONNX's own, by its two names,
// classical machine learning, and ONNX Runtime's fused and quantised operators.
var domains = []string{"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}

// maxDepth bounds graphs inside graphs (the branches of If, the body of Loop).
const maxDepth = 16

type reader struct {
	graph
	graphs      int
	operators   []operator
	functions   map[string]bool // "domain\x00name" of those the file defines by standard ones
	initialized map[string]bool
}

type operator struct{ domain, kind string }

// readGraph reads a GraphProto; the outermost one's inputs and outputs are the model's.
func (r *reader) readGraph(b []byte, depth int, model bool) error {
	if depth > maxDepth {
		return fmt.Errorf("its graphs are nested more than %d deep", maxDepth)
	}
	return eachField(b, func(n pw.Number, v value) error {
		switch n {
		case 1: // node
			return r.readNode(v.bytes, depth)
		case 5: // initializer
			return r.readTensor(v.bytes, model)
		case 15: // sparse_initializer
			return r.readSparse(v.bytes)
		case 11, 12: // input, output
			if !model {
				return nil
			}
			p, err := readPort(v.bytes)
			if n == 11 {
				r.inputs = append(r.inputs, p)
			} else {
				r.outputs = append(r.outputs, p)
			}
			return err
		}
		return nil
	})
}

// readFunction reads a FunctionProto.
func (r *reader) readFunction(b []byte) error {
	var name, domain string
	err := eachField(b, func(n pw.Number, v value) error {
		switch n {
		case 1:
			name = string(v.bytes)
		case 10:
			domain = string(v.bytes)
		case 7: // node
			return r.readNode(v.bytes, 0)
		case 11: // attribute_proto
			return r.readAttribute(v.bytes, 0)
		}
		return nil
	})
	r.functions[domain+"\x00"+name] = true
	return err
}

// readNode reads a NodeProto.
func (r *reader) readNode(b []byte, depth int) error {
	var o operator
	err := eachField(b, func(n pw.Number, v value) error {
		switch n {
		case 4:
			o.kind = string(v.bytes)
		case 7:
			o.domain = string(v.bytes)
		case 5: // attribute
			return r.readAttribute(v.bytes, depth)
		}
		return nil
	})
	if !slices.Contains(r.operators, o) {
		r.operators = append(r.operators, o)
	}
	return err
}

// readAttribute reads an AttributeProto.
func (r *reader) readAttribute(b []byte, depth int) error {
	return eachField(b, func(n pw.Number, v value) error {
		switch n {
		case 5, 10: // t, tensors
			return r.readTensor(v.bytes, false)
		case 6, 11: // g, graphs
			return r.readGraph(v.bytes, depth+1, false)
		case 22, 23: // sparse_tensor, sparse_tensors
			return r.readSparse(v.bytes)
		}
		return nil
	})
}

// readSparse reads a SparseTensorProto, whose values and indices may not lie in other files: ONNX
// Runtime has read past their ends.
func (r *reader) readSparse(b []byte) error {
	return eachField(b, func(n pw.Number, v value) error {
		if n != 1 && n != 2 { // values, indices
			return nil
		}
		before := len(r.external)
		if err := r.readTensor(v.bytes, false); err != nil {
			return err
		}
		if len(r.external) != before || hasExternal(v.bytes) {
			return errors.New("it keeps sparse weights in another file")
		}
		return nil
	})
}

// readTensor reads a TensorProto: its name, and where its data lie.
func (r *reader) readTensor(b []byte, initializer bool) error {
	var name, location string
	var element, offset, length int64
	elements, external := uint64(1), false
	err := eachField(b, func(n pw.Number, v value) error {
		switch n {
		case 1: // dims, packed or not
			return eachVarint(v, func(d int64) error {
				hi, lo := bits.Mul64(elements, uint64(d)) //nolint:gosec // d is not negative where it counts
				if d < 0 || hi != 0 {
					return fmt.Errorf("a weight has the impossible dimension %d", d)
				}
				elements = lo
				return nil
			})
		case 2:
			element = v.number
		case 8:
			name = string(v.bytes)
		case 14: // data_location, EXTERNAL is 1
			external = external || v.number == 1
		case 13: // external_data
			external = true
			key, text, err := readEntry(v.bytes)
			if err != nil {
				return err
			}
			switch key {
			case "location":
				if location != "" && location != text {
					return fmt.Errorf("weight %.80q lies in two files", name)
				}
				location = text
				return encoder.CheckDataName(text)
			case "offset":
				offset, err = readSize(text)
			case "length":
				length, err = readSize(text)
			}
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	if initializer {
		r.initialized[name] = true
	}
	if !external {
		return nil
	}
	if location == "" {
		return fmt.Errorf("weight %.80q lies in another file, and which is not said", name)
	}
	if length == 0 {
		hi, lo := bits.Mul64(elements, elementBytes(element))
		if hi != 0 || lo > maxBytes {
			return fmt.Errorf("weight %.80q is impossibly large", name)
		}
		length = int64(lo)
	}
	r.external[location] = max(r.external[location], offset+length)
	return nil
}

// hasExternal reports whether a TensorProto says that its data lie elsewhere.
func hasExternal(b []byte) (external bool) {
	_ = eachField(b, func(n pw.Number, v value) error {
		external = external || n == 13 || n == 14 && v.number == 1
		return nil
	})
	return external
}

// maxBytes bounds offsets and lengths, so that their sum does not overflow.
const maxBytes = 1 << 50

func readSize(text string) (int64, error) {
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || v < 0 || v > maxBytes {
		return 0, fmt.Errorf("a weight has the impossible offset or length %.40q in its file", text)
	}
	return v, nil
}

// elementBytes is the least an element of a TensorProto.DataType takes, 0 where it is not known.
func elementBytes(element int64) uint64 {
	switch element {
	case 2, 3, 9, 17, 18, 19, 20: // 8 bits
		return 1
	case 4, 5, 10, 16: // 16 bits
		return 2
	case 1, 6, 12: // 32 bits
		return 4
	case 7, 11, 13, 14: // 64 bits
		return 8
	case 15: // complex128
		return 16
	}
	return 0
}

// readEntry reads a StringStringEntryProto.
func readEntry(b []byte) (key, text string, err error) {
	err = eachField(b, func(n pw.Number, v value) error {
		switch n {
		case 1:
			key = string(v.bytes)
		case 2:
			text = string(v.bytes)
		}
		return nil
	})
	return key, text, err
}

// readPort reads a ValueInfoProto: name, type.tensor_type{elem_type, shape.dim[]{value or name}}.
func readPort(b []byte) (p port, err error) {
	err = eachField(b, func(n pw.Number, v value) error {
		switch n {
		case 1:
			p.name = string(v.bytes)
		case 2: // type
			return eachField(v.bytes, func(n pw.Number, v value) error {
				if n != 1 { // tensor_type
					return nil
				}
				return eachField(v.bytes, func(n pw.Number, v value) error {
					switch n {
					case 1:
						p.element = v.number
					case 2:
						p.shape = []int64{}
						return p.readShape(v.bytes)
					}
					return nil
				})
			})
		}
		return nil
	})
	return p, err
}

func (p *port) readShape(b []byte) error {
	return eachField(b, func(n pw.Number, v value) error {
		if n != 1 { // dim
			return nil
		}
		size := int64(-1)
		err := eachField(v.bytes, func(n pw.Number, v value) error {
			if n == 1 { // dim_value; dim_param names one that may be anything
				size = v.number
			}
			return nil
		})
		p.shape = append(p.shape, size)
		return err
	})
}

func (p port) String() string {
	element := fmt.Sprintf("type %d", p.element)
	switch p.element {
	case floatElement:
		element = "float32"
	case uint8Element:
		element = "uint8"
	case int64Element:
		element = "int64"
	}
	if p.shape == nil {
		return fmt.Sprintf("%s %s of any shape", p.name, element)
	}
	return fmt.Sprintf("%s %s %s", p.name, element, strings.ReplaceAll(fmt.Sprint(p.shape), "-1", "N"))
}

// checkPickle recognises what is often taken for a model: Python objects, which run code when they
// are loaded.
func checkPickle(file []byte) error {
	pickle := len(file) > 1 && file[0] == 0x80 && file[1] <= 5 // opcode PROTO and its version
	zip := bytes.HasPrefix(file, []byte("PK\x03\x04"))
	switch {
	case pickle, zip && bytes.Contains(file[:min(len(file), 4096)], []byte(".pkl")):
		return errors.New("it is a pickle (a PyTorch checkpoint), which runs code when it is loaded")
	case zip:
		return errors.New("it is a ZIP archive")
	case len(file) == 0:
		return errors.New("it is empty")
	}
	return nil
}

// value is a field of a protobuf message: a number, or bytes.
type value struct {
	number int64
	bytes  []byte
}

// eachField calls do for every field of a message, and fails where the message is cut or broken.
func eachField(b []byte, do func(pw.Number, value) error) error {
	for len(b) > 0 {
		number, kind, n := pw.ConsumeTag(b)
		if n < 0 {
			return errBroken
		}
		b = b[n:]
		var v value
		switch kind {
		case pw.VarintType:
			var u uint64
			u, n = pw.ConsumeVarint(b)
			v.number = int64(u) //nolint:gosec // two's complement is protobuf's int64
		case pw.BytesType:
			v.bytes, n = pw.ConsumeBytes(b)
		default:
			n = pw.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return errBroken
		}
		b = b[n:]
		if err := do(number, v); err != nil {
			return err
		}
	}
	return nil
}

var errBroken = errors.New("it is no whole ONNX file: it is cut, or of another format")

// eachVarint calls do for each number of a repeated field, whether it is packed or not.
func eachVarint(v value, do func(int64) error) error {
	if v.bytes == nil {
		return do(v.number)
	}
	for b := v.bytes; len(b) > 0; {
		u, n := pw.ConsumeVarint(b)
		if n < 0 {
			return errBroken
		}
		b = b[n:]
		if err := do(int64(u)); err != nil { //nolint:gosec // two's complement is protobuf's int64
			return err
		}
	}
	return nil
}
