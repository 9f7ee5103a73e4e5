package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"coverslip"
	"coverslip/encoder"
	"coverslip/encoder/onnx"
	"coverslip/internal/ingest"
	"coverslip/slidessl"
	"coverslip/storage"
	"coverslip/storage/blob"
	"coverslip/storage/postgres"
	"coverslip/storage/queue"
	"coverslip/tiler/tissue"
)

// dataFlags say where slides and results are kept. Without any of them everything lies in one folder
// of this machine, with a Postgres of its own.
type dataFlags struct {
	Data        string `type:"path" env:"COVERSLIP_DATA" placeholder:"DIR" group:"Where things are kept" help:"Folder for everything (default: the user's data folder)."`
	DatabaseURL string `env:"DATABASE_URL" placeholder:"URL" group:"Where things are kept" help:"Use this Postgres instead of a private one."`
	BlobURL     string `env:"BLOB_URL" placeholder:"URL" group:"Where things are kept" help:"Keep slides and bags there: a folder, or s3://bucket?endpoint=…"`
}

// folder is the data folder: the one asked for, or the user's. Postgres refuses to run as root and
// cannot enter root's home as anybody else, so root's is the system's.
func (f *dataFlags) folder() (string, error) {
	switch home, err := os.UserHomeDir(); {
	case f.Data != "":
		return filepath.Abs(f.Data)
	case os.Geteuid() == 0:
		return "/var/lib/coverslip", nil
	case os.Getenv("XDG_DATA_HOME") != "":
		return filepath.Join(os.Getenv("XDG_DATA_HOME"), "coverslip"), nil
	case err != nil:
		return "", &coverslip.Error{Kind: coverslip.Environment, Op: "find the data folder", Err: err, Hint: "name one: --data DIR"}
	default:
		return filepath.Join(home, ".local", "share", "coverslip"), nil
	}
}

// platform is what verbs that need the database stand on.
type platform struct {
	DB    *storage.DB
	Blobs blob.Store

	dir    string
	url    string           // of the database; empty is the private one of dir
	blobs  string           // where Blobs are
	server *postgres.Server // the private one, where this process runs it
	joined bool             // another process runs it
	meters *meters

	encoder encoder.Spec // of what is registered
	on      onnx.Provider
}

// owner reports whether no other process can be at work on this database.
func (p *platform) owner() bool { return p.server != nil }

// connect opens the database and the blob store. On a private folder it starts Postgres, or uses the
// one of the process that runs there already: two never run on one folder.
func (f *dataFlags) connect(e *env) (*platform, error) {
	dir, err := f.folder()
	if err != nil {
		return nil, err
	}
	p := &platform{dir: dir, url: f.DatabaseURL, meters: newMeters()}
	url := f.DatabaseURL
	if url == "" {
		if url, err = p.private(e, dir); err != nil {
			return nil, err
		}
	}
	if err := p.open(e, url, f.BlobURL); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// with connects, calls do with what registers and finds slides, and lets go of everything after.
func (f *dataFlags) with(e *env, enc encoderFlags, do func(*platform, *ingest.Ingest) error) error {
	p, err := f.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	in, err := p.registrar(e, enc)
	if err != nil {
		return err
	}
	return do(p, in)
}

// withFound is with for verbs that encode nothing: features that were imported have no encoder here.
func (f *dataFlags) withFound(e *env, enc encoderFlags, do func(*platform, *ingest.Ingest) error) error {
	p, err := f.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	in, err := p.finder(e, enc)
	if err != nil {
		return err
	}
	if in.Spool, err = p.spool(); err != nil {
		return err
	}
	return do(p, in)
}

// private starts the folder's Postgres, or finds it running. Between the two looks the other process
// may come or go, so it looks a few times.
func (p *platform) private(e *env, dir string) (url string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the postgres user must enter; what lies in it is closed
		return "", diskError("make the data folder", dir, err)
	}
	for deadline := time.Now().Add(15 * time.Second); ; {
		if url, ok := postgres.Running(e, dir); ok {
			p.joined = true
			return url, nil
		}
		p.server, err = postgres.Start(e, dir)
		if err == nil {
			return p.server.URL(), nil
		}
		if coverslip.KindOf(err) != coverslip.Conflict || time.Now().After(deadline) {
			return "", err
		}
		select {
		case <-e.Done():
			return "", e.Err()
		case <-time.After(100 * time.Millisecond): // the owner of the lock is starting or stopping
		}
	}
}

func (p *platform) open(e *env, url, blobs string) (err error) {
	if p.DB, err = storage.Open(e, url); err != nil {
		return err
	}
	if p.owner() {
		err = p.DB.Migrate(e)
	} else {
		err = p.DB.CheckSchema(e)
	}
	if err != nil {
		return err
	}
	if blobs == "" {
		blobs = filepath.Join(p.dir, "blobs")
	}
	p.blobs = blobs
	if p.Blobs, err = blob.Open(e, blobs); err != nil {
		return err
	}
	p.meters.watch(p.Blobs)
	return nil
}

// Close lets go of everything, and stops Postgres where this process runs it.
func (p *platform) Close() {
	if p.DB != nil {
		p.DB.Close()
	}
	if p.server != nil {
		_ = p.server.Stop() // it recovers at the next start
	}
}

// spool makes the folder for files on their way.
func (p *platform) spool() (string, error) {
	dir := filepath.Join(p.dir, "spool")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", diskError("make the spool", dir, err)
	}
	before := time.Now().Add(-24 * time.Hour) // others may be at work on what is younger
	if p.owner() {
		before = time.Now()
	}
	return dir, ingest.Sweep(dir, before)
}

// registrar can register slides: everything but the encoder itself.
func (p *platform) registrar(e *env, enc encoderFlags) (*ingest.Ingest, error) {
	spool, err := p.spool()
	if err != nil {
		return nil, err
	}
	jobs, err := queue.New(p.DB.Pool(), queue.Config{Logger: e.log})
	if err != nil {
		return nil, err
	}
	if p.encoder, err = p.spec(e, enc.Encoder); err != nil {
		return nil, err
	}
	p.on = onnx.Provider(enc.Provider)
	model := p.encoder.Model()
	in := &ingest.Ingest{DB: p.DB, Queue: jobs, Blobs: p.Blobs, Model: model, Aggregator: slidessl.Mean{},
		Plan: ingest.DefaultPlan(model), Mask: tissue.Default(), Spool: spool, Log: e.log, Meter: p.meters.work}
	for _, m := range []coverslip.Model{in.Model, in.Aggregator.Model()} {
		if err := p.DB.PutModel(e, m); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// openEncoder loads the encoder that ships with the product.
func openEncoder() (encoder.Encoder, error) {
	spec, file := encoder.Default()
	return onnx.Open(file, spec, onnx.CPU)
}

// findSlide takes what people type for a slide: an id, its first digits, or a path that was ingested.
func (p *platform) findSlide(ctx context.Context, what string) (coverslip.Slide, error) {
	s, err := p.DB.SlideByPrefix(ctx, strings.ToLower(what))
	if coverslip.KindOf(err) == coverslip.Invalid {
		return s, &coverslip.Error{Kind: coverslip.Invalid, Op: "find the slide", Path: what, Err: errors.New("it is no slide id"), Hint: "give the first 6 digits or more; coverslip slides lists them"}
	}
	return s, err
}
