package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"coverslip/internal/nn"
	"coverslip/mil/metric"
	"coverslip/mil/probe"
)

type benchProbeCmd struct {
	Runs int `default:"3" help:"Runs of each; medians are compared (${default})."`
}

// Help is shown by coverslip bench probe --help.
func (benchProbeCmd) Help() string {
	return `Example:
  coverslip bench probe --json

On 12,000 rows of 512 features that 64 factors make, with noisy labels of two classes: logistic regression for
45 values of C over 5 folds, beside scikit-learn's LogisticRegressionCV on the same folds to the same tolerance,
in seconds of processor time; 1,000 bootstraps of an AUC, beside roc_auc_score; and how far coefficients are from
those of scikit-learn, both solved to the end.`
}

const (
	benchRows  = 12000
	benchDim   = 512
	benchFolds = 5
)

// Run measures and prints.
func (c *benchProbeCmd) Run(e *env) error {
	x, y := benchEmbeddings(benchRows, benchDim)
	e.say("matrices by %s\n", nn.BLAS())
	peers := map[string]*peer{}
	for _, what := range []string{"path", "fit", "bootstrap"} {
		p, err := e.probePeer(what, x, y)
		if err != nil {
			e.say("without scikit-learn: %v\n", err)
			break
		}
		defer p.stop()
		peers[what] = p
	}
	folds := make([]probe.Fold, benchFolds)
	for i := range y {
		for f := range folds {
			if i%benchFolds == f {
				folds[f].Val = append(folds[f].Val, i)
			} else {
				folds[f].Train = append(folds[f].Train, i)
			}
		}
	}
	var choice probe.Choice
	err := c.compare(e, peers["path"], measurement{Case: fmt.Sprintf("45 values of C, %d folds, %d × %d, two classes", benchFolds, benchRows, benchDim), Peer: "scikit-learn LogisticRegressionCV", Target: 5}, 1,
		func() (err error) {
			choice, err = probe.Choose(x, benchDim, y, 2, folds, probe.Strengths(), probe.Options{})
			return err
		}, func(theirs peerRun) {
			if math.Abs(theirs.Values[0]/choice.C-1) > 1e-9 {
				e.say("it chose C %g, scikit-learn %g\n", choice.C, theirs.Values[0])
			}
		})
	if err != nil {
		return err
	}
	score := make([]float64, benchRows)
	patient := make([]string, benchRows)
	for i := range score {
		score[i], patient[i] = float64(x[i*benchDim]), strconv.Itoa(i*2/3)
	}
	const draws, limit = 1000, 1.0
	var seconds []float64
	bootstrap := func() error {
		metric.Bootstrap(patient, draws, 0.95, rand.New(rand.NewPCG(1, 1)), metric.CountedAUC(y, score))
		return nil
	}
	for range c.Runs {
		before := cpuTime()
		_ = bootstrap()
		seconds = append(seconds, (cpuTime() - before).Seconds())
	}
	const name = "1000 patient bootstraps of an AUC, 12000 rows"
	if err := e.measured(measurement{Bench: "probe", Case: name + ", limit 1 s", Value: median(seconds), Unit: "CPU-seconds", Ratio: limit / median(seconds), Target: 1, Runs: c.Runs, Machine: machine()}); err != nil {
		return err
	}
	if err := c.compare(e, peers["bootstrap"], measurement{Case: name, Peer: "scikit-learn roc_auc_score", Target: 1}, draws/100, bootstrap, func(peerRun) {}); err != nil {
		return err
	}
	return c.coefficients(e, peers["fit"], x, y)
}

// compare takes turns with a peer, whose time counts so many times.
func (c *benchProbeCmd) compare(e *env, p *peer, m measurement, times float64, ours func() error, check func(peerRun)) error {
	if p == nil {
		return nil
	}
	var mine, theirs []float64
	show := e.progressOf("measuring", "runs", c.Runs)
	for run := range c.Runs {
		before := cpuTime()
		if err := ours(); err != nil {
			return err
		}
		mine = append(mine, (cpuTime() - before).Seconds())
		r, err := p.run()
		if err != nil {
			return err
		}
		theirs = append(theirs, r.CPU*times)
		check(r)
		show(run + 1)
	}
	m.Bench, m.Unit, m.Runs, m.Machine = "probe", "CPU-seconds", c.Runs, machine()
	m.Value, m.PeerValue = median(mine), median(theirs)
	m.Ratio = m.PeerValue / m.Value
	return e.measured(m)
}

// coefficients compares those of one fit.
func (c *benchProbeCmd) coefficients(e *env, p *peer, x []float32, y []int) error {
	if p == nil {
		return nil
	}
	l, err := probe.FitLogistic(x, benchDim, y, 2, 1, probe.Options{Tolerance: 1e-9})
	if err != nil {
		return err
	}
	r, err := p.run()
	if err != nil {
		return err
	}
	const limit = 1e-4
	worst := 0.0
	for i, v := range append(l.Weight, l.Intercept...) {
		worst = max(worst, math.Abs(v-r.Values[i]))
	}
	return e.measured(measurement{Bench: "probe", Case: "largest difference of a coefficient from scikit-learn's, C 1, limit 1e-4", Value: worst, Unit: "", Ratio: limit / worst, Target: 1, Runs: 1, Machine: machine()})
}

// probePeer gives scikit-learn the data.
func (e *env) probePeer(what string, x []float32, y []int) (*peer, error) {
	dir, err := os.MkdirTemp("", "coverslip-bench-")
	if err != nil {
		return nil, diskError("write features for the peer", os.TempDir(), err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // temporary files, read by the peer before it is ready
	raw, err := binary.Append(nil, binary.LittleEndian, x)
	if err != nil {
		return nil, err
	}
	labels := make([]byte, len(y))
	for i, v := range y {
		labels[i] = byte(v) //nolint:gosec // 0 or 1
	}
	xs, ys := filepath.Join(dir, "x.f32"), filepath.Join(dir, "y.u8")
	if err := writeFile(xs, raw); err != nil {
		return nil, err
	}
	if err := writeFile(ys, labels); err != nil {
		return nil, err
	}
	return e.startPeer("probe_peer.py", what, xs, ys, strconv.Itoa(len(y)), strconv.Itoa(len(x)/len(y)))
}

// benchEmbeddings are rows that 64 factors of falling weight make, as a few dozen directions make the embeddings of
// slides, and labels that some of the factors speak for.
func benchEmbeddings(n, dim int) (x []float32, y []int) {
	rng := rand.New(rand.NewPCG(1, 2))
	const factors = 64
	mix, speaks, z := make([]float64, factors*dim), make([]float64, factors), make([]float64, factors)
	for k := range factors {
		speaks[k] = 0.4 * rng.NormFloat64()
		for j := range dim {
			mix[k*dim+j] = rng.NormFloat64() / math.Sqrt(float64(k+1))
		}
	}
	x, y = make([]float32, n*dim), make([]int, n)
	for i := range n {
		margin := 0.0
		for k := range z {
			z[k] = rng.NormFloat64()
			margin += z[k] * speaks[k]
		}
		for j := range dim {
			v := 0.5 * rng.NormFloat64()
			for k, a := range z {
				v += a * mix[k*dim+j]
			}
			x[i*dim+j] = float32(v)
		}
		if rng.Float64() < 1/(1+math.Exp(-margin)) {
			y[i] = 1
		}
	}
	return x, y
}
