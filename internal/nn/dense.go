package nn

import (
	"math"
	"math/rand/v2"
)

// Linear is x·w + b: x [n,in], w [in,out], b [1,out] or nil.
func Linear(x, w, b *Node) *Node {
	if x.Cols != w.Rows || b != nil && (b.Rows != 1 || b.Cols != w.Cols) {
		panic("nn: a linear layer's shapes do not fit")
	}
	in := []*Node{x, w}
	if b != nil {
		in = append(in, b)
	}
	return Apply(linear[float32](x.Rows, x.Cols, w.Cols), x.Rows, w.Cols, in...)
}

func linear[T Float](n, k, m int) Kernel[T] {
	return Kernel[T]{Name: "linear", DropOut: true, DropIn: []bool{false, false, true},
		Forward: func(out []T, in [][]T) {
			var beta T
			if len(in) == 3 {
				beta = 1
				for i := range n {
					copy(out[i*m:(i+1)*m], in[2])
				}
			}
			Gemm(false, false, n, m, k, 1, in[0], k, in[1], m, beta, out, m)
		},
		Backward: func(din, in [][]T, _, dout []T) {
			if din[0] != nil {
				Gemm(false, true, n, k, m, 1, dout, m, in[1], m, 0, din[0], k)
			}
			if din[1] != nil {
				Gemm(true, false, k, m, n, 1, in[0], k, dout, m, 0, din[1], m)
			}
			if len(din) == 3 && din[2] != nil {
				sumRows(din[2], dout)
			}
		}}
}

// sumRows writes the sums of x's columns.
func sumRows[T Float](dst, x []T) {
	sums := make([]float64, len(dst))
	columnSums(sums, x)
	for i, v := range sums {
		dst[i] = T(v)
	}
}

// MatMul is a·b, with a or b transposed first where it is asked for.
func MatMul(a, b *Node, transA, transB bool) *Node {
	m, k, k2, n := a.Rows, a.Cols, b.Rows, b.Cols
	if transA {
		m, k = k, m
	}
	if transB {
		k2, n = n, k2
	}
	if k != k2 {
		panic("nn: matrices that cannot be multiplied")
	}
	return Apply(matmul[float32](m, n, k, transA, transB), m, n, a, b)
}

func matmul[T Float](m, n, k int, transA, transB bool) Kernel[T] {
	lda, ldb := k, n
	if transA {
		lda = m
	}
	if transB {
		ldb = k
	}
	return Kernel[T]{Name: "matmul", DropOut: true,
		Forward: func(out []T, in [][]T) {
			Gemm(transA, transB, m, n, k, 1, in[0], lda, in[1], ldb, 0, out, n)
		},
		Backward: func(din, in [][]T, _, dout []T) {
			if din[0] != nil {
				if transA { // aᵀ: [k,m] = b·doutᵀ
					Gemm(transB, true, k, m, n, 1, in[1], ldb, dout, n, 0, din[0], lda)
				} else {
					Gemm(false, !transB, m, k, n, 1, dout, n, in[1], ldb, 0, din[0], lda)
				}
			}
			if din[1] != nil {
				if transB { // bᵀ: [n,k] = doutᵀ·a
					Gemm(true, transA, n, k, m, 1, dout, n, in[0], lda, 0, din[1], ldb)
				} else {
					Gemm(!transA, false, k, n, m, 1, in[0], lda, dout, n, 0, din[1], ldb)
				}
			}
		}}
}

// Combine is α·a + β·b, of one shape.
func Combine(alpha float64, a *Node, beta float64, b *Node) *Node {
	same(a, b)
	return Apply(combine[float32](alpha, beta), a.Rows, a.Cols, a, b)
}

// Add is a + b, of one shape.
func Add(a, b *Node) *Node { return Combine(1, a, 1, b) }

func combine[T Float](alpha, beta float64) Kernel[T] {
	return Kernel[T]{Name: "combine", DropOut: true, DropIn: []bool{true, true},
		Forward: func(out []T, in [][]T) {
			clear(out)
			axpy(T(alpha), in[0], out)
			axpy(T(beta), in[1], out)
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			for i, by := range []float64{alpha, beta} {
				if din[i] != nil {
					clear(din[i])
					axpy(T(by), dout, din[i])
				}
			}
		}}
}

// Scale is α·x.
func Scale(alpha float64, x *Node) *Node {
	return Apply(scaled[float32](alpha), x.Rows, x.Cols, x)
}

func scaled[T Float](alpha float64) Kernel[T] {
	return Kernel[T]{Name: "scale", DropOut: true, DropIn: []bool{true},
		Forward:  func(out []T, in [][]T) { clear(out); axpy(T(alpha), in[0], out) },
		Backward: func(din, _ [][]T, _, dout []T) { clear(din[0]); axpy(T(alpha), dout, din[0]) }}
}

// Mul is the product element by element of a [n,d] with b [n,d], or with each row's number in b [n,1].
func Mul(a, b *Node) *Node {
	if b.Rows != a.Rows || b.Cols != a.Cols && b.Cols != 1 {
		panic("nn: matrices of two shapes")
	}
	return Apply(mul[float32](a.Rows, a.Cols, b.Cols), a.Rows, a.Cols, a, b)
}

func mul[T Float](n, d, db int) Kernel[T] {
	return Kernel[T]{Name: "mul", DropOut: true,
		Forward: func(out []T, in [][]T) {
			for i := range n {
				for k := range d {
					out[i*d+k] = in[0][i*d+k] * in[1][i*db+min(k, db-1)]
				}
			}
		},
		Backward: func(din, in [][]T, _, dout []T) {
			for i := range n {
				var s T
				for k := range d {
					at, by := i*d+k, i*db+min(k, db-1)
					if din[0] != nil {
						din[0][at] = dout[at] * in[1][by]
					}
					if din[1] != nil && db == d {
						din[1][by] = dout[at] * in[0][at]
					}
					s += dout[at] * in[0][at]
				}
				if din[1] != nil && db != d {
					din[1][i] = s
				}
			}
		}}
}

func same(a, b *Node) {
	if a.Rows != b.Rows || a.Cols != b.Cols {
		panic("nn: matrices of two shapes")
	}
}

// ReLU is max(x, 0).
func ReLU(x *Node) *Node { return Apply(relu[float32](), x.Rows, x.Cols, x) }

func relu[T Float]() Kernel[T] {
	return Kernel[T]{Name: "relu", DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			for i, v := range in[0] {
				if v < 0 { // NaN stays
					v = 0
				}
				out[i] = v
			}
		},
		Backward: func(din, _ [][]T, out, dout []T) { reluBack(din[0], out, dout) }}
}

// Tanh is tanh(x).
func Tanh(x *Node) *Node { return Apply(tanh[float32](), x.Rows, x.Cols, x) }

func tanh[T Float]() Kernel[T] {
	return Kernel[T]{Name: "tanh", DropIn: []bool{true},
		Forward: func(out []T, in [][]T) { tanhTo(out, in[0]) },
		Backward: func(din, _ [][]T, out, dout []T) {
			for i, y := range out {
				din[0][i] = dout[i] * (1 - y*y)
			}
		}}
}

// Sigmoid is 1/(1+e^-x).
func Sigmoid(x *Node) *Node { return Apply(sigmoid[float32](), x.Rows, x.Cols, x) }

func sigmoid[T Float]() Kernel[T] {
	return Kernel[T]{Name: "sigmoid", DropIn: []bool{true},
		Forward: func(out []T, in [][]T) { sigmoidTo(out, in[0]) },
		Backward: func(din, _ [][]T, out, dout []T) {
			for i, y := range out {
				din[0][i] = dout[i] * y * (1 - y)
			}
		}}
}

// GELU is x·Φ(x), with Φ the normal distribution (Hendrycks and Gimpel, arXiv 1606.08415), not its
// approximation by tanh.
func GELU(x *Node) *Node { return Apply(gelu[float32](), x.Rows, x.Cols, x) }

func gelu[T Float]() Kernel[T] {
	return Kernel[T]{Name: "gelu", DropOut: true,
		Forward: func(out []T, in [][]T) {
			for i, v := range in[0] {
				out[i] = T(float64(v) * 0.5 * math.Erfc(-float64(v)/math.Sqrt2))
			}
		},
		Backward: func(din, in [][]T, _, dout []T) {
			for i, v := range in[0] {
				x := float64(v)
				din[0][i] = dout[i] * T(0.5*math.Erfc(-x/math.Sqrt2)+x*math.Exp(-x*x/2)/math.Sqrt(2*math.Pi))
			}
		}}
}

// Gate is tanh(a)·sigmoid(b) of x [n,2h], whose left half is a and whose right half is b: the gate of
// gated attention (Ilse et al., arXiv 1802.04712, equation 9). The result is [n,h].
func Gate(x *Node) *Node {
	if x.Cols%2 != 0 {
		panic("nn: a gate of an odd number of columns")
	}
	return Apply(gate[float32](x.Rows, x.Cols/2), x.Rows, x.Cols/2, x)
}

func gate[T Float](n, h int) Kernel[T] {
	t, s := make([]T, n*h), make([]T, n*h) // shared by forward and backward
	return Kernel[T]{Name: "gate", DropOut: true, DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			ParallelRows(n, 32*h, func(from, to int) {
				gateTo(out[from*h:to*h], t[from*h:to*h], s[from*h:to*h], in[0][2*from*h:2*to*h], h)
			})
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			ParallelRows(n, 8*h, func(from, to int) {
				gateBack(din[0][2*from*h:2*to*h], t[from*h:to*h], s[from*h:to*h], dout[from*h:to*h], h)
			})
		}}
}

// Dropout sets each number to zero with probability p and divides the others by 1-p. Where the graph does
// not train it is x itself.
func Dropout(x *Node, p float64, rng *rand.Rand) *Node {
	if !x.graph.Train || p <= 0 {
		return x
	}
	mask := make([]float32, x.Rows*x.Cols)
	for i := range mask {
		if rng.Float64() >= p {
			mask[i] = float32(1 / (1 - p))
		}
	}
	return Mul(x, x.graph.Constant(x.Rows, x.Cols, mask))
}

// Softmax makes each row sum to one: e^x / Σe^x.
func Softmax(x *Node) *Node {
	return Apply(softmax[float32](x.Rows, x.Cols), x.Rows, x.Cols, x)
}

func softmax[T Float](n, d int) Kernel[T] {
	return Kernel[T]{Name: "softmax", DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			ParallelRows(n, 8*d, func(from, to int) {
				for i := from; i < to; i++ {
					softmaxTo(out[i*d:(i+1)*d], in[0][i*d:(i+1)*d])
				}
			})
		},
		Backward: func(din, _ [][]T, out, dout []T) {
			ParallelRows(n, 4*d, func(from, to int) {
				for i := from; i < to; i++ {
					p, g, o := out[i*d:(i+1)*d], dout[i*d:(i+1)*d], din[0][i*d:(i+1)*d]
					s := T(Dot(p, g))
					for k := range o {
						o[k] = p[k] * (g[k] - s)
					}
				}
			})
		}}
}

// softmaxTo writes e^x / Σe^x.
func softmaxTo[T Float](dst, x []T) {
	top := x[0]
	for _, v := range x {
		top = max(top, v)
	}
	expTo(dst, x, top)
	var s float64
	for _, v := range dst {
		s += float64(v)
	}
	by := T(1 / s)
	for i := range dst {
		dst[i] *= by
	}
}

// Normalise divides each row by its length. A row of zeros stays.
func Normalise(x *Node) *Node {
	return Apply(normalise[float32](x.Rows, x.Cols), x.Rows, x.Cols, x)
}

func normalise[T Float](n, d int) Kernel[T] {
	inverse := make([]T, n)
	return Kernel[T]{Name: "normalise", DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			for i := range n {
				x := in[0][i*d : (i+1)*d]
				inverse[i] = T(1 / math.Max(math.Sqrt(Dot(x, x)), 1e-12))
				for k, v := range x {
					out[i*d+k] = v * inverse[i]
				}
			}
		},
		Backward: func(din, _ [][]T, out, dout []T) {
			for i := range n {
				u, g, o := out[i*d:(i+1)*d], dout[i*d:(i+1)*d], din[0][i*d:(i+1)*d]
				s := T(Dot(u, g))
				for k := range o {
					o[k] = (g[k] - s*u[k]) * inverse[i]
				}
			}
		}}
}

// Rows takes rows of x, in any order and as often as they are named: [len(at),d].
func Rows(x *Node, at []int32) *Node {
	return Apply(rowsOf[float32](x.Rows, x.Cols, at), len(at), x.Cols, x)
}

func rowsOf[T Float](n, d int, at []int32) Kernel[T] {
	for _, i := range at {
		if i < 0 || int(i) >= n {
			panic("nn: a row that is not there")
		}
	}
	return Kernel[T]{Name: "rows", DropOut: true, DropIn: []bool{true},
		Forward:  func(out []T, in [][]T) { gatherRows(out, in[0], at, d) },
		Backward: func(din, _ [][]T, _, dout []T) { clear(din[0]); scatterRows(din[0], dout, at, d) }}
}

// Columns takes columns from ≤ c < to of x: [n,to-from].
func Columns(x *Node, from, to int) *Node {
	if from < 0 || to > x.Cols || from >= to {
		panic("nn: columns that are not there")
	}
	return Apply(columns[float32](x.Rows, x.Cols, from, to), x.Rows, to-from, x)
}

func columns[T Float](n, d, from, to int) Kernel[T] {
	w := to - from
	return Kernel[T]{Name: "columns", DropOut: true, DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			for i := range n {
				copy(out[i*w:(i+1)*w], in[0][i*d+from:i*d+to])
			}
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			clear(din[0])
			for i := range n {
				copy(din[0][i*d+from:i*d+to], dout[i*w:(i+1)*w])
			}
		}}
}

// Beside puts matrices of the same number of rows beside each other: [n,Σd].
func Beside(parts ...*Node) *Node {
	n, widths, all := parts[0].Rows, make([]int, len(parts)), 0
	for i, p := range parts {
		if p.Rows != n {
			panic("nn: matrices of different heights side by side")
		}
		widths[i] = p.Cols
		all += p.Cols
	}
	return Apply(beside[float32](n, widths), n, all, parts...)
}

func beside[T Float](n int, widths []int) Kernel[T] {
	all := 0
	drop := make([]bool, len(widths))
	for i, w := range widths {
		all += w
		drop[i] = true
	}
	return Kernel[T]{Name: "beside", DropOut: true, DropIn: drop,
		Forward: func(out []T, in [][]T) {
			at := 0
			for p, w := range widths {
				for i := range n {
					copy(out[i*all+at:i*all+at+w], in[p][i*w:(i+1)*w])
				}
				at += w
			}
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			at := 0
			for p, w := range widths {
				for i := range n {
					if din[p] != nil {
						copy(din[p][i*w:(i+1)*w], dout[i*all+at:i*all+at+w])
					}
				}
				at += w
			}
		}}
}

// Above puts matrices of the same number of columns above each other: [Σn,d].
func Above(parts ...*Node) *Node {
	d, lengths, rows := parts[0].Cols, make([]int, len(parts)), 0
	for i, p := range parts {
		if p.Cols != d {
			panic("nn: matrices of different widths one above the other")
		}
		lengths[i] = p.Rows * d
		rows += p.Rows
	}
	return Apply(above[float32](lengths), rows, d, parts...)
}

func above[T Float](lengths []int) Kernel[T] {
	drop := make([]bool, len(lengths))
	for i := range drop {
		drop[i] = true
	}
	return Kernel[T]{Name: "above", DropOut: true, DropIn: drop,
		Forward: func(out []T, in [][]T) {
			at := 0
			for i, l := range lengths {
				copy(out[at:at+l], in[i])
				at += l
			}
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			at := 0
			for i, l := range lengths {
				if din[i] != nil {
					copy(din[i], dout[at:at+l])
				}
				at += l
			}
		}}
}
