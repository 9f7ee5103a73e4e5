package tiler

import (
	"context"

	"golang.org/x/sync/errgroup"

	"coverslip"
	"coverslip/tiler/dicom"
	"coverslip/tiler/remote"
)

// bucketFiles returns the addresses of the files of the DICOM slide in a folder of a bucket. One
// request is made of each object in it.
func bucketFiles(ctx context.Context, folder string) ([]string, error) {
	addresses, err := remote.List(ctx, folder)
	if err != nil {
		return nil, err
	}
	files := make([]dicom.NamedReader, len(addresses))
	g, opening := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, address := range addresses {
		g.Go(func() error {
			object, err := remote.Open(opening, address)
			if coverslip.KindOf(err) == coverslip.Invalid { // an empty object: no part of a slide
				object, err = nil, nil
			}
			if object != nil {
				files[i] = dicom.NamedReader{Name: address, RangeReader: object}
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	some := files[:0]
	for _, f := range files {
		if f.RangeReader != nil {
			some = append(some, f)
		}
	}
	return dicom.FilesAmong(ctx, remote.Shown(folder), some)
}
