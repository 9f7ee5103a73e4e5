package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"coverslip"
	"coverslip/encoder"
	"coverslip/encoder/onnx"
	"coverslip/slidessl/foreign"
	"coverslip/storage"
	"coverslip/storage/blob"
)

// encoderFlags say which encoder works, and on what.
type encoderFlags struct {
	Encoder  string `env:"COVERSLIP_ENCODER" default:"efficientnet-lite0" placeholder:"NAME[:TAP+TAP]" group:"Encoder" help:"Encoder, and which of its taps one after the other (${default}; coverslip models list)."`
	Provider string `env:"COVERSLIP_PROVIDER" enum:"cpu,cuda,tensorrt" default:"cpu" group:"Encoder" help:"What ONNX Runtime computes on: cpu, cuda or tensorrt (${default})."`
}

type modelsCmd struct {
	Add    modelsAddCmd    `cmd:"" help:"Add an encoder or an aggregator: an ONNX file and its specification."`
	List   modelsListCmd   `cmd:"" help:"List the encoders and aggregators there are, and encoders whose file is yours to bring."`
	Show   modelsShowCmd   `cmd:"" help:"Show the specification of one."`
	Verify modelsVerifyCmd `cmd:"" help:"Hash the files again and compare."`
}

type modelsAddCmd struct {
	Kind string `arg:"" enum:"encoder,aggregator" help:"What it is: encoder or aggregator."`
	File string `arg:"" type:"path" help:"The ONNX file. Files of weights beside it are taken along."`
	Spec string `required:"" placeholder:"SPEC" help:"Its specification: a YAML file, or the name of one that ships (coverslip models list)."`
	Name string `placeholder:"NAME" help:"Call it so instead of what the specification says."`
	dataFlags
}

// Help is shown by coverslip models add --help.
func (modelsAddCmd) Help() string {
	return `Examples:
  coverslip models add encoder uni2-h.onnx --spec uni2-h
  coverslip models add encoder mine.onnx --spec mine.yaml
  coverslip ingest section.svs --encoder uni2-h --wait
  coverslip models add aggregator titan.onnx --spec titan
  coverslip embed --cohort brca --encoder conch-v1.5 --aggregator titan

The file is checked, run on one blank tile (an aggregator: on a bag of ten), hashed and copied; from then on it is
opened only if the hash still matches. How the usual ones are exported, and what a specification holds, is in
docs/ENCODERS.md for encoders and in docs/PRETRAIN.md for aggregators.`
}

// modelLine is a model as printed with --json.
type modelLine struct {
	coverslip.Model
	State string   `json:"state"` // ships, added, or missing: its file is yours to bring
	Bytes int64    `json:"bytes,omitempty"`
	Taps  []string `json:"taps,omitempty"` // all there are
}

// Run checks the model and keeps it.
func (c *modelsAddCmd) Run(e *env) error {
	if c.Kind == "aggregator" {
		return c.addAggregator(e)
	}
	spec, err := readSpec(c.Spec)
	if err != nil {
		return err
	}
	if c.Name != "" {
		spec.Name = c.Name
		if _, err := encoder.ParseSpec(spec.YAML()); err != nil {
			return err
		}
	}
	if encoder.Weights(spec.Name) != nil {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "add the encoder", Path: spec.Name, Err: errors.New("an encoder of this name ships with Coverslip"), Hint: "name it otherwise: --name NAME"}
	}
	file, err := onnx.Inspect(c.File)
	if err != nil {
		return err
	}
	// What the specification leaves open is written down now; what it says is held against the file
	// when it is opened.
	if spec.SHA256 == "" {
		spec.SHA256, spec.Data = file.SHA256, file.Data
	} else if spec.Data == nil && len(file.Data) > 0 {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "add the encoder", Path: c.File, Err: errors.New("its specification has its SHA-256, but none of the files of weights beside it"), Hint: "list them under data, or leave out sha256"}
	}
	if err := tryEncoder(e, c.File, spec); err != nil {
		return err
	}
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	for name, from := range modelFiles(spec, c.File) {
		if err := keepFile(e, p.Blobs, modelBlob(spec, name), from); err != nil {
			return err
		}
	}
	model := spec.Model()
	if err := p.DB.AddModel(e, model, spec.YAML()); err != nil {
		return err
	}
	if e.json {
		return e.emit(modelLine{Model: model, State: "added", Bytes: file.Bytes, Taps: tapNames(spec)})
	}
	e.printf("%s: tiles of %d px at %g µm/px to %d numbers, %.1f MB\nsha256 %s\n", model.Name, model.TileSize, model.TileMPP, model.Dim, float64(file.Bytes)/1e6, spec.SHA256)
	for _, name := range spec.DataNames() {
		e.printf("sha256 %s  %s\n", spec.Data[name], name)
	}
	e.printf("use it: coverslip ingest SLIDE --encoder %s --wait\n", model.Name)
	return nil
}

// readSpec reads a specification from a file, or takes the one of this name that ships.
func readSpec(what string) (encoder.Spec, error) {
	if s, ok := encoder.Shipped(what); ok {
		return s, nil
	}
	f, err := os.Open(what)
	if errors.Is(err, os.ErrNotExist) {
		var names []string
		for _, s := range encoder.ShippedSpecs() {
			names = append(names, s.Name)
		}
		return encoder.Spec{}, &coverslip.Error{Kind: coverslip.NotFound, Op: "read the specification", Path: what, Err: os.ErrNotExist, Hint: "name a YAML file, or one of " + strings.Join(names, ", ")}
	}
	if err != nil {
		return encoder.Spec{}, diskError("read the specification", what, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 2<<20)) // more than ParseSpec takes
	if err != nil {
		return encoder.Spec{}, diskError("read the specification", what, err)
	}
	s, err := encoder.ParseSpec(raw)
	return s, coverslip.At(what, err)
}

// tryEncoder runs one blank tile through every tap.
func tryEncoder(ctx context.Context, path string, spec encoder.Spec) error {
	spec, err := spec.Use(tapNames(spec)...)
	if err != nil {
		return err
	}
	s, err := onnx.OpenFile(path, spec, onnx.CPU)
	if err != nil {
		return err
	}
	m := s.Model()
	err = s.Encode(ctx, make([]float32, m.Dim), make([]byte, m.TileSize*m.TileSize*3), 1)
	return coverslip.At(path, errors.Join(err, s.Close()))
}

func tapNames(s encoder.Spec) []string {
	var names []string
	for _, t := range s.Taps {
		names = append(names, t.Name)
	}
	return names
}

// onnxName is what an ONNX file is called in its folder of the blob store. The files of weights keep
// their names, because it holds them.
const onnxName = "model.onnx"

func modelBlob(s encoder.Spec, name string) string { return "models/" + s.SHA256 + "/" + name }

// modelFiles are the files of an encoder, by their name in the blob store.
func modelFiles(s encoder.Spec, path string) map[string]string {
	files := map[string]string{onnxName: path}
	for name := range s.Data {
		files[name] = filepath.Join(filepath.Dir(path), name)
	}
	return files
}

func keepFile(ctx context.Context, store blob.Store, key, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return diskError("read the model", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return diskError("read the model", path, err)
	}
	return store.Put(ctx, key, f, info.Size())
}

type modelsListCmd struct{ dataFlags }

// Help is shown by coverslip models list --help.
func (modelsListCmd) Help() string {
	return "Example:\n  coverslip models list\n\nState: ships (part of the program), added or trained (by you), missing (its specification ships, its file is yours to bring)."
}

// Run lists encoders.
func (c *modelsListCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	lines, err := p.encoders(e)
	if err != nil {
		return err
	}
	rows := []string{"encoder\tstate\ttile\tµm/px\tnumbers\ttaps\tlicence"}
	for _, l := range lines {
		if e.json {
			if err := e.emit(l); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%d\t%g\t%d\t%s\t%s", l.Name, l.State, l.TileSize, l.TileMPP, l.Dim, strings.Join(l.Taps, " "), l.Licence))
	}
	if !e.json {
		e.table(rows...)
	}
	aggregators, err := p.aggregators(e)
	if err != nil {
		return err
	}
	rows = []string{"", "aggregator\tstate\tnumbers\tfrom"}
	for _, l := range aggregators {
		if e.json {
			if err := e.emit(l); err != nil {
				return err
			}
			continue
		}
		dim := "as its encoder"
		if l.Dim > 0 {
			dim = strconv.Itoa(l.Dim)
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%s", l.Name, l.State, dim, l.Source))
	}
	if !e.json {
		e.table(rows...)
	}
	return nil
}

// aggregators lists the rules, those that were trained or added, and those that could be added.
func (p *platform) aggregators(ctx context.Context) ([]modelLine, error) {
	var lines []modelLine
	for _, a := range rules {
		lines = append(lines, modelLine{Model: a.Model(), State: "ships"})
	}
	added, err := p.DB.AddedModels(ctx, coverslip.AggregatorModel)
	for _, m := range added {
		state := "trained"
		if isForeign(m) {
			state = "added"
		}
		lines = append(lines, modelLine{Model: m.Model, State: state})
	}
	for _, s := range foreign.ShippedSpecs() {
		if !slices.ContainsFunc(lines, func(l modelLine) bool { return l.Name == s.Name }) {
			lines = append(lines, modelLine{Model: s.Model(), State: "missing"})
		}
	}
	return lines, err
}

// encoders lists what ships, what was added, and what could be.
func (p *platform) encoders(ctx context.Context) ([]modelLine, error) {
	added, err := p.DB.AddedModels(ctx, coverslip.EncoderModel)
	if err != nil {
		return nil, err
	}
	lines := map[string]modelLine{}
	for _, s := range encoder.ShippedSpecs() {
		line := modelLine{Model: s.Model(), State: "missing", Taps: tapNames(s)}
		if raw := encoder.Weights(s.Name); raw != nil {
			line.State, line.Bytes = "ships", int64(len(raw))
		}
		lines[s.Name] = line
	}
	for _, m := range added {
		s, err := encoder.ParseSpec([]byte(m.Spec))
		if err != nil {
			return nil, coverslip.At("encoder "+m.Name, err)
		}
		lines[m.Name] = modelLine{Model: s.Model(), State: "added", Taps: tapNames(s)}
	}
	var all []modelLine
	for _, l := range lines {
		all = append(all, l)
	}
	order := []string{"ships", "added", "missing"}
	slices.SortFunc(all, func(a, b modelLine) int {
		if d := slices.Index(order, a.State) - slices.Index(order, b.State); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all, nil
}

type modelsShowCmd struct {
	Name string `arg:"" help:"Which encoder or aggregator."`
	dataFlags
}

// Help is shown by coverslip models show --help.
func (modelsShowCmd) Help() string {
	return "Example:\n  coverslip models show uni2-h > mine.yaml"
}

// Run prints a specification.
func (c *modelsShowCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	spec, err := p.spec(e, c.Name)
	if coverslip.KindOf(err) == coverslip.NotFound {
		if m, err := p.DB.AddedModel(e, coverslip.AggregatorModel, c.Name); err == nil { // its card
			if e.json {
				return e.emit(m)
			}
			e.printf("%s\n", m.Spec)
			return nil
		}
		if s, ok := encoder.Shipped(c.Name); ok {
			spec, err = s, nil
		} else if s, ok := foreign.Shipped(c.Name); ok {
			if e.json {
				return e.emit(storage.AddedModel{Model: s.Model(), Spec: string(s.YAML())})
			}
			e.printf("%s", s.YAML())
			return nil
		}
	}
	if err != nil {
		return err
	}
	if e.json {
		return e.emit(struct {
			coverslip.Model
			Spec string `json:"spec"`
		}{spec.Model(), string(spec.YAML())})
	}
	e.printf("%s", spec.YAML())
	return nil
}

type modelsVerifyCmd struct {
	Name []string `arg:"" optional:"" help:"Which encoders or aggregators (all there are)."`
	dataFlags
}

// Help is shown by coverslip models verify --help.
func (modelsVerifyCmd) Help() string {
	return "Example:\n  coverslip models verify\n\nExit code 1 when a file is not what it was when it was added."
}

// Run hashes the files again.
func (c *modelsVerifyCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	names := c.Name
	if len(names) == 0 {
		lines, err := p.encoders(e)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if l.State != "missing" {
				names = append(names, l.Name)
			}
		}
		added, err := p.DB.AddedModels(e, coverslip.AggregatorModel)
		if err != nil {
			return err
		}
		for _, m := range added {
			names = append(names, m.Name)
		}
	}
	failed := 0
	for _, name := range names {
		spec, err := p.spec(e, name)
		sum := spec.SHA256
		if err == nil {
			err = p.verify(e, spec)
		} else if m, e2 := p.DB.AddedModel(e, coverslip.AggregatorModel, name); e2 == nil {
			sum, err = m.SHA256, p.verifyAggregator(e, m)
		}
		if e.Err() != nil {
			return e.Err()
		}
		line := map[string]any{"name": name, "sha256": sum, "ok": err == nil}
		if err != nil {
			failed++
			line["reason"] = err.Error()
		}
		switch {
		case e.json:
			if err := e.emit(line); err != nil {
				return err
			}
		case err != nil:
			e.printf("%s: %v\n", name, err)
		default:
			e.printf("%s: as it was added\n", name)
		}
	}
	if failed > 0 {
		return &someFailed{failed}
	}
	return nil
}

func (p *platform) verify(ctx context.Context, spec encoder.Spec) error {
	if raw := encoder.Weights(spec.Name); raw != nil {
		sum := sha256.Sum256(raw)
		return sameHash(spec.Name, hex.EncodeToString(sum[:]), spec.SHA256)
	}
	sums := map[string]string{onnxName: spec.SHA256}
	for name, sum := range spec.Data {
		sums[name] = sum
	}
	for name, want := range sums {
		key := modelBlob(spec, name)
		b, err := p.Blobs.Open(ctx, key)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, io.NewSectionReader(b, 0, b.Size()))
		if err := errors.Join(err, b.Close()); err != nil {
			return err
		}
		if err := sameHash(key, hex.EncodeToString(h.Sum(nil)), want); err != nil {
			return err
		}
	}
	return nil
}

func sameHash(path, got, want string) error {
	if got == want {
		return nil
	}
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "verify the model", Path: path, Err: fmt.Errorf("it has SHA-256 %s, not %s", got, want), Hint: "add it again from your file"}
}

// spec is the specification of an encoder that can be opened: one that ships, or that was added. asked
// may name taps: name:tap+tap.
func (p *platform) spec(ctx context.Context, asked string) (encoder.Spec, error) {
	name, taps := encoder.SplitName(asked)
	spec, ships := encoder.Shipped(name)
	if !ships || encoder.Weights(name) == nil {
		m, err := p.DB.AddedModel(ctx, coverslip.EncoderModel, name)
		if ships && coverslip.KindOf(err) == coverslip.NotFound {
			return spec, &coverslip.Error{Kind: coverslip.NotFound, Op: "look up the encoder", Path: name, Err: errors.New("its file is yours to bring"), Hint: fmt.Sprintf("coverslip models add encoder FILE --spec %s; docs/ENCODERS.md says how to export it", name)}
		}
		if err != nil {
			return spec, err
		}
		if spec, err = encoder.ParseSpec([]byte(m.Spec)); err != nil {
			return spec, coverslip.At("encoder "+name, err)
		}
	}
	return spec.Use(taps...)
}

// openEncoder loads an encoder that ships or was added. Every file is hashed on the way.
func (p *platform) openEncoder(ctx context.Context, spec encoder.Spec, on onnx.Provider) (*onnx.Session, error) {
	if raw := encoder.Weights(spec.Name); raw != nil {
		return onnx.Open(raw, spec, on)
	}
	path, err := p.localModel(ctx, spec)
	if err != nil {
		return nil, err
	}
	return onnx.OpenFile(path, spec, on)
}

// localModel is the path of an encoder's ONNX file, its weights beside it. A blob in a folder has one;
// others are copied into the data folder, once.
func (p *platform) localModel(ctx context.Context, spec encoder.Spec) (string, error) {
	if folder, ok := p.Blobs.(interface {
		Path(key string) (string, error)
	}); ok {
		return folder.Path(modelBlob(spec, onnxName))
	}
	dir := filepath.Join(p.dir, "models", spec.SHA256)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", diskError("keep a copy of the model", dir, err)
	}
	for name := range modelFiles(spec, "") {
		to := filepath.Join(dir, name)
		if _, err := os.Stat(to); err == nil {
			continue
		}
		b, err := p.Blobs.Open(ctx, modelBlob(spec, name))
		if err != nil {
			return "", err
		}
		err = publish(to, func(w io.Writer) error {
			_, err := io.Copy(w, io.NewSectionReader(b, 0, b.Size()))
			return err
		})
		if err := errors.Join(err, b.Close()); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, onnxName), nil
}
