package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"coverslip"
	"coverslip/mil/split"
)

type splitsCmd struct {
	Make  splitsMakeCmd  `cmd:"" help:"Divide slides into folds that no patient straddles."`
	Audit splitsAuditCmd `cmd:"" help:"Say which patients and sites stand on both sides of a split file."`
}

type splitsAuditCmd struct {
	File   string `arg:"" type:"path" help:"A split file: a column of folds (Giga-SSL), columns fold_0 … of train, val and test (Patho-Bench), columns train, val and test of slides (CLAM; or the folder of its files)."`
	Column string `placeholder:"NAME" help:"The column with the folds, where the file has several."`
	Slides string `type:"existingfile" placeholder:"FILE" help:"A table that says patient and site of each slide, where neither the file nor a TCGA name does."`
}

// Help is shown by coverslip splits audit --help.
func (splitsAuditCmd) Help() string {
	return `Examples:
  coverslip splits audit brca_histotypes.csv
  coverslip splits audit luad_splits.csv --column CV3_stage_standard
  coverslip splits audit splits/task_1/ --slides tumor_vs_normal.csv --json

Patients and sites come from columns of the file, or from TCGA names. docs/EVALUATION.md says what
either leak does to figures.`
}

// Run audits one file.
func (c *splitsAuditCmd) Run(e *env) error {
	f, err := split.Read(c.File, split.ReadOptions{Column: c.Column, Slides: c.Slides})
	if err != nil {
		return err
	}
	a, err := split.Examine(f)
	if err != nil {
		return coverslip.At(c.File, err)
	}
	if e.json {
		return e.emit(struct {
			File    string `json:"file"`
			Verdict string `json:"verdict"`
			split.Audit
		}{c.File, a.Verdict(), a})
	}
	e.printf("%s: %s, %s, %s\n\n", c.File, count(a.Slides, "slide"), count(a.Patients, "patient"), count(a.Sites, "site"))
	e.printAudit(a)
	return nil
}

func (e *env) printAudit(a split.Audit) {
	const most = 20 // lines of either list; --json has all
	rows := []string{"split\ttrain\tval\ttest\tpatients on both sides\tof test patients\tof test slides\tof test sites"}
	for i, f := range a.Folds {
		if i == most {
			rows = append(rows, fmt.Sprintf("… %d more", len(a.Folds)-most))
			break
		}
		rows = append(rows, fmt.Sprintf("%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s", f.Split, f.Train, f.Val, f.Test, f.PatientsOnBothSides,
			share(f.TestPatientsSeen, f.TestPatients), share(f.TestRowsSeen, f.Test), share(f.TestSitesSeen, f.TestSites)))
	}
	e.table(rows...)
	if len(a.LeakingPatients) > 0 {
		rows = []string{"\npatient on both sides\tin splits\tslides"}
		for i, p := range a.LeakingPatients {
			if i == most {
				rows = append(rows, fmt.Sprintf("… %d more, with --json", len(a.LeakingPatients)-most))
				break
			}
			rows = append(rows, fmt.Sprintf("%s\t%s\t%d", p.Name, strings.Join(p.Splits[:min(8, len(p.Splits))], " "), len(p.Slides)))
		}
		e.table(rows...)
	}
	e.printf("\n")
	for _, n := range a.Notes {
		e.printf("note: %s\n", n)
	}
	e.printf("%s\n", a.Verdict())
}

func share(n, of int) string {
	if of == 0 {
		return "–"
	}
	return fmt.Sprintf("%d of %d (%.0f %%)", n, of, 100*float64(n)/float64(of))
}

type splitsMakeCmd struct {
	File          string  `arg:"" type:"existingfile" help:"A table of slides (CSV or TSV) with columns slide_id, patient or case_id, site, and labels. TCGA names need no columns of patients and sites."`
	Label         string  `required:"" placeholder:"COLUMN" help:"The column with the classes."`
	K             int     `short:"k" default:"5" help:"Folds (${default})."`
	Repeats       int     `default:"1" help:"Do it again with other folds, so many times in all."`
	MonteCarlo    int     `placeholder:"N" help:"N random test sides instead of folds."`
	Test          float64 `default:"0.2" help:"Share of the test side with --monte-carlo (${default})."`
	Val           float64 `default:"0" help:"Share of the training side set apart for choosing."`
	By            string  `enum:"patient,site,none" default:"patient" help:"What must not stand on two sides: patient, site or none (${default})."`
	PreserveSites bool    `help:"Whole sites in the folds whose classes are most even (Howard et al. 2021)."`
	FewShot       []int   `sep:"," placeholder:"K,…" help:"For each K, training sides of only K slides of each class: a file each, k=K.tsv."`
	FewSlides     []int   `sep:"," placeholder:"N,…" help:"For each N, training sides of only N slides: a file each, n=N.tsv."`
	Draws         int     `default:"50" help:"Draws for each K and N, from the training sides in turn (${default})."`
	Seed          uint64  `default:"0" help:"Equal seeds give equal splits (${default})."`
	Form          string  `enum:"auto,fold-column,side-columns,clam" default:"auto" help:"How to write: fold-column (slide_id, …, fold), side-columns (Patho-Bench's fold_0 …), clam (a folder of splits_0.csv …). auto is the first, or the second where the first cannot say it."`
	Out           string  `required:"" type:"path" placeholder:"FILE" help:"Where to; a folder for clam, --few-shot and --few-slides."`
}

// Help is shown by coverslip splits make --help.
func (splitsMakeCmd) Help() string {
	return `Examples:
  coverslip splits make slides.csv --label subtype --seed 1 --out folds.csv
  coverslip splits make slides.csv --label subtype -k 10 --repeats 5 --val 0.1 --out folds.tsv
  coverslip splits make slides.csv --label subtype -k 3 --preserve-sites --out folds.csv
  coverslip splits make slides.csv --label subtype --few-shot 1,2,4,8,16 --few-slides 50,100 --out few/

Classes are spread evenly. What is left out (no label, listed twice) is listed, and the result audited.`
}

// Run makes splits, writes and audits them.
func (c *splitsMakeCmd) Run(e *env) error {
	by, err := c.by()
	if err != nil {
		return err
	}
	rows, err := split.ReadRows(c.File, c.Label)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(c.Seed, 0))
	o := split.Options{By: by, Val: c.Val}
	var splits []split.Split
	var report split.Report
	if c.MonteCarlo > 0 {
		splits, report, err = split.MonteCarlo(rows, c.MonteCarlo, c.Test, o, rng)
	} else {
		splits, report, err = split.KFold(rows, c.K, c.Repeats, o, rng)
	}
	if err != nil {
		return coverslip.At(c.File, err)
	}
	files, all, err := c.files(rows, splits, rng)
	if err != nil {
		return coverslip.At(c.File, err)
	}
	for _, f := range files {
		if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil { //nolint:gosec // a folder of tables, like any the user makes
			return diskError("write the splits", f.path, err)
		}
		if err := publish(f.path, func(w io.Writer) error { _, err := w.Write(f.body); return err }); err != nil {
			return err
		}
	}
	audit, err := split.Examine(&split.File{Rows: rows, Splits: all})
	if err != nil && by != split.BySlide { // without patients there is nothing to audit
		return err
	}
	if e.json {
		var paths []string
		for _, f := range files {
			paths = append(paths, f.path)
		}
		return e.emit(struct {
			Files               []string `json:"files"`
			Slides              int      `json:"slides"`
			Splits              int      `json:"splits"`
			PatientsOnBothSides int      `json:"patients_on_both_sides"`
			SitesOnBothSides    int      `json:"sites_on_both_sides"`
			split.Report
		}{paths, len(rows) - len(report.Left), len(all), audit.PatientsOnBothSides, audit.SitesOnBothSides, report})
	}
	c.print(e, rows, splits, report)
	if err == nil {
		e.printf("%s\n", audit.Verdict())
	}
	for _, f := range files {
		e.printf("wrote %s\n", f.path)
	}
	return nil
}

func (c *splitsMakeCmd) by() (split.By, error) {
	switch {
	case c.PreserveSites && c.By == "none":
		return 0, &usageError{"--preserve-sites keeps sites together; it does not go with --by none"}
	case c.PreserveSites && c.MonteCarlo > 0:
		return 0, &usageError{"--preserve-sites goes with folds, not with --monte-carlo"}
	case c.MonteCarlo > 0 && c.Repeats > 1:
		return 0, &usageError{"--repeats goes with folds; for more random test sides raise --monte-carlo"}
	case (len(c.FewShot) > 0 || len(c.FewSlides) > 0) && c.Form != "auto" && c.Form != "side-columns":
		return 0, &usageError{"--few-shot and --few-slides are written as side-columns"}
	case c.Draws < 1:
		return 0, &usageError{"--draws must be at least 1"}
	case c.PreserveSites:
		return split.BySitePreserved, nil
	}
	return map[string]split.By{"patient": split.ByPatient, "site": split.BySite, "none": split.BySlide}[c.By], nil
}

// splitFile is a file to write.
type splitFile struct {
	path string
	body []byte
}

// files puts the splits into files; all are those that they hold.
func (c *splitsMakeCmd) files(rows []split.Row, splits []split.Split, rng *rand.Rand) (files []splitFile, all []split.Split, err error) {
	add := func(path string, write func(*bytes.Buffer) error) {
		var b bytes.Buffer
		if err == nil {
			err = write(&b)
		}
		files = append(files, splitFile{path, b.Bytes()})
	}
	sides := func(path string, some []split.Split) {
		add(path, func(b *bytes.Buffer) error { return split.WriteSides(b, rows, some, c.Label) })
	}
	few := func(kind string, sizes []int, draw func([]split.Row, split.Split, int, *rand.Rand) (split.Split, error)) {
		for _, n := range sizes {
			var drawn []split.Split
			for d := 0; d < c.Draws && err == nil; d++ {
				var s split.Split
				s, err = draw(rows, splits[d%len(splits)], n, rng)
				drawn = append(drawn, s)
			}
			if err != nil {
				return
			}
			sides(filepath.Join(c.Out, fmt.Sprintf("%s=%d.tsv", kind, n)), drawn)
			all = append(all, drawn...)
		}
	}
	if len(c.FewShot) > 0 || len(c.FewSlides) > 0 {
		few("k", c.FewShot, split.FewShot)
		few("n", c.FewSlides, split.Few)
		return files, all, err
	}
	form := split.Form(c.Form)
	if form == "auto" {
		form = split.FoldColumn
		if c.Val > 0 || c.Repeats > 1 || c.MonteCarlo > 0 {
			form = split.SideColumns
		}
	}
	switch form {
	case split.FoldColumn:
		add(c.Out, func(b *bytes.Buffer) error { return split.WriteFolds(b, rows, splits, c.Label) })
	case split.SideColumns:
		sides(c.Out, splits)
	case split.CLAM:
		for i, s := range splits {
			add(filepath.Join(c.Out, fmt.Sprintf("splits_%d.csv", i)), func(b *bytes.Buffer) error { return split.WriteCLAM(b, rows, s) })
		}
	}
	return files, splits, err
}

// print shows how many slides of each class each side has.
func (c *splitsMakeCmd) print(e *env, rows []split.Row, splits []split.Split, report split.Report) {
	const most = 20
	var classes []string
	used := make([]bool, len(rows))
	for _, s := range splits {
		for i, side := range s.Side {
			used[i] = used[i] || side != split.Out
		}
	}
	for i, r := range rows {
		if used[i] && !slices.Contains(classes, r.Label) {
			classes = append(classes, r.Label)
		}
	}
	slices.Sort(classes)
	lines := []string{"split\ttrain\tval\ttest\ttest: " + strings.Join(classes, "\t")}
	for n, s := range splits {
		if n == most {
			lines = append(lines, fmt.Sprintf("… %d more", len(splits)-most))
			break
		}
		test := s.Rows(split.Test)
		line := fmt.Sprintf("%s\t%d\t%d\t%d", s.Name, len(s.Rows(split.Train)), len(s.Rows(split.Val)), len(test))
		for _, l := range classes {
			n := 0
			for _, i := range test {
				if rows[i].Label == l {
					n++
				}
			}
			line += fmt.Sprintf("\t%d", n)
		}
		lines = append(lines, line)
	}
	e.table(lines...)
	e.printf("\n")
	if b := report.Balance; b != nil {
		e.printf("classes of whole sites are %.2f patients off an equal share (root mean square); criterion %d, ", b.OffEven, b.Criterion)
		if b.Best {
			e.printf("and no arrangement is better\n")
		} else {
			e.printf("none can be below %d\n", b.Least)
		}
	}
	for _, n := range report.Notes {
		e.printf("note: %s\n", n)
	}
	for i, l := range report.Left {
		if i == most {
			e.printf("… %d more left out, with --json\n", len(report.Left)-most)
			break
		}
		e.printf("left out: %s: %s\n", l.Slide, l.Reason)
	}
}
