// Package cohort reads the files that cohorts come from: tables of labels and manifests of the GDC. What
// they say is held together here, line by line; which slides there are is not known here.
package cohort

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"coverslip"
	"coverslip/internal/table"
)

// Row is what a table says of one slide.
type Row struct {
	Line    int    // of the file, from 1
	Slide   string // its path, name or id, as it was written
	Patient string
	Site    string
	Labels  map[string]any // see coverslip.Member
}

// Columns are looked for by these names, upper and lower case alike, the first first. What of them is
// not taken is no label either.
var (
	slideNames   = []string{"slide", "slide_id", "path", "name", "filename", "file_name"}
	patientNames = []string{"patient", "patient_id", "case_id"}
	siteNames    = []string{"site", "site_id"}
)

// unknown are the ways of saying that a value is not known: of spreadsheets, R, pandas and TCGA.
var unknown = []string{"", "na", "n/a", "nan", "null", "<na>", "[not available]", "[not applicable]", "[not evaluated]", "[unknown]"}

// ReadTable reads a CSV, TSV or semicolon-separated table with a heading: a column that names the slide
// (slide, slide_id, path, name …), patient and site where they are known, and label columns, which are all
// others. A column in which every value is true or false (yes or no) is of kind bool; one of numbers without
// leading zeros, number; any other, category. kinds says what columns hold that are known already.
// A TCGA name says patient and site where the table does not.
func ReadTable(path string, kinds map[string]coverslip.LabelKind) ([]Row, error) {
	f, err := table.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ParseTable(f, path, kinds)
}

// ParseTable is ReadTable of what r holds, which people know as path.
func ParseTable(r io.Reader, path string, kinds map[string]coverslip.LabelKind) ([]Row, error) {
	t, err := table.Read(r, path)
	if err != nil {
		return nil, err
	}
	for i, c := range t.Columns {
		if j := slices.IndexFunc(t.Columns, func(o string) bool { return strings.EqualFold(o, c) }); j != i && c != "" {
			return nil, t.Invalid(0, fmt.Errorf("two columns are called %q", c), "rename one")
		}
	}
	slide, patient, site := t.Column(slideNames...), t.Column(patientNames...), t.Column(siteNames...)
	if slide < 0 {
		return nil, t.Invalid(1, errors.New("no column names the slides"), "call one slide; the columns are "+strings.Join(t.Columns, ", "))
	}
	rows := make([]Row, len(t.Lines))
	for i, line := range t.Lines {
		rows[i] = Row{Line: line.Number, Slide: line.Cells[slide], Labels: map[string]any{}}
		if rows[i].Slide == "" {
			return nil, t.Invalid(line.Number, errors.New("it names no slide"), "fill in column "+t.Columns[slide])
		}
		code, _ := coverslip.ParseTCGA(rows[i].Slide)
		rows[i].Patient, rows[i].Site = code.Patient, code.Site
		if patient >= 0 && !isUnknown(line.Cells[patient]) {
			rows[i].Patient = line.Cells[patient]
		}
		if site >= 0 && !isUnknown(line.Cells[site]) {
			rows[i].Site = line.Cells[site]
		}
	}
	for c, name := range t.Columns {
		if c == slide || c == patient || c == site || isSlideName(name) {
			continue
		}
		if name == "" { // the row numbers of pandas
			continue
		}
		kind := kinds[name]
		if kind == "" {
			kind = guess(t, c)
		}
		for i, line := range t.Lines {
			if isUnknown(line.Cells[c]) {
				continue
			}
			v, err := value(line.Cells[c], kind, t.Decimal)
			if err != nil {
				return nil, t.Invalid(line.Number, fmt.Errorf("column %s: %w", name, err), "correct it, leave it empty, or give the column another name")
			}
			rows[i].Labels[name] = v
		}
	}
	return rows, nil
}

func isSlideName(column string) bool {
	return slices.ContainsFunc(slideNames, func(n string) bool { return strings.EqualFold(n, column) })
}

func isUnknown(cell string) bool { return slices.Contains(unknown, strings.ToLower(cell)) }

// guess is the kind of a column that nobody has named.
func guess(t *table.Table, column int) coverslip.LabelKind {
	for _, kind := range []coverslip.LabelKind{coverslip.BoolLabel, coverslip.NumberLabel} {
		known, fits := 0, true
		for _, l := range t.Lines {
			if cell := l.Cells[column]; !isUnknown(cell) {
				_, err := value(cell, kind, t.Decimal)
				known, fits = known+1, fits && err == nil && !leadsWithZero(cell)
			}
		}
		if known > 0 && fits {
			return kind
		}
	}
	return coverslip.CategoryLabel
}

// leadsWithZero tells codes such as 007 from numbers.
func leadsWithZero(cell string) bool {
	return len(cell) > 1 && cell[0] == '0' && cell[1] >= '0' && cell[1] <= '9'
}

func value(cell string, kind coverslip.LabelKind, decimal string) (any, error) {
	switch kind {
	case coverslip.BoolLabel:
		switch strings.ToLower(cell) {
		case "true", "yes":
			return true, nil
		case "false", "no":
			return false, nil
		}
		return nil, fmt.Errorf("%.40q is neither true nor false", cell)
	case coverslip.NumberLabel:
		text := cell
		if decimal != "" {
			text = strings.Replace(text, decimal, ".", 1)
		}
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsInf(v, 0) || math.IsNaN(v) || strings.ContainsAny(text, "xX_pP") {
			return nil, fmt.Errorf("%.40q is no number", cell)
		}
		return v, nil
	}
	return cell, nil
}
