// Package measure says what a set of embeddings looks like, without training anything on them: how near views of one
// slide are, how evenly slides fill the sphere, in how many directions they differ, how far classes have collapsed into
// points, and which embeddings are strange.
//
// Embeddings are rows of d numbers. What it leaves to others: how well labels can be read from them (mil/probe).
package measure

import (
	"math"

	"gonum.org/v1/gonum/mat"

	"coverslip/internal/nn"
)

// Alignment is the mean squared distance of x's rows from y's, all at length 1: 0 where both views of every slide are
// the same, 2 where they have nothing to do with each other (Wang and Isola, arXiv 2005.10242, equation 1, α = 2).
func Alignment(x, y []float32, d int) float64 {
	n := rows(x, d)
	if rows(y, d) != n {
		panic("measure: views of two numbers of slides")
	}
	var s float64
	for i := range n {
		a, b := x[i*d:(i+1)*d], y[i*d:(i+1)*d]
		s += 2 - 2*nn.Dot(a, b)/math.Max(math.Sqrt(nn.Dot(a, a)*nn.Dot(b, b)), 1e-12)
	}
	return s / float64(n)
}

// Uniformity is the log of the mean of e^(-2·|x_i-x_j|²) over pairs of different rows, at length 1 (Wang and Isola,
// arXiv 2005.10242, equation 2, t = 2): 0 where all are one point, near -4 where they are spread over a sphere of many
// dimensions. NaN of fewer than two rows.
func Uniformity(x []float32, d int) float64 {
	n := rows(x, d)
	u := units(x, d)
	const piece = 256 // rows whose products with all are there at once
	s := make([]float32, min(piece, n)*n)
	sums := make([]float64, n)
	for from := 0; from < n; from += piece {
		to := min(from+piece, n)
		nn.Gemm(false, true, to-from, n, d, 1, u[from*d:to*d], d, u, d, 0, s, n)
		nn.ParallelRows(to-from, 16*n, func(first, last int) {
			for r := first; r < last; r++ {
				for j := range n {
					if j != from+r {
						sums[from+r] += math.Exp(4 * (float64(s[r*n+j]) - 1))
					}
				}
			}
		})
	}
	var total float64
	for _, v := range sums {
		total += v
	}
	return math.Log(total / float64(n) / float64(n-1))
}

// EffectiveRank is e to the entropy of the singular values of x, divided by their sum: between 1 and the smaller of its
// sides, and r where r of them are equal and the others 0 (Roy and Vetterli, EUSIPCO 2007). Of embeddings it is
// RankMe (Garrido et al., arXiv 2210.02885), here without the 1e-7 that one adds. The mean is not taken off. It is 0 of zeros.
func EffectiveRank(x []float32, d int) float64 {
	n := rows(x, d)
	wide := make([]float64, n*d)
	for i, v := range x {
		if v != v || math.IsInf(float64(v), 0) {
			return math.NaN()
		}
		wide[i] = float64(v)
	}
	// Their squares are the eigenvalues of x·xᵀ or xᵀ·x, whichever is smaller, and cheaper to have. What is below the
	// rounding of the largest is 0.
	side := min(n, d)
	gram := make([]float64, side*side)
	if n <= d {
		nn.Gemm(false, true, n, n, d, 1, wide, d, wide, d, 0, gram, n)
	} else {
		nn.Gemm(true, false, d, d, n, 1, wide, d, wide, d, 0, gram, d)
	}
	var eigen mat.EigenSym
	if !eigen.Factorize(mat.NewSymDense(side, gram), false) {
		return math.NaN()
	}
	values := eigen.Values(nil)
	noise := values[side-1] * float64(side) * 0x1p-52
	var sum, entropy float64
	for i, v := range values {
		values[i] = 0
		if v > noise {
			values[i] = math.Sqrt(v)
		}
		sum += values[i]
	}
	if sum == 0 {
		return 0
	}
	for _, v := range values {
		if p := v / sum; p > 0 {
			entropy -= p * math.Log(p)
		}
	}
	return math.Exp(entropy)
}

// Collapse are the measures NC1 to NC4 of neural collapse (Papyan, Han and Donoho, arXiv 2008.08186), all 0 where it is
// complete: the embeddings of a class are one point, and the points a simplex.
type Collapse struct {
	// Within is NC1, tr(W·B†)/C: how large the covariance W inside classes is against that of their means, B.
	Within float64
	// Norms and Angles are NC2: the coefficient of variation of the means' distances from their centre, and the mean of
	// |cos + 1/(C-1)| over pairs of them.
	Norms, Angles float64
	// Duality is NC3, |A/|A| - M/|M||² (Frobenius) of the linear classifier A and the centred means M. NaN without one.
	Duality float64
	// Disagreement is NC4, the share of embeddings that the classifier and the nearest mean put into different classes.
	// NaN without a classifier.
	Disagreement float64
}

// NeuralCollapse measures x [n,d], whose classes are 0 to C-1, each of at least one row, and at least two of them. Every
// class counts the same, whatever its size. weight [C,d] and bias [C] are a linear classifier on x, or nil.
func NeuralCollapse(x []float32, d int, class []int, weight, bias []float64) Collapse {
	n, classes := rows(x, d), 0
	for _, c := range class {
		classes = max(classes, c+1)
	}
	if len(class) != n || classes < 2 || weight != nil && (len(weight) != classes*d || len(bias) != classes) {
		panic("measure: classes and classifier do not fit the embeddings")
	}
	mean, size := make([]float64, classes*d), make([]float64, classes)
	for i, c := range class {
		size[c]++
		for k, v := range x[i*d : (i+1)*d] {
			mean[c*d+k] += float64(v)
		}
	}
	centre := make([]float64, d)
	for c, s := range size {
		if s == 0 {
			panic("measure: a class without embeddings")
		}
		for k := range d {
			mean[c*d+k] /= s
			centre[k] += mean[c*d+k] / float64(classes)
		}
	}
	m := make([]float64, classes*d)
	for i, v := range mean {
		m[i] = v - centre[i%d]
	}
	out := Collapse{Within: within(x, d, class, size, mean, m), Duality: math.NaN(), Disagreement: math.NaN()}
	out.Norms, out.Angles = simplex(m, d)
	if weight != nil {
		lm, lw := math.Sqrt(nn.Dot(m, m)), math.Sqrt(nn.Dot(weight, weight))
		out.Duality = 0
		for i, v := range m {
			out.Duality += (weight[i]/lw - v/lm) * (weight[i]/lw - v/lm)
		}
		var apart float64
		for i := range n {
			best, near := 0, 0
			score, distance := math.Inf(-1), math.Inf(1)
			for c := range classes {
				s, far := bias[c], 0.0
				for k, v := range x[i*d : (i+1)*d] {
					s += weight[c*d+k] * float64(v)
					far += (float64(v) - mean[c*d+k]) * (float64(v) - mean[c*d+k])
				}
				if s > score {
					score, best = s, c
				}
				if far < distance {
					distance, near = far, c
				}
			}
			if best != near {
				apart++
			}
		}
		out.Disagreement = apart / float64(n)
	}
	return out
}

// within is tr(W·B†)/C. B = mᵀ·m/C has the right singular vectors of m and their squared values over C; those below a
// millionth of the largest are rounding.
func within(x []float32, d int, class []int, size, mean, m []float64) float64 {
	classes := len(size)
	var svd mat.SVD
	if !svd.Factorize(mat.NewDense(classes, d, append([]float64(nil), m...)), mat.SVDThin) {
		return math.NaN()
	}
	values := svd.Values(nil)
	var v mat.Dense
	svd.VTo(&v)
	var trace float64
	for k, s := range values {
		if !(s > 1e-6*values[0]) {
			continue
		}
		var spread float64 // of W along this vector
		for i, c := range class {
			var along float64
			for j, a := range x[i*d : (i+1)*d] {
				along += (float64(a) - mean[c*d+j]) * v.At(j, k)
			}
			spread += along * along / size[c] / float64(classes)
		}
		trace += spread * float64(classes) / (s * s)
	}
	return trace / float64(classes)
}

// simplex is how far centred means are from equal lengths and from the angles of a simplex.
func simplex(m []float64, d int) (norms, angles float64) {
	classes := len(m) / d
	length := make([]float64, classes)
	var sum, squares float64
	for c := range length {
		row := m[c*d : (c+1)*d]
		length[c] = math.Sqrt(nn.Dot(row, row))
		sum += length[c]
	}
	average := sum / float64(classes)
	for _, l := range length {
		squares += (l - average) * (l - average)
	}
	for a := range classes {
		for b := range a {
			cos := nn.Dot(m[a*d:(a+1)*d], m[b*d:(b+1)*d]) / (length[a] * length[b])
			angles += math.Abs(cos + 1/float64(classes-1))
		}
	}
	return math.Sqrt(squares/float64(classes)) / average, angles / float64(classes*(classes-1)/2)
}

func rows(x []float32, d int) int {
	if d < 1 || len(x) == 0 || len(x)%d != 0 {
		panic("measure: embeddings that are no rows of their width")
	}
	return len(x) / d
}
