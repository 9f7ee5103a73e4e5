package cohort_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"coverslip"
	"coverslip/internal/cohort"
)

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "table.csv")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadTable(t *testing.T) {
	got, err := cohort.ReadTable(file(t, "\ufeffslide_id,case_id,Site,subtype,age,recurrence,code,name,\r\n"+
		"a.svs,p1,AA,IDC,61,Yes,007,x,0\r\n"+
		`"b, left.svs",p2,NA,"ILC, mixed",6.5e1,no,012,y,1`+"\r\n"+
		"TCGA-A7-A6VV-01Z-00-DX1.svs,,,[Not Available],NaN,,1,z,2\r\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []cohort.Row{
		{Line: 2, Slide: "a.svs", Patient: "p1", Site: "AA", Labels: map[string]any{"subtype": "IDC", "age": 61.0, "recurrence": true, "code": "007"}},
		{Line: 3, Slide: "b, left.svs", Patient: "p2", Labels: map[string]any{"subtype": "ILC, mixed", "age": 65.0, "recurrence": false, "code": "012"}},
		{Line: 4, Slide: "TCGA-A7-A6VV-01Z-00-DX1.svs", Patient: "TCGA-A7-A6VV", Site: "A7", Labels: map[string]any{"code": "1"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestReadTableOfSpreadsheets(t *testing.T) {
	got, err := cohort.ReadTable(file(t, "slide;mpp;grade\na.svs;0,25;2\n"), map[string]coverslip.LabelKind{"grade": coverslip.CategoryLabel})
	if err != nil || !reflect.DeepEqual(got[0].Labels, map[string]any{"mpp": 0.25, "grade": "2"}) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err = cohort.ReadTable(file(t, "path\tok\n/x/a.svs\tTRUE\n"), nil); err != nil || got[0].Slide != "/x/a.svs" || got[0].Labels["ok"] != true {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestReadTableRefuses(t *testing.T) {
	number := map[string]coverslip.LabelKind{"age": coverslip.NumberLabel}
	for name, c := range map[string]struct{ text, says string }{
		"Empty":             {"", "no lines"},
		"HeadingOnly":       {"slide,age\n", "no lines"},
		"NoSlideColumn":     {"age\n3\n", "no column names the slides"},
		"NoSlideInALine":    {"slide,age\na,1\n,2\n", "line 3: it names no slide"},
		"TextAmongNumbers":  {"slide,age\na,1\nb,old\n", `line 3: column age: "old" is no number`},
		"TwoColumnsOneName": {"slide,x,X\na,1,2\n", "two columns"},
		"MissingCell":       {"slide,age\na\n", "line 2"},
		"NoText":            {"\x00\x01slide", "no text"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := cohort.ReadTable(file(t, c.text), number)
			if coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), c.says) || coverslip.HintOf(err) == "" {
				t.Errorf("%v, want %s", err, c.says)
			}
		})
	}
	if _, err := cohort.ReadTable("nowhere.csv", nil); coverslip.KindOf(err) != coverslip.NotFound {
		t.Error(err)
	}
}

func FuzzReadTable(f *testing.F) {
	f.Add("slide,a\nx,1\n")
	f.Add("\ufeffslide;a\nx;0,5\n")
	f.Add("slide\tpatient\n\"x\ty\n")
	path := filepath.Join(f.TempDir(), "t.csv")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		rows, err := cohort.ReadTable(path, nil)
		if err != nil && (coverslip.KindOf(err) == coverslip.Internal || coverslip.HintOf(err) == "") {
			t.Error(err)
		}
		for _, r := range rows {
			if r.Slide == "" || r.Line < 2 {
				t.Errorf("%+v", r)
			}
		}
	})
}
