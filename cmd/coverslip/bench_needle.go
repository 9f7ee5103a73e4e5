package main

import (
	"context"
	"fmt"
	"image"
	_ "image/jpeg" // the tiles are JPEGs
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"coverslip"
	"coverslip/mil"
	"coverslip/mil/metric"
)

const (
	needleTiles = 100 // of a bag
	needles     = 10  // planted in every second one
	needleTrain = 160 // bags
	needleVal   = 40
	needleTest  = 80
)

// needle plants tiles of adenocarcinoma among healthy ones and asks whether the classifier, told only which bags hold
// some, attends to them most. Tiles of test bags are none of the others.
func (c *benchMILCmd) needle(e *env) error {
	healthy, err := c.encoded(e, "H")
	if err != nil {
		return err
	}
	tumour, err := c.encoded(e, "AC")
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(7, 7))
	half := func(all [][]float32) (a, b [][]float32) {
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		return all[:2*len(all)/3], all[2*len(all)/3:]
	}
	h1, h2 := half(healthy)
	t1, t2 := half(tumour)
	var bags mil.HeldBags
	var y []int
	var planted []map[int]bool
	for i := range needleTrain + needleVal + needleTest {
		h, t := h1, t1
		if i >= needleTrain+needleVal {
			h, t = h2, t2
		}
		bag := &mil.Held{Name: fmt.Sprintf("map %d", i), D: len(h[0])}
		at := map[int]bool{}
		if i%2 == 1 { // somewhere on the map, beside each other or not
			for _, k := range rng.Perm(needleTiles)[:needles] {
				at[k] = true
			}
		}
		for k := range needleTiles {
			from := h
			if at[k] {
				from = t
			}
			bag.Rows = append(bag.Rows, from[rng.IntN(len(from))]...)
			bag.XY = append(bag.XY, int64(k%10)*224, int64(k/10)*224)
		}
		bags, y, planted = append(bags, bag), append(y, i%2), append(planted, at)
	}
	rows := func(from, n int) []int {
		r := make([]int, n)
		for i := range r {
			r[i] = from + i
		}
		return r
	}
	for _, model := range []mil.Model{mil.ABMIL, mil.Gated, mil.CLAMSB, mil.CLAMMB, mil.DSMIL} {
		settings := mil.Defaults(model)
		settings.Dropout, settings.DropInstance = 0.5, 0.5 // so that one needle does not do for all
		k, _, err := mil.Train(e, bags, y, 2, rows(0, needleTrain), rows(needleTrain, needleVal), settings, mil.TrainOptions{})
		if err != nil {
			return err
		}
		var hit, all int
		var truth []int
		var score []float64
		for _, i := range rows(needleTrain+needleVal, needleTest) {
			p, err := k.Predict(e, bags[i], true)
			if err != nil {
				return err
			}
			truth, score = append(truth, y[i]), append(score, p.P[1])
			if y[i] == 0 {
				continue
			}
			order := rows(0, needleTiles)
			head := min(1, p.Heads-1) // of the class, where each has its own
			sort.SliceStable(order, func(a, b int) bool {
				return p.Attention[order[a]*p.Heads+head] > p.Attention[order[b]*p.Heads+head]
			})
			for _, tile := range order[:needles] {
				all++
				if planted[i][tile] {
					hit++
				}
			}
		}
		precision := float64(hit) / float64(all)
		const asked = 0.8
		err = e.measured(measurement{Bench: "mil", Case: fmt.Sprintf("needles: precision of the %d tiles most attended of %d, %s (AUC of bags %.3f), at least 0.8", needles, needleTiles, model, metric.AUC(truth, score)),
			Value: precision, Unit: "planted", Ratio: precision / asked, Target: 1, Runs: 1, Machine: machine()})
		if err != nil {
			return err
		}
	}
	return nil
}

// encoded are the features of the training tiles of a class of crc5.
func (c *benchMILCmd) encoded(ctx context.Context, class string) ([][]float32, error) {
	enc, err := openEncoder()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(c.Needle, "training", class, "*.jpg"))
	if err != nil || len(files) < 20 {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "read the tiles", Path: filepath.Join(c.Needle, "training", class), Err: fmt.Errorf("%d JPEGs", len(files)), Hint: "name the folder of the colorectal tiles, crc5"}
	}
	slices.Sort(files)
	size, dim := enc.Model().TileSize, enc.Model().Dim
	var all [][]float32
	for _, file := range files {
		pixels, err := readTile(file, size)
		if err != nil {
			return nil, err
		}
		row := make([]float32, dim)
		if err := enc.Encode(ctx, row, pixels, 1); err != nil {
			return nil, coverslip.At(file, err)
		}
		all = append(all, row)
	}
	return all, nil
}

func readTile(path string, size int) ([]uint8, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, diskError("read the tile", path, err)
	}
	defer f.Close()
	img, _, err := image.Decode(f)
	if err != nil || img.Bounds().Dx() != size || img.Bounds().Dy() != size {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read the tile", Path: path, Err: fmt.Errorf("no picture of %d × %d: %w", size, size, err)}
	}
	pixels := make([]uint8, 0, size*size*3)
	for y := range size {
		for x := range size {
			r, g, b, _ := img.At(img.Bounds().Min.X+x, img.Bounds().Min.Y+y).RGBA()
			pixels = append(pixels, uint8(r>>8), uint8(g>>8), uint8(b>>8)) //nolint:gosec // 8 of 16 bits
		}
	}
	return pixels, nil
}
