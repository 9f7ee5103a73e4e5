package tiler

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"coverslip"
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
	text := bufio.NewReader(r)
	if mark, err := text.Peek(3); err == nil && string(mark) == "\xef\xbb\xbf" { // of spreadsheets
		_, _ = text.Discard(3)
	}
	table := csv.NewReader(text)
	table.Comma = separator(text)
	table.TrimLeadingSpace = true
	head, err := table.Read()
	if errors.Is(err, io.EOF) {
		return nil, wrongTable(1, errors.New("the table is empty"))
	} else if err != nil {
		return nil, wrongTable(1, err)
	}
	column := map[string]int{}
	for i, name := range head {
		column[strings.ToLower(strings.TrimSpace(name))] = i
	}
	slide, named := column["slide"]
	mpp, valued := column["mpp"]
	if !named || !valued {
		return nil, wrongTable(1, fmt.Errorf("the headings are %q, without slide and mpp", head))
	}
	m := &MPPs{map[string]*mppLine{}}
	for {
		row, err := table.Read()
		if errors.Is(err, io.EOF) {
			return m, nil
		}
		var syntax *csv.ParseError
		if errors.As(err, &syntax) {
			return nil, wrongTable(syntax.Line, syntax.Err)
		} else if err != nil {
			return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read mpp table", Err: err, Hint: "check that it can be read"}
		}
		line, _ := table.FieldPos(slide)
		name := strings.TrimSpace(row[slide])
		if name == "" {
			return nil, wrongTable(line, errors.New("it names no slide"))
		}
		if before := m.lines[name]; before != nil {
			return nil, wrongTable(line, fmt.Errorf("%s stands in line %d already", name, before.line))
		}
		v, err := ParseMPP(row[mpp])
		if err != nil {
			return nil, wrongTable(line, fmt.Errorf("%s: %w", name, reason(err)))
		}
		m.lines[name] = &mppLine{line: line, mpp: v}
	}
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

// separator is what the first line is cut by.
func separator(r *bufio.Reader) rune {
	line, _ := r.Peek(min(r.Size(), 4096)) // less if there is less
	head, _, _ := strings.Cut(string(line), "\n")
	switch {
	case strings.Contains(head, ";"):
		return ';'
	case strings.Contains(head, "\t"):
		return '\t'
	}
	return ','
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
