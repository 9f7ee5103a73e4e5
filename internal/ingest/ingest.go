// Package ingest is the way of the data: it takes a slide from its bytes to its embedding. It
// registers slides (a path, or an upload), and it is the work behind every job of the queue: mask,
// plan, encode, bag, aggregate, embedding.
//
// It joins the stages and the store, which do not know each other; each stage is a plain function
// elsewhere (tiler, encoder, slidessl) and each thing kept has its place elsewhere (storage).
//
// Everything it does may be done twice: what is there already is found, not made again, and nothing
// is visible before it is whole. A database row is written after the blob it speaks of.
package ingest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"

	"github.com/jackc/pgx/v5"

	"coverslip"
	"coverslip/encoder"
	"coverslip/slidessl"
	"coverslip/storage"
	"coverslip/storage/blob"
	"coverslip/storage/queue"
	"coverslip/tiler"
	"coverslip/tiler/tissue"
)

// Queue adds jobs in the caller's transaction, and holds a job for the one who works on it: Hold fails
// where it was taken away, and else keeps it from being taken until the transaction ends.
type Queue interface {
	Enqueue(ctx context.Context, tx pgx.Tx, jobs ...queue.Job) ([]queue.Enqueued, error)
	Hold(ctx context.Context, tx pgx.Tx, job int64) error
}

// Ingest holds what every slide is processed with. It is safe for concurrent use.
type Ingest struct {
	DB         *storage.DB
	Queue      Queue
	Blobs      blob.Store
	Encoder    encoder.Encoder     // nil in a process that only registers slides
	Model      coverslip.Model     // of the encoder
	Aggregator slidessl.Aggregator // of the jobs it adds, beside the mean, which every slide gets
	// FindAggregator, where it is set, finds another that a job asks for.
	FindAggregator func(ctx context.Context, name string) (slidessl.Aggregator, error)
	Plan           coverslip.PlanParams // MPPOfSlide is each slide's own; Budget is of the jobs it adds
	Mask           tissue.Params
	Spool          string // a folder for files on their way: uploads, bags
	Workers        int    // tiles encoded at once; 0 is one per core
	Checkpoint     int    // tiles after which what is encoded is kept in case this process dies; 0 is 512
	Log            *slog.Logger
	Meter          *Meter // nil counts nothing

	// Progress, if set, is told how many of a slide's tiles are encoded. It is called from the
	// goroutine that encodes the slide and must return soon.
	Progress func(id coverslip.SlideID, done, total int)

	attempt queue.Attempt // that this copy works for; zero outside a job
	read    bool          // the attempt has read the slide's bytes whole: they are what its id says
}

// DefaultPlan is how a slide is cut for an encoder unless somebody says otherwise: the encoder's own
// tile size and resolution, no overlap, a quarter of a tile tissue.
func DefaultPlan(m coverslip.Model) coverslip.PlanParams {
	return coverslip.PlanParams{MPP: m.TileMPP, Size: m.TileSize, MinTissue: 0.25}
}

// BagKey names a bag by what determines its content: the slide, how it is cut and read, the mask, the
// encoder and, of a bag of views, how they are made. Equal keys mean equal bytes, on one kind of
// processor.
func BagKey(slide coverslip.SlideID, plan coverslip.PlanParams, mask tissue.Params, enc coverslip.Model, views *coverslip.Views) string {
	raw, err := json.Marshal(struct {
		Slide         coverslip.SlideID
		Plan          coverslip.PlanParams
		Mask          tissue.Params
		Reader        string
		Resampler     string
		Match         float64
		EncoderSHA256 string
		EncoderSpec   string           `json:",omitempty"`
		Views         *coverslip.Views `json:",omitempty"`
	}{slide, plan, mask, tiler.Reader, tiler.Resampler, tiler.MatchTolerance, enc.SHA256, enc.SpecSHA256, views})
	if err != nil {
		panic("ingest: a bag's key: " + err.Error()) // plain numbers and texts always marshal
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// BagBlob is where a bag's file lies in the blob store.
func BagBlob(key string) string { return "bags/" + key + ".safetensors" }

// slideBlob is where an uploaded slide's bytes lie in the blob store.
func slideBlob(id coverslip.SlideID) string { return "slides/" + string(id) }

// planOf is the plan for one slide: what everybody gets, the budget its job gives it, and the user's
// word on its resolution.
func (in *Ingest) planOf(s coverslip.Slide, budget coverslip.Budget) coverslip.PlanParams {
	p := in.Plan
	p.Budget = budget
	if s.MPP.Source == coverslip.MPPUser {
		p.MPPOfSlide = s.MPP.Value
	}
	return p
}

// Bag returns the record of the bag that a slide's embedding comes from, or that shows that it has no
// tissue; NotFound before there is one.
func (in *Ingest) Bag(ctx context.Context, s coverslip.Slide) (coverslip.Bag, error) {
	e, err := in.Embedding(ctx, s.ID)
	if there, err := found(err); err != nil {
		return coverslip.Bag{}, err
	} else if there {
		return in.DB.Bag(ctx, e.Bag)
	}
	return in.bag(ctx, s, in.Plan.Budget)
}

// bag returns the record of the bag as it would be made now, or of the bag of all tiles, which serves
// any budget.
func (in *Ingest) bag(ctx context.Context, s coverslip.Slide, budget coverslip.Budget) (coverslip.Bag, error) {
	all := in.planOf(s, coverslip.Budget{})
	b, err := in.DB.Bag(ctx, BagKey(s.ID, all, in.Mask, in.Model, nil))
	if budget == (coverslip.Budget{}) || coverslip.KindOf(err) != coverslip.NotFound {
		return b, err
	}
	return in.DB.Bag(ctx, BagKey(s.ID, in.planOf(s, budget), in.Mask, in.Model, nil))
}

// Embedding returns a slide's embedding under this encoder and aggregator; NotFound where it has none.
func (in *Ingest) Embedding(ctx context.Context, id coverslip.SlideID) (coverslip.Embedding, error) {
	return in.DB.Embedding(ctx, id, in.Model.Name, in.Aggregator.Model().Name)
}

// Dim is the length of an embedding.
func (in *Ingest) Dim() int {
	return cmp.Or(in.Aggregator.Model().Dim, in.Model.Dim)
}

// embedded reports whether the slide has its embedding from exactly the bag it would be given now.
func (in *Ingest) embedded(ctx context.Context, s coverslip.Slide) (bool, error) {
	if s.State != coverslip.Embedded && s.State != coverslip.NoTissue {
		return false, nil
	}
	bag, err := in.bag(ctx, s, in.Plan.Budget)
	if ok, err := found(err); !ok || s.State == coverslip.NoTissue {
		return ok, err
	}
	e, err := in.Embedding(ctx, s.ID)
	if ok, err := found(err); !ok {
		return false, err
	}
	return e.Bag == bag.Key, nil
}

// found turns the outcome of a look-up into whether the thing is there.
func found(err error) (bool, error) {
	if coverslip.KindOf(err) == coverslip.NotFound {
		return false, nil
	}
	return err == nil, err
}
