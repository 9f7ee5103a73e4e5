package nn

import (
	"math/rand/v2"
	"testing"
)

// someSites are three maps with neighbours, gaps and an edge.
func someSites() []Site {
	rng := rand.New(rand.NewPCG(5, 6))
	var sites []Site
	seen := map[Site]bool{}
	for m := range int32(3) {
		for range 12 {
			s := Site{m, int32(rng.IntN(6)), int32(rng.IntN(5))}
			if !seen[s] {
				seen[s] = true
				sites = append(sites, s)
			}
		}
	}
	return sites
}

var bagsOf12 = Segments{0, 5, 6, 12}

// PseudoInverseGradient is set by the tests outside of the package, which may use nntest.
var PseudoInverseGradient func(t *testing.T, k Kernel[float64], x []float64)

// Tested is a kernel with the lengths of its output and inputs.
type Tested[T Float] struct {
	Kernel Kernel[T]
	Out    int
	In     []int
}

// Kernels32 and Kernels64 are all kernels of the package.
func Kernels32() []Tested[float32] { return kernels[float32]() }
func Kernels64() []Tested[float64] { return kernels[float64]() }

// kernels are all of them.
func kernels[T Float]() []Tested[T] {
	sites := someSites()
	sub, strided := Submanifold(sites), Strided(sites)
	n, o := len(sites), len(strided.Sites)
	train := func(relu bool) Kernel[T] {
		return (&norm[T]{rows: 9, cols: 4, eps: 1e-5, relu: relu, train: true, mean: make([]T, 4), variance: make([]T, 4)}).kernel()
	}
	infer := (&norm[T]{rows: 9, cols: 4, eps: 1e-5, mean: []T{0, 1, 2, 3}, variance: []T{1, 2, 3, 4}}).kernel()
	return []Tested[T]{
		{linear[T](5, 3, 4), 20, []int{15, 12, 4}},
		{linear[T](5, 3, 4), 20, []int{15, 12}},
		{matmul[T](3, 4, 5, false, false), 12, []int{15, 20}},
		{matmul[T](3, 4, 5, true, false), 12, []int{15, 20}},
		{matmul[T](3, 4, 5, false, true), 12, []int{15, 20}},
		{matmul[T](3, 4, 5, true, true), 12, []int{15, 20}},
		{combine[T](2, -0.5), 7, []int{7, 7}},
		{scaled[T](3), 7, []int{7}},
		{mul[T](3, 4, 4), 12, []int{12, 12}},
		{mul[T](3, 4, 1), 12, []int{12, 3}},
		{relu[T](), 40, []int{40}},
		{tanh[T](), 40, []int{40}},
		{sigmoid[T](), 40, []int{40}},
		{gelu[T](), 40, []int{40}},
		{gate[T](5, 3), 15, []int{30}},
		{softmax[T](4, 5), 20, []int{20}},
		{normalise[T](4, 5), 20, []int{20}},
		{rowsOf[T](5, 2, []int32{4, 0, 0, 2}), 8, []int{10}},
		{columns[T](3, 5, 1, 4), 9, []int{15}},
		{beside[T](3, []int{2, 4}), 18, []int{6, 12}},
		{above[T]([]int{6, 9}), 15, []int{6, 9}},
		{train(false), 36, []int{36, 4, 4}},
		{train(true), 36, []int{36, 4, 4, 36}},
		{infer, 36, []int{36, 4, 4}},
		{layerNorm[T](4, 6), 24, []int{24, 6, 6}},
		{segmentMean[T](3, bagsOf12), 9, []int{36}},
		{segmentMeanSD[T](3, Segments{0, 5, 12}), 12, []int{36}},
		{segmentMax[T](3, bagsOf12), 9, []int{36}},
		{sd[T](), 9, []int{9, 9}},
		{segmentSoftmax[T](2, bagsOf12), 24, []int{24}},
		{segmentWeighted[T](3, 2, bagsOf12), 18, []int{36, 24}},
		{sparseConv[T](3, 2, sub), n * 2, []int{n * 3, 9 * 3 * 2}},
		{sparseConv[T](3, 2, strided), o * 2, []int{n * 3, 9 * 3 * 2}},
		{sparsePool[T](3, strided), o * 3, []int{n * 3}},
		{sparsePool[T](3, sub), n * 3, []int{n * 3}},
		{ntxent[T](8, 5, 0.2), 1, []int{40}},
		{crossEntropy[T](3, []int{0, 2, 1, 1}, []float64{1, 2, 0.5}), 1, []int{12}},
		{meanOf[T](), 1, []int{7}},
		{drop[T](5, Mask{P: 0.4, Seed: 7}, false), 20, []int{20}},
		{drop[T](5, Mask{P: 0.4, Seed: 7, Rows: []int32{9, 1, 4, 2}}, true), 20, []int{20}},
		{depthwise[T](3, 4, 2, 3, 3), 24, []int{24, 18}},
		{depthwise[T](7, 1, 2, 5, 1), 14, []int{14, 10}},
		{logMeanSoftmax[T](4, 3), 3, []int{12}},
		{rowsOfMax[T](3, 2), 6, []int{15, 10}},
	}
}
