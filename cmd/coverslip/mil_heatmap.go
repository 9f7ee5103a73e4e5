package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/internal/table"
	"coverslip/mil"
	"coverslip/mil/heatmap"
	"coverslip/storage/bagfile"
	"coverslip/tiler"
)

type milHeatmapCmd struct {
	Slide    string  `required:"" placeholder:"ID" help:"The slide: its id, or the first 6 digits of it."`
	Model    string  `xor:"from" required:"" type:"existingfile" placeholder:"FILE" help:"A classifier that mil train made."`
	Values   string  `xor:"from" required:"" type:"existingfile" placeholder:"FILE" help:"Instead of a classifier a table of any tool with columns x, y and value; x and y are corners of tiles in level-0 pixels."`
	Show     string  `enum:",attention,evidence" default:"" help:"attention (where the classifier has it), or evidence for a class."`
	Class    string  `placeholder:"NAME" help:"Evidence for this class (the one that is predicted)."`
	Level    int     `default:"-1" placeholder:"N" help:"Draw on this level of the slide (a picture of at most 2048 pixels)."`
	Share    float64 `default:"0.5" help:"How much of a pixel is the map's colour, 0 to 1 (${default})."`
	Top      int     `default:"12" help:"Tiles of either end on the contact sheet (${default})."`
	TileSpan float64 `name:"span" placeholder:"PIXELS" help:"Level-0 pixels that a tile covers, where the bag does not say."`
	Out      string  `required:"" type:"path" placeholder:"DIR" help:"Where to write heatmap.png, tiles.png, tiles.csv and tiles.geojson."`
	encoderFlags
	dataFlags
}

// Help is shown by coverslip mil heatmap --help.
func (milHeatmapCmd) Help() string {
	return `Examples:
  coverslip mil heatmap --slide ed92d5 --model abmil.safetensors --out map/
  coverslip mil heatmap --slide ed92d5 --model clam-sb.safetensors --show evidence --class lobular --out map/
  coverslip mil heatmap --slide ed92d5 --values scores.csv --level 1 --out map/

  heatmap.png    the map over the slide, with a legend
  tiles.png      the tiles of the highest and the lowest values
  tiles.csv      x, y, span, value and what of it is shown
  tiles.geojson  the same for QuPath: File, Import objects

Attention is shown as the rank among the tiles of the slide: every slide has a reddest tile. Evidence
is signed, over the 99th percentile of its size. docs/EVALUATION.md says what either can tell.`
}

// Run draws the map of one slide.
func (c *milHeatmapCmd) Run(e *env) error {
	if !(c.Share >= 0 && c.Share <= 1) || c.Top < 0 {
		return &usageError{"--share is from 0 to 1, --top a number of tiles"}
	}
	if c.Values != "" && (c.Show != "" || c.Class != "") {
		return &usageError{"--show and --class go with --model"}
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	slide, err := p.findSlide(e, c.Slide)
	if err != nil {
		return err
	}
	m, says, err := c.values(e, p, slide)
	if err != nil {
		return coverslip.At(slide.Name, err)
	}
	opened, release, err := c.open(e, p, slide)
	if err != nil {
		return err
	}
	if opened != nil {
		defer release()
		defer opened.Close()
	}
	if err := c.write(e, m, opened); err != nil {
		return err
	}
	if e.json {
		return e.emit(struct {
			Slide coverslip.SlideID  `json:"slide"`
			Name  string             `json:"name"`
			Out   string             `json:"out"`
			What  string             `json:"what"`
			Tiles int                `json:"tiles"`
			P     map[string]float64 `json:"p,omitempty"`
		}{slide.ID, slide.Name, c.Out, m.What, len(m.Values), says})
	}
	e.printf("%s: %s of %s\n", slide.Name, m.What, count(len(m.Values), "tile"))
	for _, class := range slices.Sorted(maps.Keys(says)) {
		e.printf("  %s  %.3f\n", class, says[class])
	}
	if opened == nil {
		e.printf("the slide's file is not here: the map is drawn on white, and there is no sheet of tiles\n")
	}
	e.printf("wrote %s\n", filepath.Join(c.Out, "heatmap.png"))
	return nil
}

// values are those of the tiles, and what the classifier says of the slide.
func (c *milHeatmapCmd) values(e *env, p *platform, slide coverslip.Slide) (*heatmap.Map, map[string]float64, error) {
	if c.Values != "" {
		x, y, v, err := readValues(c.Values)
		if err != nil {
			return nil, nil, err
		}
		span := c.TileSpan
		if span == 0 {
			if bag, err := p.openBag(e, slide.ID, c.Encoder); err == nil {
				span = tileSpan(slide, bag.Metadata())
				_ = bag.Close() // only read
			}
		}
		m, err := heatmap.New("value", x, y, span, v, heatmap.Rank)
		return m, nil, err
	}
	model, err := mil.Load(c.Model)
	if err != nil {
		return nil, nil, err
	}
	bag, err := p.openBag(e, slide.ID, cmp.Or(model.Card.Encoder, c.Encoder))
	if err != nil {
		return nil, nil, err
	}
	defer bag.Close()
	said, err := model.Predict(e, bag, true)
	if err != nil {
		return nil, nil, err
	}
	names := model.Card.Names
	for len(names) < model.Classes {
		names = append(names, strconv.Itoa(len(names)))
	}
	says, top := map[string]float64{}, 0
	for k, v := range said.P {
		says[names[k]] = v
		if v > said.P[top] {
			top = k
		}
	}
	class := top
	if c.Class != "" {
		if class = slices.Index(names, c.Class); class < 0 {
			return nil, nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "draw the heatmap", Err: fmt.Errorf("the classifier knows no class %q", c.Class), Hint: "its classes are " + strings.Join(names, ", ")}
		}
	}
	what, values, scale, err := chosen(said, c.Show, class, names)
	if err != nil {
		return nil, nil, err
	}
	xy := make([]int64, 2*bag.Len())
	if err := bag.Coords(xy, 0, bag.Len()); err != nil {
		return nil, nil, err
	}
	x, y := make([]int64, bag.Len()), make([]int64, bag.Len())
	for i := range x {
		x[i], y[i] = xy[2*i], xy[2*i+1]
	}
	m, err := heatmap.New(what, x, y, cmp.Or(c.TileSpan, tileSpan(slide, bag.Metadata())), values, scale)
	return m, says, err
}

// chosen is one value a tile of what a classifier says.
func chosen(said mil.Prediction, show string, class int, names []string) (what string, values []float64, scale heatmap.Scale, err error) {
	column := func(v []float32, width, at int) []float64 {
		out := make([]float64, len(v)/width)
		for i := range out {
			out[i] = float64(v[i*width+at])
		}
		return out
	}
	has := func(what string, is bool) error {
		if is {
			return nil
		}
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "draw the heatmap", Err: errors.New("the classifier has no " + what), Hint: "try --show " + map[string]string{"attention": "evidence", "evidence": "attention"}[what]}
	}
	if show == "evidence" || show == "" && said.Attention == nil {
		if err := has("evidence", said.Evidence != nil); err != nil {
			return "", nil, 0, err
		}
		return "evidence for " + names[class], column(said.Evidence, len(names), class), heatmap.Signed, nil
	}
	if err := has("attention", said.Attention != nil); err != nil {
		return "", nil, 0, err
	}
	if said.Heads == len(names) {
		return "attention of " + names[class], column(said.Attention, said.Heads, class), heatmap.Rank, nil
	}
	return "attention", column(said.Attention, said.Heads, 0), heatmap.Rank, nil
}

// farthest is beyond the corner of any tile, pixels.
const farthest = 1 << 40

// readValues reads a table with columns x, y and value.
func readValues(path string) (x, y []int64, v []float64, err error) {
	f, err := table.Open(path)
	if err != nil {
		return nil, nil, nil, err
	}
	defer f.Close()
	return parseValues(f, path)
}

func parseValues(r io.Reader, path string) (x, y []int64, v []float64, err error) {
	t, err := table.Read(r, path)
	if err != nil {
		return nil, nil, nil, err
	}
	at := [3]int{}
	for i, name := range []string{"x", "y", "value"} {
		if at[i] = t.Column(name); at[i] < 0 {
			return nil, nil, nil, t.Invalid(1, fmt.Errorf("there is no column %q", name), "name the columns x, y and value in the first line")
		}
	}
	for _, line := range t.Lines {
		var cell [3]float64
		for i, c := range at {
			text := line.Cells[c]
			if t.Decimal != "" {
				text = strings.Replace(text, t.Decimal, ".", 1)
			}
			if cell[i], err = strconv.ParseFloat(text, 64); err != nil {
				return nil, nil, nil, t.Invalid(line.Number, fmt.Errorf("%.40q is no number", line.Cells[c]), "correct it, or leave the line out")
			}
			if i < 2 && !(math.Abs(cell[i]) < farthest) {
				return nil, nil, nil, t.Invalid(line.Number, fmt.Errorf("%.40q is no place on a slide", line.Cells[c]), "give level-0 pixels")
			}
		}
		x, y, v = append(x, int64(cell[0])), append(y, int64(cell[1])), append(v, cell[2])
	}
	return x, y, v, nil
}

// tileSpan is how many level-0 pixels a tile of a bag covers; 0 where nothing says it.
func tileSpan(s coverslip.Slide, m bagfile.Metadata) float64 {
	if a := aboutBag(s, m); a.Span > 0 {
		return a.Span
	}
	if mpp := cmp.Or(m.SlideMPP, s.MPP.Value); mpp > 0 {
		return float64(m.TileSize) * m.MPP / mpp
	}
	return 0
}

// storedBag is a bag with the file it is read from.
type storedBag struct {
	*bagfile.Reader
	io.Closer
}

// openBag opens the longest bag of a slide under an encoder, or is NotFound.
func (p *platform) openBag(ctx context.Context, id coverslip.SlideID, encoder string) (storedBag, error) {
	bags, err := p.DB.Bags(ctx, id, encoder)
	if err != nil {
		return storedBag{}, err
	}
	bags = slices.DeleteFunc(bags, func(b coverslip.Bag) bool { return b.Views != nil })
	if len(bags) == 0 {
		return storedBag{}, &coverslip.Error{Kind: coverslip.NotFound, Op: "open the bag", Slide: id, Err: fmt.Errorf("it has none under encoder %s", encoder), Hint: "ingest or encode it first, or name the encoder"}
	}
	file, err := p.Blobs.Open(ctx, ingest.BagBlob(bags[0].Key))
	if err != nil {
		return storedBag{}, err
	}
	r, err := bagfile.Open(file, file.Size())
	if err != nil {
		_ = file.Close() // only read
		return storedBag{}, err
	}
	return storedBag{r, file}, nil
}

// open opens the slide itself; nil where only its features are known.
func (c *milHeatmapCmd) open(e *env, p *platform, slide coverslip.Slide) (*tiler.Slide, func(), error) {
	if len(slide.Levels) == 0 {
		return nil, nil, nil
	}
	spool, err := p.spool()
	if err != nil {
		return nil, nil, err
	}
	return (&ingest.Ingest{DB: p.DB, Blobs: p.Blobs, Spool: spool, Log: e.log}).Open(e, slide)
}

// write writes all files of the map.
func (c *milHeatmapCmd) write(e *env, m *heatmap.Map, slide *tiler.Slide) error {
	if err := os.MkdirAll(c.Out, 0o755); err != nil { //nolint:gosec // results for everybody, like any program's
		return diskError("write the heatmap", c.Out, err)
	}
	picture, scale, err := c.picture(e, m, slide)
	if err != nil {
		return err
	}
	share := c.Share
	if slide == nil { // nothing is below
		share = 1
	}
	files := map[string]func(io.Writer) error{
		"heatmap.png":   func(w io.Writer) error { return png.Encode(w, m.Overlay(picture, scale, share)) },
		"tiles.csv":     m.WriteCSV,
		"tiles.geojson": m.WriteGeoJSON,
	}
	if slide != nil && c.Top > 0 {
		sheet, err := m.Sheet(m.Highest(c.Top), m.Lowest(c.Top), 128, func(i int) (image.Image, error) { return tilePicture(e, slide, m, i, 128) })
		if err != nil {
			return err
		}
		files["tiles.png"] = func(w io.Writer) error { return png.Encode(w, sheet) }
	}
	for name, write := range files {
		if err := publish(filepath.Join(c.Out, name), write); err != nil {
			return err
		}
	}
	return nil
}

const overviewEdge = 2048 // pixels of a picture where no level is asked for

// picture is the slide, or white of its size.
func (c *milHeatmapCmd) picture(e *env, m *heatmap.Map, slide *tiler.Slide) (image.Image, float64, error) {
	if slide == nil {
		if c.Level >= 0 {
			return nil, 0, &coverslip.Error{Kind: coverslip.NotFound, Op: "read the level", Err: errors.New("the slide's file is not here"), Hint: "leave out --level"}
		}
		w, h := float64(slices.Max(m.X))+m.Span, float64(slices.Max(m.Y))+m.Span
		scale := max(1, max(w, h)/overviewEdge)
		white := image.NewGray(image.Rect(0, 0, int(w/scale), int(h/scale)))
		for i := range white.Pix {
			white.Pix[i] = 255
		}
		return white, scale, nil
	}
	var p *tiler.Picture
	var err error
	if c.Level >= 0 {
		p, err = slide.Level(e, c.Level)
	} else {
		p, err = slide.Thumbnail(e, overviewEdge)
	}
	if err != nil {
		return nil, 0, err
	}
	return rgbImage(p.RGB, p.Width, p.Height), p.Scale, nil
}

// tilePicture reads a tile from the coarsest level that has as many pixels of it as are shown.
func tilePicture(ctx context.Context, slide *tiler.Slide, m *heatmap.Map, i, edge int) (image.Image, error) {
	level := 0
	for n, l := range slide.Levels {
		if m.Span/l.Downsample >= float64(edge) {
			level = n
		}
	}
	down := slide.Levels[level].Downsample
	size := max(1, int(m.Span/down+0.5))
	rgb := make([]byte, size*size*3)
	if err := slide.Region(ctx, rgb, level, int(float64(m.X[i])/down), int(float64(m.Y[i])/down), size, size); err != nil {
		return nil, err
	}
	return rgbImage(rgb, size, size), nil
}

func rgbImage(rgb []byte, w, h int) image.Image {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for i := range w * h {
		copy(img.Pix[4*i:], rgb[3*i:3*i+3])
		img.Pix[4*i+3] = 255
	}
	return img
}
