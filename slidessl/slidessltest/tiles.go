package slidessltest

import (
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/jpeg" // tiles are stored as JPEG or PNG
	_ "image/png"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"coverslip"
	"coverslip/encoder"
	"coverslip/encoder/augment"
	"coverslip/internal/nn"
)

// Tile is one picture of a set.
type Tile struct {
	File  string
	Group string // the patient, or the class where a set has no patients
	X, Y  int    // of the top left corner, in pixels of the set; 0 where a set has no places
	Class string
}

// IDC lists the tiles of a folder of patients, <patient>/x<X>_y<Y>_class<0|1>.png, by patient and place.
func IDC(dir string) ([]Tile, error) {
	return list(dir, []string{"png"}, func(file string, t *Tile) error {
		m := idcName.FindStringSubmatch(filepath.Base(file))
		if m == nil {
			return errors.New("its name is not x<X>_y<Y>_class<0|1>.png")
		}
		t.X, _ = strconv.Atoi(m[1])
		t.Y, _ = strconv.Atoi(m[2])
		t.Class = m[3]
		return nil
	})
}

var idcName = regexp.MustCompile(`^x(\d{1,6})_y(\d{1,6})_class([01])\.png$`)

// Classes lists the tiles of a folder of classes, <class>/*.jpg, *.jpeg or *.png.
func Classes(dir string) ([]Tile, error) {
	return list(dir, []string{"jpg", "jpeg", "png"}, func(_ string, t *Tile) error { t.Class = t.Group; return nil })
}

func list(dir string, endings []string, read func(string, *Tile) error) ([]Tile, error) {
	var files []string
	for _, e := range endings {
		found, err := filepath.Glob(filepath.Join(dir, "*", "*."+e))
		if err != nil {
			return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "list tiles", Path: dir, Err: err}
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "list tiles", Path: dir, Err: errors.New("it has no folders of pictures"), Hint: "name the folder that holds them"}
	}
	slices.Sort(files)
	tiles := make([]Tile, len(files))
	for i, file := range files {
		tiles[i] = Tile{File: file, Group: filepath.Base(filepath.Dir(file))}
		if err := read(file, &tiles[i]); err != nil {
			return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "list tiles", Path: file, Err: err}
		}
	}
	return tiles, nil
}

// Encoded are the features of tiles: of each as it is, and in each of V augmented views.
type Encoded struct {
	Tiles, Dim int
	Views      [][]float32 // [1+V][Tiles·Dim]; the first is the tiles as they are
}

// Row is tile i in a view.
func (e *Encoded) Row(view, i int) []float32 { return e.Views[view][i*e.Dim : (i+1)*e.Dim] }

// Encode runs an encoder over tiles as they are and over views of them, brought to the encoder's size.
// group tells which tiles share a view's parameters: those of one slide. Before everything else look
// changes a tile's pixels where it is not nil. What was encoded before under the same name in the folder
// cache is read from there.
func Encode(ctx context.Context, enc encoder.Encoder, tiles []Tile, spec augment.Spec, views int, look func(tile int, pixels []uint8), cache, name string, progress func(done, total int)) (*Encoded, error) {
	path := filepath.Join(cache, fmt.Sprintf("%s-%s-%d.safetensors", name, enc.Model().Name, views))
	dim := enc.Model().Dim
	if f, err := nn.Load(path); err == nil && len(f.Params) == 1+views {
		e := &Encoded{Tiles: len(tiles), Dim: dim}
		for v := range 1 + views {
			p := f.Params["view "+strconv.Itoa(v)]
			if p == nil || p.Rows != len(tiles) || p.Cols != dim {
				return nil, &coverslip.Error{Kind: coverslip.Conflict, Op: "read features encoded before", Path: path, Err: errors.New("they are of other tiles"), Hint: "remove the file"}
			}
			e.Views = append(e.Views, p.Value)
		}
		return e, nil
	}
	groups := map[string]int{}
	for _, t := range tiles {
		if _, there := groups[t.Group]; !there {
			groups[t.Group] = len(groups)
		}
	}
	size := enc.Model().TileSize
	src := reader(func(ctx context.Context, dst []uint8, i int) error {
		tile, view := i/(1+views), i%(1+views)
		pixels, edge, err := Decode(tiles[tile].File)
		if err != nil {
			return err
		}
		if look != nil {
			look(tile, pixels)
		}
		v := augment.Spec{}.Draw(0, 0)
		if view > 0 {
			v = spec.Draw(uint64(groups[tiles[tile].Group]), view) //nolint:gosec // a small number
		}
		v.Apply(dst, size, augment.Tile{Pixels: pixels, Size: edge, Index: uint64(i)}, augment.Slide{}, new(augment.Scratch)) //nolint:gosec // the same
		return nil
	})
	e := &Encoded{Tiles: len(tiles), Dim: dim}
	params := make([]*nn.Param, 1+views)
	for v := range params {
		params[v] = nn.NewParam("view "+strconv.Itoa(v), len(tiles), dim)
		e.Views = append(e.Views, params[v].Value)
	}
	n := len(tiles) * (1 + views)
	_, err := encoder.Run(ctx, enc, src, n, 0, func(first int, features []float32) error {
		for i := range len(features) / dim {
			copy(e.Row((first+i)%(1+views), (first+i)/(1+views)), features[i*dim:(i+1)*dim])
		}
		return nil
	}, func(done int) {
		if progress != nil {
			progress(done, n)
		}
	})
	if err != nil {
		return nil, err
	}
	return e, nn.Save(path, params, map[string]string{"encoder": enc.Model().SHA256, "augment": spec.String()})
}

type reader func(ctx context.Context, dst []uint8, i int) error

func (r reader) ReadTile(ctx context.Context, dst []uint8, i int) error { return r(ctx, dst, i) }

// Decode reads a picture as RGB, cut to a square of its shorter edge.
func Decode(file string) ([]uint8, int, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	img, _, err := image.Decode(f)
	if err != nil {
		return nil, 0, &coverslip.Error{Kind: coverslip.Invalid, Op: "decode the tile", Path: file, Err: err}
	}
	b := img.Bounds()
	edge := min(b.Dx(), b.Dy())
	pixels := make([]uint8, edge*edge*3)
	for y := range edge {
		for x := range edge {
			r, g, bl, _ := img.At(b.Min.X+x, b.Min.Y+y).RGBA()
			at := 3 * (y*edge + x)
			pixels[at], pixels[at+1], pixels[at+2] = uint8(r>>8), uint8(g>>8), uint8(bl>>8) //nolint:gosec // 16 bits to 8
		}
	}
	return pixels, edge, nil
}

// ColourDim is how many numbers Colours gives of a tile.
const ColourDim = 8

// Colours are plain statistics of tiles: mean and standard deviation of red, green and blue, and those of the
// steps of brightness from pixel to pixel. What they tell is no merit of an encoder.
func Colours(tiles []Tile, look func(tile int, pixels []uint8)) ([][]float32, error) {
	out := make([][]float32, len(tiles))
	for i, t := range tiles {
		pixels, edge, err := Decode(t.File)
		if err != nil {
			return nil, err
		}
		if look != nil {
			look(i, pixels)
		}
		var sum, square [4]float64
		add := func(k int, v float64) { sum[k] += v; square[k] += v * v }
		bright := func(at int) float64 {
			return (float64(pixels[at]) + float64(pixels[at+1]) + float64(pixels[at+2])) / 765
		}
		for y := range max(edge-1, 1) { // a tile at a slide's edge may be one pixel wide
			for x := range max(edge-1, 1) {
				at := 3 * (y*edge + x)
				for k := range 3 {
					add(k, float64(pixels[at+k])/255)
				}
				if edge > 1 {
					add(3, math.Hypot(bright(at+3)-bright(at), bright(at+3*edge)-bright(at)))
				}
			}
		}
		n := math.Pow(float64(max(edge-1, 1)), 2)
		for k := range 4 {
			m := sum[k] / n
			out[i] = append(out[i], float32(m), float32(math.Sqrt(max(square[k]/n-m*m, 0))))
		}
	}
	return out, nil
}

// Look is what a site's stain and scanner make of a tile: red, green and blue raised to powers of the site's
// own, which scales the optical density of each. Site 0 changes nothing.
func Look(site int) func(tile int, pixels []uint8) {
	powers := [][3]float64{{1, 1, 1}, {1.3, 0.9, 1.05}, {0.8, 1.15, 1.3}, {1.1, 1.3, 0.85}}[site%4]
	var table [3][256]uint8
	for k, p := range powers {
		for v := range 256 {
			table[k][v] = uint8(math.Round(255 * math.Pow(float64(v)/255, p)))
		}
	}
	return func(_ int, pixels []uint8) {
		for i, v := range pixels {
			pixels[i] = table[i%3][v]
		}
	}
}
