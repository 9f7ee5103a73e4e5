package ingest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"coverslip"
	"coverslip/tiler"
	"coverslip/tiler/remote"
)

// Open opens a registered slide where its bytes lie, for people to look at; the caller calls release
// after closing it. That they are still the same is seen without reading them all: by the size of a
// file, by the version of an object. Bytes that are gone are a Conflict, because the slide is known.
func (in *Ingest) Open(ctx context.Context, slide coverslip.Slide) (opened *tiler.Slide, release func(), err error) {
	opened, release, err = in.open(ctx, slide)
	switch {
	case coverslip.KindOf(err) == coverslip.NotFound:
		return nil, nil, &coverslip.Error{Kind: coverslip.Conflict, Op: "open slide", Path: slide.Name, Err: errors.New("its bytes are no longer where they were registered"),
			Hint: "put them back, or register the slide where they are now"}
	case err != nil:
		return nil, nil, err
	case !slide.Provisional && (opened.Width != slide.Width || opened.Height != slide.Height):
		_ = opened.Close() // only read
		release()
		return nil, nil, changed(slide, "its size in pixels")
	}
	return opened, release, nil
}

func (in *Ingest) open(ctx context.Context, slide coverslip.Slide) (*tiler.Slide, func(), error) {
	key, isBlob := strings.CutPrefix(slide.Location, "blob:")
	if bucket, ok := in.Blobs.(interface{ Address(key string) string }); ok && isBlob {
		opened, err := tiler.OpenFiles(ctx, slide.Name, []string{bucket.Address(key)})
		if coverslip.KindOf(err) != coverslip.Unsupported { // some formats are read from files only
			return opened, func() {}, err
		}
	}
	files, release, err := in.Local(ctx, slide)
	if err != nil {
		return nil, nil, err
	}
	switch place, _, _ := strings.Cut(slide.Location, versionMark); {
	case isBlob:
	case remote.Is(place):
		err = unchanged(ctx, slide, files)
	default:
		err = sameSize(slide, files)
	}
	var opened *tiler.Slide
	if err == nil {
		opened, err = tiler.OpenFiles(ctx, slide.Name, files)
	}
	if err != nil {
		release()
	}
	return opened, release, err
}

// sameSize refuses files that are larger or smaller than those that were registered.
func sameSize(slide coverslip.Slide, files []string) error {
	var size int64
	for _, file := range files {
		stat, err := os.Stat(file)
		if err != nil {
			return nil // opening says why
		}
		size += stat.Size()
	}
	if size != slide.Bytes {
		return changed(slide, "its size in bytes")
	}
	return nil
}

func changed(slide coverslip.Slide, what string) error {
	return &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Path: slide.Name, Err: fmt.Errorf("%s changed since it was registered", what), Hint: "ingest it again, as a new slide"}
}
