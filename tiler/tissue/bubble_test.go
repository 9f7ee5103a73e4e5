package tissue

import (
	_ "image/jpeg" // of the tiles
	"math"
	"path/filepath"
	"testing"
)

// tilesOfCRC5 are real tiles without bubbles, 224 pixels of about 0.5 µm.
func tilesOfCRC5(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("../../../shared/data/crc5/*/*/*.jpg")
	if err != nil || len(names) == 0 {
		t.Skip("needs the tiles in ../shared/data/crc5")
	}
	return names
}

// draw paints a bubble: a dark grey rim, a bright fringe within, and a paler inside.
func draw(rgb []byte, width, height int, mpp, cx, cy, radius float64) {
	for i := range width * height {
		x, y := float64(i%width)*mpp, float64(i/width)*mpp
		d := math.Hypot(x-cx, y-cy) - radius // µm
		dark := math.Exp(-d * d / (2 * 1.6 * 1.6))
		fringe := math.Exp(-(d + 5) * (d + 5) / (2 * 1.5 * 1.5))
		pale := 0.0
		if d < 0 {
			pale = 0.25
		}
		for c := range 3 {
			v := float64(rgb[3*i+c])
			v += pale * (240 - v)
			v += 0.5 * fringe * (250 - v)
			v += 0.9 * dark * (60 - v)
			rgb[3*i+c] = byte(v)
		}
	}
}

func TestBubbleOnPlainGround(t *testing.T) {
	const edge, mpp = 256, 0.5 // 128 µm
	for name, ground := range map[string][3]byte{"Glass": {242, 241, 243}, "Eosin": {220, 120, 170}} {
		for _, c := range []struct{ x, y, r float64 }{{64, 64, 40}, {60, 70, 20}, {0, 0, 90}, {-150, 64, 220}, {64, 400, 320}} {
			rgb := make([]byte, edge*edge*3)
			want := 0.0
			for i := range edge * edge {
				copy(rgb[3*i:], ground[:])
				if math.Hypot(float64(i%edge)*mpp-c.x, float64(i/edge)*mpp-c.y) < c.r {
					want += 1. / (edge * edge)
				}
			}
			if s := Quality(rgb, edge, edge, mpp); s.Bubble != 0 {
				t.Errorf("%s without a bubble: %.2f", name, s.Bubble)
			}
			draw(rgb, edge, edge, mpp, c.x, c.y, c.r)
			if s := Quality(rgb, edge, edge, mpp); math.Abs(float64(s.Bubble)-want) > 0.05 {
				t.Errorf("%s, %+v: %.2f, want %.2f", name, c, s.Bubble, want)
			}
		}
	}
}

func TestBubbleIsNoLineAndNoStroke(t *testing.T) {
	const edge = 256
	for name, dark := range map[string]func(x, y float64) bool{
		"Scratch": func(x, y float64) bool { return math.Abs(x-0.4*y-20) < 2 },
		"Stroke":  func(x, y float64) bool { return math.Abs(math.Hypot(x-64, y-64)-40) < 15 },
		"Corner":  func(x, y float64) bool { return math.Abs(math.Max(x, y)-64) < 2 },
		"Speck":   func(x, y float64) bool { return math.Hypot(x-64, y-64) < 6 },
	} {
		rgb := make([]byte, edge*edge*3)
		for i := range edge * edge {
			c := [3]byte{235, 233, 236}
			if dark(float64(i%edge)/2, float64(i/edge)/2) {
				c = [3]byte{60, 58, 60}
			}
			copy(rgb[3*i:], c[:])
		}
		if s := Quality(rgb, edge, edge, 0.5); s.Bubble != 0 {
			t.Errorf("%s: %.2f", name, s.Bubble)
		}
	}
}

func TestBubbleOnRealTiles(t *testing.T) {
	names := tilesOfCRC5(t)
	looked, falsely, tried, found := 0, 0, 0, 0
	for i := 0; i < len(names); i += 20 { // of all 2,000 none has one either
		name := names[i]
		rgb, w, h := load(t, name)
		if Quality(rgb, w, h, 0.5).Bubble > 0 {
			falsely++
		}
		looked++
		if i%60 == 0 {
			tried++
			draw(rgb, w, h, 0.5, 50+float64(i/20%7), 60, 25+float64(i/20%30))
			if Quality(rgb, w, h, 0.5).Bubble > 0.1 {
				found++
			}
		}
	}
	t.Logf("%d of %d tiles are said to have a bubble and have none; of %d drawn ones %d are found", falsely, looked, tried, found)
	if 100*falsely > looked || 10*found < 7*tried {
		t.Error("too many, or too few")
	}
}

func BenchmarkBubbles(b *testing.B) {
	rgb := make([]byte, 256*256*3)
	for i := range 256 * 256 {
		copy(rgb[3*i:], []byte{220, 120, 170})
	}
	draw(rgb, 256, 256, 0.5, 64, 64, 40)
	for b.Loop() {
		bubbles(rgb, 256, 256, 0.5)
	}
}
