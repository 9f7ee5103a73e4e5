package studies

import (
	"coverslip/internal/nn"
	"coverslip/mil/split"
	"coverslip/slidessl/study"
)

// embedded puts embeddings of slides beside what is known of them.
func (s *slides) embedded(e study.Evaluation, ids []string, x, again *nn.Param) study.Embedded {
	d := study.Embedded{X: x.Value, Dim: x.Cols, Columns: map[string][]string{}}
	if again != nil {
		d.Again = again.Value
	}
	at := make(map[string]int, len(s.ids))
	for i, id := range s.ids {
		at[id] = i
	}
	columns := e.Columns()
	for _, id := range ids {
		row := split.Row{Slide: id}
		var of map[string]string
		if i, there := at[id]; there {
			of = s.columns[i]
			row.Patient, row.Site, row.Label = s.patient[i], s.site[i], of[e.Label]
		}
		d.Rows = append(d.Rows, row)
		for _, c := range columns {
			d.Columns[c] = append(d.Columns[c], of[c])
		}
	}
	return d
}
