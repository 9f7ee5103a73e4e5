package ingest

import (
	"context"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/queue"
)

// Encode queues the work on slides that are registered: their bags and embeddings under the budget of
// in.Plan, or, with views, their bags of views. It says of each slide in turn which job does it: 0 where that
// is there already. All or none.
func (in *Ingest) Encode(ctx context.Context, slides []coverslip.Slide, views *coverslip.Views, priority int) ([]queue.Enqueued, error) {
	out := make([]queue.Enqueued, len(slides))
	done, err := in.done(ctx, slides, views)
	if err != nil {
		return nil, err
	}
	var jobs []queue.Job
	var of []int
	for i, slide := range slides {
		if done[i] {
			continue
		}
		job := in.job(slide.ID)
		if views != nil {
			job = queue.Job{Slide: slide.ID, Encoder: in.Model.Name, Views: views}
		}
		job.Priority = priority
		jobs, of = append(jobs, job), append(of, i)
	}
	if len(jobs) == 0 {
		return out, nil
	}
	err = in.DB.InTx(ctx, func(tx *storage.Tx) error {
		queued, err := in.Queue.Enqueue(ctx, tx.Pgx(), jobs...)
		for k, q := range queued {
			out[of[k]] = q
		}
		return err
	})
	return out, err
}

// done says of each slide whether what Encode would make is there; see embedded, which asks of one.
func (in *Ingest) done(ctx context.Context, slides []coverslip.Slide, views *coverslip.Views) ([]bool, error) {
	done := make([]bool, len(slides))
	if views != nil {
		keys := make([]string, len(slides))
		for i, s := range slides {
			keys[i] = BagKey(s.ID, in.planOf(s, coverslip.Budget{}), in.Mask, in.Model, views)
		}
		there, err := in.DB.BagsAmong(ctx, keys)
		for i, key := range keys {
			done[i] = there[key]
		}
		return done, err
	}
	all, budgeted := make([]string, len(slides)), make([]string, len(slides))
	for i, s := range slides {
		all[i] = BagKey(s.ID, in.planOf(s, coverslip.Budget{}), in.Mask, in.Model, nil)
		budgeted[i] = BagKey(s.ID, in.planOf(s, in.Plan.Budget), in.Mask, in.Model, nil)
	}
	there, err := in.DB.BagsAmong(ctx, append(all[:len(all):len(all)], budgeted...))
	if err != nil {
		return nil, err
	}
	from, err := in.DB.BagsOfEmbeddings(ctx, in.Model.Name, in.Aggregator.Model().Name)
	if err != nil {
		return nil, err
	}
	for i, s := range slides {
		key := budgeted[i]
		if there[all[i]] {
			key = all[i]
		}
		done[i] = there[key] && (s.State == coverslip.NoTissue || s.State == coverslip.Embedded && from[s.ID] == key)
	}
	return done, nil
}
