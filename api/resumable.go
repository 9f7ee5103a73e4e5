package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// Presigner lets clients put a slide straight into the bucket, at addresses that it signs. Where the
// server keeps slides in a folder, every method is Unsupported.
type Presigner interface {
	// Presign gives an upload of this name and length its parts.
	Presign(ctx context.Context, up Arriving) (Presigned, error)
	// Complete publishes what was put, given each part's ETag in the order of the parts, and makes a slide
	// of it. Parts that are missing or changed are Invalid.
	Complete(ctx context.Context, id string, etags []string) (slide coverslip.Slide, created bool, err error)
	// Abort drops what was put.
	Abort(ctx context.Context, id string) error
}

// Presigned is an upload straight to the bucket.
type Presigned struct {
	ID        string
	PartBytes int64    // length of each part but the last
	URLs      []string // of the parts, in order
	Expires   time.Time
}

// Registrar makes a slide known that stays where it is. Places that the server is not allowed to read
// are Invalid.
type Registrar interface {
	Register(ctx context.Context, place string, mppOfSlide float64) (slide coverslip.Slide, created bool, err error)
}

func (s *server) resumableRoutes() {
	op := func(method, path, id, summary, description string) huma.Operation {
		return huma.Operation{Method: method, Path: path, OperationID: id, Tags: []string{"uploads"}, Summary: summary, Description: description}
	}
	kept := slices.Concat([]coverslip.Kind{coverslip.NotFound, coverslip.Unsupported, coverslip.Conflict, coverslip.TooLarge, coverslip.Full}, stumbles)
	register(s.api, op(http.MethodGet, uploadsPath, "list-uploads", "List unfinished uploads",
		"The furthest first. With `sha256`, only those that were announced with it: so a client that lost everything but the file goes on with its upload."),
		exampleUploads, stumbles, s.listUploads)
	register(s.api, op(http.MethodGet, uploadsPath+"/{upload}", "show-upload", "Show an upload",
		"How far it is and, once it is finished, which slide came of it. It is remembered for a week."),
		exampleUpload, slices.Concat([]coverslip.Kind{coverslip.NotFound}, stumbles), s.showUpload)
	register(s.api, withKnownAnswer(s.api, op(http.MethodPost, uploadsPath+"/{upload}/finish", "finish-upload", "Make a slide of a whole upload",
		"Happens by itself with the last byte; this is for clients that did not hear of it. Asking again gives the same answer.")),
		exampleUploaded, kept, s.finishUpload)

	create := op(http.MethodPost, uploadsPath+"/presigned", "presign-upload", "Upload straight to the bucket",
		"Answers addresses to which the client PUTs the parts of the file, without passing through this server. Keep the ETag of each answer for `complete`. Only where slides are kept in S3.")
	create.DefaultStatus = http.StatusCreated
	register(s.api, create, examplePresigned, slices.Concat([]coverslip.Kind{coverslip.Unsupported, coverslip.TooLarge}, stumbles), s.presign)
	register(s.api, withKnownAnswer(s.api, op(http.MethodPost, uploadsPath+"/presigned/{upload}/complete", "complete-upload", "Make a slide of the parts in the bucket",
		"Reads the file once, for its SHA-256 and what it is. Bytes that are known already are not kept twice.")),
		exampleUploaded, kept, s.completeUpload)
	drop := op(http.MethodDelete, uploadsPath+"/presigned/{upload}", "abort-upload", "Drop the parts in the bucket", "")
	drop.DefaultStatus = http.StatusNoContent
	register(s.api, drop, nil, slices.Concat([]coverslip.Kind{coverslip.NotFound, coverslip.Unsupported}, stumbles), s.abortUpload)

	register(s.api, withKnownAnswer(s.api, huma.Operation{Method: http.MethodPost, Path: "/v1/slides/register", OperationID: "register-slide", Tags: []string{"slides"},
		Summary:     "Register a slide where it lies",
		Description: "In a bucket, or in a folder that the server was started with (`--slides-folder`). Not a byte is copied; it is read once, for its SHA-256.", DefaultStatus: http.StatusCreated}),
		exampleUploaded, kept, s.registerSlide)
}

type uploadView struct {
	ID         string            `json:"id" doc:"Names the upload"`
	Name       string            `json:"name" doc:"What the slide will be called"`
	Bytes      int64             `json:"bytes" doc:"Length of the file"`
	Received   int64             `json:"received" doc:"Bytes that are kept"`
	MPPOfSlide float64           `json:"mpp_of_slide,omitempty" doc:"The user's word for the resolution, µm per pixel"`
	SHA256     string            `json:"sha256,omitempty" doc:"SHA-256 that was announced"`
	Slide      coverslip.SlideID `json:"slide,omitempty" doc:"The slide that came of it, once it is finished"`
	Created    time.Time         `json:"created" doc:"When it was begun"`
}

type uploadsInput struct {
	SHA256 string `query:"sha256" doc:"Only uploads announced with it" pattern:"^[0-9a-f]{64}$" example:"ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"`
}

type uploadList struct {
	Uploads []uploadView `json:"uploads" nullable:"false" doc:"Those that are not finished"`
}

type uploadsOutput struct{ Body uploadList }

func (s *server) listUploads(ctx context.Context, in *uploadsInput) (*uploadsOutput, error) {
	found, err := s.cfg.Resumable.List(ctx, in.SHA256)
	if err != nil {
		return nil, err
	}
	return &uploadsOutput{uploadList{each(found, func(a Arriving) uploadView { return uploadView(a) })}}, nil
}

// OneUpload is the id in the address of every route below an upload.
type OneUpload struct {
	ID string `path:"upload" doc:"The upload's id" pattern:"^[a-z2-7]{26}$" example:"mfrggzdfmztwq2lkmfrggzdfmz"`
}

type oneUploadOutput struct{ Body uploadView }

func (s *server) showUpload(ctx context.Context, in *OneUpload) (*oneUploadOutput, error) {
	up, err := s.cfg.Resumable.Find(ctx, in.ID)
	return &oneUploadOutput{uploadView(up)}, err
}

func (s *server) finishUpload(ctx context.Context, in *OneUpload) (*uploadOutput, error) {
	slide, created, err := s.cfg.Resumable.Finish(context.WithoutCancel(ctx), in.ID)
	return kept(ctx, slide, created, err)
}

// kept is the answer to who made a slide known.
func kept(ctx context.Context, slide coverslip.Slide, created bool, err error) (*uploadOutput, error) {
	if err != nil {
		return nil, err
	}
	recordOf(ctx).slide = slide.ID
	out := &uploadOutput{Status: http.StatusOK, Location: "/v1/slides/" + string(slide.ID), Body: viewSlide(slide)}
	if created {
		out.Status = http.StatusCreated
	}
	return out, nil
}

type presignInput struct {
	Body struct {
		Name       string  `json:"name" doc:"What to call the slide" minLength:"1" maxLength:"1024" example:"CMU-1-Small-Region.svs"`
		Bytes      int64   `json:"bytes" doc:"Length of the file" minimum:"1" example:"1938955"`
		MPPOfSlide float64 `json:"mpp_of_slide,omitempty" nullable:"true" doc:"Resolution of level 0 in µm per pixel, for a slide that does not say it or says it wrongly" exclusiveMinimum:"0" maximum:"100" example:"0.499"`
		SHA256     string  `json:"sha256,omitempty" nullable:"true" doc:"SHA-256 of the file, to be checked against what arrives" pattern:"^[0-9a-f]{64}$" example:"ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"`
	}
}

type presignedView struct {
	ID        string     `json:"id" doc:"Names the upload"`
	PartBytes int64      `json:"part_bytes" doc:"Length of each part but the last, which may be shorter"`
	Parts     []partView `json:"parts" nullable:"false" doc:"Where to PUT each"`
	Expires   time.Time  `json:"expires" doc:"When the addresses stop working"`
}

type partView struct {
	Number int    `json:"number" doc:"From 1"`
	URL    string `json:"url" doc:"PUT the part's bytes here, without credentials"`
}

type presignOutput struct{ Body presignedView }

func (s *server) presign(ctx context.Context, in *presignInput) (*presignOutput, error) {
	b := in.Body
	name, err := plainName(b.Name, "give a plain file name")
	if err != nil {
		return nil, err
	}
	if b.Bytes > s.cfg.MaxUpload {
		return nil, coverslip.At(name, tooLarge(s.cfg.MaxUpload))
	}
	p, err := s.cfg.Presigner.Presign(ctx, Arriving{Name: name, Bytes: b.Bytes, MPPOfSlide: b.MPPOfSlide, SHA256: b.SHA256})
	if err != nil {
		return nil, coverslip.At(name, err)
	}
	out := &presignOutput{presignedView{ID: p.ID, PartBytes: p.PartBytes, Expires: p.Expires, Parts: make([]partView, len(p.URLs))}}
	for i, u := range p.URLs {
		out.Body.Parts[i] = partView{i + 1, u}
	}
	return out, nil
}

type completeInput struct {
	OneUpload
	Body struct {
		ETags []string `json:"etags" nullable:"false" doc:"The ETag that the bucket answered for each part, in the order of the parts" minItems:"1" maxItems:"10000"`
	}
}

func (s *server) completeUpload(ctx context.Context, in *completeInput) (*uploadOutput, error) {
	slide, created, err := s.cfg.Presigner.Complete(context.WithoutCancel(ctx), in.ID, in.Body.ETags)
	return kept(ctx, slide, created, err)
}

func (s *server) abortUpload(ctx context.Context, in *OneUpload) (*struct{}, error) {
	return nil, s.cfg.Presigner.Abort(ctx, in.ID)
}

type registerInput struct {
	Body struct {
		Location   string  `json:"location" doc:"Where the slide lies: s3://bucket/key, or an absolute path on the server" minLength:"1" maxLength:"4096" example:"s3://slides/CMU-1-Small-Region.svs"`
		MPPOfSlide float64 `json:"mpp_of_slide,omitempty" nullable:"true" doc:"Resolution of level 0 in µm per pixel, for a slide that does not say it or says it wrongly" exclusiveMinimum:"0" maximum:"100" example:"0.499"`
	}
}

func (s *server) registerSlide(ctx context.Context, in *registerInput) (*uploadOutput, error) {
	slide, created, err := s.cfg.Registrar.Register(ctx, in.Body.Location, in.Body.MPPOfSlide)
	return kept(ctx, slide, created, err)
}

// documentTus adds to the contract what tusd answers.
func (s *server) documentTus() {
	text := func(of string) *huma.Schema { return &huma.Schema{Type: "string", Description: of} }
	number := func(of string) *huma.Schema { return &huma.Schema{Type: "integer", Description: of} }
	header := func(name string, required bool, schema *huma.Schema, example any) *huma.Param {
		return &huma.Param{Name: name, In: "header", Required: required, Description: schema.Description, Schema: schema, Example: example}
	}
	zero := 0.0
	offset := &huma.Schema{Type: "integer", Format: "int64", Minimum: &zero, Description: "Where the upload stands"}
	version := header("Tus-Resumable", true, &huma.Schema{Type: "string", Enum: []any{"1.0.0"}, Description: "Version of the protocol"}, "1.0.0")
	id := &huma.Param{Name: "upload", In: "path", Required: true, Description: "The upload's id", Schema: &huma.Schema{Type: "string", Pattern: "^[a-z2-7]{26}$"}, Example: "mfrggzdfmztwq2lkmfrggzdfmz"}
	known := map[string]*huma.Param{"Tus-Resumable": {Schema: text("Version of the protocol")}, "X-Request-Id": {Schema: text("Finds this request in the server's log")}}
	answer := func(description string, more map[string]*huma.Param) *huma.Response {
		h := map[string]*huma.Param{}
		for _, m := range []map[string]*huma.Param{known, more} {
			for name, p := range m {
				h[name] = p
			}
		}
		return &huma.Response{Description: description, Headers: h}
	}
	slide := &huma.Param{Schema: text("Address of the slide, once the last byte is here")}
	add := func(op huma.Operation, errs []tusAnswer) {
		for _, e := range errs {
			documentProblem(s.api, &op, e.status, e.kind, e.means)
		}
		for _, answer := range op.Responses {
			if answer.Headers == nil {
				answer.Headers = map[string]*huma.Param{}
			}
			answer.Headers["X-Request-Id"] = known["X-Request-Id"]
		}
		s.api.OpenAPI().AddOperation(&op)
	}
	const again = "The connection ended early; what came is kept."
	broken := []tusAnswer{{http.StatusPreconditionFailed, coverslip.Invalid, "Another version of the protocol, or none, was named."}, {http.StatusForbidden, coverslip.Invalid, "The request comes from a page of another site."}}
	add(huma.Operation{Method: http.MethodPost, Path: uploadsPath, OperationID: "begin-upload", Tags: []string{"uploads"}, Summary: "Begin a resumable upload",
		Description: "The tus protocol, version 1.0.0 (https://tus.io): begin here, PATCH the bytes, ask with HEAD where it stands after an interruption. Any tus client will do; `coverslip upload` is one.",
		Parameters: []*huma.Param{version, header("Upload-Length", true, &huma.Schema{Type: "integer", Format: "int64", Minimum: &zero, Description: "Length of the file in bytes"}, 1938955),
			header("Upload-Metadata", true, &huma.Schema{Type: "string", Pattern: `^filename [A-Za-z0-9+/=]+`, Description: "Pairs of a key and a value in base64: filename; mpp_of_slide and sha256 where they are known"}, "filename Q01VLTEtU21hbGwtUmVnaW9uLnN2cw==")},
		Responses: map[string]*huma.Response{"201": answer("Begun.", map[string]*huma.Param{"Location": {Schema: text("Address of the upload")}})}},
		append([]tusAnswer{{http.StatusBadRequest, coverslip.Invalid, "Upload-Length is missing or no number."}, {http.StatusUnprocessableEntity, coverslip.Invalid, answers[coverslip.Invalid].means},
			{http.StatusRequestEntityTooLarge, coverslip.TooLarge, answers[coverslip.TooLarge].means}, {http.StatusInsufficientStorage, coverslip.Full, answers[coverslip.Full].means},
			{http.StatusUnsupportedMediaType, coverslip.Unsupported, answers[coverslip.Unsupported].means}, {http.StatusInternalServerError, coverslip.Internal, answers[coverslip.Internal].means}}, broken...))
	add(huma.Operation{Method: http.MethodHead, Path: uploadsPath + "/{upload}", OperationID: "upload-offset", Tags: []string{"uploads"}, Summary: "Where does an upload stand?",
		Description: "What `Upload-Offset` says is on the server's disk.", Parameters: []*huma.Param{id},
		Responses: map[string]*huma.Response{
			"200": answer("There it stands.", map[string]*huma.Param{"Upload-Offset": {Schema: number("Bytes kept")}, "Upload-Length": {Schema: number("Bytes announced")}}),
			"404": answer("No such upload.", nil), "415": answer("Content-Encoding was named.", nil), "423": answer("Another client sends it at this moment; ask again.", nil)}}, nil)
	add(huma.Operation{Method: http.MethodPatch, Path: uploadsPath + "/{upload}", OperationID: "continue-upload", Tags: []string{"uploads"}, Summary: "Send bytes of an upload",
		Description: "From `Upload-Offset` on, as many as you like. With the last one the slide is made, and named in `Content-Location`.",
		Parameters:  []*huma.Param{id, version, header("Upload-Offset", true, offset, 0)},
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/offset+octet-stream": {Schema: &huma.Schema{Type: "string", Format: "binary"}}}},
		Responses:   map[string]*huma.Response{"204": answer("Kept.", map[string]*huma.Param{"Upload-Offset": {Schema: number("Bytes kept")}, "Content-Location": slide})}},
		append([]tusAnswer{{http.StatusBadRequest, coverslip.Invalid, "Upload-Offset is missing or no number."}, {http.StatusNotFound, coverslip.NotFound, answers[coverslip.NotFound].means},
			{http.StatusRequestTimeout, coverslip.Canceled, "Nothing came for a minute; what came before is kept."}, {http.StatusConflict, coverslip.Conflict, "The upload stands elsewhere."},
			{http.StatusRequestEntityTooLarge, coverslip.TooLarge, "More than was announced."}, {http.StatusUnsupportedMediaType, coverslip.Unsupported, answers[coverslip.Unsupported].means},
			{http.StatusUnprocessableEntity, coverslip.Invalid, answers[coverslip.Invalid].means}, {http.StatusLocked, coverslip.Conflict, "Another client sends it at this moment."},
			{statusClientGone, coverslip.Canceled, again}, {http.StatusInternalServerError, coverslip.Internal, answers[coverslip.Internal].means},
			{http.StatusServiceUnavailable, coverslip.Unavailable, answers[coverslip.Unavailable].means}, {http.StatusInsufficientStorage, coverslip.Full, answers[coverslip.Full].means}}, broken...))
	add(huma.Operation{Method: http.MethodDelete, Path: uploadsPath + "/{upload}", OperationID: "drop-upload", Tags: []string{"uploads"}, Summary: "End an upload and forget what was received",
		Parameters: []*huma.Param{id, version}, Responses: map[string]*huma.Response{"204": answer("Gone.", nil)}},
		append([]tusAnswer{{http.StatusNotFound, coverslip.NotFound, answers[coverslip.NotFound].means}, {http.StatusLocked, coverslip.Conflict, "Another client sends it at this moment."},
			{http.StatusUnsupportedMediaType, coverslip.Unsupported, "Content-Encoding was named."}}, broken...))
}

// tusAnswer is one error of tusd in the contract.
type tusAnswer struct {
	status int
	kind   coverslip.Kind
	means  string
}

var (
	exampleUpload = uploadView{ID: "mfrggzdfmztwq2lkmfrggzdfmz", Name: exampleSlide.Name, Bytes: exampleSlide.Bytes, Received: 1048576,
		SHA256: string(exampleSlide.ID), Created: exampleTime}
	exampleUploads   = uploadList{Uploads: []uploadView{exampleUpload}}
	examplePresigned = presignedView{ID: exampleUpload.ID, PartBytes: 16 << 20, Expires: exampleTime.Add(24 * time.Hour),
		Parts: []partView{{1, "https://slides.s3.amazonaws.com/slides/mfrggzdfmztwq2lkmfrggzdfmz?partNumber=1&uploadId=…"}}}
)

// noPresigner is what stands in for a Presigner where there is no bucket.
type noPresigner struct{}

func (noPresigner) err() error {
	return &coverslip.Error{Kind: coverslip.Unsupported, Op: "upload straight to the bucket", Err: errors.New("this server keeps slides in a folder"), Hint: "POST to " + uploadsPath + " instead"}
}

func (n noPresigner) Presign(context.Context, Arriving) (Presigned, error) {
	return Presigned{}, n.err()
}

func (n noPresigner) Complete(context.Context, string, []string) (coverslip.Slide, bool, error) {
	return coverslip.Slide{}, false, n.err()
}

func (n noPresigner) Abort(context.Context, string) error { return n.err() }
