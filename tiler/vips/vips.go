// Package vips is the door to libvips: it decodes regions of TIFF directories and encodes pictures.
// Everything it hands out is 8-bit RGB.
//
// govips serves for start-up, cache and concurrency settings, logging and memory figures. It has no
// regions, pages of sub-directories or fail levels, so a small cgo file stands beside it for those.
// Which directory is a level, how large a pixel is and which tiles to read is tiler's business.
package vips

/*
#cgo pkg-config: vips
#include "vips.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unsafe"

	"github.com/davidbyttow/govips/v2/vips"

	"coverslip"
)

// Version is libvips' version, such as "8.14.1".
func Version() string {
	start()
	return vips.Version
}

// Memory is what libvips has allocated for pixels now and at most so far, in bytes.
func Memory() (now, peak int64) {
	start()
	var m vips.MemoryStats
	vips.ReadVipsMemStats(&m)
	return m.Mem, m.MemHigh
}

// start runs libvips for a long-running server: one thread a call, because the parallelism is in
// Go, and no operation cache, because it would keep slides open.
var start = sync.OnceFunc(func() {
	vips.LoggingSettings(func(string, vips.LogLevel, string) {}, vips.LogLevelError) // errors come back as errors
	// The C library knows no Go memory arenas: without this each thread's malloc keeps its own peak.
	if os.Getenv("MALLOC_ARENA_MAX") == "" {
		C.cs_limit_arenas(2)
	}
	vips.Startup(&vips.Config{ConcurrencyLevel: 1, MaxCacheFiles: 0, MaxCacheMem: 0, MaxCacheSize: 0})
})

// Image is one resolution of a slide, decoded where it is looked at. It is safe for concurrent use.
type Image struct {
	im            *C.VipsImage
	Width, Height int // pixels, after the TIFF's orientation has been undone
	path          string
	src           *source // nil for a file

	// libvips keeps tiles it decoded, and one that failed as a black one without an error. So after a
	// failure the image is loaded afresh, and until then nobody else may look. Little is lost by that:
	// libvips lets only one thread decode a TIFF, but for JPEG and JPEG 2000.
	mu   sync.Mutex
	load func() (*Image, error) // nil for an image that is not loaded afresh
}

// OpenTIFF opens a TIFF directory: the page-th of the main chain (from 0), or, when sub ≥ 0, the
// sub-th SubIFD of it. Decoding errors that libvips can tell are errors.
func OpenTIFF(path string, page, sub int) (*Image, error) {
	start()
	load := func() (*Image, error) {
		return open(path, func(name *C.char) *C.VipsImage { return C.cs_open_tiff(name, C.int(page), C.int(sub)) })
	}
	im, err := load()
	if err != nil {
		return nil, err
	}
	im.load = load
	return im, nil
}

// OpenTIFFAt is OpenTIFF of size bytes that are read from r, which libvips asks for small pieces all
// over the place. Errors of r are returned as they are; path is for the others. r is read until Close.
func OpenTIFFAt(r io.ReaderAt, size int64, path string, page, sub int) (*Image, error) {
	start()
	src := newSource(r, size)
	load := func() (*Image, error) {
		im, err := open(path, func(*C.char) *C.VipsImage {
			return C.cs_open_tiff_source(C.uintptr_t(src.handle), C.int(page), C.int(sub))
		})
		return im, src.cause(err)
	}
	im, err := load()
	if err != nil {
		src.close()
		return nil, err
	}
	im.src, im.load = src, load
	return im, nil
}

// DecodeJPEG2000 decodes one whole JPEG 2000 codestream of a size known beforehand into dst,
// [height*width*3], taking its components for R, G and B whatever it says itself.
func DecodeJPEG2000(dst, data []byte, width, height int) error {
	start()
	if len(dst) != width*height*3 || len(dst) == 0 {
		panic("vips: dst and size do not match")
	}
	if len(data) == 0 {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "decode JPEG 2000", Err: errors.New("there are no bytes"), Hint: damaged}
	}
	if C.cs_decode_jp2k(unsafe.Pointer(&data[0]), C.size_t(len(data)), C.int(width), C.int(height), unsafe.Pointer(&dst[0])) != 0 {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "decode JPEG 2000", Err: lastError(), Hint: damaged}
	}
	return nil
}

const damaged = "the file is damaged there; copy it again from its source"

func open(path string, load func(*C.char) *C.VipsImage) (*Image, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	raw := load(name)
	if raw == nil {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "open with libvips", Path: path, Err: lastError(), Hint: "the file is broken or cut; copy it again from its source"}
	}
	if format := C.vips_image_get_format(raw); format != C.VIPS_FORMAT_UCHAR {
		defer C.g_object_unref(C.gpointer(raw))
		return nil, unsupported(path, fmt.Sprintf("samples are %s, not 8-bit", C.GoString(C.vips_enum_nick(C.vips_band_format_get_type(), C.int(format)))))
	}
	im := C.cs_to_rgb(raw)
	C.g_object_unref(C.gpointer(raw))
	if im == nil {
		return nil, unsupported(path, lastError().Error())
	}
	return &Image{im: im, Width: int(C.vips_image_get_width(im)), Height: int(C.vips_image_get_height(im)), path: path}, nil
}

func unsupported(path, why string) error {
	return &coverslip.Error{Kind: coverslip.Unsupported, Op: "convert to 8-bit RGB", Path: path, Err: errors.New(why), Hint: "Coverslip reads bright-field colour slides"}
}

// ReadRegion decodes the w×h pixels whose top-left is (x, y) into dst, [h*w*3] RGB row by row. The
// region must lie within the image.
func (m *Image) ReadRegion(dst []byte, x, y, w, h int) error {
	if x < 0 || y < 0 || w <= 0 || h <= 0 || x+w > m.Width || y+h > m.Height || len(dst) != w*h*3 {
		panic("vips: region outside the image, or dst of another size")
	}
	if m.load != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.im == nil {
			if err := m.again(); err != nil {
				return err
			}
		}
	}
	if C.cs_read_region(m.im, C.int(x), C.int(y), C.int(w), C.int(h), unsafe.Pointer(&dst[0])) != 0 {
		err := m.src.cause(&coverslip.Error{Kind: coverslip.Invalid, Op: fmt.Sprintf("decode pixels %d,%d to %d,%d", x, y, x+w, y+h), Path: m.path, Err: lastError(), Hint: damaged})
		if m.load != nil {
			C.g_object_unref(C.gpointer(m.im))
			m.im = nil
		}
		return err
	}
	return nil
}

// again loads the image afresh after a failure.
func (m *Image) again() error {
	m.src.forget()
	fresh, err := m.load()
	if err == nil {
		m.im = fresh.im
	}
	return err
}

// Close frees the image. No call may be under way.
func (m *Image) Close() {
	if m.im != nil {
		C.g_object_unref(C.gpointer(m.im))
		m.im = nil
	}
	m.src.close()
}

// Encode compresses an RGB picture, [height*width*3], in the format the suffix names, with libvips'
// save options in brackets: ".jpg[Q=85]", ".png", ".webp".
func Encode(rgb []byte, width, height int, suffix string) ([]byte, error) {
	start()
	if len(rgb) != width*height*3 || len(rgb) == 0 {
		panic("vips: picture and size do not match")
	}
	name := C.CString(suffix)
	defer C.free(unsafe.Pointer(name))
	var size C.size_t
	out := C.cs_encode(unsafe.Pointer(&rgb[0]), C.int(width), C.int(height), name, &size)
	if out == nil {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "encode " + suffix, Err: lastError()}
	}
	defer C.g_free(C.gpointer(out))
	return C.GoBytes(out, C.int(size)), nil
}

// SaveTIFF writes an RGB picture, [height*width*3], as a pyramid of JPEG tiles of a quality scanners use
// (75), which says mpp (µm per pixel) in its resolution tags.
func SaveTIFF(path string, rgb []byte, width, height int, mpp float64) error {
	start()
	if len(rgb) != width*height*3 || len(rgb) == 0 {
		panic("vips: picture and size do not match")
	}
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	if C.cs_save_tiff(unsafe.Pointer(&rgb[0]), C.int(width), C.int(height), C.double(1000/mpp), name) != 0 {
		return &coverslip.Error{Kind: coverslip.Unavailable, Op: "write TIFF", Path: path, Err: lastError()}
	}
	return nil
}

// lastError takes the message libvips left for this call. The buffer is shared by all threads, so
// under concurrent failures a message may carry another call's line; whether there was an error at
// all never depends on it.
func lastError() error {
	text := C.vips_error_buffer_copy()
	defer C.g_free(C.gpointer(text))
	lines := strings.FieldsFunc(C.GoString(text), func(r rune) bool { return r == '\n' })
	if len(lines) == 0 {
		return errors.New("libvips gave no reason")
	}
	return errors.New(lines[len(lines)-1])
}
