package nn

// PseudoInverse approximates the Moore-Penrose inverses of square matrices that stand above each other in
// x [blocks·m,m], by the iteration of Razavi et al. as the Nyströmformer uses it (Xiong et al., arXiv
// 2102.03902, equation 11): z ← ¼·z·(13 − xz·(15 − xz·(7 − xz))), from xᵀ over the largest sum of a row and the
// largest of a column of all blocks. Entries must not be negative, as behind a softmax.
func PseudoInverse(x *Node, iterations int) *Node {
	if x.Rows%x.Cols != 0 {
		panic("nn: inverses of what is not square")
	}
	return Apply(pseudoInverse[float32](x.Rows/x.Cols, x.Cols, iterations), x.Rows, x.Cols, x)
}

func pseudoInverse[T Float](blocks, m, iterations int) Kernel[T] {
	var rowAt, colAt int // where the largest sums are, as numbers of rows and of columns of all blocks
	var rowSum, colSum T
	start := func(z, x []T) {
		rowSum, colSum = -1, -1
		for b := range blocks {
			for i := range m {
				var r, c T
				for j := range m {
					r += x[(b*m+i)*m+j]
					c += x[(b*m+j)*m+i]
				}
				if r > rowSum {
					rowSum, rowAt = r, b*m+i
				}
				if c > colSum {
					colSum, colAt = c, b*m+i
				}
			}
		}
		by := 1 / (rowSum * colSum)
		for b := range blocks {
			for i := range m {
				for j := range m {
					z[(b*m+i)*m+j] = x[(b*m+j)*m+i] * by
				}
			}
		}
	}
	// less writes by·I − a·b.
	less := func(dst, a, b []T, by T) {
		Gemm(false, false, m, m, m, -1, a, m, b, m, 0, dst, m)
		for i := range m {
			dst[i*m+i] += by
		}
	}
	// An iteration keeps what its gradient reads: z before it, p = xz, q = 15 − p(7 − p) and r = 13 − p·q.
	type kept struct{ z, p, q, r, seven []T }
	tape := make([][]kept, blocks)
	step := func(next, x []T, k kept) {
		Gemm(false, false, m, m, m, 1, x, m, k.z, m, 0, k.p, m)
		for i, v := range k.p {
			k.seven[i] = -v
		}
		for i := range m {
			k.seven[i*m+i] += 7
		}
		less(k.q, k.p, k.seven, 15)
		less(k.r, k.p, k.q, 13)
		Gemm(false, false, m, m, m, 0.25, k.z, m, k.r, m, 0, next, m)
	}
	return Kernel[T]{Name: "pseudo-inverse", DropOut: true,
		Forward: func(out []T, in [][]T) {
			start(out, in[0])
			Parallel(blocks, func(b int) {
				tape[b] = tape[b][:0]
				x, z := in[0][b*m*m:(b+1)*m*m], out[b*m*m:(b+1)*m*m]
				for range iterations {
					w := make([]T, 5*m*m)
					k := kept{w[:m*m], w[m*m : 2*m*m], w[2*m*m : 3*m*m], w[3*m*m : 4*m*m], w[4*m*m:]}
					copy(k.z, z)
					step(z, x, k)
					tape[b] = append(tape[b], k)
				}
			})
		},
		Backward: func(din, in [][]T, _, dout []T) {
			scales := make([]float64, blocks)
			Parallel(blocks, func(b int) {
				at := func(x []T) []T { return x[b*m*m : (b+1)*m*m] }
				x, dx := at(in[0]), at(din[0])
				clear(dx)
				w := make([]T, 5*m*m)
				dz, next, dp, dq, dr := w[:m*m], w[m*m:2*m*m], w[2*m*m:3*m*m], w[3*m*m:4*m*m], w[4*m*m:]
				copy(dz, at(dout))
				for i := iterations - 1; i >= 0; i-- {
					k := tape[b][i]
					// z after it = ¼·z·r
					Gemm(true, false, m, m, m, 0.25, k.z, m, dz, m, 0, dr, m)
					Gemm(false, true, m, m, m, 0.25, dz, m, k.r, m, 0, next, m)
					// r = 13 − p·q
					Gemm(false, true, m, m, m, -1, dr, m, k.q, m, 0, dp, m)
					Gemm(true, false, m, m, m, -1, k.p, m, dr, m, 0, dq, m)
					// q = 15 − p·(7 − p)
					Gemm(false, true, m, m, m, -1, dq, m, k.seven, m, 1, dp, m)
					Gemm(true, false, m, m, m, 1, k.p, m, dq, m, 1, dp, m)
					// p = x·z
					Gemm(false, true, m, m, m, 1, dp, m, k.z, m, 1, dx, m)
					Gemm(true, false, m, m, m, 1, x, m, dp, m, 1, next, m)
					dz, next = next, dz
				}
				// z₀ = xᵀ/(rowSum·colSum)
				by := 1 / (rowSum * colSum)
				for i := range m {
					for j := range m {
						dx[j*m+i] += dz[i*m+j] * by
						scales[b] += float64(dz[i*m+j]) * float64(x[j*m+i])
					}
				}
			})
			var ds float64
			for _, s := range scales {
				ds += s
			}
			byRow, byCol := T(-ds)/(rowSum*rowSum*colSum), T(-ds)/(rowSum*colSum*colSum)
			for j := range m {
				din[0][rowAt*m+j] += byRow
				din[0][(colAt/m*m+j)*m+colAt%m] += byCol
			}
		}}
}
