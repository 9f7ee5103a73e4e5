package study

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"coverslip"
	"coverslip/mil/probe"
	"coverslip/mil/split"
)

// slidesOf are embeddings of classes that lie signal deviations apart, two slides a patient.
func slidesOf(n, classes int, signal float64, seed uint64) Embedded {
	rng := rand.New(rand.NewPCG(seed, 1))
	d := Embedded{Dim: 8}
	for i := range n {
		class := i / 2 % classes
		d.Rows = append(d.Rows, split.Row{Slide: fmt.Sprint(i), Patient: fmt.Sprint(i / 2), Site: fmt.Sprint(i / 8), Label: string(rune('a' + class))})
		for k := range d.Dim {
			v := rng.NormFloat64()
			if k == class {
				v += signal
			}
			d.X = append(d.X, float32(v))
		}
	}
	return d
}

func meanOf(figures []Figure, name, group string) (mean float64, n int) {
	for _, f := range figures {
		if f.Name == name && f.Group == group {
			mean += f.Value
			n++
		}
	}
	return mean / float64(n), n
}

func TestEmbeddingsAreJudgedByWhatIsInThem(t *testing.T) {
	probe := Evaluation{Name: "probe", Kind: "probe", Label: "l", By: "patient", Folds: 5}
	few := probe
	few.Slides, few.Shots, few.Draws, few.C = []int{20}, []int{2, 5}, 6, 1
	knn := probe
	knn.Kind, knn.K = "knn", 9
	for _, classes := range []int{2, 3} {
		for _, e := range []Evaluation{probe, knn} {
			plain, err := Judge(e, slidesOf(120, classes, 9, 1))
			if err != nil {
				t.Fatal(err)
			}
			noise, err := Judge(e, slidesOf(120, classes, 0, 2))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"auc", "balanced_accuracy"} {
				c, n := meanOf(plain, name, "all")
				v, _ := meanOf(noise, name, "all")
				chance := map[string]float64{"auc": 0.5, "balanced_accuracy": 1 / float64(classes)}[name]
				if n != 5 || c < 0.99 || math.Abs(v-chance) > 0.15 {
					t.Errorf("%s, %d classes: %s %g and %g over %d folds", e.Kind, classes, name, c, v, n)
				}
			}
		}
	}
	figures, err := Judge(few, slidesOf(120, 2, 1.5, 3))
	if err != nil {
		t.Fatal(err)
	}
	two, n := meanOf(figures, "auc", "k=2")
	five, _ := meanOf(figures, "auc", "k=5")
	twenty, _ := meanOf(figures, "auc", "n=20")
	if n != 6 || !(two < five && five < twenty) {
		t.Errorf("%d draws: %g, %g, %g", n, two, five, twenty)
	}
}

func TestSplitsAreTheSameForAllRuns(t *testing.T) {
	e := Evaluation{Kind: "probe", Label: "l", By: "patient", Folds: 4, Slides: []int{10}, Draws: 5, C: 1, Seed: 3}
	a, err := Judge(e, slidesOf(80, 2, 1, 1))
	if err != nil {
		t.Fatal(err)
	}
	again, _ := Judge(e, slidesOf(80, 2, 1, 1))
	b, err := Judge(e, slidesOf(80, 2, 1, 2)) // other embeddings of the same slides
	if err != nil {
		t.Fatal(err)
	}
	differ := false
	for i, f := range a {
		if f != again[i] || f.Split != b[i].Split || f.Group != b[i].Group || f.Name != b[i].Name {
			t.Fatalf("%+v, %+v, %+v", f, again[i], b[i])
		}
		differ = differ || f.Value != b[i].Value
	}
	if !differ {
		t.Error("embeddings make no difference")
	}
}

func TestSlidesWithoutALabelAreLeftOut(t *testing.T) {
	d := slidesOf(80, 2, 9, 1)
	want, err := Judge(Evaluation{Kind: "collapse", Label: "l"}, d)
	if err != nil {
		t.Fatal(err)
	}
	more := slidesOf(84, 2, 9, 1)
	copy(more.X, d.X)
	for i := 80; i < 84; i++ {
		more.Rows[i].Label = ""
	}
	got, err := Judge(Evaluation{Kind: "collapse", Label: "l"}, more)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, not %v, %v", got, want, err)
	}
	for i := range d.Rows {
		d.Rows[i].Label = "a"
	}
	if _, err := Judge(Evaluation{Kind: "probe", Label: "l", Folds: 5, By: "patient"}, d); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("one class: %v", err)
	}
}

func TestASimplexIsJudgedCollapsed(t *testing.T) {
	for _, classes := range []int{2, 3} {
		d := Embedded{Dim: classes}
		for i := range 6 * classes {
			d.Rows = append(d.Rows, split.Row{Slide: fmt.Sprint(i), Patient: fmt.Sprint(i), Label: string(rune('a' + i%classes))})
			for k := range classes {
				v := float32(0)
				if k == i%classes {
					v = 3
				}
				d.X = append(d.X, v)
			}
		}
		figures, err := Judge(Evaluation{Kind: "collapse", Label: "l"}, d)
		if err != nil || len(figures) != 5 {
			t.Fatal(figures, err)
		}
		for _, f := range figures {
			if !(math.Abs(f.Value) < 1e-3) {
				t.Errorf("%d classes: %s is %g", classes, f.Name, f.Value)
			}
		}
	}
}

func TestGeometryNeedsNoLabels(t *testing.T) {
	d := Embedded{X: []float32{1, 0, 0, 1}, Dim: 2, Rows: make([]split.Row, 2), Again: []float32{1, 0, 1, 0}}
	figures, err := Judge(Evaluation{Kind: "geometry"}, d)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range figures {
		if want := map[string]float64{"uniformity": -4, "effective_rank": 2, "alignment": 1}[f.Name]; math.Abs(f.Value-want) > 1e-6 {
			t.Errorf("%s is %g, want %g", f.Name, f.Value, want)
		}
	}
}

// three is a study of two factors and three seeds, whose figure is made of known parts: a level's effect, a seed's and a
// split's.
func three(t *testing.T, effect, noise float64) (*Plan, Results) {
	t.Helper()
	p := plan(t, good, false)
	rng := rand.New(rand.NewPCG(5, 5))
	r := Results{}
	for _, run := range p.Runs {
		for _, k := range run.Evaluations {
			if p.evaluation(k).Kind != "probe" {
				r[k] = []Figure{{Name: "uniformity", Value: float64(run.Seed)}}
				continue
			}
			for s := range 8 {
				v := 0.5 + 0.01*float64(run.Seed) + 0.02*float64(s) + noise*rng.NormFloat64()
				if run.Levels[0] == "vicreg" {
					v += effect
				}
				r[k] = append(r[k], Figure{"auc", "n=25", fmt.Sprint(s), v})
			}
		}
	}
	return p, r
}

func TestTheTableIsOverSeeds(t *testing.T) {
	p, r := three(t, 0.05, 0)
	delete(r, p.Runs[0].Evaluations[0]) // this one diverged
	r[p.Runs[3].Evaluations[0]][0].Value = math.NaN()
	lines := p.Table(r)
	if len(lines) != 8 {
		t.Fatalf("%d lines", len(lines))
	}
	// Seeds 2 and 3: 0.52 and 0.53, and a mean of 0.07 over splits.
	for _, l := range lines {
		if l.Figure != "auc" || l.Levels[0] != "simclr" || l.Levels[1] != "all" {
			continue
		}
		if math.Abs(l.Mean-0.595) > 1e-12 || math.Abs(l.SD-math.Sqrt(0.5)*0.01) > 1e-12 || l.Seeds != 2 || l.Missing != 1 {
			t.Errorf("%+v", l)
		}
	}
}

func TestDifferencesArePaired(t *testing.T) {
	p, r := three(t, 0.05, 0)
	found := p.Differences(r, 200, rand.New(rand.NewPCG(1, 1)))
	if len(found) != 4 { // two factors, of auc and of uniformity
		t.Fatalf("%+v", found)
	}
	for _, d := range found {
		want := 0.0
		if d.Figure == "auc" && d.Factor == "train.objective" {
			want = 0.05
		}
		// Seeds and splits have effects of their own, which pairs do not see.
		if math.Abs(d.Value-want) > 1e-9 || d.High-d.Low > 1e-9 || math.Abs(d.Interval.Level-(1-0.05/4)) > 1e-12 {
			t.Errorf("%+v", d)
		}
		if d.Seeds != 3 || d.Pairs != map[string]int{"auc": 48, "uniformity": 6}[d.Figure] {
			t.Errorf("%+v", d)
		}
	}
	// A run that diverged takes its pairs along.
	delete(r, p.Runs[0].Evaluations[0])
	for _, d := range p.Differences(r, 10, rand.New(rand.NewPCG(1, 1))) {
		if d.Figure == "auc" && d.Pairs != 40 {
			t.Errorf("%+v", d)
		}
	}
}

func TestIntervalsHoldTogether(t *testing.T) {
	// Of studies without any effect, at most about a twentieth has an interval without zero.
	wrong := 0
	const studies = 60
	for i := range studies {
		p, r := three(t, 0, 0)
		rng := rand.New(rand.NewPCG(uint64(i), 9))
		for k, figures := range r {
			_ = k
			for j := range figures {
				figures[j].Value = 0
			}
		}
		for _, run := range p.Runs { // noise in an order that is always the same
			for _, k := range run.Evaluations {
				for j := range r[k] {
					r[k][j].Value = rng.NormFloat64()
				}
			}
		}
		for _, d := range p.Differences(r, 300, rng) {
			if d.Figure == "auc" && (d.Low > 0 || d.High < 0) {
				wrong++
				break
			}
		}
	}
	if wrong > studies/6 {
		t.Errorf("%d of %d studies of nothing found something", wrong, studies)
	}
	t.Logf("%d of %d", wrong, studies)
}

// withParts says which part of the cohort each slide is of, the first half train.
func withParts(d Embedded) Embedded {
	d.Columns = map[string][]string{"part": nil}
	for i := range d.Rows {
		part := "train"
		if i >= len(d.Rows)/2 {
			part = "test"
		}
		d.Columns["part"] = append(d.Columns["part"], part)
	}
	return d
}

func TestSidesThatAColumnSays(t *testing.T) {
	e := Evaluation{Kind: "probe", Label: "l", Train: "part=train", Test: "part=test", C: 1}
	d := withParts(slidesOf(160, 2, 3, 4))
	whole, err := Judge(e, d)
	if err != nil || len(whole) != 2 || whole[0].Value < 0.95 {
		t.Fatal(whole, err)
	}
	// Where the training side has the label the other way round, what is learned is wrong on the test side.
	for i := range d.Rows[:80] {
		d.Rows[i].Label = map[string]string{"a": "b", "b": "a"}[d.Rows[i].Label]
	}
	if turned, err := Judge(e, d); err != nil || turned[0].Value > 0.05 {
		t.Error(turned, err)
	}
	e.Test = "part=none"
	if _, err := Judge(e, d); coverslip.KindOf(err) != coverslip.Invalid {
		t.Error(err)
	}
}

func TestUnevenClassesAreDrawnAsAsked(t *testing.T) {
	e := Evaluation{Kind: "probe", Label: "l", By: "patient", Folds: 4, Slides: []int{20}, Imbalance: []float64{1, 9}, Draws: 8, C: 1}
	d := slidesOf(160, 2, 1, 4)
	figures, err := Judge(e, d)
	if err != nil {
		t.Fatal(err)
	}
	even, n := meanOf(figures, "auc", "n=20, 1:1")
	uneven, m := meanOf(figures, "auc", "n=20, 1:9")
	if n != 8 || m != 8 || !(uneven < even) {
		t.Errorf("%d and %d draws: %g and %g", n, m, even, uneven)
	}
	j := judge{Evaluation: e, rows: d.Rows}
	outer := split.Split{Side: make([]split.Side, len(d.Rows))}
	for i := range outer.Side {
		outer.Side[i] = split.Train
	}
	s, err := j.uneven(outer, 20, 9, rand.New(rand.NewPCG(1, 1)))
	count, patients := map[string]int{}, map[string]bool{}
	for _, r := range s.Rows(split.Train) {
		count[d.Rows[r].Label]++
		patients[d.Rows[r].Patient] = true
	}
	if err != nil || count["a"] != 2 || count["b"] != 18 || len(patients) != 20 {
		t.Error(count, len(patients), err)
	}
	e.Slides = []int{120}
	if _, err := Judge(e, d); coverslip.KindOf(err) != coverslip.Invalid {
		t.Error(err)
	}
}

func TestStrangeSlidesAreFound(t *testing.T) {
	d := slidesOf(200, 2, 4, 5)
	d.Columns = map[string][]string{"part": nil, "class": nil}
	for i := range d.Rows {
		d.Columns["class"] = append(d.Columns["class"], d.Rows[i].Label)
		part := []string{"train", "train", "test", "far", "alike"}[i%5]
		d.Columns["part"] = append(d.Columns["part"], part)
		d.Rows[i].Label = part
		if part == "far" {
			for k := range d.Dim {
				d.X[i*d.Dim+k] -= 12
			}
		}
	}
	e := Evaluation{Kind: "ood", Label: "part", Train: "part=train", Test: "part=test", K: 5}
	few, err := Judge(e, d)
	if err != nil || len(few) != 3*2*2 {
		t.Fatal(len(few), err)
	}
	e.Classes = "class"
	figures, err := Judge(e, d)
	if err != nil || len(figures) != 5*2*2 {
		t.Fatal(len(figures), err)
	}
	for _, f := range figures {
		name, kind, _ := strings.Cut(f.Group, ", ")
		fitted := name == "mahalanobis" || name == "nearest" || name == "pca residual"
		switch {
		case kind == "far" && fitted && f.Name == "auroc" && f.Value < 0.9, kind == "far" && name == "mahalanobis" && f.Name == "fpr95" && f.Value > 0.05,
			kind == "alike" && f.Name == "auroc" && math.Abs(f.Value-0.5) > 0.2:
			t.Errorf("%+v", f)
		}
	}
	e.Train = "part=nobody"
	if _, err := Judge(e, d); coverslip.KindOf(err) != coverslip.Invalid {
		t.Error(err)
	}
}

func TestEnergyIsOfTheLogitsThatPredict(t *testing.T) {
	d := slidesOf(60, 2, 2, 6)
	y := make([]int, 60)
	for i, r := range d.Rows {
		if r.Label == "b" {
			y[i] = 1
		}
	}
	l, err := probe.FitLogistic(d.X, d.Dim, y, 2, 1, probe.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, z := make([]float64, 120), logits(l, d.X)
	l.Predict(p, d.X)
	for i := range p {
		if want := math.Exp(z[i]) / (math.Exp(z[i/2*2]) + math.Exp(z[i/2*2+1])); math.Abs(p[i]-want) > 1e-12 {
			t.Fatalf("probability %g, softmax of the logits %g", p[i], want)
		}
	}
}

func TestTheGraphOfSlides(t *testing.T) {
	d := slidesOf(60, 2, 2, 6)
	figures, err := Judge(Evaluation{Kind: "graph", K: 10}, d)
	if err != nil || len(figures) != 3 {
		t.Error(figures, err)
	}
	d.Again = d.X
	if figures, err := Judge(Evaluation{Kind: "graph", K: 10}, d); err != nil || len(figures) != 4 {
		t.Error(figures, err)
	}
	if _, err := Judge(Evaluation{Kind: "graph", K: 60}, d); coverslip.KindOf(err) != coverslip.Invalid {
		t.Error(err)
	}
}

func TestOnlySomeSlidesAreJudged(t *testing.T) {
	d := withParts(slidesOf(80, 2, 2, 7))
	d.Again = append([]float32(nil), d.X...)
	for i := range d.X[:40*d.Dim] { // what train's other views are says nothing of test's
		d.Again[i] = -d.Again[i]
	}
	some, err := Judge(Evaluation{Kind: "geometry", Where: "part=test"}, d)
	if err != nil || len(some) != 3 || some[2].Name != "alignment" || some[2].Value > 1e-6 {
		t.Error(some, err)
	}
	all, err := Judge(Evaluation{Kind: "geometry"}, d)
	if err != nil || math.Abs(all[2].Value-2) > 0.01 || all[0].Value == some[0].Value {
		t.Error(all, err)
	}
	if _, err := Judge(Evaluation{Kind: "geometry", Where: "part=none"}, d); coverslip.KindOf(err) != coverslip.Invalid {
		t.Error(err)
	}
}

// byRule predicts the parity of a slide's number: with choice 1 rightly, with the others wrongly. It counts what it learns.
type byRule struct {
	t       *testing.T
	learned map[int]int
	most    int // slides of one training
}

func (*byRule) Choices() int { return 3 }

func (b *byRule) Learn(choice int, train, y []int, classes int, test []int) (p []float64, err error) {
	b.learned[choice]++
	b.most = max(b.most, len(train))
	for i, slide := range train {
		if y[i] != slide%2 || slices.Contains(test, slide) || classes != 2 {
			b.t.Errorf("slide %d of class %d, tested on %v", slide, y[i], test)
		}
	}
	for _, slide := range test {
		right := 0.2
		if choice == 1 {
			right = 0.8
		}
		row := [2]float64{1 - right, 1 - right}
		row[slide%2] = right
		p = append(p, row[:]...)
	}
	return p, nil
}

func TestALearnerIsTunedInsideTheTrainingSide(t *testing.T) {
	d := Embedded{Columns: map[string][]string{}}
	for i := range 40 {
		name := strconv.Itoa(i)
		d.Rows = append(d.Rows, split.Row{Slide: name, Patient: name, Label: strconv.Itoa(i % 2)})
	}
	rule := &byRule{t: t, learned: map[int]int{}}
	d.Learner = rule
	e := Evaluation{Name: "p", Kind: "probe", Label: "l", By: "patient", Folds: 5, Slides: []int{12}, Draws: 4}
	figures, err := Judge(e, d)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range figures {
		if f.Value != 1 || f.Group != "n=12" {
			t.Errorf("%+v", f)
		}
	}
	// Three folds of each choice, then the one that was chosen, on all that were drawn.
	if len(figures) != 8 || rule.learned[0] != 12 || rule.learned[1] != 12+4 || rule.learned[2] != 12 || rule.most != 12 {
		t.Errorf("%d figures, learned %v, of at most %d", len(figures), rule.learned, rule.most)
	}
	// The splits are those of a probe.
	x := make([]float32, 40)
	for i := range x {
		x[i] = float32(i)
	}
	probed, err := Judge(e, Embedded{X: x, Dim: 1, Rows: d.Rows, Columns: d.Columns})
	if err != nil || len(probed) != len(figures) {
		t.Fatal(len(probed), err)
	}
	for i, f := range probed {
		if g := figures[i]; f.Name != g.Name || f.Group != g.Group || f.Split != g.Split {
			t.Errorf("%+v beside %+v", f, g)
		}
	}
}

func TestAStandardisedProbeDoesNotSeeScales(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 0))
	d := Embedded{Dim: 4, Columns: map[string][]string{}}
	other := d
	for i := range 60 {
		name := strconv.Itoa(i)
		d.Rows = append(d.Rows, split.Row{Slide: name, Patient: name, Label: strconv.Itoa(i % 2)})
		for k := range 4 {
			v := float32(rng.NormFloat64() + 0.5*float64(i%2))
			d.X = append(d.X, v)
			other.X = append(other.X, v*[]float32{1, 64, 0.25, 8}[k]+float32(k))
		}
	}
	other.Rows = d.Rows
	e := Evaluation{Name: "p", Kind: "probe", Label: "l", By: "patient", Folds: 5, C: 0.1}
	differ := func() bool {
		a, err := Judge(e, d)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Judge(e, other)
		if err != nil {
			t.Fatal(err)
		}
		return !slices.Equal(a, b)
	}
	if !differ() {
		t.Error("without, it does not see them either")
	}
	if e.Standardise = true; differ() {
		t.Error("it sees them")
	}
}
