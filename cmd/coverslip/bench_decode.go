package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"coverslip"
	"coverslip/encoder"
	"coverslip/tiler"
	"coverslip/tiler/tissue"
)

type benchDecodeCmd struct {
	Slide string `arg:"" optional:"" help:"A TIFF or SVS slide; without one, the one in testdata laid 5 × 5 beside itself, as a pyramid of 256-pixel JPEG tiles, quality 75, 4:2:0."`
	Runs  int    `default:"5" help:"Runs of each; medians are compared (${default})."`
}

// Help is shown by coverslip bench decode --help.
func (benchDecodeCmd) Help() string {
	return `Example:
  coverslip bench decode --json

Tiles per second of processor time on one thread, beside OpenSlide's C read_region, openslide-python,
tiffslide, pyvips and cuCIM's CPU reader on the same tiles, taking turns. 40× → 20× reads a slide
whose levels are four times apart, as scanners write them: OpenSlide decodes 512 pixels for each tile
of 256 (that it then has to be shrunk is not counted), Coverslip lets the JPEG decoder do it. Then how
far the pixels and the features of the default encoder move by that; two cores against one, by the
clock, without the time that other programs took the cores away; and the tissue mask of a slide of
100,000 × 100,000 pixels.`
}

// Run measures and prints.
func (c *benchDecodeCmd) Run(e *env) error {
	name := filepath.Base(c.Slide)
	if c.Slide == "" {
		large, err := replicated(e, "testdata/CMU-1-Small-Region.svs", 5)
		if err != nil {
			return err
		}
		defer os.Remove(large) //nolint:errcheck // a temporary file
		name, c.Slide = "CMU-1-Small-Region 5 × 5", large
	}
	dir, err := os.MkdirTemp("", "coverslip-bench-")
	if err != nil {
		return diskError("measure", os.TempDir(), err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // temporary files
	if err := c.speed(e, name, dir); err != nil {
		return err
	}
	if err := c.shrunk(e, name, dir); err != nil {
		return err
	}
	return c.mask(e, dir)
}

// readAll reads all tiles of a plan of this slide, opened anew, on so many threads. It returns how many
// seconds the one that took longest took, without those for which other programs had its core.
func readAll(ctx context.Context, path string, plan coverslip.Plan, workers int) (float64, error) {
	slide, err := tiler.Open(ctx, path)
	if err != nil {
		return 0, err
	}
	defer slide.Close()
	tiles := slide.Tiles(plan)
	took := make([]float64, workers)
	const run = 16 // tiles that a worker takes at a time, as an encoder's workers take batches
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for w := range workers {
		g.Go(func() error {
			runtime.LockOSThread() // whose waits the kernel counts
			defer runtime.UnlockOSThread()
			began, waited := time.Now(), runDelay()
			defer func() { took[w] = (time.Since(began) - (runDelay() - waited)).Seconds() }()
			dst := make([]byte, plan.Size*plan.Size*3)
			for {
				from := int(next.Add(run)) - run
				if from >= tiles.Len() {
					return nil
				}
				for i := from; i < min(from+run, tiles.Len()); i++ {
					if err := tiles.ReadTile(ctx, dst, i); err != nil {
						return err
					}
				}
			}
		})
	}
	err = g.Wait()
	return slices.Max(took), err
}

// runDelay is for how long this thread could have run but had no core so far (Linux, schedstat; 0 where the
// kernel does not count).
func runDelay() time.Duration {
	raw, err := os.ReadFile("/proc/thread-self/schedstat")
	if err != nil {
		return 0
	}
	var ran, waited int64
	_, _ = fmt.Sscan(string(raw), &ran, &waited)
	return time.Duration(waited)
}

// planAt plans 256-pixel tiles at so many times the pixel size of level 0.
func planAt(ctx context.Context, path string, times float64, size int) (coverslip.Plan, error) {
	slide, err := tiler.Open(ctx, path)
	if err != nil {
		return coverslip.Plan{}, err
	}
	defer slide.Close()
	mpp := slide.MPP.Value
	if mpp == 0 {
		mpp = 0.5
	}
	plan, _, err := slide.Plan(ctx, coverslip.PlanParams{MPP: mpp * times, Size: size, MinTissue: 0.25, MPPOfSlide: mpp}, tissue.Default())
	plan.Tiles = slices.DeleteFunc(plan.Tiles, func(t coverslip.Tile) bool { // not every peer reads over the edge
		return float64(t.X)+plan.Span > float64(slide.Width) || float64(t.Y)+plan.Span > float64(slide.Height)
	})
	return plan, err
}

// beside measures us and the peers on the same tiles, in turns.
func (c *benchDecodeCmd) beside(e *env, what, slide string, plan coverslip.Plan, dir string, targets map[string]float64) error {
	places := filepath.Join(dir, "plan.csv")
	f, err := os.Create(places)
	if err != nil {
		return diskError("write the plan", places, err)
	}
	defer f.Close()
	if err := writeCSV(f, plan, "", nil); err != nil {
		return err
	}
	peers := map[string]*peer{}
	order := []string{"openslide-c", "openslide-python", "tiffslide", "pyvips", "cucim"}
	for _, reader := range order {
		if targets[reader] == 0 {
			continue
		}
		p, err := e.startPeer("decode_peer.py", reader, slide, places, strconv.Itoa(int(plan.Span)))
		if err != nil {
			e.say("without %s: %v\n", reader, err)
			continue
		}
		defer p.stop()
		peers[reader] = p
	}
	var ours []float64
	theirs := map[string][]float64{}
	show := e.progress("measuring "+what, c.Runs+1)
	for run := range c.Runs + 1 { // the first is not counted
		var r rate
		if err := r.add(func() (int, error) {
			_, err := readAll(e, slide, plan, 1)
			return len(plan.Tiles), err
		}); err != nil {
			return err
		}
		ours = append(ours, r.perSecond())
		for reader, p := range peers {
			r, err := p.run()
			if err != nil {
				return err
			}
			theirs[reader] = append(theirs[reader], r.perSecond())
		}
		show(run + 1)
	}
	mine := median(ours[1:])
	for _, reader := range order {
		if t := theirs[reader]; t != nil {
			peer := median(t[1:])
			if err := e.measured(measurement{Bench: "decode", Case: fmt.Sprintf("%s, %d tiles, beside %s", what, len(plan.Tiles), reader), Value: mine, Unit: "tiles per CPU-second",
				Peer: reader, PeerValue: peer, Ratio: mine / peer, Target: targets[reader], Runs: c.Runs, Machine: machine()}); err != nil {
				return err
			}
		}
	}
	return nil
}

// speed measures level 0.
func (c *benchDecodeCmd) speed(e *env, name, dir string) error {
	plan, err := planAt(e, c.Slide, 1, 256)
	if err != nil {
		return err
	}
	plan.Tiles = plan.Tiles[:min(len(plan.Tiles), 1500)]
	if err := c.beside(e, "level 0, 256 px, "+name, c.Slide, plan, dir, map[string]float64{"openslide-c": 5, "openslide-python": 5.5, "tiffslide": 1, "pyvips": 1, "cucim": 1}); err != nil {
		return err
	}
	var ratios, rates []float64
	for range c.Runs + 1 {
		var seconds [2]float64
		for i := range seconds {
			var err error
			if seconds[i], err = readAll(e, c.Slide, plan, i+1); err != nil {
				return err
			}
		}
		ratios, rates = append(ratios, seconds[0]/seconds[1]), append(rates, float64(len(plan.Tiles))/seconds[1])
	}
	if err := e.measured(measurement{Bench: "decode", Case: "two cores beside one, " + name, Value: median(rates[1:]), Unit: "tiles per second",
		Peer: "one core", PeerValue: median(rates[1:]) / median(ratios[1:]), Ratio: median(ratios[1:]), Target: 1.9, Runs: c.Runs, Machine: machine()}); err != nil {
		return err
	}
	return c.pixels(e, name, plan, dir)
}

// pixels compares level 0 with OpenSlide.
func (c *benchDecodeCmd) pixels(e *env, name string, plan coverslip.Plan, dir string) error {
	some := plan
	some.Tiles = plan.Tiles[:min(len(plan.Tiles), 200)]
	places, dump := filepath.Join(dir, "some.csv"), filepath.Join(dir, "tiles.rgb")
	f, err := os.Create(places)
	if err != nil {
		return diskError("write the plan", places, err)
	}
	defer f.Close()
	if err := writeCSV(f, some, "", nil); err != nil {
		return err
	}
	p, err := e.startPeer("decode_peer.py", "openslide-python", c.Slide, places, "256", dump)
	if err != nil {
		return nil //nolint:nilerr // without peers it was said already
	}
	p.stop()
	want, err := os.ReadFile(dump)
	if err != nil {
		return err
	}
	slide, err := tiler.Open(e, c.Slide)
	if err != nil {
		return err
	}
	defer slide.Close()
	tiles := slide.Tiles(some)
	got := make([]byte, 256*256*3)
	var most int
	var sum float64
	for i := range some.Tiles {
		if err := tiles.ReadTile(e, got, i); err != nil {
			return err
		}
		for k, v := range got {
			d := int(v) - int(want[i*len(got)+k])
			most, sum = max(most, d, -d), sum+math.Abs(float64(d))
		}
	}
	mean := sum / float64(len(want))
	line := func(what string, value, limit float64) error {
		return e.measured(measurement{Bench: "decode", Case: what + " difference to OpenSlide, level 0, " + name, Value: value, Unit: "of 255",
			Ratio: limit / max(value, limit/100), Target: 1, Runs: 1, Machine: machine()}) // no difference at all counts as a hundredth of the limit
	}
	if err := line("largest", float64(most), 2); err != nil {
		return err
	}
	return line("mean", mean, 0.05)
}

// shrunk measures what is read at half the resolution of level 0 where no level has it.
func (c *benchDecodeCmd) shrunk(e *env, name, dir string) error {
	sparse := filepath.Join(dir, "every-other-level.tif")
	if err := everyOtherLevel(sparse, c.Slide); err != nil {
		return err
	}
	plan, err := planAt(e, sparse, 2, 256)
	if err != nil {
		return err
	}
	plan.Tiles = plan.Tiles[:min(len(plan.Tiles), 600)]
	if plan.Shrink != 2 {
		return fmt.Errorf("the plan at half resolution reads level %d shrunk by %d", plan.Level, plan.Shrink)
	}
	if err := c.beside(e, "40× → 20×, 256 px, "+name, sparse, plan, dir, map[string]float64{"openslide-c": 7}); err != nil {
		return err
	}
	enc, err := openEncoder()
	if err != nil {
		return err
	}
	size := enc.Model().TileSize
	if plan, err = planAt(e, sparse, 2, size); err != nil {
		return err
	}
	plan.Tiles = plan.Tiles[:min(len(plan.Tiles), 200)]
	slide, err := tiler.Open(e, sparse)
	if err != nil {
		return err
	}
	defer slide.Close()
	var square, n float64
	var fast, exact features
	tiles := slide.Tiles(plan)
	read := func(ctx context.Context, dst []byte, i int) error { return tiles.ReadTile(ctx, dst, i) }
	average := func(ctx context.Context, dst []byte, i int) error {
		whole := make([]byte, 4*size*size*3)
		t := plan.Tiles[i]
		if err := slide.Region(ctx, whole, 0, int(t.X), int(t.Y), 2*size, 2*size); err != nil {
			return err
		}
		halve(dst, whole, size)
		return nil
	}
	a, b := make([]byte, size*size*3), make([]byte, size*size*3)
	for i := range plan.Tiles {
		if err := read(e, a, i); err != nil {
			return err
		}
		if err := average(e, b, i); err != nil {
			return err
		}
		for k := range a {
			d := float64(a[k]) - float64(b[k])
			square, n = square+d*d, n+1
		}
	}
	psnr := 10 * math.Log10(255*255/(square/n))
	if err := e.measured(measurement{Bench: "decode", Case: "40× → 20×, beside full decoding and area average, " + name, Value: psnr, Unit: "dB PSNR", Ratio: psnr / 40, Target: 1, Runs: 1, Machine: machine()}); err != nil {
		return err
	}
	for what, src := range map[*features]tileFunc{&fast: read, &exact: average} {
		if _, err := encoder.Run(e, enc, src, len(plan.Tiles), 0, what.add, nil); err != nil {
			return err
		}
	}
	var cosines float64
	for i := range plan.Tiles {
		cosines += cosine(fast.row(i, enc.Model().Dim), exact.row(i, enc.Model().Dim)) / float64(len(plan.Tiles))
	}
	return e.measured(measurement{Bench: "decode", Case: "40× → 20×, features of the default encoder beside full decoding and area average, " + name, Value: cosines, Unit: "mean cosine", Ratio: cosines / 0.995, Target: 1, Runs: 1, Machine: machine()})
}

type tileFunc func(ctx context.Context, dst []byte, i int) error

// ReadTile makes it an encoder.TileReader.
func (f tileFunc) ReadTile(ctx context.Context, dst []byte, i int) error { return f(ctx, dst, i) }

type features []float64

func (f *features) add(_ int, rows []float32) error {
	for _, v := range rows {
		*f = append(*f, float64(v))
	}
	return nil
}

func (f features) row(i, dim int) []float64 { return f[i*dim : (i+1)*dim] }

// halve averages squares of two by two pixels, rounding to the nearest.
func halve(dst, src []byte, size int) {
	for y := range size {
		for x := range size {
			for k := range 3 {
				at := (2*y*2*size+2*x)*3 + k
				dst[(y*size+x)*3+k] = byte((int(src[at]) + int(src[at+3]) + int(src[at+2*size*3]) + int(src[at+2*size*3+3]) + 2) / 4) //nolint:gosec // an average of bytes
			}
		}
	}
}

// mask measures finding tissue on a slide of 100,000 × 100,000 pixels.
func (c *benchDecodeCmd) mask(e *env, dir string) error {
	huge := filepath.Join(dir, "huge.tif")
	if err := tiled(e, huge, c.Slide, 100_000); err != nil {
		return err
	}
	var seconds []float64
	for range c.Runs + 1 {
		slide, err := tiler.Open(e, huge)
		if err != nil {
			return err
		}
		before := cpuTime()
		_, _, err = slide.Plan(e, coverslip.PlanParams{MPP: 0.5, Size: 256, MinTissue: 0.25, MPPOfSlide: 0.25}, tissue.Default())
		seconds = append(seconds, (cpuTime() - before).Seconds())
		if err := slide.Close(); err != nil {
			return err
		}
		if err != nil {
			return err
		}
	}
	took := median(seconds[1:])
	return e.measured(measurement{Bench: "decode", Case: "tissue mask and plan of a slide of 100,000 × 100,000", Value: took, Unit: "CPU-seconds", Ratio: 1 / took, Target: 1, Runs: c.Runs, Machine: machine()})
}

// everyOtherLevel copies a TIFF and takes each second directory out of its chain: levels four times
// apart, as scanners write them.
func everyOtherLevel(dst, src string) error {
	raw, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if raw[0] == 'M' {
		order = binary.BigEndian
	}
	big := order.Uint16(raw[2:]) == 43
	// next is where the offset of the directory after the one at at stands.
	next := func(at uint64) uint64 {
		if big {
			return at + 8 + 20*order.Uint64(raw[at:])
		}
		return at + 2 + 12*uint64(order.Uint16(raw[at:]))
	}
	get := func(at uint64) uint64 {
		if big {
			return order.Uint64(raw[at:])
		}
		return uint64(order.Uint32(raw[at:]))
	}
	put := func(at, v uint64) {
		if big {
			order.PutUint64(raw[at:], v)
		} else {
			order.PutUint32(raw[at:], uint32(v)) //nolint:gosec // came from 32 bits
		}
	}
	at := get(map[bool]uint64{true: 8, false: 4}[big])
	for at != 0 {
		link := next(at)
		skipped := get(link)
		if skipped == 0 {
			break
		}
		at = get(next(skipped))
		put(link, at)
	}
	return os.WriteFile(dst, raw, 0o600)
}
