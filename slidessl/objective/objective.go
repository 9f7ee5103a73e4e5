// Package objective holds what an aggregator can be trained for without labels, and with few: losses of the
// embeddings of several views of the same slides, with the layers that are trained beside the aggregator and
// dropped afterwards.
//
// A view is one random reading of a slide's bag (slidessl/view). Losses are those of the papers named at each,
// with the papers' constants; what was made for a million photographs (queues, numbers of prototypes) is no
// larger than the cohort, and the projector is Giga-SSL's for all of them, so that objectives can be compared.
//
// What it leaves to others: views, the aggregator and its average, the optimiser, checkpoints.
package objective

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"coverslip"
	"coverslip/internal/nn"
)

// Batch is what a step shows. Rows of embeddings are view-major: row v·Slides+i is view v of slide i. The
// first Global views are large, the others small crops; without multi-crop Global is Views.
type Batch struct {
	Slides, Views, Global int
	// IDs tell slides of the cohort apart, one a slide, 0 and up: a queue leaves a slide's own earlier keys
	// out. Nil where they are not known.
	IDs []int
	// Labels are classes from 0, one a slide, -1 where unknown; nil where no labels are used.
	Labels []int
	// Turns are by how many quarters the map of each view was turned, one a row; nil unless the objective is Turned.
	Turns       []int
	Step, Steps int
}

// Objective is a loss with what it trains beside the aggregator, and what it keeps from step to step. It
// serves one run, one step after the other.
type Objective interface {
	// Loss is the loss, [1,1], of the embeddings h [Views·Slides,D] by the aggregator that learns, in a graph
	// that trains. target [≥Global·Slides,D] are those of the same views, or of the large ones alone, by the
	// aggregator's average; nil unless Momentum says that one is kept.
	Loss(h, target *nn.Node, b Batch) *nn.Node
	// Params are trained with the aggregator's; running statistics of norms are among them.
	Params() []*nn.Param
	// State is everything else that a checkpoint must hold: queue, centre, averages.
	State() []*nn.Param
	// Momentum is the share of an average that stays in this step, for the aggregator's as for ours; false
	// where none is kept.
	Momentum(step, steps int) (float64, bool)
	// Stepped is called after the optimiser's step: averages move, queues fill.
	Stepped(b Batch)
	// Labelled reports whether it learns from labels.
	Labelled() bool
	// Taps are the layers behind the aggregator whose output may serve as an embedding, the last one last:
	// "projector.1", "projector.2", … What to cut off is a choice (guillotine regularisation, Bordes et al.,
	// arXiv 2206.13378).
	Taps() []string
	// Tap is the output of the layer named, one of Taps.
	Tap(h *nn.Node, name string) *nn.Node
}

// Options change an objective. Zero is its default (Defaults); what an objective does not have is an error.
type Options struct {
	// The projector has Layers linear layers, each but the last followed by ReLU and batch norm: 3, 512, 256.
	// With NoProjector layers the loss is of the embedding itself.
	Layers int `json:"layers,omitempty" yaml:"layers,omitempty"`
	Hidden int `json:"hidden,omitempty" yaml:"hidden,omitempty"`
	Out    int `json:"out,omitempty" yaml:"out,omitempty"`

	Temperature       float64 `json:"temperature,omitempty" yaml:"temperature,omitempty"`
	TargetTemperature float64 `json:"target_temperature,omitempty" yaml:"target_temperature,omitempty"` // DINO's teacher after its warm-up, ε of SwAV's codes
	Momentum          float64 `json:"momentum,omitempty" yaml:"momentum,omitempty"`                     // of the averages; where it grows, at the first step
	Queue             int     `json:"queue,omitempty" yaml:"queue,omitempty"`                           // keys of earlier steps, a multiple of Batch
	Prototypes        int     `json:"prototypes,omitempty" yaml:"prototypes,omitempty"`
	Predictor         int     `json:"predictor,omitempty" yaml:"predictor,omitempty"`   // hidden width
	Invariance        float64 `json:"invariance,omitempty" yaml:"invariance,omitempty"` // weight of the distance of views: VICReg, ReLIC
	Variance          float64 `json:"variance,omitempty" yaml:"variance,omitempty"`     // VICReg
	Covariance        float64 `json:"covariance,omitempty" yaml:"covariance,omitempty"` // VICReg; Barlow Twins' λ

	// What the objective is for; whoever trains knows.
	Batch   int `json:"-" yaml:"-"` // slides a step
	Cohort  int `json:"-" yaml:"-"` // slides; 0 is not known, and the paper's sizes stay
	Classes int `json:"-" yaml:"-"` // of the label; 0 without
}

// NoProjector is Options.Layers for none.
const NoProjector = -1

// method is one objective: its paper's defaults, and how it is made of filled options.
type method struct {
	paper    Options
	labelled bool
	make     func(dim int, o Options, rng *rand.Rand) Objective
}

var methods = map[string]method{
	"simclr":   {Options{Temperature: 0.05}, false, newSimCLR},
	"moco":     {Options{Temperature: 0.2, Momentum: 0.999, Queue: 65536}, false, newMoCo},
	"byol":     {Options{Momentum: 0.996, Predictor: 512}, false, newBYOL},
	"swav":     {Options{Temperature: 0.1, TargetTemperature: 0.05, Prototypes: 3000}, false, newSwAV},
	"barlow":   {Options{Covariance: 0.005}, false, newBarlow},
	"vicreg":   {Options{Invariance: 25, Variance: 25, Covariance: 1}, false, newVICReg},
	"dino":     {Options{Temperature: 0.1, TargetTemperature: 0.07, Momentum: 0.996, Prototypes: 65536}, false, newDINO},
	"relic":    {Options{Temperature: 0.3, Momentum: 0.996, Invariance: 5}, false, newReLIC},
	"rotation": {Options{}, false, newRotation},
	"supcon":   {Options{Temperature: 0.1}, true, newSupCon},
	"trex":     {Options{Temperature: 0.1, Momentum: 0.999, Queue: 8192}, true, newTReX},
}

// names are in the order of the documents.
var names = []string{"simclr", "moco", "byol", "swav", "barlow", "vicreg", "dino", "relic", "rotation", "supcon", "trex"}

// Names are the objectives that New makes.
func Names() []string { return append([]string(nil), names...) }

// Labelled reports whether an objective of this name learns from labels.
func Labelled(name string) bool { return methods[name].labelled }

// New makes an objective for embeddings of dim numbers. rng draws the first weights.
func New(name string, dim int, o Options, rng *rand.Rand) (Objective, error) {
	o, err := Defaults(name, o)
	if err != nil {
		return nil, err
	}
	if dim < 1 {
		panic("objective: embeddings of no width")
	}
	return methods[name].make(dim, o, rng), nil
}

// Defaults are the options that New works with: those given, and the paper's where they are zero.
func Defaults(name string, o Options) (Options, error) {
	m, there := methods[name]
	if !there {
		return o, &coverslip.Error{Kind: coverslip.Invalid, Op: "choose an objective", Err: fmt.Errorf("there is no %q", name),
			Hint: "take one of " + strings.Join(names, ", ")}
	}
	c := checker{op: "set up " + name, name: name}
	if o.Layers == NoProjector {
		number(&c, "projector width", &o.Hidden, 0)
		number(&c, "projector output", &o.Out, 0)
	} else {
		number(&c, "projector layers", &o.Layers, 3)
		number(&c, "projector width", &o.Hidden, 512)
		number(&c, "projector output", &o.Out, 256)
	}
	p := m.paper
	if o.Cohort > 0 { // the papers had a million images
		p.Prototypes = min(p.Prototypes, o.Cohort)
		p.Queue = min(p.Queue, o.Cohort)
	}
	if o.Batch > 0 && p.Queue > 0 {
		p.Queue = max(p.Queue/o.Batch, 1) * o.Batch
	}
	number(&c, "temperature", &o.Temperature, p.Temperature)
	number(&c, "target temperature", &o.TargetTemperature, p.TargetTemperature)
	number(&c, "momentum", &o.Momentum, p.Momentum)
	number(&c, "queue", &o.Queue, p.Queue)
	number(&c, "prototypes", &o.Prototypes, p.Prototypes)
	number(&c, "predictor width", &o.Predictor, p.Predictor)
	number(&c, "invariance weight", &o.Invariance, p.Invariance)
	number(&c, "variance weight", &o.Variance, p.Variance)
	number(&c, "covariance weight", &o.Covariance, p.Covariance)
	switch {
	case o.Momentum >= 1:
		c.fail("an average that keeps all of itself never moves", "take a momentum below 1, such as 0.99")
	case o.Batch < 0 || o.Cohort < 0 || o.Classes < 0:
		c.fail("a count below zero", "leave out what is not known")
	case o.Batch == 1:
		c.fail("one slide a step leaves nothing to tell it from", "take a batch of at least 2")
	case o.Batch > 0 && o.Queue%o.Batch != 0:
		c.fail(fmt.Sprintf("a queue of %d is no multiple of the batch of %d", o.Queue, o.Batch), fmt.Sprintf("take %d", max(o.Queue/o.Batch, 1)*o.Batch))
	case o.Prototypes == 1:
		c.fail("one prototype tells nothing apart", "take at least 2")
	case m.labelled && o.Classes < 2:
		c.fail("it learns from labels, and there are not two classes of them", "name a label of the cohort, or take simclr")
	}
	return o, c.err
}

// checker keeps the first thing that is wrong.
type checker struct {
	op, name string
	err      error
}

func (c *checker) fail(why, hint string) {
	if c.err == nil {
		c.err = &coverslip.Error{Kind: coverslip.Invalid, Op: c.op, Err: fmt.Errorf("%s", why), Hint: hint}
	}
}

// number fills a zero with the paper's, and refuses what is below zero or not the method's.
func number[T int | float64](c *checker, what string, value *T, paper T) {
	switch {
	case *value == 0:
		*value = paper
	case paper == 0:
		c.fail(fmt.Sprintf("%s has no %s", c.name, what), "leave it out")
	case *value <= 0 || *value != *value: // NaN
		c.fail(fmt.Sprintf("a %s of %v", what, *value), "it must be above zero")
	}
}

// check panics on a batch that is not what it says: the training loop's fault.
func (b Batch) check(h *nn.Node) {
	if b.Slides < 2 || b.Views < 2 || b.Global < 1 || b.Global > b.Views || h.Rows != b.Slides*b.Views {
		panic("objective: a batch of another shape than its embeddings")
	}
	if b.IDs != nil && len(b.IDs) != b.Slides || b.Labels != nil && len(b.Labels) != b.Slides {
		panic("objective: one id and one label a slide")
	}
}

// view are the rows of one view.
func (b Batch) view(v int) []int32 { return span(v*b.Slides, (v+1)*b.Slides) }

func span(from, to int) []int32 {
	at := make([]int32, to-from)
	for i := range at {
		at[i] = int32(from + i) //nolint:gosec // rows of a batch
	}
	return at
}

// unordered are the pairs of a large view with each other view, once; ordered are (learner's view, target's
// view) with the target large and another view than the learner's.
func (b Batch) unordered() (pairs [][2]int) {
	for v := range b.Global {
		for w := v + 1; w < b.Views; w++ {
			pairs = append(pairs, [2]int{v, w})
		}
	}
	return pairs
}

func (b Batch) ordered() (pairs [][2]int) {
	for w := range b.Views {
		for v := range b.Global {
			if v != w {
				pairs = append(pairs, [2]int{w, v})
			}
		}
	}
	return pairs
}

// rows are the rows of the i-th view of every pair, one pair after the other.
func (b Batch) rows(pairs [][2]int, i int) []int32 {
	var at []int32
	for _, p := range pairs {
		at = append(at, b.view(p[i])...)
	}
	return at
}
