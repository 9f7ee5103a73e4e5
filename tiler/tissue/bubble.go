package tissue

import "math"

// Air under the cover glass bends light away at its rim, which is a dark line without colour, a few µm
// wide, that runs in an arc. Stain is dark only with colour, and ink and dirt are wider. So a bubble is
// looked for as a thin grey line that a circle fits; what is inside looks like glass or like tissue out
// of focus, which says nothing.
const (
	rimCell   = 2.0 // µm: the rim is looked for in cells of this size
	rimReach  = 5   // cells to each side of a rim, where it is brighter again
	rimDark   = 150 // the brightest channel of a rim, at most
	rimGrey   = 25  // percent: the saturation of a rim, at most
	rimStep   = 40  // grey values by which its sides are brighter
	rimMisfit = 1.0 // cells: root mean square distance of the rim from its circle, at most
	minArc    = 25  // cells: the least length of an arc
	minRadius = 5   // cells
	maxRadius = 500 // cells: what bends less is a scratch, a fibre or the edge of the cover glass
	minBend   = 2.0 // cells by which an arc leaves the straight line, at least; also three times the misfit
	minFilled = 0.6 // share of an arc that is rim
)

// bubbles is the share of an RGB tile, [height*width*3], inside circles that a bubble's rim fits.
func bubbles(rgb []byte, width, height int, mpp float64) float64 {
	edge := max(int(math.Round(rimCell/mpp)), 1)
	w, h := width/edge, height/edge
	if mpp > 2*rimCell || w <= 2*rimReach || h <= 2*rimReach {
		return 0 // a rim cannot be seen
	}
	bright, grey := make([]uint8, w*h), make([]bool, w*h)
	seen := false
	for y := range h {
		for x := range w {
			mean := meanOf(rgb, width, x*edge, y*edge, (x+1)*edge, (y+1)*edge)
			hi, lo := int(max(mean[0], mean[1], mean[2])), int(min(mean[0], mean[1], mean[2]))
			bright[y*w+x] = uint8(hi) //nolint:gosec // a byte
			grey[y*w+x] = hi <= rimDark && 100*(hi-lo) <= rimGrey*hi
			seen = seen || grey[y*w+x]
		}
	}
	if !seen {
		return 0
	}
	rim := make([]bool, w*h)
	for y := range h {
		for x := range w {
			rim[y*w+x] = grey[y*w+x] && thin(bright, w, h, x, y)
		}
	}
	inside := make([]bool, w*h)
	found := false
	for i := range rim {
		if !rim[i] {
			continue
		}
		if c, ok := fitRim(connected(rim, w, h, i)); ok {
			found = true
			for j := range inside {
				inside[j] = inside[j] || math.Hypot(float64(j%w)-c.x, float64(j/w)-c.y) <= c.r
			}
		}
	}
	if !found {
		return 0
	}
	n := 0
	for _, in := range inside {
		if in {
			n++
		}
	}
	return float64(n) / float64(w*h)
}

// thin reports whether a cell is darker than what lies on both its sides, in any direction.
func thin(bright []uint8, w, h, x, y int) bool {
	for _, d := range [4][2]int{{1, 0}, {0, 1}, {1, 1}, {1, -1}} {
		dx, dy := d[0]*rimReach, d[1]*rimReach
		if x-dx < 0 || x+dx >= w || y-dy < 0 || y+dy >= h || y+dy < 0 || y-dy >= h {
			continue
		}
		least := int(bright[y*w+x]) + rimStep
		if int(bright[(y-dy)*w+x-dx]) >= least && int(bright[(y+dy)*w+x+dx]) >= least {
			return true
		}
	}
	return false
}

// connected takes a cell and all that hang together with it, by sides or corners, out of a mask.
func connected(mask []bool, w, h, start int) (cells [][2]float64) {
	todo := []int{start}
	mask[start] = false
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		x, y := i%w, i/w
		cells = append(cells, [2]float64{float64(x), float64(y)})
		for ny := max(y-1, 0); ny <= min(y+1, h-1); ny++ {
			for nx := max(x-1, 0); nx <= min(x+1, w-1); nx++ {
				if j := ny*w + nx; mask[j] {
					mask[j] = false
					todo = append(todo, j)
				}
			}
		}
	}
	return cells
}

type circle struct{ x, y, r float64 }

// fitRim fits a circle by least squares (Kåsa 1976, https://doi.org/10.1109/TIM.1976.6312298) and
// reports whether the cells are an arc of it.
func fitRim(cells [][2]float64) (circle, bool) {
	n := float64(len(cells))
	if n < minArc*minFilled {
		return circle{}, false
	}
	var mx, my float64
	for _, c := range cells {
		mx, my = mx+c[0]/n, my+c[1]/n
	}
	var uu, vv, uv, uq, vq, q float64
	for _, c := range cells {
		u, v := c[0]-mx, c[1]-my
		s := u*u + v*v
		uu, vv, uv, uq, vq, q = uu+u*u, vv+v*v, uv+u*v, uq+u*s, vq+v*s, q+s
	}
	det := uu*vv - uv*uv
	if det < 1e-9*uu*vv || det == 0 {
		return circle{}, false // a straight line
	}
	u, v := (uq*vv-vq*uv)/(2*det), (vq*uu-uq*uv)/(2*det)
	c := circle{mx + u, my + v, math.Sqrt(u*u + v*v + q/n)}
	if !(c.r >= minRadius && c.r <= maxRadius) {
		return circle{}, false
	}
	var misfit float64
	bins := make([]bool, max(int(2*math.Pi*c.r), 1)) // of one cell's length
	filled := 0
	for _, p := range cells {
		d := math.Hypot(p[0]-c.x, p[1]-c.y) - c.r
		misfit += d * d / n
		turn := math.Atan2(p[1]-c.y, p[0]-c.x)/(2*math.Pi) + 0.5
		if b := min(int(turn*float64(len(bins))), len(bins)-1); !bins[b] {
			bins[b] = true
			filled++
		}
	}
	misfit = math.Sqrt(misfit)
	arc := len(bins) - longestGap(bins)
	half := min(float64(arc)/c.r/2, math.Pi)
	bend := c.r * (1 - math.Cos(half))
	return c, misfit <= rimMisfit && arc >= minArc && float64(filled) >= minFilled*float64(arc) && bend >= max(minBend, 3*misfit)
}

// longestGap is the length of the longest run of false in a ring.
func longestGap(ring []bool) int {
	longest, run := 0, 0
	for i := range 2 * len(ring) {
		if ring[i%len(ring)] {
			run = 0
			continue
		}
		run++
		longest = max(longest, run)
	}
	return min(longest, len(ring))
}
