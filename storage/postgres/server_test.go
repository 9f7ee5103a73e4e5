package postgres_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/postgres"
)

// TestMain lets the test binary be another process that owns a server: it says the server's address
// on its output, then lives until it is killed.
func TestMain(m *testing.M) {
	dir := os.Getenv("COVERSLIP_TEST_OWNER")
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := postgres.Start(context.Background(), dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.URL())
	_, _ = io.Copy(io.Discard, os.Stdin) // ends when the test does
	_ = s.Stop()
}

// owner is such a process.
type owner struct {
	t   *testing.T
	cmd *exec.Cmd
	out *bufio.Reader
}

func startOwner(t *testing.T, dir string) *owner {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "COVERSLIP_TEST_OWNER="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	fatal(t, err)
	_, err = cmd.StdinPipe()
	fatal(t, err)
	fatal(t, cmd.Start())
	o := &owner{t, cmd, bufio.NewReader(out)}
	t.Cleanup(o.kill)
	return o
}

func (o *owner) url() string {
	o.t.Helper()
	line, err := o.out.ReadString('\n')
	fatal(o.t, err)
	return strings.TrimSpace(line)
}

func (o *owner) kill() {
	_ = o.cmd.Process.Kill()
	_ = o.cmd.Wait()
}

// folder is a new folder that the server's user can reach, unlike t.TempDir's.
func folder(t *testing.T) string {
	t.Helper()
	if _, err := postgres.Find(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	base, err := os.MkdirTemp("", "pgtest")
	fatal(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	fatal(t, os.Chmod(base, 0o711))
	return filepath.Join(base, "pg")
}

func start(t *testing.T, dir string) *postgres.Server {
	t.Helper()
	s, err := postgres.Start(t.Context(), dir)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "postgres.log"))
		t.Fatalf("%v\n%s", err, log)
	}
	t.Cleanup(func() { _ = s.Stop() })
	return s
}

func query(t *testing.T, url, sql string, into any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	fatal(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	if into == nil {
		_, err = conn.Exec(t.Context(), sql)
	} else {
		err = conn.QueryRow(t.Context(), sql).Scan(into)
	}
	fatal(t, err)
}

func TestServer(t *testing.T) {
	dir := folder(t)

	t.Run("StartsOnASocketOnly", func(t *testing.T) {
		s := start(t, dir)
		for setting, want := range map[string]string{"listen_addresses": "", "fsync": "on", "shared_buffers": "64MB", "data_checksums": "on", "server_encoding": "UTF8"} {
			var got string
			query(t, s.URL(), "show "+setting, &got)
			if got != want {
				t.Errorf("%s is %q, want %q", setting, got, want)
			}
		}
		query(t, s.URL(), "create table kept (x int)", nil)
		query(t, s.URL(), "insert into kept values (1)", nil)
	})

	t.Run("KeepsDataOverStop", func(t *testing.T) {
		s := start(t, dir)
		var n int
		query(t, s.URL(), "select count(*) from kept", &n)
		if n != 1 {
			t.Errorf("%d rows, want 1", n)
		}
		if url, ok := postgres.Running(t.Context(), dir); !ok || url != s.URL() {
			t.Errorf("Running gives %q, %v while it runs at %q", url, ok, s.URL())
		}
		fatal(t, s.Stop())
		fatal(t, s.Stop())
		if _, ok := postgres.Running(t.Context(), dir); ok {
			t.Error("Running after Stop")
		}
		select {
		case <-s.Done():
		default:
			t.Error("not done after Stop")
		}
	})

	t.Run("StopEndsOpenConnections", func(t *testing.T) {
		s := start(t, dir)
		conn, err := pgx.Connect(t.Context(), s.URL())
		fatal(t, err)
		_, err = conn.Exec(t.Context(), "begin; insert into kept values (2)")
		fatal(t, err)
		began := time.Now()
		fatal(t, s.Stop())
		if d := time.Since(began); d > 12*time.Second { // then it had to be more than asked
			t.Errorf("took %v", d)
		}
	})

	t.Run("TwoProcessesOneFolder", func(t *testing.T) {
		o := startOwner(t, dir)
		url := o.url()
		_, err := postgres.Start(t.Context(), dir)
		wantKind(t, err, coverslip.Conflict)
		got, ok := postgres.Running(t.Context(), dir)
		if !ok || got != url {
			t.Errorf("Running gives %q, %v, want %q", got, ok, url)
		}
		query(t, got, "insert into kept values (3)", nil)
	})

	// The owner died a moment ago, with all its data on the way.
	t.Run("OwnerKilled", func(t *testing.T) {
		o := startOwner(t, dir)
		url := o.url()
		conn, err := pgx.Connect(t.Context(), url)
		fatal(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		_, err = conn.Exec(t.Context(), "insert into kept values (4)")
		fatal(t, err)
		o.kill()
		s := start(t, dir)
		var n int
		query(t, s.URL(), "select count(*) from kept where x = 4", &n)
		if n != 1 {
			t.Error("a committed row is lost")
		}
	})

	t.Run("ServerKilled", func(t *testing.T) {
		s := start(t, dir)
		conn, err := pgx.Connect(t.Context(), s.URL()) // its backend outlives the postmaster by a moment
		fatal(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		query(t, s.URL(), "insert into kept values (5)", nil)
		fatal(t, syscall.Kill(postmaster(t, dir), syscall.SIGKILL))
		<-s.Done()
		fatal(t, s.Stop())
		s = start(t, dir)
		var n int
		query(t, s.URL(), "select count(*) from kept where x = 5", &n)
		if n != 1 {
			t.Error("a committed row is lost")
		}
	})

	// After a restart of the machine or container the number of the old server may be anybody's.
	t.Run("StalePIDIsAnotherProcess", func(t *testing.T) {
		s := start(t, dir)
		pidFile := filepath.Join(dir, "data", "postmaster.pid")
		text, err := os.ReadFile(pidFile)
		fatal(t, err)
		info, err := os.Stat(pidFile)
		fatal(t, err)
		fatal(t, s.Stop())

		stranger := exec.Command("cat")
		stranger.SysProcAttr = &syscall.SysProcAttr{}
		owner := info.Sys().(*syscall.Stat_t)
		if os.Geteuid() == 0 {
			stranger.SysProcAttr.Credential = &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
		}
		stdin, err := stranger.StdinPipe()
		fatal(t, err)
		fatal(t, stranger.Start())
		defer func() { _ = stdin.Close(); _ = stranger.Wait() }()

		_, rest, _ := strings.Cut(string(text), "\n")
		fatal(t, os.WriteFile(pidFile, []byte(strconv.Itoa(stranger.Process.Pid)+"\n"+rest), 0o600))
		fatal(t, os.Chown(pidFile, int(owner.Uid), int(owner.Gid)))
		start(t, dir)
	})
}

// The owner is killed at each step of making the cluster: as soon as it shows, and at moments after.
func TestKilledWhileMakingTheCluster(t *testing.T) {
	for _, moment := range []struct {
		name, pattern string
	}{
		{"Begun", "init-*"},
		{"Settings", "init-*/postgresql.conf"},
		{"Bootstrap", "init-*/base/1/PG_VERSION"},
		{"Databases", "init-*/base/5"},
		{"InPlace", "data/PG_VERSION"},
		{"Starting", "data/postmaster.pid"},
	} {
		t.Run(moment.name, func(t *testing.T) {
			t.Parallel()
			dir := folder(t)
			o := startOwner(t, dir)
			for ctx := t.Context(); ; {
				if found, _ := filepath.Glob(filepath.Join(dir, moment.pattern)); len(found) > 0 {
					break
				}
				select {
				case <-ctx.Done():
					t.Fatal("never came to it")
				case <-time.After(time.Millisecond):
				}
			}
			o.kill()
			s := start(t, dir)
			var one int
			query(t, s.URL(), "select 1", &one)
		})
	}
}

func TestKilledAtManyMoments(t *testing.T) {
	dir := folder(t)
	s := start(t, dir)
	query(t, s.URL(), "create table kept (x int primary key)", nil)
	fatal(t, s.Stop())
	for n := range 8 {
		o := startOwner(t, dir)
		if n%2 == 0 { // while it starts
			<-time.After(time.Duration(n) * 20 * time.Millisecond)
			o.kill()
			continue
		}
		query(t, o.url(), "insert into kept values ("+strconv.Itoa(n)+")", nil)
		o.kill()
	}
	s = start(t, dir)
	var n int
	query(t, s.URL(), "select count(*) from kept", &n)
	if n != 4 {
		t.Errorf("%d rows, want 4", n)
	}
}

func TestLongPath(t *testing.T) {
	dir := filepath.Join(filepath.Dir(folder(t)), strings.Repeat("long", 30), "pg")
	s := start(t, dir)
	var one int
	query(t, s.URL(), "select 1", &one)
}

func TestFolders(t *testing.T) {
	t.Run("OthersFilesAreLeftAlone", func(t *testing.T) {
		dir := folder(t)
		fatal(t, os.Mkdir(dir, 0o755))
		fatal(t, os.WriteFile(filepath.Join(dir, "thesis.doc"), nil, 0o644))
		_, err := postgres.Start(t.Context(), dir)
		wantKind(t, err, coverslip.Conflict)
		info, err := os.Stat(dir)
		fatal(t, err)
		if info.Mode().Perm() != 0o755 {
			t.Errorf("its rights are %v now", info.Mode())
		}
	})

	t.Run("BlockedOnTheWay", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root runs the server as another user")
		}
		base := filepath.Dir(folder(t))
		closed := filepath.Join(base, "closed")
		fatal(t, os.Mkdir(closed, 0o700))
		_, err := postgres.Start(t.Context(), filepath.Join(closed, "deep", "pg"))
		wantKind(t, err, coverslip.Environment)
		if !strings.Contains(err.Error(), "pass through "+closed+" ") {
			t.Errorf("does not name %s: %v", closed, err)
		}
	})

	t.Run("PlantedSocketFolder", func(t *testing.T) {
		dir := folder(t)
		fatal(t, os.MkdirAll(filepath.Join(dir, "s"), 0o777))
		fatal(t, os.Chmod(filepath.Join(dir, "s"), 0o777))
		fatal(t, os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600))
		if os.Geteuid() == 0 {
			fatal(t, os.Chown(filepath.Join(dir, "s"), 12345, 12345))
		}
		_, err := postgres.Start(t.Context(), dir)
		wantKind(t, err, coverslip.Conflict)
	})

	t.Run("OtherMajorVersion", func(t *testing.T) {
		dir := folder(t)
		fatal(t, os.MkdirAll(filepath.Join(dir, "data"), 0o700))
		fatal(t, os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600))
		fatal(t, os.WriteFile(filepath.Join(dir, "data", "PG_VERSION"), []byte("9\n"), 0o600))
		_, err := postgres.Start(t.Context(), dir)
		wantKind(t, err, coverslip.Environment)
		if !strings.Contains(coverslip.HintOf(err), "postgresql-9") {
			t.Errorf("hint %q", coverslip.HintOf(err))
		}
	})
}

func TestCanceledStart(t *testing.T) {
	dir := folder(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := postgres.Start(ctx, dir)
	wantKind(t, err, coverslip.Canceled)
	start(t, dir)
}

func TestFindWithoutPostgres(t *testing.T) {
	t.Setenv("COVERSLIP_POSTGRES_BIN", t.TempDir())
	_, err := postgres.Find()
	wantKind(t, err, coverslip.Environment)
	if !strings.Contains(coverslip.HintOf(err), "apt-get install") {
		t.Errorf("hint %q", coverslip.HintOf(err))
	}
}

func postmaster(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	fatal(t, err)
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	fatal(t, err)
	return pid
}

func wantKind(t *testing.T, err error, kind coverslip.Kind) {
	t.Helper()
	var e *coverslip.Error
	if !errors.As(err, &e) || e.Kind != kind {
		t.Fatalf("got %v (%s), want %s", err, coverslip.KindOf(err), kind)
	}
	if e.Op == "" || (e.Hint == "" && kind != coverslip.Canceled) {
		t.Errorf("lacks operation or hint: %v", err)
	}
	t.Log(err)
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
