package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"coverslip"
	"coverslip/encoder"
	"coverslip/encoder/augment"
	"coverslip/encoder/onnx"
	"coverslip/internal/nn"
	"coverslip/internal/table"
	"coverslip/mil"
	"coverslip/mil/metric"
	"coverslip/mil/probe"
	"coverslip/slidessl"
	"coverslip/slidessl/slidessltest"
	"coverslip/slidessl/view"
)

type benchSSLCmd struct {
	Tiles    string   `arg:"" type:"existingdir" help:"Folder with idc/ (tiles of patients) and crc5/ (tiles of classes)."`
	Work     string   `type:"path" default:"ssl-bench" help:"Folder for encoded tiles and for figures, which the next run of the same program finds (${default})."`
	Task     []string `sep:"," default:"idc,composition,needle,arrangement,composition-spurious" help:"Which tasks (${default}); in -spurious ones the site tells the label of four fifths of the training slides, and of those for testing nothing."`
	Row      []string `sep:"," placeholder:"NAME,…" help:"Only methods whose name begins so, among them slide SSL (local), (mlp) and (sparse), which are left out otherwise."`
	Encoder  string   `default:"efficientnet-lite0:pooled+stage7+stage5+stage3" help:"Encoder and its taps (${default})."`
	Protocol string   `enum:"gigassl,nested" default:"gigassl" help:"Of the probe: gigassl (C 10 on embeddings of length one) or nested (standardised, C by cross-validation) (${default})."`
	Labels   []int    `sep:"," default:"25,50,100,0" help:"Numbers of labelled slides; 0 is all (${default})."`
	Seeds    int      `default:"5" help:"Of training (${default})."`
	Draws    int      `default:"6" help:"Of test and training slides for each seed (${default})."`
	Steps    int      `default:"100" help:"Of training, of 128 slides each (${default})."`

	program string // its hash: figures of another are not ours
}

// Help is shown by coverslip bench ssl --help.
func (benchSSLCmd) Help() string {
	return `Example:
  coverslip bench ssl ../shared/data
  coverslip bench ssl ../shared/data --row "mean,colour,slide SSL (prototypes)" --seeds 3

What a linear probe with few labels makes of slide embeddings: of aggregators that were trained without
labels, beside mean pooling, mean and deviation, colours alone, an untrained network, and gated attention
MIL trained on the same labels. Figures are AUC on slides the probe has not seen, mean over seeds, with the
deviation between them. The second example takes five minutes of processor time; most of the rest are ABMIL
and the sparse network. A run that is stopped goes on where it was.`
}

// sslTask is slides with labels, and who may be tested on.
type sslTask struct {
	name   string
	cohort *slidessltest.Cohort
	colour [][]float32 // of each slide's tiles, [n,8]
	fixed  int         // slides from this one on are for testing; 0: drawn anew each time
	test   int         // slides drawn for testing
}

// Run prints the table.
func (c *benchSSLCmd) Run(e *env) error {
	if err := os.MkdirAll(c.Work, 0o755); err != nil { //nolint:gosec // nothing secret
		return diskError("make the folder of encoded tiles", c.Work, err)
	}
	if err := c.self(); err != nil {
		return err
	}
	spec, file := encoder.Default()
	_, taps := encoder.SplitName(c.Encoder)
	spec, err := spec.Use(taps...)
	if err != nil {
		return err
	}
	enc, err := onnx.Open(file, spec, onnx.CPU)
	if err != nil {
		return err
	}
	defer enc.Close()
	var tasks []*sslTask
	for _, name := range c.Task {
		var t *sslTask
		if name == "idc" {
			t, err = c.idc(e, enc)
		} else {
			t, err = c.pseudo(e, enc, name)
		}
		if err != nil {
			return err
		}
		tasks = append(tasks, t)
	}
	all := map[string]map[string][][]float64{}
	for _, t := range tasks {
		rows, err := c.judge(e, t)
		if err != nil {
			return err
		}
		all[t.name] = rows
	}
	return c.report(e, tasks, all)
}

func (c *benchSSLCmd) encode(e *env, enc encoder.Encoder, tiles []slidessltest.Tile, look func(int, []uint8), name string) (*slidessltest.Encoded, error) {
	var show func(int)
	return slidessltest.Encode(e, enc, tiles, augment.Spec{}, 0, look, c.Work, name, func(done, total int) {
		if show == nil {
			show = e.progress("encoding "+name, total)
		}
		show(done)
	})
}

// idc is the cohort of breast tumours: is more than a quarter of the tiles invasive carcinoma?
func (c *benchSSLCmd) idc(e *env, enc encoder.Encoder) (*sslTask, error) {
	tiles, err := slidessltest.IDC(filepath.Join(c.Tiles, "idc", "tiles"))
	if err != nil {
		return nil, err
	}
	labels, err := patientLabels(filepath.Join(c.Tiles, "idc", "patients.csv"))
	if err != nil {
		return nil, err
	}
	encoded, err := c.encode(e, enc, tiles, nil, "idc")
	if err != nil {
		return nil, err
	}
	colours, err := slidessltest.Colours(tiles, nil)
	if err != nil {
		return nil, err
	}
	t := &sslTask{name: "idc", cohort: &slidessltest.Cohort{Looks: []*slidessltest.Encoded{encoded}}, test: 60}
	at := map[string]int{}
	for i, tile := range tiles {
		k, there := at[tile.Group]
		if !there {
			k = len(t.cohort.Slides)
			at[tile.Group] = k
			t.cohort.Slides = append(t.cohort.Slides, slidessltest.Slide{Label: labels[tile.Group]})
			t.cohort.Names, t.colour = append(t.cohort.Names, tile.Group), append(t.colour, nil)
		}
		s := &t.cohort.Slides[k]
		s.Tiles = append(s.Tiles, i)
		s.Places = append(s.Places, view.Place{X: float64(tile.X) / 50, Y: float64(tile.Y) / 50})
		t.colour[k] = append(t.colour[k], colours[i]...)
	}
	return t, nil
}

func patientLabels(path string) (map[string]int, error) {
	t, err := table.ReadFile(path)
	if err != nil {
		return nil, err
	}
	labels := map[string]int{}
	for _, line := range t.Lines {
		labels[line.Cells[0]] = 0
		if line.Cells[len(line.Cells)-1] == "1" {
			labels[line.Cells[0]] = 1
		}
	}
	return labels, nil
}

const (
	pseudoTrain, pseudoTest = 200, 100
	pseudoSites             = 3
)

// pseudo is slides made of colorectal tiles: healthy mucosa and adenocarcinoma. Slides for testing are made of
// other tiles than those for training.
func (c *benchSSLCmd) pseudo(e *env, enc encoder.Encoder, name string) (*sslTask, error) {
	task, spurious := strings.CutSuffix(name, "-spurious")
	if !slices.Contains(slidessltest.Tasks, slidessltest.Task(task)) {
		return nil, &usageError{fmt.Sprintf("--task %q: there are idc and %v, the latter with -spurious too", name, slidessltest.Tasks)}
	}
	tiles, err := slidessltest.Classes(filepath.Join(c.Tiles, "crc5", "training"))
	if err != nil {
		return nil, err
	}
	tiles = slices.DeleteFunc(tiles, func(t slidessltest.Tile) bool { return t.Class != "H" && t.Class != "AC" && t.Class != "T" })
	t := &sslTask{name: name, cohort: &slidessltest.Cohort{}, fixed: pseudoTrain}
	var colours [][][]float32
	for site := range pseudoSites {
		look := slidessltest.Look(site)
		encoded, err := c.encode(e, enc, tiles, look, fmt.Sprintf("crc5-site%d", site))
		if err != nil {
			return nil, err
		}
		t.cohort.Looks = append(t.cohort.Looks, encoded)
		colour, err := slidessltest.Colours(tiles, look)
		if err != nil {
			return nil, err
		}
		colours = append(colours, colour)
	}
	rng := rand.New(rand.NewPCG(11, 12))
	for part, n := range []int{pseudoTrain, pseudoTest} {
		s := slidessltest.PseudoSpec{Task: slidessltest.Task(task), Slides: n, Across: 12, Sites: pseudoSites}
		if spurious && part == 0 {
			s.Spurious = 0.8
		}
		for class, list := range map[string]*[]int{"H": &s.Background, "AC": &s.Foreground, "T": &s.Others} {
			seen := 0
			for i, tile := range tiles {
				if tile.Class == class {
					if (seen%3 == 2) == (part == 1) { // every third tile is for testing
						*list = append(*list, i)
					}
					seen++
				}
			}
		}
		t.cohort.Slides = append(t.cohort.Slides, slidessltest.Pseudo(s, rng)...)
	}
	for _, s := range t.cohort.Slides {
		var rows []float32
		for _, tile := range s.Tiles {
			rows = append(rows, colours[s.Site][tile]...)
		}
		t.colour = append(t.colour, rows)
	}
	return t, nil
}

// draw chooses the slides that the probe sees and those it is tested on.
func (t *sslTask) draw(n int, rng *rand.Rand) (train, test []int) {
	all := len(t.cohort.Slides)
	var from []int
	if t.fixed > 0 {
		from = rng.Perm(t.fixed)
		for i := t.fixed; i < all; i++ {
			test = append(test, i)
		}
	} else {
		p := rng.Perm(all)
		test, from = p[:t.test], p[t.test:]
	}
	if n == 0 || n >= len(from) {
		return from, test
	}
	for { // a class of fewer than three cannot be cross-validated
		rng.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
		ones := 0
		for _, i := range from[:n] {
			ones += t.cohort.Slides[i].Label
		}
		if min(ones, n-ones) >= 3 {
			return from[:n], test
		}
	}
}

// method gives, for a seed, the AUC of each number of labels.
type method struct {
	name string
	auc  func(seed int) ([]float64, error)
}

// judge computes all rows of a task: by method, [seeds][labels].
func (c *benchSSLCmd) judge(e *env, t *sslTask) (map[string][][]float64, error) {
	vectors := func(name string, embed func(seed int) ([][]float32, error)) method {
		return method{name, func(seed int) ([]float64, error) {
			v, err := embed(seed)
			if err != nil {
				return nil, err
			}
			return c.probed(t, v, seed)
		}}
	}
	learned := func(kind string) method {
		return vectors("slide SSL ("+kind+")", func(seed int) ([][]float32, error) { return c.learn(e, t, kind, seed, c.Steps) })
	}
	methods := []method{
		vectors("mean pooling", func(int) ([][]float32, error) { return pooled(t, t.rows, false), nil }),
		vectors("mean+sd pooling", func(int) ([][]float32, error) { return pooled(t, t.rows, true), nil }),
		vectors("colour statistics", func(int) ([][]float32, error) {
			return pooled(t, func(i int) ([]float32, int) { return t.colour[i], slidessltest.ColourDim }, true), nil
		}),
		{"gated ABMIL from scratch", func(seed int) ([]float64, error) { return c.abmil(e, t, seed) }},
		vectors("untrained network (local)", func(seed int) ([][]float32, error) { return c.learn(e, t, "local", seed, 0) }),
		vectors("where slide SSL begins", func(seed int) ([][]float32, error) { return c.learn(e, t, slidessl.DefaultKind, seed, 0) }),
		learned(slidessl.DefaultKind),
	}
	if len(c.Row) > 0 { // on request: they take longer than all the others
		methods = append(methods, learned("local"), learned("mlp"), learned("sparse"))
	}
	rows := map[string][][]float64{}
	for _, m := range methods {
		if len(c.Row) > 0 && !slices.ContainsFunc(c.Row, func(p string) bool { return strings.HasPrefix(m.name, p) }) {
			continue
		}
		for seed := range c.Seeds {
			e.say("%s: %s, seed %d of %d\n", t.name, m.name, seed+1, c.Seeds)
			auc, err := c.kept(fmt.Sprint(t.name, m.name, seed, c.Encoder, c.Protocol, c.Draws, c.Steps, c.Labels), func() ([]float64, error) { return m.auc(seed) })
			if err != nil {
				return nil, coverslip.Doing(t.name+", "+m.name, err)
			}
			rows[m.name] = append(rows[m.name], auc)
		}
	}
	return rows, nil
}

// self finds the program's hash.
func (c *benchSSLCmd) self() error {
	path, err := os.Executable()
	if err != nil {
		return diskError("find the program's own file", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return diskError("read the program's own file", path, err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return diskError("read the program's own file", path, err)
	}
	c.program = hex.EncodeToString(h.Sum(nil))
	return nil
}

// kept computes figures, or finds those that this program computed before.
func (c *benchSSLCmd) kept(what string, compute func() ([]float64, error)) ([]float64, error) {
	sum := sha256.Sum256([]byte(c.program + what))
	path := filepath.Join(c.Work, "auc-"+hex.EncodeToString(sum[:8])+".json")
	var auc []float64
	if raw, err := os.ReadFile(path); err == nil && json.Unmarshal(raw, &auc) == nil {
		return auc, nil
	}
	auc, err := compute()
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(auc)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, raw, 0o644); err != nil { //nolint:gosec // nothing secret
		return nil, diskError("keep figures", path, err)
	}
	return auc, nil
}

func (t *sslTask) rows(i int) ([]float32, int) { return t.cohort.Rows(i), t.cohort.Dim() }

func pooled(t *sslTask, rows func(i int) ([]float32, int), sd bool) [][]float32 {
	var out [][]float32
	for i := range t.cohort.Slides {
		x, d := rows(i)
		n := float64(len(x) / d)
		v := make([]float64, 2*d)
		for k, a := range x {
			v[k%d] += float64(a) / n
		}
		for k, a := range x {
			v[d+k%d] += (float64(a) - v[k%d]) * (float64(a) - v[k%d]) / n
		}
		w := d
		if sd {
			w = 2 * d
		}
		row, square := make([]float32, w), 0.0
		for k := range row {
			if k >= d {
				v[k] = math.Sqrt(v[k])
			}
			square += v[k] * v[k]
		}
		for k := range row {
			row[k] = float32(v[k] / math.Sqrt(square))
		}
		out = append(out, row)
	}
	return out
}

// learn trains an aggregator on all slides without their labels (those for testing too, as they would be
// there) and embeds them. Without steps it is as it was drawn.
func (c *benchSSLCmd) learn(e *env, t *sslTask, kind string, seed, steps int) ([][]float32, error) {
	s := slidessl.DefaultSettings(kind, "simclr", t.cohort.Dim())
	s.Batch, s.Seed = 128, uint64(seed)+1 //nolint:gosec // small
	s.Epochs = max(steps/(t.cohort.Len()/s.Batch), 1)
	if steps == 0 {
		s.Rate, s.Warmup = 1e-12, 0
	}
	s.Warmup = min(s.Warmup, s.Epochs)
	show := e.progressOf("training", "epochs", s.Epochs)
	trained, err := slidessl.Train(e, s, t.cohort, slidessl.Run{Progress: func(p slidessl.Point) { show(p.Epoch) }})
	if err != nil {
		return nil, err
	}
	mem := nn.NewMemory()
	defer mem.Free()
	var out [][]float32
	for i := range t.cohort.Slides {
		v, err := trained.Embed(e, mem, t.cohort, i, s.Reading(), "")
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// probed is the mean AUC of balanced logistic regression over draws, for each number of labels.
func (c *benchSSLCmd) probed(t *sslTask, v [][]float32, seed int) ([]float64, error) {
	var out []float64
	d := len(v[0])
	take := func(at []int) (x []float32, y []int) {
		for _, i := range at {
			x, y = append(x, v[i]...), append(y, t.cohort.Slides[i].Label)
		}
		return x, y
	}
	grid := []float64{1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1, 10, 100}
	o := probe.Options{Balanced: true, Standardise: c.Protocol == "nested", MaxSteps: 500}
	for _, n := range c.Labels {
		var sum float64
		for draw := range c.Draws {
			rng := rand.New(rand.NewPCG(uint64(seed), uint64(draw))) //nolint:gosec // small
			train, test := t.draw(n, rng)
			x, y := take(train)
			strength := 10.0
			if o.Standardise {
				choice, err := probe.Choose(x, d, y, 2, inner(y, rng), grid, o)
				if err != nil {
					return nil, err
				}
				strength = choice.C
			}
			m, err := probe.FitLogistic(x, d, y, 2, strength, o)
			if err != nil {
				return nil, err
			}
			tx, ty := take(test)
			p := make([]float64, 2*len(ty))
			m.Predict(p, tx)
			score := make([]float64, len(ty))
			for i := range score {
				score[i] = p[2*i+1]
			}
			sum += metric.AUC(ty, score) / float64(c.Draws)
		}
		out = append(out, sum)
	}
	return out, nil
}

// inner are five stratified folds of rows.
func inner(y []int, rng *rand.Rand) []probe.Fold {
	folds := make([]probe.Fold, 5)
	place := [2]int{}
	for _, i := range rng.Perm(len(y)) {
		of := place[y[i]] % len(folds)
		place[y[i]]++
		for k := range folds {
			if k == of {
				folds[k].Val = append(folds[k].Val, i)
			} else {
				folds[k].Train = append(folds[k].Train, i)
			}
		}
	}
	return folds
}

// abmil trains gated attention on the same labelled slides.
func (c *benchSSLCmd) abmil(e *env, t *sslTask, seed int) ([]float64, error) {
	bags := make(mil.HeldBags, len(t.cohort.Slides))
	y := make([]int, len(bags))
	for i, s := range t.cohort.Slides {
		bags[i] = &mil.Held{Name: t.cohort.Name(i), Rows: t.cohort.Rows(i), D: t.cohort.Dim()}
		y[i] = s.Label
	}
	out := make([]float64, len(c.Labels))
	nn.SetWorkers(1) // cores take trainings
	defer nn.SetWorkers(runtime.GOMAXPROCS(0))
	g, ctx := errgroup.WithContext(e)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for k, n := range slices.Backward(c.Labels) { // the longest first: 0 is all
		g.Go(func() error {
			// One draw, as each trains a network: seeds are draws of their own.
			train, test := t.draw(n, rand.New(rand.NewPCG(uint64(seed), 0))) //nolint:gosec // small
			config := mil.Defaults("gated")
			config.Seed = uint64(seed) //nolint:gosec // small
			m, _, err := mil.Train(ctx, bags, y, 2, train, nil, config, mil.TrainOptions{})
			if err != nil {
				return err
			}
			var ty []int
			var score []float64
			for _, i := range test {
				p, err := m.Predict(ctx, bags[i], false)
				if err != nil {
					return err
				}
				ty, score = append(ty, y[i]), append(score, p.P[1])
			}
			out[k] = metric.AUC(ty, score)
			return nil
		})
	}
	err := g.Wait()
	return out, err
}

// report prints the table, and with --json what the issue asks of it.
func (c *benchSSLCmd) report(e *env, tasks []*sslTask, all map[string]map[string][][]float64) error {
	names := []string{"mean pooling", "mean+sd pooling", "colour statistics", "gated ABMIL from scratch", "untrained network (local)", "where slide SSL begins", "slide SSL (mlp)", "slide SSL (local)", "slide SSL (sparse)", "slide SSL (prototypes)"}
	if !e.json {
		for _, t := range tasks {
			e.printf("\n%s: AUC by labelled slides, ± sd of %d seeds\n", t.name, c.Seeds)
			header := "method"
			for _, labels := range c.Labels {
				header += "\t" + labelsName(labels)
			}
			rows := []string{header}
			for _, name := range names {
				if all[t.name][name] == nil {
					continue
				}
				row := name
				for n := range c.Labels {
					m, sd := spread(all[t.name][name], n)
					row += fmt.Sprintf("\t%.3f ± %.3f", m, sd)
				}
				rows = append(rows, row)
			}
			e.table(rows...)
		}
		return nil
	}
	value := func(task, name string, n int) float64 { m, _ := spread(all[task][name], n); return m }
	points := func(what string, value, asked float64) error {
		return e.measured(measurement{Bench: "ssl", Case: what, Value: value, Unit: "AUC points", Peer: "asked", PeerValue: asked, Ratio: 1 + (value-asked)/100, Target: 1, Runs: c.Seeds, Machine: machine()})
	}
	for _, t := range tasks {
		for _, name := range names {
			for n, labels := range c.Labels {
				if all[t.name][name] == nil {
					continue
				}
				m, _ := spread(all[t.name][name], n)
				if err := e.measured(measurement{Bench: "ssl", Case: fmt.Sprintf("%s, %s, %s", t.name, name, labelsName(labels)), Value: m, Unit: "AUC", Ratio: m, Runs: c.Seeds, Machine: machine()}); err != nil {
					return err
				}
			}
		}
	}
	const ours, abmil = "slide SSL (" + slidessl.DefaultKind + ")", "gated ABMIL from scratch"
	var margin, tried float64
	for _, t := range tasks {
		rows := all[t.name]
		for n, labels := range c.Labels {
			above := func(what, of string, asked float64) error {
				if rows[ours] == nil || rows[of] == nil {
					return nil
				}
				return points(fmt.Sprintf("%s, %s: above %s", t.name, labelsName(labels), what), 100*(value(t.name, ours, n)-value(t.name, of, n)), asked)
			}
			if labels == 50 && rows[ours] != nil && rows[abmil] != nil {
				margin, tried = margin+100*(value(t.name, ours, n)-value(t.name, abmil, n)), tried+1
			}
			if err := errors.Join(above("mean pooling, at most 1 under it", "mean pooling", -1), above("mean+sd pooling, at most 1 under it", "mean+sd pooling", -1)); err != nil {
				return err
			}
			if err := above("where it begins", "where slide SSL begins", 0); err != nil {
				return err
			}
			if t.name == "idc" && rows[ours] != nil {
				if err := above("mean+sd pooling", "mean+sd pooling", 3); err != nil {
					return err
				}
				if best, there := prototype[labels]; there {
					if err := points("idc, "+labelsName(labels)+": above every row of the prototype", 100*(value("idc", ours, n)-best), 0); err != nil {
						return err
					}
				}
			}
			if t.name == "arrangement" && labels == 0 {
				if err := above("mean pooling", "mean pooling", 15); err != nil {
					return err
				}
			}
		}
	}
	if tried == 0 {
		return nil
	}
	return points(fmt.Sprintf("mean margin over gated ABMIL at 50 labels, %g tasks", tried), margin/tried, 6.3)
}

// prototype is the best of every column of a prototype's table, by labelled patients, of 279 of whom ours are 200; all
// are 200 there and 140 here.
var prototype = map[int]float64{25: 0.75, 50: 0.776, 100: 0.817, 0: 0.849}

func labelsName(n int) string { return cmp.Or(map[int]string{0: "all"}[n], fmt.Sprint(n)) }

// spread is the mean over seeds and their standard deviation.
func spread(rows [][]float64, n int) (mean, sd float64) {
	for _, r := range rows {
		mean += r[n] / float64(len(rows))
	}
	for _, r := range rows {
		sd += (r[n] - mean) * (r[n] - mean) / float64(max(len(rows)-1, 1))
	}
	return mean, math.Sqrt(sd)
}
