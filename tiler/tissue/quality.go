package tissue

import "math"

// Scores say what may be wrong with a tile. Each is from 0, nothing, to 1. They are for sorting and for
// thresholds of the user's own: nothing is dropped because of them.
type Scores struct {
	Glass float32 `json:"glass"` // share of the pixels that are empty glass: bright and without colour
	// Blur is the perceptual blur of Crete et al. 2007 (https://doi.org/10.1117/12.702790): how much of
	// the steps from pixel to pixel is left when the tile is blurred once more. At 0.5 µm per pixel, 100
	// tiles of tissue in focus have 0.15 to 0.27; blurred by σ = 0.6 µm 0.28 to 0.47, by 1.4 µm 0.54 to
	// 0.77. At finer resolutions all of it is higher, at coarser ones lower.
	Blur float32 `json:"blur"`
	// Fold is the share that is no ink and by a quarter of the scale more saturated than bright, as tissue
	// is where it lies double (Kothari et al. 2013, https://doi.org/10.4103/2153-3539.117448). So are dark
	// nuclei that are packed, up to a third of a tile: compare tiles of one slide.
	Fold float32 `json:"fold"`
	// Bubble is the share that is inside the rim of an air bubble; see bubble.go. 0 where the resolution
	// is coarser than 4 µm per pixel.
	Bubble   float32 `json:"bubble"`
	GreenPen float32 `json:"green_pen"` // share that has the colour of ink, see pen.go
	BluePen  float32 `json:"blue_pen"`
	RedPen   float32 `json:"red_pen"`   // blood that lies thick counts too
	BlackPen float32 `json:"black_pen"` // black borders of a scan count too
}

const (
	// block is the size that fold and pens are looked at, µm: about a nucleus, so that one of them alone
	// is neither.
	block = 8.0
	// foldExcess is by how much a fold's saturation is above its brightness, of 255.
	foldExcess = 64
	// glassBright is the least brightness of glass, of 255; dimmer grey is dirt or ink.
	glassBright = 180
)

// Quality scores an RGB tile, [height*width*3], of resolution mpp (µm per pixel).
func Quality(rgb []byte, width, height int, mpp float64) Scores {
	if len(rgb) != width*height*3 || len(rgb) == 0 {
		panic("tissue: picture and size do not match")
	}
	luma := make([]int32, width*height)
	glass := 0
	for i := range luma {
		r, g, b := int32(rgb[3*i]), int32(rgb[3*i+1]), int32(rgb[3*i+2])
		luma[i] = (77*r + 150*g + 29*b) >> 8 // ITU-R BT.601, in 256ths
		hi, lo := max(r, g, b), min(r, g, b)
		if hi >= glassBright && 255*(hi-lo) <= int32(Default().MaxThreshold)*hi { //nolint:gosec // at most 255
			glass++
		}
	}
	s := Scores{Glass: float32(glass) / float32(len(luma)), Blur: float32(blur(luma, width, height))}
	edge := max(int(math.Round(block/mpp)), 1)
	var folded, blocks int
	var inks [blackInk + 1]int
	for y := 0; y < height; y += edge {
		for x := 0; x < width; x += edge {
			mean := meanOf(rgb, width, x, y, min(x+edge, width), min(y+edge, height))
			blocks++
			pen := inkAt(mean[:]) &^ edgeInk
			inks[pen]++
			hi, lo := int(max(mean[0], mean[1], mean[2])), int(min(mean[0], mean[1], mean[2]))
			if pen == noInk && hi >= dark && 255*(hi-lo)/hi-hi >= foldExcess {
				folded++
			}
		}
	}
	s.Bubble = float32(bubbles(rgb, width, height, mpp))
	share := func(n int) float32 { return float32(n) / float32(blocks) }
	s.Fold = share(folded)
	s.GreenPen, s.BluePen, s.RedPen, s.BlackPen = share(inks[greenInk]), share(inks[blueInk]), share(inks[redInk]), share(inks[blackInk])
	return s
}

// meanOf is the mean colour of the pixels from (x0, y0) to (x1, y1).
func meanOf(rgb []byte, width, x0, y0, x1, y1 int) (mean [3]byte) {
	var sum [3]int
	for y := y0; y < y1; y++ {
		line := rgb[(y*width+x0)*3 : (y*width+x1)*3]
		for i := 0; i+2 < len(line); i += 3 {
			sum[0], sum[1], sum[2] = sum[0]+int(line[i]), sum[1]+int(line[i+1]), sum[2]+int(line[i+2])
		}
	}
	n := (x1 - x0) * (y1 - y0)
	for i, v := range sum {
		mean[i] = byte((v + n/2) / n) //nolint:gosec // a mean of bytes
	}
	return mean
}

// blurWindow is the length of the box the tile is blurred with, pixels; Crete's and scikit-image's.
const blurWindow = 11

// blur is the worse of the two directions. A picture without any step is not called blurred.
func blur(luma []int32, width, height int) float64 {
	return max(
		blurAlong(luma, width, 1, height, width),
		blurAlong(luma, height, width, width, 1))
}

// blurAlong looks at lines of n pixels that lie step apart; the lines start every stride.
func blurAlong(luma []int32, n, step, lines, stride int) float64 {
	if n < blurWindow {
		return 0
	}
	const r = blurWindow / 2
	var all, gone int // grey values times blurWindow
	for l := range lines {
		at := func(i int) int32 { return luma[l*stride+i*step] }
		var sum int32 // of the window around i
		for i := range blurWindow {
			sum += at(i)
		}
		for i := r; i+r+1 < n; i++ {
			next := sum + at(i+r+1) - at(i-r)
			before := int(at(i+1)-at(i)) * blurWindow
			after := int(next - sum)
			before, after = max(before, -before), max(after, -after)
			all += before
			gone += max(before-after, 0)
			sum = next
		}
	}
	if all == 0 {
		return 0
	}
	return float64(all-gone) / float64(all)
}
