package tiler

import (
	"math"
	"math/rand/v2"
	"testing"
)

// areaOf is the definition the resampler is held to: the mean of a picture, taken as squares of one
// colour each, over [x, x+s)×[y, y+s).
func areaOf(src []byte, w, h, c int, x, y, s float64) float64 {
	var sum, weight float64
	for py := int(y); py < h && float64(py) < y+s; py++ {
		wy := math.Min(y+s, float64(py+1)) - math.Max(y, float64(py))
		for px := int(x); px < w && float64(px) < x+s; px++ {
			wx := math.Min(x+s, float64(px+1)) - math.Max(x, float64(px))
			sum += wx * wy * float64(src[(py*w+px)*3+c])
			weight += wx * wy
		}
	}
	return sum / weight
}

func TestShrinkingIsTheMeanOfTheArea(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct{ scale, x, y float64 }{
		{1, 0, 0}, {1, 0.5, 0.25}, {2, 0, 0}, {2.004, 0.3, 0.7}, {1.07, 0.9, 0.1}, {3.3, 0, 0.5}, {16, 0, 0},
	} {
		const n = 9
		w, h := int(math.Ceil(c.x+n*c.scale)), int(math.Ceil(c.y+n*c.scale))
		src := make([]byte, w*h*3)
		for i := range src {
			src[i] = byte(rng.IntN(256))
		}
		r := resampler{srcW: w, srcH: h, across: filter(n, w, c.x, c.scale), down: filter(n, h, c.y, c.scale)}
		dst := make([]byte, n*n*3)
		r.apply(dst, src, nil)
		for y := range n {
			for x := range n {
				for ch := range 3 {
					want := areaOf(src, w, h, ch, c.x+float64(x)*c.scale, c.y+float64(y)*c.scale, c.scale)
					if got := float64(dst[(y*n+x)*3+ch]); math.Abs(got-want) > 0.51 {
						t.Fatalf("scale %g from %g,%g: pixel %d,%d is %g, the area's mean is %g", c.scale, c.x, c.y, x, y, got, want)
					}
				}
			}
		}
	}
}

func TestEnlargingInterpolatesBetweenCentres(t *testing.T) {
	// a ramp along x stays a ramp; its ends are repeated
	src := []byte{0, 0, 0, 100, 100, 100, 200, 200, 200}
	r := resampler{srcW: 3, srcH: 1, across: filter(6, 3, 0, 0.5), down: filter(2, 1, 0, 0.5)}
	dst := make([]byte, 6*2*3)
	r.apply(dst, src, nil)
	for x, want := range []byte{0, 25, 75, 125, 175, 200} {
		for y := range 2 {
			if got := dst[(y*6+x)*3]; got != want {
				t.Errorf("pixel %d,%d is %d, want %d", x, y, got, want)
			}
		}
	}
}

func TestWeightsAddUpToOneAndStayInside(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 2000 {
		scale := math.Exp(rng.Float64()*5 - 0.7)
		offset := rng.Float64()
		n := 1 + rng.IntN(40)
		size := int(math.Ceil(offset + float64(n)*scale))
		for i, tap := range filter(n, size, offset, scale) {
			var sum float64
			for _, w := range tap.weights {
				sum += float64(w)
			}
			if math.Abs(sum-1) > 1e-5 || tap.first < 0 || tap.first+len(tap.weights) > size {
				t.Fatalf("n %d, size %d, offset %g, scale %g: taps %d are %+v", n, size, offset, scale, i, tap)
			}
		}
	}
}
