package ingest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"coverslip"
	"coverslip/encoder/augment"
	"coverslip/storage/bagfile"
	"coverslip/storage/queue"
	"coverslip/tiler"
	"coverslip/tiler/tissue"
)

// viewsOf makes the views of the bundled slide and returns their bag's bytes and how many tiles were
// encoded.
func (b *bench) viewsOf(t *testing.T, views coverslip.Views) ([]byte, int) {
	t.Helper()
	out, err := b.Register(t.Context(), bundled, 0)
	if err != nil {
		t.Fatal(err)
	}
	count := &counting{Encoder: b.Encoder}
	b.Encoder = count
	defer func() { b.Encoder = count.Encoder }()
	if err := b.Work(t.Context(), queue.Job{Slide: out.Slide.ID, Views: &views}, queue.Attempt{Number: 1, Last: true}); err != nil {
		t.Fatal(err)
	}
	bags, err := b.DB.Bags(t.Context(), out.Slide.ID, b.Model.Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, bag := range bags {
		if bag.Views != nil && *bag.Views == views {
			return b.file(t, bag), int(count.tiles.Load())
		}
	}
	t.Fatalf("no bag of these views among %d", len(bags))
	return nil, 0
}

func preset(t *testing.T, name string) string {
	t.Helper()
	spec, err := augment.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return spec.String()
}

// TestViewsAreTheTilesAugmented makes each row again, one by one, from the slide.
func TestViewsAreTheTilesAugmented(t *testing.T) {
	b := newBench(t)
	views := coverslip.Views{Count: 4, Tiles: 20, Augment: preset(t, "gigassl"), Seed: 5}
	file, encoded := b.viewsOf(t, views)
	if encoded != 80 {
		t.Errorf("%d tiles encoded for 4 views of 20", encoded)
	}
	bag, err := bagfile.OpenViews(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	if bag.Views() != 4 || bag.Tiles() != 20 || bag.Metadata().Views == "" {
		t.Fatalf("%d views of %d", bag.Views(), bag.Tiles())
	}
	slide, err := tiler.Open(t.Context(), bundled)
	if err != nil {
		t.Fatal(err)
	}
	defer slide.Close()
	plan, _, err := slide.Plan(t.Context(), b.Plan, tissue.Default())
	if err != nil {
		t.Fatal(err)
	}
	spec, err := augment.Parse("gigassl")
	if err != nil {
		t.Fatal(err)
	}
	tiles, size := slide.Tiles(plan), plan.Size
	pixels, changed := make([]uint8, size*size*3), make([]uint8, size*size*3)
	got, want, coords := make([]float32, 3), make([]float32, 3), make([]int64, 2)
	var scratch augment.Scratch
	repeated := map[string]bool{}
	for row := range 80 {
		if err := errors.Join(bag.Features(got, row, 1), bag.Coords(coords, row, 1)); err != nil {
			t.Fatal(err)
		}
		found := false
		for i, tile := range plan.Tiles {
			if tile.X != coords[0] || tile.Y != coords[1] {
				continue
			}
			found = true
			if err := tiles.ReadTile(t.Context(), pixels, i); err != nil {
				t.Fatal(err)
			}
		}
		if !found {
			t.Fatalf("row %d lies at %v, where no tile is", row, coords)
		}
		spec.Draw(5, row/20).Apply(changed, size, augment.Tile{Pixels: pixels, Size: size, Index: uint64(row)}, augment.Slide{}, &scratch)
		if err := b.Encoder.Encode(t.Context(), want, changed, 1); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("row %d is %v, made by hand %v", row, got, want)
		}
		repeated[fmt.Sprint(row/20, coords)] = true
	}
	if len(repeated) == 80 {
		t.Error("20 draws with replacement never met a tile twice in four views") // of 60 tiles: odds of one in a million
	}
}

func TestViewsFromThreeTissueTiles(t *testing.T) {
	b := newBench(t)
	b.Plan.MPP = 6 // the slide is a few tiles then
	views := coverslip.Views{Count: 3, Tiles: 16, Augment: preset(t, "histo"), Seed: 1}
	file, _ := b.viewsOf(t, views)
	if bag, err := bagfile.OpenViews(bytes.NewReader(file), int64(len(file))); err != nil || bag.Views() != 3 || bag.Tiles() != 16 {
		t.Errorf("%v", err)
	}
}

func TestViewsGoOnFromTheirCheckpoint(t *testing.T) {
	views := coverslip.Views{Count: 6, Tiles: 16, Augment: preset(t, "histo"), Seed: 2}
	want, _ := newBench(t).viewsOf(t, views)
	b := newBench(t)
	b.Checkpoint, b.Workers = 16, 1
	out, err := b.Register(t.Context(), bundled, 0)
	if err != nil {
		t.Fatal(err)
	}
	whole := b.Encoder
	ctx, cancel := context.WithCancel(t.Context())
	b.Encoder = &counting{Encoder: whole, after: 64, stop: cancel}
	if err := b.Work(ctx, queue.Job{Slide: out.Slide.ID, Views: &views}, queue.Attempt{Number: 1}); !errors.Is(err, context.Canceled) {
		t.Fatalf("the worker did not stop: %v", err)
	}
	if s, err := b.DB.Slide(t.Context(), out.Slide.ID); err != nil || s.State != coverslip.Queued {
		t.Errorf("the slide's own state is %s, %v", s.State, err)
	}
	kept := len(b.blobs(t))
	b.Encoder = whole
	got, encoded := b.viewsOf(t, views)
	if kept == 0 || encoded != 96-16*kept {
		t.Errorf("%d of 96 tiles encoded after %d checkpoints of 16", encoded, kept)
	}
	if !bytes.Equal(got, want) {
		t.Error("the bag is not that of a run without a stop")
	}
}
