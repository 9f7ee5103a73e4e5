package nn

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// A library that is older than the processor is told what that can do.
func TestKernelsAreThoseOfTheProcessor(t *testing.T) {
	about := BLAS()
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !strings.HasPrefix(about, "OpenBLAS") || os.Getenv("OPENBLAS_CORETYPE") != "" {
		t.Skip("OpenBLAS does not choose here: ", about, err)
	}
	_, after, _ := strings.Cut(string(raw), "flags")
	line, _, _ := strings.Cut(after, "\n")
	flags := strings.Fields(line)
	has := func(names ...string) bool {
		return !slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(flags, n) })
	}
	var good []string
	switch {
	case has("avx512f", "avx512bw", "avx512dq", "avx512vl"):
		good = []string{"SkylakeX", "Cooperlake", "SapphireRapids"}
	case has("avx2", "fma"):
		good = []string{"Haswell", "Zen"}
	default:
		t.Skip("a processor without AVX2")
	}
	if !slices.ContainsFunc(good, func(core string) bool { return strings.Contains(about, "("+core+")") }) {
		t.Errorf("%s, where the processor is one for %v", about, good)
	}
}
