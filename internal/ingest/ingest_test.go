package ingest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"coverslip"
	"coverslip/encoder/onnx"
	"coverslip/encoder/onnx/onnxtest"
	"coverslip/internal/ingest"
	"coverslip/slidessl"
	"coverslip/storage/bagfile"
	"coverslip/storage/blob"
	"coverslip/storage/queue"
	"coverslip/storage/storagetest"
	"coverslip/tiler/tissue"
	"coverslip/tiler/vips"
)

func TestMain(m *testing.M) { os.Exit(storagetest.Main(m)) }

const bundled = "../../testdata/CMU-1-Small-Region.svs"

// colours is an encoder whose features are the mean red, green and blue of a tile.
var colours = onnxtest.Model{Size: 224, Weights: [3][]float32{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}}

// bench is an Ingest over a real database, a real folder and a real, small encoder.
type bench struct {
	*ingest.Ingest
	store *blob.Folder
	spool string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	onnxtest.Need(t)
	db := storagetest.New(t)
	jobs, err := queue.New(db.Pool(), queue.Config{})
	if err != nil {
		t.Fatal(err)
	}
	session, err := onnx.Open(colours.File(), colours.Spec(), onnx.CPU)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	store, err := blob.OpenFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	spool := t.TempDir()
	return &bench{store: store, spool: spool, Ingest: &ingest.Ingest{DB: db, Queue: jobs, Blobs: store, Encoder: session, Model: colours.Spec().Model(),
		Aggregator: slidessl.Mean{}, Plan: ingest.DefaultPlan(colours.Spec().Model()), Mask: tissue.Default(), Spool: spool, Log: slog.New(slog.DiscardHandler)}}
}

// work does a slide's job as a worker would.
func (b *bench) work(t *testing.T, id coverslip.SlideID) coverslip.Slide {
	t.Helper()
	_ = b.Work(t.Context(), queue.Job{Slide: id}, queue.Attempt{Number: 1, Last: true}) // how it ended is on the slide
	s, err := b.DB.Slide(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// nothingLeft fails when there is a slide, a blob or a spooled file.
func (b *bench) nothingLeft(t *testing.T) {
	t.Helper()
	slides, err := b.DB.CountSlides(t.Context())
	if err != nil || len(slides) > 0 {
		t.Errorf("slides %v, %v", slides, err)
	}
	if blobs := b.blobs(t); len(blobs) > 0 {
		t.Errorf("blobs %v", blobs)
	}
	if left, err := os.ReadDir(b.spool); err != nil || len(left) > 0 {
		t.Errorf("the spool holds %v, %v", left, err)
	}
}

func (b *bench) blobs(t *testing.T) (keys []string) {
	t.Helper()
	for info, err := range b.store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

func wholeSlide(t *testing.T) []byte {
	t.Helper()
	raw, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestPathToEmbedding(t *testing.T) {
	b := newBench(t)
	out, err := b.Register(t.Context(), bundled, 0)
	if err != nil || !out.Created || !out.Queued || out.Slide.State != coverslip.Queued {
		t.Fatalf("%+v, %v", out, err)
	}
	if again, err := b.Register(t.Context(), bundled, 0); err != nil || again.Created || again.Queued {
		t.Errorf("again before it is done: %+v, %v", again, err)
	}
	if s := b.work(t, out.Slide.ID); s.State != coverslip.Embedded || s.Reason != "" {
		t.Fatalf("%s: %s", s.State, s.Reason)
	}
	bag, err := b.Bag(t.Context(), out.Slide)
	if err != nil || bag.Tiles < 30 || bag.Dim != 3 {
		t.Fatalf("%+v, %v", bag, err)
	}

	t.Run("BagSaysWhatItWasMadeFrom", func(t *testing.T) {
		file, err := b.Blobs.Open(t.Context(), ingest.BagBlob(bag.Key))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		r, err := bagfile.Open(file, file.Size())
		if err != nil {
			t.Fatal(err)
		}
		m := r.Metadata()
		if r.Len() != bag.Tiles || m.Slide != out.Slide.ID || m.EncoderSHA256 != colours.Spec().SHA256 || m.TileSize != 224 || m.SlideMPP != 0.499 || m.Reader == "" || m.Mask == "" {
			t.Errorf("%d rows, %+v", r.Len(), m)
		}
		// The embedding is the normalised mean of the colours, computed here from the bag by hand.
		rows := make([]float32, r.Len()*3)
		if err := r.Features(rows, 0, r.Len()); err != nil {
			t.Fatal(err)
		}
		var mean [3]float64
		for i, v := range rows {
			mean[i%3] += float64(v)
		}
		norm := math.Sqrt(mean[0]*mean[0] + mean[1]*mean[1] + mean[2]*mean[2])
		e, err := b.Embedding(t.Context(), out.Slide.ID)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range e.Vector {
			if math.Abs(float64(v)-mean[k]/norm) > 1e-6 {
				t.Errorf("component %d is %g, want %g", k, v, mean[k]/norm)
			}
		}
	})
	t.Run("DoneIsNotQueuedAgain", func(t *testing.T) {
		if again, err := b.Register(t.Context(), bundled, 0); err != nil || again.Queued {
			t.Errorf("%+v, %v", again, err)
		}
	})
	t.Run("WorkTwiceChangesNothing", func(t *testing.T) {
		before, err := b.Embedding(t.Context(), out.Slide.ID)
		if err != nil {
			t.Fatal(err)
		}
		b.work(t, out.Slide.ID)
		if after, err := b.Embedding(t.Context(), out.Slide.ID); err != nil || !after.Created.Equal(before.Created) {
			t.Errorf("the embedding was written again: %v, %v, %v", before.Created, after.Created, err)
		}
	})
	t.Run("VectorOfAFileIsItsEmbedding", func(t *testing.T) {
		v, err := b.Vector(t.Context(), bundled, 0)
		e, e2 := b.Embedding(t.Context(), out.Slide.ID)
		if err != nil || e2 != nil || !slices.Equal(v, e.Vector) {
			t.Errorf("%v, %v: %v and %v", err, e2, v, e.Vector)
		}
	})
}

// Fault 20: a worker killed between blob and row leaves a blob that nobody sees; the next one
// replaces it by equal bytes.
func TestBlobWithoutRowIsMadeAgain(t *testing.T) {
	b := newBench(t)
	out, err := b.Register(t.Context(), bundled, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.work(t, out.Slide.ID)
	bag, err := b.Bag(t.Context(), out.Slide)
	if err != nil {
		t.Fatal(err)
	}
	path, err := b.store.Path(ingest.BagBlob(bag.Key))
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.DB.Pool().Exec(t.Context(), `delete from embeddings; delete from bags; update slides set state = 'queued'`); err != nil {
		t.Fatal(err)
	}
	if s := b.work(t, out.Slide.ID); s.State != coverslip.Embedded {
		t.Fatalf("%s: %s", s.State, s.Reason)
	}
	if second, err := os.ReadFile(path); err != nil || !bytes.Equal(first, second) {
		t.Errorf("the second bag differs from the first, %v", err)
	}
}

func TestUpload(t *testing.T) {
	whole := wholeSlide(t)
	t.Run("KeepsTheBytesAndFindsThemAgain", func(t *testing.T) {
		b := newBench(t)
		out, err := b.Upload(t.Context(), "a.svs", 0, bytes.NewReader(whole))
		if err != nil || !out.Created || out.Slide.Bytes != int64(len(whole)) {
			t.Fatalf("%+v, %v", out, err)
		}
		if s := b.work(t, out.Slide.ID); s.State != coverslip.Embedded {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		if again, err := b.Upload(t.Context(), "b.svs", 0, bytes.NewReader(whole)); err != nil || again.Created || again.Slide.Name != "a.svs" {
			t.Errorf("%+v, %v", again, err)
		}
		if blobs := b.blobs(t); len(blobs) != 2 { // the slide and its bag
			t.Errorf("%v", blobs)
		}
	})
	for name, c := range map[string]struct {
		body io.Reader
		kind coverslip.Kind
	}{
		"ConnectionCut": {io.MultiReader(bytes.NewReader(whole[:len(whole)/2]), iotest.ErrReader(io.ErrUnexpectedEOF)), coverslip.Invalid},
		"Truncated":     {bytes.NewReader(whole[:len(whole)/2]), coverslip.Invalid},
		"Empty":         {bytes.NewReader(nil), coverslip.Invalid},
		"NoSlide":       {strings.NewReader(strings.Repeat("no slide ", 100)), coverslip.Unsupported},
	} {
		t.Run(name+"LeavesNothing", func(t *testing.T) {
			b := newBench(t)
			_, err := b.Upload(t.Context(), "bad.svs", 0, c.body)
			if coverslip.KindOf(err) != c.kind || !strings.Contains(err.Error(), "bad.svs") || strings.Contains(err.Error(), b.spool) {
				t.Errorf("%v (%s)", err, coverslip.KindOf(err))
			}
			b.nothingLeft(t)
		})
	}
	t.Run("CancelledLeavesNothing", func(t *testing.T) {
		b := newBench(t)
		ctx, cancel := context.WithCancel(t.Context())
		body := io.MultiReader(bytes.NewReader(whole[:1000]), readFunc(func([]byte) (int, error) { cancel(); return 0, ctx.Err() }))
		if _, err := b.Upload(ctx, "a.svs", 0, body); err == nil {
			t.Error("it went through")
		}
		b.nothingLeft(t)
	})
	// Fault 16.
	t.Run("SameBytesFromTwentyClientsAreOneSlide", func(t *testing.T) {
		b := newBench(t)
		var wg sync.WaitGroup
		created := make(chan bool, 20)
		for range 20 {
			wg.Go(func() {
				out, err := b.Upload(t.Context(), "a.svs", 0, bytes.NewReader(whole))
				if err != nil {
					t.Error(err)
				}
				created <- out.Created
			})
		}
		wg.Wait()
		close(created)
		n := 0
		for c := range created {
			if c {
				n++
			}
		}
		var jobs int
		if err := b.DB.Pool().QueryRow(t.Context(), `select count(*) from river_job`).Scan(&jobs); err != nil {
			t.Fatal(err)
		}
		if blobs := b.blobs(t); n != 1 || len(blobs) != 1 || jobs != 1 {
			t.Errorf("created %d times, blobs %v, %d jobs", n, blobs, jobs)
		}
	})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// slide saves a picture of one colour as a slide file.
func slide(t *testing.T, colour [3]byte, mpp float64) string {
	t.Helper()
	const edge = 600
	path := filepath.Join(t.TempDir(), "slide.tif")
	if err := vips.SaveTIFF(path, bytes.Repeat(colour[:], edge*edge), edge, edge, mpp); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSlidesWithoutAnEmbedding(t *testing.T) {
	t.Run("GlassIsNoTissueWithAnEmptyBag", func(t *testing.T) {
		b := newBench(t)
		out, err := b.Register(t.Context(), slide(t, [3]byte{240, 240, 240}, 0.5), 0)
		if err != nil {
			t.Fatal(err)
		}
		if s := b.work(t, out.Slide.ID); s.State != coverslip.NoTissue {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		if bag, err := b.Bag(t.Context(), out.Slide); err != nil || bag.Tiles != 0 {
			t.Errorf("%+v, %v", bag, err)
		}
		if _, err := b.Embedding(t.Context(), out.Slide.ID); coverslip.KindOf(err) != coverslip.NotFound {
			t.Errorf("an embedding of nothing: %v", err)
		}
	})
	t.Run("UnknownResolutionWaitsForTheUsersWord", func(t *testing.T) {
		b := newBench(t)
		path := slide(t, [3]byte{200, 100, 160}, 352.8) // 72 dots per inch
		out, err := b.Register(t.Context(), path, 0)
		if err != nil {
			t.Fatal(err)
		}
		if s := b.work(t, out.Slide.ID); s.State != coverslip.AwaitingMPP || !strings.Contains(s.Reason, "--mpp-of-slide") || s.MPP.Doubt == "" {
			t.Errorf("%+v", s)
		}
		again, err := b.Register(t.Context(), path, 0.5)
		if err != nil || again.Slide.MPP != (coverslip.MPP{Value: 0.5, Source: coverslip.MPPUser}) {
			t.Errorf("%+v, %v", again, err)
		}
		if s := b.work(t, out.Slide.ID); s.State != coverslip.Embedded || s.MPP.Source != coverslip.MPPUser {
			t.Errorf("%+v", s)
		}
		if later, err := b.Register(t.Context(), path, 0); err != nil || later.Queued || later.Slide.MPP.Value != 0.5 {
			t.Errorf("without the word again: %+v, %v", later, err)
		}
	})
	t.Run("FileThatChangedIsRefused", func(t *testing.T) {
		b := newBench(t)
		path := slide(t, [3]byte{200, 100, 160}, 0.5)
		out, err := b.Register(t.Context(), path, 0)
		if err != nil {
			t.Fatal(err)
		}
		other, err := os.ReadFile(slide(t, [3]byte{100, 100, 200}, 0.5))
		if err == nil {
			err = os.WriteFile(path, other, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if s := b.work(t, out.Slide.ID); s.State != coverslip.Failed || !strings.Contains(s.Reason, "changed") {
			t.Errorf("%+v", s)
		}
	})
	t.Run("FileThatIsGoneFailsWithItsName", func(t *testing.T) {
		b := newBench(t)
		path := slide(t, [3]byte{200, 100, 160}, 0.5)
		out, err := b.Register(t.Context(), path, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if s := b.work(t, out.Slide.ID); s.State != coverslip.Failed || !strings.Contains(s.Reason, path) {
			t.Errorf("%+v", s)
		}
	})
	t.Run("FileThatMovedIsFoundAtItsNewPlace", func(t *testing.T) {
		b := newBench(t)
		path := slide(t, [3]byte{200, 100, 160}, 0.5)
		if _, err := b.Register(t.Context(), path, 0); err != nil {
			t.Fatal(err)
		}
		moved := path + ".moved.tif"
		if err := os.Rename(path, moved); err != nil {
			t.Fatal(err)
		}
		out, err := b.Register(t.Context(), moved, 0)
		if err != nil || out.Created || out.Slide.Location != moved {
			t.Errorf("%+v, %v", out, err)
		}
		if s := b.work(t, out.Slide.ID); s.State != coverslip.Embedded {
			t.Errorf("%+v", s)
		}
	})
	// Fault 2: damage inside a tile shows when it is decoded; there is no half bag.
	t.Run("DamagedTileFailsTheSlide", func(t *testing.T) {
		b := newBench(t)
		raw := wholeSlide(t)
		for i := 400_000; i < 400_400; i++ {
			raw[i] ^= 0x5a
		}
		out, err := b.Upload(t.Context(), "damaged.svs", 0, bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		s := b.work(t, out.Slide.ID)
		if s.State != coverslip.Failed || !strings.Contains(s.Reason, "damaged.svs") {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		if blobs := b.blobs(t); len(blobs) != 1 {
			t.Errorf("beside the slide there is %v", blobs)
		}
	})
}

// notAFolder hides that a store has paths, as S3 has none.
type notAFolder struct{ blob.Store }

func TestStoreWithoutPathsIsStaged(t *testing.T) {
	b := newBench(t)
	b.Blobs = notAFolder{b.store}
	out, err := b.Upload(t.Context(), "a.svs", 0, bytes.NewReader(wholeSlide(t)))
	if err != nil {
		t.Fatal(err)
	}
	if s := b.work(t, out.Slide.ID); s.State != coverslip.Embedded {
		t.Errorf("%s: %s", s.State, s.Reason)
	}
	if left, err := os.ReadDir(b.spool); err != nil || len(left) > 0 {
		t.Errorf("the spool holds %v, %v", left, err)
	}
}

// failing is an encoder that fails with err.
type failing struct{ err error }

func (f failing) Model() coverslip.Model                                { return colours.Spec().Model() }
func (f failing) Encode(context.Context, []float32, []uint8, int) error { return f.err }

func TestWhatMayPassIsTriedAgain(t *testing.T) {
	b := newBench(t)
	out, err := b.Register(t.Context(), bundled, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.Encoder = failing{&coverslip.Error{Kind: coverslip.Unavailable, Op: "encode", Err: errors.New("busy")}}
	job := queue.Job{Slide: out.Slide.ID}
	if err := b.Work(t.Context(), job, queue.Attempt{Number: 1}); !coverslip.KindOf(err).Retryable() {
		t.Errorf("%v", err)
	}
	if s, err := b.DB.Slide(t.Context(), out.Slide.ID); err != nil || s.State == coverslip.Failed {
		t.Errorf("failed at the first try: %+v, %v", s, err)
	}
	if err := b.Work(t.Context(), job, queue.Attempt{Number: 5, Last: true}); err == nil {
		t.Error("the last try says nothing")
	}
	if s, err := b.DB.Slide(t.Context(), out.Slide.ID); err != nil || s.State != coverslip.Failed || !strings.Contains(s.Reason, "busy") {
		t.Errorf("after the last try: %+v, %v", s, err)
	}
}

func TestBagKeyChangesWithWhatChangesTheBag(t *testing.T) {
	model, mask := colours.Spec().Model(), tissue.Default()
	plan := ingest.DefaultPlan(model)
	id := coverslip.SlideID(strings.Repeat("a", 64))
	seen := map[string]string{}
	add := func(name, key string) {
		if other, again := seen[key]; again {
			t.Errorf("%s has the key of %s", name, other)
		}
		seen[key] = name
	}
	add("plain", ingest.BagKey(id, plan, mask, model, nil))
	add("slide", ingest.BagKey(coverslip.SlideID(strings.Repeat("b", 64)), plan, mask, model, nil))
	for name, change := range map[string]func(*coverslip.PlanParams){
		"mpp": func(p *coverslip.PlanParams) { p.MPP = 1 }, "size": func(p *coverslip.PlanParams) { p.Size = 256 },
		"overlap": func(p *coverslip.PlanParams) { p.Overlap = 1 }, "least tissue": func(p *coverslip.PlanParams) { p.MinTissue = 0.5 },
		"mpp of slide": func(p *coverslip.PlanParams) { p.MPPOfSlide = 0.25 },
	} {
		p := plan
		change(&p)
		add(name, ingest.BagKey(id, p, mask, model, nil))
	}
	m := mask
	m.Closing++
	add("mask", ingest.BagKey(id, plan, m, model, nil))
	e := model
	e.SHA256 = strings.Repeat("c", 64)
	add("encoder", ingest.BagKey(id, plan, mask, e, nil))
	e = model
	e.SpecSHA256 = strings.Repeat("c", 64)
	add("another use of the same file", ingest.BagKey(id, plan, mask, e, nil))
	e = model
	e.Name = "the same file under another name"
	if ingest.BagKey(id, plan, mask, e, nil) != ingest.BagKey(id, plan, mask, model, nil) {
		t.Error("a name changes the key")
	}
}

// A DICOM slide is one slide, whichever of its files or their folder is named.
func TestSlideOfSeveralFiles(t *testing.T) {
	folder := filepath.Join("..", "..", "..", "shared", "data", "wsi", "dicom", "cmu-1-small-region")
	found, err := filepath.Glob(filepath.Join(folder, "*.dcm"))
	if err != nil || len(found) < 2 {
		t.Skipf("needs %s", folder)
	}
	b := newBench(t)
	out, err := b.Register(t.Context(), folder, 0)
	if err != nil || !out.Created || out.Slide.Name != filepath.Base(folder) || out.Slide.MPP.Source != coverslip.MPPDICOM {
		t.Fatalf("%+v, %v", out, err)
	}
	for _, file := range found[:2] {
		if again, err := b.Register(t.Context(), file, 0); err != nil || again.Slide.ID != out.Slide.ID {
			t.Errorf("%s is %s, %v; the folder is %s", file, again.Slide.ID.Short(), err, out.Slide.ID.Short())
		}
	}
	if s := b.work(t, out.Slide.ID); s.State != coverslip.Embedded {
		t.Errorf("%s: %s", s.State, s.Reason)
	}
	t.Run("OneFileUploadedIsASlideOfItsOwn", func(t *testing.T) {
		// Others of its series lie in the same store, and must not become part of it.
		sizes := map[int]bool{}
		for _, file := range found[:3] {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			one, err := b.Upload(t.Context(), filepath.Base(file), 0, bytes.NewReader(raw))
			if err != nil {
				t.Fatal(err)
			}
			if len(one.Slide.Levels) != 1 || sizes[one.Slide.Width] {
				t.Errorf("%+v", one.Slide)
			}
			sizes[one.Slide.Width] = true
			if s := b.work(t, one.Slide.ID); !s.State.Done() || s.State == coverslip.Failed {
				t.Errorf("%s: %s", s.State, s.Reason)
			}
		}
	})
}
