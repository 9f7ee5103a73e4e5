// Package storagetest gives tests a real database: one private PostgreSQL a test binary, and a new
// database in it for each test.
package storagetest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"coverslip/storage"
	"coverslip/storage/postgres"
)

var (
	server  *postgres.Server
	missing error // why there is no server
	count   atomic.Int64
)

// Main runs the tests of a binary with the server at hand, and stops it after. Call it from TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(storagetest.Main(m)) }
func Main(m *testing.M) int {
	if _, missing = postgres.Find(); missing != nil {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "storagetest")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = os.Chmod(dir, 0o711) //nolint:gosec // as root, the server's user has to pass through
	}
	if err == nil {
		server, err = postgres.Start(context.Background(), filepath.Join(dir, "pg"))
	}
	if err == nil {
		defer func() { _ = server.Stop() }()
		err = execute(context.Background(), "alter system set fsync = off") // what is in it goes with the test
	}
	if err == nil {
		err = execute(context.Background(), "select pg_reload_conf()")
	}
	if err == nil {
		err = makeTemplate()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "storagetest:", err)
		return 1
	}
	return m.Run()
}

// template is a migrated database that the tests' are copies of: faster than to migrate each.
const template = "template_coverslip"

func makeTemplate() error {
	ctx := context.Background()
	if err := execute(ctx, "create database "+template); err != nil {
		return err
	}
	db, err := storage.Open(ctx, address(template))
	if err != nil {
		return err
	}
	defer db.Close() // nobody may be connected to a template
	return db.Migrate(ctx)
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
	return create(t, " template "+template)
}

// Empty returns the address of a database without any tables.
func Empty(t testing.TB) string {
	t.Helper()
	return create(t, "")
}

func create(t testing.TB, options string) string {
	t.Helper()
	switch {
	case missing != nil && os.Getenv("CI") == "true":
		t.Fatal(missing)
	case missing != nil:
		t.Skip(missing)
	case server == nil:
		t.Fatal("no server: call storagetest.Main from TestMain")
	}
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
	conn, err := pgx.Connect(ctx, server.URL())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}
