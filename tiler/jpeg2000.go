package tiler

import (
	"encoding/binary"
	"errors"
	"fmt"

	"coverslip"
	"coverslip/tiler/vips"
)

// jpeg2000Tiles decodes through libvips.
type jpeg2000Tiles struct{ width, height int }

func (t jpeg2000Tiles) shrinks() int { return 1 }

func (t jpeg2000Tiles) decode(dst []byte, stride, rows, _ int, data []byte) error {
	if err := wholeJPEG2000(data, t.width, t.height); err != nil {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "decode JPEG 2000", Err: err}
	}
	if stride == t.width*3 && rows == t.height {
		return vips.DecodeJPEG2000(dst[:rows*stride], data, t.width, t.height)
	}
	rgb := make([]byte, t.width*t.height*3)
	if err := vips.DecodeJPEG2000(rgb, data, t.width, t.height); err != nil {
		return err
	}
	for y := range rows {
		copy(dst[y*stride:], rgb[y*t.width*3:(y+1)*t.width*3])
	}
	return nil
}

func (t jpeg2000Tiles) close() {}

// wholeJPEG2000 walks over the tile-parts of a codestream (ITU-T T.800, Annex A) and refuses one of
// another size, or that does not reach its end. OpenJPEG would make room for whatever size is claimed,
// and decodes zeros where a codestream breaks off.
func wholeJPEG2000(data []byte, width, height int) error {
	const (
		soc, siz, sot, eoc = 0xff4f, 0xff51, 0xff90, 0xffd9
		sizLength          = 4 + 38 // marker, length, and all but the components
	)
	marker := func(at int) int { return int(binary.BigEndian.Uint16(data[at:])) }
	long := func(at int) int64 { return int64(binary.BigEndian.Uint32(data[at:])) }
	if len(data) < 2+sizLength || marker(0) != soc || marker(2) != siz {
		return errors.New("it does not begin like a codestream")
	}
	if w, h := long(8)-long(16), long(12)-long(20); w != int64(width) || h != int64(height) {
		return fmt.Errorf("it claims %d × %d pixels in a place for %d × %d", w, h, width, height)
	}
	if components := marker(40); components != 3 {
		return fmt.Errorf("it has %d components, not 3", components)
	}
	at := 2
	for at+4 <= len(data) && marker(at) != sot && marker(at) != eoc { // the rest of the main header
		if marker(at) < 0xff00 || marker(at+2) < 2 {
			return errors.New("its header is damaged")
		}
		at += 2 + marker(at+2)
	}
	for at+12 <= len(data) && marker(at) == sot {
		length := long(at + 6)
		if length == 0 { // the last one, which goes on to the end
			at = endOf(data)
			break
		}
		if length < 14 || length > int64(len(data)-at) {
			return errors.New("it breaks off")
		}
		at += int(length)
	}
	if at+2 > len(data) || marker(at) != eoc {
		return errors.New("it breaks off, or is damaged")
	}
	return nil
}

// endOf is where the last two bytes before the padding begin.
func endOf(data []byte) int {
	n := len(data)
	for n > 2 && data[n-1] == 0 {
		n--
	}
	return n - 2
}
