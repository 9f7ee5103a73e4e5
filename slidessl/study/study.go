// Package study runs experiments that are declared in a file: which settings are varied, what is held fixed, on which
// cohorts, with which seeds, and how the embeddings are judged.
//
// A study is read and checked whole before anything starts (Parse, File.Plan). Its plan names every run and the stages
// it stands on: view bags, an aggregator, embeddings, an evaluation. A stage's key is a hash of all that determines
// its result, so runs that agree up to a stage share it, and what an earlier run left is not made again.
//
// What it leaves to others: where stages are kept and how each is made (Maker), the command line.
package study

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"coverslip"
)

// File is a study as it is written. docs/studies has those that are shipped.
type File struct {
	Name     string   `yaml:"name"`
	Question string   `yaml:"question"`
	Papers   []string `yaml:"papers"`
	// Cohorts are made of folders of tiles. Others that settings name are those of the database.
	Cohorts map[string]*Tiles `yaml:"cohorts"`
	// Fixed are settings of all runs, by path ("train.objective: simclr"), or nested.
	Fixed   map[string]yaml.Node `yaml:"fixed"`
	Factors []Factor             `yaml:"factors"`
	// Design is grid, all combinations of levels, or each: the first level of every factor, and each other level with
	// the first of all other factors.
	Design string `yaml:"design"`
	// Seeds are those of training, or how many: 5 is 1 to 5.
	Seeds       Seeds        `yaml:"seeds"`
	Evaluations []Evaluation `yaml:"evaluations"`
	// Quick is what --quick changes, so that the study ends within half an hour.
	Quick Quick `yaml:"quick"`
	// Limit is how many runs the study may have; 0 is 1,000.
	Limit int `yaml:"limit"`
}

// Factor is what is varied: one setting over values, or levels that each change several settings.
type Factor struct {
	Name    string      `yaml:"name"`
	Setting string      `yaml:"setting"`
	Values  []yaml.Node `yaml:"values"`
	Levels  []Level     `yaml:"levels"`
	// Parts become levels behind those of Levels, as in figure 5 of SimCLR: none, each alone, every two together, all but
	// each, all. Lists of one setting are joined in the order of the parts. Without is what holds where no part says
	// otherwise.
	Parts   []Level              `yaml:"parts"`
	Without map[string]yaml.Node `yaml:"without"`
}

// Level is one value of a factor.
type Level struct {
	Name string               `yaml:"name"`
	Set  map[string]yaml.Node `yaml:"set"`
	// Against is the level that it is compared with, the first by default.
	Against string `yaml:"against"`
}

// Quick is a smaller study of the same question.
type Quick struct {
	Set   map[string]yaml.Node `yaml:"set"`
	Seeds Seeds                `yaml:"seeds"`
}

// Evaluation is one way to judge embeddings.
type Evaluation struct {
	Name string `yaml:"name" json:"name"` // the kind where there is only one of it
	// Kind is probe (logistic regression), knn, geometry (alignment, uniformity, effective rank), collapse (NC1 to NC4),
	// graph (of non-negative kernel regression) or ood (scores of what is strange).
	Kind  string `yaml:"kind" json:"kind"`
	Label string `yaml:"label" json:"label,omitempty"` // a column of the cohort; of ood the one that says what is strange; not of geometry and graph
	By    string `yaml:"by" json:"by,omitempty"`       // what stands on one side of a split: patient (default), site or none
	Folds int    `yaml:"folds" json:"folds,omitempty"` // 5
	// Where leaves out all slides but those with a value of a column, as in "part=test".
	Where string `yaml:"where" json:"where,omitempty"`
	// Train and Test are the sides where columns of the cohort say so, as in "part=train", instead of folds.
	Train string `yaml:"train" json:"train,omitempty"`
	Test  string `yaml:"test" json:"test,omitempty"`
	// Slides are numbers of training slides, and Shots numbers of each class, each drawn Draws (20) times from the
	// training sides; without either, probes learn from whole sides.
	Slides []int   `yaml:"slides" json:"slides,omitempty"`
	Shots  []int   `yaml:"shots" json:"shots,omitempty"`
	Draws  int     `yaml:"draws" json:"draws,omitempty"`
	C      float64 `yaml:"c" json:"c,omitempty"` // inverse strength of the penalty; 0 is chosen inside the training side
	// Standardise brings each number to mean 0 and deviation 1 over the training side of a probe.
	Standardise bool `yaml:"standardise" json:"standardise,omitempty"`
	K           int  `yaml:"k" json:"k,omitempty"` // neighbours, 20
	// Imbalance are how many slides of the most frequent class there are to one of the rarest, of each number in Slides;
	// two classes.
	Imbalance []float64 `yaml:"imbalance" json:"imbalance,omitempty"`
	// Classes is the column whose classes ood knows of usual slides, for the scores that need them.
	Classes string `yaml:"classes" json:"classes,omitempty"`
	Seed    uint64 `yaml:"seed" json:"seed"` // of splits and draws: the same for all runs, so that they differ in pairs
}

// Seeds are numbers, written as a list, or as how many from 1.
type Seeds []uint64

// UnmarshalYAML reads either.
func (s *Seeds) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.SequenceNode {
		return n.Decode((*[]uint64)(s))
	}
	var count int
	if err := n.Decode(&count); err != nil {
		return err
	}
	if count < 1 || count > maxSeeds {
		return fmt.Errorf("line %d: %d seeds; give 1 to %d, or a list", n.Line, count, maxSeeds)
	}
	*s = nil
	for i := range count {
		*s = append(*s, uint64(i+1))
	}
	return nil
}

const (
	maxSeeds     = 1000
	defaultLimit = 1000
	maxLimit     = 100_000
	maxText      = 1 << 20
)

// Kinds of evaluations there are, and whether each needs a label.
var kinds = map[string]bool{"probe": true, "knn": true, "collapse": true, "ood": true, "geometry": false, "graph": false}

// tuned reports a probe whose strength is chosen inside the training side: abmil is judged by these alone.
func (e Evaluation) tuned() bool { return e.Kind == "probe" && e.C == 0 }

// Columns are those of the cohort that it reads beside its label.
func (e Evaluation) Columns() (columns []string) {
	for _, c := range []string{e.Train, e.Test, e.Where} {
		if column, _, found := strings.Cut(c, "="); found {
			columns = append(columns, column)
		}
	}
	if e.Classes != "" {
		columns = append(columns, e.Classes)
	}
	slices.Sort(columns)
	return slices.Compact(columns)
}

const op = "read the study"

func invalid(hint, why string, args ...any) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf(why, args...), Hint: hint}
}

// Parse reads a study and checks all that can be known without its cohorts. Unknown keys and settings, factors that
// contradict each other or what is fixed, and levels that are there twice are Invalid.
func Parse(text []byte) (*File, error) {
	if len(text) > maxText {
		return nil, &coverslip.Error{Kind: coverslip.TooLarge, Op: op, Err: fmt.Errorf("the file has %d bytes, more than %d", len(text), maxText)}
	}
	var f File
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	err := dec.Decode(&f)
	switch {
	case errors.Is(err, io.EOF):
		return nil, invalid("docs/studies has examples", "it is empty")
	case err != nil:
		return nil, invalid("docs/studies has examples", "%s", oneLine(err))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, invalid("keep one study a file", "there is a second document after it")
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	return &f, nil
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

func (f *File) check() error {
	if !nameForm.MatchString(f.Name) {
		return invalid("small letters, digits, dots and dashes, at most 64", "%q is no name for a study", f.Name)
	}
	switch f.Design {
	case "":
		f.Design = "grid"
	case "grid", "each":
	default:
		return invalid("take grid or each", "there is no design %q", f.Design)
	}
	if f.Limit == 0 {
		f.Limit = defaultLimit
	}
	if f.Limit < 1 || f.Limit > maxLimit {
		return invalid(fmt.Sprintf("give 1 to %d", maxLimit), "a limit of %d runs", f.Limit)
	}
	if len(f.Seeds) == 0 {
		f.Seeds = Seeds{1}
	}
	for _, name := range slices.Sorted(maps.Keys(f.Cohorts)) {
		if f.Cohorts[name] == nil {
			return invalid("give it a kind and a folder", "cohort %s is empty", name)
		}
		if err := f.Cohorts[name].check(name); err != nil {
			return err
		}
	}
	for _, seeds := range []Seeds{f.Seeds, f.Quick.Seeds} {
		if len(seeds) > 0 && slices.Max(seeds) > math.MaxInt64 {
			return invalid("give smaller ones", "seed %d is above %d", slices.Max(seeds), int64(math.MaxInt64))
		}
		if again := twice(seeds); again != nil {
			return invalid("give each once", "seed %d is there twice", *again)
		}
	}
	if err := f.checkFactors(); err != nil {
		return err
	}
	return f.checkEvaluations()
}

// twice is what a list holds more than once.
func twice[T comparable](list []T) *T {
	for i, v := range list {
		if slices.Contains(list[:i], v) {
			return &v
		}
	}
	return nil
}

// checkFactors brings every factor to levels, and finds what is set twice.
func (f *File) checkFactors() error {
	fixed, err := flatten(f.Fixed)
	if err != nil {
		return err
	}
	owner := map[string]string{}
	for path := range fixed {
		owner[path] = "fixed"
	}
	quick, err := flatten(f.Quick.Set)
	if err != nil {
		return err
	}
	var names []string
	for i := range f.Factors {
		factor := &f.Factors[i]
		if err := factor.complete(); err != nil {
			return err
		}
		names = append(names, factor.Name)
		for _, l := range factor.Levels {
			set, err := flatten(l.Set)
			if err != nil {
				return err
			}
			for path := range set {
				if who, taken := owner[path]; taken && who != factor.Name {
					where := "factor " + who
					if who == "fixed" {
						where = "fixed"
					}
					return invalid("leave it out of one of them", "factor %s varies %s, which %s sets, too", factor.Name, path, where)
				}
				owner[path] = factor.Name
				if _, also := quick[path]; also {
					return invalid("leave it out of quick", "quick sets %s, which factor %s varies", path, factor.Name)
				}
			}
		}
	}
	if again := twice(names); again != nil {
		return invalid("name each differently", "two factors are called %s", *again)
	}
	return nil
}

func (factor *Factor) complete() error {
	if factor.Name == "" {
		factor.Name = factor.Setting
	}
	switch {
	case factor.Name == "":
		return invalid("give it a name, or a setting with values", "a factor without a name")
	case (factor.Setting != "") != (len(factor.Values) > 0) || len(factor.Values) > 0 && len(factor.Levels)+len(factor.Parts) > 0:
		return invalid("give a setting with its values, or levels that each set something", "factor %s is neither a setting nor levels", factor.Name)
	case len(factor.Parts) == 1 || len(factor.Parts) > maxParts || len(factor.Parts) == 0 && len(factor.Without) > 0:
		return invalid(fmt.Sprintf("give 2 to %d, or levels", maxParts), "factor %s has %d parts", factor.Name, len(factor.Parts))
	}
	composed, err := factor.compose()
	if err != nil {
		return err
	}
	factor.Levels, factor.Parts, factor.Without = append(factor.Levels, composed...), nil, nil
	for _, v := range factor.Values {
		name := or(strings.TrimSpace(text(v)), "none")
		factor.Levels = append(factor.Levels, Level{Name: name, Set: map[string]yaml.Node{factor.Setting: v}})
	}
	factor.Setting, factor.Values = "", nil
	if len(factor.Levels) < 2 {
		return invalid("give it two levels, or put it under fixed", "factor %s does not vary", factor.Name)
	}
	var names []string
	for i, l := range factor.Levels {
		if l.Name == "" {
			return invalid("give it one", "level %d of factor %s has no name", i+1, factor.Name)
		}
		names = append(names, l.Name)
	}
	if again := twice(names); again != nil {
		return invalid("name each differently", "two levels of factor %s are called %s", factor.Name, *again)
	}
	for _, l := range factor.Levels {
		if l.Against != "" && (l.Against == l.Name || !slices.Contains(names, l.Against)) {
			return invalid("name another level of the factor", "level %s of factor %s is compared with %s", l.Name, factor.Name, l.Against)
		}
	}
	return nil
}

// maxParts are 2016 pairs.
const maxParts = 64

// compose makes levels of the factor's parts.
func (factor *Factor) compose() (levels []Level, err error) {
	n := len(factor.Parts)
	if n == 0 {
		return nil, nil
	}
	met := map[string]bool{}
	add := func(name, against string, in func(i int) bool) {
		var parts []int
		for i := range n {
			if in(i) {
				parts = append(parts, i)
			}
		}
		if of := fmt.Sprint(parts); err == nil && !met[of] { // of three parts all but one is a pair
			met[of] = true
			var set map[string]yaml.Node
			if set, err = factor.together(parts); err == nil {
				levels = append(levels, Level{name, set, against})
			}
		}
	}
	name := func(i int) string { return factor.Parts[i].Name }
	add("none", "", func(int) bool { return false })
	for i := range n {
		add(name(i), "none", func(k int) bool { return k == i })
	}
	for i := range n {
		for j := i + 1; j < n; j++ {
			add(name(i)+" + "+name(j), "none", func(k int) bool { return k == i || k == j })
		}
	}
	for i := range n {
		add("all but "+name(i), "all", func(k int) bool { return k != i })
	}
	add("all", "none", func(int) bool { return true })
	if n < 3 { // all is a pair
		levels[n+1].Name = "all"
	}
	return levels, err
}

// together are the settings of some parts, and of what holds without the others.
func (factor *Factor) together(parts []int) (map[string]yaml.Node, error) {
	set := map[string]yaml.Node{}
	for _, i := range parts {
		part := factor.Parts[i]
		if part.Name == "" || part.Against != "" {
			return nil, invalid("give it a name and what it sets", "part %d of factor %s has no name, or says what it is compared with", i+1, factor.Name)
		}
		flat, err := flatten(part.Set)
		if err != nil {
			return nil, err
		}
		for path, n := range flat {
			before, there := set[path]
			if !there {
				set[path] = n
				continue
			}
			if before.Kind != yaml.SequenceNode || n.Kind != yaml.SequenceNode {
				return nil, invalid("parts share lists alone, which are joined", "line %d: part %s of factor %s sets %s, which another sets, too", n.Line, part.Name, factor.Name, path)
			}
			before.Content = slices.Concat(before.Content, n.Content)
			set[path] = before
		}
	}
	without, err := flatten(factor.Without)
	if err != nil {
		return nil, err
	}
	for path, n := range without {
		if _, there := set[path]; !there {
			set[path] = n
		}
	}
	return set, nil
}

// text is a value on one line.
func text(n yaml.Node) string {
	if n.Kind == yaml.ScalarNode {
		return n.Value
	}
	n.Style = yaml.FlowStyle
	raw, err := yaml.Marshal(&n)
	if err != nil {
		return "line " + strconv.Itoa(n.Line)
	}
	return string(raw)
}

func (f *File) checkEvaluations() error {
	if len(f.Evaluations) == 0 {
		return invalid("name one, such as {kind: probe, label: subtype}", "it evaluates nothing")
	}
	var names []string
	for i := range f.Evaluations {
		e := &f.Evaluations[i]
		needs, there := kinds[e.Kind]
		if e.Name == "" {
			e.Name = e.Kind
		}
		names = append(names, e.Name)
		learns := e.Kind == "probe" || e.Kind == "knn"
		switch {
		case !there:
			return invalid("take "+strings.Join(slices.Sorted(maps.Keys(kinds)), ", "), "there is no evaluation %q", e.Kind)
		case needs && e.Label == "":
			return invalid("name a label column of the cohort", "evaluation %s has no label", e.Name)
		case !needs && e.Label != "":
			return invalid("leave the label out", "evaluation %s looks at no label", e.Name)
		case !learns && (e.Folds != 0 || e.By != "" || len(e.Slides)+len(e.Shots)+len(e.Imbalance) > 0 || e.Draws != 0):
			return invalid("leave folds, by, slides, shots, imbalance and draws out", "evaluation %s draws no sides", e.Name)
		case e.Kind != "probe" && (e.C != 0 || e.Standardise) || e.K != 0 && e.Kind != "knn" && e.Kind != "ood" && e.Kind != "graph" || e.Kind != "ood" && e.Classes != "":
			return invalid("c and standardise are of probe, k of knn, graph and ood, classes of ood", "evaluation %s has a setting of another", e.Name)
		case e.Folds < 0 || e.Folds == 1 || e.Draws < 0 || e.K < 0 || !(e.C >= 0) || math.IsInf(e.C, 0):
			return invalid("at least two folds, and nothing below zero", "evaluation %s has %d folds, %d draws, c %g, k %d", e.Name, e.Folds, e.Draws, e.C, e.K)
		case !slices.Contains([]string{"", "patient", "site", "none"}, e.By):
			return invalid("take patient, site or none", "evaluation %s splits by %q", e.Name, e.By)
		case (e.Train != "") != (e.Test != "") || e.Train != "" && (!learns && e.Kind != "ood" || e.Folds != 0 || e.By != "") || e.Kind == "ood" && e.Train == "":
			return invalid("give both, as in train: part=train and test: part=test, without folds and by, to probe, knn or ood", "evaluation %s has train %q and test %q", e.Name, e.Train, e.Test)
		case e.Train != "" && (!condition(e.Train) || !condition(e.Test) || e.Train == e.Test):
			return invalid("write column=value, another for each", "evaluation %s: train %q and test %q", e.Name, e.Train, e.Test)
		case e.Where != "" && !condition(e.Where):
			return invalid("write column=value", "evaluation %s: where %q is no condition", e.Name, e.Where)
		case len(e.Imbalance) > 0 && len(e.Slides) == 0:
			return invalid("say of how many slides: slides: [40]", "evaluation %s has imbalances of no number of slides", e.Name)
		}
		for _, n := range append(slices.Clone(e.Slides), e.Shots...) {
			if n < 1 {
				return invalid("give 1 or more", "evaluation %s learns from %d slides", e.Name, n)
			}
		}
		for _, r := range e.Imbalance {
			if !(r >= 1) || math.IsInf(r, 0) {
				return invalid("give 1 or more", "evaluation %s has an imbalance of %g", e.Name, r)
			}
		}
		switch e.Kind {
		case "probe", "knn":
			if e.Train == "" {
				e.By, e.Folds = or(e.By, "patient"), or(e.Folds, 5)
			}
			if len(e.Slides)+len(e.Shots) > 0 {
				e.Draws = or(e.Draws, 20)
			}
			if e.Kind == "knn" {
				e.K = or(e.K, 20)
			}
		case "graph", "ood":
			e.K = or(e.K, map[string]int{"graph": 15, "ood": 5}[e.Kind])
		}
	}
	if again := twice(names); again != nil {
		return invalid("give them names", "two evaluations are called %s", *again)
	}
	return nil
}

func or[T comparable](v, standard T) T {
	var zero T
	if v == zero {
		return standard
	}
	return v
}
