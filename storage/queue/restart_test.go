package queue_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"coverslip"
	"coverslip/storage"
	"coverslip/storage/postgres"
	"coverslip/storage/queue"
	"coverslip/storage/storagetest"
)

// Postgres goes away under a running job, which then cannot write down how it ended, and comes back:
// the job is tried again by the same process.
func TestPostgresRestartedUnderAJob(t *testing.T) {
	if _, err := postgres.Find(); err != nil {
		storagetest.New(t) // skips or fails
	}
	base, err := os.MkdirTemp("", "restart")
	fatal(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	fatal(t, os.Chmod(base, 0o711))
	dir := filepath.Join(base, "pg")
	server, err := postgres.Start(t.Context(), dir)
	fatal(t, err)
	t.Cleanup(func() { _ = server.Stop() })
	db, err := storage.Open(t.Context(), server.URL())
	fatal(t, err)
	t.Cleanup(db.Close)
	fatal(t, db.Migrate(t.Context()))

	running, ended := make(chan bool, 10), make(chan bool)
	b := &bench{t, db, newQueue(t, db, queue.Config{Work: func(ctx context.Context, j queue.Job, a queue.Attempt) error {
		running <- true
		if a.Number == 1 {
			<-ended
		}
		return db.SetState(ctx, j.Slide, coverslip.Embedded, nil)
	}})}
	id := b.add("s")
	fatal(t, b.q.Start(t.Context()))
	within(t, running, "the job")
	fatal(t, server.Stop())
	close(ended)

	server, err = postgres.Start(t.Context(), dir)
	fatal(t, err)
	t.Cleanup(func() { _ = server.Stop() })
	began := time.Now()
	b.until(id, is(coverslip.Embedded))
	t.Log("embedded", time.Since(began), "after Postgres came back")
}
