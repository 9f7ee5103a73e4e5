package ingest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"coverslip"
	"coverslip/storage/bagfile"
	"coverslip/storage/blob"
)

func (in *Ingest) checkpointRows() int { return cmp.Or(in.Checkpoint, 512) }

// checkpoints keep the features of a bag that is being made, a blob for every so many rows, so that
// whoever goes on after its process died encodes at most that many again. A bag's key determines its
// rows, so two processes that write the same checkpoint write the same bytes.
type checkpoints struct {
	blobs blob.Store
	key   string // of the bag
	dim   int
	rows  int            // of a checkpoint
	told  func(rows int) // what is kept, as it grows
}

func (c *checkpoints) name(first int) string {
	return fmt.Sprintf("checkpoints/%s/%010d", c.key, first)
}

// save keeps rows first to first+c.rows-1.
func (c *checkpoints) save(ctx context.Context, first int, features []float32) error {
	raw := make([]byte, 0, 4*len(features))
	for _, v := range features {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
	}
	if err := c.blobs.Put(ctx, c.name(first), bytes.NewReader(raw), int64(len(raw))); err != nil {
		return err
	}
	c.told(first + c.rows)
	return nil
}

// load hands over the rows that are there, from the first on without a gap and at most n, and says how
// many they were.
func (c *checkpoints) load(ctx context.Context, n int, each func(row int, features []float32) error) (rows int, err error) {
	raw := make([]byte, 4*c.dim*c.rows)
	features := make([]float32, c.dim*c.rows)
	for ; rows+c.rows <= n; rows += c.rows {
		if there, err := found(c.read(ctx, rows, raw)); err != nil || !there {
			return rows, err
		}
		for i := range features {
			features[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
		for i := range c.rows {
			if err := each(rows+i, features[i*c.dim:][:c.dim]); err != nil {
				return rows, err
			}
		}
	}
	return rows, nil
}

func (c *checkpoints) read(ctx context.Context, first int, raw []byte) error {
	b, err := c.blobs.Open(ctx, c.name(first))
	if err != nil {
		return err
	}
	defer b.Close()
	if b.Size() != int64(len(raw)) { // of a version that kept other numbers of rows
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "read checkpoint", Path: c.name(first), Err: errors.New("it is of another size")}
	}
	_, err = b.ReadAt(raw, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// remove forgets them all, once the bag is published.
func (c *checkpoints) remove(ctx context.Context) error {
	for info, err := range c.blobs.List(ctx, "checkpoints/"+c.key+"/") {
		if err != nil {
			return err
		}
		if err := c.blobs.Delete(ctx, info.Key); err != nil {
			return err
		}
	}
	return nil
}

// earlier is a bag of the same slide, cut and encoded in the same way under another budget: its
// features are taken over. A nil earlier has none.
type earlier struct {
	file blob.Blob
	bag  *bagfile.Reader
	row  map[[2]int64]int // by the tile's corner
}

// earlier finds the longest such bag; nil when there is none.
func (in *Ingest) earlier(ctx context.Context, slide coverslip.Slide, plan coverslip.PlanParams) (*earlier, error) {
	bags, err := in.DB.Bags(ctx, slide.ID, in.Model.Name)
	if err != nil {
		return nil, err
	}
	for _, b := range bags {
		same := plan
		same.Budget = b.Plan.Budget
		if b.Views != nil || b.Tiles == 0 || b.Key != BagKey(slide.ID, same, in.Mask, in.Model, nil) {
			continue
		}
		file, err := in.Blobs.Open(ctx, BagBlob(b.Key))
		if there, err := found(err); err != nil {
			return nil, err
		} else if !there {
			continue
		}
		e, err := openEarlier(file)
		if err != nil {
			_ = file.Close() // only read
			return nil, coverslip.At(BagBlob(b.Key), err)
		}
		return e, nil
	}
	return nil, nil
}

func openEarlier(file blob.Blob) (*earlier, error) {
	bag, err := bagfile.Open(file, file.Size())
	if err != nil {
		return nil, err
	}
	coords := make([]int64, 2*bag.Len())
	if err := bag.Coords(coords, 0, bag.Len()); err != nil {
		return nil, err
	}
	e := &earlier{file, bag, make(map[[2]int64]int, bag.Len())}
	for i := range bag.Len() {
		e.row[[2]int64{coords[2*i], coords[2*i+1]}] = i
	}
	return e, nil
}

func (e *earlier) has(t coverslip.Tile) bool {
	if e == nil {
		return false
	}
	_, there := e.row[[2]int64{t.X, t.Y}]
	return there
}

func (e *earlier) features(dst []float32, t coverslip.Tile) error {
	return e.bag.Features(dst, e.row[[2]int64{t.X, t.Y}], 1)
}

// Close lets go of the bag.
func (e *earlier) Close() {
	if e != nil {
		_ = e.file.Close() // only read
	}
}
