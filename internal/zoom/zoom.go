// Package zoom makes the deep zoom tiles that viewers ask for, of many slides, for many people at once,
// within bounds: so many slides are open, so many bytes of tiles are kept, as many tiles are made at a
// time as there are cores. How a slide is cut and read is tiler's business; where its bytes lie is known
// to whoever opens it.
package zoom

import (
	"container/list"
	"context"
	"errors"
	"runtime"
	"sync"

	"coverslip"
	"coverslip/tiler"
	"coverslip/tiler/vips"
)

const (
	// Slides is how many slides should be open at once. Each keeps up to 64 MiB of decoded tiles.
	Slides = 4
	// Bytes is how much of the tiles that were made should be kept: some thousand of them, the screens
	// of some twenty people.
	Bytes = 64 << 20
)

// Tile size and overlap are what OpenSeadragon's own tools take. Format is how tiles are compressed.
const (
	tileSize = 254
	overlap  = 1
	format   = "jpeg"
	encoding = ".jpg[Q=80,strip]"
)

// Opener opens a slide. release lets go of what the slide was read from, after it is closed.
type Opener func(ctx context.Context, s coverslip.Slide) (slide *tiler.Slide, release func(), err error)

// Tiles makes tiles and keeps them for a while. It is safe for concurrent use.
type Tiles struct {
	slides *pool
	slots  chan struct{} // holds one for each tile being made

	mu     sync.Mutex
	limit  int // bytes of kept
	bytes  int
	kept   list.List // of *tile, the last used in front
	held   map[key]*list.Element
	making map[key]*making
}

type key struct {
	slide              coverslip.SlideID
	level, column, row int
}

// tile is one that was made.
type tile struct {
	key
	jpeg []byte
}

// making is a tile on its way. jpeg and err may be looked at once done is closed.
type making struct {
	done chan struct{}
	jpeg []byte
	err  error
}

// New returns tiles of slides that open opens: at most so many at once, of which at most so many bytes
// are kept.
func New(open Opener, slides, bytes int) *Tiles {
	return &Tiles{
		slides: newPool(open, slides), slots: make(chan struct{}, runtime.GOMAXPROCS(0)),
		limit: bytes, held: map[key]*list.Element{}, making: map[key]*making{},
	}
}

// Close closes all slides, waiting for who reads from them. Calls that come later wait until their
// context ends.
func (t *Tiles) Close() { t.slides.close() }

func geometry(s coverslip.Slide) tiler.DeepZoom {
	return tiler.DeepZoom{Width: s.Width, Height: s.Height, TileSize: tileSize, Overlap: overlap}
}

// Descriptor returns the XML that tells viewers how a slide is cut.
func (t *Tiles) Descriptor(s coverslip.Slide) []byte { return geometry(s).Descriptor(format) }

// Tile returns one tile of a slide as JPEG. One that does not exist is NotFound. Those who want the
// same tile at once wait for one of them to make it.
func (t *Tiles) Tile(ctx context.Context, s coverslip.Slide, level, column, row int) ([]byte, error) {
	z := geometry(s)
	if _, err := z.Tile(level, column, row); err != nil {
		return nil, coverslip.At(s.Name, err)
	}
	k := key{s.ID, level, column, row}
	for {
		jpeg, m, first := t.find(k)
		switch {
		case jpeg != nil:
			return jpeg, nil
		case first:
			t.make(ctx, s, k, m)
			return m.jpeg, m.err
		}
		select {
		case <-m.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if !abandoned(ctx, m.err) {
			return m.jpeg, m.err
		}
	}
}

// abandoned reports whether work failed because somebody else no longer wanted it.
func abandoned(ctx context.Context, err error) bool {
	return coverslip.KindOf(err) == coverslip.Canceled && ctx.Err() == nil
}

// find returns a tile, or who makes it; first says that the caller has to.
func (t *Tiles) find(k key) (jpeg []byte, m *making, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.held[k]; e != nil {
		t.kept.MoveToFront(e)
		return e.Value.(*tile).jpeg, nil, false
	}
	m = t.making[k]
	if m == nil {
		m, first = &making{done: make(chan struct{}), err: errUnfinished}, true
		t.making[k] = m
	}
	return nil, m, first
}

// errUnfinished is what work ends in that panics: those who wait try for themselves.
var errUnfinished = &coverslip.Error{Kind: coverslip.Canceled, Op: "make tile", Err: errors.New("it was not finished")}

// make fills in m and keeps the tile.
func (t *Tiles) make(ctx context.Context, s coverslip.Slide, k key, m *making) {
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.making, k)
		close(m.done)
		if m.err == nil {
			t.keep(&tile{k, m.jpeg})
		}
	}()
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	case <-ctx.Done():
		m.err = ctx.Err()
		return
	}
	slide, leave, err := t.slides.enter(ctx, s)
	if err != nil {
		m.err = err
		return
	}
	defer leave()
	p, err := slide.DeepZoomTile(ctx, geometry(s), k.level, k.column, k.row)
	if err == nil {
		m.jpeg, err = vips.Encode(p.RGB, p.Width, p.Height, encoding)
	}
	m.err = err
}

// keep adds a tile to those kept and lets go of those used longest ago.
func (t *Tiles) keep(tile *tile) {
	t.held[tile.key] = t.kept.PushFront(tile)
	for t.bytes += len(tile.jpeg); t.bytes > t.limit; {
		t.bytes -= t.drop(t.kept.Back())
	}
}

func (t *Tiles) drop(e *list.Element) (bytes int) {
	old := t.kept.Remove(e).(*tile)
	delete(t.held, old.key)
	return len(old.jpeg)
}
