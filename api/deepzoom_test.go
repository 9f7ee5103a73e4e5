package api_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"testing"

	"coverslip"

	"github.com/getkin/kin-openapi/openapi3filter"
)

func init() { openapi3filter.RegisterBodyDecoder("application/xml", openapi3filter.PlainBodyDecoder) }

// Viewers find tiles by adding _files to the address of the descriptor.
func TestDeepZoomTilesLieBesideTheirDescriptor(t *testing.T) {
	s := newSite(t)
	s.add(idA, coverslip.Queued)
	dzi := "/v1/slides/" + idA[:8] + "/dzi"
	a := s.want(200, "GET", dzi, nil)
	if a.Header.Get("Content-Type") != "application/xml" || string(a.body) != `<Image Width="640"/>` {
		t.Errorf("%s: %s", a.Header.Get("Content-Type"), a.body)
	}
	tile := s.want(200, "GET", dzi+"_files/9/0_0.jpeg", nil)
	if tile.Header.Get("Content-Type") != "image/jpeg" || !bytes.HasPrefix(tile.body, []byte("\xff\xd8")) {
		t.Errorf("%s: %.20q", tile.Header.Get("Content-Type"), tile.body)
	}
	for name, a := range map[string]answer{"descriptor": a, "tile": tile} {
		if !strings.Contains(a.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: Cache-Control %q", name, a.Header.Get("Cache-Control"))
		}
	}
	tags := []string{a.Header.Get("ETag"), tile.Header.Get("ETag")}
	for _, other := range []string{"_files/8/0_0.jpeg", "_files/10/0_0.jpeg"} {
		tags = append(tags, s.want(200, "GET", dzi+other, nil).Header.Get("ETag"))
	}
	slices.Sort(tags)
	if len(slices.Compact(tags)) != 4 || tags[0] == "" {
		t.Errorf("tags %v", tags)
	}
	drawn := s.drawn
	if s.want(304, "GET", dzi+"_files/9/0_0.jpeg", nil, "If-None-Match", tile.Header.Get("ETag")); s.drawn != drawn {
		t.Error("a tile was drawn for who has it")
	}
	s.wantKind(coverslip.NotFound, 404, "GET", dzi+"_files/9/1_0.jpeg", nil)
	for _, bad := range []string{"9/0_0.png", "9/0-0.jpeg", "9/-1_0.jpeg", "9/0_0.jpegx", "x/0_0.jpeg", "-1/0_0.jpeg", "9/9999999999_0.jpeg", "9/1_0_0.jpeg"} {
		s.wantKind(coverslip.Invalid, 422, "GET", dzi+"_files/"+bad, nil)
	}
	s.fail = &coverslip.Error{Kind: coverslip.Unavailable, Op: "read", Hint: "wait"}
	if a := s.want(503, "GET", dzi+"_files/9/0_0.jpeg", nil); a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

// The viewer's page and what it loads come from the server itself, and a browser is told to keep it so.
func TestViewerIsSelfContained(t *testing.T) {
	s := newSite(t)
	view := s.raw("GET", "/slides/"+idA+"/view", nil)
	if view.StatusCode != 200 || !strings.HasPrefix(view.Header.Get("Content-Type"), "text/html") {
		t.Fatalf("%d %s", view.StatusCode, view.Header)
	}
	if policy := view.Header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'; script-src 'self';") {
		t.Errorf("policy %q", policy)
	}
	for file, kind := range map[string]string{"viewer.js": "text/javascript", "openseadragon.min.js": "text/javascript", "viewer.css": "text/css", "openseadragon-license.txt": "text/plain"} {
		a := s.raw("GET", "/web/"+file, nil)
		if a.StatusCode != 200 || !strings.HasPrefix(a.Header.Get("Content-Type"), kind) || !bytes.Contains(view.body, []byte("../../web/"+file)) {
			t.Errorf("%s: %d %s", file, a.StatusCode, a.Header.Get("Content-Type"))
		}
		if again := s.raw("GET", "/web/"+file, nil, "If-None-Match", a.Header.Get("ETag")); again.StatusCode != 304 {
			t.Errorf("%s again: %d", file, again.StatusCode)
		}
	}
	if a := s.raw("GET", "/web/other.js", nil); a.StatusCode != 404 || a.problem.Kind != coverslip.NotFound {
		t.Errorf("a file that is not there: %d", a.StatusCode)
	}
	if bytes.Contains(view.body, []byte("//")) && bytes.Contains(view.body, []byte("http")) {
		t.Errorf("the page names other places: %s", view.body)
	}
}

// OpenSeadragon is the file of that name in its npm package, version 6.1.1, whose integrity is
// sha512-g4iKe2q8B642SaBT3+x4ZF3/8b1TxPPydyjmtrOLgDrlYWMKd9ZXM+1Cb/xa9DVySkvs/7l6HR1nHKfD5F3Tsw==.
func TestOpenSeadragonIsAsPublished(t *testing.T) {
	raw, err := os.ReadFile("web/openseadragon.min.js")
	if err != nil {
		t.Fatal(err)
	}
	const published = "14d587cd3ee7c4861f1a41077ce642029364a21029956ba635bd8fb1202cf9ad"
	if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != published {
		t.Errorf("SHA-256 %x", sum)
	}
}
