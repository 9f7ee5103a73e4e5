package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"

	"coverslip"
)

// newLog is the log of a verb. Servers and workers that nobody watches write JSON for machines to keep, with
// a line for each request and slide; a person sees warnings, or with --verbose everything.
func newLog(w io.Writer, verb, format string, verbose, terminal bool) *slog.Logger {
	kept := !terminal && (verb == "up" || verb == "serve" || verb == "work")
	opts := &slog.HandlerOptions{Level: slog.LevelWarn}
	switch {
	case verbose:
		opts.Level = slog.LevelDebug
	case kept:
		opts.Level = slog.LevelInfo
	}
	if format == "json" || format == "auto" && kept {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// startTraces sends traces to where OTEL_EXPORTER_OTLP_ENDPOINT says, by OTLP over HTTP, and does nothing
// where nothing says it. OTEL_TRACES_SAMPLER and the other variables of OpenTelemetry hold, too. The function
// it returns sends what is left.
func startTraces(ctx context.Context) (stop func(), err error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" || os.Getenv("OTEL_SDK_DISABLED") == "true" {
		return func() {}, nil
	}
	const hint = "see what OTEL_EXPORTER_OTLP_ENDPOINT and its like say, or unset them"
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: "set up traces", Err: err, Hint: hint}
	}
	who, err := resource.New(ctx, resource.WithHost(), resource.WithProcessPID(), resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", "coverslip"), attribute.String("service.version", coverslip.Version)), resource.WithFromEnv())
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: "set up traces", Err: err, Hint: hint}
	}
	provider := trace.NewTracerProvider(trace.WithBatcher(exporter), trace.WithResource(who))
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	return func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = provider.Shutdown(last) // a receiver that is away was told of already
	}, nil
}
