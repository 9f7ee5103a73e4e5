package nn

/*
#include "kernels.h"
*/
import "C"

import (
	"math"
	"unsafe"
)

// Mask decides what a dropout drops: a number at a row and a column goes with probability P, by a hash of Seed,
// row and column alone. Rows says which rows of a larger matrix the rows at hand are, so that a matrix worked
// through in pieces is dropped as the whole would be; nil is 0, 1, 2 …
type Mask struct {
	P    float64 // 0: nothing is dropped
	Seed uint32
	Rows []int32
}

func (m Mask) check(rows int) {
	if m.P < 0 || m.P >= 1 || m.Rows != nil && len(m.Rows) != rows {
		panic("nn: a mask of another number of rows, or of an impossible probability")
	}
}

// Drop sets what the mask says to zero and divides the rest by 1-P. Where the graph does not train it is x.
func Drop(x *Node, m Mask) *Node {
	if !x.graph.Train || m.P == 0 {
		return x
	}
	m.check(x.Rows)
	return Apply(drop[float32](x.Cols, m, false), x.Rows, x.Cols, x)
}

// ReLUDrop is Drop of max(x, 0), in one pass.
func ReLUDrop(x *Node, m Mask) *Node {
	if !x.graph.Train || m.P == 0 {
		return ReLU(x)
	}
	m.check(x.Rows)
	return Apply(drop[float32](x.Cols, m, true), x.Rows, x.Cols, x)
}

func drop[T Float](cols int, m Mask, relu bool) Kernel[T] {
	by := T(1 / (1 - m.P))
	each := func(dst, x []T, relu bool) {
		ParallelRows(len(x)/cols, 4*cols, func(from, to int) {
			dropTo(dst[from*cols:to*cols], x[from*cols:to*cols], cols, m.rows(from, to), m, by, relu)
		})
	}
	return Kernel[T]{Name: "dropout", DropOut: !relu, DropIn: []bool{true},
		Forward: func(out []T, in [][]T) { each(out, in[0], relu) },
		Backward: func(din, _ [][]T, out, dout []T) {
			if !relu {
				each(din[0], dout, false)
				return
			}
			scaledWhere(din[0], out, dout, by)
		}}
}

func (m Mask) rows(from, to int) []int32 {
	if m.Rows != nil {
		return m.Rows[from:to]
	}
	rows := make([]int32, to-from)
	for i := range rows {
		rows[i] = int32(from + i)
	}
	return rows
}

// dropTo writes x·by, or zeros.
func dropTo[T Float](dst, x []T, cols int, rows []int32, m Mask, by T, relu bool) {
	below := uint32(math.Min(m.P*(1<<32), math.MaxUint32))
	if f, ok := single(x); ok {
		C.nn_drop(C.long(len(rows)), C.long(cols), (*C.int32_t)(unsafe.SliceData(rows)), C.uint32_t(m.Seed), C.uint32_t(below), C.float(by), flagOf(relu), ptr(f), ptr(any(dst).([]float32)))
		return
	}
	for i, v := range x {
		h := mix(mix(m.Seed^mix(uint32(rows[i/cols]))) + uint32(i%cols)*0x9e3779b9)
		switch {
		case h < below, relu && v < 0:
			dst[i] = 0
		default:
			dst[i] = v * by
		}
	}
}

func mix(x uint32) uint32 {
	x ^= x >> 16
	x *= 0x7feb352d
	x ^= x >> 15
	x *= 0x846ca68b
	return x ^ x>>16
}

// scaledWhere writes dy·by where y is positive, else 0.
func scaledWhere[T Float](dx, y, dy []T, by T) {
	if f, ok := single(y); ok {
		C.nn_scaled_where(C.long(len(f)), C.float(by), ptr(f), ptr(any(dy).([]float32)), ptr(any(dx).([]float32)))
		return
	}
	for i, v := range y {
		dx[i] = 0
		if v > 0 {
			dx[i] = dy[i] * by
		}
	}
}
