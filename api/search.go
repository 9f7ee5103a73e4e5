package api

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// SearchQuery asks for the slides most like a vector, or like the slide that has it.
type SearchQuery struct {
	Slide      coverslip.SlideID // whose embedding under the model is meant, and which is left out; "" with Vector
	Vector     []float32
	Encoder    string // "" is the server's
	Aggregator string

	Cohort             string            // filters: "" and nil let all through
	Sites              []string          // one of these
	Patients           []string          // one of these
	Labels             map[string]string // each as it stands in a file
	ExcludeSamePatient bool
	ExcludePatients    []string
	Vote               string // a label; "" is none

	K     int
	After *SearchPlace // only what comes behind it
}

// SearchPlace is a place in the order of the answers.
type SearchPlace struct {
	Slide      coverslip.SlideID
	Similarity float32
}

// SearchHit is one answer, with what its cohort says of it.
type SearchHit struct {
	coverslip.Neighbour
	Member coverslip.Member
}

// SearchAnswer is what came of a query.
type SearchAnswer struct {
	Encoder    string
	Aggregator string
	Hits       []SearchHit
	Next       *SearchPlace // nil on the last page
	Label      string       // of the vote; "" without one
	Value      string       // "" where no answer has the label
	Votes, Of  int
}

// Embedder makes embeddings that leave no trace.
type Embedder interface {
	// EmbedRegion embeds a part of a slide, in level-0 pixels. Without tissue there it is Invalid.
	EmbedRegion(ctx context.Context, id coverslip.SlideID, x, y, width, height int64) ([]float32, error)
	// EmbedFile embeds the slide whose bytes body yields; see Uploader.
	EmbedFile(ctx context.Context, name string, mppOfSlide float64, body io.Reader) (encoder, aggregator string, vector []float32, err error)
}

func (s *server) searchRoutes() {
	register(s.api, huma.Operation{Method: http.MethodPost, Path: "/v1/embeddings/search", OperationID: "search", Tags: []string{"embeddings"},
		Summary: "Find the slides most like others",
		Description: "By the cosine of embeddings of one encoder and one aggregator, best first. Every embedding is compared: the answer is exact under any filter, and shorter than `k` only where fewer slides pass it. " +
			"Each query is a slide, a region of a slide (which is encoded now), or a vector; up to 100 in one request. Reads only: it may be repeated."},
		exampleSearched, slices.Concat([]coverslip.Kind{coverslip.NotFound, coverslip.Conflict, coverslip.Unsupported, coverslip.NeedsMPP, coverslip.TooLarge, coverslip.Full}, stumbles), s.search)
	register(s.api, huma.Operation{Method: http.MethodPost, Path: "/v1/embeddings/compute", OperationID: "compute-embedding", Tags: []string{"embeddings"},
		Summary:     "Embed a slide without registering it",
		Description: "The bytes of the file are the body. The vector can be searched for; nothing is kept.",
		RequestBody: &huma.RequestBody{Required: true, Description: "The file as it is.", Content: map[string]*huma.MediaType{octets: {Schema: &huma.Schema{Type: "string", Format: "binary"}}}}},
		exampleComputed, slices.Concat([]coverslip.Kind{coverslip.Unsupported, coverslip.NeedsMPP, coverslip.Conflict, coverslip.TooLarge, coverslip.Full}, stumbles), s.compute)
}

type searchInput struct {
	Body struct {
		Queries            []queryView `json:"queries" nullable:"false" minItems:"1" maxItems:"100" doc:"What to find neighbours of"`
		K                  int         `json:"k,omitempty" nullable:"true" minimum:"1" maximum:"1000" default:"10" doc:"How many neighbours of each, on a page"`
		Encoder            string      `json:"encoder,omitempty" nullable:"true" maxLength:"200" doc:"Embeddings under this encoder; the server's own when absent" example:"efficientnet-lite0"`
		Aggregator         string      `json:"aggregator,omitempty" nullable:"true" maxLength:"200" doc:"Embeddings under this aggregator; the server's own when absent" example:"mean"`
		Where              *whereView  `json:"where,omitempty" doc:"Only slides that fit all of it"`
		ExcludeSamePatient bool        `json:"exclude_same_patient,omitempty" nullable:"true" doc:"Leave out slides of the patient of the slide that is asked about"`
		ExcludePatients    []string    `json:"exclude_patients,omitempty" nullable:"false" maxItems:"10000" doc:"Leave out slides of these patients"`
		Vote               string      `json:"vote,omitempty" nullable:"true" maxLength:"200" doc:"Label of which the neighbours' most frequent value is wanted" example:"subtype"`
		Cursor             string      `json:"cursor,omitempty" nullable:"true" maxLength:"400" doc:"The next member of the same query's page before; only with one query"`
	}
}

type queryView struct {
	Slide  string      `json:"slide,omitempty" nullable:"true" pattern:"^[0-9a-f]{6,64}$" doc:"A slide's id, or at least its first six hexadecimal digits" example:"ed92d5a9f2e8"`
	Region *regionView `json:"region,omitempty" doc:"Of that slide only this part"`
	Vector []float32   `json:"vector,omitempty" nullable:"false" minItems:"1" maxItems:"65536" doc:"An embedding, in place of a slide; its norm does not matter"`
}

type regionView struct {
	X      int64 `json:"x" minimum:"0" maximum:"10000000" doc:"Left, in level-0 pixels"`
	Y      int64 `json:"y" minimum:"0" maximum:"10000000" doc:"Top"`
	Width  int64 `json:"width" minimum:"1" maximum:"10000000" doc:"Pixels"`
	Height int64 `json:"height" minimum:"1" maximum:"10000000" doc:"Pixels"`
}

type whereView struct {
	Cohort  string            `json:"cohort,omitempty" nullable:"true" maxLength:"200" doc:"In this cohort" example:"brca"`
	Site    []string          `json:"site,omitempty" nullable:"false" maxItems:"10000" doc:"From one of these sites"`
	Patient []string          `json:"patient,omitempty" nullable:"false" maxItems:"10000" doc:"Of one of these patients"`
	Labels  map[string]string `json:"labels,omitempty" doc:"With these values of label columns, as they stand in a file"`
}

type searchedList struct {
	Encoder    string         `json:"encoder" doc:"Tile pixels to instances"`
	Aggregator string         `json:"aggregator" doc:"Instances to embedding"`
	Results    []searchedView `json:"results" nullable:"false" doc:"One for each query, in their order"`
}

type searchedView struct {
	Slide      coverslip.SlideID `json:"slide,omitempty" doc:"Whose neighbours these are; absent for a vector"`
	Neighbours []foundView       `json:"neighbours" nullable:"false" doc:"Best first"`
	Vote       *voteView         `json:"vote,omitempty" doc:"What most neighbours on this page are labelled; only where it was asked for"`
	Next       string            `json:"next,omitempty" doc:"Cursor of the next page; absent on the last"`
}

type foundView struct {
	Slide      coverslip.SlideID `json:"slide" doc:"Id of the similar slide"`
	Name       string            `json:"name" doc:"Its name"`
	Similarity float64           `json:"similarity" doc:"Cosine, -1 to 1"`
	Patient    string            `json:"patient,omitempty" doc:"Whose it is, as its cohort says"`
	Site       string            `json:"site,omitempty" doc:"Where it comes from, as its cohort says"`
	Labels     map[string]string `json:"labels,omitempty" doc:"Its labels, as they stand in a file"`
}

type voteView struct {
	Label string  `json:"label" doc:"The label column"`
	Value string  `json:"value,omitempty" doc:"Its most frequent value; of several, that of the more similar slides; absent where no neighbour has one"`
	Votes int     `json:"votes" doc:"Neighbours with that value"`
	Of    int     `json:"of" doc:"Neighbours with any value"`
	Share float64 `json:"share" doc:"votes / of; 0 where there is none"`
}

type searchOutput struct{ Body searchedList }

func (s *server) search(ctx context.Context, in *searchInput) (*searchOutput, error) {
	b := in.Body
	base := SearchQuery{Encoder: b.Encoder, Aggregator: b.Aggregator, ExcludeSamePatient: b.ExcludeSamePatient, ExcludePatients: b.ExcludePatients, Vote: b.Vote, K: b.K}
	if b.Where != nil {
		base.Cohort, base.Sites, base.Patients, base.Labels = b.Where.Cohort, b.Where.Site, b.Where.Patient, b.Where.Labels
	}
	if b.Cursor != "" && len(b.Queries) > 1 {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read cursor", Err: fmt.Errorf("it is for one query, and there are %d", len(b.Queries)), Hint: "send each query that has a next page by itself"}
	}
	queries := make([]SearchQuery, len(b.Queries))
	for i, v := range b.Queries {
		q, err := s.query(ctx, base, v)
		if err != nil {
			return nil, coverslip.Doing(fmt.Sprintf("read query %d", i), err)
		}
		queries[i] = q
	}
	sum := digestOf(queries[0])
	if b.Cursor != "" {
		var err error
		if queries[0].After, err = parsePlace(b.Cursor, sum); err != nil {
			return nil, err
		}
	}
	out := &searchOutput{searchedList{Results: make([]searchedView, len(queries))}}
	for i, q := range queries {
		found, err := s.cfg.Searcher.Search(ctx, q)
		if err != nil {
			return nil, err
		}
		out.Body.Encoder, out.Body.Aggregator = found.Encoder, found.Aggregator
		view := searchedView{Slide: q.Slide, Neighbours: each(found.Hits, viewFound)}
		if found.Next != nil {
			view.Next = placeCursor(*found.Next, digestOf(q))
		}
		if found.Label != "" {
			view.Vote = &voteView{Label: found.Label, Value: found.Value, Votes: found.Votes, Of: found.Of}
			if found.Of > 0 {
				view.Vote.Share = float64(found.Votes) / float64(found.Of)
			}
		}
		out.Body.Results[i] = view
	}
	return out, nil
}

func viewFound(h SearchHit) foundView {
	v := foundView{Slide: h.Slide, Name: h.Name, Similarity: h.Similarity, Patient: h.Member.Patient, Site: h.Member.Site}
	if len(h.Member.Labels) > 0 {
		v.Labels = make(map[string]string, len(h.Member.Labels))
		for name, value := range h.Member.Labels {
			v.Labels[name] = coverslip.LabelText(value)
		}
	}
	return v
}

// query takes one query with its slide found, and its region embedded.
func (s *server) query(ctx context.Context, q SearchQuery, v queryView) (SearchQuery, error) {
	refused := func(why string) (SearchQuery, error) {
		return q, &coverslip.Error{Kind: coverslip.Invalid, Op: "search", Err: errors.New(why), Hint: `give "slide", with or without "region", or "vector"`}
	}
	switch {
	case v.Slide == "" && v.Vector == nil:
		return refused("it has neither slide nor vector")
	case v.Slide != "" && v.Vector != nil:
		return refused("it has both a slide and a vector")
	case v.Region != nil && v.Slide == "":
		return refused("it has a region of no slide")
	case v.Vector != nil:
		for _, x := range v.Vector {
			if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
				return refused("its vector has a value that is not finite")
			}
		}
		q.Vector = v.Vector
		return q, nil
	}
	found, err := s.slide(ctx, OneSlide{v.Slide})
	if err != nil {
		return q, err
	}
	q.Slide = found.ID
	if r := v.Region; r != nil {
		q.Vector, err = s.cfg.Embedder.EmbedRegion(ctx, found.ID, r.X, r.Y, r.Width, r.Height)
		return q, err
	}
	return q, nil
}

// digestOf names what a cursor belongs to: the query, whatever the length of its pages.
func digestOf(q SearchQuery) [8]byte {
	q.K, q.After = 0, nil
	raw, err := json.Marshal(q)
	if err != nil {
		panic("api: a query: " + err.Error()) // finite numbers and texts always marshal
	}
	sum := sha256.Sum256(raw)
	return [8]byte(sum[:8])
}

func placeCursor(p SearchPlace, of [8]byte) string {
	raw := binary.LittleEndian.AppendUint32(slices.Clone(of[:]), math.Float32bits(p.Similarity))
	id, _ := hex.DecodeString(string(p.Slide))
	return base64.RawURLEncoding.EncodeToString(append(raw, id...))
}

func parsePlace(s string, of [8]byte) (*SearchPlace, error) {
	refused := func(why string) (*SearchPlace, error) {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read cursor", Err: errors.New(why),
			Hint: "send the next member of the page before as it is, with the same query, or no cursor for the first page"}
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(raw) != 8+4+32 {
		return refused("it is no cursor of a search")
	}
	if [8]byte(raw) != of {
		return refused("it belongs to another query")
	}
	return &SearchPlace{Similarity: math.Float32frombits(binary.LittleEndian.Uint32(raw[8:])), Slide: coverslip.SlideID(hex.EncodeToString(raw[12:]))}, nil
}

type computeInput struct {
	Name       string  `query:"name" doc:"What to call it in errors" maxLength:"1024" default:"slide" example:"biopsy.svs"`
	MPPOfSlide float64 `query:"mpp_of_slide" doc:"Resolution of level 0 in µm per pixel, for a slide that does not say it or says it wrongly" exclusiveMinimum:"0" maximum:"100" example:"0.499"`
	octetsInput
}

type computedView struct {
	Encoder    string    `json:"encoder" doc:"Tile pixels to instances"`
	Aggregator string    `json:"aggregator" doc:"Instances to embedding"`
	Vector     []float32 `json:"vector" nullable:"false" doc:"The embedding, L2 norm 1"`
}

type computeOutput struct{ Body computedView }

func (s *server) compute(ctx context.Context, in *computeInput) (*computeOutput, error) {
	as := uploadInput{Name: in.Name, MPPOfSlide: in.MPPOfSlide, octetsInput: in.octetsInput}
	name, err := as.check(s.cfg.MaxUpload)
	if err != nil {
		return nil, coverslip.At(name, err)
	}
	body := &uploadBody{r: http.MaxBytesReader(nil, in.request.Body, s.cfg.MaxUpload), name: name, received: s.metrics.uploaded}
	out := &computeOutput{}
	out.Body.Encoder, out.Body.Aggregator, out.Body.Vector, err = s.cfg.Embedder.EmbedFile(ctx, name, in.MPPOfSlide, body)
	if body.err != nil {
		err = body.err
	}
	return out, coverslip.At(name, err)
}

var (
	exampleSearched = searchedList{Encoder: "efficientnet-lite0", Aggregator: "mean", Results: []searchedView{{Slide: exampleSlide.ID,
		Neighbours: []foundView{{Slide: coverslip.SlideID(strings.Repeat("5b", 32)), Name: "CMU-2.svs", Similarity: 0.93, Patient: "TCGA-3L-AA1B", Site: "3L", Labels: map[string]string{"subtype": "CMS2"}}},
		Vote:       &voteView{Label: "subtype", Value: "CMS2", Votes: 1, Of: 1, Share: 1}}}}
	exampleComputed = computedView{Encoder: "efficientnet-lite0", Aggregator: "mean", Vector: []float32{0.6, -0.8}}
)
