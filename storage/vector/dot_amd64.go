package vector

import "golang.org/x/sys/cpu"

// wide says that the processor multiplies eight values at once.
var wide = cpu.X86.HasAVX2 && cpu.X86.HasFMA

// dot4wide is dot4 by AVX2 and FMA; n is a positive multiple of step.
//
//go:noescape
func dot4wide(q, a, b, c, d *float32, n int) (sa, sb, sc, sd float32)

// codes4wide is codes4 by AVX2; n is a positive multiple of step.
//
//go:noescape
func codes4wide(q *int16, a, b, c, d *int8, n int) (sa, sb, sc, sd int32)
