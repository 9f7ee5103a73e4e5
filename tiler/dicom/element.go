package dicom

import (
	"context"
	"encoding/binary"
	"fmt"

	"coverslip/tiler/tiff"
)

// element is one attribute: what it is, and where its value lies.
type element struct {
	tag    uint32 // group<<16 | element
	vr     string // "" where the file does not say
	off    int64  // of the value in the file
	length int64  // of the value, bytes; undefined when a delimiter ends it
}

const undefined = -1

// Delimiters have no VR (PS3.5, 7.5).
const (
	tagItem        = 0xfffee000
	tagItemEnd     = 0xfffee00d
	tagSequenceEnd = 0xfffee0dd
)

func (e element) String() string { return fmt.Sprintf("(%04X,%04X)", e.tag>>16, e.tag&0xffff) }

// scope is the item of a sequence that elements stand in; nil is the data set itself.
type scope struct {
	sequence uint32
	item     int // from 0
	in       *scope
	depth    int
}

// The sequences of real slides are nested six deep.
const maxDepth = 32

// visitor is told what stands in a data set.
type visitor interface {
	// enter reports whether to look into a sequence that could be skipped.
	enter(in *scope, sequence uint32) bool
	// take is told of each element that is no sequence. It may read the value.
	take(ctx context.Context, in *scope, e element) error
}

// walker goes over the data set of a file.
type walker struct {
	source
	visitor
	until uint32 // the element of the data set to stop at: in it they stand in ascending order
}

// elements goes over those from off to end, or, when delimited, to the end of the item before that. It
// returns where the next one begins, which of the data set may be the first not below until.
func (w *walker) elements(ctx context.Context, off, end int64, delimited, implicit bool, in *scope) (next int64, err error) {
	for delimited || off < end {
		e, err := w.header(ctx, off, end)
		switch {
		case err != nil:
			return 0, err
		case e.tag == tagItemEnd && delimited:
			return e.off, nil
		case e.tag>>16 == 0xfffe:
			return 0, invalid(hintDamaged, "delimiter %v stands at %d among elements", e, off)
		case in == nil && e.tag >= w.until:
			return off, nil
		}
		if e, err = w.element(ctx, off, end, implicit); err != nil {
			return 0, err
		}
		switch {
		case e.length == undefined && (e.vr == "OB" || e.vr == "OW" || e.tag == tagPixelData): // of an icon
			off, err = w.fragments(ctx, e, end)
		case e.length == undefined, (e.vr == "SQ" || e.vr == "") && w.enter(in, e.tag):
			off, err = w.items(ctx, e, end, implicit || e.vr == "UN", in) // UN of no length is implicit (PS3.5, 6.2.2)
		default:
			off, err = e.off+e.length, w.take(ctx, in, e)
		}
		if err != nil {
			return 0, err
		}
	}
	return off, nil
}

// items goes over the items of a sequence and returns where it ends.
func (w *walker) items(ctx context.Context, e element, end int64, implicit bool, in *scope) (next int64, err error) {
	s := &scope{sequence: e.tag, in: in}
	if in != nil {
		s.depth = in.depth + 1
	}
	if s.depth == maxDepth {
		return 0, invalid(hintDamaged, "sequences are nested more than %d deep at %d", maxDepth, e.off)
	}
	if e.length != undefined {
		end = e.off + e.length
	}
	off := e.off
	for ; e.length == undefined || off < end; s.item++ {
		i, err := w.header(ctx, off, end)
		switch {
		case err != nil:
			return 0, err
		case i.tag == tagSequenceEnd && e.length == undefined:
			return i.off, nil
		case i.tag != tagItem:
			return 0, invalid(hintDamaged, "%v stands at %d where an item of %v should", i, off, e)
		}
		within := *s // the visitor may keep it
		if i.length == undefined {
			off, err = w.elements(ctx, i.off, end, true, implicit, &within)
		} else {
			off, err = w.elements(ctx, i.off, i.off+i.length, false, implicit, &within)
		}
		if err != nil {
			return 0, err
		}
	}
	return off, nil
}

// fragments goes over encapsulated bytes and returns where they end.
func (w *walker) fragments(ctx context.Context, e element, end int64) (next int64, err error) {
	for off := e.off; ; {
		i, err := w.header(ctx, off, end)
		switch {
		case err != nil:
			return 0, err
		case i.tag == tagSequenceEnd:
			return i.off, nil
		case i.tag != tagItem || i.length == undefined:
			return 0, invalid(hintDamaged, "%v stands at %d where a fragment should", i, off)
		}
		off = i.off + i.length
	}
}

// element reads the header of the element at off, which ends before end.
func (w *walker) element(ctx context.Context, off, end int64, implicit bool) (element, error) {
	e, err := w.header(ctx, off, end)
	if err != nil {
		return e, err
	}
	if implicit {
		return e, w.fits(e, end)
	}
	raw, err := w.read(ctx, off, 8)
	if err != nil {
		return e, err
	}
	e.vr = string(raw[4:6])
	e.length = int64(binary.LittleEndian.Uint16(raw[6:]))
	switch e.vr {
	case "OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV":
		if end-off < 12 {
			return e, w.tooLong(e, end)
		}
		if raw, err = w.read(ctx, off, 12); err != nil {
			return e, err
		}
		e.off += 4
		e.length = length(raw[8:])
	default:
		if e.vr[0] < 'A' || e.vr[0] > 'Z' || e.vr[1] < 'A' || e.vr[1] > 'Z' {
			return e, invalid(hintDamaged, "element %v at %d has no type", e, off)
		}
	}
	return e, w.fits(e, end)
}

// header reads a tag and a length of 32 bits.
func (w *walker) header(ctx context.Context, off, end int64) (element, error) {
	if end-off < 8 {
		return element{}, w.tooLong(element{off: off}, end)
	}
	raw, err := w.read(ctx, off, 8)
	if err != nil {
		return element{}, err
	}
	e := element{tag: tag(raw), off: off + 8, length: length(raw[4:])}
	if e.tag>>16 == 0xfffe {
		return e, w.fits(e, end)
	}
	return e, nil
}

func (w *walker) fits(e element, end int64) error {
	if e.length > end-e.off {
		return w.tooLong(e, end)
	}
	return nil
}

// tooLong says why an element cannot end before end.
func (w *walker) tooLong(e element, end int64) error {
	if end == w.r.Size() {
		return fmt.Errorf("element %v at %d: %w, which has %d bytes", e, e.off, errEndsEarly, end)
	}
	return invalid(hintDamaged, "element %v at %d is longer than what it stands in", e, e.off)
}

func tag(raw []byte) uint32 {
	return uint32(binary.LittleEndian.Uint16(raw))<<16 | uint32(binary.LittleEndian.Uint16(raw[2:]))
}

func length(raw []byte) int64 {
	if n := binary.LittleEndian.Uint32(raw); n != 0xffffffff {
		return int64(n)
	}
	return undefined
}

// source reads small pieces of a file in few requests. While it is read in one go it fetches more and
// more at once: a data set takes a few KiB, one with the positions of all frames many MiB.
type source struct {
	r     tiff.RangeReader
	least int64 // bytes to fetch at once
	limit int64 // bytes to fetch in all
	ahead int64
	off   int64
	data  []byte // from off
}

const maxFetch = 1 << 20

// read returns the n bytes at off, n ≤ maxFetch, valid until the next call.
func (s *source) read(ctx context.Context, off, n int64) ([]byte, error) {
	if off < 0 || n > s.r.Size()-off {
		return nil, fmt.Errorf("bytes %d to %d: %w, which has %d", off, off+n, errEndsEarly, s.r.Size())
	}
	end := s.off + int64(len(s.data))
	if off >= s.off && off+n <= end {
		return s.data[off-s.off:][:n], nil
	}
	if off >= s.off && off <= end && end > 0 {
		s.ahead = min(2*s.ahead, maxFetch)
	} else {
		s.ahead = s.least
	}
	fetch := min(max(s.ahead, n), s.r.Size()-off)
	if s.limit -= fetch; s.limit < 0 {
		return nil, unsupported("no slide needs that much; if this one does, report it", "its data set is too long")
	}
	if int64(cap(s.data)) < fetch {
		s.data = make([]byte, fetch)
	}
	s.off, s.data = off, s.data[:fetch]
	if err := s.r.ReadRange(ctx, s.data, off); err != nil {
		s.data = s.data[:0]
		return nil, err
	}
	return s.data[:n], nil
}
