package tiler

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
)

// WriteGeoJSON writes polygons in level-0 pixels as annotations that QuPath opens: a FeatureCollection
// (RFC 7946) of one feature each, classified Tissue, with its area in square micrometres where mpp, that
// of level 0, is known.
func WriteGeoJSON(w io.Writer, polygons []Polygon, mpp float64) error {
	type geometry struct {
		Type        string  `json:"type"`
		Coordinates Polygon `json:"coordinates"`
	}
	type class struct {
		Name  string `json:"name"`
		Color [3]int `json:"color"`
	}
	type properties struct {
		ObjectType     string             `json:"objectType"`
		Name           string             `json:"name"`
		Classification class              `json:"classification"`
		IsLocked       bool               `json:"isLocked"`
		Measurements   map[string]float64 `json:"measurements,omitempty"`
	}
	type feature struct {
		Type       string     `json:"type"`
		Geometry   geometry   `json:"geometry"`
		Properties properties `json:"properties"`
	}
	features := make([]feature, 0, len(polygons))
	for i, p := range polygons {
		f := feature{"Feature", geometry{"Polygon", make(Polygon, len(p))},
			properties{ObjectType: "annotation", Name: fmt.Sprintf("Tissue %d", i+1), Classification: class{"Tissue", [3]int{0, 110, 60}}}}
		for j, r := range p {
			for _, at := range r { // hundredths of a pixel are enough
				f.Geometry.Coordinates[j] = append(f.Geometry.Coordinates[j], [2]float64{math.Round(at[0]*100) / 100, math.Round(at[1]*100) / 100})
			}
		}
		if mpp > 0 {
			f.Properties.Measurements = map[string]float64{"Area µm^2": math.Round(p.Area() * mpp * mpp)}
		}
		features = append(features, f)
	}
	enc := json.NewEncoder(w)
	return enc.Encode(struct {
		Type     string    `json:"type"`
		Features []feature `json:"features"`
	}{"FeatureCollection", features})
}
