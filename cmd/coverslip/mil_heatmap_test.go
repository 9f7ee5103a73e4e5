package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"coverslip/mil"
	"coverslip/mil/heatmap"
)

// attentive trains a small classifier on made-up bags of features as long as those of the encoder that ships.
func attentive(t *testing.T, model mil.Model) string {
	t.Helper()
	const dim, tiles = 1280, 5
	rng := rand.New(rand.NewPCG(1, 1))
	bags, y, all := make(mil.HeldBags, 12), make([]int, 12), []int(nil)
	for i := range bags {
		y[i] = i % 2
		bags[i] = &mil.Held{Name: fmt.Sprint(i), D: dim, Rows: make([]float32, tiles*dim)}
		for j := range bags[i].Rows {
			bags[i].Rows[j] = float32(math.Abs(rng.NormFloat64()))
		}
		bags[i].Rows[0] += float32(4 * y[i])
		all = append(all, i)
	}
	c := mil.Defaults(model)
	c.Hidden, c.Attend, c.Epochs, c.Patience = []int{8}, 8, 2, 0
	k, _, err := mil.Train(t.Context(), bags, y, 2, all, nil, c, mil.TrainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	k.Card.Names, k.Card.Encoder = []string{"ductal", "lobular type"}, "efficientnet-lite0"
	path := filepath.Join(t.TempDir(), string(model)+".safetensors")
	if err := k.Save(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHeatmap(t *testing.T) {
	needsRuntime(t)
	data := dataFolder(t)
	if code, _, stderr := coverslipRun(t, "ingest", bundled, "--wait", "--data", data); code != exitDone {
		t.Fatal(stderr)
	}
	model := attentive(t, mil.ABMIL)
	values := func(dir string) (v, shown []float64) {
		t.Helper()
		f, err := os.Open(filepath.Join(dir, "tiles.csv"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		rows, err := csv.NewReader(f).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows[1:] {
			a, _ := strconv.ParseFloat(r[3], 64)
			b, _ := strconv.ParseFloat(r[4], 64)
			v, shown = append(v, a), append(shown, b)
		}
		return v, shown
	}

	dir := filepath.Join(t.TempDir(), "map")
	code, out, stderr := coverslipRun(t, "mil", "heatmap", "--slide", "ed92d5a9", "--model", model, "--out", dir, "--data", data, "--json")
	if code != exitDone {
		t.Fatal(stderr)
	}
	var said struct {
		What  string
		Tiles int
		P     map[string]float64
	}
	if err := json.Unmarshal([]byte(out), &said); err != nil || said.What != "attention" || said.Tiles != 61 || math.Abs(said.P["ductal"]+said.P["lobular type"]-1) > 1e-6 {
		t.Errorf("%v %s", err, out)
	}
	attention, shown := values(dir)
	sum, lowest, highest := 0.0, 1.0, 0.0
	for i, v := range attention {
		sum += v
		lowest, highest = min(lowest, shown[i]), max(highest, shown[i])
	}
	if len(attention) != 61 || math.Abs(sum-1) > 1e-4 || lowest != 0 || highest != 1 {
		t.Errorf("%d tiles, attention sums to %g, shown from %g to %g", len(attention), sum, lowest, highest)
	}
	for name, width := range map[string]int{"heatmap.png": 1532, "tiles.png": 824} { // of 2220 × 2967, at most 2048 high
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		img, err := png.DecodeConfig(f)
		_ = f.Close()
		if err != nil || img.Width != width {
			t.Errorf("%s: %+v, %v", name, img, err)
		}
	}
	if raw, err := os.ReadFile(filepath.Join(dir, "tiles.geojson")); err != nil || strings.Count(string(raw), `"Polygon"`) != 61 || !json.Valid(raw) {
		t.Errorf("GeoJSON: %v", err)
	}

	evidence := filepath.Join(t.TempDir(), "evidence")
	if code, out, stderr := coverslipRun(t, "mil", "heatmap", "--slide", "ed92d5a9", "--model", model, "--show", "evidence", "--class", "lobular type", "--level", "0", "--out", evidence, "--data", data); code != exitDone || !strings.Contains(out, "evidence for lobular type") {
		t.Errorf("%s %s", out, stderr)
	}
	if v, shown := values(evidence); len(v) != 61 || shown[0]*v[0] < 0 {
		t.Errorf("evidence %v is shown as %v", v[0], shown[0])
	}
	f, err := os.Open(filepath.Join(evidence, "heatmap.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if img, err := png.DecodeConfig(f); err != nil || img.Width != 2220 {
		t.Errorf("on level 0: %+v, %v", img, err)
	}

	table := filepath.Join(t.TempDir(), "values.csv")
	if err := os.WriteFile(table, []byte("x,y,value\n0,0,1\n224,0,nan\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for says, args := range map[string][]string{
		`knows no class "papillary"`: {"--model", model, "--class", "papillary"},
		"there is no level 7":        {"--model", model, "--level", "7"},
		"at 224,0 is NaN":            {"--values", table},
		"has no attention":           {"--model", attentive(t, mil.MeanInstance), "--show", "attention"},
	} {
		out := filepath.Join(t.TempDir(), "out")
		code, _, stderr := coverslipRun(t, append([]string{"mil", "heatmap", "--slide", "ed92d5a9", "--out", out, "--data", data}, args...)...)
		if code != exitFailed || !strings.Contains(stderr, says) {
			t.Errorf("%v: exit %d, %s", args, code, stderr)
		}
		if entries, _ := os.ReadDir(out); len(entries) > 0 {
			t.Errorf("%v left %v", args, entries)
		}
	}
}

func FuzzValues(f *testing.F) {
	f.Add("x,y,value\n0,0,1\n224,0,0.5\n")
	f.Add("value,Y,x\nnan,1e300,-5\n")
	f.Add("x,y\n")
	f.Fuzz(func(t *testing.T, table string) {
		x, y, v, err := parseValues(strings.NewReader(table), "x.csv")
		if err != nil {
			return
		}
		m, err := heatmap.New("value", x, y, 224, v, heatmap.Rank)
		if err != nil {
			return
		}
		c := milHeatmapCmd{Level: -1}
		picture, scale, err := c.picture(nil, m, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b := m.Overlay(picture, scale, 0.5).Bounds(); b.Dx() > 4096 || b.Dy() > 4096 {
			t.Errorf("a picture of %v", b)
		}
	})
}
