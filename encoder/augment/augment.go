// Package augment makes augmented views of tiles, and estimates and changes their stain.
//
// A Spec lists transforms with their ranges. Draw picks the parameters of one view, which all tiles
// of that view share, and Apply makes a tile of the view from a tile of the slide. Colours of a slide
// as a whole, which some transforms start from, are measured once over a sample of its tiles.
//
// It leaves reading tiles, choosing those of a view and keeping features to others.
package augment

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"

	"go.yaml.in/yaml/v3"

	"coverslip"
)

// Revision is part of a Spec's text, and so of the key of a bag of views. It grows whenever equal
// parameters come to give other pixels.
const Revision = 1

// Spec is a list of transforms, applied from the first to the last.
type Spec []Step

// Step is one transform, with its chance to be part of a view: exactly one field beside P is set.
type Step struct {
	P          float64     `json:"p" yaml:"p"` // above 0, at most 1
	Background *Background `json:"background,omitempty" yaml:"background"`
	Crop       *Crop       `json:"crop,omitempty" yaml:"crop"`
	Flip       *Flip       `json:"flip,omitempty" yaml:"flip"`
	Turn       *Turn       `json:"turn,omitempty" yaml:"turn"`
	Normalise  *Normalise  `json:"normalise,omitempty" yaml:"normalise"`
	HED        *HED        `json:"hed,omitempty" yaml:"hed"`
	RandStain  *RandStain  `json:"randstain,omitempty" yaml:"randstain"`
	Jitter     *Jitter     `json:"jitter,omitempty" yaml:"jitter"`
	Grayscale  *Grayscale  `json:"grayscale,omitempty" yaml:"grayscale"`
	Blur       *Blur       `json:"blur,omitempty" yaml:"blur"`
	Resolution *Resolution `json:"resolution,omitempty" yaml:"resolution"`
	JPEG       *JPEG       `json:"jpeg,omitempty" yaml:"jpeg"`
	Noise      *Noise      `json:"noise,omitempty" yaml:"noise"`
}

// Range is the least and the greatest value of a parameter that is drawn uniformly.
type Range [2]float64

func (r Range) draw(rng *rand.Rand) float64 { return r[0] + (r[1]-r[0])*rng.Float64() }

// within is false for NaN too.
func (r Range) within(lo, hi float64) bool { return r[0] >= lo && r[0] <= r[1] && r[1] <= hi }

// presets are the specifications known by name:
//
//   - none leaves tiles as they are.
//   - gigassl is the list of Lazard et al., Giga-SSL, arXiv 2212.03273: RandomResizedCrop, ColorJitter,
//     grayscale and Gaussian blur.
//   - histo has what histopathology wants: all eight orientations, stain in the HED manner with the
//     "light" range of Tellez et al., Medical Image Analysis 58, 2019, and small amounts of what
//     scanners differ in.
var presets = map[string]Spec{
	"none": {},
	"gigassl": {
		{P: 1, Crop: &Crop{Scale: Range{0.5, 1}, Ratio: Range{0.75, 4.0 / 3}}},
		{P: 0.8, Jitter: &Jitter{Brightness: 0.4, Contrast: 0.4, Saturation: 0.4, Hue: 0.2}},
		{P: 0.2, Grayscale: &Grayscale{}},
		{P: 0.5, Blur: &Blur{Kernel: 5, Sigma: Range{0.1, 1}}},
	},
	"histo": {
		{P: 1, Turn: &Turn{}},
		{P: 0.5, Flip: &Flip{Axis: Horizontal}},
		{P: 0.8, HED: &HED{Alpha: 0.05, Beta: 0.05}},
		{P: 0.5, Jitter: &Jitter{Brightness: 0.1, Contrast: 0.1, Saturation: 0.1, Hue: 0.02}},
		{P: 0.2, Resolution: &Resolution{Factor: Range{0.5, 1}}},
		{P: 0.2, Blur: &Blur{Kernel: 5, Sigma: Range{0.1, 1}}},
		{P: 0.2, JPEG: &JPEG{Quality: [2]int{40, 95}}},
		{P: 0.2, Noise: &Noise{Sigma: Range{0, 5}}},
	},
}

// Parse reads a specification: the name of a preset (none, gigassl or histo); a list of steps in YAML or JSON, each as in
//
//   - {p: 0.8, jitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.2}}
//
// or what String wrote. An unknown key, a missing or impossible value, and a transform where it
// cannot stand are Invalid; text of another Revision is Unsupported.
func Parse(text string) (Spec, error) {
	const op = "read the augmentations"
	fail := func(kind coverslip.Kind, err error) (Spec, error) {
		return nil, &coverslip.Error{Kind: kind, Op: op, Err: err, Hint: "give none, gigassl, histo or a list of transforms {p: …, transform: {…}}"}
	}
	if s, ok := presets[strings.TrimSpace(text)]; ok {
		return s, nil
	}
	if len(text) > maxText {
		return fail(coverslip.TooLarge, fmt.Errorf("the text has %d bytes, more than %d", len(text), maxText))
	}
	var node yaml.Node
	if err := yaml.Unmarshal([]byte(text), &node); err != nil {
		return fail(coverslip.Invalid, err)
	}
	switch {
	case len(node.Content) == 0:
		return fail(coverslip.Invalid, errors.New("it is empty"))
	case node.Content[0].Kind == yaml.ScalarNode:
		return fail(coverslip.NotFound, fmt.Errorf("there is no preset %.40q", strings.TrimSpace(text)))
	}
	if line := null(&node); line > 0 { // which decoding would pass over
		return fail(coverslip.Invalid, fmt.Errorf("line %d: a value is missing", line))
	}
	var doc written
	var into any = &doc
	if node.Content[0].Kind == yaml.SequenceNode {
		doc.Revision, into = Revision, &doc.Steps
	}
	if err := decode(into, text); err != nil {
		return fail(coverslip.Invalid, err)
	}
	if doc.Revision != Revision {
		return fail(coverslip.Unsupported, fmt.Errorf("revision %d: this version of coverslip makes revision %d", doc.Revision, Revision))
	}
	if err := doc.Steps.check(); err != nil {
		return fail(coverslip.Invalid, err)
	}
	return doc.Steps.complete(), nil
}

// String is the specification in the one form equal ones share: JSON with every parameter and the
// Revision, as coverslip.Views.Augment holds it. Parse reads it back.
func (s Spec) String() string {
	if s == nil {
		s = Spec{}
	}
	raw, err := json.Marshal(written{Revision, s.complete()})
	if err != nil {
		panic("augment: a specification: " + err.Error()) // finite numbers always marshal
	}
	return string(raw)
}

type written struct {
	Revision int  `json:"revision" yaml:"revision"`
	Steps    Spec `json:"steps" yaml:"steps"`
}

// maxText bounds what is parsed; the longest list of use has about a kilobyte.
const maxText = 1 << 16

// decode reads one YAML document and nothing else.
func decode(into any, text string) error {
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil {
		return err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("there is a second document after it")
	}
	return nil
}

// null is the line of the first null, 0 without one.
func null(n *yaml.Node) int {
	if n.Tag == "!!null" {
		return n.Line
	}
	for _, c := range n.Content {
		if line := null(c); line > 0 {
			return line
		}
	}
	return 0
}

// transform is a step's parameters as they are specified; draw picks those of one view.
type transform interface {
	check() error
	draw(rng *rand.Rand) action
}

// transform is the one that is set, nil unless there is exactly one.
func (s Step) transform() transform {
	var found transform
	n := 0
	add := func(t transform, set bool) {
		if set {
			found = t
			n++
		}
	}
	add(s.Background, s.Background != nil)
	add(s.Crop, s.Crop != nil)
	add(s.Flip, s.Flip != nil)
	add(s.Turn, s.Turn != nil)
	add(s.Normalise, s.Normalise != nil)
	add(s.HED, s.HED != nil)
	add(s.RandStain, s.RandStain != nil)
	add(s.Jitter, s.Jitter != nil)
	add(s.Grayscale, s.Grayscale != nil)
	add(s.Blur, s.Blur != nil)
	add(s.Resolution, s.Resolution != nil)
	add(s.JPEG, s.JPEG != nil)
	add(s.Noise, s.Noise != nil)
	if n != 1 {
		return nil
	}
	return found
}

func (s Spec) check() error {
	crops, others := 0, 0
	for i, step := range s {
		t := step.transform()
		if t == nil {
			return fmt.Errorf("step %d: it needs one transform", i+1)
		}
		if !(step.P > 0 && step.P <= 1) {
			return fmt.Errorf("step %d: p %v: its chance is above 0 and at most 1", i+1, step.P)
		}
		if err := t.check(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
		switch {
		case step.Background != nil && i > 0:
			return fmt.Errorf("step %d: background stands first, because the mask is of the tile as it was read", i+1)
		case step.Crop != nil && crops+others > 0:
			return fmt.Errorf("step %d: crop stands before all but background, because it is what brings a tile to size", i+1)
		case step.Crop != nil:
			crops++
		case step.Background == nil:
			others++
		}
	}
	return nil
}

// complete is s with the defaults in place of what was left out.
func (s Spec) complete() Spec {
	out := make(Spec, len(s))
	copy(out, s)
	for i, step := range out {
		if r := step.RandStain; r != nil && r.Statistics == nil {
			whole := *r
			whole.Statistics = r.statistics()
			out[i].RandStain = &whole
		}
	}
	return out
}

// streamSeeds seeds a PCG with a hash of the parts, so that each view, step and tile has a stream of its
// own and none depends on how much another took. They are chained through SplitMix64's finaliser
// (Steele, Lea and Flood, OOPSLA 2014).
func streamSeeds(parts ...uint64) (uint64, uint64) {
	mix := func(z uint64) uint64 {
		z += 0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return z ^ z>>31
	}
	h := uint64(0)
	for _, p := range parts {
		h = mix(h ^ mix(p))
	}
	return h, mix(h)
}

func finite(values ...float64) bool {
	for _, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return false
		}
	}
	return true
}
