package openslide

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ebitengine/purego"

	"coverslip"
)

// LibraryVariable names the environment variable that holds the path of the OpenSlide shared library;
// it goes before every other place.
const LibraryVariable = "COVERSLIP_OPENSLIDE"

const hint = "run `make setup`, or set " + LibraryVariable + " to the path of libopenslide.so.1 of OpenSlide 4 or newer"

// Library says which OpenSlide library is used and its version. It starts a decode process, which
// shows whether the machine lets it.
func Library(ctx context.Context) (path, version string, err error) {
	if path, err = find(); err != nil {
		return "", "", err
	}
	p, err := start(path, path, []string{path}, defaults)
	if err != nil {
		return "", "", err
	}
	defer p.close(false)
	d, err := p.describe(ctx)
	if coverslip.KindOf(err) == coverslip.Unsupported { // a library is no slide
		err = nil
	}
	return path, d.Version, err
}

// find returns the shared library to load: what the user asked for, or else the first there is.
func find() (string, error) {
	if path := os.Getenv(LibraryVariable); path != "" {
		return path, nil
	}
	var folders []string
	if exe, err := os.Executable(); err == nil {
		if target, err := filepath.EvalSymlinks(exe); err == nil {
			exe = target
		}
		folders = append(folders, filepath.Join(filepath.Dir(exe), "..", "lib"), filepath.Dir(exe))
	}
	folders = append(folders, "/usr/local/lib", "/usr/local/lib64", "/usr/lib64", "/usr/lib")
	for _, triplet := range []string{"x86_64-linux-gnu", "aarch64-linux-gnu"} {
		folders = append(folders, "/usr/lib/"+triplet)
	}
	for _, folder := range folders {
		// OpenSlide 3 is libopenslide.so.0.
		found, err := filepath.Glob(filepath.Join(folder, "libopenslide.so.[1-9]*"))
		if err == nil && len(found) > 0 {
			return found[len(found)-1], nil
		}
	}
	return "", &coverslip.Error{Kind: coverslip.Environment, Op: "find OpenSlide", Err: fmt.Errorf("no libopenslide.so.1 in %v: %w", folders, os.ErrNotExist), Hint: hint}
}

// library is OpenSlide's C interface (openslide.h), as far as it is used.
type library struct {
	version      func() string
	open         func(path string) uintptr
	close        func(slide uintptr)
	fault        func(slide uintptr) string
	levelCount   func(slide uintptr) int32
	levelSize    func(slide uintptr, level int32, w, h *int64)
	downsample   func(slide uintptr, level int32) float64
	property     func(slide uintptr, name string) string
	readRegion   func(slide uintptr, dst *byte, x, y int64, level int32, w, h int64)
	cacheCreate  func(bytes uintptr) uintptr
	cacheSet     func(slide, cache uintptr)
	cacheRelease func(cache uintptr)
}

func load(path string) (*library, error) {
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, err
	}
	l := &library{}
	for name, function := range map[string]any{
		"openslide_get_version":          &l.version,
		"openslide_open":                 &l.open,
		"openslide_close":                &l.close,
		"openslide_get_error":            &l.fault,
		"openslide_get_level_count":      &l.levelCount,
		"openslide_get_level_dimensions": &l.levelSize,
		"openslide_get_level_downsample": &l.downsample,
		"openslide_get_property_value":   &l.property,
		"openslide_read_region":          &l.readRegion,
		"openslide_cache_create":         &l.cacheCreate,
		"openslide_set_cache":            &l.cacheSet,
		"openslide_cache_release":        &l.cacheRelease,
	} {
		symbol, err := purego.Dlsym(handle, name)
		if err != nil {
			return nil, err
		}
		purego.RegisterFunc(function, symbol)
	}
	if v := l.version(); strings.HasPrefix(v, "3.") {
		return nil, fmt.Errorf("it is OpenSlide %s", v)
	}
	return l, nil
}
