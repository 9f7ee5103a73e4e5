// Package s3test gives a test an S3 server of its own: versitygw over a temporary folder.
package s3test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"
)

// Bucket is the bucket that the server has.
const Bucket = "coverslip"

const access, secret = "test-access", "test-secret"

// Start starts a server with an empty bucket, sets the AWS_ variables to its credentials, and
// returns the bucket's address as blob.Open takes it. The server stops when the test ends. Without
// the server's binary, or on a file system without extended attributes, the test is skipped.
func Start(t *testing.T) (address string) {
	t.Helper()
	binary := find(t)
	dir := t.TempDir()
	if err := unix.Setxattr(dir, "user.coverslip", []byte("x"), 0); err != nil {
		t.Skipf("versitygw needs extended attributes, which %s lacks: %v", dir, err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	var host string
	for attempt := 1; ; attempt++ { // somebody may take the port between our look and its use
		var err error
		if host, err = start(t, binary, dir); err == nil {
			break
		}
		if attempt == 3 {
			t.Fatal(err)
		}
	}
	client, err := minio.New(host, &minio.Options{Creds: credentials.NewStaticV4(access, secret, ""), Region: "us-east-1"})
	if err == nil {
		err = client.MakeBucket(t.Context(), Bucket, minio.MakeBucketOptions{})
	}
	if err != nil {
		t.Fatalf("make bucket: %v", err)
	}
	return fmt.Sprintf("s3://%s?endpoint=%s", Bucket, url.QueryEscape("http://"+host))
}

// find looks for the binary in .tools beside the nearest go.mod above.
func find(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	binary := filepath.Join(dir, ".tools", "versitygw")
	if _, err := os.Stat(binary); err != nil {
		t.Skip("no S3 server at .tools/versitygw: `make test-full` builds it and runs this test")
	}
	return binary
}

// start returns the host and port of a server once it answers.
func start(t *testing.T, binary, dir string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	host := l.Addr().String()
	if err := l.Close(); err != nil {
		return "", err
	}
	var output bytes.Buffer                                                                     // read once the process has ended
	cmd := exec.Command(binary, "--port", host, "--health", "/health", "--quiet", "posix", dir) //nolint:gosec // the tool this repository builds
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+access, "ROOT_SECRET_KEY="+secret)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that crashes leaves no server
	if err := cmd.Start(); err != nil {
		return "", err
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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !healthy(ctx, "http://"+host+"/health") {
		select {
		case <-ended:
			return "", fmt.Errorf("versitygw ended: %s", output.Bytes())
		case <-ctx.Done():
			stop()
			return "", errors.Join(fmt.Errorf("versitygw does not answer at %s: %s", host, output.Bytes()), ctx.Err())
		case <-time.After(20 * time.Millisecond): // it says nothing when it is ready
		}
	}
	t.Cleanup(stop)
	return host, nil
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
