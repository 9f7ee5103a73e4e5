package augment

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
)

// Space is a colour space.
type Space string

// The spaces of RandStain, in scikit-image's units.
const (
	LAB Space = "lab" // CIELAB under D65: L 0 to 100, a and b about -128 to 127
	HSV Space = "hsv" // each 0 to 1
)

// RandStain gives a slide other colours: mean and deviation of each channel of Space over its tissue
// become those of a slide drawn from Statistics. RandStainNA of Shen et al., MICCAI 2022; there each
// image is measured, here the slide, so that the tiles of a view change alike.
type RandStain struct {
	Space      Space       `json:"space" yaml:"space"`
	Statistics *Statistics `json:"statistics,omitempty" yaml:"statistics"` // nil for those of crc5
}

// Statistics are normal distributions of the mean and of the deviation of three channels.
type Statistics struct {
	Mean          [3]float64 `json:"mean" yaml:"mean,flow"` // expectation of the mean
	MeanDeviation [3]float64 `json:"mean_deviation" yaml:"mean_deviation,flow"`
	Std           [3]float64 `json:"std" yaml:"std,flow"` // expectation of the deviation
	StdDeviation  [3]float64 `json:"std_deviation" yaml:"std_deviation,flow"`
}

// defaultStatistics are measured by bench/reference/augment.py --fit on the 1,500 training tiles of crc5
// (H&E of the colon, several stains), over their pixels with an optical density of at least 0.15.
var defaultStatistics = map[Space]Statistics{
	LAB: {
		Mean:          [3]float64{52.93, 28.39, -11.66},
		MeanDeviation: [3]float64{9.668, 6.166, 3.92},
		Std:           [3]float64{15.17, 6.556, 4.739},
		StdDeviation:  [3]float64{3.027, 1.656, 1.326},
	},
	HSV: {
		Mean:          [3]float64{0.8742, 0.3746, 0.6526},
		MeanDeviation: [3]float64{0.0308, 0.1014, 0.09042},
		Std:           [3]float64{0.03164, 0.1224, 0.145},
		StdDeviation:  [3]float64{0.0124, 0.03212, 0.0271},
	},
}

func (r *RandStain) check() error {
	if r.Space != LAB && r.Space != HSV {
		return fmt.Errorf("randstain: space %q: it is %s or %s", r.Space, LAB, HSV)
	}
	if s := r.Statistics; s != nil {
		for c := range 3 {
			if !finite(s.Mean[c], s.MeanDeviation[c], s.Std[c], s.StdDeviation[c]) || s.MeanDeviation[c] < 0 || s.Std[c] <= 0 || s.StdDeviation[c] < 0 {
				return errors.New("randstain: statistics are three finite numbers each; std is above 0, no deviation below")
			}
		}
	}
	return nil
}

func (r *RandStain) statistics() *Statistics {
	if r.Statistics != nil {
		return r.Statistics
	}
	s := defaultStatistics[r.Space]
	return &s
}

func (r *RandStain) draw(rng *rand.Rand) action {
	s := r.statistics()
	d := recolour{space: r.Space, from: Moments{s.Mean, s.Std}}
	for c := range 3 {
		d.to.Mean[c] = s.Mean[c] + s.MeanDeviation[c]*rng.NormFloat64()
		// A draw below a fifth of what is usual would leave hardly any contrast.
		d.to.Std[c] = max(s.Std[c]+s.StdDeviation[c]*rng.NormFloat64(), s.Std[c]/5)
	}
	return d
}

// Colour is mean and deviation of a slide's tissue in the spaces of RandStain.
type Colour struct{ LAB, HSV Moments }

// Moments are the mean and the deviation of three channels.
type Moments struct{ Mean, Std [3]float64 }

// MeasureColour measures pixels, [n, 3] RGB, sampled over a slide's tissue. Background, as
// EstimateMacenko has it, is left out; with fewer than 100 other pixels the error wraps ErrNoStain.
func MeasureColour(pixels []uint8) (Colour, error) {
	var lab, hsv sums
	for p := pixels; len(p) >= 3; p = p[3:] {
		if max(density[p[0]], density[p[1]], density[p[2]]) < leastDensity {
			continue
		}
		lab.add(toLAB(p[0], p[1], p[2]))
		hsv.add(toHSV(p[0], p[1], p[2]))
	}
	if lab.n < leastPixels {
		return Colour{}, noStain("%d pixels are tissue, fewer than %d", int(lab.n), leastPixels)
	}
	return Colour{lab.moments(), hsv.moments()}, nil
}

// sums are kept as distances from the first value, which spares digits.
type sums struct {
	n          float64
	first      [3]float64
	sum, power [3]float64
}

func (s *sums) add(v [3]float32) {
	for c := range 3 {
		if s.n == 0 {
			s.first[c] = float64(v[c])
		}
		d := float64(v[c]) - s.first[c]
		s.sum[c] += d
		s.power[c] += d * d
	}
	s.n++
}

func (s *sums) moments() (m Moments) {
	for c := range 3 {
		mean := s.sum[c] / s.n
		m.Mean[c] = s.first[c] + mean
		m.Std[c] = math.Sqrt(max(s.power[c]/s.n-mean*mean, 0))
	}
	return m
}

type recolour struct {
	space    Space
	from, to Moments
}

// apply is Reinhard's transfer: (v - mean)/std of the slide, times std plus mean of the draw.
func (r recolour) apply(pixels []uint8, _ int, c *env) {
	from := r.from
	if c.slide.Colour != nil {
		from = c.slide.Colour.LAB
		if r.space == HSV {
			from = c.slide.Colour.HSV
		}
	}
	var scale, add [3]float32
	for k := range 3 {
		f := 1.0
		if from.Std[k] > 1e-6 { // a channel that does not vary is only shifted
			f = r.to.Std[k] / from.Std[k]
		}
		scale[k], add[k] = float32(f), float32(r.to.Mean[k]-f*from.Mean[k])
	}
	into, back := toLAB, fromLAB
	if r.space == HSV {
		into, back = toHSV, fromHSV
	}
	for p := pixels; len(p) >= 3; p = p[3:] {
		v := into(p[0], p[1], p[2])
		for k := range v {
			v[k] = v[k]*scale[k] + add[k]
		}
		p[0], p[1], p[2] = back(v)
	}
}

// White point of D65 and the matrix of sRGB, as scikit-image has them; rows give X, Y and Z.
var (
	white   = [3]float64{0.95047, 1, 1.08883}
	xyz     = [3][3]float64{{0.412453, 0.357580, 0.180423}, {0.212671, 0.715160, 0.072169}, {0.019334, 0.119193, 0.950227}}
	toXYZ   = scaled(xyz)
	fromXYZ = narrow(inverse(widen(toXYZ)))
)

// toLAB is CIELAB (CIE 15:2004) of an sRGB pixel.
func toLAB(r, g, b uint8) [3]float32 {
	lr, lg, lb := linear[r], linear[g], linear[b]
	x := labRoot(toXYZ[0][0]*lr + toXYZ[0][1]*lg + toXYZ[0][2]*lb)
	y := labRoot(toXYZ[1][0]*lr + toXYZ[1][1]*lg + toXYZ[1][2]*lb)
	z := labRoot(toXYZ[2][0]*lr + toXYZ[2][1]*lg + toXYZ[2][2]*lb)
	return [3]float32{116*y - 16, 500 * (x - y), 200 * (y - z)}
}

// fromLAB is the pixel of a colour, cut to what sRGB can show.
func fromLAB(v [3]float32) (r, g, b uint8) {
	y := (v[0] + 16) / 116
	x, z := y+v[1]/500, y-v[2]/200
	x, y, z = labPower(x), labPower(y), labPower(max(z, 0))
	return companded(fromXYZ[0][0]*x + fromXYZ[0][1]*y + fromXYZ[0][2]*z),
		companded(fromXYZ[1][0]*x + fromXYZ[1][1]*y + fromXYZ[1][2]*z),
		companded(fromXYZ[2][0]*x + fromXYZ[2][1]*y + fromXYZ[2][2]*z)
}

// labRoot is CIELAB's f for 0 to 1, interpolated in a table.
func labRoot(t float32) float32 {
	at := t * rootSteps
	i := min(int(at), rootSteps)
	return roots[i] + (at-float32(i))*(roots[i+1]-roots[i])
}

// labPower is its inverse.
func labPower(t float32) float32 {
	if t > 0.2068966 {
		return t * t * t
	}
	return (t - 16.0/116) / 7.787
}

func companded(v float32) uint8 {
	return companding[int(min(max(v, 0), 1)*compandSteps+0.5)]
}

const (
	rootSteps    = 4096
	compandSteps = 16384 // at the dark end a step is a fifth of a value
)

var (
	roots = func() (t [rootSteps + 2]float32) {
		for i := range t {
			if v := float64(i) / rootSteps; v > 0.008856 {
				t[i] = float32(math.Cbrt(v))
			} else {
				t[i] = float32(7.787*v + 16.0/116)
			}
		}
		return t
	}()
	// linear light of each value of sRGB (IEC 61966-2-1), and the way back.
	linear = func() (t [256]float32) {
		for i := range t {
			if v := float64(i) / 255; v > 0.04045 {
				t[i] = float32(math.Pow((v+0.055)/1.055, 2.4))
			} else {
				t[i] = float32(v / 12.92)
			}
		}
		return t
	}()
	companding = func() (t [compandSteps + 1]uint8) {
		for i := range t {
			if v := float64(i) / compandSteps; v > 0.0031308 {
				t[i] = round(255 * (1.055*math.Pow(v, 1/2.4) - 0.055))
			} else {
				t[i] = round(255 * 12.92 * v)
			}
		}
		return t
	}()
)

func scaled(m [3][3]float64) (out [3][3]float32) {
	for i := range 3 {
		for j := range 3 {
			out[i][j] = float32(m[i][j] / white[i])
		}
	}
	return out
}

func widen(m [3][3]float32) (out [3][3]float64) {
	for i := range 3 {
		for j := range 3 {
			out[i][j] = float64(m[i][j])
		}
	}
	return out
}

func narrow(m [3][3]float64) (out [3][3]float32) {
	for i := range 3 {
		for j := range 3 {
			out[i][j] = float32(m[i][j])
		}
	}
	return out
}

// toHSV is hue, saturation and value of a pixel.
func toHSV(r, g, b uint8) [3]float32 {
	hi, lo := max(r, g, b), min(r, g, b)
	if hi == lo {
		return [3]float32{0, 0, float32(hi) / 255}
	}
	h := hueOf(int32(r), int32(g), int32(b), int32(hi), int32(lo))
	if h < 0 {
		h += 6
	}
	return [3]float32{h / 6, float32(hi-lo) * reciprocal[hi], float32(hi) / 255}
}

// fromHSV is the pixel of a colour; its hue goes round, saturation and value are cut to 0 to 1.
func fromHSV(v [3]float32) (r, g, b uint8) {
	h := (v[0] - float32(math.Floor(float64(v[0])))) * 6
	value := min(max(v[2], 0), 1) * 255
	chroma := min(max(v[1], 0), 1) * value
	sector := int32(h)
	part := h - float32(sector)
	if sector&1 == 1 {
		part = 1 - part
	}
	low := value - chroma
	found := [3]uint8{uint8(value + 0.5), uint8(low + part*chroma + 0.5), uint8(low + 0.5)}
	o := &places[sector%6]
	return found[o[0]], found[o[1]], found[o[2]]
}
