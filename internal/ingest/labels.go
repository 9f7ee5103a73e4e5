package ingest

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"coverslip"
	"coverslip/internal/cohort"
	"coverslip/storage/interop"
	"coverslip/tiler/remote"
)

// Labelled says what became of a table of labels.
type Labelled struct {
	Cohort  coverslip.Cohort
	Slides  int
	Missing []string // what the table names and nobody has registered, in its order
}

// Label puts the slides that a table names into a cohort, with what it says of them. A slide is named by its
// id, its path or address, its file name with or without the ending, or that up to the first dot; where
// several are called so, the one that is in the cohort already. All or none: a slide that is not registered is
// NotFound, unless those may be left out, and one that is named twice is Invalid.
func (in *Ingest) Label(ctx context.Context, name string, rows []cohort.Row, leaveOutMissing bool) (Labelled, error) {
	const op = "find the table's slides"
	var out Labelled
	found, err := in.named(ctx, name, rows)
	if err != nil {
		return out, err
	}
	line := map[coverslip.SlideID]int{}
	var members []coverslip.Member
	for i, row := range rows {
		at := fmt.Sprintf("line %d: %s", row.Line, row.Slide)
		switch ids := found[i]; {
		case len(ids) == 0:
			out.Missing = append(out.Missing, row.Slide)
		case len(ids) > 1:
			return out, &coverslip.Error{Kind: coverslip.Conflict, Op: op, Err: fmt.Errorf("%s: %d slides are called so, %s and %s among them", at, len(ids), ids[0].Short(), ids[1].Short()), Hint: "write its SHA-256 or its path instead"}
		case line[ids[0]] > 0:
			return out, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf("%s: the slide stands in line %d already", at, line[ids[0]]), Hint: "keep one of the two lines"}
		default:
			line[ids[0]] = row.Line
			members = append(members, coverslip.Member{Slide: ids[0], Patient: row.Patient, Site: row.Site, Labels: row.Labels})
		}
	}
	if len(out.Missing) > 0 && (!leaveOutMissing || len(members) == 0) {
		some := strings.Join(out.Missing[:min(len(out.Missing), 5)], ", ")
		return out, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Err: fmt.Errorf("%d of %d are not registered: %s", len(out.Missing), len(rows), some),
			Hint: "register them: coverslip ingest, import gdc or import s3; or leave them out: --skip-missing"}
	}
	if err := in.DB.AddToCohort(ctx, name, members...); err != nil {
		return out, err
	}
	out.Slides = len(members)
	out.Cohort, err = in.DB.Cohort(ctx, name)
	return out, err
}

// named finds the slides that each row may mean.
func (in *Ingest) named(ctx context.Context, name string, rows []cohort.Row) ([][]coverslip.SlideID, error) {
	const ways = 5 // of naming a slide, the strictest first
	called := map[string][]int{}
	for i, row := range rows {
		name := base(row.Slide)
		keys := []string{row.Slide, name, "stem:" + name, "stem:" + interop.Stem(name), "start:" + start(name)}
		if abs, err := filepath.Abs(row.Slide); err == nil {
			keys = append(keys, abs)
		}
		slices.Sort(keys)
		for _, key := range slices.Compact(keys) {
			called[key] = append(called[key], i)
		}
	}
	best := make([][ways][]coverslip.SlideID, len(rows))
	for place, err := range in.DB.Places(ctx) {
		if err != nil {
			return nil, err
		}
		at, _, _ := strings.Cut(place.Location, versionMark)
		stem := interop.Stem(place.Name)
		if strings.HasPrefix(place.Location, importedMark) {
			stem = place.Name // it had no suffix
		}
		for way, keys := range [ways][]string{{string(place.ID)}, {at, remote.Shown(at)}, {place.Name}, {"stem:" + stem}, {"start:" + start(place.Name)}} {
			for _, key := range slices.Compact(keys) {
				for _, i := range called[key] {
					best[i][way] = append(best[i][way], place.ID)
				}
			}
		}
	}
	inCohort := map[coverslip.SlideID]bool{}
	members, err := in.DB.Members(ctx, name)
	if err != nil && coverslip.KindOf(err) != coverslip.NotFound {
		return nil, err
	}
	for _, m := range members {
		inCohort[m.Slide] = true
	}
	found := make([][]coverslip.SlideID, len(rows))
	for i := range rows {
		for _, ids := range best[i] {
			if len(ids) > 0 {
				found[i] = chooseMember(ids, inCohort)
				break
			}
		}
	}
	return found, nil
}

// chooseMember is the one slide of several that is in the cohort, or all of them.
func chooseMember(ids []coverslip.SlideID, inCohort map[coverslip.SlideID]bool) []coverslip.SlideID {
	var members []coverslip.SlideID
	for _, id := range ids {
		if inCohort[id] {
			members = append(members, id)
		}
	}
	if len(members) == 1 {
		return members
	}
	return ids
}

// base is the last part of a path or address.
func base(name string) string { return name[strings.LastIndexAny(name, `/\`)+1:] }

// start is a name up to its first dot: the barcode of TCGA-A7-A6VV-01Z-00-DX1.<UUID>.svs.
func start(name string) string {
	name, _, _ = strings.Cut(name, ".")
	return name
}
