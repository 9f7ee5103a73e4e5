package dicom

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// frames returns where each frame of the file lies. Of compressed ones that is with the headers of
// their fragments. Offset tables are taken at their word, except that all they name lies within the
// file, in order; without one the headers of all fragments are read, one after the other.
func (im *image) frames(ctx context.Context) (out []place, err error) {
	im.least, im.limit = 512, math.MaxInt64 // one header at a time from here on, each counted
	if im.coding == Native {
		out, err = im.native()
	} else {
		out, err = im.encapsulated(ctx)
	}
	if err != nil {
		return nil, inOp("look for frames", err)
	}
	return out, nil
}

func (im *image) native() ([]place, error) {
	size := int64(im.columns) * int64(im.rows) * 3
	if im.pixelData.length == undefined || im.pixelData.length < size*int64(im.frameCount) {
		return nil, invalid(hintDamaged, "%d frames of %d×%d pixels are not in %d bytes", im.frameCount, im.columns, im.rows, im.pixelData.length)
	}
	out := make([]place, im.frameCount)
	for i := range out {
		out[i] = place{im.pixelData.off + int64(i)*size, size}
	}
	return out, nil
}

func (im *image) encapsulated(ctx context.Context) ([]place, error) {
	size := im.r.Size()
	if im.pixelData.length != undefined {
		return nil, invalid(hintDamaged, "pixels in %s have a length", im.coding)
	}
	table, err := im.header(ctx, im.pixelData.off, size)
	if err != nil {
		return nil, err
	}
	if table.tag != tagItem || table.length == undefined {
		return nil, invalid(hintDamaged, "%v stands where the offset table should", table)
	}
	first := table.off + table.length // what offsets count from
	switch {
	case im.offsets.length > 0:
		return im.extended(ctx, first)
	case table.length > 0 && size <= math.MaxUint32: // beyond, offsets may have wrapped
		return im.basic(ctx, table, first)
	}
	fragments, err := im.walk(ctx, first)
	if err != nil {
		return nil, err
	}
	return im.group(fragments)
}

// extended reads the extended offset table (PS3.3 C.7.6.3.1.8): each frame is one fragment.
func (im *image) extended(ctx context.Context, first int64) ([]place, error) {
	if n := int64(im.frameCount) * 8; im.offsets.length != n || im.lengths.length != n {
		return nil, invalid(hintDamaged, "the extended offset table has %d and %d bytes for %d frames", im.offsets.length, im.lengths.length, im.frameCount)
	}
	offsets, err := im.whole(ctx, im.offsets)
	if err != nil {
		return nil, err
	}
	lengths, err := im.whole(ctx, im.lengths)
	if err != nil {
		return nil, err
	}
	out := make([]place, im.frameCount)
	end := first
	for i := range out {
		off, n := binary.LittleEndian.Uint64(offsets[8*i:]), binary.LittleEndian.Uint64(lengths[8*i:])
		if off > math.MaxInt64/4 || n > math.MaxUint32 {
			return nil, beyond(i, im.r.Size())
		}
		out[i] = place{first + int64(off), 8 + int64(n)}
		if end, err = im.follows(i, out[i], end); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// basic reads the basic offset table (PS3.5 A.4). It does not say where the last frame ends.
func (im *image) basic(ctx context.Context, table element, first int64) ([]place, error) {
	if table.length != int64(im.frameCount)*4 {
		return nil, invalid(hintDamaged, "the offset table has %d bytes for %d frames", table.length, im.frameCount)
	}
	raw, err := im.whole(ctx, table)
	if err != nil {
		return nil, err
	}
	out := make([]place, im.frameCount)
	for i := range out {
		out[i].off = first + int64(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	last := &out[len(out)-1]
	fragments, err := im.walk(ctx, last.off)
	if err != nil {
		return nil, err
	}
	if len(fragments) > 0 {
		last.n = fragments[len(fragments)-1].end() - last.off
	}
	end := first
	for i := range out {
		if i+1 < len(out) {
			out[i].n = out[i+1].off - out[i].off
		}
		if end, err = im.follows(i, out[i], end); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// follows holds that frame i begins at or after end and lies in the file, and returns where it ends.
func (im *image) follows(i int, p place, end int64) (int64, error) {
	switch {
	case p.n <= 8:
		return 0, invalid(hintDamaged, "frame %d has no bytes", i+1)
	case p.off < end:
		return 0, invalid(hintDamaged, "frame %d lies at %d, before the end of another", i+1, p.off)
	case p.n > im.r.Size()-p.off:
		return 0, beyond(i, im.r.Size())
	}
	return p.end(), nil
}

func beyond(i int, size int64) error {
	return fmt.Errorf("frame %d: %w, which has %d bytes", i+1, errEndsEarly, size)
}

func (p place) end() int64 { return p.off + p.n }

// span is a fragment with its header.
type span struct {
	place
	starts bool // a codestream begins in it
}

// walk reads the headers of fragments from off to the delimiter behind the last.
func (im *image) walk(ctx context.Context, off int64) ([]span, error) {
	var out []span
	size := im.r.Size()
	for {
		f, err := im.header(ctx, off, size)
		switch {
		case err != nil:
			return nil, err
		case f.tag == tagSequenceEnd:
			return out, nil
		case f.tag != tagItem || f.length == undefined:
			return nil, invalid(hintDamaged, "%v stands at %d where a fragment should", f, off)
		case len(out) == maxFrames:
			return nil, unsupported("no slide needs that many; if this one does, report it", "more than %d fragments", len(out))
		}
		begin, err := im.read(ctx, f.off, min(f.length, 4))
		if err != nil {
			return nil, err
		}
		s := span{place{off, 8 + f.length}, isCodestream(begin)}
		out = append(out, s)
		off = s.end()
	}
}

// isCodestream reports whether a JPEG (ITU-T T.81) or JPEG 2000 (T.800) begins here.
func isCodestream(begin []byte) bool {
	return bytes.HasPrefix(begin, []byte{0xff, 0xd8, 0xff}) || bytes.HasPrefix(begin, []byte{0xff, 0x4f, 0xff, 0x51})
}

// group makes frames of fragments: one of each, or, when there are more, a new one wherever a codestream
// begins.
func (im *image) group(fragments []span) ([]place, error) {
	each := len(fragments) == im.frameCount
	var out []place
	for i, f := range fragments {
		switch {
		case each || f.starts || i == 0:
			out = append(out, f.place)
		default:
			out[len(out)-1].n = f.end() - out[len(out)-1].off
		}
	}
	if len(out) != im.frameCount {
		return nil, invalid(hintDamaged, "%d frames are there, not %d", len(out), im.frameCount)
	}
	end := int64(0)
	var err error
	for i, p := range out {
		if end, err = im.follows(i, p, end); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// whole reads a table. Its length was held against the number of frames.
func (im *image) whole(ctx context.Context, e element) ([]byte, error) {
	out := make([]byte, e.length)
	for at := int64(0); at < e.length; at += maxFetch {
		if err := im.r.ReadRange(ctx, out[at:min(at+maxFetch, e.length)], e.off+at); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// head reads the beginning of a frame and says whether its components are YCbCr.
func (im *image) head(ctx context.Context, p place) (yCbCr bool, err error) {
	if im.coding == Native {
		return false, nil
	}
	head := make([]byte, min(p.n, 64<<10))
	if err := im.r.ReadRange(ctx, head, p.off); err != nil {
		return false, err
	}
	n := length(head[4:])
	if tag(head) != tagItem || n == undefined {
		return false, invalid(hintDamaged, "no fragment stands at %d", p.off)
	}
	head = head[8:min(int64(len(head)), 8+n)]
	if im.coding == RLE {
		if len(head) < 64 || binary.LittleEndian.Uint32(head) != 3 { // three segments
			return false, invalid(hintDamaged, "it is no RLE of three colours")
		}
		return false, nil
	}
	if !isCodestream(head) {
		return false, invalid(hintDamaged, "it is no %s", im.coding)
	}
	if im.coding == JPEG2000 {
		return false, nil
	}
	f, err := readJPEGHead(head)
	switch {
	case err != nil:
		return false, invalid(hintDamaged, "it is a broken JPEG: %w", err)
	case f.width == 0: // farther behind than was read: for the decoder to judge
	case f.width != im.columns || f.height != im.rows || f.components != 3:
		return false, invalid(hintDamaged, "it is a JPEG of %d×%d pixels and %d components, not %d×%d and 3", f.width, f.height, f.components, im.columns, im.rows)
	}
	switch {
	case f.adobe:
		return f.transform != 0, nil
	case f.jfif:
		return true, nil
	default:
		return im.photometric != "RGB", nil
	}
}

// jpegHead is what the markers in front of the first scan say (ITU-T T.81 annex B, T.871 and T.872).
type jpegHead struct {
	width, height, components int
	jfif                      bool // the components are YCbCr
	adobe                     bool // the components are what transform says: 0 RGB, else YCbCr
	transform                 byte
}

func readJPEGHead(data []byte) (h jpegHead, err error) {
	for data = data[2:]; len(data) >= 4; {
		if data[0] != 0xff {
			return h, fmt.Errorf("0x%02x stands where a marker should", data[0])
		}
		marker := data[1]
		if marker == 0xff { // fill byte
			data = data[1:]
			continue
		}
		if marker == 0xda || marker == 0xd9 { // scan, end
			if h.width == 0 {
				return h, errors.New("it has no frame header")
			}
			return h, nil
		}
		n := int(binary.BigEndian.Uint16(data[2:]))
		if n < 2 {
			return h, errors.New("a marker segment has no length")
		}
		if n+2 > len(data) {
			return h, nil
		}
		body := data[4 : n+2]
		switch {
		case marker == 0xe0 && bytes.HasPrefix(body, []byte("JFIF\x00")):
			h.jfif = true
		case marker == 0xee && len(body) >= 12 && bytes.HasPrefix(body, []byte("Adobe")):
			h.adobe, h.transform = true, body[11]
		case marker == 0xc0 || marker == 0xc1 || marker == 0xc2:
			if len(body) < 6 {
				return h, errors.New("its frame header is cut off")
			}
			h.height, h.width, h.components = int(binary.BigEndian.Uint16(body[1:])), int(binary.BigEndian.Uint16(body[3:])), int(body[5])
		}
		data = data[n+2:]
	}
	return h, nil
}
