package openslide

import (
	"encoding/binary"
	"encoding/hex"
)

// compose lays OpenSlide's pixels over a background: premultiplied ARGB, a native 32-bit number each
// (openslide_read_region), to RGB.
func compose(dst, pixels []byte, background [3]byte) {
	dst = dst[:len(pixels)/4*3]
	for ; len(pixels) >= 4; pixels, dst = pixels[4:], dst[3:] {
		argb := binary.NativeEndian.Uint32(pixels)
		r, g, b := argb>>16&0xff, argb>>8&0xff, argb&0xff
		if through := 255 - argb>>24; through != 0 {
			r = min(r+(uint32(background[0])*through+127)/255, 255)
			g = min(g+(uint32(background[1])*through+127)/255, 255)
			b = min(b+(uint32(background[2])*through+127)/255, 255)
		}
		dst[0], dst[1], dst[2] = byte(r), byte(g), byte(b)
	}
}

// colour reads RRGGBB; all else is white.
func colour(text string) [3]byte {
	if c, err := hex.DecodeString(text); err == nil && len(c) == 3 {
		return [3]byte(c)
	}
	return [3]byte{255, 255, 255}
}
