package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"coverslip"
	"coverslip/encoder/onnx"
	"coverslip/internal/nn"
	"coverslip/storage"
	"coverslip/storage/blob"
	"coverslip/storage/postgres"
	"coverslip/tiler/openslide"
	"coverslip/tiler/vips"
)

type doctorCmd struct{ dataFlags }

// Help is shown by coverslip doctor --help.
func (doctorCmd) Help() string {
	return "Example:\n  coverslip doctor\n\nExit code 3 when something is missing. It changes nothing."
}

// finding is one part that was looked at.
type finding struct {
	Part string `json:"part"`
	OK   bool   `json:"ok"`
	Is   string `json:"is,omitempty"`  // what was found
	Fix  string `json:"fix,omitempty"` // how to get what is missing
}

// Run looks at each part in turn.
func (c *doctorCmd) Run(e *env) error {
	missing := 0
	for _, check := range []struct {
		part string
		look func(context.Context) (string, error)
	}{
		{"machine", lookMachine},
		{"libvips", lookVips},
		{"OpenSlide", lookOpenSlide},
		{"ONNX Runtime", lookRuntime},
		{"encoder", lookEncoder},
		{"BLAS", lookBLAS},
		{"Postgres", c.lookPostgres},
		{"data folder", c.lookFolder},
		{"blob store", c.lookBlobs},
	} {
		is, err := check.look(e)
		f := finding{Part: check.part, OK: err == nil, Is: is}
		if err != nil {
			missing++
			f.Is, f.Fix = err.Error(), coverslip.HintOf(err)
		}
		if e.json {
			if err := e.emit(f); err != nil {
				return err
			}
			continue
		}
		mark := "ok     "
		if !f.OK {
			mark = "MISSING"
		}
		e.printf("%s  %-12s  %s\n", mark, f.Part, f.Is)
	}
	if missing > 0 {
		return &coverslip.Error{Kind: coverslip.Environment, Op: "look at this machine", Err: fmt.Errorf("%d parts are missing", missing)}
	}
	return nil
}

func lookMachine(context.Context) (string, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, %.0f GB of memory, %s", machine(), float64(info.Totalram)*float64(info.Unit)/1e9, runtime.GOOS), nil
}

func lookVips(context.Context) (string, error) { return vips.Version(), nil }

func lookOpenSlide(ctx context.Context) (string, error) {
	path, version, err := openslide.Library(ctx)
	return fmt.Sprintf("%s at %s, in a process of its own", version, path), err
}

func lookRuntime(context.Context) (string, error) {
	path, version, err := onnx.Library()
	return fmt.Sprintf("%s at %s", version, path), err
}

// lookBLAS fails nothing: without OpenBLAS training is slower, and comes to the same.
func lookBLAS(context.Context) (string, error) {
	if name := nn.BLAS(); name != "gonum" {
		return name, nil
	}
	return "gonum: training is about four times slower than with OpenBLAS (apt-get install libopenblas0-pthread)", nil
}

// lookEncoder runs one blank tile through the encoder.
func lookEncoder(ctx context.Context) (string, error) {
	enc, err := openEncoder()
	if err != nil {
		return "", err
	}
	m := enc.Model()
	started := time.Now()
	if err := enc.Encode(ctx, make([]float32, m.Dim), make([]byte, m.TileSize*m.TileSize*3), 1); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, tiles of %d px at %g µm/px to %d numbers, a tile in %d ms", m.Name, m.TileSize, m.TileMPP, m.Dim, time.Since(started).Milliseconds()), nil
}

func (c *doctorCmd) lookPostgres(ctx context.Context) (string, error) {
	if c.DatabaseURL == "" {
		found, err := postgres.Find()
		return fmt.Sprintf("%s at %s, private", found.Version, found.Dir), err
	}
	db, err := storage.Open(ctx, c.DatabaseURL)
	if err != nil {
		return "", err
	}
	defer db.Close()
	return "DATABASE_URL answers, its schema is current", db.CheckSchema(ctx)
}

// lookFolder asks whether the data folder, or the first folder above it that exists, can be written.
func (c *doctorCmd) lookFolder(context.Context) (string, error) {
	dir, err := c.folder()
	if err != nil {
		return "", err
	}
	at := dir
	for {
		if _, err := os.Stat(at); err == nil || at == filepath.Dir(at) {
			break
		}
		at = filepath.Dir(at)
	}
	if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
		return "", &coverslip.Error{Kind: coverslip.Environment, Op: "write to the folder", Path: at, Err: err, Hint: "name one that can be written: --data DIR"}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		return "", err
	}
	free := float64(fs.Bavail) * float64(fs.Bsize) / 1e9
	if free < 1 {
		return "", &coverslip.Error{Kind: coverslip.Environment, Op: "look for room", Path: at, Err: fmt.Errorf("%.1f GB are free", free), Hint: "free some space, or name another folder: --data DIR"}
	}
	return fmt.Sprintf("%s, %.0f GB free", dir, free), nil
}

func (c *doctorCmd) lookBlobs(ctx context.Context) (string, error) {
	if c.BlobURL == "" {
		return "in the data folder", nil
	}
	store, err := blob.Open(ctx, c.BlobURL)
	if err != nil {
		return "", err
	}
	if _, err := store.Stat(ctx, "doctor"); err != nil && coverslip.KindOf(err) != coverslip.NotFound {
		return "", err
	}
	return "BLOB_URL answers", nil
}
