package api_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"coverslip"
)

const searchPath = "/v1/embeddings/search"

// searchAnswers meets every answer of the routes of embeddings.
func (s *site) searchAnswers(statuses map[coverslip.Kind]int) {
	s.t.Helper()
	s.fail = nil
	body := func(text string) io.Reader { return strings.NewReader(text) }
	one := fmt.Sprintf(`{"queries":[{"slide":%q}]}`, idA)
	s.want(200, "POST", searchPath, body(one))
	s.want(200, "POST", "/v1/embeddings/compute?name=x.svs", body("a slide"))
	s.wantKind(coverslip.Invalid, 422, "POST", searchPath, body(`{"queries":[{}]}`))
	s.wantKind(coverslip.Invalid, 422, "POST", "/v1/embeddings/compute?nonsense=1", body("a slide"))
	s.wantKind(coverslip.NotFound, 404, "POST", searchPath, body(`{"queries":[{"slide":"0123456789"}]}`))
	s.wantKind(coverslip.Conflict, 409, "POST", searchPath, body(`{"queries":[{"slide":"aaaaaa"}]}`))
	for _, target := range []string{searchPath, "/v1/embeddings/compute"} {
		s.want(403, "POST", target, body(one), "Sec-Fetch-Site", "cross-site")
	}
	for kind, status := range statuses {
		s.fail = &coverslip.Error{Kind: kind, Op: "try", Err: errors.New("it is made to fail"), Hint: "do not"}
		s.want(status, "POST", searchPath, body(one))
		if kind != coverslip.NotFound {
			s.want(status, "POST", "/v1/embeddings/compute?name=x.svs", body("a slide"))
		}
	}
	s.fail = &coverslip.Error{Kind: coverslip.Canceled, Op: "read", Err: io.ErrUnexpectedEOF, Hint: "again"}
	s.want(499, "POST", searchPath, body(one))
	s.want(499, "POST", "/v1/embeddings/compute?name=x.svs", body("a slide"))
	s.fail = nil
}

type searched struct {
	Encoder, Aggregator string
	Results             []struct {
		Slide      string
		Neighbours []struct {
			Slide, Name, Patient, Site string
			Similarity                 float64
			Labels                     map[string]string
		}
		Vote *struct {
			Label, Value string
			Votes, Of    int
			Share        float64
		}
		Next string
	}
}

func TestSearchBatchesVotesAndPages(t *testing.T) {
	s := newSite(t)
	s.add(idA, coverslip.Embedded, 1, 0)
	s.add(idB, coverslip.Embedded, 0.8, 0.6)
	s.add(idC, coverslip.Embedded, 0, 1)
	got := decode[searched](t, s.want(200, "POST", searchPath, strings.NewReader(fmt.Sprintf(
		`{"queries":[{"slide":%q},{"vector":[0,2]},{"slide":%q,"region":{"x":3,"y":0,"width":10,"height":10}}],"k":1,"vote":"grade","where":{"site":["s"],"labels":{"grade":"2"}},"exclude_same_patient":true}`, idA, idB))))
	if len(got.Results) != 3 || got.Encoder != "test" || got.Results[0].Slide != idA || got.Results[0].Neighbours[0].Slide != idB || got.Results[1].Neighbours[0].Slide != idC || got.Results[2].Neighbours[0].Slide != idA {
		t.Fatalf("%+v", got)
	}
	first := got.Results[0]
	if v := first.Vote; v == nil || v.Label != "grade" || v.Value != "2" || v.Share != 1 || first.Neighbours[0].Labels["grade"] != "2" || first.Neighbours[0].Patient != "p" {
		t.Errorf("%+v", first)
	}
	// Page by page, everything once.
	seen, next := "", ""
	for range 3 {
		a := decode[searched](t, s.want(200, "POST", searchPath, strings.NewReader(fmt.Sprintf(`{"queries":[{"vector":[1,0]}],"k":1,"cursor":%q}`, next))))
		for _, n := range a.Results[0].Neighbours {
			seen += n.Slide[:1] + n.Slide[6:7]
		}
		next = a.Results[0].Next
	}
	if seen != "a1a2c3" || next != "" {
		t.Errorf("saw %s, then %q", seen, next)
	}
}

func TestSearchRefusesWhatIsNoQuery(t *testing.T) {
	s := newSite(t)
	s.add(idA, coverslip.Embedded, 1, 0)
	s.add(idB, coverslip.Embedded, 0, 1)
	page := decode[searched](t, s.want(200, "POST", searchPath, strings.NewReader(`{"queries":[{"vector":[1,0]}],"k":1}`)))
	cursor := page.Results[0].Next
	for name, body := range map[string]string{
		"nothing":                 ``,
		"no queries":              `{"queries":[]}`,
		"null":                    `{"queries":null}`,
		"neither":                 `{"queries":[{}]}`,
		"both":                    `{"queries":[{"slide":"aaaaaa11","vector":[1,0]}]}`,
		"region of nothing":       `{"queries":[{"region":{"x":0,"y":0,"width":1,"height":1}}]}`,
		"vector of other length":  `{"queries":[{"vector":[1,0,0]}]}`,
		"NaN":                     `{"queries":[{"vector":[NaN,0]}]}`,
		"infinite":                `{"queries":[{"vector":[1e39,0]}]}`,
		"beyond float64":          `{"queries":[{"vector":[1e999,0]}]}`,
		"text":                    `{"queries":[{"vector":["1","0"]}]}`,
		"unknown filter":          `{"queries":[{"vector":[1,0]}],"where":{"scanner":"x"}}`,
		"misspelt":                `{"queries":[{"vector":[1,0]}],"kk":3}`,
		"k of 0":                  `{"queries":[{"vector":[1,0]}],"k":0}`,
		"k too large":             `{"queries":[{"vector":[1,0]}],"k":1001}`,
		"cursor of another query": fmt.Sprintf(`{"queries":[{"vector":[0,1]}],"k":1,"cursor":%q}`, cursor),
		"cursor of another where": fmt.Sprintf(`{"queries":[{"vector":[1,0]}],"k":1,"where":{"site":["x"]},"cursor":%q}`, cursor),
		"made-up cursor":          `{"queries":[{"vector":[1,0]}],"cursor":"AAAA"}`,
		"cursor for two":          fmt.Sprintf(`{"queries":[{"vector":[1,0]},{"vector":[1,0]}],"k":1,"cursor":%q}`, cursor),
	} {
		if a := s.want(422, "POST", searchPath, strings.NewReader(body)); a.problem.Kind != coverslip.Invalid || a.problem.Hint == "" {
			t.Errorf("%s: %s", name, a.body)
		}
	}
	s.wantKind(coverslip.NotFound, 404, "POST", searchPath, strings.NewReader(`{"queries":[{"vector":[1,0]}],"where":{"cohort":"absent"}}`))
}
