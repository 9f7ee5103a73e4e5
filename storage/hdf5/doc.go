// Package hdf5 reads and writes the small part of HDF5 that other tools keep bags in: datasets of
// numbers with one or two dimensions under the file's root, and attributes of one text or number.
//
// gonum.org/v1/hdf5 opens, creates and writes. It reads a dataset as the bytes lie in the file, so that
// float16 or big-endian numbers come out as others; reading, the checks before it, and attributes are
// calls of the C library of our own here, which convert.
//
// A file is looked at before it is read: links and data that lead to other files are refused, and what a
// dataset claims to hold is held against what the file has room for. The C library under it is not written
// for forged files (release 1.10.8 never returns from some forged texts): open only what the person at the
// keyboard names, never what a server was sent.
//
// The library is not made for threads: all of the package works one call at a time.
package hdf5
