package tiff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
)

// Dir is one directory: one image of the file, cut into tiles or strips. A strip is a tile as wide
// as the image, so that code below need not tell them apart.
type Dir struct {
	Page   int   // place in the chain of directories, from 0
	SubIFD int   // place among the SubIFDs of Page, from 0; -1 for the directory in the chain itself
	Offset int64 // of the directory in the file, bytes
	Role   Role

	Width, Height         int // pixels
	TileWidth, TileHeight int // pixels; of strips: Width and RowsPerStrip
	Tiled                 bool

	Compression     Compression
	Photometric     Photometric
	SamplesPerPixel int
	BitsPerSample   int // 0 when the samples differ
	SampleFormat    int // 1 unsigned, 2 signed, 3 floating point; 0 when the samples differ
	ExtraSamples    []int
	Planar          bool   // each sample in tiles of its own (PlanarConfiguration 2)
	YCbCrSubsample  [2]int // horizontal, vertical; the JPEG stream's own word counts where there is one
	Predictor       int    // 1 none, 2 horizontal difference, 3 floating point
	Orientation     int    // 1 to 8; what is out of range is 1
	JPEGTables      []byte // an abbreviated JPEG stream: what to feed libjpeg before each tile

	NewSubfileType int // bits: 1 reduced resolution, 2 page, 4 mask; Aperio: 1 label, 9 macro

	// XResolution and YResolution are pixels per ResolutionUnit (1 none, 2 inch, 3 cm); 0 when
	// absent or not a positive finite number.
	XResolution, YResolution float64
	ResolutionUnit           int

	// Texts of the file, valid UTF-8. Description is cut at 16 MiB.
	Description, Software, Make, Model string
	ICC                                bool // an ICC profile is there

	Emission float64 // of a Hamamatsu fluorescence scan: the wavelength its camera saw, nm; else 0

	offsets, counts []int64 // of all tiles, plane after plane
	empty           int
	next            int64
	subIFDs         []int64
	hamamatsu       bool
	ventana         bool
}

// TileCount returns how many columns and rows of tiles there are.
func (d *Dir) TileCount() (cols, rows int) {
	return ceilDiv(d.Width, d.TileWidth), ceilDiv(d.Height, d.TileHeight)
}

// Tile returns where the bytes of a tile lie in the file; n is 0 for a tile that was not written.
// Of a planar image it is the tile of the first plane. It panics when there is no such tile.
func (d *Dir) Tile(col, row int) (off, n int64) {
	cols, rows := d.TileCount()
	if col < 0 || col >= cols || row < 0 || row >= rows {
		panic("tiff: no such tile")
	}
	i := row*cols + col
	return d.offsets[i], d.counts[i]
}

// Plane is one plane of a planar image, as a grey image of its own.
func (d *Dir) Plane(i int) *Dir {
	if !d.Planar || i < 0 || i >= d.SamplesPerPixel {
		panic("tiff: no such plane")
	}
	cols, rows := d.TileCount()
	first, n := i*cols*rows, cols*rows
	p := *d
	p.Planar, p.SamplesPerPixel, p.Photometric, p.ExtraSamples = false, 1, BlackIsZero, nil
	p.offsets, p.counts = d.offsets[first:first+n], d.counts[first:first+n]
	return &p
}

// EmptyTiles returns how many tiles have no bytes. Some scanners leave out background on purpose
// (Philips, some Aperio), so whether that is a fault is for the caller to say.
func (d *Dir) EmptyTiles() int { return d.empty }

// Reduced reports whether the directory calls itself a smaller version of another image.
func (d *Dir) Reduced() bool { return d.NewSubfileType&1 != 0 }

func ceilDiv(a, b int) int { return (a-1)/b + 1 }

// Tags, by number. TIFF 6.0 unless said otherwise.
const (
	tagNewSubfileType  = 254
	tagImageWidth      = 256
	tagImageLength     = 257
	tagBitsPerSample   = 258
	tagCompression     = 259
	tagPhotometric     = 262
	tagDescription     = 270
	tagMake            = 271
	tagModel           = 272
	tagStripOffsets    = 273
	tagOrientation     = 274
	tagSamplesPerPixel = 277
	tagRowsPerStrip    = 278
	tagStripByteCounts = 279
	tagXResolution     = 282
	tagYResolution     = 283
	tagPlanarConfig    = 284
	tagResolutionUnit  = 296
	tagSoftware        = 305
	tagPredictor       = 317
	tagTileWidth       = 322
	tagTileLength      = 323
	tagTileOffsets     = 324
	tagTileByteCounts  = 325
	tagSubIFDs         = 330 // Adobe PageMaker 6.0 TIFF Technical Notes
	tagExtraSamples    = 338
	tagSampleFormat    = 339
	tagJPEGTables      = 347 // TIFF Technical Note 2
	tagYCbCrSubsample  = 530
	tagXMP             = 700 // Adobe; Ventana keeps its <iScan> there
	tagICC             = 34675
	tagHamamatsu       = 65420 // in every NDPI file, in no other
	tagEmission        = 65451 // of NDPI: emission wavelength, beside the name of the filter in 65434
)

// fieldSize is the length of one value of each field type in bytes.
var fieldSize = [...]int64{1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

const (
	typeByte      = 1
	typeASCII     = 2
	typeShort     = 3
	typeLong      = 4
	typeRational  = 5
	typeUndefined = 7
	typeFloat     = 11
	typeDouble    = 12
	typeIFD       = 13
	typeLong8     = 16
	typeIFD8      = 18
)

// entry is one field of a directory. Its values lie at off in the file, or in inline.
type entry struct {
	tag, typ uint16
	count    int64
	off      int64
	inline   []byte
}

// directory reads the directory at off with all arrays it points to.
func (p *parser) directory(ctx context.Context, off int64, page, sub int) (*Dir, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if p.seen[off] {
		return nil, invalid(hintDamaged, "the directories loop: the one at %d was read before", off)
	}
	if len(p.seen) == maxDirs {
		return nil, unsupported("a slide has fewer; stacks of microscope images are not slides", "more than %d directories", maxDirs)
	}
	p.seen[off] = true
	entries, next, err := p.entries(ctx, off)
	if err != nil {
		return nil, err
	}
	f := &fields{ctx: ctx, p: p, entries: entries}
	d := &Dir{Page: page, SubIFD: sub, Offset: off, next: next}
	f.expect(next)
	f.fill(d)
	if f.err == nil {
		f.err = f.segments(d)
	}
	if f.err == nil && sub >= 0 {
		f.err = p.noNesting(d)
	}
	return d, f.err
}

// noNesting keeps SubIFDs one deep, as every writer of slides has them.
func (p *parser) noNesting(d *Dir) error {
	for _, off := range d.subIFDs {
		if p.seen[off] {
			return invalid(hintDamaged, "the SubIFDs loop: the directory at %d was read before", off)
		}
	}
	d.subIFDs = nil
	return nil
}

// entries reads the fields of the directory at off, without the values that lie elsewhere, and
// where the next directory is. The first of two fields with one tag counts, as in libtiff.
func (p *parser) entries(ctx context.Context, off int64) (map[uint16]entry, int64, error) {
	countSize, entrySize, inline := int64(2), int64(12), int64(4)
	if p.big {
		countSize, entrySize, inline = 8, 20, 8
	}
	raw, err := p.read(ctx, off, countSize)
	if err != nil {
		return nil, 0, err
	}
	n := p.uint(raw)
	if n == 0 || n > maxEntries {
		return nil, 0, invalid(hintDamaged, "%d fields", n)
	}
	raw, err = p.read(ctx, off+countSize, n*entrySize+inline)
	if err != nil {
		return nil, 0, err
	}
	entries := make(map[uint16]entry, n)
	for ; int64(len(raw)) > inline; raw = raw[entrySize:] {
		e := entry{tag: p.order.Uint16(raw), typ: p.order.Uint16(raw[2:])}
		if _, again := entries[e.tag]; again || int(e.typ) >= len(fieldSize) || fieldSize[e.typ] == 0 {
			continue // TIFF 6.0: "readers should skip over fields containing an unexpected field type"
		}
		size := fieldSize[e.typ]
		e.count = p.uint(raw[4:][:inline])
		if e.count > p.size/size {
			return nil, 0, invalid(hintDamaged, "tag %d claims %d values; the file has %d bytes", e.tag, e.count, p.size)
		}
		value := raw[4+inline:][:inline]
		if e.count*size <= inline {
			e.inline = value[:e.count*size]
		} else if e.off = p.uint(value); e.off > p.size-e.count*size {
			return nil, 0, fmt.Errorf("tag %d: %w", e.tag, errEndsEarly)
		}
		entries[e.tag] = e
	}
	return entries, p.uint(raw), nil
}

// uint decodes an unsigned integer as long as b.
func (p *parser) uint(b []byte) int64 {
	switch len(b) {
	case 1:
		return int64(b[0])
	case 2:
		return int64(p.order.Uint16(b))
	case 4:
		return int64(p.order.Uint32(b))
	default:
		return clampOffset(p.order.Uint64(b))
	}
}

// fields reads the values of one directory. After the first error it returns defaults only.
type fields struct {
	ctx     context.Context
	p       *parser
	entries map[uint16]entry
	err     error
}

// expect says what will be read next: the arrays of this directory, and the next directory.
func (f *fields) expect(next int64) {
	window := int64(math.MinInt64)
	for _, tag := range []uint16{tagStripOffsets, tagStripByteCounts, tagTileOffsets, tagTileByteCounts} {
		e := f.entries[tag]
		switch n := e.count * fieldSize[e.typ]; {
		case e.inline != nil || n == 0 || f.p.known(e.off, n) != nil:
		case n > windowSize:
			f.p.expect(e.off, n)
		case e.off < window || e.off+n > window+windowSize:
			window = f.p.windowAt(e.off)
			f.p.expectWindow(e.off)
		}
	}
	f.p.expectWindow(next)
}

// fill sets everything of d but the tiles. Defaults are those of TIFF 6.0.
func (f *fields) fill(d *Dir) {
	d.Width = f.edge(tagImageWidth)
	d.Height = f.edge(tagImageLength)
	d.NewSubfileType = f.num(tagNewSubfileType, 0)
	d.Compression = Compression(f.num(tagCompression, 1))
	d.Photometric = Photometric(f.num(tagPhotometric, -1))
	d.SamplesPerPixel = f.num(tagSamplesPerPixel, 1)
	if f.err == nil && (d.SamplesPerPixel < 1 || d.SamplesPerPixel > math.MaxUint16) {
		f.err = invalid(hintDamaged, "%d samples per pixel", d.SamplesPerPixel)
	}
	d.BitsPerSample = f.same(tagBitsPerSample, 1)
	d.SampleFormat = f.same(tagSampleFormat, 1)
	d.ExtraSamples = f.nums(tagExtraSamples)
	d.Planar = f.num(tagPlanarConfig, 1) == 2 && d.SamplesPerPixel > 1
	d.YCbCrSubsample = [2]int{2, 2}
	if s := f.nums(tagYCbCrSubsample); len(s) == 2 {
		d.YCbCrSubsample = [2]int{s[0], s[1]}
	}
	d.Predictor = f.num(tagPredictor, 1)
	if d.Orientation = f.num(tagOrientation, 1); d.Orientation < 1 || d.Orientation > 8 {
		d.Orientation = 1
	}
	d.XResolution = f.positive(tagXResolution)
	d.YResolution = f.positive(tagYResolution)
	d.ResolutionUnit = f.num(tagResolutionUnit, 2)
	d.Description = f.text(tagDescription)
	d.Software = f.text(tagSoftware)
	d.Make = f.text(tagMake)
	d.Model = f.text(tagModel)
	if e, ok := f.entries[tagJPEGTables]; ok && e.count > 0 {
		if err := f.p.spend(e.count); err != nil {
			f.fail(e, err)
		}
		d.JPEGTables = bytes.Clone(f.bytes(e, e.count))
	}
	_, d.ICC = f.entries[tagICC]
	if _, d.hamamatsu = f.entries[tagHamamatsu]; d.hamamatsu {
		d.Emission = f.positive(tagEmission)
	}
	if e, ok := f.entries[tagXMP]; ok {
		d.ventana = bytes.Contains(f.bytes(e, min(e.count, windowSize)), []byte("<iScan"))
	}
	if e, ok := f.entries[tagSubIFDs]; ok {
		if e.count > maxDirs {
			f.fail(e, unsupported("a slide has fewer", "%d SubIFDs", e.count))
		}
		d.subIFDs = f.array(e, e.count)
	}
}

// segments reads where the tiles or strips of d are and holds their number against its size.
func (f *fields) segments(d *Dir) error {
	offsetsTag, countsTag := uint16(tagStripOffsets), uint16(tagStripByteCounts)
	d.TileWidth = d.Width
	if _, d.Tiled = f.entries[tagTileWidth]; d.Tiled {
		d.TileWidth, d.TileHeight = f.edge(tagTileWidth), f.edge(tagTileLength)
		if _, ok := f.entries[tagTileOffsets]; ok { // libtiff takes tiles from the strips' tags too
			offsetsTag, countsTag = tagTileOffsets, tagTileByteCounts
		}
	} else if d.TileHeight = min(f.num(tagRowsPerStrip, maxEdge), d.Height); d.TileHeight < 1 && f.err == nil {
		return invalid(hintDamaged, "strips of %d rows", d.TileHeight)
	}
	if f.err != nil {
		return f.err
	}
	offsets, ok := f.entries[offsetsTag]
	counts, ok2 := f.entries[countsTag]
	if !ok || !ok2 {
		return invalid(hintDamaged, "it does not say where its tiles or strips are")
	}
	cols, rows := d.TileCount()
	planes := 1
	if d.Planar {
		planes = d.SamplesPerPixel
	}
	// cols×rows fits in 62 bits, and planes are counted only when that product is no more than
	// the file could hold.
	need := int64(cols) * int64(rows)
	if need <= f.p.size {
		need *= int64(planes)
	}
	if offsets.count != need || counts.count != need {
		return invalid(hintDamaged, "%d×%d pixels in tiles of %d×%d need %d of them; it lists %d places and %d lengths",
			d.Width, d.Height, d.TileWidth, d.TileHeight, need, offsets.count, counts.count)
	}
	d.offsets, d.counts = f.array(offsets, need), f.array(counts, need)
	for _, n := range d.counts {
		if n == 0 {
			d.empty++
		}
	}
	return f.err
}

func (f *fields) fail(e entry, err error) {
	if f.err == nil {
		f.err = err
		if errors.Is(err, errEndsEarly) {
			f.err = fmt.Errorf("tag %d: %w", e.tag, err)
		}
	}
}

// bytes returns the first n bytes of the values of e, n ≤ its length. They must not be changed.
func (f *fields) bytes(e entry, n int64) []byte {
	if f.err != nil || n == 0 {
		return nil
	}
	if e.inline != nil {
		return e.inline[:n]
	}
	if n <= rangeMax {
		b, err := f.p.read(f.ctx, e.off, n)
		if err != nil {
			f.fail(e, err)
		}
		return b
	}
	if err := f.p.spend(n); err != nil {
		f.fail(e, err)
		return nil
	}
	all := make([]byte, 0, n)
	for int64(len(all)) < n && f.err == nil {
		part, err := f.p.read(f.ctx, e.off+int64(len(all)), min(rangeMax, n-int64(len(all))))
		if err != nil {
			f.fail(e, err)
		}
		all = append(all, part...)
	}
	return all
}

// array returns the first n values of e as offsets or lengths in the file, each read by the
// field's own type.
func (f *fields) array(e entry, n int64) []int64 {
	switch e.typ {
	case typeByte, typeShort, typeLong, typeIFD, typeLong8, typeIFD8:
	default:
		f.fail(e, invalid(hintDamaged, "tag %d has field type %d, which is no unsigned integer", e.tag, e.typ))
	}
	if f.err != nil || n == 0 {
		return nil
	}
	if err := f.p.spend(8 * n); err != nil {
		f.fail(e, err)
		return nil
	}
	size := fieldSize[e.typ]
	values := make([]int64, 0, n)
	for int64(len(values)) < n {
		part := e
		part.off += int64(len(values)) * size
		raw := f.bytes(part, min(rangeMax, (n-int64(len(values)))*size))
		if f.err != nil {
			return nil
		}
		for ; len(raw) > 0; raw = raw[size:] {
			values = append(values, f.p.uint(raw[:size]))
		}
	}
	return values
}

// nums returns the values of a tag with few of them.
func (f *fields) nums(tag uint16) []int {
	e, ok := f.entries[tag]
	if !ok {
		return nil
	}
	var out []int
	for _, v := range f.array(e, min(e.count, math.MaxUint16)) {
		out = append(out, int(v))
	}
	return out
}

// num returns the first value of a tag, or what holds without it.
func (f *fields) num(tag uint16, without int) int {
	if e, ok := f.entries[tag]; ok && e.count > 0 {
		if v := f.array(e, 1); len(v) == 1 {
			return int(v[0])
		}
	}
	return without
}

// same returns the value all samples share, or 0.
func (f *fields) same(tag uint16, without int) int {
	v := f.nums(tag)
	if len(v) == 0 {
		return without
	}
	for _, other := range v {
		if other != v[0] {
			return 0
		}
	}
	return v[0]
}

// edge returns a width or height in pixels, which must be there and be believable.
func (f *fields) edge(tag uint16) int {
	v := f.num(tag, 0)
	if f.err == nil && (v < 1 || v > maxEdge) {
		f.err = invalid(hintDamaged, "tag %d says a width or height of %d pixels", tag, v)
	}
	return v
}

// positive returns a resolution; 0 when it is absent or makes no sense.
func (f *fields) positive(tag uint16) float64 {
	e, ok := f.entries[tag]
	if !ok || e.count == 0 {
		return 0
	}
	var v float64
	switch order := f.p.order; e.typ {
	case typeRational:
		if b := f.bytes(e, 8); len(b) == 8 {
			v = float64(order.Uint32(b)) / float64(order.Uint32(b[4:]))
		}
	case typeFloat:
		if b := f.bytes(e, 4); len(b) == 4 {
			v = float64(math.Float32frombits(order.Uint32(b)))
		}
	case typeDouble:
		if b := f.bytes(e, 8); len(b) == 8 {
			v = math.Float64frombits(order.Uint64(b))
		}
	case typeByte, typeShort, typeLong, typeLong8:
		v = float64(f.num(tag, 0))
	}
	if !(v > 0) || math.IsInf(v, 0) {
		return 0
	}
	return v
}

// text returns a text up to its first NUL.
func (f *fields) text(tag uint16) string {
	e, ok := f.entries[tag]
	if !ok || e.typ != typeASCII && e.typ != typeByte && e.typ != typeUndefined {
		return ""
	}
	raw := f.bytes(e, min(e.count, maxText))
	if i := bytes.IndexByte(raw, 0); i >= 0 {
		raw = raw[:i]
	}
	if err := f.p.spend(int64(len(raw))); err != nil {
		f.fail(e, err)
	}
	return strings.ToValidUTF8(string(raw), "\uFFFD")
}
