// Package report turns the predictions of a run into what people read: figures with intervals for what was
// asked and for the baselines beside it, ROC and calibration plots, and a page that holds all of it.
//
// It computes everything from the predictions, so a run can be looked at again at any time. It knows no
// database and no classifier.
package report

import (
	"cmp"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"coverslip"
	"coverslip/mil/metric"
)

// Report is a run in figures.
type Report struct {
	Run      coverslip.Run `json:"run"`
	Slides   int           `json:"slides"` // tested
	Patients int           `json:"patients"`
	Unknown  int           `json:"unknown,omitempty"` // slides predicted whose class is not known: no figure counts them
	Level    float64       `json:"level"`             // of all intervals
	Draws    int           `json:"draws"`
	Groups   []Group       `json:"groups"`

	predictions []coverslip.Prediction
}

// Group is splits that belong together: of "k=4/17" the group is k=4; of plain folds it has no name.
type Group struct {
	Name    string   `json:"name"`
	Splits  int      `json:"splits"`
	Methods []Scored `json:"methods"` // in the order of the run's
}

// Scored is a method with its figures.
type Scored struct {
	coverslip.Method
	Figures []Figure `json:"figures"`
	// Gain is by how much the first figure is above that of mean pooling, over the same draws of patients.
	Gain *metric.Interval `json:"gain,omitempty"`
}

// Figure is the mean of a figure over splits. Its interval is that of this mean when patients are drawn anew
// with all of their slides in all splits; Folds is how the splits differ.
type Figure struct {
	Name string `json:"name"`
	metric.Interval
	Folds Folds
}

// MarshalJSON writes the interval's fields and those of the folds beside the name.
func (f Figure) MarshalJSON() ([]byte, error) {
	raw, err := json.Marshal(f.Interval)
	if err != nil {
		return nil, err
	}
	all := map[string]any{}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	all["name"], all["folds"] = f.Name, f.Folds
	return json.Marshal(all)
}

// Folds is how a figure differs between splits.
type Folds struct {
	SD        *float64 `json:"sd"` // nil for fewer than two
	Defined   int      `json:"defined"`
	Undefined int      `json:"undefined,omitempty"` // splits whose test side does not have the figure
}

// MeanPooling and MajorityClass are the names of the baselines that no run goes without.
const (
	MeanPooling   = "mean pooling"
	MajorityClass = "majority class"
)

// Options of a report. Equal ones give equal intervals.
type Options struct {
	Draws int     // of the bootstrap; 0 leaves intervals out
	Level float64 // 0 is 0.95
	Seed  uint64
}

// Of computes the report of a run.
func Of(run coverslip.Run, predictions []coverslip.Prediction, o Options) Report {
	if o.Level == 0 {
		o.Level = 0.95
	}
	predictions = sorted(predictions)
	r := Report{Run: run, Level: o.Level, Draws: o.Draws}
	unknown := map[coverslip.SlideID]bool{}
	predictions = slices.DeleteFunc(predictions, func(p coverslip.Prediction) bool {
		if p.Truth < 0 {
			unknown[p.Slide] = true
		}
		return p.Truth < 0
	})
	r.predictions, r.Unknown = predictions, len(unknown)
	// A unit is a slide; patients are drawn with all of theirs.
	unit, patient := map[coverslip.SlideID]int{}, []string{}
	patients := map[string]bool{}
	for _, p := range predictions {
		if _, ok := unit[p.Slide]; !ok {
			unit[p.Slide] = len(patient)
			who := p.Patient
			if who == "" { // it counts for itself
				who = "\x00" + string(p.Slide)
			}
			patient = append(patient, who)
			patients[who] = true
		}
	}
	r.Slides, r.Patients = len(patient), len(patients)

	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	sides := sidesOf(predictions)
	for _, name := range groupNames(predictions) {
		group := Group{Name: name, Methods: make([]Scored, len(run.Methods))}
		drawn := make([][][]float64, len(run.Methods)) // method → figure → draw
		for m, method := range run.Methods {
			mine := sides[method.Name][name]
			group.Splits = max(group.Splits, len(mine))
			g.Go(func() error {
				group.Methods[m], drawn[m] = score(run, method, mine, unit, patient, o)
				return nil
			})
		}
		_ = g.Wait() // none fails
		for m := range group.Methods {
			base := slices.IndexFunc(run.Methods, func(b coverslip.Method) bool { return b.Name == MeanPooling })
			if base < 0 || m == base || group.Methods[m].Baseline || len(drawn[m]) == 0 || len(drawn[base]) == 0 {
				continue
			}
			gain := make([]float64, len(drawn[m][0]))
			for i, v := range drawn[m][0] {
				gain[i] = v - drawn[base][0][i]
			}
			v := metric.Percentiles(group.Methods[m].Figures[0].Value-group.Methods[base].Figures[0].Value, gain, o.Level)
			group.Methods[m].Gain = &v
		}
		r.Groups = append(r.Groups, group)
	}
	return r
}

// sorted is a copy in one order, so that nothing depends on that of a database.
func sorted(predictions []coverslip.Prediction) []coverslip.Prediction {
	return slices.SortedFunc(slices.Values(predictions), func(a, b coverslip.Prediction) int {
		return cmp.Or(strings.Compare(a.Method, b.Method), strings.Compare(a.Split, b.Split), strings.Compare(string(a.Slide), string(b.Slide)))
	})
}

// side is the test side of one split, as one method predicts it.
type side struct {
	split string
	rows  []coverslip.Prediction
}

// sidesOf sorts predictions by method, group and split, splits in the order they come in.
func sidesOf(predictions []coverslip.Prediction) map[string]map[string][]side {
	all, at := map[string]map[string][]side{}, map[[2]string]int{}
	for _, p := range predictions {
		group := groupOf(p.Split)
		if all[p.Method] == nil {
			all[p.Method] = map[string][]side{}
		}
		key := [2]string{p.Method, p.Split}
		n, ok := at[key]
		if !ok {
			n = len(all[p.Method][group])
			at[key] = n
			all[p.Method][group] = append(all[p.Method][group], side{split: p.Split})
		}
		s := &all[p.Method][group][n]
		s.rows = append(s.rows, p)
	}
	return all
}

func groupOf(split string) string {
	if group, _, ok := strings.Cut(split, "/"); ok {
		return group
	}
	return ""
}

// groupNames are those that occur, numbers in them in order of size: k=2 before k=16.
func groupNames(predictions []coverslip.Prediction) (names []string) {
	seen := map[string]bool{}
	for _, p := range predictions {
		if g := groupOf(p.Split); !seen[g] {
			seen[g] = true
			names = append(names, g)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		kindA, sizeA, _ := strings.Cut(a, "=")
		kindB, sizeB, _ := strings.Cut(b, "=")
		switch {
		case sizeA != "" && sizeB == "": // all, which has no size, is the largest
			return -1
		case sizeA == "" && sizeB != "":
			return 1
		}
		return cmp.Or(strings.Compare(kindA, kindB), cmp.Compare(len(sizeA), len(sizeB)), strings.Compare(sizeA, sizeB))
	})
	return names
}

// score computes the figures of one method in one group, and their values over the draws.
func score(run coverslip.Run, method coverslip.Method, sides []side, unit map[coverslip.SlideID]int, patient []string, o Options) (Scored, [][]float64) {
	s := Scored{Method: method}
	if len(sides) == 0 {
		return s, nil
	}
	type counted struct {
		units   []int
		figures []func(times []int) float64
		times   []int
	}
	defs := figuresOf(run)
	parts := make([]counted, len(sides))
	for i, side := range sides {
		parts[i].times = make([]int, len(side.rows))
		for _, p := range side.rows {
			parts[i].units = append(parts[i].units, unit[p.Slide])
		}
		for _, def := range defs {
			parts[i].figures = append(parts[i].figures, def.of(side.rows, len(run.Classes)))
		}
	}
	drawn, values := make([][]float64, len(defs)), make([]float64, len(sides))
	metric.Draw(patient, o.Draws, rand.New(rand.NewPCG(o.Seed, 0)), func(draw int, times []int) {
		for i := range parts {
			for j, u := range parts[i].units {
				parts[i].times[j] = times[u]
			}
		}
		for f, def := range defs {
			for i := range parts {
				values[i] = parts[i].figures[f](parts[i].times)
			}
			mean := metric.Across(values)
			if draw >= 0 {
				drawn[f] = append(drawn[f], mean.Value)
				continue
			}
			figure := Figure{Name: def.name, Folds: Folds{Defined: mean.Folds, Undefined: mean.Undefined}}
			figure.Value = mean.Value
			if !math.IsNaN(mean.SD) {
				figure.Folds.SD = &mean.SD
			}
			s.Figures = append(s.Figures, figure)
		}
	})
	for f := range defs {
		s.Figures[f].Interval = metric.Percentiles(s.Figures[f].Value, drawn[f], o.Level)
	}
	return s, drawn
}

// Identify is the id of a run: equal runs have equal ones.
func Identify(run coverslip.Run, predictions []coverslip.Prediction) (string, error) {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, v := range []any{coverslip.Version, run.Kind, run.Cohort, run.Label, run.Classes, run.Settings, run.Methods, run.Splits, run.LeftOut, run.Notes, sorted(predictions)} {
		if err := enc.Encode(v); err != nil {
			return "", &coverslip.Error{Kind: coverslip.Internal, Op: "name the run", Err: err} // a prediction is NaN
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// WriteJSON writes the report as indented JSON.
func (r Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// WritePredictions writes a table of them, one column a class.
func WritePredictions(w io.Writer, run coverslip.Run, predictions []coverslip.Prediction) error {
	out := csv.NewWriter(w)
	head := []string{"method", "split", "slide", "patient"}
	if len(run.Classes) == 0 {
		head = append(head, "time", "event", "log_hazard")
	} else {
		head = append(head, "label")
		for _, c := range run.Classes {
			head = append(head, "p_"+c)
		}
	}
	_ = out.Write(head) // Error, below, says what went wrong
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	for _, p := range sorted(predictions) {
		line := []string{p.Method, p.Split, string(p.Slide), p.Patient}
		if len(run.Classes) == 0 {
			line = append(line, number(p.Time), strconv.FormatBool(p.Event))
		} else {
			label := ""
			if p.Truth >= 0 {
				label = run.Classes[p.Truth]
			}
			line = append(line, label)
		}
		for _, v := range p.P {
			line = append(line, number(v))
		}
		_ = out.Write(line)
	}
	out.Flush()
	return out.Error()
}
