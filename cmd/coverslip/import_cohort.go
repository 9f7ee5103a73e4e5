package main

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"coverslip"
	"coverslip/internal/cohort"
	"coverslip/internal/ingest"
)

type importCSVCmd struct {
	File        string            `arg:"" type:"path" help:"A table: a line a slide, columns slide (path, name or id), patient, site, and labels."`
	Cohort      string            `required:"" placeholder:"NAME" help:"Put the slides into this cohort, made if it is new."`
	Type        map[string]string `placeholder:"COLUMN=KIND" help:"What a column holds, where it should not be guessed: number, category or bool."`
	SkipMissing bool              `help:"Leave out slides that are not registered. Without it, one refuses the table."`
	dataFlags
}

// Help is shown by coverslip import csv --help.
func (importCSVCmd) Help() string {
	return `Examples:
  coverslip import csv labels.csv --cohort brca
  coverslip import csv clinical.tsv --cohort brca --type grade=category --skip-missing

  slide,patient,site,subtype,age,recurrence
  TCGA-A7-A6VV-01Z-00-DX1.svs,TCGA-A7-A6VV,A7,IDC,61,no

Slides are registered already, or have only a bag that was imported. A column of true and false (yes and no)
becomes bool, one of numbers number, others category. Empty cells and NA say nothing, and leave what is
there. A column keeps its kind. TCGA names need no columns of patients and sites.`
}

// Run reads the table and puts its slides into the cohort.
func (c *importCSVCmd) Run(e *env) error {
	said := map[string]coverslip.LabelKind{}
	for name, kind := range c.Type {
		switch k := coverslip.LabelKind(kind); k {
		case coverslip.NumberLabel, coverslip.CategoryLabel, coverslip.BoolLabel:
			said[name] = k
		default:
			return &usageError{fmt.Sprintf("--type %s=%s: a kind is number, category or bool", name, kind)}
		}
	}
	if err := checkCohort(c.Cohort); err != nil {
		return err
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	kinds, err := p.DB.LabelKinds(e, c.Cohort)
	if err != nil {
		return err
	}
	maps.Copy(kinds, said) // storage refuses what contradicts
	rows, err := cohort.ReadTable(c.File, kinds)
	if err != nil {
		return err
	}
	in := &ingest.Ingest{DB: p.DB, Log: e.log}
	out, err := in.Label(e, c.Cohort, rows, c.SkipMissing)
	if err != nil {
		return coverslip.At(c.File, err)
	}
	if e.json {
		return e.emit(struct {
			Rows    int              `json:"rows"` // of the table that are in the cohort now
			Missing []string         `json:"missing,omitempty"`
			Cohort  coverslip.Cohort `json:"cohort"`
		}{out.Slides, out.Missing, out.Cohort})
	}
	for i, name := range out.Missing {
		if i == 10 {
			e.say("… and %d more\n", len(out.Missing)-i)
			break
		}
		e.say("left out, not registered: %s\n", name)
	}
	e.printf("%s of %s\n", count(out.Slides, "slide"), c.File)
	e.printCohort(out.Cohort)
	return nil
}

// checkCohort refuses names that mean something else.
func checkCohort(name string) error {
	if strings.Contains(name, "@") {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "change the cohort", Path: "cohort " + name, Err: errors.New("versions of a cohort do not change"), Hint: "name it without @"}
	}
	return nil
}
