// Package slidessltest makes cohorts with known answers out of real tiles: tiles of labelled sets laid on
// maps, so that what decides is how often a kind of tissue is there (composition), whether a little of it
// is there at all (needle), or how it is arranged. Tests and benchmarks of aggregators, probes and MIL
// classifiers stand on them.
package slidessltest
