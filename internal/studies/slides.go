package studies

import (
	"context"
	"errors"
	"strings"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/internal/nn"
	"coverslip/mil/split"
	"coverslip/slidessl"
	"coverslip/slidessl/study"
	"coverslip/slidessl/view"
)

func find(ctx context.Context, in *ingest.Ingest, cohort string, views *coverslip.Views, label string) (*ingest.Stored, error) {
	if views == nil {
		return in.FindBags(ctx, cohort, true, label)
	}
	return in.FindViews(ctx, cohort, *views, label)
}

// slides are those of a cohort with their bags, and what is known of each.
type slides struct {
	slidessl.Source
	ids     []string
	columns []map[string]string
	patient []string
	site    []string
	bag     func(i int) (slidessl.Bag, error) // of tiles as they are
	close   func() error
}

// slides opens a cohort's. key is that of the stage which made its bags.
func (m *Maker) slides(ctx context.Context, cohort, encoderName, label, key string, views *coverslip.Views) (*slides, error) {
	out := &slides{close: func() error { return nil }}
	if m.File.Cohorts[cohort] != nil {
		made, err := m.cohort(cohort)
		if err != nil {
			return nil, err
		}
		features, err := m.featuresOf(ctx, key)
		if err != nil {
			return nil, err
		}
		bags, err := study.NewTileBags(made, features.Value, features.Cols, views, label)
		if err != nil {
			return nil, err
		}
		out.Source = bags
		out.bag = func(i int) (slidessl.Bag, error) { return bags.Bag(i), nil }
		out.know(made)
		return out, nil
	}
	in, err := m.ingest(ctx, encoderName)
	if err != nil {
		return nil, err
	}
	bags, err := find(ctx, in, cohort, views, label)
	if err != nil {
		return nil, err
	}
	out.Source, out.close = bags, bags.Close
	out.bag = func(i int) (slidessl.Bag, error) { return bags.Bag(i) }
	for _, mb := range bags.Members {
		out.ids, out.patient, out.site, out.columns = append(out.ids, string(mb.Slide)), append(out.patient, mb.Patient), append(out.site, mb.Site), append(out.columns, columnsOf(mb))
	}
	return out, nil
}

func (s *slides) know(made *study.TileCohort) {
	for _, slide := range made.Slides {
		s.ids, s.patient, s.site, s.columns = append(s.ids, slide.Name), append(s.patient, slide.Patient), append(s.site, slide.Site), append(s.columns, slide.Labels)
	}
}

// featuresOf are those of tiles, from memory where they were used of late.
func (m *Maker) featuresOf(ctx context.Context, key string) (*nn.Param, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.features[key]; p != nil {
		return p, nil
	}
	raw, err := m.load(ctx, "views", key)
	if err != nil {
		return nil, err
	}
	f, err := nn.Parse(raw)
	if err == nil && f.Params["features"] == nil {
		err = &coverslip.Error{Kind: coverslip.Invalid, Op: "read the features", Path: stageBlob("views", key), Err: errors.New("it holds none"), Hint: "remove the blob, and run the study again"}
	}
	if err != nil {
		return nil, err
	}
	if m.features == nil {
		m.features = map[string]*nn.Param{}
	}
	if m.recent = append(m.recent, key); len(m.recent) > keptFeatures {
		delete(m.features, m.recent[0])
		m.recent = m.recent[1:]
	}
	m.features[key] = f.Params["features"]
	return m.features[key], nil
}

// part is some of a source's slides.
type part struct {
	slidessl.Source
	at []int
}

func (p part) Len() int          { return len(p.at) }
func (p part) Stored(i int) int  { return p.Source.Stored(p.at[i]) }
func (p part) Label(i int) int   { return p.Source.Label(p.at[i]) }
func (p part) Name(i int) string { return p.Source.Name(p.at[i]) }
func (p part) Places(i, stored int) ([]view.Place, error) {
	return p.Source.Places(p.at[i], stored)
}
func (p part) Read(dst []float32, i, stored int, tiles []int) error {
	return p.Source.Read(dst, p.at[i], stored, tiles)
}

func (s *slides) where(condition string) slidessl.Source {
	if condition == "" {
		return s.Source
	}
	column, value, _ := strings.Cut(condition, "=")
	p := part{Source: s.Source}
	for i, c := range s.columns {
		if c[column] == value {
			p.at = append(p.at, i)
		}
	}
	return p
}

// viewsOf are the views of settings, nil where tiles are read as they are.
func viewsOf(s study.Settings, plain bool) *coverslip.Views {
	if plain || s.Views.Count == 0 {
		return nil
	}
	return &coverslip.Views{Count: s.Views.Count, Tiles: s.Views.Tiles, Augment: string(s.Views.Augment), Seed: s.Views.Seed}
}

// known is what is known of a cohort's slides, without their bags.
func (m *Maker) known(ctx context.Context, cohort string) (*slides, error) {
	out := &slides{}
	if m.File.Cohorts[cohort] != nil {
		made, err := m.cohort(cohort)
		if err != nil {
			return nil, err
		}
		out.know(made)
		return out, nil
	}
	members, err := m.membersOf(ctx, cohort)
	for _, mb := range members {
		out.ids, out.patient, out.site, out.columns = append(out.ids, string(mb.Slide)), append(out.patient, mb.Patient), append(out.site, mb.Site), append(out.columns, columnsOf(mb))
	}
	return out, err
}

// rows are some of the slides, by name, with what is known of them.
func (s *slides) rows(e study.Evaluation, ids []string) study.Embedded {
	d := study.Embedded{Columns: map[string][]string{}}
	at := make(map[string]int, len(s.ids))
	for i, id := range s.ids {
		at[id] = i
	}
	columns := e.Columns()
	for _, id := range ids {
		row := split.Row{Slide: id}
		var of map[string]string
		if i, there := at[id]; there {
			of = s.columns[i]
			row.Patient, row.Site, row.Label = s.patient[i], s.site[i], of[e.Label]
		}
		d.Rows = append(d.Rows, row)
		for _, c := range columns {
			d.Columns[c] = append(d.Columns[c], of[c])
		}
	}
	return d
}
