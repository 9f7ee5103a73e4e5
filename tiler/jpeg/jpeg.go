// Package jpeg decodes the JPEG streams a slide is cut into, through libjpeg-turbo's classic
// interface (jpeglib.h): tables that all streams of a level share are read once, the colour space is
// what the container says and never a guess, and what libjpeg merely warns of is an error, because
// from there on its pixels are made up.
//
// Pixels are those of the exact integer transform and of libjpeg's "fancy" upsampling, as OpenSlide's
// and libtiff's are. Where streams lie in a file, and caching, are its caller's business.
package jpeg

/*
#cgo LDFLAGS: -ljpeg
#include "jpeg.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"unsafe"

	"coverslip"
)

// Color is what the components of a stream mean. Streams in a TIFF or DICOM often lack the markers
// that say so: libjpeg takes Aperio's RGB for YCbCr.
type Color int

// The colours of slides.
const (
	Grey  Color = C.CS_JPEG_GREY  // one component; comes out as R = G = B
	RGB   Color = C.CS_JPEG_RGB   // three, as they are
	YCbCr Color = C.CS_JPEG_YCBCR // three, of ITU-R BT.601 full range (JFIF)
)

// Stream is what all JPEG streams of a level have in common.
type Stream struct {
	Tables        []byte // an abbreviated stream of tables only (TIFF's JPEGTables); nil when each stream has its own
	Color         Color
	Width, Height int // of a frame, pixels; the last strip of a TIFF may be lower
}

// Decoder decodes streams of one kind, one at a time: a goroutine each. Equal bytes give equal
// pixels, whatever was decoded before.
type Decoder struct {
	c *C.cs_jpeg
	s Stream
}

// NewDecoder makes a decoder and reads the tables. Tables that are none are Invalid. Close it.
func NewDecoder(s Stream) (*Decoder, error) {
	if s.Width <= 0 || s.Height <= 0 || s.Color < Grey || s.Color > YCbCr {
		panic("jpeg: a stream without size or colour")
	}
	d := &Decoder{C.cs_jpeg_new(unsafe.Pointer(unsafe.SliceData(s.Tables)), C.size_t(len(s.Tables))), s}
	if d.c == nil {
		return nil, noMemory
	}
	if err := d.result("read JPEG tables", C.cs_jpeg_prime(d.c)); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Decode decodes one stream into dst: RGB, a row every stride bytes. It writes the upper rows of the
// frame, shrunk in the transform by 1, 2, 4 or 8: ⌈rows/shrink⌉ rows of ⌈Width/shrink⌉ pixels. The
// frame must be Width wide, and Height high or, of a cut strip, at least rows; one of another size is
// refused before anything is written. What dst holds after an error means nothing.
//
// A stream that is damaged, cut off or not of this kind is Invalid. Damage that gives another valid
// stream cannot be told.
func (d *Decoder) Decode(dst []byte, stride int, data []byte, rows, shrink int) error {
	if shrink != 1 && shrink != 2 && shrink != 4 && shrink != 8 {
		panic("jpeg: shrink is not 1, 2, 4 or 8")
	}
	line := (d.s.Width + shrink - 1) / shrink * 3
	if rows <= 0 || rows > d.s.Height || stride < line || len(dst) < ((rows+shrink-1)/shrink-1)*stride+line {
		panic("jpeg: dst and frame do not match")
	}
	return d.result("decode JPEG", C.cs_jpeg_decode(d.c, unsafe.Pointer(unsafe.SliceData(data)), C.size_t(len(data)),
		unsafe.Pointer(unsafe.SliceData(dst)), C.size_t(stride), C.int(d.s.Color), C.int(d.s.Width), C.int(rows), C.int(d.s.Height), C.int(shrink)))
}

// Close frees the decoder.
func (d *Decoder) Close() {
	if d.c != nil {
		C.cs_jpeg_free(d.c)
		d.c = nil
	}
}

// Version is the version of libjpeg-turbo this was built with, such as "2.1.5".
func Version() string { return C.GoString(C.cs_jpeg_version()) }

var noMemory = &coverslip.Error{Kind: coverslip.Environment, Op: "decode JPEG", Err: errors.New("out of memory"), Hint: "run fewer workers or give the machine more memory"}

func (d *Decoder) result(op string, r C.int) error {
	switch r {
	case C.CS_JPEG_OK:
		return nil
	case C.CS_JPEG_NO_MEMORY:
		return noMemory
	default:
		return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf("%s", C.GoString(C.cs_jpeg_message(d.c))), Hint: "the file is damaged there; copy it again from its source"}
	}
}
