package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"

	"coverslip"
	"coverslip/tiler"
)

// emit prints one JSON object on a line of its own.
func (e *env) emit(v any) error {
	enc := json.NewEncoder(e.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printf prints to standard output, for people.
func (e *env) printf(format string, args ...any) { _, _ = fmt.Fprintf(e.out, format, args...) }

// say prints to standard error: what goes on, and what is no part of the answer.
func (e *env) say(format string, args ...any) { _, _ = fmt.Fprintf(e.err, format, args...) }

// table prints rows of tab-separated cells in columns.
func (e *env) table(rows ...string) {
	w := tabwriter.NewWriter(e.out, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		_, _ = fmt.Fprintln(w, r)
	}
	_ = w.Flush()
}

// progress shows how far long work is: a bar on a terminal, a line every few seconds elsewhere.
// Call the function it returns with what is done, from one goroutine at a time.
func (e *env) progress(what string, total int) func(done int) {
	return e.progressOf(what, "tiles", total)
}

// progressOf is progress of other things than tiles.
func (e *env) progressOf(what, things string, total int) func(done int) {
	if e.terminal {
		bar := progressbar.NewOptions(total, progressbar.OptionSetWriter(e.err), progressbar.OptionSetDescription(what),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString(things),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
		return func(done int) { _ = bar.Set(done) }
	}
	const every = 5 * time.Second
	started := time.Now()
	next := started.Add(every)
	return func(done int) {
		if now := time.Now(); now.After(next) && done < total {
			next = now.Add(every)
			left := time.Duration(float64(now.Sub(started)) / float64(done) * float64(total-done))
			e.say("%s: %d of %d %s, %s left\n", what, done, total, things, left.Round(time.Second))
		}
	}
}

// mppValue is a resolution on the command line, with a decimal point or comma.
type mppValue float64

// UnmarshalText reads µm per pixel.
func (m *mppValue) UnmarshalText(text []byte) error {
	v, err := tiler.ParseMPP(string(text))
	*m = mppValue(v)
	return err
}

func describeMPP(m coverslip.MPP) string {
	switch {
	case m.Known():
		return fmt.Sprintf("%.4g µm/px (%s)", m.Value, m.Source)
	case m.Doubt != "":
		return "unknown: " + m.Doubt
	}
	return "unknown"
}

// count is a number with its noun: "1 level", "3 levels".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
