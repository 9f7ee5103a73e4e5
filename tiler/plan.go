package tiler

import (
	"context"
	"fmt"
	"image"
	"math"
	"sync"

	"coverslip"
	"coverslip/tiler/tissue"
)

const (
	// MatchTolerance is how far a level's resolution may lie from the wanted one and still be read
	// without resampling. Scanners of one "20×" model range over about two percent.
	MatchTolerance = 0.02
	// maxEnlarge is how much a slide may be enlarged to reach the wanted resolution. Beyond it there
	// is no detail to encode.
	maxEnlarge = 2.0
	// maxTiles bounds a plan: 50 million tiles are a slide of 1.8 million pixels square.
	maxTiles = 50_000_000
)

// Overview is the picture tissue was found in, and the mask: mask pixel (x, y) is picture pixel (x, y).
type Overview struct {
	Picture
	Mask *tissue.Mask
}

// Plan lists the tiles of a slide that hold at least p.MinTissue of tissue. The grid starts at the
// top-left corner. A tile that reaches over the right or lower edge counts as a whole tile, and
// what is outside is white and no tissue. Without any tissue the plan is empty and err is nil.
//
// With p.SkipBadTiles every tile of the plan is read, and those that touch damaged bytes are left out
// and listed. What the damage hides from the mask is taken for tissue, so that it is listed, too.
func (s *Slide) Plan(ctx context.Context, p coverslip.PlanParams, mask tissue.Params) (coverslip.Plan, *Overview, error) {
	if err := checkParams(p); err != nil {
		return coverslip.Plan{}, nil, coverslip.At(s.Path, err)
	}
	mpp, err := s.slideMPP(p.MPPOfSlide)
	if err != nil {
		return coverslip.Plan{}, nil, coverslip.At(s.Path, err)
	}
	plan := coverslip.Plan{PlanParams: p, SlideMPP: mpp}
	if err := s.chooseLevel(&plan); err != nil {
		return plan, nil, err
	}
	overview, err := s.overview(ctx, mpp.Value, mask, p.SkipBadTiles)
	if err != nil {
		return plan, nil, err
	}
	for row := range plan.Rows {
		for column := range plan.Columns {
			x, y := math.Round(float64(column)*plan.Step), math.Round(float64(row)*plan.Step)
			share := overview.Mask.Share(x/overview.Scale, y/overview.Scale, plan.Span/overview.Scale, plan.Span/overview.Scale)
			if share >= p.MinTissue {
				plan.Tiles = append(plan.Tiles, coverslip.Tile{X: int64(x), Y: int64(y), Tissue: float32(share)})
			}
		}
	}
	plan.Found = len(plan.Tiles)
	if b := p.Budget; b != (coverslip.Budget{}) {
		plan.Tiles = Spread(plan.Tiles, b.Seed)
		if b.Tiles > 0 {
			plan.Tiles = plan.Tiles[:min(b.Tiles, plan.Found)]
		}
	}
	if p.SkipBadTiles {
		err = s.skipDamaged(ctx, &plan)
	}
	return plan, overview, err
}

func checkParams(p coverslip.PlanParams) error {
	var why error
	switch {
	case !(p.MPP >= minMPP && p.MPP <= maxMPP):
		why = fmt.Errorf("mpp %g is not from %g to %d", p.MPP, minMPP, maxMPP)
	case p.Size < 16 || p.Size > 4096:
		why = fmt.Errorf("tile size %d is not from 16 to 4096 pixels", p.Size)
	case p.Overlap < 0 || p.Overlap >= p.Size:
		why = fmt.Errorf("overlap %d is not from 0 to the tile size less one", p.Overlap)
	case !(p.MinTissue >= 0 && p.MinTissue <= 1):
		why = fmt.Errorf("least tissue %g is not from 0 to 1", p.MinTissue)
	case p.Budget.Tiles < 0:
		why = fmt.Errorf("a budget of %d tiles", p.Budget.Tiles)
	case !(p.Budget.Tolerance >= 0 && p.Budget.Tolerance < 1):
		why = fmt.Errorf("a budget's tolerance of %g is not from 0 to 1", p.Budget.Tolerance)
	default:
		return nil
	}
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "plan tiles", Err: why}
}

// chooseLevel fills in where tiles are read from: the coarsest level that is not coarser than asked
// for, so that tiles are only ever shrunk where the slide has the detail. A level that can be decoded
// smaller to just the resolution asked for counts as one of that size, behind a real one. To anything
// else it cannot: shrinking twice by unrelated factors blurs.
func (s *Slide) chooseLevel(plan *coverslip.Plan) error {
	wanted := plan.MPP / plan.SlideMPP.Value // level-0 pixels per tile pixel
	down := 1.0
	plan.Shrink = 1
	for i, l := range s.Levels {
		for shrink := 1; shrink <= s.pixels.Shrinks(i); shrink *= 2 {
			d := l.Downsample * float64(shrink)
			fits := d <= wanted*(1+MatchTolerance) && (shrink == 1 || d >= wanted*(1-MatchTolerance))
			if fits && (d > down || d == down && shrink < plan.Shrink) || i == 0 && shrink == 1 {
				plan.Level, plan.Shrink, down = i, shrink, d
			}
		}
	}
	plan.Scale = wanted / down
	if math.Abs(plan.Scale-1) <= MatchTolerance {
		plan.Scale = 1
	}
	if plan.Scale < 1/maxEnlarge {
		return &coverslip.Error{Kind: coverslip.Unsupported, Op: "plan tiles", Path: s.Path,
			Err:  fmt.Errorf("%.3g µm per pixel asked for, the slide has %.3g at best", plan.MPP, plan.SlideMPP.Value),
			Hint: fmt.Sprintf("ask for --mpp %.3g or more, or use an encoder made for that", plan.SlideMPP.Value)}
	}
	plan.Span = float64(plan.Size) * plan.Scale * down
	plan.Step = float64(plan.Size-plan.Overlap) * plan.Scale * down
	along := func(length int) int {
		return max(int(math.Ceil((float64(length)-float64(plan.Overlap)*plan.Scale*down)/plan.Step)), 1)
	}
	plan.Columns, plan.Rows = along(s.Width), along(s.Height)
	if float64(plan.Columns)*float64(plan.Rows) > maxTiles {
		return &coverslip.Error{Kind: coverslip.TooLarge, Op: "plan tiles", Path: s.Path, Err: fmt.Errorf("a grid of %d × %d tiles", plan.Columns, plan.Rows), Hint: "ask for larger tiles, a coarser mpp or less overlap"}
	}
	return nil
}

// overview reads the slide at about the mask's resolution and finds tissue. A level that has it, or is a
// little coarser, is taken as it is; otherwise a finer one is averaged down by a whole factor, so that
// the mask is much the same whatever levels a file has. Only of the largest slides a level up to twice as
// coarse is good enough.
func (s *Slide) overview(ctx context.Context, mpp float64, p tissue.Params, tolerant bool) (*Overview, error) {
	const (
		coarser = 1.25
		large   = 12e6 // pixels of a mask: tens of bytes of memory each
	)
	most := coarser * p.MPP
	if wide := p.MPP / mpp; float64(s.Width)/wide*float64(s.Height)/wide > large {
		most = 2 * p.MPP
	}
	level := 0
	for i, l := range s.Levels {
		if mpp*l.Downsample <= most {
			level = i
		}
	}
	factor := max(int(math.Ceil(p.MPP/(mpp*s.Levels[level].Downsample)-0.05)), 1)
	if factor > 8 { // to a whole number of eighths, which cost little to decode
		factor = roundUp(factor, 8)
	}
	picture, err := s.shrunk(ctx, level, factor, tolerant)
	if err != nil {
		return nil, err
	}
	return &Overview{Picture: *picture, Mask: tissue.Detect(picture.RGB, picture.Width, picture.Height, mpp*picture.Scale, p)}, nil
}

// Tiles reads the tiles of a plan.
type Tiles struct {
	slide   *Slide
	plan    coverslip.Plan
	first   sync.Once
	scratch sync.Pool // *scratch
}

type scratch struct {
	region []byte
	lines  []float32
}

// Tiles gives access to the pixels of a plan that was made for this slide. Where the slide is not on
// this machine, tiles are fetched ahead from the first that is read on, and only for the Tiles that
// began last.
func (s *Slide) Tiles(plan coverslip.Plan) *Tiles {
	return &Tiles{slide: s, plan: plan, scratch: sync.Pool{New: func() any { return new(scratch) }}}
}

// Len is the number of tiles.
func (t *Tiles) Len() int { return len(t.plan.Tiles) }

// ReadTile reads tile i of the plan into dst, [Size*Size*3] RGB row by row. It is safe for concurrent
// use; dst must not be shared.
func (t *Tiles) ReadTile(ctx context.Context, dst []byte, i int) error {
	p := &t.plan
	if len(dst) != p.Size*p.Size*3 {
		panic("tiler: dst and tile size do not match")
	}
	t.first.Do(t.announce)
	area := t.area(i)
	x0, y0, w, h := area.Min.X, area.Min.Y, area.Dx(), area.Dy()
	if p.Scale == 1 {
		return t.placed(i, t.slide.region(ctx, dst, p.Level, p.Shrink, x0, y0, w, h))
	}
	x, y := t.corner(i)
	buffers, _ := t.scratch.Get().(*scratch)
	defer t.scratch.Put(buffers)
	if cap(buffers.region) < w*h*3 {
		buffers.region = make([]byte, w*h*3)
	}
	region := buffers.region[:w*h*3]
	if err := t.slide.region(ctx, region, p.Level, p.Shrink, x0, y0, w, h); err != nil {
		return t.placed(i, err)
	}
	r := resampler{srcW: w, srcH: h,
		across: filter(p.Size, w, x-float64(x0), p.Scale), down: filter(p.Size, h, y-float64(y0), p.Scale)}
	buffers.lines = r.apply(dst, region, buffers.lines)
	return nil
}

// corner is where tile i begins, in pixels of the level as it is decoded.
func (t *Tiles) corner(i int) (x, y float64) {
	down := t.slide.Levels[t.plan.Level].Downsample * float64(t.plan.Shrink)
	return float64(t.plan.Tiles[i].X) / down, float64(t.plan.Tiles[i].Y) / down
}

// area is what has to be decoded for tile i. It may reach beyond the level.
func (t *Tiles) area(i int) image.Rectangle {
	x, y := t.corner(i)
	if t.plan.Scale == 1 {
		left, top := int(math.Round(x)), int(math.Round(y))
		return image.Rect(left, top, left+t.plan.Size, top+t.plan.Size)
	}
	span := float64(t.plan.Size) * t.plan.Scale
	return image.Rect(int(math.Floor(x)), int(math.Floor(y)), int(math.Ceil(x+span)), int(math.Ceil(y+span)))
}

// announce says that tiles will be read in the order of the plan.
func (t *Tiles) announce() { t.slide.announce(t.plan.Level, t.plan.Shrink, t.areas) }

// areas yields what has to be decoded for each tile; a row of the plan is a group.
func (t *Tiles) areas(yield func(group int, area image.Rectangle) bool) {
	row := 0
	for i, tile := range t.plan.Tiles {
		if i > 0 && tile.Y != t.plan.Tiles[i-1].Y {
			row++
		}
		if !yield(row, t.area(i)) {
			return
		}
	}
}

// placed adds to an error where the tile lies.
func (t *Tiles) placed(i int, err error) error {
	return coverslip.Doing(fmt.Sprintf("tile at %d,%d", t.plan.Tiles[i].X, t.plan.Tiles[i].Y), err)
}
