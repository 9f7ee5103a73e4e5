package tiff

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

const (
	// A tile is decoded whole, so its size is memory.
	maxTileBytes = 1 << 30
	// Deflate packs at most 1032:1; a blank zstd tile was seen at 8,300:1. Beyond this the file
	// claims pixels that nobody scanned.
	maxRatio = 1 << 16
)

// Check says whether the slide that Read indexed is whole and can be decoded:
//   - every tile and strip of every directory lies within the file, else Invalid;
//   - each level has tiles, of a size that fits in memory and that their bytes can make up, in a
//     compression Coverslip decodes, and one of the first JPEG tiles of each is a JPEG of that size.
//
// It reads one short range of r per level, a few if tiles are damaged. Tiles without bytes are not refused here: see
// Dir.EmptyTiles. Damage inside a tile shows when the tile is decoded.
func (f *File) Check(ctx context.Context, r RangeReader) error {
	for _, d := range f.Dirs {
		if f.Format == FormatHamamatsu && f.Size > math.MaxUint32 {
			break // its places are cut to 32 bits
		}
		if err := f.within(d); err != nil {
			return inOp("check "+d.name(), err)
		}
	}
	if f.Format.Elsewhere() {
		return nil
	}
	if len(f.Levels) == 0 {
		return inOp("look for levels", unsupported("only single-region scans of this format are read from TIFF",
			"none of the %d images is the scan of a whole slide", len(f.Dirs)))
	}
	for i, l := range f.Levels {
		if err := f.decodable(ctx, r, l.Dir); err != nil {
			return inOp(fmt.Sprintf("check level %d (%s)", i, l.Dir.name()), err)
		}
	}
	return nil
}

func (d *Dir) name() string {
	if d.SubIFD >= 0 {
		return fmt.Sprintf("TIFF directory %d, SubIFD %d", d.Page, d.SubIFD)
	}
	return fmt.Sprintf("TIFF directory %d", d.Page)
}

// within holds the places of all tiles against the file's size. No tile lies in the header.
func (f *File) within(d *Dir) error {
	header := int64(8)
	if f.Big {
		header = 16
	}
	for i, n := range d.counts {
		off := d.offsets[i]
		switch {
		case n == 0:
		case off < header:
			return invalid(hintDamaged, "tile %d lies at %d, in the file header", i, off)
		case n > f.Size || off > f.Size-n:
			return invalid(hintEndsEarly, "tile %d, %d bytes at %d: %w, which has %d", i, n, off, errEndsEarly, f.Size)
		}
	}
	return nil
}

func (f *File) decodable(ctx context.Context, r RangeReader, d *Dir) error {
	if !d.Compression.Known() {
		return unsupported("export it in one of JPEG, JPEG 2000, LZW, deflate, PackBits, zstd, WebP, or uncompressed",
			"compression %s has no decoder here", d.Compression)
	}
	if d.empty == len(d.counts) {
		return invalid(hintDamaged, "none of its %d tiles has any bytes", len(d.counts))
	}
	if err := plausible(d); err != nil {
		return err
	}
	if d.Compression != JPEG {
		return nil
	}
	return f.firstJPEG(ctx, r, d)
}

// plausible refuses images far larger than their bytes can be. It counts in floating point,
// where nothing a file claims can overflow.
func plausible(d *Dir) error {
	tile := d.rowBytes() * float64(d.TileHeight)
	if d.Compression != Uncompressed && tile > maxTileBytes {
		return unsupported("save it with tiles of 256 pixels", "tiles of %d×%d pixels take more than %d MiB each",
			d.TileWidth, d.TileHeight, maxTileBytes>>20)
	}
	var packed, raw float64
	for i, n := range d.counts {
		if n == 0 {
			continue
		}
		packed += float64(n)
		raw += tile
		if need := d.rawBytes(i); d.Compression == Uncompressed && float64(n) < need {
			return invalid(hintDamaged, "tile %d has %d bytes where its pixels need %.0f", i, n, need)
		}
	}
	if raw > maxRatio*packed {
		return invalid(hintDamaged, "it claims %d×%d pixels in %.0f bytes", d.Width, d.Height, packed)
	}
	return nil
}

// rowBytes is the length of one row of a decoded tile.
func (d *Dir) rowBytes() float64 {
	samples := d.SamplesPerPixel
	if d.Planar {
		samples = 1
	}
	return math.Ceil(float64(d.TileWidth) * float64(samples) * float64(max(d.BitsPerSample, 1)) / 8)
}

// rawBytes is the least length of tile i of an uncompressed image; 0 where that cannot be told.
func (d *Dir) rawBytes(i int) float64 {
	if d.BitsPerSample == 0 || d.Photometric == YCbCr {
		return 0
	}
	rows := d.TileHeight
	if _, n := d.TileCount(); !d.Tiled && i%n == n-1 { // the last strip is cut, tiles are padded
		rows = d.Height - (n-1)*rows
	}
	return d.rowBytes() * float64(rows)
}

// firstJPEG reads the head of the first tile of d that has bytes. Of a few that are looked at, one has to
// be right: a single bad one is for the decoder to find, if anybody wants it.
func (f *File) firstJPEG(ctx context.Context, r RangeReader, d *Dir) error {
	if len(d.JPEGTables) > 0 {
		if _, err := walkJPEG(d.JPEGTables); err != nil {
			return invalid(hintDamaged, "its JPEG tables: %w", err)
		}
	}
	const looks = 4
	var first error
	looked := 0
	for i, n := range d.counts {
		if n == 0 {
			continue
		}
		head := make([]byte, min(n, windowSize))
		if err := r.ReadRange(ctx, head, d.offsets[i]); err != nil {
			return err
		}
		err := d.fits(i, n, head)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
		if looked++; looked == looks {
			break
		}
	}
	return first
}

// fits holds the head of JPEG tile i, of n bytes, against the directory.
func (d *Dir) fits(i int, n int64, head []byte) error {
	frame, err := walkJPEG(head)
	switch {
	case err != nil:
		return invalid(hintDamaged, "tile %d is no JPEG: %w", i, err)
	case !frame.scan && int64(len(head)) < n:
		return nil // a header longer than what was read: for the decoder to judge
	case !frame.scan:
		return invalid(hintDamaged, "tile %d is a JPEG without pixels", i)
	case frame.width > d.TileWidth || frame.height > d.TileHeight && frame.height != 0:
		return invalid(hintDamaged, "tile %d is a JPEG of %d×%d pixels in a place for %d×%d", i, frame.width, frame.height, d.TileWidth, d.TileHeight)
	case !d.Planar && frame.components != d.SamplesPerPixel:
		return invalid(hintDamaged, "tile %d is a JPEG of %d components in an image of %d samples", i, frame.components, d.SamplesPerPixel)
	}
	return nil
}

type jpegFrame struct {
	width, height, components int
	scan                      bool // the header is whole: a scan follows
}

// walkJPEG goes over the marker segments of a JPEG stream (ITU-T T.81, B.1.1) up to the first scan,
// the end of the image, or the end of data.
func walkJPEG(data []byte) (jpegFrame, error) {
	var frame jpegFrame
	if len(data) < 2 || data[0] != 0xff || data[1] != 0xd8 {
		return frame, errors.New("it does not begin with a JPEG marker")
	}
	for data = data[2:]; len(data) >= 4; {
		if data[0] != 0xff {
			return frame, fmt.Errorf("0x%02x stands where a marker should", data[0])
		}
		marker := data[1]
		if marker == 0xff { // fill bytes
			data = data[1:]
			continue
		}
		if marker == 0xd9 {
			return frame, nil
		}
		n := int(binary.BigEndian.Uint16(data[2:]))
		if n < 2 {
			return frame, fmt.Errorf("marker 0x%02x has length %d", marker, n)
		}
		switch body := data[4:]; {
		case marker == 0xda:
			if frame.components == 0 {
				return frame, errors.New("a scan before its frame")
			}
			frame.scan = true
			return frame, nil
		case marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc:
			if len(body) < 6 || n < 8 {
				return frame, errors.New("its frame header is cut off")
			}
			frame.height = int(binary.BigEndian.Uint16(body[1:]))
			frame.width = int(binary.BigEndian.Uint16(body[3:]))
			frame.components = int(body[5])
			if frame.width == 0 || frame.components == 0 {
				return frame, errors.New("its frame is empty")
			}
		}
		if n+2 > len(data) {
			return frame, nil
		}
		data = data[n+2:]
	}
	return frame, nil
}
