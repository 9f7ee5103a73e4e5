package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"coverslip"
	"coverslip/internal/versitygw"
	"coverslip/storage/blob"
	"coverslip/tiler"
	"coverslip/tiler/tiff"
	"coverslip/tiler/tissue"
)

type benchStreamCmd struct {
	Slide string `arg:"" optional:"" help:"A TIFF or SVS slide on this machine; without one, the one in testdata laid 12 × 12 beside itself, as a pyramid of 256-pixel JPEG tiles."`
	Runs  int    `default:"5" help:"Runs of each; medians are compared (${default})."`
	Delay int    `default:"20" help:"Milliseconds added to every request (${default})."`
	Weigh int    `hidden:"" help:"Tile so many slides in a row, print the memory of this process after each, and do nothing else."`
	Also  string `hidden:"" help:"Take turns with this slide."`
	Turns bool   `hidden:"" help:"Tile the slide that each line of standard input names, and print how long it took."`
}

// Help is shown by coverslip bench stream --help.
func (benchStreamCmd) Help() string {
	return `Example:
  coverslip bench stream --json

The slide is put into a real S3 server (versitygw, on this machine) behind a proxy that delays every
request and counts bytes. Then it is opened, its tissue found and all its tiles of 256 pixels at level 0
decoded: from the file and from the server, in turns. Server and proxy have half of the machine's cores to
themselves, as the far side has in life, and both ways of tiling the other half. Bytes are all that the server sent, opening and mask
included, beside those of the tiles of the plan. Last, the memory of a process that tiles the slide
from the file and from the server, and of one that tiles 200 slides in a row: on the file's grid, and
off it at another resolution, which takes more.`
}

// Run measures and prints.
func (c *benchStreamCmd) Run(e *env) error {
	switch {
	case c.Weigh > 0:
		return c.weigh(e)
	case c.Turns:
		return turns(e)
	}
	name := filepath.Base(c.Slide)
	if c.Slide == "" {
		large, err := replicated(e, "testdata/CMU-1-Small-Region.svs", 12)
		if err != nil {
			return err
		}
		defer os.Remove(large) //nolint:errcheck // a temporary file
		name, c.Slide = "CMU-1-Small-Region 12 × 12", large
	}
	cores, err := allCores()
	if err != nil {
		return err
	}
	here, there := cores.halves()
	if err := there.confine(); err != nil { // with all that is started from now on
		return err
	}
	far, err := c.serve(e)
	if err != nil {
		return err
	}
	defer far.close()
	if err := c.beside(e, name, far, here, there); err != nil {
		return err
	}
	if err := cores.confine(); err != nil {
		return err
	}
	return c.memory(e, name, far)
}

// tileAll opens a slide, plans its tiles of 256 pixels and decodes them on all cores, as an encoder takes
// them: in order. They are those of level 0, or larger by a factor that no level has, and overlap.
func tileAll(ctx context.Context, address string, offGrid bool) (coverslip.Plan, error) {
	slide, err := tiler.Open(ctx, address)
	if err != nil {
		return coverslip.Plan{}, err
	}
	defer slide.Close()
	mpp := slide.MPP.Value
	if !slide.MPP.Known() {
		mpp = 0.5
	}
	params := coverslip.PlanParams{MPP: mpp, MPPOfSlide: mpp, Size: 256, MinTissue: 0.25}
	if offGrid {
		params.MPP, params.Overlap = 1.4*mpp, 32
	}
	plan, _, err := slide.Plan(ctx, params, tissue.Default())
	if err != nil {
		return plan, err
	}
	tiles := slide.Tiles(plan)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			dst := make([]byte, plan.Size*plan.Size*3)
			for i := int(next.Add(1)) - 1; i < tiles.Len(); i = int(next.Add(1)) - 1 {
				if err := tiles.ReadTile(ctx, dst, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return plan, g.Wait()
}

// turns tiles the slide that each line of standard input names.
func turns(e *env) error {
	if err := e.emit(peerRun{}); err != nil { // ready
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		started := time.Now()
		plan, err := tileAll(e, lines.Text(), false)
		if err != nil {
			return err
		}
		if err := e.emit(peerRun{Images: len(plan.Tiles), Seconds: time.Since(started).Seconds()}); err != nil {
			return err
		}
	}
	return lines.Err()
}

// beside measures the slide in the bucket beside the file, tiled on some cores by a process of its own,
// with the server on the others, where this process is.
func (c *benchStreamCmd) beside(e *env, name string, far *slowBucket, here, there cores) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	tiler, err := here.hire(exec.CommandContext(e, exe, "bench", "stream", "--turns"), there) //nolint:gosec // this program itself
	if err != nil {
		return err
	}
	defer tiler.stop()
	var near, remote, requests, bytes []float64
	show := e.progress("measuring", c.Runs+1)
	for run := range c.Runs + 1 { // the first is not counted
		r, err := tiler.do(c.Slide)
		if err != nil {
			return err
		}
		near = append(near, r.Seconds)
		far.requests.Store(0)
		far.bytes.Store(0)
		if r, err = tiler.do(far.address); err != nil {
			return err
		}
		remote = append(remote, r.Seconds)
		requests, bytes = append(requests, float64(far.requests.Load())), append(bytes, float64(far.bytes.Load()))
		show(run + 1)
	}
	plan, err := tileAll(e, c.Slide, false)
	if err != nil {
		return err
	}
	need, err := neededBytes(e, c.Slide, plan)
	if err != nil {
		return err
	}
	a, b := median(near[1:]), median(remote[1:])
	if err := e.measured(measurement{Bench: "stream", Case: fmt.Sprintf("all %d tiles from S3, %d ms added to each of %.0f requests, %s", len(plan.Tiles), c.Delay, median(requests[1:]), name),
		Value: b, Unit: "s", Peer: "the file itself", PeerValue: a, Ratio: a / b, Target: 0.77, Runs: c.Runs, Machine: machine()}); err != nil { // 1/1.3
		return err
	}
	sent := median(bytes[1:])
	return e.measured(measurement{Bench: "stream", Case: "bytes sent, opening and mask included, " + name,
		Value: sent / 1e6, Unit: "MB", Peer: "the tiles of the plan", PeerValue: need / 1e6, Ratio: need / sent, Target: 0.87, Runs: c.Runs, Machine: machine()}) // 1/1.15
}

// neededBytes is how long the tiles of the file are, together, that a plan touches.
func neededBytes(ctx context.Context, path string, plan coverslip.Plan) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return 0, err
	}
	index, err := tiff.Read(ctx, tiff.NewReaderAt(f, stat.Size()))
	if err != nil {
		return 0, err
	}
	level := index.Levels[plan.Level]
	columns, rows := level.Dir.TileCount()
	seen := map[[2]int]bool{}
	var sum float64
	for _, t := range plan.Tiles {
		left, top, span := float64(t.X)/level.Downsample, float64(t.Y)/level.Downsample, plan.Span/level.Downsample
		for row := int(top) / level.Dir.TileHeight; row < rows && float64(row*level.Dir.TileHeight) < top+span; row++ {
			for column := int(left) / level.Dir.TileWidth; column < columns && float64(column*level.Dir.TileWidth) < left+span; column++ {
				if at := [2]int{column, row}; !seen[at] {
					seen[at] = true
					_, n := level.Dir.Tile(column, row)
					sum += float64(n)
				}
			}
		}
	}
	return sum, nil
}

// memory weighs processes of their own.
func (c *benchStreamCmd) memory(e *env, name string, far *slowBucket) error {
	const limit = 300 // MB
	for _, one := range []struct{ what, address string }{{"from the file", c.Slide}, {"from S3", far.address}} {
		w, err := weighed(e, 4, one.address, one.address)
		if err != nil {
			return err
		}
		if err := e.measured(measurement{Bench: "stream", Case: "most memory while tiling " + one.what + ", " + name, Value: w.Peak, Unit: "MB resident",
			Ratio: limit / w.Peak, Target: 1, Runs: 1, Machine: machine()}); err != nil {
			return err
		}
	}
	small, err := replicated(e, "testdata/CMU-1-Small-Region.svs", 2)
	if err != nil {
		return err
	}
	defer os.Remove(small) //nolint:errcheck // a temporary file
	w, err := weighed(e, 200, small, "testdata/CMU-1-Small-Region.svs")
	if err != nil {
		return err
	}
	// The least of ten, because between collections of garbage memory goes up and down.
	early, late := least(w.After[10:20]), least(w.After[190:200])
	if err := e.measured(measurement{Bench: "stream", Case: "memory after 200 slides in a row", Value: late, Unit: "MB resident",
		Peer: "after 20", PeerValue: early, Ratio: early / late, Target: 0.95, Runs: 1, Machine: machine()}); err != nil {
		return err
	}
	return e.measured(measurement{Bench: "stream", Case: "most memory over 200 slides in a row", Value: w.Peak, Unit: "MB resident", Ratio: limit / w.Peak, Target: 1, Runs: 1, Machine: machine()})
}

// cores are some of the machine's.
type cores unix.CPUSet

func allCores() (c cores, err error) {
	return c, unix.SchedGetaffinity(0, (*unix.CPUSet)(&c))
}

// halves divides them; where there is but one, it is in both.
func (c *cores) halves() (a, b cores) {
	set, here, there := (*unix.CPUSet)(c), (*unix.CPUSet)(&a), (*unix.CPUSet)(&b)
	for i := range 1024 { // as many as a set can hold
		switch {
		case !set.IsSet(i):
		case here.Count() < set.Count()/2:
			here.Set(i)
		default:
			there.Set(i)
		}
	}
	if here.Count() == 0 {
		a = *c
	}
	return a, b
}

// confine keeps this process to them.
func (c *cores) confine() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, (*unix.CPUSet)(c)); err != nil && !errors.Is(err, unix.ESRCH) { // it ended
			return err
		}
	}
	return nil
}

// hire starts a program that keeps to them, while this one keeps to its own.
func (c *cores) hire(cmd *exec.Cmd, own cores) (*peer, error) {
	runtime.LockOSThread() // whose cores a program that it starts inherits
	defer runtime.UnlockOSThread()
	if err := unix.SchedSetaffinity(0, (*unix.CPUSet)(c)); err != nil {
		return nil, err
	}
	p, err := hire(cmd)
	return p, errors.Join(err, unix.SchedSetaffinity(0, (*unix.CPUSet)(&own)))
}

func least(v []float64) float64 {
	out := v[0]
	for _, x := range v {
		out = min(out, x)
	}
	return out
}

// weight is the resident memory of a process, MB.
type weight struct {
	After []float64 `json:"after"` // each slide
	Peak  float64   `json:"peak"`
}

// weighed tiles so many slides in a row, one and another in turns, in a process of its own.
func weighed(e *env, times int, one, another string) (w weight, err error) {
	exe, err := os.Executable()
	if err != nil {
		return w, err
	}
	cmd := exec.CommandContext(e, exe, "bench", "stream", one, "--also", another, "--weigh", strconv.Itoa(times)) //nolint:gosec // this program
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return w, fmt.Errorf("tile in a process of its own: %w", err)
	}
	return w, json.Unmarshal(out, &w)
}

func (c *benchStreamCmd) weigh(e *env) error {
	var w weight
	for range c.Weigh {
		if _, err := tileAll(e, c.Slide, false); err != nil {
			return err
		}
		now, err := resident("VmRSS:")
		if err != nil {
			return err
		}
		w.After = append(w.After, now)
	}
	var err error
	if w.Peak, err = resident("VmHWM:"); err != nil {
		return err
	}
	return e.emit(w)
}

// resident is a figure of this process from /proc, MB.
func resident(field string) (float64, error) { return residentOf("self", field) }

// slowBucket is a slide in an S3 server, each request of which takes a while longer.
type slowBucket struct {
	address         string
	requests, bytes atomic.Int64
	stop            []func()
}

func (b *slowBucket) close() {
	for i := len(b.stop) - 1; i >= 0; i-- {
		b.stop[i]()
	}
}

// serve starts the server, puts the slide into it, and opens the proxy.
func (c *benchStreamCmd) serve(e *env) (_ *slowBucket, err error) {
	b := &slowBucket{}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	const op = "start an S3 server to read from"
	binary, err := versitygw.Find()
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: op, Err: errors.New("versitygw is not installed"), Hint: "run make .tools/versitygw in a checkout, and measure there"}
	}
	dir, err := os.MkdirTemp("", "coverslip-bench-")
	if err != nil {
		return nil, diskError(op, os.TempDir(), err)
	}
	b.stop = append(b.stop, func() { _ = os.RemoveAll(dir) }) // temporary files
	if err := versitygw.Serves(dir); err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: op, Path: dir, Err: err, Hint: "versitygw needs extended attributes: set TMPDIR to a folder on a file system that has them"}
	}
	if err := os.Mkdir(filepath.Join(dir, "slides"), 0o700); err != nil { // its folders are its buckets
		return nil, diskError(op, dir, err)
	}
	host, stop, err := versitygw.Start(e, binary, dir)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Environment, Op: op, Path: binary, Err: err, Hint: "run make .tools/versitygw again"}
	}
	b.stop = append(b.stop, stop)
	if err := errors.Join(os.Setenv("AWS_ACCESS_KEY_ID", versitygw.Access), os.Setenv("AWS_SECRET_ACCESS_KEY", versitygw.Secret)); err != nil {
		return nil, err
	}
	if err := upload(e, "s3://slides?endpoint="+url.QueryEscape("http://"+host), c.Slide); err != nil {
		return nil, err
	}
	proxy, err := b.listen(host, time.Duration(c.Delay)*time.Millisecond)
	if err != nil {
		return nil, err
	}
	b.address = "s3://slides/slide?endpoint=" + url.QueryEscape(proxy)
	return b, nil
}

func upload(ctx context.Context, bucket, path string) error {
	store, err := blob.Open(ctx, bucket)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	return store.Put(ctx, "slide", f, stat.Size())
}

// listen opens a proxy before the server at host.
func (b *slowBucket) listen(host string, delay time.Duration) (address string, err error) {
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: host})
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(r *http.Response) error {
			b.bytes.Add(r.ContentLength)
			return nil
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.requests.Add(1)
		select {
		case <-time.After(delay):
			forward.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})}
	ended := make(chan struct{})
	go func() {
		_ = server.Serve(l) // ends when it is closed
		close(ended)
	}()
	b.stop = append(b.stop, func() {
		_ = server.Close() // nobody reads any more
		<-ended
	})
	return "http://" + l.Addr().String(), nil
}
