package onnx

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	ort "github.com/yalue/onnxruntime_go"

	"coverslip"
)

// LibraryVariable names the environment variable that holds the path of the ONNX Runtime shared
// library; it goes before every other place.
const LibraryVariable = "COVERSLIP_ONNXRUNTIME"

// Library loads ONNX Runtime, once for the process, and says which file it is and its version.
func Library() (path, version string, err error) {
	if err := loadLibrary(); err != nil {
		return "", "", err
	}
	return library.path, ort.GetVersion(), nil
}

var library struct {
	sync.Mutex
	path string // empty until loaded
}

// loadLibrary makes ONNX Runtime ready. What failed may be tried again; what is loaded stays.
func loadLibrary() error {
	library.Lock()
	defer library.Unlock()
	if library.path != "" {
		return nil
	}
	const hint = "run `make setup`, or set " + LibraryVariable + " to the path of libonnxruntime.so of ONNX Runtime 1.24 or newer"
	path, err := find()
	if err != nil {
		return &coverslip.Error{Kind: coverslip.Environment, Op: "find ONNX Runtime", Err: err, Hint: hint}
	}
	ort.SetSharedLibraryPath(path)
	err = ort.InitializeEnvironment(ort.WithLogLevelError()) // warnings are for those who build models
	if err == nil {
		err = ort.DisableTelemetry()
	}
	if err != nil {
		return &coverslip.Error{Kind: coverslip.Environment, Op: "load ONNX Runtime", Path: path, Err: err, Hint: hint}
	}
	library.path = path
	return nil
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
		if path := in(folder); path != "" {
			return path, nil
		}
	}
	return "", fmt.Errorf("no libonnxruntime.so in %v: %w", folders, os.ErrNotExist)
}

// in returns the last libonnxruntime.so* of folder by name, "" if there is none.
func in(folder string) string {
	found, err := filepath.Glob(filepath.Join(folder, "libonnxruntime.so*"))
	if err != nil || len(found) == 0 {
		return ""
	}
	return found[len(found)-1]
}
