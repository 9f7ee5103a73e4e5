// Package table reads tables that people keep: a heading and lines of cells, parted by commas, tabs or
// semicolons, as spreadsheets, pandas and R write them. What the columns mean is known elsewhere.
package table

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

// maxBytes bounds a file; a table of a million slides is smaller.
const maxBytes = 512 << 20

// Table is a file of columns, as text.
type Table struct {
	Path    string // as people know it; may be empty
	Columns []string
	Lines   []Line // one or more
	Decimal string // the sign beside the point that may part a number, where cells are parted by semicolons
}

// Line holds as many cells as there are columns, without the space around them.
type Line struct {
	Number int // in the file, from 1
	Cells  []string
}

// ReadFile reads the table in a file. Its errors are NotFound, TooLarge, Environment, and those of Read.
func ReadFile(path string) (*Table, error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Read(f, path)
}

// Read reads the table that r holds, which people know as path. What is no table is Invalid, with the
// number of the line.
func Read(r io.Reader, path string) (*Table, error) {
	text, err := Text(r, path)
	if err != nil {
		return nil, err
	}
	t := &Table{Path: path}
	head, _ := text.Peek(text.Size()) // less if there is less
	in := csv.NewReader(text)
	in.Comma = separator(string(head))
	in.TrimLeadingSpace = in.Comma != '\t' // tabs are space to it, too: an empty cell would be none
	if in.Comma == ';' {
		t.Decimal = ","
	}
	for {
		cells, err := in.Read()
		var syntax *csv.ParseError
		switch {
		case errors.Is(err, io.EOF):
			if len(t.Lines) == 0 {
				return nil, t.Invalid(0, errors.New("it has no lines under a heading"), "name the columns in the first line")
			}
			return t, nil
		case errors.As(err, &syntax):
			return nil, t.Invalid(syntax.Line, syntax.Err, "each line needs as many cells as the heading; quote cells that hold the separator")
		case err != nil:
			return nil, Unreadable(path, err)
		}
		number, _ := in.FieldPos(0)
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if t.Columns == nil {
			t.Columns = cells
			continue
		}
		t.Lines = append(t.Lines, Line{number, cells})
	}
}

// separator is what parts the cells of the heading: the commonest of comma, tab and semicolon.
func separator(head string) rune {
	head, _, _ = strings.Cut(head, "\n")
	best := ','
	for _, c := range "\t;" {
		if strings.Count(head, string(c)) > strings.Count(head, string(best)) {
			best = c
		}
	}
	return best
}

// Column finds the first of some names that a column has, upper and lower case alike where no column is
// written just so; -1 if none.
func (t *Table) Column(names ...string) int {
	for _, name := range names {
		i := slices.Index(t.Columns, name)
		if i < 0 {
			i = slices.IndexFunc(t.Columns, func(c string) bool { return strings.EqualFold(c, name) })
		}
		if i >= 0 {
			return i
		}
	}
	return -1
}

// Invalid is what is wrong in a line of the table, or in all of it if line is 0.
func (t *Table) Invalid(line int, err error, hint string) error {
	op := "read the table"
	if line > 0 {
		op = fmt.Sprintf("read line %d", line)
	}
	return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: t.Path, Err: err, Hint: hint}
}

// Open opens a file of text that is not larger than a table can be.
func Open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, Unreadable(path, err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() > maxBytes {
		err = &coverslip.Error{Kind: coverslip.TooLarge, Op: "read", Path: path, Err: fmt.Errorf("%d bytes", info.Size()), Hint: "is it a list of slides?"}
	}
	if err != nil {
		_ = f.Close() // only read
		return nil, err
	}
	return f, nil
}

// Text passes over a byte order mark, and what is no text is Invalid.
func Text(r io.Reader, path string) (*bufio.Reader, error) {
	text := bufio.NewReaderSize(r, 64<<10)
	if mark, err := text.Peek(3); err == nil && string(mark) == "\xef\xbb\xbf" {
		_, _ = text.Discard(3)
	}
	head, err := text.Peek(4096)
	switch {
	case slices.Contains(head, 0):
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read", Path: path, Err: errors.New("this is no text"), Hint: "save it as a CSV or TSV file in UTF-8"}
	case err != nil && !errors.Is(err, io.EOF):
		return nil, Unreadable(path, err)
	}
	return text, nil
}

// Unreadable says of a file that it cannot be opened or read: NotFound or Environment.
func Unreadable(path string, err error) error {
	kind, cause := coverslip.Environment, err
	var known *coverslip.Error
	switch {
	case errors.As(err, &known): // of who sends it
		return err
	case errors.Is(err, fs.ErrNotExist):
		kind, cause = coverslip.NotFound, fs.ErrNotExist
	}
	return &coverslip.Error{Kind: kind, Op: "read", Path: path, Err: cause, Hint: "check the path, and that it can be read"}
}
