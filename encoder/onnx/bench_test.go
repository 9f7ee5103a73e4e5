package onnx_test

import (
	"context"
	"sync"
	"syscall"
	"testing"

	"coverslip/encoder"
	"coverslip/encoder/onnx"
	"coverslip/encoder/onnx/onnxtest"
)

// BenchmarkEncode is the network alone on ready pixels, one and two workers.
func BenchmarkEncode(b *testing.B) {
	onnxtest.Need(b)
	spec, file := encoder.Default()
	s, err := onnx.Open(file, spec, onnx.CPU)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for _, workers := range []int{1, 2} {
		b.Run(map[int]string{1: "OneWorker", 2: "TwoWorkers"}[workers], func(b *testing.B) {
			before := cpuSeconds(b)
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					pixels := noise(encoder.BatchSize*spec.Input.Size*spec.Input.Size*3, 1)
					features := make([]float32, encoder.BatchSize*s.Model().Dim)
					for range b.N {
						if err := s.Encode(context.Background(), features, pixels, encoder.BatchSize); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			tiles := float64(b.N * workers * encoder.BatchSize)
			b.ReportMetric(tiles/(cpuSeconds(b)-before), "tiles/cpu-s")
			b.ReportMetric(tiles/b.Elapsed().Seconds(), "tiles/s")
		})
	}
}

func cpuSeconds(tb testing.TB) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// noise is n bytes of a fixed sequence (Numerical Recipes' LCG).
func noise(n int, seed uint32) []uint8 {
	out := make([]uint8, n)
	for i := range out {
		seed = seed*1664525 + 1013904223
		out[i] = uint8(seed >> 24)
	}
	return out
}
