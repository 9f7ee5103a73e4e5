package studies

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"coverslip"
	"coverslip/encoder"
	"coverslip/internal/ingest"
	"coverslip/slidessl/study"
	"coverslip/storage"
)

// Dim is the length of an encoder's features.
func (m *Maker) Dim(ctx context.Context, name string) (int, error) {
	model, err := m.model(ctx, name)
	return model.Dim, err
}

func (m *Maker) model(ctx context.Context, name string) (coverslip.Model, error) {
	if m.DB != nil {
		in, err := m.ingest(ctx, name)
		if err != nil {
			return coverslip.Model{}, err
		}
		return in.Model, nil
	}
	known, taps := encoder.SplitName(name)
	spec, ships := encoder.Shipped(known)
	if !ships {
		return coverslip.Model{}, &coverslip.Error{Kind: coverslip.NotFound, Op: "find the encoder", Path: name, Err: errors.New("none of this name ships with Coverslip"), Hint: "name the database where it was added: --data DIR; coverslip models list"}
	}
	spec, err := spec.Use(taps...)
	return spec.Model(), err
}

func (m *Maker) ingest(ctx context.Context, name string) (*ingest.Ingest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if in := m.ingests[name]; in != nil {
		return in, nil
	}
	in, err := m.Ingest(ctx, name)
	if err != nil {
		return nil, err
	}
	if m.ingests == nil {
		m.ingests = map[string]*ingest.Ingest{}
	}
	m.ingests[name] = in
	return in, nil
}

// What is assumed of cohorts that nobody can look at.
const assumedSlides, assumedTiles = 200, 1000

// Cohort is what a study needs to know of one: that the file declares, or of the database.
func (m *Maker) Cohort(ctx context.Context, name string) (study.Cohort, error) {
	if declared := m.File.Cohorts[name]; declared != nil {
		made, err := m.cohort(name)
		if coverslip.KindOf(err) == coverslip.NotFound && m.Assume {
			c := study.Cohort{Slides: assumedSlides, Tiles: assumedSlides * 40, Assumed: true}
			if declared.Kind == "pseudo" {
				c.Slides, c.Tiles = 0, assumedTiles*declared.Sites
				for _, p := range declared.Parts {
					c.Slides += p.Slides
				}
			}
			m.assume(name, c, "its folder of tiles is not there")
			return c, nil
		}
		if err != nil {
			return study.Cohort{}, err
		}
		return made.Cohort(), nil
	}
	if m.DB == nil {
		c := study.Cohort{Slides: assumedSlides, Tiles: assumedSlides * assumedTiles, Assumed: true}
		m.assume(name, c, "no database was named")
		return c, nil
	}
	c, err := m.stored(ctx, name)
	if coverslip.KindOf(err) == coverslip.NotFound && m.Assume {
		c = study.Cohort{Slides: assumedSlides, Tiles: assumedSlides * assumedTiles, Assumed: true}
		m.assume(name, c, "the database has none")
		return c, nil
	}
	return c, err
}

func (m *Maker) assume(name string, c study.Cohort, why string) {
	m.Assumed = append(m.Assumed, fmt.Sprintf("cohort %s: %s; %d slides and %d tiles are assumed, and its labels are not checked", name, why, c.Slides, c.Tiles))
}

// cohort makes one that the file declares, once.
func (m *Maker) cohort(name string) (*study.TileCohort, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.made[name]; c != nil {
		return c, nil
	}
	if m.Tiles == "" {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "make the cohort", Path: name, Err: errors.New("it is made of a folder of tiles, and none was named"), Hint: "name it: --tiles DIR, which holds " + m.File.Cohorts[name].Folder}
	}
	c, err := m.File.Cohorts[name].Make(m.Tiles)
	if err != nil {
		return nil, err
	}
	if m.made == nil {
		m.made = map[string]*study.TileCohort{}
	}
	m.made[name] = c
	return c, nil
}

// manyValues of a column are not listed.
const manyValues = 100

// stored is a cohort of the database.
func (m *Maker) stored(ctx context.Context, name string) (study.Cohort, error) {
	members, err := m.membersOf(ctx, name)
	if err != nil {
		return study.Cohort{}, err
	}
	slides, err := m.DB.Slides(ctx, storage.SlideFilter{Cohort: name})
	if err != nil {
		return study.Cohort{}, err
	}
	c := study.Cohort{Classes: map[string]int{}, Sizes: map[string]map[string]int{}}
	for _, s := range slides {
		if s.State != coverslip.NoTissue {
			c.Slides++
		}
	}
	c.Tiles = c.Slides * assumedTiles // how many they have shows when they are cut
	ids := make([]string, len(members))
	for i, mb := range members {
		ids[i] = string(mb.Slide)
		for column, value := range columnsOf(mb) {
			if c.Sizes[column] == nil {
				c.Sizes[column] = map[string]int{}
			}
			c.Sizes[column][value]++
		}
	}
	for column, sizes := range c.Sizes {
		if c.Classes[column] = len(sizes); len(sizes) > manyValues {
			delete(c.Sizes, column)
		}
	}
	slices.Sort(ids)
	c.Members, c.Labels = study.Hash(ids), study.Hash(members)
	return c, nil
}

func (m *Maker) membersOf(ctx context.Context, cohort string) ([]coverslip.Member, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if all, there := m.members[cohort]; there {
		return all, nil
	}
	all, err := m.DB.Members(ctx, cohort)
	if err != nil {
		return nil, err
	}
	if m.members == nil {
		m.members = map[string][]coverslip.Member{}
	}
	m.members[cohort] = all
	return all, nil
}

// columnsOf are what is known of a slide: labels, and its site where no label is called so.
func columnsOf(mb coverslip.Member) map[string]string {
	columns := map[string]string{}
	if mb.Site != "" {
		columns["site"] = mb.Site
	}
	for name, v := range mb.Labels {
		if text := strings.TrimSpace(coverslip.LabelText(v)); text != "" {
			columns[name] = text
		}
	}
	return columns
}

// Bags is a hash of a cohort's bags.
func (m *Maker) Bags(ctx context.Context, cohort, name string, views *coverslip.Views) (string, error) {
	model, err := m.model(ctx, name)
	if err != nil {
		return "", err
	}
	if m.File.Cohorts[cohort] != nil {
		made, err := m.cohort(cohort)
		if coverslip.KindOf(err) == coverslip.NotFound && m.Assume {
			return study.Hash([]any{cohort, name, views}), nil
		}
		if err != nil {
			return "", err
		}
		return made.Bags(model, views), nil
	}
	if m.DB == nil {
		return study.Hash([]any{cohort, name, views}), nil
	}
	in, err := m.ingest(ctx, name)
	if err != nil {
		return "", err
	}
	keys, err := in.BagKeys(ctx, cohort, views)
	if coverslip.KindOf(err) == coverslip.NotFound && m.Assume {
		return study.Hash([]any{cohort, name, views}), nil
	}
	return study.Hash(keys), err
}
