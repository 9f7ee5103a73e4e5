package tiler

import (
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"coverslip"
	"coverslip/internal/table"
	"coverslip/tiler/remote"
)

// MPPs are resolutions of slides that a person wrote down.
type MPPs struct {
	lines map[string]*mppLine // by what the slide is called in the table
}

type mppLine struct {
	line int
	mpp  float64
	used bool
}

// ReadMPPs reads a table with the columns slide and mpp, and any others, under a line of headings,
// separated by comma, semicolon or tab. A slide is called by its path, its file name with or without
// the ending, or its SHA-256. A decimal comma is fine where it is no separator. What is wrong is
// Invalid, with the number of the line.
func ReadMPPs(r io.Reader) (*MPPs, error) {
	t, err := table.Read(r, "")
	if err != nil {
		return nil, err
	}
	slide, mpp := t.Column("slide"), t.Column("mpp")
	if slide < 0 || mpp < 0 {
		return nil, wrongTable(1, fmt.Errorf("the headings are %q, without slide and mpp", t.Columns))
	}
	m := &MPPs{map[string]*mppLine{}}
	for _, row := range t.Lines {
		name, line := row.Cells[slide], row.Number
		if name == "" {
			return nil, wrongTable(line, errors.New("it names no slide"))
		}
		if before := m.lines[name]; before != nil {
			return nil, wrongTable(line, fmt.Errorf("%s stands in line %d already", name, before.line))
		}
		v, err := ParseMPP(row.Cells[mpp])
		if err != nil {
			return nil, wrongTable(line, fmt.Errorf("%s: %w", name, reason(err)))
		}
		m.lines[name] = &mppLine{line: line, mpp: v}
	}
	return m, nil
}

// Of returns what the table says of a slide, 0 if nothing. It is looked for by its path as it was
// given, then its SHA-256, where that is known, its file name, and that without the ending.
func (m *MPPs) Of(place string, id coverslip.SlideID) float64 {
	shown := remote.Shown(place)
	name := path.Base(filepath.ToSlash(shown))
	for _, called := range []string{place, shown, string(id), name, strings.TrimSuffix(name, path.Ext(name))} {
		if l := m.lines[called]; l != nil && called != "" {
			l.used = true
			return l.mpp
		}
	}
	return 0
}

// Unused lists what no slide that was asked for is called, in the order of the table: names that are
// mistyped, most often.
func (m *MPPs) Unused() (names []string) {
	for name, l := range m.lines {
		if !l.used {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return m.lines[a].line - m.lines[b].line })
	return names
}

func wrongTable(line int, err error) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "read mpp table", Err: fmt.Errorf("line %d: %w", line, err),
		Hint: `write slide,mpp in the first line, then lines such as section.svs,0.25; with a decimal comma "0,25" in quotes`}
}

// reason is what an error of ParseMPP says without what was done.
func reason(err error) error {
	var e *coverslip.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
