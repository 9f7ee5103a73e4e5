package nn

/*
#include "kernels.h"
*/
import "C"

// Depthwise convolves each column of a map by itself: x is [h·w,d], row by row of the map, k [kh·kw,d] with kh
// and kw odd, and the map is zero outside. The result is [h·w,d].
func Depthwise(x, k *Node, h, w, kh, kw int) *Node {
	if x.Rows != h*w || k.Rows != kh*kw || k.Cols != x.Cols || kh%2 == 0 || kw%2 == 0 {
		panic("nn: a depthwise convolution's shapes do not fit")
	}
	return Apply(depthwise[float32](h, w, x.Cols, kh, kw), x.Rows, x.Cols, x, k)
}

func depthwise[T Float](h, w, d, kh, kw int) Kernel[T] {
	return Kernel[T]{Name: "depthwise convolution", DropOut: true,
		Forward: func(out []T, in [][]T) { depthwiseTo(out, in[0], in[1], h, w, d, kh, kw, false) },
		Backward: func(din, in [][]T, _, dout []T) {
			if din[0] != nil {
				depthwiseTo(din[0], dout, in[1], h, w, d, kh, kw, true)
			}
			if din[1] != nil {
				depthwiseBack(din[1], in[0], dout, h, w, d, kh, kw)
			}
		}}
}

func depthwiseTo[T Float](dst, x, k []T, h, w, d, kh, kw int, flip bool) {
	if f, ok := single(x); ok {
		C.nn_depthwise(C.long(h), C.long(w), C.long(d), C.long(kh), C.long(kw), flagOf(flip), ptr(f), ptr(any(k).([]float32)), ptr(any(dst).([]float32)))
		return
	}
	clear(dst)
	taps(h, w, kh, kw, func(to, from, tap int) {
		if flip {
			tap = kh*kw - 1 - tap
		}
		for c := range d {
			dst[to*d+c] += x[from*d+c] * k[tap*d+c]
		}
	})
}

func depthwiseBack[T Float](dk, x, dy []T, h, w, d, kh, kw int) {
	if f, ok := single(x); ok {
		C.nn_depthwise_back(C.long(h), C.long(w), C.long(d), C.long(kh), C.long(kw), ptr(f), ptr(any(dy).([]float32)), ptr(any(dk).([]float32)))
		return
	}
	clear(dk)
	taps(h, w, kh, kw, func(to, from, tap int) {
		for c := range d {
			dk[tap*d+c] += x[from*d+c] * dy[to*d+c]
		}
	})
}

// taps calls f for every place of the map and every place that a kernel on it sees.
func taps(h, w, kh, kw int, f func(to, from, tap int)) {
	for i := range h {
		for j := range w {
			for a := range kh {
				for b := range kw {
					if u, v := i+a-kh/2, j+b-kw/2; u >= 0 && u < h && v >= 0 && v < w {
						f(i*w+j, u*w+v, a*kw+b)
					}
				}
			}
		}
	}
}
