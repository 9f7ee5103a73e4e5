// Package heatmap shows on a slide what a classifier says of each of its tiles: as a picture with a legend, as
// annotations for QuPath, as a table, and as a sheet of the tiles with the highest and lowest values.
//
// It takes values and pixels and knows neither classifiers nor slides. What attention and evidence mean, and
// what they do not, is in docs/EVALUATION.md.
package heatmap

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"

	"coverslip"
)

// Map is a value for each tile of a slide.
type Map struct {
	What   string // "attention", or "evidence for lobular"
	X, Y   []int64
	Span   float64 // level-0 pixels that a tile covers
	Values []float64
	Scale  Scale

	shown []float64
}

// Scale is how values become colours.
type Scale int

const (
	// Rank is the share of the slide's tiles that are lower, 0 to 1; equal values share the middle of
	// theirs. Attention is relative, and a few tiles hold most of it: on a plain scale the others would
	// all look alike. Every slide has tiles of rank 1, whatever is on it.
	Rank Scale = iota
	// Signed is the value over the 99th percentile of the magnitudes, held to −1 to 1: 0 speaks for
	// neither side.
	Signed
)

// New checks the values: NaN and infinite ones are Invalid, and so is nothing at all.
func New(what string, x, y []int64, span float64, values []float64, scale Scale) (*Map, error) {
	if len(x) != len(values) || len(y) != len(values) {
		panic("heatmap: slices differ in length")
	}
	fault := func(err error, hint string) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "draw the heatmap", Err: err, Hint: hint}
	}
	if len(values) == 0 {
		return nil, fault(errors.New("there are no tiles"), "")
	}
	if !(span >= 1) || math.IsInf(span, 1) {
		return nil, fault(fmt.Errorf("a tile covers %g pixels of the slide", span), "say how large tiles are: --span")
	}
	for i, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fault(fmt.Errorf("the value of the tile at %d,%d is %g", x[i], y[i], v), "compute it again")
		}
	}
	m := &Map{What: what, X: x, Y: y, Span: span, Values: values, Scale: scale}
	m.shown = m.normalised()
	return m, nil
}

// Shown is what colours stand for, for each tile: as Scale says.
func (m *Map) Shown() []float64 { return m.shown }

func (m *Map) normalised() []float64 {
	out := make([]float64, len(m.Values))
	if m.Scale == Signed {
		size := make([]float64, len(m.Values))
		for i, v := range m.Values {
			size[i] = math.Abs(v)
		}
		slices.Sort(size)
		top := size[int(0.99*float64(len(size)-1))]
		if top == 0 {
			top = max(size[len(size)-1], math.SmallestNonzeroFloat64)
		}
		for i, v := range m.Values {
			out[i] = min(max(v/top, -1), 1)
		}
		return out
	}
	order := m.order()
	for from := 0; from < len(order); {
		to := from
		for to < len(order) && m.Values[order[to]] == m.Values[order[from]] {
			to++
		}
		for _, i := range order[from:to] {
			out[i] = 0.5
			if len(order) > 1 {
				out[i] = float64(from+to-1) / 2 / float64(len(order)-1)
			}
		}
		from = to
	}
	return out
}

// order is the tiles by rising value, equal ones as they come.
func (m *Map) order() []int {
	order := make([]int, len(m.Values))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case m.Values[a] < m.Values[b]:
			return -1
		case m.Values[a] > m.Values[b]:
			return 1
		}
		return 0
	})
	return order
}

// Highest are the numbers of the n tiles of the highest values, the highest first; Lowest likewise.
func (m *Map) Highest(n int) []int {
	order := m.order()
	slices.Reverse(order)
	return order[:min(n, len(order))]
}

// Lowest are the numbers of the n tiles of the lowest values, the lowest first.
func (m *Map) Lowest(n int) []int { return m.order()[:min(n, len(m.Values))] }

// WriteCSV writes x, y, span, value and what of it is shown, a line a tile, in the order of the bag.
func (m *Map) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	_ = out.Write([]string{"x", "y", "span", "value", "shown"}) // Error, below, says what went wrong
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	for i, v := range m.Values {
		_ = out.Write([]string{strconv.FormatInt(m.X[i], 10), strconv.FormatInt(m.Y[i], 10), number(m.Span), number(v), number(m.shown[i])})
	}
	out.Flush()
	return out.Error()
}

// WriteGeoJSON writes a square for each tile, in level-0 pixels, as QuPath opens them (File › Import objects):
// tiles with the value as a measurement, which QuPath's measurement maps can colour, and our colour.
func (m *Map) WriteGeoJSON(w io.Writer) error {
	type geometry struct {
		Type        string         `json:"type"`
		Coordinates [][][2]float64 `json:"coordinates"`
	}
	type properties struct {
		ObjectType   string             `json:"objectType"`
		Name         string             `json:"name"`
		Color        [3]uint8           `json:"color"`
		Measurements map[string]float64 `json:"measurements"`
	}
	type feature struct {
		Type       string     `json:"type"`
		Geometry   geometry   `json:"geometry"`
		Properties properties `json:"properties"`
	}
	if _, err := io.WriteString(w, `{"type":"FeatureCollection","features":[`); err != nil {
		return err
	}
	for i, v := range m.Values {
		x, y := float64(m.X[i]), float64(m.Y[i])
		c := m.colour(m.shown[i])
		raw, err := json.Marshal(feature{"Feature",
			geometry{"Polygon", [][][2]float64{{{x, y}, {x + m.Span, y}, {x + m.Span, y + m.Span}, {x, y + m.Span}, {x, y}}}},
			properties{"tile", m.What, [3]uint8{c.R, c.G, c.B}, map[string]float64{m.What: v, m.What + " (" + m.scaleName() + ")": m.shown[i]}}})
		if err != nil {
			return err
		}
		if i > 0 {
			raw = append([]byte{','}, raw...)
		}
		if _, err := w.Write(append(raw, '\n')); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, "]}\n")
	return err
}

func (m *Map) scaleName() string {
	if m.Scale == Signed {
		return "of 99th percentile"
	}
	return "rank in slide"
}
