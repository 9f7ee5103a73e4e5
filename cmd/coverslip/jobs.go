package main

import (
	"fmt"
	"time"

	"coverslip"
	"coverslip/storage/queue"
)

type jobsCmd struct {
	List   jobsListCmd   `cmd:"" default:"withargs" help:"List jobs, the newest first."`
	Status jobsStatusCmd `cmd:"" help:"Say how long the queues are, and whether they are paused."`
	Retry  jobsRetryCmd  `cmd:"" help:"Run a job again that ended, or those of slides that failed."`
	Cancel jobsCancelCmd `cmd:"" help:"End a job that waits or runs, or those of a cohort."`
	Pause  jobsPauseCmd  `cmd:"" help:"Start no more jobs; those that run go on."`
	Resume jobsResumeCmd `cmd:"" help:"Start jobs again."`
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
  coverslip jobs retry 17
  coverslip jobs retry --cohort brca --kind unavailable
  coverslip jobs pause`
}

// Run lists jobs.
func (c *jobsListCmd) Run(e *env) error {
	return withQueue(e, &c.dataFlags, func(q *queue.Queue) error {
		list, err := q.List(e, queue.Filter{States: c.State, Limit: c.Limit})
		if err != nil {
			return err
		}
		rows := []string{jobHeading}
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

const jobHeading = "job\tqueue\tpriority\tstate\tattempt\tage\tof\terror"

func jobRow(j queue.Status) string {
	return fmt.Sprintf("%d\t%s\t%d\t%s\t%d of %d\t%s\t%s\t%s", j.ID, j.Queue, j.Priority, j.State, j.Attempt, j.MaxAttempts,
		time.Since(j.Created).Round(time.Second), jobOf(j), j.Error)
}

// jobOf says what a job is about.
func jobOf(j queue.Status) string {
	switch {
	case j.Stage != nil:
		return "study " + j.Stage.Study
	case j.Task != nil:
		return fmt.Sprintf("task %d: %s", j.Task.ID, j.Task.Verb)
	}
	return j.Slide.Short()
}

type jobsStatusCmd struct{ dataFlags }

// Help is shown by coverslip jobs status --help.
func (jobsStatusCmd) Help() string { return "Example:\n  coverslip jobs status" }

// Run says how the queues stand.
func (c *jobsStatusCmd) Run(e *env) error {
	return withQueue(e, &c.dataFlags, func(q *queue.Queue) error { return e.depths(q.Depths(e)) })
}

func (e *env) depths(depths []queue.Depth, err error) error {
	if err != nil {
		return err
	}
	rows := []string{"queue\twaiting\trunning\t"}
	for _, d := range depths {
		if e.json {
			if err := e.emit(d); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, fmt.Sprintf("%s\t%d\t%d\t%s", d.Queue, d.Waiting, d.Running, map[bool]string{true: "paused"}[d.Paused]))
	}
	if !e.json {
		e.table(rows...)
	}
	return nil
}

type jobsRetryCmd struct {
	Job    int64  `arg:"" optional:"" help:"Its number. None: those of all slides that failed."`
	Cohort string `placeholder:"NAME" help:"Only of slides in this cohort."`
	Kind   string `placeholder:"KIND" help:"Only of slides that failed in this way, as coverslip cohorts progress shows it: unavailable, not_found, invalid …"`
	dataFlags
}

// Help is shown by coverslip jobs retry --help.
func (jobsRetryCmd) Help() string {
	return `Examples:
  coverslip jobs retry 17
  coverslip jobs retry --cohort brca
  coverslip jobs retry --cohort brca --kind unavailable

Jobs that ended more than a week ago are forgotten: coverslip encode asks for their slides anew.`
}

// Run puts jobs back.
func (c *jobsRetryCmd) Run(e *env) error {
	if c.Job > 0 && (c.Cohort != "" || c.Kind != "") {
		return &usageError{"give the number of a job, or --cohort and --kind"}
	}
	return withQueue(e, &c.dataFlags, func(q *queue.Queue) error {
		if c.Job > 0 {
			j, err := q.Retry(e, c.Job)
			return e.job(j, err)
		}
		n, err := q.RetryFailed(e, queue.Which{Cohort: c.Cohort, Kind: coverslip.Kind(c.Kind)})
		return e.several("put back", n, err)
	})
}

type jobsCancelCmd struct {
	Job    int64  `arg:"" optional:"" help:"Its number."`
	Cohort string `placeholder:"NAME" help:"All of slides in this cohort."`
	dataFlags
}

// Help is shown by coverslip jobs cancel --help.
func (jobsCancelCmd) Help() string {
	return "Examples:\n  coverslip jobs cancel 17\n  coverslip jobs cancel --cohort brca"
}

// Run ends jobs.
func (c *jobsCancelCmd) Run(e *env) error {
	if (c.Job > 0) == (c.Cohort != "") {
		return &usageError{"give the number of a job, or --cohort"}
	}
	return withQueue(e, &c.dataFlags, func(q *queue.Queue) error {
		if c.Job > 0 {
			j, err := q.Cancel(e, c.Job)
			return e.job(j, err)
		}
		n, err := q.CancelAll(e, c.Cohort)
		return e.several("cancelled", n, err)
	})
}

type jobsPauseCmd struct {
	queueFlag
	dataFlags
}

type queueFlag struct {
	Queue string `enum:"all,embed,views,study,task" default:"all" help:"Which queue: embed, views, study, task, or all (${default})."`
}

func (f queueFlag) each(do func(string) error) error {
	for _, name := range queue.Names {
		if f.Queue == name || f.Queue == "all" {
			if err := do(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Help is shown by coverslip jobs pause --help.
func (jobsPauseCmd) Help() string {
	return "Examples:\n  coverslip jobs pause\n  coverslip jobs pause --queue views"
}

// Run pauses.
func (c *jobsPauseCmd) Run(e *env) error {
	return withQueue(e, &c.dataFlags, func(q *queue.Queue) error {
		if err := c.each(func(name string) error { return q.Pause(e, name) }); err != nil {
			return err
		}
		return e.depths(q.Depths(e))
	})
}

type jobsResumeCmd struct {
	queueFlag
	dataFlags
}

// Help is shown by coverslip jobs resume --help.
func (jobsResumeCmd) Help() string { return "Example:\n  coverslip jobs resume" }

// Run resumes.
func (c *jobsResumeCmd) Run(e *env) error {
	return withQueue(e, &c.dataFlags, func(q *queue.Queue) error {
		if err := c.each(func(name string) error { return q.Resume(e, name) }); err != nil {
			return err
		}
		return e.depths(q.Depths(e))
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
	e.table(jobHeading, jobRow(j))
	return nil
}

func (e *env) several(what string, n int, err error) error {
	switch {
	case err != nil:
		return err
	case e.json:
		return e.emit(map[string]int{"jobs": n})
	}
	e.printf("%s %s\n", count(n, "job"), what)
	return nil
}
