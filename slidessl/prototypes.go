package slidessl

import (
	"math"
	"math/rand/v2"

	"coverslip/internal/nn"
	"coverslip/slidessl/view"
)

// Prototypes describe a slide by how much of it is like each of K typical tiles, as bags of visual words did (Sivic and
// Zisserman, ICCV 2003) and Song et al. do for slides (PANTHER, arXiv 2405.11643). Likeness is a softmax over squared
// distances, so that it can be learned on. What is new here is where tiles are compared: relative to the mean of their
// slide. What all tiles of a slide share, its stain and scanner, is what an objective that tells slides apart finds
// first, and it says nothing of the tissue.

// sharpness of the likeness: of distances in units of the variance of tiles within slides.
const sharpness = 8

// likeness is how much like each prototype tiles are, [n,P]: √P times a softmax, so that it counts as much as features
// do. h are tiles [n,·]; means are of the whole slides, as in view.Batch.
func (n *Network) likeness(h *nn.Node, bags nn.Segments, means []float32, chosen []int) *nn.Node {
	var centre *nn.Node
	switch {
	case means == nil:
		centre = nn.SegmentMean(h, bags)
	case chosen != nil:
		centre = n.enter(h.Graph(), columns(means, n.Architecture.Input, chosen), chosen)
	default:
		centre = n.enter(h.Graph(), means, nil)
	}
	of := make([]int32, 0, h.Rows)
	for b := range len(bags) - 1 {
		for range bags[b+1] - bags[b] {
			of = append(of, int32(b))
		}
	}
	relative := nn.Combine(1, h, -1, nn.Rows(centre, of))
	return nn.Scale(math.Sqrt(float64(n.Architecture.Prototypes)), nn.Softmax(n.prototypes.Apply(relative)))
}

// within is the variance of each of d features within slides.
func within(x []float32, d int, slides nn.Segments) []float64 {
	variance := make([]float64, d)
	mean := make([]float64, d)
	for s := range len(slides) - 1 {
		rows := x[slides[s]*d : slides[s+1]*d]
		clear(mean)
		for i, v := range rows {
			mean[i%d] += float64(v) / float64(len(rows)/d)
		}
		for i, v := range rows {
			variance[i%d] += (float64(v) - mean[i%d]) * (float64(v) - mean[i%d]) / float64(len(x)/d)
		}
	}
	return variance
}

// findPrototypes sets them to the centres of k-means over the sample, which has the given features in this order, times
// scale, less the mean of its slide.
func (n *Network) findPrototypes(sample []float32, slides nn.Segments, features []int, scale float64, rng *rand.Rand) {
	all, d := n.Architecture.Input, len(features)
	x := make([]float32, len(sample)/all*d)
	for s := range len(slides) - 1 {
		mean := make([]float64, d)
		for i := slides[s]; i < slides[s+1]; i++ {
			for j, k := range features {
				v := scale * float64(sample[i*all+k])
				x[i*d+j] = float32(v)
				mean[j] += v / float64(slides[s+1]-slides[s])
			}
		}
		for i := slides[s]; i < slides[s+1]; i++ {
			for j := range d {
				x[i*d+j] -= float32(mean[j])
			}
		}
	}
	var variance float64
	for _, v := range x {
		variance += float64(v) * float64(v) / float64(len(x)/d)
	}
	p := n.Architecture.Prototypes
	gain := sharpness / max(variance, 1e-12)
	clear(n.prototypes.W.Value)
	for k, c := range centres(x, d, p, rng) {
		var square float64
		for j, v := range c {
			n.prototypes.W.Value[j*p+k] = float32(2 * gain * float64(v))
			square += float64(v) * float64(v)
		}
		n.prototypes.B.Value[k] = float32(-gain * square)
	}
}

// rounds of k-means at most; most of what there is to gain is gained in ten.
const rounds = 30

// centres are k means of the rows of x [n,d] (Lloyd, begun as k-means++: Arthur and Vassilvitskii, SODA 2007). Where there
// are fewer different rows, some are equal.
func centres(x []float32, d, k int, rng *rand.Rand) [][]float32 {
	n := len(x) / d
	row := func(i int) []float32 { return x[i*d : (i+1)*d] }
	squares := make([]float64, n)
	for i := range squares {
		squares[i] = nn.Dot(row(i), row(i))
	}
	out := make([][]float32, 0, k)
	nearest := make([]float64, n) // squared distance of the nearest centre so far
	for i := range nearest {
		nearest[i] = math.Inf(1)
	}
	next := rng.IntN(n)
	for range k {
		c := append([]float32(nil), row(next)...)
		out = append(out, c)
		own := nn.Dot(c, c)
		var total float64
		for i := range nearest {
			nearest[i] = min(nearest[i], max(squares[i]+own-2*nn.Dot(row(i), c), 0))
			total += nearest[i]
		}
		at := rng.Float64() * total
		for next = 0; next < n-1 && at >= nearest[next]; next++ {
			at -= nearest[next]
		}
	}
	flat, dots := make([]float32, k*d), make([]float32, n*k)
	belongs := make([]int, n)
	for range rounds {
		for j, c := range out {
			copy(flat[j*d:], c)
		}
		nn.Gemm(false, true, n, k, d, 1, x, d, flat, d, 0, dots, k)
		own := make([]float64, k)
		for j, c := range out {
			own[j] = nn.Dot(c, c)
		}
		moved := false
		sums, counts := make([]float64, k*d), make([]int, k)
		for i := range n {
			best, least := 0, math.Inf(1)
			for j, dot := range dots[i*k : (i+1)*k] {
				if at := own[j] - 2*float64(dot); at < least {
					best, least = j, at
				}
			}
			moved = moved || best != belongs[i]
			belongs[i] = best
			counts[best]++
			for a, v := range row(i) {
				sums[best*d+a] += float64(v)
			}
		}
		for j, c := range out {
			for a := range c {
				if counts[j] > 0 { // else it stays where it was
					c[a] = float32(sums[j*d+a] / float64(counts[j]))
				}
			}
		}
		if !moved {
			break
		}
	}
	return out
}

// wholeMean is the mean of all tiles of a slide, [Dim].
func wholeMean(src Source, slide int, places []view.Place) ([]float32, error) {
	d := src.Dim()
	sum := make([]float64, d)
	for from := 0; from < len(places); from += wholeTiles {
		tiles := make([]int, min(wholeTiles, len(places)-from))
		for i := range tiles {
			tiles[i] = from + i
		}
		x := make([]float32, len(tiles)*d)
		if err := src.Read(x, slide, 0, tiles); err != nil {
			return nil, err
		}
		for i, v := range x {
			sum[i%d] += float64(v)
		}
	}
	mean := make([]float32, d)
	for k, v := range sum {
		mean[k] = float32(v / float64(len(places)))
	}
	return mean, nil
}
