package main

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"

	"coverslip/mil"
	"coverslip/mil/metric"
)

type milBenchmarkCmd struct {
	Dir    string   `arg:"" type:"existingdir" help:"The folder with musk1.csv.gz, musk2, fox, tiger and elephant."`
	Models []string `name:"model" sep:"," default:"abmil,gated" help:"Which to train (${default})."`
	Sets   []string `name:"set" sep:"," help:"Only these sets."`
	Folds  int      `default:"10" help:"Folds, stratified (${default})."`
	Runs   int      `default:"5" help:"Runs, each with other folds and seeds (${default})."`
	Seed   uint64   `default:"0" help:"Equal seeds give equal figures (${default})."`
}

// Help is shown by coverslip mil benchmark --help.
func (milBenchmarkCmd) Help() string {
	return `Examples:
  coverslip mil benchmark ../shared/data/mil
  coverslip mil benchmark ../shared/data/mil --set musk1 --runs 1 --model mean,max,abmil

Accuracy over 10 folds × 5 runs beside Ilse et al. 2018, whose layers and way to train it is (256, 128, 64; attention
64; SGD with momentum, bag by bag). Features are scaled over each fold's training bags. The deviation is that
of the runs' means; in brackets that of folds.`
}

// classicResult is one line.
type classicResult struct {
	Set         string   `json:"set"`
	Model       string   `json:"model"`
	Accuracy    float64  `json:"accuracy"`
	RunSD       *float64 `json:"run_sd,omitempty"` // of the runs' means
	FoldSD      float64  `json:"fold_sd"`
	Folds       int      `json:"folds"`
	Published   float64  `json:"published,omitempty"`
	PublishedSD float64  `json:"published_sd,omitempty"`
	Within      *bool    `json:"within_one_sd,omitempty"` // or better
}

// Run trains and prints the table.
func (c *milBenchmarkCmd) Run(e *env) error {
	for _, m := range c.Models {
		if !slices.Contains(mil.Models(), mil.Model(m)) {
			return &usageError{fmt.Sprintf("--model %s: there are %s", m, mil.ModelNames())}
		}
	}
	if c.Folds < 2 || c.Runs < 1 {
		return &usageError{"--folds is at least 2, --runs at least 1"}
	}
	rows := []string{"set\tmodel\taccuracy\tpublished\twithin one sd, or better"}
	for _, set := range mil.Classic() {
		if len(c.Sets) > 0 && !slices.Contains(c.Sets, set.Name) {
			continue
		}
		bags, y, err := mil.ReadClassic(filepath.Join(c.Dir, set.Name+".csv.gz"))
		if err != nil {
			return err
		}
		splits, err := mil.ClassicFolds(bags, y, c.Folds, c.Runs, c.Seed)
		if err != nil {
			return err
		}
		for _, model := range c.Models {
			settings := set.Settings(mil.Model(model))
			settings.Seed = c.Seed
			show := e.progressOf(set.Name+", "+model, "folds", len(splits))
			accuracy, err := mil.JudgeClassic(e, bags, y, settings, splits, show)
			if err != nil {
				return err
			}
			r := classicResult{Set: set.Name, Model: model, Folds: len(splits)}
			all := metric.Across(accuracy)
			r.Accuracy, r.FoldSD = all.Value, all.SD
			line := fmt.Sprintf("%s\t%s\t%.3f", set.Name, model, r.Accuracy)
			if c.Runs > 1 {
				var means []float64
				for run := range c.Runs {
					means = append(means, metric.Across(accuracy[run*c.Folds:(run+1)*c.Folds]).Value)
				}
				sd := metric.Across(means).SD
				r.RunSD = &sd
				line += fmt.Sprintf(" ± %.3f", sd)
			}
			line += fmt.Sprintf(" (%.3f)", r.FoldSD)
			if published, there := map[mil.Model][2]float64{mil.ABMIL: set.ABMIL, mil.Gated: set.Gated}[mil.Model(model)]; there {
				within := r.Accuracy >= published[0]-published[1]-1e-9
				r.Published, r.PublishedSD, r.Within = published[0], published[1], &within
				line += fmt.Sprintf("\t%.3f ± %.3f\t%v", published[0], published[1], map[bool]string{true: "yes", false: fmt.Sprintf("no, by %.3f", math.Abs(published[0]-published[1]-r.Accuracy))}[within])
			}
			rows = append(rows, line)
			if e.json {
				if err := e.emit(r); err != nil {
					return err
				}
			}
		}
	}
	if !e.json {
		e.table(rows...)
	}
	return nil
}
