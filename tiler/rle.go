package tiler

import (
	"encoding/binary"
	"errors"
	"fmt"

	"coverslip"
)

// rleTiles decodes frames in DICOM's run-length coding (PS3.5 annex G): a header of 64 bytes, and all red
// samples, all green and all blue ones, each packed as in TIFF's PackBits.
type rleTiles struct{ width, height int }

func (t rleTiles) shrinks() int { return 1 }

func (t rleTiles) decode(dst []byte, stride, rows, _ int, data []byte) error {
	planar, err := t.unpack(data)
	if err != nil {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "decode RLE", Err: err}
	}
	return nativeTiles{t.width, t.height, true}.decode(dst, stride, rows, 1, planar)
}

func (t rleTiles) unpack(data []byte) ([]byte, error) {
	const header = 64
	if len(data) < header {
		return nil, errors.New("it breaks off in the header")
	}
	number := func(i int) int64 { return int64(binary.LittleEndian.Uint32(data[4*i:])) }
	if n := number(0); n != 3 {
		return nil, fmt.Errorf("it has %d segments, not 3", n)
	}
	plane := t.width * t.height
	out := make([]byte, 3*plane)
	for i := range 3 {
		from, to := number(1+i), int64(len(data))
		if i < 2 {
			to = number(2 + i)
		}
		if from < header || from > to || to > int64(len(data)) {
			return nil, fmt.Errorf("segment %d lies from %d to %d of %d bytes", i, from, to, len(data))
		}
		if err := unpackBits(out[i*plane:(i+1)*plane], data[from:to]); err != nil {
			return nil, fmt.Errorf("segment %d: %w", i, err)
		}
	}
	return out, nil
}

func (t rleTiles) close() {}

// unpackBits fills dst. What follows the last pixel is padding.
func unpackBits(dst, src []byte) error {
	for len(dst) > 0 {
		if len(src) < 2 {
			return fmt.Errorf("it breaks off %d bytes early", len(dst))
		}
		switch n := int(int8(src[0])); { //nolint:gosec // two's complement, as written
		case n == -128: // nothing
			src = src[1:]
		case n < 0: // a run
			if n = 1 - n; n > len(dst) {
				return errors.New("it has more pixels than the frame")
			}
			for i := range n {
				dst[i] = src[1]
			}
			dst, src = dst[n:], src[2:]
		default:
			if n++; n > len(dst) {
				return errors.New("it has more pixels than the frame")
			} else if n > len(src)-1 {
				return fmt.Errorf("it breaks off %d bytes early", len(dst))
			}
			copy(dst, src[1:1+n])
			dst, src = dst[n:], src[1+n:]
		}
	}
	return nil
}
