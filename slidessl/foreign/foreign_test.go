package foreign_test

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"coverslip"
	"coverslip/encoder/onnx"
	"coverslip/encoder/onnx/onnxtest"
	"coverslip/slidessl/foreign"
)

type bag struct {
	rows  [][]float32
	at    [][2]int64
	pitch float64
}

func (b bag) Len() int { return len(b.rows) }
func (b bag) Dim() int {
	if len(b.rows) == 0 {
		return 6
	}
	return len(b.rows[0])
}
func (b bag) Pitch() float64 { return b.pitch }
func (b bag) Features(dst []float32, from, n int) error {
	for i := range n {
		copy(dst[i*b.Dim():], b.rows[from+i])
	}
	return nil
}
func (b bag) Coords(dst []int64, from, n int) error {
	for i := range n {
		copy(dst[2*i:], b.at[from+i][:])
	}
	return nil
}

type sample struct {
	Features  [][]float32
	Coords    [][2]int64
	Pitch     float64
	Embedding []float32
}

func golden(t *testing.T) map[string]sample {
	t.Helper()
	raw, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]sample
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// spec is that of a file in testdata, with its hashes.
func spec(t *testing.T, name string) foreign.Spec {
	t.Helper()
	s := foreign.Spec{Name: name, Features: foreign.Features{Tensor: "features", Dim: 6, Batch: true}, Output: "embedding", Dim: 16}
	if name == "placed" {
		s.Dim = 6
		s.Coords = &foreign.Coords{Tensor: "coords", Type: foreign.Int64, Unit: foreign.Level0, Batch: true}
		s.Pitch = &foreign.Pitch{Tensor: "pitch", Type: foreign.Int64}
	}
	f, err := onnx.Inspect("testdata/" + name + ".onnx")
	if err != nil {
		t.Fatal(err)
	}
	s.SHA256, s.Data = f.SHA256, f.Data
	return s
}

func open(t *testing.T, s foreign.Spec) *foreign.Aggregator {
	t.Helper()
	onnxtest.Need(t)
	a, err := foreign.Open("testdata/"+s.Name+".onnx", s, onnx.CPU)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func far(a, b []float32) float64 {
	if len(a) != len(b) {
		return math.Inf(1)
	}
	var most float64
	for i := range a {
		most = max(most, math.Abs(float64(a[i]-b[i])))
	}
	return most
}

// TestEmbeddingsArePyTorchs runs networks exported by bench/reference/foreign.py: one with its weights in a file
// beside it, one that asks where tiles lie. The pitch is told by the bag, or found from its corners.
func TestEmbeddingsArePyTorchs(t *testing.T) {
	for name, want := range golden(t) {
		a := open(t, spec(t, name))
		for _, pitch := range []float64{want.Pitch, 0} {
			got, err := a.Embed(t.Context(), bag{want.Features, want.Coords, pitch})
			if err != nil {
				t.Fatal(name, err)
			}
			if d := far(got, want.Embedding); d > 1e-6 {
				t.Errorf("%s: %g off", name, d)
			}
		}
		var all sync.WaitGroup
		for range 8 { // concurrently, too
			all.Go(func() {
				if got, err := a.Embed(t.Context(), bag{want.Features, want.Coords, want.Pitch}); err != nil || far(got, want.Embedding) > 1e-6 {
					t.Error(name, err)
				}
			})
		}
		all.Wait()
	}
}

// TestCoordinatesInTilesAreThoseInPixels reads the same file with coordinates counted in tiles of 512.
func TestCoordinatesInTilesAreThoseInPixels(t *testing.T) {
	want := golden(t)["placed"]
	s := spec(t, "placed")
	s.Coords.Unit, s.Coords.Scale = foreign.Tiles, 512
	half := make([][2]int64, len(want.Coords)) // a slide whose level 0 is twice as coarse
	for i, c := range want.Coords {
		half[i] = [2]int64{c[0] / 2, c[1] / 2}
	}
	in, err := foreign.Inputs(s, bag{want.Features, half, want.Pitch / 2})
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range in[1].Ints {
		if v != want.Coords[i/2][i%2] {
			t.Fatalf("coordinate %d is %d, not %d", i, v, want.Coords[i/2][i%2])
		}
	}
}

func TestOfMoreTilesThanItTakesSomeAtEqualStepsAreRead(t *testing.T) {
	s := spec(t, "placed")
	s.MaxTiles = 3
	b := bag{pitch: 256}
	for i := range 10 {
		b.rows, b.at = append(b.rows, []float32{float32(i), 0, 0, 0, 0, 0}), append(b.at, [2]int64{int64(256 * i), 0})
	}
	in, err := foreign.Inputs(s, b)
	if err != nil {
		t.Fatal(err)
	}
	if f := in[0].Floats; len(f) != 18 || f[0] != 0 || f[6] != 3 || f[12] != 6 {
		t.Errorf("features %v", f)
	}
	if c := in[1].Ints; len(c) != 6 || c[0] != 0 || c[2] != 3*256 || c[4] != 6*256 || in[2].Ints[0] != 256 {
		t.Errorf("coordinates %v, pitch %v", c, in[2].Ints)
	}
}

func TestWhatCannotBeEmbeddedIsRefused(t *testing.T) {
	want := golden(t)["abmil"]
	a := open(t, spec(t, "abmil"))
	nan := [][]float32{want.Features[0], {float32(math.NaN()), 0, 0, 0, 0, 0}}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for says, try := range map[string]func() error{
		"the bag is empty":               func() error { _, err := a.Embed(t.Context(), bag{}); return err },
		"have 2 numbers, and it takes 6": func() error { _, err := a.Embed(t.Context(), bag{rows: [][]float32{{1, 2}}}); return err },
		"length NaN":                     func() error { _, err := a.Embed(t.Context(), bag{rows: nan}); return err },
		"context canceled":               func() error { _, err := a.Embed(canceled, bag{rows: want.Features}); return err },
		"its specification says 17 number": func() error {
			s := spec(t, "abmil")
			s.Dim = 17
			_, err := open(t, s).Embed(t.Context(), bag{rows: want.Features})
			return err
		},
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", says, err)
		}
	}
}

func TestAFileThatIsNotWhatItsSpecificationSaysIsNotOpened(t *testing.T) {
	onnxtest.Need(t)
	for says, change := range map[string]func(*foreign.Spec){
		"has SHA-256":         func(s *foreign.Spec) { s.SHA256 = strings.Repeat("0", 64) },
		"lists 0":             func(s *foreign.Spec) { s.Data = nil },
		"features float32":    func(s *foreign.Spec) { s.Features.Dim = 7 },
		"tiles float32":       func(s *foreign.Spec) { s.Features.Tensor = "tiles" },
		"and coords int64":    func(s *foreign.Spec) { s.Coords = &foreign.Coords{Tensor: "coords", Type: foreign.Int64} },
		"asks for logits of ": func(s *foreign.Spec) { s.Output = "logits" },
	} {
		s := spec(t, "abmil")
		change(&s)
		if a, err := foreign.Open("testdata/abmil.onnx", s, onnx.CPU); err == nil || !strings.Contains(err.Error(), says) || coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("%q: %v %v", says, a, err)
		}
	}
	cut := filepath.Join(t.TempDir(), "abmil.onnx")
	raw, err := os.ReadFile("testdata/abmil.onnx")
	if err != nil {
		t.Fatal(err)
	}
	for says, bytes := range map[string][]byte{"": raw[:len(raw)/2], "pickle": []byte("\x80\x04\x95")} {
		if err := os.WriteFile(cut, bytes, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := foreign.Open(cut, spec(t, "abmil"), onnx.CPU); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", says, err)
		}
	}
}

func TestSpecificationsAreChecked(t *testing.T) {
	const good = "name: mine\nfeatures: {tensor: x, dim: 8}\noutput: y\ndim: 4\n"
	s, err := foreign.ParseSpec([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	again, err := foreign.ParseSpec(s.YAML())
	if err != nil || again.Model().SpecSHA256 != s.Model().SpecSHA256 {
		t.Errorf("%v %v", again, err)
	}
	other := s
	other.MaxTiles = 5
	if other.Model().SpecSHA256 == s.Model().SpecSHA256 {
		t.Error("another number of tiles is the same model")
	}
	for says, text := range map[string]string{
		"empty":           "",
		"second document": good + "---\nname: x\n",
		"field tap":       good + "tap: 3\n",
		"features.dim":    strings.Replace(good, "dim: 8", "dim: 0", 1),
		"output":          strings.Replace(good, "output: y\n", "", 1),
		"name":            strings.Replace(good, "mine", "../mine", 1),
		"coords.unit":     good + "coords: {tensor: c, type: int64, unit: miles}\n",
		"coords.type":     good + "coords: {tensor: c, type: int8, unit: tiles}\n",
		"coords.scale":    good + "coords: {tensor: c, type: int64, unit: tiles, scale: .nan}\n",
		"pitch.tensor":    good + "pitch: {type: int64}\n",
		"data":            good + "data: {../w: abc}\n",
		"max_tiles":       good + "max_tiles: -1\n",
	} {
		if _, err := foreign.ParseSpec([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", says, err)
		}
	}
	if len(foreign.ShippedSpecs()) < 6 {
		t.Error("specifications that ship")
	}
	titan, ok := foreign.Shipped("titan")
	if !ok || titan.Takes("conch-v1.5") != nil || titan.Takes("uni") == nil || titan.Takes("conch-v1.5:other") == nil {
		t.Errorf("titan: %v %v", ok, titan)
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, s := range foreign.ShippedSpecs() {
		f.Add(s.YAML())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := foreign.ParseSpec(raw)
		if err != nil {
			return
		}
		again, err := foreign.ParseSpec(s.YAML())
		if err != nil || again.Model().SpecSHA256 != s.Model().SpecSHA256 {
			t.Errorf("%q: %v", s.YAML(), err)
		}
	})
}
