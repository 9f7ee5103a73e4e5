package split

import (
	"errors"
	"fmt"
	"slices"

	"coverslip"
)

// Audit is what a split file does with patients and sites. In JSON these names are a contract.
type Audit struct {
	Form     Form `json:"form"`
	Rows     int  `json:"rows"`
	Slides   int  `json:"slides"`
	Patients int  `json:"patients"`
	Sites    int  `json:"sites"` // 0 where nothing says them
	Splits   int  `json:"splits"`

	// PatientsOnBothSides is how many patients have rows on more than one of train, val and test in some
	// split; in a file with a fold column, on more than one fold. Sites and slides likewise.
	PatientsOnBothSides int `json:"patients_on_both_sides"`
	SitesOnBothSides    int `json:"sites_on_both_sides"`
	SlidesOnBothSides   int `json:"slides_on_both_sides"`

	Folds           []FoldAudit `json:"folds"`
	LeakingPatients []Straddler `json:"leaking_patients"`
	SharedSites     []Straddler `json:"shared_sites"`
	LeakingSlides   []string    `json:"leaking_slides,omitempty"`

	WithoutPatient int      `json:"rows_without_patient"` // of these nobody can tell
	Notes          []string `json:"notes,omitempty"`
}

// FoldAudit is one split. Train, Val and Test count rows.
type FoldAudit struct {
	Split               string `json:"split"`
	Train               int    `json:"train"`
	Val                 int    `json:"val"`
	Test                int    `json:"test"`
	PatientsOnBothSides int    `json:"patients_on_both_sides"`
	TestPatients        int    `json:"test_patients"`
	TestPatientsSeen    int    `json:"test_patients_seen"` // those with rows on the training or validation side
	TestRowsSeen        int    `json:"test_rows_seen"`     // their rows on the test side
	SitesOnBothSides    int    `json:"sites_on_both_sides"`
	TestSites           int    `json:"test_sites"`
	TestSitesSeen       int    `json:"test_sites_seen"`
}

// Straddler is a patient or a site on more than one side.
type Straddler struct {
	Name   string   `json:"name"`
	Splits []string `json:"splits"` // where it is on more than one side
	Slides []string `json:"slides,omitempty"`
}

// Examine audits a split file. Invalid is one of which no patient is known: then nothing can be said.
func Examine(f *File) (Audit, error) {
	a := Audit{Form: f.Form, Rows: len(f.Rows), Splits: len(f.Splits), Notes: slices.Clone(f.Notes)}
	patient := func(i int) string { return f.Rows[i].Patient }
	site := func(i int) string { return f.Rows[i].Site }
	slide := func(i int) string { return Key(f.Rows[i].Slide) }
	var contradict []string
	unused := 0
	for i, r := range f.Rows {
		if r.Patient == "" {
			a.WithoutPatient++
		}
		if b, ok := coverslip.ParseTCGA(r.Slide); ok && r.Patient != "" {
			if p, ok := coverslip.ParseTCGA(r.Patient); ok && p.Patient != b.Patient {
				contradict = append(contradict, r.Slide)
			}
		}
		if !slices.ContainsFunc(f.Splits, func(s Split) bool { return s.Side[i] != Out }) {
			unused++
		}
	}
	if a.WithoutPatient == len(f.Rows) {
		return a, &coverslip.Error{Kind: coverslip.Invalid, Op: "audit the splits", Err: errors.New("nothing says which patient a slide is of"), Hint: "give a table with slide_id and case_id: --slides FILE"}
	}
	if contradict != nil {
		a.note("%d slides have the barcode of another patient than the table says: %s", len(contradict), some(contradict))
	}
	if a.WithoutPatient > 0 {
		a.note("%d rows name no patient: nothing is known of them", a.WithoutPatient)
	}
	if unused > 0 {
		a.note("%d rows are on no side of any split", unused)
	}
	a.Slides, a.Patients, a.Sites = different(f, slide), different(f, patient), different(f, site)
	if twice := a.Rows - a.Slides; twice > 0 {
		a.note("%d rows name a slide that another row names, too", twice)
	}

	patients, sites, slideNames := newStraddlers(), newStraddlers(), newStraddlers()
	for _, s := range f.Splits {
		fold := FoldAudit{Split: s.Name, Train: len(s.Rows(Train)), Val: len(s.Rows(Val)), Test: len(s.Rows(Test))}
		on := sidesOf(s, patient)
		fold.PatientsOnBothSides = patients.add(s.Name, on)
		fold.TestPatients, fold.TestPatientsSeen = seen(on)
		for _, i := range s.Rows(Test) {
			if on[patient(i)].several() {
				fold.TestRowsSeen++
			}
		}
		on = sidesOf(s, site)
		fold.SitesOnBothSides = sites.add(s.Name, on)
		fold.TestSites, fold.TestSitesSeen = seen(on)
		slideNames.add(s.Name, sidesOf(s, slide))
		a.Folds = append(a.Folds, fold)
	}
	slidesOf := map[string][]string{}
	for _, r := range f.Rows {
		if r.Patient != "" && !slices.Contains(slidesOf[r.Patient], r.Slide) {
			slidesOf[r.Patient] = append(slidesOf[r.Patient], r.Slide)
		}
	}
	a.LeakingPatients, a.SharedSites = patients.list(), sites.list()
	for i := range a.LeakingPatients {
		a.LeakingPatients[i].Slides = slidesOf[a.LeakingPatients[i].Name]
	}
	for _, s := range slideNames.list() {
		a.LeakingSlides = append(a.LeakingSlides, s.Name)
	}
	a.PatientsOnBothSides, a.SitesOnBothSides, a.SlidesOnBothSides = len(a.LeakingPatients), len(a.SharedSites), len(a.LeakingSlides)
	return a, nil
}

func (a *Audit) note(format string, args ...any) {
	a.Notes = append(a.Notes, fmt.Sprintf(format, args...))
}

// Verdict is the audit in a sentence.
func (a Audit) Verdict() string {
	switch {
	case a.SlidesOnBothSides > 0:
		return fmt.Sprintf("LEAKS: %d slides stand on both sides themselves, of %d patients (of %d) that do", a.SlidesOnBothSides, a.PatientsOnBothSides, a.Patients)
	case a.PatientsOnBothSides > 0:
		return fmt.Sprintf("LEAKS: %d of %d patients stand on both sides", a.PatientsOnBothSides, a.Patients)
	case a.WithoutPatient > 0:
		return fmt.Sprintf("UNKNOWN: no known patient stands on both sides, but %d of %d rows name none", a.WithoutPatient, a.Rows)
	case a.SitesOnBothSides > 0:
		return fmt.Sprintf("no patient leaks; %d of %d sites stand on both sides, so figures may owe to how a site prepares its slides", a.SitesOnBothSides, a.Sites)
	case a.Sites == 0:
		return "no patient leaks; nothing says the sites"
	}
	return "no patient leaks, and no site stands on both sides"
}

// sides is a set of them.
type sides uint8

func (s sides) several() bool { return s&(s-1) != 0 }

func sidesOf(s Split, name func(int) string) map[string]sides {
	on := map[string]sides{}
	for i, side := range s.Side {
		if n := name(i); side != Out && n != "" {
			on[n] |= 1 << side
		}
	}
	return on
}

// seen counts the names on the test side, and those of them that are on another, too.
func seen(on map[string]sides) (tested, elsewhere int) {
	for _, s := range on {
		if s&(1<<Test) != 0 {
			tested++
			if s.several() {
				elsewhere++
			}
		}
	}
	return tested, elsewhere
}

// straddlers collects who is on several sides of which splits.
type straddlers struct{ splits map[string][]string }

func newStraddlers() straddlers { return straddlers{map[string][]string{}} }

func (s straddlers) add(split string, on map[string]sides) (n int) {
	for name, at := range on {
		if at.several() {
			s.splits[name] = append(s.splits[name], split)
			n++
		}
	}
	return n
}

func (s straddlers) list() []Straddler {
	all := make([]Straddler, 0, len(s.splits)) // not null in JSON
	names := map[string]bool{}
	for name := range s.splits {
		names[name] = true
	}
	for _, name := range sortedKeys(names) {
		all = append(all, Straddler{Name: name, Splits: s.splits[name]})
	}
	return all
}

func different(f *File, name func(int) string) int {
	seen := map[string]bool{}
	for i := range f.Rows {
		if n := name(i); n != "" {
			seen[n] = true
		}
	}
	return len(seen)
}
