package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// DeepZoomer cuts slides into the small pictures that viewers ask for. Methods may be called from many
// requests at once, and bound what they hold whatever is asked of them. Equal arguments give equal
// pictures as long as the program's version is the same.
type DeepZoomer interface {
	// Descriptor returns the XML (Deep Zoom Image, 2008) that says how a slide is cut.
	Descriptor(s coverslip.Slide) []byte
	// Tile returns one tile as JPEG. One that the descriptor does not speak of is NotFound; a slide
	// whose bytes are gone is Conflict.
	Tile(ctx context.Context, s coverslip.Slide, level, column, row int) (jpeg []byte, err error)
}

// deepZoomRoutes are where viewers find a slide: from the address of the descriptor, they make those of
// tiles by adding _files to it.
func (s *server) deepZoomRoutes() {
	register(s.api, withFileAnswers(huma.Operation{Method: http.MethodGet, Path: "/v1/slides/{id}/dzi", OperationID: "dzi", Tags: []string{"slides"},
		Summary:     "How the slide is cut for viewers",
		Description: "A Deep Zoom Image descriptor, which OpenSeadragon and others open by this address. `/slides/{id}/view` is a page that does."},
		&huma.MediaType{Schema: &huma.Schema{Type: "string"}, Example: exampleDescriptor}, "application/xml"),
		nil, ofOneSlide, s.dzi)
	register(s.api, withFileAnswers(huma.Operation{Method: http.MethodGet, Path: "/v1/slides/{id}/dzi_files/{level}/{tile}", OperationID: "dzi-tile", Tags: []string{"slides"},
		Summary:     "A tile of the slide for viewers",
		Description: "JPEG. Level 0 is one pixel and the last the slide itself: each level is twice as fine as the one before."},
		picture, "image/jpeg"),
		nil, slices.Concat(ofOneSlide, []coverslip.Kind{coverslip.Unsupported, coverslip.TooLarge}), s.dziTile)
}

// forever is said of what follows from a slide's bytes, which its id names.
const forever = "private, max-age=31536000, immutable"

type dziInput struct {
	OneSlide
	IfNoneMatch string `header:"If-None-Match" doc:"ETag of the descriptor the client has" maxLength:"1000"`
}

func (s *server) dzi(ctx context.Context, in *dziInput) (*fileOutput, error) {
	found, err := s.slide(ctx, in.OneSlide)
	if err != nil {
		return nil, err
	}
	tag := fmt.Sprintf(`"%s-dzi-%s"`, found.ID, coverslip.Version)
	return file(in.IfNoneMatch, tag, forever, "application/xml", func() ([]byte, error) { return s.cfg.DeepZoomer.Descriptor(found), nil })
}

type dziTileInput struct {
	OneSlide
	Level       int    `path:"level" doc:"0 is one pixel" minimum:"0" example:"11"`
	Tile        string `path:"tile" doc:"Column and row of the tile" pattern:"^[0-9]{1,9}_[0-9]{1,9}\\.jpeg$" example:"2_3.jpeg"`
	IfNoneMatch string `header:"If-None-Match" doc:"ETag of the tile the client has" maxLength:"1000"`
}

func (s *server) dziTile(ctx context.Context, in *dziTileInput) (*fileOutput, error) {
	found, err := s.slide(ctx, in.OneSlide)
	if err != nil {
		return nil, err
	}
	var column, row int
	if _, err := fmt.Sscanf(in.Tile, "%d_%d.jpeg", &column, &row); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "read the tile's name", Err: err} // its pattern let it pass
	}
	tag := fmt.Sprintf(`"%s-%d-%d-%d-%s"`, found.ID, in.Level, column, row, coverslip.Version)
	return file(in.IfNoneMatch, tag, forever, "image/jpeg", func() ([]byte, error) {
		return s.cfg.DeepZoomer.Tile(ctx, found, in.Level, column, row)
	})
}
