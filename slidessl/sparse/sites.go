// Package sparse is the aggregator of Lazard et al., Giga-SSL (arXiv 2212.03273): the last stage of a
// ResNet-18 as sparse convolutions over the map of a slide's tiles.
package sparse

import (
	"coverslip/internal/nn"
	"coverslip/slidessl/view"
)

// Sites maps the tiles of a batch of bags to integer sites of the map, one a tile pitch: the whole tiles
// from the smallest place of their bag, which becomes (0,0). Tiles that share a site are merged: rows
// lists, for each site, in the order of bags and first tiles, the tiles that lie there.
func Sites(at []view.Place, bags nn.Segments) (sites []nn.Site, rows [][]int32) {
	for b := range len(bags) - 1 {
		low := at[bags[b]]
		for _, p := range at[bags[b]:bags[b+1]] {
			low = view.Place{X: min(low.X, p.X), Y: min(low.Y, p.Y)}
		}
		seen := map[nn.Site]int{}
		for i := bags[b]; i < bags[b+1]; i++ {
			s := nn.Site{Map: int32(b), X: int32(at[i].X - low.X), Y: int32(at[i].Y - low.Y)}
			k, there := seen[s]
			if !there {
				k = len(sites)
				seen[s] = k
				sites, rows = append(sites, s), append(rows, nil)
			}
			rows[k] = append(rows[k], int32(i)) //nolint:gosec // rows of a batch are few
		}
	}
	return sites, rows
}

// merge writes the mean of the rows of each site: [sites,d].
func merge(x []float32, d int, rows [][]int32) []float32 {
	out := make([]float32, len(rows)*d)
	for i, list := range rows {
		o := out[i*d : (i+1)*d]
		copy(o, x[int(list[0])*d:(int(list[0])+1)*d])
		for _, r := range list[1:] {
			for k, v := range x[int(r)*d : (int(r)+1)*d] {
				o[k] += v
			}
		}
		if n := float32(len(list)); n > 1 {
			for k := range o {
				o[k] /= n
			}
		}
	}
	return out
}

// Around is the mean of x [sites,d] over each site and those of the eight beside it that are there.
func Around(x *nn.Node, sites []nn.Site) *nn.Node {
	book := nn.Submanifold(sites)
	counts := make([]float32, len(sites))
	for i := range counts {
		counts[i] = 1
	}
	for _, r := range book.Rules {
		for _, o := range r.Out {
			counts[o]++
		}
	}
	for i, n := range counts {
		counts[i] = float32(len(book.Rules)) / n // SparsePool divides by all places
	}
	return nn.Mul(nn.SparsePool(x, book), x.Graph().Constant(len(sites), 1, counts))
}
