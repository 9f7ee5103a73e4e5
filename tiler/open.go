package tiler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"coverslip"
	"coverslip/tiler/dicom"
	"coverslip/tiler/jpeg"
	"coverslip/tiler/remote"
	"coverslip/tiler/tiff"
	"coverslip/tiler/vips"
)

// Reader names how pixels are decoded, with a version of ours that changes when the same file would
// give other pixels. It is part of a bag's key.
const Reader = "libjpeg-turbo+libvips-1"

const notASlide = "Coverslip reads Aperio SVS, TIFF pyramids (OME, Philips, generic), DICOM and, through OpenSlide, NDPI, MRXS, SCN, BIF, VMS, SVSLIDE and CZI"

// Open opens the slide at path, or at an address (s3://, https://; see remote.Open), and reads what it
// says of itself. The format is judged by content,
// never by name. A DICOM slide is opened by any of its files or by their folder. A file that is no
// slide is Unsupported; one that is cut, damaged or lies about its size is Invalid. Only directories
// and one short range a level are read.
func Open(ctx context.Context, path string) (*Slide, error) {
	files, err := Files(ctx, path)
	if err != nil {
		return nil, err
	}
	return OpenFiles(ctx, remote.Shown(path), files)
}

// Name is what people call the slide at a path or an address: its last part.
func Name(path string) string { return filepath.Base(remote.Shown(path)) }

// Files returns the paths of the files that the slide at path consists of: itself alone; the instances
// of a DICOM series, sorted, in a folder of this machine or of a bucket (s3://bucket/folder/); or
// itself and the files that a vendor's index names (MRXS, VMS). Nobody is asked what else lies beside a
// slide at an address.
func Files(ctx context.Context, path string) ([]string, error) {
	switch {
	case remote.IsFolder(path):
		return bucketFiles(ctx, path)
	case remote.Is(path):
		files, err := remoteVendorFiles(ctx, path)
		return files, coverslip.At(remote.Shown(path), err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, coverslip.At(path, openError(err))
	}
	defer f.Close()
	several := false
	if stat, err := f.Stat(); err == nil && stat.IsDir() {
		several = true
	} else if head, err := readHead(f); err == nil {
		if several = dicom.Is(head); !several {
			files, err := vendorFiles(ctx, path, vendorFormat(head, path))
			return files, coverslip.At(path, err)
		}
	}
	if several {
		files, err := dicom.Files(ctx, path)
		return files, coverslip.At(path, err)
	}
	return []string{path}, nil
}

// OpenFiles opens the slide that consists of just these files, whatever lies beside them; see Files.
// Errors call it by name.
func OpenFiles(ctx context.Context, name string, files []string) (*Slide, error) {
	if len(files) == 0 {
		panic("tiler: a slide of no files")
	}
	var open closers
	s, err := openFiles(ctx, files, &open)
	if err != nil {
		_ = open.Close()
		return nil, coverslip.At(name, err)
	}
	s.Path, s.file = name, open
	return s, nil
}

func openFiles(ctx context.Context, files []string, open *closers) (*Slide, error) {
	if len(files) == 1 && !remote.Is(files[0]) {
		if f, err := os.Open(files[0]); err == nil {
			head, err := readHead(f)
			_ = f.Close() // only read
			if err == nil && isZip(head) {
				return openZip(ctx, files[0], open)
			}
		}
	}
	return openPlain(ctx, files, open)
}

// openPlain opens a slide that is not in an archive.
func openPlain(ctx context.Context, files []string, open *closers) (*Slide, error) {
	var readers []dicom.NamedReader
	for _, path := range files {
		r, file, err := openFile(ctx, path)
		if err != nil {
			return nil, err
		}
		*open = append(*open, file)
		readers = append(readers, dicom.NamedReader{Name: path, RangeReader: r})
	}
	head := make([]byte, min(HeadSize, readers[0].Size()))
	err := readers[0].ReadRange(ctx, head, 0)
	switch format, what := vendorFormat(head, files[0]), foreign(head); {
	case err != nil:
		return nil, err
	case dicom.Is(head):
		return openDICOM(ctx, readers)
	case format != "":
		return openVendor(ctx, files[0], format, open)
	case what != "":
		return nil, &coverslip.Error{Kind: coverslip.Unsupported, Op: "open slide", Err: errors.New("it is " + what), Hint: notASlide}
	}
	return openTIFF(ctx, files[0], readers[0].RangeReader, open)
}

// openFile opens one file of a slide, on this machine or at an address.
func openFile(ctx context.Context, path string) (tiff.RangeReader, io.Closer, error) {
	if remote.Is(path) {
		object, err := remote.Open(ctx, path)
		if err != nil {
			return nil, nil, err
		}
		ahead := remote.NewAhead(object)
		return ahead, ahead, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, openError(err)
	}
	stat, err := f.Stat()
	switch {
	case err != nil:
		err = openError(err)
	case stat.IsDir():
		err = &coverslip.Error{Kind: coverslip.Unsupported, Op: "open slide", Err: errors.New("it is a folder"), Hint: "name the slide files in it"}
	case stat.Size() == 0:
		err = &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Err: errors.New("it is empty"), Hint: "copy or upload it again"}
	default:
		return tiff.NewReaderAt(f, stat.Size()), f, nil
	}
	_ = f.Close() // nothing was read
	return nil, nil, err
}

// HeadSize is how many bytes it takes to tell what a file is.
const HeadSize = 132

// readHead returns the first bytes of a file.
func readHead(f *os.File) ([]byte, error) {
	head := make([]byte, HeadSize)
	n, err := f.ReadAt(head, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return head[:n], err
}

// closers are the files of a slide.
type closers []io.Closer

func (c closers) Close() error {
	var errs []error
	for _, f := range c {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// foreign says what a file that is no TIFF is, as far as its first bytes tell; "" for a TIFF.
func foreign(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte("II*\x00")), bytes.HasPrefix(head, []byte("MM\x00*")),
		bytes.HasPrefix(head, []byte("II+\x00")), bytes.HasPrefix(head, []byte("MM\x00+")):
		return ""
	case bytes.HasPrefix(head, []byte("\x89PNG")):
		return "a PNG picture, not a slide"
	case bytes.HasPrefix(head, []byte("\xff\xd8\xff")):
		return "a JPEG picture, not a slide (of an MRXS slide, name or zip it with its folder beside it)"
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		return "a ZIP archive that is not on this machine, or in another"
	case bytes.HasPrefix(head, []byte("\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")):
		return "an OLE file, as ZVI slides are, which nothing here reads"
	case bytes.HasPrefix(head, []byte("<DataObject ObjectType=\"DPUfsImport\"")):
		return "a Philips iSyntax slide, which only Philips' own software reads"
	case bytes.HasPrefix(head, []byte("\x7fELF")), bytes.HasPrefix(head, []byte("MZ")):
		return "a program, not a slide"
	}
	return "no slide: its first bytes are those of no format known here"
}

// CheckHead refuses, as Unsupported, a file whose first bytes (HeadSize, or all there are) show that it
// is no slide, before the rest of it is here. Whether it is a good one shows only when it is opened.
func CheckHead(head []byte, name string) error {
	if dicom.Is(head) || isZip(head) || vendorFormat(head, name) != "" {
		return nil
	}
	if what := foreign(head); what != "" {
		return &coverslip.Error{Kind: coverslip.Unsupported, Op: "open slide", Path: name, Err: errors.New("it is " + what), Hint: notASlide}
	}
	return nil
}

func openTIFF(ctx context.Context, path string, r tiff.RangeReader, open *closers) (*Slide, error) {
	index, err := tiff.Read(ctx, r)
	if err != nil {
		return nil, err
	}
	if ahead := asAhead(r); ahead != nil {
		ahead.Announce([][]remote.Range{firstTiles(index)})
	}
	err = index.Check(ctx, r)
	if index.Leica != nil && index.Leica.Scans > 1 && coverslip.KindOf(err) == coverslip.Unsupported {
		return openVendor(ctx, path, string(index.Format), open) // it lays the scans out on one canvas
	}
	if err != nil {
		return nil, err
	}
	if err := brightfield(index); err != nil {
		return nil, err
	}
	if index.Format.Elsewhere() {
		return openVendor(ctx, path, string(index.Format), open)
	}
	s := &Slide{Info: Info{Format: string(index.Format), Reader: Reader + " (libjpeg-turbo " + jpeg.Version() + ", libvips " + vips.Version() + ")"}}
	for _, l := range index.Levels {
		level := l.Level
		if l.Dir.Orientation >= 5 { // turned by a quarter
			level.Width, level.Height = level.Height, level.Width
		}
		s.Levels = append(s.Levels, level)
	}
	if s.pixels, err = decoder(path, r, index, s.Levels); err != nil {
		return nil, err
	}
	s.Width, s.Height = s.Levels[0].Width, s.Levels[0].Height
	wholeDownsamples(s.Levels)
	claims, objective := tiffClaims(index)
	s.MPP, s.ObjectivePower = decideMPP(claims, objective), objective
	return s, nil
}

// firstTiles is what the check of an index reads: one tile of each level.
func firstTiles(index *tiff.File) (out []remote.Range) {
	for _, l := range index.Levels {
		columns, rows := l.Dir.TileCount()
		for i := range columns * rows {
			if off, n := l.Dir.Tile(i%columns, i/columns); n > 0 {
				out = append(out, remote.Range{Off: off, N: min(n, 1<<20)})
				break
			}
		}
	}
	return out
}

// brightfield refuses TIFFs that are whole but show no stained tissue in colour.
func brightfield(index *tiff.File) error {
	base := index.Dirs[0]
	if len(index.Levels) > 0 {
		base = index.Levels[0].Dir
	}
	var why string
	hint := "Coverslip reads bright-field colour slides; export this one as 8-bit RGB"
	switch {
	case base.Emission > 0:
		why = fmt.Sprintf("it shows fluorescence at %g nm", base.Emission)
	case index.Format.Elsewhere(): // its directories are no levels
		return nil
	case index.OME != nil && len(index.OME.Images) > 0 && channels(index.OME.Images[0], base) != "":
		why = channels(index.OME.Images[0], base)
	case base.BitsPerSample != 8 || base.SampleFormat != 1:
		why = fmt.Sprintf("its samples are %d-bit, format %d, not 8-bit unsigned", base.BitsPerSample, base.SampleFormat)
	case !colour(base):
		why = "its colours are not RGB, grey, or YCbCr in JPEG"
	case base.Planar && base.Tiled && (base.SamplesPerPixel != 3 || base.Photometric != tiff.RGB || base.Orientation != 1):
		why = "its samples lie in tiles of their own, and are not upright RGB"
		hint = "lay the samples of a pixel beside each other, for example with tiffcp -p contig"
	default:
		return nil
	}
	return &coverslip.Error{Kind: coverslip.Unsupported, Op: "open slide", Err: errors.New(why), Hint: hint}
}

// colour reports whether the pixels of a directory are colours that are read.
func colour(d *tiff.Dir) bool {
	switch d.Photometric {
	case tiff.RGB, tiff.BlackIsZero, tiff.WhiteIsZero, -1: // -1: the file does not say
		return true
	case tiff.YCbCr: // of other compressions with fewer samples for colour, which libvips does not read
		return slices.Contains([]tiff.Compression{tiff.JPEG, tiff.JPEG2000, tiff.JPEG2000YCC, tiff.JPEG2000RGB, tiff.WebP}, d.Compression)
	}
	return d.Compression == tiff.JPEG2000YCC || d.Compression == tiff.JPEG2000RGB // whatever it says
}

// channels says why an OME image is no bright-field slide, or "".
func channels(o tiff.OMEImage, base *tiff.Dir) string {
	switch {
	case o.SizeC == 3 && base.SamplesPerPixel == 1:
		return "it has three channels in pictures of their own, not three colours"
	case o.SizeC != 0 && o.SizeC != 3 && o.SizeC != 1:
		return fmt.Sprintf("it has %d channels, not three colours", o.SizeC)
	case o.SizeT > 1:
		return fmt.Sprintf("it is a series of %d moments", o.SizeT)
	}
	return ""
}

// tiffClaims lists what a TIFF says of its resolution, in order of trust: the scanner's own words
// before the tags any program writes.
func tiffClaims(index *tiff.File) (claims []claim, objective float64) {
	if a := index.Aperio; a != nil {
		objective = number(a["AppMag"])
		claims = append(claims, claim{coverslip.MPPAperio, number(a["MPP"]), number(a["MPP"]), a["MPP"]})
	}
	if o := index.OME; o != nil && len(o.Images) > 0 {
		objective = o.Images[0].ObjectivePower
		claims = append(claims, claim{coverslip.MPPOME, o.Images[0].MPPX, o.Images[0].MPPY, ""})
	}
	if p := index.Philips; p != nil {
		claims = append(claims, claim{coverslip.MPPDICOM, p.MPPX, p.MPPY, ""})
	}
	if l := index.Leica; l != nil {
		objective = l.ObjectivePower
		claims = append(claims, claim{coverslip.MPPTIFF, l.MPPX, l.MPPY, ""})
	}
	base := index.Levels[0].Dir
	perUnit := map[int]float64{2: 25_400, 3: 10_000}[base.ResolutionUnit] // µm in an inch, in a centimetre
	if perUnit > 0 && base.XResolution > 0 && base.YResolution > 0 {
		claims = append(claims, claim{coverslip.MPPTIFF, perUnit / base.XResolution, perUnit / base.YResolution, ""})
	}
	return claims, objective
}

// wholeDownsamples corrects the scale of levels whose size was cut to whole pixels: a level of 2221
// pixels under one of 4443 is half as fine, not 1/2.0005, and tiles at the far edge would be read
// pixels aside.
func wholeDownsamples(levels []coverslip.Level) {
	base := levels[0]
	for i := range levels {
		l := &levels[i]
		n := math.Round(l.Downsample)
		if math.Abs(float64(base.Width)/n-float64(l.Width)) < 1 && math.Abs(float64(base.Height)/n-float64(l.Height)) < 1 {
			l.Downsample = n
		}
	}
}

// inLevel says in which level something went wrong.
func inLevel(level int, err error) error { return coverslip.Doing(fmt.Sprintf("level %d", level), err) }

func openError(err error) error {
	e := &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Err: err, Hint: "check that the disk is readable"}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Kind, e.Err, e.Hint = coverslip.NotFound, errors.New("there is no such file"), "check the path"
	case errors.Is(err, fs.ErrPermission):
		e.Err, e.Hint = errors.New("permission denied"), "make the file readable for the user Coverslip runs as"
	}
	return e
}
