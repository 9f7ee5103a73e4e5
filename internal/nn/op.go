package nn

import (
	"fmt"
	"hash"
	"hash/fnv"
	"strconv"
	"sync/atomic"

	"github.com/chewxy/hm"
	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Kernel is an operation on matrices, given to Apply. Each slice is a whole matrix, row-major. At work T is
// float32; written for any T, the same code is checked in float64 (nntest).
type Kernel[T Float] struct {
	Name string
	// Forward writes out, whose content is anything before, from in.
	Forward func(out []T, in [][]T)
	// Backward writes into din[i] the gradient of the loss by in[i], given out and the gradient dout by out.
	// din[i] is nil where nobody asks for it, and its content is anything before. Nil: the operation is not
	// differentiated. It runs at most once, after Forward, so the two may share state.
	Backward func(din, in [][]T, out, dout []T)
	// What Backward does not read need not be kept for it: out, and the inputs marked.
	DropOut bool
	DropIn  []bool
}

// Apply puts an operation into the graph of its inputs, of which there is at least one. Its result is
// [rows,cols].
func Apply(k Kernel[float32], rows, cols int, in ...*Node) *Node {
	g := in[0].graph
	n := &Node{Rows: rows, Cols: cols, graph: g, in: in}
	if g.light {
		for _, x := range in {
			if x.graph != g {
				panic("nn: nodes of two graphs")
			}
			n.learn = n.learn || x.learn && k.Backward != nil
		}
		n.op = &op{Kernel: k}
		g.nodes = append(g.nodes, n)
		return n
	}
	children := make(G.Nodes, len(in))
	for i, x := range in {
		if x.graph != g {
			panic("nn: nodes of two graphs")
		}
		children[i] = x.node
		n.learn = n.learn || x.learn && k.Backward != nil
	}
	n.op = &op{Kernel: k, id: ids.Add(1), rows: rows, cols: cols, in: in}
	node, err := G.ApplyOp(n.op, children...)
	if err != nil {
		panic("nn: " + k.Name + ": " + err.Error())
	}
	n.node = node
	g.nodes = append(g.nodes, n)
	return n
}

var ids atomic.Int64

// runner is what all of our operations are to a running graph.
type runner interface {
	reads() []*G.Node
	// attach tells an operation, before the graph runs, what it is and how to say that it has read a node:
	// done reports whether nobody reads that one any more.
	attach(g *Graph, self *G.Node, done func(*G.Node) bool)
}

// op computes a node; backward, below, all of its gradients at once; and gradient hands one of these on.
type op struct {
	Kernel[float32]
	base
	id         int64
	rows, cols int
	in         []*Node
}

// base is what they have in common as operations of Gorgonia: pure functions whose result is a matrix of
// their own.
type base struct {
	graph *Graph
	done  func(*G.Node) bool
}

func (b *base) attach(g *Graph, _ *G.Node, done func(*G.Node) bool) { b.graph, b.done = g, done }
func (*base) ReturnsPtr() bool                                      { return false }
func (*base) CallsExtern() bool                                     { return false }
func (*base) OverwritesInput() int                                  { return -1 }

// read gives back the matrices of inputs that nobody reads any more.
func (b *base) read(nodes []*G.Node, values []G.Value) {
	for i, n := range nodes {
		if b.done(n) {
			b.graph.give(floats(values[i]))
		}
	}
}

func matrices(n int) hm.Type {
	types := make([]hm.Type, n+1)
	for i := range types {
		types[i] = G.TensorType{Dims: 2, Of: tensor.Float32}
	}
	return hm.NewFnType(types...)
}

func write(h hash.Hash, name string, id int64) { _, _ = fmt.Fprintf(h, "%s#%d", name, id) }

func code(w interface{ WriteHash(hash.Hash) }) uint32 {
	h := fnv.New32a()
	w.WriteHash(h)
	return h.Sum32()
}

func (o *op) Arity() int    { return len(o.in) }
func (o *op) Type() hm.Type { return matrices(len(o.in)) }
func (o *op) InferShape(...G.DimSizer) (tensor.Shape, error) {
	return tensor.Shape{o.rows, o.cols}, nil
}
func (o *op) WriteHash(h hash.Hash) { write(h, o.Name, o.id) } // equal hashes would be merged into one
func (o *op) Hashcode() uint32      { return code(o) }
func (o *op) String() string        { return o.Name + "#" + strconv.FormatInt(o.id, 10) }
func (o *op) reads() (nodes []*G.Node) {
	for _, x := range o.in {
		nodes = append(nodes, x.node)
	}
	return nodes
}

// Do runs the operation.
func (o *op) Do(values ...G.Value) (G.Value, error) {
	in := make([][]float32, len(values))
	for i, v := range values {
		in[i] = floats(v)
	}
	out := o.graph.take(o.rows * o.cols)
	o.Forward(out, in)
	o.read(o.reads(), values)
	return matrix(o.rows, o.cols, out), nil
}

// DiffWRT reports the inputs whose gradient somebody asks for.
func (o *op) DiffWRT(n int) []bool {
	wanted := make([]bool, n)
	for i, x := range o.in {
		wanted[i] = x.learn && o.Backward != nil
	}
	return wanted
}

// SymDiff puts one node into the graph that computes all gradients, and one for each of the others that
// hands on what it computed.
func (o *op) SymDiff(in G.Nodes, out, dout *G.Node) (G.Nodes, error) {
	b := &backward{op: o, id: ids.Add(1)}
	children := make(G.Nodes, 0, len(in)+2)
	for i := range in {
		if i >= len(o.DropIn) || !o.DropIn[i] {
			b.kept = append(b.kept, i)
			children = append(children, in[i])
		}
	}
	if !o.DropOut {
		children = append(children, out)
	}
	b.children = append(children, dout)
	b.first = -1
	b.values = make([][]float32, len(in))
	grads := make(G.Nodes, len(in))
	var first *G.Node
	for i, wanted := range o.DiffWRT(len(in)) {
		if !wanted {
			continue
		}
		var err error
		if first == nil {
			b.first = i
			first, err = G.ApplyOp(b, b.children...)
			grads[i] = first
		} else {
			grads[i], err = G.ApplyOp(&gradient{of: b, which: i, from: first, id: ids.Add(1)}, first)
		}
		if err != nil {
			return nil, err
		}
	}
	return grads, nil
}

type backward struct {
	base
	op       *op
	id       int64
	kept     []int // inputs of the operation that it reads
	children G.Nodes
	first    int // the input whose gradient is its own result
	values   [][]float32
}

func (b *backward) Arity() int    { return len(b.children) }
func (b *backward) Type() hm.Type { return matrices(len(b.children)) }
func (b *backward) InferShape(...G.DimSizer) (tensor.Shape, error) {
	return tensor.Shape{b.op.in[b.first].Rows, b.op.in[b.first].Cols}, nil
}
func (b *backward) WriteHash(h hash.Hash) { write(h, "backward "+b.op.Name, b.id) }
func (b *backward) Hashcode() uint32      { return code(b) }
func (b *backward) String() string        { return "backward of " + b.op.String() }
func (b *backward) reads() []*G.Node      { return b.children }

// Do runs the operation's Backward.
func (b *backward) Do(values ...G.Value) (G.Value, error) {
	in := make([][]float32, len(b.op.in))
	for k, i := range b.kept {
		in[i] = floats(values[k])
	}
	var out []float32
	if !b.op.DropOut {
		out = floats(values[len(values)-2])
	}
	for i, wanted := range b.op.DiffWRT(len(in)) {
		if wanted {
			b.values[i] = b.graph.take(b.op.in[i].Rows * b.op.in[i].Cols)
		}
	}
	b.op.Backward(b.values, in, out, floats(values[len(values)-1]))
	b.read(b.children, values)
	x := b.op.in[b.first]
	return matrix(x.Rows, x.Cols, b.values[b.first]), nil
}

type gradient struct {
	base
	of    *backward
	which int
	from  *G.Node
	id    int64
}

func (d *gradient) Arity() int    { return 1 }
func (d *gradient) Type() hm.Type { return matrices(1) }
func (d *gradient) InferShape(...G.DimSizer) (tensor.Shape, error) {
	return tensor.Shape{d.of.op.in[d.which].Rows, d.of.op.in[d.which].Cols}, nil
}
func (d *gradient) WriteHash(h hash.Hash) { write(h, "gradient", d.id) }
func (d *gradient) Hashcode() uint32      { return code(d) }
func (d *gradient) String() string        { return "gradient of " + d.of.op.String() }

// reads nothing: what it is given only says that the gradients are there.
func (d *gradient) reads() []*G.Node { return nil }

// Do hands on a gradient.
func (d *gradient) Do(...G.Value) (G.Value, error) {
	x := d.of.op.in[d.which]
	return matrix(x.Rows, x.Cols, d.of.values[d.which]), nil
}
