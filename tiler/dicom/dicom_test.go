package dicom_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"coverslip"
	"coverslip/tiler/dicom"
	"coverslip/tiler/tiff"
)

func open(files ...[]byte) (*dicom.Series, error) {
	return dicom.Open(context.Background(), named(files...))
}

func mustOpen(t *testing.T, files ...[]byte) *dicom.Series {
	t.Helper()
	s, err := open(files...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// payload reads a frame as a decoder gets it.
func payload(t *testing.T, l *dicom.Level, column, row int, files ...[]byte) string {
	t.Helper()
	i, off, n, ok := l.Frame(column, row)
	if !ok {
		t.Fatalf("no frame at %d,%d", column, row)
	}
	data, err := l.Payload(bytes.Clone(files[i][off : off+n]))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestFramesByEveryTable(t *testing.T) {
	whole := file{}.withDefaults()
	parted := whole
	parted.frames = nil
	for i, f := range whole.frames {
		parted.frames = append(parted.frames, cut(t, f[0], 1+i%3))
	}
	for name, f := range map[string]file{
		"Basic":             {},
		"Extended":          {table: "extended"},
		"None":              {table: "none"},
		"FragmentsBasic":    {frames: parted.frames},
		"FragmentsNone":     {frames: parted.frames, table: "none"},
		"UndefinedLengths":  {undefined: true},
		"OrganizationUnset": {organization: " "},
	} {
		t.Run(name, func(t *testing.T) {
			data := f.build()
			s := mustOpen(t, data)
			l := s.Levels[0]
			if columns, rows := l.FrameCount(); len(s.Levels) != 1 || columns != 3 || rows != 2 || l.TileWidth != 16 || l.TileHeight != 16 || l.Coding != dicom.JPEG || !l.YCbCr {
				t.Fatalf("%+v", l)
			}
			for i := range 6 {
				if got := payload(t, l, i%3, i/3, data); got != whole.frames[i][0] {
					t.Errorf("frame %d is not what was written", i)
				}
			}
		})
	}
}

// A frame whose only fragment is as long as its table says, less the byte of padding.
func TestExtendedTableCountsNoPadding(t *testing.T) {
	f := file{table: "extended", tables: func(offsets, lengths []byte) ([]byte, []byte) {
		binary.LittleEndian.PutUint64(lengths, binary.LittleEndian.Uint64(lengths)-1)
		return offsets, lengths
	}}
	data := f.build()
	if got, want := payload(t, mustOpen(t, data).Levels[0], 0, 0, data), f.withDefaults().frames[0][0]; got != want[:len(want)-1] {
		t.Errorf("%d bytes of %d", len(got), len(want))
	}
}

func TestUncompressed(t *testing.T) {
	for _, syntax := range []string{implicitSyntax, explicitSyntax} {
		for _, undefined := range []bool{false, true} {
			f := file{syntax: syntax, photometric: "RGB", undefined: undefined, planar: 1}
			data := f.build()
			s := mustOpen(t, data)
			l := s.Levels[0]
			if l.Coding != dicom.Native || !l.Planar || s.MPPX != 0.5 || s.ObjectivePower != 20 {
				t.Errorf("%s: %+v, %+v", syntax, s, l)
			}
			for i := range 6 {
				if got := payload(t, l, i%3, i/3, data); got != f.withDefaults().frames[i][0] {
					t.Errorf("%s: frame %d is not what was written", syntax, i)
				}
			}
		}
	}
}

func TestSparse(t *testing.T) {
	for _, undefined := range []bool{false, true} {
		f := file{organization: "TILED_SPARSE", positions: [][2]int{{33, 17}, {1, 1}, {17, 1}}, undefined: undefined}
		data := f.build()
		l := mustOpen(t, data).Levels[0]
		at := map[[2]int]int{{2, 1}: 0, {0, 0}: 1, {1, 0}: 2}
		for row := range 2 {
			for column := range 3 {
				i, there := at[[2]int{column, row}]
				if _, _, _, ok := l.Frame(column, row); ok != there {
					t.Fatalf("frame at %d,%d: %t", column, row, ok)
				}
				if there && payload(t, l, column, row, data) != f.withDefaults().frames[i][0] {
					t.Errorf("frame at %d,%d is another", column, row)
				}
			}
		}
	}
}

// Level 0 in two files and level 1 in a third, named in no order, with a label among them.
func TestLevelsAndSplitLevel(t *testing.T) {
	whole := file{}.withDefaults()
	front := file{instance: "1", frames: whole.frames[:4]}.build()
	back := file{instance: "2", frames: whole.frames[4:], first: 4}.build()
	small := file{instance: "3", width: 20, height: 12, spacing: `0.001\0.001`}.build()
	label := file{instance: "4", width: 99, height: 99, kind: `ORIGINAL\PRIMARY\LABEL\NONE`}.build()
	files := [][]byte{small, back, label, front}
	s := mustOpen(t, files...)
	want := []coverslip.Level{{Width: 40, Height: 24, Downsample: 1}, {Width: 20, Height: 12, Downsample: 2}}
	if got := []coverslip.Level{s.Levels[0].Level, s.Levels[1].Level}; len(s.Levels) != 2 || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v", got)
	}
	for i := range 6 {
		if payload(t, s.Levels[0], i%3, i/3, files...) != whole.frames[i][0] {
			t.Errorf("frame %d is another", i)
		}
	}
	if s.MPPX != 0.5 || s.MPPY != 0.5 {
		t.Errorf("mpp %g, %g", s.MPPX, s.MPPY)
	}
	for name, files := range map[string][][]byte{"FrontMissing": {back, small}, "BackMissing": {front, small}} {
		if _, err := open(files...); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSpacing(t *testing.T) {
	for text, want := range map[string][2]float64{
		`0.0004\0.0005`:       {0.5, 0.4}, // rows first
		`0,000499\0,000499`:   {0.499, 0.499},
		` 4.99e-4\.000499`:    {0.499, 0.499},
		`0\0`:                 {0, 0},
		`none\given`:          {0, 0},
		` `:                   {0, 0},
		`0.0005\0.0005\0.001`: {0.5, 0.5},
	} {
		s := mustOpen(t, file{spacing: text}.build())
		if math.Abs(s.MPPX-want[0]) > 1e-9 || math.Abs(s.MPPY-want[1]) > 1e-9 {
			t.Errorf("%q: %g, %g", text, s.MPPX, s.MPPY)
		}
	}
	if s := mustOpen(t, file{spacing: `NaN\NaN`}.build()); !math.IsNaN(s.MPPX) { // for tiler to doubt
		t.Errorf("NaN: %g", s.MPPX)
	}
}

// What a JPEG says of its own colours counts, and where it says nothing, the data set's word.
func TestColours(t *testing.T) {
	bare := file{}.withDefaults().frame(0)
	jfif := bare[:2] + "\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00" + bare[2:]
	adobe := func(transform string) string {
		return bare[:2] + "\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + transform + bare[2:]
	}
	for _, c := range []struct {
		name, photometric, frame string
		yCbCr                    bool
	}{
		{"BareRGB", "RGB", bare, false},
		{"BareYBR", "YBR_FULL_422", bare, true},
		{"JFIFInRGB", "RGB", jfif, true},
		{"AdobeRGBInYBR", "YBR_FULL_422", adobe("\x00"), false},
		{"AdobeYCCInRGB", "RGB", adobe("\x01"), true},
	} {
		s, err := open(file{width: 16, height: 16, photometric: c.photometric, frames: [][]string{{c.frame}}}.build())
		if err != nil || s.Levels[0].YCbCr != c.yCbCr {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestRefused(t *testing.T) {
	const no, bad = coverslip.Unsupported, coverslip.Invalid
	whole := file{}.withDefaults()
	us := func(tag uint32, n int) map[uint32]string { return map[uint32]string{tag: u16(n)} }
	spoil := func(i int, v uint64) func(offsets, lengths []byte) ([]byte, []byte) {
		return func(offsets, lengths []byte) ([]byte, []byte) {
			binary.LittleEndian.PutUint64(offsets[8*i:], v)
			return offsets, lengths
		}
	}
	for _, c := range []struct {
		name string
		file file
		kind coverslip.Kind
		says string
	}{
		{"Radiology", file{class: "1.2.840.10008.5.1.4.1.1.2"}, no, "CT"},
		{"OtherClass", file{class: "1.2.3"}, no, "1.2.3"},
		{"Deflated", file{syntax: "1.2.840.10008.1.2.1.99"}, no, "deflate"},
		{"BigEndian", file{syntax: "1.2.840.10008.1.2.2"}, no, "big-endian"},
		{"RunLengthOfOtherColours", file{syntax: "1.2.840.10008.1.2.5"}, no, "YBR_FULL_422"},
		{"RunLengthOfAnotherKind", file{syntax: "1.2.840.10008.1.2.5", photometric: "RGB"}, coverslip.Invalid, "RLE of three colours"},
		{"UnknownSyntax", file{syntax: "1.2.3.4"}, no, "1.2.3.4"},
		{"LabelOnly", file{kind: `ORIGINAL\PRIMARY\LABEL\NONE`}, no, "VOLUME"},
		{"NoImageType", file{kind: "x"}, no, "VOLUME"},
		{"Grey", file{samples: 1, photometric: "MONOCHROME2"}, no, "MONOCHROME2"},
		{"SixteenBits", file{bits: 16}, no, "16-bit"},
		{"Palette", file{photometric: "PALETTE COLOR"}, no, "PALETTE"},
		{"YBRUncompressed", file{syntax: explicitSyntax}, no, "YBR_FULL_422"},
		{"OpticalPaths", file{extra: us(0x00480302, 3)}, no, "3 optical paths"},
		{"FocalPlanes", file{extra: us(0x00480303, 5)}, no, "5 focal planes"},
		{"GiantFrames", file{tile: 60000, width: 60000, height: 60000, frames: whole.frames[:1]}, no, "60000"},
		{"OffTheGrid", file{organization: "TILED_SPARSE", positions: [][2]int{{2, 1}}}, no, "grid"},
		{"FrameTwice", file{organization: "TILED_SPARSE", positions: [][2]int{{17, 1}, {17, 1}}}, no, "two frames"},

		{"FrameOutside", file{organization: "TILED_SPARSE", positions: [][2]int{{4097, 1}}}, bad, "outside"},
		{"FrameAtZero", file{organization: "TILED_SPARSE", positions: [][2]int{{0, 0}}}, bad, "outside"},
		{"PositionsMissing", file{organization: "TILED_SPARSE", positions: [][2]int{{1, 1}}, frames: whole.frames[:3]}, bad, "say where"},
		{"NoPixels", file{width: -1}, bad, "level of"},
		{"FramesOf4GSquared", file{extra: map[uint32]string{0x00280010: "\xff\xff\xff\xff", 0x00280011: "\xff\xff\xff\xff"}}, bad, "frames of 4294967295"},
		{"Edge4G", file{width: -1, height: -1}, bad, "level of"},
		{"MoreFramesThanRoom", file{frames: append(slices.Clone(whole.frames), whole.frames[0])}, bad, "room"},
		{"FewerFramesThanRoom", file{frames: whole.frames[:5]}, bad, "5 of its 6"},
		{"CountLiesUp", file{frameCount: "7"}, bad, "for 7 frames"},
		{"CountLiesDown", file{frameCount: "5"}, bad, "for 5 frames"},
		{"CountLiesUpNoTable", file{frameCount: "7", table: "none"}, bad, "6 frames are there"},
		{"CountLiesDownNoTable", file{frameCount: "5", table: "none"}, bad, "6 frames are there"},
		{"CountLiesExtended", file{frameCount: "7", table: "extended"}, bad, "for 7 frames"},
		{"CountNegative", file{frameCount: "-1"}, bad, "-1 frames"},
		{"CountHuge", file{frameCount: "9223372036854775807"}, bad, "claims"},
		{"CountNoNumber", file{frameCount: "many"}, bad, "many"},
		{"CountUncompressed", file{syntax: explicitSyntax, photometric: "RGB", frameCount: "7"}, bad, "7 frames"},
		{"EmptyFrame", file{frames: [][]string{{""}, {""}, {""}, {""}, {""}, {""}}}, bad, "no bytes"},
		{"NotJPEG", file{frames: slices.Repeat([][]string{{"some text, no JPEG"}}, 6)}, bad, "no JPEG"},
		{"NotJPEG2000", file{syntax: j2kSyntax, photometric: "YBR_ICT"}, bad, "no JPEG 2000"},
		{"FrameOfAnotherSize", file{tile: 16, frames: slices.Repeat([][]string{{file{tile: 8}.withDefaults().frame(0)}}, 6)}, bad, "8×8"},
		{"ExtendedOutside", file{table: "extended", tables: spoil(5, 1<<40)}, bad, "end of the file"},
		{"ExtendedOverflows", file{table: "extended", tables: spoil(5, math.MaxUint64)}, bad, "end of the file"},
		{"ExtendedBackwards", file{table: "extended", tables: spoil(3, 0)}, bad, "before the end"},
		{"BasicBackwards", file{tables: func(o, _ []byte) ([]byte, []byte) { copy(o[12:16], "\x00\x00\x00\x00"); return o, nil }}, bad, "frame"},
		{"BasicOutside", file{tables: func(o, _ []byte) ([]byte, []byte) { copy(o[20:24], "\xff\xff\xff\x7f"); return o, nil }}, bad, "end of the file"},
		{"BasicShort", file{tables: func(o, _ []byte) ([]byte, []byte) { return o[:20], nil }}, bad, "20 bytes"},
		{"SixtyThousandSquared", file{organization: "TILED_SPARSE", width: 60000, height: 60000, positions: [][2]int{{1, 1}}}, bad, "60000×60000"},
		{"TwoToThe31Squared", file{organization: "TILED_SPARSE", width: 1<<31 - 1, height: 1<<31 - 1, positions: [][2]int{{1, 1}}}, bad, "2147483647"},
		{"TwoToThe31Full", file{width: 1<<31 - 1, height: 1<<31 - 1, frames: whole.frames}, bad, "6 of its"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := open(c.file.build())
			refused(t, err, c.kind)
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
		})
	}
}

// refused holds that an error can be shown to a user.
func refused(t *testing.T, err error, kinds ...coverslip.Kind) {
	t.Helper()
	var e *coverslip.Error
	if !errors.As(err, &e) || !slices.Contains(kinds, e.Kind) || e.Op == "" || e.Err == nil || e.Hint == "" || e.Path == "" {
		t.Errorf("%v: %#v", err, e)
	}
}

func TestSeveralInOne(t *testing.T) {
	a := file{}.build()
	for name, c := range map[string]struct {
		other []byte
		kind  coverslip.Kind
	}{
		"SameImageTwice":   {a, coverslip.Invalid},
		"AnotherSeries":    {file{instance: "2", series: "9"}.build(), coverslip.Invalid},
		"AnotherPyramid":   {file{instance: "2", width: 24, height: 24}.build(), coverslip.Unsupported},
		"AnotherPlane":     {file{instance: "2"}.build(), coverslip.Unsupported},
		"AnotherTileSize":  {file{instance: "2", tile: 8, first: 6}.build(), coverslip.Unsupported},
		"SecondIsCutShort": {file{instance: "2", width: 20, height: 12}.build()[:900], coverslip.Invalid},
	} {
		_, err := open(a, c.other)
		t.Run(name, func(t *testing.T) { refused(t, err, c.kind) })
	}
}

// Lengths that claim far more than the file has, and nesting without end.
func TestBombs(t *testing.T) {
	at := func(data []byte, tag uint32) int {
		i := bytes.Index(data, []byte(u16(int(tag>>16))+u16(int(tag&0xffff))))
		if i < 0 {
			t.Fatalf("no %x", tag)
		}
		return i
	}
	put := func(data []byte, off int, s string) []byte { copy(data[off:], s); return data }
	deep := func(undefined bool) []byte {
		var nest func(int) func(*writer)
		nest = func(n int) func(*writer) {
			return func(w *writer) {
				if n > 0 {
					w.sequence(0x52009229, []func(*writer){nest(n - 1)})
				}
			}
		}
		w := writer{undefined: undefined}
		nest(500)(&w)
		data := file{}.build()
		i := at(data, 0x00280002)
		return slices.Concat(data[:i], w.buf.Bytes(), data[i:])
	}
	seq := file{}.build()
	und := file{undefined: true}.build()
	bombs := map[string][]byte{
		"Element":          put(file{}.build(), at(seq, 0x00280004)+6, "\xff\xff"),
		"Sequence":         put(file{}.build(), at(seq, 0x52009229)+8, "\xf0\xff\xff\xff"),
		"ItemInSequence":   put(file{}.build(), at(seq, 0x52009229)+16, "\xf0\xff\xff\xff"),
		"InItem":           put(file{}.build(), at(seq, 0x00289110)+8, "\xf0\xff\x00\x00"),
		"Fragment":         put(file{table: "none"}.build(), at(file{table: "none"}.build(), 0x7fe00010)+24, "\xfe\xff\xff\xff"),
		"LastFragment":     bytes.TrimSuffix(file{}.build(), []byte(sequenceEnd)),
		"FragmentNoEnd":    put(file{table: "none"}.build(), at(file{table: "none"}.build(), 0x7fe00010)+24, "\xff\xff\xff\xff"),
		"ItemWithoutEnd":   put(file{undefined: true}.build(), bytes.LastIndex(und[:at(und, 0x7fe00010)], []byte(itemEnd)), itemEnd[:2]+"\x00\x00"),
		"DeepUndefined":    deep(true),
		"NoType":           put(file{}.build(), at(seq, 0x00280004)+4, "\x01\x02"),
		"NumberOfOneByte":  put(file{}.build(), at(seq, 0x00280010)+6, "\x01\x00"),
		"PixelsWithLength": put(file{}.build(), at(seq, 0x7fe00010)+8, "\x10\x00\x00\x00"),
	}
	for name, data := range bombs {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := open(data)
			runtime.ReadMemStats(&after)
			refused(t, err, coverslip.Invalid)
			if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
				t.Errorf("%d bytes were allocated for a file of %d", used, len(data))
			}
		})
	}
	// Sequences that are skipped whole may be as deep as they like: 500 of known length are 8 KiB.
	if _, err := open(deep(false)); err != nil {
		refused(t, err, coverslip.Invalid)
	}
}

func TestFault1TruncatedAnywhere(t *testing.T) {
	for name, f := range map[string]file{"Basic": {}, "Extended": {table: "extended"}, "None": {table: "none"}, "Native": {syntax: implicitSyntax, photometric: "RGB"}, "Undefined": {undefined: true}} {
		data := f.build()
		end := len(data)
		if f.table == "extended" {
			end -= len(sequenceEnd) // the table says where all frames are
		}
		for n := range end {
			s, err := open(data[:n])
			if err == nil {
				t.Fatalf("%s cut at %d of %d: opened as %+v", name, n, len(data), s)
			}
			refused(t, err, coverslip.Invalid, coverslip.Unsupported)
			if n >= 400 && coverslip.KindOf(err) != coverslip.Invalid {
				t.Fatalf("%s cut at %d: %v", name, n, err)
			}
		}
	}
}

func shared(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join("../../../shared/data/wsi", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is not here: it may not be passed on, so this test runs where the project's shared data lies", name)
	}
	return path
}

func contents(t *testing.T, path string) (names []string, data [][]byte) {
	t.Helper()
	names, err := dicom.Files(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, b)
	}
	return names, data
}

// The expected numbers are pydicom's.
func TestRealSlides(t *testing.T) {
	_, data := contents(t, shared(t, "dicom/cmu-1-small-region"))
	s := mustOpen(t, data...)
	if len(s.Levels) != 12 || s.UID != "1.2.276.0.7230010.3.1.3.2425734838.4124713.1626788322.499658" || math.Abs(s.MPPX-0.499) > 1e-9 || math.Abs(s.MPPY-0.499) > 1e-9 || s.ObjectivePower != 0 {
		t.Errorf("%+v", s)
	}
	sizes := [][2]int{{2220, 2967}, {1110, 1483}, {555, 741}, {277, 370}, {138, 185}, {69, 92}, {34, 46}, {17, 23}, {8, 11}, {4, 5}, {2, 2}, {1, 1}}
	for i, l := range s.Levels {
		if [2]int{l.Width, l.Height} != sizes[i] || l.Downsample != float64(int(1)<<i) || l.Coding != dicom.JPEG || !l.YCbCr {
			t.Errorf("level %d: %+v", i, l)
		}
		columns, rows := l.FrameCount()
		for row := range rows {
			for column := range columns {
				if frame := payload(t, l, column, row, data...); !strings.HasPrefix(frame, "\xff\xd8\xff\xe0") || !strings.HasSuffix(strings.TrimRight(frame, "\x00"), "\xff\xd9") {
					t.Errorf("level %d: frame %d,%d is no JPEG", i, column, row)
				}
			}
		}
	}

	names, data := contents(t, shared(t, "dicom/boxes_1.dcm")) // the thumbnail
	s = mustOpen(t, data...)
	if len(names) != 1 || filepath.Base(names[0]) != "boxes_0.dcm" || len(s.Levels) != 1 || s.Levels[0].Width != 16 || s.Levels[0].TileWidth != 64 || s.Levels[0].YCbCr || s.ObjectivePower != 20 {
		t.Errorf("%v: %+v", names, s)
	}
}

func TestTruncatedRealSlides(t *testing.T) {
	for _, path := range []string{"dicom/cmu-1-small-region", "dicom/boxes_0.dcm"} {
		names, data := contents(t, shared(t, path))
		for i := range data {
			for _, n := range []int{0, 1024, len(data[i]) / 4, len(data[i]) / 2, len(data[i]) * 99 / 100} {
				cut := slices.Clone(data)
				cut[i] = cut[i][:n]
				if _, err := open(cut...); coverslip.KindOf(err) != coverslip.Invalid || !strings.HasPrefix(err.Error(), fmt.Sprintf("file %d: ", i)) {
					t.Errorf("%s cut to %d bytes: %v", names[i], n, err)
				}
			}
		}
	}
}

// counted counts what is read.
type counted struct {
	tiff.RangeReader
	bytes, requests atomic.Int64
}

func (c *counted) ReadRange(ctx context.Context, dst []byte, off int64) error {
	c.bytes.Add(int64(len(dst)))
	c.requests.Add(1)
	return c.RangeReader.ReadRange(ctx, dst, off)
}

func TestReadsLittle(t *testing.T) {
	big := file{width: 16 * 40, height: 16 * 40, frames: slices.Repeat([][]string{{file{}.withDefaults().frame(0) + strings.Repeat("\x00", 20<<10)}}, 1600)}
	for table, most := range map[string]int64{"basic": 5, "extended": 6} {
		big.table = table
		data := big.build()
		c := &counted{RangeReader: tiff.NewReaderAt(bytes.NewReader(data), int64(len(data)))}
		if _, err := dicom.Open(context.Background(), []dicom.NamedReader{{Name: "big", RangeReader: c}}); err != nil {
			t.Fatal(err)
		}
		if c.requests.Load() > most || c.bytes.Load() > 160<<10 {
			t.Errorf("%s: %d bytes of %d in %d requests", table, c.bytes.Load(), len(data), c.requests.Load())
		}
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := dicom.Open(ctx, named(file{}.build())); coverslip.KindOf(err) != coverslip.Canceled {
		t.Error(err)
	}
}

func TestFiles(t *testing.T) {
	write := func(t *testing.T, files map[string][]byte) string {
		dir := t.TempDir()
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	slide := map[string][]byte{
		"b":          file{instance: "1"}.build(),
		"a.dcm":      file{instance: "2", width: 20, height: 12}.build(),
		"label.dcm":  file{instance: "3", kind: `ORIGINAL\PRIMARY\LABEL\NONE`}.build(),
		"ct.dcm":     file{instance: "4", class: "1.2.840.10008.5.1.4.1.1.2"}.build(),
		"README.txt": []byte("not a DICOM file at all"),
		"empty":      nil,
	}
	with := func(name string, data []byte) map[string][]byte {
		m := maps.Clone(slide)
		m[name] = data
		return m
	}
	other := file{series: "9.9", instance: "5"}.build()
	for _, c := range []struct {
		name  string
		files map[string][]byte
		path  string
		want  []string
		kind  coverslip.Kind
		says  string
	}{
		{"Folder", slide, "", []string{"a.dcm", "b"}, "", ""},
		{"File", slide, "b", []string{"a.dcm", "b"}, "", ""},
		{"ByItsLabel", slide, "label.dcm", []string{"a.dcm", "b"}, "", ""},
		{"FileAmongTwoSeries", with("c.dcm", other), "b", []string{"a.dcm", "b"}, "", ""},
		{"OtherOfTwoSeries", with("c.dcm", other), "c.dcm", []string{"c.dcm"}, "", ""},
		{"FolderOfTwoSeries", with("c.dcm", other), "", nil, coverslip.Unsupported, "a.dcm (1.2.3), c.dcm (9.9)"},
		{"FolderOfNone", map[string][]byte{"x": nil}, "", nil, coverslip.Unsupported, "none in the folder"},
		{"Radiology", slide, "ct.dcm", nil, coverslip.Unsupported, "CT"},
		{"Text", slide, "README.txt", nil, coverslip.Unsupported, "not a DICOM file"},
		{"Absent", slide, "absent", nil, coverslip.NotFound, "no such file"},
		{"SiblingEmpty", with("z.dcm", nil), "b", nil, coverslip.Invalid, "z.dcm"},
		{"SiblingCut", with("z.dcm", other[:300]), "b", nil, coverslip.Invalid, "z.dcm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := write(t, c.files)
			if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
				t.Fatal(err)
			}
			got, err := dicom.Files(context.Background(), filepath.Join(dir, c.path))
			if c.kind != "" {
				refused(t, err, c.kind)
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v does not say %q", err, c.says)
				}
				return
			}
			for i := range got {
				got[i] = filepath.Base(got[i])
			}
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}
