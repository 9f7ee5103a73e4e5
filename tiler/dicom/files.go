package dicom

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"coverslip"
	"coverslip/tiler/tiff"
)

// headLength is how many bytes Is wants: a preamble, then the mark (PS3.10, 7.1).
const headLength = 132

// Is reports whether a file that begins with head, 132 bytes, is DICOM.
func Is(head []byte) bool { return len(head) >= headLength && string(head[128:headLength]) == "DICM" }

// Files returns the paths of the files that make up the slide at path, sorted: those of one series in
// one folder that hold the scan itself, in whatever file names. Labels, overviews and thumbnails are
// not among them, so that a slide stays the same slide when its label is taken away. What is meant
// by path is
//   - of a file, the series it belongs to, with what its folder holds of it;
//   - of a folder, the only series of whole-slide images in it. Folders within are not looked into.
//
// The identity of such a slide is that of its file when there is one, and else the SHA-256 over the
// sorted SHA-256 sums of all of them.
func Files(ctx context.Context, path string) ([]string, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return nil, coverslip.At(path, openError(err))
	}
	folder, only := path, ""
	if !stat.IsDir() {
		folder = filepath.Dir(path)
		im, err := probe(ctx, path)
		if err != nil {
			return nil, err
		}
		if only = im.series; only == "" {
			return nil, coverslip.At(path, inOp("look for the series", invalid(hintDamaged, "it does not say which series it belongs to")))
		}
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, coverslip.At(folder, openError(err))
	}
	names := make([]string, len(entries))
	for i, entry := range entries {
		names[i] = filepath.Join(folder, entry.Name())
	}
	return choose(path, names, only, func(i int) (*image, error) { return probe(ctx, names[i]) })
}

// FilesAmong is Files of a folder that is elsewhere and holds these files.
func FilesAmong(ctx context.Context, folder string, files []NamedReader) ([]string, error) {
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f.Name
	}
	return choose(folder, names, "", func(i int) (*image, error) {
		if files[i].Size() < headLength {
			return nil, inOp("read DICOM header", unsupported(notWholeSlide, "not a DICOM file"))
		}
		im, err := readImage(ctx, files[i], tagSeries+1)
		return im, coverslip.At(names[i], err)
	})
}

// choose returns the names of the files of the only series in a folder, or of only this one.
func choose(path string, names []string, only string, probe func(i int) (*image, error)) ([]string, error) {
	levels := map[string][]string{} // of each series
	for i, name := range names {
		im, err := probe(i)
		switch {
		case coverslip.KindOf(err) == coverslip.Unsupported:
			continue // no part of a slide
		case err != nil: // it may be a part, so the slide would not be whole
			return nil, err
		}
		if im.series != "" && im.volume() && (only == "" || only == im.series) {
			levels[im.series] = append(levels[im.series], name)
		}
	}
	switch len(levels) {
	case 0:
		return nil, coverslip.At(path, inOp("look for DICOM slides", unsupported("name a slide file, or a folder with the files of one DICOM slide", "there is none in the folder")))
	case 1:
		for _, names := range levels {
			return names, nil // sorted as ReadDir sorts
		}
	}
	var list []string
	for uid, names := range levels {
		list = append(list, fmt.Sprintf("%s (%s)", filepath.Base(names[0]), uid))
	}
	slices.Sort(list)
	if n := len(list); n > 5 {
		list = append(list[:5], fmt.Sprintf("and %d more", n-5))
	}
	return nil, coverslip.At(path, inOp("look for DICOM slides", unsupported("name a file of the one you want", "the folder holds %d: %s", len(levels), strings.Join(list, ", "))))
}

// probe reads which series a file belongs to and what it shows.
func probe(ctx context.Context, path string) (*image, error) {
	im, err := probeFile(ctx, path)
	return im, coverslip.At(path, err)
}

func probeFile(ctx context.Context, path string) (*image, error) {
	stat, err := os.Stat(path) // before it is opened: opening a pipe waits
	if err != nil {
		return nil, openError(err)
	}
	if !stat.Mode().IsRegular() || stat.Size() < headLength && !strings.EqualFold(filepath.Ext(path), ".dcm") {
		return nil, inOp("read DICOM header", unsupported(notWholeSlide, "not a DICOM file"))
	}
	if stat.Size() < headLength {
		return nil, inOp("read DICOM header", invalid(hintEndsEarly, "the file has %d bytes", stat.Size()))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, openError(err)
	}
	defer f.Close()
	return readImage(ctx, tiff.NewReaderAt(f, stat.Size()), tagSeries+1)
}

func openError(err error) error {
	e := &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Err: err, Hint: "check that the disk is readable"}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Kind, e.Err, e.Hint = coverslip.NotFound, errors.New("there is no such file"), "check the path"
	case errors.Is(err, fs.ErrPermission):
		e.Err, e.Hint = errors.New("permission denied"), "make the file readable for the user Coverslip runs as"
	}
	return e
}
