package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coverslip/tiler"
	"coverslip/tiler/vips"
)

type benchCmd struct {
	Decode   benchDecodeCmd   `cmd:"" help:"Tiles out of a slide, beside OpenSlide and others."`
	Stream   benchStreamCmd   `cmd:"" help:"Tiles from S3, beside a local file; memory."`
	Encode   benchEncodeCmd   `cmd:"" help:"Slide file to features, beside ONNX Runtime alone on the same tiles."`
	Probe    benchProbeCmd    `cmd:"" help:"Linear probes and intervals, beside scikit-learn."`
	Fleet    benchFleetCmd    `cmd:"" help:"A cohort through worker processes that are killed: rate, memory, disk."`
	Budget   benchBudgetCmd   `cmd:"" help:"How many tiles an embedding needs."`
	MIL      benchMILCmd      `cmd:"" name:"mil" help:"Training of MIL classifiers beside PyTorch; memory of a large bag."`
	Search   benchSearchCmd   `cmd:"" help:"Nearest of many embeddings, beside FAISS and pgvector."`
	Ingest   benchIngestCmd   `cmd:"" help:"Uploads through the API to S3, beside the S3 client alone; memory."`
	Pretrain benchPretrainCmd `cmd:"" help:"A training step of slide-level self-supervision, beside PyTorch, BLAS alone and a loop by hand."`
	SSL      benchSSLCmd      `cmd:"" name:"ssl" help:"Slide embeddings learned without labels, judged by probes with few."`
}

// measurement is one line of every benchmark.
type measurement struct {
	Bench     string  `json:"bench"`
	Case      string  `json:"case"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Peer      string  `json:"peer,omitempty"`
	PeerValue float64 `json:"peer_value,omitempty"`
	Ratio     float64 `json:"ratio"` // times better than the peer
	Target    float64 `json:"target"`
	Runs      int     `json:"runs"`
	Machine   string  `json:"machine"`
}

// rate is how much was done in how much processor time.
type rate struct {
	done int
	cpu  time.Duration
}

func (r *rate) add(do func() (int, error)) error {
	before := cpuTime()
	n, err := do()
	r.done, r.cpu = r.done+n, r.cpu+cpuTime()-before
	return err
}

func (r *rate) perSecond() float64 { return float64(r.done) / r.cpu.Seconds() }

// cpuTime is the processor time this process has spent so far, all threads together.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic("getrusage: " + err.Error()) // cannot fail for the process itself
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// replicated writes a slide of n × n copies of the one at path as a pyramid of JPEG tiles, which is
// what slides are, in a temporary file.
func replicated(ctx context.Context, path string, n int) (string, error) {
	one, err := tiler.Open(ctx, path)
	if err != nil {
		return "", err
	}
	defer one.Close()
	w, h := one.Width, one.Height
	rgb := make([]byte, n*w*n*h*3)
	first := make([]byte, w*h*3)
	if err := one.Region(ctx, first, 0, 0, 0, w, h); err != nil {
		return "", err
	}
	for y := range n * h {
		for x := range n {
			copy(rgb[(y*n+x)*w*3:], first[y%h*w*3:(y%h+1)*w*3])
		}
	}
	f, err := os.CreateTemp("", "coverslip-bench-*.tif")
	if err != nil {
		return "", diskError("write the slide to measure with", os.TempDir(), err)
	}
	_ = f.Close() // written by name
	return f.Name(), vips.SaveTIFF(f.Name(), rgb, n*w, n*h, one.MPP.Value)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// machine names the processor and how many of it there are.
func machine() string {
	name := runtime.GOARCH
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				name = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d cores", name, runtime.NumCPU())
}

func (e *env) measured(m measurement) error {
	if e.json {
		return e.emit(m)
	}
	e.printf("%s: %s\n  Coverslip  %.1f %s\n", m.Bench, m.Case, m.Value, m.Unit)
	if m.Peer != "" {
		e.printf("  %s  %.1f\n  ratio %.3f, target %.2f\n", m.Peer, m.PeerValue, m.Ratio, m.Target)
	}
	e.printf("  medians of %d runs on %s\n", m.Runs, m.Machine)
	return nil
}
