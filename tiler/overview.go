package tiler

import (
	"math"

	"coverslip"
)

// Draw shows on a picture of the slide what the plan takes: everything that is not tissue is paled,
// and each tile gets an outline.
func (o *Overview) Draw(p *Picture, plan coverslip.Plan) {
	for y := range p.Height {
		my := min(int((float64(y)+0.5)*p.Scale/o.Scale), o.Mask.Height-1)
		for x := range p.Width {
			mx := min(int((float64(x)+0.5)*p.Scale/o.Scale), o.Mask.Width-1)
			if !o.Mask.Tissue[my*o.Mask.Width+mx] {
				paint(p, x, y, [3]byte{190, 190, 190}, 0.6)
			}
		}
	}
	edge := [3]byte{0, 110, 60}
	for _, t := range plan.Tiles {
		x0, y0 := int(float64(t.X)/p.Scale), int(float64(t.Y)/p.Scale)
		x1, y1 := int(math.Ceil((float64(t.X)+plan.Span)/p.Scale))-1, int(math.Ceil((float64(t.Y)+plan.Span)/p.Scale))-1
		for x := x0; x <= x1; x++ {
			paint(p, x, y0, edge, 0.7)
			paint(p, x, y1, edge, 0.7)
		}
		for y := y0; y <= y1; y++ {
			paint(p, x0, y, edge, 0.7)
			paint(p, x1, y, edge, 0.7)
		}
	}
}

// paint mixes a share of a colour into one pixel; outside the picture it does nothing.
func paint(p *Picture, x, y int, colour [3]byte, share float64) {
	if x < 0 || y < 0 || x >= p.Width || y >= p.Height {
		return
	}
	px := p.RGB[(y*p.Width+x)*3:]
	for i, c := range colour {
		px[i] = byte(float64(px[i])*(1-share) + float64(c)*share)
	}
}
