package coverslip

// ModelKind is what a model maps.
type ModelKind string

const (
	EncoderModel    ModelKind = "encoder"    // tile pixels → feature vector
	AggregatorModel ModelKind = "aggregator" // bag → slide embedding
)

// Model is a network (or a plain rule such as the mean) known by its name and the SHA-256 of the
// file or rule it consists of. Only the hash counts when two results are compared.
type Model struct {
	Kind   ModelKind `json:"kind"`
	Name   string    `json:"name"`
	SHA256 string    `json:"sha256"`
	Dim    int       `json:"dim"` // length of what it returns; 0 when it follows its input
	// Of an encoder: the tiles it was made for.
	TileSize int     `json:"tile_size,omitempty"` // pixels
	TileMPP  float64 `json:"tile_mpp,omitempty"`  // µm per pixel
	Licence  string  `json:"licence,omitempty"`
	Source   string  `json:"source,omitempty"` // where its weights come from
}
