package interop

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"

	"github.com/parquet-go/parquet-go"

	"coverslip"
)

// Embeddings is a table in memory: one row a slide, all of the same encoder and aggregator.
type Embeddings struct {
	Slides  []coverslip.SlideID
	Names   []string
	Members []coverslip.Member // of each slide; nil where no cohort was asked for
	Vectors []float32          // [N,Dim]
	Dim     int
}

func (t *Embeddings) vector(i int) []float32 { return t.Vectors[i*t.Dim : (i+1)*t.Dim] }

// WriteCSV writes columns slide, name, e0, e1 and so on.
func (t *Embeddings) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	row := []string{"slide", "name"}
	for k := range t.Dim {
		row = append(row, "e"+strconv.Itoa(k))
	}
	_ = out.Write(row)
	for i, id := range t.Slides {
		row = append(row[:0], string(id), t.Names[i])
		for _, v := range t.vector(i) {
			row = append(row, strconv.FormatFloat(float64(v), 'g', -1, 32))
		}
		_ = out.Write(row)
	}
	out.Flush()
	return out.Error()
}

// WriteNPZ writes embeddings [N,D] float32, slides [N] and names [N].
func (t *Embeddings) WriteNPZ(w io.Writer) error {
	ids := make([]string, len(t.Slides))
	for i, id := range t.Slides {
		ids[i] = string(id)
	}
	z := newNPZ(w)
	z.array("embeddings", "<f4", []int{len(t.Slides), t.Dim}, t.Vectors)
	z.texts("slides", []int{len(ids)}, ids...)
	z.texts("names", []int{len(ids)}, t.Names...)
	return z.close()
}

// embeddingRow is a row of the parquet file.
type embeddingRow struct {
	Slide     string            `parquet:"slide"`
	Name      string            `parquet:"name"`
	Patient   string            `parquet:"patient,dict"`
	Site      string            `parquet:"site,dict"`
	Labels    map[string]string `parquet:"labels"`
	Embedding []float32         `parquet:"embedding,list"`
}

// WriteParquet writes columns slide, name, patient, site, labels (a map) and embedding (a list of
// float32). Without a cohort, patient and site are empty.
func (t *Embeddings) WriteParquet(w io.Writer) error {
	out := parquet.NewGenericWriter[embeddingRow](w, parquet.CreatedBy("coverslip", coverslip.Version, ""))
	for i, id := range t.Slides {
		row := embeddingRow{Slide: string(id), Name: t.Names[i], Embedding: t.vector(i)}
		if t.Members != nil {
			m := t.Members[i]
			row.Patient, row.Site, row.Labels = m.Patient, m.Site, map[string]string{}
			for name, v := range m.Labels {
				row.Labels[name] = coverslip.LabelText(v)
			}
		}
		if _, err := out.Write([]embeddingRow{row}); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
	}
	return out.Close()
}
