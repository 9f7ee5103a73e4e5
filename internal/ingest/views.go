package ingest

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"

	"coverslip"
	"coverslip/encoder"
	"coverslip/encoder/augment"
	"coverslip/storage/bagfile"
	"coverslip/tiler"
)

// makeViews makes sure of a slide's bag of views. Its state is not touched.
func (in *Ingest) makeViews(ctx context.Context, slide coverslip.Slide, views coverslip.Views) error {
	plan := in.planOf(slide, coverslip.Budget{})
	key := BagKey(slide.ID, plan, in.Mask, in.Model, &views)
	if there, err := found(second(in.DB.Bag(ctx, key))); err != nil || there {
		return err
	}
	files, release, err := in.Local(ctx, slide)
	if err != nil {
		return err
	}
	defer release()
	if err := in.unchanged(ctx, slide, files); err != nil {
		return err
	}
	spool, err := os.CreateTemp(in.Spool, "bag-*")
	if err != nil {
		return diskError("make room for the bag", in.Spool, err)
	}
	defer os.Remove(spool.Name()) //nolint:errcheck // swept at the next start
	defer spool.Close()
	job := reading{row: slide, files: files, plan: plan, kept: &checkpoints{in.Blobs, key, in.Model.Dim, in.checkpointRows(), in.attempt.Kept},
		progress: func(done, total int) {
			if in.Progress != nil {
				in.Progress(slide.ID, done, total)
			}
		}}
	made, timings, err := in.encodeViews(ctx, job, views, spool)
	if err != nil {
		return renamed(err, slide.Name)
	}
	bag := coverslip.Bag{Key: key, Slide: slide.ID, Encoder: in.Model.Name, Dim: in.Model.Dim, Plan: made.PlanParams, Views: &views, Timings: timings}
	if len(made.Tiles) > 0 {
		bag.Tiles = views.Count * views.Tiles
	}
	if _, err = in.publish(ctx, bag, spool); err != nil {
		return err
	}
	if err := job.kept.remove(ctx); err != nil { // nobody reads them any more
		in.Log.Warn("checkpoints were left behind", "err", err)
	}
	return nil
}

func second[T any](_ T, err error) error { return err }

// drawViews returns which of n tiles each view holds, [V][N]: drawn with replacement, so that a slide
// of three tiles has views too.
func drawViews(n int, views coverslip.Views) [][]int {
	drawn := make([][]int, views.Count)
	for v := range drawn {
		if n == 0 {
			continue
		}
		rng := rand.New(rand.NewPCG(views.Seed, uint64(v)))
		drawn[v] = make([]int, views.Tiles)
		for k := range drawn[v] {
			drawn[v][k] = rng.IntN(n)
		}
	}
	return drawn
}

// encodeViews is encode for views. Tiles are taken in plan order, each decoded once and augmented for
// every view that holds it.
func (in *Ingest) encodeViews(ctx context.Context, job reading, views coverslip.Views, out *os.File) (coverslip.Plan, []coverslip.StageTime, error) {
	clock := in.stopwatch(ctx)
	spec, err := augment.Parse(views.Augment)
	if err != nil {
		return coverslip.Plan{}, nil, err
	}
	slide, err := tiler.OpenFiles(ctx, job.row.Name, job.files)
	if err != nil {
		return coverslip.Plan{}, nil, err
	}
	defer slide.Close()
	clock.lap("open")
	plan, _, err := slide.Plan(ctx, job.plan, in.Mask)
	if err != nil {
		return plan, nil, err
	}
	clock.lap("mask and plan")

	rows := make([][]coverslip.Tile, views.Count)
	var items []viewItem
	for v, drawn := range drawViews(len(plan.Tiles), views) {
		for k, tile := range drawn {
			rows[v] = append(rows[v], plan.Tiles[tile])
			items = append(items, viewItem{tile: tile, view: v, row: v*views.Tiles + k})
		}
	}
	slices.SortStableFunc(items, func(a, b viewItem) int { return cmp.Compare(a.tile, b.tile) })
	w, err := bagfile.NewViewWriter(out, in.metadata(job.row, slide, plan, &views), rows, in.Model.Dim)
	if err != nil {
		return plan, nil, err
	}
	augmented := make([]augment.View, views.Count)
	for v := range augmented {
		augmented[v] = spec.Draw(views.Seed, v)
	}
	look, err := measureSlide(ctx, slide, plan, spec)
	if err != nil {
		if !errors.Is(err, augment.ErrNoStain) {
			return plan, nil, err
		}
		in.Log.Warn("the slide's stain could not be found; the reference stands for it", "err", err)
	}
	pass := &pass{in: in, job: job, n: len(items), tile: func(i int) coverslip.Tile { return plan.Tiles[items[i].tile] },
		src: func(first, n int) encoder.TileReader {
			return newViewTiles(slide, plan, items[first:first+n], augmented, look)
		},
		sink: func(i int, features []float32) error { return w.Put(items[i].row, features) }}
	if err := pass.resume(ctx); err != nil {
		return plan, nil, err
	}
	if err := pass.run(ctx, len(items)); err != nil {
		return plan, nil, err
	}
	clock.lap("read, augment and encode")
	return plan, append(clock.times,
		coverslip.StageTime{Stage: "read and augment, summed over workers", Seconds: pass.spent.ReadSeconds},
		coverslip.StageTime{Stage: "encode, summed over workers", Seconds: pass.spent.EncodeSeconds}), w.Close()
}

// viewItem is one tile in one view.
type viewItem struct {
	tile int // in the plan
	view int
	row  int // in the bag
}

// viewTiles reads items, which are in the order of their tiles: a tile is decoded for the first of its
// items and let go after the last.
type viewTiles struct {
	tiles *tiler.Tiles
	size  int
	items []viewItem
	place []int // of each item's tile among those that are read
	views []augment.View
	slide augment.Slide

	scratch sync.Pool // *augment.Scratch

	mu    sync.Mutex
	held  map[int]*heldTile // by place
	spare [][]uint8
}

type heldTile struct {
	once   sync.Once
	pixels []uint8
	err    error
	left   int // items that still want it
}

func newViewTiles(slide *tiler.Slide, plan coverslip.Plan, items []viewItem, views []augment.View, look augment.Slide) *viewTiles {
	r := &viewTiles{size: plan.Size, items: items, views: views, slide: look, held: map[int]*heldTile{},
		scratch: sync.Pool{New: func() any { return new(augment.Scratch) }}}
	used := plan
	used.Tiles = nil
	for i, item := range items {
		if i == 0 || item.tile != items[i-1].tile {
			used.Tiles = append(used.Tiles, plan.Tiles[item.tile])
		}
		r.place = append(r.place, len(used.Tiles)-1)
	}
	for _, place := range r.place {
		if r.held[place] == nil {
			r.held[place] = &heldTile{}
		}
		r.held[place].left++
	}
	r.tiles = slide.Tiles(used)
	return r
}

func (r *viewTiles) ReadTile(ctx context.Context, dst []uint8, i int) error {
	place := r.place[i]
	r.mu.Lock()
	t := r.held[place]
	r.mu.Unlock()
	t.once.Do(func() {
		t.pixels = r.buffer()
		t.err = r.tiles.ReadTile(ctx, t.pixels, place)
	})
	if t.err != nil {
		return t.err
	}
	item := r.items[i]
	scratch, _ := r.scratch.Get().(*augment.Scratch)
	r.views[item.view].Apply(dst, r.size, augment.Tile{Pixels: t.pixels, Size: r.size, Index: uint64(item.row)}, r.slide, scratch) //nolint:gosec // a row is not negative
	r.scratch.Put(scratch)
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.left--; t.left == 0 {
		delete(r.held, place)
		r.spare = append(r.spare, t.pixels)
	}
	return nil
}

// stainTiles are read to find what colours a slide has.
const stainTiles = 16

// measureSlide finds what the transforms need to know of the slide, from tiles all over it.
func measureSlide(ctx context.Context, slide *tiler.Slide, plan coverslip.Plan, spec augment.Spec) (augment.Slide, error) {
	some := plan
	some.Tiles = tiler.Spread(plan.Tiles, 0)[:min(len(plan.Tiles), stainTiles)]
	size := plan.Size * plan.Size * 3
	pixels := make([]uint8, len(some.Tiles)*size)
	tiles := slide.Tiles(some)
	for i := range some.Tiles {
		if err := tiles.ReadTile(ctx, pixels[i*size:(i+1)*size], i); err != nil {
			return augment.Slide{}, err
		}
	}
	return spec.Measure(pixels)
}

// buffer takes one that nobody uses any more: there are as many as tiles are read at once.
func (r *viewTiles) buffer() []uint8 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.spare); n > 0 {
		b := r.spare[n-1]
		r.spare = r.spare[:n-1]
		return b
	}
	return make([]uint8, r.size*r.size*3)
}
