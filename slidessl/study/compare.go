package study

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"coverslip/mil/metric"
)

// Results are the figures of a plan's evaluations, by the evaluation's key. Those of runs that diverged are not there.
type Results map[string][]Figure

// Line is a row of a study's table: a figure of one combination of levels over its seeds.
type Line struct {
	Levels     []string `json:"levels"`
	Evaluation string   `json:"evaluation"`
	Figure     string   `json:"figure"`
	Group      string   `json:"group,omitempty"`
	// Mean and SD are over seeds, of what is the mean over splits for each; SD is NaN of one seed.
	Mean  float64 `json:"mean"`
	SD    float64 `json:"sd"`
	Seeds int     `json:"seeds"` // that have it
	// Missing are seeds without it: runs that diverged, or were not made.
	Missing int `json:"missing,omitempty"`
}

// subject is what is measured: of an evaluation, a figure, a group.
type subject struct{ evaluation, figure, group string }

// Table lists all figures, in the order of the runs, evaluations and figures.
func (p *Plan) Table(r Results) []Line {
	type cell struct {
		levels string
		subject
	}
	means := map[cell][]float64{}
	var order []cell
	runs := map[string]int{}
	levels := map[string][]string{}
	for _, run := range p.Runs {
		at := strings.Join(run.Levels, "\x00")
		runs[at]++
		levels[at] = run.Levels
		for _, k := range run.Evaluations {
			e := p.evaluation(k)
			splits := map[subject][]float64{}
			var met []subject
			for _, f := range r[k] {
				s := subject{e.Name, f.Name, f.Group}
				if splits[s] == nil {
					met = append(met, s)
				}
				splits[s] = append(splits[s], f.Value)
			}
			for _, s := range met {
				c := cell{at, s}
				if means[c] == nil {
					order = append(order, c)
				}
				if m := metric.Across(splits[s]); m.Folds > 0 {
					means[c] = append(means[c], m.Value)
				} else {
					means[c] = append(means[c], math.NaN())
				}
			}
		}
	}
	var lines []Line
	for _, c := range order {
		m := metric.Across(means[c])
		lines = append(lines, Line{Levels: levels[c.levels], Evaluation: c.evaluation, Figure: c.figure, Group: c.group, Mean: m.Value, SD: m.SD, Seeds: m.Folds,
			Missing: runs[c.levels] - m.Folds})
	}
	return lines
}

func (p *Plan) evaluation(key string) *Evaluation {
	for i := range p.Stages {
		if p.Stages[i].Key == key {
			return p.Stages[i].Evaluation
		}
	}
	panic("study: no evaluation " + key)
}

// Difference is how much a level changes a figure against another of its factor.
type Difference struct {
	Factor     string `json:"factor"`
	Level      string `json:"level"`
	Against    string `json:"against"`
	Evaluation string `json:"evaluation"`
	Figure     string `json:"figure"`
	Group      string `json:"group,omitempty"`
	// Interval is of the mean over pairs (its ends are NaN of one seed and one split): runs and splits that are equal in all but this factor. Its level is corrected
	// for the number of comparisons (Bonferroni), so that all intervals of a study hold together with 95 %.
	metric.Interval
	Pairs int `json:"pairs"`
	// Seeds are how many the pairs are of: with one, the interval knows nothing of how training varies.
	Seeds int `json:"seeds"`
}

// Differences compares every level with the first of its factor, or with what the plan says. Intervals are percentiles of draws in which seeds and
// splits are each drawn anew (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007): pairs of one
// seed, or of one split, are not independent. Equal arguments give equal differences.
func (p *Plan) Differences(r Results, draws int, rng *rand.Rand) []Difference {
	var all []*comparison
	for factor := range p.Factors {
		all = append(all, p.compare(r, factor)...)
	}
	level := 1 - 0.05/float64(max(len(all), 1))
	var out []Difference
	for _, c := range all {
		d := c.Difference
		d.Pairs, d.Seeds = len(c.pairs), c.seeds
		d.Interval = c.interval(draws, level, rng)
		out = append(out, d)
	}
	return out
}

// pair is a difference of two figures that agree in all but one factor.
type pair struct {
	seed, split int
	value       float64
}

type comparison struct {
	Difference
	pairs         []pair
	seeds, splits int
}

// reference is what a level is compared with: itself, where with nothing.
func (p *Plan) reference(factor int, level string) string {
	if factor < len(p.Against) && p.Against[factor][level] != "" {
		return p.Against[factor][level]
	}
	return p.Runs[0].Levels[factor]
}

// compare finds the pairs of a factor's levels.
func (p *Plan) compare(r Results, factor int) []*comparison {
	type place struct {
		level, others string
		seed          uint64
		subject
		split string
	}
	at := map[place]float64{}
	visit := func(f func(at place, value float64)) {
		for _, run := range p.Runs {
			others := slices.Clone(run.Levels)
			others[factor] = ""
			for _, k := range run.Evaluations {
				e := p.evaluation(k)
				for _, v := range r[k] {
					if !math.IsNaN(v.Value) {
						f(place{run.Levels[factor], strings.Join(others, "\x00"), run.Seed, subject{e.Name, v.Name, v.Group}, v.Split}, v.Value)
					}
				}
			}
		}
	}
	visit(func(k place, value float64) { at[k] = value })
	type which struct {
		level string
		subject
	}
	found := map[which]*comparison{}
	seeds, splits := map[which]map[uint64]int{}, map[which]map[string]int{}
	var order []*comparison
	visit(func(k place, value float64) {
		w := which{k.level, k.subject}
		against := p.reference(factor, k.level)
		if against == k.level {
			return
		}
		k.level = against
		reference, there := at[k]
		if !there {
			return
		}
		c := found[w]
		if c == nil {
			c = &comparison{Difference: Difference{Factor: p.Factors[factor], Level: w.level, Against: against, Evaluation: k.evaluation, Figure: k.figure, Group: k.group}}
			found[w], seeds[w], splits[w] = c, map[uint64]int{}, map[string]int{}
			order = append(order, c)
		}
		number(seeds[w], k.seed)
		number(splits[w], k.split)
		c.pairs = append(c.pairs, pair{seeds[w][k.seed], splits[w][k.split], value - reference})
		c.seeds, c.splits = len(seeds[w]), len(splits[w])
	})
	return order
}

// number gives each key the number of its first appearance.
func number[K cmp.Ordered](numbers map[K]int, key K) {
	if _, there := numbers[key]; !there {
		numbers[key] = len(numbers)
	}
}

// interval is that of the mean of pairs.
func (c *comparison) interval(draws int, level float64, rng *rand.Rand) metric.Interval {
	mean := func(seeds, splits []int) float64 {
		var sum, weight float64
		for _, p := range c.pairs {
			w := float64(seeds[p.seed] * splits[p.split])
			sum += w * p.value
			weight += w
		}
		return sum / weight
	}
	once := func(n int) []int {
		times := make([]int, n)
		for i := range times {
			times[i] = 1
		}
		return times
	}
	again := func(n int) []int {
		times := make([]int, n)
		for range n {
			times[rng.IntN(n)]++
		}
		return times
	}
	if c.seeds == 1 && c.splits == 1 { // one pair of each other setting: nothing says how it varies
		return metric.Interval{Value: mean(once(1), once(1)), Low: math.NaN(), High: math.NaN(), Level: level}
	}
	drawn := make([]float64, draws)
	for i := range drawn {
		drawn[i] = mean(again(c.seeds), again(c.splits))
	}
	return metric.Percentiles(mean(once(c.seeds), once(c.splits)), drawn, level)
}
