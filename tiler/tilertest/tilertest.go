// Package tilertest makes the slides that tests want and nobody should have: tiny ones that claim to
// be huge, loops, bombs.
package tilertest

import (
	"bytes"
	"cmp"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"slices"
)

// Tag is a field of a TIFF directory as it stands in the file: number, type, count, and value or where
// the values are. What it claims need not be true.
type Tag [4]uint32

// Types of fields (TIFF 6.0, section 2).
const (
	Short = 3
	Long  = 4
)

// TIFF is a classic little-endian TIFF of 4 KiB with one directory, at 8, that is followed by the one
// at next; 0 is none.
func TIFF(next uint32, tags ...Tag) []byte {
	file := append([]byte("II*\x00\x08\x00\x00\x00"), directory(next, tags)...)
	return append(file, make([]byte, 4096-len(file))...)
}

// OneTile is a TIFF of edge × edge RGB pixels that are one tile, with these bytes in that compression.
func OneTile(edge uint32, compression uint16, tile []byte) []byte {
	return one(edge, compression, tile, Tag{322, Long, 1, edge}, Tag{323, Long, 1, edge}, Tag{324, Long, 1, pixelsAt}, Tag{325, Long, 1, uint32(len(tile))}) //nolint:gosec // a few megabytes
}

// OneStrip is OneTile in a strip.
func OneStrip(edge uint32, compression uint16, strip []byte) []byte {
	return one(edge, compression, strip, Tag{273, Long, 1, pixelsAt}, Tag{277, Short, 1, 3}, Tag{278, Long, 1, edge}, Tag{279, Long, 1, uint32(len(strip))}) //nolint:gosec // a few megabytes
}

const bitsAt, pixelsAt = 8, 16

func one(edge uint32, compression uint16, pixels []byte, place ...Tag) []byte {
	file := append([]byte("II*\x00\x00\x00\x00\x00\x08\x00\x08\x00\x08\x00\x00\x00"), pixels...)
	if len(file)%2 == 1 {
		file = append(file, 0)
	}
	binary.LittleEndian.PutUint32(file[4:], uint32(len(file))) //nolint:gosec // a few megabytes
	tags := append([]Tag{{256, Long, 1, edge}, {257, Long, 1, edge}, {258, Short, 3, bitsAt}, {259, Short, 1, uint32(compression)},
		{262, Short, 1, 2}, {277, Short, 1, 3}}, place...)
	slices.SortFunc(tags, func(a, b Tag) int { return cmp.Compare(a[0], b[0]) })
	return append(file, directory(0, slices.Compact(tags))...)
}

func directory(next uint32, tags []Tag) []byte {
	order := binary.LittleEndian
	out := order.AppendUint16(nil, uint16(len(tags))) //nolint:gosec // a dozen
	for _, t := range tags {
		out = order.AppendUint16(order.AppendUint16(out, uint16(t[0])), uint16(t[1])) //nolint:gosec // numbers of tags and types
		out = order.AppendUint32(order.AppendUint32(out, t[2]), t[3])
	}
	return order.AppendUint32(out, next)
}

// DeflateBomb is n zeros in zlib's format: a thousandth of that.
func DeflateBomb(n int64) []byte {
	const block = 1 << 20
	deflated := func(n int64) []byte {
		var out bytes.Buffer
		z, err := flate.NewWriter(&out, flate.BestCompression)
		if err == nil {
			_, err = z.Write(make([]byte, n))
		}
		if err == nil {
			err = z.Flush() // to a whole byte, so that pieces can follow each other
		}
		if err != nil {
			panic(fmt.Sprint("a buffer takes everything: ", err))
		}
		return out.Bytes()
	}
	out := append([]byte{0x78, 0xda}, bytes.Repeat(deflated(block), int(n/block))...) // RFC 1950
	out = append(append(out, deflated(n%block)...), 3, 0)                             // a last block that is empty
	return binary.BigEndian.AppendUint32(out, uint32(n%65521)<<16|1)                  //nolint:gosec // Adler-32 of zeros
}

// JPEG2000 is a codestream (ITU-T T.800, Annex A) that claims a size, in one tile, and has no pixels.
func JPEG2000(width, height uint32) []byte {
	out := []byte{0xff, 0x4f, 0xff, 0x51, 0, 47, 0, 0}
	for _, v := range []uint32{width, height, 0, 0, width, height, 0, 0} {
		out = binary.BigEndian.AppendUint32(out, v)
	}
	out = append(out, 0, 3, 7, 1, 1, 7, 1, 1, 7, 1, 1)
	out = append(out, 0xff, 0x52, 0, 12, 0, 0, 0, 1, 1, 5, 4, 4, 0, 1) // COD
	out = append(out, 0xff, 0x5c, 0, 19, 0x20)                         // QCD
	out = append(out, bytes.Repeat([]byte{0x48}, 16)...)
	return append(out, 0xff, 0x90, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x93, 0, 0, 0xff, 0xd9)
}
