package mil

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"strconv"

	"coverslip"
	"coverslip/internal/nn"
)

// state is where a training stands between two epochs. Nothing else is needed to go on to the same bits: what is
// drawn in an epoch comes from the seed and its number.
type state struct {
	epoch  int
	least  float64 // validation loss
	best   []*nn.Param
	report Report
}

func (s *state) finished(patience int) bool {
	return patience > 0 && s.report.Best > 0 && s.epoch-s.report.Best >= patience
}

func (t *trainer) fresh() *state {
	s := &state{least: math.Inf(1)}
	for _, p := range t.net.params() {
		b := nn.NewParam("best/"+p.Name, p.Rows, p.Cols)
		copy(b.Value, p.Value)
		s.best = append(s.best, b)
	}
	return s
}

// text names the training, so that no other goes on from it.
func (t *trainer) text(s *state) (map[string]string, error) {
	settings, err := json.Marshal(struct {
		Config     Config
		Dim        int
		Classes    int
		Train, Val []int
		Y          []int
	}{t.c, t.dim, t.classes, t.train, t.val, t.y})
	if err != nil {
		return nil, err
	}
	epochs := make([][2]float64, len(s.report.Epochs)) // NaN is no JSON
	for i, e := range s.report.Epochs {
		epochs[i] = [2]float64{e.Loss, e.Val}
		if math.IsNaN(e.Val) {
			epochs[i][1] = -1
		}
	}
	told, err := json.Marshal(epochs)
	if err != nil {
		return nil, err
	}
	return map[string]string{"kind": "coverslip mil training 1", "training": string(settings), "epoch": strconv.Itoa(s.epoch), "best": strconv.Itoa(s.report.Best),
		"least": strconv.FormatFloat(s.least, 'g', -1, 64), "epochs": string(told)}, nil
}

func (t *trainer) stateParams(s *state) []*nn.Param {
	params := t.net.params()
	all := append(append([]*nn.Param{t.scale.mean, t.scale.by}, params...), t.opt.State(params)...)
	return append(all, s.best...)
}

func (t *trainer) save(path string, s *state) error {
	text, err := t.text(s)
	if err != nil {
		return &coverslip.Error{Kind: coverslip.Internal, Op: "save the training", Err: err}
	}
	return nn.Save(path, t.stateParams(s), text)
}

// resume takes up a training from its file, or begins it.
func (t *trainer) resume(path string) (*state, error) {
	s := t.fresh()
	if path == "" {
		return s, nil
	}
	if _, err := os.Stat(path); os.IsNotExist(err) {
		return s, nil
	}
	f, err := nn.Load(path)
	if err != nil {
		return nil, err
	}
	want, err := t.text(s)
	if err != nil {
		return nil, &coverslip.Error{Kind: coverslip.Internal, Op: "go on with the training", Err: err}
	}
	bad := func(err error) error {
		return &coverslip.Error{Kind: coverslip.Conflict, Op: "go on with the training", Path: path, Err: err, Hint: "name another checkpoint, or remove this one"}
	}
	if f.Text["kind"] != want["kind"] || f.Text["training"] != want["training"] {
		return nil, bad(errors.New("it belongs to another training, of other settings, bags or classes"))
	}
	var epochs [][2]float64
	if err := json.Unmarshal([]byte(f.Text["epochs"]), &epochs); err != nil {
		return nil, bad(err)
	}
	for i, e := range epochs {
		if e[1] < 0 {
			e[1] = math.NaN()
		}
		s.report.Epochs = append(s.report.Epochs, Epoch{Epoch: i + 1, Loss: e[0], Val: e[1]})
	}
	s.epoch = len(epochs)
	if s.report.Best, err = strconv.Atoi(f.Text["best"]); err != nil {
		return nil, bad(err)
	}
	if s.least, err = strconv.ParseFloat(f.Text["least"], 64); err != nil {
		return nil, bad(err)
	}
	if err := f.Fill(t.stateParams(s)); err != nil {
		return nil, coverslip.At(path, err)
	}
	return s, nil
}
