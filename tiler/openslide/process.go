package openslide

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coverslip"
)

// limits bound what one slide may take.
type limits struct {
	opening, reading time.Duration // until the process has to have answered
	memory           uint64        // bytes beyond what the process has before it opens the slide
	cpu              uint64        // seconds, of all its life
}

// OpenSlide answers in milliseconds; a cold network disk and a machine with too much to do may take
// thousands of times as long. Its own cache takes 64 MiB, the rest of the memory is for what it
// decodes. The processor's time is enough for ten million tiles.
var defaults = limits{opening: time.Minute, reading: time.Minute, memory: 2 << 30, cpu: 4 * 3600}

// process is the decode process of one slide, seen from outside.
type process struct {
	limits limits
	conn   *os.File // one message a read or write
	shared []byte   // slots, one behind the other
	free   chan int // slots nobody uses
	cmd    *exec.Cmd
	said   lastWords

	waiting []chan answer // by slot, room for one each
	timers  []*time.Timer // by slot: they kill the process

	reason   atomic.Pointer[string] // why it was killed, if it was
	listened chan struct{}          // closed when nobody hands out answers any more
	exited   chan struct{}          // closed when the process is reaped
	left     sync.WaitGroup         // answers nobody waits for
}

// start starts a decode process for a slide.
func start(library, path string, files []string, limits limits) (_ *process, err error) {
	if !served {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "start the decode process", Err: errors.New("this program does not call openslide.Main")}
	}
	n := runtime.GOMAXPROCS(0)
	p := &process{limits: limits, free: make(chan int, n), listened: make(chan struct{}), exited: make(chan struct{})}
	memory, theirs, err := p.share(n)
	if err != nil {
		p.unshare()
		return nil, failed(err)
	}
	defer memory.Close()
	defer theirs.Close()
	for i := range n {
		p.free <- i
		p.waiting = append(p.waiting, make(chan answer, 1))
		t := time.AfterFunc(time.Hour, p.overdue)
		t.Stop()
		p.timers = append(p.timers, t)
	}
	// The running program, even if its file was replaced since.
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Args = append([]string{"coverslip", mode, limits.text(), library, path}, files...)
	p.cmd.Env = []string{"GOTRACEBACK=none", "MALLOC_ARENA_MAX=2", "LANG=C", "LD_LIBRARY_PATH=" + os.Getenv("LD_LIBRARY_PATH")}
	p.cmd.Dir = "/"
	p.cmd.Stderr = &p.said
	p.cmd.ExtraFiles = []*os.File{theirs, memory}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // an interrupt from the keyboard is for the parent
	started := make(chan error)
	go func() {
		// The kernel takes the end of this thread for that of the parent.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // its state says it
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		p.unshare()
		return nil, failed(err)
	}
	return p, nil
}

func failed(err error) error {
	return &coverslip.Error{Kind: coverslip.Environment, Op: "start the decode process", Err: err, Hint: "check the limits on processes, open files and memory"}
}

// share makes the memory of n slots and the socket pair.
func (p *process) share(n int) (memory, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	p.conn = os.NewFile(uintptr(pair[0]), "decode process")
	theirs = os.NewFile(uintptr(pair[1]), "decode process")
	fd, err := unix.MemfdCreate("coverslip pixels", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err == nil {
		memory = os.NewFile(uintptr(fd), "pixels")
		if err = memory.Truncate(int64(n) * slotBytes); err == nil {
			// Memory that the other side takes away is a crash on this one.
			_, err = unix.FcntlInt(memory.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
		}
		if err == nil {
			p.shared, err = unix.Mmap(fd, 0, n*slotBytes, unix.PROT_READ, unix.MAP_SHARED)
		}
		if err != nil {
			_ = memory.Close()
		}
	}
	if err != nil {
		_ = theirs.Close()
	}
	return memory, theirs, err
}

func (p *process) unshare() {
	if p.conn != nil {
		_ = p.conn.Close()
	}
	if p.shared != nil {
		_ = unix.Munmap(p.shared)
	}
}

// describe waits for the opening.
func (p *process) describe(ctx context.Context) (Description, error) {
	deadline := time.AfterFunc(p.limits.opening, p.overdue)
	defer deadline.Stop()
	stop := context.AfterFunc(ctx, func() { p.end("the caller left") })
	defer stop()
	message := make([]byte, maxMessage)
	n, err := p.conn.Read(message)
	if err != nil {
		if ctx.Err() != nil {
			return Description{}, ctx.Err()
		}
		return Description{}, p.ended("open with OpenSlide")
	}
	d, err := parseOpening(message[:n])
	var known *coverslip.Error
	if err != nil && !errors.As(err, &known) {
		err = &coverslip.Error{Kind: coverslip.Invalid, Op: "open with OpenSlide", Err: err, Hint: harmful}
	}
	return d, err
}

const harmful = "the file is damaged, or made to do harm; copy it again from its source"

// read has a block decoded and shows its pixels, premultiplied ARGB, to use. An answer that ctx does
// not wait for keeps its slot until it comes.
func (p *process) read(ctx context.Context, r request, use func(pixels []byte)) error {
	var slot int
	select {
	case slot = <-p.free:
	case <-ctx.Done():
		return ctx.Err()
	case <-p.listened:
		return p.ended("read with OpenSlide")
	}
	r.slot = int32(slot) //nolint:gosec // a few
	p.timers[slot].Reset(p.limits.reading)
	if _, err := p.conn.Write(r.encode()); err != nil {
		return p.ended("read with OpenSlide")
	}
	select {
	case a := <-p.waiting[slot]:
		defer func() { p.free <- slot }()
		if a.why != "" {
			return &coverslip.Error{Kind: coverslip.Invalid, Op: "read with OpenSlide", Err: errors.New(a.why), Hint: "the file is damaged there; copy it again from its source"}
		}
		use(p.shared[slot*slotBytes:][:int(r.w)*int(r.h)*4])
		return nil
	case <-ctx.Done():
		p.left.Go(func() {
			select {
			case <-p.waiting[slot]:
				p.free <- slot
			case <-p.listened:
			}
		})
		return ctx.Err()
	case <-p.listened:
		return p.ended("read with OpenSlide")
	}
}

// listen hands answers to those who wait for them, until the process ends or says what it should not.
func (p *process) listen() {
	defer close(p.listened)
	message := make([]byte, maxMessage)
	for {
		n, err := p.conn.Read(message)
		if err != nil {
			break // it ended, or was closed
		}
		a, err := parseAnswer(message[:n], len(p.waiting))
		if err != nil || !p.timers[a.slot].Stop() {
			p.end("it answered what nobody had asked")
			break
		}
		p.waiting[a.slot] <- a
	}
}

// overdue ends a process that did not answer in time.
func (p *process) overdue() { p.end(tooSlow) }

// end kills the process. The first reason counts.
func (p *process) end(reason string) {
	p.reason.CompareAndSwap(nil, &reason)
	_ = p.cmd.Process.Kill() // it may have ended by itself
}

const tooSlow = "it did not answer in time"

// ended says why there is no process any more.
func (p *process) ended(op string) error {
	_ = p.cmd.Process.Kill() // one that only closed its end
	<-p.exited
	e := &coverslip.Error{Kind: coverslip.Invalid, Op: op, Hint: harmful}
	state := p.cmd.ProcessState
	status, _ := state.Sys().(syscall.WaitStatus)
	why, reason := p.said.String(), p.reason.Load()
	switch {
	case reason != nil:
		if why = *reason; why == tooSlow {
			e.Hint = "the file is damaged, or made to do harm, or its disk does not answer"
		}
	case (state.UserTime() + state.SystemTime()).Seconds() >= 0.9*float64(p.limits.cpu): // the kernel counts in two ways
		why = fmt.Sprintf("it took %d s of the processor", p.limits.cpu)
	case why == "" && status.Signaled() && status.Signal() == syscall.SIGKILL:
		// Nothing in a file does that: the machine ran out of memory, or somebody did it.
		e.Kind, e.Hint = coverslip.Unavailable, "see whether the machine has memory enough, then try again"
		why = "it was killed from outside"
	case why == "":
		why = state.String()
	}
	e.Err = fmt.Errorf("%w: %s", ErrEnded, why)
	return e
}

// close ends the process and waits for its end. listening says whether listen was started.
func (p *process) close(listening bool) {
	p.end("it was closed")
	<-p.exited
	if listening {
		<-p.listened
	}
	p.left.Wait()
	for _, t := range p.timers {
		t.Stop()
	}
	p.unshare()
}

// lastWords keeps the first line of what the process writes to its standard error.
type lastWords struct {
	mu   sync.Mutex
	text []byte
}

func (l *lastWords) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b[:min(len(b), maxText-len(l.text))]...)
	return len(b), nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	line, _, _ := bytes.Cut(bytes.TrimSpace(l.text), []byte("\n"))
	return strings.ToValidUTF8(string(line), "?")
}
