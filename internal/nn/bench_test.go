package nn

import (
	"math/rand/v2"
	"testing"
)

func BenchmarkGemm(b *testing.B) {
	const m, n, k = 2048, 512, 512
	x, y, z := make([]float32, m*k), make([]float32, k*n), make([]float32, m*n)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range x {
		x[i] = rng.Float32()
	}
	for i := range y {
		y[i] = rng.Float32()
	}
	SetWorkers(1)
	for b.Loop() {
		Gemm(false, false, m, n, k, 1, x, k, y, n, 0, z, n)
	}
	b.ReportMetric(2*m*n*k*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
	b.Log(BLAS())
}

func BenchmarkTanh(b *testing.B) {
	x, y := make([]float32, 1<<16), make([]float32, 1<<16)
	for b.Loop() {
		tanhTo(y, x)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(1<<16), "ns/number")
}

func BenchmarkAdam(b *testing.B) {
	SetWorkers(1)
	p := NewParam("p", 1024, 1024)
	p.Grad = make([]float32, len(p.Value))
	opt := NewAdam(0)
	for b.Loop() {
		opt.Step([]*Param{p}, 1e-3)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(1<<20), "ns/number")
}
