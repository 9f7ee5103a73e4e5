package measure

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"coverslip"
)

// Gate lets usual embeddings pass and stops strange ones.
type Gate struct {
	Score     string  // one of Scores
	Threshold float64 // the highest score that passes
	// Usual are the scores of what it learned from, each by a scorer that had not seen it, rising.
	Usual []float64

	dim    int
	scorer Scorer
}

// Scores are those that a gate may go by.
var Scores = []string{"mahalanobis", "nearest", "residual"}

const (
	gateFolds = 5
	gateK     = 5
	gateShare = 0.9 // of the variance, that residual's components hold
)

// leastForGate is how many embeddings a gate needs at least: with fewer, one in twenty is less than one.
const leastForGate = 20

// FitGate learns from usual embeddings x [n,d]. pass is the share of usual ones that it lets pass; the threshold is found
// on scores of embeddings that the scorer has not seen, in five folds drawn by rng. Fewer than 20 embeddings are Invalid.
func FitGate(x []float32, d int, score string, pass float64, rng *rand.Rand) (*Gate, error) {
	n := rows(x, d)
	bad := func(hint, why string, args ...any) (*Gate, error) {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "fit the gate", Err: fmt.Errorf(why, args...), Hint: hint}
	}
	switch {
	case !slices.Contains(Scores, score):
		return bad("take "+strings.Join(Scores, ", "), "there is no score %q", score)
	case !(pass > 0 && pass < 1):
		return bad("give a share, such as 0.95", "usual slides pass with a share of %g", pass)
	case n < leastForGate:
		return bad(fmt.Sprintf("give %d slides or more", leastForGate), "%d slides do not show what is usual", n)
	}
	g := &Gate{Score: score, dim: d}
	fold := make([]int, n)
	for i, at := range rng.Perm(n) {
		fold[at] = i % gateFolds
	}
	for f := range gateFolds {
		var seen, others []float32
		for i := range n {
			if row := x[i*d : (i+1)*d]; fold[i] == f {
				others = append(others, row...)
			} else {
				seen = append(seen, row...)
			}
		}
		scorer, err := newScorer(seen, d, score)
		if err != nil {
			return nil, err
		}
		scores := make([]float64, len(others)/d)
		scorer.Score(scores, others)
		g.Usual = append(g.Usual, scores...)
	}
	slices.Sort(g.Usual)
	if g.Usual[0] != g.Usual[0] {
		return bad("look for NaN in the embeddings", "a score is not a number")
	}
	g.Threshold = Threshold(g.Usual, pass)
	var err error
	g.scorer, err = newScorer(x, d, score)
	return g, err
}

func newScorer(x []float32, d int, score string) (Scorer, error) {
	switch score {
	case "mahalanobis":
		return FitMahalanobis(x, d, nil)
	case "nearest":
		return FitNearest(x, d, gateK), nil
	}
	return FitResidual(x, d, gateShare)
}

// Strangeness is the score of an embedding. One of another length is Invalid.
func (g *Gate) Strangeness(embedding []float32) (float64, error) {
	if len(embedding) != g.dim {
		return 0, &coverslip.Error{Kind: coverslip.Invalid, Op: "ask the gate", Err: errors.New("the embedding has another length than those it learned from"), Hint: "use the gate with the encoder it was fitted with"}
	}
	score := make([]float64, 1)
	g.scorer.Score(score, embedding)
	return score[0], nil
}
