// Package openslidetest is for tests that read vendors' formats: it finds OpenSlide in the checkout.
// Their TestMain calls openslide.Main first.
package openslidetest

import (
	"os"
	"path/filepath"
	"testing"

	"coverslip/tiler/openslide"
)

// Need makes OpenSlide of the checkout's lib folder, where `make setup` puts it, known to package
// openslide. Without it the test is skipped, or fails if the environment says CI=true.
func Need(tb testing.TB) {
	tb.Helper()
	if os.Getenv(openslide.LibraryVariable) != "" {
		return
	}
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			tb.Fatal("no go.mod above the test's folder")
		}
	}
	found, err := filepath.Glob(filepath.Join(dir, "lib", "libopenslide.so.[1-9]*"))
	if err != nil {
		tb.Fatal(err)
	}
	switch {
	case len(found) > 0:
		// For the whole process; tb.Setenv would bar parallel tests.
		if err := os.Setenv(openslide.LibraryVariable, found[len(found)-1]); err != nil {
			tb.Fatal(err)
		}
	case os.Getenv("CI") == "true":
		tb.Fatalf("no libopenslide.so.* in %s: `make setup` did not run", filepath.Join(dir, "lib"))
	default:
		tb.Skipf("no libopenslide.so.* in %s: run `make setup`", filepath.Join(dir, "lib"))
	}
}
