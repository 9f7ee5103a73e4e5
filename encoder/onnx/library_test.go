package onnx_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
	"coverslip/encoder/onnx"
	"coverslip/encoder/onnx/onnxtest"
)

func TestLibraryHasVersion(t *testing.T) {
	onnxtest.Need(t)
	path, version, err := onnx.Library()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(path, "libonnxruntime") || !strings.HasPrefix(version, "1.") {
		t.Errorf("got %q, version %q", path, version)
	}
}

// The library is loaded once for a process, so each case is a process of its own: this test binary
// at another place or with another environment.
func TestLibraryIsFoundOrRemedyNamed(t *testing.T) {
	if os.Getenv("TELL_LIBRARY") != "" {
		path, _, err := onnx.Library()
		if err != nil {
			fmt.Println(coverslip.KindOf(err), err)
		} else {
			fmt.Println("loaded", path)
		}
		return
	}
	onnxtest.Need(t)
	given := os.Getenv(onnx.LibraryVariable)
	install := t.TempDir()
	for _, folder := range []string{"bin", "lib", "one/folder"} {
		if err := os.MkdirAll(filepath.Join(install, folder), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	inBin, alone := filepath.Join(install, "bin", "coverslip"), filepath.Join(install, "one", "folder", "coverslip")
	beside, above := filepath.Join(install, "one", "folder", "libonnxruntime.so"), filepath.Join(install, "lib", "libonnxruntime.so.1")
	for _, exe := range []string{inBin, alone} {
		if err := os.WriteFile(exe, self, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, library := range []string{beside, above} {
		if err := os.Symlink(given, library); err != nil {
			t.Fatal(err)
		}
	}
	text := filepath.Join(install, "text.so")
	if err := os.WriteFile(text, []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	const remedy = "run `make setup`, or set COVERSLIP_ONNXRUNTIME"
	for name, c := range map[string]struct {
		exe, variable string
		says          []string
	}{
		"absent":               {os.Args[0], "/nowhere/libonnxruntime.so", []string{"environment", "/nowhere/libonnxruntime.so: load ONNX Runtime", remedy}},
		"no library":           {os.Args[0], text, []string{"environment", text + ": load ONNX Runtime", remedy}},
		"lib beside bin":       {inBin, "", []string{"loaded " + above}},
		"beside the program":   {alone, "", []string{"loaded " + beside}},
		"variable goes before": {inBin, given, []string{"loaded " + given}},
	} {
		cmd := exec.Command(c.exe, "-test.run", "^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "TELL_LIBRARY=1", onnx.LibraryVariable+"="+c.variable)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		for _, s := range c.says {
			if !strings.Contains(string(out), s) {
				t.Errorf("%s: no %q in %s", name, s, out)
			}
		}
	}
}
