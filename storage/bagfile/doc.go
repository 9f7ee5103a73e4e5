// Package bagfile reads and writes bag files: the instances of one slide as a safetensors file
// (https://huggingface.co/docs/safetensors), which Python reads without Coverslip.
//
//	features  [N,D] float32  row i is the instance of tile i
//	coords    [N,2] int64    x, y of its top-left corner in level-0 pixels
//
// Rows follow plan order. What they were made from stands in the file's __metadata__ (see
// Metadata). Equal content gives equal bytes. An empty bag has N = 0.
//
// Where the bytes are kept and under which key is left to its callers; errors carry no path, and
// coverslip.At adds it.
package bagfile
