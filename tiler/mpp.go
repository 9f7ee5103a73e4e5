package tiler

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"coverslip"
)

// claim is what one source says of a slide's resolution at level 0, µm per pixel.
type claim struct {
	source coverslip.MPPSource
	x, y   float64
	said   string // as it stands there, of a source that writes text; may be no number
}

const (
	// No slide scanner works outside these: a resolution of 72 dots per inch, the default of picture
	// editors, is 353 µm per pixel and says nothing about the slide.
	minMPP, maxMPP = 0.05, 20
	// anisotropy is how far x and y may differ; scanners calibrate each axis to about a percent.
	anisotropy = 0.02
	// A 20× objective gives about 10/20 = 0.5 µm per pixel. Cameras differ, but not by as much as the
	// next objective (a factor of two).
	minScanner, maxScanner = 10 / 1.6, 10 * 1.6
)

// decideMPP is the one place that says how large a slide's pixel is. Claims come in order of trust.
// A claim that cannot be true is passed over and remembered as a doubt; nothing is guessed.
func decideMPP(claims []claim, objective float64) coverslip.MPP {
	var doubt string
	for _, c := range claims {
		if !(c.x > 0) || !(c.y > 0) || math.IsInf(c.x, 0) || math.IsInf(c.y, 0) { // also NaN
			if said := strings.TrimSpace(c.said); said != "" {
				doubt = fmt.Sprintf("%s says %.40q µm per pixel, which is no resolution", c.source, said)
			}
			continue
		}
		mpp := (c.x + c.y) / 2
		switch {
		case mpp < minMPP || mpp > maxMPP:
			doubt = fmt.Sprintf("%s says %.4g µm per pixel, which no slide scanner has", c.source, mpp)
		case math.Abs(c.x-c.y) > anisotropy*mpp:
			doubt = fmt.Sprintf("%s says %.4g µm per pixel across and %.4g down", c.source, c.x, c.y)
		case objective > 0 && (mpp*objective < minScanner || mpp*objective > maxScanner):
			doubt = fmt.Sprintf("%s says %.4g µm per pixel, which contradicts the objective %g×", c.source, mpp, objective)
		default:
			return coverslip.MPP{Value: mpp, Source: c.source}
		}
	}
	return coverslip.MPP{Doubt: doubt}
}

// ParseMPP reads a resolution written by a person or a scanner, with a decimal point or comma.
func ParseMPP(s string) (float64, error) {
	v, err := strconv.ParseFloat(strings.Replace(strings.TrimSpace(s), ",", ".", 1), 64)
	if err != nil {
		return 0, &coverslip.Error{Kind: coverslip.Invalid, Op: "read mpp", Err: fmt.Errorf("%q is not a number", s), Hint: "give micrometres per pixel, such as 0.25"}
	}
	return v, CheckMPP(v)
}

// CheckMPP refuses a resolution no slide has.
func CheckMPP(v float64) error {
	if !(v >= minMPP && v <= maxMPP) {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "read mpp", Err: fmt.Errorf("%g µm per pixel", v), Hint: fmt.Sprintf("give a value from %g to %d", minMPP, maxMPP)}
	}
	return nil
}

// number is ParseMPP for text found in files, where what is no number is simply absent.
func number(s string) float64 {
	v, err := strconv.ParseFloat(strings.Replace(strings.TrimSpace(s), ",", ".", 1), 64)
	if err != nil {
		return 0
	}
	return v
}

// slideMPP is the resolution to plan with: the user's word, or what the file says, or NeedsMPP.
func (s *Slide) slideMPP(ofSlide float64) (coverslip.MPP, error) {
	if ofSlide != 0 {
		return coverslip.MPP{Value: ofSlide, Source: coverslip.MPPUser}, CheckMPP(ofSlide)
	}
	if s.MPP.Known() {
		return s.MPP, nil
	}
	why := "the file does not say how large a pixel is"
	if s.MPP.Doubt != "" {
		why = s.MPP.Doubt
	}
	return coverslip.MPP{}, &coverslip.Error{Kind: coverslip.NeedsMPP, Op: "plan tiles", Path: s.Path, Err: fmt.Errorf("%s", why), Hint: "give the micrometres per pixel at level 0, for example --mpp-of-slide 0.25"}
}
