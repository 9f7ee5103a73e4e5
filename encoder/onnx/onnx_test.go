package onnx_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	_ "image/png" // golden tiles
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"coverslip"
	"coverslip/encoder"
	"coverslip/encoder/onnx"
	"coverslip/encoder/onnx/onnxtest"
)

// The shipped encoder, each of its taps, against PyTorch on six made and two real tiles;
// encoder/weights/export.py writes both sides.
func TestDefaultEqualsPyTorch(t *testing.T) {
	pixels := goldenTiles(t)
	for tap, golden := range map[string]string{"pooled": "golden.f32", "stage3": "golden-stage3.f32", "stage5": "golden-stage5.f32", "stage7": "golden-stage7.f32"} {
		s := openDefault(t, tap)
		got := encode(t, s, pixels, 8)
		worst, largest := worstDifference(t, got, golden)
		t.Logf("%s: largest difference %.2g, largest feature %.2g", tap, worst, largest)
		if worst > 1e-4 {
			t.Errorf("%s: features differ from PyTorch's by up to %g", tap, worst)
		}
		if largest < 1 {
			t.Errorf("%s: no golden feature reaches 1: nothing was compared", tap)
		}
	}
}

// The int8 variant is near the float32 one; docs/ENCODERS.md has what was measured on more tiles.
func TestInt8IsNearFloat32(t *testing.T) {
	spec, _ := encoder.Shipped("efficientnet-lite0-int8")
	file := encoder.Weights(spec.Name)
	if len(file) > 6<<20 {
		t.Errorf("the file has %d bytes", len(file))
	}
	pixels := goldenTiles(t)[6*224*224*3:] // the two real ones
	want, got := encode(t, openDefault(t), pixels, 2), encode(t, open(t, file, spec), pixels, 2)
	for i := range 2 {
		if c := cosine(got[i*1280:][:1280], want[i*1280:][:1280]); c < 0.99 {
			t.Errorf("tile %d: cosine %.4f", i, c)
		}
	}
}

func TestTapsFollowEachOther(t *testing.T) {
	pixels := goldenTiles(t)
	var want []float32
	one := map[string][]float32{}
	for _, tap := range []string{"stage5", "pooled", "stage3"} {
		one[tap] = encode(t, openDefault(t, tap), pixels, 8)
	}
	for i := range 8 {
		want = append(want, one["stage5"][i*112:][:112]...)
		want = append(want, one["pooled"][i*1280:][:1280]...)
		want = append(want, one["stage3"][i*40:][:40]...)
	}
	s := openDefault(t, "stage5", "pooled", "stage3")
	if got := encode(t, s, pixels, 8); !slices.Equal(got, want) {
		t.Error("three taps in one run give other bits than three runs")
	}
	m := s.Model()
	if m.Name != "efficientnet-lite0:stage5+pooled+stage3" || m.Dim != 1432 || len(m.Taps) != 3 || m.Taps[1] != (coverslip.Tap{Name: "pooled", Dim: 1280}) {
		t.Errorf("the model is %+v", m)
	}
	if d := openDefault(t).Model(); d.SpecSHA256 == m.SpecSHA256 || d.SHA256 != m.SHA256 {
		t.Errorf("the hashes do not tell taps apart: %+v, %+v", d, m)
	}
}

// One tile by itself or among 64, one worker or sixteen: the same bits, of every file that ships.
func TestFault30BatchesAndWorkersDoNotChangeFeatures(t *testing.T) {
	pixels := goldenTiles(t)
	const tile = 224 * 224 * 3
	var many []uint8
	for i := range 64 {
		many = append(many, pixels[(i*5%8)*tile:][:tile]...)
	}
	for _, name := range []string{"efficientnet-lite0", "efficientnet-lite0-int8"} {
		spec, _ := encoder.Shipped(name)
		spec, err := spec.Use("pooled", "stage3")
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, encoder.Weights(name), spec)
		whole := encode(t, s, many, 64)
		for i := range 8 {
			if alone := encode(t, s, many[i*tile:][:tile], 1); !slices.Equal(alone, whole[i*s.Model().Dim:][:s.Model().Dim]) {
				t.Errorf("%s: tile %d has other bits alone than among 64", name, i)
			}
		}
		src := tiles{pixels: many, size: 224}
		if !slices.Equal(run(t, s, src, 64, 1), whole) || !slices.Equal(run(t, s, src, 64, 16), whole) {
			t.Errorf("%s: 1 or 16 workers give other bits than one batch of 64", name)
		}
	}
}

func worstDifference(t *testing.T, got []float32, golden string) (worst, largest float64) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", golden))
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) != 4*len(got) {
		t.Fatalf("%s has %d features, not %d", golden, len(raw)/4, len(got))
	}
	for i, v := range got {
		want := float64(math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:])))
		worst = max(worst, math.Abs(float64(v)-want))
		largest = max(largest, want)
	}
	return worst, largest
}

func cosine(a, b []float32) float64 {
	var ab, aa, bb float64
	for i := range a {
		x, y := float64(a[i]), float64(b[i])
		ab, aa, bb = ab+x*y, aa+x*x, bb+y*y
	}
	return ab / math.Sqrt(aa*bb)
}

func TestBatchSizeDoesNotChangeFeatures(t *testing.T) {
	s := openDefault(t)
	pixels := goldenTiles(t)
	tile := len(pixels) / 8
	whole := encode(t, s, pixels, 8)
	for _, size := range []int{1, 3} { // 3 leaves a tail of 2
		var parts []float32
		for first := 0; first < 8; first += size {
			n := min(size, 8-first)
			parts = append(parts, encode(t, s, pixels[first*tile:(first+n)*tile], n)...)
		}
		if !slices.Equal(whole, parts) {
			t.Errorf("batches of %d give other bits than one of 8", size)
		}
	}
}

func TestChangedFileRefusedBeforeLoading(t *testing.T) {
	spec, file := encoder.Default()
	// No library is needed to say so: its place is a file that is none.
	t.Setenv(onnx.LibraryVariable, "/dev/null")
	for name, file := range map[string][]byte{"cut": file[:len(file)/2], "longer": append(slices.Clone(file), 0), "empty": nil} {
		_, err := onnx.Open(file, spec, onnx.CPU)
		refused(t, name, err, coverslip.Invalid, "SHA-256")
	}
}

func TestBrokenModelRefused(t *testing.T) {
	onnxtest.Need(t)
	m := colour(16)
	for name, c := range map[string]struct {
		file   []byte
		change func(*encoder.Spec)
		says   string
	}{
		"cut":        {file: m.File()[:len(m.File())-20]},
		"text":       {file: []byte("<html>404 not found</html>"), says: "no whole ONNX file"},
		"empty":      {file: []byte{}},
		"other size": {file: m.File(), change: func(s *encoder.Spec) { s.Input.Size = 32 }, says: "has input pixels uint8 [N 16 16 3]; its specification asks for pixels uint8 [N 32 32 3]"},
		"other dim":  {file: m.File(), change: func(s *encoder.Spec) { s.Taps[0].Dim = 5 }, says: "has output features float32 [N 4]; tap features asks for features float32 [N 5]"},
	} {
		spec := m.Spec()
		spec.SHA256 = sha(c.file)
		if c.change != nil {
			c.change(&spec)
		}
		_, err := onnx.Open(c.file, spec, onnx.CPU)
		refused(t, name, err, coverslip.Invalid, c.says)
	}
}

func TestTinyModelGivesMeanColour(t *testing.T) {
	s := openColour(t, colour(16))
	pixels := make([]uint8, 2*16*16*3)
	for i := range pixels {
		pixels[i] = [3]uint8{10, 20, 40}[i%3]
	}
	got := encode(t, s, pixels, 2)
	if want := []float32{10, 20, 40, 70, 10, 20, 40, 70}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestNotFiniteNamesRow(t *testing.T) {
	inf := float32(math.Inf(1))
	m := colour(16)
	m.Weights[0][1] = inf // Inf where there is red, NaN (0·Inf) where there is none
	s := openColour(t, m)
	pixels := make([]uint8, 4*16*16*3)
	for name, c := range map[string]struct {
		red  uint8
		says string
	}{"NaN": {0, "NaN"}, "infinity": {1, "Inf"}} {
		for i := range pixels {
			pixels[i] = c.red
		}
		err := s.Encode(context.Background(), make([]float32, 4*4), pixels, 4)
		var row *encoder.RowError
		if !errors.As(err, &row) || row.Row != 0 {
			t.Errorf("%s: no row 0 in %v", name, err)
		}
		refused(t, name, err, coverslip.Invalid, c.says)
	}
	// One bad tile among good ones: the pipeline names it by its place in the plan. Only feature 1
	// of tile 13 overflows.
	m = colour(16)
	m.Weights[0][1] = 3e36
	s = openColour(t, m)
	bad := make([]uint8, 32*16*16*3)
	for i := range 16 * 16 {
		bad[13*16*16*3+i*3] = 255
	}
	_, err := encoder.Run(context.Background(), s, tiles{pixels: bad, size: 16}, 32, 2,
		func(int, []float32) error { return nil }, nil)
	refused(t, "tile 13", err, coverslip.Invalid, "encode tile 13: ")
}

func TestCancelEndsBatch(t *testing.T) {
	s := openDefault(t)
	spec := s.Model()
	const n = 32
	pixels, dst := make([]uint8, n*spec.TileSize*spec.TileSize*3), make([]float32, n*spec.Dim)
	began := time.Now()
	if err := s.Encode(context.Background(), dst, pixels, n); err != nil {
		t.Fatal(err)
	}
	whole := time.Since(began)
	ctx, cancel := context.WithTimeout(context.Background(), whole/20)
	defer cancel()
	began = time.Now()
	err := s.Encode(ctx, dst, pixels, n)
	if coverslip.KindOf(err) != coverslip.Canceled || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want a cancelled run", err)
	}
	t.Logf("ended after %v, the whole takes %v", time.Since(began), whole)
	if err := s.Encode(context.Background(), dst, pixels, n); err != nil {
		t.Errorf("the session is of no use after a cancelled run: %v", err)
	}
}

func TestEncodeAfterCloseFails(t *testing.T) {
	s := openColour(t, colour(16))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			pixels, dst := make([]uint8, 16*16*3), make([]float32, 4)
			var err error
			for err == nil { // until closed
				err = s.Encode(context.Background(), dst, pixels, 1)
			}
		})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	err := s.Encode(context.Background(), make([]float32, 4), make([]uint8, 16*16*3), 1)
	refused(t, "closed", err, coverslip.Internal, "closed")
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestWrongLengthsPanic(t *testing.T) {
	s := openColour(t, colour(16))
	defer func() {
		if recover() == nil {
			t.Error("pixels of one tile were taken for two")
		}
	}()
	_ = s.Encode(context.Background(), make([]float32, 8), make([]uint8, 16*16*3), 2)
}

// --- what the tests stand on ---

func openDefault(t *testing.T, taps ...string) *onnx.Session {
	t.Helper()
	spec, file := encoder.Default()
	spec, err := spec.Use(taps...)
	if err != nil {
		t.Fatal(err)
	}
	return open(t, file, spec)
}

func openColour(t *testing.T, m onnxtest.Model) *onnx.Session {
	t.Helper()
	return open(t, m.File(), m.Spec())
}

func open(t *testing.T, file []byte, spec encoder.Spec) *onnx.Session {
	t.Helper()
	onnxtest.Need(t)
	s, err := onnx.Open(file, spec, onnx.CPU)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// colour is a model whose features are mean red, green, blue and their sum.
func colour(size int) onnxtest.Model {
	return onnxtest.Model{Size: size, Weights: [3][]float32{{1, 0, 0, 1}, {0, 1, 0, 1}, {0, 0, 1, 1}}}
}

func encode(t *testing.T, e encoder.Encoder, pixels []uint8, n int) []float32 {
	t.Helper()
	dst := make([]float32, n*e.Model().Dim)
	if err := e.Encode(context.Background(), dst, pixels, n); err != nil {
		t.Fatal(err)
	}
	return dst
}

func run(t *testing.T, e encoder.Encoder, src encoder.TileReader, n, workers int) []float32 {
	t.Helper()
	var all []float32
	_, err := encoder.Run(context.Background(), e, src, n, workers, func(_ int, features []float32) error {
		all = append(all, features...)
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// tiles reads tile i of pixels, over and over.
type tiles struct {
	pixels []uint8
	size   int
}

func (s tiles) ReadTile(_ context.Context, dst []uint8, i int) error {
	n := len(dst)
	copy(dst, s.pixels[i*n%len(s.pixels):])
	return nil
}

func sha(file []byte) string {
	sum := sha256.Sum256(file)
	return hex.EncodeToString(sum[:])
}

func refused(t *testing.T, name string, err error, kind coverslip.Kind, says string) {
	t.Helper()
	if coverslip.KindOf(err) != kind || !strings.Contains(fmt.Sprint(err), says) {
		t.Errorf("%s: got %v (%s), want %s with %q", name, err, coverslip.KindOf(err), kind, says)
	}
}

// goldenTiles are the tiles of export.py: six from its formula, two from the slide.
func goldenTiles(t *testing.T) []uint8 {
	t.Helper()
	const size, made = 224, 6
	var pixels []uint8
	for i := range made {
		for y := range size {
			for x := range size {
				for c := range 3 {
					noise := int(uint32(x*374761393+y*668265263+c*2147483647+i*1274126177) >> 16)
					pixels = append(pixels, uint8((i+1)*(x+2*y)/3+60*c+noise%(1+16*i)))
				}
			}
		}
	}
	for i := range 2 {
		f, err := os.Open(fmt.Sprintf("testdata/golden-%d.png", i))
		if err != nil {
			t.Fatal(err)
		}
		img, _, err := image.Decode(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		for y := range size {
			for x := range size {
				r, g, b, _ := img.At(x, y).RGBA()
				pixels = append(pixels, uint8(r>>8), uint8(g>>8), uint8(b>>8))
			}
		}
	}
	return pixels
}
