package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/internal/nn"
	"coverslip/mil"
	"coverslip/mil/metric"
	"coverslip/mil/split"
	"coverslip/storage/bagfile"
)

// milFlags are the settings of a classifier, where they are not the model's own.
type milFlags struct {
	Hidden       []int    `sep:"," placeholder:"N,…" group:"Classifier" help:"Widths of the layers before pooling (256); 0 for none."`
	Attend       int      `placeholder:"N" group:"Classifier" help:"Width inside the attention (128)."`
	Dropout      *float64 `placeholder:"P" group:"Classifier" help:"Share of hidden numbers dropped in training (0.25)."`
	Optimizer    string   `enum:",adam,adamw,sgd" default:"" group:"Classifier" help:"adamw, adam or sgd (adamw)."`
	LR           float64  `placeholder:"RATE" group:"Classifier" help:"Learning rate, falling along half a cosine (0.0002)."`
	WeightDecay  *float64 `placeholder:"W" group:"Classifier" help:"(0.01)"`
	Epochs       int      `placeholder:"N" group:"Classifier" help:"At most so many (40)."`
	Patience     *int     `placeholder:"N" group:"Classifier" help:"End after so many epochs without a better validation loss (12); 0: never."`
	Batch        int      `placeholder:"N" group:"Classifier" help:"Bags a step (1)."`
	Balance      string   `enum:",none,weights,sampling" default:"" group:"Classifier" help:"How unequal classes are made up for: weights, sampling or none (weights)."`
	DropInstance float64  `placeholder:"P" group:"Classifier" help:"Share of a bag's tiles left out of a step, at random (0)."`
	MaxTiles     *int     `placeholder:"N" group:"Classifier" help:"Tiles of a bag in one step, drawn at random (all; 4096 of transmil, 16384 of dsmil and sparse)."`
	Exclusive    bool     `group:"Classifier" help:"Of clam: classes exclude each other, so what speaks for one is none of the others (with more than two classes)."`
}

// settings are those of a model with what was asked for.
func (f *milFlags) settings(m mil.Model, classes int, seed uint64) mil.Config {
	c := mil.Defaults(m)
	c.Seed, c.Exclusive = seed, f.Exclusive || classes > 2
	if len(f.Hidden) > 0 {
		c.Hidden = f.Hidden
	}
	if len(f.Hidden) == 1 && f.Hidden[0] == 0 {
		c.Hidden = nil
	}
	c.Attend, c.Optimizer, c.LR = cmp.Or(f.Attend, c.Attend), cmp.Or(f.Optimizer, c.Optimizer), cmp.Or(f.LR, c.LR)
	c.Epochs, c.Batch, c.Balance = cmp.Or(f.Epochs, c.Epochs), cmp.Or(f.Batch, c.Batch), cmp.Or(mil.Balance(f.Balance), c.Balance)
	c.DropInstance = cmp.Or(f.DropInstance, c.DropInstance)
	for _, v := range []struct{ to, from *float64 }{{&c.Dropout, f.Dropout}, {&c.WeightDecay, f.WeightDecay}} {
		if v.from != nil {
			*v.to = *v.from
		}
	}
	for _, v := range []struct{ to, from *int }{{&c.Patience, f.Patience}, {&c.MaxTiles, f.MaxTiles}} {
		if v.from != nil {
			*v.to = *v.from
		}
	}
	return c
}

type milTrainCmd struct {
	Models []string `name:"model" required:"" sep:"," placeholder:"NAME,…" help:"What to train: mean, max, mean-instance, max-instance, abmil, gated, clam-sb, clam-mb, dsmil, transmil, sparse; several are compared."`
	Save   string   `type:"path" placeholder:"FILE" help:"Train the first model on all labelled slides, too, and write it there, with its model card, for mil predict and mil heatmap."`
	Resume bool     `help:"Go on with the training of --save where it was stopped, from FILE.training."`
	milFlags
	evaluationFlags
	encoderFlags
}

// Help is shown by coverslip mil train --help.
func (milTrainCmd) Help() string {
	return `Examples:
  coverslip mil train --cohort brca --label subtype --model abmil
  coverslip mil train --cohort brca --label subtype --model abmil,clam-sb,dsmil,transmil --splits splits/ --out report/
  coverslip mil train --cohort brca --label subtype --model gated --save gated.safetensors
  coverslip mil train --cohort brca --label subtype --model abmil --few-slides 25,50,100,all --draws 10

Each model is trained on the training side of every split and judged on its test side, beside mean pooling with a
linear probe and the majority class. When to stop is chosen on the validation side of the split, or on a fifth of the
training patients where it has none and there are enough; test slides have no say. Features are scaled over the
training side. Equal seeds give equal figures.

  mean, max                    instances embedded, pooled, classified
  mean-instance, max-instance  instances classified, their classes pooled
  abmil, gated                 attention (Ilse et al. 2018)
  clam-sb, clam-mb             attention and clusters of instances (Lu et al. 2021)
  dsmil                        the critical instance and what is near it (Li et al. 2021)
  transmil                     Nyström attention among instances (Shao et al. 2021)
  sparse                       sparse convolutions over the map of tiles (Lerousseau et al. 2021)`
}

// Run trains and judges.
func (c *milTrainCmd) Run(e *env) error {
	for _, m := range c.Models {
		if !slices.Contains(mil.Models(), mil.Model(m)) {
			return &usageError{fmt.Sprintf("--model %s: there are %s", m, mil.ModelNames())}
		}
	}
	if c.Resume && c.Save == "" {
		return &usageError{"--resume goes with --save"}
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	stored, err := p.bagsOf(e, c.Cohort, c.Encoder)
	if err != nil {
		return err
	}
	ev, err := c.evaluate(e, p, c.Encoder, "", func(m coverslip.Member) string {
		switch b, there := stored[m.Slide]; {
		case !there:
			return "no bag under encoder " + c.Encoder
		case b.Tiles == 0:
			return "its bag is empty: no tissue was found"
		}
		return ""
	})
	if err != nil {
		return err
	}
	bags := &cohortBags{p: p}
	for i, id := range ev.slides {
		bags.keys, bags.names = append(bags.keys, stored[id]), append(bags.names, ev.rows[i].Slide)
	}
	data, err := bags.held(e)
	if err != nil {
		return err
	}

	nn.SetWorkers(1) // cores take splits
	defer nn.SetWorkers(runtime.GOMAXPROCS(0))
	settings := map[string]mil.Config{}
	var methods []coverslip.Method
	var predictions []coverslip.Prediction
	for _, name := range slices.Compact(slices.Clone(c.Models)) {
		t := training{c: c, ev: ev, data: data, settings: c.settings(mil.Model(name), len(ev.classes), c.Seed)}
		settings[name] = t.settings
		show := e.progressOf("training "+name, "splits", len(ev.splits))
		more, err := ev.judge(e, name, runtime.GOMAXPROCS(0), func(s split.Split) ([]float64, error) {
			said, err := t.split(e, s)
			t.mu.Lock()
			defer t.mu.Unlock()
			t.done++
			show(t.done)
			return said, err
		})
		if err != nil {
			return err
		}
		methods, predictions = append(methods, coverslip.Method{Name: name, Note: t.note()}), append(predictions, more...)
	}
	if c.Save != "" {
		if err := c.save(e, ev, data, stored, predictions); err != nil {
			return err
		}
	}
	return ev.finish(e, p, coverslip.MILModel, struct {
		Encoder string                `json:"encoder"`
		Seed    uint64                `json:"seed"`
		Models  map[string]mil.Config `json:"models"`
	}{c.Encoder, c.Seed, settings}, methods, predictions)
}

// training is one model over the splits of an evaluation.
type training struct {
	c        *milTrainCmd
	ev       *evaluation
	data     mil.Dataset
	settings mil.Config

	mu      sync.Mutex
	done    int
	best    []float64 // epochs
	without int       // splits that had nothing to choose by
}

// split trains on one and predicts its test side.
func (t *training) split(ctx context.Context, s split.Split) ([]float64, error) {
	train, val, err := t.c.sides(t.ev, s)
	if err != nil {
		return nil, err
	}
	k, r, err := mil.Train(ctx, t.data, t.ev.y, len(t.ev.classes), train, val, t.settings, mil.TrainOptions{})
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.best = append(t.best, float64(r.Best))
	if len(val) == 0 {
		t.without++
	}
	t.mu.Unlock()
	var said []float64
	for _, i := range s.Rows(split.Test) {
		p, err := predictOne(ctx, k, t.data, i)
		if err != nil {
			return nil, err
		}
		said = append(said, p.P...)
	}
	return said, nil
}

func predictOne(ctx context.Context, k *mil.Classifier, data mil.Dataset, i int) (mil.Prediction, error) {
	bag, err := data.Open(ctx, i)
	if err != nil {
		return mil.Prediction{}, coverslip.At(data.Name(i), err)
	}
	defer bag.Close()
	p, err := k.Predict(ctx, bag, false)
	return p, coverslip.At(data.Name(i), err)
}

// enoughToChoose is how many patients of each class a training side needs before a fifth of it is set apart.
const enoughToChoose = 20

// sides are what is trained on and what tells when to stop.
func (c *milTrainCmd) sides(ev *evaluation, s split.Split) (train, val []int, err error) {
	train, val = s.Rows(split.Train), s.Rows(split.Val)
	least := len(train)
	for _, n := range split.PatientsOf(ev.rows, s) {
		least = min(least, n)
	}
	if len(val) > 0 || least < enoughToChoose || c.Patience != nil && *c.Patience == 0 {
		return train, val, nil
	}
	by := split.ByPatient
	if c.By == "none" {
		by = split.BySlide
	}
	inner, _, err := split.Inner(ev.rows, s, 5, by, rand.New(rand.NewPCG(c.Seed, 2)))
	if err != nil {
		return nil, nil, err
	}
	return inner[0].Rows(split.Train), inner[0].Rows(split.Val), nil
}

func (t *training) note() string {
	slices.Sort(t.best)
	note := fmt.Sprintf("epochs %g to %g, median %g", t.best[0], t.best[len(t.best)-1], median(t.best))
	if t.without > 0 {
		note += fmt.Sprintf("; all %d epochs in %s without a validation side (fewer than %d patients of a class, or none asked for)", t.settings.Epochs, count(t.without, "split"), enoughToChoose)
	}
	return note
}

// save trains on all slides and writes the classifier with its card.
func (c *milTrainCmd) save(e *env, ev *evaluation, data mil.Dataset, stored map[coverslip.SlideID]coverslip.Bag, predictions []coverslip.Prediction) error {
	all := split.Split{Name: "all", Side: make([]split.Side, len(ev.rows))}
	used := map[coverslip.SlideID]bool{}
	for _, p := range predictions {
		used[p.Slide] = true
	}
	for i, id := range ev.slides {
		if used[id] {
			all.Side[i] = split.Train
		}
	}
	train, val, err := c.sides(ev, all)
	if err != nil {
		return err
	}
	settings := c.settings(mil.Model(c.Models[0]), len(ev.classes), c.Seed)
	unfinished := c.Save + ".training"
	if !c.Resume {
		if err := os.Remove(unfinished); err != nil && !os.IsNotExist(err) {
			return diskError("begin the training anew", unfinished, err)
		}
	}
	show := e.progressOf("training "+c.Models[0]+" on all slides", "epochs", settings.Epochs)
	k, r, err := mil.Train(e, data, ev.y, len(ev.classes), train, val, settings, mil.TrainOptions{Checkpoint: unfinished, Progress: func(ep mil.Epoch) { show(ep.Epoch) }})
	if err != nil {
		return err
	}
	h, sides := sha256.New(), sha256.New()
	for i, id := range ev.slides {
		_, _ = fmt.Fprintf(h, "%s %s\n", stored[id].Key, ev.classes[ev.y[i]])
	}
	for _, i := range train {
		_, _ = fmt.Fprintf(sides, "train %s\n", ev.slides[i])
		k.Card.Slides = append(k.Card.Slides, string(ev.slides[i]))
	}
	for _, i := range val {
		_, _ = fmt.Fprintf(sides, "val %s\n", ev.slides[i])
		k.Card.Slides = append(k.Card.Slides, string(ev.slides[i]))
	}
	k.Card.Cohort, k.Card.Label, k.Card.Names, k.Card.Encoder = c.Cohort, c.Label, ev.classes, c.Encoder
	k.Card.Train, k.Card.Val, k.Card.Epochs, k.Card.Best = len(train), len(val), len(r.Epochs), r.Best
	k.Card.Data, k.Card.Split = hex.EncodeToString(h.Sum(nil)), hex.EncodeToString(sides.Sum(nil))
	k.Card.Figures = map[string]float64{"splits": float64(len(ev.splits))}
	figures(k.Card.Figures, c.Models[0], predictions, len(ev.classes))
	k.Card.Notes = append(ev.notes, "figures are of classifiers trained alike on the training sides of the splits; this one has seen all labelled slides")
	if err := k.Save(c.Save); err != nil {
		return err
	}
	if err := os.Remove(unfinished); err != nil {
		return diskError("remove the finished training", unfinished, err)
	}
	if !e.json {
		e.printf("wrote %s: %s on %s, epoch %d of %d\n\n", c.Save, c.Models[0], count(len(train), "slide"), r.Best, len(r.Epochs))
	}
	return nil
}

// figures are the means over splits that a card tells.
func figures(to map[string]float64, method string, predictions []coverslip.Prediction, classes int) {
	type fold struct {
		y, said []int
		score   []float64
	}
	folds := map[string]*fold{}
	for _, p := range predictions {
		if p.Method != method {
			continue
		}
		if folds[p.Split] == nil {
			folds[p.Split] = &fold{}
		}
		f, top := folds[p.Split], 0
		for k, v := range p.P {
			if v > p.P[top] {
				top = k
			}
		}
		f.y, f.said, f.score = append(f.y, p.Truth), append(f.said, top), append(f.score, p.P[len(p.P)-1])
	}
	var accuracy, balanced, auc []float64
	for _, f := range folds {
		accuracy, balanced = append(accuracy, metric.Accuracy(f.y, f.said)), append(balanced, metric.BalancedAccuracy(f.y, f.said, classes))
		if classes == 2 {
			auc = append(auc, metric.AUC(f.y, f.score))
		}
	}
	for name, v := range map[string][]float64{"accuracy": accuracy, "balanced_accuracy": balanced, "auc": auc} {
		slices.Sort(v) // folds come in no order; sums then come out alike
		if m := metric.Across(v); m.Folds > 0 {
			to[name] = m.Value
		}
	}
}

// bagsOf are the longest bags of a cohort's slides under an encoder.
func (p *platform) bagsOf(e *env, cohort, encoder string) (map[coverslip.SlideID]coverslip.Bag, error) {
	members, err := p.DB.Members(e, cohort)
	if err != nil {
		return nil, err
	}
	of := map[coverslip.SlideID]coverslip.Bag{}
	for _, m := range members {
		bags, err := p.DB.Bags(e, m.Slide, encoder)
		if err != nil {
			return nil, err
		}
		for _, b := range bags {
			if b.Views == nil {
				of[m.Slide] = b
				break
			}
		}
	}
	return of, nil
}

// cohortBags are bags in the store, opened as they are needed.
type cohortBags struct {
	p     *platform
	keys  []coverslip.Bag
	names []string
}

// Len is mil.Dataset's.
func (c *cohortBags) Len() int { return len(c.keys) }

// Name is mil.Dataset's.
func (c *cohortBags) Name(i int) string { return c.names[i] }

// Open is mil.Dataset's.
func (c *cohortBags) Open(ctx context.Context, i int) (mil.Bag, error) {
	file, err := c.p.Blobs.Open(ctx, ingest.BagBlob(c.keys[i].Key))
	if err != nil {
		return nil, err
	}
	r, err := bagfile.Open(file, file.Size())
	if err != nil {
		_ = file.Close() // only read
		return nil, err
	}
	return storedBag{r, file}, nil
}

// maxHeld is how many numbers of bags are read into memory once for all splits: 512 MB.
const maxHeld = 128 << 20

// held reads the bags into memory, where they are few enough.
func (c *cohortBags) held(ctx context.Context) (mil.Dataset, error) {
	total := 0
	for _, b := range c.keys {
		total += b.Tiles * b.Dim
	}
	if total > maxHeld {
		return c, nil
	}
	held := make(mil.HeldBags, len(c.keys))
	for i := range c.keys {
		bag, err := c.Open(ctx, i)
		if err != nil {
			return nil, coverslip.At(c.names[i], err)
		}
		h := &mil.Held{Name: c.names[i], D: bag.Dim(), Rows: make([]float32, bag.Len()*bag.Dim()), XY: make([]int64, 2*bag.Len())}
		if err = bag.Features(h.Rows, 0, bag.Len()); err == nil {
			err = bag.Coords(h.XY, 0, bag.Len())
		}
		_ = bag.Close() // only read
		if err != nil {
			return nil, coverslip.At(c.names[i], err)
		}
		held[i] = h
	}
	return held, nil
}
