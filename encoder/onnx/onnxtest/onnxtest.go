// Package onnxtest is for tests that run encoders: it finds ONNX Runtime in the checkout and writes
// small ONNX models.
package onnxtest

import (
	"os"
	"path/filepath"
	"testing"

	"coverslip/encoder/onnx"
)

// Need makes ONNX Runtime of the checkout's lib folder, where `make setup` puts it, known to
// package onnx. Without it the test is skipped, or fails if the environment says CI=true.
func Need(tb testing.TB) {
	tb.Helper()
	if os.Getenv(onnx.LibraryVariable) != "" {
		return
	}
	root, err := checkout()
	if err != nil {
		tb.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(root, "lib", "libonnxruntime.so*"))
	if err != nil {
		tb.Fatal(err)
	}
	if len(found) > 0 {
		// For the whole process, which loads the library once; tb.Setenv would bar parallel tests.
		if err := os.Setenv(onnx.LibraryVariable, found[len(found)-1]); err != nil {
			tb.Fatal(err)
		}
		return
	}
	if os.Getenv("CI") == "true" {
		tb.Fatalf("no libonnxruntime.so* in %s: `make setup` did not run", filepath.Join(root, "lib"))
	}
	tb.Skipf("no libonnxruntime.so* in %s: run `make setup`", filepath.Join(root, "lib"))
}

// checkout is the nearest folder above the test's that holds go.mod.
func checkout() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", os.ErrNotExist
		}
	}
	return "", err
}
