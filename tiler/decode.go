package tiler

import (
	"container/list"
	"context"
	"fmt"
	"image"
	"iter"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"coverslip"
	"coverslip/tiler/jpeg"
	"coverslip/tiler/remote"
	"coverslip/tiler/tiff"
	"coverslip/tiler/vips"
)

// decoder chooses what decodes the pixels of a TIFF: tiles of JPEG, and of RGB in JPEG 2000 and deflate,
// are decoded one by one and laid together here, everything else is libvips'.
func decoder(path string, r tiff.RangeReader, index *tiff.File, levels []coverslip.Level) (Pixels, error) {
	out := &mixedPixels{ahead: asAhead(r)}
	cache := newTileCache(cacheBytes)
	for i, l := range index.Levels {
		p, err := levelDecoder(path, r, l.Dir, levels[i], cache, index.Format == tiff.FormatPhilips)
		if err != nil {
			_ = out.Close()
			return nil, inLevel(i, err)
		}
		out.levels = append(out.levels, p)
	}
	return out, nil
}

// levelDecoder chooses for one level. Only in a sparse file may tiles have no bytes: Philips leaves out
// empty glass, others lose tiles.
func levelDecoder(path string, r tiff.RangeReader, d *tiff.Dir, level coverslip.Level, cache *tileCache, sparse bool) (levelPixels, error) {
	if d.Orientation == 1 && !d.Planar && d.BitsPerSample == 8 && d.TileWidth*d.TileHeight*3 <= cacheBytes {
		if c, ok := jpegColor(d); ok {
			codec, err := newJPEGTiles(jpeg.Stream{Tables: d.JPEGTables, Color: c, Width: d.TileWidth, Height: d.TileHeight})
			if err != nil {
				return nil, err
			}
			return newTiledPixels(r, d, codec, cache, sparse), nil
		}
		// libvips 8.14 takes every JPEG 2000 tile of a TIFF for YCbCr.
		if (d.Compression == tiff.JPEG2000RGB || d.Compression == tiff.JPEG2000 && d.Photometric == tiff.RGB) && d.SamplesPerPixel == 3 {
			return newTiledPixels(r, d, jpeg2000Tiles{d.TileWidth, d.TileHeight}, cache, sparse), nil
		}
		if codec, ok := deflated(d); ok {
			return newTiledPixels(r, d, codec, cache, sparse), nil
		}
	}
	if d.Planar && d.Tiled {
		p, err := planar(path, r, d, cache, sparse)
		if err != nil {
			return nil, err
		}
		return p, nil
	}
	var im *vips.Image
	var err error
	if ahead := asAhead(r); ahead != nil {
		im, err = vips.OpenTIFFAt(ahead, ahead.Size(), remote.Shown(path), d.Page, d.SubIFD)
	} else {
		im, err = vips.OpenTIFF(path, d.Page, d.SubIFD)
	}
	if err != nil {
		return nil, err
	}
	if im.Width < level.Width || im.Height < level.Height {
		defer im.Close()
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "open slide", Err: fmt.Errorf("the index says %d × %d pixels, the decoder %d × %d", level.Width, level.Height, im.Width, im.Height), Hint: "export the slide again"}
	}
	return vipsPixels{im: im, tiles: true}, nil
}

// jpegColor says what the components of a directory's JPEG tiles are, if they are for tiler/jpeg. The
// directory's word counts: the streams' own is missing or wrong in too many slides.
func jpegColor(d *tiff.Dir) (c jpeg.Color, ok bool) {
	switch {
	case d.Compression != tiff.JPEG:
		return 0, false
	case d.SamplesPerPixel == 1 && d.Photometric == tiff.BlackIsZero:
		return jpeg.Grey, true
	case d.SamplesPerPixel == 3 && d.Photometric == tiff.RGB:
		return jpeg.RGB, true
	case d.SamplesPerPixel == 3 && d.Photometric == tiff.YCbCr:
		return jpeg.YCbCr, true
	}
	return 0, false
}

// levelPixels decodes one level; see Pixels.
type levelPixels interface {
	readRegion(ctx context.Context, dst []byte, shrink, x, y, w, h int) error
	shrinks() int
	grain() (w, h int)
	close()
}

// mixedPixels lets each level have a decoder of its own.
type mixedPixels struct {
	levels []levelPixels
	ahead  *remote.Ahead // where a slide that is not on this machine is read; nil for one that is
}

// asAhead returns the reader of a slide that is not on this machine, or nil.
func asAhead(r tiff.RangeReader) *remote.Ahead {
	ahead, _ := r.(*remote.Ahead)
	return ahead
}

// announce says which regions of a level will be read, in what order; see announcer.
func (p *mixedPixels) announce(level, shrink int, regions iter.Seq2[int, image.Rectangle]) {
	if tiled, ok := p.levels[level].(*tiledPixels); ok && p.ahead != nil {
		p.ahead.Announce(tiled.grid.ranges(shrink, regions))
	}
}

func (p *mixedPixels) ReadRegion(ctx context.Context, dst []byte, level, shrink, x, y, w, h int) error {
	return inLevel(level, p.levels[level].readRegion(ctx, dst, shrink, x, y, w, h))
}

func (p *mixedPixels) Shrinks(level int) int { return p.levels[level].shrinks() }

func (p *mixedPixels) Grain(level int) (w, h int) { return p.levels[level].grain() }

func (p *mixedPixels) Close() error {
	for _, l := range p.levels {
		l.close()
	}
	p.levels = nil
	return nil
}

// vipsPixels decodes through libvips.
type vipsPixels struct {
	im    *vips.Image
	tiles bool // what fails leaves the rest readable
}

func (p vipsPixels) readRegion(_ context.Context, dst []byte, _, x, y, w, h int) error {
	err := p.im.ReadRegion(dst, x, y, w, h)
	if p.tiles {
		err = damaged(err)
	}
	return err
}

func (p vipsPixels) shrinks() int { return 1 }

func (p vipsPixels) grain() (w, h int) { return 1, 1 } // libvips keeps tiles itself

func (p vipsPixels) close() { p.im.Close() }

// tiledPixels reads the compressed tiles of a level by their place in the file, decodes each by itself,
// and lays them together.
type tiledPixels struct {
	grid  *tileGrid
	codec tileCodec
	cache *tileCache // of all levels of the slide
	files sync.Pool  // *[]byte, for the bytes of a tile as they are in the file
}

// tileGrid says how a level is cut into tiles and where their bytes are.
type tileGrid struct {
	width, height         int // pixels
	tileWidth, tileHeight int // pixels; those at the right and lower edge may reach beyond the level
	// tile says where a tile's bytes lie; n is 0 for one that was not written.
	tile func(column, row int) (r tiff.RangeReader, off, n int64)
	// payload returns what of these bytes, which it may change, is for the codec; nil for all.
	payload func(data []byte) ([]byte, error)
	sparse  bool // tiles without bytes are empty glass; elsewhere they are damage
}

// ranges lists where the tiles of regions lie in the file, each once, by the group it is wanted in
// first. A region belongs to the group that its number names, from 0 on.
func (g *tileGrid) ranges(shrink int, regions iter.Seq2[int, image.Rectangle]) [][]remote.Range {
	tw, th := g.tileWidth/shrink, g.tileHeight/shrink
	columns, rows := ceilDiv(g.width, g.tileWidth), ceilDiv(g.height, g.tileHeight)
	level := image.Rect(0, 0, ceilDiv(g.width, shrink), ceilDiv(g.height, shrink))
	seen := make([]bool, columns*rows)
	var out [][]remote.Range
	for group, region := range regions {
		for len(out) <= group {
			out = append(out, nil)
		}
		r := region.Intersect(level)
		for row := r.Min.Y / th; row*th < r.Max.Y; row++ {
			for column := r.Min.X / tw; column*tw < r.Max.X; column++ {
				if seen[row*columns+column] {
					continue
				}
				seen[row*columns+column] = true
				if _, off, n := g.tile(column, row); n > 0 {
					out[group] = append(out[group], remote.Range{Off: off, N: n})
				}
			}
		}
	}
	return out
}

// tileCodec decodes the tiles of one level. It is safe for concurrent use.
type tileCodec interface {
	// decode decodes the upper rows of a tile, as wide as the level's, into dst: RGB, a row every
	// stride bytes; ⌈rows/shrink⌉ rows of its width/shrink pixels.
	decode(dst []byte, stride, rows, shrink int, data []byte) error
	shrinks() int // the most it decodes smaller by
	close()
}

func newTiledPixels(r tiff.RangeReader, d *tiff.Dir, codec tileCodec, cache *tileCache, sparse bool) *tiledPixels {
	return tiled(&tileGrid{d.Width, d.Height, d.TileWidth, d.TileHeight, func(column, row int) (tiff.RangeReader, int64, int64) {
		off, n := d.Tile(column, row)
		return r, off, n
	}, nil, sparse}, codec, cache)
}

func tiled(g *tileGrid, codec tileCodec, cache *tileCache) *tiledPixels {
	return &tiledPixels{grid: g, codec: codec, cache: cache, files: sync.Pool{New: func() any { return new([]byte) }}}
}

func (p *tiledPixels) grain() (w, h int) { return p.grid.tileWidth, p.grid.tileHeight }

// shrinks follows the codec, as far as tiles of the grid stay whole pixels apart.
func (p *tiledPixels) shrinks() int {
	most := p.codec.shrinks()
	for p.grid.tileWidth%most != 0 || p.grid.tileHeight%most != 0 {
		most /= 2
	}
	return most
}

// readRegion decodes tiles that lie wholly in the region straight into dst. Of the others, which the
// next regions will want too, the whole tile is kept for a while.
func (p *tiledPixels) readRegion(ctx context.Context, dst []byte, shrink, x, y, w, h int) error {
	width, height := ceilDiv(p.grid.width, shrink), ceilDiv(p.grid.height, shrink)
	tw, th := p.grid.tileWidth/shrink, p.grid.tileHeight/shrink
	for row := y / th; row*th < y+h; row++ {
		top, bottom := max(y, row*th), min(y+h, (row+1)*th, height)
		last := min((row+1)*th, height) // of the image's rows in this row of tiles
		for column := x / tw; column*tw < x+w; column++ {
			left, right := max(x, column*tw), min(x+w, (column+1)*tw)
			part := dst[((top-y)*w+left-x)*3:]
			key := tileKey{p.grid, shrink, column, row}
			tile, err := p.held(ctx, key, right-left == tw && top == row*th && bottom == last)
			if err != nil {
				return err
			}
			if tile == nil {
				if err := p.load(ctx, part, w*3, key); err != nil {
					return err
				}
				continue
			}
			for line := top; line < bottom; line++ {
				from := ((line-row*th)*tw + left - column*tw) * 3
				copy(part[(line-top)*w*3:], tile.rgb[from:from+(right-left)*3])
			}
			// Read row by row, nobody wants a tile again after its last corner.
			p.cache.release(tile, right == min((column+1)*tw, width) && bottom == last)
		}
	}
	return nil
}

// held returns a decoded tile, to be released; nil for one that is wanted whole and is not there.
func (p *tiledPixels) held(ctx context.Context, key tileKey, whole bool) (*heldTile, error) {
	if whole {
		return p.cache.peek(key), nil
	}
	stride := p.grid.tileWidth / key.shrink * 3
	return p.cache.get(ctx, key, stride*(p.grid.tileHeight/key.shrink), func(rgb []byte) error {
		return p.load(ctx, rgb, stride, key)
	})
}

// load decodes the rows of a tile that the image shows.
func (p *tiledPixels) load(ctx context.Context, dst []byte, stride int, key tileKey) error {
	r, off, n := p.grid.tile(key.column, key.row)
	rows := min(p.grid.tileHeight, p.grid.height-key.row*p.grid.tileHeight)
	if n == 0 && p.grid.sparse { // left out by the scanner: empty glass
		for y := range ceilDiv(rows, key.shrink) {
			for i := range p.grid.tileWidth / key.shrink * 3 {
				dst[y*stride+i] = 255
			}
		}
		return nil
	}
	// No encoder makes more bytes of a tile than this, and they are memory.
	if raw := int64(p.grid.tileWidth) * int64(p.grid.tileHeight) * 3; n == 0 || n > 4*raw+1<<20 {
		return inFileTile(key, damaged(&coverslip.Error{Kind: coverslip.Invalid, Op: "decode", Err: fmt.Errorf("%d bytes for %d × %d pixels", n, p.grid.tileWidth, p.grid.tileHeight)}))
	}
	buffer, _ := p.files.Get().(*[]byte)
	defer p.files.Put(buffer)
	if int64(cap(*buffer)) < n {
		*buffer = make([]byte, n+n/2)
	}
	data := (*buffer)[:n]
	if err := r.ReadRange(ctx, data, off); err != nil {
		return inFileTile(key, err)
	}
	if p.grid.payload != nil {
		var err error
		if data, err = p.grid.payload(data); err != nil {
			return inFileTile(key, damaged(err))
		}
	}
	return inFileTile(key, damaged(p.codec.decode(dst, stride, rows, key.shrink, data)))
}
func ceilDiv(n, d int) int { return (n + d - 1) / d }

// inFileTile says in which tile of the file's own grid something went wrong.
func inFileTile(key tileKey, err error) error {
	return coverslip.Doing(fmt.Sprintf("file tile %d,%d", key.column, key.row), err)
}

func (p *tiledPixels) close() {
	p.codec.close()
	p.cache.close()
}

// jpegTiles decodes through libjpeg-turbo. It keeps as many decoders as can run at once.
type jpegTiles struct {
	stream jpeg.Stream
	idle   chan *jpeg.Decoder
}

func newJPEGTiles(s jpeg.Stream) (*jpegTiles, error) {
	first, err := jpeg.NewDecoder(s) // also shows whether the tables are right
	if err != nil {
		return nil, err
	}
	t := &jpegTiles{stream: s, idle: make(chan *jpeg.Decoder, runtime.GOMAXPROCS(0))}
	t.idle <- first
	return t, nil
}

func (t *jpegTiles) shrinks() int { return 8 }

func (t *jpegTiles) decode(dst []byte, stride, rows, shrink int, data []byte) error {
	var d *jpeg.Decoder
	select {
	case d = <-t.idle:
	default:
		var err error
		if d, err = jpeg.NewDecoder(t.stream); err != nil {
			return err
		}
	}
	err := d.Decode(dst, stride, data, rows, shrink)
	select {
	case t.idle <- d:
	default:
		d.Close()
	}
	return err
}

func (t *jpegTiles) close() {
	for {
		select {
		case d := <-t.idle:
			d.Close()
		default:
			return
		}
	}
}

// cacheBytes bounds the decoded tiles a slide keeps. Where the tiles of a plan do not align with the
// file's own, each of those is wanted twice in a row of the plan, and twice again in the next: this
// holds a row of 256-pixel tiles of a slide 87,000 pixels wide. On a wider one, tiles are decoded twice.
const cacheBytes = 64 << 20

// tileCache keeps the decoded tiles used last, up to a number of bytes, and those in use. Callers that
// want the same tile at once decode it once. Buffers of tiles that went serve the next ones. They are
// not Go's: its collector would let as many bytes again gather before it frees any, and so much of a
// closed slide would stay while the next is read.
type tileCache struct {
	limit int

	mu    sync.Mutex
	held  map[tileKey]*heldTile
	order list.List // of *heldTile, the last used in front
	bytes int
	spare [][]byte
}

type tileKey struct {
	grid        *tileGrid
	shrink      int
	column, row int
}

// heldTile is one decoded tile. rgb and err may be looked at once done is closed.
type heldTile struct {
	key   tileKey
	rgb   []byte
	err   error
	done  chan struct{}
	users int // who may look at rgb; the cache's own hold not counted
	place *list.Element
}

func newTileCache(limit int) *tileCache {
	return &tileCache{limit: limit, held: map[tileKey]*heldTile{}}
}

// peek returns a tile that is there, to be released, or nil.
func (c *tileCache) peek(key tileKey) *heldTile {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.held[key]
	if t == nil {
		return nil
	}
	select {
	case <-t.done:
	default:
		return nil // still being decoded
	}
	if t.err != nil {
		return nil
	}
	t.users++
	c.order.MoveToFront(t.place)
	return t
}

// get returns a tile, to be released, and loads it into a buffer of size bytes if it is not there.
// Errors are not kept: they may be the context's, or pass.
func (c *tileCache) get(ctx context.Context, key tileKey, size int, load func(rgb []byte) error) (*heldTile, error) {
	for {
		c.mu.Lock()
		t := c.held[key]
		if t == nil {
			t = c.add(key, size)
			c.mu.Unlock()
			t.err = load(t.rgb)
			close(t.done)
			if t.err == nil {
				return t, nil
			}
			c.mu.Lock()
			c.forget(t)
			c.mu.Unlock()
			c.release(t, false)
			return nil, t.err
		}
		t.users++
		c.order.MoveToFront(t.place)
		c.mu.Unlock()
		select {
		case <-t.done:
		case <-ctx.Done():
			c.release(t, false)
			return nil, ctx.Err()
		}
		if t.err == nil {
			return t, nil
		}
		c.release(t, false)
		if coverslip.KindOf(t.err) != coverslip.Canceled {
			return nil, t.err
		} // the other caller was stopped, this one was not
	}
}

// release ends the use of a tile that get or peek returned. One that is spent makes room first.
func (c *tileCache) release(t *heldTile, spent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t.users--
	if spent {
		c.order.MoveToBack(t.place) // does nothing when it is no longer in there
	}
	c.recycle(t)
}

// add makes a place for a tile and forgets those used longest ago.
func (c *tileCache) add(key tileKey, size int) *heldTile {
	t := &heldTile{key: key, done: make(chan struct{}), users: 1}
	t.place = c.order.PushFront(t)
	c.held[key] = t
	c.bytes += size
	for c.bytes > c.limit && c.order.Back() != t.place {
		oldest, _ := c.order.Back().Value.(*heldTile)
		c.forget(oldest)
	}
	if n := len(c.spare); n > 0 && len(c.spare[n-1]) == size {
		t.rgb, c.spare = c.spare[n-1], c.spare[:n-1]
		return t
	}
	c.freeSpare() // of a level with other tiles
	t.rgb = allocate(size)
	return t
}

// forget takes a tile out of the cache. Its users keep it.
func (c *tileCache) forget(t *heldTile) {
	if c.held[t.key] == t {
		delete(c.held, t.key)
		c.order.Remove(t.place)
		c.bytes -= len(t.rgb)
		c.recycle(t)
	}
}

// recycle keeps the buffer of a tile that nobody has any more.
func (c *tileCache) recycle(t *heldTile) {
	if t.users > 0 || c.held[t.key] == t {
		return
	}
	if len(c.spare) < 4 {
		c.spare = append(c.spare, t.rgb)
	} else {
		free(t.rgb)
	}
}

// close frees all buffers. Nobody may use one, and the cache is empty after it.
func (c *tileCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.held {
		c.forget(t)
	}
	c.freeSpare()
}

func (c *tileCache) freeSpare() {
	for _, b := range c.spare {
		free(b)
	}
	c.spare = nil
}

// allocate asks the system for memory, which has to be given back.
func allocate(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic("tiler: out of memory: " + err.Error()) // as Go's own allocator does
	}
	return b
}

func free(b []byte) {
	if err := unix.Munmap(b); err != nil {
		panic("tiler: munmap: " + err.Error()) // cannot fail for what allocate gave
	}
}
