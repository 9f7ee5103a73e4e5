package slidessl_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"coverslip"
	"coverslip/slidessl"
	"coverslip/slidessl/slidessltest"
	"coverslip/slidessl/view"
)

// slides is a cohort of slides of so many tiles each, of features drawn at random.
func slides(tiles ...int) *slidessltest.Cohort {
	const dim = 6
	rng := rand.New(rand.NewPCG(1, 2))
	e := &slidessltest.Encoded{Dim: dim, Views: make([][]float32, 1)}
	c := &slidessltest.Cohort{Looks: []*slidessltest.Encoded{e}}
	for n, count := range tiles {
		var s slidessltest.Slide
		for k := range count {
			s.Tiles, e.Tiles = append(s.Tiles, e.Tiles), e.Tiles+1
			s.Places = append(s.Places, view.Place{X: float64(k % 4), Y: float64(k / 4)})
			for range dim {
				e.Views[0] = append(e.Views[0], float32(rng.NormFloat64()+float64(n%3)))
			}
		}
		c.Slides = append(c.Slides, s)
	}
	return c
}

func small(epochs int) slidessl.Settings {
	s := slidessl.DefaultSettings("mlp", "simclr", 6)
	s.Architecture.Width, s.Batch, s.Epochs, s.Warmup, s.View.Tiles = 8, 4, epochs, 0, 4
	return s
}

func TestACohortThatCannotBeLearnedFromIsRefused(t *testing.T) {
	for says, c := range map[string]*slidessltest.Cohort{
		"there is 1 slide":                slides(8),
		"a batch of 4 slides, and":        slides(8, 8, 8),
		"a batch of 4 slides, and the co": slides(8, 0, 8, 0, 8), // empty bags do not count
	} {
		_, err := slidessl.Train(t.Context(), small(2), c, slidessl.Run{})
		if coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), says) || coverslip.HintOf(err) == "" {
			t.Errorf("%q: %v", says, err)
		}
	}
}

// TestADiskThatFillsDuringACheckpointLeavesTheLastOne fills the disk between two checkpoints: the run says so,
// the last good one stays whole, and when there is room again the run ends as if nothing had been.
func TestADiskThatFillsDuringACheckpointLeavesTheLastOne(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=32m"); err != nil {
		t.Skipf("a small disk cannot be mounted here (it takes root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c, file, filler := slides(8, 8, 8, 8, 8, 8), filepath.Join(dir, "run.safetensors"), filepath.Join(dir, "filler")
	undisturbed, err := slidessl.Train(t.Context(), small(6), c, slidessl.Run{})
	if err != nil {
		t.Fatal(err)
	}
	var kept []byte
	_, err = slidessl.Train(t.Context(), small(6), c, slidessl.Run{Checkpoint: file, Every: 2, Progress: func(p slidessl.Point) {
		if p.Epoch == 3 {
			if kept, err = os.ReadFile(file); err != nil {
				t.Error(err)
			}
			f, err := os.Create(filler)
			if err != nil {
				t.Error(err)
				return
			}
			for err == nil {
				_, err = f.Write(make([]byte, 64<<10))
			}
			_ = f.Close()
		}
	}})
	if coverslip.KindOf(err) != coverslip.Full || !strings.Contains(coverslip.HintOf(err), "--resume") || !strings.Contains(err.Error(), dir) {
		t.Fatalf("on a full disk: %v (%s)", err, coverslip.HintOf(err))
	}
	now, err := os.ReadFile(file)
	if err != nil || len(kept) == 0 || !bytes.Equal(now, kept) {
		t.Fatalf("the last good checkpoint: %d bytes, now %d, %v", len(kept), len(now), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	first := 0
	again, err := slidessl.Train(t.Context(), small(6), c, slidessl.Run{Checkpoint: file, Every: 2, Resume: true, Progress: func(p slidessl.Point) {
		if first == 0 {
			first = p.Epoch
		}
	}})
	if err != nil || first != 3 {
		t.Fatalf("resumed at epoch %d: %v", first, err)
	}
	for i, p := range undisturbed.Network.Params() {
		for k, v := range p.Value {
			if again.Network.Params()[i].Value[k] != v {
				t.Fatalf("%s differs after the resume", p.Name)
			}
		}
	}
}
