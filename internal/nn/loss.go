package nn

import "math"

// NTXent is the loss of SimCLR (Chen et al., arXiv 2002.05709, equation 1): z is [2B,d], rows i and i+B are
// two views of the same; with u = z/|z| and s = u·uᵀ/τ it is the mean over all rows i of
// -s(i,pos(i)) + log Σ_{j≠i} e^s(i,j). The result is [1,1].
func NTXent(z *Node, temperature float64) *Node {
	if z.Rows%2 != 0 || z.Rows < 4 {
		panic("nn: NT-Xent of fewer than two pairs")
	}
	return Apply(ntxent[float32](z.Rows, z.Cols, temperature), 1, 1, z)
}

func ntxent[T Float](n, d int, temperature float64) Kernel[T] {
	dz := make([]T, n*d) // computed with the loss
	return Kernel[T]{Name: "nt-xent", DropOut: true, DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			unit := normalise[T](n, d)
			u, s := make([]T, n*d), make([]T, n*n)
			unit.Forward(u, in)
			by := T(1 / temperature)
			Gemm(false, true, n, n, d, by, u, d, u, d, 0, s, n)
			losses := make([]float64, n)
			ParallelRows(n, 8*n, func(from, to int) {
				for i := from; i < to; i++ {
					row, pos := s[i*n:(i+1)*n], (i+n/2)%n
					positive := row[pos]
					row[i] = T(math.Inf(-1))
					top := row[0]
					for _, v := range row {
						top = max(top, v)
					}
					expTo(row, row, top)
					row[i] = 0
					var sum float64
					for _, v := range row {
						sum += float64(v)
					}
					losses[i] = math.Log(sum) + float64(top-positive)
					by := T(1 / sum / float64(n))
					for j := range row {
						row[j] *= by
					}
					row[pos] -= T(1 / float64(n))
				}
			})
			var loss float64
			for _, l := range losses {
				loss += l
			}
			out[0] = T(loss / float64(n))
			// s is now the gradient by the similarities; each stands in a row and in a column.
			du := make([]T, n*d)
			Gemm(false, false, n, d, n, by, s, n, u, d, 0, du, d)
			Gemm(true, false, n, d, n, by, s, n, u, d, 1, du, d)
			unit.Backward([][]T{dz}, nil, u, du)
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			clear(din[0])
			axpy(dout[0], dz, din[0])
		}}
}

// CrossEntropy is the weighted mean of -log softmax(logits)[target] over the rows of logits [n,classes],
// as PyTorch computes it: Σ w·loss / Σ w, with w the weight of the row's class. Nil weights are ones.
func CrossEntropy(logits *Node, targets []int, weights []float64) *Node {
	if len(targets) != logits.Rows || weights != nil && len(weights) != logits.Cols {
		panic("nn: one target a row, one weight a class")
	}
	for _, t := range targets {
		if t < 0 || t >= logits.Cols {
			panic("nn: a target that is no class")
		}
	}
	return Apply(crossEntropy[float32](logits.Cols, targets, weights), 1, 1, logits)
}

func crossEntropy[T Float](classes int, targets []int, weights []float64) Kernel[T] {
	p := make([]T, len(targets)*classes)
	var total float64
	w := func(class int) float64 {
		if weights == nil {
			return 1
		}
		return weights[class]
	}
	for _, t := range targets {
		total += w(t)
	}
	return Kernel[T]{Name: "cross-entropy", DropOut: true, DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			var loss float64
			for i, t := range targets {
				row := in[0][i*classes : (i+1)*classes]
				softmaxTo(p[i*classes:(i+1)*classes], row)
				top, sum := math.Inf(-1), 0.0
				for _, v := range row {
					top = math.Max(top, float64(v))
				}
				for _, v := range row {
					sum += math.Exp(float64(v) - top)
				}
				loss += w(t) * (math.Log(sum) + top - float64(row[t]))
			}
			out[0] = T(loss / total)
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			for i, t := range targets {
				by := dout[0] * T(w(t)/total)
				for c := range classes {
					g := p[i*classes+c]
					if c == t {
						g--
					}
					din[0][i*classes+c] = by * g
				}
			}
		}}
}

// Mean is the mean of all numbers of x: [1,1].
func Mean(x *Node) *Node { return Apply(meanOf[float32](), 1, 1, x) }

func meanOf[T Float]() Kernel[T] {
	return Kernel[T]{Name: "mean", DropOut: true, DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			var s [1]float64
			columnSums(s[:], in[0])
			out[0] = T(s[0] / float64(len(in[0])))
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			g := dout[0] / T(len(din[0]))
			for i := range din[0] {
				din[0][i] = g
			}
		}}
}

// LogMeanSoftmax is the logarithm of the mean, over the rows of logits [n,classes], of their softmax: [1,classes].
// Its own softmax is that mean.
func LogMeanSoftmax(logits *Node) *Node {
	return Apply(logMeanSoftmax[float32](logits.Rows, logits.Cols), 1, logits.Cols, logits)
}

func logMeanSoftmax[T Float](n, classes int) Kernel[T] {
	const floor = 1e-30 // of the mean, below which its logarithm is no number of float32
	p, mean := make([]T, n*classes), make([]float64, classes)
	return Kernel[T]{Name: "log mean softmax", DropOut: true, DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			clear(mean)
			for i := range n {
				softmaxTo(p[i*classes:(i+1)*classes], in[0][i*classes:(i+1)*classes])
			}
			columnSums(mean, p)
			for c := range mean {
				mean[c] = mean[c]/float64(n) + floor
				out[c] = T(math.Log(mean[c]))
			}
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			g := make([]T, classes)
			for c := range g {
				g[c] = dout[c] / T(mean[c]*float64(n))
			}
			for i := range n {
				row := p[i*classes : (i+1)*classes]
				s := T(Dot(row, g))
				for c := range classes {
					din[0][i*classes+c] = row[c] * (g[c] - s)
				}
			}
		}}
}
