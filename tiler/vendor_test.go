package tiler

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
	"coverslip/tiler/openslide"
	"coverslip/tiler/openslide/openslidetest"
)

// The test binary is also the decode process.
func TestMain(m *testing.M) {
	openslide.Main()
	os.Exit(m.Run())
}

// brightfieldNDPI is the one NDPI there is, made to say that no filter was in the way of its light.
func brightfieldNDPI(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(shared(t, "ndpi/test3-DAPI.ndpi"))
	if err != nil {
		t.Fatal(err)
	}
	field := []byte{0xab, 0xff, 11, 0, 1, 0, 0, 0} // tag 65451, one float
	if bytes.Count(data, field) == 0 {
		t.Fatal("no emission wavelength")
	}
	for at := bytes.Index(data, field); at >= 0; at = bytes.Index(data, field) {
		binary.LittleEndian.PutUint16(data[at:], 65452)
	}
	path := filepath.Join(t.TempDir(), "slide.ndpi")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestVendorSlideOpens(t *testing.T) {
	openslidetest.Need(t)
	path := brightfieldNDPI(t)
	s := mustOpen(t, path)
	if s.Path != path || s.Format != "hamamatsu-ndpi" || s.Width != 3968 || s.Height != 4864 || s.ObjectivePower != 40 || !strings.Contains(s.Reader, "OpenSlide 4") {
		t.Errorf("got %+v", s.Info)
	}
	if d := s.MPP.Value - 0.2282; d < -1e-4 || d > 1e-4 || s.MPP.Source != coverslip.MPPOpenSlide {
		t.Errorf("mpp %+v", s.MPP)
	}
	for i, l := range s.Levels {
		if want := float64(int(1) << i); l.Downsample != want || l.Width != 3968>>i || len(s.Levels) != 7 {
			t.Errorf("level %d of %d: %+v", i, len(s.Levels), l)
		}
	}
	// What is read at once and in parts is the same.
	whole := region(t, s, 1, 100, 300, 900, 700)
	part := region(t, s, 1, 500, 620, 130, 70)
	for y := range 70 {
		if !bytes.Equal(part[y*390:][:390], whole[((620-300+y)*900+400)*3:][:390]) {
			t.Fatalf("row %d differs", y)
		}
	}
}

func TestFluorescenceNDPIIsUnsupported(t *testing.T) {
	path := shared(t, "ndpi/test3-DAPI.ndpi")
	_, err := Open(t.Context(), path)
	refused(t, err, coverslip.Unsupported, path)
	if err != nil && !strings.Contains(err.Error(), "fluorescence at 455 nm") {
		t.Errorf("got %v", err)
	}
}

var _ = errors.Is
var _ = fmt.Sprint
