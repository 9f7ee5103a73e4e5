package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coverslip/storage/blob/s3test"
)

// Fault 31: schemathesis, with every check on, finds no 5xx and no answer that the contract does not
// promise. It needs .tools/schemathesis, which `make test-full` makes.
func TestFault31ContractFuzzing(t *testing.T) {
	tool, err := filepath.Abs("../../.tools/schemathesis/bin/schemathesis")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(tool); err != nil || os.Getenv("COVERSLIP_FULL") != "1" {
		t.Skip("needs schemathesis: `make test-full` installs it and runs this test")
	}
	needsRuntime(t)
	t.Setenv("BLOB_URL", s3test.Start(t))
	p := listening(t, "up", "--json", "--addr", "127.0.0.1:0", "--data", dataFolder(t), "--rate", "0")
	if code, _, stderr := coverslipRun(t, "upload", bundled, "--server", p.url); code != 0 {
		t.Fatal(stderr)
	}
	config, err := filepath.Abs("../../internal/tools/schemathesis.toml")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, "--config-file", config, "run", p.url+"/openapi.json", "--checks", "all", "--phases", "coverage,fuzzing",
		"--max-examples", "20", "--request-timeout", "30", "--workers", "2", "--no-color", "--seed", "31")
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "Failures:") || !strings.Contains(string(out), "Test cases:") {
		at := strings.Index(string(out), "= ERRORS =")
		if at < 0 {
			at = strings.Index(string(out), "= FAILURES =")
		}
		t.Errorf("%v\n%.8000s", err, out[max(at, 0):])
	}
	t.Logf("%s", out[strings.LastIndex(string(out), "Test cases:"):])
}
