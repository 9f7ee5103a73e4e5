package studies

import (
	"coverslip/mil/split"
	"coverslip/slidessl/study"
)

// rows are some of the slides, by name, with what is known of them.
func (s *slides) rows(e study.Evaluation, ids []string) study.Embedded {
	d := study.Embedded{Columns: map[string][]string{}}
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
