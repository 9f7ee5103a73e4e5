package tiler

import (
	"math"

	"coverslip/tiler/tissue"
)

// Ring is a closed line in level-0 pixels: the last point is the first again, and it meets itself
// nowhere else.
type Ring [][2]float64

// Area is the area inside, square level-0 pixels, by Gauss's formula: positive for the outer ring of a
// polygon, negative for a hole, which runs the other way (RFC 7946, 3.1.6, taking x and y as they are).
func (r Ring) Area() float64 {
	sum := 0.0
	for i := 1; i < len(r); i++ {
		sum += r[i-1][0]*r[i][1] - r[i][0]*r[i-1][1]
	}
	return sum / 2
}

// Polygon is a piece of tissue: its outer ring, then its holes.
type Polygon []Ring

// Area is that of the piece without its holes, square level-0 pixels.
func (p Polygon) Area() float64 {
	sum := 0.0
	for _, r := range p {
		sum += r.Area()
	}
	return sum
}

// Contours are the outlines of the tissue, a polygon for each piece, from the top left. They follow the
// mask to within two thirds of a mask pixel, and pieces that touch at a corner stay apart.
func (s *Slide) Contours(o *Overview) []Polygon {
	polygons := outline(o.Mask)
	for _, p := range polygons {
		for _, r := range p {
			for i, at := range r { // the mask's last pixels may reach over the slide's edge
				r[i] = [2]float64{min(at[0]*o.Scale, float64(s.Width)), min(at[1]*o.Scale, float64(s.Height))}
			}
		}
	}
	return polygons
}

// flatten is how far a point may lie from the line that replaces it, mask pixels. Lines of the outline
// that are not neighbours are √½ apart or more, so that below half of it none can come to cross another.
const flatten = 0.3

// outline returns the polygons of a mask in its own pixels.
//
// It walks along the edges of pixels, tissue to the right, as seen with y downward, and joins the middles
// of the edges: the lines that marching squares gives (Lorensen and Cline 1987, in the plane). A corner
// cut off here is one added there, but for four: each ring has half a square pixel less in it.
func outline(m *tissue.Mask) []Polygon {
	w, h := m.Width, m.Height
	is := func(x, y int) bool { return x >= 0 && y >= 0 && x < w && y < h && m.Tissue[y*w+x] }
	type border struct {
		ring Ring
		left [2]int // of a hole, the tissue pixel just left of its leftmost point
	}
	var borders []border
	walked := make([]bool, w*h)                         // the upper edge of this pixel belongs to a border that was walked
	leftOf := map[int]int{}                             // which border the left edge of a pixel belongs to
	step := [4][2]int{{1, 0}, {0, 1}, {-1, 0}, {0, -1}} // right, down, left, up
	for start := range m.Tissue {
		if walked[start] || !is(start%w, start/w) || is(start%w, start/w-1) {
			continue
		}
		b := border{left: [2]int{w, 0}}
		x0, y0 := start%w, start/w
		for x, y, d := x0, y0, 0; ; { // (x, y) is a corner of pixels
			// The pixels ahead on either side; (x, y) is the top-left corner of the pixel of that name.
			nx, ny := x+step[d][0], y+step[d][1]
			switch d {
			case 0:
				walked[y*w+x] = true
			case 1:
				if x-1 < b.left[0] {
					b.left = [2]int{x - 1, y}
				}
			case 3:
				leftOf[ny*w+x] = len(borders)
			}
			b.ring = append(b.ring, [2]float64{float64(x+nx) / 2, float64(y+ny) / 2})
			var right, left bool
			switch d {
			case 0:
				right, left = is(nx, ny), is(nx, ny-1)
			case 1:
				right, left = is(nx-1, ny), is(nx, ny)
			case 2:
				right, left = is(nx-1, ny-1), is(nx-1, ny)
			case 3:
				right, left = is(nx, ny-1), is(nx-1, ny-1)
			}
			switch {
			case !right: // also where two pieces touch at this corner
				d = (d + 1) % 4
			case left:
				d = (d + 3) % 4
			}
			x, y = nx, ny
			if x == x0 && y == y0 && d == 0 {
				break
			}
		}
		b.ring = simplify(append(b.ring, b.ring[0]))
		borders = append(borders, b)
	}
	polygonOf := make([]int, len(borders))
	var polygons []Polygon
	for i, b := range borders {
		if b.ring.Area() > 0 {
			polygonOf[i] = len(polygons)
			polygons = append(polygons, Polygon{b.ring})
		}
	}
	for _, b := range borders {
		if b.ring.Area() > 0 {
			continue
		}
		// What bounds the same tissue to the left is the outer ring, or a hole further left.
		outer := b
		for {
			x, y := outer.left[0], outer.left[1]
			for is(x-1, y) {
				x--
			}
			i := leftOf[y*w+x]
			if outer = borders[i]; outer.ring.Area() > 0 {
				polygons[polygonOf[i]] = append(polygons[polygonOf[i]], b.ring)
				break
			}
		}
	}
	return polygons
}

// simplify leaves points out of a ring as long as each is within flatten of the line that stays
// (Douglas and Peucker 1973, https://doi.org/10.3138/FM57-6770-U75U-7727).
func simplify(r Ring) Ring {
	// The farthest two points a ring is sure to keep: the first, and the one farthest from it.
	far, distance := 0, 0.0
	for i, p := range r {
		if d := math.Hypot(p[0]-r[0][0], p[1]-r[0][1]); d > distance {
			far, distance = i, d
		}
	}
	keep := make([]bool, len(r))
	keep[0], keep[far], keep[len(r)-1] = true, true, true
	for open := [][2]int{{0, far}, {far, len(r) - 1}}; len(open) > 0; {
		from, to := open[len(open)-1][0], open[len(open)-1][1]
		open = open[:len(open)-1]
		worst, most := 0, flatten
		for i := from + 1; i < to; i++ {
			if d := distanceTo(r[from], r[to], r[i]); d > most {
				worst, most = i, d
			}
		}
		if worst > 0 {
			keep[worst] = true
			open = append(open, [2]int{from, worst}, [2]int{worst, to})
		}
	}
	var out Ring
	for i, p := range r {
		if keep[i] {
			out = append(out, p)
		}
	}
	return out
}

// distanceTo is how far p is from the line between a and b, ends included.
func distanceTo(a, b, p [2]float64) float64 {
	dx, dy := b[0]-a[0], b[1]-a[1]
	at := ((p[0]-a[0])*dx + (p[1]-a[1])*dy) / max(dx*dx+dy*dy, 1e-12)
	at = min(max(at, 0), 1)
	return math.Hypot(p[0]-a[0]-at*dx, p[1]-a[1]-at*dy)
}
