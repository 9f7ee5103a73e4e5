package coverslip

import "testing"

func TestTCGANamesAreRead(t *testing.T) {
	const uuid = "07ae0e16-a883-4c86-bc74-4e13081175f2"
	whole := Barcode{Patient: "TCGA-A7-A6VV", Site: "A7", Sample: "01", Vial: "Z", Portion: "00", Slide: "DX1", UUID: uuid}
	for name, want := range map[string]Barcode{
		"TCGA-A7-A6VV-01Z-00-DX1.07AE0E16-A883-4C86-BC74-4E13081175F2":           whole,
		"TCGA-A7-A6VV-01Z-00-DX1.07ae0e16-a883-4c86-bc74-4e13081175f2.svs":       whole,
		"s3://tcga-2-open/x/tcga-a7-a6vv-01z-00-dx1." + uuid + ".svs":            whole,
		`C:\slides\TCGA-A7-A6VV-01Z-00-DX1.07AE0E16-A883-4C86-BC74-4E13081175F2`: whole,
		"TCGA-CR-7395-01A-01-TS1.svs":                                            {Patient: "TCGA-CR-7395", Site: "CR", Sample: "01", Vial: "A", Portion: "01", Slide: "TS1"},
		"TCGA-CR-7395-11A-01-BSA.h5":                                             {Patient: "TCGA-CR-7395", Site: "CR", Sample: "11", Vial: "A", Portion: "01", Slide: "BSA"},
		"TCGA-A7-A6VV":                                                           {Patient: "TCGA-A7-A6VV", Site: "A7"},
		"TCGA-A7-A6VV-01":                                                        {Patient: "TCGA-A7-A6VV", Site: "A7", Sample: "01"},
		"TCGA-A7-A6VV_features.pt":                                               {Patient: "TCGA-A7-A6VV", Site: "A7"},
	} {
		got, ok := ParseTCGA(name)
		if !ok || got != want {
			t.Errorf("%s: %+v %v, want %+v", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "TCGA", "TCGA-A7-A6VVX", "TCGA-A7-A6", "my-TCGA-A7-A6VV", "TCGA_A7_A6VV", "CMU-1.svs"} {
		if got, ok := ParseTCGA(name); ok || got != (Barcode{}) {
			t.Errorf("%q is taken for %+v", name, got)
		}
	}
	if !whole.Diagnostic() {
		t.Error("DX1 is a diagnostic slide")
	}
}
