// Package storage keeps slides, cohorts, models, bags and embeddings in Postgres: one method a
// question, on the types of the root package. It works on any PostgreSQL from 13 on, the private
// one of storage/postgres or the one DATABASE_URL names.
//
// It leaves blobs to storage/blob, the bag file to storage/bagfile, jobs to storage/queue (over the
// same pool, so that a slide and its job commit together) and search to storage/vector, which
// DB.Follow keeps in step.
package storage

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"coverslip/storage/internal/pgerr"
)

// DB is a pool of connections to the database. Safe for concurrent use.
//
// Its errors are *coverslip.Error: Unavailable when the database does not answer, Conflict when its
// tables are not the ones this program knows.
type DB struct {
	queries
	pool *pgxpool.Pool
}

// Open connects to the database at url and fails if it does not answer. It does not look at the
// tables: see Migrate and CheckSchema.
func Open(ctx context.Context, url string) (*DB, error) {
	const op = "connect to the database"
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, pgerr.Wrap("read the database's address", err)
	}
	if !strings.Contains(url, "pool_max_conns") {
		config.MaxConns = 12 // pgx's default is one a core, too few for workers, queue and requests at once
	}
	config.ConnConfig.RuntimeParams["application_name"] = "coverslip"
	// A process that is stopped in mid-transaction must not hold its locks for as long as it is stopped.
	config.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "15s"
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, pgerr.Wrap(op, err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, pgerr.Wrap(op, err)
	}
	return &DB{queries{pool}, pool}, nil
}

// Close ends all connections, after those in use are given back.
func (db *DB) Close() { db.pool.Close() }

// Pool is what storage/queue stands on. Whoever takes it must be done with it before Close.
func (db *DB) Pool() *pgxpool.Pool { return db.pool }

// Tx is a transaction with the same methods as DB. It is for one goroutine.
type Tx struct {
	queries
	tx pgx.Tx
}

// Pgx gives the transaction to the queue, so that a job commits with what it is about.
func (tx *Tx) Pgx() pgx.Tx { return tx.tx }

// InTx runs do in one transaction, which commits if do returns nil and leaves no trace otherwise.
// It runs do again when the transaction lost against another one (deadlock), so do must have no
// effect outside the transaction.
func (db *DB) InTx(ctx context.Context, do func(*Tx) error) error {
	const tries = 5
	for n := 1; ; n++ {
		err := pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error { return do(&Tx{queries{tx}, tx}) })
		if n == tries || !pgerr.Again(err) {
			return pgerr.Wrap("write to the database", err)
		}
	}
}

// queries are the methods that DB and Tx share.
type queries struct{ q querier }

// querier is a pool or a transaction.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}
