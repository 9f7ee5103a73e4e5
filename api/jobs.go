package api

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// Jobs is the work in the queues. A job or a queue that is not there is NotFound.
type Jobs interface {
	// Jobs returns at most q.Limit jobs, the newest first.
	Jobs(ctx context.Context, q JobQuery) ([]Job, error)
	Retry(ctx context.Context, id int64) (Job, error)
	Cancel(ctx context.Context, id int64) (Job, error)
	// RetryFailed puts back the jobs of slides that failed, in a cohort and with a kind of error where those are
	// not empty; CancelAll ends those of a cohort. Both return how many there were.
	RetryFailed(ctx context.Context, cohort string, kind coverslip.Kind) (int, error)
	CancelAll(ctx context.Context, cohort string) (int, error)
	Queues(ctx context.Context) ([]JobQueue, error)
	Pause(ctx context.Context, queue string) error
	Resume(ctx context.Context, queue string) error
}

// JobQuery asks for one page of jobs.
type JobQuery struct {
	State  string // only jobs in this state; empty for all
	Before int64  // only jobs with smaller numbers; 0 for the first page
	Limit  int    // at most so many
}

// Job is one slide's work, or a stage of a study, or a task.
type Job struct {
	ID          int64
	Slide       coverslip.SlideID // empty of stages and tasks
	Study       string            // whose stage it is
	Task        int64             // which task it is
	Queue       string
	Encoder     string
	Priority    int
	State       string
	Attempt     int
	MaxAttempts int
	Created     time.Time
	Scheduled   time.Time
	Finished    *time.Time
	Error       string
}

// JobQueue is how a queue stands.
type JobQueue struct {
	Queue   string
	Paused  bool
	Waiting int
	Running int
}

func (s *server) jobRoutes() {
	op := func(method, path, id, summary, description string) huma.Operation {
		return huma.Operation{Method: method, Path: path, OperationID: id, Tags: []string{"jobs"}, Summary: summary, Description: description}
	}
	find := slices.Concat([]coverslip.Kind{coverslip.NotFound}, stumbles)
	register(s.api, op(http.MethodGet, "/v1/jobs", "list-jobs", "List jobs", "The newest first. Jobs that ended well are kept for a day, others for a week."),
		jobList{Jobs: []jobView{exampleJob}}, stumbles, s.listJobs)
	register(s.api, op(http.MethodPost, "/v1/jobs/{job}/retry", "retry-job", "Run a job again", "One that ended, or that waits for its next attempt. One that runs is left alone."), exampleJob, find, s.retryJob)
	register(s.api, op(http.MethodPost, "/v1/jobs/{job}/cancel", "cancel-job", "End a job", "At once if it waits, else when its worker notices."), exampleJob, find, s.cancelJob)
	register(s.api, op(http.MethodPost, "/v1/jobs/retry", "retry-failed", "Run the jobs of failed slides again", "Those that failed in one way, or in any; of one cohort, or of all."), jobsView{2}, stumbles, s.retryFailed)
	register(s.api, op(http.MethodPost, "/v1/jobs/cancel", "cancel-cohort", "End the jobs of a cohort", ""), jobsView{2}, stumbles, s.cancelAll)
	register(s.api, op(http.MethodGet, "/v1/queues", "list-queues", "How the queues stand", "`embed` leads to embeddings, `views` to bags of augmented views; `study` has stages of studies, `task` the tasks of `/v1/tasks`."), exampleQueues, stumbles, s.listQueues)
	register(s.api, op(http.MethodPost, "/v1/queues/{queue}/pause", "pause-queue", "Start no more jobs of a queue", "Jobs that run go on."), exampleQueues, stumbles, s.pauseQueue)
	register(s.api, op(http.MethodPost, "/v1/queues/{queue}/resume", "resume-queue", "Start jobs of a queue again", ""), exampleQueues, stumbles, s.resumeQueue)
}

type jobView struct {
	ID          int64             `json:"id" doc:"The job's number"`
	Slide       coverslip.SlideID `json:"slide,omitempty" doc:"Whose work it is"`
	Study       string            `json:"study,omitempty" doc:"Instead of a slide: the study whose stage it is"`
	Task        int64             `json:"task,omitempty" doc:"Instead of a slide: the number of the task it does"`
	Queue       string            `json:"queue" doc:"Its queue" enum:"embed,views,study,task"`
	Encoder     string            `json:"encoder" doc:"Under which encoder; empty of stages and tasks"`
	Priority    int               `json:"priority" doc:"1 comes first, 4 last"`
	State       string            `json:"state" doc:"Where it stands" enum:"available,pending,scheduled,running,retryable,completed,cancelled,discarded"`
	Attempt     int               `json:"attempt" doc:"How often it was tried"`
	MaxAttempts int               `json:"max_attempts" doc:"How often it will be"`
	Created     time.Time         `json:"created" doc:"When it was asked for"`
	Scheduled   time.Time         `json:"scheduled" doc:"When it runs, or was to run"`
	Finished    *time.Time        `json:"finished,omitempty" doc:"When it ended"`
	Error       string            `json:"error,omitempty" doc:"Of the last attempt that failed"`
}

type jobsInput struct {
	State  string `query:"state" doc:"Only jobs in this state" enum:"available,pending,scheduled,running,retryable,completed,cancelled,discarded"`
	Limit  int    `query:"limit" doc:"Jobs on a page" minimum:"1" maximum:"1000" default:"100"`
	Cursor string `query:"cursor" doc:"The next member of the page before" pattern:"^[0-9]{1,18}$"`
}

type jobList struct {
	Jobs []jobView `json:"jobs" nullable:"false" doc:"One page"`
	Next string    `json:"next,omitempty" doc:"Cursor of the next page; absent on the last"`
}

type jobListOutput struct{ Body jobList }

func (s *server) listJobs(ctx context.Context, in *jobsInput) (*jobListOutput, error) {
	before, _ := strconv.ParseInt(in.Cursor, 10, 64) // the pattern was checked
	found, err := s.cfg.Jobs.Jobs(ctx, JobQuery{State: in.State, Before: before, Limit: in.Limit + 1})
	if err != nil {
		return nil, err
	}
	out := &jobListOutput{}
	if len(found) > in.Limit {
		found = found[:in.Limit]
		out.Body.Next = strconv.FormatInt(found[in.Limit-1].ID, 10)
	}
	out.Body.Jobs = each(found, func(j Job) jobView { return jobView(j) })
	return out, nil
}

// OneJob is the number in the address of every route below a job.
type OneJob struct {
	ID int64 `path:"job" doc:"The job's number" minimum:"1" example:"17"`
}

type jobOutput struct{ Body jobView }

func (s *server) retryJob(ctx context.Context, in *OneJob) (*jobOutput, error) {
	j, err := s.cfg.Jobs.Retry(ctx, in.ID)
	return &jobOutput{jobView(j)}, err
}

func (s *server) cancelJob(ctx context.Context, in *OneJob) (*jobOutput, error) {
	j, err := s.cfg.Jobs.Cancel(ctx, in.ID)
	return &jobOutput{jobView(j)}, err
}

type jobsView struct {
	Jobs int `json:"jobs" doc:"How many there were"`
}

type jobsOutput struct{ Body jobsView }

type retryInput struct {
	Cohort string         `query:"cohort" doc:"Only of slides in this cohort" maxLength:"200"`
	Kind   coverslip.Kind `query:"kind" doc:"Only of slides that failed in this way" enum:"invalid,unsupported,not_found,conflict,too_large,full,unavailable,environment,canceled,internal"`
}

func (s *server) retryFailed(ctx context.Context, in *retryInput) (*jobsOutput, error) {
	n, err := s.cfg.Jobs.RetryFailed(ctx, in.Cohort, in.Kind)
	return &jobsOutput{jobsView{n}}, err
}

type cancelInput struct {
	Cohort string `query:"cohort" doc:"Whose jobs" required:"true" minLength:"1" maxLength:"200"`
}

func (s *server) cancelAll(ctx context.Context, in *cancelInput) (*jobsOutput, error) {
	n, err := s.cfg.Jobs.CancelAll(ctx, in.Cohort)
	return &jobsOutput{jobsView{n}}, err
}

type queueView struct {
	Queue   string `json:"queue" doc:"Its name" enum:"embed,views,study,task"`
	Paused  bool   `json:"paused" doc:"No job of it is started"`
	Waiting int    `json:"waiting" doc:"Jobs that wait for a worker, or for their next attempt"`
	Running int    `json:"running" doc:"Jobs that workers have"`
}

type queueList struct {
	Queues []queueView `json:"queues" nullable:"false" doc:"All of them"`
}

type queuesOutput struct{ Body queueList }

func (s *server) listQueues(ctx context.Context, _ *struct{}) (*queuesOutput, error) {
	all, err := s.cfg.Jobs.Queues(ctx)
	return &queuesOutput{queueList{each(all, func(q JobQueue) queueView { return queueView(q) })}}, err
}

// OneQueue is the name in the address of the routes below a queue.
type OneQueue struct {
	Name string `path:"queue" doc:"The queue's name" enum:"embed,views,study,task" example:"embed"`
}

func (s *server) pauseQueue(ctx context.Context, in *OneQueue) (*queuesOutput, error) {
	if err := s.cfg.Jobs.Pause(ctx, in.Name); err != nil {
		return nil, err
	}
	return s.listQueues(ctx, nil)
}

func (s *server) resumeQueue(ctx context.Context, in *OneQueue) (*queuesOutput, error) {
	if err := s.cfg.Jobs.Resume(ctx, in.Name); err != nil {
		return nil, err
	}
	return s.listQueues(ctx, nil)
}
