package tiler

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"coverslip"
	"coverslip/tiler/openslide/openslidetest"
	"coverslip/tiler/tiff"
	"coverslip/tiler/tissue"
	"coverslip/tiler/vips"
)

// cmu is the slide that comes with the source; shared finds those that do not.
const cmu = "../testdata/CMU-1-Small-Region.svs"

func shared(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join("../../shared/data/wsi", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is not here: it may not be passed on, so this test runs where the project's shared data lies", name)
	}
	return path
}

func mustOpen(t testing.TB, path string) *Slide {
	t.Helper()
	s, err := Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// throughOpenSlide opens the same slide by the way of the vendor formats.
func throughOpenSlide(t testing.TB, path string) *Slide {
	t.Helper()
	openslidetest.Need(t)
	var files closers
	s, err := openVendor(context.Background(), path, "reference", &files)
	if err != nil {
		t.Fatal(err)
	}
	s.file = files
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func region(t testing.TB, s *Slide, level, x, y, w, h int) []byte {
	t.Helper()
	dst := make([]byte, w*h*3)
	if err := s.Region(context.Background(), dst, level, x, y, w, h); err != nil {
		t.Fatal(err)
	}
	return dst
}

// far returns the largest and the mean difference.
func far(a, b []byte) (most int, mean float64) {
	for i := range a {
		d := int(a[i]) - int(b[i])
		d = max(d, -d)
		most, mean = max(most, d), mean+float64(d)
	}
	return most, mean / float64(len(a))
}

func TestPixelsEqualOpenSlide(t *testing.T) {
	for _, c := range []struct {
		name, path string
		level      int
		within     int // compared from the top-left only; 0 is everywhere
	}{
		{"AperioRGB", cmu, 0, 0},
		{"YCbCr", "tiff/crc-section.tif", 0, 0},
		{"YCbCrLevel3", "tiff/crc-section.tif", 3, 0},
		{"JPEG2000", "svs/TCGA-CR-7395-01A-01-TS1.svs", 0, 0},
		// OpenSlide takes its scale for 2.0005 and shifts all tiles but the first by parts of a pixel.
		{"JPEG2000Level1", "svs/TCGA-CR-7395-01A-01-TS1.svs", 1, 256},
		{"TilesLargerThanTheSlide", "svs/small-openslide.svs", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.path
			if path != cmu {
				path = shared(t, c.path)
			}
			s, reference := mustOpen(t, path), throughOpenSlide(t, path)
			l := s.Levels[c.level]
			if got := reference.Levels[c.level]; got != l {
				t.Fatalf("the level is %+v, OpenSlide says %+v", l, got)
			}
			w, h := min(700, l.Width), min(600, l.Height)
			places := [][2]int{{0, 0}, {l.Width - w, l.Height - h}, {(l.Width - w) / 2, (l.Height - h) / 2}, {(l.Width - w) / 3, (l.Height - h) * 2 / 3}}
			if c.within > 0 {
				w, h, places = c.within, c.within, places[:1]
			}
			for _, at := range places {
				most, mean := far(region(t, s, c.level, at[0], at[1], w, h), region(t, reference, c.level, at[0], at[1], w, h))
				if most > 2 || mean > 0.05 {
					t.Errorf("%d × %d from %v: differs by %d at most, %.3f on average", w, h, at, most, mean)
				}
			}
		})
	}
}

// libvips decodes the same directories through libtiff.
func TestPixelsEqualLibvips(t *testing.T) {
	for _, c := range []struct {
		name, path string
		page       int
	}{
		{"Tiles", "tiff/crc-section.tif", 0},
		{"TilesOfALowLevel", "tiff/crc-section.tif", 6},
		{"Grey", "tiff/test_orient1.tif", 0},
		{"Strips", cmu, 1},
		{"LastStripCut", cmu, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.path
			if path != cmu {
				path = shared(t, c.path)
			}
			r, index := indexed(t, path)
			d := index.Dirs[c.page]
			p, err := levelDecoder(path, r, d, coverslip.Level{Width: d.Width, Height: d.Height}, newTileCache(1<<20), false)
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			if _, ours := p.(*tiledPixels); !ours {
				t.Fatalf("the directory is decoded by %T", p)
			}
			im, err := vips.OpenTIFF(path, d.Page, d.SubIFD)
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			w, h := min(900, d.Width), min(800, d.Height)
			got, want := make([]byte, w*h*3), make([]byte, w*h*3)
			for _, at := range slices.Compact([][2]int{{0, 0}, {(d.Width - w) / 2, (d.Height - h) / 2}, {d.Width - w, d.Height - h}}) {
				if err := p.readRegion(context.Background(), got, 1, at[0], at[1], w, h); err != nil {
					t.Fatal(err)
				}
				if err := im.ReadRegion(want, at[0], at[1], w, h); err != nil {
					t.Fatal(err)
				}
				if most, mean := far(got, want); most > 2 || mean > 0.05 {
					t.Errorf("%d × %d from %v: differs by %d at most, %.3f on average", w, h, at, most, mean)
				}
			}
		})
	}
}

func indexed(t testing.TB, path string) (tiff.RangeReader, *tiff.File) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := tiff.NewReaderAt(bytes.NewReader(data), int64(len(data)))
	index, err := tiff.Read(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return r, index
}

// Which way a directory takes is what its tags say.
func TestWhatGoesThroughLibjpeg(t *testing.T) {
	for name, want := range map[string]bool{
		"tiff/crc-section.tif": true, "svs/small-openslide.svs": true, "tiff/test_orient1.tif": true,
		"tiff/test_orient6.tif": false, "tiff/boxes.tiff": false, "tiff/yb10kx5k.zstd.tiff": false, "tiff/kidney-48-5.tif": false,
	} {
		s := mustOpen(t, shared(t, name))
		levels, _ := s.pixels.(*mixedPixels)
		for i, l := range levels.levels {
			tiled, ok := l.(*tiledPixels)
			if ok {
				_, ok = tiled.codec.(*jpegTiles)
			}
			if ok != want {
				t.Errorf("%s level %d: by libjpeg %v, want %v", name, i, ok, want)
			}
		}
	}
}

// Fault 2: one bad tile.
func TestFault2DamagedJPEGTile(t *testing.T) {
	whole, err := os.ReadFile(cmu)
	if err != nil {
		t.Fatal(err)
	}
	_, index := indexed(t, cmu)
	dir := index.Levels[0].Dir
	const column, row = 4, 6
	off, n := dir.Tile(column, row)
	good := mustOpen(t, cmu)
	plan := coverslip.Plan{PlanParams: coverslip.PlanParams{Size: 256}, Shrink: 1, Scale: 1}
	for y := 0; y < good.Height; y += 256 {
		for x := 0; x < good.Width; x += 256 {
			plan.Tiles = append(plan.Tiles, coverslip.Tile{X: int64(x), Y: int64(y)})
		}
	}
	for _, c := range []struct {
		name   string
		damage func(file []byte)
	}{
		// One damage in five leaves a stream that is valid again and cannot be told; this one can.
		{"BytesFlipped", func(f []byte) {
			for i := range int64(16) {
				f[off+n/4+i] ^= 0xff
			}
		}},
		{"Zeros", func(f []byte) { clear(f[off+n/2 : off+n]) }},
		{"NoJPEGAtAll", func(f []byte) { copy(f[off:], "this is no picture") }},
		{"LengthCut", func(f []byte) { setLength(t, f, n, n/2) }},
		{"LengthCutByTheEndMarker", func(f []byte) { setLength(t, f, n, n-2) }},
		{"TileOfAnotherSize", func(f []byte) {
			at := bytes.Index(f[off:off+n], []byte{0xff, 0xc0})
			binary.BigEndian.PutUint16(f[off+int64(at)+5:], 239)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := bytes.Clone(whole)
			c.damage(file)
			path := filepath.Join(t.TempDir(), "damaged.svs")
			if err := os.WriteFile(path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			bad := mustOpen(t, path)
			goodTiles, badTiles := good.Tiles(plan), bad.Tiles(plan)
			got, want := make([]byte, 256*256*3), make([]byte, 256*256*3)
			for i, tile := range plan.Tiles {
				hit := tile.X < (column+1)*240 && tile.X+256 > column*240 && tile.Y < (row+1)*240 && tile.Y+256 > row*240
				err := badTiles.ReadTile(context.Background(), got, i)
				if !hit {
					if err != nil {
						t.Fatalf("the tile at %d,%d is whole: %v", tile.X, tile.Y, err)
					}
					if err := goodTiles.ReadTile(context.Background(), want, i); err != nil || !bytes.Equal(got, want) {
						t.Fatalf("the tile at %d,%d has other pixels than in the whole slide, or %v", tile.X, tile.Y, err)
					}
					continue
				}
				text := fmt.Sprint(err)
				if coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" || !strings.HasPrefix(text, path) ||
					!strings.Contains(text, fmt.Sprintf("tile at %d,%d", tile.X, tile.Y)) ||
					!strings.Contains(text, "level 0") || !strings.Contains(text, "file tile 4,6") {
					t.Fatalf("the tile at %d,%d: %v", tile.X, tile.Y, err)
				}
			}
		})
	}
}

// setLength changes the one entry of the list of tile lengths that is n.
func setLength(t *testing.T, file []byte, n, to int64) {
	t.Helper()
	_, index := indexed(t, cmu)
	dir := index.Levels[0].Dir
	columns, rows := dir.TileCount()
	list := make([]byte, 0, 4*columns*rows)
	at := 0
	for i := range columns * rows {
		_, length := dir.Tile(i%columns, i/columns)
		if length == n {
			at = len(list)
		}
		list = binary.LittleEndian.AppendUint32(list, uint32(length))
	}
	start := bytes.Index(file, list)
	if start < 0 {
		t.Fatal("the list of tile lengths is not where it should be")
	}
	binary.LittleEndian.PutUint32(file[start+at:], uint32(to))
}

// sample is a TIFF of one level made for a test: its tiles are what bytes says, where 0 bytes is a
// tile left out.
type sample struct {
	width, height, tile, tileHeight int
	photometric, samples            int
	lengths                         func(i int) int
	bytes                           func(i int) []byte
}

// write lays a sample out as a classic little-endian TIFF with compression 7.
func (s sample) write() []byte {
	order := binary.LittleEndian
	file := append([]byte("II*\x00"), 0, 0, 0, 0)
	n := ((s.width-1)/s.tile + 1) * ((s.height-1)/s.tileHeight + 1)
	var offsets, counts []byte
	for i := range n {
		data := s.bytes(i)
		offsets = order.AppendUint32(offsets, uint32(len(file)))
		length := len(data)
		if s.lengths != nil {
			length = s.lengths(i)
		}
		counts = order.AppendUint32(counts, uint32(length))
		file = append(file, data...)
	}
	offsetsAt := len(file)
	file = append(file, offsets...)
	countsAt := len(file)
	file = append(file, counts...)
	bitsAt := len(file)
	file = append(file, 8, 0, 8, 0, 8, 0)
	order.PutUint32(file[4:], uint32(len(file)))
	type entry struct{ tag, typ, count, value int }
	entries := []entry{{256, 4, 1, s.width}, {257, 4, 1, s.height}, {258, 3, s.samples, bitsAt}, {259, 3, 1, 7}, {262, 3, 1, s.photometric},
		{277, 3, 1, s.samples}, {322, 4, 1, s.tile}, {323, 4, 1, s.tileHeight}, {324, 4, n, offsetsAt}, {325, 4, n, countsAt}}
	if s.samples == 1 {
		entries[2].value = 8
	}
	if n == 1 {
		entries[8].value, entries[9].value = int(order.Uint32(offsets)), int(order.Uint32(counts))
	}
	file = order.AppendUint16(file, uint16(len(entries)))
	for _, e := range entries {
		file = order.AppendUint16(file, uint16(e.tag))
		file = order.AppendUint16(file, uint16(e.typ))
		file = order.AppendUint32(file, uint32(e.count))
		file = order.AppendUint32(file, uint32(e.value))
	}
	return append(file, 0, 0, 0, 0)
}

func (s sample) open(t testing.TB, codec tileCodec, cache *tileCache) *tiledPixels {
	t.Helper()
	file := s.write()
	r := tiff.NewReaderAt(bytes.NewReader(file), int64(len(file)))
	index, err := tiff.Read(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return newTiledPixels(r, index.Levels[0].Dir, codec, cache, true)
}

// counter decodes tiles that are only their number, as four bytes, and counts how often each is.
// Every pixel of tile i is the number i.
type counter struct {
	width  int
	counts []atomic.Int32
}

func (c *counter) decode(dst []byte, stride, rows, _ int, data []byte) error {
	i := binary.LittleEndian.Uint32(data)
	c.counts[i].Add(1)
	line := bytes.Repeat([]byte{byte(i >> 16), byte(i >> 8), byte(i)}, c.width)
	for y := range rows {
		copy(dst[y*stride:], line)
	}
	return nil
}

func (c *counter) shrinks() int { return 1 }

func (c *counter) close() {}

func (c *counter) most() int {
	most := 0
	for i := range c.counts {
		most = max(most, int(c.counts[i].Load()))
	}
	return most
}

func numbered(width, height, tile, tileHeight int) (sample, *counter) {
	n := ((width-1)/tile + 1) * ((height-1)/tileHeight + 1)
	return sample{width: width, height: height, tile: tile, tileHeight: tileHeight, photometric: 2, samples: 3,
		bytes: func(i int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(i)) }}, &counter{tile, make([]atomic.Int32, n)}
}

func TestWideLevelsDecodeEachTileAboutOnce(t *testing.T) {
	for _, c := range []struct {
		name                            string
		width, height, tile, tileHeight int
		pieceW, pieceH                  int
		most                            int
	}{
		{"OverviewOfAlignedTiles", 100_000, 4096, 256, 256, 2048, 2048, 1},
		{"OverviewOfTilesThatDoNotAlign", 100_000, 4300, 240, 240, 2049, 2049, 2},
		{"OverviewOfStrips", 65_500, 300, 65_500, 16, 65_501, 66, 2},
		{"RowsOfThePlan", 60_000, 1400, 240, 240, 256, 256, 1},
		{"RowsOfThePlanOfAWiderSlide", 100_000, 1400, 240, 240, 256, 256, 2},
		{"RowsOfThePlanAndStrips", 65_500, 600, 65_500, 16, 256, 256, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, codec := numbered(c.width, c.height, c.tile, c.tileHeight)
			cache := newTileCache(cacheBytes)
			p := s.open(t, codec, cache)
			dst := make([]byte, c.pieceW*c.pieceH*3)
			for y := 0; y < c.height; y += c.pieceH {
				for x := 0; x < c.width; x += c.pieceW {
					w, h := min(c.pieceW, c.width-x), min(c.pieceH, c.height-y)
					if err := p.readRegion(context.Background(), dst[:w*h*3], 1, x, y, w, h); err != nil {
						t.Fatal(err)
					}
				}
			}
			if most := codec.most(); most > c.most {
				t.Errorf("a tile was decoded %d times", most)
			}
			if cache.bytes > cacheBytes || len(cache.spare) > 4 {
				t.Errorf("%d bytes are held and %d buffers spare", cache.bytes, len(cache.spare))
			}
		})
	}
}

// Two readers with regions of any place and size, in a cache that holds three tiles, see every tile
// where it belongs.
func TestAnyRegionIsRightWhileTilesComeAndGo(t *testing.T) {
	const width, height, tile = 1000, 700, 64
	s, codec := numbered(width, height, tile, tile)
	cache := newTileCache(3 * tile * tile * 3)
	p := s.open(t, codec, cache)
	columns := (width-1)/tile + 1
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(worker), 1))
			for range 150 {
				x, y := rng.IntN(width), rng.IntN(height)
				w, h := 1+rng.IntN(min(width-x, 200)), 1+rng.IntN(min(height-y, 200))
				dst := make([]byte, w*h*3)
				if err := p.readRegion(context.Background(), dst, 1, x, y, w, h); err != nil {
					t.Error(err)
					return
				}
				for i := range w * h {
					want := (y+i/w)/tile*columns + (x+i%w)/tile
					if got := int(dst[3*i])<<16 | int(dst[3*i+1])<<8 | int(dst[3*i+2]); got != want {
						t.Errorf("region %d,%d %d × %d: pixel %d is of tile %d, want %d", x, y, w, h, i, got, want)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	for _, h := range cache.held {
		if h.users != 0 {
			t.Errorf("tile %v still has %d users", h.key, h.users)
		}
	}
	if cache.bytes > cache.limit {
		t.Errorf("%d bytes are held", cache.bytes)
	}
}

func TestTilesThatAreNotThereAreWhite(t *testing.T) {
	s, codec := numbered(300, 200, 64, 64)
	s.lengths = func(i int) int {
		if i%2 == 1 {
			return 0
		}
		return 4
	}
	p := s.open(t, codec, newTileCache(1<<20))
	for _, place := range []struct{ x, y, w, h int }{{64, 0, 64, 64}, {70, 5, 20, 30}} { // whole, and a part
		dst := make([]byte, place.w*place.h*3)
		if err := p.readRegion(context.Background(), dst, 1, place.x, place.y, place.w, place.h); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dst, bytes.Repeat([]byte{255}, len(dst))) {
			t.Errorf("%+v is not white", place)
		}
	}
}

func TestATileOfFarTooManyBytesIsRefused(t *testing.T) {
	s, codec := numbered(64, 64, 64, 64)
	s.bytes = func(int) []byte { return make([]byte, 4*64*64*3+1<<20+1) }
	err := s.open(t, codec, newTileCache(1<<20)).readRegion(context.Background(), make([]byte, 64*64*3), 1, 0, 0, 64, 64)
	if coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
}

// stopped is a codec that waits until its first caller was stopped.
type stopped struct {
	*counter
	started chan struct{}
	ctx     context.Context
	once    sync.Once
}

func (s *stopped) decode(dst []byte, stride, rows, shrink int, data []byte) error {
	var err error
	s.once.Do(func() {
		close(s.started)
		<-s.ctx.Done()
		err = s.ctx.Err()
	})
	if err != nil {
		return err
	}
	return s.counter.decode(dst, stride, rows, shrink, data)
}

func TestOneCallerStoppedDoesNotFailAnother(t *testing.T) {
	s, count := numbered(64, 64, 64, 64)
	ctx, cancel := context.WithCancel(context.Background())
	codec := &stopped{counter: count, started: make(chan struct{}), ctx: ctx}
	p := s.open(t, codec, newTileCache(1<<20))
	first := make(chan error, 1)
	go func() { first <- p.readRegion(ctx, make([]byte, 3*10*10), 1, 0, 0, 10, 10) }()
	<-codec.started
	second := make(chan error, 1)
	dst := make([]byte, 3*10*10)
	go func() { second <- p.readRegion(context.Background(), dst, 1, 0, 0, 10, 10) }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the stopped caller got %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the other caller got %v", err)
	}
}

func TestManyReadersOfOneSlideSeeTheSame(t *testing.T) {
	s := mustOpen(t, cmu)
	plan, _, err := s.Plan(context.Background(), coverslip.PlanParams{MPP: 0.7, Size: 128}, tissue.Default())
	if err != nil || len(plan.Tiles) < 20 {
		t.Fatalf("%d tiles, %v", len(plan.Tiles), err)
	}
	tiles := s.Tiles(plan)
	want := make([][]byte, 20)
	for i := range want {
		want[i] = make([]byte, 128*128*3)
		if err := tiles.ReadTile(context.Background(), want[i], i); err != nil {
			t.Fatal(err)
		}
	}
	again := mustOpen(t, cmu).Tiles(plan) // with nothing in memory
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			got := make([]byte, 128*128*3)
			for _, i := range rand.New(rand.NewPCG(uint64(worker), 2)).Perm(len(want)) {
				if err := again.ReadTile(context.Background(), got, i); err != nil || !bytes.Equal(got, want[i]) {
					t.Errorf("tile %d has other pixels, or %v", i, err)
				}
			}
		})
	}
	wg.Wait()
}

// The plan of a JPEG 2000 slide is the plan of the pixels OpenSlide gives.
func TestPlanOfJPEG2000EqualsThatThroughOpenSlide(t *testing.T) {
	path := shared(t, "svs/TCGA-CR-7395-01A-01-TS1.svs")
	params := coverslip.PlanParams{MPP: 0.5, Size: 256, MinTissue: 0.25, MPPOfSlide: 0.5}
	ours, ourOverview, err := mustOpen(t, path).Plan(context.Background(), params, tissue.Default())
	if err != nil {
		t.Fatal(err)
	}
	theirs, _, err := throughOpenSlide(t, path).Plan(context.Background(), params, tissue.Default())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d and %d tiles; %.3f of the slide is tissue", len(ours.Tiles), len(theirs.Tiles), ourOverview.Mask.Fraction())
	if len(ours.Tiles) == 0 {
		t.Error("no tissue")
	}
	place := func(t coverslip.Tile) [2]int64 { return [2]int64{t.X, t.Y} }
	var differ int
	for _, tile := range ours.Tiles {
		if !slices.ContainsFunc(theirs.Tiles, func(other coverslip.Tile) bool { return place(other) == place(tile) }) {
			differ++
		}
	}
	if differ += len(theirs.Tiles) - (len(ours.Tiles) - differ); differ > len(ours.Tiles)/50 {
		t.Errorf("%d tiles are in one plan only", differ)
	}
}

// BenchmarkTile reads the 256-pixel tiles of level 0 of a real section, one by one, tissue and glass as
// they come: those of the file's own grid, and those that lie across it. It reports the processor's
// time, which other programs do not lengthen as they do the wall clock's.
func BenchmarkTile(b *testing.B) {
	path := shared(b, "tiff/crc-section.tif")
	s := mustOpen(b, path)
	through := func(im *vips.Image, err error) levelPixels {
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(im.Close)
		return vipsPixels{im: im}
	}
	levels, _ := s.pixels.(*mixedPixels)
	for _, c := range []struct {
		name string
		p    levelPixels
	}{{"libjpeg", levels.levels[0]}, {"libvips", through(vips.OpenTIFF(path, 0, -1))}} {
		for _, shift := range []int{0, 100} {
			b.Run(fmt.Sprintf("%s/from%d", c.name, shift), func(b *testing.B) {
				columns := s.Width/256 - 1
				dst := make([]byte, 256*256*3)
				before := cpu(b)
				for i := range b.N {
					i %= columns * (s.Height/256 - 1)
					if err := c.p.readRegion(context.Background(), dst, 1, i%columns*256+shift, i/columns*256+shift, 256, 256); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/tile")
			})
		}
	}
}

// cpu is the processor's time this process has taken.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// psnr is the peak signal-to-noise ratio of two pictures, dB.
func psnr(a, b []byte) float64 {
	var sum float64
	for i := range a {
		d := float64(a[i]) - float64(b[i])
		sum += d * d
	}
	return 10 * math.Log10(255*255*float64(len(a))/sum)
}

// A level that is decoded smaller shows what averaging all of its pixels would, nearly.
func TestShrunkInTheTransform(t *testing.T) {
	for _, c := range []struct {
		name, path string
	}{{"Tiles240", cmu}, {"Tiles256", "tiff/crc-section.tif"}} {
		path := c.path
		if path != cmu {
			path = shared(t, path)
		}
		s := mustOpen(t, path)
		if got := s.pixels.Shrinks(0); got != 8 {
			t.Fatalf("level 0 shrinks by %d", got)
		}
		for shrink, least := range map[int]float64{2: 40, 4: 40, 8: 38} {
			t.Run(fmt.Sprintf("%s/By%d", c.name, shrink), func(t *testing.T) {
				width, height := s.size(0, shrink)
				w, h := 800/shrink*2, 640/shrink*2
				x, y := (width-w)/2, (height-h)/2
				whole := make([]byte, w*h*3)
				if err := s.region(context.Background(), whole, 0, shrink, x, y, w, h); err != nil {
					t.Fatal(err)
				}
				exact := &Picture{RGB: make([]byte, w*h*3), Width: w, Height: h}
				average(exact, region(t, s, 0, x*shrink, y*shrink, w*shrink, h*shrink), 0, 0, w*shrink, h*shrink, shrink)
				if got := psnr(whole, exact.RGB); got < least {
					t.Errorf("%.1f dB against the average of all pixels, want %g", got, least)
				} else {
					t.Logf("%.1f dB", got)
				}
				// Parts that cut through the file's tiles are parts of the whole.
				part := make([]byte, 50*40*3)
				for _, at := range [][2]int{{0, 0}, {17, 33}, {w - 50, h - 40}} {
					if err := s.region(context.Background(), part, 0, shrink, x+at[0], y+at[1], 50, 40); err != nil {
						t.Fatal(err)
					}
					for row := range 40 {
						if !bytes.Equal(part[row*150:(row+1)*150], whole[((at[1]+row)*w+at[0])*3:][:150]) {
							t.Fatalf("row %d of the part at %v differs", row, at)
						}
					}
				}
				// The last pixels of the slide are there, whatever is left over of a whole one.
				corner := make([]byte, 4*4*3)
				if err := s.region(context.Background(), corner, 0, shrink, width-4, height-4, 4, 4); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
