package coverslip

// Tile is a square region of a slide, placed by its top-left corner in level-0 pixels.
type Tile struct {
	X      int64   `json:"x"`
	Y      int64   `json:"y"`
	Tissue float32 `json:"tissue"` // share of the tile that is tissue, 0 to 1
}

// PlanParams say how to cut a slide. Two slides cut with equal parameters give comparable bags.
type PlanParams struct {
	MPP        float64 `json:"mpp"`                    // resolution of the tiles, µm per pixel
	Size       int     `json:"size"`                   // edge of a tile in pixels at MPP
	Overlap    int     `json:"overlap"`                // pixels at MPP that neighbours share
	MinTissue  float64 `json:"min_tissue"`             // least share of tissue for a tile to be listed, 0 to 1
	MPPOfSlide float64 `json:"mpp_of_slide,omitempty"` // the user's word for level 0; 0 leaves it to the file
	Budget     Budget  `json:"budget,omitzero"`
	// SkipBadTiles leaves out tiles whose bytes are damaged. Without it, one such tile fails the slide.
	SkipBadTiles bool `json:"skip_bad_tiles,omitempty"`
}

// Budget bounds how many of a slide's tiles are encoded. They are drawn in an order that is spread
// evenly over the tissue (tiler.Spread), so that the first n are a fair sample for every n, and a bag
// can be continued to more. The zero Budget takes every tile, in reading order.
type Budget struct {
	Tiles int `json:"tiles,omitempty"` // at most; 0 leaves it to Tolerance
	// Tolerance ends the drawing once the standard error of the embedding is below it, as a share of
	// the embedding's length before it is normalised; 0 leaves it to Tiles.
	Tolerance float64 `json:"tolerance,omitempty"`
	Seed      uint64  `json:"seed,omitempty"`
}

// Views say how the augmented views of a slide are made: each draws its tiles with replacement and
// augments them all with the same parameters.
type Views struct {
	Count   int    `json:"count"`   // views, V
	Tiles   int    `json:"tiles"`   // of each, N
	Augment string `json:"augment"` // the transforms and their ranges, as encoder/augment writes them
	Seed    uint64 `json:"seed"`
}

// Plan is the list of tiles to read from a slide: deterministic for given parameters, row by row
// from the top left, or in the order they are drawn in where there is a budget.
type Plan struct {
	PlanParams
	SlideMPP MPP     `json:"slide_mpp"` // what the plan was computed with
	Level    int     `json:"level"`     // the level tiles are read from
	Shrink   int     `json:"shrink"`    // by which it is decoded smaller: 1, 2, 4 or 8
	Scale    float64 `json:"scale"`     // pixels then, per pixel of a tile; 1 means no resampling
	Step     float64 `json:"step"`      // level-0 pixels from one tile to the next
	Span     float64 `json:"span"`      // level-0 pixels a tile covers
	Columns  int     `json:"columns"`   // of the whole grid, tissue or not
	Rows     int     `json:"rows"`
	Found    int     `json:"found"` // tiles with enough tissue; Tiles are fewer where there is a budget
	Tiles    []Tile  `json:"tiles"`
	// Skipped are the tiles that SkipBadTiles left out, in the order they would have had.
	Skipped []SkippedTile `json:"skipped,omitempty"`
}

// SkippedTile is a tile that could not be decoded.
type SkippedTile struct {
	X   int64  `json:"x"` // level-0 pixels
	Y   int64  `json:"y"`
	Why string `json:"why"` // for people; its wording may differ between machines
}
