package openslide

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"
)

// compose lays OpenSlide's pixels over a background: premultiplied ARGB, a native 32-bit number each
// (openslide_read_region), to RGB.
func compose(dst, pixels []byte, background [3]byte) {
	for len(pixels) >= 4 {
		argb := binary.NativeEndian.Uint32(pixels)
		if argb < 0xff<<24 {
			argb = over(argb, background)
		}
		if len(dst) < 4 { // the last
			dst[0], dst[1], dst[2] = byte(argb>>16), byte(argb>>8), byte(argb) //nolint:gosec // bytes of it
			return
		}
		// Four bytes at once, of which the next pixel overwrites one.
		binary.LittleEndian.PutUint32(dst, bits.ReverseBytes32(argb)>>8)
		pixels, dst = pixels[4:], dst[3:]
	}
}

// over lays a pixel over a background, which makes it opaque.
func over(argb uint32, background [3]byte) uint32 {
	through := 255 - argb>>24
	r := min(argb>>16&0xff+(uint32(background[0])*through+127)/255, 255)
	g := min(argb>>8&0xff+(uint32(background[1])*through+127)/255, 255)
	b := min(argb&0xff+(uint32(background[2])*through+127)/255, 255)
	return 0xff<<24 | r<<16 | g<<8 | b
}

// colour reads RRGGBB; all else is white.
func colour(text string) [3]byte {
	if c, err := hex.DecodeString(text); err == nil && len(c) == 3 {
		return [3]byte(c)
	}
	return [3]byte{255, 255, 255}
}
