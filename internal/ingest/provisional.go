package ingest

import (
	"context"
	"crypto/md5" //nolint:gosec // it is what manifests say
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"coverslip"
	"coverslip/storage"
	"coverslip/tiler/remote"
)

// Reference is what others say of a slide whose bytes nobody here has read.
type Reference struct {
	Name  string
	Place string // a path or an address
	Bytes int64
	MD5   string // of its bytes; "" where nobody says it
	Mark  string // without an MD5: what tells it from others, such as an id at the source, or its ETag
}

// Provisional is the slide that a reference means. Its id is made of the MD5 and the size where there is one,
// so that the same bytes are the same slide wherever they lie, and else of the place and its mark. It is no
// SHA-256 of a slide's bytes, because it is one of a sentence.
func (r Reference) Provisional() coverslip.Slide {
	said := fmt.Sprintf("coverslip: a slide of %d bytes with MD5 %s", r.Bytes, r.MD5)
	if r.MD5 == "" {
		said = fmt.Sprintf("coverslip: a slide of %d bytes at %s, %s", r.Bytes, r.Place, r.Mark)
	}
	sum := sha256.Sum256([]byte(said))
	return coverslip.Slide{ID: coverslip.SlideID(hex.EncodeToString(sum[:])), Name: r.Name, Location: r.Place, Bytes: r.Bytes, MD5: r.MD5, Provisional: true}
}

// Referred says what came of registering slides by reference.
type Referred struct {
	Slides  []coverslip.SlideID // in the order of the references, each once
	Created int                 // were not known before
}

// Refer registers slides without reading a byte of them, and puts them into a cohort, with what members says
// of them in turn. All or none. Whoever encodes one reads its bytes first; see identify.
func (in *Ingest) Refer(ctx context.Context, cohort string, refs []Reference, members []coverslip.Member) (out Referred, err error) {
	slides := make([]coverslip.Slide, len(refs))
	for i, r := range refs {
		slides[i] = r.Provisional()
	}
	err = in.DB.InTx(ctx, func(tx *storage.Tx) error {
		ids, created, err := tx.RegisterProvisional(ctx, slides)
		if err != nil {
			return err
		}
		out = Referred{Created: created}
		seen := map[coverslip.SlideID]bool{}
		var places []coverslip.Member
		for i, id := range ids {
			if !seen[id] {
				seen[id] = true
				out.Slides = append(out.Slides, id)
				m := members[i]
				m.Slide = id
				places = append(places, m)
			}
		}
		return tx.AddToCohort(ctx, cohort, places...)
	})
	return out, err
}

// identify reads the bytes of a provisional slide whole, for the first time: what the manifest says of them
// must be true, and their SHA-256 becomes the slide's id.
func (in *Ingest) identify(ctx context.Context, slide coverslip.Slide) (coverslip.Slide, error) {
	files, release, err := in.Local(ctx, slide)
	if err != nil {
		return slide, err
	}
	defer release()
	is, err := identify(ctx, files, md5.New()) //nolint:gosec // it is what manifests say
	if err != nil {
		return slide, renamed(err, slide.Name)
	}
	wrong := func(what string, is, said any) error {
		return &coverslip.Error{Kind: coverslip.Invalid, Op: "verify the slide", Path: slide.Name, Err: fmt.Errorf("%s of %s is %v; it was registered as %v", what, remote.Shown(slide.Location), is, said),
			Hint: "put the right file there and retry, or import a manifest that is right"}
	}
	switch {
	case is.bytes != slide.Bytes:
		return slide, wrong("the size in bytes", is.bytes, slide.Bytes)
	case slide.MD5 != "" && is.md5 != slide.MD5:
		return slide, wrong("the MD5", is.md5, slide.MD5)
	}
	read, err := describe(ctx, slide.Name, files)
	if err != nil {
		return slide, renamed(err, slide.Name)
	}
	read.ID, read.Name, read.Bytes, read.MD5, read.Location = is.id, slide.Name, is.bytes, is.md5, slide.Location+is.version
	if slide.MPP.Source == coverslip.MPPUser {
		read.MPP = slide.MPP
	}
	known, err := in.DB.Identify(ctx, slide.ID, read, func(tx *storage.Tx) error { return in.hold(ctx, tx) })
	if err != nil {
		return slide, err
	}
	in.read = known.Location == read.Location
	return known, nil
}
