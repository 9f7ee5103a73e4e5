package dicom_test

import (
	"context"
	"errors"
	"testing"

	"coverslip"
	"coverslip/tiler/dicom"
)

// FuzzOpen holds that no bytes make Open crash, run away, or accept a frame that is not in the file.
// The seeds are every layout; testdata/fuzz has what fuzzing found beyond.
func FuzzOpen(f *testing.F) {
	for _, seed := range []file{
		{tile: 8, width: 10, height: 8},
		{tile: 8, width: 10, height: 8, table: "extended", undefined: true},
		{tile: 8, width: 10, height: 8, table: "none"},
		{tile: 8, width: 10, height: 8, syntax: implicitSyntax, photometric: "RGB"},
		{tile: 8, width: 10, height: 8, syntax: explicitSyntax, photometric: "RGB", undefined: true},
		{tile: 8, width: 32, height: 8, organization: "TILED_SPARSE", positions: [][2]int{{17, 1}}},
		{tile: 8, width: 32, height: 8, syntax: j2kSyntax, photometric: "YBR_RCT", frames: [][]string{{"\xff\x4f\xff\x51 and so on"}}, first: 2},
		{tile: 8, width: 8, height: 8, table: "none", frames: [][]string{{"\xff\xd8\xff\xda", "abcd"}}},
	} {
		f.Add(seed.build())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := dicom.Open(context.Background(), named(data))
		if err != nil {
			var e *coverslip.Error
			if !errors.As(err, &e) || e.Op == "" || e.Err == nil || e.Hint == "" || e.Path == "" || e.Kind != coverslip.Invalid && e.Kind != coverslip.Unsupported {
				t.Fatalf("not an error to show a user: %#v", err)
			}
			return
		}
		l := s.Levels[0]
		columns, rows := l.FrameCount()
		if l.Width < 1 || l.Height < 1 || l.Downsample != 1 || columns < 1 || rows < 1 {
			t.Fatalf("%+v", l)
		}
		for i := range min(columns*rows, 64) {
			_, off, n, ok := l.Frame(i%columns, i/columns)
			if !ok {
				continue
			}
			if off < 132 || n < 1 || off+n > int64(len(data)) {
				t.Fatalf("frame %d has %d bytes at %d of %d", i, n, off, len(data))
			}
			if part, err := l.Payload(append([]byte(nil), data[off:off+n]...)); err == nil && (len(part) == 0 || int64(len(part)) > n) {
				t.Fatalf("frame %d of %d bytes has %d", i, n, len(part))
			}
		}
	})
}
