package study

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
)

// Report is what a study found, with all that is needed to find it again.
type Report struct {
	File     *File
	Text     string // the file as it was run
	Plan     *Plan
	Results  Results
	Outcomes []Outcome
	Versions map[string]string // of the program, models and libraries
	Command  string            // that makes it again
	Made     string            // when, as it is to be shown
	Draws    int               // for intervals; 0 is 2,000
}

// section is one figure of one evaluation.
type section struct {
	Title       string
	Lines       []Line
	Differences []Difference
	Plot        template.HTML
}

// page is a report as it is printed.
type page struct {
	Report
	Sections    []section
	Comparisons int
	Percent     string // level of the intervals, after the correction
	Failed      []Outcome
	Left        int
}

func (r Report) page() page {
	draws := r.Draws
	if draws == 0 {
		draws = 2000
	}
	lines := r.Plan.Table(r.Results)
	differences := r.Plan.Differences(r.Results, draws, rand.New(rand.NewPCG(1, 0)))
	p := page{Report: r, Comparisons: len(differences)}
	if len(differences) > 0 {
		p.Percent = fmt.Sprintf("%.4g %%", 100*differences[0].Interval.Level)
	}
	title := func(evaluation, figure, group string) string {
		if group != "" {
			figure += ", " + group
		}
		return evaluation + ": " + strings.ReplaceAll(figure, "_", " ")
	}
	// In the order of the file, also where the first run has diverged.
	place := func(l Line) int {
		return slices.IndexFunc(r.File.Evaluations, func(e Evaluation) bool { return e.Name == l.Evaluation })
	}
	slices.SortStableFunc(lines, func(a, b Line) int { return place(a) - place(b) })
	at := map[string]int{}
	for _, l := range lines {
		t := title(l.Evaluation, l.Figure, l.Group)
		if _, there := at[t]; !there {
			at[t] = len(p.Sections)
			p.Sections = append(p.Sections, section{Title: t})
		}
		s := &p.Sections[at[t]]
		s.Lines = append(s.Lines, l)
	}
	for _, d := range differences {
		if i, there := at[title(d.Evaluation, d.Figure, d.Group)]; there {
			p.Sections[i].Differences = append(p.Sections[i].Differences, d)
		}
	}
	for i, s := range p.Sections {
		p.Sections[i].Plot = forest(s.Differences)
	}
	for _, o := range r.Outcomes {
		switch o.Fate {
		case Failed:
			p.Failed = append(p.Failed, o)
		case Left:
			p.Left++
		}
	}
	return p
}

// forest draws differences with their intervals around zero, as SVG.
func forest(differences []Difference) template.HTML {
	const width, left, height = 720, 300, 22
	reach := 0.0
	for _, d := range differences {
		for _, v := range []float64{d.Low, d.High, d.Value} {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				reach = max(reach, math.Abs(v))
			}
		}
	}
	if reach == 0 {
		return ""
	}
	x := func(v float64) float64 { return left + (width-left-20)*(0.5+0.5*v/reach) }
	var b strings.Builder
	tall := height*len(differences) + 24
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" width="%d" role="img" aria-label="differences with intervals">`, width, tall, width)
	fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="0" y2="%d" stroke="#999"/>`, x(0), x(0), tall-20)
	for i, d := range differences {
		y := height*i + height/2
		fmt.Fprintf(&b, `<text x="0" y="%d" font-size="12">%s</text>`, y+4, template.HTMLEscapeString(short(d.Factor+": "+d.Level, 44)))
		if !math.IsNaN(d.Low) && !math.IsNaN(d.High) {
			fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#246"/>`, x(d.Low), x(d.High), y, y)
		}
		if !math.IsNaN(d.Value) {
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%d" r="3.5" fill="#246"/>`, x(d.Value), y)
		}
	}
	for _, v := range []float64{-reach, 0, reach} {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" font-size="11" text-anchor="middle">%+.3g</text>`, x(v), tall-6, v)
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String()) //nolint:gosec // numbers, and names that were escaped
}

func short(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// MeanSD is mean ± sd as people read it.
func MeanSD(l Line) string {
	switch {
	case l.Seeds == 0:
		return "none"
	case math.IsNaN(l.SD):
		return fmt.Sprintf("%.4g", l.Mean)
	}
	return fmt.Sprintf("%.4g ± %.2g", l.Mean, l.SD)
}

func interval(d Difference) string {
	if math.IsNaN(d.Low) {
		return fmt.Sprintf("%+.3g [not known]", d.Value)
	}
	return fmt.Sprintf("%+.3g [%+.3g, %+.3g]", d.Value, d.Low, d.High)
}

// clearly reports whether the interval leaves zero out. One without width is of pairs that are all the same.
func clearly(d Difference) bool { return d.High > d.Low && (d.Low > 0 || d.High < 0) }

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("study").Funcs(template.FuncMap{"meanSD": MeanSD, "interval": interval, "clearly": clearly,
	"join": strings.Join}).Parse(pageText))

// HTML is the report as one page that needs nothing else.
func (r Report) HTML() ([]byte, error) {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, r.page()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Markdown is the same without the plots.
func (r Report) Markdown() string {
	p := r.page()
	var b strings.Builder
	fmt.Fprintf(&b, "# Study %s\n\n", r.Plan.Name)
	if r.File.Question != "" {
		fmt.Fprintf(&b, "%s\n\n", r.File.Question)
	}
	for _, paper := range r.File.Papers {
		fmt.Fprintf(&b, "- %s\n", paper)
	}
	fmt.Fprintf(&b, "\n%s. %d runs.", r.Made, len(r.Plan.Runs))
	if len(p.Failed) > 0 {
		fmt.Fprintf(&b, " **%d stages failed, and %d that stand on them are missing.**", len(p.Failed), p.Left)
	}
	b.WriteString("\n")
	cell := func(s string) string { return strings.NewReplacer("|", "\\|", "\n", " ").Replace(s) }
	for _, s := range p.Sections {
		fmt.Fprintf(&b, "\n## %s\n\n", s.Title)
		for _, f := range r.Plan.Factors {
			fmt.Fprintf(&b, "| %s ", cell(f))
		}
		b.WriteString("| mean ± sd over seeds | seeds |\n|" + strings.Repeat("---|", len(r.Plan.Factors)+2) + "\n")
		for _, l := range s.Lines {
			for _, level := range l.Levels {
				fmt.Fprintf(&b, "| %s ", cell(level))
			}
			fmt.Fprintf(&b, "| %s | %d", MeanSD(l), l.Seeds)
			if l.Missing > 0 {
				fmt.Fprintf(&b, " (%d missing)", l.Missing)
			}
			b.WriteString(" |\n")
		}
		if len(s.Differences) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n| factor | level | against | difference [%s] | pairs |\n|---|---|---|---|---|\n", p.Percent)
		for _, d := range s.Differences {
			text := interval(d)
			if clearly(d) {
				text = "**" + text + "**"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %d |\n", cell(d.Factor), cell(d.Level), cell(d.Against), text, d.Pairs)
		}
	}
	if p.Comparisons > 0 {
		fmt.Fprintf(&b, "\n%s\n", explanation(p.Comparisons, r.Plan.seeds()))
	}
	if len(p.Failed) > 0 {
		b.WriteString("\n## What failed\n\n")
		for _, o := range p.Failed {
			fmt.Fprintf(&b, "- %s %s: %s\n", o.Kind, o.Key, o.Reason)
		}
	}
	fmt.Fprintf(&b, "\n## How to make it again\n\n    %s\n\n", r.Command)
	for _, k := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(&b, "- %s: %s\n", k, r.Versions[k])
	}
	fmt.Fprintf(&b, "\n```yaml\n%s\n```\n", strings.TrimRight(r.Text, "\n"))
	return b.String()
}

// explanation says what intervals are worth.
func explanation(comparisons, seeds int) string {
	s := fmt.Sprintf("Differences are of pairs of runs that agree in everything but the factor, on the same splits. Intervals come from draws of seeds and of splits; "+
		"their level is raised for %d comparisons (Bonferroni), so that all of them hold together with 95 %%.", comparisons)
	if seeds < 3 {
		s += " With fewer than three seeds they hardly know how much training varies."
	}
	return s
}

// seeds is how many its runs have.
func (p *Plan) seeds() int {
	met := map[uint64]bool{}
	for _, r := range p.Runs {
		met[r.Seed] = true
	}
	return len(met)
}

// Explain is explanation for the page.
func (p page) Explain() string { return explanation(p.Comparisons, p.Plan.seeds()) }
