package ingest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/bagfile"
	"coverslip/storage/interop"
	"coverslip/tiler"
)

// Import is a bag that another program made.
type Import struct {
	File      string
	Layout    interop.Layout
	Said      interop.Said
	SlideFile string            // the slide's own file; "" where it is not at hand
	Slide     coverslip.SlideID // a slide that is registered; "": see SlideFile
	Cohort    string            // that the slide is put into; "" is none
	Dim       int               // that its features must have; 0 is any
	Replace   bool              // an embedding of the slide that comes from other features
}

// Imported says what came of it.
type Imported struct {
	Slide coverslip.Slide
	Bag   coverslip.Bag
	Added bool // false: all of it was there
}

// Import keeps a bag that another program made, and the embedding under this aggregator. Its slide is
// the one it is told, or the one whose file it is shown; else the file's word counts where Coverslip
// wrote it; else the slide is known by these features alone, under the SHA-256 of their file. A bag in
// which one value is not finite, or that does not fit its slide, is Invalid and leaves nothing behind.
// Other features of the slide under this encoder's name are a Conflict unless they may be replaced.
func (in *Ingest) Import(ctx context.Context, im Import) (Imported, error) {
	bag, err := interop.Open(im.File, im.Layout)
	if err != nil {
		return Imported{}, err
	}
	defer bag.Close()
	slide, err := in.slideOf(ctx, im, bag)
	if err != nil {
		return Imported{}, coverslip.At(im.File, err)
	}
	if err := fit(bag, &slide, &im); err != nil {
		return Imported{}, err
	}
	spool, err := os.CreateTemp(in.Spool, "bag-*")
	if err != nil {
		return Imported{}, diskError("make room for the bag", in.Spool, err)
	}
	defer os.Remove(spool.Name()) //nolint:errcheck // swept at the next start
	defer spool.Close()
	started := time.Now()
	out := Imported{Slide: slide}
	if out.Bag, err = copyBag(ctx, bag, slide, im.Layout, spool); err != nil {
		return out, coverslip.At(im.File, err)
	}
	out.Bag.Timings = []coverslip.StageTime{{Stage: "import", Seconds: time.Since(started).Seconds()}}
	var vector []float32
	if bag.Len() > 0 {
		if vector, err = aggregate(ctx, in.Aggregator, spool, out.Bag.Bytes); err != nil {
			return out, coverslip.At(im.File, err)
		}
	}
	err = in.keepImported(ctx, im, bag.Metadata.EncoderSHA256, &out, vector, spool)
	return out, coverslip.At(im.File, err)
}

// slideOf finds the slide that a bag belongs to: a row that is there, or one to be written.
func (in *Ingest) slideOf(ctx context.Context, im Import, bag *interop.Bag) (coverslip.Slide, error) {
	const op = "import bag"
	says := bag.Metadata.Slide
	check := func(id coverslip.SlideID) error {
		if says == "" || says == id {
			return nil
		}
		return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: fmt.Errorf("it is of slide %s, not of %s", says.Short(), id.Short()), Hint: "check the names of the files"}
	}
	if im.SlideFile != "" {
		return in.slideAt(ctx, im.SlideFile, check)
	}
	if im.Slide != "" {
		if err := check(im.Slide); err != nil {
			return coverslip.Slide{}, err
		}
		return in.DB.Slide(ctx, im.Slide)
	}
	id := says
	if id == "" {
		f, err := os.Open(im.File)
		if err != nil {
			return coverslip.Slide{}, diskError(op, im.File, err)
		}
		defer f.Close()
		if id, _, err = digest(ctx, f, nil); err != nil {
			return coverslip.Slide{}, err
		}
	}
	slide, err := in.DB.Slide(ctx, id)
	if coverslip.KindOf(err) != coverslip.NotFound {
		return slide, err
	}
	path, err := filepath.Abs(im.File)
	return coverslip.Slide{ID: id, Name: interop.Stem(im.File), Location: importedMark + path, Format: "imported from " + string(im.Layout),
		Width: bag.Width, Height: bag.Height}, err
}

// importedMark stands before the features' path where a slide is known by them alone.
const importedMark = "imported:"

// slideAt describes the slide at a path, which check may refuse by its id.
func (in *Ingest) slideAt(ctx context.Context, path string, check func(coverslip.SlideID) error) (coverslip.Slide, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return coverslip.Slide{}, err
	}
	files, err := tiler.Files(ctx, path)
	if err != nil {
		return coverslip.Slide{}, err
	}
	is, err := identify(ctx, files, nil)
	if err == nil {
		err = check(is.id)
	}
	if err != nil {
		return coverslip.Slide{}, err
	}
	slide, err := in.DB.Slide(ctx, is.id)
	if err == nil && !strings.HasPrefix(slide.Location, importedMark) || err != nil && coverslip.KindOf(err) != coverslip.NotFound {
		return slide, err
	}
	if slide, err = describe(ctx, path, files); err != nil {
		return slide, err
	}
	slide.ID, slide.Bytes, slide.Name, slide.Location = is.id, is.bytes, tiler.Name(path), path
	return slide, nil
}

// fit completes what the bag says with what the user and the slide say, and holds them together.
func fit(bag *interop.Bag, slide *coverslip.Slide, im *Import) error {
	const op = "import bag"
	if bag.Width > 0 && slide.Width > 0 && (bag.Width != slide.Width || bag.Height != slide.Height) {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: im.File, Hint: "check the names of the files",
			Err: fmt.Errorf("it is of a slide of %d × %d pixels; %s has %d × %d", bag.Width, bag.Height, slide.Name, slide.Width, slide.Height)}
	}
	if bag.Width == 0 {
		bag.Width, bag.Height = slide.Width, slide.Height
	}
	if im.Said.SlideMPP == 0 && bag.Metadata.SlideMPP == 0 {
		im.Said.SlideMPP = slide.MPP.Value
	}
	if err := bag.Complete(im.Said); err != nil {
		return err
	}
	if im.Dim > 0 && bag.Dim() != im.Dim {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: im.File, Err: fmt.Errorf("its features have %d numbers; others of encoder %s have %d", bag.Dim(), bag.Metadata.Encoder, im.Dim),
			Hint: "give each encoder a name of its own: --encoder NAME"}
	}
	return nil
}

// copyBag writes the bag as our own to out. Its key is a hash of that file.
func copyBag(ctx context.Context, bag *interop.Bag, slide coverslip.Slide, l interop.Layout, out *os.File) (coverslip.Bag, error) {
	m := bag.Metadata
	m.Slide = slide.ID
	if m.Reader == "" {
		m.Reader, m.Found = "imported from "+string(l), bag.Len()
	}
	if m.SlideMPP > 0 && m.SlideMPPSource == "" {
		m.SlideMPPSource = slide.MPP.Source
	}
	if m.Version == "" {
		m.Version = coverslip.Version
	}
	bag.Metadata = m
	sum := sha256.New()
	tiles := make([]coverslip.Tile, bag.Len())
	corners := make([]int64, 2*len(tiles))
	if err := bag.Coords(corners, 0, len(tiles)); err != nil {
		return coverslip.Bag{}, err
	}
	for i := range tiles {
		tiles[i] = coverslip.Tile{X: corners[2*i], Y: corners[2*i+1]}
	}
	w, err := bagfile.NewWriter(io.MultiWriter(out, sum), m, tiles, bag.Dim())
	if err != nil {
		return coverslip.Bag{}, err
	}
	const chunk = 512
	rows := make([]float32, min(chunk, len(tiles))*bag.Dim())
	for from := 0; from < len(tiles); from += chunk {
		if err := ctx.Err(); err != nil {
			return coverslip.Bag{}, &coverslip.Error{Kind: coverslip.Canceled, Op: "import bag", Err: err}
		}
		n := min(chunk, len(tiles)-from)
		if err := bag.Features(rows[:n*bag.Dim()], from, n); err != nil {
			return coverslip.Bag{}, err
		}
		if err := w.Append(rows[:n*bag.Dim()]); err != nil {
			return coverslip.Bag{}, err
		}
	}
	if err := w.Close(); err != nil {
		return coverslip.Bag{}, err
	}
	size, err := bagfile.Size(m, len(tiles), bag.Dim())
	return coverslip.Bag{Key: hex.EncodeToString(sum.Sum(nil)), Slide: slide.ID, Encoder: m.Encoder, Tiles: len(tiles), Dim: bag.Dim(), Bytes: size,
		Plan: coverslip.PlanParams{MPP: m.MPP, Size: m.TileSize, Overlap: m.Overlap, MinTissue: m.MinTissue}}, err
}

// keepImported publishes the bag, then writes all rows at once.
func (in *Ingest) keepImported(ctx context.Context, im Import, encoderSHA256 string, out *Imported, vector []float32, spool *os.File) error {
	bag, aggregator := out.Bag, in.Aggregator.Model().Name
	before, err := in.DB.Embedding(ctx, bag.Slide, bag.Encoder, aggregator)
	switch kind := coverslip.KindOf(err); {
	case kind != "" && kind != coverslip.NotFound:
		return err
	case kind == "" && slices.Equal(before.Vector, vector): // a bag that was exported comes home
		out.Slide, err = in.DB.Slide(ctx, bag.Slide)
		if err == nil && im.Cohort != "" {
			err = in.DB.AddToCohort(ctx, im.Cohort, coverslip.Member{Slide: bag.Slide})
		}
		return err
	case kind == "" && before.Bag != bag.Key && !im.Replace:
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "import bag", Err: fmt.Errorf("slide %s has an embedding of other features under encoder %s", bag.Slide.Short(), bag.Encoder),
			Hint: "name the encoder otherwise, or replace them: --replace"}
	}
	if _, err := in.DB.Bag(ctx, bag.Key); coverslip.KindOf(err) == coverslip.NotFound {
		if _, err := spool.Seek(0, io.SeekStart); err != nil {
			return diskError("read the bag back", spool.Name(), err)
		}
		if err := in.Blobs.Put(ctx, BagBlob(bag.Key), spool, bag.Bytes); err != nil {
			return err
		}
		out.Added = true
	} else if err != nil {
		return err
	}
	return in.DB.InTx(ctx, func(tx *storage.Tx) error {
		slide := out.Slide
		slide.State = coverslip.Embedded
		if bag.Tiles == 0 {
			slide.State = coverslip.NoTissue
		}
		var created bool
		var err error
		if out.Slide, created, err = tx.Register(ctx, slide); err != nil {
			return err
		}
		out.Added = out.Added || created
		if strings.HasPrefix(out.Slide.Location, importedMark) && !strings.HasPrefix(slide.Location, importedMark) {
			if err := tx.Describe(ctx, slide); err != nil {
				return err
			}
		}
		if err := tx.PutModel(ctx, importedModel(bag, encoderSHA256)); err != nil {
			return err
		}
		if err := tx.PutBag(ctx, bag); err != nil {
			return err
		}
		if len(vector) > 0 {
			if err := tx.PutEmbedding(ctx, coverslip.Embedding{Slide: bag.Slide, Bag: bag.Key, Encoder: bag.Encoder, Aggregator: aggregator, Vector: vector}); err != nil {
				return err
			}
		}
		if im.Cohort == "" {
			return nil
		}
		return tx.AddToCohort(ctx, im.Cohort, coverslip.Member{Slide: bag.Slide})
	})
}

// importedModel stands for an encoder of which only the name is known: the hash is that of a sentence.
func importedModel(bag coverslip.Bag, sum string) coverslip.Model {
	if sum == "" {
		of := sha256.Sum256(fmt.Appendf(nil, "imported features of %d numbers under the name %s", bag.Dim, bag.Encoder))
		sum = hex.EncodeToString(of[:])
	}
	return coverslip.Model{Kind: coverslip.EncoderModel, Name: bag.Encoder, SHA256: sum, Dim: bag.Dim, TileSize: bag.Plan.Size, TileMPP: bag.Plan.MPP,
		Source: "imported features; the encoder itself is not here"}
}
