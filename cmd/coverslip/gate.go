package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/internal/nn"
	"coverslip/slidessl"
	"coverslip/slidessl/measure"
	"coverslip/storage"
)

type gateCmd struct {
	Fit   gateFitCmd   `cmd:"" help:"Learn from usual slides what is usual."`
	Check gateCheckCmd `cmd:"" help:"Say which slides are strange: pen marks, out of focus, no tissue, another stain."`
}

type gateFitCmd struct {
	Cohort  string  `required:"" placeholder:"NAME" help:"Slides that are as they should be."`
	Out     string  `required:"" placeholder:"NAME" help:"Call the gate so; one of this name is replaced."`
	Score   string  `enum:"mahalanobis,nearest,residual" default:"mahalanobis" help:"What it goes by: mahalanobis, nearest or residual (${default})."`
	Pass    float64 `default:"0.95" help:"Share of usual slides that it lets pass (${default})."`
	Encoder string  `env:"COVERSLIP_ENCODER" default:"efficientnet-lite0" placeholder:"NAME" help:"Whose embeddings (${default})."`
	dataFlags
}

// Help is shown by coverslip gate fit --help.
func (gateFitCmd) Help() string {
	return `Examples:
  coverslip gate fit --cohort good --out brca
  coverslip gate check brca --cohort new
  coverslip ingest *.svs --cohort brca --gate brca --wait

It looks at the mean of a slide's tiles: docs/studies/README.md has how well that finds what. The threshold is
found on slides that the score had not seen; gate check and ingest take another one with --threshold.`
}

// gateMeta is what a gate's file says beside the embeddings that it learned from.
const (
	gateScore   = "score"
	gatePass    = "pass"
	gateEncoder = "encoder"
)

func gateBlob(name string) string { return "gates/" + name + ".safetensors" }

// Run fits a gate and keeps what it learned from.
func (c *gateFitCmd) Run(e *env) error {
	if !modelName.MatchString(c.Out) {
		return &usageError{fmt.Sprintf("--out %q: a name has letters, digits, dots and dashes", c.Out)}
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	x := nn.Param{Name: "usual"}
	for n, err := range p.DB.Embeddings(e, storage.EmbeddingFilter{Encoder: c.Encoder, Aggregator: slidessl.Mean{}.Model().Name, Cohort: c.Cohort}) {
		if err != nil {
			return err
		}
		x.Rows, x.Cols, x.Value = x.Rows+1, len(n.Vector), append(x.Value, n.Vector...)
	}
	if x.Rows == 0 {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "fit the gate", Path: "cohort " + c.Cohort, Err: fmt.Errorf("none of its slides has an embedding under encoder %s", c.Encoder), Hint: "encode it: coverslip encode --cohort " + c.Cohort + " --wait"}
	}
	g, err := c.fit(&x)
	if err != nil {
		return err
	}
	dir, err := p.spool()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "gate-"+c.Out)
	defer os.Remove(path) //nolint:errcheck // swept at the next start
	if err := nn.Save(path, []*nn.Param{&x}, map[string]string{gateScore: c.Score, gatePass: strconv.FormatFloat(c.Pass, 'g', -1, 64), gateEncoder: c.Encoder}); err != nil {
		return err
	}
	if err := keepFile(e, p.Blobs, gateBlob(c.Out), path); err != nil {
		return err
	}
	if e.json {
		return e.emit(map[string]any{"gate": c.Out, "score": c.Score, "slides": x.Rows, "threshold": g.Threshold})
	}
	e.printf("%s: %s over %s, threshold %.4g: %g of 100 usual slides pass; their median is %.4g\n", c.Out, c.Score, count(x.Rows, "slide"), g.Threshold, 100*c.Pass, median(g.Usual))
	return nil
}

func (c *gateFitCmd) fit(x *nn.Param) (*measure.Gate, error) {
	return measure.FitGate(x.Value, x.Cols, c.Score, c.Pass, rand.New(rand.NewPCG(1, 0)))
}

// gateFlags ask a gate.
type gateFlags struct {
	Threshold *float64 `placeholder:"S" help:"The highest score that passes, instead of the gate's own."`
}

// openGate is one that was fitted, for embeddings of an encoder.
func (p *platform) openGate(e *env, name, encoder string, f gateFlags) (*measure.Gate, error) {
	const op = "open the gate"
	b, err := p.Blobs.Open(e, gateBlob(name))
	if coverslip.KindOf(err) == coverslip.NotFound {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: "gate " + name, Err: errors.New("there is none of this name"), Hint: "fit one: coverslip gate fit --cohort GOOD --out " + name}
	}
	if err != nil {
		return nil, err
	}
	defer b.Close()
	raw, err := io.ReadAll(io.NewSectionReader(b, 0, min(b.Size(), maxAggregator)))
	if err != nil {
		return nil, err
	}
	file, err := nn.Parse(raw)
	if err != nil {
		return nil, coverslip.At("gate "+name, err)
	}
	pass, err := strconv.ParseFloat(file.Text[gatePass], 64)
	x := file.Params["usual"]
	switch {
	case err != nil || x == nil:
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: "gate " + name, Err: errors.New("its file is none of a gate"), Hint: "fit it again"}
	case file.Text[gateEncoder] != encoder:
		return nil, &coverslip.Error{Kind: coverslip.Conflict, Op: op, Path: "gate " + name, Err: fmt.Errorf("it was fitted under encoder %s, not %s", file.Text[gateEncoder], encoder), Hint: "fit one under this encoder"}
	}
	g, err := (&gateFitCmd{Score: file.Text[gateScore], Pass: pass}).fit(x)
	if err == nil && f.Threshold != nil {
		g.Threshold = *f.Threshold
	}
	return g, coverslip.At("gate "+name, err)
}

type gateCheckCmd struct {
	Name    string   `arg:"" help:"The gate."`
	Slide   []string `arg:"" optional:"" help:"Slides: their ids, or the first 6 digits. None: those of --cohort, or all."`
	Cohort  string   `placeholder:"NAME" help:"The slides of this cohort."`
	Encoder string   `env:"COVERSLIP_ENCODER" default:"efficientnet-lite0" placeholder:"NAME" help:"Whose embeddings (${default})."`
	gateFlags
	dataFlags
}

// Help is shown by coverslip gate check --help.
func (gateCheckCmd) Help() string {
	return `Examples:
  coverslip gate check brca --cohort new
  coverslip gate check brca ed92d5 --threshold 2000

Ends with 1 where a slide is strange. The strangest come first.`
}

// gateLine is what a gate says of a slide, as printed with --json.
type gateLine struct {
	Slide       coverslip.SlideID `json:"slide"`
	Name        string            `json:"name"`
	Strangeness float64           `json:"strangeness"`
	Threshold   float64           `json:"threshold"`
	Passes      bool              `json:"passes"`
}

// Run asks the gate of slides that have an embedding.
func (c *gateCheckCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	g, err := p.openGate(e, c.Name, c.Encoder, c.gateFlags)
	if err != nil {
		return err
	}
	asked := map[coverslip.SlideID]bool{}
	for _, what := range c.Slide {
		s, err := p.findSlide(e, what)
		if err != nil {
			return err
		}
		asked[s.ID] = true
	}
	var lines []gateLine
	for n, err := range p.DB.Embeddings(e, storage.EmbeddingFilter{Encoder: c.Encoder, Aggregator: slidessl.Mean{}.Model().Name, Cohort: c.Cohort}) {
		if err != nil {
			return err
		}
		if len(asked) > 0 && !asked[n.Slide] {
			continue
		}
		s, err := g.Strangeness(n.Vector)
		if err != nil {
			return coverslip.At(n.Name, err)
		}
		lines = append(lines, gateLine{n.Slide, n.Name, s, g.Threshold, s <= g.Threshold})
	}
	if len(lines) == 0 || len(lines) < len(asked) {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "ask the gate", Err: fmt.Errorf("%s of those have no embedding under encoder %s", count(max(len(asked)-len(lines), 1), "slide"), c.Encoder), Hint: "coverslip slides shows where each stands"}
	}
	return c.print(e, lines)
}

func (c *gateCheckCmd) print(e *env, lines []gateLine) error {
	slices.SortStableFunc(lines, func(a, b gateLine) int { return cmp.Compare(b.Strangeness, a.Strangeness) })
	rows, strange := []string{"slide\tstrangeness\t\tname"}, 0
	for _, l := range lines {
		verdict := "passes"
		if !l.Passes {
			strange++
			verdict = "strange"
		}
		if e.json {
			if err := e.emit(l); err != nil {
				return err
			}
		}
		rows = append(rows, fmt.Sprintf("%s\t%.4g\t%s\t%s", l.Slide.Short(), l.Strangeness, verdict, l.Name))
	}
	if !e.json {
		e.table(rows...)
		e.printf("%d of %s strange, above %.4g\n", strange, count(len(lines), "slide"), lines[0].Threshold)
	}
	if strange > 0 {
		return &someFailed{strange}
	}
	return nil
}

// strange asks a gate of a slide that was embedded, and is why it does not pass, or "".
func (p *platform) strange(e *env, g *measure.Gate, name string, in *ingest.Ingest, slide coverslip.SlideID) (string, error) {
	embedding, err := p.DB.Embedding(e, slide, in.Model.Name, slidessl.Mean{}.Model().Name)
	if err != nil {
		return "", err
	}
	s, err := g.Strangeness(embedding.Vector)
	if err != nil || s <= g.Threshold {
		return "", err
	}
	return fmt.Sprintf("strange to gate %s: %.4g, above %.4g", name, s, g.Threshold), nil
}
