package augment

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"coverslip"
)

// everything is a list with every transform.
const everything = `
- {p: 0.5, background: {fill: noise, saturation: 18}}
- {p: 1, crop: {scale: [0.5, 1], ratio: [0.75, 1.3333]}}
- {p: 0.5, flip: {axis: horizontal}}
- {p: 0.5, flip: {axis: vertical}}
- {p: 1, turn: {}}
- {p: 0.5, normalise: {method: vahadane}}
- {p: 0.5, hed: {alpha: 0.05, beta: 0.05}}
- {p: 0.5, randstain: {space: lab}}
- {p: 0.5, randstain: {space: hsv}}
- {p: 0.8, jitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.2}}
- {p: 0.2, grayscale: {}}
- {p: 0.5, blur: {kernel: 9, sigma: [0.1, 2]}}
- {p: 0.5, resolution: {factor: [0.3, 1]}}
- {p: 0.5, jpeg: {quality: [30, 95]}}
- {p: 0.5, noise: {sigma: [0, 10]}}
`

func TestEqualSeedsGiveEqualBytes(t *testing.T) {
	spec := parse(t, everything)
	tile, n := picture(t, "stain")
	slide, err := spec.Measure(tile)
	if err != nil {
		t.Fatal(err)
	}
	const views, tiles, size = 12, 3, 40
	render := func(order []int, s *Scratch) [][]uint8 {
		out := make([][]uint8, views*tiles)
		for _, i := range order {
			out[i] = make([]uint8, size*size*3)
			spec.Draw(7, i/tiles).Apply(out[i], size, Tile{Pixels: tile, Size: n, Index: uint64(i % tiles)}, slide, s)
		}
		return out
	}
	inOrder := make([]int, views*tiles)
	for i := range inOrder {
		inOrder[i] = i
	}
	before := bytes.Clone(tile)
	want := render(inOrder, new(Scratch))
	if !bytes.Equal(tile, before) {
		t.Fatal("the tile was written to")
	}
	var wg sync.WaitGroup
	for worker := range 4 { // any order, at once, over a scratch that was used for other sizes
		wg.Go(func() {
			order, s := slices.Clone(inOrder), new(Scratch)
			rand.New(rand.NewPCG(1, uint64(worker))).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			spec.Draw(9, 1).Apply(make([]uint8, 100*100*3), 100, Tile{Pixels: tile, Size: n}, slide, s)
			for i, got := range render(order, s) {
				if !bytes.Equal(got, want[i]) {
					t.Errorf("view %d, tile %d differs in another order", i/tiles, i%tiles)
				}
			}
		})
	}
	wg.Wait()
	for v := 1; v < views; v++ {
		if bytes.Equal(want[0], want[v*tiles]) {
			t.Errorf("views 0 and %d are equal", v)
		}
	}
}

// Bags are found again by the text of the list and its Revision: where pixels change, Revision must.
// The sums are of amd64; other processors may round otherwise.
func TestPixelsOfThisRevisionStay(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the sums are of amd64")
	}
	tile, n := picture(t, "stain")
	for text, want := range map[string]string{
		"none":     "02a7d45f1d8b",
		"gigassl":  "e46d93cdd7ed",
		"histo":    "9bbe19a32866",
		everything: "88cb8d39a11e",
	} {
		spec := parse(t, text)
		slide, err := spec.Measure(tile)
		if err != nil {
			t.Fatal(err)
		}
		sum, s, out := sha256.New(), new(Scratch), make([]uint8, 48*48*3)
		for view := range 24 {
			spec.Draw(1, view).Apply(out, 48, Tile{Pixels: tile, Size: n, Index: 5}, slide, s)
			sum.Write(out)
		}
		if got := hex.EncodeToString(sum.Sum(nil))[:12]; got != want {
			t.Errorf("%.20q: sum %s, want %s: raise Revision, then write the new sum here", text, got, want)
		}
	}
}

// What one view does to its tiles is the same for all: tiles of one colour each stay in the relation
// they had, and a mark stays in its place.
func TestTilesOfAViewShareItsParameters(t *testing.T) {
	spec := parse(t, `[{p: 1, crop: {scale: [0.3, 0.6], ratio: [0.75, 1.3333]}}, {p: 1, turn: {}}, {p: 0.5, flip: {axis: horizontal}}]`)
	const n = 32
	marked := func(value uint8) []uint8 {
		p := make([]uint8, n*n*3)
		for i := range p {
			if (i/3%n+i/3/n)%7 == 0 {
				p[i] = value
			}
		}
		return p
	}
	dim, bright := marked(100), marked(200)
	for view := range 20 {
		a, b, s := make([]uint8, n*n*3), make([]uint8, n*n*3), new(Scratch)
		v := spec.Draw(3, view)
		v.Apply(a, n, Tile{Pixels: dim, Size: n, Index: 1}, Slide{}, s)
		v.Apply(b, n, Tile{Pixels: bright, Size: n, Index: 2}, Slide{}, s)
		for i := range a {
			if d := int(b[i]) - 2*int(a[i]); d < -2 || d > 2 {
				t.Fatalf("view %d: value %d is %d and %d in tiles where one is twice the other", view, i, a[i], b[i])
			}
		}
	}
}

func TestNoiseIsEachTilesOwn(t *testing.T) {
	v := parse(t, `[{p: 1, noise: {sigma: [4, 4]}}]`).Draw(5, 0)
	const n = 64
	flat := bytes.Repeat([]uint8{128}, n*n*3)
	a, b, s := make([]uint8, len(flat)), make([]uint8, len(flat)), new(Scratch)
	v.Apply(a, n, Tile{Pixels: flat, Size: n, Index: 0}, Slide{}, s)
	v.Apply(b, n, Tile{Pixels: flat, Size: n, Index: 1}, Slide{}, s)
	var product, power float64
	for i := range a {
		x, y := float64(a[i])-128, float64(b[i])-128
		product += x * y
		power += x * x
	}
	if std := math.Sqrt(power / float64(len(a))); math.Abs(std-4) > 0.1 {
		t.Errorf("its deviation is %.2f, want 4", std)
	}
	if r := product / power; math.Abs(r) > 0.05 {
		t.Errorf("two tiles' noise correlates with %.2f", r)
	}
}

// A step's parameters do not change with the steps before it, nor with how many of them a view has.
func TestStepsDrawFromTheirOwnStreams(t *testing.T) {
	long := parse(t, everything)
	for view := range 30 {
		other := slices.Clone(long)
		other[0].P, other[9].P = 1, 0.01
		a, b := long.Draw(1, view), other.Draw(1, view)
		if a.crop != b.crop {
			t.Fatalf("view %d: the crop changed with other steps", view)
		}
	}
}

func TestDrawsKeepToTheirRanges(t *testing.T) {
	spec := parse(t, "gigassl")
	const views = 4000
	jitters, grays, blurs, areas := 0, 0, 0, 0.0
	orders := map[[4]int]int{}
	for view := range views {
		v := spec.Draw(11, view)
		area, ratio := v.crop.w*v.crop.h, v.crop.w/v.crop.h
		if area < 0.4999 || area > 1.0001 || ratio < 0.7499 || ratio > 1.3334 {
			t.Fatalf("view %d: a crop of area %v and ratio %v", view, area, ratio)
		}
		areas += area / views
		for size := 1; size < 300; size += 37 {
			if x, y, w, h := v.crop.pixels(size); x < 0 || y < 0 || w < 1 || h < 1 || x+w > size || y+h > size {
				t.Fatalf("view %d: box %d,%d %d×%d of a tile of %d", view, x, y, w, h, size)
			}
		}
		for _, a := range v.rest {
			switch a := a.action.(type) {
			case jitter:
				jitters++
				orders[a.order]++
				for i, f := range a.by {
					if i != hue && (f < 0.6 || f > 1.4) || i == hue && (f < -0.2 || f > 0.2) {
						t.Fatalf("view %d: jitter %v", view, a.by)
					}
				}
			case toGray:
				grays++
			case gaussian:
				blurs++
			}
		}
	}
	for _, c := range []struct {
		name string
		got  int
		p    float64
	}{{"jitter", jitters, 0.8}, {"grayscale", grays, 0.2}, {"blur", blurs, 0.5}} {
		if share := float64(c.got) / views; math.Abs(share-c.p) > 0.03 {
			t.Errorf("%s in %.3f of the views, want %v", c.name, share, c.p)
		}
	}
	if len(orders) != 24 {
		t.Errorf("%d orders of jitter, want all 24", len(orders))
	}
	// Below 0.75, because long boxes of large area do not fit: the integral over those that do.
	if math.Abs(areas-0.6916) > 0.01 {
		t.Errorf("the mean area is %.4f, want 0.6916", areas)
	}
}

// The filters that work on three channels in one word, beside plain ones in float64.
func TestFastFiltersAgreeWithPlainOnes(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	s := new(Scratch)
	for range 60 {
		n, out := 1+rng.IntN(40), 1+rng.IntN(40)
		src := make([]uint8, n*n*3)
		for i := range src {
			src[i] = uint8(rng.IntN(256))
			if rng.IntN(3) == 0 {
				src[i] = uint8(rng.IntN(2) * 255) // where sums come closest to the next lane
			}
		}
		w, h := 1+rng.IntN(n), 1+rng.IntN(n)
		x, y := rng.IntN(n-w+1), rng.IntN(n-h+1)
		got := make([]uint8, out*out*3)
		resize(got, out, out, src, n, x, y, w, h, s)
		mean := 0.2
		if min(out, n) < 8 { // too few values for a mean
			mean = 1
		}
		near(t, got, plainResize(src, n, x, y, w, h, out), 1, mean)

		kernel, sigma := 3+2*rng.IntN(5), 0.1+3*rng.Float64()
		want := plainBlur(src, n, kernel, sigma)
		newGaussian(kernel, sigma).apply(src, n, &env{s: s})
		near(t, src, want, 1, mean)
	}
}

func plainResize(src []uint8, n, x, y, w, h, out int) []uint8 {
	weights := func(in int) [][]float64 {
		all := make([][]float64, out)
		scale := float64(in) / float64(out)
		for i := range all {
			all[i] = make([]float64, in)
			total := 0.0
			for j := range in {
				all[i][j] = max(0, 1-math.Abs(float64(j)+0.5-(float64(i)+0.5)*scale)/max(scale, 1))
				total += all[i][j]
			}
			for j := range in {
				all[i][j] /= total
			}
		}
		return all
	}
	across, down := weights(w), weights(h)
	dst := make([]uint8, out*out*3)
	for i := range dst {
		sum := 0.0
		for dy, wy := range down[i/3/out] {
			for dx, wx := range across[i/3%out] {
				sum += wy * wx * float64(src[((y+dy)*n+x+dx)*3+i%3])
			}
		}
		dst[i] = round(sum)
	}
	return dst
}

func plainBlur(src []uint8, n, kernel int, sigma float64) []uint8 {
	dst, half := make([]uint8, len(src)), kernel/2
	for i := range dst {
		sum, total := 0.0, 0.0
		for dy := -half; dy <= half; dy++ {
			for dx := -half; dx <= half; dx++ {
				w := math.Exp(-float64(dx*dx+dy*dy) / (2 * sigma * sigma))
				sum += w * float64(src[(mirror(i/3/n+dy, n)*n+mirror(i/3%n+dx, n))*3+i%3])
				total += w
			}
		}
		dst[i] = round(sum / total)
	}
	return dst
}

func TestBackgroundIsReplacedAndTissueIsNot(t *testing.T) {
	const n = 16
	tile := bytes.Repeat([]uint8{240, 241, 240}, n*n) // glass
	tissue, glassOf := [3]uint8{150, 60, 140}, bytes.Repeat([]uint8{220, 221, 222}, n*n)
	mask := make([]bool, n*n)
	for i := range n * n / 2 {
		copy(tile[i*3:], tissue[:])
		mask[i] = true
	}
	for i := n * n * 3 / 4; i < n*n; i++ { // the lender's tissue
		copy(glassOf[i*3:], []uint8{90, 20, 90})
	}
	for _, f := range []Fill{White, Mean, Grain, Other} {
		spec := parse(t, fmt.Sprintf(`[{p: 1, background: {fill: %s, saturation: 18}}]`, f))
		found, given, s := make([]uint8, len(tile)), make([]uint8, len(tile)), new(Scratch)
		spec.Draw(1, 0).Apply(found, n, Tile{Pixels: tile, Size: n, Other: glassOf}, Slide{}, s)
		spec.Draw(1, 0).Apply(given, n, Tile{Pixels: tile, Size: n, Other: glassOf, Tissue: mask}, Slide{}, s)
		if !bytes.Equal(found, given) {
			t.Errorf("%s: the mask found by saturation is not the one given", f)
		}
		if !bytes.Equal(found[:n*n/2*3], tile[:n*n/2*3]) {
			t.Errorf("%s: tissue changed", f)
		}
		colours := map[[3]uint8]bool{}
		for i := n * n / 2; i < n*n; i++ {
			colours[[3]uint8(found[i*3:])] = true
		}
		want := map[Fill][3]uint8{White: {255, 255, 255}, Mean: tissue, Other: {220, 221, 222}}[f]
		if f == Grain && len(colours) < n*n/2-3 || f != Grain && (len(colours) != 1 || !colours[want]) {
			t.Errorf("%s: the background became %v", f, colours)
		}
	}
	// Without tissue, or another tile, there is still something to put.
	for _, f := range []Fill{Mean, Other} {
		out := make([]uint8, n*n*3)
		parse(t, fmt.Sprintf(`[{p: 1, background: {fill: %s, saturation: 18}}]`, f)).Draw(1, 0).
			Apply(out, n, Tile{Pixels: bytes.Repeat([]uint8{240}, n*n*3), Size: n}, Slide{}, new(Scratch))
		if !bytes.Equal(out, bytes.Repeat([]uint8{255}, n*n*3)) {
			t.Errorf("%s: a tile of glass did not become white", f)
		}
	}
}

func TestColoursOfASlideReachTheDraw(t *testing.T) {
	field, n := picture(t, "stain")
	for _, space := range []Space{LAB, HSV} {
		spec := parse(t, fmt.Sprintf(`[{p: 1, randstain: {space: %s, statistics: {mean: [%s], mean_deviation: [0, 0, 0], std: [%s], std_deviation: [0, 0, 0]}}}]`, space,
			map[Space]string{LAB: "60, 18, -10", HSV: "0.85, 0.3, 0.7"}[space], map[Space]string{LAB: "10, 5, 4", HSV: "0.02, 0.08, 0.08"}[space]))
		slide, err := spec.Measure(field)
		if err != nil {
			t.Fatal(err)
		}
		out := make([]uint8, len(field))
		spec.Draw(1, 0).Apply(out, n, Tile{Pixels: field, Size: n}, slide, new(Scratch))
		var got sums // over the pixels that were measured
		for i := 0; i < len(field); i += 3 {
			if max(density[field[i]], density[field[i+1]], density[field[i+2]]) < leastDensity {
				continue
			}
			if space == LAB {
				got.add(toLAB(out[i], out[i+1], out[i+2]))
			} else {
				got.add(toHSV(out[i], out[i+1], out[i+2]))
			}
		}
		want, unit := *spec[0].RandStain.Statistics, map[Space]float64{LAB: 100, HSV: 1}[space]
		for c := range 3 {
			m := got.moments()
			if math.Abs(m.Mean[c]-want.Mean[c]) > 0.01*unit || math.Abs(m.Std[c]-want.Std[c]) > 0.01*unit {
				t.Errorf("%s, channel %d: mean %.3f and deviation %.3f, want %v and %v", space, c, m.Mean[c], m.Std[c], want.Mean[c], want.Std[c])
			}
		}
	}
}

// The smallest tiles, and those of one colour, go through everything.
func TestOddTilesComeThrough(t *testing.T) {
	spec := always(parse(t, everything))
	for _, n := range []int{1, 2, 3, 7, 17} {
		for _, size := range []int{1, 2, 16, 33} {
			for _, value := range []uint8{0, 128, 255} {
				out, s := make([]uint8, size*size*3), new(Scratch)
				for view := range 3 {
					spec.Draw(1, view).Apply(out, size, Tile{Pixels: bytes.Repeat([]uint8{value}, n*n*3), Size: n}, Slide{}, s)
				}
			}
		}
	}
}

func TestTextIsReadBack(t *testing.T) {
	for _, text := range []string{"none", " gigassl\n", "histo", "[]", everything, `{revision: 1, steps: [{p: 1, turn: {}}]}`} {
		spec := parse(t, text)
		again := parse(t, spec.String())
		if again.String() != spec.String() {
			t.Errorf("%.20q: %s became %s", text, spec, again)
		}
	}
	// What was left out and what is written out are the same list.
	short := parse(t, `[{p: 1, randstain: {space: lab}}]`)
	if !strings.Contains(short.String(), "52.93") {
		t.Errorf("the default statistics are not in %s", short)
	}
	const want = `{"revision":1,"steps":[{"p":1,"crop":{"scale":[0.5,1],"ratio":[0.75,1.3333333333333333]}},` +
		`{"p":0.8,"jitter":{"brightness":0.4,"contrast":0.4,"saturation":0.4,"hue":0.2}},{"p":0.2,"grayscale":{}},{"p":0.5,"blur":{"kernel":5,"sigma":[0.1,1]}}]}`
	if got := parse(t, "gigassl").String(); got != want {
		t.Errorf("gigassl is %s, want %s", got, want)
	}
}

func TestBadTextIsRefused(t *testing.T) {
	for text, kind := range map[string]coverslip.Kind{
		"":                                       coverslip.Invalid,
		"gigassl2":                               coverslip.NotFound,
		"[{p: 1}]":                               coverslip.Invalid,
		"[{turn: {}}]":                           coverslip.Invalid, // no p
		"[{p: .nan, turn: {}}]":                  coverslip.Invalid,
		"[{p: 1.5, turn: {}}]":                   coverslip.Invalid,
		"[{p: 1, turn: }]":                       coverslip.Invalid,
		"[{p: 1, spin: {}}]":                     coverslip.Invalid,
		"[{p: 1, turn: {}, grayscale: {}}]":      coverslip.Invalid,
		"[{p: 1, turn: {}}, null]":               coverslip.Invalid,
		"[{p: 1, flip: {axis: diagonal}}]":       coverslip.Invalid,
		"[{p: 1, crop: {scale: [1, 0.5]}}]":      coverslip.Invalid,
		"[{p: 1, blur: {kernel: 4}}]":            coverslip.Invalid,
		"[{p: 1, jpeg: {quality: [0, 10]}}]":     coverslip.Invalid,
		"[{p: 1, noise: {sigma: [0, .inf]}}]":    coverslip.Invalid,
		"[{p: 1, noise: {sigma: [0, 1, 2]}}]":    coverslip.Invalid,
		"[{p: 1, jitter: {hue: 0.6}}]":           coverslip.Invalid,
		"[{p: 1, hed: {alpha: -1, beta: 0}}]":    coverslip.Invalid,
		"[{p: 1, randstain: {space: rgb}}]":      coverslip.Invalid,
		"[{p: 1, normalise: {method: magic}}]":   coverslip.Invalid,
		"[{p: 1, turn: {}}]\n---\n[]":            coverslip.Invalid,
		"{revision: 99, steps: []}":              coverslip.Unsupported,
		"{steps: [{p: 1, turn: {}}]}":            coverslip.Unsupported, // nobody says what it was made for
		"[" + strings.Repeat(" ", maxText) + "]": coverslip.TooLarge,
		"[{p: 1, turn: {}}, {p: 1, crop: {scale: [0.5, 1], ratio: [1, 1]}}]":                             coverslip.Invalid,
		"[{p: 1, turn: {}}, {p: 1, background: {fill: white, saturation: 18}}]":                          coverslip.Invalid,
		"[{p: 1, randstain: {space: lab, statistics: {mean: [1, 2, 3]}}}]":                               coverslip.Invalid,
		"[{p: 1, crop: {scale: [0.5, 1], ratio: [1, 1]}}, {p: 1, crop: {scale: [1, 1], ratio: [1, 1]}}]": coverslip.Invalid,
	} {
		if spec, err := Parse(text); coverslip.KindOf(err) != kind {
			t.Errorf("%.60q: %v, %v; want an error of kind %s", text, spec, err, kind)
		}
	}
}

func parse(t *testing.T, text string) Spec {
	t.Helper()
	spec, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}
