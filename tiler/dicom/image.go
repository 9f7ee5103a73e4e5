package dicom

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"coverslip/tiler/tiff"
)

// image is what one file says of itself, as far as it matters here.
type image struct {
	class    string   // SOP class
	syntax   string   // transfer syntax
	kind     []string // ImageType
	instance string
	series   string

	width, height int // of the level, pixels
	columns, rows int // of a frame, pixels
	samples, bits int
	photometric   string
	planar        bool
	coding        Coding
	opticalPaths  int
	focalPlanes   int
	spacing       [2]float64 // mm, down and across
	objective     float64

	frameCount   int
	first        int64 // the place of the first frame among those of the level, where a level is split (a concatenation)
	organization string
	positions    []position // of the frames that say their own
	shared       position

	offsets, lengths element // the extended offset table
	pixelData        element // or what stands in its place

	walker
}

// position is where the top left of a frame lies in the level, pixels, from 1 (PS3.3 C.8.12.6.1).
type position struct{ x, y int }

// Attributes, by number (PS3.6).
const (
	tagMediaClass        = 0x00020002
	tagTransferSyntax    = 0x00020010
	tagImageType         = 0x00080008
	tagClass             = 0x00080016
	tagInstance          = 0x00080018
	tagSeries            = 0x0020000e
	tagFirstFrame        = 0x00209228 // ConcatenationFrameOffsetNumber
	tagOrganization      = 0x00209311 // DimensionOrganizationType
	tagSamples           = 0x00280002
	tagPhotometric       = 0x00280004
	tagPlanar            = 0x00280006
	tagFrames            = 0x00280008
	tagRows              = 0x00280010
	tagColumns           = 0x00280011
	tagSpacing           = 0x00280030
	tagBits              = 0x00280100
	tagPixelMeasures     = 0x00289110
	tagMatrixColumns     = 0x00480006
	tagMatrixRows        = 0x00480007
	tagOpticalPath       = 0x00480105
	tagObjective         = 0x00480112
	tagPlanePosition     = 0x0048021a
	tagColumnPosition    = 0x0048021e
	tagRowPosition       = 0x0048021f
	tagOpticalPaths      = 0x00480302
	tagFocalPlanes       = 0x00480303
	tagSharedGroups      = 0x52009229
	tagPerFrameGroups    = 0x52009230
	tagExtendedOffsets   = 0x7fe00001
	tagExtendedLengths   = 0x7fe00002
	tagPixelData         = 0x7fe00010
	wholeSlide           = "1.2.840.10008.5.1.4.1.1.77.1.6"
	implicitLittleEndian = "1.2.840.10008.1.2"
	fileMetaEnd          = 0x00030000
)

// codings are the transfer syntaxes whose frames can be decoded.
var codings = map[string]Coding{
	implicitLittleEndian:     Native,
	"1.2.840.10008.1.2.1":    Native,
	"1.2.840.10008.1.2.4.50": JPEG,
	"1.2.840.10008.1.2.4.90": JPEG2000,
	"1.2.840.10008.1.2.4.91": JPEG2000,
	"1.2.840.10008.1.2.5":    RLE,
}

// others are those a slide may come in that cannot.
var others = map[string]string{
	"1.2.840.10008.1.2.1.99":  deflated,
	"1.2.840.10008.1.2.2":     bigEndian,
	"1.2.840.10008.1.2.4.51":  "12-bit JPEG",
	"1.2.840.10008.1.2.4.57":  "lossless JPEG",
	"1.2.840.10008.1.2.4.70":  "lossless JPEG",
	"1.2.840.10008.1.2.4.80":  "JPEG-LS",
	"1.2.840.10008.1.2.4.81":  "JPEG-LS",
	"1.2.840.10008.1.2.4.201": "high-throughput JPEG 2000",
	"1.2.840.10008.1.2.4.202": "high-throughput JPEG 2000",
	"1.2.840.10008.1.2.4.203": "high-throughput JPEG 2000",
}

const deflated, bigEndian = "deflate", "big-endian"

// classes are other things that come as DICOM, by SOP class (PS3.4 B.5).
var classes = map[string]string{
	"1.2.840.10008.1.3.10":           "the index of a DICOM medium (DICOMDIR)",
	"1.2.840.10008.5.1.4.1.1.1":      "an X-ray image",
	"1.2.840.10008.5.1.4.1.1.1.1":    "an X-ray image",
	"1.2.840.10008.5.1.4.1.1.2":      "a CT image",
	"1.2.840.10008.5.1.4.1.1.2.1":    "a CT image",
	"1.2.840.10008.5.1.4.1.1.4":      "an MR image",
	"1.2.840.10008.5.1.4.1.1.4.1":    "an MR image",
	"1.2.840.10008.5.1.4.1.1.6.1":    "an ultrasound image",
	"1.2.840.10008.5.1.4.1.1.7":      "a secondary capture, not a scan",
	"1.2.840.10008.5.1.4.1.1.66.4":   "a segmentation",
	"1.2.840.10008.5.1.4.1.1.77.1.2": "a single microscope image",
	"1.2.840.10008.5.1.4.1.1.77.1.3": "a single microscope image",
	"1.2.840.10008.5.1.4.1.1.128":    "a PET image",
}

const (
	headerFetch = 32 << 10
	maxDataSet  = 1 << 30 // bytes to fetch of it; the positions of 4 million frames
)

// readImage reads the file meta information and the data set up to the element until.
func readImage(ctx context.Context, r tiff.RangeReader, until uint32) (*image, error) {
	im := &image{frameCount: 1}
	im.walker = walker{source{r: r, least: headerFetch, limit: maxDataSet}, im, fileMetaEnd}
	size := r.Size()
	if size == 0 {
		return nil, inOp("read DICOM header", invalid(hintEndsEarly, "the file is empty"))
	}
	head, err := im.read(ctx, 0, min(size, headLength))
	if err != nil {
		return nil, inOp("read DICOM header", err)
	}
	if !Is(head) {
		return nil, inOp("read DICOM header", unsupported(notWholeSlide, "not a DICOM file"))
	}
	off, err := im.elements(ctx, headLength, size, false, false, nil)
	if err != nil {
		return nil, inOp("read DICOM header", err)
	}
	if err := im.wholeSlide(); im.class != "" && err != nil {
		return nil, err
	}
	if what := others[im.syntax]; what == deflated || what == bigEndian {
		return nil, inOp("read DICOM header", im.undecodable())
	}
	im.until = until
	off, err = im.elements(ctx, off, size, false, im.syntax == implicitLittleEndian, nil)
	if err != nil {
		return nil, inOp("read DICOM data set", err)
	}
	if err := im.wholeSlide(); err != nil {
		return nil, err
	}
	if off == size { // cut between two elements
		return nil, inOp("read DICOM data set", invalid(hintEndsEarly, "it has no pixels"))
	}
	if im.pixelData, err = im.element(ctx, off, size, im.syntax == implicitLittleEndian); err != nil {
		return nil, inOp("read DICOM data set", err)
	}
	return im, nil
}

const notWholeSlide = "Coverslip reads DICOM whole-slide images (VL Whole Slide Microscopy)"

func (im *image) wholeSlide() error {
	if im.class == wholeSlide {
		return nil
	}
	what := classes[im.class]
	if what == "" {
		what = "an object of class " + strconv.Quote(im.class)
	}
	return inOp("open slide", unsupported(notWholeSlide, "it is %s in DICOM, not a slide", what))
}

func (im *image) undecodable() error {
	what := others[im.syntax]
	if what == "" {
		what = strconv.Quote(im.syntax)
	}
	return unsupported("export it as JPEG, JPEG 2000 or uncompressed, little-endian", "transfer syntax %s has no decoder here", what)
}

// volume reports whether the image is the scan itself and not a label, an overview or a thumbnail
// (PS3.3 C.8.12.4.1.1).
func (im *image) volume() bool { return len(im.kind) > 2 && im.kind[2] == "VOLUME" }

// enter implements visitor.
func (im *image) enter(in *scope, sequence uint32) bool {
	switch sequence {
	case tagSharedGroups, tagOpticalPath:
		return in == nil
	case tagPerFrameGroups:
		return in == nil && im.organization != tiledFull
	case tagPixelMeasures, tagPlanePosition:
		return in != nil && in.in == nil
	}
	return false
}

const tiledFull = "TILED_FULL"

// take implements visitor.
func (im *image) take(ctx context.Context, in *scope, e element) (err error) {
	switch {
	case in == nil:
		err = im.attribute(ctx, e)
	case in.in == nil:
		if in.sequence == tagOpticalPath && e.tag == tagObjective {
			err = im.decimals(ctx, e, &im.objective)
		}
	case in.in.in != nil:
	case in.sequence == tagPixelMeasures && e.tag == tagSpacing && im.spacing[0] == 0:
		err = im.decimals(ctx, e, &im.spacing[0], &im.spacing[1])
	case in.sequence == tagPlanePosition && in.in.sequence == tagSharedGroups:
		err = im.place(ctx, e, &im.shared)
	case in.sequence == tagPlanePosition && in.in.sequence == tagPerFrameGroups:
		if grow := in.in.item + 1 - len(im.positions); grow > 0 {
			if in.in.item >= maxFrames {
				return tooMany(in.in.item)
			}
			im.positions = append(im.positions, make([]position, grow)...)
		}
		err = im.place(ctx, e, &im.positions[in.in.item])
	}
	if err != nil && in != nil {
		return fmt.Errorf("in sequence %v: %w", element{tag: in.sequence}, err)
	}
	return err
}

func (im *image) place(ctx context.Context, e element, p *position) error {
	switch e.tag {
	case tagColumnPosition:
		return im.binary(ctx, e, &p.x)
	case tagRowPosition:
		return im.binary(ctx, e, &p.y)
	}
	return nil
}

// attribute keeps the value of an element of the data set itself.
func (im *image) attribute(ctx context.Context, e element) error {
	var n int
	switch e.tag {
	case tagMediaClass, tagClass:
		return im.text(ctx, e, &im.class)
	case tagTransferSyntax:
		return im.text(ctx, e, &im.syntax)
	case tagInstance:
		return im.text(ctx, e, &im.instance)
	case tagSeries:
		return im.text(ctx, e, &im.series)
	case tagOrganization:
		return im.text(ctx, e, &im.organization)
	case tagPhotometric:
		return im.text(ctx, e, &im.photometric)
	case tagImageType:
		var s string
		err := im.text(ctx, e, &s)
		im.kind = strings.Split(s, `\`)
		return err
	case tagFrames:
		var s string
		if err := im.text(ctx, e, &s); err != nil || s == "" {
			return err
		}
		v, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return invalid(hintDamaged, "the number of frames is %q", s)
		}
		im.frameCount = int(v)
		return nil
	case tagFirstFrame:
		err := im.binary(ctx, e, &n)
		im.first = int64(n)
		return err
	case tagPlanar:
		err := im.binary(ctx, e, &n)
		im.planar = n == 1
		return err
	case tagSamples:
		return im.binary(ctx, e, &im.samples)
	case tagBits:
		return im.binary(ctx, e, &im.bits)
	case tagRows:
		return im.binary(ctx, e, &im.rows)
	case tagColumns:
		return im.binary(ctx, e, &im.columns)
	case tagMatrixColumns:
		return im.binary(ctx, e, &im.width)
	case tagMatrixRows:
		return im.binary(ctx, e, &im.height)
	case tagOpticalPaths:
		return im.binary(ctx, e, &im.opticalPaths)
	case tagFocalPlanes:
		return im.binary(ctx, e, &im.focalPlanes)
	case tagExtendedOffsets:
		im.offsets = e
	case tagExtendedLengths:
		im.lengths = e
	}
	return nil
}

// text reads a value that is text. Of several values it keeps the backslashes between.
func (im *image) text(ctx context.Context, e element, s *string) error {
	if e.length > 1024 {
		return invalid(hintDamaged, "%v is a text of %d bytes", e, e.length)
	}
	raw, err := im.read(ctx, e.off, e.length)
	*s = strings.Trim(string(raw), " \x00")
	return err
}

// binary reads a value that is an integer. An empty one is left as it is.
func (im *image) binary(ctx context.Context, e element, n *int) error {
	raw, err := im.read(ctx, e.off, min(e.length, 4))
	switch {
	case err != nil:
		return err
	case e.length == 0:
	case e.length == 2:
		*n = int(binary.LittleEndian.Uint16(raw))
	case e.length == 4:
		*n = int(binary.LittleEndian.Uint32(raw))
	default:
		return invalid(hintDamaged, "%v is a number of %d bytes", e, e.length)
	}
	return nil
}

// decimals reads numbers written in text, with a point or a comma. What is no number is absent.
func (im *image) decimals(ctx context.Context, e element, v ...*float64) error {
	var s string
	err := im.text(ctx, e, &s)
	for i, part := range strings.Split(s, `\`) {
		if f, err := strconv.ParseFloat(strings.Replace(strings.TrimSpace(part), ",", ".", 1), 64); err == nil && i < len(v) {
			*v[i] = f
		}
	}
	return err
}

// photometrics are the colours each coding may have. What JPEG 2000 calls YBR_ICT and YBR_RCT its
// decoder turns into RGB.
var photometrics = map[Coding][]string{
	Native:   {"RGB"},
	RLE:      {"RGB"},
	JPEG:     {"RGB", "YBR_FULL", "YBR_FULL_422"},
	JPEG2000: {"RGB", "YBR_ICT", "YBR_RCT"},
}

// check says whether the frames can be decoded and makes sense of the numbers. It takes the frames from
// those left.
func (im *image) check(left *int) error {
	const op = "check DICOM image"
	coding, known := codings[im.syntax]
	im.coding = coding
	switch {
	case !known:
		return inOp(op, im.undecodable())
	case im.pixelData.tag != tagPixelData:
		return inOp(op, invalid(hintDamaged, "it has no pixels"))
	case im.samples != 3 || im.bits != 8:
		return inOp(op, unsupported(notColour, "its pixels are %d-bit with %d samples (%s), not 8-bit colour", im.bits, im.samples, im.photometric))
	case !slices.Contains(photometrics[coding], im.photometric):
		return inOp(op, unsupported(notColour, "colours in %s are not read from %s", strconv.Quote(im.photometric), coding))
	case im.opticalPaths > 1:
		return inOp(op, unsupported("export one channel in colour", "it has %d optical paths", im.opticalPaths))
	case im.focalPlanes > 1:
		return inOp(op, unsupported("export one focal plane", "it has %d focal planes", im.focalPlanes))
	case im.columns == 0 || im.rows == 0 || im.columns > math.MaxUint16 || im.rows > math.MaxUint16 ||
		im.width == 0 || im.height == 0 || im.width > maxEdge || im.height > maxEdge:
		return inOp(op, invalid(hintDamaged, "it has frames of %d×%d pixels in a level of %d×%d", im.columns, im.rows, im.width, im.height))
	case im.columns*im.rows*3 > maxTile:
		return inOp(op, unsupported("export it with frames of 256 to 1024 pixels", "frames of %d×%d pixels take more than %d MiB each", im.columns, im.rows, maxTile>>20))
	case im.frameCount < 1 || int64(im.frameCount) > im.r.Size()/8:
		return inOp(op, invalid(hintDamaged, "it claims %d frames in %d bytes", im.frameCount, im.r.Size()))
	case im.frameCount > *left:
		return inOp(op, tooMany(im.frameCount))
	}
	*left -= im.frameCount
	switch {
	case im.organization == tiledFull:
		im.positions = nil
	case len(im.positions) == 0 && im.frameCount == 1 && im.shared != position{}:
		im.positions = []position{im.shared}
	case len(im.positions) != 0 && len(im.positions) != im.frameCount:
		return inOp(op, invalid(hintDamaged, "%d of its %d frames say where they lie", len(im.positions), im.frameCount))
	}
	return nil
}

const notColour = "Coverslip reads bright-field colour slides; export this one as 8-bit RGB"

func tooMany(frames int) error {
	return unsupported("no slide needs that many; if this one does, report it", "%d frames", frames)
}
