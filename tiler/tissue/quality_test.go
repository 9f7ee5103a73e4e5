package tissue

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func TestQualityOfPlainTiles(t *testing.T) {
	const edge = 64
	half := func(left, right [3]byte) []byte {
		rgb := make([]byte, 0, edge*edge*3)
		for i := range edge * edge {
			c := left
			if i%edge >= edge/2 {
				c = right
			}
			rgb = append(rgb, c[:]...)
		}
		return rgb
	}
	glass, eosin, fold := [3]byte{242, 241, 243}, [3]byte{220, 120, 170}, [3]byte{80, 20, 70}
	for name, c := range map[string]struct {
		rgb  []byte
		want Scores
	}{
		"AllGlass":  {half(glass, glass), Scores{Glass: 1}},
		"AllTissue": {half(eosin, eosin), Scores{}},
		"HalfFold":  {half(eosin, fold), Scores{Fold: 0.5}},
		"GreenPen":  {half(eosin, [3]byte{40, 140, 120}), Scores{GreenPen: 0.5}},
		"BluePen":   {half(eosin, [3]byte{57, 114, 202}), Scores{BluePen: 0.5}},
		"RedPen":    {half(glass, [3]byte{200, 20, 20}), Scores{Glass: 0.5, RedPen: 0.5}},
		"BlackPen":  {half(glass, [3]byte{30, 30, 32}), Scores{Glass: 0.5, BlackPen: 0.5}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Quality(c.rgb, edge, edge, 0.5)
			got.Blur = 0
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// One step of 110 in the middle of a line: the box of 11 turns it into eleven steps of 10, one of which
// stays where the step was. So 10 of 110 are left.
func TestBlurByHand(t *testing.T) {
	const w, h = 41, 30
	luma := make([]int32, w*h)
	for i := range luma {
		if i%w > 20 {
			luma[i] = 110
		}
	}
	if got := blur(luma, w, h); math.Abs(got-10./110) > 1e-12 {
		t.Errorf("got %g, want %g", got, 10./110)
	}
	if got := blur(make([]int32, 100), 10, 10); got != 0 {
		t.Errorf("a tile smaller than the window: %g", got)
	}
}

func TestBlurGrowsWithDefocus(t *testing.T) {
	const w, h = 96, 80
	rng := rand.New(rand.NewPCG(9, 9))
	luma := make([]int32, w*h)
	for i := range luma {
		luma[i] = int32(rng.IntN(200))
	}
	first := blur(luma, w, h)
	last := first
	for range 4 {
		soft := make([]int32, len(luma))
		for i := range soft {
			x, y := i%w, i/w
			for d := -1; d <= 1; d++ {
				soft[i] += luma[y*w+min(max(x+d, 0), w-1)] + luma[min(max(y+d, 0), h-1)*w+x]
			}
			soft[i] /= 6
		}
		luma = soft
		now := blur(luma, w, h)
		if now <= last {
			t.Errorf("%.3f after %.3f", now, last)
		}
		last = now
	}
	if first > 0.12 || last < 1.8*first { // white noise would keep an eleventh
		t.Errorf("noise has %.2f, softened four times %.2f", first, last)
	}
}

func TestQualityOfRealPictures(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "shared", "data", "qc")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("needs the pictures in ../shared/data/qc: %v", err)
	}
	pens := func(s Scores) float32 { return s.GreenPen + s.BluePen + s.RedPen + s.BlackPen }
	for name, good := range map[string]func(Scores) bool{
		"no-tissue.png":                            func(s Scores) bool { return s.Glass > 0.99 && pens(s) == 0 },
		"no-tissue2.png":                           func(s Scores) bool { return s.Glass > 0.99 && pens(s) == 0 },
		"almost-white-2.png":                       func(s Scores) bool { return s.Glass > 0.8 && pens(s) == 0 },
		"tcga-lung-rgb.png":                        func(s Scores) bool { return s.Glass < 0.25 && pens(s) == 0 && s.Fold < 0.01 },
		"no-tissue-green-pen.png":                  func(s Scores) bool { return s.GreenPen > 0.65 && s.RedPen+s.BlackPen+s.Fold == 0 },
		"no-tissue-red-pen.png":                    func(s Scores) bool { return s.RedPen > 0.2 && s.GreenPen+s.BluePen == 0 && s.Blur > 0.6 },
		"tcga-green-pen.png":                       func(s Scores) bool { return s.GreenPen+s.BluePen > 0.1 && s.RedPen == 0 && s.Blur < 0.3 },
		"tcga-red-pen.png":                         func(s Scores) bool { return s.RedPen > 0.12 && s.GreenPen+s.BluePen == 0 },
		"medium-nuclei-score-green-pen-level1.png": func(s Scores) bool { return s.GreenPen > 0.3 && s.RedPen == 0 },
		"high-nuclei-score-red-pen-level1.png":     func(s Scores) bool { return s.RedPen > 0.01 && s.Fold > 0.03 && s.Fold < 0.1 }, // a fold runs across
	} {
		t.Run(name, func(t *testing.T) {
			rgb, w, h := load(t, filepath.Join(dir, name))
			if s := Quality(rgb, w, h, 1); !good(s) {
				t.Errorf("%+v", s)
			}
		})
	}
}

func BenchmarkQuality(b *testing.B) {
	rng := rand.New(rand.NewPCG(5, 6))
	rgb := make([]byte, 256*256*3)
	for i := range rgb {
		rgb[i] = byte(rng.IntN(256))
	}
	for b.Loop() {
		Quality(rgb, 256, 256, 0.5)
	}
}
