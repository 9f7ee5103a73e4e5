package api

import (
	"context"
	"io"
	"net/http"
	"slices"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// Exporter gives what other programs take over whole.
type Exporter interface {
	// Models lists the encoders and aggregators there are, and those whose file is the user's to bring.
	Models(ctx context.Context) ([]ModelInfo, error)
	// Embeddings finds those that are asked for and returns what writes them. Where there are none it is NotFound.
	Embeddings(ctx context.Context, q ExportQuery) (write func(io.Writer) error, err error)
}

// ModelInfo is a model and how it comes to be here.
type ModelInfo struct {
	coverslip.Model
	State string // ships, added, trained or missing
}

// ExportQuery says which embeddings, and how they are written. An empty encoder or aggregator is the server's
// own; an empty cohort is all slides.
type ExportQuery struct{ Cohort, Encoder, Aggregator, Format string }

// exportTypes are the media types of the formats.
var exportTypes = map[string]string{"npz": "application/zip", "csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}

func (s *server) exportRoutes() {
	op := func(path, id, tag, summary, description string) huma.Operation {
		return huma.Operation{Method: http.MethodGet, Path: path, OperationID: id, Tags: []string{tag}, Summary: summary, Description: description}
	}
	register(s.api, op("/v1/models", "list-models", "embeddings", "List encoders and aggregators", "Those that can be used, and those whose specification ships while their file is yours to bring."),
		modelList{[]modelView{exampleModel}}, stumbles, s.listModels)
	export := op("/v1/embeddings", "export-embeddings", "embeddings", "Get many embeddings at once",
		"A file, with the slides in the order of their ids: npz (embeddings [N,D] float32, slides [N], names [N]), csv, or parquet; the latter has patient, site and labels too where a cohort is named.")
	export.Responses = map[string]*huma.Response{"200": {Description: "The file.", Content: map[string]*huma.MediaType{}}}
	for _, contentType := range exportTypes {
		export.Responses["200"].Content[contentType] = picture
	}
	register(s.api, export, nil, slices.Concat([]coverslip.Kind{coverslip.NotFound}, stumbles), s.export)
}

type modelView struct {
	Kind     coverslip.ModelKind `json:"kind" doc:"encoder or aggregator"`
	Name     string              `json:"name" doc:"As it is asked for"`
	State    string              `json:"state" enum:"ships,added,trained,missing" doc:"ships with the program, added or trained here, or missing: its file is yours to bring"`
	SHA256   string              `json:"sha256,omitempty" doc:"Of its file; absent while that is missing"`
	Dim      int                 `json:"dim" doc:"Length of what it gives; 0 of an aggregator: as its encoder's"`
	TileSize int                 `json:"tile_size,omitempty" doc:"Of an encoder: edge of its tiles, pixels"`
	TileMPP  float64             `json:"tile_mpp,omitempty" doc:"Of an encoder: resolution of its tiles, µm per pixel"`
	Licence  string              `json:"licence,omitempty" doc:"Of its weights"`
	Source   string              `json:"source,omitempty" doc:"Where its weights come from, or how it was trained"`
}

type modelList struct {
	Models []modelView `json:"models" nullable:"false" doc:"All of them"`
}

type modelsOutput struct{ Body modelList }

func (s *server) listModels(ctx context.Context, _ *struct{}) (*modelsOutput, error) {
	all, err := s.cfg.Exporter.Models(ctx)
	return &modelsOutput{modelList{each(all, func(m ModelInfo) modelView {
		return modelView{Kind: m.Kind, Name: m.Name, State: m.State, SHA256: m.SHA256, Dim: m.Dim, TileSize: m.TileSize, TileMPP: m.TileMPP, Licence: m.Licence, Source: m.Source}
	})}}, err
}

type exportInput struct {
	Cohort     string `query:"cohort" maxLength:"200" doc:"Only slides of this cohort" example:"brca"`
	Encoder    string `query:"encoder" maxLength:"200" doc:"Embeddings under this encoder; the server's own when absent" example:"efficientnet-lite0"`
	Aggregator string `query:"aggregator" maxLength:"200" doc:"Embeddings under this aggregator; the server's own when absent" example:"mean"`
	Format     string `query:"format" enum:"npz,csv,parquet" default:"npz" doc:"How they are written"`
}

func (s *server) export(ctx context.Context, in *exportInput) (*huma.StreamResponse, error) {
	write, err := s.cfg.Exporter.Embeddings(ctx, ExportQuery(*in))
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", exportTypes[in.Format])
		hc.SetHeader("Content-Disposition", `attachment; filename="embeddings.`+in.Format+`"`)
		hc.SetStatus(http.StatusOK)
		if err := write(hc.BodyWriter()); err != nil {
			s.cfg.Log.WarnContext(ctx, "an export ended early", "err", err) // its client sees a file that is cut
			panic(http.ErrAbortHandler)
		}
	}}, nil
}
