package main

import (
	"os"
	"strings"
	"sync"
	"time"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/slidessl/measure"
	"coverslip/tiler"
)

type ingestCmd struct {
	Paths      []string `arg:"" name:"slide" help:"Slides: paths of files, or of a folder with the files of one DICOM slide, or s3:// addresses. They stay where they are."`
	Cohort     string   `placeholder:"NAME" help:"Put them into this cohort, made if it is new."`
	MPPOfSlide mppValue `name:"mpp-of-slide" help:"Resolution of the slides, µm per pixel, where the files do not say it."`
	SkipBad    bool     `name:"skip-bad-tiles" help:"Leave out tiles whose bytes are damaged, and say which. Without it, one fails its slide."`
	Wait       bool     `help:"Stay until every slide has its embedding or a reason for having none."`
	Gate       string   `placeholder:"NAME" help:"With --wait: keep slides that this gate finds strange out of the cohort, and say so (coverslip gate fit)."`
	gateFlags
	budgetFlags
	mppTableFlag
	aggregatorFlag
	encoderFlags
	dataFlags

	gate *measure.Gate
}

// Help is shown by coverslip ingest --help.
func (ingestCmd) Help() string {
	return `Examples:
  coverslip ingest section.svs --wait
  coverslip ingest /archive/*.svs --cohort brca
  coverslip ingest old.svs --mpp-of-slide 0.25 --wait
  coverslip ingest *.tif --mpp-csv resolutions.csv
  coverslip ingest *.svs --cohort brca --gate brca --wait
  coverslip ingest *.svs --cohort brca --aggregator brca-ssl --wait
  coverslip ingest 's3://bucket/a.svs?endpoint=http://127.0.0.1:7070' --wait

With --wait the slides are encoded by this process, or by coverslip up where that runs on the same
folder. Without it they are queued. Doing it twice does the work once.`
}

// mppTableFlag names resolutions by slide.
type mppTableFlag struct {
	MPPTable string `name:"mpp-csv" type:"path" placeholder:"FILE" help:"Resolutions by slide: a table with the columns slide (path, file name or SHA-256) and mpp. It counts more than the files and --mpp-of-slide."`

	mpps *tiler.MPPs
}

func (f *mppTableFlag) readMPPs() error {
	if f.MPPTable == "" {
		return nil
	}
	table, err := os.Open(f.MPPTable)
	if err != nil {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "read mpp table", Path: f.MPPTable, Err: err, Hint: "check the path"}
	}
	defer table.Close()
	f.mpps, err = tiler.ReadMPPs(table)
	return coverslip.At(f.MPPTable, err)
}

// mppOf is the user's word for a slide: the table's, or the flag's for all slides; 0 is none.
func (f *mppTableFlag) mppOf(place string, id coverslip.SlideID, all mppValue) float64 {
	if f.mpps != nil {
		if v := f.mpps.Of(place, id); v != 0 {
			return v
		}
	}
	return float64(all)
}

// sayUnused warns of lines that met no slide: a name may be mistyped.
func (f *mppTableFlag) sayUnused(e *env) {
	if f.mpps == nil {
		return
	}
	if names := f.mpps.Unused(); len(names) > 0 {
		e.say("%s: %d of its slides were not among these: %s\n", f.MPPTable, len(names), strings.Join(names[:min(len(names), 10)], ", "))
	}
}

// result is what one slide came to, as printed with --json.
type result struct {
	Slide   coverslip.SlideID `json:"slide,omitempty"`
	Path    string            `json:"path"`
	Name    string            `json:"name,omitempty"`
	State   coverslip.State   `json:"state"`
	Kind    coverslip.Kind    `json:"kind,omitempty"`
	Reason  string            `json:"reason,omitempty"`
	Work    string            `json:"work"` // "done" now, "queued", or "none": it was there already
	Tiles   int               `json:"tiles"`
	Dim     int               `json:"dim,omitempty"`
	Seconds float64           `json:"seconds"`
	Strange bool              `json:"strange,omitempty"` // to the gate, and so not in the cohort
	Message string            `json:"message"`
}

// Run registers the slides and, with --wait, sees them through.
func (c *ingestCmd) Run(e *env) error {
	if err := c.readMPPs(); err != nil {
		return err
	}
	if c.Gate != "" && !c.Wait || c.Gate == "" && c.Threshold != nil {
		return &usageError{"--gate looks at embeddings: it goes with --wait, and --threshold with it"}
	}
	return c.with(e, c.encoderFlags, func(p *platform, in *ingest.Ingest) (err error) {
		if c.Gate != "" {
			if c.gate, err = p.openGate(e, c.Gate, in.Model.Name, c.gateFlags); err != nil {
				return err
			}
		}
		in.Plan.Budget, in.Plan.SkipBadTiles = c.budget(), c.SkipBad
		if err := c.use(e, p, in); err != nil {
			return err
		}
		return c.ingest(e, p, in)
	})
}

func (c *ingestCmd) ingest(e *env, p *platform, in *ingest.Ingest) error {
	failed, waiting := 0, map[coverslip.SlideID]result{}
	var order []coverslip.SlideID
	for _, path := range c.Paths {
		r, err := c.register(e, in, p, path)
		if e.Err() != nil {
			return e.Err()
		}
		if err != nil {
			failed++
			if err := c.print(e, refused(path, err)); err != nil {
				return err
			}
			continue
		}
		if _, again := waiting[r.Slide]; c.Wait && !r.State.Done() && !again {
			waiting[r.Slide] = r
			order = append(order, r.Slide)
			continue
		}
		if r.State == coverslip.Failed || r.State == coverslip.AwaitingMPP || r.Strange {
			failed++
		}
		if err := c.print(e, r); err != nil {
			return err
		}
	}
	if len(waiting) > 0 {
		n, err := c.wait(e, p, in, waiting, order)
		failed += n
		if err != nil {
			return err
		}
	}
	c.sayUnused(e)
	if !e.json && len(c.Paths) > 1 {
		e.printf("%d of %d slides done, %d failed\n", len(c.Paths)-failed, len(c.Paths), failed)
	}
	if failed > 0 {
		return &someFailed{failed}
	}
	return nil
}

func (c *ingestCmd) register(e *env, in *ingest.Ingest, p *platform, path string) (result, error) {
	out, err := in.RegisterWith(e, path, func(id coverslip.SlideID) float64 { return c.mppOf(path, id, c.MPPOfSlide) })
	if err != nil {
		return result{}, err
	}
	if c.Cohort != "" && c.gate == nil {
		if err := p.DB.AddToCohort(e, c.Cohort, coverslip.Member{Slide: out.Slide.ID}); err != nil {
			return result{}, err
		}
	}
	r := result{Slide: out.Slide.ID, Path: path, Name: out.Slide.Name, State: out.Slide.State, Reason: out.Slide.Reason, Work: "none"}
	switch {
	case out.Queued:
		r.Work, r.Message = "queued", "queued"
	case !out.Slide.State.Done():
		r.Message = "in the queue already"
	case out.Slide.State == coverslip.Embedded:
		r.Message = "embedded already: no work was done"
	default:
		r.Message = string(out.Slide.State) + " already: no work was done"
	}
	if err := c.describe(e, in, &r); err != nil {
		return r, err
	}
	return r, c.pass(e, p, in, &r)
}

// pass asks the gate of a slide that is embedded, and puts it into the cohort where it passes.
func (c *ingestCmd) pass(e *env, p *platform, in *ingest.Ingest, r *result) error {
	if c.gate == nil || r.State != coverslip.Embedded {
		return nil
	}
	why, err := p.strange(e, c.gate, c.Gate, in, r.Slide)
	if r.Strange = why != ""; r.Strange {
		r.Reason, r.Message = why, why
	}
	if err != nil || r.Strange || c.Cohort == "" {
		return err
	}
	return p.DB.AddToCohort(e, c.Cohort, coverslip.Member{Slide: r.Slide})
}

// describe adds what is known of the bag.
func (c *ingestCmd) describe(e *env, in *ingest.Ingest, r *result) error {
	if r.State != coverslip.Embedded && r.State != coverslip.NoTissue {
		return nil
	}
	slide, err := in.DB.Slide(e, r.Slide)
	if err != nil {
		return err
	}
	bag, err := in.Bag(e, slide)
	r.Tiles, r.Dim = bag.Tiles, bag.Dim
	return err
}

// wait follows the slides until each is done, working on them where nobody else does.
func (c *ingestCmd) wait(e *env, p *platform, in *ingest.Ingest, waiting map[coverslip.SlideID]result, order []coverslip.SlideID) (failed int, err error) {
	var mu sync.Mutex // Progress comes from the worker
	bars := map[coverslip.SlideID]func(int){}
	in.Progress = func(id coverslip.SlideID, done, total int) {
		mu.Lock()
		defer mu.Unlock()
		if bars[id] == nil {
			bars[id] = e.progress("encoding "+waiting[id].Name, total)
		}
		bars[id](done)
	}
	if p.owner() {
		stop, err := p.work(e, in, atHand)
		if err != nil {
			return 0, err
		}
		defer stop()
	} else {
		e.say("waiting for the workers of another process (coverslip up or coverslip work)\n")
	}
	started := time.Now()
	var broken error
	err = p.DB.WaitDone(e, order, func(s coverslip.Slide) {
		if !s.State.Done() || broken != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		r := waiting[s.ID]
		r.State, r.Reason, r.Work, r.Seconds = s.State, s.Reason, "done", time.Since(started).Seconds()
		r.Message = string(s.State)
		if s.State == coverslip.Failed || s.State == coverslip.AwaitingMPP {
			failed++
			r.Message = s.Reason
		}
		if broken = c.describe(e, in, &r); broken == nil {
			broken = c.pass(e, p, in, &r)
		}
		if r.Strange {
			failed++
		}
		if broken == nil {
			broken = c.print(e, r)
		}
	})
	if err == nil {
		err = broken
	}
	return failed, err
}

func refused(path string, err error) result {
	state := coverslip.Failed
	if coverslip.KindOf(err) == coverslip.NeedsMPP {
		state = coverslip.AwaitingMPP
	}
	return result{Path: path, State: state, Kind: coverslip.KindOf(err), Reason: err.Error(), Work: "none", Message: err.Error()}
}

func (c *ingestCmd) print(e *env, r result) error {
	if e.json {
		return e.emit(r)
	}
	switch {
	case r.Slide == "":
		e.say("failed: %s\n", r.Reason)
	case r.Strange:
		e.printf("%s  %s  %s\n", r.Slide.Short(), r.Name, r.Message)
	case r.State == coverslip.Embedded && r.Work == "done":
		e.printf("%s  %s  embedded: %d tiles, %d numbers, %.1f s\n", r.Slide.Short(), r.Name, r.Tiles, r.Dim, r.Seconds)
	case r.State == coverslip.NoTissue && r.Work == "done":
		e.printf("%s  %s  no tissue was found; look at it: coverslip tiles %s --overview tissue.png\n", r.Slide.Short(), r.Name, r.Path)
	case r.State == coverslip.Failed || r.State == coverslip.AwaitingMPP:
		e.printf("%s  %s: %s\n", r.Slide.Short(), r.State, r.Message) // the message names it
	default:
		e.printf("%s  %s  %s\n", r.Slide.Short(), r.Name, r.Message)
	}
	if r.Work == "queued" && !c.Wait {
		e.printf("start workers with: coverslip up\n")
	}
	return nil
}
