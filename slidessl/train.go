package slidessl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"time"

	"coverslip"
	"coverslip/internal/nn"
	"coverslip/slidessl/measure"
	"coverslip/slidessl/objective"
	"coverslip/slidessl/view"
)

// Source is the slides that an aggregator learns from, each with its stored views: bags of the same slide
// whose tiles were augmented differently, or the one bag of its tiles as they are. Calls come from one
// goroutine at a time.
type Source interface {
	Len() int // slides
	Dim() int // of the encoder's features
	// Stored is how many views of a slide there are, at least 1.
	Stored(slide int) int
	// Places are where a stored view's tiles lie; none is a slide without tissue.
	Places(slide, stored int) ([]view.Place, error)
	// Read writes the features of some tiles of a stored view, [len(tiles),Dim].
	Read(dst []float32, slide, stored int, tiles []int) error
	// Label is the slide's class, -1 where it has none. Only objectives that say so learn from it; beside
	// that it serves the probe that is shown while others train.
	Label(slide int) int
	// Name is what people call the slide.
	Name(slide int) string
}

// Settings are all that determines a trained aggregator, beside the data.
type Settings struct {
	Architecture Architecture      `json:"architecture" yaml:"architecture"`
	Objective    string            `json:"objective" yaml:"objective"`
	Options      objective.Options `json:"options" yaml:"options"`
	View         view.Spec         `json:"view" yaml:"view"`
	Batch        int               `json:"batch" yaml:"batch"`   // slides a step
	Epochs       int               `json:"epochs" yaml:"epochs"` // times that every slide is shown
	Warmup       int               `json:"warmup" yaml:"warmup"` // epochs
	Optimizer    string            `json:"optimizer" yaml:"optimizer"`
	Rate         float64           `json:"rate" yaml:"rate"` // peak learning rate at a batch of 256; it grows with the batch
	Decay        float64           `json:"decay" yaml:"decay"`
	Seed         uint64            `json:"seed" yaml:"seed"`
}

// DefaultKind of aggregator did best on most tasks (docs/PRETRAIN.md).
const DefaultKind = "prototypes"

// DefaultSettings are, for features of this length, what did best on small cohorts (docs/PRETRAIN.md says
// how the published method is asked for): 16 tiles a view, temperature 0.1, tiles as they are.
func DefaultSettings(kind, objectiveName string, input int) Settings {
	s := Settings{Architecture: DefaultArchitecture(kind, input), Objective: objectiveName, View: view.Default(),
		Batch: 256, Epochs: 200, Warmup: 10, Optimizer: "adamw", Rate: 2e-3, Decay: 1e-4, Seed: 1}
	s.View.Tiles, s.View.Plain = 16, true
	if kind == "prototypes" {
		s.Rate = 5e-3
	}
	if objectiveName == "simclr" {
		s.Options.Temperature = 0.1
	}
	if objective.Turned(objectiveName) {
		s.View.Rotate, s.View.Flip = false, false
	}
	return s
}

// Optimizers that Settings may name.
var Optimizers = []string{"adam", "adamw", "sgd", "lars"}

func (s Settings) optimizer() nn.Optimizer {
	switch s.Optimizer {
	case "adam":
		return nn.NewAdam(s.Decay)
	case "adamw":
		return nn.NewAdamW(s.Decay)
	case "sgd":
		return nn.NewSGD(0.9, s.Decay)
	case "lars":
		return nn.NewLARS(s.Decay)
	}
	return nil
}

// Check says what is wrong with settings, for a source of slides.
func (s Settings) Check(slides int) error {
	const op = "pretrain"
	bad := func(hint, why string, args ...any) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf(why, args...), Hint: hint}
	}
	if err := errors.Join(s.Architecture.Check(), s.View.Check()); err != nil {
		return err
	}
	switch {
	case slides < 2:
		return bad("give a cohort of more slides: what is learned is how they differ", "there is %d slide with tissue", slides)
	case objective.Turned(s.Objective) && (s.View.Rotate || s.View.Flip):
		return bad("set view rotate and flip to false", "%s asks by how much the map was turned, and views turn or mirror it anyhow", s.Objective)
	case s.Batch < 2:
		return bad("give --batch 2 or more", "a batch of %d", s.Batch)
	case s.Batch > slides:
		return bad(fmt.Sprintf("give --batch %d or less", slides), "a batch of %d slides, and the cohort has %d", s.Batch, slides)
	case s.Epochs < 1 || s.Warmup < 0 || s.Warmup > s.Epochs:
		return bad("give --epochs 1 or more, and no more --warmup", "%d epochs, %d of them warm-up", s.Epochs, s.Warmup)
	case s.optimizer() == nil:
		return bad(fmt.Sprintf("take one of %v", Optimizers), "there is no optimiser %q", s.Optimizer)
	case !(s.Rate > 0) || s.Rate > 1e3 || !(s.Decay >= 0) || s.Decay > 1e3:
		return bad("", "a learning rate of %g, weight decay %g", s.Rate, s.Decay)
	}
	return nil
}

// Run is how a training run goes about it; nothing here changes its result.
type Run struct {
	// Checkpoint is a file that is written every Every epochs and at the end; "" is none. With Resume the
	// run goes on from it where it is there.
	Checkpoint string
	Every      int // 0 is about twenty times a run
	Resume     bool
	// Started, if set, is told what is trained, on how many slides with tiles.
	Started func(s Settings, slides int)
	// Progress, if set, is told of every epoch. It must return soon.
	Progress func(Point)
	// Saved, if set, is called when the checkpoint was written. Its error ends the run.
	Saved func(ctx context.Context) error
}

// Point is what is seen of one epoch.
type Point struct {
	Epoch     int     `json:"epoch"` // from 1
	Epochs    int     `json:"epochs"`
	Loss      float64 `json:"loss"` // mean over its steps
	Rate      float64 `json:"rate"` // learning rate at its end
	Alignment float64 `json:"alignment"`
	// Uniformity and rank are of one view of the last batch, alignment is of its pairs: see slidessl/measure.
	Uniformity float64 `json:"uniformity"`
	Rank       float64 `json:"rank"`
	KNN        float64 `json:"knn"` // balanced accuracy of nearest neighbours among them; 0 without labels
	Seconds    float64 `json:"seconds"`
	// Waited is the share of the time in which the network waited for data.
	Waited float64 `json:"waited"`
}

// Trained is an aggregator that has learned, with its curve.
type Trained struct {
	Network   *Network
	Objective objective.Objective
	Settings  Settings
	Curve     []Point
}

// Train learns an aggregator. Equal settings and slides give equal bits, whatever the number of workers
// and however often the run was stopped and resumed. A loss that is not finite ends it with an error that
// names the step; the last checkpoint stays.
func Train(ctx context.Context, s Settings, src Source, run Run) (*Trained, error) {
	slides, err := withTissue(src)
	if err != nil {
		return nil, err
	}
	s.Architecture.Input = src.Dim()
	if err := s.Check(len(slides)); err != nil {
		return nil, err
	}
	t, err := newTraining(s, src, slides, run)
	if err != nil {
		return nil, err
	}
	defer t.mem.Free()
	if run.Started != nil {
		run.Started(s, len(slides))
	}
	if err := t.resume(); err != nil {
		return nil, err
	}
	if err := t.run(ctx, run); err != nil {
		return nil, err
	}
	out := &Trained{t.net, t.objective, s, t.curve}
	return out, out.standardise(ctx, t.mem, src, slides, s.Reading())
}

// withTissue lists the slides that have tiles.
func withTissue(src Source) ([]int, error) {
	var slides []int
	for i := range src.Len() {
		places, err := src.Places(i, 0) // views of a slide have all of them tiles, or none has
		if err != nil {
			return nil, err
		}
		if len(places) > 0 {
			slides = append(slides, i)
		}
	}
	return slides, nil
}

type training struct {
	Settings
	src    Source
	slides []int
	file   string
	goOn   bool

	net, average *Network // the second is the first's momentum average, nil without one
	objective    objective.Objective
	optimizer    nn.Optimizer
	params       []*nn.Param
	mem          *nn.Memory
	epoch        int // done
	curve        []Point
}

// Streams of random numbers, so that what is drawn for one thing does not change with another.
const (
	streamWeights = iota + 1
	streamObjective
	streamSample
	streamOrder
	streamViews
	streamPrototypes
)

func (s Settings) random(stream, at int) *rand.Rand {
	return rand.New(rand.NewPCG(s.Seed^uint64(stream)<<56, uint64(at))) //nolint:gosec // numbers that only have to differ
}

func newTraining(s Settings, src Source, slides []int, run Run) (*training, error) {
	t := &training{Settings: s, src: src, slides: slides, file: run.Checkpoint, goOn: run.Resume, mem: nn.NewMemory(), optimizer: s.optimizer()}
	t.net = NewNetwork(s.Architecture, s.random(streamWeights, 0))
	classes := 0
	for _, i := range slides {
		classes = max(classes, src.Label(i)+1)
	}
	o := s.Options
	o.Batch, o.Cohort, o.Classes = s.Batch, len(slides), classes
	var err error
	if t.objective, err = objective.New(s.Objective, s.Architecture.Dim(), o, s.random(streamObjective, 0)); err != nil {
		return nil, err
	}
	sample, of, err := t.sample()
	if err != nil {
		return nil, err
	}
	t.net.Fit(sample, of, s.random(streamPrototypes, 0))
	t.params = append(t.net.Params(), t.objective.Params()...)
	if _, keeps := t.objective.Momentum(0, 1); keeps {
		t.average = NewNetwork(s.Architecture, s.random(streamWeights, 0))
		for i, p := range t.average.Params() {
			copy(p.Value, t.net.Params()[i].Value)
		}
	}
	return t, nil
}

// sampleRows are drawn from all slides to know the features' spread, at least sampleEach of one slide.
const sampleRows, sampleEach = 16384, 8

// sample draws features [n,Dim], of which the segments are of one slide each.
func (t *training) sample() ([]float32, nn.Segments, error) {
	rng := t.random(streamSample, 0)
	slides := t.slides
	if most := sampleRows / sampleEach; len(slides) > most {
		slides = make([]int, most)
		for i := range slides {
			slides[i] = t.slides[i*len(t.slides)/most]
		}
	}
	each := sampleRows / len(slides)
	d := t.src.Dim()
	sample, of := make([]float32, 0, each*len(slides)*d), nn.Segments{0}
	for _, slide := range slides {
		stored := rng.IntN(t.src.Stored(slide))
		places, err := t.src.Places(slide, stored)
		if err != nil {
			return nil, nil, err
		}
		tiles := rng.Perm(len(places))[:min(each, len(places))]
		rows := make([]float32, len(tiles)*d)
		if err := t.src.Read(rows, slide, stored, tiles); err != nil {
			return nil, nil, err
		}
		sample = append(sample, rows...)
		of = append(of, of[len(of)-1]+len(tiles))
	}
	return sample, of, nil
}

// step is a batch that was drawn.
type step struct {
	number int
	slides []int
	batch  view.Batch
	turns  []int // of views, where the objective asks for them
	err    error
}

// steps in an epoch: a last batch that is not full is left out, as batch norms want equal ones.
func (t *training) perEpoch() int { return len(t.slides) / t.Batch }

// draw makes the batch of a step: the views of its slides, view by view.
func (t *training) draw(number int) step {
	epoch, at := number/t.perEpoch(), number%t.perEpoch()
	order := t.random(streamOrder, epoch).Perm(len(t.slides))[at*t.Batch : (at+1)*t.Batch]
	rng := t.random(streamViews, number)
	s := step{number: number, batch: view.Batch{Bags: nn.Segments{0}}}
	for _, i := range order {
		s.slides = append(s.slides, t.slides[i])
	}
	type read struct {
		slide, stored int
		tiles         []int
	}
	var reads []read
	for v := range t.View.Views() {
		for _, slide := range s.slides {
			stored := rng.IntN(t.src.Stored(slide))
			if t.View.Plain {
				stored = 0
			}
			places, err := t.src.Places(slide, stored)
			if err != nil {
				s.err = err
				return s
			}
			tiles, places, err := t.View.Draw(rng, v, places)
			if err != nil {
				s.err = &coverslip.Error{Kind: coverslip.Invalid, Op: "draw a view", Path: t.src.Name(slide), Err: err}
				return s
			}
			if objective.Turned(t.Objective) {
				k := rng.IntN(4)
				s.turns = append(s.turns, k)
				view.Quarters(places, k)
			}
			reads = append(reads, read{slide, stored, tiles})
			s.batch.At = append(s.batch.At, places...)
			s.batch.Bags = append(s.batch.Bags, len(s.batch.At))
		}
	}
	chosen, d := t.net.chosen(), t.src.Dim()
	if s.batch.Dim = d; chosen != nil {
		s.batch.Dim = len(chosen) // the others would only take room
	}
	s.batch.X = make([]float32, 0, len(s.batch.At)*s.batch.Dim)
	var rows []float32
	for _, r := range reads {
		rows = slices.Grow(rows[:0], len(r.tiles)*d)[:len(r.tiles)*d]
		if s.err = t.src.Read(rows, r.slide, r.stored, r.tiles); s.err != nil {
			return s
		}
		if chosen != nil {
			s.batch.X = append(s.batch.X, columns(rows, d, chosen)...)
		} else {
			s.batch.X = append(s.batch.X, rows...)
		}
	}
	return s
}

// run trains from the epoch reached to the last.
func (t *training) run(ctx context.Context, run Run) error {
	total := t.Epochs * t.perEpoch()
	drawn := make(chan step, 2)
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	defer func() { stop(); <-done }()
	first := t.epoch * t.perEpoch()
	go func() {
		defer close(done)
		for n := first; n < total; n++ {
			s := t.draw(n)
			select {
			case drawn <- s:
			case <-ctx.Done():
				return
			}
			if s.err != nil {
				return
			}
		}
	}()
	every := run.Every
	if every <= 0 {
		every = max(t.Epochs/20, 1)
	}
	for t.epoch < t.Epochs {
		point := Point{Epoch: t.epoch + 1, Epochs: t.Epochs}
		started := time.Now()
		var waited time.Duration
		for range t.perEpoch() {
			asked := time.Now()
			var s step
			select {
			case s = <-drawn:
			case <-ctx.Done():
				return &coverslip.Error{Kind: coverslip.Canceled, Op: "pretrain", Err: context.Cause(ctx), Hint: "go on with --resume"}
			}
			waited += time.Since(asked)
			if s.err != nil {
				return s.err
			}
			last := s.number%t.perEpoch() == t.perEpoch()-1
			if err := t.learn(s, total, last, &point); err != nil {
				return coverslip.Doing(fmt.Sprintf("pretrain, step %d of %d (epoch %d)", s.number+1, total, point.Epoch), err)
			}
		}
		point.Loss /= float64(t.perEpoch())
		point.Seconds = time.Since(started).Seconds()
		point.Waited = waited.Seconds() / point.Seconds
		t.epoch++
		t.curve = append(t.curve, point)
		if run.Progress != nil {
			run.Progress(point)
		}
		if t.epoch%every == 0 || t.epoch == t.Epochs {
			if err := t.save(); err != nil {
				return err
			}
			if run.Saved != nil {
				if err := run.Saved(ctx); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// learn takes one step.
func (t *training) learn(s step, total int, measured bool, point *Point) error {
	b := objective.Batch{Slides: t.Batch, Views: t.View.Views(), Global: 2, IDs: s.slides, Turns: s.turns, Step: s.number, Steps: total}
	labels := make([]int, len(s.slides))
	for i, slide := range s.slides {
		labels[i] = t.src.Label(slide)
	}
	if t.objective.Labelled() {
		b.Labels = labels
	}
	g := nn.NewGraph(t.mem, true)
	defer g.Close()
	h := t.net.Forward(g, s.batch)
	var target *nn.Node
	if t.average != nil {
		values, err := t.forwardAverage(s.batch)
		if err != nil {
			return err
		}
		target = g.Constant(h.Rows, h.Cols, values)
	}
	loss, err := g.Backward(t.objective.Loss(h, target, b), h)
	if err != nil {
		return err
	}
	point.Loss += loss
	point.Rate = nn.Cosine(s.number, t.Warmup*t.perEpoch(), total, t.Rate*float64(t.Batch)/256)
	if measured {
		t.measure(h, labels, point)
	}
	t.optimizer.Step(t.params, point.Rate)
	if t.average != nil {
		m, _ := t.objective.Momentum(s.number, total)
		t.move(float32(m))
	}
	t.objective.Stepped(b)
	return nil
}

// forwardAverage embeds the batch by the average, with the batch's statistics as the learner does.
func (t *training) forwardAverage(b view.Batch) ([]float32, error) {
	g := nn.NewGraph(t.mem, true)
	defer g.Close()
	h := t.average.Forward(g, b)
	if err := g.Forward(h); err != nil {
		return nil, err
	}
	return append([]float32(nil), h.Value()...), nil
}

// move brings the average nearer to what was learned.
func (t *training) move(keep float32) {
	learned := t.net.Params()
	for i, p := range t.average.Params() {
		if p.Fixed {
			continue // running statistics are its own, what is known of the features is the same
		}
		for k, v := range learned[i].Value {
			p.Value[k] = keep*p.Value[k] + (1-keep)*v
		}
	}
}

// measure looks at the embeddings of a batch.
func (t *training) measure(h *nn.Node, labels []int, point *Point) {
	d := h.Cols
	rows := append([]float32(nil), h.Value()[:2*t.Batch*d]...)
	for i := range 2 * t.Batch {
		normalise(rows[i*d : (i+1)*d])
	}
	a, b := rows[:t.Batch*d], rows[t.Batch*d:]
	point.Alignment, point.Uniformity, point.Rank = measure.Alignment(a, b, d), measure.Uniformity(a, d), measure.EffectiveRank(a, d)
	point.KNN = neighbours(a, b, d, labels)
}

// Checkpoints. The settings stand in the file, so that a run is not resumed with others.

func (t *training) all() []*nn.Param {
	all := append(append([]*nn.Param(nil), t.params...), t.objective.State()...)
	all = append(all, t.optimizer.State(t.params)...)
	if t.average != nil {
		for _, p := range t.average.Params() {
			named := *p
			named.Name = "average." + p.Name
			all = append(all, &named)
		}
	}
	return all
}

func (t *training) text() map[string]string {
	settings, err := json.Marshal(t.Settings)
	if err != nil {
		panic("slidessl: settings: " + err.Error()) // plain numbers and texts always marshal
	}
	curve, err := json.Marshal(t.curve)
	if err != nil {
		panic("slidessl: a curve: " + err.Error()) // the same: the loss was finite
	}
	return map[string]string{"settings": string(settings), "slides": strconv.Itoa(len(t.slides)), "epoch": strconv.Itoa(t.epoch), "curve": string(curve)}
}

func (t *training) save() error {
	if t.file == "" {
		return nil
	}
	return nn.Save(t.file, t.all(), t.text())
}

func (t *training) resume() error {
	if t.file == "" || !t.goOn {
		return nil
	}
	f, err := nn.Load(t.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for name, want := range t.text() {
		if (name == "settings" || name == "slides") && f.Text[name] != want {
			return &coverslip.Error{Kind: coverslip.Conflict, Op: "resume", Path: t.file, Err: fmt.Errorf("it was made with other %s: %s", name, f.Text[name]),
				Hint: "resume with the same settings and cohort, or start anew without --resume"}
		}
	}
	if t.epoch, err = strconv.Atoi(f.Text["epoch"]); err == nil {
		err = json.Unmarshal([]byte(f.Text["curve"]), &t.curve)
	}
	if err != nil {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "resume", Path: t.file, Err: err, Hint: "start anew without --resume"}
	}
	return coverslip.At(t.file, f.Fill(t.all()))
}
