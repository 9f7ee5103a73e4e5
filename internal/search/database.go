package search

import (
	"context"
	"fmt"
	"sync/atomic"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/vector"
)

// database finds the nearest embeddings of a model through pgvector: for collections that do not fit into memory.
// Its answers are vector.Index's, but for the rounding of similarities.
type database struct {
	db    *storage.DB
	model Model
	like  *vector.Index // empty, of the embeddings' length
	n     atomic.Int64  // embeddings seen, about
}

// Len is about the number of vectors.
func (d *database) Len() int { return int(d.n.Load()) }

// Upsert has nothing to do: the vector is there already.
func (d *database) Upsert(string, []float32) error {
	d.n.Add(1)
	return nil
}

// Remove has nothing to do either.
func (d *database) Remove(string) {}

// Find is vector.Index's.
func (d *database) Find(ctx context.Context, q []float32, k int, among vector.Among) ([]vector.Hit, error) {
	if err := d.like.Check(q, k); err != nil {
		return nil, err
	}
	filter := storage.NearestFilter{Limit: k}
	if among.IDs != nil {
		filter.Slides = make([]coverslip.SlideID, len(among.IDs))
		for i, id := range among.IDs {
			filter.Slides[i] = coverslip.SlideID(id)
		}
	}
	if h := among.After; h != nil {
		filter.After = &storage.Near{Slide: coverslip.SlideID(h.ID), Similarity: h.Similarity}
	}
	var hits []vector.Hit
	for {
		near, err := d.db.Nearest(ctx, d.model.Encoder, d.model.Aggregator, q, filter)
		if err != nil {
			return nil, coverslip.Doing(fmt.Sprintf("search among %d embeddings", d.Len()), err)
		}
		for i := range near {
			if id := string(near[i].Slide); len(hits) < k && (among.Keep == nil || among.Keep(id)) {
				hits = append(hits, vector.Hit{ID: id, Similarity: near[i].Similarity})
			}
		}
		if len(hits) == k || len(near) < filter.Limit {
			return hits, nil
		}
		filter.After = &near[len(near)-1]
		filter.Limit *= 4 // few are let through
	}
}
