// Package openslide reads the formats of slide scanners through OpenSlide 4 (https://openslide.org), in
// a process of its own for each open slide: this program again, started at another entry, which loads
// OpenSlide, gives up what it does not need, and answers requests for pixels. A file that brings
// OpenSlide down, makes it hang or eat memory takes that process with it and nothing else.
//
// Requests and answers are short messages over a socket pair; pixels lie in memory both share.
// A program that opens slides calls Main first thing. Which files are for OpenSlide, and which files
// belong to a slide, is tiler's business.
package openslide

import (
	"context"
	"errors"
	"fmt"
	"math"

	"coverslip"
)

// Description is what OpenSlide says of a slide.
type Description struct {
	Version        string  `json:"version"` // OpenSlide's
	Vendor         string  `json:"vendor"`
	Levels         []Level `json:"levels"` // the finest first
	MPPX           string  `json:"mpp_x"`  // openslide.mpp-x as it stands; empty when the slide does not say
	MPPY           string  `json:"mpp_y"`
	ObjectivePower string  `json:"objective_power"`
	Background     string  `json:"background"` // RRGGBB of what was not scanned; empty for white
}

// Level is one resolution of a slide. Downsample is OpenSlide's own, by which it places pixels.
type Level struct {
	Width      int     `json:"width"` // pixels
	Height     int     `json:"height"`
	Downsample float64 `json:"downsample"`
}

// Slide is a slide that is open in a process of its own. Its methods are safe for concurrent use,
// except Close.
type Slide struct {
	Description
	process    *process
	background [3]byte
}

// Open opens the slide at path, which consists of just these files: of the disk, the process can read
// no other, where the kernel has Landlock. A file OpenSlide does not know is Unsupported; one it cannot read, or that
// brings it down, or takes it longer than a minute, is Invalid.
func Open(ctx context.Context, path string, files []string) (*Slide, error) {
	return open(ctx, path, files, defaults)
}

func open(ctx context.Context, path string, files []string, limits limits) (*Slide, error) {
	library, err := find()
	if err != nil {
		return nil, err
	}
	p, err := start(library, path, files, limits)
	if err != nil {
		return nil, err
	}
	s := &Slide{process: p}
	if s.Description, err = p.describe(ctx); err != nil {
		p.close(false)
		return nil, err
	}
	s.background = colour(s.Background)
	go p.listen()
	return s, nil
}

// ErrEnded is behind the error of every read after the process has ended: nothing of the slide can be
// read any more. Without it, an Invalid error is of these pixels alone.
var ErrEnded = errors.New("the decode process has ended")

// ReadRegion decodes the w×h pixels of a level whose top-left is (x, y), in that level's pixels, into
// dst, [h*w*3] RGB row by row. What was not scanned gets the slide's background. The region must lie
// within the level.
func (s *Slide) ReadRegion(ctx context.Context, dst []byte, level, x, y, w, h int) error {
	if l := s.Levels[level]; x < 0 || y < 0 || w <= 0 || h <= 0 || x+w > l.Width || y+h > l.Height || len(dst) != w*h*3 {
		panic("openslide: region outside the level, or dst of another size")
	}
	// Blocks that fit in a slot.
	across := min(w, maxAcross)
	down := min(h, slotPixels/across)
	for top := 0; top < h; top += down {
		for left := 0; left < w; left += across {
			bw, bh := min(across, w-left), min(down, h-top)
			err := s.process.read(ctx, s.request(level, x+left, y+top, bw, bh), func(pixels []byte) {
				for row := range bh {
					compose(dst[((top+row)*w+left)*3:][:bw*3], pixels[row*bw*4:][:bw*4], s.background)
				}
			})
			if err != nil {
				return coverslip.Doing(fmt.Sprintf("decode pixels %d,%d to %d,%d", x, y, x+w, y+h), err)
			}
		}
	}
	return nil
}

// request asks in OpenSlide's terms: a place in pixels of level 0, a size in pixels of the level.
func (s *Slide) request(level, x, y, w, h int) request {
	down := s.Levels[level].Downsample
	return request{level: int32(level), x: int64(math.Round(float64(x) * down)), y: int64(math.Round(float64(y) * down)), w: int32(w), h: int32(h)} //nolint:gosec // within the level, whose size is bounded
}

// Close ends the process. No call may be under way.
func (s *Slide) Close() { s.process.close(true) }
