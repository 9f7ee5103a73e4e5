package study

import (
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"coverslip"
	"coverslip/encoder/augment"
)

// colours encodes a tile as its mean colour and the mean step from pixel to pixel.
type colours struct{}

func (colours) Model() coverslip.Model {
	return coverslip.Model{Kind: coverslip.EncoderModel, Name: "colours", SHA256: "c0", Dim: 4, TileSize: 16}
}

func (colours) Encode(_ context.Context, dst []float32, pixels []uint8, n int) error {
	for i := range n {
		row, tile := dst[4*i:4*i+4], pixels[i*16*16*3:(i+1)*16*16*3]
		clear(row)
		for k, v := range tile {
			row[k%3] += float32(v) / 256
			if k >= 3 {
				row[3] += float32(math.Abs(float64(v)-float64(tile[k-3]))) / 768
			}
		}
	}
	return nil
}

// tilesOf writes n tiles of each class, red, green and blue stripes.
func tilesOf(t *testing.T, name func(class string, i int) string, n int) string {
	t.Helper()
	dir := t.TempDir()
	for c, class := range []string{"A", "B", "C"} {
		for i := range n {
			img := image.NewRGBA(image.Rect(0, 0, 16, 16))
			for p := range 256 {
				v := [3]uint8{90, 90, 90}
				v[c] = uint8(150 + 5*i + 40*(p%2))
				img.Set(p%16, p/16, color.RGBA{v[0], v[1], v[2], 255})
			}
			path := filepath.Join(dir, "tiles", name(class, i))
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			f, err := os.Create(path)
			if err == nil {
				err = png.Encode(f, img)
			}
			if err == nil {
				err = f.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func classTiles(class string, i int) string { return fmt.Sprintf("%s/%02d.png", class, i) }

func made(t *testing.T, d Tiles, dir string) *TileCohort {
	t.Helper()
	if err := d.check("c"); err != nil {
		t.Fatal(err)
	}
	m, err := d.Make(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func encoded(t *testing.T, m *TileCohort, v *coverslip.Views) *TileBags {
	t.Helper()
	x, err := m.Encode(t.Context(), colours{}, v, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewTileBags(m, x, 4, v, "label")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPseudoSlidesAreOfTheirTiles(t *testing.T) {
	dir := tilesOf(t, classTiles, 9)
	d := Tiles{Kind: "pseudo", Folder: "tiles", Background: "A", Foreground: "B", Others: "C", Across: 6, Sites: 2, Parts: []Part{
		{Name: "train", Slides: 40, Spurious: 1}, {Name: "test", Slides: 40, Held: true}, {Name: "pen", Slides: 4, Mark: "pen"},
		{Name: "glass", Slides: 4, Mark: "glass"}, {Name: "blur", Slides: 4, Mark: "blur"}, {Name: "stain", Slides: 4, Mark: "stain"}}}
	m := made(t, d, dir)
	b := encoded(t, m, nil)
	if b.Len() != 96 || m.Cohort().Sizes["part"]["train"] != 40 || m.Cohort().Classes["label"] != 2 {
		t.Fatalf("%d slides, %+v", b.Len(), m.Cohort().Sizes)
	}
	seen := map[string]map[int]bool{} // pictures, by part
	mean := map[string]*[4]float64{}
	agree := 0.0
	for i, s := range m.Slides {
		part := s.Labels["part"]
		if seen[part] == nil {
			seen[part], mean[part] = map[int]bool{}, new([4]float64)
		}
		row := make([]float32, 4)
		for k, p := range s.pictures {
			seen[part][m.pictures[p].file] = true
			if err := b.Read(row, i, 0, []int{k}); err != nil {
				t.Fatal(err)
			}
			for j, v := range row {
				mean[part][j] += float64(v) / float64(len(s.pictures))
			}
		}
		if part == "train" && s.Labels["label"] == s.Site[len("site "):] {
			agree++
		}
	}
	if agree != 40 {
		t.Errorf("the site is the label's in %g of 40 slides", agree)
	}
	for file := range seen["test"] {
		if seen["train"][file] {
			t.Error("held tiles are among the others")
		}
	}
	// What is wrong shows: glass is bright, blur has no stripes.
	for part, n := range map[string]float64{"test": 40, "pen": 4, "glass": 4, "blur": 4} {
		for j := range mean[part] {
			mean[part][j] /= n
		}
	}
	if !(mean["glass"][0] > 215 && mean["glass"][2] > 215 && mean["blur"][3] < 0.8*mean["test"][3] && mean["pen"][1] != mean["test"][1]) {
		t.Errorf("glass %v, blur %v, pen %v, test %v", *mean["glass"], *mean["blur"], *mean["pen"], *mean["test"])
	}
	// Equal declarations give equal cohorts, and what changes them changes their hashes.
	again := made(t, d, dir)
	if m.Cohort().Members != again.Cohort().Members || m.Bags(colours{}.Model(), nil) != again.Bags(colours{}.Model(), nil) {
		t.Error("equal cohorts have two hashes")
	}
	d.Parts = slices.Clone(d.Parts)
	d.Parts[0].Spurious = 0
	other := made(t, d, dir)
	if other.Cohort().Members == m.Cohort().Members || other.Bags(colours{}.Model(), nil) != m.Bags(colours{}.Model(), nil) {
		t.Error("slides laid out otherwise of the same pictures are other slides of the same features")
	}
	if err := os.Remove(filepath.Join(dir, "tiles", "C", "00.png")); err != nil {
		t.Fatal(err)
	}
	if less := made(t, d, dir); less.Bags(colours{}.Model(), nil) == other.Bags(colours{}.Model(), nil) {
		t.Error("a tile less has the same hash")
	}
}

func TestPatientsHaveTheirTilesPlacesAndLabels(t *testing.T) {
	dir := tilesOf(t, func(class string, i int) string { return fmt.Sprintf("%s/x%d_y%d_class%d.png", class, 16*i+1, 32, i%2) }, 5)
	if err := os.WriteFile(filepath.Join(dir, "p.csv"), []byte("patient,grade\nA,high\nB,low\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := made(t, Tiles{Kind: "patients", Folder: "tiles", Table: "p.csv", Most: 3}, dir)
	b := encoded(t, m, nil)
	places, err := b.Places(1, 0)
	if err != nil || b.Len() != 3 || len(places) != 3 || math.Mod(places[1].X-places[0].X, 1) != 0 || m.Slides[0].Labels["grade"] != "high" || m.Slides[2].Labels["grade"] != "" {
		t.Errorf("%d slides, places %v, %v, %v", b.Len(), places, m.Slides[0].Labels, err)
	}
	if m := made(t, Tiles{Kind: "patients", Folder: "tiles", Limit: 2}, dir); len(m.Slides) != 2 || m.Slides[1].Name != "B" || len(m.Slides[0].pictures) != 5 {
		t.Errorf("%+v", m.Slides)
	}
	for name, d := range map[string]Tiles{
		"no folder": {Kind: "patients", Folder: "elsewhere"}, "no table": {Kind: "patients", Folder: "tiles", Table: "q.csv"},
		"no class": {Kind: "pseudo", Folder: "tiles", Background: "A", Foreground: "Z", Parts: []Part{{Name: "p", Slides: 2}}},
	} {
		if err := d.check("c"); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Make(dir); coverslip.KindOf(err) != coverslip.NotFound || coverslip.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestViewsOfMadeSlidesShareTheirAugmentation(t *testing.T) {
	dir := tilesOf(t, classTiles, 9)
	m := made(t, Tiles{Kind: "pseudo", Folder: "tiles", Background: "A", Foreground: "B", Across: 4, Parts: []Part{{Name: "all", Slides: 6}}}, dir)
	gray, err := augment.Parse("[{p: 0.5, grayscale: {}}]")
	if err != nil {
		t.Fatal(err)
	}
	v := &coverslip.Views{Count: 5, Tiles: 7, Augment: gray.String(), Seed: 1}
	b := encoded(t, m, v)
	grays := 0
	for i := range b.Len() {
		for stored := range b.Stored(i) {
			places, err := b.Places(i, stored)
			if err != nil || len(places) != 7 {
				t.Fatal(places, err)
			}
			x := make([]float32, 7*4)
			if err := b.Read(x, i, stored, []int{0, 1, 2, 3, 4, 5, 6}); err != nil {
				t.Fatal(err)
			}
			of := 0
			for k := range 7 {
				if x[4*k] == x[4*k+1] && x[4*k] == x[4*k+2] {
					of++
				}
			}
			if of != 0 && of != 7 {
				t.Errorf("slide %d, view %d: %d of 7 tiles are gray", i, stored, of)
			}
			grays += of / 7
		}
	}
	if grays < 8 || grays > 22 {
		t.Errorf("%d of 30 views are gray", grays)
	}
	if again := encoded(t, m, v); !slices.Equal(again.X, b.X) {
		t.Error("equal views differ")
	}
}
