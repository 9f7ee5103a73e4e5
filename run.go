package coverslip

import (
	"encoding/json"
	"time"
)

// Run is one or several methods judged on the same slides and splits of a cohort: a probe or a MIL
// classifier beside the baselines.
type Run struct {
	ID       string          `json:"id"`   // SHA-256 of all that it holds but the time, and of its predictions
	Kind     ModelKind       `json:"kind"` // ProbeModel or MILModel
	Cohort   string          `json:"cohort"`
	Label    string          `json:"label"`             // the column
	Classes  []string        `json:"classes,omitempty"` // in the order of probabilities; none of survival
	Settings json.RawMessage `json:"settings"`          // how it was made: an object
	Methods  []Method        `json:"methods"`           // what was asked for first, baselines after
	Splits   string          `json:"splits"`            // the split file: columns fold_…, tab-separated
	LeftOut  []LeftOut       `json:"left_out"`          // slides of the cohort that no split uses
	Notes    []string        `json:"notes"`
	Created  time.Time       `json:"created"`
}

// Method is a way to predict.
type Method struct {
	Name     string `json:"name"`
	Baseline bool   `json:"baseline,omitempty"`
	Note     string `json:"note,omitempty"` // what was chosen on the way, for people
}

// LeftOut is a slide, or a row of somebody's table, that was not used.
type LeftOut struct {
	Slide  string `json:"slide"` // its name
	Reason string `json:"reason"`
}

// Prediction is what a method says of one slide on the test side of one split.
type Prediction struct {
	Method  string  `json:"method"`
	Split   string  `json:"split"` // 0, 1.0, or in groups: k=4/17
	Slide   SlideID `json:"slide"`
	Patient string  `json:"patient"`
	// P is the probability of each class; of survival the one log hazard.
	P     []float64 `json:"p"`
	Truth int       `json:"truth"` // its class; -1 where it is not known
	// Time and Event are the truth of survival: until the event or, without one, until the patient was
	// last seen.
	Time  float64 `json:"time,omitempty"`
	Event bool    `json:"event,omitempty"`
}
