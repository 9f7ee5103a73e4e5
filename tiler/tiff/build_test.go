package tiff_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"testing"

	"coverslip/tiler/tiff"
)

// Field types of TIFF 6.0 and BigTIFF.
const (
	byteT, asciiT, shortT, longT, rationalT, undefinedT, long8T = 1, 2, 3, 4, 5, 7, 16
)

var typeSize = map[int]int{byteT: 1, asciiT: 1, shortT: 2, longT: 4, rationalT: 8, undefinedT: 1, long8T: 8}

// field is one tag. values are integers of its type; a rational is two LONGs in one value, the
// numerator in the upper half. count, when set, is what the file claims instead of len(values).
type field struct {
	tag, typ int
	values   []uint64
	count    uint64
}

func short(tag int, v ...uint64) field { return field{tag: tag, typ: shortT, values: v} }
func long(tag int, v ...uint64) field  { return field{tag: tag, typ: longT, values: v} }
func rational(tag int, num, den uint64) field {
	return field{tag: tag, typ: rationalT, values: []uint64{num<<32 | den}}
}

func ascii(tag int, s string) field {
	f := field{tag: tag, typ: asciiT}
	for _, b := range []byte(s + "\x00") {
		f.values = append(f.values, uint64(b))
	}
	return f
}

// image is one directory of a synthetic file.
type image struct {
	w, h, tile  int // tile 0 makes strips of 16 rows
	extra       []field
	drop        []int  // tags left out
	data        []byte // of every tile; nil is one byte a sample, as uncompressed RGB has it
	sparse      int    // as many tiles at the end have no bytes
	offsetsType int    // longT when 0
	countsType  int
	subIFDs     []image
	next        int64 // where the next directory is said to be; 0 is the truth
}

// file lays out directories one after the other: tiles, arrays, directory. It is plain on purpose:
// what it writes is to be read beside the specification.
type file struct {
	order binary.ByteOrder
	big   bool
	buf   bytes.Buffer
	dirs  []int64 // where each directory of the chain came to lie
}

func build(order binary.ByteOrder, big bool, images ...image) []byte {
	data, _ := buildAt(order, big, images...)
	return data
}

func buildAt(order binary.ByteOrder, big bool, images ...image) (data []byte, dirs []int64) {
	f := &file{order: order, big: big}
	mark := map[binary.ByteOrder]string{binary.LittleEndian: "II", binary.BigEndian: "MM"}[order]
	f.buf.WriteString(mark)
	var patch int // where the place of the next directory goes
	if big {
		f.put(2, 43)
		f.put(2, 8)
		f.put(2, 0)
		patch = f.buf.Len()
		f.put(8, 0)
	} else {
		f.put(2, 42)
		patch = f.buf.Len()
		f.put(4, 0)
	}
	for _, im := range images {
		off, next := f.dir(im)
		f.dirs = append(f.dirs, off)
		f.patch(patch, uint64(off))
		patch = next
		if im.next != 0 {
			f.patch(patch, uint64(im.next))
			break
		}
	}
	return f.buf.Bytes(), f.dirs
}

func (f *file) put(size int, v uint64) {
	b := make([]byte, 8)
	switch size {
	case 1:
		b[0] = byte(v)
	case 2:
		f.order.PutUint16(b, uint16(v))
	case 4:
		f.order.PutUint32(b, uint32(v))
	case 8:
		f.order.PutUint64(b, v)
	}
	f.buf.Write(b[:size])
}

func (f *file) offsetSize() int {
	if f.big {
		return 8
	}
	return 4
}

func (f *file) patch(at int, v uint64) {
	if b := f.buf.Bytes()[at:]; f.big {
		f.order.PutUint64(b, v)
	} else {
		f.order.PutUint32(b, uint32(v))
	}
}

func (f *file) value(fl field, v uint64) {
	if fl.typ == rationalT {
		f.put(4, v>>32)
		f.put(4, v&math.MaxUint32)
		return
	}
	f.put(typeSize[fl.typ], v)
}

// dir writes one image and returns where its directory is and where the place of the next goes.
func (f *file) dir(im image) (off int64, next int) {
	tw, th := im.tile, im.tile
	if im.tile == 0 {
		tw, th = im.w, min(16, im.h)
	}
	tiles := ((im.w + tw - 1) / tw) * ((im.h + th - 1) / th)
	data := im.data
	if data == nil {
		data = make([]byte, tw*th*3)
	}
	var offsets, counts []uint64
	for i := range tiles {
		offsets, counts = append(offsets, uint64(f.buf.Len())), append(counts, uint64(len(data)))
		if i >= tiles-im.sparse {
			offsets[i], counts[i] = 0, 0
			continue
		}
		f.buf.Write(data)
	}
	fields := []field{
		long(256, uint64(im.w)), long(257, uint64(im.h)), short(258, 8, 8, 8), short(259, 1), short(262, 2), short(277, 3),
	}
	offT, cntT := im.offsetsType, im.countsType
	if offT == 0 {
		offT = longT
	}
	if cntT == 0 {
		cntT = longT
	}
	if im.tile == 0 {
		fields = append(fields, field{tag: 273, typ: offT, values: offsets}, long(278, 16), field{tag: 279, typ: cntT, values: counts})
	} else {
		fields = append(fields, short(322, uint64(tw)), short(323, uint64(th)),
			field{tag: 324, typ: offT, values: offsets}, field{tag: 325, typ: cntT, values: counts})
	}
	if len(im.subIFDs) > 0 {
		sub := field{tag: 330, typ: longT}
		if f.big {
			sub.typ = 18
		}
		for _, s := range im.subIFDs {
			at, _ := f.dir(s)
			sub.values = append(sub.values, uint64(at))
		}
		fields = append(fields, sub)
	}
	for _, e := range im.extra {
		fields = replace(fields, e)
	}
	for _, tag := range im.drop {
		kept := fields[:0]
		for _, fl := range fields {
			if fl.tag != tag {
				kept = append(kept, fl)
			}
		}
		fields = kept
	}
	return f.entries(fields)
}

func (f *file) entries(fields []field) (off int64, next int) {
	typeSize[18] = 8
	inline := f.offsetSize()
	places := make([]int, len(fields))
	for i, fl := range fields {
		if len(fl.values)*typeSize[fl.typ] > inline {
			places[i] = f.buf.Len()
			for _, v := range fl.values {
				f.value(fl, v)
			}
		}
	}
	off = int64(f.buf.Len())
	if f.big {
		f.put(8, uint64(len(fields)))
	} else {
		f.put(2, uint64(len(fields)))
	}
	for i, fl := range fields {
		f.put(2, uint64(fl.tag))
		f.put(2, uint64(fl.typ))
		n := uint64(len(fl.values))
		if fl.count != 0 {
			n = fl.count
		}
		f.put(f.offsetSize(), n)
		if places[i] != 0 {
			f.put(f.offsetSize(), uint64(places[i]))
			continue
		}
		start := f.buf.Len()
		for _, v := range fl.values {
			f.value(fl, v)
		}
		f.buf.Write(make([]byte, inline-(f.buf.Len()-start)))
	}
	next = f.buf.Len()
	f.put(f.offsetSize(), 0)
	return off, next
}

func replace(fields []field, e field) []field {
	for i := range fields {
		if fields[i].tag == e.tag {
			fields[i] = e
			return fields
		}
	}
	return append(fields, e)
}

func read(data []byte) (*tiff.File, error) {
	return tiff.Read(context.Background(), reader(data))
}

func reader(data []byte) *tiff.ReaderAt {
	return tiff.NewReaderAt(bytes.NewReader(data), int64(len(data)))
}

// mustRead fails the test unless data is a TIFF that Check finds whole.
func mustRead(t *testing.T, data []byte) *tiff.File {
	t.Helper()
	f, err := read(data)
	if err == nil {
		err = f.Check(context.Background(), reader(data))
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}
