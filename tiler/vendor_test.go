package tiler

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"coverslip"
	"coverslip/tiler/openslide"
	"coverslip/tiler/openslide/openslidetest"
	"coverslip/tiler/vips"
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

// writeVMS writes a Hamamatsu VMS slide of two JPEG pictures side by side, 1024 × 512 pixels of
// 0.5 µm, into a folder, and returns the path of its index and its pixels.
func writeVMS(t *testing.T, folder string) (index string, rgb []byte) {
	t.Helper()
	const w, h = 1024, 512
	rgb = make([]byte, w*h*3)
	for y := range h {
		for x := range w {
			rgb[(y*w+x)*3], rgb[(y*w+x)*3+1], rgb[(y*w+x)*3+2] = byte(x/4), byte(y/2), 128
		}
	}
	picture := func(name string, left, width, every int) {
		pw, ph := width/every, h/every
		part := make([]byte, 0, pw*ph*3)
		for y := range ph {
			for x := range pw {
				at := (y*every*w + left + x*every) * 3
				part = append(part, rgb[at:at+3]...)
			}
		}
		data, err := vips.Encode(part, pw, ph, ".jpg[Q=95,subsample-mode=off,restart-interval=8]")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	picture("left.jpg", 0, w/2, 1)
	picture("right.jpg", w/2, w/2, 1)
	picture("map.jpg", 0, w, 4)
	picture("macro.jpg", 0, w, 4)
	index = filepath.Join(folder, "slide.vms")
	text := "[Virtual Microscope Specimen]\r\nNoLayers=1\r\nNoJpegColumns=2\r\nNoJpegRows=1\r\n" +
		"ImageFile=left.jpg\r\nImageFile(1,0)=right.jpg\r\nMapFile=map.jpg\r\nOptimisationFile=slide.opt\r\nMacroImage=macro.jpg\r\n" +
		"PhysicalWidth=512000\r\nPhysicalHeight=256000\r\nPhysicalMacroWidth=1\r\nPhysicalMacroHeight=1\r\nSourceLens=20\r\n"
	if err := os.WriteFile(index, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return index, rgb
}

// vmsIsRead holds an open slide against the pixels it was written from.
func vmsIsRead(t *testing.T, s *Slide, want []byte) {
	t.Helper()
	if s.Format != "hamamatsu-vms" || s.Width != 1024 || s.Height != 512 || s.MPP != (coverslip.MPP{Value: 0.5, Source: coverslip.MPPOpenSlide}) || s.ObjectivePower != 20 {
		t.Errorf("got %+v", s.Info)
	}
	if most, mean := far(region(t, s, 0, 0, 0, 1024, 512), want); most > 12 || mean > 1 {
		t.Errorf("differs by %d at most, %.2f on average", most, mean)
	}
}

func TestSlideOfSeveralFiles(t *testing.T) {
	openslidetest.Need(t)
	folder := t.TempDir()
	index, want := writeVMS(t, folder)
	vmsIsRead(t, mustOpen(t, index), want)

	files, err := Files(t.Context(), index)
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	if err != nil || !slices.Equal(files, []string{"slide.vms", "left.jpg", "right.jpg", "map.jpg", "macro.jpg"}) {
		t.Errorf("files %v, %v", files, err)
	}

	zipped := archive(t, func(z *zip.Writer) {
		for _, name := range files {
			addFile(t, z, "slide/"+name, filepath.Join(folder, name))
		}
	})
	vmsIsRead(t, mustOpen(t, zipped), want)

	if err := os.Remove(filepath.Join(folder, "right.jpg")); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), index)
	refused(t, err, coverslip.Invalid, index)
}

// Fault 2: of a slide that OpenSlide reads, what is not damaged can be read on.
func TestFault2VendorSlideIsReadAroundDamage(t *testing.T) {
	openslidetest.Need(t)
	folder := t.TempDir()
	index, want := writeVMS(t, folder)
	right := filepath.Join(folder, "right.jpg")
	data, err := os.ReadFile(right)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(data[:len(data)-100], []byte{0xff, 0xd3}) // in the last rows
	clear(data[at+2 : at+20])
	if err := os.WriteFile(right, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, index)
	bad := s.Region(t.Context(), make([]byte, 512*512*3), 0, 512, 0, 512, 512)
	if coverslip.KindOf(bad) != coverslip.Invalid || !isDamage(bad) {
		t.Errorf("got %v", bad)
	}
	got := region(t, s, 0, 0, 0, 512, 512)
	for y := range 512 {
		if most, _ := far(got[y*512*3:][:512*3], want[y*1024*3:][:512*3]); most > 12 {
			t.Fatalf("row %d differs by %d", y, most)
		}
	}
}

// bucketOf serves a folder as a bucket, to whoever asks, and returns the address of a key in it.
func bucketOf(t *testing.T, folder string) func(key string) string {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := os.ReadFile(filepath.Join(folder, strings.TrimPrefix(r.URL.Path, "/bucket/")))
		if err != nil {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, "<Error><Code>NoSuchKey</Code></Error>")
			return
		}
		w.Header().Set("ETag", `"1"`)
		info, _ := os.Stat(folder)
		http.ServeContent(w, r, "", info.ModTime(), bytes.NewReader(data))
	}))
	t.Cleanup(server.Close)
	return func(key string) string {
		return "s3://bucket/" + key + "?endpoint=" + url.QueryEscape(server.URL)
	}
}

// staged lists the private folders of this process' slides.
func staged(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(os.TempDir(), zipFolder+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestVendorSlideInABucketIsCopiedAndTheCopyRemoved(t *testing.T) {
	openslidetest.Need(t)
	t.Setenv("TMPDIR", t.TempDir())
	folder := t.TempDir()
	_, want := writeVMS(t, folder)
	s, err := Open(t.Context(), bucketOf(t, folder)("slide.vms"))
	if err != nil {
		t.Fatal(err)
	}
	if len(staged(t)) != 1 {
		t.Errorf("copies: %v", staged(t))
	}
	vmsIsRead(t, s, want)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if left := staged(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestVendorSlideAtAWebAddressIsCopied(t *testing.T) {
	openslidetest.Need(t)
	t.Setenv("TMPDIR", t.TempDir())
	path := brightfieldNDPI(t)
	near, far := mustOpen(t, path), mustOpen(t, serve(t, path, 0).URL)
	if !bytes.Equal(region(t, near, 0, 1000, 1000, 256, 256), region(t, far, 0, 1000, 1000, 256, 256)) {
		t.Error("the pixels differ")
	}
}

// mrxs writes an MRXS slide as far as its names go, with this index, and returns its path.
func mrxs(t *testing.T, slidedat string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a slide.mrxs")
	picture, err := vips.Encode(make([]byte, 300), 10, 10, ".jpg")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, picture, 0o600); err != nil {
		t.Fatal(err)
	}
	if slidedat == "" {
		return path
	}
	folder := strings.TrimSuffix(path, ".mrxs")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"Slidedat.ini": slidedat, "Index.dat": "index", "Data0000.dat": "data", "Data0001.dat": "data", "Other.dat": "other"} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestMRXSIsItsFolderToo(t *testing.T) {
	path := mrxs(t, "\xef\xbb\xbf[GENERAL]\r\nSLIDE_NAME = C:\\slides\\x\r\n[HIERARCHICAL]\r\nINDEXFILE = Index.dat\r\n[DATAFILE]\r\nFILE_COUNT = 2\r\nFILE_0 = Data0000.dat\r\nFILE_1 = Data0001.dat\r\n")
	folder := strings.TrimSuffix(path, ".mrxs")
	want := []string{path}
	for _, name := range []string{"Slidedat.ini", "Index.dat", "Data0000.dat", "Data0001.dat"} {
		want = append(want, filepath.Join(folder, name))
	}
	if files, err := Files(t.Context(), path); err != nil || !slices.Equal(files, want) {
		t.Errorf("got %v, %v", files, err)
	}
	// Also in a bucket, under names that need care.
	address := bucketOf(t, filepath.Dir(path))
	for i, file := range want {
		name, err := filepath.Rel(filepath.Dir(path), file)
		if err != nil {
			t.Fatal(err)
		}
		want[i] = address(strings.ReplaceAll(name, " ", "%20"))
	}
	if files, err := Files(t.Context(), want[0]); err != nil || !slices.Equal(files, want) {
		t.Errorf("got %v, %v", files, err)
	}
}

func TestMRXSAloneNamesTheMissingFolder(t *testing.T) {
	path := mrxs(t, "")
	_, err := Open(t.Context(), path)
	refused(t, err, coverslip.Invalid, path)
	if err == nil || !strings.Contains(err.Error(), "the folder a slide with its Slidedat.ini") {
		t.Errorf("got %v", err)
	}
	_, err = Open(t.Context(), bucketOf(t, filepath.Dir(path))("a%20slide.mrxs"))
	if coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), "the folder a slide with") {
		t.Errorf("in a bucket: %v", err)
	}
}

// Fault 10: slides that name files outside their folder.
func TestFault10NothingOutsideTheFolderIsTouched(t *testing.T) {
	for _, name := range []string{"../../etc/passwd", "/etc/passwd", "..", "a/../../x", `..\x`, "x\x00y", strings.Repeat("语", 1366)} {
		path := mrxs(t, "[HIERARCHICAL]\nINDEXFILE = Index.dat\n[DATAFILE]\nFILE_COUNT=1\n  FILE_0 =\t"+name+"\n")
		_, err := Open(t.Context(), path)
		refused(t, err, coverslip.Invalid, path)
		vms := filepath.Join(t.TempDir(), "slide.vms")
		if err := os.WriteFile(vms, []byte("[Virtual Microscope Specimen]\nImageFile(0,1)="+name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = Open(t.Context(), vms)
		refused(t, err, coverslip.Invalid, vms)
		if _, err := Files(t.Context(), vms); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("files: %v", err)
		}
	}
}

// Where names are read otherwise by OpenSlide than by us, the kernel has the last word.
func TestFilesThatWereNotNamedCannotBeRead(t *testing.T) {
	openslidetest.Need(t)
	if version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); errno != 0 || version < 1 {
		t.Skip("this kernel has no Landlock")
	}
	index, _ := writeVMS(t, t.TempDir())
	if _, err := openslide.Open(t.Context(), index, []string{index}); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("a file that was not named was read: %v", err)
	}
}

func TestWhatNobodyReadsIsNamed(t *testing.T) {
	for start, says := range map[string]string{
		"<DataObject ObjectType=\"DPUfsImport\">":  "iSyntax",
		"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":         "ZVI",
		"\xff\xd8\xff\xe0\x00\x10JFIF\x00 picture": "MRXS",
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, append([]byte(start), make([]byte, 500)...), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), path)
		refused(t, err, coverslip.Unsupported, path)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}

// FuzzNamedFiles: no name leaves the folder.
func FuzzNamedFiles(f *testing.F) {
	f.Add([]byte("[DATAFILE]\nFILE_0 = Data0000.dat\n"))
	f.Add([]byte("ImageFile(1,0)=../x\r\n\xef\xbb\xbfMapFile=\x00"))
	f.Fuzz(func(t *testing.T, ini []byte) {
		names, err := namedFiles(ini, []string{"FILE_", "ImageFile", "MapFile"})
		if err != nil {
			return
		}
		for _, name := range names {
			if filepath.Base(name) != name || !filepath.IsLocal(name) || strings.ContainsAny(name, "/\\\x00") {
				t.Errorf("%q", name)
			}
		}
	})
}
