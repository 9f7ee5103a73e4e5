package main

import (
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"coverslip/slidessl"
)

// draw writes a picture of the curve: loss, alignment, uniformity and effective rank by epoch.
func (c *curveFile) draw(points []slidessl.Point, path string) error {
	if c.f != nil {
		if err := c.f.Close(); err != nil {
			return diskError("write the curve", c.path, err)
		}
		c.f = nil
	}
	panels := []struct {
		title string
		of    func(slidessl.Point) float64
	}{
		{"loss", func(p slidessl.Point) float64 { return p.Loss }},
		{"alignment (views of a slide; lower is nearer)", func(p slidessl.Point) float64 { return p.Alignment }},
		{"uniformity (slides; lower is more spread)", func(p slidessl.Point) float64 { return p.Uniformity }},
		{"effective rank", func(p slidessl.Point) float64 { return p.Rank }},
	}
	img := vgimg.New(22*vg.Centimeter, 14*vg.Centimeter)
	tiles := draw.Tiles{Rows: 2, Cols: 2, PadX: 12, PadY: 12, PadTop: 6, PadBottom: 6, PadLeft: 6, PadRight: 10}
	var grid [][]*plot.Plot
	for r := range 2 {
		var row []*plot.Plot
		for k := range 2 {
			panel := panels[2*r+k]
			pl := plot.New()
			pl.Title.Text, pl.X.Label.Text = panel.title, "epoch"
			xy := make(plotter.XYs, len(points))
			for i, p := range points {
				xy[i] = plotter.XY{X: float64(p.Epoch), Y: panel.of(p)}
			}
			line, err := plotter.NewLine(xy)
			if err != nil {
				return err
			}
			pl.Add(plotter.NewGrid(), line)
			row = append(row, pl)
		}
		grid = append(grid, row)
	}
	for r, row := range plot.Align(grid, tiles, draw.New(img)) {
		for k, canvas := range row {
			grid[r][k].Draw(canvas)
		}
	}
	f, err := os.Create(path)
	if err != nil {
		return diskError("draw the curve", path, err)
	}
	if _, err := (vgimg.PngCanvas{Canvas: img}).WriteTo(f); err != nil {
		_ = f.Close() // the picture is lost already
		return diskError("draw the curve", path, err)
	}
	return f.Close()
}
