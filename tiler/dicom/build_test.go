package dicom_test

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/color"
	"image/jpeg"
	"slices"
	"strconv"
	"strings"
	"testing"

	"coverslip/tiler/dicom"
	"coverslip/tiler/tiff"
)

const (
	implicitSyntax = "1.2.840.10008.1.2"
	explicitSyntax = "1.2.840.10008.1.2.1"
	jpegSyntax     = "1.2.840.10008.1.2.4.50"
	j2kSyntax      = "1.2.840.10008.1.2.4.91"
	wholeSlide     = "1.2.840.10008.5.1.4.1.1.77.1.6"
	sequenceEnd    = "\xfe\xff\xdd\xe0\x00\x00\x00\x00"
	itemEnd        = "\xfe\xff\x0d\xe0\x00\x00\x00\x00"
)

// file is one synthetic instance. It is plain on purpose: what it writes is to be read beside the
// standard. Zero values are those of a sound slide of JPEG frames.
type file struct {
	syntax, class, kind, instance, series string
	width, height, tile                   int
	photometric                           string
	samples, bits                         int
	organization                          string
	frameCount                            string     // what is claimed; the truth when empty
	frames                                [][]string // fragments of each; made up when nil
	positions                             [][2]int   // columns and rows, from 1
	first                                 int        // ConcatenationFrameOffsetNumber
	spacing                               string
	table                                 string // basic, extended, none
	undefined                             bool   // sequences and items end with delimiters
	extra                                 map[uint32]string
	planar                                int
	tables                                func(offsets, lengths []byte) ([]byte, []byte) // spoils the extended offset table, or the basic one
	tail                                  string
}

func (f file) withDefaults() file {
	or := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
	}
	or(&f.syntax, jpegSyntax)
	or(&f.class, wholeSlide)
	or(&f.kind, `ORIGINAL\PRIMARY\VOLUME\NONE`)
	or(&f.instance, "1.2.3.4")
	or(&f.series, "1.2.3")
	or(&f.photometric, "YBR_FULL_422")
	or(&f.organization, "TILED_FULL")
	or(&f.spacing, `0.0005\0.0005`)
	or(&f.table, "basic")
	for _, v := range []struct {
		p   *int
		def int
	}{{&f.width, 40}, {&f.height, 24}, {&f.tile, 16}, {&f.samples, 3}, {&f.bits, 8}} {
		if *v.p == 0 {
			*v.p = v.def
		}
	}
	if f.frames == nil {
		n := ((f.width-1)/f.tile + 1) * ((f.height-1)/f.tile + 1)
		if f.positions != nil {
			n = len(f.positions)
		}
		for i := range n {
			f.frames = append(f.frames, []string{f.frame(i)})
		}
	}
	or(&f.frameCount, strconv.Itoa(len(f.frames)))
	return f
}

// frame makes bytes that differ from frame to frame.
func (f file) frame(i int) string {
	if f.syntax != jpegSyntax {
		return strings.Repeat(string([]byte{byte(i), 100, 200}), f.tile*f.tile)
	}
	im := image.NewRGBA(image.Rect(0, 0, f.tile, f.tile))
	for p := range f.tile * f.tile {
		im.SetRGBA(p%f.tile, p/f.tile, color.RGBA{byte(i * 7), byte(p), 200, 255})
	}
	var buf bytes.Buffer
	if err := jpeg.Encode(&buf, im, nil); err != nil {
		panic(err)
	}
	if buf.Len()%2 == 1 {
		buf.WriteByte(0)
	}
	return buf.String()
}

func (f file) build() []byte {
	f = f.withDefaults()
	meta := writer{}
	meta.put(0x00020002, "UI", f.class)
	meta.put(0x00020010, "UI", f.syntax)

	w := writer{implicit: f.syntax == implicitSyntax, undefined: f.undefined}
	w.put(0x00080008, "CS", f.kind)
	w.put(0x00080016, "UI", f.class)
	w.put(0x00080018, "UI", f.instance)
	w.sequence(0x00081140, []func(*writer){func(w *writer) { w.put(0x00081150, "UI", "1.2") }, func(w *writer) {
		w.sequence(0x00081199, []func(*writer){func(w *writer) { w.put(0x00081150, "UI", "1.2") }})
	}})
	w.put(0x0020000e, "UI", f.series)
	if f.first != 0 {
		w.put(0x00209228, "UL", u32(f.first))
	}
	w.put(0x00209311, "CS", f.organization)
	w.put(0x00280002, "US", u16(f.samples))
	w.put(0x00280004, "CS", f.photometric)
	w.put(0x00280006, "US", u16(f.planar))
	w.put(0x00280008, "IS", f.frameCount)
	w.put(0x00280010, "US", u16(f.tile))
	w.put(0x00280011, "US", u16(f.tile))
	w.put(0x00280100, "US", u16(f.bits))
	w.put(0x00480006, "UL", u32(f.width))
	w.put(0x00480007, "UL", u32(f.height))
	w.sequence(0x00480105, []func(*writer){func(w *writer) { w.put(0x00480112, "DS", "20") }})
	for _, tag := range sorted(f.extra) {
		w.put(tag, "US", f.extra[tag])
	}
	measures := func(w *writer) {
		w.sequence(0x00289110, []func(*writer){func(w *writer) { w.put(0x00280030, "DS", f.spacing) }})
	}
	w.sequence(0x52009229, []func(*writer){measures})
	if f.positions != nil {
		var items []func(*writer)
		for _, p := range f.positions {
			items = append(items, func(w *writer) {
				w.sequence(0x0048021a, []func(*writer){func(w *writer) {
					w.put(0x0048021e, "SL", u32(p[0]))
					w.put(0x0048021f, "SL", u32(p[1]))
				}})
			})
		}
		w.sequence(0x52009230, items)
	}
	f.pixels(&w)
	w.buf.WriteString(f.tail)
	return slices.Concat(make([]byte, 128), []byte("DICM"), meta.buf.Bytes(), w.buf.Bytes())
}

// pixels writes the frames, and a table of them.
func (f file) pixels(w *writer) {
	if f.syntax == implicitSyntax || f.syntax == explicitSyntax {
		var all string
		for _, frame := range f.frames {
			all += strings.Join(frame, "")
		}
		w.put(0x7fe00010, "OB", all)
		return
	}
	var data, basic, offsets, lengths []byte
	for _, frame := range f.frames {
		basic = binary.LittleEndian.AppendUint32(basic, uint32(len(data)))
		offsets = binary.LittleEndian.AppendUint64(offsets, uint64(len(data)))
		lengths = binary.LittleEndian.AppendUint64(lengths, uint64(len(strings.Join(frame, ""))))
		for _, part := range frame {
			data = append(append(data, "\xfe\xff\x00\xe0"+u32(len(part))...), part...)
		}
	}
	if f.tables != nil {
		if f.table == "basic" {
			basic, _ = f.tables(basic, nil)
		} else {
			offsets, lengths = f.tables(offsets, lengths)
		}
	}
	if f.table != "basic" {
		basic = nil
	}
	if f.table == "extended" {
		w.put(0x7fe00001, "OV", string(offsets))
		w.put(0x7fe00002, "OV", string(lengths))
	}
	w.head(0x7fe00010, "OB", 0xffffffff)
	w.buf.WriteString("\xfe\xff\x00\xe0" + u32(len(basic)) + string(basic) + string(data) + sequenceEnd)
}

// writer writes elements in little-endian order.
type writer struct {
	buf                 bytes.Buffer
	implicit, undefined bool
}

func (w *writer) head(tag uint32, vr string, n int) {
	w.buf.WriteString(u16(int(tag>>16)) + u16(int(tag&0xffff)))
	switch {
	case w.implicit:
		w.buf.WriteString(u32(n))
	case slices.Contains([]string{"OB", "OW", "OV", "SQ", "UN"}, vr):
		w.buf.WriteString(vr + "\x00\x00" + u32(n))
	default:
		w.buf.WriteString(vr + u16(n))
	}
}

func (w *writer) put(tag uint32, vr, value string) {
	if len(value)%2 == 1 {
		value += map[bool]string{true: "\x00", false: " "}[vr == "UI" || vr == "OB"]
	}
	w.head(tag, vr, len(value))
	w.buf.WriteString(value)
}

func (w *writer) sequence(tag uint32, items []func(*writer)) {
	var all []byte
	for _, item := range items {
		in := writer{implicit: w.implicit, undefined: w.undefined}
		item(&in)
		if w.undefined {
			all = append(all, "\xfe\xff\x00\xe0\xff\xff\xff\xff"+in.buf.String()+itemEnd...)
		} else {
			all = append(all, "\xfe\xff\x00\xe0"+u32(in.buf.Len())+in.buf.String()...)
		}
	}
	if w.undefined {
		w.head(tag, "SQ", 0xffffffff)
		all = append(all, sequenceEnd...)
	} else {
		w.head(tag, "SQ", len(all))
	}
	w.buf.Write(all)
}

func u16(n int) string { return string(binary.LittleEndian.AppendUint16(nil, uint16(n))) }
func u32(n int) string { return string(binary.LittleEndian.AppendUint32(nil, uint32(n))) }

func sorted(m map[uint32]string) []uint32 {
	var tags []uint32
	for t := range m {
		tags = append(tags, t)
	}
	slices.Sort(tags)
	return tags
}

func named(files ...[]byte) []dicom.NamedReader {
	var out []dicom.NamedReader
	for i, data := range files {
		out = append(out, dicom.NamedReader{Name: "file " + strconv.Itoa(i), RangeReader: tiff.NewReaderAt(bytes.NewReader(data), int64(len(data)))})
	}
	return out
}

func cut(t *testing.T, s string, parts int) []string {
	t.Helper()
	var out []string
	size := len(s) / parts / 2 * 2
	for range parts - 1 {
		out, s = append(out, s[:size]), s[size:]
	}
	return append(out, s)
}
