package encoder

import (
	"embed"
	"path"
	"slices"

	"coverslip/encoder/weights"
)

//go:embed specs/*.yaml
var specs embed.FS

// shipped are the specifications in specs, by name.
var shipped = func() []Spec {
	entries, err := specs.ReadDir("specs")
	if err != nil {
		panic("encoder: " + err.Error()) // it is part of the program
	}
	var all []Spec
	for _, e := range entries {
		raw, err := specs.ReadFile(path.Join("specs", e.Name()))
		if err != nil {
			panic("encoder: " + err.Error())
		}
		s, err := ParseSpec(raw)
		if err != nil {
			panic("encoder: specs/" + e.Name() + ": " + err.Error()) // a test parses all
		}
		all = append(all, s)
	}
	return all
}()

// Default is the encoder that ships with the product: its specification and its ONNX file. The
// bytes are shared: read them only.
func Default() (Spec, []byte) {
	s, _ := Shipped("efficientnet-lite0")
	return s, Weights(s.Name)
}

// ShippedSpecs lists the specifications that ship with the product, by name. Of most of them the
// file is the user's to bring; Weights has the others.
func ShippedSpecs() []Spec { return slices.Clone(shipped) }

// Shipped returns the specification of this name, if it ships with the product.
func Shipped(name string) (Spec, bool) {
	i := slices.IndexFunc(shipped, func(s Spec) bool { return s.Name == name })
	if i < 0 {
		return Spec{}, false
	}
	return shipped[i], true
}

// Weights is the ONNX file of a shipped encoder; nil where it is the user's to bring. The bytes are
// shared: read them only.
func Weights(name string) []byte { return weights.Files()[name] }
