// Package view draws the views of a slide that an aggregator learns from: which tiles of a stored view,
// and where on the map they lie once it is turned, mirrored, stretched and shifted.
//
// The list is that of Lazard et al., Giga-SSL (arXiv 2212.03273), with crops of the map, lost tiles and
// small views beside it. What a tile looks like was decided before, when it was encoded under a view's
// augmentation (encoder/augment).
package view

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"coverslip"
	"coverslip/internal/nn"
)

// Place is where a tile lies, in tiles from the slide's corner.
type Place struct{ X, Y float64 }

// Batch is bags of tiles as aggregators take them.
type Batch struct {
	X    []float32 // features, [n,Dim]
	Dim  int
	At   []Place     // [n]
	Bags nn.Segments // rows of each bag
	// Means are of the slides that bags are pieces of, [bags,Dim]; nil where a bag is all there is.
	Means []float32
}

// Spec says how views are drawn.
type Spec struct {
	Tiles  int        `json:"tiles" yaml:"tiles"`   // of a view, drawn with replacement
	Rotate bool       `json:"rotate" yaml:"rotate"` // the map, by any angle
	Flip   bool       `json:"flip" yaml:"flip"`     // each axis with a chance of one half
	Scale  [2]float64 `json:"scale" yaml:"scale"`   // of each axis for itself, drawn uniformly; 0, 0 is none
	Shift  bool       `json:"shift" yaml:"shift"`   // by whole tiles, up to the map's own size
	// Crop draws the tiles out of a square that covers this share of the map's width and height, around a
	// tile; 0 is the whole map.
	Crop float64 `json:"crop,omitempty" yaml:"crop,omitempty"`
	// Drop leaves out each tile with this probability, but never the last.
	Drop float64 `json:"drop,omitempty" yaml:"drop,omitempty"`
	// Pieces leaves out whole pieces of tissue, tiles that touch, each with this probability; one always stays. It is what
	// background is on the map: other pieces of the glass may be another organ, or a control.
	Pieces float64 `json:"pieces,omitempty" yaml:"pieces,omitempty"`
	// Small views beside the two large ones, for multi-crop (Caron et al., SwAV, arXiv 2006.09882): how
	// many, of how many tiles, out of a square of this share of the map.
	Small      int     `json:"small,omitempty" yaml:"small,omitempty"`
	SmallTiles int     `json:"small_tiles,omitempty" yaml:"small_tiles,omitempty"`
	SmallCrop  float64 `json:"small_crop,omitempty" yaml:"small_crop,omitempty"`
	// Plain tiles stand for the stored views: no augmentation of pixels.
	Plain bool `json:"plain,omitempty" yaml:"plain,omitempty"`
}

// Default is Giga-SSL's: five tiles, every change of the map.
func Default() Spec {
	return Spec{Tiles: 5, Rotate: true, Flip: true, Scale: [2]float64{0.7, 1.3}, Shift: true}
}

// Views is how many views of a slide a step shows, the two large ones first.
func (s Spec) Views() int { return 2 + s.Small }

// Check says what is wrong with a specification.
func (s Spec) Check() error {
	bad := func(why string, args ...any) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "read how views are drawn", Err: fmt.Errorf(why, args...), Hint: "docs/PRETRAIN.md lists the settings"}
	}
	switch {
	case s.Tiles < 1 || s.Tiles > 100_000:
		return bad("%d tiles a view", s.Tiles)
	case s.Scale != [2]float64{} && !(s.Scale[0] > 0 && s.Scale[0] <= s.Scale[1] && s.Scale[1] <= 100):
		return bad("the map is stretched by %g to %g", s.Scale[0], s.Scale[1])
	case !(s.Crop >= 0 && s.Crop <= 1) || !(s.SmallCrop >= 0 && s.SmallCrop <= 1):
		return bad("a crop of more than the map, or less than nothing")
	case !(s.Pieces >= 0 && s.Pieces < 1):
		return bad("pieces are left out with probability %g", s.Pieces)
	case !(s.Drop >= 0 && s.Drop < 1):
		return bad("tiles are dropped with probability %g", s.Drop)
	case s.Small < 0 || s.Small > 64 || s.Small > 0 && s.SmallTiles < 1:
		return bad("%d small views of %d tiles", s.Small, s.SmallTiles)
	}
	return nil
}

// ErrEmpty says that a slide has no tile to draw.
var ErrEmpty = errors.New("the slide has no tiles")

// Draw draws view number n (0 and 1 are large) of a slide whose tiles lie at places: which tiles, and
// where they come to lie. Equal rng give equal views.
func (s Spec) Draw(rng *rand.Rand, n int, places []Place) (tiles []int, at []Place, err error) {
	if len(places) == 0 {
		return nil, nil, ErrEmpty
	}
	count, crop := s.Tiles, s.Crop
	if n >= 2 {
		count, crop = s.SmallTiles, s.SmallCrop
	}
	from := s.pieces(rng, places)
	from = s.inside(rng, places, from, crop)
	for range count {
		i := rng.IntN(len(places))
		if from != nil {
			i = from[rng.IntN(len(from))]
		}
		tiles = append(tiles, i)
	}
	if s.Drop > 0 {
		kept := tiles[:0:0]
		for i, t := range tiles {
			if rng.Float64() >= s.Drop || len(kept) == 0 && i == len(tiles)-1 {
				kept = append(kept, t)
			}
		}
		tiles = kept
	}
	m := s.turn(rng)
	var shift Place
	if s.Shift {
		low, high := bounds(places)
		shift = Place{float64(rng.IntN(max(int(high.X-low.X), 1))), float64(rng.IntN(max(int(high.Y-low.Y), 1)))}
	}
	for _, t := range tiles {
		x, y := places[t].X-shift.X, places[t].Y-shift.Y
		at = append(at, Place{x*m[0] + y*m[2], x*m[1] + y*m[3]})
	}
	return tiles, at, nil
}

// pieces lists the tiles of the pieces of tissue that stay, or is nil where all do.
func (s Spec) pieces(rng *rand.Rand, places []Place) []int {
	if s.Pieces == 0 {
		return nil
	}
	piece, n := Pieces(places)
	stays := make([]bool, n)
	left := n
	for i := range stays {
		if stays[i] = rng.Float64() >= s.Pieces; !stays[i] {
			left--
		}
	}
	if left == 0 {
		stays[piece[rng.IntN(len(places))]] = true // larger ones more often
	}
	var in []int
	for i, p := range piece {
		if stays[p] {
			in = append(in, i)
		}
	}
	return in
}

// Pieces says which piece of tissue each tile belongs to, from 0 to n-1 in the order of their first tiles. Tiles touch that
// are at most a tile and a half apart on either axis.
func Pieces(places []Place) (piece []int, n int) {
	const apart = 1.5
	cells := map[[2]int][]int{}
	cell := func(p Place) [2]int { return [2]int{int(math.Floor(p.X / apart)), int(math.Floor(p.Y / apart))} }
	piece = make([]int, len(places))
	for i, p := range places {
		piece[i] = -1
		cells[cell(p)] = append(cells[cell(p)], i)
	}
	var next []int
	for i := range places {
		if piece[i] >= 0 {
			continue
		}
		piece[i] = n
		for next = append(next, i); len(next) > 0; {
			at := places[next[len(next)-1]]
			next = next[:len(next)-1]
			c := cell(at)
			for dy := -1; dy <= 1; dy++ {
				for dx := -1; dx <= 1; dx++ {
					for _, k := range cells[[2]int{c[0] + dx, c[1] + dy}] {
						if piece[k] < 0 && math.Abs(places[k].X-at.X) <= apart && math.Abs(places[k].Y-at.Y) <= apart {
							piece[k] = n
							next = append(next, k)
						}
					}
				}
			}
		}
		n++
	}
	return piece, n
}

// inside lists those of the tiles from, nil being all, within a random square, or is from where all are.
func (s Spec) inside(rng *rand.Rand, places []Place, from []int, crop float64) []int {
	if crop == 0 || crop == 1 {
		return from
	}
	low, high := bounds(places)
	w, h := (high.X-low.X+1)*crop/2, (high.Y-low.Y+1)*crop/2
	var centre Place
	if from == nil {
		centre = places[rng.IntN(len(places))]
	} else {
		centre = places[from[rng.IntN(len(from))]]
	}
	near := func(i int) bool {
		return math.Abs(places[i].X-centre.X) <= w && math.Abs(places[i].Y-centre.Y) <= h
	}
	var in []int
	if from == nil {
		for i := range places {
			if near(i) {
				in = append(in, i)
			}
		}
		return in
	}
	for _, i := range from {
		if near(i) {
			in = append(in, i)
		}
	}
	return in
}

// Quarters turns places in place by k quarters about the corner of the map.
func Quarters(at []Place, k int) {
	for i, p := range at {
		for range k {
			p = Place{-p.Y, p.X}
		}
		at[i] = p
	}
}

// turn is the matrix that places, as rows, are multiplied with: rotation, then flips, then scales.
func (s Spec) turn(rng *rand.Rand) [4]float64 {
	m := [4]float64{1, 0, 0, 1}
	if s.Rotate {
		sin, cos := math.Sincos(2 * math.Pi * rng.Float64())
		m = [4]float64{cos, -sin, sin, cos}
	}
	for axis := range 2 {
		by := 1.0
		if s.Flip && rng.IntN(2) == 0 {
			by = -1
		}
		if s.Scale != [2]float64{} {
			by *= s.Scale[0] + (s.Scale[1]-s.Scale[0])*rng.Float64()
		}
		m[axis] *= by
		m[2+axis] *= by
	}
	return m
}

func bounds(places []Place) (low, high Place) {
	low, high = places[0], places[0]
	for _, p := range places {
		low = Place{min(low.X, p.X), min(low.Y, p.Y)}
		high = Place{max(high.X, p.X), max(high.Y, p.Y)}
	}
	return low, high
}

// Places are where tiles lie, in tiles: their corners in level-0 pixels over the pitch. Tiles off the grid
// keep their fractions.
func Places(corners []int64, pitch float64) []Place {
	places := make([]Place, len(corners)/2)
	for i := range places {
		places[i] = Place{float64(corners[2*i]) / pitch, float64(corners[2*i+1]) / pitch}
	}
	return places
}

// Pitch guesses the distance of neighbouring tiles from their corners, in level-0 pixels, where nobody
// wrote it down: the least distance along an axis that is not zero. One tile has a pitch of 1.
func Pitch(corners []int64) float64 {
	least := int64(math.MaxInt64)
	for axis := range 2 {
		var v []int64
		for i := axis; i < len(corners); i += 2 {
			v = append(v, corners[i])
		}
		slices.Sort(v)
		for i := 1; i < len(v); i++ {
			if d := v[i] - v[i-1]; d > 0 {
				least = min(least, d)
			}
		}
	}
	if least == math.MaxInt64 {
		return 1
	}
	return float64(least)
}
