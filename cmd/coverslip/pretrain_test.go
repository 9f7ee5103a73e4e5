package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/storage"
	"coverslip/storage/bagfile"
)

// bagCohort makes a cohort of n slides with bags of small features under the encoder "tiny", as tiles and as
// two views.
func bagCohort(t *testing.T, data string, n int) {
	t.Helper()
	p := connected(t, data)
	defer p.Close()
	const tiles, dim = 20, 12
	for i := range n {
		rng := rand.New(rand.NewPCG(7, uint64(i)))
		class := i % 2
		id := coverslip.SlideID(strings.Repeat("0", 60) + string("0123456789abcdef"[i/16%16]) + string("0123456789abcdef"[i%16]) + "aa")
		if _, _, err := p.DB.Register(t.Context(), coverslip.Slide{ID: id, Name: "s" + string(id[60:]) + ".svs", Location: "/nowhere/" + string(id), State: coverslip.Embedded}); err != nil {
			t.Fatal(err)
		}
		if err := p.DB.AddToCohort(t.Context(), "some", coverslip.Member{Slide: id, Patient: string(id), Labels: map[string]any{"kind": []string{"a", "b"}[class]}}); err != nil {
			t.Fatal(err)
		}
		draw := func(count int) ([]float32, []coverslip.Tile) {
			x, at := make([]float32, count*dim), make([]coverslip.Tile, count)
			for k := range x {
				x[k] = float32(rng.NormFloat64() + 2*float64(class)*float64(k%2) + math.Sin(float64(i*7+k%dim)))
			}
			for k := range at {
				at[k] = coverslip.Tile{X: int64(k%5) * 224, Y: int64(k/5) * 224}
			}
			return x, at
		}
		meta := bagfile.Metadata{Slide: id, SlideMPP: 0.5, MPP: 0.5, TileSize: 224, Encoder: "tiny"}
		plan := coverslip.PlanParams{MPP: 0.5, Size: 224}
		for _, views := range []*coverslip.Views{nil, {Count: 2, Tiles: 10, Augment: "[]", Seed: 1}} {
			bag := coverslip.Bag{Key: strings.Repeat("0", 60) + string(id[60:62]) + map[bool]string{true: "01", false: "02"}[views == nil], Slide: id, Encoder: "tiny", Tiles: tiles, Dim: dim, Plan: plan, Views: views}
			x, at := draw(tiles)
			path := filepath.Join(t.TempDir(), "bag")
			file, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			if views == nil {
				w, err := bagfile.NewWriter(file, meta, at, dim)
				if err == nil {
					err = w.Append(x)
				}
				if err == nil {
					err = w.Close()
				}
				if err != nil {
					t.Fatal(err)
				}
			} else {
				w, err := bagfile.NewViewWriter(file, meta, [][]coverslip.Tile{at[:10], at[10:]}, dim)
				for k := 0; err == nil && k < tiles; k++ {
					err = w.Put(k, x[k*dim:(k+1)*dim])
				}
				if err == nil {
					err = w.Close()
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			_ = file.Close()
			if err := keepFile(context.Background(), p.Blobs, ingest.BagBlob(bag.Key), path); err != nil {
				t.Fatal(err)
			}
			if err := p.DB.PutBag(t.Context(), bag); err != nil {
				t.Fatal(err)
			}
			if views == nil { // as import bags leaves it
				if err := p.DB.PutEmbedding(t.Context(), coverslip.Embedding{Slide: id, Bag: bag.Key, Encoder: "tiny", Aggregator: "mean", Vector: x[:dim]}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// trained runs pretrain and returns the aggregator's hash.
func trained(t *testing.T, data string, args ...string) string {
	t.Helper()
	code, out, stderr := coverslipRun(t, append([]string{"--json", "pretrain", "--cohort", "some", "--encoder", "tiny", "--width", "16", "--tiles", "6", "--batch", "8", "--data", data}, args...)...)
	if code != exitDone {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var last struct{ SHA256 string }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.SHA256 == "" {
		t.Fatal(err, out)
	}
	return last.SHA256
}

func TestPretrainEmbedProbe(t *testing.T) {
	data := database(t)
	bagCohort(t, data, 24)
	hash := trained(t, data, "--out", "first", "--epochs", "6", "--label", "kind")
	t.Run("EqualSettingsGiveEqualFilesOnAnyNumberOfCores", func(t *testing.T) {
		// The name stands in the card, so compare weights through embeddings.
		trained(t, data, "--out", "second", "--epochs", "6", "--workers", "1")
		if a, b := embedded(t, data, "first"), embedded(t, data, "second"); a != b {
			t.Error("embeddings differ")
		}
	})
	t.Run("StoppedAndResumedItIsTheSame", func(t *testing.T) {
		// Stopped by a limit on epochs would be other settings: stop by a cancelled context instead.
		ctx, cancel := context.WithCancel(t.Context())
		w := &cancelAfter{n: 3, cancel: cancel}
		if code := run(ctx, []string{"--json", "pretrain", "--cohort", "some", "--encoder", "tiny", "--width", "16", "--tiles", "6", "--batch", "8", "--data", data, "--out", "stopped", "--epochs", "6"}, w, os.Stderr); code == exitDone {
			t.Fatal("it was not stopped")
		}
		trained(t, data, "--out", "stopped", "--epochs", "6", "--resume")
		if a, b := embedded(t, data, "first"), embedded(t, data, "stopped"); a != b {
			t.Error("embeddings differ")
		}
	})
	t.Run("AStoppedRunIsNotResumedWithOtherSettings", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		args := []string{"--json", "pretrain", "--cohort", "some", "--encoder", "tiny", "--width", "16", "--batch", "8", "--data", data, "--out", "half", "--epochs", "6"}
		if code := run(ctx, args, &cancelAfter{n: 3, cancel: cancel}, os.Stderr); code == exitDone {
			t.Fatal("it was not stopped")
		}
		code, _, stderr := coverslipRun(t, append(args, "--resume", "--seed", "9")...)
		if code != exitFailed || !strings.Contains(stderr, "made with other settings") {
			t.Errorf("exit %d: %s", code, stderr)
		}
	})
	t.Run("AnotherSeedIsAnother", func(t *testing.T) {
		if trained(t, data, "--out", "other", "--epochs", "6", "--seed", "2") == hash {
			t.Error("equal")
		}
	})
	t.Run("EmbedAgainDoesNothing", func(t *testing.T) {
		for i, want := range []int{24, 0} {
			if _, r := embedResults(t, data, "--aggregator", "mean+sd"); r.Changed != want || r.Slides != 24 || r.Dim != 24 {
				t.Errorf("time %d: %+v", i+1, r)
			}
		}
	})
	t.Run("ALayerOfTheProjectorServesToo", func(t *testing.T) {
		if _, r := embedResults(t, data, "--aggregator", "first:projector.1"); r.Dim != 512 || r.Changed != 24 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("ModelsKnowsIt", func(t *testing.T) {
		for _, args := range [][]string{{"models", "list"}, {"models", "show", "first"}, {"models", "verify", "first"}} {
			if code, out, stderr := coverslipRun(t, append(args, "--data", data)...); code != exitDone || !strings.Contains(out, "first") {
				t.Errorf("%v: exit %d, %s%s", args, code, out, stderr)
			}
		}
		found, err := filepath.Glob(filepath.Join(data, "blobs", "models", hash, "*"))
		if err != nil || len(found) != 1 {
			t.Fatal(found, err)
		}
		raw, err := os.ReadFile(found[0])
		if err == nil {
			raw[len(raw)-1] ^= 1
			err = errors.Join(os.Remove(found[0]), os.WriteFile(found[0], raw, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
		if code, out, _ := coverslipRun(t, "models", "verify", "first", "--data", data); code != exitFailed || !strings.Contains(out, "SHA-256") {
			t.Errorf("a changed file: exit %d, %s", code, out)
		}
		raw[len(raw)-1] ^= 1
		if err := os.WriteFile(found[0], raw, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("StoredViews", func(t *testing.T) {
		trained(t, data, "--out", "views", "--epochs", "3", "--views", "--kind", "sparse")
		if _, r := embedResults(t, data, "--aggregator", "views"); r.Changed != 24 || r.Dim != 16 {
			t.Errorf("%+v", r)
		}
	})
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"NameTaken":         {[]string{"--out", "first"}, "there is one of this name"},
		"BatchAboveCohort":  {[]string{"--out", "x", "--batch", "64"}, "a batch of 64 slides, and the cohort has 24 (give --batch 24 or less)"},
		"NoSuchObjective":   {[]string{"--out", "x", "--objective", "simsiam"}, "simsiam"},
		"NoSuchLabel":       {[]string{"--out", "x", "--label", "grade"}, "no label column"},
		"LabelsNeeded":      {[]string{"--out", "x", "--objective", "supcon"}, "--label"},
		"NoSuchCohort":      {[]string{"--out", "x", "--cohort", "none"}, "none"},
		"OtherEncoder":      {[]string{"--out", "x", "--encoder", "uni"}, "uni"},
		"TemperatureOfNone": {[]string{"--out", "x", "--temperature", "-1"}, "temperature"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := coverslipRun(t, append([]string{"pretrain", "--cohort", "some", "--encoder", "tiny", "--batch", "8", "--epochs", "2", "--data", data}, c.args...)...)
			if code == exitDone || !strings.Contains(stderr, c.want) {
				t.Errorf("exit %d: %s", code, stderr)
			}
		})
	}
}

// cancelAfter stops the program after so many lines.
type cancelAfter struct {
	n      int
	cancel func()
}

func (c *cancelAfter) Write(p []byte) (int, error) {
	if c.n--; c.n == 0 {
		c.cancel()
	}
	return len(p), nil
}

func embedResults(t *testing.T, data string, args ...string) (string, embedResult) {
	t.Helper()
	code, out, stderr := coverslipRun(t, append([]string{"--json", "embed", "--cohort", "some", "--encoder", "tiny", "--data", data}, args...)...)
	if code != exitDone {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	var r embedResult
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err, out)
	}
	return out, r
}

// embedded are the cohort's embeddings by an aggregator, as text.
func embedded(t *testing.T, data, aggregator string) string {
	t.Helper()
	embedResults(t, data, "--aggregator", aggregator)
	p := connected(t, data)
	defer p.Close()
	var b strings.Builder
	for n, err := range p.DB.Embeddings(t.Context(), storage.EmbeddingFilter{Encoder: "tiny", Aggregator: aggregator}) {
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := json.Marshal(n.Vector)
		b.Write(raw)
	}
	return b.String()
}

func TestFault29ANaNStopsTrainingAndNamesIt(t *testing.T) {
	data := database(t)
	bagCohort(t, data, 10)
	bags, err := filepath.Glob(filepath.Join(data, "blobs", "bags", "*01.safetensors"))
	if err != nil || len(bags) != 10 {
		t.Fatal(bags, err)
	}
	raw, err := os.ReadFile(bags[3]) // a bag that is spoilt on the disk: none is written so
	if err == nil {
		binary.LittleEndian.PutUint32(raw[len(raw)-4:], math.Float32bits(float32(math.NaN())))
		err = errors.Join(os.Remove(bags[3]), os.WriteFile(bags[3], raw, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	code, _, stderr := coverslipRun(t, "pretrain", "--cohort", "some", "--encoder", "tiny", "--batch", "8", "--epochs", "3", "--data", data, "--out", "x")
	if code != exitFailed || !strings.Contains(stderr, "holds NaN") || !strings.Contains(stderr, "encode the slide again") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// TestPretrainOnACohortThatIsNotWhole takes a file of views away, and then gives a slide a bag of other features.
func TestPretrainOnACohortThatIsNotWhole(t *testing.T) {
	data := database(t)
	bagCohort(t, data, 10)
	fails := func(says ...string) {
		t.Helper()
		code, _, stderr := coverslipRun(t, "pretrain", "--cohort", "some", "--encoder", "tiny", "--batch", "8", "--epochs", "3", "--views", "--data", data, "--out", "x")
		for _, s := range says {
			if code != exitFailed || !strings.Contains(stderr, s) {
				t.Errorf("exit %d, without %q: %s", code, s, stderr)
			}
		}
	}
	bags, err := filepath.Glob(filepath.Join(data, "blobs", "bags", "*02.safetensors"))
	if err != nil || len(bags) != 10 {
		t.Fatal(bags, err)
	}
	if err := os.Remove(bags[3]); err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSuffix(filepath.Base(bags[3]), ".safetensors")
	fails("s03aa.svs", "its file is gone from the store", "encode the slide again")

	p := connected(t, data)
	bag, err := p.DB.Bag(t.Context(), key)
	if err == nil {
		bag.Key, bag.Dim = strings.Repeat("f", 64), 7
		err = p.DB.PutBag(t.Context(), bag)
	}
	p.Close()
	if err != nil {
		t.Fatal(err)
	}
	fails("not made alike", "12 and of 7 numbers", "same settings")
}
