package zoom

import (
	"context"
	"slices"
	"sync"
	"time"

	"coverslip"
	"coverslip/tiler"
)

// idle is how long a slide stays open that nobody looks at.
const idle = time.Minute

// pool keeps a few slides open. It never has more than max, whatever is asked of it: who wants another
// waits until one is free.
type pool struct {
	open Opener
	max  int

	mu     sync.Mutex
	slides []*opened     // the last used at the end
	freed  chan struct{} // closed, and replaced, when a slide may have become free
}

// opened is a slide that is open or being opened. slide and err may be looked at once ready is closed.
type opened struct {
	id      coverslip.SlideID
	ready   chan struct{}
	slide   *tiler.Slide
	release func()
	err     error
	users   int
	timer   *time.Timer // runs while there are none
}

func newPool(open Opener, most int) *pool {
	return &pool{open: open, max: most, freed: make(chan struct{})}
}

// enter returns a slide that stays open until leave is called.
func (p *pool) enter(ctx context.Context, s coverslip.Slide) (slide *tiler.Slide, leave func(), err error) {
	for {
		o, first, wait := p.find(s.ID)
		if first {
			p.load(ctx, s, o)
		}
		select {
		case <-wait:
		case <-ctx.Done():
			err = ctx.Err()
		}
		switch {
		case o == nil && err == nil:
			continue // there may be room now
		case o == nil:
			return nil, nil, err
		case err == nil && o.err == nil:
			return o.slide, func() { p.leave(o) }, nil
		}
		p.leave(o)
		if err != nil {
			return nil, nil, err
		}
		if first || !abandoned(ctx, o.err) {
			return nil, nil, o.err
		}
	}
}

// find returns a slide with the caller among its users, and what to wait for before it may be looked at;
// first says that the caller has to load it. Where there is no room it returns none.
func (p *pool) find(id coverslip.SlideID) (o *opened, first bool, wait <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.slides, func(o *opened) bool { return o.id == id })
	switch {
	case i >= 0:
		o = p.slides[i]
		p.slides = slices.Delete(p.slides, i, i+1)
	case len(p.slides) < p.max || p.max > 0 && p.makeRoom():
		o, first = &opened{id: id, ready: make(chan struct{})}, true
	default:
		return nil, false, p.freed
	}
	p.slides = append(p.slides, o)
	o.users++
	if o.timer != nil {
		o.timer.Stop()
	}
	return o, first, o.ready
}

// load opens a slide. One that fails is no longer in the pool.
func (p *pool) load(ctx context.Context, s coverslip.Slide, o *opened) {
	var slide *tiler.Slide
	var release func()
	var err error = errUnfinished
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if o.slide, o.release, o.err = slide, release, err; err != nil {
			p.remove(o)
		}
		close(o.ready)
	}()
	slide, release, err = p.open(ctx, s)
}

func (p *pool) leave(o *opened) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o.users--; o.users > 0 || o.err != nil {
		return
	}
	o.timer = time.AfterFunc(idle, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if o.users == 0 && slices.Contains(p.slides, o) {
			p.shut(o)
		}
	})
	p.free()
}

// makeRoom closes the slide that was used longest ago of those that nobody uses.
func (p *pool) makeRoom() bool {
	i := slices.IndexFunc(p.slides, func(o *opened) bool { return o.users == 0 })
	if i < 0 {
		return false
	}
	p.shut(p.slides[i])
	return true
}

// shut closes a slide that nobody uses.
func (p *pool) shut(o *opened) {
	o.timer.Stop()
	_ = o.slide.Close() // it was only read
	o.release()
	p.remove(o)
}

func (p *pool) remove(o *opened) {
	i := slices.Index(p.slides, o)
	p.slides = slices.Delete(p.slides, i, i+1)
	p.free()
}

// free wakes those who wait for room.
func (p *pool) free() {
	close(p.freed)
	p.freed = make(chan struct{})
}

// close closes all slides, those in use when they no longer are. No other is opened after.
func (p *pool) close() {
	for {
		p.mu.Lock()
		p.max = 0
		for p.makeRoom() {
		}
		left, freed := len(p.slides), p.freed
		p.mu.Unlock()
		if left == 0 {
			return
		}
		<-freed
	}
}
