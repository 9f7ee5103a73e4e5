package mil

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"

	"coverslip"
	"coverslip/internal/nn"
)

// Classifier is a network that was trained. It may be used from many goroutines at once.
type Classifier struct {
	Config  Config
	Dim     int // of instances
	Classes int
	Card    Card

	net   network
	scale scale
}

// Card says what a classifier is: kept with it, for people.
type Card struct {
	Cohort   string             `json:"cohort,omitempty"`
	Label    string             `json:"label,omitempty"`
	Names    []string           `json:"classes,omitempty"` // of the classes, in order
	Encoder  string             `json:"encoder,omitempty"`
	Train    int                `json:"train_bags"`
	Val      int                `json:"val_bags"`
	Data     string             `json:"data_sha256,omitempty"`  // over the keys of the bags and their classes
	Split    string             `json:"split_sha256,omitempty"` // over the rows of each side
	Slides   []string           `json:"slides,omitempty"`       // ids of those it has seen, on either side
	Epochs   int                `json:"epochs"`
	Best     int                `json:"best_epoch"`
	Figures  map[string]float64 `json:"figures,omitempty"` // on bags it was not trained on
	Notes    []string           `json:"notes,omitempty"`
	Version  string             `json:"coverslip"`
	Settings Config             `json:"settings"`
}

// Prediction is what a classifier makes of a bag.
type Prediction struct {
	P []float64 // [C], of each class
	// Attention is the weight of each tile, [N,Heads], each head's summing to 1 over the bag; nil of models without.
	// TransMIL's are approximate and some negative. Of clam-mb and dsmil head k is class k's.
	Attention []float32
	Heads     int
	// Evidence is what each tile says for each class, [N,C]. Of mean, max, attention and CLAM it is the tile's share
	// of the class's logit: with the intercept they sum to it. Of dsmil and of models that classify instances it is
	// the tile's own logit; of sparse a share of the places that see it. Nil of transmil.
	Evidence []float32
}

// Predict reads a bag and classifies it; explained, it says why. Memory does not grow with the bag, but for what it
// says of each tile. dsmil, transmil and sparse take bags of more than MaxTiles tiles in parts of every second, third …
// tile and average these.
func (c *Classifier) Predict(ctx context.Context, bag Bag, explained bool) (Prediction, error) {
	mem := nn.NewMemory()
	defer mem.Free()
	p, err := c.of(ctx, mem, bag, explained)
	return p, coverslip.Doing("classify the bag", err)
}

func (c *Classifier) of(ctx context.Context, mem *nn.Memory, bag Bag, explained bool) (Prediction, error) {
	switch {
	case bag.Len() == 0:
		return Prediction{}, invalid(errNoTiles, "leave the slide out")
	case bag.Dim() != c.Dim:
		return Prediction{}, invalid(fmt.Errorf("its instances are of %d numbers; the classifier learned from %d", bag.Dim(), c.Dim), "use bags of encoder "+c.Card.Encoder)
	}
	if p, ok := c.net.(*pooled); ok && bag.Len() > pieceRows {
		return c.streamed(ctx, mem, p, bag, explained)
	}
	if c.Config.MaxTiles > 0 && bag.Len() > c.Config.MaxTiles {
		return c.read(ctx, mem, bag, explained)
	}
	in, err := readBag(ctx, bag, c.scale, nil)
	if err != nil {
		return Prediction{}, err
	}
	return c.parts(mem, in, explained)
}

// parts classifies instances in memory, in as many parts as they need.
func (c *Classifier) parts(mem *nn.Memory, in *instances, explained bool) (Prediction, error) {
	n := len(in.x) / c.Dim
	if _, ok := c.net.(*pooled); ok || c.Config.MaxTiles == 0 || n <= c.Config.MaxTiles {
		return c.predict(mem, in, explained)
	}
	return c.average(n, func(rows []int32) (Prediction, error) { return c.predict(mem, in.some(rows, c.Dim), explained) })
}

// read does the same to a bag, of which it holds one part at a time.
func (c *Classifier) read(ctx context.Context, mem *nn.Memory, bag Bag, explained bool) (Prediction, error) {
	return c.average(bag.Len(), func(rows []int32) (Prediction, error) {
		in, err := readBag(ctx, bag, c.scale, rows)
		if err != nil {
			return Prediction{}, err
		}
		return c.predict(mem, in, explained)
	})
}

// average joins the predictions of parts of n tiles.
func (c *Classifier) average(n int, of func(rows []int32) (Prediction, error)) (Prediction, error) {
	parts := (n + c.Config.MaxTiles - 1) / c.Config.MaxTiles
	all := Prediction{P: make([]float64, c.Classes)}
	for k := range parts {
		var rows []int32
		for i := k; i < n; i += parts {
			rows = append(rows, int32(i))
		}
		p, err := of(rows)
		if err != nil {
			return all, err
		}
		for i, v := range p.P {
			all.P[i] += v / float64(parts)
		}
		all.Heads = p.Heads
		all.Attention = spread(all.Attention, p.Attention, rows, n, p.Heads, 1/float32(parts))
		all.Evidence = spread(all.Evidence, p.Evidence, rows, n, c.Classes, 1)
	}
	return all, nil
}

// spread puts rows of a part where they belong among n.
func spread(all, part []float32, rows []int32, n, width int, by float32) []float32 {
	if part == nil {
		return all
	}
	if all == nil {
		all = make([]float32, n*width)
	}
	for k, r := range rows {
		for j := range width {
			all[int(r)*width+j] = part[k*width+j] * by
		}
	}
	return all
}

// predict classifies instances at once.
func (c *Classifier) predict(mem *nn.Memory, in *instances, explained bool) (Prediction, error) {
	g := newGraph(&c.Config, mem, len(in.x), false)
	defer g.Close()
	n := len(in.x) / c.Dim
	r := c.net.forward(&step{coords: in.coords, class: -1}, g.Constant(n, c.Dim, in.x))
	keep := []*nn.Node{r.logits}
	if explained {
		keep = append(keep, r.keep...)
	}
	if err := g.Forward(keep...); err != nil {
		return Prediction{}, err
	}
	p := Prediction{P: softmax(r.logits.Value())}
	if explained {
		attention, evidence := r.explain()
		p.Attention, p.Evidence = append([]float32(nil), attention...), append([]float32(nil), evidence...)
		p.Heads = len(attention) / n
	}
	return p, p.check()
}

func (p Prediction) check() error {
	for _, v := range p.P {
		if math.IsNaN(v) {
			return &coverslip.Error{Kind: coverslip.Invalid, Op: "classify the bag", Err: errors.New("the result is not a number"), Hint: "look for extreme features"}
		}
	}
	return nil
}

func softmax(logits []float32) []float64 {
	p, top, sum := make([]float64, len(logits)), math.Inf(-1), 0.0
	for _, v := range logits {
		top = math.Max(top, float64(v))
	}
	for i, v := range logits {
		p[i] = math.Exp(float64(v) - top)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

// streamed classifies a bag that is read in pieces.
func (c *Classifier) streamed(ctx context.Context, mem *nn.Memory, p *pooled, bag Bag, explained bool) (Prediction, error) {
	pool, err := p.streamForward(ctx, mem, bag, c.scale, nil, 0, false)
	if err != nil {
		return Prediction{}, err
	}
	g := newGraph(&c.Config, mem, len(pool.z), false)
	defer g.Close()
	z := g.Constant(len(pool.z)/pool.width(p), pool.width(p), pool.z)
	var logits *nn.Node
	if p.c.instance() {
		logits = p.poolClasses(z)
	} else {
		logits = p.classify(z)
	}
	if err := g.Forward(logits); err != nil {
		return Prediction{}, err
	}
	r := Prediction{P: softmax(logits.Value())}
	if !explained {
		return r, r.check()
	}
	if p.gate != nil {
		r.Attention, r.Heads = pool.weights(), pool.heads
	}
	switch {
	case p.c.instance():
		r.Evidence = pool.z
	case p.c.Model == Max:
		r.Evidence = make([]float32, pool.n*c.Classes)
		for k, row := range pool.best {
			for j := range c.Classes {
				r.Evidence[int(row)*c.Classes+j] += pool.z[k] * p.out.W.Value[k*c.Classes+j]
			}
		}
	default:
		err = pieces(ctx, bag, c.scale, nil, func(from int, _ []int32, x []float32) error {
			g := newGraph(&c.Config, mem, len(x), false)
			defer g.Close()
			n := len(x) / c.Dim
			h := p.layers.apply(&step{class: -1}, g.Constant(n, c.Dim, x))
			if err := g.Forward(h); err != nil {
				return err
			}
			var w []float32
			if r.Attention != nil {
				w = r.Attention[from*r.Heads : (from+n)*r.Heads]
			}
			r.Evidence = append(r.Evidence, p.evidence(h.Value(), w, n, &pool.n)...)
			return nil
		})
	}
	if err != nil {
		return Prediction{}, err
	}
	return r, r.check()
}

// Save writes the classifier and its card to a safetensors file.
func (c *Classifier) Save(path string) error {
	text, err := c.text()
	if err != nil {
		return err
	}
	return nn.Save(path, c.params(), text)
}

func (c *Classifier) params() []*nn.Param {
	return append(c.net.params(), c.scale.mean, c.scale.by)
}

const fileKind = "coverslip mil 1"

func (c *Classifier) text() (map[string]string, error) {
	c.Card.Settings, c.Card.Version = c.Config, coverslip.Version
	card, err := json.Marshal(c.Card)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "write the model card", Err: err}
	}
	return map[string]string{"kind": fileKind, "dim": strconv.Itoa(c.Dim), "classes": strconv.Itoa(c.Classes), "card": string(card)}, nil
}

// Load reads what Save wrote. Anything else is Invalid.
func Load(path string) (*Classifier, error) {
	f, err := nn.Load(path)
	if err != nil {
		return nil, err
	}
	c, err := fromFile(f)
	return c, coverslip.At(path, err)
}

func fromFile(f *nn.File) (*Classifier, error) {
	bad := func(err error) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "read the classifier", Err: err, Hint: "give a file that coverslip mil train wrote"}
	}
	if f.Text["kind"] != fileKind {
		return nil, bad(fmt.Errorf("it is no MIL classifier of this version"))
	}
	c := &Classifier{}
	var e1, e2 error
	c.Dim, e1 = strconv.Atoi(f.Text["dim"])
	c.Classes, e2 = strconv.Atoi(f.Text["classes"])
	if err := errors.Join(e1, e2, json.Unmarshal([]byte(f.Text["card"]), &c.Card)); err != nil {
		return nil, bad(err)
	}
	c.Config = c.Card.Settings
	// Bounds are checked before a network of that size is made: they come from a file.
	if c.Dim < 1 || c.Dim > 1<<16 || c.Classes > 1<<12 || len(c.Config.Hidden) > 9 || c.Config.Attend > 1<<14 || c.Config.Landmarks > 1<<14 || c.Config.ResidualWidth > 1<<10 || c.Config.Heads > 1<<10 {
		return nil, bad(fmt.Errorf("its sizes are impossible"))
	}
	if err := c.Config.check(c.Classes); err != nil {
		return nil, bad(err)
	}
	c.net, c.scale = newNetwork(&c.Config, c.Dim, c.Classes, rand.New(rand.NewPCG(0, 0))), newScale(c.Dim)
	return c, f.Fill(c.params())
}
