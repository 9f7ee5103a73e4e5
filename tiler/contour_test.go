package tiler

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	"coverslip"
	"coverslip/tiler/tissue"
)

func mask(rows ...string) *tissue.Mask {
	m := &tissue.Mask{Width: len(rows[0]), Height: len(rows)}
	for _, r := range rows {
		for _, c := range r {
			m.Tissue = append(m.Tissue, c == '#')
		}
	}
	return m
}

func TestOutlinesByHand(t *testing.T) {
	pixel := func(x, y float64) Polygon { // the middles of its edges
		return Polygon{{{x + 0.5, y}, {x + 1, y + 0.5}, {x + 0.5, y + 1}, {x, y + 0.5}, {x + 0.5, y}}}
	}
	for name, c := range map[string]struct {
		mask *tissue.Mask
		want []Polygon
	}{
		"Nothing":  {mask("..", ".."), nil},
		"OnePixel": {mask("...", ".#.", "..."), []Polygon{pixel(1, 1)}},
		"DiagonalTouchStaysApart": {mask(
			"#.",
			".#"), []Polygon{pixel(0, 0), pixel(1, 1)}},
		"TheOtherDiagonalToo": {mask(
			".#",
			"#."), []Polygon{pixel(1, 0), pixel(0, 1)}},
		"WholePictureReachesItsBorder": {mask(
			"###",
			"###"), []Polygon{{{{0.5, 0}, {2.5, 0}, {3, 0.5}, {3, 1.5}, {2.5, 2}, {0.5, 2}, {0, 1.5}, {0, 0.5}, {0.5, 0}}}}},
		"AHoleRunsTheOtherWay": {mask(
			"###",
			"#.#",
			"###"), []Polygon{{
			{{0.5, 0}, {2.5, 0}, {3, 0.5}, {3, 2.5}, {2.5, 3}, {0.5, 3}, {0, 2.5}, {0, 0.5}, {0.5, 0}},
			{{1.5, 2}, {2, 1.5}, {1.5, 1}, {1, 1.5}, {1.5, 2}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := outline(c.mask); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestHolesBelongToTheTissueAroundThem(t *testing.T) {
	// A ring with a piece in its hole that has two, and a piece with two holes beside each other, of
	// which one goes on across a corner.
	got := outline(mask(
		"###########..######",
		"#.........#..#.##.#",
		"#.#######.#..#.#..#",
		"#.#..#..#.#..#.##.#",
		"#.#######.#..##.###",
		"#.........#..######",
		"###########........",
	))
	var holes []int
	for _, p := range got {
		valid(t, p)
		holes = append(holes, len(p)-1)
	}
	if !reflect.DeepEqual(holes, []int{1, 2, 2}) {
		t.Errorf("holes of each piece: %v", holes)
	}
}

// valid checks what readers of GeoJSON demand of a polygon.
func valid(t *testing.T, p Polygon) {
	t.Helper()
	type edge struct{ a, b [2]float64 }
	var edges []edge
	for i, r := range p {
		if len(r) < 4 || r[0] != r[len(r)-1] {
			t.Fatalf("ring %d of %d points is not closed", i, len(r))
		}
		if (r.Area() > 0) != (i == 0) {
			t.Errorf("ring %d has area %g", i, r.Area())
		}
		for j := 1; j < len(r); j++ {
			edges = append(edges, edge{r[j-1], r[j]})
		}
	}
	side := func(a, b, c [2]float64) float64 { return (b[0]-a[0])*(c[1]-a[1]) - (b[1]-a[1])*(c[0]-a[0]) }
	for i, e := range edges {
		for _, f := range edges[:i] {
			if e.a == f.b || e.b == f.a {
				if e.a == f.b && e.b == f.a {
					t.Fatalf("%v goes there and back", e)
				}
				continue
			}
			apart := false
			for k := range 2 {
				apart = apart || max(e.a[k], e.b[k]) < min(f.a[k], f.b[k]) || max(f.a[k], f.b[k]) < min(e.a[k], e.b[k])
			}
			if !apart && side(e.a, e.b, f.a)*side(e.a, e.b, f.b) <= 0 && side(f.a, f.b, e.a)*side(f.a, f.b, e.b) <= 0 {
				t.Fatalf("%v and %v meet", e, f)
			}
		}
	}
}

// Noise has every way pixels can meet; the pieces of smooth noise are like tissue.
func TestOutlinesOfNoise(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, share := range []float64{0.2, 0.5, 0.6, 0.8} {
		for range 5 {
			m := &tissue.Mask{Width: 40, Height: 30, Tissue: make([]bool, 1200)}
			for i := range m.Tissue {
				m.Tissue[i] = rng.Float64() < share
			}
			matches(t, m, outline(m))
		}
	}
	for range 5 {
		m := &tissue.Mask{Width: 90, Height: 70, Tissue: make([]bool, 90*70)}
		for range 12 {
			cx, cy, r := rng.Float64()*90, rng.Float64()*70, 4+rng.Float64()*12
			set := rng.IntN(3) > 0
			for i := range m.Tissue {
				if math.Hypot(float64(i%90)-cx, float64(i/90)-cy) < r {
					m.Tissue[i] = set
				}
			}
		}
		matches(t, m, outline(m))
	}
}

// matches checks that the polygons are valid, that a pixel's middle lies in one of them if and only if
// the pixel is tissue, and that the areas are equal to a hundredth, but for the half pixel a ring.
func matches(t *testing.T, m *tissue.Mask, polygons []Polygon) {
	t.Helper()
	area, pixels := 0.0, 0
	for _, p := range polygons {
		valid(t, p)
		area += p.Area() + 0.5 - 0.5*float64(len(p)-1)
	}
	for i, is := range m.Tissue {
		x, y := float64(i%m.Width)+0.5, float64(i/m.Width)+0.5
		inside := 0
		for _, p := range polygons {
			for _, r := range p {
				for j := 1; j < len(r); j++ { // crossings of the ray to the left
					a, b := r[j-1], r[j]
					if (a[1] > y) != (b[1] > y) && a[0]+(y-a[1])/(b[1]-a[1])*(b[0]-a[0]) < x {
						inside++
					}
				}
			}
		}
		if is {
			pixels++
		}
		if (inside%2 == 1) != is {
			t.Fatalf("pixel %d,%d: tissue %t, crossings %d", i%m.Width, i/m.Width, is, inside)
		}
	}
	if math.Abs(area-float64(pixels)) > 0.01*float64(pixels) {
		t.Errorf("the polygons have an area of %.1f, the mask of %d", area, pixels)
	}
}

func TestContoursOfARealSection(t *testing.T) {
	s := mustOpen(t, shared(t, "tiff/crc-section.tif"))
	_, o, err := s.Plan(context.Background(), coverslip.PlanParams{MPP: 2, Size: 256, MinTissue: 0.25}, tissue.Default())
	if err != nil {
		t.Fatal(err)
	}
	polygons := s.Contours(o)
	area, points := 0.0, 0
	for _, p := range polygons {
		area += p.Area()
		for _, r := range p {
			points += len(r)
			for _, at := range r {
				if at[0] < 0 || at[1] < 0 || at[0] > float64(s.Width) || at[1] > float64(s.Height) {
					t.Fatalf("%v lies outside of %d × %d", at, s.Width, s.Height)
				}
			}
		}
	}
	want := o.Mask.Fraction() * float64(o.Mask.Width*o.Mask.Height) * o.Scale * o.Scale
	if len(polygons) < 3 || len(polygons) > 40 || math.Abs(area/want-1) > 0.005 {
		t.Errorf("%d polygons of area %.0f, the mask has %.0f", len(polygons), area, want)
	}
	var out bytes.Buffer
	if err := WriteGeoJSON(&out, polygons, s.MPP.Value); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d polygons, %d points, %d bytes", len(polygons), points, out.Len())
}

func TestGeoJSONIsReadBack(t *testing.T) {
	polygons := outline(mask(
		"####..",
		"#..#..",
		"####.#"))
	var out bytes.Buffer
	if err := WriteGeoJSON(&out, polygons, 0.5); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Type     string
		Features []struct {
			Type     string
			Geometry struct {
				Type        string
				Coordinates Polygon
			}
			Properties struct {
				ObjectType     string
				Classification struct {
					Name  string
					Color [3]uint8
				}
				IsLocked     *bool
				Measurements map[string]float64
			}
		}
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Type != "FeatureCollection" || len(got.Features) != 2 {
		t.Fatalf("%s", out.Bytes())
	}
	for i, f := range got.Features {
		if f.Type != "Feature" || f.Geometry.Type != "Polygon" || f.Properties.ObjectType != "annotation" ||
			f.Properties.Classification.Name != "Tissue" || f.Properties.IsLocked == nil || !reflect.DeepEqual(f.Geometry.Coordinates, polygons[i]) {
			t.Errorf("feature %d: %+v", i, f)
		}
		if want := math.Round(polygons[i].Area() / 4); f.Properties.Measurements["Area µm^2"] != want {
			t.Errorf("feature %d: measurements %v, want %g", i, f.Properties.Measurements, want)
		}
	}
	out.Reset()
	if err := WriteGeoJSON(&out, nil, 0); err != nil || out.String() != `{"type":"FeatureCollection","features":[]}`+"\n" {
		t.Errorf("without tissue: %v, %s", err, out.Bytes())
	}
}
