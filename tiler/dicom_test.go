package tiler

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coverslip"
	"coverslip/tiler/jpeg"
	"coverslip/tiler/vips"
)

// The DICOM was made from the SVS by coding its pixels again, in frames of 500 pixels, at libjpeg's
// quality 80 with half the colour resolution. That changes them by 3.44 of 255 on average, by 9 in
// dense tissue. Doing the same to the SVS here must give the DICOM's pixels to the bit.
func TestDICOMIsTheSVSCodedAgain(t *testing.T) {
	d, s := mustOpen(t, shared(t, "dicom/cmu-1-small-region")), mustOpen(t, cmu)
	if d.Format != "dicom" || d.Width != s.Width || d.Height != s.Height || d.MPP.Value != 0.499 || d.MPP.Source != coverslip.MPPDICOM || len(d.Levels) != 12 {
		t.Fatalf("%+v", d.Info)
	}
	const frame = 500
	decoder, err := jpeg.NewDecoder(jpeg.Stream{Color: jpeg.YCbCr, Width: frame, Height: frame})
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	want, got := make([]byte, frame*frame*3), make([]byte, frame*frame*3)
	for y := 0; y < d.Height; y += frame {
		for x := 0; x < d.Width; x += frame {
			w, h := min(frame, d.Width-x), min(frame, d.Height-y)
			part := make([]byte, w*h*3)
			if err := s.Region(context.Background(), part, 0, x, y, w, h); err != nil {
				t.Fatal(err)
			}
			clear(want) // frames at the edge are filled up with black
			for row := range h {
				copy(want[row*frame*3:], part[row*w*3:(row+1)*w*3])
			}
			coded, err := vips.Encode(want, frame, frame, ".jpg[Q=80,subsample-mode=on]")
			if err != nil {
				t.Fatal(err)
			}
			if err := decoder.Decode(want, frame*3, coded, frame, 1); err != nil {
				t.Fatal(err)
			}
			if err := d.Region(context.Background(), got, 0, x, y, frame, frame); err != nil {
				t.Fatal(err)
			}
			for row := range h {
				if line := row * frame * 3; !bytes.Equal(got[line:line+w*3], want[line:line+w*3]) {
					t.Fatalf("frame at %d,%d differs in row %d", x, y, row)
				}
			}
		}
	}
}

func TestDICOMBoxes(t *testing.T) {
	d, s := mustOpen(t, shared(t, "dicom/boxes_1.dcm")), mustOpen(t, shared(t, "svs/small-openslide.svs"))
	a, b := make([]byte, 16*16*3), make([]byte, 16*16*3)
	for slide, rgb := range map[*Slide][]byte{d: a, s: b} {
		if err := slide.Region(context.Background(), rgb, 0, 0, 0, 16, 16); err != nil {
			t.Fatal(err)
		}
	}
	if mean, most := difference(a, b); mean > 1 || d.ObjectivePower != 20 || d.Width != 16 { // made of that file without coding it again
		t.Errorf("mean difference %.2f, at most %.0f; %+v", mean, most, d.Info)
	}
}

func difference(a, b []byte) (mean, most float64) {
	for i := range a {
		d := float64(a[i]) - float64(b[i])
		d = max(d, -d)
		mean, most = mean+d/float64(len(a)), max(most, d)
	}
	return mean, most
}

// instance is a DICOM slide of one file with 32-pixel frames, a row of them. Each frame is given by its
// fragments; one without any is left out.
func instance(syntax, photometric string, planar int, frames ...[]string) []byte {
	le := binary.LittleEndian
	u16 := func(n int) string { return string(le.AppendUint16(nil, uint16(n))) }
	u32 := func(n int) string { return string(le.AppendUint32(nil, uint32(n))) }
	put := func(tag uint32, vr, value string) string {
		value += strings.Repeat(" ", len(value)%2)
		return u16(int(tag>>16)) + u16(int(tag&0xffff)) + vr + u16(len(value)) + value
	}
	sequence := func(tag uint32, items ...string) string {
		all := ""
		for _, item := range items {
			all += u16(0xfffe) + u16(0xe000) + u32(len(item)) + item
		}
		return u16(int(tag>>16)) + u16(int(tag&0xffff)) + "SQ\x00\x00" + u32(len(all)) + all
	}
	var positions []string
	var pixels, plain string
	for i, frame := range frames {
		for _, part := range frame {
			pixels += u16(0xfffe) + u16(0xe000) + u32(len(part)+len(part)%2) + part + strings.Repeat("\x00", len(part)%2)
			plain += part
		}
		if frame != nil {
			positions = append(positions, sequence(0x0048021a, put(0x0048021e, "SL", u32(32*i+1))+put(0x0048021f, "SL", u32(1))))
		}
	}
	n, pixelLength := len(positions), 0xffffffff
	pixels = u16(0xfffe) + u16(0xe000) + u32(0) + pixels + u16(0xfffe) + u16(0xe0dd) + u32(0)
	if syntax == "1.2.840.10008.1.2.1" {
		pixels, pixelLength = plain, len(plain)
	}
	const class = "1.2.840.10008.5.1.4.1.1.77.1.6"
	return []byte(strings.Repeat("\x00", 128) + "DICM" + put(0x00020002, "UI", class) + put(0x00020010, "UI", syntax) +
		put(0x00080008, "CS", `ORIGINAL\PRIMARY\VOLUME\NONE`) + put(0x00080016, "UI", class) + put(0x0020000e, "UI", "1.2.3") +
		put(0x00209311, "CS", "TILED_SPARSE") + put(0x00280002, "US", u16(3)) + put(0x00280004, "CS", photometric) +
		put(0x00280006, "US", u16(planar)) + put(0x00280008, "IS", fmt.Sprint(n)) + put(0x00280010, "US", u16(32)) +
		put(0x00280011, "US", u16(32)) + put(0x00280100, "US", u16(8)) + put(0x00480006, "UL", u32(32*len(frames))) +
		put(0x00480007, "UL", u32(32)) + sequence(0x52009229, sequence(0x00289110, put(0x00280030, "DS", `0.0005\0.00025`))) +
		sequence(0x52009230, positions...) + u16(0x7fe0) + u16(0x0010) + "OB\x00\x00" + u32(pixelLength) + pixels)
}

func TestDICOMCodings(t *testing.T) {
	picture := func(i int) []byte {
		rgb := make([]byte, 32*32*3)
		for p := range 32 * 32 {
			copy(rgb[3*p:], []byte{byte(100 + 30*i), byte(p % 32 * 4), byte(p / 32 * 4)})
		}
		return rgb
	}
	planes := func(rgb []byte) string {
		var out []byte
		for band := range 3 {
			for p := range 32 * 32 {
				out = append(out, rgb[3*p+band])
			}
		}
		return string(out)
	}
	encode := func(i int, suffix string) []string {
		data, err := vips.Encode(picture(i), 32, 32, suffix)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(data, []byte("\xff\x4f\xff\x51")); at > 0 {
			data = data[at:] // a JP2 file holds the codestream
		}
		half := len(data) / 4 * 2
		return []string{string(data[:half]), string(data[half:])}
	}
	const jpegSyntax, j2kSyntax, plain = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.1"
	for name, c := range map[string]struct {
		data []byte
		most float64
	}{
		"JPEG":     {instance(jpegSyntax, "YBR_FULL_422", 0, encode(0, ".jpg[Q=100,subsample-mode=off]"), nil, encode(2, ".jpg[Q=100,subsample-mode=off]")), 3},
		"JPEG2000": {instance(j2kSyntax, "YBR_RCT", 0, encode(0, ".j2k[lossless]"), nil, encode(2, ".j2k[lossless]")), 0},
		"Native":   {instance(plain, "RGB", 0, []string{string(picture(0))}, nil, []string{string(picture(2))}), 0},
		"RLE":      {instance("1.2.840.10008.1.2.5", "RGB", 0, []string{runLengths(picture(0))}, nil, []string{runLengths(picture(2))}), 0},
		"Planar":   {instance(plain, "RGB", 1, []string{planes(picture(0))}, nil, []string{planes(picture(2))}), 0},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "slide")
			if err := os.WriteFile(path, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			s := mustOpen(t, path)
			if s.MPP.Known() || !strings.Contains(s.MPP.Doubt, "0.25 µm per pixel across and 0.5 down") {
				t.Errorf("%+v", s.MPP)
			}
			want := [][]byte{picture(0), bytes.Repeat([]byte{255}, 32*32*3), picture(2)}
			for i := range want {
				rgb := make([]byte, 32*32*3)
				if err := s.Region(context.Background(), rgb, 0, 32*i, 0, 32, 32); err != nil {
					t.Fatal(err)
				}
				if _, most := difference(rgb, want[i]); most > c.most {
					t.Errorf("frame %d differs by %.0f", i, most)
				}
			}
			for n := range c.data {
				if n%7 != 0 {
					continue
				}
				if err := os.WriteFile(path, c.data[:n], 0o600); err != nil {
					t.Fatal(err)
				}
				if cut, err := Open(context.Background(), path); err == nil {
					_ = cut.Close()
					t.Fatalf("cut at %d of %d it opened", n, len(c.data))
				}
			}
		})
	}
}

// runLengths is a picture of 32 × 32 pixels as PS3.5 annex G codes it: pixels equal to their neighbours as
// runs.
func runLengths(rgb []byte) string {
	segments := make([][]byte, 3)
	for c := range segments {
		for at := 0; at < 32*32; {
			n := 1
			for at+n < 32*32 && n < 128 && rgb[(at+n)*3+c] == rgb[at*3+c] {
				n++
			}
			if n > 1 {
				segments[c] = append(segments[c], byte(257-n), rgb[at*3+c])
			} else {
				segments[c] = append(segments[c], 0x80, 0, rgb[at*3+c]) // nothing, and one pixel
			}
			at += n
		}
		if len(segments[c])%2 == 1 {
			segments[c] = append(segments[c], 0)
		}
	}
	head := make([]byte, 64)
	binary.LittleEndian.PutUint32(head, 3)
	at := len(head)
	for c := range segments {
		binary.LittleEndian.PutUint32(head[4+4*c:], uint32(at))
		at += len(segments[c])
	}
	return string(slices.Concat(head, segments[0], segments[1], segments[2]))
}

func TestFault2DamagedRLE(t *testing.T) {
	codec := rleTiles{32, 32}
	dst := make([]byte, 32*32*3)
	whole := []byte(runLengths(make([]byte, len(dst))))
	if err := codec.decode(dst, 96, 32, 1, whole); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"Cut":                func(b []byte) []byte { return b[:len(b)-8] },
		"NoHeader":           func(b []byte) []byte { return b[:63] },
		"OneSegment":         func(b []byte) []byte { b[0] = 1; return b },
		"SegmentInTheHeader": func(b []byte) []byte { b[4] = 8; return b },
		"SegmentsBackwards":  func(b []byte) []byte { b[8] = 1; b[9] = 0; return b },
		"SegmentBeyond":      func(b []byte) []byte { b[14] = 9; return b },
		"RunTooShort":        func(b []byte) []byte { b[64] = 0x82; return b }, // by one pixel
	} {
		err := codec.decode(dst, 96, 32, 1, damage(slices.Clone(whole)))
		if coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzFault13RLE(f *testing.F) {
	f.Add([]byte(runLengths(make([]byte, 32*32*3))))
	f.Fuzz(func(_ *testing.T, data []byte) { _ = rleTiles{32, 32}.decode(make([]byte, 32*32*3), 96, 32, 1, data) })
}

func TestDICOMDamagedFrame(t *testing.T) {
	data, err := vips.Encode(make([]byte, 32*32*3), 32, 32, ".jpg")
	if err != nil {
		t.Fatal(err)
	}
	broken := slices.Concat(data[:len(data)/2], data[len(data)/2+8:])
	path := filepath.Join(t.TempDir(), "slide.dcm")
	if err := os.WriteFile(path, instance("1.2.840.10008.1.2.4.50", "YBR_FULL_422", 0, []string{string(data)}, []string{string(broken)}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, path)
	rgb := make([]byte, 32*32*3)
	if err := s.Region(context.Background(), rgb, 0, 0, 0, 32, 32); err != nil {
		t.Error(err)
	}
	err = s.Region(context.Background(), rgb, 0, 32, 0, 32, 32)
	if coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), "file tile 1,0") || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
}
