// Package coverslip holds the words the whole product is written in: slide, level, tile, plan,
// bag, embedding, model, and the one error type. It stands on the standard library alone, and
// every other package stands on it.
//
// Rooms below it: tiler turns a slide into tiles, encoder turns tiles into features, slidessl
// turns a bag of features into a slide embedding, storage keeps all of them, api and
// cmd/coverslip offer them to people. docs/ARCHITECTURE.md draws the house.
package coverslip

// Version is the product's version. It is written into every bag; it is not part of a bag's key,
// because what changes a result has a version of its own (reader, mask, encoder).
const Version = "0.1.0"
