package tissue

import "math/bits"

// bitmap is a picture of one bit a pixel, in which 64 pixels are grown or compared at once.
type bitmap struct {
	width, height int
	stride        int      // words in a row
	words         []uint64 // [height*stride]; pixel x is bit x%64 of word x/64; bits beyond width are 0
}

func newBitmap(width, height int) *bitmap {
	stride := (width + 63) / 64
	return &bitmap{width, height, stride, make([]uint64, stride*height)}
}

func (b *bitmap) row(y int) []uint64 { return b.words[y*b.stride : (y+1)*b.stride] }

// last is which bits of a row's last word are pixels.
func (b *bitmap) last() uint64 { return ^uint64(0) >> uint(b.stride*64-b.width) }

// above has the pixels whose value is above the threshold.
func above(v []uint8, width, height, threshold int) *bitmap {
	out := newBitmap(width, height)
	for y := range height {
		line, row := v[y*width:(y+1)*width], out.row(y)
		for i := range row {
			var word uint64
			for j, x := range line[i*64 : min(i*64+64, width)] {
				// the sign of threshold-x
				word |= uint64(threshold-int(x)) >> 63 << j //nolint:gosec // the sign is what is wanted
			}
			row[i] = word
		}
	}
	return out
}

// unpack writes one value a pixel, row by row.
func (b *bitmap) unpack(dst []bool) {
	for y := range b.height {
		line, row := dst[y*b.width:(y+1)*b.width], b.row(y)
		for i, word := range row {
			part := line[i*64 : min(i*64+64, b.width)]
			for j := range part {
				part[j] = word>>j&1 != 0
			}
		}
	}
}

// without clears the pixels that other has.
func (b *bitmap) without(other *bitmap) {
	for i, w := range other.words {
		b.words[i] &^= w
	}
}

// invert turns every pixel round.
func (b *bitmap) invert() {
	for y := range b.height {
		row := b.row(y)
		for i := range row {
			row[i] = ^row[i]
		}
		row[len(row)-1] &= b.last()
	}
}

// grow adds every pixel within r of one that is set, by a square of 2r+1, and stays within where.
// A nil where is everywhere. Along the way it may not leave where: r steps of one pixel.
func (b *bitmap) grow(r int, where *bitmap) {
	if r <= 0 || len(b.words) == 0 {
		return
	}
	wide := make([]uint64, len(b.words))
	last := b.last()
	for range r {
		for y := range b.height {
			row, out := b.row(y), wide[y*b.stride:(y+1)*b.stride]
			var before uint64
			for i, w := range row {
				var after uint64
				if i+1 < len(row) {
					after = row[i+1]
				}
				out[i] = w | w<<1 | before>>63 | w>>1 | after<<63
				before = w
			}
			out[len(out)-1] &= last
		}
		for y := range b.height {
			row := b.row(y)
			up, at, down := max(y-1, 0)*b.stride, y*b.stride, min(y+1, b.height-1)*b.stride
			for i := range row {
				row[i] = wide[up+i] | wide[at+i] | wide[down+i]
			}
			if where != nil {
				for i, w := range where.row(y) {
					row[i] &= w
				}
			}
		}
	}
}

// closing fills gaps narrower than 2r+1: it grows by r and shrinks again. Nothing grows or shrinks
// from outside the picture, so borders are not eaten.
func (b *bitmap) closing(r int) {
	b.grow(r, nil)
	b.invert()
	b.grow(r, nil)
	b.invert()
}

// flip inverts every 4-connected piece of the given value that has fewer than least pixels.
// A hole that touches the border is open and stays.
//
// Pieces are unions of runs, the stretches of one value in a row (He, Chao and Suzuki 2008,
// https://doi.org/10.1109/TIP.2008.919369).
func (b *bitmap) flip(value bool, least int) {
	if least <= 1 {
		return
	}
	if !value {
		b.invert()
		defer b.invert()
	}
	type run struct {
		y, from, to int32
		parent      int32 // another run of the piece; itself at the root
		pixels      int32 // of the whole piece, at the root
		open        bool  // touches the border, at the root
	}
	var runs []run
	root := func(i int32) int32 {
		for runs[i].parent != i {
			runs[i].parent = runs[runs[i].parent].parent
			i = runs[i].parent
		}
		return i
	}
	before := 0 // first run of the row above
	for y := range b.height {
		first := len(runs)
		above := before
		for from, to := b.next(y, 0); from < b.width; from, to = b.next(y, to) {
			me := int32(len(runs)) //nolint:gosec // fewer than pixels
			open := y == 0 || y == b.height-1 || from == 0 || to == b.width
			runs = append(runs, run{int32(y), int32(from), int32(to), me, int32(to - from), open}) //nolint:gosec // places in a picture
			for above < first && int(runs[above].to) <= from {
				above++
			}
			for i := above; i < first && int(runs[i].from) < to; i++ {
				old, now := root(int32(i)), root(me)
				if old != now {
					runs[now].parent = old
					runs[old].pixels += runs[now].pixels
					runs[old].open = runs[old].open || runs[now].open
				}
			}
		}
		before = first
	}
	for i := range runs {
		piece := runs[root(int32(i))]
		if int(piece.pixels) < least && (value || !piece.open) {
			b.clear(int(runs[i].y), int(runs[i].from), int(runs[i].to))
		}
	}
}

// next is the first run of set pixels in row y at or after x; from is width when there is none.
func (b *bitmap) next(y, x int) (from, to int) {
	row := b.row(y)
	scan := func(x int, flip uint64) int {
		for i := x / 64; i < len(row); i++ {
			word := row[i] ^ flip
			if i == x/64 {
				word &= ^uint64(0) << (x % 64)
			}
			if word != 0 {
				return min(i*64+bits.TrailingZeros64(word), b.width)
			}
		}
		return b.width
	}
	from = scan(x, 0)
	if from == b.width {
		return from, from
	}
	return from, scan(from, ^uint64(0))
}

// clear takes the pixels from ≤ x < to out of row y.
func (b *bitmap) clear(y, from, to int) {
	row := b.row(y)
	for i := from / 64; i*64 < to; i++ {
		word := ^uint64(0)
		if i == from/64 {
			word <<= from % 64
		}
		if end := to - i*64; end < 64 {
			word &= 1<<end - 1
		}
		row[i] &^= word
	}
}
