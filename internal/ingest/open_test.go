package ingest_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coverslip"
	"coverslip/storage/blob"
	"coverslip/storage/blob/s3test"
)

// looks opens a slide and reads a pixel.
func (b *bench) looks(t *testing.T, s coverslip.Slide) error {
	t.Helper()
	slide, release, err := b.Open(t.Context(), s)
	if err != nil {
		return err
	}
	defer release()
	defer slide.Close()
	return slide.Region(t.Context(), make([]byte, 3), 0, 1000, 1000, 1, 1)
}

func TestOpenRefusesBytesThatAreGoneOrOthers(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(t.TempDir(), "slide.svs")
	write := func(raw []byte) {
		t.Helper()
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(wholeSlide(t))
	out, err := b.Register(t.Context(), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.looks(t, out.Slide); err != nil {
		t.Errorf("as registered: %v", err)
	}
	write(append(slices.Clone(wholeSlide(t)), 1))
	if err := b.looks(t, out.Slide); coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), "changed since it was registered") {
		t.Errorf("larger: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := b.looks(t, out.Slide); coverslip.KindOf(err) != coverslip.Conflict || coverslip.HintOf(err) == "" {
		t.Errorf("gone: %v", err)
	}
}

func TestOpenOfADICOMFolder(t *testing.T) {
	folder := "../../../shared/data/wsi/dicom/cmu-1-small-region"
	if _, err := os.Stat(folder); err != nil {
		t.Skipf("needs ../shared/data: %v", err)
	}
	b := newBench(t)
	out, err := b.Register(t.Context(), folder, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.looks(t, out.Slide); err != nil {
		t.Error(err)
	}
}

// A bucket that does not answer may do so later: that is no fault of the slide's.
func TestOpenOfASlideInABucketThatDoesNotAnswer(t *testing.T) {
	b := newBench(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	s := coverslip.Slide{Name: "far.svs", Location: "s3://slides/far.svs?endpoint=http://127.0.0.1:1#version=x"}
	if err := b.looks(t, s); coverslip.KindOf(err) != coverslip.Unavailable {
		t.Errorf("%v", err)
	}
}

// An uploaded slide is read where it is kept: in a folder, and in a bucket without a copy.
func TestOpenOfAnUploadedSlide(t *testing.T) {
	for name, address := range map[string]func(*testing.T) string{
		"Folder":             func(t *testing.T) string { return t.TempDir() },
		"Bucket":             s3test.Start,
		"BucketUnderAPrefix": func(t *testing.T) string { return strings.Replace(s3test.Start(t), "?", "/some/prefix?", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			var err error
			if b.Blobs, err = blob.Open(t.Context(), address(t)); err != nil {
				t.Fatal(err)
			}
			out, err := b.Upload(t.Context(), "cmu.svs", 0, bytes.NewReader(wholeSlide(t)))
			if err != nil {
				t.Fatal(err)
			}
			slide, release, err := b.Open(t.Context(), out.Slide)
			if err != nil {
				t.Fatal(err)
			}
			if left, err := os.ReadDir(b.spool); err != nil || len(left) > 0 {
				t.Errorf("copied: %v, %v", left, err)
			}
			_ = slide.Close()
			release()
			if err := b.looks(t, out.Slide); err != nil {
				t.Error(err)
			}
			if err := b.Blobs.Delete(t.Context(), strings.TrimPrefix(out.Slide.Location, "blob:")); err != nil {
				t.Fatal(err)
			}
			if err := b.looks(t, out.Slide); coverslip.KindOf(err) != coverslip.Conflict {
				t.Errorf("gone: %v", err)
			}
		})
	}
}
