package storage_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"coverslip"
	"coverslip/storage/storagetest"
)

func TestRuns(t *testing.T) {
	db := storagetest.New(t)
	slide := coverslip.Slide{ID: coverslip.SlideID(strings.Repeat("1", 64)), Name: "a.svs", Location: "/a.svs"}
	if _, _, err := db.Register(t.Context(), slide); err != nil {
		t.Fatal(err)
	}
	run := coverslip.Run{ID: strings.Repeat("ab", 32), Kind: coverslip.MILModel, Cohort: "gone", Label: "tumour type", Classes: []string{"a", "b"},
		Settings: json.RawMessage(`{"seed": 1}`), Methods: []coverslip.Method{{Name: "abmil"}, {Name: "mean pooling", Baseline: true, Note: "C 10"}},
		Splits: "slide_id\tfold_0\na\ttest\n", LeftOut: []coverslip.LeftOut{{Slide: "b.svs", Reason: "no label"}}, Notes: []string{"no patient leaks"}}
	said := []coverslip.Prediction{
		{Method: "abmil", Split: "0", Slide: slide.ID, Patient: "P", P: []float64{0.1, 0.9}, Truth: 1},
		{Method: "mean pooling", Split: "0", Slide: slide.ID, P: []float64{1. / 3, 2. / 3}, Truth: 1, Time: 2.5, Event: true},
	}
	for i, want := range []bool{true, false} { // the second time it is there
		created, err := db.PutRun(t.Context(), run, said)
		if err != nil || created != want {
			t.Errorf("write %d: created %v, %v", i, created, err)
		}
	}
	got, err := db.RunByPrefix(t.Context(), "ababab")
	fatal(t, err)
	if got.Created.IsZero() {
		t.Error("it has no time")
	}
	run.Created = got.Created
	if !reflect.DeepEqual(got, run) {
		t.Errorf("got %+v, want %+v", got, run)
	}
	if p, err := db.Predictions(t.Context(), run.ID); err != nil || !reflect.DeepEqual(p, said) {
		t.Errorf("got %+v, %v", p, err)
	}

	other := run
	other.ID = "ababab" + strings.Repeat("0", 58)
	if _, err := db.PutRun(t.Context(), other, []coverslip.Prediction{{Method: "m", Slide: coverslip.SlideID(strings.Repeat("9", 64)), P: []float64{1}}}); err == nil {
		t.Error("a prediction of a slide that is not there was kept")
	}
	if runs, err := db.Runs(t.Context()); err != nil || len(runs) != 1 {
		t.Errorf("half a run is there: %d, %v", len(runs), err)
	}
	if _, err := db.PutRun(t.Context(), other, nil); err != nil {
		t.Fatal(err)
	}
	for prefix, kind := range map[string]coverslip.Kind{"ababab": coverslip.Conflict, "abababab": "", "cdcdcd": coverslip.NotFound, "ab": coverslip.Invalid, "zzzzzz": coverslip.Invalid} {
		if _, err := db.RunByPrefix(t.Context(), prefix); coverslip.KindOf(err) != kind {
			t.Errorf("%s: %v", prefix, err)
		}
	}
}
