package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"coverslip"
	"coverslip/internal/nn"
	"coverslip/slidessl"
	"coverslip/slidessl/objective"
	"coverslip/slidessl/sparse"
	"coverslip/slidessl/view"
	"coverslip/storage/bagfile"
)

type benchPretrainCmd struct {
	Runs int      `default:"3" help:"Runs of each; medians are compared (${default})."`
	Part []string `sep:"," enum:"steps,growth,loading" default:"steps,growth,loading" help:"What is measured (${default})."`
}

// Help is shown by coverslip bench pretrain --help.
func (benchPretrainCmd) Help() string {
	return `Example:
  coverslip bench pretrain --json

A training step of the published aggregator (two blocks of sparse convolutions 256 → 512, projector, NT-Xent,
Adam) on a batch of 256 slides with two views of 5 and of 64 tiles, in seconds of processor time, one thread:
beside the peak of the same BLAS, beside PyTorch, and beside the step written out by hand; its memory, the
memory after a thousand steps, and the share of time that is spent waiting for data.`
}

// giga is a step on random features of some maps.
type giga struct {
	sites []nn.Site
	x     []float32
	maps  int
	half  *nn.Rulebook
	same  *nn.Rulebook
	flops float64 // that a step needs: of matrix products alone
}

const gigaIn, gigaWidth, gigaTau = 256, 512, 0.05

// newGiga lays tiles of 2·batch views on maps of slides of 256 tiles.
func newGiga(batch, tiles int) *giga {
	rng := rand.New(rand.NewPCG(5, uint64(tiles))) //nolint:gosec // small
	v := &giga{maps: 2 * batch}
	var at []view.Place
	bags := nn.Segments{0}
	slide := make([]view.Place, 256)
	for range v.maps {
		for i := range slide { // a piece of tissue of 16 × 16 tiles
			slide[i] = view.Place{X: float64(i % 16), Y: float64(i / 16)}
		}
		spec := view.Default()
		spec.Tiles = tiles
		_, places, err := spec.Draw(rng, 0, slide)
		if err != nil {
			panic(err) // there are tiles
		}
		at = append(at, places...)
		bags = append(bags, len(at))
	}
	v.sites, _ = sparse.Sites(at, bags)
	v.x = make([]float32, len(v.sites)*gigaIn)
	for i := range v.x {
		v.x[i] = float32(rng.NormFloat64())
	}
	v.half = nn.Strided(v.sites)
	v.same = nn.Submanifold(v.half.Sites)
	pairs := func(b *nn.Rulebook) (n float64) {
		for _, r := range b.Rules {
			n += float64(r.Pairs(b.In))
		}
		return n
	}
	rows := float64(v.maps)
	// Forward and two gradients, but for what is constant.
	v.flops = 2*(pairs(v.half)*gigaIn*gigaWidth*2+pairs(v.same)*gigaWidth*gigaWidth*3*3+float64(len(v.half.Sites))*gigaIn*gigaWidth*2) +
		2*3*rows*(512*512+512*512+512*256) + 2*3*rows*rows*256
	return v
}

// step is one by the graph.
func (v *giga) step(mem *nn.Memory, net *sparse.Network, o objective.Objective, params []*nn.Param, opt nn.Optimizer) error {
	g := nn.NewGraph(mem, true)
	defer g.Close()
	h, bags := net.Forward(g.Constant(len(v.sites), gigaIn, v.x), v.sites, v.maps)
	if _, err := g.Backward(o.Loss(nn.SegmentMean(h, bags), nil, objective.Batch{Slides: v.maps / 2, Views: 2, Global: 2})); err != nil {
		return err
	}
	opt.Step(params, 1e-3)
	return nil
}

// Run measures and prints.
func (c *benchPretrainCmd) Run(e *env) error {
	nn.SetWorkers(1)
	defer nn.SetWorkers(runtime.GOMAXPROCS(0))
	e.say("matrices by %s\n", nn.BLAS())
	for _, part := range c.Part {
		var err error
		switch part {
		case "steps":
			if err = c.steps(e, 5); err == nil {
				err = c.steps(e, 64)
			}
		case "growth":
			err = c.growth(e)
		case "loading":
			err = c.loading(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *benchPretrainCmd) steps(e *env, tiles int) error {
	const batch = 256
	v := newGiga(batch, tiles)
	steps := map[int]int{5: 8, 64: 1}[tiles]
	rng := rand.New(rand.NewPCG(1, 1))
	net := sparse.New(gigaIn, gigaWidth, rng)
	o, err := objective.New("simclr", gigaWidth, objective.Options{Temperature: gigaTau}, rng)
	if err != nil {
		return err
	}
	params, opt, mem := append(net.Params(), o.Params()...), nn.NewAdam(0), nn.NewMemory()
	defer mem.Free()
	hand, handOpt := byHand(rng), nn.NewAdam(0)
	p, err := v.peer(e, steps)
	if err != nil {
		e.say("without PyTorch: %v\n", err)
	} else {
		defer p.stop()
	}
	var ours, theirs, hands, peaks []float64
	show := e.progressOf(fmt.Sprintf("measuring %d tiles", tiles), "runs", c.Runs)
	for run := range c.Runs + 1 {
		if run == 0 { // fills the memory
			v.half, v.same = nn.Strided(v.sites), nn.Submanifold(v.half.Sites)
		}
		r := rate{}
		if err := r.add(func() (int, error) {
			for range steps {
				if err := v.step(mem, net, o, params, opt); err != nil {
					return 0, err
				}
			}
			return steps, nil
		}); err != nil {
			return err
		}
		h := rate{}
		_ = h.add(func() (int, error) { // cannot fail
			for range steps {
				half := nn.Strided(v.sites)
				same := nn.Submanifold(half.Sites)
				hand.Step(v.x, half, same, half.Bags(v.maps))
				handOpt.Step(hand.Params(), 1e-3)
			}
			return steps, nil
		})
		peak := gemmPeak()
		if run == 0 {
			continue
		}
		ours, hands, peaks = append(ours, r.perSecond()), append(hands, h.perSecond()), append(peaks, peak)
		if p != nil {
			t, err := p.run()
			if err != nil {
				return err
			}
			theirs = append(theirs, t.perSecond())
		}
		show(run)
	}
	what := fmt.Sprintf("step of 256 slides × 2 views × %d tiles", tiles)
	m := measurement{Bench: "pretrain", Case: what + ", beside the same BLAS alone", Value: median(ours) * v.flops / 1e9, Unit: "useful GFLOP a CPU-second", Peer: "sgemm 2048 × 512 × 512", PeerValue: median(peaks), Target: 0.5, Runs: c.Runs, Machine: machine()}
	m.Ratio = m.Value / m.PeerValue
	if err := e.measured(m); err != nil {
		return err
	}
	m.Case, m.Value, m.Unit, m.Peer, m.PeerValue, m.Target = what+", beside the same written by hand", median(ours), "steps a CPU-second", "by hand, no graph", median(hands), 0.77
	m.Ratio = m.Value / m.PeerValue
	if err := e.measured(m); err != nil {
		return err
	}
	if p != nil {
		m.Case, m.Peer, m.PeerValue, m.Target = what, "PyTorch", median(theirs), 1.5
		m.Ratio = m.Value / m.PeerValue
		if err := e.measured(m); err != nil {
			return err
		}
	}
	// At most twice the hand-written one's.
	m.Case, m.Value, m.Unit, m.Peer, m.PeerValue, m.Target = what+": memory", float64(mem.Bytes())/1e6, "MB", "by hand, no graph", float64(hand.Bytes())/1e6, 0.5
	m.Ratio = m.PeerValue / m.Value
	return e.measured(m)
}

func byHand(rng *rand.Rand) *nn.ByHand {
	h := &nn.ByHand{Short: nn.NewParam("short", gigaIn, gigaWidth), Norm: nn.NewBatchNorm("norm", gigaWidth), Tau: gigaTau}
	nn.Normal(h.Short, 0.05, rng)
	for i := range h.Convs {
		in := gigaWidth
		if i == 0 {
			in = gigaIn
		}
		h.Convs[i], h.Norms[i] = nn.NewParam(fmt.Sprintf("conv%d", i), 9*in, gigaWidth), nn.NewBatchNorm(fmt.Sprintf("norm%d", i), gigaWidth)
		nn.Normal(h.Convs[i], 0.02, rng)
	}
	for i, out := range []int{512, 512, 256} {
		h.Layers[i] = nn.NewDense(fmt.Sprintf("layer%d", i), 512, out, true, rng)
		if i < 2 {
			h.Heads = append(h.Heads, nn.NewBatchNorm(fmt.Sprintf("head%d", i), out))
		}
	}
	return h
}

// gemmPeak is what the BLAS does in a CPU-second where nothing stands in its way, in GFLOP.
func gemmPeak() float64 {
	const m, n, k = 2048, 512, 512
	a, b, c := make([]float32, m*k), make([]float32, k*n), make([]float32, m*n)
	for i := range a {
		a[i] = float32(i%7) / 7
	}
	for i := range b {
		b[i] = float32(i%5) / 5
	}
	r := rate{}
	_ = r.add(func() (int, error) { // cannot fail
		const times = 60
		for range times {
			nn.Gemm(false, false, m, n, k, 1, a, k, b, n, 0, c, n)
		}
		return times, nil
	})
	return r.perSecond() * 2 * m * n * k / 1e9
}

// peer tells PyTorch the same maps.
func (v *giga) peer(e *env, steps int) (*peer, error) {
	f, err := os.CreateTemp("", "coverslip-bench-*.json")
	if err != nil {
		return nil, diskError("write the maps for PyTorch", os.TempDir(), err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // read before the peer says that it is ready
	pairs := func(b *nn.Rulebook) (all [][2][]int32) {
		for _, r := range b.Rules {
			in, out := r.Rows(b.In)
			all = append(all, [2][]int32{in, out})
		}
		return all
	}
	bag := make([]int32, len(v.half.Sites))
	for i, s := range v.half.Sites {
		bag[i] = s.Map
	}
	err = json.NewEncoder(f).Encode(map[string]any{"steps": steps, "sites": len(v.sites), "halved": len(v.half.Sites), "bag": bag, "half": pairs(v.half), "same": pairs(v.same)})
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return nil, err
	}
	return e.startPeer("pretrain_peer.py", f.Name())
}

// growth takes a thousand small steps.
func (c *benchPretrainCmd) growth(e *env) error {
	const batch, steps = 16, 1000
	v := newGiga(batch, 5)
	rng := rand.New(rand.NewPCG(1, 1))
	net := sparse.New(gigaIn, 64, rng)
	o, err := objective.New("simclr", 64, objective.Options{Temperature: gigaTau}, rng)
	if err != nil {
		return err
	}
	params, opt, mem := append(net.Params(), o.Params()...), nn.NewAdam(0), nn.NewMemory()
	defer mem.Free()
	show := e.progressOf("a thousand steps", "steps", steps)
	var early, late float64
	for i := range steps {
		if err := v.step(mem, net, o, params, opt); err != nil {
			return err
		}
		if i == 99 || i == steps-1 {
			debug.FreeOSMemory() // what was measured before this is not to be seen
			now, err := resident("VmRSS:")
			if err != nil {
				return err
			}
			if i == 99 {
				early = now
			}
			late = now
		}
		show(i + 1)
	}
	m := measurement{Bench: "pretrain", Case: "resident memory after 1000 steps, beside 100 steps", Value: late, Unit: "MB", Peer: "after 100", PeerValue: early, Target: 0.95, Runs: 1, Machine: machine()}
	m.Ratio = m.PeerValue / m.Value
	return e.measured(m)
}

// loading trains on view bags that lie in files.
func (c *benchPretrainCmd) loading(e *env) error {
	const slides, views, tiles = 256, 4, 256
	dir, err := os.MkdirTemp("", "coverslip-bench-*")
	if err != nil {
		return diskError("write bags to read", os.TempDir(), err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	src := &bagFolder{}
	defer src.close()
	rng := rand.New(rand.NewPCG(3, 3))
	row := make([]float32, gigaIn)
	show := e.progressOf("writing bags", "slides", slides)
	for i := range slides {
		path := filepath.Join(dir, fmt.Sprint(i))
		f, err := os.Create(path)
		if err != nil {
			return diskError("write bags to read", path, err)
		}
		at := make([]coverslip.Tile, tiles)
		for k := range at {
			at[k] = coverslip.Tile{X: int64(k%16) * 224, Y: int64(k/16) * 224}
		}
		all := make([][]coverslip.Tile, views)
		for k := range all {
			all[k] = at
		}
		w, err := bagfile.NewViewWriter(f, bagfile.Metadata{SlideMPP: 0.5, MPP: 0.5, TileSize: 224}, all, gigaIn)
		for k := 0; err == nil && k < views*tiles; k++ {
			for j := range row {
				row[j] = rng.Float32()
			}
			err = w.Put(k, row)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			return err
		}
		src.files = append(src.files, f)
		show(i + 1)
	}
	s := slidessl.DefaultSettings("sparse", "simclr", gigaIn)
	s.View, s.Epochs, s.Warmup = view.Default(), 8, 1
	var waited, total float64
	if _, err := slidessl.Train(e, s, src, slidessl.Run{Progress: func(p slidessl.Point) { waited += p.Waited * p.Seconds; total += p.Seconds }}); err != nil {
		return err
	}
	share := 100 * waited / total
	return e.measured(measurement{Bench: "pretrain", Case: "waiting for data, 256 slides × 2 views × 5 tiles from files", Value: share, Unit: "% of the time", Ratio: 5 / max(share, 0.01), Target: 1, Runs: 1, Machine: machine()})
}

// bagFolder is bags of views in files, as a source.
type bagFolder struct {
	files []*os.File
	bags  []*bagfile.ViewReader
}

func (b *bagFolder) close() {
	for _, f := range b.files {
		_ = f.Close() // read only
	}
}

func (b *bagFolder) bag(i int) (*bagfile.ViewReader, error) {
	if b.bags == nil {
		b.bags = make([]*bagfile.ViewReader, len(b.files))
	}
	if b.bags[i] == nil {
		info, err := b.files[i].Stat()
		if err != nil {
			return nil, err
		}
		if b.bags[i], err = bagfile.OpenViews(b.files[i], info.Size()); err != nil {
			return nil, err
		}
	}
	return b.bags[i], nil
}

func (b *bagFolder) Len() int        { return len(b.files) }
func (b *bagFolder) Dim() int        { return gigaIn }
func (b *bagFolder) Stored(int) int  { return 4 }
func (b *bagFolder) Label(int) int   { return -1 }
func (b *bagFolder) Name(int) string { return "" }

func (b *bagFolder) Places(i, stored int) ([]view.Place, error) {
	bag, err := b.bag(i)
	if err != nil {
		return nil, err
	}
	corners := make([]int64, 2*bag.Tiles())
	if err := bag.Coords(corners, stored*bag.Tiles(), bag.Tiles()); err != nil {
		return nil, err
	}
	return view.Places(corners, bag.Pitch()), nil
}

func (b *bagFolder) Read(dst []float32, i, stored int, tiles []int) error {
	bag, err := b.bag(i)
	if err != nil {
		return err
	}
	for k, t := range tiles {
		if err := bag.Features(dst[k*gigaIn:(k+1)*gigaIn], stored*bag.Tiles()+t, 1); err != nil {
			return err
		}
	}
	return nil
}
