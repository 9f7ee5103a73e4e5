package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"coverslip"
	"coverslip/internal/nn"
	"coverslip/mil"
	"coverslip/mil/metric"
	"coverslip/mil/split"
	"coverslip/storage/bagfile"
)

type benchMILCmd struct {
	Sets   string `arg:"" optional:"" type:"existingdir" help:"Folder of the five classic sets (musk1.csv.gz …); without it they are not measured."`
	Needle string `type:"existingdir" placeholder:"DIR" help:"Folder of the colorectal tiles (crc5): tumour planted among healthy tiles, found by attention."`
	Only   string `enum:",step,classic,needle,memory" default:"" help:"One of step, classic, needle and memory."`
	Runs   int    `default:"3" help:"Runs of each; medians are compared (${default})."`
}

// Help is shown by coverslip bench mil --help.
func (benchMILCmd) Help() string {
	return `Example:
  coverslip bench mil ../shared/data/mil --needle ../shared/data/crc5 --json

A training step of gated attention on a bag of 2000 × 512 (hidden 128, Adam), and one of ten folds of each of the
five classic sets (30 epochs, bag by bag), beside PyTorch, in seconds of processor time, one thread each; and the
memory in which a bag of 100,000 tiles of 1280 features trains and predicts.`
}

// Run measures and prints.
func (c *benchMILCmd) Run(e *env) error {
	if c.Only == "classic" && c.Sets == "" || c.Only == "needle" && c.Needle == "" {
		return &usageError{"--only " + c.Only + " needs its data: see coverslip bench mil --help"}
	}
	nn.SetWorkers(1)
	defer nn.SetWorkers(runtime.GOMAXPROCS(0))
	e.say("matrices by %s\n", nn.BLAS())
	if core := os.Getenv("OPENBLAS_CORETYPE"); core != "" {
		e.say("OPENBLAS_CORETYPE=%s is set: OpenBLAS may use less than this processor has\n", core)
	}
	for _, part := range []struct {
		name string
		can  bool
		do   func(*env) error
	}{{"step", true, c.step}, {"classic", c.Sets != "", c.classic}, {"needle", c.Needle != "", c.needle}, {"memory", true, c.large}} {
		if c.Only == "" && !part.can || c.Only != "" && c.Only != part.name {
			continue
		}
		if err := part.do(e); err != nil {
			return err
		}
	}
	return nil
}

// step measures training on two bags of 2000 × 512.
func (c *benchMILCmd) step(e *env) error {
	const tiles, dim, epochs = 2000, 512, 25
	rng := rand.New(rand.NewPCG(1, 1))
	bags := make(mil.HeldBags, 2)
	for i := range bags {
		bags[i] = &mil.Held{Name: "random", D: dim, Rows: make([]float32, tiles*dim)}
		for k := range bags[i].Rows {
			bags[i].Rows[k] = float32(rng.NormFloat64())
		}
	}
	settings := mil.Defaults(mil.Gated)
	settings.Hidden, settings.Attend, settings.Dropout, settings.Standardise = nil, 128, 0, false
	settings.Optimizer, settings.LR, settings.WeightDecay, settings.Cosine, settings.Epochs, settings.Patience = "adam", 1e-4, 0, false, epochs, 0
	m := measurement{Case: "gated attention, training step on 2000 × 512, hidden 128, Adam", Unit: "steps a CPU-second", Target: 1.5}
	return c.beside(e, m, []string{"step"}, func() (int, error) {
		_, _, err := mil.Train(e, bags, []int{0, 1}, 2, []int{0, 1}, nil, settings, mil.TrainOptions{})
		return epochs * len(bags), err
	}, nil)
}

// beside takes turns with PyTorch and compares steps in a second of processor time.
func (c *benchMILCmd) beside(e *env, m measurement, args []string, ours func() (int, error), told func(peerRun)) error {
	p, err := e.startPeer("mil_peer.py", args...)
	if err != nil {
		e.say("without PyTorch: %v\n", err)
	} else {
		defer p.stop()
	}
	var mine, theirs []float64
	show := e.progressOf("measuring", "runs", c.Runs)
	for run := range c.Runs {
		r := rate{}
		if err := r.add(ours); err != nil {
			return err
		}
		mine = append(mine, r.perSecond())
		if p != nil {
			other, err := p.run()
			if err != nil {
				return err
			}
			if other.Images != r.done {
				return &coverslip.Error{Kind: coverslip.Internal, Op: "compare with PyTorch", Err: fmt.Errorf("it did %d steps, Coverslip %d", other.Images, r.done)}
			}
			theirs = append(theirs, other.perSecond())
			if told != nil {
				told(other)
			}
		}
		show(run + 1)
	}
	m.Bench, m.Value, m.Runs, m.Machine = "mil", median(mine), c.Runs, machine()
	if p != nil {
		m.Peer, m.PeerValue = "PyTorch", median(theirs)
		m.Ratio = m.Value / m.PeerValue
	}
	return e.measured(m)
}

// classic measures one fold of each of the five sets.
func (c *benchMILCmd) classic(e *env) error {
	settings := mil.ClassicDefaults(mil.Gated)
	folds := struct {
		Epochs      int              `json:"epochs"`
		LR          float64          `json:"lr"`
		WeightDecay float64          `json:"weight_decay"`
		Dropout     float64          `json:"dropout"`
		Test        map[string][]int `json:"test"`
	}{settings.Epochs, settings.LR, settings.WeightDecay, settings.Dropout, map[string][]int{}}
	type set struct {
		bags  mil.HeldBags
		y     []int
		split split.Split
	}
	sets := map[string]set{}
	for _, s := range mil.Classic() {
		bags, y, err := mil.ReadClassic(filepath.Join(c.Sets, s.Name+".csv.gz"))
		if err != nil {
			return err
		}
		splits, err := mil.ClassicFolds(bags, y, 10, 1, 0)
		if err != nil {
			return err
		}
		sets[s.Name] = set{bags, y, splits[0]}
		folds.Test[s.Name] = splits[0].Rows(split.Test)
	}
	f, err := os.CreateTemp("", "coverslip-bench-*.json")
	if err != nil {
		return diskError("write the folds", os.TempDir(), err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // a temporary file
	if err := json.NewEncoder(f).Encode(folds); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	m := measurement{Case: "five classic sets, a fold of each, 30 epochs, gated attention", Unit: "bags a CPU-second", Target: 2}
	mine := 0.0
	err = c.beside(e, m, []string{"classic", c.Sets, f.Name()}, func() (int, error) {
		steps := 0
		mine = 0
		for _, s := range mil.Classic() {
			set := sets[s.Name]
			train := set.split.Rows(split.Train)
			k, _, err := mil.Train(e, set.bags, set.y, 2, train, nil, settings, mil.TrainOptions{})
			if err != nil {
				return 0, err
			}
			var said, truth []int
			for _, i := range set.split.Rows(split.Test) {
				p, err := k.Predict(e, set.bags[i], false)
				if err != nil {
					return 0, err
				}
				class := 0
				if p.P[1] > p.P[0] {
					class = 1
				}
				said, truth = append(said, class), append(truth, set.y[i])
			}
			mine += metric.Accuracy(truth, said) / float64(len(sets))
			steps += len(train) * settings.Epochs
		}
		return steps, nil
	}, func(theirs peerRun) {
		sum := 0.0
		for _, v := range theirs.Values {
			sum += v / float64(len(theirs.Values))
		}
		e.say("mean accuracy of these folds: %.3f, PyTorch %.3f\n", mine, sum)
	})
	return err
}

// large measures the memory of a large bag.
func (c *benchMILCmd) large(e *env) error {
	const tiles, dim, limit = 100_000, 1280, 1000.0
	f, err := os.CreateTemp("", "coverslip-bench-*.safetensors")
	if err != nil {
		return diskError("write the bag to measure with", os.TempDir(), err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // a temporary file
	defer f.Close()
	if err := largeBag(f, tiles, dim); err != nil {
		return err
	}
	for _, model := range []mil.Model{mil.Gated, mil.CLAMSB, mil.DSMIL, mil.TransMIL, mil.Sparse} {
		debug.FreeOSMemory()
		// What the process had before does not count. Linux resets its high-water mark so (proc(5)).
		if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o200); err != nil {
			return diskError("reset the peak of memory", "/proc/self/clear_refs", err)
		}
		settings := mil.Defaults(model)
		settings.Epochs = 1
		data := twice{f.Name()}
		k, _, err := mil.Train(e, data, []int{0, 1}, 2, []int{0, 1}, nil, settings, mil.TrainOptions{})
		if err != nil {
			return err
		}
		bag, err := data.Open(e, 0)
		if err != nil {
			return err
		}
		_, err = k.Predict(e, bag, true)
		_ = bag.Close() // only read
		if err != nil {
			return err
		}
		peak, err := resident("VmHWM:")
		if err != nil {
			return err
		}
		what := "a bag of 100,000 × 1280 trains and predicts"
		if settings.MaxTiles > 0 {
			what = fmt.Sprintf("a bag of 100,000 × 1280 trains on %d tiles a step and predicts", settings.MaxTiles)
		}
		if err := e.measured(measurement{Bench: "mil", Case: what + ", " + string(model) + ", limit 1 GB", Value: peak, Unit: "MB resident", Ratio: limit / peak, Target: 1, Runs: 1, Machine: machine()}); err != nil {
			return err
		}
	}
	return nil
}

func largeBag(f *os.File, tiles, dim int) error {
	places := make([]coverslip.Tile, tiles)
	for i := range places {
		places[i].X, places[i].Y = int64(i%400*224), int64(i/400*224)
	}
	w, err := bagfile.NewWriter(f, bagfile.Metadata{}, places, dim)
	if err != nil {
		return err
	}
	rng, rows := rand.New(rand.NewPCG(1, 1)), make([]float32, 1000*dim)
	for range tiles / 1000 {
		for i := range rows {
			rows[i] = rng.Float32()
		}
		if err := w.Append(rows); err != nil {
			return err
		}
	}
	return w.Close()
}

// twice is the bag of a file as two bags.
type twice struct{ path string }

func (twice) Len() int          { return 2 }
func (t twice) Name(int) string { return t.path }
func (t twice) Open(context.Context, int) (mil.Bag, error) {
	f, err := os.Open(t.path)
	if err != nil {
		return nil, diskError("open the bag", t.path, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r, err := bagfile.Open(f, info.Size())
	return storedBag{r, f}, err
}
