package ingest

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"

	"coverslip"
	"coverslip/encoder"
)

// Meter counts what workers do, for Prometheus. A nil one counts nothing.
type Meter struct {
	tiles, seconds  *prometheus.CounterVec // by stage
	ended, failures *prometheus.CounterVec // by state; by kind
}

// NewMeter makes a meter at zero.
func NewMeter() *Meter {
	count := func(name, help, by string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{by})
	}
	m := &Meter{
		tiles: count("coverslip_tiles_total", "Tiles read and encoded, or taken from an earlier bag or checkpoint (reuse).", "stage"),
		seconds: count("coverslip_stage_seconds_total",
			"Time spent on slides. What is read and encoded at once counts for each worker in read and encode, by the clock in \"read and encode\".", "stage"),
		ended:    count("coverslip_jobs_ended_total", "Jobs by the state they left their slide in; retried are those to be tried again.", "state"),
		failures: count("coverslip_failures_total", "Attempts that failed, by the kind of the error.", "kind"),
	}
	for _, kind := range []coverslip.Kind{coverslip.Invalid, coverslip.Unsupported, coverslip.NeedsMPP, coverslip.NotFound, coverslip.Conflict, coverslip.TooLarge,
		coverslip.Full, coverslip.Unavailable, coverslip.Environment, coverslip.Canceled, coverslip.Internal} {
		m.failures.WithLabelValues(string(kind)) // a rate needs to begin at zero
	}
	for _, stage := range []string{read, encode, reuse} {
		m.tiles.WithLabelValues(stage)
	}
	return m
}

// Describe and Collect make it a prometheus.Collector.
func (m *Meter) Describe(out chan<- *prometheus.Desc) {
	for _, c := range []prometheus.Collector{m.tiles, m.seconds, m.ended, m.failures} {
		c.Describe(out)
	}
}

// Collect is described at Describe.
func (m *Meter) Collect(out chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{m.tiles, m.seconds, m.ended, m.failures} {
		c.Collect(out)
	}
}

// The stages of tiles.
const read, encode, reuse = "read", "encode", "reuse"

func (m *Meter) took(stage string, tiles int, began time.Time) {
	if m == nil {
		return
	}
	m.seconds.WithLabelValues(stage).Add(time.Since(began).Seconds())
	m.counted(stage, tiles)
}

func (m *Meter) counted(stage string, tiles int) {
	if m != nil && tiles > 0 {
		m.tiles.WithLabelValues(stage).Add(float64(tiles))
	}
}

func (m *Meter) end(state string, err error) {
	if m == nil {
		return
	}
	m.ended.WithLabelValues(state).Inc()
	if err != nil {
		m.failures.WithLabelValues(string(coverslip.KindOf(err))).Inc()
	}
}

// metered counts what an encoder encodes.
type metered struct {
	encoder.Encoder
	m *Meter
}

func (e metered) Encode(ctx context.Context, dst []float32, pixels []uint8, n int) error {
	began := time.Now()
	err := e.Encoder.Encode(ctx, dst, pixels, n)
	if err == nil {
		e.m.took(encode, n, began)
	}
	return err
}

// tracer makes the spans of a slide's way; without a receiver of traces they cost nothing.
var tracer = otel.Tracer("coverslip/internal/ingest")
