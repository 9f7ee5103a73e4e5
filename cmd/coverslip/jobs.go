package main

import (
	"fmt"
	"time"

	"coverslip/storage/queue"
)

type jobsCmd struct {
	List   jobsListCmd   `cmd:"" default:"withargs" help:"List jobs, the newest first."`
	Retry  jobsRetryCmd  `cmd:"" help:"Run a job again that ended, or that waits for its next try."`
	Cancel jobsCancelCmd `cmd:"" help:"End a job that waits or runs."`
}

type jobsListCmd struct {
	State []string `placeholder:"STATE" help:"Only in these states: available, running, retryable, completed, cancelled, discarded."`
	Limit int      `default:"50" help:"At most so many (${default})."`
	dataFlags
}

// Help is shown by coverslip jobs --help.
func (jobsListCmd) Help() string {
	return `Examples:
  coverslip jobs --state running
  coverslip jobs retry 17`
}

// Run lists jobs.
func (c *jobsListCmd) Run(e *env) error {
	return withQueue(e, &c.dataFlags, func(q *queue.Queue) error {
		list, err := q.List(e, queue.Filter{States: c.State, Limit: c.Limit})
		if err != nil {
			return err
		}
		rows := []string{"job\tstate\tattempt\tage\tslide\terror"}
		for _, j := range list {
			if e.json {
				if err := e.emit(j); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, jobRow(j))
		}
		switch {
		case e.json:
		case len(list) == 0:
			e.printf("no jobs\n")
		default:
			e.table(rows...)
		}
		return nil
	})
}

func jobRow(j queue.Status) string {
	return fmt.Sprintf("%d\t%s\t%d of %d\t%s\t%s\t%s", j.ID, j.State, j.Attempt, j.MaxAttempts,
		time.Since(j.Created).Round(time.Second), j.Slide.Short(), j.Error)
}

type jobsRetryCmd struct {
	Job int64 `arg:"" help:"Its number."`
	dataFlags
}

// Help is shown by coverslip jobs retry --help.
func (jobsRetryCmd) Help() string { return "Example:\n  coverslip jobs retry 17" }

// Run puts the job back.
func (c *jobsRetryCmd) Run(e *env) error {
	return withQueue(e, &c.dataFlags, func(q *queue.Queue) error {
		j, err := q.Retry(e, c.Job)
		return e.job(j, err)
	})
}

type jobsCancelCmd struct {
	Job int64 `arg:"" help:"Its number."`
	dataFlags
}

// Help is shown by coverslip jobs cancel --help.
func (jobsCancelCmd) Help() string { return "Example:\n  coverslip jobs cancel 17" }

// Run ends the job.
func (c *jobsCancelCmd) Run(e *env) error {
	return withQueue(e, &c.dataFlags, func(q *queue.Queue) error {
		j, err := q.Cancel(e, c.Job)
		return e.job(j, err)
	})
}

func withQueue(e *env, data *dataFlags, do func(*queue.Queue) error) error {
	p, err := data.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	q, err := queue.New(p.DB.Pool(), queue.Config{Logger: e.log})
	if err != nil {
		return err
	}
	return do(q)
}

func (e *env) job(j queue.Status, err error) error {
	switch {
	case err != nil:
		return err
	case e.json:
		return e.emit(j)
	}
	e.table("job\tstate\tattempt\tage\tslide\terror", jobRow(j))
	return nil
}
