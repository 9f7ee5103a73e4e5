// Package postgres runs a private PostgreSQL server in a folder, from the server binaries of the
// system, so that the product works without anybody setting up a database. The server listens on a
// Unix socket only, lives as long as the process that started it, and needs no care: whatever was
// killed, and when, the next Start brings everything that was committed back.
//
// What the server is used for is package storage's business.
package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coverslip"
)

// Server is a running server. Its methods are safe for concurrent use.
type Server struct {
	url    string
	lock   *os.File
	cmd    *exec.Cmd
	socket string // the socket's folder if it lies outside the server's folder, else ""
	ended  chan struct{}
	stop   sync.Once
}

// URL is the address to connect to: the owner of the server's processes and root may.
func (s *Server) URL() string { return s.url }

// Done is closed when the server has ended, whether by Stop or by itself.
func (s *Server) Done() <-chan struct{} { return s.ended }

// The folder belongs to this package and holds:
//
//	lock          held by the process that owns the server; holds the server's URL once it answers
//	data/         the cluster
//	init-*/       a cluster in the making
//	s/            the socket
//	postgres.log  what the server says
const (
	lockFile = "lock"
	logFile  = "postgres.log"

	database   = "coverslip" // and the name of its only user
	socketName = ".s.PGSQL.5432"
)

// Start runs the server in dir, which it makes if need be and which must hold nothing else. It
// returns when the server takes connections: after about 2 s the first time, 0.2 s later on. When
// the process that called Start ends, however it ends, so does the server.
//
// Errors: Conflict when another process has the server of this folder (see Running), Environment
// when PostgreSQL or a right to the folder is missing.
func Start(ctx context.Context, dir string) (server *Server, err error) {
	const op = "start the private PostgreSQL"
	defer func() { err = at(dir, op, err) }()

	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	mode := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711 // the server's user has to pass through
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	if err := checkOurs(dir); err != nil {
		return nil, err
	}
	lock, err := takeLock(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()

	data := filepath.Join(dir, "data")
	major, err := clusterMajor(data)
	if err != nil {
		return nil, err
	}
	bin, err := find(major)
	if err != nil {
		return nil, err
	}
	who, err := serverUser(data)
	if err != nil {
		return nil, err
	}
	run := runner{bin: bin.Dir, dir: dir, who: who}
	if err := run.prepareFolder(ctx); err != nil {
		return nil, err
	}
	socket, short, err := run.socketFolder()
	if err != nil {
		return nil, err
	}
	if major == 0 {
		if err := run.initCluster(ctx, data); err != nil {
			return nil, err
		}
	}
	s := &Server{lock: lock, url: (&url.URL{Scheme: "postgres", Path: "/" + database,
		RawQuery: url.Values{"host": {socket}, "user": {database}}.Encode()}).String()}
	if short {
		s.socket = socket
	}

	// Backends that outlive a killed postmaster keep the next one from starting for a moment.
	deadline := time.Now().Add(20 * time.Second)
	for {
		if err := waitForLeftovers(ctx, data, socket); err != nil {
			return nil, err
		}
		err := s.launch(ctx, run, data, socket)
		if err == nil {
			break
		}
		if !errors.Is(err, errShared) || time.Now().After(deadline) {
			return nil, err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
	if _, err := lock.WriteAt([]byte(s.url+"\n"), 0); err != nil {
		_ = s.Stop()
		return nil, err
	}
	return s, nil
}

// Stop ends the server and gives the folder back. It asks for a fast shutdown, which ends open
// connections and writes everything out, then insists; it returns within 20 s. Stopping twice is
// the same as once.
func (s *Server) Stop() error {
	var err error
	s.stop.Do(func() {
		_ = s.lock.Truncate(0)
		// PostgreSQL documentation, "Shutting Down the Server": SIGINT is fast, SIGQUIT immediate.
		for _, step := range []struct {
			signal syscall.Signal
			wait   time.Duration
		}{{syscall.SIGINT, 12 * time.Second}, {syscall.SIGQUIT, 5 * time.Second}, {syscall.SIGKILL, 3 * time.Second}} {
			_ = s.cmd.Process.Signal(step.signal)
			select {
			case <-s.ended:
			case <-time.After(step.wait):
				continue
			}
			break
		}
		select {
		case <-s.ended:
		default:
			err = &coverslip.Error{Kind: coverslip.Internal, Op: "stop the private PostgreSQL", Err: fmt.Errorf("process %d does not end", s.cmd.Process.Pid)}
		}
		if s.socket != "" {
			_ = os.Remove(s.socket) // fails, rightly, if something else is in it
		}
		_ = s.lock.Close()
	})
	return err
}

// Running returns the address of the server that another process, or this one, runs in dir. While
// that process is still starting it, Running waits, until ctx ends. It is false when nobody runs one.
func Running(ctx context.Context, dir string) (url string, ok bool) {
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", false
	}
	defer func() { _ = lock.Close() }()
	for {
		held := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_GETLK, &held); err != nil || held.Type == unix.F_UNLCK {
			return "", false
		}
		said := make([]byte, 4096)
		n, _ := lock.ReadAt(said, 0)
		if url, whole := strings.CutSuffix(string(said[:n]), "\n"); whole {
			return url, true
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			return "", false
		}
	}
}

// takeLock makes this process the folder's owner, until it closes the file or ends. A lock of the
// open file (OFD) rather than flock, because others can ask for it without trying to take it.
func takeLock(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	// A process that was killed as it forked leaves its lock to the child until that becomes another
	// program: moments, which are waited for.
	const tries, moment = 20, 25 * time.Millisecond
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	for n := 1; n < tries && (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES)) && pause(ctx, moment) == nil; n++ {
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, &coverslip.Error{Kind: coverslip.Conflict, Err: errors.New("another process runs it"),
				Hint: "stop that process, or use another data folder"}
		}
		return nil, err
	}
	if err := f.Truncate(0); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// checkOurs refuses a folder with somebody else's files: what follows changes owners and rights.
func checkOurs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, lockFile)); errors.Is(err, os.ErrNotExist) {
		return &coverslip.Error{Kind: coverslip.Conflict, Err: fmt.Errorf("the folder holds other files (%s)", entries[0].Name()),
			Hint: "give a folder that is new or empty"}
	}
	return nil
}

// runner runs PostgreSQL's programs in the server's folder as the server's user.
type runner struct {
	bin, dir string
	who      *syscall.Credential // nil: as this process
}

func (r runner) command(ctx context.Context, dies syscall.Signal, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(r.bin, name), args...) //nolint:gosec // the program is PostgreSQL's, found by find
	cmd.Dir = dir
	cmd.Env = []string{"LC_ALL=C.UTF-8", "PATH=/usr/bin:/bin", "HOME=" + r.dir} // nothing of ours, which may hold secrets
	cmd.Cancel = func() error { return cmd.Process.Signal(dies) }
	cmd.WaitDelay = 5 * time.Second
	// A group of its own, so that Ctrl-C reaches us alone and we stop the server in good order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.who, Setpgid: true, Pdeathsig: dies}
	return cmd
}

// prepareFolder makes the folders, gives them to the server's user, and sees that it gets there.
func (r runner) prepareFolder(ctx context.Context) error {
	if r.who != nil {
		// The folder stays ours, with only a way through it, so that the server's user cannot swap
		// the files that we open as root.
		if err := os.Chmod(r.dir, 0o711); err != nil { //nolint:gosec // see above
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := r.command(ctx, syscall.SIGTERM, "/", "initdb", "--version").Run(); err != nil {
		return &coverslip.Error{Kind: coverslip.Environment, Err: fmt.Errorf("run %s as %s: %w", filepath.Join(r.bin, "initdb"), r.name(), err),
			Hint: "see that this user may run it"}
	}
	if err := r.command(ctx, syscall.SIGTERM, r.dir, "initdb", "--version").Run(); err != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		blocks := r.dir
		for up := filepath.Dir(r.dir); up != "/"; up = filepath.Dir(up) {
			if r.command(ctx, syscall.SIGTERM, up, "initdb", "--version").Run() != nil {
				blocks = up
			}
		}
		return &coverslip.Error{Kind: coverslip.Environment, Err: fmt.Errorf("user %s, whom PostgreSQL runs as, may not pass through %s", r.name(), blocks),
			Hint: fmt.Sprintf("allow it (chmod o+x %s), choose a data folder elsewhere, such as /var/lib/coverslip, or do not run as root", blocks)}
	}
	return r.ownFolder(filepath.Join(r.dir, "s"))
}

// ownFolder makes a folder that only the server's user can enter, or checks that it is one.
func (r runner) ownFolder(path string) error {
	uid, gid := os.Geteuid(), os.Getegid()
	if r.who != nil {
		uid, gid = int(r.who.Uid), int(r.who.Gid)
	}
	switch err := os.Mkdir(path, 0o700); {
	case err == nil && r.who != nil:
		return os.Lchown(path, uid, gid)
	case err != nil && !errors.Is(err, os.ErrExist):
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if owner == 0 && r.who != nil && info.IsDir() { // we were killed between mkdir and chown
		return os.Lchown(path, uid, gid)
	}
	if !info.IsDir() || owner != uid || info.Mode().Perm()&0o077 != 0 {
		return &coverslip.Error{Kind: coverslip.Conflict, Err: fmt.Errorf("%s is not a folder of user %s alone (%s, owner %d)", path, r.name(), info.Mode(), owner),
			Hint: "remove it, or choose another data folder"}
	}
	return nil
}

// socketFolder is where the socket goes: in the server's folder, or in a short one in the folder for
// temporary files where the path would be too long for a socket (sun_path, 108 bytes).
func (r runner) socketFolder() (path string, short bool, err error) {
	const longest = 100
	path = filepath.Join(r.dir, "s")
	if len(filepath.Join(path, socketName)) <= longest {
		return path, false, nil
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", r.dir, os.Geteuid()))
	path = filepath.Join(os.TempDir(), "coverslip-"+hex.EncodeToString(sum[:6]))
	if len(filepath.Join(path, socketName)) > longest {
		return "", false, &coverslip.Error{Kind: coverslip.Environment, Err: fmt.Errorf("%s is too long a path for a socket", path),
			Hint: "set TMPDIR to a folder with a short path"}
	}
	return path, true, r.ownFolder(path)
}

// initCluster makes the cluster under another name and puts it in place whole, so that a half-made
// one is never used. It is written out to disk before.
func (r runner) initCluster(ctx context.Context, data string) error {
	// The kernel's signal on our death is tied to the thread that starts the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	old, _ := filepath.Glob(filepath.Join(r.dir, "init-*"))
	for _, path := range old {
		_ = os.RemoveAll(path) // a dying initdb may still write into it: then the next start removes it
	}
	half, err := os.MkdirTemp(r.dir, "init-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(half) }()
	if r.who != nil {
		if err := os.Lchown(half, int(r.who.Uid), int(r.who.Gid)); err != nil {
			return err
		}
	}
	// The collation is by code point: an index outlives an upgrade of the C library.
	initdb := r.command(ctx, syscall.SIGTERM, half, "initdb", "--pgdata", half, "--username", database, "--auth-local=trust", "--auth-host=reject",
		"--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums", "--no-instructions")
	if out, err := initdb.CombinedOutput(); err != nil {
		return failed("initdb", out, err)
	}
	create := r.command(ctx, syscall.SIGTERM, half, "postgres", "--single", "-D", half, "postgres")
	create.Stdin = strings.NewReader("create database " + database + "\n")
	if out, err := create.CombinedOutput(); err != nil {
		return failed("postgres --single", out, err)
	}
	if err := os.Rename(half, data); err != nil {
		return err
	}
	folder, err := os.Open(r.dir)
	if err != nil {
		return err
	}
	defer func() { _ = folder.Close() }()
	return folder.Sync()
}

// errShared means that processes of the server before still hold its memory.
var errShared = errors.New("processes of the server before still end")

// launch starts the server and waits until it takes connections.
func (s *Server) launch(ctx context.Context, run runner, data, socket string) error {
	log, err := openLog(filepath.Join(run.dir, logFile))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	from, err := log.Seek(0, 2)
	if err != nil {
		return err
	}

	args := []string{"-D", data, "-k", socket}
	for _, setting := range []string{
		"listen_addresses=",
		"unix_socket_permissions=0700",
		"max_connections=60",
		"shared_buffers=64MB",
		"max_wal_size=512MB",
		"max_parallel_workers_per_gather=0", // the cores are the encoder's
		"jit=off",                           // our queries are short
		"timezone=UTC",
		"log_timezone=UTC",
		"logging_collector=off",
		"log_min_messages=log", // not what went wrong with a query: whoever asked hears that
		"log_checkpoints=off",
	} {
		args = append(args, "-c", setting)
	}
	s.cmd = run.command(context.WithoutCancel(ctx), syscall.SIGINT, run.dir, "postgres", args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.ended = make(chan struct{})
	started := make(chan error, 1)
	go func() {
		// The kernel signals the server when the thread that started it ends, so this thread has to
		// live as long as the server.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait()
		}
		close(s.ended)
	}()
	if err := <-started; err != nil {
		return err
	}
	for {
		select {
		case <-s.ended:
			said := make([]byte, 4096)
			n, _ := log.ReadAt(said, from)
			if text := string(said[:n]); strings.Contains(text, "pre-existing shared memory block") || strings.Contains(text, "lock file \"postmaster.pid\" already exists") {
				return errShared
			}
			return failed("the server", said[:n], errors.New(s.cmd.ProcessState.String()))
		case <-ctx.Done():
			_ = s.cmd.Process.Signal(syscall.SIGQUIT)
			<-s.ended
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
		// Line 1 is the process, line 8 its state (miscadmin.h, LOCK_FILE_LINE_PM_STATUS).
		text, _ := os.ReadFile(filepath.Join(data, "postmaster.pid"))
		lines := strings.Split(string(text), "\n")
		if len(lines) >= 8 && lines[0] == strconv.Itoa(s.cmd.Process.Pid) && strings.TrimSpace(lines[7]) == "ready" {
			return nil
		}
	}
}

// openLog opens the server's log to append to, and starts it anew once it has grown over 1 MiB.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err == nil && info.Size() > 1<<20 {
		err = f.Truncate(0)
		if err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return f, nil
}

// waitForLeftovers sees that the server before this one is gone. Its owner was killed, if it is not:
// then the kernel has told it to end, and it needs a moment.
func waitForLeftovers(ctx context.Context, data, socket string) error {
	began := time.Now()
	urge := []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT}
	for {
		left, err := leftover(data)
		if err != nil {
			return err
		}
		if left == 0 {
			break
		}
		waited := time.Since(began)
		if waited > 30*time.Second {
			return &coverslip.Error{Kind: coverslip.Conflict, Err: fmt.Errorf("process %d, an earlier server, does not end", left),
				Hint: fmt.Sprintf("end it (kill -9 %d), then try again", left)}
		}
		if tell := 2 - len(urge); tell < 2 && waited > time.Duration(5+10*tell)*time.Second {
			_ = syscall.Kill(left, urge[0])
			urge = urge[1:]
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	for _, name := range []string{socketName, socketName + ".lock"} {
		if err := os.Remove(filepath.Join(socket, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// leftover is the number of the server process that runs on the cluster, or 0.
//
// By now another process may have the number that postmaster.pid names, and PostgreSQL would take
// that one for its server. Then leftover puts our own number there, which PostgreSQL knows cannot be
// a server's (CreateLockFile, miscinit.c). The file stays, because by its other lines PostgreSQL
// makes sure that no process of the old server still uses its memory.
func leftover(data string) (pid int, err error) {
	f, err := os.OpenFile(filepath.Join(data, "postmaster.pid"), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	text := make([]byte, 4096)
	n, _ := f.ReadAt(text, 0)
	first, rest, _ := strings.Cut(string(text[:n]), "\n")
	if pid, err = strconv.Atoi(first); err != nil || pid <= 0 || pid == os.Getpid() {
		return 0, nil // not whole, or done already: PostgreSQL judges it
	}
	said, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return 0, nil // no such process
	}
	if slices.Contains(strings.Split(string(said), "\x00"), data) {
		return pid, nil
	}
	whole := strconv.Itoa(os.Getpid()) + "\n" + rest
	if _, err := f.WriteAt([]byte(whole), 0); err != nil {
		return 0, err
	}
	return 0, f.Truncate(int64(len(whole)))
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// failed puts the end of what a program said into its error.
func failed(what string, said []byte, err error) error {
	text := strings.TrimSpace(string(said))
	if len(text) > 1500 {
		text = "…" + text[len(text)-1500:]
	}
	return fmt.Errorf("%s: %w: %s", what, err, text)
}

// at names the folder and the operation in err. What has no kind yet is the machine's fault.
func at(dir, op string, err error) error {
	if err == nil {
		return nil
	}
	named := coverslip.Error{Kind: coverslip.Environment, Err: err, Hint: "see " + filepath.Join(dir, logFile)}
	var e *coverslip.Error
	switch {
	case errors.As(err, &e):
		named = *e
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		named.Kind, named.Hint = coverslip.Canceled, ""
	case errors.Is(err, syscall.ENOSPC):
		named.Kind, named.Hint = coverslip.Full, "make room on its disk"
	case errors.Is(err, os.ErrPermission):
		named.Hint = "run as the user who made the folder, or choose another data folder"
	case errors.Is(err, errShared):
		named.Kind, named.Hint = coverslip.Conflict, "try again in a moment"
	}
	if named.Op == "" {
		named.Op = op
	}
	if named.Path == "" {
		named.Path = dir
	}
	return &named
}
