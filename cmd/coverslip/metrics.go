package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"coverslip/storage"
	"coverslip/tiler/vips"
)

// collectors are shown at /metrics beside the API's own: how many slides stand where, and what
// libvips holds.
func collectors(db *storage.DB) []prometheus.Collector {
	return []prometheus.Collector{
		slideStates{db, prometheus.NewDesc("coverslip_slides", "Slides by state.", []string{"state"}, nil)},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "coverslip_vips_bytes", Help: "Memory libvips holds for pixels."},
			func() float64 { now, _ := vips.Memory(); return float64(now) }),
	}
}

type slideStates struct {
	db   *storage.DB
	desc *prometheus.Desc
}

func (c slideStates) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

func (c slideStates) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	counts, err := c.db.CountSlides(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(c.desc, err)
		return
	}
	for state, n := range counts {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), string(state))
	}
}
