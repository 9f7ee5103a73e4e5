package coverslip

import (
	"encoding/hex"
	"fmt"
	"time"
)

// SlideID names a slide: the SHA-256 of its bytes as 64 lower-case hexadecimal digits. While it is
// Provisional it is that of what is said of the bytes.
type SlideID string

// ParseSlideID checks that s is a whole slide id.
func ParseSlideID(s string) (SlideID, error) {
	if raw, err := hex.DecodeString(s); err != nil || len(raw) != 32 || SlideID(s) != SlideID(hex.EncodeToString(raw)) {
		return "", &Error{Kind: Invalid, Op: "read slide id", Err: fmt.Errorf("%q is not 64 lower-case hexadecimal digits", clip(s, 80))}
	}
	return SlideID(s), nil
}

// Short is the first twelve digits: enough for people.
func (id SlideID) Short() string { return clip(string(id), 12) }

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// Level is one resolution of a slide's pyramid. Level 0 is the finest.
type Level struct {
	Width      int     `json:"width"`      // pixels
	Height     int     `json:"height"`     // pixels
	Downsample float64 `json:"downsample"` // level-0 pixels per pixel of this level
}

// MPP is a slide's resolution at level 0 and where that number comes from.
type MPP struct {
	Value  float64   `json:"value"`            // micrometres per pixel; 0 when unknown
	Source MPPSource `json:"source,omitempty"` // empty when unknown
	// Doubt says why a number the file does give was not believed ("x and y differ: 0.25, 0.5").
	Doubt string `json:"doubt,omitempty"`
}

// MPPSource is where a resolution was read.
type MPPSource string

const (
	MPPAperio    MPPSource = "aperio"    // MPP in an Aperio ImageDescription
	MPPDICOM     MPPSource = "dicom"     // PixelSpacing
	MPPOpenSlide MPPSource = "openslide" // property openslide.mpp-x, openslide.mpp-y
	MPPTIFF      MPPSource = "tiff"      // XResolution, YResolution, ResolutionUnit
	MPPOME       MPPSource = "ome"       // PhysicalSizeX, PhysicalSizeY of OME-XML
	MPPUser      MPPSource = "user"      // --mpp-of-slide, or the same in a request
)

// Known reports whether there is a resolution to plan with.
func (m MPP) Known() bool { return m.Value > 0 }

// State is where a slide stands on its way to an embedding.
type State string

const (
	Registered  State = "registered" // known; nobody has asked for its embedding
	Queued      State = "queued"     // waiting for a worker
	Encoding    State = "encoding"   // a worker has it
	Embedded    State = "embedded"   // bag and embedding are there
	NoTissue    State = "no_tissue"  // the bag is empty; there is nothing to embed
	AwaitingMPP State = "needs_mpp"  // nothing says how large a pixel is
	Failed      State = "failed"     // see Reason
)

// Done reports whether no worker will touch the slide again unless somebody asks.
func (s State) Done() bool { return s != Queued && s != Encoding }

// Slide is a registered whole-slide image and how far it has come.
type Slide struct {
	ID       SlideID `json:"id"`
	Name     string  `json:"name"`     // as the user called it, without folders
	Location string  `json:"location"` // an absolute path, or blob:<key> for an uploaded one
	Bytes    int64   `json:"bytes"`
	// Provisional is a slide whose bytes nobody has read yet: its id will change to their SHA-256, and
	// be found under the old one, too. What the file says of itself is not known yet.
	Provisional bool   `json:"provisional,omitempty"`
	MD5         string `json:"md5,omitempty"` // that the bytes must have, where a manifest says it

	Format         string  `json:"format"`
	Width          int     `json:"width"`  // level 0, pixels
	Height         int     `json:"height"` // level 0, pixels
	Levels         []Level `json:"levels"`
	MPP            MPP     `json:"mpp"`
	ObjectivePower float64 `json:"objective_power,omitempty"` // 20 for 20×; 0 when unknown

	State      State     `json:"state"`
	Kind       Kind      `json:"kind,omitempty"`   // of the error, where Failed or AwaitingMPP
	Reason     string    `json:"reason,omitempty"` // why, with the remedy
	Registered time.Time `json:"registered"`
	Changed    time.Time `json:"changed"`
}
