package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"coverslip"
	"coverslip/mil/report"
)

type runsCmd struct {
	List runsListCmd `cmd:"" default:"withargs" help:"List all runs, the newest first."`
	Show runsShowCmd `cmd:"" help:"Show one: figures with intervals, plots, the split file."`
}

type runsListCmd struct {
	Cohort string `placeholder:"NAME" help:"Only those of this cohort."`
	dataFlags
}

// Help is shown by coverslip runs list --help.
func (runsListCmd) Help() string {
	return `Example:
  coverslip runs list --cohort brca`
}

// Run lists runs.
func (c *runsListCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	runs, err := p.DB.Runs(e)
	if err != nil {
		return err
	}
	rows := []string{"run\tkind\tcohort\tlabel\tmethods\tcreated"}
	for _, r := range runs {
		if c.Cohort != "" && r.Cohort != c.Cohort {
			continue
		}
		if e.json {
			if err := e.emit(r); err != nil {
				return err
			}
		}
		var methods []string
		for _, m := range r.Methods {
			if !m.Baseline {
				methods = append(methods, m.Name)
			}
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s", r.ID[:12], r.Kind, r.Cohort, r.Label, strings.Join(methods, ", "), r.Created.Format("2006-01-02 15:04")))
	}
	switch {
	case e.json:
	case len(rows) == 1:
		e.printf("no runs; coverslip probe --cohort C --label L makes one\n")
	default:
		e.table(rows...)
	}
	return nil
}

type runsShowCmd struct {
	ID         string `arg:"" help:"Its id, or the first 6 digits of it."`
	Out        string `type:"path" placeholder:"DIR" help:"Write report.html with the plots, figures.json, predictions.csv and splits.tsv there."`
	Splits     bool   `help:"Print the split file, and nothing else."`
	Bootstraps int    `default:"1000" help:"Draws of patients for the intervals (${default})."`
	Seed       uint64 `default:"0" help:"Equal seeds give equal intervals (${default})."`
	dataFlags
}

// Help is shown by coverslip runs show --help.
func (runsShowCmd) Help() string {
	return `Examples:
  coverslip runs show 3f2a91
  coverslip runs show 3f2a91 --out report/        # the page with ROC and calibration plots
  coverslip runs show 3f2a91 --splits > folds.tsv # exactly the splits it was judged on

Figures are means over the splits. Intervals are of patients drawn anew, each with all of its slides.`
}

// Run shows one run.
func (c *runsShowCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	run, err := p.DB.RunByPrefix(e, strings.ToLower(c.ID))
	if err != nil {
		return err
	}
	if c.Splits {
		_, err := io.WriteString(e.out, run.Splits)
		return err
	}
	predictions, err := p.DB.Predictions(e, run.ID)
	if err != nil {
		return err
	}
	return e.showRun(run, predictions, report.Options{Draws: c.Bootstraps, Seed: c.Seed}, c.Out)
}

// showRun prints the report of a run and, with out, writes it as files.
func (e *env) showRun(run coverslip.Run, predictions []coverslip.Prediction, o report.Options, out string) error {
	r := report.Of(run, predictions, o)
	if out != "" {
		if err := writeReport(r, predictions, out); err != nil {
			return err
		}
	}
	if e.json {
		return e.emit(r)
	}
	e.printf("run %s: %s of %s in cohort %s\n%s of %s tested", run.ID[:12], run.Kind, run.Label, run.Cohort, count(r.Slides, "slide"), count(r.Patients, "patient"))
	if len(run.LeftOut) > 0 {
		e.printf(", %d left out", len(run.LeftOut))
	}
	if r.Unknown > 0 {
		e.printf(", %d more predicted whose class is not known", r.Unknown)
	}
	e.printf("\n\n")
	if len(r.Groups) > 0 {
		e.showFigures(r)
	}
	for _, n := range run.Notes {
		e.printf("note: %s\n", n)
	}
	const most = 10
	for i, l := range run.LeftOut {
		if i == most {
			e.printf("… %d more left out, with --json\n", len(run.LeftOut)-most)
			break
		}
		e.printf("left out: %s: %s\n", l.Slide, l.Reason)
	}
	if out != "" {
		e.printf("wrote %s\n", filepath.Join(out, "report.html"))
	} else {
		e.printf("coverslip runs show %s --out DIR writes the page with the plots and the split file\n", run.ID[:12])
	}
	return nil
}

// showFigures prints the table of a report and what it rests on.
func (e *env) showFigures(r report.Report) {
	e.table(reportRows(r)...)
	var splits []string
	for _, g := range r.Groups {
		splits = append(splits, strings.TrimSpace(count(g.Splits, "split")+" of "+g.Name))
	}
	if len(r.Groups) == 1 && r.Groups[0].Name == "" {
		splits[0] = count(r.Groups[0].Splits, "split")
	}
	e.printf("\nMeans over %s", strings.Join(splits, ", "))
	if r.Draws > 0 {
		e.printf("; in brackets %g %% intervals, from %d draws of patients", 100*r.Level, r.Draws)
	}
	e.printf("\n")
	for _, m := range r.Run.Methods {
		if m.Note != "" {
			e.printf("%s: %s\n", m.Name, m.Note)
		}
	}
	for _, g := range r.Groups {
		for _, m := range g.Methods {
			if len(m.Figures) > 0 && m.Figures[0].Folds.Undefined > 0 {
				e.printf("note: %s of %s is not defined in %s\n", report.Title(m.Figures[0].Name), strings.TrimSpace(g.Name+" "+m.Name), count(m.Figures[0].Folds.Undefined, "split"))
			}
		}
	}
}

// reportRows are the table of a report; --json and the page have every figure.
func reportRows(r report.Report) []string {
	shown := map[string]bool{"auc": true, "auc_one_vs_rest": true, "accuracy": true, "balanced_accuracy": true, "log_loss": true, "quadratic_kappa": true, "concordance": true}
	gains := slices.ContainsFunc(r.Groups, func(g report.Group) bool {
		return slices.ContainsFunc(g.Methods, func(m report.Scored) bool { return m.Gain != nil })
	})
	var rows []string
	for _, g := range r.Groups {
		for _, m := range g.Methods {
			head, line := "method", m.Name
			if len(r.Groups) > 1 || g.Name != "" {
				head, line = "training\t"+head, g.Name+"\t"+line
			}
			for _, f := range m.Figures {
				if shown[f.Name] {
					head += "\t" + report.Title(f.Name)
					line += "\t" + report.Interval(f.Value, f.Low, f.High)
				}
			}
			if gains {
				head, line = head+"\tgain over mean pooling", line+"\t"+report.Gain(m)
			}
			if rows == nil {
				rows = append(rows, head)
			}
			rows = append(rows, line)
		}
	}
	return rows
}

// writeReport writes the files of a report.
func writeReport(r report.Report, predictions []coverslip.Prediction, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil { //nolint:gosec // results for everybody, like any program's
		return diskError("write the report", out, err)
	}
	files := map[string]func(io.Writer) error{
		"report.html":     r.WriteHTML,
		"figures.json":    r.WriteJSON,
		"predictions.csv": func(w io.Writer) error { return report.WritePredictions(w, r.Run, predictions) },
		"splits.tsv":      func(w io.Writer) error { _, err := io.WriteString(w, r.Run.Splits); return err },
	}
	for name, write := range files {
		if err := publish(filepath.Join(out, name), write); err != nil {
			return err
		}
	}
	for _, g := range r.Groups {
		suffix := strings.NewReplacer("=", "", "/", "-").Replace(g.Name)
		if suffix != "" {
			suffix = "-" + suffix
		}
		for name, draw := range map[string]func(string) ([]byte, error){"roc": r.ROC, "calibration": r.Calibration} {
			raw, err := draw(g.Name)
			if err != nil {
				return err
			}
			if raw == nil {
				continue
			}
			if err := publish(filepath.Join(out, name+suffix+".png"), func(w io.Writer) error { _, err := w.Write(raw); return err }); err != nil {
				return err
			}
		}
	}
	return nil
}
