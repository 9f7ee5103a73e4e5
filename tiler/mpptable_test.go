package tiler

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"coverslip"
)

func TestFault7MPPTable(t *testing.T) {
	id := coverslip.SlideID(strings.Repeat("ab", 32))
	for name, text := range map[string]string{
		"Commas":        "slide,mpp\n/data/a.svs,0.25\nb.svs,0.5\nc,1\n" + string(id) + ",0.125\nspare.svs,2\n",
		"DecimalCommas": "slide;mpp\n/data/a.svs;0,25\nb.svs;0,5\nc;1\n" + string(id) + ";0,125\nspare.svs;2\n",
		"Quoted":        "slide,mpp\n/data/a.svs,\"0,25\"\nb.svs, \"0,5\"\nc,1\n" + string(id) + ",0.125\nspare.svs,2\n",
		"Spreadsheet":   "\xef\xbb\xbfpatient\tMPP\tSlide\r\nx\t0,25\t/data/a.svs\r\nx\t0.5\tb.svs\r\nx\t1\tc\r\nx\t0.125\t" + string(id) + "\r\nx\t2\tspare.svs\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			m, err := ReadMPPs(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				place string
				id    coverslip.SlideID
				want  float64
			}{
				{"/data/a.svs", "", 0.25}, {"a.svs", "", 0}, {"/elsewhere/b.svs", "", 0.5}, {"s3://bucket/x/b.svs?endpoint=http://h:1", "", 0.5},
				{"c.ndpi", "", 1}, {"c.tar.gz", "", 0}, {"renamed.svs", id, 0.125}, {"renamed.svs", "", 0},
			} {
				if got := m.Of(c.place, c.id); got != c.want {
					t.Errorf("%s: %g, want %g", c.place, got, c.want)
				}
			}
			if left := m.Unused(); !slices.Equal(left, []string{"spare.svs"}) {
				t.Errorf("unused: %v", left)
			}
		})
	}
}

func TestFault7MPPTableRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		line int
		says string
	}{
		"Nothing":            {"", 0, "no lines"},
		"NoHeadings":         {"a.svs,0.25\nb.svs,0.5\n", 1, "without slide and mpp"},
		"Twice":              {"slide,mpp\na,0.25\n\nb,0.5\na,0.5\n", 5, "line 2"},
		"NoName":             {"slide,mpp\n,0.25\n", 2, "no slide"},
		"NoValue":            {"slide,mpp\na,\n", 2, "not a number"},
		"Zero":               {"slide,mpp\na,0\n", 2, "0 µm"},
		"NaN":                {"slide,mpp\na,0.5\nb,NaN\n", 3, "NaN"},
		"Magnification":      {"slide,mpp\na,40\n", 2, "40 µm"},
		"CommaWithoutQuotes": {"slide,mpp\na.svs,0,499\n", 2, "fields"},
		"QuoteNotClosed":     {"slide,mpp\n\"a.svs,0.25\n", 2, "quote"},
	} {
		m, err := ReadMPPs(strings.NewReader(c.text))
		if m != nil || coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" ||
			c.line > 0 && !strings.Contains(err.Error(), fmt.Sprintf("line %d: ", c.line)) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzFault13MPPTable(f *testing.F) {
	f.Add("slide,mpp\na,0.5\n")
	f.Add("slide;mpp\n\"a\";0,5\n")
	f.Fuzz(func(_ *testing.T, text string) {
		if m, err := ReadMPPs(strings.NewReader(text)); err == nil {
			m.Of("a", "b")
			m.Unused()
		}
	})
}
