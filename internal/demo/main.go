// Command demo is what `make demo` runs: it starts the built program on a throw-away folder, uploads
// the bundled slide and some regions of it over HTTP, waits for their embeddings, and shows what
// came out. It is a client like any other: everything it prints comes from the API.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"coverslip"
	"coverslip/tiler"
	"coverslip/tiler/vips"
)

const (
	program = "bin/coverslip"
	bundled = "testdata/CMU-1-Small-Region.svs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	err := run(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "coverslip-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)                      //nolint:errcheck // a temporary folder
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the postgres user must enter when root runs this
		return err
	}
	server, err := start(ctx, filepath.Join(dir, "data"))
	if err != nil {
		return err
	}
	defer func() {
		if e := server.stop(); err == nil {
			err = e
		}
	}()
	fmt.Printf("started     %s up on an empty folder, API at %s\n", program, server.url)

	main, err := server.upload(ctx, bundled, 0)
	if err != nil {
		return err
	}
	fmt.Printf("uploaded    %s: %d × %d px, %.4g µm/px, slide %s\n", main.Name, main.Width, main.Height, main.MPP.Value, main.ID.Short())
	regions, err := cut(ctx, bundled, dir)
	if err != nil {
		return err
	}
	ids := []coverslip.SlideID{main.ID}
	for _, path := range regions {
		s, err := server.upload(ctx, path, 0)
		if err != nil {
			return err
		}
		ids = append(ids, s.ID)
	}
	fmt.Printf("uploaded    %d regions cut from it, as slides of their own\n", len(regions))
	for _, id := range ids {
		if err := server.wait(ctx, id); err != nil {
			return err
		}
	}
	return server.show(ctx, main)
}

// cut saves regions of the slide as slides: something to be near to, and something to be far from.
func cut(ctx context.Context, path, dir string) ([]string, error) {
	slide, err := tiler.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer slide.Close()
	w, h := slide.Width, slide.Height
	var out []string
	for _, r := range []struct {
		name       string
		x, y, w, h int
	}{
		{"upper-half", 0, 0, w, h / 2},
		{"lower-half", 0, h / 2, w, h / 2},
		{"keratin-whorl", w * 5 / 10, h * 3 / 10, w * 35 / 100, h * 35 / 100},
		{"dermis-corner", w * 5 / 10, h * 3 / 4, w * 35 / 100, h / 4},
	} {
		pixels := make([]byte, r.w*r.h*3)
		if err := slide.Region(ctx, pixels, 0, r.x, r.y, r.w, r.h); err != nil {
			return nil, err
		}
		file := filepath.Join(dir, r.name+".tif")
		if err := vips.SaveTIFF(file, pixels, r.w, r.h, slide.MPP.Value); err != nil {
			return nil, err
		}
		out = append(out, file)
	}
	return out, nil
}

// server is the program under demonstration.
type server struct {
	cmd *exec.Cmd
	url string
	log bytes.Buffer
}

func start(ctx context.Context, data string) (*server, error) {
	s := &server{cmd: exec.Command(program, "up", "--json", "--addr", "127.0.0.1:0", "--data", data)} //nolint:gosec,noctx // our own program; it is stopped by a signal, not killed
	s.cmd.Env = without(os.Environ(), "DATABASE_URL", "BLOB_URL", "COVERSLIP_DATA")
	s.cmd.Stderr = &s.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w; run `make build` first", err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	var said struct{ URL string }
	if err == nil {
		err = json.Unmarshal(line, &said)
	}
	if err != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		return nil, fmt.Errorf("the server did not start: %s", s.log.String())
	}
	go io.Copy(io.Discard, out) //nolint:errcheck // ends with the process
	s.url = said.URL
	return s, ctx.Err()
}

func without(environ []string, names ...string) []string {
	var out []string
next:
	for _, v := range environ {
		for _, n := range names {
			if len(v) > len(n) && v[:len(n)+1] == n+"=" {
				continue next
			}
		}
		out = append(out, v)
	}
	return out
}

func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := s.cmd.Wait(); err != nil {
		return fmt.Errorf("the server did not stop cleanly: %w\n%s", err, s.log.String())
	}
	fmt.Println("stopped     cleanly")
	return nil
}

func (s *server) upload(ctx context.Context, path string, mpp float64) (slide coverslip.Slide, err error) {
	f, err := os.Open(path)
	if err != nil {
		return slide, err
	}
	defer f.Close()
	q := url.Values{"name": {filepath.Base(path)}}
	if mpp > 0 {
		q.Set("mpp_of_slide", fmt.Sprint(mpp))
	}
	err = s.call(ctx, http.MethodPost, "/v1/slides?"+q.Encode(), f, &slide)
	return slide, err
}

func (s *server) wait(ctx context.Context, id coverslip.SlideID) error {
	for {
		var slide coverslip.Slide
		if err := s.call(ctx, http.MethodGet, "/v1/slides/"+string(id), nil, &slide); err != nil {
			return err
		}
		switch {
		case slide.State == coverslip.Embedded:
			return nil
		case slide.State.Done():
			return fmt.Errorf("%s is %s: %s", slide.Name, slide.State, slide.Reason)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (s *server) show(ctx context.Context, slide coverslip.Slide) error {
	var e coverslip.Embedding
	var detail struct {
		Bag coverslip.Bag `json:"bag"`
	}
	var near struct {
		Neighbours []coverslip.Neighbour `json:"neighbours"`
	}
	path := "/v1/slides/" + string(slide.ID)
	if err := errors.Join(
		s.call(ctx, http.MethodGet, path+"/embedding", nil, &e),
		s.call(ctx, http.MethodGet, path, nil, &detail),
		s.call(ctx, http.MethodGet, path+"/similar?k=4", nil, &near)); err != nil {
		return err
	}
	var square float64
	for _, v := range e.Vector {
		square += float64(v) * float64(v)
	}
	fmt.Printf("embedding   %d numbers, norm %.6f, first %.4f\n", len(e.Vector), math.Sqrt(square), e.Vector[:6])
	fmt.Printf("            encoder %s over %d tiles, aggregator %s\n", e.Encoder, detail.Bag.Tiles, e.Aggregator)
	fmt.Println("nearest     (cosine similarity)")
	for _, n := range near.Neighbours {
		fmt.Printf("            %.4f  %s\n", n.Similarity, n.Name)
	}
	fmt.Println("time        of the whole slide, by stage")
	for _, t := range detail.Bag.Timings {
		fmt.Printf("            %7.3f s  %s\n", t.Seconds, t.Stage)
	}
	fmt.Printf(`where next  bin/coverslip ingest YOUR-SLIDE.svs --wait     encode and embed your own slide
            bin/coverslip tiles YOUR-SLIDE.svs --overview tissue.png
            bin/coverslip up                               the API, on a folder that stays
            bin/coverslip --help, and README.md
`)
	return nil
}

// call makes one request and decodes the answer, or the problem that came instead.
func (s *server) call(ctx context.Context, method, path string, body io.Reader, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, data)
	}
	return json.Unmarshal(data, into)
}
