package onnx

import (
	"coverslip/encoder"
)

// normalisation tabulates what a value of each channel becomes: (v/255 - mean) / std, step by step
// in float32 as torchvision computes it, so that the bits are the same.
func normalisation(in encoder.Input) *[3][256]float32 {
	var table [3][256]float32
	for c := range table {
		mean, std := float32(in.Mean[c]), float32(in.Std[c])
		for v := range table[c] {
			x := float32(v) / 255
			table[c][v] = (x - mean) / std
		}
	}
	return &table
}

// interleaved writes the table's values of pixels, RGB one after the other, to dst of equal length.
func interleaved(dst []float32, pixels []uint8, table *[3][256]float32) {
	if len(dst) != len(pixels) || len(pixels)%3 != 0 {
		panic("onnx: interleaved needs dst and pixels of equal length")
	}
	for i := 0; i < len(pixels); i += 3 {
		dst[i] = table[0][pixels[i]]
		dst[i+1] = table[1][pixels[i+1]]
		dst[i+2] = table[2][pixels[i+2]]
	}
}

// planes writes the table's values of pixels, [n, S·S, 3], to dst, [n, 3, S·S].
func planes(dst []float32, pixels []uint8, n int, table *[3][256]float32) {
	if len(dst) != len(pixels) || len(pixels)%(3*n) != 0 {
		panic("onnx: planes needs dst and pixels of equal length")
	}
	area := len(pixels) / (3 * n)
	for i := range n {
		tile, out := pixels[3*area*i:][:3*area], dst[3*area*i:][:3*area]
		red, green, blue := out[:area], out[area:2*area], out[2*area:]
		for p := range red {
			red[p] = table[0][tile[3*p]]
			green[p] = table[1][tile[3*p+1]]
			blue[p] = table[2][tile[3*p+2]]
		}
	}
}

// fits reports whether an output has the shape that a tap pools, for n tiles. A dimension of -1 may
// be anything.
func fits(shape []int64, tap encoder.Tap, n int) bool {
	is := func(i int, want int) bool { return shape[i] == int64(want) || shape[i] == -1 }
	most := func(i int, least int) bool { return shape[i] >= int64(least) || shape[i] == -1 }
	if len(shape) == 0 || !is(0, n) {
		return false
	}
	switch tap.Pooling {
	case encoder.None:
		return len(shape) == 2 && is(1, tap.Dim)
	case encoder.GAP:
		return len(shape) == 4 && is(1, tap.Dim) && most(2, 1) && most(3, 1)
	case encoder.Class:
		return len(shape) == 3 && most(1, 1) && is(2, tap.Dim)
	case encoder.Mean:
		return len(shape) == 3 && most(1, *tap.Skip+1) && is(2, tap.Dim)
	case encoder.ClassAndMean:
		return len(shape) == 3 && most(1, *tap.Skip+1) && is(2, tap.Dim/2)
	}
	return false
}

// pool turns an output that fits a tap into its features: row i of dst begins at i·stride and is
// tap.Dim long. Sums are of float64 in reading order, so that they do not depend on the batch.
func pool(dst []float32, stride int, src []float32, shape []int64, tap encoder.Tap) {
	n := int(shape[0])
	each := len(src) / n
	for i := range n {
		row, of := dst[i*stride:][:tap.Dim], src[i*each:][:each]
		switch tap.Pooling {
		case encoder.None:
			copy(row, of)
		case encoder.GAP:
			area := each / tap.Dim
			for d := range row {
				row[d] = mean(of[d*area:][:area], 1)
			}
		case encoder.Class:
			copy(row, of)
		case encoder.Mean:
			meanTokens(row, of[*tap.Skip*tap.Dim:])
		case encoder.ClassAndMean:
			width := tap.Dim / 2
			copy(row[:width], of)
			meanTokens(row[width:], of[*tap.Skip*width:])
		}
	}
}

// meanTokens writes to dst, [D], the mean of tokens, [T, D].
func meanTokens(dst, tokens []float32) {
	for d := range dst {
		dst[d] = mean(tokens[d:], len(dst))
	}
}

// mean is that of every stride-th value, the first included.
func mean(values []float32, stride int) float32 {
	sum, n := 0.0, 0
	for i := 0; i < len(values); i += stride {
		sum += float64(values[i])
		n++
	}
	return float32(sum / float64(n))
}
