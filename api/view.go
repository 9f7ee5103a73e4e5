package api

import (
	"time"

	"coverslip"
)

// The views below are the API's wire format. Their JSON is that of the root types of the same
// name, so a client may decode into those; a slide's Location is left out, because where the
// server keeps the bytes is its own business.

type slideView struct {
	ID             coverslip.SlideID `json:"id" doc:"SHA-256 of the slide's bytes" pattern:"^[0-9a-f]{64}$"`
	Name           string            `json:"name" doc:"As the user called it, without folders"`
	Bytes          int64             `json:"bytes" doc:"Size of the file"`
	Provisional    bool              `json:"provisional,omitempty" doc:"Nobody has read its bytes yet; its id will change to their SHA-256, and be found under this one, too"`
	MD5            string            `json:"md5,omitempty" doc:"What its bytes must have, where a manifest says so"`
	Format         string            `json:"format" doc:"What the file was recognised as"`
	Width          int               `json:"width" doc:"Of level 0, in pixels"`
	Height         int               `json:"height" doc:"Of level 0, in pixels"`
	Levels         []levelView       `json:"levels" nullable:"false" doc:"The pyramid, finest first"`
	MPP            mppView           `json:"mpp" doc:"Resolution of level 0"`
	ObjectivePower float64           `json:"objective_power,omitempty" doc:"20 for 20×; absent when unknown"`
	State          coverslip.State   `json:"state" doc:"Where the slide stands on its way to an embedding" enum:"registered,queued,encoding,embedded,no_tissue,needs_mpp,failed"`
	Kind           coverslip.Kind    `json:"kind,omitempty" doc:"What sort of thing went wrong, where the state is failed or needs_mpp"`
	Reason         string            `json:"reason,omitempty" doc:"Why the state is failed or needs_mpp, and what to do"`
	Registered     time.Time         `json:"registered" doc:"When it was first seen"`
	Changed        time.Time         `json:"changed" doc:"When its state last changed"`
	Bag            *bagView          `json:"bag,omitempty" doc:"Its instances; only in the answer for one slide, and only once they are there"`
}

type levelView struct {
	Width      int     `json:"width" doc:"Pixels"`
	Height     int     `json:"height" doc:"Pixels"`
	Downsample float64 `json:"downsample" doc:"Level-0 pixels per pixel of this level"`
}

type mppView struct {
	Value  float64             `json:"value" doc:"Micrometres per pixel; 0 when unknown"`
	Source coverslip.MPPSource `json:"source,omitempty" doc:"Where it was read; absent when unknown" enum:"aperio,dicom,openslide,tiff,ome,user"`
	Doubt  string              `json:"doubt,omitempty" doc:"Why a number the file does give was not believed"`
}

type bagView struct {
	Key     string            `json:"key" doc:"SHA-256 over what determines its content"`
	Slide   coverslip.SlideID `json:"slide" doc:"Whose instances these are"`
	Encoder string            `json:"encoder" doc:"Which encoder they come from"`
	Tiles   int               `json:"tiles" doc:"How many there are"`
	Dim     int               `json:"dim" doc:"Length of each"`
	Bytes   int64             `json:"bytes" doc:"Size of the bag file"`
	Plan    planView          `json:"plan" doc:"How the slide was cut"`
	Views   *viewsView        `json:"views,omitempty" doc:"How its views were made; absent: the tiles as they are"`
	Timings []timingView      `json:"timings" nullable:"false" doc:"Where the time went; stages overlap, and times of several workers are added up"`
	Created time.Time         `json:"created" doc:"When it was published"`
}

type planView struct {
	MPP        float64     `json:"mpp" doc:"Resolution of the tiles, µm per pixel"`
	Size       int         `json:"size" doc:"Edge of a tile in pixels"`
	Overlap    int         `json:"overlap" doc:"Pixels that neighbours share"`
	MinTissue  float64     `json:"min_tissue" doc:"Least share of tissue of a tile, 0 to 1"`
	MPPOfSlide float64     `json:"mpp_of_slide,omitempty" doc:"The user's word for the resolution of level 0; absent when the file's own was taken"`
	Budget     *budgetView `json:"budget,omitempty" doc:"How many tiles were encoded; absent: all"`
}

type budgetView struct {
	Tiles     int     `json:"tiles,omitempty" doc:"At most; absent: until the tolerance is met"`
	Tolerance float64 `json:"tolerance,omitempty" doc:"Standard error of the embedding, as a share of its length, at which encoding stopped"`
	Seed      uint64  `json:"seed,omitempty" doc:"Of the order in which tiles were drawn"`
}

type viewsView struct {
	Count   int    `json:"count" doc:"Views"`
	Tiles   int    `json:"tiles" doc:"Tiles of each"`
	Augment string `json:"augment" doc:"The transforms and their ranges"`
	Seed    uint64 `json:"seed" doc:"Of the draws"`
}

type timingView struct {
	Stage   string  `json:"stage" doc:"What was being done"`
	Seconds float64 `json:"seconds" doc:"For how long"`
}

type embeddingView struct {
	Slide      coverslip.SlideID `json:"slide" doc:"Whose embedding this is"`
	Bag        string            `json:"bag" doc:"Key of the bag it was computed from"`
	Encoder    string            `json:"encoder" doc:"Tile pixels to instances"`
	Aggregator string            `json:"aggregator" doc:"Instances to embedding"`
	Vector     []float32         `json:"vector" nullable:"false" doc:"The embedding, L2 norm 1"`
	Created    time.Time         `json:"created" doc:"When it was computed"`
}

type neighbourView struct {
	Slide      coverslip.SlideID `json:"slide" doc:"Id of the similar slide"`
	Name       string            `json:"name" doc:"Its name"`
	Similarity float64           `json:"similarity" doc:"Cosine, -1 to 1"`
}

func viewSlide(s coverslip.Slide) slideView {
	return slideView{
		ID: s.ID, Name: s.Name, Bytes: s.Bytes, Provisional: s.Provisional, MD5: s.MD5, Format: s.Format, Width: s.Width, Height: s.Height,
		Levels: each(s.Levels, func(l coverslip.Level) levelView { return levelView(l) }),
		MPP:    mppView(s.MPP), ObjectivePower: s.ObjectivePower,
		State: s.State, Kind: s.Kind, Reason: s.Reason, Registered: s.Registered, Changed: s.Changed,
	}
}

func viewBag(b coverslip.Bag) *bagView {
	v := &bagView{
		Key: b.Key, Slide: b.Slide, Encoder: b.Encoder, Tiles: b.Tiles, Dim: b.Dim, Bytes: b.Bytes, Plan: viewPlan(b.Plan),
		Timings: each(b.Timings, func(t coverslip.StageTime) timingView { return timingView(t) }), Created: b.Created,
	}
	if b.Views != nil {
		views := viewsView(*b.Views)
		v.Views = &views
	}
	return v
}

func viewPlan(p coverslip.PlanParams) planView {
	v := planView{MPP: p.MPP, Size: p.Size, Overlap: p.Overlap, MinTissue: p.MinTissue, MPPOfSlide: p.MPPOfSlide}
	if p.Budget != (coverslip.Budget{}) {
		budget := budgetView(p.Budget)
		v.Budget = &budget
	}
	return v
}

// each maps a slice. The result is never nil, because JSON's null is no list.
func each[A, B any](in []A, f func(A) B) []B {
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = f(a)
	}
	return out
}
