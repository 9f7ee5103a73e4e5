package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"coverslip"
)

type cohortsCmd struct {
	List     cohortsListCmd     `cmd:"" default:"withargs" help:"List cohorts."`
	Show     cohortsShowCmd     `cmd:"" help:"Show the columns of one."`
	Export   cohortsExportCmd   `cmd:"" help:"Write one as a table, which import csv reads."`
	Progress cohortsProgressCmd `cmd:"" help:"Say how far the slides of one are."`
	Freeze   cohortsFreezeCmd   `cmd:"" help:"Make a version that does not change: NAME@1."`
}

type cohortsListCmd struct{ dataFlags }

// Help is shown by coverslip cohorts --help.
func (cohortsListCmd) Help() string {
	return `Examples:
  coverslip cohorts
  coverslip cohorts show brca
  coverslip cohorts freeze brca
  coverslip cohorts export brca@1 -o brca.csv

Cohorts come from ingest --cohort, import gdc, import s3, import csv and import bags.`
}

// Run lists cohorts.
func (c *cohortsListCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	cohorts, err := p.DB.Cohorts(e)
	if err != nil {
		return err
	}
	rows := []string{"cohort\tslides\tpatients\tsites\tcreated"}
	for _, c := range cohorts {
		if e.json {
			if err := e.emit(c); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, fmt.Sprintf("%s\t%d\t%d\t%d\t%s", c.Name, c.Slides, c.Patients, c.Sites, c.Created.Format("2006-01-02 15:04")))
	}
	switch {
	case e.json:
	case len(cohorts) == 0:
		e.printf("no cohorts; coverslip ingest SLIDE … --cohort NAME makes one\n")
	default:
		e.table(rows...)
	}
	return nil
}

type cohortsShowCmd struct {
	Name string `arg:"" help:"Which cohort."`
	dataFlags
}

// Help is shown by coverslip cohorts show --help.
func (cohortsShowCmd) Help() string { return "Example:\n  coverslip cohorts show brca" }

// Run shows one cohort.
func (c *cohortsShowCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	cohort, err := p.DB.Cohort(e, c.Name)
	switch {
	case err != nil:
		return err
	case e.json:
		return e.emit(cohort)
	}
	e.printCohort(cohort)
	return nil
}

func (e *env) printCohort(c coverslip.Cohort) {
	e.printf("%s: %s, %s, %s\n", c.Name, count(c.Slides, "slide"), count(c.Patients, "patient"), count(c.Sites, "site"))
	rows := []string{"label\tkind\tslides"}
	for _, l := range c.Labels {
		rows = append(rows, fmt.Sprintf("%s\t%s\t%d", l.Name, l.Kind, l.Slides))
	}
	if len(c.Labels) > 0 {
		e.table(rows...)
	}
}

type cohortsExportCmd struct {
	Name string `arg:"" help:"Which cohort."`
	Out  string `short:"o" default:"-" placeholder:"FILE" help:"Where to; - is standard output (${default})."`
	dataFlags
}

// Help is shown by coverslip cohorts export --help.
func (cohortsExportCmd) Help() string {
	return `Example:
  coverslip cohorts export brca -o brca.csv

Columns slide (its id), name, patient, site and the labels; with --json, one object a line.`
}

// Run writes a cohort as a table.
func (c *cohortsExportCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	cohort, err := p.DB.Cohort(e, c.Name)
	if err != nil {
		return err
	}
	members, err := p.DB.Members(e, c.Name)
	if err != nil {
		return err
	}
	write := func(w io.Writer) error { return writeCohort(w, cohort, members) }
	if e.json {
		to := *e
		write = func(w io.Writer) error {
			to.out = w
			for _, m := range members {
				if err := to.emit(m); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if c.Out == "-" {
		return write(e.out)
	}
	if err := publish(c.Out, write); err != nil {
		return err
	}
	e.say("%s: %s\n", c.Out, count(len(members), "slide"))
	return nil
}

func writeCohort(w io.Writer, c coverslip.Cohort, members []coverslip.Member) error {
	out := csv.NewWriter(w)
	row := []string{"slide", "name", "patient", "site"}
	for _, l := range c.Labels {
		row = append(row, l.Name)
	}
	_ = out.Write(row) // Error says
	for _, m := range members {
		row = append(row[:0], string(m.Slide), m.Name, m.Patient, m.Site)
		for _, l := range c.Labels {
			row = append(row, coverslip.LabelText(m.Labels[l.Name]))
		}
		_ = out.Write(row)
	}
	out.Flush()
	return out.Error()
}

type cohortsFreezeCmd struct {
	Name string `arg:"" help:"Which cohort."`
	dataFlags
}

// Help is shown by coverslip cohorts freeze --help.
func (cohortsFreezeCmd) Help() string {
	return `Example:
  coverslip cohorts freeze brca

The version is a cohort of its own, brca@1, then brca@2 and so on: every verb takes it for --cohort.`
}

// Run makes a version.
func (c *cohortsFreezeCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	version, err := p.DB.Freeze(e, c.Name)
	if err != nil {
		return err
	}
	cohort, err := p.DB.Cohort(e, version)
	switch {
	case err != nil:
		return err
	case e.json:
		return e.emit(cohort)
	}
	e.printCohort(cohort)
	return nil
}

type cohortsProgressCmd struct {
	Name   string `arg:"" help:"Which cohort."`
	Follow bool   `short:"f" help:"Stay until nothing waits any more."`
	dataFlags
}

// Help is shown by coverslip cohorts progress --help.
func (cohortsProgressCmd) Help() string {
	return `Examples:
  coverslip cohorts progress brca
  coverslip cohorts progress brca --follow

Exit code 1 when slides failed. With --json, one object a line, with --follow one each time it changes.`
}

// Run shows how far a cohort is, once or until it is done.
func (c *cohortsProgressCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	var last coverslip.Progress
	var bar func(int)
	for {
		now, err := p.DB.Progress(e, c.Name)
		if err != nil {
			return err
		}
		over := !c.Follow || now.Waiting() == 0
		switch {
		case e.json && (over || !sameProgress(now, last)):
			if err := e.emit(now); err != nil {
				return err
			}
		case !e.json && over:
			e.printProgress(now)
		case !e.json:
			if bar == nil {
				bar = e.progressOf("encoding "+c.Name, "slides", now.Slides)
			}
			bar(now.Slides - now.Waiting())
		}
		if over {
			if n := now.States[coverslip.Failed] + now.States[coverslip.AwaitingMPP]; n > 0 {
				return &someFailed{n}
			}
			return nil
		}
		last = now
		select {
		case <-e.Done():
			return e.Err()
		case <-time.After(time.Second):
		}
	}
}

// sameProgress is as people see it: the rate changes with every look.
func sameProgress(a, b coverslip.Progress) bool {
	return a.Slides == b.Slides && maps.Equal(a.States, b.States) && slices.Equal(a.Failed, b.Failed)
}

func (e *env) printProgress(p coverslip.Progress) {
	e.printf("%s: %d of %s done", p.Cohort, p.Done(), count(p.Slides, "slide"))
	if n := p.States[coverslip.Encoding]; n > 0 {
		e.printf(", %d being encoded", n)
	}
	if n := p.States[coverslip.Queued]; n > 0 {
		e.printf(", %d waiting", n)
	}
	if n := p.States[coverslip.Registered]; n > 0 {
		e.printf(", %d that nobody has asked for (coverslip encode --cohort %s)", n, p.Cohort)
	}
	e.printf("\n")
	if p.PerHour > 0 {
		e.printf("%.0f an hour", p.PerHour)
		if p.Waiting() > 0 {
			e.printf(", %s left", time.Duration(p.SecondsLeft)*time.Second)
		}
		e.printf("\n")
	}
	if len(p.Failed) == 0 {
		return
	}
	rows := []string{"failed\tslides\tfor example"}
	for _, f := range p.Failed {
		rows = append(rows, fmt.Sprintf("%s\t%d\t%s", f.Kind, f.Slides, f.Example))
	}
	e.table(rows...)
	e.printf("try them again: coverslip jobs retry --cohort %s --kind KIND\n", p.Cohort)
}
