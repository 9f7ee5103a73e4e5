package main

import (
	"bytes"
	"context"
	"fmt"
	"image"
	_ "image/jpeg" // tiles to centre with
	_ "image/png"  // the same
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"

	"coverslip"
	"coverslip/encoder"
	"coverslip/internal/ingest"
	"coverslip/slidessl"
	"coverslip/tiler"
	"coverslip/tiler/tissue"
)

type benchBudgetCmd struct {
	Slide  string `arg:"" optional:"" help:"The slide; without one, the one in testdata laid 12 × 12 beside itself."`
	Centre string `placeholder:"DIR" help:"Folder of tiles of other slides (.jpg, .png), whose mean is taken off before embeddings are compared: raw cosine flatters."`
	Draws  int    `default:"400" help:"Seeds of each (${default})."`
	Plot   string `placeholder:"FILE" help:"Draw the curves (.png or .svg)."`
}

// Help is shown by coverslip bench budget --help.
func (benchBudgetCmd) Help() string {
	return `Example:
  coverslip bench budget section.svs --centre tiles-of-other-slides/ --plot budget.png

How near the embedding of the first tiles drawn is to that of all of them: tiles against centred
cosine, for the order that --budget draws in and for independent draws, and where --budget auto stops.`
}

// Run measures and prints.
func (c *benchBudgetCmd) Run(e *env) error {
	name := c.Slide
	if c.Slide == "" {
		large, err := replicated(e, "testdata/CMU-1-Small-Region.svs", 12)
		if err != nil {
			return err
		}
		defer os.Remove(large) //nolint:errcheck // a temporary file
		name, c.Slide = "CMU-1-Small-Region 12 × 12", large
	}
	enc, err := openEncoder()
	if err != nil {
		return err
	}
	return c.measure(e, enc, filepath.Base(name))
}

func (c *benchBudgetCmd) measure(e *env, enc encoder.Encoder, name string) error {
	centre := make([]float64, enc.Model().Dim)
	var err error
	if c.Centre != "" {
		if centre, err = meanOfTiles(e, enc, c.Centre); err != nil {
			return err
		}
	} else {
		name += ", not centred"
	}
	s, err := encodeWhole(e, enc, c.Slide)
	if err != nil {
		return err
	}
	s.name, s.centre = name, centre
	return s.measure(e, c.Draws, c.Plot)
}

// wholeBag is all tiles of a slide with their features.
type wholeBag struct {
	name     string
	tiles    []coverslip.Tile
	index    map[coverslip.Tile]int
	features []float32 // [N,D]
	dim      int
	centre   []float64 // [D], taken off before embeddings are compared
	cpu      float64   // seconds it took to make
}

func encodeWhole(e *env, enc encoder.Encoder, path string) (*wholeBag, error) {
	w := &wholeBag{dim: enc.Model().Dim, index: map[coverslip.Tile]int{}}
	before := cpuTime()
	slide, err := tiler.Open(e, path)
	if err != nil {
		return nil, err
	}
	defer slide.Close()
	plan, _, err := slide.Plan(e, ingest.DefaultPlan(enc.Model()), tissue.Default())
	if err != nil {
		return nil, err
	}
	w.tiles = plan.Tiles
	show := e.progress("encoding all of "+filepath.Base(path), len(plan.Tiles))
	_, err = encoder.Run(e, enc, slide.Tiles(plan), len(plan.Tiles), 0, func(_ int, f []float32) error {
		w.features = append(w.features, f...)
		return nil
	}, show)
	w.cpu = (cpuTime() - before).Seconds()
	for i, t := range w.tiles {
		w.index[t] = i
	}
	return w, err
}

func (w *wholeBag) row(i int) []float32 { return w.features[i*w.dim : (i+1)*w.dim] }

// mean is that of some rows, less the centre, both of norm one: embeddings have that norm.
func (w *wholeBag) mean(rows []int) []float64 {
	m := make([]float64, w.dim)
	for _, i := range rows {
		for k, v := range w.row(i) {
			m[k] += float64(v)
		}
	}
	normalise(m)
	for k := range m {
		m[k] -= w.centre[k]
	}
	return m
}

func normalise(v []float64) {
	var s float64
	for _, x := range v {
		s += x * x
	}
	for k := range v {
		v[k] /= math.Sqrt(s)
	}
}

func cosine(a, b []float64) float64 {
	var ab, aa, bb float64
	for k := range a {
		ab, aa, bb = ab+a[k]*b[k], aa+a[k]*a[k], bb+b[k]*b[k]
	}
	return ab / math.Sqrt(aa*bb)
}

// drawn are the rows in the order a budget takes them.
func (w *wholeBag) drawn(seed uint64) []int {
	rows := make([]int, len(w.tiles))
	for i, t := range tiler.Spread(w.tiles, seed) {
		rows[i] = w.index[t]
	}
	return rows
}

// stops is after how many of the drawn rows --budget auto stops.
func (w *wholeBag) stops(rows []int, tolerance float64) int {
	place := make([]int, len(rows))
	for p, i := range tiler.AlongCurve(w.tiles) {
		place[i] = p
	}
	known := slidessl.NewPrecision(len(rows), w.dim)
	stop, _ := ingest.Draw(len(rows), tolerance, func(from, to int) (float64, error) {
		for _, i := range rows[from:to] {
			known.Add(place[i], w.row(i))
		}
		return known.Error(), nil
	})
	return stop
}

func (w *wholeBag) measure(e *env, draws int, picture string) error {
	n := len(w.tiles)
	full := w.mean(rangeOf(n))
	line := func(what string, value float64, unit string, m measurement) error {
		m.Bench, m.Case, m.Value, m.Unit, m.Runs, m.Machine = "budget", what+", "+w.name, value, unit, draws, machine()
		return e.measured(m)
	}
	curves := map[string]plotter.XYs{}
	for _, size := range []int{16, 32, 64, 96, 128, 192, 256, 512, 1024} {
		if size >= n {
			break
		}
		var spread, independent []float64
		var spreadError, independentError float64
		for seed := range uint64(draws) { //nolint:gosec // not negative
			s := cosine(w.mean(w.drawn(seed)[:size]), full)
			rng := rand.New(rand.NewPCG(seed, 0))
			some := make([]int, size)
			for i := range some {
				some[i] = rng.IntN(n)
			}
			i := cosine(w.mean(some), full)
			spread, independent = append(spread, s), append(independent, i)
			spreadError, independentError = spreadError+1-s, independentError+1-i
		}
		x := float64(size)
		for curve, v := range map[string][]float64{"spread": spread, "independent": independent} {
			curves[curve] = append(curves[curve], plotter.XY{X: x, Y: average(v)})
			curves[curve+", worst"] = append(curves[curve+", worst"], plotter.XY{X: x, Y: slices.Min(v)})
		}
		if err := line(fmt.Sprintf("first %d of %d tiles (%.1f %%)", size, n, 100*x/float64(n)), average(spread), fmt.Sprintf("centred cosine (worst %.4f)", slices.Min(spread)),
			measurement{Peer: fmt.Sprintf("independent draws (worst %.4f)", slices.Min(independent)), PeerValue: average(independent), Ratio: independentError / spreadError, Target: 1}); err != nil {
			return err
		}
	}
	var took, near []float64
	for seed := range uint64(draws) { //nolint:gosec // not negative
		rows := w.drawn(seed)
		stop := w.stops(rows, defaultTolerance)
		took, near = append(took, float64(stop)), append(near, cosine(w.mean(rows[:stop]), full))
	}
	if err := line("--budget auto, embedding", average(near), fmt.Sprintf("centred cosine (worst %.4f)", slices.Min(near)), measurement{Ratio: average(near) / 0.98, Target: 1}); err != nil {
		return err
	}
	if err := line(fmt.Sprintf("--budget auto, tiles of %d", n), average(took), fmt.Sprintf("tiles (most %.0f)", slices.Max(took)), measurement{Ratio: 128 / average(took), Target: 1}); err != nil {
		return err
	}
	if picture == "" {
		return nil
	}
	return drawCurves(picture, w.name, curves)
}

func average(v []float64) float64 {
	var s float64
	for _, x := range v {
		s += x / float64(len(v))
	}
	return s
}

func rangeOf(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// meanOfTiles is the mean of the embeddings' direction over pictures of tiles.
func meanOfTiles(ctx context.Context, enc encoder.Encoder, dir string) ([]float64, error) {
	var paths []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if ext := filepath.Ext(path); err == nil && (ext == ".jpg" || ext == ".png") {
			paths = append(paths, path)
		}
		return err
	})
	if err == nil && len(paths) == 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "read tiles to centre with", Path: dir, Err: err, Hint: "name a folder of .jpg or .png tiles"}
	}
	for i, every := 0, max(len(paths)/400, 1); i*every < len(paths); i++ { // so many are enough for a mean
		paths[i] = paths[i*every]
	}
	paths = paths[:min(len(paths), 400)]
	size := enc.Model().TileSize
	sum := make([]float64, enc.Model().Dim)
	_, err = encoder.Run(ctx, enc, pictures{paths, size}, len(paths), 0, func(_ int, f []float32) error {
		for i, v := range f {
			sum[i%len(sum)] += float64(v)
		}
		return nil
	}, nil)
	normalise(sum)
	return sum, err
}

// pictures reads tiles from files: the middle of each.
type pictures struct {
	paths []string
	size  int
}

func (p pictures) ReadTile(_ context.Context, dst []uint8, i int) error {
	raw, err := os.ReadFile(p.paths[i])
	if err != nil {
		return err
	}
	im, _, err := image.Decode(bytes.NewReader(raw))
	if err != nil {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "read a tile to centre with", Path: p.paths[i], Err: err}
	}
	b := im.Bounds()
	left, top := b.Min.X+(b.Dx()-p.size)/2, b.Min.Y+(b.Dy()-p.size)/2
	for y := range p.size {
		for x := range p.size {
			r, g, bl, _ := im.At(left+x, top+y).RGBA()
			k := (y*p.size + x) * 3
			dst[k], dst[k+1], dst[k+2] = uint8(r>>8), uint8(g>>8), uint8(bl>>8) //nolint:gosec // 16 bits less 8
		}
	}
	return nil
}

func drawCurves(path, title string, curves map[string]plotter.XYs) error {
	p := plot.New()
	p.Title.Text = title
	p.X.Label.Text, p.Y.Label.Text = "tiles", "centred cosine to the embedding of all"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{}
	p.Legend.Top = false
	var lines []any
	for _, name := range slices.Sorted(maps.Keys(curves)) {
		lines = append(lines, name, curves[name])
	}
	if err := plotutil.AddLinePoints(p, lines...); err != nil {
		return err
	}
	if err := p.Save(6*vg.Inch, 4*vg.Inch, path); err != nil {
		return diskError("draw the curves", path, err)
	}
	return nil
}
