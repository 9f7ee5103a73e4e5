package coverslip

import "time"

// Bag records that the instances of a slide under one encoder and plan are in the store.
type Bag struct {
	Key     string      `json:"key"` // SHA-256 over what determines its content; see ingest.BagKey
	Slide   SlideID     `json:"slide"`
	Encoder string      `json:"encoder"`
	Tiles   int         `json:"tiles"` // rows
	Dim     int         `json:"dim"`   // columns
	Bytes   int64       `json:"bytes"`
	Plan    PlanParams  `json:"plan"`
	Views   *Views      `json:"views,omitempty"` // of a bag of views, whose Tiles counts the rows of all
	Timings []StageTime `json:"timings"`
	Created time.Time   `json:"created"`
}

// StageTime is the wall time one stage took. Stages that run at once overlap, so times of
// several workers are added up and may exceed the clock.
type StageTime struct {
	Stage   string  `json:"stage"`
	Seconds float64 `json:"seconds"`
}

// Embedding is the vector of a slide under one encoder and one aggregator.
type Embedding struct {
	Slide      SlideID   `json:"slide"`
	Bag        string    `json:"bag"` // key of the bag it was computed from
	Encoder    string    `json:"encoder"`
	Aggregator string    `json:"aggregator"`
	Vector     []float32 `json:"vector"` // [D], L2 norm 1
	Created    time.Time `json:"created"`
}

// Neighbour is one answer of a similarity search.
type Neighbour struct {
	Slide      SlideID `json:"slide"`
	Name       string  `json:"name"`
	Similarity float64 `json:"similarity"` // cosine, -1 to 1
}
