package main

import (
	"cmp"
	"context"
	"io"
	"net"
	"runtime"

	"coverslip"
	"coverslip/api"
	"coverslip/internal/ingest"
	"coverslip/internal/search"
	"coverslip/internal/zoom"
	"coverslip/storage"
	"coverslip/storage/queue"
	"coverslip/tiler/vips"
)

type upCmd struct {
	Addr string `default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Where the API listens (${default}); port 0 takes a free one."`
	serverFlags
	workFlags
	encoderFlags
	dataFlags
}

// Help is shown by coverslip up --help.
func (upCmd) Help() string {
	return `Example:
  coverslip up --data ./coverslip-data
  curl -X POST --data-binary @section.svs -H 'Content-Type: application/octet-stream' \
       'http://127.0.0.1:8080/v1/slides?name=section.svs'

Everything lies in one folder. Ctrl-C stops it cleanly; after a crash it goes on where it was.`
}

// Run runs API and workers until it is told to stop.
func (c *upCmd) Run(e *env) error {
	return serve(e, &c.dataFlags, c.encoderFlags, c.Addr, c.serverFlags, &c.workFlags)
}

// serverFlags are those of up and serve alike.
type serverFlags struct {
	uploadFlags
	accessFlags
	aggregatorFlag
	SearchMemory int64 `env:"COVERSLIP_SEARCH_MEMORY" placeholder:"MIB" help:"Keep so many MiB of embeddings in memory to search; what goes beyond is searched in Postgres, if that has pgvector (half of what is free)."`
}

type serveCmd struct {
	Addr string `default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Where the API listens (${default})."`
	serverFlags
	encoderFlags
	dataFlags
}

// Help is shown by coverslip serve --help.
func (serveCmd) Help() string {
	return `Example:
  DATABASE_URL=postgres://coverslip@db/coverslip BLOB_URL='s3://slides?endpoint=http://s3:7070' \
      coverslip serve --addr 0.0.0.0:8080`
}

// Run runs the API until it is told to stop.
func (c *serveCmd) Run(e *env) error {
	return serve(e, &c.dataFlags, c.encoderFlags, c.Addr, c.serverFlags, nil)
}

func serve(e *env, data *dataFlags, enc encoderFlags, addr string, flags serverFlags, workers *workFlags) error {
	return data.with(e, enc, func(p *platform, in *ingest.Ingest) error { return p.serve(e, in, addr, flags, workers) })
}

func (p *platform) serve(e *env, in *ingest.Ingest, addr string, flags serverFlags, workers *workFlags) error {
	if err := flags.use(e, p, in); err != nil {
		return err
	}
	if workers != nil {
		stop, err := p.work(e, in, *workers)
		if err != nil {
			return err
		}
		defer stop()
	}
	engine := search.New(p.DB, search.Options{Memory: cmp.Or(flags.SearchMemory<<20, freeMemory()/2), Log: e.log})
	following, stopFollowing := context.WithCancel(e.Context)
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		if err := engine.Follow(following); following.Err() == nil {
			e.log.Error("search no longer sees new embeddings; start again", "err", err)
		}
	}()
	defer func() {
		stopFollowing()
		<-followed
	}()
	embeds := newEmbedder(p, in)
	defer embeds.close()

	uploads, err := flags.uploads(p, in)
	if err != nil {
		return err
	}
	defer uploads.Close()
	finishing := make(chan struct{})
	go func() {
		defer close(finishing)
		uploads.Resume(e)
	}()
	defer func() { <-finishing }()

	tiles := zoom.New(in.Open, zoom.Slides, zoom.Bytes)
	defer tiles.Close()
	jobs, err := queue.New(p.DB.Pool(), queue.Config{Logger: e.log})
	if err != nil {
		return err
	}
	places := newRegistrar(in, p.blobs, flags.SlidesFolder)
	asked, err := newTasks(p, jobs, places)
	if err != nil {
		return err
	}
	config := api.Config{
		Slides: slidesOf{in}, Cohorts: cohortsOf{p.DB, in, places}, Jobs: jobsOf{jobs}, Runs: p.DB, Exporter: exporter{p, in}, Tasks: asked, Keys: keysOf{p.DB}, Stopping: e.Done(), Searcher: searcher{in, engine}, Embedder: embeds, Uploader: uploader{in}, Thumbnailer: thumbnailer{in, make(chan struct{}, runtime.GOMAXPROCS(0))},
		Resumable: resumable{uploads}, Registrar: places,
		DeepZoomer: tiles, Ready: p.ready, MaxUpload: flags.MaxUpload << 30, Log: e.log, Collectors: append(p.meters.collectors(), newStanding(p.DB, jobs)),
	}
	config.Auditor, config.Repeats, config.Rate = auditor{p.DB}, repeats{p.DB}, flags.Rate
	if config.Gate, err = flags.gate(e, p.DB, addr); err != nil {
		return err
	}
	if direct := ingest.NewPresigned(in, flags.MaxUploads); direct != nil {
		config.Presigner = presigner{direct}
	}
	handler, err := api.New(config)
	if err != nil {
		return err
	}
	return api.Serve(e, addr, handler, func(a net.Addr) {
		url := "http://" + a.String()
		if e.json {
			_ = e.emit(map[string]string{"url": url, "data": p.dir, "version": coverslip.Version})
			return
		}
		e.printf("Coverslip %s answers at %s", coverslip.Version, url)
		if p.owner() {
			e.printf(", everything lies in %s", p.dir)
		}
		e.printf("\n")
	})
}

// ready says which parts answer.
func (p *platform) ready(ctx context.Context) []api.Check {
	checks := []api.Check{{Name: "database", Err: p.DB.CheckSchema(ctx)}}
	_, err := p.Blobs.Stat(ctx, "readyz")
	if coverslip.KindOf(err) == coverslip.NotFound {
		err = nil
	}
	return append(checks, api.Check{Name: "blob store", Err: err})
}

type workCmd struct {
	Metrics string `placeholder:"HOST:PORT" env:"COVERSLIP_METRICS" group:"Work" help:"Show this worker's numbers for Prometheus at /metrics there."`
	workFlags
	encoderFlags
	dataFlags
}

// Help is shown by coverslip work --help.
func (workCmd) Help() string {
	return `Example, on each machine of a fleet:
  DATABASE_URL=postgres://coverslip@db/coverslip BLOB_URL='s3://slides?endpoint=http://s3:7070' coverslip work

A worker takes as many slides at once as fit its memory and cores. Told to stop (SIGTERM, Ctrl-C) it takes no
more, finishes what it can within --grace and hands the rest back; killed, its slides go on elsewhere within
a minute, from the last 512 tiles. docs/SCALE.md says how many workers an archive needs.`
}

// Run runs workers until it is told to stop.
func (c *workCmd) Run(e *env) error {
	return c.with(e, c.encoderFlags, func(p *platform, in *ingest.Ingest) error {
		stop, err := p.work(e, in, c.workFlags)
		if err != nil {
			return err
		}
		defer stop()
		if e.terminal {
			e.say("working; stop with Ctrl-C\n")
		} else {
			e.log.Info("working")
		}
		if c.Metrics == "" {
			<-e.Done()
			return nil
		}
		return p.meters.serve(e, c.Metrics, func(a net.Addr) {
			url := "http://" + a.String() + "/metrics"
			if e.json {
				_ = e.emit(map[string]string{"url": url})
				return
			}
			e.log.Info("numbers for Prometheus", "url", url)
		})
	})
}

type migrateCmd struct{ dataFlags }

// Help is shown by coverslip migrate --help.
func (migrateCmd) Help() string {
	return "Example, once before a new version starts on a fleet:\n  DATABASE_URL=postgres://coverslip@db/coverslip coverslip migrate"
}

// Run brings the database to this version's schema.
func (c *migrateCmd) Run(e *env) error {
	if c.DatabaseURL == "" { // a private database is migrated by whoever starts it
		p, err := c.connect(e)
		if err != nil {
			return err
		}
		p.Close()
	} else {
		db, err := storage.Open(e, c.DatabaseURL)
		if err != nil {
			return err
		}
		defer db.Close()
		if err := db.Migrate(e); err != nil {
			return err
		}
	}
	if e.json {
		return e.emit(map[string]string{"schema": "current"})
	}
	e.printf("the database has the schema of Coverslip %s\n", coverslip.Version)
	return nil
}

// The API's doors, filled from the store.

type slidesOf struct{ in *ingest.Ingest }

func (s slidesOf) Slide(ctx context.Context, prefix string) (coverslip.Slide, error) {
	return s.in.DB.SlideByPrefix(ctx, prefix)
}

func (s slidesOf) Slides(ctx context.Context, q api.Query) ([]coverslip.Slide, error) {
	return s.in.DB.Slides(ctx, storage.SlideFilter{State: q.State, Limit: q.Limit, After: storage.Cursor(q.After)})
}

func (s slidesOf) Bag(ctx context.Context, id coverslip.SlideID) (coverslip.Bag, error) {
	slide, err := s.in.DB.Slide(ctx, id)
	if err != nil {
		return coverslip.Bag{}, err
	}
	return s.in.Bag(ctx, slide)
}

func (s slidesOf) Embedding(ctx context.Context, id coverslip.SlideID) (coverslip.Embedding, error) {
	return s.in.Embedding(ctx, id)
}

type uploader struct{ in *ingest.Ingest }

func (u uploader) Upload(ctx context.Context, name string, mppOfSlide float64, body io.Reader) (coverslip.Slide, bool, error) {
	out, err := u.in.Upload(ctx, name, mppOfSlide, body)
	return out.Slide, out.Created, err
}

// thumbnailer draws a few pictures at a time: each holds some hundred megabytes of a large slide for a
// moment, and requests come in crowds.
type thumbnailer struct {
	in    *ingest.Ingest
	slots chan struct{}
}

func (t thumbnailer) Thumbnail(ctx context.Context, id coverslip.SlideID, maxEdge int) ([]byte, error) {
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	slide, err := t.in.DB.Slide(ctx, id)
	if err != nil {
		return nil, err
	}
	opened, release, err := t.in.Open(ctx, slide)
	if err != nil {
		return nil, err
	}
	defer release()
	defer opened.Close()
	picture, err := opened.Thumbnail(ctx, maxEdge)
	if err != nil {
		return nil, err
	}
	return vips.Encode(picture.RGB, picture.Width, picture.Height, ".jpg[Q=85]")
}
