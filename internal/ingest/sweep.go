package ingest

import (
	"context"
	"strings"
	"time"

	"coverslip"
	"coverslip/storage/blob"
)

// SweepBlobs removes what processes that were killed left in the blob store: bags, uploaded slides and
// files of tasks without a row, which nobody can see, and checkpoints of bags, all from before the given time. Whoever is
// between a blob and its row has until then. It returns how many it removed.
func (in *Ingest) SweepBlobs(ctx context.Context, before time.Time) (removed int, err error) {
	for prefix, known := range map[string]func(context.Context, []string) (map[string]bool, error){
		"bags/":        in.DB.BagsAmong,
		"checkpoints/": func(context.Context, []string) (map[string]bool, error) { return nil, nil },
		"slides/":      in.DB.SlidesAmong,
		"tasks/":       in.DB.TasksAmong,
	} {
		var old []blob.Info
		sweep := func() error {
			keys := make([]string, len(old))
			for i, info := range old {
				name, _, _ := strings.Cut(strings.TrimPrefix(info.Key, prefix), "/") // a slide of several files is a folder
				keys[i] = strings.TrimSuffix(name, ".safetensors")
			}
			there, err := known(ctx, keys)
			if err != nil {
				return err
			}
			for i, info := range old {
				if there[keys[i]] {
					continue
				}
				if err := in.Blobs.Delete(ctx, info.Key); err != nil {
					return err
				}
				removed++
			}
			old = old[:0]
			return nil
		}
		for info, err := range in.Blobs.List(ctx, prefix) {
			if err != nil {
				return removed, coverslip.Doing("sweep the blob store", err)
			}
			if info.Modified.Before(before) {
				old = append(old, info)
			}
			if len(old) == 1000 {
				if err := sweep(); err != nil {
					return removed, err
				}
			}
		}
		if err := sweep(); err != nil {
			return removed, err
		}
	}
	return removed, nil
}
