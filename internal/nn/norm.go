package nn

/*
#include "kernels.h"
*/
import "C"

import (
	"math"
	"unsafe"
)

// BatchNorm is the state of a batch normalisation over d columns (Ioffe and Szegedy, arXiv 1502.03167).
type BatchNorm struct {
	Gamma, Beta *Param // [1,d]
	// Running mean and (unbiased) variance, used where a graph does not train.
	Mean, Var *Param // [1,d], fixed
	// Momentum is the share of the new batch in the running statistics: 0.1.
	Momentum float64
	Eps      float64 // 1e-5
}

// NewBatchNorm is the identity with running mean 0 and variance 1.
func NewBatchNorm(name string, d int) *BatchNorm {
	b := &BatchNorm{Gamma: NewParam(name+".weight", 1, d), Beta: NewParam(name+".bias", 1, d),
		Mean: NewParam(name+".running_mean", 1, d), Var: NewParam(name+".running_var", 1, d), Momentum: 0.1, Eps: 1e-5}
	for i := range d {
		b.Gamma.Value[i], b.Var.Value[i] = 1, 1
	}
	b.Gamma.Plain, b.Beta.Plain = true, true
	b.Mean.Fixed, b.Var.Fixed = true, true
	return b
}

// Params are all four, in the order of PyTorch.
func (b *BatchNorm) Params() []*Param { return []*Param{b.Gamma, b.Beta, b.Mean, b.Var} }

// Apply normalises the columns of x, adds residual where there is one, and applies ReLU where asked. In a
// graph that trains it uses the batch's statistics and moves the running ones when the graph has run.
func (b *BatchNorm) Apply(x, residual *Node, relu bool) *Node {
	if residual != nil {
		same(x, residual)
	}
	if x.Cols != b.Gamma.Cols {
		panic("nn: a batch norm of another width")
	}
	g := x.graph
	in := []*Node{x, g.Param(b.Gamma), g.Param(b.Beta)}
	if residual != nil {
		in = append(in, residual)
	}
	n := norm[float32]{rows: x.Rows, cols: x.Cols, eps: b.Eps, relu: relu, train: g.Train, mean: b.Mean.Value, variance: b.Var.Value}
	if g.Train {
		n.mean, n.variance = make([]float32, x.Cols), make([]float32, x.Cols)
		n.done = func() {
			m := float32(b.Momentum)
			unbiased := float32(x.Rows) / float32(max(x.Rows-1, 1))
			for i := range n.mean {
				b.Mean.Value[i] += m * (n.mean[i] - b.Mean.Value[i])
				b.Var.Value[i] += m * (n.variance[i]*unbiased - b.Var.Value[i])
			}
		}
	}
	return Apply(n.kernel(), x.Rows, x.Cols, in...)
}

// Standardise brings the columns of x to mean 0 and variance 1 over its rows: (x-mean)/√(var+1e-5).
func Standardise(x *Node) *Node {
	ones, zeros := make([]float32, x.Cols), make([]float32, x.Cols)
	for i := range ones {
		ones[i] = 1
	}
	g := x.graph
	n := norm[float32]{rows: x.Rows, cols: x.Cols, eps: 1e-5, train: true, mean: make([]float32, x.Cols), variance: make([]float32, x.Cols)}
	return Apply(n.kernel(), x.Rows, x.Cols, x, g.Constant(1, x.Cols, ones), g.Constant(1, x.Cols, zeros))
}

// norm is one application of a batch norm: y = relu((x-mean)/√(var+eps)·γ + β + residual).
type norm[T Float] struct {
	rows, cols     int
	eps            float64
	relu, train    bool
	mean, variance []T // of the batch where it trains, filled by forward
	done           func()
}

const normPiece = 1024 // rows whose sums are formed by one worker, and then added in order

func (n *norm[T]) kernel() Kernel[T] {
	return Kernel[T]{Name: "batchnorm", DropOut: !n.relu, DropIn: []bool{false, false, true, true},
		Forward: func(out []T, in [][]T) {
			x := in[0]
			if n.train {
				sums := n.sum(1, func(from, to int, s []float64) { columnSums(s, x[from*n.cols:to*n.cols]) })
				for c := range n.cols {
					n.mean[c] = T(sums[c] / float64(n.rows))
				}
				sums = n.sum(1, func(from, to int, s []float64) { columnSquares(s, x[from*n.cols:to*n.cols], n.mean) })
				for c := range n.cols {
					n.variance[c] = T(sums[c] / float64(n.rows))
				}
				if n.done != nil {
					n.done()
				}
			}
			a, b := make([]T, n.cols), make([]T, n.cols)
			for c := range n.cols {
				inv := 1 / math.Sqrt(float64(n.variance[c])+n.eps)
				a[c] = T(float64(in[1][c]) * inv)
				b[c] = T(float64(in[2][c]) - float64(n.mean[c])*float64(in[1][c])*inv)
			}
			var residual []T
			if len(in) == 4 {
				residual = in[3]
			}
			ParallelRows(n.rows, 2*n.cols, func(from, to int) {
				from, to = from*n.cols, to*n.cols
				r := residual
				if r != nil {
					r = r[from:to]
				}
				normTo(out[from:to], x[from:to], a, b, r, n.relu)
			})
		},
		Backward: func(din, in [][]T, out, dout []T) {
			x, inv := in[0], make([]T, n.cols)
			for c := range inv {
				inv[c] = T(1 / math.Sqrt(float64(n.variance[c])+n.eps))
			}
			at := func(s []T, from, to int) []T {
				if s == nil {
					return nil
				}
				return s[from*n.cols : to*n.cols]
			}
			if !n.relu {
				out = nil
			}
			sums := n.sum(2, func(from, to int, s []float64) {
				normBackSums(s[:n.cols], s[n.cols:], at(x, from, to), n.mean, inv, at(out, from, to), at(dout, from, to))
			})
			p, q, r := make([]T, n.cols), make([]T, n.cols), make([]T, n.cols)
			for c := range n.cols {
				db, dg := sums[c], sums[n.cols+c]
				if din[1] != nil {
					din[1][c] = T(dg)
				}
				if din[2] != nil {
					din[2][c] = T(db)
				}
				k := float64(in[1][c]) * float64(inv[c])
				p[c] = T(k)
				if n.train {
					q[c] = T(-k * dg * float64(inv[c]) / float64(n.rows))
					r[c] = T(-k*db/float64(n.rows) + k*dg*float64(inv[c])*float64(n.mean[c])/float64(n.rows))
				}
			}
			var dresidual []T
			if len(din) == 4 {
				dresidual = din[3]
			}
			ParallelRows(n.rows, 3*n.cols, func(from, to int) {
				normBack(at(din[0], from, to), at(dresidual, from, to), at(x, from, to), p, q, r, at(out, from, to), at(dout, from, to))
			})
		}}
}

// sum adds what f computes of pieces of the rows, k sums a column, in order.
func (n *norm[T]) sum(k int, f func(from, to int, s []float64)) []float64 {
	pieces := (n.rows + normPiece - 1) / normPiece
	parts := make([]float64, pieces*k*n.cols)
	Parallel(pieces, func(i int) {
		f(i*normPiece, min((i+1)*normPiece, n.rows), parts[i*k*n.cols:(i+1)*k*n.cols])
	})
	for i := 1; i < pieces; i++ {
		for c := range k * n.cols {
			parts[c] += parts[i*k*n.cols+c]
		}
	}
	return parts[:k*n.cols]
}

// normTo writes relu(a·x + b + residual).
func normTo[T Float](y, x, a, b, residual []T, relu bool) {
	cols := len(a)
	if f, ok := single(x); ok {
		C.nn_norm(C.long(len(f)/cols), C.long(cols), ptr(f), ptr(any(a).([]float32)), ptr(any(b).([]float32)), ptr(any(residual).([]float32)), flagOf(relu), ptr(any(y).([]float32)))
		return
	}
	for i, v := range x {
		v = v*a[i%cols] + b[i%cols]
		if residual != nil {
			v += residual[i]
		}
		if relu && v < 0 {
			v = 0
		}
		y[i] = v
	}
}

// normBackSums adds Σd and Σd·(x-mean)·inv by columns, where d is dy behind the ReLU; y is nil without one.
func normBackSums[T Float](db, dg []float64, x, mean, inv, y, dy []T) {
	cols := len(mean)
	if f, ok := single(x); ok {
		C.nn_norm_back_sums(C.long(len(f)/cols), C.long(cols), ptr(f), ptr(any(mean).([]float32)), ptr(any(inv).([]float32)), ptr(any(y).([]float32)), ptr(any(dy).([]float32)), flagOf(y != nil),
			(*C.double)(unsafe.SliceData(db)), (*C.double)(unsafe.SliceData(dg)))
		return
	}
	for i, v := range x {
		if d := dy[i]; y == nil || y[i] > 0 {
			db[i%cols] += float64(d)
			dg[i%cols] += float64(d) * float64(v-mean[i%cols]) * float64(inv[i%cols])
		}
	}
}

// normBack writes p·d + q·x + r into dx and d into dresidual, either of which may be nil.
func normBack[T Float](dx, dresidual, x, p, q, r, y, dy []T) {
	cols := len(p)
	if f, ok := single(x); ok {
		C.nn_norm_back(C.long(len(f)/cols), C.long(cols), ptr(f), ptr(any(p).([]float32)), ptr(any(q).([]float32)), ptr(any(r).([]float32)), ptr(any(y).([]float32)), ptr(any(dy).([]float32)), flagOf(y != nil),
			ptr(any(dx).([]float32)), ptr(any(dresidual).([]float32)))
		return
	}
	for i, v := range x {
		d := dy[i]
		if y != nil && y[i] <= 0 {
			d = 0
		}
		if dx != nil {
			dx[i] = p[i%cols]*d + q[i%cols]*v + r[i%cols]
		}
		if dresidual != nil {
			dresidual[i] = d
		}
	}
}

func flagOf(b bool) C.int {
	if b {
		return 1
	}
	return 0
}

// LayerNorm normalises each row of x [n,d] to mean 0 and variance 1, then scales by gamma and shifts by
// beta, [1,d] (Ba et al., arXiv 1607.06450; eps 1e-5).
func LayerNorm(x, gamma, beta *Node) *Node {
	if gamma.Rows != 1 || beta.Rows != 1 || gamma.Cols != x.Cols || beta.Cols != x.Cols {
		panic("nn: a layer norm of another width")
	}
	return Apply(layerNorm[float32](x.Rows, x.Cols), x.Rows, x.Cols, x, gamma, beta)
}

func layerNorm[T Float](n, d int) Kernel[T] {
	mean, inv := make([]T, n), make([]T, n)
	return Kernel[T]{Name: "layernorm", DropOut: true, DropIn: []bool{false, false, true},
		Forward: func(out []T, in [][]T) {
			for i := range n {
				x := in[0][i*d : (i+1)*d]
				var m, v float64
				for _, a := range x {
					m += float64(a)
				}
				m /= float64(d)
				for _, a := range x {
					v += (float64(a) - m) * (float64(a) - m)
				}
				mean[i], inv[i] = T(m), T(1/math.Sqrt(v/float64(d)+1e-5))
				for k, a := range x {
					out[i*d+k] = (a-mean[i])*inv[i]*in[1][k] + in[2][k]
				}
			}
		},
		Backward: func(din, in [][]T, _, dout []T) {
			dg, db := make([]float64, d), make([]float64, d)
			for i := range n {
				x, g := in[0][i*d:(i+1)*d], dout[i*d:(i+1)*d]
				var s, sx float64 // Σ of the gradient by the normalised row, and of it times that row
				for k, a := range x {
					u := float64(a-mean[i]) * float64(inv[i])
					dg[k] += float64(g[k]) * u
					db[k] += float64(g[k])
					du := float64(g[k]) * float64(in[1][k])
					s += du
					sx += du * u
				}
				if din[0] == nil {
					continue
				}
				for k, a := range x {
					u := (a - mean[i]) * inv[i]
					din[0][i*d+k] = inv[i] * (g[k]*in[1][k] - T(s/float64(d)) - u*T(sx/float64(d)))
				}
			}
			for k := range d {
				if din[1] != nil {
					din[1][k] = T(dg[k])
				}
				if din[2] != nil {
					din[2][k] = T(db[k])
				}
			}
		}}
}
