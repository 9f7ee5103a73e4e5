// Package s3test gives a test an S3 server of its own: versitygw over a temporary folder.
package s3test

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"coverslip/internal/versitygw"
)

// Bucket is the bucket that the server has.
const Bucket = "coverslip"

// Start starts a server with an empty bucket, sets the AWS_ variables to its credentials, and
// returns the bucket's address as blob.Open takes it. The server stops when the test ends. Without
// the server's binary, or on a file system without extended attributes, the test is skipped.
func Start(t *testing.T) (address string) {
	t.Helper()
	binary, err := versitygw.Find()
	if err != nil {
		t.Skip("no S3 server at .tools/versitygw: `make test-full` builds it and runs this test")
	}
	dir := t.TempDir()
	if err := versitygw.Serves(dir); err != nil {
		t.Skipf("versitygw needs extended attributes, which %s lacks: %v", dir, err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", versitygw.Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", versitygw.Secret)
	host, stop, err := versitygw.Start(t.Context(), binary, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	client, err := minio.New(host, &minio.Options{Creds: credentials.NewStaticV4(versitygw.Access, versitygw.Secret, ""), Region: "us-east-1"})
	if err == nil {
		err = client.MakeBucket(t.Context(), Bucket, minio.MakeBucketOptions{})
	}
	if err != nil {
		t.Fatalf("make bucket: %v", err)
	}
	return fmt.Sprintf("s3://%s?endpoint=%s", Bucket, url.QueryEscape("http://"+host))
}
