package augment

import (
	"encoding/json"
	"errors"
	"image"
	_ "image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"coverslip"
)

// The golden files are what torchvision, scikit-image, Pillow and plain numpy make of testdata/input.png;
// bench/reference/augment.py writes them.

func TestTransformsAgreeWithTheirReferences(t *testing.T) {
	var cases []struct {
		File, Do        string
		Values          []float64
		Tolerance, Mean float64 // greatest and mean difference of a value
	}
	readJSON(t, "cases", &cases)
	input, size := picture(t, "input")
	covered := map[string]bool{}
	for _, c := range cases {
		covered[c.Do] = true
		t.Run(c.File, func(t *testing.T) {
			want, n := picture(t, c.File)
			v := View{crop: whole}
			switch x := c.Values; c.Do {
			case "crop":
				got := make([]uint8, n*n*3)
				resize(got, n, n, input, size, int(x[0]), int(x[1]), int(x[2]), int(x[3]), new(Scratch))
				near(t, got, want, c.Tolerance, c.Mean)
				return
			case "brightness", "contrast", "saturation", "hue":
				j := jitter{by: [4]float64{1, 1, 1, 0}, order: [4]int{3, 2, 1, 0}}
				j.by[map[string]int{"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}[c.Do]] = x[0]
				v.rest = []keyed{{action: j}}
			case "jitter":
				j := jitter{by: [4]float64(x[:4])}
				for i := range j.order {
					j.order[i] = int(x[4+i])
				}
				v.rest = []keyed{{action: j}}
			case "grayscale":
				v.rest = []keyed{{action: toGray{}}}
			case "blur":
				v.rest = []keyed{{action: newGaussian(int(x[0]), x[1])}}
			case "flip":
				v.rest = []keyed{{action: []Axis{Horizontal, Vertical}[int(x[0])]}}
			case "turn":
				v.rest = []keyed{{action: quarters(x[0])}}
			case "resolution":
				v.rest = []keyed{{action: shrink(x[0])}}
			case "hed":
				v.rest = []keyed{{action: hed{[3]float64(x[:3]), [3]float64(x[3:])}}}
			case "randstain-lab", "randstain-hsv":
				v.rest = []keyed{{action: recolour{space: Space(c.Do[len("randstain-"):]), to: Moments{[3]float64(x[:3]), [3]float64(x[3:])}}}}
			case "jpeg":
				v.rest = []keyed{{action: recode(x[0])}}
			case "jpeg-gray":
				v.rest = []keyed{{action: toGray{}}, {action: recode(x[0])}}
			default:
				t.Fatalf("what is %q?", c.Do)
			}
			colour, err := MeasureColour(input)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]uint8, len(input))
			v.Apply(got, size, Tile{Pixels: input, Size: size}, Slide{Colour: &colour}, new(Scratch))
			near(t, got, want, c.Tolerance, c.Mean)
		})
	}
	if len(covered) != 16 {
		t.Errorf("%d transforms have golden files, want 16: %v", len(covered), covered)
	}
}

func TestColourSpacesAgreeWithScikitImage(t *testing.T) {
	var c struct {
		RGB      [][3]uint8
		LAB, HSV [][3]float64
	}
	readJSON(t, "colours", &c)
	for i, p := range c.RGB {
		for k, v := range toLAB(p[0], p[1], p[2]) {
			if math.Abs(float64(v)-c.LAB[i][k]) > 0.01 {
				t.Errorf("%v: channel %d of CIELAB is %v, want %v", p, k, v, c.LAB[i][k])
			}
		}
		for k, v := range toHSV(p[0], p[1], p[2]) {
			if math.Abs(float64(v)-c.HSV[i][k]) > 1e-5 {
				t.Errorf("%v: channel %d of HSV is %v, want %v", p, k, v, c.HSV[i][k])
			}
		}
	}
}

// Every colour comes back from each space as it went in, or one off.
func TestColourSpacesGoThereAndBack(t *testing.T) {
	for r := 0; r < 256; r += 5 {
		for g := 0; g < 256; g += 5 {
			for b := 0; b < 256; b += 5 {
				p := [3]uint8{uint8(r), uint8(g), uint8(b)}
				var lab, hsv [3]uint8
				lab[0], lab[1], lab[2] = fromLAB(toLAB(p[0], p[1], p[2]))
				hsv[0], hsv[1], hsv[2] = fromHSV(toHSV(p[0], p[1], p[2]))
				near(t, lab[:], p[:], 1, 1)
				near(t, hsv[:], p[:], 1, 1)
			}
		}
	}
}

type estimate func([]uint8) (Stain, error)

func TestStainsAgreeWithPlainImplementations(t *testing.T) {
	var want struct {
		Macenko, Vahadane struct {
			Colours [2][3]float64
			Max     [2]float64
		}
	}
	readJSON(t, "stains", &want)
	field, _ := picture(t, "stain")
	for _, c := range []struct {
		name      string
		estimate  estimate
		want      Stain
		tolerance float64 // of the colours; of the concentrations twice as much
	}{
		{"macenko", EstimateMacenko, Stain(want.Macenko), 1e-6},
		// The other starts elsewhere and steps differently: they meet as closely as both converge.
		{"vahadane", EstimateVahadane, Stain(want.Vahadane), 1e-3},
	} {
		got, err := c.estimate(field)
		if err != nil {
			t.Fatal(err)
		}
		for k := range 2 {
			for ch := range 3 {
				if d := math.Abs(got.Colours[k][ch] - c.want.Colours[k][ch]); !(d <= c.tolerance) {
					t.Errorf("%s: colour %d is %v, want %v", c.name, k, got.Colours[k], c.want.Colours[k])
				}
			}
			if d := math.Abs(got.Max[k] - c.want.Max[k]); !(d <= 2*c.tolerance) {
				t.Errorf("%s: 99th percentiles are %v, want %v", c.name, got.Max, c.want.Max)
			}
		}
		golden, _ := picture(t, "normalised-"+c.name)
		pixels := append([]uint8(nil), field...)
		normalise{}.apply(pixels, 0, &env{slide: Slide{Stain: &got}})
		near(t, pixels, golden, 1, 0.06)
	}
}

// Pixels mixed from two known stains, mostly one at a time: both methods find them, whatever they are.
func TestPlantedStainsAreFound(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		planted := [2][3]float64{
			unit([3]float64{0.6 + 0.1*rng.Float64(), 0.7, 0.25 + 0.2*rng.Float64()}, ruifrok[0]),
			unit([3]float64{0.05 + 0.15*rng.Float64(), 0.9, 0.1 + 0.3*rng.Float64()}, ruifrok[1]),
		}
		pixels := make([]uint8, 0, 30000)
		for range cap(pixels) / 3 {
			h, e := 0.02*rng.Float64(), 0.3+0.8*rng.Float64()
			if rng.Float64() < 0.4 {
				h, e = 0.5+1.2*rng.Float64(), 0.02*rng.Float64()
			}
			for c := range 3 {
				pixels = append(pixels, round(255*math.Exp(-h*planted[0][c]-e*planted[1][c])))
			}
		}
		for name, estimate := range map[string]estimate{"Macenko": EstimateMacenko, "Vahadane": EstimateVahadane} {
			got, err := estimate(pixels)
			if err != nil {
				t.Fatal(err)
			}
			for k := range 2 {
				if angle := math.Acos(min(dot(got.Colours[k], planted[k]), 1)) * 180 / math.Pi; !(angle < 3) {
					t.Errorf("%s: stain %d is %.1f degrees off: %v, planted %v", name, k, angle, got.Colours[k], planted[k])
				}
			}
		}
	}
}

// A slide in another stain looks like the reference afterwards: measured again, its stain is that.
func TestNormalisingReachesTheReference(t *testing.T) {
	field, _ := picture(t, "stain")
	for _, method := range []Method{Macenko, Vahadane} {
		spec := Spec{{P: 1, Normalise: &Normalise{Method: method}}}
		slide, err := spec.Measure(field)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]uint8, len(field))
		spec.Draw(1, 0).Apply(got, 64, Tile{Pixels: field, Size: 64}, slide, new(Scratch))
		after, err := spec.Measure(got)
		if err != nil {
			t.Fatal(err)
		}
		for k := range 2 {
			if cosine := dot(after.Stain.Colours[k], Reference.Colours[k]); !(cosine > 0.998) {
				t.Errorf("%s: stain %d has cosine %.4f to the reference", method, k, cosine)
			}
			if ratio := after.Stain.Max[k] / Reference.Max[k]; !(math.Abs(ratio-1) < 0.08) {
				t.Errorf("%s: stain %d is %.2f times as strong as the reference", method, k, ratio)
			}
		}
	}
}

func TestWithoutTwoStainsTheReferenceStandsIn(t *testing.T) {
	constant := func(r, g, b uint8) []uint8 {
		p := make([]uint8, 3*5000)
		for i := 0; i < len(p); i += 3 {
			p[i], p[i+1], p[i+2] = r, g, b
		}
		return p
	}
	shades := constant(255, 255, 255) // of one stain alone
	for i := range len(shades) / 3 {
		for c := range 3 {
			shades[i*3+c] = round(255 * math.Exp(-ruifrok[1][c]*(0.3+0.001*float64(i%1000))))
		}
	}
	for name, pixels := range map[string][]uint8{
		"none": nil, "White": constant(255, 255, 255), "Black": constant(0, 0, 0), "Purple": constant(120, 60, 140),
		"FewPixels": constant(120, 60, 140)[:90], "OneStain": shades,
	} {
		for method, estimate := range map[Method]estimate{Macenko: EstimateMacenko, Vahadane: EstimateVahadane} {
			got, err := estimate(pixels)
			if !errors.Is(err, ErrNoStain) || coverslip.KindOf(err) != coverslip.Invalid {
				t.Errorf("%s, %s: %v, want ErrNoStain of kind invalid", name, method, err)
			}
			if got != Reference {
				t.Errorf("%s, %s: %v, want the reference", name, method, got)
			}
		}
	}
	spec, err := Parse(`[{p: 1, normalise: {method: macenko}}, {p: 1, randstain: {space: lab}}]`)
	if err != nil {
		t.Fatal(err)
	}
	slide, err := spec.Measure(constant(255, 255, 255))
	if !errors.Is(err, ErrNoStain) {
		t.Errorf("a white slide: %v, want ErrNoStain", err)
	}
	glass, out := constant(255, 255, 255)[:16*16*3], make([]uint8, 16*16*3)
	spec.Draw(1, 1).Apply(out, 16, Tile{Pixels: glass, Size: 16}, slide, new(Scratch))
}

func near(t *testing.T, got, want []uint8, tolerance, mean float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d values, want %d", len(got), len(want))
	}
	sum, worst, at := 0.0, 0.0, 0
	for i := range got {
		d := math.Abs(float64(got[i]) - float64(want[i]))
		sum += d
		if d > worst {
			worst, at = d, i
		}
	}
	if worst > tolerance || sum/float64(len(got)) > mean {
		t.Errorf("values differ by %v (at %d: %d, want %d) and %.3f on average; %v and %v are allowed",
			worst, at, got[at], want[at], sum/float64(len(got)), tolerance, mean)
	}
}

// picture is a square one of testdata, [n, n, 3], and n.
func picture(tb testing.TB, name string) ([]uint8, int) {
	tb.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".png"))
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	img, _, err := image.Decode(f)
	if err != nil {
		tb.Fatal(err)
	}
	n := img.Bounds().Dx()
	out := make([]uint8, 0, n*n*3)
	for y := range n {
		for x := range n {
			r, g, b, _ := img.At(x, y).RGBA()
			out = append(out, uint8(r>>8), uint8(g>>8), uint8(b>>8))
		}
	}
	return out, n
}

func readJSON(tb testing.TB, name string, into any) {
	tb.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		tb.Fatal(err)
	}
}
