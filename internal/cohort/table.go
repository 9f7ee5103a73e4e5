// Package cohort reads the files that cohorts come from: tables of labels and manifests of the GDC. What
// they say is held together here, line by line; which slides there are is not known here.
package cohort

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"coverslip"
)

// maxFile bounds a table or a manifest; one of a million slides is smaller.
const maxFile = 512 << 20

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
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ParseTable(f, path, kinds)
}

// ParseTable is ReadTable of what r holds, which people know as path.
func ParseTable(r io.Reader, path string, kinds map[string]coverslip.LabelKind) ([]Row, error) {
	columns, lines, decimal, err := cells(r, path)
	if err != nil {
		return nil, err
	}
	invalid := func(line int, err error, hint string) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: fmt.Sprintf("read line %d", line), Path: path, Err: err, Hint: hint}
	}
	slide, patient, site := find(columns, slideNames), find(columns, patientNames), find(columns, siteNames)
	if slide < 0 {
		return nil, invalid(1, errors.New("no column names the slides"), "call one slide; the columns are "+strings.Join(columns, ", "))
	}
	rows := make([]Row, len(lines))
	for i, line := range lines {
		rows[i] = Row{Line: line.number, Slide: line.cells[slide], Labels: map[string]any{}}
		if rows[i].Slide == "" {
			return nil, invalid(line.number, errors.New("it names no slide"), "fill in column "+columns[slide])
		}
		code, _ := coverslip.ParseTCGA(rows[i].Slide)
		rows[i].Patient, rows[i].Site = code.Patient, code.Site
		if patient >= 0 && !isUnknown(line.cells[patient]) {
			rows[i].Patient = line.cells[patient]
		}
		if site >= 0 && !isUnknown(line.cells[site]) {
			rows[i].Site = line.cells[site]
		}
	}
	for c, name := range columns {
		if c == slide || c == patient || c == site || find([]string{name}, slideNames) >= 0 {
			continue
		}
		if name == "" { // the row numbers of pandas
			continue
		}
		kind := kinds[name]
		if kind == "" {
			kind = guess(lines, c, decimal)
		}
		for i, line := range lines {
			if isUnknown(line.cells[c]) {
				continue
			}
			v, err := value(line.cells[c], kind, decimal)
			if err != nil {
				return nil, invalid(line.number, fmt.Errorf("column %s: %w", name, err), "correct it, leave it empty, or give the column another name")
			}
			rows[i].Labels[name] = v
		}
	}
	return rows, nil
}

type line struct {
	number int
	cells  []string
}

// cells reads the heading and the lines under it. decimal is the other sign that parts a number where
// cells are parted by semicolons.
func cells(in io.Reader, path string) (columns []string, lines []line, decimal string, err error) {
	const op = "read the table"
	text, err := plainText(in, path)
	if err != nil {
		return nil, nil, "", err
	}
	head, _ := text.Peek(min(text.Size(), 64<<10)) // less if there is less
	r := csv.NewReader(text)
	r.Comma, r.TrimLeadingSpace = comma(string(head)), true
	if r.Comma == ';' {
		decimal = ","
	}
	for {
		row, err := r.Read()
		var syntax *csv.ParseError
		switch {
		case errors.Is(err, io.EOF):
			if len(lines) == 0 {
				return nil, nil, "", &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: path, Err: errors.New("it has no lines under a heading"), Hint: "the first line names the columns: slide,patient,site,label"}
			}
			return columns, lines, decimal, nil
		case errors.As(err, &syntax):
			return nil, nil, "", &coverslip.Error{Kind: coverslip.Invalid, Op: fmt.Sprintf("read line %d", syntax.Line), Path: path, Err: syntax.Err, Hint: "each line needs as many cells as the heading; quote cells that hold the separator"}
		case err != nil:
			return nil, nil, "", &coverslip.Error{Kind: coverslip.Environment, Op: op, Path: path, Err: err}
		}
		number, _ := r.FieldPos(0)
		for i := range row {
			row[i] = strings.TrimSpace(row[i])
		}
		if columns != nil {
			lines = append(lines, line{number, row})
			continue
		}
		columns = row
		for i, c := range columns {
			if j := slices.IndexFunc(columns, func(o string) bool { return strings.EqualFold(o, c) }); j != i && c != "" {
				return nil, nil, "", &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: path, Err: fmt.Errorf("two columns are called %q", c), Hint: "rename one"}
			}
		}
	}
}

func open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "read", Path: path, Err: err, Hint: "check the path, and that it can be read"}
	}
	if info, err := f.Stat(); err == nil && info.Size() > maxFile {
		_ = f.Close() // only read
		return nil, &coverslip.Error{Kind: coverslip.TooLarge, Op: "read", Path: path, Err: fmt.Errorf("%d bytes", info.Size()), Hint: "is it a list of slides?"}
	}
	return f, nil
}

// plainText passes over a byte order mark and refuses what is no text.
func plainText(r io.Reader, path string) (*bufio.Reader, error) {
	text := bufio.NewReaderSize(r, 64<<10)
	if mark, err := text.Peek(3); err == nil && string(mark) == "\xef\xbb\xbf" {
		_, _ = text.Discard(3)
	}
	if head, _ := text.Peek(4096); slices.Contains(head, 0) {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read", Path: path, Err: errors.New("this is no text"), Hint: "save it as a CSV or TSV file in UTF-8"}
	}
	return text, nil
}

// comma is what parts the cells of the heading: the commonest of comma, tab and semicolon.
func comma(head string) rune {
	head, _, _ = strings.Cut(head, "\n")
	best := ','
	for _, c := range "\t;" {
		if strings.Count(head, string(c)) > strings.Count(head, string(best)) {
			best = c
		}
	}
	return best
}

func find(columns, names []string) int {
	for _, name := range names {
		if i := slices.IndexFunc(columns, func(c string) bool { return strings.EqualFold(c, name) }); i >= 0 {
			return i
		}
	}
	return -1
}

func isUnknown(cell string) bool { return slices.Contains(unknown, strings.ToLower(cell)) }

// guess is the kind of a column that nobody has named.
func guess(lines []line, column int, decimal string) coverslip.LabelKind {
	for _, kind := range []coverslip.LabelKind{coverslip.BoolLabel, coverslip.NumberLabel} {
		known, fits := 0, true
		for _, l := range lines {
			if cell := l.cells[column]; !isUnknown(cell) {
				_, err := value(cell, kind, decimal)
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
