package api

import (
	"context"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// contract is the frame of /openapi.json; the routes fill it in. huma's own pages are left out:
// one loads scripts from elsewhere, the others build the document without a lock.
func contract() huma.Config {
	namer := func(t reflect.Type, hint string) string {
		return strings.TrimSuffix(huma.DefaultSchemaNamer(t, hint), "View")
	}
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Coverslip", Version: coverslip.Version,
				Description: "Whole-slide images in, slide embeddings out. Every error is a problem (RFC 9457) whose `kind` says what sort and whose `hint` says what to do. " +
					"Every answer carries `X-Request-Id`, which finds the request in the server's log.",
				License: &huma.License{Name: "Apache 2.0", Identifier: "Apache-2.0"},
			},
			Tags:       []*huma.Tag{{Name: "slides", Description: "Whole-slide images and what was computed from them"}, {Name: "uploads", Description: "Slides on their way in"}, {Name: "embeddings", Description: "Questions answered from slide embeddings"}, {Name: "cohorts", Description: "Named sets of slides with patient, site and labels"}, {Name: "runs", Description: "What was judged, with every prediction"}, {Name: "jobs", Description: "The work in the queues"}, {Name: "tasks", Description: "Verbs of the command line that workers do: training, judging, studies, exports"}, {Name: "server", Description: "The server itself"}},
			Components: &huma.Components{Schemas: huma.NewMapRegistry("#/components/schemas/", namer)},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true, // a misspelt mpp_of_slide must not be passed over
	}
}

// stumbles are the kinds of error of every operation that asks another part of the server.
var stumbles = []coverslip.Kind{coverslip.Unavailable, coverslip.Environment, coverslip.Canceled, coverslip.Internal}

// register adds an operation with an example of its answer and every kind of error it can end in.
// Invalid need not be named: any operation refuses a parameter it does not know.
func register[I, O any](api huma.API, op huma.Operation, example any, kinds []coverslip.Kind, handle func(context.Context, *I) (*O, error)) {
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	for _, kind := range slices.Concat([]coverslip.Kind{coverslip.Invalid}, kinds) {
		documentProblem(api, &op, answers[kind].status, kind, answers[kind].means)
	}
	if op.Method != http.MethodGet {
		documentProblem(api, &op, http.StatusForbidden, coverslip.Invalid, "The request comes from a page of another site.")
	}
	huma.Register(api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, problemOf(ctx, err)
		}
		return out, nil
	})
	documentTag(api.OpenAPI().Paths[op.Path].Get)
	for status, answer := range op.Responses {
		if json := answer.Content["application/json"]; json != nil && json.Example == nil && strings.HasPrefix(status, "2") {
			json.Example = example
		}
		if answer.Headers == nil {
			answer.Headers = map[string]*huma.Param{}
		}
		answer.Headers["X-Request-Id"] = &huma.Header{Description: "Finds this request in the server's log", Schema: &huma.Schema{Type: "string"}}
	}
}

// documentProblem adds a kind of error to what the contract says of a status.
func documentProblem(api huma.API, op *huma.Operation, status int, kind coverslip.Kind, means string) {
	key := strconv.Itoa(status)
	if op.Responses[key] == nil {
		op.Responses[key] = &huma.Response{}
	}
	answer := op.Responses[key]
	answer.Description = strings.TrimSpace(answer.Description + " " + means)
	if answer.Content == nil {
		answer.Content = map[string]*huma.MediaType{}
	}
	const problemJSON = "application/problem+json"
	if answer.Content[problemJSON] == nil {
		answer.Content[problemJSON] = &huma.MediaType{Schema: schemaOf[problem](api), Examples: map[string]*huma.Example{}}
	}
	answer.Content[problemJSON].Examples[string(kind)] = &huma.Example{Value: problem{
		Title: title(status), Status: status, Detail: "CMU-1-Small-Region.svs: what was being done: what went wrong", Kind: kind,
		Hint: "what to do about it", RequestID: "LZC5XGMSWRQ4DHTJ2EQ6SVOH7A",
	}}
	if status == http.StatusServiceUnavailable {
		answer.Headers = map[string]*huma.Param{"Retry-After": {Description: "Seconds to wait", Schema: &huma.Schema{Type: "integer"}}}
	}
}

func schemaOf[T any](api huma.API) *huma.Schema {
	return api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[T](), true, "")
}

// withKnownAnswer adds to an upload the answer for bytes that are known.
func withKnownAnswer(api huma.API, op huma.Operation) huma.Operation {
	op.Responses = map[string]*huma.Response{
		"200": {
			Description: "These bytes are known; this is their slide.",
			Headers:     map[string]*huma.Param{"Location": {Description: "Address of the slide", Schema: &huma.Schema{Type: "string"}}},
			Content:     map[string]*huma.MediaType{"application/json": {Schema: schemaOf[slideView](api)}},
		},
		"201": {Description: "Kept and registered."},
	}
	return op
}

// withFileAnswers says that the body is a file, or that the client has it.
func withFileAnswers(op huma.Operation, content *huma.MediaType, contentType string) huma.Operation {
	tag := &huma.Param{Description: "Names the file's bytes", Schema: &huma.Schema{Type: "string"}}
	op.Responses = map[string]*huma.Response{
		"200": {Description: "The file.", Content: map[string]*huma.MediaType{contentType: content}},
		"304": {Description: "The client has it.", Headers: map[string]*huma.Param{"ETag": tag}},
	}
	return op
}

// picture is the body of an answer that has no example.
var picture = &huma.MediaType{Schema: &huma.Schema{Type: "string", Format: "binary"}}

// withNotReadyAnswer adds to /readyz the answer when a check fails.
func withNotReadyAnswer(api huma.API, op huma.Operation) huma.Operation {
	op.Responses = map[string]*huma.Response{"503": {
		Description: "A check failed.",
		Content:     map[string]*huma.MediaType{"application/json": {Schema: schemaOf[readyView](api), Example: exampleNotReady}},
	}}
	return op
}

// Examples of the contract: the slide the repository brings along.
var (
	exampleTime  = time.Date(2026, 5, 4, 9, 30, 0, 0, time.UTC)
	exampleSlide = slideView{
		ID: "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7", Name: "CMU-1-Small-Region.svs", Bytes: 1938955,
		Format: "aperio", Width: 2220, Height: 2967, Levels: []levelView{{Width: 2220, Height: 2967, Downsample: 1}},
		MPP: mppView{Value: 0.499, Source: coverslip.MPPAperio}, ObjectivePower: 20,
		State: coverslip.Queued, Registered: exampleTime, Changed: exampleTime,
	}
	exampleUploaded = exampleSlide
	exampleList     = slideList{Slides: []slideView{exampleSlide}, Next: cursor(Position{exampleSlide.Registered, exampleSlide.ID})}
	exampleShown    = func() slideView {
		s := exampleSlide
		s.State, s.Changed = coverslip.Embedded, exampleTime.Add(4*time.Second)
		s.Bag = &bagView{Key: strings.Repeat("0a", 32), Slide: s.ID, Encoder: "efficientnet-lite0", Tiles: 63, Dim: 1280, Bytes: 323584,
			Plan: planView{MPP: 0.5, Size: 224, MinTissue: 0.25}, Timings: []timingView{{"encode", 2.1}, {"read", 0.4}}, Created: s.Changed}
		return s
	}()
	exampleModel     = modelView{Kind: coverslip.EncoderModel, Name: "efficientnet-lite0", State: "ships", SHA256: strings.Repeat("0b", 32), Dim: 1280, TileSize: 224, TileMPP: 0.5, Licence: "Apache-2.0"}
	exampleEmbedding = embeddingView{Slide: exampleSlide.ID, Bag: strings.Repeat("0a", 32), Encoder: "efficientnet-lite0", Aggregator: "mean",
		Vector: []float32{0.6, -0.8}, Created: exampleTime.Add(4 * time.Second)}
	exampleSimilar    = similarList{Slide: exampleSlide.ID, Neighbours: []neighbourView{{Slide: coverslip.SlideID(strings.Repeat("5b", 32)), Name: "CMU-2.svs", Similarity: 0.93}}}
	exampleDescriptor = `<?xml version="1.0" encoding="UTF-8"?>
<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpeg" Overlap="1" TileSize="254"><Size Height="2967" Width="2220"/></Image>
`
	exampleCohort  = cohortView{Name: "brca", Slides: 2, Patients: 2, Sites: 1, Labels: []labelView{{"age", coverslip.NumberLabel, 2}, {"subtype", coverslip.CategoryLabel, 1}}, Created: exampleTime}
	exampleVersion = func() cohortView {
		c := exampleCohort
		c.Name, c.VersionOf = "brca@1", "brca"
		return c
	}()
	exampleMembers  = memberList{Slides: []memberView{{Slide: exampleSlide.ID, Name: exampleSlide.Name, Patient: "TCGA-A7-A6VV", Site: "A7", Labels: map[string]any{"age": 61.0, "subtype": "IDC"}}}}
	exampleProgress = progressView{Cohort: "brca", Slides: 3, States: map[string]int{"embedded": 1, "queued": 1, "failed": 1},
		Failed: []failuresView{{coverslip.NotFound, 1, "a.svs: open slide: the server answered 404 Not Found (check the address)"}}, PerHour: 120, SecondsLeft: 30}
	exampleJob      = jobView{ID: 17, Slide: exampleSlide.ID, Queue: "embed", Encoder: "efficientnet-lite0", Priority: 2, State: "available", MaxAttempts: 5, Created: exampleTime, Scheduled: exampleTime}
	exampleQueues   = queueList{Queues: []queueView{{Queue: "embed", Waiting: 11_700, Running: 4}, {Queue: "views", Paused: true}}}
	exampleReady    = readyView{OK: true, Checks: []checkView{{Name: "database", OK: true}, {Name: "store", OK: true}}}
	exampleNotReady = readyView{Checks: []checkView{{Name: "database", Detail: "connect: connection refused", Hint: "start it, or set DATABASE_URL"}, {Name: "store", OK: true}}}
)
