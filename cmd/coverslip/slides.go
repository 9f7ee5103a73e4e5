package main

import (
	"fmt"
	"math"

	"coverslip"
	"coverslip/storage"
)

type slidesCmd struct {
	Slide  string `arg:"" optional:"" placeholder:"ID" help:"Show this one: its id, or the first 6 digits of it."`
	State  string `enum:",registered,queued,encoding,embedded,no_tissue,needs_mpp,failed" default:"" help:"Only slides in this state: registered, queued, encoding, embedded, no_tissue, needs_mpp or failed."`
	Cohort string `placeholder:"NAME" help:"Only slides of this cohort."`
	Limit  int    `default:"0" help:"At most so many; 0 is all."`
	encoderFlags
	dataFlags
}

// Help is shown by coverslip slides --help.
func (slidesCmd) Help() string {
	return `Examples:
  coverslip slides
  coverslip slides --state failed
  coverslip slides ed92d5a9f2e8`
}

// Run lists slides or shows one.
func (c *slidesCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	if c.Slide != "" && c.Slide != "list" { // "slides list" is what other tools would call it
		return c.show(e, p)
	}
	slides, err := p.DB.Slides(e, storage.SlideFilter{State: coverslip.State(c.State), Cohort: c.Cohort, Limit: c.Limit})
	if err != nil {
		return err
	}
	rows := []string{"slide\tstate\tsize\tmpp\tname"}
	for _, s := range slides {
		if e.json {
			if err := e.emit(s); err != nil {
				return err
			}
			continue
		}
		mpp := "?"
		if s.MPP.Known() {
			mpp = fmt.Sprintf("%.4g", s.MPP.Value)
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%d × %d\t%s\t%s", s.ID.Short(), s.State, s.Width, s.Height, mpp, s.Name))
	}
	switch {
	case e.json:
	case len(slides) == 0:
		e.printf("no slides; coverslip ingest SLIDE --wait adds one\n")
	default:
		e.table(rows...)
	}
	return nil
}

func (c *slidesCmd) show(e *env, p *platform) error {
	in, err := p.finder(e, c.encoderFlags)
	if err != nil {
		return err
	}
	slide, err := p.findSlide(e, c.Slide)
	if err != nil {
		return err
	}
	bag, err := in.Bag(e, slide)
	hasBag := err == nil
	if err != nil && coverslip.KindOf(err) != coverslip.NotFound {
		return err
	}
	embedding, err := in.Embedding(e, slide.ID)
	hasEmbedding := err == nil
	if err != nil && coverslip.KindOf(err) != coverslip.NotFound {
		return err
	}
	if e.json {
		out := struct {
			coverslip.Slide
			Bag       *coverslip.Bag       `json:"bag,omitempty"`
			Embedding *coverslip.Embedding `json:"embedding,omitempty"`
		}{Slide: slide}
		if hasBag {
			out.Bag = &bag
		}
		if hasEmbedding {
			out.Embedding = &embedding
		}
		return e.emit(out)
	}
	rows := []string{
		"slide\t" + string(slide.ID),
		"name\t" + slide.Name,
		"lies at\t" + slide.Location,
		fmt.Sprintf("format\t%s, %d × %d px, %s, %.1f MB", slide.Format, slide.Width, slide.Height, count(len(slide.Levels), "level"), float64(slide.Bytes)/1e6),
		"mpp\t" + describeMPP(slide.MPP),
		"state\t" + string(slide.State),
	}
	if slide.Reason != "" {
		rows = append(rows, "reason\t"+slide.Reason)
	}
	if hasBag {
		rows = append(rows, fmt.Sprintf("bag\t%d tiles × %d, %.1f MB, encoder %s", bag.Tiles, bag.Dim, float64(bag.Bytes)/1e6, bag.Encoder))
		for _, t := range bag.Timings {
			rows = append(rows, fmt.Sprintf("  %s\t%.2f s", t.Stage, t.Seconds))
		}
	}
	if hasEmbedding {
		var square float64
		for _, v := range embedding.Vector {
			square += float64(v) * float64(v)
		}
		rows = append(rows, fmt.Sprintf("embedding\t%d numbers, norm %.4f, aggregator %s", len(embedding.Vector), math.Sqrt(square), embedding.Aggregator))
	}
	e.table(rows...)
	return nil
}
