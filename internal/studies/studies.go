// Package studies makes the stages of studies (slidessl/study) out of the platform: bags of a cohort's slides or of folders
// of tiles, aggregators, embeddings, and figures.
//
// A stage is kept under its key, blobs in the store and figures in the database, and is there whole or not at all. So a
// study that is killed goes on where it was, and studies share what is the same.
package studies

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"coverslip"
	"coverslip/encoder/onnx"
	"coverslip/internal/ingest"
	"coverslip/internal/nn"
	"coverslip/slidessl"
	"coverslip/slidessl/study"
	"coverslip/storage"
	"coverslip/storage/blob"
)

// Maker makes stages, and knows cohorts and encoders (study.Maker, study.Data). It is safe for concurrent use.
type Maker struct {
	File  *study.File
	DB    *storage.DB // nil: only plans are made, and cohorts of the database are assumed
	Blobs blob.Store
	Dir   string // for checkpoints and files on their way
	// Shared puts checkpoints of training into the store, too, so that another machine goes on from there.
	Shared bool
	Tiles  string // folder of the cohorts that the file declares; "" where none was named
	// Assume stands for cohorts that are not there; what is assumed is in Assumed.
	Assume  bool
	Assumed []string
	// Ingest is set up for an encoder; NotFound where there is none of this name.
	Ingest func(ctx context.Context, encoder string) (*ingest.Ingest, error)
	// Open loads an encoder.
	Open func(ctx context.Context, encoder string) (*onnx.Session, error)
	// Encode makes bags of slides, of views or of tiles as they are, and returns when they are there.
	Encode func(ctx context.Context, in *ingest.Ingest, slides []coverslip.Slide, views *coverslip.Views) error
	// Progress, if set, is told how far a stage is.
	Progress func(s study.Stage, done, total int)

	mu       sync.Mutex
	made     map[string]*study.TileCohort
	members  map[string][]coverslip.Member
	ingests  map[string]*ingest.Ingest
	features map[string]*nn.Param // of tiles, by the key of their stage: those used last
	recent   []string
}

// keptFeatures is how many files of features stay in memory.
const keptFeatures = 3

func stageBlob(kind, key string) string { return "studies/" + kind + "/" + key + ".safetensors" }

// checkpoint is the kind of blob that a stage leaves while it is made.
const checkpoint = "checkpoint"

// Has reports which stages are there.
func (m *Maker) Has(ctx context.Context, keys []string) (map[string]bool, error) {
	if m.DB == nil {
		return nil, nil
	}
	there, err := m.DB.EvaluationsAmong(ctx, keys)
	if err != nil {
		return nil, err
	}
	for info, err := range m.Blobs.List(ctx, "studies/") {
		if err != nil {
			return nil, err
		}
		kind, name, _ := strings.Cut(strings.TrimPrefix(info.Key, "studies/"), "/")
		if kind != checkpoint {
			there[strings.TrimSuffix(name, ".safetensors")] = true
		}
	}
	return there, nil
}

// Make makes a stage.
func (m *Maker) Make(ctx context.Context, s study.Stage) error {
	switch s.Kind {
	case "views":
		return m.makeViews(ctx, s)
	case "aggregator":
		return m.makeAggregator(ctx, s)
	case "embeddings":
		return m.makeEmbeddings(ctx, s)
	default:
		return m.makeFigures(ctx, s)
	}
}

func (m *Maker) progress(s study.Stage) func(done, total int) {
	return func(done, total int) {
		if m.Progress != nil {
			m.Progress(s, done, total)
		}
	}
}

// keep writes a stage's numbers into the store.
func (m *Maker) keep(ctx context.Context, s study.Stage, params []*nn.Param, text map[string]string) error {
	dir, err := os.MkdirTemp(m.Dir, "stage-*")
	if err != nil {
		return diskError("make room for a stage", m.Dir, err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a file more in a folder for such
	path := filepath.Join(dir, "stage")
	if err := nn.Save(path, params, text); err != nil {
		return err
	}
	return m.put(ctx, s.Kind, s.Key, path)
}

func (m *Maker) put(ctx context.Context, kind, key, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return diskError("read the stage back", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return diskError("read the stage back", path, err)
	}
	return m.Blobs.Put(ctx, stageBlob(kind, key), f, info.Size())
}

// maxStage bounds what is read into memory.
const maxStage = 16 << 30

func (m *Maker) load(ctx context.Context, kind, key string) ([]byte, error) {
	b, err := m.Blobs.Open(ctx, stageBlob(kind, key))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.Size() > maxStage {
		return nil, &coverslip.Error{Kind: coverslip.TooLarge, Op: "read the stage", Path: stageBlob(kind, key), Err: fmt.Errorf("it has %d bytes", b.Size()), Hint: "give the study fewer views or tiles"}
	}
	return io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
}

func diskError(op, path string, err error) error {
	kind := coverslip.Environment
	if errors.Is(err, os.ErrNotExist) {
		kind = coverslip.NotFound
	}
	return &coverslip.Error{Kind: kind, Op: op, Path: path, Err: err, Hint: "look at the folder, its disk and its permissions"}
}

func (m *Maker) makeViews(ctx context.Context, s study.Stage) error {
	if m.File.Cohorts[s.Cohort] != nil {
		made, err := m.cohort(s.Cohort)
		if err != nil {
			return err
		}
		enc, err := m.Open(ctx, s.Settings.Encoder)
		if err != nil {
			return err
		}
		defer enc.Close()
		x, err := made.Encode(ctx, enc, s.Views, m.progress(s))
		if err != nil {
			return err
		}
		d := enc.Model().Dim
		return m.keep(ctx, s, []*nn.Param{{Name: "features", Rows: len(x) / d, Cols: d, Value: x}}, map[string]string{"encoder": s.Settings.Encoder})
	}
	in, err := m.ingest(ctx, s.Settings.Encoder)
	if err != nil {
		return err
	}
	bags, err := find(ctx, in, s.Cohort, s.Views, "")
	if coverslip.KindOf(err) == coverslip.NotFound {
		slides, e := m.DB.Slides(ctx, storage.SlideFilter{Cohort: s.Cohort})
		if e != nil {
			return e
		}
		if err = m.Encode(ctx, in, slides, s.Views); err == nil {
			bags, err = find(ctx, in, s.Cohort, s.Views, "")
		}
	}
	if err != nil {
		return err
	}
	defer bags.Close()
	// The bags are in the store already: this says that all of them are.
	return m.keep(ctx, s, []*nn.Param{nn.NewParam("none", 1, 1)}, map[string]string{"bags": bags.Digest()})
}

// untrainedRate trains nothing, but the running statistics of norms come to fit the features.
const untrainedRate = 1e-12

func (m *Maker) makeAggregator(ctx context.Context, s study.Stage) error {
	set := s.Settings.Train
	src, err := m.slides(ctx, s.Settings.Cohort, s.Settings.Encoder, s.Settings.Label, s.On[0], viewsOf(s.Settings, set.View.Plain))
	if err != nil {
		return err
	}
	defer src.close() //nolint:errcheck // what was read was read
	if s.Settings.Aggregator == "untrained" {
		set.Objective, set.Epochs, set.Warmup, set.Rate = "simclr", 1, 0, untrainedRate
		set.Options = slidessl.DefaultSettings(set.Architecture.Kind, "simclr", 0).Options
	}
	dir := filepath.Join(m.Dir, s.Key)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return diskError("make room for checkpoints", dir, err)
	}
	report := m.progress(s)
	run := slidessl.Run{Checkpoint: filepath.Join(dir, "checkpoint.safetensors"), Resume: true, Progress: func(p slidessl.Point) { report(p.Epoch, p.Epochs) }}
	if m.Shared {
		if err := m.takeOver(ctx, s.Key, run.Checkpoint); err != nil {
			return err
		}
		run.Saved = func(ctx context.Context) error { return m.put(ctx, checkpoint, s.Key, run.Checkpoint) }
	}
	t, err := slidessl.Train(ctx, set, src.where(s.Settings.Where), run)
	if err != nil {
		if k := coverslip.KindOf(err); !k.Retryable() { // nothing goes on from there
			err = errors.Join(err, m.forget(ctx, s.Key, dir))
		}
		return err
	}
	if s.Settings.Embed.Plain && !set.View.Plain {
		plain, err := m.slides(ctx, s.Settings.Cohort, s.Settings.Encoder, "", s.On[1], nil)
		if err != nil {
			return err
		}
		defer plain.close() //nolint:errcheck // what was read was read
		if err := t.Standardise(ctx, plain.where(s.Settings.Where), s.Settings.Reading()); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, "aggregator.safetensors")
	card := slidessl.Card{Name: "study " + s.Key, Reading: s.Settings.Reading(), Data: slidessl.CardData{Cohort: s.Settings.Cohort, Slides: src.Len(), Bags: s.On[0], Encoder: s.Settings.Encoder}}
	if v := viewsOf(s.Settings, set.View.Plain); v != nil {
		card.Data.Augment = v.Augment
	}
	if err := t.Save(path, card); err != nil {
		return err
	}
	if err := m.put(ctx, s.Kind, s.Key, path); err != nil {
		return err
	}
	return m.forget(ctx, s.Key, dir)
}

// takeOver fetches the checkpoint of a stage that another machine left, unless this one has its own.
func (m *Maker) takeOver(ctx context.Context, key, path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	raw, err := m.load(ctx, checkpoint, key)
	if coverslip.KindOf(err) == coverslip.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return diskError("write the checkpoint", path, err)
	}
	return nil
}

// forget removes the checkpoints of a stage.
func (m *Maker) forget(ctx context.Context, key, dir string) error {
	if m.Shared {
		if err := m.Blobs.Delete(ctx, stageBlob(checkpoint, key)); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// otherViews is added to the seed of the views that alignment is measured on.
const otherViews = 1 << 32

func (m *Maker) makeEmbeddings(ctx context.Context, s study.Stage) error {
	set := s.Settings
	learned := set.Aggregator == "trained" || set.Aggregator == "untrained"
	views := viewsOf(set, set.Embed.Plain || set.Embed.Views == 0 || !learned)
	src, err := m.slides(ctx, set.Embed.Cohort, set.Encoder, "", s.On[len(s.On)-1], views)
	if err != nil {
		return err
	}
	defer src.close() //nolint:errcheck // what was read was read
	embed, err := m.embedder(ctx, s, src)
	if err != nil {
		return err
	}
	sides := 1
	if learned && set.Embed.Views > 0 {
		sides = 2
	}
	report := m.progress(s)
	params := []*nn.Param{{Name: "embeddings"}, {Name: "again"}}[:sides]
	for i := range src.Len() {
		for k, p := range params {
			v, err := embed(i, uint64(k)*otherViews)
			if err != nil {
				return err
			}
			p.Rows, p.Cols, p.Value = i+1, len(v), append(p.Value, v...)
		}
		report(i+1, src.Len())
	}
	ids, err := json.Marshal(src.ids)
	if err != nil {
		return err
	}
	return m.keep(ctx, s, params, map[string]string{"slides": string(ids)})
}

// embedder embeds slide i, of views whose seed is that of the settings and more.
func (m *Maker) embedder(ctx context.Context, s study.Stage, src *slides) (func(i int, more uint64) ([]float32, error), error) {
	for _, rule := range []slidessl.Aggregator{slidessl.Mean{}, slidessl.MeanSD{}} {
		if rule.Model().Name == s.Settings.Aggregator {
			return func(i int, _ uint64) ([]float32, error) {
				bag, err := src.bag(i)
				if err != nil {
					return nil, err
				}
				v, err := rule.Embed(ctx, bag)
				return v, coverslip.At(src.Name(i), err)
			}, nil
		}
	}
	raw, err := m.load(ctx, "aggregator", s.On[0])
	if err != nil {
		return nil, err
	}
	name := s.On[0][:8]
	if tap := s.Settings.Embed.Tap; tap != "" {
		name += ":" + tap
	}
	l, err := slidessl.ParseLearned(name, raw)
	if err != nil {
		return nil, err
	}
	r := s.Settings.Reading()
	return func(i int, more uint64) ([]float32, error) {
		r := r
		r.Seed += more
		return l.EmbedFrom(ctx, src, i, r)
	}, nil
}

func (m *Maker) makeFigures(ctx context.Context, s study.Stage) error {
	judged, done, err := m.judged(ctx, s)
	if err != nil {
		return err
	}
	defer done() //nolint:errcheck // what was read was read
	figures, err := study.Judge(*s.Evaluation, judged)
	if err != nil {
		return err
	}
	rows := make([]storage.StudyFigure, len(figures))
	for i, f := range figures {
		rows[i] = storage.StudyFigure{Figure: f.Name, Training: f.Group, Fold: f.Split, Value: f.Value}
	}
	return m.DB.PutFigures(ctx, s.Key, rows)
}

// judged are the embeddings that an evaluation is of, or the bags that are learned from in their place.
func (m *Maker) judged(ctx context.Context, s study.Stage) (d study.Embedded, done func() error, err error) {
	done = func() error { return nil }
	if s.Settings.Aggregator == "abmil" {
		src, err := m.slides(ctx, s.Settings.Embed.Cohort, s.Settings.Encoder, "", s.On[0], nil)
		if err != nil {
			return d, done, err
		}
		d = src.rows(*s.Evaluation, src.ids)
		d.Learner = &abmil{ctx: ctx, of: src, seed: s.Settings.Train.Seed}
		return d, src.close, nil
	}
	raw, err := m.load(ctx, "embeddings", s.On[0])
	if err != nil {
		return d, done, err
	}
	f, err := nn.Parse(raw)
	if err != nil {
		return d, done, err
	}
	var ids []string
	x := f.Params["embeddings"]
	if err := json.Unmarshal([]byte(f.Text["slides"]), &ids); err != nil || x == nil || x.Rows != len(ids) {
		return d, done, &coverslip.Error{Kind: coverslip.Invalid, Op: "read the embeddings", Path: stageBlob("embeddings", s.On[0]), Err: errors.Join(errors.New("they are not of slides"), err), Hint: "remove the blob, and run the study again"}
	}
	known, err := m.known(ctx, s.Settings.Embed.Cohort)
	if err != nil {
		return d, done, err
	}
	d = known.rows(*s.Evaluation, ids)
	d.X, d.Dim = x.Value, x.Cols
	if again := f.Params["again"]; again != nil {
		d.Again = again.Value
	}
	return d, done, nil
}
