package main

import (
	"fmt"
	"strconv"

	"coverslip"
	"coverslip/mil/metric"
	"coverslip/mil/probe"
	"coverslip/mil/split"
)

// survival makes time and event of two columns. The class that splits spread evenly is whether the event was
// seen.
func (ev *evaluation) survival(labels map[string]any) (class, lacks string) {
	time, ok := labels[ev.flags.Label].(float64)
	switch {
	case labels[ev.flags.Label] == nil:
		return "", "no time"
	case !ok || !(time >= 0):
		return "", fmt.Sprintf("the time is %q", coverslip.LabelText(labels[ev.flags.Label]))
	}
	seen, ok := happened(labels[ev.event])
	if !ok {
		return "", fmt.Sprintf("whether the event was seen is %q", coverslip.LabelText(labels[ev.event]))
	}
	return strconv.FormatBool(seen), ""
}

// happened reads an event: a bool, or 1 and 0.
func happened(label any) (seen, ok bool) {
	switch v := label.(type) {
	case bool:
		return v, true
	case float64:
		return v == 1, v == 0 || v == 1
	}
	return false, false
}

// cox fits and predicts log hazards. Without a C it takes the one whose concordance over the validation sides
// is highest, the stronger penalty of equals.
func (f *fitting) cox(s split.Split, x, xTest []float32, train []int, o probe.Options) ([]float64, error) {
	time, event := f.times(train)
	c := f.spec.C
	if c == 0 {
		folds, all, err := f.inside(s, train)
		if err != nil {
			return nil, err
		}
		if c = withoutChoice; folds == nil {
			f.mu.Lock()
			f.tooFew++
			f.mu.Unlock()
		} else if c, err = f.coxStrength(folds, all, o); err != nil {
			return nil, err
		}
	}
	m, err := probe.FitCox(x, len(f.vectors[0]), time, event, c, o)
	if err != nil {
		return nil, err
	}
	risk := make([]float64, len(xTest)/len(f.vectors[0]))
	m.Margins(risk, xTest)
	return risk, nil
}

func (f *fitting) coxStrength(folds []probe.Fold, all []int, o probe.Options) (float64, error) {
	best, highest := 0.0, -1.0
	for _, c := range probe.Strengths() {
		if c < 1e-3 || c > 1e3 {
			continue
		}
		var figures []float64
		for _, fold := range folds {
			time, event := f.times(pickInts(all, fold.Train))
			m, err := probe.FitCox(f.features(pickInts(all, fold.Train)), len(f.vectors[0]), time, event, c, o)
			if err != nil {
				return 0, err
			}
			risk := make([]float64, len(fold.Val))
			m.Margins(risk, f.features(pickInts(all, fold.Val)))
			time, event = f.times(pickInts(all, fold.Val))
			figures = append(figures, metric.Concordance(time, event, risk))
		}
		if mean := metric.Across(figures).Value; mean > highest {
			best, highest = c, mean
		}
	}
	f.mu.Lock()
	f.chosen = append(f.chosen, best)
	f.mu.Unlock()
	return best, nil
}

func (f *fitting) times(rows []int) (time []float64, event []bool) {
	for _, r := range rows {
		time, event = append(time, f.ev.times[r]), append(event, f.ev.events[r])
	}
	return time, event
}
