package study

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"coverslip"
	"coverslip/encoder/augment"
	"coverslip/slidessl"
	"coverslip/slidessl/objective"
)

// Settings are all that determines the embeddings of one run. Their paths ("train.view.tiles") are what a study fixes
// and varies.
type Settings struct {
	Cohort string `yaml:"cohort" json:"cohort"` // whose slides are learned from
	// Where leaves out all slides but those with a value of a column, as in "part=train", of learning.
	Where   string `yaml:"where" json:"where,omitempty"`
	Label   string `yaml:"label" json:"label,omitempty"` // what labelled objectives learn
	Encoder string `yaml:"encoder" json:"encoder"`
	Views   Views  `yaml:"views" json:"views"`
	// Aggregator is trained, untrained (as it was drawn), mean or mean+sd (of the bag's tiles, nothing learned), or abmil:
	// no embedding, but gated attention (Ilse et al., arXiv 1802.04712) trained on the labels of each training side.
	Aggregator string            `yaml:"aggregator" json:"aggregator"`
	Train      slidessl.Settings `yaml:"train" json:"train"`
	Embed      Embed             `yaml:"embed" json:"embed"`
}

// Views are the augmented bags that are learned from. Where a study names none of their settings, tiles are learned
// from as they are; Count 0 says so aloud.
type Views struct {
	Count   int     `yaml:"count" json:"count"`
	Tiles   int     `yaml:"tiles" json:"tiles"`
	Augment Augment `yaml:"augment" json:"augment"`
	Seed    uint64  `yaml:"seed" json:"seed"`
}

// Augment is a list of transforms in the form that equal ones share (augment.Spec.String). It is written as the name of
// a preset or as a list.
type Augment string

// UnmarshalYAML reads either.
func (a *Augment) UnmarshalYAML(n *yaml.Node) error {
	written := n.Value
	if n.Kind != yaml.ScalarNode {
		raw, err := yaml.Marshal(n)
		if err != nil {
			return err
		}
		written = string(raw)
	}
	spec, err := augment.Parse(written)
	if err != nil {
		return err
	}
	*a = Augment(spec.String())
	return nil
}

// Embed says what is embedded, and how a slide is read.
type Embed struct {
	Cohort string `yaml:"cohort" json:"cohort"` // the slides that are judged; the one learned from by default
	Views  int    `yaml:"views" json:"views"`   // of a slide, averaged; 0 is all tiles, each once
	Plain  bool   `yaml:"plain" json:"plain"`   // of tiles as they are instead of stored views
	Tap    string `yaml:"tap" json:"tap"`       // a projector layer instead of the aggregator itself
	Seed   uint64 `yaml:"seed" json:"seed"`
}

// leaves are the paths of all settings, in order.
var leaves = paths(reflect.TypeFor[Settings](), "")

// isLeaf are types that are written as one value.
func isLeaf(t reflect.Type) bool { return t.Kind() != reflect.Struct }

func paths(t reflect.Type, prefix string) (all []string) {
	for i := range t.NumField() {
		field := t.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if name == "-" || name == "" {
			continue
		}
		if path := prefix + name; isLeaf(field.Type) {
			all = append(all, path)
		} else {
			all = append(all, paths(field.Type, path+".")...)
		}
	}
	return all
}

// flatten brings settings, nested or not, to the paths of leaves.
func flatten(set map[string]yaml.Node) (map[string]yaml.Node, error) {
	flat := map[string]yaml.Node{}
	var walk func(path string, n yaml.Node) error
	walk = func(path string, n yaml.Node) error {
		if slices.Contains(leaves, path) {
			if _, again := flat[path]; again {
				return invalid("set it once", "line %d: %s is set twice in one place", n.Line, path)
			}
			if path == "train.seed" {
				return invalid("name them under seeds", "line %d: %s is the study's own", n.Line, path)
			}
			flat[path] = n
			return nil
		}
		if n.Kind != yaml.MappingNode || !slices.ContainsFunc(leaves, func(l string) bool { return strings.HasPrefix(l, path+".") }) {
			return invalid(suggest(path), "line %d: there is no setting %s", n.Line, path)
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if err := walk(path+"."+n.Content[i].Value, *n.Content[i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	for path, n := range set {
		if err := walk(path, n); err != nil {
			return nil, err
		}
	}
	return flat, nil
}

// suggest names the settings nearest to a path.
func suggest(path string) string {
	type near struct {
		path string
		far  int
	}
	var all []near
	for _, l := range leaves {
		all = append(all, near{l, min(distance(path, l), distance(path, l[strings.LastIndex(l, ".")+1:])+1)})
	}
	slices.SortStableFunc(all, func(a, b near) int { return a.far - b.far })
	if all[0].far <= max(len(path)/3, 2) {
		return "did you mean " + all[0].path + "?"
	}
	var groups []string
	for _, l := range leaves {
		group, _, _ := strings.Cut(l, ".")
		if !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
	}
	return "settings begin with " + strings.Join(groups, ", ")
}

// distance is how many letters have to change (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost = 1 + min(last, row[j], row[j+1])
			}
			last, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// defaults are those of coverslip pretrain, and Giga-SSL's views for those who ask for views.
func defaults(kind, objectiveName string) Settings {
	gigassl, _ := augment.Parse("gigassl") // a preset
	return Settings{Encoder: "efficientnet-lite0", Aggregator: "trained", Views: Views{Count: 25, Tiles: 256, Augment: Augment(gigassl.String()), Seed: 1},
		Train: slidessl.DefaultSettings(kind, objectiveName, 0), Embed: Embed{Seed: 1}}
}

// settings are those of a run: the defaults, and what is set by path.
func settings(set map[string]yaml.Node) (Settings, error) {
	kind, name := slidessl.DefaultKind, "simclr"
	if n, there := set["train.architecture.kind"]; there {
		kind = n.Value
	}
	if n, there := set["train.objective"]; there {
		name = n.Value
	}
	s := defaults(kind, name)
	for _, path := range leaves { // in order, so that the first mistake is always the same
		n, there := set[path]
		if !there {
			continue
		}
		if n.Tag == "!!null" {
			return s, invalid("give a value, or leave it out", "line %d: %s has no value", n.Line, path)
		}
		if err := n.Decode(field(reflect.ValueOf(&s).Elem(), path).Addr().Interface()); err != nil {
			if coverslip.KindOf(err) != coverslip.Internal {
				return s, coverslip.Doing(op+": "+path, err)
			}
			return s, invalid("give "+word(field(reflect.ValueOf(s), path).Kind()), "%s: %s", path, oneLine(err))
		}
	}
	// Augmented views are learned from where a study names any of their settings, and slides are read as coverslip embed
	// reads them: from what was learned from, tiles as they are each once.
	said := func(path string) bool { _, there := set[path]; return there }
	if !said("train.view.plain") {
		s.Train.View.Plain = !slices.ContainsFunc(leaves, func(path string) bool { return strings.HasPrefix(path, "views.") && said(path) })
	}
	if !said("embed.plain") {
		s.Embed.Plain = s.Train.View.Plain
	}
	if !said("embed.views") {
		t := s.Train
		t.View.Plain = s.Embed.Plain
		s.Embed.Views = t.Reading().Views
	}
	if !said("train.warmup") {
		s.Train.Warmup = min(s.Train.Warmup, s.Train.Epochs)
	}
	if s.Embed.Cohort == "" {
		s.Embed.Cohort = s.Cohort
	}
	return s, s.check()
}

// oneLine is what YAML's decoder says, whose errors of types come in several lines.
func oneLine(err error) string {
	var types *yaml.TypeError
	if errors.As(err, &types) {
		return strings.Join(types.Errors, "; ")
	}
	return strings.TrimPrefix(err.Error(), "yaml: ")
}

// word is what a setting of some kind is written as.
func word(k reflect.Kind) string {
	switch k {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Uint64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Array:
		return "a list of numbers"
	}
	return "a word"
}

func field(v reflect.Value, path string) reflect.Value {
	name, rest, more := strings.Cut(path, ".")
	for i := range v.NumField() {
		if tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ","); tag == name {
			if !more {
				return v.Field(i)
			}
			return field(v.Field(i), rest)
		}
	}
	panic("study: no setting " + path)
}

// learned reports whether an aggregator is trained, or at least drawn.
func (s Settings) learned() bool { return s.Aggregator == "trained" || s.Aggregator == "untrained" }

// check says what is wrong with settings whatever the cohort.
func (s Settings) check() error {
	switch {
	case s.Cohort == "":
		return invalid("set cohort under fixed, or vary it", "it has no cohort")
	case !slices.Contains([]string{"trained", "untrained", "mean", "mean+sd", "abmil"}, s.Aggregator):
		return invalid("take trained, untrained, mean, mean+sd or abmil", "there is no aggregator %q", s.Aggregator)
	case s.Views.Count < 0 || s.Views.Count > 1000 || s.Views.Tiles < 1 || s.Views.Tiles > 100_000:
		return invalid("give 0 to 1000 views of 1 to 100,000 tiles", "%d views of %d tiles", s.Views.Count, s.Views.Tiles)
	case s.Embed.Views < 0 || s.Embed.Views > 100_000:
		return invalid("give 0 to 100,000", "slides are embedded by %d views", s.Embed.Views)
	}
	if !s.learned() {
		if s.Embed.Tap != "" {
			return invalid("leave embed.tap out", "%s has no layer %s", s.Aggregator, s.Embed.Tap)
		}
		return nil
	}
	if s.Where != "" && !condition(s.Where) {
		return invalid("write column=value", "where %q is no condition", s.Where)
	}
	if objective.Labelled(s.Train.Objective) && s.Label == "" && s.Aggregator == "trained" {
		return invalid("set label to a column of the cohort", "%s learns from labels", s.Train.Objective)
	}
	o, err := objective.Defaults(s.Train.Objective, options(s, 0, 2))
	if err != nil {
		return err
	}
	if s.Embed.Tap != "" {
		var taps []string
		for i := range max(o.Layers, 0) {
			taps = append(taps, fmt.Sprintf("projector.%d", i+1))
		}
		if !slices.Contains(taps, s.Embed.Tap) {
			return invalid("take one of "+strings.Join(taps, ", ")+", or leave it out", "%s has no layer %s", s.Train.Objective, s.Embed.Tap)
		}
	}
	return s.Train.View.Check()
}

// condition reports whether a text reads column=value.
func condition(s string) bool {
	column, value, found := strings.Cut(s, "=")
	return found && column != "" && value != ""
}

// options are the objective's, told what it is for.
func options(s Settings, cohort, classes int) objective.Options {
	o := s.Train.Options
	o.Batch, o.Cohort, o.Classes = s.Train.Batch, cohort, classes
	return o
}

// Reading is how slides are read.
func (s Settings) Reading() slidessl.Reading {
	v := s.Train.View
	v.Plain = s.Embed.Plain
	return slidessl.Reading{Views: s.Embed.Views, View: v, Seed: s.Embed.Seed}
}
