// Package api offers slides and their embeddings over HTTP: upload, list, show, thumbnail, deep zoom
// tiles and a page that shows them, embedding, similar slides, health, metrics, and a contract (OpenAPI
// 3.1) that its tests hold it to.
//
// It knows HTTP and nothing else. What it shows and stores goes through the small interfaces
// below, which cmd fills from storage; the command line is another room.
package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus"
)

// DefaultMaxUpload is the largest slide accepted where Config names no other limit, in bytes:
// several times the largest slide of TCGA.
const DefaultMaxUpload = 100 << 30

// Config is what the API stands on. Everything up to Ready must be set.
type Config struct {
	Slides      Slides
	Searcher    Searcher
	Uploader    Uploader
	Resumable   Resumable
	Registrar   Registrar
	Embedder    Embedder
	Thumbnailer Thumbnailer
	DeepZoomer  DeepZoomer
	// Ready tells the parts the server needs and which of them answer. It is called at each
	// /readyz, with a context of readyTimeout.
	Ready func(context.Context) []Check

	Cohorts    Cohorts                // nil leaves its routes out
	Jobs       Jobs                   // nil leaves its routes out
	Runs       Runs                   // nil leaves its routes out
	Exporter   Exporter               // nil leaves its routes out
	Tasks      Tasks                  // nil leaves its routes out
	Keys       Keys                   // nil leaves its routes out
	Stopping   <-chan struct{}        // closed when the server stops: streams of events end
	Presigner  Presigner              // nil where slides are kept in a folder
	Gate       Gate                   // nil: nobody is asked, for a server that only this machine reaches
	Auditor    Auditor                // nil: writes are not written down
	Repeats    Repeats                // nil: an Idempotency-Key is passed over
	Rate       int                    // requests a minute of one client; 0 is no limit
	Collectors []prometheus.Collector // shown at /metrics beside the API's own
	MaxUpload  int64                  // bytes; 0 means DefaultMaxUpload
	Quiet      time.Duration          // silence after which a client that sends an upload loses its turn; 0 means five seconds
	Log        *slog.Logger           // nil means slog.Default
}

// Slides is where the API looks slides up. Methods are called from many requests at once and are
// not called again after an error; an error's Kind decides the answer (see the table in problem.go).
type Slides interface {
	// Slide returns the slide whose id is prefix or begins with it, 6 to 64 hexadecimal digits.
	// No such slide is NotFound, more than one is Conflict.
	Slide(ctx context.Context, prefix string) (coverslip.Slide, error)
	// Slides returns at most q.Limit slides in the order of (Registered, ID).
	Slides(ctx context.Context, q Query) ([]coverslip.Slide, error)
	// Bag returns the newest bag of a slide; NotFound where there is none yet.
	Bag(ctx context.Context, id coverslip.SlideID) (coverslip.Bag, error)
	// Embedding returns a slide's embedding; NotFound where there is none yet.
	Embedding(ctx context.Context, id coverslip.SlideID) (coverslip.Embedding, error)
}

// Searcher finds the slides whose embeddings are most similar, best first, exactly. A slide without an
// embedding, and a cohort that is not there, are NotFound; a vector of another length, and a label that no
// cohort has, Invalid.
type Searcher interface {
	Search(ctx context.Context, q SearchQuery) (SearchAnswer, error)
}

// Uploader keeps and registers a slide. created is false when the same bytes were known already.
// mppOfSlide is the user's word for the resolution of level 0 in µm per pixel, 0 when not given.
//
// body yields an error that is io.ErrUnexpectedEOF when the client goes away and a
// *coverslip.Error of kind TooLarge when it sends too much. Then, as after any other failure,
// nothing of the upload may stay visible. body must not be read after Upload returns. Any number
// of uploads, also of the same bytes, may run at once.
type Uploader interface {
	Upload(ctx context.Context, name string, mppOfSlide float64, body io.Reader) (slide coverslip.Slide, created bool, err error)
}

// Thumbnailer draws the whole slide as a JPEG whose longer edge is at most maxEdge pixels.
// Equal arguments give an equal picture as long as the program's version is the same.
type Thumbnailer interface {
	Thumbnail(ctx context.Context, id coverslip.SlideID, maxEdge int) (jpeg []byte, err error)
}

// Check is one part the server needs. Err is nil when it answers.
type Check struct {
	Name string
	Err  error
}

// New returns the handler of every route. It fails only where cfg is incomplete or two of its
// collectors have one name.
func New(cfg Config) (http.Handler, error) {
	if cfg.Slides == nil || cfg.Searcher == nil || cfg.Uploader == nil || cfg.Thumbnailer == nil || cfg.DeepZoomer == nil || cfg.Ready == nil ||
		cfg.Resumable == nil || cfg.Registrar == nil || cfg.Embedder == nil {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "set up the API", Err: errors.New("a part of api.Config is missing")}
	}
	if cfg.MaxUpload == 0 {
		cfg.MaxUpload = DefaultMaxUpload
	}
	if cfg.Quiet == 0 {
		cfg.Quiet = 5 * time.Second
	}
	if cfg.Presigner == nil {
		cfg.Presigner = noPresigner{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	m, err := newMetrics(cfg.Collectors)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "set up metrics", Err: err}
	}

	router := chi.NewRouter()
	s := &server{cfg: cfg, metrics: m}
	router.Use(observe(cfg.Log, m), sameOrigin, wellFormedQuery, admit(cfg.Gate), limitRate(cfg.Rate), audit(s), repeats(s), conditional, middleware.GetHead)
	router.NotFound(noRoute)
	router.MethodNotAllowed(wrongMethod(router))
	s.api = humachi.New(router, contract())
	s.slideRoutes()
	s.deepZoomRoutes()
	s.uploadRoute()
	s.resumableRoutes()
	s.searchRoutes()
	if err := s.tusRoutes(router); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "set up uploads", Err: err}
	}
	if cfg.Cohorts != nil {
		s.cohortRoutes()
	}
	if cfg.Jobs != nil {
		s.jobRoutes()
	}
	if cfg.Runs != nil {
		s.runRoutes()
	}
	if cfg.Exporter != nil {
		s.exportRoutes()
	}
	if cfg.Keys != nil {
		s.keyRoutes()
	}
	onlyPosted := []string{"/v1/slides/register", uploadsPath + "/presigned"} // verbs, where ids would stand
	if cfg.Tasks != nil {
		s.taskRoutes()
		onlyPosted = append(onlyPosted, filesPath)
		for _, v := range cfg.Tasks.Verbs() {
			onlyPosted = append(onlyPosted, "/v1/tasks/"+v.Name)
		}
	}
	s.healthRoutes()
	s.metricsRoute(router)
	s.homeRoutes(router)
	if err := pageRoutes(router); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "set up the pages", Err: err}
	}
	for _, path := range onlyPosted {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPatch, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodTrace} {
			router.MethodFunc(method, path, onlyPost)
		}
	}
	s.signIn(router)
	documentAccess(s.api, cfg.Gate)
	spec, err := s.api.OpenAPI().MarshalJSON()
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "write the contract", Err: err}
	}
	router.Get("/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(spec) // a client that has gone needs no answer
	})
	return router, nil
}

type server struct {
	cfg     Config
	metrics *metrics
	api     huma.API
}
