package api_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"coverslip"
	"coverslip/api"
)

func (m *memory) Models(context.Context) ([]api.ModelInfo, error) {
	return []api.ModelInfo{{Model: coverslip.Model{Kind: coverslip.AggregatorModel, Name: "mean"}, State: "ships"}}, m.fail
}

func (m *memory) Embeddings(_ context.Context, q api.ExportQuery) (func(io.Writer) error, error) {
	switch {
	case m.fail != nil:
		return nil, m.fail
	case q.Cohort == "empty":
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "export embeddings", Err: errors.New("no slide has one"), Hint: "encode some"}
	case q.Cohort == "cut":
		return func(w io.Writer) error {
			_, err := io.WriteString(w, strings.Repeat("x", 1<<16))
			return errors.Join(err, errors.New("the disk is gone"))
		}, nil
	}
	return func(w io.Writer) error {
		_, err := io.WriteString(w, strings.Join([]string{q.Cohort, q.Encoder, q.Aggregator, q.Format}, " "))
		return err
	}, nil
}

func (s *site) exportAnswers(statuses map[coverslip.Kind]int) {
	for _, target := range []string{"/v1/models", "/v1/embeddings"} {
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
	s.wantKind(coverslip.NotFound, 404, "GET", "/v1/embeddings?cohort=empty", nil)
}

func TestEmbeddingsAreExported(t *testing.T) {
	s := newSite(t)
	for format, contentType := range map[string]string{"npz": "application/zip", "csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"} {
		a := s.want(200, "GET", "/v1/embeddings?cohort=brca&encoder=uni&aggregator=mean&format="+format, nil)
		if string(a.body) != "brca uni mean "+format || a.Header.Get("Content-Type") != contentType || !strings.Contains(a.Header.Get("Content-Disposition"), "embeddings."+format) {
			t.Errorf("%s %v", a.body, a.Header)
		}
	}
	s.want(422, "GET", "/v1/embeddings?format=xls", nil)
	resp, err := http.Get(s.url + "/v1/embeddings?cohort=cut")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a file that is cut looks whole")
	}
	models := decode[struct {
		Models []struct {
			Kind, Name, State string
			Dim               int
		}
	}](t, s.want(200, "GET", "/v1/models", nil))
	if len(models.Models) != 1 || models.Models[0].Name != "mean" || models.Models[0].State != "ships" {
		t.Errorf("%+v", models)
	}
}
