// Package nn trains small networks on the CPU. It is the one door to Gorgonia: the graph, the
// differentiation and the tape machine are Gorgonia's; the operations, the memory they work in and the
// optimisers are ours.
//
// Why ours: Gorgonia's operations compute gradients nobody asked for, keep every intermediate, and have
// no sparse convolution; its optimisers hide their state, so that a run could not be resumed to the same
// bits. Every value is a float32 matrix, row-major. Operations on float32 use the vector unit (kernels.c)
// and OpenBLAS; the same Go code runs in float64 without either, and is what tests hold them to.
//
// A Graph lives for one step: build it, Backward, step the optimiser, Close. Its Memory lives for the
// whole run, so that no step allocates what an earlier one already had. A light graph is for steps of a few
// rows: it runs the same operations without Gorgonia.
//
// Equal inputs give equal bits whatever the number of workers: work is cut by its shape alone.
//
// What it leaves to others: models (slidessl, mil), objectives (slidessl/objective), data.
package nn
