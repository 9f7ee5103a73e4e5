package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"coverslip"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/tus/tusd/v2/pkg/handler"
	oldslog "golang.org/x/exp/slog"
)

// Resumable keeps uploads that come in pieces, over as many connections as it takes. It is not called
// for one upload by two requests that write at once. See Uploader for what a body yields.
type Resumable interface {
	// Begin makes room for an upload of the given name and length. TooLarge: too many are unfinished.
	Begin(ctx context.Context, up Arriving) (Arriving, error)
	// Find returns an upload; what it says was received is on the disk.
	Find(ctx context.Context, id string) (Arriving, error)
	// List returns the unfinished ones that were announced with this SHA-256, or all with "".
	List(ctx context.Context, sha256 string) ([]Arriving, error)
	// Append adds what body holds at offset and says how much was kept, also beside an error. The bytes
	// of no slide are Unsupported, and the upload is gone.
	Append(ctx context.Context, id string, offset int64, body io.Reader) (int64, error)
	// Finish makes a slide of an upload that is whole, and says the same again when asked again.
	Finish(ctx context.Context, id string) (slide coverslip.Slide, created bool, err error)
	// Drop ends an upload and forgets what was received.
	Drop(ctx context.Context, id string) error
}

// Arriving is an upload that comes in pieces.
type Arriving struct {
	ID         string
	Name       string
	Bytes      int64             // announced
	Received   int64             // kept
	MPPOfSlide float64           // 0 when not given
	SHA256     string            // announced; "" when not
	Slide      coverslip.SlideID // what became of it; "" until it is finished
	Created    time.Time
}

const uploadsPath = "/v1/uploads"

// tusRoutes mount the tus protocol, version 1.0.0. tusd speaks it; its errors leave as problems.
func (s *server) tusRoutes(router chi.Router) error {
	turns := &turns{held: map[string]*turn{}, quiet: s.cfg.Quiet}
	store := &tusStore{s: s, turns: turns}
	composer := handler.NewStoreComposer()
	composer.UseCore(store)
	composer.UseTerminater(store)
	composer.UseLocker(turns)
	tus, err := handler.NewUnroutedHandler(handler.Config{
		StoreComposer: composer, BasePath: uploadsPath, MaxSize: s.cfg.MaxUpload, DisableDownload: true, DisableConcatenation: true,
		Cors: &handler.CorsConfig{Disable: true}, Logger: oldslog.New(silent{}), // the request's own line says it all
		PreUploadCreateCallback: func(hook handler.HookEvent) (handler.HTTPResponse, handler.FileInfoChanges, error) {
			_, err := announced(hook.Upload)
			return handler.HTTPResponse{}, handler.FileInfoChanges{}, tusError(hook.Context, err)
		},
		PreFinishResponseCallback: store.finish,
	})
	if err != nil {
		return err
	}
	speak := func(h http.HandlerFunc) http.HandlerFunc {
		inner := tus.Middleware(http.StripPrefix(uploadsPath, h))
		return func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("X-HTTP-Method-Override") // the route says what is meant
			if said := r.Header.Get("Content-Encoding"); said != "" && !strings.EqualFold(said, "identity") {
				problemOf(r.Context(), &coverslip.Error{Kind: coverslip.Unsupported, Op: "receive upload", Err: fmt.Errorf("the body is encoded as %.100q", said),
					Hint: "send the file's bytes without Content-Encoding"}).write(w)
				return
			}
			tw := &tusWriter{ResponseWriter: w, r: r}
			inner.ServeHTTP(tw, r)
			tw.finish()
		}
	}
	router.Post(uploadsPath, speak(tus.PostFile))
	router.Options(uploadsPath, speak(func(http.ResponseWriter, *http.Request) {}))
	router.Head(uploadsPath+"/{upload}", speak(tus.HeadFile))
	router.Patch(uploadsPath+"/{upload}", speak(tus.PatchFile))
	router.Delete(uploadsPath+"/{upload}", speak(tus.DelFile))
	s.documentTus()
	return nil
}

// announced is what a client says of a file before it sends it.
func announced(info handler.FileInfo) (Arriving, error) {
	up := Arriving{Bytes: info.Size, SHA256: info.MetaData["sha256"]}
	said := info.MetaData["filename"]
	if said == "" {
		said = info.MetaData["name"] // as some clients call it
	}
	var err error
	if up.Name, err = plainName(said, "name the file in Upload-Metadata: filename and its name in base64"); err != nil {
		return up, err
	}
	if mpp := info.MetaData["mpp_of_slide"]; mpp != "" {
		up.MPPOfSlide, err = strconv.ParseFloat(mpp, 64)
		if err != nil || !(up.MPPOfSlide > 0 && up.MPPOfSlide <= 100) {
			return up, &coverslip.Error{Kind: coverslip.Invalid, Op: "read mpp_of_slide", Path: up.Name, Err: fmt.Errorf("%.20q is no resolution", mpp), Hint: "give µm per pixel, such as 0.5"}
		}
	}
	return up, nil
}

// tusStore is tusd's view of a Resumable.
type tusStore struct {
	s     *server
	turns *turns
}

func (t *tusStore) NewUpload(ctx context.Context, info handler.FileInfo) (handler.Upload, error) {
	up, err := announced(info)
	if err == nil {
		up, err = t.s.cfg.Resumable.Begin(ctx, up)
	}
	if err != nil {
		return nil, tusError(ctx, coverslip.At(up.Name, err))
	}
	info.ID = up.ID
	return &tusUpload{t, info}, nil
}

func (t *tusStore) GetUpload(ctx context.Context, id string) (handler.Upload, error) {
	up, err := t.s.cfg.Resumable.Find(ctx, id)
	if err != nil {
		return nil, tusError(ctx, err)
	}
	return &tusUpload{t, handler.FileInfo{ID: up.ID, Size: up.Bytes, Offset: up.Received, MetaData: handler.MetaData{"filename": up.Name}}}, nil
}

func (t *tusStore) AsTerminatableUpload(u handler.Upload) handler.TerminatableUpload {
	return u.(*tusUpload)
}

// finish makes the slide as soon as the last byte is here, and goes on with it when the client leaves.
func (t *tusStore) finish(hook handler.HookEvent) (handler.HTTPResponse, error) {
	done := t.turns.busy(hook.Upload.ID)
	defer done()
	slide, _, err := t.s.cfg.Resumable.Finish(context.WithoutCancel(hook.Context), hook.Upload.ID)
	if err != nil {
		return handler.HTTPResponse{}, tusError(hook.Context, err)
	}
	recordOf(hook.Context).slide = slide.ID
	return handler.HTTPResponse{Header: handler.HTTPHeader{"Content-Location": "/v1/slides/" + string(slide.ID)}}, nil
}

type tusUpload struct {
	t    *tusStore
	info handler.FileInfo
}

func (u *tusUpload) GetInfo(context.Context) (handler.FileInfo, error) { return u.info, nil }
func (u *tusUpload) FinishUpload(context.Context) error                { return nil } // see tusStore.finish

func (u *tusUpload) GetReader(context.Context) (io.ReadCloser, error) {
	return nil, errors.New("uploads are not given out")
}

func (u *tusUpload) Terminate(ctx context.Context) error {
	return tusError(ctx, u.t.s.cfg.Resumable.Drop(ctx, u.info.ID))
}

func (u *tusUpload) WriteChunk(ctx context.Context, offset int64, src io.Reader) (int64, error) {
	body := &tusBody{src: src, received: u.t.s.metrics.uploaded, alive: func() { u.t.turns.alive(u.info.ID) }}
	n, err := u.t.s.cfg.Resumable.Append(ctx, u.info.ID, offset, body)
	return n, tusError(ctx, err)
}

// tusBody counts what comes in, and tells that something does.
type tusBody struct {
	src      io.Reader
	received prometheus.Counter
	alive    func()
}

func (b *tusBody) Read(p []byte) (int, error) {
	n, err := b.src.Read(p)
	b.received.Add(float64(n))
	if n > 0 {
		b.alive()
	}
	return n, err
}

// turns let one request at a time at an upload. While bytes come in, others are told that it is taken;
// when the client that had it has fallen silent, the next one takes over.
type turns struct {
	mu    sync.Mutex
	held  map[string]*turn
	quiet time.Duration
}

type turn struct {
	give func() // asks who has it to give it up
	done chan struct{}
	last time.Time // when bytes came in
	busy bool      // it is being finished
}

func (t *turns) NewLock(id string) (handler.Lock, error) { return &lock{turns: t, id: id}, nil }

type lock struct {
	*turns
	id   string
	mine *turn
}

func (l *lock) Lock(ctx context.Context, give func()) error {
	for {
		l.mu.Lock()
		other := l.held[l.id]
		if other == nil {
			l.mine = &turn{give: give, done: make(chan struct{}), last: time.Now()}
			l.held[l.id] = l.mine
			l.mu.Unlock()
			return nil
		}
		active := other.busy || time.Since(other.last) < l.quiet
		l.mu.Unlock()
		if active {
			return handler.ErrFileLocked
		}
		other.give()
		select {
		case <-ctx.Done():
			return handler.ErrFileLocked
		case <-other.done:
		}
	}
}

func (l *lock) Unlock() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, l.id)
	close(l.mine.done)
	return nil
}

func (t *turns) alive(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if turn := t.held[id]; turn != nil {
		turn.last = time.Now()
	}
}

func (t *turns) busy(id string) (done func()) {
	set := func(busy bool) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if turn := t.held[id]; turn != nil {
			turn.busy, turn.last = busy, time.Now()
		}
	}
	set(true)
	return func() { set(false) }
}

// tusError is err as tusd passes it on: our own problem.
func tusError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var theirs handler.Error
	if errors.As(err, &theirs) {
		return err
	}
	p := problemOf(ctx, err)
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(p); err != nil {
		return err
	}
	header := handler.HTTPHeader{"Content-Type": p.ContentType("")}
	for name, values := range p.GetHeaders() {
		header[name] = values[0]
	}
	return handler.Error{ErrorCode: string(p.Kind), Message: p.Detail, HTTPResponse: handler.HTTPResponse{StatusCode: p.Status, Body: body.String(), Header: header}}
}

// tusProblems are tusd's own errors by their codes.
var tusProblems = map[string]struct {
	status int
	kind   coverslip.Kind
	hint   string
}{
	"ERR_UNSUPPORTED_VERSION":  {http.StatusPreconditionFailed, coverslip.Invalid, "send Tus-Resumable: 1.0.0"},
	"ERR_MAX_SIZE_EXCEEDED":    {http.StatusRequestEntityTooLarge, coverslip.TooLarge, "raise the server's upload limit, or let it read the slide where it is"},
	"ERR_UPLOAD_SIZE_EXCEEDED": {http.StatusRequestEntityTooLarge, coverslip.TooLarge, "send no more than was announced in Upload-Length"},
	"ERR_MISMATCHED_OFFSET":    {http.StatusConflict, coverslip.Conflict, "ask with HEAD where the upload stands and go on from there"},
	"ERR_UPLOAD_LOCKED":        {http.StatusLocked, coverslip.Conflict, "another client sends this upload; ask again in a few seconds"},
	"ERR_UPLOAD_INTERRUPTED":   {http.StatusLocked, coverslip.Conflict, "another client took this upload over; ask with HEAD where it stands"},
	"ERR_UNEXPECTED_EOF":       {statusClientGone, coverslip.Canceled, "ask with HEAD where the upload stands and go on from there"},
	"ERR_CONNECTION_RESET":     {statusClientGone, coverslip.Canceled, "ask with HEAD where the upload stands and go on from there"},
	"ERR_READ_TIMEOUT":         {http.StatusRequestTimeout, coverslip.Canceled, "ask with HEAD where the upload stands and go on from there"},
	"ERR_NOT_IMPLEMENTED":      {http.StatusBadRequest, coverslip.Invalid, "announce the length in Upload-Length"},
	"ERR_SERVER_SHUTDOWN":      {http.StatusServiceUnavailable, coverslip.Unavailable, "try again when the server is back"},
	"ERR_INVALID_CONTENT_TYPE": {http.StatusUnsupportedMediaType, coverslip.Unsupported, "send Content-Type: application/offset+octet-stream"},
}

// tusWriter turns tusd's plain errors into problems, and absolute addresses, which a proxy before this
// server would make wrong, into paths.
type tusWriter struct {
	http.ResponseWriter
	r       *http.Request
	status  int // of an error that is held back until its body says which it is
	written bool
}

func (w *tusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *tusWriter) WriteHeader(status int) {
	h := w.Header()
	if u, err := url.Parse(h.Get("Location")); err == nil && u.Host != "" {
		h.Set("Location", u.Path)
	}
	if status >= http.StatusBadRequest && h.Get("Content-Type") != (*problem)(nil).ContentType("") {
		w.status = status
		return
	}
	w.written = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *tusWriter) Write(p []byte) (int, error) {
	if w.status == 0 || w.written {
		return w.ResponseWriter.Write(p)
	}
	w.problem(string(p))
	return len(p), nil
}

// finish sends an error without a body, the answer to HEAD.
func (w *tusWriter) finish() {
	if w.status != 0 && !w.written {
		w.problem("")
	}
}

func (w *tusWriter) problem(text string) {
	code, message, _ := strings.Cut(strings.TrimSpace(text), ": ")
	as, known := tusProblems[code]
	if !known {
		as.status, as.kind, as.hint = w.status, coverslip.Invalid, "compare the request with /openapi.json and https://tus.io/protocols/resumable-upload"
		switch {
		case w.status == http.StatusNotFound:
			as.kind = coverslip.NotFound
		case w.status == http.StatusLocked:
			as.kind = coverslip.Conflict
		case w.status >= http.StatusInternalServerError:
			as.kind = coverslip.Internal
		}
	}
	if message == "" {
		message = strings.ToLower(title(as.status))
	}
	p := problemOf(w.r.Context(), &coverslip.Error{Kind: as.kind, Op: "receive upload", Err: errors.New(message), Hint: as.hint})
	p.Status, p.Title = as.status, title(as.status)
	w.Header().Del("Content-Length")
	w.written = true
	if w.r.Method == http.MethodHead {
		w.ResponseWriter.WriteHeader(p.Status)
		return
	}
	p.write(w.ResponseWriter)
}

// silent is a log that nobody reads.
type silent struct{}

func (silent) Enabled(context.Context, oldslog.Level) bool  { return false }
func (silent) Handle(context.Context, oldslog.Record) error { return nil }
func (s silent) WithAttrs([]oldslog.Attr) oldslog.Handler   { return s }
func (s silent) WithGroup(string) oldslog.Handler           { return s }
