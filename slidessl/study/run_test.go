package study

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"coverslip"
)

// counting makes stages by counting them, and remembers their keys as a store would.
type counting struct {
	t     *testing.T
	mu    sync.Mutex
	kept  map[string]bool
	kinds map[string]int
	now   int // at work at once
	most  int
	make  func(s Stage) error // what happens, nil: nothing
	gate  chan struct{}       // each stage waits for one, nil: none does
}

func newCounting(t *testing.T) *counting {
	return &counting{t: t, kept: map[string]bool{}, kinds: map[string]int{}}
}

func (c *counting) Make(ctx context.Context, s Stage) error {
	c.mu.Lock()
	c.kinds[s.Kind]++
	if c.kept[s.Key] {
		c.t.Errorf("%s %s is made twice", s.Kind, s.Key)
	}
	for _, on := range s.On {
		if !c.kept[on] {
			c.t.Errorf("%s %s is made before what it stands on", s.Kind, s.Key)
		}
	}
	c.now++
	c.most = max(c.most, c.now)
	c.mu.Unlock()
	if c.gate != nil {
		select {
		case <-c.gate:
		case <-ctx.Done():
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now--
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.make != nil {
		if err := c.make(s); err != nil {
			return err
		}
	}
	c.kept[s.Key] = true
	return nil
}

func replan(t *testing.T, text string, c *counting) *Plan {
	t.Helper()
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Plan(t.Context(), known{c.kept}, false, DefaultRates)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func fates(o []Outcome) map[Fate]int {
	n := map[Fate]int{}
	for _, v := range o {
		n[v.Fate]++
	}
	return n
}

func TestTwentyRunsThatDifferInEvaluationTrainOnce(t *testing.T) {
	text := "name: s\nfixed: {cohort: idc}\nfactors:\n  - {setting: embed.views, values: [1"
	for i := 2; i <= 20; i++ {
		text += fmt.Sprint(", ", i)
	}
	text += "]}\nevaluations: [{kind: probe, label: grade}]\n"
	c := newCounting(t)
	p := replan(t, text, c)
	o, err := p.Execute(t.Context(), c, 3, nil)
	if err != nil || Trouble(o) != nil {
		t.Fatal(err, Trouble(o))
	}
	if len(p.Runs) != 20 || c.kinds["aggregator"] != 1 || c.kinds["views"] != 1 || c.kinds["embeddings"] != 20 || c.kinds["evaluation"] != 20 {
		t.Errorf("%d runs made %v", len(p.Runs), c.kinds)
	}
	// Another study of the same aggregator trains none.
	again := newCounting(t)
	again.kept = c.kept
	if _, err := replan(t, "name: other\nfixed: {cohort: idc}\nevaluations: [{kind: geometry}]\n", again).Execute(t.Context(), again, 1, nil); err != nil {
		t.Fatal(err)
	}
	if again.kinds["aggregator"]+again.kinds["views"] != 0 || again.kinds["evaluation"] != 1 {
		t.Errorf("the other study made %v", again.kinds)
	}
}

func TestAStudyStoppedAnywhereGoesOnThere(t *testing.T) {
	whole := newCounting(t)
	all := len(replan(t, good, whole).Stages)
	for stopped := range all {
		c := newCounting(t)
		ctx, stop := context.WithCancel(t.Context())
		o, err := replan(t, good, c).Execute(ctx, c, 2, func(done, n int, _ Outcome) {
			if n != all {
				t.Errorf("%d stages in all, not %d", n, all)
			}
			if done == stopped {
				stop()
			}
		})
		stop()
		finished := fates(o)[Made] == all // what was under way when it was told to stop was the last
		if stopped > 0 && !finished && (coverslip.KindOf(err) != coverslip.Canceled || fates(o)[Failed] > 0) {
			t.Fatalf("stopped after %d: %v, %v", stopped, err, fates(o))
		}
		before := len(c.kept)
		c.kinds = map[string]int{}
		o, err = replan(t, good, c).Execute(t.Context(), c, 2, nil)
		if err != nil || Trouble(o) != nil || len(c.kept) != all {
			t.Fatalf("after %d: %v, %d stages", stopped, err, len(c.kept))
		}
		if made := c.kinds["views"] + c.kinds["aggregator"] + c.kinds["embeddings"] + c.kinds["evaluation"]; made != all-before {
			t.Fatalf("stopped after %d, %d were there, %d made again of %d", stopped, before, made, all)
		}
	}
}

func TestARunThatDivergesTakesNoOtherDown(t *testing.T) {
	c := newCounting(t)
	c.make = func(s Stage) error {
		if s.Kind == "aggregator" && s.Settings.Train.Objective == "vicreg" && s.Settings.Train.Seed == 2 {
			return &coverslip.Error{Kind: coverslip.Invalid, Op: "pretrain, step 7", Err: errors.New("the loss is NaN")}
		}
		return nil
	}
	p := replan(t, good, c)
	o, err := p.Execute(t.Context(), c, 4, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Two augmentations: two aggregators, and an embedding and two evaluations behind each.
	if n := fates(o); n[Failed] != 2 || n[Left] != 6 || n[Made] != len(p.Stages)-8 {
		t.Errorf("%v", n)
	}
	for _, v := range o {
		if v.Fate == Left && v.Reason == "" {
			t.Errorf("%+v", v)
		}
	}
	if Trouble(o) == nil {
		t.Error("nobody is told")
	}
}

func TestAFullDiskEndsTheStudy(t *testing.T) {
	c := newCounting(t)
	c.make = func(s Stage) error {
		if s.Kind == "embeddings" {
			return &coverslip.Error{Kind: coverslip.Full, Op: "write embeddings", Hint: "make room"}
		}
		return nil
	}
	o, err := replan(t, good, c).Execute(t.Context(), c, 1, nil)
	if coverslip.KindOf(err) != coverslip.Full || coverslip.HintOf(err) != "make room" || fates(o)[Failed] != 0 || c.kinds["embeddings"] != 1 {
		t.Errorf("%v, %v, %v", err, fates(o), c.kinds)
	}
}

func TestWorkersAreBounded(t *testing.T) {
	c := newCounting(t)
	p := replan(t, good, c)
	c.gate = make(chan struct{}, len(p.Stages))
	for range p.Stages {
		c.gate <- struct{}{}
	}
	if _, err := p.Execute(t.Context(), c, 3, nil); err != nil {
		t.Fatal(err)
	}
	if c.most > 3 {
		t.Errorf("%d at once", c.most)
	}
}

func TestWhatNothingStandsOnIsNotMade(t *testing.T) {
	c := newCounting(t)
	p := replan(t, good, c)
	for _, s := range p.Stages { // all evaluations are there, and their embeddings were thrown away
		if s.Kind == "evaluation" {
			c.kept[s.Key] = true
		}
	}
	o, err := replan(t, good, c).Execute(t.Context(), c, 2, nil)
	if err != nil || len(c.kinds) != 0 || fates(o)[Kept] != len(p.Stages) {
		t.Errorf("%v, %v, %v", err, c.kinds, fates(o))
	}
}
