package vector

// step is how many values the products take at a time. Vectors are padded with zeros to a multiple of it.
const step = 16

// reference is the dot product of a and b, of equal length.
func reference(a, b []float32) float32 {
	var sum float64
	for i, v := range a {
		sum += float64(v) * float64(b[i])
	}
	return float32(sum)
}

// dot4 is the dot product of q with each of four rows, all of one length that is a multiple of
// step. Four at once, because each value of q is then loaded once for four products; two sums per
// row, because a sum must wait for the one before it. A row gives the same bits in any place, on one
// kind of processor.
func dot4(q, a, b, c, d []float32) (sa, sb, sc, sd float32) {
	n := len(q)
	if n%step != 0 || len(a) != n || len(b) != n || len(c) != n || len(d) != n {
		panic("vector: rows of different lengths, or not whole steps")
	}
	if wide && n > 0 {
		return dot4wide(&q[0], &a[0], &b[0], &c[0], &d[0], n)
	}
	return dot4plain(q, a, b, c, d)
}

// dot4plain is dot4 on any processor.
func dot4plain(q, a, b, c, d []float32) (sa, sb, sc, sd float32) {
	const step = 8
	var a0, a1, b0, b1, c0, c1, d0, d1 float32
	for i := 0; i < len(q); i += step {
		// As arrays, so that bounds are checked once per step.
		q, a, b, c, d := (*[step]float32)(q[i:]), (*[step]float32)(a[i:]), (*[step]float32)(b[i:]), (*[step]float32)(c[i:]), (*[step]float32)(d[i:])
		u, v := q[0], q[1]
		a0, b0, c0, d0 = a0+u*a[0], b0+u*b[0], c0+u*c[0], d0+u*d[0]
		a1, b1, c1, d1 = a1+v*a[1], b1+v*b[1], c1+v*c[1], d1+v*d[1]
		u, v = q[2], q[3]
		a0, b0, c0, d0 = a0+u*a[2], b0+u*b[2], c0+u*c[2], d0+u*d[2]
		a1, b1, c1, d1 = a1+v*a[3], b1+v*b[3], c1+v*c[3], d1+v*d[3]
		u, v = q[4], q[5]
		a0, b0, c0, d0 = a0+u*a[4], b0+u*b[4], c0+u*c[4], d0+u*d[4]
		a1, b1, c1, d1 = a1+v*a[5], b1+v*b[5], c1+v*c[5], d1+v*d[5]
		u, v = q[6], q[7]
		a0, b0, c0, d0 = a0+u*a[6], b0+u*b[6], c0+u*c[6], d0+u*d[6]
		a1, b1, c1, d1 = a1+v*a[7], b1+v*b[7], c1+v*c[7], d1+v*d[7]
	}
	return a0 + a1, b0 + b1, c0 + c1, d0 + d1
}
