package nn

/*
#cgo CFLAGS: -O3 -std=gnu11
#cgo LDFLAGS: -ldl -lm
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef void (*sgemm_t)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
	const float *b, int ldb, float beta, float *c, int ldc);
typedef void (*dgemm_t)(int order, int ta, int tb, int m, int n, int k, double alpha, const double *a, int lda,
	const double *b, int ldb, double beta, double *c, int ldc);

static sgemm_t nn_sgemm_at;
static dgemm_t nn_dgemm_at;
static char *(*nn_config_at)(void);
static char *(*nn_core_at)(void);

// One thread inside OpenBLAS: the work is shared out above it, in pieces that do not depend on how many
// share it.
// nn_better is the set of kernels to ask for instead of core, or NULL. Older versions do not know processors that are
// younger, and take them for ones of twenty years ago, or AMD's with AVX-512 for ones without it: a quarter, or half,
// of their speed.
static const char *nn_better(const char *core) {
#if defined(__x86_64__)
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
		__builtin_cpu_supports("avx512vl"))
		return strcmp(core, "SkylakeX") && strcmp(core, "Cooperlake") && strcmp(core, "SapphireRapids") ? "SkylakeX" : NULL;
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return strcmp(core, "Haswell") && strcmp(core, "Zen") ? "Haswell" : NULL;
#endif
	return NULL;
}

static int nn_open_blas(const char *name) {
	setenv("OPENBLAS_NUM_THREADS", "1", 1);
	void *lib = dlopen(name, RTLD_NOW | RTLD_LOCAL);
	if (!lib) return 0;
	// It chooses its kernels when it is loaded. Who sets the variable himself is left alone.
	nn_core_at = (char *(*)(void))dlsym(lib, "openblas_get_corename");
	const char *better = nn_core_at && !getenv("OPENBLAS_CORETYPE") ? nn_better(nn_core_at()) : NULL;
	if (better) {
		setenv("OPENBLAS_CORETYPE", better, 0);
		dlclose(lib);
		if (!(lib = dlopen(name, RTLD_NOW | RTLD_LOCAL))) return 0;
		nn_core_at = (char *(*)(void))dlsym(lib, "openblas_get_corename");
	}
	nn_sgemm_at = (sgemm_t)dlsym(lib, "cblas_sgemm");
	nn_dgemm_at = (dgemm_t)dlsym(lib, "cblas_dgemm");
	nn_config_at = (char *(*)(void))dlsym(lib, "openblas_get_config");
	void (*threads)(int) = (void (*)(int))dlsym(lib, "openblas_set_num_threads");
	if (!nn_sgemm_at || !nn_dgemm_at || !threads) return 0;
	threads(1);
	return 1;
}

static const char *nn_blas_config(void) { return nn_config_at ? nn_config_at() : ""; }
static const char *nn_blas_core(void) { return nn_core_at ? nn_core_at() : ""; }

static void nn_sgemm(int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
	const float *b, int ldb, float beta, float *c, int ldc) {
	nn_sgemm_at(101, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
static void nn_dgemm(int ta, int tb, int m, int n, int k, double alpha, const double *a, int lda,
	const double *b, int ldb, double beta, double *c, int ldc) {
	nn_dgemm_at(101, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
*/
import "C"

import (
	"math"
	"os"
	"strings"
	"sync"
	"unsafe"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/blas/gonum"
)

// Float is what kernels compute in: float32 at work, float64 when they are checked.
type Float interface{ float32 | float64 }

// BLAS says which library multiplies matrices: "OpenBLAS 0.3.21 (Haswell)", or "gonum" where there is
// none, about four times slower. The first call loads it and gives it to gonum's blas32 and blas64 too;
// everything of this package calls it before it multiplies.
//
// OpenBLAS is looked for when the program runs, not when it is linked, so that one binary serves machines
// with and without it. COVERSLIP_OPENBLAS names another file, or "none".
var BLAS = sync.OnceValue(func() string {
	names := []string{"libopenblas.so.0", "libopenblas.so"}
	if name := os.Getenv("COVERSLIP_OPENBLAS"); name != "" {
		names = []string{name}
	}
	for _, name := range names {
		c := C.CString(name)
		ok := name != "none" && C.nn_open_blas(c) != 0
		C.free(unsafe.Pointer(c))
		if ok && multiplies(openBLAS{}) {
			blas32.Use(openBLAS{})
			blas64.Use(openBLAS{})
			haveOpenBLAS = true
			version := C.GoString(C.nn_blas_config())
			if f := strings.Fields(version); len(f) > 1 {
				version = f[0] + " " + f[1]
			}
			return version + " (" + C.GoString(C.nn_blas_core()) + ")"
		}
	}
	return "gonum"
})

var haveOpenBLAS bool

// openBLAS is gonum's implementation with the products of matrices replaced.
type openBLAS struct{ gonum.Implementation }

func flag(t blas.Transpose) C.int {
	if t == blas.NoTrans {
		return 111
	}
	return 112
}

// Sgemm is gonum's. Small products stay in Go, where the way into C would cost more.
func (o openBLAS) Sgemm(ta, tb blas.Transpose, m, n, k int, alpha float32, a []float32, lda int, b []float32, ldb int, beta float32, c []float32, ldc int) {
	if m == 0 || n == 0 || m*n*k < 512 {
		o.Implementation.Sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
		return
	}
	checkGemm(ta, tb, m, n, k, len(a), lda, len(b), ldb, len(c), ldc)
	C.nn_sgemm(flag(ta), flag(tb), C.int(m), C.int(n), C.int(k), C.float(alpha), (*C.float)(&a[0]), C.int(lda), (*C.float)(&b[0]), C.int(ldb), C.float(beta), (*C.float)(&c[0]), C.int(ldc))
}

// Dgemm is gonum's.
func (o openBLAS) Dgemm(ta, tb blas.Transpose, m, n, k int, alpha float64, a []float64, lda int, b []float64, ldb int, beta float64, c []float64, ldc int) {
	if m == 0 || n == 0 || m*n*k < 512 {
		o.Implementation.Dgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
		return
	}
	checkGemm(ta, tb, m, n, k, len(a), lda, len(b), ldb, len(c), ldc)
	C.nn_dgemm(flag(ta), flag(tb), C.int(m), C.int(n), C.int(k), C.double(alpha), (*C.double)(&a[0]), C.int(lda), (*C.double)(&b[0]), C.int(ldb), C.double(beta), (*C.double)(&c[0]), C.int(ldc))
}

// checkGemm panics where the library would read or write outside of a slice.
func checkGemm(ta, tb blas.Transpose, m, n, k, la, lda, lb, ldb, lc, ldc int) {
	rowsA, colsA, rowsB, colsB := m, k, k, n
	if ta != blas.NoTrans {
		rowsA, colsA = k, m
	}
	if tb != blas.NoTrans {
		rowsB, colsB = n, k
	}
	if m < 0 || n < 0 || k <= 0 || lda < colsA || ldb < colsB || ldc < n ||
		la < (rowsA-1)*lda+colsA || lb < (rowsB-1)*ldb+colsB || lc < (m-1)*ldc+n {
		panic("nn: a matrix is shorter than its shape")
	}
}

// multiplies tries a library before it is trusted: some old ones compute nonsense on new processors.
func multiplies(impl openBLAS) bool {
	const m, n, k = 37, 29, 53
	a, b, want, got := make([]float32, m*k), make([]float32, k*n), make([]float32, m*n), make([]float32, m*n)
	for i := range a {
		a[i] = float32(math.Sin(float64(i)))
	}
	for i := range b {
		b[i] = float32(math.Cos(float64(i)))
	}
	for _, t := range []struct {
		ta, tb   blas.Transpose
		lda, ldb int
	}{{blas.NoTrans, blas.NoTrans, k, n}, {blas.Trans, blas.NoTrans, m, n}, {blas.NoTrans, blas.Trans, k, k}} {
		impl.Implementation.Sgemm(t.ta, t.tb, m, n, k, 1, a, t.lda, b, t.ldb, 0, want, n)
		impl.Sgemm(t.ta, t.tb, m, n, k, 1, a, t.lda, b, t.ldb, 0, got, n)
		for i := range got {
			if !(math.Abs(float64(got[i]-want[i])) < 1e-4) {
				return false
			}
		}
	}
	return true
}

// Gemm adds a product of matrices: c = alpha·op(a)·op(b) + beta·c with op(a) [m,k], op(b) [k,n] and c [m,n];
// a is [m,lda], or [k,lda] where transA, and so on. It runs on the workers of the package, cut by rows of
// c in pieces that depend on the shape alone.
func Gemm[T Float](transA, transB bool, m, n, k int, alpha T, a []T, lda int, b []T, ldb int, beta T, c []T, ldc int) {
	if m == 0 || n == 0 {
		return
	}
	if k == 0 {
		for i := range m {
			scale(beta, c[i*ldc:i*ldc+n])
		}
		return
	}
	BLAS()
	// Each piece packs b anew: a few large ones.
	pieces := min(max(m/128, 1), max(m*n*k>>26, 1), 8)
	rows := (m + pieces - 1) / pieces
	rows = (rows + 15) / 16 * 16
	Parallel((m+rows-1)/rows, func(i int) {
		from := i * rows
		count := min(rows, m-from)
		at := from * lda
		if transA {
			at = from
		}
		gemm(transA, transB, count, n, k, alpha, a[at:], lda, b, ldb, beta, c[from*ldc:], ldc)
	})
}

func gemm[T Float](transA, transB bool, m, n, k int, alpha T, a []T, lda int, b []T, ldb int, beta T, c []T, ldc int) {
	ta, tb := blas.NoTrans, blas.NoTrans
	if transA {
		ta = blas.Trans
	}
	if transB {
		tb = blas.Trans
	}
	switch a := any(a).(type) {
	case []float32:
		blas32.Implementation().Sgemm(ta, tb, m, n, k, float32(alpha), a, lda, any(b).([]float32), ldb, float32(beta), any(c).([]float32), ldc)
	case []float64:
		blas64.Implementation().Dgemm(ta, tb, m, n, k, float64(alpha), a, lda, any(b).([]float64), ldb, float64(beta), any(c).([]float64), ldc)
	}
}

func scale[T Float](by T, x []T) {
	for i := range x {
		x[i] *= by
	}
}
