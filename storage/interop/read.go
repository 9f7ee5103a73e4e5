package interop

import (
	"archive/zip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"

	"coverslip"
	"coverslip/storage/bagfile"
	"coverslip/storage/hdf5"
)

// Bag is a bag in another tool's file. It is read from front to back, by one goroutine.
type Bag struct {
	Metadata      bagfile.Metadata // what the file says; zero where it does not
	Width, Height int              // of the slide, level-0 pixels; 0 where the file does not say

	path     string
	layout   Layout
	features array
	micron   *hdf5.Dataset // coordinates in µm
	pixel    array         // or in level-0 pixels
	rows     int
	dim      int
	missing  error // what the file should say of how tiles were cut, and does not
	close    []io.Closer
}

// array is a dataset of an h5 file or an array of an npz.
type array interface {
	Float32s(dst []float32, from, n int) error
	Int64s(dst []int64, from, n int) error
}

const opRead = "read bag"

// Open opens a bag that a tool wrote. Its numbers must be there: floats of any width [N,D], and as many
// coordinates; what is not is refused with the name of the dataset. That the file says how tiles were
// cut is asked for by Complete, since the user may say it instead.
func Open(path string, l Layout) (*Bag, error) {
	b := &Bag{path: path, layout: l}
	open := b.openH5
	if l == NPZ {
		open = b.openNPZ
	}
	if err := open(); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// Close lets go of the file.
func (b *Bag) Close() {
	for i := len(b.close) - 1; i >= 0; i-- {
		_ = b.close[i].Close() // only read
	}
	b.close = nil
}

// Len is the number of rows, N.
func (b *Bag) Len() int { return b.rows }

// Dim is the length of an instance, D.
func (b *Bag) Dim() int { return b.dim }

// Features reads n rows from row from on into dst, [n,D]. Float16 is converted exactly. A value that is
// not finite is Invalid, and the error says where it is.
func (b *Bag) Features(dst []float32, from, n int) error {
	if err := b.features.Float32s(dst, from, n); err != nil {
		return err
	}
	for i, v := range dst {
		if v-v != 0 {
			return invalid(opRead, b.path, fmt.Errorf("feature %d of row %d is %v", i%b.dim, from+i/b.dim, v), "compute the features of this slide again")
		}
	}
	return nil
}

// Coords reads the corners of n tiles from row from on into dst, [n,2], in level-0 pixels. After
// Complete only: µm are converted with the slide's resolution.
func (b *Bag) Coords(dst []int64, from, n int) error {
	if b.micron == nil {
		if n == 0 {
			return nil // some tools give nothing no type
		}
		if err := b.pixel.Int64s(dst, from, n); err != nil {
			return err
		}
	} else {
		um := make([]float64, len(dst))
		if err := b.micron.Float64s(um, from, n); err != nil {
			return err
		}
		for i, v := range um {
			px := math.Round(v / b.Metadata.SlideMPP)
			if !(math.Abs(px) < 1<<53) {
				return invalid(opRead, b.path, fmt.Errorf("coordinate %d of row %d is %v µm", i%2, from+i/2, v), "compute the features of this slide again")
			}
			dst[i] = int64(px)
		}
	}
	for i, v := range dst {
		if limit := int64([2]int{b.Width, b.Height}[i%2]); v < -maxOutside || limit > 0 && v >= limit {
			return invalid(opRead, b.path, fmt.Errorf("row %d is at %d,%d, outside the slide of %d × %d pixels", from+i/2, dst[i&^1], dst[i|1], b.Width, b.Height), "check that the file belongs to this slide")
		}
	}
	return nil
}

// maxOutside is how far left or above a slide a tile may begin: tools that pad let it hang over.
const maxOutside = 1 << 16

// Said is what the user says where files do not. Zero fields say nothing.
type Said struct {
	Encoder  string
	MPP      float64 // of the tiles, µm per pixel
	TileSize int     // pixels
	Overlap  int     // pixels; only where MPP and TileSize are said too
	SlideMPP float64 // of level 0, µm per pixel
}

// Complete fills in what the file does not say with what the user says. What is missing then, and what
// the two say differently, is an error with the remedy. Only the encoder's name is the user's to choose.
func (b *Bag) Complete(said Said) error {
	m := &b.Metadata
	if said.Encoder != "" {
		m.Encoder = said.Encoder
	}
	if m.Encoder == "" {
		return invalid(opRead, b.path, errors.New("it does not say which encoder made it"), "name the encoder: --encoder NAME")
	}
	if b.missing != nil {
		if said.MPP == 0 || said.TileSize == 0 {
			return b.missing
		}
		m.Overlap = said.Overlap
	}
	size, fileSize := float64(m.TileSize), float64(said.TileSize)
	err := errors.Join(b.settle("--mpp", &m.MPP, said.MPP), b.settle("--size", &size, fileSize), b.settle("--mpp-of-slide", &m.SlideMPP, said.SlideMPP))
	m.TileSize = int(size)
	if err == nil && b.micron != nil && m.SlideMPP == 0 {
		err = &coverslip.Error{Kind: coverslip.NeedsMPP, Op: opRead, Path: b.path, Err: errors.New("its coordinates are in µm, and nothing says how large a pixel of the slide is"),
			Hint: "show where the slides are: --slides DIR; or say it: --mpp-of-slide X"}
	}
	return err
}

func (b *Bag) settle(flag string, file *float64, said float64) error {
	if *file == 0 {
		*file = said
	}
	const same = 0.02 // what the tiler takes for the same resolution
	if said == 0 || math.Abs(*file/said-1) <= same {
		return nil
	}
	return invalid(opRead, b.path, fmt.Errorf("it says %.6g where %s says %g", *file, flag, said), "leave out "+flag)
}

func (b *Bag) openH5() error {
	file, err := hdf5.Open(b.path)
	if err != nil {
		return err
	}
	b.close = append(b.close, file)
	name := "features"
	if b.layout == STAMP {
		name = "feats"
	}
	features, err := file.Dataset(name)
	if err != nil {
		return err
	}
	b.close = append(b.close, features)
	coords, err := file.Dataset("coords")
	if err != nil {
		return err
	}
	b.close = append(b.close, coords)
	if features.Type == hdf5.Integer {
		return invalid(opRead, b.path, fmt.Errorf("dataset %s holds integers", name), "check which tool wrote it")
	}
	if b.layout == STAMP {
		b.micron = coords
	} else if coords.Type != hdf5.Integer && coords.Shape[0] > 0 {
		return invalid(opRead, b.path, fmt.Errorf("dataset coords is of type %s; corners in whole pixels are read", coords.Type), "check which tool wrote it; STAMP's are in µm: --format stamp")
	}
	b.features, b.pixel = features, coords
	if err := b.shapes(name, features.Shape, coords.Shape); err != nil {
		return err
	}
	if meta, err := file.Text(ours); err == nil {
		return b.parse(meta)
	} else if coverslip.KindOf(err) != coverslip.NotFound {
		return err
	}
	switch b.layout {
	case TRIDENT:
		return b.readTRIDENT(features, coords)
	case STAMP:
		return b.readSTAMP(file)
	default:
		b.missing = b.silent()
		return nil
	}
}

// silent is the layout that does not say how tiles were cut.
func (b *Bag) silent() error {
	return &coverslip.Error{Kind: coverslip.NotFound, Op: opRead, Path: b.path, Err: errors.New("it does not say how its tiles were cut"), Hint: "say it: --mpp X --size N [--overlap N]"}
}

// shapes holds the shapes against each other.
func (b *Bag) shapes(name string, features, coords []int) error {
	switch {
	case len(features) == 1:
		return invalid(opRead, b.path, fmt.Errorf("%s has shape %v: the embedding of a slide; bags of shape [N,D] are read", name, features), "import the folder of its tile features")
	case len(features) != 2 || features[1] < 1:
		return invalid(opRead, b.path, fmt.Errorf("%s has shape %v; [N,D] is read", name, features), "check which tool wrote it")
	case len(coords) < 1 || features[0] != coords[0]:
		return invalid(opRead, b.path, fmt.Errorf("%s has shape %v and coords %v: one corner for each row is read", name, features, coords), "compute the features of this slide again")
	case coords[0] > 0 && (len(coords) != 2 || coords[1] != 2):
		return invalid(opRead, b.path, fmt.Errorf("coords has shape %v; [N,2] is read", coords), "check which tool wrote it")
	}
	b.rows, b.dim = features[0], features[1]
	return nil
}

// parse reads the metadata that Coverslip wrote.
func (b *Bag) parse(text string) error {
	if err := json.Unmarshal([]byte(text), &b.Metadata); err != nil {
		return invalid(opRead, b.path, fmt.Errorf("attribute %q: %w", ours, err), "export the bag again")
	}
	if m := b.Metadata; m.MPP <= 0 || m.TileSize <= 0 || m.SlideMPP < 0 {
		b.missing = b.silent()
	}
	return nil
}

// readTRIDENT reads how tiles were cut. Magnifications are those of 10 µm per pixel, as TRIDENT has them.
func (b *Bag) readTRIDENT(features, coords *hdf5.Dataset) error {
	var size, level0, target, overlap, width, height float64
	for _, a := range []struct {
		name     string
		into     *float64
		optional bool
	}{
		{"patch_size", &size, false}, {"patch_size_level0", &level0, false}, {"target_magnification", &target, false}, {"overlap", &overlap, false},
		{"level0_width", &width, true}, {"level0_height", &height, true},
	} {
		v, err := coords.Number(a.name)
		switch {
		case err == nil && !(v >= 0 && v < 1<<31):
			return invalid(opRead, b.path, fmt.Errorf("dataset coords: attribute %q is %v", a.name, v), "write the file again")
		case coverslip.KindOf(err) == coverslip.NotFound && a.optional:
		case coverslip.KindOf(err) == coverslip.NotFound:
			if b.missing == nil {
				b.missing = rehinted(err, "write the file again with it, or say how tiles were cut: --mpp X --size N [--overlap N]")
			}
		case err != nil:
			return err
		}
		*a.into = v
	}
	b.Width, b.Height = int(width), int(height)
	m := &b.Metadata
	m.TileSize, m.Overlap = int(size), int(overlap)
	if b.missing == nil && (size < 1 || level0 < 1 || target == 0) {
		return invalid(opRead, b.path, fmt.Errorf("dataset coords: tiles of %v pixels, %v at level 0, at %v×", size, level0, target), "write the file again")
	}
	if target > 0 {
		m.MPP = 10 / target
	}
	if level0 > 0 {
		m.SlideMPP = m.MPP * size / level0
	}
	if name, err := features.Text("encoder"); err == nil {
		m.Encoder = name
	}
	return nil
}

// readSTAMP reads how tiles were cut.
func (b *Bag) readSTAMP(file *hdf5.File) error {
	if unit, err := file.Text("unit"); coverslip.KindOf(err) == coverslip.NotFound || err == nil && unit != "um" {
		return invalid(opRead, b.path, fmt.Errorf("attribute \"unit\" is %q; \"um\" is read", unit), "compute the features again with STAMP 2.1 or later")
	} else if err != nil {
		return err
	}
	if kind, err := file.Text("feat_type"); err == nil && kind != "tile" {
		return invalid(opRead, b.path, fmt.Errorf("it holds features of a %s; those of tiles are read", kind), "import the folder of its tile features")
	}
	um, err := file.Number("tile_size_um")
	px, e := file.Number("tile_size_px")
	if err = first(err, e); coverslip.KindOf(err) == coverslip.NotFound {
		b.missing = rehinted(err, "write the file again with it, or say how tiles were cut: --mpp X --size N")
	} else if err != nil {
		return err
	} else if !(um > 0 && um < 1e6 && px >= 1 && px < 1<<20) {
		return invalid(opRead, b.path, fmt.Errorf("tiles of %v µm and %v pixels", um, px), "write the file again")
	} else {
		b.Metadata.MPP, b.Metadata.TileSize = um/px, int(px)
	}
	if name, err := file.Text("extractor"); err == nil {
		b.Metadata.Encoder = name
	}
	return nil
}

func (b *Bag) openNPZ() error {
	archive, err := zip.OpenReader(b.path)
	if err != nil {
		return invalid(opRead, b.path, err, "check that it was copied whole and is an npz")
	}
	b.close = append(b.close, archive)
	arrays := map[string]*npyArray{}
	for _, f := range archive.File {
		switch f.Name {
		case "features.npy", "coords.npy", ours + ".npy":
			a, err := openNPY(b.path, f)
			if err != nil {
				return err
			}
			arrays[f.Name] = a
			b.close = append(b.close, a)
		}
	}
	features, coords := arrays["features.npy"], arrays["coords.npy"]
	if features == nil || coords == nil {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: opRead, Path: b.path, Err: errors.New("it has no arrays features and coords"), Hint: "write it with numpy.savez(file, features=…, coords=…)"}
	}
	b.features, b.pixel = features, coords
	if err := b.shapes("features", features.shape, coords.shape); err != nil {
		return err
	}
	meta := arrays[ours+".npy"]
	if meta == nil {
		b.missing = b.silent()
		return nil
	}
	text, err := meta.text()
	if err != nil {
		return err
	}
	return b.parse(text)
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// rehinted is err with another remedy.
func rehinted(err error, hint string) error {
	var e *coverslip.Error
	if !errors.As(err, &e) {
		return err
	}
	out := *e
	out.Hint = hint
	return &out
}
