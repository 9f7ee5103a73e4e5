package nn

import (
	"errors"
	"fmt"
	"strconv"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	_ "go4.org/unsafe/assume-no-moving-gc" // the version in Gorgonia's own go.mod stops the program under a newer Go

	"coverslip"
)

// Param is a matrix that is learned.
type Param struct {
	Name       string
	Rows, Cols int
	Value      []float32
	Grad       []float32 // of the last Backward that used it; allocated by it
	// Plain parameters, biases and the scales of norms, are left out of weight decay and of LARS' trust ratio.
	Plain bool
	// Fixed ones are kept with the model and not learned: running statistics.
	Fixed bool
}

// NewParam is a matrix of zeros.
func NewParam(name string, rows, cols int) *Param {
	return &Param{Name: name, Rows: rows, Cols: cols, Value: make([]float32, rows*cols)}
}

// Graph is the computation of one step. It is built by the functions of this package that take and return
// nodes, run once by Forward or Backward, and closed. It is used by one goroutine.
type Graph struct {
	Train bool // batch norms use the batch's statistics, dropouts drop

	mem    *Memory
	g      *G.ExprGraph
	nodes  []*Node
	params []*Param
	places map[*Param]*Node
	lent   map[*float32][]float32 // what the memory has to be given back, by its first number
	failed error

	light bool
	ran   int // nodes of a light graph that have run
}

// NewGraph starts a step over the memory of its run.
func NewGraph(mem *Memory, train bool) *Graph {
	BLAS()
	return &Graph{Train: train, mem: mem, g: G.NewGraph(), places: map[*Param]*Node{}, lent: map[*float32][]float32{}}
}

// NewLightGraph is NewGraph for steps so small, bags of ten rows, that Gorgonia's building and compiling would
// cost many times their arithmetic. It runs the same operations by itself, in the order they were put into it,
// and keeps what they return until Close, where Gorgonia's graph takes memory back at the last use: of large
// matrices it needs more.
func NewLightGraph(mem *Memory, train bool) *Graph {
	BLAS()
	return &Graph{Train: train, mem: mem, places: map[*Param]*Node{}, lent: map[*float32][]float32{}, light: true}
}

// Node is a matrix of a graph, known once the graph has run.
type Node struct {
	Rows, Cols int

	graph *Graph
	node  *G.Node
	in    []*Node
	learn bool // a parameter that is not fixed stands before it
	param *Param
	op    *op

	value, grad []float32 // of a light graph
}

// Graph is what the node belongs to.
func (n *Node) Graph() *Graph { return n.graph }

// Value is the matrix, row-major, after Forward or Backward was asked for this node; it is valid until Close.
func (n *Node) Value() []float32 {
	if n.graph.light && n.value != nil {
		return n.value
	}
	if n.graph.light || n.node.Value() == nil {
		panic("nn: a node has no value before its graph has run")
	}
	return floats(n.node.Value())
}

// Constant puts a matrix into the graph that nothing is learned of. The graph keeps the slice.
func (g *Graph) Constant(rows, cols int, value []float32) *Node {
	if len(value) != rows*cols || rows <= 0 || cols <= 0 {
		panic("nn: a constant's length is not its shape, or it is empty")
	}
	return g.leaf(rows, cols, value)
}

// Param puts a parameter into the graph; the same one twice is the same node. A fixed one is a constant:
// nothing is differentiated by it.
func (g *Graph) Param(p *Param) *Node {
	if n, there := g.places[p]; there {
		return n
	}
	if len(p.Value) != p.Rows*p.Cols {
		panic("nn: a parameter's length is not its shape")
	}
	n := g.leaf(p.Rows, p.Cols, p.Value)
	g.places[p] = n
	if !p.Fixed {
		n.learn, n.param = true, p
		g.params = append(g.params, p)
	}
	return n
}

func (g *Graph) leaf(rows, cols int, value []float32) *Node {
	n := &Node{Rows: rows, Cols: cols, graph: g}
	if g.light {
		n.value = value
		g.nodes = append(g.nodes, n)
		return n
	}
	n.node = G.NewMatrix(g.g, tensor.Float32, G.WithShape(rows, cols), G.WithName("leaf "+strconv.Itoa(len(g.nodes))), G.WithValue(matrix(rows, cols, value)))
	g.nodes = append(g.nodes, n)
	return n
}

// Forward runs the graph. The values of the nodes named are kept for reading.
func (g *Graph) Forward(keep ...*Node) error {
	if g.light {
		g.runLight()
		return nil
	}
	return g.run(keep)
}

// Backward runs the graph and differentiates loss, which is [1,1], by every parameter: their Grad is set,
// to zeros where the loss does not depend on one. It returns the loss. NaN or infinity is an error of kind
// Invalid; then the gradients must not be used. Values of the nodes in keep can be read afterwards.
func (g *Graph) Backward(loss *Node, keep ...*Node) (float64, error) {
	if loss.Rows != 1 || loss.Cols != 1 {
		panic("nn: a loss is a single number")
	}
	reached := g.reached(loss)
	var wrt G.Nodes
	var params []*Param
	for _, p := range g.params {
		if cap(p.Grad) < len(p.Value) {
			p.Grad = make([]float32, len(p.Value))
		}
		p.Grad = p.Grad[:len(p.Value)]
		if n := g.places[p]; reached[n] {
			wrt, params = append(wrt, n.node), append(params, p) // a light graph has no nodes of Gorgonia's
		} else {
			clear(p.Grad)
		}
	}
	if len(params) == 0 {
		panic("nn: a loss that depends on no parameter")
	}
	var grads G.Nodes
	if g.light {
		g.runLight()
		g.backwardLight(loss)
	} else {
		one := g.leaf(1, 1, []float32{1})
		var err error
		if grads, err = G.Backpropagate(G.Nodes{loss.node}, G.Nodes{one.node}, wrt); err != nil {
			return 0, fault("differentiate the graph", err)
		}
		if err := g.run(append(keep, loss), grads...); err != nil {
			return 0, err
		}
	}
	value := float64(loss.Value()[0])
	if !finite(value) {
		return value, &coverslip.Error{Kind: coverslip.Invalid, Op: "compute the loss", Err: fmt.Errorf("it is %g", value),
			Hint: "lower the learning rate, or look for NaN in the features"}
	}
	for i, p := range params {
		if !g.light {
			copy(p.Grad, floats(grads[i].Value()))
		}
		if !allFinite(p.Grad) {
			return value, &coverslip.Error{Kind: coverslip.Invalid, Op: "differentiate " + p.Name, Err: errors.New("the gradient is not finite"),
				Hint: "lower the learning rate, or look for NaN in the features"}
		}
	}
	return value, nil
}

// runLight runs what has not run yet.
func (g *Graph) runLight() {
	for _, n := range g.nodes[g.ran:] {
		if n.op != nil {
			out := g.take(n.Rows * n.Cols)
			n.op.Forward(out, n.inputs())
			n.value = out
		}
	}
	g.ran = len(g.nodes)
}

func (n *Node) inputs() [][]float32 {
	in := make([][]float32, len(n.in))
	for i, x := range n.in {
		in[i] = x.value
	}
	return in
}

// backwardLight walks the nodes back from the loss. The first gradient that reaches a node is written where it
// stays, for a parameter in its Grad, and others are added.
func (g *Graph) backwardLight(loss *Node) {
	loss.grad = []float32{1}
	for k := len(g.nodes) - 1; k >= 0; k-- {
		n := g.nodes[k]
		if n.grad == nil || n.op == nil || n.op.Backward == nil {
			continue
		}
		din, more := make([][]float32, len(n.in)), make([][]float32, len(n.in))
		for i, x := range n.in {
			switch {
			case !x.learn:
			case x.grad != nil:
				more[i] = g.take(x.Rows * x.Cols)
				din[i] = more[i]
			case x.param != nil:
				x.grad = x.param.Grad
				din[i] = x.grad
			default:
				x.grad = g.take(x.Rows * x.Cols)
				din[i] = x.grad
			}
		}
		n.op.Backward(din, n.inputs(), n.value, n.grad)
		for i, x := range n.in {
			if more[i] != nil {
				axpy(1, more[i], x.grad)
				g.give(more[i])
			}
		}
		if n != loss {
			g.give(n.grad)
		}
		n.grad = nil
	}
}

// reached are the nodes that n is computed from.
func (g *Graph) reached(n *Node) map[*Node]bool {
	seen := map[*Node]bool{}
	var walk func(*Node)
	walk = func(n *Node) {
		if !seen[n] {
			seen[n] = true
			for _, in := range n.in {
				walk(in)
			}
		}
	}
	walk(n)
	return seen
}

// run executes the graph on Gorgonia's tape machine. A matrix goes back to the memory with its last use;
// the ones in keep, in more, and those that Gorgonia's own operations read, stay until Close.
func (g *Graph) run(keep []*Node, more ...*G.Node) error {
	stay := map[*G.Node]bool{}
	for _, n := range keep {
		stay[n.node] = true
	}
	for _, n := range more {
		stay[n] = true
	}
	uses := map[*G.Node]int{}
	for _, n := range g.g.AllNodes() {
		_, ours := n.Op().(runner)
		for children := g.g.From(n.ID()); children.Next(); {
			child := children.Node().(*G.Node)
			if !ours {
				stay[child] = true
			}
		}
		if r, ok := n.Op().(runner); ok {
			for _, child := range r.reads() {
				uses[child]++
			}
		}
	}
	for _, n := range g.g.AllNodes() {
		if r, ok := n.Op().(runner); ok {
			r.attach(g, n, func(child *G.Node) bool { uses[child]--; return uses[child] == 0 && !stay[child] })
		}
	}
	vm := G.NewTapeMachine(g.g)
	err := vm.RunAll()
	if closing := vm.Close(); err == nil {
		err = closing
	}
	if g.failed != nil {
		return g.failed
	}
	if err != nil {
		return fault("run the graph", err)
	}
	return nil
}

// Close gives the memory back. Values of nodes must not be used afterwards.
func (g *Graph) Close() {
	for _, x := range g.lent {
		g.mem.put(x)
	}
	clear(g.lent)
}

func (g *Graph) take(n int) []float32 {
	x := g.mem.get(n)
	g.lent[&x[:1][0]] = x
	return x
}

func (g *Graph) give(x []float32) {
	if lent, there := g.lent[&x[:1][0]]; there {
		delete(g.lent, &x[:1][0])
		g.mem.put(lent)
	}
}

func matrix(rows, cols int, x []float32) *tensor.Dense {
	return tensor.New(tensor.WithShape(rows, cols), tensor.WithBacking(x))
}

func floats(v G.Value) []float32 {
	switch x := v.Data().(type) {
	case []float32:
		return x
	case float32: // a matrix of one number
		return []float32{x}
	}
	panic(fmt.Sprintf("nn: a value of type %T", v.Data()))
}

func fault(op string, err error) error {
	return &coverslip.Error{Kind: coverslip.Internal, Op: op, Err: err}
}
