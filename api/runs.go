package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// Runs is where the API finds what was judged.
type Runs interface {
	// Runs returns all of them, the newest first.
	Runs(ctx context.Context) ([]coverslip.Run, error)
	// RunByPrefix returns the run whose id is prefix or begins with it. No such run is NotFound, more than one
	// is Conflict.
	RunByPrefix(ctx context.Context, prefix string) (coverslip.Run, error)
	// Predictions returns all of a run.
	Predictions(ctx context.Context, run string) ([]coverslip.Prediction, error)
}

func (s *server) runRoutes() {
	op := func(path, id, summary, description string) huma.Operation {
		return huma.Operation{Method: http.MethodGet, Path: path, OperationID: id, Tags: []string{"runs"}, Summary: summary, Description: description}
	}
	find := slices.Concat([]coverslip.Kind{coverslip.NotFound, coverslip.Conflict}, stumbles)
	register(s.api, op("/v1/runs", "list-runs", "List what was judged", "Probes and MIL classifiers, the newest first, without their splits."), runList{[]runView{exampleRun}}, stumbles, s.listRuns)
	register(s.api, op("/v1/runs/{run}", "show-run", "Show a run", "With the splits it was judged on and the slides that were left out."), exampleRunShown, find, s.showRun)
	register(s.api, op("/v1/runs/{run}/predictions", "list-predictions", "What each method of a run says of each slide",
		"On the test side of each split. Every figure of a run follows from them."), examplePredictions, find, s.listPredictions)
}

type runView struct {
	ID      string              `json:"id" doc:"SHA-256 of all that it holds but the time, and of its predictions"`
	Kind    coverslip.ModelKind `json:"kind" doc:"probe or mil"`
	Cohort  string              `json:"cohort" doc:"Whose slides were judged"`
	Label   string              `json:"label" doc:"The label column"`
	Classes []string            `json:"classes,omitempty" doc:"In the order of probabilities; absent of survival"`
	Methods []methodView        `json:"methods" nullable:"false" doc:"What was asked for first, baselines after"`
	Notes   []string            `json:"notes" nullable:"false" doc:"What to know when reading it"`
	Created time.Time           `json:"created" doc:"When it was kept"`

	Settings map[string]any `json:"settings,omitempty" doc:"How it was made; this and what follows only in the answer for one run"`
	Splits   string         `json:"splits,omitempty" doc:"The split file: columns fold_…, tab-separated"`
	LeftOut  []leftOutView  `json:"left_out,omitempty" doc:"Slides of the cohort that no split uses"`
}

type methodView struct {
	Name     string `json:"name" doc:"Its name"`
	Baseline bool   `json:"baseline,omitempty" doc:"It is there to compare with"`
	Note     string `json:"note,omitempty" doc:"What was chosen on the way"`
}

type leftOutView struct {
	Slide  string `json:"slide" doc:"Its name"`
	Reason string `json:"reason" doc:"Why"`
}

type predictionView struct {
	Method  string            `json:"method" doc:"Whose it is"`
	Split   string            `json:"split" doc:"On the test side of which split"`
	Slide   coverslip.SlideID `json:"slide" doc:"Of which slide"`
	Patient string            `json:"patient" doc:"Of which patient"`
	P       []float64         `json:"p" nullable:"false" doc:"Probability of each class; of survival the one log hazard"`
	Truth   int               `json:"truth" doc:"Its class; -1 where it is not known"`
	Time    float64           `json:"time,omitempty" doc:"Of survival: until the event, or until the patient was last seen"`
	Event   bool              `json:"event,omitempty" doc:"Of survival: whether there was the event"`
}

type runList struct {
	Runs []runView `json:"runs" nullable:"false" doc:"All of them"`
}

type predictionList struct {
	Predictions []predictionView `json:"predictions" nullable:"false" doc:"All of them"`
}

func viewRun(r coverslip.Run) runView {
	return runView{ID: r.ID, Kind: r.Kind, Cohort: r.Cohort, Label: r.Label, Classes: r.Classes, Methods: each(r.Methods, func(m coverslip.Method) methodView { return methodView(m) }),
		Notes: append([]string{}, r.Notes...), Created: r.Created}
}

type runsOutput struct{ Body runList }

func (s *server) listRuns(ctx context.Context, _ *struct{}) (*runsOutput, error) {
	all, err := s.cfg.Runs.Runs(ctx)
	return &runsOutput{runList{each(all, viewRun)}}, err
}

// OneRun is the id in the address of every route below a run.
type OneRun struct {
	ID string `path:"run" doc:"The run's id, or at least its first six hexadecimal digits" pattern:"^[0-9a-f]{6,64}$" example:"3f2a91"`
}

type runOutput struct{ Body runView }

func (s *server) showRun(ctx context.Context, in *OneRun) (*runOutput, error) {
	r, err := s.cfg.Runs.RunByPrefix(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := &runOutput{viewRun(r)}
	out.Body.Splits, out.Body.LeftOut = r.Splits, each(r.LeftOut, func(l coverslip.LeftOut) leftOutView { return leftOutView(l) })
	err = json.Unmarshal(r.Settings, &out.Body.Settings)
	return out, err
}

type predictionsOutput struct{ Body predictionList }

func (s *server) listPredictions(ctx context.Context, in *OneRun) (*predictionsOutput, error) {
	r, err := s.cfg.Runs.RunByPrefix(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	all, err := s.cfg.Runs.Predictions(ctx, r.ID)
	return &predictionsOutput{predictionList{each(all, func(p coverslip.Prediction) predictionView { return predictionView(p) })}}, err
}

var (
	exampleRun = runView{ID: "3f2a91" + strings.Repeat("0", 58), Kind: coverslip.ProbeModel, Cohort: "brca", Label: "subtype", Classes: []string{"IDC", "ILC"},
		Methods: []methodView{{Name: "mean", Note: "C = 1"}, {Name: "majority class", Baseline: true}}, Notes: []string{}, Created: exampleTime}
	exampleRunShown = func() runView {
		r := exampleRun
		r.Settings, r.Splits, r.LeftOut = map[string]any{"protocol": "kfold"}, "slide\tfold_0\nCMU-1-Small-Region.svs\ttest\n", []leftOutView{{"b.svs", "it has no embedding"}}
		return r
	}()
	examplePredictions = predictionList{[]predictionView{{Method: "mean", Split: "0", Slide: exampleSlide.ID, Patient: "TCGA-A7-A6VV", P: []float64{0.8, 0.2}}}}
)
