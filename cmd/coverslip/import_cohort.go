package main

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"coverslip"
	"coverslip/internal/cohort"
	"coverslip/internal/ingest"
	"coverslip/tiler/remote"
)

type importGDCCmd struct {
	Manifest string `arg:"" type:"path" help:"The manifest, from the GDC portal."`
	Source   string `default:"s3://tcga-2-open" placeholder:"PLACE" help:"Where the files lie, each as <id>/<filename>: a bucket, or a folder that gdc-client filled (${default})."`
	Cohort   string `required:"" placeholder:"NAME" help:"Put the slides into this cohort, made if it is new."`
	dataFlags
}

// Help is shown by coverslip import gdc --help.
func (importGDCCmd) Help() string {
	return `Examples:
  coverslip import gdc gdc_manifest.txt --cohort tcga-brca
  coverslip import gdc gdc_manifest.txt --cohort tcga-brca --source 's3://mirror/tcga?endpoint=http://s3:7070'
  coverslip encode --cohort tcga-brca --wait

Nothing is copied or read. Patient and site come from the names. Until a slide's bytes are read whole, by the
worker that encodes it, its id is provisional; then size and MD5 must be those of the manifest, and its id
becomes the SHA-256. Files that are no slides are passed over. Doing it twice registers nothing twice.`
}

// referred is what an import by reference came to, as printed with --json.
type referred struct {
	Cohort  string  `json:"cohort"`
	Slides  int     `json:"slides"`  // of the manifest or bucket
	Created int     `json:"created"` // were not known before
	Others  int     `json:"others"`  // files that are no slides
	Repeats int     `json:"repeats"` // lines and files that say the same bytes again
	NoMD5   int     `json:"no_md5"`  // of which nothing says what bytes they must have
	Seconds float64 `json:"seconds"`
}

// Run registers the manifest's slides.
func (c *importGDCCmd) Run(e *env) error {
	started := time.Now()
	m, err := cohort.ReadManifest(c.Manifest)
	if err != nil {
		return err
	}
	place, err := placeIn(c.Source)
	if err != nil {
		return err
	}
	if err := c.look(e, m, place); err != nil {
		return err
	}
	refs, members, noMD5 := references(m, place)
	r := referred{Others: m.Others, Repeats: m.Repeats, NoMD5: noMD5}
	return c.refer(e, c.Cohort, refs, members, r, started)
}

// references are the slides of a manifest, as Refer takes them.
func references(m cohort.Manifest, place func(id, name string) string) (refs []ingest.Reference, members []coverslip.Member, noMD5 int) {
	for _, f := range m.Slides {
		if f.MD5 == "" {
			noMD5++
		}
		refs = append(refs, ingest.Reference{Name: f.Name, Place: place(f.ID, f.Name), Bytes: f.Bytes, MD5: f.MD5, Mark: "GDC file " + f.ID})
		members = append(members, coverslip.Member{Patient: f.Code.Patient, Site: f.Code.Site})
	}
	return refs, members, noMD5
}

// look refuses a source of which nothing can be had before anything is written. Whether each file is there
// shows when it is encoded.
func (c *importGDCCmd) look(e *env, m cohort.Manifest, place func(id, name string) string) error {
	first := place(m.Slides[0].ID, m.Slides[0].Name)
	if !remote.Is(first) {
		if _, err := os.Stat(c.Source); err != nil {
			return &coverslip.Error{Kind: coverslip.NotFound, Op: "look for the slides", Path: c.Source, Err: err, Hint: "name the folder that gdc-client filled, or a bucket"}
		}
		missing := 0
		for _, f := range m.Slides {
			if _, err := os.Stat(place(f.ID, f.Name)); err != nil {
				if missing++; missing <= 5 {
					e.say("not there yet: %s\n", place(f.ID, f.Name))
				}
			}
		}
		if missing > 0 {
			e.say("%d of %s are not there yet; encoding them fails until they are\n", missing, count(len(m.Slides), "slide"))
		}
		return nil
	}
	err := remote.Reachable(e, first)
	if coverslip.KindOf(err) == coverslip.NotFound && !remote.IsNoBucket(err) {
		e.say("the first slide of the manifest is not there (%s); others may be\n", remote.Shown(first))
		return nil
	}
	return err
}

// placeIn returns where a file of the GDC lies in a source.
func placeIn(source string) (func(id, name string) string, error) {
	if !strings.HasPrefix(source, "s3://") {
		if remote.Is(source) {
			return nil, &usageError{"--source is a bucket (s3://…) or a folder"}
		}
		dir, err := filepath.Abs(source)
		return func(id, name string) string { return filepath.Join(dir, id, name) }, err
	}
	u, err := url.Parse(source)
	if err != nil || u.Host == "" {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read the source", Path: source, Err: errors.New("it is no address of a bucket"), Hint: "write s3://bucket/prefix?endpoint=http://host:port"}
	}
	return func(id, name string) string { return u.JoinPath(id, url.PathEscape(name)).String() }, nil
}

// refer registers and says what came of it.
func (f *dataFlags) refer(e *env, name string, refs []ingest.Reference, members []coverslip.Member, r referred, started time.Time) error {
	if err := checkCohort(name); err != nil {
		return err
	}
	p, err := f.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	in := &ingest.Ingest{DB: p.DB, Log: e.log}
	out, err := in.Refer(e, name, refs, members)
	if err != nil {
		return err
	}
	r.Cohort, r.Slides, r.Created, r.Seconds = name, len(out.Slides), out.Created, time.Since(started).Seconds()
	r.Repeats += len(refs) - len(out.Slides)
	if e.json {
		return e.emit(r)
	}
	e.printf("%s: %s, %d of them new, in %.1f s; nothing was read\n", name, count(r.Slides, "slide"), r.Created, r.Seconds)
	if r.Others+r.Repeats > 0 {
		e.printf("passed over: %d files that are no slides, %d that are there twice\n", r.Others, r.Repeats)
	}
	if r.NoMD5 > 0 {
		e.printf("nothing says what bytes %d of them must have: what is there when they are first read counts\n", r.NoMD5)
	}
	e.printf("encode them: coverslip encode --cohort %s --wait\n", name)
	return nil
}

type importS3Cmd struct {
	Prefix string `arg:"" help:"s3://bucket/prefix[?endpoint=http://host:port]: all objects whose keys begin so."`
	Cohort string `required:"" placeholder:"NAME" help:"Put the slides into this cohort, made if it is new."`
	dataFlags
}

// Help is shown by coverslip import s3 --help.
func (importS3Cmd) Help() string {
	return `Examples:
  coverslip import s3 s3://archive/2024/ --cohort archive-2024
  coverslip import s3 's3://archive/?endpoint=http://127.0.0.1:7070' --cohort all

The bucket is listed, nothing is copied or read: see coverslip import gdc --help. Objects are taken for slides
by the endings of their names (` + strings.Join(cohort.SlideSuffixes, " ") + `), and judged by their content when they
are encoded. A slide of several objects (DICOM) is registered by its folder: coverslip ingest s3://bucket/folder/`
}

// Run registers the bucket's slides.
func (c *importS3Cmd) Run(e *env) error {
	started := time.Now()
	var r referred
	var refs []ingest.Reference
	var members []coverslip.Member
	for o, err := range remote.Objects(e, c.Prefix) {
		if err != nil {
			return err
		}
		if !cohort.IsSlide(o.Name) || o.Bytes == 0 {
			r.Others++
			continue
		}
		code, _ := coverslip.ParseTCGA(o.Name)
		refs = append(refs, ingest.Reference{Name: o.Name, Place: o.Address, Bytes: o.Bytes, Mark: "ETag " + o.ETag})
		members = append(members, coverslip.Member{Patient: code.Patient, Site: code.Site})
	}
	if len(refs) == 0 {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "list bucket", Path: remote.Shown(c.Prefix), Err: fmt.Errorf("no slide is among its %s", count(r.Others, "object")), Hint: "check the prefix; slides end in " + strings.Join(cohort.SlideSuffixes, " ")}
	}
	r.NoMD5 = len(refs)
	return c.refer(e, c.Cohort, refs, members, r, started)
}

type importCSVCmd struct {
	File        string            `arg:"" type:"path" help:"A table: a line a slide, columns slide (path, name or id), patient, site, and labels."`
	Cohort      string            `required:"" placeholder:"NAME" help:"Put the slides into this cohort, made if it is new."`
	Type        map[string]string `placeholder:"COLUMN=KIND" help:"What a column holds, where it should not be guessed: number, category or bool."`
	SkipMissing bool              `help:"Leave out slides that are not registered. Without it, one refuses the table."`
	dataFlags
}

// Help is shown by coverslip import csv --help.
func (importCSVCmd) Help() string {
	return `Examples:
  coverslip import csv labels.csv --cohort brca
  coverslip import csv clinical.tsv --cohort brca --type grade=category --skip-missing

  slide,patient,site,subtype,age,recurrence
  TCGA-A7-A6VV-01Z-00-DX1.svs,TCGA-A7-A6VV,A7,IDC,61,no

Slides are registered already, or have only a bag that was imported. A column of true and false (yes and no)
becomes bool, one of numbers number, others category. Empty cells and NA say nothing, and leave what is
there. A column keeps its kind. TCGA names need no columns of patients and sites.`
}

// Run reads the table and puts its slides into the cohort.
func (c *importCSVCmd) Run(e *env) error {
	said := map[string]coverslip.LabelKind{}
	for name, kind := range c.Type {
		switch k := coverslip.LabelKind(kind); k {
		case coverslip.NumberLabel, coverslip.CategoryLabel, coverslip.BoolLabel:
			said[name] = k
		default:
			return &usageError{fmt.Sprintf("--type %s=%s: a kind is number, category or bool", name, kind)}
		}
	}
	if err := checkCohort(c.Cohort); err != nil {
		return err
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	kinds, err := p.DB.LabelKinds(e, c.Cohort)
	if err != nil {
		return err
	}
	maps.Copy(kinds, said) // storage refuses what contradicts
	rows, err := cohort.ReadTable(c.File, kinds)
	if err != nil {
		return err
	}
	in := &ingest.Ingest{DB: p.DB, Log: e.log}
	out, err := in.Label(e, c.Cohort, rows, c.SkipMissing)
	if err != nil {
		return coverslip.At(c.File, err)
	}
	if e.json {
		return e.emit(struct {
			Rows    int              `json:"rows"` // of the table that are in the cohort now
			Missing []string         `json:"missing,omitempty"`
			Cohort  coverslip.Cohort `json:"cohort"`
		}{out.Slides, out.Missing, out.Cohort})
	}
	for i, name := range out.Missing {
		if i == 10 {
			e.say("… and %d more\n", len(out.Missing)-i)
			break
		}
		e.say("left out, not registered: %s\n", name)
	}
	e.printf("%s of %s\n", count(out.Slides, "slide"), c.File)
	e.printCohort(out.Cohort)
	return nil
}

// checkCohort refuses names that mean something else.
func checkCohort(name string) error {
	if strings.Contains(name, "@") {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "change the cohort", Path: "cohort " + name, Err: errors.New("versions of a cohort do not change"), Hint: "name it without @"}
	}
	return nil
}
