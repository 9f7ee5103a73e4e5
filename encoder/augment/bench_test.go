package augment

import (
	"context"
	"syscall"
	"testing"

	"coverslip/encoder"
	"coverslip/encoder/onnx"
	"coverslip/encoder/onnx/onnxtest"
)

// BenchmarkTransform is one tile of 224 px through each transform, and through whole lists with all
// their steps.
func BenchmarkTransform(b *testing.B) {
	for _, c := range []struct{ name, spec string }{
		{"crop", `[{p: 1, crop: {scale: [0.5, 1], ratio: [0.75, 1.3333]}}]`},
		{"brightness", `[{p: 1, jitter: {brightness: 0.4, contrast: 0, saturation: 0, hue: 0}}]`},
		{"contrast", `[{p: 1, jitter: {brightness: 0, contrast: 0.4, saturation: 0, hue: 0}}]`},
		{"saturation", `[{p: 1, jitter: {brightness: 0, contrast: 0, saturation: 0.4, hue: 0}}]`},
		{"hue", `[{p: 1, jitter: {brightness: 0, contrast: 0, saturation: 0, hue: 0.2}}]`},
		{"jitter", `[{p: 1, jitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.2}}]`},
		{"grayscale", `[{p: 1, grayscale: {}}]`},
		{"blur5", `[{p: 1, blur: {kernel: 5, sigma: [0.1, 1]}}]`},
		{"blur9", `[{p: 1, blur: {kernel: 9, sigma: [0.1, 1]}}]`},
		{"flip", `[{p: 1, flip: {axis: horizontal}}]`},
		{"turn", `[{p: 1, turn: {}}]`},
		{"normalise", `[{p: 1, normalise: {method: macenko}}]`},
		{"hed", `[{p: 1, hed: {alpha: 0.05, beta: 0.05}}]`},
		{"randstain-lab", `[{p: 1, randstain: {space: lab}}]`},
		{"randstain-hsv", `[{p: 1, randstain: {space: hsv}}]`},
		{"resolution", `[{p: 1, resolution: {factor: [0.5, 1]}}]`},
		{"jpeg", `[{p: 1, jpeg: {quality: [40, 95]}}]`},
		{"noise", `[{p: 1, noise: {sigma: [1, 5]}}]`},
		{"background", `[{p: 1, background: {fill: noise, saturation: 18}}]`},
		{"none", "none"},
		{"gigassl", "gigassl"},
		{"histo", "histo"},
	} {
		b.Run(c.name, func(b *testing.B) {
			spec, err := Parse(c.spec)
			if err != nil {
				b.Fatal(err)
			}
			spec = always(spec)
			tile := tissueTile(b)
			slide, err := spec.Measure(tile)
			if err != nil {
				b.Fatal(err)
			}
			dst, s, i := make([]uint8, 224*224*3), new(Scratch), 0
			began := cpuSeconds(b)
			for ; b.Loop(); i++ {
				spec.Draw(1, i).Apply(dst, 224, Tile{Pixels: tile, Size: 224, Index: uint64(i)}, slide, s)
			}
			b.ReportMetric(1e6*(cpuSeconds(b)-began)/float64(i), "cpu-µs/tile")
		})
	}
}

// BenchmarkShareOfEncoding compares the Giga-SSL list with the encoding of the tiles it makes: both on
// one thread, in turns. At most a fifth is asked for; "all" is with every step in every view, "drawn"
// as the list has them.
func BenchmarkShareOfEncoding(b *testing.B) {
	onnxtest.Need(b)
	model, file := encoder.Default()
	session, err := onnx.Open(file, model, onnx.CPU)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	spec, err := Parse("gigassl")
	if err != nil {
		b.Fatal(err)
	}
	tile, s := tissueTile(b), new(Scratch)
	batch := make([]uint8, encoder.BatchSize*len(tile))
	features := make([]float32, encoder.BatchSize*model.Model().Dim)
	var spent [3]float64 // CPU seconds, because others may use the machine
	tiles := 0
	for b.Loop() {
		for i, list := range []Spec{spec, always(spec)} {
			began := cpuSeconds(b)
			for row := range encoder.BatchSize {
				list.Draw(1, tiles+row).Apply(batch[row*len(tile):][:len(tile)], 224, Tile{Pixels: tile, Size: 224}, Slide{}, s)
			}
			spent[i] += cpuSeconds(b) - began
		}
		began := cpuSeconds(b)
		if err := session.Encode(context.Background(), features, batch, encoder.BatchSize); err != nil {
			b.Fatal(err)
		}
		spent[2] += cpuSeconds(b) - began
		tiles += encoder.BatchSize
	}
	for i, name := range []string{"drawn-µs/tile", "all-µs/tile", "encode-µs/tile"} {
		b.ReportMetric(1e6*spent[i]/float64(tiles), name)
	}
	b.ReportMetric(100*spent[0]/spent[2], "drawn-%")
	b.ReportMetric(100*spent[1]/spent[2], "all-%")
}

func cpuSeconds(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// always is s with every step in every view.
func always(s Spec) Spec {
	out := append(Spec{}, s...)
	for i := range out {
		out[i].P = 1
	}
	return out
}

// tissueTile is 224 px of the stained picture in testdata.
func tissueTile(b *testing.B) []uint8 {
	field, n := picture(b, "stain")
	tile := make([]uint8, 224*224*3)
	resize(tile, 224, 224, field, n, 0, 0, n, n, new(Scratch))
	return tile
}
