package main

import (
	"archive/zip"
	"encoding/binary"
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"unicode/utf8"

	"coverslip"
	"coverslip/encoder"
	"coverslip/slidessl"
	"coverslip/storage"
)

type exportCmd struct {
	Format     string `enum:"npz,csv" default:"npz" help:"npz for numpy, csv for the rest (${default})."`
	Out        string `short:"o" placeholder:"FILE" help:"Where to write (embeddings.npz or embeddings.csv; - is standard output)."`
	Cohort     string `placeholder:"NAME" help:"Only slides of this cohort."`
	Encoder    string `placeholder:"NAME" help:"Embeddings under this encoder (the one that ships with the product)."`
	Aggregator string `placeholder:"NAME" help:"Embeddings under this aggregator (mean)."`
	dataFlags
}

// Help is shown by coverslip export --help.
func (exportCmd) Help() string {
	return `Example:
  coverslip export --format npz -o embeddings.npz
  python3 -c "import numpy as np; f = np.load('embeddings.npz'); print(f['embeddings'].shape, f['slides'][:3])"

The npz holds embeddings [N,D] float32, slides [N] and names [N]; rows are in the order of slide ids.`
}

// Run writes the embeddings.
func (c *exportCmd) Run(e *env) error {
	p, err := c.connect(e)
	if err != nil {
		return err
	}
	defer p.Close()
	if c.Encoder == "" {
		m, _ := encoder.Default()
		c.Encoder = m.Name
	}
	if c.Aggregator == "" {
		c.Aggregator = slidessl.Mean{}.Model().Name
	}
	t := &table{}
	for n, err := range p.DB.Embeddings(e, storage.EmbeddingFilter{Encoder: c.Encoder, Aggregator: c.Aggregator, Cohort: c.Cohort}) {
		if err != nil {
			return err
		}
		t.slides, t.names, t.vectors, t.dim = append(t.slides, string(n.Slide)), append(t.names, n.Name), append(t.vectors, n.Vector...), len(n.Vector)
	}
	if len(t.slides) == 0 {
		return &coverslip.Error{Kind: coverslip.NotFound, Op: "export embeddings", Err: fmt.Errorf("no slide has one under encoder %s and aggregator %s", c.Encoder, c.Aggregator), Hint: "coverslip slides shows where each stands"}
	}
	if c.Out == "" {
		c.Out = "embeddings." + c.Format
	}
	write := map[string]func(io.Writer) error{"npz": t.npz, "csv": t.csv}[c.Format]
	if c.Out == "-" {
		return write(e.out)
	}
	if err := publish(c.Out, write); err != nil {
		return err
	}
	if e.json {
		return e.emit(map[string]any{"file": c.Out, "slides": len(t.slides), "dim": t.dim})
	}
	e.printf("%s: %d embeddings of %d numbers\n", c.Out, len(t.slides), t.dim)
	return nil
}

// publish writes a file under another name and renames it, so that it is never half there.
func publish(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return diskError("write", path, err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return diskError("write", path, err)
	}
	return nil
}

// table is embeddings in memory: [len(slides), dim] row by row.
type table struct {
	slides, names []string
	vectors       []float32
	dim           int
}

func (t *table) csv(w io.Writer) error {
	out := csv.NewWriter(w)
	row := []string{"slide", "name"}
	for k := range t.dim {
		row = append(row, "e"+strconv.Itoa(k))
	}
	_ = out.Write(row)
	for i, id := range t.slides {
		row = append(row[:0], id, t.names[i])
		for _, v := range t.vectors[i*t.dim : (i+1)*t.dim] {
			row = append(row, strconv.FormatFloat(float64(v), 'g', -1, 32))
		}
		_ = out.Write(row)
	}
	out.Flush()
	return out.Error()
}

// npz writes numpy's archive: a ZIP of .npy files
// (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0).
func (t *table) npz(w io.Writer) error {
	z := zip.NewWriter(w)
	n := len(t.slides)
	raw := make([]byte, 0, 4*len(t.vectors))
	for _, v := range t.vectors {
		raw, _ = binary.Append(raw, binary.LittleEndian, v)
	}
	err := npy(z, "embeddings", "<f4", fmt.Sprintf("(%d, %d)", n, t.dim), raw)
	for _, column := range []struct {
		name  string
		texts []string
	}{{"slides", t.slides}, {"names", t.names}} {
		width, raw := utf32(column.texts)
		if err == nil {
			err = npy(z, column.name, fmt.Sprintf("<U%d", width), fmt.Sprintf("(%d,)", n), raw)
		}
	}
	if err != nil {
		return err
	}
	return z.Close()
}

func npy(z *zip.Writer, name, dtype, shape string, data []byte) error {
	w, err := z.CreateHeader(&zip.FileHeader{Name: name + ".npy", Method: zip.Store})
	if err != nil {
		return err
	}
	header := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': %s, }", dtype, shape)
	const fixed = 10 // magic, version, length
	for (fixed+len(header)+1)%64 != 0 {
		header += " "
	}
	header += "\n"
	head := append([]byte("\x93NUMPY\x01\x00"), byte(len(header)), byte(len(header)>>8)) //nolint:gosec // a header has some hundred bytes
	if _, err = w.Write(append(head, header...)); err == nil {
		_, err = w.Write(data)
	}
	return err
}

// utf32 lays texts out as numpy keeps them: each as wide as the longest, filled with zeros.
func utf32(texts []string) (width int, raw []byte) {
	width = 1
	for _, s := range texts {
		width = max(width, utf8.RuneCountInString(s))
	}
	raw = make([]byte, 4*width*len(texts))
	for i, s := range texts {
		k := 4 * width * i
		for _, r := range s {
			binary.LittleEndian.PutUint32(raw[k:], uint32(r)) //nolint:gosec // a rune of a range loop is not negative
			k += 4
		}
	}
	return width, raw
}
