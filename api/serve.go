package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"syscall"
	"time"

	"coverslip"
)

// DefaultAddr is loopback, where nobody is asked for a key.
const DefaultAddr = "127.0.0.1:8080"

// shutdownGrace is what requests under way get to finish in, within the ten seconds that
// container engines wait before they kill.
const shutdownGrace = 8 * time.Second

// Serve answers requests at addr ("host:port"; port 0 takes a free one) until ctx ends, then
// stops taking new ones, lets those under way finish for shutdownGrace, and cuts the rest. It
// calls bound with the address it got before it answers the first request, and returns nil after
// a stop that was asked for.
func Serve(ctx context.Context, addr string, h http.Handler, bound func(net.Addr)) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return &coverslip.Error{Kind: coverslip.Conflict, Op: "listen", Path: addr, Err: err, Hint: "another program has this port; stop it or choose another with --addr"}
		}
		return &coverslip.Error{Kind: coverslip.Environment, Op: "listen", Path: addr, Err: err, Hint: "give --addr as host:port of this machine"}
	}
	srv := &http.Server{
		Handler: h,
		// A slide takes as long as the line needs, so only what comes before and after a body has
		// a time limit.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
	bound(ln.Addr())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		return stopped(addr, err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		_ = srv.Close() // cuts what did not finish; an upload cut so leaves nothing
	}
	return stopped(addr, <-served)
}

// stopped is what Serve returns for what http.Server.Serve returned.
func stopped(addr string, err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return &coverslip.Error{Kind: coverslip.Environment, Op: "answer requests", Path: addr, Err: err, Hint: "see what the cause says of the network, and start the server again"}
}
