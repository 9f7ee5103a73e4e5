package tiff_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"coverslip/tiler/tiff"
)

func reduced(im image) image {
	im.extra = append(slices.Clone(im.extra), long(254, 1))
	return im
}

func described(im image, text string) image {
	im.extra = append(slices.Clone(im.extra), ascii(270, text))
	return im
}

func tiled(w, h int) image   { return image{w: w, h: h, tile: 16} }
func striped(w, h int) image { return image{w: w, h: h} }

// TestRoles gives each directory its role. want has one letter a directory: l level, t thumbnail,
// L label, m macro, - other; levels are listed as the pages they come from, SubIFDs after a point.
func TestRoles(t *testing.T) {
	aperio := "Aperio Image Library v11.2.1 \r\n"
	subs := tiled(160, 120)
	subs.subIFDs = []image{reduced(tiled(80, 60)), reduced(tiled(40, 30))}
	ome := described(subs, omeXML(`<Image ID="Image:0"><Pixels SizeX="160" SizeY="120"><TiffData IFD="0"/></Pixels></Image>
		<Image ID="Image:1" Name="label image"><Pixels><TiffData IFD="1"/></Pixels></Image>
		<Image ID="Image:2" Name="macro image"><Pixels><TiffData IFD="2"/></Pixels></Image>`))
	macroWithSubs := tiled(64, 64)
	macroWithSubs.subIFDs = []image{reduced(tiled(32, 32))}
	mask := tiled(80, 60)
	mask.extra = []field{long(254, 5)}
	gray := tiled(80, 60)
	gray.extra = []field{short(258, 8), short(262, 1), short(277, 1)}

	for name, c := range map[string]struct {
		images []image
		roles  string
		levels string
	}{
		"OneStripedImage":   {[]image{striped(50, 40)}, "l", "0"},
		"OneReducedImage":   {[]image{reduced(tiled(50, 40))}, "l", "0"},
		"FlaggedPyramid":    {[]image{tiled(160, 120), reduced(tiled(80, 60)), reduced(tiled(40, 30))}, "lll", "0 1 2"},
		"UnflaggedPyramid":  {[]image{tiled(161, 121), tiled(80, 60), tiled(40, 30)}, "lll", "0 1 2"},
		"RoundedUp":         {[]image{tiled(161, 121), tiled(81, 61), tiled(41, 31), tiled(21, 16)}, "llll", "0 1 2 3"},
		"StripedPyramid":    {[]image{striped(160, 120), reduced(striped(80, 60))}, "ll", "0 1"},
		"UnorderedPyramid":  {[]image{tiled(40, 30), tiled(160, 120), tiled(80, 60)}, "lll", "1 2 0"},
		"ThumbnailFirst":    {[]image{striped(40, 30), tiled(160, 120), tiled(80, 60)}, "tll", "1 2"},
		"PagesOfOneSize":    {[]image{tiled(160, 120), tiled(160, 120), tiled(160, 120)}, "l--", "0"},
		"PagesOfTwoShapes":  {[]image{tiled(160, 120), tiled(80, 80)}, "l-", "0"},
		"StripedPages":      {[]image{striped(160, 120), striped(80, 60)}, "l-", "0"},
		"LargerStripedPage": {[]image{tiled(160, 120), striped(320, 240)}, "l-", "0"},
		"Mask":              {[]image{tiled(160, 120), mask}, "l-", "0"},
		"OtherSamples":      {[]image{tiled(160, 120), gray}, "l-", "0"},
		"SubIFDs":           {[]image{subs, described(striped(30, 30), "Label"), described(striped(64, 20), "macro")}, "lllLm", "0 0.0 0.1"},
		"OME":               {[]image{ome, tiled(80, 60), macroWithSubs}, "lllLmm", "0 0.0 0.1"},
		"LabelOfSameShape":  {[]image{tiled(160, 120), described(tiled(80, 60), "label 80x60")}, "lL", "0"},
		"LargeMacro":        {[]image{described(tiled(320, 240), "Macro -offset=(0,0)"), tiled(160, 120)}, "ml", "1"},
		"NineIsMacro":       {[]image{tiled(160, 120), {w: 320, h: 240, extra: []field{long(254, 9)}}}, "lm", "0"},
		"LabelFreeImaging":  {[]image{described(tiled(160, 120), "Label-free imaging"), tiled(80, 60)}, "ll", "0 1"},
		"Aperio": {[]image{described(tiled(160, 120), aperio+"160x120|MPP = 0.5|Filename = label"), described(striped(50, 40), aperio+"160x120 -> 50x40"),
			described(tiled(40, 30), aperio+"160x120 -> 40x30"), reduced(described(striped(20, 20), aperio+"label 20x20")),
			described(image{w: 60, h: 20, extra: []field{long(254, 9)}}, aperio+"macro 60x20")}, "ltlLm", "0 2"},
		"AperioWithoutNames": {[]image{described(tiled(160, 120), aperio), striped(50, 40), reduced(striped(20, 20)),
			{w: 60, h: 20, extra: []field{long(254, 9)}}, striped(80, 60)}, "ltLm-", "0"},
		"AperioSmallerThanItsMacro": {[]image{described(tiled(16, 16), aperio), striped(16, 16), described(striped(90, 90), aperio+"macro 90x90")}, "ltm", "0"},
		"OnlyALabel":                {[]image{described(striped(20, 20), "label")}, "L", ""},
		"Hamamatsu":                 {[]image{{w: 160, h: 120, extra: []field{short(65420, 1)}}, striped(80, 60)}, "--", ""},
		"Ventana": {[]image{{w: 64, h: 64, tile: 16, extra: []field{{tag: 700, typ: byteT, values: letters("<EncodeInfo><SlideInfo><iScan Magnification=\"40\"/>")}}},
			tiled(32, 32)}, "--", ""},
		"Trestle": {[]image{{w: 64, h: 64, tile: 16, extra: []field{ascii(305, "MedScan")}}, tiled(32, 32)}, "--", ""},
		"LeicaOneScan": {[]image{described(tiled(48, 96), leicaXML(1)), tiled(24, 48), tiled(160, 120), tiled(80, 60)},
			"mmll", "2 3"},
		"LeicaTwoScans": {[]image{described(tiled(48, 96), leicaXML(2)), tiled(24, 48), tiled(160, 120), tiled(80, 60)},
			"mm--", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := read(build(binary.LittleEndian, false, c.images...))
			if err != nil {
				t.Fatal(err)
			}
			letter := map[tiff.Role]string{tiff.LevelImage: "l", tiff.Thumbnail: "t", tiff.Label: "L", tiff.Macro: "m", tiff.Other: "-"}
			var roles string
			for _, d := range f.Dirs {
				roles += letter[d.Role]
			}
			var levels []string
			for _, l := range f.Levels {
				at := fmt.Sprint(l.Dir.Page)
				if l.Dir.SubIFD >= 0 {
					at += fmt.Sprint(".", l.Dir.SubIFD)
				}
				levels = append(levels, at)
			}
			if roles != c.roles || strings.Join(levels, " ") != c.levels {
				t.Errorf("%s: roles %s, levels %v; want %s, %s", f.Format, roles, levels, c.roles, c.levels)
			}
		})
	}
}

func letters(s string) (v []uint64) {
	for _, b := range []byte(s) {
		v = append(v, uint64(b))
	}
	return v
}

func omeXML(images string) string {
	return `<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">` + images + `</OME>`
}

// leicaXML has a macro image (directories 0, 1) and as many scans.
func leicaXML(scans int) string {
	scan := `<image name="scan"><pixels sizeX="160" sizeY="120"><dimension r="0" sizeX="160" sizeY="120" ifd="2"/><dimension r="1" sizeX="80" sizeY="60" ifd="3"/></pixels>
		<view sizeX="80000" sizeY="60000" offsetX="1000" offsetY="2000"/>
		<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
		<illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>`
	return `<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection sizeX="26564529" sizeY="76734382">
		<image name="macro"><pixels sizeX="48" sizeY="96"><dimension r="0" ifd="0"/><dimension r="1" ifd="1"/></pixels>
		<view sizeX="26564529" sizeY="76734382" offsetX="0" offsetY="0"/></image>` + strings.Repeat(scan, scans) + `</collection></scn>`
}

func TestAperioText(t *testing.T) {
	f := mustRead(t, build(binary.LittleEndian, false, described(tiled(16, 16),
		"Aperio Image Library v1\r\n16x16 (16x16) J2K|AppMag = 40|MPP=0,2520|MPP = 9|Note = a=b|Empty = |nothing")))
	want := map[string]string{"AppMag": "40", "MPP": "0,2520", "Note": "a=b", "Empty": ""}
	if len(f.Aperio) != len(want) {
		t.Errorf("%v", f.Aperio)
	}
	for k, v := range want {
		if f.Aperio[k] != v {
			t.Errorf("%s is %q, want %q", k, f.Aperio[k], v)
		}
	}
}

func TestOMEText(t *testing.T) {
	f := mustRead(t, build(binary.BigEndian, true, described(tiled(16, 16), omeXML(`
		<Instrument ID="I"><Objective ID="O" NominalMagnification="20.0"/></Instrument>
		<Image ID="Image:0" Name="a"><ObjectiveSettings ID="O"/><Pixels SizeX="16" SizeY="16" SizeZ="1" SizeC="3" SizeT="1" Type="uint8"
			PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="0.25"><Channel SamplesPerPixel="3"/><TiffData/></Pixels></Image>
		<Image ID="Image:1" Name="b"><Pixels SizeC="40" Type="uint16" PhysicalSizeX="INF" PhysicalSizeY="3" PhysicalSizeYUnit="pixel"/></Image>`))))
	if f.OME == nil || len(f.OME.Images) != 2 {
		t.Fatalf("%+v", f.OME)
	}
	a, b := f.OME.Images[0], f.OME.Images[1]
	if a.Name != "a" || a.SizeX != 16 || a.SizeC != 3 || a.Channels != 1 || a.Type != "uint8" || a.MPPX != 0.5 || a.MPPY != 0.25 || a.ObjectivePower != 20 {
		t.Errorf("%+v", a)
	}
	if b.SizeC != 40 || b.Type != "uint16" || b.MPPX != 0 || b.MPPY != 0 || b.ObjectivePower != 0 {
		t.Errorf("%+v", b)
	}
}

func TestLeicaText(t *testing.T) {
	f := mustRead(t, build(binary.LittleEndian, true, described(tiled(48, 96), leicaXML(1)), tiled(24, 48), tiled(160, 120), tiled(80, 60)))
	if l := f.Leica; l.Scans != 1 || l.MPPX != 0.5 || l.MPPY != 0.5 || l.ObjectivePower != 20 || !l.Brightfield {
		t.Errorf("%+v", l)
	}
}

// TestPhilipsPadding has levels padded to whole tiles, as Philips writes them: the spacing tells
// how much of each is picture.
func TestPhilipsPadding(t *testing.T) {
	level := func(n int, spacing string) string {
		return fmt.Sprintf(`<DataObject ObjectType="PixelDataRepresentation">
			<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028">&quot;%[2]s&quot; &quot;%[2]s&quot;</Attribute>
			<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER">%[1]d</Attribute></DataObject>`, n, spacing)
	}
	text := `<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport"><Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>
		<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">MACROIMAGE</Attribute></DataObject>
		<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>
		<Attribute Name="DICOM_PIXEL_SPACING">"0.000227273" "0.000227273"</Attribute>
		<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>` +
		level(0, "0.000226891") + level(1, "0.000453764") + level(2, "0.00090749") + `</Array></Attribute></DataObject></Array></Attribute></DataObject>`
	base := described(tiled(144, 112), text)
	base.extra = append(base.extra, ascii(305, "Philips DP v1.0"))
	f := mustRead(t, build(binary.LittleEndian, true, base, tiled(80, 64), tiled(48, 32),
		described(striped(60, 30), "Macro"), described(striped(30, 30), "Label")))
	if f.Format != tiff.FormatPhilips || f.Philips == nil || math.Abs(f.Philips.MPPX-0.226891) > 1e-12 {
		t.Fatalf("%s %+v", f.Format, f.Philips)
	}
	for i, want := range []struct {
		w, h int
		down float64
	}{{144, 112, 1}, {72, 56, 2}, {36, 28, 4}} {
		if l := f.Levels[i]; l.Width != want.w || l.Height != want.h || l.Downsample != want.down {
			t.Errorf("level %d: %+v, want %+v", i, l.Level, want)
		}
	}
	if f.First(tiff.Macro).Page != 3 || f.First(tiff.Label).Page != 4 {
		t.Error("macro and label are not found")
	}
}

// TestVendorGarbage: what a vendor writes cannot keep a slide from being read.
func TestVendorGarbage(t *testing.T) {
	for name, text := range map[string]string{
		"Aperio": "Aperio|||=|= =|MPP", "OME": "<OME><Image><Pixels SizeX=", "OMEEmpty": "<OME/>", "OMEDeep": "<OME>" + strings.Repeat("<Image>", 20000),
		"OMELatin1": "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><OME><Image Name=\"\xb5\"/></OME>", "Leica": `<scn xmlns="http://www.leica-microsystems.com/scn/"><collection><image`,
		"Bytes": "\xff\xfe\x01", "JSON": `{"a": [`,
	} {
		t.Run(name, func(t *testing.T) {
			f, err := read(build(binary.LittleEndian, false, described(tiled(16, 16), text)))
			if err != nil {
				t.Fatal(err)
			}
			if f.Format != tiff.FormatLeica && len(f.Levels) != 1 {
				t.Errorf("%s has %d levels", f.Format, len(f.Levels))
			}
		})
	}
	base := described(tiled(16, 16), "<DataObject ObjectType=\"DPUfsImport\"><Attribute Name=")
	base.extra = append(base.extra, ascii(305, "Philips"))
	if f := mustRead(t, build(binary.LittleEndian, false, base)); f.Format != tiff.FormatPhilips || f.Philips != nil {
		t.Errorf("%s %+v", f.Format, f.Philips)
	}
}
