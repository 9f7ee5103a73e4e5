package tiler

import (
	"context"
	"errors"
	"fmt"
	"image"
	"math"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"coverslip"
)

// skipDamaged reads every tile of a plan and takes out those whose own bytes are damaged. Any other
// failure ends it, and so does a plan of which nothing is left: that is no slide without tissue.
func (s *Slide) skipDamaged(ctx context.Context, plan *coverslip.Plan) error {
	tiles := s.Tiles(*plan)
	found := make([]error, len(plan.Tiles))
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			pixels := make([]byte, plan.Size*plan.Size*3)
			for i := next.Add(1) - 1; i < int64(len(found)); i = next.Add(1) - 1 {
				err := tiles.ReadTile(ctx, pixels, int(i))
				if err != nil && !isDamage(err) {
					return err
				}
				found[i] = err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var kept []coverslip.Tile
	for i, t := range plan.Tiles {
		if found[i] == nil {
			kept = append(kept, t)
		} else {
			plan.Skipped = append(plan.Skipped, coverslip.SkippedTile{X: t.X, Y: t.Y, Why: why(found[i])})
		}
	}
	if n := len(plan.Skipped); n > 0 && len(kept) == 0 {
		return coverslip.Doing(fmt.Sprintf("none of %d tiles is whole", n), found[0])
	}
	plan.Tiles = kept
	return nil
}

// why is an error without the name of the slide and the remedy.
func why(err error) string {
	var e *coverslip.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	return (&coverslip.Error{Op: e.Op, Err: e.Err}).Error()
}

// damage marks the cause of an error that is the fault of one tile's bytes: the tiles beside it can
// be read.
type damage struct{ error }

func (d damage) Unwrap() error { return d.error }

// damaged marks an error of decoding a tile, if it is Invalid. Others may pass, or are not its fault.
func damaged(err error) error {
	var e *coverslip.Error
	if !errors.As(err, &e) || e.Kind != coverslip.Invalid {
		return err
	}
	marked := *e
	marked.Err, marked.Hint = damage{e.Err}, "copy the file again from its source, or leave such tiles out with --skip-bad-tiles"
	return &marked
}

func isDamage(err error) bool {
	var d damage
	return errors.As(err, &d)
}

// patchwork reads a part of a level, decoded smaller, around what is damaged there, into dst,
// [h*w*3]. It reads the pieces the level is stored in one by one. For a bad one the next finer level
// is asked. Where that is damaged, too, or there is none, the piece gets the colour of tissue: what
// cannot be seen is taken for tissue, so that tiles there are planned, found bad, and listed.
func (s *Slide) patchwork(ctx context.Context, dst []byte, level, shrink int, part image.Rectangle) error {
	pieceW, pieceH := s.pixels.Grain(level)
	if pieceW == 1 { // libvips' own business
		pieceW, pieceH = 64, 64
	}
	pieceW, pieceH = max(pieceW/shrink, 1), max(pieceH/shrink, 1)
	stride := part.Dx() * 3
	buffer := make([]byte, min(pieceW, part.Dx())*min(pieceH, part.Dy())*3)
	for y := part.Min.Y / pieceH * pieceH; y < part.Max.Y; y += pieceH {
		for x := part.Min.X / pieceW * pieceW; x < part.Max.X; x += pieceW {
			piece := image.Rect(x, y, x+pieceW, y+pieceH).Intersect(part)
			w, h := piece.Dx(), piece.Dy()
			pixels := buffer[:w*h*3]
			err := s.region(ctx, pixels, level, shrink, piece.Min.X, piece.Min.Y, w, h)
			if isDamage(err) {
				err = s.fromFiner(ctx, pixels, level, shrink, piece)
			}
			if isDamage(err) {
				for i := range pixels {
					pixels[i] = eosin[i%3]
				}
				err = nil
			}
			if err != nil {
				return err
			}
			for row := range h {
				copy(dst[(piece.Min.Y-part.Min.Y+row)*stride+(piece.Min.X-part.Min.X)*3:], pixels[row*w*3:(row+1)*w*3])
			}
		}
	}
	return nil
}

var eosin = [3]byte{220, 120, 170}

// fromFiner fills dst with a piece of a level, decoded smaller, as the next finer level has it:
// each pixel the mean of those it covers. Level 0 has none finer, which is damage still.
func (s *Slide) fromFiner(ctx context.Context, dst []byte, level, shrink int, piece image.Rectangle) error {
	if level == 0 {
		return damage{errors.New("there is no finer level")}
	}
	ratio := s.Levels[level].Downsample * float64(shrink) / s.Levels[level-1].Downsample
	x0, y0 := int(float64(piece.Min.X)*ratio), int(float64(piece.Min.Y)*ratio)
	x1, y1 := int(math.Ceil(float64(piece.Max.X)*ratio)), int(math.Ceil(float64(piece.Max.Y)*ratio))
	w, h := x1-x0, y1-y0
	if w*h > 1<<24 { // more than a piece of 1024 pixels, four times as fine, which takes 50 MB
		return damage{errors.New("the next finer level is far finer")}
	}
	fine := make([]byte, w*h*3)
	if err := s.region(ctx, fine, level-1, 1, x0, y0, w, h); err != nil {
		return err
	}
	r := resampler{srcW: w, srcH: h,
		across: filter(piece.Dx(), w, float64(piece.Min.X)*ratio-float64(x0), ratio),
		down:   filter(piece.Dy(), h, float64(piece.Min.Y)*ratio-float64(y0), ratio)}
	r.apply(dst, fine, nil)
	return nil
}
