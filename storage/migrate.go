package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"coverslip"
	"coverslip/migrations"
	"coverslip/storage/internal/pgerr"
)

// Migrate brings the tables up to what this program needs: River's first, ours after, which lean on
// them. Processes that do it at once take turns, and the later ones find nothing to do. A database
// that a newer program has migrated is a Conflict and is left as it is.
func (db *DB) Migrate(ctx context.Context) error {
	const op = "migrate the database"
	turn, err := pgx.ConnectConfig(ctx, db.pool.Config().ConnConfig)
	if err != nil {
		return pgerr.Wrap(op, err)
	}
	defer func() { _ = turn.Close(context.WithoutCancel(ctx)) }() // gives the lock back too
	if _, err := turn.Exec(ctx, "select pg_advisory_lock($1)", migrateLock); err != nil {
		return pgerr.Wrap(op, err)
	}

	if err := db.CheckSchema(ctx); err == nil {
		return nil
	} else if !errors.Is(err, errOlder) {
		return err
	}
	river, err := rivermigrate.New(riverpgxv5.New(db.pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return pgerr.Wrap(op, err)
	}
	if _, err := river.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return pgerr.Wrap(op, err)
	}
	std := stdlib.OpenDBFromPool(db.pool)
	defer func() { _ = std.Close() }()
	ours, err := goose.NewProvider(goose.DialectPostgres, std, migrations.FS, goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return pgerr.Wrap(op, err)
	}
	_, err = ours.Up(ctx)
	return pgerr.Wrap(op, err)
}

// migrateLock is the key of the advisory lock that migrations take turns by: "coversli" in ASCII.
const migrateLock = 0x636f766572736c69

var (
	errOlder = errors.New("its tables are older than this program")
	errNewer = errors.New("its tables are newer than this program")
)

// CheckSchema returns nil if the tables are those this program was built for, and otherwise a
// Conflict that says which side to bring up to date.
func (db *DB) CheckSchema(ctx context.Context) error {
	const op = "check the database's tables"
	ourTarget, err := newest()
	if err != nil {
		return pgerr.Wrap(op, err)
	}
	river, err := rivermigrate.New(riverpgxv5.New(db.pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return pgerr.Wrap(op, err)
	}
	all := river.AllVersions()
	riverTarget := int64(all[len(all)-1].Version)

	// The tables that keep the versions may not be there yet, and a query that names a table which
	// is not there does not even parse: so ask for the tables first.
	ourVersion, riverVersion := int64(0), int64(0)
	var haveOurs, haveRiver bool
	err = db.pool.QueryRow(ctx, `select to_regclass('goose_db_version') is not null, to_regclass('river_migration') is not null`).
		Scan(&haveOurs, &haveRiver)
	if err == nil && haveOurs {
		err = db.pool.QueryRow(ctx, `select coalesce(max(version_id), 0) from goose_db_version where is_applied`).Scan(&ourVersion)
	}
	if err == nil && haveRiver {
		err = db.pool.QueryRow(ctx, `select coalesce(max(version), 0) from river_migration where line = 'main'`).Scan(&riverVersion)
	}
	if err != nil {
		return pgerr.Wrap(op, err)
	}
	at := fmt.Sprintf("at %d and queue %d, this program at %d and %d", ourVersion, riverVersion, ourTarget, riverTarget)
	switch {
	case ourVersion > ourTarget || riverVersion > riverTarget:
		return &coverslip.Error{Kind: coverslip.Conflict, Op: op, Err: fmt.Errorf("%w: %s", errNewer, at),
			Hint: "use the version of coverslip that migrated this database, or a later one"}
	case ourVersion < ourTarget || riverVersion < riverTarget:
		return &coverslip.Error{Kind: coverslip.Conflict, Op: op, Err: fmt.Errorf("%w: %s", errOlder, at),
			Hint: "run: coverslip migrate"}
	}
	return nil
}

// newest is the number of the last migration in the program.
func newest() (version int64, err error) {
	names, err := fs.Glob(migrations.FS, "*.sql")
	for _, name := range names {
		n, err := goose.NumericComponent(name)
		if err != nil {
			return 0, err
		}
		version = max(version, n)
	}
	return version, err
}
