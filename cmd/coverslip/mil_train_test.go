package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coverslip"
	"coverslip/internal/ingest"
	"coverslip/mil"
	"coverslip/storage"
	"coverslip/storage/bagfile"
)

// milCohort makes a cohort of slides with bags, the class of which is whether one tile has a large first feature.
// Slides beyond 60 are in a cohort of their own, new.
func milCohort(t *testing.T, data string, n int) {
	t.Helper()
	p := connected(t, data)
	defer p.Close()
	const dim = 6
	rng := rand.New(rand.NewPCG(3, 4))
	err := p.DB.InTx(t.Context(), func(tx *storage.Tx) error {
		for i := range n {
			id := coverslip.SlideID(fmt.Sprintf("%064x", i+1))
			name := fmt.Sprintf("slide %d.svs", i)
			if _, _, err := tx.Register(t.Context(), coverslip.Slide{ID: id, Name: name, Location: "/nowhere/" + name, State: coverslip.Embedded}); err != nil {
				return err
			}
			m := coverslip.Member{Slide: id, Patient: fmt.Sprintf("P%d", i), Labels: map[string]any{"tumour type": []string{"lobular carcinoma", "ductal carcinoma"}[i%2]}}
			switch i {
			case 3:
				m.Labels = nil
			case 4: // and an empty bag
				m.Labels["tumour type"] = "ductal carcinoma"
			case 70:
				m.Labels["tumour type"] = "mixed"
			case 71:
				m.Labels = nil
			}
			cohort := "some"
			if i >= 60 {
				cohort = "new"
			}
			if err := tx.AddToCohort(t.Context(), cohort, m); err != nil {
				return err
			}
			if i == 5 { // no bag
				continue
			}
			tiles := make([]coverslip.Tile, 1+rng.IntN(9))
			if i == 4 {
				tiles = nil
			}
			rows, mean := make([]float32, len(tiles)*dim), make([]float32, dim)
			for k := range rows {
				rows[k] = float32(rng.NormFloat64())
			}
			if i%2 == 1 && len(tiles) > 0 {
				rows[rng.IntN(len(tiles))*dim] = 7
			}
			for k, v := range rows {
				mean[k%dim] += v / float32(len(tiles))
			}
			for k := range tiles {
				tiles[k].X, tiles[k].Y = int64(k%3)*224, int64(k/3)*224
			}
			var file bytes.Buffer
			w, err := bagfile.NewWriter(&file, bagfile.Metadata{TileSize: 224, MPP: 0.5}, tiles, dim)
			if err != nil {
				return err
			}
			if err := w.Append(rows); err != nil {
				return err
			}
			if err := w.Close(); err != nil {
				return err
			}
			bag := coverslip.Bag{Key: fmt.Sprintf("%064x", 1000+i), Slide: id, Encoder: "tiny", Tiles: len(tiles), Dim: dim, Bytes: int64(file.Len())}
			if err := p.Blobs.Put(t.Context(), ingest.BagBlob(bag.Key), &file, int64(file.Len())); err != nil {
				return err
			}
			if err := tx.PutBag(t.Context(), bag); err != nil {
				return err
			}
			mean[1] += 1e-3
			if err := tx.PutEmbedding(t.Context(), coverslip.Embedding{Slide: id, Bag: bag.Key, Encoder: "tiny", Aggregator: "mean", Vector: mean}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMILIsTrainedJudgedSavedAndApplied(t *testing.T) {
	data, dir := database(t), t.TempDir()
	milCohort(t, data, 72)
	file := filepath.Join(dir, "abmil.safetensors")
	train := func(args ...string) (int, string, string) {
		var out, errs strings.Builder
		code := run(t.Context(), append([]string{"mil", "train", "--cohort", "some", "--label", "tumour type", "--encoder", "tiny", "-k", "3", "--hidden", "16", "--epochs", "40", "--lr", "0.003", "--bootstraps", "50", "--data", data}, args...), &out, &errs)
		return code, out.String(), errs.String()
	}
	code, out, errs := train("--model", "abmil,max", "--save", file, "--json")
	if code != 0 {
		t.Fatal(code, errs)
	}
	var r struct {
		Run struct {
			ID      string
			Methods []coverslip.Method
			LeftOut []coverslip.LeftOut `json:"left_out"`
		}
		Groups []struct {
			Methods []struct {
				Name    string
				Figures []struct {
					Name  string
					Value float64
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err, out)
	}
	figures := map[string]float64{}
	for _, m := range r.Groups[0].Methods {
		for _, f := range m.Figures {
			if f.Name == "auc" {
				figures[m.Name] = f.Value
			}
		}
	}
	for _, name := range []string{"abmil", "max", "mean pooling", "majority class"} {
		if _, there := figures[name]; !there {
			t.Errorf("no figure of %s: %v", name, figures)
		}
	}
	if figures["abmil"] < 0.9 || figures["majority class"] != 0.5 {
		t.Errorf("%v", figures)
	}
	reasons := fmt.Sprint(r.Run.LeftOut)
	if len(r.Run.LeftOut) != 3 || !strings.Contains(reasons, "no label") || !strings.Contains(reasons, "empty") {
		t.Errorf("left out: %v", r.Run.LeftOut)
	}

	k, err := mil.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if k.Card.Cohort != "some" || k.Card.Encoder != "tiny" || len(k.Card.Slides) != 57 || k.Card.Data == "" || k.Card.Figures["auc"] < 0.9 || len(k.Card.Names) != 2 {
		t.Errorf("card %+v", k.Card)
	}
	var list, warn strings.Builder
	if code := run(t.Context(), []string{"mil", "predict", file, "--cohort", "some", "--data", data, "--json", "--out", filepath.Join(dir, "p.csv")}, &list, &warn); code != exitFailed {
		t.Errorf("two slides have no bag with tiles, and the code is %d: %s", code, warn.String())
	}
	hit, trained, without := 0, 0, 0
	for i, line := range strings.Split(strings.TrimSpace(list.String()), "\n") {
		var p predicted
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatal(err)
		}
		if p.Reason != "" {
			without++
		}
		if p.Trained {
			trained++
		}
		if p.Class == []string{"lobular carcinoma", "ductal carcinoma"}[i%2] {
			hit++
		}
	}
	if hit < 54 || trained != 57 || without != 2 {
		t.Errorf("%d right, %d trained on, %d without", hit, trained, without)
	}
	if raw, err := os.ReadFile(filepath.Join(dir, "p.csv")); err != nil || strings.Count(string(raw), "\n") != 61 {
		t.Errorf("%v %s", err, raw)
	}

	// Of slides it has not seen a run is kept, beside the baselines, and shown again.
	list.Reset()
	if code := run(t.Context(), []string{"mil", "predict", file, "--cohort", "new", "--data", data, "--json", "--bootstraps", "50"}, &list, &warn); code != 0 {
		t.Fatalf("predict: %d %s", code, warn.String())
	}
	lines := strings.Split(strings.TrimSpace(list.String()), "\n")
	for _, args := range [][]string{nil, {"runs", "show"}} {
		line := lines[len(lines)-1]
		var kept struct {
			Run     coverslip.Run
			Slides  int
			Unknown int
			Groups  []struct {
				Methods []struct {
					Name    string
					Figures []struct {
						Name  string
						Value float64
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(line), &kept); err != nil {
			t.Fatal(err, line)
		}
		if args != nil {
			list.Reset()
			if code := run(t.Context(), append(args, kept.Run.ID, "--data", data, "--json", "--bootstraps", "50"), &list, &warn); code != 0 || strings.TrimSpace(list.String()) != line {
				t.Errorf("shown again it is another: %d\n%s\n%s", code, line, list.String())
			}
			continue
		}
		if len(lines) != 13 || kept.Slides != 10 || kept.Unknown != 1 || len(kept.Run.LeftOut) != 1 || !strings.Contains(kept.Run.LeftOut[0].Reason, "mixed") {
			t.Errorf("%d lines, %d slides, %d unknown, left out %v", len(lines), kept.Slides, kept.Unknown, kept.Run.LeftOut)
		}
		m := kept.Groups[0].Methods
		if len(m) != 3 || m[0].Name != "abmil" || m[0].Figures[0].Name != "auc" || m[0].Figures[0].Value != 1 || m[1].Name != "mean pooling" || m[2].Figures[0].Value != 0.5 {
			t.Errorf("methods %+v", m)
		}
		if strings.Count(kept.Run.Splits, "\ttrain") != 57 || strings.Count(kept.Run.Splits, "\ttest") != 11 {
			t.Errorf("splits: %s", kept.Run.Splits)
		}
	}
	var shown strings.Builder
	if code := run(t.Context(), []string{"mil", "predict", file, "--cohort", "new", "--data", data, "--bootstraps", "0"}, &shown, &warn); code != 0 || !strings.Contains(shown.String(), "gain over mean pooling") || !strings.Contains(shown.String(), "1 more predicted") {
		t.Errorf("%d %s", code, shown.String())
	}
	if code := run(t.Context(), []string{"mil", "predict", file, "--cohort", "new", "--label", "grade", "--data", data}, &shown, &warn); code != exitFailed || !strings.Contains(warn.String(), `no label column "grade"`) {
		t.Errorf("a column that is none: %d %s", code, warn.String())
	}

	again, second, errs := train("--model", "abmil,max", "--json")
	if again != 0 || !strings.Contains(second, r.Run.ID) {
		t.Errorf("the same training is another run: %d %s", again, errs)
	}
	for _, bad := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--model", "resnet"}, exitUsage, "transmil"},
		{[]string{"--model", "abmil", "--resume"}, exitUsage, "--save"},
		{[]string{"--model", "abmil", "--dropout", "1.5"}, exitFailed, "dropout"},
	} {
		if code, _, errs := train(bad.args...); code != bad.code || !strings.Contains(errs, bad.says) {
			t.Errorf("%v: %d %s", bad.args, code, errs)
		}
	}
	if err := os.WriteFile(file, []byte("no network"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := run(t.Context(), []string{"mil", "predict", file, "--cohort", "some", "--data", data}, &list, &warn); code != exitFailed {
		t.Errorf("a file that is none: %d", code)
	}
}
