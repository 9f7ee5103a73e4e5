package onnx

import (
	"maps"
	"slices"
)

// ReadGraph is the check of a file without a file: the names of those its weights lie in.
func ReadGraph(raw []byte) (weights []string, err error) {
	g, err := readGraph(raw)
	return slices.Collect(maps.Keys(g.external)), err
}
