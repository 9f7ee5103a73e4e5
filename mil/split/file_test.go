package split

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"coverslip"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func examine(t *testing.T, path string, o ReadOptions) Audit {
	t.Helper()
	f, err := Read(path, o)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Examine(f)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// The published folds are taken apart by reading them again with nothing but encoding/csv.
func TestPublishedFoldsAreCountedRight(t *testing.T) {
	for _, name := range []string{"lung", "kidney", "brca_histotypes", "brca_mhrd", "brca_molectype"} {
		path := shared(t, "gigassl_tables", name+".csv")
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := csv.NewReader(bytes.NewReader(raw)).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		count := func(lines [][]string, key func([]string) string) (n int) {
			on := map[string]map[string]bool{}
			for _, l := range lines[1:] {
				if on[key(l)] == nil {
					on[key(l)] = map[string]bool{}
				}
				on[key(l)][l[3]] = true
			}
			for _, folds := range on {
				if len(folds) > 1 {
					n++
				}
			}
			return n
		}
		patient := func(l []string) string { return l[2] }
		site := func(l []string) string { return l[0][5:7] }
		check := func(what, path string, lines [][]string) {
			a := examine(t, path, ReadOptions{})
			if a.PatientsOnBothSides != count(lines, patient) || a.SitesOnBothSides != count(lines, site) || a.Rows != len(lines)-1 || len(a.Folds) != 5 {
				t.Errorf("%s, %s: %d patients, %d sites; counted %d and %d", name, what, a.PatientsOnBothSides, a.SitesOnBothSides, count(lines, patient), count(lines, site))
			}
			if len(a.LeakingPatients) != a.PatientsOnBothSides || len(a.SharedSites) != a.SitesOnBothSides {
				t.Errorf("%s: the lists are not as long as the counts", name)
			}
		}
		check("as published", path, lines)
		// These folds keep patients together. Let them leak: each 7th row goes to the next fold.
		for i := 1; i < len(lines); i += 7 {
			lines[i][3] = fmt.Sprintf("%c.0", '0'+(lines[i][3][0]-'0'+1)%5)
		}
		var b strings.Builder
		if err := csv.NewWriter(&b).WriteAll(lines); err != nil {
			t.Fatal(err)
		}
		if name != "brca_molectype" && count(lines, patient) == 0 { // that one has a slide a patient
			t.Errorf("%s: nothing leaks, so this test could not fail", name)
		}
		check("made to leak", write(t, "leaky.csv", b.String()), lines)
	}
}

func TestSitePreservedFilesOfHowardAreClean(t *testing.T) {
	for _, name := range []string{"brca", "coad", "hnsc", "kirc", "luad", "lusc"} {
		path := shared(t, "preserved_site_cv", "Annotation Files", name+"_splits.csv")
		if a := examine(t, path, ReadOptions{Column: "CV3_stage_preserved_site"}); a.PatientsOnBothSides != 0 || a.SitesOnBothSides != 0 || len(a.Folds) != 3 {
			t.Errorf("%s, site-preserved: %s", name, a.Verdict())
		}
		if a := examine(t, path, ReadOptions{Column: "CV3_stage_standard"}); a.SitesOnBothSides == 0 {
			t.Errorf("%s, standard: %s", name, a.Verdict())
		}
		if _, err := Read(path, ReadOptions{}); err == nil || !strings.Contains(err.Error(), "--column") {
			t.Errorf("which of its columns? %v", err)
		}
	}
}

const sideColumns = "case_id\tslide_id\tsite\ttask\tfold_0\tfold_1\n" +
	"p1\ta\tX\t0\ttrain\ttest\n" +
	"p1\tb\tX\t0\ttrain\ttrain\n" +
	"p2\tc\tY\t1\tval\ttrain\n" +
	"p2\td\tY\t1\ttest\ttrain\n" +
	"p3\te\tX\t1\ttest\t\n" +
	"p4\tf\tZ\t1\ttest\tval\n"

func TestSideColumnsAreAudited(t *testing.T) {
	a := examine(t, write(t, "k=all.tsv", sideColumns), ReadOptions{})
	// p1 is torn in fold 1, p2 in fold 0; X is torn in both, Y in fold 0.
	if a.PatientsOnBothSides != 2 || a.SitesOnBothSides != 2 || a.Patients != 4 || a.Sites != 3 {
		t.Errorf("%+v", a)
	}
	want := []Straddler{{"p1", []string{"1"}, []string{"a", "b"}}, {"p2", []string{"0"}, []string{"c", "d"}}}
	if !reflect.DeepEqual(a.LeakingPatients, want) {
		t.Errorf("%+v", a.LeakingPatients)
	}
	zero := FoldAudit{Split: "0", Train: 2, Val: 1, Test: 3, PatientsOnBothSides: 1, TestPatients: 3, TestPatientsSeen: 1, TestRowsSeen: 1, SitesOnBothSides: 2, TestSites: 3, TestSitesSeen: 2}
	if a.Folds[0] != zero {
		t.Errorf("%+v", a.Folds[0])
	}
	if !strings.HasPrefix(a.Verdict(), "LEAKS: 2 of 4 patients") {
		t.Error(a.Verdict())
	}
}

func TestCLAMIsAudited(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"splits_0.csv":      ",train,val,test\n0,a,c,e\n1,b,,d\n",
		"splits_1.csv":      ",train,val,test\n0,c,b,a\n1,d,e,a\n2,a,,\n", // a trains, too, and is tested twice
		"splits_0_bool.csv": ",train,val,test\na,True,False,False\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	slides := write(t, "slides.csv", "case_id,slide_id,label\np1,a,x\np1,b,x\np2,c,y\np2,d,y\np3,e,x\n")
	a := examine(t, dir, ReadOptions{Slides: slides})
	if a.Form != CLAM || a.PatientsOnBothSides != 2 || a.SlidesOnBothSides != 1 || !slices.Equal(a.LeakingSlides, []string{"a"}) || a.Splits != 2 {
		t.Errorf("%+v", a)
	}
	if !slices.Equal(a.LeakingPatients[1].Splits, []string{"0"}) { // p2: c validates, d is tested
		t.Errorf("%+v", a.LeakingPatients)
	}
	// The same without the table of slides: nobody can tell, and that is said.
	f, err := Read(dir, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Examine(f); coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), "--slides") {
		t.Errorf("%v", err)
	}
	// TCGA names say it themselves.
	tcga := write(t, "splits_3.csv", ",train,val,test\n0,TCGA-A7-A6VV-01Z-00-DX1,,TCGA-A7-A6VV-01Z-00-DX2\n1,TCGA-A7-0001-01Z-00-DX1,,TCGA-B6-0002-01Z-00-DX1\n")
	if a := examine(t, tcga, ReadOptions{}); a.PatientsOnBothSides != 1 || a.SitesOnBothSides != 1 || a.Sites != 2 {
		t.Errorf("%+v", a)
	}
	flags := write(t, "splits_0_bool.csv", ",train,val,test\na,True,False,False\nb,False,False,True\nc,False,True,False\n")
	if a := examine(t, flags, ReadOptions{Slides: slides}); a.PatientsOnBothSides != 1 || a.Folds[0].Train != 1 || a.Folds[0].Val != 1 || a.Folds[0].Test != 1 {
		t.Errorf("%+v", a)
	}
}

func TestOneColumnOfSidesIsAudited(t *testing.T) {
	a := examine(t, write(t, "s.csv", "patient,image,split\np1,a,Train\np1,b,TEST\np2,c,valid\n"), ReadOptions{})
	if a.PatientsOnBothSides != 1 || a.Folds[0].Val != 1 || a.Splits != 1 {
		t.Errorf("%+v", a)
	}
}

func TestUnknownPatientsAreNotCalledClean(t *testing.T) {
	a := examine(t, write(t, "s.csv", "patient,image,fold\np1,a,0\n,b,1\n,c,0\n"), ReadOptions{})
	if a.WithoutPatient != 2 || a.PatientsOnBothSides != 0 || !strings.HasPrefix(a.Verdict(), "UNKNOWN") {
		t.Errorf("%s %+v", a.Verdict(), a)
	}
	a = examine(t, write(t, "s.csv", "case_id,ID,fold\nTCGA-A7-0001,TCGA-A7-0002-01Z-00-DX1,0\nTCGA-A7-0001,TCGA-A7-0001-01Z-00-DX1,1\n"), ReadOptions{})
	if len(a.Notes) != 1 || !strings.Contains(a.Notes[0], "barcode of another patient") {
		t.Errorf("%q", a.Notes)
	}
}

func TestBadSplitFilesAreRefused(t *testing.T) {
	for what, c := range map[string]struct{ text, says string }{
		"empty":              {"", "no lines"},
		"heading only":       {"slide_id,fold\n", "no lines"},
		"binary":             {"slide\x00\x01\n", "no text"},
		"ragged":             {"slide_id,fold\na,0\nb\n", "wrong number of fields"},
		"no fold":            {"slide_id,label\na,0\n", "--column"},
		"no slide":           {"x,fold\na,0\nb,1\n", "slide_id"},
		"a gap in the slide": {"slide_id,fold\na,0\n,1\n", "line 3: it names no slide"},
		"one fold":           {"slide_id,fold\na,0\nb,0\n", "these are no folds"},
		"same column twice":  {"slide_id,fold,fold\na,0,1\n", "two columns"},
	} {
		_, err := Read(write(t, "x.csv", c.text), ReadOptions{})
		if coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	many := "slide_id,fold\n"
	for i := range maxFolds + 1 {
		many += fmt.Sprintf("s%d,%d.5\n", i, i)
	}
	if _, err := Read(write(t, "x.csv", many), ReadOptions{}); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("a column of numbers: %v", err)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none.csv"), ReadOptions{}); coverslip.KindOf(err) != coverslip.NotFound {
		t.Errorf("no file: %v", err)
	}
	if _, err := Read(t.TempDir(), ReadOptions{}); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := ReadRows(write(t, "x.csv", "slide_id,label\na,0\n"), "stage"); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("no such label: %v", err)
	}
}

func TestTablesOfAllSortsAreRead(t *testing.T) {
	for what, text := range map[string]string{
		"commas":           "slide_id,case_id,my label\na,p1,two words\nb,p2,\n",
		"tabs":             "slide_id\tcase_id\tmy label\na\tp1\ttwo words\nb\tp2\t\n",
		"semicolons":       "slide_id;case_id;my label\na;p1;two words\nb;p2;nan\n",
		"windows":          "\ufeffSlide_ID,Case_ID,My Label\r\na,p1, two words \r\nb,p2,NaN\r\n",
		"quotes":           "\"slide_id\",\"case_id\",\"my label\"\n\"a\",\"p1\",\"two words\"\nb,p2,\n",
		"no end of line":   "slide_id,case_id,my label\na,p1,two words\nb,p2,",
		"pandas' numbers":  ",slide_id,case_id,my label\n0,a,p1,two words\n1,b,p2,\n",
		"other names":      "image_id,patient,my label\na,p1,two words\nb,p2,\n",
		"spaces around it": "slide_id , case_id,my label \n a ,p1,two words\nb, p2,\n",
	} {
		rows, err := ReadRows(write(t, "x.csv", text), "my label")
		want := []Row{{"a", "p1", "", "two words"}, {"b", "p2", "", ""}}
		if err != nil || !reflect.DeepEqual(rows, want) {
			t.Errorf("%s: %+v %v", what, rows, err)
		}
	}
	rows, err := ReadRows(write(t, "x.csv", "patient,site,feature\n0,Site 0,A\n1,Site 1,B\n"), "feature")
	if err != nil || !reflect.DeepEqual(rows, []Row{{"0", "0", "Site 0", "A"}, {"1", "1", "Site 1", "B"}}) {
		t.Errorf("%+v %v", rows, err)
	}
}

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	rows := cohort(80, seeded(20))
	rows[7].Label = ""
	splits, _, err := KFold(rows, 4, 1, Options{}, seeded(21))
	if err != nil {
		t.Fatal(err)
	}
	withVal, _, err := KFold(rows, 4, 2, Options{Val: .2}, seeded(21))
	if err != nil {
		t.Fatal(err)
	}
	same := func(what string, f *File, want []Split) {
		t.Helper()
		got, _, err := f.For(rows)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%s: %d splits, %v", what, len(got), err)
		}
		for i := range got {
			if !slices.Equal(got[i].Side, want[i].Side) {
				t.Errorf("%s: split %d is another", what, i)
			}
		}
	}
	read := func(name, text string) *File {
		t.Helper()
		f, err := Read(write(t, name, text), ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	var b bytes.Buffer
	if err := WriteFolds(&b, rows, splits, "my label"); err != nil {
		t.Fatal(err)
	}
	same("fold column", read("f.csv", b.String()), splits)
	b.Reset()
	if err := WriteSides(&b, rows, withVal, "my label"); err != nil {
		t.Fatal(err)
	}
	same("side columns", read("f.tsv", b.String()), withVal)
	b.Reset()
	if err := WriteCLAM(&b, rows, withVal[1]); err != nil {
		t.Fatal(err)
	}
	same("CLAM", read("splits_0.csv", b.String()), withVal[1:2])
	for what, s := range map[string][]Split{"validation": withVal[:4], "repeats": append(slices.Clone(splits), splits...)} {
		if err := WriteFolds(&b, rows, s, "label"); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("a fold column with %s: %v", what, err)
		}
	}
}

func TestSplitsOfOthersAreMatchedByName(t *testing.T) {
	f, err := Read(write(t, "k=all.tsv", sideColumns), ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rows := []Row{{Slide: "cohort/f.svs"}, {Slide: "b.svs"}, {Slide: "a"}, {Slide: "mine"}, {Slide: "d.svs"}}
	splits, report, err := f.For(rows)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Side{Test, Train, Train, Out, Test}; !slices.Equal(splits[0].Side, want) {
		t.Errorf("%v", splits[0].Side)
	}
	var left []string
	for _, l := range report.Left {
		left = append(left, l.Slide+": "+l.Reason)
	}
	want := []string{"c: in the split file, but not among the slides", "e: in the split file, but not among the slides", "mine: not in the split file"}
	if !slices.Equal(left, want) || len(report.Notes) != 1 || !strings.HasPrefix(report.Notes[0], "2 of 6 slides") {
		t.Errorf("%q %q", left, report.Notes)
	}
	for what, rows := range map[string][]Row{
		"none of them":    {{Slide: "x"}, {Slide: "y"}},
		"an emptied side": {{Slide: "a"}, {Slide: "b"}},
	} {
		if _, _, err := f.For(rows); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	torn, err := Read(write(t, "f.csv", "slide_id,patient,fold\na,p,0\na,p,1\nb,q,0\n"), ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := torn.For([]Row{{Slide: "a"}, {Slide: "b"}}); err == nil || !strings.Contains(err.Error(), "slide a on its") {
		t.Errorf("a slide on two sides: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(sideColumns)
	f.Add("ID,label,case_id,test\nTCGA-A7-A6VV-01Z-00-DX1,x,TCGA-A7-A6VV,4.0\nb,y,q,0.0\n")
	f.Add(",train,val,test\n0,a,c,e\n1,b,,d\n")
	f.Add(",train,val,test\na,True,False,False\n")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := Read(write(t, "x.csv", text), ReadOptions{})
		if err != nil {
			if coverslip.KindOf(err) != coverslip.Invalid {
				t.Fatal(err)
			}
			return
		}
		for _, s := range file.Splits {
			if len(s.Side) != len(file.Rows) {
				t.Fatalf("%d sides of %d rows", len(s.Side), len(file.Rows))
			}
		}
		if _, err := Examine(file); err != nil && coverslip.KindOf(err) != coverslip.Invalid {
			t.Fatal(err)
		}
	})
}
