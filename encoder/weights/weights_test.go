package weights

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

func TestFileHasItsPublishedHash(t *testing.T) {
	sum := sha256.Sum256(EfficientNetLite0ONNX())
	if got, want := hex.EncodeToString(sum[:]), EfficientNetLite0().SHA256; got != want {
		t.Errorf("efficientnet-lite0.onnx has SHA-256 %s, its .sha256 file says %s", got, want)
	}
}
