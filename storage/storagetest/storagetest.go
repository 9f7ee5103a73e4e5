// Package storagetest gives tests a real database: one private PostgreSQL a test binary, and a new
// database in it for each test; or a folder to start a PostgreSQL of their own in.
package storagetest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"coverslip/storage"
	"coverslip/storage/postgres"
)

// Main runs the tests of a binary and then stops the server, which starts when the first test asks for a
// database. Call it from TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(storagetest.Main(m)) }
func Main(m *testing.M) int {
	inMain = true
	defer func() {
		if server != nil {
			_ = server.Stop()
		}
		_ = os.RemoveAll(dir)
	}()
	return m.Run()
}

var (
	inMain  bool
	dir     string // of the server, and of what folders are copied from
	server  *postgres.Server
	count   atomic.Int64
	find    = sync.OnceValue(func() error { _, err := postgres.Find(); return err })
	start   = sync.OnceValue(startServer)
	prepare = sync.OnceValue(prepareFolder)
)

// need is what every test starts with.
func need(t testing.TB, ready func() error) {
	t.Helper()
	if !inMain {
		t.Fatal("nobody would stop the server: call storagetest.Main from TestMain")
	}
	err := find()
	switch {
	case err != nil && os.Getenv("CI") != "true":
		t.Skip(err)
	case err == nil:
		err = ready()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// prepareFolder makes the folder that all others are copies of.
func prepareFolder() (err error) {
	if dir, err = os.MkdirTemp("", "storagetest"); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // as root, the server's user has to pass through
		return err
	}
	ctx := context.Background()
	s, err := postgres.Start(ctx, filepath.Join(dir, "folder"))
	if err != nil {
		return err
	}
	db, err := storage.Open(ctx, s.URL())
	if err == nil {
		_, err = db.Pool().Exec(ctx, "alter system set fsync = off") // what is in it goes with the tests
		err = errors.Join(err, db.Migrate(ctx))
		db.Close()
	}
	return errors.Join(err, s.Stop())
}

func startServer() error {
	err := prepare()
	if err == nil {
		err = copyFolder(filepath.Join(dir, "pg"))
	}
	if err == nil {
		server, err = postgres.Start(context.Background(), filepath.Join(dir, "pg"))
	}
	return err
}

func copyFolder(to string) error {
	if out, err := exec.Command("cp", "-a", filepath.Join(dir, "folder"), to).CombinedOutput(); err != nil { //nolint:gosec // folders of this test binary
		return fmt.Errorf("copy the folder of PostgreSQL: %w: %s", err, out)
	}
	return nil
}

// Folder makes the folder of a private PostgreSQL at path, which is new, as its server leaves it: stopped, with
// the program's tables and nothing in them. A server that starts there has no cluster to make first, which is
// most of what a start in a new folder takes, and does not wait for the disk.
func Folder(t testing.TB, path string) {
	t.Helper()
	need(t, prepare)
	if err := copyFolder(path); err != nil {
		t.Fatal(err)
	}
}

// New returns a migrated database with nothing in it, which goes when the test ends. Without
// PostgreSQL on the machine the test is skipped, but where CI is set to true it fails.
func New(t testing.TB) *storage.DB {
	t.Helper()
	db, err := storage.Open(t.Context(), URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// URL is New for those who connect by themselves.
func URL(t testing.TB) string {
	t.Helper()
	return create(t, " template coverslip") // the server's own: a copy is made faster than a migration
}

// Empty returns the address of a database without any tables.
func Empty(t testing.TB) string {
	t.Helper()
	return create(t, "")
}

func create(t testing.TB, options string) string {
	t.Helper()
	need(t, start)
	name := fmt.Sprintf("test_%d", count.Add(1))
	if err := execute(t.Context(), "create database "+name+options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := execute(context.Background(), "drop database "+name+" with (force)"); err != nil {
			t.Error(err)
		}
	})
	return address(name)
}

func address(database string) string {
	u, err := url.Parse(server.URL())
	if err != nil {
		panic(err)
	}
	u.Path = "/" + database
	return u.String()
}

func execute(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, address("postgres")) // not to the template, which has to be left alone
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}
