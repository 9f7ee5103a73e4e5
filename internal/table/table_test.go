package table_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"coverslip"
	"coverslip/internal/table"
)

func TestReadsWhatSpreadsheetsPandasAndRWrite(t *testing.T) {
	for name, c := range map[string]struct{ text, decimal string }{
		"commas":         {"slide,patient,note\na,,x y\nb,p,\n", ""},
		"tabs":           {"slide\tpatient\tnote\na\t\tx y\nb\tp\t\n", ""},
		"semicolons":     {"slide;patient;note\na;;x y\nb;p;\n", ","},
		"a mark, CRLF":   {"\ufeffslide,patient,note\r\na,,x y\r\nb,p,\r\n", ""},
		"quotes":         {"\"slide\",\"patient\",\"note\"\n\"a\",,\"x y\"\nb, \"p\",\n", ""},
		"spaces":         {" slide , patient,note \n a ,  , x y\nb,p ,\n", ""},
		"no end of line": {"slide,patient,note\na,,x y\nb,p,", ""},
	} {
		got, err := table.Read(strings.NewReader(c.text), "x.csv")
		want := &table.Table{Path: "x.csv", Columns: []string{"slide", "patient", "note"}, Decimal: c.decimal,
			Lines: []table.Line{{Number: 2, Cells: []string{"a", "", "x y"}}, {Number: 3, Cells: []string{"b", "p", ""}}}}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestLinesAreCountedAsTheyStandInTheFile(t *testing.T) {
	got, err := table.Read(strings.NewReader("a,b\n\n\"1\n2\",x\n3,y\n"), "")
	if err != nil || len(got.Lines) != 2 || got.Lines[0].Number != 3 || got.Lines[1].Number != 5 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestColumn(t *testing.T) {
	got, err := table.Read(strings.NewReader("ID,Slide,slide\n1,2,3\n"), "")
	if err != nil {
		t.Fatal(err)
	}
	for names, want := range map[string]int{"slide": 2, "SLIDE": 1, "none": -1, "none id": 0, "id slide": 0} {
		if i := got.Column(strings.Fields(names)...); i != want {
			t.Errorf("%s: %d, want %d", names, i, want)
		}
	}
}

func TestRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"empty":            {"", "no lines"},
		"heading only":     {"a,b\n", "no lines"},
		"a mark only":      {"\ufeff", "no lines"},
		"a cell short":     {"a,b\n1,2\n3\n", "line 3: wrong number of fields"},
		"a cell more":      {"a\tb\n1\t2\t3\n", "line 2: wrong number of fields"},
		"quote not closed": {"a,b\n\"1,2\n", "line 2"},
		"no text":          {"\x00\x01slide", "no text"},
	} {
		_, err := table.Read(strings.NewReader(c.text), "x.csv")
		if coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "x.csv") || coverslip.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := table.ReadFile(filepath.Join(t.TempDir(), "none")); coverslip.KindOf(err) != coverslip.NotFound {
		t.Error(err)
	}
	if _, err := table.ReadFile(t.TempDir()); coverslip.KindOf(err) != coverslip.Environment {
		t.Error(err)
	}
	huge := filepath.Join(t.TempDir(), "huge.csv")
	if err := os.WriteFile(huge, []byte("a,b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, 1<<30); err != nil {
		t.Fatal(err)
	}
	if _, err := table.ReadFile(huge); coverslip.KindOf(err) != coverslip.TooLarge {
		t.Error(err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("slide,mpp\na,0.5\n")
	f.Add("slide;mpp\n\"a\";0,5\n")
	f.Add("\ufeffslide\tmpp\na\t\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := table.Read(strings.NewReader(text), "x")
		if err != nil {
			return
		}
		for _, line := range got.Lines {
			if len(line.Cells) != len(got.Columns) || line.Number < 2 {
				t.Errorf("%q: %+v under %d columns", text, line, len(got.Columns))
			}
		}
	})
}
