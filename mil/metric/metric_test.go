package metric

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
)

func TestAUCCountsPairs(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		n := 2 + rng.IntN(30)
		y, s, times := make([]int, n), make([]float64, n), make([]int, n)
		for i := range n {
			y[i], s[i], times[i] = rng.IntN(2), float64(rng.IntN(8)), rng.IntN(4)
		}
		good, pairs := 0.0, 0.0
		for i := range n {
			for j := range n {
				if y[i] == 1 && y[j] == 0 {
					w := float64(times[i] * times[j])
					pairs += w
					if s[i] > s[j] {
						good += w
					} else if s[i] == s[j] {
						good += w / 2
					}
				}
			}
		}
		got, want := CountedAUC(y, s)(times), good/pairs
		if math.IsNaN(got) != math.IsNaN(want) || math.Abs(got-want) > 1e-12 {
			t.Fatalf("AUC %v, pairs say %v", got, want)
		}
	}
}

func TestUndefinedFiguresAreNaN(t *testing.T) {
	one, s := []int{1, 1, 1}, []float64{.1, .2, .3}
	nan := []float64{.1, math.NaN(), .3}
	mixed := []int{0, 1, 1}
	each := make([]float64, 3)
	three := []float64{.2, .3, .5, .2, .3, .5, .2, .3, .5}
	for what, v := range map[string]float64{
		"AUC of one class":                    AUC(one, s),
		"AUC of no rows":                      AUC(nil, nil),
		"AUC with NaN":                        AUC(mixed, nan),
		"average precision without positives": AveragePrecision([]int{0, 0, 0}, s),
		"average precision with NaN":          AveragePrecision(mixed, nan),
		"one-vs-rest without a class":         AUCOneVsRest(each, mixed, three),
		"one-vs-one without a class":          AUCOneVsOne(mixed, three, 3),
		"balanced accuracy of one class":      BalancedAccuracy(one, one, 2),
		"accuracy of no rows":                 Accuracy(nil, nil),
		"kappa of one class":                  QuadraticKappa(one, one, 2),
		"concordance without events":          Concordance(s, make([]bool, 3), s),
		"concordance with NaN":                Concordance(s, []bool{true, true, true}, nan),
		"td concordance with NaN":             ConcordanceTD(s, []bool{true, true, true}, []float64{0}, nan),
		"DeLong of one class":                 DeLong(one, s, .95).Value,
		"DeLong's low with one negative":      DeLong(mixed, s, .95).Low,
		"DeLong's high with NaN":              DeLong([]int{0, 1, 0, 1}, []float64{1, 2, math.NaN(), 3}, .95).High,
	} {
		if !math.IsNaN(v) {
			t.Errorf("%s is %v", what, v)
		}
	}
	if math.IsNaN(each[0]) || !math.IsNaN(each[2]) {
		t.Errorf("the missing class is the third: %v", each)
	}
	if ROC(one, s) != nil || ROC(mixed, nan) != nil {
		t.Error("a curve of one class, or of NaN")
	}
}

func TestFoldsWithoutTheFigureAreCounted(t *testing.T) {
	m := Across([]float64{.8, math.NaN(), .9, .7})
	if math.Abs(m.Value-.8) > 1e-12 || math.Abs(m.SD-.1) > 1e-12 || m.Folds != 3 || m.Undefined != 1 {
		t.Errorf("%+v", m)
	}
	if m := Across([]float64{math.NaN()}); !math.IsNaN(m.Value) || !math.IsNaN(m.SD) || m.Undefined != 1 {
		t.Errorf("%+v", m)
	}
	if m := Across([]float64{.5}); m.Value != .5 || !math.IsNaN(m.SD) {
		t.Errorf("%+v", m)
	}
}

func TestOutOfRangePanics(t *testing.T) {
	for what, f := range map[string]func(){
		"class":       func() { AUC([]int{0, 2}, []float64{1, 2}) },
		"predicted":   func() { BalancedAccuracy([]int{0, 1}, []int{0, 2}, 2) },
		"length":      func() { Accuracy([]int{0, 1}, []int{0}) },
		"probability": func() { Calibration([]int{0}, []float64{1.5}, 5, nil) },
		"grid":        func() { ConcordanceTD([]float64{1}, []bool{true}, []float64{2, 1}, []float64{1, 1}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a wrong %s passes", what)
				}
			}()
			f()
		}()
	}
}

// cohort is a made-up cohort: patients of one to three slides that score alike.
func cohort(rng *rand.Rand, rows int, separation float64) (y []int, s []float64, patient []string) {
	for p := 0; len(y) < rows; p++ {
		class, own := rng.IntN(2), rng.NormFloat64()
		for range 1 + rng.IntN(3) {
			y = append(y, class)
			s = append(s, separation*float64(class)+own+.1*rng.NormFloat64())
			patient = append(patient, strconv.Itoa(p))
		}
	}
	return y[:rows], s[:rows], patient[:rows]
}

func TestBootstrapDrawsPatients(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	y, s, patient := cohort(rng, 400, 1)
	figure := CountedAUC(y, s)
	checked := func(times []int) float64 {
		n := map[string]int{}
		for i, p := range patient {
			if known, ok := n[p]; ok && known != times[i] {
				t.Fatalf("rows of patient %s drawn %d and %d times", p, known, times[i])
			}
			n[p] = times[i]
		}
		return figure(times)
	}
	v := Bootstrap(patient, 300, .95, rand.New(rand.NewPCG(5, 6)), checked)
	if v.Value != AUC(y, s) || !(v.Low < v.Value && v.Value < v.High) || v.Draws != 300 || v.Undefined != 0 {
		t.Errorf("%+v", v)
	}
	if again := Bootstrap(patient, 300, .95, rand.New(rand.NewPCG(5, 6)), figure); again != v {
		t.Errorf("equal seeds, %+v and %+v", v, again)
	}
	slides := make([]string, len(y))
	for i := range slides {
		slides[i] = strconv.Itoa(i)
	}
	// Slides of a patient say nearly the same: counting them one by one makes the interval too narrow.
	if naive := Bootstrap(slides, 300, .95, rand.New(rand.NewPCG(5, 6)), figure); naive.High-naive.Low > .9*(v.High-v.Low) {
		t.Errorf("by slide %+v, by patient %+v", naive, v)
	}
}

// Both are asked how often 95 % intervals hold the true AUC, which for two normal distributions one
// standard deviation apart is Φ(1/√2).
func TestIntervalsCoverTheTruth(t *testing.T) {
	truth := .5 * (1 + math.Erf(.5))
	rng := rand.New(rand.NewPCG(7, 8))
	const trials = 300
	holdsDeLong, holdsBootstrap := 0, 0
	for range trials {
		y, s, patient := make([]int, 80), make([]float64, 80), make([]string, 80)
		for i := range y {
			y[i], patient[i] = i%2, strconv.Itoa(i)
			s[i] = float64(y[i]) + rng.NormFloat64()
		}
		if v := DeLong(y, s, .95); v.Low <= truth && truth <= v.High {
			holdsDeLong++
		}
		if v := Bootstrap(patient, 300, .95, rng, CountedAUC(y, s)); v.Low <= truth && truth <= v.High {
			holdsBootstrap++
		}
	}
	for what, n := range map[string]int{"DeLong": holdsDeLong, "bootstrap": holdsBootstrap} {
		if share := float64(n) / trials; share < .90 || share > .985 {
			t.Errorf("%s holds the truth %.3f of the time", what, share)
		}
	}
}

func TestBootstrapCountsDrawsWithoutTheFigure(t *testing.T) {
	y, s := []int{1, 0, 0}, []float64{3, 1, 2}
	v := Bootstrap([]string{"a", "b", "c"}, 500, .95, rand.New(rand.NewPCG(1, 1)), CountedAUC(y, s))
	if v.Draws+v.Undefined != 500 || v.Undefined < 100 { // (2/3)³ + (1/3)³ = 1/3 lack a class
		t.Errorf("%+v", v)
	}
	raw, err := json.Marshal(Bootstrap([]string{"a"}, 3, .95, rand.New(rand.NewPCG(1, 1)), CountedAUC([]int{1}, []float64{1})))
	if want := `{"value":null,"low":null,"high":null,"level":0.95,"undefined_draws":3}`; err != nil || string(raw) != want {
		t.Errorf("%s %v, want %s", raw, err, want)
	}
}

func TestRepeatMakesTheDrawnRows(t *testing.T) {
	if got := Repeat([]int{7}, []int{2, 0, 1}); !slices.Equal(got, []int{7, 0, 0, 2}) {
		t.Error(got)
	}
}

func TestDeLongDifference(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	y, a, _ := cohort(rng, 300, 1)
	noise := make([]float64, len(y))
	for i := range noise {
		noise[i] = rng.NormFloat64()
	}
	if v, p := DeLongDifference(y, a, noise, .95); !(v.Value > 0 && v.Low > 0 && p < .01) {
		t.Errorf("a good score against noise: %+v, p %v", v, p)
	}
	if v, p := DeLongDifference(y, a, a, .95); v.Value != 0 || p != 1 {
		t.Errorf("a score against itself: %+v, p %v", v, p)
	}
	other := slices.Clone(a) // nearly the same score on the same rows: the pairing must count
	for i := range other {
		other[i] += .01 * rng.NormFloat64()
	}
	if v, _ := DeLongDifference(y, a, other, .95); v.High-v.Low > .02 {
		t.Errorf("pairs are lost: %+v", v)
	}
}

func TestPerfectSeparationHasNoWidth(t *testing.T) {
	y, s := []int{0, 0, 1, 1}, []float64{1, 2, 3, 4}
	if v := DeLong(y, s, .95); v.Value != 1 || v.Low != 1 || v.High != 1 {
		t.Errorf("%+v", v)
	}
}

func TestConcordanceCountsPairs(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for range 200 {
		n := 2 + rng.IntN(30)
		time, risk, event := make([]float64, n), make([]float64, n), make([]bool, n)
		for i := range n {
			time[i], risk[i], event[i] = float64(rng.IntN(6)), float64(rng.IntN(5)), rng.IntN(2) == 1
		}
		good, pairs := 0.0, 0.0
		for i := range n {
			for j := range n {
				if event[i] && (time[i] < time[j] || time[i] == time[j] && !event[j]) {
					pairs++
					if risk[i] > risk[j] {
						good++
					} else if risk[i] == risk[j] {
						good += .5
					}
				}
			}
		}
		got, want := Concordance(time, event, risk), good/pairs
		if math.IsNaN(got) != math.IsNaN(want) || math.Abs(got-want) > 1e-12 {
			t.Fatalf("%v, pairs say %v", got, want)
		}
	}
}

func TestCalibrationEdges(t *testing.T) {
	bins := Calibration([]int{0, 1, 1, 0, 1}, []float64{0, .5, .25, .51, 1}, 4, nil)
	rows := []int{}
	for _, b := range bins {
		rows = append(rows, b.Rows)
	}
	if !slices.Equal(rows, []int{2, 1, 1, 1}) || bins[0].Observed != .5 || bins[0].Predicted != .125 {
		t.Errorf("%+v", bins)
	}
	if e := CalibrationError(Calibration([]int{1, 1, 0, 0}, []float64{1, 1, 0, 0}, 10, nil)); e != 0 {
		t.Errorf("a prediction that is always right has a calibration error of %v", e)
	}
}

func BenchmarkAUCBootstrap(b *testing.B) {
	y, s, patient := cohort(rand.New(rand.NewPCG(1, 2)), 12_000, 1)
	for b.Loop() {
		Bootstrap(patient, 1000, .95, rand.New(rand.NewPCG(3, 4)), CountedAUC(y, s))
	}
}

func BenchmarkDeLong(b *testing.B) {
	y, s, _ := cohort(rand.New(rand.NewPCG(1, 2)), 12_000, 1)
	for b.Loop() {
		DeLong(y, s, .95)
	}
}

func BenchmarkConcordance(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	time, risk, event := make([]float64, 12_000), make([]float64, 12_000), make([]bool, 12_000)
	for i := range time {
		time[i], risk[i], event[i] = rng.ExpFloat64(), rng.NormFloat64(), rng.IntN(2) == 1
	}
	for b.Loop() {
		Concordance(time, event, risk)
	}
}

func ExampleBootstrap() {
	y := []int{0, 0, 1, 1, 0, 1, 1, 0}
	score := []float64{.1, .4, .35, .8, .2, .9, .7, .6}
	patient := []string{"a", "a", "b", "c", "d", "e", "e", "f"}
	v := Bootstrap(patient, 1000, .95, rand.New(rand.NewPCG(1, 0)), CountedAUC(y, score))
	fmt.Printf("AUC %.3f\n", v.Value)
	// Output: AUC 0.875
}

// Counting rows is the same as repeating them.
func TestCountedIsRepeated(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	const n = 40
	y, predicted, p, times := make([]int, n), make([]int, n), make([]float64, n), make([]int, n)
	for i := range n {
		y[i], predicted[i], p[i], times[i] = rng.IntN(2), rng.IntN(2), float64(rng.IntN(12))/11, rng.IntN(4)
	}
	rows := Repeat(nil, times)
	ry, rp, rpredicted := make([]int, len(rows)), make([]float64, len(rows)), make([]int, len(rows))
	for i, r := range rows {
		ry[i], rp[i], rpredicted[i] = y[r], p[r], predicted[r]
	}
	near(t, "average precision", CountedAveragePrecision(y, p)(times), AveragePrecision(ry, rp))
	near(t, "AUC", CountedAUC(y, p)(times), AUC(ry, rp))
	near(t, "accuracy", Confuse(y, predicted, 2, times).Accuracy(), Accuracy(ry, rpredicted))
	near(t, "kappa", Confuse(y, predicted, 2, times).QuadraticKappa(), QuadraticKappa(ry, rpredicted, 2))
	near(t, "calibration", CalibrationError(Calibration(y, p, 5, times)), CalibrationError(Calibration(ry, rp, 5, nil)))
}
