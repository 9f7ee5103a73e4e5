package probe

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
)

// Neighbours gives a row the share of each class among its k nearest training rows by cosine; of equally near
// ones the first.
type Neighbours struct {
	unit    []float32 // [N,D], rows of length 1
	dim     int
	y       []int
	classes int
	k       int
}

// FitNeighbours keeps the training rows. k beyond their number is Invalid.
func FitNeighbours(x []float32, dim int, y []int, classes, k int) (*Neighbours, error) {
	if _, err := classification(x, dim, y, classes, Options{}); err != nil {
		return nil, err
	}
	if k < 1 || k > len(y) {
		return nil, invalid(fmt.Errorf("%d neighbours of %d training rows", k, len(y)), "ask for fewer")
	}
	return &Neighbours{unit: units(x, dim, nil), dim: dim, y: y, classes: classes, k: k}, nil
}

// Predict puts the shares of rows x, [N,D], into dst, [N,C].
func (m *Neighbours) Predict(dst []float64, x []float32) {
	const rows = 256
	n := len(m.y)
	similar, order := make([]float32, rows*n), make([]int, n)
	for from := 0; from*m.dim < len(x); from += rows {
		some := units(x[from*m.dim:min(len(x), (from+rows)*m.dim)], m.dim, nil)
		h := len(some) / m.dim
		blas32.Gemm(blas.NoTrans, blas.Trans, 1, blas32.General{Rows: h, Cols: m.dim, Stride: m.dim, Data: some},
			blas32.General{Rows: n, Cols: m.dim, Stride: m.dim, Data: m.unit}, 0, blas32.General{Rows: h, Cols: n, Stride: n, Data: similar})
		for i := range h {
			row := similar[i*n : (i+1)*n]
			for j := range order {
				order[j] = j
			}
			slices.SortFunc(order, func(a, b int) int {
				switch {
				case row[a] > row[b]:
					return -1
				case row[a] < row[b]:
					return 1
				}
				return a - b
			})
			p := dst[(from+i)*m.classes : (from+i+1)*m.classes]
			clear(p)
			for _, j := range order[:m.k] {
				p[m.y[j]] += 1 / float64(m.k)
			}
		}
	}
}

// Means gives a row to the class with the nearest mean, after training rows are centred and brought to length 1
// (SimpleShot, Wang et al. 2019). Its scores are the softmax of the negative distances.
type Means struct {
	centre []float64
	mean   []float64 // [C,D]
}

// FitMeans averages the training rows of each class.
func FitMeans(x []float32, dim int, y []int, classes int) (*Means, error) {
	p, err := classification(x, dim, y, classes, Options{})
	if err == nil {
		_, err = p.weights(y, classes, all(len(y))) // each class has rows
	}
	if err != nil {
		return nil, err
	}
	m := &Means{mean: make([]float64, classes*dim)}
	m.centre, _ = moments(x, dim, all(len(y)))
	count := make([]float64, classes)
	for _, class := range y {
		count[class]++
	}
	for i, v := range units(x, dim, m.centre) {
		class := y[i/dim]
		m.mean[class*dim+i%dim] += float64(v) / count[class]
	}
	return m, nil
}

// Predict puts the scores of rows x, [N,D], into dst, [N,C].
func (m *Means) Predict(dst []float64, x []float32) {
	d := len(m.centre)
	classes := len(m.mean) / d
	unit := units(x, d, m.centre)
	near := make([]float64, classes)
	for i := range len(x) / d {
		for c := range near {
			sum := 0.0
			for j, v := range unit[i*d : (i+1)*d] {
				off := float64(v) - m.mean[c*d+j]
				sum += off * off
			}
			near[c] = -math.Sqrt(sum)
		}
		softmaxAt(dst[i*classes:(i+1)*classes], near, 0)
	}
}

// units are the rows less a centre, each divided by its length; a row of zeros stays.
func units(x []float32, dim int, centre []float64) []float32 {
	out := make([]float32, len(x))
	row := make([]float64, dim)
	for from := 0; from < len(x); from += dim {
		sum := 0.0
		for j, v := range x[from : from+dim] {
			row[j] = float64(v)
			if centre != nil {
				row[j] -= centre[j]
			}
			sum += row[j] * row[j]
		}
		length := max(math.Sqrt(sum), math.SmallestNonzeroFloat32)
		for j, v := range row {
			out[from+j] = float32(v / length)
		}
	}
	return out
}
