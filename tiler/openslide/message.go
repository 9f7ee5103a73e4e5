package openslide

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"coverslip"
)

// Messages go over a SOCK_SEQPACKET pair, which keeps them apart: one opening from the process, then
// requests to it and answers from it, in any order. Numbers are little-endian.

const (
	slotPixels = 1 << 19 // of a slot of the shared memory: a region of 724×724, 2 MB
	slotBytes  = slotPixels * 4
	maxAcross  = 1 << 15 // pixels of a row of a request
	maxText    = 1 << 10 // bytes of a reason
	maxMessage = 1 << 14 // bytes
	maxLevels  = 64
	maxEdge    = 1 << 31 // pixels
)

// opening is what the process says first, in JSON: what it opened, or why it could not.
type opening struct {
	Description
	Kind coverslip.Kind `json:"kind,omitempty"`
	Op   string         `json:"op,omitempty"`
	Why  string         `json:"why,omitempty"`
}

// parseOpening reads an opening from a process that may have been taken over: nothing in it is
// believed that could not be. Of a slide that was not opened there is only OpenSlide's version.
func parseOpening(message []byte) (Description, error) {
	var o opening
	if err := json.Unmarshal(message, &o); err != nil {
		return Description{}, fmt.Errorf("it speaks another language: %w", err)
	}
	if o.Why != "" {
		e := &coverslip.Error{Kind: coverslip.Invalid, Op: "open with OpenSlide", Err: errors.New(o.Why[:min(len(o.Why), maxText)]), Hint: "the file is broken or cut; copy it again from its source"}
		switch o.Kind {
		case coverslip.Unsupported:
			e.Kind, e.Hint = o.Kind, "export the slide as DICOM or TIFF"
		case coverslip.Environment:
			e.Kind, e.Op, e.Hint = o.Kind, o.Op, hint
		}
		return Description{Version: o.Version}, e
	}
	d := o.Description
	if len(d.Levels) == 0 || len(d.Levels) > maxLevels {
		return Description{}, fmt.Errorf("it says there are %d levels", len(d.Levels))
	}
	for _, l := range d.Levels {
		if l.Width < 1 || l.Height < 1 || l.Width > maxEdge || l.Height > maxEdge || !(l.Downsample >= 1) || l.Downsample > maxEdge || math.IsInf(l.Downsample, 0) {
			return Description{}, fmt.Errorf("it says a level has %d × %d pixels, each %g of level 0", l.Width, l.Height, l.Downsample)
		}
	}
	return d, nil
}

// request asks for the w×h pixels of a level at (x, y) of level 0, to be laid into a slot.
type request struct {
	slot, level int32
	x, y        int64
	w, h        int32
}

const requestSize = 32

func (r request) encode() []byte {
	b := make([]byte, 0, requestSize)
	b = binary.LittleEndian.AppendUint32(b, uint32(r.slot))  //nolint:gosec // the same bits
	b = binary.LittleEndian.AppendUint32(b, uint32(r.level)) //nolint:gosec // the same bits
	b = binary.LittleEndian.AppendUint64(b, uint64(r.x))     //nolint:gosec // the same bits
	b = binary.LittleEndian.AppendUint64(b, uint64(r.y))     //nolint:gosec // the same bits
	b = binary.LittleEndian.AppendUint32(b, uint32(r.w))     //nolint:gosec // the same bits
	return binary.LittleEndian.AppendUint32(b, uint32(r.h))  //nolint:gosec // the same bits
}

// parseRequest reads a request for one of so many slots.
func parseRequest(b []byte, slots int) (request, error) {
	if len(b) != requestSize {
		return request{}, fmt.Errorf("a request of %d bytes", len(b))
	}
	r := request{
		slot:  int32(binary.LittleEndian.Uint32(b)),      //nolint:gosec // the same bits
		level: int32(binary.LittleEndian.Uint32(b[4:])),  //nolint:gosec // the same bits
		x:     int64(binary.LittleEndian.Uint64(b[8:])),  //nolint:gosec // the same bits
		y:     int64(binary.LittleEndian.Uint64(b[16:])), //nolint:gosec // the same bits
		w:     int32(binary.LittleEndian.Uint32(b[24:])), //nolint:gosec // the same bits
		h:     int32(binary.LittleEndian.Uint32(b[28:])), //nolint:gosec // the same bits
	}
	if r.slot < 0 || int(r.slot) >= slots || r.w < 1 || r.h < 1 || int64(r.w)*int64(r.h) > slotPixels {
		return request{}, fmt.Errorf("a request for %d × %d pixels in slot %d of %d", r.w, r.h, r.slot, slots)
	}
	return r, nil
}

// answer says that a slot is filled, or why not.
type answer struct {
	slot int
	why  string // empty when all went well
}

func (a answer) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(a.slot)) //nolint:gosec // the same bits
	return append(b, a.why[:min(len(a.why), maxText)]...)
}

func parseAnswer(b []byte, slots int) (answer, error) {
	if len(b) < 4 || len(b) > 4+maxText {
		return answer{}, fmt.Errorf("an answer of %d bytes", len(b))
	}
	slot := binary.LittleEndian.Uint32(b)
	if int64(slot) >= int64(slots) {
		return answer{}, fmt.Errorf("an answer for slot %d of %d", slot, slots)
	}
	return answer{int(slot), string(b[4:])}, nil
}
