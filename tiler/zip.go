package tiler

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"coverslip"
	"coverslip/tiler/dicom"
)

// zipLimits bound what an archive may unpack to.
type zipLimits struct {
	entries int   // files and folders
	ratio   int64 // bytes that come out for each that is in it
	free    int64 // bytes that may come out besides
}

// The pixels of a slide are compressed already: an archive unpacks to about its own size. Blank tiles
// that are not compressed are what the ratio is for.
var zipBounds = zipLimits{entries: 100_000, ratio: 100, free: 64 << 20}

const (
	maxZipName = 4096 // bytes of a name with its folders
	zipFolder  = "coverslip-zip-"
)

// isZip reports whether a file begins like an archive with something in it.
func isZip(head []byte) bool { return bytes.HasPrefix(head, []byte("PK\x03\x04")) }

// openZip opens the one slide in an archive, such as a DICOM series or an MRXS file with its folder.
// It is unpacked to a private folder in the system's temporary one, which goes when open is closed.
func openZip(ctx context.Context, archive string, open *closers) (*Slide, error) {
	folder, err := newZipFolder()
	if err != nil {
		return nil, err
	}
	*open = append(*open, folder)
	if err := unzip(ctx, archive, folder.path, zipBounds); err != nil {
		return nil, err
	}
	files, err := slideIn(ctx, folder.path)
	if err != nil {
		return nil, unnamed(err)
	}
	s, err := openPlain(ctx, files, open)
	return s, unnamed(err)
}

// unnamed drops the name of an unpacked file, which nobody knows, from an error.
func unnamed(err error) error {
	var e *coverslip.Error
	if !errors.As(err, &e) {
		return err
	}
	out := *e
	out.Path = ""
	return &out
}

// unzip unpacks an archive into an empty folder. Sizes are counted as they come out, whatever the
// archive says of them.
func unzip(ctx context.Context, archive, folder string, limits zipLimits) error {
	f, err := os.Open(archive)
	if err != nil {
		return openError(err)
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return openError(err)
	}
	if err := countEntries(f, stat.Size(), limits.entries); err != nil {
		return err
	}
	z, err := zip.NewReader(f, stat.Size())
	if err != nil {
		return zipError(coverslip.Invalid, "make the archive again", err)
	}
	budget := &zipBudget{left: limits.ratio*stat.Size() + limits.free}
	for _, entry := range z.File {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := checkZipName(entry); err != nil {
			return err
		}
		place := filepath.Join(folder, filepath.FromSlash(entry.Name))
		if entry.Mode().IsDir() {
			if err := os.MkdirAll(place, 0o700); err != nil {
				return zipDiskError(folder, err)
			}
			continue
		}
		if err := unzipFile(ctx, entry, place, budget); err != nil {
			return err
		}
	}
	return nil
}

// checkZipName refuses entries that are no plain files, or would lie anywhere but in the folder.
func checkZipName(entry *zip.File) error {
	name := entry.Name
	refuse := func(why string) error {
		return zipError(coverslip.Invalid, "make an archive of the slide's files alone", fmt.Errorf("%.200q %s", name, why))
	}
	switch {
	case !entry.Mode().IsRegular() && !entry.Mode().IsDir():
		return refuse("is a link or a device, not a file")
	case len(name) > maxZipName, slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return len(part) > 255 }):
		return refuse("has too long a name")
	case strings.ContainsAny(name, "\x00\\") || !utf8.ValidString(name) || !filepath.IsLocal(strings.TrimSuffix(name, "/")) || path.Clean(name) != strings.TrimSuffix(name, "/"):
		return refuse("is no name for a file in a folder")
	case entry.Flags&1 != 0:
		return refuse("is encrypted")
	}
	return nil
}

func unzipFile(ctx context.Context, entry *zip.File, place string, budget *zipBudget) error {
	src, err := entry.Open()
	if err != nil {
		return zipError(coverslip.Unsupported, "make the archive with deflate or without compression", fmt.Errorf("%.200q: %w", entry.Name, err))
	}
	defer src.Close()
	if err := os.MkdirAll(filepath.Dir(place), 0o700); err != nil {
		return zipDiskError(place, err)
	}
	dst, err := os.OpenFile(place, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return zipDiskError(place, err) // also of a name that is there twice
	}
	defer dst.Close()
	buffer := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := src.Read(buffer)
		if budget.left -= int64(n); budget.left < 0 {
			return zipError(coverslip.TooLarge, "unpack it yourself, if you trust it", errors.New("it unpacks to far more than its size, as no slide does"))
		}
		if _, err := dst.Write(buffer[:n]); err != nil {
			return zipDiskError(place, err)
		}
		switch {
		case errors.Is(err, io.EOF):
			if err := dst.Close(); err != nil {
				return zipDiskError(place, err)
			}
			return nil
		case err != nil:
			return zipError(coverslip.Invalid, "make or upload the archive again", fmt.Errorf("%.200q: %w", entry.Name, err))
		}
	}
}

// zipBudget is what may still come out.
type zipBudget struct{ left int64 }

// countEntries walks over an archive's directory (PKWARE APPNOTE 6.3, 4.3.12 to 4.3.16) before it is
// read into memory. What the end record says of the number of entries is not believed.
func countEntries(f io.ReaderAt, size int64, most int) error {
	broken := func(why string) error {
		return zipError(coverslip.Invalid, "make or upload the archive again", errors.New(why))
	}
	const endSize, locatorSize = 22, 20
	tail := make([]byte, min(size, endSize+locatorSize+1<<16))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return openError(err)
	}
	at := bytes.LastIndex(tail[:max(len(tail)-endSize+4, 0)], []byte("PK\x05\x06"))
	if at < 0 || at+endSize > len(tail) {
		return broken("the archive's end is missing")
	}
	end := tail[at:]
	length, offset := int64(binary.LittleEndian.Uint32(end[12:])), int64(binary.LittleEndian.Uint32(end[16:]))
	stop := size - int64(len(tail)) + int64(at)
	if at >= locatorSize && string(tail[at-locatorSize:at-locatorSize+4]) == "PK\x06\x07" { // ZIP64
		place := int64(binary.LittleEndian.Uint64(tail[at-locatorSize+8:])) //nolint:gosec // held against the file's size below
		var record [56]byte
		if place < 0 || place > size-int64(len(record)) {
			return broken("its directory lies beyond its end")
		}
		if _, err := f.ReadAt(record[:], place); err != nil || string(record[:4]) != "PK\x06\x06" {
			return broken("its directory cannot be found")
		}
		length, offset = int64(binary.LittleEndian.Uint64(record[40:])), int64(binary.LittleEndian.Uint64(record[48:])) //nolint:gosec // the same
		stop = place
	}
	if offset < 0 || length < 0 || offset+length != stop {
		return broken("its directory is not where it says")
	}
	directory := bufio.NewReader(io.NewSectionReader(f, offset, size-offset))
	for n := 0; ; n++ {
		head, err := directory.Peek(46)
		if err != nil || string(head[:4]) != "PK\x01\x02" {
			return nil // the end, or for the reader to judge
		}
		if n == most {
			return zipError(coverslip.TooLarge, "make an archive of one slide", fmt.Errorf("more than %d entries", most))
		}
		skip := 46 + int(binary.LittleEndian.Uint16(head[28:])) + int(binary.LittleEndian.Uint16(head[30:])) + int(binary.LittleEndian.Uint16(head[32:]))
		if _, err := directory.Discard(skip); err != nil {
			return broken("its directory is cut")
		}
	}
}

// slideIn returns the files of the one slide in a folder and those within it.
func slideIn(ctx context.Context, folder string) ([]string, error) {
	var slides [][]string
	var names []string
	var broken error
	series := map[string]error{} // what was said of the DICOM files in a folder
	found := func(files []string) {
		name, err := filepath.Rel(folder, files[0])
		if err != nil {
			name = filepath.Base(files[0])
		}
		slides, names = append(slides, files), append(names, name)
	}
	err := filepath.WalkDir(folder, func(place string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return zipDiskError(place, err)
		case ctx.Err() != nil:
			return ctx.Err()
		case entry.IsDir():
			files, err := dicom.Files(ctx, place)
			if err == nil {
				found(files)
			} else if coverslip.KindOf(err) != coverslip.Unsupported {
				broken = err
			}
			series[place] = err
			return nil
		}
		var open closers
		s, err := openPlain(ctx, []string{place}, &open)
		defer open.Close()
		switch {
		case err != nil:
			if coverslip.KindOf(err) == coverslip.Invalid {
				broken = err
			}
			return ctx.Err()
		case s.Format != "dicom":
			found([]string{place})
		case series[filepath.Dir(place)] != nil:
			return errors.Join(series[filepath.Dir(place)], s.pixels.Close())
		}
		return s.pixels.Close()
	})
	if err != nil {
		return nil, err
	}
	switch len(slides) {
	case 0:
		if broken != nil {
			return nil, broken
		}
		return nil, zipError(coverslip.Unsupported, notASlide, errors.New("there is no slide in the archive"))
	case 1:
		return slides[0], nil
	}
	n := len(names)
	if n > 5 {
		names = append(names[:5], fmt.Sprintf("and %d more", n-5))
	}
	return nil, zipError(coverslip.Unsupported, "make an archive of each", fmt.Errorf("the archive holds %d slides: %s", n, strings.Join(names, ", ")))
}

// zipPlace is a private folder that is locked while it is in use, so that those of processes that were
// killed can be told and removed.
type zipPlace struct {
	path string // what is unpacked lies here
	root string
	lock *os.File
}

func newZipFolder() (*zipPlace, error) {
	sweepZipFolders()
	root, err := os.MkdirTemp("", zipFolder)
	if err != nil {
		return nil, zipDiskError(os.TempDir(), err)
	}
	p := &zipPlace{path: filepath.Join(root, "slide"), root: root}
	if p.lock, err = os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err == nil {
		err = errors.Join(syscall.Flock(int(p.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), os.Mkdir(p.path, 0o700))
	}
	if err != nil {
		_ = p.Close()
		return nil, zipDiskError(root, err)
	}
	return p, nil
}

// Close removes the folder.
func (p *zipPlace) Close() error {
	err := os.RemoveAll(p.root)
	if p.lock != nil {
		err = errors.Join(err, p.lock.Close())
	}
	return err
}

func sweepZipFolders() {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), zipFolder+"*"))
	for _, root := range old {
		lock, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR, 0)
		if err != nil { // another user's, or just being made
			if stat, err := os.Stat(root); err == nil && time.Since(stat.ModTime()) > time.Hour {
				_ = os.RemoveAll(root)
			}
			continue
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(root)
		}
		_ = lock.Close()
	}
}

func zipError(kind coverslip.Kind, hint string, err error) error {
	return &coverslip.Error{Kind: kind, Op: "unpack archive", Err: err, Hint: hint}
}

func zipDiskError(place string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return zipError(coverslip.Full, "free some space there, or set TMPDIR to a folder on a larger disk", fmt.Errorf("%s: %w", os.TempDir(), err))
	case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENAMETOOLONG):
		return zipError(coverslip.Invalid, "make the archive again", errors.New("it holds two files of one name, or names that are too long"))
	}
	return zipError(coverslip.Environment, "check that TMPDIR can be written", fmt.Errorf("%s: %w", filepath.Base(place), err))
}
