package storage

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// Register writes a slide down unless it is there. It returns the row as it stands, which is an
// earlier one's (its name, location and state) when created is false; so of many who register the
// same slide at once, one is told created. State defaults to Queued; Registered and Changed are the
// database's clock.
func (q queries) Register(ctx context.Context, s coverslip.Slide) (stored coverslip.Slide, created bool, err error) {
	const op = "register the slide"
	if s.State == "" {
		s.State = coverslip.Queued
	}
	if s.Levels == nil {
		s.Levels = []coverslip.Level{}
	}
	rows, _ := q.q.Query(ctx, `insert into slides
		(id, name, location, bytes, format, width, height, levels, mpp, mpp_source, mpp_doubt, objective_power, state, reason)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
		on conflict (id) do nothing
		returning `+slideColumns,
		s.ID, s.Name, s.Location, s.Bytes, s.Format, s.Width, s.Height, s.Levels, s.MPP.Value, s.MPP.Source, s.MPP.Doubt,
		s.ObjectivePower, s.State, s.Reason)
	stored, err = pgx.CollectExactlyOneRow(rows, scanSlide)
	if err == nil {
		return stored, true, nil
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return stored, false, ofSlide(s.ID, op, err)
	}
	stored, err = q.Slide(ctx, s.ID)
	return stored, false, err
}

// Slide returns the slide that has this id, or had it while it was provisional; NotFound where there is none.
func (q queries) Slide(ctx context.Context, id coverslip.SlideID) (coverslip.Slide, error) {
	rows, _ := q.q.Query(ctx, `select `+slideColumns+` from slides where id = coalesce((select slide from slide_aliases where alias = $1), $1)`, id)
	s, err := pgx.CollectExactlyOneRow(rows, scanSlide)
	return s, ofSlide(id, "look up the slide", err)
}

// SlideByPrefix returns the one slide whose id starts with prefix: at least 6 lower-case hexadecimal
// digits, else Invalid. None is NotFound, several are a Conflict.
func (q queries) SlideByPrefix(ctx context.Context, prefix string) (coverslip.Slide, error) {
	e := &coverslip.Error{Kind: coverslip.Invalid, Op: "look up the slide", Path: prefix}
	if len(prefix) > 64 {
		e.Path = prefix[:64] + "…"
	}
	if len(prefix) < 6 || len(prefix) > 64 || !isHex(prefix) {
		e.Err, e.Hint = errors.New("not the start of a slide id"), "give at least 6 lower-case hexadecimal digits"
		return coverslip.Slide{}, e
	}
	// 'g' is the first byte after the digits and letters of an id.
	rows, _ := q.q.Query(ctx, `select `+slideColumns+` from slides where id >= $1 and id < $1 || 'g' order by id limit 2`, prefix)
	found, err := pgx.CollectRows(rows, scanSlide)
	switch {
	case err != nil:
		return coverslip.Slide{}, pgerr.Wrap(e.Op, err)
	case len(found) == 0 && len(prefix) == 64:
		return q.Slide(ctx, coverslip.SlideID(prefix)) // it may be one that was provisional
	case len(found) == 0:
		e.Kind, e.Err, e.Hint = coverslip.NotFound, errors.New("no slide has this id"), "list them: coverslip slides list"
		return coverslip.Slide{}, e
	case len(found) > 1:
		e.Kind, e.Err = coverslip.Conflict, fmt.Errorf("several slides start so, %s and %s among them", found[0].ID.Short(), found[1].ID.Short())
		e.Hint = "give more digits"
		return coverslip.Slide{}, e
	}
	return found[0], nil
}

// SlideFilter picks slides. Zero fields pick all.
type SlideFilter struct {
	State  coverslip.State
	Cohort string
	After  Cursor // only what comes after it
	Limit  int    // at most so many; 0 means no limit
}

// Cursor is a place in the list of slides, between the slide it was made from and the next one.
type Cursor struct {
	Registered time.Time
	ID         coverslip.SlideID
}

// CursorAt is the place after s.
func CursorAt(s coverslip.Slide) Cursor { return Cursor{s.Registered, s.ID} }

// Slides lists slides by the time they were registered, oldest first. A list read page by page, with
// After set to the last slide of the page before, has no slide twice and skips none that was there
// when it began.
func (q queries) Slides(ctx context.Context, f SlideFilter) ([]coverslip.Slide, error) {
	limit := any(nil)
	if f.Limit > 0 {
		limit = f.Limit
	}
	rows, _ := q.q.Query(ctx, `select `+slideColumns+` from slides
		where ($1 = '' or state = $1)
		  and ($2 = '' or id in (select slide from cohort_slides where cohort = $2))
		  and ($4::text = '' or (registered, id) > ($3, $4))
		order by registered, id limit $5`,
		f.State, f.Cohort, f.After.Registered, f.After.ID, limit)
	slides, err := pgx.CollectRows(rows, scanSlide)
	return slides, pgerr.Wrap("list slides", err)
}

// SlidesAmong says which of these names below slides/ in the blob store are of slides that are registered.
func (q queries) SlidesAmong(ctx context.Context, names []string) (map[string]bool, error) {
	// CollectRows returns the error.
	rows, _ := q.q.Query(ctx, `select distinct split_part(substr(location, length('blob:slides/') + 1), '/', 1) from slides
		where location like 'blob:slides/%' and split_part(substr(location, length('blob:slides/') + 1), '/', 1) = any($1)`, names)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	there := make(map[string]bool, len(found))
	for _, name := range found {
		there[name] = true
	}
	return there, pgerr.Wrap("look up slides", err)
}

// Place is what a slide is called and where it lies.
type Place struct {
	ID             coverslip.SlideID
	Name, Location string
}

// Places yields all slides one at a time, so that memory does not grow with their number. It stops after
// the first error it yields.
func (q queries) Places(ctx context.Context) iter.Seq2[Place, error] {
	return func(yield func(Place, error) bool) {
		var p Place
		rows, err := q.q.Query(ctx, `select id, name, location from slides order by id`)
		if err == nil {
			_, err = pgx.ForEachRow(rows, []any{&p.ID, &p.Name, &p.Location}, func() error {
				if !yield(p, nil) {
					return stopError{}
				}
				return nil
			})
		}
		if stop := (stopError{}); err != nil && !errors.As(err, &stop) {
			yield(Place{}, pgerr.Wrap("list slides", err))
		}
	}
}

// CountSlides says how many slides are in each state that has any.
func (q queries) CountSlides(ctx context.Context) (map[coverslip.State]int, error) {
	const op = "count slides"
	rows, err := q.q.Query(ctx, `select state, count(*) from slides group by state`)
	if err != nil {
		return nil, pgerr.Wrap(op, err)
	}
	counts := map[coverslip.State]int{}
	var state coverslip.State
	var n int
	_, err = pgx.ForEachRow(rows, []any{&state, &n}, func() error {
		counts[state] = n
		return nil
	})
	return counts, pgerr.Wrap(op, err)
}

// SetState writes where a slide stands and, with the kind and the text of an error, why. The queue moves
// slides between Queued and Encoding by itself; the worker sets how it ended.
func (q queries) SetState(ctx context.Context, id coverslip.SlideID, state coverslip.State, why error) error {
	reason := ""
	if why != nil {
		reason = why.Error()
	}
	return q.updateSlide(ctx, id, "set the slide's state",
		`update slides set state = $2, kind = $3, reason = $4, changed = now() where id = $1`, id, state, coverslip.KindOf(why), reason)
}

// SetMPP writes a slide's resolution.
func (q queries) SetMPP(ctx context.Context, id coverslip.SlideID, mpp coverslip.MPP) error {
	return q.updateSlide(ctx, id, "set the slide's mpp",
		`update slides set mpp = $2, mpp_source = $3, mpp_doubt = $4, changed = now() where id = $1`, id, mpp.Value, mpp.Source, mpp.Doubt)
}

// SetLocation writes where a slide's bytes lie.
func (q queries) SetLocation(ctx context.Context, id coverslip.SlideID, location string) error {
	return q.updateSlide(ctx, id, "set the slide's location",
		`update slides set location = $2, changed = now() where id = $1`, id, location)
}

// Describe writes what a slide's file says of itself, and where it lies, over what was known before.
func (q queries) Describe(ctx context.Context, s coverslip.Slide) error {
	return q.updateSlide(ctx, s.ID, "describe the slide", `update slides set name = $2, location = $3, bytes = $4, format = $5, width = $6, height = $7,
		levels = $8, mpp = $9, mpp_source = $10, mpp_doubt = $11, objective_power = $12, changed = now() where id = $1`,
		s.ID, s.Name, s.Location, s.Bytes, s.Format, s.Width, s.Height, s.Levels, s.MPP.Value, s.MPP.Source, s.MPP.Doubt, s.ObjectivePower)
}

func (q queries) updateSlide(ctx context.Context, id coverslip.SlideID, op, sql string, args ...any) error {
	tag, err := q.q.Exec(ctx, sql, args...)
	if err == nil && tag.RowsAffected() == 0 {
		err = pgx.ErrNoRows
	}
	return ofSlide(id, op, err)
}

const slideColumns = `id, name, location, bytes, provisional, md5, format, width, height, levels, mpp, mpp_source, mpp_doubt,
	objective_power, state, kind, reason, registered, changed`

func scanSlide(row pgx.CollectableRow) (s coverslip.Slide, err error) {
	err = row.Scan(&s.ID, &s.Name, &s.Location, &s.Bytes, &s.Provisional, &s.MD5, &s.Format, &s.Width, &s.Height, &s.Levels,
		&s.MPP.Value, &s.MPP.Source, &s.MPP.Doubt, &s.ObjectivePower, &s.State, &s.Kind, &s.Reason, &s.Registered, &s.Changed)
	s.Registered, s.Changed = s.Registered.UTC(), s.Changed.UTC()
	return s, err
}

// ofSlide wraps err and names the slide. No row means no such slide.
func ofSlide(id coverslip.SlideID, op string, err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: op, Slide: id, Err: errors.New("no slide has this id"),
			Hint: "list them: coverslip slides list"}
	}
	return pgerr.OfSlide(id, op, err)
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
