package main

import (
	"archive/tar"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"coverslip"
	"coverslip/tiler"
	"coverslip/tiler/tissue"
	"coverslip/tiler/vips"
)

type tilesCmd struct {
	Slide      string   `arg:"" help:"The slide: a path, s3://bucket/key?endpoint=… or https://…"`
	MPP        mppValue `default:"0.5" help:"Resolution of the tiles, µm per pixel (${default})."`
	Size       int      `default:"256" help:"Edge of a tile in pixels (${default})."`
	Overlap    int      `default:"0" help:"Pixels that neighbouring tiles share."`
	MinTissue  float64  `default:"0.25" help:"Least share of tissue in a tile, 0 to 1 (${default}); 0 takes the whole grid."`
	MPPOfSlide mppValue `name:"mpp-of-slide" placeholder:"0.25" help:"Resolution of the slide itself, where the file does not say it."`
	SkipBad    bool     `name:"skip-bad-tiles" help:"Leave out tiles whose bytes are damaged, and list them. Without it, one fails the slide."`
	Plan       bool     `xor:"what" help:"Only list the tiles (CSV: x, y in level-0 pixels, share of tissue)."`
	Quality    bool     `help:"List with each tile its shares of glass, folds, air bubbles and ink, and its blur. Reads every tile."`
	Out        string   `xor:"what" placeholder:"DIR|FILE.tar" help:"Write the tiles into this folder, with tiles.csv (quality too) and plan.json; or into a tar file as WebDataset reads it."`
	Format     string   `enum:"png,jpg,webp" default:"png" help:"Of the tiles written: png, jpg or webp (${default})."`
	GeoJSON    string   `name:"geojson" placeholder:"FILE" help:"Write the outlines of the tissue, for QuPath."`
	Overview   string   `placeholder:"FILE" help:"Draw tissue and tiles on a picture of the slide (.png or .jpg)."`
	coordsFlags
	mppTableFlag
}

// Help is shown by coverslip tiles --help.
func (tilesCmd) Help() string {
	return `Examples:
  coverslip tiles section.svs --overview section.png    look at what would be cut
  coverslip tiles section.svs --plan > tiles.csv
  coverslip tiles section.svs --mpp 1 --size 224 --out tiles/
  coverslip tiles section.svs --coords section_patches.h5 --layout trident
  coverslip tiles section.svs --format jpg --out section.tar --geojson section.geojson
  coverslip tiles 's3://slides/section.svs?endpoint=http://127.0.0.1:7070' --plan

Of a slide in a bucket or behind HTTP only the ranges that are wanted are fetched. --quality, and --out
always, read every tile and keep its scores with the plan: docs/FORMATS.md says what they mean.`
}

// Run finds tissue, plans, and lists or writes the tiles.
func (c *tilesCmd) Run(e *env) error {
	if c.Quality && !c.Plan && c.Out == "" && !e.json {
		return &usageError{"--quality goes with --plan, --out or --json"}
	}
	suffix := strings.ToLower(filepath.Ext(c.Overview))
	if c.Overview != "" && suffix != ".png" && suffix != ".jpg" && suffix != ".jpeg" {
		return &usageError{fmt.Sprintf("--overview %s: give a name that ends in .png or .jpg", c.Overview)}
	}
	if err := c.readMPPs(); err != nil {
		return err
	}
	slide, err := tiler.Open(e, c.Slide)
	if err != nil {
		return err
	}
	defer slide.Close()
	params := coverslip.PlanParams{MPP: float64(c.MPP), Size: c.Size, Overlap: c.Overlap, MinTissue: c.MinTissue,
		MPPOfSlide: c.mppOf(c.Slide, "", c.MPPOfSlide), SkipBadTiles: c.SkipBad}
	plan, overview, err := slide.Plan(e, params, tissue.Default())
	if err != nil {
		return err
	}
	for _, t := range plan.Skipped {
		e.say("bad tile at %d,%d left out: %s\n", t.X, t.Y, t.Why)
	}
	if c.Overview != "" {
		if err := c.draw(e, slide, plan, overview, suffix); err != nil {
			return err
		}
	}
	if c.GeoJSON != "" {
		var outlines bytes.Buffer
		if err := tiler.WriteGeoJSON(&outlines, slide.Contours(overview), plan.SlideMPP.Value); err != nil {
			return err
		}
		if err := writeFile(c.GeoJSON, outlines.Bytes()); err != nil {
			return err
		}
	}
	if err := c.writeCoords(slide, plan); err != nil {
		return err
	}
	var quality []tissue.Scores
	if c.Quality && c.Out == "" {
		if quality, err = c.score(e, slide, plan); err != nil {
			return err
		}
	}
	switch {
	case strings.HasSuffix(strings.ToLower(c.Out), ".tar"):
		err = c.writeTar(e, slide, plan)
	case c.Out != "":
		err = c.write(e, slide, plan)
	case e.json:
		return e.emit(struct {
			Slide  string            `json:"slide"`
			Format string            `json:"format"`
			Width  int               `json:"width"`
			Height int               `json:"height"`
			Levels []coverslip.Level `json:"levels"`
			Tissue float64           `json:"tissue"`
			NTiles int               `json:"n_tiles"`
			coverslip.Plan
			Quality []tissue.Scores `json:"quality,omitempty"` // of each tile, in their order
		}{c.Slide, slide.Format, slide.Width, slide.Height, slide.Levels, overview.Mask.Fraction(), len(plan.Tiles), plan, quality})
	case c.Plan:
		err = writeCSV(e.out, plan, "", quality)
	}
	if err != nil || e.json {
		return err
	}
	summary := e.say
	if !c.Plan {
		summary = e.printf
	}
	summary("%s: %s, %d × %d px, %s, %s\n", tiler.Name(c.Slide), slide.Format, slide.Width, slide.Height, count(len(slide.Levels), "level"), describeMPP(plan.SlideMPP))
	summary("tissue: %.1f %% of the slide\n", 100*overview.Mask.Fraction())
	resampled := "as it is"
	if plan.Shrink != 1 {
		resampled = fmt.Sprintf("decoded at 1/%d of its size", plan.Shrink)
	}
	if plan.Scale != 1 {
		resampled = fmt.Sprintf("resampled by %.3g", plan.Scale)
	}
	summary("tiles:  %d of a grid of %d × %d, %d px at %g µm/px, from level %d %s\n", len(plan.Tiles), plan.Columns, plan.Rows, plan.Size, plan.MPP, plan.Level, resampled)
	if len(plan.Tiles) == 0 {
		summary("no tissue was found; look at --overview FILE, or lower --min-tissue\n")
	}
	written := slices.DeleteFunc([]string{c.Out, c.Overview, c.GeoJSON, c.Coords}, func(name string) bool { return name == "" })
	switch {
	case len(written) > 0:
		summary("wrote:  %s\n", strings.Join(written, ", "))
	case !c.Plan:
		summary("--plan lists them, --out DIR writes them, --overview FILE shows them\n")
	}
	return nil
}

func (c *tilesCmd) draw(e *env, slide *tiler.Slide, plan coverslip.Plan, overview *tiler.Overview, suffix string) error {
	picture, err := slide.Thumbnail(e, 2048)
	if err != nil {
		return err
	}
	overview.Draw(picture, plan)
	data, err := vips.Encode(picture.RGB, picture.Width, picture.Height, suffix)
	if err != nil {
		return err
	}
	return writeFile(c.Overview, data)
}

// write puts the tiles into a folder beside the wanted one and renames it at the end, so that a
// folder of that name is always complete.
func (c *tilesCmd) write(e *env, slide *tiler.Slide, plan coverslip.Plan) error {
	if entries, err := os.ReadDir(c.Out); err == nil && len(entries) > 0 {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "write tiles", Path: c.Out, Err: errors.New("the folder is not empty"), Hint: "remove it or name another one"}
	}
	parent := filepath.Dir(filepath.Clean(c.Out))
	if err := os.MkdirAll(parent, 0o750); err != nil {
		return diskError("write tiles", c.Out, err)
	}
	partial, err := os.MkdirTemp(parent, "."+filepath.Base(c.Out)+"-")
	if err != nil {
		return diskError("write tiles", c.Out, err)
	}
	defer os.RemoveAll(partial) //nolint:errcheck // gone after the rename
	quality := make([]tissue.Scores, len(plan.Tiles))
	err = c.encoded(e, slide, plan, func(i int, t tileFile) error {
		quality[i] = t.quality
		return writeFile(filepath.Join(partial, tileName(plan.Tiles[i], c.Format)), t.data)
	})
	if err != nil {
		return err
	}
	var table bytes.Buffer
	if err := writeCSV(&table, plan, c.Format, quality); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(struct {
		coverslip.Plan
		Quality []tissue.Scores `json:"quality"` // of each tile, in their order
	}{plan, quality}, "", " ")
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"tiles.csv": table.Bytes(), "plan.json": raw} {
		if err := writeFile(filepath.Join(partial, name), data); err != nil {
			return err
		}
	}
	if err := os.Chmod(partial, 0o755); err != nil { //nolint:gosec // a folder of pictures, readable like any other
		return diskError("write tiles", c.Out, err)
	}
	if err := os.Remove(c.Out); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskError("write tiles", c.Out, err)
	}
	if err := os.Rename(partial, c.Out); err != nil {
		return diskError("write tiles", c.Out, err)
	}
	if e.json {
		return e.emit(c.written(plan))
	}
	return nil
}

// writeTar writes the tiles in plan order, each followed by what is known of it under the same name, as
// WebDataset (https://github.com/webdataset/webdataset) reads them: to a file beside the wanted one,
// renamed at the end. Equal tiles give equal bytes.
func (c *tilesCmd) writeTar(e *env, slide *tiler.Slide, plan coverslip.Plan) error {
	const op = "write tiles"
	if _, err := os.Stat(c.Out); err == nil {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: op, Path: c.Out, Err: errors.New("the file is there already"), Hint: "remove it or name another one"}
	}
	parent := filepath.Dir(c.Out)
	if err := os.MkdirAll(parent, 0o750); err != nil {
		return diskError(op, c.Out, err)
	}
	partial, err := os.CreateTemp(parent, "."+filepath.Base(c.Out)+"-")
	if err != nil {
		return diskError(op, c.Out, err)
	}
	defer os.Remove(partial.Name()) //nolint:errcheck // gone after the rename
	defer partial.Close()
	archive := tar.NewWriter(partial)
	add := func(name string, data []byte) error {
		if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Format: tar.FormatUSTAR}); err != nil {
			return diskError(op, c.Out, err)
		}
		if _, err := archive.Write(data); err != nil {
			return diskError(op, c.Out, err)
		}
		return nil
	}
	err = c.encoded(e, slide, plan, func(i int, t tileFile) error {
		about, err := json.Marshal(struct {
			coverslip.Tile
			Quality tissue.Scores `json:"quality"`
		}{plan.Tiles[i], t.quality})
		if err != nil {
			return err
		}
		if err := add(tileName(plan.Tiles[i], c.Format), t.data); err != nil {
			return err
		}
		return add(tileName(plan.Tiles[i], "json"), about)
	})
	if err != nil {
		return err
	}
	if err := errors.Join(archive.Close(), partial.Chmod(0o644), partial.Close()); err != nil {
		return diskError(op, c.Out, err)
	}
	if err := os.Rename(partial.Name(), c.Out); err != nil {
		return diskError(op, c.Out, err)
	}
	if e.json {
		return e.emit(c.written(plan))
	}
	return nil
}

// written is what --json says of tiles in files.
func (c *tilesCmd) written(plan coverslip.Plan) any {
	return struct {
		Slide   string                  `json:"slide"`
		Out     string                  `json:"out"`
		NTiles  int                     `json:"n_tiles"`
		Skipped []coverslip.SkippedTile `json:"skipped,omitempty"`
	}{c.Slide, c.Out, len(plan.Tiles), plan.Skipped}
}

// tileFile is a tile as it is written.
type tileFile struct {
	data    []byte
	quality tissue.Scores
}

// encoded hands over each tile as it is written, in plan order.
func (c *tilesCmd) encoded(e *env, slide *tiler.Slide, plan coverslip.Plan, take func(i int, t tileFile) error) error {
	suffix := map[string]string{"png": ".png[compression=3]", "jpg": ".jpg[Q=90]", "webp": ".webp[Q=90]"}[c.Format]
	return eachTile(e, slide, plan, "writing tiles", func(pixels []byte) (tileFile, error) {
		data, err := vips.Encode(pixels, plan.Size, plan.Size, suffix)
		return tileFile{data, tissue.Quality(pixels, plan.Size, plan.Size, plan.MPP)}, err
	}, take)
}

// score returns the quality of each tile.
func (c *tilesCmd) score(e *env, slide *tiler.Slide, plan coverslip.Plan) ([]tissue.Scores, error) {
	scores := make([]tissue.Scores, len(plan.Tiles))
	err := eachTile(e, slide, plan, "looking at tiles", func(pixels []byte) (tissue.Scores, error) {
		return tissue.Quality(pixels, plan.Size, plan.Size, plan.MPP), nil
	}, func(i int, s tissue.Scores) error {
		scores[i] = s
		return nil
	})
	return scores, err
}

// eachTile reads the tiles on all cores, makes something of each, and hands that over in plan order,
// from one goroutine. Two of a core are in memory at most.
func eachTile[T any](e *env, slide *tiler.Slide, plan coverslip.Plan, what string, convert func(pixels []byte) (T, error), take func(i int, v T) error) error {
	tiles := slide.Tiles(plan)
	converted := make([]chan T, runtime.GOMAXPROCS(0))
	var taken atomic.Int64
	g, ctx := errgroup.WithContext(e.Context)
	for worker := range converted {
		converted[worker] = make(chan T)
		g.Go(func() error {
			pixels := make([]byte, plan.Size*plan.Size*3)
			for i := worker; i < len(plan.Tiles); i += len(converted) {
				if err := tiles.ReadTile(ctx, pixels, i); err != nil {
					return err
				}
				v, err := convert(pixels)
				if err != nil {
					return err
				}
				select {
				case converted[worker] <- v:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		for i := range plan.Tiles {
			select {
			case v := <-converted[i%len(converted)]:
				if err := take(i, v); err != nil {
					return err
				}
				taken.Add(1)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	return e.watch(g, what, len(plan.Tiles), &taken)
}

// watch shows the progress of a group until it is done.
func (e *env) watch(g *errgroup.Group, what string, total int, done *atomic.Int64) error {
	show := e.progress(what, total)
	finished := make(chan error, 1)
	go func() { finished <- g.Wait() }()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-finished:
			if err == nil {
				show(total)
			}
			return err
		case <-tick.C:
			if n := int(done.Load()); n > 0 {
				show(n)
			}
		}
	}
}

func tileName(t coverslip.Tile, format string) string {
	return fmt.Sprintf("%d_%d.%s", t.X, t.Y, format)
}

// writeCSV lists a plan; with a format also the name of each tile's file, with quality the scores.
func writeCSV(w io.Writer, plan coverslip.Plan, format string, quality []tissue.Scores) error {
	out := csv.NewWriter(w)
	header := []string{"x", "y", "tissue"}
	if format != "" {
		header = append(header, "file")
	}
	if quality != nil {
		header = append(header, "glass", "blur", "fold", "bubble", "green_pen", "blue_pen", "red_pen", "black_pen")
	}
	_ = out.Write(header)
	share := func(v float32) string { return strconv.FormatFloat(float64(v), 'f', 3, 32) }
	for i, t := range plan.Tiles {
		row := []string{strconv.FormatInt(t.X, 10), strconv.FormatInt(t.Y, 10), share(t.Tissue)}
		if format != "" {
			row = append(row, tileName(t, format))
		}
		if quality != nil {
			q := quality[i]
			row = append(row, share(q.Glass), share(q.Blur), share(q.Fold), share(q.Bubble), share(q.GreenPen), share(q.BluePen), share(q.RedPen), share(q.BlackPen))
		}
		_ = out.Write(row)
	}
	out.Flush()
	return out.Error()
}

func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o644); err != nil { //nolint:gosec // results for everybody, like any program's
		return diskError("write", path, err)
	}
	return nil
}

func diskError(op, path string, err error) error {
	return &coverslip.Error{Kind: coverslip.Full, Op: op, Path: path, Err: err, Hint: "check that the folder can be written and the disk has room"}
}
