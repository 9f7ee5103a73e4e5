package heatmap

import (
	"fmt"
	"image"
	"image/color"
	"math"

	"golang.org/x/image/draw"
	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
	"gonum.org/v1/plot/palette/moreland"
)

// Overlay lays the map over a picture of the whole slide, of which one pixel is as many level-0 pixels wide as
// scale says, and puts a legend below. Where tiles overlap, the mean of what they show counts. share is how much
// of a pixel is the map's colour, 0 to 1.
func (m *Map) Overlay(picture image.Image, scale, share float64) *image.RGBA {
	b := picture.Bounds()
	w, h := b.Dx(), b.Dy()
	sum, n := make([]float32, w*h), make([]uint16, w*h)
	for i := range m.Values {
		x0, y0 := pixel(float64(m.X[i]), scale, w), pixel(float64(m.Y[i]), scale, h)
		x1, y1 := pixel(float64(m.X[i])+m.Span, scale, w), pixel(float64(m.Y[i])+m.Span, scale, h)
		// A tile smaller than a pixel still shows.
		x1, y1 = min(max(x1, x0+1), w), min(max(y1, y0+1), h)
		for y := y0; y < y1; y++ {
			for x := x0; x < x1; x++ {
				sum[y*w+x] += float32(m.shown[i])
				n[y*w+x]++
			}
		}
	}
	out := image.NewRGBA(image.Rect(0, 0, max(w, legendWidth), h+zoom(w)*legendHeight))
	draw.Draw(out, out.Bounds(), image.White, image.Point{}, draw.Src)
	draw.Draw(out, image.Rect(0, 0, w, h), picture, b.Min, draw.Src)
	colours := m.table()
	for y := range h {
		for x := range w {
			if k := n[y*w+x]; k > 0 {
				mix(out, x, y, colours[m.step(float64(sum[y*w+x])/float64(k))], share)
			}
		}
	}
	m.legend(out, h, share)
	return out
}

func pixel(at, scale float64, limit int) int {
	return min(max(int(math.Round(at/scale)), 0), limit)
}

func mix(img *image.RGBA, x, y int, c color.RGBA, share float64) {
	p := img.Pix[img.PixOffset(x, y):]
	for i, v := range [3]uint8{c.R, c.G, c.B} {
		p[i] = uint8(float64(p[i])*(1-share) + float64(v)*share + 0.5)
	}
}

// colour of a shown value: blue, white and red, of equal lightness on both sides (Moreland 2009), which people
// who do not see red and green tell apart.
func (m *Map) colour(shown float64) color.RGBA { return m.table()[m.step(shown)] }

const steps = 256

func (m *Map) step(shown float64) int {
	if m.Scale == Signed {
		shown = (shown + 1) / 2
	}
	return min(max(int(shown*steps), 0), steps-1)
}

var blueRed = func() (table [steps]color.RGBA) {
	p := moreland.SmoothBlueRed()
	p.SetMin(0)
	p.SetMax(1)
	for i := range table {
		c, err := p.At(float64(i) / (steps - 1))
		if err != nil {
			panic("heatmap: " + err.Error()) // within its range
		}
		table[i], _ = color.RGBAModel.Convert(c).(color.RGBA)
	}
	return table
}()

func (m *Map) table() *[steps]color.RGBA { return &blueRed }

const (
	legendWidth  = 420
	legendHeight = 58
)

// zoom is how many times larger the legend of a picture of this width is, so that it can be read.
func zoom(width int) int { return max(1, width/(2*legendWidth)) }

// legend draws the scale below a picture of this height, in colours as they look over white.
func (m *Map) legend(img *image.RGBA, top int, share float64) {
	const left, width, height, y = 12, 256, 14, 24
	box := image.NewRGBA(image.Rect(0, 0, legendWidth, legendHeight))
	draw.Draw(box, box.Bounds(), image.White, image.Point{}, draw.Src)
	for x := range width {
		for dy := range height {
			mix(box, left+x, y+dy, m.table()[x], share)
		}
	}
	low, middle, high := "0", "0.5", "1"
	title := m.What + ", rank among the tiles of this slide"
	if m.Scale == Signed {
		low, middle, high = "-1", "0", "1"
		title = m.What + ", over the 99th percentile of its size"
	}
	write(box, left, 17, title)
	write(box, left, y+height+13, low)
	write(box, left+width/2-7, y+height+13, middle)
	write(box, left+width-7, y+height+13, high)
	k := zoom(img.Bounds().Dx())
	draw.NearestNeighbor.Scale(img, image.Rect(0, top, k*legendWidth, top+k*legendHeight), box, box.Bounds(), draw.Src, nil)
}

func write(img draw.Image, x, y int, text string) {
	d := font.Drawer{Dst: img, Src: image.Black, Face: basicfont.Face7x13, Dot: fixed.P(x, y)}
	d.DrawString(text)
}

// Sheet shows tiles in two blocks, those of the highest values and those of the lowest, each under its value.
// pixels gives the picture of a tile by its number.
func (m *Map) Sheet(high, low []int, edge int, pixels func(tile int) (image.Image, error)) (*image.RGBA, error) {
	const columns, gap, caption, head = 6, 8, 16, 24
	rows := func(n int) int { return (n + columns - 1) / columns }
	block := func(n int) int { return head + rows(n)*(edge+caption+gap) }
	out := image.NewRGBA(image.Rect(0, 0, columns*(edge+gap)+gap, block(len(high))+block(len(low))+gap))
	draw.Draw(out, out.Bounds(), image.White, image.Point{}, draw.Src)
	top := 0
	for _, b := range []struct {
		title string
		tiles []int
	}{{"highest " + m.What, high}, {"lowest " + m.What, low}} {
		write(out, gap, top+17, b.title)
		for n, i := range b.tiles {
			img, err := pixels(i)
			if err != nil {
				return nil, err
			}
			x, y := gap+n%columns*(edge+gap), top+head+n/columns*(edge+caption+gap)
			draw.CatmullRom.Scale(out, image.Rect(x, y, x+edge, y+edge), img, img.Bounds(), draw.Src, nil)
			write(out, x, y+edge+13, fmt.Sprintf("%.3g", m.Values[i]))
		}
		top += block(len(b.tiles))
	}
	return out, nil
}
