package study

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"coverslip"
)

// Maker makes stages and keeps what they give under their keys.
type Maker interface {
	// Make makes one stage; those that it stands on are there. It is called once for each stage, several at once, and
	// leaves nothing under the key unless it returns nil. What cannot be made of these settings whatever happens, a loss
	// that is not finite among them, is an error that is not Retryable: the study reports it and goes on. Any other ends
	// the study.
	Make(ctx context.Context, s Stage) error
}

// Fate is what became of a stage.
type Fate string

// A stage was there before, was made, could not be made, or was left because one it stands on could not be.
const (
	Kept   Fate = "kept"
	Made   Fate = "made"
	Failed Fate = "failed"
	Left   Fate = "left"
)

// Outcome is what became of one stage.
type Outcome struct {
	Key  string `json:"key"`
	Kind string `json:"kind"`
	Fate Fate   `json:"fate"`
	// Reason is why it failed, or why that failed which it stands on.
	Reason string `json:"reason,omitempty"`
}

// Execute makes the stages of a plan that are not there, up to workers of them at once, each after those that it stands
// on. One that fails takes those down that stand on it and no others. What was made stays when the study is stopped, by
// ctx or by an error that may pass, and a plan made afterwards goes on from there.
//
// Outcomes stand in the plan's order. progress, if set, is called after each stage, from one goroutine.
func (p *Plan) Execute(ctx context.Context, maker Maker, workers int, progress func(done, all int, o Outcome)) ([]Outcome, error) {
	e := &execution{plan: p, at: map[string]int{}, outcome: make([]Outcome, len(p.Stages)), progress: progress}
	for i, s := range p.Stages {
		e.at[s.Key] = i
		e.outcome[i] = Outcome{Key: s.Key, Kind: s.Kind}
	}
	e.needed()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	type result struct {
		stage int
		err   error
	}
	results := make(chan result)
	running := 0
	var fatal error
	for {
		if fatal == nil && ctx.Err() == nil {
			for i := e.next(); i >= 0 && running < max(workers, 1); i = e.next() {
				e.started[i] = true
				running++
				go func() { results <- result{i, maker.Make(ctx, p.Stages[i])} }()
			}
		}
		if running == 0 {
			break
		}
		r := <-results
		running--
		switch kind := coverslip.KindOf(r.err); {
		case r.err == nil:
			e.settle(r.stage, Made, "")
		case kind.Retryable():
			if fatal == nil {
				fatal = coverslip.Doing("run study "+p.Name, r.err)
			}
			stop(r.err)
		default:
			e.settle(r.stage, Failed, r.err.Error())
		}
	}
	if fatal == nil && ctx.Err() != nil && e.open() {
		fatal = &coverslip.Error{Kind: coverslip.Canceled, Op: "run study " + p.Name, Err: context.Cause(ctx), Hint: "run it again: it goes on where it was"}
	}
	return e.outcome, fatal
}

type execution struct {
	plan     *Plan
	at       map[string]int
	outcome  []Outcome
	started  []bool
	done     int
	progress func(done, all int, o Outcome)
}

// needed settles what is there, and what nothing that is missing stands on.
func (e *execution) needed() {
	e.started = make([]bool, len(e.plan.Stages))
	wanted := make([]bool, len(e.plan.Stages))
	for i := len(e.plan.Stages) - 1; i >= 0; i-- {
		s := e.plan.Stages[i]
		if (wanted[i] || s.Kind == "evaluation") && !s.Done {
			for _, on := range s.On {
				wanted[e.at[on]] = true
			}
		} else {
			e.settle(i, Kept, "")
		}
	}
}

// next is a stage that can start: the first in the plan, for runs are wanted whole. -1: none.
func (e *execution) next() int {
	return slices.IndexFunc(e.plan.Stages, func(s Stage) bool {
		i := e.at[s.Key]
		return !e.started[i] && e.outcome[i].Fate == "" && !slices.ContainsFunc(s.On, func(on string) bool {
			f := e.outcome[e.at[on]].Fate
			return f != Made && f != Kept
		})
	})
}

// settle writes down what became of a stage, and of those that fall with it.
func (e *execution) settle(i int, fate Fate, reason string) {
	o := &e.outcome[i]
	if o.Fate != "" {
		return
	}
	o.Fate, o.Reason = fate, reason
	e.done++
	if e.progress != nil {
		e.progress(e.done, len(e.outcome), *o)
	}
	if fate != Failed && fate != Left {
		return
	}
	if fate == Failed {
		reason = fmt.Sprintf("%s %s failed: %s", o.Kind, o.Key[:8], reason)
	}
	for j, s := range e.plan.Stages {
		if slices.Contains(s.On, o.Key) {
			e.settle(j, Left, reason)
		}
	}
}

// open reports whether anything has no fate yet.
func (e *execution) open() bool {
	return slices.ContainsFunc(e.outcome, func(o Outcome) bool { return o.Fate == "" })
}

// Trouble joins what failed, one error a stage, nil where nothing did.
func Trouble(outcomes []Outcome) error {
	var all []error
	for _, o := range outcomes {
		if o.Fate == Failed {
			all = append(all, fmt.Errorf("%s %s: %s", o.Kind, o.Key[:8], o.Reason))
		}
	}
	return errors.Join(all...)
}
