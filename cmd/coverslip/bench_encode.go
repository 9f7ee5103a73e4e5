package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sync/errgroup"

	"coverslip"
	"coverslip/encoder"
	"coverslip/internal/ingest"
	"coverslip/tiler"
	"coverslip/tiler/tissue"
)

type benchEncodeCmd struct {
	Slide  string `arg:"" optional:"" help:"The slide to encode; without one, the one in testdata laid 3 × 3 beside itself, as a pyramid of JPEG tiles."`
	Runs   int    `default:"5" help:"Runs of each; medians, of ratios too (${default})."`
	Centre string `placeholder:"DIR" help:"As of coverslip bench budget."`
	Once   bool   `hidden:"" help:"Encode once and print nothing: a process to weigh."`
}

// Help is shown by coverslip bench encode --help.
func (benchEncodeCmd) Help() string {
	return `Example:
  coverslip bench encode section.svs --json

Counts images per second of processor time, of this process and all its threads. End to end is
opening the slide, finding tissue, planning, decoding and encoding; alone is the encoder over the
same tiles, decoded beforehand. Beside it the same network in PyTorch, eager, at its best batch
size: on the same ready tiles, and behind a plain loop of openslide-python. What is compared takes
turns, so that a noisy machine meets all alike. Then the memory of one whole run, and how many tiles
--budget auto takes.`
}

// Run measures and prints.
func (c *benchEncodeCmd) Run(e *env) error {
	if c.Slide == "" {
		return c.withDefault(e)
	}
	return c.measure(e, filepath.Base(c.Slide))
}

func (c *benchEncodeCmd) withDefault(e *env) error {
	large, err := replicated(e, "testdata/CMU-1-Small-Region.svs", 3)
	if err != nil {
		return err
	}
	defer os.Remove(large) //nolint:errcheck // a temporary file
	c.Slide = large
	return c.measure(e, "CMU-1-Small-Region 3 × 3")
}

func (c *benchEncodeCmd) measure(e *env, name string) error {
	enc, err := openEncoder()
	if err != nil {
		return err
	}
	if c.Once {
		_, err := c.endToEnd(e, enc)
		return err
	}
	if err := c.weigh(e, name); err != nil {
		return err
	}
	plan, tiles, err := c.decoded(e, enc)
	if err != nil {
		return err
	}
	n := len(plan.Tiles)
	if n == 0 {
		return &usageError{name + " has no tissue to encode"}
	}
	ready, loop, err := c.peers(e, plan, tiles)
	if err != nil {
		e.say("without PyTorch: %v\n", err)
	} else {
		defer ready.stop()
		defer loop.stop()
	}
	var whole, alone, readyRates, loopRates []float64
	show := e.progress("measuring", c.Runs+1)
	for run := range c.Runs + 1 { // the first is not counted
		var w, a rate
		turns := []func() error{
			func() error { return w.add(func() (int, error) { return c.endToEnd(e, enc) }) },
			func() error { return a.add(func() (int, error) { return n, encodeAlone(e, enc, tiles, n) }) },
		}
		if run%2 == 1 { // who comes first meets what the peers left of caches and clock
			slices.Reverse(turns)
		}
		for w.done < leastTiles { // in turns, so that a machine whose speed drifts meets both alike
			for _, turn := range turns {
				if err := turn(); err != nil {
					return err
				}
			}
		}
		whole, alone = append(whole, w.perSecond()), append(alone, a.perSecond())
		if ready != nil {
			r, err := ready.run()
			if err != nil {
				return err
			}
			l, err := loop.run()
			if err != nil {
				return err
			}
			readyRates, loopRates = append(readyRates, r.perSecond()), append(loopRates, l.perSecond())
		}
		show(run + 1)
	}
	line := func(what string, ours []float64, peer string, theirs []float64, target float64) error {
		ours, theirs = ours[1:], theirs[1:]
		ratios := make([]float64, len(ours)) // of one turn each, for the same reason
		for i := range ours {
			ratios[i] = ours[i] / theirs[i]
		}
		return e.measured(measurement{Bench: "encode", Case: fmt.Sprintf("%s, %s, %d tiles", what, name, n), Value: median(ours), Unit: "images per CPU-second",
			Peer: peer, PeerValue: median(theirs), Ratio: median(ratios), Target: target, Runs: c.Runs, Machine: machine()})
	}
	if err := line("slide file to features", whole, "ONNX Runtime alone", alone, 0.95); err != nil {
		return err
	}
	if ready != nil {
		if err := line("ready tiles to features", alone, "PyTorch, eager, best batch size", readyRates, 1.3); err != nil {
			return err
		}
		if err := line("slide file to features", whole, "openslide-python and PyTorch, a plain loop", loopRates, 1.5); err != nil {
			return err
		}
	}
	return (&benchBudgetCmd{Slide: c.Slide, Centre: c.Centre, Draws: 400}).measure(e, enc, name)
}

// peers starts PyTorch twice: over ready tiles, and over the slide.
func (c *benchEncodeCmd) peers(e *env, plan coverslip.Plan, tiles []byte) (ready, loop *peer, err error) {
	dir, err := os.MkdirTemp("", "coverslip-bench-")
	if err != nil {
		return nil, nil, diskError("write tiles for PyTorch", os.TempDir(), err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // temporary files, read by the peers before they are ready
	raw, places := filepath.Join(dir, "tiles.u8"), filepath.Join(dir, "plan.csv")
	if err := writeFile(raw, tiles); err != nil {
		return nil, nil, err
	}
	f, err := os.Create(places)
	if err != nil {
		return nil, nil, diskError("write the plan for PyTorch", places, err)
	}
	defer f.Close()
	if err := writeCSV(f, plan, "", nil); err != nil {
		return nil, nil, err
	}
	threads := strconv.Itoa(runtime.GOMAXPROCS(0))
	if ready, err = e.startPeer("encode_peer.py", "ready", raw, strconv.Itoa(len(plan.Tiles)), "--threads", threads); err != nil {
		return nil, nil, err
	}
	if loop, err = e.startPeer("encode_peer.py", "slide", c.Slide, places, "--threads", threads); err != nil {
		ready.stop()
		return nil, nil, err
	}
	return ready, loop, nil
}

// weigh runs the whole way once in a process of its own. It comes before anything large is in memory:
// the kernel counts what the parent had when it started the child.
func (c *benchEncodeCmd) weigh(e *env, name string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(e, exe, "bench", "encode", c.Slide, "--once") //nolint:gosec // this program
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("encode once: %w: %s", err, out)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return nil
	}
	mb := float64(usage.Maxrss) / 1e3 * 1.024
	return e.measured(measurement{Bench: "encode", Case: "most memory, " + name, Value: mb, Unit: "MB resident", Ratio: 600 / mb, Target: 1, Runs: 1, Machine: machine()})
}

func (c *benchEncodeCmd) open(ctx context.Context, enc encoder.Encoder) (*tiler.Slide, coverslip.Plan, error) {
	slide, err := tiler.Open(ctx, c.Slide)
	if err != nil {
		return nil, coverslip.Plan{}, err
	}
	plan, _, err := slide.Plan(ctx, ingest.DefaultPlan(enc.Model()), tissue.Default())
	if err != nil {
		_ = slide.Close()
		return nil, plan, err
	}
	return slide, plan, nil
}

// endToEnd is what a worker does for a slide up to the features.
func (c *benchEncodeCmd) endToEnd(ctx context.Context, enc encoder.Encoder) (int, error) {
	slide, plan, err := c.open(ctx, enc)
	if err != nil {
		return 0, err
	}
	defer slide.Close()
	_, err = encoder.Run(ctx, enc, slide.Tiles(plan), len(plan.Tiles), 0, func(int, []float32) error { return nil }, nil)
	return len(plan.Tiles), err
}

// decoded reads all tiles into memory, [n, S, S, 3].
func (c *benchEncodeCmd) decoded(ctx context.Context, enc encoder.Encoder) (coverslip.Plan, []byte, error) {
	slide, plan, err := c.open(ctx, enc)
	if err != nil {
		return plan, nil, err
	}
	defer slide.Close()
	tiles := slide.Tiles(plan)
	size := enc.Model().TileSize * enc.Model().TileSize * 3
	out := make([]byte, tiles.Len()*size)
	for i := range tiles.Len() {
		if err := tiles.ReadTile(ctx, out[i*size:(i+1)*size], i); err != nil {
			return plan, nil, err
		}
	}
	return plan, out, nil
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
