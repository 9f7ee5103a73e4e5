package vips

/*
#include "vips.h"
*/
import "C"

import (
	"errors"
	"io"
	"runtime/cgo"
	"sync"
	"unsafe"
)

// source is where libvips reads a file that is not on this machine. It has one position, like a file
// descriptor; libvips asks for one thing at a time.
type source struct {
	handle cgo.Handle
	file   *io.SectionReader

	mu  sync.Mutex
	err error // why reading failed first; libvips keeps failing until the image is loaded afresh
}

func newSource(r io.ReaderAt, size int64) *source {
	s := &source{file: io.NewSectionReader(r, 0, size)}
	s.handle = cgo.NewHandle(s)
	return s
}

// cause returns why reading failed, if that is behind err.
func (s *source) cause(err error) error {
	if s == nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.err != nil {
		return s.err
	}
	return err
}

// forget lets reading be tried again.
func (s *source) forget() {
	if s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.err = nil
	}
}

func (s *source) close() {
	if s != nil && s.handle != 0 {
		s.handle.Delete()
		s.handle = 0
	}
}

// goRead fills the buffer: libvips 8.14 takes a short read for the end.
//
//export goRead
func goRead(handle C.uintptr_t, buffer unsafe.Pointer, n C.int64_t) C.int64_t {
	s, _ := cgo.Handle(handle).Value().(*source)
	got, err := io.ReadFull(s.file, unsafe.Slice((*byte)(buffer), int(n)))
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err == nil {
			s.err = err
		}
		return -1
	}
	return C.int64_t(got)
}

//export goSeek
func goSeek(handle C.uintptr_t, offset C.int64_t, whence C.int) C.int64_t {
	s, _ := cgo.Handle(handle).Value().(*source)
	at, err := s.file.Seek(int64(offset), int(whence)) // C and Go count the three alike
	if err != nil {
		return -1
	}
	return C.int64_t(at)
}
