package storage_test

import (
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"coverslip"
	"coverslip/storage/storagetest"
)

func TestCohort(t *testing.T) {
	db := storagetest.New(t)
	a, b := register(t, db, slide("a")), register(t, db, slide("b"))
	fatal(t, db.AddToCohort(t.Context(), "crc",
		coverslip.Member{Slide: a.ID, Patient: "p1", Site: "AA", Labels: map[string]any{"msi": true, "grade": 2.5, "type": "x"}},
		coverslip.Member{Slide: b.ID, Patient: "p1", Labels: map[string]any{"grade": 3.0}}))

	members, err := db.Members(t.Context(), "crc")
	fatal(t, err)
	want := []coverslip.Member{
		{Slide: a.ID, Name: a.Name, Patient: "p1", Site: "AA", Labels: map[string]any{"msi": true, "grade": 2.5, "type": "x"}},
		{Slide: b.ID, Name: b.Name, Patient: "p1", Labels: map[string]any{"grade": 3.0}}}
	slices.SortFunc(want, func(a, b coverslip.Member) int { return strings.Compare(string(a.Slide), string(b.Slide)) })
	if !reflect.DeepEqual(members, want) {
		t.Errorf("got  %+v\nwant %+v", members, want)
	}
	c, err := db.Cohort(t.Context(), "crc")
	fatal(t, err)
	kinds := map[string]coverslip.LabelColumn{}
	for _, l := range c.Labels {
		kinds[l.Name] = l
	}
	if c.Slides != 2 || c.Patients != 1 || c.Sites != 1 || len(kinds) != 3 || kinds["grade"] != (coverslip.LabelColumn{Name: "grade", Kind: coverslip.NumberLabel, Slides: 2}) ||
		kinds["msi"].Kind != coverslip.BoolLabel || kinds["type"].Kind != coverslip.CategoryLabel {
		t.Errorf("%+v", c)
	}

	err = db.AddToCohort(t.Context(), "crc", coverslip.Member{Slide: a.ID, Labels: map[string]any{"grade": "high"}})
	wantKind(t, err, coverslip.Invalid)
	_, err = db.Cohort(t.Context(), "none")
	wantKind(t, err, coverslip.NotFound)
	_, err = db.Members(t.Context(), "none")
	wantKind(t, err, coverslip.NotFound)
}

func TestAVersionOfACohortStays(t *testing.T) {
	db := storagetest.New(t)
	a, b := register(t, db, slide("a")), register(t, db, slide("b"))
	fatal(t, db.AddToCohort(t.Context(), "crc", coverslip.Member{Slide: a.ID, Labels: map[string]any{"grade": 2.0}}))
	version, err := db.Freeze(t.Context(), "crc")
	fatal(t, err)
	if version != "crc@1" {
		t.Error(version)
	}
	fatal(t, db.AddToCohort(t.Context(), "crc", coverslip.Member{Slide: b.ID}, coverslip.Member{Slide: a.ID, Labels: map[string]any{"grade": 3.0}}))
	members, err := db.Members(t.Context(), "crc@1")
	fatal(t, err)
	if len(members) != 1 || members[0].Slide != a.ID || members[0].Labels["grade"] != 2.0 {
		t.Errorf("%+v", members)
	}
	wantKind(t, db.AddToCohort(t.Context(), "crc@1", coverslip.Member{Slide: b.ID}), coverslip.Conflict)
	_, err = db.Freeze(t.Context(), "crc@1")
	wantKind(t, err, coverslip.Conflict)
	_, err = db.Freeze(t.Context(), "none")
	wantKind(t, err, coverslip.NotFound)

	var all sync.WaitGroup
	versions := make([]string, 4)
	for i := range versions {
		all.Go(func() {
			v, err := db.Freeze(t.Context(), "crc")
			if err != nil {
				t.Error(err)
			}
			versions[i] = v
		})
	}
	all.Wait()
	slices.Sort(versions)
	if !slices.Equal(versions, []string{"crc@2", "crc@3", "crc@4", "crc@5"}) {
		t.Error(versions)
	}
	if c, err := db.Cohort(t.Context(), "crc@2"); err != nil || c.VersionOf != "crc" || c.Slides != 2 || len(c.Labels) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}
