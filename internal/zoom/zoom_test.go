package zoom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/jpeg"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"coverslip"
	"coverslip/tiler"
	"coverslip/tiler/vips"
)

// folder holds slides that differ in colour, and opens them.
type folder struct {
	dir         string
	opens, open atomic.Int64
	allowed     int64        // open at once
	over        atomic.Int64 // how often there were more
	fail        atomic.Pointer[coverslip.Error]
}

// slides writes n of them, of 600 × 400 pixels. Slide i is grey, 10·i everywhere.
func slides(t *testing.T, n int) (*folder, []coverslip.Slide) {
	t.Helper()
	f := &folder{dir: t.TempDir(), allowed: 2}
	var all []coverslip.Slide
	for i := range n {
		s := coverslip.Slide{ID: coverslip.SlideID(fmt.Sprintf("%064x", i)), Name: fmt.Sprint(i, ".tif"), Width: 600, Height: 400}
		if err := vips.SaveTIFF(filepath.Join(f.dir, s.Name), bytes.Repeat([]byte{byte(10 * i)}, 600*400*3), 600, 400, 0.5); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return f, all
}

func (f *folder) Open(ctx context.Context, s coverslip.Slide) (*tiler.Slide, func(), error) {
	f.opens.Add(1)
	if err := f.fail.Load(); err != nil {
		return nil, nil, err
	}
	if now := f.open.Add(1); now > f.allowed {
		f.over.Add(1)
	}
	slide, err := tiler.Open(ctx, filepath.Join(f.dir, s.Name))
	if err != nil {
		f.open.Add(-1)
	}
	return slide, func() { f.open.Add(-1) }, err
}

// descriptors counts this process's open files of the folder.
func (f *folder) descriptors(t *testing.T) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("open files cannot be counted here: %v", err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, f.dir) {
			n++
		}
	}
	return n
}

func isTile(raw []byte, grey byte, width, height int) error {
	im, err := jpeg.Decode(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	if size := im.Bounds().Size(); size.X != width || size.Y != height {
		return fmt.Errorf("%v, want %d × %d", size, width, height)
	}
	r, _, _, _ := im.At(width/2, height/2).RGBA()
	if d := int(r>>8) - int(grey); d < -3 || d > 3 {
		return fmt.Errorf("grey %d, want %d", r>>8, grey)
	}
	return nil
}

func TestManyClientsOnMoreSlidesThanMayBeOpen(t *testing.T) {
	f, all := slides(t, 20)
	tiles := New(f.Open, 2, 40_000)
	tiles.slots = make(chan struct{}, 8) // more at once than slides may be open
	var clients sync.WaitGroup
	for client := range 50 {
		rng := rand.New(rand.NewPCG(10, uint64(client)))
		clients.Go(func() {
			for range 20 {
				i := rng.IntN(len(all))
				raw, err := tiles.Tile(t.Context(), all[i], 10, 1+rng.IntN(2), rng.IntN(2))
				if err == nil {
					im, _ := jpeg.DecodeConfig(bytes.NewReader(raw))
					err = isTile(raw, byte(10*i), im.Width, im.Height)
				}
				if err != nil {
					t.Errorf("slide %d: %v", i, err)
				}
			}
		})
	}
	clients.Wait()
	if n := f.over.Load(); n > 0 {
		t.Errorf("more than 2 slides were open, %d times", n)
	}
	if tiles.bytes > 40_000 || len(tiles.held) != tiles.kept.Len() || len(tiles.making) != 0 {
		t.Errorf("%d bytes kept, %d tiles in the index, %d in the list, %d on their way", tiles.bytes, len(tiles.held), tiles.kept.Len(), len(tiles.making))
	}
	if n := f.descriptors(t); n == 0 || n > 8 { // a slide has one for itself and some in libvips
		t.Errorf("%d files are open of 2 slides", n)
	}
	tiles.Close()
	if n := f.descriptors(t); n != 0 || f.open.Load() != 0 {
		t.Errorf("after Close %d files are open, of %d slides", n, f.open.Load())
	}
}

func TestTileIsMadeOnce(t *testing.T) {
	f, all := slides(t, 1)
	tiles := New(f.Open, 2, Bytes)
	defer tiles.Close()
	var first []byte
	for range 3 {
		raw, err := tiles.Tile(t.Context(), all[0], 10, 2, 1)
		if err == nil {
			err = isTile(raw, 0, 600-508+1, 400-254+1)
		}
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = raw
		}
		if &raw[0] != &first[0] {
			t.Error("the tile was made again")
		}
	}
	if f.opens.Load() != 1 {
		t.Errorf("opened %d times", f.opens.Load())
	}
	if _, err := tiles.Tile(t.Context(), all[0], 10, 3, 0); coverslip.KindOf(err) != coverslip.NotFound || f.opens.Load() != 1 {
		t.Errorf("a tile outside: %v", err)
	}
}

func TestFailureIsToldAndTriedAgain(t *testing.T) {
	f, all := slides(t, 1)
	tiles := New(f.Open, 1, Bytes)
	defer tiles.Close()
	for _, kind := range []coverslip.Kind{coverslip.Unavailable, coverslip.Conflict} {
		f.fail.Store(&coverslip.Error{Kind: kind, Op: "open"})
		if _, err := tiles.Tile(t.Context(), all[0], 9, 0, 0); coverslip.KindOf(err) != kind {
			t.Errorf("%s became %v", kind, err)
		}
	}
	f.fail.Store(nil)
	if _, err := tiles.Tile(t.Context(), all[0], 9, 0, 0); err != nil {
		t.Error(err)
	}
}

// Whoever waits for a tile that somebody else makes gets it although that one leaves; and one that
// panics takes nobody along.
func TestWhoLeavesTakesNobodyAlong(t *testing.T) {
	for _, panics := range []bool{false, true} {
		t.Run(fmt.Sprintf("Panics=%v", panics), func(t *testing.T) {
			f, all := slides(t, 1)
			opening, calls := make(chan struct{}), atomic.Int64{}
			goOn := make(chan struct{})
			tiles := New(func(ctx context.Context, s coverslip.Slide) (*tiler.Slide, func(), error) {
				if calls.Add(1) > 1 {
					return f.Open(ctx, s)
				}
				close(opening)
				if panics {
					<-goOn
					panic("made to")
				}
				<-ctx.Done()
				return nil, nil, ctx.Err()
			}, 1, Bytes)
			defer tiles.Close()
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			left := make(chan error)
			go func() {
				defer func() {
					if recover() != nil {
						left <- errors.New("panic")
					}
				}()
				_, err := tiles.Tile(ctx, all[0], 9, 0, 0)
				left <- err
			}()
			<-opening
			stayed := make(chan error)
			for _, tile := range []int{0, 1} { // one waits for the tile, the other for the slide
				go func() {
					_, err := tiles.Tile(t.Context(), all[0], 9, tile, 0)
					stayed <- err
				}()
			}
			leave()
			close(goOn)
			if err := <-left; err == nil || !panics && !errors.Is(err, context.Canceled) {
				t.Errorf("who left got %v", err)
			}
			for range 2 {
				if err := <-stayed; err != nil {
					t.Errorf("who stayed got %v", err)
				}
			}
		})
	}
}

func TestSlideNobodyLooksAtIsClosed(t *testing.T) {
	f, all := slides(t, 1)
	synctest.Test(t, func(t *testing.T) {
		tiles := New(f.Open, 2, Bytes)
		_, leave, err := tiles.slides.enter(t.Context(), all[0])
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * idle) // the bubble's clock
		if f.open.Load() != 1 {
			t.Error("closed while in use")
		}
		leave()
		time.Sleep(idle - time.Second)
		if f.open.Load() != 1 {
			t.Error("closed too early")
		}
		_, leave, err = tiles.slides.enter(t.Context(), all[0])
		if err != nil || f.opens.Load() != 1 {
			t.Errorf("opened %d times, %v", f.opens.Load(), err)
		}
		time.Sleep(2 * time.Second)
		leave()
		time.Sleep(idle + time.Second)
		if f.open.Load() != 0 {
			t.Error("still open")
		}
		tiles.Close()
	})
}
