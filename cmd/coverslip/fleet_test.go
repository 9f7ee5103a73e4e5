package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"coverslip"
	"coverslip/storage/blob/s3test"
	"coverslip/storage/storagetest"
	"coverslip/tiler/openslide/openslidetest"
)

// The parts of a fleet as docker-compose.yml lays them out, as processes: a Postgres, an S3 server,
// the API, a worker, and nothing shared between the last two but those.
func TestFleet(t *testing.T) {
	needsRuntime(t)
	openslidetest.Need(t)
	blobs := s3test.Start(t)
	t.Setenv("DATABASE_URL", storagetest.Empty(t))
	t.Setenv("BLOB_URL", blobs)

	if code, _, stderr := coverslipRun(t, "serve", "--addr", "127.0.0.1:0", "--data", t.TempDir()); code != 1 || !strings.Contains(stderr, "coverslip migrate") {
		t.Errorf("before migrate: exit %d, %s", code, stderr)
	}
	if code, _, stderr := coverslipRun(t, "migrate"); code != 0 {
		t.Fatalf("migrate: exit %d, %s", code, stderr)
	}
	if code, out, _ := coverslipRun(t, "doctor", "--data", t.TempDir()); code != 0 || !strings.Contains(out, "BLOB_URL answers") {
		t.Errorf("doctor: exit %d\n%s", code, out)
	}
	apiData, workData := t.TempDir(), t.TempDir()
	api := listening(t, "serve", "--json", "--addr", "127.0.0.1:0", "--data", apiData)
	worker := launch(t, "work", "--data", workData)
	if err := worker.cmd.Start(); err != nil {
		t.Fatal(err)
	}

	whole, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	var slide coverslip.Slide
	if err := api.call(t.Context(), http.MethodPost, "/v1/slides?name=a.svs", bytes.NewReader(whole), &slide); err != nil {
		t.Fatal(err)
	}
	vector, err := api.embedding(t.Context(), slide.ID)
	if err != nil || len(vector) != 1280 {
		t.Fatalf("%d numbers, %v\n%s", len(vector), err, worker.log)
	}
	for _, p := range []*program{api, worker} {
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, p.log)
		}
	}
	for _, dir := range []string{apiData, workData} {
		if left, err := os.ReadDir(filepath.Join(dir, "spool")); err != nil || len(left) > 0 {
			t.Errorf("the spool holds %v, %v", left, err)
		}
	}
}
