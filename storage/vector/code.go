package vector

import "math"

// A row has a code beside it: its values as 8-bit integers, a quarter of the memory. What a search waits for is
// memory, so it reads codes first. A product of codes is off by a known amount at most, and only rows that could
// be among the answers by it are read whole. So the answers are those of the rows themselves, whatever the
// codes say.
type code struct {
	scale float32 // row ≈ scale · code
	slack float32 // the norm of what the code leaves out of the row
}

// mostCoded bounds the dimension of rows with codes: a product of them, at most 127·queryMost·dim, fits 32 bits.
const mostCoded = 4096

// queryMost is the largest value of a query's code, of 16 bits.
const queryMost = 4095

// encode writes the code of a row of norm 1 to dst, of the same length.
func encode(dst []int8, row []float32) code {
	var most float32
	for _, v := range row {
		most = max(most, v, -v)
	}
	c := code{scale: most / 127}
	var square float64
	for i, v := range row {
		dst[i] = int8(math.RoundToEven(float64(v / c.scale)))
		off := float64(v) - float64(c.scale)*float64(dst[i])
		square += off * off
	}
	c.slack = float32(math.Sqrt(square))
	return c
}

// queryCode is a query as integers, and by how much a product with a code can be off beyond the row's slack.
type queryCode struct {
	values []int16
	scale  float32
	slack  float32
}

func encodeQuery(q []float32) queryCode {
	var most float32
	for _, v := range q {
		most = max(most, v, -v)
	}
	c := queryCode{values: make([]int16, len(q)), scale: most / queryMost}
	var square float64
	for i, v := range q {
		c.values[i] = int16(math.RoundToEven(float64(v / c.scale)))
		off := float64(v) - float64(c.scale)*float64(c.values[i])
		square += off * off
	}
	// By Cauchy and Schwarz, with q and row of norm 1: |q·row - q'·row'| <= |row - row'| + |q - q'|·|row'|, and
	// |row'| <= 1 + |row - row'| < 2. The rest is for rounding, here and in the products of rows.
	c.slack = float32(2*math.Sqrt(square)) + 2e-5
	return c
}

// atMost is the most that the product of query and row can be, where that of their codes is sum.
func (c queryCode) atMost(sum int32, row code) float32 {
	return float32(sum)*c.scale*row.scale + row.slack + c.slack
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
