package main

import (
	"bytes"
	"fmt"
	"image/png"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
)

// browser runs a headless Chromium on a page, once everything there has happened, and returns what it
// printed and what the page had to say to developers. Without one, the test is skipped.
func browser(t *testing.T, args ...string) (stdout, console string) {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		cmd := exec.CommandContext(t.Context(), path, append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
			"--user-data-dir=" + t.TempDir(), "--window-size=1200,900", "--virtual-time-budget=20000", "--enable-logging=stderr"}, args...)...)
		var out, log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &log
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %s", err, log.Bytes())
		}
		for line := range strings.Lines(log.String()) {
			if strings.Contains(line, "CONSOLE") {
				console += line
			}
		}
		return out.String(), console
	}
	if os.Getenv("COVERSLIP_FULL") == "1" {
		t.Fatal("there is no Chromium: apt-get install chromium")
	}
	t.Skip("needs Chromium: apt-get install chromium")
	return "", ""
}

func TestViewerInABrowser(t *testing.T) {
	needsRuntime(t)
	p := up(t, dataFolder(t))
	whole, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	var slide coverslip.Slide
	if err := p.call(t.Context(), http.MethodPost, "/v1/slides?name=region.svs", bytes.NewReader(whole), &slide); err != nil {
		t.Fatal(err)
	}
	page := fmt.Sprintf("%s/slides/%s/view", p.url, slide.ID.Short())

	dom, console := browser(t, "--dump-dom", page)
	for _, want := range []string{`data-state="shown"`, `<h1 id="name">region.svs</h1>`, "2220 × 2967 pixels, 0.499 µm per pixel, 20×", `>200 µm</span>`, `<p id="problem" role="alert" hidden="">`} {
		if !strings.Contains(dom, want) {
			t.Errorf("the page has no %s:\n%s", want, dom)
		}
	}
	if console != "" {
		t.Errorf("the browser complains: %s", console)
	}

	shot := filepath.Join(t.TempDir(), "shot.png")
	browser(t, "--screenshot="+shot, page)
	if keep := os.Getenv("COVERSLIP_SCREENSHOT"); keep != "" {
		raw, err := os.ReadFile(shot)
		if err == nil {
			err = os.WriteFile(keep, raw, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if share := pink(t, shot); share < 0.1 {
		t.Errorf("%.1f %% of the page has the colours of tissue", 100*share)
	}

	dom, _ = browser(t, "--dump-dom", p.url+"/slides/ffffffffffff/view")
	if !strings.Contains(dom, `data-state="failed"`) || strings.Contains(dom, `role="alert" hidden`) || !strings.Contains(dom, "no slide has this id") {
		t.Errorf("a slide that is not there:\n%s", dom)
	}
}

// pink is the share of a picture that has more red and blue than green, as stained tissue does.
func pink(t *testing.T, path string) float64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	im, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	size, n := im.Bounds().Size(), 0
	for y := range size.Y {
		for x := range size.X {
			if r, g, b, _ := im.At(x, y).RGBA(); r > g+20<<8 && b > g+20<<8 {
				n++
			}
		}
	}
	return float64(n) / float64(size.X*size.Y)
}
