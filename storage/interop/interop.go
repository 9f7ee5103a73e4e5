// Package interop keeps bags, plans and embeddings in the files of other tools, and reads bags they made.
//
//	clam     h5: features [N,D] float32, coords [N,2] int32
//	trident  h5: features [N,D] float32, coords [N,2] int64, with attributes that say how tiles were cut
//	stamp    h5: feats [N,D] float32, coords [N,2] float32 in µm, attributes of the file
//	npz      numpy: features [N,D] float32, coords [N,2] int64
//
// Coordinates are those of a tile's top-left corner in level-0 pixels, except in stamp. Files that are
// written carry a bag's whole metadata besides, as JSON under the name "coverslip" (an attribute of the
// file, an array of the npz), so that coming back nothing is lost. docs/INTEROP.md lists everything.
//
// Which slide a file belongs to, and where things are kept, is left to callers.
package interop

import (
	"fmt"
	"math"
	"path"
	"path/filepath"
	"strings"

	"coverslip"
	"coverslip/storage/bagfile"
)

// Layout is how a tool lays out its files.
type Layout string

// The layouts there are.
const (
	CLAM    Layout = "clam"
	TRIDENT Layout = "trident"
	STAMP   Layout = "stamp"
	NPZ     Layout = "npz"
)

// Suffix of the layout's files.
func (l Layout) Suffix() string {
	if l == NPZ {
		return ".npz"
	}
	return ".h5"
}

// Stem is a slide's name as other tools call its files: without folder and suffix, or both suffixes of
// OME-TIFF.
func Stem(name string) string {
	name = filepath.Base(name)
	lower := strings.ToLower(name)
	for _, both := range []string{".ome.tif", ".ome.tiff"} {
		if strings.HasSuffix(lower, both) && len(name) > len(both) {
			return name[:len(name)-len(both)]
		}
	}
	if stem := strings.TrimSuffix(name, path.Ext(name)); stem != "" {
		return stem
	}
	return name
}

// About is what a file says of a bag beside its numbers.
type About struct {
	bagfile.Metadata
	Name           string  // of the slide; see Stem
	Width, Height  int     // of the slide, level-0 pixels; 0 is unknown
	ObjectivePower float64 // of the slide; 0 is unknown
	Span           float64 // level-0 pixels that a tile covers; 0: what its size and the resolutions say
}

func (a About) span() float64 {
	if a.Span > 0 {
		return a.Span
	}
	return float64(a.TileSize) * a.MPP / a.SlideMPP
}

// Place is where the tool looks for the bag's file, below the folder it works in.
func (a About) Place(l Layout) string {
	file := a.Name + l.Suffix()
	switch l {
	case CLAM:
		return filepath.Join("h5_files", file)
	case TRIDENT:
		return filepath.Join(a.tridentFolder(), "features_"+a.Encoder, file)
	default:
		return file
	}
}

// EmbeddingPlace is where TRIDENT looks for the embedding's file.
func (a About) EmbeddingPlace(aggregator string) string {
	return filepath.Join(a.tridentFolder(), "slide_features_"+aggregator+"-"+a.Encoder, a.Name+TRIDENT.Suffix())
}

func (a About) tridentFolder() string {
	label := 10 / a.MPP
	if whole := math.Round(label); math.Abs(label/whole-1) <= nearlyWhole {
		label = whole
	}
	return fmt.Sprintf("%.3gx_%dpx_%dpx_overlap", label, a.TileSize, a.Overlap)
}

// nearlyWhole is how far a magnification may be from a whole number and be written as that.
const nearlyWhole = 0.01

// magnifications are those that TRIDENT derives a tile's size from: it reads
// size · level0 / target level-0 pixels. Level 0 has the magnification people call it by; the target is
// what makes the tile as large as it was cut. Whole ones are whole numbers, as TRIDENT writes them.
func (a About) magnifications() (level0, target any) {
	nominal := a.ObjectivePower
	if nominal <= 0 {
		nominal = 5 * math.Exp2(math.Round(math.Log2(10/a.SlideMPP/5)))
	}
	number := func(v, tolerance float64) any {
		if whole := math.Round(v); whole >= 1 && math.Abs(v/whole-1) <= tolerance {
			return int64(whole)
		}
		return v
	}
	return number(nominal, 0), number(nominal*float64(a.TileSize)/a.span(), nearlyWhole)
}

func invalid(op, path string, err error, hint string) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: path, Err: err, Hint: hint}
}
