package main

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/internal/nn"
	"coverslip/slidessl"
	"coverslip/slidessl/objective"
)

type pretrainCmd struct {
	Cohort string `required:"" placeholder:"NAME" help:"The slides to learn from; labels are not looked at."`
	Out    string `required:"" placeholder:"NAME" help:"Call the aggregator so."`

	Objective     string  `placeholder:"NAME" help:"What is learned: ${objectives} (simclr)."`
	Kind          string  `placeholder:"KIND" help:"The network: prototypes (how much of a slide is like each of 128 typical tiles, beside features and the tiles around), local (each tile beside the mean of the tiles around it), mlp (each tile for itself), attention, or sparse (convolutions over the map of tiles, as in Giga-SSL) (prototypes)."`
	Readout       string  `placeholder:"R" help:"How tiles become one vector: mean, or mean+sd (mean for sparse, else mean+sd)."`
	Width         int     `placeholder:"W" help:"Of the network (128 for prototypes and local, 512 for sparse, else 256)."`
	Tiles         int     `placeholder:"N" help:"Tiles of a view (16)."`
	Epochs        int     `placeholder:"N" help:"Times that every slide is shown (200)."`
	Batch         int     `placeholder:"N" help:"Slides a step (256, or the cohort where it is smaller)."`
	Rate          float64 `placeholder:"R" help:"Peak learning rate at a batch of 256 (0.005 for prototypes, else 0.002)."`
	Temperature   float64 `placeholder:"T" help:"Of objectives that have one (0.1 for simclr, else the paper's)."`
	Projector     int     `placeholder:"N" help:"Layers of the projector (3); -1 is none."`
	Views         bool    `help:"Learn from stored augmented views (coverslip encode --views) instead of tiles as they are."`
	Settings      string  `type:"path" placeholder:"FILE" help:"All settings, as YAML; flags count more. --print-settings writes one."`
	PrintSettings bool    `help:"Print the settings as YAML and leave."`
	Label         string  `placeholder:"COLUMN" help:"Show a nearest-neighbour probe of this label while training; objectives that learn from labels learn from it."`
	Seed          uint64  `placeholder:"S" help:"Equal seeds give equal aggregators (1)."`
	Resume        bool    `help:"Go on where a run of this name was stopped."`
	Workers       int     `placeholder:"N" help:"Cores to use (all). It changes no result."`
	encoderFlags
	dataFlags
}

// Help is shown by coverslip pretrain --help.
func (pretrainCmd) Help() string {
	return `Examples:
  coverslip pretrain --cohort brca --out brca-ssl
  coverslip embed --cohort brca --aggregator brca-ssl
  coverslip probe --cohort brca --label subtype --aggregator brca-ssl

  coverslip encode --cohort brca --views 50 --tiles 256 --wait
  coverslip pretrain --cohort brca --out giga --kind sparse --views --tiles 5 --temperature 0.05 --epochs 1000
  coverslip pretrain --cohort brca --out brca-ssl --resume

Labels are not used, except by the objectives that say so. It shows, epoch by epoch, the loss, alignment
(how far two views of a slide are apart), uniformity (how far slides are) and the effective rank of the
embeddings; the curve is kept as CSV and as a picture. docs/PRETRAIN.md says what to look for.`
}

// Run trains an aggregator.
func (c *pretrainCmd) Run(e *env) error {
	if !modelName.MatchString(c.Out) {
		return &usageError{fmt.Sprintf("--out %q: a name has letters, digits, dots and dashes", c.Out)}
	}
	for _, a := range rules {
		if a.Model().Name == c.Out {
			return &usageError{"--out " + c.Out + ": that aggregator comes with Coverslip"}
		}
	}
	if c.PrintSettings {
		s, err := c.settings(0, 0)
		if err != nil {
			return err
		}
		raw, err := yaml.Marshal(s)
		e.printf("%s", raw)
		return err
	}
	if c.Workers != 0 {
		nn.SetWorkers(c.Workers)
	}
	return c.withFound(e, c.encoderFlags, func(p *platform, in *ingest.Ingest) error { return c.pretrain(e, p, in) })
}

var modelName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// settings are the defaults, changed by the file, changed by flags.
func (c *pretrainCmd) settings(slides, dim int) (slidessl.Settings, error) {
	s := slidessl.DefaultSettings(cmp.Or(c.Kind, slidessl.DefaultKind), cmp.Or(c.Objective, "simclr"), dim)
	if slides > 0 {
		s.Batch = min(s.Batch, slides)
	}
	if c.Settings != "" {
		raw, err := os.ReadFile(c.Settings)
		if err != nil {
			return s, diskError("read the settings", c.Settings, err)
		}
		dec := yaml.NewDecoder(bytes.NewReader(raw))
		dec.KnownFields(true)
		if err := dec.Decode(&s); err != nil {
			return s, &coverslip.Error{Kind: coverslip.Invalid, Op: "read the settings", Path: c.Settings, Err: err, Hint: "coverslip pretrain --print-settings writes a file that is right"}
		}
		s.Architecture.Input = dim
	}
	a := &s.Architecture
	a.Kind, a.Readout, a.Width = cmp.Or(c.Kind, a.Kind), cmp.Or(c.Readout, a.Readout), cmp.Or(c.Width, a.Width)
	s.Objective, s.Epochs, s.Batch = cmp.Or(c.Objective, s.Objective), cmp.Or(c.Epochs, s.Epochs), cmp.Or(c.Batch, s.Batch)
	s.Rate, s.Seed = cmp.Or(c.Rate, s.Rate), cmp.Or(c.Seed, s.Seed)
	s.Options.Temperature, s.Options.Layers = cmp.Or(c.Temperature, s.Options.Temperature), cmp.Or(c.Projector, s.Options.Layers)
	s.View.Tiles, s.View.Plain = cmp.Or(c.Tiles, s.View.Tiles), s.View.Plain && !c.Views
	s.Warmup = min(s.Warmup, s.Epochs)
	return s, nil
}

func (c *pretrainCmd) pretrain(e *env, p *platform, in *ingest.Ingest) error {
	if _, err := p.DB.AddedModel(e, coverslip.AggregatorModel, c.Out); coverslip.KindOf(err) != coverslip.NotFound {
		if err == nil {
			err = &coverslip.Error{Kind: coverslip.Conflict, Op: "pretrain", Path: "aggregator " + c.Out, Err: errors.New("there is one of this name"), Hint: "give another --out"}
		}
		return err
	}
	s, err := c.settings(0, 0)
	if err != nil {
		return err
	}
	if objective.Labelled(s.Objective) && c.Label == "" {
		return &usageError{"objective " + s.Objective + " learns from labels: name their column with --label"}
	}
	src, err := in.FindBags(e, c.Cohort, s.View.Plain, c.Label)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := c.knows(e, p); err != nil {
		return err
	}
	if s, err = c.settings(src.Len(), src.Dim()); err != nil {
		return err
	}
	dir := filepath.Join(p.dir, "pretrain", c.Out)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // curves are for everybody to look at
		return diskError("make the folder of the run", dir, err)
	}
	if n := len(src.Without); n > 0 {
		e.say("%d slides without tissue are left out\n", n)
	}
	curve := &curveFile{path: filepath.Join(dir, "curve.csv")}
	var show func(int)
	run := slidessl.Run{Checkpoint: filepath.Join(dir, "checkpoint.safetensors"), Resume: c.Resume,
		Started: func(s slidessl.Settings, slides int) {
			e.say("%s of %s over %d slides, %d epochs in batches of %d; linear algebra: %s; curve in %s\n", s.Objective, s.Architecture.Kind, slides, s.Epochs, s.Batch, nn.BLAS(), dir)
			if e.terminal {
				show = e.progressOf("training "+c.Out, "epochs", s.Epochs)
			}
		},
		Progress: func(pt slidessl.Point) { c.progress(e, pt, curve, show) }}
	started := time.Now()
	t, err := slidessl.Train(e, s, src, run)
	if err = errors.Join(err, curve.err); err != nil {
		return err
	}
	if err := curve.draw(t.Curve, filepath.Join(dir, "curve.png")); err != nil {
		return err
	}
	card := slidessl.Card{Name: c.Out, Reading: t.Settings.Reading(),
		Data: slidessl.CardData{Cohort: c.Cohort, Slides: src.Len(), Bags: src.Digest(), Encoder: in.Model.Name, EncoderSHA256: in.Model.SHA256}}
	if v := src.Bags[0].Views; v != nil {
		card.Data.Augment = v.Augment
	}
	model, err := keepAggregator(e, p, t, card, dir)
	if err != nil {
		return err
	}
	if e.json {
		return e.emit(struct {
			coverslip.Model
			Slides  int            `json:"slides"`
			Last    slidessl.Point `json:"last"`
			Seconds float64        `json:"seconds"`
		}{model, src.Len(), t.Curve[len(t.Curve)-1], time.Since(started).Seconds()})
	}
	e.printf("%s: %d numbers a slide, from %d slides in %s\nsha256 %s\ncurve  %s\nuse it: coverslip embed --cohort %s --aggregator %s\n", c.Out, model.Dim, src.Len(), time.Since(started).Round(time.Second), model.SHA256,
		filepath.Join(dir, "curve.png"), c.Cohort, c.Out)
	return nil
}

// knows asks for the label column, so that a mistyped one is told.
func (c *pretrainCmd) knows(e *env, p *platform) error {
	if c.Label == "" {
		return nil
	}
	kinds, err := p.DB.LabelKinds(e, c.Cohort)
	if err != nil {
		return err
	}
	if _, there := kinds[c.Label]; !there {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "pretrain", Path: "cohort " + c.Cohort, Err: fmt.Errorf("it has no label column %q", c.Label), Hint: "coverslip cohorts show " + c.Cohort + " lists them"}
	}
	return nil
}

func (c *pretrainCmd) progress(e *env, pt slidessl.Point, curve *curveFile, show func(int)) {
	curve.add(pt)
	switch {
	case e.json:
		_ = e.emit(pt) // the terminal went away
	case show != nil:
		show(pt.Epoch)
	case pt.Epoch == 1 || pt.Epoch%max(pt.Epochs/20, 1) == 0:
		line := fmt.Sprintf("epoch %d of %d: loss %.4f, alignment %.3f, uniformity %.3f, rank %.1f", pt.Epoch, pt.Epochs, pt.Loss, pt.Alignment, pt.Uniformity, pt.Rank)
		if pt.KNN > 0 {
			line += fmt.Sprintf(", neighbours %.3f", pt.KNN)
		}
		e.say("%s, %.2f s\n", line, pt.Seconds)
	}
}

// keepAggregator puts a trained aggregator into the store, then its row.
func keepAggregator(e *env, p *platform, t *slidessl.Trained, card slidessl.Card, dir string) (coverslip.Model, error) {
	path := filepath.Join(dir, "aggregator.safetensors")
	if err := t.Save(path, card); err != nil {
		return coverslip.Model{}, err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return coverslip.Model{}, diskError("read the aggregator back", path, err)
	}
	learned, err := slidessl.ParseLearned(card.Name, raw)
	if err != nil {
		return coverslip.Model{}, err
	}
	model := learned.Model()
	if err := keepFile(e, p.Blobs, aggregatorBlob(model.SHA256), path); err != nil {
		return model, err
	}
	text, err := json.Marshal(learned.Card)
	if err != nil {
		return model, err
	}
	return model, p.DB.AddModel(e, model, text)
}

// curveFile is a run's curve as CSV, written line by line.
type curveFile struct {
	path string
	f    *os.File
	err  error
}

var curveColumns = []string{"epoch", "loss", "rate", "alignment", "uniformity", "rank", "knn", "seconds", "waited"}

func (c *curveFile) add(p slidessl.Point) {
	if c.err != nil {
		return
	}
	if c.f == nil {
		flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
		if p.Epoch == 1 {
			flags |= os.O_TRUNC
		}
		if c.f, c.err = os.OpenFile(c.path, flags, 0o644); c.err != nil { //nolint:gosec // for everybody to look at
			return
		}
	}
	w := csv.NewWriter(c.f)
	if p.Epoch == 1 {
		_ = w.Write(curveColumns) // errors show in Error
	}
	row := []string{strconv.Itoa(p.Epoch)}
	for _, v := range []float64{p.Loss, p.Rate, p.Alignment, p.Uniformity, p.Rank, p.KNN, p.Seconds, p.Waited} {
		row = append(row, strconv.FormatFloat(v, 'g', 6, 64))
	}
	_ = w.Write(row)
	w.Flush()
	c.err = w.Error()
}
