package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/storage/internal/pgerr"
)

// AddToCohort puts slides into the cohort of this name, which it makes if it is new. For a slide
// that is in it already, what is set here replaces what was there, label by label. All or none:
// a slide that is not registered is NotFound and leaves the cohort as it was. A label whose column holds
// another kind of value is Invalid, and a version of a cohort is a Conflict: it does not change.
func (q queries) AddToCohort(ctx context.Context, cohort string, members ...coverslip.Member) error {
	const op = "add slides to the cohort"
	path := "cohort " + cohort
	kinds, err := kindsOf(members)
	if err != nil {
		return coverslip.At(path, err)
	}
	if err := q.mayChange(ctx, cohort, kinds); err != nil {
		return coverslip.At(path, pgerr.Wrap(op, err))
	}
	ids, patients, sites, labels := make([]string, len(members)), make([]string, len(members)), make([]string, len(members)), make([]map[string]any, len(members))
	for i, m := range members {
		ids[i], patients[i], sites[i], labels[i] = string(m.Slide), m.Patient, m.Site, m.Labels
		if m.Labels == nil {
			labels[i] = map[string]any{}
		}
	}
	names := slices.Sorted(maps.Keys(kinds))
	kindTexts := make([]string, len(names))
	for i, n := range names {
		kindTexts[i] = string(kinds[n])
	}
	// A column of another kind that came between the look and this breaks the constraint of its name.
	_, err = q.q.Exec(ctx, `with made as (insert into cohorts (name) values ($1) on conflict do nothing),
		columns as (insert into cohort_labels as old (cohort, name, kind) select $1, c.* from unnest($6::text[], $7::text[]) c
			on conflict (cohort, name) do update set name = null where old.kind <> excluded.kind)
		insert into cohort_slides as old (cohort, slide, patient, site, labels)
		select $1, m.* from unnest($2::text[], $3::text[], $4::text[], $5::jsonb[]) m
		on conflict (cohort, slide) do update set
			patient = coalesce(nullif(excluded.patient, ''), old.patient),
			site    = coalesce(nullif(excluded.site, ''), old.site),
			labels  = old.labels || excluded.labels`, cohort, ids, patients, sites, labels, names, kindTexts)
	return coverslip.At(path, pgerr.Wrap(op, err))
}

// kindsOf are the kinds of the labels' values, which must agree.
func kindsOf(members []coverslip.Member) (map[string]coverslip.LabelKind, error) {
	kinds := map[string]coverslip.LabelKind{}
	for _, m := range members {
		for name, v := range m.Labels {
			var kind coverslip.LabelKind
			switch v.(type) {
			case float64:
				kind = coverslip.NumberLabel
			case string:
				kind = coverslip.CategoryLabel
			case bool:
				kind = coverslip.BoolLabel
			default:
				panic(fmt.Sprintf("storage: a label of type %T", v))
			}
			if before := kinds[name]; before != "" && before != kind {
				return nil, wrongKind(name, before, kind)
			}
			kinds[name] = kind
		}
	}
	return kinds, nil
}

func wrongKind(label string, is, not coverslip.LabelKind) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "read labels", Err: fmt.Errorf("column %s holds values of kind %s, not %s", label, is, not),
		Hint: "give the column another name, or make another cohort"}
}

// mayChange refuses a version, and columns of another kind than those of the cohort.
func (q queries) mayChange(ctx context.Context, cohort string, kinds map[string]coverslip.LabelKind) error {
	if name, _, version := strings.Cut(cohort, "@"); version {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "change the cohort", Err: errors.New("versions of a cohort do not change"), Hint: "change " + name + ", and make a version of it again"}
	}
	have, err := q.LabelKinds(ctx, cohort)
	for name, kind := range kinds {
		if is := have[name]; is != "" && is != kind {
			return wrongKind(name, is, kind)
		}
	}
	return err
}

// LabelKinds are the kinds of a cohort's label columns, by name; none where there is no such cohort.
func (q queries) LabelKinds(ctx context.Context, cohort string) (map[string]coverslip.LabelKind, error) {
	const op = "read the cohort's columns"
	kinds := map[string]coverslip.LabelKind{}
	var name string
	var kind coverslip.LabelKind
	rows, err := q.q.Query(ctx, `select name, kind from cohort_labels where cohort = $1`, cohort)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&name, &kind}, func() error {
			kinds[name] = kind
			return nil
		})
	}
	return kinds, coverslip.At("cohort "+cohort, pgerr.Wrap(op, err))
}

// Cohorts lists cohorts by name, without their columns.
func (q queries) Cohorts(ctx context.Context) ([]coverslip.Cohort, error) {
	rows, _ := q.q.Query(ctx, selectCohort+` group by c.name order by c.name`) // CollectRows returns the error
	cohorts, err := pgx.CollectRows(rows, scanCohort)
	return cohorts, pgerr.Wrap("list cohorts", err)
}

// Cohort returns one cohort with its columns by name, or NotFound.
func (q queries) Cohort(ctx context.Context, name string) (coverslip.Cohort, error) {
	const op = "look up the cohort"
	path := "cohort " + name
	rows, _ := q.q.Query(ctx, selectCohort+` where c.name = $1 group by c.name`, name) // CollectExactlyOneRow returns the error
	c, err := pgx.CollectExactlyOneRow(rows, scanCohort)
	if errors.Is(err, pgx.ErrNoRows) {
		return c, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: path, Err: errors.New("there is none of this name"), Hint: "list them: coverslip cohorts"}
	}
	if err != nil {
		return c, coverslip.At(path, pgerr.Wrap(op, err))
	}
	rows, _ = q.q.Query(ctx, `select name, kind, (select count(*) from cohort_slides s where s.cohort = l.cohort and s.labels ? l.name)
		from cohort_labels l where cohort = $1 order by name`, name)
	c.Labels, err = pgx.CollectRows(rows, pgx.RowToStructByPos[coverslip.LabelColumn])
	return c, coverslip.At(path, pgerr.Wrap(op, err))
}

const selectCohort = `select c.name, coalesce(c.version_of, ''), count(s.slide), count(distinct nullif(s.patient, '')), count(distinct nullif(s.site, '')), c.created
	from cohorts c left join cohort_slides s on s.cohort = c.name`

func scanCohort(row pgx.CollectableRow) (c coverslip.Cohort, err error) {
	err = row.Scan(&c.Name, &c.VersionOf, &c.Slides, &c.Patients, &c.Sites, &c.Created)
	c.Created, c.Labels = c.Created.UTC(), []coverslip.LabelColumn{}
	return c, err
}

// Members returns the slides of a cohort with their labels, in the order of their ids; NotFound where
// there is no such cohort. It does not ask whether a slide has been encoded, or has only a bag that was
// imported.
func (q queries) Members(ctx context.Context, cohort string) ([]coverslip.Member, error) {
	return q.MembersAfter(ctx, cohort, "", 0)
}

// MembersAfter is Members behind a slide, limit of them at most; 0 is no limit.
func (q queries) MembersAfter(ctx context.Context, cohort string, after coverslip.SlideID, limit int) ([]coverslip.Member, error) {
	const op = "read the cohort"
	most := any(nil)
	if limit > 0 {
		most = limit
	}
	rows, _ := q.q.Query(ctx, `select c.slide, s.name, c.patient, c.site, c.labels from cohort_slides c join slides s on s.id = c.slide
		where c.cohort = $1 and c.slide > $2 order by c.slide limit $3`, cohort, after, most)
	members, err := pgx.CollectRows(rows, pgx.RowToStructByPos[coverslip.Member])
	if err == nil && len(members) == 0 {
		_, err = q.Cohort(ctx, cohort)
	}
	return members, coverslip.At("cohort "+cohort, pgerr.Wrap(op, err))
}

// Freeze makes the next version of a cohort, brca@1 of brca, which is as brca is now and stays so.
func (db *DB) Freeze(ctx context.Context, cohort string) (version string, err error) {
	path := "cohort " + cohort
	err = db.InTx(ctx, func(tx *Tx) error {
		if err := tx.mayChange(ctx, cohort, nil); err != nil {
			return err
		}
		var n int
		// The lock makes those who do it at once take turns.
		err := tx.q.QueryRow(ctx, `select name from cohorts where name = $1 for update`, cohort).Scan(&version)
		if errors.Is(err, pgx.ErrNoRows) {
			_, err = tx.Cohort(ctx, cohort) // says that it is not there
		}
		if err == nil {
			err = tx.q.QueryRow(ctx, `select count(*) + 1 from cohorts where version_of = $1`, cohort).Scan(&n)
		}
		if err != nil {
			return err
		}
		version = fmt.Sprintf("%s@%d", cohort, n)
		for _, sql := range []string{
			`insert into cohorts (name, version_of) values ($2, $1)`,
			`insert into cohort_labels (cohort, name, kind) select $2, name, kind from cohort_labels where cohort = $1`,
			`insert into cohort_slides (cohort, slide, patient, site, labels) select $2, slide, patient, site, labels from cohort_slides where cohort = $1`,
		} {
			if _, err := tx.q.Exec(ctx, sql, cohort, version); err != nil {
				return err
			}
		}
		return nil
	})
	return version, coverslip.At(path, pgerr.Wrap("make a version of the cohort", err))
}
