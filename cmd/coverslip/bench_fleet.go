package main

import (
	"bytes"
	"crypto/md5" //nolint:gosec // what manifests have
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"coverslip"
	"coverslip/encoder"
	"coverslip/internal/ingest"
	"coverslip/storage"
	"coverslip/tiler"
	"coverslip/tiler/tissue"
	"coverslip/tiler/vips"
)

type benchFleetCmd struct {
	Slides  int           `default:"12000" help:"Slides, each of one tile (${default})."`
	Workers int           `default:"4" help:"Worker processes (${default})."`
	Kill    time.Duration `default:"20s" help:"Kill one of them so often, and start another (${default})."`
	Lease   time.Duration `default:"20s" help:"Their lease (${default})."`
	Weighed int           `default:"11642" help:"Embeddings whose size on disk is measured at last (${default}, what TCGA has of diagnostic slides)."`
	Dim     int           `default:"512" help:"Their length (${default})."`
}

// Help is shown by coverslip bench fleet --help.
func (benchFleetCmd) Help() string {
	return `Examples:
  coverslip bench fleet --json
  coverslip bench fleet --slides 500 --kill 5s

A simulated TCGA: a manifest of small slides is imported, queued and encoded by worker processes, one of which
is killed over and over, with a Postgres of its own. All slides must be done, each once, and none lost. It
prints how fast, what each process took, and what the database takes on disk.`
}

// Run measures and prints.
func (c *benchFleetCmd) Run(e *env) error {
	r, err := c.fleet(e)
	if err != nil {
		return err
	}
	limit := 26 * float64(c.Weighed) / 11642 // MB
	what := fmt.Sprintf("%d slides of one tile, %d workers, one killed every %v", c.Slides, c.Workers, c.Kill)
	for _, m := range []measurement{
		{Case: what + ": slides not done", Value: float64(r.notDone), Unit: "slides", Ratio: met(r.notDone == 0), Target: 1},
		{Case: what + ": results written twice", Value: float64(r.twice), Unit: "rows", Ratio: met(r.twice == 0), Target: 1},
		{Case: what + ": slides, bags, embeddings or jobs lost or left over", Value: float64(r.wrong), Unit: "rows", Ratio: met(r.wrong == 0), Target: 1},
		{Case: what + ": workers killed", Value: float64(r.killed), Unit: "workers"},
		{Case: what + ": jobs taken over", Value: float64(r.taken), Unit: "jobs"},
		{Case: what + ": rate", Value: float64(c.Slides) / r.encode.Seconds() * 3600, Unit: "slides/h"},
		{Case: what + ": processor time of a slide, workers and Postgres", Value: r.cpu / float64(c.Slides) * 1000, Unit: "CPU ms"},
		{Case: what + ": import, with the start of the program", Value: r.imported.Seconds(), Unit: "s", Peer: "limit", PeerValue: 60, Ratio: 60 / r.imported.Seconds(), Target: 1},
		{Case: what + ": queueing, with the start of the program", Value: r.queued.Seconds(), Unit: "s"},
		{Case: what + ": most memory of a worker", Value: r.memory, Unit: "MB"},
		{Case: what + ": transactions of a slide, all that Postgres committed", Value: float64(r.transactions) / float64(c.Slides), Unit: "transactions"},
		{Case: what + ": most connections of a worker", Value: float64(r.connections) / float64(c.Workers), Unit: "connections"},
		{Case: what + ": database on disk", Value: float64(r.database) / 1e6, Unit: "MB"},
		{Case: fmt.Sprintf("embeddings of %d × %d float32 on disk, without their indexes", c.Weighed, c.Dim), Value: float64(r.embeddings) / 1e6, Unit: "MB", Peer: "limit", PeerValue: limit, Ratio: limit * 1e6 / float64(r.embeddings), Target: 1},
		{Case: "indexes of those embeddings on disk", Value: float64(r.indexes) / 1e6, Unit: "MB"},
	} {
		m.Bench, m.Runs, m.Machine = "fleet", 1, machine()
		if err := e.measured(m); err != nil {
			return err
		}
	}
	if r.notDone+r.twice+r.wrong > 0 {
		return &someFailed{r.notDone + r.twice + r.wrong}
	}
	return nil
}

func met(ok bool) float64 {
	if ok {
		return 1
	}
	return 0
}

type fleetRun struct {
	notDone, twice, wrong, killed, taken int
	transactions, connections            int
	imported, queued, encode             time.Duration
	cpu, memory                          float64 // seconds, MB
	database, embeddings, indexes        int64   // bytes
}

func (c *benchFleetCmd) fleet(e *env) (r fleetRun, err error) {
	dir, server, db, err := benchDatabase(e)
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	defer server.Stop()     //nolint:errcheck // it goes with its folder
	defer db.Close()
	manifest := filepath.Join(dir, "manifest.txt")
	if err := c.makeSlides(e, filepath.Join(dir, "gdc"), manifest); err != nil {
		return r, err
	}
	own, err := os.Executable()
	if err != nil {
		return r, err
	}
	var log sharedLog // read when something went wrong
	program := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(e, own, append(args, "--data", filepath.Join(dir, "data"))...) //nolint:gosec // this program
		cmd.Env = append(os.Environ(), "DATABASE_URL="+server.URL(), "BLOB_URL="+filepath.Join(dir, "blobs"))
		cmd.Stderr = &log
		return cmd
	}
	timed := func(took *time.Duration, args ...string) error {
		began := time.Now()
		if out, err := program(args...).Output(); err != nil {
			return fmt.Errorf("coverslip %s: %w\n%s%s", args[0], err, out, log.String())
		}
		*took = time.Since(began)
		return nil
	}
	before := treeCPU(postmaster(dir))
	if err := timed(&r.imported, "import", "gdc", manifest, "--source", filepath.Join(dir, "gdc"), "--cohort", "tcga"); err != nil {
		return r, err
	}
	if err := timed(&r.queued, "encode", "--cohort", "tcga"); err != nil {
		return r, err
	}
	began := time.Now()
	if err := c.work(e, db, &r, func() *exec.Cmd { return program("work", "--lease", c.Lease.String()) }); err != nil {
		return r, fmt.Errorf("%w\n%s", err, log.String())
	}
	r.encode = time.Since(began)
	r.cpu += treeCPU(postmaster(dir)) - before
	return r, c.count(e, db, &r)
}

// makeSlides writes slides of one tile of tissue, each with bytes of its own, as the GDC lays them out.
func (c *benchFleetCmd) makeSlides(e *env, folder, manifest string) error {
	slide, err := bundledSlide()
	if err != nil {
		return err
	}
	from, err := tiler.Open(e, slide)
	if err != nil {
		return err
	}
	defer from.Close()
	one := filepath.Join(filepath.Dir(manifest), "one.tif")
	if err := cropOfOneTile(e, from, one); err != nil {
		return err
	}
	whole, err := os.ReadFile(one)
	if err != nil {
		return err
	}
	bytesOf := func(i int) []byte { return append(slices.Clone(whole), "slide "+strconv.Itoa(i)...) }
	for i := range c.Slides {
		id, name := benchFile(i)
		if err := os.MkdirAll(filepath.Join(folder, id), 0o750); err != nil {
			return diskError("make slides", folder, err)
		}
		if err := os.WriteFile(filepath.Join(folder, id, name), bytesOf(i), 0o600); err != nil {
			return diskError("make slides", folder, err)
		}
	}
	return writeManifest(manifest, c.Slides, func(i int) (int64, string) {
		b := bytesOf(i)
		sum := md5.Sum(b) //nolint:gosec // as above
		return int64(len(b)), hex.EncodeToString(sum[:])
	})
}

// cropOfOneTile writes a piece of a slide that is cut into one tile.
func cropOfOneTile(e *env, from *tiler.Slide, path string) error {
	const edge = 320
	spec, _ := encoder.Default()
	params := ingest.DefaultPlan(spec.Model())
	plan, _, err := from.Plan(e, params, tissue.Default())
	if err != nil {
		return err
	}
	rgb := make([]byte, edge*edge*3)
	for _, t := range plan.Tiles {
		x, y := min(int(t.X), from.Width-edge), min(int(t.Y), from.Height-edge)
		if err := from.Region(e, rgb, 0, x, y, edge, edge); err != nil {
			return err
		}
		if err := vips.SaveTIFF(path, rgb, edge, edge, from.MPP.Value); err != nil {
			return err
		}
		crop, err := tiler.Open(e, path)
		if err != nil {
			return err
		}
		of, _, err := crop.Plan(e, params, tissue.Default())
		_ = crop.Close() // only read
		if err != nil || len(of.Tiles) == 1 {
			return err
		}
	}
	return &coverslip.Error{Kind: coverslip.Internal, Op: "make slides", Err: errors.New("no piece of the slide is one tile")}
}

// bundledSlide is the slide in the repository, seen from its root or from this package.
func bundledSlide() (string, error) {
	const name = "testdata/CMU-1-Small-Region.svs"
	for _, path := range []string{name, filepath.Join("..", "..", name)} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", &coverslip.Error{Kind: coverslip.NotFound, Op: "make slides", Path: name, Err: os.ErrNotExist, Hint: "run it from the root of the repository"}
}

// work runs workers until nothing waits, killing one after the other.
func (c *benchFleetCmd) work(e *env, db *storage.DB, r *fleetRun, program func() *exec.Cmd) error {
	rng := rand.New(rand.NewPCG(1, 2))
	workers := make([]*exec.Cmd, c.Workers)
	end := func(w *exec.Cmd, how os.Signal) {
		if mb, err := residentOf(strconv.Itoa(w.Process.Pid), "VmHWM:"); err == nil {
			r.memory = max(r.memory, mb)
		}
		_ = w.Process.Signal(how)
		_ = w.Wait()
		r.cpu += (w.ProcessState.UserTime() + w.ProcessState.SystemTime()).Seconds()
	}
	defer func() {
		for _, w := range workers {
			if w != nil {
				end(w, os.Interrupt)
			}
		}
	}()
	for i := range workers {
		workers[i] = program()
		if err := workers[i].Start(); err != nil {
			return err
		}
	}
	show := e.progressOf("encoding", "slides", c.Slides)
	kill, look := time.NewTicker(c.Kill), time.NewTicker(time.Second)
	defer kill.Stop()
	defer look.Stop()
	for last, since := -1, time.Now(); ; {
		select {
		case <-e.Done():
			return e.Err()
		case <-kill.C:
			i := rng.IntN(len(workers))
			end(workers[i], os.Kill)
			r.killed++
			workers[i] = program()
			if err := workers[i].Start(); err != nil {
				workers[i] = nil
				return err
			}
		case <-look.C:
			p, err := db.Progress(e, "tcga")
			if err != nil {
				return err
			}
			show(p.Slides - p.Waiting())
			// A worker that is killed between a slide's result and the end of its job leaves the job to another.
			var now, open int
			if err := db.Pool().QueryRow(e, `select (select count(*) from pg_stat_activity where application_name = 'coverslip'),
				(select count(*) from river_job where state <> 'completed' and not metadata ? 'continued_as')`).Scan(&now, &open); err != nil {
				return err
			}
			r.connections = max(r.connections, now-1) // one is this look's
			if p.Waiting()+open == 0 {
				return nil
			}
			if p.Waiting()+open != last {
				last, since = p.Waiting()+open, time.Now()
			}
			if time.Since(since) > 5*time.Minute {
				return fmt.Errorf("%d slides and jobs wait and nothing has moved for five minutes: %+v", last, p.States)
			}
		}
	}
}

// count holds what is there against what should be, and weighs it.
func (c *benchFleetCmd) count(e *env, db *storage.DB, r *fleetRun) error {
	var done, bags, embeddings, completed, others, provisional, updated int
	err := db.Pool().QueryRow(e, `select
		(select count(*) from slides where state = 'embedded'), (select count(*) from bags), (select count(*) from embeddings),
		(select count(*) from river_job where state = 'completed'), (select count(*) from river_job where state <> 'completed' and not metadata ? 'continued_as'),
		(select count(*) from slides where provisional), (select count(*) from river_job where metadata ? 'continued_as'),
		(select n_tup_upd from pg_stat_user_tables where relname = 'embeddings') + (select n_tup_upd from pg_stat_user_tables where relname = 'bags'),
		(select xact_commit from pg_stat_database where datname = current_database()), pg_database_size(current_database())`).
		Scan(&done, &bags, &embeddings, &completed, &others, &provisional, &r.taken, &updated, &r.transactions, &r.database)
	if err != nil {
		return err
	}
	r.notDone, r.twice = c.Slides-done, updated
	for _, n := range []int{bags - c.Slides, embeddings - c.Slides, completed - c.Slides, others, provisional} {
		r.wrong += max(n, -n)
	}
	return c.weigh(e, db, r)
}

// weigh writes embeddings as they are written one by one.
func (c *benchFleetCmd) weigh(e *env, db *storage.DB, r *fleetRun) error {
	if _, err := db.Pool().Exec(e, `truncate embeddings`); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(3, 4))
	err := db.InTx(e, func(tx *storage.Tx) error {
		for i := range c.Weighed {
			id := coverslip.SlideID(fmt.Sprintf("%064x", i))
			if _, _, err := tx.Register(e, coverslip.Slide{ID: id, Name: "weighed", Location: "/weighed"}); err != nil {
				return err
			}
			key := fmt.Sprintf("%064x", 1<<40+i)
			if err := tx.PutBag(e, coverslip.Bag{Key: key, Slide: id, Encoder: "efficientnet-lite0", Dim: c.Dim}); err != nil {
				return err
			}
			v := make([]float32, c.Dim)
			for k := range v {
				v[k] = float32(rng.NormFloat64())
			}
			if err := tx.PutEmbedding(e, coverslip.Embedding{Slide: id, Bag: key, Encoder: "efficientnet-lite0", Aggregator: "mean", Vector: v}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return db.Pool().QueryRow(e, `select pg_table_size('embeddings'), pg_indexes_size('embeddings')`).Scan(&r.embeddings, &r.indexes)
}

// sharedLog is what several processes write, and somebody may read meanwhile.
type sharedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write adds to it.
func (l *sharedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String is what was written so far.
func (l *sharedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
