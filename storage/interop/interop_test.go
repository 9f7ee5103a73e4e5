package interop_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"coverslip"
	"coverslip/storage/bagfile"
	"coverslip/storage/interop"
)

var (
	about = interop.About{Name: "section µ", Width: 40000, Height: 30000, ObjectivePower: 20, Metadata: bagfile.Metadata{
		Slide: coverslip.SlideID(strings.Repeat("0f", 32)), SlideMPP: 0.499, SlideMPPSource: coverslip.MPPAperio, Reader: "r", ReaderVersion: "1",
		MPP: 0.5, TileSize: 256, Overlap: 16, MinTissue: 0.25, Mask: `{"a":1}`, Found: 700, Encoder: "uni2-h", EncoderSHA256: strings.Repeat("ab", 32), Version: "0.1.0"}}
	full  = source(700, 5)
	empty = source(0, 5)
)

// source is a bag of n rows whose values tell where they stand.
func source(n, dim int) *bagfile.Reader {
	var file bytes.Buffer
	tiles, features := make([]coverslip.Tile, n), make([]float32, n*dim)
	for i := range tiles {
		tiles[i] = coverslip.Tile{X: int64(i%30) * 241, Y: int64(i/30) * 241}
	}
	for i := range features {
		features[i] = float32(i)/7 - 3
	}
	w, err := bagfile.NewWriter(&file, about.Metadata, tiles, dim)
	if err = errors.Join(err, w.Append(features), w.Close()); err != nil {
		panic(err)
	}
	b, err := bagfile.Open(bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		panic(err)
	}
	return b
}

func TestWrittenBagsComeBackAsTheyWere(t *testing.T) {
	for _, l := range []interop.Layout{interop.CLAM, interop.TRIDENT, interop.STAMP, interop.NPZ} {
		for name, bag := range map[string]*bagfile.Reader{"Full": full, "Empty": empty} {
			t.Run(string(l)+name, func(t *testing.T) {
				b := open(t, write(t, l, bag), l)
				if err := b.Complete(interop.Said{}); err != nil {
					t.Fatal(err)
				}
				if b.Len() != bag.Len() || b.Dim() != bag.Dim() {
					t.Fatalf("%d × %d", b.Len(), b.Dim())
				}
				if b.Metadata != about.Metadata {
					t.Errorf("metadata %+v", b.Metadata)
				}
				for _, from := range []int{0, bag.Len() / 2, 0} {
					if n := bag.Len() - from; !reflect.DeepEqual(rows(t, b, from, n), rows(t, bag, from, n)) {
						t.Errorf("other features or corners from row %d on", from)
					}
				}
			})
		}
	}
}

// The names, types and attributes that tools look for, as h5py sees them.
func TestOtherToolsReadWhatIsWritten(t *testing.T) {
	plan := coverslip.Plan{PlanParams: coverslip.PlanParams{MPP: 0.5, Size: 256, Overlap: 16}, SlideMPP: coverslip.MPP{Value: 0.25}, Level: 1, Span: 512,
		Tiles: []coverslip.Tile{{X: 512, Y: 0}, {X: 1024, Y: 512}}}
	slide := coverslip.Slide{Name: "section.svs", Width: 40000, Height: 30000, ObjectivePower: 40, Levels: []coverslip.Level{{Width: 40000, Height: 30000, Downsample: 1}, {Width: 10000, Height: 7500, Downsample: 4}}}
	coords := func(l interop.Layout) string {
		path := filepath.Join(t.TempDir(), "section.h5")
		if err := interop.WriteCoords(path, l, slide, plan); err != nil {
			t.Fatal(err)
		}
		return path
	}
	embedding := filepath.Join(t.TempDir(), "section.h5")
	if err := interop.WriteEmbedding(embedding, about, full, []float32{0.6, 0.8, 0}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, want string }{
		"CLAM": {write(t, interop.CLAM, full), `coords int32 [700, 2] {}
features float32 [700, 5] {}
`},
		"TRIDENT": {write(t, interop.TRIDENT, full), `coords int64 [700, 2] {'level0_height': 30000, 'level0_magnification': 20, 'level0_width': 40000, 'name': 'section µ', 'overlap': 16, 'patch_size': 256, 'patch_size_level0': 257, 'savetodir': DIR, 'target_magnification': 20}
features float32 [700, 5] {'encoder': 'uni2-h', 'name': 'section µ', 'savetodir': DIR}
`},
		"TRIDENTEmpty": {write(t, interop.TRIDENT, empty), `coords int64 [0, 2] {'level0_height': 30000, 'level0_magnification': 20, 'level0_width': 40000, 'name': 'section µ', 'overlap': 16, 'patch_size': 256, 'patch_size_level0': 257, 'savetodir': DIR, 'target_magnification': 20}
features float32 [0, 5] {'encoder': 'uni2-h', 'name': 'section µ', 'savetodir': DIR}
`},
		"STAMP": {write(t, interop.STAMP, full), `/ {'code_hash': 'coverslip-0.1.0', 'extractor': 'uni2-h', 'feat_type': 'tile', 'stamp_version': '2.1.0', 'tile_size_px': 256, 'tile_size_um': 128.0, 'unit': 'um'}
coords float32 [700, 2] {}
feats float32 [700, 5] {}
`},
		"CLAMPlan": {coords(interop.CLAM), `coords int64 [2, 2] {'downsample': [4.0, 4.0], 'downsampled_level_dim': [10000, 7500], 'level_dim': [10000, 7500], 'name': 'section', 'patch_level': 1, 'patch_size': 128, 'save_path': DIR}
`},
		"TRIDENTPlan": {coords(interop.TRIDENT), `coords int64 [2, 2] {'level0_height': 30000, 'level0_magnification': 40, 'level0_width': 40000, 'name': 'section', 'overlap': 16, 'patch_size': 256, 'patch_size_level0': 512, 'savetodir': DIR, 'target_magnification': 20}
`},
		"TRIDENTEmbedding": {embedding, `coords int64 [700, 2] {'level0_height': 30000, 'level0_magnification': 20, 'level0_width': 40000, 'name': 'section µ', 'overlap': 16, 'patch_size': 256, 'patch_size_level0': 257, 'savetodir': DIR, 'target_magnification': 20}
features float32 [3] {'encoder': 'uni2-h', 'name': 'section µ', 'savetodir': DIR}
`},
	} {
		t.Run(name, func(t *testing.T) {
			got := python(t, `import sys, os, h5py
def attributes(o):
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in sorted(o.attrs.items()) if k != "coverslip"}
with h5py.File(sys.argv[1]) as f:
    if attributes(f): print("/", attributes(f))
    for k in sorted(f): print(k, f[k].dtype, list(f[k].shape), str(attributes(f[k])).replace(repr(os.path.dirname(sys.argv[1])), "DIR"))`, c.path)
			if got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
	t.Run("NPZ", func(t *testing.T) {
		got := python(t, `import sys, numpy as np
f = np.load(sys.argv[1], allow_pickle=False)
print(*[(k, str(f[k].dtype)[:2], f[k].shape) for k in sorted(f)], f["features"][1].astype(float).round(2).tolist() == [-2.29, -2.14, -2, -1.86, -1.71], f["coords"][31])`, write(t, interop.NPZ, full))
		if got != "('coords', 'in', (700, 2)) ('coverslip', '<U', ()) ('features', 'fl', (700, 5)) True [241 241]\n" {
			t.Error(got)
		}
	})
}

// What tools that use h5py write, one statement of Python a case, and what is said of it.
func TestReadsOtherToolsFiles(t *testing.T) {
	const whole = `n, d = 40, 3
f["features"] = np.arange(n * d).reshape(n, d).astype(np.float32) / 8
f["coords"] = np.stack([np.arange(n) * 512, np.arange(n) * 256], 1)
a = f["coords"].attrs
a["patch_size"] = 256; a["patch_size_level0"] = 512; a["level0_magnification"] = 40; a["target_magnification"] = 20; a["overlap"] = 32
a["level0_width"] = 40000; a["level0_height"] = 30000; a["name"] = "x"
f["features"].attrs["encoder"] = "conch_v15"
`
	const stamp = `n, d = 40, 3
f["feats"] = (np.arange(n * d).reshape(n, d) / 8).astype(np.float16)
f["coords"] = (np.stack([np.arange(n) * 512, np.arange(n) * 256], 1) * 0.2525).astype(np.float32)
f.attrs["stamp_version"] = "2.3.0"; f.attrs["extractor"] = "uni2"; f.attrs["unit"] = "um"; f.attrs["tile_size_um"] = 256.0; f.attrs["tile_size_px"] = 224; f.attrs["feat_type"] = "tile"
`
	change := func(name, expression string) string {
		return fmt.Sprintf("v = %s\nt = dict(f[%q].attrs); del f[%q]; f[%q] = v; f[%q].attrs.update(t)\n", expression, name, name, name, name)
	}
	cut := bagfile.Metadata{MPP: 0.5, TileSize: 256, Overlap: 32, SlideMPP: 0.25, Encoder: "conch_v15"}
	read := map[string]struct {
		madeBy
		said interop.Said
		want bagfile.Metadata
	}{
		"TRIDENT":          {madeBy{interop.TRIDENT, whole}, interop.Said{}, cut},
		"TRIDENTFloat16":   {madeBy{interop.TRIDENT, whole + change("features", `f["features"][:].astype(np.float16)`)}, interop.Said{}, cut},
		"TRIDENTFloat64":   {madeBy{interop.TRIDENT, whole + change("features", `f["features"][:].astype(np.float64)`)}, interop.Said{}, cut},
		"TRIDENTBigEndian": {madeBy{interop.TRIDENT, whole + change("features", `f["features"][:].astype(">f4")`) + change("coords", `f["coords"][:].astype(">i4")`)}, interop.Said{}, cut},
		"TRIDENTGzip": {madeBy{interop.TRIDENT, whole + `v = f["features"][:]; del f["features"]
f.create_dataset("features", data=v, chunks=(7, 2), compression="gzip", shuffle=True).attrs["encoder"] = np.bytes_("conch_v15")
`}, interop.Said{}, cut},
		"TRIDENTNamedByTheUser": {madeBy{interop.TRIDENT, whole}, interop.Said{Encoder: "mine", MPP: 0.5, TileSize: 256, SlideMPP: 0.2525},
			bagfile.Metadata{MPP: 0.5, TileSize: 256, Overlap: 32, SlideMPP: 0.25, Encoder: "mine"}},
		"TRIDENTWithoutAttributes": {madeBy{interop.TRIDENT, whole + `del a["patch_size"], a["target_magnification"], a["overlap"]` + "\n"}, interop.Said{MPP: 1, TileSize: 224, Overlap: 8},
			bagfile.Metadata{MPP: 1, TileSize: 224, Overlap: 8, Encoder: "conch_v15"}},
		"CLAM":  {madeBy{interop.CLAM, whole + change("coords", `f["coords"][:].astype(np.int32)`)}, interop.Said{Encoder: "resnet50", MPP: 0.5, TileSize: 256}, bagfile.Metadata{MPP: 0.5, TileSize: 256, Encoder: "resnet50"}},
		"STAMP": {madeBy{interop.STAMP, stamp}, interop.Said{SlideMPP: 0.2525}, bagfile.Metadata{MPP: 256. / 224, TileSize: 224, SlideMPP: 0.2525, Encoder: "uni2"}},
		"NPZ":   {madeBy{interop.NPZ, `np.savez(path, features=(np.arange(120).reshape(40, 3) / 8).astype(np.float16), coords=np.stack([np.arange(40) * 512, np.arange(40) * 256], 1).astype(">i4"))`}, interop.Said{Encoder: "e", MPP: 0.5, TileSize: 256}, bagfile.Metadata{MPP: 0.5, TileSize: 256, Encoder: "e"}},
		"NPZCompressed": {madeBy{interop.NPZ, `np.savez_compressed(path, features=np.arange(120).reshape(40, 3) / 8, coords=np.stack([np.arange(40) * 512, np.arange(40) * 256], 1).astype(np.uint32))`}, interop.Said{Encoder: "e", MPP: 0.5, TileSize: 256},
			bagfile.Metadata{MPP: 0.5, TileSize: 256, Encoder: "e"}},
	}
	scripts := map[string]madeBy{}
	for name, c := range read {
		scripts[name] = c.madeBy
	}
	paths := allMade(t, scripts)
	for name, c := range read {
		t.Run(name, func(t *testing.T) {
			b := open(t, paths[name], c.layout)
			if err := b.Complete(c.said); err != nil {
				t.Fatal(err)
			}
			if b.Metadata != c.want || b.Len() != 40 || b.Dim() != 3 {
				t.Errorf("%d × %d, %+v", b.Len(), b.Dim(), b.Metadata)
			}
			got := rows(t, b, 0, 40)
			for i := range 40 {
				if got.coords[2*i] != int64(i)*512 || got.coords[2*i+1] != int64(i)*256 || got.features[3*i+2] != float32(3*i+2)/8 {
					t.Fatalf("row %d is %v at %v", i, got.features[3*i:3*i+3], got.coords[2*i:2*i+2])
				}
			}
		})
	}
	const none = `f.create_dataset("features", (0, 3), np.float32, chunks=(1, 3), maxshape=(None, 3)).attrs["encoder"] = "e"
f["coords"] = np.zeros(%s)
a = f["coords"].attrs
a["patch_size"] = 256; a["patch_size_level0"] = 512; a["target_magnification"] = 20; a["overlap"] = 0
`
	for name, coords := range map[string]string{"EmptySlide": "(0, 2), np.int64", "EmptySlideOfNoShape": "(0,)"} {
		t.Run(name, func(t *testing.T) {
			b := open(t, made(t, interop.TRIDENT, fmt.Sprintf(none, coords)), interop.TRIDENT)
			if err := b.Complete(interop.Said{}); err != nil || b.Len() != 0 || b.Dim() != 3 {
				t.Fatalf("%d × %d, %v", b.Len(), b.Dim(), err)
			}
			rows(t, b, 0, 0)
		})
	}

	refused := map[string]struct {
		madeBy
		said interop.Said
		kind coverslip.Kind
		says string
	}{
		"NoTileSize":        {madeBy{interop.TRIDENT, whole + `del a["patch_size"]`}, interop.Said{}, coverslip.NotFound, `dataset coords: it has no attribute "patch_size" (write the file again with it, or say how tiles were cut: --mpp X --size N`},
		"NoOverlap":         {madeBy{interop.TRIDENT, whole + `del a["overlap"]`}, interop.Said{}, coverslip.NotFound, `"overlap"`},
		"NoEncoder":         {madeBy{interop.TRIDENT, whole + `del f["features"].attrs["encoder"]`}, interop.Said{}, coverslip.Invalid, "--encoder NAME"},
		"TextForANumber":    {madeBy{interop.TRIDENT, whole + `a["patch_size"] = "256"`}, interop.Said{}, coverslip.Invalid, `"patch_size" is no number`},
		"ZeroTileSize":      {madeBy{interop.TRIDENT, whole + `a["patch_size"] = 0`}, interop.Said{}, coverslip.Invalid, "tiles of 0 pixels"},
		"NaNMagnification":  {madeBy{interop.TRIDENT, whole + `a["target_magnification"] = np.nan`}, interop.Said{}, coverslip.Invalid, "NaN"},
		"UserSaysOtherwise": {madeBy{interop.TRIDENT, whole}, interop.Said{MPP: 0.25}, coverslip.Invalid, "0.5 where --mpp says 0.25"},
		"NaN":               {madeBy{interop.TRIDENT, whole + `f["features"][17, 1] = np.nan`}, interop.Said{}, coverslip.Invalid, "feature 1 of row 17 is NaN"},
		"InfiniteFloat64":   {madeBy{interop.TRIDENT, whole + change("features", `np.full((40, 3), 1e300)`)}, interop.Said{}, coverslip.Invalid, "feature 0 of row 0 is +Inf"},
		"MoreCorners":       {madeBy{interop.TRIDENT, whole + change("features", `f["features"][:39]`)}, interop.Said{}, coverslip.Invalid, "features has shape [39 3] and coords [40 2]"},
		"FewerCorners":      {madeBy{interop.TRIDENT, whole + change("coords", `f["coords"][:39]`)}, interop.Said{}, coverslip.Invalid, "[39 2]"},
		"ThreeCorners":      {madeBy{interop.TRIDENT, whole + change("coords", `np.zeros((40, 5), np.int64)`)}, interop.Said{}, coverslip.Invalid, "[40 5]"},
		"HalfCorners":       {madeBy{interop.TRIDENT, whole + change("coords", `f["coords"][:] + 0.5`)}, interop.Said{}, coverslip.Invalid, "float64"},
		"OutsideTheSlide":   {madeBy{interop.TRIDENT, whole + `f["coords"][3] = (40000, 0)`}, interop.Said{}, coverslip.Invalid, "row 3 is at 40000,0, outside"},
		"IntegerFeatures":   {madeBy{interop.TRIDENT, whole + change("features", `np.zeros((40, 3), np.int8)`)}, interop.Said{}, coverslip.Invalid, "integers"},
		"AnEmbedding":       {madeBy{interop.TRIDENT, whole + change("features", `f["features"][0]`)}, interop.Said{}, coverslip.Invalid, "the embedding of a slide"},
		"NoFeatures":        {madeBy{interop.TRIDENT, `f["feats"] = np.zeros((1, 2))`}, interop.Said{}, coverslip.NotFound, `no dataset "features"`},
		"NoCoords":          {madeBy{interop.TRIDENT, `f["features"] = np.zeros((1, 2))`}, interop.Said{}, coverslip.NotFound, `no dataset "coords"`},
		"CLAMSaysNothing":   {madeBy{interop.CLAM, whole}, interop.Said{Encoder: "e"}, coverslip.NotFound, "--mpp X --size N"},
		"STAMPWithoutMPP":   {madeBy{interop.STAMP, stamp}, interop.Said{}, coverslip.NeedsMPP, "--mpp-of-slide"},
		"STAMPInPixels":     {madeBy{interop.STAMP, stamp + `f.attrs["unit"] = "px"`}, interop.Said{SlideMPP: 1}, coverslip.Invalid, `"unit" is "px"`},
		"STAMPWithoutSize":  {madeBy{interop.STAMP, stamp + `del f.attrs["tile_size_um"]`}, interop.Said{SlideMPP: 1}, coverslip.NotFound, `"tile_size_um"`},
		"STAMPOfASlide":     {madeBy{interop.STAMP, stamp + `f.attrs["feat_type"] = "slide"`}, interop.Said{SlideMPP: 1}, coverslip.Invalid, "features of a slide"},
		"STAMPCornerNaN":    {madeBy{interop.STAMP, stamp + `f["coords"][2, 0] = np.nan`}, interop.Said{SlideMPP: 1}, coverslip.Invalid, "row 2 is NaN"},
		"NPZPickle":         {madeBy{interop.NPZ, `np.savez(path, features=np.array([{}], dtype=object), coords=np.zeros((1, 2), np.int64))`}, interop.Said{}, coverslip.Invalid, "array features"},
		"NPZFortran":        {madeBy{interop.NPZ, `np.savez(path, features=np.asfortranarray(np.zeros((4, 2))), coords=np.zeros((4, 2), np.int64))`}, interop.Said{}, coverslip.Invalid, "C order"},
		"NPZOtherNames":     {madeBy{interop.NPZ, `np.savez(path, x=np.zeros(2))`}, interop.Said{}, coverslip.NotFound, "no arrays features and coords"},
		"NPZBomb": {madeBy{interop.NPZ, `import zipfile, io
b = io.BytesIO(); np.save(b, np.zeros((1, 2), np.float32)); head = b.getvalue()[:128].replace(b"(1, 2), }  ", b"(4000, 2), }")[:128]
z = zipfile.ZipFile(path, "w"); z.writestr("features.npy", head); z.writestr("coords.npy", head); z.close()`}, interop.Said{}, coverslip.Invalid, "bytes for shape"},
	}
	clear(scripts)
	for name, c := range refused {
		scripts[name] = c.madeBy
	}
	paths = allMade(t, scripts)
	for name, c := range refused {
		t.Run("Refuses"+name, func(t *testing.T) {
			path := paths[name]
			b, err := interop.Open(path, c.layout)
			if err == nil {
				defer b.Close()
				if err = b.Complete(c.said); err == nil {
					err = errors.Join(b.Coords(make([]int64, 2*b.Len()), 0, b.Len()), b.Features(make([]float32, b.Len()*b.Dim()), 0, b.Len()))
				}
			}
			if coverslip.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v", coverslip.KindOf(err), err)
			}
		})
	}
}

func TestFloat16OfNPZIsExact(t *testing.T) {
	path := made(t, interop.NPZ, `np.savez(path, features=np.arange(65536, dtype=np.uint16).view(np.float16)[np.isfinite(np.arange(65536, dtype=np.uint16).view(np.float16))].reshape(-1, 1), coords=np.zeros((63488, 2), np.int64))`)
	b := open(t, path, interop.NPZ)
	got := make([]float32, b.Len())
	if err := b.Features(got, 0, len(got)); err != nil || len(got) != 63488 {
		t.Fatalf("%d, %v", len(got), err)
	}
	i := 0
	for h := range 65536 {
		e, v := h>>10&31, float64(h&0x3ff)/1024
		if e == 31 {
			continue
		}
		if e > 0 {
			v = math.Ldexp(1+v, e-15)
		} else {
			v = math.Ldexp(v, -14)
		}
		if h>>15 == 1 {
			v = -v
		}
		if float64(got[i]) != v || math.Signbit(float64(got[i])) != math.Signbit(v) {
			t.Fatalf("0x%04x is %v, want %v", h, got[i], v)
		}
		i++
	}
}

func TestWritingIsRefusedWhereTheResolutionIsUnknown(t *testing.T) {
	blind := about
	blind.SlideMPP = 0
	for _, l := range []interop.Layout{interop.TRIDENT, interop.STAMP} {
		path := filepath.Join(t.TempDir(), "bag.h5")
		if err := interop.WriteBag(path, l, blind, full); coverslip.KindOf(err) != coverslip.NeedsMPP {
			t.Errorf("%s: %v", l, err)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: a file is left", l)
		}
	}
}

func TestMagnificationsGiveTRIDENTTheSameTiles(t *testing.T) {
	for _, c := range []struct {
		mpp, slide, power float64
		folder            string
	}{
		{0.5, 0.25, 40, "20x"}, {0.5, 0.499, 20, "20x"}, {0.5, 0.2425, 40, "20x"}, {1, 0.2425, 0, "10x"}, {0.6, 0.25, 40, "16.7x"}, {0.25, 0.5, 20, "40x"}, {1.14, 0.2, 0, "8.77x"},
	} {
		a := about
		a.MPP, a.SlideMPP, a.ObjectivePower = c.mpp, c.slide, c.power
		path := filepath.Join(t.TempDir(), "bag.h5")
		if err := interop.WriteBag(path, interop.TRIDENT, a, empty); err != nil {
			t.Fatal(err)
		}
		if place := a.Place(interop.TRIDENT); place != filepath.Join(c.folder+"_256px_16px_overlap", "features_uni2-h", "section µ.h5") {
			t.Error(place)
		}
		got := python(t, `import sys, h5py
a = h5py.File(sys.argv[1])["coords"].attrs
print(round(a["patch_size"] * a["level0_magnification"] / a["target_magnification"]))`, path)
		var read float64
		if _, err := fmt.Sscan(got, &read); err != nil || math.Abs(read/(256*c.mpp/c.slide)-1) > 0.011 {
			t.Errorf("%g of %g: TRIDENT reads %s pixels, not %g", c.mpp, c.slide, got, 256*c.mpp/c.slide)
		}
	}
}

func TestStem(t *testing.T) {
	for name, want := range map[string]string{"a.svs": "a", "TCGA-AA-1.2b7.svs": "TCGA-AA-1.2b7", "x.ome.tiff": "x", "x.OME.TIF": "x", "plain": "plain", "/a/b.c/d.tif": "d", ".svs": ".svs"} {
		if got := interop.Stem(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestEmbeddingsAreReadByPython(t *testing.T) {
	table := interop.Embeddings{Slides: []coverslip.SlideID{"aa", "bb"}, Names: []string{"ä.svs", "b.svs"}, Vectors: []float32{0.6, 0.8, 0, 1}, Dim: 2,
		Members: []coverslip.Member{{Patient: "p1", Site: "AA", Labels: map[string]any{"grade": 2.0}}, {Patient: "p2"}}}
	for name, c := range map[string]struct {
		write        func(w *bytes.Buffer) error
		script, want string
	}{
		"parquet": {func(w *bytes.Buffer) error { return table.WriteParquet(w) }, `import sys, pyarrow.parquet as pq
t = pq.read_table(sys.argv[1])
print(t.schema.field("embedding").type, t.schema.field("labels").type)
for r in t.to_pylist(): print([round(v, 3) for v in r.pop("embedding")], r)`,
			"list<element: float not null> map<string, string ('labels')>\n" +
				"[0.6, 0.8] {'slide': 'aa', 'name': 'ä.svs', 'patient': 'p1', 'site': 'AA', 'labels': [('grade', '2')]}\n[0.0, 1.0] {'slide': 'bb', 'name': 'b.svs', 'patient': 'p2', 'site': '', 'labels': []}\n"},
		"npz": {func(w *bytes.Buffer) error { return table.WriteNPZ(w) }, `import sys, numpy as np
f = np.load(sys.argv[1], allow_pickle=False)
print(f["embeddings"].tolist() == np.array([[.6, .8], [0, 1]], np.float32).tolist(), f["slides"].tolist(), f["names"].tolist())`, "True ['aa', 'bb'] ['ä.svs', 'b.svs']\n"},
		"csv": {func(w *bytes.Buffer) error { return table.WriteCSV(w) }, `import sys; print(open(sys.argv[1]).read(), end="")`, "slide,name,e0,e1\naa,ä.svs,0.6,0.8\nbb,b.svs,0,1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var file bytes.Buffer
			path := filepath.Join(t.TempDir(), "table")
			if err := errors.Join(c.write(&file), os.WriteFile(path, file.Bytes(), 0o600)); err != nil {
				t.Fatal(err)
			}
			if got := python(t, c.script, path); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

// FuzzOpenNPZ holds that whatever is let through is read without a fault, in memory that the file bounds.
func FuzzOpenNPZ(f *testing.F) {
	for _, bag := range []*bagfile.Reader{source(2, 3), empty} {
		var file bytes.Buffer
		if err := interop.WriteBagNPZ(&file, about, bag); err != nil {
			f.Fatal(err)
		}
		f.Add(file.Bytes())
	}
	path := filepath.Join(f.TempDir(), fmt.Sprint(os.Getpid()))
	f.Fuzz(func(t *testing.T, p []byte) {
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := interop.Open(path, interop.NPZ)
		if err != nil {
			return
		}
		defer b.Close()
		if b.Len()*(b.Dim()+2) > 1040*len(p) {
			t.Fatalf("%d × %d in %d bytes", b.Len(), b.Dim(), len(p))
		}
		_ = b.Complete(interop.Said{Encoder: "e", MPP: 1, TileSize: 1})
		_ = b.Coords(make([]int64, 2*b.Len()), 0, b.Len())
		_ = b.Features(make([]float32, b.Len()*b.Dim()), 0, b.Len())
	})
}

type content struct {
	features []float32
	coords   []int64
}

func rows(t *testing.T, b interop.Source, from, n int) content {
	t.Helper()
	c := content{make([]float32, n*b.Dim()), make([]int64, 2*n)}
	if err := errors.Join(b.Features(c.features, from, n), b.Coords(c.coords, from, n)); err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t *testing.T, l interop.Layout, bag *bagfile.Reader) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bag"+l.Suffix())
	if l != interop.NPZ {
		if err := interop.WriteBag(path, l, about, bag); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var file bytes.Buffer
	if err := errors.Join(interop.WriteBagNPZ(&file, about, bag), os.WriteFile(path, file.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

// made is a file that a script wrote: into f, an open h5 file, or to path.
func made(t *testing.T, l interop.Layout, script string) string {
	t.Helper()
	return allMade(t, map[string]madeBy{"bag": {l, script}})["bag"]
}

type madeBy struct {
	layout interop.Layout
	script string
}

// allMade is made, of many files by one process.
func allMade(t *testing.T, scripts map[string]madeBy) map[string]string {
	t.Helper()
	dir := t.TempDir()
	paths, byPath := map[string]string{}, map[string]string{}
	for name, m := range scripts {
		paths[name] = filepath.Join(dir, name+m.layout.Suffix())
		byPath[paths[name]] = m.script
	}
	raw, err := json.Marshal(byPath)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "scripts"), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	python(t, `import json, sys, h5py, numpy as np
for path, script in json.load(open(sys.argv[1])).items():
    own = {"np": np, "path": path}
    if path.endswith(".h5"): own["f"] = h5py.File(path, "w")
    exec(script, own)
    if "f" in own: own["f"].close()`, filepath.Join(dir, "scripts"))
	return paths
}

func open(t *testing.T, path string, l interop.Layout) *interop.Bag {
	t.Helper()
	b, err := interop.Open(path, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func python(t *testing.T, script string, args ...string) string {
	t.Helper()
	interpreter := os.Getenv("COVERSLIP_TEST_PYTHON")
	if interpreter == "" {
		t.Skip("COVERSLIP_TEST_PYTHON names no Python with internal/tools/python-requirements.txt installed: `make test` does")
	}
	cmd := exec.Command(interpreter, slices.Concat([]string{"-c", script}, args)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	return string(out)
}
