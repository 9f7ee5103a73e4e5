// Package nntest holds kernels of internal/nn to their definition: gradients to central differences in
// float64, and float32 to float64.
package nntest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"coverslip/internal/nn"
)

// Gradient compares a kernel's Backward with central differences of Forward, both in float64, at random
// inputs of the given lengths, against a random direction of its output of length out. Inputs are drawn from
// a normal distribution unless draw is given. Without smooth inputs (ReLU, max) a difference may step over a
// kink; redraw then.
func Gradient(t *testing.T, k nn.Kernel[float64], out int, lengths ...int) {
	t.Helper()
	in := make([][]float64, len(lengths))
	rng := rand.New(rand.NewPCG(1, uint64(out))) //nolint:gosec // a length
	for i, n := range lengths {
		in[i] = make([]float64, n)
		for j := range in[i] {
			in[i][j] = rng.NormFloat64()
		}
	}
	GradientAt(t, k, out, in, nil)
}

// GradientAt is Gradient at given inputs; wanted, where it is not nil, says which of them are differentiated.
func GradientAt(t *testing.T, k nn.Kernel[float64], out int, in [][]float64, wanted []bool) {
	t.Helper()
	rng := rand.New(rand.NewPCG(2, uint64(out))) //nolint:gosec // a length
	direction := make([]float64, out)
	for i := range direction {
		direction[i] = rng.NormFloat64()
	}
	y := dirty(out)
	value := func() (s float64) {
		k.Forward(y, in)
		for i, v := range y {
			s += v * direction[i]
		}
		return s
	}
	din := make([][]float64, len(in))
	for i := range in {
		if wanted == nil || wanted[i] {
			din[i] = dirty(len(in[i]))
		}
	}
	value()
	before := fmt.Sprint(in)
	k.Backward(din, in, y, direction)
	if fmt.Sprint(in) != before {
		t.Errorf("%s: Backward changed its inputs", k.Name)
	}
	const h = 1e-5
	for i, x := range in {
		if din[i] == nil {
			continue
		}
		worst, at := 0.0, 0
		for j := range x {
			old := x[j]
			x[j] = old + h
			up := value()
			x[j] = old - h
			down := value()
			x[j] = old
			want := (up - down) / (2 * h)
			if e := math.Abs(din[i][j]-want) / math.Max(1, math.Abs(want)); !(e <= worst) {
				worst, at = e, j
			}
		}
		if !(worst < 1e-6) {
			t.Errorf("%s: the gradient by input %d is %g off at %d", k.Name, i, worst, at)
		}
	}
}

// Single compares a kernel in float32, as it runs, with the same in float64, at random inputs of the given
// lengths: outputs and gradients within tolerance of the largest number.
func Single(t *testing.T, single nn.Kernel[float32], double nn.Kernel[float64], tolerance float64, out int, lengths ...int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, uint64(out))) //nolint:gosec // a length
	in32, in64 := make([][]float32, len(lengths)), make([][]float64, len(lengths))
	din32, din64 := make([][]float32, len(lengths)), make([][]float64, len(lengths))
	draw := func(n int) ([]float32, []float64) {
		a, b := make([]float32, n), make([]float64, n)
		for j := range a {
			a[j] = float32(rng.NormFloat64())
			b[j] = float64(a[j])
		}
		return a, b
	}
	for i, n := range lengths {
		in32[i], in64[i] = draw(n)
		din32[i], din64[i] = dirty32(n), dirty(n)
	}
	y32, y64 := dirty32(out), dirty(out)
	d32, d64 := draw(out)
	single.Forward(y32, in32)
	double.Forward(y64, in64)
	compare(t, single.Name+": output", y32, y64, tolerance)
	if single.Backward == nil {
		return
	}
	single.Backward(din32, in32, y32, d32)
	double.Backward(din64, in64, y64, d64)
	for i := range din32 {
		compare(t, fmt.Sprintf("%s: gradient by input %d", single.Name, i), din32[i], din64[i], tolerance)
	}
}

func compare(t *testing.T, what string, got []float32, want []float64, tolerance float64) {
	t.Helper()
	largest, worst, at := 1e-30, 0.0, 0
	for i, w := range want {
		largest = math.Max(largest, math.Abs(w))
		if d := math.Abs(float64(got[i]) - w); !(d <= worst) {
			worst, at = d, i
		}
	}
	if !(worst <= tolerance*largest) {
		t.Errorf("%s is %g off at %d, of %g", what, worst, at, largest)
	}
}

// dirty is what a kernel may find where it writes.
func dirty(n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = math.NaN()
	}
	return x
}

func dirty32(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(math.NaN())
	}
	return x
}
