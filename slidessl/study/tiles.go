package study

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"coverslip"
	"coverslip/encoder"
	"coverslip/encoder/augment"
	"coverslip/internal/table"
	"coverslip/slidessl/slidessltest"
	"coverslip/slidessl/view"
)

// Tiles declares a cohort that is made of a folder of pictures of tiles, so that a study needs no slides.
type Tiles struct {
	// Kind is patients: a slide for each folder of <patient>/x<X>_y<Y>_class<0|1>.png, in pixels; or pseudo: slides with
	// known answers (slidessltest) laid out of tiles of <class>/*.jpg.
	Kind   string `yaml:"kind" json:"kind"`
	Folder string `yaml:"folder" json:"folder"` // under the folder of tiles
	// Table is a CSV file under the folder of tiles. Its first column names the patient, the others are labels.
	Table string `yaml:"table" json:"table,omitempty"`
	Most  int    `yaml:"most" json:"most,omitempty"`   // tiles of a patient, evenly along the folder; 0 is all
	Limit int    `yaml:"limit" json:"limit,omitempty"` // patients, evenly along the folder; 0 is all

	// Of pseudo-slides: what decides their label, the classes of tiles they are made of, tiles across, sites with a stain
	// of their own, and parts, which a column of this name tells apart.
	Task       slidessltest.Task `yaml:"task" json:"task,omitempty"`
	Background string            `yaml:"background" json:"background,omitempty"`
	Foreground string            `yaml:"foreground" json:"foreground,omitempty"`
	Others     string            `yaml:"others" json:"others,omitempty"`
	Across     int               `yaml:"across" json:"across,omitempty"` // 12
	Sites      int               `yaml:"sites" json:"sites,omitempty"`   // 1
	Parts      []Part            `yaml:"parts" json:"parts,omitempty"`
	Seed       uint64            `yaml:"seed" json:"seed,omitempty"`
}

// Part is some pseudo-slides of a cohort.
type Part struct {
	Name   string `yaml:"name" json:"name"`
	Slides int    `yaml:"slides" json:"slides"`
	// Spurious is the chance that a slide's site is that of its label, rather than any.
	Spurious float64 `yaml:"spurious" json:"spurious,omitempty"`
	// Held is made of every third tile, which other parts are not made of.
	Held bool `yaml:"held" json:"held,omitempty"`
	// Mark is what is wrong with its slides: pen on a third of the tiles, blur, glass instead of tissue, or another
	// stain. Marked parts are held.
	Mark string `yaml:"mark" json:"mark,omitempty"`
}

var marks = []string{"pen", "blur", "glass", "stain"}

// most pseudo-slides and tiles across, which are held in memory.
const maxPseudo, maxAcross = 100_000, 100

func (t *Tiles) check(name string) error {
	bad := func(hint, why string, args ...any) error {
		return invalid(hint, "cohort %s: %s", name, fmt.Sprintf(why, args...))
	}
	if t.Folder == "" || filepath.IsAbs(t.Folder) || !filepath.IsLocal(t.Folder) || t.Table != "" && !filepath.IsLocal(t.Table) {
		return bad("name folder and table relative to the folder of --tiles", "it has no folder, or one that lies elsewhere")
	}
	switch t.Kind {
	case "patients":
		if t.Task != "" || len(t.Parts) > 0 || t.Across != 0 || t.Sites != 0 || t.Background+t.Foreground+t.Others != "" || t.Seed != 0 {
			return bad("leave them out, or take kind pseudo", "patients have a folder, a table and most, no settings of pseudo-slides")
		}
		if t.Most < 0 || t.Limit < 0 {
			return bad("give 1 or more", "%d tiles of each of %d patients", t.Most, t.Limit)
		}
		return nil
	case "pseudo":
	default:
		return bad("take patients or pseudo", "there is no kind %q", t.Kind)
	}
	t.Task, t.Across, t.Sites = or(t.Task, slidessltest.Composition), or(t.Across, 12), or(t.Sites, 1)
	switch {
	case t.Table != "" || t.Most != 0 || t.Limit != 0:
		return bad("leave them out", "pseudo-slides have no table, most or limit")
	case !slices.Contains(slidessltest.Tasks, t.Task):
		return bad("take composition, needle or arrangement", "there is no task %q", t.Task)
	case t.Background == "" || t.Foreground == "" || t.Background == t.Foreground:
		return bad("name two folders of tiles", "its background and its foreground are no two classes")
	case t.Across < 1 || t.Across > maxAcross || t.Sites < 1 || t.Sites > 4:
		return bad(fmt.Sprintf("1 to %d tiles, 1 to 4 sites", maxAcross), "slides of %d tiles across, of %d sites", t.Across, t.Sites)
	case len(t.Parts) == 0:
		return bad("name one, such as {name: all, slides: 200}", "it has no parts")
	}
	var names []string
	for i := range t.Parts {
		p := &t.Parts[i]
		p.Held = p.Held || p.Mark != ""
		names = append(names, p.Name)
		switch {
		case p.Name == "" || p.Slides < 1 || p.Slides > maxPseudo:
			return bad(fmt.Sprintf("give it a name, and 1 to %d slides", maxPseudo), "part %q has %d slides", p.Name, p.Slides)
		case !(p.Spurious >= 0 && p.Spurious <= 1) || p.Spurious > 0 && t.Sites%2 == 1:
			return bad("give 0 to 1, and sites in pairs", "part %s: a site is that of the label with a chance of %g, of %d sites", p.Name, p.Spurious, t.Sites)
		case p.Mark != "" && !slices.Contains(marks, p.Mark):
			return bad("take "+strings.Join(marks, ", "), "part %s: there is no mark %q", p.Name, p.Mark)
		case p.Mark == "stain" && t.Sites > 3:
			return bad("take 3 sites", "the other stain is the fourth site's")
		}
	}
	if again := twice(names); again != nil {
		return bad("name each differently", "two parts are called %s", *again)
	}
	return nil
}

// TileCohort is a cohort made of tiles.
type TileCohort struct {
	Slides   []TileSlide
	files    []string
	looks    []look
	pictures []picture
	// content is a hash of the pictures, arrangement of what slides are made of them.
	content, arrangement string
}

// TileSlide is one slide of it: which pictures lie where, and what is known of it.
type TileSlide struct {
	Name, Patient, Site string
	Labels              map[string]string
	pictures            []int
	places              []view.Place
}

// picture is a tile with a look.
type picture struct{ look, file int }

// look is what becomes of a tile's pixels, [size,size,3].
type look struct {
	name   string
	change func(tile int, pixels []uint8, size int) []uint8 // nil: nothing
}

// Make makes the cohort. Equal folders give equal cohorts.
func (t *Tiles) Make(dir string) (*TileCohort, error) {
	var m *TileCohort
	var err error
	if t.Kind == "patients" {
		m, err = t.patients(dir)
	} else {
		m, err = t.pseudo(dir)
	}
	if err != nil {
		return nil, err
	}
	return m, m.digest(filepath.Join(dir, t.Folder))
}

func (t *Tiles) patients(dir string) (*TileCohort, error) {
	tiles, err := slidessltest.IDC(filepath.Join(dir, t.Folder))
	if err != nil {
		return nil, err
	}
	labels := map[string]map[string]string{}
	if t.Table != "" {
		if labels, err = readLabels(filepath.Join(dir, t.Table)); err != nil {
			return nil, err
		}
	}
	m := &TileCohort{looks: []look{{name: "as it is"}}}
	var starts []int // of patients
	for i, tile := range tiles {
		if i == 0 || tile.Group != tiles[i-1].Group {
			starts = append(starts, i)
		}
	}
	size, patients := 0, len(starts)
	starts = append(starts, len(tiles))
	if t.Limit > 0 {
		patients = min(patients, t.Limit)
	}
	for p := range patients {
		at := p * (len(starts) - 1) / patients
		from, to := starts[at], starts[at+1]
		group := tiles[from].Group
		s := TileSlide{Name: group, Patient: group, Labels: labels[group]}
		n := to - from
		if t.Most > 0 {
			n = min(n, t.Most)
		}
		for i := range n {
			tile := tiles[from+i*(to-from)/n]
			if size == 0 {
				if _, size, err = slidessltest.Decode(tile.File); err != nil {
					return nil, err
				}
			}
			s.pictures = append(s.pictures, len(m.pictures))
			m.pictures = append(m.pictures, picture{0, len(m.files)})
			s.places = append(s.places, view.Place{X: float64(tile.X) / float64(size), Y: float64(tile.Y) / float64(size)})
			m.files = append(m.files, tile.File)
		}
		m.Slides = append(m.Slides, s)
	}
	return m, nil
}

// readLabels reads a table by its first column.
func readLabels(path string) (map[string]map[string]string, error) {
	t, err := table.ReadFile(path)
	if err == nil && len(t.Columns) < 2 {
		err = t.Invalid(1, errors.New("it has no labels"), "the first column names the patient, the others are labels")
	}
	if err != nil {
		return nil, err
	}
	labels := map[string]map[string]string{}
	for _, line := range t.Lines {
		of := map[string]string{}
		for k, name := range t.Columns[1:] {
			of[name] = line.Cells[k+1]
		}
		labels[line.Cells[0]] = of
	}
	return labels, nil
}

func (t *Tiles) pseudo(dir string) (*TileCohort, error) {
	all, err := slidessltest.Classes(filepath.Join(dir, t.Folder))
	if err != nil {
		return nil, err
	}
	m := &TileCohort{}
	place := map[string]int{} // of looks
	for site := range t.Sites {
		l := look{name: fmt.Sprintf("site %d", site)}
		if change := slidessltest.Look(site); site > 0 {
			l.change = func(tile int, pixels []uint8, _ int) []uint8 { change(tile, pixels); return pixels }
		}
		m.looks = append(m.looks, l)
	}
	for _, p := range t.Parts {
		if _, there := place[p.Mark]; p.Mark != "" && !there {
			place[p.Mark] = len(m.looks)
			m.looks = append(m.looks, marked(p.Mark))
		}
	}
	of := map[string][2][]int{} // of each class, those that are held last
	for _, tile := range all {
		if tile.Class == t.Background || tile.Class == t.Foreground || tile.Class == t.Others {
			list := of[tile.Class]
			held := 0
			if (len(list[0])+len(list[1]))%3 == 2 {
				held = 1
			}
			list[held] = append(list[held], len(m.files))
			of[tile.Class] = list
			m.files = append(m.files, tile.File)
		}
	}
	for _, class := range []string{t.Background, t.Foreground, t.Others} {
		if class != "" && len(of[class][1]) == 0 {
			return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: "make pseudo-slides", Path: filepath.Join(dir, t.Folder), Err: fmt.Errorf("class %s has fewer than 3 tiles", class), Hint: "its folders are classes; name those there are"}
		}
	}
	number := map[picture]int{}
	list := func(look, file int) {
		number[picture{look, file}] = len(m.pictures)
		m.pictures = append(m.pictures, picture{look, file})
	}
	for l := range m.looks { // marks are of held tiles alone
		for _, class := range []string{t.Background, t.Foreground, t.Others} {
			if l < t.Sites {
				for _, file := range of[class][0] {
					list(l, file)
				}
			}
			for _, file := range of[class][1] {
				list(l, file)
			}
		}
	}
	for i, p := range t.Parts {
		rng := rand.New(rand.NewPCG(t.Seed, uint64(i)))
		held := 0
		if p.Held {
			held = 1
		}
		spec := slidessltest.PseudoSpec{Task: t.Task, Slides: p.Slides, Across: t.Across, Sites: t.Sites, Spurious: p.Spurious,
			Background: of[t.Background][held], Foreground: of[t.Foreground][held], Others: of[t.Others][held]}
		for k, s := range slidessltest.Pseudo(spec, rng) {
			name := fmt.Sprintf("%s-%04d", p.Name, k)
			site := "site " + strconv.Itoa(s.Site)
			slide := TileSlide{Name: name, Patient: name, Site: site, places: s.Places,
				Labels: map[string]string{"label": strconv.Itoa(s.Label), "part": p.Name, "site": site}}
			for _, tile := range s.Tiles {
				at := s.Site
				if p.Mark != "" && (p.Mark != "pen" || rng.IntN(3) == 0) {
					at = place[p.Mark]
				}
				slide.pictures = append(slide.pictures, number[picture{at, tile}])
			}
			m.Slides = append(m.Slides, slide)
		}
	}
	return m, nil
}

// marked is the look of what is wrong.
func marked(mark string) look {
	l := look{name: mark}
	switch mark {
	case "stain":
		change := slidessltest.Look(3)
		l.change = func(tile int, pixels []uint8, _ int) []uint8 { change(tile, pixels); return pixels }
	case "blur":
		spec, err := augment.Parse("[{p: 1, resolution: {factor: [0.125, 0.125]}}]")
		if err != nil {
			panic("study: " + err.Error()) // a constant
		}
		l.change = func(_ int, pixels []uint8, size int) []uint8 {
			out := make([]uint8, len(pixels))
			spec.Draw(1, 1).Apply(out, size, augment.Tile{Pixels: pixels, Size: size}, augment.Slide{}, new(augment.Scratch))
			return out
		}
	case "glass":
		l.change = func(tile int, pixels []uint8, size int) []uint8 {
			rng := rand.New(rand.NewPCG(1, uint64(tile))) //nolint:gosec // numbers that only have to differ
			bright := 225 + 20*rng.Float64()
			for i := range pixels {
				pixels[i] = uint8(bright + 6*float64(i/3%size)/float64(size) + 2*rng.NormFloat64())
			}
			return pixels
		}
	case "pen":
		inks := [][3]uint8{{25, 45, 150}, {20, 110, 60}, {35, 30, 40}}
		l.change = func(tile int, pixels []uint8, size int) []uint8 {
			rng := rand.New(rand.NewPCG(2, uint64(tile))) //nolint:gosec // the same
			ink, wide := inks[rng.IntN(len(inks))], float64(size)*(0.15+0.2*rng.Float64())
			slope, start := 2*rng.Float64()-1, float64(size)*rng.Float64()
			for y := range size {
				for x := range size {
					if d := float64(y) - start - slope*(float64(x)-float64(size)/2); d*d < wide*wide/4 {
						for k, v := range ink { // ink lets some of the tissue through
							at := 3*(y*size+x) + k
							pixels[at] = uint8((4*int(v) + int(pixels[at])) / 5) //nolint:gosec // a mean of two
						}
					}
				}
			}
			return pixels
		}
	}
	return l
}

// digest hashes the pictures and what is made of them.
func (m *TileCohort) digest(dir string) error {
	h := sha256.New()
	for _, l := range m.looks {
		_, _ = fmt.Fprintf(h, "%q\n", l.name)
	}
	_, _ = fmt.Fprintln(h, m.pictures)
	for _, file := range m.files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return &coverslip.Error{Kind: coverslip.NotFound, Op: "read the tile", Path: file, Err: err, Hint: "look whether the folder is whole"}
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			name = file
		}
		_, _ = fmt.Fprintf(h, "%q %x\n", filepath.ToSlash(name), sha256.Sum256(raw))
	}
	m.content = hex.EncodeToString(h.Sum(nil))
	h.Reset()
	for _, s := range m.Slides {
		_, _ = fmt.Fprintf(h, "%q %v %v\n", s.Name, s.pictures, s.places)
	}
	m.arrangement = hex.EncodeToString(h.Sum(nil))
	return nil
}

// Cohort is what a plan needs to know of it.
func (m *TileCohort) Cohort() Cohort {
	c := Cohort{Slides: len(m.Slides), Tiles: len(m.pictures), Classes: map[string]int{}, Sizes: map[string]map[string]int{}, Members: m.content + m.arrangement}
	rows := make([]any, len(m.Slides))
	for i, s := range m.Slides {
		rows[i] = []any{s.Patient, s.Site, s.Labels}
		for column, value := range s.Labels {
			if c.Sizes[column] == nil {
				c.Sizes[column] = map[string]int{}
			}
			if value != "" {
				c.Sizes[column][value]++
			}
		}
	}
	for column, sizes := range c.Sizes {
		c.Classes[column] = len(sizes)
	}
	c.Labels = Hash(rows)
	return c
}

// Bags is a hash of the bags of its slides: of tiles as they are those are the same for all that is made of the same
// pictures.
func (m *TileCohort) Bags(enc coverslip.Model, v *coverslip.Views) string {
	of := []any{m.content, enc.SHA256, enc.SpecSHA256, v}
	if v != nil {
		of = append(of, m.arrangement)
	}
	return key("bags", of...)
}

// draws are the tiles of a slide's views, drawn with replacement.
func (m *TileCohort) draws(slide int, v coverslip.Views) [][]int {
	rng := rand.New(rand.NewPCG(v.Seed, uint64(slide))) //nolint:gosec // numbers that only have to differ
	drawn := make([][]int, v.Count)
	for k := range drawn {
		for range v.Tiles {
			drawn[k] = append(drawn[k], rng.IntN(len(m.Slides[slide].pictures)))
		}
	}
	return drawn
}

// Encode encodes every picture as it is, [pictures,D], or with v the tiles of every view of every slide, [slides·V·N,D].
func (m *TileCohort) Encode(ctx context.Context, enc encoder.Encoder, v *coverslip.Views, progress func(done, total int)) ([]float32, error) {
	var src madeTiles
	var err error
	if v == nil {
		src.of = make([]madeTile, len(m.pictures))
		for i := range src.of {
			src.of[i] = madeTile{picture: i, other: -1, view: augment.Spec{}.Draw(0, 0)}
		}
	} else if src.of, err = m.views(*v); err != nil {
		return nil, err
	}
	src.m, src.size = m, enc.Model().TileSize
	x := make([]float32, 0, len(src.of)*enc.Model().Dim)
	_, err = encoder.Run(ctx, enc, src, len(src.of), 0, func(_ int, features []float32) error {
		x = append(x, features...)
		return nil
	}, func(done int) {
		if progress != nil {
			progress(done, len(src.of))
		}
	})
	return x, err
}

// stainTiles are looked at to know a slide's stain, as bags of slides do.
const stainTiles = 16

func (m *TileCohort) views(v coverslip.Views) ([]madeTile, error) {
	spec, err := augment.Parse(v.Augment)
	if err != nil {
		return nil, err
	}
	var of []madeTile
	for i, s := range m.Slides {
		var pixels []uint8
		for k := range min(len(s.pictures), stainTiles) {
			if slices.ContainsFunc(spec, func(s augment.Step) bool { return s.Normalise != nil || s.RandStain != nil }) {
				p, _, err := m.picture(s.pictures[k*len(s.pictures)/min(len(s.pictures), stainTiles)])
				if err != nil {
					return nil, err
				}
				pixels = append(pixels, p...)
			}
		}
		slide, err := spec.Measure(pixels)
		if err != nil && !errors.Is(err, augment.ErrNoStain) {
			return nil, coverslip.At(s.Name, err)
		}
		for k, tiles := range m.draws(i, v) {
			drawn := spec.Draw(v.Seed<<32^uint64(i), k)
			for n, tile := range tiles {
				of = append(of, madeTile{picture: s.pictures[tile], other: s.pictures[tiles[(n+1)%len(tiles)]], view: drawn, slide: slide})
			}
		}
	}
	return of, nil
}

// madeTile is a picture to be encoded.
type madeTile struct {
	picture, other int // other lends its background, -1: none
	view           augment.View
	slide          augment.Slide
}

type madeTiles struct {
	m    *TileCohort
	of   []madeTile
	size int
}

// ReadTile makes the tile of a view.
func (t madeTiles) ReadTile(_ context.Context, dst []uint8, i int) error {
	of := t.of[i]
	pixels, size, err := t.m.picture(of.picture)
	if err != nil {
		return err
	}
	tile := augment.Tile{Pixels: pixels, Size: size, Index: uint64(i)} //nolint:gosec // not below zero
	if of.other >= 0 {
		other, otherSize, err := t.m.picture(of.other)
		if err != nil {
			return err
		}
		if otherSize == size {
			tile.Other = other
		}
	}
	of.view.Apply(dst, t.size, tile, of.slide, new(augment.Scratch))
	return nil
}

// picture is a file's pixels under a look.
func (m *TileCohort) picture(i int) ([]uint8, int, error) {
	p := m.pictures[i]
	pixels, size, err := slidessltest.Decode(m.files[p.file])
	if change := m.looks[p.look].change; err == nil && change != nil {
		pixels = change(p.file, pixels, size)
	}
	return pixels, size, err
}

// TileBags are the slides of a made cohort with their features, as aggregators learn from them. They are read only.
type TileBags struct {
	*TileCohort
	X       []float32 // what Encode gave
	D       int
	Views   *coverslip.Views // nil: tiles as they are
	LabelBy string           // the column that Label reads
	drawn   [][][]int
	classes []string
}

// NewTileBags puts features beside their slides. Features of another number are Invalid.
func NewTileBags(m *TileCohort, x []float32, dim int, v *coverslip.Views, label string) (*TileBags, error) {
	b := &TileBags{TileCohort: m, X: x, D: dim, Views: v, LabelBy: label}
	rows := len(m.pictures)
	if v != nil {
		rows = len(m.Slides) * v.Count * v.Tiles
		for i := range m.Slides {
			b.drawn = append(b.drawn, m.draws(i, *v))
		}
	}
	if dim < 1 || len(x) != rows*dim {
		return nil, &coverslip.Error{Kind: coverslip.Invalid, Op: "read the features of tiles", Err: fmt.Errorf("there are %d numbers of %d rows", len(x), rows), Hint: "remove what the study kept of them, and run it again"}
	}
	for _, s := range m.Slides {
		if text := s.Labels[label]; text != "" && !slices.Contains(b.classes, text) {
			b.classes = append(b.classes, text)
		}
	}
	slices.Sort(b.classes)
	return b, nil
}

// Len is the number of slides.
func (b *TileBags) Len() int { return len(b.Slides) }

// Dim is the length of an instance.
func (b *TileBags) Dim() int { return b.D }

// Stored is how many views of a slide there are.
func (b *TileBags) Stored(int) int {
	if b.Views != nil {
		return b.Views.Count
	}
	return 1
}

// Name is the slide's.
func (b *TileBags) Name(i int) string { return b.Slides[i].Name }

// Label is the slide's class, -1 where it has none.
func (b *TileBags) Label(i int) int { return slices.Index(b.classes, b.Slides[i].Labels[b.LabelBy]) }

// Places are where the tiles of a view lie.
func (b *TileBags) Places(i, stored int) ([]view.Place, error) {
	if b.Views == nil {
		return b.Slides[i].places, nil
	}
	places := make([]view.Place, b.Views.Tiles)
	for k, tile := range b.drawn[i][stored] {
		places[k] = b.Slides[i].places[tile]
	}
	return places, nil
}

// Read copies features of some tiles of a view.
func (b *TileBags) Read(dst []float32, i, stored int, tiles []int) error {
	for k, t := range tiles {
		row := 0
		if b.Views != nil {
			row = (i*b.Views.Count+stored)*b.Views.Tiles + t
		} else {
			row = b.Slides[i].pictures[t]
		}
		copy(dst[k*b.D:(k+1)*b.D], b.X[row*b.D:(row+1)*b.D])
	}
	return nil
}

// Bag is the bag of tiles as they are.
func (b *TileBags) Bag(i int) TileBag { return TileBag{b, i} }

// TileBag is one slide's.
type TileBag struct {
	of    *TileBags
	slide int
}

// Len is the number of tiles.
func (b TileBag) Len() int { return len(b.of.Slides[b.slide].pictures) }

// Dim is the length of an instance.
func (b TileBag) Dim() int { return b.of.D }

// Features copies rows.
func (b TileBag) Features(dst []float32, from, n int) error {
	tiles := make([]int, n)
	for i := range tiles {
		tiles[i] = from + i
	}
	return b.of.Read(dst, b.slide, 0, tiles)
}
