// Package tiff indexes TIFF and BigTIFF slides: which directories there are, where each tile lies
// in the file, how it is compressed, and what the scanner's vendor wrote about it. It tells the
// levels of the pyramid from thumbnail, label and macro.
//
// It reads through a RangeReader, so a slide may lie on a disk or behind HTTP, and never believes
// a number that the size of the file rules out. It decodes no pixels (tiler/jpeg, tiler/vips) and
// does not decide how large a pixel is (tiler).
//
// Sources: TIFF 6.0 (Adobe, 1992), Adobe Photoshop TIFF Technical Notes (2002), the BigTIFF
// proposal (libtiff), and for vendors the format pages of OpenSlide.
package tiff

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"coverslip"
)

// File is the index of one TIFF. It is not changed after Read, so any number of goroutines may
// use it.
type File struct {
	Size      int64 // bytes
	ByteOrder binary.ByteOrder
	Big       bool // BigTIFF

	Format Format
	Dirs   []*Dir  // the chain in file order, each directory followed by its SubIFDs
	Levels []Level // finest first; empty when Format is not read from this index

	// What the vendor wrote, where Format says so and it could be parsed; nil otherwise.
	Aperio  map[string]string // "AppMag" → "20", "MPP" → "0.4990", as written
	OME     *OME
	Philips *Philips
	Leica   *Leica
}

// Level is one resolution of the pyramid.
type Level struct {
	coverslip.Level      // the part of the picture that counts; Dir may be padded beyond it (Philips)
	Dir             *Dir // where its tiles are
}

// First returns the first directory with the role, or nil.
func (f *File) First(role Role) *Dir {
	for _, d := range f.Dirs {
		if d.Role == role {
			return d
		}
	}
	return nil
}

// Limits no slide comes near; beyond them a file is made to do harm or is no slide.
const (
	maxDirs    = 4096      // a pyramid has 10; a microscope's z-stack may have more than this
	maxEntries = 4096      // NDPI has about 50
	maxEdge    = 1<<31 - 1 // pixels, of an image or a tile
	maxText    = 16 << 20  // bytes of a description that are read; Philips puts a JPEG in it
	maxIndex   = 128 << 20 // bytes of memory for arrays and texts of all directories together
	rangeMax   = 1 << 20   // bytes asked for at once
	headerHint = "Coverslip reads Aperio SVS, OME-TIFF, Philips TIFF, generic tiled TIFF and what OpenSlide reads"
)

const (
	hintEndsEarly = "the file ends early; upload it again"
	hintDamaged   = "the file is damaged; export it from the scanner or upload it again"
)

var errEndsEarly = errors.New("lies beyond the end of the file")

// Read indexes the TIFF behind r: every directory of the chain and their SubIFDs. What r holds
// is either
//   - no TIFF, or one over the limits of this package: Unsupported;
//   - a TIFF whose directories are cut off, loop, or contradict themselves: Invalid;
//   - indexed. Whether the tiles are there too is for Check to say.
//
// Errors of r keep their kind. Text of the vendor that cannot be parsed is no error.
func Read(ctx context.Context, r RangeReader) (*File, error) {
	p := &parser{source: source{r: r, size: r.Size(), budget: maxIndex}, seen: map[int64]bool{}}
	first, err := p.header(ctx)
	if err != nil {
		return nil, inOp("read TIFF header", err)
	}
	if first >= windowSize {
		// Written as the levels came: behind its tiles each has its directory, and the small ones, which
		// are most, are in the last hundredth of the file.
		p.expectWindow(first)
		tail := min(max(p.size/128, windowSize), maxExpect)
		p.expect(p.size-tail, tail)
	}
	f := &File{Size: p.size, ByteOrder: p.order, Big: p.big}
	for page, off := 0, first; off != 0; page++ {
		d, err := p.directory(ctx, off, page, -1)
		if err != nil {
			return nil, inOp(fmt.Sprintf("read TIFF directory %d", page), err)
		}
		f.Dirs = append(f.Dirs, d)
		off = d.next
		for i, sub := range d.subIFDs {
			s, err := p.directory(ctx, sub, page, i)
			if err != nil {
				return nil, inOp(fmt.Sprintf("read TIFF directory %d, SubIFD %d", page, i), err)
			}
			f.Dirs = append(f.Dirs, s)
		}
		if page == 0 && p.hamamatsuOver4GiB {
			break
		}
	}
	f.vendor()
	f.classify()
	return f, nil
}

// parser holds what is shared by the directories of one file.
type parser struct {
	source
	order             binary.ByteOrder
	big               bool
	hamamatsuOver4GiB bool           // offsets are 64 bits in 32-bit fields: nothing after the first directory is read
	seen              map[int64]bool // offsets of directories, to notice loops
}

// header reads the file header and returns where the first directory is.
func (p *parser) header(ctx context.Context) (int64, error) {
	if p.size == 0 {
		return 0, invalid(hintEndsEarly, "the file is empty")
	}
	head, err := p.read(ctx, 0, min(p.size, 16))
	if err != nil {
		return 0, err
	}
	magic := ""
	if len(head) >= 4 {
		magic = string(head[:4])
	}
	switch magic {
	case "II*\x00", "II+\x00":
		p.order = binary.LittleEndian
	case "MM\x00*", "MM\x00+":
		p.order = binary.BigEndian
	default:
		return 0, &coverslip.Error{Kind: coverslip.Unsupported, Err: errors.New("not a TIFF"), Hint: headerHint}
	}
	p.big = p.order.Uint16(head[2:]) == 43
	if len(head) < 8 || p.big && len(head) < 16 {
		return 0, invalid(hintEndsEarly, "the file has %d bytes", p.size)
	}
	var first int64
	switch {
	case !p.big:
		first = int64(p.order.Uint32(head[4:]))
		far, err := p.hamamatsuFirst(ctx, head)
		if err != nil {
			return 0, err
		}
		if far != 0 {
			p.hamamatsuOver4GiB = true
			first = far
		}
	case p.order.Uint16(head[4:]) != 8 || p.order.Uint16(head[6:]) != 0:
		return 0, invalid(hintDamaged, "BigTIFF with offsets of %d bytes", p.order.Uint16(head[4:]))
	default:
		first = clampOffset(p.order.Uint64(head[8:]))
	}
	if first == 0 {
		return 0, invalid(hintDamaged, "there is no directory")
	}
	return first, nil
}

// hamamatsuFirst returns the first directory of an NDPI file over 4 GiB, which is a classic TIFF
// whose header holds a 64-bit offset; 0 for every other file.
func (p *parser) hamamatsuFirst(ctx context.Context, head []byte) (int64, error) {
	if p.size <= math.MaxUint32 || p.order != binary.LittleEndian || len(head) < 12 {
		return 0, nil
	}
	off := clampOffset(p.order.Uint64(head[4:]))
	if off <= math.MaxUint32 || off > p.size-2 {
		return 0, nil
	}
	raw, err := p.read(ctx, off, 2)
	if err != nil {
		return 0, err
	}
	n := int64(p.order.Uint16(raw))
	if n > maxEntries || off+2+12*n > p.size {
		return 0, nil
	}
	raw, err = p.read(ctx, off+2, 12*n)
	if err != nil {
		return 0, err
	}
	for ; len(raw) > 0; raw = raw[12:] {
		if p.order.Uint16(raw) == tagHamamatsu {
			return off, nil
		}
	}
	return 0, nil
}

// clampOffset turns an offset of the file into an int64. One that does not fit lies beyond the
// end of any file and still does so afterwards.
func clampOffset(v uint64) int64 { return int64(min(v, math.MaxInt64)) }

func invalid(hint, format string, args ...any) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Err: fmt.Errorf(format, args...), Hint: hint}
}

func unsupported(hint, format string, args ...any) error {
	return &coverslip.Error{Kind: coverslip.Unsupported, Err: fmt.Errorf(format, args...), Hint: hint}
}

// inOp says what was being done when err happened.
func inOp(op string, err error) error {
	var known *coverslip.Error
	if errors.Is(err, errEndsEarly) && !errors.As(err, &known) {
		err = invalid(hintEndsEarly, "%w", err)
	}
	return coverslip.Doing(op, err)
}
