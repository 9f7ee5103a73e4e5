package api

import (
	"context"
	"net/http"
	"time"

	"coverslip"

	"github.com/danielgtaylor/huma/v2"
)

// readyTimeout bounds a /readyz. Whoever asks gives up soon after.
const readyTimeout = 5 * time.Second

func (s *server) healthRoutes() {
	register(s.api, huma.Operation{Method: http.MethodGet, Path: "/healthz", OperationID: "healthz", Tags: []string{"server"},
		Summary: "Is the process alive?", Description: "Looks at nothing else."},
		healthView{OK: true}, nil,
		func(context.Context, *struct{}) (*healthOutput, error) {
			return &healthOutput{healthView{OK: true}}, nil
		})
	register(s.api, withNotReadyAnswer(s.api, huma.Operation{Method: http.MethodGet, Path: "/readyz", OperationID: "readyz", Tags: []string{"server"},
		Summary: "Can it do its work?", Description: "Asks each part the server needs; 503 when one does not answer."}),
		exampleReady, []coverslip.Kind{coverslip.Internal}, s.ready)
}

type healthView struct {
	OK bool `json:"ok" doc:"Always true; no answer means no"`
}

type healthOutput struct{ Body healthView }

type readyView struct {
	OK     bool        `json:"ok" doc:"Whether every check passed"`
	Checks []checkView `json:"checks" nullable:"false" doc:"Each part the server needs"`
}

type checkView struct {
	Name   string `json:"name" doc:"The part"`
	OK     bool   `json:"ok" doc:"Whether it answers"`
	Detail string `json:"detail,omitempty" doc:"What is wrong with it"`
	Hint   string `json:"hint,omitempty" doc:"What to do about it"`
}

type readyOutput struct {
	Status int
	Body   readyView
}

func (s *server) ready(ctx context.Context, _ *struct{}) (*readyOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	out := &readyOutput{Status: http.StatusOK, Body: readyView{OK: true, Checks: []checkView{}}}
	for _, c := range s.cfg.Ready(ctx) {
		view := checkView{Name: c.Name, OK: c.Err == nil}
		if c.Err != nil {
			view.Detail, view.Hint = c.Err.Error(), coverslip.HintOf(c.Err)
			out.Status, out.Body.OK = http.StatusServiceUnavailable, false
		}
		out.Body.Checks = append(out.Body.Checks, view)
	}
	return out, nil
}
