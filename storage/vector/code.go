package vector

import "math"

// A row has a code beside it: how it differs from the mean of all rows, as 8-bit integers, a quarter of the
// memory. What a search waits for is memory, so it reads codes first. A product of codes is off by a known amount
// at most, and only rows that could be among the answers by it are read whole. So the answers are those of the
// rows themselves, whatever the codes say. From the mean, because embeddings of slides are all alike.
type code struct {
	scale float32 // row - mean ≈ scale · code
	norm  float32 // of scale · code
	slack float32 // the norm of what that leaves out
}

// mostCoded bounds the dimension of rows with codes: a product of them, at most 127·queryMost·dim, fits 32 bits.
const mostCoded = 4096

// queryMost is the largest value of a query's code, of 16 bits.
const queryMost = 4095

// encode writes the code of a row of norm 1 to dst, of the length of row and mean.
func encode(dst []int8, row, mean []float32) code {
	var most float32
	for i, v := range row {
		most = max(most, v-mean[i], mean[i]-v)
	}
	if most == 0 {
		clear(dst)
		return code{}
	}
	c := code{scale: most / 127}
	var norm, slack float64
	for i, v := range row {
		v := float64(v) - float64(mean[i])
		dst[i] = int8(max(-127, min(127, math.RoundToEven(v/float64(c.scale)))))
		as := float64(c.scale) * float64(dst[i])
		norm, slack = norm+as*as, slack+(v-as)*(v-as)
	}
	c.norm, c.slack = float32(math.Sqrt(norm)), float32(math.Sqrt(slack))
	return c
}

// queryCode is a query as integers, its product with the mean, and the norm of what its code leaves out.
type queryCode struct {
	values []int16
	scale  float32
	mean   float32
	slack  float32
}

func encodeQuery(q, mean []float32) queryCode {
	var most float32
	for _, v := range q {
		most = max(most, v, -v)
	}
	c := queryCode{values: make([]int16, len(q)), scale: most / queryMost, mean: reference(q, mean)}
	var square float64
	for i, v := range q {
		c.values[i] = int16(math.RoundToEven(float64(v / c.scale)))
		off := float64(v) - float64(c.scale)*float64(c.values[i])
		square += off * off
	}
	c.slack = float32(math.Sqrt(square))
	return c
}

// rounding is more than products and sums of float32 are off by, of rows up to mostCoded.
const rounding = 2e-5

// atMost is the most that the product of query and row can be, where that of their codes is sum: with q of norm
// 1, r the row less the mean, and a dash for what codes say, |q·r - q'·r'| <= |r - r'| + |q - q'|·|r'| (Cauchy
// and Schwarz).
func (c queryCode) atMost(sum int32, row code) float32 {
	return c.mean + float32(sum)*c.scale*row.scale + row.slack + c.slack*row.norm + rounding
}

// codes4 is the product of a query's code with those of four rows, all of one length that is a multiple of
// step and at most mostCoded.
func codes4(q []int16, a, b, c, d []int8) (sa, sb, sc, sd int32) {
	n := len(q)
	if n == 0 || n%step != 0 || n > mostCoded || len(a) != n || len(b) != n || len(c) != n || len(d) != n {
		panic("vector: codes of different lengths, or not whole steps")
	}
	if wide {
		return codes4wide(&q[0], &a[0], &b[0], &c[0], &d[0], n)
	}
	return codes4plain(q, a, b, c, d)
}

// codes4plain is codes4 on any processor.
func codes4plain(q []int16, a, b, c, d []int8) (sa, sb, sc, sd int32) {
	for i, v := range q {
		v := int32(v)
		sa, sb, sc, sd = sa+v*int32(a[i]), sb+v*int32(b[i]), sc+v*int32(c[i]), sd+v*int32(d[i])
	}
	return sa, sb, sc, sd
}
