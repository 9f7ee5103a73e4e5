package slidessl

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"coverslip"
	"coverslip/internal/nn"
	"coverslip/slidessl/objective"
	"coverslip/slidessl/view"
)

// Placed is a bag that knows where its tiles lie.
type Placed interface {
	Bag
	// Coords writes the corners of rows from to from+n, [n,2], level-0 pixels.
	Coords(dst []int64, from, n int) error
	// Pitch is the distance of neighbouring tiles in level-0 pixels; 0 is not known.
	Pitch() float64
}

// Card says where a trained aggregator comes from. It stands in its file.
type Card struct {
	Name     string    `json:"name"`
	Settings Settings  `json:"settings"`
	Reading  Reading   `json:"reading"` // how slides are read unless somebody says otherwise
	Data     CardData  `json:"data"`
	Curve    CardCurve `json:"curve"`
	Version  string    `json:"coverslip_version"`
}

// CardData is what it learned from.
type CardData struct {
	Cohort        string `json:"cohort,omitempty"`
	Slides        int    `json:"slides"`
	Bags          string `json:"bags"` // SHA-256 over the keys of the bags, in order
	Encoder       string `json:"encoder"`
	EncoderSHA256 string `json:"encoder_sha256"`
	Augment       string `json:"augment,omitempty"` // of the stored views
}

// CardCurve is how its training ended.
type CardCurve struct {
	Loss       float64 `json:"loss"`
	Alignment  float64 `json:"alignment"`
	Uniformity float64 `json:"uniformity"`
	Rank       float64 `json:"rank"`
}

// Save writes an aggregator, its projector and its card to a safetensors file. Equal trainings give equal
// bytes.
func (t *Trained) Save(path string, card Card) error {
	card.Settings, card.Version = t.Settings, coverslip.Version
	if n := len(t.Curve); n > 0 {
		p := t.Curve[n-1]
		card.Curve = CardCurve{p.Loss, p.Alignment, p.Uniformity, p.Rank}
	}
	raw, err := json.Marshal(card)
	if err != nil {
		panic("slidessl: a card: " + err.Error()) // plain numbers and texts always marshal
	}
	params := append(t.Network.Params(), t.Objective.Params()...)
	return nn.Save(path, params, map[string]string{"card": string(raw), "format": fileFormat})
}

// fileFormat tells our files from others; it changes when the same numbers come to mean something else.
const fileFormat = "coverslip aggregator 1"

// Learned is a trained aggregator at work. It is safe for concurrent use.
type Learned struct {
	Card Card

	trained *Trained
	model   coverslip.Model
	tap     string
	mem     *nn.Memory
}

// ParseLearned reads what Save wrote. name may end in ":" and a layer of the projector whose output is to
// be the embedding. Files that are damaged or something else are Invalid.
func ParseLearned(name string, raw []byte) (*Learned, error) {
	const op = "load the aggregator"
	f, err := nn.Parse(raw)
	if err != nil {
		return nil, coverslip.At("aggregator "+name, coverslip.Doing(op, err))
	}
	bad := func(err error, hint string) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: "aggregator " + name, Err: err, Hint: hint}
	}
	l := &Learned{mem: nn.NewMemory()}
	if f.Text["format"] != fileFormat {
		return nil, bad(errors.New("it is no aggregator of this version"), "make one with coverslip pretrain")
	}
	dec := json.NewDecoder(bytes.NewReader([]byte(f.Text["card"])))
	if err := dec.Decode(&l.Card); err != nil {
		return nil, bad(fmt.Errorf("its card: %w", err), "the file is damaged; get it again")
	}
	s := l.Card.Settings
	if err := errors.Join(s.Architecture.Check(), l.Card.Reading.View.Check()); err != nil {
		return nil, coverslip.At("aggregator "+name, coverslip.Doing(op, err))
	}
	if n := s.Architecture.weights(); n > len(raw)/4 {
		return nil, bad(fmt.Errorf("its card speaks of %d weights, which do not go into %d bytes", n, len(raw)), "the file is damaged; get it again")
	}
	l.trained = &Trained{Network: NewNetwork(s.Architecture, s.random(streamWeights, 0)), Settings: s}
	o := s.Options
	if objective.Labelled(s.Objective) {
		o.Classes = max(o.Classes, 2)
	}
	if l.trained.Objective, err = objective.New(s.Objective, s.Architecture.Dim(), o, s.random(streamObjective, 0)); err != nil {
		return nil, coverslip.At("aggregator "+name, coverslip.Doing(op, err))
	}
	fill := l.trained.Network.Params()
	_, l.tap, _ = strings.Cut(name, ":")
	if l.tap == "" {
		l.tap = Backbone
	}
	if !slices.Contains(l.trained.Taps(), l.tap) {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: "aggregator " + name, Err: fmt.Errorf("it has no layer %q", l.tap),
			Hint: "it has " + strings.Join(l.trained.Taps(), ", ")}
	}
	if l.tap != Backbone {
		for _, p := range l.trained.Objective.Params() {
			if strings.HasPrefix(p.Name, "projector.") {
				fill = append(fill, p)
			}
		}
	}
	if err := f.Fill(fill); err != nil {
		return nil, coverslip.At("aggregator "+name, err)
	}
	sum := sha256.Sum256(raw)
	l.model = coverslip.Model{Kind: coverslip.AggregatorModel, Name: name, SHA256: hex.EncodeToString(sum[:]), Dim: l.dim(),
		Source: fmt.Sprintf("%s, %s on %d slides", s.Objective, s.Architecture.Kind, l.Card.Data.Slides)}
	return l, nil
}

// dim is the length of what the tap gives, found by running one tile through it.
func (l *Learned) dim() int {
	a := l.Card.Settings.Architecture
	_, d, err := l.trained.forward(l.mem, view.Batch{X: make([]float32, a.Input), Dim: a.Input, At: make([]view.Place, 1), Bags: nn.Segments{0, 1}}, l.tap)
	if err != nil {
		return a.Dim()
	}
	return d
}

// Model is what it is known by.
func (l *Learned) Model() coverslip.Model { return l.model }

// Embed reads a slide's bag of tiles as they are; see EmbedFrom.
func (l *Learned) Embed(ctx context.Context, bag Bag) ([]float32, error) {
	placed, ok := bag.(Placed)
	if !ok {
		return nil, &coverslip.Error{Kind: coverslip.Unsupported, Op: "embed", Path: "aggregator " + l.model.Name, Err: errors.New("the bag does not say where its tiles lie")}
	}
	src, err := single(placed)
	if err != nil {
		return nil, err
	}
	return l.EmbedFrom(ctx, src, 0, l.Card.Reading)
}

// EmbedFrom embeds a slide of src, read as r says.
func (l *Learned) EmbedFrom(ctx context.Context, src Source, slide int, r Reading) ([]float32, error) {
	if want := l.Card.Settings.Architecture.Input; src.Dim() != want {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "embed", Path: src.Name(slide), Err: fmt.Errorf("its features have %d numbers, and aggregator %s takes %d", src.Dim(), l.model.Name, want),
			Hint: "use the encoder it was trained on: " + l.Card.Data.Encoder}
	}
	return l.trained.Embed(ctx, l.mem, src, slide, r, l.tap)
}

// one is a source of one slide with one stored view.
type one struct {
	bag    Placed
	places []view.Place
}

func single(bag Placed) (*one, error) {
	corners := make([]int64, 2*bag.Len())
	if err := bag.Coords(corners, 0, bag.Len()); err != nil {
		return nil, err
	}
	pitch := bag.Pitch()
	if !(pitch > 0) {
		pitch = view.Pitch(corners)
	}
	return &one{bag, view.Places(corners, pitch)}, nil
}

func (o *one) Len() int                              { return 1 }
func (o *one) Dim() int                              { return o.bag.Dim() }
func (o *one) Stored(int) int                        { return 1 }
func (o *one) Places(int, int) ([]view.Place, error) { return o.places, nil }
func (o *one) Label(int) int                         { return -1 }
func (o *one) Name(int) string                       { return "" }
func (o *one) Read(dst []float32, _, _ int, tiles []int) error {
	d := o.bag.Dim()
	for i, t := range tiles {
		if err := o.bag.Features(dst[i*d:(i+1)*d], t, 1); err != nil {
			return err
		}
	}
	return nil
}
