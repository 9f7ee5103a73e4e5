package coverslip

import (
	"strconv"
	"time"
)

// Cohort is a named set of slides with patient, site and label columns.
type Cohort struct {
	Name string `json:"name"`
	// VersionOf is the cohort that this one is a version of. A version is called brca@1 and does not
	// change any more.
	VersionOf string        `json:"version_of,omitempty"`
	Slides    int           `json:"slides"`
	Patients  int           `json:"patients"` // different ones, where they are known
	Sites     int           `json:"sites"`
	Labels    []LabelColumn `json:"labels"`
	Created   time.Time     `json:"created"`
}

// LabelColumn is what every slide of a cohort may have a value of.
type LabelColumn struct {
	Name   string    `json:"name"`
	Kind   LabelKind `json:"kind"`
	Slides int       `json:"slides"` // that have a value
}

// LabelKind is what a label column holds.
type LabelKind string

const (
	NumberLabel   LabelKind = "number"   // float64
	CategoryLabel LabelKind = "category" // string
	BoolLabel     LabelKind = "bool"     // bool
)

// Member is a slide's place in a cohort.
type Member struct {
	Slide   SlideID `json:"slide"`
	Name    string  `json:"name"` // of the slide; not needed to put it into a cohort
	Patient string  `json:"patient,omitempty"`
	Site    string  `json:"site,omitempty"`
	// Labels are float64, string or bool, as the kind of their column says. What is not known is not in it.
	Labels map[string]any `json:"labels"`
}

// LabelText is a label as it stands in a file: a number in its shortest exact form, true or false, or the
// category itself. Nil, which is unknown, is empty.
func LabelText(v any) string {
	switch v := v.(type) {
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case bool:
		return strconv.FormatBool(v)
	case string:
		return v
	}
	return ""
}

// Progress is how far the slides of a cohort are.
type Progress struct {
	Cohort string        `json:"cohort"`
	Slides int           `json:"slides"`
	States map[State]int `json:"states"` // only those that have any
	Failed []Failures    `json:"failed"` // by kind, the most frequent first
	// PerHour is how many slides were done in an hour, of late; 0 where too few were to say.
	PerHour float64 `json:"per_hour"`
	// SecondsLeft is how long the slides that wait will take at that rate; 0 where it is not known.
	SecondsLeft float64 `json:"seconds_left"`
}

// Failures are the slides that failed in one way.
type Failures struct {
	Kind    Kind   `json:"kind"`
	Slides  int    `json:"slides"`
	Example string `json:"example"` // the reason of one
}

// Waiting is how many slides are still to be done.
func (p Progress) Waiting() int { return p.States[Queued] + p.States[Encoding] }

// Done is how many have their embedding, or no tissue.
func (p Progress) Done() int { return p.States[Embedded] + p.States[NoTissue] }
