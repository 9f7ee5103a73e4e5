package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"coverslip"
	"coverslip/storage/vector"
)

type benchSearchCmd struct {
	Sizes   []int `name:"size" default:"12000,100000" help:"Embeddings (${default})."`
	Dim     int   `default:"512" help:"Length of each (${default})."`
	Queries int   `default:"100" help:"Queries of a run (${default})."`
	Runs    int   `default:"5" help:"Runs of each, in turns (${default})."`
}

// Help is shown by coverslip bench search --help.
func (benchSearchCmd) Help() string {
	return `Example:
  coverslip bench search --json

The ten nearest of so many vectors, one query at a time, with and without a filter that lets every 32nd
through; beside FAISS flat and pgvector (exact, and hnsw with its recall) on the same vectors.`
}

const nearest, every32nd = 10, 32

// Run measures each size.
func (c *benchSearchCmd) Run(e *env) error {
	for _, n := range c.Sizes {
		if err := c.size(e, n); err != nil {
			return err
		}
	}
	return nil
}

// searchRun is the times of the queries of a run in ms, and what each found.
type searchRun struct {
	MS  []float64 `json:"ms"`
	IDs [][]int   `json:"ids"`
}

// searchCase gathers what was measured of one way to search.
type searchCase struct {
	medians []float64 // of each run
	ids     [][]int   // the last run's
}

func (s *searchCase) add(r searchRun) { s.medians, s.ids = append(s.medians, median(r.MS)), r.IDs }

func (c *benchSearchCmd) size(e *env, n int) error {
	random := rand.New(rand.NewSource(1))
	vectors, queries := c.draw(random, n), c.draw(random, c.Queries)
	index := vector.New(c.Dim)
	var some []string
	for i := range n {
		id := strconv.Itoa(i)
		if err := index.Upsert(id, vectors[i*c.Dim:(i+1)*c.Dim]); err != nil {
			return err
		}
		if i%every32nd == 0 {
			some = append(some, id)
		}
	}
	dir, err := os.MkdirTemp("", "coverslip-bench-")
	if err != nil {
		return diskError("write the vectors to measure with", os.TempDir(), err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // in the folder for what may go
	paths := []string{filepath.Join(dir, "vectors.f32"), filepath.Join(dir, "queries.f32")}
	for i, v := range [][]float32{vectors, queries} {
		if err := writeFloats(paths[i], v); err != nil {
			return err
		}
	}
	args := []string{paths[0], paths[1], strconv.Itoa(n), strconv.Itoa(c.Dim), strconv.Itoa(runtime.GOMAXPROCS(0))}
	others := map[string]*searchCase{}
	var peers []*peer
	for _, more := range [][]string{nil, {"--pgvector"}} {
		p, err := e.startPeer("search_peer.py", append(slices.Clone(args), more...)...)
		if err != nil {
			e.say("%v\n", err) // measure what can be
			continue
		}
		defer p.stop()
		peers = append(peers, p)
	}
	ways := map[string]vector.Among{"": {}, ", filtered": {IDs: some}}
	own := map[string]*searchCase{"": {}, ", filtered": {}}
	for range c.Runs {
		for name, among := range ways {
			run, err := c.search(e, index, queries, among)
			if err != nil {
				return err
			}
			own[name].add(run)
		}
		for _, p := range peers {
			var runs map[string]searchRun
			if err := p.ask(&runs); err != nil {
				return err
			}
			for name, run := range runs {
				if others[name] == nil {
					others[name] = &searchCase{}
				}
				others[name].add(run)
			}
		}
	}
	return c.report(e, n, own, others, c.plain(vectors, queries))
}

// report prints ours beside each peer.
func (c *benchSearchCmd) report(e *env, n int, own, others map[string]*searchCase, truth map[string][][]int) error {
	limit := 3.0 // ms
	if n > 12_000 {
		limit = 20
	}
	for _, way := range []string{"", ", filtered"} {
		what := fmt.Sprintf("top 10 of %d × %d", n, c.Dim)
		if way != "" {
			what += fmt.Sprintf(", 1 in %d", every32nd)
		}
		ours := median(own[way].medians)
		lines := []measurement{{Case: what + ": p50", Value: ours, Unit: "ms", Ratio: limit / ours, Target: 1},
			{Case: what + ": recall", Value: recall(own[way].ids, truth[way]), Unit: "of the true ten", Ratio: recall(own[way].ids, truth[way]), Target: 1}}
		for _, name := range []string{"FAISS flat", "pgvector exact", "pgvector hnsw"} {
			other := others[name+way]
			if other == nil {
				continue
			}
			theirs, target := median(other.medians), 0.0
			if name == "pgvector exact" {
				target = 3
			}
			label := fmt.Sprintf("%s (recall %.3f, fewest answers %d)", name, recall(other.ids, truth[way]), fewest(other.ids))
			lines = append(lines, measurement{Case: what + ": p50", Value: ours, Unit: "ms", Peer: label, PeerValue: theirs, Ratio: theirs / ours, Target: target})
		}
		for _, m := range lines {
			m.Bench, m.Runs, m.Machine = "search", c.Runs, machine()
			if err := e.measured(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// draw is n random directions.
func (c *benchSearchCmd) draw(random *rand.Rand, n int) []float32 {
	out := make([]float32, n*c.Dim)
	for i := 0; i < len(out); i += c.Dim {
		var square float64
		row := out[i : i+c.Dim]
		for j := range row {
			v := random.NormFloat64()
			row[j] = float32(v)
			square += v * v
		}
		for j := range row {
			row[j] /= float32(math.Sqrt(square))
		}
	}
	return out
}

// search asks every query in turn.
func (c *benchSearchCmd) search(e *env, index *vector.Index, queries []float32, among vector.Among) (r searchRun, err error) {
	for q := range c.Queries {
		began := time.Now()
		hits, err := index.Find(e, queries[q*c.Dim:(q+1)*c.Dim], nearest, among)
		if err != nil {
			return r, err
		}
		r.MS = append(r.MS, time.Since(began).Seconds()*1e3)
		ids := make([]int, len(hits))
		for i, h := range hits {
			ids[i], _ = strconv.Atoi(h.ID) // they are numbers
		}
		r.IDs = append(r.IDs, ids)
	}
	return r, nil
}

// plain is the truth, one product after the other in float64.
func (c *benchSearchCmd) plain(vectors, queries []float32) map[string][][]int {
	truth := map[string][][]int{}
	n := len(vectors) / c.Dim
	scores, order := make([]float64, n), make([]int, n)
	for q := range c.Queries {
		for i := range n {
			var dot float64
			for j, v := range vectors[i*c.Dim : (i+1)*c.Dim] {
				dot += float64(v) * float64(queries[q*c.Dim+j])
			}
			scores[i], order[i] = dot, i
		}
		slices.SortFunc(order, func(a, b int) int {
			if scores[a] != scores[b] {
				return map[bool]int{true: -1, false: 1}[scores[a] > scores[b]]
			}
			return a - b
		})
		truth[""] = append(truth[""], slices.Clone(order[:nearest]))
		var some []int
		for _, i := range order {
			if i%every32nd == 0 && len(some) < nearest {
				some = append(some, i)
			}
		}
		truth[", filtered"] = append(truth[", filtered"], some)
	}
	return truth
}

// recall is the share of the true answers that were found.
func recall(found, truth [][]int) float64 {
	n, of := 0, 0
	for q := range truth {
		of += len(truth[q])
		for _, id := range truth[q] {
			if slices.Contains(found[q], id) {
				n++
			}
		}
	}
	return float64(n) / float64(of)
}

func fewest(found [][]int) int {
	n := math.MaxInt
	for _, ids := range found {
		n = min(n, len(ids))
	}
	return n
}

func writeFloats(path string, v []float32) error {
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(binary.Write(f, binary.LittleEndian, v), f.Close())
	}
	if err != nil {
		return &coverslip.Error{Kind: coverslip.Environment, Op: "write the vectors to measure with", Path: path, Err: err, Hint: "make room there, or set TMPDIR"}
	}
	return nil
}
