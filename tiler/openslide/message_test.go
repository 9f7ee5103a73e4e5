package openslide

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestMessagesComeBackAsTheyWere(t *testing.T) {
	r := request{slot: 3, level: 2, x: 1 << 40, y: -1, w: 700, h: 600}
	if got, err := parseRequest(r.encode(), 4); err != nil || got != r {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseRequest(r.encode(), 3); err == nil {
		t.Error("a slot that is not there")
	}
	a := answer{1, "why"}
	if got, err := parseAnswer(a.encode(), 2); err != nil || got != a {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := parseAnswer(answer{0, strings.Repeat("x", 5000)}.encode(), 1); err != nil || len(got.why) != maxText {
		t.Errorf("%d, %v", len(got.why), err)
	}
}

// Fault 13: what a process that was taken over may say.
func FuzzParse(f *testing.F) {
	opened, err := json.Marshal(opening{Description: Description{Levels: []Level{{10, 10, 1}}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{opened, []byte(`{"why":"no","kind":"unsupported"}`), answer{1, "why"}.encode(), request{w: 1, h: 1}.encode(), nil} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		if d, err := parseOpening(message); err == nil {
			for _, l := range d.Levels {
				if l.Width < 1 || l.Height < 1 || l.Width > maxEdge || l.Height > maxEdge || !(l.Downsample >= 1) {
					t.Errorf("%+v", l)
				}
			}
		}
		if a, err := parseAnswer(message, 2); err == nil && (a.slot < 0 || a.slot > 1 || !bytes.Equal(a.encode(), message)) {
			t.Errorf("%+v", a)
		}
		if r, err := parseRequest(message, 2); err == nil && (r.slot < 0 || r.slot > 1 || int(r.w)*int(r.h)*4 > slotBytes || !bytes.Equal(r.encode(), message)) {
			t.Errorf("%+v", r)
		}
	})
}
