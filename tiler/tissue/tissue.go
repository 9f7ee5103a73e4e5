// Package tissue finds which part of a slide is tissue, from a small RGB picture of it.
//
// The method is the one CLAM made common (Lu et al. 2021, https://doi.org/10.1038/s41551-020-00682-w):
// saturation, median filter, Otsu's threshold, closing, small pieces dropped, small holes filled;
// with two changes. Otsu's threshold is kept between two bounds, because on a slide that is all
// glass it splits dust from glass, and on one that is all tissue it splits pale from dark tissue.
// And every length is in micrometres, so that the same tissue gives the same mask whatever
// resolution the picture has.
// Ink of pens is taken out; see pen.go.
//
// It also scores what may be wrong with a tile: see Quality.
//
// It knows nothing of slides, levels or files: pixels in, mask out, plain Go.
package tissue

import "math"

// Params are the numbers the mask depends on. They are part of a bag's key.
type Params struct {
	Method       string  `json:"method"`        // names this algorithm and its version
	MPP          float64 `json:"mpp"`           // wanted resolution of the picture, µm per pixel
	Median       int     `json:"median"`        // edge of the median window, pixels, odd
	MinThreshold int     `json:"min_threshold"` // least saturation of tissue, 0–255
	MaxThreshold int     `json:"max_threshold"` // saturation that is tissue whatever Otsu says, 0–255
	Closing      float64 `json:"closing_um"`    // gaps up to twice this wide are closed, µm
	MinPiece     float64 `json:"min_piece_um2"` // smaller pieces of tissue are dropped, µm²
	MaxHole      float64 `json:"max_hole_um2"`  // smaller holes in tissue are filled, µm²
	PenReach     float64 `json:"pen_reach_um"`  // how far ink is followed from where it is sure, µm; 0 lets ink be tissue
}

// Default holds for haematoxylin and eosin in bright field at 8 to 16 µm per pixel. The bounds of
// the threshold were set on whole sections and on pictures of empty glass: glass stays under 12,
// mucin and pale stroma lie above 18. A wider median than 3 loses strands of tissue 50 µm thick.
func Default() Params {
	return Params{Method: "saturation-otsu-3", MPP: 8, Median: 3, MinThreshold: 12, MaxThreshold: 18,
		Closing: 16, MinPiece: 10_000, MaxHole: 40_000, PenReach: 100}
}

// Mask says for each pixel of the picture whether it is tissue.
type Mask struct {
	Width, Height int
	Tissue        []bool // [Height*Width], row by row
	Threshold     int    // saturation above which a pixel counted as tissue, 0–255

	sums []uint32 // summed-area table [(Height+1)*(Width+1)], for Share
}

// Detect finds tissue in an RGB picture, [height*width*3], of resolution mpp (µm per pixel).
func Detect(rgb []byte, width, height int, mpp float64, p Params) *Mask {
	if len(rgb) != width*height*3 {
		panic("tissue: picture and size do not match")
	}
	s := median(saturation(rgb), width, height, p.Median)
	m := &Mask{Width: width, Height: height, Tissue: make([]bool, width*height)}
	m.Threshold = min(max(otsu(s), p.MinThreshold), p.MaxThreshold)
	found := above(s, width, height, m.Threshold)
	found.closing(int(math.Round(p.Closing / mpp)))
	area := mpp * mpp
	var pen *bitmap
	if p.PenReach > 0 {
		pen = strokes(rgb, width, height, int(math.Round(p.PenReach/mpp)), int(minInk/area))
		found.without(pen)
	}
	found.flip(true, int(p.MinPiece/area))
	found.flip(false, int(p.MaxHole/area))
	if pen != nil {
		found.without(pen) // a hole that was filled may have been a stroke
	}
	found.unpack(m.Tissue)
	m.index()
	return m
}

// Fraction is the share of the whole picture that is tissue, 0 to 1.
func (m *Mask) Fraction() float64 {
	return float64(m.sums[len(m.sums)-1]) / float64(m.Width*m.Height)
}

// Share is the share of the rectangle from (x, y) to (x+w, y+h) that is tissue, 0 to 1, in pixels
// of the mask and exact for parts of pixels. What lies outside the picture is not tissue.
func (m *Mask) Share(x, y, w, h float64) float64 {
	if w <= 0 || h <= 0 {
		return 0
	}
	sum := m.sumTo(x+w, y+h) - m.sumTo(x, y+h) - m.sumTo(x+w, y) + m.sumTo(x, y)
	return min(max(sum/(w*h), 0), 1)
}

// sumTo integrates the mask over [0,x)×[0,y): bilinear in the summed-area table, which is exact
// because the mask is constant within a pixel.
func (m *Mask) sumTo(x, y float64) float64 {
	x, y = min(max(x, 0), float64(m.Width)), min(max(y, 0), float64(m.Height))
	x0, y0 := min(int(x), m.Width-1), min(int(y), m.Height-1)
	fx, fy := x-float64(x0), y-float64(y0)
	at := func(x, y int) float64 { return float64(m.sums[y*(m.Width+1)+x]) }
	return (1-fy)*((1-fx)*at(x0, y0)+fx*at(x0+1, y0)) + fy*((1-fx)*at(x0, y0+1)+fx*at(x0+1, y0+1))
}

func (m *Mask) index() {
	stride := m.Width + 1
	m.sums = make([]uint32, stride*(m.Height+1))
	for y := range m.Height {
		var row uint32
		for x := range m.Width {
			if m.Tissue[y*m.Width+x] {
				row++
			}
			m.sums[(y+1)*stride+x+1] = m.sums[y*stride+x+1] + row
		}
	}
}

// dark is the brightest channel below which saturation says nothing: ink, borders, coverslip edges.
const dark = 24

// saturation is S of HSV in 0–255 (Smith 1978): (max−min)/max.
func saturation(rgb []byte) []uint8 {
	s := make([]uint8, len(rgb)/3)
	for i := range s {
		p := rgb[3*i : 3*i+3 : 3*i+3]
		r, g, b := uint32(p[0]), uint32(p[1]), uint32(p[2]) // see median3
		hi, lo := max(r, g, b), min(r, g, b)
		if hi >= dark {
			s[i] = uint8(255 * (hi - lo) / hi) //nolint:gosec // hi-lo ≤ hi, so at most 255
		}
	}
	return s
}

// otsu returns the threshold t that maximises the variance between values ≤ t and > t
// (Otsu 1979, https://doi.org/10.1109/TSMC.1979.4310076).
func otsu(v []uint8) int {
	var histogram [256]int
	total := 0
	for _, x := range v {
		histogram[x]++
		total += int(x)
	}
	best, threshold := -1.0, 0
	count, sum := 0, 0
	for t, n := range histogram {
		count += n
		sum += t * n
		if count == 0 || count == len(v) {
			continue
		}
		low, high := float64(count), float64(len(v)-count)
		d := float64(sum)/low - float64(total-sum)/high
		if between := low * high * d * d; between > best {
			best, threshold = between, t
		}
	}
	return threshold
}

// median is the k×k median with edges repeated.
func median(src []uint8, width, height, k int) []uint8 {
	switch {
	case k <= 1:
		return src
	case k == 3 && width > 1:
		return median3(src, width, height)
	}
	return medianOf(src, width, height, k)
}

// median3 sorts the three pixels of each column once, for the three windows that share it: the median
// of nine is the median of the largest low, the middle middle and the smallest high
// (Paeth, Median finding on a 3×3 grid, Graphics Gems 1990).
func median3(src []uint8, width, height int) []uint8 {
	dst := make([]uint8, len(src))
	// One column more on each side repeats the edge. Words of 32 bits, because the compiler makes
	// min and max of bytes jumps, which noise mispredicts.
	columns := make([][3]uint32, width+2)
	for y := range height {
		up, down := max(y-1, 0)*width, min(y+1, height-1)*width
		a, b, c := src[up:up+width], src[y*width:(y+1)*width], src[down:down+width]
		inner := columns[1 : width+1]
		for x := range inner {
			u, v, w := uint32(a[x]), uint32(b[x]), uint32(c[x])
			u, v = min(u, v), max(u, v)
			v, w = min(v, w), max(v, w)
			inner[x] = [3]uint32{min(u, v), max(u, v), w}
		}
		columns[0], columns[width+1] = inner[0], inner[width-1]
		out := dst[y*width : (y+1)*width]
		p, q := columns[0], columns[1]
		for x, r := range columns[2:] {
			low := max(p[0], q[0], r[0])
			mid := max(min(p[1], q[1]), min(max(p[1], q[1]), r[1]))
			high := min(p[2], q[2], r[2])
			out[x] = uint8(max(min(low, mid), min(max(low, mid), high))) //nolint:gosec // one of nine bytes
			p, q = q, r
		}
	}
	return dst
}

// medianOf is the median of any odd window, by a histogram that slides along each row
// (Huang, Yang and Tang 1979, https://doi.org/10.1109/TASSP.1979.1163188).
func medianOf(src []uint8, width, height, k int) []uint8 {
	dst := make([]uint8, len(src))
	r := k / 2
	rank := k * k / 2 // values below the median
	columns := make([]int, width+2*r)
	for i := range columns {
		columns[i] = min(max(i-r, 0), width-1)
	}
	rows := make([][]uint8, k)
	for y := range height {
		for j := range rows {
			from := min(max(y+j-r, 0), height-1) * width
			rows[j] = src[from : from+width]
		}
		var histogram [256]int
		below, at := 0, 0 // below counts values < at
		for _, c := range columns[:k] {
			for _, row := range rows {
				histogram[row[c]]++
			}
		}
		for x := range width {
			if x > 0 {
				out, in := columns[x-1], columns[x+k-1]
				for _, row := range rows {
					gone, come := int(row[out]), int(row[in])
					histogram[gone]--
					histogram[come]++
					if gone < at {
						below--
					}
					if come < at {
						below++
					}
				}
			}
			for below > rank {
				at--
				below -= histogram[at]
			}
			for below+histogram[at] <= rank {
				below += histogram[at]
				at++
			}
			dst[y*width+x] = uint8(at)
		}
	}
	return dst
}
