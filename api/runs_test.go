package api_test

import (
	"io"
	"net/http"
	"testing"

	"coverslip"
)

func (s *site) runAnswers(statuses map[coverslip.Kind]int) {
	for _, target := range []string{"/v1/runs", "/v1/runs/3f3f3f", "/v1/runs/3f3f3f/predictions"} {
		s.fail = nil
		s.want(http.StatusOK, "GET", target, nil)
		s.want(422, "GET", target+"?nonsense=1", nil)
		for _, kind := range []coverslip.Kind{coverslip.Unavailable, coverslip.Environment, coverslip.Canceled, coverslip.Internal} {
			s.fail = &coverslip.Error{Kind: kind, Op: "try", Hint: "do not"}
			s.wantKind(kind, statuses[kind], "GET", target, nil)
		}
		s.fail = &coverslip.Error{Kind: coverslip.Canceled, Op: "read", Err: io.ErrUnexpectedEOF, Hint: "again"}
		s.want(499, "GET", target, nil)
	}
	s.fail = nil
	for _, part := range []string{"", "/predictions"} {
		s.wantKind(coverslip.NotFound, 404, "GET", "/v1/runs/012345"+part, nil)
		s.wantKind(coverslip.Conflict, 409, "GET", "/v1/runs/aaaaaa"+part, nil)
	}
}

func TestRunsAreShown(t *testing.T) {
	s := newSite(t)
	list := decode[struct{ Runs []coverslip.Run }](t, s.want(200, "GET", "/v1/runs", nil))
	if len(list.Runs) != 1 || list.Runs[0].ID != runA.ID || list.Runs[0].Splits != "" || !list.Runs[0].Methods[1].Baseline {
		t.Errorf("%+v", list)
	}
	one := decode[coverslip.Run](t, s.want(200, "GET", "/v1/runs/3f3f3f", nil))
	if one.Splits != runA.Splits || string(one.Settings) != string(runA.Settings) || len(one.LeftOut) != 1 || !one.Created.Equal(runA.Created) {
		t.Errorf("%+v", one)
	}
	all := decode[struct{ Predictions []coverslip.Prediction }](t, s.want(200, "GET", "/v1/runs/3f3f3f/predictions", nil))
	if len(all.Predictions) != 1 || all.Predictions[0].P[0] != 0.75 {
		t.Errorf("%+v", all)
	}
}
