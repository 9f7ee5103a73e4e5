package tiff_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coverslip"
	"coverslip/tiler/tiff"
)

var update = flag.Bool("update", false, "write what was read as the new golden file")

const (
	bundled = "../../testdata/CMU-1-Small-Region.svs"
	shared  = "../../../shared/data/wsi"
)

func sharedFiles(t *testing.T, patterns ...string) []string {
	t.Helper()
	if _, err := os.Stat(shared); err != nil {
		t.Skip("the folder ../shared/data with real slides is not here")
	}
	var names []string
	for _, p := range patterns {
		found, err := filepath.Glob(filepath.Join(shared, p))
		if err != nil || len(found) == 0 {
			t.Fatalf("no file matches %s: %v", p, err)
		}
		names = append(names, found...)
	}
	return names
}

func wholeTIFFs(t *testing.T) []string {
	return sharedFiles(t, "svs/*", "tiff/*.tif*", "ndpi/*", "not-slides/*.tiff")
}

func open(t *testing.T, name string) *tiff.ReaderAt {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return tiff.NewReaderAt(file, info.Size())
}

func readChecked(r tiff.RangeReader) (*tiff.File, error) {
	f, err := tiff.Read(context.Background(), r)
	if err != nil {
		return nil, err
	}
	return f, f.Check(context.Background(), r)
}

// facts is a file in words, to compare with tiffinfo -s.
func facts(f *tiff.File) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  %s, %d bytes, BigTIFF %t, %v\n", f.Format, f.Size, f.Big, f.ByteOrder)
	for _, d := range f.Dirs {
		cols, rows := d.TileCount()
		kind := "strips"
		if d.Tiled {
			kind = "tiles"
		}
		off, n := d.Tile(cols-1, rows-1)
		fmt.Fprintf(&b, "  dir %d at %d: %s, %dx%d, %dx%d %s of %dx%d (last: %d at %d, empty: %d), %s, photometric %d, %dx%d bits, format %d, "+
			"predictor %d, orientation %d, %d bytes of tables, %.6gx%.6g per unit %d, subfile %d, icc %t, description %d, %q %q %q\n",
			d.Page, d.Offset, d.Role, d.Width, d.Height, cols, rows, kind, d.TileWidth, d.TileHeight, n, off, d.EmptyTiles(),
			d.Compression, d.Photometric, d.SamplesPerPixel, d.BitsPerSample, d.SampleFormat, d.Predictor, d.Orientation,
			len(d.JPEGTables), d.XResolution, d.YResolution, d.ResolutionUnit, d.NewSubfileType, d.ICC, len(d.Description),
			d.Software, d.Make, d.Model)
	}
	for i, l := range f.Levels {
		fmt.Fprintf(&b, "  level %d: %dx%d, %.6g, dir %d\n", i, l.Width, l.Height, l.Downsample, l.Dir.Page)
	}
	return b.String()
}

// TestRealFiles holds the index of every real TIFF to testdata/real.golden, which was compared
// with tiffinfo and tiffdump by hand.
func TestRealFiles(t *testing.T) {
	var got strings.Builder
	for _, name := range wholeTIFFs(t) {
		f, err := readChecked(open(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		fmt.Fprintf(&got, "%s\n%s", filepath.Base(name), facts(f))
	}
	golden := filepath.Join("testdata", "real.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("index of the real files changed (-update if rightly so):\n%s", firstDifference(got.String(), string(want)))
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return "got  " + g[i] + "\nwant " + w[i]
		}
	}
	return fmt.Sprintf("got %d lines, want %d", len(g), len(w))
}

func TestBundledSlide(t *testing.T) {
	f, err := readChecked(open(t, bundled))
	if err != nil {
		t.Fatal(err)
	}
	if f.Format != tiff.FormatAperio || f.Aperio["MPP"] != "0.4990" || f.Aperio["AppMag"] != "20" {
		t.Errorf("format %s, MPP %q, AppMag %q", f.Format, f.Aperio["MPP"], f.Aperio["AppMag"])
	}
	if len(f.Levels) != 1 || f.Levels[0].Width != 2220 || f.Levels[0].Height != 2967 || f.Levels[0].Downsample != 1 {
		t.Errorf("levels %+v", f.Levels)
	}
	for role, page := range map[tiff.Role]int{tiff.LevelImage: 0, tiff.Thumbnail: 1, tiff.Label: 2, tiff.Macro: 3} {
		if d := f.First(role); d == nil || d.Page != page {
			t.Errorf("%s is %+v, want directory %d", role, d, page)
		}
	}
	d := f.Levels[0].Dir
	if off, n := d.Tile(1, 0); off != 3700 || n != 2345 {
		t.Errorf("tile 1,0 has %d bytes at %d, want 2345 at 3700", n, off)
	}
	if d.Photometric != tiff.RGB || d.YCbCrSubsample != [2]int{2, 2} || !bytes.HasPrefix(d.JPEGTables, []byte{0xff, 0xd8, 0xff, 0xdb}) {
		t.Errorf("photometric %d, subsampling %v, tables %x…", d.Photometric, d.YCbCrSubsample, d.JPEGTables[:4])
	}
}

// TestBundledSlideTruncated runs without ../shared. The others are in TestFault1Truncated.
func TestBundledSlideTruncated(t *testing.T) { truncated(t, bundled) }

func TestFault1Truncated(t *testing.T) {
	for _, name := range wholeTIFFs(t) {
		t.Run(filepath.Base(name), func(t *testing.T) { truncated(t, name) })
	}
}

func truncated(t *testing.T, name string) {
	whole := open(t, name)
	for _, c := range []struct {
		name string
		size int64
	}{
		{"AtZero", 0}, {"At1KiB", 1024}, {"AtQuarter", whole.Size() / 4}, {"AtHalf", whole.Size() / 2},
		{"At75Percent", whole.Size() * 3 / 4}, {"At99Percent", whole.Size() * 99 / 100}, {"OneByteShort", whole.Size() - 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := make([]byte, c.size)
			if err := whole.ReadRange(context.Background(), data, 0); err != nil {
				t.Fatal(err)
			}
			_, err := readChecked(reader(data))
			if c.name == "OneByteShort" && err == nil {
				return // the last byte is not always anybody's
			}
			refused(t, err, coverslip.Invalid, "")
			if c.size != 1024 && coverslip.HintOf(err) != "the file ends early; upload it again" {
				t.Errorf("hint %q", coverslip.HintOf(err))
			}
		})
	}
}

// refused fails the test unless err is of the kind, says what was done, what to do, and phrase.
func refused(t *testing.T, err error, kind coverslip.Kind, phrase string) {
	t.Helper()
	var e *coverslip.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want %s", err, kind)
	}
	if e.Kind != kind || e.Op == "" || e.Hint == "" || !strings.Contains(err.Error(), phrase) {
		t.Errorf("got %s %q, want %s with %q, an operation and a hint", e.Kind, err, kind, phrase)
	}
}

func TestBrokenFiles(t *testing.T) {
	want := map[string]struct {
		kind   coverslip.Kind
		phrase string
	}{
		"broken.svs":          {coverslip.Unsupported, "not a TIFF"},
		"unopenable.tiff":     {coverslip.Unsupported, "compression 52479"},
		"unreadable.svs":      {coverslip.Invalid, "tile 0 is no JPEG"},
		"boxes.png":           {coverslip.Unsupported, "not a TIFF"},
		"notanimage.txt":      {coverslip.Unsupported, "not a TIFF"},
		"radiology-liver.dcm": {coverslip.Unsupported, "not a TIFF"},
	}
	for _, name := range sharedFiles(t, "broken/*", "tiff/*.png", "not-slides/*.txt", "not-slides/*.dcm") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			w, ok := want[filepath.Base(name)]
			if !ok {
				t.Fatal("a new file: say how it must be refused")
			}
			_, err := readChecked(open(t, name))
			refused(t, err, w.kind, w.phrase)
		})
	}
}

// layouts are the four ways to write the same directories.
var layouts = []struct {
	name  string
	order binary.ByteOrder
	big   bool
}{
	{"LittleEndian", binary.LittleEndian, false}, {"BigEndian", binary.BigEndian, false},
	{"BigTIFFLittleEndian", binary.LittleEndian, true}, {"BigTIFFBigEndian", binary.BigEndian, true},
}

func TestFieldTypes(t *testing.T) {
	for _, l := range layouts {
		for _, offsets := range []int{longT, long8T} {
			for _, counts := range []int{shortT, longT, long8T} {
				for _, w := range []int{16, 20, 100} { // one tile inline, two, seven
					t.Run(fmt.Sprintf("%s/%d/%d/%d", l.name, offsets, counts, w), func(t *testing.T) {
						data := build(l.order, l.big, image{w: w, h: 16, tile: 16, offsetsType: offsets, countsType: counts,
							extra: []field{rational(282, 20000, 1), rational(283, 40000, 2), short(296, 3), ascii(305, "writer"), ascii(271, "m")}})
						f := mustRead(t, data)
						d := f.Dirs[0]
						header := int64(8)
						if l.big {
							header = 16
						}
						cols, _ := d.TileCount()
						for i := range cols {
							if off, n := d.Tile(i, 0); off != header+int64(i)*768 || n != 768 {
								t.Errorf("tile %d: %d bytes at %d", i, n, off)
							}
						}
						if f.Big != l.big || d.XResolution != 20000 || d.YResolution != 20000 || d.ResolutionUnit != 3 ||
							d.Software != "writer" || d.Make != "m" || d.BitsPerSample != 8 {
							t.Errorf("%+v", d)
						}
					})
				}
			}
		}
	}
}

func TestDefaults(t *testing.T) {
	f := mustRead(t, build(binary.LittleEndian, false, image{w: 8, h: 4, data: make([]byte, 4), drop: []int{258, 259, 262, 277, 278},
		extra: []field{short(274, 9), rational(282, 1, 0), rational(283, 0, 0)}}))
	d := f.Dirs[0]
	if d.BitsPerSample != 1 || d.SamplesPerPixel != 1 || d.Compression != tiff.Uncompressed || d.Photometric != -1 || d.TileHeight != 4 ||
		d.Orientation != 1 || d.Predictor != 1 || d.SampleFormat != 1 || d.ResolutionUnit != 2 || d.XResolution != 0 || d.YResolution != 0 {
		t.Errorf("%+v", d)
	}
}

func TestEmptyTilesAreCounted(t *testing.T) {
	f := mustRead(t, build(binary.LittleEndian, false, image{w: 64, h: 64, tile: 16, sparse: 5}))
	d := f.Levels[0].Dir
	if d.EmptyTiles() != 5 {
		t.Errorf("%d empty tiles, want 5", d.EmptyTiles())
	}
	if _, n := d.Tile(3, 3); n != 0 {
		t.Errorf("the last tile has %d bytes", n)
	}
}

func TestOnlyEmptyTilesIsRefused(t *testing.T) {
	_, err := readChecked(reader(build(binary.LittleEndian, false, image{w: 64, h: 64, tile: 16, sparse: 16})))
	refused(t, err, coverslip.Invalid, "none of its 16 tiles")
}

func TestPlanarHasTilesPerSample(t *testing.T) {
	f := mustRead(t, build(binary.LittleEndian, false, image{w: 16, h: 16, tile: 16,
		extra: []field{short(284, 2), long(324, 8, 264, 520), long(325, 256, 256, 256)}}))
	if off, n := f.Dirs[0].Tile(0, 0); !f.Dirs[0].Planar || off != 8 || n != 256 {
		t.Errorf("planar %t, first tile %d at %d", f.Dirs[0].Planar, n, off)
	}
}

// TestBeyond4GiB reads a BigTIFF of 6 GiB of which only header and directory are there.
func TestBeyond4GiB(t *testing.T) {
	const size, gap = 6 << 30, 5 << 30
	data := build(binary.LittleEndian, true, image{w: 32, h: 16, tile: 16, offsetsType: long8T,
		extra: []field{{tag: 324, typ: long8T, values: []uint64{gap, gap + 768}}}})
	f, err := readChecked(tiff.NewReaderAt(sparse{data}, size))
	if err != nil {
		t.Fatal(err)
	}
	if off, n := f.Dirs[0].Tile(1, 0); off != gap+768 || n != 768 {
		t.Errorf("tile 1: %d bytes at %d", n, off)
	}
	_, err = readChecked(tiff.NewReaderAt(sparse{data}, gap+1535))
	refused(t, err, coverslip.Invalid, "tile 1, 768 bytes")
}

// sparse is a file that begins with data and goes on with zeros.
type sparse struct{ data []byte }

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(s.data)) {
		copy(p, s.data[off:])
	}
	return len(p), nil
}

func TestNDPIOver4GiBIsRecognised(t *testing.T) {
	const at = 5 << 30
	dir := build(binary.LittleEndian, false, image{w: 16, h: 16, extra: []field{short(65420, 1)}})
	first := binary.LittleEndian.Uint32(dir[4:])
	head := append([]byte("II*\x00"), binary.LittleEndian.AppendUint64(nil, at)...)
	r := tiff.NewReaderAt(twoParts{head, dir[first:], at}, at+int64(len(dir)))
	f, err := readChecked(r)
	if err != nil {
		t.Fatal(err)
	}
	if f.Format != tiff.FormatHamamatsu || !f.Format.Elsewhere() || len(f.Levels) != 0 {
		t.Errorf("format %s, %d levels", f.Format, len(f.Levels))
	}
}

type twoParts struct {
	head, tail []byte
	at         int64
}

func (s twoParts) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for i := range p {
		switch o := off + int64(i); {
		case o < int64(len(s.head)):
			p[i] = s.head[o]
		case o >= s.at && o-s.at < int64(len(s.tail)):
			p[i] = s.tail[o-s.at]
		}
	}
	return len(p), nil
}

func TestFault3Loops(t *testing.T) {
	one := image{w: 16, h: 16, tile: 16}
	_, at := buildAt(binary.LittleEndian, false, one, one, one)
	back := one
	back.next = at[1]
	self := one
	self.next = at[0]
	parent := one
	parent.extra = []field{long(330, uint64(at[0]))}
	twice := one
	twice.extra = []field{long(330, uint64(at[0]), uint64(at[0]))}

	nested := image{w: 8, h: 8, tile: 16}
	outer := one
	outer.subIFDs = []image{nested}
	whole := build(binary.LittleEndian, true, outer)
	f := mustRead(t, whole)
	nested.extra = []field{{tag: 330, typ: long8T, values: []uint64{uint64(f.Dirs[1].Offset)}}}
	outer.subIFDs = []image{nested}

	for name, data := range map[string][]byte{
		"ToItself":             build(binary.LittleEndian, false, self),
		"ToTheMiddle":          build(binary.LittleEndian, false, one, one, back),
		"SubIFDToParent":       build(binary.LittleEndian, false, parent),
		"SubIFDTwice":          build(binary.LittleEndian, false, one, twice),
		"SubIFDToItself":       build(binary.LittleEndian, true, outer),
		"ThousandsThatOverlap": overlapping(),
		"NextBeyondTheEnd":     build(binary.LittleEndian, false, image{w: 16, h: 16, tile: 16, next: 1 << 31}),
		"SubIFDBeyondTheEnd": build(binary.LittleEndian, false, image{w: 16, h: 16, tile: 16,
			extra: []field{long(330, 1<<31)}}),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := read(data)
			if took := time.Since(start); took > time.Second {
				t.Errorf("took %v", took)
			}
			kind := coverslip.Invalid
			if name == "ThousandsThatOverlap" {
				kind = coverslip.Unsupported
			}
			refused(t, err, kind, "TIFF directory")
		})
	}
}

// overlapping chains thousands of directories that share bytes, without a loop.
func overlapping() []byte {
	data := build(binary.LittleEndian, false, image{w: 16, h: 16, tile: 16})
	first := int(binary.LittleEndian.Uint32(data[4:]))
	dir := data[first:]
	const n = 5000
	for i := range n {
		copyOf := bytes.Clone(dir)
		binary.LittleEndian.PutUint32(data[len(data)-4:], uint32(len(data)))
		if i == n-1 {
			break
		}
		data = append(data, copyOf...)
	}
	return data
}

// TestFault4And5Claims are files of 4 KiB that claim to be huge. Reading one may take no more memory than
// the few windows it is read through.
func TestFault4And5Claims(t *testing.T) {
	big := uint64(1<<31 - 1)
	jpeg := short(259, 7)
	for name, im := range map[string]image{
		"60000InTiles":          {w: 16, h: 16, tile: 16, extra: []field{long(256, 60000), long(257, 60000), short(322, 256), short(323, 256), jpeg}},
		"60000InOneTile":        {w: 16, h: 16, tile: 16, extra: []field{long(256, 60000), long(257, 60000), long(322, 60000), long(323, 60000), short(259, 8)}},
		"60000InOneStrip":       {w: 16, h: 16, extra: []field{long(256, 60000), long(257, 60000), long(278, 60000), short(259, 8)}},
		"60000InLargeTiles":     {w: 64, h: 64, tile: 16, extra: []field{long(256, 60000), long(257, 60000), long(322, 15000), long(323, 15000), short(259, 8)}, data: make([]byte, 64)},
		"60000Uncompressed":     {w: 16, h: 16, extra: []field{long(256, 60000), long(257, 60000), long(278, 60000)}},
		"2To31InTiles":          {w: 16, h: 16, tile: 16, extra: []field{long(256, big), long(257, big), jpeg}},
		"2To31InOneTile":        {w: 16, h: 16, tile: 16, extra: []field{long(256, big), long(257, big), long(322, big), long(323, big), jpeg}},
		"2To31Planar":           {w: 16, h: 16, tile: 16, extra: []field{long(256, big), long(257, big), short(284, 2), short(277, 65535)}},
		"2To31InOneStrip":       {w: 16, h: 16, extra: []field{long(256, big), long(257, big), long(278, 1<<32-1), jpeg}},
		"2To31OneRowAStrip":     {w: 16, h: 16, extra: []field{long(256, big), long(257, big), long(278, 1), jpeg}},
		"MoreThan31Bits":        {w: 16, h: 16, extra: []field{long(256, 1<<32-1)}},
		"NoWidth":               {w: 16, h: 16, drop: []int{256}},
		"ZeroHeight":            {w: 16, h: 16, extra: []field{long(257, 0)}},
		"ZeroTile":              {w: 16, h: 16, tile: 16, extra: []field{short(322, 0)}},
		"ZeroRowsPerStrip":      {w: 16, h: 16, extra: []field{short(278, 0)}},
		"HugeTagCount":          {w: 16, h: 16, tile: 16, extra: []field{{tag: 324, typ: longT, values: []uint64{8}, count: 0xffffffff}}},
		"HugeCountOfUnknownTag": {w: 16, h: 16, tile: 16, extra: []field{{tag: 60000, typ: rationalT, values: []uint64{8}, count: 0xffffffff}}},
		"OneTileTooMany":        {w: 16, h: 16, tile: 16, extra: []field{long(324, 8, 8)}},
		"NoTiles":               {w: 16, h: 16, tile: 16, drop: []int{324, 325}},
		"OffsetsAreFractions":   {w: 16, h: 16, tile: 16, extra: []field{rational(324, 8, 1)}},
		"TileInTheHeader":       {w: 16, h: 16, tile: 16, extra: []field{long(324, 4)}},
		"TileBeyondTheEnd":      {w: 16, h: 16, tile: 16, extra: []field{long(324, 4096)}},
		"SamplesOfABillion":     {w: 16, h: 16, tile: 16, extra: []field{long(277, 1<<30)}},
		"BitsOfABillion":        {w: 16, h: 16, tile: 16, extra: []field{long(258, 1<<30), short(259, 8)}},
	} {
		t.Run(name, func(t *testing.T) {
			data := build(binary.LittleEndian, true, im)
			if len(data) > 4096 {
				t.Fatalf("%d bytes", len(data))
			}
			data = append(data, make([]byte, 4096-len(data))...)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := readChecked(reader(data))
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
				t.Errorf("took %d KiB", used>>10)
			}
			var e *coverslip.Error
			if !errors.As(err, &e) || e.Kind != coverslip.Invalid && e.Kind != coverslip.Unsupported {
				t.Fatalf("got %v", err)
			}
			refused(t, err, e.Kind, "TIFF directory 0")
		})
	}
}

// TestSharedTextIsBounded has thousands of directories that all point to one long description.
func TestSharedTextIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 200 MB")
	}
	text := bytes.Repeat([]byte("a"), 8<<20)
	var images []image
	for range 100 {
		images = append(images, image{w: 16, h: 16, data: make([]byte, 768),
			extra: []field{{tag: 270, typ: asciiT, values: make([]uint64, 9), count: uint64(len(text))}}})
	}
	data := append(build(binary.LittleEndian, false, images...), text...)
	_, err := read(data)
	refused(t, err, coverslip.Unsupported, "MiB")
}

func TestGarbageAfterTheMagic(t *testing.T) {
	for name, c := range map[string]struct {
		data string
		kind coverslip.Kind
	}{
		"ELF":              {"\x7fELF\x02\x01\x01\x00", coverslip.Unsupported},
		"OneByte":          {"I", coverslip.Unsupported},
		"MagicOnly":        {"II*\x00", coverslip.Invalid},
		"BigMagicOnly":     {"MM\x00+\x00\x08\x00\x00", coverslip.Invalid},
		"NoDirectory":      {"II*\x00\x00\x00\x00\x00", coverslip.Invalid},
		"OffsetsOf4Bytes":  {"II+\x00\x04\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00", coverslip.Invalid},
		"DirectoryIsBlank": {"II*\x00\x08\x00\x00\x00\x00\x00\x00\x00", coverslip.Invalid},
		"OffsetOf2To63":    {"II+\x00\x08\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff", coverslip.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := read([]byte(c.data))
			refused(t, err, c.kind, "read TIFF ")
		})
	}
}

func TestFewRequests(t *testing.T) {
	names := []string{bundled}
	if _, err := os.Stat(shared); err == nil {
		names = append(names, filepath.Join(shared, "tiff/crc-section.tif"))
	}
	want := map[string]int64{"CMU-1-Small-Region.svs": 5, "crc-section.tif": 7}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			r := &counting{RangeReader: open(t, name)}
			if _, err := tiff.Read(context.Background(), r); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d requests, %d KiB", r.requests.Load(), r.bytes.Load()>>10)
			if r.requests.Load() > want[filepath.Base(name)] {
				t.Errorf("%d requests, want no more than %d", r.requests.Load(), want[filepath.Base(name)])
			}
		})
	}
}

type counting struct {
	tiff.RangeReader
	requests, bytes atomic.Int64
}

func (c *counting) ReadRange(ctx context.Context, dst []byte, off int64) error {
	c.requests.Add(1)
	c.bytes.Add(int64(len(dst)))
	return c.RangeReader.ReadRange(ctx, dst, off)
}

func TestReaderErrorsKeepTheirKind(t *testing.T) {
	cause := &coverslip.Error{Kind: coverslip.Unavailable, Op: "get object", Err: io.ErrClosedPipe, Hint: "try later"}
	_, err := tiff.Read(context.Background(), failing{cause})
	refused(t, err, coverslip.Unavailable, "read TIFF header: get object: io: read/write on closed pipe (try later)")
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the cause is lost: %v", err)
	}
}

type failing struct{ err error }

func (failing) Size() int64                                      { return 1000 }
func (f failing) ReadRange(context.Context, []byte, int64) error { return f.err }

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := tiff.Read(ctx, open(t, bundled))
	if coverslip.KindOf(err) != coverslip.Canceled {
		t.Errorf("got %v", err)
	}
}

// TestFileShrinks is a file that became shorter after its size was taken.
func TestFileShrinks(t *testing.T) {
	data := build(binary.LittleEndian, false, image{w: 16, h: 16, tile: 16})
	r := tiff.NewReaderAt(bytes.NewReader(data[:len(data)-10]), int64(len(data)))
	_, err := tiff.Read(context.Background(), r)
	refused(t, err, coverslip.Invalid, "unexpected EOF")
}
