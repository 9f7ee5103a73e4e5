package tiff

import "strconv"

// Compression is how the bytes of a tile are packed (tag 259).
type Compression int

// The compressions slides come in. Numbers above 32767 are registered with Adobe or, like Zstd and
// WebP, defined by libtiff.
const (
	Uncompressed Compression = 1
	LZW          Compression = 5
	JPEG         Compression = 7
	Deflate      Compression = 8
	OldDeflate   Compression = 32946 // the same bytes as Deflate
	PackBits     Compression = 32773
	JPEG2000YCC  Compression = 33003 // Aperio: YCbCr, whatever Photometric says
	JPEG2000RGB  Compression = 33005 // Aperio: RGB
	JPEG2000     Compression = 34712
	Zstd         Compression = 50000
	WebP         Compression = 50001
)

var compressionNames = map[Compression]string{
	Uncompressed: "uncompressed", LZW: "LZW", JPEG: "JPEG", Deflate: "deflate", OldDeflate: "deflate",
	PackBits: "PackBits", JPEG2000YCC: "JPEG 2000 (YCbCr)", JPEG2000RGB: "JPEG 2000 (RGB)",
	JPEG2000: "JPEG 2000", Zstd: "zstd", WebP: "WebP",
}

// Known reports whether Coverslip has a decoder for c.
func (c Compression) Known() bool { return compressionNames[c] != "" }

// String is the name of c, or its number.
func (c Compression) String() string {
	if c.Known() {
		return compressionNames[c]
	}
	return strconv.Itoa(int(c))
}

// Photometric is what the samples of a pixel mean (tag 262); -1 when the file does not say.
type Photometric int

// Only these occur in slides.
const (
	WhiteIsZero Photometric = 0
	BlackIsZero Photometric = 1
	RGB         Photometric = 2
	Palette     Photometric = 3
	CMYK        Photometric = 5
	YCbCr       Photometric = 6
)
