package tissue

import (
	"image"
	"image/color"
	_ "image/png" // of the pictures
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestShareIsExactForPartsOfPixels(t *testing.T) {
	// 3×2, tissue in the middle column
	m := &Mask{Width: 3, Height: 2, Tissue: []bool{false, true, false, false, true, false}}
	m.index()
	for _, c := range []struct{ x, y, w, h, want float64 }{
		{0, 0, 3, 2, 1. / 3},
		{1, 0, 1, 1, 1},
		{0.5, 0.5, 1, 1, 0.5},
		{1.25, 0, 0.5, 2, 1},
		{-1, -1, 3, 3, 2. / 9}, // the column 1 to 2, rows 0 to 2, of nine
		{2.5, 1.5, 4, 4, 0},
		{10, 10, 1, 1, 0},
		{0, 0, 0, 1, 0},
	} {
		if got := m.Share(c.x, c.y, c.w, c.h); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("Share(%g, %g, %g, %g) = %g, want %g", c.x, c.y, c.w, c.h, got, c.want)
		}
	}
	if got := m.Fraction(); math.Abs(got-1./3) > 1e-12 {
		t.Errorf("Fraction() = %g", got)
	}
}

func TestMedianEqualsSorting(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, size := range [][2]int{{1, 1}, {1, 9}, {9, 1}, {5, 4}, {23, 17}} {
		w, h := size[0], size[1]
		src := make([]uint8, w*h)
		for i := range src {
			src[i] = uint8(rng.IntN(256))
		}
		before := slices.Clone(src)
		for _, k := range []int{3, 5, 7} {
			got := median(src, w, h, k)
			for y := range h {
				for x := range w {
					var window []uint8
					for dy := -k / 2; dy <= k/2; dy++ {
						for dx := -k / 2; dx <= k/2; dx++ {
							window = append(window, src[min(max(y+dy, 0), h-1)*w+min(max(x+dx, 0), w-1)])
						}
					}
					slices.Sort(window)
					if want := window[len(window)/2]; got[y*w+x] != want {
						t.Fatalf("%d×%d, window %d, at %d,%d: %d, want %d", w, h, k, x, y, got[y*w+x], want)
					}
				}
			}
		}
		if !slices.Equal(src, before) {
			t.Error("the source changed")
		}
	}
}

func TestOtsu(t *testing.T) {
	for _, c := range []struct {
		name string
		v    []uint8
		want int
	}{
		{"TwoPeaksSplitAfterTheFirst", []uint8{10, 10, 10, 200, 200}, 10},
		{"OneValueHasNoSplit", []uint8{7, 7, 7}, 0},
		{"Empty", nil, 0},
		// means 1 and 11: 2·3·100 between {0,2} and {10,11,12}; every other split is less
		{"HandComputed", []uint8{0, 2, 10, 11, 12}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := otsu(c.v); got != c.want {
				t.Errorf("otsu(%v) = %d, want %d", c.v, got, c.want)
			}
		})
	}
}

func TestClosingAndPieces(t *testing.T) {
	parse := func(rows ...string) (m []bool, w, h int) {
		for _, r := range rows {
			for _, c := range r {
				m = append(m, c == '#')
			}
		}
		return m, len(rows[0]), len(rows)
	}
	check := func(t *testing.T, got []bool, rows ...string) {
		t.Helper()
		if want, _, _ := parse(rows...); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, rows)
		}
	}
	t.Run("ClosingFillsAGapAndKeepsTheOutline", func(t *testing.T) {
		m, w, h := parse(
			".........",
			".........",
			"..##.##..",
			"..##.##..",
			".........",
			".........")
		b := pack(m, w, h)
		b.closing(1)
		b.unpack(m)
		check(t, m,
			".........",
			".........",
			"..#####..",
			"..#####..",
			".........",
			".........")
	})
	t.Run("SmallPiecesGoAndSmallHolesFill", func(t *testing.T) {
		m, w, h := parse(
			"#.......",
			"..#####.",
			"..#.#.#.",
			"..#####.",
			"........")
		b := pack(m, w, h)
		b.flip(true, 3)
		b.flip(false, 2)
		b.unpack(m)
		check(t, m,
			"........",
			"..#####.",
			"..#####.",
			"..#####.",
			"........")
	})
	t.Run("AHoleAtTheBorderIsNoHole", func(t *testing.T) {
		m, w, h := parse(
			"###",
			"#.#",
			"#.#")
		b := pack(m, w, h)
		b.flip(false, 100)
		b.unpack(m)
		check(t, m,
			"###",
			"#.#",
			"#.#")
	})
}

func TestGlassIsNotTissueAndAFullPictureIs(t *testing.T) {
	const w, h = 200, 150
	rng := rand.New(rand.NewPCG(3, 4))
	paint := func(r, g, b, noise int) []byte {
		rgb := make([]byte, 0, w*h*3)
		for range w * h {
			for _, v := range []int{r, g, b} {
				rgb = append(rgb, byte(min(max(v+rng.IntN(2*noise+1)-noise, 0), 255)))
			}
		}
		return rgb
	}
	for _, c := range []struct {
		name       string
		rgb        []byte
		low, above float64
	}{
		{"EmptyGlass", paint(241, 240, 242, 3), 0, 0},
		{"White", paint(255, 255, 255, 0), 0, 0},
		{"BlackBorder", paint(4, 3, 5, 3), 0, 0},
		{"AllTissue", paint(200, 120, 170, 20), 1, 1},
		{"AllPaleTissue", paint(235, 205, 225, 4), 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := Detect(c.rgb, w, h, 8, Default())
			if f := m.Fraction(); f < c.low || f > c.above {
				t.Errorf("%.3f of it is tissue (threshold %d), want %g to %g", f, m.Threshold, c.low, c.above)
			}
		})
	}
}

// The pictures say in their names what they show.
func TestRealPictures(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "shared", "data", "qc")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("needs the pictures in ../shared/data/qc: %v", err)
	}
	for name, want := range map[string]struct{ mpp, low, high float64 }{
		"no-tissue.png":      {8, 0, 0.01},
		"no-tissue2.png":     {8, 0, 0.01},
		"no-tissue-line.png": {8, 0, 0.02},
		"almost-white-2.png": {8, 0.01, 0.1},
		"tcga-lung-rgb.png":  {8, 0.6, 1},
	} {
		t.Run(name, func(t *testing.T) {
			rgb, w, h := load(t, filepath.Join(dir, name))
			m := Detect(rgb, w, h, want.mpp, Default())
			if f := m.Fraction(); f < want.low || f > want.high {
				t.Errorf("%.3f of it is tissue, want %g to %g", f, want.low, want.high)
			}
		})
	}
}

// The resolutions are estimates from the size of nuclei and of whole sections. Ink and tissue name places
// that lie well within either; the bounds are of the whole picture.
func TestInkIsNotTissue(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "shared", "data", "qc")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("needs the pictures in ../shared/data/qc: %v", err)
	}
	type places [][2]int
	for name, c := range map[string]struct {
		mpp, low, high float64
		ink, tissue    places
	}{
		"no-tissue-green-pen.png": {1, 0, 0.01, places{{250, 200}, {470, 150}, {50, 300}}, nil},
		"no-tissue-red-pen.png":   {1, 0, 0.08, places{{190, 190}, {300, 280}, {120, 290}, {450, 420}}, nil},
		"tcga-green-pen.png": {2, 0.75, 0.85, places{{350, 100}, {300, 240}, {180, 400}, {220, 540}},
			places{{100, 130}, {660, 300}, {400, 450}, {560, 500}}},
		"tcga-red-pen.png": {2, 0.6, 0.72, places{{80, 270}, {130, 220}, {115, 160}, {130, 330}},
			places{{290, 240}, {300, 118}, {420, 270}, {300, 400}}},
		"high-nuclei-score-red-pen-level1.png": {1, 0.9, 0.96, places{{265, 60}, {245, 140}},
			places{{60, 260}, {300, 310}, {420, 200}, {100, 450}}},
		"medium-nuclei-score-green-pen-level1.png": {1, 0.36, 0.48, places{{420, 120}, {500, 140}, {120, 180}, {70, 60}, {300, 30}},
			places{{450, 400}, {400, 400}, {250, 460}}},
		"wsi-blue-pen.png": {80, 0.28, 0.33, places{{160, 70}, {155, 108}}, places{{100, 60}, {70, 80}}},
		"diagnostic-slide-thumb-rgb.png": {40, 0.43, 0.52, places{{330, 44}, {60, 480}, {30, 350}},
			places{{250, 195}, {200, 265}, {120, 220}, {230, 410}, {420, 330}}},
	} {
		t.Run(name, func(t *testing.T) {
			rgb, w, h := load(t, filepath.Join(dir, name))
			m := Detect(rgb, w, h, c.mpp, Default())
			if f := m.Fraction(); f < c.low || f > c.high {
				t.Errorf("%.3f of it is tissue, want %g to %g", f, c.low, c.high)
			}
			for _, p := range c.ink {
				if m.Tissue[p[1]*w+p[0]] {
					t.Errorf("the ink at %v is tissue", p)
				}
			}
			for _, p := range c.tissue {
				if !m.Tissue[p[1]*w+p[0]] {
					t.Errorf("the tissue at %v is not", p)
				}
			}
			params := Default()
			params.PenReach = 0
			if with := Detect(rgb, w, h, c.mpp, params).Fraction(); with < m.Fraction()+0.02 {
				t.Errorf("with the ink %.3f is tissue, without %.3f", with, m.Fraction())
			}
		})
	}
}

// The same pictures made as coarse as those a slide's tissue is found in.
func TestInkIsNotTissueAtTheMasksResolution(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "shared", "data", "qc")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("needs the pictures in ../shared/data/qc: %v", err)
	}
	for name, c := range map[string]struct {
		mpp       int
		low, high float64
	}{
		"no-tissue-green-pen.png":                  {1, 0, 0.01},
		"no-tissue-red-pen.png":                    {1, 0, 0.08},
		"tcga-green-pen.png":                       {2, 0.75, 0.85},
		"tcga-red-pen.png":                         {2, 0.58, 0.72},
		"high-nuclei-score-red-pen-level1.png":     {1, 0.9, 0.97},
		"medium-nuclei-score-green-pen-level1.png": {1, 0.28, 0.48},
		"tcga-lung-rgb.png":                        {1, 0.95, 1},
	} {
		t.Run(name, func(t *testing.T) {
			rgb, w, h := load(t, filepath.Join(dir, name))
			by := 8 / c.mpp
			var small []byte
			for y := 0; y+by <= h; y += by {
				for x := 0; x+by <= w; x += by {
					mean := meanOf(rgb, w, x, y, x+by, y+by)
					small = append(small, mean[:]...)
				}
			}
			if f := Detect(small, w/by, h/by, 8, Default()).Fraction(); f < c.low || f > c.high {
				t.Errorf("%.3f of it is tissue, want %g to %g", f, c.low, c.high)
			}
		})
	}
}

// Colours of stained tissue that come near to ink.
func TestStainIsNotInk(t *testing.T) {
	for name, c := range map[string][3]int{
		"Glass": {243, 242, 244}, "Shade": {180, 178, 176}, "Eosin": {230, 110, 160}, "RedEosin": {232, 100, 120},
		"Haematoxylin": {70, 50, 120}, "DarkNucleus": {53, 21, 53}, "Fold": {88, 24, 69}, "BlueishNucleus": {95, 95, 150}, "Counterstain": {100, 120, 175},
		"Mucin": {200, 200, 222}, "FreshBlood": {190, 60, 95}, "OldBlood": {150, 70, 75}, "Border": {250, 250, 250},
	} {
		if k := classify(c[0], c[1], c[2]) &^ edgeInk; k != noInk {
			t.Errorf("%s %v is ink %d", name, c, k)
		}
	}
	for name, c := range map[string]struct {
		rgb  [3]int
		want ink
	}{
		"Green": {[3]int{66, 171, 151}, greenInk}, "GreenOnTissue": {[3]int{27, 54, 60}, greenInk}, "Blue": {[3]int{57, 114, 202}, blueInk},
		"Red": {[3]int{199, 17, 17}, redInk}, "RedOnTissue": {[3]int{159, 28, 45}, redInk}, "DarkRed": {[3]int{79, 21, 35}, redInk},
		"Black": {[3]int{40, 38, 41}, blackInk}, "PureBlack": {[3]int{0, 0, 0}, blackInk},
	} {
		if k := classify(c.rgb[0], c.rgb[1], c.rgb[2]) &^ edgeInk; k != c.want {
			t.Errorf("%s %v is ink %d, want %d", name, c.rgb, k, c.want)
		}
	}
}

func load(t *testing.T, path string) (rgb []byte, w, h int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	im, _, err := image.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	b := im.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			c, _ := color.NRGBAModel.Convert(im.At(x, y)).(color.NRGBA)
			rgb = append(rgb, c.R, c.G, c.B)
		}
	}
	return rgb, b.Dx(), b.Dy()
}

func BenchmarkDetect(b *testing.B) {
	const w, h = 2493, 1853
	rng := rand.New(rand.NewPCG(5, 6))
	rgb := make([]byte, w*h*3)
	for i := range rgb {
		rgb[i] = byte(200 + rng.IntN(40) - i%3*((i/3%w)/40%2)*40)
	}
	for b.Loop() {
		Detect(rgb, w, h, 8, Default())
	}
}
