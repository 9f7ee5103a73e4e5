// Package split divides slides into training, validation and test sides without letting a patient
// stand on two of them, and tells which splits of others do.
//
// It reads and writes the split files people pass around (file.go) and audits them (audit.go). It knows
// no features and no classifier: those get row numbers.
package split

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"coverslip"
)

// Row is a slide as a split sees it.
type Row struct {
	Slide   string // its name or id
	Patient string
	Site    string // where it was made
	Label   string // its class; empty where nobody knows
}

// Side is where a row stands in a split.
type Side uint8

// A row is Out if the split does not use it.
const (
	Out   Side = iota
	Train      // learned from
	Val        // chosen by: when to stop, how strongly to regularise
	Test       // judged on
)

// String is the word of split files: train, val, test, or nothing.
func (s Side) String() string { return [...]string{"", "train", "val", "test"}[s] }

// Split says where each row stands.
type Split struct {
	Name string // "0", or "1.0" for fold 0 of the second repeat
	Side []Side // one for each row
}

// Rows are the numbers of the rows on one side, rising.
func (s Split) Rows(side Side) (rows []int) {
	for i, at := range s.Side {
		if at == side {
			rows = append(rows, i)
		}
	}
	return rows
}

// By says what must not stand on two sides.
type By int

// Patients by default: two slides of a patient are not two observations.
const (
	ByPatient       By = iota
	BySite             // sites, and with them patients, at random
	BySitePreserved    // sites, in the one arrangement whose folds have the most even classes (k-fold only)
	BySlide            // nothing: two slides of a patient may be apart, and figures come out too good
)

// Options are common to all ways to split.
type Options struct {
	By  By
	Val float64 // share of the training side that becomes the validation side, 0 to below 1
}

// Report is what a split left out or had to put up with.
type Report struct {
	Left    []Left   `json:"left_out,omitempty"`
	Notes   []string `json:"notes,omitempty"`
	Balance *Balance `json:"balance,omitempty"` // of BySitePreserved
}

// Left is a row that no split uses.
type Left struct {
	Slide  string `json:"slide"`
	Reason string `json:"reason"`
}

// KFold makes k splits that test each slide once, repeats times over with other folds. Each class is
// spread over the folds as evenly as whole patients (or sites) allow.
//
// Rows without a label and the second of two equal rows are Out, and reported. Invalid are: a slide
// with two patients, sites or labels; a single class; a class of fewer patients than folds; rows without
// what o.By asks for.
func KFold(rows []Row, k, repeats int, o Options, rng *rand.Rand) ([]Split, Report, error) {
	switch {
	case k < 2:
		return nil, Report{}, invalid(fmt.Errorf("%d folds", k), "at least 2")
	case repeats < 1:
		return nil, Report{}, invalid(fmt.Errorf("%d repeats", repeats), "at least 1")
	case repeats > 1 && o.By == BySitePreserved:
		return nil, Report{}, invalid(errors.New("the best arrangement of sites is one, and does not repeat"), "split by site, without the preserving, for repeats")
	}
	c, err := gather(rows, nil, o, k)
	if err != nil {
		return nil, c.report, err
	}
	var splits []Split
	for r := range repeats {
		var fold []int
		if o.By == BySitePreserved {
			var b Balance
			fold, b = preserve(c.units, k, rng)
			c.report.Balance = &b
		} else {
			fold = assign(c.units, equalShares(k), rng)
		}
		for f := range k {
			s := Split{Name: strconv.Itoa(f), Side: make([]Side, len(rows))}
			if repeats > 1 {
				s.Name = fmt.Sprintf("%d.%d", r, f)
			}
			var rest []unit
			for u, at := range fold {
				if at == f {
					c.units[u].put(s, Test)
				} else {
					c.units[u].put(s, Train)
					rest = append(rest, c.units[u])
				}
			}
			if len(rest) == len(c.units) {
				return nil, c.report, invalid(fmt.Errorf("no site is left for fold %d", f), "ask for fewer folds")
			}
			setApart(s, rest, o.Val, Val, rng)
			splits = append(splits, s)
		}
	}
	c.missing(splits)
	return splits, c.report, nil
}

// MonteCarlo makes n splits, each with a new random test side of this share of the patients (or sites),
// classes kept in proportion. Errors are those of KFold.
func MonteCarlo(rows []Row, n int, test float64, o Options, rng *rand.Rand) ([]Split, Report, error) {
	switch {
	case n < 1:
		return nil, Report{}, invalid(fmt.Errorf("%d splits", n), "at least 1")
	case !(test > 0 && test < 1):
		return nil, Report{}, invalid(fmt.Errorf("a test side of %g", test), "a share between 0 and 1")
	case o.By == BySitePreserved:
		return nil, Report{}, invalid(errors.New("sites are preserved in k folds, not in random draws"), "split by site, without the preserving")
	}
	c, err := gather(rows, nil, o, 2)
	if err != nil {
		return nil, c.report, err
	}
	var splits []Split
	for i := range n {
		s := Split{Name: strconv.Itoa(i), Side: make([]Side, len(rows))}
		for _, u := range c.units {
			u.put(s, Train)
		}
		rest := setApart(s, c.units, test, Test, rng)
		setApart(s, rest, o.Val, Val, rng)
		splits = append(splits, s)
	}
	c.missing(splits)
	return splits, c.report, nil
}

// Inner divides the training side of outer into k folds for choosing: in each, one fold is Val, the others
// are Train, and all else is Out, the outer test side too. Errors are those of KFold.
func Inner(rows []Row, outer Split, k int, by By, rng *rand.Rand) ([]Split, Report, error) {
	if k < 2 {
		return nil, Report{}, invalid(fmt.Errorf("%d inner folds", k), "at least 2")
	}
	if by == BySitePreserved {
		by = BySite
	}
	c, err := gather(rows, outer.Side, Options{By: by}, k)
	if err != nil {
		return nil, c.report, err
	}
	fold := assign(c.units, equalShares(k), rng)
	splits := make([]Split, k)
	for f := range splits {
		splits[f] = Split{Name: outer.Name + "." + strconv.Itoa(f), Side: make([]Side, len(rows))}
		for u, at := range fold {
			side := Train
			if at == f {
				side = Val
			}
			c.units[u].put(splits[f], side)
		}
	}
	c.missing(splits)
	return splits, c.report, nil
}

// FewShot draws k training slides of each class, each of another patient, from the training side of
// outer; the other training slides become Out. Invalid if a class has not that many patients there.
func FewShot(rows []Row, outer Split, k int, rng *rand.Rand) (Split, error) {
	want := map[string]int{}
	for label := range PatientsOf(rows, outer) {
		want[label] = k
	}
	return draw(rows, outer, want, rng)
}

// Few draws n training slides, each of another patient, with the classes in the proportion of their
// patients on the training side of outer and at least one of each; the other training slides become Out.
func Few(rows []Row, outer Split, n int, rng *rand.Rand) (Split, error) {
	have := PatientsOf(rows, outer)
	labels, all := slices.Sorted(maps.Keys(have)), 0
	for _, l := range labels {
		all += have[l]
	}
	if n < len(labels) || n > all {
		return Split{}, invalid(fmt.Errorf("%d slides of %d classes from %d patients", n, len(labels), all), "at least one for each class, at most one for each patient")
	}
	// Largest remainders, after one for each class.
	want, given := map[string]int{}, 0
	for _, l := range labels {
		want[l] = max(1, n*have[l]/all)
		given += want[l]
	}
	lack := func(l string) float64 { return float64(n*have[l])/float64(all) - float64(want[l]) }
	for ; given != n; given += sign(n - given) {
		step := sign(n - given)
		best := ""
		for _, l := range labels {
			possible := step > 0 && want[l] < have[l] || step < 0 && want[l] > 1
			if possible && (best == "" || float64(step)*lack(l) > float64(step)*lack(best)) {
				best = l
			}
		}
		want[best] += step
	}
	return draw(rows, outer, want, rng)
}

func sign(n int) int {
	if n < 0 {
		return -1
	}
	return 1
}

// PatientsOf counts, for each class, the patients on the training side.
func PatientsOf(rows []Row, s Split) map[string]int {
	seen, n := map[[2]string]bool{}, map[string]int{}
	for _, i := range s.Rows(Train) {
		key := [2]string{rows[i].Label, person(rows[i])}
		if !seen[key] {
			seen[key] = true
			n[key[0]]++
		}
	}
	return n
}

func draw(rows []Row, outer Split, want map[string]int, rng *rand.Rand) (Split, error) {
	have := PatientsOf(rows, outer)
	s := Split{Name: outer.Name, Side: slices.Clone(outer.Side)}
	train := outer.Rows(Train)
	for _, i := range train {
		s.Side[i] = Out
	}
	rng.Shuffle(len(train), func(a, b int) { train[a], train[b] = train[b], train[a] })
	// Rare classes choose first: a patient may have slides of two.
	labels := slices.SortedFunc(maps.Keys(want), func(a, b string) int {
		if have[a] != have[b] {
			return have[a] - have[b]
		}
		return strings.Compare(a, b)
	})
	taken := map[string]bool{}
	for _, l := range labels {
		left := want[l]
		for _, i := range train {
			if p := person(rows[i]); left > 0 && rows[i].Label == l && !taken[p] {
				taken[p] = true
				s.Side[i] = Train
				left--
			}
		}
		if left > 0 || want[l] < 1 {
			return Split{}, invalid(fmt.Errorf("%d slides of %q, each of another patient, from %d patients on the training side of split %s", want[l], l, have[l], outer.Name), "ask for fewer")
		}
	}
	return s, nil
}

// person is whom a slide counts for: its patient, or itself where the patient is unknown.
func person(r Row) string {
	if r.Patient == "" {
		return "\x00" + r.Slide
	}
	return r.Patient
}

// setApart moves this share of units to a side and returns the others.
func setApart(s Split, units []unit, share float64, side Side, rng *rand.Rand) (rest []unit) {
	if share == 0 {
		return units
	}
	for u, part := range assign(units, []float64{1 - share, share}, rng) {
		if part == 1 {
			units[u].put(s, side)
		} else {
			rest = append(rest, units[u])
		}
	}
	return rest
}

func equalShares(k int) []float64 {
	shares := make([]float64, k)
	for i := range shares {
		shares[i] = 1 / float64(k)
	}
	return shares
}

func invalid(err error, hint string) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "split the slides", Err: err, Hint: hint}
}
