package tiler

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coverslip"
	"coverslip/tiler/tilertest"
)

// archive writes a zip file of what fill puts in, and makes the temporary folder one that is looked at
// after the test: nothing may be left in it.
func archive(t *testing.T, fill func(z *zip.Writer)) string {
	t.Helper()
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	path := filepath.Join(t.TempDir(), "slide.zip")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	fill(z)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := filepath.Glob(filepath.Join(temporary, zipFolder+"*")); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	return path
}

func add(t *testing.T, z *zip.Writer, name string, data []byte) {
	t.Helper()
	w, err := z.Create(name)
	if err == nil {
		_, err = w.Write(data)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func addFile(t *testing.T, z *zip.Writer, name, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw(t, z, &zip.FileHeader{Name: name, Method: zip.Store, UncompressedSize64: uint64(len(data)), CRC32: crc32.ChecksumIEEE(data)}, data)
}

func TestZipOfASlideIsTheSlide(t *testing.T) {
	t.Run("DICOM", func(t *testing.T) {
		folder := shared(t, "dicom/cmu-1-small-region")
		path := archive(t, func(z *zip.Writer) {
			if err := z.AddFS(os.DirFS(folder)); err != nil {
				t.Fatal(err)
			}
			add(t, z, "notes/readme.txt", []byte("a slide"))
		})
		got, want := mustOpen(t, path), mustOpen(t, folder)
		if got.Path != path || got.Format != "dicom" || len(got.Levels) != len(want.Levels) {
			t.Fatalf("%+v", got.Info)
		}
		if !bytes.Equal(region(t, got, 0, 300, 300, 500, 500), region(t, want, 0, 300, 300, 500, 500)) {
			t.Error("other pixels")
		}
	})
	t.Run("SVS", func(t *testing.T) {
		path := archive(t, func(z *zip.Writer) { addFile(t, z, "a folder/a slide.svs", cmu) })
		got, want := mustOpen(t, path), mustOpen(t, cmu)
		if got.Format != "aperio" || got.MPP != want.MPP || !bytes.Equal(region(t, got, 0, 0, 0, 300, 300), region(t, want, 0, 0, 0, 300, 300)) {
			t.Errorf("%+v", got.Info)
		}
	})
}

func TestFault11Zip(t *testing.T) {
	bombs := map[int][]byte{}
	zeros := func(t *testing.T, z *zip.Writer, name string, megabytes int) {
		t.Helper()
		sum, block := uint32(0), make([]byte, 1<<20)
		for range megabytes {
			sum = crc32.Update(sum, crc32.IEEETable, block)
		}
		deflated := bombs[megabytes]
		if deflated == nil {
			deflated = tilertest.DeflateBomb(int64(megabytes) << 20)
			bombs[megabytes] = deflated
		}
		raw(t, z, &zip.FileHeader{Name: name, Method: zip.Deflate, UncompressedSize64: uint64(megabytes) << 20, CRC32: sum}, deflated[2:len(deflated)-4]) // without zlib's frame
	}
	for _, c := range []struct {
		name string
		fill func(t *testing.T, z *zip.Writer)
		kind coverslip.Kind
		says string
	}{
		{"Bomb", func(t *testing.T, z *zip.Writer) { zeros(t, z, "slide.svs", 110) }, coverslip.TooLarge, "far more"},
		{"BombInManyFiles", func(t *testing.T, z *zip.Writer) {
			for i := range 110 {
				zeros(t, z, fmt.Sprintf("%d.svs", i), 1)
			}
		}, coverslip.TooLarge, "far more"},
		{"ForgedSize", func(t *testing.T, z *zip.Writer) {
			bomb := tilertest.DeflateBomb(110 << 20)
			raw(t, z, &zip.FileHeader{Name: "slide.svs", Method: zip.Deflate, UncompressedSize64: 10}, bomb[2:len(bomb)-4]) // without zlib's frame
		}, "", ""}, // whichever is seen first
		{"WrongChecksum", func(t *testing.T, z *zip.Writer) {
			raw(t, z, &zip.FileHeader{Name: "slide.svs", Method: zip.Store, UncompressedSize64: 4, CRC32: 1}, []byte("II*\x00"))
		}, coverslip.Invalid, "checksum"},
		{"Symlink", func(t *testing.T, z *zip.Writer) {
			h := &zip.FileHeader{Name: "slide.svs"}
			h.SetMode(fs.ModeSymlink | 0o777)
			w, err := z.CreateHeader(h)
			if err == nil {
				_, err = io.WriteString(w, "/etc/passwd")
			}
			if err != nil {
				t.Fatal(err)
			}
		}, coverslip.Invalid, "link"},
		{"Encrypted", func(t *testing.T, z *zip.Writer) {
			raw(t, z, &zip.FileHeader{Name: "slide.svs", Method: zip.Store, Flags: 1, UncompressedSize64: 4, CRC32: crc32.ChecksumIEEE([]byte("abcd"))}, []byte("abcd"))
		}, coverslip.Invalid, "encrypted"},
		{"TooManyEntries", func(t *testing.T, z *zip.Writer) {
			for i := range zipBounds.entries + 1 {
				raw(t, z, &zip.FileHeader{Name: fmt.Sprint(i)}, nil)
			}
		}, coverslip.TooLarge, "entries"},
		{"TwoSlides", func(t *testing.T, z *zip.Writer) { addFile(t, z, "a.svs", cmu); addFile(t, z, "b.svs", cmu) }, coverslip.Unsupported, "2 slides: a.svs, b.svs"},
		{"DICOMSlideBesideAnother", func(t *testing.T, z *zip.Writer) {
			if err := z.AddFS(os.DirFS(filepath.Dir(shared(t, "dicom/boxes_0.dcm")))); err != nil {
				t.Fatal(err)
			}
		}, coverslip.Unsupported, "slides"},
		{"NoSlide", func(t *testing.T, z *zip.Writer) { add(t, z, "notes.txt", []byte("nothing")) }, coverslip.Unsupported, "no slide"},
		{"ZipInZip", func(t *testing.T, z *zip.Writer) {
			var inner bytes.Buffer
			in := zip.NewWriter(&inner)
			addFile(t, in, "a.svs", cmu)
			_ = in.Close()
			add(t, z, "inner.zip", inner.Bytes())
		}, coverslip.Unsupported, "no slide"},
		{"SameNameTwice", func(t *testing.T, z *zip.Writer) { add(t, z, "a", nil); add(t, z, "a", nil) }, coverslip.Invalid, "two files"},
		{"FileAsFolder", func(t *testing.T, z *zip.Writer) { add(t, z, "a", nil); add(t, z, "a/b", nil) }, coverslip.Invalid, "two files"},
		{"CutSlide", func(t *testing.T, z *zip.Writer) {
			data, err := os.ReadFile(cmu)
			if err != nil {
				t.Fatal(err)
			}
			add(t, z, "a.svs", data[:len(data)/2])
		}, coverslip.Invalid, "ends"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := archive(t, func(z *zip.Writer) { c.fill(t, z) })
			started := time.Now()
			s, err := Open(t.Context(), path)
			if err == nil {
				_ = s.Close()
			}
			kind := coverslip.KindOf(err)
			if c.kind == "" && (kind == coverslip.Invalid || kind == coverslip.TooLarge) {
				return
			}
			refused(t, err, c.kind, path)
			if !strings.Contains(fmt.Sprint(err), c.says) || strings.Contains(fmt.Sprint(err), zipFolder) {
				t.Errorf("it says %v", err)
			}
			if took := time.Since(started); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// raw adds an entry of which the header says what it likes.
func raw(t *testing.T, z *zip.Writer, h *zip.FileHeader, data []byte) {
	t.Helper()
	h.CompressedSize64 = uint64(len(data))
	w, err := z.CreateRaw(h)
	if err == nil {
		_, err = w.Write(data)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// An end record that understates the number of entries does not help, nor one that points elsewhere.
func TestFault11ZipDirectoryIsCounted(t *testing.T) {
	path := archive(t, func(z *zip.Writer) {
		for i := range zipBounds.entries + 1 {
			raw(t, z, &zip.FileHeader{Name: fmt.Sprint(i)}, nil)
		}
	})
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(data, []byte("PK\x05\x06"))
	for name, forge := range map[string]func(end []byte){
		"Count": func(end []byte) {
			binary.LittleEndian.PutUint16(end[8:], 1)
			binary.LittleEndian.PutUint16(end[10:], 1)
		},
		"Offset": func(end []byte) { binary.LittleEndian.PutUint32(end[16:], 0) },
		"Length": func(end []byte) { binary.LittleEndian.PutUint32(end[12:], 46) },
		"Gone":   func(end []byte) { end[0] = 0 },
	} {
		forged := bytes.Clone(data)
		forge(forged[at:])
		if err := os.WriteFile(path, forged, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), path)
		if kind := coverslip.KindOf(err); kind != coverslip.Invalid && kind != coverslip.TooLarge {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFault10NamesInAZipStayInItsFolder(t *testing.T) {
	for name, bad := range map[string]string{
		"Up": "../../x", "UpWithin": "a/../../x", "Absolute": "/etc/x", "NUL": "a\x00b", "Backslash": `..\..\x`, "Drive": `C:\x`, "NoText": "a\xff\xfe",
		"FourKiB": strings.Repeat("ä/", 4096) + "x", "LongPart": strings.Repeat("ä", 200) + ".svs", "Dots": "..", "Here": "./x",
	} {
		t.Run(name, func(t *testing.T) {
			path := archive(t, func(z *zip.Writer) {
				h := &zip.FileHeader{Name: bad, Method: zip.Store, UncompressedSize64: 1, CRC32: crc32.ChecksumIEEE([]byte("x"))}
				raw(t, z, h, []byte("x"))
			})
			_, err := Open(t.Context(), path)
			refused(t, err, coverslip.Invalid, path)
			around, _ := filepath.Glob(filepath.Join(os.TempDir(), "*"))
			if len(around) != 0 {
				t.Errorf("%v", around)
			}
		})
	}
}

// What a process left that was killed while it had an archive open goes with the next archive; what is
// in use stays.
func TestUnpackedArchivesOfDeadProcessesAreRemoved(t *testing.T) {
	path := archive(t, func(z *zip.Writer) { addFile(t, z, "a.svs", cmu) })
	left := filepath.Join(os.TempDir(), zipFolder+"123")
	if err := os.MkdirAll(filepath.Join(left, "slide"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	one, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	two, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); err == nil {
		t.Error("it is still there")
	}
	region(t, one, 0, 0, 0, 500, 500)
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	region(t, two, 0, 0, 0, 500, 500)
	if err := two.Close(); err != nil {
		t.Error(err)
	}
}
