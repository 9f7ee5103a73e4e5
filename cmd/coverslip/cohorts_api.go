package main

import (
	"context"
	"io"

	"coverslip"
	"coverslip/api"
	"coverslip/internal/cohort"
	"coverslip/internal/ingest"
	"coverslip/storage"
	"coverslip/storage/queue"
)

// cohortsOf fills the API's door of that name.
type cohortsOf struct {
	*storage.DB
	in     *ingest.Ingest
	places registrar
}

func (c cohortsOf) Label(ctx context.Context, name string, table io.Reader, leaveOutMissing bool) ([]string, error) {
	kinds, err := c.LabelKinds(ctx, name)
	if err != nil {
		return nil, err
	}
	rows, err := cohort.ParseTable(table, "the table", kinds)
	if err != nil {
		return nil, err
	}
	out, err := c.in.Label(ctx, name, rows, leaveOutMissing)
	return out.Missing, err
}

func (c cohortsOf) ImportManifest(ctx context.Context, name string, manifest io.Reader, source string) (int, error) {
	m, err := cohort.ParseManifest(manifest, "the manifest")
	if err != nil {
		return 0, err
	}
	if source, err = c.places.allowed(source); err != nil {
		return 0, err
	}
	place, err := placeIn(source)
	if err != nil {
		return 0, err
	}
	refs, members, _ := references(m, place)
	out, err := c.in.Refer(ctx, name, refs, members)
	return out.Created, err
}

func (c cohortsOf) Encode(ctx context.Context, name string, priority int) (queued int, err error) {
	if _, err := c.Cohort(ctx, name); err != nil {
		return 0, err
	}
	slides, err := c.Slides(ctx, storage.SlideFilter{Cohort: name})
	if err != nil {
		return 0, err
	}
	jobs, err := c.in.Encode(ctx, slides, nil, priority)
	for _, j := range jobs {
		if j.Added {
			queued++
		}
	}
	return queued, err
}

// jobsOf fills the API's door of that name.
type jobsOf struct{ *queue.Queue }

func apiJob(s queue.Status, err error) (api.Job, error) {
	j := api.Job{ID: s.ID, Slide: s.Slide, Queue: s.Queue, Encoder: s.Encoder, Priority: s.Priority, State: s.State, Attempt: s.Attempt,
		MaxAttempts: s.MaxAttempts, Created: s.Created, Scheduled: s.Scheduled, Finished: s.Finished, Error: s.Error}
	if s.Stage != nil {
		j.Study = s.Stage.Study
	}
	if s.Task != nil {
		j.Task = s.Task.ID
	}
	return j, err
}

func (j jobsOf) Jobs(ctx context.Context, q api.JobQuery) (out []api.Job, err error) {
	f := queue.Filter{Before: q.Before, Limit: q.Limit}
	if q.State != "" {
		f.States = []string{q.State}
	}
	list, err := j.List(ctx, f)
	for _, s := range list {
		one, _ := apiJob(s, nil)
		out = append(out, one)
	}
	return out, err
}

func (j jobsOf) Retry(ctx context.Context, id int64) (api.Job, error) {
	return apiJob(j.Queue.Retry(ctx, id))
}

func (j jobsOf) Cancel(ctx context.Context, id int64) (api.Job, error) {
	return apiJob(j.Queue.Cancel(ctx, id))
}

func (j jobsOf) RetryFailed(ctx context.Context, cohort string, kind coverslip.Kind) (int, error) {
	return j.Queue.RetryFailed(ctx, queue.Which{Cohort: cohort, Kind: kind})
}

func (j jobsOf) Queues(ctx context.Context) (out []api.JobQueue, err error) {
	depths, err := j.Depths(ctx)
	for _, d := range depths {
		out = append(out, api.JobQueue(d))
	}
	return out, err
}
