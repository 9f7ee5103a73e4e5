package coverslip

import (
	"regexp"
	"strings"
)

// Barcode is what the name of a TCGA slide says: TCGA-A7-A6VV-01Z-00-DX1.<UUID>.svs. Parts that a name
// leaves out are empty.
type Barcode struct {
	Patient string // TCGA-A7-A6VV, the first 12 characters
	Site    string // A7, the tissue source site, characters 6 and 7
	Sample  string // 01; 01 to 09 are tumour, 10 to 19 normal tissue
	Vial    string // Z; Z is formalin-fixed and paraffin-embedded
	Portion string // 00
	Slide   string // DX1; DX is a diagnostic slide, TS, MS and BS are frozen ones
	UUID    string // of the file, in lower case
}

// Diagnostic reports whether the slide is a diagnostic one (DX), from paraffin and not frozen.
func (b Barcode) Diagnostic() bool { return strings.HasPrefix(b.Slide, "DX") }

// ParseTCGA reads the name of a TCGA file, with or without folders and suffix, or the barcode of a slide,
// a sample or a patient. Upper and lower case are the same. ok is false for any other name.
// The scheme: https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode/
func ParseTCGA(name string) (b Barcode, ok bool) {
	name = name[strings.LastIndexAny(name, `/\`)+1:]
	m := tcgaName.FindStringSubmatch(strings.ToUpper(strings.TrimSpace(name)))
	if m == nil {
		return Barcode{}, false
	}
	b = Barcode{Patient: m[1], Site: m[2], Sample: m[3], Vial: m[4], Portion: m[5], Slide: m[6]}
	b.UUID = strings.ToLower(tcgaUUID.FindString(m[7]))
	return b, true
}

var (
	tcgaName = regexp.MustCompile(`^(TCGA-([A-Z0-9]{2})-[A-Z0-9]{4})(?:-([0-9]{2})([A-Z])?(?:-([0-9]{2})[A-Z]?(?:-([A-Z]{2}[A-Z0-9]{1,2}))?)?)?([^A-Z0-9].*)?$`)
	tcgaUUID = regexp.MustCompile(`[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}`)
)
