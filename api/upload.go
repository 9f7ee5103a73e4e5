package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/prometheus/client_golang/prometheus"
)

func (s *server) uploadRoute() {
	op := huma.Operation{
		Method: http.MethodPost, Path: "/v1/slides", OperationID: "upload-slide", Tags: []string{"slides"},
		Summary:       "Upload a slide",
		Description:   "The bytes of the file are the body. They are kept whole or not at all, and judged by content. Bytes that are known already answer 200 with the slide there is.",
		DefaultStatus: http.StatusCreated,
		RequestBody: &huma.RequestBody{
			Required:    true,
			Description: "The file as it is, neither compressed nor wrapped in a form.",
			Content:     map[string]*huma.MediaType{octets: {Schema: &huma.Schema{Type: "string", Format: "binary"}}},
		},
	}
	register(s.api, withKnownAnswer(s.api, op), exampleUploaded,
		slices.Concat([]coverslip.Kind{coverslip.Unsupported, coverslip.NeedsMPP, coverslip.Conflict, coverslip.TooLarge, coverslip.Full}, stumbles), s.upload)
}

const octets = "application/octet-stream"

type uploadInput struct {
	Name        string  `query:"name" doc:"What to call it. Folders before the name are dropped; what is left must be 1 to 255 bytes of printable UTF-8. May come as the filename of Content-Disposition instead" maxLength:"1024" example:"CMU-1-Small-Region.svs"`
	MPPOfSlide  float64 `query:"mpp_of_slide" doc:"Resolution of level 0 in µm per pixel, for a slide that does not say it or says it wrongly" exclusiveMinimum:"0" maximum:"100" example:"0.499"`
	Disposition string  `header:"Content-Disposition" doc:"attachment with a filename, in place of name" example:"attachment; filename=\"CMU-1-Small-Region.svs\""`
	octetsInput
}

// octetsInput is a body of bytes.
type octetsInput struct{ request *http.Request }

// Resolve keeps the request, because huma itself would read the body into memory.
func (in *octetsInput) Resolve(ctx huma.Context) []error {
	in.request, _ = humachi.Unwrap(ctx)
	return nil
}

type uploadOutput struct {
	Status   int
	Location string `header:"Location" doc:"Address of the slide"`
	Body     slideView
}

func (s *server) upload(ctx context.Context, in *uploadInput) (*uploadOutput, error) {
	name, err := in.check(s.cfg.MaxUpload)
	if err != nil {
		return nil, coverslip.At(name, err)
	}
	body := &uploadBody{r: http.MaxBytesReader(nil, in.request.Body, s.cfg.MaxUpload), name: name, received: s.metrics.uploaded}
	slide, created, err := s.cfg.Uploader.Upload(ctx, name, in.MPPOfSlide, body)
	if body.err != nil {
		err = body.err // the cause, whatever the uploader made of it
	}
	if err != nil {
		return nil, coverslip.At(name, err)
	}
	recordOf(ctx).slide = slide.ID
	out := &uploadOutput{Status: http.StatusOK, Location: "/v1/slides/" + string(slide.ID), Body: viewSlide(slide)}
	if created {
		out.Status = http.StatusCreated
	}
	return out, nil
}

// check refuses before the first byte is read what can be refused then, and returns the name.
func (in *uploadInput) check(limit int64) (string, error) {
	name, err := in.name()
	if err == nil {
		err = in.octetsInput.check(limit)
	}
	if err == nil && math.IsNaN(in.MPPOfSlide) { // passes every bound
		err = &coverslip.Error{Kind: coverslip.Invalid, Op: "read mpp_of_slide", Err: errors.New("it is not a number"), Hint: "give µm per pixel, such as 0.5"}
	}
	return name, err
}

func (in *octetsInput) check(limit int64) error {
	const op = "receive upload"
	if said := in.request.Header.Get("Content-Type"); said != "" {
		if kind, _, err := mime.ParseMediaType(said); err != nil || kind != octets {
			return &coverslip.Error{Kind: coverslip.Unsupported, Op: op, Err: fmt.Errorf("the body is said to be %.100q", said),
				Hint: "send the file's bytes as " + octets + ", not as a form"}
		}
	}
	if said := in.request.Header.Get("Content-Encoding"); said != "" && !strings.EqualFold(said, "identity") {
		return &coverslip.Error{Kind: coverslip.Unsupported, Op: op, Err: fmt.Errorf("the body is encoded as %.100q", said),
			Hint: "send the file's bytes without Content-Encoding"}
	}
	if in.request.ContentLength > limit {
		return tooLarge(limit)
	}
	if in.request.ContentLength == 0 {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: op, Err: errors.New("the body is empty"), Hint: "send the file's bytes as the body (curl -T FILE)"}
	}
	return nil
}

func tooLarge(limit int64) error {
	return &coverslip.Error{Kind: coverslip.TooLarge, Op: "receive upload", Err: fmt.Errorf("more than %d bytes", limit),
		Hint: "raise the server's upload limit, or let it read the slide where it is"}
}

// name is the last part of the name in the query or else in Content-Disposition. It is a label:
// nothing is ever written to or read from a path made of it, and it is still kept to what is
// harmless as a file name, in a log and on a terminal.
func (in *uploadInput) name() (string, error) {
	const remedy = "add ?name=FILE with a plain file name"
	name := in.Name
	if name == "" && in.Disposition != "" {
		_, params, err := mime.ParseMediaType(in.Disposition)
		if err != nil {
			return "", &coverslip.Error{Kind: coverslip.Invalid, Op: "read the slide's name", Err: errors.New("Content-Disposition cannot be read"), Hint: remedy}
		}
		name = params["filename"]
	}
	return plainName(name, remedy)
}

// plainName is the last part of a name, or why it is refused.
func plainName(name, remedy string) (string, error) {
	refused := func(why string) (string, error) {
		return "", &coverslip.Error{Kind: coverslip.Invalid, Op: "read the slide's name", Err: errors.New(why), Hint: remedy}
	}
	name = name[strings.LastIndexAny(name, `/\`)+1:]
	switch {
	case name == "":
		return refused("there is none")
	case name == "." || name == "..":
		return refused("it is a folder")
	case len(name) > 255: // the longest file name of Linux
		return refused("it is longer than 255 bytes")
	case !utf8.ValidString(name), strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsGraphic(r) }):
		return refused("it holds bytes that are not printable text")
	}
	return name, nil
}

// uploadBody is the body as an Uploader sees it: counted, limited, and with errors that say which
// of the two ways of ending early it was.
type uploadBody struct {
	r        io.Reader
	name     string
	received prometheus.Counter
	err      error // what ended it early
}

func (b *uploadBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.r.Read(p)
	b.received.Add(float64(n))
	var over *http.MaxBytesError
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case errors.As(err, &over):
		b.err = coverslip.At(b.name, tooLarge(over.Limit))
	default: // a reset, a time-out, a chunk that ends early: the client is gone or talks nonsense
		b.err = &coverslip.Error{Kind: coverslip.Canceled, Op: "receive upload", Path: b.name, Err: fmt.Errorf("the connection ended early: %w", io.ErrUnexpectedEOF),
			Hint: "upload it again"}
	}
	return n, b.err
}
