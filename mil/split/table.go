package split

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"coverslip"
)

// maxTable bounds the bytes of a table; one of a million slides is smaller.
const maxTable = 512 << 20

// table is a file of columns, as text.
type table struct {
	path    string
	columns []string
	lines   [][]string
}

// Columns are looked for by these names, upper and lower case alike, the first first.
var (
	slideNames   = []string{"slide_id", "slide", "slide_name", "image_id", "image", "filename", "file", "wsi", "id", "", "unnamed: 0"}
	patientNames = []string{"patient", "patient_id", "case_id", "case", "submitter_id", "case_submitter_id", "participant"}
	siteNames    = []string{"site", "site_id", "tissue_source_site", "tss", "center", "centre", "center_id", "institution", "hospital"}
)

// ReadRows reads slides from a CSV or TSV file with a heading: a column for the slide (slide_id, slide,
// image_id, ID …), for the patient (patient, case_id …), for the site (site, center …), and the named one
// for the label. Without a slide column a patient stands for a slide; patients and sites that are missing
// are taken from TCGA names.
func ReadRows(path, label string) ([]Row, error) {
	t, err := readTable(path)
	if err != nil {
		return nil, err
	}
	if t.column(label) < 0 {
		return nil, t.invalid(fmt.Errorf("there is no column %q", label), "its columns are "+t.names())
	}
	return t.rows(label)
}

// rows are those of the table; label may be empty.
func (t *table) rows(label string) ([]Row, error) {
	slide, patient, site, class := t.first(slideNames), t.first(patientNames), t.first(siteNames), -1
	if label != "" {
		class = t.column(label)
	}
	if slide < 0 {
		slide = patient
	}
	if slide < 0 {
		return nil, t.invalid(errors.New("no column names slides or patients"), "call one slide_id; its columns are "+t.names())
	}
	cell := func(line []string, column int) string {
		if column < 0 {
			return ""
		}
		return line[column]
	}
	rows := make([]Row, len(t.lines))
	for i, line := range t.lines {
		rows[i] = Row{Slide: line[slide], Patient: cell(line, patient), Site: cell(line, site), Label: cell(line, class)}
		if rows[i].Slide == "" {
			return nil, t.invalid(fmt.Errorf("row %d names no slide", i+1), "fill in column "+t.columns[slide])
		}
	}
	FromNames(rows)
	return rows, nil
}

// readTable reads a table and trims its cells; what pandas writes for a missing value is empty.
func readTable(path string) (*table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, openError(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, openError(path, err)
	}
	if info.Size() > maxTable {
		return nil, &coverslip.Error{Kind: coverslip.TooLarge, Op: "read the table", Path: path, Err: fmt.Errorf("%d bytes", info.Size()), Hint: "is it a table of slides?"}
	}
	t := &table{path: path}
	in := bufio.NewReader(f)
	if mark, err := in.Peek(3); err == nil && string(mark) == "\ufeff" {
		_, _ = in.Discard(3)
	}
	head, err := in.Peek(4096)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, openError(path, err)
	}
	if slices.Contains(head, 0) {
		return nil, t.invalid(errors.New("this is no text"), "give a CSV or TSV file")
	}
	r := csv.NewReader(in)
	r.Comma = comma(string(head))
	for n := 0; ; n++ {
		line, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, t.invalid(err, "each line needs as many cells as the heading")
		}
		for i, cell := range line {
			line[i] = strings.TrimSpace(cell)
			if low := strings.ToLower(line[i]); n > 0 && (low == "nan" || low == "<na>") {
				line[i] = ""
			}
		}
		if n == 0 {
			t.columns = line
			continue
		}
		t.lines = append(t.lines, line)
	}
	if len(t.lines) == 0 {
		return nil, t.invalid(errors.New("there are no rows"), "give a table with a heading")
	}
	for i, c := range t.columns {
		if c != "" && t.column(c) != i {
			return nil, t.invalid(fmt.Errorf("two columns are called %q", c), "rename one")
		}
	}
	return t, nil
}

// comma is what parts the cells of the heading: the commonest of tab, comma and semicolon.
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

func (t *table) column(name string) int {
	exact := slices.Index(t.columns, name)
	if exact >= 0 {
		return exact
	}
	return slices.IndexFunc(t.columns, func(c string) bool { return strings.EqualFold(c, name) })
}

func (t *table) first(names []string) int {
	for _, name := range names {
		if c := t.column(name); c >= 0 {
			return c
		}
	}
	return -1
}

// values are the different cells of a column, sorted, without the empty one.
func (t *table) values(column int) []string {
	seen := map[string]bool{}
	for _, line := range t.lines {
		seen[line[column]] = true
	}
	delete(seen, "")
	return sortedKeys(seen)
}

func (t *table) names() string { return some(t.columns) }

func (t *table) invalid(err error, hint string) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "read the table", Path: t.path, Err: err, Hint: hint}
}

func openError(path string, err error) error {
	kind := coverslip.Environment
	if errors.Is(err, fs.ErrNotExist) {
		kind, err = coverslip.NotFound, fs.ErrNotExist
	}
	return &coverslip.Error{Kind: kind, Op: "read the table", Path: path, Err: err}
}
