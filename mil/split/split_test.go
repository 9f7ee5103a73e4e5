package split

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"coverslip"
)

func seeded(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, 0)) }

// shared returns a file of the folder beside the checkout, or skips.
func shared(t *testing.T, parts ...string) string {
	t.Helper()
	path := filepath.Join(append([]string{"..", "..", "..", "shared", "data", "tcga"}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs ../shared/data: %v", err)
	}
	return path
}

// cohort is patients of one to four slides and three classes at sites of very different size.
func cohort(patients int, rng *rand.Rand) (rows []Row) {
	for p := range patients {
		label := []string{"ductal", "ductal", "ductal", "lobular", "no special type"}[rng.IntN(5)]
		site := fmt.Sprintf("S%d", min(rng.IntN(12), rng.IntN(12)))
		for s := range 1 + rng.IntN(4) {
			rows = append(rows, Row{Slide: fmt.Sprintf("p%d-%d", p, s), Patient: fmt.Sprintf("p%d", p), Site: site, Label: label})
		}
	}
	return rows
}

// straddling counts names on more than one side, without any of the code that made the splits.
func straddling(rows []Row, splits []Split, name func(Row) string) (n int) {
	for _, s := range splits {
		on := map[string]map[Side]bool{}
		for i, side := range s.Side {
			if side == Out {
				continue
			}
			if on[name(rows[i])] == nil {
				on[name(rows[i])] = map[Side]bool{}
			}
			on[name(rows[i])][side] = true
		}
		for _, sides := range on {
			if len(sides) > 1 {
				n++
			}
		}
	}
	return n
}

func patientOf(r Row) string { return r.Patient }
func siteOf(r Row) string    { return r.Site }

func TestFoldsKeepPatientsTogetherAndClassesEven(t *testing.T) {
	rows := cohort(300, seeded(1))
	splits, report, err := KFold(rows, 5, 3, Options{}, seeded(2))
	if err != nil || len(splits) != 15 || report.Left != nil || report.Notes != nil {
		t.Fatalf("%d splits, %+v, %v", len(splits), report, err)
	}
	if n := straddling(rows, splits, patientOf); n > 0 {
		t.Errorf("%d patients straddle", n)
	}
	for r := range 3 {
		tested := make([]int, len(rows))
		low, high := map[string]int{}, map[string]int{}
		for _, s := range splits[5*r : 5*r+5] {
			patients := map[string]map[string]bool{}
			for i, side := range s.Side {
				if side == Out || side == Val {
					t.Fatalf("split %s: row %d is %q", s.Name, i, side)
				}
				if side == Test {
					tested[i]++
					if patients[rows[i].Label] == nil {
						patients[rows[i].Label] = map[string]bool{}
					}
					patients[rows[i].Label][rows[i].Patient] = true
				}
			}
			for l, p := range patients {
				if low[l] == 0 || len(p) < low[l] {
					low[l] = len(p)
				}
				high[l] = max(high[l], len(p))
			}
		}
		if slices.ContainsFunc(tested, func(n int) bool { return n != 1 }) {
			t.Error("a slide is not tested exactly once")
		}
		for l := range high {
			if high[l]-low[l] > 1 {
				t.Errorf("repeat %d: folds have %d to %d patients of %q", r, low[l], high[l], l)
			}
		}
	}
	if reflect.DeepEqual(splits[0].Side, splits[5].Side) {
		t.Error("the second repeat has the folds of the first")
	}
	again, _, _ := KFold(rows, 5, 3, Options{}, seeded(2))
	if !reflect.DeepEqual(splits, again) {
		t.Error("equal seeds, other folds")
	}
}

func TestEverySideIsKeptApart(t *testing.T) {
	rows := cohort(400, seeded(3))
	for _, c := range []struct {
		by   By
		name func(Row) string
	}{{ByPatient, patientOf}, {BySite, siteOf}, {BySitePreserved, siteOf}} {
		folds, _, err := KFold(rows, 4, 1, Options{By: c.by, Val: .2}, seeded(4))
		if err != nil {
			t.Fatal(err)
		}
		all := folds
		if c.by != BySitePreserved {
			random, _, err := MonteCarlo(rows, 20, .25, Options{By: c.by, Val: .2}, seeded(4))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, random...)
		}
		inner, _, err := Inner(rows, folds[0], 3, c.by, seeded(5))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range inner {
			for i, side := range s.Side {
				if side == Test || (side == Out) != (folds[0].Side[i] != Train) {
					t.Fatalf("inner split %s: row %d is %q, outside %q", s.Name, i, side, folds[0].Side[i])
				}
			}
		}
		if n := straddling(rows, append(all, inner...), c.name); n > 0 {
			t.Errorf("by %d: %d straddle", c.by, n)
		}
		for _, s := range all {
			if len(s.Rows(Train)) == 0 || len(s.Rows(Val)) == 0 || len(s.Rows(Test)) == 0 {
				t.Errorf("by %d, split %s: %d, %d, %d rows", c.by, s.Name, len(s.Rows(Train)), len(s.Rows(Val)), len(s.Rows(Test)))
			}
		}
	}
	free, _, err := KFold(rows, 4, 1, Options{By: BySlide}, seeded(4))
	if err != nil || straddling(rows, free, patientOf) == 0 {
		t.Errorf("by slide nothing straddles, so this test could not fail: %v", err)
	}
}

func TestMonteCarloKeepsItsShare(t *testing.T) {
	rows := cohort(500, seeded(6))
	splits, _, err := MonteCarlo(rows, 10, .2, Options{}, seeded(7))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range splits {
		if got := float64(len(s.Rows(Test))) / float64(len(rows)); got < .17 || got > .23 {
			t.Errorf("split %s tests %.2f", s.Name, got)
		}
	}
	if reflect.DeepEqual(splits[0].Side, splits[1].Side) {
		t.Error("two draws are one")
	}
}

func TestFewShotDrawsOneSlideOfEachPatient(t *testing.T) {
	rows := cohort(300, seeded(8))
	folds, _, err := KFold(rows, 5, 1, Options{}, seeded(9))
	if err != nil {
		t.Fatal(err)
	}
	check := func(s Split) map[string]int {
		t.Helper()
		n, patients := map[string]int{}, map[string]bool{}
		for i, side := range s.Side {
			if side == Train {
				n[rows[i].Label]++
				if patients[rows[i].Patient] {
					t.Errorf("patient %s twice", rows[i].Patient)
				}
				patients[rows[i].Patient] = true
			}
			if before := folds[0].Side[i]; side != before && (side != Out || before != Train) {
				t.Fatalf("row %d went from %q to %q", i, folds[0].Side[i], side)
			}
		}
		return n
	}
	rng := seeded(10)
	for _, k := range []int{1, 2, 4, 8, 16} {
		s, err := FewShot(rows, folds[0], k, rng)
		if err != nil {
			t.Fatal(err)
		}
		if n := check(s); n["ductal"] != k || n["lobular"] != k || n["no special type"] != k {
			t.Errorf("%d shots: %v", k, n)
		}
	}
	have := PatientsOf(rows, folds[0])
	for _, want := range []int{3, 4, 50, 100, 240} {
		s, err := Few(rows, folds[0], want, rng)
		if err != nil {
			t.Fatal(err)
		}
		n, sum := check(s), 0
		for l, got := range n {
			sum += got
			if even := float64(want*have[l]) / 240; want >= 50 && (float64(got) < even-1 || float64(got) > even+1) {
				t.Errorf("%d slides: %d of %q, in proportion %.1f", want, got, l, even)
			}
		}
		if sum != want || len(n) != 3 {
			t.Errorf("%d slides asked: %v", want, n)
		}
	}
	a, _ := FewShot(rows, folds[0], 4, seeded(11))
	b, _ := FewShot(rows, folds[0], 4, seeded(12))
	if reflect.DeepEqual(a, b) {
		t.Error("two draws are one")
	}
	if _, err := FewShot(rows, folds[0], 200, rng); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("200 of each: %v", err)
	}
	if _, err := Few(rows, folds[0], 2, rng); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("2 slides of 3 classes: %v", err)
	}
}

func TestBadInputIsRefusedWithAWord(t *testing.T) {
	good := cohort(60, seeded(13))
	with := func(change func([]Row) []Row) []Row { return change(slices.Clone(good)) }
	for what, c := range map[string]struct {
		rows []Row
		k    int
		by   By
		says string
	}{
		"one class":               {with(func(r []Row) []Row { return slices.DeleteFunc(r, func(r Row) bool { return r.Label != "ductal" }) }), 5, ByPatient, `one class, "ductal"`},
		"no labels":               {with(func(r []Row) []Row { return []Row{{Slide: "a", Patient: "a"}} }), 5, ByPatient, "no slide has a label"},
		"class smaller than k":    {with(func(r []Row) []Row { return append(r, Row{"x", "x", "S1", "mucinous, rare"}) }), 5, ByPatient, `"mucinous, rare" has 1 patients`},
		"two slides of a patient": {with(func(r []Row) []Row { return append(r, Row{"x", "x", "S1", "rare"}, Row{"y", "x", "S1", "rare"}) }), 2, ByPatient, `"rare" has 1 patients`},
		"slide with two labels":   {with(func(r []Row) []Row { r[3].Slide = r[0].Slide; r[3].Label = "other"; return r }), 5, ByPatient, "listed twice"},
		"slide with two patients": {with(func(r []Row) []Row { d := r[0]; d.Patient = "other"; return append(r, d) }), 5, ByPatient, "listed twice"},
		"no patient":              {with(func(r []Row) []Row { r[3].Patient = ""; return r }), 5, ByPatient, "1 of"},
		"no site":                 {with(func(r []Row) []Row { r[3].Site = ""; return r }), 5, BySite, "have no site"},
		"fewer sites than folds":  {good, 30, BySitePreserved, "sites for 30 parts"},
		"one fold":                {good, 1, ByPatient, "1 folds"},
	} {
		_, _, err := KFold(c.rows, c.k, 1, Options{By: c.by}, seeded(1))
		if coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), c.says) || coverslip.HintOf(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, _, err := KFold(good, 3, 1, Options{Val: 1}, seeded(1)); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("all is validation: %v", err)
	}
	if _, _, err := KFold(good, 3, 2, Options{By: BySitePreserved}, seeded(1)); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("repeats of the best: %v", err)
	}
	if _, _, err := MonteCarlo(good, 3, 1, Options{}, seeded(1)); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("all is tested: %v", err)
	}
}

func TestWhatIsLeftOutIsReported(t *testing.T) {
	rows := cohort(100, seeded(14))
	rows[5].Label = ""
	rows = append(rows, rows[0], rows[1])
	splits, report, err := KFold(rows, 5, 1, Options{}, seeded(1))
	if err != nil {
		t.Fatal(err)
	}
	want := []Left{{rows[5].Slide, "no label"}, {rows[0].Slide, "listed twice"}, {rows[1].Slide, "listed twice"}}
	if !reflect.DeepEqual(report.Left, want) {
		t.Errorf("%+v", report.Left)
	}
	for _, s := range splits {
		if s.Side[5] != Out || s.Side[len(rows)-1] != Out || s.Side[0] == Out {
			t.Errorf("split %s: %v", s.Name, s.Side)
		}
	}
}

func TestAPatientWithTwoLabelsStaysWhole(t *testing.T) {
	rows := cohort(100, seeded(15))
	rows = append(rows, Row{"a", "two", "S1", "ductal"}, Row{"b", "two", "S1", "lobular"})
	splits, report, err := KFold(rows, 5, 1, Options{}, seeded(1))
	if err != nil || straddling(rows, splits, patientOf) != 0 {
		t.Fatalf("%v", err)
	}
	if len(report.Notes) != 1 || !strings.Contains(report.Notes[0], "1 patients have slides of more than one class") || !strings.Contains(report.Notes[0], "two") {
		t.Errorf("%q", report.Notes)
	}
}

func TestAPatientSeenAtTwoSitesJoinsThem(t *testing.T) {
	rows := cohort(200, seeded(16))
	rows = append(rows, Row{"a", "both", "S0", "ductal"}, Row{"b", "both", "S7", "ductal"})
	for _, by := range []By{BySite, BySitePreserved} {
		splits, report, err := KFold(rows, 3, 1, Options{By: by}, seeded(1))
		if err != nil {
			t.Fatal(err)
		}
		if straddling(rows, splits, patientOf) != 0 || straddling(rows, splits, siteOf) != 0 {
			t.Error("a patient or a site straddles")
		}
		if len(report.Notes) == 0 || !strings.Contains(report.Notes[0], "S0 and S7 by both") {
			t.Errorf("%q", report.Notes)
		}
	}
}

func TestASideWithoutAClassIsNoted(t *testing.T) {
	rows := cohort(200, seeded(17))
	rows = append(rows, Row{"a", "pa", "S3", "rare"}, Row{"b", "pb", "S3", "rare"})
	_, report, err := KFold(rows, 3, 1, Options{By: BySite}, seeded(1))
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(report.Notes, "\n")
	if !strings.Contains(all, `"rare" occurs at 1 sites only`) || !strings.Contains(all, `no "rare" on the test side of split`) || !strings.Contains(all, `no "rare" on the train side of split`) {
		t.Errorf("%q", all)
	}
}

// everyFolding tries all arrangements.
func everyFolding(s *folding) (least int) {
	fold := make([]int, len(s.count))
	least = s.cost(fold)
	for {
		i := 0
		for ; i < len(fold); i++ {
			if fold[i]++; fold[i] < s.k {
				break
			}
			fold[i] = 0
		}
		if i == len(fold) {
			return least
		}
		least = min(least, s.cost(fold))
	}
}

func TestSitePreservedFoldsAreTheBest(t *testing.T) {
	rng := seeded(18)
	proven := 0
	for range 15 {
		k := 2 + rng.IntN(2)
		units := make([]unit, k+rng.IntN(9-k))
		for u := range units {
			units[u] = unit{count: []int{rng.IntN(30), rng.IntN(9), rng.IntN(60) / 50}, rows: []int{u}}
		}
		s := newFolding(units, k)
		want := everyFolding(s)
		fold, b := preserve(units, k, rng)
		if s.cost(fold) != want || b.Criterion != want || !b.Best || b.Least != want {
			t.Fatalf("%d units, %d folds: %+v, the best is %d", len(units), k, b, want)
		}
		if bound := s.bound(); bound > want {
			t.Fatalf("the bound %d is above the best, %d", bound, want)
		}
		// The search leaves nothing to do where it is this small, so ask the proof alone, too.
		if best, done := s.prove(make([]int, len(units)), s.cost(make([]int, len(units)))); !done || s.cost(best) != want {
			t.Fatalf("branch and bound ends with %d, done %v; the best is %d", s.cost(best), done, want)
		}
		if s.bound() < want {
			proven++
		}
	}
	if proven == 0 {
		t.Error("the bound was reached each time: nothing was left to prove")
	}
}

func TestSitePreservedFoldsOfHowardAreNotBetter(t *testing.T) {
	theirs, err := Read(shared(t, "preserved_site_cv", "Annotation Files", "brca_splits.csv"), ReadOptions{Column: "CV3_histology_preserved_site"})
	if err != nil {
		t.Fatal(err)
	}
	labelled, err := ReadRows(shared(t, "gigassl_tables", "brca_histotypes.csv"), "label")
	if err != nil {
		t.Fatal(err)
	}
	label := map[string]string{}
	for _, r := range labelled {
		label[r.Patient] = r.Label
	}
	var rows []Row
	fold := map[string]int{}
	for i, r := range theirs.Rows {
		r.Label = label[r.Patient]
		for f, s := range theirs.Splits {
			if s.Side[i] == Test && r.Label != "" {
				fold[r.Patient] = f
				rows = append(rows, r)
			}
		}
	}
	if len(fold) < 700 {
		t.Fatalf("only %d patients in both tables", len(fold))
	}
	c, err := gather(rows, nil, Options{By: BySitePreserved}, 3)
	if err != nil {
		t.Fatal(err)
	}
	s := newFolding(c.units, 3)
	given := make([]int, len(c.units))
	for u := range c.units {
		given[u] = fold[rows[c.units[u].rows[0]].Patient]
	}
	_, b := preserve(c.units, 3, seeded(1))
	t.Logf("%d patients at %d sites: criterion %d, of the published folds %d", len(fold), len(c.units), b.Criterion, s.cost(given))
	if b.Criterion > s.cost(given) {
		t.Errorf("ours %d, theirs %d", b.Criterion, s.cost(given))
	}
}

func TestNamesAreMatchedWithoutTheirSuffix(t *testing.T) {
	for a, b := range map[string]string{
		"a.svs": "a", "a.ome.tif": "a", "a.h5": "a", "x.1.2": "x.1.2",
		"TCGA-A7-A6VV-01Z-00-DX1.07AE0E16-A883-4C86-BC74-4E13081175F2.svs": "TCGA-A7-A6VV-01Z-00-DX1.07ae0e16-a883-4c86-bc74-4e13081175f2",
	} {
		if Key(a) != Key(b) {
			t.Errorf("%s and %s: %q, %q", a, b, Key(a), Key(b))
		}
	}
	if Key("Case 1.svs") == Key("case 1.svs") {
		t.Error("names that differ by case are one")
	}
}
