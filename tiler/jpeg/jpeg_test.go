package jpeg_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	stdjpeg "image/jpeg"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"coverslip"
	"coverslip/tiler/jpeg"
	"coverslip/tiler/tiff"
	"coverslip/tiler/vips"
)

// picture is a smooth RGB picture, [h*w*3]: JPEG hardly changes it.
func picture(w, h int) []byte {
	rgb := make([]byte, w*h*3)
	for y := range h {
		for x := range w {
			p := rgb[(y*w+x)*3:]
			p[0] = byte(128 + 100*math.Sin(float64(x)/23))
			p[1] = byte(128 + 100*math.Cos(float64(y)/31))
			p[2] = byte(128 + 60*math.Sin(float64(x+y)/41))
		}
	}
	return rgb
}

func toImage(rgb []byte, w, h int) image.Image {
	m := image.NewRGBA(image.Rect(0, 0, w, h))
	for i := range w * h {
		m.SetRGBA(i%w, i/w, color.RGBA{rgb[3*i], rgb[3*i+1], rgb[3*i+2], 255})
	}
	return m
}

func encode(t testing.TB, m image.Image, quality int) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := stdjpeg.Encode(&b, m, &stdjpeg.Options{Quality: quality}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// split cuts a JPEG into the abbreviated stream of its tables and that of its pixels.
func split(t testing.TB, whole []byte) (tables, pixels []byte) {
	t.Helper()
	tables, pixels = []byte{0xff, 0xd8}, []byte{0xff, 0xd8}
	for at := 2; ; {
		marker, n := whole[at+1], 2+int(binary.BigEndian.Uint16(whole[at+2:]))
		switch marker {
		case 0xdb, 0xc4:
			tables = append(tables, whole[at:at+n]...)
		case 0xda:
			return append(tables, 0xff, 0xd9), append(pixels, whole[at:]...)
		default:
			pixels = append(pixels, whole[at:at+n]...)
		}
		at += n
	}
}

func newDecoder(t testing.TB, s jpeg.Stream) *jpeg.Decoder {
	t.Helper()
	d, err := jpeg.NewDecoder(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func decode(t testing.TB, d *jpeg.Decoder, data []byte, w, h int) []byte {
	t.Helper()
	dst := make([]byte, w*h*3)
	if err := d.Decode(dst, w*3, data, h, 1); err != nil {
		t.Fatal(err)
	}
	return dst
}

// far returns the largest and the mean difference.
func far(a, b []byte) (most int, mean float64) {
	for i := range a {
		d := int(a[i]) - int(b[i])
		d = max(d, -d)
		most, mean = max(most, d), mean+float64(d)
	}
	return most, mean / float64(len(a))
}

func TestDecodes(t *testing.T) {
	const w, h = 99, 70 // neither is a multiple of a block
	t.Run("YCbCr", func(t *testing.T) {
		rgb := picture(w, h)
		got := decode(t, newDecoder(t, jpeg.Stream{Color: jpeg.YCbCr, Width: w, Height: h}), encode(t, toImage(rgb, w, h), 95), w, h)
		if most, mean := far(got, rgb); most > 16 || mean > 1.5 {
			t.Errorf("differs from what was encoded by %d at most, %.2f on average", most, mean)
		}
	})
	t.Run("Grey", func(t *testing.T) {
		m := image.NewGray(image.Rect(0, 0, w, h))
		want := make([]byte, w*h*3)
		for i := range m.Pix {
			m.Pix[i] = byte(128 + 100*math.Sin(float64(i%w)/17))
			want[3*i], want[3*i+1], want[3*i+2] = m.Pix[i], m.Pix[i], m.Pix[i]
		}
		got := decode(t, newDecoder(t, jpeg.Stream{Color: jpeg.Grey, Width: w, Height: h}), encode(t, m, 95), w, h)
		if most, mean := far(got, want); most > 6 || mean > 1 {
			t.Errorf("differs from what was encoded by %d at most, %.2f on average", most, mean)
		}
	})
	t.Run("Progressive", func(t *testing.T) {
		rgb := picture(w, h)
		data, err := vips.Encode(rgb, w, h, ".jpg[Q=95,interlace=true]")
		if err != nil {
			t.Fatal(err)
		}
		got := decode(t, newDecoder(t, jpeg.Stream{Color: jpeg.YCbCr, Width: w, Height: h}), data, w, h)
		if most, mean := far(got, rgb); most > 16 || mean > 1.5 {
			t.Errorf("differs from what was encoded by %d at most, %.2f on average", most, mean)
		}
	})
	t.Run("IntoAPartOfALargerPicture", func(t *testing.T) {
		data := encode(t, toImage(picture(w, h), w, h), 90)
		d := newDecoder(t, jpeg.Stream{Color: jpeg.YCbCr, Width: w, Height: h})
		want := decode(t, d, data, w, h)
		const left, top, stride, lines = 7, 5, (w + 20) * 3, h + 9
		dst := bytes.Repeat([]byte{77}, stride*lines)
		if err := d.Decode(dst[top*stride+left*3:], stride, data, h, 1); err != nil {
			t.Fatal(err)
		}
		for y := range lines {
			for x := range stride {
				inside := y >= top && y < top+h && x >= left*3 && x < (left+w)*3
				if inside && dst[y*stride+x] != want[(y-top)*w*3+x-left*3] || !inside && dst[y*stride+x] != 77 {
					t.Fatalf("byte %d of row %d is %d", x, y, dst[y*stride+x])
				}
			}
		}
	})
	t.Run("UpperRowsOnly", func(t *testing.T) {
		data := encode(t, toImage(picture(w, h), w, h), 90)
		d := newDecoder(t, jpeg.Stream{Color: jpeg.YCbCr, Width: w, Height: h})
		want := decode(t, d, data, w, h)
		for _, rows := range []int{1, 8, 33, h - 1} {
			if got := decode(t, d, data, w, rows); !bytes.Equal(got, want[:rows*w*3]) {
				t.Errorf("the upper %d rows are not those of the whole", rows)
			}
		}
	})
}

func TestShrinkingInTheTransformIsNearTheMeanOfBlocks(t *testing.T) {
	const w, h = 99, 70
	d := newDecoder(t, jpeg.Stream{Color: jpeg.YCbCr, Width: w, Height: h})
	data := encode(t, toImage(picture(w, h), w, h), 95)
	full := decode(t, d, data, w, h)
	for _, shrink := range []int{2, 4, 8} {
		sw, sh := (w+shrink-1)/shrink, (h+shrink-1)/shrink
		got := make([]byte, sw*sh*3)
		if err := d.Decode(got, sw*3, data, h, shrink); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, sw*sh*3)
		for i := range want {
			x, y, c := i/3%sw, i/3/sw, i%3
			var sum, n int
			for py := y * shrink; py < min((y+1)*shrink, h); py++ {
				for px := x * shrink; px < min((x+1)*shrink, w); px++ {
					sum, n = sum+int(full[(py*w+px)*3+c]), n+1
				}
			}
			want[i] = byte(sum / n)
		}
		if _, mean := far(got, want); mean > 2 {
			t.Errorf("1/%d differs from the mean of blocks by %.2f on average", shrink, mean)
		}
	}
}

func TestSharedTables(t *testing.T) {
	const w, h = 64, 48
	fine, coarse := encode(t, toImage(picture(w, h), w, h), 95), encode(t, toImage(picture(w, h), w, h), 20)
	tables, pixels := split(t, fine)
	s := jpeg.Stream{Tables: tables, Color: jpeg.YCbCr, Width: w, Height: h}
	alone := newDecoder(t, jpeg.Stream{Color: jpeg.YCbCr, Width: w, Height: h})
	wantFine, wantCoarse := decode(t, alone, fine, w, h), decode(t, alone, coarse, w, h)

	t.Run("ServeEveryStream", func(t *testing.T) {
		d := newDecoder(t, s)
		for i := range 3 {
			if !bytes.Equal(decode(t, d, pixels, w, h), wantFine) {
				t.Fatalf("stream %d without tables of its own differs from the whole one", i)
			}
		}
	})
	t.Run("OfOneStreamDoNotReachTheNext", func(t *testing.T) {
		d := newDecoder(t, s)
		for range 3 {
			if !bytes.Equal(decode(t, d, coarse, w, h), wantCoarse) {
				t.Fatal("a stream with tables of its own differs from what it is alone")
			}
			if !bytes.Equal(decode(t, d, pixels, w, h), wantFine) {
				t.Fatal("a stream without tables took those of the one before")
			}
		}
		if err := alone.Decode(make([]byte, w*h*3), w*3, pixels, h, 1); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("a stream without any tables: %v", err)
		}
	})
	t.Run("SurviveABrokenStream", func(t *testing.T) {
		d := newDecoder(t, s)
		if err := d.Decode(make([]byte, w*h*3), w*3, coarse[:len(coarse)/2], h, 1); err == nil {
			t.Fatal("half a stream was decoded")
		}
		if !bytes.Equal(decode(t, d, pixels, w, h), wantFine) {
			t.Error("the stream after a broken one differs")
		}
	})
	t.Run("Broken", func(t *testing.T) {
		for name, bad := range map[string][]byte{"cut": tables[:len(tables)/2], "noise": []byte("not tables"), "a whole picture": fine} {
			s := s
			s.Tables = bad
			if d, err := jpeg.NewDecoder(s); coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" {
				t.Errorf("%s: %v, %v; want an invalid error with a hint", name, d, err)
			}
		}
	})
}

// Aperio's streams say neither by markers nor by the ids of their components that they are RGB.
func TestAperioRGBIsTakenAsItIs(t *testing.T) {
	f, err := os.Open("../../testdata/CMU-1-Small-Region.svs")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r := tiff.NewReaderAt(f, stat.Size())
	index, err := tiff.Read(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	dir := index.Levels[0].Dir
	off, n := dir.Tile(4, 6)
	data := make([]byte, n)
	if err := r.ReadRange(context.Background(), data, off); err != nil {
		t.Fatal(err)
	}
	w, h := dir.TileWidth, dir.TileHeight
	slide, err := vips.OpenTIFF(f.Name(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer slide.Close()
	want := make([]byte, w*h*3)
	if err := slide.ReadRegion(want, 4*w, 6*h, w, h); err != nil {
		t.Fatal(err)
	}
	got := decode(t, newDecoder(t, jpeg.Stream{Tables: dir.JPEGTables, Color: jpeg.RGB, Width: w, Height: h}), data, w, h)
	if most, mean := far(got, want); most != 0 {
		t.Errorf("differs from libtiff by %d at most, %.3f on average", most, mean)
	}
}

func TestRefuses(t *testing.T) {
	const w, h = 64, 48
	good := encode(t, toImage(picture(w, h), w, h), 90)
	ycc := jpeg.Stream{Color: jpeg.YCbCr, Width: w, Height: h}
	withMarker := func(marker byte, change func(segment []byte)) []byte {
		b := bytes.Clone(good)
		at := bytes.Index(b, []byte{0xff, marker})
		change(b[at:])
		return b
	}
	for _, c := range []struct {
		name string
		s    jpeg.Stream
		data []byte
		says string
	}{
		{"Nothing", ycc, nil, ""},
		{"Noise", ycc, []byte("this is no JPEG stream"), "JPEG"},
		{"WiderFrame", jpeg.Stream{Color: jpeg.YCbCr, Width: w - 1, Height: h}, good, "64 x 48"},
		{"NarrowerFrame", jpeg.Stream{Color: jpeg.YCbCr, Width: w + 1, Height: h}, good, "64 x 48"},
		{"HigherFrame", jpeg.Stream{Color: jpeg.YCbCr, Width: w, Height: h - 1}, good, "64 x 48"},
		{"LowerFrame", jpeg.Stream{Color: jpeg.YCbCr, Width: w, Height: h + 1}, good, "64 x 48"},
		{"ColourInAGreyPlace", jpeg.Stream{Color: jpeg.Grey, Width: w, Height: h}, good, "3 components where 1"},
		{"EndMarkerMissing", ycc, good[:len(good)-2], "end of JPEG"},
		{"HugeFrame", ycc, withMarker(0xc0, func(b []byte) { copy(b[5:], []byte{0xff, 0xff, 0xff, 0xff}) }), ""},
		{"TwelveBits", ycc, withMarker(0xc0, func(b []byte) { b[4] = 12 }), "precision"},
		{"Lossless", ycc, withMarker(0xc0, func(b []byte) { b[1] = 0xc3 }), "SOF"},
		{"QuantisationTableMissing", ycc, withMarker(0xc0, func(b []byte) { b[12] = 3 }), "uantization"},
		{"TooManyScans", jpeg.Stream{Color: jpeg.Grey, Width: 8, Height: 8}, manyScans(), "more than 100 scans"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dst := bytes.Repeat([]byte{77}, c.s.Width*c.s.Height*3)
			err := newDecoder(t, c.s).Decode(dst, c.s.Width*3, c.data, c.s.Height, 1)
			if coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("got %v, want an invalid error with a hint that says %q", err, c.says)
			}
			if strings.HasSuffix(c.name, "Frame") && !bytes.Equal(dst, bytes.Repeat([]byte{77}, len(dst))) {
				t.Error("something was written")
			}
		})
	}
	t.Run("CutAtEveryLength", func(t *testing.T) {
		d := newDecoder(t, ycc)
		dst := make([]byte, w*h*3)
		for n := range len(good) {
			if err := d.Decode(dst, w*3, good[:n], h, 1); coverslip.KindOf(err) != coverslip.Invalid {
				t.Fatalf("cut at %d of %d bytes: %v", n, len(good), err)
			}
		}
		decode(t, d, good, w, h)
	})
}

// manyScans is a valid progressive picture of one grey block that sends each coefficient in two
// scans of its own: 127 of them.
func manyScans() []byte {
	b := []byte{0xff, 0xd8, 0xff, 0xdb, 0, 67, 0}
	b = append(b, bytes.Repeat([]byte{1}, 64)...)
	b = append(b, 0xff, 0xc2, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0)
	for _, class := range []byte{0x00, 0x10} { // one code, a single 0 bit: no difference; end of block
		b = append(b, 0xff, 0xc4, 0, 20, class, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	scan := func(from, to, bits byte) { b = append(b, 0xff, 0xda, 0, 8, 1, 1, 0x00, from, to, bits, 0x7f) }
	scan(0, 0, 0)
	for k := byte(1); k < 64; k++ {
		scan(k, k, 0x01)
		scan(k, k, 0x10)
	}
	return append(b, 0xff, 0xd9)
}

func TestAFewScansAreFine(t *testing.T) {
	b := manyScans()
	cut := append(bytes.Clone(b[:len(b)-2-11*60]), 0xff, 0xd9)
	got := decode(t, newDecoder(t, jpeg.Stream{Color: jpeg.Grey, Width: 8, Height: 8}), cut, 8, 8)
	if !bytes.Equal(got, bytes.Repeat([]byte{128}, len(got))) {
		t.Errorf("a block without coefficients is not mid-grey: %v", got[:6])
	}
}

func TestDecodersWorkSideBySide(t *testing.T) {
	const w, h = 64, 48
	data := encode(t, toImage(picture(w, h), w, h), 90)
	s := jpeg.Stream{Color: jpeg.YCbCr, Width: w, Height: h}
	want := decode(t, newDecoder(t, s), data, w, h)
	var wg sync.WaitGroup
	for range 4 {
		d := newDecoder(t, s)
		wg.Go(func() {
			dst := make([]byte, w*h*3)
			for i := range 50 {
				if i%5 == 0 {
					if d.Decode(dst, w*3, data[:len(data)-100], h, 1) == nil {
						t.Error("a cut stream was decoded")
					}
				}
				if err := d.Decode(dst, w*3, data, h, 1); err != nil || !bytes.Equal(dst, want) {
					t.Errorf("other pixels, or %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestVersion(t *testing.T) {
	if v := jpeg.Version(); !strings.Contains(v, ".") || v[0] < '1' || v[0] > '9' {
		t.Errorf("version %q", v)
	}
}

func FuzzDecode(f *testing.F) {
	const w, h = 24, 16
	whole := encode(f, toImage(picture(w, h), w, h), 50)
	tables, pixels := split(f, whole)
	f.Add([]byte(nil), whole)
	f.Add(tables, pixels)
	f.Add([]byte(nil), manyScans())
	rng := rand.New(rand.NewPCG(3, 4))
	for range 8 {
		flipped := bytes.Clone(whole)
		flipped[rng.IntN(len(flipped))] ^= byte(1 + rng.IntN(255))
		f.Add([]byte(nil), flipped)
	}
	f.Fuzz(func(t *testing.T, tables, data []byte) {
		for _, c := range []jpeg.Color{jpeg.Grey, jpeg.YCbCr} {
			d, err := jpeg.NewDecoder(jpeg.Stream{Tables: tables, Color: c, Width: w, Height: h})
			if err != nil {
				continue
			}
			first, second := make([]byte, w*h*3), make([]byte, w*h*3)
			err1 := d.Decode(first, w*3, data, h, 1)
			err2 := d.Decode(second, w*3, data, h, 1)
			if (err1 == nil) != (err2 == nil) || err1 == nil && !bytes.Equal(first, second) {
				t.Errorf("the same bytes gave %v and then %v", err1, err2)
			}
			_ = d.Decode(second, w*3, data, h, 2)
			d.Close()
		}
	})
}
