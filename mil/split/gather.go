package split

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"coverslip"
)

// gathered is what can be put on sides.
type gathered struct {
	rows    []Row
	classes []string // sorted
	units   []unit
	report  Report
}

// unit is rows that must stay together: a patient's, or those of sites that share patients.
type unit struct {
	rows  []int
	count []int // patients of each class; one with slides of two classes counts for both
}

func (u unit) put(s Split, side Side) {
	for _, i := range u.rows {
		s.Side[i] = side
	}
}

func (u unit) patients() (n int) {
	for _, c := range u.count {
		n += c
	}
	return n
}

// FromNames fills in the patient and the site of rows that lack them, where the slide or the patient has
// a TCGA name.
func FromNames(rows []Row) {
	for i := range rows {
		r := &rows[i]
		b, ok := coverslip.ParseTCGA(r.Slide)
		if !ok {
			b, ok = coverslip.ParseTCGA(r.Patient)
		}
		if ok && r.Patient == "" {
			r.Patient = b.Patient
		}
		if ok && r.Site == "" {
			r.Site = b.Site
		}
	}
}

// gather checks rows and joins those that stay together; with within, only those on its training side.
// Each class must have as many units as there will be parts.
func gather(rows []Row, within []Side, o Options, parts int) (gathered, error) {
	c := gathered{rows: rows}
	if !(o.Val >= 0 && o.Val < 1) {
		return c, invalid(fmt.Errorf("a validation side of %g", o.Val), "a share from 0 to below 1")
	}
	var use []int
	first := map[string]int{}
	for i, r := range rows {
		if within != nil && within[i] != Train {
			continue
		}
		if r.Label == "" {
			c.report.Left = append(c.report.Left, Left{r.Slide, "no label"})
			continue
		}
		if j, ok := first[Key(r.Slide)]; ok {
			if a := rows[j]; a.Patient != r.Patient || a.Site != r.Site || a.Label != r.Label {
				return c, invalid(fmt.Errorf("slide %s is listed twice, as %s and as %s", r.Slide, describe(a), describe(r)), "one of the two is wrong: remove it")
			}
			c.report.Left = append(c.report.Left, Left{r.Slide, "listed twice"})
			continue
		}
		first[Key(r.Slide)] = i
		use = append(use, i)
	}
	if err := known(rows, use, o.By); err != nil {
		return c, err
	}
	labels := map[string]bool{}
	for _, i := range use {
		labels[rows[i].Label] = true
	}
	c.classes = slices.Sorted(maps.Keys(labels))
	switch len(c.classes) {
	case 0:
		return c, invalid(errors.New("no slide has a label"), "is it the right column?")
	case 1:
		return c, invalid(fmt.Errorf("all %d slides are of one class, %q", len(use), c.classes[0]), "there is nothing to tell apart")
	}
	c.join(use, o.By)
	return c, c.enough(parts, o.By)
}

func describe(r Row) string {
	return fmt.Sprintf("patient %q, site %q, label %q", r.Patient, r.Site, r.Label)
}

// known says which rows lack what they must be kept together by.
func known(rows []Row, use []int, by By) error {
	lack := func(what string, is func(Row) string, hint string) error {
		var without []string
		for _, i := range use {
			if is(rows[i]) == "" {
				without = append(without, rows[i].Slide)
			}
		}
		if without == nil {
			return nil
		}
		return invalid(fmt.Errorf("%d of %d slides have no %s: %s", len(without), len(use), what, some(without)), hint)
	}
	switch by {
	case BySlide:
		return nil
	case ByPatient:
		return lack("patient", func(r Row) string { return r.Patient }, "fill in a patient column; --by none treats every slide as a patient of its own")
	}
	// A slide without a patient is kept with its site.
	return lack("site", func(r Row) string { return r.Site }, "fill in a site column, or split by patient")
}

// some names the first few of many.
func some(names []string) string {
	const few = 5
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}

// join makes the units.
func (c *gathered) join(use []int, by By) {
	whole := func(i int) string { return person(c.rows[i]) }
	switch by {
	case BySlide:
		whole = func(i int) string { return "\x00" + c.rows[i].Slide }
	case BySite, BySitePreserved:
		whole = c.siteGroups(use)
	}
	at, place := map[string]int{}, map[string]int{}
	for n, l := range c.classes {
		place[l] = n
	}
	type counted struct {
		unit   int
		person string
		class  int
	}
	seen := map[counted]bool{}
	labels := map[string]string{}
	var two []string
	for _, i := range use {
		key := whole(i)
		u, ok := at[key]
		if !ok {
			u = len(c.units)
			at[key] = u
			c.units = append(c.units, unit{count: make([]int, len(c.classes))})
		}
		c.units[u].rows = append(c.units[u].rows, i)
		p, l := person(c.rows[i]), c.rows[i].Label
		if by == BySlide {
			p = "\x00" + c.rows[i].Slide
		}
		n := counted{u, p, place[l]}
		if !seen[n] {
			seen[n] = true
			c.units[u].count[n.class]++
		}
		if before, ok := labels[p]; ok && before != l && !slices.Contains(two, p) {
			two = append(two, p)
		}
		labels[p] = l
	}
	if two != nil {
		c.note("%d patients have slides of more than one class, which stay on one side together and count for each class: %s", len(two), some(two))
	}
}

// siteGroups joins sites that share a patient: apart, they would tear the patient apart.
func (c *gathered) siteGroups(use []int) func(int) string {
	parent := map[string]string{}
	var root func(string) string
	root = func(s string) string {
		if parent[s] == s || parent[s] == "" {
			return s
		}
		parent[s] = root(parent[s])
		return parent[s]
	}
	siteOf := map[string]string{}
	var joined []string
	for _, i := range use {
		p, s := person(c.rows[i]), c.rows[i].Site
		if before, ok := siteOf[p]; ok && root(before) != root(s) {
			parent[root(s)] = root(before)
			joined = append(joined, before+" and "+s+" by "+p)
		}
		siteOf[p] = s
	}
	if joined != nil {
		c.note("sites that share a patient count as one: %s", some(joined))
	}
	return func(i int) string { return root(c.rows[i].Site) }
}

// enough checks that every part can have every class.
func (c *gathered) enough(parts int, by By) error {
	what := map[By]string{ByPatient: "patients", BySite: "sites", BySitePreserved: "sites", BySlide: "slides"}[by]
	if len(c.units) < parts {
		return invalid(fmt.Errorf("%d %s for %d parts", len(c.units), what, parts), "ask for fewer folds")
	}
	for n, l := range c.classes {
		have := 0
		for _, u := range c.units {
			if u.count[n] > 0 {
				have++
			}
		}
		switch {
		case have >= parts:
		case by == BySite || by == BySitePreserved:
			c.note("class %q occurs at %d sites only, so not on every side of every split", l, have)
		default:
			return invalid(fmt.Errorf("class %q has %d %s, fewer than %d parts", l, have, what, parts), "ask for fewer folds, join classes, or leave these slides out")
		}
	}
	return nil
}

// missing notes the sides that came out without some class.
func (c *gathered) missing(splits []Split) {
	for _, side := range []Side{Train, Val, Test} {
		for _, l := range c.classes {
			var without []string
			for _, s := range splits {
				rows := s.Rows(side)
				if len(rows) > 0 && !slices.ContainsFunc(rows, func(i int) bool { return c.rows[i].Label == l }) {
					without = append(without, s.Name)
				}
			}
			if without != nil {
				c.note("no %q on the %s side of split %s", l, side, some(without))
			}
		}
	}
}

func (c *gathered) note(format string, args ...any) {
	c.report.Notes = append(c.report.Notes, fmt.Sprintf(format, args...))
}

// Key is a slide's name without the suffix that formats add to it, to match names of different files;
// TCGA writes its UUIDs in either case.
func Key(name string) string {
	name = strings.TrimSpace(name)
	for {
		suffix := path.Ext(name)
		if !slices.Contains(suffixes, strings.ToLower(suffix)) {
			break
		}
		name = strings.TrimSuffix(name, suffix)
	}
	if _, ok := coverslip.ParseTCGA(name); ok {
		return strings.ToLower(name)
	}
	return name
}

var suffixes = []string{".svs", ".tif", ".tiff", ".ome", ".ndpi", ".mrxs", ".scn", ".bif", ".dcm", ".vms", ".vmu", ".svslide", ".czi", ".zip", ".h5", ".pt", ".npy", ".safetensors"}
