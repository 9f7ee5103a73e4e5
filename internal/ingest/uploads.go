package ingest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coverslip"
	"coverslip/tiler"
)

// Uploads keeps slides that come in pieces, over as many connections as it takes: each as a file that
// grows and one beside it that says what it is, in a folder of this machine. They outlive the process.
// What is received goes on to the store at once where that takes parts. Safe for concurrent use.
type Uploads struct {
	in     *Ingest
	dir    string
	limits UploadLimits
	sync   func(*os.File) error

	mu    sync.Mutex
	live  map[string]*piecemeal
	swept time.Time
}

// UploadLimits bound what lies about unfinished.
type UploadLimits struct {
	Unfinished int           // uploads at once
	Age        time.Duration // since the last byte, after which an upload is dropped
}

// Upload is a slide that comes in pieces.
type Upload struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Bytes      int64             `json:"bytes"`                  // announced
	Received   int64             `json:"received"`               // kept, and on the disk
	MPPOfSlide float64           `json:"mpp_of_slide,omitempty"` // the user's word, 0 when not given
	SHA256     string            `json:"sha256,omitempty"`       // announced; "" when not
	Slide      coverslip.SlideID `json:"slide,omitempty"`        // what became of it
	Created    time.Time         `json:"created"`
}

// Done reports whether it became a slide.
func (u Upload) Done() bool { return u.Slide != "" }

// piecemeal is an upload under this process's hands.
type piecemeal struct {
	mu      sync.Mutex // held while its file is written or published
	upload  Upload
	arrival *arrival // nil once it is done or dropped
	checked bool     // its first bytes were looked at
	dropped bool
	outcome Outcome // once it is done, in this process
}

// OpenUploads takes up what lies in dir, which it makes, and drops what nobody went on with.
func OpenUploads(in *Ingest, dir string, limits UploadLimits) (*Uploads, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, diskError("make the folder for uploads", dir, err)
	}
	u := &Uploads{in: in, dir: dir, limits: limits, sync: (*os.File).Sync, live: map[string]*piecemeal{}}
	return u, u.sweep(time.Now())
}

// Close lets go of the files. What was received stays.
func (u *Uploads) Close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range u.live {
		p.mu.Lock()
		p.let()
		p.mu.Unlock()
	}
}

// let closes the file.
func (p *piecemeal) let() {
	if p.arrival != nil {
		_ = p.arrival.close() // it was synced when its last bytes were acknowledged
		p.arrival = nil
	}
}

// Begin makes room for an upload of up.Bytes. It fails with TooLarge while too many are unfinished, and
// with Full where the disk has no room for it.
func (u *Uploads) Begin(ctx context.Context, up Upload) (Upload, error) {
	const op = "begin upload"
	if up.MPPOfSlide != 0 {
		if err := tiler.CheckMPP(up.MPPOfSlide); err != nil {
			return up, err
		}
	}
	if up.SHA256 != "" {
		if _, err := coverslip.ParseSlideID(up.SHA256); err != nil {
			return up, &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: up.Name, Err: errors.New("sha256 is not 64 lower-case hexadecimal digits"), Hint: "leave it out, or send the SHA-256 of the file"}
		}
	}
	if err := u.sweep(time.Now()); err != nil {
		return up, err
	}
	unfinished, err := u.List("")
	if err != nil {
		return up, err
	}
	if len(unfinished) >= u.limits.Unfinished {
		return up, &coverslip.Error{Kind: coverslip.TooLarge, Op: op, Path: up.Name, Err: fmt.Errorf("%d uploads are unfinished already", len(unfinished)), Hint: "finish or delete some, or raise the server's limit"}
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(u.dir, &disk); err == nil && uint64(up.Bytes) > disk.Bavail*uint64(disk.Bsize) { //nolint:gosec // sizes are not negative
		return up, &coverslip.Error{Kind: coverslip.Full, Op: op, Path: up.Name, Err: fmt.Errorf("%d bytes do not fit on the server's disk", up.Bytes), Hint: "free some space there and try again"}
	}
	up.ID, up.Received, up.Slide, up.Created = strings.ToLower(rand.Text()), 0, "", time.Now().UTC()
	file, err := os.OpenFile(u.body(up.ID), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return up, diskError(op, u.dir, err)
	}
	if err := u.write(up); err != nil {
		return up, errors.Join(err, file.Close(), os.Remove(file.Name()))
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.live[up.ID] = &piecemeal{upload: up, arrival: u.in.arriving(ctx, u.key(up.ID), file, 0)}
	return up, nil
}

func (u *Uploads) body(id string) string { return filepath.Join(u.dir, id) }

// key is where the store keeps it, the same however often the end is tried.
func (u *Uploads) key(id string) string {
	if u.in.newKey() == "" {
		return ""
	}
	return "slides/" + id
}

const described = ".json"

// write publishes what is known of an upload, beside its bytes.
func (u *Uploads) write(up Upload) error {
	raw, err := json.Marshal(up)
	temp := u.body(up.ID) + described + ".new"
	if err == nil {
		err = os.WriteFile(temp, raw, 0o600)
	}
	if err == nil {
		err = os.Rename(temp, u.body(up.ID)+described)
	}
	if err != nil {
		_ = os.Remove(temp) // it may not be there
		return diskError("keep the upload", u.dir, err)
	}
	return nil
}

// described is write's reverse.
func (u *Uploads) described(id string) (up Upload, err error) {
	raw, err := os.ReadFile(u.body(id) + described)
	if err == nil {
		err = json.Unmarshal(raw, &up)
	}
	if err == nil && up.Done() {
		up.Received = up.Bytes
	}
	return up, err
}

var uploadID = regexp.MustCompile(`^[a-z2-7]{26}$`) // as crypto/rand.Text makes them, in lower case

// find takes an upload under this process's hands.
func (u *Uploads) find(ctx context.Context, id string) (*piecemeal, error) {
	missing := &coverslip.Error{Kind: coverslip.NotFound, Op: "look up the upload", Path: "upload " + clip(id), Err: errors.New("there is none"), Hint: "begin a new one; finished and forgotten ones are cleared away"}
	if !uploadID.MatchString(id) {
		return nil, missing
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if p := u.live[id]; p != nil {
		if p.isDropped() {
			return nil, missing
		}
		return p, nil
	}
	p := &piecemeal{}
	var err error
	if p.upload, err = u.described(id); errors.Is(err, fs.ErrNotExist) {
		return nil, missing
	}
	if err == nil && !p.upload.Done() {
		var file *os.File
		if file, err = os.OpenFile(u.body(id), os.O_RDWR, 0); err == nil {
			var stat fs.FileInfo
			if stat, err = file.Stat(); err == nil {
				p.arrival = u.in.arriving(ctx, u.key(id), file, stat.Size())
				p.upload.Received, p.checked = stat.Size(), stat.Size() >= tiler.HeadSize
			}
		}
	}
	if err != nil {
		return nil, diskError("take up the upload", u.dir, err)
	}
	u.live[id] = p
	return p, nil
}

func (p *piecemeal) isDropped() bool {
	if !p.mu.TryLock() {
		return false // somebody is at it
	}
	defer p.mu.Unlock()
	return p.dropped
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// Find returns an upload. What it says was received is on the disk, whatever happens to the machine,
// unless more is coming in at this moment.
func (u *Uploads) Find(ctx context.Context, id string) (Upload, error) {
	p, err := u.find(ctx, id)
	if err != nil {
		return Upload{}, err
	}
	if !p.mu.TryLock() { // bytes of it are coming in, or it is being finished
		up, err := u.described(id)
		if stat, serr := os.Stat(u.body(id)); serr == nil {
			up.Received = stat.Size()
		}
		return up, err
	}
	defer p.mu.Unlock()
	if p.arrival != nil {
		if err := u.sync(p.arrival.file); err != nil {
			return p.upload, diskError("keep the upload", u.dir, err)
		}
		p.upload.Received = p.arrival.size
	}
	return p.upload, nil
}

// List returns the uploads that are not finished, the furthest first: those announced with this SHA-256,
// or all with "".
func (u *Uploads) List(sha256 string) ([]Upload, error) {
	entries, err := os.ReadDir(u.dir)
	if err != nil {
		return nil, diskError("list the uploads", u.dir, err)
	}
	found := []Upload{}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), described)
		if !ok {
			continue
		}
		up, err := u.described(id)
		if err != nil { // it ended meanwhile
			continue
		}
		if up.Done() || sha256 != "" && up.SHA256 != sha256 {
			continue
		}
		if stat, err := os.Stat(u.body(id)); err == nil {
			up.Received = stat.Size()
		}
		found = append(found, up)
	}
	slices.SortFunc(found, func(a, b Upload) int {
		return cmp.Or(cmp.Compare(b.Received, a.Received), cmp.Compare(a.ID, b.ID))
	})
	return found, nil
}

// Append adds what body holds at offset, which must be where the upload stands, and says how much was
// kept; that much is on the disk when it returns, also after an error, unless the error says otherwise.
// A file that its first bytes show to be no slide is Unsupported, and the upload is gone.
func (u *Uploads) Append(ctx context.Context, id string, offset int64, body io.Reader) (int64, error) {
	p, err := u.find(ctx, id)
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.arrival
	if a == nil || a.size != offset {
		return 0, &coverslip.Error{Kind: coverslip.Conflict, Op: "continue upload", Path: p.upload.Name, Err: fmt.Errorf("it does not stand at %d", offset), Hint: "ask where it stands and go on from there"}
	}
	n, err := a.write(ctx, &headCheck{src: io.LimitReader(body, p.upload.Bytes-offset), p: p})
	p.upload.Received = a.size
	if coverslip.KindOf(err) == coverslip.Unsupported {
		return 0, errors.Join(err, u.drop(p))
	}
	if a.size < p.upload.Bytes { // the end is synced by what follows
		if serr := u.sync(a.file); serr != nil {
			return n, diskError("keep the upload", u.dir, serr)
		}
	}
	return n, coverslip.At(p.upload.Name, err)
}

// headCheck ends a body that is no slide at its first bytes.
type headCheck struct {
	src  io.Reader
	p    *piecemeal
	head []byte
}

func (h *headCheck) Read(buf []byte) (int, error) {
	n, err := h.src.Read(buf)
	if h.p.checked || n == 0 || h.p.arrival.size > 0 && len(h.head) == 0 {
		return n, err
	}
	h.head = append(h.head, buf[:min(n, tiler.HeadSize-len(h.head))]...)
	if len(h.head) == tiler.HeadSize {
		h.p.checked = true
		if err := tiler.CheckHead(h.head, h.p.upload.Name); err != nil {
			return 0, err
		}
	}
	return n, err
}

// Finish makes a slide of an upload that is whole, and says the same again when asked again. A file that
// is no slide, or not the one that was announced, is refused and gone; after other failures it may be
// tried again.
func (u *Uploads) Finish(ctx context.Context, id string) (Outcome, error) {
	const op = "finish upload"
	p, err := u.find(ctx, id)
	if err != nil {
		return Outcome{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.arrival
	switch {
	case p.upload.Done() && p.outcome.Slide.ID != "":
		return p.outcome, nil
	case p.upload.Done():
		out := Outcome{}
		out.Slide, err = u.in.DB.Slide(ctx, p.upload.Slide)
		return out, err
	case a == nil:
		return Outcome{}, &coverslip.Error{Kind: coverslip.Conflict, Op: op, Path: p.upload.Name, Err: errors.New("it was dropped, or the server stops"), Hint: "ask for it again"}
	case a.size < p.upload.Bytes:
		return Outcome{}, &coverslip.Error{Kind: coverslip.Conflict, Op: op, Path: p.upload.Name, Err: fmt.Errorf("%d of %d bytes are here", a.size, p.upload.Bytes), Hint: "send the rest first"}
	}
	sum, err := a.id()
	if err == nil && p.upload.SHA256 != "" && string(sum) != p.upload.SHA256 {
		err = &coverslip.Error{Kind: coverslip.Invalid, Op: op, Path: p.upload.Name, Err: fmt.Errorf("its SHA-256 is %s, announced was %s", sum, p.upload.SHA256), Hint: "the file changed on the way or while it was sent; send it again"}
	}
	out := Outcome{}
	if err == nil {
		out, err = a.keep(ctx, p.upload.Name, p.upload.MPPOfSlide)
	}
	switch kind := coverslip.KindOf(err); {
	case err == nil:
	case kind.Retryable():
		return out, errors.Join(err, u.sync(a.file))
	default:
		return out, errors.Join(err, u.drop(p))
	}
	p.upload.Slide, p.outcome = out.Slide.ID, out
	if err := u.write(p.upload); err != nil { // then it is done again, and finds the slide there
		u.in.Log.Warn("an upload will be finished again", "slide", out.Slide.ID, "err", err)
	}
	p.let()
	if err := os.Remove(u.body(id)); err != nil {
		u.in.Log.Warn("an upload was left behind", "slide", out.Slide.ID, "file", u.body(id), "err", err)
	}
	return out, nil
}

// Resume finishes what was received whole but not finished when an earlier process ended.
func (u *Uploads) Resume(ctx context.Context) {
	whole, err := u.List("")
	for _, up := range whole {
		if ctx.Err() == nil && up.Received == up.Bytes {
			_, ferr := u.Finish(ctx, up.ID)
			err = errors.Join(err, ferr)
		}
	}
	if err != nil && ctx.Err() == nil {
		u.in.Log.Warn("uploads of an earlier process could not be finished", "err", err)
	}
}

// Drop ends an upload and forgets what was received.
func (u *Uploads) Drop(ctx context.Context, id string) error {
	p, err := u.find(ctx, id)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return u.drop(p)
}

func (u *Uploads) drop(p *piecemeal) error {
	p.let()
	p.dropped = true
	var errs []error
	for _, name := range []string{u.body(p.upload.ID) + described, u.body(p.upload.ID)} { // in this order: no description without bytes
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, diskError("drop the upload", u.dir, err))
		}
	}
	return errors.Join(errs...)
}

// sweep drops what nobody went on with, and forgets what was finished long ago, once an hour.
func (u *Uploads) sweep(now time.Time) error {
	u.mu.Lock()
	due := now.Sub(u.swept) > time.Hour
	if due {
		u.swept = now
	}
	u.mu.Unlock()
	if !due {
		return nil
	}
	entries, err := os.ReadDir(u.dir)
	if err != nil {
		return diskError("clear away old uploads", u.dir, err)
	}
	last := map[string]time.Time{}
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".")
		if info, err := e.Info(); err == nil && info.ModTime().After(last[id]) {
			last[id] = info.ModTime()
		}
	}
	for id, at := range last {
		if now.Sub(at) < u.limits.Age {
			continue
		}
		u.mu.Lock()
		p := u.live[id]
		delete(u.live, id)
		u.mu.Unlock()
		if p == nil {
			p = &piecemeal{upload: Upload{ID: id}}
		}
		p.mu.Lock()
		err = errors.Join(err, u.drop(p))
		p.mu.Unlock()
	}
	return err
}
