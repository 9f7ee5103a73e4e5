package tiler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"coverslip"
	"coverslip/tiler/openslide"
	"coverslip/tiler/remote"
)

// Formats that are no TIFF and are read through OpenSlide; see also tiff.Format.Elsewhere.
const (
	formatMRXS    = "3dhistech-mrxs"
	formatVMS     = "hamamatsu-vms"
	formatVMU     = "hamamatsu-vmu"
	formatSVSlide = "sakura-svslide"
	formatCZI     = "zeiss-czi"
)

// vendorFormat tells these formats by a file's first bytes; "" for all else. An MRXS slide shows
// itself as a JPEG picture: that and its name tell it.
func vendorFormat(head []byte, name string) string {
	text := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\xef\xbb\xbf")), " \r\n")
	switch {
	case bytes.HasPrefix(head, []byte("\xff\xd8\xff")) && strings.EqualFold(path.Ext(remote.Shown(name)), ".mrxs"):
		return formatMRXS
	case bytes.HasPrefix(text, []byte("[Virtual Microscope Specimen]")):
		return formatVMS
	case bytes.HasPrefix(text, []byte("[Uncompressed Virtual Microscope Specimen]")):
		return formatVMU
	case bytes.HasPrefix(head, []byte("SQLite format 3\x00")):
		return formatSVSlide
	case bytes.HasPrefix(head, []byte("ZISRAWFILE")):
		return formatCZI
	}
	return ""
}

// openVendor opens what only OpenSlide reads, in a process of its own. A slide that is not on this
// machine is copied to a private folder first, which goes when open is closed.
func openVendor(ctx context.Context, place, format string, open *closers) (*Slide, error) {
	files, err := vendorFiles(ctx, place, format)
	if err != nil {
		return nil, err
	}
	if remote.Is(place) {
		if files, err = stageVendor(ctx, files, open); err != nil {
			return nil, err
		}
	}
	for i, file := range files { // the other process stands in another folder
		if files[i], err = filepath.Abs(file); err != nil {
			return nil, err
		}
	}
	opened, err := openslide.Open(ctx, files[0], files)
	if err != nil {
		return nil, err
	}
	s := &Slide{Info: Info{Format: format, Reader: Reader + " (OpenSlide " + opened.Version + ")"}, pixels: vendorPixels{opened}}
	for _, l := range opened.Levels {
		s.Levels = append(s.Levels, coverslip.Level{Width: l.Width, Height: l.Height, Downsample: l.Downsample})
	}
	s.Width, s.Height = s.Levels[0].Width, s.Levels[0].Height
	wholeDownsamples(s.Levels)
	s.ObjectivePower = number(opened.ObjectivePower)
	s.MPP = decideMPP([]claim{{coverslip.MPPOpenSlide, number(opened.MPPX), number(opened.MPPY), opened.MPPX}}, s.ObjectivePower)
	return s, nil
}

// vendorPixels decodes through OpenSlide.
type vendorPixels struct{ slide *openslide.Slide }

func (p vendorPixels) ReadRegion(ctx context.Context, dst []byte, level, _, x, y, w, h int) error {
	err := p.slide.ReadRegion(ctx, dst, level, x, y, w, h)
	if !errors.Is(err, openslide.ErrEnded) { // the tiles beside it can be read
		err = damaged(err)
	}
	return inLevel(level, err)
}

func (p vendorPixels) Shrinks(int) int { return 1 }

func (p vendorPixels) Grain(int) (w, h int) { return 1, 1 } // OpenSlide keeps tiles itself

func (p vendorPixels) Close() error {
	p.slide.Close()
	return nil
}

const (
	maxIndex = 16 << 20 // bytes of a text that names the files of a slide; real ones have up to 1 MB
	maxParts = 10_000   // files of a slide
)

// vendorFiles returns the files of a slide, the one that was named first: those that its index names
// and that are there. All lie beside the index: a name of a place elsewhere is refused.
func vendorFiles(ctx context.Context, place, format string) ([]string, error) {
	var index, folder string
	var keys []string
	switch format {
	case formatMRXS:
		folder = strings.TrimSuffix(path.Base(remote.Shown(place)), path.Ext(remote.Shown(place)))
		index, keys = folder+"/Slidedat.ini", []string{"INDEXFILE", "FILE_"}
	case formatVMS, formatVMU:
		keys = []string{"ImageFile", "MapFile", "OptimisationFile", "MacroImage"}
	default:
		return []string{place}, nil
	}
	files := []string{place}
	text := place
	if index != "" {
		var err error
		if text, err = beside(place, index); err != nil {
			return nil, err
		}
		files = append(files, text)
	}
	data, err := readIndex(ctx, text)
	switch {
	case coverslip.KindOf(err) == coverslip.NotFound && folder != "":
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Err: fmt.Errorf("the folder %s with its Slidedat.ini is not beside it", folder), Hint: "put the folder beside the file; an upload is a zip archive of both"}
	case err != nil:
		return nil, err
	}
	names, err := namedFiles(data, keys)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		file, err := beside(place, path.Join(folder, name))
		if err != nil {
			return nil, err
		}
		there, err := exists(ctx, file)
		if err != nil {
			return nil, err
		}
		if there { // OpenSlide says what it cannot do without
			files = append(files, file)
		}
	}
	return files, nil
}

// remoteVendorFiles is vendorFiles of a slide at an address, of which only the name is known: nobody
// is asked for its first bytes unless the name is that of a format with several files.
func remoteVendorFiles(ctx context.Context, address string) ([]string, error) {
	switch strings.ToLower(path.Ext(remote.Shown(address))) {
	case ".mrxs", ".vms", ".vmu":
	default:
		return []string{address}, nil
	}
	object, err := remote.Open(ctx, address)
	if err != nil {
		return nil, err
	}
	head := make([]byte, min(HeadSize, object.Size()))
	if err := object.ReadRange(ctx, head, 0); err != nil {
		return nil, err
	}
	return vendorFiles(ctx, address, vendorFormat(head, address))
}

// namedFiles lists, each once, the values of the keys that begin like these, in any section of an INI
// file (GLib's key files). It sees all that GLib sees, and perhaps more.
func namedFiles(ini []byte, keys []string) ([]string, error) {
	var names []string
	seen := map[string]bool{}
	for line := range bytes.Lines(ini) {
		key, value, ok := strings.Cut(strings.TrimSpace(string(line)), "=")
		name := strings.TrimSpace(value)
		if key = strings.TrimSpace(key); !ok || name == "" || key == "FILE_COUNT" || seen[name] ||
			!slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(key, k) }) {
			continue
		}
		if len(name) > 255 || name == "." || name == ".." || strings.ContainsAny(name, "/\\\x00") {
			return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Err: fmt.Errorf("it names the file %.100q (%s), which is none beside it", name, key), Hint: "copy the slide again from its source"}
		}
		if len(names) == maxParts {
			return nil, &coverslip.Error{Kind: coverslip.TooLarge, Op: "open slide", Err: fmt.Errorf("it names more than %d files", maxParts), Hint: "copy the slide again from its source"}
		}
		seen[name] = true
		names = append(names, name)
	}
	return names, nil
}

// beside returns the place of a file whose name is relative to the folder of another. Of addresses,
// only those in buckets have folders.
func beside(place, name string) (string, error) {
	if !remote.Is(place) {
		return filepath.Join(filepath.Dir(place), filepath.FromSlash(name)), nil
	}
	if !strings.HasPrefix(place, "s3://") {
		return "", &coverslip.Error{Kind: coverslip.Unsupported, Op: "open slide", Err: errors.New("it consists of several files, and only one is at this address"), Hint: "copy them all to this machine or to a bucket, or zip them"}
	}
	end := len(place)
	if i := strings.IndexAny(place, "?#"); i >= 0 {
		end = i
	}
	return place[:strings.LastIndex(place[:end], "/")+1] + (&url.URL{Path: name}).EscapedPath() + place[end:], nil
}

func readIndex(ctx context.Context, place string) ([]byte, error) {
	tooLarge := &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Err: fmt.Errorf("its index has more than %d MB", maxIndex>>20), Hint: "copy the slide again from its source"}
	if remote.Is(place) {
		object, err := remote.Open(ctx, place)
		if err != nil {
			return nil, err
		}
		if object.Size() > maxIndex {
			return nil, tooLarge
		}
		data := make([]byte, object.Size())
		return data, object.ReadRange(ctx, data, 0)
	}
	f, err := os.Open(place)
	if err != nil {
		return nil, openError(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return nil, openError(err)
	}
	if len(data) > maxIndex {
		return nil, tooLarge
	}
	return data, nil
}

func exists(ctx context.Context, place string) (bool, error) {
	if !remote.Is(place) {
		stat, err := os.Stat(place)
		return err == nil && stat.Mode().IsRegular(), nil
	}
	switch _, err := remote.Open(ctx, place); coverslip.KindOf(err) {
	case "", coverslip.Invalid: // Invalid is empty
		return err == nil, nil
	case coverslip.NotFound:
		return false, nil
	default:
		return false, err
	}
}

// stageVendor copies the files of a slide from their addresses, the first and what lies beside and
// below it, to a private folder in the system's temporary one.
func stageVendor(ctx context.Context, addresses []string, open *closers) ([]string, error) {
	folder, err := newZipFolder()
	if err != nil {
		return nil, err
	}
	*open = append(*open, folder)
	above := path.Dir(remote.Shown(addresses[0])) + "/"
	var files []string
	for _, address := range addresses {
		name := strings.TrimPrefix(remote.Shown(address), above)
		if !filepath.IsLocal(name) {
			name = "slide"
		}
		file := filepath.Join(folder.path, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return nil, stageError(err)
		}
		if err := stageFile(ctx, address, file); err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

func stageFile(ctx context.Context, address, file string) error {
	object, err := remote.Open(ctx, address)
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return stageError(err)
	}
	defer dst.Close()
	buffer := make([]byte, min(8<<20, object.Size()))
	for off := int64(0); off < object.Size(); off += int64(len(buffer)) {
		buffer = buffer[:min(int64(len(buffer)), object.Size()-off)]
		if err := object.ReadRange(ctx, buffer, off); err != nil {
			return err
		}
		if _, err := dst.Write(buffer); err != nil {
			return stageError(err)
		}
	}
	if err := dst.Close(); err != nil {
		return stageError(err)
	}
	return nil
}

func stageError(err error) error {
	e := &coverslip.Error{Kind: coverslip.Environment, Op: "copy the slide to this machine", Err: err, Hint: "check that TMPDIR can be written"}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		e.Kind, e.Hint = coverslip.Full, "free some space there, or set TMPDIR to a folder on a larger disk"
	}
	return e
}
