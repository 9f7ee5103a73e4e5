package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"coverslip"
	"coverslip/internal/versitygw"
	"coverslip/storage"
	"coverslip/storage/postgres"
)

type benchIngestCmd struct {
	Slide string `arg:"" optional:"" type:"existingfile" placeholder:"SLIDE" help:"What the uploads begin with (testdata/CMU-1-Small-Region.svs); random bytes make up the rest."`
	Size  int64  `default:"2000" placeholder:"MB" help:"Length of the large upload, MB (${default})."`
	Runs  int    `default:"3" help:"Runs of each, in turns (${default})."`
	Queue int    `default:"12000" placeholder:"N" help:"Slides that are registered by reference and queued (${default}); 0 leaves that out."`
	Only  bool   `name:"queue-only" help:"Measure nothing else."`
}

// Help is shown by coverslip bench ingest --help.
func (benchIngestCmd) Help() string {
	return `Example:
  coverslip bench ingest --json

An upload through the API to a real S3 server (versitygw), beside the S3 client (minio-go) putting the
same file there alone; and the memory of the API with 50 uploads at once. API, S3 server, Postgres and
client share this machine. Then what a cohort costs that is imported by reference and queued, and what the
queue takes beside the work on a slide.`
}

// Run measures what comes in.
func (c *benchIngestCmd) Run(e *env) error {
	if c.Slide == "" {
		c.Slide = filepath.Join("testdata", "CMU-1-Small-Region.svs")
	}
	if c.Queue > 0 {
		if err := benchQueue(e, c.Queue, c.Runs); err != nil || c.Only {
			return err
		}
	}
	site, err := startSite(e)
	if err != nil {
		return err
	}
	defer site.stop()
	if err := c.memory(e, site); err != nil {
		return err
	}
	return c.throughput(e, site)
}

// throughput puts one large file into the bucket in three ways, in turns.
func (c *benchIngestCmd) throughput(e *env, site *benchSite) error {
	path := filepath.Join(site.dir, "large.svs")
	size := c.Size * 1e6
	if err := c.fill(path, size); err != nil {
		return err
	}
	client := &uploadClient{e: &env{Context: e.Context, out: io.Discard, err: io.Discard, log: e.log}, base: site.url, patience: time.Minute, pause: time.Second / 2, http: &http.Client{}}
	ways := []struct {
		name string
		do   func(sum string) error
		took []float64
	}{
		{name: "minio-go alone", do: func(string) error {
			_, err := site.s3.FPutObject(e, site.bucket, "peer", path, minio.PutObjectOptions{})
			return err
		}},
		{name: "tus, as coverslip upload sends it", do: func(sum string) error {
			src := &uploadSource{name: "large.svs", size: size, sum: sum, open: func(offset int64) (io.ReadCloser, error) {
				f, err := os.Open(path)
				if err == nil {
					_, err = f.Seek(offset, io.SeekStart)
				}
				return f, err
			}}
			_, err := client.send(src, 0, func(int64) {})
			return err
		}},
		{name: "one POST, as curl sends it", do: func(string) error {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			var slide coverslip.Slide
			return client.callCtx(e, http.MethodPost, "/v1/slides?name=large.svs", map[string]string{"Content-Type": "application/octet-stream"}, f, size, &slide, nil)
		}},
	}
	for run := range c.Runs {
		for i := range ways {
			sum, err := stamp(path, size, uint64(run*len(ways)+i)) // or it would be known already
			if err != nil {
				return err
			}
			began := time.Now()
			if err := ways[i].do(sum); err != nil {
				return fmt.Errorf("%s: %w", ways[i].name, err)
			}
			ways[i].took = append(ways[i].took, time.Since(began).Seconds())
			if err := site.empty(e); err != nil {
				return err
			}
		}
	}
	rate := func(i int) float64 { return float64(size) / 1e6 / median(ways[i].took) }
	for i := 1; i < len(ways); i++ {
		if err := e.measured(measurement{Bench: "ingest", Case: fmt.Sprintf("upload of %d MB through the API to S3: %s", c.Size, ways[i].name), Value: rate(i), Unit: "MB/s",
			Peer: ways[0].name, PeerValue: rate(0), Ratio: rate(i) / rate(0), Target: 0.6, Runs: c.Runs, Machine: machine()}); err != nil {
			return err
		}
	}
	return os.Remove(path)
}

// memory sends many slides at once and looks at the most memory the API took since it started.
func (c *benchIngestCmd) memory(e *env, site *benchSite) error {
	const at, each, limit = 50, 40_000_000, 100 // uploads, bytes, MB
	client := &uploadClient{e: &env{Context: e.Context, out: io.Discard, err: io.Discard, log: e.log}, base: site.url, patience: time.Minute, pause: time.Second / 2, http: &http.Client{}}
	for _, one := range []struct {
		name string
		each int64
	}{{"of 40 MB", each}, {"of 80 MB, after those", 2 * each}} {
		path := filepath.Join(site.dir, "many.svs")
		if err := c.fill(path, one.each); err != nil {
			return err
		}
		pid := strconv.Itoa(site.api.Process.Pid)
		own, stop := c.watch(pid)
		var wg sync.WaitGroup
		errs := make([]error, at)
		for i := range at {
			wg.Go(func() {
				open := func(offset int64) (io.ReadCloser, error) { return stamped(path, one.each, uint64(i), offset) } //nolint:gosec // a small number
				content, err := open(0)
				if err == nil {
					sum := sha256.New()
					_, err = io.Copy(sum, content)
					_ = content.Close() // only read
					if err == nil {
						_, err = client.send(&uploadSource{name: fmt.Sprintf("%d.svs", i), size: one.each, sum: hex.EncodeToString(sum.Sum(nil)), open: open}, 0, func(int64) {})
					}
				}
				errs[i] = err
			})
		}
		wg.Wait()
		stop()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		all, err := residentOf(pid, "VmHWM:")
		if err != nil {
			return err
		}
		for _, m := range []measurement{
			{Case: fmt.Sprintf("most memory of the API, %d uploads at once %s: its own", at, one.name), Value: *own, Ratio: limit / *own},
			{Case: fmt.Sprintf("most memory of the API, %d uploads at once %s: with the mapped pages of the program and its libraries", at, one.name), Value: all, Ratio: limit / all},
		} {
			m.Bench, m.Unit, m.Target, m.Runs, m.Machine = "ingest", "MB resident", 1, 1, machine()
			if err := e.measured(m); err != nil {
				return err
			}
		}
		if err := site.empty(e); err != nil {
			return err
		}
	}
	return nil
}

// watch notes the most memory of a process that is its own: what no file holds.
func (c *benchIngestCmd) watch(pid string) (most *float64, stop func()) {
	most = new(float64)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if now, err := residentOf(pid, "RssAnon:"); err == nil {
				*most = max(*most, now)
			}
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return most, func() { close(done); <-ended }
}

// fill writes a slide with bytes behind it that nothing in it points to.
func (c *benchIngestCmd) fill(path string, size int64) error {
	slide, err := os.ReadFile(c.Slide)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return diskError("write the slide to measure with", path, err)
	}
	if _, err = f.Write(slide); err == nil {
		random, rerr := os.Open("/dev/urandom")
		if err = rerr; err == nil {
			_, err = io.CopyN(f, random, size-int64(len(slide)))
			_ = random.Close() // only read
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return diskError("write the slide to measure with", path, err)
	}
	return nil
}

// stamp makes a file another one by its last bytes, and returns its SHA-256.
func stamp(path string, size int64, n uint64) (string, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	mark := fmt.Sprintf("%20d", n)
	if _, err := f.WriteAt([]byte(mark), size-int64(len(mark))); err != nil {
		return "", err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, size)); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// stamped is a file with other last bytes, from an offset on.
func stamped(path string, size int64, n uint64, offset int64) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	mark := fmt.Sprintf("%20d", n)
	all := io.NewSectionReader(f, 0, size-int64(len(mark)))
	if offset > all.Size() {
		return struct {
			io.Reader
			io.Closer
		}{strings.NewReader(mark[offset-all.Size():]), f}, nil
	}
	if _, err := all.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(all, strings.NewReader(mark)), f}, nil
}

// benchSite is an API over a Postgres and an S3 server, each a process of its own on this machine.
type benchSite struct {
	dir    string
	url    string
	bucket string
	api    *exec.Cmd
	s3     *minio.Client
	db     *storage.DB
	stops  []func()
}

func startSite(e *env) (*benchSite, error) {
	const op = "start the servers to measure"
	s := &benchSite{bucket: "slides"}
	binary, err := versitygw.Find()
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: op, Err: errors.New("versitygw is not installed"), Hint: "run make .tools/versitygw in a checkout, and measure there"}
	}
	if s.dir, err = os.MkdirTemp("", "coverslip-bench-"); err != nil {
		return nil, diskError(op, os.TempDir(), err)
	}
	s.stops = append(s.stops, func() { _ = os.RemoveAll(s.dir) })
	if err := s.start(e, binary); err != nil {
		s.stop()
		return nil, coverslip.Doing(op, err)
	}
	return s, nil
}

func (s *benchSite) start(e *env, binary string) error {
	buckets := filepath.Join(s.dir, "buckets")
	if err := errors.Join(os.Mkdir(buckets, 0o700), os.Chmod(s.dir, 0o755)); err != nil { //nolint:gosec // Postgres' user has to pass through
		return err
	}
	if err := versitygw.Serves(buckets); err != nil {
		return &coverslip.Error{Kind: coverslip.Environment, Path: buckets, Err: err, Hint: "versitygw needs extended attributes: set TMPDIR to a folder on a file system that has them"}
	}
	host, stop, err := versitygw.Start(e, binary, buckets)
	if err != nil {
		return err
	}
	s.stops = append(s.stops, stop)
	if s.s3, err = minio.New(host, &minio.Options{Creds: credentials.NewStaticV4(versitygw.Access, versitygw.Secret, ""), Region: "us-east-1"}); err != nil {
		return err
	}
	if err := s.s3.MakeBucket(e, s.bucket, minio.MakeBucketOptions{}); err != nil {
		return err
	}
	server, err := postgres.Start(e, filepath.Join(s.dir, "pg"))
	if err != nil {
		return err
	}
	s.stops = append(s.stops, func() { _ = server.Stop() })
	if s.db, err = storage.Open(e, server.URL()); err != nil {
		return err
	}
	s.stops = append(s.stops, s.db.Close)
	if err := s.db.Migrate(e); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	s.api = exec.CommandContext(e, exe, "serve", "--json", "--addr", "127.0.0.1:0", "--data", filepath.Join(s.dir, "api")) //nolint:gosec // this program
	s.api.Env = append(os.Environ(), "DATABASE_URL="+server.URL(), "BLOB_URL=s3://"+s.bucket+"?endpoint="+url.QueryEscape("http://"+host),
		"AWS_ACCESS_KEY_ID="+versitygw.Access, "AWS_SECRET_ACCESS_KEY="+versitygw.Secret)
	s.api.Stderr = e.err
	out, err := s.api.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.api.Start(); err != nil {
		return err
	}
	s.stops = append(s.stops, func() {
		_ = s.api.Process.Signal(syscall.SIGTERM)
		_ = s.api.Wait()
	})
	var said struct{ URL string }
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &said)
	}
	s.url = said.URL
	return err
}

func (s *benchSite) stop() {
	for i := len(s.stops) - 1; i >= 0; i-- {
		s.stops[i]()
	}
}

// empty removes what was put into the bucket, and waits until the disk has written what was written.
func (s *benchSite) empty(ctx context.Context) error {
	for o := range s.s3.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			return o.Err
		}
		if err := s.s3.RemoveObject(ctx, s.bucket, o.Key, minio.RemoveObjectOptions{}); err != nil {
			return err
		}
	}
	syscall.Sync()
	_, err := s.db.Pool().Exec(ctx, `delete from slides`)
	return err
}

// residentOf is a figure of a process from /proc, MB.
func residentOf(pid, field string) (float64, error) {
	raw, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, field); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			return kib * 1024 / 1e6, err
		}
	}
	return 0, fmt.Errorf("/proc says nothing of %s", field)
}
