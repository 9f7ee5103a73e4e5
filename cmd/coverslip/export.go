package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"coverslip"
	"coverslip/api"
	"coverslip/encoder"
	"coverslip/internal/ingest"
	"coverslip/slidessl"
	"coverslip/storage"
	"coverslip/storage/bagfile"
	"coverslip/storage/blob"
	"coverslip/storage/interop"
	"coverslip/tiler"
)

type exportCmd struct {
	What       string `enum:"embeddings,bags" default:"embeddings" help:"What to write: embeddings, or bags (${default})."`
	Format     string `enum:",npz,csv,parquet,h5,safetensors" default:"" help:"Embeddings: npz for numpy, csv, parquet, or h5 as TRIDENT keeps slide features (npz). Bags: h5, npz or safetensors (h5)."`
	Layout     string `enum:"trident,clam,stamp" default:"trident" help:"Whose h5 files: trident, clam or stamp (${default})."`
	Out        string `short:"o" placeholder:"FILE|DIR" help:"Where to write: a file (embeddings.npz and so on; - is standard output); a folder for h5 and for bags (features)."`
	Cohort     string `placeholder:"NAME" help:"Only slides of this cohort."`
	Encoder    string `placeholder:"NAME" help:"Of this encoder (the one that ships with the product)."`
	Aggregator string `placeholder:"NAME" help:"Of this aggregator (mean)."`
	dataFlags
}

// Help is shown by coverslip export --help.
func (exportCmd) Help() string {
	return `Examples:
  coverslip export --format npz -o embeddings.npz
  python3 -c "import numpy as np; f = np.load('embeddings.npz'); print(f['embeddings'].shape, f['slides'][:3])"
  coverslip export --format parquet --cohort brca -o brca.parquet
  coverslip export --what bags --layout trident --cohort brca -o features/

The npz holds embeddings [N,D] float32, slides [N] and names [N]; rows are in the order of slide ids.
The parquet file has patient, site and labels too, where a cohort is named. Bags are one file a slide,
in the folders where the tool looks for them; docs/INTEROP.md lists what stands in them.`
}

// Run writes embeddings or bags.
func (c *exportCmd) Run(e *env) error {
	formats := map[string][]string{"embeddings": {"npz", "csv", "parquet", "h5"}, "bags": {"h5", "npz", "safetensors"}}[c.What]
	c.Format = cmp.Or(c.Format, formats[0])
	if !slices.Contains(formats, c.Format) {
		return &usageError{fmt.Sprintf("--format %s: %s are written as %v", c.Format, c.What, formats)}
	}
	if c.What == "embeddings" && c.Format == "h5" && c.Layout != string(interop.TRIDENT) {
		return &usageError{"--layout " + c.Layout + ": only trident keeps embeddings in h5"}
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	if c.Encoder == "" {
		m, _ := encoder.Default()
		c.Encoder = m.Name
	}
	c.Aggregator = cmp.Or(c.Aggregator, slidessl.Mean{}.Model().Name)
	if c.What == "bags" || c.Format == "h5" {
		return c.files(e, p)
	}
	return c.table(e, p)
}

// table writes all embeddings into one file.
func (c *exportCmd) table(e *env, p *platform) error {
	t, err := p.table(e, storage.EmbeddingFilter{Encoder: c.Encoder, Aggregator: c.Aggregator, Cohort: c.Cohort})
	if err != nil {
		return err
	}
	if len(t.Slides) == 0 {
		return c.nothing()
	}
	c.Out = cmp.Or(c.Out, "embeddings."+c.Format)
	write := writerOf(t, c.Format)
	if c.Out == "-" {
		return write(e.out)
	}
	if err := publish(c.Out, write); err != nil {
		return err
	}
	if e.json {
		return e.emit(map[string]any{"file": c.Out, "slides": len(t.Slides), "dim": t.Dim})
	}
	e.printf("%s: %d embeddings of %d numbers\n", c.Out, len(t.Slides), t.Dim)
	return nil
}

func (c *exportCmd) nothing() error { return nothingUnder(c.What, c.Encoder, c.Aggregator) }

func nothingUnder(what, encoder, aggregator string) error {
	return &coverslip.Error{Kind: coverslip.NotFound, Op: "export " + what, Err: fmt.Errorf("no slide has one under encoder %s and aggregator %s", encoder, aggregator), Hint: "coverslip slides shows where each stands"}
}

// table reads embeddings, with the members of the cohort where one is named.
func (p *platform) table(ctx context.Context, filter storage.EmbeddingFilter) (*interop.Embeddings, error) {
	t := &interop.Embeddings{}
	for n, err := range p.DB.Embeddings(ctx, filter) {
		if err != nil {
			return nil, err
		}
		t.Slides, t.Names, t.Vectors, t.Dim = append(t.Slides, n.Slide), append(t.Names, n.Name), append(t.Vectors, n.Vector...), len(n.Vector)
	}
	if filter.Cohort == "" || len(t.Slides) == 0 {
		return t, nil
	}
	members, err := p.DB.Members(ctx, filter.Cohort)
	if err != nil {
		return nil, err
	}
	of := map[coverslip.SlideID]coverslip.Member{}
	for _, m := range members {
		of[m.Slide] = m
	}
	for _, id := range t.Slides {
		t.Members = append(t.Members, of[id])
	}
	return t, nil
}

func writerOf(t *interop.Embeddings, format string) func(io.Writer) error {
	return map[string]func(io.Writer) error{"npz": t.WriteNPZ, "csv": t.WriteCSV, "parquet": t.WriteParquet}[format]
}

// exporter serves what other programs take over whole.
type exporter struct {
	p  *platform
	in *ingest.Ingest
}

// Models is api.Exporter's.
func (x exporter) Models(ctx context.Context) ([]api.ModelInfo, error) {
	lines, err := x.p.encoders(ctx)
	if err != nil {
		return nil, err
	}
	more, err := x.p.aggregators(ctx)
	if err != nil {
		return nil, err
	}
	var all []api.ModelInfo
	for _, l := range append(lines, more...) {
		all = append(all, api.ModelInfo{Model: l.Model, State: l.State})
	}
	return all, nil
}

// Embeddings is api.Exporter's.
func (x exporter) Embeddings(ctx context.Context, q api.ExportQuery) (func(io.Writer) error, error) {
	if q.Cohort != "" {
		if _, err := x.p.DB.Cohort(ctx, q.Cohort); err != nil {
			return nil, err
		}
	}
	f := storage.EmbeddingFilter{Encoder: cmp.Or(q.Encoder, x.in.Model.Name), Aggregator: cmp.Or(q.Aggregator, x.in.Aggregator.Model().Name), Cohort: q.Cohort}
	t, err := x.p.table(ctx, f)
	if err == nil && len(t.Slides) == 0 {
		err = nothingUnder("embeddings", f.Encoder, f.Aggregator)
	}
	if err != nil {
		return nil, err
	}
	return writerOf(t, q.Format), nil
}

// exported is a file of one slide, as printed with --json.
type exported struct {
	Slide  coverslip.SlideID `json:"slide"`
	Name   string            `json:"name"`
	File   string            `json:"file,omitempty"`
	Tiles  int               `json:"tiles"`
	Dim    int               `json:"dim"`
	Kind   coverslip.Kind    `json:"kind,omitempty"`
	Reason string            `json:"reason,omitempty"`
}

// files writes one file for each slide, whole or not at all.
func (c *exportCmd) files(e *env, p *platform) error {
	c.Out = cmp.Or(c.Out, "features")
	slides, err := p.DB.Slides(e, storage.SlideFilter{Cohort: c.Cohort})
	if err != nil {
		return err
	}
	taken, written, failed := map[string]string{}, 0, 0
	for _, s := range slides {
		out := exported{Slide: s.ID, Name: s.Name}
		there, err := c.file(e, p, s, taken, &out)
		switch {
		case e.Err() != nil:
			return e.Err()
		case err != nil:
			failed++
			out.Kind, out.Reason = coverslip.KindOf(err), coverslip.At(s.Name, err).Error()
		case !there:
			continue
		default:
			written++
		}
		switch {
		case e.json:
			if err := e.emit(out); err != nil {
				return err
			}
		case err != nil:
			e.printf("%s\n", out.Reason)
		}
	}
	if written+failed == 0 {
		return c.nothing()
	}
	if !e.json {
		e.printf("%s: %s of %s\n", c.Out, count(written, "file"), count(written+failed, "slide"))
	}
	if failed > 0 {
		return &someFailed{failed}
	}
	return nil
}

// file writes that of one slide; there is false where the slide has none.
func (c *exportCmd) file(e *env, p *platform, s coverslip.Slide, taken map[string]string, out *exported) (there bool, err error) {
	embedding, err := p.DB.Embedding(e, s.ID, c.Encoder, c.Aggregator)
	key, hasEmbedding := embedding.Bag, err == nil
	if coverslip.KindOf(err) == coverslip.NotFound {
		if c.What == "embeddings" {
			return false, nil
		}
		key, err = c.bagOf(e, p, s.ID)
	}
	if err != nil || key == "" {
		return false, err
	}
	file, err := p.Blobs.Open(e, ingest.BagBlob(key))
	if err != nil {
		return false, err
	}
	defer file.Close()
	bag, err := bagfile.Open(file, file.Size())
	if err != nil {
		return false, err
	}
	about := aboutBag(s, bag.Metadata())
	layout, place := interop.Layout(c.Layout), ""
	switch {
	case c.What == "embeddings":
		place = about.EmbeddingPlace(c.Aggregator)
	case c.Format == "npz":
		place = about.Place(interop.NPZ)
	case c.Format == "safetensors":
		place = about.Name + ".safetensors"
	default:
		place = about.Place(layout)
	}
	if err := blob.CheckKey(filepath.ToSlash(place)); err != nil {
		return false, &coverslip.Error{Kind: coverslip.Invalid, Op: "export", Slide: s.ID, Err: fmt.Errorf("%.80q cannot be the name of a file", place), Hint: "ingest the slide again under another name"}
	}
	if other, ok := taken[place]; ok {
		return false, &coverslip.Error{Kind: coverslip.Conflict, Op: "export", Err: fmt.Errorf("its file would be that of %s: %s", other, place), Hint: "give slides names of their own, or export them as cohorts of their own"}
	}
	taken[place] = fmt.Sprintf("slide %s (%s)", s.ID.Short(), s.Name)
	out.File, out.Tiles, out.Dim = filepath.Join(c.Out, place), bag.Len(), bag.Dim()
	if err := os.MkdirAll(filepath.Dir(out.File), 0o755); err != nil { //nolint:gosec // results for everybody, like any program's
		return false, diskError("export", out.File, err)
	}
	switch {
	case c.What == "embeddings" && hasEmbedding:
		return true, interop.WriteEmbedding(out.File, about, bag, embedding.Vector)
	case c.Format == "npz":
		return true, publish(out.File, func(w io.Writer) error { return interop.WriteBagNPZ(w, about, bag) })
	case c.Format == "safetensors":
		return true, publish(out.File, func(w io.Writer) error {
			_, err := io.Copy(w, io.NewSectionReader(file, 0, file.Size()))
			return err
		})
	}
	return true, interop.WriteBag(out.File, layout, about, bag)
}

// bagOf is the key of the longest bag of a slide that has no embedding; "" where it has none.
func (c *exportCmd) bagOf(e *env, p *platform, id coverslip.SlideID) (string, error) {
	bags, err := p.DB.Bags(e, id, c.Encoder)
	for _, b := range bags {
		if b.Views == nil {
			return b.Key, nil
		}
	}
	return "", err
}

// aboutBag joins what the bag says with what the slide's row says.
func aboutBag(s coverslip.Slide, m bagfile.Metadata) interop.About {
	a := interop.About{Metadata: m, Name: interop.Stem(s.Name), Width: s.Width, Height: s.Height, ObjectivePower: s.ObjectivePower}
	if len(s.Levels) == 0 { // a slide known by its features alone, whose name had no suffix
		a.Name = s.Name
	}
	if m.Level < len(s.Levels) && m.SlideMPP > 0 && m.MPP > 0 {
		// A level that is near enough is read as it is, so a tile covers a whole number of its pixels.
		for _, shrink := range []float64{1, 2, 4, 8} {
			if down := s.Levels[m.Level].Downsample * shrink; math.Abs(m.SlideMPP*down/m.MPP-1) <= tiler.MatchTolerance {
				a.Span = float64(m.TileSize) * down
			}
		}
	}
	return a
}

// publish writes a file under another name and renames it, so that it is never half there.
func publish(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return diskError("write", path, err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	var known *coverslip.Error
	if err != nil && !errors.As(err, &known) {
		return diskError("write", path, err)
	}
	return err
}
