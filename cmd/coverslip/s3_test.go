package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"coverslip"
	"coverslip/storage/blob"
	"coverslip/storage/blob/s3test"
	"coverslip/tiler"
)

// bucket starts an S3 server behind a proxy that counts requests, and returns the store and its
// address through the proxy, to which a key is to be added.
func bucket(t *testing.T) (store blob.Store, address func(key string) string, requests *atomic.Int64) {
	t.Helper()
	direct := s3test.Start(t)
	store, err := blob.Open(t.Context(), direct)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := url.Parse(u.Query().Get("endpoint"))
	if err != nil {
		t.Fatal(err)
	}
	requests = new(atomic.Int64)
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(endpoint)
		r.Out.Host = r.In.Host // it is signed
	}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return store, func(key string) string {
		return "s3://" + u.Host + "/" + key + "?endpoint=" + url.QueryEscape(server.URL)
	}, requests
}

func put(t *testing.T, store blob.Store, key, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), key, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
}

func TestTilesOfASlideInABucket(t *testing.T) {
	store, address, requests := bucket(t)
	put(t, store, "a folder/cmu.svs", bundled)
	far := address("a%20folder/cmu.svs")
	code, want, stderr := coverslipRun(t, "tiles", bundled, "--plan")
	if code != 0 {
		t.Fatal(stderr)
	}
	code, got, stderr := coverslipRun(t, "tiles", far, "--plan")
	if code != 0 || got != want || !strings.Contains(stderr, "cmu.svs: aperio,") {
		t.Fatalf("exit %d, stderr %s, the same plan: %v", code, stderr, got == want)
	}
	if n := requests.Load(); n > 10 {
		t.Errorf("%d requests for a plan", n)
	}
	dirs := [2]string{filepath.Join(t.TempDir(), "near"), filepath.Join(t.TempDir(), "far")}
	for i, slide := range []string{bundled, far} {
		if code, _, stderr := coverslipRun(t, "tiles", slide, "--mpp", "0.9", "--out", dirs[i]); code != 0 {
			t.Fatal(stderr)
		}
	}
	tiles, err := filepath.Glob(filepath.Join(dirs[0], "*.png"))
	if err != nil || len(tiles) == 0 {
		t.Fatalf("%d tiles, %v", len(tiles), err)
	}
	for _, tile := range tiles {
		near, _ := os.ReadFile(tile)
		far, err := os.ReadFile(filepath.Join(dirs[1], filepath.Base(tile)))
		if err != nil || !bytes.Equal(near, far) {
			t.Errorf("%s differs: %v", filepath.Base(tile), err)
		}
	}
	for key, says := range map[string]string{"absent.svs": "check the address", "": "nothing in it"} {
		if code, _, stderr := coverslipRun(t, "tiles", address(key), "--plan"); code == 0 || !strings.Contains(stderr, says) {
			t.Errorf("%q: exit %d, %s", key, code, stderr)
		}
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if code, _, stderr := coverslipRun(t, "tiles", far, "--plan"); code != 3 || !strings.Contains(stderr, "AWS_SECRET_ACCESS_KEY") {
		t.Errorf("a wrong key: exit %d, %s", code, stderr)
	}
}

func TestSlideReplacedInItsBucketWhileReadIsAConflict(t *testing.T) {
	store, address, _ := bucket(t)
	put(t, store, "slide.svs", bundled)
	slide, err := tiler.Open(t.Context(), address("slide.svs"))
	if err != nil {
		t.Fatal(err)
	}
	defer slide.Close()
	data, err := os.ReadFile(bundled)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := store.Put(t.Context(), "slide.svs", bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
	err = slide.Region(t.Context(), make([]byte, 512*512*3), 0, 512, 512, 512, 512)
	if coverslip.KindOf(err) != coverslip.Conflict || !strings.Contains(err.Error(), "changed while it was read") {
		t.Errorf("got %v", err)
	}
}

func TestDICOMSlideInAFolderOfABucket(t *testing.T) {
	folder := shared(t, "wsi", "dicom", "cmu-1-small-region")
	store, address, _ := bucket(t)
	files, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		put(t, store, "slides/cmu/"+filepath.Base(f), f)
	}
	put(t, store, "slides/cmu/notes.txt", "s3_test.go")
	put(t, store, "slides/other.svs", bundled)
	_, want, stderr := coverslipRun(t, "tiles", folder, "--plan", "--quality")
	code, got, far := coverslipRun(t, "tiles", address("slides/cmu/"), "--plan", "--quality")
	if code != 0 || got != want || !strings.Contains(far, "cmu: dicom,") {
		t.Fatalf("exit %d, %s%s, the same: %v", code, far, stderr, got == want)
	}
	if code, _, stderr := coverslipRun(t, "tiles", address("slides/"), "--plan"); code == 0 || !strings.Contains(stderr, "DICOM") {
		t.Errorf("a folder without one: exit %d, %s", code, stderr)
	}

	needsRuntime(t)
	data := dataFolder(t)
	code, out, stderr := coverslipRun(t, "ingest", address("slides/cmu/"), "--mpp-of-slide", "1", "--wait", "--json", "--data", data)
	if r := results(t, out); code != 0 || len(r) != 1 || r[0].State != coverslip.Embedded || r[0].Name != "cmu" {
		t.Errorf("exit %d, %s%s", code, out, stderr)
	}
}
