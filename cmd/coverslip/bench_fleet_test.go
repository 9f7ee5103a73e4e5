package main

import (
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A cohort through four workers, one of which is killed over and over: all done, none twice, none lost. In
// full 12,000 slides and a kill every 20 s, as `coverslip bench fleet` does by itself.
func TestSimulatedTCGA(t *testing.T) {
	needsRuntime(t)
	t.Setenv(asProgram, "1") // of the processes it starts
	slides, kill, lease, weighed := 100, 2*time.Second, lease, 500
	if os.Getenv("COVERSLIP_FULL") == "1" {
		slides, kill, lease, weighed = 12_000, 20*time.Second, 20*time.Second, 11_642
	}
	if n, err := strconv.Atoi(os.Getenv("COVERSLIP_TEST_SLIDES")); err == nil {
		slides = n
	}
	code, out, stderr := coverslipRun(t, "bench", "fleet", "--json", "--slides", strconv.Itoa(slides), "--kill", kill.String(), "--lease", lease.String(), "--weighed", strconv.Itoa(weighed))
	t.Log(out)
	if code != 0 || strings.Contains(out, `"value":0,"unit":"workers"`) {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

func TestQueueIsMeasured(t *testing.T) {
	n := 300
	if os.Getenv("COVERSLIP_FULL") == "1" {
		n = 12_000
	}
	needsRuntime(t)
	var out strings.Builder
	e := &env{Context: t.Context(), out: &out, err: os.Stderr, json: true, log: slog.New(slog.DiscardHandler)}
	if err := benchQueue(e, n, 1); err != nil || strings.Count(out.String(), `"bench":"ingest"`) != 3 {
		t.Errorf("%v, %s", err, out.String())
	}
	t.Log(out.String())
}
