package tiler

// The faults a slide may have, by their number in the list the project is measured on. Where a fault
// is another package's to meet, the test with its number stands there: 1, 3, 4 and 5 in tiler/tiff
// and tiler/dicom, 25 and 26 in tiler/remote, 6 and 10 in api, 11 beside zip.go, 12 in tiler/remote.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"coverslip"
	"coverslip/tiler/tiff"
	"coverslip/tiler/tilertest"
	"coverslip/tiler/tissue"
	"coverslip/tiler/vips"
)

// One bad tile, in each compression in which a bad tile can be told. By default the slide fails; with
// SkipBadTiles just the tiles that touch it are listed, and the rest is as in the whole slide.
func TestFault2BadTile(t *testing.T) {
	garbage := func(tile []byte) { copy(tile, "this is no picture") }
	cut := func(tile []byte) { clear(tile[len(tile)/2:]) }
	type fault struct {
		name, path string
		damage     func(tile []byte) // nil makes the tile's length zero
	}
	faults := []fault{
		{"JPEGZeroLength", cmu, nil}, {"JPEGGarbage", cmu, garbage}, {"JPEGCut", cmu, cut},
	}
	for _, compression := range []string{"deflate", "deflate,predictor=horizontal", "lzw", "zstd", "webp,lossless"} {
		path := compressed(t, compression, 768)
		faults = append(faults, fault{compression + "ZeroLength", path, nil}, fault{compression + "Garbage", path, garbage})
		if strings.HasPrefix(compression, "deflate") {
			faults = append(faults, fault{compression + "OneBit", path, func(tile []byte) { tile[len(tile)/3] ^= 4 }})
		}
	}
	const jpeg2000 = "../../shared/data/wsi/svs/TCGA-CR-7395-01A-01-TS1.svs"
	if _, err := os.Stat(jpeg2000); err == nil {
		faults = append(faults, fault{"JPEG2000Cut", jpeg2000, cut})
	}
	for _, c := range faults {
		t.Run(c.name, func(t *testing.T) {
			good := mustOpen(t, c.path)
			params := coverslip.PlanParams{MPP: 0.5, Size: 256, MinTissue: 0.25, MPPOfSlide: 0.5}
			clean := mustPlan(t, good, params)
			_, index := indexed(t, c.path)
			dir := index.Levels[0].Dir
			middle := clean.Tiles[len(clean.Tiles)/2]
			column, row := (int(middle.X)+128)/dir.TileWidth, (int(middle.Y)+128)/dir.TileHeight
			bad := image.Rect(column*dir.TileWidth, row*dir.TileHeight, (column+1)*dir.TileWidth, (row+1)*dir.TileHeight)
			path := withBadTile(t, c.path, column, row, c.damage)

			s := mustOpen(t, path)
			if err := planAndRead(s, params); coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" || !strings.HasPrefix(err.Error(), path) {
				t.Errorf("by default: %v", err)
			}

			params.SkipBadTiles = true
			plan := mustPlan(t, s, params)
			goodTiles, tiles := good.Tiles(clean), s.Tiles(plan)
			got, want := make([]byte, 256*256*3), make([]byte, 256*256*3)
			next, skipped := 0, 0
			for i, tile := range clean.Tiles {
				if image.Rect(int(tile.X), int(tile.Y), int(tile.X)+256, int(tile.Y)+256).Overlaps(bad) {
					if skipped >= len(plan.Skipped) || plan.Skipped[skipped].X != tile.X || plan.Skipped[skipped].Y != tile.Y || plan.Skipped[skipped].Why == "" {
						t.Fatalf("the bad tile at %d,%d is not listed in %+v", tile.X, tile.Y, plan.Skipped)
					}
					skipped++
					continue
				}
				if next >= len(plan.Tiles) || plan.Tiles[next].X != tile.X || plan.Tiles[next].Y != tile.Y {
					t.Fatalf("the tile at %d,%d is missing", tile.X, tile.Y)
				}
				if err := errors.Join(goodTiles.ReadTile(t.Context(), want, i), tiles.ReadTile(t.Context(), got, next)); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("the tile at %d,%d differs, or %v", tile.X, tile.Y, err)
				}
				next++
			}
			if skipped == 0 || skipped != len(plan.Skipped) || next != len(plan.Tiles) {
				t.Errorf("%d of %d listed and %d of %d kept are in the whole slide", skipped, len(plan.Skipped), next, len(plan.Tiles))
			}
		})
	}
}

// What is not the fault of a tile's bytes is no reason to leave it out.
func TestFault2OnlyDamageIsSkipped(t *testing.T) {
	s := mustOpen(t, cmu)
	for _, kind := range []coverslip.Kind{coverslip.Unavailable, coverslip.Canceled, coverslip.Conflict, coverslip.Invalid} {
		broken := &Slide{Info: s.Info, pixels: failing{s.pixels, &coverslip.Error{Kind: kind, Op: "read", Err: errors.New("not the tile's fault")}}}
		_, _, err := broken.Plan(t.Context(), coverslip.PlanParams{MPP: 0.5, Size: 256, SkipBadTiles: true}, tissue.Default())
		if coverslip.KindOf(err) != kind {
			t.Errorf("%s: %v", kind, err)
		}
	}
	// A slide of which no tile is whole is broken, not empty.
	all := failing{s.pixels, damaged(&coverslip.Error{Kind: coverslip.Invalid, Op: "decode", Err: errors.New("damage")})}
	_, _, err := (&Slide{Info: s.Info, pixels: all}).Plan(t.Context(), coverslip.PlanParams{MPP: 0.5, Size: 256, SkipBadTiles: true}, tissue.Default())
	if coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), "none of") {
		t.Errorf("nothing whole: %v", err)
	}
}

type failing struct {
	Pixels
	err error
}

func (f failing) ReadRegion(context.Context, []byte, int, int, int, int, int, int) error {
	return f.err
}

// compressed saves a part of the bundled slide with tiles of 128 pixels, in the folder of the test.
func compressed(t *testing.T, compression string, edge int) string {
	t.Helper()
	rgb := region(t, mustOpen(t, cmu), 0, 600, 900, edge, edge)
	data, err := vips.Encode(rgb, edge, edge, ".tif[tile,tile-width=128,tile-height=128,compression="+compression+"]")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "slide.tif")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// withBadTile returns a copy of a slide of which one tile of level 0 is damaged.
func withBadTile(t *testing.T, path string, column, row int, damage func(tile []byte)) string {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, index := indexed(t, path)
	off, n := index.Levels[0].Dir.Tile(column, row)
	if damage != nil {
		damage(file[off : off+n])
	} else {
		columns, _ := index.Levels[0].Dir.TileCount()
		setTileLength(t, file, index.Levels[0].Dir, row*columns+column, 0)
	}
	out := filepath.Join(t.TempDir(), "damaged"+filepath.Ext(path))
	if err := os.WriteFile(out, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

// setTileLength changes what a directory says of the length of tile i.
func setTileLength(t *testing.T, file []byte, d *tiff.Dir, i int, to uint32) {
	t.Helper()
	columns, rows := d.TileCount()
	for _, size := range []int{4, 2} { // LONG, SHORT
		var list []byte
		for j := range columns * rows {
			_, n := d.Tile(j%columns, j/columns)
			if size == 2 {
				list = binary.LittleEndian.AppendUint16(list, uint16(n))
			} else {
				list = binary.LittleEndian.AppendUint32(list, uint32(n))
			}
		}
		if start := bytes.Index(file, list); start >= 0 {
			clear(file[start+i*size : start+(i+1)*size])
			file[start+i*size] = byte(to)
			return
		}
	}
	t.Fatal("the list of tile lengths is not where it should be")
}

// planAndRead plans a slide and reads every tile.
func planAndRead(s *Slide, p coverslip.PlanParams) error {
	plan, _, err := s.Plan(context.Background(), p, tissue.Default())
	if err != nil {
		return err
	}
	tiles, dst := s.Tiles(plan), make([]byte, p.Size*p.Size*3)
	for i := range plan.Tiles {
		if err := tiles.ReadTile(context.Background(), dst, i); err != nil {
			return err
		}
	}
	return nil
}

// What a compression without a checksum lets through cannot be told by anybody; of the rest libtiff
// tells all, once it is asked to.
func TestFault2DamageByCompression(t *testing.T) {
	for compression, least := range map[string]int{"deflate": 60, "lzw": 30, "zstd": 20, "webp,lossless": 15} {
		const edge = 384
		path := compressed(t, compression, edge)
		s := mustOpen(t, path)
		clean := region(t, s, 0, 0, 0, edge, edge)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, index := indexed(t, path)
		rng := rand.New(rand.NewPCG(2, 2))
		told, same := 0, 0
		const damages = 60
		for i := range damages {
			off, n := index.Levels[0].Dir.Tile(rng.IntN(3), rng.IntN(3))
			file := bytes.Clone(whole)
			switch i % 3 {
			case 0:
				for range 8 {
					file[off+rng.Int64N(n)] ^= byte(1 + rng.IntN(255))
				}
			case 1:
				clear(file[off+rng.Int64N(n) : off+n])
			case 2:
				file[off+rng.Int64N(n)] ^= byte(1 << rng.IntN(8))
			}
			if err := os.WriteFile(path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			bad := mustOpen(t, path)
			got := make([]byte, len(clean))
			first := bad.Region(t.Context(), got, 0, 0, 0, edge, edge)
			if again := bad.Region(t.Context(), got, 0, 0, 0, edge, edge); (first == nil) != (again == nil) {
				t.Fatalf("%s: first %v, then %v", compression, first, again)
			}
			switch {
			case first != nil:
				told++
			case bytes.Equal(got, clean):
				same++
			}
		}
		t.Logf("%s: of %d damages %d were told, %d changed no pixel", compression, damages, told, same)
		if told+same < least {
			t.Errorf("%s: %d of %d damages were told", compression, told, damages)
		}
	}
}

// Files that loop, claim to be huge, or hold bombs are refused soon and in little memory. Each is
// opened and read by a process of its own, whose peak is looked at.
func TestFault3To5RefusedInLittleMemory(t *testing.T) {
	if path := os.Getenv(faultFile); path != "" {
		openAndReport(path)
	}
	type tag = tilertest.Tag
	const short, long = tilertest.Short, tilertest.Long
	tiny, oneTile := tilertest.TIFF, tilertest.OneTile
	for _, c := range []struct {
		name string
		file []byte
	}{
		{"DirectoryThatIsItsOwnNext", tiny(8, tag{256, long, 1, 64})},
		{"SubIFDThatIsItsOwnParent", tiny(0, tag{256, long, 1, 64}, tag{257, long, 1, 64}, tag{330, long, 1, 8})},
		{"60000Strips", tiny(0, tag{256, long, 1, 60000}, tag{257, long, 1, 60000}, tag{259, short, 1, 8}, tag{273, long, 1, 8}, tag{278, long, 1, 60000}, tag{279, long, 1, 4000})},
		{"60000Tile", tiny(0, tag{256, long, 1, 60000}, tag{257, long, 1, 60000}, tag{259, short, 1, 8}, tag{322, long, 1, 60000}, tag{323, long, 1, 60000}, tag{324, long, 1, 8}, tag{325, long, 1, 4000})},
		{"2To31Tile", tiny(0, tag{256, long, 1, 1<<31 - 1}, tag{257, long, 1, 1<<31 - 1}, tag{259, short, 1, 7}, tag{322, long, 1, 1<<31 - 16}, tag{323, long, 1, 1<<31 - 16}, tag{324, long, 1, 8}, tag{325, long, 1, 4000})},
		{"2To31Strips", tiny(0, tag{256, long, 1, 1 << 31}, tag{257, long, 1, 1 << 31}, tag{259, short, 1, 1}, tag{273, long, 1, 8}, tag{279, long, 1, 4000})},
		{"CountOf0xFFFFFFFF", tiny(0, tag{256, long, 1, 64}, tag{257, long, 1, 64}, tag{273, long, 0xffffffff, 8}, tag{279, long, 0xffffffff, 8})},
		{"DeflateBomb", oneTile(256, 8, tilertest.DeflateBomb(64<<20))},
		{"DeflateBombInALargeTile", oneTile(8192, 8, tilertest.DeflateBomb(64<<20))},
		{"DeflateBombInALargerTile", oneTile(16384, 8, tilertest.DeflateBomb(64<<20))},
		{"DeflateBombInOneStrip", tilertest.OneStrip(16384, 8, tilertest.DeflateBomb(64<<20))},
		{"JPEG2000Claims60000", oneTile(256, 33005, tilertest.JPEG2000(60000, 60000))},
		{"JPEG2000Claims2To31", oneTile(256, 33005, tilertest.JPEG2000(1<<31, 1<<31))},
		{"JPEG2000YCCClaims60000", oneTile(256, 33003, tilertest.JPEG2000(60000, 60000))},
		{"JPEG2000OfLibtiffClaims60000", oneTile(256, 34712, tilertest.JPEG2000(60000, 60000))},
		{"WebPClaims16383", oneTile(256, 50001, []byte("RIFF\x20\x00\x00\x00WEBPVP8L\x0e\x00\x00\x00\x2f\xff\xff\xff\x0f0123456789"))},
		{"ZstdBomb", oneTile(256, 50000, []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe4, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0x20, 0})},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "fault.tif")
			if err := os.WriteFile(path, c.file, 0o600); err != nil {
				t.Fatal(err)
			}
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFault3To5RefusedInLittleMemory$")
			child.Env = append(os.Environ(), faultFile+"="+path)
			out, err := child.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			var peak, millis int
			kind, rest, _ := strings.Cut(string(out), " ")
			if _, err := fmt.Sscanf(rest, "%d %d", &peak, &millis); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			t.Logf("%d MiB, %d ms: %s", peak>>10, millis, out)
			if k := coverslip.Kind(kind); k != coverslip.Invalid && k != coverslip.Unsupported && k != coverslip.TooLarge {
				t.Errorf("not refused: %s", out)
			}
			if peak > 256<<10 || millis > 1000 && !strings.Contains(c.name, "Bomb") {
				t.Errorf("took %d MiB and %d ms", peak>>10, millis)
			}
		})
	}
}

const faultFile = "COVERSLIP_TEST_FAULT_FILE"

// openAndReport opens and reads a slide, prints how that ended and what it took, and exits.
func openAndReport(path string) {
	started := time.Now()
	s, err := Open(context.Background(), path)
	if err == nil {
		err = planAndRead(s, coverslip.PlanParams{MPP: 0.5, Size: 256, MPPOfSlide: 0.5})
	}
	took := time.Since(started)
	status, _ := os.ReadFile("/proc/self/status")
	_, high, _ := strings.Cut(string(status), "VmHWM:")
	peak, _ := strconv.Atoi(strings.Fields(high)[0])
	fmt.Printf("%s %d %d %v\n", coverslip.KindOf(err), peak, took.Milliseconds(), err)
	os.Exit(0)
}

// Resolutions as files really write them, and as they should not.
func TestFault7MPPOfFiles(t *testing.T) {
	whole, err := os.ReadFile(cmu)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		said string // in place of "MPP = 0.4990", and as long
		want float64
	}{
		"Comma": {"MPP = 0,4990", 0.499}, "Absent": {"XXX = 0.4990", 0}, "Zero": {"MPP = 0.0000", 0}, "NaN": {"MPP = NaN   ", 0},
		"Infinite": {"MPP = Inf   ", 0}, "Negative": {"MPP = -0.499", 0}, "Text": {"MPP = none  ", 0},
		"ContradictsTheObjective": {"MPP = 0.2490", 0}, "InMillimetres": {"MPP = 0.0005", 0},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "slide.svs")
			if err := os.WriteFile(path, bytes.ReplaceAll(whole, []byte("MPP = 0.4990"), []byte(c.said)), 0o600); err != nil {
				t.Fatal(err)
			}
			s := mustOpen(t, path)
			_, _, err := s.Plan(t.Context(), coverslip.PlanParams{MPP: 0.5, Size: 256}, tissue.Default())
			if s.MPP.Value != c.want || (c.want == 0) != (coverslip.KindOf(err) == coverslip.NeedsMPP) {
				t.Errorf("%+v, %v", s.MPP, err)
			}
			plan, _, err := s.Plan(t.Context(), coverslip.PlanParams{MPP: 0.5, Size: 256, MPPOfSlide: 0.5}, tissue.Default())
			if err != nil || plan.SlideMPP.Source != coverslip.MPPUser {
				t.Errorf("with the user's word: %+v, %v", plan.SlideMPP, err)
			}
		})
	}
	t.Run("XAndYDiffer", func(t *testing.T) {
		data, err := vips.Encode(make([]byte, 64*64*3), 64, 64, ".tif[tile,compression=deflate,resunit=cm,xres=4000,yres=2000]")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "slide.tif")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if s := mustOpen(t, path); s.MPP.Known() || s.MPP.Doubt == "" {
			t.Errorf("%+v", s.MPP)
		}
	})
}

// Layouts that are unusual and right: a single level, tiles that are not square or no power of two, and
// a grid that does not align with the plan's. (Places beyond 4 GiB: TestBeyond4GiB in tiler/tiff.)
func TestFault8UnusualLayouts(t *testing.T) {
	const w, h = 1300, 1100
	rgb := region(t, mustOpen(t, cmu), 0, 500, 700, w, h)
	for _, layout := range []string{"tile,tile-width=624,tile-height=752", "tile,tile-width=16,tile-height=2048", "tile,tile-width=240,tile-height=240", "tile=false", "tile,bigtiff"} {
		for _, compression := range []string{"deflate", "none", "lzw", "jpeg,Q=95"} {
			t.Run(layout+","+compression, func(t *testing.T) {
				data, err := vips.Encode(rgb, w, h, ".tif["+layout+",compression="+compression+"]")
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(t.TempDir(), "slide.tif")
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
				s := mustOpen(t, path)
				plan := mustPlan(t, s, coverslip.PlanParams{MPP: 0.5, Size: 250, MPPOfSlide: 0.5})
				if len(s.Levels) != 1 || len(plan.Tiles) != plan.Columns*plan.Rows {
					t.Fatalf("%+v, %d tiles", s.Levels, len(plan.Tiles))
				}
				tiles, got, want := s.Tiles(plan), make([]byte, 250*250*3), make([]byte, 250*250*3)
				for i, tile := range plan.Tiles {
					if err := tiles.ReadTile(t.Context(), got, i); err != nil {
						t.Fatal(err)
					}
					for j := range want {
						x, y := int(tile.X)+j/3%250, int(tile.Y)+j/750
						if want[j] = 255; x < w && y < h {
							want[j] = rgb[(y*w+x)*3+j%3]
						}
					}
					most, mean := far(got, want)
					if strings.HasPrefix(compression, "jpeg") && mean > 3 || !strings.HasPrefix(compression, "jpeg") && most > 0 {
						t.Fatalf("the tile at %d,%d differs by %d at most, %.2f on average", tile.X, tile.Y, most, mean)
					}
				}
			})
		}
	}
}

func FuzzFault13JPEG2000(f *testing.F) {
	f.Add(tilertest.JPEG2000(256, 256))
	f.Add(tilertest.JPEG2000(1<<31, 1<<31))
	f.Fuzz(func(_ *testing.T, data []byte) { _ = wholeJPEG2000(data, 256, 256) })
}

func FuzzFault13Deflate(f *testing.F) {
	f.Add(tilertest.DeflateBomb(16 * 16 * 3))
	codec := &deflateTiles{width: 16, height: 16, predictor: true}
	f.Fuzz(func(_ *testing.T, data []byte) { _ = codec.decode(make([]byte, 16*16*3), 48, 16, 1, data) })
}

func FuzzFault13ZipDirectory(f *testing.F) {
	f.Add([]byte("PK\x05\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(_ *testing.T, data []byte) { _ = countEntries(bytes.NewReader(data), int64(len(data)), 10) })
}
