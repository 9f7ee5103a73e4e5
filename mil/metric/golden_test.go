package metric

import (
	"encoding/json"
	"math"
	"os"
	"testing"
)

// golden holds the values of scikit-learn and lifelines; bench/reference/metrics.py writes it.
type golden struct {
	Binary []struct {
		Name      string
		Y         []int
		A, B      []float64
		Predicted []int
		Want      struct {
			AUC              float64   `json:"auc"`
			AP               float64   `json:"average_precision"`
			Accuracy         float64   `json:"accuracy"`
			Balanced         float64   `json:"balanced_accuracy"`
			F1               []float64 `json:"f1"`
			F1Mean           float64   `json:"f1_mean"`
			Kappa            float64   `json:"kappa"`
			LogLoss          float64   `json:"log_loss"`
			Brier            float64   `json:"brier"`
			CalibrationError float64   `json:"calibration_error_7"`
			ROC              []float64 `json:"roc"`
			DeLongAUC        []float64 `json:"delong_auc"`
			DeLongCov        []float64 `json:"delong_cov"`
		}
	}
	Several []struct {
		Name      string
		Classes   int
		Y         []int
		P         []float64
		Predicted []int
		Want      struct {
			OVR              float64   `json:"auc_ovr"`
			OVREach          []float64 `json:"auc_ovr_each"`
			OVO              float64   `json:"auc_ovo"`
			Accuracy         float64   `json:"accuracy"`
			Balanced         float64   `json:"balanced_accuracy"`
			F1               []float64 `json:"f1"`
			F1Mean           float64   `json:"f1_mean"`
			Kappa            float64   `json:"kappa"`
			LogLoss          float64   `json:"log_loss"`
			Brier            float64   `json:"brier"`
			CalibrationError float64   `json:"calibration_error_7"`
		}
	}
	Survival []struct {
		Name           string
		Time           []float64
		Event          []bool
		Risk           []float64
		Grid, Survival []float64
		Want           struct{ Harrell, Antolini float64 }
	}
}

func readGolden(t *testing.T) (g golden) {
	t.Helper()
	raw, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	if len(g.Binary) == 0 || len(g.Several) == 0 || len(g.Survival) == 0 {
		t.Fatal("golden.json is not whole")
	}
	return g
}

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if !(math.Abs(got-want) <= 1e-11*max(1, math.Abs(want))) {
		t.Errorf("%s: %.15g, want %.15g", what, got, want)
	}
}

func nearAll(t *testing.T, what string, got, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range got {
		near(t, what, got[i], want[i])
	}
}

func TestTwoClassesLikeScikitLearn(t *testing.T) {
	for _, c := range readGolden(t).Binary {
		t.Run(c.Name, func(t *testing.T) {
			two := make([]float64, 0, 2*len(c.A))
			for _, p := range c.A {
				two = append(two, 1-p, p)
			}
			f1 := make([]float64, 2)
			near(t, "AUC", AUC(c.Y, c.A), c.Want.AUC)
			near(t, "average precision", AveragePrecision(c.Y, c.A), c.Want.AP)
			near(t, "accuracy", Accuracy(c.Y, c.Predicted), c.Want.Accuracy)
			near(t, "balanced accuracy", BalancedAccuracy(c.Y, c.Predicted, 2), c.Want.Balanced)
			near(t, "mean F1", F1(f1, c.Y, c.Predicted), c.Want.F1Mean)
			nearAll(t, "F1", f1, c.Want.F1)
			near(t, "kappa", QuadraticKappa(c.Y, c.Predicted, 2), c.Want.Kappa)
			near(t, "log-loss", LogLoss(c.Y, two, 2), c.Want.LogLoss)
			near(t, "Brier", Brier(c.Y, two, 2), c.Want.Brier)
			near(t, "calibration error", CalibrationError(Calibration(c.Y, c.A, 7, nil)), c.Want.CalibrationError)
			if c.Want.ROC != nil {
				var curve []float64
				for _, p := range ROC(c.Y, c.A) {
					curve = append(curve, p.FalsePositiveRate, p.TruePositiveRate)
				}
				nearAll(t, "ROC", curve, c.Want.ROC)
			}
			auc, cov := delong(c.Y, c.A, c.B)
			nearAll(t, "AUC of DeLong", auc, c.Want.DeLongAUC)
			nearAll(t, "covariance of DeLong", cov, c.Want.DeLongCov)
		})
	}
}

func TestSeveralClassesLikeScikitLearn(t *testing.T) {
	for _, c := range readGolden(t).Several {
		t.Run(c.Name, func(t *testing.T) {
			each := make([]float64, c.Classes)
			near(t, "AUC one-vs-rest", AUCOneVsRest(each, c.Y, c.P), c.Want.OVR)
			nearAll(t, "AUC of each", each, c.Want.OVREach)
			near(t, "AUC one-vs-one", AUCOneVsOne(c.Y, c.P, c.Classes), c.Want.OVO)
			near(t, "accuracy", Accuracy(c.Y, c.Predicted), c.Want.Accuracy)
			near(t, "balanced accuracy", BalancedAccuracy(c.Y, c.Predicted, c.Classes), c.Want.Balanced)
			near(t, "mean F1", F1(each, c.Y, c.Predicted), c.Want.F1Mean)
			nearAll(t, "F1", each, c.Want.F1)
			near(t, "kappa", QuadraticKappa(c.Y, c.Predicted, c.Classes), c.Want.Kappa)
			near(t, "log-loss", LogLoss(c.Y, c.P, c.Classes), c.Want.LogLoss)
			near(t, "Brier", Brier(c.Y, c.P, c.Classes), c.Want.Brier)
			right, top := TopLabel(c.Y, c.P, c.Classes)
			near(t, "calibration error", CalibrationError(Calibration(right, top, 7, nil)), c.Want.CalibrationError)
		})
	}
}

func TestSurvivalLikeLifelines(t *testing.T) {
	for _, c := range readGolden(t).Survival {
		t.Run(c.Name, func(t *testing.T) {
			near(t, "Harrell", Concordance(c.Time, c.Event, c.Risk), c.Want.Harrell)
			near(t, "Antolini", ConcordanceTD(c.Time, c.Event, c.Grid, c.Survival), c.Want.Antolini)
			// Curves that never cross say nothing but who is at greater risk.
			var grid, curves []float64
			for s := range 200 {
				grid = append(grid, float64(s)/4)
			}
			for _, r := range c.Risk {
				for range grid {
					curves = append(curves, -r)
				}
			}
			near(t, "Antolini of curves that do not cross", ConcordanceTD(c.Time, c.Event, grid, curves), c.Want.Harrell)
		})
	}
}
