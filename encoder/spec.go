package encoder

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"coverslip"
)

// Spec is the specification of an encoder: which file it is, what pixels it is given and which of
// its outputs become features. docs/ENCODERS.md shows one as YAML.
type Spec struct {
	Name    string `yaml:"name"`
	Licence string `yaml:"licence,omitempty"`
	Source  string `yaml:"source,omitempty"` // where its weights come from
	// SHA256 is that of the ONNX file, Data those of the files beside it that hold its weights, by
	// name. Empty in the specification of an encoder whose file is the user's to bring.
	SHA256 string            `yaml:"sha256,omitempty"`
	Data   map[string]string `yaml:"data,omitempty"`
	Input  Input             `yaml:"input"`
	Taps   []Tap             `yaml:"taps"` // the first is used unless others are asked for

	use []string // see Use
}

// Input is what an encoder is given: tiles of Size × Size pixels at MPP µm per pixel, in Layout.
type Input struct {
	Tensor string  `yaml:"tensor"` // its name in the file
	Size   int     `yaml:"size"`
	MPP    float64 `yaml:"mpp"`
	Layout Layout  `yaml:"layout"`
	// Mean and Std of red, green and blue turn a value v of 0 to 255 into (v/255 - Mean) / Std,
	// computed in float32. Layouts of float32 need them, NHWCUint8 has none.
	Mean []float64 `yaml:"mean,flow,omitempty"`
	Std  []float64 `yaml:"std,flow,omitempty"`
}

// Layout is the order and type of the values in a batch of tiles.
type Layout string

const (
	NHWCUint8   Layout = "nhwc-uint8"   // [N,S,S,3], as read: normalisation is part of the graph
	NCHWFloat32 Layout = "nchw-float32" // [N,3,S,S]
	NHWCFloat32 Layout = "nhwc-float32" // [N,S,S,3]
)

// Tap is a depth of the network at which features are taken.
type Tap struct {
	Name    string  `yaml:"name"`
	Output  string  `yaml:"output"` // its name in the file
	Dim     int     `yaml:"dim"`    // length of the features, after pooling
	Pooling Pooling `yaml:"pooling"`
	// Skip is how many tokens before those of the image the means leave out: CLS and registers.
	// ClassAndMean and Mean need it, the others have none.
	Skip *int `yaml:"skip,omitempty"`
}

// Pooling turns an output of the network into one row of features a tile.
type Pooling string

const (
	None         Pooling = "none"     // [N,D] is features already
	GAP          Pooling = "gap"      // [N,D,H,W]: mean over space
	Class        Pooling = "cls"      // [N,T,D]: the first token
	Mean         Pooling = "mean"     // [N,T,D]: mean of the tokens after Skip
	ClassAndMean Pooling = "cls+mean" // [N,T,D/2]: the first token, then the mean of those after Skip
)

// ParseSpec reads a specification from YAML. An unknown or repeated key, a missing one and an
// impossible value are Invalid, with the line where YAML knows it.
func ParseSpec(raw []byte) (Spec, error) {
	const op, hint = "read the specification", "docs/ENCODERS.md shows how one is written"
	if len(raw) > maxSpec {
		return Spec{}, &coverslip.Error{Kind: coverslip.TooLarge, Op: op, Err: fmt.Errorf("it has %d bytes, more than %d", len(raw), maxSpec), Hint: hint}
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	var s Spec
	err := dec.Decode(&s)
	if err == nil {
		if more := dec.Decode(new(yaml.Node)); !errors.Is(more, io.EOF) {
			err = errors.New("there is a second document after it")
		}
	} else if errors.Is(err, io.EOF) {
		err = errors.New("it is empty")
	}
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return Spec{}, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: err, Hint: hint}
	}
	return s, nil
}

// maxSpec bounds what is parsed: a specification has some hundred bytes, and a line for each file of
// weights.
const maxSpec = 1 << 20

// YAML is the specification as ParseSpec reads it. The taps in use are no part of it.
func (s Spec) YAML() []byte {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(s), enc.Close()); err != nil {
		panic("encoder: a specification: " + err.Error()) // plain texts and numbers always marshal
	}
	return b.Bytes()
}

// Use is the specification with the named taps in use, whose features an encoder then gives one
// after the other, in this order; without names, its first tap. An unknown or repeated name is
// NotFound or Invalid.
func (s Spec) Use(taps ...string) (Spec, error) {
	const op = "choose taps"
	for i, name := range taps {
		if !slices.ContainsFunc(s.Taps, func(t Tap) bool { return t.Name == name }) {
			return Spec{}, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: "encoder " + s.Name, Err: fmt.Errorf("it has no tap %q", name), Hint: "it has " + s.tapNames()}
		}
		if slices.Contains(taps[:i], name) {
			return Spec{}, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: "encoder " + s.Name, Err: fmt.Errorf("tap %q is asked for twice", name)}
		}
	}
	s.use = slices.Clone(taps)
	return s, nil
}

// InUse lists the taps whose features the encoder gives.
func (s Spec) InUse() []Tap {
	if len(s.use) == 0 {
		return s.Taps[:1]
	}
	var taps []Tap
	for _, name := range s.use {
		taps = append(taps, s.Taps[slices.IndexFunc(s.Taps, func(t Tap) bool { return t.Name == name })])
	}
	return taps
}

// SplitName takes "name:tap+tap", the way an encoder and its taps are asked for, apart.
func SplitName(asked string) (name string, taps []string) {
	name, list, some := strings.Cut(asked, ":")
	if some {
		taps = strings.Split(list, "+")
	}
	return name, taps
}

// Model is what is known of the encoder with the taps in use. Its name says which they are, unless
// that is the first alone.
func (s Spec) Model() coverslip.Model {
	m := coverslip.Model{
		Kind:     coverslip.EncoderModel,
		Name:     s.Name,
		SHA256:   s.SHA256,
		TileSize: s.Input.Size,
		TileMPP:  s.Input.MPP,
		Licence:  s.Licence,
		Source:   s.Source,
	}
	var names []string
	for _, t := range s.InUse() {
		m.Dim += t.Dim
		names = append(names, t.Name)
		m.Taps = append(m.Taps, coverslip.Tap{Name: t.Name, Dim: t.Dim})
	}
	if len(names) > 1 || names[0] != s.Taps[0].Name {
		m.Name += ":" + strings.Join(names, "+")
	}
	// What turns equal files into different features: other weights beside them, another input,
	// other outputs.
	raw, err := json.Marshal(struct {
		Input Input
		Taps  []Tap
		Data  map[string]string
	}{s.Input, s.InUse(), s.Data})
	if err != nil {
		panic("encoder: a specification: " + err.Error()) // plain texts and finite numbers always marshal
	}
	sum := sha256.Sum256(raw)
	m.SpecSHA256 = hex.EncodeToString(sum[:])
	return m
}

func (s Spec) tapNames() string {
	var names []string
	for _, t := range s.Taps {
		names = append(names, t.Name)
	}
	return strings.Join(names, ", ")
}

var (
	name     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	hash     = regexp.MustCompile(`^[0-9a-f]{64}$`)
	maxSize  = 2048 // pixels; the largest in use have 518
	maxDim   = 1 << 16
	layouts  = []Layout{NHWCUint8, NCHWFloat32, NHWCFloat32}
	poolings = []Pooling{None, GAP, Class, Mean, ClassAndMean}
)

func (s Spec) check() error {
	in := s.Input
	switch {
	case !name.MatchString(s.Name):
		return fmt.Errorf("name %q: it needs 1 to 64 letters, digits, dots, dashes and underscores", s.Name)
	case s.SHA256 != "" && !hash.MatchString(s.SHA256):
		return fmt.Errorf("sha256 %q: it needs 64 lower-case hexadecimal digits", s.SHA256)
	case in.Tensor == "":
		return errors.New("input.tensor is missing: the name of the input in the file")
	case in.Size < 1 || in.Size > maxSize:
		return fmt.Errorf("input.size %d: it is 1 to %d pixels", in.Size, maxSize)
	case !(in.MPP >= 0.01 && in.MPP <= 100): // also NaN
		return fmt.Errorf("input.mpp %v: it is 0.01 to 100 µm per pixel", in.MPP)
	case !slices.Contains(layouts, in.Layout):
		return fmt.Errorf("input.layout %q: it is one of %v", in.Layout, layouts)
	case len(s.Taps) == 0:
		return errors.New("taps are missing: which outputs of the file are features")
	}
	for file, sum := range s.Data {
		if CheckDataName(file) != nil || !hash.MatchString(sum) {
			return fmt.Errorf("data %q: %q: it needs the name of a file beside the ONNX file, and its SHA-256", file, sum)
		}
	}
	if err := in.checkNormalisation(); err != nil {
		return err
	}
	seen, total := map[string]bool{}, 0
	for _, t := range s.Taps {
		if seen[t.Name] {
			return fmt.Errorf("tap %q is there twice", t.Name)
		}
		seen[t.Name] = true
		if err := t.check(); err != nil {
			return fmt.Errorf("tap %q: %w", t.Name, err)
		}
		total += t.Dim
	}
	if total > maxDim {
		return fmt.Errorf("the taps have %d features together, more than %d", total, maxDim)
	}
	return nil
}

func (in Input) checkNormalisation() error {
	if in.Layout == NHWCUint8 {
		if in.Mean != nil || in.Std != nil {
			return fmt.Errorf("input.mean and input.std: layout %s has none, normalisation is part of its graph", NHWCUint8)
		}
		return nil
	}
	if len(in.Mean) != 3 || len(in.Std) != 3 {
		return fmt.Errorf("input.mean and input.std: layout %s needs three numbers each", in.Layout)
	}
	for c := range 3 {
		if math.IsNaN(in.Mean[c]) || math.IsInf(in.Mean[c], 0) || !(in.Std[c] > 0) || math.IsInf(in.Std[c], 0) {
			return fmt.Errorf("input.mean %v and input.std %v: they are finite, and no deviation is 0", in.Mean, in.Std)
		}
		// A float model that wants 0 to 255 has mean 0 and deviation 1/255; a larger mean is one that
		// was written for 0 to 255, where values here are 0 to 1.
		if math.Abs(in.Mean[c]) > 2 || in.Std[c] > 2 {
			return fmt.Errorf("input.mean %v and input.std %v: they are of values from 0 to 1; divide them by 255", in.Mean, in.Std)
		}
	}
	return nil
}

func (t Tap) check() error {
	switch needs := t.Pooling == Mean || t.Pooling == ClassAndMean; {
	case !name.MatchString(t.Name):
		return errors.New("its name needs 1 to 64 letters, digits, dots, dashes and underscores")
	case t.Output == "":
		return errors.New("output is missing: its name in the file")
	case t.Dim < 1 || t.Dim > maxDim:
		return fmt.Errorf("dim %d: it is 1 to %d", t.Dim, maxDim)
	case !slices.Contains(poolings, t.Pooling):
		return fmt.Errorf("pooling %q: it is one of %v", t.Pooling, poolings)
	case t.Pooling == ClassAndMean && t.Dim%2 != 0:
		return fmt.Errorf("dim %d: pooling %s gives twice the width of a token", t.Dim, t.Pooling)
	case needs && (t.Skip == nil || *t.Skip < 0 || *t.Skip > 1024):
		return fmt.Errorf("skip is missing: pooling %s needs the number of tokens that are not of the image (CLS and registers)", t.Pooling)
	case !needs && t.Skip != nil:
		return fmt.Errorf("skip: pooling %s has none", t.Pooling)
	}
	return nil
}

// CheckDataName refuses what is not the plain name of a file beside the ONNX file. In particular it
// refuses "..", absolute paths, other folders, and ONNX Runtime's own mark for an address in memory.
func CheckDataName(name string) error {
	if name == "" || len(name) > 255 || name != path.Base(name) || !filepath.IsLocal(name) || name == "." ||
		strings.ContainsAny(name, "\\:*\x00") {
		return fmt.Errorf("%.80q is no plain name of a file in the model's folder", name)
	}
	return nil
}

// DataNames lists the files of weights beside the ONNX file.
func (s Spec) DataNames() []string { return slices.Sorted(maps.Keys(s.Data)) }
