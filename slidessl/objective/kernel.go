package objective

import (
	"math"
	"slices"

	"coverslip/internal/nn"
)

// Each kernel computes the gradient with the loss, for each is a closed form of what the loss has anyway.

// softmaxTo writes e^x/Σe^x and returns log Σe^x. Where x is -∞ it writes exactly 0.
func softmaxTo[T nn.Float](dst, x []T) float64 {
	top := slices.Max(x) // NaN if there is one
	none := T(math.Inf(-1))
	var gone []int
	for i, v := range x {
		if v == none {
			gone = append(gone, i)
		}
	}
	nn.Exp(dst, x, top)
	for _, i := range gone {
		dst[i] = 0
	}
	var s float64
	for _, v := range dst {
		s += float64(v)
	}
	by := T(1 / s)
	for i := range dst {
		dst[i] *= by
	}
	return math.Log(s) + float64(top)
}

// closed is a kernel whose forward writes the gradient by its first input, of length n, too.
func closed[T nn.Float](name string, n, inputs int, forward func(grad []T, in [][]T) float64) nn.Kernel[T] {
	grad := make([]T, n)
	drop := make([]bool, inputs)
	for i := range drop {
		drop[i] = true
	}
	return nn.Kernel[T]{Name: name, DropOut: true, DropIn: drop,
		Forward: func(out []T, in [][]T) { out[0] = T(forward(grad, in)) },
		Backward: func(din, _ [][]T, _, dout []T) {
			for i, g := range grad {
				din[0][i] = g * dout[0]
			}
		}}
}

func sum(x []float64) (s float64) {
	for _, v := range x {
		s += v
	}
	return s
}

// cosines is 2 - 2·(mean of q_i·k_i): q and k [n,d] of rows of length 1; nothing is learned of k.
func cosines[T nn.Float](n, d int) nn.Kernel[T] {
	return closed("cosines", n*d, 2, func(grad []T, in [][]T) float64 {
		by := T(-2 / float64(n))
		for i, k := range in[1] {
			grad[i] = by * k
		}
		return 2 - 2*nn.Dot(in[0], in[1])/float64(n)
	})
}

// queued is the mean of -log(e^(q_i·k_i/τ) / (e^(q_i·k_i/τ) + Σ_j e^(q_i·queue_j/τ))): q and k [n,d], queue
// [m,d]. Keys j of slide[j] == of[i] ≥ 0 are left out of row i. Nothing is learned of k and queue.
func queued[T nn.Float](n, d, m int, temperature float64, of []int, slide []float32) nn.Kernel[T] {
	return closed("queue", n*d, 3, func(grad []T, in [][]T) float64 {
		const piece = 64 // rows, so that similarities to a long queue need not all be there at once
		q, k, queue, by := in[0], in[1], in[2], T(1/temperature)
		s := make([]T, min(piece, n)*m)
		losses := make([]float64, n)
		for from := 0; from < n; from += piece {
			to := min(from+piece, n)
			s := s[:(to-from)*m]
			nn.Gemm(false, true, to-from, m, d, by, q[from*d:to*d], d, queue, d, 0, s, m)
			nn.ParallelRows(to-from, 8*m, func(first, last int) {
				row := make([]T, m+1)
				for r := first; r < last; r++ {
					i := from + r
					copy(row, s[r*m:(r+1)*m])
					for j := range m {
						if of != nil && of[i] >= 0 && slide[j] == float32(of[i]) {
							row[j] = T(math.Inf(-1))
						}
					}
					positive := nn.Dot(q[i*d:(i+1)*d], k[i*d:(i+1)*d]) / temperature
					row[m] = T(positive)
					losses[i] = softmaxTo(row, row) - positive
					copy(s[r*m:(r+1)*m], row[:m])
					for c := range d {
						grad[i*d+c] = (row[m] - 1) * k[i*d+c] * by / T(n)
					}
				}
			})
			nn.Gemm(false, false, to-from, d, m, by/T(n), s, m, queue, d, 1, grad[from*d:to*d], d)
		}
		return sum(losses) / float64(n)
	})
}

// classes is the mean over rows i of -1/|P(i)| Σ_{p∈P(i)} log(e^(u_i·u_p/τ) / Σ_{j≠i} e^(u_i·u_j/τ)), with P(i)
// the other rows of i's class: u [n,d].
func classes[T nn.Float](class []int, d int, temperature float64) nn.Kernel[T] {
	n := len(class)
	size := map[int]int{}
	for _, c := range class {
		size[c]++
	}
	return closed("classes", n*d, 1, func(grad []T, in [][]T) float64 {
		u, by, s := in[0], T(1/temperature), make([]T, n*n)
		nn.Gemm(false, true, n, n, d, by, u, d, u, d, 0, s, n)
		losses := make([]float64, n)
		nn.ParallelRows(n, 12*n, func(from, to int) {
			for i := from; i < to; i++ {
				row, others := s[i*n:(i+1)*n], float64(size[class[i]]-1)
				if others == 0 {
					clear(row)
					continue
				}
				var near float64
				for j, v := range row {
					if j != i && class[j] == class[i] {
						near += float64(v)
					}
				}
				row[i] = T(math.Inf(-1))
				losses[i] = softmaxTo(row, row) - near/others
				for j := range row {
					if j != i && class[j] == class[i] {
						row[j] -= T(1 / others)
					}
					row[j] /= T(n)
				}
			}
		})
		// s is now the gradient by the similarities; each stands in a row and in a column.
		nn.Gemm(false, false, n, d, n, by, s, n, u, d, 0, grad, d)
		nn.Gemm(true, false, n, d, n, by, s, n, u, d, 1, grad, d)
		return sum(losses) / float64(n)
	})
}

// invariant is ReLIC's loss of online projections o and targets t, both [n,d] of rows of length 1: with
// s = o·tᵀ/τ, p the softmax of its rows and q that of its columns, the mean of -log p(i,i) + β·KL(p(i,·) ‖ q(·,i)).
// p is a constant in the second term, and nothing is learned of t.
func invariant[T nn.Float](n, d int, temperature, weight float64) nn.Kernel[T] {
	return closed("invariant", n*d, 2, func(grad []T, in [][]T) float64 {
		by, s, st := T(1/temperature), make([]T, n*n), make([]T, n*n)
		nn.Gemm(false, true, n, n, d, by, in[0], d, in[1], d, 0, s, n)
		nn.Gemm(false, true, n, n, d, by, in[1], d, in[0], d, 0, st, n)
		losses := make([]float64, n)
		nn.ParallelRows(n, 32*n, func(from, to int) {
			p, q := make([]T, n), make([]T, n)
			for i := from; i < to; i++ {
				row, column := s[i*n:(i+1)*n], st[i*n:(i+1)*n]
				lp, lq := softmaxTo(p, row), softmaxTo(q, column)
				losses[i] = lp - float64(row[i])
				for j, v := range p {
					losses[i] += weight * float64(v) * (float64(row[j]) - lp - float64(column[j]) + lq)
					column[j] = T(weight) * (q[j] - v) / T(n)
					row[j] = v / T(n)
				}
				row[i] -= 1 / T(n)
			}
		})
		nn.Gemm(false, false, n, d, n, by, s, n, in[1], d, 0, grad, d)
		nn.Gemm(true, false, n, d, n, by, st, n, in[1], d, 1, grad, d)
		return sum(losses) / float64(n)
	})
}

// distilled is the mean of -Σ_k c(v)_k · log softmax(scores(w)/τ)_k over the ordered pairs (w,v) of the batch
// and over its slides: scores [Views·Slides,k]. codes writes the targets c of the large views [Global·Slides,k],
// rows that sum to one, from the second input, or from the scores where there is none. Nothing is learned of c.
func distilled[T nn.Float](b Batch, k int, temperature float64, inputs int, codes func(dst, x []T)) nn.Kernel[T] {
	rows, large := b.Views*b.Slides, b.Global*b.Slides
	pairs := b.Global * (b.Views - 1)
	return closed("distilled", rows*k, inputs, func(grad []T, in [][]T) float64 {
		targets := make([]T, large*k)
		codes(targets, in[inputs-1][:large*k])
		all := float64(pairs * b.Slides)
		losses := make([]float64, rows)
		nn.ParallelRows(rows, (8+2*b.Global)*k, func(from, to int) {
			scaled, wanted := make([]T, k), make([]T, k)
			for r := from; r < to; r++ {
				view, slide := r/b.Slides, r%b.Slides
				for i, v := range in[0][r*k : (r+1)*k] {
					scaled[i] = v * T(1/temperature)
				}
				// The loss is linear in the targets: those of all large views but this one are added.
				clear(wanted)
				var mass T
				for v := range b.Global {
					if v != view {
						at := (v*b.Slides + slide) * k
						for i, c := range targets[at : at+k] {
							wanted[i] += c
						}
						mass++
					}
				}
				g := grad[r*k : (r+1)*k]
				long := softmaxTo(g, scaled)
				losses[r] = float64(mass)*long - nn.Dot(wanted, scaled)
				for i, c := range wanted {
					g[i] = (mass*g[i] - c) * T(1/temperature/all)
				}
			}
		})
		return sum(losses) / all
	})
}

// redundant is Σ_i (1-c_ii)² + λ·Σ_{i≠j} c_ij²: c [d,d].
func redundant[T nn.Float](d int, weight float64) nn.Kernel[T] {
	return closed("redundant", d*d, 1, func(grad []T, in [][]T) float64 {
		losses := make([]float64, d)
		nn.ParallelRows(d, 4*d, func(from, to int) {
			for i := from; i < to; i++ {
				for j, c := range in[0][i*d : (i+1)*d] {
					if i == j {
						losses[i] += (1 - float64(c)) * (1 - float64(c))
						grad[i*d+j] = 2 * (c - 1)
					} else {
						losses[i] += weight * float64(c) * float64(c)
						grad[i*d+j] = T(2*weight) * c
					}
				}
			}
		})
		return sum(losses)
	})
}

// spread is μ/2·(mean over columns of max(0, 1-√(var+1e-4))) + ν/d·Σ_{i≠j} cov_ij² of the columns of z [n,d];
// variances and covariances are divided by n-1.
func spread[T nn.Float](n, d int, variance, covariance float64) nn.Kernel[T] {
	return closed("spread", n*d, 1, func(grad []T, in [][]T) float64 {
		mean := make([]float64, d)
		for i, v := range in[0] {
			mean[i%d] += float64(v)
		}
		z := make([]T, n*d)
		for i, v := range in[0] {
			z[i] = v - T(mean[i%d]/float64(n))
		}
		cov := make([]T, d*d)
		nn.Gemm(true, false, d, d, n, T(1/float64(n-1)), z, d, z, d, 0, cov, d)
		hinges, squares := make([]float64, d), make([]float64, d)
		for i := range d {
			row := cov[i*d : (i+1)*d]
			sd := math.Sqrt(float64(row[i]) + 1e-4)
			hinges[i] = max(0, 1-sd)
			row[i] = 0
			squares[i] = nn.Dot(row, row)
			for j := range row {
				row[j] *= T(4 * covariance / float64(d) / float64(n-1))
			}
			if hinges[i] > 0 { // of the diagonal only the variance's term is left
				row[i] = T(-variance / 2 / float64(d) / sd / float64(n-1))
			}
		}
		nn.Gemm(false, false, n, d, d, 1, z, d, cov, d, 0, grad, d)
		return variance/2*sum(hinges)/float64(d) + covariance*sum(squares)/float64(d)
	})
}
