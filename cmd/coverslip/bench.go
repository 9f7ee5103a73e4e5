package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"coverslip/encoder"
	"coverslip/internal/ingest"
	"coverslip/tiler"
	"coverslip/tiler/tissue"
	"coverslip/tiler/vips"
)

type benchCmd struct {
	Encode benchEncodeCmd `cmd:"" help:"Slide file to features, beside ONNX Runtime alone on the same tiles."`
	Budget benchBudgetCmd `cmd:"" help:"How many tiles an embedding needs."`
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

type benchEncodeCmd struct {
	Slide string `arg:"" optional:"" help:"The slide to encode; without one, the one in testdata laid 3 × 3 beside itself, as a pyramid of JPEG tiles."`
	Runs  int    `default:"5" help:"Runs of each; medians are compared (${default})."`
}

// Help is shown by coverslip bench encode --help.
func (benchEncodeCmd) Help() string {
	return `Example:
  coverslip bench encode section.svs --json

Counts images per second of processor time, of this process and all its threads. End to end is
opening the slide, finding tissue, planning, decoding and encoding; alone is the encoder over the
same tiles, decoded beforehand. The two take turns, so that a noisy machine meets both.`
}

// Run measures and prints.
func (c *benchEncodeCmd) Run(e *env) error {
	name := c.Slide
	if c.Slide == "" {
		large, err := replicated(e, "testdata/CMU-1-Small-Region.svs", 3)
		if err != nil {
			return err
		}
		defer os.Remove(large) //nolint:errcheck // a temporary file
		name, c.Slide = "CMU-1-Small-Region 3 × 3", large
	}
	enc, err := openEncoder()
	if err != nil {
		return err
	}
	tiles, n, err := c.decoded(e, enc)
	if err != nil {
		return err
	}
	if n == 0 {
		return &usageError{name + " has no tissue to encode"}
	}
	var ours, peers []float64
	for range c.Runs + 1 { // the first is not counted
		var whole, alone rate
		for whole.done < leastTiles { // in turns, so that a machine whose speed drifts meets both alike
			if err := whole.add(func() (int, error) { return c.endToEnd(e, enc) }); err != nil {
				return err
			}
			if err := alone.add(func() (int, error) { return n, encodeAlone(e, enc, tiles, n) }); err != nil {
				return err
			}
		}
		ours, peers = append(ours, whole.perSecond()), append(peers, alone.perSecond())
	}
	ours, peers = ours[1:], peers[1:]
	m := measurement{Bench: "encode", Case: fmt.Sprintf("slide file to features, %s, %d tiles", filepath.Base(name), n), Value: median(ours), Unit: "images per CPU-second",
		Peer: "ONNX Runtime alone", PeerValue: median(peers), Ratio: median(ours) / median(peers), Target: 0.9, Runs: c.Runs, Machine: machine()}
	return e.measured(m)
}

func (c *benchEncodeCmd) plan(ctx context.Context, enc encoder.Encoder) (*tiler.Slide, *tiler.Tiles, error) {
	slide, err := tiler.Open(ctx, c.Slide)
	if err != nil {
		return nil, nil, err
	}
	plan, _, err := slide.Plan(ctx, ingest.DefaultPlan(enc.Model()), tissue.Default())
	if err != nil {
		_ = slide.Close()
		return nil, nil, err
	}
	return slide, slide.Tiles(plan), nil
}

// endToEnd is what a worker does for a slide up to the features.
func (c *benchEncodeCmd) endToEnd(ctx context.Context, enc encoder.Encoder) (int, error) {
	slide, tiles, err := c.plan(ctx, enc)
	if err != nil {
		return 0, err
	}
	defer slide.Close()
	_, err = encoder.Run(ctx, enc, tiles, tiles.Len(), 0, func(int, []float32) error { return nil }, nil)
	return tiles.Len(), err
}

// decoded reads all tiles into memory, [n, S, S, 3].
func (c *benchEncodeCmd) decoded(ctx context.Context, enc encoder.Encoder) ([]byte, int, error) {
	slide, tiles, err := c.plan(ctx, enc)
	if err != nil {
		return nil, 0, err
	}
	defer slide.Close()
	size := enc.Model().TileSize * enc.Model().TileSize * 3
	out := make([]byte, tiles.Len()*size)
	for i := range tiles.Len() {
		if err := tiles.ReadTile(ctx, out[i*size:(i+1)*size], i); err != nil {
			return nil, 0, err
		}
	}
	return out, tiles.Len(), nil
}

// encodeAlone runs the encoder over ready pixels, one goroutine a core, in batches of the same size.
func encodeAlone(ctx context.Context, enc encoder.Encoder, pixels []byte, n int) error {
	size, dim := enc.Model().TileSize*enc.Model().TileSize*3, enc.Model().Dim
	workers := runtime.GOMAXPROCS(0)
	g, ctx := errgroup.WithContext(ctx)
	for w := range workers {
		g.Go(func() error {
			dst := make([]float32, encoder.BatchSize*dim)
			for first := w * encoder.BatchSize; first < n; first += workers * encoder.BatchSize {
				m := min(encoder.BatchSize, n-first)
				if err := enc.Encode(ctx, dst[:m*dim], pixels[first*size:(first+m)*size], m); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// leastTiles is how many tiles a run encodes at least, to be long enough to be timed.
const leastTiles = 300

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
