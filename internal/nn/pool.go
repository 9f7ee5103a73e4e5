package nn

import "math"

// Segments cut the rows of a matrix into bags: bag i is rows Segments[i] to Segments[i+1]. The first is 0,
// the last the number of rows, and no bag is empty.
type Segments []int

func (s Segments) check(rows int) int {
	for i := range len(s) - 1 {
		if s[i+1] <= s[i] {
			panic("nn: an empty bag")
		}
	}
	if len(s) < 2 || s[0] != 0 || s[len(s)-1] != rows {
		panic("nn: bags that do not cover their rows")
	}
	return len(s) - 1
}

// each calls f for every bag, several at once.
func (s Segments) each(cost int, f func(bag, from, to int)) {
	ParallelRows(len(s)-1, cost*s[len(s)-1]/(len(s)-1), func(from, to int) {
		for i := from; i < to; i++ {
			f(i, s[i], s[i+1])
		}
	})
}

// SegmentMean is the mean of each bag's rows: [bags,d].
func SegmentMean(x *Node, bags Segments) *Node {
	return Apply(segmentMean[float32](x.Cols, bags), bags.check(x.Rows), x.Cols, x)
}

func segmentMean[T Float](d int, bags Segments) Kernel[T] {
	return Kernel[T]{Name: "segment mean", DropOut: true, DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			bags.each(d, func(i, from, to int) { meanTo(out[i*d:(i+1)*d], in[0][from*d:to*d]) })
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			bags.each(d, func(i, from, to int) {
				first := din[0][from*d : (from+1)*d]
				for k, g := range dout[i*d : (i+1)*d] {
					first[k] = g / T(to-from)
				}
				for r := from + 1; r < to; r++ {
					copy(din[0][r*d:(r+1)*d], first)
				}
			})
		}}
}

// meanTo writes the mean of x's rows.
func meanTo[T Float](dst, x []T) {
	sums := make([]float64, len(dst))
	columnSums(sums, x)
	n := float64(len(x) / len(dst))
	for k, s := range sums {
		dst[k] = T(s / n)
	}
}

// SegmentMeanSD is the mean of each bag's rows and, beside it, their standard deviation
// √(Σ(x-mean)²/n + 1e-6): [bags,2d]. Of one row the deviation is 0.001, with no gradient.
func SegmentMeanSD(x *Node, bags Segments) *Node {
	return Apply(segmentMeanSD[float32](x.Cols, bags), bags.check(x.Rows), 2*x.Cols, x)
}

const varianceFloor = 1e-6

func segmentMeanSD[T Float](d int, bags Segments) Kernel[T] {
	return Kernel[T]{Name: "segment mean and sd",
		Forward: func(out []T, in [][]T) {
			bags.each(2*d, func(i, from, to int) {
				mean, sd, x := out[2*i*d:(2*i+1)*d], out[(2*i+1)*d:(2*i+2)*d], in[0][from*d:to*d]
				meanTo(mean, x)
				squares := make([]float64, d)
				columnSquares(squares, x, mean)
				for k, s := range squares {
					sd[k] = T(math.Sqrt(s/float64(to-from) + varianceFloor))
				}
			})
		},
		Backward: func(din, in [][]T, out, dout []T) {
			bags.each(3*d, func(i, from, to int) {
				mean, sd := out[2*i*d:(2*i+1)*d], out[(2*i+1)*d:(2*i+2)*d]
				gm, gs := dout[2*i*d:(2*i+1)*d], dout[(2*i+1)*d:(2*i+2)*d]
				a, b := make([]T, d), make([]T, d)
				for k := range d {
					a[k] = gm[k] / T(to-from)
					b[k] = gs[k] / (sd[k] * T(to-from))
				}
				for r := from; r < to; r++ {
					x, o := in[0][r*d:(r+1)*d], din[0][r*d:(r+1)*d]
					for k := range d {
						o[k] = a[k] + b[k]*(x[k]-mean[k])
					}
				}
			})
		}}
}

// SegmentMax is the largest number of each bag's rows, by columns: [bags,d]. Its gradient goes to the first
// row that has it.
func SegmentMax(x *Node, bags Segments) *Node {
	return Apply(segmentMax[float32](x.Cols, bags), bags.check(x.Rows), x.Cols, x)
}

func segmentMax[T Float](d int, bags Segments) Kernel[T] {
	at := make([]int, (len(bags)-1)*d)
	return Kernel[T]{Name: "segment max", DropOut: true, DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			bags.each(d, func(i, from, to int) {
				o, w := out[i*d:(i+1)*d], at[i*d:(i+1)*d]
				copy(o, in[0][from*d:(from+1)*d])
				for k := range w {
					w[k] = from
				}
				for r := from + 1; r < to; r++ {
					for k, v := range in[0][r*d : (r+1)*d] {
						if v > o[k] || v != v { // NaN is not lost
							o[k], w[k] = v, r
						}
					}
				}
			})
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			clear(din[0])
			bags.each(d, func(i, _, _ int) {
				for k, r := range at[i*d : (i+1)*d] {
					din[0][r*d+k] = dout[i*d+k]
				}
			})
		}}
}

// SegmentSoftmax makes each column of logits [n,heads] sum to one within each bag.
func SegmentSoftmax(logits *Node, bags Segments) *Node {
	bags.check(logits.Rows)
	return Apply(segmentSoftmax[float32](logits.Cols, bags), logits.Rows, logits.Cols, logits)
}

func segmentSoftmax[T Float](heads int, bags Segments) Kernel[T] {
	return Kernel[T]{Name: "segment softmax", DropIn: []bool{true},
		Forward: func(out []T, in [][]T) {
			bags.each(16*heads, func(_, from, to int) {
				column := make([]T, to-from)
				for h := range heads {
					for r := range column {
						column[r] = in[0][(from+r)*heads+h]
					}
					softmaxTo(column, column)
					for r, v := range column {
						out[(from+r)*heads+h] = v
					}
				}
			})
		},
		Backward: func(din, _ [][]T, out, dout []T) {
			bags.each(4*heads, func(_, from, to int) {
				for h := range heads {
					var s float64
					for r := from; r < to; r++ {
						s += float64(out[r*heads+h]) * float64(dout[r*heads+h])
					}
					for r := from; r < to; r++ {
						din[0][r*heads+h] = out[r*heads+h] * (dout[r*heads+h] - T(s))
					}
				}
			})
		}}
}

// SegmentWeighted sums each bag's rows of x [n,d] with the weights of every head in w [n,heads], the heads
// side by side: [bags,heads·d]. With SegmentSoftmax it is attention pooling.
func SegmentWeighted(x, w *Node, bags Segments) *Node {
	if x.Rows != w.Rows {
		panic("nn: one weight a row")
	}
	n := bags.check(x.Rows)
	return Apply(segmentWeighted[float32](x.Cols, w.Cols, bags), n, w.Cols*x.Cols, x, w)
}

func segmentWeighted[T Float](d, heads int, bags Segments) Kernel[T] {
	return Kernel[T]{Name: "segment weighted sum", DropOut: true,
		Forward: func(out []T, in [][]T) {
			for i := range len(bags) - 1 { // [heads,n]·[n,d]
				from, to := bags[i], bags[i+1]
				Gemm(true, false, heads, d, to-from, 1, in[1][from*heads:to*heads], heads, in[0][from*d:to*d], d, 0, out[i*heads*d:(i+1)*heads*d], d)
			}
		},
		Backward: func(din, in [][]T, _, dout []T) {
			for i := range len(bags) - 1 {
				from, to := bags[i], bags[i+1]
				g := dout[i*heads*d : (i+1)*heads*d]
				if din[0] != nil {
					Gemm(false, false, to-from, d, heads, 1, in[1][from*heads:to*heads], heads, g, d, 0, din[0][from*d:to*d], d)
				}
				if din[1] != nil {
					Gemm(false, true, to-from, heads, d, 1, in[0][from*d:to*d], d, g, d, 0, din[1][from*heads:to*heads], heads)
				}
			}
		}}
}

// RowsOfMax takes the rows of x [n,d] at which the columns of by [n,k] are largest, of equal ones the first:
// [k,d]. Which rows they are is not differentiated.
func RowsOfMax(x, by *Node) *Node {
	if x.Rows != by.Rows {
		panic("nn: matrices of different heights")
	}
	return Apply(rowsOfMax[float32](x.Cols, by.Cols), by.Cols, x.Cols, x, by)
}

func rowsOfMax[T Float](d, k int) Kernel[T] {
	at := make([]int32, k)
	return Kernel[T]{Name: "rows of max", DropOut: true, DropIn: []bool{true, true},
		Forward: func(out []T, in [][]T) {
			clear(at)
			for i := range len(in[1]) / k {
				for c := range k {
					if in[1][i*k+c] > in[1][int(at[c])*k+c] {
						at[c] = int32(i)
					}
				}
			}
			gatherRows(out, in[0], at, d)
		},
		Backward: func(din, _ [][]T, _, dout []T) {
			if din[0] != nil {
				clear(din[0])
				scatterRows(din[0], dout, at, d)
			}
			if din[1] != nil {
				clear(din[1])
			}
		}}
}

// SD is √(square - mean² + 1e-6) element by element, given means and means of squares; what rounding makes
// negative is taken as zero, with no gradient.
func SD(mean, square *Node) *Node {
	same(mean, square)
	return Apply(sd[float32](), mean.Rows, mean.Cols, mean, square)
}

func sd[T Float]() Kernel[T] {
	return Kernel[T]{Name: "sd",
		Forward: func(out []T, in [][]T) {
			for i, m := range in[0] {
				out[i] = T(math.Sqrt(max(float64(in[1][i]-m*m), 0) + varianceFloor))
			}
		},
		Backward: func(din, in [][]T, out, dout []T) {
			for i, m := range in[0] {
				var g T
				if in[1][i] > m*m {
					g = dout[i] / (2 * out[i])
				}
				if din[0] != nil {
					din[0][i] = -2 * m * g
				}
				if din[1] != nil {
					din[1][i] = g
				}
			}
		}}
}
