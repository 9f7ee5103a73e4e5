package nn

/*
#include "kernels.h"
*/
import "C"

import (
	"math"
	"unsafe"
)

// Each of these is a plain loop, and a call into kernels.c where the numbers are float32. dst and src may
// not overlap unless they are the same.

func ptr(x []float32) *C.float {
	return (*C.float)(unsafe.SliceData(x))
}

// single returns x as float32, where that is what it is.
func single[T Float](x []T) ([]float32, bool) {
	f, ok := any(x).([]float32)
	return f, ok
}

// axpy adds a·x to y.
func axpy[T Float](a T, x, y []T) {
	if len(x) != len(y) {
		panic("nn: vectors of two lengths")
	}
	if f, ok := single(x); ok {
		C.nn_axpy(C.long(len(f)), C.float(a), ptr(f), ptr(any(y).([]float32)))
		return
	}
	for i, v := range x {
		y[i] += a * v
	}
}

func tanhTo[T Float](dst, x []T) {
	if f, ok := single(x); ok {
		C.nn_tanh(C.long(len(f)), ptr(f), ptr(any(dst).([]float32)))
		return
	}
	for i, v := range x {
		dst[i] = T(math.Tanh(float64(v)))
	}
}

func sigmoidTo[T Float](dst, x []T) {
	if f, ok := single(x); ok {
		C.nn_sigmoid(C.long(len(f)), ptr(f), ptr(any(dst).([]float32)))
		return
	}
	for i, v := range x {
		dst[i] = T(1 / (1 + math.Exp(-float64(v))))
	}
}

// gateTo writes tanh of the left half of x's rows, sigmoid of the right half, and their product.
func gateTo[T Float](dst, t, s, x []T, h int) {
	if f, ok := single(x); ok {
		C.nn_gate(C.long(len(t)/h), C.long(h), ptr(f), ptr(any(t).([]float32)), ptr(any(s).([]float32)), ptr(any(dst).([]float32)))
		return
	}
	for i := range len(t) / h {
		tanhTo(t[i*h:(i+1)*h], x[2*i*h:(2*i+1)*h])
		sigmoidTo(s[i*h:(i+1)*h], x[(2*i+1)*h:(2*i+2)*h])
	}
	for i, v := range t {
		dst[i] = v * s[i]
	}
}

func gateBack[T Float](dx, t, s, dy []T, h int) {
	if f, ok := single(t); ok {
		C.nn_gate_back(C.long(len(t)/h), C.long(h), ptr(f), ptr(any(s).([]float32)), ptr(any(dy).([]float32)), ptr(any(dx).([]float32)))
		return
	}
	for i, g := range dy {
		at := i/h*2*h + i%h
		dx[at] = g * s[i] * (1 - t[i]*t[i])
		dx[at+h] = g * t[i] * s[i] * (1 - s[i])
	}
}

// expTo writes e^(x-shift).
func expTo[T Float](dst, x []T, shift T) {
	if f, ok := single(x); ok {
		C.nn_exp(C.long(len(f)), C.float(shift), ptr(f), ptr(any(dst).([]float32)))
		return
	}
	for i, v := range x {
		dst[i] = T(math.Exp(float64(v - shift)))
	}
}

// Exp writes e^(x-shift) into dst, element by element.
func Exp[T Float](dst, x []T, shift T) { expTo(dst, x, shift) }

func reluBack[T Float](dx, y, dy []T) {
	if f, ok := single(y); ok {
		C.nn_relu_back(C.long(len(f)), ptr(f), ptr(any(dy).([]float32)), ptr(any(dx).([]float32)))
		return
	}
	for i, v := range y {
		dx[i] = 0
		if v > 0 {
			dx[i] = dy[i]
		}
	}
}

// Dot is the inner product, summed in float64.
func Dot[T Float](x, y []T) float64 {
	if len(x) != len(y) {
		panic("nn: vectors of two lengths")
	}
	if f, ok := single(x); ok {
		return float64(C.nn_dot(C.long(len(f)), ptr(f), ptr(any(y).([]float32))))
	}
	var s float64
	for i, v := range x {
		s += float64(v) * float64(y[i])
	}
	return s
}

// columnSums adds the columns of x [rows,cols] to sum.
func columnSums[T Float](sum []float64, x []T) {
	cols := len(sum)
	if f, ok := single(x); ok {
		C.nn_column_sums(C.long(len(f)/cols), C.long(cols), ptr(f), (*C.double)(unsafe.SliceData(sum)))
		return
	}
	for i, v := range x {
		sum[i%cols] += float64(v)
	}
}

// columnSquares adds the squared distances from mean to sum, by columns.
func columnSquares[T Float](sum []float64, x, mean []T) {
	cols := len(sum)
	if f, ok := single(x); ok {
		C.nn_column_squares(C.long(len(f)/cols), C.long(cols), ptr(f), ptr(any(mean).([]float32)), (*C.double)(unsafe.SliceData(sum)))
		return
	}
	for i, v := range x {
		d := float64(v) - float64(mean[i%cols])
		sum[i%cols] += d * d
	}
}

// gatherRows copies rows at[i] of x to rows i of dst.
func gatherRows[T Float](dst, x []T, at []int32, cols int) {
	if len(at) == 0 {
		return
	}
	if f, ok := single(x); ok {
		C.nn_gather(C.long(len(at)), C.long(cols), (*C.int32_t)(unsafe.SliceData(at)), ptr(f), ptr(any(dst).([]float32)))
		return
	}
	for i, j := range at {
		copy(dst[i*cols:(i+1)*cols], x[int(j)*cols:(int(j)+1)*cols])
	}
}

// scatterRows adds rows i of x to rows at[i] of dst.
func scatterRows[T Float](dst, x []T, at []int32, cols int) {
	if len(at) == 0 {
		return
	}
	if f, ok := single(x); ok {
		C.nn_scatter(C.long(len(at)), C.long(cols), (*C.int32_t)(unsafe.SliceData(at)), ptr(f), ptr(any(dst).([]float32)))
		return
	}
	for i, j := range at {
		axpy(1, x[i*cols:(i+1)*cols], dst[int(j)*cols:(int(j)+1)*cols])
	}
}

// allFinite reports whether no number is NaN or infinite.
func allFinite(x []float32) bool { return C.nn_finite(C.long(len(x)), ptr(x)) != 0 }

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
