package hdf5_test

import (
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
	"sync"
	"testing"

	"coverslip"
	"coverslip/storage/hdf5"
)

var eighths = []float32{0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 1.125, 1.25, 1.375}

func TestReadsWhatH5pyWrites(t *testing.T) {
	dir := cases(t)
	for _, name := range []string{"float32", "float16", "float64", "big-endian", "gzip", "growable"} {
		t.Run(name, func(t *testing.T) {
			d := dataset(t, filepath.Join(dir, name+".h5"))
			if !slices.Equal(d.Shape, []int{4, 3}) {
				t.Fatalf("shape %v", d.Shape)
			}
			all, rows, wide := make([]float32, 12), make([]float32, 6), make([]float64, 3)
			if err := errors.Join(d.Float32s(all, 0, 4), d.Float32s(rows, 1, 2), d.Float64s(wide, 3, 1), d.Float32s(nil, 4, 0)); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(all, eighths) || !slices.Equal(rows, eighths[3:9]) || wide[2] != 1.375 {
				t.Errorf("%v, %v, %v", all, rows, wide)
			}
			if err := d.Int64s(make([]int64, 12), 0, 4); coverslip.KindOf(err) != coverslip.Unsupported {
				t.Errorf("floats read as integers: %v", err)
			}
		})
	}
	for _, name := range []string{"int8", "int32", "uint64-big-endian"} {
		t.Run(name, func(t *testing.T) {
			d, got := dataset(t, filepath.Join(dir, name+".h5")), make([]int64, 12)
			if err := d.Int64s(got, 0, 4); err != nil || !slices.Equal(got, []int64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}) {
				t.Errorf("%v, %v", got, err)
			}
			if err := d.Float32s(make([]float32, 12), 0, 4); coverslip.KindOf(err) != coverslip.Unsupported {
				t.Errorf("integers read as floats: %v", err)
			}
		})
	}
	t.Run("row", func(t *testing.T) {
		d, got := dataset(t, filepath.Join(dir, "row.h5")), make([]float32, 3)
		if err := d.Float32s(got, 0, 3); err != nil || !slices.Equal(got, eighths[:3]) || !slices.Equal(d.Shape, []int{3}) {
			t.Errorf("%v of shape %v, %v", got, d.Shape, err)
		}
	})
	t.Run("empty", func(t *testing.T) {
		d := dataset(t, filepath.Join(dir, "empty.h5"))
		if err := d.Float32s(nil, 0, 0); err != nil || !slices.Equal(d.Shape, []int{0, 3}) {
			t.Errorf("shape %v, %v", d.Shape, err)
		}
	})
}

// What is no plain array of numbers in this very file is refused by name, before any memory is taken.
func TestRefuses(t *testing.T) {
	dir := cases(t)
	whole, err := os.ReadFile(filepath.Join(dir, "gzip.h5"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"cut": whole[:len(whole)/2], "nothing": nil, "elf": []byte("\x7fELF\x02\x01\x01 and so on")} {
		if err := os.WriteFile(filepath.Join(dir, name+".h5"), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]struct {
		kind coverslip.Kind
		says string
	}{
		"lzf":              {coverslip.Unsupported, "filter 32000"},
		"text":             {coverslip.Unsupported, "no floats"},
		"compound":         {coverslip.Unsupported, "no floats"},
		"bfloat16":         {coverslip.Unsupported, "no floats"},
		"three-dimensions": {coverslip.Unsupported, "3 dimensions"},
		"scalar":           {coverslip.Unsupported, "0 dimensions"},
		"never-written":    {coverslip.Invalid, "0 bytes are stored of 48"},
		"half-written":     {coverslip.Invalid, "1 of its 4 chunks"},
		"bomb":             {coverslip.TooLarge, "chunks of 1073741824 bytes"},
		"external-link":    {coverslip.Unsupported, "link"},
		"soft-link":        {coverslip.Unsupported, "link"},
		"external-data":    {coverslip.Unsupported, "other files"},
		"virtual":          {coverslip.Unsupported, "virtual"},
		"group":            {coverslip.Invalid, "no dataset"},
		"cut":              {coverslip.Invalid, "truncated"},
		"nothing":          {coverslip.Invalid, "no HDF5 file"},
		"elf":              {coverslip.Invalid, "no HDF5 file"},
		"missing":          {coverslip.NotFound, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name+".h5")
			f, err := hdf5.Open(path)
			if err == nil {
				defer f.Close()
				_, err = f.Dataset("features")
			}
			if coverslip.KindOf(err) != want.kind || !strings.Contains(err.Error(), want.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v", coverslip.KindOf(err), err)
			}
		})
	}
}

func TestAttributes(t *testing.T) {
	f := open(t, filepath.Join(cases(t), "attributes.h5"))
	d, err := f.Dataset("features")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	for what, o := range map[string]interface {
		Text(string) (string, error)
		Number(string) (float64, error)
	}{"file": f, "dataset": d} {
		for name, want := range map[string]string{"text": "Schnitt µ", "fixed": "fixed", "padded": "ab"} {
			if got, err := o.Text(name); err != nil || got != want {
				t.Errorf("%s, %s: %q, %v", what, name, got, err)
			}
		}
		for name, want := range map[string]float64{"int": 256, "int32": -7, "float": 0.25, "float32-big-endian": 0.5, "one": 20} {
			if got, err := o.Number(name); err != nil || got != want {
				t.Errorf("%s, %s: %v, %v", what, name, got, err)
			}
		}
		for _, name := range []string{"pair", "bool", "empty", "text"} {
			if _, err := o.Number(name); coverslip.KindOf(err) != coverslip.Invalid || !strings.Contains(err.Error(), name) {
				t.Errorf("%s, %s: %v", what, name, err)
			}
		}
		if _, err := o.Text("int"); coverslip.KindOf(err) != coverslip.Invalid {
			t.Errorf("%s: a number read as text: %v", what, err)
		}
		if _, err := o.Number("patch_size"); coverslip.KindOf(err) != coverslip.NotFound || !strings.Contains(err.Error(), `"patch_size"`) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestH5pyReadsWhatIsWritten(t *testing.T) {
	needsPython(t)
	path := filepath.Join(t.TempDir(), "written.h5")
	err := hdf5.Write(path, func(w *hdf5.Writer) error {
		f, err := hdf5.Create[float32](w, "features", true, 4, 3)
		if err != nil {
			return err
		}
		i32, err := hdf5.Create[int32](w, "coords", false, 2, 2)
		if err != nil {
			return err
		}
		i64, err := hdf5.Create[int64](w, "row", true, 3)
		if err != nil {
			return err
		}
		none, err := hdf5.Create[int64](w, "none", true, 0, 2)
		return errors.Join(err, f.Append(eighths[:6]), f.Append(eighths[6:]), i32.Append([]int32{1, 2, 3, -4}), i64.Append([]int64{5, 1 << 60, 7}),
			f.Attribute("name", "Schnitt µ"), f.Attribute("patch_size", int64(256)), f.Attribute("downsample", []float64{1, 1.5}),
			f.Attribute("level_dim", []int64{40000, 30000}), w.Attribute("tile_size_um", 128.5),
			f.Close(), i32.Close(), i64.Close(), none.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	type object struct {
		Attributes map[string][2]any
		DType      string
		Shape      []int
		MaxShape   []*int
		Values     any
	}
	var got struct {
		object
		Datasets map[string]object
	}
	if err := json.Unmarshal(python(t, "dump.py", path), &got); err != nil {
		t.Fatal(err)
	}
	f, c, r := got.Datasets["features"], got.Datasets["coords"], got.Datasets["row"]
	if f.DType != "float32" || fmt.Sprint(f.Shape, f.Values) != "[4 3] [[0 0.125 0.25] [0.375 0.5 0.625] [0.75 0.875 1] [1.125 1.25 1.375]]" || f.MaxShape[0] != nil {
		t.Errorf("features: %+v", f)
	}
	if c.DType != "int32" || fmt.Sprint(c.Values) != "[[1 2] [3 -4]]" || c.MaxShape[0] == nil {
		t.Errorf("coords: %+v", c)
	}
	if r.DType != "int64" || fmt.Sprint(r.Shape, r.Values) != "[3] [5 1.152921504606847e+18 7]" {
		t.Errorf("row: %+v", r)
	}
	if n := got.Datasets["none"]; n.DType != "int64" || fmt.Sprint(n.Shape) != "[0 2]" {
		t.Errorf("none: %+v", n)
	}
	want := map[string][2]any{"name": {"str", "Schnitt µ"}, "patch_size": {"int64", 256.0}, "downsample": {"ndarray[float64]", []any{1.0, 1.5}}, "level_dim": {"ndarray[int64]", []any{40000.0, 30000.0}}}
	if !reflect.DeepEqual(f.Attributes, want) || !reflect.DeepEqual(got.Attributes, map[string][2]any{"tile_size_um": {"float64", 128.5}}) {
		t.Errorf("attributes %v and %v", f.Attributes, got.Attributes)
	}
}

func TestWriteLeavesNothingWhenItFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bag.h5")
	why := errors.New("the bag cannot be read")
	for name, fill := range map[string]func(w *hdf5.Writer) error{
		"the source": func(*hdf5.Writer) error { return why },
		"too few rows": func(w *hdf5.Writer) error {
			r, err := hdf5.Create[float32](w, "features", true, 2, 2)
			return errors.Join(err, r.Append([]float32{1, 2}), r.Close())
		},
		"a name twice": func(w *hdf5.Writer) error {
			r, err := hdf5.Create[float32](w, "features", true, 0, 2)
			_, twice := hdf5.Create[float32](w, "features", true, 0, 2)
			return errors.Join(err, r.Close(), twice)
		},
	} {
		if err := hdf5.Write(path, fill); err == nil {
			t.Errorf("%s: no error", name)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
	if err := hdf5.Write(filepath.Join(dir, "no", "folder.h5"), func(*hdf5.Writer) error { return nil }); coverslip.KindOf(err) != coverslip.Full {
		t.Errorf("no folder: %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			path := filepath.Join(dir, fmt.Sprint(i, ".h5"))
			err := hdf5.Write(path, func(w *hdf5.Writer) error {
				r, err := hdf5.Create[float32](w, "features", i%2 == 0, 100, 1)
				for k := range 100 {
					err = errors.Join(err, r.Append([]float32{float32(i*100 + k)}))
				}
				return errors.Join(err, r.Close())
			})
			if err != nil {
				t.Error(err)
				return
			}
			f, err := hdf5.Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			d, err := f.Dataset("features")
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			got := make([]float32, 1)
			for k := range 100 {
				if err := d.Float32s(got, k, 1); err != nil || got[0] != float32(i*100+k) {
					t.Errorf("row %d of %d: %v, %v", k, i, got, err)
				}
			}
		})
	}
	all.Wait()
}

func TestFloat16IsExact(t *testing.T) {
	needsPython(t)
	path := filepath.Join(t.TempDir(), "all.h5")
	script := `import sys, h5py, numpy as np
with h5py.File(sys.argv[1], "w") as f: f["features"] = np.arange(65536, dtype=np.uint16).view(np.float16)`
	if out, err := exec.Command(interpreter, "-c", script, path).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d, got := dataset(t, path), make([]float32, 65536)
	if err := d.Float32s(got, 0, len(got)); err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		want := float64(i&0x3ff) / 1024
		if e := i >> 10 & 31; e > 0 {
			want = math.Ldexp(1+want, e-15)
		} else {
			want = math.Ldexp(want, -14)
		}
		if i>>15 == 1 {
			want = -want
		}
		switch finite := i>>10&31 < 31; {
		case finite && float64(v) != want, !finite && i&0x3ff == 0 && !math.IsInf(float64(v), 0), !finite && i&0x3ff != 0 && v == v:
			t.Fatalf("0x%04x is %v, want %v", i, v, want)
		}
	}
}

var interpreter = os.Getenv("COVERSLIP_TEST_PYTHON")

func needsPython(t *testing.T) {
	t.Helper()
	if interpreter == "" {
		t.Skip("COVERSLIP_TEST_PYTHON names no Python with internal/tools/python-requirements.txt installed: `make test` does")
	}
}

// cases is a folder with one file for each case of testdata/cases.py.
func cases(t *testing.T) string {
	t.Helper()
	needsPython(t)
	dir := t.TempDir()
	python(t, "cases.py", dir)
	return dir
}

func python(t *testing.T, script string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(interpreter, append([]string{filepath.Join("testdata", script)}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, stderr.String())
	}
	return out
}

func open(t testing.TB, path string) *hdf5.File {
	t.Helper()
	f, err := hdf5.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func dataset(t testing.TB, path string) *hdf5.Dataset {
	t.Helper()
	d, err := open(t, path).Dataset("features")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// FuzzOpen holds that what the checks let through is read, in memory that the checks bound. It reads no
// texts: on forged ones of variable length the C library (1.10.8) never comes back, see doc.go.
func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed.h5")
	for _, grows := range []bool{true, false} {
		err := hdf5.Write(path, func(w *hdf5.Writer) error {
			r, err := hdf5.Create[float32](w, "features", grows, 4, 3)
			return errors.Join(err, r.Append(eighths), r.Attribute("name", "a"), r.Attribute("patch_size", int64(256)), r.Close())
		})
		if err != nil {
			f.Fatal(err)
		}
		seed, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		path := filepath.Join(t.TempDir(), "fuzzed.h5")
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := hdf5.Open(path)
		if err != nil {
			return
		}
		defer f.Close()
		d, err := f.Dataset("features")
		if err != nil {
			return
		}
		defer d.Close()
		_, _ = d.Number("patch_size")
		width := 1
		if len(d.Shape) == 2 {
			width = d.Shape[1]
		}
		n := min(d.Shape[0], 1<<16/max(1, width))
		if n*width <= 1<<16 {
			_ = d.Float64s(make([]float64, n*width), 0, n)
		}
	})
}
