package slidessltest

import (
	"fmt"
	"math"
	"math/rand/v2"

	"coverslip/slidessl/view"
)

// Task is what decides the label of a pseudo-slide.
type Task string

// The tasks there are. Every slide is a round piece of tissue of about Across² tiles.
const (
	// Composition: of two kinds of tissue, which there is more of: 35 to 48 % against 52 to 65 %.
	Composition Task = "composition"
	// Needle: whether there are a few tiles, 4 % of all, of one kind among those of another.
	Needle Task = "needle"
	// Arrangement: half of the tiles are of each kind; they lie in patches, or anywhere.
	Arrangement Task = "arrangement"
)

// Tasks are all three.
var Tasks = []Task{Composition, Needle, Arrangement}

// PseudoSpec says how pseudo-slides are made.
type PseudoSpec struct {
	Task   Task
	Slides int
	Across int // tiles across a slide: 12
	Sites  int // that slides come from, each with a look of its own
	// Spurious is the chance that a slide's site is the one of its label (of sites in pairs), rather than any:
	// 0 is no relation, 1 makes the site tell the label.
	Spurious float64
	// Background and Foreground are the tiles of each kind, as numbers of rows; others lists tiles of more
	// kinds of which a tenth of every slide is made.
	Background, Foreground, Others []int
}

// Slide is a pseudo-slide: which tiles lie where, and what is true of it.
type Slide struct {
	Tiles  []int // rows of an Encoded of its site
	Places []view.Place
	Needle []bool // the tiles that decide, in Needle
	Label  int
	Site   int
}

// Pseudo makes slides. Equal rng give equal slides; labels are half and half.
func Pseudo(s PseudoSpec, rng *rand.Rand) []Slide {
	slides := make([]Slide, s.Slides)
	for i := range slides {
		sl := Slide{Label: i % 2, Site: rng.IntN(max(s.Sites, 1))}
		if rng.Float64() < s.Spurious && s.Sites > 1 {
			sl.Site = sl.Label + 2*rng.IntN(s.Sites/2)
		}
		shape := 0.85 + 0.3*rng.Float64() // width over height
		r := float64(s.Across) / 2
		for y := range s.Across {
			for x := range s.Across {
				dx, dy := (float64(x)+0.5-r)/r*shape, (float64(y)+0.5-r)/r/shape
				if dx*dx+dy*dy < 1.1 {
					sl.Places = append(sl.Places, view.Place{X: float64(x), Y: float64(y)})
				}
			}
		}
		front := foreground(s.Task, sl.Label, sl.Places, rng)
		for k := range sl.Places {
			from := s.Background
			if front[k] {
				from = s.Foreground
			} else if len(s.Others) > 0 && rng.IntN(10) == 0 {
				from = s.Others
			}
			sl.Tiles = append(sl.Tiles, from[rng.IntN(len(from))])
		}
		if s.Task == Needle {
			sl.Needle = front
		}
		slides[i] = sl
	}
	return slides
}

// foreground chooses the places of the foreground kind.
func foreground(task Task, label int, places []view.Place, rng *rand.Rand) []bool {
	n := len(places)
	front := make([]bool, n)
	anywhere := func(count int) {
		for _, i := range rng.Perm(n)[:count] {
			front[i] = true
		}
	}
	switch task {
	case Composition:
		share := 0.35 + 0.13*rng.Float64()
		if label == 1 {
			share = 1 - share
		}
		anywhere(int(math.Round(share * float64(n))))
	case Needle:
		if label == 1 {
			anywhere(max(int(math.Round(0.04*float64(n))), 1))
		}
	case Arrangement:
		if label == 0 {
			anywhere(n / 2)
			break
		}
		// Patches: the half of the places where a smooth random field is highest.
		type wave struct{ kx, ky, phase float64 }
		waves := make([]wave, 6)
		for i := range waves {
			angle, length := 2*math.Pi*rng.Float64(), 6+4*rng.Float64()
			waves[i] = wave{2 * math.Pi / length * math.Cos(angle), 2 * math.Pi / length * math.Sin(angle), 2 * math.Pi * rng.Float64()}
		}
		height := make([]float64, n)
		for i, p := range places {
			for _, w := range waves {
				height[i] += math.Cos(w.kx*p.X + w.ky*p.Y + w.phase)
			}
		}
		order := make([]int, n)
		for i := range order {
			order[i] = i
		}
		for i := range order { // n is a few hundred
			for j := i + 1; j < n; j++ {
				if height[order[j]] > height[order[i]] {
					order[i], order[j] = order[j], order[i]
				}
			}
		}
		for _, i := range order[:n/2] {
			front[i] = true
		}
	default:
		panic(fmt.Sprintf("slidessltest: no task %q", task))
	}
	return front
}

// Cohort is slides in memory whose tiles are rows of what was encoded, as aggregators learn from them.
type Cohort struct {
	Slides []Slide
	Looks  []*Encoded // by site
	Names  []string   // nil: numbered
	// Views asks for the stored views, else there is one: tiles as they are.
	Views bool
}

// Len is the number of slides.
func (c *Cohort) Len() int { return len(c.Slides) }

// Dim is the length of an instance.
func (c *Cohort) Dim() int { return c.Looks[0].Dim }

// Stored is how many views of a slide there are.
func (c *Cohort) Stored(int) int {
	if c.Views {
		return len(c.Looks[0].Views) - 1
	}
	return 1
}

// Label is the slide's.
func (c *Cohort) Label(i int) int { return c.Slides[i].Label }

// Name is the slide's.
func (c *Cohort) Name(i int) string {
	if c.Names != nil {
		return c.Names[i]
	}
	return fmt.Sprintf("slide %d", i)
}

// Places are where the slide's tiles lie.
func (c *Cohort) Places(i, _ int) ([]view.Place, error) { return c.Slides[i].Places, nil }

// Read copies features of some of its tiles.
func (c *Cohort) Read(dst []float32, i, stored int, tiles []int) error {
	s, d := &c.Slides[i], c.Dim()
	if c.Views {
		stored++
	}
	for k, t := range tiles {
		copy(dst[k*d:(k+1)*d], c.Looks[s.Site].Row(stored, s.Tiles[t]))
	}
	return nil
}

// Rows are the features of all tiles of a slide as they are, [n,Dim].
func (c *Cohort) Rows(i int) []float32 {
	s, d := &c.Slides[i], c.Dim()
	rows := make([]float32, len(s.Tiles)*d)
	for k, t := range s.Tiles {
		copy(rows[k*d:], c.Looks[s.Site].Row(0, t))
	}
	return rows
}
