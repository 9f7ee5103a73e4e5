package report

import (
	"bytes"
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"coverslip/mil/metric"
)

// Palette is told apart by people who do not see all colours (Okabe and Ito).
var palette = []color.RGBA{{0, 114, 178, 255}, {213, 94, 0, 255}, {0, 158, 115, 255}, {204, 121, 167, 255}, {230, 159, 0, 255}, {86, 180, 233, 255}, {0, 0, 0, 255}}

// ROC draws, as a PNG, the curve of each method of a group, or with several classes of each class of the first
// method against the others. It is the mean of those of the splits at equal false positive rates. nil of
// survival, and where no split has both classes.
func (r Report) ROC(group string) ([]byte, error) {
	p := square("ROC, mean over splits", "1 − specificity", "sensitivity")
	sides, drawn := sidesOf(r.predictions), 0
	curve := func(name string, sides []side, class int) error {
		const steps = 200
		sum, n := make([]float64, steps+1), 0
		for _, s := range sides {
			points := metric.ROC(oneAgainst(s.rows, class))
			if points == nil {
				continue
			}
			n++
			at := 0
			for i := range sum {
				x := float64(i) / steps
				for at+1 < len(points) && points[at+1].FalsePositiveRate <= x {
					at++
				}
				y := points[at].TruePositiveRate
				if at+1 < len(points) { // on the way to the next point
					a, b := points[at], points[at+1]
					y += (b.TruePositiveRate - a.TruePositiveRate) * (x - a.FalsePositiveRate) / (b.FalsePositiveRate - a.FalsePositiveRate)
				}
				sum[i] += y
			}
		}
		if n == 0 {
			return nil
		}
		line := plotter.XYs{{X: 0, Y: 0}}
		for i, v := range sum {
			line = append(line, plotter.XY{X: float64(i) / steps, Y: v / float64(n)})
		}
		drawn++
		return add(p, name, line, drawn-1, false)
	}
	for m, method := range r.Run.Methods {
		of := sides[method.Name][group]
		switch {
		case len(r.Run.Classes) == 2:
			if err := curve(method.Name, of, 1); err != nil {
				return nil, err
			}
		case m == 0:
			for c, class := range r.Run.Classes {
				if err := curve(class, of, c); err != nil {
					return nil, err
				}
			}
		}
	}
	if drawn == 0 {
		return nil, nil
	}
	p.Legend.Left = false
	return encode(p)
}

// Calibration draws, as a PNG, how often what each method calls so probable is so, over all splits of a group
// together, in ten bins. nil of survival.
func (r Report) Calibration(group string) ([]byte, error) {
	if len(r.Run.Classes) == 0 {
		return nil, nil
	}
	what := "probability of " + r.Run.Classes[1]
	if len(r.Run.Classes) > 2 {
		what = "probability of the most probable class"
	}
	p := square("Calibration, all splits together", what, "share that is so")
	sides := sidesOf(r.predictions)
	for m, method := range r.Run.Methods {
		if method.Name == MajorityClass {
			continue // one point
		}
		var y []int
		var prob []float64
		for _, s := range sides[method.Name][group] {
			a, b := confidences(s.rows, len(r.Run.Classes))
			y, prob = append(y, a...), append(prob, b...)
		}
		var line plotter.XYs
		for _, b := range metric.Calibration(y, prob, bins, nil) {
			if b.Rows > 0 {
				line = append(line, plotter.XY{X: b.Predicted, Y: b.Observed})
			}
		}
		if err := add(p, method.Name, line, m, true); err != nil {
			return nil, err
		}
	}
	p.Legend.Left = true
	p.Legend.Top = true
	return encode(p)
}

func square(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, 1, 0, 1
	diagonal, _ := plotter.NewLine(plotter.XYs{{X: 0, Y: 0}, {X: 1, Y: 1}}) // finite points: no error
	diagonal.Color = color.Gray{190}
	p.Add(diagonal)
	p.Legend.Padding = vg.Points(3)
	return p
}

func add(p *plot.Plot, name string, line plotter.XYs, colour int, points bool) error {
	l, s, err := plotter.NewLinePoints(line)
	if err != nil {
		return fmt.Errorf("draw %s: %w", name, err)
	}
	l.Width, l.Color, s.Color, s.Radius = vg.Points(1.5), palette[colour%len(palette)], palette[colour%len(palette)], vg.Points(2.5)
	p.Add(l)
	if points {
		p.Add(s)
	}
	p.Legend.Add(name, l)
	return nil
}

func encode(p *plot.Plot) ([]byte, error) {
	w, err := p.WriterTo(11*vg.Centimeter, 11*vg.Centimeter, "png")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	_, err = w.WriteTo(&b)
	return b.Bytes(), err
}
