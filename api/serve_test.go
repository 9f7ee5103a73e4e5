package api_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"

	"coverslip"
	"coverslip/api"
)

func TestServeFinishesWhatIsUnderWay(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-leave
		_, _ = io.WriteString(w, "whole")
	})
	ctx, stop := context.WithCancel(t.Context())
	addr, served := make(chan net.Addr, 1), make(chan error, 1)
	go func() { served <- api.Serve(ctx, "127.0.0.1:0", h, func(a net.Addr) { addr <- a }) }()
	at := (<-addr).String()

	if err := api.Serve(ctx, at, h, func(net.Addr) {}); coverslip.KindOf(err) != coverslip.Conflict || coverslip.HintOf(err) == "" {
		t.Errorf("a taken port: %v", err)
	}

	answer := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + at)
		if err != nil {
			answer <- err.Error()
			return
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		answer <- string(body)
	}()
	<-entered
	stop()
	for { // until no new connection is taken
		conn, err := net.Dial("tcp", at)
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	close(leave)
	if got := <-answer; got != "whole" {
		t.Errorf("the request under way got %q", got)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestServeRefusesAnAddressThatIsNone(t *testing.T) {
	for _, addr := range []string{"nowhere", "127.0.0.1:99999", "203.0.113.1:0"} {
		err := api.Serve(t.Context(), addr, nil, func(net.Addr) { t.Error("bound") })
		if coverslip.KindOf(err) != coverslip.Environment || coverslip.HintOf(err) == "" {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
