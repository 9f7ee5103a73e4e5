package storage_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/storagetest"
)

func TestStudies(t *testing.T) {
	db := storagetest.New(t)
	s := storage.Study{Name: "stain", Text: "name: stain\n", Command: "coverslip study run stain.yaml", Plan: json.RawMessage(`{"name": "stain"}`), Versions: map[string]string{"go": "1"}}
	a, b := strings.Repeat("a", 32), strings.Repeat("b", 32)
	runs := []storage.StudyRun{
		{Run: 1, Levels: map[string]string{"rate": "1"}, Seed: 3, Evaluation: "probe", Key: a},
		{Run: 2, Levels: map[string]string{"rate": "2"}, Seed: math.MaxInt64, Evaluation: "probe", Key: b},
		{Run: 3, Levels: map[string]string{"rate": "3"}, Seed: 3, Evaluation: "probe", Key: a}, // came out the same
	}
	for range 2 { // again: nothing changes
		fatal(t, db.PutStudy(t.Context(), s, runs, false))
	}
	figures := []storage.StudyFigure{{Figure: "auc", Training: "n=5", Fold: "0", Value: 0.75}, {Figure: "auc", Training: "n=5", Fold: "1", Value: math.NaN()}}
	for range 2 {
		fatal(t, db.PutFigures(t.Context(), a, figures))
	}
	if there, err := db.EvaluationsAmong(t.Context(), []string{a, b}); err != nil || !there[a] || there[b] {
		t.Error(there, err)
	}
	if err := db.PutFigures(t.Context(), b, []storage.StudyFigure{{Figure: "auc"}, {Figure: "auc"}}); err == nil {
		t.Error("the same figure twice was kept")
	}
	if there, err := db.EvaluationsAmong(t.Context(), []string{b}); err != nil || there[b] {
		t.Error("figures that were not kept count as there")
	}
	rows, err := db.StudyResults(t.Context(), "stain", false)
	fatal(t, err)
	if len(rows) != 4 || rows[0].Run != 1 || rows[2].Run != 3 || rows[0].Value != 0.75 || !math.IsNaN(rows[1].Value) || rows[3].Levels["rate"] != "3" || rows[0].Seed != 3 {
		t.Errorf("%+v", rows)
	}

	t.Run("TwoOfOneName", func(t *testing.T) {
		other := s
		other.Text = "name: stain\nquestion: another\n"
		wantKind(t, db.PutStudy(t.Context(), other, nil, false), coverslip.Conflict)
		if rows, err := db.StudyResults(t.Context(), "stain", false); err != nil || len(rows) != 4 {
			t.Error("the first one lost its results")
		}
		other.Quick = true // is one of its own
		fatal(t, db.PutStudy(t.Context(), other, nil, false))
		other.Quick = false
		fatal(t, db.PutStudy(t.Context(), other, runs[:1], true))
		if rows, err := db.StudyResults(t.Context(), "stain", false); err != nil || len(rows) != 2 {
			t.Error("replaced, it does not share what is the same", len(rows), err)
		}
		all, err := db.Studies(t.Context())
		if err != nil || len(all) != 2 {
			t.Error(len(all), err)
		}
		_, err = db.Study(t.Context(), "none", false)
		wantKind(t, err, coverslip.NotFound)
	})
	t.Run("OneProcessAtATime", func(t *testing.T) {
		release, err := db.LockStudy(t.Context(), "stain")
		fatal(t, err)
		_, err = db.LockStudy(t.Context(), "stain")
		wantKind(t, err, coverslip.Conflict)
		free, err := db.LockStudy(t.Context(), "another")
		fatal(t, err)
		free()
		release()
		again, err := db.LockStudy(t.Context(), "stain")
		fatal(t, err)
		again()
	})
	t.Run("Outcomes", func(t *testing.T) {
		fatal(t, db.SetStudyOutcomes(t.Context(), "stain", false, json.RawMessage(`[{"fate": "made"}]`)))
		s, err := db.Study(t.Context(), "stain", false)
		if err != nil || !strings.Contains(string(s.Outcomes), "made") || s.Versions["go"] != "1" {
			t.Error(string(s.Outcomes), err)
		}
	})
}
