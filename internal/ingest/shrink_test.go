package ingest_test

import (
	"math"
	"testing"

	"coverslip"
	"coverslip/encoder"
	"coverslip/encoder/onnx"
	"coverslip/encoder/onnx/onnxtest"
	"coverslip/tiler"
	"coverslip/tiler/tissue"
)

// Tiles decoded at half size in the JPEG transform are what the encoder takes for those averaged from
// all pixels: the reason why the cheaper way may be the default.
func TestFeaturesOfTilesDecodedSmaller(t *testing.T) {
	onnxtest.Need(t)
	spec, file := encoder.Default()
	model := spec.Model()
	session, err := onnx.Open(file, spec, onnx.CPU)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	slide, err := tiler.Open(t.Context(), bundled)
	if err != nil {
		t.Fatal(err)
	}
	defer slide.Close()
	plan, _, err := slide.Plan(t.Context(), coverslip.PlanParams{MPP: 2 * slide.MPP.Value, Size: model.TileSize, MinTissue: 0.25}, tissue.Default())
	if err != nil || plan.Shrink != 2 || plan.Scale != 1 || len(plan.Tiles) < 10 {
		t.Fatalf("shrink %d, scale %g, %d tiles, %v", plan.Shrink, plan.Scale, len(plan.Tiles), err)
	}
	size := model.TileSize
	fast, exact, full := make([]byte, size*size*3), make([]byte, size*size*3), make([]byte, 4*size*size*3)
	a, b := make([]float32, model.Dim), make([]float32, model.Dim)
	var sum, least float64 = 0, 1
	for i, tile := range plan.Tiles {
		if err := slide.Tiles(plan).ReadTile(t.Context(), fast, i); err != nil {
			t.Fatal(err)
		}
		if err := slide.Region(t.Context(), full, 0, int(tile.X), int(tile.Y), 2*size, 2*size); err != nil {
			t.Fatal(err)
		}
		for o := range exact {
			at := (o/3/size*2*2*size+o/3%size*2)*3 + o%3
			below := at + 2*size*3
			exact[o] = byte((int(full[at]) + int(full[at+3]) + int(full[below]) + int(full[below+3]) + 2) / 4)
		}
		if err := session.Encode(t.Context(), a, fast, 1); err != nil {
			t.Fatal(err)
		}
		if err := session.Encode(t.Context(), b, exact, 1); err != nil {
			t.Fatal(err)
		}
		c := cosine(a, b)
		sum, least = sum+c, min(least, c)
	}
	mean := sum / float64(len(plan.Tiles))
	t.Logf("%d tiles: mean cosine %.5f, least %.5f", len(plan.Tiles), mean, least)
	if mean < 0.995 {
		t.Errorf("mean cosine %.5f, want 0.995", mean)
	}
}

func cosine(a, b []float32) float64 {
	var ab, aa, bb float64
	for i := range a {
		ab, aa, bb = ab+float64(a[i])*float64(b[i]), aa+float64(a[i])*float64(a[i]), bb+float64(b[i])*float64(b[i])
	}
	return ab / math.Sqrt(aa*bb)
}
