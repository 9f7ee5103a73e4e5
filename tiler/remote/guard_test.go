package remote

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coverslip"
)

func TestFault12WhatIsPublic(t *testing.T) {
	for address, want := range map[string]bool{
		"169.254.169.254": false, "127.0.0.1": false, "10.1.2.3": false, "172.16.0.1": false, "172.31.255.255": false, "192.168.1.1": false,
		"100.64.0.1": false, "100.127.255.254": false, "0.0.0.0": false, "0.1.2.3": false, "255.255.255.255": false, "224.0.0.1": false, "198.18.0.1": false, "192.0.0.8": false, "240.0.0.1": false,
		"::": false, "::1": false, "fe80::1": false, "fc00::1": false, "fd00:ec2::254": false, "fec0::1": false, "ff02::1": false,
		"::ffff:169.254.169.254": false, "::ffff:127.0.0.1": false, "::169.254.169.254": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b:1::a9fe:a9fe": false,
		"2002:a9fe:a9fe::1": false, "2001:0:53aa:64c::1": false, "2001:db8::1": false,
		"1.1.1.1": true, "52.218.0.1": true, "100.63.255.255": true, "100.128.0.1": true, "172.32.0.1": true, "::ffff:1.1.1.1": true, "2606:4700::1111": true, "2a05:d018::1": true,
	} {
		if got := isPublic(netip.AddrPortFrom(netip.MustParseAddr(address), 443)); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
}

func TestFault12AddressesOfOthersAreRefusedAtDial(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // must not be asked
	var requests atomic.Int64
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(content))
	}))
	t.Cleanup(inside.Close)
	_, port, _ := strings.Cut(strings.TrimPrefix(inside.URL, "http://"), ":")
	if _, err := Open(t.Context(), inside.URL); err != nil { // a user's own word is followed, and leaves a connection behind
		t.Fatal(err)
	}
	requests.Store(0)
	for _, address := range []string{
		inside.URL,
		"http://localhost:" + port + "/a.svs", // a name, looked up now
		"http://[::ffff:127.0.0.1]:" + port + "/a.svs",
		"http://2130706433:" + port + "/a.svs", // 127.0.0.1 as one number
		"http://169.254.169.254/latest/meta-data/",
		"http://100.64.0.1/a.svs",
		"http://[64:ff9b::a9fe:a9fe]/a.svs",
		"s3://bucket/key?endpoint=" + inside.URL,
	} {
		started := time.Now()
		_, err := Open(t.Context(), Public(address))
		switch kind := coverslip.KindOf(err); {
		case strings.Contains(address, "2130706433"): // Go takes it for a name that there is not
			if err == nil {
				t.Errorf("%s was opened", address)
			}
		case kind != coverslip.Invalid || !strings.Contains(err.Error(), "public Internet") || strings.Contains(err.Error(), publicMark):
			t.Errorf("%s: %v", address, err)
		case time.Since(started) > patience*4/5: // as long as an answer is waited for
			t.Errorf("%s: it was tried for %v", address, time.Since(started))
		}
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
	if got := Shown(Public("https://host/a.svs?signature=x")); got != "https://host/a.svs" {
		t.Errorf("shown as %s", got)
	}
}

// A redirect leads a guarded client no further than a direct address would.
func TestFault12RedirectIsRefusedAtDial(t *testing.T) {
	var requests atomic.Int64
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	t.Cleanup(inside.Close)
	outside := httptest.NewServer(http.RedirectHandler(inside.URL, http.StatusFound))
	t.Cleanup(outside.Close)
	allowed := netip.MustParseAddrPort(strings.TrimPrefix(outside.URL, "http://"))
	client := &http.Client{Transport: guarded(func(to netip.AddrPort) bool { return to == allowed })}
	resp, err := client.Get(outside.URL)
	if err == nil {
		_ = resp.Body.Close()
	}
	if coverslip.KindOf(err) != coverslip.Invalid || requests.Load() != 0 {
		t.Errorf("%v, %d requests arrived", err, requests.Load())
	}
}
