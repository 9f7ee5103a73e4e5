package main

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"coverslip"
	"coverslip/api"
	"coverslip/internal/ingest"
	"coverslip/storage"
	"coverslip/storage/blob"
	"coverslip/storage/queue"
	"coverslip/tiler/vips"
)

// meters are the numbers of this process: what its workers did and how its store answers.
type meters struct {
	work     *ingest.Meter
	store    *prometheus.HistogramVec // by operation
	failures *prometheus.CounterVec   // by operation and kind
}

func newMeters() *meters {
	m := &meters{work: ingest.NewMeter(),
		store: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "coverslip_store_seconds", Help: "Time the blob store took, by operation.",
			Buckets: []float64{.0001, .001, .005, .02, .1, .5, 2, 10, 60}}, []string{"operation"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coverslip_store_failures_total", Help: "Operations of the blob store that failed, by the kind of the error."},
			[]string{"operation", "kind"})}
	for _, op := range blob.Operations {
		m.failures.WithLabelValues(op, string(coverslip.Unavailable)) // a rate needs to begin at zero
	}
	return m
}

// watch measures a store from now on.
func (m *meters) watch(store blob.Store) {
	if s, ok := store.(interface {
		Watch(tell func(op string, took time.Duration, err error))
	}); ok {
		s.Watch(func(op string, took time.Duration, err error) {
			m.store.WithLabelValues(op).Observe(took.Seconds())
			if kind := coverslip.KindOf(err); err != nil && kind != coverslip.NotFound && kind != coverslip.Canceled { // what is not there was asked for
				m.failures.WithLabelValues(op, string(kind)).Inc()
			}
		})
	}
}

func (m *meters) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.work, m.store, m.failures,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "coverslip_vips_bytes", Help: "Memory libvips holds for pixels."},
			func() float64 { now, _ := vips.Memory(); return float64(now) })}
}

// serve shows them at /metrics until ctx ends.
func (m *meters) serve(ctx context.Context, addr string, bound func(net.Addr)) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(append(m.collectors(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))...)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return api.Serve(ctx, addr, mux, bound)
}

// standing is what the database says: how many slides stand where, what they failed of, and how long the
// queues are. It is shown by the API alone, or a fleet would ask once for each worker.
type standing struct {
	db                   *storage.DB
	queue                *queue.Queue
	slides, failed, jobs *prometheus.Desc
}

func newStanding(db *storage.DB, q *queue.Queue) standing {
	return standing{db, q,
		prometheus.NewDesc("coverslip_slides", "Slides by state.", []string{"state"}, nil),
		prometheus.NewDesc("coverslip_slides_failed", "Slides that failed, by the kind of the error.", []string{"kind"}, nil),
		prometheus.NewDesc("coverslip_queue_jobs", "Jobs that wait and that run, by queue.", []string{"queue", "state"}, nil)}
}

func (s standing) Describe(out chan<- *prometheus.Desc) {
	out <- s.slides
	out <- s.failed
	out <- s.jobs
}

func (s standing) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	gauge := func(desc *prometheus.Desc, n int, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), labels...)
	}
	depths, err := s.queue.Depths(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(s.jobs, err)
	}
	for _, d := range depths {
		gauge(s.jobs, d.Waiting, d.Queue, "waiting")
		gauge(s.jobs, d.Running, d.Queue, "running")
	}
	progress, err := s.db.Progress(ctx, "")
	if err != nil {
		out <- prometheus.NewInvalidMetric(s.slides, err)
		return
	}
	for state, n := range progress.States {
		gauge(s.slides, n, string(state))
	}
	for _, f := range progress.Failed {
		gauge(s.failed, f.Slides, string(f.Kind))
	}
}
