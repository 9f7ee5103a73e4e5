package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"coverslip"
)

// A slide in a bucket is registered, encoded and found again where it lies, and is the slide its bytes
// are anywhere else.
func TestIngestOfASlideInABucket(t *testing.T) {
	needsRuntime(t)
	store, address, _ := bucket(t)
	put(t, store, "cmu.svs", bundled)
	data := dataFolder(t)
	ingest := func(args ...string) (int, []result, string) {
		code, out, stderr := coverslipRun(t, append([]string{"ingest", "--json", "--data", data}, args...)...)
		return code, results(t, out), stderr
	}
	code, far, stderr := ingest(address("cmu.svs"), "--wait")
	if code != 0 || len(far) != 1 || far[0].State != coverslip.Embedded || far[0].Name != "cmu.svs" {
		t.Fatalf("exit %d, %+v, %s", code, far, stderr)
	}
	if code, again, _ := ingest(address("cmu.svs"), "--wait"); code != 0 || again[0].Work != "none" {
		t.Errorf("again: exit %d, %+v", code, again)
	}
	if code, near, _ := ingest(bundled, "--wait"); code != 0 || near[0].Slide != far[0].Slide || near[0].Work != "none" {
		t.Errorf("the file itself: exit %d, %+v", code, near)
	}

	t.Run("ChangedSinceItWasRegisteredIsRefused", func(t *testing.T) {
		whole, err := os.ReadFile(bundled)
		if err != nil {
			t.Fatal(err)
		}
		variant := t.TempDir() + "/variant.svs"
		for _, tail := range []byte{1, 2} {
			if err := os.WriteFile(variant, append(slices.Clone(whole), tail), 0o600); err != nil {
				t.Fatal(err)
			}
			put(t, store, "variant.svs", variant)
			if tail == 1 { // registered, and not encoded before the object is another one
				if code, got, stderr := ingest(address("variant.svs")); code != 0 || got[0].State != coverslip.Queued {
					t.Fatalf("exit %d, %+v, %s", code, got, stderr)
				}
			}
		}
		_, list, _ := coverslipRun(t, "slides", "--state", "queued", "--data", data)
		if !strings.Contains(list, "variant.svs") {
			t.Fatalf("nothing waits:\n%s", list)
		}
		p := up(t, data)
		var all struct{ Slides []coverslip.Slide }
		if err := p.call(t.Context(), "GET", "/v1/slides", nil, &all); err != nil {
			t.Fatal(err)
		}
		for _, s := range all.Slides {
			if s.Name != "variant.svs" {
				continue
			}
			_, err := p.embedding(t.Context(), s.ID)
			if err == nil || !strings.Contains(err.Error(), "changed since it was registered") {
				t.Errorf("%v", err)
			}
		}
	})
	t.Run("MissingAndForeignAddresses", func(t *testing.T) {
		for _, bad := range []string{address("missing.svs"), "s3://", "https://127.0.0.1:1/slide.svs"} {
			code, got, _ := ingest(bad, "--wait")
			if code != 1 || got[0].State != coverslip.Failed || got[0].Kind == coverslip.Internal || !strings.Contains(got[0].Reason, "(") {
				t.Errorf("%s: exit %d, %+v", bad, code, got)
			}
		}
	})
}
