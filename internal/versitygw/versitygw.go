// Package versitygw runs versitygw, an S3 server over a folder, for tests and benchmarks. It is built
// into .tools by `make .tools/versitygw` and is no part of the product.
package versitygw

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The credentials of every server started here.
const (
	Access = "test-access"
	Secret = "test-secret"
)

// Find looks for the server's binary in .tools beside the nearest go.mod above the working folder.
func Find() (binary string, err error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	binary = filepath.Join(dir, ".tools", "versitygw")
	_, err = os.Stat(binary)
	return binary, err
}

// Serves reports whether a server can keep a bucket in dir: it needs extended attributes there.
func Serves(dir string) error {
	return unix.Setxattr(dir, "user.coverslip", []byte("x"), 0)
}

// Start serves the folders in dir as buckets on a port of this machine's loopback, and returns its host
// and port once it answers. Call stop when it is wanted no more; it ends with this process, too.
func Start(ctx context.Context, binary, dir string) (host string, stop func(), err error) {
	for attempt := 1; ; attempt++ { // somebody may take the port between our look and its use
		if host, stop, err = start(ctx, binary, dir); err == nil || attempt == 3 || ctx.Err() != nil {
			return host, stop, err
		}
	}
}

func start(ctx context.Context, binary, dir string) (string, func(), error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	host := l.Addr().String()
	if err := l.Close(); err != nil {
		return "", nil, err
	}
	var output bytes.Buffer                                                                     // read once the process has ended
	cmd := exec.Command(binary, "--port", host, "--health", "/health", "--quiet", "posix", dir) //nolint:gosec // the tool this repository builds
	// Its heap is small and its garbage large: without GOGC it collects most of the time.
	cmd.Env = append(os.Environ(), "GOGC=800", "ROOT_ACCESS_KEY="+Access, "ROOT_SECRET_KEY="+Secret)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a process that crashes leaves no server
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the reason is in output
		close(ended)
	}()
	stop := func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		<-ended
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for !healthy(ctx, "http://"+host+"/health") {
		select {
		case <-ended:
			return "", nil, fmt.Errorf("versitygw ended: %s", output.Bytes())
		case <-ctx.Done():
			stop()
			return "", nil, errors.Join(fmt.Errorf("versitygw does not answer at %s: %s", host, output.Bytes()), ctx.Err())
		case <-time.After(20 * time.Millisecond): // it says nothing when it is ready
		}
	}
	return host, stop, nil
}

func healthy(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}
