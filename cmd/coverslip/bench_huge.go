package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"

	"coverslip/tiler/tiff"
)

// tiled writes a slide of edge × edge pixels with levels four times apart, whose tiles are those of the
// TIFF at src over and over: they are in the file once, and stand in its index many times.
func tiled(ctx context.Context, dst, src string, edge int) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	r := tiff.NewReaderAt(f, stat.Size())
	index, err := tiff.Read(ctx, r)
	if err != nil {
		return err
	}
	base := index.Levels[0].Dir
	if base.Compression != tiff.JPEG || base.TileWidth != base.TileHeight {
		return fmt.Errorf("%s has no square JPEG tiles", src)
	}
	var out bytes.Buffer
	out.Write([]byte{'I', 'I', 42, 0, 0, 0, 0, 0}) // the first directory's offset comes last
	put := func(p []byte) uint32 {
		if out.Len()%2 == 1 {
			out.WriteByte(0)
		}
		at := uint32(out.Len()) //nolint:gosec // some megabytes
		out.Write(p)
		return at
	}
	tables := put(base.JPEGTables)
	var offsets, counts []uint32
	columns, rows := base.TileCount()
	for i := range min(columns*rows, 400) {
		off, n := base.Tile(i%columns, i/columns)
		p := make([]byte, n)
		if err := r.ReadRange(ctx, p, off); err != nil {
			return err
		}
		offsets, counts = append(offsets, put(p)), append(counts, uint32(n)) //nolint:gosec // a tile
	}
	bits := put([]byte{8, 0, 8, 0, 8, 0})
	resolution := put(le(40_000, 1)) // 0.25 µm
	link := uint32(4)
	for size := edge; size > 500; size /= 4 {
		across := (size + base.TileWidth - 1) / base.TileWidth
		var o, n []uint32
		for i := range across * across {
			o, n = append(o, offsets[i%len(offsets)]), append(n, counts[i%len(counts)])
		}
		at, lengths := put(le(o...)), put(le(n...))
		tags := []struct{ tag, kind, count, value uint32 }{
			{256, 4, 1, uint32(size)}, {257, 4, 1, uint32(size)}, {258, 3, 3, bits}, {259, 3, 1, 7}, {262, 3, 1, uint32(base.Photometric)}, //nolint:gosec // small
			{277, 3, 1, 3}, {282, 5, 1, resolution}, {283, 5, 1, resolution}, {284, 3, 1, 1}, {296, 3, 1, 3},
			{322, 3, 1, uint32(base.TileWidth)}, {323, 3, 1, uint32(base.TileHeight)}, {324, 4, uint32(len(o)), at}, {325, 4, uint32(len(n)), lengths}, //nolint:gosec // small
			{347, 7, uint32(len(base.JPEGTables)), tables}, {530, 3, 2, 2 | 2<<16}, //nolint:gosec // small
		}
		var dir bytes.Buffer
		_ = binary.Write(&dir, binary.LittleEndian, uint16(len(tags))) //nolint:gosec // sixteen
		for _, t := range tags {
			dir.Write(binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, uint16(t.tag)), uint16(t.kind))) //nolint:gosec // small
			dir.Write(le(t.count, t.value))
		}
		dir.Write(le(0))
		here := put(dir.Bytes())
		binary.LittleEndian.PutUint32(out.Bytes()[link:], here)
		link = here + 2 + 12*uint32(len(tags)) //nolint:gosec // sixteen
	}
	return os.WriteFile(dst, out.Bytes(), 0o600)
}

func le(v ...uint32) (out []byte) {
	for _, x := range v {
		out = binary.LittleEndian.AppendUint32(out, x)
	}
	return out
}
