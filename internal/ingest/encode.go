package ingest

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"

	"coverslip"
	"coverslip/encoder"
	"coverslip/slidessl"
	"coverslip/storage/bagfile"
	"coverslip/tiler"
)

// reading is what encode needs to know of one slide.
type reading struct {
	row      coverslip.Slide
	files    []string
	plan     coverslip.PlanParams
	within   *Region      // only tiles whose middle lies in it; nil: all
	earlier  *earlier     // features that need not be encoded; nil: none
	kept     *checkpoints // of this bag, from a process that died; nil: none are kept
	progress func(done, total int)
}

const (
	// A budget with a tolerance looks after so many tiles first: with fewer, how well the mean is
	// known is not known itself.
	leastDrawn = 64
	// mostDrawn ends it where the tolerance is never met. The standard error is then an eighth of
	// what it was at the first look.
	mostDrawn = 4096
)

// Draw says how many of n tiles a budget with a tolerance takes. look is told which tiles come next,
// from to to-1, and returns the standard error with them. Later looks are further apart; all are after
// whole batches, so that where it stops does not depend on the number of workers.
func Draw(n int, tolerance float64, look func(from, to int) (float64, error)) (int, error) {
	drawn, next := 0, min(leastDrawn, n)
	for {
		standardError, err := look(drawn, next)
		drawn = next
		if err != nil || drawn == n || standardError <= tolerance {
			return drawn, err
		}
		next = min(drawn+max(32, drawn/8/encoder.BatchSize*encoder.BatchSize), n)
	}
}

// encode is the pure part: the slide's files in, a bag file out. The plan it returns lists the tiles
// of the bag.
func (in *Ingest) encode(ctx context.Context, job reading, out io.Writer) (coverslip.Plan, []coverslip.StageTime, error) {
	clock := in.stopwatch(ctx)
	slide, err := tiler.OpenFiles(ctx, job.row.Name, job.files)
	if err != nil {
		return coverslip.Plan{}, nil, err
	}
	defer slide.Close()
	clock.lap("open")
	plan, _, err := slide.Plan(ctx, job.plan, in.Mask)
	if err != nil {
		return plan, nil, err
	}
	if job.within != nil {
		plan.Tiles = job.within.of(plan)
	}
	clock.lap("mask and plan")
	for _, t := range plan.Skipped {
		in.Log.Warn("bad tile left out", "name", job.row.Name, "x", t.X, "y", t.Y, "why", t.Why)
	}
	pass := &pass{in: in, job: job, src: func(first, n int) encoder.TileReader {
		part := plan
		part.Tiles = plan.Tiles[first : first+n]
		return slide.Tiles(part)
	}, tile: func(i int) coverslip.Tile { return plan.Tiles[i] }, n: len(plan.Tiles)}
	if plan.Budget.Tolerance > 0 {
		err = in.encodeUntilKnown(ctx, pass, slide, &plan, out)
	} else {
		err = in.encodeAll(ctx, pass, slide, plan, out)
	}
	if err != nil {
		return plan, nil, err
	}
	clock.lap("read and encode")
	return plan, append(clock.times,
		coverslip.StageTime{Stage: "read, summed over workers", Seconds: pass.spent.ReadSeconds},
		coverslip.StageTime{Stage: "encode, summed over workers", Seconds: pass.spent.EncodeSeconds}), nil
}

// encodeAll writes the bag of all tiles of the plan as it goes.
func (in *Ingest) encodeAll(ctx context.Context, pass *pass, slide *tiler.Slide, plan coverslip.Plan, out io.Writer) error {
	w, err := bagfile.NewWriter(out, in.metadata(pass.job.row, slide, plan, nil), plan.Tiles, in.Model.Dim)
	if err != nil {
		return err
	}
	pass.sink = func(_ int, features []float32) error { return w.Append(features) }
	if err := pass.resume(ctx); err != nil {
		return err
	}
	if err := pass.run(ctx, len(plan.Tiles)); err != nil {
		return err
	}
	return w.Close()
}

// encodeUntilKnown encodes tiles until the budget's tolerance is met, cuts the plan to them, and writes
// their bag. Where it stops does not depend on the number of workers.
func (in *Ingest) encodeUntilKnown(ctx context.Context, pass *pass, slide *tiler.Slide, plan *coverslip.Plan, out io.Writer) error {
	most := min(cmp.Or(plan.Budget.Tiles, mostDrawn), len(plan.Tiles))
	pass.n = most
	place := make([]int, len(plan.Tiles))
	for p, i := range tiler.AlongCurve(plan.Tiles) {
		place[i] = p
	}
	known := slidessl.NewPrecision(len(plan.Tiles), in.Model.Dim)
	var all []float32
	pass.sink = func(_ int, features []float32) error {
		all = append(all, features...)
		return nil
	}
	if err := pass.resume(ctx); err != nil {
		return err
	}
	drawn, err := Draw(most, plan.Budget.Tolerance, func(from, to int) (float64, error) {
		if err := pass.run(ctx, to); err != nil {
			return 0, err
		}
		for i := from; i < to; i++ {
			known.Add(place[i], all[i*in.Model.Dim:][:in.Model.Dim])
		}
		return known.Error(), nil
	})
	if err != nil {
		return err
	}
	plan.Tiles = plan.Tiles[:drawn]
	w, err := bagfile.NewWriter(out, in.metadata(pass.job.row, slide, *plan, nil), plan.Tiles, in.Model.Dim)
	if err != nil {
		return err
	}
	if err := w.Append(all[:drawn*in.Model.Dim]); err != nil { // of a process that died there may be more
		return err
	}
	return w.Close()
}

// pass produces the features of items 0 to n-1 in order, each once, from what is there already or by
// encoding it.
type pass struct {
	in   *Ingest
	job  reading
	n    int
	src  func(first, n int) encoder.TileReader // of items first to first+n-1, the first being 0
	tile func(i int) coverslip.Tile
	sink func(item int, features []float32) error // item and those after it

	done  int       // items produced
	chunk []float32 // of those, what is not in a checkpoint yet
	spent encoder.Timings
}

// resume takes what a process that died had produced.
func (p *pass) resume(ctx context.Context) (err error) {
	if p.job.kept == nil {
		return nil
	}
	p.done, err = p.job.kept.load(ctx, p.n, p.sink)
	p.in.Meter.counted(reuse, p.done)
	return err
}

// run goes on up to item end.
func (p *pass) run(ctx context.Context, end int) error {
	dim := p.in.Model.Dim
	first := p.done
	if end <= first {
		return nil
	}
	row := make([]float32, dim)
	var missing []int // items to encode, from first on
	for i := first; i < end; i++ {
		if !p.job.earlier.has(p.tile(i)) {
			missing = append(missing, i-first)
		}
	}
	take := func(upTo int) error { // what is there already
		for p.done < upTo {
			if err := p.job.earlier.features(row, p.tile(p.done)); err != nil {
				return err
			}
			p.in.Meter.counted(reuse, 1)
			if err := p.emit(ctx, row); err != nil {
				return err
			}
		}
		return nil
	}
	spent, err := encoder.Run(ctx, metered{p.in.Encoder, p.in.Meter}, picked{p.src(first, end-first), missing, p.in.Meter}, len(missing), p.in.Workers,
		func(k int, features []float32) error {
			for ; len(features) > 0; k, features = k+1, features[dim:] {
				if err := take(first + missing[k]); err != nil {
					return err
				}
				if err := p.emit(ctx, features[:dim]); err != nil {
					return err
				}
			}
			return nil
		}, func(int) { p.job.progress(p.done, p.n) })
	p.spent.ReadSeconds += spent.ReadSeconds
	p.spent.EncodeSeconds += spent.EncodeSeconds
	if err != nil {
		return err
	}
	err = take(end)
	p.job.progress(p.done, p.n)
	return err
}

// emit hands over the features of the next item.
func (p *pass) emit(ctx context.Context, features []float32) error {
	if err := p.sink(p.done, features); err != nil {
		return err
	}
	p.done++
	if k := p.job.kept; k != nil {
		p.chunk = append(p.chunk, features...)
		if len(p.chunk) == k.rows*k.dim {
			if err := k.save(ctx, p.done-k.rows, p.chunk); err != nil {
				return err
			}
			p.chunk = p.chunk[:0]
		}
	}
	return nil
}

// picked reads only some of a reader's tiles.
type picked struct {
	all   encoder.TileReader
	which []int
	meter *Meter
}

func (p picked) ReadTile(ctx context.Context, dst []uint8, i int) error {
	began := time.Now()
	err := p.all.ReadTile(ctx, dst, p.which[i])
	if err == nil {
		p.meter.took(read, 1, began)
	}
	return err
}

func (in *Ingest) metadata(row coverslip.Slide, slide *tiler.Slide, plan coverslip.Plan, views *coverslip.Views) bagfile.Metadata {
	m := bagfile.Metadata{Slide: row.ID, SlideMPP: plan.SlideMPP.Value, SlideMPPSource: plan.SlideMPP.Source,
		Reader: tiler.Reader + "+" + tiler.Resampler, ReaderVersion: slide.Reader,
		Level: plan.Level, MPP: plan.MPP, TileSize: plan.Size, Overlap: plan.Overlap, MinTissue: plan.MinTissue, Mask: text(in.Mask),
		Found: plan.Found, Encoder: in.Model.Name, EncoderSHA256: in.Model.SHA256, Version: coverslip.Version}
	if plan.Budget != (coverslip.Budget{}) {
		m.Budget = text(plan.Budget)
	}
	if len(plan.Skipped) > 0 {
		var corners [][2]int64
		for _, t := range plan.Skipped {
			corners = append(corners, [2]int64{t.X, t.Y})
		}
		m.Skipped = text(corners)
	}
	if views != nil {
		m.Views = text(views)
	}
	return m
}

func text(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("ingest: metadata: " + err.Error()) // plain numbers and texts always marshal
	}
	return string(raw)
}

// stopwatch measures stages that follow each other: for the bag's record, the metrics and the trace.
type stopwatch struct {
	ctx   context.Context // of the trace
	meter *Meter
	at    time.Time
	times []coverslip.StageTime
}

func (in *Ingest) stopwatch(ctx context.Context) *stopwatch {
	return &stopwatch{ctx: ctx, meter: in.Meter, at: time.Now()}
}

func (s *stopwatch) lap(stage string) {
	now := time.Now()
	s.meter.took(stage, 0, s.at)
	_, span := tracer.Start(s.ctx, stage, trace.WithTimestamp(s.at))
	span.End(trace.WithTimestamp(now))
	s.times = append(slices.Clip(s.times), coverslip.StageTime{Stage: stage, Seconds: now.Sub(s.at).Seconds()})
	s.at = now
}
