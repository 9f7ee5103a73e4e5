package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"coverslip"
	"coverslip/encoder/augment"
	"coverslip/internal/ingest"
	"coverslip/storage"
	"coverslip/storage/queue"
)

type encodeCmd struct {
	Slide    []string `arg:"" optional:"" help:"Slides that are registered: their ids, or the first 6 digits. None: all, or those of --cohort."`
	Cohort   string   `placeholder:"NAME" help:"The slides of this cohort."`
	Views    *int     `placeholder:"V" help:"Make a bag of so many augmented views instead, as slide-level self-supervision needs them."`
	Tiles    int      `default:"256" help:"Tiles of each view, drawn with replacement (${default})."`
	Augment  string   `default:"gigassl" placeholder:"NAME|FILE" help:"How views are augmented: gigassl, histo, none, or a file of transforms (${default})."`
	Seed     uint64   `default:"1" help:"Of the views' draws (${default})."`
	Wait     bool     `help:"Stay until it is done."`
	Priority int      `default:"2" placeholder:"1-4" help:"1 comes before what others asked for, 4 after it (${default})."`
	budgetFlags
	aggregatorFlag
	encoderFlags
	dataFlags
}

// Help is shown by coverslip encode --help.
func (encodeCmd) Help() string {
	return `Examples:
  coverslip encode --cohort brca --budget auto --wait
  coverslip encode --cohort brca --views 50 --tiles 256
  coverslip encode ed92d5 --budget 512 --wait

Bags that are there already are not made again, and tiles that are in an earlier bag under another
budget are not encoded again.`
}

// views are those asked for; nil: none.
func (c *encodeCmd) views() (*coverslip.Views, error) {
	if c.Views == nil {
		return nil, nil
	}
	if *c.Views < 1 || c.Tiles < 1 || *c.Views > 1000 || c.Tiles > 100_000 {
		return nil, &usageError{fmt.Sprintf("%d views of %d tiles: give 1 to 1000 views of 1 to 100,000 tiles", *c.Views, c.Tiles)}
	}
	if c.Budget != (budgetValue{}) {
		return nil, &usageError{"--budget is for bags of tiles as they are; a view has --tiles"}
	}
	text := c.Augment
	if raw, err := os.ReadFile(text); err == nil {
		text = string(raw)
	}
	spec, err := augment.Parse(text)
	if err != nil {
		return nil, coverslip.At(c.Augment, err)
	}
	return &coverslip.Views{Count: *c.Views, Tiles: c.Tiles, Augment: spec.String(), Seed: c.Seed}, nil
}

// Run queues the work and, with --wait, sees it through.
func (c *encodeCmd) Run(e *env) error {
	views, err := c.views()
	if err != nil {
		return err
	}
	if c.Priority < 1 || c.Priority > 4 {
		return &usageError{"--priority is 1 (first) to 4 (last)"}
	}
	return c.with(e, c.encoderFlags, func(p *platform, in *ingest.Ingest) error {
		in.Plan.Budget = c.budget()
		if err := c.use(e, p, in); err != nil {
			return err
		}
		slides, err := c.slides(e, p)
		if err != nil {
			return err
		}
		return c.encode(e, p, in, slides, views)
	})
}

func (c *encodeCmd) slides(e *env, p *platform) ([]coverslip.Slide, error) {
	if len(c.Slide) == 0 {
		slides, err := p.DB.Slides(e, storage.SlideFilter{Cohort: c.Cohort})
		if err == nil && len(slides) == 0 {
			err = &coverslip.Error{Kind: coverslip.NotFound, Op: "encode", Path: c.Cohort, Err: errors.New("there are no slides"), Hint: "register some: coverslip ingest SLIDE … --cohort NAME"}
		}
		return slides, err
	}
	var slides []coverslip.Slide
	for _, what := range c.Slide {
		s, err := p.findSlide(e, what)
		if err != nil {
			return nil, err
		}
		slides = append(slides, s)
	}
	return slides, nil
}

// encodeResult is what became of one slide, as printed with --json.
type encodeResult struct {
	Slide   coverslip.SlideID `json:"slide"`
	Name    string            `json:"name"`
	Work    string            `json:"work"` // "done" now, "queued", "none": it was there already, or "failed"
	Job     int64             `json:"job,omitempty"`
	Reason  string            `json:"reason,omitempty"`
	Tiles   int               `json:"tiles,omitempty"` // rows of the bag
	Seconds float64           `json:"seconds,omitempty"`
}

func (c *encodeCmd) encode(e *env, p *platform, in *ingest.Ingest, slides []coverslip.Slide, views *coverslip.Views) error {
	started := time.Now()
	jobs, err := in.Encode(e, slides, views, c.Priority)
	if err != nil {
		return err
	}
	var queued []encodeResult
	added, waited, there := 0, 0, 0
	for i, s := range slides {
		r := encodeResult{Slide: s.ID, Name: s.Name, Work: "none", Job: jobs[i].ID}
		message := "there already: no work was done"
		switch {
		case r.Job == 0:
			there++
		case jobs[i].Added:
			added++
			r.Work, message = "queued", "queued"
		default:
			waited++
			r.Work, message = "queued", "in the queue already"
		}
		if r.Job > 0 {
			queued = append(queued, r)
			if c.Wait {
				continue
			}
		}
		if e.json || len(slides) <= 20 {
			if err := c.print(e, r, message); err != nil {
				return err
			}
		}
	}
	if !e.json && len(slides) > 20 {
		e.printf("%d queued, %d in the queue already, %d there already\n", added, waited, there)
	}
	switch {
	case len(queued) == 0:
		return nil
	case !c.Wait:
		if !e.json {
			e.printf("start workers with: coverslip up\n")
			if c.Cohort != "" {
				e.printf("see how far they are: coverslip cohorts progress %s --follow\n", c.Cohort)
			}
		}
		return nil
	}
	return c.wait(e, p, in, queued, started)
}

// wait sees jobs through, working on them where nobody else does.
func (c *encodeCmd) wait(e *env, p *platform, in *ingest.Ingest, queued []encodeResult, started time.Time) error {
	names := map[coverslip.SlideID]string{}
	for _, r := range queued {
		names[r.Slide] = r.Name
	}
	q, err := queue.New(p.DB.Pool(), queue.Config{Logger: e.log})
	if err != nil {
		return err
	}
	if p.owner() {
		bars := map[coverslip.SlideID]func(int){} // of one worker at a time
		in.Progress = func(id coverslip.SlideID, done, total int) {
			if bars[id] == nil {
				bars[id] = e.progress("encoding "+names[id], total)
			}
			bars[id](done)
		}
		stop, err := p.work(e, in, atHand)
		if err != nil {
			return err
		}
		defer stop()
	} else {
		e.say("waiting for the workers of another process (coverslip up or coverslip work)\n")
	}
	failed := 0
	for _, r := range queued {
		status, err := q.Wait(e, r.Job)
		if err != nil {
			return err
		}
		r.Work, r.Seconds = "done", time.Since(started).Seconds()
		message := fmt.Sprintf("done, %.1f s", r.Seconds)
		if status.State != "completed" {
			failed++
			r.Work, r.Reason = "failed", status.Error
			message = "failed: " + status.Error
		}
		if err := c.print(e, r, message); err != nil {
			return err
		}
	}
	if failed > 0 {
		return &someFailed{failed}
	}
	return nil
}

func (c *encodeCmd) print(e *env, r encodeResult, message string) error {
	if e.json {
		return e.emit(r)
	}
	e.printf("%s  %s  %s\n", r.Slide.Short(), r.Name, message)
	return nil
}
