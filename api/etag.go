package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// conditional gives what is read as JSON an ETag, a hash of its bytes, and spares the client those it has.
// Files make tags of their own, without being made first.
func conditional(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead || !strings.HasPrefix(r.URL.Path, "/v1/") {
			next.ServeHTTP(w, r)
			return
		}
		held := &heldAnswer{ResponseWriter: w}
		next.ServeHTTP(held, r)
		if !held.holds {
			return
		}
		sum := sha256.Sum256(held.body.Bytes())
		tag := `"` + hex.EncodeToString(sum[:16]) + `"`
		w.Header().Set("ETag", tag)
		w.Header().Set("Cache-Control", "private, no-cache") // kept, and asked about each time
		if matches(r.Header.Get("If-None-Match"), tag) {
			w.Header().Del("Content-Type")
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(held.body.Bytes()) // a client that has gone needs none
	})
}

// heldAnswer keeps back JSON that goes well, and lets everything else pass.
type heldAnswer struct {
	http.ResponseWriter
	began, holds bool
	body         bytes.Buffer
}

func (h *heldAnswer) WriteHeader(status int) {
	if h.began {
		return
	}
	h.began, h.holds = true, status == http.StatusOK && h.Header().Get("Content-Type") == "application/json"
	if !h.holds {
		h.ResponseWriter.WriteHeader(status)
	}
}

func (h *heldAnswer) Write(p []byte) (int, error) {
	h.WriteHeader(http.StatusOK)
	if h.holds {
		return h.body.Write(p)
	}
	return h.ResponseWriter.Write(p)
}

// Flush is for streams of events.
func (h *heldAnswer) Flush() {
	if f, ok := h.ResponseWriter.(http.Flusher); ok && !h.holds {
		f.Flush()
	}
}

// Unwrap lets http.ResponseController find what lies below.
func (h *heldAnswer) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// documentTag adds to the contract what conditional does; op is nil where a path has no GET.
func documentTag(op *huma.Operation) {
	if op == nil || !strings.HasPrefix(op.Path, "/v1/") {
		return
	}
	ok := op.Responses["200"]
	if ok == nil || ok.Content["application/json"] == nil || op.Responses["304"] != nil {
		return
	}
	text := &huma.Schema{Type: "string"}
	tag := &huma.Header{Description: "Names the answer's bytes", Schema: text}
	if ok.Headers == nil {
		ok.Headers = map[string]*huma.Param{}
	}
	ok.Headers["ETag"] = tag
	op.Responses["304"] = &huma.Response{Description: "The client has it.", Headers: map[string]*huma.Param{"ETag": tag}}
	op.Parameters = append(op.Parameters, &huma.Param{Name: "If-None-Match", In: "header", Description: "ETag of the answer the client has", Schema: text})
}
