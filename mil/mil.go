// Package mil trains classifiers on bags: one label for all instances of a slide, and afterwards an answer to
// which of them spoke for it.
//
// A Dataset opens bags as they are needed, Train fits a classifier of one of the Models to some of them, and a
// Classifier predicts others, with the weight of every tile. Splits, figures and linear probes are the packages
// beside it; where bags are kept and what becomes of results is left to callers.
//
// Equal seeds give equal classifiers, whatever the number of cores.
package mil

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"coverslip"
)

// Bag is the instances of one slide, read as they are needed. It is used by one goroutine.
type Bag interface {
	Len() int // N
	Dim() int // D
	// Features reads n rows from row from on into dst, [n,D].
	Features(dst []float32, from, n int) error
	// Coords reads the top-left corners of n tiles in level-0 pixels into dst, [n,2].
	Coords(dst []int64, from, n int) error
	io.Closer
}

// Dataset opens bags by number. Open may be called from several goroutines at once.
type Dataset interface {
	Len() int
	// Name is what people call bag i: it stands in errors.
	Name(i int) string
	Open(ctx context.Context, i int) (Bag, error)
}

// Held is a bag in memory.
type Held struct {
	Name string
	Rows []float32 // [N,D]
	D    int
	XY   []int64 // [N,2]; nil: all tiles at 0, 0
}

// Len is Bag's.
func (h *Held) Len() int { return len(h.Rows) / h.D }

// Dim is Bag's.
func (h *Held) Dim() int { return h.D }

// Features is Bag's.
func (h *Held) Features(dst []float32, from, n int) error {
	copy(dst, h.Rows[from*h.D:(from+n)*h.D])
	return nil
}

// Coords is Bag's.
func (h *Held) Coords(dst []int64, from, n int) error {
	if h.XY == nil {
		clear(dst)
		return nil
	}
	copy(dst, h.XY[2*from:2*(from+n)])
	return nil
}

// Close does nothing.
func (h *Held) Close() error { return nil }

// HeldBags is a Dataset in memory.
type HeldBags []*Held

// Len is Dataset's.
func (h HeldBags) Len() int { return len(h) }

// Name is Dataset's.
func (h HeldBags) Name(i int) string { return h[i].Name }

// Open is Dataset's.
func (h HeldBags) Open(_ context.Context, i int) (Bag, error) { return h[i], nil }

// Model names a kind of classifier.
type Model string

// Models are those there are. Of mean and max the instances are embedded, pooled and classified; of the other
// two they are classified one by one and the classes pooled.
const (
	Mean         Model = "mean"
	Max          Model = "max"
	MeanInstance Model = "mean-instance"
	MaxInstance  Model = "max-instance"
	ABMIL        Model = "abmil"    // Ilse et al. 2018, arXiv 1802.04712, equation 8
	Gated        Model = "gated"    // the same, equation 9
	CLAMSB       Model = "clam-sb"  // Lu et al. 2021, doi 10.1038/s41551-020-00682-w, one attention
	CLAMMB       Model = "clam-mb"  // and one of each class
	DSMIL        Model = "dsmil"    // Li et al. 2021, arXiv 2011.08939
	TransMIL     Model = "transmil" // Shao et al. 2021, arXiv 2106.00908
	Sparse       Model = "sparse"   // Lerousseau et al. 2021, arXiv 2105.02726, with the residual blocks of Giga-SSL
)

// Models lists all.
func Models() []Model {
	return []Model{Mean, Max, MeanInstance, MaxInstance, ABMIL, Gated, CLAMSB, CLAMMB, DSMIL, TransMIL, Sparse}
}

// ModelNames are their names, for messages.
func ModelNames() string {
	names := make([]string, 0, len(Models()))
	for _, m := range Models() {
		names = append(names, string(m))
	}
	return strings.Join(names, ", ")
}

// Balance says how unequal classes are made up for.
type Balance string

// Ways to do it.
const (
	NoBalance Balance = "none"
	Weights   Balance = "weights"  // a bag counts n/(classes · bags of its class)
	Sampling  Balance = "sampling" // bags are drawn so that classes come equally often
)

// Config says what is trained and how. Defaults gives one that works.
type Config struct {
	Model   Model   `json:"model"`
	Hidden  []int   `json:"hidden"`  // widths of the layers before pooling, each with ReLU and dropout
	Attend  int     `json:"attend"`  // width inside the attention (abmil, gated, clam, dsmil)
	Dropout float64 `json:"dropout"` // of hidden numbers

	Standardise bool `json:"standardise"` // features to mean 0 and deviation 1 over the training instances

	Optimizer   string  `json:"optimizer"` // adam, adamw or sgd (momentum 0.9)
	LR          float64 `json:"lr"`
	WeightDecay float64 `json:"weight_decay"`
	Cosine      bool    `json:"cosine"` // the rate falls to 0 along half a cosine
	Warmup      int     `json:"warmup"` // epochs, with Cosine
	Epochs      int     `json:"epochs"`
	Batch       int     `json:"batch"`    // bags a step
	Patience    int     `json:"patience"` // epochs without a better validation loss after which it ends; 0: all are run

	Balance      Balance `json:"balance"`
	DropInstance float64 `json:"drop_instance"` // share of a bag's tiles left out of a step, at random
	MaxTiles     int     `json:"max_tiles"`     // of a bag in one step, drawn at random; 0: all

	// CLAM's clustering of instances.
	Cluster       int     `json:"cluster,omitempty"`        // tiles with most and least attention that are told apart: 8
	BagWeight     float64 `json:"bag_weight,omitempty"`     // of the bag's loss, the clusters' having the rest: 0.7
	SmoothSVM     bool    `json:"smooth_svm,omitempty"`     // the smooth top-1 loss (Berrada et al., arXiv 1802.07595), else cross-entropy
	Exclusive     bool    `json:"exclusive,omitempty"`      // classes exclude each other: tiles most attended are none of the other classes
	Landmarks     int     `json:"landmarks,omitempty"`      // of TransMIL: half the width
	Heads         int     `json:"heads,omitempty"`          // of TransMIL: 8
	PinvSteps     int     `json:"pinv_steps,omitempty"`     // of TransMIL: 6
	ResidualWidth int     `json:"residual_width,omitempty"` // of TransMIL's convolution of values: 33

	Seed uint64 `json:"seed"`
}

// Defaults are settings for slides: a few hundred bags of hundreds to thousands of tiles.
func Defaults(m Model) Config {
	c := Config{Model: m, Hidden: []int{256}, Attend: 128, Dropout: 0.25, Standardise: true, Optimizer: "adamw", LR: 2e-4, WeightDecay: 1e-2,
		Cosine: true, Epochs: 40, Batch: 1, Patience: 12, Balance: Weights}
	switch m {
	case CLAMSB, CLAMMB:
		c.Cluster, c.BagWeight, c.SmoothSVM = 8, 0.7, true
	case DSMIL:
		c.MaxTiles = 1 << 14
	case TransMIL:
		c.Landmarks, c.Heads, c.PinvSteps, c.ResidualWidth, c.MaxTiles = 128, 8, 6, 33, 1<<12
	case Sparse:
		c.MaxTiles = 1 << 14
	}
	return c
}

func (c *Config) check(classes int) error {
	bad := func(format string, args ...any) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "set up the classifier", Err: fmt.Errorf(format, args...), Hint: "see coverslip mil train --help"}
	}
	switch {
	case !slices.Contains(Models(), c.Model):
		return bad("there is no model %q; there are %s", c.Model, ModelNames())
	case classes < 2:
		return invalid(fmt.Errorf("%d class", classes), "a classifier needs two; look at the label column: coverslip cohorts show")
	case c.Dropout < 0 || c.Dropout >= 1 || c.DropInstance < 0 || c.DropInstance >= 1:
		return bad("dropout of %g and %g", c.Dropout, c.DropInstance)
	case !(c.LR > 0) || math.IsInf(c.LR, 1) || c.WeightDecay < 0 || c.Epochs < 1 || c.Batch < 1 || c.Patience < 0 || c.MaxTiles < 0 || c.Warmup < 0:
		return bad("lr %g, weight decay %g, %d epochs, batches of %d, patience %d, at most %d tiles", c.LR, c.WeightDecay, c.Epochs, c.Batch, c.Patience, c.MaxTiles)
	case !slices.Contains([]string{"adam", "adamw", "sgd"}, c.Optimizer):
		return bad("optimizer %q; there are adam, adamw and sgd", c.Optimizer)
	case !slices.Contains([]Balance{NoBalance, Weights, Sampling}, c.Balance):
		return bad("balance %q; there are none, weights and sampling", c.Balance)
	case slices.ContainsFunc(c.Hidden, func(w int) bool { return w < 1 || w > 1<<14 }) || c.Attend < 1 && c.attends():
		return bad("layers of %v, attention of %d", c.Hidden, c.Attend)
	case c.clam() && (c.Cluster < 1 || c.BagWeight <= 0 || c.BagWeight > 1):
		return bad("clusters of %d, bag weight %g", c.Cluster, c.BagWeight)
	case (c.Model == TransMIL || c.Model == Sparse) && len(c.Hidden) == 0:
		return bad("%s without a hidden layer, whose width is its own", c.Model)
	case c.Model == TransMIL && (c.Heads < 1 || c.Hidden[len(c.Hidden)-1]%c.Heads != 0 || c.Landmarks < 1 || c.PinvSteps < 1 || c.ResidualWidth%2 == 0):
		return bad("a width of %v in %d heads, %d landmarks, %d steps, %d wide", c.Hidden, c.Heads, c.Landmarks, c.PinvSteps, c.ResidualWidth)
	}
	return nil
}

func (c *Config) clam() bool     { return c.Model == CLAMSB || c.Model == CLAMMB }
func (c *Config) instance() bool { return c.Model == MeanInstance || c.Model == MaxInstance }
func (c *Config) attends() bool {
	return slices.Contains([]Model{ABMIL, Gated, CLAMSB, CLAMMB, DSMIL}, c.Model)
}

// Left is a bag that cannot be used.
type Left struct {
	Bag    int    `json:"-"`
	Name   string `json:"slide"`
	Reason string `json:"reason"`
}

// Unusable reads all bags and tells which are empty, hold what is no number, or are of another length of
// features than most. What cannot be read is an error.
func Unusable(ctx context.Context, data Dataset) ([]Left, error) {
	var left []Left
	dims, dim := map[int]int{}, make([]int, data.Len())
	for i := range data.Len() {
		reason, d, err := examine(ctx, data, i)
		if err != nil {
			return nil, coverslip.At(data.Name(i), err)
		}
		dim[i] = d
		if reason != "" {
			left = append(left, Left{Bag: i, Name: data.Name(i), Reason: reason})
			continue
		}
		dims[d]++
	}
	usual := 0
	for d, n := range dims {
		if n > dims[usual] || n == dims[usual] && d < usual {
			usual = d
		}
	}
	for i, d := range dim {
		if d != usual && !slices.ContainsFunc(left, func(l Left) bool { return l.Bag == i }) {
			left = append(left, Left{Bag: i, Name: data.Name(i), Reason: fmt.Sprintf("its instances are of %d numbers, others of %d", d, usual)})
		}
	}
	slices.SortFunc(left, func(a, b Left) int { return a.Bag - b.Bag })
	return left, nil
}

func examine(ctx context.Context, data Dataset, i int) (reason string, dim int, err error) {
	bag, err := data.Open(ctx, i)
	if err != nil {
		return "", 0, err
	}
	defer bag.Close()
	if bag.Len() == 0 {
		return "its bag is empty: no tissue was found", bag.Dim(), nil
	}
	buffer := make([]float32, min(bag.Len(), pieceRows)*bag.Dim())
	for from := 0; from < bag.Len(); from += pieceRows {
		if err := ctx.Err(); err != nil {
			return "", 0, err
		}
		n := min(pieceRows, bag.Len()-from)
		x := buffer[:n*bag.Dim()]
		if err := bag.Features(x, from, n); err != nil {
			return "", 0, err
		}
		if at := notFinite(x); at >= 0 {
			return fmt.Sprintf("feature %d of its tile %d is %g", at%bag.Dim(), from+at/bag.Dim(), x[at]), bag.Dim(), nil
		}
	}
	return "", bag.Dim(), nil
}

func notFinite(x []float32) int {
	return slices.IndexFunc(x, func(v float32) bool { return v-v != 0 })
}

func invalid(err error, hint string) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "train a classifier", Err: err, Hint: hint}
}

var errNoTiles = errors.New("the bag is empty")
