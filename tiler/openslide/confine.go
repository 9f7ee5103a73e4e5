package openslide

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"slices"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// confine gives up, for good, what reading these files does not need: of the disk all else (where the
// kernel has Landlock, from 5.13 on), writing, the network, other programs and processes, memory and
// time beyond the limits.
func confine(l limits, files []string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := limitResources(l); err != nil {
		return err
	}
	if err := landlock.V11.BestEffort().Restrict(landlock.ROFiles(files...)); err != nil {
		return err
	}
	return filterCalls()
}

func limitResources(l limits) error {
	taken, err := dataSize()
	if err != nil {
		return err
	}
	for _, r := range []struct {
		what  int
		bound uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_DATA, taken + l.memory},
		{unix.RLIMIT_CPU, l.cpu},
		{unix.RLIMIT_NOFILE, 256},
		{unix.RLIMIT_FSIZE, 0},
	} {
		if err := unix.Setrlimit(r.what, &unix.Rlimit{Cur: r.bound, Max: r.bound}); err != nil {
			return fmt.Errorf("limit %d to %d: %w", r.what, r.bound, err)
		}
	}
	return nil
}

// dataSize is what RLIMIT_DATA counts of this process now, bytes.
func dataSize() (uint64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kB uint64
		if _, err := fmt.Sscanf(lines.Text(), "VmData: %d kB", &kB); err == nil {
			return kB << 10, nil
		}
	}
	return 0, fmt.Errorf("no VmData in %s", f.Name())
}

// needed are the system calls that OpenSlide, the C library and the Go runtime make while they read:
// files, memory, threads, time. Those an architecture does not have are passed over.
var needed = []string{
	"read", "readv", "pread64", "preadv", "write", "lseek", "close", "fcntl", "fadvise64",
	"stat", "lstat", "fstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "getdents64", "getcwd",
	"munmap", "mremap", "mprotect", "madvise", "brk", "mincore", "membarrier",
	"futex", "set_robust_list", "rseq", "sched_yield", "sched_getaffinity", "exit", "exit_group", "restart_syscall",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
	"nanosleep", "clock_nanosleep", "clock_gettime", "clock_getres", "gettimeofday", "time", "getrusage", "times",
	"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2", "poll", "ppoll",
	"getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "uname", "sysinfo", "getrandom",
}

// narrowed are those of them that may be called, but not like this.
var narrowed = []seccomp.NameWithConditions{
	{Name: "open", Conditions: seccomp.ArgumentConditions{{Argument: 1, Operation: seccomp.BitsSet, Value: writing}}},
	{Name: "openat", Conditions: seccomp.ArgumentConditions{{Argument: 2, Operation: seccomp.BitsSet, Value: writing}}},
	{Name: "mmap", Conditions: seccomp.ArgumentConditions{{Argument: 3, Operation: seccomp.BitsSet, Value: unix.MAP_SHARED}}}, // no limit counts it
	{Name: "clone", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsNotSet, Value: unix.CLONE_THREAD}}},
	{Name: "tgkill", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.NotEqual, Value: uint64(os.Getpid())}}},
	{Name: "prlimit64", Conditions: seccomp.ArgumentConditions{{Argument: 2, Operation: seccomp.NotEqual, Value: 0}}}, // sets
	{Name: "prctl", Conditions: seccomp.ArgumentConditions{
		{Argument: 0, Operation: seccomp.NotEqual, Value: unix.PR_SET_NAME}, {Argument: 0, Operation: seccomp.NotEqual, Value: unix.PR_SET_VMA}}},
}

const writing = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT

// filterCalls refuses all other system calls, in all threads. Each way to call that is refused gets a
// filter of its own, of which the kernel takes the strictest word: in one filter, go-seccomp-bpf 1.6
// goes on to compare the numbers of calls with the argument it looked at last.
func filterCalls() error {
	if err := seccomp.SetNoNewPrivs(); err != nil {
		return err
	}
	machine, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	absent := func(name string) bool { _, ok := machine.SyscallNames[name]; return !ok }
	names := slices.DeleteFunc(slices.Clone(needed), absent)
	refused := seccomp.ActionErrno
	for _, n := range narrowed {
		if absent(n.Name) {
			continue
		}
		names = append(names, n.Name)
		if err := filter(seccomp.ActionAllow, seccomp.SyscallGroup{NamesWithCondtions: []seccomp.NameWithConditions{n}, Action: refused}); err != nil {
			return err
		}
	}
	return filter(refused, seccomp.SyscallGroup{Names: names, Action: seccomp.ActionAllow},
		// Its flags cannot be looked at: C libraries then use clone.
		seccomp.SyscallGroup{Names: []string{"clone3"}, Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)})
}

func filter(otherwise seccomp.Action, groups ...seccomp.SyscallGroup) error {
	return seccomp.LoadFilter(seccomp.Filter{Flag: seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{DefaultAction: otherwise, Syscalls: groups}})
}
