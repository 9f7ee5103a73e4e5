package ingest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"coverslip"
	"coverslip/slidessl/view"
	"coverslip/storage"
	"coverslip/storage/bagfile"
	"coverslip/storage/blob"
)

// Stored is the bags of some slides as aggregators learn from them: the bags of views, or of tiles as they
// are. It reads the rows it is asked for and holds no features; a few bags are open at a time. Bags of a
// bucket are copied to the spool first, since single rows would be a request each.
type Stored struct {
	Bags    []coverslip.Bag    // of the slides that have tiles, in the order of Members
	Members []coverslip.Member // their slides
	Without []coverslip.Member // slides left out: they have no tissue

	ctx     context.Context //nolint:containedctx // of the run that reads, which passes none
	blobs   blob.Store
	spool   string // of copies; "" where bags are read in place
	classes []string
	label   string

	mu   sync.Mutex
	open []*openBag // the one used last is last
}

type openBag struct {
	slide int
	file  io.Closer
	bag   *bagfile.ViewReader // of views; else
	plain *bagfile.Reader
	pitch float64
}

// openAtOnce bounds the files that are open.
const openAtOnce = 64

// FindBags finds the bags of a cohort (or of all slides, where cohort is empty) under an encoder: of views,
// or with plain of all tiles as they are. All must be made alike. A slide without one is an error that says
// how to make it, unless it has no tissue. label is the column that Label reads; "" is none. Close the
// result; ctx is for as long as it is read.
func (in *Ingest) FindBags(ctx context.Context, cohort string, plain bool, label string) (*Stored, error) {
	hint := "make them: coverslip encode --cohort " + cmp.Or(cohort, "NAME") + " --encoder " + in.Model.Name + " --views 50 --wait"
	if plain {
		hint = "make them: coverslip ingest SLIDE … --encoder " + in.Model.Name + " --wait"
	}
	return in.find(ctx, cohort, label, kind(plain), hint, func(b coverslip.Bag) bool { return (b.Views == nil) == plain })
}

// FindViews is FindBags of bags whose views were made in exactly this way.
func (in *Ingest) FindViews(ctx context.Context, cohort string, views coverslip.Views, label string) (*Stored, error) {
	return in.find(ctx, cohort, label, "these views", "make them: coverslip encode --cohort "+cmp.Or(cohort, "NAME")+" --encoder "+in.Model.Name+" --views …",
		func(b coverslip.Bag) bool { return b.Views != nil && *b.Views == views })
}

// BagKeys are the keys of a cohort's bags, of views or, with nil, of all tiles as they are: of those that FindBags finds
// and, of slides that have none, of those that Encode would make.
func (in *Ingest) BagKeys(ctx context.Context, cohort string, views *coverslip.Views) ([]string, error) {
	slides, err := in.DB.Slides(ctx, storage.SlideFilter{Cohort: cohort})
	if err != nil {
		return nil, err
	}
	keys := make([]string, len(slides))
	for i, s := range slides {
		keys[i] = BagKey(s.ID, in.planOf(s, coverslip.Budget{}), in.Mask, in.Model, views)
		bags, err := in.DB.Bags(ctx, s.ID, in.Model.Name)
		if err != nil {
			return nil, err
		}
		bags = slices.DeleteFunc(bags, func(b coverslip.Bag) bool {
			return (b.Views == nil) != (views == nil) || views != nil && *b.Views != *views
		})
		if len(bags) > 0 {
			keys[i] = newest(bags).Key
		}
	}
	return keys, nil
}

// find finds the bags that are wanted; what and hint say of the missing ones what they are and how they are made.
func (in *Ingest) find(ctx context.Context, cohort, label, what, hint string, want func(coverslip.Bag) bool) (*Stored, error) {
	const op = "find the bags"
	members, err := in.members(ctx, cohort)
	if err != nil {
		return nil, err
	}
	s := &Stored{ctx: ctx, blobs: in.Blobs, label: label}
	missing := 0
	for _, m := range members {
		bags, err := in.DB.Bags(ctx, m.Slide, in.Model.Name)
		if err != nil {
			return nil, err
		}
		bags = slices.DeleteFunc(bags, func(b coverslip.Bag) bool { return !want(b) })
		switch {
		case len(bags) == 0 && in.noTissue(ctx, m):
			s.Without = append(s.Without, m)
		case len(bags) == 0:
			missing++
		case bags[0].Tiles == 0:
			s.Without = append(s.Without, m)
		default:
			s.Members, s.Bags = append(s.Members, m), append(s.Bags, newest(bags))
		}
	}
	if missing > 0 {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: cohort, Err: fmt.Errorf("%d of %d slides have no bag of %s under encoder %s", missing, len(members), what, in.Model.Name), Hint: hint}
	}
	if len(s.Bags) == 0 {
		return nil, &coverslip.Error{Kind: coverslip.NotFound, Op: op, Path: cohort, Err: fmt.Errorf("none of its %d slides has tissue", len(members)), Hint: "name a cohort of slides that were encoded"}
	}
	if err := s.alike(); err != nil {
		return nil, coverslip.At(cohort, err)
	}
	if label != "" {
		s.classes = classesOf(s.Members, label)
	}
	if _, local := in.Blobs.(*blob.Folder); !local {
		if s.spool, err = os.MkdirTemp(in.Spool, "bags-*"); err != nil {
			return nil, diskError("make room for the bags", in.Spool, err)
		}
	}
	return s, nil
}

func kind(plain bool) string {
	if plain {
		return "tiles"
	}
	return "views"
}

// members are a cohort's, or all slides.
func (in *Ingest) members(ctx context.Context, cohort string) ([]coverslip.Member, error) {
	if cohort != "" {
		return in.DB.Members(ctx, cohort)
	}
	slides, err := in.DB.Slides(ctx, storage.SlideFilter{})
	var members []coverslip.Member
	for _, s := range slides {
		members = append(members, coverslip.Member{Slide: s.ID, Name: s.Name})
	}
	return members, err
}

func (in *Ingest) noTissue(ctx context.Context, m coverslip.Member) bool {
	s, err := in.DB.Slide(ctx, m.Slide)
	return err == nil && s.State == coverslip.NoTissue
}

// newest is the bag that was made last, of bags of all tiles the longest.
func newest(bags []coverslip.Bag) coverslip.Bag {
	return slices.MaxFunc(bags, func(a, b coverslip.Bag) int {
		if a.Views == nil && a.Tiles != b.Tiles {
			return cmp.Compare(a.Tiles, b.Tiles)
		}
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Key, b.Key))
	})
}

// alike refuses bags that were made differently: what an aggregator learned of them would be how.
func (s *Stored) alike() error {
	first := s.Bags[0]
	for i, b := range s.Bags {
		what := ""
		switch {
		case b.Dim != first.Dim:
			what = fmt.Sprintf("features of %d and of %d numbers", first.Dim, b.Dim)
		case b.Plan.MPP != first.Plan.MPP || b.Plan.Size != first.Plan.Size:
			what = fmt.Sprintf("tiles of %d px at %g µm/px and of %d px at %g", first.Plan.Size, first.Plan.MPP, b.Plan.Size, b.Plan.MPP)
		case b.Views != nil && (b.Views.Augment != first.Views.Augment || b.Views.Count != first.Views.Count):
			what = fmt.Sprintf("%d views and %d, or other augmentations", first.Views.Count, b.Views.Count)
		}
		if what != "" {
			return &coverslip.Error{Kind: coverslip.Invalid, Op: "compare the bags", Slide: s.Members[i].Slide, Err: fmt.Errorf("bags are not made alike: %s", what), Hint: "encode the whole cohort with the same settings"}
		}
	}
	return nil
}

// classesOf are the texts of a label column, sorted, so that a class is its place.
func classesOf(members []coverslip.Member, label string) []string {
	var classes []string
	for _, m := range members {
		if text := coverslip.LabelText(m.Labels[label]); text != "" && !slices.Contains(classes, text) {
			classes = append(classes, text)
		}
	}
	slices.Sort(classes)
	return classes
}

// Digest is the SHA-256 over the bags' keys, in order.
func (s *Stored) Digest() string {
	h := sha256.New()
	for _, b := range s.Bags {
		_, _ = io.WriteString(h, b.Key+"\n") // a hash takes everything
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Len is the number of slides with tiles.
func (s *Stored) Len() int { return len(s.Bags) }

// Dim is the length of an instance.
func (s *Stored) Dim() int { return s.Bags[0].Dim }

// Name is the slide's.
func (s *Stored) Name(i int) string { return cmp.Or(s.Members[i].Name, s.Members[i].Slide.Short()) }

// Label is the slide's class in the label column, -1 where it is not known.
func (s *Stored) Label(i int) int {
	if s.label == "" {
		return -1
	}
	return slices.Index(s.classes, coverslip.LabelText(s.Members[i].Labels[s.label]))
}

// Stored is how many views the slide's bag has.
func (s *Stored) Stored(i int) int {
	if v := s.Bags[i].Views; v != nil {
		return v.Count
	}
	return 1
}

// Bag is the slide's bag of tiles as they are, while no other slide is read.
func (s *Stored) Bag(i int) (*bagfile.Reader, error) {
	b, err := s.bag(i)
	if err != nil {
		return nil, err
	}
	return b.reader(), nil
}

// Places are where a view's tiles lie.
func (s *Stored) Places(i, stored int) ([]view.Place, error) {
	b, err := s.bag(i)
	if err != nil {
		return nil, err
	}
	from, n := b.rows(stored)
	corners := make([]int64, 2*n)
	if err := b.reader().Coords(corners, from, n); err != nil {
		return nil, coverslip.At(s.Name(i), err)
	}
	pitch := b.pitch
	if !(pitch > 0) {
		pitch = view.Pitch(corners)
	}
	return view.Places(corners, pitch), nil
}

// Read reads tiles of a view, one row after the other. A number that is not finite is an error that names
// the slide and the row.
func (s *Stored) Read(dst []float32, i, stored int, tiles []int) error {
	b, err := s.bag(i)
	if err != nil {
		return err
	}
	d := s.Dim()
	from, _ := b.rows(stored)
	for k, t := range tiles {
		row := dst[k*d : (k+1)*d]
		if err := b.reader().Features(row, from+t, 1); err != nil {
			return coverslip.At(s.Name(i), err)
		}
		for _, v := range row {
			if v-v != 0 {
				return &coverslip.Error{Kind: coverslip.Invalid, Op: "read the bag", Path: s.Name(i), Err: fmt.Errorf("row %d of view %d holds %g", t, stored, v), Hint: "encode the slide again"}
			}
		}
	}
	return nil
}

func (b *openBag) reader() *bagfile.Reader {
	if b.bag != nil {
		return &b.bag.Reader
	}
	return b.plain
}

// rows are those of a view.
func (b *openBag) rows(stored int) (from, n int) {
	if b.bag == nil {
		return 0, b.plain.Len()
	}
	return stored * b.bag.Tiles(), b.bag.Tiles()
}

// bag opens a slide's bag, or finds it open.
func (s *Stored) bag(i int) (*openBag, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, b := range s.open {
		if b.slide == i {
			s.open = append(append(s.open[:k], s.open[k+1:]...), b)
			return b, nil
		}
	}
	file, size, err := s.file(s.Bags[i].Key)
	if err != nil {
		if coverslip.KindOf(err) == coverslip.NotFound {
			err = &coverslip.Error{Kind: coverslip.NotFound, Op: "open the bag", Path: s.Name(i), Err: errors.New("its file is gone from the store"), Hint: "encode the slide again"}
		}
		return nil, err
	}
	b := &openBag{slide: i, file: file}
	if s.Bags[i].Views != nil {
		b.bag, err = bagfile.OpenViews(file, size)
	} else {
		b.plain, err = bagfile.Open(file, size)
	}
	if err == nil && b.reader().Dim() != s.Dim() {
		err = &coverslip.Error{Kind: coverslip.Invalid, Op: "open the bag", Err: fmt.Errorf("its features have %d numbers, not %d", b.reader().Dim(), s.Dim()), Hint: "encode the slide again"}
	}
	if err != nil {
		return nil, errors.Join(coverslip.At(s.Name(i), err), file.Close())
	}
	b.pitch = b.reader().Pitch()
	if len(s.open) == openAtOnce {
		if err := s.open[0].file.Close(); err != nil {
			return nil, err
		}
		s.open = s.open[1:]
	}
	s.open = append(s.open, b)
	return b, nil
}

type readerAtCloser interface {
	io.ReaderAt
	io.Closer
}

// file opens a bag's file where it lies, or a copy of it.
func (s *Stored) file(key string) (readerAtCloser, int64, error) {
	if s.spool == "" {
		b, err := s.blobs.Open(s.ctx, BagBlob(key))
		if err != nil {
			return nil, 0, err
		}
		return b, b.Size(), nil
	}
	path := filepath.Join(s.spool, key)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := s.fetch(key, path); err != nil {
			return nil, 0, err
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, diskError("open the bag", path, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(diskError("open the bag", path, err), f.Close())
	}
	return f, info.Size(), nil
}

func (s *Stored) fetch(key, path string) error {
	b, err := s.blobs.Open(s.ctx, BagBlob(key))
	if err != nil {
		return err
	}
	defer b.Close()
	f, err := os.CreateTemp(s.spool, ".partial-*")
	if err == nil {
		_, err = io.Copy(f, io.NewSectionReader(b, 0, b.Size()))
		if closing := f.Close(); err == nil {
			err = closing
		}
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil && coverslip.KindOf(err) == coverslip.Internal {
		err = diskError("copy the bag", s.spool, err)
	}
	return err
}

// Close closes what is open and removes copies.
func (s *Stored) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, b := range s.open {
		errs = append(errs, b.file.Close())
	}
	s.open = nil
	if s.spool != "" {
		errs = append(errs, os.RemoveAll(s.spool))
	}
	return errors.Join(errs...)
}
