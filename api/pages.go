package api

import (
	"bytes"
	"html/template"
	"net/http"
	"time"

	"coverslip"

	"github.com/go-chi/chi/v5"
)

var (
	indexPage = template.Must(template.ParseFS(pages, "web/index.html"))
	slidePage = template.Must(template.ParseFS(pages, "web/slide.html"))
)

// homeSlides is how many slides a page of them shows.
const homeSlides = 60

// homeRoutes are the pages at / and of one slide, made from the same doors as the API.
func (s *server) homeRoutes(router chi.Router) {
	router.Get("/", s.home)
	router.Get("/slides/{id}", s.slideOf)
}

// sendPage sends a page, or the problem that made it fail.
func (s *server) sendPage(w http.ResponseWriter, r *http.Request, t *template.Template, data any, err error) {
	var page bytes.Buffer
	if err == nil {
		err = t.Execute(&page, data)
	}
	if err != nil {
		problemOf(r.Context(), err).write(w)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", pagePolicy)
	_, _ = w.Write(page.Bytes()) // a client that has gone needs no answer
}

// cohortLine is how far a cohort is.
type cohortLine struct {
	Name                     string
	Slides, Embedded, Failed int
	Left                     string
}

func (s *server) home(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	data := struct {
		Version string
		Slides  []coverslip.Slide
		Next    string
		Cohorts []cohortLine
	}{Version: coverslip.Version}
	q := Query{Limit: homeSlides + 1}
	var err error
	if c := r.URL.Query().Get("cursor"); c != "" {
		q.After, err = parseCursor(c)
	}
	if err == nil {
		data.Slides, err = s.cfg.Slides.Slides(ctx, q)
	}
	if len(data.Slides) > homeSlides {
		data.Slides = data.Slides[:homeSlides]
		last := data.Slides[homeSlides-1]
		data.Next = cursor(Position{last.Registered, last.ID})
	}
	if err == nil && s.cfg.Cohorts != nil {
		var cohorts []coverslip.Cohort
		cohorts, err = s.cfg.Cohorts.Cohorts(ctx)
		for _, c := range cohorts[:min(len(cohorts), 50)] {
			p, perr := s.cfg.Cohorts.Progress(ctx, c.Name)
			if perr != nil {
				err = perr
				break
			}
			line := cohortLine{Name: c.Name, Slides: p.Slides, Embedded: p.States[coverslip.Embedded], Failed: p.States[coverslip.Failed]}
			if p.SecondsLeft > 0 {
				line.Left = (time.Duration(p.SecondsLeft) * time.Second).String()
			}
			data.Cohorts = append(data.Cohorts, line)
		}
	}
	s.sendPage(w, r, indexPage, data, err)
}

func (s *server) slideOf(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	var data struct {
		Slide     coverslip.Slide
		Bag       *coverslip.Bag
		Embedding *coverslip.Embedding
		Near      []coverslip.Neighbour
	}
	there := func(err error) (bool, error) {
		if coverslip.KindOf(err) == coverslip.NotFound {
			return false, nil
		}
		return err == nil, err
	}
	var err error
	if data.Slide, err = s.slide(ctx, OneSlide{chi.URLParam(r, "id")}); err != nil {
		s.sendPage(w, r, slidePage, nil, err)
		return
	}
	bag, err := s.cfg.Slides.Bag(ctx, data.Slide.ID)
	ok, err := there(err)
	if ok {
		data.Bag = &bag
	}
	if err == nil {
		var e coverslip.Embedding
		e, err = s.cfg.Slides.Embedding(ctx, data.Slide.ID)
		if ok, err = there(err); ok {
			data.Embedding = &e
			var found SearchAnswer
			found, err = s.cfg.Searcher.Search(ctx, SearchQuery{Slide: data.Slide.ID, K: 12})
			if ok, err = there(err); ok {
				for _, h := range found.Hits {
					data.Near = append(data.Near, h.Neighbour)
				}
			}
		}
	}
	s.sendPage(w, r, slidePage, data, err)
}
