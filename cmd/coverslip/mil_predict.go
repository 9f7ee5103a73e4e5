package main

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"coverslip"
	"coverslip/mil"
	"coverslip/mil/split"
	"coverslip/slidessl"
)

type milPredictCmd struct {
	Classifier string `arg:"" type:"existingfile" placeholder:"FILE" help:"A classifier that mil train --save wrote."`
	Cohort     string `required:"" placeholder:"NAME" help:"The slides."`
	Label      string `placeholder:"COLUMN" help:"The label column to judge by (the classifier's own, where the cohort has it)."`
	Out        string `type:"path" placeholder:"FILE" help:"Write a CSV there."`
	Bootstraps int    `default:"1000" help:"Draws of patients for the intervals (${default})."`
	Seed       uint64 `default:"0" help:"Equal seeds give equal intervals (${default})."`
	dataFlags
}

// Help is shown by coverslip mil predict --help.
func (milPredictCmd) Help() string {
	return `Examples:
  coverslip mil predict gated.safetensors --cohort new
  coverslip mil predict gated.safetensors --cohort new --out predictions.csv
  coverslip mil predict gated.safetensors --cohort new --json

Slides the classifier was trained on are marked: what it says of them shows nothing. All others are kept as a
run. Where they have labels the run is judged, beside mean pooling and the majority class of the slides the
classifier was trained on; coverslip runs show ID shows it again. With --json the run is the last line.`
}

// predicted is what is printed of a slide.
type predicted struct {
	Slide   coverslip.SlideID  `json:"slide"`
	Name    string             `json:"name"`
	Class   string             `json:"class,omitempty"`
	P       map[string]float64 `json:"p,omitempty"`
	Trained bool               `json:"trained_on,omitempty"`
	Reason  string             `json:"reason,omitempty"` // why there is none

	p []float64
}

// Run predicts.
func (c *milPredictCmd) Run(e *env) error {
	k, err := mil.Load(c.Classifier)
	if err != nil {
		return err
	}
	names := k.Card.Names
	for len(names) < k.Classes {
		names = append(names, strconv.Itoa(len(names)))
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	members, err := p.DB.Members(e, c.Cohort)
	if err != nil {
		return err
	}
	kinds, err := p.DB.LabelKinds(e, c.Cohort)
	if err != nil {
		return err
	}
	if _, there := kinds[c.Label]; c.Label != "" && !there {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "read the labels", Path: "cohort " + c.Cohort, Err: fmt.Errorf("there is no label column %q", c.Label), Hint: "coverslip cohorts " + c.Cohort + " shows its columns"}
	}
	stored, err := p.bagsOf(e, c.Cohort, k.Card.Encoder)
	if err != nil {
		return err
	}
	var all []predicted
	failed := 0
	show := e.progressOf("predicting", "slides", len(members))
	for i, m := range members {
		out := predicted{Slide: m.Slide, Name: m.Name, Trained: slices.Contains(k.Card.Slides, string(m.Slide))}
		b, there := stored[m.Slide]
		var said mil.Prediction
		switch {
		case !there:
			out.Reason = "no bag under encoder " + k.Card.Encoder
		case b.Tiles == 0:
			out.Reason = "its bag is empty: no tissue was found"
		default:
			said, err = predictOne(e, k, &cohortBags{p, []coverslip.Bag{b}, []string{m.Name}}, 0)
			if e.Err() != nil {
				return e.Err()
			}
			if err != nil {
				out.Reason = err.Error()
			}
		}
		if out.Reason != "" {
			failed++
		} else {
			out.p, out.P = said.P, map[string]float64{}
			top := 0
			for i, v := range said.P {
				out.P[names[i]] = v
				if v > said.P[top] {
					top = i
				}
			}
			out.Class = names[top]
		}
		all = append(all, out)
		show(i + 1)
	}
	if c.Out != "" {
		if err := publish(c.Out, func(w io.Writer) error { return writePredicted(w, all, names) }); err != nil {
			return err
		}
	}
	if err := c.list(e, all, names); err != nil {
		return err
	}
	if err := c.keep(e, p, k.Card, names, members, all); err != nil {
		return err
	}
	if failed > 0 {
		return &someFailed{failed}
	}
	return nil
}

// list prints what was predicted.
func (c *milPredictCmd) list(e *env, all []predicted, names []string) error {
	rows := []string{"slide\tclass\t" + strings.Join(names, "\t") + "\t"}
	for _, o := range all {
		if e.json {
			if err := e.emit(o); err != nil {
				return err
			}
			continue
		}
		if o.Reason != "" {
			rows = append(rows, o.Name+"\t–\t"+strings.Repeat("\t", len(names))+o.Reason)
			continue
		}
		line := o.Name + "\t" + o.Class
		for _, n := range names {
			line += fmt.Sprintf("\t%.3f", o.P[n])
		}
		if o.Trained {
			line += "\ttrained on"
		}
		rows = append(rows, line)
	}
	if !e.json {
		e.table(rows...)
		if c.Out != "" {
			e.printf("wrote %s\n", c.Out)
		}
	}
	return nil
}

// keep writes what was said of slides that the classifier had not seen as a run of one split: its training
// side are the slides of the classifier, as far as they are here.
func (c *milPredictCmd) keep(e *env, p *platform, card mil.Card, names []string, members []coverslip.Member, all []predicted) error {
	ev := &evaluation{
		flags:   &evaluationFlags{Cohort: c.Cohort, Label: cmp.Or(c.Label, card.Label, "label"), By: "none", Bootstraps: c.Bootstraps, Seed: c.Seed},
		encoder: card.Encoder, classes: names, baseline: probeSpec{Classifier: "logistic"},
	}
	s := split.Split{Name: "0"}
	add := func(m coverslip.Member, class string, side split.Side, mean []float32) {
		ev.slides, ev.mean, ev.y = append(ev.slides, m.Slide), append(ev.mean, mean), append(ev.y, slices.Index(names, class))
		ev.rows = append(ev.rows, split.Row{Slide: m.Name, Patient: m.Patient, Site: m.Site, Label: class})
		s.Side = append(s.Side, side)
	}
	pooled := slidessl.Mean{}.Model().Name
	mean, err := embeddings(e, p, c.Cohort, card.Encoder, pooled)
	if err != nil {
		return err
	}
	method, lacks := coverslip.Method{Name: cmp.Or(string(card.Settings.Model), "classifier")}, 0
	var predictions []coverslip.Prediction
	for i, m := range members {
		o, class := all[i], strings.TrimSpace(coverslip.LabelText(m.Labels[ev.flags.Label]))
		why := o.Reason
		switch {
		case why != "":
		case o.Trained:
			why = "the classifier was trained on it"
		case class != "" && !slices.Contains(names, class):
			why = fmt.Sprintf("its class %q is none of the classifier's", class)
		}
		if why != "" {
			ev.left = append(ev.left, coverslip.LeftOut{Slide: m.Name, Reason: why})
			continue
		}
		if mean[m.Slide] == nil {
			lacks++
		}
		add(m, class, split.Test, mean[m.Slide])
		predictions = append(predictions, coverslip.Prediction{Method: method.Name, Split: s.Name, Slide: m.Slide, Patient: m.Patient, P: o.p, Truth: slices.Index(names, class)})
	}
	if len(predictions) == 0 {
		if !e.json {
			e.printf("no run is kept: there is no slide that the classifier had not seen\n")
		}
		return nil
	}
	if err := c.trained(e, p, card, func(m coverslip.Member, class string, mean []float32) { add(m, class, split.Train, mean) }); err != nil {
		return err
	}
	split.FromNames(ev.rows)
	ev.splits = []split.Split{s}
	if err := ev.audit(); err != nil {
		return err
	}
	methods := []coverslip.Method{method}
	settings := struct {
		Classifier mil.Card `json:"classifier"`
	}{card}
	switch {
	case len(s.Rows(split.Train)) == 0:
		ev.notes = append(ev.notes, "no baselines: none of the slides the classifier was trained on is here, with its label and its mean embedding")
	case lacks > 0:
		ev.notes = append(ev.notes, fmt.Sprintf("no baselines: %s without an embedding by mean pooling; coverslip embed --aggregator mean makes it", count(lacks, "slide")))
	default:
		if methods, predictions, err = ev.baselines(e, methods, predictions); err != nil {
			return err
		}
	}
	if !e.json {
		e.printf("\n")
	}
	return ev.keep(e, p, coverslip.MILModel, settings, methods, predictions)
}

// trained calls add with the slides a classifier was trained on, as far as they are here with their labels
// and mean embeddings.
func (c *milPredictCmd) trained(e *env, p *platform, card mil.Card, add func(m coverslip.Member, class string, mean []float32)) error {
	members, err := p.DB.Members(e, card.Cohort)
	if coverslip.KindOf(err) == coverslip.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	mean, err := embeddings(e, p, card.Cohort, card.Encoder, slidessl.Mean{}.Model().Name)
	if err != nil {
		return err
	}
	for _, m := range members {
		class := strings.TrimSpace(coverslip.LabelText(m.Labels[card.Label]))
		if slices.Contains(card.Slides, string(m.Slide)) && slices.Contains(card.Names, class) && mean[m.Slide] != nil {
			add(m, class, mean[m.Slide])
		}
	}
	return nil
}

// writePredicted writes the table of slides and probabilities.
func writePredicted(w io.Writer, all []predicted, names []string) error {
	out := csv.NewWriter(w)
	_ = out.Write(append([]string{"slide", "name", "class", "trained_on", "reason"}, names...)) // Error tells
	for _, o := range all {
		line := []string{string(o.Slide), o.Name, o.Class, strconv.FormatBool(o.Trained), o.Reason}
		for _, n := range names {
			cell := ""
			if o.P != nil {
				cell = strconv.FormatFloat(o.P[n], 'g', 9, 64)
			}
			line = append(line, cell)
		}
		_ = out.Write(line)
	}
	out.Flush()
	return out.Error()
}
