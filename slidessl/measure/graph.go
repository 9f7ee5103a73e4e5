package measure

import (
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"

	"coverslip/internal/nn"
)

// Graph are measures of the manifold that embeddings lie on, from the graph of non-negative kernel regression (NNK;
// Shekkizhar and Ortega, arXiv 1910.09383), after the manifold graph metrics of Cosentino et al. (arXiv 2209.08622). An
// embedding's neighbours are those among its k nearest that the regression gives a weight: one that lies behind another
// gets none. Embeddings are brought to length 1; the kernel is (1+cos)/2.
type Graph struct {
	// Neighbours is their mean number: how many directions the manifold has there.
	Neighbours float64
	// Diameter is the mean of the largest distance between two neighbours of an embedding, 0 to 2: how spread they are.
	Diameter float64
	// Affinity is the mean cosine of the principal angles between the spans of neighbours, seen from an embedding, and of
	// those of its strongest neighbour: 1 where the manifold is flat, 0 where they have no direction in common.
	Affinity float64
	// Equivariance is the mean cosine between how an embedding moves from one view to the other and how its strongest
	// neighbour does: 1 where views move all the same way, 0 where each moves its own. NaN without other views.
	Equivariance float64
}

// NeighbourGraph measures x [n,d], and views of the same slides, again [n,d] or nil. k is below n.
func NeighbourGraph(x, again []float32, d, k int) Graph {
	n := rows(x, d)
	if k < 1 || k >= n || again != nil && len(again) != len(x) {
		panic("measure: a graph of other neighbours than there are")
	}
	u := units(x, d)
	s := make([]float32, n*n)
	nn.Gemm(false, true, n, n, d, 1, u, d, u, d, 0, s, n)
	cos := func(i, j int) float64 { return math.Min(float64(s[i*n+j]), 1) }
	neighbours, strongest := make([][]int, n), make([]int, n)
	nn.ParallelRows(n, k*k*k*100, func(first, last int) {
		for i := first; i < last; i++ {
			neighbours[i], strongest[i] = nonNegative(nearest(s[i*n:(i+1)*n], i, k), i, cos)
		}
	})
	spans := make([]*mat.Dense, n)
	var g Graph
	for i, of := range neighbours {
		g.Neighbours += float64(len(of)) / float64(n)
		widest := 0.0
		for a, p := range of {
			for _, q := range of[:a] {
				widest = max(widest, 2-2*cos(p, q))
			}
		}
		g.Diameter += math.Sqrt(widest) / float64(n)
		spans[i] = span(u, d, i, of)
	}
	moved := make([]float64, 0, d)
	move := func(w []float32, i int) []float64 {
		moved = moved[len(moved):]
		for k := range d {
			moved = append(moved, float64(w[i*d+k]-u[i*d+k]))
		}
		return moved
	}
	var w []float32
	if again != nil {
		w = units(again, d)
	}
	met := 0.0
	for i, j := range strongest {
		if c, ok := affinity(spans[i], spans[j]); ok {
			g.Affinity += c
			met++
		}
		if w != nil {
			a, b := move(w, i), move(w, j)
			g.Equivariance += nn.Dot(a, b) / math.Max(math.Sqrt(nn.Dot(a, a)*nn.Dot(b, b)), 1e-12) / float64(n)
		}
	}
	g.Affinity /= met
	if w == nil {
		g.Equivariance = math.NaN()
	}
	return g
}

// nearest are the k rows of the largest cosines but i itself, the largest first, of equal ones the first.
func nearest(row []float32, i, k int) []int {
	at := make([]int, 0, len(row)-1)
	for j := range row {
		if j != i {
			at = append(at, j)
		}
	}
	slices.SortStableFunc(at, func(a, b int) int {
		switch {
		case row[a] > row[b]:
			return -1
		case row[a] < row[b]:
			return 1
		}
		return 0
	})
	return at[:k]
}

// nonNegative minimises ½·θᵀKθ - κᵀθ over θ ≥ 0, K the kernel among candidates and κ theirs with i, by Lawson and Hanson's
// active set, and returns the candidates with a weight, and the one of the largest.
func nonNegative(candidates []int, i int, cos func(a, b int) float64) (with []int, strongest int) {
	const tiny = 1e-6
	n := len(candidates)
	kernel := func(a, b int) float64 { return (1 + cos(a, b)) / 2 }
	theta, active := make([]float64, n), make([]bool, n)
	for range 10 * n {
		best, steepest := -1, tiny
		for a := range candidates {
			if active[a] {
				continue
			}
			slope := kernel(candidates[a], i)
			for b, t := range theta {
				if t > 0 {
					slope -= kernel(candidates[a], candidates[b]) * t
				}
			}
			if slope > steepest {
				best, steepest = a, slope
			}
		}
		if best < 0 {
			break
		}
		active[best] = true
		for { // back to where all are positive
			var on []int
			for a, is := range active {
				if is {
					on = append(on, a)
				}
			}
			solved, ok := solve(candidates, on, i, kernel)
			if !ok { // as good as one that is there
				active[best] = false
				break
			}
			step := 1.0
			for k, a := range on {
				if solved[k] <= tiny {
					step = min(step, theta[a]/max(theta[a]-solved[k], 1e-300))
				}
			}
			for k, a := range on {
				theta[a] += step * (solved[k] - theta[a])
				if theta[a] <= tiny {
					theta[a], active[a] = 0, false
				}
			}
			if step == 1 {
				break
			}
		}
		if !active[best] {
			break
		}
	}
	top := 0
	for a, t := range theta {
		if t > 0 {
			with = append(with, candidates[a])
		}
		if t > theta[top] {
			top = a
		}
	}
	return with, candidates[top]
}

// solve is K⁻¹·κ over the candidates that are on; false where K has none, up to rounding.
func solve(candidates, on []int, i int, kernel func(a, b int) float64) ([]float64, bool) {
	k, b := mat.NewSymDense(len(on), nil), mat.NewVecDense(len(on), nil)
	for r, a := range on {
		b.SetVec(r, kernel(candidates[a], i))
		for c := range r + 1 {
			k.SetSym(r, c, kernel(candidates[a], candidates[on[c]]))
		}
	}
	var chol mat.Cholesky
	if !chol.Factorize(k) || chol.Cond() > 1e10 {
		return nil, false
	}
	var x mat.VecDense
	if err := chol.SolveVecTo(&x, b); err != nil {
		return nil, false
	}
	return x.RawVector().Data, true
}

// span is an orthonormal basis, [d,r], of the directions from a row to its neighbours, nil without any.
func span(u []float32, d, i int, neighbours []int) *mat.Dense {
	if len(neighbours) == 0 {
		return nil
	}
	m := mat.NewDense(d, len(neighbours), nil)
	for c, j := range neighbours {
		for k := range d {
			m.Set(k, c, float64(u[j*d+k]-u[i*d+k]))
		}
	}
	var svd mat.SVD
	if !svd.Factorize(m, mat.SVDThin) {
		return nil
	}
	values := svd.Values(nil)
	rank := 0
	for rank < len(values) && values[rank] > 1e-5*values[0] && values[rank] > 1e-6 {
		rank++
	}
	if rank == 0 {
		return nil
	}
	var basis mat.Dense
	svd.UTo(&basis)
	return mat.DenseCopyOf(basis.Slice(0, d, 0, rank))
}

// affinity is the mean cosine of the principal angles of two spans (Björck and Golub, 1973).
func affinity(a, b *mat.Dense) (float64, bool) {
	if a == nil || b == nil {
		return 0, false
	}
	var c mat.Dense
	c.Mul(a.T(), b)
	var svd mat.SVD
	if !svd.Factorize(&c, mat.SVDNone) {
		return 0, false
	}
	sum := 0.0
	values := svd.Values(nil)
	for _, v := range values {
		sum += v / float64(len(values))
	}
	return sum, true
}
