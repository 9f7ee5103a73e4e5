package api

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// Query asks for one page of slides.
type Query struct {
	State coverslip.State // only slides in this state; empty for all
	After Position        // only slides behind this one; zero for the first page
	Limit int             // at most so many
}

// Position is a slide's place in the order of (Registered, ID).
type Position struct {
	Registered time.Time
	ID         coverslip.SlideID
}

// slideRoutes are the routes that read.
func (s *server) slideRoutes() {
	slides := func(id, path, summary, description string) huma.Operation {
		return huma.Operation{Method: http.MethodGet, Path: path, OperationID: id, Tags: []string{"slides"}, Summary: summary, Description: description}
	}
	register(s.api, slides("list-slides", "/v1/slides", "List slides",
		"In the order in which they were registered. A page that is not the last names the `next` one."),
		exampleList, stumbles, s.list)
	register(s.api, slides("show-slide", "/v1/slides/{id}", "Show one slide",
		"With its bag and the time each stage took, once it is encoded."),
		exampleShown, ofOneSlide, s.show)
	register(s.api, withFileAnswers(slides("thumbnail", "/v1/slides/{id}/thumbnail", "A picture of the whole slide",
		"JPEG. Send the ETag back as `If-None-Match` to be spared the same picture."), picture, "image/jpeg"),
		nil, slices.Concat(ofOneSlide, []coverslip.Kind{coverslip.Unsupported}), s.thumbnail)
	register(s.api, slides("embedding", "/v1/slides/{id}/embedding", "The embedding of a slide",
		"Not found until the slide's state is `embedded`; the problem then says the state."),
		exampleEmbedding, ofOneSlide, s.embedding)
	register(s.api, slides("similar", "/v1/slides/{id}/similar", "The most similar slides",
		"Nearest neighbours by the cosine of the embeddings, best first, the slide itself left out."),
		exampleSimilar, ofOneSlide, s.similar)
}

// ofOneSlide are the kinds of error of a route with a slide's id in its address.
var ofOneSlide = slices.Concat([]coverslip.Kind{coverslip.NotFound, coverslip.Conflict}, stumbles)

type listInput struct {
	State  coverslip.State `query:"state" doc:"Only slides in this state" enum:"registered,queued,encoding,embedded,no_tissue,needs_mpp,failed" example:"embedded"`
	Limit  int             `query:"limit" doc:"Slides on a page" minimum:"1" maximum:"1000" default:"100"`
	Cursor string          `query:"cursor" doc:"The next member of the page before; nothing to be made up or taken apart" maxLength:"200"`
}

type slideList struct {
	Slides []slideView `json:"slides" nullable:"false" doc:"One page"`
	Next   string      `json:"next,omitempty" doc:"Cursor of the next page; absent on the last"`
}

type listOutput struct{ Body slideList }

func (s *server) list(ctx context.Context, in *listInput) (*listOutput, error) {
	q := Query{State: in.State, Limit: in.Limit + 1} // one more tells whether there is a next page
	if in.Cursor != "" {
		after, err := parseCursor(in.Cursor)
		if err != nil {
			return nil, err
		}
		q.After = after
	}
	found, err := s.cfg.Slides.Slides(ctx, q)
	if err != nil {
		return nil, err
	}
	out := &listOutput{}
	if len(found) > in.Limit {
		found = found[:in.Limit]
		last := found[len(found)-1]
		out.Body.Next = cursor(Position{last.Registered, last.ID})
	}
	out.Body.Slides = each(found, viewSlide)
	return out, nil
}

func cursor(p Position) string {
	return base64.RawURLEncoding.EncodeToString([]byte(p.Registered.UTC().Format(time.RFC3339Nano) + " " + string(p.ID)))
}

func parseCursor(s string) (Position, error) {
	refused := func(err error) (Position, error) {
		return Position{}, &coverslip.Error{Kind: coverslip.Invalid, Op: "read cursor", Err: err,
			Hint: "send the next member of the page before as it is, or no cursor for the first page"}
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return refused(err)
	}
	at, id, _ := strings.Cut(string(raw), " ")
	registered, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return refused(errors.New("it names no time"))
	}
	slide, err := coverslip.ParseSlideID(id)
	if err != nil {
		return refused(errors.New("it names no slide"))
	}
	return Position{registered, slide}, nil
}

// OneSlide is the id in the address of every route below a slide. It is exported only because
// huma looks into no other kind of embedded struct.
type OneSlide struct {
	ID string `path:"id" doc:"The slide's id, or at least its first six hexadecimal digits" pattern:"^[0-9a-f]{6,64}$" example:"ed92d5a9f2e8"`
}

// slide finds the slide the address means and notes it for the log.
func (s *server) slide(ctx context.Context, in OneSlide) (coverslip.Slide, error) {
	found, err := s.cfg.Slides.Slide(ctx, in.ID)
	if err != nil {
		return coverslip.Slide{}, err
	}
	recordOf(ctx).slide = found.ID
	return found, nil
}

type slideOutput struct{ Body slideView }

func (s *server) show(ctx context.Context, in *OneSlide) (*slideOutput, error) {
	found, err := s.slide(ctx, *in)
	if err != nil {
		return nil, err
	}
	out := &slideOutput{Body: viewSlide(found)}
	switch b, err := s.cfg.Slides.Bag(ctx, found.ID); {
	case err == nil:
		out.Body.Bag = viewBag(b)
	case coverslip.KindOf(err) != coverslip.NotFound:
		return nil, err
	}
	return out, nil
}

type thumbnailInput struct {
	OneSlide
	Size        int    `query:"size" doc:"Longer edge in pixels" minimum:"16" maximum:"2048" default:"512"`
	IfNoneMatch string `header:"If-None-Match" doc:"ETag of the picture the client has" maxLength:"1000"`
}

func (s *server) thumbnail(ctx context.Context, in *thumbnailInput) (*fileOutput, error) {
	found, err := s.slide(ctx, in.OneSlide)
	if err != nil {
		return nil, err
	}
	tag := fmt.Sprintf(`"%s-%d-%s"`, found.ID, in.Size, coverslip.Version)
	return file(in.IfNoneMatch, tag, "private, max-age=3600", "image/jpeg", func() ([]byte, error) {
		return s.cfg.Thumbnailer.Thumbnail(ctx, found.ID, in.Size)
	})
}

type fileOutput struct {
	Status       int
	ContentType  string `header:"Content-Type" hidden:"true"`
	ETag         string `header:"ETag" doc:"Names the bytes"`
	CacheControl string `header:"Cache-Control" doc:"How long it may be kept"`
	Body         []byte
}

// file is the answer to who asks for bytes that follow from the slide, the address and the program, so
// that their tag is known without making them.
func file(ifNoneMatch, etag, keep, contentType string, body func() ([]byte, error)) (*fileOutput, error) {
	out := &fileOutput{Status: http.StatusNotModified, ETag: etag, CacheControl: keep}
	if matches(ifNoneMatch, etag) {
		return out, nil
	}
	var err error
	out.Status, out.ContentType = http.StatusOK, contentType
	out.Body, err = body()
	return out, err
}

// matches compares weakly, as RFC 9110 section 13.1.2 asks of If-None-Match.
func matches(ifNoneMatch, etag string) bool {
	for tag := range strings.SplitSeq(ifNoneMatch, ",") {
		if tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/"); tag == etag || tag == "*" {
			return true
		}
	}
	return false
}

type embeddingOutput struct{ Body embeddingView }

func (s *server) embedding(ctx context.Context, in *OneSlide) (*embeddingOutput, error) {
	found, err := s.slide(ctx, *in)
	if err != nil {
		return nil, err
	}
	e, err := s.cfg.Slides.Embedding(ctx, found.ID)
	if err != nil {
		return nil, notEmbedded(found, err)
	}
	return &embeddingOutput{Body: embeddingView(e)}, nil
}

type similarInput struct {
	OneSlide
	K int `query:"k" doc:"How many" minimum:"1" maximum:"100" default:"10"`
}

type similarList struct {
	Slide      coverslip.SlideID `json:"slide" doc:"Whose neighbours these are"`
	Neighbours []neighbourView   `json:"neighbours" nullable:"false" doc:"Best first"`
}

type similarOutput struct{ Body similarList }

func (s *server) similar(ctx context.Context, in *similarInput) (*similarOutput, error) {
	found, err := s.slide(ctx, in.OneSlide)
	if err != nil {
		return nil, err
	}
	near, err := s.cfg.Searcher.Search(ctx, SearchQuery{Slide: found.ID, K: in.K})
	if err != nil {
		return nil, notEmbedded(found, err)
	}
	return &similarOutput{Body: similarList{Slide: found.ID,
		Neighbours: each(near.Hits, func(h SearchHit) neighbourView { return neighbourView(h.Neighbour) })}}, nil
}

// notEmbedded says of a slide without an embedding where it stands instead.
func notEmbedded(s coverslip.Slide, err error) error {
	if coverslip.KindOf(err) != coverslip.NotFound {
		return err
	}
	hint := map[coverslip.State]string{
		coverslip.Queued:      "ask again when the slide's state is embedded",
		coverslip.Encoding:    "ask again when the slide's state is embedded",
		coverslip.NoTissue:    "there is no tissue on it, so there is nothing to embed",
		coverslip.AwaitingMPP: "upload it again with mpp_of_slide",
		coverslip.Failed:      s.Reason,
	}[s.State]
	return &coverslip.Error{Kind: coverslip.NotFound, Op: "find its embedding", Slide: s.ID, Err: &stateError{s.State}, Hint: hint}
}

// stateError says that a slide's state is why something is not there.
type stateError struct{ state coverslip.State }

func (e *stateError) Error() string { return "its state is " + string(e.state) }
