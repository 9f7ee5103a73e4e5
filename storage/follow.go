package storage

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// Follow gives apply every embedding there is, and then every one that is written, until ctx ends
// or apply fails. It is how a copy in memory stays in step with the table.
//
// Batches are of at most 256 embeddings; caughtUp says that apply has now seen all that was
// committed when the reading began, and is true at least once after every start, with no batch if
// there is nothing. For one slide, encoder and aggregator the later one given is the later one
// written. An embedding may be given again (after a lost connection, all of them are), so apply
// must be a plain upsert. Apply is called by one goroutine at a time, the caller's.
//
// A lost database is waited for: Follow returns only when ctx ends (Canceled), apply fails (its
// error), or the database refuses for good.
func (db *DB) Follow(ctx context.Context, apply func(batch []coverslip.Embedding, caughtUp bool) error) error {
	// Versions are taken in order but commit in any order, so "version > last" would lose the slow
	// ones. Instead each row carries its transaction, and each reading takes in what transactions from
	// `low` on have written, where low is the oldest transaction that was still open at the reading
	// before: whatever was written by older ones was visible then. What of that was given already is
	// remembered by its version; the memory is as short as the overlap.
	var low uint64
	given := map[int64]uint64{} // version → transaction

	return db.listen(ctx, "coverslip_embeddings", func(_ string, missed missed) error {
		if missed == all { // a server that crashed may have taken transaction numbers back
			low = 0
			clear(given)
		}
		// Rows and low come from one statement, so from one snapshot. The left join gives low even
		// when there are no rows.
		rows, err := db.pool.Query(ctx, `select xmin::text::bigint, e.version, e.written::text::bigint, `+embeddingColumns+`
			from (select pg_snapshot_xmin(pg_current_snapshot()) as xmin) now
			left join embeddings e on e.written >= ($1::bigint)::text::xid8
			order by e.written, e.version`, int64(low)) //nolint:gosec // transaction numbers stay far below 2^63
		if err != nil {
			return err
		}
		defer rows.Close()

		var batch []coverslip.Embedding
		next := low
		for rows.Next() {
			var xmin int64
			var version, written *int64
			var e embeddingRow
			if err := rows.Scan(append([]any{&xmin, &version, &written}, e.fields()...)...); err != nil {
				return err
			}
			next = uint64(xmin) //nolint:gosec // as above
			if version == nil {
				continue
			}
			if _, ok := given[*version]; ok {
				continue
			}
			given[*version] = uint64(*written) //nolint:gosec // as above
			if batch = append(batch, e.embedding()); len(batch) == 256 {
				if err := apply(batch, false); err != nil {
					return stopError{err}
				}
				batch = nil
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		low = next
		for version, written := range given {
			if written < low {
				delete(given, version)
			}
		}
		if err := apply(batch, true); err != nil {
			return stopError{err}
		}
		return nil
	})
}

// embeddingRow takes an embedding out of an outer join, whose columns may all be null.
type embeddingRow struct {
	slide, bag, encoder, aggregator *string
	vector                          []float32
	created                         *time.Time
}

func (r *embeddingRow) fields() []any {
	return []any{&r.slide, &r.bag, &r.encoder, &r.aggregator, &r.vector, &r.created}
}

func (r *embeddingRow) embedding() coverslip.Embedding {
	return coverslip.Embedding{Slide: coverslip.SlideID(*r.slide), Bag: *r.bag, Encoder: *r.encoder, Aggregator: *r.aggregator,
		Vector: r.vector, Created: r.created.UTC()}
}

// WaitDone waits until every one of the slides is Done, in this process or in another. onChange gets
// each slide once as it stands, and again whenever its state or reason changes; states that pass
// quickly may be skipped, the last one never. A slide that is not registered is NotFound. A lost
// database is waited for until ctx ends.
func (db *DB) WaitDone(ctx context.Context, ids []coverslip.SlideID, onChange func(coverslip.Slide)) error {
	type seen struct {
		state  coverslip.State
		reason string
	}
	last := make(map[coverslip.SlideID]seen, len(ids))
	for _, id := range ids {
		last[id] = seen{}
	}
	look := func(ids []coverslip.SlideID) error {
		rows, _ := db.pool.Query(ctx, `select `+slideColumns+` from slides where id = any($1) order by changed, id`, ids)
		slides, err := pgx.CollectRows(rows, scanSlide)
		if err != nil {
			return err
		}
		for _, s := range slides {
			if now := (seen{s.State, s.Reason}); now != last[s.ID] {
				last[s.ID] = now
				onChange(s)
			}
		}
		for _, id := range ids {
			if last[id].state == "" {
				return stopError{ofSlide(id, "wait for the slide", pgx.ErrNoRows)}
			}
		}
		for _, s := range last {
			if !s.state.Done() {
				return nil
			}
		}
		return stopError{}
	}
	if len(last) == 0 {
		return nil
	}
	return db.listen(ctx, "coverslip_slides", func(note string, missed missed) error {
		if missed != nothing {
			return look(ids)
		}
		if id := coverslip.SlideID(note); last[id].state != "" { // one of ours
			return look([]coverslip.SlideID{id})
		}
		return nil
	})
}

// stopError is how a listener ends listen: with err, or well when err is nil.
type stopError struct{ err error }

func (s stopError) Error() string {
	if s.err == nil {
		return "stop"
	}
	return s.err.Error()
}

// missed says what may have happened without a notification.
type missed int

const (
	nothing missed = iota // this is a notification
	some                  // none came for a while; a dead connection looks the same
	all                   // the connection is new
)

// quiet is how long a listener goes without a notification before it looks by itself.
const quiet = 30 * time.Second

// listen calls each with every notification of the channel, once right after each connect, and after
// every quiet spell. It has a connection of its own beside the pool's, and makes a new one whenever
// it or each meets an Unavailable database. It returns when ctx ends, each returns a stopError, or an
// error that waiting does not cure.
func (db *DB) listen(ctx context.Context, channel string, each func(note string, missed missed) error) error {
	once := func() error {
		conn, err := pgx.ConnectConfig(ctx, db.pool.Config().ConnConfig)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		// First listen, then look: what commits between the two is seen twice, not never.
		if _, err := conn.Exec(ctx, "listen "+channel); err != nil {
			return err
		}
		if err := each("", all); err != nil {
			return err
		}
		for {
			waiting, done := context.WithTimeout(ctx, quiet)
			note, err := conn.WaitForNotification(waiting)
			done()
			switch {
			case err == nil:
				err = each(note.Payload, nothing)
			case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
				if err = conn.Ping(ctx); err == nil {
					err = each("", some)
				}
			}
			if err != nil {
				return err
			}
		}
	}
	const first, longest = 50 * time.Millisecond, 2 * time.Second
	for pause := first; ; {
		began := time.Now()
		err := once()
		var end stopError
		if errors.As(err, &end) {
			return end.err
		}
		err = pgerr.Wrap("listen to the database", err)
		if ctx.Err() != nil || coverslip.KindOf(err) != coverslip.Unavailable {
			return err
		}
		if time.Since(began) > longest { // it had worked
			pause = first
		}
		select {
		case <-ctx.Done():
			return pgerr.Wrap("listen to the database", ctx.Err())
		case <-time.After(pause):
			pause = min(2*pause, longest)
		}
	}
}
