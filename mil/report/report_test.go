package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image/png"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"coverslip"
	"coverslip/mil/metric"
)

// predictions are those of two methods for 60 slides of 30 patients, in these splits.
func predictions(splits ...string) (coverslip.Run, []coverslip.Prediction) {
	rng := rand.New(rand.NewPCG(7, 7))
	run := coverslip.Run{Kind: coverslip.ProbeModel, Cohort: "c", Label: "l", Classes: []string{"a", "b & <c>"},
		Settings: json.RawMessage(`{"seed":1}`), Splits: "slide_id\tfold_0\n", Methods: []coverslip.Method{{Name: "good"}, {Name: MeanPooling, Baseline: true}, {Name: MajorityClass, Baseline: true}}}
	var all []coverslip.Prediction
	for n, split := range splits {
		for i := range 60 {
			if i%len(splits) != n && !strings.Contains(split, "/") {
				continue
			}
			truth := i / 2 % 2
			for method, signal := range map[string]float64{"good": 2, MeanPooling: 1, MajorityClass: 0} {
				p := 0.5
				if signal > 0 {
					p = 1 / (1 + math.Exp(-signal*float64(2*truth-1)-rng.NormFloat64()))
				}
				all = append(all, coverslip.Prediction{Method: method, Split: split, Slide: coverslip.SlideID(fmt.Sprintf("%064d", i)), Patient: fmt.Sprint(i / 2), Truth: truth, P: []float64{1 - p, p}})
			}
		}
	}
	return run, all
}

// of one method and split: labels, scores and patients in the order of slides.
func of(all []coverslip.Prediction, method, split string) (y []int, p []float64, patient []string) {
	for _, x := range sorted(all) {
		if x.Method == method && x.Split == split {
			y, p, patient = append(y, x.Truth), append(p, x.P[1]), append(patient, x.Patient)
		}
	}
	return y, p, patient
}

func TestFigureIsTheMeanOverSplitsAndItsIntervalTheBootstrapOfIt(t *testing.T) {
	run, all := predictions("0")
	r := Of(run, all, Options{Draws: 200, Seed: 3})
	y, p, patient := of(all, "good", "0")
	want := metric.Bootstrap(patient, 200, 0.95, rand.New(rand.NewPCG(3, 0)), metric.CountedAUC(y, p))
	got := r.Groups[0].Methods[0].Figures[0]
	if got.Name != "auc" || got.Interval != want {
		t.Errorf("one split: %+v, want %+v", got, want)
	}

	run, all = predictions("0", "1", "2")
	r = Of(run, all, Options{Draws: 200})
	sum := 0.0
	for _, s := range []string{"0", "1", "2"} {
		y, p, _ := of(all, "good", s)
		sum += metric.AUC(y, p)
	}
	got = r.Groups[0].Methods[0].Figures[0]
	if math.Abs(got.Value-sum/3) > 1e-12 || got.Folds.Defined != 3 || got.Folds.SD == nil || !(got.Low <= got.Value && got.Value <= got.High) || got.Draws != 200 {
		t.Errorf("three splits: %+v, want %g", got, sum/3)
	}
	if r.Slides != 60 || r.Patients != 30 || r.Groups[0].Splits != 3 {
		t.Errorf("%d slides of %d patients in %d splits", r.Slides, r.Patients, r.Groups[0].Splits)
	}
	good, mean, majority := r.Groups[0].Methods[0], r.Groups[0].Methods[1], r.Groups[0].Methods[2]
	if good.Gain == nil || math.Abs(good.Gain.Value-(good.Figures[0].Value-mean.Figures[0].Value)) > 1e-12 || mean.Gain != nil || majority.Gain != nil {
		t.Errorf("gains %+v %+v", good.Gain, mean.Gain)
	}
	if majority.Figures[0].Value != 0.5 {
		t.Errorf("AUC of the majority class %g", majority.Figures[0].Value)
	}
}

// Figures of counted rows are those of mil/metric on the rows themselves.
func TestEveryFigureIsThatOfMetric(t *testing.T) {
	run, all := predictions("0")
	r := Of(run, all, Options{})
	y, p, _ := of(all, "good", "0")
	var both []float64
	predicted := make([]int, len(y))
	for i, v := range p {
		both = append(both, 1-v, v)
		if v > 0.5 {
			predicted[i] = 1
		}
	}
	want := map[string]float64{
		"auc": metric.AUC(y, p), "average_precision": metric.AveragePrecision(y, p), "accuracy": metric.Accuracy(y, predicted),
		"balanced_accuracy": metric.BalancedAccuracy(y, predicted, 2), "f1": metric.F1(make([]float64, 2), y, predicted),
		"log_loss": metric.LogLoss(y, both, 2), "brier": metric.Brier(y, both, 2), "calibration_error": metric.CalibrationError(metric.Calibration(y, p, 10, nil)),
	}
	for _, f := range r.Groups[0].Methods[0].Figures {
		if math.Abs(f.Value-want[f.Name]) > 1e-12 {
			t.Errorf("%s is %g, want %g", f.Name, f.Value, want[f.Name])
		}
		if !math.IsNaN(f.Low) {
			t.Errorf("%s has an interval without draws", f.Name)
		}
		delete(want, f.Name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

func TestThreeClassesAndGrades(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	var all []coverslip.Prediction
	var y []int
	var p []float64
	for i := range 50 {
		row := []float64{rng.Float64(), rng.Float64(), rng.Float64()}
		row[i%3] += 0.5
		s := row[0] + row[1] + row[2]
		for c := range row {
			row[c] /= s
		}
		y, p = append(y, i%3), append(p, row...)
		all = append(all, coverslip.Prediction{Method: "m", Split: "0", Slide: coverslip.SlideID(fmt.Sprintf("%064d", i)), Truth: i % 3, P: row})
	}
	run := coverslip.Run{Classes: []string{"1", "2", "3"}, Methods: []coverslip.Method{{Name: "m"}}}
	figures := map[string]float64{}
	for _, f := range Of(run, all, Options{Draws: 20}).Groups[0].Methods[0].Figures {
		figures[f.Name] = f.Value
		if !(f.Low <= f.High) {
			t.Errorf("%s: %g to %g", f.Name, f.Low, f.High)
		}
	}
	if w := metric.AUCOneVsRest(make([]float64, 3), y, p); math.Abs(figures["auc_one_vs_rest"]-w) > 1e-12 {
		t.Errorf("one-vs-rest %g, want %g", figures["auc_one_vs_rest"], w)
	}
	if w := metric.AUCOneVsOne(y, p, 3); math.Abs(figures["auc_one_vs_one"]-w) > 1e-12 {
		t.Errorf("one-vs-one %g, want %g", figures["auc_one_vs_one"], w)
	}
	if _, ok := figures["quadratic_kappa"]; !ok {
		t.Error("grades have no kappa")
	}
	run.Classes[0] = "clear cell"
	for _, f := range Of(run, all, Options{}).Groups[0].Methods[0].Figures {
		if f.Name == "quadratic_kappa" {
			t.Error("classes without an order have a kappa")
		}
	}
}

func TestSurvival(t *testing.T) {
	var all []coverslip.Prediction
	for i := range 8 {
		all = append(all, coverslip.Prediction{Method: "m", Split: "0", Slide: coverslip.SlideID(fmt.Sprintf("%064d", i)), P: []float64{-float64(i)}, Time: float64(i), Event: true})
	}
	r := Of(coverslip.Run{Methods: []coverslip.Method{{Name: "m"}}}, all, Options{Draws: 20})
	if f := r.Groups[0].Methods[0].Figures[0]; f.Name != "concordance" || f.Value != 1 {
		t.Errorf("%+v", f)
	}
	if raw, err := r.ROC(""); raw != nil || err != nil {
		t.Errorf("a ROC of survival: %d bytes, %v", len(raw), err)
	}
}

func TestGroupsStandInOrder(t *testing.T) {
	run, all := predictions("all/0", "k=16/0", "k=2/0", "k=2/1", "n=100/0", "n=50/0")
	var names []string
	for _, g := range Of(run, all, Options{}).Groups {
		names = append(names, g.Name)
	}
	if got := strings.Join(names, " "); got != "k=2 k=16 n=50 n=100 all" {
		t.Error(got)
	}
}

// A fold of one class has no AUC: it is counted, and null in JSON where nothing has one.
func TestFoldsOfOneClass(t *testing.T) {
	run, all := predictions("0", "1")
	for i := range all {
		if all[i].Split == "1" {
			all[i].Truth = 1
		}
	}
	r := Of(run, all, Options{Draws: 50})
	f := r.Groups[0].Methods[0].Figures[0]
	if f.Folds.Defined != 1 || f.Folds.Undefined != 1 || f.Folds.SD != nil {
		t.Errorf("%+v", f.Folds)
	}
	for i := range all {
		all[i].Truth = 1
	}
	raw, err := json.Marshal(Of(run, all, Options{Draws: 10}))
	if err != nil || !strings.Contains(string(raw), `"value":null`) {
		t.Errorf("%v", err)
	}
	if raw, err := Of(run, all, Options{}).ROC(""); raw != nil || err != nil {
		t.Errorf("a ROC of one class: %d bytes, %v", len(raw), err)
	}
}

func TestOrderOfPredictionsDoesNotMatter(t *testing.T) {
	run, all := predictions("0", "1", "2")
	mixed := slices.Clone(all)
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(mixed), func(a, b int) { mixed[a], mixed[b] = mixed[b], mixed[a] })
	a, errA := Identify(run, all)
	b, errB := Identify(run, mixed)
	if a != b || errA != nil || errB != nil || len(a) != 64 {
		t.Errorf("%s and %s, %v, %v", a, b, errA, errB)
	}
	x, _ := json.Marshal(Of(run, all, Options{Draws: 30}))
	y, _ := json.Marshal(Of(run, mixed, Options{Draws: 30}))
	if !bytes.Equal(x, y) {
		t.Error("the figures differ")
	}
	all[0].P = []float64{0.25, 0.75}
	if c, _ := Identify(run, all); c == a {
		t.Error("other predictions, the same id")
	}
}

func TestPageStandsAlone(t *testing.T) {
	run, all := predictions("0", "1")
	run.LeftOut = []coverslip.LeftOut{{Slide: "lost.svs", Reason: "no label"}}
	r := Of(run, all, Options{Draws: 20})
	var page bytes.Buffer
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	for _, want := range []string{"mean pooling", "majority class", "lost.svs", "b &amp; &lt;c&gt;", "fold_0", "data:image/png;base64,"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, foreign := range []string{"http://", "https://", "src=\"/"} {
		if strings.Contains(text, foreign) {
			t.Errorf("the page refers to %s", foreign)
		}
	}
	for name, draw := range map[string]func(string) ([]byte, error){"ROC": r.ROC, "calibration": r.Calibration} {
		raw, err := draw("")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := png.Decode(bytes.NewReader(raw)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var table bytes.Buffer
	if err := WritePredictions(&table, run, all); err != nil || strings.Count(table.String(), "\n") != len(all)+1 {
		t.Errorf("%d lines, %v", strings.Count(table.String(), "\n"), err)
	}
}
