package study

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coverslip"
	"coverslip/encoder"
	"coverslip/encoder/augment"
)

const good = `
name: objectives
question: Which objective?
papers: ["Kang et al., arXiv 2212.04690"]
fixed:
  cohort: idc
  train:
    architecture: {kind: mlp, readout: mean+sd}
    epochs: 20
    view.tiles: 16
factors:
  - setting: train.objective
    values: [simclr, vicreg]
  - name: stain
    levels:
      - {name: all, set: {views.augment: gigassl}}
      - {name: jitter alone, set: {views: {augment: [{p: 0.8, jitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.2}}]}}}
seeds: 3
evaluations:
  - {kind: probe, label: grade, slides: [25, 50], draws: 12}
  - {kind: geometry}
quick:
  set: {train.epochs: 2}
  seeds: 1
`

// known is two cohorts and an encoder, and stages that are there already.
type known struct{ there map[string]bool }

func (known) Cohort(_ context.Context, name string) (Cohort, error) {
	switch name {
	case "idc":
		return Cohort{Slides: 200, Tiles: 40_000, Classes: map[string]int{"grade": 2, "idc": 2, "site": 1}, Sizes: map[string]map[string]int{"grade": {"1": 120, "2": 80}}}, nil
	case "crc":
		return Cohort{Slides: 50, Tiles: 9_000, Classes: map[string]int{"grade": 3}}, nil
	case "bare":
		return Cohort{Slides: 20, Tiles: 100}, nil
	}
	return Cohort{}, &coverslip.Error{Kind: coverslip.NotFound, Op: "read the cohort", Path: name, Err: errors.New("there is none"), Hint: "coverslip cohorts lists them"}
}

func (known) Dim(_ context.Context, encoder string) (int, error) {
	if encoder != "efficientnet-lite0" {
		return 0, &coverslip.Error{Kind: coverslip.NotFound, Op: "find the encoder", Path: encoder, Err: errors.New("there is none"), Hint: "coverslip models lists them"}
	}
	return 1280, nil
}

func (known) Bags(_ context.Context, cohort, _ string, _ *coverslip.Views) (string, error) {
	return cohort, nil
}

func (k known) Has(context.Context, []string) (map[string]bool, error) { return k.there, nil }

func plan(t *testing.T, text string, quick bool) *Plan {
	t.Helper()
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Plan(t.Context(), known{}, quick, DefaultRates)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func stages(p *Plan, kind string) (n int) {
	for _, s := range p.Stages {
		if s.Kind == kind {
			n++
		}
	}
	return n
}

func TestAGridIsPlanned(t *testing.T) {
	p := plan(t, good, false)
	if len(p.Runs) != 12 || fmt.Sprint(p.Factors) != "[train.objective stain]" {
		t.Fatalf("%d runs of %v", len(p.Runs), p.Factors)
	}
	if got := fmt.Sprint(p.Runs[4].Levels, p.Runs[4].Seed); got != "[simclr jitter alone] 2" {
		t.Error(got)
	}
	// Views once for each augmentation, and the bag of tiles as they are is not needed.
	for kind, want := range map[string]int{"views": 2, "aggregator": 12, "embeddings": 12, "evaluation": 24} {
		if got := stages(p, kind); got != want {
			t.Errorf("%d of %s, want %d", got, kind, want)
		}
	}
	made := map[string]bool{}
	for _, s := range p.Stages {
		for _, on := range s.On {
			if !made[on] {
				t.Errorf("%s %s stands on what comes later", s.Kind, s.Key)
			}
		}
		made[s.Key] = true
	}
	s := p.Stages[1].Settings
	if s.Train.Epochs != 20 || s.Train.View.Tiles != 16 || s.Train.Architecture.Readout != "mean+sd" || s.Train.Architecture.Input != 1280 || s.Train.Batch != 200 || s.Embed.Cohort != "idc" || !s.Train.View.Rotate {
		t.Errorf("%+v", s)
	}
	if q := plan(t, good, true); len(q.Runs) != 4 || q.Stages[1].Settings.Train.Epochs != 2 {
		t.Errorf("quick: %d runs, %+v", len(q.Runs), q.Stages[1].Settings.Train)
	}
}

func TestOneFactorAtATime(t *testing.T) {
	p := plan(t, strings.Replace(good, "seeds: 3", "seeds: [7]\ndesign: each", 1), false)
	var got []string
	for _, r := range p.Runs {
		got = append(got, strings.Join(r.Levels, "+"))
	}
	if want := []string{"simclr+all", "vicreg+all", "simclr+jitter alone"}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// composed is a factor of parts, of which two share a list.
const composed = `name: s
fixed: {cohort: idc}
factors:
  - name: tiles
    levels:
      - {name: published, set: {views.augment: gigassl, train.view.flip: true}}
    without: {views.augment: none, train.view.flip: false}
    parts:
      - {name: grey, set: {views.augment: [{p: 0.2, grayscale: {}}]}}
      - {name: turns, set: {views.augment: [{p: 1, turn: {}}]}}
      - {name: flips, set: {train.view.flip: true}}
      - {name: tiles, set: {train.view.tiles: 5}}
evaluations: [{kind: probe, label: grade}]
`

func TestPartsAreComposed(t *testing.T) {
	p := plan(t, composed, false)
	var levels []string
	of := map[string]Settings{}
	for _, r := range p.Runs {
		levels = append(levels, r.Levels[0])
		for _, s := range p.Stages {
			if s.Key == r.Evaluations[0] {
				of[r.Levels[0]] = s.Settings
			}
		}
	}
	want := "published, none, grey, turns, flips, tiles, grey + turns, grey + flips, grey + tiles, turns + flips, turns + tiles, flips + tiles, " +
		"all but grey, all but turns, all but flips, all but tiles, all"
	if got := strings.Join(levels, ", "); got != want {
		t.Errorf("%s", got)
	}
	for level, want := range map[string]struct {
		augment string
		flip    bool
		tiles   int
	}{
		"none": {"none", false, 16}, "flips": {"none", true, 16}, "all but grey": {"[{p: 1, turn: {}}]", true, 5},
		"grey + turns": {"[{p: 0.2, grayscale: {}}, {p: 1, turn: {}}]", false, 16}, "all": {"[{p: 0.2, grayscale: {}}, {p: 1, turn: {}}]", true, 5},
	} {
		spec, err := augment.Parse(want.augment)
		if err != nil {
			t.Fatal(err)
		}
		if s := of[level]; string(s.Views.Augment) != spec.String() || s.Train.View.Flip != want.flip || s.Train.View.Tiles != want.tiles {
			t.Errorf("%s: %s, flip %v, %d tiles", level, s.Views.Augment, s.Train.View.Flip, s.Train.View.Tiles)
		}
	}
	// Levels are compared with what they were made of.
	r := Results{}
	for i, run := range p.Runs {
		r[run.Evaluations[0]] = []Figure{{Name: "auc", Group: "all", Split: "0", Value: float64(i)}, {Name: "auc", Group: "all", Split: "1", Value: float64(i)}}
	}
	against := map[string]string{}
	for _, d := range p.Differences(r, 20, rand.New(rand.NewPCG(1, 0))) {
		against[d.Level] = d.Against
		if want := float64(slices.Index(levels, d.Level) - slices.Index(levels, d.Against)); d.Value != want {
			t.Errorf("%s against %s: %g, want %g", d.Level, d.Against, d.Value, want)
		}
	}
	for level, want := range map[string]string{"published": "", "none": "published", "grey": "none", "grey + turns": "none", "all but grey": "all", "all": "none"} {
		if against[level] != want {
			t.Errorf("%s is compared with %q, want %q", level, against[level], want)
		}
	}
}

func TestFewPartsMakeNoLevelTwice(t *testing.T) {
	for n, want := range map[int]string{2: "none, a, b, all", 3: "none, a, b, c, a + b, a + c, b + c, all"} {
		f := Factor{Name: "f"}
		for _, name := range []string{"a", "b", "c"}[:n] {
			f.Parts = append(f.Parts, Level{Name: name})
		}
		if err := f.complete(); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range f.Levels {
			got = append(got, l.Name)
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%d parts: %v", n, got)
		}
	}
}

func TestRunsShareWhatIsTheSame(t *testing.T) {
	study := func(factor string, extra string) *Plan {
		return plan(t, "name: s\nfixed: {cohort: idc"+extra+"}\nfactors:\n  - "+factor+"\nevaluations: [{kind: probe, label: grade}, {kind: geometry}]\n", false)
	}
	twenty := "[1"
	for i := 2; i <= 20; i++ {
		twenty += fmt.Sprint(", ", i)
	}
	for _, c := range []struct {
		factor, extra                              string
		views, aggregators, embeddings, evaluation int
	}{
		{"{setting: embed.views, values: " + twenty + "]}", "", 1, 1, 20, 40},
		{"{setting: embed.tap, values: ['', projector.1, projector.2, projector.3]}", "", 1, 1, 4, 8},
		// Where slides are read otherwise than they were learned from, what they are brought to is another.
		{"{setting: embed.plain, values: [true, false]}", ", views.count: 10", 2, 2, 2, 4},
		{"{setting: views.augment, values: [none, histo]}", "", 2, 2, 2, 4},
		{"{setting: embed.cohort, values: [idc, crc]}", "", 2, 1, 2, 4},
		// What is not learned knows no objective, and its bag is that of tiles as they are.
		{"{setting: train.objective, values: [simclr, byol]}", ", aggregator: mean", 1, 0, 1, 2},
		{"{setting: train.objective, values: [simclr, byol]}", ", aggregator: untrained", 1, 1, 1, 2},
		{"{setting: aggregator, values: [trained, untrained, mean, mean+sd]}", "", 1, 2, 4, 8},
		{"{setting: aggregator, values: [trained, mean]}", ", views.count: 10", 2, 1, 2, 4},
		// What is learned from labels has no embedding, and no geometry.
		{"{setting: aggregator, values: [mean, abmil]}", "", 1, 0, 1, 3},
		{"{setting: train.view.plain, values: [true, false]}", ", embed.views: 0, views.count: 10", 2, 2, 2, 4},
	} {
		p := study(c.factor, c.extra)
		if v, a, e, n := stages(p, "views"), stages(p, "aggregator"), stages(p, "embeddings"), stages(p, "evaluation"); v != c.views || a != c.aggregators || e != c.embeddings || n != c.evaluation {
			t.Errorf("%s: %d views, %d aggregators, %d embeddings, %d evaluations", c.factor, v, a, e, n)
		}
	}
}

func TestKeysStandForResults(t *testing.T) {
	key := func(text string) string {
		p := plan(t, text, false)
		return p.Stages[len(p.Stages)-1].Key
	}
	// The same, said otherwise: nested or by path, defaults said aloud, evaluations named.
	a := key("name: a\nfixed: {cohort: idc, train.epochs: 20, views.count: 25}\nevaluations: [{kind: geometry}]\n")
	b := key("name: b\nquestion: q\nfixed: {cohort: idc, train: {epochs: 20, objective: simclr}, views: {augment: gigassl}}\nseeds: 1\nevaluations: [{kind: geometry}]\n")
	if a != b {
		t.Error("equal settings have two keys")
	}
	for _, other := range []string{"train.epochs: 21", "train.epochs: 20, train.options.temperature: 0.2", "train.epochs: 20, views.seed: 2", "train.epochs: 20, embed.seed: 2"} {
		if key("name: a\nfixed: {cohort: idc, views.count: 25, "+other+"}\nevaluations: [{kind: geometry}]\n") == a {
			t.Errorf("%s has the same key", other)
		}
	}
}

func TestWhoIsLearnedFromAndWhatLabelsSayIsPartOfTheKey(t *testing.T) {
	keys := func(fixed string) (aggregator, evaluation string) {
		p := plan(t, "name: a\nfixed: {cohort: idc, "+fixed+"}\nevaluations: [{kind: probe, label: grade}]\n", false)
		for _, s := range p.Stages {
			if s.Kind == "aggregator" {
				aggregator = s.Key
			}
		}
		return aggregator, p.Stages[len(p.Stages)-1].Key
	}
	all, _ := keys("train.epochs: 20")
	some, _ := keys("train.epochs: 20, where: grade=1")
	others, _ := keys("train.epochs: 20, where: grade=2")
	labelled, _ := keys("train.epochs: 20, label: grade") // which simclr does not look at
	if all == some || some == others || all != labelled {
		t.Error(all, some, others, labelled)
	}
	a, _ := keys("train.objective: supcon, label: grade")
	b, _ := keys("train.objective: supcon, label: idc")
	if a == b {
		t.Error("labels that are learned are not part of the key")
	}
	if p := plan(t, "name: a\nfixed: {cohort: idc, where: grade=2}\nevaluations: [{kind: geometry}]\n", false); p.Stages[1].Settings.Train.Batch != 80 {
		t.Errorf("a batch of %d, of 80 slides", p.Stages[1].Settings.Train.Batch)
	}
}

func TestWhatIsThereIsNotCounted(t *testing.T) {
	p := plan(t, good, false)
	f, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	there := known{map[string]bool{p.Stages[0].Key: true, p.Stages[1].Key: true}}
	again, err := f.Plan(t.Context(), there, false, DefaultRates)
	if err != nil {
		t.Fatal(err)
	}
	before, after := p.Counts(), again.Counts()
	if after[0].There != 1 || after[1].There != 1 || after[0].Bytes != before[0].Bytes/2 || after[1].Seconds >= before[1].Seconds {
		t.Errorf("%+v\n%+v", before, after)
	}
	// 200 slides × 25 views × 256 tiles × 1280 numbers of 4 bytes, for one of two augmentations.
	if want := int64(200 * 25 * 256 * 1280 * 4); after[0].Bytes != want {
		t.Errorf("%d bytes of views, want %d", after[0].Bytes, want)
	}
	text := again.Describe(2)
	for _, want := range []string{"12 runs of train.objective × stain", "2 view bags, 1 of them there already", "12 aggregators to train", "24 evaluations", "on 2 cores", "6.6 GB"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestWrongStudiesAreRefusedWithARemedy(t *testing.T) {
	with := func(old, instead string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(good, old, instead, 1)
	}
	many := ""
	for i := range 20 {
		many += fmt.Sprintf("  - {name: f%d, levels: [{name: a, set: {}}, {name: b, set: {}}]}\n", i)
	}
	for name, c := range map[string]struct {
		text string
		kind coverslip.Kind
		says string
	}{
		"empty":                     {"", coverslip.Invalid, "empty"},
		"no YAML":                   {"name: [", coverslip.Invalid, "line 1"},
		"two documents":             {good + "---\nname: b\n", coverslip.Invalid, "second document"},
		"unknown key":               {good + "factor: 3\n", coverslip.Invalid, "factor"},
		"unknown factor":            {with("train.objective\n", "train.objectiv\n"), coverslip.Invalid, "did you mean train.objective?"},
		"unknown setting":           {with("epochs: 20", "epoch: 20"), coverslip.Invalid, "did you mean train.epochs?"},
		"nothing like it":           {with("epochs: 20", "flux_capacitor: 20"), coverslip.Invalid, "settings begin with"},
		"fixed and varied":          {with("epochs: 20", "objective: byol"), coverslip.Invalid, "which fixed sets, too"},
		"varied twice":              {with("views.augment: gigassl", "train.objective: byol"), coverslip.Invalid, "which factor train.objective sets, too"},
		"quick and varied":          {with("set: {train.epochs: 2}", "set: {train.objective: byol}"), coverslip.Invalid, "which factor train.objective varies"},
		"seed as a setting":         {with("epochs: 20", "seed: 4"), coverslip.Invalid, "seeds"},
		"one level":                 {with("[simclr, vicreg]", "[simclr]"), coverslip.Invalid, "does not vary"},
		"the same level twice":      {with("[simclr, vicreg]", "[simclr, simclr]"), coverslip.Invalid, "two levels"},
		"the same seed twice":       {with("seeds: 3", "seeds: [1, 1]"), coverslip.Invalid, "seed 1 is there twice"},
		"no seeds":                  {with("seeds: 3", "seeds: 0"), coverslip.Invalid, "0 seeds"},
		"no name":                   {with("name: objectives", "name: Objectives/1"), coverslip.Invalid, "no name"},
		"no evaluation":             {with("  - {kind: probe, label: grade, slides: [25, 50], draws: 12}\n  - {kind: geometry}\n", "  []\n"), coverslip.Invalid, "evaluates nothing"},
		"unknown evaluation":        {with("kind: geometry", "kind: vibes"), coverslip.Invalid, "vibes"},
		"the same evaluation":       {with("kind: geometry", "kind: probe, label: grade"), coverslip.Invalid, "two evaluations"},
		"probe without label":       {with("label: grade, ", ""), coverslip.Invalid, "no label"},
		"label the cohort lacks":    {with("label: grade", "label: stage"), coverslip.Invalid, "its labels are grade, idc, site"},
		"label of one value":        {with("label: grade", "label: site"), coverslip.Invalid, "nothing to tell apart"},
		"cohort without labels":     {with("cohort: idc", "cohort: bare"), coverslip.Invalid, "import csv"},
		"no cohort":                 {with("  cohort: idc\n", ""), coverslip.Invalid, "no cohort"},
		"unknown cohort":            {with("cohort: idc", "cohort: tcga"), coverslip.NotFound, "coverslip cohorts"},
		"unknown encoder":           {with("cohort: idc", "cohort: idc\n  encoder: uni"), coverslip.NotFound, "coverslip models"},
		"unknown objective":         {with("[simclr, vicreg]", "[simclr, vicregg]"), coverslip.Invalid, "vicregg"},
		"wrong option":              {with("epochs: 20", "epochs: 20\n    options: {temperature: 0.1}"), coverslip.Invalid, "vicreg has no temperature"},
		"wrong type":                {with("epochs: 20", "epochs: many"), coverslip.Invalid, "train.epochs"},
		"no value":                  {with("epochs: 20", "epochs:"), coverslip.Invalid, "no value"},
		"unknown augmentation":      {with("gigassl", "gigasl"), coverslip.NotFound, "views.augment"},
		"unknown tap":               {with("cohort: idc", "cohort: idc\n  embed: {tap: projector.4}"), coverslip.Invalid, "projector.1, projector.2, projector.3"},
		"tap of a mean":             {with("cohort: idc", "cohort: idc\n  aggregator: mean\n  embed: {tap: projector.1}"), coverslip.Invalid, "mean has no layer"},
		"no slides to learn":        {with("epochs: 20", "epochs: 20\n    batch: 1"), coverslip.Invalid, "batch"},
		"labelled without label":    {with("[simclr, vicreg]", "[simclr, supcon]"), coverslip.Invalid, "set label to a column"},
		"label it does not have":    {with("[simclr, vicreg]", "[simclr, supcon]\n  - {name: l, levels: [{name: a, set: {label: stage}}, {name: b, set: {label: grade}}]}"), coverslip.Invalid, "no label stage"},
		"where is no condition":     {with("cohort: idc", "cohort: idc\n  where: grade"), coverslip.Invalid, "column=value"},
		"where of no column":        {with("cohort: idc", "cohort: idc\n  where: part=train"), coverslip.Invalid, "no label part"},
		"where of no value":         {with("cohort: idc", "cohort: idc\n  where: grade=7"), coverslip.Invalid, "it has 1, 2"},
		"a side alone":              {with("slides: [25, 50]", "train: grade=1, slides: [25, 50]"), coverslip.Invalid, "give both"},
		"sides and folds":           {with("slides: [25, 50]", "train: grade=1, test: grade=2, folds: 3, slides: [25, 50]"), coverslip.Invalid, "without folds"},
		"a side of no value":        {with("slides: [25, 50]", "train: grade=1, test: grade=9, slides: [25, 50]"), coverslip.Invalid, "it has 1, 2"},
		"where judged of no value":  {with("slides: [25, 50]", "where: grade=9, slides: [25, 50]"), coverslip.Invalid, "it has 1, 2"},
		"judged where nothing":      {with("slides: [25, 50]", "where: grade, slides: [25, 50]"), coverslip.Invalid, "no condition"},
		"equal sides":               {with("slides: [25, 50]", "train: grade=1, test: grade=1, slides: [25, 50]"), coverslip.Invalid, "another for each"},
		"ood without sides":         {with("kind: geometry", "kind: ood, label: grade"), coverslip.Invalid, "give both"},
		"uneven of no number":       {with("slides: [25, 50], draws: 12", "imbalance: [4]"), coverslip.Invalid, "slides: [40]"},
		"uneven the wrong way":      {with("draws: 12", "draws: 12, imbalance: [0.5]"), coverslip.Invalid, "1 or more"},
		"turned and rotated":        {with("[simclr, vicreg]", "[simclr, rotation]\n  - {setting: train.view.rotate, values: [true, false]}"), coverslip.Invalid, "rotate and flip to false"},
		"cohort of no kind":         {with("name: objectives", "name: objectives\ncohorts: {idc: {folder: x}}"), coverslip.Invalid, "patients or pseudo"},
		"cohort that is empty":      {with("name: objectives", "name: objectives\ncohorts: {idc: }"), coverslip.Invalid, "empty"},
		"folder elsewhere":          {with("name: objectives", "name: objectives\ncohorts: {idc: {kind: patients, folder: /etc}}"), coverslip.Invalid, "lies elsewhere"},
		"folder above":              {with("name: objectives", "name: objectives\ncohorts: {idc: {kind: patients, folder: ../x}}"), coverslip.Invalid, "lies elsewhere"},
		"pseudo of one class":       {with("name: objectives", "name: objectives\ncohorts: {idc: {kind: pseudo, folder: x, background: H, foreground: H}}"), coverslip.Invalid, "two classes"},
		"pseudo without parts":      {with("name: objectives", "name: objectives\ncohorts: {idc: {kind: pseudo, folder: x, background: H, foreground: A}}"), coverslip.Invalid, "no parts"},
		"unknown mark":              {with("name: objectives", "name: objectives\ncohorts: {idc: {kind: pseudo, folder: x, background: H, foreground: A, parts: [{name: a, slides: 3, mark: coffee}]}}"), coverslip.Invalid, "coffee"},
		"odd sites":                 {with("name: objectives", "name: objectives\ncohorts: {idc: {kind: pseudo, folder: x, background: H, foreground: A, parts: [{name: a, slides: 3, spurious: 0.5}]}}"), coverslip.Invalid, "sites in pairs"},
		"seed too large":            {with("seeds: 3", "seeds: [9223372036854775808]"), coverslip.Invalid, "above"},
		"parts that clash":          {strings.Replace(composed, "{train.view.tiles: 5}", "{train.view.flip: true}", 1), coverslip.Invalid, "which another sets, too"},
		"nothing but without":       {composed[:strings.Index(composed, "    parts:")] + "evaluations: [{kind: geometry}]\n", coverslip.Invalid, "has 0 parts"},
		"against itself":            {strings.Replace(composed, "name: published", "name: published, against: published", 1), coverslip.Invalid, "is compared with published"},
		"against nothing":           {strings.Replace(composed, "name: published", "name: published, against: all but flip", 1), coverslip.Invalid, "another level"},
		"abmil that nothing judges": {"name: s\nfixed: {cohort: idc, aggregator: abmil}\nevaluations: [{kind: probe, label: grade, c: 1}]\n", coverslip.Invalid, "give a probe without c"},
		"a grid of a million":       {"name: many\nfixed: {cohort: idc}\nfactors:\n" + many + "evaluations: [{kind: geometry}]\n", coverslip.TooLarge, "more than 100000 runs"},
	} {
		f, err := Parse([]byte(c.text))
		if err == nil {
			_, err = f.Plan(t.Context(), known{}, false, DefaultRates)
		}
		if coverslip.KindOf(err) != c.kind || coverslip.HintOf(err) == "" || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("name: a\nfixed: {train: {view: {scale: [1, 2]}}, cohort: *x}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		study, err := Parse(text)
		if err != nil {
			if coverslip.KindOf(err) == coverslip.Internal {
				t.Fatal(err)
			}
			return
		}
		if _, err := study.Plan(t.Context(), known{}, true, DefaultRates); coverslip.KindOf(err) == coverslip.Internal {
			t.Fatal(err)
		}
	})
}

// shipped is known, and what a file makes of tiles.
type shipped struct {
	known
	of *File
}

func (s shipped) Cohort(ctx context.Context, name string) (Cohort, error) {
	if s.of.Cohorts[name] != nil {
		return Cohort{Slides: 200, Tiles: 2500, Assumed: true, Members: name}, nil
	}
	return s.known.Cohort(ctx, name)
}

func (shipped) Dim(_ context.Context, name string) (int, error) {
	known, taps := encoder.SplitName(name)
	spec, ships := encoder.Shipped(known)
	if !ships {
		return 0, errors.New(name + " does not ship")
	}
	spec, err := spec.Use(taps...)
	return spec.Model().Dim, err
}

func TestShippedStudiesAreWhole(t *testing.T) {
	files, err := filepath.Glob("../../docs/studies/*.yaml")
	if err != nil || len(files) < 9 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Parse(text)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		for _, quick := range []bool{false, true} {
			p, err := f.Plan(t.Context(), shipped{of: f}, quick, DefaultRates)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if f.Name+".yaml" != filepath.Base(file) || f.Question == "" || len(f.Papers) == 0 {
				t.Errorf("%s does not say what it is", file)
			}
			t.Logf("quick %v: %s", quick, p.Describe(2))
			var seconds float64
			for _, c := range p.Counts() {
				seconds += c.Seconds
			}
			if quick && seconds/2 > 30*60 {
				t.Errorf("%s: --quick takes %.0f minutes on two cores", file, seconds/120)
			}
		}
	}
}

func TestTheExampleInTheDocumentsIsRead(t *testing.T) {
	raw, err := os.ReadFile("../../docs/studies/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "```yaml\n")
	text, _, _ := strings.Cut(rest, "```")
	if _, err := Parse([]byte(text)); err != nil {
		t.Error(err)
	}
}
