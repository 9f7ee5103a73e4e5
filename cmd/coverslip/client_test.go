package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The client of docs/, as people run it.
func TestPythonClient(t *testing.T) {
	python := os.Getenv("COVERSLIP_TEST_PYTHON")
	if python == "" {
		t.Skip("needs COVERSLIP_TEST_PYTHON, which make test sets")
	}
	needsRuntime(t)
	p := up(t, dataFolder(t))
	two := variants(t, bundled, 2)
	out, err := exec.Command(python, append([]string{filepath.Join("..", "..", "docs", "client.py"), p.url}, two...)...).CombinedOutput()
	text := string(out)
	if err != nil || strings.Count(text, " is most like variant") != 2 || strings.Count(text, "(1.000)") != 4 || !strings.Contains(text, "[[1.") || !strings.Contains(text, "2 slides in all, as an array of (2, 1280)") {
		t.Errorf("%v\n%s", err, text)
	}
	text = ""
	if out, err = exec.Command(python, filepath.Join("..", "..", "docs", "client.py"), p.url, "client_test.go").CombinedOutput(); err != nil {
		text = string(out)
	}
	if !strings.Contains(text, "Problem: ") || !strings.Contains(text, "client_test.go") {
		t.Errorf("of a file that is no slide: %v\n%s", err, out)
	}
}
