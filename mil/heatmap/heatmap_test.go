package heatmap

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"image"
	"image/color"
	"math"
	"reflect"
	"strings"
	"testing"

	"coverslip"
)

func four(t *testing.T, scale Scale, values ...float64) *Map {
	t.Helper()
	m, err := New("attention", []int64{0, 100, 0, 100}[:len(values)], []int64{0, 0, 100, 100}[:len(values)], 100, values, scale)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestShownByHand(t *testing.T) {
	for _, c := range []struct {
		scale      Scale
		give, want []float64
	}{
		{Rank, []float64{0.1, 0.7, 0.2, 0}, []float64{1. / 3, 1, 2. / 3, 0}},
		{Rank, []float64{5, 5, 5, 9}, []float64{1. / 3, 1. / 3, 1. / 3, 1}}, // ties share places 0 to 2
		{Rank, []float64{3}, []float64{0.5}},
		{Signed, []float64{-2, 1, 0, 4}, []float64{-1, 0.5, 0, 1}}, // the 99th percentile of four is the third
		{Signed, []float64{0, 0}, []float64{0, 0}},
	} {
		got := four(t, c.scale, c.give...).Shown()
		for i := range got {
			if math.Abs(got[i]-c.want[i]) > 1e-12 {
				t.Errorf("%v shown as %v, want %v", c.give, got, c.want)
				break
			}
		}
	}
}

func TestHighestAndLowest(t *testing.T) {
	m := four(t, Rank, 0.1, 0.7, 0.2, 0)
	if got := m.Highest(2); !reflect.DeepEqual(got, []int{1, 2}) {
		t.Errorf("highest %v", got)
	}
	if got := m.Lowest(9); !reflect.DeepEqual(got, []int{3, 0, 2, 1}) {
		t.Errorf("lowest %v", got)
	}
}

// A white slide of 200 × 300 at a tenth: tiles cover the upper two thirds, red where the value is high.
func TestOverlayPutsColoursWhereTilesAre(t *testing.T) {
	white := image.NewRGBA(image.Rect(0, 0, 20, 30))
	for i := range white.Pix {
		white.Pix[i] = 255
	}
	m := four(t, Rank, 0.1, 0.7, 0.2, 0)
	img := m.Overlay(white, 10, 1)
	if c := img.RGBAAt(15, 5); c.R < 150 || c.B > 80 { // tile 1, the highest
		t.Errorf("the highest is %v", c)
	}
	if c := img.RGBAAt(15, 15); c.B < 150 || c.R > 80 { // tile 3, the lowest
		t.Errorf("the lowest is %v", c)
	}
	if c := img.RGBAAt(5, 25); c != (color.RGBA{255, 255, 255, 255}) {
		t.Errorf("beside the tiles it is %v", c)
	}
	if b := img.Bounds(); b.Dy() != 30+legendHeight || b.Dx() != legendWidth {
		t.Errorf("with the legend it is %v", b)
	}
	half := m.Overlay(white, 10, 0.5).RGBAAt(15, 5)
	if full := img.RGBAAt(15, 5); int(half.G)-(255+int(full.G))/2 > 1 || half.G <= full.G {
		t.Errorf("half of %v over white is %v", full, half)
	}
	// Tiles smaller than a pixel show all the same.
	if c := m.Overlay(image.NewGray(image.Rect(0, 0, 1, 1)), 1000, 1).RGBAAt(0, 0); c.G < 200 { // of all four, the middle
		t.Errorf("one pixel for all is %v", c)
	}
}

func TestOverlappingTilesAverage(t *testing.T) {
	m, err := New("x", []int64{0, 50}, []int64{0, 0}, 100, []float64{-1, 1}, Signed)
	if err != nil {
		t.Fatal(err)
	}
	img := m.Overlay(image.NewRGBA(image.Rect(0, 0, 15, 10)), 10, 1)
	left, middle, right := img.RGBAAt(2, 5), img.RGBAAt(7, 5), img.RGBAAt(12, 5)
	if left.B < 150 || right.R < 150 || middle.G < 200 {
		t.Errorf("%v %v %v", left, middle, right)
	}
}

func TestGeoJSONAndCSVHoldEveryTile(t *testing.T) {
	m := four(t, Signed, -2, 1, 0, 4)
	var b bytes.Buffer
	if err := m.WriteGeoJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Type     string
		Features []struct {
			Geometry   struct{ Coordinates [][][2]float64 }
			Properties struct {
				ObjectType   string
				Measurements map[string]float64
			}
		}
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil || got.Type != "FeatureCollection" || len(got.Features) != 4 {
		t.Fatal(err, b.String())
	}
	f := got.Features[1]
	if f.Properties.ObjectType != "tile" || f.Properties.Measurements["attention"] != 1 || f.Geometry.Coordinates[0][2] != [2]float64{200, 100} || f.Geometry.Coordinates[0][0] != f.Geometry.Coordinates[0][4] {
		t.Errorf("%+v", f)
	}
	b.Reset()
	if err := m.WriteCSV(&b); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil || len(rows) != 5 || !reflect.DeepEqual(rows[4], []string{"100", "100", "100", "4", "1"}) {
		t.Errorf("%v, %v", rows, err)
	}
}

func TestSheetShowsTheTiles(t *testing.T) {
	m := four(t, Rank, 0.1, 0.7, 0.2, 0)
	var asked []int
	sheet, err := m.Sheet(m.Highest(2), m.Lowest(1), 32, func(i int) (image.Image, error) {
		asked = append(asked, i)
		img := image.NewRGBA(image.Rect(0, 0, 7, 7))
		for at := range img.Pix {
			img.Pix[at] = byte(60 * i)
		}
		return img, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if c := sheet.RGBAAt(8+16, 24+16); c.R != 60 { // the first of the first block is tile 1
		t.Errorf("in the first place is %v", c)
	}
	if !reflect.DeepEqual(asked, []int{1, 2, 3}) {
		t.Errorf("asked for %v", asked)
	}
	fault := errors.New("gone")
	if _, err := m.Sheet(m.Highest(1), nil, 32, func(int) (image.Image, error) { return nil, fault }); !errors.Is(err, fault) {
		t.Errorf("a tile that cannot be read: %v", err)
	}
}

func TestValuesThatCannotBeShown(t *testing.T) {
	for says, values := range map[string][]float64{"at 100,0 is NaN": {1, math.NaN()}, "at 0,0 is +Inf": {math.Inf(1), 0}} {
		if _, err := New("x", []int64{0, 100}, []int64{0, 0}, 10, values, Rank); coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), says) {
			t.Errorf("%v", err)
		}
	}
	if _, err := New("x", nil, nil, 10, nil, Rank); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("no tiles: %v", err)
	}
	if _, err := New("x", []int64{0}, []int64{0}, 0, []float64{1}, Rank); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("no span: %v", err)
	}
}
