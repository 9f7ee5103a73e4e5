package measure_test

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"coverslip/internal/nn"
	"coverslip/slidessl/measure"
)

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s: %.9g, want %.9g", what, got, want)
	}
}

func TestMeasuresMeetNumpy(t *testing.T) {
	raw, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var g struct {
		D                           int
		X, Y                        []float32
		Class                       []int
		Weight, Bias                []float64
		Alignment, Uniformity, Rank float64
		Collapse                    measure.Collapse
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	near(t, "alignment", measure.Alignment(g.X, g.Y, g.D), g.Alignment, 1e-6)
	near(t, "uniformity", measure.Uniformity(g.X, g.D), g.Uniformity, 1e-6)
	near(t, "effective rank", measure.EffectiveRank(g.X, g.D), g.Rank, 1e-9)
	c := measure.NeuralCollapse(g.X, g.D, g.Class, g.Weight, g.Bias)
	near(t, "NC1", c.Within, g.Collapse.Within, 1e-9*g.Collapse.Within)
	near(t, "NC2, norms", c.Norms, g.Collapse.Norms, 1e-9)
	near(t, "NC2, angles", c.Angles, g.Collapse.Angles, 1e-9)
	near(t, "NC3", c.Duality, g.Collapse.Duality, 1e-9)
	near(t, "NC4", c.Disagreement, g.Collapse.Disagreement, 0)
	if c.Disagreement == 0 || c.Within == 0 {
		t.Error("a case that cannot tell")
	}
}

func TestAlignmentAndUniformityOfKnownPoints(t *testing.T) {
	x := []float32{3, 0, 0, 5}
	near(t, "the same", measure.Alignment(x, []float32{1, 0, 0, 1}, 2), 0, 1e-12)
	near(t, "opposite", measure.Alignment(x, []float32{-1, 0, 0, -1}, 2), 4, 1e-12)
	near(t, "at right angles", measure.Alignment(x, []float32{0, 1, 1, 0}, 2), 2, 1e-12)

	near(t, "one point", measure.Uniformity([]float32{1, 2, 2, 4, 3, 6}, 2), 0, 1e-6)
	near(t, "two poles", measure.Uniformity([]float32{1, 0, -2, 0}, 2), -8, 1e-6)
	basis := make([]float32, 300*300)
	for i := range 300 {
		basis[i*300+i] = float32(i + 1)
	}
	near(t, "a basis", measure.Uniformity(basis, 300), -4, 1e-6)
	if u := measure.Uniformity([]float32{1, 0}, 2); u == u {
		t.Errorf("one row has uniformity %g", u)
	}
}

func TestEffectiveRankOfKnownSpectra(t *testing.T) {
	for name, c := range map[string]struct {
		x    []float32
		d    int
		want float64
	}{
		"a basis":       {[]float32{2, 0, 0, 0, 2, 0, 0, 0, 2}, 3, 3},
		"two of three":  {[]float32{1, 0, 0, 0, 1, 0}, 3, 2},
		"one direction": {[]float32{1, 2, 2, 4, -1, -2}, 2, 1},
		// Shares 3/4 and 1/4.
		"uneven": {[]float32{3, 0, 0, 1}, 2, math.Exp(-0.75*math.Log(0.75) - 0.25*math.Log(0.25))},
		"zeros":  {make([]float32, 6), 3, 0},
	} {
		near(t, name, measure.EffectiveRank(c.x, c.d), c.want, 1e-9)
	}
	// Isotropic Gaussians have nearly equal singular values, here between 1±√(20/20000).
	rng := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, 20000*20)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	near(t, "Gaussians of 20 dimensions", measure.EffectiveRank(x, 20), 20, 0.02)
	x[5] = float32(math.NaN())
	if r := measure.EffectiveRank(x, 20); r == r {
		t.Errorf("NaN has rank %g", r)
	}
}

// frame is a simplex of as many points in as many dimensions, at length 1 around the origin.
func frame(classes int) []float64 {
	m := make([]float64, classes*classes)
	for a := range classes {
		for b := range classes {
			m[a*classes+b] = -1 / float64(classes)
			if a == b {
				m[a*classes+b]++
			}
			m[a*classes+b] *= math.Sqrt(float64(classes) / float64(classes-1))
		}
	}
	return m
}

func TestASimplexHasCollapsed(t *testing.T) {
	for _, classes := range []int{2, 3, 7} {
		m := frame(classes)
		weight := make([]float64, len(m))
		var x []float32
		var class []int
		for c := range classes {
			for range c + 1 { // of unequal sizes
				for k := range classes {
					x = append(x, float32(10+3*m[c*classes+k])) // anywhere, of any size
					weight[c*classes+k] = 0.2 * m[c*classes+k]
				}
				class = append(class, c)
			}
		}
		c := measure.NeuralCollapse(x, classes, class, weight, make([]float64, classes))
		for name, v := range map[string]float64{"NC1": c.Within, "NC2, norms": c.Norms, "NC2, angles": c.Angles, "NC3": c.Duality, "NC4": c.Disagreement} {
			near(t, name, v, 0, 1e-6)
		}
		none := measure.NeuralCollapse(x, classes, class, nil, nil)
		if none.Duality == none.Duality || none.Disagreement == none.Disagreement || none.Within != c.Within {
			t.Errorf("without a classifier: %+v", none)
		}
	}
}

func TestVarianceInsideClassesIsMeasured(t *testing.T) {
	// Around each corner of a simplex of C classes in C dimensions lie corner ± s·e_k for all k: W = s²/C·1, and
	// B = 1/(C-1) in C-1 dimensions, so tr(W·B†)/C = (C-1)²·s²/C².
	const classes, s = 4, 0.5
	m := frame(classes)
	var x []float32
	var class []int
	for c := range classes {
		for k := range classes {
			for _, sign := range []float64{-1, 1} {
				for j := range classes {
					v := m[c*classes+j]
					if j == k {
						v += sign * s
					}
					x = append(x, float32(v))
				}
				class = append(class, c)
			}
		}
	}
	near(t, "NC1", measure.NeuralCollapse(x, classes, class, nil, nil).Within, 9*s*s/16, 1e-6)
}

func TestACollapseThatIsNone(t *testing.T) {
	// Points of a line: all angles are 0° or 180°.
	x := []float32{0, 0, 1, 0, 5, 0}
	weight := []float64{0, 1, 0, -1, 0, 0} // at right angles to the means
	c := measure.NeuralCollapse(x, 2, []int{0, 1, 2}, weight, []float64{0, 0, 1})
	// Centred: -2, -1, 3.
	near(t, "norms", c.Norms, math.Sqrt(2.0/3)/2, 1e-9)
	near(t, "angles", c.Angles, (1.5+0.5+0.5)/3, 1e-9)
	near(t, "duality", c.Duality, 2, 1e-9)
	near(t, "disagreement", c.Disagreement, 2.0/3, 1e-12) // it says 2 of all
}

func TestWorkersDoNotChangeMeasures(t *testing.T) {
	defer nn.SetWorkers(2)
	rng := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, 700*64)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	nn.SetWorkers(1)
	one := measure.Uniformity(x, 64)
	for _, w := range []int{2, 5} {
		nn.SetWorkers(w)
		if u := measure.Uniformity(x, 64); u != one {
			t.Errorf("%d workers: %g, not %g", w, u, one)
		}
	}
}

func BenchmarkEffectiveRank(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, 256*512)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	for b.Loop() {
		measure.EffectiveRank(x, 512)
	}
}

func BenchmarkUniformity(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, 512*512)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	for b.Loop() {
		measure.Uniformity(x, 512)
	}
}
