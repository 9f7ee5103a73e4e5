//go:build !amd64

package vector

const wide = false

func dot4wide(_, _, _, _, _ *float32, _ int) (sa, sb, sc, sd float32) {
	panic("vector: this processor has no wide products")
}

func codes4wide(_ *int16, _, _, _, _ *int8, _ int) (sa, sb, sc, sd int32) {
	panic("vector: this processor has no wide products")
}
