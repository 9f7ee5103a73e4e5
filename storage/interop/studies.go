package interop

import (
	"encoding/csv"
	"io"
	"slices"
	"strconv"

	"github.com/parquet-go/parquet-go"

	"coverslip"
	"coverslip/storage"
)

// Results are the figures of a study, one row for each run, evaluation, figure, training and fold.
type Results struct {
	Study   string
	Factors []string
	Rows    []storage.StudyResult
}

var resultColumns = []string{"study", "run", "seed", "evaluation", "figure", "training", "fold", "value"}

// WriteCSV writes columns study, run, one for each factor, seed, evaluation, figure, training, fold and value; NaN is
// empty. A factor that is called as one of the other columns is called "factor …".
func (t *Results) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	row := []string{"study", "run"}
	for _, f := range t.Factors {
		if slices.Contains(resultColumns, f) {
			f = "factor " + f
		}
		row = append(row, f)
	}
	_ = out.Write(append(row, resultColumns[2:]...)) // errors show in Error
	for _, r := range t.Rows {
		row = append(row[:0], t.Study, strconv.Itoa(r.Run))
		for _, f := range t.Factors {
			row = append(row, r.Levels[f])
		}
		value := ""
		if r.Value == r.Value {
			value = strconv.FormatFloat(r.Value, 'g', -1, 64)
		}
		_ = out.Write(append(row, strconv.FormatUint(r.Seed, 10), r.Evaluation, r.Figure, r.Training, r.Fold, value))
	}
	out.Flush()
	return out.Error()
}

// resultRow is a row of the parquet file.
type resultRow struct {
	Study      string            `parquet:"study,dict"`
	Run        int32             `parquet:"run"`
	Levels     map[string]string `parquet:"levels"`
	Seed       int64             `parquet:"seed"`
	Evaluation string            `parquet:"evaluation,dict"`
	Figure     string            `parquet:"figure,dict"`
	Training   string            `parquet:"training,dict"`
	Fold       string            `parquet:"fold,dict"`
	Value      float64           `parquet:"value"`
}

// WriteParquet writes the same with the factors in one column, levels (a map).
func (t *Results) WriteParquet(w io.Writer) error {
	out := parquet.NewGenericWriter[resultRow](w, parquet.CreatedBy("coverslip", coverslip.Version, ""))
	for _, r := range t.Rows {
		row := resultRow{t.Study, int32(r.Run), r.Levels, int64(r.Seed), r.Evaluation, r.Figure, r.Training, r.Fold, r.Value} //nolint:gosec // bounded where a study is read
		if _, err := out.Write([]resultRow{row}); err != nil {
			return err
		}
	}
	return out.Close()
}
