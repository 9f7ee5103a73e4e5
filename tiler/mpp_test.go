package tiler

import (
	"math"
	"testing"

	"coverslip"
)

func TestFault7DecideMPP(t *testing.T) {
	const a, r, d = coverslip.MPPAperio, coverslip.MPPTIFF, coverslip.MPPDICOM
	for _, c := range []struct {
		name      string
		claims    []claim
		objective float64
		want      float64
		source    coverslip.MPPSource
		doubt     bool
	}{
		{name: "Plain", claims: []claim{{a, 0.499, 0.499, ""}}, objective: 20, want: 0.499, source: a},
		{name: "NothingClaimed"},
		{name: "Zero", claims: []claim{{a, 0, 0, ""}}},
		{name: "NaN", claims: []claim{{a, math.NaN(), math.NaN(), ""}}},
		{name: "NaNInWords", claims: []claim{{a, math.NaN(), math.NaN(), "NaN"}}, doubt: true},
		{name: "WithAUnit", claims: []claim{{a, 0, 0, "0.499 um"}}, doubt: true},
		{name: "OnlyOneAxis", claims: []claim{{d, 0.25, 0, ""}}},
		{name: "Infinite", claims: []claim{{a, math.Inf(1), math.Inf(1), ""}}},
		{name: "Negative", claims: []claim{{a, -0.25, -0.25, ""}}},
		{name: "SlightlyAnisotropic", claims: []claim{{d, 0.250, 0.252, ""}}, want: 0.251, source: d},
		{name: "AnisotropicIsDoubted", claims: []claim{{d, 0.25, 0.5, ""}}, doubt: true},
		{name: "SeventyTwoDPIIsNoSlide", claims: []claim{{r, 352.78, 352.78, ""}}, doubt: true},
		{name: "ContradictsObjective", claims: []claim{{a, 0.5, 0.5, ""}}, objective: 40, doubt: true},
		{name: "CameraAtTheEdgeOfAnObjective", claims: []claim{{a, 0.37, 0.37, ""}}, objective: 20, want: 0.37, source: a},
		{name: "FirstBadSecondGood", claims: []claim{{a, 0, 0, ""}, {r, 0.5, 0.5, ""}}, objective: 20, want: 0.5, source: r},
		{name: "FirstWins", claims: []claim{{a, 0.25, 0.25, ""}, {r, 0.26, 0.26, ""}}, want: 0.25, source: a},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := decideMPP(c.claims, c.objective)
			if math.Abs(got.Value-c.want) > 1e-9 || got.Source != c.source || (got.Doubt != "") != c.doubt {
				t.Errorf("got %+v", got)
			}
			if got.Known() != (c.want > 0) {
				t.Errorf("Known() = %v", got.Known())
			}
		})
	}
}

func TestFault7ParseMPP(t *testing.T) {
	for text, want := range map[string]float64{"0.25": 0.25, "0,499": 0.499, " 0.5 ": 0.5} {
		if got, err := ParseMPP(text); err != nil || got != want {
			t.Errorf("ParseMPP(%q) = %g, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x", "0", "-1", "NaN", "Inf", "250", "0.5 um", "0,4,9"} {
		if got, err := ParseMPP(text); coverslip.KindOf(err) != coverslip.Invalid || coverslip.HintOf(err) == "" {
			t.Errorf("ParseMPP(%q) = %g, %v; want an invalid error with a hint", text, got, err)
		}
	}
}
