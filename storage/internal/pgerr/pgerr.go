// Package pgerr turns what Postgres and its driver say into the product's error type, once, so that
// every caller retries, fails and advises alike.
package pgerr

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"coverslip"
)

// Wrap returns err as a *coverslip.Error that says op was being done. An error that is one already
// is returned as it is, and nil stays nil.
func Wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *coverslip.Error
	if errors.As(err, &known) {
		return err
	}
	kind, hint := classify(err)
	return &coverslip.Error{Kind: kind, Op: op, Err: err, Hint: hint}
}

// OfSlide is Wrap for what was done to one slide.
func OfSlide(id coverslip.SlideID, op string, err error) error {
	var e *coverslip.Error
	if !errors.As(Wrap(op, err), &e) || e.Slide != "" {
		return err
	}
	named := *e
	named.Slide = id
	return &named
}

// Again reports whether a transaction lost against another one and may simply be run again.
func Again(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01") // serialization, deadlock
}

const (
	migrate = "bring the tables up to date: coverslip migrate"
	start   = "see that Postgres runs and DATABASE_URL names it, then try again"
)

func classify(err error) (coverslip.Kind, string) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return coverslip.Canceled, ""
	}
	// Codes: PostgreSQL documentation, appendix A.
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch {
		case strings.HasPrefix(pg.Code, "08"), strings.HasPrefix(pg.Code, "57P"), pg.Code == "53300":
			return coverslip.Unavailable, start // connection lost, server stopping or starting, too many connections
		case Again(err):
			return coverslip.Unavailable, "another transaction was in the way; try again"
		case pg.Code == "53100":
			return coverslip.Full, "make room on the database's disk"
		case strings.HasPrefix(pg.Code, "28"), pg.Code == "3D000", pg.Code == "42501":
			return coverslip.Environment, "check user, password, database and rights in DATABASE_URL"
		case strings.HasPrefix(pg.Code, "42"): // no such table, column, function
			return coverslip.Conflict, migrate
		case pg.Code == "23503":
			return coverslip.NotFound, "" // what the row points to
		case strings.HasPrefix(pg.Code, "22"), strings.HasPrefix(pg.Code, "23"):
			return coverslip.Invalid, ""
		}
		return coverslip.Internal, ""
	}
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return coverslip.Environment, "write it as postgres://user:password@host:5432/database"
	}
	var connect *pgconn.ConnectError
	var network net.Error
	if errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, puddle.ErrClosedPool) || pgconn.SafeToRetry(err) || lost(err) {
		return coverslip.Unavailable, start
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return coverslip.NotFound, ""
	}
	return coverslip.Internal, ""
}

// lost recognises pgx's word for a connection that ended under a query; it has no type of its own.
func lost(err error) bool {
	return strings.Contains(err.Error(), "conn closed") || strings.Contains(err.Error(), "conn busy")
}
