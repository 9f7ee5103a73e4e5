package sparse

import (
	"math"
	"math/rand/v2"

	"coverslip/internal/nn"
	"coverslip/slidessl/view"
)

// Network is two basic blocks of 3 × 3 sparse convolutions, of which the first halves the map: convolution,
// batch norm, ReLU, convolution, batch norm, and the input added before the last ReLU, pooled and brought to
// width where the map was halved.
type Network struct {
	In, Width int
	blocks    [2]block
}

type block struct {
	conv1, conv2, shortcut *nn.Param // the last is nil in a block that keeps the map
	norm1, norm2, norm     *nn.BatchNorm
}

// New draws a network's weights: normal with variance 2 / (9·inputs), as SparseConvNet does.
func New(in, width int, rng *rand.Rand) *Network {
	conv := func(name string, taps, in int) *nn.Param {
		p := nn.NewParam(name+".weight", taps*in, width)
		nn.Normal(p, math.Sqrt(2/float64(taps*in)), rng)
		return p
	}
	n := &Network{In: in, Width: width}
	for i := range n.blocks {
		name := []string{"block1", "block2"}[i]
		b := &n.blocks[i]
		b.conv1, b.norm1 = conv(name+".conv1", 9, in), nn.NewBatchNorm(name+".norm1", width)
		b.conv2, b.norm2 = conv(name+".conv2", 9, width), nn.NewBatchNorm(name+".norm2", width)
		if i == 0 {
			b.shortcut, b.norm = conv(name+".shortcut", 1, in), nn.NewBatchNorm(name+".norm", width)
		}
		in = width
	}
	return n
}

// Params are all parameters, in order.
func (n *Network) Params() []*nn.Param {
	var all []*nn.Param
	for _, b := range n.blocks {
		all = append(append(all, b.conv1), b.norm1.Params()...)
		all = append(append(all, b.conv2), b.norm2.Params()...)
		if b.shortcut != nil {
			all = append(append(all, b.shortcut), b.norm.Params()...)
		}
	}
	return all
}

// Merge makes one row of the tiles that share a site: their mean, [sites,Dim].
func Merge(b view.Batch) ([]float32, []nn.Site) {
	sites, rows := Sites(b.At, b.Bags)
	return merge(b.X, b.Dim, rows), sites
}

// Forward maps x [sites,In] to features [sites',Width] of the halved maps, whose rows bags cuts into the
// bags of the batch.
func (n *Network) Forward(x *nn.Node, sites []nn.Site, bags int) (*nn.Node, nn.Segments) {
	g := x.Graph()
	half := nn.Strided(sites)
	same := nn.Submanifold(half.Sites)
	for i, b := range n.blocks {
		book := same
		shortcut := x
		if i == 0 {
			book = half
			shortcut = b.norm.Apply(nn.Linear(nn.SparsePool(x, half), g.Param(b.shortcut), nil), nil, false)
		}
		y := b.norm1.Apply(nn.SparseConv(x, g.Param(b.conv1), book), nil, true)
		x = b.norm2.Apply(nn.SparseConv(y, g.Param(b.conv2), same), shortcut, true)
	}
	return x, half.Bags(bags)
}
