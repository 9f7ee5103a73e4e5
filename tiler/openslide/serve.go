package openslide

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"coverslip"
)

// mode is the first argument of a decode process; then come its limits, OpenSlide's library, the slide
// and the slide's files.
const mode = "decode-vendor-slides"

// served says that this program can be started as a decode process.
var served bool

// Main is to be called first thing in a program that opens slides. It returns at once, but in a decode
// process, where it does not return.
func Main() {
	if len(os.Args) < 2 || os.Args[1] != mode {
		served = true
		return
	}
	os.Exit(serve(os.Args[2:], openImage))
}

// cacheBytes is how much OpenSlide may keep of what it decoded, which tiles beside each other share.
const cacheBytes = 64 << 20

// image is an open slide, seen from inside. Its methods are safe for concurrent use.
type image interface {
	describe() Description
	read(dst []byte, r request) error
}

// serve is the decode process: it opens a slide and answers requests until the other side is gone.
func serve(args []string, open func(library, path string, confine func() error) (image, error)) (code int) {
	conn := os.NewFile(3, "requests")
	shared, err := mapShared(4)
	if err != nil || len(args) < 3 {
		fmt.Fprintln(os.Stderr, "this is started by Coverslip itself:", err)
		return 2
	}
	var limits limits
	first := opening{}
	var slide image
	if err = limits.parse(args[0]); err == nil {
		slide, err = open(args[1], args[2], func() error { return confine(limits, args[3:]) })
	}
	if err != nil {
		first.Kind, first.Op, first.Why = coverslip.KindOf(err), "open with OpenSlide", err.Error()
		var e *coverslip.Error
		if errors.As(err, &e) {
			first.Op, first.Why = e.Op, e.Err.Error()
		}
	}
	if slide != nil {
		first.Description = slide.describe()
	}
	message, err := json.Marshal(first)
	if err != nil || len(message) > maxMessage {
		fmt.Fprintln(os.Stderr, "cannot describe the slide:", err)
		return 2
	}
	if _, err := conn.Write(message); err != nil || first.Why != "" {
		return 1
	}
	buffer := make([]byte, maxMessage)
	for {
		n, err := conn.Read(buffer)
		if err != nil || n == 0 {
			return 0 // whatever still goes on
		}
		r, err := parseRequest(buffer[:n], len(shared)/slotBytes)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		go func() {
			a := answer{slot: int(r.slot)}
			if err := slide.read(shared[a.slot*slotBytes:][:int(r.w)*int(r.h)*4], r); err != nil {
				a.why = err.Error()
			}
			if _, err := conn.Write(a.encode()); err != nil {
				os.Exit(1)
			}
		}()
	}
}

// mapShared maps the memory that the pixels go to.
func mapShared(fd int) ([]byte, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if stat.Size == 0 || stat.Size%slotBytes != 0 {
		return nil, fmt.Errorf("%d bytes of memory are shared", stat.Size)
	}
	return unix.Mmap(fd, 0, int(stat.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// openedImage is a slide in OpenSlide.
type openedImage struct {
	lib  *library
	path string
	says Description

	// A handle that failed once fails for ever, and all who are reading with it.
	mu     sync.RWMutex
	handle uintptr
}

// openImage loads OpenSlide, gives up what is not needed any more, and opens the slide. A slide that
// cannot be opened still says OpenSlide's version.
func openImage(library, path string, confine func() error) (image, error) {
	lib, err := load(library)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: "load OpenSlide", Err: fmt.Errorf("%s: %w", library, err)}
	}
	if err := confine(); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: "confine the decode process", Err: err}
	}
	s := &openedImage{lib: lib, path: path, says: Description{Version: lib.version()}}
	if err := s.reopen(); err != nil {
		return s, err
	}
	s.says = Description{Version: s.says.Version, Vendor: lib.property(s.handle, "openslide.vendor"),
		MPPX: lib.property(s.handle, "openslide.mpp-x"), MPPY: lib.property(s.handle, "openslide.mpp-y"),
		ObjectivePower: lib.property(s.handle, "openslide.objective-power"), Background: lib.property(s.handle, "openslide.background-color")}
	for level := range lib.levelCount(s.handle) {
		var w, h int64
		lib.levelSize(s.handle, level, &w, &h)
		s.says.Levels = append(s.says.Levels, Level{int(w), int(h), lib.downsample(s.handle, level)})
	}
	return s, nil
}

func (s *openedImage) describe() Description { return s.says }

// reopen opens the slide, afresh after a failure.
func (s *openedImage) reopen() error {
	if s.handle != 0 {
		s.lib.close(s.handle)
	}
	if s.handle = s.lib.open(s.path); s.handle == 0 {
		return &coverslip.Error{Kind: coverslip.Unsupported, Op: "open with OpenSlide", Err: errors.New("OpenSlide does not know what it is")}
	}
	if why := s.lib.fault(s.handle); why != "" {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "open with OpenSlide", Err: errors.New(why)}
	}
	cache := s.lib.cacheCreate(cacheBytes)
	s.lib.cacheSet(s.handle, cache)
	s.lib.cacheRelease(cache)
	return nil
}

func (s *openedImage) read(dst []byte, r request) error {
	s.mu.RLock()
	err := s.try(dst, r)
	s.mu.RUnlock()
	if err == nil {
		return nil
	}
	// Alone, it shows whether these pixels are at fault or those that somebody else was reading.
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.reopen(); err != nil {
		return err
	}
	if err = s.try(dst, r); err != nil {
		return errors.Join(err, s.reopen())
	}
	return nil
}

func (s *openedImage) try(dst []byte, r request) error {
	if s.handle == 0 {
		return errors.New("it can no longer be opened")
	}
	s.lib.readRegion(s.handle, &dst[0], r.x, r.y, r.level, int64(r.w), int64(r.h))
	if why := s.lib.fault(s.handle); why != "" {
		return errors.New(why)
	}
	return nil
}

// text writes what of the limits the process sets itself.
func (l limits) text() string { return fmt.Sprintf("%d,%d", l.memory, l.cpu) }

func (l *limits) parse(text string) (err error) {
	memory, cpu, _ := strings.Cut(text, ",")
	if l.memory, err = strconv.ParseUint(memory, 10, 63); err == nil {
		l.cpu, err = strconv.ParseUint(cpu, 10, 63)
	}
	return err
}
