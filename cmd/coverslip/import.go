package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"coverslip"
	"coverslip/encoder"
	"coverslip/internal/ingest"
	"coverslip/slidessl"
	"coverslip/storage"
	"coverslip/storage/blob"
	"coverslip/storage/interop"
)

type importCmd struct {
	GDC  importGDCCmd  `cmd:"" name:"gdc" help:"Register the slides of a GDC manifest where they lie, without reading them."`
	S3   importS3Cmd   `cmd:"" name:"s3" help:"Register the slides of a bucket where they lie, without reading them."`
	CSV  importCSVCmd  `cmd:"" name:"csv" help:"Put registered slides into a cohort, with patient, site and labels from a table."`
	Bags importBagsCmd `cmd:"" help:"Bring in features that another tool computed."`
}

type importBagsCmd struct {
	Dir        string   `arg:"" type:"path" help:"Folder of the tool's feature files, one a slide; or one file."`
	Format     string   `required:"" enum:"trident,clam,stamp,npz" help:"Which tool wrote them: trident, clam, stamp (h5), or npz."`
	Cohort     string   `placeholder:"NAME" help:"Put their slides into this cohort, made if it is new. Files are taken for its slides of the same name."`
	Slides     string   `type:"path" placeholder:"DIR" help:"Folder of the slides themselves. Files are taken for the slides of the same name."`
	Encoder    string   `placeholder:"NAME" help:"Call the encoder so (what the files say)."`
	MPP        mppValue `name:"mpp" help:"Resolution of the tiles, µm per pixel, where the files do not say it."`
	Size       int      `placeholder:"N" help:"Edge of a tile in pixels, where the files do not say it."`
	Overlap    int      `placeholder:"N" help:"Pixels that neighbouring tiles share, with --mpp and --size."`
	MPPOfSlide mppValue `name:"mpp-of-slide" help:"Resolution of the slides, µm per pixel, where neither files nor slides say it."`
	Replace    bool     `help:"Replace what slides have under this encoder's name."`
	dataFlags
}

// Help is shown by coverslip import bags --help.
func (importBagsCmd) Help() string {
	return `Examples:
  coverslip import bags out/20x_256px_0px_overlap/features_uni_v2 --format trident --cohort brca --encoder uni2-h
  coverslip import bags features/h5_files --format clam --encoder resnet50 --mpp 0.5 --size 256 --slides /archive
  coverslip search --slide ed92d5a9f2e8 --encoder uni2-h

Each file becomes a bag, and its mean an embedding. Where the slide itself is neither in --slides nor in the
cohort, the bag stands for a slide of which nothing else is known. Float16 is read exactly; NaN, wrong
shapes and missing attributes are refused, file by file. Doing it twice does the work once.`
}

// imported is what one file came to, as printed with --json.
type imported struct {
	Path    string            `json:"path"`
	Slide   coverslip.SlideID `json:"slide,omitempty"`
	Name    string            `json:"name,omitempty"`
	Encoder string            `json:"encoder,omitempty"`
	State   coverslip.State   `json:"state"`
	Kind    coverslip.Kind    `json:"kind,omitempty"`
	Reason  string            `json:"reason,omitempty"`
	Work    string            `json:"work"` // "done" now, or "none": it was there already
	Tiles   int               `json:"tiles"`
	Dim     int               `json:"dim,omitempty"`
}

// Run imports file by file.
func (c *importBagsCmd) Run(e *env) error {
	if c.Size < 0 || c.Overlap < 0 || c.Size > 0 && c.Overlap >= c.Size {
		return &usageError{"--size and --overlap: a tile has at least one pixel of its own"}
	}
	if c.Encoder != "" {
		if err := checkFileName("encoder", c.Encoder); err != nil {
			return err
		}
	}
	layout := interop.Layout(c.Format)
	files, err := filesBelow(c.Dir, layout.Suffix())
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "import bags", Path: c.Dir, Err: fmt.Errorf("no %s file is there", layout.Suffix()), Hint: "name the folder of the tool's feature files"}
	}
	slides, err := slideFiles(c.Slides)
	if err != nil {
		return err
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	spool, err := p.spool()
	if err != nil {
		return err
	}
	members, err := p.members(e, c.Cohort)
	if err != nil {
		return err
	}
	in := &ingest.Ingest{DB: p.DB, Blobs: p.Blobs, Aggregator: slidessl.Mean{}, Spool: spool, Log: e.log}
	if err := p.DB.PutModel(e, in.Aggregator.Model()); err != nil {
		return err
	}
	dims, failed := map[string]int{}, 0
	for _, file := range files {
		out, err := c.one(e, in, file, layout, slides, members, dims)
		if e.Err() != nil {
			return e.Err()
		}
		r := imported{Path: file, Slide: out.Slide.ID, Name: out.Slide.Name, Encoder: out.Bag.Encoder, State: out.Slide.State, Work: "none", Tiles: out.Bag.Tiles, Dim: out.Bag.Dim}
		switch {
		case err != nil:
			failed++
			r = imported{Path: file, State: coverslip.Failed, Kind: coverslip.KindOf(err), Reason: err.Error(), Work: "none"}
		case out.Added:
			r.Work = "done"
		}
		if err := c.print(e, r); err != nil {
			return err
		}
	}
	if !e.json && len(files) > 1 {
		e.printf("%d of %d files are there, %d failed\n", len(files)-failed, len(files), failed)
	}
	if failed > 0 {
		return &someFailed{failed}
	}
	return nil
}

func (c *importBagsCmd) print(e *env, r imported) error {
	switch {
	case e.json:
		return e.emit(r)
	case r.State == coverslip.Failed:
		e.printf("%s\n", r.Reason) // it names the file
	case r.Work == "none":
		e.printf("%s: was there already, as slide %s\n", r.Path, r.Slide.Short())
	default:
		e.printf("%s: %d tiles × %d of encoder %s, slide %s\n", r.Path, r.Tiles, r.Dim, r.Encoder, r.Slide.Short())
	}
	return nil
}

func (c *importBagsCmd) one(e *env, in *ingest.Ingest, file string, layout interop.Layout, slides map[string][]string, members map[string][]coverslip.SlideID, dims map[string]int) (ingest.Imported, error) {
	im := ingest.Import{File: file, Layout: layout, Cohort: c.Cohort, Replace: c.Replace,
		Said: interop.Said{Encoder: c.Encoder, MPP: float64(c.MPP), TileSize: c.Size, Overlap: c.Overlap, SlideMPP: float64(c.MPPOfSlide)}}
	stem := strings.TrimSuffix(filepath.Base(file), layout.Suffix())
	ambiguous := func(where string, n int) error {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "import bag", Path: file, Err: fmt.Errorf("%d slides %s are called %s", n, where, stem), Hint: "give slides names of their own, or import without " + where[strings.LastIndex(where, " ")+1:]}
	}
	switch at, of := slides[stem], members[stem]; {
	case len(at) > 1:
		return ingest.Imported{}, ambiguous("in --slides", len(at))
	case len(at) == 1:
		im.SlideFile = at[0]
	case len(of) > 1:
		return ingest.Imported{}, ambiguous("in --cohort", len(of))
	case len(of) == 1:
		im.Slide = of[0]
	}
	name, err := encoderOf(file, layout, c.Encoder)
	if err != nil {
		return ingest.Imported{}, err
	}
	if _, known := dims[name]; !known {
		if dims[name], err = dimOf(e, in.DB, name); err != nil {
			return ingest.Imported{}, err
		}
	}
	im.Dim = dims[name]
	out, err := in.Import(e, im)
	if err == nil {
		dims[name] = out.Bag.Dim
	}
	return out, err
}

// encoderOf is the name of a file's encoder: the user's, or the file's own, which names a folder when
// its bag is exported.
func encoderOf(file string, layout interop.Layout, said string) (string, error) {
	if said != "" {
		return said, nil
	}
	bag, err := interop.Open(file, layout)
	if err != nil {
		return "", err
	}
	defer bag.Close()
	if bag.Metadata.Encoder == "" {
		return "", nil // Import says what is missing
	}
	return bag.Metadata.Encoder, coverslip.At(file, checkFileName("encoder", bag.Metadata.Encoder))
}

// dimOf is the length of the embeddings that are there under an encoder; 0 where there are none.
func dimOf(ctx context.Context, db *storage.DB, encoder string) (int, error) {
	if encoder == "" {
		return 0, nil
	}
	for n, err := range db.Embeddings(ctx, storage.EmbeddingFilter{Encoder: encoder, Aggregator: slidessl.Mean{}.Model().Name}) {
		return len(n.Vector), err
	}
	return 0, nil
}

// members are a cohort's slides by their names without suffix.
func (p *platform) members(ctx context.Context, cohort string) (map[string][]coverslip.SlideID, error) {
	byStem := map[string][]coverslip.SlideID{}
	if cohort == "" {
		return byStem, nil
	}
	slides, err := p.DB.Slides(ctx, storage.SlideFilter{Cohort: cohort})
	for _, s := range slides {
		stem := interop.Stem(s.Name)
		if strings.HasPrefix(s.Location, "imported:") {
			stem = s.Name // it had no suffix
		}
		byStem[stem] = append(byStem[stem], s.ID)
	}
	return byStem, err
}

// filesBelow are the files of a folder and those in it with this suffix, in order; hidden ones, and the
// plans that TRIDENT keeps beside features, left out. A file is itself.
func filesBelow(dir, suffix string) (files []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		hidden := path != dir && strings.HasPrefix(d.Name(), ".")
		switch {
		case err != nil:
			return err
		case d.IsDir() && hidden:
			return fs.SkipDir
		case !d.IsDir() && (path == dir || strings.HasSuffix(d.Name(), suffix) && !hidden && !strings.HasSuffix(d.Name(), "_patches.h5")):
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "list files", Path: dir, Err: err, Hint: "check the folder, and that it can be read"}
	}
	return files, nil
}

// slideFiles are the slides of a folder by their names without suffix.
func slideFiles(dir string) (map[string][]string, error) {
	byStem := map[string][]string{}
	if dir == "" {
		return byStem, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "list slides", Path: dir, Err: err, Hint: "check the folder, and that it can be read"}
	}
	for _, entry := range entries {
		if stem := interop.Stem(entry.Name()); !strings.HasPrefix(entry.Name(), ".") {
			byStem[stem] = append(byStem[stem], filepath.Join(dir, entry.Name()))
		}
	}
	return byStem, nil
}

// checkFileName refuses what could not be the name of a file or folder.
func checkFileName(what, name string) error {
	if err := blob.CheckKey(name); err != nil || strings.ContainsAny(name, `/\`) {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "read the name of the " + what, Path: fmt.Sprintf("%.80q", name), Err: errors.New("it cannot be the name of a file"), Hint: "use letters, digits, - and _"}
	}
	return nil
}

// finder can find what is there under an encoder's name. Features that were imported have no encoder
// here: their name is enough.
func (p *platform) finder(e *env, enc encoderFlags) (*ingest.Ingest, error) {
	in, err := p.registrar(e, enc)
	if coverslip.KindOf(err) != coverslip.NotFound {
		return in, err
	}
	dim, e2 := dimOf(e, p.DB, enc.Encoder)
	if e2 != nil || dim == 0 {
		return nil, err
	}
	m, _ := encoder.Default() // how it would cut is not asked
	return &ingest.Ingest{DB: p.DB, Blobs: p.Blobs, Model: coverslip.Model{Kind: coverslip.EncoderModel, Name: enc.Encoder, Dim: dim},
		Aggregator: slidessl.Mean{}, Plan: ingest.DefaultPlan(m.Model()), Log: e.log}, nil
}
