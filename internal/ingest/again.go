package ingest

import (
	"context"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/queue"
)

// Encode queues the work on a slide that is registered: its bag and embedding under the budget of
// in.Plan, or, with views, its bag of views. queued is false where that is there already; job is 0
// then, and otherwise the number of the job that does it.
func (in *Ingest) Encode(ctx context.Context, slide coverslip.Slide, views *coverslip.Views) (job int64, queued bool, err error) {
	wanted := in.job(slide.ID)
	if views != nil {
		wanted = queue.Job{Slide: slide.ID, Encoder: in.Model.Name, Views: views}
	}
	err = in.DB.InTx(ctx, func(tx *storage.Tx) error {
		var done bool
		var err error
		if views == nil {
			done, err = in.embedded(ctx, slide)
		} else {
			done, err = found(second(in.DB.Bag(ctx, BagKey(slide.ID, in.planOf(slide, coverslip.Budget{}), in.Mask, in.Model, views))))
		}
		if err != nil || done {
			return err
		}
		job, queued, err = in.Queue.Enqueue(ctx, tx.Pgx(), wanted)
		return err
	})
	return job, queued, err
}
