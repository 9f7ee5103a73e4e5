package tiff

import (
	"encoding/xml"
	"io"
	"math"
	"strconv"
	"strings"
)

// Format is who laid the file out. It decides which directories are levels.
type Format string

// The formats told apart. Hamamatsu, Ventana and Trestle keep parts of their layout outside what
// TIFF says (overlapping or shifted tiles, whole levels in one JPEG), so they are recognised here
// to be read elsewhere: they have no Levels.
const (
	FormatGeneric   Format = "generic-tiff"
	FormatAperio    Format = "aperio"
	FormatOME       Format = "ome-tiff"
	FormatPhilips   Format = "philips-tiff"
	FormatLeica     Format = "leica-scn"
	FormatHamamatsu Format = "hamamatsu-ndpi"
	FormatVentana   Format = "ventana-bif"
	FormatTrestle   Format = "trestle"
)

// Elsewhere reports whether pixels must not be read by this index.
func (f Format) Elsewhere() bool {
	return f == FormatHamamatsu || f == FormatVentana || f == FormatTrestle
}

// OME is what an OME-TIFF says about its images (OME-XML 2016-06).
type OME struct {
	Images []OMEImage
}

// OMEImage is one image of an OME-TIFF.
type OMEImage struct {
	Name                string
	SizeX, SizeY        int
	SizeZ, SizeC, SizeT int     // of a brightfield slide: 1, 3, 1
	Channels            int     // of a brightfield slide: 1 of three samples, or 3 of one
	Type                string  // of a sample: "uint8", "uint16", "int8", "float" …
	MPPX, MPPY          float64 // µm per pixel; 0 when absent or no length
	ObjectivePower      float64 // nominal magnification; 0 when absent
	firstPage           int     // directory of its first plane; -1 when it has none
}

// Philips is what a Philips TIFF says about its whole-slide image.
type Philips struct {
	MPPX, MPPY float64 // µm per pixel of level 0; 0 when absent
	// spacing of each level in mm, by its number: levels are padded to whole tiles, so only this
	// tells their true scale.
	spacing map[int]float64
}

// Leica is what a Leica SCN says about its scans.
type Leica struct {
	Scans          int     // scanned regions, the macro image not counted
	MPPX, MPPY     float64 // of the first scan, µm per pixel; 0 when absent
	ObjectivePower float64 // of the first scan; 0 when absent
	Brightfield    bool    // the first scan was lit from below
	scanPages      []int   // directories of the first scan, one channel, one focus plane
	macroPages     []int
}

// vendor sets the format and what could be parsed of its metadata.
func (f *File) vendor() {
	d := f.Dirs[0]
	switch text := strings.TrimSpace(d.Description); {
	case d.hamamatsu:
		f.Format = FormatHamamatsu
	case d.ventana:
		f.Format = FormatVentana
	case strings.HasPrefix(d.Software, "MedScan"):
		f.Format = FormatTrestle
	case strings.HasPrefix(text, "Aperio"):
		f.Format = FormatAperio
		f.Aperio = parseAperio(text)
	case strings.HasPrefix(d.Software, "Philips") && strings.Contains(text, "DPUfsImport"):
		f.Format = FormatPhilips
		f.Philips = parsePhilips(text)
	case strings.HasPrefix(text, "<") && strings.Contains(text, "http://www.leica-microsystems.com/scn/"):
		f.Format = FormatLeica
		f.Leica = parseLeica(text)
	case strings.HasPrefix(text, "<") && strings.Contains(text, "<OME"):
		f.Format = FormatOME
		f.OME = parseOME(text)
	default:
		f.Format = FormatGeneric
	}
}

// parseAperio reads "Aperio …|AppMag = 20|MPP = 0.4990|…". The first of two equal keys counts.
func parseAperio(text string) map[string]string {
	pairs := map[string]string{}
	for _, field := range strings.Split(text, "|")[1:] {
		key, value, ok := strings.Cut(field, "=")
		key = strings.TrimSpace(key)
		if _, again := pairs[key]; ok && !again {
			pairs[key] = strings.TrimSpace(value)
		}
	}
	return pairs
}

func parseOME(text string) *OME {
	var doc struct {
		Instruments []struct {
			Objectives []struct {
				ID    string `xml:"ID,attr"`
				Power string `xml:"NominalMagnification,attr"`
			} `xml:"Objective"`
		} `xml:"Instrument"`
		Images []struct {
			Name      string `xml:"Name,attr"`
			Objective struct {
				ID string `xml:"ID,attr"`
			} `xml:"ObjectiveSettings"`
			Pixels struct {
				SizeX    string     `xml:"SizeX,attr"`
				SizeY    string     `xml:"SizeY,attr"`
				SizeZ    string     `xml:"SizeZ,attr"`
				SizeC    string     `xml:"SizeC,attr"`
				SizeT    string     `xml:"SizeT,attr"`
				Type     string     `xml:"Type,attr"`
				PX       string     `xml:"PhysicalSizeX,attr"`
				PY       string     `xml:"PhysicalSizeY,attr"`
				UnitX    string     `xml:"PhysicalSizeXUnit,attr"`
				UnitY    string     `xml:"PhysicalSizeYUnit,attr"`
				Channels []struct{} `xml:"Channel"`
				TiffData []struct {
					IFD string `xml:"IFD,attr"`
				} `xml:"TiffData"`
			} `xml:"Pixels"`
		} `xml:"Image"`
	}
	if parseXML(text, &doc) != nil {
		return nil
	}
	ome := &OME{}
	for _, i := range doc.Images {
		px := i.Pixels
		image := OMEImage{
			Name: i.Name, Type: px.Type, Channels: len(px.Channels), firstPage: -1,
			SizeX: count(px.SizeX), SizeY: count(px.SizeY), SizeZ: count(px.SizeZ), SizeC: count(px.SizeC), SizeT: count(px.SizeT),
			MPPX: positive(px.PX) * micrometres(px.UnitX), MPPY: positive(px.PY) * micrometres(px.UnitY),
		}
		if len(px.TiffData) > 0 {
			image.firstPage = count(px.TiffData[0].IFD)
		}
		for _, instrument := range doc.Instruments {
			for _, o := range instrument.Objectives {
				if o.ID == i.Objective.ID {
					image.ObjectivePower = positive(o.Power)
				}
			}
		}
		ome.Images = append(ome.Images, image)
	}
	return ome
}

// micrometres converts a unit of OME-XML; the schema's default is µm. What is no length is 0.
func micrometres(unit string) float64 {
	switch unit {
	case "", "µm", "μm", "um": // U+00B5 and U+03BC
		return 1
	case "nm":
		return 1e-3
	case "mm":
		return 1e3
	case "cm":
		return 1e4
	case "m":
		return 1e6
	case "in":
		return 25400
	default:
		return 0
	}
}

type philipsObject struct {
	Attributes []philipsAttribute `xml:"Attribute"`
}

type philipsAttribute struct {
	Name    string          `xml:"Name,attr"`
	Text    string          `xml:",chardata"`
	Objects []philipsObject `xml:"Array>DataObject"`
}

func (o philipsObject) attribute(name string) philipsAttribute {
	for _, a := range o.Attributes {
		if a.Name == name {
			return a
		}
	}
	return philipsAttribute{}
}

func parsePhilips(text string) *Philips {
	var doc philipsObject
	if parseXML(text, &doc) != nil {
		return nil
	}
	out := &Philips{spacing: map[int]float64{}}
	for _, image := range doc.attribute("PIM_DP_SCANNED_IMAGES").Objects {
		if strings.TrimSpace(image.attribute("PIM_DP_IMAGE_TYPE").Text) != "WSI" {
			continue
		}
		out.MPPY, out.MPPX = pixelSpacing(image.attribute("DICOM_PIXEL_SPACING").Text)
		for _, level := range image.attribute("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE").Objects {
			n, err := strconv.Atoi(strings.TrimSpace(level.attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER").Text))
			y, x := pixelSpacing(level.attribute("DICOM_PIXEL_SPACING").Text)
			if err != nil || y == 0 || x == 0 {
				continue
			}
			out.spacing[n] = (x + y) / 2
			if n == 0 { // more digits than the image's own
				out.MPPY, out.MPPX = y, x
			}
		}
	}
	return out
}

// pixelSpacing reads `"0.000226891" "0.000226907"`: mm between rows, then between columns (DICOM
// PS3.3 10.7.1.3), and returns µm.
func pixelSpacing(text string) (y, x float64) {
	v := strings.Fields(strings.ReplaceAll(text, `"`, " "))
	if len(v) != 2 {
		return 0, 0
	}
	return positive(v[0]) * 1e3, positive(v[1]) * 1e3
}

func parseLeica(text string) *Leica {
	type rect struct {
		SizeX   string `xml:"sizeX,attr"`
		SizeY   string `xml:"sizeY,attr"`
		OffsetX string `xml:"offsetX,attr"`
		OffsetY string `xml:"offsetY,attr"`
	}
	var doc struct {
		Collection struct {
			SizeX  string `xml:"sizeX,attr"` // nm
			SizeY  string `xml:"sizeY,attr"`
			Images []struct {
				View   rect `xml:"view"` // nm
				Pixels struct {
					SizeX      string `xml:"sizeX,attr"`
					SizeY      string `xml:"sizeY,attr"`
					Dimensions []struct {
						IFD string `xml:"ifd,attr"`
						C   string `xml:"c,attr"`
						Z   string `xml:"z,attr"`
					} `xml:"dimension"`
				} `xml:"pixels"`
				Objective    string `xml:"scanSettings>objectiveSettings>objective"`
				Illumination string `xml:"scanSettings>illuminationSettings>illuminationSource"`
			} `xml:"image"`
		} `xml:"collection"`
	}
	if parseXML(text, &doc) != nil {
		return nil
	}
	out := &Leica{}
	for _, image := range doc.Collection.Images {
		var pages []int
		for _, d := range image.Pixels.Dimensions {
			if page, err := strconv.Atoi(d.IFD); err == nil && count(d.C) == 0 && count(d.Z) == 0 {
				pages = append(pages, page)
			}
		}
		if v := image.View; count(v.OffsetX) == 0 && count(v.OffsetY) == 0 && v.SizeX == doc.Collection.SizeX && v.SizeY == doc.Collection.SizeY {
			out.macroPages = append(out.macroPages, pages...)
			continue
		}
		if out.Scans++; out.Scans > 1 {
			continue
		}
		out.scanPages = pages
		out.ObjectivePower = positive(image.Objective)
		out.Brightfield = strings.TrimSpace(image.Illumination) == "brightfield"
		if w, h := positive(image.Pixels.SizeX), positive(image.Pixels.SizeY); w > 0 && h > 0 {
			out.MPPX, out.MPPY = positive(image.View.SizeX)/1e3/w, positive(image.View.SizeY)/1e3/h
		}
	}
	return out
}

// parseXML is lenient about the things vendors get wrong. It takes every text as the UTF-8 that
// text has become, whatever encoding the document names.
func parseXML(text string, into any) error {
	dec := xml.NewDecoder(strings.NewReader(text))
	dec.Strict = false
	dec.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil }
	return dec.Decode(into)
}

// positive reads a positive finite number; 0 for all else.
func positive(s string) float64 {
	v, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || !(v > 0) || math.IsInf(v, 0) {
		return 0
	}
	return v
}

// count reads a whole number; 0 for all else.
func count(s string) int {
	v, err := strconv.ParseInt(strings.TrimSpace(s), 10, 32)
	if err != nil {
		return 0
	}
	return int(v)
}
