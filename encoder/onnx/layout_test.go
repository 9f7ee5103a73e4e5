package onnx_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"coverslip"
	"coverslip/encoder"
	"coverslip/encoder/onnx"
	"coverslip/encoder/onnx/onnxtest"
)

// Each layout and each pooling against the formula, for three tiles of random pixels: the value a
// graph sees is (v/255 - mean) / std, or v itself.
func TestLayoutsAndPoolingsFollowTheFormula(t *testing.T) {
	const size, n = 6, 3
	rng := rand.New(rand.NewPCG(1, 2))
	pixels := make([]uint8, n*size*size*3)
	for i := range pixels {
		pixels[i] = uint8(rng.UintN(256))
	}
	for _, layout := range []encoder.Layout{encoder.NHWCUint8, encoder.NHWCFloat32, encoder.NCHWFloat32} {
		m := colour(size)
		m.Layout = layout
		spec, err := m.Spec().Use("both", "features", "class", "map", "mean")
		if err != nil {
			t.Fatal(err)
		}
		got := encode(t, open(t, m.File(), spec), pixels, n)
		var want []float64
		for i := range n {
			tile := pixels[i*size*size*3:][:size*size*3]
			value := func(p, c int) float64 {
				v := float64(tile[3*p+c])
				if layout == encoder.NHWCUint8 {
					return v
				}
				return (v/255 - spec.Input.Mean[c]) / spec.Input.Std[c]
			}
			mean := func(from, c int) (sum float64) {
				for p := from; p < size*size; p++ {
					sum += value(p, c)
				}
				return sum / float64(size*size-from)
			}
			all := []float64{mean(0, 0), mean(0, 1), mean(0, 2)}
			first := []float64{value(0, 0), value(0, 1), value(0, 2)}
			after := []float64{mean(5, 0), mean(5, 1), mean(5, 2)}
			want = slices.Concat(want, first, after, all, []float64{all[0] + all[1] + all[2]}, first, all, after)
		}
		if len(got) != len(want) {
			t.Fatalf("%s: %d features, want %d", layout, len(got), len(want))
		}
		for i := range want {
			if math.Abs(float64(got[i])-want[i]) > 1e-5*math.Max(1, math.Abs(want[i])) {
				t.Errorf("%s: feature %d of tile %d is %g, want %g", layout, i%19, i/19, got[i], want[i])
			}
		}
	}
}

// A tile's features have the same bits wherever it stands in a batch, pooled in Go or not.
func TestFault30PooledFeaturesDoNotDependOnTheBatch(t *testing.T) {
	m := colour(16)
	m.Layout = encoder.NCHWFloat32
	spec, err := m.Spec().Use("both", "map")
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, m.File(), spec)
	pixels, tile := noise(64*16*16*3, 3), 16*16*3
	whole := encode(t, s, pixels, 64)
	for i := range 64 {
		if alone := encode(t, s, pixels[i*tile:][:tile], 1); !slices.Equal(alone, whole[i*9:][:9]) {
			t.Fatalf("tile %d has other bits alone than among 64", i)
		}
	}
	if !slices.Equal(run(t, s, tiles{pixels: pixels, size: 16}, 64, 16), whole) {
		t.Error("16 workers give other bits than one batch")
	}
}

func TestProviderThatIsNotThere(t *testing.T) {
	onnxtest.Need(t)
	m := colour(16)
	for _, p := range []onnx.Provider{onnx.CUDA, onnx.TensorRT, "abacus"} {
		s, err := onnx.Open(m.File(), m.Spec(), p)
		if err == nil {
			t.Logf("%s is there", p)
			_ = s.Close()
			continue
		}
		if coverslip.KindOf(err) != coverslip.Environment || !strings.Contains(fmt.Sprint(err), "use provider "+string(p)) || coverslip.HintOf(err) == "" {
			t.Errorf("%s: %v (%s)", p, err, coverslip.KindOf(err))
		}
	}
}

// BenchmarkNormalise is what an encoder of float32 costs beside its network: a 224-px tile.
func BenchmarkNormalise(b *testing.B) {
	m := onnxtest.Model{Size: 224, Weights: [3][]float32{{1}, {1}, {1}}, Layout: encoder.NCHWFloat32}
	onnxtest.Need(b)
	s, err := onnx.Open(m.File(), m.Spec(), onnx.CPU)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	pixels, dst := noise(224*224*3, 1), make([]float32, 1)
	for b.Loop() {
		if err := s.Encode(b.Context(), dst, pixels, 1); err != nil {
			b.Fatal(err)
		}
	}
}
