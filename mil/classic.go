package mil

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"

	"coverslip"
	"coverslip/internal/nn"
	"coverslip/mil/metric"
	"coverslip/mil/split"
)

// ClassicSet is one of the five sets that MIL methods have been compared on since 1997: MUSK (Dietterich et al.), and
// fox, tiger and elephant (Andrews et al.).
type ClassicSet struct {
	Name string
	// Published accuracy and its standard deviation, of attention and gated attention in Ilse et al. 2018 (10 folds, 5
	// runs).
	ABMIL, Gated [2]float64
}

// Settings are ClassicDefaults, and for elephant dropout and twice the epochs, which fox does not bear.
func (s ClassicSet) Settings(m Model) Config {
	c := ClassicDefaults(m)
	if s.Name == "elephant" {
		c.Dropout, c.Epochs = 0.5, 60
	}
	return c
}

// Classic are the five.
func Classic() []ClassicSet {
	return []ClassicSet{
		{"musk1", [2]float64{.892, .040}, [2]float64{.900, .050}},
		{"musk2", [2]float64{.858, .048}, [2]float64{.863, .042}},
		{"fox", [2]float64{.615, .043}, [2]float64{.603, .029}},
		{"tiger", [2]float64{.839, .022}, [2]float64{.845, .018}},
		{"elephant", [2]float64{.868, .022}, [2]float64{.857, .027}},
	}
}

// ClassicDefaults are settings for these sets: the layers of Ilse et al. (256, 128 and 64, attention 64),
// bags one by one, plain SGD with momentum at their usual rate and decay. 30 epochs without dropout are as many as
// fox bears; they were chosen on folds of another seed than the default's.
func ClassicDefaults(m Model) Config {
	c := Defaults(m)
	c.Hidden, c.Attend, c.Dropout = []int{256, 128, 64}, 64, 0
	c.Optimizer, c.LR, c.WeightDecay, c.Cosine, c.Epochs, c.Patience, c.Balance = "sgd", 5e-4, 5e-3, false, 30, 0, NoBalance
	return c
}

// ReadClassic reads a set as comma-separated rows of instances, gzipped or not: a heading, then bag, label (0 or 1) and
// features. Rows of a bag stand together.
func ReadClassic(path string) (HeldBags, []int, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "read the set", Path: path, Err: err, Hint: "name the folder that holds " + filepath.Base(path)}
	}
	defer f.Close()
	bags, y, err := readClassic(bufio.NewReader(f))
	if err != nil {
		return nil, nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read the set", Path: path, Err: err, Hint: "its columns are bag, label and features; rows of a bag stand together"}
	}
	return bags, y, nil
}

func readClassic(in *bufio.Reader) (bags HeldBags, y []int, err error) {
	var raw io.Reader = in
	if mark, err := in.Peek(2); err == nil && mark[0] == 0x1f && mark[1] == 0x8b {
		if raw, err = gzip.NewReader(in); err != nil {
			return nil, nil, err
		}
	}
	table := csv.NewReader(raw)
	seen := map[string]bool{}
	for n := 0; ; n++ {
		line, err := table.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		if n == 0 {
			if len(line) < 3 || line[0] != "bag" || line[1] != "label" {
				return nil, nil, fmt.Errorf("the heading begins %v", line[:min(3, len(line))])
			}
			continue
		}
		label, err := strconv.Atoi(line[1])
		if err != nil || label < 0 || label > 1 {
			return nil, nil, fmt.Errorf("row %d has the label %q", n, line[1])
		}
		if len(bags) == 0 || bags[len(bags)-1].Name != line[0] {
			if seen[line[0]] {
				return nil, nil, fmt.Errorf("rows of bag %s do not stand together", line[0])
			}
			seen[line[0]] = true
			bags, y = append(bags, &Held{Name: line[0], D: len(line) - 2}), append(y, label)
		}
		bag := bags[len(bags)-1]
		if y[len(y)-1] != label {
			return nil, nil, fmt.Errorf("bag %s has two labels", line[0])
		}
		for _, cell := range line[2:] {
			v, err := strconv.ParseFloat(cell, 32)
			if err != nil {
				return nil, nil, fmt.Errorf("row %d: %w", n, err)
			}
			bag.Rows = append(bag.Rows, float32(v))
		}
	}
	if len(bags) == 0 {
		return nil, nil, errors.New("there are no rows")
	}
	return bags, y, nil
}

// ClassicFolds are folds of a set for each run: stratified, ten at a time, from the seed.
func ClassicFolds(bags HeldBags, y []int, folds, runs int, seed uint64) ([]split.Split, error) {
	rows := make([]split.Row, len(bags))
	for i, b := range bags {
		rows[i] = split.Row{Slide: b.Name, Label: strconv.Itoa(y[i])}
	}
	s, _, err := split.KFold(rows, folds, runs, split.Options{By: split.BySlide}, rand.New(rand.NewPCG(seed, 0)))
	return s, err
}

// JudgeClassic trains on every fold of a set, as many at once as there are cores, and gives the accuracy of each.
func JudgeClassic(ctx context.Context, bags HeldBags, y []int, c Config, splits []split.Split, done func(folds int)) ([]float64, error) {
	accuracy := make([]float64, len(splits))
	var mu sync.Mutex
	judged := 0
	nn.SetWorkers(1) // cores take folds
	defer nn.SetWorkers(runtime.GOMAXPROCS(0))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for n, s := range splits {
		g.Go(func() error {
			fold := c
			fold.Seed += uint64(n) //nolint:gosec // a number of rows, or of epochs
			k, _, err := Train(ctx, bags, y, 2, s.Rows(split.Train), nil, fold, TrainOptions{})
			if err != nil {
				return coverslip.Doing("judge fold "+s.Name, err)
			}
			var truth, said []int
			for _, i := range s.Rows(split.Test) {
				p, err := k.Predict(ctx, bags[i], false)
				if err != nil {
					return err
				}
				class := 0
				if p.P[1] > p.P[0] {
					class = 1
				}
				truth, said = append(truth, y[i]), append(said, class)
			}
			accuracy[n] = metric.Accuracy(truth, said)
			mu.Lock()
			defer mu.Unlock()
			judged++
			if done != nil {
				done(judged)
			}
			return nil
		})
	}
	return accuracy, g.Wait()
}
