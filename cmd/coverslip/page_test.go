package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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
	page := openBrowser(t)
	p := up(t, dataFolder(t))
	if code, _, stderr := coverslipRun(t, "upload", bundled, "--server", p.url); code != 0 {
		t.Fatal(stderr)
	}
	other := padded(t, 3, 10)
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

// A slide that is dropped on the page over a line that breaks goes on where it was, and so it does when the page is
// left in the middle, opened again, and the same file dropped.
func TestADroppedFileGoesOnInABrowser(t *testing.T) {
	needsRuntime(t)
	page, data := openBrowser(t), dataFolder(t)
	p, path := up(t, data), padded(t, 16, 15)
	var healed atomic.Bool
	line := newBadLine(t, p.url, func() int64 {
		if healed.Load() {
			return -1
		}
		return 5 << 20
	}, func(*badLine) {})
	// What is sent is written down; the file comes from an input of the test's own and is dropped from there.
	open := func() {
		t.Helper()
		do(t, page, chromedp.Navigate(line.url))
		do(t, page, chromedp.Evaluate[bool](`(() => {
			window.offsets = [];
			const set = XMLHttpRequest.prototype.setRequestHeader;
			XMLHttpRequest.prototype.setRequestHeader = function (name, value) {
				if (name === "Upload-Offset") offsets.push(Number(value));
				return set.call(this, name, value);
			};
			document.body.append(Object.assign(document.createElement("input"), { type: "file", id: "carrier" }));
			return true;
		})()`))
		do(t, page, chromedp.SetUploadFiles("#carrier", []string{path}))
		do(t, page, chromedp.Evaluate[bool](`(() => {
			const hand = new DataTransfer();
			hand.items.add(document.getElementById("carrier").files[0]);
			return document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: hand, bubbles: true, cancelable: true }));
		})()`))
	}
	open()
	do(t, page, chromedp.Poll[bool](`offsets.length > 1`))
	first := do(t, page, chromedp.Evaluate[[]int64](`offsets`))
	if first[0] != 0 || first[1] == 0 {
		t.Errorf("over a broken line: sent from %v on", first)
	}
	healed.Store(true)
	open()
	do(t, page, chromedp.WaitVisible(`#uploads li[data-state="done"] a`))
	again := do(t, page, chromedp.Evaluate[[]int64](`offsets`))
	if again[0] < first[1] {
		t.Errorf("after the page was opened again: sent from %v on, and %d was there", again, first[1])
	}
	id := filepath.Base(do(t, page, chromedp.Evaluate[string](`document.querySelector('#uploads li[data-state="done"] a').getAttribute("href")`)))
	sent, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(filepath.Join(data, "blobs", "slides", id)); err != nil || !bytes.Equal(kept, sent) {
		t.Errorf("%d bytes were kept of %d: %v", len(kept), len(sent), err)
	}
}

// openBrowser is a page of Chromium that is driven step by step.
func openBrowser(t *testing.T) context.Context {
	t.Helper()
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
	browsers, stop := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(found), chromedp.NoSandbox, chromedp.Flag("disable-dev-shm-usage", true))...)
	t.Cleanup(stop)
	page, leave := chromedp.NewContext(browsers)
	t.Cleanup(leave)
	page, cancel := context.WithTimeout(page, 2*time.Minute)
	t.Cleanup(cancel)
	do(t, page, chromedp.Navigate("about:blank")) // starts it
	return page
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
