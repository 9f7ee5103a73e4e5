package augment

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/mat"

	"coverslip"
)

// Stain is how a slide was stained. Optical density is -ln(v/255) per channel, with values of 0 taken
// as 1; a pixel's is the sum of its concentrations times the colours of the stains.
type Stain struct {
	Colours [2][3]float64 // of haematoxylin and of eosin: optical density of R, G, B, of length 1
	Max     [2]float64    // 99th percentile of the concentration of each
}

// Reference is the stain that Normalise brings slides to: the default of M. Veta's and many later
// implementations of Macenko et al. (staining normalisation in MATLAB, 2013), to four digits.
var Reference = Stain{
	Colours: [2][3]float64{{0.5626, 0.7201, 0.4062}, {0.2159, 0.8012, 0.5581}},
	Max:     [2]float64{1.9705, 1.0308},
}

// ErrNoStain says that pixels do not show two stains: too little tissue, or all of one colour.
var ErrNoStain = errors.New("the pixels do not show two stains")

const (
	leastDensity = 0.15 // pixels where no channel has as much are background (Macenko et al. 2009)
	leastPixels  = 100  // of tissue, to estimate from
	// mostAlike is the cosine of two stains at which they are one: haematoxylin and eosin have about 0.9.
	mostAlike = 0.995
)

// EstimateMacenko finds the stain of a slide from pixels, [n, 3] RGB, sampled over its tissue:
// Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009,
// with α = 1 %. Where there are not two stains it is Reference and the error wraps ErrNoStain.
func EstimateMacenko(pixels []uint8) (Stain, error) {
	tissue := densities(pixels, math.MaxInt)
	if len(tissue) < leastPixels {
		return Reference, noStain("%d pixels are tissue, fewer than %d", len(tissue), leastPixels)
	}
	colours, err := plane(tissue)
	if err != nil {
		return Reference, err
	}
	return complete(colours, tissue)
}

// EstimateVahadane does the same by sparse non-negative factorisation, started from Macenko's
// estimate: Vahadane et al., Structure-preserving color normalization and sparse stain separation for
// histological images, IEEE TMI 35(8), 2016, with λ = 0.1. It uses at most 20,000 of the pixels,
// evenly spread.
func EstimateVahadane(pixels []uint8) (Stain, error) {
	tissue := densities(pixels, mostFactored)
	if len(tissue) < leastPixels {
		return Reference, noStain("%d pixels are tissue, fewer than %d", len(tissue), leastPixels)
	}
	colours, err := plane(tissue)
	if err != nil {
		return Reference, err
	}
	return complete(factorise(colours, tissue), tissue)
}

const (
	mostFactored = 20000
	sparsity     = 0.1  // λ
	mostRounds   = 500  // a hundred suffice on real slides
	settled      = 1e-6 // change of the colours in a round at which they are found
)

func noStain(format string, args ...any) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "estimate the stain", Err: fmt.Errorf("%w: "+format, append([]any{ErrNoStain}, args...)...)}
}

// densities are the optical densities of those pixels that are tissue, and of at most n of them.
func densities(pixels []uint8, n int) [][3]float64 {
	var all [][3]float64
	for p := pixels; len(p) >= 3; p = p[3:] {
		od := [3]float64{density[p[0]], density[p[1]], density[p[2]]}
		if max(od[0], od[1], od[2]) >= leastDensity {
			all = append(all, od)
		}
	}
	if len(all) <= n {
		return all
	}
	some := make([][3]float64, n)
	for i := range some {
		some[i] = all[i*len(all)/n]
	}
	return some
}

// density is the optical density of each value.
var density = func() (t [256]float64) {
	for v := range t {
		t[v] = -math.Log(float64(max(v, 1)) / 255)
	}
	return t
}()

// plane is the heart of Macenko's method: the colours stand at the robust extremes of angle in the
// plane of the two largest principal components.
func plane(tissue [][3]float64) ([2][3]float64, error) {
	first, second, err := principal(tissue)
	if err != nil {
		return [2][3]float64{}, err
	}
	angles := make([]float64, len(tissue))
	for i, od := range tissue {
		angles[i] = math.Atan2(dot(od, second), dot(od, first))
	}
	slices.Sort(angles)
	var colours [2][3]float64
	for k, share := range []float64{0.01, 0.99} {
		angle := percentile(angles, share)
		for c := range 3 {
			colours[k][c] = math.Cos(angle)*first[c] + math.Sin(angle)*second[c]
		}
	}
	return colours, nil
}

// principal are the eigenvectors of the covariance with the two largest eigenvalues, signed so that
// red absorbs.
func principal(tissue [][3]float64) (first, second [3]float64, err error) {
	var mean [3]float64
	for _, od := range tissue {
		for c := range mean {
			mean[c] += od[c] / float64(len(tissue))
		}
	}
	cov := mat.NewSymDense(3, nil)
	for _, od := range tissue {
		for i := range 3 {
			for j := i; j < 3; j++ {
				cov.SetSym(i, j, cov.At(i, j)+(od[i]-mean[i])*(od[j]-mean[j])/float64(len(tissue)-1))
			}
		}
	}
	var eigen mat.EigenSym
	if !eigen.Factorize(cov, true) {
		return first, second, noStain("their covariance has no eigenvectors")
	}
	var vectors mat.Dense
	eigen.VectorsTo(&vectors) // by ascending eigenvalue
	for c := range 3 {
		first[c], second[c] = vectors.At(c, 2), vectors.At(c, 1)
	}
	return upward(first), upward(second), nil
}

func upward(v [3]float64) [3]float64 {
	if v[0] < 0 {
		v[0], v[1], v[2] = -v[0], -v[1], -v[2]
	}
	return v
}

// factorise lowers ½‖OD - H·W‖² + λ‖H‖₁ over concentrations H ≥ 0 and colours W ≥ 0 of length 1, by
// turns: H exactly, then W by one round of block coordinate descent (Mairal et al., Online learning for
// matrix factorization and sparse coding, JMLR 2010, algorithm 2).
func factorise(w [2][3]float64, tissue [][3]float64) [2][3]float64 {
	for k := range w {
		w[k] = unit(w[k], w[k])
	}
	for range mostRounds {
		var hh [2][2]float64
		var hv [2][3]float64
		solve := newSolver(w, sparsity)
		for _, od := range tissue {
			h := solve.concentrations(od)
			for i := range 2 {
				for j := range 2 {
					hh[i][j] += h[i] * h[j]
				}
				for c := range 3 {
					hv[i][c] += h[i] * od[c]
				}
			}
		}
		moved := 0.0
		for k := range 2 {
			if hh[k][k] == 0 {
				continue
			}
			var next [3]float64
			for c := range 3 {
				next[c] = w[k][c] + (hv[k][c]-hh[k][0]*w[0][c]-hh[k][1]*w[1][c])/hh[k][k]
			}
			next = unit(next, w[k])
			for c := range 3 {
				moved = max(moved, math.Abs(next[c]-w[k][c]))
			}
			w[k] = next
		}
		if moved < settled {
			break
		}
	}
	return w
}

// unit is v with its negative parts at 0 and of length 1, or otherwise where nothing is left.
func unit(v, otherwise [3]float64) [3]float64 {
	for c := range v {
		v[c] = max(v[c], 0)
	}
	length := math.Sqrt(dot(v, v))
	if !(length > 1e-9) {
		return otherwise
	}
	for c := range v {
		v[c] /= length
	}
	return v
}

// complete puts haematoxylin first, which absorbs more red, and adds the concentrations.
func complete(colours [2][3]float64, tissue [][3]float64) (Stain, error) {
	if colours[0][0] < colours[1][0] {
		colours[0], colours[1] = colours[1], colours[0]
	}
	for k := range colours {
		if !finite(colours[k][:]...) {
			return Reference, noStain("the estimate is not finite")
		}
	}
	if like := dot(colours[0], colours[1]); like > mostAlike {
		return Reference, noStain("the two found are one, with a cosine of %.4f", like)
	}
	s := Stain{Colours: colours}
	solve := newSolver(colours, 0)
	var of [2][]float64
	for _, od := range tissue {
		c := solve.concentrations(od)
		of[0], of[1] = append(of[0], c[0]), append(of[1], c[1])
	}
	for k := range of {
		slices.Sort(of[k])
		s.Max[k] = percentile(of[k], 0.99)
		if s.Max[k] < 1e-3 {
			return Reference, noStain("one of the two found is nowhere to be seen")
		}
	}
	return s, nil
}

// percentile interpolates between sorted values, as numpy does.
func percentile(sorted []float64, share float64) float64 {
	at := share * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

func dot(a, b [3]float64) float64 { return a[0]*b[0] + a[1]*b[1] + a[2]*b[2] }

// solver finds the two concentrations h ≥ 0 that lower ½‖od - h·w‖² + λ(h₀+h₁), for colours w of
// length 1: exactly, because with two unknowns the solution is one of four.
type solver struct {
	w       [2][3]float64
	inverse [2][2]float64 // of w·wᵀ
	lambda  float64
}

func newSolver(w [2][3]float64, lambda float64) solver {
	g := dot(w[0], w[1])
	d := max(1-g*g, 1e-9)
	return solver{w, [2][2]float64{{1 / d, -g / d}, {-g / d, 1 / d}}, lambda}
}

func (s *solver) concentrations(od [3]float64) [2]float64 {
	a, b := dot(s.w[0], od)-s.lambda, dot(s.w[1], od)-s.lambda
	both := [2]float64{s.inverse[0][0]*a + s.inverse[0][1]*b, s.inverse[1][0]*a + s.inverse[1][1]*b}
	switch {
	case both[0] >= 0 && both[1] >= 0:
		return both
	case a >= b:
		return [2]float64{max(a, 0), 0}
	default:
		return [2]float64{0, max(b, 0)}
	}
}

// Method is a way to estimate the stain of a slide.
type Method string

// The two methods, EstimateMacenko and EstimateVahadane.
const (
	Macenko  Method = "macenko"
	Vahadane Method = "vahadane"
)

// Normalise brings a slide's stain to Reference: each pixel's concentrations under the slide's own
// colours are scaled by the ratio of the 99th percentiles and given the reference's colours. The stain
// is that of the slide; a tile alone shows too little. What neither stain explains is dropped.
type Normalise struct {
	Method Method `json:"method" yaml:"method"`
}

func (n *Normalise) check() error {
	if n.Method != Macenko && n.Method != Vahadane {
		return fmt.Errorf("normalise: method %q: it is %s or %s", n.Method, Macenko, Vahadane)
	}
	return nil
}

func (n *Normalise) draw(*rand.Rand) action { return normalise{} }

type normalise struct{}

func (normalise) apply(pixels []uint8, _ int, c *env) {
	stain := Reference
	if c.slide.Stain != nil {
		stain = *c.slide.Stain
	}
	stain.restain(pixels, Reference)
}

// restain gives pixels stained as s the stain to.
func (s Stain) restain(pixels []uint8, to Stain) {
	solve := newSolver(s.Colours, 0)
	var mix [2][3]float64
	for k := range mix {
		for c := range 3 {
			mix[k][c] = to.Colours[k][c] * to.Max[k] / s.Max[k]
		}
	}
	for p := pixels; len(p) >= 3; p = p[3:] {
		h := solve.concentrations([3]float64{density[p[0]], density[p[1]], density[p[2]]})
		for c := range 3 {
			p[c] = transmit(float32(h[0]*mix[0][c] + h[1]*mix[1][c]))
		}
	}
}

// transmit is the value of an optical density. Its table has 2048 steps for one unit of density, an eighth
// of a value at the most.
func transmit(od float32) uint8 {
	return transmitted[int(min(max(od*densitySteps+0.5, 0), float32(len(transmitted)-1)))]
}

const densitySteps = 2048

var transmitted = func() (t [7 * densitySteps]uint8) {
	for i := range t {
		t[i] = round(255 * math.Exp(-float64(i)/densitySteps))
	}
	return t
}()

// HED changes the stain of a view at random: in the space of haematoxylin, eosin and DAB, each
// channel's density is multiplied by a draw of 1-Alpha to 1+Alpha and a draw of -Beta to Beta is added.
// Tellez et al., Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to
// train distilled stain-invariant convolutional networks, IEEE TMI 37(9), 2018. The colours of the
// stains are those of Ruifrok and Johnston (2001) as scikit-image has them; densities are natural
// logarithms, where scikit-image's are 13.8 times smaller.
type HED struct {
	Alpha float64 `json:"alpha" yaml:"alpha"`
	Beta  float64 `json:"beta" yaml:"beta"`
}

func (h *HED) check() error {
	if !(h.Alpha >= 0 && h.Alpha <= 1 && h.Beta >= 0 && h.Beta <= 1) {
		return errors.New("hed: alpha and beta are 0 to 1")
	}
	return nil
}

func (h *HED) draw(rng *rand.Rand) action {
	var d hed
	for k := range 3 {
		d.alpha[k] = Range{1 - h.Alpha, 1 + h.Alpha}.draw(rng)
		d.beta[k] = Range{-h.Beta, h.Beta}.draw(rng)
	}
	return d
}

type hed struct{ alpha, beta [3]float64 }

// ruifrok are the colours of haematoxylin, eosin and DAB.
var ruifrok = [3][3]float64{{0.65, 0.70, 0.29}, {0.07, 0.99, 0.11}, {0.27, 0.57, 0.78}}

// apply does it all in one affine map of densities: into the space of stains, times alpha, plus beta,
// and back.
func (h hed) apply(pixels []uint8, _ int, _ *env) {
	into := inverse(ruifrok)
	var m [3][3]float32 // from channel to channel
	var add [3]float32
	for c := range 3 {
		for k := range 3 {
			add[c] += float32(h.beta[k] * ruifrok[k][c])
			for from := range 3 {
				m[from][c] += float32(into[from][k] * h.alpha[k] * ruifrok[k][c])
			}
		}
	}
	var r, g, b [256][3]float32 // what each channel's value brings to all three
	for v, od := range density {
		for c := range 3 {
			r[v][c], g[v][c], b[v][c] = float32(od)*m[0][c]+add[c], float32(od)*m[1][c], float32(od)*m[2][c]
		}
	}
	for p := pixels; len(p) >= 3; p = p[3:] {
		x, y, z := &r[p[0]], &g[p[1]], &b[p[2]]
		p[0], p[1], p[2] = transmit(x[0]+y[0]+z[0]), transmit(x[1]+y[1]+z[1]), transmit(x[2]+y[2]+z[2])
	}
}

// inverse of a 3 × 3 matrix that has one.
func inverse(m [3][3]float64) (out [3][3]float64) {
	for i := range 3 {
		for j := range 3 {
			a, b, c, d := (j+1)%3, (j+2)%3, (i+1)%3, (i+2)%3
			out[i][j] = m[a][c]*m[b][d] - m[a][d]*m[b][c]
		}
	}
	det := m[0][0]*out[0][0] + m[0][1]*out[1][0] + m[0][2]*out[2][0]
	for i := range 3 {
		for j := range 3 {
			out[i][j] /= det
		}
	}
	return out
}
