package split

import (
	"errors"
	"fmt"
	"strings"

	"coverslip/internal/table"
)

// slideTable is a table in which slides stand line by line.
type slideTable struct{ *table.Table }

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
	if t.Column(label) < 0 {
		return nil, t.Invalid(0, fmt.Errorf("there is no column %q", label), "its columns are "+t.names())
	}
	return t.rows(label)
}

// rows are those of the table; label may be empty.
func (t *slideTable) rows(label string) ([]Row, error) {
	slide, patient, site, class := t.Column(slideNames...), t.Column(patientNames...), t.Column(siteNames...), -1
	if label != "" {
		class = t.Column(label)
	}
	if slide < 0 {
		slide = patient
	}
	if slide < 0 {
		return nil, t.Invalid(0, errors.New("no column names slides or patients"), "call one slide_id; its columns are "+t.names())
	}
	cell := func(line table.Line, column int) string {
		if column < 0 {
			return ""
		}
		return line.Cells[column]
	}
	rows := make([]Row, len(t.Lines))
	for i, line := range t.Lines {
		rows[i] = Row{Slide: line.Cells[slide], Patient: cell(line, patient), Site: cell(line, site), Label: cell(line, class)}
		if rows[i].Slide == "" {
			return nil, t.Invalid(line.Number, errors.New("it names no slide"), "fill in column "+t.Columns[slide])
		}
	}
	FromNames(rows)
	return rows, nil
}

// readTable reads a table; what pandas writes for a missing value is empty.
func readTable(path string) (*slideTable, error) {
	t, err := table.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for i, c := range t.Columns {
		if c != "" && t.Column(c) != i {
			return nil, t.Invalid(0, fmt.Errorf("two columns are called %q", c), "rename one")
		}
	}
	for _, line := range t.Lines {
		for i, cell := range line.Cells {
			if low := strings.ToLower(cell); low == "nan" || low == "<na>" {
				line.Cells[i] = ""
			}
		}
	}
	return &slideTable{t}, nil
}

// values are the different cells of a column, sorted, without the empty one.
func (t *slideTable) values(column int) []string {
	seen := map[string]bool{}
	for _, line := range t.Lines {
		seen[line.Cells[column]] = true
	}
	delete(seen, "")
	return sortedKeys(seen)
}

func (t *slideTable) names() string { return some(t.Columns) }
