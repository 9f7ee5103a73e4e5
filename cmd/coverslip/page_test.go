package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"coverslip"
)

// The page at /, in a real browser: a file is chosen, goes up, is shown with its picture and its
// embedding, and finds the other slide.
func TestPageInABrowser(t *testing.T) {
	needsRuntime(t)
	found := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			found = path
			break
		}
	}
	if found == "" {
		if os.Getenv("COVERSLIP_FULL") == "1" {
			t.Fatal("there is no Chromium: apt-get install chromium")
		}
		t.Skip("needs Chromium: apt-get install chromium")
	}
	p := up(t, dataFolder(t))
	if code, _, stderr := coverslipRun(t, "upload", bundled, "--server", p.url); code != 0 {
		t.Fatal(stderr)
	}
	other := padded(t, 3, 10)
	browsers, stop := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(found), chromedp.NoSandbox, chromedp.Flag("disable-dev-shm-usage", true))...)
	defer stop()
	page, leave := chromedp.NewContext(browsers)
	defer leave()
	page, cancel := context.WithTimeout(page, 2*time.Minute)
	defer cancel()
	do(t, page, chromedp.Navigate("about:blank")) // starts it
	var mu sync.Mutex
	var complaints []string
	if err := chromedp.Listen(page, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			complaints = append(complaints, e.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			if e.Type.String() == "error" {
				complaints = append(complaints, string(e.Args[0].Value))
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	do(t, page, chromedp.Navigate(p.url))
	do(t, page, chromedp.WaitVisible(".slides img"))
	do(t, page, chromedp.SetUploadFiles(`input[type="file"]`, []string{other}))
	do(t, page, chromedp.WaitVisible(`#uploads li[data-state="done"] a`))
	link := do(t, page, chromedp.Evaluate[string](`document.querySelector('#uploads li[data-state="done"] a').getAttribute("href")`))
	id := coverslip.SlideID(filepath.Base(link))
	if _, err := p.embedding(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	do(t, page, chromedp.Navigate(p.url+link))
	do(t, page, chromedp.WaitVisible("#nearest img"))
	facts, near, title := do(t, page, chromedp.Text("#facts")), do(t, page, chromedp.Text("#nearest")), do(t, page, chromedp.Title())
	do(t, page, chromedp.Poll[bool](`document.querySelector(".overview").naturalWidth > 100`))
	if !strings.Contains(facts, "1280 numbers") || !strings.Contains(facts, string(id)) || !strings.Contains(near, "CMU-1-Small-Region.svs") || !strings.Contains(title, "padded.svs") {
		t.Errorf("%s\n%s\n%s", title, facts, near)
	}
	// What is no slide says so.
	readme, err := filepath.Abs("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	do(t, page, chromedp.Navigate(p.url))
	do(t, page, chromedp.SetUploadFiles(`input[type="file"]`, []string{readme}))
	do(t, page, chromedp.WaitVisible(`#uploads li[data-state="failed"]`))
	note := do(t, page, chromedp.Text(`#uploads li[data-state="failed"]`))
	if !strings.Contains(note, "it is no slide") {
		t.Errorf("it says %q", note)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(complaints) > 0 {
		t.Errorf("the browser complains: %q", complaints)
	}
}

// do makes the browser do one thing.
func do[T any](t *testing.T, page context.Context, a chromedp.Action[T]) T {
	t.Helper()
	out, err := chromedp.Run(page, a)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
