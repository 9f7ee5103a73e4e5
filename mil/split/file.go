package split

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"coverslip"
	"coverslip/internal/table"
)

// Form is how a file writes splits down.
type Form string

// The forms that are read and written.
const (
	// FoldColumn is one row a slide and a column with the fold that tests it, as Giga-SSL publishes
	// (ID,label,case_id,test) and Howard et al. do (CV3_…).
	FoldColumn Form = "fold-column"
	// SideColumns is one row a slide and a column a split, with train, val or test in it (Patho-Bench:
	// case_id, slide_id, task, fold_0 …).
	SideColumns Form = "side-columns"
	// CLAM is a file a split with the columns train, val and test, which list slides or, in the _bool files,
	// say True for one; a folder of them is read as a whole.
	CLAM Form = "clam"
)

// File is a split file. A slide that it lists twice has two rows.
type File struct {
	Form   Form
	Rows   []Row
	Splits []Split
	Notes  []string
}

// ReadOptions say what a file does not.
type ReadOptions struct {
	Column string // the column with the folds or sides, where there are several or it has a name of its own
	Slides string // a table with the patients and sites of the slides (CLAM's labels file), if another
}

// Read reads a split file of any form, or a folder of CLAM's.
func Read(path string, o ReadOptions) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, table.Unreadable(path, err)
	}
	var f *File
	if info.IsDir() {
		f, err = readFolder(path)
	} else {
		f, err = readFile(path, o.Column)
	}
	if err != nil {
		return nil, err
	}
	if o.Slides != "" {
		if err := f.describe(o.Slides); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func readFile(path, column string) (*File, error) {
	t, err := readTable(path)
	if err != nil {
		return nil, err
	}
	if column == "" && t.Column("train") >= 0 && t.Column("test") >= 0 {
		f := &File{Form: CLAM}
		return f, f.addCLAM(t, "0", map[string][]int{})
	}
	f := &File{Form: SideColumns}
	columns, err := t.splitColumns(column)
	if err != nil {
		return nil, err
	}
	label := ""
	if t.Column("label") >= 0 {
		label = "label"
	}
	if f.Rows, err = t.rows(label); err != nil {
		return nil, err
	}
	for _, c := range columns {
		if !t.sides(c) {
			f.Form = FoldColumn
			if err := f.addFolds(t, c); err != nil {
				return nil, err
			}
			continue
		}
		s := Split{Name: foldName.ReplaceAllString(strings.ToLower(t.Columns[c]), ""), Side: make([]Side, len(t.Lines))}
		for i, line := range t.Lines {
			s.Side[i] = sideOf[strings.ToLower(line.Cells[c])]
		}
		f.Splits = append(f.Splits, s)
	}
	return f, nil
}

var (
	foldName = regexp.MustCompile(`^fold_`)
	// Columns that hold splits by their name alone.
	splitName = regexp.MustCompile(`(?i)^(fold|folds|test|test_fold|cv|cv_fold|kfold|split|set|partition|CV[0-9]+_.*)$`)
	sidesName = regexp.MustCompile(`(?i)^fold_?([0-9]+|.+/[0-9.]+)$`)
	sideOf    = map[string]Side{
		"train": Train, "training": Train, "val": Val, "valid": Val, "validation": Val, "dev": Val, "test": Test, "testing": Test,
	}
)

// splitColumns finds the columns that say where slides stand.
func (t *slideTable) splitColumns(named string) ([]int, error) {
	if named != "" {
		if c := t.Column(named); c >= 0 {
			return []int{c}, nil
		}
		return nil, t.Invalid(0, fmt.Errorf("there is no column %q", named), "its columns are "+strings.Join(t.Columns, ", "))
	}
	var many, one []int
	var names []string
	for c, name := range t.Columns {
		switch {
		case sidesName.MatchString(name) && t.sides(c):
			many = append(many, c)
		case splitName.MatchString(name):
			one, names = append(one, c), append(names, name)
		}
	}
	switch {
	case many != nil:
		return many, nil
	case len(one) == 1:
		return one, nil
	case one == nil:
		return nil, t.Invalid(0, errors.New("no column says which fold or side a slide is on"), "name it with --column; its columns are "+t.names())
	}
	return nil, t.Invalid(0, fmt.Errorf("%d columns may hold folds: %s", len(one), some(names)), "name one with --column")
}

// sides reports whether a column holds nothing but train, val and test.
func (t *slideTable) sides(column int) bool {
	values := t.values(column)
	for _, v := range values {
		if _, ok := sideOf[strings.ToLower(v)]; !ok {
			return false
		}
	}
	return len(values) > 0
}

// addFolds makes a split of each fold of a column. A slide without a fold is Out.
func (f *File) addFolds(t *slideTable, column int) error {
	// "3.0" is the 3 of a table with gaps that went through pandas.
	fold := func(cell string) string {
		if v, err := strconv.ParseFloat(cell, 64); err == nil && v == float64(int(v)) {
			return strconv.Itoa(int(v))
		}
		return cell
	}
	names := map[string]bool{}
	for _, v := range t.values(column) {
		names[fold(v)] = true
	}
	if len(names) < 2 || len(names) > maxFolds {
		return t.Invalid(0, fmt.Errorf("column %q has %d different values: these are no folds", t.Columns[column], len(names)), "name another with --column")
	}
	for _, name := range sortedKeys(names) {
		s := Split{Name: name, Side: make([]Side, len(t.Lines))}
		for i, line := range t.Lines {
			switch fold(line.Cells[column]) {
			case "":
			case name:
				s.Side[i] = Test
			default:
				s.Side[i] = Train
			}
		}
		f.Splits = append(f.Splits, s)
	}
	return nil
}

const maxFolds = 1000 // a column with more is something else

var clamFile = regexp.MustCompile(`^splits_([0-9]+)\.csv$`)

// readFolder reads CLAM's splits_0.csv, splits_1.csv and so on.
func readFolder(path string) (*File, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, table.Unreadable(path, err)
	}
	names := map[int]string{}
	for _, e := range entries {
		if m := clamFile.FindStringSubmatch(e.Name()); m != nil {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				continue
			}
			names[n] = e.Name()
		}
	}
	if len(names) == 0 {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read the splits", Path: path, Err: errors.New("there is no splits_0.csv in this folder"), Hint: "name a file"}
	}
	f, at := &File{Form: CLAM}, map[string][]int{}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		t, err := readTable(filepath.Join(path, names[n]))
		if err != nil {
			return nil, err
		}
		if t.Column("train") < 0 || t.Column("test") < 0 {
			return nil, t.Invalid(0, errors.New("there are no columns train and test"), "")
		}
		if err := f.addCLAM(t, strconv.Itoa(n), at); err != nil {
			return nil, err
		}
	}
	for i := range f.Splits { // rows that later files brought
		f.Splits[i].Side = append(f.Splits[i].Side, make([]Side, len(f.Rows)-len(f.Splits[i].Side))...)
	}
	return f, nil
}

// addCLAM adds one file. at finds the rows of a slide: as many as the most that a file lists it.
func (f *File) addCLAM(t *slideTable, name string, at map[string][]int) error {
	columns := map[Side]int{Train: t.Column("train"), Val: t.Column("val"), Test: t.Column("test")}
	bools := true
	for _, c := range columns {
		for _, v := range t.valuesOf(c) {
			bools = bools && (strings.EqualFold(v, "true") || strings.EqualFold(v, "false"))
		}
	}
	s := Split{Name: name, Side: make([]Side, len(f.Rows))}
	seen := map[string]int{}
	put := func(slide string, side Side) {
		n := seen[slide]
		seen[slide]++
		if n == len(at[slide]) {
			at[slide] = append(at[slide], len(f.Rows))
			f.Rows = append(f.Rows, Row{Slide: slide})
			FromNames(f.Rows[len(f.Rows)-1:])
			s.Side = append(s.Side, Out)
		}
		s.Side[at[slide][n]] = side
	}
	var listed []string
	if bools {
		rows, err := t.rows("")
		if err != nil {
			return err
		}
		for _, r := range rows {
			listed = append(listed, r.Slide)
		}
	}
	for _, side := range []Side{Train, Val, Test} {
		c := columns[side]
		for i, line := range t.Lines {
			switch {
			case c < 0 || line.Cells[c] == "":
			case !bools:
				put(line.Cells[c], side)
			case strings.EqualFold(line.Cells[c], "true"):
				put(listed[i], side)
			}
		}
	}
	f.Splits = append(f.Splits, s)
	return nil
}

func (t *slideTable) valuesOf(column int) []string {
	if column < 0 {
		return nil
	}
	return t.values(column)
}

// describe takes patients, sites and labels from a table of slides.
func (f *File) describe(path string) error {
	t, err := readTable(path)
	if err != nil {
		return err
	}
	label := ""
	if t.Column("label") >= 0 {
		label = "label"
	}
	rows, err := t.rows(label)
	if err != nil {
		return err
	}
	of := map[string]Row{}
	for _, r := range rows {
		of[Key(r.Slide)] = r
	}
	var unknown []string
	for i := range f.Rows {
		r, ok := of[Key(f.Rows[i].Slide)]
		if !ok {
			unknown = append(unknown, f.Rows[i].Slide)
			continue
		}
		r.Slide = f.Rows[i].Slide
		f.Rows[i] = r
	}
	if len(unknown) == len(f.Rows) {
		return t.Invalid(0, errors.New("it lists none of the slides of the splits"), "do both name slides alike?")
	}
	if unknown != nil {
		f.Notes = append(f.Notes, fmt.Sprintf("%d slides are not in %s: %s", len(unknown), filepath.Base(path), some(unknown)))
	}
	return nil
}

// For applies the splits of a file to other rows, matched by slide name (folders and suffixes aside).
// Rows that the file does not list and slides of the file that are not among rows are reported as left
// out. Invalid are a file that lists none of them, a slide on two sides, and a split that ends up without
// training or test slides.
func (f *File) For(rows []Row) ([]Split, Report, error) {
	at, base := map[string]int{}, map[string][]int{}
	for i, r := range rows {
		at[Key(r.Slide)] = i
		short := filepath.Base(Key(r.Slide))
		base[short] = append(base[short], i)
	}
	var report Report
	to := make([]int, len(f.Rows))
	matched, unknown, twice := map[int]bool{}, 0, 0
	for i, r := range f.Rows {
		n, ok := at[Key(r.Slide)]
		if short := base[filepath.Base(Key(r.Slide))]; !ok && len(short) == 1 {
			n, ok = short[0], true
		}
		to[i] = n
		if !ok {
			to[i] = -1
			unknown++
			report.Left = append(report.Left, Left{r.Slide, "in the split file, but not among the slides"})
			continue
		}
		if matched[n] {
			twice++
		}
		matched[n] = true
	}
	if twice > 0 {
		report.Notes = append(report.Notes, fmt.Sprintf("%d rows of the split file name a slide that another row names, too; each slide counts once", twice))
	}
	if len(matched) == 0 {
		return nil, report, invalid(fmt.Errorf("the split file lists none of the %d slides; it begins with %s", len(rows), f.Rows[0].Slide), "do both name slides alike?")
	}
	for i, r := range rows {
		if !matched[i] {
			report.Left = append(report.Left, Left{r.Slide, "not in the split file"})
		}
	}
	if unknown > 0 {
		report.Notes = append(report.Notes, fmt.Sprintf("%d of %d slides of the split file are not here: figures are not those of the whole file", unknown, len(f.Rows)))
	}
	var splits []Split
	for _, s := range f.Splits {
		mine := Split{Name: s.Name, Side: make([]Side, len(rows))}
		for i, side := range s.Side {
			n := to[i]
			if n < 0 || side == Out {
				continue
			}
			if mine.Side[n] != Out && mine.Side[n] != side {
				return nil, report, invalid(fmt.Errorf("split %s has slide %s on its %s and its %s side", s.Name, rows[n].Slide, mine.Side[n], side), "coverslip splits audit shows all such slides")
			}
			mine.Side[n] = side
		}
		for _, side := range []Side{Train, Test} {
			if !slices.Contains(mine.Side, side) {
				return nil, report, invalid(fmt.Errorf("split %s has none of these slides on its %s side", s.Name, side), "are these the slides it was made for?")
			}
		}
		splits = append(splits, mine)
	}
	return splits, report, nil
}

// WriteFolds writes the form FoldColumn: slide_id, case_id, site, label, fold. Each row must be tested at most
// once, and there must be no validation side.
func WriteFolds(w io.Writer, rows []Row, splits []Split, label string) error {
	fold := make([]string, len(rows))
	for _, s := range splits {
		for i, side := range s.Side {
			switch {
			case side == Val:
				return invalid(errors.New("a column of folds has no place for a validation side"), "write side-columns")
			case side == Test && fold[i] != "":
				return invalid(fmt.Errorf("slide %s is tested twice, which a column of folds cannot say", rows[i].Slide), "write side-columns")
			case side == Test:
				fold[i] = s.Name
			}
		}
	}
	out := csv.NewWriter(w)
	_ = out.Write([]string{"slide_id", "case_id", "site", label, "fold"}) // Error, below, says what went wrong
	for i, r := range rows {
		_ = out.Write([]string{r.Slide, r.Patient, r.Site, r.Label, fold[i]})
	}
	out.Flush()
	return out.Error()
}

// WriteSides writes the form SideColumns, tab-separated as Patho-Bench does: case_id, slide_id, site, label,
// fold_0 and so on, one for each split in order; splits of a group, as k=4/17, keep their names.
func WriteSides(w io.Writer, rows []Row, splits []Split, label string) error {
	out := csv.NewWriter(w)
	out.Comma = '\t'
	line := []string{"case_id", "slide_id", "site", label}
	for n, s := range splits {
		name := strconv.Itoa(n)
		if strings.Contains(s.Name, "/") {
			name = s.Name
		}
		line = append(line, "fold_"+name)
	}
	_ = out.Write(line) // Error, below, says what went wrong
	for i, r := range rows {
		line = append(line[:0], r.Patient, r.Slide, r.Site, r.Label)
		for _, s := range splits {
			line = append(line, s.Side[i].String())
		}
		_ = out.Write(line)
	}
	out.Flush()
	return out.Error()
}

// WriteCLAM writes one split in the form CLAM: the slides of each side in a column of their own.
func WriteCLAM(w io.Writer, rows []Row, s Split) error {
	sides := []Side{Train, Val, Test}
	var listed [3][]string
	longest := 0
	for c, side := range sides {
		for _, i := range s.Rows(side) {
			listed[c] = append(listed[c], rows[i].Slide)
		}
		longest = max(longest, len(listed[c]))
	}
	out := csv.NewWriter(w)
	_ = out.Write([]string{"", "train", "val", "test"}) // Error, below, says what went wrong
	for n := range longest {
		line := []string{strconv.Itoa(n), "", "", ""}
		for c := range sides {
			if n < len(listed[c]) {
				line[c+1] = listed[c][n]
			}
		}
		_ = out.Write(line)
	}
	out.Flush()
	return out.Error()
}

func sortedKeys(m map[string]bool) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		x, errX := strconv.ParseFloat(a, 64)
		y, errY := strconv.ParseFloat(b, 64)
		if errX == nil && errY == nil && x != y {
			if x < y {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
}
