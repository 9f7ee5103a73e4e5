package probe

import (
	"math"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack/lapack64"
)

// matrix is the rows that models are fitted on, [N,D]. Several models pass over it at once.
type matrix interface {
	size() (rows, dim int)
	// forward puts W·Xᵀ into dst, [M,N]; w is [M,D].
	forward(dst, w []float64)
	// backward puts R·X into dst, [M,D]; r is [M,N].
	backward(dst, r []float64)
	// gram puts [X 1]ᵀ·diag(c)·[X 1] into the upper triangle of dst, [D+1,D+1]. It only preconditions, so
	// it is as exact as the rows are kept.
	gram(dst, c []float64)
}

// single multiplies in float32: fast, and exact to about 1e-6 of the largest.
type single struct {
	x    []float32
	n, d int
}

func (m single) size() (rows, dim int) { return m.n, m.d }

func (m single) forward(dst, w []float64) {
	c := len(w) / m.d
	out := blas32.General{Rows: c, Cols: m.n, Stride: m.n, Data: make([]float32, c*m.n)}
	blas32.Gemm(blas.NoTrans, blas.Trans, 1, general(w, m.d), blas32.General{Rows: m.n, Cols: m.d, Stride: m.d, Data: m.x}, 0, out)
	for i, v := range out.Data {
		dst[i] = float64(v)
	}
}

func (m single) backward(dst, r []float64) {
	c := len(r) / m.n
	out := blas32.General{Rows: c, Cols: m.d, Stride: m.d, Data: make([]float32, c*m.d)}
	blas32.Gemm(blas.NoTrans, blas.NoTrans, 1, general(r, m.n), blas32.General{Rows: m.n, Cols: m.d, Stride: m.d, Data: m.x}, 0, out)
	for i, v := range out.Data {
		dst[i] = float64(v)
	}
}

func general(v []float64, cols int) blas32.General {
	g := blas32.General{Rows: len(v) / cols, Cols: cols, Stride: cols, Data: make([]float32, len(v))}
	for i, x := range v {
		g.Data[i] = float32(x)
	}
	return g
}

func (m single) gram(dst, c []float64) {
	d := m.d + 1
	total := make([]float32, d*d)
	part := make([]float32, min(block, m.n)*d)
	for from := 0; from < m.n; from += block {
		n := min(block, m.n-from)
		weigh(part, m.x[from*m.d:], c[from:], n, m.d)
		// The upper triangle in panels: OpenBLAS is given general products only.
		for left := 0; left < d; left += panel {
			w := min(panel, d-left)
			blas32.Gemm(blas.Trans, blas.NoTrans, 1, blas32.General{Rows: n, Cols: left + w, Stride: d, Data: part},
				blas32.General{Rows: n, Cols: w, Stride: d, Data: part[left:]}, 1, blas32.General{Rows: left + w, Cols: w, Stride: d, Data: total[left:]})
		}
	}
	for i, v := range total {
		dst[i] = float64(v)
	}
}

const (
	block = 256 // rows of a Gram matrix taken at once: they stay in the cache
	panel = 128 // columns of it
)

// weigh puts √c times [X 1] into dst.
func weigh(dst, x []float32, c []float64, n, d int) {
	for i := range n {
		w := float32(math.Sqrt(c[i]))
		out := dst[i*(d+1) : (i+1)*(d+1)]
		for j, v := range x[i*d : (i+1)*d] {
			out[j] = w * v
		}
		out[d] = w
	}
}

// double multiplies in float64, whatever the rows are kept in.
type double[T float32 | float64] struct {
	x    []T
	n, d int
}

func (m double[T]) size() (rows, dim int) { return m.n, m.d }

func (m double[T]) forward(dst, w []float64) {
	for i := range m.n {
		row := m.x[i*m.d : (i+1)*m.d]
		for c := range len(w) / m.d {
			dst[c*m.n+i] = dot(row, w[c*m.d:])
		}
	}
}

func (m double[T]) backward(dst, r []float64) {
	clear(dst)
	for i := range m.n {
		row := m.x[i*m.d : (i+1)*m.d]
		for c := range len(r) / m.n {
			if v := r[c*m.n+i]; v != 0 {
				g := dst[c*m.d : (c+1)*m.d]
				for j, x := range row {
					g[j] += v * float64(x)
				}
			}
		}
	}
}

// dot adds in four chains, which is faster and a little more exact.
func dot[T float32 | float64](x []T, w []float64) float64 {
	w = w[:len(x)]
	var a, b, c, d float64
	j := 0
	for ; j+4 <= len(x); j += 4 {
		x4, w4 := x[j:j+4:j+4], w[j:j+4:j+4]
		a += float64(x4[0]) * w4[0]
		b += float64(x4[1]) * w4[1]
		c += float64(x4[2]) * w4[2]
		d += float64(x4[3]) * w4[3]
	}
	for ; j < len(x); j++ {
		a += float64(x[j]) * w[j]
	}
	return a + b + (c + d)
}

func (m double[T]) gram(dst, c []float64) {
	d := m.d + 1
	if x, ok := any(m.x).([]float32); ok {
		single{x, m.n, m.d}.gram(dst, c)
		return
	}
	clear(dst)
	part := make([]float64, min(block, m.n)*d)
	for from := 0; from < m.n; from += block {
		n := min(block, m.n-from)
		for i := range n {
			w := math.Sqrt(c[from+i])
			out := part[i*d : (i+1)*d]
			for j, v := range m.x[(from+i)*m.d : (from+i+1)*m.d] {
				out[j] = w * float64(v)
			}
			out[m.d] = w
		}
		for left := 0; left < d; left += panel {
			w := min(panel, d-left)
			blas64.Gemm(blas.Trans, blas.NoTrans, 1, blas64.General{Rows: n, Cols: left + w, Stride: d, Data: part},
				blas64.General{Rows: n, Cols: w, Stride: d, Data: part[left:]}, 1, blas64.General{Rows: left + w, Cols: w, Stride: d, Data: dst[left:]})
		}
	}
}

// rotation turns rows that are fewer than their features: X = Z·Qᵀ with Z [N,N] and orthonormal columns
// in Q. A penalty on lengths does not notice, and every solution lies in the space of Q's columns.
type rotation struct {
	q   blas64.General // reflectors, [D,N]
	tau []float64
}

func rotate(x []float64, n, d int) (double[float64], rotation) {
	r := rotation{blas64.General{Rows: d, Cols: n, Stride: n, Data: make([]float64, n*d)}, make([]float64, n)}
	for i := range n {
		for j := range d {
			r.q.Data[j*n+i] = x[i*d+j]
		}
	}
	size := make([]float64, 1)
	lapack64.Geqrf(r.q, r.tau, size, -1)
	lapack64.Geqrf(r.q, r.tau, make([]float64, int(size[0])), int(size[0]))
	z := double[float64]{make([]float64, n*n), n, n}
	for i := range n {
		for j := range i + 1 {
			z.x[i*n+j] = r.q.Data[j*n+i]
		}
	}
	return z, r
}

// back puts Q·v into dst, [D]; v is [N].
func (r rotation) back(dst, v []float64) {
	clear(dst)
	copy(dst, v)
	c := blas64.General{Rows: len(dst), Cols: 1, Stride: 1, Data: dst}
	size := make([]float64, 1)
	lapack64.Ormqr(blas.Left, blas.NoTrans, r.q, r.tau, c, size, -1)
	lapack64.Ormqr(blas.Left, blas.NoTrans, r.q, r.tau, c, make([]float64, int(size[0])), int(size[0]))
}
