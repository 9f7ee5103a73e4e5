package measure

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"

	"coverslip"
	"coverslip/internal/nn"
)

// Scorer says how strange embeddings are, against those that it was fitted to.
type Scorer interface {
	// Score writes a score for each row of x [n,d] into dst [n]: the larger, the stranger.
	Score(dst []float64, x []float32)
}

// Mahalanobis is the squared distance to the nearest class mean, in units of the covariance that all classes share (Lee et
// al., arXiv 1807.03888). The covariance is shrunk towards a sphere by as much as its own noise asks for (Ledoit and Wolf,
// Journal of Multivariate Analysis 88, 2004), so that it has an inverse whatever the number of rows.
type Mahalanobis struct {
	d         int
	means     []float64 // [C,d]
	precision []float64 // [d,d]
	// Shrinkage is how much of the covariance is the sphere's, 0 to 1.
	Shrinkage float64
}

// FitMahalanobis learns from rows of x whose classes are 0 to C-1; nil is one class. Rows that are all equal are Invalid.
func FitMahalanobis(x []float32, d int, class []int) (*Mahalanobis, error) {
	n, classes := rows(x, d), 1
	for _, c := range class {
		classes = max(classes, c+1)
	}
	if class == nil {
		class = make([]int, n)
	}
	if len(class) != n {
		panic("measure: one class a row")
	}
	m := &Mahalanobis{d: d, means: make([]float64, classes*d)}
	size := make([]float64, classes)
	for i, c := range class {
		size[c]++
		for k, v := range x[i*d : (i+1)*d] {
			m.means[c*d+k] += float64(v)
		}
	}
	for i := range m.means {
		if size[i/d] == 0 {
			panic("measure: a class without embeddings")
		}
		m.means[i] /= size[i/d]
	}
	z, fourth := make([]float64, n*d), 0.0
	for i, c := range class {
		row := z[i*d : (i+1)*d]
		for k, v := range x[i*d : (i+1)*d] {
			row[k] = float64(v) - m.means[c*d+k]
		}
		square := nn.Dot(row, row)
		fourth += square * square
	}
	cov := make([]float64, d*d)
	nn.Gemm(true, false, d, d, n, 1/float64(n), z, d, z, d, 0, cov, d)
	var sphere, delta float64
	for i := range d {
		sphere += cov[i*d+i] / float64(d)
	}
	if !(sphere > 0) || math.IsInf(sphere, 0) {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "learn what is usual", Err: errors.New("the embeddings are all equal, or not numbers"), Hint: "give embeddings of different slides"}
	}
	for _, v := range cov {
		delta += v * v
	}
	noise := (fourth/float64(n) - delta) / float64(n) / float64(d)
	away := (delta - float64(d)*sphere*sphere) / float64(d)
	if noise = min(noise, away); noise > 0 {
		m.Shrinkage = noise / away
	}
	for i := range cov {
		cov[i] *= 1 - m.Shrinkage
	}
	for i := range d {
		cov[i*d+i] += m.Shrinkage * sphere
	}
	var chol mat.Cholesky
	if !chol.Factorize(mat.NewSymDense(d, cov)) {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "learn what is usual", Err: fmt.Errorf("%d embeddings vary in fewer than %d directions, without noise", n, d), Hint: "give more slides"}
	}
	var inverse mat.SymDense
	if err := chol.InverseTo(&inverse); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "learn what is usual", Err: err, Hint: "give more slides"}
	}
	m.precision = make([]float64, d*d)
	for i := range d {
		for j := range d {
			m.precision[i*d+j] = inverse.At(i, j)
		}
	}
	return m, nil
}

// Score is Scorer's.
func (m *Mahalanobis) Score(dst []float64, x []float32) {
	n, d := rows(x, m.d), m.d
	z, w := make([]float64, n*d), make([]float64, n*d)
	for i := range dst {
		dst[i] = math.Inf(1)
	}
	for c := 0; c < len(m.means); c += d {
		for i, v := range x {
			z[i] = float64(v) - m.means[c+i%d]
		}
		nn.Gemm(false, false, n, d, d, 1, z, d, m.precision, d, 0, w, d)
		for i := range dst[:n] {
			far := nn.Dot(z[i*d:(i+1)*d], w[i*d:(i+1)*d])
			if !(far >= dst[i]) { // NaN is not lost
				dst[i] = far
			}
		}
	}
}

// Nearest is the distance to the k-th nearest of the rows that were learned, all at length 1 (Sun et al., arXiv
// 2204.06507).
type Nearest struct {
	d, k int
	x    []float32
}

// FitNearest keeps x. k is at most its number of rows.
func FitNearest(x []float32, d, k int) *Nearest {
	if k < 1 || k > rows(x, d) {
		panic("measure: a neighbour that is not there")
	}
	return &Nearest{d, k, units(x, d)}
}

// Score is Scorer's.
func (m *Nearest) Score(dst []float64, x []float32) {
	n, all := rows(x, m.d), len(m.x)/m.d
	u := units(x, m.d)
	const piece = 256
	s := make([]float32, min(piece, n)*all)
	for from := 0; from < n; from += piece {
		to := min(from+piece, n)
		nn.Gemm(false, true, to-from, all, m.d, 1, u[from*m.d:to*m.d], m.d, m.x, m.d, 0, s, all)
		nn.ParallelRows(to-from, 20*all, func(first, last int) {
			for r := first; r < last; r++ {
				row := s[r*all : (r+1)*all]
				slices.Sort(row)
				dst[from+r] = math.Sqrt(max(0, 2-2*float64(row[all-m.k])))
				if row[0] != row[0] { // NaN comes first
					dst[from+r] = math.NaN()
				}
			}
		})
	}
}

// Residual is the squared length of what is left of a row behind the principal components that hold most of the
// variance of the rows that were learned.
type Residual struct {
	d          int
	mean       []float64
	components []float64 // [k,d]
}

// FitResidual keeps as many components as hold share of the variance, at least one.
func FitResidual(x []float32, d int, share float64) (*Residual, error) {
	n := rows(x, d)
	m := &Residual{d: d, mean: make([]float64, d)}
	for i, v := range x {
		m.mean[i%d] += float64(v) / float64(n)
	}
	z := make([]float64, n*d)
	for i, v := range x {
		z[i] = float64(v) - m.mean[i%d]
	}
	var svd mat.SVD
	if !svd.Factorize(mat.NewDense(n, d, z), mat.SVDThin) {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "learn what is usual", Err: errors.New("the embeddings are not numbers"), Hint: "look for NaN in the features"}
	}
	values := svd.Values(nil)
	var v mat.Dense
	svd.VTo(&v)
	var all, held float64
	for _, s := range values {
		all += s * s
	}
	for k, s := range values {
		for j := range d {
			m.components = append(m.components, v.At(j, k))
		}
		if held += s * s; held >= share*all {
			break
		}
	}
	return m, nil
}

// Components is how many it keeps.
func (m *Residual) Components() int { return len(m.components) / m.d }

// Score is Scorer's.
func (m *Residual) Score(dst []float64, x []float32) {
	n, d, k := rows(x, m.d), m.d, m.Components()
	z, along := make([]float64, n*d), make([]float64, n*k)
	for i, v := range x {
		z[i] = float64(v) - m.mean[i%d]
	}
	nn.Gemm(false, true, n, k, d, 1, z, d, m.components, d, 0, along, k)
	nn.Gemm(false, false, n, d, k, -1, along, k, m.components, d, 1, z, d)
	for i := range dst[:n] {
		dst[i] = nn.Dot(z[i*d:(i+1)*d], z[i*d:(i+1)*d])
	}
}

// Unsure is 1 less the largest probability, p [n,C] (Hendrycks and Gimpel, arXiv 1610.02136).
func Unsure(dst, p []float64, classes int) {
	for i := range dst {
		dst[i] = 1 - slices.Max(p[i*classes:(i+1)*classes])
	}
}

// Energy is -log Σ e^logit of each row, logits [n,C] (Liu et al., arXiv 2010.03759, temperature 1).
func Energy(dst, logits []float64, classes int) {
	for i := range dst {
		row := logits[i*classes : (i+1)*classes]
		top := slices.Max(row)
		var s float64
		for _, v := range row {
			s += math.Exp(v - top)
		}
		dst[i] = -math.Log(s) - top
	}
}

// Threshold is the lowest score that lets this share of usual ones pass: a gate for the rest.
func Threshold(usual []float64, share float64) float64 {
	if len(usual) == 0 || !(share > 0 && share <= 1) {
		panic("measure: a threshold of nothing")
	}
	sorted := slices.Sorted(slices.Values(usual))
	return sorted[max(int(math.Ceil(share*float64(len(sorted))))-1, 0)]
}

// Passed is the share of strange scores that such a gate lets pass: FPR@95 at 0.95.
func Passed(usual, strange []float64, share float64) float64 {
	gate, passed := Threshold(usual, share), 0.0
	for _, s := range strange {
		if s <= gate {
			passed++
		}
	}
	return passed / float64(len(strange))
}

// units are the rows at length 1.
func units(x []float32, d int) []float32 {
	u := make([]float32, len(x))
	for i := range rows(x, d) {
		row := x[i*d : (i+1)*d]
		by := float32(1 / math.Max(math.Sqrt(nn.Dot(row, row)), 1e-12))
		for k, v := range row {
			u[i*d+k] = v * by
		}
	}
	return u
}
