package bagfile

import (
	"encoding/json"
	"errors"
	"math"
	"strconv"

	"coverslip"
)

// Metadata says what a bag was made from. It stands in the file as text, under the names in fields.
type Metadata struct {
	Slide          coverslip.SlideID
	SlideMPP       float64 // of level 0, µm per pixel
	SlideMPPSource coverslip.MPPSource
	Reader         string // what decoded the pixels
	ReaderVersion  string

	Level     int     // the tiles were read from
	MPP       float64 // of the tiles, µm per pixel
	TileSize  int     // edge, pixels at MPP
	Overlap   int     // of neighbours, pixels at MPP
	MinTissue float64 // least share of tissue, 0 to 1
	Mask      string  // parameters of the tissue mask, as JSON
	Found     int     // tiles with enough tissue; the rows are fewer where there was a budget
	Budget    string  // of tiles, as JSON; empty: all, in reading order
	Views     string  // of a bag of views: how they were made, as JSON
	Skipped   string  // corners of tiles left out because their bytes are damaged, as JSON [[x,y],…]

	Encoder       string
	EncoderSHA256 string
	Version       string // of Coverslip
}

// fields names each field in the file, and points at it.
func (m *Metadata) fields() map[string]any {
	return map[string]any{
		"slide_sha256":      (*string)(&m.Slide),
		"slide_mpp":         &m.SlideMPP,
		"slide_mpp_source":  (*string)(&m.SlideMPPSource),
		"reader":            &m.Reader,
		"reader_version":    &m.ReaderVersion,
		"level":             &m.Level,
		"mpp":               &m.MPP,
		"tile_size":         &m.TileSize,
		"overlap":           &m.Overlap,
		"min_tissue":        &m.MinTissue,
		"mask":              &m.Mask,
		"found":             &m.Found,
		"budget":            &m.Budget,
		"views":             &m.Views,
		"skipped_tiles":     &m.Skipped,
		"encoder":           &m.Encoder,
		"encoder_sha256":    &m.EncoderSHA256,
		"coverslip_version": &m.Version,
	}
}

// MarshalJSON writes the names and texts that stand in the file.
func (m Metadata) MarshalJSON() ([]byte, error) { return json.Marshal(m.text()) }

// UnmarshalJSON reads them, and checks them as Open does.
func (m *Metadata) UnmarshalJSON(raw []byte) error {
	var text map[string]string
	if err := json.Unmarshal(raw, &text); err != nil {
		return broken("metadata: %w", err)
	}
	return m.parse(text)
}

func (m *Metadata) text() map[string]string {
	text := map[string]string{}
	for name, field := range m.fields() {
		switch v := field.(type) {
		case *string:
			text[name] = *v
		case *int:
			text[name] = strconv.Itoa(*v)
		case *float64:
			text[name] = strconv.FormatFloat(*v, 'g', -1, 64)
		}
	}
	return text
}

// parse fills in what text has; other names belong to other programs or later versions.
func (m *Metadata) parse(text map[string]string) error {
	for name, field := range m.fields() {
		s, there := text[name]
		if !there {
			continue
		}
		var err error
		switch v := field.(type) {
		case *string:
			*v = s
		case *int:
			*v, err = strconv.Atoi(s)
		case *float64:
			*v, err = strconv.ParseFloat(s, 64)
			if err == nil && (math.IsNaN(*v) || math.IsInf(*v, 0)) {
				err = errors.New("not a finite number")
			}
		}
		if err != nil {
			return broken("metadata %s: %w", name, err)
		}
	}
	if m.Slide != "" {
		if _, err := coverslip.ParseSlideID(string(m.Slide)); err != nil {
			return broken("metadata slide_sha256: %w", err)
		}
	}
	return nil
}
