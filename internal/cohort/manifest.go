package cohort

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"coverslip"
	"coverslip/internal/table"
)

// File is a slide that a manifest lists.
type File struct {
	Line  int
	ID    string // of the file at the GDC, a UUID
	Name  string
	MD5   string // lower case; "" where the manifest does not say it
	Bytes int64
	Code  coverslip.Barcode // of a TCGA name; else empty
}

// Manifest is what a GDC manifest lists.
type Manifest struct {
	Slides  []File
	Others  int // files that are no slides: their names end otherwise
	Repeats int // lines that say again what an earlier one says
}

// SlideSuffixes are the endings of slides that are one file. Nobody reads their bytes to judge them when
// a list of them is imported.
var SlideSuffixes = []string{".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".vms"}

// IsSlide reports whether a file's name ends as those of slides do.
func IsSlide(name string) bool {
	return slices.Contains(SlideSuffixes, strings.ToLower(path.Ext(name)))
}

// The states of the GDC in which a file can be had.
var states = []string{"released", "live", "submitted", "validated", ""}

var (
	uuid   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	md5Sum = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

// ReadManifest reads a manifest of the GDC: tab-separated columns id, filename, md5, size and state under
// their names, in any order. The line ends of Windows, and a line that is there twice, are fine; md5 and
// state may be empty. All of it is read before anything is done with it, and what is wrong is Invalid, with
// the number of its line: an id twice with different files, a state in which a file cannot be had, a size or
// an md5 that is none, a name with a folder in it.
func ReadManifest(file string) (Manifest, error) {
	f, err := table.Open(file)
	if err != nil {
		return Manifest{}, err
	}
	defer f.Close()
	return ParseManifest(f, file)
}

// ParseManifest is ReadManifest of what r holds, which people know as file.
func ParseManifest(r io.Reader, file string) (Manifest, error) {
	var m Manifest
	text, err := table.Text(r, file)
	if err != nil {
		return m, err
	}
	invalid := func(line int, err error, hint string) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: fmt.Sprintf("read line %d of the manifest", line), Path: file, Err: err, Hint: hint}
	}
	const again = "get the manifest again from the GDC portal"
	column := map[string]int{}
	first := map[string]File{}
	lines := bufio.NewScanner(text)
	number := 0
	for lines.Scan() {
		number++
		cells := strings.Split(strings.TrimRight(lines.Text(), "\r"), "\t")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(cells) == 1 && cells[0] == "" {
			continue
		}
		if len(column) == 0 {
			for i, name := range cells {
				column[strings.ToLower(name)] = i
			}
			for _, need := range []string{"id", "filename", "size"} {
				if _, there := column[need]; !there {
					return m, invalid(number, fmt.Errorf("there is no column %s", need), "the first line of a manifest reads id, filename, md5, size, state, parted by tabs")
				}
			}
			continue
		}
		cell := func(name string) string {
			if i, there := column[name]; there && i < len(cells) {
				return cells[i]
			}
			return ""
		}
		one := File{Line: number, ID: strings.ToLower(cell("id")), Name: cell("filename"), MD5: strings.ToLower(cell("md5"))}
		if one.Bytes, err = strconv.ParseInt(cell("size"), 10, 64); err != nil || one.Bytes <= 0 {
			return m, invalid(number, fmt.Errorf("%.40q is no size in bytes", cell("size")), again)
		}
		switch state := strings.ToLower(cell("state")); {
		case !uuid.MatchString(one.ID):
			return m, invalid(number, fmt.Errorf("%.60q is no id", one.ID), again)
		case one.Name == "" || path.Base(one.Name) != one.Name || one.Name == "." || one.Name == ".." || strings.Contains(one.Name, `\`):
			return m, invalid(number, fmt.Errorf("%.60q is no file name", one.Name), again)
		case one.MD5 != "" && !md5Sum.MatchString(one.MD5):
			return m, invalid(number, fmt.Errorf("%.40q is no MD5", one.MD5), again+", or leave the cell empty")
		case !slices.Contains(states, state):
			return m, invalid(number, fmt.Errorf("file %s is in state %.40q, in which it cannot be had", one.Name, state), "take the line out, or get the manifest again; files are had when they are "+strings.Join(states[:3], ", "))
		}
		if before, there := first[one.ID]; there {
			if before.Name != one.Name || before.MD5 != one.MD5 || before.Bytes != one.Bytes {
				return m, invalid(number, fmt.Errorf("id %s stands in line %d with another file", one.ID, before.Line), "take one of the two lines out")
			}
			m.Repeats++
			continue
		}
		first[one.ID] = one
		if !IsSlide(one.Name) {
			m.Others++
			continue
		}
		one.Code, _ = coverslip.ParseTCGA(one.Name)
		m.Slides = append(m.Slides, one)
	}
	if err := lines.Err(); err != nil {
		return m, invalid(number+1, err, again)
	}
	if len(m.Slides) == 0 {
		return m, invalid(max(number, 1), errors.New("it lists no slides"), "choose Slide Image among the data types in the GDC portal")
	}
	return m, nil
}
