package main

import (
	"context"
	"crypto/md5" //nolint:gosec // what manifests have
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"coverslip"
	"coverslip/internal/cohort"
	"coverslip/internal/ingest"
	"coverslip/slidessl"
	"coverslip/storage"
	"coverslip/storage/postgres"
	"coverslip/storage/queue"
	"coverslip/tiler/tissue"
)

// benchQueue measures what a cohort of n slides costs before and beside the work on them: registering from a
// manifest, queueing, and the processor time of a job that does nothing but say how it ended, of this process
// and of Postgres. It has a Postgres of its own.
func benchQueue(e *env, n, runs int) error {
	var register, enqueue, overhead []float64
	for range runs {
		r, q, o, err := benchQueueOnce(e, n)
		if err != nil {
			return err
		}
		register, enqueue, overhead = append(register, r), append(enqueue, q), append(overhead, o)
	}
	for _, c := range []struct {
		what  string
		took  []float64
		unit  string
		limit float64
	}{
		{fmt.Sprintf("register %d slides of a GDC manifest", n), register, "s", 10},
		{fmt.Sprintf("queue %d jobs", n), enqueue, "s", 5},
		{fmt.Sprintf("queue overhead of a job, of %d, Postgres included", n), overhead, "CPU ms", 5},
	} {
		v := median(c.took)
		if err := e.measured(measurement{Bench: "ingest", Case: c.what, Value: v, Unit: c.unit, Peer: "limit", PeerValue: c.limit, Ratio: c.limit / v, Target: 1, Runs: runs, Machine: machine()}); err != nil {
			return err
		}
	}
	return nil
}

func benchQueueOnce(e *env, n int) (register, enqueue, overhead float64, err error) {
	dir, server, db, err := benchDatabase(e)
	if err != nil {
		return 0, 0, 0, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	defer server.Stop()     //nolint:errcheck // it goes with its folder
	defer db.Close()

	manifest := filepath.Join(dir, "manifest.txt")
	if err := writeManifest(manifest, n, func(i int) (int64, string) {
		sum := md5.Sum([]byte(strconv.Itoa(i))) //nolint:gosec // as above
		return int64(1e9 + i), hex.EncodeToString(sum[:])
	}); err != nil {
		return 0, 0, 0, err
	}
	model := coverslip.Model{Kind: coverslip.EncoderModel, Name: "none", SHA256: strings.Repeat("0", 64), Dim: 512, TileSize: 224, TileMPP: 0.5}
	var left atomic.Int64
	done := make(chan struct{})
	work := func(ctx context.Context, job queue.Job, attempt queue.Attempt) error {
		if err := db.SetState(ctx, job.Slide, coverslip.NoTissue, nil); err != nil {
			return err
		}
		if left.Add(-1) == 0 {
			close(done)
		}
		return nil
	}
	q, err := queue.New(db.Pool(), queue.Config{Embeds: 8, Work: work, Logger: e.log})
	if err != nil {
		return 0, 0, 0, err
	}
	in := &ingest.Ingest{DB: db, Queue: q, Model: model, Aggregator: slidessl.Mean{}, Plan: ingest.DefaultPlan(model), Mask: tissue.Default(), Log: e.log}

	began := time.Now()
	m, err := cohort.ReadManifest(manifest)
	if err != nil {
		return 0, 0, 0, err
	}
	refs, members, _ := references(m, func(id, name string) string { return "s3://tcga-2-open/" + id + "/" + name })
	if _, err := in.Refer(e, "tcga", refs, members); err != nil {
		return 0, 0, 0, err
	}
	register = time.Since(began).Seconds()

	slides, err := db.Slides(e, storage.SlideFilter{Cohort: "tcga"})
	if err != nil {
		return 0, 0, 0, err
	}
	began = time.Now()
	if _, err := in.Encode(e, slides, nil, queue.Usual); err != nil {
		return 0, 0, 0, err
	}
	enqueue = time.Since(began).Seconds()

	left.Store(int64(n))
	before := cpuTime().Seconds() + treeCPU(postmaster(dir))
	if err := q.Start(e); err != nil {
		return 0, 0, 0, err
	}
	select {
	case <-done:
	case <-e.Done():
		return 0, 0, 0, e.Err()
	}
	if err := q.Stop(e); err != nil {
		return 0, 0, 0, err
	}
	overhead = (cpuTime().Seconds() + treeCPU(postmaster(dir)) - before) / float64(n) * 1000
	return register, enqueue, overhead, nil
}

// benchDatabase is a Postgres of its own in a temporary folder, migrated.
func benchDatabase(e *env) (dir string, server *postgres.Server, db *storage.DB, err error) {
	if dir, err = os.MkdirTemp("", "coverslip-bench-"); err != nil {
		return "", nil, nil, diskError("make a folder to measure in", os.TempDir(), err)
	}
	if err = os.Chmod(dir, 0o755); err == nil { //nolint:gosec // the postgres user must enter
		server, err = postgres.Start(e, filepath.Join(dir, "pg"))
	}
	if err == nil {
		db, err = storage.Open(e, server.URL())
	}
	if err == nil {
		err = db.Migrate(e)
	}
	return dir, server, db, err
}

// postmaster is the first process of the Postgres of benchDatabase.
func postmaster(dir string) int {
	raw, err := os.ReadFile(filepath.Join(dir, "pg", "data", "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	pid, _ := strconv.Atoi(first)
	return pid
}

// writeManifest writes a manifest of n slides; of says the size and MD5 of one.
func writeManifest(path string, n int, of func(i int) (size int64, md5 string)) error {
	var b strings.Builder
	b.WriteString("id\tfilename\tmd5\tsize\tstate\n")
	for i := range n {
		size, sum := of(i)
		id, name := benchFile(i)
		fmt.Fprintf(&b, "%s\t%s\t%s\t%d\treleased\n", id, name, sum, size)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return diskError("write the manifest", path, err)
	}
	return nil
}

// benchFile is the id and the name of a made-up file of TCGA.
func benchFile(i int) (id, name string) {
	sum := sha256.Sum256([]byte("file " + strconv.Itoa(i)))
	h := hex.EncodeToString(sum[:])
	id = strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:32]}, "-")
	return id, fmt.Sprintf("TCGA-%02X-%04d-01Z-00-DX1.%s.svs", i/9973%256, i%9973, strings.ToUpper(id))
}

// treeCPU is the processor time of a process and its children, in seconds.
func treeCPU(pid int) (seconds float64) {
	const ticks = 100 // of the kernel's clock a second, on every Linux there is
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, entry := range entries {
		one, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		fields, parent := procStat(one)
		if one != pid && parent != pid {
			continue
		}
		from, to := 11, 13 // utime, stime
		if one == pid {
			to = 15 // and those of children that have ended
		}
		for _, f := range fields[from:to] {
			v, _ := strconv.ParseFloat(f, 64)
			seconds += v / ticks
		}
	}
	return seconds
}

// procStat returns what stands behind the name in /proc/PID/stat, and the parent.
func procStat(pid int) (fields []string, parent int) {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return make([]string, 50), 0
	}
	fields = strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	parent, _ = strconv.Atoi(fields[1])
	return fields, parent
}
