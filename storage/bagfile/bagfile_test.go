package bagfile_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"coverslip"
	"coverslip/storage/bagfile"
)

var update = flag.Bool("update", false, "write the golden files anew (needs COVERSLIP_TEST_PYTHON)")

var (
	meta = bagfile.Metadata{
		Slide: coverslip.SlideID(strings.Repeat("0f", 32)), SlideMPP: 0.499, SlideMPPSource: coverslip.MPPAperio,
		Reader: "libvips", ReaderVersion: "8.14.1", Level: 1, MPP: 0.5, TileSize: 224, Overlap: 16, MinTissue: 0.25,
		Mask: `{"method":"otsu <&>"}`, Encoder: "lite0", EncoderSHA256: strings.Repeat("ee", 32), Version: "v0.1.0",
		Found: 7, Budget: `{"tiles":3}`,
	}
	tiles    = []coverslip.Tile{{X: 0, Y: 0}, {X: 1 << 40, Y: -3}, {X: 448, Y: 224, Tissue: 0.5}}
	features = []float32{0, 1, -0.5, 1e-30, math.MaxFloat32, -math.MaxFloat32}
)

func TestByteLayout(t *testing.T) {
	got := write(t, bagfile.Metadata{Encoder: "e", Level: 2, MPP: 0.25}, tiles[:1], []float32{1, -2}, 2)
	head := `{"__metadata__":{"budget":"","coverslip_version":"","encoder":"e","encoder_sha256":"","found":"0","level":"2","mask":"","min_tissue":"0",` +
		`"mpp":"0.25","overlap":"0","reader":"","reader_version":"","skipped_tiles":"","slide_mpp":"0","slide_mpp_source":"","slide_sha256":"","tile_size":"0","views":""},` +
		`"coords":{"dtype":"I64","shape":[1,2],"data_offsets":[0,16]},"features":{"dtype":"F32","shape":[1,2],"data_offsets":[16,24]}}`
	head += strings.Repeat(" ", -len(head)&7)
	want := file(head, "\x00\x00\x00\x00\x00\x00\x00\x00"+"\x00\x00\x00\x00\x00\x00\x00\x00"+"\x00\x00\x80\x3f"+"\x00\x00\x00\xc0")
	if string(got) != want {
		t.Errorf("wrote\n%q, want\n%q", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	p := write(t, meta, tiles, features, 2)
	if again := write(t, meta, tiles, features, 2); !bytes.Equal(p, again) {
		t.Error("writing twice gives other bytes")
	}
	b := open(t, p)
	if b.Len() != 3 || b.Dim() != 2 || b.Metadata() != meta {
		t.Errorf("%d × %d, %+v", b.Len(), b.Dim(), b.Metadata())
	}
	f, c := make([]float32, 6), make([]int64, 6)
	if err := errors.Join(b.Features(f, 0, 3), b.Coords(c, 0, 3)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(f, features) || !reflect.DeepEqual(c, []int64{0, 0, 1 << 40, -3, 448, 224}) {
		t.Errorf("read %v, %v", f, c)
	}
	if err := errors.Join(b.Features(f[:2], 1, 1), b.Coords(c[:2], 2, 1), b.Features(nil, 3, 0)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(f[:2], features[2:4]) || !reflect.DeepEqual(c[:2], []int64{448, 224}) {
		t.Errorf("ranges: read %v, %v", f[:2], c[:2])
	}
}

// TestLongBag is longer than what is read at once.
func TestLongBag(t *testing.T) {
	const rows, dim = 3000, 500 // 6 MB
	long := make([]float32, rows*dim)
	for i := range long {
		long[i] = float32(i)
	}
	b := open(t, write(t, meta, make([]coverslip.Tile, rows), long, dim))
	got := make([]float32, len(long))
	if err := b.Features(got, 0, rows); err != nil || !reflect.DeepEqual(got, long) {
		t.Errorf("features differ, %v", err)
	}
}

func TestEmptyBag(t *testing.T) {
	b := open(t, write(t, meta, nil, nil, 1280))
	if b.Len() != 0 || b.Dim() != 1280 || b.Metadata() != meta {
		t.Errorf("%d × %d, %+v", b.Len(), b.Dim(), b.Metadata())
	}
	if err := errors.Join(b.Features(nil, 0, 0), b.Coords(nil, 0, 0)); err != nil {
		t.Error(err)
	}
}

func TestMissingRows(t *testing.T) {
	w := writer(t, io.Discard, tiles, 2)
	if err := w.Append(features[:4]); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); coverslip.KindOf(err) != coverslip.Internal {
		t.Errorf("Close: %v", err)
	}
}

func TestTooManyRows(t *testing.T) {
	w := writer(t, io.Discard, tiles[:2], 2)
	if err := w.Append(features); coverslip.KindOf(err) != coverslip.Internal {
		t.Errorf("Append: %v", err)
	}
	if err := w.Close(); err == nil {
		t.Error("Close forgot it")
	}
}

func TestFeaturesThatAreNotFiniteAreRefused(t *testing.T) {
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		w := writer(t, io.Discard, tiles, 2)
		err := w.Append([]float32{0, 0, 0, float32(v), 0, 0})
		if coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), "feature 1 of tile 1") {
			t.Errorf("%v: %v", v, err)
		}
		if err := w.Close(); err == nil {
			t.Errorf("%v: Close forgot it", v)
		}
	}
}

func TestWriterThatFails(t *testing.T) {
	full := &coverslip.Error{Kind: coverslip.Full, Op: "write blob"}
	w := writer(t, errWriter{full}, tiles, 2)
	if err := w.Append(features); err != nil {
		t.Fatal(err) // still buffered
	}
	if err := w.Close(); coverslip.KindOf(err) != coverslip.Full {
		t.Errorf("Close: %v", err)
	}
}

func TestNoDimension(t *testing.T) {
	for _, dim := range []int{0, -1, 1<<20 + 1} {
		if _, err := bagfile.NewWriter(io.Discard, meta, nil, dim); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("%d: %v", dim, err)
		}
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	whole := write(t, meta, tiles, features, 2)
	for n := range whole {
		if _, err := bagfile.Open(bytes.NewReader(whole[:n]), int64(n)); coverslip.KindOf(err) != coverslip.Invalid {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(whole), err)
		}
		// Cut after its size was looked at: as soon as the missing part is read.
		b, err := bagfile.Open(bytes.NewReader(whole[:n]), int64(len(whole)))
		if err == nil {
			err = errors.Join(b.Coords(make([]int64, 6), 0, 3), b.Features(make([]float32, 6), 0, 3))
		}
		if coverslip.KindOf(err) != coverslip.Invalid {
			t.Fatalf("cut to %d of %d bytes while open: %v", n, len(whole), err)
		}
	}
	if _, err := bagfile.Open(bytes.NewReader(append(whole, 0)), int64(len(whole)+1)); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("one byte more: %v", err)
	}
}

func TestReadErrorsKeepTheirKind(t *testing.T) {
	cause := &coverslip.Error{Kind: coverslip.Unavailable, Op: "read blob", Path: "k"}
	if _, err := bagfile.Open(errReaderAt{cause}, 1000); coverslip.KindOf(err) != coverslip.Unavailable {
		t.Errorf("Open: %v", err)
	}
	if _, err := bagfile.Open(errReaderAt{iotest.ErrTimeout}, 1000); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("Open: %v", err)
	}
}

// The tensors of broken are right unless a case says otherwise; 16 bytes of coords, 8 of features.
const (
	coords1   = `"coords":{"dtype":"I64","shape":[1,2],"data_offsets":[0,16]}`
	features1 = `"features":{"dtype":"F32","shape":[1,2],"data_offsets":[16,24]}`
)

var bad = map[string]struct {
	file string
	kind coverslip.Kind
}{
	"Nothing":              {"", coverslip.Invalid},
	"NotABag":              {"this is some text, not a bag", coverslip.Invalid},
	"HeaderBeyondFile":     {raw(100, `{}`), coverslip.Invalid},
	"HeaderOf2To63":        {raw(1<<63, `{}`), coverslip.Invalid},
	"HeaderOf2To64":        {raw(math.MaxUint64, `{}`), coverslip.Invalid},
	"HeaderOverTheLimit":   {file(`{}`+strings.Repeat(" ", 1<<20), ""), coverslip.Invalid},
	"EmptyHeader":          {file(``, ""), coverslip.Invalid},
	"HeaderIsArray":        {file(`[]`, ""), coverslip.Invalid},
	"HeaderStartsLate":     {file(` {}`, ""), coverslip.Invalid},
	"HeaderEndsEarly":      {file(`{"coords":`, ""), coverslip.Invalid},
	"SomethingFollows":     {file(`{} {}`, ""), coverslip.Invalid},
	"NoTensors":            {file(`{}`, ""), coverslip.Unsupported},
	"NoFeatures":           {file(`{`+coords1+`}`, zeros(16)), coverslip.Unsupported},
	"NoCoords":             {file(`{"features":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}`, zeros(8)), coverslip.Unsupported},
	"TensorTwice":          {file(`{`+coords1+`,`+coords1+`,`+features1+`}`, zeros(24)), coverslip.Invalid},
	"FieldTwice":           {file(`{"coords":{"dtype":"I64","dtype":"I64","shape":[1,2],"data_offsets":[0,16]},`+features1+`}`, zeros(24)), coverslip.Invalid},
	"MetadataTwice":        {file(`{"__metadata__":{},"__metadata__":{},`+coords1+`,`+features1+`}`, zeros(24)), coverslip.Invalid},
	"MetadataKeyTwice":     {file(`{"__metadata__":{"a":"1","a":"2"},`+coords1+`,`+features1+`}`, zeros(24)), coverslip.Invalid},
	"MetadataIsNoText":     {file(`{"__metadata__":{"level":1},`+coords1+`,`+features1+`}`, zeros(24)), coverslip.Invalid},
	"MetadataIsNull":       {file(`{"__metadata__":{"level":null},`+coords1+`,`+features1+`}`, zeros(24)), coverslip.Invalid},
	"LevelIsNoNumber":      {file(`{"__metadata__":{"level":"one"},`+coords1+`,`+features1+`}`, zeros(24)), coverslip.Invalid},
	"MPPIsNaN":             {file(`{"__metadata__":{"mpp":"NaN"},`+coords1+`,`+features1+`}`, zeros(24)), coverslip.Invalid},
	"SlideIsNoHash":        {file(`{"__metadata__":{"slide_sha256":"../x"},`+coords1+`,`+features1+`}`, zeros(24)), coverslip.Invalid},
	"Overlapping":          {file(`{`+coords1+`,"features":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]}}`, zeros(16)), coverslip.Invalid},
	"SameBytesTwice":       {file(`{`+coords1+`,"features":{"dtype":"F32","shape":[1,4],"data_offsets":[0,16]}}`, zeros(16)), coverslip.Invalid},
	"Hole":                 {file(`{`+coords1+`,"features":{"dtype":"F32","shape":[1,2],"data_offsets":[24,32]}}`, zeros(32)), coverslip.Invalid},
	"BeyondTheEnd":         {file(`{`+coords1+`,`+features1+`}`, zeros(23)), coverslip.Invalid},
	"BytesLeftOver":        {file(`{`+coords1+`,`+features1+`}`, zeros(25)), coverslip.Invalid},
	"NegativeOffset":       {file(`{"coords":{"dtype":"I64","shape":[1,2],"data_offsets":[-16,0]},`+features1+`}`, zeros(24)), coverslip.Invalid},
	"OffsetsSwapped":       {file(`{"coords":{"dtype":"I64","shape":[1,2],"data_offsets":[16,0]},`+features1+`}`, zeros(24)), coverslip.Invalid},
	"OffsetsOver64Bits":    {file(`{"coords":{"dtype":"I64","shape":[1,2],"data_offsets":[0,18446744073709551632]},`+features1+`}`, zeros(24)), coverslip.Invalid},
	"ShapeOverflowsTo0":    {file(`{"coords":{"dtype":"I64","shape":[4294967296,4294967296],"data_offsets":[0,0]},"features":{"dtype":"F32","shape":[0,2],"data_offsets":[0,0]}}`, ""), coverslip.Invalid},
	"ShapeOverflowsToSize": {file(`{"coords":{"dtype":"I64","shape":[9223372036854775807,2],"data_offsets":[0,16]},`+features1+`}`, zeros(24)), coverslip.Invalid},
	"NegativeShape":        {file(`{"coords":{"dtype":"I64","shape":[-1,-2],"data_offsets":[0,16]},`+features1+`}`, zeros(24)), coverslip.Invalid},
	"ShapeIsFraction":      {file(`{"coords":{"dtype":"I64","shape":[1.5,2],"data_offsets":[0,16]},`+features1+`}`, zeros(24)), coverslip.Invalid},
	"ShapeMissing":         {file(`{"coords":{"dtype":"I64","data_offsets":[0,16]},`+features1+`}`, zeros(24)), coverslip.Invalid},
	"ShapeAndSizeDiffer":   {file(`{`+coords1+`,"features":{"dtype":"F32","shape":[1,3],"data_offsets":[16,24]}}`, zeros(24)), coverslip.Invalid},
	"RowsDiffer":           {file(`{`+coords1+`,"features":{"dtype":"F32","shape":[2,1],"data_offsets":[16,24]}}`, zeros(24)), coverslip.Invalid},
	"CoordsAreTriples":     {file(`{"coords":{"dtype":"I64","shape":[1,3],"data_offsets":[0,24]},"features":{"dtype":"F32","shape":[1,2],"data_offsets":[24,32]}}`, zeros(32)), coverslip.Invalid},
	"NoDimension":          {file(`{`+coords1+`,"features":{"dtype":"F32","shape":[1,0],"data_offsets":[16,16]}}`, zeros(16)), coverslip.Invalid},
	"HugeDimensionNoRows":  {file(`{"coords":{"dtype":"I64","shape":[0,2],"data_offsets":[0,0]},"features":{"dtype":"F32","shape":[0,1099511627776],"data_offsets":[0,0]}}`, ""), coverslip.Invalid},
	"UnknownDType":         {file(`{`+coords1+`,"features":{"dtype":"F7","shape":[1,2],"data_offsets":[16,24]}}`, zeros(24)), coverslip.Invalid},
	"UnknownField":         {file(`{`+coords1+`,"features":{"dtype":"F32","shape":[1,2],"data_offsets":[16,24],"x":1}}`, zeros(24)), coverslip.Invalid},
	"TensorIsNull":         {file(`{`+coords1+`,"features":null}`, zeros(16)), coverslip.Invalid},
	"FeaturesAreF16":       {file(`{`+coords1+`,"features":{"dtype":"F16","shape":[1,4],"data_offsets":[16,24]}}`, zeros(24)), coverslip.Unsupported},
	"CoordsAreI32":         {file(`{"coords":{"dtype":"I32","shape":[1,2],"data_offsets":[0,8]},"features":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]}}`, zeros(16)), coverslip.Unsupported},
	"BagOfViews":           {file(`{"coords":{"dtype":"I64","shape":[1,1,2],"data_offsets":[0,16]},"features":{"dtype":"F32","shape":[1,1,2],"data_offsets":[16,24]}}`, zeros(24)), coverslip.Unsupported},
}

func TestBadFilesAreRefused(t *testing.T) {
	for name, c := range bad {
		_, err := bagfile.Open(strings.NewReader(c.file), int64(len(c.file)))
		if coverslip.KindOf(err) != c.kind || coverslip.HintOf(err) == "" {
			t.Errorf("%s: %v; want kind %s", name, err, c.kind)
		}
	}
	good := file(`{`+features1+`, "__metadata__":{"other":"x","level":"3"},`+coords1+"}   ", zeros(24))
	if b, err := bagfile.Open(strings.NewReader(good), int64(len(good))); err != nil || b.Len() != 1 || b.Metadata().Level != 3 {
		t.Errorf("the good file they are made from: %v", err)
	}
}

func TestReadsPython(t *testing.T) {
	golden := filepath.Join("testdata", "python.safetensors")
	if *update {
		python(t, "write.py", golden)
	}
	p, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, p)
	want := bagfile.Metadata{Slide: coverslip.SlideID(strings.Repeat("ab", 32)), MPP: 0.5, TileSize: 224}
	if b.Len() != 3 || b.Dim() != 4 || b.Metadata() != want {
		t.Fatalf("%d × %d, %+v", b.Len(), b.Dim(), b.Metadata())
	}
	f, c := make([]float32, 12), make([]int64, 6)
	if err := errors.Join(b.Features(f, 0, 3), b.Coords(c, 0, 3)); err != nil {
		t.Fatal(err)
	}
	for i, v := range f {
		if v != float32(i)/8-1 {
			t.Errorf("feature %d is %v", i, v)
		}
	}
	if !reflect.DeepEqual(c, []int64{0, 0, 512, 0, -7, 1 << 40}) {
		t.Errorf("coords %v", c)
	}
}

func TestViewsRoundTrip(t *testing.T) {
	views := [][]coverslip.Tile{{tiles[2], tiles[0], tiles[2]}, {tiles[1], tiles[1], tiles[0]}}
	f := tempFile(t)
	w, err := bagfile.NewViewWriter(f, meta, views, 2)
	if err != nil {
		t.Fatal(err)
	}
	row := func(i int) []float32 { return []float32{float32(i), -float32(i) / 2} }
	for _, i := range []int{5, 0, 3, 1, 1, 4} { // in any order, one of them twice
		if err := w.Put(i, row(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); coverslip.KindOf(err) != coverslip.Internal {
		t.Fatalf("with a row missing, Close gives %v", err)
	}
	if w, err = bagfile.NewViewWriter(f, meta, views, 2); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		if err := w.Put(i, row(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	stat, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b, err := bagfile.OpenViews(f, stat.Size())
	if err != nil {
		t.Fatal(err)
	}
	if b.Views() != 2 || b.Tiles() != 3 || b.Dim() != 2 || b.Metadata() != meta {
		t.Errorf("%d × %d × %d, %+v", b.Views(), b.Tiles(), b.Dim(), b.Metadata())
	}
	features, coords := make([]float32, 6), make([]int64, 6)
	if err := errors.Join(b.Features(features, 3, 3), b.Coords(coords, 3, 3)); err != nil {
		t.Fatal(err)
	}
	if want := slices.Concat(row(3), row(4), row(5)); !slices.Equal(features, want) {
		t.Errorf("features %v, want %v", features, want)
	}
	if !slices.Equal(coords, []int64{1 << 40, -3, 1 << 40, -3, 0, 0}) {
		t.Errorf("coords %v", coords)
	}
	if _, err := bagfile.Open(f, stat.Size()); coverslip.KindOf(err) != coverslip.Unsupported {
		t.Errorf("opened as a bag without views: %v", err)
	}
	if err := w.Put(0, []float32{1, float32(math.NaN())}); coverslip.KindOf(err) != coverslip.Invalid {
		t.Errorf("NaN: %v", err)
	}
	var got struct {
		Shapes   [][]int
		Features [][][]float32
	}
	if err := json.Unmarshal(python(t, "read.py", f.Name()), &got); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got.Shapes) != "[[2 3 2] [2 3 2]]" || !slices.Equal(got.Features[1][2], row(5)) {
		t.Errorf("Python reads %v, %v", got.Shapes, got.Features)
	}
}

func tempFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "bag"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestPythonReads(t *testing.T) {
	for name, p := range map[string][]byte{"bag": write(t, meta, tiles, features, 2), "empty": write(t, meta, nil, nil, 2)} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		var got struct {
			Metadata map[string]string
			Names    []string
			DTypes   []string
			Shapes   [][]int
			Features [][]float32
			Coords   [][]int64
		}
		if err := json.Unmarshal(python(t, "read.py", path), &got); err != nil {
			t.Fatal(err)
		}
		n := open(t, p).Len()
		if fmt.Sprint(got.Names, got.DTypes, got.Shapes) != fmt.Sprintf("[coords features] [float32 int64] [[%d 2] [%d 2]]", n, n) {
			t.Errorf("%s: %v %v %v", name, got.Names, got.DTypes, got.Shapes)
		}
		if got.Metadata["mask"] != meta.Mask || got.Metadata["slide_mpp"] != "0.499" || len(got.Metadata) != 18 {
			t.Errorf("%s: metadata %v", name, got.Metadata)
		}
		for i, tile := range tiles[:n] {
			if !reflect.DeepEqual(got.Features[i], features[2*i:2*i+2]) || !reflect.DeepEqual(got.Coords[i], []int64{tile.X, tile.Y}) {
				t.Errorf("%s: row %d is %v at %v", name, i, got.Features[i], got.Coords[i])
			}
		}
	}
}

// FuzzOpen holds that whatever Open takes is read without a fault, in memory that the file's size
// bounds, and written by Writer gives a bag that reads the same.
func FuzzOpen(f *testing.F) {
	for _, c := range bad {
		f.Add([]byte(c.file))
	}
	f.Add(write(f, meta, tiles, features, 2))
	f.Add(write(f, meta, nil, nil, 3))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1<<16 {
			t.Skip("its metadata may outgrow the header when written again")
		}
		b, err := bagfile.Open(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			if kind := coverslip.KindOf(err); kind != coverslip.Invalid && kind != coverslip.Unsupported {
				t.Fatalf("kind %s: %v", kind, err)
			}
			return
		}
		n, d := b.Len(), b.Dim()
		if n*(16+4*d) > len(p) {
			t.Fatalf("%d × %d in %d bytes", n, d, len(p))
		}
		features, coords := make([]float32, n*d), make([]int64, n*2)
		if err := errors.Join(b.Features(features, 0, n), b.Coords(coords, 0, n)); err != nil {
			t.Fatal(err)
		}
		tiles := make([]coverslip.Tile, n)
		for i := range tiles {
			tiles[i] = coverslip.Tile{X: coords[2*i], Y: coords[2*i+1]}
		}
		for i, v := range features {
			if v-v != 0 { // a Writer takes finite values only
				features[i] = 0
			}
		}
		again := open(t, write(t, b.Metadata(), tiles, features, d))
		got, gotCoords := make([]float32, n*d), make([]int64, n*2)
		if err := errors.Join(again.Features(got, 0, n), again.Coords(gotCoords, 0, n)); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, features) || !reflect.DeepEqual(gotCoords, coords) || again.Metadata() != b.Metadata() {
			t.Fatal("written and read again, it differs")
		}
	})
}

func writer(t testing.TB, w io.Writer, tiles []coverslip.Tile, dim int) *bagfile.Writer {
	t.Helper()
	b, err := bagfile.NewWriter(w, meta, tiles, dim)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// write makes a bag, appending one row and then the rest, and checks its announced size.
func write(t testing.TB, m bagfile.Metadata, tiles []coverslip.Tile, features []float32, dim int) []byte {
	t.Helper()
	var p bytes.Buffer
	w, err := bagfile.NewWriter(&p, m, tiles, dim)
	if err != nil {
		t.Fatal(err)
	}
	first := min(dim, len(features))
	if err := errors.Join(w.Append(features[:first]), w.Append(features[first:]), w.Close()); err != nil {
		t.Fatal(err)
	}
	if size, err := bagfile.Size(m, len(tiles), dim); err != nil || size != int64(p.Len()) {
		t.Fatalf("Size is %d, %v; wrote %d bytes", size, err, p.Len())
	}
	return p.Bytes()
}

func open(t testing.TB, p []byte) *bagfile.Reader {
	t.Helper()
	b, err := bagfile.Open(bytes.NewReader(p), int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// python runs a script of testdata under the interpreter that has safetensors.
func python(t *testing.T, script string, args ...string) []byte {
	t.Helper()
	interpreter := os.Getenv("COVERSLIP_TEST_PYTHON")
	if interpreter == "" {
		t.Skip("COVERSLIP_TEST_PYTHON names no Python with internal/tools/python-requirements.txt installed: `make test` does")
	}
	cmd := exec.CommandContext(t.Context(), interpreter, append([]string{filepath.Join("testdata", script)}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, stderr.String())
	}
	return out
}

func file(header, data string) string { return raw(uint64(len(header)), header+data) }

func raw(n uint64, rest string) string {
	return string(binary.LittleEndian.AppendUint64(nil, n)) + rest
}

func zeros(n int) string { return strings.Repeat("\x00", n) }

type errWriter struct{ err error }

func (w errWriter) Write([]byte) (int, error) { return 0, w.err }

type errReaderAt struct{ err error }

func (r errReaderAt) ReadAt([]byte, int64) (int, error) { return 0, r.err }
