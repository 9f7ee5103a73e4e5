package tiff

import (
	"math"
	"slices"
	"strings"

	"coverslip"
)

// Role is what the image of a directory is for.
type Role string

// A label may show a patient's name, so only what is surely part of the pyramid is a LevelImage.
const (
	LevelImage Role = "level"
	Thumbnail  Role = "thumbnail" // the whole slide, small
	Label      Role = "label"     // the paper label
	Macro      Role = "macro"     // a photograph of the glass, often with the label
	Other      Role = "other"
)

// classify gives each directory its role and lists the levels.
func (f *File) classify() {
	for _, d := range f.Dirs {
		d.Role = f.named(d)
	}
	if f.Format.Elsewhere() {
		return
	}
	base := f.base()
	if base == nil {
		return
	}
	f.Levels = []Level{f.level(base, base)}
	rest := slices.Clone(f.Dirs)
	slices.SortStableFunc(rest, func(a, b *Dir) int { return b.Width - a.Width })
	for _, d := range rest {
		if last := f.Levels[len(f.Levels)-1].Dir; d.Role == Other && f.continues(base, last, d) {
			f.Levels = append(f.Levels, f.level(base, d))
		}
	}
	for _, d := range f.Dirs {
		if d.Role == Other && !d.Tiled && base.Tiled && f.isThumbnail(base, d) {
			d.Role = Thumbnail
			break
		}
	}
}

// named returns the role a directory claims by its texts and flags; Other when it claims none.
func (f *File) named(d *Dir) Role {
	text := d.Description
	if f.Format == FormatAperio { // "Aperio Image Library v11.2.1 \r\nlabel 387x463"
		_, text, _ = strings.Cut(text, "\n")
	}
	if role := roleOf(text); role != Other {
		return role
	}
	switch {
	case d.NewSubfileType == 9 && !d.Tiled: // Aperio's, and of those who copied it
		return Macro
	case f.Format == FormatAperio && d.NewSubfileType == 1 && !d.Tiled:
		return Label
	case f.Leica != nil && d.SubIFD < 0 && slices.Contains(f.Leica.macroPages, d.Page):
		return Macro
	case f.OME != nil:
		return f.OME.role(d.Page)
	}
	return Other
}

// role goes by the names of the images: Bio-Formats writes "label image" and "macro image".
func (o *OME) role(page int) Role {
	for _, image := range o.Images {
		if image.firstPage == page {
			return roleOf(image.Name)
		}
	}
	return Other
}

// roleOf goes by the first word: Philips writes "Macro -offset=(0,0)…", Aperio "label 387x463".
func roleOf(text string) Role {
	first, _, _ := strings.Cut(strings.TrimSpace(strings.ToLower(text[:min(len(text), 64)])), " ")
	switch first {
	case "label":
		return Label
	case "macro", "overview":
		return Macro
	case "thumbnail":
		return Thumbnail
	default:
		return Other
	}
}

// base returns level 0: the largest image that nothing marks as a smaller version or something
// else. Tiles go before strips, as a slide is tiled and its pictures of the glass are not. Some
// writers put the thumbnail first, so the first directory is level 0 only for Aperio.
func (f *File) base() *Dir {
	var best *Dir
	for _, d := range f.Dirs {
		switch {
		case d.Role != Other, d.SubIFD >= 0, d.isMask():
		case f.Format == FormatAperio && d.Page == 0:
			return d
		case f.Format == FormatLeica && !f.Leica.holds(d):
		case best == nil, better(d, best):
			best = d
		}
	}
	return best
}

func better(d, best *Dir) bool {
	if d.Tiled != best.Tiled {
		return d.Tiled
	}
	if d.Reduced() != best.Reduced() {
		return best.Reduced()
	}
	return int64(d.Width)*int64(d.Height) > int64(best.Width)*int64(best.Height)
}

func (d *Dir) isMask() bool { return d.NewSubfileType&4 != 0 }

// holds reports whether d belongs to the only scan. Several scans lie on one canvas whose layout
// is not in the directories.
func (l *Leica) holds(d *Dir) bool {
	return l != nil && l.Scans == 1 && slices.Contains(l.scanPages, d.Page)
}

// continues reports whether d is a level below last.
func (f *File) continues(base, last, d *Dir) bool {
	if d.isMask() || d.SamplesPerPixel != base.SamplesPerPixel || d.BitsPerSample != base.BitsPerSample {
		return false
	}
	if d.SubIFD >= 0 && d.Page != base.Page {
		return false // of another image
	}
	if f.Format == FormatLeica && !f.Leica.holds(d) {
		return false
	}
	if !d.Tiled && (base.Tiled || d.SubIFD < 0 && !d.Reduced()) {
		return false // a picture of its own
	}
	if d.Width > last.Width || d.Height > last.Height || d.Width == last.Width && d.Height == last.Height {
		return false
	}
	return f.Format == FormatPhilips || sameShape(base, d, 1)
}

// sameShape reports whether d is base made smaller, give or take px pixels on each edge.
func sameShape(base, d *Dir, px float64) bool {
	w, h, w0, h0 := float64(d.Width), float64(d.Height), float64(base.Width), float64(base.Height)
	return math.Abs(w*h0-h*w0) <= px*(w0+h0)
}

// isThumbnail reports whether striped d shows all of base. Aperio's is always the second
// directory; elsewhere the shape must tell.
func (f *File) isThumbnail(base, d *Dir) bool {
	if f.Format == FormatAperio {
		return d.Page == 1
	}
	return d.Width < base.Width && d.SubIFD < 0 && sameShape(base, d, 2)
}

// level marks d as the next level of base.
func (f *File) level(base, d *Dir) Level {
	d.Role = LevelImage
	w, h := d.Width, d.Height
	down := (float64(base.Width)/float64(w) + float64(base.Height)/float64(h)) / 2
	if f.Format == FormatPhilips && d != base {
		// Philips pads each level to whole tiles before it halves it, so the sizes of the
		// directories do not tell the scale. It halves each time, which the spacing confirms.
		n := len(f.Levels)
		down = math.Ldexp(1, n)
		if f.Philips != nil && f.Philips.spacing[0] > 0 && f.Philips.spacing[n] > 0 {
			down = max(1, math.Round(f.Philips.spacing[n]/f.Philips.spacing[0]))
		}
		w = max(1, min(w, int(float64(base.Width)/down)))
		h = max(1, min(h, int(float64(base.Height)/down)))
	}
	return Level{Level: coverslip.Level{Width: w, Height: h, Downsample: down}, Dir: d}
}
