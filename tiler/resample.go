package tiler

// Resampler names how tiles are made when no level has the wanted resolution. It is part of a bag's
// key: JPEG tiles are decoded at a half, a quarter or an eighth in the transform as far as that goes,
// then pixel areas are averaged exactly; a triangle filter enlarges.
const Resampler = "dct-area-1"

// taps are the weights that make one output pixel: weights[i] of source pixel first+i.
type taps struct {
	first   int
	weights []float32
}

// filter gives the taps of n output pixels, of which pixel i covers [offset+i·scale, offset+(i+1)·scale)
// of a line of size source pixels. Shrinking (scale ≥ 1) averages that interval; enlarging
// interpolates linearly between pixel centres, with the ends repeated.
func filter(n, size int, offset, scale float64) []taps {
	out := make([]taps, n)
	for i := range out {
		from := offset + float64(i)*scale
		if scale < 1 {
			centre := min(max(from+scale/2-0.5, 0), float64(size-1))
			first := min(int(centre), max(size-2, 0))
			f := float32(centre - float64(first))
			if out[i] = (taps{first, []float32{1 - f, f}}); first+1 >= size {
				out[i].weights = []float32{1}
			}
			continue
		}
		to := min(from+scale, float64(size))
		first := int(from)
		var sum float32
		var weights []float32
		for p := first; p < size && float64(p) < to; p++ {
			w := float32(min(to, float64(p+1)) - max(from, float64(p)))
			if w > 1e-6 || len(weights) > 0 {
				weights = append(weights, w)
				sum += w
			} else {
				first++
			}
		}
		for k := range weights {
			weights[k] /= sum
		}
		out[i] = taps{first, weights}
	}
	return out
}

// resampler shrinks or enlarges pictures of one geometry. Its tables may be shared; buffers may not.
type resampler struct {
	across, down []taps
	srcW, srcH   int
}

// apply writes the picture src, [srcH*srcW*3], into dst, [len(down)*len(across)*3]. tmp is scratch
// that is grown as needed and returned.
func (r *resampler) apply(dst, src []byte, tmp []float32) []float32 {
	w := len(r.across)
	if need := r.srcH * w * 3; cap(tmp) < need {
		tmp = make([]float32, need)
	}
	tmp = tmp[:r.srcH*w*3]
	for y := range r.srcH {
		row, out := src[y*r.srcW*3:(y+1)*r.srcW*3], tmp[y*w*3:(y+1)*w*3]
		for x, t := range r.across {
			var a, b, c float32
			p := row[t.first*3:]
			for k, weight := range t.weights {
				a += weight * float32(p[3*k])
				b += weight * float32(p[3*k+1])
				c += weight * float32(p[3*k+2])
			}
			out[3*x], out[3*x+1], out[3*x+2] = a, b, c
		}
	}
	line := make([]float32, w*3)
	for y, t := range r.down {
		clear(line)
		for k, weight := range t.weights {
			for x, v := range tmp[(t.first+k)*w*3 : (t.first+k+1)*w*3] {
				line[x] += weight * v
			}
		}
		out := dst[y*w*3 : (y+1)*w*3]
		for x, v := range line {
			out[x] = uint8(v + 0.5)
		}
	}
	return tmp
}
