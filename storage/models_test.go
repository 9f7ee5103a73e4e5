package storage_test

import (
	"reflect"
	"strings"
	"testing"

	"coverslip"
	"coverslip/storage/storagetest"
)

func TestAddedModels(t *testing.T) {
	db := storagetest.New(t)
	mine := coverslip.Model{Kind: coverslip.EncoderModel, Name: "mine", SHA256: strings.Repeat("a", 64), SpecSHA256: strings.Repeat("1", 64),
		Dim: 384, TileSize: 224, TileMPP: 0.5, Licence: "MIT", Source: "here"}
	fatal(t, db.AddModel(t.Context(), mine, []byte("name: mine")))
	fatal(t, db.AddModel(t.Context(), mine, []byte("name: mine"))) // again
	fatal(t, db.PutModel(t.Context(), mine))                       // as it is used

	got, err := db.AddedModel(t.Context(), coverslip.EncoderModel, "mine")
	if err != nil || !reflect.DeepEqual(got.Model, mine) || got.Spec != "name: mine" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := db.AddedModel(t.Context(), coverslip.AggregatorModel, "mine"); coverslip.KindOf(err) != coverslip.NotFound {
		t.Errorf("of another kind: %v", err)
	}

	other := mine
	other.SHA256 = strings.Repeat("b", 64)
	if err := db.AddModel(t.Context(), other, []byte("name: mine")); coverslip.KindOf(err) != coverslip.Conflict || !strings.Contains(err.Error(), "has this name") {
		t.Errorf("another of its name: %v", err)
	}
	renamed := mine
	renamed.Name = "yours"
	if err := db.AddModel(t.Context(), renamed, []byte("name: yours")); coverslip.KindOf(err) != coverslip.Conflict || !strings.Contains(err.Error(), "as mine") {
		t.Errorf("the same under another name: %v", err)
	}

	// The same file used in another way is another model; what was only used is not listed.
	used := mine
	used.Name, used.SpecSHA256 = "mine:mean", strings.Repeat("2", 64)
	fatal(t, db.PutModel(t.Context(), used))
	second := mine
	second.Name, second.SpecSHA256 = "a-second", strings.Repeat("3", 64)
	fatal(t, db.AddModel(t.Context(), second, []byte("name: a-second")))
	all, err := db.AddedModels(t.Context(), coverslip.EncoderModel)
	if err != nil || len(all) != 2 || all[0].Name != "a-second" || all[1].Name != "mine" {
		t.Errorf("listed %+v, %v", all, err)
	}
}
