// Command endtoend runs one test twice, as a user would: once against `coverslip up` on one machine, once
// against the layout of docker-compose.yml as plain processes (Postgres, an S3 server, one API, several
// workers). Upload over HTTP, import a GDC manifest against an S3 server that holds the files, encode, embed,
// query, kill things, query again. Both must end with the same embeddings, bit for bit.
//
//	make build .tools/versitygw && go run ./bench/endtoend
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // what manifests have
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"coverslip"
	"coverslip/internal/versitygw"
	"coverslip/storage/postgres"
)

const bundled = "testdata/CMU-1-Small-Region.svs"

var (
	program = flag.String("program", "bin/coverslip", "the program to test")
	slides  = flag.Int("slides", 24, "slides in the manifest; one more has a wrong MD5")
	workers = flag.Int("workers", 3, "worker processes of the fleet")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	err := run(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "endtoend:", err)
		os.Exit(1)
	}
	fmt.Println("passed")
}

func run(ctx context.Context) error {
	var results []map[coverslip.SlideID][]float32
	for _, layout := range []struct {
		name  string
		start func(context.Context, *site) error
	}{{"coverslip up", startUp}, {"fleet", startFleet}} {
		vectors, err := once(ctx, layout.name, layout.start)
		if err != nil {
			return fmt.Errorf("%s: %w", layout.name, err)
		}
		results = append(results, vectors)
	}
	for id, v := range results[0] {
		if !slices.Equal(v, results[1][id]) {
			return fmt.Errorf("slide %s has another embedding on the fleet than on one machine", id.Short())
		}
	}
	fmt.Printf("both: the same %d embeddings, bit for bit\n", len(results[0]))
	return nil
}

// site is what is tested: an API somewhere, an S3 server, and what can be killed.
type site struct {
	name string
	dir  string
	url  string
	env  []string // of every process
	gdc  string   // where the S3 server holds the manifest's files

	kills   []kill
	endings []func()
	client  http.Client
}

// kill ends something as a power cut would and brings it back.
type kill struct {
	what string
	do   func(context.Context) error
}

func once(ctx context.Context, name string, start func(context.Context, *site) error) (map[coverslip.SlideID][]float32, error) {
	dir, err := os.MkdirTemp("", "coverslip-endtoend-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)                      //nolint:errcheck // a temporary folder
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the postgres user must enter when root runs this
		return nil, err
	}
	s := &site{name: name, dir: dir, client: http.Client{Timeout: time.Minute}}
	defer func() {
		for _, end := range slices.Backward(s.endings) {
			end()
		}
	}()
	if err := s.startS3(ctx); err != nil {
		return nil, err
	}
	if err := start(ctx, s); err != nil {
		return nil, err
	}
	return s.test(ctx)
}

// test is the same for both layouts.
func (s *site) test(ctx context.Context) (map[coverslip.SlideID][]float32, error) {
	began := time.Now()
	say := func(format string, args ...any) {
		fmt.Printf("%-14s %6.1f s  %s\n", s.name, time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	whole, err := os.ReadFile(bundled)
	if err != nil {
		return nil, err
	}
	var uploaded coverslip.Slide
	if err := s.call(ctx, http.MethodPost, "/v1/slides?name=uploaded.svs", "application/octet-stream", bytes.NewReader(whole), &uploaded); err != nil {
		return nil, err
	}
	say("uploaded %s over HTTP", uploaded.ID.Short())

	manifest, err := s.publish(ctx, whole)
	if err != nil {
		return nil, err
	}
	out, err := s.coverslip(ctx, "import", "gdc", manifest, "--source", s.gdc, "--cohort", "tcga", "--json")
	if err != nil {
		return nil, err
	}
	say("imported the manifest: %s", bytes.TrimSpace(out))
	var queued struct{ Queued int }
	if err := s.call(ctx, http.MethodPost, "/v1/cohorts/tcga/encode", "", nil, &queued); err != nil {
		return nil, err
	}
	say("queued %d slides", queued.Queued)

	for i, k := range s.kills {
		if err := s.reach(ctx, (i+1)**slides/(len(s.kills)+2)); err != nil {
			return nil, err
		}
		if err := k.do(ctx); err != nil {
			return nil, fmt.Errorf("bring back %s: %w", k.what, err)
		}
		say("killed %s, and started it again", k.what)
	}
	if err := s.reach(ctx, *slides); err != nil {
		return nil, err
	}
	say("all are done but the one whose MD5 is wrong")

	before, near, err := s.query(ctx, uploaded.ID)
	if err != nil {
		return nil, err
	}
	if len(before) != *slides+1 {
		return nil, fmt.Errorf("%d embeddings of %d slides", len(before), *slides+1)
	}
	for id, v := range before {
		if !slices.Equal(v, before[uploaded.ID]) {
			return nil, fmt.Errorf("slide %s has the pixels of %s and another embedding", id.Short(), uploaded.ID.Short())
		}
	}
	say("queried: %d embeddings, nearest neighbours with similarity %v", len(before), near)
	for _, k := range s.kills {
		if err := k.do(ctx); err != nil {
			return nil, fmt.Errorf("bring back %s: %w", k.what, err)
		}
	}
	after, again, err := s.query(ctx, uploaded.ID)
	if err != nil {
		return nil, err
	}
	for id, v := range before {
		if !slices.Equal(v, after[id]) {
			return nil, fmt.Errorf("slide %s has another embedding after the kills", id.Short())
		}
	}
	if !slices.Equal(near, again) {
		return nil, fmt.Errorf("neighbours are %v after the kills, and were %v", again, near)
	}
	say("killed everything once more, and queried again: the same answers")
	return before, nil
}

// publish puts slides into the S3 server as the GDC lays them out and writes their manifest. They have the
// bundled slide's pixels and bytes of their own.
func (s *site) publish(ctx context.Context, whole []byte) (manifest string, err error) {
	u, err := url.Parse(s.gdc)
	if err != nil {
		return "", err
	}
	endpoint, err := url.Parse(u.Query().Get("endpoint"))
	if err != nil {
		return "", err
	}
	client, err := minio.New(endpoint.Host, &minio.Options{Creds: credentials.NewStaticV4(versitygw.Access, versitygw.Secret, ""), Region: "us-east-1"})
	if err == nil {
		err = client.MakeBucket(ctx, u.Host, minio.MakeBucketOptions{})
	}
	if err != nil {
		return "", err
	}
	lines := "id\tfilename\tmd5\tsize\tstate\n"
	for i := range *slides + 1 {
		data := strconv.AppendInt(slices.Clone(whole), int64(i), 10)
		sum := md5.Sum(data) //nolint:gosec // as above
		id := fmt.Sprintf("%08x-0000-4000-8000-000000000000", i)
		name := fmt.Sprintf("TCGA-A%d-%04d-01Z-00-DX1.%s.svs", i%4, i, strings.ToUpper(id))
		if _, err := client.PutObject(ctx, u.Host, id+"/"+name, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{}); err != nil {
			return "", err
		}
		if i == *slides {
			sum[0]++
		}
		lines += fmt.Sprintf("%s\t%s\t%s\t%d\treleased\n", id, name, hex.EncodeToString(sum[:]), len(data))
	}
	manifest = filepath.Join(s.dir, "manifest.txt")
	return manifest, os.WriteFile(manifest, []byte(lines), 0o600)
}

// reach waits until so many slides of the cohort are embedded; at the end, until nothing waits. It watches
// events, and looks again when the stream breaks off, as it does when the API is killed.
func (s *site) reach(ctx context.Context, n int) error {
	for {
		done, err := s.watch(ctx, n)
		if done || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond): // it is starting
		}
	}
}

func (s *site) watch(ctx context.Context, n int) (done bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/v1/cohorts/tcga/events", nil)
	if err != nil {
		return true, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	event := ""
	for lines.Scan() {
		switch kind, rest, _ := strings.Cut(lines.Text(), ": "); kind {
		case "event":
			event = rest
		case "data":
			var p coverslip.Progress
			if err := json.Unmarshal([]byte(rest), &p); err != nil {
				return true, err
			}
			if n < *slides && p.Done() >= n {
				return true, nil
			}
			if event != "done" {
				continue
			}
			wrong := len(p.Failed) != 1 || p.Failed[0].Slides != 1 || p.Failed[0].Kind != coverslip.Invalid || !strings.Contains(p.Failed[0].Example, "MD5")
			if p.Done() != *slides || wrong {
				return true, fmt.Errorf("it ends with %s", rest)
			}
			return true, nil
		}
	}
	return false, lines.Err()
}

// query reads every embedding, and the nearest of one.
func (s *site) query(ctx context.Context, of coverslip.SlideID) (vectors map[coverslip.SlideID][]float32, near []float64, err error) {
	var list struct{ Slides []coverslip.Slide }
	if err := s.call(ctx, http.MethodGet, "/v1/slides?limit=1000&state=embedded", "", nil, &list); err != nil {
		return nil, nil, err
	}
	vectors = map[coverslip.SlideID][]float32{}
	for _, slide := range list.Slides {
		var e coverslip.Embedding
		if err := s.call(ctx, http.MethodGet, "/v1/slides/"+string(slide.ID)+"/embedding", "", nil, &e); err != nil {
			return nil, nil, err
		}
		vectors[slide.ID] = e.Vector
	}
	for { // the API's copy in memory follows the database, and begins anew when it is started
		var found struct{ Neighbours []coverslip.Neighbour }
		if err := s.call(ctx, http.MethodGet, "/v1/slides/"+string(of)+"/similar?k=3", "", nil, &found); err != nil {
			return nil, nil, err
		}
		near = near[:0]
		for _, n := range found.Neighbours {
			near = append(near, n.Similarity)
		}
		if len(near) == 3 && near[2] > 0.999 {
			return vectors, near, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("the nearest of %s are %v: %w", of.Short(), found.Neighbours, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// call makes a request, again while the server does not answer or says that it cannot now.
func (s *site) call(ctx context.Context, method, path, contentType string, body *bytes.Reader, into any) error {
	for {
		err := s.try(ctx, method, path, contentType, body, into)
		var status *statusError
		if err == nil || errors.As(err, &status) && status.code != http.StatusServiceUnavailable || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d: %s", e.code, e.text) }

func (s *site) try(ctx context.Context, method, path, contentType string, body *bytes.Reader, into any) error {
	var r io.Reader
	if body != nil {
		if _, err := body.Seek(0, io.SeekStart); err != nil {
			return err
		}
		r = body
	}
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, r)
	if err != nil {
		return err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return &statusError{resp.StatusCode, fmt.Sprintf("%s %s: %s", method, path, raw)}
	}
	return json.Unmarshal(raw, into)
}

// process is one of the program's, which can be killed and started again.
type process struct {
	s    *site
	args []string
	cmd  *exec.Cmd
	log  *os.File
}

// begin starts the program; with listens it waits for the address that it prints.
func (s *site) begin(ctx context.Context, name string, listens bool, args ...string) (*process, error) {
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	p := &process{s: s, args: args, log: log}
	s.endings = append(s.endings, func() {
		if p.cmd != nil {
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			_ = p.cmd.Wait()
		}
		_ = log.Close()
	})
	return p, p.start(ctx, listens)
}

func (p *process) start(ctx context.Context, listens bool) error {
	p.cmd = exec.CommandContext(ctx, *program, p.args...) //nolint:gosec // the program that is tested
	p.cmd.Env, p.cmd.Stderr = append(os.Environ(), p.s.env...), p.log
	if !listens {
		return p.cmd.Start()
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	var said struct{ URL string }
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &said)
	}
	if err != nil {
		text, _ := os.ReadFile(p.log.Name())
		return fmt.Errorf("coverslip %s did not start: %w\n%s", p.args[0], err, text)
	}
	p.s.url = said.URL
	return nil
}

func (p *process) killed(listens bool) func(context.Context) error {
	return func(ctx context.Context) error {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		return p.start(ctx, listens)
	}
}

// coverslip runs a verb to its end, again while a server that it needs is starting.
func (s *site) coverslip(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, *program, append(args, "--data", filepath.Join(s.dir, "data"))...) //nolint:gosec // the program that is tested
	cmd.Env = append(os.Environ(), s.env...)
	var text bytes.Buffer
	cmd.Stderr = &text
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("coverslip %s: %w\n%s%s", args[0], err, out, text.Bytes())
	}
	return out, nil
}

// startS3 serves a folder as buckets on a port that stays its own when it is killed.
func (s *site) startS3(ctx context.Context) error {
	binary, err := versitygw.Find()
	if err != nil {
		return fmt.Errorf("no S3 server: make .tools/versitygw: %w", err)
	}
	folder := filepath.Join(s.dir, "s3")
	if err := os.Mkdir(folder, 0o755); err != nil { //nolint:gosec // a temporary folder
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is given back at once
	if err != nil {
		return err
	}
	host := l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	var cmd *exec.Cmd
	start := func(ctx context.Context) error {
		cmd = exec.CommandContext(ctx, binary, "--port", host, "--health", "/health", "--quiet", "posix", folder) //nolint:gosec // the tool this repository builds
		cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+versitygw.Access, "ROOT_SECRET_KEY="+versitygw.Secret)
		if err := cmd.Start(); err != nil {
			return err
		}
		for {
			resp, err := http.Get("http://" + host + "/health") //nolint:noctx // of this machine
			if err == nil {
				_ = resp.Body.Close()
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	stop := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	s.endings = append(s.endings, func() { stop() })
	address := "endpoint=" + url.QueryEscape("http://"+host)
	s.gdc = "s3://gdc?" + address
	s.env = append(s.env, "AWS_ACCESS_KEY_ID="+versitygw.Access, "AWS_SECRET_ACCESS_KEY="+versitygw.Secret, "S3="+address)
	s.kills = append(s.kills, kill{"the S3 server", func(ctx context.Context) error {
		stop()
		return start(ctx)
	}})
	return start(ctx)
}

// startUp is everything in one process.
func startUp(ctx context.Context, s *site) error {
	p, err := s.begin(ctx, "up", true, "up", "--json", "--addr", "127.0.0.1:0", "--data", filepath.Join(s.dir, "data"))
	s.kills = append(s.kills, kill{"coverslip up", p.killed(true)}, kill{"coverslip up", p.killed(true)})
	return err
}

// startFleet is docker-compose.yml as processes.
func startFleet(ctx context.Context, s *site) error {
	pg := filepath.Join(s.dir, "postgres")
	server, err := postgres.Start(ctx, pg)
	if err != nil {
		return err
	}
	s.endings = append(s.endings, func() { _ = server.Stop() })
	address, _ := strings.CutPrefix(s.env[len(s.env)-1], "S3=")
	s.env = append(s.env, "DATABASE_URL="+server.URL(), "BLOB_URL=s3://coverslip?"+address)
	if err := os.Mkdir(filepath.Join(s.dir, "s3", "coverslip"), 0o755); err != nil { //nolint:gosec // each folder is a bucket, as the volume of the compose file is
		return err
	}
	if _, err := s.coverslip(ctx, "migrate"); err != nil {
		return err
	}
	api, err := s.begin(ctx, "api", true, "serve", "--json", "--addr", "127.0.0.1:0", "--data", filepath.Join(s.dir, "api"))
	if err != nil {
		return err
	}
	for i := range *workers {
		name := "worker-" + strconv.Itoa(i)
		w, err := s.begin(ctx, name, false, "work", "--data", filepath.Join(s.dir, name))
		if err != nil {
			return err
		}
		s.kills = append(s.kills, kill{"a worker", w.killed(false)})
	}
	s.kills = append(s.kills, kill{"the API", api.killed(true)}, kill{"Postgres", func(ctx context.Context) error {
		raw, err := os.ReadFile(filepath.Join(pg, "data", "postmaster.pid"))
		if err != nil {
			return err
		}
		first, _, _ := strings.Cut(string(raw), "\n")
		pid, err := strconv.Atoi(first)
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		<-server.Done()
		_ = server.Stop() // gives its folder back
		server, err = postgres.Start(ctx, pg)
		return err
	}})
	return nil
}
