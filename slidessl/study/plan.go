package study

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"coverslip"
	"coverslip/slidessl/objective"
)

// Data knows the cohorts and encoders of a study.
type Data interface {
	// Cohort is what a study needs to know of one, NotFound where there is none of this name.
	Cohort(ctx context.Context, name string) (Cohort, error)
	// Bags is a hash of the bags of a cohort's slides under an encoder, of views or, with nil, of tiles as they are. They
	// need not be there yet.
	Bags(ctx context.Context, cohort, encoder string, views *coverslip.Views) (string, error)
	// Dim is the length of an encoder's features, NotFound where there is none of this name.
	Dim(ctx context.Context, encoder string) (int, error)
	// Has reports which of these stages are there already.
	Has(ctx context.Context, keys []string) (map[string]bool, error)
}

// Cohort is the size of a cohort and what is known of its slides.
type Cohort struct {
	Slides int // with tissue
	Tiles  int // of all slides together
	// Classes are how many different values each label column has; of a number it may be as many as slides.
	Classes map[string]int
	// Sizes are how many slides have each value of a column; not of all columns.
	Sizes map[string]map[string]int
	// Members is a hash of which slides there are, Labels one of what is known of them.
	Members, Labels string
	// Assumed is a cohort that nobody could look at: its numbers are guesses, and its labels any.
	Assumed bool
}

// where is how many slides have a value of a column, as in "part=train". A column or value that is not there is Invalid.
func (c Cohort) where(name, condition string) (int, error) {
	if condition == "" || c.Assumed {
		return c.Slides, nil
	}
	column, value, _ := strings.Cut(condition, "=")
	if err := c.has(name, column); err != nil {
		return 0, err
	}
	sizes, known := c.Sizes[column]
	if known && sizes[value] == 0 {
		return 0, invalid("it has "+strings.Join(slices.Sorted(maps.Keys(sizes)), ", "), "no slide of cohort %s has %s %q", name, column, value)
	}
	if !known {
		return c.Slides, nil
	}
	return sizes[value], nil
}

// has reports a column that is not there.
func (c Cohort) has(name, column string) error {
	_, there := c.Classes[column]
	switch known := slices.Sorted(maps.Keys(c.Classes)); {
	case c.Assumed || there:
		return nil
	case len(known) == 0:
		return invalid("give it labels: coverslip import csv FILE --cohort "+name, "cohort %s has no label %s", name, column)
	default:
		return invalid("its labels are "+strings.Join(known, ", "), "cohort %s has no label %s", name, column)
	}
}

// Stage is something that is made once, whatever the number of runs that stand on it.
type Stage struct {
	Kind string `json:"kind"` // views, aggregator, embeddings, evaluation
	Key  string `json:"key"`  // hash of all that determines it
	// On are the keys of the stages that it stands on.
	On []string `json:"on,omitempty"`
	// Of views: whose bags, and whether they are augmented ones.
	Cohort string           `json:"cohort,omitempty"`
	Stored bool             `json:"stored,omitempty"`
	Views  *coverslip.Views `json:"views,omitempty"` // how augmented ones are made
	// What it is made of. An evaluation's settings are those of the run that it was first met in.
	Settings   Settings    `json:"settings"`
	Evaluation *Evaluation `json:"evaluation,omitempty"`
	Done       bool        `json:"done"` // it is there already

	Seconds float64 `json:"seconds"` // a guess, of one core
	Bytes   int64   `json:"bytes"`   // what it leaves on the disk
}

// Run is one combination of levels with a seed.
type Run struct {
	Levels []string `json:"levels"` // one a factor
	Seed   uint64   `json:"seed"`
	// Evaluations are the keys of its last stages, one an evaluation.
	Evaluations []string `json:"evaluations"`
}

// Plan is a study that can start.
type Plan struct {
	Name    string   `json:"name"`
	Factors []string `json:"factors"`
	// Against are, of each factor, the levels that are not compared with the first, and what they are compared with.
	Against []map[string]string `json:"against,omitempty"`
	Runs    []Run               `json:"runs"`
	// Stages stand in an order in which they can be made: each after what it stands on.
	Stages []Stage `json:"stages"`
}

// Rates are what a machine can do, for guesses of time; each of one core.
type Rates struct {
	Tiles  float64 // encoded a second
	GFLOPS float64 // of training, in billions of operations a second
}

// DefaultRates are those of one core of the machine that bench/README.md tells of.
var DefaultRates = Rates{Tiles: 95, GFLOPS: 60}

// Plan checks a study against its data and lists its runs and their stages.
func (f *File) Plan(ctx context.Context, data Data, quick bool, rates Rates) (*Plan, error) {
	p := &planner{file: f, data: data, rates: rates, cohorts: map[string]Cohort{}, dims: map[string]int{}, bags: map[string]string{}, at: map[string]int{}}
	p.plan.Name = f.Name
	for _, factor := range f.Factors {
		p.plan.Factors = append(p.plan.Factors, factor.Name)
		against := map[string]string{}
		for _, l := range factor.Levels {
			if l.Against != "" {
				against[l.Name] = l.Against
			}
		}
		p.plan.Against = append(p.plan.Against, against)
	}
	seeds := f.Seeds
	if quick && len(f.Quick.Seeds) > 0 {
		seeds = f.Quick.Seeds
	}
	combinations, err := f.combinations(len(seeds))
	if err != nil {
		return nil, err
	}
	for _, levels := range combinations {
		for _, seed := range seeds {
			if err := p.run(ctx, levels, seed, quick); err != nil {
				return nil, err
			}
		}
	}
	keys := make([]string, len(p.plan.Stages))
	for i, s := range p.plan.Stages {
		keys[i] = s.Key
	}
	there, err := data.Has(ctx, keys)
	if err != nil {
		return nil, err
	}
	for i := range p.plan.Stages {
		p.plan.Stages[i].Done = there[p.plan.Stages[i].Key]
	}
	return &p.plan, nil
}

// combinations are the levels of every run, counted before they are listed.
func (f *File) combinations(seeds int) ([][]int, error) {
	runs := 1
	for _, factor := range f.Factors {
		if f.Design == "grid" {
			runs *= len(factor.Levels)
		} else {
			runs += len(factor.Levels) - 1
		}
		if runs > maxLimit*maxSeeds {
			break // enough to know
		}
	}
	if runs *= seeds; runs > f.Limit {
		more := ""
		if runs > maxLimit {
			more = "more than "
			runs = maxLimit
		}
		return nil, &coverslip.Error{Kind: coverslip.TooLarge, Op: "plan the study", Err: fmt.Errorf("it has %s%d runs, and its limit is %d", more, runs, f.Limit),
			Hint: "take fewer levels or seeds, the design each, or set limit"}
	}
	at := make([]int, len(f.Factors))
	all := [][]int{slices.Clone(at)}
	if f.Design == "each" {
		for i, factor := range f.Factors {
			for l := 1; l < len(factor.Levels); l++ {
				one := slices.Clone(at)
				one[i] = l
				all = append(all, one)
			}
		}
		return all, nil
	}
	for {
		i := len(at) - 1
		for ; i >= 0; i-- {
			if at[i]++; at[i] < len(f.Factors[i].Levels) {
				break
			}
			at[i] = 0
		}
		if i < 0 {
			return all, nil
		}
		all = append(all, slices.Clone(at))
	}
}

type planner struct {
	file    *File
	data    Data
	rates   Rates
	plan    Plan
	cohorts map[string]Cohort
	dims    map[string]int
	bags    map[string]string
	at      map[string]int // where a key's stage is
}

// run adds a run and those of its stages that no earlier one has.
func (p *planner) run(ctx context.Context, levels []int, seed uint64, quick bool) error {
	set, err := flatten(p.file.Fixed)
	if err != nil {
		return err
	}
	run := Run{Seed: seed}
	overlay := []map[string]yaml.Node{}
	for i, l := range levels {
		level := p.file.Factors[i].Levels[l]
		run.Levels = append(run.Levels, level.Name)
		overlay = append(overlay, level.Set)
	}
	if quick {
		overlay = append(overlay, p.file.Quick.Set)
	}
	for _, o := range overlay {
		flat, err := flatten(o)
		if err != nil {
			return err
		}
		maps.Copy(set, flat)
	}
	name := p.name(run)
	s, err := settings(set)
	if err != nil {
		return in(name, err)
	}
	s.Train.Seed = seed
	if err := p.against(ctx, &s); err != nil {
		return in(name, err)
	}
	if run.Evaluations, err = p.stages(ctx, s); err != nil {
		return in(name, err)
	}
	p.plan.Runs = append(p.plan.Runs, run)
	return nil
}

func (p *planner) name(r Run) string {
	var parts []string
	for i, l := range r.Levels {
		parts = append(parts, p.plan.Factors[i]+" "+l)
	}
	return strings.Join(append(parts, fmt.Sprintf("seed %d", r.Seed)), ", ")
}

// in says in which run something is wrong.
func in(run string, err error) error {
	return coverslip.Doing("plan the run of "+run, err)
}

// against checks settings with the cohorts and the encoder, and fills in what only these know.
func (p *planner) against(ctx context.Context, s *Settings) error {
	for _, name := range []string{s.Cohort, s.Embed.Cohort} {
		if _, known := p.cohorts[name]; !known {
			c, err := p.data.Cohort(ctx, name)
			if err != nil {
				return err
			}
			p.cohorts[name] = c
		}
	}
	if _, known := p.dims[s.Encoder]; !known {
		dim, err := p.data.Dim(ctx, s.Encoder)
		if err != nil {
			return err
		}
		p.dims[s.Encoder] = dim
	}
	judged := p.cohorts[s.Embed.Cohort]
	for _, e := range p.file.Evaluations {
		for _, column := range []string{e.Label, e.Classes} {
			if column == "" {
				continue
			}
			if err := judged.has(s.Embed.Cohort, column); err != nil {
				return coverslip.Doing("evaluation "+e.Name, err)
			}
			if !judged.Assumed && judged.Classes[column] < 2 {
				return invalid("there is nothing to tell apart", "evaluation %s: all slides of cohort %s have one %s", e.Name, s.Embed.Cohort, column)
			}
		}
		for _, side := range []string{e.Train, e.Test, e.Where} {
			if _, err := judged.where(s.Embed.Cohort, side); err != nil {
				return coverslip.Doing("evaluation "+e.Name, err)
			}
		}
	}
	if !s.learned() {
		return nil
	}
	slides, err := p.cohorts[s.Cohort].where(s.Cohort, s.Where)
	if err == nil && objective.Labelled(s.Train.Objective) && s.Aggregator == "trained" {
		err = p.cohorts[s.Cohort].has(s.Cohort, s.Label)
	}
	if err != nil {
		return err
	}
	if s.Train.Batch > slides { // the default is made for thousands
		s.Train.Batch = max(slides, 1)
	}
	s.Train.Architecture.Input = p.dims[s.Encoder]
	if a := &s.Train.Architecture; a.Kind == "sparse" && a.Input == 256 && a.Stem == 256 { // as it is by default
		a.Stem = 0
	}
	if err := s.Train.Check(slides); err != nil {
		return err
	}
	_, err = objective.Defaults(s.Train.Objective, options(*s, slides, 2))
	return err
}

// revision is part of every key. It grows when equal settings come to give other results.
const revision = 1

// key is the hash of a stage's kind and of what determines it.
func key(kind string, of ...any) string {
	raw, err := json.Marshal(append([]any{revision, kind}, of...))
	if err != nil {
		panic("study: settings: " + err.Error()) // finite numbers and texts always marshal
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:16])
}

// stages adds those that are new, and returns the keys of the evaluations.
func (p *planner) stages(ctx context.Context, s Settings) (evaluations []string, err error) {
	bags := func(cohort string, plain bool) string {
		var views *coverslip.Views
		if !plain && s.Views.Count > 0 {
			views = &coverslip.Views{Count: s.Views.Count, Tiles: s.Views.Tiles, Augment: string(s.Views.Augment), Seed: s.Views.Seed}
		}
		of := key("bags", cohort, s.Encoder, views)
		if _, known := p.bags[of]; !known && err == nil {
			p.bags[of], err = p.data.Bags(ctx, cohort, s.Encoder, views)
		}
		return p.add(Stage{Kind: "views", Key: key("views", p.bags[of], s.Encoder, views), Settings: s, Cohort: cohort, Stored: views != nil, Views: views})
	}
	judges := p.cohorts[s.Embed.Cohort]
	if s.Aggregator == "abmil" {
		judged := bags(s.Embed.Cohort, true)
		for _, e := range p.file.Evaluations {
			if e.tuned() {
				evaluations = append(evaluations, p.add(Stage{Kind: "evaluation", Key: key("evaluation", "abmil", judged, judges.Members, judges.Labels, s.Train.Seed, e), On: []string{judged}, Settings: s, Evaluation: &e}))
			}
		}
		if err == nil && evaluations == nil {
			err = invalid("give a probe without c", "abmil is judged by probes whose strength is chosen inside the training side, as its own settings are, and there is none")
		}
		return evaluations, err
	}
	var embeddings string
	if !s.learned() {
		judged := bags(s.Embed.Cohort, true)
		embeddings = p.add(Stage{Kind: "embeddings", Key: key("embeddings", judged, judges.Members, s.Aggregator), On: []string{judged}, Settings: s})
	} else {
		learned := bags(s.Cohort, s.Train.View.Plain)
		shown := p.cohorts[s.Cohort]
		determined, on := []any{learned, shown.Members}, []string{learned}
		if s.Embed.Plain && !s.Train.View.Plain { // the output's spread is found as slides are read
			plain := bags(s.Cohort, true)
			determined, on = append(determined, plain, s.Reading()), append(on, plain)
		}
		if s.Where != "" {
			determined = append(determined, s.Where, shown.Labels)
		}
		if s.Aggregator == "untrained" { // drawn, and fitted to the features' spread
			determined = append(determined, "untrained", s.Train.Architecture, s.Train.Seed)
		} else {
			if determined = append(determined, s.Train); objective.Labelled(s.Train.Objective) {
				determined = append(determined, s.Label, shown.Labels)
			}
		}
		aggregator := p.add(Stage{Kind: "aggregator", Key: key("aggregator", determined...), On: on, Settings: s})
		judged := bags(s.Embed.Cohort, s.Embed.Plain || s.Embed.Views == 0)
		embeddings = p.add(Stage{Kind: "embeddings", Key: key("embeddings", aggregator, judged, judges.Members, s.Reading(), s.Embed.Tap), On: []string{aggregator, judged}, Settings: s})
	}
	for _, e := range p.file.Evaluations {
		evaluations = append(evaluations, p.add(Stage{Kind: "evaluation", Key: key("evaluation", embeddings, judges.Labels, e), On: []string{embeddings}, Settings: s, Evaluation: &e}))
	}
	return evaluations, err
}

func (p *planner) add(s Stage) string {
	if _, there := p.at[s.Key]; !there {
		p.at[s.Key] = len(p.plan.Stages)
		s.Seconds, s.Bytes = p.guess(s)
		p.plan.Stages = append(p.plan.Stages, s)
	}
	return s.Key
}

// abmilSeconds is what a draw takes of four settings in three folds, on some 50 slides of some 40 tiles.
const abmilSeconds = 15

// guess is the time a stage takes on one core, and what it leaves: features and embeddings are float32, and a training
// step costs three times what the forward pass does.
func (p *planner) guess(s Stage) (seconds float64, bytes int64) {
	a, dim := s.Settings.Train.Architecture, p.dims[s.Settings.Encoder]
	width, in := float64(a.Width), float64(dim)
	var weights, perTile float64 // of the network; operations of a tile
	layer := func(from, to, times float64) {
		weights += from * to
		perTile += 2 * from * to * times
	}
	if a.Kind == "sparse" {
		if a.Stem > 0 {
			layer(in, float64(a.Stem), 1)
			in = float64(a.Stem)
		}
		layer(9*in, width, 4.0/9) // a site meets about four of its nine weights
		layer(27*width, width, 4.0/9)
	} else {
		layer(in, width, 1)
		layer(width, 4*width*float64(a.Blocks), 1)
	}
	switch s.Kind {
	case "views":
		cohort := p.cohorts[s.Cohort]
		tiles := float64(cohort.Tiles)
		if s.Stored {
			tiles = float64(cohort.Slides) * float64(s.Settings.Views.Count) * float64(s.Settings.Views.Tiles)
		}
		return tiles / p.rates.Tiles, int64(tiles * float64(4*dim))
	case "aggregator":
		cohort, v := p.cohorts[s.Settings.Cohort], s.Settings.Train.View
		tiles := float64(cohort.Slides) * float64(2*v.Tiles+v.Small*v.SmallTiles)
		projector := float64(cohort.Slides*v.Views()) * 2 * (width*512 + 512*512 + 512*256)
		if s.Settings.Aggregator == "trained" {
			seconds = 3 * float64(s.Settings.Train.Epochs) * (tiles*perTile + projector) / (p.rates.GFLOPS * 1e9)
		}
		return seconds, int64(4 * weights)
	case "embeddings":
		cohort := p.cohorts[s.Settings.Embed.Cohort]
		if !s.Settings.learned() {
			return float64(cohort.Tiles) * float64(dim) / 1e9, int64(cohort.Slides) * int64(8*dim)
		}
		tiles := float64(cohort.Tiles)
		if s.Settings.Embed.Views > 0 {
			tiles = float64(cohort.Slides * s.Settings.Embed.Views * s.Settings.Train.View.Tiles)
		}
		return tiles * perTile / (p.rates.GFLOPS * 1e9), int64(cohort.Slides) * int64(4*a.Dim())
	}
	fits := s.Evaluation.Folds
	if groups := len(s.Evaluation.Slides) + len(s.Evaluation.Shots); groups > 0 {
		fits = groups * max(len(s.Evaluation.Imbalance), 1) * s.Evaluation.Draws
	}
	each := 0.002
	switch {
	case s.Settings.Aggregator == "abmil":
		each = abmilSeconds
	case s.Evaluation.tuned(): // 45 strengths by five folds
		each = 0.15
	}
	return 0.1 + each*float64(fits), int64(200 * (fits + 5))
}

// Count is how much of a plan is left to do.
type Count struct {
	Kind       string
	All, There int
	Seconds    float64 // of one core, of those that are not there
	Bytes      int64
}

// Counts are the plan's stages by kind, in the order of the work.
func (p *Plan) Counts() []Count {
	counts := []Count{{Kind: "views"}, {Kind: "aggregator"}, {Kind: "embeddings"}, {Kind: "evaluation"}}
	for _, s := range p.Stages {
		c := &counts[slices.IndexFunc(counts, func(c Count) bool { return c.Kind == s.Kind })]
		c.All++
		if s.Done {
			c.There++
		} else {
			c.Seconds += s.Seconds
			c.Bytes += s.Bytes
		}
	}
	return counts
}

// Describe is what --dry-run prints: the runs, how many of each stage they share, and guesses of time and disk on so many
// cores.
func (p *Plan) Describe(cores int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "study %s: %d runs", p.Name, len(p.Runs))
	if len(p.Factors) > 0 {
		fmt.Fprintf(&b, " of %s", strings.Join(p.Factors, " × "))
	}
	b.WriteString("\n")
	words := map[string]string{"views": "view bags", "aggregator": "aggregators to train", "embeddings": "sets of embeddings", "evaluation": "evaluations"}
	var seconds float64
	var bytes int64
	for _, c := range p.Counts() {
		fmt.Fprintf(&b, "  %5d %s", c.All, words[c.Kind])
		if c.There > 0 {
			fmt.Fprintf(&b, ", %d of them there already", c.There)
		}
		b.WriteString("\n")
		seconds += c.Seconds
		bytes += c.Bytes
	}
	took := time.Duration(seconds / float64(max(cores, 1)) * float64(time.Second))
	if took < time.Minute {
		fmt.Fprintf(&b, "about %s on %d cores, %s of disk\n", took.Round(time.Second), cores, size(bytes))
	} else {
		fmt.Fprintf(&b, "about %s on %d cores, %s of disk\n", strings.TrimSuffix(took.Round(time.Minute).String(), "0s"), cores, size(bytes))
	}
	return b.String()
}

func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.0f kB", float64(n)/1e3)
}

// Hash is of a value that can be written as JSON.
func Hash(of any) string { return key("hash", of) }
