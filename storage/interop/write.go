package interop

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"

	"coverslip"
	"coverslip/storage/hdf5"
)

// Source is a bag to be written. *bagfile.Reader is one.
type Source interface {
	Len() int                                  // rows, N
	Dim() int                                  // columns, D
	Coords(dst []int64, from, n int) error     // [n,2]
	Features(dst []float32, from, n int) error // [n,D]
}

// rowsAtOnce are held in memory while a bag is copied.
const rowsAtOnce = 512

const opWrite = "write bag"

// WriteBag writes a bag to an h5 file at path, whole or not at all. WriteBagNPZ writes the other layout.
func WriteBag(path string, l Layout, about About, bag Source) error {
	meta, err := json.Marshal(about.Metadata)
	if err != nil {
		return err
	}
	return hdf5.Write(path, func(w *hdf5.Writer) error {
		if err := w.Attribute(ours, string(meta)); err != nil {
			return err
		}
		switch l {
		case CLAM:
			return writeCLAM(w, path, bag)
		case TRIDENT:
			return writeTRIDENT(w, path, about, bag)
		case STAMP:
			return writeSTAMP(w, path, about, bag)
		default:
			panic("interop: no h5 layout")
		}
	})
}

// ours is the name under which a bag's metadata stand.
const ours = "coverslip"

func writeCLAM(w *hdf5.Writer, path string, bag Source) error {
	if err := writeFeatures(w, "features", true, bag, nil); err != nil {
		return err
	}
	return writeCoords(w, true, bag, nil, func(v int64) (int32, error) {
		if v < math.MinInt32 || v > math.MaxInt32 {
			return 0, invalid(opWrite, path, fmt.Errorf("coordinate %d is too large for CLAM", v), "use another layout")
		}
		return int32(v), nil
	})
}

func writeTRIDENT(w *hdf5.Writer, path string, about About, bag Source) error {
	cut, err := tridentCut(path, about)
	if err != nil {
		return err
	}
	of := []attribute{{"name", about.Name}, {"savetodir", filepath.Dir(path)}, {"encoder", about.Encoder}}
	if err := writeFeatures(w, "features", true, bag, of); err != nil {
		return err
	}
	return writeCoords(w, true, bag, cut, func(v int64) (int64, error) { return v, nil })
}

// tridentCut is what TRIDENT's coords say of how tiles were cut.
func tridentCut(path string, a About) ([]attribute, error) {
	if a.SlideMPP <= 0 || a.MPP <= 0 || a.TileSize <= 0 {
		return nil, &coverslip.Error{Kind: coverslip.NeedsMPP, Op: "write for TRIDENT", Path: path,
			Err: errors.New("the bag does not say how large its tiles are on the slide"), Hint: "use --layout clam or --format npz"}
	}
	level0, target := a.magnifications()
	cut := []attribute{
		{"patch_size", int64(a.TileSize)}, {"patch_size_level0", int64(math.Round(a.span()))},
		{"level0_magnification", level0}, {"target_magnification", target}, {"overlap", int64(a.Overlap)},
		{"name", a.Name}, {"savetodir", filepath.Dir(path)},
	}
	if a.Width > 0 && a.Height > 0 {
		cut = append(cut, attribute{"level0_width", int64(a.Width)}, attribute{"level0_height", int64(a.Height)})
	}
	return cut, nil
}

// stampVersion is the release of STAMP whose files these are like; it refuses those of later ones than
// itself.
const stampVersion = "2.1.0"

func writeSTAMP(w *hdf5.Writer, path string, about About, bag Source) error {
	if about.SlideMPP <= 0 || about.MPP <= 0 || about.TileSize <= 0 {
		return &coverslip.Error{Kind: coverslip.NeedsMPP, Op: "write for STAMP", Path: path,
			Err: errors.New("the bag does not say how large its tiles are on the slide, and STAMP measures in µm"), Hint: "use --layout clam or --format npz"}
	}
	for _, a := range []attribute{
		{"stamp_version", stampVersion}, {"extractor", about.Encoder}, {"unit", "um"},
		{"tile_size_um", float64(about.TileSize) * about.MPP}, {"tile_size_px", int64(about.TileSize)},
		{"code_hash", "coverslip-" + about.Version}, {"feat_type", "tile"},
	} {
		if err := w.Attribute(a.name, a.value); err != nil {
			return err
		}
	}
	if err := writeFeatures(w, "feats", false, bag, nil); err != nil {
		return err
	}
	return writeCoords(w, false, bag, nil, func(v int64) (float32, error) { return float32(float64(v) * about.SlideMPP), nil })
}

// attribute of a dataset.
type attribute struct {
	name  string
	value any
}

func writeFeatures(w *hdf5.Writer, name string, grows bool, bag Source, attributes []attribute) error {
	out, err := hdf5.Create[float32](w, name, grows, bag.Len(), bag.Dim())
	if err != nil {
		return err
	}
	err = eachRows(bag, bag.Features, out.Append)
	return errors.Join(err, describe(out.Attribute, attributes), closed(err, out.Close))
}

func writeCoords[T float32 | int32 | int64](w *hdf5.Writer, grows bool, bag Source, attributes []attribute, convert func(int64) (T, error)) error {
	out, err := hdf5.Create[T](w, "coords", grows, bag.Len(), 2)
	if err != nil {
		return err
	}
	xy := make([]int64, 2*bag.Len())
	converted := make([]T, len(xy))
	err = bag.Coords(xy, 0, bag.Len())
	for i := 0; i < len(xy) && err == nil; i++ {
		converted[i], err = convert(xy[i])
	}
	if err == nil {
		err = out.Append(converted)
	}
	return errors.Join(err, describe(out.Attribute, attributes), closed(err, out.Close))
}

func describe(write func(string, any) error, attributes []attribute) error {
	for _, a := range attributes {
		if err := write(a.name, a.value); err != nil {
			return err
		}
	}
	return nil
}

// closed closes; after an error its own, that rows are missing, says nothing new.
func closed(err error, closer func() error) error {
	if e := closer(); err == nil {
		return e
	}
	return nil
}

// eachRows hands over a bag's features, some rows at a time.
func eachRows(bag Source, read func(dst []float32, from, n int) error, take func([]float32) error) error {
	rows := make([]float32, min(rowsAtOnce, bag.Len())*bag.Dim())
	for from := 0; from < bag.Len(); from += rowsAtOnce {
		n := min(rowsAtOnce, bag.Len()-from)
		part := rows[:n*bag.Dim()]
		if err := read(part, from, n); err != nil {
			return err
		}
		if err := take(part); err != nil {
			return err
		}
	}
	return nil
}

// WriteBagNPZ writes a bag as numpy reads it: features, coords, and the metadata.
func WriteBagNPZ(w io.Writer, about About, bag Source) error {
	meta, err := json.Marshal(about.Metadata)
	if err != nil {
		return err
	}
	z := newNPZ(w)
	xy := make([]int64, 2*bag.Len())
	if err := bag.Coords(xy, 0, bag.Len()); err != nil {
		return err
	}
	z.array("coords", "<i8", []int{bag.Len(), 2}, xy)
	z.begin("features", "<f4", []int{bag.Len(), bag.Dim()})
	if err := eachRows(bag, bag.Features, func(rows []float32) error { z.write(rows); return z.err }); err != nil {
		return err
	}
	z.texts(ours, nil, string(meta))
	return z.close()
}

// WriteCoords writes a plan as CLAM's or TRIDENT's patches file, for the tool to encode the same tiles.
func WriteCoords(path string, l Layout, slide coverslip.Slide, plan coverslip.Plan) error {
	about := About{Name: Stem(slide.Name), Width: slide.Width, Height: slide.Height, ObjectivePower: slide.ObjectivePower, Span: plan.Span}
	about.SlideMPP, about.MPP, about.TileSize, about.Overlap = plan.SlideMPP.Value, plan.MPP, plan.Size, plan.Overlap
	attributes, err := tridentCut(path, about)
	if l == CLAM {
		level := slide.Levels[plan.Level]
		dims := []int64{int64(level.Width), int64(level.Height)}
		attributes = []attribute{
			{"patch_size", int64(math.Round(plan.Span / level.Downsample))}, {"patch_level", int64(plan.Level)},
			{"downsample", []float64{float64(slide.Width) / float64(level.Width), float64(slide.Height) / float64(level.Height)}},
			{"downsampled_level_dim", dims}, {"level_dim", dims}, {"name", about.Name}, {"save_path", filepath.Dir(path)},
		}
	}
	if err != nil {
		return err
	}
	return hdf5.Write(path, func(w *hdf5.Writer) error {
		return writeCoords(w, true, tileList(plan.Tiles), attributes, func(v int64) (int64, error) { return v, nil })
	})
}

// tileList is the coordinates of a bag that has no features yet.
type tileList []coverslip.Tile

func (t tileList) Len() int                           { return len(t) }
func (t tileList) Dim() int                           { return 1 }
func (t tileList) Features([]float32, int, int) error { panic("interop: a plan has no features") }
func (t tileList) Coords(dst []int64, from, n int) error {
	for i, tile := range t[from : from+n] {
		dst[2*i], dst[2*i+1] = tile.X, tile.Y
	}
	return nil
}

// WriteEmbedding writes an embedding, [D], as TRIDENT keeps slide features: beside the corners of the
// tiles it stands for.
func WriteEmbedding(path string, about About, bag Source, vector []float32) error {
	cut, err := tridentCut(path, about)
	if err != nil {
		return err
	}
	return hdf5.Write(path, func(w *hdf5.Writer) error {
		out, err := hdf5.Create[float32](w, "features", true, len(vector))
		if err != nil {
			return err
		}
		err = out.Append(vector)
		err = errors.Join(err, describe(out.Attribute, []attribute{{"name", about.Name}, {"savetodir", filepath.Dir(path)}, {"encoder", about.Encoder}}), closed(err, out.Close))
		if err != nil {
			return err
		}
		return writeCoords(w, true, bag, cut, func(v int64) (int64, error) { return v, nil })
	})
}
