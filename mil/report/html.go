package report

import (
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
)

//go:embed page.html
var page string

// WriteHTML writes a page that stands alone: figures, plots, what was left out and the split file.
func (r Report) WriteHTML(w io.Writer) error {
	type plots struct {
		Group
		Wide, Narrow     []string
		ROC, Calibration template.URL
	}
	view := struct {
		Report
		Plots []plots
	}{Report: r}
	for _, g := range r.Groups {
		p := plots{Group: g}
		for _, draw := range []struct {
			of func(string) ([]byte, error)
			to *template.URL
		}{{r.ROC, &p.ROC}, {r.Calibration, &p.Calibration}} {
			raw, err := draw.of(g.Name)
			if err != nil {
				return err
			}
			if raw != nil {
				*draw.to = template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(raw)) //nolint:gosec // a picture of ours
			}
		}
		view.Plots = append(view.Plots, p)
	}
	t, err := template.New("page").Funcs(template.FuncMap{
		"title":    Title,
		"interval": func(f Figure) string { return Interval(f.Value, f.Low, f.High) },
		"gain":     func(s Scored) string { return Gain(s) },
		"sd": func(f Figure) string {
			if f.Folds.SD == nil {
				return ""
			}
			return fmt.Sprintf("± %.3f", *f.Folds.SD)
		},
		"short":   func(id string) string { return id[:min(12, len(id))] },
		"percent": func(v float64) string { return fmt.Sprintf("%g %%", 100*v) },
	}).Parse(page)
	if err != nil {
		return err
	}
	return t.Execute(w, view)
}

// Title is a figure's name for people.
func Title(name string) string {
	switch name {
	case "auc":
		return "AUC"
	case "auc_one_vs_rest":
		return "AUC one-vs-rest"
	case "auc_one_vs_one":
		return "AUC one-vs-one"
	case "f1":
		return "F1"
	case "brier":
		return "Brier score"
	}
	return strings.ReplaceAll(name, "_", " ")
}

// Interval is "0.912 [0.887, 0.934]", or a dash for what is not defined.
func Interval(value, low, high float64) string {
	switch {
	case math.IsNaN(value):
		return "–"
	case math.IsNaN(low):
		return fmt.Sprintf("%.3f", value)
	}
	return fmt.Sprintf("%.3f [%.3f, %.3f]", value, low, high)
}

// Gain is what a method has over mean pooling, or nothing.
func Gain(s Scored) string {
	switch {
	case s.Gain == nil || math.IsNaN(s.Gain.Value):
		return ""
	case math.IsNaN(s.Gain.Low):
		return fmt.Sprintf("%+.3f", s.Gain.Value)
	}
	return fmt.Sprintf("%+.3f [%+.3f, %+.3f]", s.Gain.Value, s.Gain.Low, s.Gain.High)
}
