package slidessl

import (
	"math/rand/v2"

	"gonum.org/v1/gonum/mat"

	"coverslip/internal/nn"
)

// principal finds the first count principal components of (sample - mean)·scale, [n,d], by
// subspace iteration (Halko et al., SIAM Review 53, 2011): close to exact where variances
// fall off, which is all that a start of learning needs. The largest entry of each component is positive.
func principal(sample []float32, mean []float64, scale float64, d, count int) (components [][]float64) {
	rows := len(sample) / d
	cov := make([]float64, d*d)
	const chunk = 1024
	piece := make([]float64, chunk*d)
	for from := 0; from < rows; from += chunk {
		m := min(chunk, rows-from)
		for i := range m {
			for k, v := range sample[(from+i)*d : (from+i+1)*d] {
				piece[i*d+k] = (float64(v) - mean[k]) * scale
			}
		}
		nn.Gemm(true, false, d, d, m, 1/float64(rows), piece, d, piece, d, 1, cov, d)
	}
	p := min(count+32, d) // a few more than asked for make the last of them better
	rng := rand.New(rand.NewPCG(1, 1))
	q, y := make([]float64, d*p), make([]float64, d*p)
	for i := range q {
		q[i] = rng.NormFloat64()
	}
	for range 8 {
		nn.Gemm(false, false, d, p, d, 1, cov, d, q, p, 0, y, p)
		orthonormal(y, d, p)
		q, y = y, q
	}
	// The components within the subspace: eigenvectors of qᵀ·cov·q.
	nn.Gemm(false, false, d, p, d, 1, cov, d, q, p, 0, y, p)
	small := make([]float64, p*p)
	nn.Gemm(true, false, p, p, d, 1, q, p, y, p, 0, small, p)
	var eigen mat.EigenSym
	if !eigen.Factorize(mat.NewSymDense(p, small), true) {
		panic("slidessl: a covariance without eigenvectors") // a symmetric finite matrix has them
	}
	var within mat.Dense
	eigen.VectorsTo(&within)
	for j := range count {
		at := p - 1 - j // they come in ascending order
		c, largest := make([]float64, d), 0
		for k := range c {
			for i := range p {
				c[k] += q[k*p+i] * within.At(i, at)
			}
			if c[k]*c[k] > c[largest]*c[largest] {
				largest = k
			}
		}
		if c[largest] < 0 {
			for k := range c {
				c[k] = -c[k]
			}
		}
		components = append(components, c)
	}
	return components
}

// orthonormal makes the columns of x [d,p] orthonormal, by modified Gram-Schmidt done twice.
func orthonormal(x []float64, d, p int) {
	column := func(j int) []float64 {
		c := make([]float64, d)
		for k := range c {
			c[k] = x[k*p+j]
		}
		return c
	}
	columns := make([][]float64, p)
	for j := range columns {
		c := column(j)
		for range 2 {
			for _, b := range columns[:j] {
				s := nn.Dot(b, c)
				for k, v := range b {
					c[k] -= s * v
				}
			}
		}
		length := mat.Norm(mat.NewVecDense(d, c), 2)
		for k := range c {
			if length > 0 {
				c[k] /= length
			}
			x[k*p+j] = c[k]
		}
		columns[j] = c
	}
}
