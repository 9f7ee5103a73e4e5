package cohort_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
	"coverslip/internal/cohort"
)

const (
	head   = "id\tfilename\tmd5\tsize\tstate\n"
	first  = "0003d0d1-2c8f-4d4b-9a7f-d3b1a4f3a6b1\tTCGA-A7-A6VV-01Z-00-DX1.2B5A0D3F-8C2B-4B59-8C8C-1B0A5D9F6E7A.svs\tD41D8CD98F00B204E9800998ECF8427E\t1234\treleased\n"
	second = "1113d0d1-2c8f-4d4b-9a7f-d3b1a4f3a6b1\tTCGA-XX-0001-11A-01-TS1.svs\t\t99\tlive\n"
	text   = "2223d0d1-2c8f-4d4b-9a7f-d3b1a4f3a6b1\treport.pdf\t\t99\treleased\n"
)

func TestReadManifest(t *testing.T) {
	for name, content := range map[string]string{
		"Plain":             head + first + second + text,
		"WindowsLineEnds":   strings.ReplaceAll(head+first+second+text, "\n", "\r\n"),
		"OtherOrder":        "md5\tstate\tsize\tid\tfilename\n" + reorder(first) + reorder(second) + reorder(text),
		"LineTwice":         head + first + second + first + text,
		"ByteOrderMark":     "\ufeff" + head + first + second + text,
		"EmptyLinesAtEnd":   head + first + second + text + "\n\r\n",
		"NoNewlineAtTheEnd": strings.TrimSuffix(head+text+first+second, "\n"),
	} {
		t.Run(name, func(t *testing.T) {
			m, err := cohort.ReadManifest(file(t, content))
			if err != nil || len(m.Slides) != 2 || m.Others != 1 || m.Repeats != strings.Count(content, "0003d0d1")-1 {
				t.Fatalf("%+v, %v", m, err)
			}
			a, b := m.Slides[0], m.Slides[1]
			if a.MD5 != "d41d8cd98f00b204e9800998ecf8427e" || a.Bytes != 1234 || a.Code.Patient != "TCGA-A7-A6VV" || a.Code.Site != "A7" || !a.Code.Diagnostic() || b.MD5 != "" || b.Code.Site != "XX" {
				t.Errorf("%+v\n%+v", a, b)
			}
		})
	}
}

func reorder(line string) string {
	c := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
	return strings.Join([]string{c[2], c[4], c[3], c[0], c[1]}, "\t") + "\n"
}

func TestReadManifestRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"Empty":               {"", "no slides"},
		"NoSlides":            {head + text, "no slides"},
		"NoHeading":           {first, "no column id"},
		"UnknownState":        {head + first + strings.Replace(second, "live", "redacted", 1), `line 3 of the manifest: file TCGA-XX-0001-11A-01-TS1.svs is in state "redacted"`},
		"OneIDTwoFiles":       {head + first + strings.Replace(second, "1113d0d1", "0003d0d1", 1), "line 3 of the manifest: id 0003d0d1-2c8f-4d4b-9a7f-d3b1a4f3a6b1 stands in line 2"},
		"NoID":                {head + strings.Replace(first, "0003d0d1", "", 1), "is no id"},
		"SizeIsNoNumber":      {head + strings.Replace(first, "1234", "1,2", 1), "is no size"},
		"SizeZero":            {head + strings.Replace(first, "1234", "0", 1), "is no size"},
		"MD5TooShort":         {head + strings.Replace(first, "D41D", "", 1), "is no MD5"},
		"NameLeadsElsewhere":  {head + strings.Replace(second, "TCGA-XX-0001-11A-01-TS1.svs", "../../etc/x.svs", 1), "is no file name"},
		"NameIsAWindowsPath":  {head + strings.Replace(second, "TCGA-XX-0001-11A-01-TS1.svs", `..\x.svs`, 1), "is no file name"},
		"CellsPartedBySpaces": {strings.ReplaceAll(head+first, "\t", " "), "no column"},
		"NoText":              {"\x00\x00" + head, "no text"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := cohort.ReadManifest(file(t, c.text))
			if coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), c.says) || coverslip.HintOf(err) == "" {
				t.Errorf("%v, want %s", err, c.says)
			}
		})
	}
}

func FuzzReadManifest(f *testing.F) {
	f.Add(head + first + second)
	f.Add("id\tfilename\tsize\n")
	path := filepath.Join(f.TempDir(), "m.txt")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := cohort.ReadManifest(path)
		if err != nil && (coverslip.KindOf(err) == coverslip.Internal || coverslip.HintOf(err) == "") {
			t.Error(err)
		}
		for _, s := range m.Slides {
			if strings.ContainsAny(s.Name, `/\`) || s.Bytes <= 0 || s.ID == "" {
				t.Errorf("%+v", s)
			}
		}
	})
}
