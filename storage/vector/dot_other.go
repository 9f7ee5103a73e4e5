//go:build !amd64

package vector

const wide = false

func dot4wide(_, _, _, _, _ *float32, _ int) (sa, sb, sc, sd float32) {
	panic("vector: this processor has no wide products")
}
