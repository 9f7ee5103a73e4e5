package openslide

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"

	"coverslip"
)

// A path below this is no file but a fault, for openFaulty.
const faultyPath = "/faulty/"

// faulty is a slide whose decoder goes wrong when it is asked for level 1.
type faulty struct{ fault string }

func openFaulty(_, path string, confine func() error) (image, error) {
	f := faulty{strings.TrimPrefix(path, faultyPath)}
	if f.fault == "hang when opened" {
		select {}
	}
	if f.fault == "leave when opened" {
		os.Exit(0)
	}
	return f, confine()
}

func (f faulty) describe() Description {
	return Description{Levels: []Level{{1000, 1000, 1}, {1000, 1000, 1}}}
}

func (f faulty) read(dst []byte, r request) error {
	if r.level == 0 {
		for i := 0; i < len(dst); i += 4 {
			dst[i], dst[i+1], dst[i+2], dst[i+3] = byte(r.x), byte(r.x), byte(r.x), 255
		}
		return nil
	}
	var memset func(dst uintptr, value int32, n uintptr) uintptr
	var malloc func(n uintptr) uintptr
	var abort func()
	for name, function := range map[string]any{"memset": &memset, "malloc": &malloc, "abort": &abort} {
		purego.RegisterLibFunc(function, purego.RTLD_DEFAULT, name)
	}
	switch f.fault {
	case "crash":
		memset(8, 0, 1)
	case "abort":
		abort()
	case "leave":
		os.Exit(0)
	case "hang":
		select {}
	case "spin":
		for {
			memset(uintptr(unsafe.Pointer(&dst[0])), 1, 1<<20)
		}
	case "eat":
		for n := uintptr(64 << 20); ; {
			p := malloc(n)
			if p == 0 {
				abort()
			}
			memset(p, 1, n)
		}
	case "lie":
		_, err := os.NewFile(3, "").Write([]byte{9, 0, 0, 0})
		return err
	case "probe":
		return errors.New(probe())
	}
	return errors.New("no such fault")
}

func openFault(t *testing.T, fault string, l limits) (*Slide, error) {
	t.Helper()
	t.Setenv(LibraryVariable, "/no/library") // none is loaded
	path, err := filepath.Abs(bundled)
	if err != nil {
		t.Fatal(err)
	}
	return open(t.Context(), faultyPath+fault, []string{path}, l)
}

// Faults 5 and 13: whatever becomes of the process, the slide fails with the reason, all who wait are
// told, and others go on.
func TestFault5TheProcessFailsAlone(t *testing.T) {
	small := limits{opening: time.Minute, reading: time.Minute, memory: 256 << 20, cpu: 60}
	with := func(change func(*limits)) limits { l := small; change(&l); return l }
	other, err := openFault(t, "none", small)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for fault, c := range map[string]struct {
		limits
		says string
	}{
		"crash": {small, "SIGSEGV"},
		"abort": {small, "SIGABRT"},
		"leave": {small, "exit status 0"},
		"lie":   {small, "nobody had asked"},
		"eat":   {small, "SIGABRT"},
		"hang":  {with(func(l *limits) { l.reading = time.Second / 5 }), "did not answer"},
		"spin":  {with(func(l *limits) { l.cpu = 1 }), "it took 1 s of the processor"},
	} {
		t.Run(fault, func(t *testing.T) {
			s, err := openFault(t, fault, c.limits)
			if err != nil {
				t.Fatal(err)
			}
			pid := s.process.cmd.Process.Pid
			var readers sync.WaitGroup
			for range 6 {
				readers.Go(func() {
					err := s.ReadRegion(t.Context(), make([]byte, 300), 1, 0, 0, 10, 10)
					if coverslip.KindOf(err) != coverslip.Invalid || !errors.Is(err, ErrEnded) || coverslip.HintOf(err) == "" || !strings.Contains(err.Error(), c.says) {
						t.Errorf("got %v, want %q in it", err, c.says)
					}
				})
			}
			readers.Wait()
			if err := s.ReadRegion(t.Context(), make([]byte, 300), 0, 0, 0, 10, 10); !errors.Is(err, ErrEnded) {
				t.Errorf("afterwards: %v", err)
			}
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("the process is still there, or nobody reaped it: %v", err)
			}
			s.Close()
			dst := make([]byte, 300)
			if err := other.ReadRegion(t.Context(), dst, 0, 5, 0, 10, 10); err != nil || dst[0] != 5 {
				t.Errorf("another slide: %v", err)
			}
		})
	}
}

// Fault 5: a tile that says it has more pixels than there is memory for.
func TestFault5BombStopsTheProcess(t *testing.T) {
	need(t)
	const edge = 32000 // 4 GB of pixels, a tenth of them would do
	var ifd bytes.Buffer
	fields := [][3]uint32{{256, 4, edge}, {257, 4, edge}, {258, 3, 8}, {259, 3, 8}, {262, 3, 2}, {277, 3, 3}, {284, 3, 1},
		{322, 4, edge}, {323, 4, edge}, {324, 4, 8}, {325, 4, 1000}}
	_ = binary.Write(&ifd, binary.LittleEndian, uint16(len(fields)))
	for _, f := range fields {
		_ = binary.Write(&ifd, binary.LittleEndian, []uint16{uint16(f[0]), uint16(f[1])})
		_ = binary.Write(&ifd, binary.LittleEndian, []uint32{1, f[2]})
	}
	_ = binary.Write(&ifd, binary.LittleEndian, uint32(0))
	file := append([]byte("II*\x00\x00\x04\x00\x00"), make([]byte, 1024-8)...)
	path := filepath.Join(t.TempDir(), "bomb.tif")
	if err := os.WriteFile(path, append(file, ifd.Bytes()...), 0o600); err != nil {
		t.Fatal(err)
	}
	l := defaults
	l.memory = 512 << 20
	s, err := open(t.Context(), path, []string{path}, l)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.ReadRegion(t.Context(), make([]byte, 300), 0, 0, 0, 10, 10)
	if coverslip.KindOf(err) != coverslip.Invalid || !errors.Is(err, ErrEnded) {
		t.Errorf("got %v", err)
	}
	t.Log(err)
}

func TestOpeningHasADeadline(t *testing.T) {
	for fault, c := range map[string]struct {
		opening time.Duration
		says    string
	}{"hang when opened": {time.Second / 2, "did not answer"}, "leave when opened": {time.Minute, "exit status 0"}} {
		_, err := openFault(t, fault, limits{opening: c.opening, reading: time.Minute, memory: 256 << 20, cpu: 60})
		if coverslip.KindOf(err) != coverslip.Invalid || !errors.Is(err, ErrEnded) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: %v", fault, err)
		}
	}
}

// Nobody waits longer than their context, and answers that come late disturb nobody.
func TestReadingStopsWithItsContext(t *testing.T) {
	s, err := openFault(t, "hang", defaults)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 2 * cap(s.process.free) { // half of them wait for a slot
		readers.Go(func() {
			if err := s.ReadRegion(ctx, make([]byte, 300), 1, 0, 0, 10, 10); coverslip.KindOf(err) != coverslip.Canceled {
				t.Errorf("got %v", err)
			}
		})
	}
	for len(s.process.free) > 0 {
		runtime.Gosched()
	}
	cancel()
	readers.Wait()
	s.Close()

	if s, err = openFault(t, "none", defaults); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_ = s.ReadRegion(ctx, make([]byte, 300), 0, 3, 0, 10, 10)
		dst := make([]byte, 300)
		if err := s.ReadRegion(t.Context(), dst, 0, 7, 0, 10, 10); err != nil || dst[0] != 7 {
			t.Fatalf("%v, %d", err, dst[0])
		}
	}
}

// killed from outside, as by a machine that runs out of memory, is not the file's fault.
func TestKilledFromOutsideMayBeTriedAgain(t *testing.T) {
	s, err := openFault(t, "none", defaults)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := unix.Kill(s.process.cmd.Process.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.process.exited
	if err := s.ReadRegion(t.Context(), make([]byte, 300), 0, 0, 0, 10, 10); coverslip.KindOf(err) != coverslip.Unavailable || !errors.Is(err, ErrEnded) {
		t.Errorf("got %v", err)
	}
}

func TestNothingIsLeftOfManySlides(t *testing.T) {
	need(t)
	path, err := filepath.Abs(bundled)
	if err != nil {
		t.Fatal(err)
	}
	open := func(n int) {
		for range n {
			s, err := Open(t.Context(), path, []string{path})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.ReadRegion(t.Context(), make([]byte, 300), 0, 0, 0, 10, 10); err != nil {
				t.Fatal(err)
			}
			s.Close()
			if err := unix.Kill(s.process.cmd.Process.Pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Fatalf("the process is still there, or nobody reaped it: %v", err)
			}
		}
	}
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	maps := func() int {
		data, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(data), "coverslip pixels")
	}
	open(2)
	before := descriptors()
	open(100)
	if after := descriptors(); after > before {
		t.Errorf("%d files are open, %d were", after, before)
	}
	if n := maps(); n != 0 {
		t.Errorf("%d shared memories are left", n)
	}
}

// The process can do nothing but read the slide.
func TestTheProcessIsConfined(t *testing.T) {
	s, err := openFault(t, "probe", defaults)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.ReadRegion(t.Context(), make([]byte, 300), 1, 0, 0, 10, 10)
	if err == nil || !strings.Contains(err.Error(), "it can: read its slide;") {
		t.Errorf("got %v", err)
	}
}

// probe tries what a decoder that was taken over would.
func probe() string {
	can := "it can:"
	try := func(what string, err error) {
		if err == nil {
			can += " " + what + ";"
		}
	}
	path, _ := os.LookupEnv("HOME")
	try("see the environment "+path, func() error {
		if len(os.Environ()) > 5 || path != "" {
			return nil
		}
		return errors.New("scrubbed")
	}())
	open := func(path string, flags int) error {
		fd, err := unix.Open(path, flags, 0o600)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	}
	own := os.Args[5] // the slide's one file
	try("read its slide", open(own, unix.O_RDONLY))
	try("read its folder", open(filepath.Dir(own), unix.O_RDONLY|unix.O_DIRECTORY))
	if landlocked() {
		try("read /etc/passwd", open("/etc/passwd", unix.O_RDONLY))
		try("read its own memory", open("/proc/self/mem", unix.O_RDONLY))
	}
	try("write its slide", open(own, unix.O_RDWR))
	try("append to its slide", open(own, unix.O_WRONLY|unix.O_APPEND))
	for flags := 1; flags < 1024; flags++ { // also by numbers that mean another call
		if flags&writing != 0 {
			try(fmt.Sprintf("open a file with flags %#x", flags), open("/tmp", flags))
		}
	}
	try("create a file", open("/tmp/coverslip-probe", unix.O_CREAT|unix.O_WRONLY))
	_, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	try("make a socket", err)
	_, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	try("make a local socket", err)
	_, err = unix.MemfdCreate("x", 0)
	try("make memory that is not counted", err)
	_, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_ANON)
	try("share memory", err)
	try("start a program", unix.Exec("/bin/true", []string{"true"}, nil))
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	try("fork", errnoError(errno))
	try("send a signal", unix.Kill(os.Getppid(), 0))
	try("send a signal to a thread", unix.Tgkill(os.Getppid(), os.Getppid(), 0))
	try("look into its parent", unix.PtraceAttach(os.Getppid()))
	try("lift its limits", unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}))
	try("remove its slide", unix.Unlink(own))
	try("rename its slide", unix.Rename(own, own+"x"))
	try("mount", unix.Mount("none", "/mnt", "tmpfs", 0, ""))
	try("be dumpable", unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil || l.Max != 0 {
		can += " dump core;"
	}
	return can
}

func errnoError(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// landlocked reports whether this kernel has Landlock.
func landlocked() bool {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	return errno == 0 && version > 0
}
