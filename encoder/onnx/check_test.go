package onnx_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pw "google.golang.org/protobuf/encoding/protowire"

	"coverslip"
	"coverslip/encoder"
	"coverslip/encoder/onnx"
	"coverslip/encoder/onnx/onnxtest"
)

// What must not reach ONNX Runtime is refused without it: its place is a file that is none.
func TestFault28ModelRefusedBeforeLoading(t *testing.T) {
	t.Setenv(onnx.LibraryVariable, "/dev/null")
	whole := colour(16).File()
	external := func(location string) []byte {
		m := colour(16)
		m.External = location
		return m.File()
	}
	for name, c := range map[string]struct {
		file []byte
		says string
	}{
		"pickle":                    {[]byte("\x80\x02}q\x00X\x05\x00\x00\x00modelq\x01."), "pickle"},
		"pickle, protocol 5":        {[]byte("\x80\x05\x95\x00\x00"), "pickle"},
		"PyTorch checkpoint":        {[]byte("PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl\x80\x02"), "pickle"},
		"ZIP":                       {[]byte("PK\x03\x04 something else"), "ZIP"},
		"empty":                     {nil, "empty"},
		"text":                      {[]byte("<html>404</html>"), "no whole ONNX file"},
		"cut at half":               {whole[:len(whole)/2], "no whole ONNX file"},
		"cut at its last field":     {whole[:len(whole)-4], "ends early"},
		"no graph":                  {slices.Concat(field(1, 8), message(8, field(2, 17))), "0 graphs"},
		"two graphs":                {slices.Concat(whole, message(7, text(2, "other"))), "2 graphs"},
		"training":                  {slices.Concat(whole, message(20, nil)), "training"},
		"data outside: ..":          {external("../weights.bin"), "no plain name"},
		"data outside: absolute":    {external("/etc/passwd"), "no plain name"},
		"data in another folder":    {external("weights/weights.bin"), "no plain name"},
		"data outside: backslashes": {external(`..\weights.bin`), "no plain name"},
		"data in memory":            {external("*/_ORT_MEM_ADDR_/*"), "no plain name"},
		"data nowhere":              {withTensor(whole, 5, field(14, 1)), "is not said"},
		"data twice":                {withTensor(whole, 5, message(13, entry("location", "a")), message(13, entry("location", "b"))), "two files"},
		"impossible offset":         {withTensor(whole, 5, message(13, entry("location", "a")), message(13, entry("offset", "-1"))), "impossible offset"},
		"impossible dimension":      {withTensor(whole, 5, field(1, 1<<62), field(1, 1<<62)), "impossible dimension"},
		"sparse, external":          {withGraph(whole, message(15, message(1, slices.Concat(message(13, entry("location", "a")), field(14, 1))))), "sparse"},
		"sparse in an attribute":    {withNode(whole, text(4, "Constant"), message(5, message(22, message(2, slices.Concat(message(13, entry("location", "a")), field(14, 1)))))), "sparse"},
		"external in an attribute":  {withNode(whole, text(4, "Constant"), message(5, message(5, message(13, entry("location", "../a"))))), "no plain name"},
		"external in a branch":      {withNode(whole, text(4, "If"), message(5, message(6, message(5, message(13, entry("location", "../a")))))), "no plain name"},
		"external in a function":    {slices.Concat(whole, message(25, slices.Concat(text(1, "f"), message(7, slices.Concat(text(4, "Constant"), message(5, message(5, message(13, entry("location", "../a"))))))))), "no plain name"},
		"custom operator":           {withNode(whole, text(4, "RunPython"), text(7, "ai.example")), `"RunPython" of the domain "ai.example"`},
		"custom, in a branch":       {withNode(whole, text(4, "If"), message(5, message(6, message(1, slices.Concat(text(4, "X"), text(7, "y")))))), "none of the standard's"},
		"loads its own file":        {withNode(whole, text(4, "EPContext"), text(7, "com.microsoft")), "EPContext"},
		"nested without end":        {withNode(whole, text(4, "If"), nested(40)), "deep"},
	} {
		path := filepath.Join(t.TempDir(), "model.onnx")
		if err := os.WriteFile(path, c.file, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := onnx.Inspect(path)
		refused(t, name, err, coverslip.Invalid, c.says)
		spec := colour(16).Spec()
		spec.SHA256 = sha(c.file)
		_, err = onnx.Open(c.file, spec, onnx.CPU)
		refused(t, name+", opened", err, coverslip.Invalid, c.says)
	}
	spec := colour(16).Spec()
	spec.SHA256 = strings.Repeat("0", 64)
	_, err := onnx.Open(whole, spec, onnx.CPU)
	refused(t, "another hash", err, coverslip.Invalid, "SHA-256")
	spec.SHA256 = ""
	_, err = onnx.Open(whole, spec, onnx.CPU)
	refused(t, "no hash", err, coverslip.Invalid, "no SHA-256")
}

func TestFault28WeightsBesideTheFile(t *testing.T) {
	m := colour(16)
	m.External = "weights.bin"
	folder := func(t *testing.T) string {
		dir := t.TempDir()
		for name, raw := range map[string][]byte{"model.onnx": m.File(), "weights.bin": m.Data()} {
			if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	t.Run("whole", func(t *testing.T) {
		onnxtest.Need(t)
		t.Chdir(t.TempDir()) // they are found beside the file, wherever the process stands
		s, err := onnx.OpenFile(filepath.Join(folder(t), "model.onnx"), m.Spec(), onnx.CPU)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if got := encode(t, s, bytes.Repeat([]byte{10, 20, 40}, 16*16), 1); !slices.Equal(got, []float32{10, 20, 40, 70}) {
			t.Errorf("got %v", got)
		}
	})
	for name, c := range map[string]struct {
		change func(dir string) error
		says   string
	}{
		"missing": {func(dir string) error { return os.Remove(filepath.Join(dir, "weights.bin")) }, "not there"},
		"cut":     {func(dir string) error { return os.Truncate(filepath.Join(dir, "weights.bin"), 20) }, "ends early"},
		"changed": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "weights.bin"), make([]byte, len(m.Data())), 0o600)
		}, "weights.bin has SHA-256"},
		"a link to outside": {func(dir string) error {
			outside := filepath.Join(filepath.Dir(dir), "outside.bin")
			return cmpOr(os.Rename(filepath.Join(dir, "weights.bin"), outside), os.Symlink(outside, filepath.Join(dir, "weights.bin")))
		}, "no regular file"},
		"a folder": {func(dir string) error {
			return cmpOr(os.Remove(filepath.Join(dir, "weights.bin")), os.Mkdir(filepath.Join(dir, "weights.bin"), 0o700))
		}, "no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(onnx.LibraryVariable, "/dev/null")
			dir := folder(t)
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			_, err := onnx.OpenFile(filepath.Join(dir, "model.onnx"), m.Spec(), onnx.CPU)
			refused(t, name, err, coverslip.Invalid, c.says)
		})
	}
	t.Run("more files than the specification lists", func(t *testing.T) {
		spec := m.Spec()
		spec.Data = nil
		_, err := onnx.OpenFile(filepath.Join(folder(t), "model.onnx"), spec, onnx.CPU)
		refused(t, "unlisted", err, coverslip.Invalid, "lists 0")
	})
	t.Run("bytes alone", func(t *testing.T) {
		_, err := onnx.Open(m.File(), m.Spec(), onnx.CPU)
		refused(t, "bytes", err, coverslip.Invalid, "other files")
	})
}

func TestFunctionsOfTheFileItselfAreNoCustomOperators(t *testing.T) {
	function := message(25, slices.Concat(text(1, "scale"), text(10, "pkg.mine"), message(7, text(4, "Mul"))))
	file := slices.Concat(withNode(colour(16).File(), text(4, "scale"), text(7, "pkg.mine")), function)
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := onnx.Inspect(path); err != nil {
		t.Error(err)
	}
}

func TestPortsAreHeldAgainstTheSpecification(t *testing.T) {
	m := colour(16)
	for name, c := range map[string]struct {
		change func(*encoder.Spec)
		says   string
	}{
		"tensor":  {func(s *encoder.Spec) { s.Input.Tensor = "image" }, "asks for image uint8"},
		"layout":  {func(s *encoder.Spec) { s.Input.Layout = encoder.NCHWFloat32 }, "asks for pixels float32 [N 3 16 16]"},
		"output":  {func(s *encoder.Spec) { s.Taps[2].Output = "embedding" }, "tap class asks for embedding"},
		"pooling": {func(s *encoder.Spec) { s.Taps[0].Pooling = encoder.GAP }, "tap features asks for features float32 [N 4 H W]"},
		"tokens":  {func(s *encoder.Spec) { *s.Taps[3].Skip = 256 }, "with more than 256 tokens"},
		"width":   {func(s *encoder.Spec) { s.Taps[4].Dim = 8 }, "tap both asks for tokens float32 [N T 4]"},
	} {
		spec := m.Spec()
		c.change(&spec)
		_, err := onnx.Open(m.File(), spec, onnx.CPU)
		refused(t, name, err, coverslip.Invalid, c.says)
	}
}

// The check reads any bytes without harm, and a file that passes keeps its weights under plain names.
func FuzzReadGraph(f *testing.F) {
	whole := colour(4).File()
	external := colour(4)
	external.External = "weights.bin"
	f.Add(whole)
	f.Add(external.File())
	f.Add(whole[:len(whole)/2])
	f.Add(withNode(whole, text(4, "If"), nested(3)))
	f.Add(withGraph(whole, message(15, message(1, field(14, 1)))))
	f.Add([]byte("PK\x03\x04data.pkl"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		weights, err := onnx.ReadGraph(raw)
		if err != nil {
			return
		}
		for _, name := range weights {
			if filepath.Base(name) != name || name == ".." || name == "." {
				t.Errorf("weights in %q", name)
			}
		}
	})
}

// --- protobuf by hand; numbers are those of onnx.proto ---

func field(n pw.Number, v uint64) []byte {
	return pw.AppendVarint(pw.AppendTag(nil, n, pw.VarintType), v)
}

func message(n pw.Number, b []byte) []byte {
	return pw.AppendBytes(pw.AppendTag(nil, n, pw.BytesType), b)
}

func text(n pw.Number, s string) []byte { return message(n, []byte(s)) }

func entry(key, value string) []byte { return slices.Concat(text(1, key), text(2, value)) }

// withGraph adds fields to the graph of a model written by onnxtest.
func withGraph(file []byte, fields ...[]byte) []byte {
	var out []byte
	for b := file; len(b) > 0; {
		n, kind, length := pw.ConsumeField(b)
		if n == 7 && kind == pw.BytesType {
			_, _, tag := pw.ConsumeTag(b)
			graph, _ := pw.ConsumeBytes(b[tag:])
			out = append(out, message(7, slices.Concat(graph, slices.Concat(fields...)))...)
		} else {
			out = append(out, b[:length]...)
		}
		b = b[length:]
	}
	return out
}

func withTensor(file []byte, in pw.Number, fields ...[]byte) []byte {
	return withGraph(file, message(in, slices.Concat(fields...)))
}

func withNode(file []byte, fields ...[]byte) []byte {
	return withGraph(file, message(1, slices.Concat(fields...)))
}

// nested is an attribute with a graph with a node with such an attribute, and so on.
func nested(depth int) []byte {
	if depth == 0 {
		return nil
	}
	return message(5, message(6, message(1, nested(depth-1))))
}

func cmpOr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
