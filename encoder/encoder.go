// Package encoder turns tiles into features. It says what an encoder is and how one is specified,
// holds the specifications of the encoders people use and the one encoder that ships with the
// product, and runs one over the tiles of a slide with reading and encoding at once.
//
// It leaves the network itself to encoder/onnx, where pixels come from to its caller (tiler), and
// what becomes of the features to the sink it is given.
package encoder

import (
	"context"
	"fmt"

	"coverslip"
)

// Encoder is a frozen network that maps tile pixels to feature vectors.
//
// Encode reads pixels, [n, S, S, 3] RGB rows of uint8 with S = Model().TileSize, and writes dst,
// [n, D] with D = Model().Dim; both slices have exactly that length and are not kept. A row is the
// features of Model().Taps, one after the other. A tile's features do not depend on the tiles beside
// it. Concurrent calls are safe. A feature that is NaN or infinite is a *RowError, and dst is then
// not to be used. A cancelled context ends the call soon with an error of kind Canceled.
type Encoder interface {
	Model() coverslip.Model
	Encode(ctx context.Context, dst []float32, pixels []uint8, n int) error
}

// RowError says which tile of a batch an encoder could not encode.
type RowError struct {
	Row int // 0 for the first tile of the batch
	Err error
}

func (e *RowError) Error() string { return fmt.Sprintf("row %d: %v", e.Row, e.Err) }

// Unwrap gives errors.Is and errors.As the cause.
func (e *RowError) Unwrap() error { return e.Err }
