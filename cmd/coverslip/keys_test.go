package main

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"crypto"
	"crypto/sha256"
)

// provider is an OpenID Connect provider of one key.
type provider struct {
	url string
	key *rsa.PrivateKey
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{key: key}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answers := map[string]any{
			"/.well-known/openid-configuration": map[string]any{"issuer": p.url, "jwks_uri": p.url + "/keys", "authorization_endpoint": p.url, "token_endpoint": p.url,
				"id_token_signing_alg_values_supported": []string{"RS256"}},
			"/keys": map[string]any{"keys": []any{map[string]any{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1",
				"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()), "e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes())}}},
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answers[r.URL.Path])
	}))
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

func (p *provider) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	part := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	text := part(map[string]string{"alg": "RS256", "kid": "1"}) + "." + part(claims)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, p.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func TestKeysAndTokensOpenTheServer(t *testing.T) {
	needsRuntime(t)
	data, oidc := dataFolder(t), newProvider(t)
	p := listening(t, "up", "--json", "--addr", "127.0.0.1:0", "--data", data, "--require-key", "--oidc-issuer", oidc.url)
	status := func(method, credential string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, p.url+"/v1/slides?limit=1", nil)
		if method == http.MethodPost {
			req, err = http.NewRequestWithContext(t.Context(), method, p.url+"/v1/slides?name=x.svs", strings.NewReader("no slide"))
		}
		if err != nil {
			t.Fatal(err)
		}
		if credential != "" {
			req.Header.Set("Authorization", "Bearer "+credential)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	key := func(args ...string) (id, secret string) {
		t.Helper()
		code, out, stderr := coverslipRun(t, append([]string{"keys", "add", "--json", "--data", data}, args...)...)
		var k struct{ ID, Key string }
		if err := json.Unmarshal([]byte(out), &k); code != 0 || err != nil {
			t.Fatalf("exit %d, %v, %s", code, err, stderr)
		}
		return k.ID, k.Key
	}
	_, reader := key("reader")
	writerID, writer := key("scanner", "--scope", "write")
	_, expired := key("old", "--expires", "1ns")
	now := time.Now()
	token := func(more map[string]any) string {
		claims := map[string]any{"iss": oidc.url, "aud": "coverslip", "sub": "ada", "exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "scope": "openid coverslip:read"}
		for k, v := range more {
			claims[k] = v
		}
		return oidc.token(t, claims)
	}
	stranger := newProvider(t)
	stranger.url = oidc.url
	for name, c := range map[string]struct {
		credential  string
		read, write int
	}{
		"None": {"", 401, 401}, "Unknown": {"coverslip_x_y", 401, 401}, "Expired": {expired, 401, 401}, "Reader": {reader, 200, 403}, "Writer": {writer, 200, 415},
		"Token":         {token(nil), 200, 403},
		"WriterToken":   {token(map[string]any{"roles": []string{"coverslip:write"}}), 200, 415},
		"NoScope":       {token(map[string]any{"scope": "openid"}), 401, 401},
		"OtherAudience": {token(map[string]any{"aud": "mail"}), 401, 401},
		"OldToken":      {token(map[string]any{"exp": now.Add(-time.Hour).Unix()}), 401, 401},
		"OtherIssuer":   {token(map[string]any{"iss": "https://evil.example"}), 401, 401},
		"OtherKey":      {stranger.token(t, map[string]any{"iss": oidc.url, "aud": "coverslip", "sub": "eve", "exp": now.Add(time.Hour).Unix(), "scope": "coverslip:admin"}), 401, 401},
	} {
		if got := status(http.MethodGet, c.credential); got != c.read {
			t.Errorf("%s reads: %d, want %d", name, got, c.read)
		}
		if got := status(http.MethodPost, c.credential); got != c.write {
			t.Errorf("%s writes: %d, want %d", name, got, c.write)
		}
	}
	if code, out, _ := coverslipRun(t, "keys", "--data", data); code != 0 || !strings.Contains(out, "expired") || strings.Contains(out, writer) {
		t.Errorf("exit %d, %s", code, out)
	}
	if code, out, _ := coverslipRun(t, "keys", "log", "--data", data); code != 0 || !strings.Contains(out, "scanner") || !strings.Contains(out, "POST /v1/slides") || !strings.Contains(out, "415") {
		t.Errorf("exit %d, %s", code, out)
	}
	if code, _, stderr := coverslipRun(t, "keys", "revoke", writerID, "--data", data); code != 0 {
		t.Error(stderr)
	}
	if got := status(http.MethodGet, writer); got != 401 {
		t.Errorf("a revoked key: %d", got)
	}
	if code, _, stderr := coverslipRun(t, "keys", "revoke", writerID, "--data", data); code != 1 || !strings.Contains(stderr, "coverslip keys") {
		t.Errorf("revoked twice: exit %d, %s", code, stderr)
	}
	for _, secret := range []string{writer, reader} {
		if strings.Contains(p.log.String(), secret) {
			t.Error("the log holds a key")
		}
	}
	// The upload verb sends its key.
	_, again := key("again", "--scope", "write")
	t.Setenv("COVERSLIP_KEY", again)
	if code, _, stderr := coverslipRun(t, "upload", bundled, "--server", p.url); code != 0 {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

func TestLoopbackIsOnlyThisMachine(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1:8080": true, "127.9.9.9:1": true, "[::1]:80": true, "localhost:80": true, "0.0.0.0:8080": false, ":8080": false,
		"[::]:80": false, "10.0.0.1:80": false, "example.org:80": false, "localhost.example.org:80": false, "nonsense": false} {
		if got := loopback(addr); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}
