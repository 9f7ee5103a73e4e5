package remote

import (
	"cmp"
	"context"
	"io"
	"slices"
	"sync"

	"coverslip/tiler/tiff"
)

const (
	maxGap   = 64 << 10 // bytes nobody wants that are read rather than asked around,
	waste    = 10       // as long as they are at most one in so many of those wanted
	maxBlock = 1 << 20  // bytes of one request
	flights  = 16       // requests made ahead at once
	maxAhead = 16 << 20 // bytes on their way or there and not read
	maxSpent = 8 << 20  // bytes that were read and stay, for tiles that several regions share
	together = 4 << 20  // bytes within which small groups are merged
	maxKnown = 4 << 20  // bytes that Expect named and that stay
)

// Range is a piece of a file: n bytes at off.
type Range struct{ Off, N int64 }

// Ahead is a tiff.RangeReader that fetches ranges before they are read: those that Announce names,
// merged into requests of up to 1 MiB, 16 at a time, at most 16 MiB ahead of the readers. The last
// 8 MiB that were read stay, too, and the last 4 MiB of what Expect names. Any other range is asked for
// when it is read. It owns the requests it makes ahead until Close.
type Ahead struct {
	r      tiff.RangeReader
	ctx    context.Context // the reader's life
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	blocks []*block         // in the order they will be wanted
	next   int              // the first of blocks that may not have been begun
	at     map[int64]*block // by where announced ranges start
	flying int
	held   int      // bytes of blocks begun
	spent  []*block // in the order they were read
	kept   int      // bytes of spent

	expected []*block // oldest first
	pages    []page   // for ReadAt, the last used at the end
}

func (r Range) covers(off, n int64) bool { return off >= r.Off && off+n <= r.Off+r.N }

// block is one request made ahead.
type block struct {
	Range
	first int // place in the announcement of the range it is wanted for first
	users int // ranges in it that nobody has read yet

	state state
	done  chan struct{} // closed when data and err may be looked at
	data  []byte
	err   error
}

type state int

const (
	waiting state = iota
	begun         // on its way or there
	spent         // read by all
	gone          // given up to make room
)

// NewAhead returns a reader in front of r, which has to be safe for concurrent use.
func NewAhead(r tiff.RangeReader) *Ahead {
	ctx, cancel := context.WithCancel(context.Background())
	return &Ahead{r: r, ctx: ctx, cancel: cancel}
}

// Close stops the requests under way and waits for their end. No read may be under way.
func (a *Ahead) Close() error {
	a.cancel()
	a.work.Wait()
	return nil
}

// Size is the length of the file in bytes.
func (a *Ahead) Size() int64 { return a.r.Size() }

// Expect fetches the n bytes at off at once, for reads of any part of them; see tiff.Expecter. Where that
// would be too much at once, nothing is done.
func (a *Ahead) Expect(off, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	total := n
	for _, b := range a.expected {
		if b.covers(off, n) {
			return
		}
		total += b.N
	}
	for total > maxKnown && len(a.expected) > 0 {
		select {
		case <-a.expected[0].done:
			total -= a.expected[0].N
			a.expected = a.expected[1:]
		default:
			return // still on its way
		}
	}
	if off < 0 || n <= 0 || total > maxKnown || a.ctx.Err() != nil {
		return
	}
	b := &block{Range: Range{off, n}, done: make(chan struct{})}
	a.expected = append(a.expected, b)
	a.work.Go(func() {
		data := make([]byte, n)
		err := a.r.ReadRange(a.ctx, data, off)
		a.mu.Lock()
		defer a.mu.Unlock()
		if err == nil {
			b.data = data
		} else if i := slices.Index(a.expected, b); i >= 0 { // whoever reads it asks by himself
			a.expected = slices.Delete(a.expected, i, i+1)
		}
		close(b.done)
	})
}

// known returns what Expect fetched of a range, or nil. It waits for what is on its way.
func (a *Ahead) known(ctx context.Context, off, n int64) ([]byte, error) {
	a.mu.Lock()
	i := slices.IndexFunc(a.expected, func(b *block) bool { return b.covers(off, n) })
	if i < 0 {
		a.mu.Unlock()
		return nil, nil
	}
	b := a.expected[i]
	a.mu.Unlock()
	select {
	case <-b.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if b.data == nil {
		return nil, nil
	}
	return b.data[off-b.Off:][:n], nil
}

// Announce says which ranges will be read next, each once, in groups: within a group they may be
// fetched in any order, and a group is wanted before the next. It replaces what was announced before.
// Reads that keep to it are fast; others are right.
func (a *Ahead) Announce(groups [][]Range) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.blocks {
		a.drop(b)
	}
	a.blocks, a.next, a.spent, a.at = nil, 0, nil, map[int64]*block{}
	var group []Range
	size := int64(0)
	for i, g := range groups {
		group = append(group, g...)
		for _, r := range g {
			size += r.N
		}
		if size >= together || i == len(groups)-1 {
			a.blocks = append(a.blocks, a.merge(group)...)
			group, size = group[:0], 0
		}
	}
	a.top()
}

// merge makes requests of a group of ranges. A range that is part of an earlier one joins it.
func (a *Ahead) merge(group []Range) []*block {
	order := make([]int, len(group))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(group[i].Off, group[j].Off) })
	bridge := bridged(group, order)
	var out []*block
	var last *block
	for k, i := range order {
		r := group[i]
		if slices.ContainsFunc(a.expected, func(b *block) bool { return b.covers(r.Off, r.N) }) {
			continue
		}
		if b := a.at[r.Off]; b != nil && r.Off+r.N <= b.Off+b.N {
			b.users, b.first = b.users+1, min(b.first, i)
			continue
		}
		if last == nil || !bridge[k] || r.Off-last.Off-last.N > maxGap || r.Off+r.N-last.Off > maxBlock {
			last = &block{Range: r, first: i, done: make(chan struct{})}
			out = append(out, last)
		}
		last.N = max(last.N, r.Off+r.N-last.Off)
		last.users, last.first = last.users+1, min(last.first, i)
		a.at[r.Off] = last
	}
	slices.SortFunc(out, func(b, c *block) int { return cmp.Compare(b.first, c.first) })
	return out
}

// bridged says before which ranges, by their places in order, which sorts them, the gap is small enough
// to be read: at most maxGap, and the smallest ones first while they stay few beside what is wanted.
func bridged(group []Range, order []int) []bool {
	gaps := make([]int64, len(order))
	var small []int
	var end, wanted int64
	for k, i := range order {
		r := group[i]
		if gaps[k] = r.Off - end; gaps[k] <= maxGap {
			small = append(small, k)
		}
		wanted += max(0, r.Off+r.N-max(end, r.Off))
		end = max(end, r.Off+r.N)
	}
	slices.SortStableFunc(small, func(j, k int) int { return cmp.Compare(gaps[j], gaps[k]) })
	bridge := make([]bool, len(order))
	left := max(maxGap, wanted/waste)
	for _, k := range small {
		if left -= max(gaps[k], 0); left < 0 {
			break
		}
		bridge[k] = true
	}
	return bridge
}

// ReadRange fills dst with the bytes that start at off; see tiff.RangeReader.
func (a *Ahead) ReadRange(ctx context.Context, dst []byte, off int64) error {
	b := a.take(off, int64(len(dst)))
	if b == nil {
		data, err := a.known(ctx, off, int64(len(dst)))
		if err != nil {
			return err
		}
		if data == nil {
			return a.r.ReadRange(ctx, dst, off)
		}
		copy(dst, data)
		return nil
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	a.mu.Lock()
	data := b.data
	if b.users--; b.users == 0 && b.state == begun {
		a.spend(b)
		a.top()
	}
	a.mu.Unlock()
	switch {
	case b.err != nil:
		return b.err
	case data == nil: // given up meanwhile
		return a.r.ReadRange(ctx, dst, off)
	}
	copy(dst, data[off-b.Off:])
	return nil
}

// take returns the block that holds a range, and begins it if that has not been done: a reader that
// waits does not wait for room.
func (a *Ahead) take(off, n int64) *block {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.at[off]
	if b == nil || b.state == gone || off+n > b.Off+b.N {
		return nil
	}
	if b.state == waiting {
		a.begin(b)
		for _, old := range a.blocks[:a.next] {
			if a.held <= maxAhead {
				break
			}
			if old != b && old.state == begun {
				a.drop(old) // read by nobody so far, though announced for earlier than this one
			}
		}
	}
	return b
}

// top begins requests as far as there is room.
func (a *Ahead) top() {
	for ; a.next < len(a.blocks); a.next++ {
		b := a.blocks[a.next]
		if b.state != waiting {
			continue
		}
		if a.flying >= flights || a.held+int(b.N) > maxAhead && a.held > 0 || a.ctx.Err() != nil {
			return
		}
		a.begin(b)
	}
}

func (a *Ahead) begin(b *block) {
	b.state = begun
	a.flying++
	a.held += int(b.N)
	a.work.Go(func() {
		data := make([]byte, b.N)
		err := a.r.ReadRange(a.ctx, data, b.Off)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.flying--
		if err != nil {
			b.err = err
			a.drop(b) // whoever tries again asks by himself
		} else if b.state == begun {
			b.data = data
		}
		close(b.done)
		a.top()
	})
}

// spend keeps a block for a while that everybody has read.
func (a *Ahead) spend(b *block) {
	a.held -= int(b.N)
	a.kept += int(b.N)
	b.state = spent
	a.spent = append(a.spent, b)
	for a.kept > maxSpent {
		a.drop(a.spent[0])
		a.spent = a.spent[1:]
	}
}

// drop forgets a block. Those who copy from it keep its bytes.
func (a *Ahead) drop(b *block) {
	switch b.state {
	case begun:
		a.held -= int(b.N)
	case spent:
		a.kept -= int(b.N)
	}
	b.state, b.data = gone, nil
}

const (
	pageSize = 1 << 20
	maxPages = 8
)

type page struct {
	number int64
	data   []byte
}

// ReadAt is for decoders that seek about in small steps: it reads pages of 1 MiB and keeps the eight
// used last. It ends with the reader's life.
func (a *Ahead) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		at := off + int64(n)
		if at >= a.Size() {
			return n, io.EOF
		}
		data, err := a.page(at / pageSize)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], data[at%pageSize:])
	}
	return n, nil
}

func (a *Ahead) page(number int64) ([]byte, error) {
	a.mu.Lock()
	i := slices.IndexFunc(a.pages, func(p page) bool { return p.number == number })
	if i >= 0 {
		found := a.pages[i]
		a.pages = append(slices.Delete(a.pages, i, i+1), found)
		a.mu.Unlock()
		return found.data, nil
	}
	a.mu.Unlock()
	data := make([]byte, min(pageSize, a.Size()-number*pageSize))
	if err := a.r.ReadRange(a.ctx, data, number*pageSize); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.pages) == maxPages {
		a.pages = slices.Delete(a.pages, 0, 1)
	}
	a.pages = append(a.pages, page{number, data})
	return data, nil
}
