package foreign

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"coverslip"
	"coverslip/encoder"
)

// Spec is the specification of an aggregator in an ONNX file: which file it is, whose features it takes, and
// what its inputs and its output are called. docs/PRETRAIN.md shows one as YAML.
type Spec struct {
	Name    string `yaml:"name"`
	Licence string `yaml:"licence,omitempty"`
	Source  string `yaml:"source,omitempty"` // where its weights come from
	// SHA256 is that of the ONNX file, Data those of the files beside it that hold its weights, by
	// name. Empty in the specification of an aggregator whose file is the user's to bring.
	SHA256 string            `yaml:"sha256,omitempty"`
	Data   map[string]string `yaml:"data,omitempty"`
	// Encoder is whose features it was trained on; bags of others are refused. Empty: any of this width.
	Encoder  string   `yaml:"encoder,omitempty"`
	Features Features `yaml:"features"`
	Coords   *Coords  `yaml:"coords,omitempty"`
	Pitch    *Pitch   `yaml:"pitch,omitempty"`
	Output   string   `yaml:"output"` // its name in the file: [D], [1,D]
	Dim      int      `yaml:"dim"`    // D
	// MaxTiles is how many tiles it takes; of a slide with more, so many are taken at equal steps along the
	// plan. 0: all, however much memory that costs.
	MaxTiles int `yaml:"max_tiles,omitempty"`
}

// Features is the input of tiles' features: [N,Dim], or with Batch [1,N,Dim], float32.
type Features struct {
	Tensor string `yaml:"tensor"`
	Dim    int    `yaml:"dim"`
	Batch  bool   `yaml:"batch,omitempty"`
}

// Coords is the input of where tiles lie: their corners, [N,2] (x, y), or with Batch [1,N,2].
type Coords struct {
	Tensor string  `yaml:"tensor"`
	Type   Type    `yaml:"type"`
	Batch  bool    `yaml:"batch,omitempty"`
	Unit   Unit    `yaml:"unit"`
	Scale  float64 `yaml:"scale,omitempty"` // coordinates are multiplied by it; 0 is 1
}

// Pitch is the input of the distance of neighbouring tiles, in level-0 pixels: one number, [1] or, as a
// scalar, [].
type Pitch struct {
	Tensor string `yaml:"tensor"`
	Type   Type   `yaml:"type"`
	Scalar bool   `yaml:"scalar,omitempty"`
}

// Type is that of an input's elements.
type Type string

const (
	Float32 Type = "float32"
	Int64   Type = "int64"
)

// Unit is what coordinates are counted in.
type Unit string

const (
	Level0 Unit = "level0" // pixels of level 0
	Tiles  Unit = "tiles"  // the distance of neighbouring tiles
)

//go:embed specs/*.yaml
var files embed.FS

// ShippedSpecs lists the specifications that ship, by name. Their files are the user's to bring.
func ShippedSpecs() []Spec {
	entries, err := files.ReadDir("specs")
	if err != nil {
		panic("foreign: " + err.Error()) // they are part of the program
	}
	var all []Spec
	for _, e := range entries {
		raw, err := files.ReadFile("specs/" + e.Name())
		if err != nil {
			panic("foreign: " + err.Error())
		}
		s, err := ParseSpec(raw)
		if err != nil {
			panic("foreign: " + e.Name() + ": " + err.Error())
		}
		all = append(all, s)
	}
	return all
}

// Shipped is the specification of this name that ships.
func Shipped(name string) (Spec, bool) {
	all := ShippedSpecs()
	i := slices.IndexFunc(all, func(s Spec) bool { return s.Name == name })
	if i < 0 {
		return Spec{}, false
	}
	return all[i], true
}

// ParseSpec reads a specification from YAML. An unknown or repeated key, a missing one and an impossible
// value are Invalid, with the line where YAML knows it.
func ParseSpec(raw []byte) (Spec, error) {
	const op, hint = "read the specification", "docs/PRETRAIN.md shows how one is written"
	if len(raw) > maxSpec {
		return Spec{}, &coverslip.Error{Kind: coverslip.TooLarge, Op: op, Err: fmt.Errorf("it has %d bytes, more than %d", len(raw), maxSpec), Hint: hint}
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	var s Spec
	err := dec.Decode(&s)
	switch {
	case errors.Is(err, io.EOF):
		err = errors.New("it is empty")
	case err == nil:
		if more := dec.Decode(new(yaml.Node)); !errors.Is(more, io.EOF) {
			err = errors.New("there is a second document after it")
		} else {
			err = s.check()
		}
	}
	if err != nil {
		return Spec{}, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: err, Hint: hint}
	}
	return s, nil
}

const (
	maxSpec = 1 << 20
	maxDim  = 1 << 16
)

var (
	name = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	hash = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func (s Spec) check() error {
	switch {
	case !name.MatchString(s.Name):
		return fmt.Errorf("name %q: it needs 1 to 64 letters, digits, dots, dashes and underscores", s.Name)
	case s.SHA256 != "" && !hash.MatchString(s.SHA256):
		return fmt.Errorf("sha256 %q: it needs 64 lower-case hexadecimal digits", s.SHA256)
	case s.Features.Tensor == "":
		return errors.New("features.tensor is missing: the name of the input in the file")
	case s.Features.Dim < 1 || s.Features.Dim > maxDim:
		return fmt.Errorf("features.dim %d: it is 1 to %d", s.Features.Dim, maxDim)
	case s.Output == "":
		return errors.New("output is missing: its name in the file")
	case s.Dim < 1 || s.Dim > maxDim:
		return fmt.Errorf("dim %d: it is 1 to %d", s.Dim, maxDim)
	case s.MaxTiles < 0:
		return fmt.Errorf("max_tiles %d: it is a number of tiles, or 0 for all", s.MaxTiles)
	}
	for file, sum := range s.Data {
		if encoder.CheckDataName(file) != nil || !hash.MatchString(sum) {
			return fmt.Errorf("data %q: %q: it needs the name of a file beside the ONNX file, and its SHA-256", file, sum)
		}
	}
	if c := s.Coords; c != nil {
		switch {
		case c.Tensor == "":
			return errors.New("coords.tensor is missing: the name of the input in the file")
		case c.Type != Float32 && c.Type != Int64:
			return fmt.Errorf("coords.type %q: it is float32 or int64", c.Type)
		case c.Unit != Level0 && c.Unit != Tiles:
			return fmt.Errorf("coords.unit %q: it is level0 (pixels) or tiles", c.Unit)
		case !(c.Scale >= 0 && c.Scale <= 1e6): // also NaN
			return fmt.Errorf("coords.scale %v: it is 0 (for 1) to 1e6", c.Scale)
		}
	}
	if p := s.Pitch; p != nil {
		switch {
		case p.Tensor == "":
			return errors.New("pitch.tensor is missing: the name of the input in the file")
		case p.Type != Float32 && p.Type != Int64:
			return fmt.Errorf("pitch.type %q: it is float32 or int64", p.Type)
		}
	}
	return nil
}

// YAML is the specification as ParseSpec reads it.
func (s Spec) YAML() []byte {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(s), enc.Close()); err != nil {
		panic("foreign: a specification: " + err.Error()) // plain texts and numbers always marshal
	}
	return b.Bytes()
}

// Files is what of the specification tells which file it is, in the form that package encoder keeps and
// checks files by.
func (s Spec) Files() encoder.Spec {
	return encoder.Spec{Name: s.Name, SHA256: s.SHA256, Data: s.Data}
}

// Model is what is known of the aggregator.
func (s Spec) Model() coverslip.Model {
	bare := s
	bare.Name, bare.Licence, bare.Source, bare.SHA256 = "", "", "", "" // of these the embedding is the same
	raw, err := json.Marshal(bare)
	if err != nil {
		panic("foreign: a specification: " + err.Error()) // plain texts and finite numbers always marshal
	}
	sum := sha256.Sum256(raw)
	return coverslip.Model{Kind: coverslip.AggregatorModel, Name: s.Name, SHA256: s.SHA256, SpecSHA256: hex.EncodeToString(sum[:]), Dim: s.Dim, Licence: s.Licence, Source: s.Source}
}

// Takes reports whether it takes the features of an encoder, named with or without its taps.
func (s Spec) Takes(encoderName string) error {
	if base, _ := encoder.SplitName(encoderName); s.Encoder == "" || s.Encoder == encoderName || s.Encoder == base && !strings.Contains(encoderName, ":") {
		return nil
	}
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "embed", Path: "aggregator " + s.Name, Err: fmt.Errorf("it takes features of encoder %s, not of %s", s.Encoder, encoderName),
		Hint: "encode the slides with --encoder " + s.Encoder}
}
