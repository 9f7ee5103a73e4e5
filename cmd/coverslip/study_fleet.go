package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"coverslip"
	"coverslip/internal/studies"
	"coverslip/slidessl/study"
	"coverslip/storage"
	"coverslip/storage/queue"
)

// stagesAtOnce is how many stages of a study wait for the fleet's workers.
const stagesAtOnce = 64

// fleetMaker lets the workers of a fleet make stages. A worker that dies is replaced by another one, and one that is stopped
// hands its stage back.
type fleetMaker struct {
	db    *storage.DB
	queue *queue.Queue
	of    queue.Stage
}

// Make queues a stage and waits for it.
func (s fleetMaker) Make(ctx context.Context, stage study.Stage) error {
	of := s.of
	of.Key = stage.Key
	var job int64
	if err := s.db.InTx(ctx, func(tx *storage.Tx) error {
		queued, err := s.queue.Enqueue(ctx, tx.Pgx(), queue.Job{Stage: &of})
		if err == nil {
			job = queued[0].ID
		}
		return err
	}); err != nil {
		return err
	}
	status, err := s.queue.Wait(ctx, job)
	if err != nil || status.State == "completed" {
		return err
	}
	return &coverslip.Error{Kind: coverslip.Invalid, Op: fmt.Sprintf("job %d", job), Err: errors.New(status.Error)}
}

// stage makes one as a job of the queue.
func (w *worker) stage(ctx context.Context, of queue.Stage) error {
	kept, err := w.p.DB.Study(ctx, of.Study, of.Quick)
	if err != nil {
		return err
	}
	var plan study.Plan
	f, err := study.Parse([]byte(kept.Text))
	if err == nil {
		err = json.Unmarshal(kept.Plan, &plan)
	}
	at := slices.IndexFunc(plan.Stages, func(s study.Stage) bool { return s.Key == of.Key })
	if err == nil && at < 0 {
		err = errors.New("it has no such stage any more")
	}
	if err != nil {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "make a stage", Path: "study " + of.Study, Err: err, Hint: "run the study again, with workers of its version"}
	}
	// Whatever else this process works on, a stage has a platform of its own: its encoder is another, its bags are made by
	// the queue, and the spool is not swept under others' hands.
	own, e := *w.p, *w.e
	own.server, e.Context = nil, ctx
	m := &studies.Maker{File: f, Tiles: of.Tiles, Shared: true}
	var once sync.Once
	m.Progress = func(s study.Stage, done, total int) {
		once.Do(func() {
			w.e.log.Info("a stage is under way", "kind", s.Kind, "stage", s.Key[:8], "done", done, "of", total)
		})
	}
	c := &studyRunCmd{Provider: string(w.p.on)}
	c.equip(&e, &own, m)
	if m.Dir, err = stageFolder(&own); err != nil {
		return err
	}
	there, err := m.Has(ctx, []string{of.Key})
	if err != nil || there[of.Key] {
		return err
	}
	return m.Make(ctx, plan.Stages[at])
}
