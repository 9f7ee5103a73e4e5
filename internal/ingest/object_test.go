package ingest

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coverslip"
)

// A remote object is read in pieces that arrive in any order, and is what it is.
func TestObjectIsReadWhole(t *testing.T) {
	whole := make([]byte, 3*pieceSize+12345)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range whole {
		whole[i] = byte(rng.Uint32())
	}
	var broken atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() && !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, "slide.svs", time.Time{}, bytes.NewReader(whole))
	}))
	t.Cleanup(server.Close)
	is, err := identify(t.Context(), []string{server.URL + "/slide.svs"}, md5.New())
	sum := md5.Sum(whole)
	if err != nil || is.bytes != int64(len(whole)) || is.md5 != hex.EncodeToString(sum[:]) || is.version != versionMark+`"one"` {
		t.Errorf("%+v, %v", is, err)
	}
	broken.Store(true)
	if _, err := identify(t.Context(), []string{server.URL + "/slide.svs"}, nil); coverslip.KindOf(err) != coverslip.Environment {
		t.Error(err)
	}
	src, err := source(t.Context(), server.URL+"/slide.svs")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(src, make([]byte, 100)); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && coverslip.KindOf(err) != coverslip.Environment {
		t.Error(err)
	}
	if err := src.Close(); err != nil { // with pieces on their way
		t.Error(err)
	}
}
