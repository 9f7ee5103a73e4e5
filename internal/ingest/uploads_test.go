package ingest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/storage/blob"
	"coverslip/storage/blob/s3test"
)

func openUploads(t *testing.T, in *ingest.Ingest, dir string) *ingest.Uploads {
	t.Helper()
	u, err := ingest.OpenUploads(in, dir, ingest.UploadLimits{Unfinished: 30, Age: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}

// onS3 makes a bench keep slides in a bucket.
func (b *bench) onS3(t *testing.T) *blob.S3 {
	t.Helper()
	store, err := blob.Open(t.Context(), s3test.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	b.Blobs = store
	return store.(*blob.S3)
}

func keys(t *testing.T, s blob.Store) (keys []string) {
	t.Helper()
	for info, err := range s.List(t.Context(), "slides/") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

func sumOf(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}

// large is a slide of 40 MB, more than two parts: the bundled one, and bytes behind it that no part of a
// TIFF points to.
func large(t *testing.T) []byte {
	t.Helper()
	rest := make([]byte, 38<<20)
	rand.New(rand.NewSource(1)).Read(rest)
	return append(wholeSlide(t), rest...)
}

// Fault 14: an upload goes on in another process, from what is on the disk, and ends with the right bytes.
func TestFault14UploadOutlivesItsProcess(t *testing.T) {
	whole := large(t)
	for name, onS3 := range map[string]bool{"Folder": false, "S3": true} {
		t.Run(name, func(t *testing.T) {
			b, dir := newBench(t), t.TempDir()
			if onS3 {
				b.onS3(t)
			}
			up, err := openUploads(t, b.Ingest, dir).Begin(t.Context(), ingest.Upload{Name: "large.tif", Bytes: int64(len(whole)), SHA256: sumOf(whole)})
			if err != nil {
				t.Fatal(err)
			}
			random := rand.New(rand.NewSource(14))
			synced := 0
			for offset := int64(0); offset < up.Bytes; {
				u := openUploads(t, b.Ingest, dir) // a new process
				u.SetSync(func(f *os.File) error { synced++; return f.Sync() })
				n := min(int64(random.Intn(20<<20)), up.Bytes-offset)
				body := io.Reader(bytes.NewReader(whole[offset : offset+n]))
				cut := errors.New("cut")
				if n < up.Bytes-offset {
					body = io.MultiReader(body, iotest.ErrReader(cut))
				}
				kept, err := u.Append(t.Context(), up.ID, offset, body)
				if kept != n || n < up.Bytes-offset && !errors.Is(err, cut) {
					t.Fatalf("kept %d of %d, %v", kept, n, err)
				}
				if _, err := u.Append(t.Context(), up.ID, offset, strings.NewReader("x")); n > 0 && coverslip.KindOf(err) != coverslip.Conflict {
					t.Errorf("at a wrong offset: %v", err)
				}
				before := synced
				now, err := u.Find(t.Context(), up.ID)
				if err != nil || now.Received != offset+n || synced <= before {
					t.Fatalf("it says %d of %d, synced %d times, %v", now.Received, offset+n, synced, err)
				}
				offset += n
				u.Close()
			}
			u := openUploads(t, b.Ingest, dir)
			out, err := u.Finish(t.Context(), up.ID)
			if err != nil || !out.Created || string(out.Slide.ID) != sumOf(whole) {
				t.Fatalf("%+v, %v", out, err)
			}
			if again, err := openUploads(t, b.Ingest, dir).Finish(t.Context(), up.ID); err != nil || again.Slide.ID != out.Slide.ID {
				t.Errorf("asked again: %+v, %v", again, err)
			}
			files, release, err := b.Local(t.Context(), out.Slide)
			if err != nil {
				t.Fatal(err)
			}
			defer release()
			if stored, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(stored, whole) {
				t.Errorf("the store has %d bytes, %v", len(stored), err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
				t.Errorf("left: %v, %v", left, err)
			}
			if left, err := u.List(""); err != nil || len(left) != 0 {
				t.Errorf("unfinished: %v, %v", left, err)
			}
		})
	}
}

// What was sent in one go is in the bucket when the last byte is here, and is sent whole where a part of it failed.
func TestPartsGoToTheBucketWhileTheRestArrives(t *testing.T) {
	whole := large(t)
	for name, cut := range map[string]bool{"Smoothly": false, "AfterARestart": true} {
		t.Run(name, func(t *testing.T) {
			b, dir := newBench(t), t.TempDir()
			store := b.onS3(t)
			u := openUploads(t, b.Ingest, dir)
			up, err := u.Begin(t.Context(), ingest.Upload{Name: "large.tif", Bytes: int64(len(whole))})
			if err != nil {
				t.Fatal(err)
			}
			at := len(whole) / 2
			if _, err := u.Append(t.Context(), up.ID, 0, bytes.NewReader(whole[:at])); err != nil {
				t.Fatal(err)
			}
			if cut {
				u.Close()
				u = openUploads(t, b.Ingest, dir)
			}
			if _, err := u.Append(t.Context(), up.ID, int64(at), bytes.NewReader(whole[at:])); err != nil {
				t.Fatal(err)
			}
			if cut { // the process dies with all of it here
				u.Close()
				u = openUploads(t, b.Ingest, dir)
				u.Resume(t.Context())
			}
			out, err := u.Finish(t.Context(), up.ID)
			if err != nil || string(out.Slide.ID) != sumOf(whole) || out.Slide.Location != "blob:slides/"+up.ID {
				t.Fatalf("%+v, %v", out, err)
			}
			if have := keys(t, store); len(have) != 1 {
				t.Errorf("the bucket holds %v", have)
			}
			if err := store.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil {
				t.Error(err)
			}
		})
	}
}

// Fault 16: one blob, one row, one id.
func TestFault16SameFileFromTwentyClients(t *testing.T) {
	whole := wholeSlide(t)
	for name, onS3 := range map[string]bool{"Folder": false, "S3": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			var store blob.Store = b.store
			if onS3 {
				store = b.onS3(t)
			}
			u := openUploads(t, b.Ingest, t.TempDir())
			var clients sync.WaitGroup
			var mu sync.Mutex
			created, ids := 0, map[coverslip.SlideID]bool{}
			for i := range 20 {
				clients.Go(func() {
					up, err := u.Begin(t.Context(), ingest.Upload{Name: fmt.Sprintf("%d.svs", i), Bytes: int64(len(whole))})
					if err == nil {
						_, err = u.Append(t.Context(), up.ID, 0, bytes.NewReader(whole))
					}
					var out ingest.Outcome
					if err == nil {
						out, err = u.Finish(t.Context(), up.ID)
					}
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					ids[out.Slide.ID] = true
					if out.Created {
						created++
					}
				})
			}
			clients.Wait()
			counts, err := b.DB.CountSlides(t.Context())
			if err != nil || created != 1 || len(ids) != 1 || counts[coverslip.Queued] != 1 || len(counts) != 1 {
				t.Errorf("created %d times, ids %v, rows %v, %v", created, ids, counts, err)
			}
			have := keys(t, store)
			slide, err := b.DB.Slide(t.Context(), coverslip.SlideID(sumOf(whole)))
			if err != nil || len(have) != 1 || slide.Location != "blob:"+have[0] {
				t.Errorf("blobs %v, the row says %s, %v", have, slide.Location, err)
			}
		})
	}
}

// Fault 17: a disk that is full refuses more, shows nothing half, and goes on when there is room.
func TestFault17DiskFullAtWriteAndSync(t *testing.T) {
	whole := wholeSlide(t)
	b, dir := newBench(t), t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("a small disk cannot be mounted here (it takes root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	u := openUploads(t, b.Ingest, dir)
	up, err := u.Begin(t.Context(), ingest.Upload{Name: "a.svs", Bytes: int64(len(whole))})
	if err != nil {
		t.Fatal(err)
	}
	fill := filepath.Join(dir, "somebody-elses")
	if err := os.WriteFile(fill, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := u.Append(t.Context(), up.ID, 0, bytes.NewReader(whole))
	if coverslip.KindOf(err) != coverslip.Full || coverslip.HintOf(err) == "" || n >= int64(len(whole)) {
		t.Fatalf("kept %d, %v", n, err)
	}
	if now, err := u.Find(t.Context(), up.ID); err != nil || now.Received != n {
		t.Errorf("it stands at %d after %d, %v", now.Received, n, err)
	}
	if _, err := u.Begin(t.Context(), ingest.Upload{Name: "b.svs", Bytes: 2 << 20}); coverslip.KindOf(err) != coverslip.Full {
		t.Errorf("another one: %v", err)
	}
	if counts, err := b.DB.CountSlides(t.Context()); err != nil || len(counts) != 0 || len(keys(t, b.store)) != 0 {
		t.Errorf("something is visible: %v, %v, %v", counts, keys(t, b.store), err)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	u.SetSync(func(*os.File) error { return &fs.PathError{Op: "sync", Path: dir, Err: syscall.ENOSPC} })
	half := (int64(len(whole)) + n) / 2
	if _, err := u.Append(t.Context(), up.ID, n, bytes.NewReader(whole[n:half])); coverslip.KindOf(err) != coverslip.Full {
		t.Errorf("full at sync: %v", err)
	}
	if _, err := u.Find(t.Context(), up.ID); coverslip.KindOf(err) != coverslip.Full {
		t.Errorf("what is not on the disk is said to be kept: %v", err)
	}
	u.SetSync((*os.File).Sync)
	now, err := u.Find(t.Context(), up.ID)
	if err != nil || now.Received != half {
		t.Fatalf("%+v, %v", now, err)
	}
	if _, err := u.Append(t.Context(), up.ID, half, bytes.NewReader(whole[half:])); err != nil {
		t.Fatal(err)
	}
	if out, err := u.Finish(t.Context(), up.ID); err != nil || string(out.Slide.ID) != sumOf(whole) {
		t.Errorf("%+v, %v", out, err)
	}
}

// Fault 18: what comes in is never held in memory, however much it is.
func TestFault18MemoryStaysFlat(t *testing.T) {
	for name, onS3 := range map[string]bool{"Folder": false, "S3": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			if onS3 {
				b.onS3(t)
			}
			u := openUploads(t, b.Ingest, t.TempDir())
			const each, clients = 40 << 20, 10
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					up, err := u.Begin(t.Context(), ingest.Upload{Name: "a.svs", Bytes: each})
					if err == nil {
						// A TIFF by its first bytes, and zeros.
						_, err = u.Append(t.Context(), up.ID, 0, io.MultiReader(strings.NewReader("II*\x00"), io.LimitReader(zeros{}, each-4)))
					}
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := u.Finish(t.Context(), up.ID); coverslip.KindOf(err) != coverslip.Invalid {
						t.Errorf("a TIFF of zeros: %v", err)
					}
					if _, err := u.Find(t.Context(), up.ID); coverslip.KindOf(err) != coverslip.NotFound {
						t.Errorf("it is still there: %v", err)
					}
				})
			}
			wg.Wait()
			runtime.ReadMemStats(&after)
			if allocated := after.TotalAlloc - before.TotalAlloc; allocated > each*clients/10 {
				t.Errorf("%d MiB allocated for %d MiB", allocated>>20, each*clients>>20)
			}
			b.nothingLeft(t)
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestUploadsAreRefusedEarlyAndCounted(t *testing.T) {
	b := newBench(t)
	u := openUploads(t, b.Ingest, t.TempDir())
	begin := func(up ingest.Upload) ingest.Upload {
		t.Helper()
		up, err := u.Begin(t.Context(), up)
		if err != nil {
			t.Fatal(err)
		}
		return up
	}
	elf := begin(ingest.Upload{Name: "x.svs", Bytes: 1 << 30})
	if n, err := u.Append(t.Context(), elf.ID, 0, io.MultiReader(strings.NewReader("\x7fELF"), zeros{})); coverslip.KindOf(err) != coverslip.Unsupported || n != 0 {
		t.Errorf("a program: kept %d, %v", n, err)
	}
	if _, err := u.Find(t.Context(), elf.ID); coverslip.KindOf(err) != coverslip.NotFound {
		t.Errorf("it is still there: %v", err)
	}
	other := begin(ingest.Upload{Name: "x.svs", Bytes: 4, SHA256: strings.Repeat("0", 64)})
	if _, err := u.Append(t.Context(), other.ID, 0, strings.NewReader("text")); err != nil {
		t.Error(err)
	}
	if _, err := u.Finish(t.Context(), other.ID); coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), "announced") {
		t.Errorf("another file than announced: %v", err)
	}
	half := begin(ingest.Upload{Name: "x.svs", Bytes: 10, SHA256: strings.Repeat("1", 64)})
	if _, err := u.Append(t.Context(), half.ID, 0, strings.NewReader("II*\x00")); err != nil {
		t.Error(err)
	}
	if _, err := u.Finish(t.Context(), half.ID); coverslip.KindOf(err) != coverslip.Conflict {
		t.Errorf("half of it: %v", err)
	}
	if found, err := u.List(strings.Repeat("1", 64)); err != nil || len(found) != 1 || found[0].Received != 4 {
		t.Errorf("%+v, %v", found, err)
	}
	for _, bad := range []ingest.Upload{{Name: "x", MPPOfSlide: -1}, {Name: "x", SHA256: "XYZ"}} {
		if _, err := u.Begin(t.Context(), bad); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := u.Begin(t.Context(), ingest.Upload{Name: "x", Bytes: 1 << 60}); coverslip.KindOf(err) != coverslip.Full {
		t.Errorf("more than any disk holds: %v", err)
	}
	for range 29 {
		begin(ingest.Upload{Name: "x", Bytes: 1})
	}
	if _, err := u.Begin(t.Context(), ingest.Upload{Name: "x", Bytes: 1}); coverslip.KindOf(err) != coverslip.TooLarge {
		t.Errorf("one too many: %v", err)
	}
	if err := u.Drop(t.Context(), half.ID); err != nil {
		t.Error(err)
	}
	begin(ingest.Upload{Name: "x", Bytes: 1})
	for _, id := range []string{half.ID, "../x", "", strings.Repeat("a", 26)} {
		if _, err := u.Find(t.Context(), id); coverslip.KindOf(err) != coverslip.NotFound {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestOldUploadsAreDropped(t *testing.T) {
	b, dir := newBench(t), t.TempDir()
	u := openUploads(t, b.Ingest, dir)
	var ids []string
	for range 2 {
		up, err := u.Begin(t.Context(), ingest.Upload{Name: "x", Bytes: 1})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, up.ID)
	}
	u.Close()
	then := time.Now().Add(-2 * time.Hour)
	for _, name := range []string{ids[0], ids[0] + ".json"} {
		if err := os.Chtimes(filepath.Join(dir, name), then, then); err != nil {
			t.Fatal(err)
		}
	}
	u = openUploads(t, b.Ingest, dir)
	if _, err := u.Find(t.Context(), ids[0]); coverslip.KindOf(err) != coverslip.NotFound {
		t.Errorf("the old one: %v", err)
	}
	if _, err := u.Find(t.Context(), ids[1]); err != nil {
		t.Errorf("the young one: %v", err)
	}
}

func TestPresignedUploads(t *testing.T) {
	whole := large(t)
	b := newBench(t)
	if ingest.NewPresigned(b.Ingest, 1) != nil {
		t.Error("a folder signs addresses")
	}
	store := b.onS3(t)
	p := ingest.NewPresigned(b.Ingest, 2)
	send := func(to ingest.Addresses, content []byte) (etags []string) {
		t.Helper()
		for i, u := range to.URLs {
			part := content[int64(i)*to.PartBytes : min(int64(i+1)*to.PartBytes, int64(len(content)))]
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, u, bytes.NewReader(part))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("part %d: %s", i+1, resp.Status)
			}
			etags = append(etags, resp.Header.Get("ETag"))
		}
		return etags
	}
	begin := func(up ingest.Upload) ingest.Addresses {
		t.Helper()
		to, err := p.Begin(t.Context(), up)
		if err != nil {
			t.Fatal(err)
		}
		return to
	}
	to := begin(ingest.Upload{Name: "large.tif", Bytes: int64(len(whole)), SHA256: sumOf(whole), MPPOfSlide: 0.25})
	if len(to.URLs) < 3 {
		t.Fatalf("%d parts of %d bytes", len(to.URLs), len(whole))
	}
	if _, err := p.Complete(t.Context(), to.ID, []string{"x", "y"}); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("too few parts: %v", err)
	}
	wrong := make([]string, len(to.URLs))
	for i := range wrong {
		wrong[i] = `"` + strings.Repeat("0", 32) + `"`
	}
	if _, err := p.Complete(t.Context(), to.ID, wrong); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("before the parts are there: %v", err)
	}
	out, err := p.Complete(t.Context(), to.ID, send(to, whole))
	if err != nil || !out.Created || string(out.Slide.ID) != sumOf(whole) || out.Slide.MPP.Value != 0.25 {
		t.Fatalf("%+v, %v", out, err)
	}
	if again, err := p.Complete(t.Context(), to.ID, nil); err != nil || again.Created || again.Slide.ID != out.Slide.ID {
		t.Errorf("again: %+v, %v", again, err)
	}
	// The same bytes a second time: no second copy.
	to = begin(ingest.Upload{Name: "again.tif", Bytes: int64(len(whole))})
	if again, err := p.Complete(t.Context(), to.ID, send(to, whole)); err != nil || again.Created || again.Slide.Name != "large.tif" {
		t.Errorf("%+v, %v", again, err)
	}
	// What is refused leaves nothing.
	for name, c := range map[string]struct {
		content []byte
		up      ingest.Upload
		kind    coverslip.Kind
	}{
		"no slide":      {[]byte(strings.Repeat("text", 100)), ingest.Upload{Name: "x", Bytes: 400}, coverslip.Unsupported},
		"broken":        {append([]byte("II*\x00"), make([]byte, 400)...), ingest.Upload{Name: "x", Bytes: 404}, coverslip.Invalid},
		"another":       {wholeSlide(t), ingest.Upload{Name: "x", Bytes: int64(len(wholeSlide(t))), SHA256: sumOf(whole)}, coverslip.Invalid},
		"other lengths": {wholeSlide(t), ingest.Upload{Name: "x", Bytes: int64(len(wholeSlide(t))) + 1}, coverslip.Invalid},
	} {
		to := begin(c.up)
		if _, err := p.Complete(t.Context(), to.ID, send(to, c.content)); coverslip.KindOf(err) != c.kind {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := p.Complete(t.Context(), to.ID, nil); coverslip.KindOf(err) != coverslip.NotFound {
			t.Errorf("%s is remembered: %v", name, err)
		}
	}
	for range 2 {
		to = begin(ingest.Upload{Name: "x", Bytes: 1})
	}
	if _, err := p.Begin(t.Context(), ingest.Upload{Name: "x", Bytes: 1}); coverslip.KindOf(err) != coverslip.TooLarge {
		t.Errorf("one too many: %v", err)
	}
	if err := p.Abort(t.Context(), to.ID); err != nil {
		t.Error(err)
	}
	if _, err := p.Complete(t.Context(), to.ID, []string{"x"}); coverslip.KindOf(err) != coverslip.NotFound {
		t.Errorf("after Abort: %v", err)
	}
	if have := keys(t, store); len(have) != 1 || out.Slide.Location != "blob:"+have[0] {
		t.Errorf("the bucket holds %v", have)
	}
	if left, err := os.ReadDir(b.spool); err != nil || len(left) > 0 {
		t.Errorf("the spool holds %v, %v", left, err)
	}
}
