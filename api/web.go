package api

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"fmt"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
)

// pages are what a browser is given: the viewer, and OpenSeadragon 6.1.1 as it is in the npm package of
// that name, so that it also works where there is no internet. Its licence asks to be passed on with it.
//
//go:embed web
var pages embed.FS

// viewerPolicy lets the viewer's page load nothing from elsewhere. OpenSeadragon sets styles of its own.
const viewerPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"

// pagePolicy lets a page load nothing from elsewhere, and send forms nowhere else.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// pageRoutes are the viewer of a slide and the files it consists of.
func pageRoutes(router chi.Router) error {
	entries, err := pages.ReadDir("web")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "index.html" || e.Name() == "slide.html" { // see homeRoutes
			continue
		}
		content, err := pages.ReadFile("web/" + e.Name())
		if err != nil {
			return err
		}
		path := "/web/" + e.Name()
		if e.Name() == "viewer.html" {
			path = "/slides/{id}/view"
		}
		router.Get(path, page(e.Name(), content))
	}
	return nil
}

// page serves a file that changes only with the program.
func page(name string, content []byte) http.HandlerFunc {
	etag := fmt.Sprintf(`"%x"`, sha256.Sum256(content))
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag)
		w.Header().Set("Cache-Control", "no-cache") // asked for again each time, sent only after a change
		w.Header().Set("Content-Security-Policy", viewerPolicy)
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
	}
}
