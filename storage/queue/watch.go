package queue

import (
	"context"
	"encoding/json"
	"log/slog"

	"github.com/riverqueue/river/rivertype"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"coverslip"
)

// A job carries the trace of whoever asked for it in its metadata (W3C Trace Context), so that a slide's way
// from its upload to its embedding is one trace, whichever process works on it and however often.

var (
	tracer       = otel.Tracer("coverslip/storage/queue")
	traceContext = propagation.TraceContext{}
)

// traced is the metadata of a job that belongs to ctx's trace; nil where there is none.
func traced(ctx context.Context) []byte {
	carrier := propagation.MapCarrier{}
	traceContext.Inject(ctx, carrier)
	if len(carrier) == 0 {
		return nil
	}
	raw, err := json.Marshal(carrier)
	if err != nil {
		panic("queue: a job's trace: " + err.Error()) // plain texts always marshal
	}
	return raw
}

// begin is the span of one run of a job, in the trace the job belongs to.
func begin(ctx context.Context, row *rivertype.JobRow, job Job) (context.Context, trace.Span) {
	var parent struct {
		Traceparent string `json:"traceparent"`
		Tracestate  string `json:"tracestate"`
	}
	if json.Unmarshal(row.Metadata, &parent) == nil {
		ctx = traceContext.Extract(ctx, propagation.MapCarrier{"traceparent": parent.Traceparent, "tracestate": parent.Tracestate})
	}
	return tracer.Start(ctx, row.Kind, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
		attribute.String("coverslip.slide", string(job.Slide)), attribute.Int64("coverslip.job", row.ID), attribute.Int("coverslip.attempt", row.Attempt)))
}

// riverLog is the log that River writes. A job's line has the slide, as ours have; what River tells at Info is
// for whoever looks closely, because those who work on a job say themselves what became of it.
type riverLog struct {
	slog.Handler
	holder *holder
}

func (l riverLog) Enabled(ctx context.Context, level slog.Level) bool {
	return l.Handler.Enabled(ctx, lowered(level))
}

func (l riverLog) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, lowered(r.Level), r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "job_id" {
			a.Key = "job"
			out.AddAttrs(slog.String("slide", string(l.holder.slide(a.Value.Int64()))))
		}
		out.AddAttrs(a)
		return true
	})
	return l.Handler.Handle(ctx, out)
}

func (l riverLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return riverLog{l.Handler.WithAttrs(attrs), l.holder}
}

func (l riverLog) WithGroup(name string) slog.Handler {
	return riverLog{l.Handler.WithGroup(name), l.holder}
}

func lowered(level slog.Level) slog.Level {
	if level == slog.LevelInfo {
		return slog.LevelDebug
	}
	return level
}

// slide is that of a job this process has; "" where it has not.
func (h *holder) slide(job int64) coverslip.SlideID {
	h.mu.Lock()
	defer h.mu.Unlock()
	if one := h.has[job]; one != nil {
		return one.slide
	}
	return ""
}
