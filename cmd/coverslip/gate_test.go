package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"coverslip"
	"coverslip/storage"
)

// usualCohort makes slides whose mean embeddings lie around one.
func usualCohort(t *testing.T, data, cohort, encoder string, around []float32, n int) {
	t.Helper()
	p := connected(t, data)
	defer p.Close()
	rng := rand.New(rand.NewPCG(5, 6))
	err := p.DB.InTx(t.Context(), func(tx *storage.Tx) error {
		for i := range n {
			id := coverslip.SlideID(fmt.Sprintf("%x%063x", cohort[0]%16, i+1))
			if _, _, err := tx.Register(t.Context(), coverslip.Slide{ID: id, Name: fmt.Sprintf("%s-%d.svs", cohort, i), Location: "/nowhere/" + string(id), State: coverslip.Embedded}); err != nil {
				return err
			}
			if err := tx.AddToCohort(t.Context(), cohort, coverslip.Member{Slide: id}); err != nil {
				return err
			}
			bag := coverslip.Bag{Key: string(id), Slide: id, Encoder: encoder, Tiles: 1, Dim: len(around)}
			if err := tx.PutBag(t.Context(), bag); err != nil {
				return err
			}
			v := make([]float32, len(around))
			for k := range v {
				v[k] = around[k] + float32(0.003*rng.NormFloat64())
			}
			if err := tx.PutEmbedding(t.Context(), coverslip.Embedding{Slide: id, Bag: bag.Key, Encoder: encoder, Aggregator: "mean", Vector: v}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAGateKeepsStrangeSlidesOut(t *testing.T) {
	needsRuntime(t)
	data := dataFolder(t)
	code, _, stderr := coverslipRun(t, "ingest", bundled, "--wait", "--data", data)
	if code != exitDone {
		t.Fatal(stderr)
	}
	p := connected(t, data)
	slides, err := p.DB.Slides(t.Context(), storage.SlideFilter{})
	if err != nil {
		t.Fatal(err)
	}
	made, err := p.DB.Embedding(t.Context(), slides[0].ID, "efficientnet-lite0", "mean")
	p.Close()
	if err != nil {
		t.Fatal(err)
	}
	turned := append(append([]float32(nil), made.Vector[640:]...), made.Vector[:640]...)
	usualCohort(t, data, "alike", "efficientnet-lite0", made.Vector, 40)
	usualCohort(t, data, "others", "efficientnet-lite0", turned, 40)
	for cohort, gate := range map[string]string{"alike": "good", "others": "wrong"} {
		if code, out, stderr := coverslipRun(t, "gate", "fit", "--cohort", cohort, "--out", gate, "--score", "nearest", "--data", data); code != exitDone || !strings.Contains(out, "threshold") {
			t.Fatalf("exit %d: %s%s", code, out, stderr)
		}
	}
	members := func(cohort string) int {
		code, out, _ := coverslipRun(t, "--json", "slides", "list", "--cohort", cohort, "--data", data)
		if code != exitDone {
			return 0
		}
		return strings.Count(out, "\n")
	}
	code, out, _ := coverslipRun(t, "ingest", bundled, "--wait", "--cohort", "new", "--gate", "wrong", "--data", data)
	if code != exitFailed || !strings.Contains(out, "strange to gate wrong") || members("new") != 0 {
		t.Errorf("a strange slide: exit %d, %s, %d in the cohort", code, out, members("new"))
	}
	if code, out, _ := coverslipRun(t, "ingest", bundled, "--wait", "--cohort", "new", "--gate", "good", "--data", data); code != exitDone || members("new") != 1 {
		t.Errorf("a usual slide: exit %d, %s, %d in the cohort", code, out, members("new"))
	}
	if code, _, _ := coverslipRun(t, "ingest", bundled, "--wait", "--cohort", "more", "--gate", "wrong", "--threshold", "10", "--data", data); code != exitDone || members("more") != 1 {
		t.Errorf("with a threshold of its own: exit %d", code)
	}
	t.Run("Check", func(t *testing.T) {
		code, out, stderr := coverslipRun(t, "--json", "gate", "check", "good", "--data", data)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		strange, usual := 0, 0
		for _, l := range lines {
			var g gateLine
			if err := json.Unmarshal([]byte(l), &g); err != nil {
				t.Fatal(err, l)
			}
			switch {
			case strings.HasPrefix(g.Name, "others") && !g.Passes:
				strange++
			case g.Passes:
				usual++
			}
		}
		if code != exitFailed || strange != 40 || usual < 38 {
			t.Errorf("exit %d, %d strange and %d usual of %d: %s", code, strange, usual, len(lines), stderr)
		}
		if code, _, stderr := coverslipRun(t, "gate", "check", "good", slides[0].ID.Short(), "--data", data); code != exitDone {
			t.Errorf("the real slide alone: exit %d, %s", code, stderr)
		}
	})
	for name, c := range map[string]struct {
		says string
		args []string
	}{
		"no such gate":    {"gate fit", []string{"gate", "check", "none"}},
		"another encoder": {"fitted under", []string{"gate", "check", "good", "--encoder", "other"}},
		"too few":         {"20 slides or more", []string{"gate", "fit", "--cohort", "new", "--out", "x"}},
		"no cohort":       {"none of its slides", []string{"gate", "fit", "--cohort", "nowhere", "--out", "x"}},
		"without wait":    {"--wait", []string{"ingest", bundled, "--gate", "good"}},
		"a bad name":      {"letters, digits", []string{"gate", "fit", "--cohort", "new", "--out", "../x"}},
	} {
		if code, _, stderr := coverslipRun(t, append(c.args, "--data", data)...); code == exitDone || !strings.Contains(stderr, c.says) {
			t.Errorf("%s: exit %d, %s", name, code, stderr)
		}
	}
}
