package tiler

import (
	"bytes"
	"context"
	"math"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"coverslip"
	"coverslip/tiler/tissue"
	"coverslip/tiler/vips"
)

func mustPlan(t testing.TB, s *Slide, p coverslip.PlanParams) coverslip.Plan {
	t.Helper()
	plan, _, err := s.Plan(context.Background(), p, tissue.Default())
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// About 1,050 of the section's tiles are at least a quarter tissue, by an Otsu threshold made
// elsewhere; the bounds are what a person would accept.
func TestPlanOfARealSection(t *testing.T) {
	s := mustOpen(t, shared(t, "tiff/crc-section.tif"))
	params := coverslip.PlanParams{MPP: 0.5, Size: 256, MinTissue: 0.25}
	plan := mustPlan(t, s, params)
	if n := len(plan.Tiles); n < 950 || n > 1300 {
		t.Errorf("%d tiles", n)
	}
	want := coverslip.Plan{PlanParams: params, SlideMPP: s.MPP, Level: 0, Shrink: 1, Scale: 1, Step: 256, Span: 256, Columns: 43, Rows: 67, Found: len(plan.Tiles), Tiles: plan.Tiles}
	if !reflect.DeepEqual(plan, want) {
		plan.Tiles, want.Tiles = nil, nil
		t.Errorf("got %+v, want %+v", plan, want)
	}
	last := coverslip.Tile{X: -1}
	for _, tile := range plan.Tiles {
		if tile.Y < last.Y || tile.Y == last.Y && tile.X <= last.X {
			t.Fatalf("%+v follows %+v", tile, last)
		}
		if tile.X%256 != 0 || tile.Y%256 != 0 || tile.Tissue < 0.25 || tile.Tissue > 1 {
			t.Fatalf("tile %+v", tile)
		}
		last = tile
	}
	if again := mustPlan(t, mustOpen(t, s.Path), params); !reflect.DeepEqual(again, plan) {
		t.Error("a second plan differs")
	}
	params.MinTissue = 0.6
	if fewer := mustPlan(t, s, params); len(fewer.Tiles) == 0 || len(fewer.Tiles) >= len(plan.Tiles) {
		t.Errorf("%d tiles with at least 0.6 of tissue, %d with 0.25", len(fewer.Tiles), len(plan.Tiles))
	}
}

func TestPlansAreMadeSideBySide(t *testing.T) {
	s := mustOpen(t, cmu)
	params := coverslip.PlanParams{MPP: 0.5, Size: 224}
	want := mustPlan(t, s, params)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if plan, _, err := s.Plan(context.Background(), params, tissue.Default()); err != nil || !reflect.DeepEqual(plan, want) {
				t.Errorf("another plan, or %v", err)
			}
		})
	}
	wg.Wait()
}

func TestPlanChoosesTheLevel(t *testing.T) {
	s := mustOpen(t, shared(t, "tiff/crc-section.tif")) // 0.5 µm per pixel; each level half of the one before
	for _, c := range []struct {
		mpp   float64
		level int
		scale float64
	}{
		{0.5, 0, 1}, {0.25, 0, 0.5}, {0.495, 0, 1}, {0.505, 0, 1}, {0.52, 0, 1.04}, {0.75, 0, 1.5}, {0.97, 0, 1.94},
		{0.99, 1, 1}, {1, 1, 1}, {1.01, 1, 1}, {1.5, 1, 1.5}, {2, 2, 1}, {3.999, 3, 1}, {8, 4, 1}, {20, 5, 1.25},
	} {
		plan := mustPlan(t, s, coverslip.PlanParams{MPP: c.mpp, Size: 128, MinTissue: 0.25})
		down := s.Levels[c.level].Downsample
		if plan.Level != c.level || math.Abs(plan.Scale-c.scale) > 1e-9 || math.Abs(plan.Span-128*c.scale*down) > 1e-6 {
			t.Errorf("%g µm per pixel: level %d, scale %g, span %g; want level %d, scale %g", c.mpp, plan.Level, plan.Scale, plan.Span, c.level, c.scale)
		}
	}
}

func TestPlanEnlargesNoMoreThanTwice(t *testing.T) {
	s := mustOpen(t, cmu) // 0.499 µm per pixel
	plan := mustPlan(t, s, coverslip.PlanParams{MPP: 0.25, Size: 256})
	if plan.Level != 0 || plan.Scale >= 1 {
		t.Errorf("%+v", plan)
	}
	_, _, err := s.Plan(context.Background(), coverslip.PlanParams{MPP: 0.249, Size: 256}, tissue.Default())
	refused(t, err, coverslip.Unsupported, cmu)
}

func TestPlanOverlap(t *testing.T) {
	s := mustOpen(t, cmu)
	for _, c := range []struct {
		mpp           float64
		size, overlap int
	}{{0.5, 256, 0}, {0.5, 256, 64}, {0.5, 256, 255 - 64}, {0.7, 224, 32}, {0.3, 128, 64}, {4, 512, 0}, {12, 512, 100}} {
		plan := mustPlan(t, s, coverslip.PlanParams{MPP: c.mpp, Size: c.size, Overlap: c.overlap})
		unit := plan.Scale * float64(plan.Shrink) * s.Levels[plan.Level].Downsample // level-0 pixels per tile pixel
		if math.Abs(plan.Step-float64(c.size-c.overlap)*unit) > 1e-9 || math.Abs(plan.Span-float64(c.size)*unit) > 1e-9 {
			t.Errorf("%+v: step %g, span %g", c, plan.Step, plan.Span)
		}
		if len(plan.Tiles) != plan.Columns*plan.Rows {
			t.Fatalf("%+v: %d tiles in %d × %d places, though none is too poor", c, len(plan.Tiles), plan.Columns, plan.Rows)
		}
		for i, tile := range plan.Tiles {
			x, y := float64(i%plan.Columns)*plan.Step, float64(i/plan.Columns)*plan.Step
			if math.Abs(float64(tile.X)-x) > 0.5 || math.Abs(float64(tile.Y)-y) > 0.5 {
				t.Fatalf("%+v: tile %d is at %d,%d, want %g,%g", c, i, tile.X, tile.Y, x, y)
			}
		}
		// The grid reaches the far edges, and no column or row shows only what another shows already.
		for _, edge := range []struct{ n, length int }{{plan.Columns, s.Width}, {plan.Rows, s.Height}} {
			reach := float64(edge.n-1)*plan.Step + plan.Span
			if reach < float64(edge.length)-1e-6 || edge.n > 1 && reach-plan.Step >= float64(edge.length) {
				t.Errorf("%+v: %d tiles reach %g of %d pixels", c, edge.n, reach, edge.length)
			}
		}
	}
}

func TestTilesAreRegionsOfTheSlide(t *testing.T) {
	s := mustOpen(t, cmu)
	plan := mustPlan(t, s, coverslip.PlanParams{MPP: 0.5, Size: 200, MinTissue: 0.5})
	tiles := s.Tiles(plan)
	if tiles.Len() != len(plan.Tiles) || tiles.Len() < 10 {
		t.Fatalf("%d tiles", tiles.Len())
	}
	got := make([]byte, 200*200*3)
	for i, tile := range plan.Tiles {
		if err := tiles.ReadTile(context.Background(), got, i); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, region(t, s, 0, int(tile.X), int(tile.Y), 200, 200)) {
			t.Fatalf("the tile at %d,%d is not what lies there", tile.X, tile.Y)
		}
	}
}

func TestResampledTilesAreMeansOfWhatTheyCover(t *testing.T) {
	s := mustOpen(t, cmu)
	const size = 100
	for _, c := range []struct {
		scale  float64
		shrink int
		least  float64 // dB; the mean is rounded to bytes, and taken in the transform where that goes
	}{{1.5, 1, 55}, {3, 1, 55}, {2, 2, 45}} {
		plan := mustPlan(t, s, coverslip.PlanParams{MPP: c.scale * 0.499, Size: size, MinTissue: 0.5})
		if math.Abs(plan.Scale*float64(plan.Shrink)-c.scale) > 1e-9 || plan.Shrink != c.shrink {
			t.Fatalf("shrink %d, scale %g", plan.Shrink, plan.Scale)
		}
		got, want := make([]byte, size*size*3), make([]byte, size*size*3)
		edge := int(c.scale * size)
		for i, tile := range plan.Tiles[:min(6, len(plan.Tiles))] {
			if err := s.Tiles(plan).ReadTile(context.Background(), got, i); err != nil {
				t.Fatal(err)
			}
			src := region(t, s, 0, int(tile.X), int(tile.Y), edge, edge)
			for o := range want {
				want[o] = byte(areaOf(src, edge, edge, o%3, float64(o/3%size)*c.scale, float64(o/3/size)*c.scale, c.scale) + 0.5)
			}
			if got := psnr(got, want); got < c.least {
				t.Errorf("scale %g: the tile at %d,%d is %.1f dB from the means, want %g", c.scale, tile.X, tile.Y, got, c.least)
			}
		}
	}
}

func TestEdgeTilesAreWhiteOutside(t *testing.T) {
	s := mustOpen(t, cmu)
	for _, mpp := range []float64{0.499, 0.75, 0.3} {
		plan := mustPlan(t, s, coverslip.PlanParams{MPP: mpp, Size: 256})
		last := len(plan.Tiles) - 1 // the lower right corner
		tile := plan.Tiles[last]
		got := make([]byte, 256*256*3)
		if err := s.Tiles(plan).ReadTile(context.Background(), got, last); err != nil {
			t.Fatal(err)
		}
		// tile pixels that are wholly outside, and one that is wholly inside
		unit := plan.Scale * float64(plan.Shrink)
		right, below := (float64(s.Width)-float64(tile.X))/unit, (float64(s.Height)-float64(tile.Y))/unit
		if right >= 255 || below >= 255 {
			t.Fatalf("%g µm per pixel: the last tile, at %d,%d, does not reach over the edge", mpp, tile.X, tile.Y)
		}
		for i := range 256 * 256 {
			if x, y := float64(i%256), float64(i/256); (x >= right+1 || y >= below+1) && !bytes.Equal(got[3*i:3*i+3], []byte{255, 255, 255}) {
				t.Fatalf("%g µm per pixel: pixel %g,%g is outside the slide and %v", mpp, x, y, got[3*i:3*i+3])
			}
		}
		if bytes.Equal(got[:3*64], bytes.Repeat([]byte{255}, 3*64)) {
			t.Errorf("%g µm per pixel: the inside is white too", mpp)
		}
	}
}

func TestPlanNeedsAResolution(t *testing.T) {
	for name, says := range map[string]string{
		"svs/TCGA-CR-7395-01A-01-TS1.svs": "does not say",
		"tiff/boxes.tiff":                 "352.8 µm per pixel",
		"tiff/kidney-48-5.tif":            "does not say",
	} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			s := mustOpen(t, shared(t, name))
			params := coverslip.PlanParams{MPP: 0.5, Size: 64}
			_, _, err := s.Plan(context.Background(), params, tissue.Default())
			refused(t, err, coverslip.NeedsMPP, s.Path)
			if err != nil && (!strings.Contains(err.Error(), says) || !strings.Contains(coverslip.HintOf(err), "--mpp-of-slide")) {
				t.Errorf("%v does not say %q and --mpp-of-slide", err, says)
			}
			params.MPPOfSlide = 0.5
			if plan := mustPlan(t, s, params); plan.SlideMPP != (coverslip.MPP{Value: 0.5, Source: coverslip.MPPUser}) || plan.Scale != 1 {
				t.Errorf("planned with %+v at scale %g", plan.SlideMPP, plan.Scale)
			}
		})
	}
}

func TestTheUsersResolutionCountsMoreThanTheFiles(t *testing.T) {
	s := mustOpen(t, cmu)
	plan := mustPlan(t, s, coverslip.PlanParams{MPP: 0.5, Size: 256, MPPOfSlide: 0.25})
	if plan.Scale*float64(plan.Shrink) != 2 || plan.SlideMPP.Source != coverslip.MPPUser || s.MPP.Value != 0.499 {
		t.Errorf("scale %g times %d with %+v; the slide says %+v", plan.Scale, plan.Shrink, plan.SlideMPP, s.MPP)
	}
}

func TestPlanRefusesWrongParameters(t *testing.T) {
	s := mustOpen(t, cmu)
	good := coverslip.PlanParams{MPP: 0.5, Size: 256}
	for name, change := range map[string]func(*coverslip.PlanParams){
		"NoMPP":              func(p *coverslip.PlanParams) { p.MPP = 0 },
		"NaN":                func(p *coverslip.PlanParams) { p.MPP = math.NaN() },
		"NegativeMPP":        func(p *coverslip.PlanParams) { p.MPP = -0.5 },
		"NoSize":             func(p *coverslip.PlanParams) { p.Size = 0 },
		"HugeSize":           func(p *coverslip.PlanParams) { p.Size = 1 << 20 },
		"OverlapIsTheTile":   func(p *coverslip.PlanParams) { p.Overlap = 256 },
		"NegativeOverlap":    func(p *coverslip.PlanParams) { p.Overlap = -1 },
		"TissueOverOne":      func(p *coverslip.PlanParams) { p.MinTissue = 1.5 },
		"TissueNaN":          func(p *coverslip.PlanParams) { p.MinTissue = math.NaN() },
		"SlideMPPOfNoSlide":  func(p *coverslip.PlanParams) { p.MPPOfSlide = 353 },
		"SlideMPPIsNegative": func(p *coverslip.PlanParams) { p.MPPOfSlide = -1 },
	} {
		p := good
		change(&p)
		if plan, _, err := s.Plan(context.Background(), p, tissue.Default()); coverslip.KindOf(err) != coverslip.Invalid || !strings.HasPrefix(err.Error(), cmu) {
			t.Errorf("%s: %d tiles, %v", name, len(plan.Tiles), err)
		}
	}
}

func TestPlanOfTooManyTilesIsRefused(t *testing.T) {
	s := mustOpen(t, shared(t, "tiff/crc-section.tif"))
	_, _, err := s.Plan(context.Background(), coverslip.PlanParams{MPP: 0.5, Size: 16, Overlap: 15}, tissue.Default())
	refused(t, err, coverslip.TooLarge, s.Path)
}

// Fault 9: a slide of glass alone.
func TestFault9PlanWithoutTissueIsEmpty(t *testing.T) {
	path := filepath.Join(t.TempDir(), "glass.tif")
	const w, h = 1500, 1100
	if err := vips.SaveTIFF(path, bytes.Repeat([]byte{244, 243, 245}, w*h), w, h, 0.5); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, path)
	if math.Abs(s.MPP.Value-0.5) > 1e-3 {
		t.Errorf("%+v", s.MPP)
	}
	plan, overview, err := s.Plan(context.Background(), coverslip.PlanParams{MPP: 0.5, Size: 256, MinTissue: 0.1}, tissue.Default())
	if err != nil || len(plan.Tiles) != 0 || overview.Mask.Fraction() != 0 {
		t.Errorf("%d tiles, %v", len(plan.Tiles), err)
	}
}

// A slide without a pyramid, or with gaps in it, is decoded smaller instead.
func TestPlanShrinksWhereThereIsNoLevel(t *testing.T) {
	s := mustOpen(t, cmu) // 0.499 µm per pixel, one level, JPEG
	for _, c := range []struct {
		mpp    float64
		shrink int
		scale  float64
	}{{0.5, 1, 1}, {0.9, 1, 0.9 / 0.499}, {1, 2, 1}, {1.5, 1, 1.5 / 0.499}, {2, 4, 1}, {4, 8, 1}, {8, 1, 8 / 0.499}} {
		plan := mustPlan(t, s, coverslip.PlanParams{MPP: c.mpp, Size: 64, MinTissue: 0.25})
		if plan.Level != 0 || plan.Shrink != c.shrink || math.Abs(plan.Scale-c.scale) > 1e-9 {
			t.Errorf("%g µm per pixel: level %d, shrink %d, scale %g; want shrink %d, scale %g", c.mpp, plan.Level, plan.Shrink, plan.Scale, c.shrink, c.scale)
		}
		if len(plan.Tiles) == 0 {
			t.Errorf("%g µm per pixel: no tiles", c.mpp)
			continue
		}
		if err := s.Tiles(plan).ReadTile(context.Background(), make([]byte, 64*64*3), len(plan.Tiles)-1); err != nil {
			t.Error(err)
		}
	}
}
